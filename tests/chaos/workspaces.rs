//! What must hold of the workspaces that were asked for.

use std::time::{Duration, Instant};

use longshore_base::brand::{LABEL_INSTALLATION, LABEL_WORKSPACE};
use longshore_tests::Caller;
use serde_json::json;
use sqlx::PgPool;

use crate::engine::{OwnEngine, label};

/// Until all are up, or are known not to be: containers are looked at every 15 s, those that do not register every 30 s.
const COMES_TO_REST: Duration = Duration::from_secs(90);

/// A workspace's name, and the ids of it and of its job.
type Made = (String, (String, String));

/// Each was asked for until it was answered: there is one, with one job, which found no engine.
pub(crate) async fn wrong_workspaces(pool: &PgPool, made: &[Made]) -> Vec<String> {
    // A run that lost Postgres half-way is an attempt too; one whose worker was killed is none, and the third such is the
    // last.
    let found: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT name, workspaces.id::text,
             concat(job_history.id, ' ', outcome, CASE WHEN attempt BETWEEN 1 AND 3 OR (attempt, crashes) = (0, 3) THEN '' ELSE ' ' || attempt END)
         FROM workspaces LEFT JOIN job_history ON workspace_id = workspaces.id ORDER BY name",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let mut expected: Vec<_> = made
        .iter()
        .map(|(name, (id, job))| (name.clone(), id.clone(), format!("{job} dead")))
        .collect();
    expected.sort();
    if found == expected {
        Vec::new()
    } else {
        vec![format!("workspaces: {found:#?}, expected {expected:#?}")]
    }
}

#[derive(Debug, sqlx::FromRow)]
struct Row {
    id: String,
    status: String,
    reason: String,
    container: Option<String>,
    is_leak: bool,
}

/// How often the engine is compared with the rows.
const LEAKS_EVERY: Duration = Duration::from_secs(15);

/// Each is online, with one container that runs, or offline, with one that does not, or failed, and says why, and what
/// runs for it nevertheless is known as a leak; and no container is there without a row.
pub(crate) async fn unsound_workspaces(
    pool: &PgPool,
    engine: &OwnEngine,
    api: &Caller,
    made: &[Made],
) -> Vec<String> {
    let began = Instant::now();
    let mut compared: Option<Instant> = None;
    loop {
        let wrong = look(pool, engine, made).await;
        if wrong.is_empty() || began.elapsed() > COMES_TO_REST {
            return wrong;
        }
        if compared.is_none_or(|at| at.elapsed() > LEAKS_EVERY) {
            let asked = api.post("/reconcilers/leaks/run", &json!({})).await;
            asked.expect(202);
            compared = Some(Instant::now());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn look(pool: &PgPool, engine: &OwnEngine, made: &[Made]) -> Vec<String> {
    let mut wrong = Vec::new();
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id::text, status::text, last_sample_error AS reason, container_id AS container,
             EXISTS (SELECT FROM leaks WHERE workspace_id = workspaces.id AND resource = 'container' AND resolved_at IS NULL) AS is_leak
         FROM workspaces",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let installation: String = sqlx::query_scalar("SELECT id::text FROM installation")
        .fetch_one(pool)
        .await
        .unwrap();
    let containers = engine.containers().await;
    for container in &containers {
        let is_ours = label(container, LABEL_INSTALLATION) == Some(&installation);
        let workspace = label(container, LABEL_WORKSPACE);
        if !is_ours || !rows.iter().any(|row| Some(row.id.as_str()) == workspace) {
            wrong.push(format!("a container of nobody: {container:?}"));
        }
    }
    for (name, (id, _)) in made {
        if !rows.iter().any(|row| row.id == *id) {
            wrong.push(format!("{name} ({id}) was accepted and is lost"));
        }
    }
    if rows.len() != made.len() {
        wrong.push(format!("{} rows for {} requests", rows.len(), made.len()));
    }
    for row in rows {
        let own: Vec<(Option<&str>, Option<String>)> = containers
            .iter()
            .filter(|container| label(container, LABEL_WORKSPACE) == Some(&row.id))
            .map(|container| {
                let state = container.state.as_ref().map(ToString::to_string);
                (container.id.as_deref(), state)
            })
            .collect();
        let is_own = own.len() == 1 && own[0].0 == row.container.as_deref();
        let runs = own
            .iter()
            .filter(|(_, state)| state.as_deref() == Some("running"))
            .count();
        let is_sound = match row.status.as_str() {
            "online" => is_own && runs == 1,
            // An engine that was killed does not start again what ran.
            "offline" => is_own && runs == 0,
            // What was made when the engine went stays, stopped, for the next attempt or the delete.
            "failed" => own.len() <= 1 && (runs == 0 || row.is_leak) && !row.reason.is_empty(),
            _ => false,
        };
        if !is_sound {
            wrong.push(format!("{row:?} has {own:?}"));
        }
    }
    wrong
}
