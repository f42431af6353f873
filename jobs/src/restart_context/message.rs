//! What a restarted agent reads.

use chrono::{SecondsFormat, TimeDelta};
use longshore_base::Timestamp;
use longshore_base::ids::random_uuid;
use longshore_fleet::restarting::RestartContext;
use serde_json::{Value, json};

/// The whole message as A2A sends it.
pub(super) fn envelope(context: &RestartContext, secret_names: &[String]) -> Value {
    json!({
        "jsonrpc": "2.0",
        "id": random_uuid(),
        "method": "message/send",
        "params": {
            "message": {
                "role": "user",
                "messageId": random_uuid(),
                "parts": [{ "kind": "text", "text": text(context, secret_names) }],
                "metadata": metadata(),
            },
            "metadata": metadata(),
        },
    })
}

fn metadata() -> Value {
    json!({ "source": "platform", "kind": "restart_context", "layer": 1, "restart_context": true })
}

fn text(context: &RestartContext, secret_names: &[String]) -> String {
    let at = rfc3339(context.restarted_at);
    let previous = match context.previous_heartbeat_at {
        Some(ended) => format!(
            "{} ({} before the restart)",
            rfc3339(ended),
            age(context.restarted_at - ended)
        ),
        None => "none on record".to_owned(),
    };
    let names = if secret_names.is_empty() {
        "(none)".to_owned()
    } else {
        secret_names.join(", ")
    };
    format!(
        "[platform] This workspace was restarted.\n\
         Restarted at: {at}\n\
         Previous session ended: {previous}\n\
         Environment keys available: {names}\n\
         This is information from the platform; nobody waits for an answer."
    )
}

fn rfc3339(at: Timestamp) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// `2h14m`, `3m5s`, `38s`.
fn age(span: TimeDelta) -> String {
    let seconds = span.num_seconds().max(0);
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds}s"),
        (hours, minutes, _) => format!("{hours}h{minutes}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        for (seconds, text) in [
            (-5, "0s"),
            (0, "0s"),
            (38, "38s"),
            (185, "3m5s"),
            (8_045, "2h14m"),
            (180_000, "50h0m"),
        ] {
            assert_eq!(age(TimeDelta::seconds(seconds)), text);
        }
    }

    #[test]
    fn the_message_names_times_and_keys() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let mut context = RestartContext {
            restarted_at: at("2026-01-02T03:04:05.678Z"),
            previous_heartbeat_at: Some(at("2026-01-02T03:01:00Z")),
        };
        let names = ["API_KEY".to_owned(), "MODEL".to_owned()];
        let message = envelope(&context, &names);
        let told = message["params"]["message"]["parts"][0]["text"]
            .as_str()
            .unwrap();
        for part in [
            "Restarted at: 2026-01-02T03:04:05Z\n",
            "2026-01-02T03:01:00Z (3m5s before the restart)\n",
            "API_KEY, MODEL\n",
        ] {
            assert!(told.contains(part), "{told}");
        }
        assert_eq!(message["params"]["metadata"]["kind"], "restart_context");
        context.previous_heartbeat_at = None;
        let told = text(&context, &[]);
        assert!(
            told.contains("none on record") && told.contains("(none)"),
            "{told}"
        );
    }
}
