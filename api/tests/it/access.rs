//! Who gets in, asked of every route with every kind of credential.

use std::collections::BTreeSet;

use longshore_api::openapi_document;
use longshore_api::routes::{self, Class, OPEN_ROUTES, Route, Verb};
use longshore_base::{JobId, WorkspaceId};
use longshore_fleet::tokens;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::app::{ADMIN, Agent, TestApp};

/// Kinds of credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Nobody,
    /// A bearer that is nobody's.
    Stranger,
    /// The token that the workspace had once.
    Revoked,
    /// The workspace itself.
    Own,
    /// A sibling's token, which says nothing of who it is.
    Sibling,
    /// A sibling that names itself.
    NamedSibling,
    /// A workspace of another tree that names itself.
    NamedForeign,
    Org,
    Admin,
}

const EVERYBODY: [Who; 9] = [
    Who::Nobody,
    Who::Stranger,
    Who::Revoked,
    Who::Own,
    Who::Sibling,
    Who::NamedSibling,
    Who::NamedForeign,
    Who::Org,
    Who::Admin,
];

/// What a caller must meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    In,
    Unauthorized(&'static str),
    Forbidden,
    /// To this caller it does not exist.
    Hidden,
    BadRequest,
}

use Fate::{BadRequest, Forbidden, Hidden, In, Unauthorized};

/// The table that acceptance hangs on: every class, every credential. A new class does not compile without its row.
fn fate(route: &Route, who: Who) -> Fate {
    const NO_WORKSPACE: Fate = Unauthorized("missing workspace auth token");
    const BAD_WORKSPACE: Fate = Unauthorized("invalid workspace auth token");
    const NO_CALLER: Fate = Unauthorized("missing caller auth token");
    const BAD_CALLER: Fate = Unauthorized("invalid caller auth token");
    const NO_ADMIN: Fate = Unauthorized("admin auth required");
    const BAD_ADMIN: Fate = Unauthorized("invalid admin auth token");
    match route.class {
        Class::Open => In,
        // Closed here, as it is wherever nobody opened it.
        Class::TestToken => Hidden,
        Class::Admin => match who {
            Who::Nobody => NO_ADMIN,
            Who::Org | Who::Admin => In,
            _ => BAD_ADMIN,
        },
        // The revoked token here is that of a workspace which is still there.
        Class::Workspace | Class::State => match who {
            Who::Nobody => NO_WORKSPACE,
            Who::Own | Who::Org | Who::Admin => In,
            _ => BAD_WORKSPACE,
        },
        Class::Related => match who {
            Who::Nobody => NO_WORKSPACE,
            Who::Own | Who::NamedSibling | Who::Org | Who::Admin => In,
            Who::NamedForeign => Forbidden,
            _ => BAD_WORKSPACE,
        },
        Class::Own => match who {
            Who::Nobody => NO_WORKSPACE,
            Who::Own => In,
            _ => BAD_WORKSPACE,
        },
        Class::Job => match who {
            Who::Nobody => NO_WORKSPACE,
            Who::Own | Who::Org | Who::Admin => In,
            Who::Sibling | Who::NamedSibling | Who::NamedForeign => Hidden,
            Who::Stranger | Who::Revoked => BAD_WORKSPACE,
        },
        Class::Registry => match who {
            Who::Nobody => NO_WORKSPACE,
            Who::Own => In,
            Who::Org | Who::Admin if route.path == "/registry/update-card" => In,
            _ => BAD_WORKSPACE,
        },
        Class::Caller => match who {
            Who::Nobody => NO_WORKSPACE,
            Who::NamedSibling => In,
            Who::NamedForeign => Forbidden,
            // It wants to know who is asking, also of those who may ask.
            Who::Own | Who::Sibling | Who::Org | Who::Admin => BadRequest,
            Who::Stranger | Who::Revoked => BAD_WORKSPACE,
        },
        Class::Message => match who {
            Who::Nobody => NO_CALLER,
            Who::Own | Who::Sibling | Who::NamedSibling | Who::Org | Who::Admin => In,
            Who::NamedForeign => Forbidden,
            Who::Stranger | Who::Revoked => BAD_CALLER,
        },
        Class::Socket => match who {
            Who::Nobody => NO_ADMIN,
            Who::NamedSibling | Who::NamedForeign | Who::Org | Who::Admin => In,
            _ => BAD_ADMIN,
        },
    }
}

/// A body with which the route would do something. A new route that takes one must say so here.
fn sample_body(route: &Route, target: WorkspaceId) -> Option<Value> {
    match (route.verb, route.path) {
        (Verb::Get | Verb::Delete, _) => None,
        (Verb::Post, path) if takes_only_a_reason(path) => None,
        (Verb::Post, "/workspaces/{id}/restart") => Some(json!({ "reset": true })),
        (
            Verb::Post,
            "/workspaces/{id}/pause"
            | "/workspaces/{id}/resume"
            | "/workspaces/{id}/hibernate"
            | "/workspaces/{id}/expand"
            | "/workspaces/{id}/collapse",
        ) => None,
        (Verb::Post, "/secrets/rotate-key") => None,
        (Verb::Post, "/secrets/validate") => Some(json!({ "provider": "minimax", "key": "k" })),
        (Verb::Post, "/bundles/import") => Some(json!({ "name": "imported" })),
        (Verb::Post, "/org/import") => Some(json!({ "dir": "nowhere" })),
        (Verb::Post, "/templates/import") => {
            Some(json!({ "name": "t", "files": { "../out": "refused, so nothing is written" } }))
        }
        (Verb::Post, path) if path.ends_with("/tokens") => None,
        (Verb::Post | Verb::Put, path) if path.ends_with("/secrets") => {
            Some(json!({ "key": "K", "value": "v" }))
        }
        (Verb::Put, "/workspaces/{id}/model") => Some(json!({ "model": "minimax/M2" })),
        (Verb::Put, "/workspaces/{id}/provider") => Some(json!({ "provider": "minimax" })),
        (Verb::Post, "/jobs/bulk") => Some(json!({ "action": "retry", "dry_run": true })),
        (Verb::Put, "/queues/weights/{tenant}") => Some(json!({ "weight": 2 })),
        (Verb::Put, "/images/{runtime}/pin") => Some(json!({ "digest": digest() })),
        (Verb::Post, "/images/{runtime}/rollouts") => Some(json!({
            "digest": digest(), "rings": [{ "percent": 100 }], "max_failures": 0, "soak_seconds": 0
        })),
        (Verb::Patch, "/queues/{name}") => Some(json!({ "max_running": 1 })),
        (Verb::Post, "/holds") => Some(json!({ "scope": "engine", "value": "e", "mode": "pause" })),
        (Verb::Patch, "/workspaces/{id}") => Some(json!({ "name": "renamed" })),
        (Verb::Post, "/workspaces") => Some(json!({ "name": "new" })),
        (Verb::Post, "/workspaces/{id}/a2a") => Some(json!({ "method": "message/send" })),
        (Verb::Post, "/registry/register") => Some(json!({
            "id": target, "url": target.internal_url(), "agent_card": { "name": "a" }
        })),
        (Verb::Post, "/registry/heartbeat") => Some(json!({ "workspace_id": target })),
        (Verb::Post, "/registry/update-card") => {
            Some(json!({ "workspace_id": target, "agent_card": {} }))
        }
        (Verb::Post, "/registry/check-access") => {
            Some(json!({ "caller_id": target, "target_id": target }))
        }
        (verb, path) => panic!("no sample body for {verb:?} {path}"),
    }
}

fn digest() -> String {
    format!("sha256:{}", "ab".repeat(32))
}

fn takes_only_a_reason(path: &str) -> bool {
    [
        "/jobs/{job_id}/",
        "/queues/{name}/",
        "/workers/{name}/",
        "/reconcilers/{name}/",
        "/leaks/{leak_id}/",
        "/images/{runtime}/rollouts/{rollout_id}/",
    ]
    .iter()
    .any(|start| path.starts_with(start))
}

/// A workspace to ask about, and who asks.
struct Scene {
    target: Agent,
    sibling: Agent,
    foreign: Agent,
    revoked: String,
    org: String,
    job: JobId,
}

impl Scene {
    async fn set(app: &TestApp) -> Self {
        let parent = app.insert_named("parent").await;
        let target = app.insert_child("target", parent.id).await;
        let sibling = app.insert_child("sibling", parent.id).await;
        let elsewhere = app.insert_named("elsewhere").await;
        let foreign = app.insert_child("foreign", elsewhere.id).await;
        let revoked = target.token;
        let mut conn = app.database.pool().acquire().await.unwrap();
        let token = tokens::rotate(&mut conn, target.id).await.unwrap();
        Self {
            job: app.insert_job(Some(target.id)).await,
            target: Agent {
                id: target.id,
                token: token.expose().clone(),
            },
            sibling,
            foreign,
            revoked,
            org: app.insert_org_token().await,
        }
    }

    fn path(&self, route: &Route) -> String {
        route
            .path
            .replace("{id}", &self.target.id.to_string())
            .replace("{workspace_id}", &self.target.id.to_string())
            .replace("{job_id}", &self.job.to_string())
            .replace("{hold_id}", &self.target.id.to_string())
            .replace("{leak_id}", &self.target.id.to_string())
            .replace("{tenant}", &self.target.id.to_string())
            .replace("{token_id}", &self.target.id.to_string())
            .replace("{runtime}", "hermes")
            .replace("{rollout_id}", &self.target.id.to_string())
            .replace("{key}", "K")
            .replace("{name}", "rest")
    }

    fn dress(&self, who: Who, request: RequestBuilder) -> RequestBuilder {
        let named = |request: RequestBuilder, agent: &Agent| {
            request
                .bearer_auth(&agent.token)
                .header("X-Workspace-ID", agent.id.to_string())
        };
        match who {
            Who::Nobody => request,
            Who::Stranger => request.bearer_auth("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
            Who::Revoked => request.bearer_auth(&self.revoked),
            Who::Own => request.bearer_auth(&self.target.token),
            Who::Sibling => request.bearer_auth(&self.sibling.token),
            Who::NamedSibling => named(request, &self.sibling),
            Who::NamedForeign => named(request, &self.foreign),
            Who::Org => request.bearer_auth(&self.org),
            Who::Admin => request.bearer_auth(ADMIN),
        }
    }
}

#[tokio::test]
async fn every_route_treats_every_credential_as_its_class_says() {
    let app = TestApp::start().await;
    let mut wrong = Vec::new();
    for route in routes::all() {
        let mut scene = Scene::set(&app).await;
        for who in EVERYBODY {
            if route.verb != Verb::Get {
                // A fresh one each time: some routes delete what they are asked about.
                scene = Scene::set(&app).await;
            }
            let method: Method = route.verb.as_str().parse().unwrap();
            let mut request = app.request(method, &scene.path(route));
            if let Some(body) = sample_body(route, scene.target.id) {
                request = request.json(&body);
            }
            let answer = scene.dress(who, request).send().await.unwrap();
            let status = answer.status();
            let expected = fate(route, who);
            // What was let in by mistake may be a stream without an end.
            let text = if status.is_success() || expected == In {
                String::new()
            } else {
                answer.text().await.unwrap()
            };
            let met = match expected {
                In => {
                    ![401, 403].contains(&status.as_u16())
                        && status != StatusCode::INTERNAL_SERVER_ERROR
                }
                Unauthorized(error) => {
                    status == StatusCode::UNAUTHORIZED && text.contains(&format!("\"{error}\""))
                }
                Forbidden => status == StatusCode::FORBIDDEN,
                Hidden => status == StatusCode::NOT_FOUND,
                BadRequest => status == StatusCode::BAD_REQUEST,
            };
            if !met {
                wrong.push(format!(
                    "{:?} {} as {who:?}: expected {expected:?}, got {status} {text}",
                    route.verb, route.path
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_of_routes_and_the_description_are_the_same() {
    let document: Value = serde_json::from_str(&openapi_document()).unwrap();
    let mut described = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let route = routes::all()
                .find(|route| {
                    route.path == path && route.verb.as_str().eq_ignore_ascii_case(method)
                })
                .unwrap_or_else(|| panic!("{method} {path} is described and not in the table"));
            let guarded = operation["security"].is_array();
            assert_eq!(
                guarded,
                route.class != Class::Open,
                "{method} {path}: {operation}"
            );
            if let Some(known) = route.query {
                let mut described: Vec<_> = operation["parameters"]
                    .as_array()
                    .map(Vec::as_slice)
                    .unwrap_or_default()
                    .iter()
                    .filter(|parameter| parameter["in"] == "query")
                    .map(|parameter| parameter["name"].as_str().unwrap())
                    .collect();
                let mut known = known.to_vec();
                described.sort_unstable();
                known.sort_unstable();
                assert_eq!(described, known, "query of {method} {path}");
            }
            assert!(operation["operationId"].is_string(), "{method} {path}");
            assert!(operation["summary"].is_string(), "{method} {path}");
            described.insert((route.path, route.verb.as_str()));
        }
    }
    for route in routes::all() {
        assert!(
            described.contains(&(route.path, route.verb.as_str())),
            "{:?} {} is not described",
            route.verb,
            route.path
        );
    }
}

/// Whoever adds a route here has thought twice.
#[test]
fn the_open_routes_are_these() {
    let open: Vec<_> = OPEN_ROUTES
        .iter()
        .map(|route| (route.verb.as_str(), route.path))
        .collect();
    assert_eq!(
        open,
        [
            ("GET", "/health"),
            ("GET", "/livez"),
            ("GET", "/readyz"),
            ("GET", "/openapi.json"),
            ("GET", "/docs"),
            ("POST", "/registry/check-access"),
        ]
    );
}
