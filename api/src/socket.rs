//! The WebSocket (`spec: rest-api` §5.2): every event for the canvas, those of related workspaces for an agent.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use longshore_base::WorkspaceId;
use longshore_base::clock::Stopwatch;
use longshore_events::{Filter, Received, SOCKET_BUFFER, Subscription};
use poem::web::websocket::{
    BoxWebSocketUpgraded, CloseCode, Message, WebSocket, WebSocketConfig, WebSocketStream,
};
use poem_openapi::OpenApi;
use poem_openapi::param::{Header, Query};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::auth::{Principal, SocketAccess, may_talk};
use crate::document::Tag;
use crate::problem::ApiResult;
use crate::state::{ApiState, Shared};

const PING_PERIOD: Duration = Duration::from_secs(30);
/// A client that takes nothing for so long is gone.
const SEND_BUDGET: Duration = Duration::from_secs(20);
/// Frames of clients are thrown away, so they need not be large.
const MAX_FRAME: usize = 64 * 1024;
/// For how long an agent's relation to another workspace is believed.
const RELATION_TTL: Duration = Duration::from_secs(10);

pub(crate) struct SocketApi;

#[OpenApi(tag = "Tag::Events")]
impl SocketApi {
    /// Opens a WebSocket on which every event is one text message: `{event, workspace_id, timestamp, payload}`.
    #[oai(path = "/ws", method = "get", operation_id = "open_socket")]
    async fn open_socket(
        &self,
        access: SocketAccess,
        state: Shared<'_>,
        /// The agent that listens; with its own token as bearer.
        #[oai(name = "X-Workspace-ID")]
        _agent: Header<Option<String>>,
        /// An admin or organisation token, for browsers, which cannot set headers here.
        #[oai(name = "access_token")]
        _token: Query<Option<String>>,
        upgrade: WebSocket,
    ) -> ApiResult<BoxWebSocketUpgraded> {
        let listener = match access.0 {
            Principal::Workspace(id) => Some(id),
            Principal::Admin | Principal::Org { .. } | Principal::Canvas | Principal::Developer => {
                None
            }
        };
        let state = Arc::clone(&state);
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_FRAME))
            .max_frame_size(Some(MAX_FRAME));
        Ok(upgrade
            .config(config)
            .on_upgrade(move |socket| async move {
                let open = state.http_metrics.socket();
                let subscription = state.hub.subscribe(Filter::All, SOCKET_BUFFER);
                let shared = Arc::clone(&state);
                let client = Client {
                    socket,
                    subscription,
                    relations: listener.map(|id| Relations::new(shared, id)),
                };
                // Tracked, so that a shutdown waits until the close frame is out.
                let served = state.tasks.spawn(client.serve());
                if let Err(error) = served.await {
                    tracing::error!(%error, "a socket's task failed");
                }
                drop(open);
            })
            .boxed())
    }
}

struct Client {
    socket: WebSocketStream,
    subscription: Subscription,
    relations: Option<Relations>,
}

enum Next {
    Received(Received),
    Ping,
    /// The client said something, which nobody reads; `false` when it left.
    Client(bool),
}

impl Client {
    async fn serve(mut self) {
        let mut pings = interval(PING_PERIOD);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pings.reset();
        loop {
            let next = tokio::select! {
                received = self.subscription.next() => Next::Received(received),
                _ = pings.tick() => Next::Ping,
                frame = self.socket.next() => Next::Client(
                    matches!(&frame, Some(Ok(frame)) if !matches!(frame, Message::Close(_)))
                ),
            };
            let goes_on = match next {
                Next::Received(Received::Event(delivery)) => {
                    let wanted = match &mut self.relations {
                        None => true,
                        Some(relations) => relations.wants(delivery.message.workspace_id).await,
                    };
                    !wanted || self.send(Message::text(delivery.json.clone())).await
                }
                Next::Received(Received::Overflowed) => {
                    self.close(CloseCode::from(1013), "slow reader").await;
                    false
                }
                Next::Received(Received::Closed) => {
                    self.close(CloseCode::Away, "shutting down").await;
                    false
                }
                Next::Ping => self.send(Message::ping(Vec::new())).await,
                Next::Client(stayed) => stayed,
            };
            if !goes_on {
                return;
            }
        }
    }

    async fn send(&mut self, message: Message) -> bool {
        matches!(
            timeout(SEND_BUDGET, self.socket.send(message)).await,
            Ok(Ok(()))
        )
    }

    async fn close(&mut self, code: CloseCode, reason: &'static str) {
        self.send(Message::close_with(code, reason)).await;
    }
}

/// Which workspaces an agent may hear of, asked of the database and remembered for a moment.
struct Relations {
    state: Arc<ApiState>,
    agent: WorkspaceId,
    known: HashMap<WorkspaceId, (bool, Stopwatch)>,
}

impl Relations {
    fn new(state: Arc<ApiState>, agent: WorkspaceId) -> Self {
        Self {
            state,
            agent,
            known: HashMap::new(),
        }
    }

    async fn wants(&mut self, about: Option<WorkspaceId>) -> bool {
        let Some(about) = about else { return false };
        if let Some((wanted, asked)) = self.known.get(&about)
            && asked.elapsed() < RELATION_TTL
        {
            return *wanted;
        }
        let wanted = match self.state.pools.work.acquire().await {
            Ok(mut conn) => may_talk(&mut conn, self.agent, about).await,
            // On doubt nothing is told.
            Err(_) => return false,
        };
        self.known.insert(about, (wanted, Stopwatch::start()));
        wanted
    }
}
