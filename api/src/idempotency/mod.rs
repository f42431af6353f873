//! POSTs that start work may be repeated (`spec: rest-api` §1.9): with an `Idempotency-Key` the work is done once, and
//! a repetition gets the first answer again, to the byte.
//!
//! A handler takes [`IdempotencyKey`] as a parameter before its body, runs its one transaction through
//! [`IdempotencyKey::once`], and returns what that gives it; its route says [`Keyed`](crate::routes::Repeat::Keyed) in
//! the table. What comes after the commit, pokes above all, belongs behind `once`: a replay has nothing to poke for.
//!
//! A handler that waits for its job keeps the answer that names it, waits after the commit, and gives what came of that
//! in its place; so does a repetition, which finds the job in the kept answer.
//!
//! Which answers are kept is said by [`is_kept`]. How, and why nothing can be left behind by a crash, stands in
//! `longshore_fleet::idempotency`.

mod key;

use std::marker::PhantomData;

use bytes::Bytes;
use longshore_base::JobId;
use longshore_fleet::idempotency::{Claim, KeptAnswer, KeyedRequest, claim};
use poem::http::header::LOCATION;
use poem::http::{HeaderName, HeaderValue, StatusCode};
use poem::{IntoResponse, Request, RequestBody, Response};
use poem_openapi::registry::{MetaHeader, MetaParamIn, MetaResponses, MetaSchemaRef, Registry};
use poem_openapi::types::Type as _;
use poem_openapi::{ApiExtractor, ApiExtractorType, ApiResponse, ExtractParamOptions};
use sqlx::{PgConnection, Postgres, Transaction};

use crate::body;
use crate::context::RequestContext;
use crate::problem::{ApiError, ApiResult};
use crate::state::ApiState;

const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The key of a request, if it has one, with all that tells it from other requests.
pub(crate) struct IdempotencyKey(Option<Presented>);

struct Presented {
    key: String,
    caller: String,
    method: String,
    route: String,
    query: String,
    body: Bytes,
}

/// An answer of `R` that may be one given before.
pub(crate) struct Idempotent<R> {
    response: Response,
    of: PhantomData<fn() -> R>,
}

impl IdempotencyKey {
    /// Of a method that takes no key, where one handler's work is another's too.
    pub(crate) const fn none() -> Self {
        Self(None)
    }

    /// Does the work in one transaction and commits it, unless it was done before. `work` answers with what the client
    /// gets and with what the caller needs after the commit, which is `None` for an answer that was given before.
    /// `failed` is what the client hears when the database does not do its part.
    ///
    /// # Errors
    /// Those of `work`; 409 while a request with this key is under way; 422 for a key that was used for another one.
    pub(crate) async fn once<R, T>(
        self,
        state: &ApiState,
        failed: &'static str,
        work: impl AsyncFnOnce(&mut PgConnection) -> ApiResult<(R, T)>,
    ) -> ApiResult<(Idempotent<R>, Option<T>)>
    where
        R: IntoResponse,
    {
        let mut tx = state.transaction(failed).await?;
        let Some(presented) = self.0 else {
            let (answer, done) = work(&mut tx).await?;
            commit(tx, failed).await?;
            return Ok((Idempotent::new(answer.into_response()), Some(done)));
        };
        let fleet = |error| ApiError::fleet(error, failed);
        let keys = &state.fleet.keys;
        let fresh = match claim(&mut tx, keys, &presented.request()).await {
            Ok(Claim::Fresh(fresh)) => fresh,
            found => {
                let_go(tx).await;
                let replay = replay(found.map_err(fleet)?)?;
                return Ok((Idempotent::new(replay), None));
            }
        };
        let ttl = state.config.idempotency_ttl;
        match work(&mut tx).await {
            Ok((answer, done)) => {
                let (kept, response) = keepable(answer.into_response()).await?;
                fresh.keep(&mut tx, keys, &kept, ttl).await.map_err(fleet)?;
                commit(tx, failed).await?;
                Ok((Idempotent::new(response), Some(done)))
            }
            Err(error) if is_kept(error.status()) => {
                fresh.undo_work(&mut tx).await.map_err(fleet)?;
                let (kept, _) = keepable(error.to_response()).await?;
                fresh.keep(&mut tx, keys, &kept, ttl).await.map_err(fleet)?;
                commit(tx, failed).await?;
                Err(error)
            }
            Err(error) => {
                let_go(tx).await;
                Err(error)
            }
        }
    }
}

/// Whether a refusal is kept: those that come from the state of things, which the repetition could find changed. What
/// is wrong in the request itself is found wrong again, and a refused caller or a fault of ours is to be tried again.
fn is_kept(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::NOT_FOUND
            | StatusCode::CONFLICT
            | StatusCode::GONE
            | StatusCode::UNPROCESSABLE_ENTITY
    )
}

fn replay(found: Claim) -> ApiResult<Response> {
    match found {
        Claim::Answered(kept) => again(kept),
        Claim::InProgress => Err(ApiError::conflict(
            "a request with this Idempotency-Key is still being processed",
        )
        .retry_after(1)),
        Claim::OtherRequest => Err(ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "this Idempotency-Key was used for another request",
        )
        .detail("repeat a request with the same query and body to the byte, or give a new key")),
        Claim::Fresh(_) => Err(unusable("a key that nobody used")),
    }
}

fn again(kept: KeptAnswer) -> ApiResult<Response> {
    let status = StatusCode::from_u16(kept.status).map_err(unusable)?;
    let mut response = Response::builder().status(status).body(kept.body);
    for (name, value) in kept.headers {
        let name: HeaderName = name.parse().map_err(unusable)?;
        let value: HeaderValue = value.parse().map_err(unusable)?;
        response.headers_mut().append(name, value);
    }
    response
        .headers_mut()
        .insert(REPLAYED, HeaderValue::from_static("true"));
    Ok(response)
}

fn unusable(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ApiError {
    ApiError::internal("the kept answer cannot be given again", why)
}

/// An answer to keep, and the same to give.
async fn keepable(response: Response) -> ApiResult<(KeptAnswer, Response)> {
    let (head, body) = response.into_parts();
    let body = body.into_bytes().await.map_err(unkept)?;
    let headers = head
        .headers
        .iter()
        .map(|(name, value)| Ok((name.to_string(), value.to_str()?.to_owned())))
        .collect::<Result<_, poem::http::header::ToStrError>>()
        .map_err(unkept)?;
    let kept = KeptAnswer {
        status: head.status.as_u16(),
        headers,
        body: body.to_vec(),
    };
    Ok((kept, Response::from_parts(head, body.into())))
}

fn unkept(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ApiError {
    ApiError::internal("the answer cannot be kept", why)
}

async fn commit(tx: Transaction<'static, Postgres>, failed: &'static str) -> ApiResult<()> {
    tx.commit()
        .await
        .map_err(|error| ApiError::database(error, failed))
}

/// Ends a transaction now. One that is dropped ends a moment later, and would hold the key against a repetition.
async fn let_go(tx: Transaction<'static, Postgres>) {
    if let Err(error) = tx.rollback().await {
        tracing::debug!(%error, "a transaction ended with its connection");
    }
}

impl Presented {
    fn request(&self) -> KeyedRequest<'_> {
        KeyedRequest {
            caller: &self.caller,
            method: &self.method,
            route: &self.route,
            query: &self.query,
            key: &self.key,
            body: &self.body,
        }
    }
}

impl<'a> ApiExtractor<'a> for IdempotencyKey {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::Parameter];
    type ParamType = ();
    type ParamRawType = ();

    fn param_in() -> Option<MetaParamIn> {
        Some(MetaParamIn::Header)
    }

    fn param_schema_ref() -> Option<MetaSchemaRef> {
        Some(String::schema_ref())
    }

    /// Reads the body and puts it back for whoever parses it, and knows how long it may be.
    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _options: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let Some(key) = key::find(request.headers())? else {
            return Ok(Self(None));
        };
        let granted = RequestContext::of(request)?
            .granted()
            .ok_or_else(|| ApiError::internal("internal error", "a keyed route without caller"))?;
        let bytes = body::read(request, body.take()?, body::FILES_LIMIT).await?;
        *body = RequestBody::new(bytes.clone().into());
        Ok(Self(Some(Presented {
            key,
            caller: granted.principal.name(),
            method: request.method().to_string(),
            // Ids may be written in either case.
            route: request.uri().path().to_ascii_lowercase(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            body: bytes,
        })))
    }
}

impl<R> Idempotent<R> {
    const fn new(response: Response) -> Self {
        Self {
            response,
            of: PhantomData,
        }
    }
}

impl<R: IntoResponse> Idempotent<R> {
    /// The job that the answer names.
    pub(crate) fn job(&self) -> Option<JobId> {
        let location = self.response.headers().get(LOCATION)?.to_str().ok()?;
        location.strip_prefix("/jobs/")?.parse().ok()
    }

    /// What a wait for that job has led to, in the place of the answer that is kept. It says as that one does whether it
    /// is one given before.
    pub(crate) fn replaced_by(self, answer: R) -> Self {
        let mut response = answer.into_response();
        if let Some(replayed) = self.response.headers().get(REPLAYED) {
            response.headers_mut().insert(REPLAYED, replayed.clone());
        }
        Self::new(response)
    }
}

impl<R> Idempotent<R> {
    /// The kept answer, with the status of work that is done instead of one that is under way.
    pub(crate) fn into_ok(mut self) -> Self {
        self.response.set_status(StatusCode::OK);
        self
    }
}

impl<R> IntoResponse for Idempotent<R> {
    fn into_response(self) -> Response {
        self.response
    }
}

impl<R: ApiResponse> ApiResponse for Idempotent<R> {
    fn meta() -> MetaResponses {
        let mut meta = R::meta();
        for response in &mut meta.responses {
            response.headers.push(MetaHeader {
                name: "Idempotent-Replayed".to_owned(),
                description: Some(
                    "`true` on an answer that was given before to the same request with this key."
                        .to_owned(),
                ),
                required: false,
                deprecated: false,
                schema: bool::schema_ref(),
            });
        }
        meta
    }

    fn register(registry: &mut Registry) {
        R::register(registry);
    }
}
