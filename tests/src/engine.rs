//! The machine's Docker engine, as a test sees it: by the label of its own installation.

use std::collections::HashMap;
use std::io::Read as _;

use bollard::Docker;
use bollard::models::NetworkCreateRequest;
use bollard::query_parameters::{
    DownloadFromContainerOptionsBuilder, ListContainersOptionsBuilder, ListImagesOptionsBuilder,
    ListVolumesOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    RemoveImageOptionsBuilder, RemoveVolumeOptionsBuilder,
};
use futures_util::TryStreamExt as _;
use longshore_base::brand::{LABEL_GENERATION, LABEL_INSTALLATION, LABEL_WORKSPACE};
use uuid::Uuid;

use crate::image;
use crate::leftovers::{Alive, one_at_a_time, sweep};
use crate::wait::{PATIENCE, wait_until};

/// One for all tests, kept from run to run: an engine has only some thirty subnets to give.
const NETWORK: &str = "longshore-test-net";
/// Of an agent that is shown after a failure.
const LINES_SHOWN: &str = "50";
const WITHOUT: &str = "LONGSHORE_TEST_WITHOUT_DOCKER";

/// A container of this test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `running`, `created`, `exited`, …
    pub state: String,
    /// Its labels.
    pub labels: HashMap<String, String>,
}

impl Container {
    /// The generation of the provision that made it.
    #[must_use]
    pub fn generation(&self) -> i64 {
        self.labels[LABEL_GENERATION].parse().unwrap()
    }
}

/// The engine, and which part of it is this test's.
pub struct Engine {
    docker: Docker,
    installation: Uuid,
    /// Where containers reach this machine.
    pub(crate) gateway: String,
    /// The image of the reference agent.
    pub(crate) image: String,
    /// Keeps sweeps away for as long as this lives.
    alive: Option<Alive>,
}

/// Whether an engine answers. When none does, that is a failure, unless the environment says that it is known.
pub async fn docker_answers() -> bool {
    let answer = match connect() {
        Ok(docker) => docker.ping().await.map(|_| ()),
        Err(error) => Err(error),
    };
    let Err(error) = answer else { return true };
    assert_eq!(
        std::env::var(WITHOUT).as_deref(),
        Ok("1"),
        "this test needs a Docker engine and none answers ({error}); start one, or set {WITHOUT}=1 to skip such tests"
    );
    eprintln!("SKIPPED: no Docker engine answers ({error}), and {WITHOUT}=1");
    false
}

fn connect() -> Result<Docker, bollard::errors::Error> {
    match std::env::var("DOCKER_HOST") {
        Ok(host) if host.starts_with("tcp://") => Docker::connect_with_http_defaults(),
        _ => Docker::connect_with_unix_defaults(),
    }
}

impl Engine {
    /// What every test with containers starts with.
    pub async fn prepare(installation: Uuid) -> Self {
        let docker = connect().unwrap().negotiate_version().await.unwrap();
        let mut engine = Self {
            image: image::ensure(&docker).await,
            gateway: network_gateway(&docker).await,
            docker,
            installation,
            alive: None,
        };
        let _one = one_at_a_time().await;
        sweep(&engine).await;
        engine.alive = Some(Alive::mark(installation));
        engine
    }

    /// The name of the network.
    #[must_use]
    pub const fn network() -> &'static str {
        NETWORK
    }

    /// Whose containers are this test's.
    #[must_use]
    pub const fn installation(&self) -> Uuid {
        self.installation
    }

    /// The image of the reference agent.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.image
    }

    /// Its client, for what only one test does.
    #[must_use]
    pub fn docker(&self) -> &Docker {
        &self.docker
    }

    /// The containers of this test, running or not.
    pub async fn containers(&self) -> Vec<Container> {
        self.list(
            "label",
            &format!("{LABEL_INSTALLATION}={}", self.installation),
        )
        .await
    }

    /// Those of one workspace.
    pub async fn containers_of(&self, workspace: &str) -> Vec<Container> {
        let mut containers = self.containers().await;
        containers.retain(|container| {
            container.labels.get(LABEL_WORKSPACE).map(String::as_str) == Some(workspace)
        });
        containers
    }

    /// Containers and volumes whose names are a workspace's and that do not carry this installation's label.
    pub async fn unlabelled_of(&self, workspace: &str) -> Vec<String> {
        let prefix = format!("ws-{}", &workspace[..12]);
        let ours = self.installation.to_string();
        let is_ours = |labels: &HashMap<String, String>| {
            labels.get(LABEL_INSTALLATION) == Some(&ours)
                && labels.get(LABEL_WORKSPACE).map(String::as_str) == Some(workspace)
        };
        let containers = self.list("name", &prefix).await;
        let containers = containers
            .into_iter()
            .filter(|container| !is_ours(&container.labels))
            .map(|container| format!("container {}", container.name));
        let volumes = self.volumes("name", &prefix).await;
        let volumes = volumes
            .into_iter()
            .filter(|(_, labels)| !is_ours(labels))
            .map(|(name, _)| format!("volume {name}"));
        containers.chain(volumes).collect()
    }

    /// Names of the volumes of this test, sorted.
    pub async fn volume_names(&self) -> Vec<String> {
        let label = format!("{LABEL_INSTALLATION}={}", self.installation);
        let volumes = self.volumes("label", &label).await;
        let mut names: Vec<_> = volumes.into_iter().map(|(name, _)| name).collect();
        names.sort();
        names
    }

    /// A file of a container.
    pub async fn read_file(&self, container: &str, path: &str) -> String {
        let found = self.find_file(container, path).await;
        found.unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same, if it is there; else why not.
    async fn find_file(&self, container: &str, path: &str) -> Result<String, String> {
        let options = DownloadFromContainerOptionsBuilder::default()
            .path(path)
            .build();
        let chunks: Vec<_> = self
            .docker
            .download_from_container(container, Some(options))
            .try_collect()
            .await
            .map_err(|error| format!("{path} of {container}: {error}"))?;
        let bytes = chunks.concat();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        Ok(text)
    }

    /// The token an agent was given. One on an instance has it from the answer to its registration, so a moment after it
    /// is online.
    pub async fn token_in(&self, container: &str) -> String {
        let text = wait_until("an agent's token", PATIENCE, || {
            self.find_file(container, "/configs/.auth_token")
        });
        text.await.trim().to_owned()
    }

    /// Takes a container away behind the platform's back.
    pub async fn remove(&self, container: &str) {
        let options = RemoveContainerOptionsBuilder::default().force(true).build();
        let removed = self.docker.remove_container(container, Some(options));
        removed.await.unwrap();
    }

    /// Removes all containers and volumes of this test.
    pub(crate) async fn remove_everything(&self) {
        self.remove_everything_of(self.installation).await;
    }

    pub(crate) async fn remove_everything_of(&self, installation: Uuid) {
        let label = format!("{LABEL_INSTALLATION}={installation}");
        for container in self.list("label", &label).await {
            let options = RemoveContainerOptionsBuilder::default()
                .force(true)
                .v(true)
                .build();
            let removed = self.docker.remove_container(&container.id, Some(options));
            if let Err(error) = removed.await {
                eprintln!("container {} was not removed: {error}", container.name);
            }
        }
        for (name, _) in self.volumes("label", &label).await {
            let options = RemoveVolumeOptionsBuilder::default().force(true).build();
            if let Err(error) = self.docker.remove_volume(&name, Some(options)).await {
                eprintln!("volume {name} was not removed: {error}");
            }
        }
        let filters = HashMap::from([("label", vec![label.as_str()])]);
        let options = ListImagesOptionsBuilder::default()
            .filters(&filters)
            .build();
        let images = self.docker.list_images(Some(options)).await;
        for image in images.unwrap_or_default() {
            let options = RemoveImageOptionsBuilder::default().force(true).build();
            let removed = self.docker.remove_image(&image.id, Some(options), None);
            if let Err(error) = removed.await {
                eprintln!("image {} was not removed: {error}", image.id);
            }
        }
    }

    /// The same for a destructor, which may stand in the middle of a panic and in any runtime or none. A test that fails
    /// gets to see what its agents wrote.
    pub fn remove_everything_blocking(&self, show_logs: bool) {
        std::thread::scope(|scope| {
            let removed = scope.spawn(|| {
                // A client of its own: connections belong to the runtime that made them.
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let own = Self {
                        docker: connect().unwrap().negotiate_version().await.unwrap(),
                        installation: self.installation,
                        gateway: String::new(),
                        image: String::new(),
                        alive: None,
                    };
                    if show_logs {
                        own.show_logs().await;
                    }
                    own.remove_everything().await;
                });
            });
            if removed.join().is_err() {
                eprintln!("containers of {} may be left behind", self.installation);
            }
        });
    }

    async fn show_logs(&self) {
        for container in self.containers().await {
            let options = LogsOptionsBuilder::default()
                .stdout(true)
                .stderr(true)
                .tail(LINES_SHOWN)
                .build();
            let lines = self.docker.logs(&container.id, Some(options));
            let lines: Vec<_> = lines.try_collect().await.unwrap_or_default();
            eprintln!(
                "---- container {} ({}) ----",
                container.name, container.state
            );
            for line in lines {
                eprint!("{line}");
            }
        }
    }

    async fn list(&self, filter: &str, value: &str) -> Vec<Container> {
        let filters = HashMap::from([(filter, vec![value])]);
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        let listed = self.docker.list_containers(Some(options)).await.unwrap();
        listed
            .into_iter()
            .map(|container| Container {
                id: container.id.unwrap_or_default(),
                name: container
                    .names
                    .unwrap_or_default()
                    .concat()
                    .trim_start_matches('/')
                    .to_owned(),
                state: container
                    .state
                    .map(|state| state.to_string())
                    .unwrap_or_default(),
                labels: container.labels.unwrap_or_default(),
            })
            .collect()
    }

    async fn volumes(&self, filter: &str, value: &str) -> Vec<(String, HashMap<String, String>)> {
        let filters = HashMap::from([(filter, vec![value])]);
        let options = ListVolumesOptionsBuilder::default()
            .filters(&filters)
            .build();
        let listed = self.docker.list_volumes(Some(options)).await.unwrap();
        let volumes = listed.volumes.unwrap_or_default();
        volumes
            .into_iter()
            .map(|volume| (volume.name, volume.labels))
            .collect()
    }
}

async fn network_gateway(docker: &Docker) -> String {
    let inspect = || async {
        let network = docker.inspect_network(NETWORK, None).await.ok()?;
        let configs = network.ipam?.config?;
        configs.into_iter().find_map(|config| config.gateway)
    };
    if let Some(gateway) = inspect().await {
        return gateway;
    }
    let _one = one_at_a_time().await;
    if let Some(gateway) = inspect().await {
        return gateway;
    }
    let request = NetworkCreateRequest {
        name: NETWORK.to_owned(),
        driver: Some("bridge".to_owned()),
        ..Default::default()
    };
    docker.create_network(request).await.unwrap();
    inspect().await.expect("a bridge has a gateway")
}
