//! Encoded words (RFC 2047) in unstructured header values.

use super::{charset::to_utf8, text::one_line};
use mail_parser::parsers::MessageStream;

/// Decodes an unstructured header value (RFC 5322, section 2.2.1) with its encoded words (RFC 2047).
///
/// Folds become single spaces; whatever control character remains, also out of an encoded word, becomes a space.
pub(super) fn decode_unstructured(value: &[u8], _fallback: Option<&str>) -> String {
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
            assert_eq!(decode_unstructured(value, None), expected, "{}", value.escape_ascii());
        }
    }
}
