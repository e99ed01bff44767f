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
