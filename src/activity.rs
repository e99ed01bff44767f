//! The activity as it travels: the wire contract of DESIGN appendix C, and its key.
//!
//! In: what the rules decided ([`Parties`]), the message, and when it came. Out: JSON that a backend in any language
//! can take, and a [`Parcel`]: the activities of one message with the bytes their files are cut from.
//! Promise: the same e-mail gives the same [`Key`] whichever way it came; new fields may be added, none changes its
//! meaning within a schema version, and receivers ignore what they do not know.
//! Fails: only as reading the message fails.

use crate::mail::{self, Address, Body, Envelope, FilePart, Head};
use serde::{Deserialize, Serialize};
use std::{fmt, io, time::SystemTime};

pub use crate::mail::{Cut, Raw, one_line};

/// The version of the JSON document.
pub const SCHEMA: u32 = 1;

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
    fn digest(tenant: &str, project: Option<&str>, head: &Head, body: &blake3::Hash) -> Self {
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

/// Who takes part in an activity and what it is linked to: what the rules decide for one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parties {
    /// Whose activity it is.
    pub tenant: TenantRef,
    /// The tenant's default activity type.
    pub activity_type: String,
    /// The user it belongs to.
    pub owner: Owner,
    /// Everybody else, in the order From, To, Cc, Bcc, envelope.
    pub participants: Vec<Participant>,
    /// The customer it is linked to.
    pub customer: Option<CustomerRef>,
    /// The project it is linked to.
    pub project: Option<ProjectRef>,
}

/// One activity, as the backend receives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Activity {
    /// Identifies the e-mail for this tenant and project.
    pub key: Key,
    /// [`SCHEMA`].
    pub schema: u32,
    /// Whose activity it is.
    pub tenant: TenantRef,
    /// The tenant's default activity type.
    pub activity_type: String,
    /// The decoded subject, one line.
    pub subject: String,
    /// The Date field, RFC 3339 in UTC; where it cannot be read, the same as `received_at`.
    pub sent_at: String,
    /// When the message was accepted, RFC 3339 in UTC.
    pub received_at: String,
    /// The user it belongs to.
    pub owner: Owner,
    /// Everybody else.
    pub participants: Vec<Participant>,
    /// The customer it is linked to, or null.
    pub customer: Option<CustomerRef>,
    /// The project it is linked to, or null.
    pub project: Option<ProjectRef>,
    /// Plain text, or null.
    pub text: Option<String>,
    /// HTML as sent, or null.
    pub html: Option<String>,
    /// Message-ID without brackets, or null.
    pub message_id: Option<String>,
    /// Ids of In-Reply-To.
    pub in_reply_to: Vec<String>,
    /// Ids of References.
    pub references: Vec<String>,
    /// Attachments and inline files; each is a part of the request.
    pub files: Vec<FileRef>,
    /// What SMTP said.
    pub envelope: EnvelopeRef,
}

/// A tenant as activities name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TenantRef {
    /// The directory's id.
    pub id: String,
    /// The local part of its integration address.
    pub prefix: String,
}

/// The user an activity belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Owner {
    /// The directory's id.
    pub user_id: String,
    /// The address by which the user was recognised.
    pub address: String,
    /// The directory's name.
    pub name: Option<String>,
}

/// What a participant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Another user of the tenant.
    User,
    /// A contact person of the one customer concerned.
    Contact,
    /// Anybody else, and contacts of several customers.
    External,
}

/// Where an address was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Field {
    /// The From field, or the envelope sender where From names nobody.
    From,
    /// A To field.
    To,
    /// A Cc field.
    Cc,
    /// A Bcc field.
    Bcc,
    /// Only the envelope.
    Envelope,
}

impl Field {
    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::From => "from",
            Self::To => "to",
            Self::Cc => "cc",
            Self::Bcc => "bcc",
            Self::Envelope => "envelope",
        }
    }
}

/// Somebody who takes part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Participant {
    /// User, contact or external.
    pub kind: Kind,
    /// The directory's id of a user or contact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// A contact's customer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer_id: Option<String>,
    /// The address, as the message has it.
    pub address: String,
    /// The directory's name, else the message's, else null.
    pub name: Option<String>,
    /// Where the address was found first.
    pub field: Field,
}

/// A customer as activities name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CustomerRef {
    /// The directory's id.
    pub id: String,
}

/// A project as activities name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProjectRef {
    /// The directory's id.
    pub id: String,
    /// The number written in the address.
    pub number: String,
}

/// A file of the activity, and the name of the request part that carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FileRef {
    /// `file-1`, `file-2`, …
    pub part: String,
    /// Safe file name.
    pub name: String,
    /// Media type without parameters.
    pub content_type: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256, lower-case hex.
    pub sha256: String,
    /// Shown within the text.
    pub inline: bool,
    /// Content-ID without brackets, or null.
    pub content_id: Option<String>,
}

/// What SMTP said, for those who search logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct EnvelopeRef {
    /// Envelope sender; null for the null sender.
    pub sender: Option<String>,
    /// Envelope recipients.
    pub recipients: Vec<String>,
    /// Postfix's queue id.
    pub queue_id: Option<String>,
    /// IP address of the SMTP client.
    pub client: Option<String>,
    /// SASL login name.
    pub login: Option<String>,
    /// `milter` or `lmtp`.
    pub intake: String,
}

/// The activities of one accepted message, with everything their delivery needs.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// One for each target.
    pub activities: Vec<Activity>,
    /// Where the bytes of `activity.files` lie, in the same order; shared by all activities of the message.
    pub cuts: Vec<Cut>,
    /// Where the text of all activities stands in `raw` as it is, but for the line ends; none if it was decoded.
    pub verbatim: Option<Cut>,
    /// The message.
    pub raw: Raw,
    /// Keys of the bare address of tenants whose project is among the activities. It adds nothing beside a project
    /// (DESIGN section 1), also when it comes later and through the other door, as an automatic BCC does.
    pub covered: Vec<Key>,
}

impl Parcel {
    /// Builds the activities of one message; reads it once for its parts and once for its key.
    /// # Errors
    /// Those of reading `raw`.
    pub fn build(
        parties: Vec<Parties>,
        envelope: &Envelope,
        head: &Head,
        raw: Raw,
        received_at: SystemTime,
    ) -> io::Result<Self> {
        let body = mail::read_body(&raw, &mail::LIMITS)?;
        let digest = body_digest(&raw, body.offset)?;
        let verbatim = body.verbatim;
        let cuts = body.files.iter().map(|file| file.cut).collect();
        let covered = parties
            .iter()
            .filter(|parties| parties.project.is_some())
            .map(|parties| Key::digest(&parties.tenant.id, None, head, &digest))
            .collect();
        let activities = parties
            .into_iter()
            .map(|parties| activity(parties, envelope, head, &body, &digest, received_at))
            .collect();
        Ok(Self { activities, cuts, verbatim, raw, covered })
    }
}

fn activity(
    parties: Parties,
    envelope: &Envelope,
    head: &Head,
    body: &Body,
    digest: &blake3::Hash,
    received_at: SystemTime,
) -> Activity {
    let project_id = parties.project.as_ref().map(|project| project.id.as_str());
    let tenant_id = parties.tenant.id.clone();
    let rfc3339 = |time| humantime::format_rfc3339_seconds(time).to_string();
    Activity {
        key: Key::digest(&parties.tenant.id, project_id, head, digest),
        schema: SCHEMA,
        tenant: parties.tenant,
        activity_type: parties.activity_type,
        subject: head.subject.clone().unwrap_or_default(),
        sent_at: rfc3339(head.date.unwrap_or(received_at)),
        received_at: rfc3339(received_at),
        owner: parties.owner,
        participants: parties.participants,
        customer: parties.customer,
        project: parties.project,
        text: body.text.clone(),
        html: body.html.clone(),
        message_id: head.message_id.clone(),
        in_reply_to: head.in_reply_to.clone(),
        references: head.references.clone(),
        files: body.files.iter().enumerate().map(file_ref).collect(),
        envelope: EnvelopeRef {
            sender: envelope.sender.as_ref().map(Address::to_string),
            recipients: recipients_for(&tenant_id, envelope),
            queue_id: envelope.queue_id.clone(),
            client: envelope.client.clone(),
            login: envelope.login.clone(),
            intake: envelope.intake.as_str().to_owned(),
        },
    }
}

/// A tenant need not learn which other companies got a copy: their integration addresses are left out.
fn recipients_for(tenant: &str, envelope: &Envelope) -> Vec<String> {
    let shown = envelope.recipients.iter().filter(|r| r.tenant.as_deref().is_none_or(|id| id == tenant));
    shown.map(|r| r.address.to_string()).collect()
}

fn file_ref((index, file): (usize, &FilePart)) -> FileRef {
    FileRef {
        part: format!("file-{}", index + 1),
        name: file.name.clone(),
        content_type: file.content_type.clone(),
        size: file.size,
        sha256: file.sha256.clone(),
        inline: file.inline,
        content_id: file.content_id.clone(),
    }
}

/// BLAKE3 of the raw body without its white space.
fn body_digest(raw: &Raw, offset: u64) -> io::Result<blake3::Hash> {
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
