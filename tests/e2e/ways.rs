//! Whatever way a message takes through Postfix: the same activity, once, or a refusal that somebody reads.

use crate::support::{
    wait_for,
    world::{Options, World, eml},
};
use serde_json::Value;
use std::{
    io::Write,
    process::{Command, Stdio},
};

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";

/// Every message of the corpus that becomes an activity when Anna sends it.
const GOOD: [&str; 13] = [
    "customer_reply",
    "exchange_folded_filename",
    "html_only",
    "japanese_subject",
    "mixed_recipients",
    "nested_message",
    "odd_addresses",
    "outlook_inline_image",
    "plain",
    "project_with_attachments",
    "several_customers",
    "swedish_subject",
    "eight_bit",
];

/// The corpus, and one message with everything that relays like to change: 8-bit, long lines, no final line end.
fn message(name: &str) -> Vec<u8> {
    match name {
        "eight_bit" => [
            "From: anna@mycompany.test\nSubject: Å\nDate: Mon, 23 Nov 2026 20:00:00 +0200\nMessage-ID: <eight@x.test>\n\
             MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\nåäö \n..\n"
                .as_bytes(),
            &b"0123456789".repeat(500),
            "\nÖ".as_bytes(),
        ]
        .concat(),
        name => eml(name),
    }
}

/// A Postfix with the milter in front and LMTP behind, for which all clients are strangers: it adds no fields.
fn both_doors() -> World {
    let world = World::with(Options {
        lmtp: true,
        postfix: vec![
            "local_header_rewrite_clients =".to_owned(),
            "lmtp_send_xforward_command = yes".to_owned(),
            "lmtp_line_length_limit = 0".to_owned(),
        ],
        ..Options::default()
    });
    world.postfix.set("smtpd_milters", "{ unix:activity-milter/milter.sock, default_action=accept }");
    world.postfix.reload();
    world
}

/// What must be the same whichever way it came, and the way.
fn content(mut activity: Value) -> (Value, String) {
    let fields = activity.as_object_mut().unwrap();
    let received = fields.remove("received_at");
    // Where the Date field says nothing, the time of arrival stands for it.
    if fields.get("sent_at") == received.as_ref() {
        fields.remove("sent_at");
    }
    let envelope = fields["envelope"].as_object_mut().unwrap();
    envelope.remove("queue_id");
    let way = envelope.remove("intake").unwrap().as_str().unwrap().to_owned();
    (activity, way)
}

fn by_subject(world: &World, way: &str) -> Vec<Value> {
    let mut found: Vec<_> = world.wait_for_activities(GOOD.len()).into_iter().map(content).collect();
    assert!(found.iter().all(|(_, came)| came == way), "{found:#?}");
    found.sort_by_key(|(activity, _)| activity["message_id"].to_string());
    found.into_iter().map(|(activity, _)| activity).collect()
}

fn send_all(world: &World) {
    let mut smtp = world.smtp();
    for name in GOOD {
        let (_, answer) = smtp.mail(ANNA, &[MY], &message(name));
        assert!(answer.starts_with("250"), "{name}: {answer}");
    }
}

#[test]
fn both_ways_give_the_same_content_and_key_and_together_one_activity() {
    let mut milter = both_doors();
    let mut lmtp = both_doors();
    send_all(&milter);
    let expected = by_subject(&milter, "milter");
    // The milter is down: what it would have taken waits in Postfix, and comes by LMTP.
    lmtp.stop_milter();
    send_all(&lmtp);
    wait_for("deferrals", || {
        (lmtp.postfix.log().matches("status=deferred").count() >= GOOD.len()).then_some(())
    });
    lmtp.start_milter();
    lmtp.postfix.flush();
    for (got, expected) in by_subject(&lmtp, "lmtp").iter().zip(&expected) {
        assert_eq!(got, expected);
    }
    wait_for("an empty queue", || lmtp.postfix.queued().is_empty().then_some(()));
    // The client that sent to the one sends again, to another MX as it were.
    milter.stop_milter();
    send_all(&milter);
    milter.start_milter();
    milter.postfix.flush();
    wait_for("an empty queue", || milter.postfix.queued().is_empty().then_some(()));
    wait_for("the log", || (milter.milter().log().matches("known=true").count() == GOOD.len()).then_some(()));
    by_subject(&milter, "milter");
}

#[test]
fn lmtp_stopped_defers_and_started_again_records_once() {
    let mut world = World::with(Options {
        lmtp: true,
        postfix: vec!["smtpd_milters =".to_owned()],
        ..Options::default()
    });
    world.stop_milter();
    let two = [MY, "1002.mycompany@severamail.test"];
    assert!(world.mail(ANNA, &two, &eml("plain")).1.starts_with("250"));
    wait_for("two deferrals", || (world.postfix.log().matches("status=deferred").count() == 2).then_some(()));
    assert_eq!(world.postfix.queued()[0]["queue_name"], "deferred");
    world.start_milter();
    world.postfix.flush();
    let activity = world.wait_for_activities(1).remove(0);
    assert_eq!(activity["project"]["number"], "1002", "the bare address adds nothing");
    wait_for("an empty queue", || world.postfix.queued().is_empty().then_some(()));
    assert_eq!(world.postfix.log().matches("status=sent (250 2.0.0 recorded as b3:").count(), 2);
    world.wait_for_activities(1);
}

#[test]
fn an_automatic_copy_to_the_company_adds_nothing_beside_the_project_in_to() {
    let world = both_doors();
    world.postfix.set("sender_bcc_maps", &format!("inline:{{ {{ @mycompany.test = {MY} }} }}"));
    world.postfix.reload();
    // The milter takes the project; what Postfix copies comes by LMTP, after it.
    let to = ["bo@acme.test", "1001.mycompany@severamail.test"];
    assert!(world.mail(ANNA, &to, &eml("plain")).1.starts_with("250"));
    wait_for("the copy", || world.postfix.log().contains("recorded as").then_some(()));
    wait_for("an empty queue", || world.postfix.queued().is_empty().then_some(()));
    let activity = world.wait_for_activities(1).remove(0);
    assert_eq!(
        (&activity["project"]["number"], &activity["envelope"]["intake"]),
        (&"1001".into(), &"milter".into())
    );
}

/// `sendmail -f sender`, as cron and web forms call it.
fn submit(world: &World, args: &[&str], message: &[u8]) {
    let mut child = Command::new("/usr/sbin/sendmail")
        .arg("-C")
        .arg(world.postfix.conf())
        .args(args)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(message).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn local_submission_is_recorded_or_bounces() {
    let world = both_doors();
    submit(&world, &["-f", ANNA, MY], &eml("plain"));
    let activity = world.wait_for_activities(1).remove(0);
    assert_eq!(
        (&activity["envelope"]["sender"], &activity["envelope"]["intake"]),
        (&ANNA.into(), &"lmtp".into())
    );
    // Recipients from the message, the integration address in Bcc alone.
    let message = b"From: anna@mycompany.test\nTo: bo@acme.test\nBcc: 1001.mycompany@severamail.test\nSubject: by -t\n\nx\n";
    submit(&world, &["-f", ANNA, "-t"], message);
    assert_eq!(world.wait_for_activities(2)[1]["project"]["number"], "1001");
    let (to, _) = wait_for("Bo's copy", || world.postfix.delivered().pop());
    assert_eq!(to, "bo@acme.test");
    // Refused: the sender reads why.
    submit(&world, &["-f", ANNA, "nobody@severamail.test", MY], &eml("no_subject"));
    let (_, bounce) =
        wait_for("the bounce", || world.postfix.delivered().into_iter().find(|(to, _)| to == ANNA));
    let bounce = String::from_utf8(bounce).unwrap().replace("\n    ", " ");
    for said in ["[no-such-tenant]", "[no-subject]", "Add a subject and send again", "5.1.1", "5.6.0"] {
        assert!(bounce.contains(said), "{said}: {bounce}");
    }
    wait_for("an empty queue", || world.postfix.queued().is_empty().then_some(()));
    world.wait_for_activities(2);
}

#[test]
fn aliases_lead_to_integration_addresses() {
    let world = both_doors();
    let aliases =
        [("crm@mycompany.test", MY), ("team@mycompany.test", "bo@acme.test, 1002.MyCompany@SeveraMail.test")];
    let map: String = aliases.iter().map(|(from, to)| format!(" {{ {from} = {to} }}")).collect();
    world.postfix.set("virtual_alias_maps", &format!("inline:{{{map} }}"));
    world.postfix.reload();
    // The milter was never asked about these.
    assert!(world.mail(ANNA, &["crm@mycompany.test"], &eml("plain")).1.starts_with("250"));
    assert_eq!(world.wait_for_activities(1)[0]["envelope"]["recipients"][0], MY);
    assert!(world.mail(ANNA, &["team@mycompany.test"], &eml("html_only")).1.starts_with("250"));
    let second = world.wait_for_activities(2).remove(1);
    assert_eq!(
        (&second["project"]["number"], &second["envelope"]["intake"]),
        (&"1002".into(), &"lmtp".into())
    );
    // Accepted by Postfix before we were asked: the refusal comes back as a bounce.
    assert!(world.mail(ANNA, &["crm@mycompany.test"], &eml("no_subject")).1.starts_with("250"));
    let (_, bounce) =
        wait_for("the bounce", || world.postfix.delivered().into_iter().find(|(to, _)| to == ANNA));
    let bounce = String::from_utf8(bounce).unwrap();
    assert!(bounce.contains("[no-subject]") && bounce.contains("crm@mycompany.test"), "{bounce}");
}
