//! Logs.

use futures_util::{StreamExt as _, TryStreamExt as _};
use longshore_backends::{Backend as _, BackendError, LogLine, LogSource, LogsQuery, StopTarget};

use crate::room::{Room, room, until};
use crate::watches::Allow;

async fn lines(room: &Room, query: LogsQuery) -> Vec<LogLine> {
    let stream = room.docker.logs(room.id, query).await.unwrap();
    stream.try_collect().await.unwrap()
}

/// The two lines the test image writes, once both are there. The engine does not order the two outputs.
async fn both_lines(room: &Room) -> Vec<LogLine> {
    let mut seen = until("two lines", async || {
        let seen = lines(room, LogsQuery::default()).await;
        if seen.len() == 2 {
            Ok(seen)
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await;
    seen.sort_by_key(|line| line.source == LogSource::Stderr);
    seen
}

#[tokio::test]
async fn logs_are_lines_with_their_time_and_source() {
    let Some(room) = room().await else { return };
    let none = room.docker.logs(room.id, LogsQuery::default()).await;
    assert!(matches!(none.err(), Some(BackendError::NoContainer)));

    room.docker
        .bring_up(&room.spec(), &Allow::default())
        .await
        .unwrap();
    let seen = both_lines(&room).await;
    assert_eq!(
        (seen[0].source, seen[0].text.as_str()),
        (LogSource::Stdout, "booted with 2 files")
    );
    assert_eq!(
        (seen[1].source, seen[1].text.as_str()),
        (LogSource::Stderr, "to stderr")
    );

    let tail = |tail| LogsQuery {
        tail: Some(tail),
        ..Default::default()
    };
    assert_eq!(lines(&room, tail(1)).await.len(), 1);
    assert_eq!(lines(&room, tail(0)).await.len(), 0);

    let last = seen.iter().filter_map(|line| line.at).max().unwrap();
    let since = |since| LogsQuery {
        since: Some(since),
        ..Default::default()
    };
    assert_eq!(lines(&room, since(last)).await.len(), 1);
    let later = last + chrono::TimeDelta::milliseconds(1);
    assert_eq!(lines(&room, since(later)).await, []);
}

#[tokio::test]
async fn followed_logs_end_with_the_container() {
    let Some(room) = room().await else { return };
    room.docker
        .bring_up(&room.spec(), &Allow::default())
        .await
        .unwrap();
    let query = LogsQuery {
        follow: true,
        ..Default::default()
    };
    let mut stream = room.docker.logs(room.id, query).await.unwrap();
    stream.next().await.unwrap().unwrap();
    stream.next().await.unwrap().unwrap();
    room.docker
        .stop(&StopTarget::any_generation(room.id))
        .await
        .unwrap();
    assert!(stream.next().await.is_none());
}
