//! An outage of ours is not the silence of agents: nobody is restarted for it.

use std::fmt::Debug;
use std::str::FromStr;
use std::time::Duration;

use futures_util::future::join_all;
use longshore_base::clock::Stopwatch;
use longshore_base::random;
use longshore_base::secret::sha256;
use longshore_tests::{Caller, NewWorker, TestApp, wait_until};
use serde_json::{Value, json};

use crate::sweeps::run;

/// Few enough that all of them falling silent at once would be believed.
const FEW: usize = 4;
const MANY: usize = 12;
/// So many agents instead.
const AGENTS: &str = "LONGSHORE_TEST_AGENTS";
/// The API is away for at least so many seconds.
const AWAY: &str = "LONGSHORE_TEST_AWAY_SECONDS";
const TTL: Duration = Duration::from_secs(8);
/// Sweeps come every 15 s, give or take.
const SWEPT: Duration = Duration::from_secs(60);

fn number<T: FromStr<Err: Debug>>(variable: &str, usually: T) -> T {
    let set = std::env::var(variable).ok();
    set.map_or(usually, |number| number.parse().unwrap())
}

/// A control plane without an engine, whose workspaces are rows and whose agents are this test.
struct Fleet {
    app: TestApp,
    agents: Vec<(String, Caller)>,
}

impl Fleet {
    async fn start(size: usize) -> Self {
        let app = TestApp::build()
            .without_docker()
            .own_redis()
            .setting("LONGSHORE_LIVENESS_TTL_SECONDS", &TTL.as_secs().to_string())
            .workers([NewWorker::default()])
            .start()
            .await;
        let mut agents = Vec::new();
        for number in 0..size {
            let token = random::token();
            let id: String = sqlx::query_scalar(
                "WITH made AS (
                     INSERT INTO workspaces (id, name, status, url)
                     VALUES (gen_random_uuid(), $1, $2::workspace_status, 'http://127.0.0.1:1') RETURNING id
                 )
                 INSERT INTO workspace_auth_tokens (workspace_id, token_hash, prefix)
                 SELECT id, $3, $4 FROM made RETURNING workspace_id::text",
            )
            .bind(format!("agent {number}"))
            .bind("online")
            .bind(&sha256(token.as_bytes())[..])
            .bind(&token[..8])
            .fetch_one(app.pool())
            .await
            .unwrap();
            let caller = app.with_token(Some(&token));
            agents.push((id, caller));
        }
        Self { app, agents }
    }

    async fn beat(&self) {
        let beats = self.agents.iter().map(|(id, agent)| async move {
            // One that says nothing new is written down every ten seconds only, which here is too long.
            let beat = json!({ "workspace_id": id, "current_task": random::token() });
            agent.post("/registry/heartbeat", &beat).await.expect(200);
        });
        join_all(beats).await;
    }

    /// Makes a pass while all agents beat.
    async fn pass(&self) -> Value {
        self.beat().await;
        let beating = async {
            loop {
                self.beat().await;
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        };
        tokio::select! {
            report = run(&self.app, "liveness") => report,
            () = beating => unreachable!(),
        }
    }

    /// Makes passes until one gives a verdict.
    async fn until_judged(&self) -> Value {
        wait_until("a verdict", SWEPT, || async {
            let report = self.pass().await;
            if report["note"].is_null() {
                Ok(report)
            } else {
                Err(report.to_string())
            }
        })
        .await
    }

    async fn assert_untouched(&self) {
        for (id, _) in &self.agents {
            assert_eq!(self.app.entry(id).await["status"], "online");
            assert!(self.app.event_names(id).await.is_empty());
        }
        let restarts = self.app.admin().get("/jobs?kind=restart").await.expect(200);
        assert_eq!(restarts["items"], json!([]));
    }
}

#[tokio::test]
async fn a_redis_that_is_flushed_restarts_nobody() {
    let mut fleet = Fleet::start(number(AGENTS, MANY)).await;
    fleet.until_judged().await;
    fleet.app.redis().command(&["FLUSHALL"]).await;
    let flushed = Stopwatch::start();
    while flushed.elapsed() < TTL {
        let report = fleet.pass().await;
        assert_eq!(
            (&report["acted"], &report["failed"]),
            (&json!(0), &json!(0)),
            "{report}"
        );
    }
    fleet.until_judged().await;
    fleet.assert_untouched().await;
    println!("{} agents, nobody restarted", fleet.agents.len());
}

#[tokio::test]
async fn an_api_that_was_away_for_longer_than_agents_may_be_silent_restarts_nobody() {
    let mut fleet = Fleet::start(number(AGENTS, FEW)).await;
    fleet.until_judged().await;
    fleet.app.api.kill();
    let away = Stopwatch::start();
    let at_least = Duration::from_secs(number(AWAY, 0));
    // The worker's own passes come every 15 s: at least one of them finds everybody silent.
    let passed = async |fleet: &Fleet| -> Option<String> {
        sqlx::query_scalar(
            "SELECT last_pass->>'note' FROM reconcilers WHERE name = 'liveness' AND last_pass_at > longshore_now() - interval '5 s'",
        )
        .fetch_optional(fleet.app.pool())
        .await
        .unwrap()
        .flatten()
    };
    wait_until("a pass during the outage", SWEPT + at_least, || async {
        let silent: bool = sqlx::query_scalar(
            "SELECT max(last_heartbeat_at) < longshore_now() - make_interval(secs => $1) FROM workspaces",
        )
        .bind(TTL.as_secs_f64())
        .fetch_one(fleet.app.pool())
        .await
        .unwrap();
        match passed(&fleet).await {
            Some(note) if silent && away.elapsed() >= at_least => Ok(note),
            other => Err(format!("silent: {silent}, {other:?}")),
        }
    })
    .await;
    fleet.app.start_api_again().await;
    // Nobody has beaten yet, and nobody is given up.
    let report = run(&fleet.app, "liveness").await;
    let note = report["note"].as_str().unwrap();
    assert!(
        note.contains("accepted heartbeats without a gap"),
        "{report}"
    );
    fleet.until_judged().await;
    fleet.assert_untouched().await;
    println!("{} agents, nobody restarted", fleet.agents.len());
}
