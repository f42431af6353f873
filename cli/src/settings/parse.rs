//! Value parsers that several settings share.

use std::time::Duration;

/// `1/0`, `t/f`, `true/false`, `yes/no`, `on/off`, in any case.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "yes" | "on" => Ok(true),
        "0" | "f" | "false" | "no" | "off" => Ok(false),
        _ => Err("must be true or false (1/0, t/f, yes/no, on/off are understood)".to_owned()),
    }
}

/// Whole seconds, at least one.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    match text.trim().parse::<u32>() {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(u64::from(seconds))),
        _ => Err("must be a whole number of seconds, 1 or more".to_owned()),
    }
}

/// `http://` or `https://` with a host; a trailing slash is dropped.
pub(crate) fn http_url(text: &str) -> Result<String, String> {
    let url: url::Url = text
        .parse()
        .map_err(|_| "must be an http:// or https:// URL".to_owned())?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err("must be an http:// or https:// URL".to_owned());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// `KEY=VALUE` with neither side empty.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() && !value.trim().is_empty() => {
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err("must look like name=value".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_read_in_every_usual_spelling_and_nothing_else() {
        for yes in ["1", "t", "TRUE", "Yes", "on"] {
            assert_eq!(boolean(yes), Ok(true), "{yes}");
        }
        for no in ["0", "F", "false", "no", "Off"] {
            assert_eq!(boolean(no), Ok(false), "{no}");
        }
        for bad in ["2", "ja", "truee"] {
            assert!(boolean(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_platform_url_wants_a_scheme_and_a_host() {
        assert_eq!(
            http_url("http://10.0.0.1:8080/"),
            Ok("http://10.0.0.1:8080".to_owned())
        );
        for bad in ["localhost:8080", "ftp://x", "http://", "nope"] {
            assert!(http_url(bad).is_err(), "{bad}");
        }
    }
}
