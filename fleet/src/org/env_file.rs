//! Reading `.env` files.

use std::collections::BTreeMap;
use std::path::Path;

use longshore_base::Secret;

use super::is_variable;
use crate::config_source::ENV_FILE;
use crate::secrets::check_secret_name;

/// More is a mistake.
const MAX_BYTES: u64 = 1 << 20;

/// The variables of a directory's `.env`; none without one. What cannot be a secret is left out, with a log line that names
/// it.
pub(super) fn read(directory: &Path) -> BTreeMap<String, Secret<String>> {
    let path = directory.join(ENV_FILE);
    let is_usable =
        std::fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_BYTES);
    if !is_usable {
        return BTreeMap::new();
    }
    match std::fs::read_to_string(&path) {
        Ok(text) => parse(&text),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a file of variables cannot be read");
            BTreeMap::new()
        }
    }
}

fn parse(text: &str) -> BTreeMap<String, Secret<String>> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        let Some((name, value)) = line.split_once('=') else {
            continue;
        };
        let (name, value) = (name.trim(), unquoted(value.trim()));
        if name.starts_with('#') || value.is_empty() {
            continue;
        }
        if !is_variable(name) || check_secret_name(name, value).is_err() {
            tracing::warn!(name, "a variable cannot become a secret; left out");
            continue;
        }
        found.insert(name.to_owned(), Secret::from(value));
    }
    found
}

/// Without the quotes around it, or what is said of it after a space and a hash.
fn unquoted(value: &str) -> &str {
    for quote in ['"', '\''] {
        let inner = value
            .strip_prefix(quote)
            .and_then(|rest| rest.split_once(quote));
        if let Some((inner, _)) = inner {
            return inner;
        }
    }
    value
        .split_once(" #")
        .map_or(value, |(value, _)| value.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_read_as_shells_write_them_and_nothing_else() {
        let text = "# A_COMMENT=x\nPLAIN=a=b\n export QUOTED=\"two words\" # why\nSINGLE='x#y'\nNOTED=v # why\n\
                    lower=x\nEMPTY=\nTIER=4\nno line\n";
        let read = parse(text);
        let read: Vec<_> = read
            .iter()
            .map(|(name, value)| (name.as_str(), value.expose().as_str()))
            .collect();
        assert_eq!(
            read,
            [
                ("NOTED", "v"),
                ("PLAIN", "a=b"),
                ("QUOTED", "two words"),
                ("SINGLE", "x#y")
            ]
        );
    }
}
