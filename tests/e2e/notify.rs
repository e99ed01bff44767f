//! Who is told that an activity is held.

use crate::support::{
    http::http_get,
    wait_for,
    world::{Options, World, eml},
};

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";

fn world(to: &str, smtp: bool) -> World {
    let sink = vec!["--status".to_owned(), "422".to_owned()];
    let mut world = World::with(Options { sink, without_milter: true, lmtp: true, ..Options::default() });
    let way = match smtp {
        true => format!("transport = \"smtp:127.0.0.1:{}\"\n", world.postfix.port),
        // sendmail has no option for another instance but -C, so a script gives it.
        false => {
            let script = world.root.join("sendmail");
            let text =
                format!("#!/bin/sh\nexec /usr/sbin/sendmail -C {} \"$@\"\n", world.postfix.conf().display());
            std::fs::write(&script, text).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(&script, mode).unwrap();
            format!("transport = \"sendmail:{}\"\n", script.display())
        }
    };
    let text = std::fs::read_to_string(world.config_path()).unwrap();
    let table = format!("\n[notify]\nto = \"{to}\"\nfrom = \"CRM <crm@mycompany.test>\"\n{way}");
    std::fs::write(world.config_path(), text + &table).unwrap();
    world.start_milter();
    world
}

fn notices(world: &World) -> Vec<(String, Vec<u8>)> {
    world.postfix.delivered().into_iter().filter(|(to, _)| to == ANNA).collect()
}

/// All notices so far, once they tell of `count` activities.
fn said(world: &World, count: usize) -> String {
    wait_for("notices", || {
        let text: String =
            notices(world).iter().map(|(_, mail)| String::from_utf8_lossy(mail).replace("=\n", "")).collect();
        (text.matches("422 Unprocessable Entity").count() >= count).then_some(text)
    })
}

#[test]
fn the_owner_is_told_once_of_each_activity() {
    for smtp in [true, false] {
        let mut world = world("owner", smtp);
        // Postfix copies all that Anna gets to the integration address, notices too: they must not answer themselves.
        world.postfix.set("recipient_bcc_maps", &format!("inline:{{ {{ {ANNA} = {MY} }} }}"));
        world.postfix.reload();
        let three = ["plain", "html_only", "nested_message"];
        let mut smtp = world.smtp();
        for name in three {
            assert!(smtp.mail(ANNA, &[MY], &eml(name)).1.starts_with("250"));
        }
        let text = said(&world, 3);
        for part in [
            "From: CRM <crm@mycompany.test>",
            "Auto-Submitted: auto-generated",
            "the sink was told to answer this",
            "* Meeting on Friday",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(text.matches("422 Unprocessable Entity").count(), 3, "{text}");
        assert!(world.postfix.log().contains("from=<>"), "a notice has no envelope sender");
        // A fourth, and a restart: the first three are not told again.
        world.milter().line_with(&["notice of held activities sent"]);
        world.stop_milter();
        world.start_milter();
        assert!(world.mail(ANNA, &[MY], &eml("several_customers")).1.starts_with("250"));
        let text = said(&world, 4);
        assert_eq!(text.matches("422 Unprocessable Entity").count(), 4, "{text}");
        // The copies of the notices have come back by now, were held like everything, and nobody was told of them.
        wait_for("an empty queue", || world.postfix.queued().is_empty().then_some(()));
        let told = notices(&world).len();
        std::thread::sleep(std::time::Duration::from_secs(3));
        assert_eq!(notices(&world).len(), told);
    }
}

#[test]
fn a_postmaster_is_told_as_soon_as_mail_can_be_sent() {
    // Off by default: here an activity is held before there, and when the notice there has come, none has come here.
    let sink = vec!["--status".to_owned(), "422".to_owned()];
    let quiet = World::with(Options { sink, ..Options::default() });
    assert!(quiet.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"));
    wait_for("the activity to be held", || {
        let metrics = String::from_utf8(http_get(quiet.admin_port, "/metrics").1).unwrap();
        metrics.contains("activity_milter_queue_items{state=\"held\"} 1\n").then_some(())
    });
    let world = world("postmaster@mycompany.test", true);
    assert!(world.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"));
    wait_for("the notice", || {
        world.postfix.delivered().into_iter().find(|(to, _)| to == "postmaster@mycompany.test")
    });
    wait_for("an empty queue of the quiet Postfix", || quiet.postfix.queued().is_empty().then_some(()));
    assert_eq!(quiet.postfix.delivered().len(), 0);
    // A notice of its own accord would go to port 25, where nobody listens for it.
    let log = quiet.milter.as_ref().unwrap().log();
    assert!(!log.contains("notice of held activities"), "{log}");
}
