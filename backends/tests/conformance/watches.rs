//! Watches of a start: one that allows all, one that gives up, one that acts in between.

use std::future::Future;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use longshore_backends::{Abandoned, StartWatch};

/// One reported step.
pub(crate) type Told = (&'static str, Option<String>, Option<u8>);

/// Lets everything pass and keeps what it was told.
#[derive(Default)]
pub(crate) struct Allow(Mutex<Vec<Told>>);

impl Allow {
    pub(crate) fn told(&self) -> Vec<Told> {
        self.0.lock().unwrap().clone()
    }

    /// Names of the steps, repetitions left out.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self.told().iter().map(|told| told.0).collect();
        names.dedup();
        names
    }
}

#[async_trait]
impl StartWatch for Allow {
    async fn step(
        &self,
        step: &'static str,
        message: Option<String>,
        percent: Option<u8>,
    ) -> Result<(), Abandoned> {
        self.0.lock().unwrap().push((step, message, percent));
        Ok(())
    }
}

/// Allows so many steps, then none.
pub(crate) struct GiveUpAfter(AtomicUsize);

impl GiveUpAfter {
    pub(crate) fn new(steps: usize) -> Self {
        Self(AtomicUsize::new(steps))
    }
}

#[async_trait]
impl StartWatch for GiveUpAfter {
    async fn step(
        &self,
        _: &'static str,
        _: Option<String>,
        _: Option<u8>,
    ) -> Result<(), Abandoned> {
        let left = self.0.load(Ordering::SeqCst);
        if left == 0 {
            return Err(Abandoned);
        }
        self.0.store(left - 1, Ordering::SeqCst);
        Ok(())
    }
}

type Act<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Does something else at a point of the start, as if this process had been stopped there, and lets the start go on.
pub(crate) struct StoppedAt<'a> {
    step: &'static str,
    message: &'static str,
    meanwhile: Mutex<Option<Act<'a>>>,
}

impl<'a> StoppedAt<'a> {
    pub(crate) fn new(
        step: &'static str,
        message: &'static str,
        meanwhile: impl Future<Output = ()> + Send + 'a,
    ) -> Self {
        Self {
            step,
            message,
            meanwhile: Mutex::new(Some(Box::pin(meanwhile))),
        }
    }

    pub(crate) fn was_there(&self) -> bool {
        self.meanwhile.lock().unwrap().is_none()
    }
}

#[async_trait]
impl StartWatch for StoppedAt<'_> {
    async fn step(
        &self,
        step: &'static str,
        message: Option<String>,
        _: Option<u8>,
    ) -> Result<(), Abandoned> {
        if step == self.step && message.as_deref().unwrap_or_default() == self.message {
            let act = self.meanwhile.lock().unwrap().take();
            if let Some(act) = act {
                act.await;
            }
        }
        Ok(())
    }
}
