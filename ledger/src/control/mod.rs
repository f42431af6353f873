//! The operator's hands on the queues: modes, holds, limits and weights, all in Postgres, so that they survive every
//! restart.
//!
//! What is closed is closed in one place, admission: a change and an admission exclude each other by one advisory lock,
//! so that nothing is admitted after a change has been committed. What had been admitted but not claimed goes back in
//! the change's own transaction. For what had been claimed a moment before, [`settle`] waits: each worker says which
//! change it has seen, and says so only after everything it had claimed before has begun. So once `settle` has answered,
//! nothing of the scope starts. Rules: `spec: jobs` §8.
//!
//! A queue in an operator's mouth is a kind; it stands for all its places, `provision@<engine>`.

mod change;
mod limits;
mod view;
mod weights;

use std::time::Duration;

use longshore_base::{Timestamp, WorkspaceId};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

pub use change::{
    Changed, NewHold, in_flight, lift_expired, lift_hold, queues_to_poke, resume, set_hold,
    set_mode, settle,
};
pub use limits::{Limits, LimitsPatch, set_limits};
pub(crate) use limits::{max_per_worker, room_by_limits, spend};
pub use view::{
    Hold, QueueDetail, QueuePlace, QueueView, TenantWait, WorkerRun, WorkerView, hold, holds,
    queue, queues, set_draining, worker, workers,
};
pub use weights::{MAX_WEIGHT, TenantWeight, clear_weight, set_weight, weights};

use crate::LedgerError;

/// What a control is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type)]
#[sqlx(type_name = "control_scope", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The mode of a queue.
    Queue,
    /// Everything.
    All,
    /// A kind.
    Kind,
    /// An engine: the place of a queue.
    Engine,
    /// An organisation root.
    Tenant,
    /// A workspace.
    Workspace,
}

/// How a scope is closed. Its absence is `run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::Type)]
#[sqlx(type_name = "control_mode", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Nothing new starts.
    Pause,
    /// Nothing new starts, and somebody waits for the rest to end.
    Drain,
    /// Nothing new starts, and requests from outside are refused.
    Reject,
}

impl Mode {
    /// The word used in the API, the log and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Drain => "drain",
            Self::Reject => "reject",
        }
    }

    /// What a queue in this mode is, for people.
    #[must_use]
    pub const fn participle(self) -> &'static str {
        match self {
            Self::Pause => "paused",
            Self::Drain => "draining",
            Self::Reject => "closed",
        }
    }
}

/// An open control.
#[derive(Clone, Debug)]
pub struct Control {
    /// Its id.
    pub id: Uuid,
    /// What it is about.
    pub scope: Scope,
    /// Which one of those; empty for all.
    pub value: String,
    /// How it closes that.
    pub mode: Mode,
    /// Why.
    pub reason: Option<String>,
    /// Who set it.
    pub set_by: String,
    /// Since when.
    pub since: Timestamp,
    /// Until when, if it lifts itself.
    pub until: Option<Timestamp>,
}

impl Control {
    /// Why work waits, for people: 'queue provision is paused since 12:04 by ops: engine upgrade'.
    #[must_use]
    pub fn text(&self) -> String {
        let what = match self.scope {
            Scope::Queue => format!("queue {} is {}", self.value, self.mode.participle()),
            Scope::All => "everything is held".to_owned(),
            Scope::Kind => format!("kind {} is held", self.value),
            Scope::Engine => format!("engine {} is held", self.value),
            Scope::Tenant => format!("organisation {} is held", self.value),
            Scope::Workspace => format!("workspace {} is held", self.value),
        };
        let mut text = format!(
            "{what} since {} by {}",
            self.since.format("%H:%M"),
            self.set_by
        );
        if let Some(reason) = &self.reason {
            text.push_str(": ");
            text.push_str(reason);
        }
        text
    }
}

/// What a job is to controls.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its kind.
    pub kind: &'a str,
    /// The place of its queue, where it has one.
    pub place: Option<&'a str>,
    /// Whom it works for.
    pub tenant: &'a str,
    /// The workspace it is about.
    pub workspace_id: Option<WorkspaceId>,
}

impl Subject<'_> {
    /// The control that closes this job, if one does: queues first, then the widest hold.
    #[must_use]
    pub fn closed_by<'c>(&self, controls: &'c [Control]) -> Option<&'c Control> {
        controls.iter().find(|control| match control.scope {
            Scope::All => true,
            Scope::Queue | Scope::Kind => control.value == self.kind,
            Scope::Engine => self.place == Some(control.value.as_str()),
            Scope::Tenant => control.value == self.tenant,
            Scope::Workspace => self
                .workspace_id
                .is_some_and(|id| id.to_string() == control.value),
        })
    }
}

/// A queue or hold refuses requests from outside.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct Rejected {
    /// Which control, for people.
    pub text: String,
    /// When it may be over.
    pub retry_after: Duration,
}

/// What to say where nobody said until when.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// Everything that is open now, in the order of scopes.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn open_controls(conn: &mut PgConnection) -> Result<Vec<Control>, LedgerError> {
    sqlx::query_as!(
        Control,
        r#"SELECT id, scope AS "scope: Scope", value, mode AS "mode: Mode", reason, set_by, since, until
           FROM queue_controls WHERE ended_at IS NULL AND (until IS NULL OR until > longshore_now())
           ORDER BY scope, since"#
    )
    .fetch_all(conn)
    .await
    .map_err(LedgerError::database("reading queue controls"))
}

/// Whether a request from outside for such a job is taken. Internal enqueues do not ask: what they write waits.
///
/// # Errors
/// [`AcceptError::Rejected`] with the control's words.
pub async fn check_accepts(
    conn: &mut PgConnection,
    subject: Subject<'_>,
) -> Result<(), AcceptError> {
    let controls: Vec<Control> = open_controls(&mut *conn)
        .await?
        .into_iter()
        .filter(|control| control.mode == Mode::Reject)
        .collect();
    let Some(control) = subject.closed_by(&controls) else {
        return Ok(());
    };
    let retry_after = match control.until {
        Some(until) => {
            let now = longshore_base::clock::now(conn)
                .await
                .map_err(LedgerError::database("reading the clock"))?;
            (until - now).to_std().unwrap_or(RETRY_AFTER)
        }
        None => RETRY_AFTER,
    };
    Err(AcceptError::Rejected(Rejected {
        text: control.text(),
        retry_after,
    }))
}

/// Why a request is not taken.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// An operator refuses such requests.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// It could not be found out.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// The kind and the place of a queue's name.
pub(crate) fn split_queue(queue: &str) -> (&str, Option<&str>) {
    match queue.split_once('@') {
        Some((kind, place)) => (kind, Some(place)),
        None => (queue, None),
    }
}

/// Makes changes of controls and admissions exclude each other.
async fn lock_exclusive(tx: &mut PgConnection) -> Result<(), LedgerError> {
    sqlx::query!("SELECT pg_advisory_xact_lock(hashtextextended('longshore.control', 0))")
        .execute(tx)
        .await
        .map_err(LedgerError::database("locking the queue controls"))?;
    Ok(())
}
