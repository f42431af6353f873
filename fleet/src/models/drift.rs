//! The table of prefixes beside what an image does with the same table at boot (`derive-provider.sh`): made of one data file,
//! compared both ways, and run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::Command;

use super::{derive_provider, rows};

const SCRIPT: &str = include_str!("derive-provider.sh");
/// Where the two may differ: an image sees keys that nobody knows when a workspace is created.
const DIVERGENCES: [&str; 2] = ["nousresearch", "openai"];
/// Both names under which an image may be told its model.
const MODEL_VARIABLES: [&str; 2] = ["HERMES_INFERENCE_MODEL", "HERMES_DEFAULT_MODEL"];
const ANCHORS: [(&str, &str); 4] = [
    ("anthropic", "anthropic"),
    ("grok", "xai"),
    ("minimax-cn", "minimax-cn"),
    ("hf", "huggingface"),
];

/// The arms of the script's `case`, made of the data file.
fn arms() -> String {
    let mut prefixes: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (prefix, provider) in rows().filter(|(prefix, _)| !DIVERGENCES.contains(prefix)) {
        prefixes.entry(provider).or_default().insert(prefix);
    }
    let mut text = String::new();
    for (provider, prefixes) in prefixes {
        let patterns: Vec<_> = prefixes
            .iter()
            .map(|prefix| format!("{prefix}/*"))
            .collect();
        writeln!(text, "    {}) provider={provider} ;;", patterns.join(" | ")).unwrap();
    }
    text
}

/// What the script says of plain prefixes; of the two that it decides by keys, nothing. Fails where it finds nothing.
fn read_script(script: &str) -> Result<BTreeMap<&str, &str>, String> {
    if !MODEL_VARIABLES.iter().all(|name| script.contains(name)) {
        return Err("the script reads its model from other variables".to_owned());
    }
    let mut table = BTreeMap::new();
    for line in script.lines() {
        let arm = line
            .trim()
            .strip_suffix(" ;;")
            .and_then(|arm| arm.split_once(") provider="));
        let Some((patterns, provider)) = arm else {
            continue;
        };
        for pattern in patterns.split(" | ") {
            if let Some(prefix) = pattern.strip_suffix("/*") {
                table.insert(prefix, provider);
            }
        }
    }
    if table.is_empty() {
        return Err("the script has no table that could be read".to_owned());
    }
    Ok(table)
}

#[test]
fn the_script_is_what_the_data_file_makes_of_it() {
    let arms = arms();
    assert!(
        SCRIPT.contains(&format!("case \"$model\" in\n{arms}    openai/*)\n")),
        "put these arms into fleet/src/models/derive-provider.sh:\n{arms}"
    );
}

#[test]
fn the_two_tables_differ_in_nothing_but_what_keys_decide() {
    let script = read_script(SCRIPT).unwrap();
    for (prefix, provider) in ANCHORS {
        assert_eq!(script.get(prefix), Some(&provider), "the reader is broken");
    }
    let ours: BTreeMap<_, _> = rows().collect();
    let missing: Vec<_> = ours
        .iter()
        .filter(|(prefix, provider)| script.get(*prefix) != Some(*provider))
        .map(|(prefix, _)| *prefix)
        .collect();
    assert_eq!(missing, DIVERGENCES, "ours, and not the image's");
    let unknown: Vec<_> = script
        .iter()
        .filter(|(prefix, provider)| ours.get(*prefix) != Some(*provider))
        .collect();
    assert!(unknown.is_empty(), "the image's, and not ours: {unknown:?}");
}

#[test]
fn a_script_that_cannot_be_read_is_no_script_without_differences() {
    for (script, why) in [
        ("", "other variables"),
        ("x=$HERMES_INFERENCE_MODEL", "other variables"),
        (
            "x=${HERMES_INFERENCE_MODEL:-$HERMES_DEFAULT_MODEL}\nesac",
            "no table",
        ),
    ] {
        assert!(read_script(script).unwrap_err().contains(why), "{script}");
    }
}

#[test]
fn an_image_finds_the_same_provider_at_boot() {
    let run = |vars: &[(&str, &str)]| {
        let ran = Command::new("sh")
            .args(["-c", SCRIPT])
            .env_clear()
            .envs(vars.iter().copied())
            .output()
            .unwrap();
        assert!(ran.status.success(), "{ran:?}");
        String::from_utf8(ran.stdout).unwrap().trim_end().to_owned()
    };
    for (prefix, provider) in rows() {
        let slug = format!("{prefix}/model/x");
        assert_eq!(derive_provider(&slug), Some(provider));
        assert_eq!(
            run(&[("HERMES_INFERENCE_MODEL", &slug)]),
            provider,
            "{slug}"
        );
    }
    let default = [("HERMES_DEFAULT_MODEL", "grok/4")];
    assert_eq!(run(&default), "xai");
    assert_eq!(
        run(&[default[0], ("HERMES_INFERENCE_MODEL", "hf/a/b")]),
        "huggingface"
    );
    assert_eq!(
        run(&[default[0], ("HERMES_INFERENCE_PROVIDER", "mine")]),
        "mine"
    );
    for unknown in [
        "",
        "unknown/x",
        "MiniMax-M2",
        "/anthropic",
        "anthropic:claude",
    ] {
        assert_eq!(
            run(&[("HERMES_DEFAULT_MODEL", unknown)]),
            "auto",
            "{unknown:?}"
        );
        assert_eq!(derive_provider(unknown), None);
    }
    let keyed = |slug, key| run(&[("HERMES_DEFAULT_MODEL", slug), (key, "k")]);
    assert_eq!(keyed("openai/gpt-4o", "OPENAI_API_KEY"), "custom");
    assert_eq!(keyed("nousresearch/h", "HERMES_API_KEY"), "nous");
    assert_eq!(keyed("nousresearch/h", "NOUS_API_KEY"), "nous");
}
