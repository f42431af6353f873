//! The memory plugin of a worker: what a purge tells it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use longshore_base::WorkspaceId;
use longshore_jobs::purge::{NamespaceError, Namespaces};
use reqwest::StatusCode;
use reqwest::redirect::Policy;

/// Longest that one call may take.
const LIMIT: Duration = Duration::from_secs(10);

struct MemoryPlugin {
    http: reqwest::Client,
    url: String,
}

/// A client of the plugin at this address; none without one.
pub(super) fn namespaces(url: Option<&str>) -> anyhow::Result<Option<Arc<dyn Namespaces>>> {
    let Some(url) = url else { return Ok(None) };
    let http = reqwest::Client::builder()
        .timeout(LIMIT)
        .redirect(Policy::none())
        .build()
        .context("no HTTP client can be made for MEMORY_PLUGIN_URL")?;
    tracing::info!("a memory plugin is configured; purges forget their namespaces there");
    Ok(Some(Arc::new(MemoryPlugin {
        http,
        url: url.to_owned(),
    })))
}

/// The plugin did not do it.
#[derive(Debug, thiserror::Error)]
#[error("the memory plugin answered {0}")]
struct Refused(StatusCode);

#[async_trait]
impl Namespaces for MemoryPlugin {
    async fn forget(&self, id: WorkspaceId) -> Result<(), NamespaceError> {
        let url = format!("{}/v1/namespaces/workspace:{id}", self.url);
        // Its address may hold a credential.
        let answer = self.http.delete(url).send().await;
        let status = answer.map_err(reqwest::Error::without_url)?.status();
        if status.is_success() || status == StatusCode::NOT_FOUND {
            Ok(())
        } else {
            Err(Refused(status).into())
        }
    }
}
