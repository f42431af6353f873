//! Which request a job goes back to, in the words of W3C Trace Context (<https://www.w3.org/TR/trace-context/>).
//!
//! Whoever serves a request does so in the scope of its trace, and a job that is enqueued in it keeps it; so does what the
//! run of that job enqueues. The scope goes along with the task, as tracing libraries have it, for between a request and
//! its job are layers whose business it is not. What is enqueued in no scope begins a trace of its own.

use longshore_base::ids::random_uuid;

tokio::task_local! {
    static CURRENT: TraceContext;
}

/// A trace, and who in it asks: a valid `traceparent` of version 00.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext(String);

impl TraceContext {
    /// A trace that begins here. Nobody records spans here, so it is not sampled.
    #[must_use]
    pub fn begin() -> Self {
        let parent_id = &random_uuid().simple().to_string()[16..];
        Self(format!("00-{}-{parent_id}-00", random_uuid().simple()))
    }

    /// Reads the header `traceparent`; `None` if it is malformed. Of later versions it takes what it knows.
    #[must_use]
    pub fn parse(traceparent: &str) -> Option<Self> {
        let mut parts = traceparent.splitn(5, '-');
        let mut hex = |digits: usize| {
            parts.next().filter(|part| {
                let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
                part.len() == digits && part.bytes().all(is_hex)
            })
        };
        let (version, trace_id, parent_id, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        let is_id = |part: &str| part.bytes().any(|byte| byte != b'0');
        let has_more = parts.next().is_some();
        if version == "ff" || (version == "00" && has_more) || !is_id(trace_id) || !is_id(parent_id)
        {
            return None;
        }
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1;
        Some(Self(format!("00-{trace_id}-{parent_id}-0{sampled}")))
    }

    /// Its 32 hex digits.
    #[must_use]
    pub fn trace_id(&self) -> &str {
        self.0.split('-').nth(1).unwrap_or_default()
    }

    /// Does something as a part of it. A task that is spawned within is outside.
    pub async fn scope<F: Future>(self, work: F) -> F::Output {
        CURRENT.scope(self, work).await
    }

    /// The trace this is done in.
    pub(crate) fn current() -> Self {
        CURRENT
            .try_with(Clone::clone)
            .unwrap_or_else(|_| Self::begin())
    }

    /// As a `traceparent`.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    #[test]
    fn a_traceparent_is_read_and_one_that_is_malformed_is_none() {
        let valid = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let context = TraceContext::parse(&valid).unwrap();
        assert_eq!((context.trace_id(), context.as_str()), (TRACE, &*valid));
        for later in [
            format!("01-{TRACE}-00f067aa0ba902b7-01"),
            format!("01-{TRACE}-00f067aa0ba902b7-ff-what-comes-later"),
        ] {
            assert_eq!(
                TraceContext::parse(&later),
                Some(context.clone()),
                "{later}"
            );
        }
        for malformed in [
            String::new(),
            TRACE.to_owned(),
            format!("00-{TRACE}-00f067aa0ba902b7"),
            format!("00-{TRACE}-00f067aa0ba902b7-01-"),
            format!("00-{TRACE}-00f067aa0ba902b7-01-more"),
            format!("01-{TRACE}-00f067aa0ba902b7-01more"),
            format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            format!("0-{TRACE}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase()),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{TRACE}-0000000000000000-01"),
            format!("00-{TRACE}0-00f067aa0ba902b7-01"),
            format!("00-{TRACE}-00f067aa0ba902b7-0x"),
            format!("00_{TRACE}-00f067aa0ba902b7-01"),
            format!(" 00-{TRACE}-00f067aa0ba902b7-01"),
        ] {
            assert_eq!(TraceContext::parse(&malformed), None, "{malformed:?}");
        }
    }

    #[test]
    fn a_trace_that_begins_here_is_valid_and_its_own() {
        let begun = TraceContext::begin();
        assert_eq!(TraceContext::parse(begun.as_str()), Some(begun.clone()));
        assert_ne!(begun.trace_id(), TraceContext::begin().trace_id());
    }
}
