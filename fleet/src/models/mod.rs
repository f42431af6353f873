//! From a model slug to its provider (`spec: lifecycle` §8.4). The table is data: `prefixes.tsv`.
//!
//! Two secrets carry the choice through restarts: [`MODEL_SECRET`] holds the slug itself, despite its name, and
//! [`PROVIDER_SECRET`] what it derives to. An empty provider is never stored: it would make the image guess.

mod choice;
#[cfg(test)]
mod drift;

pub use choice::{check_choice, choose_model, choose_provider, find_model, find_provider};

/// The secret and variable that holds the full model slug. The ecosystem fixed the name.
pub const MODEL_SECRET: &str = "MODEL_PROVIDER";
/// The secret and variable that holds the provider.
pub const PROVIDER_SECRET: &str = "LLM_PROVIDER";

const PREFIXES: &str = include_str!("prefixes.tsv");

fn rows() -> impl Iterator<Item = (&'static str, &'static str)> {
    PREFIXES
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('\t'))
}

/// The provider of a model slug: what the whole text before its first slash stands for, case counting. `None` for an
/// unknown prefix, no slash, or nothing before it.
#[must_use]
pub fn derive_provider(slug: &str) -> Option<&'static str> {
    let (prefix, _) = slug.split_once('/')?;
    rows()
        .find(|(known, _)| *known == prefix)
        .map(|(_, provider)| provider)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The table of the spec, written down a second time, in its own grouping.
    const SAME: [&str; 32] = [
        "minimax",
        "minimax-cn",
        "anthropic",
        "gemini",
        "deepseek",
        "zai",
        "kimi-coding",
        "kimi-coding-cn",
        "alibaba",
        "xiaomi",
        "arcee",
        "nvidia",
        "ollama-cloud",
        "huggingface",
        "ai-gateway",
        "kilocode",
        "opencode-zen",
        "opencode-go",
        "openrouter",
        "custom",
        "xai",
        "bedrock",
        "tencent-tokenhub",
        "gmi",
        "qwen-oauth",
        "lmstudio",
        "minimax-oauth",
        "alibaba-coding-plan",
        "google-gemini-cli",
        "openai-codex",
        "copilot-acp",
        "copilot",
    ];
    const ALIASES: [(&str, &str); 13] = [
        ("dashscope", "alibaba"),
        ("qwen", "alibaba"),
        ("mimo", "xiaomi"),
        ("arcee-ai", "arcee"),
        ("nim", "nvidia"),
        ("hf", "huggingface"),
        ("aigateway", "ai-gateway"),
        ("grok", "xai"),
        ("aws", "bedrock"),
        ("tencent", "tencent-tokenhub"),
        ("lm-studio", "lmstudio"),
        ("openai", "openrouter"),
        ("nousresearch", "openrouter"),
    ];

    #[test]
    fn the_data_file_holds_exactly_the_table() {
        let table: BTreeSet<_> = SAME
            .map(|name| (name, name))
            .into_iter()
            .chain(ALIASES)
            .collect();
        assert_eq!(rows().collect::<BTreeSet<_>>(), table);
        assert_eq!(rows().count(), table.len(), "a prefix stands twice");
        let lines = PREFIXES
            .lines()
            .filter(|line| !line.starts_with('#'))
            .count();
        assert_eq!(lines, table.len(), "a line is neither comment nor row");
    }

    #[test]
    fn the_prefix_is_the_whole_text_before_the_first_slash() {
        for (slug, provider) in [
            ("minimax/MiniMax-M2.7", Some("minimax")),
            ("minimax-oauth/x", Some("minimax-oauth")),
            ("minimax-cn/x", Some("minimax-cn")),
            ("copilot-acp/x", Some("copilot-acp")),
            ("openrouter/anthropic/claude", Some("openrouter")),
            ("grok/4", Some("xai")),
            ("hf/org/model", Some("huggingface")),
            ("openai/gpt-4o", Some("openrouter")),
            ("anthropic/", Some("anthropic")),
            ("Anthropic/claude", None),
            ("unknown/x", None),
            ("MiniMax-M2", None),
            ("anthropic:claude-opus-4-7", None),
            ("/anthropic", None),
            ("", None),
        ] {
            assert_eq!(derive_provider(slug), provider, "{slug:?}");
        }
    }
}
