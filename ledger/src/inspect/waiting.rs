//! Why jobs wait, told from what is around them, which is read once for all that are asked about.

use std::collections::{HashMap, HashSet};

use longshore_base::{JobId, Timestamp, WorkspaceId};
use serde::Serialize;
use sqlx::PgConnection;

use crate::LedgerError;
use crate::control::{Control, Mode, Scope, Subject, open_controls, split_queue};
use crate::job::{State, Wait};

/// Why a job is not running.
#[derive(Clone, Debug, Serialize)]
pub struct Waiting {
    /// `time`, `key`, `limit`, `paused`, `drained`, `held`, `no_worker`, `backing_off` or `admitted`.
    pub reason: &'static str,
    /// The same for people.
    pub text: String,
    /// Since when.
    pub since: Timestamp,
    /// Until when, where that is known.
    pub until: Option<Timestamp>,
    /// The job that holds its key.
    pub behind: Option<JobId>,
}

/// A job that waits.
pub(super) struct Waiter {
    pub(super) queue: String,
    pub(super) tenant: String,
    pub(super) workspace_id: Option<WorkspaceId>,
    pub(super) keys: Vec<String>,
    pub(super) admitted: bool,
    pub(super) wait: Option<Wait>,
    pub(super) backing_off: bool,
    pub(super) run_at: Timestamp,
    pub(super) since: Timestamp,
}

/// What waiting jobs may wait for.
pub(super) struct Surroundings {
    controls: Vec<Control>,
    served: HashSet<String>,
    holders: HashMap<String, JobId>,
}

impl Surroundings {
    /// Reads what these wait for: at most three statements, however many they are.
    pub(super) async fn of(
        conn: &mut PgConnection,
        waiters: &[&Waiter],
    ) -> Result<Self, LedgerError> {
        let mut found = Self {
            controls: Vec::new(),
            served: HashSet::new(),
            holders: HashMap::new(),
        };
        let keys: Vec<String> = waiters
            .iter()
            .filter(|waiter| waiter.waits_for(Wait::Key))
            .flat_map(|waiter| waiter.keys.iter().cloned())
            .collect();
        if !keys.is_empty() {
            let held = sqlx::query!(
                "SELECT key, job_id FROM job_slots WHERE key = ANY($1)",
                &keys
            )
            .fetch_all(&mut *conn)
            .await
            .map_err(LedgerError::database("reading who holds a key"))?;
            let held = held.into_iter().map(|row| (row.key, JobId(row.job_id)));
            found.holders.extend(held);
        }
        let wait_for_their_turn =
            |waiter: &&Waiter| !waiter.waits_for(Wait::Key) && !waiter.waits_for(Wait::Time);
        if waiters.iter().any(wait_for_their_turn) {
            found.controls = open_controls(&mut *conn).await?;
            let served = sqlx::query_scalar!(
                r#"SELECT DISTINCT queue AS "queue!" FROM workers, unnest(queues) AS queue"#
            )
            .fetch_all(conn)
            .await
            .map_err(LedgerError::database("reading which queues are served"))?;
            found.served.extend(served);
        }
        Ok(found)
    }
}

impl Waiter {
    fn waits_for(&self, wait: Wait) -> bool {
        !self.admitted && self.wait == Some(wait)
    }

    /// Why it waits.
    pub(super) fn explain(&self, around: &Surroundings) -> Waiting {
        if self.waits_for(Wait::Time) {
            return self.by_time();
        }
        if self.waits_for(Wait::Key) {
            let behind = self.keys.iter().find_map(|key| around.holders.get(key));
            let text = match behind {
                Some(job) => format!("waiting: behind job {job} of the same workspace"),
                None => "waiting: behind another job of the same workspace".to_owned(),
            };
            return Waiting {
                behind: behind.copied(),
                ..self.simple("key", text)
            };
        }
        let (kind, place) = split_queue(&self.queue);
        let subject = Subject {
            kind,
            place,
            tenant: &self.tenant,
            workspace_id: self.workspace_id,
        };
        if let Some(control) = subject.closed_by(&around.controls) {
            let reason = match (control.scope, control.mode) {
                (Scope::Queue, Mode::Drain) => "drained",
                (Scope::Queue, _) => "paused",
                _ => "held",
            };
            return Waiting {
                since: control.since.max(self.since),
                until: control.until,
                ..self.simple(reason, format!("waiting: {}", control.text()))
            };
        }
        let queue = &self.queue;
        if !around.served.contains(queue) {
            let text = format!("waiting: no worker serves queue {queue}");
            self.simple("no_worker", text)
        } else if self.admitted {
            let text = "waiting: admitted, the next free worker takes it".to_owned();
            self.simple("admitted", text)
        } else {
            self.simple("limit", format!("waiting: its turn in queue {queue}"))
        }
    }

    fn by_time(&self) -> Waiting {
        let at = self.run_at.format("%H:%M:%S UTC");
        let told = if self.backing_off {
            let text = format!("waiting: it failed and is tried again at {at}");
            self.simple("backing_off", text)
        } else {
            self.simple("time", format!("waiting: not due before {at}"))
        };
        Waiting {
            until: Some(self.run_at),
            ..told
        }
    }

    fn simple(&self, reason: &'static str, text: String) -> Waiting {
        Waiting {
            reason,
            text,
            since: self.since,
            until: None,
            behind: None,
        }
    }
}

/// Why workspaces wait: those whose oldest live job does. One of them, or all.
///
/// # Errors
/// [`LedgerError::Database`].
pub async fn waiting_workspaces(
    conn: &mut PgConnection,
    only: Option<WorkspaceId>,
) -> Result<HashMap<WorkspaceId, Waiting>, LedgerError> {
    let oldest = sqlx::query!(
        r#"SELECT DISTINCT ON (workspace_id) workspace_id AS "workspace_id!", queue, tenant, keys, state AS "state: State",
               wait AS "wait: Wait", backing_off, run_at, coalesce(queued_at, created_at) AS "since!"
           FROM jobs WHERE workspace_id IS NOT NULL AND ($1::uuid IS NULL OR workspace_id = $1)
           ORDER BY workspace_id, id"#,
        only.map(|id| id.0)
    )
    .fetch_all(&mut *conn)
    .await
    .map_err(LedgerError::database("looking for jobs of workspaces"))?;
    let waiters: Vec<(WorkspaceId, Waiter)> = oldest
        .into_iter()
        .filter(|row| row.state != State::Running)
        .map(|row| {
            let id = WorkspaceId(row.workspace_id);
            let waiter = Waiter {
                queue: row.queue,
                tenant: row.tenant,
                workspace_id: Some(id),
                keys: row.keys,
                admitted: row.state == State::Queued,
                wait: Some(row.wait),
                backing_off: row.backing_off,
                run_at: row.run_at,
                since: row.since,
            };
            (id, waiter)
        })
        .collect();
    let all: Vec<&Waiter> = waiters.iter().map(|(_, waiter)| waiter).collect();
    let around = Surroundings::of(conn, &all).await?;
    Ok(waiters
        .iter()
        .map(|(id, waiter)| (*id, waiter.explain(&around)))
        .collect())
}
