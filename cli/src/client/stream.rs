//! Server-sent events that survive a broken connection: the next connection asks for what came after the last event.

use std::pin::Pin;
use std::time::Duration;

use eventsource_stream::{Event, EventStreamError, Eventsource as _};
use futures_util::{Stream, StreamExt as _};

use super::{Client, ClientError};

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Failures to connect in a row after which the server counts as gone.
const MOST_FAILURES: u32 = 10;

type Events = Pin<Box<dyn Stream<Item = Result<Event, EventStreamError<reqwest::Error>>> + Send>>;

/// What the stream brought.
pub(crate) enum StreamItem {
    /// An event.
    Event(Event),
    /// The server closed the stream in good order.
    Ended,
}

/// A followed stream.
pub(crate) struct EventStream<'a> {
    client: &'a Client,
    path: String,
    query: Vec<(String, String)>,
    last_id: Option<String>,
    open: Option<Events>,
    failures: u32,
}

impl<'a> EventStream<'a> {
    pub(super) fn new(client: &'a Client, path: String, query: &[(&str, String)]) -> Self {
        Self {
            client,
            path,
            query: query
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
            last_id: None,
            open: None,
            failures: 0,
        }
    }

    /// The next event. A lost connection is made again from the last event on; an answer that refuses is an error.
    ///
    /// Not to be called again after [`StreamItem::Ended`], unless the caller knows that there is more to come.
    pub(crate) async fn next(&mut self) -> Result<StreamItem, ClientError> {
        loop {
            let Some(events) = &mut self.open else {
                self.connect().await?;
                continue;
            };
            match events.next().await {
                Some(Ok(event)) => {
                    self.failures = 0;
                    if !event.id.is_empty() {
                        self.last_id = Some(event.id.clone());
                    }
                    return Ok(StreamItem::Event(event));
                }
                Some(Err(_)) => self.pause().await,
                None => {
                    self.open = None;
                    return Ok(StreamItem::Ended);
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<(), ClientError> {
        let opened = self
            .client
            .open_stream(&self.path, &self.query, self.last_id.as_deref())
            .await;
        match opened {
            Ok(response) => {
                self.open = Some(Box::pin(response.bytes_stream().eventsource()));
                Ok(())
            }
            Err(error @ (ClientError::Unreachable { .. } | ClientError::Timeout { .. }))
                if self.failures == MOST_FAILURES || self.last_id.is_none() =>
            {
                Err(error)
            }
            Err(ClientError::Unreachable { .. } | ClientError::Timeout { .. }) => {
                self.pause().await;
                Ok(())
            }
            // A server that restarts answers 503 for a moment.
            Err(ClientError::Refused { status, .. })
                if status.is_server_error() && self.failures < MOST_FAILURES =>
            {
                self.pause().await;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn pause(&mut self) {
        self.open = None;
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(8));
        self.failures += 1;
        tokio::time::sleep(pause.min(LONGEST_PAUSE)).await;
    }
}
