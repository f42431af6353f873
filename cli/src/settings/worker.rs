//! Workers: how much runs at once, when one counts as gone, and how long a stopping one may take.

use std::time::Duration;

use clap::Args;
use longshore_ledger::Retention;

use super::{SettingError, parse};

/// Settings of workers.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Workers")]
pub(crate) struct WorkerSettings {
    /// Provisions one worker runs at once on its Docker engine, 1 to 64. More than the engine has use for only makes
    /// each of them slower.
    #[arg(
        long = "provision-concurrency",
        env = "PROVISION_CONCURRENCY_DOCKER",
        value_name = "N",
        default_value_t = 8,
        value_parser = clap::value_parser!(u16).range(1..=64)
    )]
    pub(crate) provision_concurrency: u16,

    /// Restarts one worker runs at once, 1 to 64; each brings its workspace up like a provision.
    #[arg(
        long = "restart-concurrency",
        env = "RESTART_CONCURRENCY",
        value_name = "N",
        default_value_t = 8,
        value_parser = clap::value_parser!(u16).range(1..=64)
    )]
    pub(crate) restart_concurrency: u16,

    /// Provisions one worker runs at once on a remote control plane, 7 to 256.
    #[arg(
        long = "provision-concurrency-remote",
        env = "PROVISION_CONCURRENCY_REMOTE",
        value_name = "N",
        default_value_t = 16,
        value_parser = clap::value_parser!(u16).range(7..=256)
    )]
    pub(crate) provision_concurrency_remote: u16,

    /// Seconds a worker that was told to stop lets its jobs end or be handed back. Unset: 8 under `up`, 30 elsewhere.
    #[arg(
        long = "worker-grace",
        env = "LONGSHORE_WORKER_GRACE_SECONDS",
        value_name = "SECONDS",
        value_parser = parse::seconds
    )]
    pub(crate) grace: Option<Duration>,

    /// Seconds between two beats of a worker.
    #[arg(
        long = "worker-beat",
        env = "LONGSHORE_WORKER_BEAT_SECONDS",
        value_name = "SECONDS",
        default_value = "3",
        value_parser = parse::seconds
    )]
    beat_every: Duration,

    /// Seconds without a confirmed beat after which a worker stops its own jobs; more than two beats.
    #[arg(
        long = "worker-lost-after",
        env = "LONGSHORE_WORKER_LOST_AFTER_SECONDS",
        value_name = "SECONDS",
        default_value = "7",
        value_parser = parse::seconds
    )]
    lost_after: Duration,

    /// Seconds without a beat after which others take its jobs over; more than it needs to stop them itself.
    #[arg(
        long = "worker-dead-after",
        env = "LONGSHORE_WORKER_DEAD_AFTER_SECONDS",
        value_name = "SECONDS",
        default_value = "10",
        value_parser = parse::seconds
    )]
    dead_after: Duration,

    /// Seconds of silence after which an external agent counts as away.
    #[arg(
        long = "external-stale-after",
        env = "REMOTE_LIVENESS_STALE_AFTER",
        value_name = "SECONDS",
        default_value = "90",
        value_parser = parse::seconds
    )]
    pub(crate) external_stale_after: Duration,

    /// Minutes of idleness after which workspaces that say nothing of it themselves are hibernated; 0 for never. Unset:
    /// never.
    #[arg(
        long = "hibernation-idle",
        env = "HIBERNATION_IDLE_MINUTES",
        value_name = "MINUTES",
        value_parser = clap::value_parser!(i32).range(0..)
    )]
    pub(crate) hibernation_idle_minutes: Option<i32>,

    /// Whether workspaces whose image has a moving tag (`latest`, `main`, …) are restarted when the tag moves. It is looked at
    /// every five minutes; a runtime with a pin or an open rollout is left alone.
    #[arg(
        long = "image-auto-refresh",
        env = "IMAGE_AUTO_REFRESH",
        value_name = "BOOL",
        default_value = "false",
        value_parser = parse::boolean,
        action = clap::ArgAction::Set
    )]
    pub(crate) image_auto_refresh: bool,

    /// Days succeeded jobs stay in the history; 0 keeps them for ever.
    #[arg(
        long = "keep-succeeded-jobs",
        env = "LONGSHORE_KEEP_SUCCEEDED_DAYS",
        value_name = "DAYS",
        default_value_t = 7
    )]
    keep_succeeded_jobs: u32,

    /// Days dead jobs stay in the history, where they can be retried; 0 keeps them for ever.
    #[arg(
        long = "keep-dead-jobs",
        env = "LONGSHORE_KEEP_DEAD_DAYS",
        value_name = "DAYS",
        default_value_t = 90
    )]
    keep_dead_jobs: u32,

    /// Days cancelled jobs stay in the history; 0 keeps them for ever.
    #[arg(
        long = "keep-cancelled-jobs",
        env = "LONGSHORE_KEEP_CANCELLED_DAYS",
        value_name = "DAYS",
        default_value_t = 30
    )]
    keep_cancelled_jobs: u32,

    /// Days superseded jobs stay in the history; 0 keeps them for ever.
    #[arg(
        long = "keep-superseded-jobs",
        env = "LONGSHORE_KEEP_SUPERSEDED_DAYS",
        value_name = "DAYS",
        default_value_t = 7
    )]
    keep_superseded_jobs: u32,
}

/// When a worker counts as gone; known to fit together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkerTimes {
    pub(crate) beat_every: Duration,
    pub(crate) lost_after: Duration,
    pub(crate) dead_after: Duration,
}

impl WorkerSettings {
    /// How long finished jobs are kept.
    pub(crate) const fn retention(&self) -> Retention {
        Retention {
            succeeded_days: self.keep_succeeded_jobs,
            dead_days: self.keep_dead_jobs,
            cancelled_days: self.keep_cancelled_jobs,
            superseded_days: self.keep_superseded_jobs,
        }
    }

    /// The times, refused where a worker could be declared dead while it still works.
    pub(crate) fn times(&self) -> Result<WorkerTimes, SettingError> {
        let times = WorkerTimes {
            beat_every: self.beat_every,
            lost_after: self.lost_after,
            dead_after: self.dead_after,
        };
        if times.lost_after <= times.beat_every * 2 {
            return Err(SettingError::new(
                "LONGSHORE_WORKER_LOST_AFTER_SECONDS",
                "must be more than two beats (LONGSHORE_WORKER_BEAT_SECONDS)",
            ));
        }
        if times.dead_after <= times.lost_after {
            return Err(SettingError::new(
                "LONGSHORE_WORKER_DEAD_AFTER_SECONDS",
                "must be more than LONGSHORE_WORKER_LOST_AFTER_SECONDS, or a worker is replaced while it still works",
            ));
        }
        Ok(times)
    }
}
