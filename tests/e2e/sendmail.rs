//! The second MTA that speaks milter: sendmail, whose macros, frames and queue ids differ from Postfix's.

use crate::support::{
    sendmail::Sendmail,
    smtp::{Smtp, matches, play},
    wait_for,
    world::{Options, World, eml},
};
use serde_json::Value;
use std::path::Path;

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";
const BO: &str = "bo@acme.test";

fn attached(options: Options) -> (World, Sendmail) {
    let world = World::with(options);
    let sendmail = Sendmail::start(&world.root.join("sendmail"), &world.milter_listen());
    (world, sendmail)
}

#[track_caller]
fn assert_reply(got: &str, pattern: &str) {
    assert!(matches(got, pattern), "expected {pattern}, got {got}");
}

#[test]
fn integration_mail_is_recorded_and_gone() {
    for tcp in [false, true] {
        let (mut world, sendmail) = attached(Options { tcp, ..Options::default() });
        let mut smtp = sendmail.smtp();
        let (_, answer) =
            smtp.mail(ANNA, &["1001.MyCompany@SeveraMail.test"], &eml("project_with_attachments"));
        assert_reply(&answer, "250 2.0.0 * Message accepted for delivery");
        let activity = world.wait_for_activities(1).remove(0);
        let envelope = &activity["envelope"];
        assert_eq!(
            (&activity["project"]["number"], &activity["customer"]["id"], &envelope["client"]),
            (&"1001".into(), &"c-acme".into(), &"127.0.0.1".into())
        );
        assert_eq!(answer.split(' ').nth(2), envelope["queue_id"].as_str());
        assert!(activity["files"].as_array().unwrap().iter().all(|file| file["verified"] == true));
        // A body of many frames, on the same connection.
        let long = [&eml("plain")[..], &b"a line of some length, and many of them\n".repeat(20_000)].concat();
        assert_reply(&smtp.mail(ANNA, &[MY], &long).1, "250*");
        assert_eq!(
            world.wait_for_activities(2)[1]["text"].as_str().map(|text| text.len() > 700_000),
            Some(true)
        );
        world.stop_milter();
        assert_reply(&sendmail.smtp().mail(ANNA, &[MY], &eml("html_only")).1, "451*");
        assert_eq!(sendmail.delivered().len(), 0, "{}", sendmail.log());
    }
}

#[test]
fn the_replies_are_ours() {
    let (world, sendmail) = attached(Options::default());
    let dialogue = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/dialogues/sendmail.smtp");
    play(sendmail.smtp(), &dialogue);
    assert_eq!(world.wait_for_activities(1)[0]["subject"], "Meeting on Friday");
    assert_eq!(sendmail.delivered().len(), 0);
}

#[test]
fn mixed_and_other_mail() {
    let (world, sendmail) = attached(Options::default());
    let mut smtp: Smtp = sendmail.smtp();
    let to = [BO, "MyCompany@SeveraMail.TEST", "\"1002.mycompany\"@severamail.test", "Carl@else.test", MY];
    let (answers, answer) = smtp.mail(ANNA, &to, &eml("plain"));
    assert!(answers.iter().all(|answer| answer.starts_with("250")), "{answers:?}");
    assert_reply(&answer, "250*");
    let projects: Vec<Value> =
        world.wait_for_activities(1).iter().map(|a| a["project"]["number"].clone()).collect();
    assert_eq!(projects, ["1002"]);
    assert_reply(&smtp.mail("carl@else.test", &["dora@elsewhere.test"], &eml("someone_else")).1, "250*");
    let found = wait_for("deliveries", || Some(sendmail.delivered()).filter(|all| all.len() == 3));
    let mut to: Vec<_> = found.iter().map(|(to, _)| to.as_str()).collect();
    to.sort_unstable();
    assert_eq!(to, ["Carl@else.test", BO, "dora@elsewhere.test"]);
    // The body is the e-mail's.
    let body = |message: &[u8]| String::from_utf8_lossy(message).split_once("\n\n").unwrap().1.to_owned();
    let bo = found.iter().find(|(to, _)| to == BO).unwrap();
    assert_eq!(body(&bo.1), body(&eml("plain")));
}
