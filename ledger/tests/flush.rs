//! A Redis that forgets everything while jobs wait and run. It has a server of its own, since it empties it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(dead_code, reason = "most of it is for the other tests")]
mod rig;

use std::collections::HashSet;
use std::process::{Child, Command, Stdio};

use longshore_base::JobId;
use rig::{Behaviour, Rig, until};
use tempfile::TempDir;

const RUNNING: i64 = 10;
const WAITING: usize = 1000;

/// A Redis of this test alone, on a socket of its own.
struct Redis {
    process: Child,
    place: TempDir,
}

impl Redis {
    async fn start() -> Self {
        let place = tempfile::tempdir().unwrap();
        let process = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--unixsocket"])
            .arg(place.path().join("socket"))
            .arg("--dir")
            .arg(place.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let redis = Self { process, place };
        until("Redis to answer", || async {
            redis.command("PING").await.is_ok()
        })
        .await;
        redis
    }

    fn url(&self) -> String {
        format!("redis+unix://{}/socket", self.place.path().display())
    }

    async fn command(&self, name: &str) -> redis::RedisResult<String> {
        let client = redis::Client::open(self.url()).unwrap();
        let mut link = client.get_multiplexed_async_connection().await?;
        redis::cmd(name).query_async(&mut link).await
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[tokio::test]
async fn after_flushall_every_waiting_and_running_job_still_runs_once() {
    let redis = Redis::start().await;
    let rig = Rig::with_redis(Behaviour::Gate, &redis.url()).await;
    let total = WAITING + usize::try_from(RUNNING).unwrap();
    let keys: Vec<String> = (0..total).map(|number| format!("k{number}")).collect();
    let ids = rig.enqueue_many(&keys).await;
    until("ten to run", || async { running(&rig).await == RUNNING }).await;
    assert_eq!(redis.command("FLUSHALL").await.unwrap(), "OK");
    rig.open_gate();
    until("all to succeed", || async {
        rig.succeeded().await == i64::try_from(total).unwrap()
    })
    .await;

    let effects: Vec<JobId> = rig.spans().into_iter().map(|span| span.id).collect();
    assert_eq!(effects.len(), total, "one effect for each");
    assert_eq!(
        effects.into_iter().collect::<HashSet<_>>(),
        ids.iter().copied().collect::<HashSet<_>>()
    );
    assert_eq!(rig.runs(), total);
    for id in ids {
        let job = rig.job(id).await;
        assert_eq!((job.attempt, job.crashes), (0, 0), "{}", job.id);
    }
}

async fn running(rig: &Rig) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM jobs WHERE state = 'running'")
        .fetch_one(rig.pool())
        .await
        .unwrap()
}
