//! A registry of one image, so that pulls are real: the distribution protocol's few reads, behind a password.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use longshore_base::secret::sha256;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Serves `own/img:1` until it is dropped. On loopback, where engines speak plain HTTP.
pub(crate) struct Registry {
    address: SocketAddr,
    shelf: Arc<Shelf>,
    task: JoinHandle<()>,
}

struct Shelf {
    credentials: String,
    manifest: Vec<u8>,
    blobs: HashMap<String, Vec<u8>>,
    requests: AtomicUsize,
}

impl Registry {
    pub(crate) async fn serve(username: &str, password: &str) -> Self {
        let layer = layer();
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Entrypoint":["/bin/busybox","httpd","-f","-p","8000","-h","/www"]}},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            digest_of(&layer)
        )
        .into_bytes();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.docker.container.image.v1+json","size":{},"digest":"{}"}},"layers":[{{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","size":{},"digest":"{}"}}]}}"#,
            config.len(),
            digest_of(&config),
            layer.len(),
            digest_of(&layer)
        )
        .into_bytes();
        let shelf = Arc::new(Shelf {
            credentials: STANDARD.encode(format!("{username}:{password}")),
            manifest,
            blobs: [config, layer].map(|blob| (digest_of(&blob), blob)).into(),
            requests: AtomicUsize::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = shelf.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shelf = served.clone();
                // The engine tries TLS first; such a connection just ends.
                tokio::spawn(async move { answer(stream, &shelf).await.ok() });
            }
        });
        Self {
            address,
            shelf,
            task,
        }
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// The image's digest, 64 hex digits.
    pub(crate) fn digest(&self) -> String {
        digest_of(&self.shelf.manifest)["sha256:".len()..].to_owned()
    }

    /// How often something of the image was asked for with the right password.
    pub(crate) fn requests(&self) -> usize {
        self.shelf.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut stream: TcpStream, shelf: &Shelf) -> std::io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader).lines();
    let request = lines.next_line().await?.unwrap_or_default();
    let mut authorized = false;
    while let Some(line) = lines.next_line().await?.filter(|line| !line.is_empty()) {
        let wanted = format!("authorization: basic {}", shelf.credentials);
        authorized |= line.eq_ignore_ascii_case(&wanted) && line.ends_with(&shelf.credentials);
    }
    let mut words = request.split(' ');
    let (method, path) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let (status, kind, body): (_, _, &[u8]) = if !authorized {
        ("401 Unauthorized", "application/json", b"{}")
    } else if path == "/v2/" {
        ("200 OK", "application/json", b"{}")
    } else if path.starts_with("/v2/own/img/manifests/") {
        ("200 OK", MANIFEST, &shelf.manifest)
    } else {
        match path
            .strip_prefix("/v2/own/img/blobs/")
            .and_then(|digest| shelf.blobs.get(digest))
        {
            Some(blob) => ("200 OK", "application/octet-stream", blob),
            None => ("404 Not Found", "application/json", b"{}"),
        }
    };
    if authorized && path != "/v2/" {
        shelf.requests.fetch_add(1, Ordering::SeqCst);
    }
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {}\r\n\
         Docker-Distribution-Api-Version: registry/2.0\r\nWWW-Authenticate: Basic realm=\"test\"\r\n\
         Connection: close\r\n\r\n",
        body.len(),
        digest_of(body)
    );
    writer.write_all(head.as_bytes()).await?;
    if method != "HEAD" {
        writer.write_all(body).await?;
    }
    writer.shutdown().await
}

fn layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let busybox = std::fs::read("/bin/busybox").unwrap();
    for (path, mode, bytes) in [
        ("bin/busybox", 0o755, &busybox[..]),
        ("www/env", 0o644, b"pulled"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, path, bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(sha256(bytes)))
}
