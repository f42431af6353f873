//! What is known of a request on its way through: its id, whom it is counted for, and who turned out to send it.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use poem::Request;

use crate::auth::Granted;
use crate::problem::{ApiError, ApiResult};
use crate::rate_limit::{RateLimiter, Standing, Subject};
use crate::routes::Matched;

/// Kept in the request's extensions by the gate.
pub(crate) struct RequestContext {
    /// Told to the client and written into every log line about the request.
    pub(crate) request_id: String,
    /// Where it comes from.
    pub(crate) address: Option<IpAddr>,
    /// Nobody is counted, as in dev mode.
    pub(crate) unlimited: bool,
    matched: Mutex<Option<Matched>>,
    granted: Mutex<Option<Granted>>,
    limit: Mutex<Limit>,
}

#[derive(Default)]
struct Limit {
    charged: Option<Subject>,
    standing: Option<Standing>,
}

impl RequestContext {
    /// A request about which nothing is known yet.
    pub(crate) fn new(request_id: String, address: Option<IpAddr>, unlimited: bool) -> Self {
        Self {
            request_id,
            address,
            unlimited,
            matched: Mutex::default(),
            granted: Mutex::default(),
            limit: Mutex::default(),
        }
    }

    /// The context of a request that came through the gate.
    pub(crate) fn of(request: &Request) -> ApiResult<&Arc<Self>> {
        request
            .extensions()
            .get::<Arc<Self>>()
            .ok_or_else(|| ApiError::internal("internal error", "a request passed by the gate"))
    }

    /// The route and the ids in its path.
    pub(crate) fn matched(&self) -> ApiResult<Matched> {
        lock(&self.matched)
            .ok_or_else(|| ApiError::internal("internal error", "a request has no route"))
    }

    pub(crate) fn set_matched(&self, matched: Matched) {
        *lock(&self.matched) = Some(matched);
    }

    /// Who sends it, once that is known.
    pub(crate) fn granted(&self) -> Option<Granted> {
        lock(&self.granted).clone()
    }

    pub(crate) fn standing(&self) -> Option<Standing> {
        lock(&self.limit).standing
    }

    /// Counts a request by its address, or, if its bearer proved good lately, not yet.
    ///
    /// # Errors
    /// 429.
    pub(crate) fn arrive(
        &self,
        limiter: &RateLimiter,
        bearer: Option<Subject>,
        by_address: bool,
    ) -> ApiResult<()> {
        if self.unlimited {
            return Ok(());
        }
        if let Some(subject) = bearer.filter(|subject| limiter.knows(*subject)) {
            lock(&self.limit).standing = Some(limiter.look(subject));
            return Ok(());
        }
        let Some(subject) = self.address.map(Subject::address) else {
            return Ok(());
        };
        if !by_address {
            lock(&self.limit).standing = Some(limiter.look(subject));
            return Ok(());
        }
        self.charge(limiter, subject)
    }

    /// Notes who sends it and counts that credential instead of the address.
    ///
    /// # Errors
    /// 429.
    pub(crate) fn grant(&self, limiter: &RateLimiter, granted: Granted) -> ApiResult<()> {
        let subject = granted.subject;
        *lock(&self.granted) = Some(granted);
        let Some(subject) = subject.filter(|_| !self.unlimited) else {
            return Ok(());
        };
        if let Some(address) = lock(&self.limit).charged.take() {
            limiter.refund(address);
        }
        self.charge(limiter, subject)
    }

    fn charge(&self, limiter: &RateLimiter, subject: Subject) -> ApiResult<()> {
        let standing = limiter.charge(subject);
        let mut limit = lock(&self.limit);
        limit.standing = Some(standing);
        if standing.exhausted() {
            return Err(ApiError::new(
                poem::http::StatusCode::TOO_MANY_REQUESTS,
                "rate limit exceeded",
            )
            .retry_after(standing.reset_seconds()));
        }
        limit.charged = Some(subject);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
