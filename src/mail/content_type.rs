//! Parameters of Content-Type and Content-Disposition (RFC 2045 section 5.1, RFC 2183, RFC 2231).
//!
//! In: a raw field value. Out: its leading token, and parameters by name, decoded.
//! Promise: what a sender meant survives how it was written: comments, missing or doubled semicolons, commas instead,
//! blanks round `/` and `=`, quotes that open and never close, names with blanks and brackets and no quotes. Pieces of
//! RFC 2231 are joined first, then decoded, so that no character is torn. One pass; at most [`MAX_PIECES`] are kept.
//! Fails: never; what cannot be read is left out.
//!
//! Why not mail-parser's: it loses a name when a fold follows `filename=` (Exchange writes that) and decodes the pieces
//! of RFC 2231 one by one.

use super::{charset::decode_charset, comment::Comments, encoded_word::decode_unstructured, text::is_blank};

/// Parameters kept of one field; mail programs write ten, a name in pieces of RFC 2231 some dozens.
const MAX_PIECES: usize = 10_000;

/// Longest name of a parameter, in bytes, its RFC 2231 section included; the longest registered one has 17.
const MAX_NAME: usize = 64;

/// Parameters that may follow a value without a semicolon. In a name without quotes (`My file=2.pdf`) nothing else is
/// taken for the start of a parameter.
const KNOWN: [&str; 16] = [
    "boundary",
    "charset",
    "creation-date",
    "delsp",
    "filename",
    "format",
    "method",
    "micalg",
    "modification-date",
    "name",
    "protocol",
    "read-date",
    "report-type",
    "size",
    "start",
    "type",
];

/// A field value cut into its leading token (`text/plain`, `attachment`) and its parameters.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    /// The leading token, lower case; empty if there is none. A type without a slash (`pdf`) stands here too.
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
        let flat: Vec<u8> = raw.iter().copied().filter(|b| !matches!(b, b'\r' | b'\n')).collect();
        let flat = without_outer_quotes(flat.trim_ascii());
        let mut scan = Scan { text: &flat, at: 0, comments: Comments::of(&flat), no_closing_quote: false };
        let value = scan.leading();
        let mut pieces = Vec::new();
        while let Some(name) = scan.name() {
            let is_name = name.starts_with(b"name") || name.starts_with(b"filename");
            let value = if name == b"boundary" { scan.boundary() } else { scan.value(is_name) };
            pieces.extend(piece(&name, value));
            if pieces.len() == MAX_PIECES {
                break;
            }
        }
        let value = String::from_utf8_lossy(&value).to_ascii_lowercase();
        // Quotes of the wrong kind, or of which one is missing.
        Self { value: value.trim_matches(['\'', '"', ' ']).to_owned(), pieces }
    }

    /// The media type, lower case; none where the leading token is no `type/subtype` (RFC 2045, section 5.1). The
    /// parameters count all the same.
    pub(super) fn media_type(&self) -> Option<&str> {
        let (kind, subtype) = self.value.split_once('/')?;
        let is_token = |token: &str| !token.is_empty() && token.bytes().all(|b| is_token(&b));
        (is_token(kind) && is_token(subtype)).then_some(self.value.as_str())
    }

    /// The decoded value of a parameter, never blank: an empty `filename=` hides no `name=`. Of repeated ones the first
    /// that says something counts; pieces (RFC 2231) win over the extended form, which wins over the plain one.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        let named = || self.pieces.iter().filter(|piece| piece.name == name);
        let mut sections: Vec<&Piece> = named().filter(|piece| piece.section.is_some()).collect();
        sections.sort_by_key(|piece| piece.section);
        sections.dedup_by_key(|piece| piece.section);
        let single = |extended| {
            let single = move |piece: &&Piece| piece.section.is_none() && piece.extended == extended;
            named().filter(single).map(|piece| vec![piece])
        };
        let candidates = std::iter::once(sections).chain(single(true)).chain(single(false));
        let mut values = candidates.map(|pieces| decode(&pieces)).filter(|value| !is_blank(value));
        let value = values.next()?;
        // A charset is a word; quotes of the wrong kind, and what was written behind it, are not its name.
        let word = |c: char| matches!(c, '\'' | '"' | ';' | ',' | '=') || c.is_whitespace();
        match name {
            "charset" => value.split(word).find(|word| !word.is_empty()).map(str::to_owned),
            _ => Some(value),
        }
    }
}

impl Parameters {
    /// The first value of a parameter that is not cut into pieces, as its bytes stand there: a boundary is held against
    /// bytes and means nothing.
    pub(super) fn bytes(&self, name: &str) -> Option<&[u8]> {
        let plain = |piece: &&Piece| piece.name == name && piece.section.is_none() && !piece.extended;
        self.pieces.iter().find(plain).map(|piece| piece.value.trim_ascii_end())
    }
}

/// The pieces of one value, in order, joined and then decoded.
fn decode(pieces: &[&Piece]) -> String {
    let mut charset = None;
    let mut bytes = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        if !piece.extended {
            bytes.extend_from_slice(&piece.value);
            continue;
        }
        // charset'language'percent-encoded (RFC 2231, section 4)
        let mut fields = piece.value.splitn(3, |&b| b == b'\'');
        match (index, fields.next(), fields.next(), fields.next()) {
            (0, Some(name), Some(_), Some(text)) => {
                charset = Some(String::from_utf8_lossy(name).into_owned());
                percent_decode(text, &mut bytes);
            }
            _ => percent_decode(&piece.value, &mut bytes),
        }
    }
    match charset {
        Some(charset) => decode_charset(&bytes, Some(&charset)),
        // Encoded words are not allowed here, and everybody writes them.
        None => decode_unstructured(&bytes, None),
    }
}

fn piece(name: &[u8], value: Vec<u8>) -> Option<Piece> {
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    let (name, extended) = match name.strip_suffix('*') {
        Some(name) => (name.to_owned(), true),
        None => (name, false),
    };
    let (name, section) = match name.split_once('*') {
        Some((name, section)) => (name.to_owned(), Some(section.parse().ok()?)),
        None => (name, None),
    };
    (!name.is_empty()).then_some(Piece { name, section, extended, value })
}

/// `"text/html; charset=utf-8"`: a whole value in quotes is read as if it had none.
fn without_outer_quotes(text: &[u8]) -> Vec<u8> {
    let mut scan = Scan { text, at: 0, comments: Comments::of(text), no_closing_quote: false };
    if text.first() == Some(&b'"') {
        let inner = scan.quoted();
        if inner.contains(&b';') || inner.contains(&b'=') {
            return [&inner, &b";"[..], &text[scan.at..]].concat();
        }
    }
    text.to_vec()
}

/// A token of RFC 2045, section 5.1.
fn is_token(b: &u8) -> bool {
    b.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?=".contains(b)
}

fn is_separator(b: u8) -> bool {
    matches!(b, b';' | b',')
}

/// A field value from left to right.
///
/// Every look ahead stops at the next byte that is of interest, or is not made again once it reached the end of the
/// value, so that all of them together cost a small multiple of its length.
struct Scan<'a> {
    text: &'a [u8],
    at: usize,
    comments: Comments<'a>,
    no_closing_quote: bool,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn skip_blanks(&self, mut at: usize) -> usize {
        while matches!(self.text.get(at), Some(b' ' | b'\t')) {
            at += 1;
        }
        at
    }

    /// True if `token =` stands at `at`; only a known name counts if `known`.
    fn starts_parameter(&self, at: usize, known: bool) -> bool {
        let token = &self.text[at.min(self.text.len())..];
        let Some(length) = token.iter().take(MAX_NAME + 1).position(|b| !is_token(b)).filter(|&n| n > 0)
        else {
            return false;
        };
        if self.text.get(self.skip_blanks(at + length)) != Some(&b'=') {
            return false;
        }
        let name = token[..length].split(|&b| b == b'*').next().unwrap_or_default();
        !known || KNOWN.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
    }

    /// The leading token up to a separator, a parameter, or the first blank outside of ` / `. A blank and what is
    /// neither are passed over.
    fn leading(&mut self) -> Vec<u8> {
        let (mut value, mut blank, mut ended) = (Vec::new(), true, false);
        while let Some(b) = self.peek() {
            if let Some(end) = self.comments.end(self.at) {
                (self.at, blank) = (end, true);
                continue;
            }
            if blank && !is_blank_byte(b) {
                if self.starts_parameter(self.at, false) {
                    return value;
                }
                ended |= !value.is_empty() && b != b'/' && value.last() != Some(&b'/');
                blank = false;
            }
            match b {
                b' ' | b'\t' => blank = true,
                b if is_separator(b) => {
                    self.at += 1;
                    return value;
                }
                b'"' => {}
                b if !ended => value.push(b),
                _ => {}
            }
            self.at += 1;
        }
        value
    }

    /// The next name before a `=`; the scan then stands behind it. Words before it, and segments without one, are
    /// passed over. A name that is too long comes out empty.
    fn name(&mut self) -> Option<Vec<u8>> {
        let (mut name, mut length, mut blank) = (Vec::new(), 0usize, false);
        while let Some(b) = self.peek() {
            if let Some(end) = self.comments.end(self.at) {
                (self.at, blank) = (end, true);
                continue;
            }
            self.at += 1;
            match b {
                b'=' => return Some(if length > MAX_NAME { Vec::new() } else { name }),
                b'"' => {}
                b if is_blank_byte(b) => blank = true,
                b if is_separator(b) => {
                    name.clear();
                    (length, blank) = (0, false);
                }
                b => {
                    if blank {
                        name.clear();
                        (length, blank) = (0, false);
                    }
                    length += 1;
                    if length <= MAX_NAME {
                        name.push(b);
                    }
                }
            }
        }
        None
    }

    /// The value at which the scan stands.
    fn value(&mut self, is_name: bool) -> Vec<u8> {
        self.at = self.skip_blanks(self.at);
        let mut behind = self.at;
        while let Some(end) = self.comments.end(behind) {
            behind = self.skip_blanks(end);
        }
        // `filename=(1) offer.pdf` is a name; a comment stands before a quote only.
        if !is_name || self.text.get(behind) == Some(&b'"') {
            self.at = behind;
        }
        match self.peek() {
            Some(b'"') => self.quoted(),
            _ if is_name => self.unquoted_name(),
            _ => self.unquoted(),
        }
    }

    /// A boundary; without quotes it goes to the next blank or semicolon, whatever else stands in it.
    fn boundary(&mut self) -> Vec<u8> {
        let start = self.skip_blanks(self.at);
        if matches!(self.text.get(start), None | Some(b'"' | b'(' | b';')) {
            return self.value(false);
        }
        self.at = start;
        while let Some(b) = self.peek() {
            let separates = b == b',' || is_blank_byte(b);
            if b == b';' || separates && self.starts_parameter_behind(false) {
                break;
            }
            // A run of blanks is looked at once; a comment behind it is no part of the boundary.
            let next = self.skip_blanks(self.at).max(self.at + 1);
            if is_blank_byte(b) && self.text.get(next) == Some(&b'(') {
                break;
            }
            self.at = next;
        }
        let value = &self.text[start..self.at];
        value.strip_suffix(b"\"").unwrap_or(value).to_vec()
    }

    /// A quoted string. Outlook writes Windows paths with single backslashes: only an escaped quote or backslash is an
    /// escape. A quote that nothing legal follows is a character of the value, as long as another one closes it; one
    /// that opens the next parameter's value shows that this value was never closed.
    fn quoted(&mut self) -> Vec<u8> {
        let start = self.at + 1;
        let (mut value, mut at, mut first) = (Vec::new(), start, None);
        let mut separator = None;
        while let Some(&b) = self.text.get(at) {
            match (b, self.text.get(at + 1)) {
                (b'\\', Some(&next @ (b'"' | b'\\'))) => {
                    value.push(next);
                    at += 2;
                    continue;
                }
                (b'"', _) => {
                    if self.no_closing_quote || self.closes(at) {
                        self.at = at + 1;
                        return value;
                    }
                    separator = self.opens_next(start, at);
                    if separator.is_some() {
                        break;
                    }
                    first.get_or_insert((value.len(), at + 1));
                    // Strings side by side are one (RFC 822, section 3.1.4).
                    let next = self.skip_blanks(at + 1);
                    if next > at + 1 && self.text.get(next) == Some(&b'"') {
                        value.push(b' ');
                        at = next + 1;
                        continue;
                    }
                }
                _ => {}
            }
            value.push(b);
            at += 1;
        }
        self.no_closing_quote |= separator.is_none();
        if let Some((length, at)) = first {
            value.truncate(length);
            self.at = at;
            return value;
        }
        self.at = separator.unwrap_or_else(|| self.next_separator(start));
        self.text[start..self.at].trim_ascii().to_vec()
    }

    /// True if what follows the quote at `at` may follow a value.
    fn closes(&self, at: usize) -> bool {
        let next = self.skip_blanks(at + 1);
        match self.text.get(next) {
            None | Some(b';' | b',' | b'(') => true,
            Some(_) => self.starts_parameter(next, false),
        }
    }

    /// Where the separator stands if `; name=` ends right before the quote at `at`.
    fn opens_next(&self, start: usize, at: usize) -> Option<usize> {
        let window = start.max(at.saturating_sub(MAX_NAME + 8));
        let before = self.text[window..at].trim_ascii_end().strip_suffix(b"=")?.trim_ascii_end();
        let name = before.iter().rev().take_while(|b| is_token(b)).count();
        let rest = before[..before.len() - name].trim_ascii_end();
        (name > 0 && rest.ends_with(b";")).then(|| window + rest.len() - 1)
    }

    /// The separator before the next parameter, or else the end.
    fn next_separator(&self, from: usize) -> usize {
        let mut at = from;
        while let Some(found) = memchr::memchr(b';', &self.text[at..]) {
            at += found + 1;
            if self.starts_parameter(self.skip_blanks(at), false) {
                return at - 1;
            }
        }
        self.text.len()
    }

    /// A value of other parameters than names: comments in it are comments.
    fn unquoted(&mut self) -> Vec<u8> {
        let mut value = Vec::new();
        while let Some(b) = self.peek() {
            if let Some(end) = self.comments.end(self.at) {
                self.at = end;
                continue;
            }
            if b == b';' || (b == b',' || is_blank_byte(b)) && self.starts_parameter_behind(false) {
                break;
            }
            value.push(b);
            self.at += 1;
        }
        trim_value(&value).to_vec()
    }

    /// A name without quotes, up to the next parameter. Brackets belong to it; only behind a blank and an extension
    /// they are a comment (`offer.pdf (2 pages)`).
    fn unquoted_name(&mut self) -> Vec<u8> {
        let (start, mut dot, mut comment) = (self.at, self.at, None);
        while let Some(b) = self.peek() {
            if b == b';' || (b == b',' || is_blank_byte(b)) && self.starts_parameter_behind(true) {
                break;
            }
            match b {
                b'.' => dot = self.at,
                b'(' if self.text[..self.at].ends_with(b" ")
                    && is_extension(&self.text[dot..self.at])
                    && comment.is_none_or(|(_, end)| end <= self.at) =>
                {
                    comment = self.comments.end(self.at).map(|end| (self.at, end));
                }
                _ => {}
            }
            self.at += 1;
        }
        let value = &self.text[start..self.at];
        match comment {
            Some((open, end)) if end >= start + value.trim_ascii_end().len() => {
                self.at = self.at.max(end);
                trim_value(&self.text[start..open]).to_vec()
            }
            _ => trim_value(value).to_vec(),
        }
    }

    /// True if a parameter starts behind the blanks or the comma at which the scan stands. Only the first blank of
    /// several asks.
    fn starts_parameter_behind(&self, known: bool) -> bool {
        let blank_before = self.at > 0 && is_blank_byte(self.text[self.at - 1]);
        let behind = self.skip_blanks(self.at + 1);
        !(blank_before && self.peek().is_some_and(is_blank_byte)) && self.starts_parameter(behind, known)
    }
}

/// True for a dot and what names a format; `1.0` of a version is none.
fn is_extension(text: &[u8]) -> bool {
    let text = text.trim_ascii();
    let letters = text.strip_prefix(b".").unwrap_or_default();
    letters.len() <= 5
        && letters.iter().all(u8::is_ascii_alphanumeric)
        && letters.iter().any(u8::is_ascii_alphabetic)
}

fn is_blank_byte(b: u8) -> bool {
    matches!(b, b' ' | b'\t')
}

/// Blanks off, and a quote that was closed without having been opened.
fn trim_value(value: &[u8]) -> &[u8] {
    let value = value.trim_ascii();
    match value.strip_suffix(b"\"") {
        Some(rest) if !rest.contains(&b'"') => rest,
        _ => value,
    }
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

    fn get(raw: &[u8], name: &str) -> Option<String> {
        Parameters::parse(raw).get(name)
    }

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
            (
                b" attachment; filename=\"fallback.txt\"; filename*=iso-8859-1'sv'r%E4ka.txt",
                Some("r\u{e4}ka.txt"),
            ),
            (b" attachment; filename=\"=?utf-8?B?w6V0Z8OkcmQucGRm?=\"", Some("\u{e5}tg\u{e4}rd.pdf")),
            (b" attachment; filename=\"C:\\Temp\\x.doc\"", Some("C:\\Temp\\x.doc")),
            (b" attachment; filename=caf\xe9.txt", Some("caf\u{e9}.txt")),
            (b" attachment", None),
            (b" attachment; filename", None),
            (b" attachment; filename*x=1", None),
            (b"; ; =;\"", None),
            // Without quotes
            (b"attachment; filename=Invoice(1).pdf", Some("Invoice(1).pdf")),
            (b"attachment; filename=My file (2).pdf", Some("My file (2).pdf")),
            (b"attachment; filename=(1) My file.pdf; size=3", Some("(1) My file.pdf")),
            (b"attachment; filename=My file (2)", Some("My file (2)")),
            (b"attachment; filename=Notes 1.0 (2)", Some("Notes 1.0 (2)")),
            (b"attachment; filename=offer.pdf (two; pages); size=3", Some("offer.pdf")),
            (b"attachment; filename=Offer, signed.pdf", Some("Offer, signed.pdf")),
            (b"attachment; filename=a b=c.pdf", Some("a b=c.pdf")),
            (b"attachment; filename=My file.pdf size=3", Some("My file.pdf")),
            (b"attachment; filename=Smile :-(.pdf", Some("Smile :-(.pdf")),
            (b"attachment; filename = offer.pdf ;", Some("offer.pdf")),
            (b"attachment; filename=offer.pdf\"", Some("offer.pdf")),
            (b"attachment; filename==?utf-8?Q?=C3=A5.pdf?=", Some("\u{e5}.pdf")),
            // With odd quotes
            (b"attachment; filename=\"offer.pdf", Some("offer.pdf")),
            (b"attachment; filename=\"offer.pdf; size=3", Some("offer.pdf")),
            (b"attachment; filename=\"offer.pdf; name=\"x\"", Some("offer.pdf")),
            (b"attachment; filename=\"The \"new\" offer.pdf\"; size=3", Some("The \"new\" offer.pdf")),
            (b"attachment; filename=\"offer.pdf\" junk; name=\"x\" junk", Some("offer.pdf")),
            (b"attachment; filename=\"offer.pdf\" size=3", Some("offer.pdf")),
            (b"attachment; filename=\"offer.pdf\" (two; pages)", Some("offer.pdf")),
            (b"attachment; filename= (a) \"offer.pdf\"", Some("offer.pdf")),
            (b"\"attachment; filename=offer.pdf\"", Some("offer.pdf")),
            (b"\"attachment\"; filename=\"offer.pdf\"", Some("offer.pdf")),
            (b"attachment; filename=\"=?utf-8?Q?a?=\"\r\n \"=?utf-8?Q?b?=\"", Some("ab")),
            // Pieces of RFC 2231: out of order, with a gap, mixed, repeated
            (b"attachment; filename*1=b; filename*0=a; filename*2=c", Some("abc")),
            (b"attachment; filename*0=a; filename*2=c", Some("ac")),
            (
                b"attachment; filename*0*=utf-8''%C3%A5; filename*1=b%20; filename*2*=%C3%A4",
                Some("\u{e5}b%20\u{e4}"),
            ),
            (b"attachment; filename*0=a; filename*0=x; filename*1=b", Some("ab")),
            (b"attachment; filename*10=k; filename*9=j", Some("jk")),
            (b"attachment; filename*0=\"=?UTF-8?Q?a_?=\r\n =?UTF-8?Q?b\"; filename*1=\"c?=\"", Some("a bc")),
            (b"attachment; filename*0=\"=?UTF-8?B?w6\"; filename*1=\"U=?=\"", Some("\u{e5}")),
            // Repeated, empty
            (b"attachment; filename=a; filename=b", Some("a")),
            (b"attachment; filename=\"\"; filename=b", Some("b")),
            (b"attachment; filename*=; filename=b", Some("b")),
            (b"attachment; filename=\" \"", None),
            (b"attachment; filename=", None),
            // No leading token
            (b"filename=\"offer.pdf\"", Some("offer.pdf")),
            (b"; filename=offer.pdf", Some("offer.pdf")),
        ] {
            assert_eq!(get(raw, "filename").as_deref(), expected, "{}", raw.escape_ascii());
        }
    }

    #[test]
    fn types_in_all_forms_seen() {
        for (raw, value, charset) in [
            (&b" Text/HTML ; charset=x (comment)"[..], "text/html", Some("x")),
            (b"text/html; charset=x (c)", "text/html", Some("x")),
            (b"text/html; charset=x(c)", "text/html", Some("x")),
            (b"(a (b;\\))) text (c) / (d) html (e); (f) charset (g) = (h) x (i)", "text/html", Some("x")),
            (b"text/html(a); charset=(b)x", "text/html", Some("x")),
            (b"text/html (never closed; charset=x", "text/html", Some("x")),
            (b"text / html;charset = \"x\"", "text/html", Some("x")),
            (b"text/\r\n html;\r\n\tcharset\r\n =\r\n x", "text/html", Some("x")),
            // Semicolons
            (b"text/html charset=x", "text/html", Some("x")),
            (b"text/html charset=\"x\" format=flowed", "text/html", Some("x")),
            (b"text/html charset = x", "text/html", Some("x")),
            (b"text/html, charset=x", "text/html", Some("x")),
            (b"text/html; charset=x, format=flowed", "text/html", Some("x")),
            (b"text/html;; ;charset=x;;", "text/html", Some("x")),
            (b"text/html;charset=x;format=flowed", "text/html", Some("x")),
            (b"text/html; format=flowed charset=x", "text/html", Some("x")),
            (b"text/html; junk; charset=x", "text/html", Some("x")),
            (b"text/html; junk charset=x", "text/html", Some("x")),
            (b"text/html junk; charset=x", "text/html", Some("x")),
            // Quotes
            (b"\"text/html\"; charset=x", "text/html", Some("x")),
            (b"\"text/html; charset=x\"", "text/html", Some("x")),
            (b"\"text/html; charset=\\\"x\\\"\"", "text/html", Some("x")),
            (b"\"text/html; charset=\"x\"\"", "text/html", Some("x")),
            (b"text/html; \"charset\"=\"x\"", "text/html", Some("x")),
            (b"text/html; charset=\"x", "text/html", Some("x")),
            (b"text/html; charset=\"x; format=flowed", "text/html", Some("x")),
            (b"text/html; charset=\"x; format=\"flowed\"", "text/html", Some("x")),
            (b"text/html; charset=\"x;format=flowed\"", "text/html", Some("x")),
            (b"text/html; charset='x'", "text/html", Some("x")),
            (b"text/html; charset=\"'x'\"", "text/html", Some("x")),
            (b"text/html; charset=x\"", "text/html", Some("x")),
            (b"text/html; charset==x", "text/html", Some("x")),
            (b"text/html; charset=\" x \"", "text/html", Some("x")),
            // Repeated, empty
            (b"text/html; charset=x; charset=y", "text/html", Some("x")),
            (b"text/html; charset=\"\"", "text/html", None),
            (b"text/html; charset=", "text/html", None),
            (b"text/html; charset", "text/html", None),
            (b"text/html", "text/html", None),
        ] {
            let parsed = Parameters::parse(raw);
            assert_eq!(parsed.media_type(), Some(value), "{}", raw.escape_ascii());
            assert_eq!(parsed.get("charset").as_deref(), charset, "{}", raw.escape_ascii());
        }
    }

    #[test]
    fn a_type_without_slash_keeps_its_parameters() {
        for (raw, value) in [
            (&b"pdf; name=\"o.pdf\""[..], "pdf"),
            (b"octet-stream; name=o.pdf", "octet-stream"),
            (b"file name=o.pdf", "file"),
            (b"; name=\"o.pdf\"", ""),
            (b"name=\"o.pdf\"", ""),
            (b" ;name=o.pdf", ""),
            (b"application/; name=o.pdf", "application/"),
            (b"/pdf; name=o.pdf", "/pdf"),
            (b"a/b/c; name=o.pdf", "a/b/c"),
            (b"\"\"; name=o.pdf", ""),
        ] {
            let parsed = Parameters::parse(raw);
            assert_eq!((parsed.value.as_str(), parsed.media_type()), (value, None), "{}", raw.escape_ascii());
            assert_eq!(parsed.get("name").as_deref(), Some("o.pdf"), "{}", raw.escape_ascii());
        }
        assert_eq!(Parameters::parse(b"").media_type(), None);
    }

    #[test]
    fn boundaries_in_all_forms_seen() {
        for (raw, expected) in [
            (&b"multipart/mixed boundary=x"[..], "x"),
            (b"multipart/mixed; boundary=\"----=_Part (1); 'x'\"", "----=_Part (1); 'x'"),
            (b"multipart/mixed; boundary=----=_Part_1_2.3", "----=_Part_1_2.3"),
            (b"multipart/mixed; boundary==_x=", "=_x="),
            (b"multipart/mixed; boundary=x charset=utf-8", "x"),
            (b"multipart/mixed; boundary=x (c)", "x"),
            (b"multipart/mixed; boundary=\"x", "x"),
            (b"multipart/mixed; boundary=\"x; charset=\"utf-8\"", "x"),
            (b"multipart/mixed, boundary=x y", "x y"),
            (b"multipart/mixed; boundary='x'", "'x'"),
        ] {
            assert_eq!(get(raw, "boundary").as_deref(), Some(expected), "{}", raw.escape_ascii());
        }
    }

    #[test]
    fn an_empty_file_name_hides_no_name() {
        assert_eq!(get(b"attachment; filename=\"\"; name=o.pdf", "filename"), None);
        assert_eq!(get(b"attachment; filename=\"\"; name=o.pdf", "name").as_deref(), Some("o.pdf"));
        assert_eq!(get(b"attachment; filename=; name=\"o.pdf\"", "name").as_deref(), Some("o.pdf"));
    }

    #[test]
    fn long_values_cost_their_length() {
        let long_name = format!(";{}=\"x\" y", "a".repeat(80));
        for pattern in [
            "(",
            "()",
            "(\\",
            "\"",
            "\\\"",
            "\" \"",
            ";a=b",
            ";a=\"b\"",
            ";a=\"b\" c",
            ";a=\"b",
            ";name*1=a",
            ";name=\"\"",
            ";name=",
            " a=",
            " a b",
            ",",
            " ",
            "=",
            ";",
            ".a (",
            "a (b) ",
            "/ ",
            "a/",
            "%41",
            "\" a",
            "\";a =",
            ";a= (b)",
            &long_name,
        ] {
            for start in [
                "",
                "\"",
                "text/plain; name=",
                "text/plain; name=\"",
                "text/plain; charset=",
                "text/plain; name=a.b ",
            ] {
                let size = if start.is_empty() { 1 << 20 } else { 1 << 17 };
                let middle = pattern.repeat(size / pattern.len());
                let parsed = Parameters::parse(format!("{start}{middle}").as_bytes());
                assert!(parsed.pieces.len() <= MAX_PIECES, "{pattern}");
                parsed.get("none");
            }
        }
        let nested =
            [b"text/plain; name=a.b".to_vec(), b" (".repeat(1 << 18), b") ".repeat(1 << 18)].concat();
        assert_eq!(get(&nested, "name").as_deref(), Some("a.b"));
    }

    #[test]
    fn many_parameters_are_all_read() {
        let many: String = (0..9_999).rev().map(|n| format!(";name*{n}=a")).collect();
        assert_eq!(get(format!("text/plain{many}").as_bytes(), "name"), Some("a".repeat(9_999)));
        let others: String = (0..9_999).map(|n| format!(";p{n}=v")).collect();
        assert_eq!(get(format!("text/plain{others};charset=x").as_bytes(), "charset").as_deref(), Some("x"));
    }

    #[test]
    fn no_input_panics() {
        let mut random = fastrand::Rng::with_seed(7);
        let pieces: [&[u8]; 20] = [
            b"text",
            b"/",
            b"plain",
            b";",
            b",",
            b" ",
            b"\t",
            b"name",
            b"charset",
            b"=",
            b"\"",
            b"\\",
            b"(",
            b")",
            b"*",
            b"0",
            b"'",
            b"%C3",
            b"a.pdf",
            b"\xff\r\n",
        ];
        for _ in 0..30_000 {
            let raw: Vec<u8> =
                (0..random.usize(..24)).flat_map(|_| pieces[random.usize(..20)].iter().copied()).collect();
            let parsed = Parameters::parse(&raw);
            parsed.media_type();
            for name in ["name", "charset"] {
                assert!(!parsed.get(name).is_some_and(|value| is_blank(&value)), "{}", raw.escape_ascii());
            }
        }
    }
}
