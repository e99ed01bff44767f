//! The deployments of `postfix/`: what `activity-milter postfix print` prints is loaded into a Postfix that does not know
//! us yet, `postfix check` finds nothing in it, and mail goes through.

use crate::support::{
    free_port, wait_for,
    world::{Options, World, eml},
};
use serde_json::Value;
use std::{fs, process::Command};

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";

/// How a deployment is loaded.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    /// The lines of main.cf and master.cf are appended.
    Files,
    /// The commands are given to a shell.
    Commands,
}

/// A world whose Postfix has loaded the deployment, a change applied to the text (ports and example values).
fn deployed(deployment: &str, by: By, options: Options, change: impl Fn(String) -> String) -> World {
    deployed_at(deployment, None, by, options, change)
}

/// The same, for a service that is not called `submission`; for the commands it must be there already.
fn deployed_at(
    deployment: &str,
    service: Option<&str>,
    by: By,
    options: Options,
    change: impl Fn(String) -> String,
) -> World {
    let world = World::with(Options { bare: true, lmtp: true, ..options });
    if let (Some(service), By::Commands) = (service, by) {
        let chroot = if world.postfix.is_chrooted() { "y" } else { "n" };
        let entry = format!(
            "{service}/inet={service} inet n - {chroot} - - smtpd -o smtpd_tls_security_level=encrypt \
             -o smtpd_sasl_auth_enable=yes -o smtpd_relay_restrictions=permit_sasl_authenticated,reject"
        );
        world.postfix.tool("postconf", &["-M", &entry]);
    }
    let printed = |format: &str| {
        let (code, out, error) = world.postfix_command(
            &[
                &["print", deployment, "--format", format][..],
                &service.map_or(vec![], |s| vec!["--service", s]),
            ]
            .concat(),
        );
        assert_eq!((code, error.as_str()), (Some(0), ""));
        change(out)
    };
    match by {
        By::Files => {
            for file in ["main.cf", "master.cf"] {
                let path = world.postfix.conf().join(file);
                fs::write(&path, fs::read_to_string(&path).unwrap() + &printed(file)).unwrap();
            }
        }
        By::Commands => {
            let output = Command::new("sh").arg("-ec").arg(printed("commands")).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    world.postfix.reload();
    assert_eq!(world.findings(), (Some(0), Vec::new()), "a shipped deployment has nothing to change");
    world
}

/// Chrooted as on Debian; not chrooted; over TCP.
fn ways() -> [(By, Options); 3] {
    [
        (By::Files, Options { chroot: true, ..Options::default() }),
        (By::Commands, Options::default()),
        (By::Commands, Options { tcp: true, chroot: true, ..Options::default() }),
    ]
}

fn same(text: String) -> String {
    text
}

#[test]
fn mx() {
    for (by, options) in ways() {
        let mut world = deployed("mx", by, options, same);
        let (_, answer) = world.mail(ANNA, &[MY], &eml("plain"));
        assert!(answer.starts_with("250"), "{answer}");
        let (_, answer) = world.mail(ANNA, &[MY], &eml("no_subject"));
        assert!(answer.starts_with("550 5.6.0") && answer.ends_with("[no-subject]"), "{answer}");
        let (_, answer) = world.mail(ANNA, &["nobody@severamail.test"], &eml("plain"));
        assert!(answer.starts_with("550 5.1.1") && answer.ends_with("[no-such-tenant]"), "{answer}");
        // The Bcc field is shown to us: Esa, who stands only there, takes part.
        let message =
            b"From: anna@mycompany.test\nTo: bo@acme.test\nBcc: esa@mycompany.test\nSubject: blind\n\nx\n";
        assert!(world.mail(ANNA, &[MY], message).1.starts_with("250"));
        let found = world.wait_for_activities(2);
        assert_eq!(found[1]["participants"][1]["field"], "bcc", "{:#}", found[1]);
        assert!(found.iter().all(|activity| activity["envelope"]["intake"] == "milter"));
        // While we are down, clients come back.
        world.stop_milter();
        let (_, answer) = world.mail(ANNA, &[MY], &eml("html_only"));
        assert!(answer.starts_with("451 4.7.1"), "{answer}");
    }
}

#[test]
fn shared_mx() {
    for (by, mut options) in ways() {
        options.postfix =
            vec!["relay_domains = elsewhere.test".to_owned(), "relay_transport = keep:".to_owned()];
        let mut world = deployed("shared-mx", by, options, |text| {
            // What the administrator had is still there.
            assert!(
                !text.contains("relay_domains") || text.contains("elsewhere.test, severamail.test"),
                "{text}"
            );
            text
        });
        assert!(world.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"));
        assert!(world.mail(ANNA, &[MY], &eml("no_subject")).1.ends_with("[no-subject]"));
        assert!(
            world.mail("carl@else.test", &["dora@elsewhere.test"], &eml("someone_else")).1.starts_with("250")
        );
        world.wait_for_activities(1);
        // While we are down, everything is accepted, and ours waits.
        world.stop_milter();
        assert!(
            world.mail("carl@else.test", &["dora@elsewhere.test"], &eml("html_only")).1.starts_with("250")
        );
        assert!(world.mail(ANNA, &[MY], &eml("html_only")).1.starts_with("250"));
        wait_for("two deliveries", || (world.postfix.delivered().len() == 2).then_some(()));
        wait_for("a deferral", || world.postfix.log().contains("status=deferred").then_some(()));
        world.start_milter();
        world.postfix.flush();
        assert_eq!(world.wait_for_activities(2)[1]["envelope"]["intake"], "lmtp");
        wait_for("an empty queue", || world.postfix.queued().is_empty().then_some(()));
    }
}

/// Cyrus SASL with a password file below the chroot, and a certificate: what a submission service has anyway.
fn with_logins(world: &World) {
    let (conf, queue) = (world.postfix.conf(), world.root.join("postfix/queue"));
    let run = |program: &str, args: &[&str], input: &str| {
        let line = format!("printf %s \"$INPUT\" | {program} {}", args.join(" "));
        let output = Command::new("sh").arg("-ec").arg(line).env("INPUT", input).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let database = queue.join("sasldb2").display().to_string();
    run("/usr/sbin/saslpasswd2", &["-p", "-c", "-f", &database, "-u", "mx.test", "anna"], "secret");
    run("chown", &["postfix", &database], "");
    let sasl = format!(
        "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nmech_list: PLAIN\nsasldb_path: {}\n",
        if world.postfix.is_chrooted() { "/sasldb2" } else { &database }
    );
    // Where Debian's Postfix looks for it.
    fs::create_dir(conf.join("sasl")).unwrap();
    fs::write(conf.join("sasl/smtpd.conf"), sasl).unwrap();
    let (key, certificate) = (conf.join("key.pem"), conf.join("cert.pem"));
    let (key, certificate) = (key.display().to_string(), certificate.display().to_string());
    run(
        "openssl",
        &[
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=mx.test -keyout",
            &key,
            "-out",
            &certificate,
            "2>/dev/null",
        ],
        "",
    );
    for (name, value) in [
        ("smtpd_sasl_local_domain", "mx.test".to_owned()),
        ("smtpd_tls_key_file", key),
        ("smtpd_tls_cert_file", certificate),
    ] {
        world.postfix.set(name, &value);
    }
    world.postfix.reload();
}

#[test]
fn submission() {
    for (by, options) in ways() {
        let port = free_port();
        let service = format!("127.0.0.1:{port}");
        let world = deployed_at("submission", Some(&service), by, options, same);
        with_logins(&world);
        wait_for("the submission service", || std::net::TcpStream::connect(&service).ok());
        let swaks = |subject: &str, password: &str| {
            let output = Command::new("swaks")
                .args(["--server", &service, "--tls", "--auth", "PLAIN", "--auth-user", "anna@mx.test"])
                .args(["--auth-password", password, "--from", ANNA, "--to", &format!("bo@acme.test,{MY}")])
                .args(["--header", "From: anna@mycompany.test", "--header", subject, "--body", "by swaks"])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            (output.status.success(), said + &String::from_utf8_lossy(&output.stderr))
        };
        let (ok, said) = swaks("Subject: Submitted", "secret");
        assert!(ok, "{said}\n{}", world.postfix.log());
        let (ok, said) = swaks("Subject:", "secret");
        assert!(!ok && said.contains("[no-subject]"), "{said}");
        let (ok, said) = swaks("Subject: Submitted", "wrong");
        assert!(!ok && said.contains("535 5.7.8"), "{said}");
        let activity = world.wait_for_activities(1).remove(0);
        assert_eq!(
            (&activity["envelope"]["login"], &activity["envelope"]["intake"]),
            (&Value::from("anna@mx.test"), &Value::from("milter"))
        );
        assert_eq!(activity["customer"]["id"], "c-acme");
        wait_for("Bo's copy", || (world.postfix.delivered().len() == 1).then_some(()));
    }
}

#[test]
fn auto_bcc() {
    for (by, options) in ways() {
        let world =
            deployed("auto-bcc", by, options, |text| text.replace("@sales.example.com", "@mycompany.test"));
        // The customer gets it untouched, and we have it once, with the customer.
        let message = eml("plain");
        assert!(world.mail(ANNA, &["bo@acme.test"], &message).1.starts_with("250"));
        let activity = world.wait_for_activities(1).remove(0);
        assert_eq!(
            (&activity["customer"]["id"], &activity["owner"]["user_id"]),
            (&"c-acme".into(), &"u-anna".into())
        );
        assert_eq!(activity["participants"][0]["id"], "k-bo");
        assert_eq!(activity["envelope"]["intake"], "lmtp");
        let delivered = wait_for("Bo's copy", || world.postfix.delivered().pop());
        assert_eq!(
            (delivered.0.as_str(), &crate::others::without_received(&delivered.1)),
            ("bo@acme.test", &message)
        );
        // Somebody else's mail is nobody's business.
        assert!(
            world.mail("carl@else.test", &["dora@elsewhere.test"], &eml("someone_else")).1.starts_with("250")
        );
        wait_for("Dora's copy", || (world.postfix.delivered().len() == 2).then_some(()));
        wait_for("an empty queue", || world.postfix.queued().is_empty().then_some(()));
        world.wait_for_activities(1);
    }
}

#[test]
fn always_bcc() {
    let world = deployed("auto-bcc", By::Files, Options::default(), |text| {
        text.replace("\nsender_bcc_maps", "\n#sender_bcc_maps").replace("\n#always_bcc", "\nalways_bcc")
    });
    assert!(world.mail("bo@acme.test", &[ANNA], &eml("customer_reply")).1.starts_with("250"));
    let activity = world.wait_for_activities(1).remove(0);
    assert_eq!(
        (&activity["owner"]["user_id"], &activity["customer"]["id"]),
        (&"u-anna".into(), &"c-acme".into())
    );
    // What is nobody's is refused, in the log; no bounce bothers the sender.
    assert!(
        world.mail("carl@else.test", &["dora@elsewhere.test"], &eml("someone_else")).1.starts_with("250")
    );
    wait_for("the refusal", || world.postfix.log().contains("[no-user]").then_some(()));
    wait_for("an empty queue", || world.postfix.queued().is_empty().then_some(()));
    let to: Vec<_> = world.postfix.delivered().into_iter().map(|(to, _)| to).collect();
    assert!(to.len() == 2 && !to.contains(&"carl@else.test".to_owned()), "{to:?}");
}

#[test]
fn lmtp_only() {
    for (by, options) in ways() {
        let world = deployed("lmtp-only", by, options, same);
        assert!(world.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"));
        let activity = world.wait_for_activities(1).remove(0);
        let envelope = &activity["envelope"];
        assert_eq!((&envelope["intake"], &envelope["client"]), (&"lmtp".into(), &"127.0.0.1".into()));
        let queue_id = envelope["queue_id"].as_str().unwrap();
        assert!(world.postfix.log().contains(&format!("{queue_id}: to=<{MY}>")), "{}", world.postfix.log());
        // What is refused comes back to the sender, with our text.
        assert!(world.mail(ANNA, &[MY], &eml("no_subject")).1.starts_with("250"));
        let (to, bounce) = wait_for("a bounce", || world.postfix.delivered().pop());
        let bounce = String::from_utf8_lossy(&bounce).replace("\n    ", " ");
        assert!(
            to == ANNA && bounce.contains("[no-subject]") && bounce.contains("Status: 5.6.0"),
            "{bounce}"
        );
    }
}

#[test]
fn every_piece_is_loaded_here() {
    // A piece that no test loads does not ship.
    let pieces = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("postfix");
    let mut names: Vec<_> = fs::read_dir(pieces)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["auto-bcc", "lmtp-only", "mx", "shared-mx", "submission"]);
}
