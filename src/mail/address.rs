//! Addresses: one parser for envelope and header (RFC 5321 section 4.1.2, RFC 5322 section 3.4.1, RFC 6531).
//!
//! In: bytes of a path (`<a@b>`) or of an addr-spec. Out: [`Address`] values that compare as people expect.
//! Promise: two spellings of one mailbox (case, quotes, comments, IDN in either form) are equal and hash alike.
//! Fails: [`AddressError`].

use super::text::is_invisible;
use icu_normalizer::ComposingNormalizerBorrowed;
use std::{
    ffi::{CStr, CString},
    fmt,
    hash::{Hash, Hasher},
};

/// Longest local part and domain accepted, in bytes. RFC 5321 says 64 and 255; real mail has longer local parts
/// (VERP, SRS), and a limit is there only so that nobody makes us carry a megabyte as an address.
const MAX_PART_BYTES: usize = 255;

/// Longest addr-spec that is looked at, folds, quotes and a source route included.
const MAX_SPEC_BYTES: usize = 2048;

/// A mailbox address: local part as written (unquoted), domain as lower-case A-labels or an address literal.
///
/// Equality and hash ignore case of both halves and use Unicode normal form C, as DESIGN section 1 compares.
#[derive(Clone, Debug)]
pub struct Address {
    local: String,
    domain: Domain,
    folded: String,
}

impl Address {
    /// Parses a bare `local@domain`, as configuration and directory files write it.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        parse_addr_spec(text.as_bytes())
    }

    /// The local part, unquoted, in the case it was written.
    pub fn local(&self) -> &str {
        &self.local
    }

    /// The domain, lower case, A-labels.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The form two equal addresses share: the key for maps and indexes.
    pub fn folded(&self) -> &str {
        &self.folded
    }

    fn new(local: String, domain: Domain) -> Result<Self, AddressError> {
        if local.is_empty() {
            return Err(AddressError::NoLocalPart);
        }
        if local.len() > MAX_PART_BYTES || domain.0.len() > MAX_PART_BYTES {
            return Err(AddressError::TooLong);
        }
        Ok(Self::of_parts(local, domain))
    }

    fn of_parts(local: String, domain: Domain) -> Self {
        let mut folded = String::with_capacity(local.len() + 1 + domain.0.len());
        folded.push_str(&local);
        fold(&mut folded);
        folded.push('@');
        folded.push_str(&domain.0);
        Self { local, domain, folded }
    }
}

/// Lower case and normal form C, so that `Ä` typed on two systems is one letter.
fn fold(local: &mut String) {
    if local.is_ascii() {
        local.make_ascii_lowercase();
    } else {
        *local = ComposingNormalizerBorrowed::new_nfc().normalize(&local.to_lowercase()).into_owned();
    }
}

impl PartialEq for Address {
    fn eq(&self, other: &Self) -> bool {
        self.folded == other.folded
    }
}

impl Eq for Address {}

impl Hash for Address {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.folded.hash(state);
    }
}

impl fmt::Display for Address {
    /// The addr-spec, with the local part quoted where RFC 5322 section 3.4.1 asks for it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dot_atom = self
            .local
            .split('.')
            .all(|atom| !atom.is_empty() && atom.bytes().all(|b| is_atext(b) || b >= 0x80));
        if dot_atom {
            f.write_str(&self.local)?;
            f.write_str("@")?;
            f.write_str(&self.domain.0)
        } else {
            let quoted = self.local.replace('\\', "\\\\").replace('"', "\\\"");
            write!(f, "\"{quoted}\"@{}", self.domain)
        }
    }
}

/// A domain as lower-case A-labels (RFC 5890), or an address literal in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(String);

impl Domain {
    /// Parses either form of an IDN, or an address literal; a trailing dot is dropped.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let text = text.trim();
        if text.starts_with('[') && text.ends_with(']') && text.bytes().all(|b| b.is_ascii_graphic()) {
            return Ok(Self(text.to_ascii_lowercase()));
        }
        let ascii = idna::domain_to_ascii(text.strip_suffix('.').unwrap_or(text))
            .map_err(|_| AddressError::BadDomain)?;
        let labels_ok = ascii.as_bytes().split(|&b| b == b'.').all(is_host_label);
        if labels_ok { Ok(Self(ascii)) } else { Err(AddressError::BadDomain) }
    }

    /// The domain's A-label form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The organisational domain (RFC 7489, section 3.2): one label below the public suffix; none for a public suffix
    /// itself, and for an address literal.
    pub fn organisational(&self) -> Option<Self> {
        if self.0.starts_with('[') {
            return None;
        }
        psl::domain_str(&self.0).map(|domain| Self(domain.to_owned()))
    }

    /// An IDN as people write it (U-labels); none if that is the same.
    pub fn unicode(&self) -> Option<String> {
        let (unicode, result) = idna::domain_to_unicode(&self.0);
        (result.is_ok() && unicode != self.0).then_some(unicode)
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why bytes are no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// No `@`.
    #[error("there is no domain")]
    NoDomain,
    /// Nothing before the `@`.
    #[error("there is no local part")]
    NoLocalPart,
    /// The local part has characters that need quotes, or is not UTF-8.
    #[error("the local part is malformed")]
    BadLocalPart,
    /// The domain is neither a host name, an IDN nor an address literal.
    #[error("the domain is malformed")]
    BadDomain,
    /// Longer than any real address.
    #[error("the address is too long")]
    TooLong,
}

/// Parses the argument of MAIL or RCPT as a milter or an LMTP client shows it; `None` is the null path `<>`.
///
/// Accepts missing and doubled angle brackets (Postfix passes on what the client sent) and drops a source route
/// (RFC 5321, appendix C).
/// # Errors
/// What is wrong with the address; the caller answers 5.1.3 where the address matters.
pub fn parse_path(path: &[u8]) -> Result<Option<Address>, AddressError> {
    let mut inner = path.trim_ascii();
    while let [b'<', rest @ ..] = inner {
        inner = rest.strip_suffix(b">").unwrap_or(rest).trim_ascii();
    }
    if inner.is_empty() { Ok(None) } else { parse_addr_spec(inner).map(Some) }
}

/// A path without its source route, as Postfix delivers it: `<@relay:user@domain>` names `<user@domain>` (RFC 5321,
/// appendix C). Everything else of it stays as it was sent.
pub fn without_route(path: &CStr) -> CString {
    let bytes = path.to_bytes();
    let start = bytes.iter().position(|&b| b != b'<' && !b.is_ascii_whitespace()).unwrap_or_default();
    let route =
        bytes[start..].starts_with(b"@").then(|| bytes[start..].iter().position(|&b| b == b':')).flatten();
    let Some(colon) = route else { return path.to_owned() };
    // For Postfix, blanks between bracket and address are none of it.
    let rest = bytes[start + colon + 1..].trim_ascii();
    let inner = rest.strip_suffix(b">").map(|inner| [inner.trim_ascii_end(), b">"].concat());
    let kept = [bytes[..start].trim_ascii(), &inner.unwrap_or_else(|| rest.to_owned())].concat();
    CString::new(kept).unwrap_or_else(|_| path.to_owned())
}

/// The domain of a path whose local part may be anything, to tell whose malformed address it is.
pub fn domain_of(path: &[u8]) -> Option<Domain> {
    let path = path.trim_ascii().trim_ascii_end();
    let at = path.iter().rposition(|&b| b == b'@')?;
    let domain = std::str::from_utf8(&path[at + 1..]).ok()?;
    Domain::parse(domain.trim_end_matches('>')).ok()
}

/// How many wrappers are taken off an address: quotes, brackets, `mailto:`.
const MAX_WRAPPERS: usize = 4;

/// Parses an addr-spec as header fields have it: with invisible characters, quotes, brackets or `mailto:` round it.
/// # Errors
/// What is no address, also one with invisible characters inside: nobody typed those.
pub(super) fn parse_written(bytes: &[u8]) -> Result<Address, AddressError> {
    if let Some(address) = parse_plain(bytes) {
        return Ok(address);
    }
    let mut spec = trim_invisible(bytes);
    for _ in 0..MAX_WRAPPERS {
        match unwrapped(spec) {
            Some(inner) => spec = trim_invisible(inner),
            None => break,
        }
    }
    let hidden = |c: char| is_invisible(c) || c.is_whitespace() && !c.is_ascii();
    if !spec.is_ascii() && std::str::from_utf8(spec).is_ok_and(|text| text.contains(hidden)) {
        return Err(AddressError::BadLocalPart);
    }
    // `"Bo Berg"bo@acme.test`: a name that lost its blank is not half of a local part.
    let glued = |end: usize| spec.get(end + 1).is_some_and(|&b| is_atext(b) || !b.is_ascii());
    if spec.first() == Some(&b'"') && end_of(spec, 0, b'"').is_some_and(glued) {
        return Err(AddressError::BadLocalPart);
    }
    parse_addr_spec(spec)
}

/// White space and invisible characters off both ends, a no-break space of Latin-1 included.
fn trim_invisible(bytes: &[u8]) -> &[u8] {
    if bytes.is_ascii() {
        return bytes.trim_ascii();
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => text.trim_matches(|c: char| c.is_whitespace() || is_invisible(c)).as_bytes(),
        Err(_) => {
            let seen = |b: &u8| !b.is_ascii_whitespace() && *b != 0xa0;
            let start = bytes.iter().position(seen).unwrap_or(bytes.len());
            let end = bytes.iter().rposition(seen).map_or(start, |last| last + 1);
            &bytes[start..end]
        }
    }
}

/// What one wrapper holds; none if there is none.
fn unwrapped(spec: &[u8]) -> Option<&[u8]> {
    match spec {
        [b'\'', inner @ .., b'\''] => Some(inner),
        [b'"', inner @ .., b'"'] if inner.contains(&b'@') && !inner.contains(&b'"') => Some(inner),
        [b'<', inner @ ..] | [inner @ .., b'>'] => Some(inner),
        _ => {
            let (scheme, inner) = spec.split_at_checked("mailto:".len())?;
            // One that needs decoding (RFC 6068, section 2) is left alone.
            let plain = scheme.eq_ignore_ascii_case(b"mailto:") && !inner.contains(&b'%');
            plain.then(|| inner.split(|&b| b == b'?').next().unwrap_or(inner))
        }
    }
}

fn parse_addr_spec(bytes: &[u8]) -> Result<Address, AddressError> {
    if let Some(address) = parse_plain(bytes) {
        return Ok(address);
    }
    parse_any(bytes)
}

/// Reads what nearly every address is: a dot-atom and a host name, both ASCII. None: [`parse_any`] must tell.
pub(super) fn parse_plain(bytes: &[u8]) -> Option<Address> {
    let at = bytes.iter().position(|&b| b == b'@')?;
    let (local, domain) = (&bytes[..at], &bytes[at + 1..]);
    let short = |part: &[u8]| (1..=MAX_PART_BYTES).contains(&part.len());
    let plain_local = local.iter().all(|&b| is_atext(b) || b == b'.');
    // Hyphens in the third and fourth place mark an A-label, which has rules of its own.
    let plain_label = |label: &[u8]| is_host_label(label) && label.get(2..4) != Some(b"--");
    if !(short(local) && short(domain) && plain_local && domain.split(|&b| b == b'.').all(plain_label)) {
        return None;
    }
    let local = String::from_utf8(local.to_vec()).ok()?;
    let domain = String::from_utf8(domain.to_ascii_lowercase()).ok()?;
    Some(Address::of_parts(local, Domain(domain)))
}

fn parse_any(bytes: &[u8]) -> Result<Address, AddressError> {
    let (bare, _) = split_comments(bytes);
    if bare.trim_ascii().len() > MAX_SPEC_BYTES {
        return Err(AddressError::TooLong);
    }
    let bare = one_blank_each(bare.trim_ascii());
    let mut spec = bare.as_slice();
    if spec.starts_with(b"@") {
        // Source route `@a,@b:local@domain`: accepted and ignored (RFC 5321, section 4.1.1.3).
        let colon = spec.iter().position(|&b| b == b':').ok_or(AddressError::NoLocalPart)?;
        spec = &spec[colon + 1..];
    }
    let at = last_unquoted(spec, b'@').ok_or(AddressError::NoDomain)?;
    let local = local_part(&spec[..at])?;
    let domain = spec[at + 1..].trim_ascii();
    // Obsolete white space around dots, as in the local part.
    let kept = (0..domain.len()).filter(|&i| !(domain[i].is_ascii_whitespace() && next_to_dot(domain, i)));
    let domain = kept.map(|i| domain[i]).collect();
    let domain = String::from_utf8(domain).map_err(|_| AddressError::BadDomain)?;
    Address::new(local, Domain::parse(&domain)?)
}

/// Runs of white space outside of quotes become one blank, so that looking past one costs nothing.
fn one_blank_each(bytes: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(bytes.len());
    let (mut quoted, mut escaped) = (false, false);
    for &b in bytes {
        if !quoted && b.is_ascii_whitespace() {
            if kept.last() != Some(&b' ') {
                kept.push(b' ');
            }
            continue;
        }
        quoted ^= b == b'"' && !escaped;
        escaped = b == b'\\' && !escaped;
        kept.push(b);
    }
    kept
}

/// Unquotes a local part: dot-atom, quoted string, or the obsolete mix of words and dots. Dots in odd places stay,
/// because mailboxes with them exist.
fn local_part(bytes: &[u8]) -> Result<String, AddressError> {
    let bytes = bytes.trim_ascii();
    let mut local = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'"' => {
                let end = end_of(bytes, i, b'"').ok_or(AddressError::BadLocalPart)?;
                let mut quoted = bytes[i + 1..end].iter();
                while let Some(&b) = quoted.next() {
                    match b {
                        b'\\' => local.extend(quoted.next()),
                        b'\r' | b'\n' => {}
                        b if b.is_ascii_control() => return Err(AddressError::BadLocalPart),
                        b => local.push(b),
                    }
                }
                i = end;
            }
            b' ' | b'\t' | b'\r' | b'\n' if next_to_dot(bytes, i) => {}
            b if b == b'.' || is_atext(b) || b >= 0x80 => local.push(b),
            _ => return Err(AddressError::BadLocalPart),
        }
        i += 1;
    }
    let local = String::from_utf8(local).map_err(|_| AddressError::BadLocalPart)?;
    if local.chars().any(char::is_control) { Err(AddressError::BadLocalPart) } else { Ok(local) }
}

/// White space is part of the obsolete syntax only around the dots (RFC 5322, section 4.4).
fn next_to_dot(bytes: &[u8], i: usize) -> bool {
    let before = bytes[..i].iter().rev().find(|b| !b.is_ascii_whitespace());
    let after = bytes[i..].iter().find(|b| !b.is_ascii_whitespace());
    before == Some(&b'.') || after == Some(&b'.')
}

/// Takes comments out (RFC 5322, section 3.2.2) and gives back the last one, for `anna@x (Anna Aalto)`.
fn split_comments(bytes: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
    let mut bare = Vec::with_capacity(bytes.len());
    let mut comment = None;
    let mut closers = Closers::default();
    let mut i = 0;
    while i < bytes.len() {
        match (bytes[i], closers.closing(bytes, i)) {
            (b'(', Some(end)) => {
                comment = Some(bytes[i + 1..end].to_vec());
                i = end;
            }
            (b'"', Some(end)) => {
                bare.extend_from_slice(&bytes[i..=end]);
                i = end;
            }
            (b'\\', _) => {
                bare.extend_from_slice(&bytes[i..(i + 2).min(bytes.len())]);
                i += 1;
            }
            (b, _) => bare.push(b),
        }
        i += 1;
    }
    (bare, comment)
}

/// Finds where quotes, comments and literals end. One that never ends is plain text, and from then on so is every
/// other of its kind: looking for the end of each anew would cost the square of the length, which a stranger chooses.
#[derive(Default)]
struct Closers {
    no_quote: bool,
    no_comment: bool,
    no_literal: bool,
}

impl Closers {
    /// The index that closes what is opened at `open`; none if nothing is opened there, or it never closes.
    fn closing(&mut self, bytes: &[u8], open: usize) -> Option<usize> {
        let (close, given_up) = match bytes[open] {
            b'"' => (b'"', &mut self.no_quote),
            b'(' => (b')', &mut self.no_comment),
            b'[' => (b']', &mut self.no_literal),
            _ => return None,
        };
        let found = if *given_up { None } else { end_of(bytes, open, close) };
        *given_up |= found.is_none();
        found
    }
}

fn end_of(bytes: &[u8], open: usize, close: u8) -> Option<usize> {
    let (mut depth, mut i) = (1, open + 1);
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => i += 1,
            b if b == close => {
                depth -= 1;
                if depth == 0 {
                    return Some(i);
                }
            }
            b'(' if close == b')' => depth += 1,
            _ => {}
        }
        i += 1;
    }
    None
}

fn last_unquoted(bytes: &[u8], wanted: u8) -> Option<usize> {
    let (mut found, mut i) = (None, 0);
    let mut closers = Closers::default();
    while i < bytes.len() {
        match bytes[i] {
            b'"' | b'(' => i = closers.closing(bytes, i).unwrap_or(i),
            b'\\' => i += 1,
            b if b == wanted => found = Some(i),
            _ => {}
        }
        i += 1;
    }
    found
}

/// `atext` of RFC 5322, section 3.2.3.
fn is_atext(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&b)
}

/// A label of a host name (RFC 1123, section 2.1), or with the underscores that exist.
fn is_host_label(label: &[u8]) -> bool {
    let fits = (1..=63).contains(&label.len());
    fits && label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &[u8]) -> Result<Option<String>, AddressError> {
        parse_path(text).map(|address| address.map(|a| a.to_string()))
    }

    #[test]
    fn organisational_domains() {
        for (domain, expected) in [
            ("mail.x.test", Some("x.test")),
            ("x.test", Some("x.test")),
            ("a.b.example.co.uk", Some("example.co.uk")),
            ("co.uk", None),
            ("test", None),
            ("a.someone.github.io", Some("someone.github.io")),
            ("www.食狮.公司.cn", Some("xn--85x722f.xn--55qx5d.cn")),
            ("公司.cn", None),
            ("[192.0.2.1]", None),
        ] {
            let found = Domain::parse(domain).unwrap().organisational();
            assert_eq!(found.as_ref().map(Domain::as_str), expected, "{domain}");
        }
    }

    #[test]
    fn a_source_route_goes_and_nothing_else_does() {
        for (given, expected) in [
            (c"<@relay.test:a@x.test>", c"<a@x.test>"),
            (c"<@one.test,@two.test:a@x.test>", c"<a@x.test>"),
            (c"@relay.test:a@x.test", c"a@x.test"),
            (c" <@relay.test:\"a:b\"@x.test>", c"<\"a:b\"@x.test>"),
            (c"< @relay.test:a@x.test >", c"<a@x.test>"),
            (c"<@relay.test: a@x.test>", c"<a@x.test>"),
            (c"<a@x.test>", c"<a@x.test>"),
            (c"<\"@a:b\"@x.test>", c"<\"@a:b\"@x.test>"),
            (c"<@relay.test>", c"<@relay.test>"),
            (c"", c""),
        ] {
            assert_eq!(without_route(given).as_c_str(), expected);
        }
    }

    #[test]
    fn paths_of_the_envelope() {
        for (given, expected) in [
            (&b"<1001.MyCompany@SeveraMail.test>"[..], "1001.MyCompany@severamail.test"),
            (b"<<anna@mycompany.test>>", "anna@mycompany.test"),
            (b"anna@mycompany.test", "anna@mycompany.test"),
            (b"<@relay.test,@b.test:anna@mycompany.test>", "anna@mycompany.test"),
            (b"<\"mycompany\"@severamail.test>", "mycompany@severamail.test"),
            (b"<\"a b\"@x.test>", "\"a b\"@x.test"),
            (b"<\"a@b\"@x.test>", "\"a@b\"@x.test"),
            ("<åsa@räksmörgås.test>".as_bytes(), "åsa@xn--rksmrgs-5wao1o.test"),
            (b"<anna@XN--RKSMRGS-5WAO1O.test.>", "anna@xn--rksmrgs-5wao1o.test"),
            (b"<anna@[192.0.2.1]>", "anna@[192.0.2.1]"),
            (b"<.mycompany@severamail.test>", "\".mycompany\"@severamail.test"),
        ] {
            assert_eq!(path(given), Ok(Some(expected.to_owned())), "{}", given.escape_ascii());
        }
        assert_eq!(path(b"<>"), Ok(None));
        assert_eq!(path(b""), Ok(None));
        for (given, error) in [
            (&b"<postmaster>"[..], AddressError::NoDomain),
            (b"<@x.test>", AddressError::NoLocalPart),
            (b"<a@>", AddressError::BadDomain),
            (b"<a b@x.test>", AddressError::BadLocalPart),
            (b"<\xff\xfe@x.test>", AddressError::BadLocalPart),
            (b"<a@\xff.test>", AddressError::BadDomain),
            (b"<a@b..test>", AddressError::BadDomain),
            (b"<\"open@x.test>", AddressError::BadLocalPart),
        ] {
            assert_eq!(path(given), Err(error), "{}", given.escape_ascii());
        }
        assert_eq!(path(&[b"<", &b"a".repeat(256)[..], b"@x.test>"].concat()), Err(AddressError::TooLong));
        assert!(path(&[b"<", &b"a".repeat(255)[..], b"@x.test>"].concat()).is_ok());
    }

    #[test]
    fn the_short_way_gives_what_the_long_one_does() {
        let mut random = fastrand::Rng::with_seed(11);
        let pieces = [
            "a", "Z", "9", ".", "-", "--", "_", "@", "+", "xn--", "XN--a", "\"", " ", "(", "<", "\u{e5}",
            "[", ":",
        ];
        let mut short = 0;
        for _ in 0..200_000 {
            let some = |random: &mut fastrand::Rng| {
                (0..random.usize(..6)).map(|_| pieces[random.usize(..pieces.len())]).collect::<String>()
            };
            let text = format!("{}@{}", some(&mut random), some(&mut random));
            if let Some(address) = parse_plain(text.as_bytes()) {
                let long = parse_any(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
                assert_eq!(
                    (&address.local, &address.domain, &address.folded),
                    (&long.local, &long.domain, &long.folded)
                );
                short += 1;
            }
        }
        assert!(short > 1000);
        for bytes in [255, 256] {
            let long = "a".repeat(bytes);
            assert_eq!(parse_plain(format!("{long}@x.test").as_bytes()).is_some(), bytes == 255);
        }
    }

    #[test]
    fn blanks_without_end_are_too_long() {
        let spaces = format!("a{}.b@x.test", " ".repeat(1_000_000));
        assert_eq!(Address::parse(&spaces), Err(AddressError::TooLong));
    }

    #[test]
    fn spellings_of_one_mailbox_are_equal() {
        for (a, b) in [
            ("Anna@MyCompany.TEST", "anna@mycompany.test"),
            ("\"anna\"@x.test", "anna@x.test"),
            ("a@räksmörgås.test", "a@xn--rksmrgs-5wao1o.test"),
            ("\u{e5}sa@x.test", "A\u{30a}SA@x.test"),
        ] {
            assert_eq!(Address::parse(a).unwrap(), Address::parse(b).unwrap());
        }
        assert_ne!(Address::parse("a@x.test").unwrap(), Address::parse("b@x.test").unwrap());
    }
}
