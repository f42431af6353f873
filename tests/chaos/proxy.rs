//! The network between a process and a server: a TCP proxy that can be cut.

use std::path::PathBuf;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What the network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// It carries.
    Whole,
    /// Nothing arrives; what was sent meanwhile arrives once it is whole again.
    Stalled,
    /// Connections are closed, new ones too.
    Cut,
}

/// Leads to a server's Unix socket.
pub(crate) struct Proxy {
    port: u16,
    network: watch::Sender<Network>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn to(server: PathBuf) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let network = watch::Sender::new(Network::Whole);
        let seen = network.subscribe();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, server.clone(), seen.clone()));
            }
        });
        Self {
            port,
            network,
            accepting,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn set(&self, network: Network) {
        self.network.send_replace(network);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.network.send_replace(Network::Cut);
    }
}

async fn carry(client: TcpStream, server: PathBuf, mut network: watch::Receiver<Network>) {
    if !is_whole(&mut network).await {
        return;
    }
    // A server that is away closes the connection, as the kernel would refuse it.
    let Ok(server) = UnixStream::connect(server).await else {
        return;
    };
    client.set_nodelay(true).unwrap();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pump(from_client, to_server, network.clone()) => {}
        () = pump(from_server, to_client, network.clone()) => {}
        _cut = network.wait_for(|network| *network == Network::Cut) => {}
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut network: watch::Receiver<Network>,
) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        if !is_whole(&mut network).await || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// Waits while the network stalls; whether it carries then.
async fn is_whole(network: &mut watch::Receiver<Network>) -> bool {
    let settled = network
        .wait_for(|network| *network != Network::Stalled)
        .await;
    settled.is_ok_and(|network| *network == Network::Whole)
}
