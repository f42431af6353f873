//! A server that writes down what it is asked and gives one answer to all of it.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A recording HTTP server; gone when dropped.
pub struct RecordingStub {
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

impl RecordingStub {
    /// One that answers with this status, as in `204 No Content`.
    ///
    /// # Panics
    /// When there is no port.
    pub async fn answering(status: &'static str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let serving = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(answer(client, status, Arc::clone(&log)));
            }
        });
        Self {
            port,
            seen,
            serving,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Method and path of each request so far, in their order.
    #[must_use]
    pub fn seen(&self) -> Vec<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clone()
    }
}

impl Drop for RecordingStub {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// One request a connection; none of them has a body.
async fn answer(client: TcpStream, status: &'static str, seen: Arc<Mutex<Vec<String>>>) {
    let mut client = BufReader::new(client);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        match client.read_line(&mut line).await {
            Ok(1..) if !line.trim().is_empty() => lines.push(line),
            _ => break,
        }
    }
    if let Some((request, _)) = lines.first().and_then(|line| line.rsplit_once(' ')) {
        seen.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(request.to_owned());
    }
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    client.write_all(head.as_bytes()).await.ok();
    client.shutdown().await.ok();
}
