//! The decision.

use super::{
    reply::{Reason, Reply},
    words::{Case, Correspondent, Mixed, Part, Party, Person, Record, Role, Target, Verdict},
};
use crate::activity::{CustomerRef, Field, Kind, Owner, Participant, Parties, ProjectRef, TenantRef};
use crate::mail::{self, Head};
use std::collections::{BTreeSet, HashSet};

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
    let people = case
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
    Record { parties, people }
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
    fn place(&mut self, index: usize, correspondent: &Correspondent, person: &Person) -> Part {
        let role = |role, why: String| Part {
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
                return role(Role::Owner, format!("user {}: {why}{also}", user.id));
            }
            if !self.taken.insert(format!("user {}", user.id)) {
                return role(Role::None, format!("user {} is listed already, by another address", user.id));
            }
            self.sit(correspondent, Kind::User, Some(&user.id), None, user.name.as_ref());
            return role(Role::User, format!("user {}{also}", user.id));
        }
        match person.contacts.first() {
            Some(contact) if self.customers.len() == 1 => {
                if !self.taken.insert(format!("contact {}", contact.id)) {
                    return role(
                        Role::None,
                        format!("contact {} is listed already, by another address", contact.id),
                    );
                }
                let customer = Some(contact.customer_id.as_str());
                self.sit(correspondent, Kind::Contact, Some(&contact.id), customer, contact.name.as_ref());
                role(Role::Contact, format!("contact {} of customer {}", contact.id, contact.customer_id))
            }
            Some(contact) => {
                if !self.taken.insert(format!("contact {}", contact.id)) {
                    return role(
                        Role::None,
                        format!("contact {} is listed already, by another address", contact.id),
                    );
                }
                self.sit(correspondent, Kind::External, None, None, contact.name.as_ref());
                let customers = self.customers.iter().copied().collect::<Vec<_>>().join(", ");
                role(
                    Role::External,
                    format!(
                        "contact {}, but the contacts belong to several customers ({customers})",
                        contact.id
                    ),
                )
            }
            None => {
                self.sit(correspondent, Kind::External, None, None, None);
                role(Role::External, "neither a user nor a contact".to_owned())
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
