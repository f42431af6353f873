//! The calls.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use longshore_base::random;
use poem::http::StatusCode;
use poem::web::{Data, Path, Query};
use poem::{IntoResponse as _, Request, Response, Route, delete, get, handler, post, put};
use serde_json::{Value, json};

use crate::faults::{Faults, happens};
use crate::flags::Flags;
use crate::instances::{EngineError, Instances};

/// Longer than what any client keeps of it, and nobody's business.
const LOUD: &str = "the-words-of-the-control-plane ";

/// Everything it knows.
pub(crate) struct Simulation {
    flags: Flags,
    instances: Instances,
    book: Mutex<Book>,
    /// Held while a start is made, so that one that is repeated meanwhile finds its answer.
    starting: tokio::sync::Mutex<()>,
}

struct Book {
    faults: Faults,
    /// By instance.
    running: HashMap<String, Running>,
    /// Answers by idempotency key.
    answered: HashMap<String, Value>,
    calls: Vec<Value>,
}

struct Running {
    workspace_id: String,
    container: String,
}

type Shared<'a> = Data<&'a Arc<Simulation>>;

impl Simulation {
    /// Nothing runs yet.
    pub(crate) fn new(flags: Flags, instances: Instances) -> Self {
        let book = Book {
            faults: flags.faults,
            running: HashMap::new(),
            answered: HashMap::new(),
            calls: Vec::new(),
        };
        Self {
            flags,
            instances,
            book: Mutex::new(book),
            starting: tokio::sync::Mutex::default(),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits as long as every call does; the faults there are then.
    async fn arrive(&self) -> Faults {
        let faults = self.book().faults;
        tokio::time::sleep(Duration::from_millis(faults.latency_ms)).await;
        self.book().faults
    }

    fn admits(&self, request: &Request, bearer: &str) -> bool {
        let has = |name: &str, wanted: &str| {
            wanted.is_empty() || request.header(name).is_some_and(|got| got == wanted)
        };
        let wanted = if bearer.is_empty() {
            String::new()
        } else {
            format!("Bearer {bearer}")
        };
        has("authorization", &wanted) && has("x-longshore-admin-token", &self.flags.tenant_token)
    }

    fn note(&self, call: &str, workspace_id: &str, answer: &Response, more: Value) {
        let mut noted = json!({
            "call": call, "workspace_id": workspace_id, "status": answer.status().as_u16(),
        });
        if let (Some(noted), Value::Object(more)) = (noted.as_object_mut(), more) {
            noted.extend(more);
        }
        self.book().calls.push(noted);
    }
}

/// Every route.
pub(crate) fn routes() -> Route {
    Route::new()
        .at("/cp/workspaces/provision", post(start_instance))
        .at("/cp/workspaces/:id", delete(stop_instance))
        .at("/cp/workspaces/:id/status", get(show_status))
        .at("/cp/admin/workspaces/:id/console", get(show_console))
        .at("/cp/tenants/config", get(show_config))
        .at("/sim/faults", put(change_faults).get(show_faults))
        .at("/sim/calls", get(show_calls))
        .at("/sim/instances", get(show_instances))
}

#[handler]
async fn start_instance(
    simulation: Shared<'_>,
    request: &Request,
    body: poem::web::Json<Value>,
) -> Response {
    let faults = simulation.arrive().await;
    let body = body.0;
    let workspace_id = text(&body, "workspace_id");
    let key = request
        .header("idempotency-key")
        .unwrap_or_default()
        .to_owned();
    let answer = if !simulation.admits(request, &simulation.flags.bearer) {
        error(StatusCode::UNAUTHORIZED, "wrong credentials")
    } else if !simulation.flags.org.is_empty() && body["org_id"] != simulation.flags.org.as_str() {
        error(StatusCode::FORBIDDEN, "another organisation")
    } else if happens(faults.starts) {
        error(StatusCode::INTERNAL_SERVER_ERROR, &LOUD.repeat(40))
    } else {
        match simulation.0.start(&body, &workspace_id, &key).await {
            Ok(answer) if happens(faults.lost_starts) => lost(answer),
            Ok(answer) => answer,
            Err(error_) => error(StatusCode::BAD_GATEWAY, &error_.to_string()),
        }
    };
    let more = json!({
        "key": key, "tier": body["tier"], "runtime": body["runtime"], "platform_url": body["platform_url"],
        // Values may be secrets.
        "env": body["env"].as_object().map(|env| env.keys().cloned().collect::<Vec<_>>()),
    });
    simulation.note("start", &workspace_id, &answer, more);
    answer
}

impl Simulation {
    async fn start(
        &self,
        body: &Value,
        workspace_id: &str,
        key: &str,
    ) -> Result<Response, EngineError> {
        let _one = self.starting.lock().await;
        let earlier = self.book().answered.get(key).cloned();
        if let Some(earlier) = earlier.filter(|_| !self.flags.forget_keys && !key.is_empty()) {
            let mut answer = json_of(StatusCode::CREATED, &earlier);
            answer.headers_mut().insert(
                "idempotent-replayed",
                poem::http::HeaderValue::from_static("true"),
            );
            return Ok(answer);
        }
        let mut env: Vec<(String, String)> = body["env"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
            .collect();
        env.push(("WORKSPACE_ID".to_owned(), workspace_id.to_owned()));
        env.push(("PLATFORM_URL".to_owned(), text(body, "platform_url")));
        let (container, address) = self.instances.start(workspace_id, &env).await?;
        let id = format!("i-{}", hex::encode(random::bytes::<8>()));
        let answer = json!({
            "instance_id": id, "private_ip": address, "state": "pending", "error": "",
        });
        let mut book = self.book();
        book.running.insert(
            id,
            Running {
                workspace_id: workspace_id.to_owned(),
                container,
            },
        );
        book.answered.insert(key.to_owned(), answer.clone());
        Ok(json_of(StatusCode::CREATED, &answer))
    }

    /// The container of an instance, if it is the workspace's.
    fn container(&self, workspace_id: &str, instance_id: &str) -> Option<String> {
        let book = self.book();
        let running = book.running.get(instance_id)?;
        (running.workspace_id == workspace_id).then(|| running.container.clone())
    }
}

#[handler]
async fn stop_instance(
    simulation: Shared<'_>,
    request: &Request,
    id: Path<String>,
    query: Query<HashMap<String, String>>,
) -> Response {
    let faults = simulation.arrive().await;
    let instance = query.0.get("instance_id").cloned().unwrap_or_default();
    let answer = if !simulation.admits(request, &simulation.flags.bearer) {
        error(StatusCode::UNAUTHORIZED, "wrong credentials")
    } else if happens(faults.stops) {
        error(StatusCode::INTERNAL_SERVER_ERROR, &LOUD.repeat(40))
    } else {
        match simulation.container(&id.0, &instance) {
            None => error(StatusCode::NOT_FOUND, "no such instance"),
            Some(container) => match simulation.instances.remove(&container).await {
                Ok(()) => {
                    simulation.book().running.remove(&instance);
                    StatusCode::NO_CONTENT.into_response()
                }
                Err(error_) => error(StatusCode::BAD_GATEWAY, &error_.to_string()),
            },
        }
    };
    simulation.note("stop", &id.0, &answer, json!({ "instance_id": instance }));
    answer
}

#[handler]
async fn show_status(
    simulation: Shared<'_>,
    request: &Request,
    id: Path<String>,
    query: Query<HashMap<String, String>>,
) -> Response {
    let faults = simulation.arrive().await;
    let instance = query.0.get("instance_id").cloned().unwrap_or_default();
    let answer = if !simulation.admits(request, &simulation.flags.bearer) {
        error(StatusCode::UNAUTHORIZED, "wrong credentials")
    } else if happens(faults.statuses) {
        error(StatusCode::INTERNAL_SERVER_ERROR, "cannot look")
    } else {
        match simulation.container(&id.0, &instance) {
            None => error(StatusCode::NOT_FOUND, "no such instance"),
            Some(container) => {
                let state = if happens(faults.pending) {
                    "pending"
                } else if simulation.instances.runs(&container).await {
                    "running"
                } else {
                    "stopped"
                };
                json_of(StatusCode::OK, &json!({ "state": state }))
            }
        }
    };
    simulation.note("status", &id.0, &answer, json!({ "instance_id": instance }));
    answer
}

#[handler]
async fn show_console(simulation: Shared<'_>, request: &Request, id: Path<String>) -> Response {
    simulation.arrive().await;
    let answer = if simulation.admits(request, &simulation.flags.admin_bearer) {
        let container = simulation
            .book()
            .running
            .values()
            .find(|running| running.workspace_id == id.0)
            .map(|running| running.container.clone());
        match container {
            None => error(StatusCode::NOT_FOUND, "no such instance"),
            Some(container) => match simulation.instances.console(&container).await {
                Ok(output) => json_of(StatusCode::OK, &json!({ "output": output })),
                Err(error_) => error(StatusCode::BAD_GATEWAY, &error_.to_string()),
            },
        }
    } else {
        error(StatusCode::UNAUTHORIZED, "wrong credentials")
    };
    simulation.note("console", &id.0, &answer, json!({}));
    answer
}

#[handler]
async fn show_config(simulation: Shared<'_>, request: &Request) -> Response {
    simulation.arrive().await;
    let flags = &simulation.0.flags;
    let bearer = format!("Bearer {}", flags.tenant_token);
    let is_tenant = request.header("authorization") == Some(bearer.as_str())
        && request.header("x-longshore-org-id") == Some(flags.org.as_str());
    if !is_tenant {
        return error(StatusCode::UNAUTHORIZED, "wrong credentials");
    }
    let kept: HashMap<&str, &str> = flags
        .config
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    json_of(StatusCode::OK, &json!(kept))
}

#[handler]
fn change_faults(simulation: Shared<'_>, body: poem::web::Json<Value>) -> Response {
    let mut book = simulation.book();
    book.faults.change(&body.0);
    json_of(StatusCode::OK, &book.faults.shown())
}

#[handler]
fn show_faults(simulation: Shared<'_>) -> Response {
    json_of(StatusCode::OK, &simulation.book().faults.shown())
}

#[handler]
fn show_calls(simulation: Shared<'_>) -> Response {
    json_of(StatusCode::OK, &json!(simulation.book().calls))
}

#[handler]
fn show_instances(simulation: Shared<'_>) -> Response {
    let book = simulation.book();
    let running: HashMap<&String, &String> = book
        .running
        .iter()
        .map(|(id, running)| (id, &running.workspace_id))
        .collect();
    json_of(StatusCode::OK, &json!(running))
}

fn text(body: &Value, name: &str) -> String {
    body[name].as_str().unwrap_or_default().to_owned()
}

fn json_of(status: StatusCode, body: &Value) -> Response {
    Response::builder()
        .status(status)
        .content_type("application/json")
        .body(body.to_string())
}

fn error(status: StatusCode, text: &str) -> Response {
    json_of(status, &json!({ "error": text }))
}

/// The same answer, of which only half arrives.
fn lost(answer: Response) -> Response {
    let status = answer.status();
    Response::builder()
        .status(status)
        .content_type("application/json")
        .body("{\"instance_id\":")
}
