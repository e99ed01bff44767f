//! Filters that verify senders before us: OpenDKIM and OpenDMARC, and rspamd, real ones behind a real Postfix, with a name
//! server of our own.
//!
//! Each test takes some seconds: it makes keys, and starts a Postfix, filters and the service.

use crate::support::{
    dkim::Signer,
    filters::{Filter, Island},
    names::{Mood, Names},
    smtp::{Smtp, matches},
    world::{Options, World},
};

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";
const BO: &str = "bo@acme.test";
const ACCEPTED: &str = "250*";
const REFUSED: &str = "550 5.7.26 <mycompany@severamail.test>: *[not-authenticated]*";
/// What Postfix says where a filter is down that must not be.
const NOT_NOW: &str = "451 4.7.1 Service unavailable*";
/// The mail server of mycompany.test, by its SPF record, and somebody else.
const OURS: &str = "203.0.113.7";
const STRANGER: &str = "198.51.100.66";
/// The line by which forged fields are gone before a filter adds its own.
const CHECKS: &str = r"regexp:{ { /^Authentication-Results[[:space:]]*:.*mx\.test/ IGNORE } }";
const FORGED: &str = "Authentication-Results: mx.test; dkim=pass header.d=mycompany.test; \
    dmarc=pass header.from=mycompany.test\r\n";

/// A world whose sender has to be proven, filters, and keys of two domains.
struct Scene {
    world: World,
    island: Island,
    ours: Signer,
    evil: Signer,
    milter: String,
}

impl Scene {
    fn new() -> Self {
        let names = Names::default();
        let world = World::with(Options {
            config: vec![
                ("policy", "require = \"authenticated\"".to_owned()),
                ("sender", "trusted_authserv_ids = [\"mx.test\"]".to_owned()),
            ],
            postfix: vec![
                "smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination".to_owned(),
                // Tests come from this machine, and say where from.
                "smtpd_authorized_xclient_hosts = 127.0.0.1".to_owned(),
                format!("header_checks = {CHECKS}"),
            ],
            ..Options::default()
        });
        world.postfix.serve_once();
        let directory = world.root.join("filters");
        let island = Island::new(&directory, &names);
        let (ours, evil) = (Signer::new("mycompany.test", &directory), Signer::new("evil.test", &directory));
        for (domain, signer, spf) in [("mycompany.test", &ours, OURS), ("evil.test", &evil, STRANGER)] {
            let (name, key) = signer.record();
            names.text(&name, &key).text(domain, &format!("v=spf1 ip4:{spf} -all"));
            names.text(&format!("_dmarc.{domain}"), "v=DMARC1; p=reject");
        }
        // Somebody who passes mail on.
        names.text("relay.test", "v=spf1 -all");
        let milter = world.postfix.tool("postconf", &["-h", "smtpd_milters"]).trim().to_owned();
        Self { world, island, ours, evil, milter }
    }

    /// Puts filters before us.
    fn put_before(&self, filters: &[String]) {
        let all = [filters, std::slice::from_ref(&self.milter)].concat().join(", ");
        self.world.postfix.set("smtpd_milters", &all);
        self.world.postfix.reload();
    }

    fn smtp_from(&self, client: &str, helo: &str) -> Smtp {
        let mut smtp = self.world.smtp();
        let answer = smtp.command(&format!("XCLIENT ADDR={client} NAME=client.test"));
        assert!(answer.starts_with("220"), "{answer}");
        assert!(smtp.command(&format!("EHLO {helo}")).starts_with("250"));
        smtp
    }

    /// What a stranger writes so that a filter, which repeats it, seems to say what it has not found.
    #[track_caller]
    fn play_echoes(&self) {
        let pass = "dkim=pass header.d=mycompany.test";
        let (quoted, bare) = (format!("\"a) ; {pass}; x=y (b\"@evil.test"), "x@evil.test".to_owned());
        let helos = [
            format!("a);{}(x)header.d=mycompany.test;(", "dkim=pass"),
            format!("b\"a);{}(x)header.d=mycompany.test;(", "dkim=pass"),
            "a;spf=pass(x)smtp.mailfrom=mycompany.test;x=y".to_owned(),
        ];
        let [first, second, third] = &helos;
        let signature = "DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=evil.test; s=s;\r\n\ti=a=3B=20dkim=3Dpass=20\
             header.d=3Dmycompany.test=3B=20x=3Dy@evil.test;\r\n\th=from; bh=AAAA; b=AAAA\r\n";
        for (case, helo, sender, field) in [
            ("sender", "client.test", quoted.as_str(), ""),
            ("HELO", first, "", ""),
            ("HELO with a quote", second, "", ""),
            ("HELO bare", third, "", ""),
            ("signature", "client.test", &bare, signature),
        ] {
            let fields = format!("{field}Sender: {ANNA}\r\n");
            let message = [fields.as_bytes(), &message("x@evil.test", case)].concat();
            let found = self.smtp_from(STRANGER, helo).mail(sender, &[MY], &message).1;
            assert!(
                matches(&found, REFUSED),
                "{case}: {found}\n{}",
                self.world.milter.as_ref().unwrap().log()
            );
        }
    }

    /// The last answer to a message.
    fn send(&self, client: &str, sender: &str, message: &[u8]) -> String {
        self.smtp_from(client, "client.test").mail(sender, &[MY], message).1
    }

    /// Messages, and the answers that are wanted where the filters are there.
    #[track_caller]
    fn play_all(&self, expected: impl Fn(&str, &str) -> String) {
        for (case, client, sender, message, answer) in self.cases() {
            let expected = expected(case, answer);
            let found = self.send(client, sender, &message);
            assert!(
                matches(&found, &expected),
                "{case}: {found}, not {expected}\n{}",
                self.world.milter.as_ref().unwrap().log()
            );
        }
    }

    fn cases(&self) -> Vec<(&'static str, &'static str, &'static str, Vec<u8>, &'static str)> {
        let signed = |subject: &str| self.ours.sign(&message(ANNA, subject));
        let forged = |message: &[u8]| [FORGED.as_bytes(), message].concat();
        let mut changed = signed("signed, and changed on its way");
        let end = changed.len() - 3;
        changed[end] = b'!';
        vec![
            ("signed", STRANGER, "bounce@relay.test", signed("signed"), ACCEPTED),
            ("by SPF", OURS, ANNA, message(ANNA, "by SPF"), ACCEPTED),
            ("both", OURS, ANNA, signed("both"), ACCEPTED),
            ("not signed", STRANGER, ANNA, message(ANNA, "not signed"), REFUSED),
            ("changed", STRANGER, "bounce@relay.test", changed, REFUSED),
            (
                "signed and sent by others",
                STRANGER,
                "mallory@evil.test",
                self.evil.sign(&message(ANNA, "by others")),
                REFUSED,
            ),
            ("forged", STRANGER, ANNA, forged(&message(ANNA, "forged")), REFUSED),
            ("signed and forged", STRANGER, "bounce@relay.test", forged(&signed("s and f")), ACCEPTED),
        ]
    }

    /// What came of the messages that were accepted.
    #[track_caller]
    fn assert_activities(&self, subjects: &[&str]) {
        let activities = self.world.wait_for_activities(subjects.len());
        for (activity, subject) in activities.iter().zip(subjects) {
            assert_eq!(activity["subject"], *subject);
            assert_eq!(
                (&activity["sender_authenticated"], &activity["owner"]["user_id"]),
                (&true.into(), &"u-anna".into()),
                "{subject}"
            );
        }
    }
}

fn message(from: &str, subject: &str) -> Vec<u8> {
    let text = format!(
        "From: {from}\nTo: {BO}\nSubject: {subject}\nDate: Mon, 23 Nov 2026 18:00:00 +0000\n\
         Message-ID: <{}@mycompany.test>\n\nHello\n",
        subject.replace(|c: char| !c.is_ascii_alphanumeric(), "-")
    );
    text.replace('\n', "\r\n").into_bytes()
}

const RECORDED: [&str; 4] = ["signed", "by SPF", "both", "s and f"];

// W1
#[test]
fn opendkim_and_opendmarc_prove_who_sent_it() {
    let scene = Scene::new();
    let (dkim, dmarc) = (scene.island.opendkim(), scene.island.opendmarc());
    let milters = |when_down| [dkim.milter(when_down), dmarc.milter(when_down)];
    scene.put_before(&milters("tempfail"));
    scene.play_all(|_, answer| answer.to_owned());
    scene.play_echoes();
    scene.assert_activities(&RECORDED);
    // Who is no user need prove nothing, and it is said.
    let to_anna = String::from_utf8(message(BO, "to Anna"))
        .unwrap()
        .replace(&format!("To: {BO}"), "To: anna@mycompany.test");
    let answer = scene.send(STRANGER, BO, to_anna.as_bytes());
    assert!(matches(&answer, ACCEPTED), "{answer}");
    let last = scene.world.wait_for_activities(5).pop().unwrap();
    assert_eq!((&last["subject"], &last["sender_authenticated"]), (&"to Anna".into(), &false.into()));
}

// W3
#[test]
fn without_the_filters_nothing_proves_anything() {
    let scene = Scene::new();
    let (dkim, dmarc) = (scene.island.opendkim(), scene.island.opendmarc());
    let milters = |when_down| [dkim.milter(when_down), dmarc.milter(when_down)];
    let (strict, lenient) = (milters("tempfail"), milters("accept"));
    drop((dkim, dmarc));
    scene.put_before(&strict);
    scene.play_all(|_, _| NOT_NOW.to_owned());
    scene.put_before(&lenient);
    scene.play_all(|_, _| REFUSED.to_owned());
    assert_eq!(scene.world.activities().len(), 0);
}

// W1
#[test]
fn rspamd_proves_who_sent_it() {
    let scene = Scene::new();
    let rspamd: Filter = scene.island.rspamd();
    scene.put_before(&[rspamd.milter("tempfail")]);
    scene.play_all(|_, answer| answer.to_owned());
    scene.play_echoes();
    scene.assert_activities(&RECORDED);
    let lenient = rspamd.milter("accept");
    drop(rspamd);
    scene.put_before(&[lenient]);
    scene.play_all(|_, _| REFUSED.to_owned());
}

// W6
#[test]
fn while_the_name_server_is_down_the_mail_waits() {
    let scene = Scene::new();
    let (dkim, rspamd) = (scene.island.opendkim(), scene.island.rspamd());
    scene.island.names.set_mood(Mood::Failing);
    let send = || scene.send(OURS, ANNA, &scene.ours.sign(&message(ANNA, "signed")));
    // OpenDKIM says nothing then, and rspamd says temperror: docs/operations.md has it.
    let waits = "451 4.4.3 <mycompany@severamail.test>: *[sender-unverified]*";
    for (filter, expected) in [(&dkim, REFUSED), (&rspamd, waits)] {
        scene.put_before(&[filter.milter("tempfail")]);
        let answer = send();
        assert!(matches(&answer, expected), "{answer}, not {expected}");
    }
    assert_eq!(scene.world.activities().len(), 0);
    scene.island.names.set_mood(Mood::Well);
    let answer = send();
    assert!(matches(&answer, ACCEPTED), "{answer}");
    scene.assert_activities(&["signed"]);
}
