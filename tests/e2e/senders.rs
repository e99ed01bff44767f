//! Who counts as the sender, with a real Postfix: forged results with a filter before us up and down, networks, LMTP.

use super::lived::{piped, printed, said};
use crate::support::{
    neighbour::Neighbour,
    smtp::{matches, stuffed},
    wait_for,
    world::{Options, World},
};
use std::fs;

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

/// Another text in the configuration.
fn configure(world: &World, from: &str, to: &str) {
    let config = fs::read_to_string(world.config_path()).unwrap();
    assert!(config.contains(from), "{config}");
    fs::write(world.config_path(), config.replace(from, to)).unwrap();
}

fn deployed(postfix: &[&str]) -> World {
    let config = vec![
        ("policy", "require = \"authenticated\"".to_owned()),
        ("sender", "trusted_authserv_ids = [\"mx.test\"]".to_owned()),
    ];
    let postfix = postfix.iter().map(|line| (*line).to_owned()).collect();
    World::with(Options { bare: true, lmtp: true, config, postfix, ..Options::default() })
}

fn value(world: &World, name: &str) -> String {
    world.postfix.tool("postconf", &["-h", name]).trim().to_owned()
}

// W3
#[test]
fn print_takes_forged_results_away_and_remove_gives_back_what_was_there() {
    const SECRET: &str = "regexp:{ { /^X-Secret:/ IGNORE } }";
    const LATER: &str = "regexp:{ { /^X-Later:/ IGNORE } }";
    for before in [None, Some(SECRET)] {
        let line = before.map(|before| format!("header_checks = {before}"));
        let world = deployed(&line.iter().map(String::as_str).collect::<Vec<_>>());
        let untouched = said(&world);
        let checks = || value(&world, "header_checks");
        let with = |more: &[&str]| {
            let all = more.iter().copied().filter(|more| !more.is_empty());
            all.collect::<Vec<_>>().join(", ")
        };
        let theirs = before.unwrap_or_default();
        piped(&printed(&world, &["mx"]));
        assert_eq!(checks(), with(&[CHECKS, theirs]));
        assert!(printed(&world, &["mx"]).contains("# Nothing to change."));
        world.postfix.reload();
        assert_eq!(world.findings(), (Some(0), Vec::new()));
        let forged = message(&format!("{PASSES}\nX-Secret: x\n"), "forged");
        let answer = world.mail(ANNA, &[MY], &forged).1;
        assert!(matches(&answer, REFUSED), "{answer}");
        // There and back, and nothing is left of us.
        piped(&printed(&world, &["--remove"]));
        assert_eq!(said(&world), untouched);
        // Another name, and what somebody has added meanwhile.
        piped(&printed(&world, &["mx"]));
        configure(&world, "[\"mx.test\"]", "[\"a.test\", \"b.test\"]");
        piped(&printed(&world, &["mx"]));
        let pattern = |id: &str| CHECKS.replace("regexp:{ ", "").replace(" } }", " }").replace("mx", id);
        let both = format!("regexp:{{ {} {} }}", pattern("a"), pattern("b"));
        assert_eq!(checks(), with(&[&both, theirs]));
        world.postfix.set("header_checks", &with(&[&both, theirs, LATER]));
        assert!(printed(&world, &["mx"]).contains("# Nothing to change."));
        // Nobody is believed any more.
        configure(&world, "[\"a.test\", \"b.test\"]", "[]");
        let printed_without = printed(&world, &["mx"]);
        assert!(printed_without.contains("header_checks = "), "{printed_without}");
        piped(&printed_without);
        assert_eq!(checks(), with(&[theirs, LATER]));
        configure(&world, "trusted_authserv_ids = []", "trusted_authserv_ids = [\"mx.test\"]");
        piped(&printed(&world, &["mx"]));
        assert_eq!(checks(), with(&[CHECKS, theirs, LATER]));
        piped(&printed(&world, &["--remove"]));
        assert_eq!(checks(), with(&[theirs, LATER]));
        // What somebody does as well himself is enough.
        let all = "regexp:{ { /^Authentication-Results[[:space:]]*:/ IGNORE } }";
        world.postfix.set("header_checks", all);
        piped(&printed(&world, &["mx"]));
        assert_eq!(checks(), all);
        // Where nobody looks at the header, no table helps.
        world.postfix.set("receive_override_options", "no_header_body_checks, no_address_mappings");
        let (code, findings) = world.findings();
        assert_eq!((code, findings.len()), (Some(1), 1), "{findings:#?}");
        assert_eq!(findings[0]["check"], "forged-results");
        piped(findings[0]["remedy"].as_str().unwrap());
        assert_eq!(value(&world, "receive_override_options"), "no_address_mappings");
        assert_eq!(world.findings().0, Some(0));
    }
}

// W3
#[test]
fn a_login_that_lmtp_does_not_know_is_named() {
    let world = deployed(&[]);
    piped(&printed(&world, &["mx"]));
    let logins = || {
        let (code, findings) = world.findings();
        let is_login = |finding: &serde_json::Value| finding["check"] == "login";
        let found: Vec<_> = findings.into_iter().filter(is_login).collect();
        assert!(found.iter().all(|finding| finding["severity"] == "must" && code == Some(1)), "{found:#?}");
        found.into_iter().map(|finding| finding["remedy"].as_str().unwrap().to_owned()).next()
    };
    assert_eq!(logins(), None);
    // Asked, and mail waits while the milter is down: the login is always seen.
    world.postfix.set("smtpd_sasl_auth_enable", "yes");
    assert_eq!(logins(), None);
    let ours = value(&world, "smtpd_milters");
    for milters in [String::new(), ours.replace("tempfail", "accept")] {
        world.postfix.set("smtpd_milters", &milters);
        let host = value(&world, "myhostname");
        let remedy = logins().unwrap_or_else(|| panic!("{milters}"));
        assert!(remedy.contains(&format!("received_by = \"{host}\"")), "{remedy}");
        assert_eq!(remedy.contains("print submission --service"), milters.is_empty(), "{remedy}");
        // Each half alone is none.
        world.postfix.set("smtpd_sasl_authenticated_header", "yes");
        assert!(logins().unwrap().contains("received_by"));
        configure(&world, "[sender]\n", &format!("[sender]\nreceived_by = \"{host}\"\n"));
        assert_eq!(logins(), None);
        world.postfix.set("smtpd_sasl_authenticated_header", "no");
        assert!(!logins().unwrap().contains("received_by"));
        // Who asks nothing of a sender loses nothing.
        configure(&world, "require = \"authenticated\"", "require = \"none\"");
        assert_eq!(logins(), None);
        configure(&world, "require = \"none\"", "require = \"authenticated\"");
        configure(&world, &format!("received_by = \"{host}\"\n"), "");
    }
}
