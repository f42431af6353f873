//! Every route and who may call it, in one table.
//!
//! The gate looks a request up here before anything else happens to it: what is not in the table is answered 404,
//! whatever was mounted, and a handler gets its caller only through the class that stands here. A test compares the
//! table with the API description, both ways, and asks every route with every kind of credential.

use longshore_base::{JobId, WorkspaceId};
use poem::http::Method;

use self::Repeat::{Harmless, Keyed};
use crate::problem::{ApiError, ApiResult};

/// Who may call a route (`spec: rest-api` §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Anybody. Only in [`OPEN_ROUTES`].
    Open,
    /// An operator: admin or organisation token.
    Admin,
    /// The workspace named in the path, or an operator.
    Workspace,
    /// As [`Class::Workspace`], or another workspace that may talk to it.
    Related,
    /// The workspace named in the path by its own token, and nobody in its stead.
    Own,
    /// An operator, or the workspace that the job is about.
    Job,
    /// As [`Class::Workspace`], or whoever was the workspace before it was removed (§6.3.5).
    State,
    /// The agent of the workspace named in the body (§6.4.1); judged by the handler, which reads the body.
    Registry,
    /// A workspace that names itself in `X-Workspace-ID`, or an operator.
    Caller,
    /// Whoever may send a message to the workspace in the path (§6.5.1).
    Message,
    /// Whoever may listen to events (§5.2).
    Socket,
    /// The admin token itself, and only where test tokens are open (§6.14.3); elsewhere there is no such route.
    TestToken,
}

/// The methods routes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "they are what they say")]
pub enum Verb {
    Get,
    Post,
    Put,
    Patch,
    Delete,
}

impl Verb {
    /// As HTTP writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// What a POST that is sent again would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Start its work twice; so it takes an `Idempotency-Key`.
    Keyed,
    /// It starts no work, or has another way to know a repetition: this one. It ignores a key.
    Harmless(&'static str),
}

/// One route.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// Its method.
    pub verb: Verb,
    /// Its path, as in the API description.
    pub path: &'static str,
    /// Who may call it.
    pub class: Class,
    /// All query parameters it knows, where any other is an error; `None` ignores unknown ones.
    pub query: Option<&'static [&'static str]>,
    /// Of every POST, and of nothing else.
    pub repeat: Option<Repeat>,
    /// Callers without a good credential are counted by address. Off where a whole fleet behind one address must get through.
    pub by_address: bool,
}

const fn route(verb: Verb, path: &'static str, class: Class) -> Route {
    Route {
        verb,
        path,
        class,
        query: None,
        repeat: None,
        by_address: true,
    }
}

const fn post(path: &'static str, class: Class, repeat: Repeat) -> Route {
    Route {
        repeat: Some(repeat),
        ..route(Verb::Post, path, class)
    }
}

const fn open(verb: Verb, path: &'static str) -> Route {
    route(verb, path, Class::Open)
}

/// Of changes that set something.
const STAYS_SO: Repeat = Harmless("what it sets stays so");

impl Route {
    const fn strict(self, query: &'static [&'static str]) -> Self {
        Self {
            query: Some(query),
            ..self
        }
    }

    const fn outside_address_limit(self) -> Self {
        Self {
            by_address: false,
            ..self
        }
    }
}

/// The routes that want no credential. This list is the whole of it.
pub const OPEN_ROUTES: &[Route] = &[
    open(Verb::Get, "/health").outside_address_limit(),
    open(Verb::Get, "/livez").outside_address_limit(),
    open(Verb::Get, "/readyz")
        .strict(&["verbose"])
        .outside_address_limit(),
    open(Verb::Get, "/openapi.json"),
    open(Verb::Get, "/docs"),
    post(
        "/registry/check-access",
        Class::Open,
        Harmless("it only looks"),
    ),
];

/// The routes that want one.
pub const GUARDED_ROUTES: &[Route] = &[
    route(Verb::Get, "/metrics", Class::Admin),
    post("/workspaces", Class::Admin, Keyed),
    route(Verb::Get, "/workspaces", Class::Admin),
    route(Verb::Get, "/workspaces/{id}", Class::Related),
    route(Verb::Patch, "/workspaces/{id}", Class::Workspace),
    route(Verb::Delete, "/workspaces/{id}", Class::Admin),
    post("/workspaces/{id}/restart", Class::Workspace, Keyed),
    post("/workspaces/{id}/pause", Class::Workspace, Keyed),
    post("/workspaces/{id}/resume", Class::Workspace, Keyed),
    post("/workspaces/{id}/hibernate", Class::Workspace, Keyed),
    post("/workspaces/{id}/expand", Class::Workspace, Keyed),
    post("/workspaces/{id}/collapse", Class::Workspace, Keyed),
    route(Verb::Get, "/workspaces/{id}/state", Class::State),
    route(Verb::Get, "/workspaces/{id}/logs", Class::Workspace)
        .strict(&["tail", "since", "follow"]),
    route(Verb::Get, "/workspaces/{id}/console", Class::Admin).strict(&[]),
    route(Verb::Get, "/workspaces/{id}/jobs", Class::Workspace).strict(&["limit", "cursor"]),
    route(
        Verb::Get,
        "/workspaces/{id}/events/stream",
        Class::Workspace,
    ),
    route(Verb::Get, "/workspaces/{id}/secrets", Class::Workspace),
    post("/workspaces/{id}/secrets", Class::Workspace, Keyed),
    route(Verb::Put, "/workspaces/{id}/secrets", Class::Workspace),
    // Before the one with a name, which has the same shape.
    route(Verb::Get, "/workspaces/{id}/secrets/values", Class::Own),
    route(
        Verb::Delete,
        "/workspaces/{id}/secrets/{key}",
        Class::Workspace,
    ),
    route(Verb::Get, "/workspaces/{id}/model", Class::Workspace),
    route(Verb::Put, "/workspaces/{id}/model", Class::Workspace),
    route(Verb::Get, "/workspaces/{id}/provider", Class::Workspace),
    route(Verb::Put, "/workspaces/{id}/provider", Class::Workspace),
    route(Verb::Get, "/settings/secrets", Class::Admin),
    post("/settings/secrets", Class::Admin, Keyed),
    route(Verb::Put, "/settings/secrets", Class::Admin),
    route(Verb::Delete, "/settings/secrets/{key}", Class::Admin),
    route(Verb::Get, "/admin/secrets", Class::Admin),
    post("/admin/secrets", Class::Admin, Keyed),
    route(Verb::Delete, "/admin/secrets/{key}", Class::Admin),
    route(Verb::Get, "/templates", Class::Admin),
    route(Verb::Get, "/templates/problems", Class::Admin).strict(&["limit", "cursor"]),
    post(
        "/templates/import",
        Class::Admin,
        Harmless("it is told that there is one of this name"),
    ),
    route(Verb::Get, "/bundles/export/{id}", Class::Admin),
    post("/bundles/import", Class::Admin, Keyed),
    route(Verb::Get, "/org/templates", Class::Admin),
    post("/org/import", Class::Admin, Keyed),
    post("/secrets/rotate-key", Class::Admin, Keyed).strict(&[]),
    post("/secrets/validate", Class::Admin, Harmless("it only looks")),
    route(
        Verb::Get,
        "/settings/secrets/{key}/dependents",
        Class::Admin,
    ),
    route(
        Verb::Get,
        "/workspaces/{id}/secrets/{key}/dependents",
        Class::Workspace,
    ),
    route(Verb::Get, "/workspaces/{id}/tokens", Class::Workspace),
    post("/workspaces/{id}/tokens", Class::Workspace, Keyed),
    route(
        Verb::Delete,
        "/workspaces/{id}/tokens/{token_id}",
        Class::Workspace,
    ),
    route(Verb::Get, "/org/tokens", Class::Admin),
    post("/org/tokens", Class::Admin, Keyed),
    route(Verb::Delete, "/org/tokens/{token_id}", Class::Admin),
    route(
        Verb::Get,
        "/admin/workspaces/{id}/test-token",
        Class::TestToken,
    ),
    post(
        "/workspaces/{id}/a2a",
        Class::Message,
        Harmless("the agent decides, by the messageId in the message"),
    ),
    post(
        "/registry/register",
        Class::Registry,
        Harmless("it says where the agent is, which stays so"),
    )
    .outside_address_limit(),
    post(
        "/registry/heartbeat",
        Class::Registry,
        Harmless("one beat more"),
    )
    .outside_address_limit(),
    post(
        "/registry/update-card",
        Class::Registry,
        Harmless("it sets the card, which stays so"),
    ),
    route(Verb::Get, "/registry/discover/{id}", Class::Caller),
    route(Verb::Get, "/registry/{id}/peers", Class::Workspace),
    route(Verb::Get, "/events", Class::Admin),
    route(Verb::Get, "/events/{workspace_id}", Class::Admin),
    route(Verb::Get, "/ws", Class::Socket),
    route(Verb::Get, "/jobs", Class::Admin).strict(&[
        "queue",
        "kind",
        "state",
        "workspace_id",
        "tenant",
        "error",
        "older_than",
        "newer_than",
        "limit",
        "cursor",
    ]),
    route(Verb::Get, "/jobs/{job_id}", Class::Job).strict(&[]),
    route(Verb::Get, "/jobs/{job_id}/events", Class::Job).strict(&[]),
    post("/jobs/{job_id}/cancel", Class::Admin, Keyed).strict(&[]),
    post("/jobs/bulk", Class::Admin, Keyed).strict(&[]),
    post("/jobs/{job_id}/retry", Class::Admin, Keyed).strict(&[]),
    post("/jobs/{job_id}/discard", Class::Admin, Keyed).strict(&[]),
    route(Verb::Get, "/queues", Class::Admin).strict(&["limit", "cursor"]),
    // Before `/queues/{name}`, which has the same shape.
    route(Verb::Get, "/queues/weights", Class::Admin).strict(&["limit", "cursor"]),
    route(Verb::Put, "/queues/weights/{tenant}", Class::Admin).strict(&[]),
    route(Verb::Delete, "/queues/weights/{tenant}", Class::Admin).strict(&["reason"]),
    route(Verb::Get, "/queues/{name}", Class::Admin).strict(&[]),
    route(Verb::Patch, "/queues/{name}", Class::Admin).strict(&[]),
    post("/queues/{name}/pause", Class::Admin, STAYS_SO).strict(&[]),
    post("/queues/{name}/drain", Class::Admin, STAYS_SO).strict(&["wait"]),
    post("/queues/{name}/reject", Class::Admin, STAYS_SO).strict(&[]),
    post("/queues/{name}/resume", Class::Admin, STAYS_SO).strict(&[]),
    route(Verb::Get, "/holds", Class::Admin).strict(&["limit", "cursor"]),
    post("/holds", Class::Admin, Keyed).strict(&[]),
    route(Verb::Get, "/holds/{hold_id}", Class::Admin).strict(&[]),
    route(Verb::Delete, "/holds/{hold_id}", Class::Admin).strict(&["reason"]),
    route(Verb::Get, "/workers", Class::Admin).strict(&["limit", "cursor"]),
    route(Verb::Get, "/workers/{name}", Class::Admin).strict(&[]),
    post("/workers/{name}/drain", Class::Admin, STAYS_SO).strict(&[]),
    post("/workers/{name}/undrain", Class::Admin, STAYS_SO).strict(&[]),
    route(Verb::Get, "/leaks", Class::Admin).strict(&["state", "limit", "cursor"]),
    post("/leaks/{leak_id}/remove", Class::Admin, Keyed).strict(&[]),
    post("/leaks/{leak_id}/keep", Class::Admin, STAYS_SO).strict(&[]),
    route(Verb::Get, "/reconcilers", Class::Admin).strict(&["limit", "cursor"]),
    route(Verb::Get, "/reconcilers/{name}", Class::Admin).strict(&["scope"]),
    post("/reconcilers/{name}/enable", Class::Admin, STAYS_SO).strict(&["scope"]),
    post("/reconcilers/{name}/disable", Class::Admin, STAYS_SO).strict(&["scope"]),
    post(
        "/reconcilers/{name}/approve",
        Class::Admin,
        Harmless("it stands for one pass, and names what that may destroy"),
    )
    .strict(&["scope"]),
    post("/reconcilers/{name}/run", Class::Admin, Keyed).strict(&["scope"]),
    route(Verb::Get, "/admin/liveness", Class::Admin),
    route(Verb::Get, "/images", Class::Admin).strict(&["limit", "cursor"]),
    route(Verb::Put, "/images/{runtime}/pin", Class::Admin).strict(&[]),
    route(Verb::Delete, "/images/{runtime}/pin", Class::Admin).strict(&["reason"]),
    route(Verb::Get, "/images/{runtime}/workspaces", Class::Admin)
        .strict(&["digest", "limit", "cursor"]),
    post("/images/{runtime}/rollouts", Class::Admin, Keyed).strict(&[]),
    post(
        "/images/{runtime}/rollouts/{rollout_id}/resume",
        Class::Admin,
        Keyed,
    )
    .strict(&[]),
    post(
        "/images/{runtime}/rollouts/{rollout_id}/abort",
        Class::Admin,
        STAYS_SO,
    )
    .strict(&[]),
    post(
        "/images/{runtime}/rollouts/{rollout_id}/rollback",
        Class::Admin,
        Keyed,
    )
    .strict(&[]),
];

/// All routes.
pub fn all() -> impl Iterator<Item = &'static Route> {
    OPEN_ROUTES.iter().chain(GUARDED_ROUTES)
}

/// What the path of a request names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matched {
    /// The route.
    pub(crate) route: &'static Route,
    /// The workspace in its path.
    pub(crate) workspace_id: Option<WorkspaceId>,
    /// The job in its path.
    pub(crate) job_id: Option<JobId>,
}

/// Finds the route of a request and reads the ids in its path, before any credential is looked at. Without `test_tokens`
/// their route looks absent, whatever is asked of it (`spec: rest-api` §6.14.3).
///
/// # Errors
/// 404 without a route, 405 where the path is known under other methods, 400 for an id that is none.
pub(crate) fn find(method: &Method, path: &str, test_tokens: bool) -> ApiResult<Matched> {
    // HEAD is GET without the body.
    let wanted = if method == Method::HEAD {
        Verb::Get.as_str()
    } else {
        method.as_str()
    };
    let mut other_methods = false;
    for route in all() {
        let issues = matches!(route.class, Class::TestToken);
        if !shape_matches(route.path, path) || issues && !test_tokens {
            continue;
        }
        // That GET changes something, which HEAD must not.
        if route.verb.as_str() == wanted && !(issues && method == Method::HEAD) {
            return read_ids(route, path);
        }
        other_methods = true;
    }
    Err(if other_methods {
        ApiError::new(
            poem::http::StatusCode::METHOD_NOT_ALLOWED,
            "method not allowed",
        )
    } else {
        ApiError::not_found("not found")
    })
}

/// The pattern of a path for metrics, whatever its method.
pub(crate) fn pattern(path: &str) -> &'static str {
    all()
        .find(|route| shape_matches(route.path, path))
        .map_or("unmatched", |route| route.path)
}

fn shape_matches(pattern: &str, path: &str) -> bool {
    let mut segments = path.split('/');
    for wanted in pattern.split('/') {
        match segments.next() {
            Some(segment) if is_parameter(wanted) => {
                if segment.is_empty() {
                    return false;
                }
            }
            Some(segment) if segment == wanted => {}
            _ => return false,
        }
    }
    segments.next().is_none()
}

fn read_ids(route: &'static Route, path: &str) -> ApiResult<Matched> {
    let mut matched = Matched {
        route,
        workspace_id: None,
        job_id: None,
    };
    for (wanted, segment) in route.path.split('/').zip(path.split('/')) {
        match wanted {
            "{id}" | "{workspace_id}" => {
                let id = segment
                    .parse()
                    .map_err(|_| ApiError::bad_request("invalid workspace id"))?;
                matched.workspace_id = Some(id);
            }
            "{job_id}" => {
                let id = segment
                    .parse()
                    .map_err(|_| ApiError::bad_request("invalid job id"))?;
                matched.job_id = Some(id);
            }
            "{hold_id}" => {
                segment
                    .parse::<uuid::Uuid>()
                    .map_err(|_| ApiError::bad_request("invalid hold id"))?;
            }
            "{leak_id}" => {
                segment
                    .parse::<uuid::Uuid>()
                    .map_err(|_| ApiError::bad_request("invalid leak id"))?;
            }
            "{token_id}" => {
                segment
                    .parse::<uuid::Uuid>()
                    .map_err(|_| ApiError::bad_request("invalid token id"))?;
            }
            // Any text names a secret but this character, which no column holds.
            "{key}" if segment.contains("%00") => {
                return Err(ApiError::bad_request("invalid secret name"));
            }
            "{rollout_id}" => {
                segment
                    .parse::<uuid::Uuid>()
                    .map_err(|_| ApiError::bad_request("invalid rollout id"))?;
            }
            "{runtime}" if !is_plain(segment) => {
                return Err(ApiError::bad_request("invalid runtime"));
            }
            "{name}" if !is_plain(segment) => return Err(ApiError::bad_request("invalid name")),
            "{tenant}" if !is_plain(segment) || segment.len() > LONGEST_TENANT => {
                return Err(ApiError::bad_request("invalid organisation"));
            }
            _ => {}
        }
    }
    Ok(matched)
}

/// As with holds.
const LONGEST_TENANT: usize = 255;

/// Names of queues and workers, and organisations, are words of these characters.
fn is_plain(name: &str) -> bool {
    name.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn is_parameter(segment: &str) -> bool {
    segment.starts_with('{')
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn open_routes_stand_in_their_list_and_nowhere_else() {
        assert!(OPEN_ROUTES.iter().all(|route| route.class == Class::Open));
        assert!(
            GUARDED_ROUTES
                .iter()
                .all(|route| route.class != Class::Open)
        );
        let mut seen = HashSet::new();
        for route in all() {
            assert!(seen.insert((route.verb, route.path)), "{route:?} twice");
        }
    }

    #[test]
    fn every_post_says_what_sending_it_again_would_do() {
        for route in all() {
            let is_post = route.verb == Verb::Post;
            assert_eq!(route.repeat.is_some(), is_post, "{route:?}");
        }
    }

    #[test]
    fn every_parameter_is_an_id_that_is_read_before_anything_else() {
        for route in all() {
            for segment in route
                .path
                .split('/')
                .filter(|segment| is_parameter(segment))
            {
                assert!(
                    matches!(
                        segment,
                        "{id}"
                            | "{workspace_id}"
                            | "{job_id}"
                            | "{hold_id}"
                            | "{leak_id}"
                            | "{token_id}"
                            | "{key}"
                            | "{name}"
                            | "{tenant}"
                            | "{runtime}"
                            | "{rollout_id}"
                    ),
                    "{segment} of {} is not checked",
                    route.path
                );
            }
        }
    }

    #[test]
    fn a_path_is_looked_up_as_it_stands() {
        let id = "0b6f3c1e-4d2a-4c3b-9f00-0123456789ab";
        let found = find(
            &Method::HEAD,
            &format!("/workspaces/{}", id.to_uppercase()),
            true,
        )
        .unwrap();
        assert_eq!(found.workspace_id.unwrap().to_string(), id);
        for (method, path, status) in [
            (Method::GET, "/", 404),
            (Method::GET, "/workspaces/", 404),
            (Method::GET, "//workspaces", 404),
            (Method::GET, "/workspaces/../metrics", 404),
            (Method::GET, "/%77orkspaces", 404),
            (Method::PUT, "/workspaces", 405),
            (Method::GET, "/workspaces/nope", 400),
            (
                Method::GET,
                "/workspaces/0b6f3c1e-4d2a-4c3b-9f00-0123456789a%62",
                400,
            ),
            (Method::GET, "/jobs/nope", 400),
            (Method::DELETE, "/holds/nope", 400),
            (Method::DELETE, "/org/tokens/nope", 400),
            (Method::DELETE, "/settings/secrets/a%00b", 400),
            (Method::GET, "/queues/a%00b", 400),
            (Method::DELETE, "/queues/weights/a%20b", 400),
            (Method::DELETE, "/images/a%20b/pin", 400),
            (Method::POST, "/images/hermes/rollouts/nope/abort", 400),
            (Method::POST, "/queues/weights", 405),
        ] {
            let error = find(&method, path, true).unwrap_err();
            assert_eq!(error.status().as_u16(), status, "{path}");
        }
        assert_eq!(pattern(&format!("/jobs/{id}")), "/jobs/{job_id}");
        assert_eq!(pattern("/queues/weights"), "/queues/weights");
        assert_eq!(pattern("/nowhere"), "unmatched");
    }
}
