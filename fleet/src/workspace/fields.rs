//! The rules for what clients may write into a workspace (`spec: rest-api` §1.4, §6.2.1), as plain functions. The texts
//! are part of the API.

use std::path::{Component, Path};

use crate::workspace::WorkspaceAccess;

const MAX_NAME: usize = 255;
const MAX_ROLE: usize = 1000;
const MAX_MODEL: usize = 100;
const MAX_RUNTIME: usize = 100;
const SPECIAL: [char; 10] = ['{', '}', '[', ']', '|', '>', '*', '&', '!', '\0'];

/// Host directories no agent gets, nor anything below them.
const CLOSED_DIRS: [&str; 11] = [
    "/etc", "/var", "/proc", "/sys", "/dev", "/boot", "/sbin", "/bin", "/lib", "/usr",
    // `/var/run` is a link to it, and the engine's socket lives there.
    "/run",
];

/// The four text fields as far as a request has them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TextFields<'a> {
    pub(crate) name: Option<&'a str>,
    pub(crate) role: Option<&'a str>,
    pub(crate) model: Option<&'a str>,
    pub(crate) runtime: Option<&'a str>,
}

/// Checks the text fields in the order clients rely on: line breaks in all, special characters in name and role, then
/// lengths. The error is the text of the first violation.
pub(crate) fn check_texts(fields: &TextFields<'_>) -> Result<(), String> {
    let TextFields {
        name,
        role,
        model,
        runtime,
    } = *fields;
    let present =
        |field: &'static str, text: Option<&str>| text.map(|text| (field, text.to_owned()));
    let all = [
        present("name", name),
        present("role", role),
        present("model", model),
        present("runtime", runtime),
    ];
    for (field, text) in all.iter().flatten() {
        if text.contains(['\n', '\r']) {
            return Err(format!("{field} must not contain newline characters"));
        }
    }
    for (field, text) in all.iter().flatten() {
        let prose = matches!(*field, "name" | "role");
        // NUL fits into no column, whichever the field.
        if (prose && text.contains(SPECIAL)) || text.contains('\0') {
            return Err(format!("{field} contains invalid characters"));
        }
    }
    let limits = [MAX_NAME, MAX_ROLE, MAX_MODEL, MAX_RUNTIME];
    for (entry, limit) in all.iter().zip(limits) {
        if let Some((field, text)) = entry
            && text.chars().count() > limit
        {
            return Err(format!("{field} must be at most {limit} characters"));
        }
    }
    Ok(())
}

/// Checks a model slug, or a provider, under its name in the request.
pub(crate) fn check_model_text(field: &str, text: &str) -> Result<(), String> {
    if text.contains(['\n', '\r']) {
        return Err(format!("{field} must not contain newline characters"));
    }
    if text.contains('\0') {
        return Err(format!("{field} contains invalid characters"));
    }
    if text.chars().count() > MAX_MODEL {
        return Err(format!("{field} must be at most {MAX_MODEL} characters"));
    }
    Ok(())
}

/// Whether an agent may be given this host directory.
pub(crate) fn is_allowed_dir(dir: &str) -> bool {
    // A colon would end the path in a bind and start its options.
    if !dir.starts_with('/') || dir.contains(':') || dir.chars().any(char::is_control) {
        return false;
    }
    let mut names = 0;
    for component in Path::new(dir).components() {
        match component {
            Component::ParentDir => return false,
            Component::Normal(_) => names += 1,
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    // Components ignore doubled slashes and dots, so `//etc/./x` is seen as what it is. The root holds all of them.
    let path: std::path::PathBuf = Path::new(dir).components().collect();
    names > 0 && !CLOSED_DIRS.iter().any(|closed| path.starts_with(closed))
}

/// The access asked for, if it goes with the directory; `None` when it does not.
pub(crate) fn parse_access(text: Option<&str>, dir: Option<&str>) -> Option<WorkspaceAccess> {
    let access = match text {
        None | Some("") => WorkspaceAccess::None,
        Some(text) => WorkspaceAccess::parse(text)?,
    };
    match access {
        WorkspaceAccess::None => Some(access),
        WorkspaceAccess::ReadOnly | WorkspaceAccess::ReadWrite => dir.map(|_| access),
    }
}

/// A tier that cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TierRefusal {
    OutOfRange,
    NotAllowed { tier: i32, max: i32 },
}

pub(crate) fn check_tier(tier: i32, max: i32) -> Result<i32, TierRefusal> {
    match tier {
        1..=4 if tier <= max => Ok(tier),
        1..=4 => Err(TierRefusal::NotAllowed { tier, max }),
        _ => Err(TierRefusal::OutOfRange),
    }
}

/// An empty text means the same as none.
pub(crate) fn non_empty(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(name: &str, role: &str, model: &str, runtime: &str) -> Result<(), String> {
        check_texts(&TextFields {
            name: Some(name),
            role: Some(role),
            model: Some(model),
            runtime: Some(runtime),
        })
    }

    #[test]
    fn texts_are_checked_in_the_order_and_words_of_the_api() {
        let long = |n: usize| "é".repeat(n);
        assert_eq!(
            check(&long(255), &long(1000), &long(100), &long(100)),
            Ok(())
        );
        let table = [
            (
                check("a\nb", "", "", ""),
                "name must not contain newline characters",
            ),
            (
                check("a{", "r\r", "", ""),
                "role must not contain newline characters",
            ),
            (
                check("a{", "", "m\n", ""),
                "model must not contain newline characters",
            ),
            (
                check("a{", "", "", "r\n"),
                "runtime must not contain newline characters",
            ),
            (
                check("a>", "b!", "", ""),
                "name contains invalid characters",
            ),
            (
                check(&long(256), "b!", "", ""),
                "role contains invalid characters",
            ),
            (
                check(&long(256), &long(1001), "", ""),
                "name must be at most 255 characters",
            ),
            (
                check("a", &long(1001), &long(101), ""),
                "role must be at most 1000 characters",
            ),
            (
                check("a", "", &long(101), &long(101)),
                "model must be at most 100 characters",
            ),
            (
                check("a", "", "", &long(101)),
                "runtime must be at most 100 characters",
            ),
            (
                check("a", "", "m\0", ""),
                "model contains invalid characters",
            ),
        ];
        for (got, expected) in table {
            assert_eq!(got, Err(expected.to_owned()));
        }
        assert_eq!(check("a", "b", "vendor/model|x", "{}"), Ok(()));
    }

    #[test]
    fn system_directories_are_closed_however_they_are_spelled() {
        for bad in [
            "",
            "relative",
            "/",
            "//",
            "/./",
            "/etc",
            "/etc/",
            "/etc/ssh",
            "//etc",
            "/./etc/x",
            "/var/lib",
            "/proc/1",
            "/usr/local",
            "/data/../etc",
            "/data/..",
            "/run/docker.sock",
            "/data:/etc",
            "/data\nx",
            "/lib",
            "/bin",
        ] {
            assert!(!is_allowed_dir(bad), "{bad:?}");
        }
        for good in [
            "/data",
            "/home/me/project",
            "/etcetera",
            "/srv/a..b",
            "/library",
            "/variable/x",
        ] {
            assert!(is_allowed_dir(good), "{good:?}");
        }
    }

    #[test]
    fn access_to_a_directory_needs_the_directory() {
        assert_eq!(parse_access(None, None), Some(WorkspaceAccess::None));
        assert_eq!(
            parse_access(Some("none"), Some("/d")),
            Some(WorkspaceAccess::None)
        );
        assert_eq!(parse_access(Some("read_only"), None), None);
        assert_eq!(
            parse_access(Some("read_write"), Some("/d")),
            Some(WorkspaceAccess::ReadWrite)
        );
        assert_eq!(parse_access(Some("admin"), Some("/d")), None);
    }

    #[test]
    fn tiers_are_one_to_four_and_bounded_by_the_setting() {
        assert_eq!(check_tier(2, 2), Ok(2));
        assert_eq!(
            check_tier(3, 2),
            Err(TierRefusal::NotAllowed { tier: 3, max: 2 })
        );
        for out in [-1, 0, 5, 9] {
            assert_eq!(check_tier(out, 4), Err(TierRefusal::OutOfRange));
        }
    }

    proptest! {
        #[test]
        fn no_spelling_reaches_below_a_closed_directory(
            closed in proptest::sample::select(CLOSED_DIRS.to_vec()), noise in "(/\\.?){0,3}", tail in "(/[a-z.]{1,5}){0,3}"
        ) {
            let dir = format!("{noise}{closed}{tail}");
            prop_assert!(!is_allowed_dir(&dir), "{}", dir);
        }
    }
}
