//! The JSON of a message: what is added before it is sent on (`spec: rest-api` §6.5.4), and what is read of an answer.

use bytes::Bytes;
use longshore_base::ids::random_uuid;
use serde_json::{Map, Value, json};

use crate::body::MAX_DEPTH;
use crate::problem::{ApiError, ApiResult};

/// A message in the form that is sent on.
pub(crate) struct Envelope {
    /// The whole.
    pub(crate) json: Value,
    /// The whole as text.
    pub(crate) body: Bytes,
    /// Its method; empty if it has none.
    pub(crate) method: String,
    /// The id of its message, by which a repetition is known.
    pub(crate) message_id: Option<String>,
}

impl Envelope {
    /// Wraps what is no JSON-RPC yet, names a message that has no id, and changes nothing else.
    pub(crate) fn normalise(body: &[u8]) -> ApiResult<Self> {
        let invalid = |why: String| ApiError::bad_request("invalid JSON").detail(why);
        let json: Value = serde_json::from_slice(body)
            .map_err(|error| invalid(format!("not valid JSON: {error}")))?;
        if depth(&json) > MAX_DEPTH {
            return Err(invalid("nested deeper than 64 levels".to_owned()));
        }
        let Value::Object(object) = json else {
            return Err(invalid("the message must be a JSON object".to_owned()));
        };
        let mut object = wrap(object);
        let message_id = name_message(&mut object);
        let method = object
            .get("method")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let json = Value::Object(object);
        let body = serde_json::to_vec(&json)
            .map_err(|error| ApiError::internal("failed to marshal request", error))?;
        Ok(Self {
            json,
            body: body.into(),
            method,
            message_id,
        })
    }
}

fn wrap(mut object: Map<String, Value>) -> Map<String, Value> {
    if object.contains_key("jsonrpc") {
        return object;
    }
    let mut wrapped = Map::new();
    wrapped.insert("jsonrpc".to_owned(), json!("2.0"));
    wrapped.insert("id".to_owned(), json!(random_uuid()));
    for member in ["method", "params"] {
        wrapped.insert(
            member.to_owned(),
            object.remove(member).unwrap_or(Value::Null),
        );
    }
    wrapped
}

fn name_message(object: &mut Map<String, Value>) -> Option<String> {
    let message = object
        .get_mut("params")?
        .get_mut("message")?
        .as_object_mut()?;
    message
        .entry("messageId")
        .or_insert_with(|| json!(random_uuid()))
        .as_str()
        .map(str::to_owned)
}

fn depth(value: &Value) -> usize {
    let mut deepest = 0;
    let mut left = vec![(value, 1)];
    while let Some((value, level)) = left.pop() {
        deepest = deepest.max(level);
        match value {
            Value::Array(items) => left.extend(items.iter().map(|item| (item, level + 1))),
            Value::Object(members) => left.extend(members.values().map(|item| (item, level + 1))),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    deepest
}

/// What an agent that refuses says: its member `error`, if that is a text.
pub(crate) fn error_text(body: &[u8]) -> Option<String> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    answer.get("error")?.as_str().map(str::to_owned)
}

/// A body as it can be stored: as it is, without the character NUL, or not at all.
pub(crate) fn storable(body: &[u8]) -> Option<Value> {
    let value: Value = serde_json::from_slice(body).ok()?;
    (depth(&value) <= MAX_DEPTH).then(|| without_nul(value))
}

/// Replaces what Postgres cannot store.
pub(crate) fn without_nul(value: Value) -> Value {
    let clean = |text: String| {
        if text.contains('\0') {
            text.replace('\0', "\u{fffd}")
        } else {
            text
        }
    };
    match value {
        Value::String(text) => Value::String(clean(text)),
        Value::Array(items) => items.into_iter().map(without_nul).collect(),
        Value::Object(members) => Value::Object(
            members
                .into_iter()
                .map(|(name, item)| (clean(name), without_nul(item)))
                .collect(),
        ),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_method_becomes_json_rpc_and_a_message_gets_an_id() {
        let envelope = Envelope::normalise(
            br#"{"method":"message/send","params":{"message":{"parts":[]},"x":1},"extra":2}"#,
        )
        .unwrap();
        assert_eq!(envelope.method, "message/send");
        assert_eq!(envelope.json["jsonrpc"], "2.0");
        assert_eq!(envelope.json["params"]["x"], 1);
        assert!(envelope.json.get("extra").is_none());
        assert_eq!(
            envelope.json["params"]["message"]["messageId"].as_str(),
            envelope.message_id.as_deref()
        );
        assert!(envelope.message_id.is_some());
    }

    #[test]
    fn json_rpc_is_left_as_it_is() {
        let body = json!({
            "jsonrpc": "2.0", "id": 7, "method": "message/send", "other": true,
            "params": {"message": {"messageId": "m1", "parts": [{"kind": "text"}, {"type": "x"}]}, "metadata": {"a": 1}}
        });
        let envelope = Envelope::normalise(body.to_string().as_bytes()).unwrap();
        assert_eq!(envelope.json, body);
        assert_eq!(envelope.message_id.as_deref(), Some("m1"));
        for odd in [
            json!({"jsonrpc": "2.0"}),
            json!({"jsonrpc": "2.0", "params": []}),
            json!({"jsonrpc": "2.0", "params": {"message": "text"}}),
        ] {
            let envelope = Envelope::normalise(odd.to_string().as_bytes()).unwrap();
            assert_eq!(envelope.json, odd);
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(80), "]".repeat(80));
        for bad in ["", "nope", "[]", "\"x\"", "null", deep.as_str()] {
            let Err(error) = Envelope::normalise(bad.as_bytes()) else {
                panic!("{bad} passed");
            };
            assert_eq!(error.to_string(), "invalid JSON", "{bad}");
        }
    }

    #[test]
    fn answers_are_stored_without_what_cannot_be() {
        assert_eq!(
            storable(br#"{"a":["x\u0000y"]}"#),
            Some(json!({"a": ["x\u{fffd}y"]}))
        );
        assert_eq!(storable(b"not json"), None);
        assert_eq!(error_text(br#"{"error":"no"}"#).as_deref(), Some("no"));
        assert_eq!(error_text(br#"{"error":{"code":1}}"#), None);
    }
}
