//! The jobs of these tests.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

/// The job of this name panics as soon as it has begun.
pub(crate) const PANICS: &str = "the one that panics";
/// For what another task does.
const DEADLINE: Duration = Duration::from_secs(30);

/// Jobs that wait until they may end, with notes of what became of them.
#[derive(Clone, Default)]
pub(crate) struct Jobs {
    pub(crate) may_end: CancellationToken,
    notes: Arc<Mutex<Vec<String>>>,
}

/// Notes the end of a job, of whatever kind.
struct End {
    jobs: Jobs,
    name: &'static str,
    how: &'static str,
}

impl Drop for End {
    fn drop(&mut self) {
        self.jobs.note(self.name, self.how);
    }
}

impl Jobs {
    /// What a worker does with each.
    pub(crate) fn job(
        &self,
    ) -> impl Fn(&'static str) -> BoxFuture<'static, Result<(), Infallible>>
    + Clone
    + Send
    + Sync
    + 'static {
        let jobs = self.clone();
        move |name| jobs.clone().run(name).boxed()
    }

    async fn run(self, name: &'static str) -> Result<(), Infallible> {
        self.note(name, "began");
        let may_end = self.may_end.clone();
        let mut end = End {
            jobs: self,
            name,
            how: "dropped",
        };
        assert!(name != PANICS, "as asked");
        may_end.cancelled().await;
        end.how = "ended";
        Ok(())
    }

    pub(crate) fn note(&self, name: &str, what: &str) {
        self.notes.lock().unwrap().push(format!("{name} {what}"));
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap().clone()
    }

    pub(crate) async fn until_noted(&self, expected: &[&str]) {
        let noted = async {
            while self.notes() != expected {
                tokio::task::yield_now().await;
            }
        };
        if tokio::time::timeout(DEADLINE, noted).await.is_err() {
            assert_eq!(self.notes(), expected);
        }
    }
}
