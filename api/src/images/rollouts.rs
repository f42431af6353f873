//! A digest is taken to the workspaces of a runtime, ring by ring, and back.

use longshore_base::Timestamp;
use longshore_fleet::images::{
    NewRollout, RingCounts, Rollout, RolloutError, count_rings, load_rollout, lock_rollout,
    pinned_reference, record_aborted, shown_digest,
};
use longshore_jobs::deployment;
use longshore_jobs::restart::ChangeRestartError;
use longshore_jobs::rollout::{self, RequestError, Requested};
use poem_openapi::param::Path;
use poem_openapi::payload::Json;
use poem_openapi::{ApiResponse, Object, OpenApi};
use serde::Deserialize;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{choosing_backend, no_image, read_digest};
use crate::auth::AdminAccess;
use crate::body::{JsonBody, JsonRequest};
use crate::document::Tag;
use crate::idempotency::{IdempotencyKey, Idempotent};
use crate::problem::{ApiError, ApiResult};
use crate::queues::require_accepted;
use crate::reason::{self, ChangeRequest};
use crate::state::{ApiState, Shared};

const FAILED: &str = "failed to change the rollout";
const MOST_RINGS: usize = 20;
const MOST_FAILURES: i32 = 10_000;
/// Seven days.
const LONGEST_SOAK_SECONDS: i32 = 604_800;

/// A ring.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
pub(crate) struct RolloutRing {
    /// The share of the runtime's workspaces on the new digest when this ring is done, 1 to 100: each ring's is higher
    /// than that of the one before.
    percent: i32,
}

/// A rollout to begin.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateRolloutRequest {
    /// `sha256:` and 64 hexadecimal digits.
    digest: String,
    /// At most 20.
    rings: Vec<RolloutRing>,
    /// So many of a ring may fail, 0 to 10000. No more than one above it are ever restarted at a time.
    max_failures: i32,
    /// So long all of a ring must stay up before the next one begins, 0 to 604800.
    soak_seconds: i32,
    /// Why; at most 500 characters.
    #[oai(nullable)]
    reason: Option<String>,
}

impl JsonRequest for CreateRolloutRequest {}

/// What a ring has come to.
#[derive(Object)]
pub(crate) struct RolloutRingState {
    /// The share that it completes.
    percent: i32,
    /// Workspaces on their way onto the digest, or back.
    under_way: i64,
    /// Up on it.
    up: i64,
    /// Failed on it, or on the way back.
    failed: i64,
    /// Stopped by somebody meanwhile; they count for nothing.
    left: i64,
    /// Back on what they ran before.
    restored: i64,
}

/// A rollout.
#[derive(Object)]
#[oai(rename = "Rollout")]
pub(crate) struct RolloutDetails {
    id: Uuid,
    runtime: String,
    digest: String,
    /// `running`, `held`, `rolling_back`, `done`, `aborted` or `rolled_back`.
    state: String,
    /// Why it is held, or was given up or taken back.
    #[oai(nullable)]
    reason: Option<String>,
    /// The ring that is taken, from 1.
    ring: i32,
    rings: Vec<RolloutRingState>,
    max_failures: i32,
    soak_seconds: i32,
    /// Since when all of the ring is up.
    #[oai(nullable)]
    soaking_since: Option<Timestamp>,
    /// The job that carries it out, or did last.
    #[oai(nullable)]
    job_id: Option<Uuid>,
    created_by: String,
    created_at: Timestamp,
    updated_at: Timestamp,
}

#[derive(ApiResponse)]
pub(crate) enum RolloutResponse {
    /// Its job does it.
    #[oai(status = 202)]
    Started(
        Json<RolloutDetails>,
        /// The job that does it.
        #[oai(header = "Location")]
        String,
    ),
}

pub(crate) struct RolloutsApi;

#[OpenApi(tag = "Tag::Images")]
impl RolloutsApi {
    /// Takes a digest to the workspaces of a runtime that are up on another one: restarts them ring by ring, waits until
    /// they are online, and lets each ring soak. More than `max_failures` of a ring failed or unhealthy hold it. The
    /// runtime is pinned when the last ring has soaked.
    #[oai(
        path = "/images/:runtime/rollouts",
        method = "post",
        operation_id = "create_rollout"
    )]
    async fn create_rollout(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        runtime: Path<String>,
        /// Makes the request safe to send again: a repetition with the same key and body gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
        body: JsonBody<CreateRolloutRequest>,
    ) -> ApiResult<Idempotent<RolloutResponse>> {
        let by = access.0.name();
        let digest = read_digest(&body.0.digest)?;
        let rings = body.0.rings()?;
        let reason = reason::check(body.0.reason)?;
        pinned_reference(&state.fleet, &runtime, &digest).ok_or_else(no_image)?;
        choosing_backend(&state)?;
        if state.fleet.config.image_local_override {
            return Err(ApiError::conflict(
                "WORKSPACE_IMAGE_LOCAL_OVERRIDE is set, so no start would take the digest",
            ));
        }
        let answered = key
            .once(&state, FAILED, async |tx| {
                let new = NewRollout {
                    runtime: &runtime,
                    digest: &digest,
                    rings,
                    max_failures: body.0.max_failures,
                    soak_seconds: body.0.soak_seconds,
                    by: &by,
                    reason: reason.as_deref(),
                };
                let begun = rollout::request(&mut *tx, new).await;
                started(tx, begun).await
            })
            .await?;
        Ok(poke(&state, answered))
    }

    /// Lets a held rollout go on: what had failed of its ring is restarted once more.
    #[oai(
        path = "/images/:runtime/rollouts/:rollout_id/resume",
        method = "post",
        operation_id = "resume_rollout"
    )]
    async fn resume_rollout(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        runtime: Path<String>,
        rollout_id: Path<Uuid>,
        /// Makes the request safe to send again: a repetition with the same key and body gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
        body: JsonBody<ChangeRequest>,
    ) -> ApiResult<Idempotent<RolloutResponse>> {
        let (by, reason) = (access.0.name(), body.0.reason()?);
        let answered = key
            .once(&state, FAILED, async |tx| {
                require_of(tx, rollout_id.0, &runtime).await?;
                let resumed = rollout::resume(&mut *tx, rollout_id.0, &by, reason.as_deref()).await;
                started(tx, resumed).await
            })
            .await?;
        Ok(poke(&state, answered))
    }

    /// Gives a rollout up. What it took stays on the new digest until the pin of the runtime is changed.
    #[oai(
        path = "/images/:runtime/rollouts/:rollout_id/abort",
        method = "post",
        operation_id = "abort_rollout"
    )]
    async fn abort_rollout(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        runtime: Path<String>,
        rollout_id: Path<Uuid>,
        body: JsonBody<ChangeRequest>,
    ) -> ApiResult<Json<RolloutDetails>> {
        let (by, reason) = (access.0.name(), body.0.reason()?);
        let mut tx = state.transaction(FAILED).await?;
        require_of(&mut tx, rollout_id.0, &runtime).await?;
        let rollout = lock_rollout(&mut tx, rollout_id.0).await.map_err(refuse)?;
        record_aborted(&mut tx, &rollout, &by, reason.as_deref())
            .await
            .map_err(refuse)?;
        let rollout = load_rollout(&mut tx, rollout.id).await.map_err(refuse)?;
        let details = RolloutDetails::load(&mut tx, rollout, FAILED).await?;
        tx.commit()
            .await
            .map_err(|error| ApiError::database(error, FAILED))?;
        state.bus.poke();
        Ok(Json(details))
    }

    /// Takes a rollout back: restarts what it took on what each ran before. A pin that it had set becomes what it was.
    #[oai(
        path = "/images/:runtime/rollouts/:rollout_id/rollback",
        method = "post",
        operation_id = "roll_back_rollout"
    )]
    async fn roll_back_rollout(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        runtime: Path<String>,
        rollout_id: Path<Uuid>,
        /// Makes the request safe to send again: a repetition with the same key and body gets the first answer.
        #[oai(name = "Idempotency-Key")]
        key: IdempotencyKey,
        body: JsonBody<ChangeRequest>,
    ) -> ApiResult<Idempotent<RolloutResponse>> {
        let (by, reason) = (access.0.name(), body.0.reason()?);
        let answered = key
            .once(&state, FAILED, async |tx| {
                require_of(tx, rollout_id.0, &runtime).await?;
                let back = rollout::roll_back(&mut *tx, rollout_id.0, &by, reason.as_deref()).await;
                started(tx, back).await
            })
            .await?;
        Ok(poke(&state, answered))
    }
}

impl CreateRolloutRequest {
    fn rings(&self) -> ApiResult<Vec<i32>> {
        let percents: Vec<i32> = self.rings.iter().map(|ring| ring.percent).collect();
        let rise = percents.windows(2).all(|pair| pair[0] < pair[1]);
        let fit = percents.iter().all(|percent| (1..=100).contains(percent));
        if percents.is_empty() || percents.len() > MOST_RINGS || !rise || !fit {
            return Err(ApiError::bad_request("invalid rings").detail(
                "1 to 20 rings, each with a percent of 1 to 100 that is higher than the one before",
            ));
        }
        if !(0..=MOST_FAILURES).contains(&self.max_failures) {
            return Err(ApiError::bad_request(
                "max_failures must be from 0 to 10000",
            ));
        }
        if !(0..=LONGEST_SOAK_SECONDS).contains(&self.soak_seconds) {
            return Err(ApiError::bad_request(
                "soak_seconds must be from 0 to 604800",
            ));
        }
        Ok(percents)
    }
}

/// Of another runtime it does not exist.
async fn require_of(tx: &mut PgConnection, id: Uuid, runtime: &str) -> ApiResult<()> {
    let rollout = load_rollout(tx, id).await.map_err(refuse)?;
    if rollout.template_name == runtime {
        return Ok(());
    }
    Err(refuse(RolloutError::Unknown))
}

async fn started(
    tx: &mut PgConnection,
    requested: Result<Requested, RequestError>,
) -> ApiResult<(RolloutResponse, Vec<String>)> {
    let requested = requested.map_err(refuse_request)?;
    let (queue, tenant) = (&requested.job.queue, deployment::TENANT);
    require_accepted(tx, queue, tenant, None, FAILED).await?;
    let details = RolloutDetails::load(tx, requested.rollout, FAILED).await?;
    let place = format!("/jobs/{}", requested.job.job_id);
    Ok((
        RolloutResponse::Started(Json(details), place),
        requested.pokes,
    ))
}

fn poke(
    state: &ApiState,
    (answer, pokes): (Idempotent<RolloutResponse>, Option<Vec<String>>),
) -> Idempotent<RolloutResponse> {
    if let Some(pokes) = pokes {
        state.poke(&pokes);
    }
    answer
}

fn refuse(error: RolloutError) -> ApiError {
    match error {
        RolloutError::Unknown => ApiError::not_found("rollout not found"),
        RolloutError::Open
        | RolloutError::State(_)
        | RolloutError::GoingBack
        | RolloutError::Overtaken => ApiError::conflict(error.to_string()),
        RolloutError::Fleet(error) => ApiError::fleet(error, FAILED),
    }
}

fn refuse_request(error: RequestError) -> ApiError {
    match error {
        RequestError::Rollout(error) => refuse(error),
        RequestError::Restart(ChangeRestartError::Fleet(error)) => ApiError::fleet(error, FAILED),
        RequestError::Restart(ChangeRestartError::Ledger(error)) | RequestError::Ledger(error) => {
            ApiError::ledger(error, FAILED)
        }
    }
}

impl RolloutDetails {
    pub(super) async fn load(
        conn: &mut PgConnection,
        rollout: Rollout,
        failed: &'static str,
    ) -> ApiResult<Self> {
        let rings = count_rings(conn, &rollout)
            .await
            .map_err(|error| ApiError::fleet(error, failed))?;
        Ok(Self {
            id: rollout.id,
            digest: shown_digest(&rollout.sha256_digest),
            state: rollout.state.as_str().to_owned(),
            reason: rollout.reason,
            ring: rollout.ring + 1,
            rings: rings.into_iter().map(RolloutRingState::from).collect(),
            max_failures: rollout.max_failures,
            soak_seconds: rollout.soak_seconds,
            soaking_since: rollout.soaking_since,
            job_id: rollout.job_id.map(|id| id.0),
            created_by: rollout.created_by,
            created_at: rollout.created_at,
            updated_at: rollout.updated_at,
            runtime: rollout.template_name,
        })
    }
}

impl From<RingCounts> for RolloutRingState {
    fn from(ring: RingCounts) -> Self {
        Self {
            percent: ring.percent,
            under_way: ring.under_way,
            up: ring.up,
            failed: ring.failed,
            left: ring.left,
            restored: ring.restored,
        }
    }
}
