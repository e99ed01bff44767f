//! Who is logged in, and from where: real SASL logins at a real Postfix, and what it tells us of them at either door.
//!
//! Each test takes two or three seconds.

use crate::support::{
    smtp::{Smtp, matches},
    wait_for,
    world::{Options, World},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";
const OTHER: &str = "other@severamail.test";
const ACCEPTED: &str = "250*";
const REFUSED: &str = "550 5.7.26 *[not-authenticated]*";
/// No name of a user, and a user of each of two tenants.
const LOGINS: [&str; 4] = ["anna", "anna@mycompany.test", "anna.aalto@mycompany.test", "otto@other.test"];

/// A Postfix where all of them may log in, and a policy that wants to know who it was.
fn world(sender: &str, postfix: &[&str]) -> World {
    let mut lines: Vec<String> = [
        "smtpd_sasl_auth_enable = yes",
        "smtpd_sasl_security_options = noanonymous",
        "smtpd_relay_restrictions = permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination",
        "smtpd_authorized_xclient_hosts = 127.0.0.1",
    ]
    .map(str::to_owned)
    .into();
    lines.extend(postfix.iter().map(|line| (*line).to_owned()));
    let config = vec![("policy", "require = \"authenticated\"".to_owned()), ("sender", sender.to_owned())];
    let world = World::with(Options { lmtp: true, config, postfix: lines, ..Options::default() });
    let database = world.root.join("postfix/queue/sasldb2");
    for login in LOGINS {
        // A name without a domain is of the host's.
        let (name, realm) = login.split_once('@').unwrap_or((login, "mx.test"));
        let mut command = Command::new("/usr/sbin/saslpasswd2");
        command.args(["-p", "-c", "-u", realm, "-f"]).arg(&database).arg(name).stdin(Stdio::piped());
        let mut child = command.spawn().expect("the Debian package sasl2-bin: see packaging/install-deps");
        child.stdin.take().unwrap().write_all(b"secret").unwrap();
        assert!(child.wait().unwrap().success());
    }
    assert!(Command::new("chown").arg("postfix").arg(&database).status().unwrap().success());
    let settings = format!(
        "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nmech_list: PLAIN\nsasldb_path: {}\n",
        database.display()
    );
    // Where Debian's Postfix looks for it.
    fs::create_dir(world.postfix.conf().join("sasl")).unwrap();
    fs::write(world.postfix.conf().join("sasl/smtpd.conf"), settings).unwrap();
    world.postfix.serve_once();
    world
}

/// A session from somewhere, after the login.
fn logged_in(world: &World, login: Option<&str>) -> Smtp {
    let mut smtp = from(world, "203.0.113.7");
    if let Some(login) = login {
        let words = STANDARD.encode(format!("\0{login}\0secret"));
        let answer = smtp.command(&format!("AUTH PLAIN {words}"));
        assert!(answer.starts_with("235"), "{login}: {answer}: libsasl2-modules?\n{}", world.postfix.log());
    }
    smtp
}

fn from(world: &World, client: &str) -> Smtp {
    let mut smtp = world.smtp();
    assert!(smtp.command(&format!("XCLIENT ADDR={client} NAME=pc.test")).starts_with("220"));
    assert!(smtp.command("EHLO pc.test").starts_with("250"));
    smtp
}

fn message(from: &str, subject: &str) -> Vec<u8> {
    let text = format!("From: {from}\nTo: bo@acme.test\nSubject: {subject}\n\nHello\n");
    text.replace('\n', "\r\n").into_bytes()
}

// W4
#[test]
fn a_login_counts_for_its_user_and_for_nobody_of_another_tenant() {
    let mut world = world("", &[]);
    let mut count = 0;
    for (logins, cases) in [
        (
            "address",
            &[
                (None, ANNA, MY, REFUSED),
                (Some("anna@mycompany.test"), ANNA, MY, ACCEPTED),
                // Whichever of his addresses he writes as.
                (Some("anna.aalto@mycompany.test"), ANNA, MY, ACCEPTED),
                (Some("anna@mycompany.test"), "anna.aalto@mycompany.test", MY, ACCEPTED),
                // Somebody else of the same company is recorded as who is logged in.
                (Some("anna@mycompany.test"), "esa@mycompany.test", MY, ACCEPTED),
                (Some("anna"), ANNA, MY, REFUSED),
                (Some("otto@other.test"), ANNA, MY, REFUSED),
                (Some("otto@other.test"), "otto@other.test", OTHER, ACCEPTED),
                (Some("anna@mycompany.test"), "otto@other.test", OTHER, REFUSED),
            ][..],
        ),
        (
            "any",
            &[
                (None, ANNA, MY, REFUSED),
                (Some("anna"), ANNA, MY, ACCEPTED),
                (Some("otto@other.test"), ANNA, MY, REFUSED),
            ][..],
        ),
    ] {
        let path = world.config_path();
        let text = fs::read_to_string(&path).unwrap().replace("logins = \"address\"\n", "");
        fs::write(&path, text.replace("[sender]\n", &format!("[sender]\nlogins = \"{logins}\"\n"))).unwrap();
        let reads = |log: String| log.matches("configuration read again").count();
        let before = reads(world.milter().log());
        world.milter().signal("HUP");
        wait_for("the setting", || (reads(world.milter().log()) > before).then_some(()));
        for (number, (login, writes_as, to, expected)) in cases.iter().enumerate() {
            let message = message(writes_as, &format!("{logins} {number}"));
            let (_, answer) = logged_in(&world, *login).mail("x@nowhere.test", &[to], &message);
            assert!(matches(&answer, expected), "{logins} {login:?} {writes_as}: {answer}");
            if *expected == ACCEPTED {
                count += 1;
                let last = world.wait_for_activities(count).pop().unwrap();
                assert_eq!(last["sender_authenticated"], true, "{logins} {login:?} {writes_as}");
                let owner = if *to == MY { "u-anna" } else { "u-otto" };
                assert_eq!(last["owner"]["user_id"], owner, "{logins} {login:?} {writes_as}");
                assert_eq!(last["envelope"]["login"].as_str(), *login);
            }
        }
    }
}

/// What became of a message that came by LMTP: an activity more, or a bounce with our words.
#[track_caller]
fn by_lmtp(world: &World, mut smtp: Smtp, message: &[u8], is_taken: bool) {
    let (activities, bounces) = (world.activities().len(), world.postfix.delivered().len());
    let (_, answer) = smtp.mail("x@nowhere.test", &[MY], message);
    assert!(answer.starts_with("250"), "{answer}");
    assert_outcome(world, activities, bounces, is_taken, &String::from_utf8_lossy(message));
}

#[track_caller]
fn assert_outcome(world: &World, activities: usize, bounces: usize, is_taken: bool, what: &str) {
    let counts = || (world.activities().len() - activities, world.postfix.delivered().len() - bounces);
    let found = wait_for("an activity or a bounce", || Some(counts()).filter(|counts| *counts != (0, 0)));
    assert_eq!(found, if is_taken { (1, 0) } else { (0, 1) }, "{what}\n{}", world.postfix.log());
    if is_taken {
        assert_eq!(world.activities().last().unwrap()["sender_authenticated"], true, "{what}");
        return;
    }
    let (_, bounce) = world.postfix.delivered().pop().unwrap();
    let bounce = String::from_utf8_lossy(&bounce).replace("\n    ", " ");
    let has = |words: &str| bounce.contains(words);
    assert!(has("5.7.26") && has("[not-authenticated]"), "{bounce}");
}

/// What an attacker writes, as our own host would.
const FORGED: &str = "Received: from pc.test (pc.test [203.0.113.7])\r\n\t(Authenticated sender: anna@mycompany.test)\r\n\
    \tby mx.test (Postfix) with ESMTPSA id 4XyZ; Mon, 23 Nov 2026 18:00:00 +0000 (UTC)\r\n";

// W5
#[test]
fn at_lmtp_the_topmost_received_field_of_our_own_host_names_the_login() {
    let world =
        world("received_by = \"mx.test\"", &["smtpd_milters =", "smtpd_sasl_authenticated_header = yes"]);
    let login = |login| logged_in(&world, login);
    let forged = |subject: &str| [FORGED.as_bytes(), &message(ANNA, subject)].concat();
    by_lmtp(&world, login(Some(ANNA)), &message(ANNA, "logged in"), true);
    assert_eq!(world.activities()[0]["envelope"]["login"], ANNA);
    by_lmtp(&world, login(Some("anna.aalto@mycompany.test")), &forged("logged in, and forged"), true);
    by_lmtp(&world, login(None), &message(ANNA, "not logged in"), false);
    by_lmtp(&world, login(None), &forged("forged"), false);
    by_lmtp(&world, login(Some("otto@other.test")), &forged("of another tenant"), false);
    // The client says it in its HELO.
    let mut smtp = from(&world, "203.0.113.7");
    smtp.command("EHLO (Authenticated sender: anna@mycompany.test)");
    by_lmtp(&world, smtp, &message(ANNA, "in HELO"), false);
    world.postfix.set("smtpd_sasl_authenticated_header", "no");
    world.postfix.reload();
    by_lmtp(&world, login(Some(ANNA)), &message(ANNA, "logged in, and nobody says so"), false);
}

// W5
#[test]
fn at_lmtp_xforward_names_the_client_and_the_machine_itself() {
    let xforward = "lmtp_send_xforward_command = yes";
    let world = world("trusted_networks = [\"192.0.2.0/24\"]", &["smtpd_milters =", xforward]);
    by_lmtp(&world, from(&world, "192.0.2.7"), &message(ANNA, "from our network"), true);
    assert_eq!(world.activities()[0]["envelope"]["client"], "192.0.2.7");
    by_lmtp(&world, from(&world, "203.0.113.7"), &message(ANNA, "from elsewhere"), false);
    let submit = |subject: &str, is_taken| {
        let (activities, bounces) = (world.activities().len(), world.postfix.delivered().len());
        let mut command = Command::new("/usr/sbin/sendmail");
        command.arg("-C").arg(world.postfix.conf()).args(["-f", "x@nowhere.test", MY]).stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(&message(ANNA, subject)).unwrap();
        assert!(child.wait().unwrap().success());
        assert_outcome(&world, activities, bounces, is_taken, subject);
    };
    submit("by sendmail", true);
    // Without XFORWARD nobody knows where it came from.
    world.postfix.set("lmtp_send_xforward_command", "no");
    world.postfix.reload();
    submit("by sendmail, and nobody says so", false);
    by_lmtp(&world, from(&world, "192.0.2.7"), &message(ANNA, "from our network, unsaid"), false);
}
