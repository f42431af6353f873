//! The log: one line per event on standard error, with every secret value the process has learnt masked.

use std::io::{IsTerminal as _, Write};

use longshore_base::redact::Redactor;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::settings::SettingError;
use crate::settings::log::{LogFormat, LogSettings};

/// Starts logging. Values the redactor learns later are masked from then on.
pub(crate) fn start(settings: &LogSettings, redactor: &Redactor) -> Result<(), SettingError> {
    let filter = EnvFilter::builder().parse(&settings.filter).map_err(|_| {
        SettingError::new(
            "LONGSHORE_LOG",
            "must be a level or a filter such as info,longshore_ledger=debug",
        )
    })?;
    let is_terminal = std::io::stderr().is_terminal();
    let text = match settings.format {
        LogFormat::Auto => is_terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(MaskedStderr {
            redactor: redactor.clone(),
        });
    if text {
        builder.with_ansi(is_terminal).init();
    } else {
        // The list of spans holds the current one too.
        builder
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .init();
    }
    Ok(())
}

/// Makes writers to standard error that mask known secrets.
#[derive(Clone)]
struct MaskedStderr {
    redactor: Redactor,
}

impl<'a> MakeWriter<'a> for MaskedStderr {
    type Writer = MaskedLine;

    fn make_writer(&'a self) -> Self::Writer {
        MaskedLine {
            redactor: self.redactor.clone(),
            line: Vec::new(),
        }
    }
}

/// Collects what is written for one event and passes it on in one piece, so that lines of threads and of processes
/// sharing the terminal do not mix, and no secret slips through by being split.
struct MaskedLine {
    redactor: Redactor,
    line: Vec<u8>,
}

impl Write for MaskedLine {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.line.is_empty() {
            return Ok(());
        }
        let clean = self.redactor.clean(&String::from_utf8_lossy(&self.line));
        self.line.clear();
        std::io::stderr().lock().write_all(clean.as_bytes())
    }
}

impl Drop for MaskedLine {
    fn drop(&mut self) {
        // Nobody is left to tell when the log itself cannot be written.
        self.flush().ok();
    }
}
