//! Sealing every secret with the current key.

use longshore_fleet::secrets::{RotationError, check_rotation};
use longshore_jobs::{deployment, reseal};
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Object, OpenApi};
use uuid::Uuid;

use crate::auth::AdminAccess;
use crate::document::Tag;
use crate::idempotency::{IdempotencyKey, Idempotent};
use crate::problem::{ApiError, ApiResult};
use crate::queues::require_accepted;
use crate::state::Shared;

const FAILED: &str = "failed to rotate key";

/// A rotation that has begun.
#[derive(Object)]
pub(crate) struct RotationStarted {
    job_id: Uuid,
    /// The id of the key that seals from now on.
    key_id: String,
    /// How many secrets do not name it yet.
    waiting: i64,
}

#[derive(ApiResponse)]
pub(crate) enum RotationResponse {
    /// It is being done; every secret stays readable meanwhile.
    #[oai(status = 202)]
    Started(
        Json<RotationStarted>,
        /// The job that does it.
        #[oai(header = "Location")]
        String,
    ),
}

pub(crate) struct RotationApi;

#[OpenApi(tag = "Tag::Secrets")]
impl RotationApi {
    /// Seals every stored secret with the first key of the ring. Refused with 409 while some secret opens with no
    /// configured key.
    #[oai(
        path = "/secrets/rotate-key",
        method = "post",
        operation_id = "rotate_key"
    )]
    async fn rotate_key(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        /// Makes the request safe to send again: a repetition with the same key gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
    ) -> ApiResult<Idempotent<RotationResponse>> {
        let (answer, queue) = key
            .once(&state, FAILED, async |tx| {
                let prospect = check_rotation(tx, &state.fleet).await.map_err(refuse)?;
                let enqueued = reseal::request(tx, &prospect.key_id, &access.0.name())
                    .await
                    .map_err(|error| ApiError::ledger(error, FAILED))?;
                require_accepted(tx, &enqueued.queue, deployment::TENANT, None, FAILED).await?;
                let started = RotationStarted {
                    job_id: enqueued.job_id.0,
                    key_id: prospect.key_id,
                    waiting: prospect.waiting,
                };
                let place = format!("/jobs/{}", enqueued.job_id);
                let answer = RotationResponse::Started(Json(started), place);
                Ok((answer, enqueued.queue))
            })
            .await?;
        if let Some(queue) = queue {
            state.admitter.poke(&queue);
        }
        Ok(answer)
    }
}

fn refuse(error: RotationError) -> ApiError {
    match error {
        RotationError::NoKey | RotationError::KeyMissing { .. } => {
            ApiError::conflict(error.to_string())
        }
        RotationError::Fleet(error) => ApiError::fleet(error, FAILED),
    }
}
