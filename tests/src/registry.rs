//! A real image registry (`docker-registry`) of one test alone, on loopback, where engines speak plain HTTP.

use std::io::Write as _;
use std::net::TcpListener as PortFinder;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bollard::Docker;
use bollard::body_full;
use bollard::query_parameters::{
    CreateImageOptionsBuilder, PushImageOptionsBuilder, RemoveImageOptionsBuilder,
};
use futures_util::TryStreamExt as _;
use longshore_base::brand::LABEL_INSTALLATION;
use longshore_base::random;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::app::TestApp;
use crate::image::root_filesystem;
use crate::process::Process;
use crate::programs::agent_binary;
use crate::wait::{PATIENCE, wait_until};

/// `pull:pull`, which nobody in these tests knows.
const LOGIN: &str = "pull:$2y$05$9lG6EhN6Di7Wg9vJmpEGVuh4TJ3kXDXvOqzZBSmzq8zYZcdtRI2Iy\n";
/// What a slow line lets through at once.
const PIECE: usize = 16 * 1024;
const NO_LIMIT: u64 = u64::MAX;

/// A registry; gone when dropped. What was pushed to it is gone from the engine.
pub struct OwnRegistry {
    process: Process,
    port: u16,
    _place: TempDir,
}

/// How an image is to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewImage<'a> {
    /// What `docker import --change` takes, besides the reference agent's entrypoint.
    pub changes: &'a [&'a str],
    /// So much that cannot be compressed, so that a pull takes a while, in bytes.
    pub padding_bytes: usize,
}

impl OwnRegistry {
    /// Starts one, and waits until it answers.
    pub async fn start() -> Self {
        Self::launch(None).await
    }

    /// One that lets nobody in without a login.
    pub async fn locked() -> Self {
        Self::launch(Some(LOGIN)).await
    }

    async fn launch(login: Option<&str>) -> Self {
        let place = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut config = std::fs::File::create(place.path().join("config.yml")).unwrap();
        writeln!(
            config,
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}",
            place.path().join("data").display()
        )
        .unwrap();
        if let Some(login) = login {
            let file = place.path().join("htpasswd");
            std::fs::write(&file, login).unwrap();
            writeln!(
                config,
                "auth:\n  htpasswd:\n    realm: test\n    path: {}",
                file.display()
            )
            .unwrap();
        }
        let mut command = Command::new("docker-registry");
        command
            .arg("serve")
            .arg(place.path().join("config.yml"))
            .env_remove("REGISTRY_HTTP_ADDR");
        let registry = Self {
            process: Process::start("docker-registry", &mut command, place.path()),
            port,
            _place: place,
        };
        wait_until("the registry to listen", PATIENCE, || async {
            let connected = TcpStream::connect(registry.host()).await;
            connected.map(drop).map_err(|error| error.to_string())
        })
        .await;
        registry
    }

    /// `127.0.0.1:port`.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What it wrote.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Makes an image with content of its own, pushes it under a name and takes it out of the engine again, so that it has
    /// to be pulled. Answers its digest, `sha256:…`.
    pub async fn push(&self, app: &TestApp, name: &str, tag: &str, image: NewImage<'_>) -> String {
        let docker = app.engine().docker();
        let repository = format!("{}/{name}", self.host());
        let reference = format!("{repository}:{tag}");
        let label = format!("LABEL {LABEL_INSTALLATION}={}", app.engine().installation());
        let changes = ["ENTRYPOINT [\"/longshore-agent\"]", "EXPOSE 8000", &label];
        let changes = changes.into_iter().chain(image.changes.iter().copied());
        let options = CreateImageOptionsBuilder::default()
            .from_src("-")
            .repo(&repository)
            .tag(tag)
            .changes(changes.map(str::to_owned).collect())
            .build();
        let root = body_full(content(image.padding_bytes).into());
        docker
            .create_image(Some(options), Some(root), None)
            .try_collect::<Vec<_>>()
            .await
            .expect("the engine imports an image");
        let options = PushImageOptionsBuilder::default().tag(tag).build();
        docker
            .push_image(&repository, Some(options), None)
            .try_collect::<Vec<_>>()
            .await
            .expect("the registry takes an image");
        let digest = digest_of(docker, &reference, &repository).await;
        let options = RemoveImageOptionsBuilder::default().force(true).build();
        docker
            .remove_image(&reference, Some(options), None)
            .await
            .unwrap();
        digest
    }
}

async fn digest_of(docker: &Docker, reference: &str, repository: &str) -> String {
    let found = docker.inspect_image(reference).await.unwrap();
    let digests = found.repo_digests.unwrap_or_default();
    let own = digests
        .iter()
        .find_map(|digest| digest.strip_prefix(&format!("{repository}@")));
    own.expect("what was pushed has a digest").to_owned()
}

/// The reference agent beside something that no other image has.
fn content(padding_bytes: usize) -> Vec<u8> {
    let binary = std::fs::read(agent_binary()).unwrap();
    let mut padding = random::token().into_bytes();
    while padding.len() < padding_bytes {
        padding.extend(random::bytes::<4096>());
    }
    root_filesystem(&binary, &[("own", &padding)])
}

fn free_port() -> u16 {
    let finder = PortFinder::bind(("127.0.0.1", 0)).unwrap();
    finder.local_addr().unwrap().port()
}

/// A line to a registry that can be slow, and cut.
pub struct Line {
    port: u16,
    rate: Arc<AtomicU64>,
    left: Arc<AtomicU64>,
    broken: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl Line {
    /// A good one.
    pub async fn to(registry: &OwnRegistry) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let rate = Arc::new(AtomicU64::new(NO_LIMIT));
        let left = Arc::new(AtomicU64::new(NO_LIMIT));
        let broken = Arc::new(AtomicU64::new(0));
        let (port, there) = (listener.local_addr().unwrap().port(), registry.host());
        let limits = (Arc::clone(&rate), Arc::clone(&left));
        let count = Arc::clone(&broken);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (limits, count) = (limits.clone(), Arc::clone(&count));
                let there = there.clone();
                tokio::spawn(async move {
                    if carry(client, there, limits).await == Ended::Cut {
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        Self {
            port,
            rate,
            left,
            broken,
            accepting,
        }
    }

    /// Where it begins.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Lets so many bytes a second through, on each connection.
    pub fn slow_down(&self, bytes_per_second: u64) {
        self.rate.store(bytes_per_second, Ordering::SeqCst);
    }

    /// Lets so many bytes more through in all, and then breaks off whatever comes.
    pub fn cut_after(&self, bytes: u64) {
        self.left.store(bytes, Ordering::SeqCst);
    }

    /// Waits until it has broken something off.
    pub async fn broke_off(&self) {
        wait_until("the line to break off", PATIENCE, || async {
            let broken = self.broken.load(Ordering::SeqCst);
            (broken > 0)
                .then_some(())
                .ok_or_else(|| "it holds".to_owned())
        })
        .await;
    }

    /// As at the beginning.
    pub fn mend(&self) {
        self.rate.store(NO_LIMIT, Ordering::SeqCst);
        self.left.store(NO_LIMIT, Ordering::SeqCst);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[derive(PartialEq, Eq)]
enum Ended {
    Cut,
    ByItself,
}

async fn carry(
    mut client: TcpStream,
    there: String,
    (rate, left): (Arc<AtomicU64>, Arc<AtomicU64>),
) -> Ended {
    let Ok(mut registry) = TcpStream::connect(there).await else {
        return Ended::ByItself;
    };
    let (mut from_client, mut to_client) = client.split();
    let (mut from_registry, mut to_registry) = registry.split();
    let answers = async {
        let mut piece = vec![0; PIECE];
        loop {
            let size = from_registry.read(&mut piece).await.unwrap_or(0);
            if size == 0 {
                return Ended::ByItself;
            }
            let size_bytes = u64::try_from(size).unwrap();
            let room = left.load(Ordering::SeqCst);
            if room < size_bytes {
                return Ended::Cut;
            }
            if room != NO_LIMIT {
                left.fetch_sub(size_bytes, Ordering::SeqCst);
            }
            if to_client.write_all(&piece[..size]).await.is_err() {
                return Ended::ByItself;
            }
            let rate = rate.load(Ordering::SeqCst);
            if rate != NO_LIMIT {
                let pause = size_bytes * 1000 / rate;
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        }
    };
    tokio::select! {
        _ = copy(&mut from_client, &mut to_registry) => Ended::ByItself,
        ended = answers => ended,
    }
}
