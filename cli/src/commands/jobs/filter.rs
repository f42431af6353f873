//! `--where`: which jobs an action is for, in words.
//!
//! Conditions stand apart by spaces and must all hold: `field=value`, and `error~text` for a part of an error. Values
//! are quoted as in a shell.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::client::{Client, ClientError};
use crate::when::When;

/// How `--help` explains it.
pub(super) const HELP: &str = "\
Only jobs for which all of this holds, such as 'kind=provision state=dead error~timeout older_than=1h'.
Fields: queue, kind, state, workspace, tenant, older_than and newer_than (a duration or a time in RFC 3339), each with \
= and a value; error, with ~ and a part of its text. Quote values with spaces: error~\"no such image\".";

/// A filter, as understood.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Filter {
    texts: Map<String, Value>,
    older_than: Option<When>,
    newer_than: Option<When>,
}

impl Filter {
    /// Reads one. At least one condition is wanted: nobody acts on all jobs by leaving something out.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let words = shlex::split(text).ok_or("a quote is not closed")?;
        if words.is_empty() {
            return Err("name at least one condition, such as state=dead".to_owned());
        }
        let mut filter = Self::default();
        for word in &words {
            filter.add(word)?;
        }
        Ok(filter)
    }

    fn add(&mut self, word: &str) -> Result<(), String> {
        let at = word.find(['=', '~']).ok_or_else(|| {
            format!("`{word}` is no condition: it must look like field=value or error~text")
        })?;
        let (field, rest) = word.split_at(at);
        let (operator, value) = rest.split_at(1);
        if value.is_empty() {
            return Err(format!("`{word}` has no value"));
        }
        let twice = match (field, operator) {
            ("older_than", "=") => self.older_than.replace(when(field, value)?).is_some(),
            ("newer_than", "=") => self.newer_than.replace(when(field, value)?).is_some(),
            ("error", "~") | ("queue" | "kind" | "state" | "tenant", "=") => {
                self.texts.insert(field.to_owned(), json!(value)).is_some()
            }
            ("workspace", "=") => {
                let id: Uuid = value
                    .parse()
                    .map_err(|_| format!("`{value}` is no workspace id"))?;
                self.texts
                    .insert("workspace_id".to_owned(), json!(id))
                    .is_some()
            }
            ("error", _) => return Err(format!("errors are searched with ~: error~{value}")),
            (
                "queue" | "kind" | "state" | "tenant" | "workspace" | "older_than" | "newer_than",
                _,
            ) => return Err(format!("{field} is compared with =: {field}={value}")),
            _ => {
                return Err(format!(
                    "there is no field `{field}`; there are queue, kind, state, workspace, tenant, error, older_than \
                     and newer_than"
                ));
            }
        };
        if twice {
            return Err(format!("{field} is given twice"));
        }
        Ok(())
    }

    /// As the API takes it.
    pub(super) async fn body(&self, client: &Client) -> Result<Value, ClientError> {
        let mut body = self.texts.clone();
        let moments = [
            ("older_than", self.older_than),
            ("newer_than", self.newer_than),
        ];
        for (name, when) in moments {
            if let Some(when) = when {
                body.insert(name.to_owned(), json!(when.ago(client).await?));
            }
        }
        Ok(Value::Object(body))
    }
}

fn when(field: &str, value: &str) -> Result<When, String> {
    When::parse(value).map_err(|wrong| format!("{field} {wrong}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn conditions_are_split_like_words_of_a_shell() {
        let filter = Filter::parse(
            r#"kind=provision  state=dead error~"no such image" older_than='1h 30m' tenant=a=b"#,
        )
        .unwrap();
        assert_eq!(
            Value::Object(filter.texts),
            json!({"kind": "provision", "state": "dead", "error": "no such image", "tenant": "a=b"})
        );
        assert_eq!(
            filter.older_than,
            Some(When::Distance(Duration::from_secs(5_400)))
        );
        let id = "9b6f3c1e-4d2a-4c3b-9f00-0123456789ab";
        let filter = Filter::parse(&format!("workspace={id}")).unwrap();
        assert_eq!(filter.texts["workspace_id"], id);
        let filter = Filter::parse("error~a=b").unwrap();
        assert_eq!(filter.texts["error"], "a=b");
    }

    #[test]
    fn what_is_not_understood_is_refused_and_explained() {
        for (text, told) in [
            ("", "at least one condition"),
            ("   ", "at least one condition"),
            ("dead", "field=value"),
            ("state=", "no value"),
            ("status=dead", "no field `status`"),
            ("error=timeout", "error~timeout"),
            ("kind~prov", "kind=prov"),
            ("state=dead state=cancelled", "given twice"),
            ("older_than=soon", "older_than must be a duration"),
            ("workspace=ada", "no workspace id"),
            ("error~\"open", "quote"),
        ] {
            let refusal = Filter::parse(text).unwrap_err();
            assert!(refusal.contains(told), "{text}: {refusal}");
        }
    }
}
