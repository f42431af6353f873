//! What a workspace's instance wrote to its console (`spec: rest-api` §6.3.7).

use longshore_backends::BackendError;
use longshore_base::WorkspaceId;
use poem::http::StatusCode;
use poem_openapi::Object;
use poem_openapi::payload::Json;

use super::logs::learn_secrets;
use crate::problem::{ApiError, ApiResult};
use crate::state::ApiState;

const NONE: &str = "console output unavailable on this deployment (no control plane)";
const FAILED: &str = "control plane returned an error fetching console output";

/// A console.
#[derive(Object)]
pub(crate) struct ConsoleOutput {
    /// What was written to it, known secrets masked.
    output: String,
}

pub(super) async fn read(state: &ApiState, id: WorkspaceId) -> ApiResult<Json<ConsoleOutput>> {
    let none = || ApiError::new(StatusCode::NOT_IMPLEMENTED, NONE);
    let backend = state.backends.choose().map_err(|_| none())?;
    let output = backend.console(id).await.map_err(|error| match error {
        BackendError::Unsupported { .. } => none(),
        error => ApiError::new(StatusCode::BAD_GATEWAY, FAILED).because(error),
    })?;
    learn_secrets(state, id).await?;
    Ok(Json(ConsoleOutput {
        output: state.fleet.redactor.clean(&output),
    }))
}
