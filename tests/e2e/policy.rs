//! What a policy does to machines' mail, at both doors and in the words that the client sees.

use crate::support::{
    http::http_get,
    smtp::{Smtp, matches, stuffed},
    wait_for,
    world::{Options, World},
};

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";
const OTHER: &str = "other@severamail.test";
const BO: &str = "bo@acme.test";

fn with(lines: &[(&'static str, &str)]) -> World {
    let config = lines.iter().map(|(table, line)| (*table, (*line).to_owned())).collect();
    World::with(Options { lmtp: true, config, ..Options::default() })
}

fn message(fields: &str, subject: &str) -> Vec<u8> {
    let text =
        format!("{fields}From: anna@mycompany.test\nTo: otto@other.test\nSubject: {subject}\n\nHello\n");
    text.replace('\n', "\r\n").into_bytes()
}

/// The answers after the final dot, one for each recipient.
fn by_lmtp(world: &World, sender: &str, recipients: &[&str], message: &[u8]) -> Vec<String> {
    let mut lmtp: Smtp = world.lmtp();
    lmtp.command(&format!("MAIL FROM:<{sender}>"));
    for recipient in recipients {
        let answer = lmtp.command(&format!("RCPT TO:<{recipient}>"));
        assert!(answer.starts_with("250"), "{answer}");
    }
    lmtp.command("DATA");
    lmtp.send(&stuffed(message));
    recipients.iter().map(|_| lmtp.reply()).collect()
}

fn metric(world: &World, labels: &str) -> String {
    let text = String::from_utf8(http_get(world.admin_port, "/metrics").1).unwrap();
    let name = format!("activity_milter_messages_total{{{labels}}} ");
    text.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or("none").to_owned()
}

/// D6.
#[test]
fn machines_mail_is_accepted_refused_or_discarded_at_each_door() {
    let automatic = "automatic = { bounce = \"discard\", auto-replied = \"refuse\", bulk = \"discard\" }";
    let world = with(&[("policy", automatic), ("message", "after_accept = \"keep\"")]);
    let discarded = "verdict=\"discard\",reason=\"automatic\"";
    assert_eq!(metric(&world, discarded), "0");
    let reply = "550 5.7.1 <mycompany@severamail.test>: this address takes no automatic messages of this kind (auto-replied) [automatic]";
    let mut count = 0;
    for (fields, sender, milter, lmtp) in [
        ("Auto-Submitted: auto-replied\n", ANNA, reply, reply),
        ("Precedence: bulk\n", ANNA, "250*", "250 2.0.0 discarded [automatic]"),
        ("", "", "250*", "250 2.0.0 discarded [automatic]"),
    ] {
        let message = message(fields, "s");
        let (_, end) = world.mail(sender, &[MY], &message);
        assert!(matches(&end, milter), "{fields}{end}");
        let answers = by_lmtp(&world, sender, &[MY], &message);
        assert!(matches(&answers[0], lmtp), "{fields}{answers:?}");
        count += 2 * usize::from(milter == "250*");
        assert_eq!(metric(&world, discarded), count.to_string(), "{fields}");
    }
    world.milter.as_ref().unwrap().line_with(&[
        "discarded reason=automatic from=<anna@mycompany.test> to=<mycompany@severamail.test>",
        "automatic=bulk",
    ]);
    // Even with after_accept = "keep" nobody gets what is discarded, and somebody else gets it without us.
    wait_for("an empty queue", || world.postfix.queued().is_empty().then_some(()));
    assert_eq!(world.postfix.delivered().len(), 0);
    let (_, end) = world.mail(ANNA, &[MY, BO], &message("Precedence: bulk\n", "s"));
    assert!(end.starts_with("250"), "{end}");
    wait_for("a delivery", || (!world.postfix.delivered().is_empty()).then_some(()));
    wait_for("an empty queue", || world.postfix.queued().is_empty().then_some(()));
    let to: Vec<_> = world.postfix.delivered().into_iter().map(|(to, _)| to).collect();
    assert_eq!(to, [BO]);
    let queue_id = end.trim().rsplit(' ').next().unwrap().to_owned();
    wait_for("the trace", || {
        let (_, said, _) = world.command(&["trace", "--json", &queue_id]);
        let event: serde_json::Value = serde_json::from_str(said.lines().next()?).unwrap();
        assert_eq!(
            (&event["what"], &event["reason"], &event["detail"]),
            (&"discarded".into(), &"automatic".into(), &"bulk".into()),
            "{said}"
        );
        Some(())
    });
    // What is accepted says what it is.
    let (_, end) = world.mail(ANNA, &[MY], &message("List-Id: <l.x.test>\n", "s"));
    assert!(end.starts_with("250"), "{end}");
    assert_eq!(world.wait_for_activities(1)[0]["automatic"], "list");
}

/// D6.
#[test]
fn each_tenant_has_its_word_and_our_own_notices_are_nothing() {
    let world = with(&[("policy", "automatic = { list = \"discard\" }")]);
    let list = message("List-Id: <l.x.test>\n", "s");
    // The second tenant takes lists.
    let path = world.root.join("directory.toml");
    let directory = std::fs::read_to_string(&path).unwrap();
    let wish = "policy = { automatic = { list = \"accept\" } }\nname = \"Other Oy\"";
    std::fs::write(&path, directory.replacen("name = \"Other Oy\"", wish, 1)).unwrap();
    wait_for("the new directory", || {
        let (_, said, _) = world.command(&["directory", "lookup", "--json", OTHER]);
        let log = world.milter.as_ref().unwrap().log();
        (said.contains("accept") && log.matches("directory read").count() >= 2).then_some(())
    });
    let (_, end) = world.mail(ANNA, &[MY, OTHER], &list);
    assert!(end.starts_with("250"), "{end}");
    assert_eq!(world.wait_for_activities(1)[0]["tenant"]["id"], "t-2");
    let answers = by_lmtp(&world, ANNA, &[MY, OTHER], &list);
    assert_eq!(answers[0], "250 2.0.0 discarded [automatic]");
    assert!(answers[1].starts_with("250 2.0.0 recorded as b3:"), "{answers:?}");
    // A notice of held activities that was sent on to us.
    let notice =
        message("Message-ID: <activity-milter-held-b3-1@x.test>\nAuto-Submitted: auto-generated\n", "s");
    let (_, end) = world.mail(ANNA, &[MY], &notice);
    assert!(end.starts_with("250"), "{end}");
    assert_eq!(by_lmtp(&world, ANNA, &[MY], &notice), ["250 2.0.0 discarded [own-notice]"]);
    assert_eq!(metric(&world, "verdict=\"discard\",reason=\"own-notice\""), "2");
    wait_for("an empty queue", || world.postfix.queued().is_empty().then_some(()));
    // Postfix adds a Message-ID that LMTP's message has not: these are two e-mails.
    assert_eq!(world.wait_for_activities(2).len(), 2);
    assert_eq!(world.postfix.delivered().len(), 0);
}

/// Every file of ours, but what an administrator has written.
fn kept(folder: &std::path::Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let is_postfixs = path.file_name().is_some_and(|name| name == "postfix");
        if path.is_dir() && !is_postfixs {
            found.extend(kept(&path));
        } else if path.is_file() && path.extension().is_none_or(|extension| extension != "toml") {
            found.push((path.clone(), std::fs::read(path).unwrap()));
        }
    }
    found
}

fn has(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word.as_bytes()))
}

/// A lawyer far behind `max_people`, a body that would go to the spool: nothing of it is kept, at either door. D9.
#[test]
fn of_private_mail_nothing_reaches_disk_log_or_trace() {
    for (answer, reply) in
        [("refuse", "550 5.7.1 <mycompany@severamail.test>: *[REASON]"), ("discard", "250*")]
    {
        let answer = format!("answer = \"{answer}\"");
        let names = "never_log = [\"lawyer@hush.test\"]";
        let world = with(&[
            ("policy", names),
            ("policy", "internal = \"skip\""),
            ("policy", &answer),
            ("message", "max_people = 5"),
        ]);
        let many: String = (0..40).map(|n| format!("secretly{n}@hush.test, ")).collect();
        let body = "a hushed line\n".repeat(40_000);
        for (reason, to) in
            [("never-log", format!("{many}Lawyer@hush.test")), ("internal", "esa@mycompany.test".to_owned())]
        {
            let text = format!(
                "From: anna@mycompany.test\nTo: {to}\nSubject: hushed\nMessage-ID: <hushed@mycompany.test>\n\n{body}"
            );
            let message = text.replace('\n', "\r\n").into_bytes();
            let (_, end) = world.mail(ANNA, &[MY], &message);
            let reply = reply.replace("REASON", reason);
            assert!(matches(&end, &reply), "{reason} {end}");
            let told = by_lmtp(&world, ANNA, &[MY], &message);
            let by_lmtp = reply.replace("250*", &format!("250 2.0.0 discarded [{reason}]"));
            assert!(matches(&told[0], &by_lmtp), "{told:?}");
        }
        // A message of which something is kept comes last: then the trace has all of it.
        let (_, end) = world.mail(ANNA, &[MY], &message("", "plain"));
        let queue_id = end.trim().rsplit(' ').next().unwrap().to_owned();
        assert_eq!(world.wait_for_activities(1).len(), 1);
        wait_for("the trace", || {
            let (_, said, _) = world.command(&["trace", "--json", &queue_id]);
            said.contains("delivered").then_some(())
        });
        let log = world.milter.as_ref().unwrap().log();
        for reason in ["never-log", "internal"] {
            let lines: Vec<_> = log.lines().filter(|line| line.contains(reason)).collect();
            assert_eq!(lines.len(), 2, "{log}");
            assert!(lines.iter().all(|line| !line.contains('@') && !line.contains("127.0.0.1")), "{lines:?}");
            // The milter's has a queue id, by which the trace knows it, and nothing else.
            let queue_id = lines[0].split(": ").next().unwrap().rsplit(' ').next().unwrap();
            let (_, said, _) = world.command(&["trace", "--json", queue_id]);
            assert!(said.contains(reason) && !said.contains('@') && !said.contains("127.0.0.1"), "{said}");
        }
        let files = kept(&world.root);
        assert!(files.iter().any(|(path, _)| path.ends_with("queue/queue.db")), "{files:?}");
        assert!(files.iter().any(|(path, _)| path.ends_with("queue/trace.db")));
        for (path, bytes) in files {
            for word in ["hush", "lawyer", "esa@mycompany.test"] {
                assert!(!has(&bytes, word), "{} holds {word}", path.display());
            }
        }
        assert_eq!(world.spooled(), 0);
    }
}

/// What is said at RCPT waits until it is known whether the message is private, and says nothing of one that is; nor does a
/// line for another of its tenants. D9.
#[test]
fn lines_about_recipients_name_nobody_of_private_mail() {
    let mut world = with(&[("policy", "never_log = [\"lawyer@hush.test\", \"silent.test\"]")]);
    let nosuch = "nosuch@severamail.test";
    let mail = |to: &str| {
        let text = format!("From: secretly@mycompany.test\nTo: {to}\nSubject: s\n\nHello\n");
        text.replace('\n', "\r\n").into_bytes()
    };
    let to_lawyer = mail("lawyer@hush.test");
    let private = |end: &str| assert!(end.starts_with("550") && end.contains("[never-log]"), "{end}");
    // The sender; somebody in the head; somebody else's recipient; a path that is no address.
    private(&world.mail("lawyer@hush.test", &[nosuch, MY], &mail("otto@other.test")).1);
    private(&world.mail("secretly@mycompany.test", &[nosuch, MY], &to_lawyer).1);
    private(
        &world.mail("secretly@mycompany.test", &["x@silent.test", nosuch, MY], &mail("otto@other.test")).1,
    );
    let (answers, _) = world.mail("lawyer@hush.test", &[nosuch], &to_lawyer);
    assert!(answers[0].starts_with("550 5.1.1"), "{answers:?}");
    // At LMTP, and where the content is refused for its line ends before or after it is known whom the head names.
    for content in [
        to_lawyer.clone(),
        [b"Subject: s\n", to_lawyer.as_slice()].concat(),
        [to_lawyer.as_slice(), b"x\ny\r\n"].concat(),
    ] {
        let mut lmtp: Smtp = world.lmtp();
        lmtp.command("XFORWARD IDENT=HUSHED1");
        lmtp.command("MAIL FROM:<secretly@mycompany.test>");
        assert!(lmtp.command(&format!("RCPT TO:<{nosuch}>")).starts_with("550"));
        assert!(lmtp.command(&format!("RCPT TO:<{MY}>")).starts_with("250"));
        lmtp.command("DATA");
        lmtp.send(&[content.as_slice(), b".\r\n"].concat());
        assert!(lmtp.reply().starts_with("550"));
    }
    let mut lmtp: Smtp = world.lmtp();
    assert!(lmtp.command("MAIL FROM:<lawyer@hush.test> SIZE=99999999999").starts_with("552"));
    // A tenant that wants it has it, and its line is as silent.
    let path = world.root.join("directory.toml");
    let directory = std::fs::read_to_string(&path).unwrap();
    let wish = "policy = { never_log = [\"private.test\"] }\nname = \"Other Oy\"";
    std::fs::write(&path, directory.replacen("name = \"Other Oy\"", wish, 1)).unwrap();
    wait_for("the new directory", || {
        (world.milter.as_ref().unwrap().log().matches("directory read").count() >= 2).then_some(())
    });
    private(&world.mail("secretly@private.test", &[nosuch, OTHER], &mail("otto@other.test")).1);
    let shared =
        "From: anna@mycompany.test\r\nTo: otto@other.test, shared@silent.test\r\nSubject: s\r\n\r\nHello\r\n";
    let told = by_lmtp(&world, "secretly@mycompany.test", &[MY, OTHER], shared.as_bytes());
    assert!(told[0].contains("[never-log]") && told[1].starts_with("250 2.0.0 recorded"), "{told:?}");
    // And what is not private is told, as soon as that is known.
    let (answers, _) = world.mail("loud@mycompany.test", &[nosuch], &mail("otto@other.test"));
    assert!(answers[0].starts_with("550"), "{answers:?}");
    world.milter.as_ref().unwrap().line_with(&["[no-such-tenant]", "from=<loud@mycompany.test>"]);
    world.wait_for_activities(1);
    drop(world.milter.take());
    for (path, bytes) in kept(&world.root) {
        // The tenant that wants it has it in its activity.
        let words: &[&str] =
            match ["queue.db", "sink"].iter().any(|part| path.to_string_lossy().contains(part)) {
                true => &["lawyer"],
                false => &[
                    "secretly@",
                    "lawyer",
                    "silent.test",
                    "private.test",
                    "HUSHED1: refused 550 5.6.0 [bare-line-end] from",
                ],
            };
        for word in words {
            assert!(!has(&bytes, word), "{} holds {word}", path.display());
        }
    }
}
