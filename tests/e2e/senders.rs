//! Who counts as the sender, with a real Postfix: forged results with a filter before us up and down, networks, LMTP.

use crate::support::{
    neighbour::Neighbour,
    smtp::{matches, stuffed},
    wait_for,
    world::{Options, World},
};

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";
const CHECKS: &str = r"regexp:{ { /^Authentication-Results[[:space:]]*:.*mx\.test/ IGNORE } }";
const PASSES: &str = "Authentication-Results: mx.test; dmarc=pass header.from=mycompany.test";
const FAILS: &str = "Authentication-Results: mx.test; dmarc=fail header.from=mycompany.test";
const REFUSED: &str = "550 5.7.26 *[not-authenticated]*";

fn asking(sender: &str) -> World {
    let config = vec![
        ("policy", "require = \"authenticated\"".to_owned()),
        ("sender", format!("trusted_authserv_ids = [\"mx.test\"]\n{sender}")),
    ];
    World::with(Options { lmtp: true, config, ..Options::default() })
}

fn message(fields: &str, subject: &str) -> Vec<u8> {
    // Postfix adds what is missing, and then it is another e-mail.
    let ids = "Date: Mon, 23 Nov 2026 18:00:00 +0000\nMessage-ID: <m@mycompany.test>\n";
    let text = format!("{fields}{ids}From: {ANNA}\nTo: otto@other.test\nSubject: {subject}\n\nHello\n");
    text.replace('\n', "\r\n").into_bytes()
}

// W3
#[test]
fn forged_results_are_gone_before_the_filter_adds_its_own() {
    let world = asking("");
    let ours = world.postfix.tool("postconf", &["-h", "smtpd_milters"]).trim().to_owned();
    let forged = format!("{PASSES}\n");
    let send = |fields: &str, subject: &str| world.mail(ANNA, &[MY], &message(fields, subject)).1;
    // Nobody removes it: what the check of Postfix's settings warns of.
    assert!(matches(&send(&forged, "open"), "250*"));
    world.postfix.set("header_checks", CHECKS);
    world.postfix.reload();
    // No filter: nothing proves anything, however it is written.
    for fields in [
        "",
        &forged,
        "authentication-results:MX.TEST 1; dmarc=pass header.from=mycompany.test\n",
        "Authentication-Results :\n (c) mx.test;\n dmarc=pass header.from=mycompany.test\n",
        "Authentication-Results: \"mx.\\test\"; dmarc=pass header.from=mycompany.test\n",
    ] {
        let answer = send(fields, "s");
        assert!(matches(&answer, REFUSED), "{fields}: {answer}");
    }
    for (says, up, expected) in
        [(PASSES, true, "250*"), (FAILS, true, REFUSED), ("", true, REFUSED), (PASSES, false, REFUSED)]
    {
        let neighbour = up.then(|| Neighbour::adding(says));
        let port = neighbour.as_ref().map_or(9, |neighbour| neighbour.port);
        let both = format!("{{ inet:127.0.0.1:{port}, default_action=accept }}, {ours}");
        world.postfix.set("smtpd_milters", &both);
        world.postfix.reload();
        for fields in [&forged, ""] {
            let subject = format!("{says} {up} {fields}").replace('\n', "");
            // A process of before the reload may take one more connection.
            let is_as_expected = || matches(&send(fields, &subject), expected).then_some(());
            wait_for(&format!("{says:?} {up} {fields}: {expected}"), is_as_expected);
        }
    }
    wait_for("the activities", || (world.activities().len() >= 3).then_some(()));
    assert!(world.activities().iter().all(|activity| activity["sender_authenticated"] == true));
}

#[test]
fn a_trusted_network_counts_at_the_milter_and_by_xforward() {
    let world = asking("trusted_networks = [\"127.0.0.0/8\", \"192.0.2.0/24\"]");
    let (_, answer) = world.mail(ANNA, &[MY], &message("", "by milter"));
    assert!(matches(&answer, "250*"), "{answer}");
    let mut copies = vec![("ADDR=203.0.113.8 SOURCE=REMOTE", "by milter", "250*")];
    copies.extend(
        [
            ("ADDR=192.0.2.7 SOURCE=REMOTE", "250*"),
            ("ADDR=203.0.113.7 SOURCE=REMOTE", REFUSED),
            ("ADDR=203.0.113.7 SOURCE=LOCAL", REFUSED),
            ("ADDR=[UNAVAILABLE] SOURCE=LOCAL", "250*"),
            ("ADDR=[UNAVAILABLE] SOURCE=REMOTE", REFUSED),
        ]
        .map(|(xforward, expected)| (xforward, xforward, expected)),
    );
    // A copy of what the milter has recorded is known, whoever brings it.
    for (xforward, subject, expected) in copies {
        let mut lmtp = world.lmtp();
        lmtp.command(&format!("XFORWARD {xforward}"));
        lmtp.command(&format!("MAIL FROM:<{ANNA}>"));
        lmtp.command(&format!("RCPT TO:<{MY}>"));
        lmtp.command("DATA");
        lmtp.send(&stuffed(&message("", subject)));
        let answer = lmtp.reply();
        assert!(matches(&answer, expected), "{xforward}: {answer}");
    }
}
