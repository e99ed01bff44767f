//! The decision.

use super::{
    policy::{Answer, Discard, Internal, TenantPolicy, Treatment},
    reply::{Reason, Reply, Texts},
    words::{
        Case, Contact, Correspondent, Correspondents, Mixed, Part, Party, Person, Record, Role, Standing,
        Target, User, Verdict,
    },
};
use crate::activity::{
    CustomerRef, Field, Kind, NOTICE_ID, Owner, Participant, Parties, ProjectRef, TenantRef,
};
use crate::mail::{self, Address, Automatic, Head};
use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

/// What is decided before anybody is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The message is refused.
    Refused(Reason),
    /// It is taken, and nothing becomes of it.
    Discarded(Discard),
}

/// What a tenant's policy and the head alone decide; nothing, if the people count.
///
/// The policy comes first: to refuse a machine's mail for its head makes another machine's mail.
/// `is_private`: it names somebody of `never_log`.
pub fn settled(
    policy: &TenantPolicy,
    head: &Head,
    automatic: Option<Automatic>,
    is_private: bool,
) -> Option<Settled> {
    if is_private {
        return Some(unrecorded(policy, Reason::NeverLog, Discard::NeverLog));
    }
    if head.message_id.as_deref().is_some_and(|id| id.starts_with(NOTICE_ID)) {
        return Some(Settled::Discarded(Discard::OwnNotice));
    }
    if let Some(kind) = automatic {
        match policy.treatment(kind) {
            Treatment::Refuse => return Some(Settled::Refused(Reason::Automatic)),
            Treatment::Discard => return Some(Settled::Discarded(Discard::Automatic(kind))),
            Treatment::Accept => {}
        }
    }
    check_head(head).map(Settled::Refused)
}

/// What is not to be recorded.
fn unrecorded(policy: &TenantPolicy, refused: Reason, discarded: Discard) -> Settled {
    match policy.answer {
        Answer::Refuse => Settled::Refused(refused),
        Answer::Discard => Settled::Discarded(discarded),
    }
}

/// Checks what holds for the message whatever its tenants are: a readable sender and a subject.
fn check_head(head: &Head) -> Option<Reason> {
    if head.from_fields > 1 || head.from_is_ambiguous {
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
    let (mut refused, mut discarded) = (Vec::new(), Vec::new());
    for party in case.parties {
        let Some(first) = party.targets.first() else { continue };
        let tenant = first.tenant.id.clone();
        match decide_for(case, party, first) {
            Judged::Recorded(mut new) => records.append(&mut new),
            Judged::Refused(reply) => refused.push((tenant, reply)),
            Judged::Discarded(why) => discarded.push((tenant, why)),
        }
    }
    let something_remains = case.other_recipients || !records.is_empty();
    let as_a_whole = match case.mixed {
        Mixed::Reject => true,
        Mixed::Strip => !something_remains,
        Mixed::Each => false,
    };
    // A reply that says why nothing is to be recorded goes first: then nothing else is said of the message either.
    let private = refused.iter().find(|(_, reply)| reply.reason.is_private());
    match private.or(refused.first()) {
        Some((_, reply)) if as_a_whole => Verdict::Refuse(reply.clone()),
        _ => Verdict::Record { records, refused, discarded },
    }
}

/// What becomes of one tenant's part of the message.
enum Judged {
    Recorded(Vec<Record>),
    Refused(Reply),
    Discarded(Discard),
}

/// One tenant's part of the message: an activity for each project, or one without.
fn decide_for(case: &Case<'_>, party: &Party<'_>, first: &Target) -> Judged {
    let Correspondents { people, omitted, .. } = case.correspondents;
    let refused = |reason| {
        Judged::Refused(reply_to(case.texts, reason, &first.address, case.automatic, people.len(), *omitted))
    };
    let policy = first.tenant.policy.over(case.policy);
    let without = |settled| match settled {
        Settled::Refused(reason) => refused(reason),
        Settled::Discarded(why) => Judged::Discarded(why),
    };
    if let Some(settled) = settled(&policy, case.head, case.automatic, party.is_private) {
        return without(settled);
    }
    let Some(owner) = owner_of(case.correspondents, party.people) else { return refused(Reason::NoUser) };
    // Made once, however many projects there are.
    let cast = Cast::of(case, party, &owner);
    if policy.internal == Internal::Skip && cast.is_internal(case.correspondents) {
        return without(unrecorded(&policy, Reason::Internal, Discard::Internal));
    }
    Judged::Recorded(distinct(party.targets).into_iter().map(|target| cast.record(target, &owner)).collect())
}

/// The reply to a message that is refused for this reason. Where nobody is a user and not all were looked at, the text says
/// so: only the first `looked_up`, and `omitted` not. It names the kind of automatic mail.
pub fn reply_to(
    texts: &Texts,
    reason: Reason,
    address: &Address,
    automatic: Option<Automatic>,
    looked_up: usize,
    omitted: usize,
) -> Reply {
    let note = match reason {
        Reason::NoUser if omitted > 0 => format!("only the first {looked_up} people were looked up"),
        Reason::Automatic => automatic.map_or("", Automatic::as_str).to_owned(),
        _ => String::new(),
    };
    texts.reply_noting(reason, Some(address), &note)
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

/// The user who owns.
struct OwningUser<'a> {
    correspondent: &'a Correspondent,
    user: &'a User,
}

/// The first user in the order of [`super::correspondents()`]: who may be the sender comes first in it, so the first of
/// them who is a user counts as the sender, and else the first user among the recipients owns.
fn owner_of<'a>(correspondents: &'a Correspondents, people: &'a [Person]) -> Option<OwningUser<'a>> {
    let mut both = correspondents.people.iter().zip(people);
    both.find_map(|(correspondent, person)| {
        person.user.as_ref().map(|user| OwningUser { correspondent, user })
    })
}

/// Everybody's place in the activities of one tenant.
struct Cast<'a> {
    customers: BTreeSet<&'a str>,
    people_omitted: usize,
    automatic: Option<Automatic>,
    participants: Arc<[Participant]>,
    parts: Arc<[Part]>,
}

impl<'a> Cast<'a> {
    fn of(case: &Case<'a>, party: &Party<'a>, owner: &OwningUser<'_>) -> Self {
        let people = || case.correspondents.people.iter().zip(party.people);
        let customers: BTreeSet<&str> = people()
            .filter(|(correspondent, person)| person.user.is_none() && counts_as_contact(correspondent))
            .flat_map(|(_, person)| person.contacts.iter().map(|contact| contact.customer_id.as_str()))
            .collect();
        let omitted = case.correspondents.omitted;
        let mut seats =
            Seats { customers: &customers, omitted, owner, taken: HashSet::new(), participants: Vec::new() };
        // The owner sits first, so that a second address of the same user finds the seat taken.
        seats.taken.insert(format!("user {}", owner.user.id));
        let parts = people().map(|(correspondent, person)| seats.place(correspondent, person)).collect();
        let participants = seats.participants.into();
        Self { customers, people_omitted: omitted, automatic: case.automatic, participants, parts }
    }

    /// True if all people are users. Who was not looked up, or cannot be read, may be anybody.
    fn is_internal(&self, correspondents: &Correspondents) -> bool {
        correspondents.omitted == 0
            && correspondents.skipped == 0
            && self.participants.iter().all(|participant| participant.kind == Kind::User)
    }

    fn record(&self, target: &Target, owner: &OwningUser<'_>) -> Record {
        // Among those who were omitted there may be contacts of another customer.
        let contact_customer = match (self.customers.len(), self.people_omitted) {
            (1, 0) => self.customers.first().map(|id| (*id).to_owned()),
            _ => None,
        };
        // The project's customer counts only where no contact says otherwise.
        let project_customer = target.project.as_ref().and_then(|p| p.customer.clone());
        let customer = if self.customers.is_empty() { project_customer } else { contact_customer };
        let parties = Parties {
            tenant: TenantRef { id: target.tenant.id.clone(), prefix: target.tenant.prefix.clone() },
            activity_type: target.tenant.activity_type.clone(),
            owner: Owner {
                user_id: owner.user.id.clone(),
                address: owner.correspondent.address.to_string(),
                name: owner.user.name.clone().or_else(|| owner.correspondent.name.clone()),
            },
            participants: Arc::clone(&self.participants),
            people_omitted: self.people_omitted,
            automatic: self.automatic,
            customer: customer.map(|id| CustomerRef { id }),
            project: target
                .project
                .as_ref()
                .map(|p| ProjectRef { id: p.id.clone(), number: p.number.clone() }),
        };
        Record { parties, people: Arc::clone(&self.parts) }
    }
}

/// A login or an envelope sender is somebody only as a user.
fn counts_as_contact(correspondent: &Correspondent) -> bool {
    correspondent.standing != Standing::SenderIfUser || correspondent.listed.is_some()
}

/// Gives everybody one place: by address, and by who they are, because a person may have several addresses.
struct Seats<'a> {
    customers: &'a BTreeSet<&'a str>,
    omitted: usize,
    owner: &'a OwningUser<'a>,
    taken: HashSet<String>,
    participants: Vec<Participant>,
}

impl Seats<'_> {
    fn place(&mut self, correspondent: &Correspondent, person: &Person) -> Part {
        let (field, role, why) = match (&person.user, person.contacts.first()) {
            (Some(user), contact) => self.user(correspondent, user, contact.is_some()),
            (None, Some(contact)) if counts_as_contact(correspondent) => self.contact(correspondent, contact),
            (None, _) => self.stranger(correspondent),
        };
        Part { address: correspondent.address.to_string(), field, role, why }
    }

    fn user(
        &mut self,
        correspondent: &Correspondent,
        user: &User,
        is_contact: bool,
    ) -> (Field, Role, String) {
        // Who is a recipient too is listed as one, but for those whom a Sender field names.
        let is_owner = std::ptr::eq(correspondent, self.owner.correspondent);
        let field = match (correspondent.standing, correspondent.listed) {
            (Standing::SenderIfUser, Some(listed)) if !is_owner => listed,
            _ => correspondent.field,
        };
        let also = if is_contact { "; also a contact, but a user counts as a user only" } else { "" };
        if is_owner {
            let why = match (correspondent.standing, field) {
                (Standing::Recipient, _) => {
                    "the sender is no user, and this is the first user among the recipients"
                }
                (Standing::Sender, _) => "the sender is a user",
                (Standing::SenderIfKnown, _) => "From is no user, and who sent it for him is",
                (Standing::SenderIfUser, _) => "From is no user, and the login or envelope sender is",
            };
            return (field, Role::Owner, format!("user {}: {why}{also}", user.id));
        }
        if !self.taken.insert(format!("user {}", user.id)) {
            return (field, Role::None, format!("user {} is listed already, by another address", user.id));
        }
        self.sit(correspondent, field, Kind::User, Some(&user.id), None, user.name.as_ref());
        (field, Role::User, format!("user {}{also}", user.id))
    }

    fn contact(&mut self, correspondent: &Correspondent, contact: &Contact) -> (Field, Role, String) {
        let field = match correspondent.standing {
            Standing::SenderIfUser => correspondent.listed.unwrap_or(correspondent.field),
            _ => correspondent.field,
        };
        let id = &contact.id;
        if !self.taken.insert(format!("contact {id}")) {
            return (field, Role::None, format!("contact {id} is listed already, by another address"));
        }
        if self.omitted > 0 {
            self.sit(correspondent, field, Kind::External, None, None, contact.name.as_ref());
            let why = format!("contact {id}, but not all people were looked up, and no customer is linked");
            return (field, Role::External, why);
        }
        if self.customers.len() == 1 {
            let customer = Some(contact.customer_id.as_str());
            self.sit(correspondent, field, Kind::Contact, Some(id), customer, contact.name.as_ref());
            return (field, Role::Contact, format!("contact {id} of customer {}", contact.customer_id));
        }
        self.sit(correspondent, field, Kind::External, None, None, contact.name.as_ref());
        let customers = self.customers.iter().copied().collect::<Vec<_>>().join(", ");
        let why = format!("contact {id}, but the contacts belong to several customers ({customers})");
        (field, Role::External, why)
    }

    fn stranger(&mut self, correspondent: &Correspondent) -> (Field, Role, String) {
        match correspondent.listed {
            Some(field) => {
                self.sit(correspondent, field, Kind::External, None, None, None);
                (field, Role::External, "neither a user nor a contact".to_owned())
            }
            None => {
                let why = match correspondent.standing {
                    Standing::SenderIfUser => "a login or envelope sender counts only as a user",
                    _ => "neither a user nor a contact, and named only as who sent it for another",
                };
                (correspondent.field, Role::None, why.to_owned())
            }
        }
    }

    fn sit(
        &mut self,
        correspondent: &Correspondent,
        field: Field,
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
            field,
        });
    }
}
