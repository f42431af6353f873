//! Futures polled by the test itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;

/// A future without a runtime.
pub(crate) struct ByHand<T> {
    future: LocalBoxFuture<'static, T>,
    woken: Arc<Woken>,
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl<T> ByHand<T> {
    pub(crate) fn new(future: impl Future<Output = T> + 'static) -> Self {
        Self {
            future: future.boxed_local(),
            woken: Arc::default(),
        }
    }

    /// Polls until it has ended or has nothing more to do until somebody else wakes it.
    pub(crate) fn poll(&mut self) -> Poll<T> {
        let waker = Waker::from(Arc::clone(&self.woken));
        loop {
            self.woken.0.store(false, Ordering::SeqCst);
            let polled = self.future.poll_unpin(&mut Context::from_waker(&waker));
            if polled.is_ready() || !self.woken.0.load(Ordering::SeqCst) {
                return polled;
            }
        }
    }
}
