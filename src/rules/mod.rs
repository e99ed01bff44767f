//! What becomes of a message: `decide()` and the words it decides with.
//!
//! In: head, envelope, the targets of the recipients, what the directory says of the people, and the policy.
//! Out: a [`Verdict`]: record these activities, or refuse with a [`Reply`].
//! Promise: pure. No I/O, no clock, no async, no log; the same input gives the same verdict, so a table tests it.
//! Fails: never; what cannot be decided well is a reply.
//!
//! The sentences of DESIGN section 1 are the cases of `tests/rules.rs`.

mod reply;
mod target;

pub use reply::{MAX_TEXT_BYTES, Reason, Reply, Texts, check_text};
pub use target::{Addressing, Reading};

use crate::activity::{CustomerRef, Field, Kind, Owner, Participant, Parties, ProjectRef, TenantRef};
use crate::mail::{self, Address, Envelope, Head};
use serde::Serialize;
use std::collections::{BTreeSet, HashSet};

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
    /// Where it was found first.
    pub field: Field,
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
}

/// Everything a decision needs.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// The decoded head.
    pub head: &'a Head,
    /// Who is named, as [`correspondents`] gives them.
    pub correspondents: &'a [Correspondent],
    /// One entry for each tenant.
    pub parties: &'a [Party<'a>],
    /// True if the transaction has recipients that are no integration addresses.
    pub other_recipients: bool,
    /// What to do with a mixed transaction.
    pub mixed: Mixed,
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
    },
    /// Refuse the message.
    Refuse(Reply),
}

/// One activity to be recorded, and why everybody is what they are in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Owner, participants, links.
    pub parties: Parties,
    /// One line for each correspondent.
    pub roles: Vec<Role>,
}

/// Why a person is what they are in an activity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Role {
    /// The address.
    pub address: String,
    /// Where it was found.
    pub field: Field,
    /// `owner`, `user`, `contact`, `external` or `none`.
    pub role: &'static str,
    /// In words.
    pub why: String,
}

/// Who is named by the message, each once: senders, To, Cc, Bcc, then the other envelope recipients.
///
/// The sender is the From field; the envelope sender stands in only if From names nobody, because bounce addresses
/// of lists and forwarders are not people. Integration addresses are left out.
pub fn correspondents(head: &Head, envelope: &Envelope, addressing: &Addressing) -> Vec<Correspondent> {
    let mailboxes = |field, list: &[mail::Mailbox]| {
        list.iter()
            .map(|m| Correspondent { address: m.address.clone(), name: m.name.clone(), field })
            .collect::<Vec<_>>()
    };
    let nameless = |field, address: &Address| Correspondent { address: address.clone(), name: None, field };
    let mut all = mailboxes(Field::From, &head.from);
    if all.is_empty() {
        all.extend(envelope.sender.iter().map(|sender| nameless(Field::From, sender)));
    }
    all.extend(mailboxes(Field::To, &head.to));
    all.extend(mailboxes(Field::Cc, &head.cc));
    all.extend(mailboxes(Field::Bcc, &head.bcc));
    all.extend(envelope.recipients.iter().map(|r| nameless(Field::Envelope, &r.address)));
    let mut seen = HashSet::new();
    all.retain(|c| !addressing.covers(&c.address) && seen.insert(c.address.folded().to_owned()));
    all
}

/// Checks what holds for the message whatever its tenants are: a readable sender and a subject.
pub fn check_head(head: &Head) -> Option<Reason> {
    if head.from_fields > 1 {
        return Some(Reason::AmbiguousFrom);
    }
    match &head.subject {
        Some(subject) if !mail::is_blank(subject) => None,
        _ => Some(Reason::NoSubject),
    }
}

/// Decides what becomes of a message with at least one target.
pub fn decide(case: &Case<'_>) -> Verdict {
    let mut records = Vec::new();
    let mut refused = Vec::new();
    for party in case.parties {
        match decide_for(case, party) {
            Ok(mut new) => records.append(&mut new),
            Err((tenant, reply)) => refused.push((tenant, reply)),
        }
    }
    let something_remains = case.other_recipients || !records.is_empty();
    let as_a_whole = match case.mixed {
        Mixed::Reject => true,
        Mixed::Strip => !something_remains,
        Mixed::Each => false,
    };
    match refused.first() {
        Some((_, reply)) if as_a_whole => Verdict::Refuse(reply.clone()),
        _ => Verdict::Record { records, refused },
    }
}

/// One tenant's part of the message: an activity for each project, or one without.
fn decide_for(case: &Case<'_>, party: &Party<'_>) -> Result<Vec<Record>, (String, Reply)> {
    let Some(first) = party.targets.first() else { return Ok(Vec::new()) };
    let refuse = |reason| (first.tenant.id.clone(), case.texts.reply(reason, Some(&first.address)));
    if let Some(reason) = check_head(case.head) {
        return Err(refuse(reason));
    }
    let owner = owner_of(case.correspondents, party.people).ok_or_else(|| refuse(Reason::NoUser))?;
    Ok(distinct(party.targets).into_iter().map(|target| record(case, party, target, owner)).collect())
}

/// One target for each project; the bare address adds nothing beside a project address.
fn distinct(targets: &[Target]) -> Vec<&Target> {
    let mut seen = HashSet::new();
    let with_project = targets.iter().any(|t| t.project.is_some());
    targets
        .iter()
        .filter(|t| t.project.is_some() || !with_project)
        .filter(|t| seen.insert(t.project.as_ref().map(|p| p.id.as_str())))
        .collect()
}

/// The index of the user who owns: the first one in the order From, To, Cc, Bcc, envelope. A sender who is a user
/// comes first in it by himself.
fn owner_of(correspondents: &[Correspondent], people: &[Person]) -> Option<usize> {
    correspondents.iter().zip(people).position(|(_, person)| person.user.is_some())
}

fn record(case: &Case<'_>, party: &Party<'_>, target: &Target, owner: usize) -> Record {
    let customers: BTreeSet<&str> = party
        .people
        .iter()
        .filter(|person| person.user.is_none())
        .flat_map(|person| person.contacts.iter().map(|contact| contact.customer_id.as_str()))
        .collect();
    let mut seat = Seats { customers: &customers, owner, taken: HashSet::new(), participants: Vec::new() };
    // The owner sits first, so that a second address of the same user finds the seat taken.
    if let Some(user) = party.people.get(owner).and_then(|p| p.user.as_ref()) {
        seat.taken.insert(format!("user {}", user.id));
    }
    let roles = case
        .correspondents
        .iter()
        .zip(party.people)
        .enumerate()
        .map(|(index, (correspondent, person))| seat.place(index, correspondent, person))
        .collect();
    let contact_customer = match customers.len() {
        1 => customers.first().map(|id| (*id).to_owned()),
        _ => None,
    };
    // The project's customer counts only where no contact says otherwise.
    let project_customer = target.project.as_ref().and_then(|p| p.customer.clone());
    let customer = if customers.is_empty() { project_customer } else { contact_customer };
    let participants = seat.participants;
    let parties = Parties {
        tenant: TenantRef { id: target.tenant.id.clone(), prefix: target.tenant.prefix.clone() },
        activity_type: target.tenant.activity_type.clone(),
        owner: owner_ref(case, party, owner),
        participants,
        customer: customer.map(|id| CustomerRef { id }),
        project: target.project.as_ref().map(|p| ProjectRef { id: p.id.clone(), number: p.number.clone() }),
    };
    Record { parties, roles }
}

fn owner_ref(case: &Case<'_>, party: &Party<'_>, owner: usize) -> Owner {
    let correspondent = &case.correspondents[owner];
    let user = party.people[owner].user.as_ref();
    Owner {
        user_id: user.map(|u| u.id.clone()).unwrap_or_default(),
        address: correspondent.address.to_string(),
        name: user.and_then(|u| u.name.clone()).or_else(|| correspondent.name.clone()),
    }
}

/// Gives everybody one place: by address, and by who they are, because a person may have several addresses.
struct Seats<'a> {
    customers: &'a BTreeSet<&'a str>,
    owner: usize,
    taken: HashSet<String>,
    participants: Vec<Participant>,
}

impl Seats<'_> {
    fn place(&mut self, index: usize, correspondent: &Correspondent, person: &Person) -> Role {
        let role = |role, why: String| Role {
            address: correspondent.address.to_string(),
            field: correspondent.field,
            role,
            why,
        };
        if let Some(user) = &person.user {
            let also = if person.contacts.is_empty() {
                ""
            } else {
                "; also a contact, but a user counts as a user only"
            };
            if index == self.owner {
                let why = match correspondent.field {
                    Field::From => "the sender is a user",
                    _ => "the sender is no user, and this is the first user among the recipients",
                };
                return role("owner", format!("user {}: {why}{also}", user.id));
            }
            if !self.taken.insert(format!("user {}", user.id)) {
                return role("none", format!("user {} is listed already, by another address", user.id));
            }
            self.sit(correspondent, Kind::User, Some(&user.id), None, user.name.as_ref());
            return role("user", format!("user {}{also}", user.id));
        }
        match person.contacts.first() {
            Some(contact) if self.customers.len() == 1 => {
                if !self.taken.insert(format!("contact {}", contact.id)) {
                    return role(
                        "none",
                        format!("contact {} is listed already, by another address", contact.id),
                    );
                }
                let customer = Some(contact.customer_id.as_str());
                self.sit(correspondent, Kind::Contact, Some(&contact.id), customer, contact.name.as_ref());
                role("contact", format!("contact {} of customer {}", contact.id, contact.customer_id))
            }
            Some(contact) => {
                if !self.taken.insert(format!("contact {}", contact.id)) {
                    return role(
                        "none",
                        format!("contact {} is listed already, by another address", contact.id),
                    );
                }
                self.sit(correspondent, Kind::External, None, None, contact.name.as_ref());
                let customers = self.customers.iter().copied().collect::<Vec<_>>().join(", ");
                role(
                    "external",
                    format!(
                        "contact {}, but the contacts belong to several customers ({customers})",
                        contact.id
                    ),
                )
            }
            None => {
                self.sit(correspondent, Kind::External, None, None, None);
                role("external", "neither a user nor a contact".to_owned())
            }
        }
    }

    fn sit(
        &mut self,
        correspondent: &Correspondent,
        kind: Kind,
        id: Option<&str>,
        customer_id: Option<&str>,
        name: Option<&String>,
    ) {
        self.participants.push(Participant {
            kind,
            id: id.map(str::to_owned),
            customer_id: customer_id.map(str::to_owned),
            address: correspondent.address.to_string(),
            name: name.or(correspondent.name.as_ref()).cloned(),
            field: correspondent.field,
        });
    }
}
