//! The header fields that the rules need, decoded (RFC 5322, section 3.6).
//!
//! In: the raw head, exactly as received. Out: a [`Head`].
//! Promise: of repeated fields the first counts, but every To, Cc and Bcc field and their Resent- forms; From fields are
//! counted, so that the rules can refuse several. Lists of recipients stay as they are until somebody reads them
//! ([`AddressFields`]), so that a list without end costs no memory.
//! Fails: [`HeadError`] if there is not one readable field, or more bytes than [`MAX_HEAD_BYTES`].

use super::{
    address_list::{self, Element, Mailbox},
    authentication_results::AuthenticationFields,
    automatic::Signs,
    content_type::Parameters,
    date,
    digest::is_space,
    encoded_word::decode_unstructured,
    field::{fields, unbroken},
    from, message_id,
};
use std::time::SystemTime;

/// Largest head read, in bytes. Postfix itself cuts a single field at 100 KiB (`header_size_limit`); ten such
/// fields are no mail that a person wrote.
pub const MAX_HEAD_BYTES: usize = 1024 * 1024;

/// Bytes of each identifying field that count. Postfix cuts a field for milters at 60,000 raw bytes, and not for LMTP;
/// where it cuts depends on the folds, so white space goes first.
const MAX_IDENTITY_BYTES: usize = 30_000;

/// Mailboxes of From, Sender, Resent-From and Resent-Sender that are kept of each: RFC 5322, section 3.6.2 allows many,
/// and nobody writes more than a few.
const MAX_SENDERS: usize = 1000;

/// Decoded header fields.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// The first Subject, decoded, one line; none if there is no such field.
    pub subject: Option<String>,
    /// How many From fields there are (RFC 5322, section 3.6 allows one).
    pub from_fields: usize,
    /// True if two readings of From name different mailboxes: a filter before us may have looked at the other one.
    pub from_is_ambiguous: bool,
    /// Mailboxes of From.
    pub from: Vec<Mailbox>,
    /// Mailboxes of the first Sender.
    pub sender: Vec<Mailbox>,
    /// Mailboxes of Resent-From in the newest block (RFC 5322, section 3.6.6).
    pub resent_from: Vec<Mailbox>,
    /// Mailboxes of Resent-Sender in the newest block.
    pub resent_sender: Vec<Mailbox>,
    /// All To fields.
    pub to: AddressFields,
    /// All Cc fields.
    pub cc: AddressFields,
    /// All Bcc fields.
    pub bcc: AddressFields,
    /// All Resent-To fields.
    pub resent_to: AddressFields,
    /// All Resent-Cc fields.
    pub resent_cc: AddressFields,
    /// All Resent-Bcc fields.
    pub resent_bcc: AddressFields,
    /// Elements of the senders' fields that are no address.
    pub skipped: usize,
    /// Address fields that Postfix has cut; they lack their last element.
    pub cut_fields: usize,
    /// The moment the Date field names, if it can be read and lies after 1970.
    pub date: Option<SystemTime>,
    /// Message-ID without angle brackets.
    pub message_id: Option<String>,
    /// Ids of In-Reply-To.
    pub in_reply_to: Vec<String>,
    /// Ids of References.
    pub references: Vec<String>,
    /// The topmost Received field: the host that had the message last.
    pub received: Option<Vec<u8>>,
    /// How many Received fields there are.
    pub received_fields: usize,
    /// All Authentication-Results fields.
    pub authentication: AuthenticationFields,
    /// What says that no person wrote it.
    pub automatic: Signs,
    /// What identifies an e-mail: Message-ID, Date, From, To, Cc, Subject, each without white space and cut at
    /// 30,000 bytes. A To or Cc without any mailbox counts as absent: Postfix may add one.
    pub identity: [Vec<u8>; 6],
}

/// Fields of one kind with addresses in them, as they were received.
#[derive(Clone, Debug, Default)]
pub struct AddressFields {
    values: Vec<Vec<u8>>,
    /// Charset of raw bytes of eight bits that are no UTF-8.
    fallback: Option<String>,
}

impl AddressFields {
    /// Reads the elements, one at a time.
    pub fn elements(&self) -> impl Iterator<Item = Element> {
        self.values.iter().flat_map(|value| address_list::mailboxes(value, self.fallback.as_deref()))
    }
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
        let mut taking = Taking { head: Self::default(), fallback: fallback(raw), seen: Seen::default() };
        let mut any = false;
        for (name, value) in fields(raw) {
            any = true;
            // They lie in one line of `raw`.
            let before = value.as_ptr() as usize - name.as_ptr() as usize;
            taking.field(name, &unbroken(value, before));
            taking.trace(name, value);
        }
        if any { Ok(taking.head) } else { Err(HeadError::NoField) }
    }
}

impl Head {
    /// Drops the lists of recipients, and what is said of the sender, once they are read.
    pub fn forget_what_is_read(&mut self) {
        self.authentication = AuthenticationFields::default();
        self.received = None;
        for list in [
            &mut self.to,
            &mut self.cc,
            &mut self.bcc,
            &mut self.resent_to,
            &mut self.resent_cc,
            &mut self.resent_bcc,
        ] {
            *list = AddressFields::default();
        }
    }
}

/// The charset that the body names, for fields of eight bits that do not say theirs.
pub(super) fn fallback(raw: &[u8]) -> Option<String> {
    if raw.is_ascii() {
        return None;
    }
    let content_type = fields(raw).find(|(name, _)| name.eq_ignore_ascii_case(b"Content-Type"));
    content_type.and_then(|(_, value)| Parameters::parse(value).get("charset"))
}

/// Fields of which the first counts.
#[derive(Default)]
struct Seen {
    sender: bool,
    in_reply_to: bool,
    references: bool,
    block: Block,
}

/// The newest block of Resent- fields: they are put before what is there (RFC 5322, section 3.6.6), so it ends at the
/// first other field, or where one of them comes again.
#[derive(Default)]
enum Block {
    #[default]
    Before,
    In {
        from: bool,
        sender: bool,
        date: bool,
        id: bool,
    },
    Behind,
}

struct Taking {
    head: Head,
    fallback: Option<String>,
    seen: Seen,
}

impl Taking {
    fn field(&mut self, name: &[u8], value: &[u8]) {
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        if name.len() > 7 && name[..7].eq_ignore_ascii_case(b"Resent-") {
            return self.resent(&name[7..], value);
        }
        if matches!(self.seen.block, Block::In { .. }) {
            self.seen.block = Block::Behind;
        }
        let head = &mut self.head;
        head.automatic.field(name, value);
        if is("Subject") {
            if head.subject.is_none() {
                head.subject = Some(decode_unstructured(value, self.fallback.as_deref()));
                identify(&mut head.identity[5], value);
            }
        } else if is("From") {
            head.from_fields += 1;
            let from = from::read_from(value, self.fallback.as_deref());
            head.from_is_ambiguous |= from.ambiguous;
            head.skipped += from.skipped;
            head.cut_fields += usize::from(address_list::is_cut(value));
            let room = MAX_SENDERS.saturating_sub(head.from.len());
            head.from.extend(from.mailboxes.into_iter().take(room));
            identify(&mut head.identity[2], value);
        } else if is("Sender") {
            if !std::mem::replace(&mut self.seen.sender, true) {
                self.head.sender = self.senders(value);
            }
        } else if is("To") {
            let to = self.recipients(value);
            identify_list(&mut self.head.identity[3], &to);
            self.head.to.add(to, &self.fallback);
        } else if is("Cc") {
            let cc = self.recipients(value);
            identify_list(&mut self.head.identity[4], &cc);
            self.head.cc.add(cc, &self.fallback);
        } else if is("Bcc") {
            let bcc = self.recipients(value);
            self.head.bcc.add(bcc, &self.fallback);
        } else if is("Date") && head.identity[1].is_empty() {
            head.date = date::parse(value);
            identify(&mut head.identity[1], value);
        } else if is("Message-ID") && head.identity[0].is_empty() {
            head.message_id = message_id::parse(value).into_iter().next();
            identify(&mut head.identity[0], value);
        } else if is("In-Reply-To") {
            if !std::mem::replace(&mut self.seen.in_reply_to, true) {
                head.in_reply_to = message_id::parse(value);
            }
        } else if is("References") && !std::mem::replace(&mut self.seen.references, true) {
            head.references = message_id::parse(value);
        }
    }

    /// What hosts on the way say. As it came: a fold in the middle of a word stays one, because Postfix's `header_checks`
    /// have seen it so.
    fn trace(&mut self, name: &[u8], value: &[u8]) {
        self.head.authentication.see(name, value);
        if name.eq_ignore_ascii_case(b"Received") {
            self.head.received_fields += 1;
            self.head.received.get_or_insert_with(|| value.to_vec());
        }
    }

    /// A field whose name goes on with `name` behind `Resent-`.
    fn resent(&mut self, name: &[u8], value: &[u8]) {
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        if matches!(self.seen.block, Block::Before) {
            self.seen.block = Block::In { from: false, sender: false, date: false, id: false };
        }
        if let Block::In { from, sender, date, id } = &mut self.seen.block {
            let once = match () {
                () if is("From") => Some(from),
                () if is("Sender") => Some(sender),
                () if is("Date") => Some(date),
                () if is("Message-ID") => Some(id),
                () => None,
            };
            if once.is_some_and(|seen| std::mem::replace(seen, true)) {
                self.seen.block = Block::Behind;
            }
        }
        let newest = matches!(self.seen.block, Block::In { .. });
        if is("From") && newest {
            self.head.resent_from = self.senders(value);
        } else if is("Sender") && newest {
            self.head.resent_sender = self.senders(value);
        } else if is("To") {
            let to = self.recipients(value);
            self.head.resent_to.add(to, &self.fallback);
        } else if is("Cc") {
            let cc = self.recipients(value);
            self.head.resent_cc.add(cc, &self.fallback);
        } else if is("Bcc") {
            let bcc = self.recipients(value);
            self.head.resent_bcc.add(bcc, &self.fallback);
        }
    }

    fn senders(&mut self, value: &[u8]) -> Vec<Mailbox> {
        self.head.cut_fields += usize::from(address_list::is_cut(value));
        let mut mailboxes = Vec::new();
        for element in address_list::mailboxes(value, self.fallback.as_deref()) {
            match element {
                Element::Mailbox(mailbox) if mailboxes.len() < MAX_SENDERS => mailboxes.push(mailbox),
                Element::Mailbox(_) => {}
                Element::Skipped => self.head.skipped += 1,
            }
        }
        mailboxes
    }

    fn recipients(&mut self, value: &[u8]) -> Vec<u8> {
        self.head.cut_fields += usize::from(address_list::is_cut(value));
        value.to_vec()
    }
}

impl AddressFields {
    fn add(&mut self, value: Vec<u8>, fallback: &Option<String>) {
        if self.values.is_empty() {
            self.fallback.clone_from(fallback);
        }
        self.values.push(value);
    }
}

/// Adds a field to what identifies the e-mail. Line feeds are not in it otherwise, and keep fields apart.
fn identify(identity: &mut Vec<u8>, value: &[u8]) {
    if !identity.is_empty() {
        identity.push(b'\n');
    }
    identity.extend(value.iter().copied().filter(|&b| !is_space(b)).take(MAX_IDENTITY_BYTES));
}

fn identify_list(identity: &mut Vec<u8>, value: &[u8]) {
    let is_mailbox = |element| matches!(element, Element::Mailbox(_));
    if address_list::mailboxes(value, None).any(is_mailbox) {
        identify(identity, value);
    }
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
        assert_eq!((head.from_fields, head.from.len(), head.to.elements().count()), (2, 2, 2));
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
