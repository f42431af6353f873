//! The one layer over all routes. Whatever happens below, the answer that leaves here has a declared form.
//!
//! In this order: tenant guard, preflight, route and ids, rate limit by address, unknown query parameters,
//! credential, rate limit by credential, handler. Around it: errors of any kind become problems, panics become 500,
//! every answer gets its headers, one line of access log and its place in the metrics. Query strings, which may hold
//! credentials, appear in none of them. All of it happens in the trace the sender names, or in a new one.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use longshore_base::clock::Stopwatch;
use longshore_base::ids::random_uuid;
use longshore_ledger::TraceContext;
use poem::http::{HeaderValue, Method, StatusCode};
use poem::{Endpoint, IntoResponse as _, Request, Response};
use tracing::Instrument as _;

use crate::auth::{self, Verdict};
use crate::client;
use crate::context::RequestContext;
use crate::problem::{ApiError, ApiResult};
use crate::routes::{self, Matched};
use crate::state::ApiState;
use crate::{cors, rate_limit, security_headers, tenant_guard};

/// Wraps the handlers.
pub(crate) struct Gate<E> {
    handlers: E,
    state: Arc<ApiState>,
}

impl<E: Endpoint> Gate<E> {
    pub(crate) const fn new(handlers: E, state: Arc<ApiState>) -> Self {
        Self { handlers, state }
    }

    async fn answer(
        &self,
        context: &Arc<RequestContext>,
        mut request: Request,
    ) -> ApiResult<Response> {
        let state = &self.state;
        tenant_guard::check(&state.config, &request)?;
        if let Some(answer) = cors::preflight(&request) {
            return Ok(answer);
        }
        let found = routes::find(
            request.method(),
            request.uri().path(),
            state.config.test_tokens,
        );
        let bearer = auth::bearer(&request).map(auth::bearer_subject);
        let by_address = found.as_ref().map_or(true, |it| it.route.by_address);
        context.arrive(&state.limiter, bearer, by_address)?;
        let matched = found?;
        refuse_unknown_query(&matched, &request)?;
        match auth::authenticate(state, &matched, &request).await? {
            Verdict::Open | Verdict::Later => {}
            Verdict::Granted(granted) => context.grant(&state.limiter, granted)?,
        }
        context.set_matched(matched);
        request.extensions_mut().insert(context.clone());
        request.extensions_mut().insert(state.clone());
        match self.handlers.call(request).await {
            Ok(answer) => Ok(answer.into_response()),
            Err(error) => Err(ApiError::from_poem(error)),
        }
    }
}

impl<E: Endpoint> Endpoint for Gate<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> poem::Result<Response> {
        let trace = trace_of(&request);
        // No filter that lets a line through takes its span away.
        let span = tracing::error_span!("request", trace.id = trace.trace_id());
        let served = trace.scope(self.serve(request)).instrument(span).await;
        Ok(served)
    }
}

impl<E: Endpoint> Gate<E> {
    async fn serve(&self, request: Request) -> Response {
        let took = Stopwatch::start();
        let config = &self.state.config;
        let address = client::client_address(&request, &config.trusted_proxies);
        let context = Arc::new(RequestContext::new(
            request_id(&request, config),
            address,
            config.dev_mode,
        ));
        let origin = cors::allowed_origin(&request, &config.cors_origins);
        let preflight = cors::preflight(&request).is_some();
        let method = request.method().clone();
        let path = request.uri().path().to_owned();

        let mut response = match settle(self.answer(&context, request)).await {
            Ok(response) => response,
            Err(error) => {
                log_failure(&error, &context, &path);
                error.to_response()
            }
        };

        let headers = response.headers_mut();
        cors::decorate(headers, origin, preflight);
        security_headers::decorate(headers);
        match context.standing() {
            Some(standing) => standing.decorate(headers),
            None if context.unlimited => rate_limit::decorate_unlimited(headers),
            None => {}
        }
        if let Ok(id) = HeaderValue::from_str(&context.request_id) {
            headers.insert("x-request-id", id);
        }
        let status = response.status();
        self.state.http_metrics.record(
            &method,
            routes::pattern(&path),
            status.as_u16(),
            took.elapsed(),
        );
        log_access(&context, &method, &path, status, took);
        response
    }
}

/// The trace that the sender says the request is part of, else a new one. Two such headers say nothing.
fn trace_of(request: &Request) -> TraceContext {
    let mut told = request.headers().get_all("traceparent").iter();
    match (told.next(), told.next()) {
        (Some(told), None) => told.to_str().ok().and_then(TraceContext::parse),
        _ => None,
    }
    .unwrap_or_else(TraceContext::begin)
}

/// Waits for an answer; a panic on the way is an error like any other. The panic hook has written where and why.
async fn settle(answer: impl Future<Output = ApiResult<Response>>) -> ApiResult<Response> {
    AssertUnwindSafe(answer)
        .catch_unwind()
        .await
        .unwrap_or_else(|_| Err(ApiError::internal("internal error", "a handler panicked")))
}

/// On routes that no older client knows, a parameter nobody reads is a mistake of the caller.
fn refuse_unknown_query(matched: &Matched, request: &Request) -> ApiResult<()> {
    let (Some(known), Some(query)) = (matched.route.query, request.uri().query()) else {
        return Ok(());
    };
    let mut seen = Vec::new();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        if !known.contains(&name.as_ref()) {
            return Err(
                ApiError::bad_request("unknown query parameter").detail(format!(
                    "unknown query parameter `{name}`; known here: {}",
                    if known.is_empty() {
                        "none".to_owned()
                    } else {
                        known.join(", ")
                    }
                )),
            );
        }
        if seen.contains(&name) {
            return Err(ApiError::bad_request("repeated query parameter")
                .detail(format!("query parameter `{name}` is given twice")));
        }
        // Postgres stores no such text, so nothing can be found by it.
        if value.contains('\0') {
            return Err(
                ApiError::bad_request(format!("invalid {name}")).detail(format!(
                    "query parameter `{name}` contains the character NUL"
                )),
            );
        }
        seen.push(name);
    }
    Ok(())
}

/// A proxy of ours may have named the request; anybody else's name is not taken over.
fn request_id(request: &Request, config: &crate::ApiConfig) -> String {
    let fits = |id: &&str| {
        (1..=64).contains(&id.len())
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    if client::behind_trusted_proxy(request, &config.trusted_proxies)
        && let Some(id) = request.header("x-request-id").filter(fits)
    {
        return id.to_owned();
    }
    random_uuid().simple().to_string()
}

fn log_failure(error: &ApiError, context: &RequestContext, path: &str) {
    let status = error.status();
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::error!(
            request.id = context.request_id,
            http.path = path,
            error = %error,
            causes = error.causes(),
            "request failed"
        );
    } else if status.is_server_error() {
        tracing::warn!(
            request.id = context.request_id,
            http.path = path,
            error = %error,
            causes = error.causes(),
            "request could not be served"
        );
    }
}

fn log_access(
    context: &RequestContext,
    method: &Method,
    path: &str,
    status: StatusCode,
    took: Stopwatch,
) {
    let caller = context
        .granted()
        .map_or_else(|| "-".to_owned(), |granted| granted.principal.name());
    let address = context
        .address
        .map_or_else(|| "-".to_owned(), |address| address.to_string());
    tracing::info!(
        request.id = context.request_id,
        http.method = %method,
        http.path = path,
        http.status = status.as_u16(),
        took_ms = took.elapsed_ms(),
        client.address = address,
        caller,
        "request"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_internal_error_that_tells_nothing() {
        let panics = async { panic!("secret detail") };
        let error = settle(panics).await.unwrap_err();
        let response = error.to_response();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let text = response.into_body().into_string().await.unwrap();
        assert!(text.contains("\"error\":\"internal error\""), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}
