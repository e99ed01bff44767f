//! Encoded words (RFC 2047) in header values.
//!
//! In: the raw value of a field. Out: its text, or the places of its words for who must not look inside them.
//! Promise: a word is found once, in the raw bytes, so that no byte is decoded twice; neighbouring words of one charset
//! are joined as bytes before their charset is looked at; no blank is invented; the cost is linear.
//! Fails: never; what is no word stays text as written.

use super::{
    charset::{decode_charset, decode_undeclared},
    text::one_line,
    transfer_encoding::sextet,
};
use std::ops::Range;

/// Longest word looked at, in bytes. RFC 2047, section 2 allows 75; real senders put a whole subject into one word.
const MAX_WORD_BYTES: usize = 16 * 1024;

/// Longest name of a charset, language included, in bytes. Registered names have at most 45.
const MAX_CHARSET_BYTES: usize = 64;

/// What senders write who do not know their charset: as good as nothing.
const NO_CHARSETS: [&str; 6] = ["", "unknown", "unknown-8bit", "x-unknown", "default", "8bit"];

/// Decodes an unstructured header value (RFC 5322, section 2.2.1) into one line.
///
/// Whatever control character remains, also out of an encoded word, becomes a space. `fallback` is the charset that
/// raw bytes of eight bits outside of words may have: what the body names.
pub(super) fn decode_unstructured(value: &[u8], fallback: Option<&str>) -> String {
    // What the line break follows may be half a character.
    one_line(&decode_words(value.trim_ascii_end(), fallback))
}

/// Decodes a value and its encoded words; a fold (RFC 5322, section 2.2.3) becomes the white space that it goes on with.
pub(super) fn decode_words(value: &[u8], fallback: Option<&str>) -> String {
    let mut text = String::with_capacity(value.len());
    let mut run = Run::new(fallback);
    let mut at = 0;
    for word in words(value) {
        let between = &value[at..word.place.start];
        let neighbours = at > 0 && between.iter().all(u8::is_ascii_whitespace);
        if !neighbours {
            run.end(&mut text);
            text.push_str(&decode_undeclared(&unfolded(between), fallback));
        } else if !run.charset.eq_ignore_ascii_case(word.charset) {
            run.end(&mut text);
        }
        at = word.place.end;
        run.push(&word, &mut text);
    }
    run.end(&mut text);
    text.push_str(&decode_undeclared(&unfolded(&value[at..]), fallback));
    text
}

/// The places in a value that hold text whatever bytes stand in them: encoded words, and in a value of seven bits the
/// stretches of ISO-2022-JP between their escape sequences.
#[derive(Debug, Default)]
pub(super) struct Atoms(Vec<Range<usize>>);

impl Atoms {
    pub(super) fn of(value: &[u8]) -> Self {
        let mut places: Vec<_> = words(value).map(|word| word.place).collect();
        if memchr::memchr(b'\x1b', value).is_some() && value.is_ascii() {
            let japanese = japanese(value).filter(|stretch| {
                let next = places.partition_point(|place| place.end <= stretch.start);
                places.get(next).is_none_or(|place| place.start >= stretch.end)
            });
            let japanese: Vec<_> = japanese.collect();
            places.extend(japanese);
            places.sort_unstable_by_key(|place| place.start);
        }
        Self(places)
    }

    /// Where the atom that starts at `at` ends; none if none starts there.
    pub(super) fn end(&self, at: usize) -> Option<usize> {
        let found = self.0.binary_search_by_key(&at, |place| place.start).ok()?;
        Some(self.0[found].end)
    }

    pub(super) fn places(&self) -> &[Range<usize>] {
        &self.0
    }
}

/// Stretches of two-byte text in ISO-2022-JP (RFC 1468): from `ESC $` to the `ESC (` that ends it, with its last byte.
fn japanese(value: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + find(&value[at..], *b"\x1b$")?;
        let close = start + find(&value[start..], *b"\x1b(")?;
        at = (close + 3).min(value.len());
        Some(start..at)
    })
}

/// How a word's text is written (RFC 2047, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    B,
    Q,
}

/// One encoded word.
struct Word<'a> {
    place: Range<usize>,
    /// Without the language (RFC 2231, section 5).
    charset: &'a [u8],
    coding: Coding,
    text: &'a [u8],
}

/// The encoded words of a raw value, in order.
fn words(value: &[u8]) -> Words<'_> {
    Words { value, at: 0, asked: 0, end: None }
}

struct Words<'a> {
    value: &'a [u8],
    at: usize,
    /// The memo: `end` is the first `?=` at or after `asked`. Without it `=?a?q?_`, repeated and never ended, would
    /// cost the square of its length.
    asked: usize,
    end: Option<Option<usize>>,
}

/// What stands before a word's text.
struct Opener {
    charset: Range<usize>,
    coding: Coding,
    text: usize,
}

impl<'a> Iterator for Words<'a> {
    type Item = Word<'a>;

    fn next(&mut self) -> Option<Word<'a>> {
        loop {
            let start = self.at + find(&self.value[self.at..], *b"=?")?;
            match opener(self.value, start) {
                None => self.at = start + 2,
                Some(opener) => match self.text_end(start, &opener) {
                    Ok(end) => {
                        self.at = end + 2;
                        let charset = &self.value[opener.charset];
                        return Some(Word {
                            place: start..end + 2,
                            charset: charset.split(|&b| b == b'*').next().unwrap_or(charset),
                            coding: opener.coding,
                            text: &self.value[opener.text..end],
                        });
                    }
                    Err(next) => self.at = next?,
                },
            }
        }
    }
}

impl Words<'_> {
    /// Where the text ends, or else where to look for the next word; nowhere, if nothing ends any more.
    fn text_end(&mut self, start: usize, opener: &Opener) -> Result<usize, Option<usize>> {
        let mut end = self.next_end(opener.text).ok_or(None)?;
        // A raw question mark before an encoded byte (`Va?=C3=A4r?=`) is no end, if an end comes before another word.
        while opener.coding == Coding::Q && self.value.get(end + 2..end + 4).is_some_and(is_hex_pair) {
            let Some(next) = self.next_end(end + 2).filter(|next| next - start <= MAX_WORD_BYTES) else {
                break;
            };
            let between = &self.value[end + 2..next];
            if find(between, *b"=?").is_some() || between.iter().any(u8::is_ascii_whitespace) {
                break;
            }
            end = next;
        }
        if end + 2 - start > MAX_WORD_BYTES {
            return Err(Some(opener.text));
        }
        // A word that never ended must not take the next one for its text.
        let mut at = opener.text;
        while let Some(found) = find(&self.value[at..end], *b"=?") {
            at += found;
            if self::opener(self.value, at).is_some_and(|inner| inner.text <= end) {
                return Err(Some(at));
            }
            at += 2;
        }
        Ok(end)
    }

    fn next_end(&mut self, from: usize) -> Option<usize> {
        match self.end {
            Some(end) if self.asked <= from && end.is_none_or(|end| from <= end) => end,
            _ => {
                let end = find(&self.value[from..], *b"?=").map(|at| from + at);
                (self.asked, self.end) = (from, Some(end));
                end
            }
        }
    }
}

/// Reads `=?charset?B?`. An empty charset is taken: such words are sent.
fn opener(value: &[u8], start: usize) -> Option<Opener> {
    let charset = start + 2;
    let token = value[charset..].iter().take(MAX_CHARSET_BYTES);
    let length = token.take_while(|b| b.is_ascii_graphic() && !b"?=<>,;()\\[]".contains(b)).count();
    let coding = match value.get(charset + length..charset + length + 3)? {
        b"?B?" | b"?b?" => Coding::B,
        b"?Q?" | b"?q?" => Coding::Q,
        _ => return None,
    };
    Some(Opener { charset: charset..charset + length, coding, text: charset + length + 3 })
}

/// Where two bytes stand. They stand near in hostile values, where preparing a search would cost more than the search.
fn find(bytes: &[u8], pair: [u8; 2]) -> Option<usize> {
    memchr::memchr_iter(pair[0], bytes).find(|at| bytes.get(at + 1) == Some(&pair[1]))
}

fn is_hex_pair(pair: &[u8]) -> bool {
    pair.iter().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'))
}

/// Neighbouring words of one charset: their bytes, until something else comes.
struct Run<'a> {
    charset: Vec<u8>,
    fallback: Option<&'a str>,
    bytes: Vec<u8>,
    /// Base64 digits that make no byte yet: how many, and their bits. Senders cut the text of B in the midst of four.
    digits: usize,
    bits: u32,
}

impl<'a> Run<'a> {
    fn new(fallback: Option<&'a str>) -> Self {
        Self { charset: Vec::new(), fallback, bytes: Vec::new(), digits: 0, bits: 0 }
    }

    fn push(&mut self, word: &Word<'_>, out: &mut String) {
        self.charset.clear();
        self.charset.extend_from_slice(word.charset);
        match word.coding {
            Coding::B => self.push_b(word.text),
            Coding::Q => self.push_q(word.text, out),
        }
    }

    /// Base64 with or without padding; what is none of its digits is passed over.
    fn push_b(&mut self, text: &[u8]) {
        if !self.goes_on_with(text) {
            self.end_digits();
        }
        for &b in text {
            match sextet(b) {
                Some(six) => {
                    self.bits = self.bits << 6 | six;
                    self.digits += 1;
                    if self.digits == 4 {
                        self.bytes.extend_from_slice(&self.bits.to_be_bytes()[1..]);
                        (self.digits, self.bits) = (0, 0);
                    }
                }
                None if b == b'=' => self.end_digits(),
                None => {}
            }
        }
    }

    /// Whether the digits left over from the word before belong to this one. If the bits that no byte needs are zero,
    /// that word may as well have lost its padding; then the length tells.
    fn goes_on_with(&self, text: &[u8]) -> bool {
        let spare = match self.digits {
            2 => self.bits & 0xf,
            3 => self.bits & 0x3,
            _ => return true,
        };
        let digits = text.iter().filter(|&&b| sextet(b).is_some() || b == b'=').count();
        spare != 0 || (self.digits + digits).is_multiple_of(4)
    }

    fn end_digits(&mut self) {
        match self.digits {
            2 => self.bytes.extend((self.bits >> 4).to_be_bytes().last()),
            3 => self.bytes.extend_from_slice(&(self.bits >> 2).to_be_bytes()[2..]),
            _ => {}
        }
        (self.digits, self.bits) = (0, 0);
    }

    /// Quoted-printable's cousin (RFC 2047, section 4.2). Raw bytes of eight bits are the word's charset, unless they
    /// are UTF-8 and the word says another one: then the sender forgot to encode them.
    fn push_q(&mut self, text: &[u8], out: &mut String) {
        self.end_digits();
        let mut at = 0;
        while at < text.len() {
            match text[at] {
                b'_' => self.bytes.push(b' '),
                b'\r' | b'\n' => {}
                b'=' => match text.get(at + 1..at + 3).and_then(hex_byte) {
                    Some(byte) => {
                        self.bytes.push(byte);
                        at += 2;
                    }
                    None => self.bytes.push(b'='),
                },
                b if b.is_ascii() => self.bytes.push(b),
                _ => {
                    let length = text[at..].iter().take_while(|b| !b.is_ascii()).count();
                    let raw = &text[at..at + length];
                    match std::str::from_utf8(raw) {
                        Ok(utf8) if !self.charset.eq_ignore_ascii_case(b"utf-8") => {
                            self.decode(out);
                            out.push_str(utf8);
                        }
                        _ => self.bytes.extend_from_slice(raw),
                    }
                    at += length - 1;
                }
            }
            at += 1;
        }
    }

    fn decode(&mut self, out: &mut String) {
        if self.bytes.is_empty() {
            return;
        }
        let charset = std::str::from_utf8(&self.charset).unwrap_or_default();
        if NO_CHARSETS.iter().any(|name| name.eq_ignore_ascii_case(charset)) {
            out.push_str(&decode_undeclared(&self.bytes, self.fallback));
        } else {
            out.push_str(&decode_charset(&self.bytes, Some(charset)));
        }
        self.bytes.clear();
    }

    fn end(&mut self, out: &mut String) {
        self.end_digits();
        self.decode(out);
    }
}

fn hex_byte(pair: &[u8]) -> Option<u8> {
    let hex = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(hex(*pair.first()?)? << 4 | hex(*pair.get(1)?)?)
}

/// Takes folds out: the line end goes, the white space after it stays.
fn unfolded(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(bytes.len());
    let mut from = 0;
    for at in memchr::memchr_iter(b'\n', bytes) {
        if matches!(bytes.get(at + 1), Some(b' ' | b'\t')) {
            let line = &bytes[from..at];
            plain.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
            from = at + 1;
        }
    }
    plain.extend_from_slice(&bytes[from..]);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Unoptimised code takes its time for a megabyte.
    const HOSTILE_BYTES: usize = if cfg!(debug_assertions) { 200_000 } else { 1_000_000 };

    fn check(cases: &[(&[u8], &str)]) {
        for (value, expected) in cases {
            assert_eq!(decode_unstructured(value, None), *expected, "{}", value.escape_ascii());
        }
    }

    #[test]
    fn encoded_words_of_several_charsets_are_decoded() {
        check(&[
            (b" =?iso-2022-jp?B?GyRCRnxLXDhsGyhC?=", "日本語"),
            (b" =?UTF-8?Q?Offert_f=C3=B6r?=\r\n =?UTF-8?Q?_projektet?=", "Offert för projektet"),
            (b" plain\r\n\tfolded", "plain folded"),
            (b" caf\xe9", "café"),
            (b" =?utf-8?Q?a=0D=0ABcc:_x?=", "a  Bcc: x"),
            (b" \x1b$BF|K\\8l\x1b(B", "日本語"),
            (b"", ""),
            (b" =?broken", "=?broken"),
            (b"=?utf-8*sv?q?r=c3=a4k?=", "räk"),
            (b"=?ISO-8859-1*en-us?Q?=E5?= =?iso-8859-1?B?5A==?=", "åä"),
        ]);
    }

    #[test]
    fn characters_torn_between_words_are_whole() {
        check(&[
            (b"=?utf-8?B?QmVoww==?=\r\n =?utf-8?B?tnJkZW4gdmVyZsO8Z2Vu?=", "Behörden verfügen"),
            (b"=?utf-8?Q?Beh=C3?= =?UTF-8?Q?=B6rden?=", "Behörden"),
            (b"=?utf-8?Q?Beh=C3?=\r\n\t=?UTF-8?B?tnI=?=", "Behör"),
            (b"=?utf-8?Q?Beh=C3?==?utf-8?Q?=B6r?=", "Behör"),
            (b"=?gb2312?B?1tA=?= =?gb2312?B?zg==?= =?gb2312?B?xA==?=", "中文"),
            // Four digits torn, in each place.
            (b"=?utf-8?B?QmVow?= =?utf-8?B?7ZyZGVu?=", "Beh\u{f6}rden"),
            (b"=?utf-8?B?QmVow7?= =?utf-8?B?ZyZGVu?=", "Beh\u{f6}rden"),
            (b"=?utf-8?B?QmVow7Z?= =?utf-8?B?yZGVu?=", "Beh\u{f6}rden"),
            // Padding that is missing is no torn quantum.
            (b"=?utf-8?B?w6Q?= =?utf-8?B?w7Y?=", "äö"),
            (b"=?utf-8?B?w6Q=?= =?utf-8?B?w7Y?= x", "äö x"),
            (b"=?utf-8?B?	w6TD tg== ?=", "äö"),
            // Other charsets are not joined.
            (b"=?utf-8?Q?=C3=A4?= =?iso-8859-1?Q?=E4?=", "ää"),
        ]);
    }

    #[test]
    fn blanks_are_where_the_sender_put_them() {
        check(&[
            (b"Sp=?utf-8?Q?=C3=A9?=cial (=?utf-8?B?w6XDpMO2?=)", "Spécial (åäö)"),
            (b"a=?utf-8?Q?=C3=A9?=b", "aéb"),
            (b"\"=?utf-8?Q?=C3=A9?=\"", "\"é\""),
            (b"re: =?utf-8?Q?=C3=A9?= x", "re: é x"),
            (b"=?utf-8?Q?a?=  =?utf-8?Q?b?=", "ab"),
            (b"=?utf-8?Q?a_?= =?utf-8?Q?b?=", "a b"),
            (b"=?utf-8?Q?a?=\r\n b =?utf-8?Q?c?=", "a b c"),
            (b"=?utf-8?Q?a?=,=?utf-8?Q?b?=", "a,b"),
            (b"[=?utf-8?Q?=C3=A9?=]=?utf-8?Q?_b?=.pdf", "[é] b.pdf"),
        ]);
    }

    #[test]
    fn bytes_of_eight_bits_inside_and_outside_of_words() {
        check(&[
            (b"=?iso-8859-1?Q?R\xe4kning?=", "Räkning"),
            (b"=?iso-8859-1?Q?M\xf6te_p=E5_m=E5ndag?=", "Möte på måndag"),
            (b"=?iso-8859-1?Q?R\xc3\xa4kning_=E5?=", "Räkning å"),
            (b"=?utf-8?Q?R\xc3\xa4kning_=C3=A5?=", "Räkning å"),
            (b"=?utf-8?Q?R\xc3=A4kning?=", "Räkning"),
            (b"=?windows-1251?Q?\xcf\xf0\xe8=E2=E5=F2?=", "Привет"),
            (b"R\xe4k =?iso-8859-1?Q?=E5?= \xc3\xa4", "Räk å ä"),
            ("Räkning för åäö".as_bytes(), "Räkning för åäö"),
            (b"R\xc3\xa4kning f\xc3\xb6r \xe5 x", "Räkning för \u{fffd} x"),
            (b"R\xc3\xa4kning\xc3", "Räkning"),
            (b"R\xc3\xa4k \xe2\x82\r\n", "Räk"),
            (b"R\xe4kning f\xf6r", "Räkning för"),
            (b"\x1b$BF|\x1b(B \xe4", "\u{1b}$BF|\u{1b}(B ä".replace('\u{1b}', " ").trim()),
        ]);
        for (value, fallback, expected) in [
            (&b"\xcf\xf0\xe8\xe2\xe5\xf2"[..], Some("windows-1251"), "Привет"),
            ("Привет".as_bytes(), Some("koi8-r"), "Привет"),
            (b"R\xe4k", Some("utf-8"), "Räk"),
            (b"R\xe4k", Some("iso-2022-jp"), "Räk"),
            (b"R\xe4k", Some("US-ASCII"), "Räk"),
            (b"=?unknown-8bit?Q?=CF=F0?= \xcf", Some("windows-1251"), "Пр П"),
        ] {
            assert_eq!(
                decode_unstructured(value, fallback),
                expected,
                "{} {fallback:?}",
                value.escape_ascii()
            );
        }
    }

    #[test]
    fn what_real_senders_write_into_words() {
        check(&[
            (b"=?utf-8?Q?Hej d=C3=A4r, (du) <x@y.test>?=", "Hej där, (du) <x@y.test>"),
            (b"=?utf-8?Q?Hur_=C3=A4r_det??=", "Hur är det?"),
            (b"=?utf-8?Q?Va?=C3=A4r?=", "Va?är"),
            (b"=?utf-8?Q?Va?_=C3=A4r?=", "Va? är"),
            (b"=?utf-8?Q?x?=AB =?utf-8?Q?y?=", "xAB y"),
            (b"=?utf-8?Q?100=_=zz=?=", "100= =zz="),
            (b"=?x-unheard-of?Q?na=C3=AFve?=", "naïve"),
            (b"=?x-unheard-of?Q?na=EFve?=", "naïve"),
            (b"=??Q?na=C3=AFve?=", "naïve"),
            (b"=?utf-8?Q??= x", "x"),
            (b"=?utf-8?B?????=", ""),
        ]);
    }

    #[test]
    fn malformed_words_stay_as_written() {
        for text in [
            "=?utf-8?X?abc?=",
            "=?utf-8?Q?abc",
            "=?utf-8?Q?abc?",
            "=?utf-8?Qabc?=",
            "=?ut f-8?Q?abc?=",
            "=?=?=?=",
            "a =?b c?= d",
        ] {
            assert_eq!(decode_unstructured(text.as_bytes(), None), text);
        }
        let long = format!("=?{}?Q?a?=", "c".repeat(MAX_CHARSET_BYTES + 1));
        assert_eq!(decode_unstructured(long.as_bytes(), None), long);
        check(&[(b"=?utf-8?Q?abc =?utf-8?Q?d=C3=A4?=", "=?utf-8?Q?abc dä")]);
        let word = |length: usize| format!("=?utf-8?Q?{}?=", "a".repeat(length - 12));
        assert!(!decode_unstructured(word(MAX_WORD_BYTES).as_bytes(), None).contains('='));
        assert!(decode_unstructured(word(MAX_WORD_BYTES + 1).as_bytes(), None).contains('='));
    }

    #[test]
    fn hostile_values_cost_no_more_than_their_length() {
        for pattern in [
            "=?aa?q?_",
            "=?a?b?",
            "?=",
            "=?",
            "=?a?q?",
            "=?=",
            "=?a?q?=?",
            "=?a?q??=AA",
            "?=AA",
            "=?a?q?_?=",
            "=?a?b?Q?=",
            "=?a?b?Q?= ",
            "=?utf-8?q?\u{e4}?=",
            "=",
            "?",
            "\x1b$",
            "\x1b(",
            "\x1b$\x1b(B",
            "\u{e4}",
            "\r\n ",
        ] {
            let value = pattern.repeat(HOSTILE_BYTES / pattern.len());
            let _ = (decode_words(value.as_bytes(), None), Atoms::of(value.as_bytes()));
            let _ = decode_words(format!("{value}?=").as_bytes(), None);
        }
    }
}
