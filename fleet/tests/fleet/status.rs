use longshore_fleet::WorkspaceStatus;

use crate::setup::Setup;

#[tokio::test]
async fn the_database_knows_the_same_ten_statuses() {
    let setup = Setup::new().await;
    let names: Vec<String> =
        sqlx::query_scalar("SELECT unnest(enum_range(NULL::workspace_status))::text")
            .fetch_all(setup.pool())
            .await
            .unwrap();
    assert_eq!(
        names,
        WorkspaceStatus::ALL.map(|status| status.as_str().to_owned())
    );
    for status in WorkspaceStatus::ALL {
        let (back, text): (WorkspaceStatus, String) = sqlx::query_as("SELECT $1, $1::text")
            .bind(status)
            .fetch_one(setup.pool())
            .await
            .unwrap();
        assert_eq!((back, text.as_str()), (status, status.as_str()));
    }
}
