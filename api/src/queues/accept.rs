//! Whether a request that starts work is taken.

use longshore_base::WorkspaceId;
use longshore_ledger::control::{AcceptError, Subject, check_accepts};
use poem::http::StatusCode;
use sqlx::PgConnection;

use crate::problem::{ApiError, ApiResult};

/// Refuses a request for a job whose queue, or whatever else it belongs to, an operator has closed. Asked in the
/// transaction that has written the job, when its place is known; nothing of it may be committed then.
///
/// # Errors
/// 503 with the operator's words.
pub(crate) async fn require_accepted(
    tx: &mut PgConnection,
    queue: &str,
    tenant: &str,
    workspace_id: Option<WorkspaceId>,
    failed: &'static str,
) -> ApiResult<()> {
    let (kind, place) = match queue.split_once('@') {
        Some((kind, place)) => (kind, Some(place)),
        None => (queue, None),
    };
    let subject = Subject {
        kind,
        place,
        tenant,
        workspace_id,
    };
    match check_accepts(tx, subject).await {
        Ok(()) => Ok(()),
        Err(AcceptError::Rejected(rejected)) => {
            let seconds = rejected.retry_after.as_secs().max(1);
            Err(
                ApiError::new(StatusCode::SERVICE_UNAVAILABLE, rejected.text)
                    .member("code", "rejected")
                    .retry_after(seconds),
            )
        }
        Err(AcceptError::Ledger(error)) => Err(ApiError::ledger(error, failed)),
    }
}
