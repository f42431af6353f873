//! The schema of the database: applying the migrations that are compiled in, and refusing a database they do not fit.
//!
//! Only `migrate` and `up` apply; every other process checks and refuses ([`check`]), so that no server changes a
//! database under its peers by merely starting. A migration must work under the code before it; even so a process
//! refuses a schema newer than itself, because it cannot know that the newer one kept that promise.

use sqlx::migrate::{Migrate as _, MigrateDatabase as _, MigrateError, Migrator};
use sqlx::{PgPool, Postgres};

use crate::Secret;

/// The one schema history of the control plane.
pub static MIGRATOR: Migrator = sqlx::migrate!("../migrations");

/// SQLSTATE of a table that does not exist.
const UNDEFINED_TABLE: &str = "42P01";

/// The database does not have the schema this binary was made for.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// No migration was ever applied.
    #[error("the database has no schema yet; run `longshore migrate` once")]
    Missing,
    /// The binary is newer than the database.
    #[error(
        "the database's schema is at version {found}, this binary needs version {wanted}; run `longshore migrate`"
    )]
    Older {
        /// The last version applied.
        found: i64,
        /// The last version compiled in.
        wanted: i64,
    },
    /// The database is newer than the binary.
    #[error(
        "the database's schema is at version {found}, newer than the version {known} this binary knows; \
         run the release that migrated it, or a later one"
    )]
    Newer {
        /// The last version applied.
        found: i64,
        /// The last version compiled in.
        known: i64,
    },
    /// A migration was changed after it had been applied.
    #[error(
        "migration {version} was applied to this database in another form than this binary has; \
         it belongs to another build and cannot be used"
    )]
    Differs {
        /// Which one.
        version: i64,
    },
    /// A migration failed half-way.
    #[error("migration {version} failed; the database is unchanged by it")]
    Failed {
        /// Which one, or the last one before it when the driver does not say.
        version: i64,
        /// What the database said.
        source: MigrateError,
    },
    /// The history could not be read or written.
    #[error("cannot read the schema's history")]
    Database(#[source] MigrateError),
}

/// Creates the database a URL names, if the server does not have it. Answers whether it did.
///
/// # Errors
/// Whatever the server says, for example that the login may not create databases.
pub async fn create_database(url: &Secret<String>) -> Result<bool, sqlx::Error> {
    if Postgres::database_exists(url.expose()).await? {
        return Ok(false);
    }
    Postgres::create_database(url.expose()).await?;
    Ok(true)
}

/// Applies what is missing; safe to repeat and to run from several processes at once (an advisory lock serialises them).
/// Answers how many migrations were applied.
///
/// # Errors
/// [`SchemaError`]; a failed migration leaves nothing of itself.
pub async fn migrate(pool: &PgPool) -> Result<usize, SchemaError> {
    let before = match applied(pool).await {
        Ok(steps) => steps.len(),
        Err(SchemaError::Missing) => 0,
        Err(error) => return Err(error),
    };
    MIGRATOR.run(pool).await.map_err(explain)?;
    Ok(applied(pool).await?.len().saturating_sub(before))
}

/// Refuses a database whose schema is not the one compiled in.
///
/// # Errors
/// [`SchemaError`], each with a sentence fit for the console.
pub async fn check(pool: &PgPool) -> Result<(), SchemaError> {
    verdict(&applied(pool).await?, &known())
}

/// One migration: version and checksum.
type Step = (i64, Vec<u8>);

fn known() -> Vec<Step> {
    MIGRATOR
        .iter()
        .map(|migration| (migration.version, migration.checksum.to_vec()))
        .collect()
}

async fn applied(pool: &PgPool) -> Result<Vec<Step>, SchemaError> {
    let mut connection = pool
        .acquire()
        .await
        .map_err(|error| SchemaError::Database(MigrateError::Execute(error)))?;
    let listed = connection
        .list_applied_migrations(&MIGRATOR.table_name)
        .await;
    match listed {
        Ok(steps) => Ok(steps
            .into_iter()
            .map(|step| (step.version, step.checksum.to_vec()))
            .collect()),
        Err(MigrateError::Execute(sqlx::Error::Database(error)))
            if error.code().as_deref() == Some(UNDEFINED_TABLE) =>
        {
            Err(SchemaError::Missing)
        }
        Err(error) => Err(SchemaError::Database(error)),
    }
}

fn verdict(applied: &[Step], known: &[Step]) -> Result<(), SchemaError> {
    let last = |steps: &[Step]| steps.last().map_or(0, |(version, _)| *version);
    let (found, wanted) = (last(applied), last(known));
    if applied.is_empty() {
        return Err(SchemaError::Missing);
    }
    if found > wanted {
        return Err(SchemaError::Newer {
            found,
            known: wanted,
        });
    }
    if let Some((version, _)) = applied
        .iter()
        .zip(known)
        .find_map(|(found, wanted)| (found != wanted).then_some(found))
    {
        return Err(SchemaError::Differs { version: *version });
    }
    if applied.len() < known.len() {
        return Err(SchemaError::Older { found, wanted });
    }
    Ok(())
}

fn explain(error: MigrateError) -> SchemaError {
    let known = known().last().map_or(0, |(version, _)| *version);
    match error {
        MigrateError::VersionMismatch(version) => SchemaError::Differs { version },
        MigrateError::VersionMissing(found) => SchemaError::Newer { found, known },
        MigrateError::ExecuteMigration(_, version) => SchemaError::Failed {
            version,
            source: error,
        },
        other => SchemaError::Database(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(versions: &[i64]) -> Vec<Step> {
        versions.iter().map(|version| (*version, vec![0])).collect()
    }

    #[test]
    fn only_the_very_schema_compiled_in_is_accepted() {
        let known = steps(&[1, 2, 3]);
        assert!(verdict(&steps(&[1, 2, 3]), &known).is_ok());
        assert!(matches!(verdict(&[], &known), Err(SchemaError::Missing)));
        assert!(matches!(
            verdict(&steps(&[1, 2]), &known),
            Err(SchemaError::Older {
                found: 2,
                wanted: 3
            })
        ));
        assert!(matches!(
            verdict(&steps(&[1, 2, 3, 4]), &known),
            Err(SchemaError::Newer { found: 4, known: 3 })
        ));
        let changed = vec![(1, vec![0]), (2, vec![9]), (3, vec![0])];
        assert!(matches!(
            verdict(&changed, &known),
            Err(SchemaError::Differs { version: 2 })
        ));
    }
}
