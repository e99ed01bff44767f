//! Content-Transfer-Encoding (RFC 2045, section 6), undone piece by piece, so that a part's size costs no memory.
//!
//! In: the encoded bytes, in pieces of any size. Out: decoded pieces, handed to a sink, and where clear text begins that
//! somebody put behind the encoded lines.
//! Promise: memory is one piece and one line, whatever the part's size; damaged encoding yields what can be had, never an
//! error; the same bytes come out however they are cut into pieces.
//! Fails: only as the reader or the sink fails.

use super::comment::Comments;
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead};

/// Longest line that is kept until its end has come, in bytes. The formats allow 76; a longer line is decoded in pieces.
const MAX_LINE: usize = 64 * 1024;

/// How a part's bytes are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// 7bit, 8bit, binary, and what nobody knows.
    Identity,
    /// RFC 2045, section 6.8.
    Base64,
    /// RFC 2045, section 6.7.
    QuotedPrintable,
    /// `x-uuencode`: POSIX.1-2017, uuencode.
    Uuencode,
}

/// Where decoded bytes go.
type Sink<'a> = dyn FnMut(&[u8]) -> io::Result<()> + 'a;

impl Encoding {
    /// Reads the raw value of a Content-Transfer-Encoding field: its first token, without comments, quotes, and what
    /// follows a semicolon or comma. Names that can mean only one thing count as it (`base-64`, `quoted_printable`).
    pub(super) fn parse(value: &[u8]) -> Self {
        match token(value).as_slice() {
            b"base64" | b"xbase64" | b"b64" => Self::Base64,
            b"quoteprintable" => Self::QuotedPrintable,
            name if name.strip_prefix(b"x").unwrap_or(name).starts_with(b"quotedprint") => {
                Self::QuotedPrintable
            }
            b"uu" | b"xuu" | b"uue" | b"xuue" | b"uuencode" | b"xuuencode" | b"uuencoded" | b"xuuencoded" => {
                Self::Uuencode
            }
            _ => Self::Identity,
        }
    }

    /// The name in `explain`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "none",
            Self::Base64 => "base64",
            Self::QuotedPrintable => "quoted-printable",
            Self::Uuencode => "x-uuencode",
        }
    }

    /// True if the first bytes of a part are what the encoding writes; false: the part is in the clear, whatever its
    /// header says. `whole`: there is no more of it.
    pub(super) fn fits(self, start: &[u8], whole: bool) -> bool {
        match self {
            Self::Identity | Self::QuotedPrintable => true,
            Self::Uuencode => begin_line(start).is_some(),
            Self::Base64 => looks_like_base64(start, whole),
        }
    }

    /// Decodes all of `reader` into `sink`.
    /// # Errors
    /// Those of `reader` and `sink`; the first one ends it.
    pub fn decode(self, mut reader: impl BufRead, sink: &mut Sink<'_>) -> io::Result<()> {
        let mut decoder = Decoder::new(self);
        loop {
            let chunk = reader.fill_buf()?;
            if chunk.is_empty() {
                return decoder.finish(sink);
            }
            let length = chunk.len();
            decoder.push(chunk, sink)?;
            reader.consume(length);
        }
    }
}

/// Longest name looked at, in bytes; the longest known has 15.
const MAX_TOKEN: usize = 32;

/// Letters and digits of the first word, lower case; a blank inside `base 64` and `quoted printable` is none.
fn token(value: &[u8]) -> Vec<u8> {
    let (mut comments, mut name, mut i) = (Comments::of(value), Vec::new(), 0);
    while let Some(&b) = value.get(i) {
        i += 1;
        match b {
            // An unclosed comment was cut off.
            b'(' => i = comments.end(i - 1).unwrap_or(value.len()),
            b if b.is_ascii_alphanumeric() && name.len() < MAX_TOKEN => name.push(b.to_ascii_lowercase()),
            b';' | b',' if !name.is_empty() => break,
            b if b.is_ascii_whitespace() && !matches!(name.as_slice(), b"" | b"base" | b"quoted") => break,
            _ => {}
        }
    }
    name
}

/// Undoes one part's encoding.
#[derive(Debug)]
pub(super) struct Decoder {
    /// Bytes of the part before `carry`.
    passed: u64,
    /// The start of a line whose end has not come.
    carry: Vec<u8>,
    /// Where the clear text begins, from the start of the part, and what of it was given here already; nothing is decoded
    /// from there on.
    clear: Option<(u64, Vec<u8>)>,
    scheme: Scheme,
}

#[derive(Debug)]
enum Scheme {
    Identity,
    Base64(Base64),
    QuotedPrintable(Vec<u8>),
    Uuencode(Uuencode),
}

impl Decoder {
    pub(super) fn new(encoding: Encoding) -> Self {
        let scheme = match encoding {
            Encoding::Identity => Scheme::Identity,
            Encoding::Base64 => Scheme::Base64(Base64::default()),
            Encoding::QuotedPrintable => Scheme::QuotedPrintable(Vec::new()),
            Encoding::Uuencode => Scheme::Uuencode(Uuencode::default()),
        };
        Self { passed: 0, carry: Vec::new(), clear: None, scheme }
    }

    /// Decodes a piece.
    /// # Errors
    /// Those of the sink.
    pub(super) fn push(&mut self, piece: &[u8], sink: &mut Sink<'_>) -> io::Result<()> {
        if matches!(self.scheme, Scheme::Identity) {
            return sink(piece);
        }
        if let Some((_, rest)) = &mut self.clear {
            rest.extend_from_slice(piece);
            return Ok(());
        }
        if self.carry.is_empty() {
            let used = self.lines(piece, false, sink)?;
            self.carry.extend_from_slice(&piece[used..]);
            return Ok(());
        }
        if memchr::memchr(b'\n', piece).is_none() && self.carry.len() + piece.len() <= MAX_LINE {
            self.carry.extend_from_slice(piece);
            return Ok(());
        }
        let mut joined = std::mem::take(&mut self.carry);
        joined.extend_from_slice(piece);
        let used = self.lines(&joined, false, sink)?;
        joined.drain(..used);
        self.carry = joined;
        Ok(())
    }

    /// Decodes what is left.
    /// # Errors
    /// Those of the sink.
    pub(super) fn finish(&mut self, sink: &mut Sink<'_>) -> io::Result<()> {
        let rest = std::mem::take(&mut self.carry);
        if self.clear.is_none() {
            self.lines(&rest, true, sink)?;
            if let Scheme::Base64(base64) = &mut self.scheme
                && self.clear.is_none()
            {
                base64.emit(true, sink)?;
            }
        }
        Ok(())
    }

    /// Where clear text begins behind the encoded one, in bytes from the start, and what of it was pushed; once.
    pub(super) fn take_clear(&mut self) -> Option<(u64, Vec<u8>)> {
        let (at, rest) = self.clear.as_mut()?;
        let rest = std::mem::take(rest);
        (!rest.is_empty()).then_some((*at, rest))
    }

    /// The name that an `x-uuencode` part gives itself.
    pub(super) fn own_name(&self) -> Option<&str> {
        match &self.scheme {
            Scheme::Uuencode(uuencode) => uuencode.name.as_deref().filter(|name| !name.is_empty()),
            _ => None,
        }
    }

    /// Decodes the whole lines at the start of `bytes`, or all; the answer is how much was used.
    fn lines(&mut self, bytes: &[u8], all: bool, sink: &mut Sink<'_>) -> io::Result<usize> {
        let whole = if all { bytes.len() } else { memchr::memrchr(b'\n', bytes).map_or(0, |at| at + 1) };
        let overlong = !all && bytes.len() - whole > MAX_LINE;
        let (mut used, clear) = match &mut self.scheme {
            Scheme::Identity => (whole, None),
            Scheme::Base64(base64) => {
                // A piece of an overlong line is as good as a line here.
                let whole = if overlong { bytes.len() } else { whole };
                (whole, base64.lines(&bytes[..whole], sink)?)
            }
            Scheme::QuotedPrintable(decoded) => {
                quoted_printable(&bytes[..whole], decoded, sink)?;
                (whole, None)
            }
            Scheme::Uuencode(uuencode) => (whole, uuencode.lines(&bytes[..whole], sink)?),
        };
        if overlong && used < bytes.len() {
            if let Scheme::QuotedPrintable(decoded) = &mut self.scheme {
                // Neither an escape nor the blanks before a line break may be torn apart.
                let rest = &bytes[used..];
                let cut = rest.trim_ascii_end().len();
                let escape = rest[..cut].iter().rev().take(2).position(|&b| b == b'=').map_or(0, |n| n + 1);
                let blanks = rest.len() - cut;
                // Blanks without end are content.
                let cut = if blanks > MAX_LINE / 2 { rest.len() } else { cut - escape };
                escapes(&rest[..cut], decoded, sink)?;
                used += cut;
            } else {
                used = bytes.len();
            }
        }
        if let Some(at) = clear {
            self.clear = Some((self.passed + at as u64, bytes[at..].to_vec()));
            used = bytes.len();
        }
        self.passed += used as u64;
        Ok(used)
    }
}

/// The alphabet of RFC 2045; bits that a sender left over do not matter.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// Encoded bytes that are decoded at once.
const BLOCK: usize = 16 * 1024;

/// Base64 as it arrives. Padding ends a group, so that texts glued together decode one after the other; a line that is
/// not all of the alphabet, behind the end of the encoded text, is no base64 any more: a list's footer, say.
#[derive(Debug, Default)]
struct Base64 {
    /// Characters of the alphabet, line ends taken out.
    encoded: Vec<u8>,
    decoded: Vec<u8>,
    /// Padding was seen.
    padded: bool,
    /// A blank line came after the last encoded one.
    blank: bool,
    first_line: usize,
    last_line: usize,
}

impl Base64 {
    /// Decodes whole lines; the answer is where clear text begins.
    fn lines(&mut self, bytes: &[u8], sink: &mut Sink<'_>) -> io::Result<Option<usize>> {
        let mut start = 0;
        while start < bytes.len() {
            let end = memchr::memchr(b'\n', &bytes[start..]).map_or(bytes.len(), |at| start + at + 1);
            let line = bytes[start..end].trim_ascii();
            if line.is_empty() {
                self.blank = self.last_line > 0;
            } else if self.padded || self.blank || line.len() != self.first_line || line.ends_with(b"=") {
                if !self.careful(line, sink)? {
                    self.emit(true, sink)?;
                    return Ok(Some(start));
                }
            } else {
                // The usual line, looked at when its block is decoded.
                self.encoded.extend_from_slice(line);
                self.note(line.len());
            }
            if self.encoded.len() >= BLOCK {
                self.emit(false, sink)?;
            }
            start = end;
        }
        Ok(None)
    }

    fn note(&mut self, length: usize) {
        if self.first_line == 0 {
            self.first_line = length;
        }
        self.last_line = length;
        self.blank = false;
    }

    /// Takes a line that may be the last or come after it; false if it is clear text.
    fn careful(&mut self, line: &[u8], sink: &mut Sink<'_>) -> io::Result<bool> {
        let foreign = line.iter().filter(|&&b| !(is_base64(b) || b == b'=')).count();
        let pure = foreign == 0;
        self.emit(false, sink)?;
        let complete = self.encoded.is_empty();
        // Damage is a character or two; words have blanks and signs in them.
        let words = foreign * 16 > line.len();
        // Behind padding only what could be another base64 text goes on; behind a blank line too, a word is a word.
        let another = pure
            && line.len().is_multiple_of(4)
            && (!self.blank || line.len() == self.first_line || line.ends_with(b"="));
        let clear = (self.padded && !another) || (complete && (words || (self.blank && !pure)));
        if clear && self.last_line > 0 {
            return Ok(false);
        }
        for (index, group) in line.split(|&b| b == b'=').enumerate() {
            if index > 0 && !self.encoded.is_empty() {
                self.emit(true, sink)?;
                self.padded = true;
            }
            self.encoded.extend_from_slice(group);
        }
        self.note(line.len());
        Ok(true)
    }

    /// Decodes whole groups of four, or everything.
    fn emit(&mut self, all: bool, sink: &mut Sink<'_>) -> io::Result<()> {
        let ready = self.ready(all);
        let room = base64_simd::STANDARD_NO_PAD.estimated_decoded_length(ready);
        self.decoded.resize(room, 0);
        let quick = base64_simd::Out::from_slice(&mut self.decoded);
        let quick = base64_simd::STANDARD_NO_PAD.decode(&self.encoded[..ready], quick).map(|out| out.len());
        match quick {
            Ok(length) => {
                self.decoded.truncate(length);
                self.encoded.drain(..if all { self.encoded.len() } else { ready });
            }
            Err(_) => {
                // Characters outside the alphabet are skipped, as RFC 2045, section 6.8 asks; few messages have any.
                self.encoded.retain(|&b| is_base64(b));
                let ready = self.ready(all);
                self.decoded.clear();
                let _ = BASE64.decode_vec(&self.encoded[..ready], &mut self.decoded); // nothing is left that could fail
                self.encoded.drain(..if all { self.encoded.len() } else { ready });
            }
        }
        if self.decoded.is_empty() { Ok(()) } else { sink(&self.decoded) }
    }

    /// How much can be decoded now; a single character at the end says nothing.
    fn ready(&self, all: bool) -> usize {
        let length = self.encoded.len();
        if all { length - usize::from(length % 4 == 1) } else { length - length % 4 }
    }
}

/// The six bits that a character of the alphabet stands for.
pub(super) fn sextet(byte: u8) -> Option<u32> {
    Some(u32::from(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    }))
}

fn is_base64(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/')
}

/// Text in the clear has blanks between words, signs and letters that base64 does not have, one in six or so; damaged
/// base64 has a few. A first word may be all of the alphabet, so a short line must also come to text.
fn looks_like_base64(start: &[u8], whole: bool) -> bool {
    let mut lines = start.split(|&b| b == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    let is_pure = |line: &[u8]| line.iter().all(|&b| is_base64(b) || b == b'=');
    let Some(first) = lines.next() else { return true };
    let count = |line: &[u8]| line.iter().filter(|&&b| is_base64(b) || b == b'=').count();
    let (mut good, mut foreign) = (count(first), first.len() - count(first));
    if foreign == 0 && first.len() >= SURE {
        return true;
    }
    let mut purely = foreign == 0;
    for line in lines {
        purely &= is_pure(line);
        good += count(line);
        foreign += line.len() - count(line);
    }
    if purely {
        // Nobody leaves padding out but who writes no base64: "Hello", "Thanks".
        return !whole || good.is_multiple_of(4) || (good % 4 != 1 && says_text(first));
    }
    // Clear text may stand behind a short piece of base64, and the decoder knows where that ends.
    let is_encoded = first.ends_with(b"=") || says_text(first);
    (is_pure(first) && first.len().is_multiple_of(4) && is_encoded) || foreign * 16 <= good
}

/// A line this long that is all of the alphabet is no word.
const SURE: usize = 60;

/// True if a line decodes to text, in UTF-8 or a charset of one byte a letter.
fn says_text(line: &[u8]) -> bool {
    let letters: Vec<u8> = line.iter().copied().filter(|&b| is_base64(b)).collect();
    let Ok(bytes) = BASE64.decode(&letters) else { return false };
    let control = |c: char| c.is_control() && !matches!(c, '\t' | '\r' | '\n');
    match std::str::from_utf8(&bytes) {
        Ok(text) => !text.chars().any(control),
        Err(_) => !bytes.iter().any(|&b| control(char::from(b))),
    }
}

/// Decodes lines of quoted-printable. A `=` that begins no escape stays (RFC 2045, section 6.7, note 1 at the end).
fn quoted_printable(bytes: &[u8], decoded: &mut Vec<u8>, sink: &mut Sink<'_>) -> io::Result<()> {
    let mut start = 0;
    decoded.clear();
    while start < bytes.len() {
        let end = memchr::memchr(b'\n', &bytes[start..]).map_or(bytes.len(), |at| start + at + 1);
        let line = &bytes[start..end];
        let text = line.trim_ascii_end();
        let line_break = match (line.ends_with(b"\r\n"), line.ends_with(b"\n")) {
            (true, _) => &b"\r\n"[..],
            (false, true) => b"\n",
            (false, false) => b"",
        };
        // A form feed at the end of a line is content.
        let text =
            &line[..text.len() + line[text.len()..].iter().rposition(|&b| b == 0x0c).map_or(0, |at| at + 1)];
        match text.strip_suffix(b"=") {
            // At the very end there is nothing that it could join: it is a soft break all the same.
            Some(text) => unescape(text, decoded),
            None => {
                unescape(text, decoded);
                decoded.extend_from_slice(line_break);
            }
        }
        start = end;
    }
    if decoded.is_empty() { Ok(()) } else { sink(decoded) }
}

/// Decodes a stretch within a line.
fn escapes(bytes: &[u8], decoded: &mut Vec<u8>, sink: &mut Sink<'_>) -> io::Result<()> {
    decoded.clear();
    unescape(bytes, decoded);
    if decoded.is_empty() { Ok(()) } else { sink(decoded) }
}

/// `=XX` becomes a byte; what is none stays as it is.
pub(super) fn unescape(text: &[u8], decoded: &mut Vec<u8>) {
    let hex = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut rest = text;
    while let Some(at) = memchr::memchr(b'=', rest) {
        decoded.extend_from_slice(&rest[..at]);
        rest = match rest[at + 1..] {
            [high, low, ref after @ ..] => match (hex(high), hex(low)) {
                (Some(high), Some(low)) => {
                    decoded.push(high << 4 | low);
                    after
                }
                _ => {
                    decoded.push(b'=');
                    &rest[at + 1..]
                }
            },
            _ => {
                decoded.push(b'=');
                &rest[at + 1..]
            }
        };
    }
    decoded.extend_from_slice(rest);
}

/// Where an `x-uuencode` text stands.
#[derive(Debug)]
struct Uuencode {
    begun: bool,
    name: Option<String>,
    decoded: Vec<u8>,
    /// Bytes that may come out: little more than went in, whatever lengths the lines claim.
    room: usize,
}

/// Bytes that may come out of an `x-uuencode` text beyond those that went in.
const LOST_BLANKS: usize = 64 * 1024;

impl Default for Uuencode {
    fn default() -> Self {
        Self { begun: false, name: None, decoded: Vec::new(), room: LOST_BLANKS }
    }
}

impl Uuencode {
    /// Decodes whole lines; the answer is where clear text begins, behind `end`.
    fn lines(&mut self, bytes: &[u8], sink: &mut Sink<'_>) -> io::Result<Option<usize>> {
        let mut start = 0;
        self.decoded.clear();
        let mut clear = None;
        while start < bytes.len() {
            let end = memchr::memchr(b'\n', &bytes[start..]).map_or(bytes.len(), |at| start + at + 1);
            let line = bytes[start..end].trim_ascii_end();
            start = end;
            if !self.begun {
                if let Some(name) = begin_line(line) {
                    self.begun = true;
                    self.name = Some(String::from_utf8_lossy(name).into_owned());
                }
            } else if line == b"end" {
                clear = Some(end);
                break;
            } else {
                uu_line(line, &mut self.decoded, &mut self.room);
            }
        }
        if !self.decoded.is_empty() {
            sink(&self.decoded)?;
        }
        Ok(clear)
    }
}

/// The file name of the first line that is not blank, if that is `begin MODE NAME`.
fn begin_line(text: &[u8]) -> Option<&[u8]> {
    let line = text.split(|&b| b == b'\n').map(<[u8]>::trim_ascii).find(|line| !line.is_empty())?;
    let rest = line.strip_prefix(b"begin ")?.trim_ascii_start();
    let mode = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    let name = rest.get(mode..)?;
    ((3..=4).contains(&mode) && (name.is_empty() || name[0] == b' ')).then(|| name.trim_ascii())
}

/// A line: its length, then groups of four characters from blank to grave accent. Blanks at the end may be lost.
fn uu_line(line: &[u8], decoded: &mut Vec<u8>, room: &mut usize) {
    let value = |b: u8| b.wrapping_sub(b' ') & 0x3f;
    let Some((&first, groups)) = line.split_first() else { return };
    // Relays take blanks at the end of lines away, and some encoders write zero as a blank.
    *room += line.len() + 2;
    let length = usize::from(value(first)).min(*room);
    *room -= length;
    let end = decoded.len() + length;
    for group in groups.chunks(4) {
        let at = |index: usize| u32::from(group.get(index).copied().map_or(0, value));
        let bits = at(0) << 18 | at(1) << 12 | at(2) << 6 | at(3);
        decoded.extend_from_slice(&bits.to_be_bytes()[1..]);
    }
    decoded.resize(end, 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    fn decode(encoding: Encoding, bytes: &[u8], buffer: usize) -> Vec<u8> {
        let mut out = Vec::new();
        encoding
            .decode(BufReader::with_capacity(buffer, bytes), &mut |piece| {
                out.extend_from_slice(piece);
                Ok(())
            })
            .unwrap();
        out
    }

    #[test]
    fn pieces_of_any_size_decode_alike() {
        for (encoding, encoded, expected) in [
            (Encoding::Base64, &b"aGVs\r\nbG8g\r\nd29ybGQ=\r\n"[..], &b"hello world"[..]),
            (Encoding::Base64, b"aGVsbG8=IHdvcmxk", b"hello world"),
            (Encoding::Base64, b"aGVsbG8=\r\nIHdvcmxk\r\n", b"hello world"),
            (Encoding::Base64, b"aG!Vs bG8", b"hello"),
            (Encoding::QuotedPrintable, b"caf=C3=A9 =\r\nau lait  \r\nend", b"caf\xc3\xa9 au lait\r\nend"),
            (Encoding::QuotedPrintable, b"100% =ZZ bad\r\nok=20", b"100% =ZZ bad\r\nok "),
            (Encoding::QuotedPrintable, b"50% =  h=C3=A4lft=\r\nen =", b"50% =  h\xc3\xa4lften "),
            (Encoding::QuotedPrintable, b"=3D3D ==41 =4", b"=3D =A =4"),
            (Encoding::Uuencode, b"begin 644 hej.csv\r\n#:&5J\r\n`\r\nend\r\n", b"hej"),
            // Blanks at the end of the line were taken away: they are zeros.
            (Encoding::Uuencode, b"begin 644 f\nM86)C\n \nend\n", &[&b"abc"[..], &[0; 42]].concat()),
            (Encoding::Identity, b"as\0is\xff", b"as\0is\xff"),
        ] {
            for buffer in [1, 2, 3, 5, 64] {
                assert_eq!(decode(encoding, encoded, buffer), expected, "{}", encoded.escape_ascii());
            }
        }
    }

    #[test]
    fn random_bytes_in_random_lines_come_back() {
        let mut random = fastrand::Rng::with_seed(5);
        for round in 0..300 {
            let bytes: Vec<u8> = (0..random.usize(..300)).map(|_| random.u8(..)).collect();
            let width = 4 * random.usize(1..20);
            let text = base64::prelude::BASE64_STANDARD.encode(&bytes);
            let lines: Vec<u8> = text
                .as_bytes()
                .chunks(width)
                .flat_map(|line| [line, if round % 2 == 0 { b"\r\n" } else { b"\n" }].concat())
                .collect();
            assert_eq!(decode(Encoding::Base64, &lines, random.usize(1..100)), bytes);
            let escaped: String = bytes.iter().map(|b| format!("={b:02X}")).collect();
            let soft =
                escaped.as_bytes().chunks(3 * random.usize(1..20)).collect::<Vec<_>>().join(&b"=\r\n"[..]);
            assert_eq!(decode(Encoding::QuotedPrintable, &soft, random.usize(1..100)), bytes);
        }
    }

    #[test]
    fn clear_text_behind_base64_is_found() {
        let clear = |encoding, text: &[u8]| {
            let mut found = Vec::new();
            for size in [1, 3, 7, 1000] {
                let (mut decoder, mut out) = (Decoder::new(encoding), Vec::new());
                let mut sink = |piece: &[u8]| {
                    out.extend_from_slice(piece);
                    Ok(())
                };
                text.chunks(size).for_each(|piece| decoder.push(piece, &mut sink).unwrap());
                decoder.finish(&mut sink).unwrap();
                let at = decoder.take_clear().map(|(at, _)| usize::try_from(at).unwrap());
                let rest = at.map(|at| text[at..].to_vec()).unwrap_or_default();
                found.push((out, rest));
            }
            assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{found:?}");
            found.remove(0)
        };
        for (text, footer) in [
            // Padded, and the footer at once.
            ("aGVsbG8=\r\n-- \r\nSales list\r\n", "-- \r\nSales list\r\n"),
            // Not padded: a blank line, or a short last line.
            ("aGVsbG9v\r\n\r\n____\r\nhttps://l.test\r\n", "____\r\nhttps://l.test\r\n"),
            ("aGVsbG9vaGVsbG9v\r\naGVsbG9v\r\nSee you: Bo\r\n", "See you: Bo\r\n"),
            // Words that are of the alphabet.
            ("aGVsbG8=\r\n\r\nRegards\r\nBo Berg\r\n", "Regards\r\nBo Berg\r\n"),
            (
                "aGVsbG8gdGhlcmU=\r\n\r\nUnsubscribed\r\nfrom the list\r\n",
                "Unsubscribed\r\nfrom the list\r\n",
            ),
            ("aGVsbG8=\r\n", ""),
        ] {
            let (decoded, rest) = clear(Encoding::Base64, text.as_bytes());
            assert_eq!((rest.as_slice(), decoded.starts_with(b"hello")), (footer.as_bytes(), true), "{text}");
        }
        let uu = clear(Encoding::Uuencode, b"begin 644 a\n#:&5J\n`\nend\nbye\n");
        assert_eq!(uu, (b"hej".to_vec(), b"bye\n".to_vec()));
    }

    #[test]
    fn clear_text_that_says_it_is_base64_is_seen() {
        for (text, fits) in [
            ("aGVsbG8gd29ybGQhISEhISEhISEhISEhISEh\r\n", true),
            ("aGVs!bG8gd29ybGQhISEhISEhISEhISEhISEh\r\n", true),
            ("Hej Bo, see you on Monday.\r\n", false),
            ("Hello", false),
            ("Thanks", false),
            ("Invoices\r\nare attached, Bo. Please look at them.\r\n", false),
            ("Willkommen12\r\n\r\nDear Bo, here we are.\r\n", false),
            ("5OT2", true),
            ("%PDF-1.4\n%\u{e2}\u{e3}", false),
            ("", true),
            ("SGVq\r\n\r\n-- \r\nA footer of several words\r\n", true),
            ("SGVqIEJv\r\n\r\n-- \r\nA footer of several words\r\n", true),
        ] {
            assert_eq!(Encoding::Base64.fits(text.as_bytes(), true), fits, "{text}");
        }
    }

    #[test]
    fn an_overlong_line_keeps_its_escapes() {
        for pad in [MAX_LINE - 3, MAX_LINE - 2, MAX_LINE - 1, MAX_LINE, 3 * MAX_LINE] {
            let encoded = [&b"a".repeat(pad)[..], b"=41=42"].concat();
            for buffer in [4096, 1 << 20] {
                assert_eq!(
                    decode(Encoding::QuotedPrintable, &encoded, buffer),
                    [&b"a".repeat(pad)[..], b"AB"].concat()
                );
            }
        }
    }

    #[test]
    fn names_in_all_forms_seen() {
        for (encoding, values) in [
            (
                Encoding::Base64,
                &[
                    " base64\r\n",
                    "BASE64",
                    "base64;",
                    "base64; charset=x",
                    "base64,8bit",
                    "\"base64\"",
                    "'base64'",
                    "(a (b)) base64 (c)",
                    "base64(c)",
                    "base64 (c",
                    "base64 8bit",
                    "base-64",
                    "base_64",
                    "base64.",
                    "BASE 64",
                    "\r\n\tbase64",
                    ";base64",
                    "Base64:",
                ][..],
            ),
            (
                Encoding::QuotedPrintable,
                &[
                    "quoted-printable",
                    "Quoted-Printable ;",
                    "quoted_printable",
                    "quotedprintable",
                    "quoted printable",
                    "\"quoted-printable\"",
                    "quoted-printable (RFC 2045)",
                    "quoted-printable.",
                    "quoted-\r\n printable",
                    "quoted-print",
                ],
            ),
            (
                Encoding::Uuencode,
                &["x-uuencode", "uuencode", "X-UUE", "uue", "x-uu", "x-uuencode; name=a", "(c)uuencode"],
            ),
            (
                Encoding::Identity,
                &[
                    "",
                    " ",
                    "7bit",
                    "8bit",
                    "8-bit",
                    "8bits",
                    "binary",
                    "x-unknown",
                    "base32",
                    "8bit base64",
                    "7bit, base64",
                    "(base64)",
                    "base64base64",
                    "(",
                    "quoted",
                    "base",
                ],
            ),
        ] {
            for value in values {
                assert_eq!(Encoding::parse(value.as_bytes()), encoding, "{value:?}");
            }
        }
    }
}
