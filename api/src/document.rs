//! The API and its description.

use std::sync::LazyLock;

use poem_openapi::{LicenseObject, OpenApiService, Tags};
use serde_json::Value;

use crate::a2a::A2aApi;
use crate::bundles::BundlesApi;
use crate::events::EventsApi;
use crate::health::HealthApi;
use crate::holds::HoldsApi;
use crate::images::{ImagesApi, RolloutsApi};
use crate::jobs::JobsApi;
use crate::jobs::bulk::BulkJobsApi;
use crate::jobs::retry::RetryApi;
use crate::leaks::LeaksApi;
use crate::models::ModelsApi;
use crate::orgs::OrgsApi;
use crate::queues::QueuesApi;
use crate::queues::weights::WeightsApi;
use crate::reconcilers::ReconcilersApi;
use crate::registry::RegistryApi;
use crate::secrets::SecretsApi;
use crate::secrets::dependents::DependentsApi;
use crate::secrets::global::GlobalSecretsApi;
use crate::secrets::rotation::RotationApi;
use crate::socket::SocketApi;
use crate::templates::TemplatesApi;
use crate::tokens::TokensApi;
use crate::workers::WorkersApi;
use crate::workspaces::{LifecycleApi, WorkspacesApi};

/// Groups of operations; client generators make a class of each.
#[derive(Tags)]
pub(crate) enum Tag {
    /// Health, metrics and the API's own description.
    System,
    /// Workspaces: create, read, change, stop and start, delete, and what they log.
    Workspaces,
    /// Secrets of workspaces and of all of them, model and provider.
    Secrets,
    /// Tokens of workspaces and of organisations.
    Tokens,
    /// What workspaces, and whole trees of them, can be created from.
    Templates,
    /// What agents call: register, heartbeat, find each other.
    Registry,
    /// Messages to agents.
    Messages,
    /// What happened and what happens.
    Events,
    /// Work that was asked for.
    Jobs,
    /// What operators let through: queues, their modes and limits, weights, and holds.
    Queues,
    /// Who does the work, and what was left behind.
    Workers,
    /// What keeps the fleet as it should be.
    Reconcilers,
    /// What the runtimes' workspaces start on.
    Images,
}

/// All resources. poem-openapi joins at most 16 in a tuple, so a resource is a domain and not a path.
type Apis = (
    HealthApi,
    WorkspacesApi,
    LifecycleApi,
    (
        SecretsApi,
        GlobalSecretsApi,
        DependentsApi,
        RotationApi,
        ModelsApi,
        TokensApi,
        TemplatesApi,
        BundlesApi,
        OrgsApi,
    ),
    RegistryApi,
    A2aApi,
    EventsApi,
    SocketApi,
    JobsApi,
    BulkJobsApi,
    RetryApi,
    QueuesApi,
    WeightsApi,
    HoldsApi,
    WorkersApi,
    (LeaksApi, ReconcilersApi, ImagesApi, RolloutsApi),
);

/// The operations; nothing in here needs a service to be there.
pub(crate) fn service() -> OpenApiService<Apis, ()> {
    let apis = (
        HealthApi,
        WorkspacesApi,
        LifecycleApi,
        (
            SecretsApi,
            GlobalSecretsApi,
            DependentsApi,
            RotationApi,
            ModelsApi,
            TokensApi,
            TemplatesApi,
            BundlesApi,
            OrgsApi,
        ),
        RegistryApi,
        A2aApi,
        EventsApi,
        SocketApi,
        JobsApi,
        BulkJobsApi,
        RetryApi,
        QueuesApi,
        WeightsApi,
        HoldsApi,
        WorkersApi,
        (LeaksApi, ReconcilersApi, ImagesApi, RolloutsApi),
    );
    OpenApiService::new(
        apis,
        longshore_base::brand::PRODUCT,
        env!("CARGO_PKG_VERSION"),
    )
    .description(
        "Control plane for fleets of AI-agent workspaces. Everything slow is a job: the answer names it, and \
         `GET /jobs/{job_id}` tells how it goes. Errors are `application/problem+json` with the member `error`.",
    )
    .license(LicenseObject::new("MIT OR Apache-2.0"))
}

static DOCUMENT: LazyLock<String> = LazyLock::new(|| tidy(&service().spec()));
static PAGE: LazyLock<String> = LazyLock::new(|| {
    service()
        .swagger_ui_html()
        .replacen("<html", "<!DOCTYPE html>\n<html", 1)
});

/// The OpenAPI description, always the same text for the same API.
#[must_use]
pub fn openapi_document() -> String {
    DOCUMENT.clone()
}

/// The page that shows the description; one document, nothing to load.
pub(crate) fn explorer_page() -> String {
    PAGE.clone()
}

/// poem-openapi writes media types with their parameters (`; charset=utf-8`), which generators take for other types.
fn tidy(spec: &str) -> String {
    let Ok(mut document) = serde_json::from_str::<Value>(spec) else {
        return spec.to_owned();
    };
    strip_parameters(&mut document);
    // Of string keys only, so writing it cannot fail.
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_else(|_| spec.to_owned());
    text.push('\n');
    text
}

fn strip_parameters(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if let Some(Value::Object(content)) = members.get_mut("content") {
                *content = std::mem::take(content)
                    .into_iter()
                    .map(|(media_type, schema)| {
                        let essence = media_type.split(';').next().unwrap_or_default();
                        (essence.trim().to_owned(), schema)
                    })
                    .collect();
            }
            members.values_mut().for_each(strip_parameters);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_parameters),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
