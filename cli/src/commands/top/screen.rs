//! The terminal: taken over and given back, keys, and when to draw.

use std::time::Duration;

use longshore_base::clock::Stopwatch;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::sync::{mpsc, watch};

use super::snapshot::Snapshot;
use super::view::{self, Freshness};
use crate::client::{Client, ClientError};
use crate::exit::Exit;
use crate::signals::StopSignals;

/// How often the age of what is shown is looked at.
const REDRAW: Duration = Duration::from_secs(1);

/// A look that takes longer than this shows that the server does not answer.
const SILENT: Duration = Duration::from_secs(5);

/// What the last look brought.
type Look = Option<Result<Snapshot, ClientError>>;

/// Shows it until the operator has seen enough.
pub(super) async fn show(client: Client, interval: Duration) -> anyhow::Result<Exit> {
    let mut signals = StopSignals::listen()?;
    let address = client.address().to_owned();
    let (tell, looks) = watch::channel(None);
    let looking = tokio::spawn(look_again_and_again(client, interval, tell));
    // From here on a panic gives the terminal back before it prints anything.
    let mut terminal = ratatui::try_init()?;
    let mut screen = Screen {
        address,
        interval,
        snapshot: Snapshot::default(),
        seen: None,
        trouble: None,
    };
    let ended = tokio::select! {
        ended = screen.run(&mut terminal, looks) => ended,
        _ = signals.next() => Ok(Exit::Done),
    };
    ratatui::try_restore()?;
    looking.abort();
    ended
}

async fn look_again_and_again(client: Client, interval: Duration, tell: watch::Sender<Look>) {
    loop {
        let look = Snapshot::take(&client).await;
        if tell.send(Some(look)).is_err() {
            return;
        }
        tokio::time::sleep(interval).await;
    }
}

struct Screen {
    address: String,
    interval: Duration,
    snapshot: Snapshot,
    /// Since the last look that succeeded.
    seen: Option<Stopwatch>,
    /// Why the last look did not.
    trouble: Option<String>,
}

impl Screen {
    async fn run(
        &mut self,
        terminal: &mut DefaultTerminal,
        mut looks: watch::Receiver<Look>,
    ) -> anyhow::Result<Exit> {
        let mut keys = keys();
        let mut redraw = tokio::time::interval(REDRAW);
        loop {
            terminal.draw(|frame| {
                view::draw(
                    &self.snapshot,
                    &self.address,
                    &self.freshness(),
                    frame.area(),
                    frame.buffer_mut(),
                );
            })?;
            tokio::select! {
                event = keys.recv() => match event {
                    Some(Event::Key(key)) if ends(&key) => return Ok(Exit::Done),
                    // The terminal is gone.
                    None => return Ok(Exit::Done),
                    Some(_) => {}
                },
                changed = looks.changed() => {
                    changed?;
                    if let Some(look) = looks.borrow_and_update().as_ref() {
                        self.learn(look)?;
                    }
                },
                _ = redraw.tick() => {}
            }
        }
    }

    fn learn(&mut self, look: &Result<Snapshot, ClientError>) -> anyhow::Result<()> {
        match look {
            Ok(snapshot) => {
                self.snapshot = snapshot.clone();
                self.seen = Some(Stopwatch::start());
                self.trouble = None;
            }
            Err(ClientError::NotAllowed { text, had_token }) => {
                return Err(ClientError::NotAllowed {
                    text: text.clone(),
                    had_token: *had_token,
                }
                .into());
            }
            Err(error) => self.trouble = Some(error.to_string()),
        }
        Ok(())
    }

    fn freshness(&self) -> Freshness {
        let age = self.seen.map(|seen| seen.elapsed());
        match (&self.trouble, age) {
            (Some(trouble), age) => Freshness::Lost {
                trouble: trouble.clone(),
                age,
            },
            (None, None) => Freshness::None,
            (None, Some(age)) if age > self.interval + SILENT => Freshness::Lost {
                trouble: "the server does not answer".to_owned(),
                age: Some(age),
            },
            (None, Some(_)) => Freshness::Now,
        }
    }
}

/// Events of the terminal, read by a thread that ends with the process: a read cannot be taken back.
fn keys() -> mpsc::UnboundedReceiver<Event> {
    let (send, keys) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if send.send(event).is_err() {
                return;
            }
        }
    });
    keys
}

fn ends(key: &KeyEvent) -> bool {
    key.kind != KeyEventKind::Release
        && match key.code {
            KeyCode::Char('q') | KeyCode::Esc => true,
            KeyCode::Char('c') => key.modifiers.contains(KeyModifiers::CONTROL),
            _ => false,
        }
}
