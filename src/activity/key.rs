//! The key of an e-mail: the same whichever way it came.

use crate::mail::{Head, Raw};
use serde::{Deserialize, Serialize};
use std::{fmt, io};

/// Identifies one e-mail for one tenant and project: `b3:` and 64 hex digits (BLAKE3).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Key(String);

impl Key {
    /// The digest over tenant, project, Message-ID, Date, From, Subject and body (DESIGN section 8).
    ///
    /// White space does not count: relays fold headers and break lines of over 998 characters anew
    /// (RFC 5321, section 4.5.3.1.6), and the e-mail is still the same one.
    pub(super) fn digest(tenant: &str, project: Option<&str>, head: &Head, body: &blake3::Hash) -> Self {
        let mut hash = blake3::Hasher::new_derive_key("activity-milter 2026-11 key of an e-mail");
        let mut field = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        field(tenant.as_bytes());
        field(project.unwrap_or_default().as_bytes());
        for value in &head.identity {
            field(&value.iter().copied().filter(|b| !is_space(*b)).collect::<Vec<u8>>());
        }
        field(body.as_bytes());
        Self(format!("b3:{}", hash.finalize().to_hex()))
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Wraps a key that was made before and stored.
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\r' | b'\n')
}

/// BLAKE3 of the raw body without its white space.
pub(super) fn body_digest(raw: &Raw, offset: u64) -> io::Result<blake3::Hash> {
    let mut hash = blake3::Hasher::new();
    let mut reader = raw.reader(offset..raw.len());
    // The hash is several times as fast on large pieces, and words are small.
    let mut dense = Vec::new();
    loop {
        let chunk = reader.fill_buf()?;
        if chunk.is_empty() {
            return Ok(hash.finalize());
        }
        compact(chunk, &mut dense);
        hash.update(&dense);
        let length = chunk.len();
        reader.consume(length);
    }
}

/// The bytes without white space, eight at a time: text has so much of it that a branch for each byte would be guessed
/// wrong.
fn compact(chunk: &[u8], dense: &mut Vec<u8>) {
    dense.clear();
    dense.resize(chunk.len() + 8, 0);
    let (groups, rest) = chunk.as_chunks::<8>();
    let mut length = 0;
    for group in groups {
        let mut word = u64::from_le_bytes(*group);
        let mut spaces = b" \t\r\n".iter().fold(0, |spaces, &space| spaces | matches(word, space));
        let mut left = group.len();
        while spaces != 0 {
            let run = spaces.trailing_zeros() as usize / 8;
            dense[length..length + 8].copy_from_slice(&word.to_le_bytes());
            length += run;
            left -= run + 1;
            word = word >> (8 * run) >> 8;
            spaces = spaces >> (8 * run) >> 8;
        }
        dense[length..length + 8].copy_from_slice(&word.to_le_bytes());
        length += left;
    }
    dense.truncate(length);
    dense.extend(rest.iter().filter(|&&b| !is_space(b)));
}

/// The high bit of each byte of `word` that is `byte`.
fn matches(word: u64, byte: u8) -> u64 {
    const LOW: u64 = u64::MAX / 0xff * 0x7f;
    let different = word ^ (u64::MAX / 0xff * u64::from(byte));
    !(((different & LOW) + LOW) | different | LOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tenant: &str, project: Option<&str>, head: &str, body: &str) -> Key {
        let raw = Raw::from(body.as_bytes().to_vec());
        Key::digest(tenant, project, &Head::parse(head.as_bytes()).unwrap(), &body_digest(&raw, 0).unwrap())
    }

    #[test]
    fn white_space_goes_and_everything_else_stays() {
        let mut dense = Vec::new();
        let mut random = fastrand::Rng::with_seed(7);
        for length in 0..200 {
            let few = [b' ', b'\t', b'\r', b'\n', 0, 0x1f, 0x21, 0x7f, 0x80, 0xa0, 0xff, b'a'];
            let bytes: Vec<u8> = (0..length).map(|_| few[random.usize(..few.len())]).collect();
            let expected: Vec<u8> = bytes.iter().copied().filter(|b| !b" \t\r\n".contains(b)).collect();
            compact(&bytes, &mut dense);
            assert_eq!(dense, expected);
        }
    }

    #[test]
    fn the_key_is_the_e_mails_own() {
        let head =
            "Message-ID: <a@x>\r\nDate: Mon, 23 Nov 2026 20:00:00 +0200\r\nFrom: a@x\r\nSubject: s t\r\n";
        let first = key("t-1", None, head, "one two\r\nthree\r\n");
        assert_eq!(first.as_str().len(), 3 + 64);
        // Folded and re-wrapped on the way, a Received field added: the same e-mail.
        let relayed = format!("Received: by b\r\n{}", head.replace("s t", "s\r\n t"));
        assert_eq!(first, key("t-1", None, &relayed, "one\r\n two\r\nthree"));
        for other in [
            key("t-2", None, head, "one two\r\nthree\r\n"),
            key("t-1", Some("p"), head, "one two\r\nthree\r\n"),
            key("t-1", None, &head.replace("a@x>", "b@x>"), "one two\r\nthree\r\n"),
            key("t-1", None, head, "one two\r\nfour\r\n"),
        ] {
            assert_ne!(first, other);
        }
    }
}
