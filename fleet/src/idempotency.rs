//! Requests that may be repeated (`spec: jobs` §11): a key, chosen by the client, under which the answer is kept.
//!
//! Everything happens in the transaction of the work itself:
//!
//! ```text
//! BEGIN ─▶ claim: advisory lock, else «in progress» ─▶ a kept answer: replay it, or refuse another request
//!                                                  └─▶ none: savepoint ─▶ work ─▶ (undo) ─▶ keep the answer ─▶ COMMIT
//! ```
//!
//! So an answer is kept exactly if its work is, and no row says «under way» that a crash could leave behind: whoever
//! dies loses lock, work and answer together. The lock is the transaction's, and is released after the commit is
//! visible; who gets it next therefore finds the answer, if it looks in a statement of its own.
//!
//! Rows that have expired count as absent. Each answer that is kept clears some of them away.

use std::time::Duration;

use longshore_base::Timestamp;
use sqlx::PgConnection;
use sqlx::types::Json;

use crate::FleetError;
use crate::secrets::{Owner, Sealed, Sealer};

/// What the fingerprint's key is derived for, and where sealed bodies belong.
const PURPOSE: &str = "idempotency";
/// Expired rows that keeping one answer clears away: more than it adds, few enough to take no time.
const CLEARED_AT_ONCE: i64 = 50;

/// A request with a key.
#[derive(Clone, Copy, Debug)]
pub struct KeyedRequest<'a> {
    /// Who sends it: class and id of the credential.
    pub caller: &'a str,
    /// Its method.
    pub method: &'a str,
    /// Its path, ids in lower case.
    pub route: &'a str,
    /// Its query string.
    pub query: &'a str,
    /// The key.
    pub key: &'a str,
    /// Its body as it arrived.
    pub body: &'a [u8],
}

/// An answer as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptAnswer {
    /// The status.
    pub status: u16,
    /// The headers, in order.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// What became of claiming a key.
#[derive(Debug)]
pub enum Claim {
    /// Nobody has used it: do the work in this transaction, then keep the answer.
    Fresh(Fresh),
    /// This very request was answered before.
    Answered(KeptAnswer),
    /// Another request with it is under way.
    InProgress,
    /// It was used for a request that was another.
    OtherRequest,
}

/// A key that this transaction holds.
#[derive(Debug)]
pub struct Fresh {
    caller: String,
    method: String,
    route: String,
    key: String,
    fingerprint: [u8; 32],
}

/// Claims the key of a request until the transaction ends; never waits.
///
/// # Errors
/// [`FleetError::Database`]; [`FleetError::Unseal`] when the kept answer was sealed with a key that is gone.
pub async fn claim(
    tx: &mut PgConnection,
    keys: &Sealer,
    request: &KeyedRequest<'_>,
) -> Result<Claim, FleetError> {
    let binding = request.binding();
    let alone = sqlx::query_scalar!(
        r#"SELECT pg_try_advisory_xact_lock(hashtextextended('longshore.idempotency:' || $1, 0)) AS "alone!""#,
        binding,
    )
    .fetch_one(&mut *tx)
    .await?;
    if !alone {
        return Ok(Claim::InProgress);
    }
    let row = sqlx::query!(
        r#"SELECT fingerprint, status, headers AS "headers: Json<Vec<(String, String)>>",
                  encrypted_body, encryption_version, key_id
           FROM idempotency_keys
           WHERE caller = $1 AND method = $2 AND route = $3 AND key = $4 AND expires_at > longshore_now()"#,
        request.caller,
        request.method,
        request.route,
        request.key,
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = row else {
        sqlx::query("SAVEPOINT idempotent_work").execute(tx).await?;
        return Ok(Claim::Fresh(Fresh {
            caller: request.caller.to_owned(),
            method: request.method.to_owned(),
            route: request.route.to_owned(),
            key: request.key.to_owned(),
            fingerprint: keys.fingerprint(PURPOSE, &request.parts()),
        }));
    };
    // Opened first: a key that is gone from the ring must not look like another request.
    let sealed = Sealed {
        bytes: row.encrypted_body,
        version: row.encryption_version,
        key_id: row.key_id,
    };
    let body = keys.open_bytes(Owner::Platform(PURPOSE), &binding, &sealed)?;
    if !keys.is_fingerprint(PURPOSE, &request.parts(), &row.fingerprint) {
        return Ok(Claim::OtherRequest);
    }
    Ok(Claim::Answered(KeptAnswer {
        status: row.status.cast_unsigned(),
        headers: row.headers.0,
        body,
    }))
}

/// Until when answers are kept that another key than this sealed: a repetition of their requests needs that key.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn other_key_needed_until(
    conn: &mut PgConnection,
    key_id: &str,
) -> Result<Option<Timestamp>, FleetError> {
    Ok(sqlx::query_scalar!(
        "SELECT max(expires_at) FROM idempotency_keys
         WHERE key_id <> $1 AND expires_at > longshore_now()",
        key_id,
    )
    .fetch_one(conn)
    .await?)
}

impl Fresh {
    /// Takes back what the work has written since the claim; the key stays claimed.
    ///
    /// # Errors
    /// [`FleetError::Database`].
    pub async fn undo_work(&self, tx: &mut PgConnection) -> Result<(), FleetError> {
        sqlx::query("ROLLBACK TO SAVEPOINT idempotent_work")
            .execute(tx)
            .await?;
        Ok(())
    }

    /// Keeps the answer, in the transaction that claimed the key. Call it last: rows it clears away are locked until
    /// the commit.
    ///
    /// # Errors
    /// [`FleetError::Database`].
    pub async fn keep(
        self,
        tx: &mut PgConnection,
        keys: &Sealer,
        answer: &KeptAnswer,
        ttl: Duration,
    ) -> Result<(), FleetError> {
        let binding = binding(&self.caller, &self.method, &self.route, &self.key);
        let sealed = keys.seal_bytes(Owner::Platform(PURPOSE), &binding, &answer.body);
        // A row that is there already has expired, or the claim had found it.
        sqlx::query!(
            "INSERT INTO idempotency_keys
                 (caller, method, route, key, fingerprint, status, headers,
                  encrypted_body, encryption_version, key_id, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, longshore_now() + make_interval(secs => $11))
             ON CONFLICT (caller, method, route, key) DO UPDATE SET
                 fingerprint = excluded.fingerprint, status = excluded.status, headers = excluded.headers,
                 encrypted_body = excluded.encrypted_body, encryption_version = excluded.encryption_version,
                 key_id = excluded.key_id, created_at = excluded.created_at, expires_at = excluded.expires_at",
            self.caller,
            self.method,
            self.route,
            self.key,
            &self.fingerprint[..],
            answer.status.cast_signed(),
            Json(&answer.headers) as _,
            sealed.bytes,
            sealed.version,
            sealed.key_id,
            ttl.as_secs_f64(),
        )
        .execute(&mut *tx)
        .await?;
        clear_expired(tx).await
    }
}

/// After the insert, never before it: an insert may wait for a row that another transaction is clearing away, and this
/// waits for nobody, so no two can wait for each other.
async fn clear_expired(tx: &mut PgConnection) -> Result<(), FleetError> {
    sqlx::query!(
        "DELETE FROM idempotency_keys WHERE (caller, method, route, key) IN (
             SELECT caller, method, route, key FROM idempotency_keys
             WHERE expires_at <= (SELECT longshore_now())
             ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)",
        CLEARED_AT_ONCE,
    )
    .execute(tx)
    .await?;
    Ok(())
}

impl KeyedRequest<'_> {
    fn binding(&self) -> String {
        binding(self.caller, self.method, self.route, self.key)
    }

    fn parts(&self) -> [&[u8]; 4] {
        [
            self.method.as_bytes(),
            self.route.as_bytes(),
            self.query.as_bytes(),
            self.body,
        ]
    }
}

/// Names one key of one caller: for the lock, and as what a sealed body is bound to. Only the last part can hold a
/// space.
fn binding(caller: &str, method: &str, route: &str, key: &str) -> String {
    format!("{caller} {method} {route} {key}")
}
