//! What SMTP said about a message before its first byte.

use super::Address;
use std::ffi::CString;

/// Sender, recipients and where the message came from.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// The envelope sender; none for the null sender `<>` and for one that cannot be parsed.
    pub sender: Option<Address>,
    /// Accepted recipients in the order of RCPT.
    pub recipients: Vec<Recipient>,
    /// Postfix's queue id, once it has one (from the second RCPT on).
    pub queue_id: Option<String>,
    /// The SMTP client's IP address.
    pub client: Option<String>,
    /// Postfix says that its own machine submitted the message (`SOURCE=LOCAL` of XFORWARD).
    pub is_local: bool,
    /// What was sent as the sender reads in one way only, whoever repeats it.
    pub is_plain: bool,
    /// HELO, where the door knows it.
    pub helo: Option<String>,
    /// The SASL login name.
    pub login: Option<String>,
    /// Which door the message came through.
    pub intake: Intake,
}

/// A recipient as the client sent it, and what it means.
#[derive(Clone, Debug)]
pub struct Recipient {
    /// Postfix shows the recipient as the client sent it and wants DELRCPT to give it back unchanged, so the raw
    /// form travels beside the parsed one.
    pub raw: CString,
    /// The parsed address.
    pub address: Address,
    /// The id of the tenant it belongs to, for an integration address.
    pub tenant: Option<String>,
}

/// The protocol a message arrived by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intake {
    /// Postfix's milter protocol.
    Milter,
    /// LMTP (RFC 2033): Postfix's delivery agent.
    Lmtp,
    /// No protocol: `activity-milter explain`.
    Explain,
}

impl Intake {
    /// The name in activities and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Milter => "milter",
            Self::Lmtp => "lmtp",
            Self::Explain => "explain",
        }
    }
}
