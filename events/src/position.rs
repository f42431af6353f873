//! Where a reader stands in the event log.

use std::fmt;
use std::str::FromStr;

/// A place in the log: transaction, then number within the table. Its text `<xid>-<seq>` is the `Last-Event-ID` of
/// the streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The transaction that wrote the row.
    pub xid: u64,
    /// The row's number.
    pub seq: i64,
}

/// The text is not a position.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a position of the event log")]
pub struct ParsePositionError;

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.xid, self.seq)
    }
}

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (xid, seq) = text.split_once('-').ok_or(ParsePositionError)?;
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(xid) || !digits(seq) {
            return Err(ParsePositionError);
        }
        Ok(Self {
            xid: xid.parse().map_err(|_| ParsePositionError)?,
            seq: seq.parse().map_err(|_| ParsePositionError)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_survives_its_text_and_orders_by_transaction_first() {
        let position = Position { xid: 740, seq: 12 };
        assert_eq!(position.to_string(), "740-12");
        assert_eq!("740-12".parse(), Ok(position));
        assert!(position < Position { xid: 741, seq: 1 });
        for bad in [
            "",
            "-",
            "7",
            "7-",
            "-7",
            "+7-1",
            "7--1",
            "a-1",
            "99999999999999999999-1",
        ] {
            assert_eq!(bad.parse::<Position>(), Err(ParsePositionError), "{bad}");
        }
    }
}
