//! `longshore-cp-sim`: a control plane of the kind Longshore's remote backend calls, whose instances are containers of the
//! reference agent on the machine's Docker engine.
//!
//! It speaks the calls of `/cp/…` (start, stop, status, console, configuration), wants the credentials it was given, and
//! keeps idempotency keys. Latency and failures come by flags, and while it runs by `PUT /sim/faults`; what it was asked
//! stands under `GET /sim/calls`. It prints `listens on <port>` and runs until it is killed. Its containers carry the label
//! `longshore.installation`, by which they are removed.
//!
//! ```sh
//! longshore-cp-sim --image longshore/reference-agent:… --org tenant-1 --bearer secret --latency-ms 200 --fail-starts 0.1
//! ```

mod faults;
mod flags;
mod instances;
mod service;

use std::sync::Arc;

use poem::listener::{Acceptor as _, Listener as _, TcpListener};
use poem::{EndpointExt as _, Server};

use self::flags::Flags;
use self::instances::Instances;
use self::service::{Simulation, routes};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let flags = Flags::read(std::env::args().skip(1))?;
    let instances = Instances::connect(&flags).await?;
    let acceptor = TcpListener::bind(flags.listen.clone())
        .into_acceptor()
        .await?;
    let address = acceptor.local_addr()[0].as_socket_addr().copied();
    let simulation = Arc::new(Simulation::new(flags, instances));
    println!("listens on {}", address.map_or(0, |address| address.port()));
    Server::new_with_acceptor(acceptor)
        .run(routes().data(simulation))
        .await?;
    Ok(())
}
