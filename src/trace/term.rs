//! What somebody looks for: read from what he pastes.
//!
//! In: a queue id, a key or its beginning, a Message-ID, an address, or a line of a log with one of them. Out: a [`Term`].
//! Fails: [`NoTerm`], with what would do.

use icu_normalizer::ComposingNormalizerBorrowed;
use std::fmt;

/// Digits of a key that must be given at least.
const LEAST_KEY: usize = 8;

/// Letters of Postfix's queue ids: short ones are upper-case hex (microseconds and inode: 6 or more), long ones
/// (`enable_long_queue_ids`) base 52 without vowels, with `z` between time and inode.
const QUEUE_ID: std::ops::RangeInclusive<usize> = 6..=24;

/// What is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Term {
    /// Postfix's queue id; or a Message-ID without `@`.
    QueueId(String),
    /// The hex digits that a key begins with.
    Key(String),
    /// An address, or a Message-ID: both have an `@`.
    Address {
        /// As it was given, for Message-IDs.
        as_given: String,
        /// Lower case, the domain as A-labels.
        folded: String,
    },
}

/// Not a thing to look for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoTerm {
    /// Nothing was given.
    #[error("give a queue id, a key (b3:…), a Message-ID or an address")]
    Empty,
    /// The beginning of a key is short.
    #[error("{0} is too little of a key: give at least {LEAST_KEY} digits behind b3:")]
    ShortKey(String),
    /// Something with `b3:` that is none.
    #[error("{0} is no key: write b3: and hexadecimal digits, as `queue list` shows them")]
    NoKey(String),
    /// Words without one of them.
    #[error("there is no queue id, key, Message-ID or address in \"{0}\"")]
    Nothing(String),
}

impl Term {
    /// Reads what was given.
    /// # Errors
    /// It is none of what can be looked for.
    pub fn read(text: &str) -> Result<Self, NoTerm> {
        let text = text.trim();
        let mut words = text.split_whitespace();
        match (words.next(), words.next()) {
            (None, _) => Err(NoTerm::Empty),
            (Some(word), None) => Self::of_word(word),
            (Some(_), Some(_)) => Self::of_line(text),
        }
    }

    /// In a line of a log the first word that ends in `:` and looks like a queue id is one; then the first of what the
    /// fields name.
    fn of_line(line: &str) -> Result<Self, NoTerm> {
        let is_id = |word: &&&str| word.ends_with(':') && is_queue_id(word.trim_end_matches(':'));
        // A host or a program may look like an id: in a line of syslog they stand before `program[pid]:`.
        let words: Vec<&str> = line.split_whitespace().collect();
        let behind = words.iter().position(|word| word.ends_with("]:")).map_or(0, |at| at + 1);
        if let Some(word) = words[behind..].iter().find(is_id) {
            return Self::of_word(word);
        }
        for field in
            ["queue_id=", "key=", "message-id=", "message_id=", "from=", "to=", "sender=", "recipient="]
        {
            let value = words.iter().find_map(|word| word.strip_prefix(field));
            if let Some(Ok(term)) = value.map(Self::of_word) {
                return Ok(term);
            }
        }
        let known = |word: &&&str| word.starts_with("b3:") || word.contains('@');
        let words = words.iter().find(known).or_else(|| words.iter().find(|word| is_queue_id(word)));
        words.map_or_else(|| Err(NoTerm::Nothing(shortened(line))), |word| Self::of_word(word))
    }

    fn of_word(word: &str) -> Result<Self, NoTerm> {
        let mut word = word;
        for field in [
            "queue_id=",
            "key=",
            "message-id=",
            "message_id=",
            "from=",
            "to=",
            "sender=",
            "recipient=",
            "mailto:",
        ] {
            word = word.strip_prefix(field).unwrap_or(word);
        }
        let marked = |c| matches!(c, ':' | ',' | ';' | '*' | '!' | '…');
        // `mailq` marks active and held ids; logs put a colon or a comma behind; our own lists an ellipsis.
        let word = if word == "b3:" { word } else { word.trim_end_matches(marked).trim_end_matches("...") };
        let word = word.trim_matches(['"', '\'']);
        let inner = word.strip_prefix('<').map(|word| word.strip_suffix('>').unwrap_or(word));
        let is_bracketed = inner.is_some();
        let word = inner.unwrap_or(word);
        if word.is_empty() {
            return Err(NoTerm::Empty);
        }
        if let Some(hex) = word.strip_prefix("b3:").or_else(|| word.strip_prefix("B3:")) {
            return match hex {
                hex if !hex.bytes().all(|b| b.is_ascii_hexdigit()) || hex.len() > 64 => {
                    Err(NoTerm::NoKey(shortened(word)))
                }
                hex if hex.len() < LEAST_KEY => Err(NoTerm::ShortKey(shortened(word))),
                hex => Ok(Self::Key(hex.to_ascii_lowercase())),
            };
        }
        if word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(Self::Key(word.to_ascii_lowercase()));
        }
        match word.rsplit_once('@') {
            Some((local, domain)) => {
                Ok(Self::Address { as_given: word.to_owned(), folded: fold(local, domain) })
            }
            None if is_bracketed || is_queue_id(word) => Ok(Self::QueueId(word.to_owned())),
            // Too long for a queue id, or without a digit in lower case.
            None if is_key(word) => Ok(Self::Key(word.to_ascii_lowercase())),
            None => Err(NoTerm::Nothing(shortened(word))),
        }
    }
}

impl Term {
    /// The same as the beginning of a key, if what may be a queue id can be one.
    pub(super) fn as_key(&self) -> Option<Self> {
        match self {
            Self::QueueId(id) if is_key(id) => Some(Self::Key(id.to_ascii_lowercase())),
            _ => None,
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QueueId(id) if is_queue_id(id) => write!(f, "queue id {id}"),
            Self::QueueId(id) => write!(f, "Message-ID {id}"),
            Self::Key(hex) if hex.len() == 64 => write!(f, "key b3:{hex}"),
            Self::Key(hex) => write!(f, "key that begins with b3:{hex}"),
            Self::Address { as_given, .. } => write!(f, "address or Message-ID {as_given}"),
        }
    }
}

/// What two spellings of one address share: lower case, normal form C, the domain as A-labels.
pub(super) fn fold(local: &str, domain: &str) -> String {
    let local = local.to_lowercase();
    let local = ComposingNormalizerBorrowed::new_nfc().normalize(&local);
    let domain = idna::domain_to_ascii(domain).unwrap_or_else(|_| domain.to_lowercase());
    format!("{local}@{domain}")
}

fn is_queue_id(word: &str) -> bool {
    QUEUE_ID.contains(&word.len())
        && word.bytes().all(|b| b.is_ascii_alphanumeric())
        && (word.bytes().any(|b| b.is_ascii_digit()) || word.bytes().all(|b| matches!(b, b'A'..=b'F')))
}

fn is_key(word: &str) -> bool {
    (LEAST_KEY..=64).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_hexdigit())
}

fn shortened(text: &str) -> String {
    let end = text.floor_char_boundary(80);
    if end < text.len() { format!("{}…", &text[..end]) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(as_given: &str, folded: &str) -> Term {
        Term::Address { as_given: as_given.to_owned(), folded: folded.to_owned() }
    }

    #[test]
    fn what_is_pasted_is_recognised() {
        let id = |id: &str| Term::QueueId(id.to_owned());
        let key = |hex: &str| Term::Key(hex.to_owned());
        for (text, expected) in [
            ("4bXyZ30w1Zz9vB", id("4bXyZ30w1Zz9vB")),
            (" 4bXyZ30w1Zz9vB:\n", id("4bXyZ30w1Zz9vB")),
            ("7F3A91E0C2", id("7F3A91E0C2")),
            ("7F3A91E0C2*", id("7F3A91E0C2")), // mailq: active
            ("7F3A91E0C2!", id("7F3A91E0C2")), // mailq: held
            ("queue_id=7F3A91E0C2,", id("7F3A91E0C2")),
            ("b3:0123abcd", key("0123abcd")),
            ("b3:0123ABCD4567…", key("0123abcd4567")),
            ("b3:0123abcd...", key("0123abcd")),
            (&"AB".repeat(32), key(&"ab".repeat(32))),
            (&"0aB".repeat(10), key(&"0ab".repeat(10))),
            ("deadbeef", key("deadbeef")),
            (
                "<20261129.1@mycompany.test>",
                address("20261129.1@mycompany.test", "20261129.1@mycompany.test"),
            ),
            ("Abc@MyCompany.test", address("Abc@MyCompany.test", "abc@mycompany.test")),
            ("message-id=<Abc@MyCompany.test>", address("Abc@MyCompany.test", "abc@mycompany.test")),
            ("to=<anna@mycompany.test>,", address("anna@mycompany.test", "anna@mycompany.test")),
            ("Änne@Bücher.test", address("Änne@Bücher.test", "änne@xn--bcher-kva.test")),
            // The same letters typed on another system.
            (
                "A\u{308}nne@Bu\u{308}cher.test",
                address("A\u{308}nne@Bu\u{308}cher.test", "änne@xn--bcher-kva.test"),
            ),
            ("<without-at-sign>", id("without-at-sign")),
            // Lines.
            (
                "Nov 29 23:19:49 mx1234 postfix/smtpd[4711]: 4bXyZ30w1Zz9vB: client=localhost[127.0.0.1]",
                id("4bXyZ30w1Zz9vB"),
            ),
            (
                "2026-11-29T23:19:49.123456+00:00 mx1 postfix/cleanup[12]: 7F3A91E0C2: milter-reject: END-OF-MESSAGE from x",
                id("7F3A91E0C2"),
            ),
            ("4bXyZ30w1Zz9vB: refused 550 5.7.1 [no-user] from=<a@b.test>", id("4bXyZ30w1Zz9vB")),
            ("2026-11-29T23:19:49Z  INFO delivered key=\"b3:0123abcd\" tenant=\"t-1\"", key("0123abcd")),
            (
                "Nov 29 23:19:49 mx postfix/smtpd[47]: NOQUEUE: milter-reject: RCPT from x[::1]: 550 5.1.1 no; from=<Anna@mycompany.test> to=<x@y.test>",
                address("Anna@mycompany.test", "anna@mycompany.test"),
            ),
            ("say what became of anna@mycompany.test", address("anna@mycompany.test", "anna@mycompany.test")),
        ] {
            assert_eq!(Term::read(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_queue_id_may_be_the_beginning_of_a_key() {
        for (text, expected) in [
            ("eabfa6e1", Some("eabfa6e1")),
            ("EABFA6E1:", Some("eabfa6e1")),
            ("7F3A91", None), // too little of one
            ("4bXyZ30w1Zz9vB", None),
            ("b3:eabfa6e1", None),
            ("anna@mycompany.test", None),
        ] {
            let expected = expected.map(|hex| Term::Key(hex.to_owned()));
            assert_eq!(Term::read(text).unwrap().as_key(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_nothing_to_look_for_says_what_would_do() {
        for (text, expected) in [
            ("", "give a queue id, a key"),
            ("  ", "give a queue id, a key"),
            ("<>", "give a queue id, a key"),
            ("b3:0123", "b3:0123 is too little of a key: give at least 8 digits"),
            ("b3:", "b3: is too little of a key"),
            ("b3:xyzxyzxyz", "b3:xyzxyzxyz is no key"),
            (&format!("b3:{}", "a".repeat(65)), "is no key"),
            ("anna", "there is no queue id, key, Message-ID or address in \"anna\""),
            ("where is it", "there is no queue id, key, Message-ID or address in \"where is it\""),
            ("7F3A9", "there is no queue id"),
        ] {
            let error = Term::read(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
