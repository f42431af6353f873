//! A test's own corner of the engine, and what is asked there.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Mutex;
use std::time::Duration;

use bollard::body_full;
use bollard::models::{ContainerInspectResponse, Network};
use bollard::query_parameters::{
    CreateImageOptionsBuilder, ListContainersOptionsBuilder, ListNetworksOptionsBuilder,
    ListVolumesOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder,
    RemoveVolumeOptionsBuilder,
};
use futures_util::TryStreamExt as _;
use longshore_backends::{
    Backend as _, ConfigFile, Docker, DockerConfig, StartSpec, WorkspaceAccess,
};
use longshore_base::clock::Stopwatch;
use longshore_base::{WorkspaceId, brand, ids};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use uuid::Uuid;

pub(crate) const IMAGE: &str = "longshore-test/busybox:1";

/// Tells what the first process finds, then serves it. `IDLE` keeps it off the port, for tier 4.
const BOOT: &str = r#"#!/bin/busybox sh
bb=/bin/busybox
$bb mkdir -p /tmp/www
cd /configs
$bb find . -mindepth 1 | $bb sort | while read -r path; do $bb stat -c '%n %a %u' "$path"; done > /tmp/www/files
$bb env > /tmp/www/env
$bb cat /proc/self/status > /tmp/www/status
$bb hostname > /tmp/www/hostname
echo "booted with $($bb wc -l < /tmp/www/files) files"
echo "to stderr" >&2
[ -n "$IDLE" ] && exec $bb sleep 3600
exec $bb httpd -f -p 8000 -h /tmp/www
"#;

/// An installation on the real engine; everything of it is gone when this is dropped.
pub(crate) struct Room {
    pub(crate) docker: Docker,
    pub(crate) raw: bollard::Docker,
    pub(crate) config: DockerConfig,
    pub(crate) id: WorkspaceId,
    images: Mutex<Vec<String>>,
}

/// A room, or `None` after saying loudly that there is no engine.
pub(crate) async fn room() -> Option<Room> {
    let config = DockerConfig {
        network: format!("longshore-test-{}", ids::random_uuid().simple()),
        ..DockerConfig::new(ids::random_uuid())
    };
    let docker = Docker::connect(config.clone()).unwrap();
    if let Err(error) = docker.check().await {
        shout(&format!(
            "SKIPPED, no Docker engine answers: {}",
            error.chain()
        ));
        return None;
    }
    let raw = client();
    static IMPORTED: OnceCell<()> = OnceCell::const_new();
    IMPORTED.get_or_init(|| import_image(&raw)).await;
    Some(Room {
        docker,
        raw,
        config,
        id: WorkspaceId::random(),
        images: Mutex::default(),
    })
}

/// Says something that the test harness, which swallows what macros print, cannot hide.
pub(crate) fn shout(text: &str) {
    let line = format!("\n*** {text} ***\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

fn client() -> bollard::Docker {
    bollard::Docker::connect_with_unix("/var/run/docker.sock", 60, bollard::API_DEFAULT_VERSION)
        .unwrap()
}

async fn import_image(raw: &bollard::Docker) {
    if let Ok(found) = raw.inspect_image(IMAGE).await
        && found.config.and_then(|config| config.entrypoint).as_deref()
            == Some(&[
                "/bin/busybox".to_owned(),
                "sh".to_owned(),
                "/boot-1.sh".to_owned(),
            ])
    {
        return;
    }
    let mut tar = tar::Builder::new(Vec::new());
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    for (path, mode, bytes) in [
        ("bin/busybox", 0o755, &busybox[..]),
        ("boot-1.sh", 0o755, BOOT.as_bytes()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, path, bytes).unwrap();
    }
    let options = CreateImageOptionsBuilder::default()
        .from_src("-")
        .repo("longshore-test/busybox")
        .tag("1")
        .changes(vec![
            r#"ENTRYPOINT ["/bin/busybox", "sh", "/boot-1.sh"]"#.to_owned(),
        ])
        .build();
    let root = body_full(tar.into_inner().unwrap().into());
    raw.create_image(Some(options), Some(root), None)
        .try_collect::<Vec<_>>()
        .await
        .unwrap();
}

impl Room {
    /// A workspace of tier 2 in its first generation, with two files.
    pub(crate) fn spec(&self) -> StartSpec {
        StartSpec {
            workspace_id: self.id,
            runtime: "hermes".into(),
            tier: 2,
            image: IMAGE.into(),
            pull_always: false,
            env: vec![],
            files: vec![
                file("config.yaml", 0o644, "name: x\n"),
                file(".auth_token", 0o600, "token"),
            ],
            workspace_dir: None,
            workspace_access: WorkspaceAccess::None,
            reset_session: false,
            generation: 1,
            run: ids::random_uuid(),
        }
    }

    /// The same workspace, (re)provisioned anew.
    pub(crate) fn spec_of_generation(&self, generation: i64) -> StartSpec {
        StartSpec {
            generation,
            ..self.spec()
        }
    }

    /// The label by which a container or volume that a test makes itself is swept.
    pub(crate) fn label(&self) -> HashMap<String, String> {
        let installation = self.config.installation.to_string();
        HashMap::from([(brand::LABEL_INSTALLATION.to_owned(), installation)])
    }

    /// Has an image removed at the end.
    pub(crate) fn sweep_image(&self, reference: &str) {
        self.images.lock().unwrap().push(reference.to_owned());
    }

    pub(crate) fn another_process(&self) -> Docker {
        Docker::connect(self.config.clone()).unwrap()
    }

    pub(crate) async fn inspect(&self) -> Option<ContainerInspectResponse> {
        self.raw
            .inspect_container(&self.id.container_name(), None)
            .await
            .ok()
    }

    pub(crate) async fn labels(&self) -> HashMap<String, String> {
        let found = self.inspect().await.expect("the workspace has a container");
        found.config.unwrap().labels.unwrap()
    }

    pub(crate) async fn generation(&self) -> String {
        self.labels().await[brand::LABEL_GENERATION].clone()
    }

    /// Ids of all containers of the installation, running or not.
    pub(crate) async fn containers(&self) -> Vec<String> {
        containers(&self.raw, self.config.installation).await
    }

    /// Names of all its networks.
    pub(crate) async fn networks(&self) -> Vec<String> {
        let listed = networks(&self.raw, self.config.installation).await;
        listed.into_iter().filter_map(|found| found.name).collect()
    }

    /// Names of all its volumes, sorted.
    pub(crate) async fn volumes(&self) -> Vec<String> {
        let mut names = volumes(&self.raw, self.config.installation).await;
        names.sort();
        names
    }
}

pub(crate) fn file(path: &str, mode: u32, text: &str) -> ConfigFile {
    ConfigFile {
        path: path.into(),
        mode,
        bytes: text.into(),
    }
}

/// Asks the workspace for one of the files it serves, until it answers.
pub(crate) async fn fetch(url: &str, path: &str) -> String {
    let host = url.strip_prefix("http://").unwrap();
    let since = Stopwatch::start();
    loop {
        let last = match fetch_once(host, path).await {
            Ok(text) if text.starts_with("HTTP/1.1 200") => {
                return text.split_once("\r\n\r\n").unwrap().1.to_owned();
            }
            Ok(text) => text,
            Err(error) => error.to_string(),
        };
        assert!(
            since.elapsed() < Duration::from_secs(20),
            "{url}/{path} does not answer, last: {last}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn fetch_once(host: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(host).await?;
    let request = format!("GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

/// Waits until a condition holds; says what was seen last when it never does.
pub(crate) async fn until<T: std::fmt::Debug>(
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let since = Stopwatch::start();
    loop {
        match look().await {
            Ok(seen) => return seen,
            Err(last) => assert!(
                since.elapsed() < Duration::from_secs(20),
                "waited for {what}, last seen: {last}"
            ),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn of_installation(installation: Uuid) -> HashMap<&'static str, Vec<String>> {
    let label = format!("{}={installation}", brand::LABEL_INSTALLATION);
    HashMap::from([("label", vec![label])])
}

async fn containers(raw: &bollard::Docker, installation: Uuid) -> Vec<String> {
    let options = ListContainersOptionsBuilder::default()
        .all(true)
        .filters(&of_installation(installation))
        .build();
    let listed = raw.list_containers(Some(options)).await.unwrap();
    listed.into_iter().filter_map(|found| found.id).collect()
}

async fn volumes(raw: &bollard::Docker, installation: Uuid) -> Vec<String> {
    let options = ListVolumesOptionsBuilder::default()
        .filters(&of_installation(installation))
        .build();
    let listed = raw.list_volumes(Some(options)).await.unwrap();
    let volumes = listed.volumes.unwrap_or_default();
    volumes.into_iter().map(|volume| volume.name).collect()
}

async fn networks(raw: &bollard::Docker, installation: Uuid) -> Vec<Network> {
    let options = ListNetworksOptionsBuilder::default()
        .filters(&of_installation(installation))
        .build();
    raw.list_networks(Some(options)).await.unwrap()
}

impl Drop for Room {
    fn drop(&mut self) {
        let installation = self.config.installation;
        let images = std::mem::take(&mut *self.images.lock().unwrap());
        // A runtime of its own: this one may be unwinding.
        let swept = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(sweep(client(), installation, images));
        });
        if swept.join().is_err() && !std::thread::panicking() {
            panic!("things of installation {installation} were left in the engine");
        }
    }
}

async fn sweep(raw: bollard::Docker, installation: Uuid, images: Vec<String>) {
    for id in containers(&raw, installation).await {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true);
        let removed = raw.remove_container(&id, Some(options.build())).await;
        absent_is_fine(removed);
    }
    for name in volumes(&raw, installation).await {
        let options = RemoveVolumeOptionsBuilder::default().force(true);
        let removed = raw.remove_volume(&name, Some(options.build())).await;
        absent_is_fine(removed);
    }
    for network in networks(&raw, installation).await {
        let removed = raw.remove_network(&network.id.unwrap()).await;
        absent_is_fine(removed);
    }
    for reference in images {
        let options = RemoveImageOptionsBuilder::default().force(true);
        let removed = raw
            .remove_image(&reference, Some(options.build()), None)
            .await;
        absent_is_fine(removed);
    }
}

fn absent_is_fine<T>(removed: Result<T, bollard::errors::Error>) {
    use bollard::errors::Error::DockerResponseServerError;
    match removed {
        Ok(_)
        | Err(DockerResponseServerError {
            status_code: 404, ..
        }) => {}
        Err(error) => panic!("cannot sweep: {error}"),
    }
}
