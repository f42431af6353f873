//! What the server sends by itself: the WebSocket and server-sent events.

use std::pin::Pin;
use std::time::Duration;

use eventsource_stream::{Event, Eventsource as _};
use futures_util::{Stream, StreamExt as _};
use reqwest::Method;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::caller::Caller;

/// An open `/ws`.
pub struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    seen: Vec<Value>,
}

impl Socket {
    /// Opens it as this caller.
    pub async fn open(caller: &Caller) -> Self {
        let url = format!("{}/ws", caller.base().replacen("http", "ws", 1));
        let mut request = url.into_client_request().unwrap();
        if let Some(token) = caller.token() {
            let bearer = format!("Bearer {token}").parse().unwrap();
            request.headers_mut().insert("authorization", bearer);
        }
        let (stream, _) = connect_async(request).await.unwrap();
        Self {
            stream,
            seen: Vec::new(),
        }
    }

    /// Reads until an event of this name about this workspace comes; it may have come already.
    pub async fn until(&mut self, event: &str, workspace: &str, deadline: Duration) -> Value {
        let wanted = |value: &Value| value["event"] == event && value["workspace_id"] == workspace;
        if let Some(found) = self.seen.iter().find(|value| wanted(value)) {
            return found.clone();
        }
        let reading = async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Text(text))) => {
                        let value: Value = serde_json::from_str(&text).unwrap();
                        self.seen.push(value.clone());
                        if wanted(&value) {
                            return value;
                        }
                    }
                    Some(Ok(_)) => {}
                    other => panic!("the socket ended: {other:?}"),
                }
            }
        };
        match timeout(deadline, reading).await {
            Ok(value) => value,
            Err(_) => panic!(
                "no {event} of {workspace} on the socket within {deadline:?}; seen: {:#?}",
                self.seen
            ),
        }
    }
}

type Events = dyn Stream<Item = Result<Event, String>> + Send;

/// An open stream of server-sent events.
pub struct EventStream {
    stream: Pin<Box<Events>>,
    seen: Vec<Event>,
}

impl EventStream {
    /// Opens it as this caller; `last` is the id of the last event seen before.
    pub async fn open(caller: &Caller, path: &str, last: Option<&str>) -> Self {
        let mut request = caller.request(Method::GET, path);
        if let Some(id) = last {
            request = request.header("last-event-id", id);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        let stream = response
            .bytes_stream()
            .eventsource()
            .map(|event| event.map_err(|error| error.to_string()));
        Self {
            stream: Box::pin(stream),
            seen: Vec::new(),
        }
    }

    /// Reads until an event is as wanted; it may have come already.
    pub async fn until(
        &mut self,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&Event) -> bool,
    ) -> Event {
        if let Some(found) = self.seen.iter().find(|event| wanted(event)) {
            return found.clone();
        }
        let reading = async {
            while let Some(event) = self.stream.next().await {
                let event = event.unwrap();
                self.seen.push(event.clone());
                if wanted(&event) {
                    return Some(event);
                }
            }
            None
        };
        match timeout(deadline, reading).await {
            Ok(Some(event)) => event,
            Ok(None) => panic!("the stream ended before {what}; seen: {:#?}", self.seen),
            Err(_) => panic!("waited {deadline:?} for {what}; seen: {:#?}", self.seen),
        }
    }

    /// Reads to the end of the stream and answers everything that came.
    pub async fn to_the_end(mut self, deadline: Duration) -> Vec<Event> {
        let reading = async {
            while let Some(event) = self.stream.next().await {
                self.seen.push(event.unwrap());
            }
        };
        assert!(
            timeout(deadline, reading).await.is_ok(),
            "the stream did not end within {deadline:?}"
        );
        self.seen
    }
}
