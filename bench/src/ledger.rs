//! Our ledger as the benchmarks use it: one queue and one kind of job, on servers of their own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use longshore_base::Secret;
use longshore_base::pools::{DatabaseConfig, Pools};
use longshore_ledger::{
    Admitter, Backoff, Engine, EngineConfig, Executor, HintConfig, Hints, Jitter, KindSpec, Kinds,
    NewJob, Policy,
};
use tokio_util::sync::CancellationToken;

pub(crate) struct Ledger {
    pub(crate) pools: Pools,
    pub(crate) admitter: Admitter,
    hints: Hints,
}

impl Ledger {
    pub(crate) async fn connect(database_url: &str, redis_url: &str) -> anyhow::Result<Self> {
        let pools = Pools::connect(&DatabaseConfig {
            url: Secret::new(database_url.to_owned()),
            max_connections: 10,
        })
        .await?;
        let hints = Hints::new(&HintConfig {
            url: Secret::new(redis_url.to_owned()),
            prefix: "bench:".into(),
        })?;
        let admitter = Admitter::new(
            pools.control.clone(),
            hints.clone(),
            CancellationToken::new(),
        );
        Ok(Self {
            pools,
            admitter,
            hints,
        })
    }

    /// Begins to run jobs, so many at the same time.
    pub(crate) async fn start(
        &self,
        executor: Arc<dyn Executor>,
        concurrency: usize,
    ) -> anyhow::Result<Engine> {
        let policy = Policy {
            max_attempts: 3,
            backoff: Backoff {
                base: Duration::from_secs(1),
                cap: Duration::from_secs(60),
                jitter: Jitter::Full,
            },
            timeout: Duration::from_secs(60),
            deadline: Duration::from_secs(86_400),
            concurrency,
        };
        let kinds = Kinds::default().with(KindSpec {
            name: "noop",
            args_versions: &[1],
            policy,
            hooks: None,
        });
        Ok(Engine::start(
            EngineConfig::default(),
            self.pools.clone(),
            kinds,
            HashMap::from([("noop", executor)]),
            (self.hints.clone(), self.admitter.clone()),
            &[("noop".into(), "noop")],
        )
        .await?)
    }
}

/// Exclusive, as all our kinds are, unless its key is empty.
pub(crate) fn job(tenant: &str, key: String, payload: usize) -> NewJob {
    NewJob {
        kind: "noop",
        queue: "noop".into(),
        tenant: tenant.into(),
        workspace_id: None,
        keys: Some(key)
            .filter(|key| !key.is_empty())
            .into_iter()
            .collect(),
        dedupe_key: None,
        args: serde_json::json!({ "payload": "x".repeat(payload) }),
        args_version: 1,
        priority: 0,
        delay: Duration::ZERO,
        deadline: Duration::from_secs(86_400),
        max_attempts: 3,
        created_by: "bench".into(),
    }
}
