//! Mail to others passes untouched.

use crate::support::{
    wait_for,
    world::{Options, World, eml},
};

/// A delivered message without the Received field that Postfix puts on top.
pub fn without_received(message: &[u8]) -> Vec<u8> {
    let text = message.to_vec();
    let mut end = 0;
    for line in text.split_inclusive(|&b| b == b'\n') {
        if end > 0 && !matches!(line[0], b' ' | b'\t') {
            break;
        }
        assert!(end > 0 || line.starts_with(b"Received:"), "{}", text.escape_ascii());
        end += line.len();
    }
    text[end..].to_vec()
}

fn delivered_by(options: Options) -> Vec<Vec<u8>> {
    let world = World::with(options);
    // With Message-ID, Date and From, which Postfix would add.
    let usual =
        b"Message-ID: <1@else.test>\nDate: Mon, 23 Nov 2026 20:00:00 +0200\nFrom: carl@else.test\n".to_vec();
    let odd = [&usual[..], b"X-Eight: \xe4\xf6\n\n\xff\xfe\n..\n.\nlast line without end"].concat();
    let long = [&usual[..], b"\n", &b"x".repeat(70_000), b"\n"].concat();
    let messages = [eml("someone_else"), eml("outlook_inline_image"), odd, long];
    for message in &messages {
        let (_, answer) = world.mail("carl@else.test", &["dora@elsewhere.test"], message);
        assert!(answer.starts_with("250"), "{answer}");
    }
    let found =
        wait_for("deliveries", || Some(world.postfix.delivered()).filter(|d| d.len() == messages.len()));
    let mut bodies: Vec<_> = found.iter().map(|(_, message)| without_received(message)).collect();
    bodies.sort();
    bodies
}

#[test]
fn unchanged_byte_for_byte() {
    let without = Options {
        without_milter: true,
        postfix: vec!["smtpd_milters =".to_owned()],
        without_sink: true,
        ..Options::default()
    };
    let plain = delivered_by(without);
    let with_milter = delivered_by(Options::default());
    for (plain, with_milter) in plain.iter().zip(&with_milter) {
        assert!(plain == with_milter, "{}\n{}", plain.escape_ascii(), with_milter.escape_ascii());
    }
    assert!(plain.iter().any(|m| m.ends_with(b"trailing space \n.dot\n")));
}

#[test]
fn a_mixed_message_reaches_the_others_unchanged() {
    let world = World::start();
    let message = eml("outlook_inline_image");
    let (_, answer) =
        world.mail("anna@mycompany.test", &["bo@acme.test", "mycompany@severamail.test"], &message);
    assert!(answer.starts_with("250"), "{answer}");
    let found = wait_for("a delivery", || world.postfix.delivered().pop());
    assert_eq!(without_received(&found.1), message);
    world.wait_for_activities(1);
}

#[test]
fn a_tenant_in_shadow_mode_is_judged_and_nothing_happens() {
    let world =
        World::with(Options { postfix: vec!["relay_transport = keep:".to_owned()], ..Options::default() });
    for (message, sender, verdict) in [
        ("plain", "anna@mycompany.test", "would_record"),
        ("no_subject", "anna@mycompany.test", "would_reject"),
        ("unknown_sender", "stranger@else.test", "no-user"),
    ] {
        let (_, answer) = world.mail(sender, &["trial@severamail.test"], &eml(message));
        assert!(answer.starts_with("250"), "{answer}");
        wait_for("the log line", || world.milter.as_ref().unwrap().log().contains(verdict).then_some(()));
    }
    wait_for("all three delivered", || (world.postfix.delivered().len() == 3).then_some(()));
    world.wait_for_activities(0);
}
