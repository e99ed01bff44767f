//! The rules against an oracle: every message of a small world, and both say the same.
//!
//! The oracle (`design`) is written from the design, and shares no line with the rules. The world is as small as lets each
//! sentence matter: two companies that know the same people differently; a user and a contact with two addresses each, a
//! contact of two customers, somebody unknown, an address of ours. Who stands where is one product of all places; what
//! policies say is another, with fewer people. Heads are written and parsed, so that the way there is the product's too.
//! A debug build takes every eleventh message of the first and every seventh of the second; `make torture-model` takes all.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "oracle/design.rs"]
mod design;

use activity_milter::{
    activity::{Kind, NOTICE_ID},
    mail::{self, Envelope, Head, Intake, Recipient},
    rules::{
        Addressing, Answer, Case, Contact, Correspondents, Discard, Evidence, Internal, Party, Person,
        Project as Linked, Require, Target, Tenant as Company, TenantPolicy, Texts, Treatment, Trust, User,
        Verdict, Wish, correspondents, decide,
    },
};
use design::{
    Activity, Address, Automatic, Fate, Known, Message, Mixed, Place, Project, Proof, Settings, Tenant, fate,
};
use std::{
    ffi::CString,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

const ANNA: &str = "anna@mycompany.test";
const ANNA_TOO: &str = "anna.aalto@mycompany.test";
const ESA: &str = "esa@mycompany.test";
const BO: &str = "bo@acme.test";
const BO_TOO: &str = "bo@home.test";
const CY: &str = "cy@globex.test";
const DI: &str = "di@both.test";
const X: &str = "x@nowhere.test";
const OURS: &str = "second@severamail.test";

/// Who they are to the first company.
fn mine(address: Address) -> Known {
    match address {
        ANNA | ANNA_TOO => Known::User("u-anna"),
        ESA => Known::User("u-esa"),
        BO | BO_TOO => Known::Contact(&[("k-bo", "c-acme")]),
        CY => Known::Contact(&[("k-cy", "c-globex")]),
        DI => Known::Contact(&[("k-di", "c-acme"), ("k-di-too", "c-globex")]),
        _ => Known::Nobody,
    }
}

/// And to the second.
fn theirs(address: Address) -> Known {
    match address {
        BO => Known::User("u-bo"),
        ANNA | ANNA_TOO => Known::Contact(&[("k-anna", "c-my")]),
        _ => Known::Nobody,
    }
}

const ROLL_OUT: Option<Project> = Some(("1001", Some("c-acme")));
const UPKEEP: Option<Project> = Some(("1002", None));

/// Where recipients of ours lead.
type Targets = &'static [Option<Project>];

/// To the first company, and to the second.
const TARGETS: [(Targets, Targets); 6] = [
    (&[None], &[]),
    (&[ROLL_OUT], &[]),
    (&[None, ROLL_OUT, UPKEEP, ROLL_OUT], &[]),
    (&[None], &[None]),
    (&[UPKEEP], &[None]),
    (&[], &[None, None]),
];

fn tenants(targets: usize, alike: &Tenant) -> Vec<Tenant> {
    let (first, second) = TARGETS[targets];
    let tenant = |id, who, targets: &[_]| Tenant { id, who, targets: targets.to_vec(), ..alike.clone() };
    let both = [tenant("t-1", mine, first), tenant("t-2", theirs, second)];
    both.into_iter().filter(|tenant| !tenant.targets.is_empty()).collect()
}

const PLAIN: Tenant = Tenant {
    id: "",
    who: mine,
    targets: Vec::new(),
    is_private: false,
    skips_internal: false,
    discards: false,
    wants_proof: false,
};

const ALONE: Settings = Settings { mixed: Mixed::Reject, has_others: false, max_people: 1000 };

/// The head, and what else the rules are given of a message.
struct Written {
    head: Head,
    envelope: Envelope,
}

impl Written {
    fn of(message: &Message) -> Self {
        let mut head = String::new();
        let at = |place| {
            message.places.iter().filter(move |(other, _)| *other == place).map(|(_, address)| *address)
        };
        for (place, name) in [
            (Place::From, "From"),
            (Place::Sender, "Sender"),
            (Place::To, "To"),
            (Place::Cc, "Cc"),
            (Place::Bcc, "Bcc"),
        ] {
            let all: Vec<Address> = at(place).collect();
            if !all.is_empty() {
                head += &format!("{name}: {}\r\n", all.join(", "));
            }
        }
        if message.has_two_froms {
            head += "From: x@nowhere.test\r\nFrom: y@nowhere.test\r\n";
        }
        if message.has_subject {
            head += "Subject: s\r\n";
        } else {
            head += "Subject: =?utf-8?q?=20?=\r\n";
        }
        if message.automatic == Some(Automatic::OurNotice) {
            head += &format!("Message-ID: <{NOTICE_ID}b3-1@x.test>\r\n");
        }
        if message.proof == Proof::MayCome {
            head += "Authentication-Results: mx.test; dkim=temperror header.d=mycompany.test\r\n";
        }
        let recipient = |address: Address| Recipient {
            raw: CString::new(format!("<{address}>")).unwrap(),
            address: mail::Address::parse(address).unwrap(),
            tenant: None,
        };
        let client = if message.proof == Proof::Network { "192.0.2.7" } else { "203.0.113.7" };
        let envelope = Envelope {
            sender: at(Place::EnvelopeSender).next().map(|address| mail::Address::parse(address).unwrap()),
            recipients: at(Place::Recipient).map(recipient).collect(),
            queue_id: None,
            client: Some(client.to_owned()),
            is_local: false,
            is_plain: true,
            helo: Some("pc.test".to_owned()),
            login: at(Place::Login).next().map(str::to_owned),
            intake: Intake::Milter,
        };
        Self { head: Head::parse(head.as_bytes()).unwrap(), envelope }
    }
}

/// What the product is asked with, but for the message.
struct Product {
    addressing: Addressing,
    trust: Trust,
    texts: Texts,
    policy: TenantPolicy,
}

impl Product {
    fn new() -> Self {
        let addressing = Addressing {
            domains: vec![mail::Domain::parse("severamail.test").unwrap()],
            recipient_delimiter: String::new(),
        };
        let trust = Trust {
            networks: vec!["192.0.2.0/24".parse().unwrap()],
            authserv_ids: vec!["mx.test".to_owned()],
            ..Trust::default()
        };
        let automatic =
            [(mail::Automatic::Bounce, Treatment::Refuse), (mail::Automatic::List, Treatment::Discard)];
        let policy = TenantPolicy { automatic: automatic.into(), ..TenantPolicy::default() };
        Self { addressing, trust, texts: Texts::default(), policy }
    }

    fn correspondents(&self, written: &Written, max: usize) -> Correspondents {
        correspondents(&written.head, &written.envelope, &self.addressing, max)
    }

    fn evidence(&self, written: &Written) -> Evidence {
        Evidence::of(&written.head, &written.envelope, &self.trust)
    }

    fn targets(&self, tenant: &Tenant) -> Vec<Target> {
        let wish = Wish {
            require: tenant.wants_proof.then_some(Require::Authenticated),
            internal: Some(if tenant.skips_internal { Internal::Skip } else { Internal::Record }),
            answer: Some(if tenant.discards { Answer::Discard } else { Answer::Refuse }),
            ..Wish::default()
        };
        let company = Company {
            id: tenant.id.to_owned(),
            prefix: "mycompany".to_owned(),
            name: "My Company".to_owned(),
            active: true,
            activity_type: "Email".to_owned(),
            shadow: false,
            policy: Arc::new(wish),
        };
        let project = |(number, customer): Project| Linked {
            id: format!("p-{number}"),
            number: number.to_owned(),
            customer: customer.map(str::to_owned),
        };
        let target = |linked: &Option<Project>| Target {
            tenant: company.clone(),
            project: linked.map(project),
            address: mail::Address::parse("mycompany@severamail.test").unwrap(),
        };
        tenant.targets.iter().map(target).collect()
    }
}

/// What a tenant's directory says of them.
fn people(tenant: &Tenant, correspondents: &Correspondents) -> Vec<Person> {
    let known = |address: &str| {
        let all = [ANNA, ANNA_TOO, ESA, BO, BO_TOO, CY, DI];
        all.into_iter().find(|other| *other == address).map_or(Known::Nobody, |address| (tenant.who)(address))
    };
    let contact = |(id, customer_id): &(&str, &str)| Contact {
        id: (*id).to_owned(),
        name: None,
        customer_id: (*customer_id).to_owned(),
    };
    let person = |known| match known {
        Known::User(id) => {
            Person { user: Some(User { id: id.to_owned(), name: None }), contacts: Vec::new() }
        }
        Known::Contact(contacts) => Person { user: None, contacts: contacts.iter().map(contact).collect() },
        Known::Nobody => Person::default(),
    };
    correspondents.people.iter().map(|one| person(known(one.address.folded()))).collect()
}

/// A verdict in the oracle's words.
fn in_words(verdict: &Verdict) -> Fate<'_> {
    match verdict {
        Verdict::Refuse { reply, is_private } => Fate::Refused(reply.reason.as_str(), *is_private),
        Verdict::Record { records, refused, discarded } => Fate::Taken {
            activities: records.iter().map(|record| activity(&record.parties)).collect(),
            refused: refused.iter().map(|(tenant, reply)| (&**tenant, reply.reason.as_str())).collect(),
            discarded: discarded.iter().map(|(tenant, why)| (&**tenant, Discard::as_str(*why))).collect(),
        },
    }
}

fn activity(parties: &activity_milter::activity::Parties) -> Activity<'_> {
    let kind = |kind| match kind {
        Kind::User => "user",
        Kind::Contact => "contact",
        Kind::External => "external",
    };
    let participants = parties.participants.iter();
    Activity {
        tenant: &parties.tenant.id,
        project: parties.project.as_ref().map(|project| &*project.number),
        owner: (&parties.owner.user_id, &parties.owner.address),
        participants: participants
            .map(|p| (kind(p.kind), p.id.as_deref(), p.customer_id.as_deref(), &*p.address, p.field.as_str()))
            .collect(),
        customer: parties.customer.as_ref().map(|customer| &*customer.id),
        is_authenticated: parties.sender_authenticated,
        omitted: parties.people_omitted,
    }
}

/// What is asked of a message: whose it is, in the oracle's words and in the product's.
struct Asked {
    tenants: Vec<Tenant>,
    targets: Vec<Vec<Target>>,
    settings: Settings,
}

/// Both are asked, with each of the tenants and settings; how many verdicts that was.
fn compare(product: &Product, message: &Message, asked: &[Asked]) -> usize {
    let written = Written::of(message);
    let evidence = product.evidence(&written);
    let automatic = message.automatic.map(|automatic| match automatic {
        Automatic::OurNotice | Automatic::Accepted => mail::Automatic::AutoGenerated,
        Automatic::Refused => mail::Automatic::Bounce,
        Automatic::Discarded => mail::Automatic::List,
    });
    let mut looked_up: Option<(usize, Correspondents, [Vec<Person>; 2])> = None;
    for Asked { tenants, targets, settings } in asked {
        if looked_up.as_ref().is_none_or(|(max, ..)| *max != settings.max_people) {
            let found = product.correspondents(&written, settings.max_people);
            let all = [mine, theirs].map(|who| people(&Tenant { who, ..PLAIN }, &found));
            looked_up = Some((settings.max_people, found, all));
        }
        let (_, correspondents, all) = looked_up.as_ref().unwrap();
        let party = |(tenant, targets): (&Tenant, _)| Party {
            targets,
            people: &all[usize::from(tenant.id == "t-2")],
            is_private: tenant.is_private,
        };
        let parties: Vec<Party<'_>> =
            tenants.iter().zip(targets.iter().map(Vec::as_slice)).map(party).collect();
        let case = Case {
            head: &written.head,
            automatic,
            correspondents,
            evidence: &evidence,
            parties: &parties,
            other_recipients: settings.has_others,
            mixed: match settings.mixed {
                Mixed::Reject => activity_milter::rules::Mixed::Reject,
                Mixed::Strip => activity_milter::rules::Mixed::Strip,
                Mixed::Each => activity_milter::rules::Mixed::Each,
            },
            policy: &product.policy,
            texts: &product.texts,
        };
        let verdict = decide(&case);
        assert_eq!(
            in_words(&verdict),
            fate(message, tenants, *settings),
            "{message:?}\n{tenants:?}\n{settings:?}"
        );
    }
    asked.len()
}

/// Compares all of them on all cores.
fn compare_all(messages: &[Message], asked: &[(Vec<Tenant>, Settings)]) -> usize {
    let (next, count) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        let product = Product::new();
        let asked: Vec<Asked> = asked
            .iter()
            .map(|(tenants, settings)| Asked {
                targets: tenants.iter().map(|tenant| product.targets(tenant)).collect(),
                tenants: tenants.clone(),
                settings: *settings,
            })
            .collect();
        while let Some(message) = messages.get(next.fetch_add(1, Relaxed)) {
            count.fetch_add(compare(&product, message, &asked), Relaxed);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().unwrap().get() {
            scope.spawn(work);
        }
    });
    count.into_inner()
}

/// In a debug build every so-and-so-many-th.
fn some(messages: Vec<Message>, which: usize) -> Vec<Message> {
    messages.into_iter().step_by(if cfg!(debug_assertions) { which } else { 1 }).collect()
}

/// Everybody everywhere.
fn who_stands_where() -> Vec<Message> {
    let froms: [&[Address]; 6] = [&[], &[ANNA], &[BO], &[X], &[OURS], &[ESA, CY]];
    let tos: [&[Address]; 7] = [&[], &[ANNA], &[ESA], &[BO_TOO, OURS], &[BO, CY], &[DI], &[X]];
    let single = |place, address: &Option<Address>| address.map(|address| (place, address));
    let mut messages = Vec::new();
    for from in froms {
        for sender in [None, Some(ANNA_TOO), Some(BO), Some(X), Some(CY)] {
            for login in [None, Some(ESA), Some(X)] {
                for envelope_sender in [None, Some(ANNA), Some(BO), Some(X), Some(OURS)] {
                    for to in tos {
                        for cc in [None, Some(ANNA_TOO), Some(CY), Some(X)] {
                            for recipient in [None, Some(ESA), Some(CY), Some("y@nowhere.test")] {
                                let all = |place, list: &[Address]| {
                                    list.iter().map(|a| (place, *a)).collect::<Vec<_>>()
                                };
                                let mut places = all(Place::From, from);
                                places.extend(single(Place::Sender, &sender));
                                places.extend(single(Place::Login, &login));
                                places.extend(single(Place::EnvelopeSender, &envelope_sender));
                                places.extend(all(Place::To, to));
                                places.extend(single(Place::Cc, &cc));
                                places.extend(single(Place::Bcc, &cc.and(sender)));
                                places.extend(single(Place::Recipient, &recipient));
                                messages.push(Message { places, has_subject: true, ..Message::default() });
                            }
                        }
                    }
                }
            }
        }
    }
    messages
}

// R1.
#[test]
fn whoever_stands_wherever() {
    let began = Instant::now();
    let messages = some(who_stands_where(), 11);
    let mut asked = Vec::new();
    for (targets, _) in TARGETS.iter().enumerate() {
        asked.push((tenants(targets, &PLAIN), ALONE));
        asked.push((tenants(targets, &Tenant { skips_internal: true, ..PLAIN }), ALONE));
        asked.push((tenants(targets, &Tenant { wants_proof: true, ..PLAIN }), ALONE));
    }
    asked.push((tenants(1, &PLAIN), Settings { max_people: 2, ..ALONE }));
    asked.push((tenants(3, &Tenant { skips_internal: true, ..PLAIN }), Settings { max_people: 2, ..ALONE }));
    let verdicts = compare_all(&messages, &asked);
    eprintln!("{verdicts} verdicts, {:?}", began.elapsed());
    assert!(verdicts > if cfg!(debug_assertions) { 90_000 } else { 1_000_000 });
}

/// Each policy with each, and each reply with each.
// R1.
#[test]
fn whatever_policies_say() {
    let began = Instant::now();
    let mut messages = Vec::new();
    let people: [&[(Place, Address)]; 8] = [
        &[(Place::From, ANNA), (Place::To, BO)],
        &[(Place::From, ANNA), (Place::To, ESA)],
        &[(Place::From, BO), (Place::To, ANNA)],
        &[(Place::From, BO), (Place::EnvelopeSender, BO), (Place::Recipient, X)],
        &[(Place::From, X), (Place::Sender, ESA), (Place::Cc, ANNA)],
        &[(Place::From, ESA), (Place::Login, ANNA), (Place::To, CY)],
        &[(Place::From, ANNA), (Place::Login, ANNA), (Place::To, ESA)],
        &[(Place::From, X), (Place::To, X)],
    ];
    for places in people {
        for (has_subject, has_two_froms) in [(true, false), (false, false), (true, true)] {
            for automatic in [
                None,
                Some(Automatic::OurNotice),
                Some(Automatic::Accepted),
                Some(Automatic::Refused),
                Some(Automatic::Discarded),
            ] {
                for proof in [Proof::Nothing, Proof::Network, Proof::MayCome] {
                    let places = places.to_vec();
                    messages.push(Message { places, has_subject, has_two_froms, automatic, proof });
                }
            }
        }
    }
    let mut asked = Vec::new();
    let wishes = (0..16).map(|bits| Tenant {
        is_private: bits & 1 != 0,
        skips_internal: bits & 2 != 0,
        discards: bits & 4 != 0,
        wants_proof: bits & 8 != 0,
        ..PLAIN
    });
    let wishes: Vec<Tenant> = wishes.collect();
    for first in &wishes {
        for second in &wishes {
            for mixed in [Mixed::Reject, Mixed::Strip, Mixed::Each] {
                for has_others in [false, true] {
                    let first =
                        Tenant { id: "t-1", who: mine, targets: vec![None, ROLL_OUT], ..first.clone() };
                    let second = Tenant { id: "t-2", who: theirs, targets: vec![UPKEEP], ..second.clone() };
                    asked.push((vec![first, second], Settings { mixed, has_others, ..ALONE }));
                }
            }
        }
    }
    let verdicts = compare_all(&some(messages, 7), &asked);
    eprintln!("{verdicts} verdicts, {:?}", began.elapsed());
    assert!(verdicts > if cfg!(debug_assertions) { 75_000 } else { 550_000 });
}
