//! The words the rules decide with.

use super::{
    evidence::{Evidence, Place},
    policy::{Discard, TenantPolicy, Wish},
    reply::{Reply, Texts},
};
use crate::activity::{Field, Parties};
use crate::mail::{Address, Automatic, Head};
use serde::Serialize;
use std::sync::Arc;

/// An organisation with an integration address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// The directory's id.
    pub id: String,
    /// Local part of its address, without project number, lower case.
    pub prefix: String,
    /// A name for people.
    pub name: String,
    /// Whether mail to it is taken.
    pub active: bool,
    /// Default activity type.
    pub activity_type: String,
    /// Whether its mail is only judged and logged (`mode = "shadow"`).
    pub shadow: bool,
    /// What it expects of us, where it says so.
    pub policy: Arc<Wish>,
}

/// A project or sales case of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Project {
    /// The directory's id.
    pub id: String,
    /// The number written before the prefix.
    pub number: String,
    /// The customer the project is for.
    pub customer: Option<String>,
}

/// What an integration recipient resolves to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whose activity it becomes.
    pub tenant: Tenant,
    /// The project it is linked to.
    pub project: Option<Project>,
    /// The recipient it came from.
    pub address: Address,
}

/// What the directory says of an address; nothing at all means unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Person {
    /// The user with this address.
    pub user: Option<User>,
    /// Contact persons with this address.
    pub contacts: Vec<Contact>,
}

/// A person with a login at the tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The directory's id.
    pub id: String,
    /// The directory's name.
    pub name: Option<String>,
}

/// A contact person of a customer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// The directory's id.
    pub id: String,
    /// The directory's name.
    pub name: Option<String>,
    /// The customer's id.
    pub customer_id: String,
}

/// Somebody whom the message names: the addresses the directory is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Correspondent {
    /// The address, in the spelling found first.
    pub address: Address,
    /// The name beside it.
    pub name: Option<String>,
    /// What the place where it was found first makes of them.
    pub standing: Standing,
    /// Where it was found first.
    pub field: Field,
    /// Where it was found first among those who take part whether anybody knows them or not.
    pub listed: Option<Field>,
}

/// What the place of an address makes of a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// May be the sender, and takes part in any case: From.
    Sender,
    /// May be the sender, and takes part if the directory knows them: Sender, Resent-From, Resent-Sender.
    SenderIfKnown,
    /// May be the sender, and takes part if they are a user: the login, the envelope sender.
    SenderIfUser,
    /// Takes part in any case.
    Recipient,
}

/// Somebody who may be the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Index among the people.
    pub person: usize,
    /// Where he is named so. Who is named in two places is two candidates.
    pub place: Place,
}

/// Everybody whom a message names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Correspondents {
    /// Who may be the sender, in the order in which they are asked for.
    pub senders: Vec<Candidate>,
    /// Those who are looked up, senders first.
    pub people: Vec<Correspondent>,
    /// How many more there are.
    pub omitted: usize,
    /// Elements of address lists that are no address.
    pub skipped: usize,
}

/// What happens to a transaction that also has other recipients, or other tenants, when one tenant's rule fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mixed {
    /// The whole message is refused, so that the sender learns it.
    #[default]
    Reject,
    /// The tenant's recipients are taken out, the rest goes on.
    Strip,
    /// Each recipient has an answer of its own, as in LMTP (RFC 2033, section 4.2): nobody's refusal touches another.
    Each,
}

/// The people of one tenant.
#[derive(Clone, Debug)]
pub struct Party<'a> {
    /// Its targets, in the order of RCPT.
    pub targets: &'a [Target],
    /// What its directory says of each correspondent, in their order.
    pub people: &'a [Person],
    /// True if the message names somebody of whom the tenant's policy says that nothing is recorded.
    pub is_private: bool,
}

/// Everything a decision needs.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// The decoded head.
    pub head: &'a Head,
    /// What kind of automatic mail it is, if no person wrote it.
    pub automatic: Option<Automatic>,
    /// Who is named, as [`super::correspondents()`] gives them.
    pub correspondents: &'a Correspondents,
    /// What proves who sent it.
    pub evidence: &'a Evidence,
    /// One entry for each tenant.
    pub parties: &'a [Party<'a>],
    /// True if the transaction has recipients that are no integration addresses.
    pub other_recipients: bool,
    /// What to do with a mixed transaction.
    pub mixed: Mixed,
    /// What counts for tenants that say nothing.
    pub policy: &'a TenantPolicy,
    /// The texts of replies.
    pub texts: &'a Texts,
}

/// What becomes of the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Record these activities; none of [`Mixed::Reject`] is partly refused.
    Record {
        /// One for each tenant and project.
        records: Vec<Record>,
        /// Tenant id and reply of each refusal: with [`Mixed::Strip`] only the log hears of it, with [`Mixed::Each`]
        /// the tenant's recipients do, and `records` may be empty.
        refused: Vec<(String, Reply)>,
        /// Tenant id and why, where nothing becomes of the message and nobody is told.
        discarded: Vec<(String, Discard)>,
    },
    /// Refuse the message.
    Refuse {
        /// The reply to it.
        reply: Reply,
        /// It is private for one of its tenants, whatever the reply says.
        is_private: bool,
    },
}

impl Verdict {
    /// True if log and trace hold no address of the message.
    pub fn is_private(&self) -> bool {
        match self {
            Self::Refuse { is_private, .. } => *is_private,
            Self::Record { refused, discarded, .. } => {
                refused.iter().any(|(_, reply)| reply.reason.is_private())
                    || discarded.iter().any(|(_, why)| why.is_private())
            }
        }
    }
}

/// One activity to be recorded, and why everybody is what they are in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Owner, participants, links.
    pub parties: Parties,
    /// One line for each correspondent; shared by the activities of a tenant.
    pub people: Arc<[Part]>,
}

/// What somebody is in an activity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The user it belongs to.
    Owner,
    /// Another user.
    User,
    /// A contact person of the one customer concerned.
    Contact,
    /// Anybody else.
    External,
    /// Not listed.
    None,
}

impl Role {
    /// The name in `explain`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::User => "user",
            Self::Contact => "contact",
            Self::External => "external",
            Self::None => "none",
        }
    }
}

/// Why a person is what they are in an activity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// The address.
    pub address: String,
    /// Where it was found.
    pub field: Field,
    /// What they are.
    pub role: Role,
    /// In words.
    pub why: String,
}
