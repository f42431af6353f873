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

/// An address that paths are put behind: `http://` or `https://` with a host, perhaps a path, and nothing else.
pub(crate) fn base_url(text: &str) -> Result<String, String> {
    const WANTED: &str = "must be an http:// or https:// URL without user, query or fragment";
    let text = http_url(text).map_err(|_| WANTED.to_owned())?;
    let url: url::Url = text.parse().map_err(|_| WANTED.to_owned())?;
    let is_plain = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    is_plain.then_some(text).ok_or_else(|| WANTED.to_owned())
}

/// An organisation's id: it goes into headers and is compared byte by byte.
pub(crate) fn org_id(text: &str) -> Result<String, String> {
    let is_plain = !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
    if is_plain && text.len() <= 255 {
        Ok(text.to_owned())
    } else {
        Err("must be 1 to 255 printable ASCII characters without spaces".to_owned())
    }
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
    fn an_address_that_paths_are_put_behind_has_nothing_else_in_it() {
        assert_eq!(
            base_url("https://cp.example:8443/eu/"),
            Ok("https://cp.example:8443/eu".to_owned())
        );
        for bad in [
            "cp.example",
            "ftp://cp.example",
            "http://me@cp.example",
            "http://me:secret@cp.example",
            "http://cp.example?a=b",
            "http://cp.example/#a",
        ] {
            assert!(base_url(bad).is_err(), "{bad}");
        }
        assert_eq!(org_id("tenant-1"), Ok("tenant-1".to_owned()));
        for bad in ["", " ", "two words", "line\nbreak", "größe"] {
            assert!(org_id(bad).is_err(), "{bad}");
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
