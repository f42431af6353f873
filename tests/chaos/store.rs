//! The Redis of a run, and what is done to it.

use std::path::PathBuf;

use longshore_tests::OwnRedis;

use crate::schedule::Fault;
use crate::sentinels::Sentinels;

/// A server, or two with sentinels.
pub(crate) struct Store {
    pub(crate) servers: Servers,
    is: State,
}

pub(crate) enum Servers {
    One(OwnRedis),
    Watched(Box<Sentinels>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    Frozen,
    Down,
}

impl Store {
    pub(crate) async fn one() -> Self {
        Self {
            servers: Servers::One(OwnRedis::start().await),
            is: State::Up,
        }
    }

    pub(crate) async fn watched() -> Self {
        Self {
            servers: Servers::Watched(Box::new(Sentinels::start().await)),
            is: State::Up,
        }
    }

    pub(crate) fn url(&self) -> String {
        match &self.servers {
            Servers::One(redis) => redis.url(),
            Servers::Watched(sentinels) => sentinels.url(),
        }
    }

    /// Where a network can be put between it and a process: sentinels would tell the way around.
    pub(crate) fn socket(&self) -> Option<PathBuf> {
        match &self.servers {
            Servers::One(redis) => Some(redis.socket()),
            Servers::Watched(_) => None,
        }
    }

    /// Does it, unless another fault has the server at the moment.
    pub(crate) async fn apply(&mut self, fault: Fault) {
        match (fault, self.is) {
            (Fault::FlushRedis, State::Up) => match &self.servers {
                Servers::One(redis) => redis.flush().await,
                Servers::Watched(sentinels) => sentinels.flush().await,
            },
            (Fault::KillRedis, State::Up | State::Frozen) => {
                match &mut self.servers {
                    Servers::One(redis) => redis.kill(),
                    Servers::Watched(sentinels) => sentinels.kill().await,
                }
                self.is = State::Down;
            }
            (Fault::StartRedis, State::Down) => self.start_again().await,
            (Fault::FreezeRedis, State::Up) => {
                match &mut self.servers {
                    Servers::One(redis) => redis.freeze(),
                    Servers::Watched(sentinels) => sentinels.freeze().await,
                }
                self.is = State::Frozen;
            }
            (Fault::ThawRedis, State::Frozen) => self.thaw(),
            (Fault::FailOver, _) => {
                if let Servers::Watched(sentinels) = &self.servers {
                    sentinels.fail_over().await;
                }
            }
            _ => {}
        }
    }

    /// Ends what was done.
    pub(crate) async fn heal(&mut self) {
        match self.is {
            State::Up => {}
            State::Frozen => self.thaw(),
            State::Down => self.start_again().await,
        }
    }

    fn thaw(&mut self) {
        match &mut self.servers {
            Servers::One(redis) => redis.thaw(),
            Servers::Watched(sentinels) => sentinels.thaw(),
        }
        self.is = State::Up;
    }

    async fn start_again(&mut self) {
        match &mut self.servers {
            Servers::One(redis) => redis.start_again().await,
            Servers::Watched(sentinels) => sentinels.start_again().await,
        }
        self.is = State::Up;
    }
}
