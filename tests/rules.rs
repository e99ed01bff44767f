//! The rules, a table: a line a case, named by the design's sentence (sections 1 and 6).
//!
//! Each case goes through the session that the milter uses, without protocol, disk or clock. What comes back is one
//! line for each activity: `owner(field) @customer #project: kind address(field), …`, or the reply.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/policy.rs"]
mod policy;

use activity_milter::{
    directory::{Directory, FileDirectory, People, Unavailable},
    intake::{Client, Interest, Live, Policy, Service, Session, Shadow, Then},
    mail::{Address, Automatic, Budget, Domain, Intake},
    rules::{
        Addressing, Answer, Internal, Mixed, Project, Record, Role, Tenant, TenantPolicy, Texts, Treatment,
    },
};
use policy::policy;
use std::{ffi::CString, path::Path, sync::Arc, time::Duration};

fn file() -> Arc<dyn Directory> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/directory.toml");
    Arc::new(FileDirectory::open(&path).unwrap())
}

fn service(policy: Policy, directory: Arc<dyn Directory>) -> Live {
    let addressing = Addressing {
        domains: vec![
            Domain::parse("severamail.test").unwrap(),
            Domain::parse("räksmörgås.example").unwrap(),
        ],
        recipient_delimiter: "+".to_owned(),
    };
    let budget = Budget::new(1 << 20);
    Service::new(addressing, policy, Texts::default(), directory, budget, std::env::temp_dir()).into()
}

/// Plays a transaction up to the end of the header.
async fn play(service: Live, sender: &str, recipients: &[&str], head: &str) -> String {
    let mut session = Session::new(service);
    session.mail(sender.as_bytes(), Intake::Milter);
    let mut out = Vec::new();
    for recipient in recipients {
        if let Err(reply) = session.rcpt(&CString::new(*recipient).unwrap(), Client::default).await {
            out.push(format!("{} {} {}", reply.code, reply.status, reply.reason));
        }
    }
    if !out.is_empty() {
        return out.join("; ");
    }
    if session.data().unwrap() == Interest::Nothing {
        return "pass".to_owned();
    }
    for line in head.lines() {
        let (name, value) = line.split_once(':').unwrap();
        session.header(name.as_bytes(), value.as_bytes()).unwrap();
    }
    match session.end_of_header().await {
        Err(reply) => format!("{} {} {}", reply.code, reply.status, reply.reason),
        _ => {
            let discarded =
                session.discards().into_iter().flatten().map(|why| format!("nothing: {}", why.as_str()));
            let records = session.records().iter().map(line);
            records.chain(discarded).collect::<Vec<_>>().join(" | ")
        }
    }
}

fn line(record: &Record) -> String {
    let parties = &record.parties;
    let field = record.people.iter().find(|part| part.role == Role::Owner).unwrap().field.as_str();
    let customer = parties.customer.as_ref().map(|c| format!(" @{}", c.id)).unwrap_or_default();
    let project = parties.project.as_ref().map(|p| format!(" #{}", p.number)).unwrap_or_default();
    let people: Vec<_> = parties
        .participants
        .iter()
        .map(|p| format!("{:?} {}({})", p.kind, p.address, p.field.as_str()).to_lowercase())
        .collect();
    format!("{}({field}){customer}{project}: {}", parties.owner.user_id, people.join(", "))
}

const ANNA: &str = "From: anna@mycompany.test\nSubject: s\n";
const BO: &str = "From: bo@acme.test\nSubject: s\n";
const NOBODY: &str = "From: x@nowhere.test\nSubject: s\n";

/// (sentence, envelope sender, envelope recipients, header, expected). `A`, `B`, `N` start the header with a usual one.
type Row = (&'static str, &'static str, &'static [&'static str], &'static str, &'static str);

const MY: &[&str] = &["<mycompany@severamail.test>"];

const TABLE: &[Row] = &[
    // Who sent it.
    (
        "Sender is a user, From is not: the Sender owns, and From takes part",
        "",
        MY,
        "From: sales@mycompany.test\nSender: anna@mycompany.test\nSubject: s\n",
        "u-anna(sender): external sales@mycompany.test(from)",
    ),
    (
        "the newest block of Resent- fields names a sender, an older one does not",
        "",
        MY,
        "Resent-From: x@nowhere.test\nReceived: by y\nResent-From: anna@mycompany.test\nFrom: z@nowhere.test\nSubject: s\n",
        "550 5.7.1 no-user",
    ),
    (
        "Resent-From of the newest block is a user",
        "",
        MY,
        "Resent-From: anna@mycompany.test\nFrom: z@nowhere.test\nSubject: s\n",
        "u-anna(sender): external z@nowhere.test(from)",
    ),
    (
        "the envelope sender is a user: he owns",
        "anna@mycompany.test",
        MY,
        "From: sales@mycompany.test\nSubject: s\n",
        "u-anna(envelope): external sales@mycompany.test(from)",
    ),
    (
        "an envelope sender who is no user is nobody",
        "bounces@list.test",
        MY,
        "From: anna@mycompany.test\nTo: bo@acme.test\nSubject: s\n",
        "u-anna(from) @c-acme: contact bo@acme.test(to)",
    ),
    (
        "a contact as envelope sender links no customer",
        "bo@acme.test",
        MY,
        "From: anna@mycompany.test\nSubject: s\n",
        "u-anna(from): ",
    ),
    (
        "From names nobody and Sender does: the envelope sender is nobody",
        "cy@nowhere.test",
        MY,
        "From: undisclosed\nSender: anna@mycompany.test\nTo: bo@acme.test\nSubject: s\n",
        "u-anna(sender) @c-acme: contact bo@acme.test(to)",
    ),
    (
        "a user who is the envelope sender and a recipient is listed as recipient",
        "esa@mycompany.test",
        MY,
        "From: anna@mycompany.test\nTo: esa@mycompany.test\nSubject: s\n",
        "u-anna(from): user esa@mycompany.test(to)",
    ),
    (
        "Resent-To names recipients, of all blocks",
        "",
        MY,
        "Resent-To: bo@acme.test\nReceived: by y\nResent-Cc: carl@else.test\nFrom: anna@mycompany.test\nSubject: s\n",
        "u-anna(from) @c-acme: contact bo@acme.test(to), external carl@else.test(cc)",
    ),
    (
        "a From of two readings is refused",
        "",
        MY,
        "From: Eve <eve@evil.test> Anna <anna@mycompany.test>\nSubject: s\n",
        "550 5.6.0 ambiguous-from",
    ),
    // Targets.
    ("the bare address names the tenant", "a@x.test", MY, "A", "u-anna(from): "),
    (
        "a number before it names the project",
        "",
        &["<1001.mycompany@severamail.test>"],
        "A",
        "u-anna(from) @c-acme #1001: ",
    ),
    ("case does not matter", "", &["<1001.MyCompany@SeveraMail.TEST>"], "A", "u-anna(from) @c-acme #1001: "),
    ("quoted local parts are unquoted", "", &["<\"mycompany\"@severamail.test>"], "A", "u-anna(from): "),
    ("tags are cut if configured", "", &["<mycompany+tag@severamail.test>"], "A", "u-anna(from): "),
    (
        "the domain is compared as A-label",
        "",
        &["<mycompany@xn--rksmrgs-5wao1o.example>"],
        "A",
        "u-anna(from): ",
    ),
    ("and in its own letters", "", &["<mycompany@räksmörgås.example>"], "A", "u-anna(from): "),
    (
        "the longest tenant prefix that exists",
        "",
        &["<7.sub.mycompany@severamail.test>"],
        "A",
        "u-anna-4(from) #7: ",
    ),
    ("no such tenant", "", &["<nobody@severamail.test>"], "A", "550 5.1.1 no-such-tenant"),
    (
        "cannot be an integration address: dot first",
        "",
        &["<.mycompany@severamail.test>"],
        "A",
        "550 5.1.3 bad-address",
    ),
    (
        "cannot be an integration address: no prefix",
        "",
        &["<1001.@severamail.test>"],
        "A",
        "550 5.1.3 bad-address",
    ),
    (
        "cannot be an integration address: not even an address",
        "",
        &["<a b@severamail.test>"],
        "A",
        "550 5.1.3 bad-address",
    ),
    ("tenant not active", "", &["<closed@severamail.test>"], "A", "550 5.2.1 tenant-inactive"),
    (
        "tenant not active, whatever the project",
        "",
        &["<9.closed@severamail.test>"],
        "A",
        "550 5.2.1 tenant-inactive",
    ),
    ("project unknown", "", &["<9999.mycompany@severamail.test>"], "A", "550 5.1.1 unknown-project"),
    ("no integration recipient: not ours", "", &["<bo@acme.test>"], "A", "pass"),
    ("a recipient nobody can read is not ours", "", &["<\"open@acme.test>"], "A", "pass"),
    (
        "an integration address in To but not in the envelope is no target",
        "",
        &["<bo@acme.test>"],
        "ATo: mycompany@severamail.test",
        "pass",
    ),
    // Subject and From.
    ("the subject is mandatory", "", MY, "From: anna@mycompany.test", "550 5.6.0 no-subject"),
    ("a blank subject is none", "", MY, "From: anna@mycompany.test\nSubject:  ", "550 5.6.0 no-subject"),
    (
        "invisible characters only are none",
        "",
        MY,
        "From: anna@mycompany.test\nSubject: =?utf-8?B?4oCL?=",
        "550 5.6.0 no-subject",
    ),
    (
        "of several subjects the first counts",
        "",
        MY,
        "From: anna@mycompany.test\nSubject:\nSubject: late",
        "550 5.6.0 no-subject",
    ),
    ("several From fields", "", MY, "AFrom: esa@mycompany.test", "550 5.6.0 ambiguous-from"),
    ("no readable head", "", MY, "", "550 5.6.0 unreadable-head"),
    // Owner.
    (
        "sender is a user: that user owns",
        "",
        MY,
        "ATo: esa@mycompany.test",
        "u-anna(from): user esa@mycompany.test(to)",
    ),
    (
        "sender is not: the first user among the recipients owns",
        "",
        MY,
        "NTo: x@y.test, esa@mycompany.test\nCc: anna@mycompany.test",
        "u-esa(to): external x@nowhere.test(from), external x@y.test(to), user anna@mycompany.test(cc)",
    ),
    (
        "To comes before Cc",
        "",
        MY,
        "NCc: anna@mycompany.test\nTo: esa@mycompany.test",
        "u-esa(to): external x@nowhere.test(from), user anna@mycompany.test(cc)",
    ),
    ("then Bcc", "", MY, "NBcc: esa@mycompany.test", "u-esa(bcc): external x@nowhere.test(from)"),
    (
        "then envelope order",
        "",
        &["<esa@mycompany.test>", "<anna@mycompany.test>", "<mycompany@severamail.test>"],
        "N",
        "u-esa(envelope): external x@nowhere.test(from), user anna@mycompany.test(envelope)",
    ),
    ("no user among sender and recipients", "", MY, "NTo: bo@acme.test", "550 5.7.1 no-user"),
    (
        "a user of another tenant is no user here",
        "",
        MY,
        "From: otto@other.test\nSubject: s",
        "550 5.7.1 no-user",
    ),
    (
        "recognised by any of his addresses",
        "",
        MY,
        "From: ANNA.AALTO@MyCompany.test\nSubject: s",
        "u-anna(from): ",
    ),
    ("recognised in either form of an IDN", "", MY, "From: asa@räksmörgås.test\nSubject: s", "u-asa(from): "),
    (
        "several From mailboxes: the first user among them owns",
        "",
        MY,
        "From: x@y.test, esa@mycompany.test, anna@mycompany.test\nSubject: s",
        "u-esa(from): external x@y.test(from), user anna@mycompany.test(from)",
    ),
    (
        "no From field: the envelope sender stands in",
        "<anna@mycompany.test>",
        MY,
        "Subject: s",
        "u-anna(from): ",
    ),
    (
        "a From that names nobody: the envelope sender stands in",
        "<anna@mycompany.test>",
        MY,
        "From: nobody\nSubject: s",
        "u-anna(from): ",
    ),
    (
        "null sender, no From: a recipient owns",
        "<>",
        MY,
        "Subject: s\nTo: anna@mycompany.test",
        "u-anna(to): ",
    ),
    ("null sender, no From, no user", "<>", MY, "Subject: s\nTo: bo@acme.test", "550 5.7.1 no-user"),
    // Contacts and customers.
    (
        "a contact links to the customer",
        "",
        MY,
        "ATo: bo@acme.test",
        "u-anna(from) @c-acme: contact bo@acme.test(to)",
    ),
    (
        "the sender counts too: a customer's reply links",
        "",
        MY,
        "BTo: anna@mycompany.test",
        "u-anna(to) @c-acme: contact bo@acme.test(from)",
    ),
    (
        "contacts of two customers: no link, all external",
        "",
        MY,
        "ATo: bo@acme.test, dora@globex.test",
        "u-anna(from): external bo@acme.test(to), external dora@globex.test(to)",
    ),
    (
        "contact of two customers under one address",
        "",
        MY,
        "ATo: shared@both.test",
        "u-anna(from): external shared@both.test(to)",
    ),
    (
        "sender is user and also contact: a user",
        "",
        MY,
        "From: esa@mycompany.test\nSubject: s\nTo: bo@acme.test",
        "u-esa(from) @c-acme: contact bo@acme.test(to)",
    ),
    (
        "anybody else is external",
        "",
        MY,
        "ATo: =?utf-8?Q?X?= <x@y.test>",
        "u-anna(from): external x@y.test(to)",
    ),
    // Projects and customers.
    (
        "no contact: the project's customer",
        "",
        &["<1001.mycompany@severamail.test>"],
        "ATo: x@y.test",
        "u-anna(from) @c-acme #1001: external x@y.test(to)",
    ),
    (
        "a contact says otherwise",
        "",
        &["<1001.mycompany@severamail.test>"],
        "ATo: dora@globex.test",
        "u-anna(from) @c-globex #1001: contact dora@globex.test(to)",
    ),
    (
        "contacts of several customers say otherwise too",
        "",
        &["<1001.mycompany@severamail.test>"],
        "ATo: bo@acme.test, dora@globex.test",
        "u-anna(from) #1001: external bo@acme.test(to), external dora@globex.test(to)",
    ),
    ("a project without customer", "", &["<1002.mycompany@severamail.test>"], "A", "u-anna(from) #1002: "),
    // Nobody twice, and no integration addresses.
    (
        "nobody is listed twice: case",
        "",
        MY,
        "ATo: x@y.test\nCc: X@Y.TEST",
        "u-anna(from): external x@y.test(to)",
    ),
    (
        "nobody is listed twice: field and envelope",
        "",
        &["<mycompany@severamail.test>", "<X@y.test>"],
        "ATo: x@y.test",
        "u-anna(from): external x@y.test(to)",
    ),
    (
        "user in Cc and Bcc",
        "",
        MY,
        "ACc: esa@mycompany.test\nBcc: esa@mycompany.test",
        "u-anna(from): user esa@mycompany.test(cc)",
    ),
    (
        "owner among the recipients",
        "",
        MY,
        "ATo: anna@mycompany.test, x@y.test",
        "u-anna(from): external x@y.test(to)",
    ),
    (
        "owner among the recipients by another address",
        "",
        MY,
        "ACc: anna.aalto@mycompany.test",
        "u-anna(from): ",
    ),
    (
        "integration addresses never become participants",
        "",
        MY,
        "ATo: mycompany@severamail.test, 1001.other@severamail.test, zz@severamail.test",
        "u-anna(from): ",
    ),
    (
        "the real Bcc recipients of a mixed transaction",
        "",
        &["<mycompany@severamail.test>", "<bo@acme.test>"],
        "A",
        "u-anna(from) @c-acme: contact bo@acme.test(envelope)",
    ),
    (
        "groups and comments",
        "",
        MY,
        "ATo: Team: bo@acme.test (Bo), \"x y\"@z.test;",
        "u-anna(from) @c-acme: contact bo@acme.test(to), external \"x y\"@z.test(to)",
    ),
    // Several targets.
    (
        "two projects: two activities",
        "",
        &["<1001.mycompany@severamail.test>", "<1002.mycompany@severamail.test>"],
        "A",
        "u-anna(from) @c-acme #1001:  | u-anna(from) #1002: ",
    ),
    (
        "the bare address adds nothing beside a project",
        "",
        &["<mycompany@severamail.test>", "<1001.mycompany@severamail.test>"],
        "A",
        "u-anna(from) @c-acme #1001: ",
    ),
    (
        "the same target twice is one activity",
        "",
        &["<mycompany@severamail.test>", "<MYCOMPANY+x@severamail.test>"],
        "A",
        "u-anna(from): ",
    ),
    (
        "two tenants: an activity each, each with its own people",
        "",
        &["<mycompany@severamail.test>", "<other@severamail.test>"],
        "ATo: otto@other.test, bo@acme.test",
        "u-anna(from) @c-acme: external otto@other.test(to), contact bo@acme.test(to) | u-otto(to): external anna@mycompany.test(from), external bo@acme.test(to)",
    ),
    (
        "two tenants, a user of one only: the sender learns it",
        "",
        &["<mycompany@severamail.test>", "<other@severamail.test>"],
        "A",
        "550 5.7.1 no-user",
    ),
    (
        "a mixed transaction that fails a rule: the sender learns it",
        "",
        &["<mycompany@severamail.test>", "<bo@acme.test>"],
        "N",
        "550 5.7.1 no-user",
    ),
];

fn header(written: &str) -> String {
    match written.as_bytes() {
        [b'A', rest @ ..] if !rest.starts_with(b":") => format!("{ANNA}{}", &written[1..]),
        [b'B', rest @ ..] if !rest.starts_with(b"cc") => format!("{BO}{}", &written[1..]),
        [b'N', ..] => format!("{NOBODY}{}", &written[1..]),
        _ => written.to_owned(),
    }
}

#[tokio::test]
async fn the_table() {
    let service = service(policy(), file());
    let mut wrong = Vec::new();
    for (sentence, sender, recipients, head, expected) in TABLE {
        let found = play(service.clone(), sender, recipients, &header(head)).await;
        if found != *expected {
            wrong.push(format!("{sentence}\n  expected {expected}\n  found    {found}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn choices_of_the_configuration() {
    let unlinked = Policy { unlinked_projects: true, ..policy() };
    let found = play(service(unlinked, file()), "", &["<9999.mycompany@severamail.test>"], ANNA).await;
    assert_eq!(found, "u-anna(from): ", "unknown_project = \"unlinked\" records without link");

    let strip = Policy { mixed: Mixed::Strip, ..policy() };
    let two = &["<mycompany@severamail.test>", "<other@severamail.test>"];
    assert_eq!(
        play(service(strip.clone(), file()), "", two, ANNA).await,
        "u-anna(from): ",
        "strip: the other tenant's is taken out"
    );
    let mixed = &["<mycompany@severamail.test>", "<x@y.test>"];
    assert_eq!(
        play(service(strip.clone(), file()), "", mixed, NOBODY).await,
        "",
        "strip: nothing is recorded, the rest goes on"
    );
    assert_eq!(
        play(service(strip.clone(), file()), "", MY, NOBODY).await,
        "550 5.7.1 no-user",
        "strip: with no rest, refuse"
    );

    let few = Policy { max_recipients: 1, ..policy() };
    assert_eq!(play(service(few.clone(), file()), "", MY, ANNA).await, "u-anna(from): ");
    assert_eq!(play(service(few.clone(), file()), "", two, ANNA).await, "452 4.5.3 too-many-recipients");
}

/// A directory whose second tenant has a policy of its own.
fn with_policy(policy: &str) -> Arc<dyn Directory> {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/directory.toml")).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let name = "name = \"Other Oy\"";
    std::fs::write(file.path(), text.replacen(name, &format!("policy = {policy}\n{name}"), 1)).unwrap();
    Arc::new(FileDirectory::open(file.path()).unwrap())
}

/// D6.
#[tokio::test]
async fn machines_mail_is_what_the_policy_says() {
    let automatic = |kinds: &[(Automatic, Treatment)]| {
        let tenants = TenantPolicy { automatic: kinds.iter().copied().collect(), ..TenantPolicy::default() };
        Policy { tenants, ..policy() }
    };
    let two = &["<mycompany@severamail.test>", "<other@severamail.test>"][..];
    let theirs = &["<other@severamail.test>"][..];
    let list = [(Automatic::List, Treatment::Discard)];
    let both = [(Automatic::List, Treatment::Refuse), (Automatic::Bounce, Treatment::Discard)];
    let accepts = "{ automatic = { list = \"accept\" } }";
    let refuses = "{ automatic = { bounce = \"refuse\" } }";
    let otto = "From: otto@other.test\nTo: anna@mycompany.test\nSubject: s\nList-Id: <l.test>\n";
    for (what, kinds, theirs_is, sender, recipients, head, expected) in [
        (
            "what is not named is accepted",
            &list[..],
            "{}",
            "a@b.test",
            MY,
            "APrecedence: bulk\n",
            "u-anna(from): ",
        ),
        (
            "a person's mail is no machine's",
            &both[..],
            "{}",
            "a@b.test",
            MY,
            "AAuto-Submitted: no\n",
            "u-anna(from): ",
        ),
        ("discard", &list[..], "{}", "a@b.test", MY, "AList-Id: <l.test>\n", "nothing: automatic"),
        (
            "discard comes before the subject",
            &list[..],
            "{}",
            "a@b.test",
            MY,
            "List-Id: <l.test>\n",
            "nothing: automatic",
        ),
        (
            "discard comes before the people",
            &list[..],
            "{}",
            "a@b.test",
            MY,
            "NList-Id: <l.test>\n",
            "nothing: automatic",
        ),
        ("refuse", &both[..], "{}", "a@b.test", MY, "AList-Id: <l.test>\n", "550 5.7.1 automatic"),
        ("the null sender is a bounce", &both[..], "{}", "<>", MY, "A", "nothing: automatic"),
        (
            "what is no sender at all is not the null sender",
            &both[..],
            "{}",
            "what?",
            MY,
            "A",
            "u-anna(from): ",
        ),
        (
            "the tenant's word replaces ours",
            &list[..],
            accepts,
            "a@b.test",
            theirs,
            otto,
            "u-otto(from): external anna@mycompany.test(to)",
        ),
        (
            "the tenant's word is about its kinds alone",
            &both[..],
            refuses,
            "a@b.test",
            theirs,
            otto,
            "550 5.7.1 automatic",
        ),
        (
            "the tenant refuses bounces",
            &[][..],
            refuses,
            "",
            theirs,
            "From: otto@other.test\nSubject: s\n",
            "550 5.7.1 automatic",
        ),
        (
            "one discards, one records",
            &list[..],
            accepts,
            "a@b.test",
            two,
            otto,
            "u-otto(from): external anna@mycompany.test(to) | nothing: automatic",
        ),
        (
            "our own notice is nothing, whatever is accepted",
            &[][..],
            "{}",
            "a@b.test",
            MY,
            "AMessage-ID: <activity-milter-held-b3-5d1f@x.test>\n",
            "nothing: own-notice",
        ),
        (
            "what quotes our notice is a message",
            &[][..],
            "{}",
            "a@b.test",
            MY,
            "AIn-Reply-To: <activity-milter-held-b3-5d1f@x.test>\n",
            "u-anna(from): ",
        ),
    ] {
        let service = service(automatic(kinds), with_policy(theirs_is));
        let found = play(service, sender, recipients, &header(head)).await;
        assert_eq!(found, expected, "{what}");
    }
    // Nobody is looked up for it: a directory that is down defers no bounce.
    let down = service(automatic(&list), Arc::new(Trouble { inner: file(), at: "people", hangs: false }));
    assert_eq!(
        play(down.clone(), "a@b.test", MY, &header("AList-Id: <l.test>\n")).await,
        "nothing: automatic"
    );
    // Shadow mode lets it pass.
    let shadow = service(Policy { shadow: Shadow::Everybody, ..automatic(&list) }, file());
    assert_eq!(play(shadow, "a@b.test", MY, &header("AList-Id: <l.test>\n")).await, "");
}

/// D9.
#[tokio::test]
async fn what_is_private_is_not_recorded() {
    let never = |answer| {
        let never_log = ["Lawyer@law.test", "works-council.test"].map(|name| name.parse().unwrap());
        let tenants =
            TenantPolicy { never_log: Arc::new(never_log.into()), answer, ..TenantPolicy::default() };
        Policy { tenants, max_people: 3, ..policy() }
    };
    let many: String = (0..50).map(|n| format!("p{n}@x.test, ")).collect();
    let far = format!("ATo: {many}lawyer@law.test\n");
    let open = "{ never_log = [] }";
    let two = &["<mycompany@severamail.test>", "<other@severamail.test>"][..];
    for (what, sender, recipients, head, theirs, expected) in [
        ("in To", "a@b.test", MY, "ATo: LAWYER@law.test\n", "{}", "never-log"),
        (
            "another of his domain",
            "a@b.test",
            MY,
            "ATo: clerk@law.test\n",
            "{}",
            "u-anna(from): external clerk@law.test(to)",
        ),
        ("a domain", "a@b.test", MY, "ACc: x@works-council.test\n", "{}", "never-log"),
        (
            "not its subdomain",
            "a@b.test",
            MY,
            "ACc: x@a.works-council.test\n",
            "{}",
            "u-anna(from): external x@a.works-council.test(cc)",
        ),
        ("among those who are too many", "a@b.test", MY, &far, "{}", "never-log"),
        ("in Reply-To", "a@b.test", MY, "AReply-To: Lawyer <lawyer@law.test>\n", "{}", "never-log"),
        (
            "in the second Sender",
            "a@b.test",
            MY,
            "ASender: a@b.test\nSender: lawyer@law.test\n",
            "{}",
            "never-log",
        ),
        ("as envelope sender", "lawyer@law.test", MY, "A", "{}", "never-log"),
        (
            "as envelope recipient",
            "a@b.test",
            &["<mycompany@severamail.test>", "<lawyer@law.test>"],
            "A",
            "{}",
            "never-log",
        ),
        ("before a missing subject", "a@b.test", MY, "From: lawyer@law.test\n", "{}", "never-log"),
        (
            "before two From fields",
            "a@b.test",
            MY,
            "From: lawyer@law.test\nFrom: b@x.test\nSubject: s\n",
            "{}",
            "never-log",
        ),
        ("only in words", "a@b.test", MY, "AComments: lawyer@law.test\n", "{}", "u-anna(from): "),
        (
            "a tenant that says nobody",
            "a@b.test",
            &["<other@severamail.test>"],
            "From: otto@other.test\nTo: lawyer@law.test\nSubject: s\n",
            open,
            "u-otto(from): external lawyer@law.test(to)",
        ),
        (
            "two tenants, one of them open",
            "a@b.test",
            two,
            "ATo: otto@other.test, lawyer@law.test\n",
            open,
            "never-log",
        ),
    ] {
        for (answer, said) in
            [(Answer::Refuse, "550 5.7.1 never-log"), (Answer::Discard, "nothing: never-log")]
        {
            if what.starts_with("two tenants") && answer == Answer::Discard {
                continue;
            }
            let service = service(never(answer), with_policy(theirs));
            let found = play(service, sender, recipients, &header(head)).await;
            assert_eq!(found, if expected == "never-log" { said } else { expected }, "{what}");
        }
    }
    // He is not even looked up.
    let down = Arc::new(Trouble { inner: file(), at: "people", hangs: false });
    let found =
        play(service(never(Answer::Refuse), down), "a@b.test", MY, &header("ATo: lawyer@law.test\n")).await;
    assert_eq!(found, "550 5.7.1 never-log");
}

/// Files of ours in a folder, unlinked ones too.
fn open_in(folder: &Path) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|path| path.starts_with(folder))
        .count()
}

/// D9.
#[tokio::test]
async fn of_what_is_discarded_no_byte_is_spilled() {
    let never_log = ["law.test".parse().unwrap()];
    let tenants = TenantPolicy {
        never_log: Arc::new(never_log.into()),
        answer: Answer::Discard,
        ..TenantPolicy::default()
    };
    let addressing = Addressing {
        domains: vec![Domain::parse("severamail.test").unwrap()],
        recipient_delimiter: String::new(),
    };
    let spool = tempfile::tempdir().unwrap();
    let folder = spool.path().canonicalize().unwrap();
    let policy = Policy { tenants, keep_after_accept: true, ..policy() };
    let service =
        Service::new(addressing, policy, Texts::default(), file(), Budget::new(8 << 20), folder.clone());
    let live = Live::from(service);
    for (to, is_spilled) in [("lawyer@law.test", false), ("bo@acme.test", true)] {
        let mut session = Session::new(live.clone());
        session.mail(b"<anna@mycompany.test>", Intake::Milter);
        session.rcpt(c"<mycompany@severamail.test>", Client::default).await.unwrap();
        session.data().unwrap();
        for (name, value) in [("From", "anna@mycompany.test"), ("To", to), ("Subject", "s")] {
            session.header(name.as_bytes(), value.as_bytes()).unwrap();
        }
        session.end_of_header().await.unwrap();
        for _ in 0..8 {
            session.body(&[b'x'; 64 * 1024]).await;
        }
        assert_eq!(open_in(&folder), usize::from(is_spilled), "{to}");
        // It leaves Postfix, also where what is recorded stays there.
        let end = session.end().await.unwrap();
        assert_eq!(end.pending.is_some(), is_spilled, "{to}");
        assert_eq!(end.then, if is_spilled { Then::Pass } else { Then::Discard }, "{to}");
    }
}

/// D9.
#[tokio::test]
async fn mail_among_users_alone_is_skipped_where_it_is_to_be() {
    let skip = |answer| {
        let tenants = TenantPolicy { internal: Internal::Skip, answer, ..TenantPolicy::default() };
        Policy { tenants, max_people: 3, ..policy() }
    };
    for (what, sender, head, is_internal) in [
        ("two users", "anna@mycompany.test", "ATo: esa@mycompany.test\n", true),
        ("one user alone", "anna@mycompany.test", "A", true),
        ("two addresses of one user", "", "ATo: anna.aalto@mycompany.test\n", true),
        ("a bounce address is nobody", "bounces@list.test", "ATo: esa@mycompany.test\n", true),
        ("a stranger", "", "ATo: esa@mycompany.test, x@y.test\n", false),
        ("a contact", "", "ATo: bo@acme.test\n", false),
        ("a user is the recipient of a stranger", "", "NTo: anna@mycompany.test\n", false),
        ("who cannot be read may be anybody", "", "ATo: esa@mycompany.test, somebody else\n", false),
        (
            "who is not looked up may be anybody",
            "",
            "ATo: esa@mycompany.test, asa@r\u{e4}ksm\u{f6}rg\u{e5}s.test, otto@other.test, x@y.test\n",
            false,
        ),
    ] {
        for (answer, said) in [(Answer::Refuse, "550 5.7.1 internal"), (Answer::Discard, "nothing: internal")]
        {
            let found = play(service(skip(answer), file()), sender, MY, &header(head)).await;
            assert_eq!(found == said, is_internal, "{what}: {found}");
            assert_eq!(found.starts_with("u-"), !is_internal, "{what}: {found}");
        }
    }
    let found = play(service(policy(), file()), "", MY, &header("ATo: esa@mycompany.test\n")).await;
    assert!(found.starts_with("u-anna"), "recorded, where nothing is said: {found}");
}

#[tokio::test]
async fn shadow_mode_decides_and_changes_nothing() {
    let everybody = service(Policy { shadow: Shadow::Everybody, ..policy() }, file());
    for recipient in ["<nobody@severamail.test>", "<closed@severamail.test>", "<a b@severamail.test>"] {
        assert_eq!(play(everybody.clone(), "", &[recipient], ANNA).await, "pass", "not even a target");
    }
    // A target makes us look at the head, and then the message goes on as it is.
    for head in [ANNA, NOBODY, "To: x@y.test", ""] {
        assert_eq!(play(everybody.clone(), "", MY, head).await, "", "{head}");
    }
    // One tenant in shadow mode beside a live one: the live one's rules hold, the other's do not.
    let marked = service(policy(), file());
    let both = &["<mycompany@severamail.test>", "<trial@severamail.test>"];
    assert_eq!(play(marked.clone(), "", both, ANNA).await, "u-anna(from): ");
    assert_eq!(play(marked.clone(), "", both, NOBODY).await, "550 5.7.1 no-user");
    assert_eq!(play(marked.clone(), "", &["<trial@severamail.test>"], NOBODY).await, "");
    assert_eq!(
        play(marked, "", &["<5.trial@severamail.test>"], ANNA).await,
        "pass",
        "an unknown project, let pass"
    );
    let nobody = service(Policy { shadow: Shadow::Nobody, ..policy() }, file());
    assert_eq!(play(nobody, "", &["<trial@severamail.test>"], NOBODY).await, "550 5.7.1 no-user");
}

/// A directory in trouble: it fails, or it never answers, at one of its questions.
struct Trouble {
    inner: Arc<dyn Directory>,
    at: &'static str,
    hangs: bool,
}

impl Trouble {
    async fn maybe(&self, question: &'static str) -> Result<(), Unavailable> {
        match (self.at == question, self.hangs) {
            (false, _) => Ok(()),
            (true, true) => std::future::pending().await,
            (true, false) => Err(Unavailable("connection refused".to_owned())),
        }
    }
}

#[async_trait::async_trait]
impl Directory for Trouble {
    async fn tenant(&self, prefix: &str) -> Result<Option<Tenant>, Unavailable> {
        self.maybe("tenant").await?;
        self.inner.tenant(prefix).await
    }

    async fn people(&self, tenant: &Tenant, addresses: &[Address]) -> Result<People, Unavailable> {
        self.maybe("people").await?;
        self.inner.people(tenant, addresses).await
    }

    async fn project(
        &self,
        tenant: &Tenant,
        number: &str,
        also: &[Address],
    ) -> Result<Option<Project>, Unavailable> {
        self.maybe("project").await?;
        self.inner.project(tenant, number, also).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_cannot_answer_defers_and_never_refuses() {
    for hangs in [false, true] {
        for at in ["tenant", "project", "people"] {
            let directory = Arc::new(Trouble { inner: file(), at, hangs });
            let started = tokio::time::Instant::now();
            let found =
                play(service(policy(), directory), "", &["<1001.mycompany@severamail.test>"], ANNA).await;
            assert_eq!(found, "451 4.4.3 directory-unavailable", "{at} {hangs}");
            assert!(started.elapsed() <= Duration::from_secs(6), "well below Postfix's 30 s");
        }
        // A message that fails by its head alone is told so, whatever the directory's state.
        let directory = Arc::new(Trouble { inner: file(), at: "people", hangs });
        assert_eq!(play(service(policy(), directory), "", MY, "To: x@y.test").await, "550 5.6.0 no-subject");
    }
}

/// D3.
#[tokio::test(start_paused = true)]
async fn all_look_ups_of_a_message_have_one_deadline() {
    // Two tenants and one in shadow mode, and a directory that never answers: five seconds, not five for each.
    let directory = Arc::new(Trouble { inner: file(), at: "people", hangs: true });
    let recipients = ["<mycompany@severamail.test>", "<other@severamail.test>", "<trial@severamail.test>"];
    let started = tokio::time::Instant::now();
    let found = play(service(policy(), directory), "", &recipients, ANNA).await;
    assert_eq!(found, "451 4.4.3 directory-unavailable");
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_draining_service_takes_no_new_message_and_lets_others_pass() {
    let service = service(policy(), file());
    assert_eq!(service.now().drain(Duration::from_secs(1)).await, 0);
    assert_eq!(play(service.clone(), "", MY, ANNA).await, "451 4.3.2 shutting-down");
    assert_eq!(play(service, "", &["<bo@acme.test>"], ANNA).await, "pass");
}

/// A header with that many strangers in To, then a contact and a user in Cc.
fn crowd(strangers: usize) -> String {
    let to: String = (0..strangers).map(|n| format!("To: x{n}@nowhere.test\n")).collect();
    format!("Subject: s\n{to}Cc: bo@acme.test, anna@mycompany.test\n")
}

#[tokio::test]
async fn people_beyond_the_limit_are_counted_and_link_nobody() {
    let small = || service(Policy { max_people: 10, ..policy() }, file());
    // All fit.
    let all = play(small(), "", MY, &crowd(8)).await;
    assert!(all.starts_with("u-anna(cc) @c-acme: "), "{all}");
    // The user does not.
    assert_eq!(play(small(), "", MY, &crowd(9)).await, "550 5.7.1 no-user");
    // Who may be the sender comes first, however late his field stands; the contact is beyond the limit.
    let late = format!("{}Sender: anna@mycompany.test\n", crowd(20));
    let found = play(small(), "", MY, &late).await;
    assert!(found.starts_with("u-anna(sender): external x0@"), "{found}");
    assert_eq!(found.matches("external").count(), 9);
}
