//! The kinds there are. Every process knows their names, policies and ends; workers know how they run.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use longshore_backends::Backends;
use longshore_fleet::Fleet;
use longshore_ledger::{Admitter, Executor, KindSpec, Kinds};

use crate::place::{self, NOWHERE};
use crate::{
    Agents, bulk, conflicts, provision, purge, reclaim, reconcile, reseal, restart,
    restart_context, rollout, secret_fanout, stop,
};

/// How much of each kind one worker does at once.
#[derive(Clone, Copy, Debug)]
pub struct JobsConfig {
    /// Provisions, wherever workspaces run.
    pub provision_concurrency: usize,
    /// Restarts.
    pub restart_concurrency: usize,
    /// Longest one of them may take.
    pub provision_limit: Duration,
}

/// What every process knows.
#[must_use]
pub fn kinds(config: JobsConfig) -> Kinds {
    let kinds = Kinds::default()
        .with_conflicts(&conflicts::TABLE)
        .with(KindSpec {
            name: provision::KIND,
            args_versions: provision::ARGS_VERSIONS,
            policy: provision::policy(config.provision_concurrency, config.provision_limit),
            hooks: Some(Arc::new(provision::ProvisionHooks)),
        })
        .with(KindSpec {
            name: restart::KIND,
            args_versions: restart::ARGS_VERSIONS,
            policy: restart::policy(config.restart_concurrency, config.provision_limit),
            hooks: Some(Arc::new(restart::RestartHooks)),
        })
        .with(KindSpec {
            name: stop::KIND,
            args_versions: stop::ARGS_VERSIONS,
            policy: stop::POLICY,
            hooks: None,
        })
        .with(KindSpec {
            name: purge::KIND,
            args_versions: purge::ARGS_VERSIONS,
            policy: purge::POLICY,
            hooks: Some(Arc::new(purge::PurgeHooks)),
        })
        .with(KindSpec {
            name: restart_context::KIND,
            args_versions: restart_context::ARGS_VERSIONS,
            policy: restart_context::POLICY,
            hooks: None,
        })
        .with(KindSpec {
            name: bulk::KIND,
            args_versions: bulk::ARGS_VERSIONS,
            policy: bulk::POLICY,
            hooks: None,
        })
        .with(KindSpec {
            name: secret_fanout::KIND,
            args_versions: secret_fanout::ARGS_VERSIONS,
            policy: secret_fanout::POLICY,
            hooks: None,
        })
        .with(KindSpec {
            name: reseal::KIND,
            args_versions: reseal::ARGS_VERSIONS,
            policy: reseal::POLICY,
            hooks: None,
        })
        .with(KindSpec {
            name: reclaim::KIND,
            args_versions: reclaim::ARGS_VERSIONS,
            policy: reclaim::POLICY,
            hooks: None,
        })
        .with(KindSpec {
            name: reconcile::KIND,
            args_versions: reconcile::ARGS_VERSIONS,
            policy: reconcile::POLICY,
            hooks: None,
        })
        .with(KindSpec {
            name: rollout::KIND,
            args_versions: rollout::ARGS_VERSIONS,
            policy: rollout::POLICY,
            hooks: Some(Arc::new(rollout::RolloutHooks)),
        });
    #[cfg(feature = "failpoints")]
    let kinds =
        crate::effect::kinds().fold(kinds, |kinds, name| kinds.with(crate::effect::spec(name)));
    kinds
}

/// What workers know besides; how a pass of a reconciler is made, the worker adds itself.
///
/// # Errors
/// No HTTP client can be made for calls to agents.
pub fn executors(
    fleet: &Arc<Fleet>,
    backends: &Arc<Backends>,
    kinds: &Kinds,
    admitter: &Admitter,
    namespaces: Option<Arc<dyn purge::Namespaces>>,
) -> reqwest::Result<HashMap<&'static str, Arc<dyn Executor>>> {
    let provision: Arc<dyn Executor> = Arc::new(provision::ProvisionExecutor {
        fleet: Arc::clone(fleet),
        backends: Arc::clone(backends),
    });
    let restart: Arc<dyn Executor> = Arc::new(restart::RestartExecutor {
        provision: provision::ProvisionExecutor {
            fleet: Arc::clone(fleet),
            backends: Arc::clone(backends),
        },
    });
    let stop: Arc<dyn Executor> = Arc::new(stop::StopExecutor {
        fleet: Arc::clone(fleet),
        backends: Arc::clone(backends),
    });
    let purge: Arc<dyn Executor> = Arc::new(purge::PurgeExecutor {
        fleet: Arc::clone(fleet),
        backends: Arc::clone(backends),
        namespaces,
    });
    let bulk: Arc<dyn Executor> = Arc::new(bulk::BulkExecutor {
        kinds: kinds.clone(),
        admitter: admitter.clone(),
    });
    let restart_context: Arc<dyn Executor> = Arc::new(restart_context::RestartContextExecutor {
        fleet: Arc::clone(fleet),
        agents: Agents::new()?,
    });
    let reseal: Arc<dyn Executor> = Arc::new(reseal::ResealExecutor {
        fleet: Arc::clone(fleet),
    });
    let fanout: Arc<dyn Executor> = Arc::new(secret_fanout::SecretFanoutExecutor {
        admitter: admitter.clone(),
    });
    let reclaim: Arc<dyn Executor> = Arc::new(reclaim::ReclaimExecutor {
        fleet: Arc::clone(fleet),
        backends: Arc::clone(backends),
    });
    let rollout: Arc<dyn Executor> = Arc::new(rollout::RolloutExecutor {
        fleet: Arc::clone(fleet),
        backends: Arc::clone(backends),
        admitter: admitter.clone(),
    });
    let ours = [
        (rollout::KIND, rollout),
        (reclaim::KIND, reclaim),
        (reseal::KIND, reseal),
        (secret_fanout::KIND, fanout),
        (provision::KIND, provision),
        (restart::KIND, restart),
        (restart_context::KIND, restart_context),
        (stop::KIND, stop),
        (purge::KIND, purge),
        (bulk::KIND, bulk),
    ];
    Ok(ours.into_iter().chain(test_executors()).collect())
}

/// The queues a worker reads, given the engine it has.
#[must_use]
pub fn queues(engine_id: Option<&str>) -> Vec<(String, &'static str)> {
    let placed = [
        provision::KIND,
        restart::KIND,
        stop::KIND,
        purge::KIND,
        reclaim::KIND,
    ];
    placed
        .into_iter()
        .flat_map(|kind| {
            std::iter::once(NOWHERE)
                .chain(engine_id)
                .map(move |place| (place::queue(kind, place), kind))
        })
        .chain(
            [
                bulk::KIND,
                reconcile::KIND,
                restart_context::KIND,
                reseal::KIND,
                rollout::KIND,
                secret_fanout::KIND,
            ]
            .map(|kind| (kind.to_owned(), kind)),
        )
        .chain(engine_id.map(|place| (place::queue(reconcile::KIND, place), reconcile::KIND)))
        .chain(test_queues())
        .collect()
}

#[cfg(feature = "failpoints")]
fn test_queues() -> impl Iterator<Item = (String, &'static str)> {
    crate::effect::kinds().flat_map(|kind| {
        let places = crate::effect::PLACES.iter();
        places.map(move |at| (place::queue(kind, at), kind))
    })
}

#[cfg(feature = "failpoints")]
fn test_executors() -> impl Iterator<Item = (&'static str, Arc<dyn Executor>)> {
    crate::effect::kinds().map(|kind| {
        let executor: Arc<dyn Executor> = Arc::new(crate::effect::EffectExecutor);
        (kind, executor)
    })
}

#[cfg(not(feature = "failpoints"))]
fn test_executors() -> impl Iterator<Item = (&'static str, Arc<dyn Executor>)> {
    std::iter::empty()
}

#[cfg(not(feature = "failpoints"))]
fn test_queues() -> impl Iterator<Item = (String, &'static str)> {
    std::iter::empty()
}
