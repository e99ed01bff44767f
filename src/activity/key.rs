//! The key of an e-mail: the same whichever way it came.

use crate::mail::Head;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Identifies one e-mail for one tenant and project: `b3:` and 64 hex digits (BLAKE3).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Key(String);

impl Key {
    /// The digest over tenant, project, what identifies the e-mail ([`Head::identity`]) and body (DESIGN section 8).
    ///
    /// White space does not count: relays fold headers and break lines of over 998 characters anew
    /// (RFC 5321, section 4.5.3.1.6), and the e-mail is still the same one.
    pub fn digest(tenant: &str, project: Option<&str>, head: &Head, body: &[u8; 32]) -> Self {
        let mut hash =
            blake3::Hasher::new_derive_key("activity-milter 2026-11 key of an e-mail, with To and Cc");
        let mut field = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        field(tenant.as_bytes());
        field(project.unwrap_or_default().as_bytes());
        for value in &head.identity {
            field(value);
        }
        field(body);
        Self(format!("b3:{}", hash.finalize().to_hex()))
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The digest, 32 bytes. A text that is no key has the digest of the text, which nothing else has.
    pub fn bytes(&self) -> [u8; 32] {
        let hex = self.0.strip_prefix("b3:").and_then(|hex| blake3::Hash::from_hex(hex).ok());
        *hex.unwrap_or_else(|| blake3::hash(self.0.as_bytes())).as_bytes()
    }

    /// The key of a digest.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(format!("b3:{}", blake3::Hash::from_bytes(bytes).to_hex()))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::{LIMITS, Reader};

    fn key(tenant: &str, project: Option<&str>, head: &str, body: &str) -> Key {
        let mut reader = Reader::new(b"", 0, LIMITS);
        reader.push(body.as_bytes());
        Key::digest(tenant, project, &Head::parse(head.as_bytes()).unwrap(), &reader.finish().digest)
    }

    #[test]
    fn the_key_is_the_e_mails_own() {
        let head =
            "Message-ID: <a@x>\r\nDate: Mon, 23 Nov 2026 20:00:00 +0200\r\nFrom: a@x\r\nSubject: s t\r\n";
        let first = key("t-1", None, head, "one two\r\nthree\r\n");
        assert_eq!(first.as_str().len(), 3 + 64);
        assert_eq!(Key::from_bytes(first.bytes()), first);
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
