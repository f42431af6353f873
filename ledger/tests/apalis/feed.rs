//! The backend of these tests.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use apalis_core::backend::finalize::Ephemeral;
use apalis_core::backend::{Backend, BackendConfig};
use apalis_core::task::Task;
use apalis_core::worker::context::WorkerContext;
use tower::layer::util::Identity;

/// What `poll_next` answers.
pub(crate) type Answer = Option<Result<Task<&'static str>, Broken>>;

#[derive(Debug, thiserror::Error)]
#[error("it broke")]
pub(crate) struct Broken;

/// A backend that answers what a test gives it. Its clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Feed(Arc<Mutex<Fed>>);

#[derive(Default)]
struct Fed {
    answers: VecDeque<Answer>,
    waker: Option<Waker>,
    closes: usize,
}

impl Feed {
    pub(crate) fn of(jobs: &[&'static str]) -> Self {
        let feed = Self::default();
        for job in jobs {
            feed.answer(Some(Ok(Task::new(*job))));
        }
        feed
    }

    pub(crate) fn answer(&self, answer: Answer) {
        let mut fed = self.0.lock().unwrap();
        fed.answers.push_back(answer);
        if let Some(waker) = fed.waker.take() {
            waker.wake();
        }
    }

    pub(crate) fn unanswered(&self) -> usize {
        self.0.lock().unwrap().answers.len()
    }

    /// How often it was told to close.
    pub(crate) fn closes(&self) -> usize {
        self.0.lock().unwrap().closes
    }
}

impl Backend for Feed {
    type Task = Task<&'static str>;
    type Error = Broken;

    fn poll_ready(
        &mut self,
        _: &mut Context<'_>,
        _: &WorkerContext,
    ) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, _: &WorkerContext) -> Poll<Answer> {
        let mut fed = self.0.lock().unwrap();
        if let Some(answer) = fed.answers.pop_front() {
            return Poll::Ready(answer);
        }
        fed.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_close(
        &mut self,
        _: &mut Context<'_>,
        _: &WorkerContext,
    ) -> Poll<Result<(), Self::Error>> {
        self.0.lock().unwrap().closes += 1;
        Poll::Ready(Ok(()))
    }
}

impl BackendConfig for Feed {
    type Args = &'static str;
    type Id = u64;
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
