//! A fleet and a database of its own for one test.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use longshore_base::redact::Redactor;
use longshore_base::schema::MIGRATOR;
use longshore_base::testing::TestDatabase;
use longshore_base::{Secret, WorkspaceId, ids};
use longshore_events::{EventBus, EventsConfig, list_events};
use longshore_fleet::provisioning::{self, Begin, Started};
use longshore_fleet::restarting::RestartBudget;
use longshore_fleet::secrets::Sealer;
use longshore_fleet::workspace::{
    CreateError, NewWorkspace, Workspace, create_workspace, load_workspace,
};
use longshore_fleet::{DeployMode, Fleet, FleetConfig, WorkspaceStatus};
use serde_json::Value;
use sqlx::pool::PoolConnection;
use sqlx::{PgPool, Postgres, Transaction};

pub(crate) struct Setup {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) db: TestDatabase,
}

pub(crate) fn config() -> FleetConfig {
    FleetConfig {
        max_tier: 2,
        configs_dir: None,
        manifest_path: None,
        dev_mode: false,
        deploy_mode: DeployMode::SelfHosted,
        in_docker: false,
        platform_url: "http://platform:8080".to_owned(),
        external_platform_url: None,
        awareness_url: None,
        workspace_dir: None,
        agent_git_email_domain: None,
        image_prefix: "registry.test/owner".to_owned(),
        runtime_images: BTreeMap::new(),
        image_local_override: false,
        provision_timeout: None,
        auto_restart: RestartBudget::DEFAULT,
    }
}

pub(crate) fn named(name: &str) -> NewWorkspace {
    NewWorkspace {
        name: name.to_owned(),
        ..NewWorkspace::default()
    }
}

pub(crate) fn external(name: &str) -> NewWorkspace {
    NewWorkspace {
        external: true,
        ..named(name)
    }
}

fn keys() -> Sealer {
    Sealer::from_settings(Some("0123456789abcdef0123456789abcdef"), None).unwrap()
}

impl Setup {
    /// What another process on the same database has.
    pub(crate) fn other_process(&self) -> Fleet {
        let (config, bus) = (self.fleet.config.clone(), self.fleet.bus.clone());
        Fleet::load(config, keys(), Redactor::default(), bus)
    }

    pub(crate) async fn new() -> Self {
        Self::with(config()).await
    }

    pub(crate) async fn with(config: FleetConfig) -> Self {
        let redis_url =
            std::env::var("TEST_REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:63790".into());
        let bus = EventBus::connect(EventsConfig {
            redis_url: Secret::new(redis_url),
            redis_prefix: format!("{}:", ids::random_uuid()),
            liveness_ttl: EventsConfig::DEFAULT_LIVENESS_TTL,
        })
        .unwrap();
        Self {
            fleet: Arc::new(Fleet::load(config, keys(), Redactor::default(), bus)),
            db: TestDatabase::create(&MIGRATOR).await,
        }
    }

    pub(crate) fn pool(&self) -> &PgPool {
        self.db.pool()
    }

    pub(crate) async fn conn(&self) -> PoolConnection<Postgres> {
        self.pool().acquire().await.unwrap()
    }

    pub(crate) async fn begin(&self) -> Transaction<'static, Postgres> {
        self.pool().begin().await.unwrap()
    }

    pub(crate) async fn try_create(&self, new: NewWorkspace) -> Result<Workspace, CreateError> {
        let mut tx = self.begin().await;
        let created = create_workspace(&mut tx, &self.fleet, new).await?;
        tx.commit().await.unwrap();
        Ok(created)
    }

    pub(crate) async fn create(&self, new: NewWorkspace) -> Workspace {
        self.try_create(new).await.unwrap()
    }

    pub(crate) async fn create_child(&self, name: &str, parent: WorkspaceId) -> Workspace {
        let parent_id = Some(parent.to_string());
        self.create(NewWorkspace {
            parent_id,
            ..named(name)
        })
        .await
    }

    /// A managed workspace that was brought up and is in a status.
    pub(crate) async fn create_in(&self, name: &str, status: WorkspaceStatus) -> Workspace {
        let id = self.create(named(name)).await.id;
        let mut tx = self.begin().await;
        let Begin::Go(begun) = provisioning::begin(&mut tx, id).await.unwrap() else {
            panic!("a new workspace is wanted");
        };
        let started = Started {
            url: "http://127.0.0.1:49153".to_owned(),
            container_id: "c0ffee".to_owned(),
            engine_id: "engine".to_owned(),
            image_digest: None,
        };
        let generation = begun.provision_generation;
        assert!(
            provisioning::mark_started(&mut tx, id, generation, started)
                .await
                .unwrap()
        );
        tx.commit().await.unwrap();
        self.write_status(id, status).await;
        self.load(id).await
    }

    /// Writes the row directly, past every rule.
    pub(crate) async fn write_status(&self, id: WorkspaceId, status: WorkspaceStatus) {
        sqlx::query(
            "UPDATE workspaces SET status = $2, last_heartbeat_at = longshore_now() WHERE id = $1",
        )
        .bind(id)
        .bind(status)
        .execute(self.pool())
        .await
        .unwrap();
    }

    pub(crate) async fn load(&self, id: WorkspaceId) -> Workspace {
        load_workspace(&mut *self.conn().await, id).await.unwrap()
    }

    pub(crate) async fn status(&self, id: WorkspaceId) -> WorkspaceStatus {
        self.load(id).await.status
    }

    /// Name and payload of a workspace's events, oldest first.
    pub(crate) async fn events(&self, id: WorkspaceId) -> Vec<(String, Value)> {
        let mut rows = list_events(&mut *self.conn().await, Some(id), 100)
            .await
            .unwrap();
        rows.reverse();
        rows.into_iter()
            .map(|row| (row.event_type, row.payload))
            .collect()
    }

    /// The events after the first `count`.
    pub(crate) async fn events_after(&self, id: WorkspaceId, count: usize) -> Vec<(String, Value)> {
        self.events(id).await.split_off(count)
    }

    pub(crate) async fn count(&self, table: &'static str) -> i64 {
        sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
            .fetch_one(self.pool())
            .await
            .unwrap()
    }

    /// Waits until somebody waits for a lock in this test's database.
    pub(crate) async fn until_someone_waits(&self) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let waiting: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND wait_event_type = 'Lock'",
            )
            .fetch_one(self.pool())
            .await
            .unwrap();
            if waiting > 0 {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "nobody waits");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
