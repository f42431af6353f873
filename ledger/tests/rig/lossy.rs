//! A network that loses one answer: the connection is closed instead.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Leads to a server; answers the port. The first answer with these words is lost.
pub(crate) async fn forward(host: &str, port: u16, words: &'static str) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let own = listener.local_addr().unwrap().port();
    let server = (host.to_owned(), port);
    let has_lost = Arc::new(AtomicBool::new(false));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(server.clone()).await.unwrap();
            tokio::spawn(carry(client, server, words, Arc::clone(&has_lost)));
        }
    });
    own
}

async fn carry(client: TcpStream, server: TcpStream, words: &str, has_lost: Arc<AtomicBool>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let answers = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
            let answer = &buffer[..read];
            let has_words = answer
                .windows(words.len())
                .any(|part| part == words.as_bytes());
            if has_words && !has_lost.swap(true, Ordering::SeqCst) {
                return;
            }
            if to_client.write_all(answer).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _asked = tokio::io::copy(&mut from_client, &mut to_server) => {}
        () = answers => {}
    }
}
