//! Moments as operators write them: a time, or how far from now.

use std::time::Duration;

use chrono::{DateTime, FixedOffset, SecondsFormat, TimeDelta};

use crate::client::{Client, ClientError};

/// A moment that is given as such, or by its distance from now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum When {
    /// RFC 3339.
    At(DateTime<FixedOffset>),
    /// `30m`, `1h 30m`, `2days`.
    Distance(Duration),
}

impl When {
    /// Reads either.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if let Ok(at) = DateTime::parse_from_rfc3339(text) {
            return Ok(Self::At(at));
        }
        humantime::parse_duration(text)
            .map(Self::Distance)
            .map_err(|_| {
                "must be a duration such as 30m or 2h, or a time in RFC 3339 such as 2026-01-31T18:00:00Z".to_owned()
            })
    }

    /// In RFC 3339, a distance being one into the past.
    pub(crate) async fn ago(self, client: &Client) -> Result<String, ClientError> {
        self.resolved(client, DateTime::checked_sub_signed).await
    }

    /// In RFC 3339, a distance being one into the future.
    pub(crate) async fn ahead(self, client: &Client) -> Result<String, ClientError> {
        self.resolved(client, DateTime::checked_add_signed).await
    }

    async fn resolved(
        self,
        client: &Client,
        shifted: fn(DateTime<FixedOffset>, TimeDelta) -> Option<DateTime<FixedOffset>>,
    ) -> Result<String, ClientError> {
        let at = match self {
            Self::At(at) => at,
            Self::Distance(distance) => {
                let now = client.now().await?;
                TimeDelta::from_std(distance)
                    .ok()
                    .and_then(|distance| shifted(now, distance))
                    .ok_or(ClientError::TooFar)?
            }
        };
        Ok(at.to_utc().to_rfc3339_opts(SecondsFormat::AutoSi, true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_a_distance() {
        for (text, seconds) in [("30m", 1_800), ("1h 30m", 5_400), ("2days", 172_800)] {
            let distance = Duration::from_secs(seconds);
            assert_eq!(When::parse(text), Ok(When::Distance(distance)), "{text}");
        }
        assert!(matches!(
            When::parse("2026-01-31T18:00:00+01:00"),
            Ok(When::At(_))
        ));
        for bad in ["", "soon", "30", "2026-01-31", "-5m"] {
            let told = When::parse(bad).unwrap_err();
            assert!(told.contains("RFC 3339"), "{bad}: {told}");
        }
    }
}
