//! The one file that touches apalis.
//!
//! apalis polls and dispatches; everything it would otherwise decide is decided by the ledger. Its facts, from the
//! source of 1.0.0: the monitor polls all workers in one task with the jobs inside, an `Err` from `poll_next` ends a
//! worker and drops its running jobs, `None` without shutdown pends for ever, an uncaught panic takes siblings along.
//! So claims happen before apalis sees a job, the backend yields neither `Err` nor `None`, runs are spawned, and no
//! retry, timeout or task-context layer is used: those would bypass the ledger.
//!
//! Each fact has a test in `tests/apalis/`.

use std::convert::Infallible;
use std::task::{Context, Poll};

use apalis_core::backend::finalize::Ephemeral;
use apalis_core::backend::{Backend, BackendConfig};
use apalis_core::error::WorkerError;
use apalis_core::task::Task;
use apalis_core::worker::builder::WorkerBuilder;
use apalis_core::worker::context::WorkerContext;
use tokio::sync::mpsc;
use tower::layer::util::Identity;
use uuid::Uuid;

use crate::run::{Claimed, Runner};

/// Jobs claimed from the ledger, as an apalis source.
struct LedgerBackend {
    claimed: mpsc::Receiver<Claimed>,
}

impl Backend for LedgerBackend {
    type Task = Task<Claimed>;
    type Error = Infallible;

    fn poll_ready(
        &mut self,
        _: &mut Context<'_>,
        _: &WorkerContext,
    ) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        _: &WorkerContext,
    ) -> Poll<Option<Result<Self::Task, Infallible>>> {
        match self.claimed.poll_recv(cx) {
            Poll::Ready(Some(claimed)) => Poll::Ready(Some(Ok(Task::new(claimed)))),
            // The readers are gone, so the engine is stopping and will drop this worker.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn poll_close(
        &mut self,
        _: &mut Context<'_>,
        _: &WorkerContext,
    ) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }
}

impl BackendConfig for LedgerBackend {
    type Args = Claimed;
    type Id = Uuid;
    type Kind = Ephemeral;
    type Config = ();
    type Layer = Identity;

    fn config(&self) -> &() {
        &()
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> Identity {
        Identity::new()
    }
}

/// Hands claimed jobs to the runner until it is dropped.
pub(crate) async fn work(
    name: &str,
    claimed: mpsc::Receiver<Claimed>,
    runner: Runner,
) -> Result<(), WorkerError> {
    WorkerBuilder::new(name)
        .backend(LedgerBackend { claimed })
        .build(move |claimed: Claimed| {
            runner.start(claimed);
            std::future::ready(Ok::<(), Infallible>(()))
        })
        .run()
        .await
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;
    use std::task::Waker;

    use futures_util::poll;
    use longshore_base::{JobId, Timestamp};
    use sqlx::postgres::PgPoolOptions;
    use tokio::sync::Semaphore;
    use tokio::sync::mpsc::error::TryRecvError;

    use super::*;
    use crate::run::Claims;
    use crate::slots::Slots;
    use crate::{ClaimedJob, Kinds, Verdict};

    #[test]
    fn without_readers_the_backend_waits_and_does_not_end() {
        let (readers, claimed) = mpsc::channel(1);
        let mut backend = LedgerBackend { claimed };
        drop(readers);
        let mut cx = Context::from_waker(Waker::noop());
        let polled = backend.poll_next(&mut cx, &WorkerContext::new("test"));
        assert!(polled.is_pending());
    }

    /// Nobody else has a turn before this test waits.
    #[tokio::test]
    async fn a_run_is_not_part_of_the_worker_that_took_the_job() {
        let (ended, mut ends) = mpsc::channel(1);
        let (readers, claimed) = mpsc::channel(1);
        let claims = Claims::default();
        let runner = Runner::new(
            PgPoolOptions::new()
                .connect_lazy("postgres://nobody@localhost")
                .unwrap(),
            Kinds::default(),
            HashMap::new(),
            (Slots::new(std::iter::empty()), claims.clone()),
            ended,
        );
        let permits = Arc::new(Semaphore::new(1));
        let first = Claimed {
            job: job_of_an_unknown_kind(),
            permit: permits.acquire_owned().await.unwrap(),
            claim: claims.begin().await,
        };
        readers.send(first).await.unwrap();
        let mut worker = Box::pin(work("test", claimed, runner));
        assert!(poll!(&mut worker).is_pending());
        assert_eq!(readers.capacity(), 1, "the worker took it");
        assert!(matches!(ends.try_recv(), Err(TryRecvError::Empty)));
        drop(worker);
        let end = ends.recv().await.unwrap();
        assert!(matches!(end.verdict, Verdict::GiveBack));
    }

    /// Such a run ends without a database.
    fn job_of_an_unknown_kind() -> ClaimedJob {
        ClaimedJob {
            id: JobId::new(),
            kind: "unknown".into(),
            queue: "test".into(),
            tenant: "test".into(),
            workspace_id: None,
            keys: Vec::new(),
            args: serde_json::Value::Null,
            args_version: 1,
            attempt: 0,
            max_attempts: 1,
            crashes: 0,
            token: Uuid::nil(),
            deadline_at: Timestamp::UNIX_EPOCH,
            created_by: "test".into(),
            checkpoint: None,
            trace: crate::TraceContext::begin(),
        }
    }
}
