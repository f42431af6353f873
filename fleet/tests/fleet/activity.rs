use longshore_base::WorkspaceId;
use longshore_fleet::activity::{
    A2A_RECEIVE, ActivityStatus, NewActivity, count_inbox, record_activity,
};
use longshore_fleet::workspace::record_outbound;
use serde_json::json;

use crate::setup::{Setup, named};

fn message(id: WorkspaceId, key: Option<&str>, status: ActivityStatus) -> NewActivity {
    NewActivity {
        workspace_id: id,
        activity_type: A2A_RECEIVE,
        source_id: None,
        target_id: Some(id),
        method: Some("message/send".into()),
        summary: Some("message/send → n".into()),
        request_body: Some(json!({ "jsonrpc": "2.0" })),
        response_body: None,
        tool_trace: None,
        duration_ms: Some(12),
        status,
        error_detail: None,
        idempotency_key: key.map(str::to_owned),
    }
}

#[tokio::test]
async fn a_message_that_is_sent_twice_is_one_row() {
    let setup = Setup::new().await;
    let id = setup.create(named("n")).await.id;
    let mut conn = setup.conn().await;
    let first = record_activity(&mut conn, message(id, Some("m1"), ActivityStatus::Queued))
        .await
        .unwrap();
    let again = record_activity(&mut conn, message(id, Some("m1"), ActivityStatus::Queued))
        .await
        .unwrap();
    assert_eq!(first, again);
    let other = record_activity(&mut conn, message(id, Some("m2"), ActivityStatus::Queued))
        .await
        .unwrap();
    assert!(other.id > first.id);
    record_activity(&mut conn, message(id, None, ActivityStatus::Ok))
        .await
        .unwrap();
    record_activity(&mut conn, message(id, None, ActivityStatus::Error))
        .await
        .unwrap();
    assert_eq!(count_inbox(&mut conn, id).await.unwrap(), 2);
    assert_eq!(setup.count("activity_logs").await, 4);
}

#[tokio::test]
async fn an_unknown_workspace_has_no_log() {
    let setup = Setup::new().await;
    let unknown = message(WorkspaceId::random(), None, ActivityStatus::Ok);
    assert!(
        record_activity(&mut *setup.conn().await, unknown)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn speaking_to_another_workspace_is_noted() {
    let setup = Setup::new().await;
    let id = setup.create(named("n")).await.id;
    assert_eq!(setup.load(id).await.last_outbound_at, None);
    record_outbound(&mut *setup.conn().await, id).await.unwrap();
    assert!(setup.load(id).await.last_outbound_at.is_some());
}
