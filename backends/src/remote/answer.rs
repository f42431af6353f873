//! Reading an answer up to a limit, and what of it may be kept.

use reqwest::header::HeaderMap;
use reqwest::{Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::CallFailure;

/// Of what a control plane says about a failure, this much is kept (spec: lifecycle §3.2).
pub(super) const EXCERPT_BYTES: usize = 512;

/// An answer as far as it was read.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    /// There was more.
    pub(super) cut: bool,
}

/// Why an answer is of no use. The text is for the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    /// The control plane refused, or failed, and said this.
    #[error("it said: {0}")]
    Said(String),
    /// The control plane refused, or failed, and what it said may hold credentials.
    #[error("its answer has {bytes} bytes{} and no error text", if *.cut { " or more" } else { "" })]
    Silent {
        /// How many.
        bytes: usize,
        /// Whether it goes on.
        cut: bool,
    },
    /// It is longer than anything that makes sense.
    #[error("its answer is longer than {0} bytes")]
    TooLong(usize),
    /// It is not of the shape that was agreed.
    #[error("its answer of {bytes} bytes has no {wanted}")]
    Shapeless {
        /// How many.
        bytes: usize,
        /// What was looked for.
        wanted: &'static str,
    },
}

impl Answer {
    /// Reads at most `limit` bytes of a body.
    pub(super) async fn read(mut response: Response, limit: usize) -> reqwest::Result<Self> {
        let mut answer = Self {
            status: response.status(),
            headers: response.headers().clone(),
            body: Vec::new(),
            cut: false,
        };
        while let Some(chunk) = response.chunk().await? {
            let room = limit - answer.body.len();
            answer.cut = chunk.len() > room;
            answer
                .body
                .extend_from_slice(&chunk[..chunk.len().min(room)]);
            if answer.cut {
                break;
            }
        }
        Ok(answer)
    }

    /// The body as JSON with one member of it in hand.
    pub(super) fn member<T: DeserializeOwned>(&self, name: &'static str) -> Result<T, Unusable> {
        if self.cut {
            return Err(Unusable::TooLong(self.body.len()));
        }
        let shapeless = Unusable::Shapeless {
            bytes: self.body.len(),
            wanted: name,
        };
        let Ok(mut whole) = serde_json::from_slice::<Value>(&self.body) else {
            return Err(shapeless);
        };
        whole
            .get_mut(name)
            .map(Value::take)
            .and_then(|member| serde_json::from_value(member).ok())
            .ok_or(shapeless)
    }

    /// The member `error` of a JSON body, else how long the body is: a body may repeat the credentials it was sent.
    pub(super) fn error_member(&self) -> Unusable {
        let text = serde_json::from_slice::<Value>(&self.body)
            .ok()
            .and_then(|body| Some(excerpt(body.get("error")?.as_str()?.as_bytes())))
            .filter(|text| !text.is_empty());
        match text {
            Some(text) => Unusable::Said(text),
            None => Unusable::Silent {
                bytes: self.body.len(),
                cut: self.cut,
            },
        }
    }
}

/// What a status that is not a success says of the call.
pub(super) fn failure_of(status: StatusCode) -> CallFailure {
    match status.as_u16() {
        404 => CallFailure::NotFound,
        409 => CallFailure::Conflict,
        400..=499 => CallFailure::Refused,
        _ => CallFailure::Failed,
    }
}

/// The first [`EXCERPT_BYTES`] as text, cut between two characters.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    let head = &bytes[..bytes.len().min(EXCERPT_BYTES)];
    let whole = match std::str::from_utf8(head) {
        // A character that the cut went through.
        Err(error) if error.error_len().is_none() => &head[..error.valid_up_to()],
        _ => head,
    };
    let mut text = String::from_utf8_lossy(whole).into_owned();
    // What stands for bytes that are no text is longer than they were.
    text.truncate(text.floor_char_boundary(EXCERPT_BYTES));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_has_at_most_512_bytes_and_no_half_character() {
        let text = "x".repeat(10_240);
        assert_eq!(excerpt(text.as_bytes()).len(), 512);
        // 511 bytes of two each do not go up evenly.
        let umlauts = format!("x{}", "ä".repeat(5000));
        assert_eq!(excerpt(umlauts.as_bytes()), format!("x{}", "ä".repeat(255)));
        let smileys = "😀".repeat(200);
        assert_eq!(excerpt(smileys.as_bytes()), "😀".repeat(128));
        assert_eq!(
            excerpt(format!("xy{smileys}").as_bytes()).len(),
            2 + 4 * 127
        );
        assert!(excerpt(&[0xff; 10_240]).len() <= 512);
        assert_eq!(excerpt(b""), "");
        assert_eq!(excerpt("ä".as_bytes()), "ä");
    }
}
