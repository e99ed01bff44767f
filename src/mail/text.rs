//! Text as a header or a body part carries it, in any charset, turned into Unicode that is safe to show.

use icu_properties::{CodePointSetData, props::DefaultIgnorableCodePoint};
use mail_parser::{decoders::charsets::map::charset_decoder, parsers::MessageStream};
use std::borrow::Cow;

/// Decodes an unstructured header value (RFC 5322, section 2.2.1) with its encoded words (RFC 2047).
///
/// Folds become single spaces; whatever control character remains, also out of an encoded word, becomes a space.
pub(super) fn decode_unstructured(value: &[u8]) -> String {
    let utf8 = to_utf8(value);
    // The parser looks for the line end that closes a field; without one it answers nothing.
    let mut field = Vec::with_capacity(utf8.len() + 1);
    field.extend_from_slice(utf8.as_bytes());
    while matches!(field.last(), Some(b'\r' | b'\n' | b' ' | b'\t')) {
        field.pop();
    }
    field.push(b'\n');
    let parsed = MessageStream::new(&field).parse_unstructured();
    one_line(parsed.as_text().unwrap_or_default())
}

/// Replaces control characters and line breaks by spaces and trims the ends, so that a value stays one line.
pub fn one_line(text: &str) -> String {
    let line: String = text
        .chars()
        .map(|c| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { ' ' } else { c })
        .collect();
    line.trim().to_owned()
}

/// True if a reader would see nothing: white space, controls and invisible characters only.
///
/// Invisible is what Unicode calls default-ignorable (U+200B, U+00AD, U+FEFF, variation selectors, …), and in
/// addition the blank Braille pattern and the interlinear annotation marks.
pub fn is_blank(text: &str) -> bool {
    let ignorable = CodePointSetData::new::<DefaultIgnorableCodePoint>();
    text.chars().all(|c| {
        c.is_whitespace()
            || c.is_control()
            || matches!(c, '\u{2800}' | '\u{FFF9}'..='\u{FFFB}')
            || ignorable.contains(c)
    })
}

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

/// The same text with a bare LF at the end of each line.
pub(super) fn unix_lines(text: &str) -> String {
    let mut lines = String::with_capacity(text.len());
    let mut from = 0;
    for at in memchr::memchr_iter(b'\r', text.as_bytes()) {
        if text.as_bytes().get(at + 1) == Some(&b'\n') {
            lines.push_str(&text[from..at]);
            from = at + 1;
        }
    }
    lines.push_str(&text[from..]);
    lines
}

/// Bytes without a declared charset. ISO-2022-JP announces itself by an escape sequence; other 8-bit text that
/// is not UTF-8 is read as Windows-1252, what old Western mailers mean when they say nothing.
fn to_utf8(bytes: &[u8]) -> Cow<'_, str> {
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
    fn encoded_words_of_several_charsets_are_decoded() {
        for (value, expected) in [
            (&b" =?iso-2022-jp?B?GyRCRnxLXDhsGyhC?="[..], "日本語"),
            (b" =?UTF-8?Q?Offert_f=C3=B6r?=\r\n =?UTF-8?Q?_projektet?=", "Offert för projektet"),
            (b" plain\r\n\tfolded", "plain folded"),
            (b" caf\xe9", "café"),
            (b" =?utf-8?Q?a=0D=0ABcc:_x?=", "a  Bcc: x"),
            (b" \x1b$BF|K\\8l\x1b(B", "日本語"),
            (b"", ""),
            (b" =?broken", "=?broken"),
        ] {
            assert_eq!(decode_unstructured(value), expected, "{}", value.escape_ascii());
        }
    }

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

    #[test]
    fn lines_end_as_on_unix() {
        for text in ["", "a", "\r\n", "a\r\n\r\nb\rc\n\r", "\r\r\n", "é\r\nö"] {
            assert_eq!(unix_lines(text), text.replace("\r\n", "\n"));
        }
    }

    #[test]
    fn invisible_text_is_blank() {
        for blank in
            ["", " ", "\u{200b}", "\u{ad}\u{feff}", "\u{3000}", "\u{2800}", "\u{e0020}", "\u{3164}", "\t\n"]
        {
            assert!(is_blank(blank), "{}", blank.escape_unicode());
        }
        for seen in ["a", "\u{200b}.", "0", "\u{fffd}", "日"] {
            assert!(!is_blank(seen), "{seen}");
        }
    }
}
