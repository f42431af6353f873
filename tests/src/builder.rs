//! What a [`TestApp`] is made of, and making it.

use std::collections::BTreeMap;
use std::process::Command;

use longshore_base::random;
use longshore_base::schema::MIGRATOR;
use longshore_base::testing::TestDatabase;
use sqlx::PgPool;
use uuid::Uuid;

use crate::app::{TestApp, launch_api};
use crate::caller::{client, client_of};
use crate::control_plane::{ControlPlane, ORG};
use crate::engine::Engine;
use crate::servers::OwnRedis;
use crate::stores::{Database, Redis};
use crate::switch::EngineSwitch;

/// The default of `TEST_REDIS_URL`.
const REDIS: &str = "redis://127.0.0.1:63790";
/// The runtimes that the reference agent stands in for.
const RUNTIMES: [&str; 4] = ["claude-code", "hermes", "openclaw", "codex"];
/// How a [`TestApp`] is to be.
pub struct Builder {
    docker: bool,
    own_redis: bool,
    own_postgres: bool,
    workers: Vec<NewWorker>,
    settings: Vec<(String, String)>,
    api_settings: Vec<(String, String)>,
    pub(crate) control_plane: Option<(String, Vec<String>)>,
    may_be_cut_off: bool,
}

/// How a worker process is to be.
#[derive(Clone, Default)]
pub struct NewWorker {
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) elsewhere: bool,
}
impl NewWorker {
    /// Does this at a fail point: `die`, `stop`, `sleep:MS` or `gate:PATH`.
    #[must_use]
    pub fn failpoint(self, point: &str, action: &str) -> Self {
        self.setting("LONGSHORE_FAILPOINTS", &format!("{point}={action}"))
    }

    /// A setting of this worker alone.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With another engine than the machine's, or none: its start does not wait for the engine to be known.
    #[must_use]
    pub fn on_engine(mut self, host: &str) -> Self {
        self.elsewhere = true;
        self.setting("DOCKER_HOST", host)
    }
}
impl Default for Builder {
    fn default() -> Self {
        Self {
            docker: true,
            own_redis: false,
            own_postgres: false,
            workers: vec![NewWorker::default()],
            settings: Vec::new(),
            api_settings: Vec::new(),
            control_plane: None,
            may_be_cut_off: false,
        }
    }
}

impl Builder {
    /// As a hosted organisation, whose workspaces run on instances of this program with these flags: a simulated control
    /// plane that keeps its instances in the machine's engine.
    #[must_use]
    pub fn control_plane(mut self, program: &str, flags: &[&str]) -> Self {
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        self.control_plane = Some((program.to_owned(), flags));
        self
    }

    /// So that [`TestApp::cut_off`] can take away where workspaces run.
    #[must_use]
    pub fn to_be_cut_off(mut self) -> Self {
        self.may_be_cut_off = true;
        self
    }

    /// Without the machine's Docker engine, and without workers.
    #[must_use]
    pub fn without_docker(mut self) -> Self {
        self.docker = false;
        self.workers.clear();
        self
    }

    /// With a Redis that only this test uses, so it can be stopped.
    #[must_use]
    pub fn own_redis(mut self) -> Self {
        self.own_redis = true;
        self
    }

    /// With a Postgres that only this test uses, so it can be restarted.
    #[must_use]
    pub fn own_postgres(mut self) -> Self {
        self.own_postgres = true;
        self
    }

    /// With exactly these workers, started one after the other.
    #[must_use]
    pub fn workers(mut self, workers: impl IntoIterator<Item = NewWorker>) -> Self {
        self.workers = workers.into_iter().collect();
        self
    }

    /// A setting of all processes.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// A setting of the API alone.
    #[must_use]
    pub fn api_setting(mut self, name: &str, value: &str) -> Self {
        self.api_settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it all and waits until it serves.
    pub async fn start(self) -> TestApp {
        let place = tempfile::tempdir().unwrap();
        let redis = if self.own_redis {
            Redis::Own(OwnRedis::start().await)
        } else {
            Redis::Shared(std::env::var("TEST_REDIS_URL").unwrap_or_else(|_| REDIS.to_owned()))
        };
        let database = if self.own_postgres {
            Database::own().await
        } else {
            Database::Shared(Box::new(TestDatabase::create(&MIGRATOR).await))
        };
        let installation = write_installation_directly(database.pool()).await;
        let engine = if self.docker {
            Some(Engine::prepare(installation).await)
        } else {
            None
        };
        let admin_token = random::token();
        let redis_prefix = format!("test:{}:", installation.simple());
        let mut settings = BTreeMap::from([
            ("DATABASE_URL".to_owned(), database.url()),
            ("REDIS_URL".to_owned(), redis.url()),
            ("LONGSHORE_REDIS_PREFIX".to_owned(), redis_prefix.clone()),
            ("ADMIN_TOKEN".to_owned(), admin_token.clone()),
            ("SECRETS_ENCRYPTION_KEY".to_owned(), sealing_key()),
        ]);
        let common = [
            ("LONGSHORE_METRICS_LISTEN", "none"),
            ("LONGSHORE_DATABASE_CONNECTIONS", "10"),
            ("LONGSHORE_LOG", "info"),
            ("LONGSHORE_LOG_FORMAT", "json"),
            ("LONGSHORE_IN_DOCKER", "false"),
            ("LONGSHORE_DOCKER_NETWORK", Engine::network()),
            ("RATE_LIMIT", "1000000"),
        ];
        settings.extend(common.map(|(name, value)| (name.to_owned(), value.to_owned())));
        if let Some(engine) = &engine {
            let images = RUNTIMES.map(|runtime| format!("{runtime}={}", engine.image));
            settings.insert("LONGSHORE_RUNTIME_IMAGES".to_owned(), images.join(","));
        } else {
            let nowhere = format!("unix://{}/no-docker.sock", place.path().display());
            settings.insert("DOCKER_HOST".to_owned(), nowhere);
        }
        let control_plane = match (&self.control_plane, &engine) {
            (Some((program, flags)), Some(engine)) => {
                let mut command = Command::new(program);
                command.args(["--image", &engine.image]).args(flags);
                let place = place.path();
                Some(ControlPlane::start(command, &admin_token, installation, place).await)
            }
            (Some(_), None) => panic!("a control plane keeps its instances in an engine"),
            (None, _) => None,
        };
        if let Some(plane) = &control_plane {
            settings.extend(plane.settings());
        }
        // A control plane can be told to fail.
        let switch = (self.may_be_cut_off && control_plane.is_none()).then(EngineSwitch::on);
        if let Some(switch) = &switch {
            settings.insert("DOCKER_HOST".to_owned(), switch.host());
        }
        settings.extend(self.settings);
        let (api, port) = launch_api(&settings, &self.api_settings, 0, &place, "api").await;
        if let Some(engine) = &engine {
            let platform = format!("http://{}:{port}", engine.gateway);
            settings
                .entry("PLATFORM_URL".to_owned())
                .or_insert(platform);
        }
        let mut app = TestApp {
            api,
            workers: Vec::new(),
            engine,
            http: match control_plane {
                Some(_) => client_of(ORG),
                None => client(),
            },
            control_plane,
            switch,
            redis,
            redis_prefix,
            settings,
            api_settings: self.api_settings,
            admin_token,
            port,
            processes: 0,
            jobs_may_stay: false,
            database,
            place,
        };
        for worker in self.workers {
            let worker = app.start_worker(worker).await;
            app.workers.push(worker);
        }
        app
    }
}
fn sealing_key() -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(random::bytes::<32>())
}

/// A database is a copy of a template and has its id too; an installation of its own wants another one.
async fn write_installation_directly(pool: &PgPool) -> Uuid {
    sqlx::query_scalar("UPDATE installation SET id = gen_random_uuid() RETURNING id")
        .fetch_one(pool)
        .await
        .unwrap()
}
