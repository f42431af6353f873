//! Whose jobs come next: start-time fair queueing over tenants, priorities inside a tenant.
//!
//! Each tenant has a tag, a position in the queue's virtual time, which grows by one over its weight with each of its
//! admitted jobs (weights are an operator's, else one); a tenant that was idle begins where the clock stands. The fewest
//! jobs in flight go first, counted in whole rounds: as many jobs as the tenant weighs. Then the lowest start tag, then
//! whoever was idle longest, then the oldest job. So ten thousand jobs of one organisation cost another's single job one
//! turn, and a tenant cannot save up turns while it has nothing to do. While only one tenant has jobs, nothing of this is
//! read or written.
//!
//! Goyal, Vin, Cheng: Start-time Fair Queuing, SIGCOMM 1996; the preference for flows that were idle is that of
//! RFC 8290, section 4.1.

use std::collections::HashMap;

use sqlx::PgConnection;
use uuid::Uuid;

use crate::LedgerError;

/// Tenants weighed in one pass. Where there are more, a pass begins at a random one.
const TENANTS: i64 = 256;

/// The jobs of a pass, in the order they should run.
pub(super) struct Chosen {
    jobs: Vec<ChosenJob>,
}

struct ChosenJob {
    id: Uuid,
    tenant: String,
    /// Where it starts in virtual time.
    start: f64,
    /// Its tenant's.
    weight: i16,
}

impl Chosen {
    pub(super) fn ids(&self) -> Vec<Uuid> {
        self.jobs.iter().map(|job| job.id).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Advances the tags of the tenants whose jobs were admitted, and the queue's clock.
    pub(super) async fn count(
        &self,
        tx: &mut PgConnection,
        queue: &str,
        admitted: &[Uuid],
    ) -> Result<(), LedgerError> {
        if admitted.is_empty() {
            return Ok(());
        }
        let mut tags: HashMap<&str, f64> = HashMap::new();
        let mut clock = 0.0_f64;
        for job in self.jobs.iter().filter(|job| admitted.contains(&job.id)) {
            let tag = tags.entry(&job.tenant).or_default();
            *tag = tag.max(job.start + f64::from(job.weight).recip());
            clock = clock.max(job.start);
        }
        let (tenants, tags): (Vec<String>, Vec<f64>) = tags
            .into_iter()
            .map(|(tenant, tag)| (tenant.to_owned(), tag))
            .unzip();
        sqlx::query!(
            r#"WITH clock AS (
                   INSERT INTO queue_clocks (queue, virtual_time) VALUES ($1, $4)
                   ON CONFLICT (queue) DO UPDATE SET virtual_time = greatest(queue_clocks.virtual_time, excluded.virtual_time)
               )
               INSERT INTO queue_tenants (queue, tenant, tag, served_at)
               SELECT $1, tenant, tag, longshore_now() FROM unnest($2::text[], $3::float8[]) AS served(tenant, tag)
               ON CONFLICT (queue, tenant) DO UPDATE SET tag = excluded.tag, served_at = excluded.served_at"#,
            queue,
            &tenants,
            &tags,
            clock,
        )
        .execute(tx)
        .await
        .map_err(LedgerError::database("counting turns of tenants"))?;
        Ok(())
    }
}

/// Chooses at most `room` ready jobs, leaving out held tenants and workspaces.
pub(super) async fn choose(
    tx: &mut PgConnection,
    queue: &str,
    room: i64,
    held: (&[String], &[Uuid]),
) -> Result<Chosen, LedgerError> {
    let after = first_of_many(tx, queue).await?;
    let chosen = of_many(tx, queue, &after, room, held).await?;
    if chosen.len() > 0 || after.is_empty() {
        return Ok(chosen);
    }
    of_many(tx, queue, "", room, held).await
}

/// Where this pass begins among the tenants: before the first, unless there are more than one pass weighs.
async fn first_of_many(tx: &mut PgConnection, queue: &str) -> Result<String, LedgerError> {
    let beyond = sqlx::query_scalar!(
        "SELECT tenant FROM queue_tenants WHERE queue = $1 ORDER BY tenant OFFSET $2 LIMIT 1",
        queue,
        TENANTS
    )
    .fetch_optional(&mut *tx)
    .await
    .map_err(LedgerError::database("counting tenants"))?;
    if beyond.is_none() {
        return Ok(String::new());
    }
    // Tenants are ids with random parts, so a random position is a random tenant.
    Ok(longshore_base::ids::random_uuid().to_string())
}

async fn of_many(
    tx: &mut PgConnection,
    queue: &str,
    after: &str,
    room: i64,
    (held_tenants, held_workspaces): (&[String], &[Uuid]),
) -> Result<Chosen, LedgerError> {
    let jobs = sqlx::query_as!(
        ChosenJob,
        r#"WITH RECURSIVE tenants (tenant, nth) AS (
               (SELECT tenant, 1 FROM jobs WHERE queue = $1 AND state = 'scheduled' AND wait = 'ready' AND tenant > $2
                ORDER BY tenant LIMIT 1)
               UNION ALL
               SELECT (SELECT jobs.tenant FROM jobs WHERE queue = $1 AND state = 'scheduled' AND wait = 'ready'
                         AND jobs.tenant > tenants.tenant ORDER BY jobs.tenant LIMIT 1), nth + 1
               FROM tenants WHERE tenants.tenant IS NOT NULL AND nth < $6
           ), busy AS MATERIALIZED (
               SELECT tenant, count(*) AS jobs FROM (
                   SELECT tenant FROM jobs WHERE queue = $1 AND state = 'queued'
                   UNION ALL SELECT tenant FROM jobs WHERE queue = $1 AND state = 'running'
               ) AS in_flight GROUP BY tenant
           ), competing AS MATERIALIZED (
               SELECT tenants.tenant, coalesce(weight, 1::smallint) AS weight, coalesce(tag, 0) AS tag, served_at, coalesce(busy.jobs, 0) AS in_flight,
                   greatest(coalesce(tag, 0), coalesce((SELECT virtual_time FROM queue_clocks WHERE queue_clocks.queue = $1), 0)) AS start
               FROM tenants LEFT JOIN queue_tenants ON queue_tenants.queue = $1 AND queue_tenants.tenant = tenants.tenant
               LEFT JOIN busy ON busy.tenant = tenants.tenant
               LEFT JOIN tenant_weights ON tenant_weights.tenant = tenants.tenant
               WHERE tenants.tenant IS NOT NULL AND tenants.tenant <> ALL ($4)
           )
           SELECT job.id AS "id!", competing.tenant AS "tenant!", competing.start + job.nth / competing.weight::float8 AS "start!",
               competing.weight AS "weight!"
           FROM competing CROSS JOIN LATERAL (
               SELECT ready.id, ready.seq, row_number() OVER (ORDER BY ready.priority, ready.seq) - 1 AS nth FROM (
                   SELECT id, priority, seq FROM jobs WHERE queue = $1 AND state = 'scheduled' AND wait = 'ready' AND tenant = competing.tenant
                     AND (workspace_id IS NULL OR workspace_id <> ALL ($5))
                   ORDER BY priority, seq LIMIT least($3::bigint, 1 + 2 * $3::bigint * competing.weight / (SELECT sum(weight) FROM competing))
               ) AS ready
           ) AS job
           ORDER BY (competing.in_flight + job.nth) / competing.weight, competing.start + job.nth / competing.weight::float8, competing.tag, competing.served_at NULLS FIRST, job.seq
           LIMIT $3::bigint"#,
        queue,
        after,
        room,
        held_tenants,
        held_workspaces,
        i32::try_from(TENANTS).unwrap_or(i32::MAX),
    )
    .fetch_all(tx)
    .await
    .map_err(LedgerError::database("choosing jobs of several tenants"))?;
    Ok(Chosen { jobs })
}

/// Forgets tenants that were not served for an hour: what they would be given now is a fresh start.
pub(crate) async fn forget_idle(pool: &sqlx::PgPool) -> Result<(), LedgerError> {
    sqlx::query!("DELETE FROM queue_tenants WHERE served_at < longshore_now() - interval '1 hour'")
        .execute(pool)
        .await
        .map_err(LedgerError::database("forgetting idle tenants"))?;
    Ok(())
}
