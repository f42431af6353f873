//! What a workspace's container wrote (`spec: operations` §7).

use std::sync::Arc;

use futures_util::StreamExt as _;
use longshore_backends::{BackendError, LogLine, LogSource, LogStream, LogsQuery};
use longshore_base::redact::Redactor;
use longshore_base::{Timestamp, WorkspaceId};
use longshore_fleet::secrets::load_secrets;
use poem::http::StatusCode;
use poem_openapi::payload::Json;
use poem_openapi::types::ToJSON as _;
use poem_openapi::{ApiResponse, Enum, Object, ResponseContent};

use crate::problem::{ApiError, ApiResult};
use crate::sse::{EventStream, Feed, Gone};
use crate::state::ApiState;

const DEFAULT_TAIL: u32 = 200;
const MAX_TAIL: u32 = 10_000;
const FAILED: &str = "failed to read logs";

/// Where a line was written to.
#[derive(Clone, Copy, Enum)]
#[oai(rename_all = "lowercase")]
pub(crate) enum LogOutput {
    Stdout,
    Stderr,
}

/// One line.
#[derive(Object)]
pub(crate) struct LogEntry {
    /// When the engine read it.
    #[oai(nullable)]
    at: Option<Timestamp>,
    output: LogOutput,
    /// The line, known secrets masked.
    text: String,
}

/// Lines, oldest first.
#[derive(Object)]
pub(crate) struct LogPage {
    items: Vec<LogEntry>,
}

#[derive(ResponseContent)]
pub(crate) enum LogsContent {
    /// What is there.
    Page(Json<LogPage>),
    /// What is there and what comes: events `log` with an entry each, and `end` when the container has ended.
    Stream(EventStream),
}

#[derive(ApiResponse)]
pub(crate) enum LogsResponse {
    /// The lines; with `follow` as a stream.
    #[oai(status = 200)]
    Logs(LogsContent),
}

pub(crate) async fn read(
    state: &Arc<ApiState>,
    id: WorkspaceId,
    tail: Option<u32>,
    since: Option<Timestamp>,
    follow: bool,
) -> ApiResult<LogsResponse> {
    let tail = tail.unwrap_or(DEFAULT_TAIL);
    if !(1..=MAX_TAIL).contains(&tail) {
        return Err(ApiError::bad_request("tail must be from 1 to 10000"));
    }
    learn_secrets(state, id).await?;
    let backend = state.backends.choose().map_err(|error| {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error.public()).because(error)
    })?;
    let query = LogsQuery {
        tail: Some(tail),
        since,
        follow,
    };
    let lines = backend.logs(id, query).await.map_err(refuse)?;
    let redactor = state.fleet.redactor.clone();
    let content = if follow {
        LogsContent::Stream(EventStream::start(state, move |feed| async move {
            stream(lines, &redactor, &feed).await
        }))
    } else {
        LogsContent::Page(Json(collect(lines, &redactor).await?))
    };
    Ok(LogsResponse::Logs(content))
}

/// An agent may print what it was given. Only what this process has opened is known to the redactor, so the secrets are
/// opened first; without that nothing is shown.
pub(super) async fn learn_secrets(state: &ApiState, id: WorkspaceId) -> ApiResult<()> {
    let mut conn = state.connection(FAILED).await?;
    load_secrets(&mut conn, &state.fleet, id)
        .await
        .map(drop)
        .map_err(|error| ApiError::internal(FAILED, error))
}

async fn collect(mut lines: LogStream, redactor: &Redactor) -> ApiResult<LogPage> {
    let mut items = Vec::new();
    while let Some(line) = lines.next().await {
        items.push(entry(line.map_err(refuse)?, redactor));
    }
    Ok(LogPage { items })
}

async fn stream(mut lines: LogStream, redactor: &Redactor, feed: &Feed) -> Result<(), Gone> {
    while let Some(line) = lines.next().await {
        match line {
            Ok(line) => {
                let entry = entry(line, redactor).to_json_string();
                feed.send(None, Some("log"), &entry).await?;
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "a log stream broke off"
                );
                return Ok(());
            }
        }
    }
    feed.send(None, Some("end"), "{}").await
}

fn entry(line: LogLine, redactor: &Redactor) -> LogEntry {
    LogEntry {
        at: line.at,
        output: match line.source {
            LogSource::Stdout => LogOutput::Stdout,
            LogSource::Stderr => LogOutput::Stderr,
        },
        text: redactor.clean(&line.text),
    }
}

fn refuse(error: BackendError) -> ApiError {
    match error {
        BackendError::NoContainer => return ApiError::not_found("workspace has no container"),
        BackendError::Unsupported { .. } => {
            return ApiError::new(
                StatusCode::NOT_IMPLEMENTED,
                "container logs unavailable on this deployment; ask for the console",
            );
        }
        _ => {}
    }
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "container engine unavailable",
    )
    .because(error)
}
