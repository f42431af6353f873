//! A Docker engine of the run's own, beside the machine's: its own data, sockets and network. It changes no rules of the
//! firewall, which are the other's.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bollard::Docker;
use bollard::models::{ContainerSummary, Ipam, IpamConfig, NetworkCreateRequest};
use bollard::query_parameters::{ListContainersOptionsBuilder, RemoveContainerOptionsBuilder};
use longshore_tests::{PATIENCE, Process, image, wait_until};
use nix::sys::signal::Signal;
use tempfile::TempDir;

const NETWORK: &str = "chaos-net";
/// It asks its containers to end, and kills them after ten seconds.
const LEAVES_WITHIN: Duration = Duration::from_secs(25);

pub(crate) struct OwnEngine {
    process: Process,
    is_away: bool,
    started: usize,
    place: TempDir,
    gateway: String,
    /// Of the reference agent.
    image: String,
    /// Goes last.
    bridge: Bridge,
}

/// The engine's default bridge. One told to have none would take that of the machine's engine away.
struct Bridge {
    name: String,
}

impl Bridge {
    fn make(number: u32) -> Result<Self, String> {
        let bridge = Self {
            name: format!("lschaos{number}"),
        };
        let (name, address) = (bridge.name.as_str(), format!("10.232.{number}.1/24"));
        for arguments in [
            &["link", "add", "name", name, "type", "bridge"][..],
            &["address", "add", &address, "dev", name],
            &["link", "set", name, "up"],
        ] {
            let made = Command::new("ip").args(arguments).output();
            let made = made.map_err(|error| format!("ip (of iproute2): {error}"))?;
            if !made.status.success() {
                let said = String::from_utf8_lossy(&made.stderr).into_owned();
                return Err(format!("ip {}: {said}", arguments.join(" ")));
            }
        }
        Ok(bridge)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let arguments = ["link", "delete", &self.name];
        Command::new("ip").args(arguments).status().ok();
    }
}

impl OwnEngine {
    /// Starts one; or says why this machine has none to give.
    pub(crate) async fn start() -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("only root may start a Docker engine".to_owned());
        }
        let version = Command::new("dockerd").arg("--version").output();
        version.map_err(|error| format!("dockerd: {error}"))?;
        let place = tempfile::Builder::new()
            .prefix("longshore-test-")
            .tempdir_in("/var/tmp")
            .unwrap();
        std::fs::write(place.path().join("daemon.json"), "{}").unwrap();
        // One of 250, by the process' id: two runs at a time are enough.
        let number = std::process::id() % 250;
        let subnet = format!("10.231.{number}");
        let gateway = format!("{subnet}.1");
        let bridge = Bridge::make(number)?;
        let mut engine = Self {
            process: launch(place.path(), &gateway, &bridge, 0),
            bridge,
            is_away: false,
            started: 0,
            place,
            gateway,
            image: String::new(),
        };
        engine.answers().await?;
        let docker = engine.docker().unwrap();
        engine.image = image::ensure(&docker).await;
        let request = NetworkCreateRequest {
            name: NETWORK.to_owned(),
            driver: Some("bridge".to_owned()),
            ipam: Some(Ipam {
                config: Some(vec![IpamConfig {
                    subnet: Some(format!("{subnet}.0/24")),
                    gateway: Some(engine.gateway.clone()),
                    ..Default::default()
                }]),
                ..Default::default()
            }),
            ..Default::default()
        };
        docker
            .create_network(request)
            .await
            .map_err(|error| format!("no network: {error}"))?;
        Ok(engine)
    }

    /// What processes are given, with the API at this port.
    pub(crate) fn settings(&self, api_port: u16) -> [(String, String); 5] {
        [
            ("DOCKER_HOST", format!("unix://{}", self.socket())),
            ("LONGSHORE_DOCKER_NETWORK", NETWORK.to_owned()),
            (
                "LONGSHORE_RUNTIME_IMAGES",
                format!("claude-code={}", self.image),
            ),
            ("PROVISION_TIMEOUT_SECONDS", "20".to_owned()),
            (
                "PLATFORM_URL",
                format!("http://{}:{api_port}", self.gateway),
            ),
        ]
        .map(|(name, value)| (name.to_owned(), value))
    }

    fn socket(&self) -> String {
        self.place.path().join("docker.sock").display().to_string()
    }

    /// Once it has made its socket.
    fn docker(&self) -> Result<Docker, bollard::errors::Error> {
        connect(&self.socket())
    }

    /// SIGTERM, as for an upgrade, or SIGKILL.
    pub(crate) fn end(&mut self, signal: Signal) {
        if !self.is_away {
            self.process.signal(signal);
            self.is_away = true;
        }
    }

    /// Starts it again once it has ended.
    pub(crate) async fn start_again(&mut self) {
        if self.is_away {
            self.process.ended(LEAVES_WITHIN).await;
            // Its child, killed with it, may be a zombie that nobody buries, and would be taken for alive.
            std::fs::remove_file(self.place.path().join("exec/containerd/containerd.pid")).ok();
            self.started += 1;
            self.process = launch(self.place.path(), &self.gateway, &self.bridge, self.started);
            self.answers().await.unwrap();
            self.is_away = false;
        }
    }

    /// All containers there are, running or not.
    pub(crate) async fn containers(&self) -> Vec<ContainerSummary> {
        let options = ListContainersOptionsBuilder::default().all(true).build();
        let docker = self.docker().unwrap();
        let docker = docker.negotiate_version().await.unwrap();
        docker.list_containers(Some(options)).await.unwrap()
    }

    async fn answers(&mut self) -> Result<(), String> {
        let socket = self.socket();
        let process = std::cell::RefCell::new(&mut self.process);
        wait_until("the engine", PATIENCE, || {
            let mut process = process.borrow_mut();
            let ended = process
                .status()
                .map(|status| format!("the engine ended: {status}: {}", process.log()));
            let docker = connect(&socket);
            async move {
                let pong = match docker {
                    Ok(docker) => docker.ping().await,
                    Err(error) => Err(error),
                };
                match (ended, pong) {
                    (Some(ended), _) => Ok(Err(ended)),
                    (None, Ok(_)) => Ok(Ok(())),
                    (None, Err(error)) => Err(error.to_string()),
                }
            }
        })
        .await
    }

    async fn remove_everything(docker: Docker) {
        let Ok(docker) = docker.negotiate_version().await else {
            return;
        };
        let options = ListContainersOptionsBuilder::default().all(true).build();
        let listed = docker.list_containers(Some(options)).await;
        for container in listed.unwrap_or_default() {
            let options = RemoveContainerOptionsBuilder::default().force(true).build();
            let id = container.id.unwrap_or_default();
            if let Err(error) = docker.remove_container(&id, Some(options)).await {
                eprintln!("container {id} was not removed: {error}");
            }
        }
        // Its bridge would stay on the machine.
        if let Err(error) = docker.remove_network(NETWORK).await {
            eprintln!("the network was not removed: {error}");
        }
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        if self.process.status().is_some() {
            eprintln!("the engine has ended; its containers and bridge may be left");
            return;
        }
        let Ok(docker) = self.docker() else {
            return;
        };
        std::thread::scope(|scope| {
            // In the middle of a panic, perhaps, and with a client of another runtime.
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(Self::remove_everything(docker));
            });
        });
        self.process.end(Signal::SIGTERM, LEAVES_WITHIN);
        // One that was killed before has forgotten that it mounted this.
        let data = self.place.path().join("data");
        Command::new("umount")
            .arg("--quiet")
            .arg(data)
            .status()
            .ok();
    }
}

fn connect(socket: &str) -> Result<Docker, bollard::errors::Error> {
    Docker::connect_with_unix(socket, 20, bollard::API_DEFAULT_VERSION)
}

fn launch(place: &Path, gateway: &str, bridge: &Bridge, number: usize) -> Process {
    let mut command = Command::new("dockerd");
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let at = |name: &str| place.join(name).display().to_string();
    command
        .env("PATH", path)
        .args(["--config-file", &at("daemon.json")])
        .args(["--data-root", &at("data"), "--exec-root", &at("exec")])
        .args(["--pidfile", &at("pid")])
        .arg(format!("--host=unix://{}", at("docker.sock")))
        .arg(format!("--bridge={}", bridge.name))
        .args(["--iptables=false", "--ip-masq=false"])
        .args(["--host-gateway-ip", gateway])
        .args(["--log-level", "warn"]);
    Process::start(&format!("dockerd-{number}"), &mut command, place)
}

/// The value of a label.
pub(crate) fn label<'a>(container: &'a ContainerSummary, name: &str) -> Option<&'a str> {
    let labels: &HashMap<String, String> = container.labels.as_ref()?;
    labels.get(name).map(String::as_str)
}
