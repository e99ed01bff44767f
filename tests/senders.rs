//! Who counts as the sender, where a tenant asks for it: a matrix over the place that names him, what a filter before us
//! says, its domain, the door and the login; and how much is taken from whom. Each case goes through the session that the
//! doors use.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/policy.rs"]
mod policy;

use activity_milter::{
    directory::FileDirectory,
    intake::{Client, Live, Policy, Service, Session},
    mail::{Budget, Domain, Intake},
    rules::{
        Addressing, Answer, Finding, Internal, Limits, Logins, Method, Outcome, Rate, Require, TenantPolicy,
        Texts, Trust,
    },
    verify::{Question, Verification, Verifier},
};
use policy::policy;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

const MY: &str = "<mycompany@severamail.test>";

fn service(require: Require, logins: Logins, received_by: Option<&str>) -> Live {
    limited(require, logins, received_by, Limits::default())
}

fn limited(require: Require, logins: Logins, received_by: Option<&str>, limits: Limits) -> Live {
    service_with(requiring(require), logins, received_by, limits, None)
}

fn requiring(require: Require) -> TenantPolicy {
    TenantPolicy { require, ..TenantPolicy::default() }
}

fn service_with(
    tenants: TenantPolicy,
    logins: Logins,
    received_by: Option<&str>,
    limits: Limits,
    verifier: Option<Arc<dyn Verifier>>,
) -> Live {
    let trust = Trust {
        networks: vec!["192.0.2.0/24".parse().unwrap()],
        logins,
        authserv_ids: vec!["mx.test".to_owned()],
        received_by: received_by.map(str::to_owned),
    };
    let policy = Policy { limits, tenants, trust, ..policy() };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/directory.toml");
    let directory = Arc::new(FileDirectory::open(&path).unwrap());
    let domains = vec![Domain::parse("severamail.test").unwrap()];
    let addressing = Addressing { domains, recipient_delimiter: String::new() };
    let spool = std::env::temp_dir();
    let service = Service::new(addressing, policy, Texts::default(), directory, Budget::new(1 << 20), spool);
    service.verifying(verifier).into()
}

/// What becomes of a message: `owner verdict`, or the reply.
async fn play(live: &Live, door: Intake, client: Client, sender: &str, head: &str) -> String {
    let mut session = Session::new(live.clone());
    session.mail(sender.as_bytes(), door);
    let recipient = std::ffi::CString::new(MY).unwrap();
    session.rcpt(&recipient, || client).await.unwrap();
    session.data().unwrap();
    session.raw_header(head.as_bytes());
    let answer = session.end_of_header().await;
    let refusal = answer.err().or_else(|| session.refusals().into_iter().flatten().next());
    match (refusal, session.records()) {
        (Some(reply), _) => format!("{} {} {}", reply.code, reply.status, reply.reason),
        (None, [record]) => {
            let verdict = record.parties.sender_authenticated;
            let verdict = verdict.map_or("null".to_owned(), |verdict| verdict.to_string());
            format!("{} {verdict}", record.parties.owner.user_id)
        }
        (None, records) => panic!("{records:?}"),
    }
}

fn client(address: Option<&str>, is_local: bool, login: Option<&str>) -> Client {
    Client { address: address.map(str::to_owned), is_local, helo: None, login: login.map(str::to_owned) }
}

const REFUSED: &str = "550 5.7.26 not-authenticated";

/// Where the user's address stands.
const PLACES: [&str; 4] = ["From", "Sender", "Resent-From", "envelope"];

/// What the filter says: a name, the field's value with `DOMAIN` in it, and for which places it proves something.
const RESULTS: [(&str, &str, &[&str]); 9] = [
    ("nothing", "", &[]),
    ("dmarc", "mx.test; dmarc=pass header.from=DOMAIN", &["From"]),
    ("dkim", "mx.test; dkim=pass header.d=DOMAIN", &["From", "Sender", "Resent-From"]),
    ("spf", "mx.test; spf=pass smtp.mailfrom=bounce@DOMAIN", &["From", "envelope"]),
    ("none", "mx.test; none", &[]),
    ("dkim fails", "mx.test; dkim=fail header.d=DOMAIN", &[]),
    (
        "dmarc fails",
        "mx.test; dmarc=fail header.from=DOMAIN; dkim=pass header.d=DOMAIN",
        &["Sender", "Resent-From"],
    ),
    ("forged", "evil.test; dmarc=pass header.from=DOMAIN; dkim=pass header.d=DOMAIN", &[]),
    (
        "disagree",
        "mx.test; spf=pass smtp.mailfrom=DOMAIN\r\nAuthentication-Results: mx.test; spf=fail smtp.mailfrom=DOMAIN",
        &[],
    ),
];

const LOGINS: [Option<&str>; 6] = [
    None,
    Some("anna@mycompany.test"),
    Some("anna.aalto@mycompany.test"),
    Some("esa@mycompany.test"),
    // Somebody of another company.
    Some("gerda@other.test"),
    Some("anna"),
];

/// The rule, once more: who owns.
fn expected(place: &str, proves: bool, login: Option<&str>, logins: Logins) -> String {
    let is_esa = login == Some("esa@mycompany.test");
    let owner = match login {
        // The login is asked before the envelope sender.
        _ if proves && !(place == "envelope" && is_esa) => Some("u-anna"),
        Some("anna@mycompany.test" | "anna.aalto@mycompany.test") => Some("u-anna"),
        Some("esa@mycompany.test") => Some("u-esa"),
        Some("anna") if logins == Logins::Any => Some("u-anna"),
        _ => None,
    };
    owner.map_or(REFUSED.to_owned(), |owner| format!("{owner} true"))
}

// W1
#[tokio::test]
async fn the_matrix_of_place_result_domain_door_and_login() {
    let mut cases = 0;
    for (door, received_by) in [(Intake::Milter, None), (Intake::Lmtp, Some("mx.test")), (Intake::Lmtp, None)]
    {
        for logins in [Logins::Address, Logins::Any] {
            let live = service(Require::Authenticated, logins, received_by);
            for (place, login) in PLACES.iter().flat_map(|place| LOGINS.map(|login| (*place, login))) {
                for (name, result, places) in RESULTS {
                    for (domain, is_its) in [("mycompany.test", true), ("evil.test", false)] {
                        let (sender, head) = message(place, login, &result.replace("DOMAIN", domain));
                        let by_milter = login.filter(|_| door == Intake::Milter);
                        let seen = login.filter(|_| door == Intake::Milter || received_by.is_some());
                        let from = client(Some("203.0.113.7"), false, by_milter);
                        // A dmarc=fail for somebody else's domain says nothing of this one, and the signature is not its.
                        let proves = is_its && places.contains(&place);
                        let found = play(&live, door, from, sender, &head).await;
                        let wanted = expected(place, proves, seen, logins);
                        assert_eq!(
                            found, wanted,
                            "{door:?} {received_by:?} {logins:?} {place} {login:?} {name} {domain}"
                        );
                        cases += 1;
                    }
                }
            }
        }
    }
    assert_eq!(cases, 3 * 2 * 4 * 6 * 9 * 2);
}

/// Envelope sender and head of a message that names anna in this place.
fn message(place: &str, login: Option<&str>, result: &str) -> (&'static str, String) {
    let received = login.map_or(String::new(), |login| {
        format!("Received: from pc (pc [203.0.113.7])\r\n\t(Authenticated sender: {login})\r\n\tby mx.test (Postfix) with ESMTPSA id X\r\n")
    });
    let said = match result {
        "" => String::new(),
        result => format!("Authentication-Results: {result}\r\n"),
    };
    let (sender, names) = match place {
        "From" => ("x@nowhere.test", "From: anna@mycompany.test\r\n".to_owned()),
        "envelope" => ("anna@mycompany.test", "From: x@nowhere.test\r\n".to_owned()),
        field => ("x@nowhere.test", format!("{field}: anna@mycompany.test\r\nFrom: x@nowhere.test\r\n")),
    };
    // Resent- fields begin a block of their own, above what was there.
    (sender, format!("{received}{said}{names}Subject: s\r\n"))
}

const ANNA: &str = "From: anna@mycompany.test\r\nSubject: s\r\n";

// W1
#[tokio::test]
async fn networks_count_at_both_doors_and_the_machine_itself_where_it_has_no_address() {
    let live = service(Require::Authenticated, Logins::Address, None);
    for (address, is_local, passes) in [
        (Some("192.0.2.7"), false, true),
        // As Postfix writes it, in its macro and in XFORWARD.
        (Some("IPv6:::ffff:192.0.2.7"), false, true),
        (Some("ipv6:::ffff:192.0.2.7"), false, true),
        (Some("IPv6:2001:db8::7"), false, false),
        (Some("203.0.113.7"), false, false),
        (Some("203.0.113.7"), true, false),
        (Some("127.0.0.1"), true, false),
        (None, true, true),
        (None, false, false),
    ] {
        for door in [Intake::Milter, Intake::Lmtp] {
            let found = play(&live, door, client(address, is_local, None), "", ANNA).await;
            let wanted = if passes { "u-anna true" } else { REFUSED };
            assert_eq!(found, wanted, "{address:?} {is_local} {door:?}");
        }
    }
}

// W6
#[tokio::test]
async fn who_is_asked_and_who_is_not() {
    let proven = "Authentication-Results: mx.test; dmarc=pass header.from=acme.test\r\n";
    let customer = "From: bo@acme.test\r\nTo: anna@mycompany.test\r\nSubject: s\r\n";
    for (sentence, require, head, expected) in [
        ("nobody asks", Require::None, ANNA.to_owned(), "u-anna null"),
        ("a user is asked", Require::Authenticated, ANNA.to_owned(), REFUSED),
        (
            "also if a recipient is a user",
            Require::Authenticated,
            "From: anna@mycompany.test\r\nTo: esa@mycompany.test\r\nSubject: s\r\n".to_owned(),
            REFUSED,
        ),
        (
            "who is no user need prove nothing: the recipient owns",
            Require::Authenticated,
            customer.to_owned(),
            "u-anna false",
        ),
        (
            "and it is said if something proves him",
            Require::Authenticated,
            format!("{proven}{customer}"),
            "u-anna true",
        ),
        (
            "a sender in From who is not proven is passed over for one in Sender who is",
            Require::Authenticated,
            "Authentication-Results: mx.test; dkim=pass header.d=xn--rksmrgs-5wao1o.test\r\n\
             From: anna@mycompany.test\r\nSender: asa@räksmörgås.test\r\nSubject: s\r\n"
                .to_owned(),
            "u-asa true",
        ),
        (
            "a name server did not answer the filter: later",
            Require::Authenticated,
            format!("Authentication-Results: mx.test; dmarc=temperror header.from=mycompany.test\r\n{ANNA}"),
            "451 4.4.3 sender-unverified",
        ),
        (
            "so also if somebody else is proven: he would own what is not his",
            Require::Authenticated,
            "Authentication-Results: mx.test; dkim=temperror header.d=mycompany.test; dkim=pass header.d=xn--rksmrgs-5wao1o.test\r\n\
             From: anna@mycompany.test\r\nSender: asa@räksmörgås.test\r\nSubject: s\r\n"
                .to_owned(),
            "451 4.4.3 sender-unverified",
        ),
        (
            "but not if nobody asks",
            Require::None,
            format!("Authentication-Results: mx.test; dmarc=temperror header.from=mycompany.test\r\n{ANNA}"),
            "u-anna null",
        ),
        (
            "nor if he need prove nothing",
            Require::Authenticated,
            format!("Authentication-Results: mx.test; dmarc=temperror header.from=acme.test\r\n{customer}"),
            "u-anna false",
        ),
        (
            "two From fields are refused before anybody is asked",
            Require::Authenticated,
            format!(
                "Authentication-Results: mx.test; dmarc=pass header.from=mycompany.test\r\nFrom: anna@mycompany.test\r\n{ANNA}"
            ),
            "550 5.6.0 ambiguous-from",
        ),
    ] {
        let live = service(require, Logins::Address, None);
        let from = client(Some("203.0.113.7"), false, None);
        let found = play(&live, Intake::Milter, from, "", &head).await;
        assert_eq!(found, expected, "{sentence}");
    }
}

/// Finds out what it was told to find out, and counts the messages it is asked about.
#[derive(Default)]
struct Told {
    findings: Vec<Finding>,
    wants_body: bool,
    /// Finds out nothing in time.
    hangs: bool,
    asked: Arc<AtomicUsize>,
}

struct TellsLater {
    findings: Vec<Finding>,
    wants_body: bool,
    hangs: bool,
    body: Vec<u8>,
}

impl Verifier for Told {
    fn begin(&self, question: Question) -> Box<dyn Verification> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        assert_eq!(question.client, Some([203, 0, 113, 7].into()));
        assert!(question.head.ends_with(b"Subject: s\r\n"), "{}", String::from_utf8_lossy(&question.head));
        let Self { findings, wants_body, hangs, .. } = self;
        Box::new(TellsLater {
            findings: findings.clone(),
            wants_body: *wants_body,
            hangs: *hangs,
            body: Vec::new(),
        })
    }
}

#[async_trait::async_trait]
impl Verification for TellsLater {
    fn wants_body(&self) -> bool {
        self.wants_body
    }

    fn body(&mut self, piece: &[u8]) {
        self.body.extend_from_slice(piece);
    }

    async fn finish(self: Box<Self>) -> Vec<Finding> {
        assert_eq!(self.body, if self.wants_body { &b"Hello\r\nyou\r\n"[..] } else { b"" });
        if self.hangs {
            std::future::pending::<()>().await;
        }
        self.findings
    }
}

/// The owner and the verdict, or the reply, and after which stage it was known.
async fn play_whole(live: &Live, head: &str) -> String {
    let mut session = Session::new(live.clone());
    session.mail(b"<x@nowhere.test>", Intake::Milter);
    let recipient = std::ffi::CString::new(MY).unwrap();
    session.rcpt(&recipient, || client(Some("203.0.113.7"), false, None)).await.unwrap();
    session.data().unwrap();
    session.raw_header(head.as_bytes());
    if let Err(reply) = session.end_of_header().await {
        return format!("header: {} {}", reply.code, reply.reason);
    }
    session.body(b"Hello\r\n").await;
    session.body(b"you\r\n").await;
    match session.end().await {
        Ok(end) => {
            let activity = end.pending.unwrap().parcel.activities.remove(0);
            let owner = activity.owner.user_id.clone();
            format!("{owner} {:?}", activity.sender_authenticated)
        }
        Err(reply) => format!("end: {} {}", reply.code, reply.reason),
    }
}

// W7
#[tokio::test(start_paused = true)]
async fn we_ask_ourselves_where_the_outcome_depends_on_it() {
    let found =
        |method, outcome| vec![Finding::new(method, outcome, Some(Domain::parse("mycompany.test").unwrap()))];
    let passes = || found(Method::Dkim, Outcome::Pass);
    let proven = "Authentication-Results: mx.test; dkim=pass header.d=mycompany.test\r\n";
    let fails = "Authentication-Results: mx.test; dmarc=fail header.from=mycompany.test\r\n";
    let customer = "From: bo@acme.test\r\nTo: anna@mycompany.test\r\nSubject: s\r\n";
    for (sentence, require, head, findings, hangs, expected, asked) in [
        ("proven", Require::Authenticated, ANNA.to_owned(), passes(), false, "u-anna Some(true)", 1),
        (
            "not proven",
            Require::Authenticated,
            ANNA.to_owned(),
            Vec::new(),
            false,
            "550 not-authenticated",
            1,
        ),
        (
            "a name server is down",
            Require::Authenticated,
            ANNA.to_owned(),
            found(Method::Dkim, Outcome::Temporary),
            false,
            "451 sender-unverified",
            1,
        ),
        ("it hangs", Require::Authenticated, ANNA.to_owned(), Vec::new(), true, "451 sender-unverified", 1),
        ("nobody wants to know", Require::None, ANNA.to_owned(), Vec::new(), true, "u-anna None", 0),
        (
            "a filter knows already",
            Require::Authenticated,
            format!("{proven}{ANNA}"),
            Vec::new(),
            true,
            "u-anna Some(true)",
            0,
        ),
        (
            "nothing can prove it",
            Require::Authenticated,
            format!("{fails}{ANNA}"),
            passes(),
            true,
            "header: 550 not-authenticated",
            0,
        ),
        (
            "a customer is asked for nothing, and it is said if he is proven",
            Require::Authenticated,
            customer.to_owned(),
            vec![
                Finding::new(Method::Spf, Outcome::Pass, None),
                Finding::new(Method::Dmarc, Outcome::Pass, Domain::parse("acme.test").ok()),
            ],
            false,
            "u-anna Some(true)",
            1,
        ),
        (
            "nor does his mail wait",
            Require::Authenticated,
            customer.to_owned(),
            Vec::new(),
            true,
            "u-anna Some(false)",
            1,
        ),
        (
            "who is not proven is passed over for who is",
            Require::Authenticated,
            "From: anna@mycompany.test\r\nSender: asa@räksmörgås.test\r\nSubject: s\r\n".to_owned(),
            vec![Finding::new(Method::Dkim, Outcome::Pass, Domain::parse("räksmörgås.test").ok())],
            false,
            "u-asa Some(true)",
            1,
        ),
    ] {
        for wants_body in [false, true] {
            let count = Arc::new(AtomicUsize::new(0));
            let told = Told { findings: findings.clone(), wants_body, hangs, asked: Arc::clone(&count) };
            let live = service_with(
                requiring(require),
                Logins::Address,
                None,
                Limits::default(),
                Some(Arc::new(told)),
            );
            let expected = match expected.starts_with("u-") || expected.starts_with("header") {
                true => expected.to_owned(),
                // Known as soon as it can be.
                false => format!("{}: {expected}", if wants_body { "end" } else { "header" }),
            };
            assert_eq!(play_whole(&live, &head).await, expected, "{sentence} {wants_body}");
            assert_eq!(count.load(Ordering::SeqCst), asked, "{sentence} {wants_body}");
        }
    }
}

/// D9. Whatever would prove the sender: nothing is recorded, so nobody is asked, and the body is not sent.
#[tokio::test(start_paused = true)]
async fn mail_among_users_that_is_skipped_waits_for_no_proof() {
    for (to, expected, asked) in
        [("esa@mycompany.test", "header: 550 internal", 0), ("x@y.test", "end: 451 sender-unverified", 1)]
    {
        let count = Arc::new(AtomicUsize::new(0));
        let told = Told { wants_body: true, hangs: true, asked: Arc::clone(&count), ..Told::default() };
        let tenants = TenantPolicy { internal: Internal::Skip, ..requiring(Require::Authenticated) };
        let live = service_with(tenants, Logins::Address, None, Limits::default(), Some(Arc::new(told)));
        let head = format!("From: anna@mycompany.test\r\nTo: {to}\r\nSubject: s\r\n");
        assert_eq!(play_whole(&live, &head).await, expected, "{to}");
        assert_eq!(count.load(Ordering::SeqCst), asked, "{to}");
    }
}

/// D9.
#[tokio::test]
async fn what_is_private_for_one_company_is_so_whatever_another_says() {
    let tenants =
        TenantPolicy { internal: Internal::Skip, answer: Answer::Discard, ..requiring(Require::None) };
    let live = service_with(tenants, Logins::Address, None, Limits::default(), None);
    let mut session = Session::new(live);
    session.mail(b"<x@nowhere.test>", Intake::Milter);
    for recipient in [MY, "<other@severamail.test>"] {
        let recipient = std::ffi::CString::new(recipient).unwrap();
        session.rcpt(&recipient, || client(Some("203.0.113.7"), false, None)).await.unwrap();
    }
    session.data().unwrap();
    session.raw_header(b"From: anna@mycompany.test\r\nTo: esa@mycompany.test\r\nSubject: s\r\n");
    let refusal = session.end_of_header().await.unwrap_err();
    assert_eq!(refusal.reason.as_str(), "no-user");
    assert!(session.last().is_private);
}

/// What recipients of one message are told: `ok`, or the reason.
async fn told(live: &Live, door: Intake, from: &str, sender: &str, recipients: &[&str]) -> String {
    let client = match from {
        "local" => client(None, true, None),
        address => client(Some(address), false, None),
    };
    let mut session = Session::new(live.clone());
    session.mail(sender.as_bytes(), door);
    let mut all = Vec::new();
    for recipient in recipients {
        let path = std::ffi::CString::new(format!("<{recipient}>")).unwrap();
        all.push(match session.rcpt(&path, || client.clone()).await {
            Ok(()) => "ok".to_owned(),
            Err(reply) => format!("{} {} {}", reply.code, reply.status, reply.reason),
        });
    }
    all.join(", ")
}

const CLIENT_LIMIT: &str = "451 4.7.1 client-limit";
const SENDER_LIMIT: &str = "451 4.7.1 sender-limit";
const TENANT_LIMIT: &str = "450 4.2.1 tenant-limit";

/// Messages one after the other: from where, from whom, to whom, and what they are told.
type Mails<'a> = &'a [(&'a str, &'a str, &'a [&'a str], &'a str)];

/// D7.
#[tokio::test]
async fn what_is_too_much_comes_again_later() {
    const A: &str = "anna@mycompany.test";
    const MY: &str = "mycompany@severamail.test";
    const PROJECT: &str = "1001.mycompany@severamail.test";
    const OTHER: &str = "other@severamail.test";
    const FAR: &str = "203.0.113.7";
    let hourly = |count| Some(Rate { count, per: std::time::Duration::from_secs(3600) });
    let none = Limits::default();
    let client = Limits { client: hourly(2), ..none };
    let sender = Limits { sender: hourly(2), ..none };
    let tenant = Limits { tenant: hourly(2), ..none };
    let (milter, lmtp) = (Intake::Milter, Intake::Lmtp);
    let cases: &[(&str, Limits, Intake, Mails<'_>)] = &[
        (
            "nothing is limited by default",
            none,
            milter,
            &[(FAR, A, &[MY], "ok"), (FAR, A, &[MY], "ok"), (FAR, A, &[MY], "ok")],
        ),
        (
            "of a client",
            client,
            milter,
            &[
                (FAR, A, &[MY], "ok"),
                (FAR, "", &[OTHER], "ok"),
                (FAR, "x@y.test", &[MY], CLIENT_LIMIT),
                ("203.0.113.8", A, &[MY], "ok"),
            ],
        ),
        (
            "by LMTP the client is Postfix, and nobody is counted",
            client,
            lmtp,
            &[(FAR, A, &[MY], "ok"), (FAR, A, &[MY], "ok"), (FAR, A, &[MY], "ok")],
        ),
        (
            "of a sender, wherever he is and however he is written",
            sender,
            milter,
            &[
                (FAR, A, &[MY], "ok"),
                ("203.0.113.8", "Anna@MyCompany.test", &[MY], "ok"),
                ("203.0.113.9", A, &[MY], SENDER_LIMIT),
                (FAR, "esa@mycompany.test", &[MY], "ok"),
            ],
        ),
        (
            "of a sender by LMTP too",
            sender,
            lmtp,
            &[
                (FAR, A, &[MY], "ok"),
                (FAR, A, &[MY], "ok"),
                (FAR, A, &[MY, OTHER], "451 4.7.1 sender-limit, 451 4.7.1 sender-limit"),
            ],
        ),
        (
            "the null sender is everybody's",
            sender,
            milter,
            &[(FAR, "", &[MY], "ok"), (FAR, "", &[MY], "ok"), (FAR, "", &[MY], "ok")],
        ),
        (
            "a message counts once, whatever its recipients",
            sender,
            milter,
            &[
                (FAR, A, &[MY, PROJECT, OTHER], "ok, ok, ok"),
                (FAR, A, &[MY], "ok"),
                (FAR, A, &["bo@acme.test", MY], "ok, 451 4.7.1 sender-limit"),
            ],
        ),
        (
            "other people's mail does not count",
            sender,
            milter,
            &[
                (FAR, A, &["bo@acme.test"], "ok"),
                (FAR, A, &["bo@acme.test"], "ok"),
                (FAR, A, &["bo@acme.test"], "ok"),
                (FAR, A, &[MY], "ok"),
            ],
        ),
        (
            "for a tenant, from all together, and once a message",
            tenant,
            milter,
            &[
                (FAR, A, &[MY, PROJECT], "ok, ok"),
                ("203.0.113.8", "x@y.test", &[MY], "ok"),
                (
                    FAR,
                    "z@y.test",
                    &[PROJECT, OTHER, MY],
                    "450 4.2.1 tenant-limit, ok, 450 4.2.1 tenant-limit",
                ),
            ],
        ),
        (
            "for a tenant by LMTP too",
            tenant,
            lmtp,
            &[(FAR, A, &[MY], "ok"), (FAR, A, &[MY], "ok"), (FAR, A, &[MY], TENANT_LIMIT)],
        ),
        (
            "who is over the client's limit uses up nobody's",
            Limits { client: hourly(1), sender: hourly(2), ..none },
            milter,
            &[
                (FAR, A, &[MY], "ok"),
                (FAR, A, &[MY], CLIENT_LIMIT),
                (FAR, A, &[MY], CLIENT_LIMIT),
                ("203.0.113.8", A, &[MY], "ok"),
                ("203.0.113.9", A, &[MY], SENDER_LIMIT),
            ],
        ),
    ];
    for (name, limits, door, mails) in cases {
        let live = limited(Require::None, Logins::Address, None, *limits);
        for (number, (from, sender, recipients, expected)) in mails.iter().enumerate() {
            assert_eq!(told(&live, *door, from, sender, recipients).await, *expected, "{name}: {number}");
        }
    }
    // Trusted networks and the machine itself count for none.
    let all = limited(
        Require::None,
        Logins::Address,
        None,
        Limits { client: hourly(1), sender: hourly(1), tenant: hourly(1) },
    );
    for door in [milter, lmtp] {
        for _ in 0..3 {
            assert_eq!(told(&all, door, "192.0.2.9", A, &[MY]).await, "ok");
            assert_eq!(told(&all, door, "local", A, &[MY]).await, "ok");
        }
    }
    assert_eq!(told(&all, milter, FAR, A, &[MY]).await, "ok");
    assert_eq!(told(&all, lmtp, FAR, A, &[MY]).await, SENDER_LIMIT);
    assert_eq!(told(&all, milter, "192.0.2.9", A, &[MY]).await, "ok");
}
