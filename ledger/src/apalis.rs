//! The one file that touches apalis.
//!
//! apalis polls and dispatches; everything it would otherwise decide is decided by the ledger. Its facts, from the
//! source of 1.0.0: the monitor polls all workers in one task with the jobs inside, an `Err` from `poll_next` ends a
//! worker and drops its running jobs, `None` without shutdown pends for ever, an uncaught panic takes siblings along.
//! So claims happen before apalis sees a job, the backend yields neither `Err` nor `None`, runs are spawned, and no
//! retry, timeout or task-context layer is used: those would bypass the ledger.

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
