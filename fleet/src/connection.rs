//! What the operator of an external agent needs to connect it (`spec: rest-api` §6.18): addresses, a token that is shown
//! once, and snippets to copy.
//!
//! The token is not put into the snippets here; each has [`TOKEN_PLACEHOLDER`] exactly once, which the canvas replaces.

use longshore_base::{Secret, WorkspaceId};
use sqlx::{Connection as _, PgConnection};
use url::Url;

use crate::{Fleet, FleetError, tokens};

/// What the canvas searches for in each snippet. Byte for byte.
pub const TOKEN_PLACEHOLDER: &str = "<paste from create response>";

const UNIVERSAL_MCP: &str = include_str!("snippets/universal_mcp.txt");
const PYTHON: &str = include_str!("snippets/python.txt");
const CLAUDE_CODE_CHANNEL: &str = include_str!("snippets/claude_code_channel.txt");
const HERMES_CHANNEL: &str = include_str!("snippets/hermes_channel.txt");
const CODEX: &str = include_str!("snippets/codex.txt");
const OPENCLAW: &str = include_str!("snippets/openclaw.txt");
const CURL_REGISTER: &str = include_str!("snippets/curl_register.txt");

/// The member `connection` of the answers to create and rotate.
#[derive(Clone, Debug)]
#[expect(
    missing_docs,
    reason = "the snippets are named as the API's members; their files say what they are"
)]
pub struct Connection {
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// The platform's public URL, without a slash at the end.
    pub platform_url: String,
    /// The token in plain text; empty when none could be issued.
    pub auth_token: Secret<String>,
    /// Where to register.
    pub registry_endpoint: String,
    /// Where to send heartbeats.
    pub heartbeat_endpoint: String,
    pub universal_mcp_snippet: String,
    pub python_snippet: String,
    pub claude_code_channel_snippet: String,
    pub hermes_channel_snippet: String,
    pub codex_snippet: String,
    pub openclaw_snippet: String,
    pub curl_register_template: String,
}

impl Connection {
    fn new(fleet: &Fleet, id: WorkspaceId, request_base: &str, auth_token: Secret<String>) -> Self {
        let platform_url = public_url(fleet, request_base);
        let fill = |snippet: &str| {
            snippet
                .replace("{{PLATFORM_URL}}", &platform_url)
                .replace("{{WORKSPACE_ID}}", &id.to_string())
        };
        Self {
            workspace_id: id,
            registry_endpoint: format!("{platform_url}/registry/register"),
            heartbeat_endpoint: format!("{platform_url}/registry/heartbeat"),
            universal_mcp_snippet: fill(UNIVERSAL_MCP),
            python_snippet: fill(PYTHON),
            claude_code_channel_snippet: fill(CLAUDE_CODE_CHANNEL),
            hermes_channel_snippet: fill(HERMES_CHANNEL),
            codex_snippet: fill(CODEX),
            openclaw_snippet: fill(OPENCLAW),
            curl_register_template: fill(CURL_REGISTER),
            platform_url,
            auth_token,
        }
    }
}

/// The setting, else where the request came in. What a request claims of its host ends in commands that people paste into
/// a shell, so only what reads back as a plain URL is taken.
fn public_url(fleet: &Fleet, request_base: &str) -> String {
    let config = &fleet.config;
    let configured = config.external_platform_url.as_deref();
    let wanted = configured
        .filter(|url| !url.is_empty())
        .unwrap_or(request_base);
    plain_url(wanted).unwrap_or_else(|| config.platform_url.trim_end_matches('/').to_owned())
}

fn plain_url(text: &str) -> Option<String> {
    let url = Url::parse(text).ok()?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
        && url
            .as_str()
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "/:.-_~[]".contains(c));
    plain.then(|| url.as_str().trim_end_matches('/').to_owned())
}

/// The connection data of a workspace just created, with its first token. A token that cannot be issued leaves it empty:
/// the workspace is there, and another can be issued later.
pub async fn issue_connection(
    tx: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
    request_base: &str,
) -> Connection {
    let issued = async {
        let mut savepoint = tx.begin().await?;
        let token = tokens::issue(&mut savepoint, id).await?;
        savepoint.commit().await?;
        Ok::<_, FleetError>(token)
    };
    let token = issued.await.unwrap_or_else(|error| {
        tracing::error!(
            workspace.id = %id, error = &error as &dyn std::error::Error,
            "no token could be issued for an external workspace"
        );
        Secret::default()
    });
    Connection::new(fleet, id, request_base, token)
}

/// The connection data with a new token, all others revoked. That the workspace is external and lives is the caller's
/// to check.
///
/// # Errors
/// [`FleetError::Database`].
pub async fn rotate_connection(
    tx: &mut PgConnection,
    fleet: &Fleet,
    id: WorkspaceId,
    request_base: &str,
) -> Result<Connection, FleetError> {
    let token = tokens::rotate(tx, id).await?;
    Ok(Connection::new(fleet, id, request_base, token))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [(&str, &str); 7] = [
        ("universal_mcp", UNIVERSAL_MCP),
        ("python", PYTHON),
        ("claude_code_channel", CLAUDE_CODE_CHANNEL),
        ("hermes_channel", HERMES_CHANNEL),
        ("codex", CODEX),
        ("openclaw", OPENCLAW),
        ("curl_register", CURL_REGISTER),
    ];

    #[test]
    fn each_snippet_has_the_token_placeholder_once_in_quotes_on_an_assignment() {
        for (name, snippet) in ALL {
            assert_eq!(snippet.matches(TOKEN_PLACEHOLDER).count(), 1, "{name}");
            let quoted = format!("\"{TOKEN_PLACEHOLDER}\"");
            let line = snippet
                .lines()
                .find(|line| line.contains(&quoted))
                .unwrap_or_else(|| panic!("{name} does not quote it"));
            let (variable, _) = line.split_once('=').unwrap();
            assert!(variable.trim_end().ends_with("TOKEN"), "{name}: {line}");
        }
        assert!(PYTHON.contains("AUTH_TOKEN    = \"<paste from create response>\""));
        assert!(CURL_REGISTER.contains("WORKSPACE_AUTH_TOKEN=\"<paste from create response>\""));
    }

    #[test]
    fn each_snippet_says_what_its_tab_must() {
        let has = |snippet: &str, wanted: &[&str]| {
            for text in wanted {
                assert!(snippet.contains(text), "{text} is missing from:\n{snippet}");
            }
        };
        for (_, snippet) in ALL {
            has(snippet, &["{{WORKSPACE_ID}}", "{{PLATFORM_URL}}"]);
            // No address but the platform's own: nothing guessed.
            assert!(!snippet.contains("http://") && !snippet.contains("https://"));
            // Nothing writes into a configuration file.
            assert!(!snippet.contains(">>") && !snippet.contains("tee "));
        }
        has(
            PYTHON,
            &[
                "pip install",
                "INBOUND_URL",
                "async def handle_message",
                "/registry/register",
                "/registry/heartbeat",
                "Recommended",
            ],
        );
        has(
            CLAUDE_CODE_CHANNEL,
            &[
                "# 1. Bun",
                "plugin marketplace add",
                "plugin install",
                "--channels plugin:",
                "--dangerously-load-development-channels",
                "plugin not installed",
                "not on the approved channels allowlist",
                "channelsEnabled",
                "allowedChannelPlugins",
            ],
        );
        has(
            HERMES_CHANNEL,
            &[
                "WORKSPACE_ID",
                "PLATFORM_URL",
                "LONGSHORE_ORG_ID",
                "plugin_platforms",
                "gateway:",
                "long polling",
            ],
        );
        has(
            CODEX,
            &[
                "# [mcp_servers.longshore]",
                "Only outbound tools",
                "Python SDK",
            ],
        );
        assert!(!CODEX.contains("env_vars"));
        has(
            OPENCLAW,
            &[
                "#   openclaw onboard --provider <provider> --model <model>",
                "openclaw mcp set",
                "nohup",
                "disown",
                "loopback",
                "service manager",
                "Only outbound tools",
            ],
        );
        has(
            CURL_REGISTER,
            &[
                "export WORKSPACE_AUTH_TOKEN",
                "export AGENT_URL",
                "Bearer",
                "agent_card",
                "no heartbeat loop",
            ],
        );
    }

    #[test]
    fn only_plain_urls_reach_a_shell() {
        assert_eq!(
            plain_url("https://ship.example:8443/base/"),
            Some("https://ship.example:8443/base".into())
        );
        assert_eq!(
            plain_url("http://[2001:db8::1]:80"),
            Some("http://[2001:db8::1]".into())
        );
        for bad in [
            "",
            "ship.example",
            "ftp://x",
            "http://a\";rm -rf ~;\"",
            "http://x/$(id)",
            "http://x/`id`",
            "http://u:p@x",
            "http://x?a=b",
        ] {
            assert_eq!(plain_url(bad), None, "{bad}");
        }
    }
}
