//! One owner at a time, one pass at a time, and what operators say of both.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use longshore_base::schema::MIGRATOR;
use longshore_base::testing::TestDatabase;
use longshore_ledger::ownership::{
    Block, Extra, Owned, Turn, approve, list_reconcilers, list_ticks, record_pass, release,
    set_enabled, take, take_extra,
};
use serde_json::{Value, json};

const SWEEP: Owned<'_> = Owned {
    name: "sweep",
    scope: "engine-1",
};

struct Setup(TestDatabase);

impl Setup {
    async fn new() -> Self {
        let setup = Self(TestDatabase::create(&MIGRATOR).await);
        for worker in ["one", "two"] {
            sqlx::query("INSERT INTO workers (name, host, version, kinds, queues, slots) VALUES ($1, 'h', 'v', '{}', '{}', 1)")
                .bind(worker)
                .execute(setup.0.pool())
                .await
                .unwrap();
        }
        setup
    }

    async fn take(&self, owned: Owned<'_>, worker: &str) -> Option<Turn> {
        take(self.0.pool(), owned, worker, 60).await.unwrap()
    }

    async fn extra(&self, worker: &str, dry_run: bool) -> Extra {
        take_extra(self.0.pool(), SWEEP, worker, dry_run)
            .await
            .unwrap()
    }

    /// Ends a pass of a turn with this approved, and says whether that was kept.
    async fn end(&self, worker: &str, approved: &[&str], blocked: Option<Value>) -> bool {
        let mut conn = self.0.pool().acquire().await.unwrap();
        let turn = Turn {
            was_blocked: false,
            approved: approved.iter().map(ToString::to_string).collect(),
        };
        let block = blocked.as_ref().map_or(Block::Free, Block::Blocked);
        record_pass(&mut conn, SWEEP, worker, &turn, (&json!({}), block))
            .await
            .unwrap()
    }

    async fn record(&self, worker: &str, blocked: Option<Value>) {
        assert!(self.end(worker, &[], blocked).await);
    }

    async fn bury(&self, worker: &str) {
        sqlx::query("DELETE FROM workers WHERE name = $1")
            .bind(worker)
            .execute(self.0.pool())
            .await
            .unwrap();
    }

    async fn blocked(&self) -> Option<Value> {
        let mut conn = self.0.pool().acquire().await.unwrap();
        let all = list_reconcilers(&mut conn, Some("sweep"), Some("engine-1"))
            .await
            .unwrap();
        all[0].blocked.clone()
    }
}

#[tokio::test]
async fn one_pass_at_a_time_whoever_asked_for_it() {
    let setup = Setup::new().await;
    let turn = Some(Turn::default());
    assert_eq!(setup.take(SWEEP, "one").await, turn);
    assert_eq!(setup.take(SWEEP, "two").await, None, "it has an owner");
    assert_eq!(setup.extra("two", false).await, Extra::Busy);
    setup.record("one", None).await;
    assert_eq!(
        setup.extra("two", false).await,
        Extra::Granted(Turn::default())
    );
    assert_eq!(setup.take(SWEEP, "one").await, None, "another makes a pass");
    release(setup.0.pool(), SWEEP, "two").await.unwrap();
    assert_eq!(
        setup.take(SWEEP, "two").await,
        None,
        "it still has its owner"
    );
    assert_eq!(setup.take(SWEEP, "one").await, turn);
    setup.bury("one").await;
    assert_eq!(setup.take(SWEEP, "two").await, turn, "the dead own nothing");
    // A worker that lives and forgot its pass keeps others out for a quarter of an hour.
    assert_eq!(setup.extra("three", false).await, Extra::Busy);
    setup.0.advance(std::time::Duration::from_secs(901)).await;
    assert_eq!(
        setup.extra("three", false).await,
        Extra::Granted(Turn::default())
    );
}

#[tokio::test]
async fn what_is_disabled_makes_dry_runs_only_and_new_scopes_are_born_so() {
    let setup = Setup::new().await;
    setup.take(SWEEP, "one").await.unwrap();
    setup.record("one", None).await;
    let mut conn = setup.0.pool().acquire().await.unwrap();
    let changed = set_enabled(&mut conn, "sweep", None, false, "ops", Some("why"))
        .await
        .unwrap();
    assert_eq!(changed, ["engine-1"]);
    assert_eq!(setup.take(SWEEP, "one").await, None);
    assert_eq!(setup.extra("one", false).await, Extra::Disabled);
    assert_eq!(
        setup.extra("one", true).await,
        Extra::Granted(Turn::default())
    );
    let newer = Owned {
        scope: "engine-2",
        ..SWEEP
    };
    assert_eq!(setup.take(newer, "two").await, None);
    let rows = list_reconcilers(&mut conn, Some("sweep"), None)
        .await
        .unwrap();
    assert!(rows.iter().all(|row| !row.enabled), "{rows:?}");
    assert_eq!(rows[1].change_reason.as_deref(), Some("why"));
    let again = set_enabled(&mut conn, "sweep", Some("engine-2"), true, "ops", None)
        .await
        .unwrap();
    assert_eq!(again, ["engine-2"]);
    assert_eq!(setup.take(newer, "two").await, Some(Turn::default()));
    assert_eq!(setup.take(SWEEP, "one").await, None);
}

#[tokio::test]
async fn an_approval_is_for_the_list_that_was_blocked_and_for_one_pass() {
    let setup = Setup::new().await;
    let mut conn = setup.0.pool().acquire().await.unwrap();
    setup.take(SWEEP, "one").await.unwrap();
    setup.record("one", None).await;
    assert!(approve(&mut conn, "sweep", None).await.unwrap().is_empty());
    let blocked = json!({ "reason": "much", "wanted": ["a", "b"], "budget": 1 });
    setup.take(SWEEP, "one").await.unwrap();
    setup.record("one", Some(blocked.clone())).await;
    let since = setup.blocked().await.unwrap()["since"].clone();
    assert!(since.is_string());
    assert_eq!(
        approve(&mut conn, "sweep", None).await.unwrap(),
        ["engine-1"]
    );
    let approved = Turn {
        was_blocked: true,
        approved: vec!["a".into(), "b".into()],
    };
    // A pass that was not made uses nothing up.
    assert_eq!(setup.take(SWEEP, "one").await, Some(approved.clone()));
    release(setup.0.pool(), SWEEP, "one").await.unwrap();
    assert_eq!(setup.take(SWEEP, "one").await, Some(approved));
    assert!(setup.end("one", &["a", "b"], Some(blocked)).await);
    assert_eq!(
        setup.blocked().await.unwrap()["since"],
        since,
        "it still is"
    );
    let turn = setup.take(SWEEP, "one").await.unwrap();
    assert_eq!(turn.approved, Vec::<String>::new());
    setup.record("one", None).await;
    assert_eq!(setup.blocked().await, None);
    let ticks = list_ticks(setup.0.pool()).await.unwrap();
    assert_eq!((ticks.len(), ticks[0].name.as_str()), (1, "sweep"));
}

#[tokio::test]
async fn an_approval_given_during_a_pass_waits_for_the_next() {
    let setup = Setup::new().await;
    let mut conn = setup.0.pool().acquire().await.unwrap();
    let blocked =
        |wanted: &[&str]| Some(json!({ "reason": "much", "wanted": wanted, "budget": 1 }));
    setup.take(SWEEP, "one").await.unwrap();
    setup.record("one", blocked(&["a", "b"])).await;
    setup.take(SWEEP, "one").await.unwrap();
    approve(&mut conn, "sweep", None).await.unwrap();
    setup.record("one", blocked(&["a", "b", "c"])).await;
    let turn = setup.take(SWEEP, "one").await.unwrap();
    assert_eq!(turn.approved, ["a", "b"]);
    approve(&mut conn, "sweep", None).await.unwrap();
    assert!(setup.end("one", &["a", "b"], blocked(&["c"])).await);
    let turn = setup.take(SWEEP, "one").await.unwrap();
    assert_eq!(turn.approved, ["a", "b", "c"], "a newer one");
    assert!(setup.end("one", &["a", "b", "c"], None).await);
    let turn = setup.take(SWEEP, "one").await.unwrap();
    assert_eq!(turn.approved, Vec::<String>::new(), "used up");
}

#[tokio::test]
async fn a_pass_that_lost_its_turn_keeps_nothing() {
    let setup = Setup::new().await;
    setup.take(SWEEP, "one").await.unwrap();
    setup.0.advance(std::time::Duration::from_secs(901)).await;
    let turn = Extra::Granted(Turn::default());
    assert_eq!(setup.extra("two", false).await, turn);
    let blocked = json!({ "reason": "much", "wanted": ["a"], "budget": 0 });
    assert!(!setup.end("one", &[], Some(blocked)).await);
    assert_eq!(setup.blocked().await, None);
    assert!(list_ticks(setup.0.pool()).await.unwrap().is_empty());
    setup.record("two", None).await;
}
