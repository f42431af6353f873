//! What a newer job does to an older one of the same key (`spec: jobs` §3). Data of the kinds, applied in the newer one's
//! transaction before it is enqueued.

use longshore_base::JobId;
use sqlx::PgConnection;

use crate::finish::{End, end, lock};
use crate::job::State;
use crate::{Kinds, LedgerError, Outcome};

/// Where the older job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Older {
    /// It waits for its turn, its time or its key.
    Scheduled,
    /// It failed and waits to be tried again; it holds no slot.
    BackingOff,
    /// It was admitted, and no worker has it yet.
    Queued,
    /// A worker runs it.
    Running,
}

impl Older {
    /// Every place, for tables.
    pub const ALL: [Self; 4] = [
        Self::Scheduled,
        Self::BackingOff,
        Self::Queued,
        Self::Running,
    ];
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The newer one waits for its end.
    Wait,
    /// It takes the newer request over: the kinds' dedupe key does that, nothing is done here.
    Coalesce,
    /// It is pointless now, and ends.
    Supersede,
    /// Its run is asked to stop; the newer one waits for that.
    Cancel,
}

/// One cell of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The kind that is asked for now.
    pub newer: &'static str,
    /// The kind that was asked for before.
    pub older: &'static str,
    /// Where that is.
    pub when: Older,
    /// What happens to it.
    pub then: Resolution,
}

/// Applies the table to every live job on these keys. Answers the queues to poke after the commit.
///
/// # Errors
/// [`LedgerError`]; nothing may be committed then.
pub async fn resolve_conflicts(
    tx: &mut PgConnection,
    kinds: &Kinds,
    newer: &str,
    keys: &[String],
    by: &str,
) -> Result<Vec<String>, LedgerError> {
    let older = sqlx::query_scalar!(
        r#"SELECT id AS "id!" FROM jobs WHERE keys[1] = ANY($1) AND cardinality(keys) = 1 AND state = 'scheduled' AND wait <> 'time'
           UNION SELECT job_id FROM job_slots WHERE key = ANY($1)
           UNION SELECT job_id FROM job_keys WHERE key = ANY($1)
           UNION SELECT id FROM jobs WHERE state = 'scheduled' AND wait = 'time' AND keys && $1
           ORDER BY 1"#,
        keys
    )
    .fetch_all(&mut *tx)
    .await
    .map_err(LedgerError::database("looking for older jobs of a key"))?;
    let mut pokes = Vec::new();
    for id in older.into_iter().map(JobId) {
        let Some(live) = lock(&mut *tx, id, None).await? else {
            continue;
        };
        let place = match live.state {
            State::Running => Older::Running,
            State::Queued => Older::Queued,
            State::Scheduled if live.backing_off => Older::BackingOff,
            State::Scheduled => Older::Scheduled,
        };
        match kinds.resolution(newer, &live.kind, place) {
            Resolution::Wait | Resolution::Coalesce => {}
            // A run cannot be taken from its worker here; the most that can be done is to ask.
            Resolution::Cancel | Resolution::Supersede if place == Older::Running => {
                request_stop(&mut *tx, id, newer, by).await?;
            }
            Resolution::Supersede | Resolution::Cancel => {
                let reason = format!("a {newer} was asked for by {by}");
                let how = End::new(Outcome::Superseded, Some(reason));
                pokes.extend(end(&mut *tx, kinds, live, how).await?);
            }
        }
    }
    Ok(pokes)
}

async fn request_stop(
    tx: &mut PgConnection,
    id: JobId,
    newer: &str,
    by: &str,
) -> Result<(), LedgerError> {
    sqlx::query!(
        r#"UPDATE jobs SET revision = revision + 1,
               cancel_requested = coalesce(cancel_requested, jsonb_build_object('by', $2::text, 'reason', $3::text, 'at', longshore_now()))
           WHERE id = $1"#,
        id.0,
        by,
        format!("cancelled: a {newer} was asked for by {by}"),
    )
    .execute(tx)
    .await
    .map_err(LedgerError::database("asking an older job to stop"))?;
    Ok(())
}
