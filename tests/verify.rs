//! Who sent a message, found out by ourselves: signatures, SPF and DMARC against a name server of our own. Built with
//! `cargo test --features verify --test verify`; takes about ten seconds, half of them to wait for a silent name server.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/mod.rs"]
mod support;

use activity_milter::{
    directory::FileDirectory,
    intake::{Client, Live, Policy, Service, Session},
    mail::{Budget, Domain, Intake},
    rules::{Addressing, Require, TenantPolicy, Texts},
    verify::{self, Settings},
};
use std::{net::SocketAddr, path::Path, sync::Arc, time::Instant};
use support::{
    dkim::Signer,
    names::{Mood, Names},
    policy::policy,
};

const OURS: &str = "203.0.113.7";
const STRANGER: &str = "198.51.100.66";
const ANNA: &str = "anna@mycompany.test";
const REFUSED: &str = "550 not-authenticated";
const WAITS: &str = "451 sender-unverified";
const PROVEN: &str = "u-anna Some(true)";

/// A name server, and the keys of two domains.
struct Scene {
    names: Names,
    server: SocketAddr,
    ours: Signer,
    evil: Signer,
    _keys: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let keys = tempfile::tempdir().unwrap();
        let names = Names::default();
        let (ours, evil) =
            (Signer::new("mycompany.test", keys.path()), Signer::new("evil.test", keys.path()));
        for (domain, signer, spf) in [("mycompany.test", &ours, OURS), ("evil.test", &evil, STRANGER)] {
            let (name, key) = signer.record();
            names.text(&name, &key).text(domain, &format!("v=spf1 ip4:{spf} -all"));
            names.text(&format!("_dmarc.{domain}"), "v=DMARC1; p=reject");
        }
        let server = names.serve(([127, 0, 0, 1], 0).into());
        Self { names, server, ours, evil, _keys: keys }
    }

    /// A service that has asked nobody yet.
    fn service(&self, require: Require) -> Live {
        let tenants = TenantPolicy { require, ..TenantPolicy::default() };
        let policy = Policy { max_size: 16 << 20, tenants, ..policy() };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/directory.toml");
        let directory = Arc::new(FileDirectory::open(&path).unwrap());
        let domains = vec![Domain::parse("severamail.test").unwrap()];
        let addressing = Addressing { domains, recipient_delimiter: String::new() };
        let budget = Budget::new(64 << 20);
        let service =
            Service::new(addressing, policy, Texts::default(), directory, budget, std::env::temp_dir());
        let settings = Settings { name_server: Some(self.server) };
        service.verifying(verify::start(Some(&settings)).unwrap()).into()
    }
}

/// The owner and the verdict, or the reply.
async fn play(live: &Live, client: &str, sender: &str, message: &[u8]) -> String {
    let mut session = Session::new(live.clone());
    session.mail(format!("<{sender}>").as_bytes(), Intake::Lmtp);
    let recipient = std::ffi::CString::new("<mycompany@severamail.test>").unwrap();
    let client = || Client { address: Some(client.to_owned()), is_local: false, helo: None, login: None };
    session.rcpt(&recipient, client).await.unwrap();
    session.data().unwrap();
    let at = message.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    session.raw_header(&message[..at + 2]);
    let refused = |session: &Session| session.refusals().into_iter().flatten().next();
    let mut answer = session.end_of_header().await.map(drop);
    // In odd pieces.
    for piece in message[at + 4..].chunks(1021) {
        session.body(piece).await;
    }
    if answer.is_ok() {
        answer = session.end_of_body().await;
    }
    if let Some(reply) = answer.err().or_else(|| refused(&session)) {
        return format!("{} {}", reply.code, reply.reason);
    }
    let end = session.end().await.unwrap();
    let activity = end.pending.unwrap().parcel.activities.remove(0);
    format!("{} {:?}", activity.owner.user_id, activity.sender_authenticated)
}

fn message(from: &str, body: &str) -> Vec<u8> {
    format!("From: {from}\r\nTo: anna@mycompany.test\r\nSubject: s\r\n\r\n{body}").into_bytes()
}

#[tokio::test]
async fn what_is_signed_or_sent_from_where_it_may_be_is_proven() {
    let scene = Scene::new();
    let live = scene.service(Require::Authenticated);
    let plain = message(ANNA, "Hello\r\n");
    let signed = scene.ours.sign(&plain);
    let mut changed = signed.clone();
    let end = changed.len() - 3;
    changed[end] = b'!';
    let long = message(ANNA, &"Hello, it is me.  \r\n".repeat(200_000));
    let twice = scene.evil.sign(&signed);
    let [both_changed, theirs] = [&changed, &plain].map(|message| scene.evil.sign(message));
    let other_subject = String::from_utf8(signed.clone()).unwrap().replace("Subject: s", "Subject: t");
    let bo = message("bo@acme.test", "Hello\r\n");
    for (case, client, sender, message, expected) in [
        ("signed", STRANGER, "bounce@relay.test", signed.clone(), PROVEN),
        ("signed, from nobody", STRANGER, "", signed.clone(), PROVEN),
        ("by SPF", OURS, ANNA, plain.clone(), PROVEN),
        ("by SPF of another domain", STRANGER, "mallory@evil.test", plain.clone(), REFUSED),
        ("nothing", STRANGER, ANNA, plain.clone(), REFUSED),
        ("the body is changed", STRANGER, "bounce@relay.test", changed, REFUSED),
        ("the head is changed", STRANGER, "bounce@relay.test", other_subject.into_bytes(), REFUSED),
        ("signed by somebody else", STRANGER, "mallory@evil.test", theirs, REFUSED),
        ("a second signature is as good", STRANGER, "mallory@evil.test", twice, PROVEN),
        ("and saves nothing", STRANGER, "mallory@evil.test", both_changed, REFUSED),
        ("long", STRANGER, "bounce@relay.test", scene.ours.sign(&long), PROVEN),
        (
            "From is not signed",
            STRANGER,
            "bounce@relay.test",
            scene.ours.sign_these(&["To", "Subject"], "", &plain),
            REFUSED,
        ),
        (
            "a part of the body is signed",
            STRANGER,
            "bounce@relay.test",
            scene.ours.sign_these(&["From", "Subject"], "l=7;", &plain),
            REFUSED,
        ),
        (
            "it was good until 1970",
            STRANGER,
            "bounce@relay.test",
            scene.ours.sign_these(&["From", "Subject"], "t=900; x=1000;", &plain),
            REFUSED,
        ),
        ("a customer who is not proven", STRANGER, "bo@acme.test", bo, "u-anna Some(false)"),
    ] {
        assert_eq!(play(&live, client, sender, &message).await, expected, "{case}");
    }
    let evil = scene.evil.sign(&message("bo@evil.test", "Hello\r\n"));
    assert_eq!(play(&live, STRANGER, "", &evil).await, PROVEN, "a customer who is proven");
    assert!(scene.names.asked().contains(&"_dmarc.mycompany.test".to_owned()));
}

// W7
#[tokio::test]
async fn a_name_server_that_does_not_answer_is_no_refusal_and_no_pass() {
    let scene = Scene::new();
    let signed = scene.ours.sign(&message(ANNA, "Hello\r\n"));
    let bo = message("bo@acme.test", "Hello\r\n");
    for mood in [Mood::Failing, Mood::Silent] {
        scene.names.set_mood(mood);
        let live = scene.service(Require::Authenticated);
        let started = Instant::now();
        assert_eq!(play(&live, OURS, ANNA, &signed).await, WAITS, "{mood:?}");
        assert!(started.elapsed().as_secs() < 20, "bounded");
        // Nobody asks a customer to prove anything, so his mail does not wait for it either.
        assert_eq!(play(&live, STRANGER, "bo@acme.test", &bo).await, "u-anna Some(false)", "{mood:?}");
    }
    scene.names.set_mood(Mood::Well);
    let live = scene.service(Require::Authenticated);
    assert_eq!(play(&live, OURS, ANNA, &signed).await, PROVEN);
}

// W7
#[tokio::test]
async fn nobody_is_asked_where_nobody_wants_to_know() {
    let scene = Scene::new();
    let live = scene.service(Require::None);
    let signed = scene.ours.sign(&message(ANNA, "Hello\r\n"));
    assert_eq!(play(&live, STRANGER, ANNA, &signed).await, "u-anna None");
    // Other people's mail.
    let live = scene.service(Require::Authenticated);
    let mut session = Session::new(live.clone());
    session.mail(b"<anna@mycompany.test>", Intake::Milter);
    session.rcpt(c"<bo@acme.test>", Client::default).await.unwrap();
    session.data().unwrap();
    assert_eq!(scene.names.asked(), Vec::<String>::new());
}
