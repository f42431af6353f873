//! The A2A protocol as far as an echo needs it: the agent card and JSON-RPC `message/send`.
//!
//! Plain values in, plain values out. A request without an `id` is answered like one whose `id` is null: the
//! platform passes such requests on, and silence would help nobody.

use serde_json::{Value, json};

use crate::settings::Identity;

/// A `message/send` that can be answered.
#[derive(Debug, PartialEq)]
pub(crate) struct Call {
    id: Value,
    context_id: Option<Value>,
    pub(crate) message_id: Option<String>,
    /// Its first text part.
    pub(crate) text: String,
}

/// A request that cannot, with the code JSON-RPC or A2A has for the reason.
#[derive(Debug, PartialEq)]
pub(crate) struct Refusal {
    id: Value,
    code: i64,
    message: &'static str,
}

const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
/// A2A's `ContentTypeNotSupportedError`.
const CONTENT_TYPE_NOT_SUPPORTED: i64 = -32005;

/// The card shown at the well-known addresses and sent with the registration.
pub(crate) fn card(identity: &Identity, url: &str) -> Value {
    json!({
        "name": identity.name,
        "description": identity.description,
        "version": env!("CARGO_PKG_VERSION"),
        "protocolVersion": "0.3.0",
        "url": url,
        "preferredTransport": "JSONRPC",
        "defaultInputModes": ["text/plain"],
        "defaultOutputModes": ["text/plain"],
        "capabilities": {"streaming": false, "pushNotifications": false},
        "skills": [{
            "id": "echo",
            "name": "Echo",
            "description": "Answers a message with the agent's name and the message's first text",
            "tags": ["echo", "test"],
        }],
    })
}

/// Reads a request body.
pub(crate) fn parse(body: &[u8]) -> Result<Call, Refusal> {
    let refuse = |id: &Value, code, message| {
        Err(Refusal {
            id: id.clone(),
            code,
            message,
        })
    };
    let Ok(request) = serde_json::from_slice::<Value>(body) else {
        return refuse(&Value::Null, PARSE_ERROR, "Parse error");
    };
    let id = &request["id"];
    if !(id.is_null() || id.is_string() || id.is_number()) {
        return refuse(
            &Value::Null,
            INVALID_REQUEST,
            "Invalid Request: id must be a string or a number",
        );
    }
    if request["jsonrpc"] != "2.0" {
        return refuse(
            id,
            INVALID_REQUEST,
            "Invalid Request: jsonrpc must be \"2.0\" in one object",
        );
    }
    match request["method"].as_str() {
        Some("message/send") => {}
        Some(_) => return refuse(id, METHOD_NOT_FOUND, "Method not found"),
        None => {
            return refuse(
                id,
                INVALID_REQUEST,
                "Invalid Request: method must be a string",
            );
        }
    }
    let message = &request["params"]["message"];
    let Some(parts) = message["parts"].as_array() else {
        return refuse(
            id,
            INVALID_PARAMS,
            "Invalid params: params.message.parts must be an array",
        );
    };
    // Older senders write `type` where the protocol now says `kind`.
    let is_text = |part: &&Value| part["kind"] == "text" || part["type"] == "text";
    let Some(text) = parts
        .iter()
        .filter(is_text)
        .find_map(|part| part["text"].as_str())
    else {
        return refuse(
            id,
            CONTENT_TYPE_NOT_SUPPORTED,
            "Incompatible content types: a text part is needed",
        );
    };
    Ok(Call {
        id: id.clone(),
        context_id: message
            .get("contextId")
            .filter(|id| id.is_string())
            .cloned(),
        message_id: message["messageId"].as_str().map(str::to_owned),
        text: text.to_owned(),
    })
}

impl Call {
    /// The answer: a message of the agent's with `text` in it.
    pub(crate) fn answer(&self, message_id: &str, text: &str) -> Value {
        let mut message = json!({
            "kind": "message",
            "role": "agent",
            "messageId": message_id,
            "parts": [{"kind": "text", "text": text}],
        });
        if let Some(context) = &self.context_id {
            message["contextId"] = context.clone();
        }
        json!({"jsonrpc": "2.0", "id": self.id, "result": message})
    }
}

impl Refusal {
    /// The answer: a JSON-RPC error.
    pub(crate) fn answer(&self) -> Value {
        json!({"jsonrpc": "2.0", "id": self.id, "error": {"code": self.code, "message": self.message}})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn send(message: Value) -> Value {
        json!({"jsonrpc": "2.0", "id": "q", "method": "message/send", "params": {"message": message}})
    }

    #[test]
    fn the_first_text_part_is_echoed_whatever_it_is_called() {
        for parts in [
            json!([{"kind": "text", "text": "hi"}, {"kind": "text", "text": "later"}]),
            json!([{"kind": "file", "file": {}}, {"type": "text", "text": "hi"}]),
        ] {
            let body =
                send(json!({"messageId": "m", "contextId": "c", "parts": parts})).to_string();
            let call = parse(body.as_bytes()).unwrap();
            assert_eq!(
                (call.text.as_str(), call.message_id.as_deref()),
                ("hi", Some("m"))
            );
            assert_eq!(
                call.answer("n", "Ada: hi"),
                json!({"jsonrpc": "2.0", "id": "q", "result": {
                    "kind": "message", "role": "agent", "messageId": "n", "contextId": "c",
                    "parts": [{"kind": "text", "text": "Ada: hi"}],
                }})
            );
        }
    }

    #[test]
    fn what_cannot_be_answered_gets_its_code_and_its_id_back() {
        let text = |value: Value| value.to_string();
        for (body, code, id) in [
            ("{".to_owned(), PARSE_ERROR, Value::Null),
            (String::new(), PARSE_ERROR, Value::Null),
            ("[]".to_owned(), INVALID_REQUEST, Value::Null),
            ("7".to_owned(), INVALID_REQUEST, Value::Null),
            (
                text(json!({"id": 1, "method": "message/send"})),
                INVALID_REQUEST,
                json!(1),
            ),
            (
                text(json!({"jsonrpc": "2.0", "id": {}, "method": "x"})),
                INVALID_REQUEST,
                Value::Null,
            ),
            (
                text(json!({"jsonrpc": "2.0", "id": 2, "method": 3})),
                INVALID_REQUEST,
                json!(2),
            ),
            (
                text(json!({"jsonrpc": "2.0", "id": 4, "method": "tasks/get"})),
                METHOD_NOT_FOUND,
                json!(4),
            ),
            (
                text(json!({"jsonrpc": "2.0", "id": 5, "method": "message/send"})),
                INVALID_PARAMS,
                json!(5),
            ),
            (
                text(send(json!({"parts": "hi"}))),
                INVALID_PARAMS,
                json!("q"),
            ),
            (
                text(send(json!({"parts": [{"kind": "data"}]}))),
                CONTENT_TYPE_NOT_SUPPORTED,
                json!("q"),
            ),
        ] {
            let answer = parse(body.as_bytes()).unwrap_err().answer();
            assert_eq!(
                (&answer["error"]["code"], &answer["id"]),
                (&json!(code), &id),
                "for {body}"
            );
        }
    }
}
