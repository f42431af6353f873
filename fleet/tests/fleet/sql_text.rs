//! Statuses reach SQL as bound values only: read from the source of every crate.

use std::path::{Path, PathBuf};

use longshore_fleet::WorkspaceStatus;

/// String literals of a Rust source. Comments are skipped; escapes stay as they are written, which is enough here.
fn literals(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(start) = rest.find(['"', '/', '\'']) {
        let (before, at) = rest.split_at(start);
        if at.starts_with("//") {
            rest = at.split_once('\n').map_or("", |(_, after)| after);
        } else if let Some(after) = at.strip_prefix('"') {
            let hashes = before.len() - before.trim_end_matches('#').len();
            let raw = before.trim_end_matches('#').ends_with('r');
            let (literal, after) = if raw {
                let end = format!("\"{}", "#".repeat(hashes));
                after.split_once(&end).unwrap_or((after, ""))
            } else {
                split_plain(after)
            };
            found.push(literal.to_owned());
            rest = after;
        } else if at.starts_with("'\"'") || at.starts_with("'\\\"'") {
            rest = at.split_once("\"'").map_or("", |(_, after)| after);
        } else {
            rest = &at[1..];
        }
    }
    found
}

fn split_plain(text: &str) -> (&str, &str) {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            '\\' => escaped = !escaped,
            '"' if !escaped => return (&text[..at], &text[at + 1..]),
            _ => escaped = false,
        }
    }
    (text, "")
}

fn has_status_literal(literal: &str) -> bool {
    let about_workspaces = literal.contains("workspaces") || literal.contains("workspace_status");
    let sql = ["SELECT", "UPDATE", "INSERT", "DELETE", "WHERE"]
        .iter()
        .any(|word| literal.contains(word));
    let quoted = |status: WorkspaceStatus| literal.contains(&format!("'{status}'"));
    about_workspaces && sql && WorkspaceStatus::ALL.into_iter().any(quoted)
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn no_sql_text_holds_a_status() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    sources(root, &mut files);
    assert!(files.len() > 50, "only {} sources found", files.len());
    let guilty: Vec<_> = files
        .iter()
        .flat_map(|path| {
            let source = std::fs::read_to_string(path).unwrap();
            literals(&source)
                .into_iter()
                .filter(|literal| has_status_literal(literal))
                .map(|literal| format!("{}: {literal}", path.display()))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(guilty.is_empty(), "bind the status instead: {guilty:#?}");
}

#[test]
fn the_search_finds_what_it_looks_for() {
    // Put together here, so that this file is not guilty itself.
    let sql = |status: &str| format!("UPDATE {} SET status = '{status}'", "workspaces");
    for source in [
        format!("query!(\"{}\")", sql("online")),
        format!("query!(r#\"{}\"#)", sql("removed")),
        format!("let c = '\"'; // it's\nquery(\"a \\\" {}\")", sql("failed")),
    ] {
        assert!(
            literals(&source)
                .iter()
                .any(|text| has_status_literal(text)),
            "{source}"
        );
    }
    let bound = format!(
        "// {}\nquery!(\"UPDATE workspaces SET status = $1\")",
        sql("online")
    );
    assert!(!literals(&bound).iter().any(|text| has_status_literal(text)));
    assert!(!has_status_literal("UPDATE leaks SET state = 'removed'"));
}
