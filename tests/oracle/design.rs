//! What becomes of a message, said once more: from the design (its sections 1, 4, 6 and 7, appendix C) and the pages of
//! promises (W1, W4, W6, D6, D9, D11), not from the code.
//!
//! In: a [`Message`], the [`Tenant`]s it goes to, and the [`Settings`]. Out: a [`Fate`]. Fails: never.
//!
//! It is written to be read beside those pages, one sentence after the other, and asks everything anew each time.

use std::collections::BTreeSet;

pub type Address = &'static str;

/// The integration domain.
pub const OURS: &str = "@severamail.test";

/// Where an address stands, in the order in which the design names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    From,
    Sender,
    To,
    Cc,
    Bcc,
    Recipient,
    Login,
    EnvelopeSender,
}

/// A message: who stands where, those first who may be its sender (From, Sender, login, envelope sender).
#[derive(Clone, Debug, Default)]
pub struct Message {
    pub places: Vec<(Place, Address)>,
    pub has_subject: bool,
    pub has_two_froms: bool,
    pub automatic: Option<Automatic>,
    pub proof: Proof,
}

/// What a program wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Automatic {
    OurNotice,
    Accepted,
    Refused,
    Discarded,
}

/// What there is that proves who sent it, beside a login.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Proof {
    #[default]
    Nothing,
    /// The client is in a trusted network.
    Network,
    /// A name server does not say now whether the signature of From's and Sender's domain is good.
    MayCome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Known {
    User(&'static str),
    /// Ids of the contact, each with its customer's.
    Contact(&'static [(&'static str, &'static str)]),
    Nobody,
}

/// A project: its number, and its customer.
pub type Project = (&'static str, Option<&'static str>);

#[derive(Clone, Debug)]
pub struct Tenant {
    pub id: &'static str,
    pub who: fn(Address) -> Known,
    /// One for each recipient; none for the bare address.
    pub targets: Vec<Option<Project>>,
    /// The message names somebody of `never_log`.
    pub is_private: bool,
    pub skips_internal: bool,
    pub discards: bool,
    pub wants_proof: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mixed {
    Reject,
    Strip,
    Each,
}

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub mixed: Mixed,
    pub has_others: bool,
    pub max_people: usize,
}

/// Kind, id, customer, address, field.
pub type Participant<'a> = (&'a str, Option<&'a str>, Option<&'a str>, &'a str, &'a str);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activity<'a> {
    pub tenant: &'a str,
    pub project: Option<&'a str>,
    pub owner: (&'a str, &'a str),
    pub participants: Vec<Participant<'a>>,
    pub customer: Option<&'a str>,
    pub is_authenticated: Option<bool>,
    pub omitted: usize,
}

/// What becomes of it. Tenants come with the code of the reply, or of why nothing becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate<'a> {
    Refused(&'a str, bool),
    Taken {
        activities: Vec<Activity<'a>>,
        refused: Vec<(&'a str, &'a str)>,
        discarded: Vec<(&'a str, &'a str)>,
    },
}

enum Part {
    Recorded(Vec<Activity<'static>>),
    Refused(&'static str),
    Discarded(&'static str),
}

/// The fate of a message.
pub fn fate(message: &Message, tenants: &[Tenant], settings: Settings) -> Fate<'static> {
    let (mut activities, mut refused, mut discarded) = (Vec::new(), Vec::new(), Vec::new());
    for tenant in tenants {
        match part(message, tenant, settings) {
            Part::Recorded(more) => activities.extend(more),
            Part::Refused(why) => refused.push((tenant.id, why)),
            Part::Discarded(why) => discarded.push((tenant.id, why)),
        }
    }
    // Section 4, mixed transactions; RFC 2033 for LMTP. What waits would be lost, if the rest went on without it.
    let is_private = |why: &str| matches!(why, "never-log" | "internal");
    let of_whole = match settings.mixed {
        Mixed::Reject => true,
        Mixed::Strip => !settings.has_others && activities.is_empty(),
        Mixed::Each => false,
    };
    let waits = |why: &str| settings.mixed == Mixed::Strip && why == "sender-unverified";
    let mut said = refused.clone();
    said.sort_by_key(|(_, why)| !is_private(why)); // D9: it is the first to be said
    match said.iter().find(|(_, why)| of_whole || waits(why)) {
        Some((_, why)) => {
            Fate::Refused(why, refused.iter().chain(&discarded).any(|(_, why)| is_private(why)))
        }
        None => Fate::Taken { activities, refused, discarded },
    }
}

/// One tenant's part of it.
fn part(message: &Message, tenant: &Tenant, settings: Settings) -> Part {
    let unrecorded = |why| if tenant.discards { Part::Discarded(why) } else { Part::Refused(why) };
    // D6, D9, D11: what policy and head decide goes before what the people decide.
    match message.automatic {
        Some(Automatic::OurNotice) => return Part::Discarded("own-notice"),
        _ if tenant.is_private => return unrecorded("never-log"),
        Some(Automatic::Refused) => return Part::Refused("automatic"),
        Some(Automatic::Discarded) => return Part::Discarded("automatic"),
        Some(Automatic::Accepted) | None => {}
    }
    // Section 6.
    if message.has_two_froms {
        return Part::Refused("ambiguous-from");
    }
    if !message.has_subject {
        return Part::Refused("no-subject");
    }
    // Section 4: only so many are looked up. "Integration addresses never become participants, and nobody is listed twice."
    let mut people: Vec<Address> = Vec::new();
    let mut others = BTreeSet::new();
    for &(_, address) in message.places.iter().filter(|(_, address)| !address.ends_with(OURS)) {
        if !people.contains(&address) {
            match people.len() < settings.max_people {
                true => people.push(address),
                false => others.extend([address]),
            }
        }
    }
    let names_a_sender = message.places.iter().any(|(place, _)| *place < Place::To);
    // "From is a person of the activity; the others only if the directory knows them (login and envelope sender: as
    // users)." Where neither From nor Sender names anybody, the envelope sender is From (appendix C, `from`).
    let field = |address: Address| {
        let takes_part = |place: Place| match (place, (tenant.who)(address)) {
            (Place::Sender, Known::Nobody) | (Place::Login, Known::Nobody | Known::Contact(_)) => None,
            (Place::EnvelopeSender, _) if !names_a_sender => Some(Place::From),
            (Place::EnvelopeSender, Known::Nobody | Known::Contact(_)) => None,
            (place, _) => Some(place),
        };
        let places = message.places.iter().filter(|(_, other)| *other == address);
        places.filter_map(|(place, _)| takes_part(*place)).min()
    };
    let user = |address: Address| match (tenant.who)(address) {
        Known::User(id) => Some(id),
        Known::Contact(_) | Known::Nobody => None,
    };
    // Section 1, "who sent it", and W1, W4, W6.
    let is_sender =
        |place: Place| matches!(place, Place::From | Place::Sender | Place::Login | Place::EnvelopeSender);
    let is_known = |(_, address): &&(Place, Address)| people.contains(address);
    let senders: Vec<_> =
        message.places.iter().filter(is_known).filter(|(place, _)| is_sender(*place)).collect();
    let recipients = message.places.iter().filter(is_known).filter(|(place, _)| !is_sender(*place));
    let login =
        senders.iter().find(|(place, _)| *place == Place::Login).and_then(|(_, address)| user(address));
    let is_proven =
        |address| message.proof == Proof::Network || user(address).is_some_and(|user| login == Some(user));
    let mut sender = None;
    let mut is_passed_over = false;
    for &&(place, address) in senders.iter().filter(|(_, address)| user(address).is_some()) {
        if !tenant.wants_proof || is_proven(address) {
            sender = Some(address);
            break;
        }
        if message.proof == Proof::MayCome && place < Place::To && address.ends_with("@mycompany.test") {
            return match tenant.skips_internal && is_internal(tenant, &people, &others, &field) {
                true => unrecorded("internal"),
                false => Part::Refused("sender-unverified"),
            };
        }
        is_passed_over = true;
    }
    if sender.is_none() && is_passed_over {
        return Part::Refused("not-authenticated");
    }
    let first = recipients.map(|(_, address)| *address).find(|address| user(address).is_some());
    let Some(owner) = sender.or(first) else { return Part::Refused("no-user") };
    if tenant.skips_internal && is_internal(tenant, &people, &others, &field) {
        return unrecorded("internal");
    }
    let is_authenticated = match sender {
        Some(_) => true,
        None => senders.first().is_some_and(|(_, address)| is_proven(address)),
    };
    // Contacts: of one customer, or external participants.
    let contacts = |address| match ((tenant.who)(address), field(address)) {
        (Known::Contact(contacts), Some(_)) => contacts,
        _ => &[],
    };
    let customers: BTreeSet<&str> =
        people.iter().flat_map(|a| contacts(a)).map(|(_, customer)| *customer).collect();
    let links = customers.len() == 1 && others.is_empty();
    let mut listed = BTreeSet::from([(tenant.who)(owner)]);
    let mut participants = Vec::new();
    for &address in &people {
        let Some(field) = field(address) else { continue };
        let known = (tenant.who)(address);
        if known != Known::Nobody && !listed.insert(known) {
            continue;
        }
        let field = in_words(field);
        participants.push(match known {
            Known::User(id) => ("user", Some(id), None, address, field),
            Known::Contact(ids) if links => ("contact", Some(ids[0].0), Some(ids[0].1), address, field),
            Known::Contact(_) | Known::Nobody => ("external", None, None, address, field),
        });
    }
    // "The bare address adds nothing beside a project address of the same tenant."
    let mut projects: Vec<Option<Project>> = Vec::new();
    for target in &tenant.targets {
        let is_covered = target.is_none() && tenant.targets.iter().any(Option::is_some);
        if !is_covered && !projects.contains(target) {
            projects.push(*target);
        }
    }
    let activity = |project: Option<Project>| Activity {
        tenant: tenant.id,
        project: project.map(|(number, _)| number),
        owner: (user(owner).unwrap_or_default(), owner),
        participants: participants.clone(),
        // Appendix C: the project's, where no contact says otherwise.
        customer: match customers.is_empty() {
            true => project.and_then(|(_, customer)| customer),
            false => customers.first().copied().filter(|_| links),
        },
        is_authenticated: tenant.wants_proof.then_some(is_authenticated),
        omitted: others.len(),
    };
    Part::Recorded(projects.into_iter().map(activity).collect())
}

/// Mail among users alone: whoever takes part is one, and nobody was left out (D9).
fn is_internal(
    tenant: &Tenant,
    people: &[Address],
    others: &BTreeSet<Address>,
    field: &impl Fn(Address) -> Option<Place>,
) -> bool {
    let is_user = |address| matches!((tenant.who)(address), Known::User(_));
    others.is_empty() && people.iter().all(|address| is_user(*address) || field(address).is_none())
}

fn in_words(place: Place) -> &'static str {
    match place {
        Place::From => "from",
        Place::Sender => "sender",
        Place::To => "to",
        Place::Cc => "cc",
        Place::Bcc => "bcc",
        Place::Recipient | Place::Login | Place::EnvelopeSender => "envelope",
    }
}
