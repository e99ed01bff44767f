//! The backend at the end of a message (direct mode), and under load and trouble.

use crate::support::{
    smtp::{Smtp, matches},
    wait_for,
    world::{Options, World, eml},
};
use std::{fs, process::Command};

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";
const BO: &str = "bo@acme.test";

#[track_caller]
fn assert_reply(got: &str, pattern: &str) {
    assert!(matches(got, pattern), "expected {pattern}, got {got}");
}

fn direct(sink: &[&str], more: &[(&'static str, &str)]) -> World {
    let mut config = vec![("backend", "delivery = \"direct\"".to_owned())];
    config.extend(more.iter().map(|(table, line)| (*table, (*line).to_owned())));
    let sink = sink.iter().map(|word| (*word).to_owned()).collect();
    World::with(Options { sink, config, lmtp: true, ..Options::default() })
}

#[test]
fn the_backends_answer_is_the_smtp_reply() {
    let mut world = direct(&[], &[("backend", "timeout = \"1s\"")]);
    assert_reply(&world.mail(ANNA, &[BO, MY], &eml("plain")).1, "250 2.0.0 *");
    assert_eq!(world.activities().len(), 1, "it is there before the client has its answer");
    assert!(!world.root.join("queue/queue.db").exists(), "and there is no queue");
    wait_for("Bo's copy", || (world.postfix.delivered().len() == 1).then_some(()));
    let detail = "the sink was told to answer this (--status)";
    let refused =
        format!("550 5.6.0 <{MY}>: the company's system refuses the message: {detail} [backend-refused]");
    for (status, expected) in [
        ("422", refused.as_str()),
        ("400", "550 5.6.0 *[backend-refused]"),
        ("401", "451 4.3.5 *[backend-misconfigured]"),
        ("403", "451 4.3.5 *[backend-misconfigured]"),
        ("404", "451 4.3.5 *[backend-misconfigured]"),
        ("410", "451 4.3.5 *[backend-misconfigured]"),
        ("302", "451 4.3.5 *[backend-misconfigured]"),
        ("409", "451 4.4.1 *[backend-unreachable]"),
        ("429", "451 4.3.2 *[backend-busy]"),
        ("500", "451 4.4.1 *[backend-unreachable]"),
        ("503", "451 4.4.1 *[backend-unreachable]"),
    ] {
        world.sink = None;
        world.start_sink_with(&["--status".to_owned(), status.to_owned()]);
        assert_reply(&world.mail(ANNA, &[BO, MY], &eml("html_only")).1, expected);
    }
    world.sink = None;
    world.start_sink_with(&["--hang".to_owned()]);
    assert_reply(&world.mail(ANNA, &[MY], &eml("html_only")).1, "451 4.4.1 *[backend-unreachable]");
    world.sink = None;
    assert_reply(&world.mail(ANNA, &[MY], &eml("html_only")).1, "451 4.4.1 *[backend-unreachable]");
    // The client comes again, with the same key; a lost answer makes no second activity.
    world.start_sink_with(&["--fail-rate".to_owned(), "0.7".to_owned()]);
    let mut tries = 0;
    while !world.mail(ANNA, &[MY], &eml("html_only")).1.starts_with("250") {
        tries += 1;
        assert!(tries < 100);
    }
    world.wait_for_activities(2);
    // Nothing went on to anybody else meanwhile, and large messages go the same way.
    assert_eq!(world.postfix.delivered().len(), 1);
    world.sink = None;
    world.start_sink();
    let large = [&eml("plain")[..], &b"a line of some length, and many of them\n".repeat(20_000)].concat();
    assert_reply(&world.mail(ANNA, &[MY], &large).1, "250*");
    world.wait_for_activities(3);
    assert_eq!(world.spooled(), 0);
}

#[test]
fn by_lmtp_each_recipient_has_the_answer_to_its_own_activity() {
    let mut world = direct(&[], &[]);
    let mut lmtp: Smtp = world.lmtp();
    let to = [MY, "7.sub.mycompany@severamail.test", "mycompany@severamail.test"];
    let mut send = |world: &World, message: &str| {
        assert_reply(&lmtp.command(&format!("MAIL FROM:<{ANNA}>")), "250*");
        to.iter().for_each(|to| assert_reply(&lmtp.command(&format!("RCPT TO:<{to}>")), "250*"));
        assert_reply(&lmtp.command("DATA"), "354*");
        lmtp.send(&crate::support::smtp::stuffed(&eml(message)));
        let replies = [lmtp.reply(), lmtp.reply(), lmtp.reply()];
        (replies, world.activities().len())
    };
    let (replies, stored) = send(&world, "plain");
    assert!(replies.iter().all(|reply| matches(reply, "250 2.0.0 recorded as b3:*")), "{replies:?}");
    assert_eq!((stored, replies[0] == replies[2], replies[0] == replies[1]), (2, true, false));
    world.sink = None;
    world.start_sink_with(&["--status".to_owned(), "422".to_owned()]);
    let (replies, _) = send(&world, "html_only");
    for (reply, address) in replies.iter().zip(to) {
        assert_reply(reply, &format!("550 5.6.0 <{address}>: *[backend-refused]"));
    }
}

#[test]
fn strip_delivers_to_others_what_the_backend_refuses() {
    let world = direct(&["--status", "422"], &[("message", "mixed_recipients = \"strip\"")]);
    assert_reply(&world.mail(ANNA, &[BO, MY], &eml("plain")).1, "250*");
    assert_reply(&world.mail(ANNA, &[MY], &eml("plain")).1, "550 5.6.0 *[backend-refused]");
    let (to, _) = wait_for("Bo's copy", || world.postfix.delivered().pop());
    assert_eq!((to.as_str(), world.postfix.delivered().len()), (BO, 1));
}

#[test]
fn what_was_queued_before_direct_mode_is_still_delivered() {
    let mut world = World::start();
    world.sink = None;
    assert_reply(&world.mail(ANNA, &[MY], &eml("plain")).1, "250*");
    world.stop_milter();
    let text = fs::read_to_string(world.config_path()).unwrap();
    fs::write(world.config_path(), text.replace("[backend]\n", "[backend]\ndelivery = \"direct\"\n"))
        .unwrap();
    world.start_sink();
    world.start_milter();
    world.wait_for_activities(1);
    assert_reply(&world.mail(ANNA, &[MY], &eml("html_only")).1, "250*");
    world.wait_for_activities(2);
}

#[test]
fn five_thousand_messages_over_a_backend_that_fails_and_is_slow() {
    const MESSAGES: u32 = 5000;
    let world = World::with(Options {
        sink: ["--fail-rate", "0.3", "--delay", "50ms"].map(str::to_owned).into(),
        config: vec![("backend", "max_in_flight = 128".to_owned())],
        ..Options::default()
    });
    let status = Command::new("/usr/sbin/smtp-source")
        .args(["-s", "20", "-m", &MESSAGES.to_string(), "-l", "4096", "-f", ANNA, "-t", MY, "-S", "load"])
        .arg(format!("inet:127.0.0.1:{}", world.postfix.port))
        .status();
    assert!(status.unwrap().success(), "every message was accepted");
    // What the sink has, by its own database: the list over HTTP is too long to be asked for again and again.
    let database = rusqlite::Connection::open(world.root.join("sink/sink.db")).unwrap();
    let counts = || {
        let count = "SELECT count(*), count(DISTINCT key), count(DISTINCT json_extract(text, '$.message_id')) FROM activity";
        database.query_row(count, [], |row| Ok([row.get(0)?, row.get(1)?, row.get::<_, u32>(2)?])).unwrap()
    };
    wait_for("all activities", || (counts()[0] >= MESSAGES).then_some(()));
    // None is left to come, and none came twice.
    let queue = rusqlite::Connection::open(world.root.join("queue/queue.db")).unwrap();
    wait_for("an empty queue", || {
        let left: u32 = queue.query_row("SELECT count(*) FROM item", [], |row| row.get(0)).unwrap();
        (left == 0).then_some(())
    });
    assert_eq!(counts(), [MESSAGES; 3]);
}

#[test]
fn an_attachment_of_forty_megabytes_within_64_mib_of_memory() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
    let path = secret.path().display().to_string();
    for delivery in ["queued", "direct"] {
        let mut world = World::with(Options {
            sink: vec!["--signing-secret-file".to_owned(), path.clone()],
            config: vec![
                ("message", "max_size = \"80 MiB\"".to_owned()),
                ("backend", format!("signing_secret_file = \"{path}\"")),
                ("backend", format!("delivery = \"{delivery}\"")),
            ],
            postfix: vec!["message_size_limit = 100000000".to_owned()],
            ..Options::default()
        });
        let file: Vec<u8> =
            (0..40_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut message = format!(
            "From: {ANNA}\nSubject: large\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nsee there\n--b\n\
             Content-Type: application/zip; name=large.zip\nContent-Disposition: attachment; filename=large.zip\n\
             Content-Transfer-Encoding: base64\n\n"
        );
        let encoded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &file);
        for line in encoded.as_bytes().chunks(76) {
            message.push_str(std::str::from_utf8(line).unwrap());
            message.push('\n');
        }
        message.push_str("--b--\n");
        assert_reply(&world.mail(ANNA, &[MY], message.as_bytes()).1, "250*");
        let activity = world.wait_for_activities(1).remove(0);
        assert_eq!(
            (&activity["files"][0]["size"], &activity["files"][0]["verified"]),
            (&40_000_000.into(), &true.into())
        );
        let status = fs::read_to_string(format!("/proc/{}/status", world.milter().id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim();
        let kib: u64 = peak.split(' ').next().unwrap().parse().unwrap();
        assert!(kib < 64 * 1024, "{delivery}: {peak}");
    }
}
