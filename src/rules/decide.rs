//! The decision.

use super::{
    evidence::{Claim, Evidence, Place, Proof},
    policy::{Answer, Discard, Internal, Require, TenantPolicy, Treatment},
    reply::{Reason, Reply, Texts},
    words::{
        Candidate, Case, Contact, Correspondent, Correspondents, Mixed, Part, Party, Person, Record, Role,
        Standing, Target, User, Verdict,
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
    // Whoever reads our notices: there is nobody to refuse them to.
    if head.message_id.as_deref().is_some_and(|id| id.starts_with(NOTICE_ID)) {
        return Some(Settled::Discarded(Discard::OwnNotice));
    }
    if is_private {
        return Some(unrecorded(policy, Reason::NeverLog, Discard::NeverLog));
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
    // What is refused for now would be lost, if the rest went on without it.
    let for_now = |(_, reply): &&(String, Reply)| case.mixed == Mixed::Strip && reply.code < 500;
    let whole = private.or(refused.first()).filter(|_| as_a_whole);
    match whole.or_else(|| refused.iter().find(for_now)) {
        Some((_, reply)) => Verdict::Refuse {
            is_private: private.is_some() || discarded.iter().any(|(_, why)| why.is_private()),
            reply: reply.clone(),
        },
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
    let skips = policy.internal == Internal::Skip && is_internal(case, party);
    let owner = match owner_of(case, party, &policy) {
        // Whatever may yet prove the sender: nothing is recorded, so nobody is asked, and nothing is kept meanwhile.
        Ok(_) | Err(Ownerless::Unverified) if skips => {
            return without(unrecorded(&policy, Reason::Internal, Discard::Internal));
        }
        Ok(owner) => owner,
        Err(Ownerless::NoUser) => return refused(Reason::NoUser),
        Err(Ownerless::NotAuthenticated) => return refused(Reason::NotAuthenticated),
        Err(Ownerless::Unverified) => return refused(Reason::SenderUnverified),
    };
    // Made once, however many projects there are.
    let cast = Cast::of(case, party, &owner);
    Judged::Recorded(distinct(party.targets).into_iter().map(|target| cast.record(target, &owner)).collect())
}

/// True if all people are users. Who was not looked up, cannot be read, or stood where Postfix cut, may be anybody.
fn is_internal(case: &Case<'_>, party: &Party<'_>) -> bool {
    let Correspondents { people, omitted, skipped, .. } = case.correspondents;
    let is_outside = |(correspondent, person): (&Correspondent, &Person)| {
        let is_contact = !person.contacts.is_empty() && counts_as_contact(correspondent);
        person.user.is_none() && (is_contact || correspondent.listed.is_some())
    };
    *omitted == 0
        && *skipped == 0
        && case.head.cut_fields == 0
        && !people.iter().zip(party.people).any(is_outside)
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
    sender: Sender,
    /// Users who may be the sender, before him: indexes among the people.
    passed_over: Vec<usize>,
}

/// What is known of who sent it.
enum Sender {
    /// Nobody asked.
    Unasked,
    /// Proven to be who he says.
    Proven(Proof),
    /// No user, and nothing proves who he is.
    Unproven,
}

impl Sender {
    /// For `explain`.
    fn in_words(&self) -> String {
        match self {
            Self::Unasked => String::new(),
            Self::Proven(proof) => format!("; the sender is authenticated: {proof}"),
            Self::Unproven => "; nothing proves who the sender is".to_owned(),
        }
    }

    fn is_authenticated(&self) -> Option<bool> {
        match self {
            Self::Unasked => None,
            Self::Proven(_) => Some(true),
            Self::Unproven => Some(false),
        }
    }
}

impl OwningUser<'_> {
    /// What a user is told who was passed over as the sender.
    fn note_on(&self, index: usize, role: Role) -> &'static str {
        match role != Role::Owner && self.passed_over.contains(&index) {
            true => "; nothing proves that he sent it, so he does not count as the sender",
            false => "",
        }
    }
}

/// Why nobody owns.
enum Ownerless {
    NoUser,
    /// Who may be the sender is a user, if it is him.
    NotAuthenticated,
    /// The same, and what is not known now may prove it.
    Unverified,
}

/// Who may be the sender is asked first, in the order of [`super::correspondents()`]: the first of them who is a user
/// counts as the sender, and else the first user among the recipients owns. Where the tenant asks for it, a user who may
/// be the sender is passed over unless it is proven to be him.
fn owner_of<'a>(
    case: &Case<'a>,
    party: &Party<'a>,
    policy: &TenantPolicy,
) -> Result<OwningUser<'a>, Ownerless> {
    let people = case.correspondents.people.iter().zip(party.people);
    let first = people.clone().find_map(|(c, person)| person.user.as_ref().map(|user| (c, user)));
    if policy.require == Require::None {
        let (correspondent, user) = first.ok_or(Ownerless::NoUser)?;
        return Ok(OwningUser { correspondent, user, sender: Sender::Unasked, passed_over: Vec::new() });
    }
    let proofs = Proofs::of(case, party);
    let (mut passed_over, senders) = (Vec::new(), &case.correspondents.senders);
    for candidate in senders {
        let found = case.correspondents.people.get(candidate.person).zip(party.people.get(candidate.person));
        let Some((correspondent, Person { user: Some(user), .. })) = found else { continue };
        if let Some(proof) = proofs.of_candidate(candidate) {
            return Ok(OwningUser { correspondent, user, sender: Sender::Proven(proof), passed_over });
        }
        // Whoever comes after him: an activity would have the wrong owner.
        if proofs.may_come(candidate) {
            return Err(Ownerless::Unverified);
        }
        passed_over.push(candidate.person);
    }
    if !passed_over.is_empty() {
        return Err(Ownerless::NotAuthenticated);
    }
    let (correspondent, user) = first.ok_or(Ownerless::NoUser)?;
    // Who sent it is the first who is named so, and no user.
    let proof = senders.first().and_then(|candidate| proofs.of_candidate(candidate));
    Ok(OwningUser {
        correspondent,
        user,
        sender: proof.map_or(Sender::Unproven, Sender::Proven),
        passed_over,
    })
}

/// What is proven of the senders, as one tenant sees it.
struct Proofs<'a> {
    evidence: &'a Evidence,
    correspondents: &'a Correspondents,
    people: &'a [Person],
    /// The user who is logged in.
    login: Option<&'a str>,
}

impl<'a> Proofs<'a> {
    fn of(case: &Case<'a>, party: &Party<'a>) -> Self {
        let Correspondents { people, senders, .. } = case.correspondents;
        let is_login = |candidate: &&Candidate| {
            let named = people.get(candidate.person).map(|correspondent| &correspondent.address);
            candidate.place == Place::Login && named == case.evidence.login_address()
        };
        let login = senders.iter().find(is_login);
        let (correspondents, people) = (case.correspondents, party.people);
        let login = login.and_then(|candidate| user_id(people, candidate.person));
        Self { evidence: case.evidence, correspondents, people, login }
    }

    fn of_candidate(&self, candidate: &Candidate) -> Option<Proof> {
        self.evidence.proof(&self.claim(candidate)?)
    }

    /// True if what is not known now may prove it.
    fn may_come(&self, candidate: &Candidate) -> bool {
        self.claim(candidate).is_some_and(|claim| self.evidence.may_come(&claim))
    }

    fn claim(&self, candidate: &Candidate) -> Option<Claim<'a>> {
        let Candidate { person, place } = *candidate;
        let address = &self.correspondents.people.get(person)?.address;
        Some(Claim { place, address, user: user_id(self.people, person), login: self.login })
    }
}

fn user_id(people: &[Person], index: usize) -> Option<&str> {
    people.get(index)?.user.as_ref().map(|user| user.id.as_str())
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
        let mut parts: Vec<Part> =
            people().map(|(correspondent, person)| seats.place(correspondent, person)).collect();
        for (index, part) in parts.iter_mut().enumerate() {
            part.why += owner.note_on(index, part.role);
        }
        let parts = parts.into();
        let participants = seats.participants.into();
        Self { customers, people_omitted: omitted, automatic: case.automatic, participants, parts }
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
            sender_authenticated: owner.sender.is_authenticated(),
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
            let proof = self.owner.sender.in_words();
            return (field, Role::Owner, format!("user {}: {why}{also}{proof}", user.id));
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
