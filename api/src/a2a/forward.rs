//! The call to the agent. It may be slow for as long as something is heard of the workspace.

use std::error::Error as StdError;
use std::future;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use longshore_base::WorkspaceId;
use longshore_events::{Filter, Received, STREAM_BUFFER, Subscription};
use longshore_fleet::url_safety::CheckedUrl;
use poem::http::StatusCode;
use poem::http::header::CONTENT_TYPE;
use tokio::time::{Instant, sleep_until};

use crate::state::ApiState;

/// Most of an answer that is read.
const ANSWER_LIMIT: usize = 10 * 1024 * 1024;

/// How long an answer is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Without any event of the workspace.
    pub(crate) idle: Duration,
    /// In all.
    pub(crate) ceiling: Option<Duration>,
}

type Cause = Box<dyn StdError + Send + Sync>;

/// What came of a call.
pub(crate) enum Exchange {
    /// The agent answered.
    Answered {
        /// Its status.
        status: StatusCode,
        /// Its body.
        body: Bytes,
    },
    /// The agent began to answer and did not end.
    Interrupted {
        /// The status it began with.
        status: StatusCode,
        /// Why.
        error: Cause,
    },
    /// There was no call to make.
    NotBuilt(Cause),
    /// The connection stood, and then there was nothing: too late, or broken off.
    Broken(Cause),
    /// There is no connection to be had.
    Unreachable(Cause),
}

#[derive(Debug, thiserror::Error)]
enum GaveUp {
    #[error("the agent answered nothing, and nothing was heard of it, for {0:?}")]
    Idle(Duration),
    #[error("the agent did not answer within {0:?}")]
    Ceiling(Duration),
    #[error("the answer is larger than {ANSWER_LIMIT} bytes")]
    TooLarge,
}

/// Posts a message and reads the answer.
pub(crate) async fn forward(
    state: &ApiState,
    target: WorkspaceId,
    url: &CheckedUrl,
    body: Bytes,
    patience: Patience,
) -> Exchange {
    let mut signs = Signs {
        state,
        target,
        subscription: Some(subscribe(state, target)),
    };
    let call = call(state, url, body);
    tokio::pin!(call);
    let ceiling = patience.ceiling.map(|ceiling| Instant::now() + ceiling);
    let mut idle_until = Instant::now() + patience.idle;
    loop {
        tokio::select! {
            exchange = &mut call => return exchange,
            () = signs.next() => idle_until = Instant::now() + patience.idle,
            () = sleep_until(idle_until) => {
                return Exchange::Broken(GaveUp::Idle(patience.idle).into());
            }
            () = until(ceiling) => {
                let limit = patience.ceiling.unwrap_or_default();
                return Exchange::Broken(GaveUp::Ceiling(limit).into());
            }
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => future::pending().await,
    }
}

async fn call(state: &ApiState, url: &CheckedUrl, body: Bytes) -> Exchange {
    let sent = state
        .agents
        .post(url)
        .header(CONTENT_TYPE, "application/json")
        .body(body)
        .send()
        .await;
    let mut answer = match sent {
        Ok(answer) => answer,
        Err(error) if error.is_builder() => return Exchange::NotBuilt(error.without_url().into()),
        Err(error) if error.is_connect() && !error.is_timeout() => {
            return Exchange::Unreachable(error.without_url().into());
        }
        Err(error) => return Exchange::Broken(error.without_url().into()),
    };
    let status = answer.status();
    let mut read = BytesMut::new();
    loop {
        match answer.chunk().await {
            Ok(Some(chunk)) if read.len() + chunk.len() > ANSWER_LIMIT => {
                return Exchange::Interrupted {
                    status,
                    error: GaveUp::TooLarge.into(),
                };
            }
            Ok(Some(chunk)) => read.extend_from_slice(&chunk),
            Ok(None) => {
                return Exchange::Answered {
                    status,
                    body: read.freeze(),
                };
            }
            Err(error) => {
                return Exchange::Interrupted {
                    status,
                    error: error.without_url().into(),
                };
            }
        }
    }
}

/// Signs of life of the workspace: its events, whatever they say.
struct Signs<'a> {
    state: &'a ApiState,
    target: WorkspaceId,
    subscription: Option<Subscription>,
}

impl Signs<'_> {
    async fn next(&mut self) {
        let Some(subscription) = &mut self.subscription else {
            return future::pending().await;
        };
        match subscription.next().await {
            Received::Event(_) => {}
            // Too much was heard of it, which is a sign as well.
            Received::Overflowed => self.subscription = Some(subscribe(self.state, self.target)),
            // The server is closing; only the answer is waited for.
            Received::Closed => self.subscription = None,
        }
    }
}

fn subscribe(state: &ApiState, target: WorkspaceId) -> Subscription {
    state
        .hub
        .subscribe(Filter::Workspace(target), STREAM_BUFFER)
}
