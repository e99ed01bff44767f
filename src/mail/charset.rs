//! Charsets: bytes of a header or a body part turned into Unicode.

use mail_parser::decoders::charsets::map::charset_decoder;
use std::borrow::Cow;

/// Decodes `bytes` by the charset a part names; an unknown or absent one is tried as UTF-8, then as Windows-1252. So is
/// US-ASCII: who declares it and sends bytes of eight bits has said nothing about those.
pub(super) fn decode_charset(bytes: &[u8], charset: Option<&str>) -> String {
    let says_something =
        |name: &&str| !["", "us-ascii", "ascii"].iter().any(|n| name.eq_ignore_ascii_case(n));
    let charset = charset.filter(says_something);
    // Most text is this, and needs no table.
    if charset.is_some_and(|name| name.eq_ignore_ascii_case("utf-8"))
        && let Ok(text) = std::str::from_utf8(bytes)
    {
        return text.to_owned();
    }
    match charset.and_then(|name| charset_decoder(name.as_bytes())) {
        Some(decode) => decode(bytes),
        None => to_utf8(bytes).into_owned(),
    }
}

pub(super) fn decode_cut(bytes: &[u8], charset: Option<&str>) -> String {
    decode_charset(bytes, charset)
}

/// Bytes without a declared charset. ISO-2022-JP announces itself by an escape sequence; other 8-bit text that
/// is not UTF-8 is read as Windows-1252, what old Western mailers mean when they say nothing.
pub(super) fn to_utf8(bytes: &[u8]) -> Cow<'_, str> {
    if memchr::memchr_iter(b'\x1b', bytes).any(|at| matches!(bytes.get(at + 1), Some(b'$' | b'(')))
        && let Some(decode) = charset_decoder(b"iso-2022-jp")
    {
        return decode(bytes).into();
    }
    match (std::str::from_utf8(bytes), charset_decoder(b"windows-1252")) {
        (Ok(text), _) => text.into(),
        (Err(_), Some(decode)) => decode(bytes).into(),
        (Err(_), None) => String::from_utf8_lossy(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charset_that_cannot_be_true_is_none() {
        for (bytes, charset, expected) in [
            (&b"na\xc3\xafve"[..], Some("US-ASCII"), "na\u{ef}ve"),
            (b"na\xc3\xafve", Some("ascii"), "na\u{ef}ve"),
            (b"na\xefve", Some("us-ascii"), "na\u{ef}ve"),
            (b"na\xc3\xafve", Some("x-unheard-of"), "na\u{ef}ve"),
            (b"na\xc3\xafve", Some(""), "na\u{ef}ve"),
            (b"na\xc3\xafve", None, "na\u{ef}ve"),
            // A charset that says something is believed.
            (b"na\xc3\xafve", Some("iso-8859-1"), "na\u{c3}\u{af}ve"),
        ] {
            assert_eq!(decode_charset(bytes, charset), expected, "{} {charset:?}", bytes.escape_ascii());
        }
    }
}
