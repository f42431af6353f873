//! The real ledger on a real Postgres, and the model's words in its own.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use longshore_base::testing::TestDatabase;
use longshore_base::{JobId, WorkspaceId, schema};
use longshore_ledger::control::Scope;
use longshore_ledger::testing::Steps;
use longshore_ledger::{
    Backoff, Conflict, HookError, Hooks, Jitter, JobError, KindSpec, Kinds, Older, Policy,
    Resolution, TerminalJob, Verdict,
};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::reference::BACKOFF;
use crate::words::{Closed, Ending, Kind, Outcome, hours};

/// The kind that only asks.
pub(crate) const NEWER: &str = "newer";

static CONFLICTS: [Conflict; 8] = {
    const fn cell(older: Kind, when: Older, then: Resolution) -> Conflict {
        Conflict {
            newer: NEWER,
            older: older.name(),
            when,
            then,
        }
    }
    [
        cell(Kind::Plain, Older::Scheduled, Resolution::Supersede),
        cell(Kind::Plain, Older::BackingOff, Resolution::Supersede),
        cell(Kind::Plain, Older::Queued, Resolution::Supersede),
        cell(Kind::Plain, Older::Running, Resolution::Cancel),
        cell(Kind::Hooked, Older::Scheduled, Resolution::Wait),
        cell(Kind::Hooked, Older::BackingOff, Resolution::Supersede),
        cell(Kind::Hooked, Older::Queued, Resolution::Coalesce),
        cell(Kind::Hooked, Older::Running, Resolution::Supersede),
    ]
};

/// Everything the ledger keeps; emptied between stories.
const TABLES: [&str; 10] = [
    "jobs",
    "job_slots",
    "job_keys",
    "job_history",
    "workers",
    "queue_controls",
    "queue_limits",
    "queue_tenants",
    "queue_clocks",
    "tenant_weights",
];

#[derive(Default)]
struct Told(Mutex<Vec<(JobId, longshore_ledger::Outcome)>>);

#[async_trait]
impl Hooks for Told {
    async fn on_terminal(&self, _: &mut PgConnection, job: &TerminalJob) -> Result<(), HookError> {
        self.0.lock().unwrap().push((job.id, job.outcome));
        Ok(())
    }
}

/// What does not change from story to story.
pub(crate) struct Ledger {
    pub(crate) database: TestDatabase,
    pub(crate) kinds: Kinds,
    told: Arc<Told>,
}

impl Ledger {
    pub(crate) async fn create() -> Self {
        let database = TestDatabase::create(&schema::MIGRATOR).await;
        // Nothing here outlives the server, so nothing has to wait for a disk.
        sqlx::raw_sql(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$",
        )
        .execute(database.pool())
        .await
        .unwrap();
        let told = Arc::new(Told::default());
        let [base, cap] = BACKOFF.map(hours);
        let policy = Policy {
            max_attempts: 3,
            backoff: Backoff {
                base,
                cap,
                jitter: Jitter::None,
            },
            timeout: hours(1),
            deadline: hours(10_000),
            concurrency: 1,
        };
        let kind = |kind: Kind, hooks| KindSpec {
            name: kind.name(),
            args_versions: &[1],
            policy,
            hooks,
        };
        let hooks: Arc<dyn Hooks> = told.clone();
        let kinds = Kinds::default()
            .with(kind(Kind::Plain, None))
            .with(kind(Kind::Hooked, Some(hooks)))
            .with_conflicts(&CONFLICTS);
        Self {
            database,
            kinds,
            told,
        }
    }

    pub(crate) fn pool(&self) -> &PgPool {
        self.database.pool()
    }

    async fn empty(&self) {
        let mut sql = String::from("UPDATE installation SET clock_offset = '0';");
        for table in TABLES {
            sql.push_str(&format!("DELETE FROM {table};"));
        }
        // Only names of this file are put into the text.
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(self.pool())
            .await
            .unwrap();
        self.told.0.lock().unwrap().clear();
    }

    /// The engine's steps, on a ledger without jobs. Nobody else admits.
    pub(crate) async fn begin(&self) -> Steps {
        self.empty().await;
        Steps::new(self.pool().clone(), self.kinds.clone())
    }

    /// Ends the hooks were told of, since the beginning.
    pub(crate) fn told(&self) -> Vec<(JobId, longshore_ledger::Outcome)> {
        self.told.0.lock().unwrap().clone()
    }
}

pub(crate) fn worker_name(number: usize) -> String {
    format!("worker-{number}")
}

pub(crate) fn workspace(number: u128) -> WorkspaceId {
    WorkspaceId(Uuid::from_u128(number))
}

pub(crate) fn scope_and_value(scope: Closed) -> (Scope, String) {
    match scope {
        Closed::Queue(kind) => (Scope::Queue, kind.name().into()),
        Closed::All => (Scope::All, String::new()),
        Closed::Kind(kind) => (Scope::Kind, kind.name().into()),
        Closed::Engine => (Scope::Engine, "engine".into()),
        Closed::Tenant(tenant) => (Scope::Tenant, tenant.into()),
        Closed::Workspace(number) => (Scope::Workspace, workspace(number).to_string()),
    }
}

pub(crate) const fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded => "succeeded",
        Outcome::Dead => "dead",
        Outcome::Cancelled => "cancelled",
        Outcome::Superseded => "superseded",
    }
}

pub(crate) fn verdict(ending: Ending) -> Verdict {
    let error = || JobError::plain("no luck");
    match ending {
        Ending::Done => Verdict::Done(None),
        Ending::Retry => Verdict::Retry(error()),
        Ending::RetryAfter(wait) => Verdict::RetryAfter(error(), hours(wait)),
        Ending::Permanent => Verdict::Permanent(error()),
        Ending::Snooze(wait) => Verdict::Snooze(hours(wait), "not yet".into()),
        Ending::Cancelled => Verdict::Cancelled,
        Ending::Superseded => Verdict::Superseded("somebody else did it".into()),
        Ending::GiveBack => Verdict::GiveBack,
    }
}
