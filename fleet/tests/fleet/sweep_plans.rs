use std::time::Duration;

use longshore_base::WorkspaceId;
use longshore_base::clock::Stopwatch;
use longshore_fleet::WorkspaceStatus;
use longshore_fleet::instances::take_forgotten_starts;
use longshore_fleet::leaks::{list_claims, list_unwanted_instances};
use longshore_fleet::liveness::{MassGuard, expire_external, expire_silent, list_running};
use longshore_fleet::provisioning::{list_awaited, list_unstarted};
use longshore_fleet::sweep::{list_by_id12, list_stale_holders};
use longshore_fleet::workspace::{list_idle, list_stuck_hibernating};
use sqlx::PgConnection;

use crate::setup::Setup;

const ROWS: i32 = 10_000;
const TTL: Duration = Duration::from_secs(180);

/// A fleet of which so much is up; most of the rest sleeps or was deleted.
async fn write_fleet_directly(conn: &mut PgConnection, percent_up: i32) {
    use WorkspaceStatus as S;
    let rest = [
        S::Paused,
        S::Hibernated,
        S::Removed,
        S::Removed,
        S::Removed,
        S::Hibernated,
    ];
    let rare = [S::Provisioning, S::Hibernating, S::Failed, S::Offline];
    sqlx::query(
        "INSERT INTO workspaces (id, name, status, runtime, url, engine_id, container_id, agent_card, last_heartbeat_at,
                                 idle_since, provision_generation, provision_started_at, hibernation_idle_minutes)
         SELECT gen_random_uuid(), 'workspace ' || n,
                CASE WHEN n % 100 < $5 THEN $2 WHEN n % 100 > 95 THEN ($3::workspace_status[])[n % 100 - 95]
                     ELSE ($4::workspace_status[])[n % 6 + 1] END,
                CASE WHEN n % 20 = 0 THEN 'external' ELSE 'claude-code' END, 'http://127.0.0.1:' || n, 'engine-' || n % 2,
                repeat(md5(n::text), 2), jsonb_build_object('name', 'agent ' || n, 'description', repeat('x', 300)),
                longshore_now(), longshore_now(), 3, CASE WHEN n % 200 = 96 THEN longshore_now() END,
                CASE WHEN n % 10 = 0 THEN 60 END
         FROM generate_series(1, $1) AS n",
    )
    .bind(ROWS)
    .bind(S::Online)
    .bind(&rare[..])
    .bind(&rest[..])
    .bind(percent_up)
    .execute(&mut *conn)
    .await
    .unwrap();
    sqlx::query(
        "INSERT INTO workspace_auth_tokens (workspace_id, token_hash, prefix, revoked_at)
         SELECT id, decode(md5(id::text || k) || md5(id::text || k), 'hex'), 'abcdefgh',
                CASE WHEN k > 1 THEN longshore_now() END
         FROM workspaces, generate_series(1, 2) AS k",
    )
    .execute(&mut *conn)
    .await
    .unwrap();
    for table in ["workspaces", "workspace_auth_tokens"] {
        sqlx::query(sqlx::AssertSqlSafe(format!("VACUUM ANALYZE {table}")))
            .execute(&mut *conn)
            .await
            .unwrap();
    }
}

/// How often this connection has read all of the table, once its work is counted.
async fn full_reads(conn: &mut PgConnection) -> i64 {
    sqlx::query("SELECT pg_stat_force_next_flush()")
        .execute(&mut *conn)
        .await
        .unwrap();
    sqlx::query_scalar("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'workspaces'")
        .fetch_one(conn)
        .await
        .unwrap()
}

/// Everything that `health` reads of an engine.
async fn list_all_running(
    conn: &mut PgConnection,
    engine_id: &str,
) -> Result<usize, longshore_fleet::FleetError> {
    let (mut count, mut after) = (0, WorkspaceId::LEAST);
    loop {
        let page = list_running(conn, engine_id, after).await?;
        let Some(last) = page.last() else {
            return Ok(count);
        };
        after = last.id;
        count += page.len();
    }
}

/// Runs each sweep so often, and shows what it took in the middle. The total is the last line.
macro_rules! assert_reads_by_index {
    ($times:expr, $conn:ident, $($sweep:expr),+ $(,)?) => {{
        let mut total = Duration::ZERO;
        $(
            let before = full_reads(&mut $conn).await;
            let mut took = Vec::new();
            for _ in 0..$times {
                let since = Stopwatch::start();
                $sweep.await.unwrap();
                took.push(since.elapsed());
            }
            took.sort();
            let median = took[took.len() / 2];
            total += median;
            println!("{:8.2} ms  {}", median.as_secs_f64() * 1e3, stringify!($sweep));
            assert_eq!(full_reads(&mut $conn).await, before, "Seq Scan on workspaces: {}", stringify!($sweep));
        )+
        println!("{:8.2} ms  in all", total.as_secs_f64() * 1e3);
    }};
}

async fn assert_no_sweep_reads_everything(percent_up: i32) {
    let setup = Setup::new().await;
    let mut conn = setup.conn().await;
    write_fleet_directly(&mut conn, percent_up).await;
    let before = full_reads(&mut conn).await;
    let ids: Vec<WorkspaceId> =
        sqlx::query_scalar("SELECT id FROM workspaces WHERE length(name) > 0")
            .fetch_all(&mut *conn)
            .await
            .unwrap();
    assert_eq!(full_reads(&mut conn).await, before + 1, "it counts");
    assert_eq!(i32::try_from(ids.len()).unwrap(), ROWS);
    let some = &ids[..1000];
    let prefixes: Vec<_> = some.iter().map(WorkspaceId::id12).collect();
    println!("{percent_up} % of {ROWS} are up");
    assert_reads_by_index!(
        5,
        conn,
        expire_silent(&mut conn, TTL, MassGuard::DEFAULT, &[]),
        expire_external(&mut conn, TTL, MassGuard::DEFAULT, &[]),
        list_all_running(&mut conn, "engine-1"),
        list_awaited(&mut conn, &setup.fleet),
        list_unstarted(&mut conn, 5),
        list_stuck_hibernating(&mut conn, 5),
        list_idle(&mut conn, Some(60)),
        list_by_id12(&mut conn, &prefixes),
        list_stale_holders(&mut conn, "engine-1"),
        list_claims(&mut conn, some),
        list_unwanted_instances(&mut conn, "remote"),
        take_forgotten_starts(&mut conn, TTL),
    );
}

#[tokio::test]
async fn no_sweep_reads_all_workspaces_where_most_of_them_sleep_or_are_gone() {
    assert_no_sweep_reads_everything(10).await;
}

#[tokio::test]
async fn no_sweep_reads_all_workspaces_where_most_of_them_are_up() {
    assert_no_sweep_reads_everything(90).await;
}
