//! Old versions of the milter protocol, as `milter_protocol` in Postfix's settings says for all milters of a machine.

use crate::support::{
    wait_for,
    world::{Options, World, eml},
};

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";
const CARL: &str = "carl@else.test";
const DORA: &str = "dora@elsewhere.test";

#[test]
fn each_version_is_served() {
    // 2 and 3 have no DATA, 4 has it, 6 names macros and can do without replies.
    for version in ["2", "3", "4", "6"] {
        let world = World::with(Options {
            postfix: vec![format!("milter_protocol = {version}")],
            ..Options::default()
        });
        // Other people's mail, also one without a header.
        for message in [eml("someone_else"), b"\nno header\n".to_vec()] {
            let (_, answer) = world.mail(CARL, &[DORA], &message);
            assert!(answer.starts_with("250"), "{version}: {answer}");
        }
        wait_for("two deliveries", || (world.postfix.delivered().len() == 2).then_some(()));
        // Ours: recorded; refused with our text, at RCPT and at the end.
        let (_, answer) = world.mail(ANNA, &[MY], &eml("plain"));
        assert!(answer.starts_with("250"), "{version}: {answer}");
        let (_, answer) = world.mail(ANNA, &[MY], &eml("no_subject"));
        assert!(answer.starts_with("550 5.6.0") && answer.ends_with("[no-subject]"), "{version}: {answer}");
        let (_, answer) = world.mail(ANNA, &[MY], b"\nno header\n");
        assert!(answer.starts_with("550 5.6.0"), "{version}: {answer}");
        let (_, answer) = world.mail(ANNA, &["nobody@severamail.test"], &eml("plain"));
        assert!(answer.ends_with("[no-such-tenant]"), "{version}: {answer}");
        // With other recipients: taken out, and they get it.
        assert!(world.mail(ANNA, &["bo@acme.test", MY], &eml("html_only")).1.starts_with("250"));
        let found = world.wait_for_activities(2);
        for activity in &found {
            let envelope = &activity["envelope"];
            assert_eq!(
                (&envelope["intake"], &envelope["client"]),
                (&"milter".into(), &"127.0.0.1".into()),
                "{version}"
            );
            assert!(envelope["queue_id"].is_string(), "{version}: {envelope}");
        }
        assert!(found[0]["subject"].as_str().is_some_and(|subject| !subject.starts_with(' ')), "{version}");
        wait_for("Bo's copy", || (world.postfix.delivered().len() == 3).then_some(()));
        wait_for("an empty queue", || world.postfix.queued().is_empty().then_some(()));
        // A connection serves one transaction after another.
        let mut smtp = world.smtp();
        for (to, begin) in [(DORA, "250"), (MY, "550"), (DORA, "250")] {
            let (_, answer) = smtp.mail(CARL, &[to], &eml("someone_else"));
            assert!(answer.starts_with(begin), "{version} {to}: {answer}");
        }
    }
}
