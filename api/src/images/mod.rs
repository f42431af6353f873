//! What the runtimes' workspaces start on: pins, who runs what, and rollouts (`spec: operations` §6).

mod rollouts;

use longshore_backends::{Backend, BackendError, Delivers, Unwatched};
use longshore_base::{Timestamp, WorkspaceId};
use longshore_fleet::images::{
    ImageUser, OnDigest, Pin, PinError, RuntimeImage, clear_pin, find_newest_rollout,
    list_image_users, list_runtime_images, normalise_digest, pinned_reference, runtime_image,
    set_pin, shown_digest,
};
use poem::http::StatusCode;
use poem_openapi::param::{Path, Query};
use poem_openapi::payload::Json;
use poem_openapi::{Object, OpenApi};
use serde::Deserialize;
use sqlx::PgConnection;
use std::sync::Arc;
use uuid::Uuid;

pub(crate) use rollouts::RolloutsApi;

use self::rollouts::RolloutDetails;
use crate::auth::AdminAccess;
use crate::body::{JsonBody, JsonRequest};
use crate::document::Tag;
use crate::paging;
use crate::problem::{ApiError, ApiResult};
use crate::reason;
use crate::state::{ApiState, Shared};

const FAILED: &str = "query failed";
const NOT_PINNED: &str = "failed to change the pin";
/// As filter: of which no digest is known.
const UNKNOWN: &str = "none";

/// A pin that is in force.
#[derive(Object)]
pub(crate) struct ImagePin {
    /// `sha256:` and 64 hexadecimal digits.
    digest: String,
    #[oai(nullable)]
    note: Option<String>,
    #[oai(nullable)]
    set_by: Option<String>,
    set_at: Timestamp,
}

/// So many workspaces on one digest.
#[derive(Object)]
#[oai(rename = "ImageDigestCount")]
pub(crate) struct DigestUse {
    /// Null: nothing was started yet, or no registry knows what was.
    #[oai(nullable)]
    digest: Option<String>,
    count: i64,
}

/// The image of a runtime, and who runs what of it.
#[derive(Object)]
#[oai(rename = "RuntimeImage")]
pub(crate) struct ImageDetails {
    runtime: String,
    /// What starts take without a pin.
    image: String,
    /// What they take instead; null without one.
    #[oai(nullable)]
    pin: Option<ImagePin>,
    /// The pin before the last change; null where there was none.
    #[oai(nullable)]
    previous_pin: Option<String>,
    /// The runtime's workspaces by what they were last started on, most first.
    workspaces: Vec<DigestUse>,
    /// The open rollout, else the last one.
    #[oai(nullable)]
    rollout: Option<RolloutDetails>,
}

/// Part of the list of images, by runtime.
#[derive(Object)]
#[oai(rename = "RuntimeImageList")]
pub(crate) struct ImageList {
    items: Vec<ImageDetails>,
    /// Give it back as `cursor` for the next part; null at the end.
    #[oai(nullable)]
    next_cursor: Option<String>,
}

/// A pin to be set.
#[derive(Deserialize, Object)]
#[serde(deny_unknown_fields)]
pub(crate) struct PinImageRequest {
    /// `sha256:` and 64 hexadecimal digits.
    digest: String,
    /// Why; at most 500 characters.
    #[oai(nullable)]
    note: Option<String>,
}

impl JsonRequest for PinImageRequest {}

/// A workspace and what it was last started on.
#[derive(Object)]
#[oai(rename = "ImageUser")]
pub(crate) struct ImageUserDetails {
    id: Uuid,
    name: String,
    status: String,
    /// Null: nothing was started yet, or no registry knows what was.
    #[oai(nullable)]
    digest: Option<String>,
    #[oai(nullable)]
    engine_id: Option<String>,
}

/// Part of the list of an image's users, by id.
#[derive(Object)]
#[oai(rename = "ImageUserList")]
pub(crate) struct ImageUserPage {
    items: Vec<ImageUserDetails>,
    /// Give it back as `cursor` for the next part; null at the end.
    #[oai(nullable)]
    next_cursor: Option<Uuid>,
}

pub(crate) struct ImagesApi;

#[OpenApi(tag = "Tag::Images")]
impl ImagesApi {
    /// Lists the images of all runtimes: pins, who runs what, and rollouts.
    #[oai(path = "/images", method = "get", operation_id = "list_images")]
    async fn list_images(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
        /// At most so many, 1 to 500.
        limit: Query<Option<i64>>,
        cursor: Query<Option<String>>,
    ) -> ApiResult<Json<ImageList>> {
        let limit = paging::limit(limit.0)?;
        let mut conn = state.connection(FAILED).await?;
        let all = list_runtime_images(&mut conn, &state.fleet)
            .await
            .map_err(|error| ApiError::fleet(error, FAILED))?;
        let (part, next_cursor) = paging::part(
            all,
            |image| image.runtime.clone(),
            limit,
            cursor.0.as_deref(),
        );
        let mut items = Vec::with_capacity(part.len());
        for image in part {
            items.push(details(&mut conn, image).await?);
        }
        Ok(Json(ImageList { items, next_cursor }))
    }

    /// Pins a runtime to a digest: every start from now on takes it. Refused with 422 when the registry does not know it,
    /// which one engine finds out by fetching it; that may take minutes.
    #[oai(
        path = "/images/:runtime/pin",
        method = "put",
        operation_id = "update_image_pin"
    )]
    async fn update_image_pin(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        runtime: Path<String>,
        body: JsonBody<PinImageRequest>,
    ) -> ApiResult<Json<ImageDetails>> {
        let digest = read_digest(&body.0.digest)?;
        let note = reason::check(body.0.note)?;
        let reference = pinned_reference(&state.fleet, &runtime, &digest).ok_or_else(no_image)?;
        let backend = choosing_backend(&state)?;
        backend
            .fetch_image(&reference, &Unwatched)
            .await
            .map_err(|error| refuse_fetch(error, &digest))?;
        let mut tx = state.transaction(NOT_PINNED).await?;
        set_pin(
            &mut tx,
            &runtime,
            &digest,
            note.as_deref(),
            &access.0.name(),
        )
        .await
        .map_err(refuse_pin)?;
        tx.commit()
            .await
            .map_err(|error| ApiError::database(error, NOT_PINNED))?;
        state.bus.poke();
        Ok(Json(load(&state, &runtime).await?))
    }

    /// Takes the pin of a runtime away: starts follow the moving tag again.
    #[oai(
        path = "/images/:runtime/pin",
        method = "delete",
        operation_id = "delete_image_pin"
    )]
    async fn delete_image_pin(
        &self,
        access: AdminAccess,
        state: Shared<'_>,
        runtime: Path<String>,
        /// Why; at most 500 characters.
        reason: Query<Option<String>>,
    ) -> ApiResult<Json<ImageDetails>> {
        let reason = reason::check(reason.0)?;
        let mut tx = state.transaction(NOT_PINNED).await?;
        clear_pin(&mut tx, &runtime, reason.as_deref(), &access.0.name())
            .await
            .map_err(refuse_pin)?
            .ok_or_else(|| ApiError::not_found("pin not found"))?;
        tx.commit()
            .await
            .map_err(|error| ApiError::database(error, NOT_PINNED))?;
        state.bus.poke();
        Ok(Json(load(&state, &runtime).await?))
    }

    /// Lists the workspaces of a runtime with what each was last started on: who still runs the old one.
    #[oai(
        path = "/images/:runtime/workspaces",
        method = "get",
        operation_id = "list_image_workspaces"
    )]
    async fn list_image_workspaces(
        &self,
        _access: AdminAccess,
        state: Shared<'_>,
        runtime: Path<String>,
        /// Only those on this digest, or `none`: of which no digest is known.
        digest: Query<Option<String>>,
        /// At most so many, 1 to 500.
        limit: Query<Option<i64>>,
        cursor: Query<Option<Uuid>>,
    ) -> ApiResult<Json<ImageUserPage>> {
        let limit = paging::limit(limit.0)?;
        let on = match digest.0.as_deref() {
            None => OnDigest::Any,
            Some(UNKNOWN) => OnDigest::Unknown,
            Some(digest) => OnDigest::Is(read_digest(digest)?),
        };
        if runtime_image(&state.fleet, &runtime).is_none() {
            return Err(no_image());
        }
        let mut conn = state.connection(FAILED).await?;
        let after = cursor.0.map(WorkspaceId);
        let mut found = list_image_users(&mut conn, &runtime, &on, after, limit + 1)
            .await
            .map_err(|error| ApiError::fleet(error, FAILED))?;
        let wanted = usize::try_from(limit).unwrap_or(0);
        let has_more = found.len() > wanted;
        found.truncate(wanted);
        let next_cursor = found.last().filter(|_| has_more).map(|user| user.id.0);
        Ok(Json(ImageUserPage {
            items: found.into_iter().map(ImageUserDetails::from).collect(),
            next_cursor,
        }))
    }
}

async fn load(state: &ApiState, runtime: &str) -> ApiResult<ImageDetails> {
    let mut conn = state.connection(FAILED).await?;
    let all = list_runtime_images(&mut conn, &state.fleet)
        .await
        .map_err(|error| ApiError::fleet(error, FAILED))?;
    let image = all.into_iter().find(|image| image.runtime == runtime);
    details(&mut conn, image.ok_or_else(no_image)?).await
}

async fn details(conn: &mut PgConnection, image: RuntimeImage) -> ApiResult<ImageDetails> {
    let newest = find_newest_rollout(&mut *conn, &image.runtime)
        .await
        .map_err(|error| ApiError::fleet(error, FAILED))?;
    let rollout = match newest {
        Some(rollout) => Some(RolloutDetails::load(conn, rollout, FAILED).await?),
        None => None,
    };
    Ok(ImageDetails {
        runtime: image.runtime,
        image: image.image,
        pin: image.pin.map(ImagePin::from),
        previous_pin: image.previous_pin.as_deref().map(shown_digest),
        workspaces: image
            .digests
            .into_iter()
            .map(|on| DigestUse {
                digest: on.digest.as_deref().map(shown_digest),
                count: on.count,
            })
            .collect(),
        rollout,
    })
}

fn no_image() -> ApiError {
    ApiError::not_found("no such runtime").detail("GET /images lists those that have an image")
}

/// The 64 digits of a digest.
fn read_digest(text: &str) -> ApiResult<String> {
    let digest = text.strip_prefix("sha256:").and_then(normalise_digest);
    digest.ok_or_else(|| {
        ApiError::bad_request("invalid digest")
            .detail("a digest is sha256: and 64 hexadecimal digits")
    })
}

/// Where workspaces run, if what they run is ours to choose.
fn choosing_backend(state: &ApiState) -> ApiResult<Arc<dyn Backend>> {
    let backend = state
        .backends
        .choose()
        .map_err(|_| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "provisioner not available"))?;
    if backend.manner().delivers == Delivers::Environment {
        return Err(ApiError::conflict(
            "images are chosen by the control plane that runs the workspaces",
        ));
    }
    Ok(backend)
}

fn refuse_fetch(error: BackendError, digest: &str) -> ApiError {
    if error.is_unknown_image() {
        let text = "the registry does not know the digest";
        return ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, text)
            .detail(format!("{} is not in it", shown_digest(digest)))
            .because(error);
    }
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "the digest could not be fetched from its registry",
    )
    .detail("the registry, the engine, or the login for it did not let the image be fetched; the server's log says why")
    .because(error)
}

fn refuse_pin(error: PinError) -> ApiError {
    match error {
        PinError::RolloutOpen => ApiError::conflict(error.to_string()),
        PinError::Fleet(error) => ApiError::fleet(error, NOT_PINNED),
    }
}

impl From<Pin> for ImagePin {
    fn from(pin: Pin) -> Self {
        Self {
            digest: shown_digest(&pin.digest),
            note: pin.note,
            set_by: pin.set_by,
            set_at: pin.set_at,
        }
    }
}

impl From<ImageUser> for ImageUserDetails {
    fn from(user: ImageUser) -> Self {
        Self {
            id: user.id.0,
            name: user.name,
            status: user.status.to_string(),
            digest: user.digest.as_deref().map(shown_digest),
            engine_id: user.engine_id,
        }
    }
}
