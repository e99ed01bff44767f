//! Each limit, on both sides, in the words the SMTP client sees.

use crate::support::{
    smtp::matches,
    wait_for,
    world::{Options, World, eml},
};

fn with(table: &'static str, line: &str) -> Options {
    Options { config: vec![(table, line.to_owned())], ..Options::default() }
}

fn message(subject: &str, body_bytes: usize) -> Vec<u8> {
    let head = format!("From: anna@mycompany.test\nSubject: {subject}\n\n");
    let lines = "x".repeat(63) + "\n";
    (head + &lines.repeat(body_bytes / 64)).into_bytes()
}

const MY: &[&str] = &["mycompany@severamail.test"];

fn answer(world: &World, message: &[u8]) -> String {
    world.mail("anna@mycompany.test", MY, message).1
}

#[track_caller]
fn assert_reply(got: &str, pattern: &str) {
    assert!(matches(got, pattern), "expected {pattern}, got {got}");
}

#[test]
fn size() {
    let world = World::with(with("message", "max_size = \"256 KiB\""));
    assert_reply(&answer(&world, &message("small enough", 200 * 1024)), "250*");
    assert_reply(&answer(&world, &message("too large", 300 * 1024)), "552 5.3.4 *[too-large]");
    // Other people's mail has Postfix's own limit only.
    let (_, other) = world.mail("carl@else.test", &["dora@elsewhere.test"], &message("other", 300 * 1024));
    assert_reply(&other, "250*");
    world.wait_for_activities(1);
}

#[test]
fn header() {
    let world = World::start();
    let with_fields = |count: usize| {
        let fields = format!("X-Long: {}\n", "x ".repeat(15_000)).repeat(count);
        format!("From: anna@mycompany.test\n{fields}Subject: long header\n\ntext\n").into_bytes()
    };
    assert_reply(
        &answer(&world, &with_fields(40)),
        "550 5.6.0 <mycompany@severamail.test>: *[unreadable-head]",
    );
    assert_reply(&answer(&world, &with_fields(30)), "250*");
    assert_eq!(world.wait_for_activities(1)[0]["subject"], "long header");
}

#[test]
fn queue_full_then_room_again() {
    let mut options = with("queue", "max_items = 2");
    options.without_sink = true;
    let mut world = World::with(options);
    assert_reply(&answer(&world, &message("one", 64)), "250*");
    assert_reply(&answer(&world, &message("two", 64)), "250*");
    assert_reply(&answer(&world, &message("three", 64)), "452 4.3.1 *[queue-full]");
    world.start_sink();
    world.wait_for_activities(2);
    let again = wait_for("room in the queue", || {
        Some(answer(&world, &message("three", 64))).filter(|a| a.starts_with("250"))
    });
    assert_reply(&again, "250*");
    world.wait_for_activities(3);
}

#[test]
fn recipients() {
    let world = World::with(with("message", "max_recipients = 1"));
    let two = ["mycompany@severamail.test", "1001.mycompany@severamail.test", "bo@acme.test"];
    let (answers, last) = world.mail("anna@mycompany.test", &two, &eml("plain"));
    assert_reply(&answers[0], "250*");
    assert_reply(&answers[1], "452 4.5.3 *[too-many-recipients]");
    assert_reply(&answers[2], "250*");
    assert_reply(&last, "250*");
    let activity = world.wait_for_activities(1).remove(0);
    assert_eq!(activity["project"], serde_json::Value::Null);
}

#[test]
fn texts_and_help_are_the_configurations() {
    let mut options = with("replies", "help = \"https://help.example.com/email?a=50%25\"");
    options.config.push(("replies", "no-subject = \"Ei otsikkoa, 100% pakollinen: {address}\"".to_owned()));
    let world = World::with(options);
    assert_reply(
        &answer(&world, &eml("no_subject")),
        "550-5.6.0 Ei otsikkoa, 100% pakollinen: mycompany@severamail.test [no-subject]\\n550 5.6.0 https://help.example.com/email?a=50%25",
    );
}

#[test]
fn choices_for_mixed_and_accepted_mail() {
    let mut options = with("message", "mixed_recipients = \"strip\"");
    options.config.push(("message", "after_accept = \"keep\"".to_owned()));
    options.config.push(("message", "unknown_project = \"unlinked\"".to_owned()));
    options.postfix = vec!["relay_transport = keep:".to_owned()];
    let world = World::with(options);
    // Refused by a rule, with another recipient: that one gets it, the integration address does not.
    let mixed = ["bo@acme.test", "mycompany@severamail.test"];
    let (_, stripped) = world.mail("mallory@nowhere.test", &mixed, &eml("unknown_sender"));
    assert_reply(&stripped, "250*");
    let delivered = wait_for("a delivery", || Some(world.postfix.delivered()).filter(|d| d.len() == 1));
    assert_eq!(delivered[0].0, "bo@acme.test");
    world.milter.as_ref().unwrap().line_with(&["stripped 550 5.7.1 [no-user] from=<mallory@nowhere.test>"]);
    // Recorded without link, and left to Postfix for the archive mailbox.
    let (_, kept) = world.mail("anna@mycompany.test", &["9999.mycompany@severamail.test"], &eml("plain"));
    assert_reply(&kept, "250*");
    assert_eq!(world.wait_for_activities(1)[0]["project"], serde_json::Value::Null);
    wait_for("the archive's copy", || (world.postfix.delivered().len() == 2).then_some(()));
}

#[test]
fn below_the_reserve_of_disk_mail_is_deferred_and_check_says_so() {
    let world = World::with(with("queue", "min_free = \"1 EiB\""));
    for message in [message("small", 64), message("large", 400_000)] {
        assert_reply(&answer(&world, &message), "452 4.3.1 *[queue-full]");
    }
    let (code, out, _) = world.command(&["check"]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("NOT OK queue disk") && out.contains("queue.min_free is 1.0 EiB"), "{out}");
    world.milter.as_ref().unwrap().line_with(&["bytes are free"]);
}
