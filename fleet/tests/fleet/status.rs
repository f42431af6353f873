use longshore_fleet::WorkspaceStatus;
use longshore_fleet::images::{Part, RolloutState};

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

#[tokio::test]
async fn the_database_knows_the_same_states_and_parts_of_rollouts() {
    let setup = Setup::new().await;
    let states: Vec<RolloutState> =
        sqlx::query_scalar("SELECT unnest(enum_range(NULL::image_rollout_state))")
            .fetch_all(setup.pool())
            .await
            .unwrap();
    assert_eq!(states, RolloutState::ALL);
    let names: Vec<String> =
        sqlx::query_scalar("SELECT unnest(enum_range(NULL::image_rollout_state))::text")
            .fetch_all(setup.pool())
            .await
            .unwrap();
    assert_eq!(
        names,
        RolloutState::ALL.map(|state| state.as_str().to_owned())
    );
    let parts: Vec<Part> =
        sqlx::query_scalar("SELECT unnest(enum_range(NULL::image_rollout_part))")
            .fetch_all(setup.pool())
            .await
            .unwrap();
    assert_eq!(parts, Part::ALL);
}
