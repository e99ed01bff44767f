//! `activity-milter postfix check`: each fault is put into a Postfix that is fine otherwise; it is found, named, and
//! where the remedy is a command, the command cures it.

use crate::support::{
    neighbour::Neighbour,
    postfix::Postfix,
    world::{Options, World, eml},
};
use serde_json::Value;
use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

const MILTER: &str = "unix:activity-milter/milter.sock";
const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";

/// A world with the deployment loaded.
fn deployed(deployment: &str, options: Options) -> World {
    let world = World::with(Options { bare: true, lmtp: true, ..options });
    let (_, text, _) = world.postfix_command(&["print", deployment]);
    shell(&text);
    world.postfix.cool();
    world
}

fn shell(command: &str) {
    let output = Command::new("sh").arg("-ec").arg(command).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Settings as they were, put back after each case.
struct Saved(Vec<(PathBuf, Vec<u8>)>);

impl Saved {
    fn of(postfix: &Postfix) -> Self {
        let files = ["main.cf", "master.cf"].map(|name| postfix.conf().join(name));
        Self(files.map(|path| (path.clone(), fs::read(path).unwrap())).to_vec())
    }

    fn restore(&self) {
        self.0.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    }
}

/// The one finding of a check, and that the exit code fits it.
#[track_caller]
fn found<'a>(code: Option<i32>, findings: &'a [Value], check: &str, severity: &str) -> &'a Value {
    let must = findings.iter().any(|finding| finding["severity"] == "must");
    assert_eq!(code, Some(i32::from(must)), "{findings:#?}");
    let mut ours = findings.iter().filter(|finding| finding["check"] == check);
    let finding = ours.next().unwrap_or_else(|| panic!("no finding {check}: {findings:#?}"));
    assert_eq!(finding["severity"], severity, "{finding:#}");
    for part in ["setting", "reason", "remedy"] {
        assert!(!finding[part].as_str().unwrap().is_empty(), "{finding:#}");
    }
    finding
}

// W3
#[test]
fn strangers_cannot_write_the_results_that_are_trusted() {
    let trust = "trusted_authserv_ids = [\"mx.test\"]";
    let config = vec![("sender", trust.to_owned())];
    let world = deployed("mx", Options { config, ..Options::default() });
    for (checks, is_open) in [
        ("", true),
        ("regexp:{ { /^Subject:/ IGNORE } }", true),
        // Not each way to write it.
        ("regexp:{ { /^Authentication-Results: mx\\.test/ IGNORE } }", true),
        ("regexp:{ { /^Authentication-Results[[:space:]]*:.*mx\\.test/ WARN } }", true),
        ("regexp:{ { /^Authentication-Results[[:space:]]*:/ IGNORE } }", false),
        ("regexp:{ { /^Authentication-Results[[:space:]]*:.*mx\\.test/ REJECT } }", false),
    ] {
        world.postfix.set("header_checks", checks);
        let (code, findings) = world.findings();
        let open = findings.iter().any(|finding| finding["check"] == "forged-results");
        assert_eq!(open, is_open, "{checks}: {findings:#?}");
        if is_open {
            let finding = found(code, &findings, "forged-results", "must");
            shell(finding["remedy"].as_str().unwrap());
            let (_, findings) = world.findings();
            assert!(findings.iter().all(|finding| finding["check"] != "forged-results"), "{findings:#?}");
        }
    }
}

/// (settings, of master.cf if their names begin with `@`), check, severity, part of the setting named
type Case = (&'static [(&'static str, &'static str)], &'static str, &'static str, &'static str);

/// A5.
#[test]
fn each_fault_is_found_and_its_remedy_cures_it() {
    let world = deployed("mx", Options { chroot: true, ..Options::default() });
    let saved = Saved::of(&world.postfix);
    let service = format!("127.0.0.1:{}/inet", world.postfix.port);
    let cases: &[Case] = &[
        (&[("relay_domains", "")], "domain", "must", "severamail.test is in no list of domains"),
        (&[("relay_domains", "other.test, !severamail.test")], "domain", "must", "no list of domains"),
        (&[("mydestination", "severamail.test")], "domain", "must", "severamail.test is in mydestination"),
        (&[("virtual_alias_domains", "severamail.test")], "domain", "must", "virtual_alias_domains"),
        (&[("relay_transport", "error:gone")], "transport", "must", "is error:gone"),
        (&[("relay_transport", "retry:later")], "transport", "must", "is retry:later"),
        (&[("relay_transport", "discard:")], "transport", "must", "is discard:"),
        (&[("relay_transport", "nosuch:")], "transport", "must", "is nosuch:"),
        (
            &[("transport_maps", "inline:{ { severamail.test = error:5.1.1 gone } }")],
            "transport",
            "must",
            "error:5.1.1",
        ),
        (&[("transport_maps", "inline:{ { .test = discard: } }")], "transport", "must", "discard:"),
        (&[("relay_transport", "smtp:[127.0.0.1]")], "lmtp-transport", "should", "smtp:[127.0.0.1]"),
        (&[("relay_transport", "lmtp:unix:private/dovecot-lmtp")], "lmtp-transport", "should", "dovecot"),
        (&[("in_flow_delay", "1s")], "in-flow-delay", "should", "in_flow_delay = 1s"),
        (&[("message_drop_headers", "Bcc, content-length, resent-bcc")], "drop-headers", "should", "Bcc"),
        (
            &[("smtpd_milters", MILTER), ("milter_default_action", "reject")],
            "default-action",
            "must",
            "is reject",
        ),
        (
            &[("smtpd_milters", MILTER), ("milter_default_action", "quarantine")],
            "default-action",
            "must",
            "quarantine",
        ),
        (
            &[
                ("smtpd_milters", "{ unix:activity-milter/milter.sock, default_action=accept }"),
                ("relay_transport", "smtp:[127.0.0.1]"),
            ],
            "default-action",
            "must",
            "is accept",
        ),
        (
            &[
                ("smtpd_milters", "{ unix:activity-milter/milter.sock, default_action=accept }"),
                ("relay_transport", "smtp:[127.0.0.1]"),
            ],
            "lmtp-transport",
            "must",
            "smtp:",
        ),
        (
            &[("@milter_default_action", "reject"), ("smtpd_milters", MILTER)],
            "default-action",
            "must",
            "is reject",
        ),
        (
            &[("@smtpd_milters", "{unix:activity-milter/milter.sock,default_action=reject}")],
            "default-action",
            "must",
            "is reject",
        ),
        (&[("milter_protocol", "2")], "protocol", "note", "protocol is 2"),
        (&[("milter_protocol", "3")], "protocol", "note", "protocol is 3"),
        // A milter that nobody answers, ours or not.
        (&[("smtpd_milters", "inet:127.0.0.1:9")], "milter", "must", "inet:127.0.0.1:9"),
        (&[("smtpd_milters", "{ inet:127.0.0.1:9, default_action=accept }")], "milter", "should", "inet:"),
        (
            &[("smtpd_milters", "inet:localhost:9, unix:activity-milter/milter.sock")],
            "milter",
            "must",
            "inet:",
        ),
        (
            &[("smtpd_milters", "{ unix:opendkim/gone.sock, default_action=reject }")],
            "milter",
            "must",
            "opendkim",
        ),
        (&[("smtpd_milters", "unix:activity-milter/old.sock")], "milter", "must", "old.sock"),
        (&[("smtpd_milters", "unix:activity-milter/lmtp.sock")], "milter", "must", "lmtp.sock"),
        (&[("smtpd_milters", "unx:activity-milter/milter.sock")], "milter", "must", "unx:"),
        (
            &[("smtpd_milters", "activity-milter/milter.sock")],
            "milter",
            "must",
            "activity-milter/milter.sock",
        ),
        (&[("smtpd_milters", "inet:8891@localhost")], "milter", "must", "8891@"),
        (&[("smtpd_milters", "inet:localhost")], "milter", "must", "inet:localhost"),
        (&[("dead", "inet:127.0.0.1:9"), ("smtpd_milters", "$dead")], "milter", "must", "inet:127.0.0.1:9"),
        (&[("@smtpd_milters", "inet:127.0.0.1:9")], "milter", "must", "/inet: smtpd_milters has inet:"),
        (
            &[("@milter_default_action", "shutdown"), ("smtpd_milters", "inet:127.0.0.1:9")],
            "milter",
            "must",
            "inet:127.0.0.1:9",
        ),
        (&[("non_smtpd_milters", "inet:127.0.0.1:9")], "milter", "must", "non_smtpd_milters has inet:"),
        // Entries that end smtpd, and values that it does not know.
        (
            &[("smtpd_milters", "{ unix:activity-milter/milter.sock, default_action = accept }")],
            "milter",
            "must",
            "has unix:activity-milter/milter.sock",
        ),
        (
            &[("smtpd_milters", "{ unix:activity-milter/milter.sock, default_acton=accept }")],
            "milter",
            "must",
            "has unix:activity-milter/milter.sock",
        ),
        (
            &[("smtpd_milters", "{ unix:activity-milter/milter.sock, connect_timeout=1x }")],
            "milter",
            "must",
            "has unix:activity-milter/milter.sock",
        ),
        (
            &[("smtpd_milters", "{unix:activity-milter/milter.sock")],
            "milter",
            "must",
            "has unix:activity-milter/milter.sock",
        ),
        (&[("smtpd_milters", "unix:activity-milter/milter.sock }")], "milter", "must", "smtpd_milters has }"),
        (
            &[("@smtpd_milters", "{unix:activity-milter/milter.sock,default_acton=accept}")],
            "milter",
            "must",
            "has unix:activity-milter/milter.sock",
        ),
        (
            &[("smtpd_milters", "{ unix:activity-milter/milter.sock, protocol=5 }")],
            "milter-setting",
            "must",
            "its protocol is 5",
        ),
        (&[("milter_protocol", "7")], "milter-setting", "must", "its protocol is 7"),
        (
            &[("smtpd_milters", "{ unix:activity-milter/milter.sock, default_action=acept }")],
            "milter-setting",
            "should",
            "its default_action is acept",
        ),
        // Whoever's mail by a detour to us.
        (
            &[("content_filter", "lmtp:unix:activity-milter/lmtp.sock")],
            "others",
            "must",
            "content_filter = lmtp:",
        ),
        (
            &[("@content_filter", "lmtp:unix:activity-milter/lmtp.sock")],
            "others",
            "must",
            "/inet: content_filter",
        ),
        (
            &[("mailbox_transport", "lmtp:unix:activity-milter/lmtp.sock")],
            "others",
            "must",
            "mailbox_transport",
        ),
        (
            &[("fallback_transport", "lmtp:unix:activity-milter/lmtp.sock")],
            "others",
            "must",
            "fallback_transport",
        ),
        // Nothing comes to us, or something else becomes of it.
        (&[("lmtp_tls_security_level", "encrypt")], "lmtp-tls", "must", "lmtp_tls_security_level = encrypt"),
        (&[("lmtp_enforce_tls", "yes")], "lmtp-tls", "must", "lmtp_enforce_tls = yes"),
        (
            &[("smtpd_proxy_filter", "127.0.0.1:9")],
            "proxy-filter",
            "must",
            "smtpd_proxy_filter = 127.0.0.1:9",
        ),
        (&[("smtpd_recipient_restrictions", "reject")], "refused-before", "must", "restrictions has reject"),
        (&[("smtpd_recipient_restrictions", "reject, reject")], "refused-before", "must", "has reject"),
        (&[("smtpd_data_restrictions", "reject")], "refused-before", "must", "data_restrictions has reject"),
        (&[("smtpd_end_of_data_restrictions", "reject")], "refused-before", "must", "of_data_restrictions"),
        (&[("lmtp_sasl_auth_enable", "yes")], "lmtp-sasl", "must", "lmtp_sasl_auth_enable = yes"),
        (
            &[("masquerade_domains", "test"), ("masquerade_classes", "envelope_recipient")],
            "alias",
            "must",
            "masquerade_domains = test",
        ),
        (&[("relay_domains", ".test")], "domain", "must", "severamail.test is in no list of domains"),
        (&[("mydestination", "test"), ("relay_domains", "")], "domain", "must", "no list of domains"),
        (&[("defer_transports", "smtp, lmtp")], "deferred", "must", "defer_transports = smtp, lmtp"),
        (&[("soft_bounce", "yes")], "soft-bounce", "should", "soft_bounce = yes"),
        // Bcc is for us alone.
        (&[("relay_domains", "severamail.test, other.test")], "bcc-shown", "must", "content-length"),
        (&[("mydestination", "mx.test, other.test")], "bcc-shown", "must", "content-length"),
        (&[("mynetworks", "127.0.0.0/8 10.0.0.0/8")], "bcc-shown", "must", "content-length"),
        (&[("mynetworks", "127.0.0.0/8 192.0.2.25/32")], "bcc-shown", "must", "content-length"),
        (&[("always_bcc", "archive@mx.test")], "bcc-shown", "must", "content-length"),
        (&[("@smtpd_sasl_auth_enable", "yes")], "bcc-shown", "must", "content-length"),
        (&[("smtp_header_checks", "")], "bcc-sent", "should", "content-length"),
        (&[("mailbox_size_limit", "1000000")], "mailbox-limit", "must", "mailbox_size_limit = 1000000"),
        (&[("virtual_mailbox_limit", "1000000")], "mailbox-limit", "must", "virtual_mailbox_limit"),
        (&[("milter_command_timeout", "5s")], "timeout", "should", "command_timeout is 5s"),
        (&[("milter_content_timeout", "1m")], "timeout", "should", "content_timeout is 1m"),
        (
            &[(
                "smtpd_milters",
                "inet:127.0.0.1:9, { unix:activity-milter/milter.sock, command_timeout=2s }",
            )],
            "timeout",
            "should",
            "is 2s",
        ),
        (&[("lmtp_rcpt_timeout", "5")], "timeout", "should", "lmtp_rcpt_timeout = 5"),
        (&[("lmtp_data_done_timeout", "60s")], "timeout", "should", "lmtp_data_done_timeout = 60s"),
        (&[("lmtp_line_length_limit", "998")], "long-lines", "should", "lmtp_line_length_limit = 998"),
        (
            &[("lmtp_generic_maps", "inline:{ { anna@mycompany.test = a@x.test } }")],
            "rewriting",
            "should",
            "lmtp_generic_maps = inline:",
        ),
        (
            &[
                ("@receive_override_options", "no_address_mappings"),
                ("canonical_maps", "inline:{ { anna@mycompany.test = a@x.test } }"),
            ],
            "rewriting",
            "should",
            "receive_override_options = no_address_mappings",
        ),
        (&[("message_size_limit", "0")], "size-limit", "should", "message_size_limit = 0"),
        (&[("message_size_limit", "52428801")], "size-limit", "should", "52428801"),
        (
            &[("non_smtpd_milters", "inet:127.0.0.1:9 unix:activity-milter/milter.sock")],
            "non-smtpd",
            "must",
            "milter.sock",
        ),
        (
            &[("relay_recipient_maps", "inline:{ { mycompany@severamail.test = x } }")],
            "recipients",
            "must",
            "relay_recipient_maps",
        ),
    ];
    for (settings, check, severity, part) in cases {
        for (name, value) in *settings {
            match name.strip_prefix('@') {
                Some(name) => {
                    drop(world.postfix.tool("postconf", &["-P", &format!("{service}/{name}={value}")]))
                }
                None => world.postfix.set(name, value),
            }
        }
        let (code, findings) = world.findings();
        let finding = found(code, &findings, check, severity);
        assert!(finding["setting"].as_str().unwrap().contains(part), "{finding:#}");
        // Each remedy begins with a command, or says first what else there is to do.
        let remedy = finding["remedy"].as_str().unwrap();
        let command = remedy.find("postconf ").map(|at| remedy[at..].split(", or ").next().unwrap());
        world.postfix.cool();
        shell(command.unwrap_or_else(|| panic!("no command in {remedy}")));
        world.postfix.cool();
        if !remedy.starts_with("take ") {
            let (_, after) = world.findings();
            assert!(!after.contains(finding), "{remedy} does not cure {finding:#}\n{after:#?}");
        }
        saved.restore();
        world.postfix.cool();
    }
    assert_eq!(world.findings(), (Some(0), Vec::new()));
}

/// A5: what takes a message from us by its header; where only a message can tell, it is a note.
#[test]
fn header_checks_that_take_ours() {
    let world = deployed("mx", Options::default());
    let to_us = "FILTER lmtp:unix:activity-milter/lmtp.sock";
    for (name, rules, severity, part) in [
        ("header_checks", "/^Subject:/ REDIRECT x@y.test", "must", "says REDIRECT x@y.test to \"Subject:"),
        ("header_checks", "/^To:.*@severamail/ DISCARD", "must", "says DISCARD to \"To: "),
        ("header_checks", "/^Message-ID:/ REJECT no", "must", "says REJECT no"),
        ("header_checks", "/^Subject:/ IGNORE", "must", "says IGNORE"),
        ("header_checks", &format!("/^From:/ {to_us}"), "must", "says FILTER lmtp:"),
        ("header_checks", "/^Subject: spam/ DISCARD", "note", "has DISCARD"),
        ("lmtp_header_checks", "/^Subject:/ IGNORE", "must", "says IGNORE"),
        // What is sent by people who exist, today.
        ("header_checks", "/^(From|Message-ID):.*(invalid|localdomain|\\.local)>?$/ REJECT", "", ""),
        ("header_checks", "/^Date: .* 20(0[0-9]|1[0-9]|2[0-5]) / REJECT", "", ""),
        // What the milter takes is not held, and the rest is nobody's business of ours.
        ("header_checks", "/^Subject: *$/ REJECT\n/^Received:/ IGNORE\n/./ WARN", "", ""),
        ("header_checks", "/^Subject:/ FILTER smtp:[127.0.0.1]", "", ""),
        ("lmtp_header_checks", "/^Received:/ IGNORE", "", ""),
    ] {
        let file = world.root.join("checks");
        fs::write(&file, format!("{rules}\n")).unwrap();
        world.postfix.set(name, &format!("regexp:{}", file.display()));
        let (code, findings) = world.findings();
        match severity {
            "" => assert_eq!((code, findings), (Some(0), Vec::new()), "{rules}"),
            severity => {
                let finding = found(code, &findings, "header-checks", severity);
                assert!(finding["setting"].as_str().unwrap().contains(part), "{finding:#}");
            }
        }
        world.postfix.set(name, "");
    }
    // One that cannot be read stops all mail.
    world.postfix.set("header_checks", "regexp:/nonexistent");
    let (code, findings) = world.findings();
    assert!(
        found(code, &findings, "table", "must")["setting"].as_str().unwrap().contains("header_checks has")
    );
    // Without a milter what is held stays on hold.
    world.postfix.set("header_checks", "regexp:{ { /^Subject:/ HOLD } }");
    world.postfix.set("smtpd_milters", "");
    let (code, findings) = world.findings();
    assert!(
        found(code, &findings, "header-checks", "must")["reason"].as_str().unwrap().contains("hold queue")
    );
}

/// A5: as Postfix sees them.
#[test]
fn sockets_are_tried_as_user_postfix_and_from_the_chroot() {
    let mut world = deployed("mx", Options { chroot: true, ..Options::default() });
    let saved = Saved::of(&world.postfix);
    let directory = world.root.join("postfix/queue/activity-milter");
    let socket = directory.join("milter.sock");
    let mode = |path: &PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let reason = |world: &World, part: &str| {
        let (code, findings) = world.findings();
        let finding = found(code, &findings, "socket", "must");
        assert!(finding["reason"].as_str().unwrap().contains(part), "{finding:#}");
        finding["remedy"].as_str().unwrap().to_owned()
    };
    // Not Postfix's to open.
    mode(&socket, 0o600);
    assert!(reason(&world, "Permission denied").contains("socket_group"));
    mode(&socket, 0o660);
    mode(&directory, 0o700);
    reason(&world, "Permission denied");
    mode(&directory, 0o755);
    assert_eq!(world.findings(), (Some(0), Vec::new()));
    // The path that everybody but a chrooted process sees.
    world.postfix.set("smtpd_milters", &format!("{{ unix:{}, default_action=tempfail }}", socket.display()));
    assert!(reason(&world, "No such file").contains("unix:activity-milter/milter.sock"));
    saved.restore();
    // Something else answers.
    world.postfix.set("smtpd_milters", "{ unix:activity-milter/lmtp.sock, default_action=tempfail }");
    let (code, findings) = world.findings();
    let finding = found(code, &findings, "milter", "must");
    assert!(finding["reason"].as_str().unwrap().contains("LMTP listener, which is no milter"), "{finding:#}");
    assert!(finding["remedy"].as_str().unwrap().contains("unix:activity-milter/milter.sock"), "{finding:#}");
    saved.restore();
    // Ours, as it was before milter.listen changed.
    world.postfix.set("smtpd_milters", "{ unix:activity-milter/before.sock, default_action=tempfail }");
    let (code, findings) = world.findings();
    let finding = found(code, &findings, "milter", "must");
    assert!(finding["reason"].as_str().unwrap().contains("an old entry of activity-milter's"), "{finding:#}");
    saved.restore();
    // Somebody else's that is alive is nobody's fault, whatever version it speaks.
    let neighbour = Neighbour::start();
    let theirs = format!("inet:127.0.0.1:{}", neighbour.port);
    let both = format!("{theirs}, {{ {theirs}, protocol=2 }}, {{ {MILTER}, default_action=tempfail }}");
    world.postfix.set("smtpd_milters", &both);
    assert_eq!(world.findings(), (Some(0), Vec::new()));
    saved.restore();
    // Nobody is there.
    world.stop_milter();
    let (code, findings) = world.findings();
    assert_eq!((code, findings.len()), (Some(1), 2), "{findings:#?}");
    assert!(findings.iter().all(|finding| finding["check"] == "socket"), "{findings:#?}");
    // A socket outside the queue directory is out of a chrooted process's sight.
    let outside = world.root.join("outside.sock");
    let text = fs::read_to_string(world.config_path()).unwrap();
    let text = text.replace(&socket.display().to_string(), &outside.display().to_string());
    fs::write(world.config_path(), text).unwrap();
    world.start_milter();
    world.postfix.set("smtpd_milters", &format!("{{ unix:{}, default_action=tempfail }}", outside.display()));
    assert!(reason(&world, "No such file").contains("set milter.listen to a path there"));
}

#[test]
fn what_waits_for_a_restart_is_named_before_print_is() {
    let world = deployed("mx", Options::default());
    let text = fs::read_to_string(world.config_path()).unwrap();
    fs::write(world.config_path(), text.replace("/milter.sock", "/other.sock")).unwrap();
    let (code, findings) = world.findings();
    let finding = found(code, &findings, "restart", "must");
    assert!(finding["setting"].as_str().unwrap().contains("activity-milter/other.sock"), "{finding:#}");
    assert!(finding["remedy"].as_str().unwrap().starts_with("restart activity-milter"), "{finding:#}");
}

#[test]
fn a_setting_that_postfix_cannot_read_is_named() {
    let world = deployed("mx", Options::default());
    let main = world.postfix.conf().join("main.cf");
    let text = fs::read_to_string(&main).unwrap();
    fs::write(&main, text + "virtual_alias_maps = regexp:{ { /^(.*)@a$/ $1@b.test } }\n").unwrap();
    let (code, _, err) = world.postfix_command(&["check"]);
    assert_eq!(code, Some(78), "{err}");
    assert!(err.contains("virtual_alias_maps in main.cf"), "{err}");
}

/// Another domain, our milter with `action`, and no way to us.
fn beside_others(action: &str) -> World {
    let world = deployed("shared-mx", Options::default());
    world.postfix.set("relay_domains", "elsewhere.test, severamail.test");
    world.postfix.set("relay_transport", "keep:");
    world.postfix.set("transport_maps", "");
    world.postfix.set("message_drop_headers", "bcc, resent-bcc, content-length");
    world.postfix.set("smtpd_milters", &format!("{{ {MILTER}, default_action={action} }}"));
    world
}

#[test]
fn remedies_applied_together_leave_other_peoples_mail_alone() {
    for action in ["accept", "tempfail", "reject", "quarantine"] {
        let world = beside_others(action);
        let (code, findings) = world.findings();
        assert_eq!(code, Some(1), "{action}: {findings:#?}");
        for finding in &findings {
            let remedy = finding["remedy"].as_str().unwrap();
            assert!(!remedy.contains("default_action=tempfail"), "{action}: {finding:#}");
            shell(remedy);
            world.postfix.cool();
        }
        assert_eq!(world.findings(), (Some(0), Vec::new()), "{action}");
        let milters = world.postfix.tool("postconf", &["-h", "smtpd_milters"]);
        assert!(format!("{milters:?}").contains("default_action=accept"), "{action}: {milters:?}");
    }
}

#[test]
fn other_peoples_mail_does_not_wait_for_us() {
    let world = beside_others("tempfail");
    let us = "inline:{ { severamail.test = lmtp:unix:activity-milter/lmtp.sock } }";
    world.postfix.set("transport_maps", us);
    let (code, findings) = world.findings();
    let finding = found(code, &findings, "default-action", "must");
    let reason = finding["reason"].as_str().unwrap();
    assert!(reason.contains("other people's mail") && reason.contains("elsewhere.test"), "{finding:#}");
    shell(finding["remedy"].as_str().unwrap());
    world.postfix.cool();
    assert_eq!(world.findings(), (Some(0), Vec::new()));
}

/// A5: of other domains.
#[test]
fn mail_of_others_that_comes_to_us_is_named() {
    let world = deployed("mx", Options::default());
    let saved = Saved::of(&world.postfix);
    let us = "lmtp:unix:activity-milter/lmtp.sock";
    let table = world.root.join("table");
    fs::write(&table, format!("fourth.test {us}\n.fifth.test {us}\nseveramail.test {us}\n")).unwrap();
    world.postfix.tool("postmap", &[&format!("hash:{}", table.display())]);
    let table = format!("hash:{}", table.display());
    let pattern = world.root.join("pattern");
    fs::write(&pattern, format!("/@/ {us}\n")).unwrap();
    let pattern = format!("regexp:{}", pattern.display());
    let star = format!("inline:{{ {{ * = {us} }} }}");
    let cases: &[(&[(&str, &str)], &str)] = &[
        (&[("relay_domains", "severamail.test, other.test")], "other.test is in relay_domains"),
        (&[("relay_domains", "severamail.test, .other.test")], ".other.test is in relay_domains"),
        (
            &[("relay_domains", "severamail.test, inline:{ { third.test = x } }")],
            "third.test is in relay_domains",
        ),
        (&[("relay_domains", "severamail.test, regexp:/dev/null")], "relay_domains has a table"),
        (
            &[("virtual_mailbox_domains", "boxes.test"), ("virtual_transport", us)],
            "boxes.test is in virtual_mailbox_domains",
        ),
        (&[("mydestination", "people.test"), ("local_transport", us)], "people.test is in mydestination"),
        (&[("default_transport", us)], "the transport of all other mail"),
        (&[("transport_maps", &star)], "the transport of all other mail"),
        (&[("transport_maps", &pattern)], "the transport of all other mail"),
        (&[("transport_maps", &table)], "has fourth.test"),
        (&[("transport_maps", &table)], "has .fifth.test"),
    ];
    for (settings, part) in cases {
        settings.iter().for_each(|(name, value)| world.postfix.set(name, value));
        let (code, findings) = world.findings();
        let named = |finding: &&Value| {
            finding["check"] == "others" && finding["setting"].as_str().unwrap().contains(part)
        };
        let finding = findings.iter().find(named).unwrap_or_else(|| panic!("{part}: {findings:#?}"));
        assert_eq!((code, &finding["severity"]), (Some(1), &"must".into()), "{finding:#}");
        assert!(!finding["remedy"].as_str().unwrap().is_empty());
        saved.restore();
        world.postfix.cool();
    }
    // Where transport_maps has them elsewhere, it is fine.
    world.postfix.set("relay_domains", "severamail.test, other.test");
    world.postfix.set("transport_maps", "inline:{ { other.test = keep: } }");
    world.postfix.set("message_drop_headers", "bcc, resent-bcc, content-length");
    let (_, findings) = world.findings();
    assert!(findings.iter().all(|finding| finding["check"] != "others"), "{findings:#?}");
}

/// (settings, check, severity, parts of the setting named): what a person must do, no command can.
type ByHand<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str, &'a [&'a str]);

#[test]
fn tables_and_patterns_are_asked_as_postfix_asks_them() {
    let world = deployed("mx", Options::default());
    let saved = Saved::of(&world.postfix);
    let us = "lmtp:unix:activity-milter/lmtp.sock";
    let file = |name: &str, text: &str| {
        let path = world.root.join(name);
        fs::write(&path, text).unwrap();
        format!("regexp:{}", path.display())
    };
    // Postfix asks a pattern for whole addresses alone.
    let domain = file("domain", &format!("/^severamail\\.test$/ {us}\n"));
    let recipients = file("recipients", "/^@severamail\\.test$/ OK\n");
    let projects = file("projects", "/^[0-9]+\\..*@severamail\\.test$/ keep:\n");
    let people = file("people", "/^[a-z-]+@severamail\\.test$/ OK\n");
    let alias = file("alias", "/@severamail/ dora@elsewhere.test\n");
    let detour = format!("inline:{{ {{ @x.test = {us} }} }}");
    let cases: &[ByHand] = &[
        (
            &[("transport_maps", &domain), ("relay_transport", "keep:")],
            "lmtp-transport",
            "should",
            &["is keep:"],
        ),
        (&[("relay_recipient_maps", &recipients)], "recipients", "must", &["relay_recipient_maps"]),
        (&[("relay_recipient_maps", &people)], "recipients", "must", &["relay_recipient_maps"]),
        (&[("transport_maps", &projects)], "transport", "must", &["of 1.", "is keep:"]),
        (
            &[("virtual_alias_maps", &alias)],
            "alias",
            "must",
            &["virtual_alias_maps makes dora@elsewhere.test"],
        ),
        (
            &[("canonical_maps", "inline:{ { @severamail.test = dora@elsewhere.test } }")],
            "alias",
            "must",
            &["canonical_maps makes dora@elsewhere.test"],
        ),
        (
            &[("fallback_transport_maps", &detour)],
            "others",
            "must",
            &["in fallback_transport_maps has @x.test"],
        ),
        (
            &[("sender_dependent_default_transport_maps", &detour)],
            "others",
            "must",
            &["in sender_dependent_default_transport_maps has @x.test"],
        ),
        (
            &[(
                "smtpd_recipient_restrictions",
                "permit_mynetworks, check_recipient_access inline:{ { severamail.test = REJECT } }, permit",
            )],
            "refused-before",
            "note",
            &["smtpd_recipient_restrictions has inline:"],
        ),
        (
            &[(
                "smtpd_recipient_restrictions",
                "reject_unauth_pipelining, check_recipient_access inline:{ { severamail.test = REJECT } }, permit",
            )],
            "refused-before",
            "must",
            &["smtpd_recipient_restrictions has inline:"],
        ),
        (
            &[("smtpd_recipient_restrictions", "reject_unknown_recipient_domain, permit")],
            "unknown-to-dns",
            "note",
            &["has reject_unknown_recipient_domain"],
        ),
        (
            &[("transport_maps", "static:keep:"), ("relay_transport", "keep:")],
            "lmtp-transport",
            "should",
            &["is keep:"],
        ),
        (
            &[("relocated_maps", "inline:{ { @severamail.test = dora@elsewhere.test } }")],
            "alias",
            "must",
            &["relocated_maps makes dora@elsewhere.test of every"],
        ),
        (
            &[("canonical_maps", "inline:{ { mycompany@severamail.test = dora@elsewhere.test } }")],
            "alias",
            "note",
            &["canonical_maps makes dora@elsewhere.test of mycompany@severamail.test"],
        ),
        (
            &[("lmtp_tls_policy_maps", "static:encrypt")],
            "lmtp-tls",
            "note",
            &["lmtp_tls_policy_maps = static:"],
        ),
        // What cannot be read is named with its setting, and the rest is looked at all the same.
        (
            &[("transport_maps", "hash:/nonexistent/table")],
            "table",
            "must",
            &["transport_maps has hash:/nonexistent"],
        ),
        (
            &[("relay_domains", "severamail.test, /nonexistent")],
            "table",
            "must",
            &["relay_domains has /nonexistent"],
        ),
        (&[("relay_recipient_maps", "ldop:/x")], "table", "must", &["relay_recipient_maps has ldop:/x"]),
        (
            &[("transport_maps", "hash:/nonexistent/table"), ("smtpd_milters", "inet:127.0.0.1:9")],
            "milter",
            "must",
            &["inet:127.0.0.1:9"],
        ),
    ];
    for (settings, check, severity, parts) in cases {
        settings.iter().for_each(|(name, value)| world.postfix.set(name, value));
        let (code, findings) = world.findings();
        let finding = found(code, &findings, check, severity);
        for part in *parts {
            assert!(finding["setting"].as_str().unwrap().contains(part), "{part}: {finding:#}");
        }
        saved.restore();
        world.postfix.cool();
    }
    // An alias of somebody else's is no domain, and one address of our own that leads to us is fine.
    world.postfix.set("virtual_alias_maps", "inline:{ { root@mx.test = mycompany@severamail.test } }");
    assert_eq!(world.findings(), (Some(0), Vec::new()));
    saved.restore();
    // proxymap(8) answers only while Postfix runs; nobody waits for it.
    world.postfix.tool("postfix", &["stop"]);
    world.postfix.set("transport_maps", "proxy:inline:{ { elsewhere.test = keep: } }");
    assert_eq!(world.findings(), (Some(0), Vec::new()));
}

/// smtpd is asked too.
#[test]
fn lists_of_domains_are_read_as_smtpd_reads_them() {
    let world = deployed("mx", Options::default());
    world.postfix.set("smtpd_relay_restrictions", "reject_unauth_destination");
    for (parents, list, expected) in [
        ("relay_domains", "test", true),
        ("relay_domains", ".test", false),
        ("relay_domains", "inline:{ { test = x } }", true),
        ("relay_domains", "inline:{ { .test = x } }", false),
        ("relay_domains", "!severamail.test, test", false),
        ("", "test", false),
        ("", ".test", true),
        ("", "inline:{ { test = x } }", false),
        ("", "inline:{ { .test = x } }", true),
        ("", "SeveraMail.TEST", true),
    ] {
        world.postfix.set("parent_domain_matches_subdomains", parents);
        world.postfix.set("relay_domains", list);
        world.postfix.reload();
        let (answers, _) = world.mail(ANNA, &[MY], &eml("plain"));
        let taken = answers.last().is_some_and(|answer| answer.starts_with("250"));
        let (_, findings) = world.findings();
        let found = !findings.iter().any(|finding| finding["check"] == "domain");
        assert_eq!((taken, found), (expected, expected), "{parents} {list}: {answers:?} {findings:#?}");
    }
}

/// What is said of a table that knows every address helps, if it is done.
#[test]
fn tables_that_know_whole_addresses_leave_us_ours() {
    let world = deployed("mx", Options::default());
    let path = world.root.join("transport");
    let us = "lmtp:unix:activity-milter/lmtp.sock";
    let file = format!("regexp:{}", path.display());
    let rule = r"/@severamail\.test$/ lmtp:unix:activity-milter/lmtp.sock";
    let inline = r"{ /@severamail\.test$$/ lmtp:unix:activity-milter/lmtp.sock }";
    for (table, says, mended) in [
        (
            "static:keep:",
            "write inline:{ { * = keep: } } in place of static:keep:",
            "inline:{ { * = keep: } }".to_owned(),
        ),
        (&*file, rule, file.clone()),
        ("regexp:{ { /./ keep: } }", inline, format!("regexp:{{ {inline} {{ /./ keep: }} }}")),
    ] {
        fs::write(&path, "/./ keep:\n").unwrap();
        world.postfix.set("relay_transport", "keep:");
        world.postfix.set("transport_maps", table);
        let (code, findings) = world.findings();
        let finding = found(code, &findings, "lmtp-transport", "should");
        let remedy = finding["remedy"].as_str().unwrap();
        assert!(remedy.contains(says) && !remedy.contains("postconf"), "{remedy}");
        let (code, _, error) = world.postfix_command(&["print", "mx"]);
        assert!(code == Some(78) && error.contains(says), "{error}");
        // What it says, and then what the check says of the rest.
        fs::write(&path, format!("{rule}\n/./ keep:\n")).unwrap();
        world.postfix.set("transport_maps", &mended);
        let (_, findings) = world.findings();
        if let Some(finding) = findings.iter().find(|finding| finding["check"] == "lmtp-transport") {
            let remedy = finding["remedy"].as_str().unwrap();
            assert!(remedy.starts_with("postconf ") && remedy.contains(us), "{remedy}");
            shell(remedy);
            world.postfix.cool();
        }
        let (_, findings) = world.findings();
        assert!(!findings.iter().any(|finding| finding["check"] == "lmtp-transport"), "{findings:#?}");
    }
}

#[test]
fn who_is_not_root_is_not_told_what_postfix_may_do() {
    let world = deployed("mx", Options::default());
    // A copy that everybody may run: where the tests are built is nobody's business.
    let program = world.root.join("activity-milter");
    fs::copy(crate::support::world::program(), &program).unwrap();
    let mode = |path: PathBuf| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    mode(program.clone());
    mode(world.config_path());
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]).arg(&program);
    command.arg("--config").arg(world.config_path()).args(["postfix", "check", "--json", "--postfix-config"]);
    let output = command.arg(world.postfix.conf()).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let findings = report["findings"].as_array().unwrap();
    let finding = found(output.status.code(), findings, "socket", "note");
    assert!(finding["reason"].as_str().unwrap().contains("only root can try"), "{finding:#}");
    assert!(findings.iter().all(|finding| finding["severity"] != "must"), "{findings:#?}");
}

#[test]
fn without_a_way_to_us() {
    let world = deployed("lmtp-only", Options::default());
    // A filter's way back asks no milters: that is not a fault.
    let service = format!("127.0.0.1:{}/inet", world.postfix.port);
    world.postfix.set("smtpd_milters", "unix:activity-milter/milter.sock");
    world.postfix.tool("postconf", &["-P", &format!("{service}/receive_override_options=no_milters")]);
    assert_eq!(world.findings(), (Some(0), Vec::new()));
    // But without LMTP there is no way left.
    world.postfix.set("relay_transport", "smtp:[127.0.0.1]");
    let (code, findings) = world.findings();
    found(code, &findings, "lmtp-transport", "must");
}

#[test]
fn people_read_what_is_seen_and_what_to_do() {
    let world = deployed("mx", Options::default());
    let (code, out, _) = world.postfix_command(&["check"]);
    assert_eq!(code, Some(0));
    for line in [
        "  severamail.test: relay, transport lmtp:unix:activity-milter/lmtp.sock\n",
        "/inet: milter unix:activity-milter/milter.sock, default_action tempfail\n",
        "\nNothing to change.\n",
    ] {
        assert!(out.contains(line), "{out}");
    }
    world.postfix.set("relay_transport", "error:gone");
    let (code, out, _) = world.postfix_command(&["check"]);
    assert_eq!(code, Some(1));
    let conf = world.postfix.conf();
    let remedy = format!(
        "  remedy: postconf -c {} -e 'relay_transport = lmtp:unix:activity-milter/lmtp.sock'\n",
        conf.display()
    );
    assert!(out.contains("MUST CHANGE [transport] ") && out.contains(&remedy), "{out}");
    // A Postfix that is not there is a failure, not a finding; and without LMTP there is nothing to print.
    let run = |args: &[&str]| Command::new(crate::support::world::program()).args(args).output().unwrap();
    let config = world.config_path().display().to_string();
    let output = run(&["-c", &config, "postfix", "check", "--postfix-config", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains("postconf fails"), "{output:?}");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.split("\n[lmtp]").next().unwrap()).unwrap();
    let output = run(&["-c", &config, "postfix", "print", "mx"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("add the table [lmtp]"), "{output:?}");
    let output =
        run(&["-c", &config, "postfix", "check", "--json", "--postfix-config", &conf.display().to_string()]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("add the table [lmtp]"), "{output:?}");
}
