//! The wire contract of DESIGN appendix C.

use super::key::Key;
use crate::mail::Automatic;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The version of the JSON document.
pub const SCHEMA: u32 = 1;

/// Begin of the Message-IDs of our own notices, by which one that came back to us is known.
pub const NOTICE_ID: &str = "activity-milter-held-";

/// Who takes part in an activity and what it is linked to: what the rules decide for one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parties {
    /// Whose activity it is.
    pub tenant: TenantRef,
    /// The tenant's default activity type.
    pub activity_type: String,
    /// The user it belongs to.
    pub owner: Owner,
    /// Everybody else, in the order From, Sender, To, Cc, Bcc, envelope; shared by the activities of a tenant.
    pub participants: Arc<[Participant]>,
    /// How many more people the message names than were looked at.
    pub people_omitted: usize,
    /// What kind of automatic mail it is, if no person wrote it.
    pub automatic: Option<Automatic>,
    /// Whether the sender is proven to be who he says; none if nobody asked.
    pub sender_authenticated: Option<bool>,
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
    pub participants: Arc<[Participant]>,
    /// How many more people the message names than were looked up and listed; 0 but for messages to a great many.
    #[serde(default)]
    pub people_omitted: usize,
    /// What kind of automatic mail it is, or null if nothing says that no person wrote it.
    #[serde(default)]
    pub automatic: Option<Automatic>,
    /// Whether the sender is proven to be who he says; null if the tenant's policy does not ask.
    #[serde(default)]
    pub sender_authenticated: Option<bool>,
    /// The customer it is linked to, or null.
    pub customer: Option<CustomerRef>,
    /// The project it is linked to, or null.
    pub project: Option<ProjectRef>,
    /// Plain text, or null.
    pub text: Option<Arc<str>>,
    /// HTML as sent, or null.
    pub html: Option<Arc<str>>,
    /// Message-ID without brackets, or null.
    pub message_id: Option<String>,
    /// Ids of In-Reply-To.
    pub in_reply_to: Vec<String>,
    /// Ids of References.
    pub references: Vec<String>,
    /// Attachments and inline files; each is a part of the request.
    pub files: Arc<[FileRef]>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    /// The Sender field, or the newest Resent-From and Resent-Sender.
    Sender,
    /// A To or Resent-To field.
    To,
    /// A Cc or Resent-Cc field.
    Cc,
    /// A Bcc or Resent-Bcc field.
    Bcc,
    /// Only the envelope, or the login.
    Envelope,
}

impl Field {
    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::From => "from",
            Self::Sender => "sender",
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
