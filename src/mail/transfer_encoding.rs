//! Content-Transfer-Encoding (RFC 2045, section 6), undone piece by piece, so that a part's size costs no memory.
//!
//! In: a reader over the encoded bytes. Out: decoded pieces, handed to a sink.
//! Promise: memory is one buffer, whatever the part's size; damaged encoding yields what can be had, never an error.
//! Fails: only as the reader or the sink fails.

use super::comment::Comments;
use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use mail_parser::decoders::quoted_printable::quoted_printable_decode;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead};

/// Longest piece of a quoted-printable line decoded at once, in bytes; the format allows 76.
const MAX_LINE: u64 = 64 * 1024;

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
    /// What `uuencode` of POSIX writes, in mail under the names x-uuencode, x-uue and uue.
    Uuencode,
}

impl Encoding {
    /// Reads the raw value of a Content-Transfer-Encoding field: its first token, without comments, quotes, and what
    /// follows a semicolon or comma. Names that can mean only one thing count as it (`base-64`, `quoted_printable`).
    pub(super) fn parse(value: &[u8]) -> Self {
        match token(value).as_slice() {
            b"base64" => Self::Base64,
            name if name.starts_with(b"quotedprint") => Self::QuotedPrintable,
            b"uu" | b"xuu" | b"uue" | b"xuue" | b"uuencode" | b"xuuencode" | b"uuencoded" | b"xuuencoded" => {
                Self::Uuencode
            }
            _ => Self::Identity,
        }
    }

    /// Decodes all of `reader` into `sink`.
    /// # Errors
    /// Those of `reader` and `sink`; the first one ends it.
    pub fn decode(
        self,
        mut reader: impl BufRead,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        match self {
            Self::Identity | Self::Uuencode => identity(&mut reader, sink),
            Self::Base64 => base64(&mut reader, sink),
            Self::QuotedPrintable => quoted_printable(&mut reader, sink),
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

fn identity(reader: &mut impl BufRead, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    loop {
        let chunk = reader.fill_buf()?;
        if chunk.is_empty() {
            return Ok(());
        }
        sink(chunk)?;
        let length = chunk.len();
        reader.consume(length);
    }
}

/// The alphabet of RFC 2045; bits that a sender left over do not matter.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// Base64 as it arrives, and what it decodes to.
#[derive(Default)]
struct Group {
    encoded: Vec<u8>,
    decoded: Vec<u8>,
}

impl Group {
    /// Decodes whole groups of four, or everything.
    fn emit(&mut self, all: bool, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.decoded.clear();
        let mut ready = self.ready(all);
        if BASE64.decode_vec(&self.encoded[..ready], &mut self.decoded).is_err() {
            // Characters outside the alphabet are skipped, as RFC 2045, section 6.8 asks; few messages have any.
            self.encoded.retain(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'));
            self.decoded.clear();
            ready = self.ready(all);
            let _ = BASE64.decode_vec(&self.encoded[..ready], &mut self.decoded); // nothing is left that could fail
        }
        self.encoded.drain(..if all { self.encoded.len() } else { ready });
        if self.decoded.is_empty() { Ok(()) } else { sink(&self.decoded) }
    }

    /// How much can be decoded now; a single character at the end says nothing.
    fn ready(&self, all: bool) -> usize {
        let length = self.encoded.len();
        if all { length - usize::from(length % 4 == 1) } else { length - length % 4 }
    }
}

/// Padding ends a group, so that base64 texts glued together (some gateways append a footer that way) decode one after
/// the other.
fn base64(reader: &mut impl BufRead, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut group = Group::default();
    loop {
        let chunk = reader.fill_buf()?;
        if chunk.is_empty() {
            return group.emit(true, sink);
        }
        let mut rest = chunk;
        while let Some(at) = memchr::memchr3(b'\r', b'\n', b'=', rest) {
            group.encoded.extend_from_slice(&rest[..at]);
            if rest[at] == b'=' {
                group.emit(true, sink)?;
            }
            rest = &rest[at + 1..];
        }
        group.encoded.extend_from_slice(rest);
        group.emit(false, sink)?;
        let length = chunk.len();
        reader.consume(length);
    }
}

fn quoted_printable(
    reader: &mut impl BufRead,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        let carried = line.len();
        let read = io::Read::take(&mut *reader, MAX_LINE).read_until(b'\n', &mut line)?;
        let cut = if read == 0 || line.ends_with(b"\n") {
            line.len()
        } else {
            // An overlong line was cut: an escape must not be torn apart.
            line.len() - line.iter().rev().take(2).position(|&b| b == b'=').map_or(0, |n| n + 1)
        };
        let decoded = quoted_printable_decode(&line[..cut]);
        // A line with a bad escape is passed on as it is: the reader sees more than with nothing.
        sink(decoded.as_deref().unwrap_or(&line[..cut]))?;
        line.drain(..cut);
        if read == 0 || (carried == line.len() && cut == 0) {
            return Ok(());
        }
    }
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

    #[test]
    fn long_values_cost_their_length() {
        for pattern in ["(", "()", ";", " ", "base ", "a", "\"", "(\\"] {
            let value = pattern.repeat((1 << 20) / pattern.len());
            assert_eq!(Encoding::parse(value.as_bytes()), Encoding::Identity);
        }
    }

    #[test]
    fn pieces_of_any_size_decode_alike() {
        for (encoding, encoded, expected) in [
            (Encoding::Base64, &b"aGVs\r\nbG8g\r\nd29ybGQ=\r\n"[..], &b"hello world"[..]),
            (Encoding::Base64, b"aGVsbG8=IHdvcmxk", b"hello world"),
            (Encoding::Base64, b"aG!Vs bG8", b"hello"),
            (Encoding::QuotedPrintable, b"caf=C3=A9 =\r\nau lait  \r\nend", b"caf\xc3\xa9 au lait\r\nend"),
            (Encoding::QuotedPrintable, b"100% =ZZ bad\r\nok=20", b"100% =ZZ bad\r\nok "),
            (Encoding::Identity, b"as\0is\xff", b"as\0is\xff"),
        ] {
            for buffer in [1, 2, 3, 5, 64] {
                assert_eq!(decode(encoding, encoded, buffer), expected, "{}", encoded.escape_ascii());
            }
        }
    }

    #[test]
    fn an_overlong_line_keeps_its_escapes() {
        let max = MAX_LINE as usize;
        for pad in [max - 3, max - 2, max - 1, max] {
            let encoded = [&b"a".repeat(pad)[..], b"=41=42"].concat();
            assert_eq!(
                decode(Encoding::QuotedPrintable, &encoded, 4096),
                [&b"a".repeat(pad)[..], b"AB"].concat()
            );
        }
    }
}
