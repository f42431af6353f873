//! The header `Idempotency-Key`: a string as structured fields write it (RFC 8941), or the same without its quotes.

use poem::http::{HeaderMap, HeaderValue};
use sfv::{BareItem, Item, Parser};

use crate::problem::{ApiError, ApiResult};

const NAME: &str = "idempotency-key";
const LONGEST: usize = 255;

/// The key, if the request has one.
///
/// # Errors
/// 400 for a header that is none, or more than one.
pub(super) fn find(headers: &HeaderMap) -> ApiResult<Option<String>> {
    let mut values = headers.get_all(NAME).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => read(value).map(Some).ok_or_else(refusal),
        (Some(_), Some(_)) => Err(refusal()),
    }
}

fn read(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?.trim();
    let key = if text.starts_with('"') {
        match Parser::new(text).parse::<Item>().ok()?.bare_item {
            BareItem::String(key) => key.as_str().to_owned(),
            _ => return None,
        }
    } else {
        // What could be the rest of a quoted key, or two headers that a proxy joined, is no key.
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\",;\\".contains(&byte);
        text.bytes().all(is_plain).then(|| text.to_owned())?
    };
    (1..=LONGEST).contains(&key.len()).then_some(key)
}

fn refusal() -> ApiError {
    ApiError::bad_request("invalid Idempotency-Key").detail(
        "send one Idempotency-Key of 1 to 255 printable ASCII characters in double quotes, with \\ before \" and \\; \
         the quotes may be left out where it holds no spaces and none of \" , ; \\. A fresh UUID for each new request is best",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&[u8]]) -> Result<Option<String>, u16> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(NAME, HeaderValue::from_bytes(value).unwrap());
        }
        find(&headers).map_err(|error| error.status().as_u16())
    }

    #[test]
    fn a_key_is_a_quoted_string_or_the_same_without_quotes() {
        assert_eq!(parse(&[]), Ok(None));
        let longest = "k".repeat(LONGEST);
        for (header, key) in [
            (
                r#""8e03978e-40d5-43dd-bc93-6894a57f9324""#,
                "8e03978e-40d5-43dd-bc93-6894a57f9324",
            ),
            (
                "8e03978e-40d5-43dd-bc93-6894a57f9324",
                "8e03978e-40d5-43dd-bc93-6894a57f9324",
            ),
            (r#""a \"b\" \\, c;""#, r#"a "b" \, c;"#),
            // Parameters are for later versions of the header; what is not known is passed over.
            (r#""k";later=1"#, "k"),
            ("order/7:{x}", "order/7:{x}"),
            (" k\t", "k"),
            (longest.as_str(), longest.as_str()),
            (&format!("\"{longest}\""), longest.as_str()),
        ] {
            assert_eq!(
                parse(&[header.as_bytes()]),
                Ok(Some(key.to_owned())),
                "{header}"
            );
        }
    }

    #[test]
    fn anything_else_is_refused() {
        let too_long = "k".repeat(LONGEST + 1);
        let too_long_quoted = format!("\"{too_long}\"");
        for header in [
            "",
            "  ",
            r#""""#,
            r#"""#,
            r#""k"#,
            r#"k""#,
            r#""a" "b""#,
            r#""a", "b""#,
            "a, b",
            "a,b",
            "a b",
            "a;b",
            r"a\b",
            r#""a\b""#,
            "\"tab\there\"",
            &too_long,
            &too_long_quoted,
        ] {
            assert_eq!(parse(&[header.as_bytes()]), Err(400), "{header}");
        }
        assert_eq!(parse(&["schlüssel".as_bytes()]), Err(400));
        assert_eq!(parse(&["\"schlüssel\"".as_bytes()]), Err(400));
        assert_eq!(parse(&[b"a", b"a"]), Err(400), "given twice");
    }
}
