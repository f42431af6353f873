//! Server-sent events.
//!
//! A stream is written by a task of its own into a short channel, so a handler can loop and wait as it likes. It ends
//! when its client goes, when its writer is done, and when the server closes.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use poem::http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE};
use poem::{Body, IntoResponse, Response};
use poem_openapi::ApiResponse;
use poem_openapi::payload::Payload;
use poem_openapi::registry::{
    MetaMediaType, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry,
};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use crate::state::ApiState;

/// Frames that wait for a slow client; behind them the writer waits.
const CHANNEL: usize = 8;
/// Silence past this is broken, so that proxies keep the connection and dead clients are found.
const PING_PERIOD: Duration = Duration::from_secs(15);
const PING: &[u8] = b": ping\n\n";

/// The client went away.
#[derive(Debug)]
pub(crate) struct Gone;

/// Where a writer puts its events.
pub(crate) struct Feed {
    frames: mpsc::Sender<Bytes>,
}

impl Feed {
    /// Sends one event; waits while the client is slow.
    ///
    /// # Errors
    /// The client is gone, so the writer should end.
    pub(crate) async fn send(
        &self,
        id: Option<&str>,
        event: Option<&str>,
        data: &str,
    ) -> Result<(), Gone> {
        let mut frame = String::with_capacity(data.len() + 32);
        for (field, value) in [("id", id), ("event", event)] {
            if let Some(value) = value {
                frame.push_str(field);
                frame.push_str(": ");
                frame.push_str(value);
                frame.push('\n');
            }
        }
        for line in data.split('\n') {
            frame.push_str("data: ");
            frame.push_str(line);
            frame.push('\n');
        }
        frame.push('\n');
        self.frames.send(frame.into()).await.map_err(|_| Gone)
    }
}

/// An answer of the type `text/event-stream`.
pub(crate) struct EventStream(Body);

impl EventStream {
    /// Starts the writer. What it returns is of no interest: it ends the stream.
    pub(crate) fn start<F, W>(state: &ApiState, write: F) -> Self
    where
        F: FnOnce(Feed) -> W,
        W: Future<Output = Result<(), Gone>> + Send + 'static,
    {
        let (frames, receiver) = mpsc::channel(CHANNEL);
        // The channel is empty, so this fits: the client sees at once that the stream is open.
        frames.try_send(Bytes::from_static(PING)).unwrap_or(());
        let pings = frames.clone();
        let writer = write(Feed { frames });
        let closing = state.closing.clone();
        state.tasks.spawn(async move {
            tokio::select! {
                _ = writer => {}
                () = ping(pings) => {}
                () = closing.cancelled() => {}
            }
        });
        Self(Body::from_bytes_stream(
            ReceiverStream::new(receiver).map(Ok::<_, std::io::Error>),
        ))
    }
}

async fn ping(frames: mpsc::Sender<Bytes>) {
    let mut period = tokio::time::interval(PING_PERIOD);
    period.reset();
    loop {
        period.tick().await;
        if frames.send(Bytes::from_static(PING)).await.is_err() {
            return;
        }
    }
}

impl IntoResponse for EventStream {
    fn into_response(self) -> Response {
        Response::builder()
            .header(CONTENT_TYPE, "text/event-stream")
            .header(CACHE_CONTROL, "no-cache")
            .header(CONNECTION, "keep-alive")
            .header("x-accel-buffering", "no")
            .body(self.0)
    }
}

impl Payload for EventStream {
    const CONTENT_TYPE: &'static str = "text/event-stream";

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Inline(Box::new(MetaSchema::new("string")))
    }
}

impl ApiResponse for EventStream {
    fn meta() -> MetaResponses {
        MetaResponses {
            responses: vec![MetaResponse {
                description: "The events as they happen, until the client or the server ends it.",
                status: Some(200),
                status_range: None,
                content: vec![MetaMediaType {
                    content_type: Self::CONTENT_TYPE,
                    schema: Self::schema_ref(),
                }],
                headers: vec![],
            }],
        }
    }

    fn register(_registry: &mut Registry) {}
}
