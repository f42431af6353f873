//! A container's output, line by line (spec: lifecycle §2.10, operations §7).

use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptionsBuilder;
use chrono::DateTime;
use futures_util::{StreamExt as _, stream};
use longshore_base::{Timestamp, WorkspaceId};

use super::engine::{Docker, failed};
use crate::{BackendError, LogLine, LogSource, LogStream, LogsQuery};

/// A line longer than this is told in pieces; a process that never ends its line must not fill our memory.
const LONGEST_LINE_BYTES: usize = 256 * 1024;
const CALL: &str = "container_logs";

impl Docker {
    pub(super) async fn logs_of(
        &self,
        id: WorkspaceId,
        query: LogsQuery,
    ) -> Result<LogStream, BackendError> {
        let engine = self.engine().await?;
        // Looked up first: whose container it is matters, and the log call itself fails only once it is read.
        let Some(container) = self.find_ours(engine, id).await? else {
            return Err(BackendError::NoContainer);
        };
        let since = query.since.map_or(0, |since| since.timestamp());
        let options = LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .timestamps(true)
            .follow(query.follow)
            .since(i32::try_from(since).unwrap_or(i32::MAX))
            .tail(
                &query
                    .tail
                    .map_or_else(|| "all".to_owned(), |tail| tail.to_string()),
            )
            .build();
        let output = engine.client.logs(&container.id, Some(options));
        let mut lines = Lines::default();
        let told = output
            .map(Some)
            .chain(stream::once(async { None }))
            .flat_map(move |output| {
                stream::iter(match output {
                    Some(Ok(output)) => lines.push(output).into_iter().map(Ok).collect(),
                    Some(Err(error)) => vec![Err(failed(CALL, error).into())],
                    None => lines.rest().into_iter().map(Ok).collect(),
                })
            })
            // The engine counts in whole seconds.
            .filter(move |line| {
                let wanted = match line {
                    Ok(line) => query.since <= line.at || line.at.is_none(),
                    Err(_) => true,
                };
                async move { wanted }
            });
        Ok(told.boxed())
    }
}

/// Puts lines together: the engine cuts long ones, and gives every piece its own time.
#[derive(Default)]
struct Lines {
    out: Option<LogLine>,
    err: Option<LogLine>,
}

impl Lines {
    fn push(&mut self, output: LogOutput) -> Option<LogLine> {
        let source = match output {
            LogOutput::StdErr { .. } => LogSource::Stderr,
            LogOutput::StdOut { .. } | LogOutput::StdIn { .. } | LogOutput::Console { .. } => {
                LogSource::Stdout
            }
        };
        let pending = match source {
            LogSource::Stdout => &mut self.out,
            LogSource::Stderr => &mut self.err,
        };
        let bytes = output.into_bytes();
        let text = String::from_utf8_lossy(&bytes);
        let (at, text) = dated(&text);
        let (text, ended) = match text.strip_suffix('\n') {
            Some(text) => (text.strip_suffix('\r').unwrap_or(text), true),
            None => (text, false),
        };
        let line = pending.get_or_insert_with(|| LogLine {
            at,
            source,
            text: String::new(),
        });
        line.text.push_str(text);
        if ended || line.text.len() >= LONGEST_LINE_BYTES {
            return pending.take();
        }
        None
    }

    fn rest(&mut self) -> Vec<LogLine> {
        [self.out.take(), self.err.take()]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// Splits the engine's time from what was written.
fn dated(text: &str) -> (Option<Timestamp>, &str) {
    let parsed = text
        .split_once(' ')
        .and_then(|(at, rest)| Some((DateTime::parse_from_rfc3339(at).ok()?, rest)));
    match parsed {
        Some((at, rest)) => (Some(at.to_utc()), rest),
        None => (None, text),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn pieces_of_a_line_are_put_together_and_streams_are_kept_apart() {
        let out = |text: &str| LogOutput::StdOut {
            message: Bytes::copy_from_slice(text.as_bytes()),
        };
        let err = |text: &str| LogOutput::StdErr {
            message: Bytes::copy_from_slice(text.as_bytes()),
        };
        let mut lines = Lines::default();
        assert_eq!(lines.push(out("2026-01-02T03:04:05.5Z be")), None);
        let wrong = lines.push(err("2026-01-02T03:04:06Z wrong\r\n")).unwrap();
        assert_eq!(
            (wrong.source, wrong.text.as_str()),
            (LogSource::Stderr, "wrong")
        );
        let begin = lines.push(out("2026-01-02T03:04:07Z gin\n")).unwrap();
        assert_eq!(begin.text, "begin");
        let at = begin.at.unwrap();
        assert_eq!(at.timestamp_millis() % 60_000, 5_500);
        assert_eq!(lines.push(out("no date")), None);
        let rest = lines.rest();
        assert_eq!(rest.len(), 1);
        assert_eq!((rest[0].at, rest[0].text.as_str()), (None, "no date"));
    }
}
