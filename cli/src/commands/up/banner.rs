//! What `longshore up` says when it serves: where, as whom, and one line to copy.

use std::path::Path;

/// What there is to say.
pub(super) struct Banner<'a> {
    /// Where people reach the API.
    pub(super) url: &'a str,
    /// Where agents reach it.
    pub(super) platform_url: &'a str,
    /// The file of the admin token; none when the operator gave his own.
    pub(super) token_file: Option<&'a Path>,
    /// The data directory as given, when it is not the default.
    pub(super) data: Option<&'a Path>,
    /// What will not work, in sentences.
    pub(super) warnings: &'a [String],
}

impl Banner<'_> {
    /// The whole text.
    pub(super) fn text(&self) -> String {
        let url = self.url;
        let (token, shown) = match self.token_file {
            Some(file) => (
                format!("$(cat {})", quoted(file)),
                file.display().to_string(),
            ),
            None => (
                "$ADMIN_TOKEN".to_owned(),
                "as given in ADMIN_TOKEN".to_owned(),
            ),
        };
        let program = std::env::args()
            .next()
            .unwrap_or_else(|| "longshore".to_owned());
        let data = self
            .data
            .map(|data| format!(" --data {}", quoted(data)))
            .unwrap_or_default();
        let mut text = format!(
            "\nLongshore is up at {url}\n\
             \n  agents reach it at  {}\
             \n  admin token         {shown}\
             \n  API description     {url}/docs\n\
             \nCreate a workspace:\n\
             \n  curl -sS {url}/workspaces -H \"Authorization: Bearer {token}\" -H 'Content-Type: application/json' -d '{{\"name\":\"hello\"}}'\n\
             \nor, and wait until its agent is online:\n\
             \n  {} workspaces create hello --wait{data}\n",
            self.platform_url,
            quoted(Path::new(&program)),
        );
        for warning in self.warnings {
            text.push_str(&format!("\nNote: {warning}\n"));
        }
        text
    }
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let is_plain = text
        .chars()
        .all(|character| character.is_ascii_alphanumeric() || "/._-+".contains(character));
    if is_plain {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_to_copy_survives_odd_paths() {
        assert_eq!(quoted(Path::new("/a/b-c.d")), "/a/b-c.d");
        assert_eq!(quoted(Path::new("/it's here")), "'/it'\\''s here'");
    }
}
