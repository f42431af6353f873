//! What the platform authenticates with towards an agent (`spec: lifecycle` §9.6): one secret per workspace, in a column
//! of its row, read through a cache.
//!
//! A value in the cache lives five minutes, in each process by itself, so a change made elsewhere is seen within that
//! time. Absence is never cached: whoever finds none makes one, and of two that do so at once both get the one that was
//! stored. A read that fails is not healed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use longshore_base::{Secret, WorkspaceId, random};
use sqlx::PgConnection;

use crate::{Fleet, FleetError};

const TTL: Duration = Duration::from_secs(300);

type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// The read cache of one process.
pub struct InboundSecrets {
    clock: Clock,
    known: Mutex<HashMap<WorkspaceId, Entry>>,
}

struct Entry {
    secret: Secret<String>,
    until: Instant,
}

impl Default for InboundSecrets {
    fn default() -> Self {
        Self::with_clock(Instant::now)
    }
}

impl InboundSecrets {
    /// A cache with a clock of its own, for tests.
    #[must_use]
    pub fn with_clock(clock: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        Self {
            clock: Arc::new(clock),
            known: Mutex::default(),
        }
    }

    /// Forgets everything.
    pub fn reset(&self) {
        self.known().clear();
    }

    fn get(&self, id: WorkspaceId) -> Option<Secret<String>> {
        let now = (self.clock)();
        self.known()
            .get(&id)
            .filter(|entry| now < entry.until)
            .map(|entry| entry.secret.clone())
    }

    pub(crate) fn put(&self, id: WorkspaceId, secret: &Secret<String>) {
        let entry = Entry {
            secret: secret.clone(),
            until: (self.clock)() + TTL,
        };
        self.known().insert(id, entry);
    }

    fn known(&self) -> MutexGuard<'_, HashMap<WorkspaceId, Entry>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The secret of a workspace, made now if it has none; `None` for an unknown workspace. In a transaction that then rolls
/// back a new one would be remembered but not stored, so call it with a connection that commits.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn ensure(
    conn: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
) -> Result<Option<Secret<String>>, FleetError> {
    if let Some(secret) = fleet.inbound_secrets.get(id) {
        return Ok(Some(secret));
    }
    let stored = match find(conn, id).await? {
        None => return Ok(None),
        Some(Some(secret)) => Some(secret),
        Some(None) => heal(conn, id).await?,
    };
    Ok(stored.map(|secret| remember(fleet, id, secret)))
}

/// Gives a workspace a new secret, over an earlier one; `None` for an unknown workspace. Other processes may use the
/// earlier one for five minutes.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn issue(
    conn: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
) -> Result<Option<Secret<String>>, FleetError> {
    let secret = random::token();
    let done = sqlx::query!(
        "UPDATE workspaces SET platform_inbound_secret = $2 WHERE id = $1",
        id as WorkspaceId,
        secret,
    )
    .execute(conn)
    .await?;
    let stored = (done.rows_affected() == 1).then(|| Secret::new(secret));
    Ok(stored.map(|secret| remember(fleet, id, secret)))
}

pub(crate) fn remember(fleet: &Fleet, id: WorkspaceId, secret: Secret<String>) -> Secret<String> {
    fleet.inbound_secrets.put(id, &secret);
    secret
}

async fn find(
    conn: &mut PgConnection,
    id: WorkspaceId,
) -> Result<Option<Option<Secret<String>>>, FleetError> {
    let row = sqlx::query!(
        "SELECT platform_inbound_secret AS secret FROM workspaces WHERE id = $1",
        id as WorkspaceId
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| row.secret.map(Secret::new)))
}

async fn heal(
    conn: &mut PgConnection,
    id: WorkspaceId,
) -> Result<Option<Secret<String>>, FleetError> {
    let healed = sqlx::query_scalar!(
        r#"UPDATE workspaces SET platform_inbound_secret = $2
           WHERE id = $1 AND platform_inbound_secret IS NULL
           RETURNING platform_inbound_secret AS "secret!""#,
        id as WorkspaceId,
        random::token(),
    )
    .fetch_optional(&mut *conn)
    .await?;
    match healed {
        Some(secret) => Ok(Some(Secret::new(secret))),
        // Another process was faster; its value is the one.
        None => Ok(find(conn, id).await?.flatten()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lives_for_its_ttl_and_not_longer() {
        let start = Instant::now();
        let passed = Arc::new(Mutex::new(Duration::ZERO));
        let cache = InboundSecrets::with_clock({
            let passed = passed.clone();
            move || start + *passed.lock().unwrap()
        });
        let id = WorkspaceId::random();
        assert_eq!(cache.get(id), None);
        cache.put(id, &Secret::from("one"));
        *passed.lock().unwrap() = TTL - Duration::from_millis(1);
        assert_eq!(cache.get(id), Some(Secret::from("one")));
        *passed.lock().unwrap() = TTL;
        assert_eq!(cache.get(id), None);
        cache.put(id, &Secret::from("two"));
        assert_eq!(cache.get(id), Some(Secret::from("two")));
        cache.reset();
        assert_eq!(cache.get(id), None);
    }
}
