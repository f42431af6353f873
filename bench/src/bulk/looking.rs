//! Somebody who looks at a workspace at a fixed pace.

use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::client::Api;
use crate::stats::{ms, percentile};

/// What the 99th percentile is to stay under.
const LIMIT: Duration = Duration::from_millis(50);

pub(super) struct Looking {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<Looks>>,
}

pub(super) struct Looks(Vec<Duration>);

impl Looking {
    pub(super) fn start(api: &Api, path: &str, per_second: u32) -> Self {
        let stop = CancellationToken::new();
        let period = Duration::from_secs(1) / per_second.max(1);
        let task = look(api.clone(), path.to_owned(), period, stop.clone());
        Self {
            stop,
            task: tokio::spawn(task),
        }
    }

    /// Waits for the answers that are still under way.
    pub(super) async fn stop(self) -> anyhow::Result<Looks> {
        self.stop.cancel();
        self.task.await?
    }
}

async fn look(
    api: Api,
    path: String,
    period: Duration,
    stop: CancellationToken,
) -> anyhow::Result<Looks> {
    let mut looks = JoinSet::new();
    let mut due = Instant::now();
    loop {
        tokio::select! {
            () = sleep_until(due) => {}
            () = stop.cancelled() => break,
        }
        let (api, path) = (api.clone(), path.clone());
        // Not waited for: the next one is due whatever becomes of this one.
        looks.spawn(async move { api.get(&path).await.map(|_| due.elapsed()) });
        due += period;
    }
    let times = looks
        .join_all()
        .await
        .into_iter()
        .collect::<Result<_, _>>()?;
    Ok(Looks(times))
}

impl Looks {
    pub(super) fn add(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    pub(super) fn print(mut self, when: &str) {
        let p99 = percentile(&mut self.0, 0.99);
        println!(
            "GET /workspaces/{{id}} {when}: {} answers, p50 {}, p99 {}, max {}; p99 under 50 ms: {}",
            self.0.len(),
            ms(percentile(&mut self.0, 0.5)),
            ms(p99),
            ms(percentile(&mut self.0, 1.0)),
            if p99 < LIMIT { "yes" } else { "NO" }
        );
    }
}
