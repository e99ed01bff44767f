//! Parameters of Content-Type and Content-Disposition (RFC 2045 section 5.1, RFC 2183, RFC 2231).
//!
//! mail-parser's own reading loses a name when a fold follows `filename=` (Exchange writes that) and decodes the
//! pieces of RFC 2231 one by one, which tears characters apart. Here pieces are joined first, then decoded.

use super::{charset::decode_charset, encoded_word::decode_unstructured};

/// A field value cut into its leading token (`text/plain`, `attachment`) and its parameters.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    /// The leading token, lower case.
    pub(super) value: String,
    pieces: Vec<Piece>,
}

/// One `name*2*=value` as written.
#[derive(Debug)]
struct Piece {
    name: String,
    section: Option<u32>,
    extended: bool,
    value: Vec<u8>,
}

impl Parameters {
    /// Reads a raw field value; what cannot be read is left out.
    pub(super) fn parse(raw: &[u8]) -> Self {
        let mut parts = split(raw).into_iter();
        let value = parts.next().unwrap_or_default();
        let value = String::from_utf8_lossy(value.trim_ascii()).to_ascii_lowercase();
        Self { value, pieces: parts.filter_map(|part| piece(&part)).collect() }
    }

    /// The decoded value of a parameter; the extended form (RFC 2231) wins over the plain one.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        let named = |wanted: fn(&Piece) -> bool| {
            self.pieces.iter().filter(|p| p.name == name && wanted(p)).collect::<Vec<_>>()
        };
        let mut pieces = named(|p| p.section.is_some());
        pieces.sort_by_key(|p| p.section);
        if pieces.is_empty() {
            pieces = named(|p| p.extended);
            if pieces.is_empty() {
                pieces = named(|_| true);
            }
            pieces.truncate(1);
        }
        let first = pieces.first()?;
        let mut charset = None;
        let mut bytes = Vec::new();
        for piece in &pieces {
            match (piece.extended, std::ptr::eq(*piece, *first)) {
                (true, true) => {
                    // charset'language'percent-encoded (RFC 2231, section 4)
                    let mut fields = piece.value.splitn(3, |&b| b == b'\'');
                    match (fields.next(), fields.next(), fields.next()) {
                        (Some(name), Some(_), Some(text)) => {
                            charset = Some(String::from_utf8_lossy(name).into_owned());
                            percent_decode(text, &mut bytes);
                        }
                        _ => percent_decode(&piece.value, &mut bytes),
                    }
                }
                (true, false) => percent_decode(&piece.value, &mut bytes),
                (false, _) => bytes.extend_from_slice(&piece.value),
            }
        }
        Some(match charset {
            Some(charset) => decode_charset(&bytes, Some(&charset)),
            // Encoded words are not allowed here, and everybody writes them.
            None => decode_unstructured(&bytes, None),
        })
    }
}

fn piece(raw: &[u8]) -> Option<Piece> {
    let equals = raw.iter().position(|&b| b == b'=')?;
    let name = String::from_utf8_lossy(raw[..equals].trim_ascii()).to_ascii_lowercase();
    let (name, extended) = match name.strip_suffix('*') {
        Some(name) => (name.to_owned(), true),
        None => (name, false),
    };
    let (name, section) = match name.split_once('*') {
        Some((name, section)) => (name.to_owned(), Some(section.parse().ok()?)),
        None => (name, None),
    };
    Some(Piece { name, section, extended, value: unquote(raw[equals + 1..].trim_ascii()) })
}

/// Cuts at `;` outside quoted strings; folds (CR, LF) are dropped on the way.
fn split(raw: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let (mut quoted, mut escaped) = (false, false);
    for &b in raw {
        let last = parts.len() - 1;
        match b {
            b'\r' | b'\n' => continue,
            b';' if !quoted => {
                parts.push(Vec::new());
                continue;
            }
            b'"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = quoted && b == b'\\' && !escaped;
        parts[last].push(b);
    }
    parts
}

fn unquote(value: &[u8]) -> Vec<u8> {
    let Some(inner) = value.strip_prefix(b"\"") else {
        // A comment may follow a token.
        return value.split(|&b| b == b'(').next().unwrap_or(value).trim_ascii().to_vec();
    };
    let mut out = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter().peekable();
    while let Some(&b) = bytes.next() {
        match b {
            b'"' => break,
            // Outlook writes Windows paths with single backslashes: only an escaped quote or backslash is an escape.
            b'\\' if matches!(bytes.peek(), Some(b'"' | b'\\')) => out.extend(bytes.next()),
            b => out.push(b),
        }
    }
    out
}

fn percent_decode(text: &[u8], out: &mut Vec<u8>) {
    let hex = |b: u8| (b as char).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut i = 0;
    while i < text.len() {
        match (text[i], text.get(i + 1).copied().and_then(hex), text.get(i + 2).copied().and_then(hex)) {
            (b'%', Some(high), Some(low)) => {
                out.push(high << 4 | low);
                i += 2;
            }
            (b, _, _) => out.push(b),
        }
        i += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_all_forms_seen() {
        for (raw, expected) in [
            (&b" attachment; filename=offer.pdf"[..], Some("offer.pdf")),
            (b" attachment; filename=\"a;b \\\"c\\\".pdf\"", Some("a;b \"c\".pdf")),
            (
                b" attachment;\r\n\tfilename=\r\n\t\"offer from exchange.pdf\"",
                Some("offer from exchange.pdf"),
            ),
            (b" attachment; filename*=utf-8''%E2%82%AC%20rates.txt", Some("\u{20ac} rates.txt")),
            (b" attachment; filename*0*=utf-8''%E2%82;\r\n filename*1*=%AC.txt", Some("\u{20ac}.txt")),
            (b" attachment; filename*0=\"long \"; filename*1=\"name.txt\"", Some("long name.txt")),
            (b" attachment; filename=\"fallback.txt\"; filename*=iso-8859-1'sv'r%E4ka.txt", Some("räka.txt")),
            (b" attachment; filename=\"=?utf-8?B?w6V0Z8OkcmQucGRm?=\"", Some("åtgärd.pdf")),
            (b" attachment; filename=\"C:\\Temp\\x.doc\"", Some("C:\\Temp\\x.doc")),
            (b" attachment; filename=caf\xe9.txt", Some("café.txt")),
            (b" attachment", None),
            (b" attachment; filename", None),
            (b" attachment; filename*x=1", None),
            (b"; ; =;\"", None),
        ] {
            assert_eq!(Parameters::parse(raw).get("filename").as_deref(), expected, "{}", raw.escape_ascii());
        }
        assert_eq!(Parameters::parse(b" Text/HTML ; charset=x (comment)").value, "text/html");
        assert_eq!(Parameters::parse(b"text/plain; charset=x (c)").get("charset").as_deref(), Some("x"));
    }
}
