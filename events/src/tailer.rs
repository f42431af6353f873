//! Follows the event log and hands its rows to the hub, in order and without a gap.
//!
//! A row may be used once no transaction is left that could still put one before it (`spec: jobs` §12). The tailer
//! looks each second, at once when poked, and again soon while it sees rows that are not settled yet.

use std::sync::Arc;
use std::time::Duration;

use longshore_base::clock::Stopwatch;
use sqlx::PgPool;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use crate::hub::Shared;
use crate::log::{list_tail, load_end};
use crate::{EventError, Position};

/// Poked or not, this often.
const PERIOD: Duration = Duration::from_secs(1);
/// A written row waits for an older transaction to end.
const UNSETTLED: Duration = Duration::from_millis(50);
/// Bursts of pokes become one read per this time.
const PAUSE: Duration = Duration::from_millis(5);
const PAGE: i64 = 500;

pub(crate) struct Tailer {
    pub(crate) pool: PgPool,
    pub(crate) shared: Arc<Shared>,
    pub(crate) own_pokes: watch::Receiver<u64>,
    pub(crate) others_pokes: Arc<Notify>,
}

enum Look {
    /// Everything settled has been delivered.
    AtEnd,
    /// There is more right now.
    More,
    /// Rows are there that may not be delivered yet.
    Unsettled,
}

impl Tailer {
    pub(crate) async fn run(mut self) {
        let mut position = None;
        let mut complained = false;
        loop {
            let wait = match self.look(&mut position).await {
                Ok(look) => {
                    self.shared.note_tail_ok();
                    complained = false;
                    match look {
                        Look::More => continue,
                        Look::AtEnd => PERIOD,
                        Look::Unsettled => UNSETTLED,
                    }
                }
                Err(error) => {
                    if !complained {
                        tracing::warn!(error = %error_chain(&error), "cannot follow the event log; retrying");
                        complained = true;
                    }
                    // Pokes do not shorten this: a database that is away is not asked more often.
                    sleep(PERIOD).await;
                    continue;
                }
            };
            sleep(PAUSE).await;
            // Elapsed is one of the three good reasons to look again.
            timeout(wait, self.poked()).await.unwrap_or(());
        }
    }

    async fn poked(&mut self) {
        tokio::select! {
            changed = self.own_pokes.changed() => {
                if changed.is_err() {
                    // The bus is gone; the other two reasons remain.
                    self.others_pokes.notified().await;
                }
            }
            () = self.others_pokes.notified() => {}
        }
    }

    async fn look(&self, position: &mut Option<Position>) -> Result<Look, EventError> {
        let mut conn = self.pool.acquire().await.map_err(EventError::Read)?;
        let (end, now) = load_end(&mut conn).await?;
        self.shared.note_time(now, Stopwatch::start());
        let at = *position.get_or_insert(end);
        let rows = list_tail(&mut conn, at, PAGE).await?;
        drop(conn);
        let full_page = i64::try_from(rows.len()).is_ok_and(|read| read == PAGE);
        for row in rows {
            if !row.settled {
                return Ok(Look::Unsettled);
            }
            let (at, message) = row.into_message()?;
            self.shared.deliver(Some(at), message);
            *position = Some(at);
        }
        Ok(if full_page { Look::More } else { Look::AtEnd })
    }
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
