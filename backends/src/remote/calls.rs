//! The calls (spec: lifecycle §3.2, §3.3).

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::time::Duration;

use longshore_base::{Secret, WorkspaceId};
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde_json::Value;
use url::form_urlencoded::byte_serialize;

use super::answer::{Answer, EXCERPT_BYTES, Unusable, excerpt, failure_of};
use super::client::{Credentials, Remote};
use super::error::{RemoteCall, RemoteError};
use crate::{CallFailure, StartSpec};

/// Most of an answer to a start or a status that is read.
const ANSWER_LIMIT: usize = 64 * 1024;
/// Most of a console that is read.
const CONSOLE_LIMIT: usize = 256 * 1024;
/// Limit of the call for the tenant's configuration, which a starting process waits for.
const CONFIG_LIMIT: Duration = Duration::from_secs(10);
/// Longest value of the tenant's configuration that is taken.
const CONFIG_VALUE_BYTES: usize = 4096;
/// The state of an instance that runs.
const RUNNING: &str = "running";

/// An instance that was started.
pub(super) struct Provisioned {
    pub(super) instance_id: String,
    /// The control plane says that it answers as it did to an earlier call under the same key.
    pub(super) replayed: bool,
}

#[derive(Serialize)]
struct Provision<'a> {
    org_id: &'a str,
    workspace_id: WorkspaceId,
    runtime: &'a str,
    tier: i32,
    platform_url: &'a str,
    env: BTreeMap<&'a str, &'a str>,
}

impl Remote {
    pub(super) async fn provision(&self, spec: &StartSpec) -> Result<Provisioned, RemoteError> {
        let id = spec.workspace_id;
        let body = Provision {
            org_id: &self.org_id,
            workspace_id: id,
            runtime: &spec.runtime,
            tier: spec.tier,
            platform_url: &self.platform_url,
            env: spec
                .env
                .iter()
                .map(|(name, value)| (name.as_str(), value.expose().as_str()))
                .collect(),
        };
        let request = self
            .request(
                Credentials::Provision,
                Method::POST,
                "/cp/workspaces/provision",
            )
            .header("idempotency-key", format!("{id}:{}", spec.generation))
            .json(&body);
        let call = Call(RemoteCall::Start, Some(id));
        let answer = self.ask(call.0, call.1, request, ANSWER_LIMIT).await?;
        if answer.status != StatusCode::CREATED {
            return Err(call.refused(&answer, answer.error_member()));
        }
        let instance_id: String = answer
            .member("instance_id")
            .map_err(|unusable| call.unusable(&answer, unusable))?;
        if instance_id.is_empty() {
            let unusable = Unusable::Shapeless {
                bytes: answer.body.len(),
                wanted: "instance_id",
            };
            return Err(call.unusable(&answer, unusable));
        }
        let replayed = answer.headers.get("idempotent-replayed");
        Ok(Provisioned {
            instance_id,
            replayed: replayed.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"true")),
        })
    }

    /// Ends an instance. Without one there is nothing to call for.
    pub(super) async fn end(
        &self,
        id: WorkspaceId,
        instance_id: Option<&str>,
    ) -> Result<(), RemoteError> {
        let Some(instance) = instance_id.filter(|instance| !instance.is_empty()) else {
            return Ok(());
        };
        let path = format!("/cp/workspaces/{id}?instance_id={}", encoded(instance));
        let request = self.request(Credentials::Provision, Method::DELETE, &path);
        let call = Call(RemoteCall::Stop, Some(id));
        let answer = self.ask(call.0, call.1, request, EXCERPT_BYTES).await?;
        if answer.status.is_success() {
            return Ok(());
        }
        Err(call.refused(&answer, Unusable::Said(excerpt(&answer.body))))
    }

    /// Whether an instance runs. Without one nothing does.
    pub(super) async fn runs(
        &self,
        id: WorkspaceId,
        instance_id: Option<&str>,
    ) -> Result<bool, RemoteError> {
        let Some(instance) = instance_id.filter(|instance| !instance.is_empty()) else {
            return Ok(false);
        };
        let path = format!(
            "/cp/workspaces/{id}/status?instance_id={}",
            encoded(instance)
        );
        let request = self.request(Credentials::Provision, Method::GET, &path);
        let call = Call(RemoteCall::Status, Some(id));
        let answer = self.ask(call.0, call.1, request, ANSWER_LIMIT).await?;
        if !answer.status.is_success() {
            return Err(call.refused(&answer, answer.error_member()));
        }
        let state: String = answer
            .member("state")
            .map_err(|unusable| call.unusable(&answer, unusable))?;
        Ok(state == RUNNING)
    }

    /// What the workspace's instance wrote to its console.
    pub(super) async fn console_of(&self, id: WorkspaceId) -> Result<String, RemoteError> {
        let path = format!("/cp/admin/workspaces/{id}/console");
        let request = self.request(Credentials::Admin, Method::GET, &path);
        let call = Call(RemoteCall::Console, Some(id));
        let answer = self.ask(call.0, call.1, request, CONSOLE_LIMIT).await?;
        if !answer.status.is_success() {
            return Err(call.refused(&answer, answer.error_member()));
        }
        answer
            .member("output")
            .map_err(|unusable| call.unusable(&answer, unusable))
    }

    /// The settings the control plane keeps for this tenant. Names that are empty, values that are no text and values of
    /// more than 4096 bytes are left out.
    ///
    /// # Errors
    /// [`RemoteError`]; a process starts without them.
    pub async fn tenant_config(&self) -> Result<BTreeMap<String, Secret<String>>, RemoteError> {
        let request = self
            .request(Credentials::Config, Method::GET, "/cp/tenants/config")
            .timeout(CONFIG_LIMIT.min(self.call_limit));
        let call = Call(RemoteCall::Config, None);
        let answer = self.ask(call.0, call.1, request, CONSOLE_LIMIT).await?;
        if answer.status != StatusCode::OK {
            return Err(call.refused(&answer, answer.error_member()));
        }
        let Ok(values) = serde_json::from_slice::<BTreeMap<String, Value>>(&answer.body) else {
            let unusable = Unusable::Shapeless {
                bytes: answer.body.len(),
                wanted: "names and values",
            };
            return Err(call.unusable(&answer, unusable));
        };
        Ok(values
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.as_str()?.to_owned())))
            .filter(|(name, value)| !name.is_empty() && value.len() <= CONFIG_VALUE_BYTES)
            .map(|(name, value)| (name, Secret::new(value)))
            .collect())
    }
}

/// What was asked, about whom.
#[derive(Clone, Copy)]
struct Call(RemoteCall, Option<WorkspaceId>);

impl Call {
    /// It was answered, but not with a success.
    fn refused(self, answer: &Answer, cause: Unusable) -> RemoteError {
        self.error(answer, failure_of(answer.status), cause)
    }

    /// It was answered with a success that says nothing.
    fn unusable(self, answer: &Answer, cause: Unusable) -> RemoteError {
        self.error(answer, CallFailure::Failed, cause)
    }

    fn error(
        self,
        answer: &Answer,
        failure: CallFailure,
        cause: impl StdError + Send + Sync + 'static,
    ) -> RemoteError {
        RemoteError {
            call: self.0,
            workspace_id: self.1,
            status: Some(answer.status.as_u16()),
            failure,
            cause: cause.into(),
        }
    }
}

fn encoded(instance_id: &str) -> String {
    byte_serialize(instance_id.as_bytes()).collect()
}
