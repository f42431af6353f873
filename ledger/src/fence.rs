//! The only way a run writes: a transaction that holds the job's row for its token.
//!
//! Fencing compares tokens, never times. The row is locked `FOR KEY SHARE`, so a reaper that wants to take the job
//! waits for the commit, and a run that lost its job finds no row and writes nothing.

use longshore_base::JobId;
use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use uuid::Uuid;

use crate::job::Progress;

/// A run may not write.
#[derive(Debug, thiserror::Error)]
pub enum Fenced {
    /// Another run owns the job now, or it has ended.
    #[error("job {0} is no longer this run's")]
    Lost(JobId),
    /// Postgres did not answer; whether the job is still ours is unknown.
    #[error("cannot begin a transaction for job {id}")]
    Database {
        /// The job.
        id: JobId,
        /// What the driver said.
        #[source]
        source: sqlx::Error,
    },
}

/// A transaction of a run that still owns its job.
pub struct FencedTx {
    tx: Transaction<'static, Postgres>,
    id: JobId,
}

impl FencedTx {
    pub(crate) async fn begin(pool: &PgPool, id: JobId, token: Uuid) -> Result<Self, Fenced> {
        let database = |source| Fenced::Database { id, source };
        let mut tx = pool.begin().await.map_err(database)?;
        let owned = sqlx::query_scalar!(
            r#"SELECT 1 AS "one!" FROM jobs WHERE id = $1 AND token = $2 FOR KEY SHARE"#,
            id.0,
            token
        )
        .fetch_optional(&mut *tx)
        .await
        .map_err(database)?;
        match owned {
            Some(_) => Ok(Self { tx, id }),
            None => Err(Fenced::Lost(id)),
        }
    }

    /// The connection, to pass to functions that take `tx`.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.tx
    }

    /// Records how far the run is, in this transaction.
    ///
    /// # Errors
    /// [`Fenced::Database`].
    pub async fn record_progress(&mut self, progress: &Progress) -> Result<(), Fenced> {
        let id = self.id;
        sqlx::query!(
            "UPDATE jobs SET progress = $2, revision = revision + 1 WHERE id = $1",
            id.0,
            serde_json::to_value(progress).unwrap_or_default(),
        )
        .execute(&mut *self.tx)
        .await
        .map_err(|source| Fenced::Database { id, source })?;
        Ok(())
    }

    /// Leaves something for the next run of this job, in this transaction. Unlike progress it is kept over crashes and
    /// retries, and is for the executor alone.
    ///
    /// # Errors
    /// [`Fenced::Database`].
    pub async fn record_checkpoint(&mut self, checkpoint: serde_json::Value) -> Result<(), Fenced> {
        let id = self.id;
        sqlx::query!(
            "UPDATE jobs SET checkpoint = $2 WHERE id = $1",
            id.0,
            checkpoint
        )
        .execute(&mut *self.tx)
        .await
        .map_err(|source| Fenced::Database { id, source })?;
        Ok(())
    }

    /// A number that is higher in every later run of this job, and in every later run of another job that shares a key
    /// with it: for things outside Postgres that refuse whoever comes with a lower one than they have seen. It may be
    /// used once the commit is confirmed, which keeps it from being given again.
    ///
    /// It is the transaction's own number. This transaction took it while it held the job's row, so before the job could
    /// end or be taken over; a later run begins after that.
    ///
    /// # Errors
    /// [`Fenced::Database`].
    pub async fn fencing_number(&mut self) -> Result<i64, Fenced> {
        let id = self.id;
        sqlx::query_scalar!(r#"SELECT pg_current_xact_id()::text::bigint AS "number!""#)
            .fetch_one(&mut *self.tx)
            .await
            .map_err(|source| Fenced::Database { id, source })
    }

    /// Lets the commit answer before it is on disk: for progress, which a crash may forget.
    ///
    /// # Errors
    /// [`Fenced::Database`].
    pub async fn make_forgettable(&mut self) -> Result<(), Fenced> {
        let id = self.id;
        sqlx::query!("SET LOCAL synchronous_commit = off")
            .execute(&mut *self.tx)
            .await
            .map_err(|source| Fenced::Database { id, source })?;
        Ok(())
    }

    /// Keeps what was written.
    ///
    /// # Errors
    /// [`Fenced::Database`] when the commit is not confirmed; it may or may not have happened.
    pub async fn commit(self) -> Result<(), Fenced> {
        let id = self.id;
        self.tx
            .commit()
            .await
            .map_err(|source| Fenced::Database { id, source })
    }
}
