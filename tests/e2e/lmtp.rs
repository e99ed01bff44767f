//! The LMTP listener against a raw client: pipelined, partial and hostile input, many connections, the end.

use crate::support::{
    smtp::{Smtp, matches, stuffed},
    wait_for,
    world::{Options, World, eml},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::process::Command;

fn world() -> World {
    World::with(Options { lmtp: true, ..Options::default() })
}

fn with(table: &'static str, line: &str) -> World {
    World::with(Options { lmtp: true, config: vec![(table, line.to_owned())], ..Options::default() })
}

#[track_caller]
fn assert_reply(got: &str, pattern: &str) {
    assert!(matches(got, pattern), "expected {pattern}, got {got}");
}

/// MAIL, RCPT and DATA for a message that is fine, up to the final dot of `content`.
fn transaction(content: &[u8]) -> Vec<u8> {
    [&b"MAIL FROM:<anna@mycompany.test>\r\nRCPT TO:<mycompany@severamail.test>\r\nDATA\r\n"[..], content]
        .concat()
}

fn plain() -> Vec<u8> {
    stuffed(&eml("plain"))
}

#[test]
fn pipelined_and_partial_input() {
    let world = world();
    let all =
        [transaction(&plain()), transaction(&stuffed(&eml("html_only"))), b"QUIT\r\n".to_vec()].concat();
    let expected = ["250 2.1.0*", "250 2.1.5*", "354*", "250 2.0.0 recorded as b3:*"];
    for size in [all.len(), 1, 7] {
        let mut lmtp = world.lmtp();
        for piece in all.chunks(size) {
            lmtp.send(piece);
        }
        for pattern in expected.iter().chain(&expected).chain(&["221 2.0.0*"]) {
            assert_reply(&lmtp.reply(), pattern);
        }
        assert!(lmtp.is_closed());
    }
    // The same two e-mails three times.
    world.wait_for_activities(2);
}

/// D1.
#[test]
fn smuggled_messages_stay_inside_and_the_outer_one_is_refused() {
    let world = world();
    let inner = "MAIL FROM:<anna@mycompany.test>\r\nRCPT TO:<mycompany@severamail.test>\r\nDATA\r\n\
                 From: anna@mycompany.test\r\nSubject: smuggled\r\n\r\nx\r\n";
    for form in
        ["\n.\n", "\n.\r\n", "\r\n.\n", "\r.\r", "\r\n.\r", "\r.\r\n", "\r\n.\r\r\n", "\n\n.\r\n\r\n.\n"]
    {
        let mut lmtp = world.lmtp();
        let head = "From: anna@mycompany.test\r\nSubject: outer\r\n\r\ntext";
        lmtp.send(&transaction(format!("{head}{form}{inner}\r\n.\r\n").as_bytes()));
        for pattern in
            ["250 2.1.0*", "250 2.1.5*", "354*", "550 5.6.0 <mycompany@severamail.test>: *[bare-line-end]"]
        {
            assert_reply(&lmtp.reply(), pattern);
        }
        // Nothing else was read as a command, and nothing will be.
        assert!(lmtp.is_closed(), "{form:?}");
    }
    let mut lmtp = world.lmtp();
    lmtp.send(&transaction(&plain()));
    for pattern in ["250*", "250*", "354*", "250 2.0.0 recorded*"] {
        assert_reply(&lmtp.reply(), pattern);
    }
    assert_eq!(world.wait_for_activities(1)[0]["subject"], "Meeting on Friday");
}

#[test]
fn hostile_commands() {
    let world = world();
    let mut lmtp = world.lmtp();
    for (sent, expected) in [
        (&b"NOOP\n"[..], "500 5.5.2*"),
        (b"NO\rOP\r\n", "500 5.5.2*"),
        (b"NO\0OP\r\n", "500 5.5.2*"),
        (b"\r\n", "500 5.5.2*"),
        (b"\xff\xfe\xfd\r\n", "500 5.5.2*"),
        (b"MAIL FROM:<\xff\xfe@\xff>\r\n", "250*"), // a sender that is no address counts as none
        (b"RCPT TO:<\xff\xfe@severamail.test>\r\n", "550 5.1.3 *[bad-address]"),
        (b"RCPT TO:<mycompany@severamail.test\r\n", "*"),
        (b"RCPT TO:<\"mycompany@severamail.test>\r\n", "*"),
        (b"NOOP\r\n", "250*"),
    ] {
        lmtp.send(sent);
        let got = lmtp.reply();
        assert!(matches(&got, expected), "{}: {got}", sent.escape_ascii());
    }
    lmtp.send(&[&vec![b'x'; 100_000][..], b"\r\n"].concat());
    assert_reply(&lmtp.reply(), "500 5.5.2 the line is too long");
    // Somebody who talks nonsense is hung up on.
    let mut lmtp = world.lmtp();
    lmtp.send(&b"GET / HTTP/1.1\r\n".repeat(20));
    for _ in 0..20 {
        assert_reply(&lmtp.reply(), "500 5.5.2 unknown command");
    }
    assert_reply(&lmtp.reply(), "421 4.7.0 too many errors");
    assert!(lmtp.is_closed());
    // What follows BDAT would be read as commands.
    let mut lmtp = world.lmtp();
    assert_reply(&lmtp.command("BDAT 10 LAST"), "502 5.5.1*");
    assert!(lmtp.is_closed());
    // A client that goes away in the middle leaves nothing behind.
    let mut lmtp = world.lmtp();
    lmtp.send(&transaction(b"From: anna@mycompany.test\r\nSubject: half\r\n\r\nhalf a message\r\n"));
    drop(lmtp);
    let mut lmtp = world.lmtp();
    assert_reply(&lmtp.command("NOOP"), "250*");
    world.wait_for_activities(0);
}

#[test]
fn size_and_recipients_have_limits() {
    let world = World::with(Options {
        lmtp: true,
        config: vec![("message", "max_size = \"256 KiB\"".into()), ("message", "max_recipients = 2".into())],
        ..Options::default()
    });
    let mut lmtp = world.lmtp();
    let message = |kib: usize| {
        let head = format!("From: anna@mycompany.test\r\nSubject: {kib}\r\n\r\n");
        stuffed((head + &("x".repeat(62) + "\r\n").repeat(kib * 16)).as_bytes())
    };
    for (kib, expected) in
        [(250, "250 2.0.0*"), (260, "552 5.3.4 *[too-large]"), (5000, "552 5.3.4 *[too-large]")]
    {
        lmtp.send(&transaction(&message(kib)));
        for pattern in ["250*", "250*", "354*", expected] {
            assert_reply(&lmtp.reply(), pattern);
        }
    }
    assert_reply(&lmtp.command("MAIL FROM:<> SIZE=262145"), "552 5.3.4 *[too-large]");
    assert_reply(&lmtp.command("MAIL FROM:<> SIZE=262144"), "250*");
    for expected in ["250*", "250*", "452 4.5.3 *[too-many-recipients]"] {
        assert_reply(&lmtp.command("RCPT TO:<mycompany@severamail.test>"), expected);
    }
    world.wait_for_activities(1);
}

#[test]
fn a_message_without_body_or_head() {
    let world = world();
    let mut lmtp = world.lmtp();
    for (content, expected) in [
        (&b".\r\n"[..], "550 5.6.0 *[unreadable-head]"),
        (b"\r\nbody only\r\n.\r\n", "550 5.6.0 *[unreadable-head]"),
        (b"From: anna@mycompany.test\r\nSubject: head only\r\n.\r\n", "250 2.0.0*"),
        (b"From: anna@mycompany.test\r\nSubject: head only, and a dot\r\n\r\n..\r\n.\r\n", "250 2.0.0*"),
    ] {
        lmtp.send(&transaction(content));
        for pattern in ["250*", "250*", "354*", expected] {
            assert_reply(&lmtp.reply(), pattern);
        }
    }
    let mut found: Vec<_> =
        world.wait_for_activities(2).iter().map(|a| (a["subject"].to_string(), a["text"].clone())).collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(found[1].1, ".\n");
}

#[test]
fn two_thousand_connections_at_once() {
    // Our own end needs as many descriptors.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let world = with("lmtp", "max_sessions = 2000\nidle_when_full = \"1h\"");
    let mut all: Vec<Smtp> = (0..2000).map(|_| world.lmtp()).collect();
    // One more is told so, at once.
    let listen = world.lmtp_listen();
    assert_reply(&Smtp::silent(&listen).reply(), "421 4.3.2 *max_sessions*");
    // Everybody is in the middle of a message at the same time.
    let content = |i: usize| {
        format!(
            "From: anna@mycompany.test\r\nSubject: number {i}\r\nMessage-ID: <{i}@x.test>\r\n\r\ntext {i}\r\n"
        )
    };
    for (i, lmtp) in all.iter_mut().enumerate() {
        lmtp.send(&transaction(content(i).as_bytes()));
    }
    for lmtp in &mut all {
        for pattern in ["250*", "250*", "354*"] {
            assert_reply(&lmtp.reply(), pattern);
        }
    }
    for lmtp in &mut all {
        lmtp.send(b".\r\nQUIT\r\n");
    }
    for lmtp in &mut all {
        assert_reply(&lmtp.reply(), "250 2.0.0 recorded*");
    }
    drop(all);
    world.wait_for_activities(2000);
    // All gone, and the door is open again.
    wait_for("a free session", || Smtp::silent(&listen).reply().starts_with("220").then_some(()));
}

#[test]
fn swaks_speaks_lmtp_with_it() {
    let world = world();
    let socket = world.lmtp_listen().strip_prefix("unix:").unwrap().to_owned();
    let swaks = |to: &str, subject: &str| {
        let output = Command::new("swaks")
            .args(["--protocol", "LMTP", "--socket", &socket, "--from", "anna@mycompany.test", "--to", to])
            .args(["--header", "From: anna@mycompany.test", "--header", subject, "--body", "by swaks"])
            .output()
            .expect("swaks is installed: see packaging/install-deps");
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (ok, said) = swaks("1001.mycompany@severamail.test", "Subject: Hello");
    assert!(ok && said.contains("250 2.0.0 recorded as b3:"), "{said}");
    let (ok, said) = swaks("mycompany@severamail.test", "Subject:");
    assert!(!ok && said.contains("550 5.6.0 ") && said.contains("[no-subject]"), "{said}");
    assert_eq!(world.wait_for_activities(1)[0]["project"]["number"], "1001");
}

#[test]
fn at_the_end_messages_in_flight_are_answered_and_the_others_told() {
    let mut world = world();
    let mut idle = world.lmtp();
    let mut busy = world.lmtp();
    busy.send(&transaction(b"From: anna@mycompany.test\r\nSubject: in flight\r\n\r\n"));
    for pattern in ["250*", "250*", "354*"] {
        assert_reply(&busy.reply(), pattern);
    }
    world.milter().signal("TERM");
    wait_for("the end to begin", || world.milter().log().contains("stopping").then_some(()));
    // A new message is not begun any more.
    assert_reply(&idle.command("MAIL FROM:<anna@mycompany.test>"), "250*");
    assert_reply(&idle.command("RCPT TO:<mycompany@severamail.test>"), "451 4.3.2 *[shutting-down]");
    busy.send(b"text\r\n.\r\n");
    assert_reply(&busy.reply(), "250 2.0.0 recorded*");
    assert_reply(&idle.reply(), "421 4.3.2 *[shutting-down]");
    assert_eq!(world.milter().wait(), Some(0));
    world.wait_for_activities(1);
}

#[test]
fn an_e_mail_that_the_milter_has_recorded_is_known_though_nobody_here_is_a_user() {
    let world = world();
    let message = |id: &str| {
        format!(
            "From: Sales <sales@mycompany.test>\nTo: bo@acme.test\nSubject: s\nDate: Mon, 23 Nov 2026 20:00:00 +0200\nMessage-ID: <{id}>\n\nhello\n"
        )
    };
    // The envelope sender is a user; by LMTP, behind a list, it is another one.
    let (_, answer) =
        world.mail("anna@mycompany.test", &["mycompany@severamail.test"], message("a").as_bytes());
    assert_reply(&answer, "250*");
    let owner = &world.wait_for_activities(1)[0]["owner"];
    assert_eq!(owner["user_id"], "u-anna", "{owner}");
    let mut lmtp = world.lmtp();
    lmtp.command("LHLO x");
    for (id, expected) in [("a", "250 2.0.0 recorded as b3:*"), ("b", "550 5.7.1 *[no-user]"), ("a", "250*")]
    {
        let (_, answer) =
            lmtp.mail("bounces@list.test", &["mycompany@severamail.test"], message(id).as_bytes());
        assert_reply(&answer, expected);
    }
    // A user's own mail is recorded by either door.
    let by_user = message("c").replace("sales@", "anna@");
    let (_, answer) = lmtp.mail("bounces@list.test", &["mycompany@severamail.test"], by_user.as_bytes());
    assert_reply(&answer, "250*");
    assert_eq!(world.wait_for_activities(2).len(), 2);
}
