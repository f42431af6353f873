//! The keys of a workspace in Redis (`spec: lifecycle` §0.3): whether it lives and where it is reached.
//!
//! They are a cache and a signal, never the truth: each may be missing at any time. Writes are queued and never waited
//! for; reads take at most 250 ms and find nothing while Redis is away.

use std::sync::Arc;
use std::time::Duration;

use longshore_base::WorkspaceId;

use crate::bus::{Inner, Write};
use crate::link::LinkError;

const URL_TTL: Duration = Duration::from_secs(300);

/// The Redis keys of workspaces. Cheap to clone.
#[derive(Clone)]
pub struct Presence {
    inner: Arc<Inner>,
}

impl Presence {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    /// Sets the liveness key for another TTL.
    pub async fn mark_alive(&self, id: WorkspaceId) {
        let ttl = self.inner.config.liveness_ttl;
        self.set(self.alive_key(id), "online".to_owned(), ttl);
    }

    /// Remembers where the platform reaches the agent.
    pub async fn cache_url(&self, id: WorkspaceId, url: &str) {
        self.set(self.url_key(id), url.to_owned(), URL_TTL);
    }

    /// Remembers where other containers reach the agent.
    pub async fn cache_internal_url(&self, id: WorkspaceId, url: &str) {
        self.set(self.internal_url_key(id), url.to_owned(), URL_TTL);
    }

    /// Where the platform reaches the agent, if it is remembered.
    pub async fn url(&self, id: WorkspaceId) -> Option<String> {
        self.get(self.url_key(id)).await
    }

    /// Where other containers reach the agent, if it is remembered.
    pub async fn internal_url(&self, id: WorkspaceId) -> Option<String> {
        self.get(self.internal_url_key(id)).await
    }

    /// Forgets all of a workspace.
    pub async fn clear(&self, id: WorkspaceId) {
        let keys = vec![
            self.alive_key(id),
            self.url_key(id),
            self.internal_url_key(id),
        ];
        self.inner.write(Write::Delete(keys));
    }

    fn set(&self, key: String, value: String, ttl: Duration) {
        self.inner.write(Write::Set { key, value, ttl });
    }

    async fn get(&self, key: String) -> Option<String> {
        let mut command = redis::pipe();
        command.get(&key);
        match self.inner.link.run::<(Option<String>,)>(&command).await {
            Ok((value,)) => value,
            Err(LinkError::Down) => None,
            Err(LinkError::Refused(error)) => {
                tracing::warn!(%error, redis.key = key, "Redis refused a read of presence");
                None
            }
        }
    }

    fn alive_key(&self, id: WorkspaceId) -> String {
        format!("{}ws:{id}", self.inner.config.redis_prefix)
    }

    fn url_key(&self, id: WorkspaceId) -> String {
        format!("{}ws:{id}:url", self.inner.config.redis_prefix)
    }

    fn internal_url_key(&self, id: WorkspaceId) -> String {
        format!("{}ws:{id}:internal_url", self.inner.config.redis_prefix)
    }
}
