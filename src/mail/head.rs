//! The header fields that the rules need, decoded (RFC 5322, section 3.6).
//!
//! In: the raw head, exactly as received. Out: a [`Head`].
//! Promise: the first Subject counts (mail-parser's accessors give the last of repeated fields, so fields are cut
//! here and only their values are handed to it); every To, Cc and Bcc field counts; From fields are counted, so that
//! the rules can refuse several.
//! Fails: [`HeadError`] if there is not one readable field, or more bytes than [`MAX_HEAD_BYTES`].

use super::{
    address_list::{Element, Mailbox, mailboxes},
    date,
    encoded_word::decode_unstructured,
    message_id,
};
use std::time::SystemTime;

/// Largest head read, in bytes. Postfix itself cuts a single field at 100 KiB (`header_size_limit`); ten such
/// fields are no mail that a person wrote.
pub const MAX_HEAD_BYTES: usize = 1024 * 1024;

/// Decoded header fields.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// The first Subject, decoded, one line; none if there is no such field.
    pub subject: Option<String>,
    /// How many From fields there are (RFC 5322, section 3.6 allows one).
    pub from_fields: usize,
    /// Mailboxes of From.
    pub from: Vec<Mailbox>,
    /// Mailboxes of all To fields.
    pub to: Vec<Mailbox>,
    /// Mailboxes of all Cc fields.
    pub cc: Vec<Mailbox>,
    /// Mailboxes of all Bcc fields.
    pub bcc: Vec<Mailbox>,
    /// The moment the Date field names, if it can be read and lies after 1970.
    pub date: Option<SystemTime>,
    /// Message-ID without angle brackets.
    pub message_id: Option<String>,
    /// Ids of In-Reply-To.
    pub in_reply_to: Vec<String>,
    /// Ids of References.
    pub references: Vec<String>,
    /// Raw values of the fields that identify an e-mail: Message-ID, Date, From, Subject.
    pub identity: [Vec<u8>; 4],
}

/// Why a head cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Not one header field.
    #[error("no header field can be read")]
    NoField,
    /// More than [`MAX_HEAD_BYTES`].
    #[error("the header is larger than 1 MiB")]
    TooLarge,
}

impl Head {
    /// Parses the raw head, up to but without the empty line.
    pub fn parse(raw: &[u8]) -> Result<Self, HeadError> {
        if raw.len() > MAX_HEAD_BYTES {
            return Err(HeadError::TooLarge);
        }
        let mut head = Self::default();
        let mut any = false;
        for (name, value) in fields(raw) {
            any = true;
            head.take(name, value);
        }
        if any { Ok(head) } else { Err(HeadError::NoField) }
    }

    fn take(&mut self, name: &[u8], value: &[u8]) {
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        if is("Subject") {
            if self.subject.is_none() {
                self.subject = Some(decode_unstructured(value, None));
                self.identity[3] = value.to_vec();
            }
        } else if is("From") {
            self.from_fields += 1;
            self.from.extend(mailboxes(value, None).filter_map(Element::mailbox));
            self.identity[2].extend_from_slice(value);
        } else if is("To") {
            self.to.extend(mailboxes(value, None).filter_map(Element::mailbox));
        } else if is("Cc") {
            self.cc.extend(mailboxes(value, None).filter_map(Element::mailbox));
        } else if is("Bcc") {
            self.bcc.extend(mailboxes(value, None).filter_map(Element::mailbox));
        } else if is("Date") && self.identity[1].is_empty() {
            self.date = date::parse(value);
            self.identity[1] = value.to_vec();
        } else if is("Message-ID") && self.identity[0].is_empty() {
            self.message_id = message_id::parse(value).into_iter().next();
            self.identity[0] = value.to_vec();
        } else if is("In-Reply-To") {
            self.in_reply_to = message_id::parse(value);
        } else if is("References") {
            self.references = message_id::parse(value);
        }
    }
}

/// Cuts a head into (name, value) pairs; folds stay in the value. Lines that belong to no field are left out:
/// an mbox `From ` line, or what a broken client put before its first field.
pub fn fields(raw: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = raw;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let mut end = line_end(rest, 0);
            while end < rest.len() && matches!(rest[end], b' ' | b'\t') {
                end = line_end(rest, end);
            }
            let (field, after) = rest.split_at(end);
            rest = after;
            if let Some(colon) = field.iter().position(|&b| b == b':') {
                let name = field[..colon].trim_ascii_end();
                if !name.is_empty() && name.iter().all(u8::is_ascii_graphic) {
                    return Some((name, &field[colon + 1..]));
                }
            }
        }
        None
    })
}

fn line_end(bytes: &[u8], from: usize) -> usize {
    bytes[from..].iter().position(|&b| b == b'\n').map_or(bytes.len(), |n| from + n + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_subject_counts_and_from_fields_are_counted() {
        let head = Head::parse(
            b"Subject: first\r\nFrom: a@x.test\r\nSUBJECT: second\r\nFrom : b@x.test\r\nTo: c@x.test\r\nTo: d@x.test\r\n",
        )
        .unwrap();
        assert_eq!(head.subject.as_deref(), Some("first"));
        assert_eq!((head.from_fields, head.from.len(), head.to.len()), (2, 2, 2));
    }

    #[test]
    fn dates_ids_and_folds() {
        let head = Head::parse(
            b"Date: Mon, 23 Nov 2026 20:00:00 +0200 (EET)\r\nMessage-ID:\r\n <abc@mycompany.test>\r\n\
              In-Reply-To: <p@x.test>\r\nReferences: <o@x.test>\r\n\t<p@x.test>\r\nSubject: a\r\n b\r\n",
        )
        .unwrap();
        assert_eq!(humantime::format_rfc3339_seconds(head.date.unwrap()).to_string(), "2026-11-23T18:00:00Z");
        assert_eq!(head.message_id.as_deref(), Some("abc@mycompany.test"));
        assert_eq!(head.in_reply_to, ["p@x.test"]);
        assert_eq!(head.references, ["o@x.test", "p@x.test"]);
        assert_eq!(head.subject.as_deref(), Some("a b"));
    }

    #[test]
    fn odd_heads() {
        assert_eq!(Head::parse(b"").unwrap_err(), HeadError::NoField);
        assert_eq!(Head::parse(b"no colon here\r\nnor here\r\n").unwrap_err(), HeadError::NoField);
        assert_eq!(Head::parse(&vec![b'a'; MAX_HEAD_BYTES + 1]).unwrap_err(), HeadError::TooLarge);
        let head =
            Head::parse(b"From x Mon Nov 23\r\nSubject: s\r\nDate: never\r\nMessage-ID: junk\r\n").unwrap();
        assert_eq!((head.subject.as_deref(), head.date, head.from_fields), (Some("s"), None, 0));
        let head = Head::parse(b"Subject: \xff\xfe\r\nDate: Thu, 1 Jan 1950 00:00:00 +0000\r\n").unwrap();
        assert!(head.subject.is_some() && head.date.is_none());
    }
}
