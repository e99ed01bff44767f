//! A Postfix that has lived: other domains, lists, tables, milters and habits of its own. What `postfix print` prints goes
//! to a shell; other people's mail goes where it went before, ours arrives, `check` finds nothing that must change,
//! and `--remove` gives back what was there.

use crate::support::{
    free_port,
    neighbour::Neighbour,
    wait_for,
    world::{Options, Process, World, eml},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    process::{Command, Stdio},
};

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";
const CARL: &str = "carl@else.test";

/// A Postfix, as its administrator made it.
struct Lived {
    name: &'static str,
    deployment: &'static [&'static str],
    /// Lines of main.cf. `PORT` is where a milter of somebody else's listens, `MAPS` a directory for tables.
    main: &'static str,
    /// `postconf -P` arguments, the smtpd service before them.
    service: &'static [&'static str],
    /// Tables: file name, content. Those called `hash…` are made with postmap.
    tables: &'static [(&'static str, &'static str)],
    /// Recipients of others.
    others: &'static [&'static str],
    /// Settings that must not change.
    kept: &'static [&'static str],
    chroot: bool,
    /// Mail of others comes from this machine alone, and what it sends by smtp(8) goes out without Bcc.
    dedicated: bool,
}

const PLAIN: Lived = Lived {
    name: "",
    deployment: &[],
    main: "",
    service: &[],
    tables: &[],
    others: &[],
    kept: &[],
    chroot: false,
    dedicated: false,
};

const RELAYS: &[Lived] = &[
    Lived {
        name: "a relay of two other domains, with a list of recipients and limits of its own",
        deployment: &["mx"],
        main: "relay_domains = elsewhere.test, two.test\n\
               relay_transport = kept:\n\
               relay_recipient_maps = inline:{ { dora@elsewhere.test = x } { eve@two.test = x } }\n\
               message_size_limit = 20000000\n\
               in_flow_delay = 2s\n\
               lmtp_line_length_limit = 990\n",
        others: &["dora@elsewhere.test", "eve@two.test", "frida@third.test"],
        kept: &[
            "relay_transport",
            "message_size_limit",
            "message_drop_headers",
            "in_flow_delay",
            "lmtp_line_length_limit",
        ],
        chroot: true,
        ..PLAIN
    },
    Lived {
        name: "tables: transports with parents and a wildcard, domains in a file",
        deployment: &["lmtp-only"],
        main: "relay_domains = MAPS/domains, hash:MAPS/hash-domains\n\
               transport_maps = hash:MAPS/hash-transport\n\
               relay_transport = error:no\n\
               message_drop_headers = bcc, content-length, resent-bcc, return-path, x-secret\n",
        tables: &[
            ("domains", "# ours\nelsewhere.test\n"),
            ("hash-domains", "two.test x\n"),
            ("hash-transport", "elsewhere.test kept:\n.two.test error:\ntwo.test kept:\n* keep:\n"),
        ],
        others: &["dora@elsewhere.test", "eve@two.test", "frida@third.test"],
        kept: &["relay_transport", "message_drop_headers", "relay_recipient_maps", "message_size_limit"],
        ..PLAIN
    },
    Lived {
        name: "an old entry for our domain in a table of its own",
        deployment: &["shared-mx"],
        main: "relay_domains = severamail.test elsewhere.test\n\
               transport_maps = hash:MAPS/hash-transport\n",
        tables: &[("hash-transport", "severamail.test error:old\nelsewhere.test kept:\n")],
        others: &["dora@elsewhere.test", "frida@third.test"],
        kept: &["relay_domains", "relay_transport"],
        ..PLAIN
    },
];

const BOXES: &[Lived] = &[
    Lived {
        name: "virtual mailboxes and aliases, and our domain among the mailboxes",
        deployment: &["shared-mx"],
        main: "virtual_mailbox_domains = boxes.test, severamail.test\n\
               virtual_mailbox_maps = inline:{ { dora@boxes.test = dora/ } }\n\
               virtual_transport = kept:\n\
               virtual_alias_domains = alias.test\n\
               virtual_alias_maps = inline:{ { eve@alias.test = dora@boxes.test } }\n\
               mydestination = $myhostname, localhost\n",
        others: &["dora@boxes.test", "frida@third.test"],
        kept: &["virtual_transport", "virtual_alias_maps", "relay_domains", "message_size_limit"],
        ..PLAIN
    },
    Lived {
        name: "values over lines, with comments, blanks, quotes and references",
        deployment: &["mx"],
        main: "relay_domains = elsewhere.test,\n\
               # since 2016: the sister company\n\
               \ttwo.test,\n    $additional\n\
               additional = three.test\n\
               relay_transport =\n   kept:\n\
               smtpd_banner = $myhostname it's \"ours\"  $$ `x`\n\
               smtpd_milters =\n",
        others: &["dora@elsewhere.test", "eve@two.test", "frida@three.test"],
        kept: &["relay_transport", "smtpd_banner", "additional"],
        ..PLAIN
    },
];

const DEBIANS: &[Lived] = &[Lived {
    name: "as Debian's installer leaves it: the Bcc field is shown to us",
    deployment: &["mx"],
    main: "mydestination = $myhostname, mx.test, localhost.test, localhost\n\
           mynetworks = 127.0.0.0/8 [::ffff:127.0.0.0]/104 [::1]/128\n\
           mailbox_size_limit = 0\n\
           recipient_delimiter = +\n\
           relayhost =\n",
    others: &["frida@third.test"],
    dedicated: true,
    ..PLAIN
}];

const MILTERS: &[Lived] = &[
    Lived {
        name: "OpenDKIM after an old recipe, for local mail too",
        deployment: &["mx"],
        main: "milter_default_action = tempfail\n\
               milter_protocol = 2\n\
               smtpd_milters = inet:127.0.0.1:PORT\n\
               non_smtpd_milters = $smtpd_milters\n",
        others: &["frida@third.test"],
        kept: &["milter_protocol", "milter_default_action"],
        chroot: true,
        dedicated: true,
        ..PLAIN
    },
    Lived {
        name: "ours and an old one of ours, for local mail too",
        deployment: &["shared-mx"],
        main: "relay_domains = elsewhere.test\nrelay_transport = kept:\n\
               milter_default_action = accept\n\
               smtpd_milters = unix:activity-milter/old.sock, inet:127.0.0.1:PORT\n\
               non_smtpd_milters = $smtpd_milters\n",
        others: &["dora@elsewhere.test"],
        kept: &["relay_transport", "milter_default_action"],
        ..PLAIN
    },
    Lived {
        name: "an old one of ours where no milter is wanted",
        deployment: &["lmtp-only"],
        main: "relay_domains = elsewhere.test\nrelay_transport = kept:\n\
               milter_default_action = accept\n\
               smtpd_milters = unix:activity-milter/old.sock, inet:127.0.0.1:PORT\n\
               non_smtpd_milters = $smtpd_milters\n",
        service: &["smtpd_milters=unix:activity-milter/old.sock,inet:127.0.0.1:PORT"],
        others: &["dora@elsewhere.test"],
        kept: &["relay_transport", "milter_default_action", "non_smtpd_milters"],
        ..PLAIN
    },
    Lived {
        name: "ours by a path that the chroot hides",
        deployment: &["shared-mx"],
        main: "relay_domains = elsewhere.test\nrelay_transport = kept:\n\
               smtpd_milters = { unix:QUEUE/activity-milter/milter.sock, default_action=accept }\n",
        others: &["dora@elsewhere.test"],
        kept: &["relay_transport"],
        chroot: true,
        ..PLAIN
    },
    Lived {
        name: "entries of ours from before milter.listen changed, and the LMTP socket",
        deployment: &["shared-mx"],
        main: "relay_domains = elsewhere.test\nrelay_transport = kept:\n\
               milter_default_action = accept\n\
               smtpd_milters = unix:activity-milter/old.sock, inet:127.0.0.1:PORT, unix:activity-milter/lmtp.sock\n",
        others: &["dora@elsewhere.test"],
        kept: &["relay_transport", "milter_default_action"],
        ..PLAIN
    },
    Lived {
        name: "milters in master.cf",
        deployment: &["shared-mx"],
        main: "relay_domains = elsewhere.test\nrelay_transport = kept:\n",
        service: &["smtpd_milters=inet:127.0.0.1:PORT,inet:127.0.0.1:PORT"],
        others: &["dora@elsewhere.test"],
        kept: &["relay_transport"],
        ..PLAIN
    },
    Lived {
        name: "a name for milters, used in master.cf",
        deployment: &["shared-mx"],
        main: "dkim = { inet:127.0.0.1:PORT, default_action=accept }\nrelay_domains = elsewhere.test\n\
               relay_transport = kept:\n",
        service: &["smtpd_milters=$dkim"],
        others: &["dora@elsewhere.test"],
        kept: &["dkim"],
        ..PLAIN
    },
    Lived {
        name: "submission keeps the milters of the others",
        deployment: &["submission", "--service", "SERVICE"],
        main: "relay_domains = elsewhere.test\nrelay_transport = kept:\nsmtpd_milters = inet:127.0.0.1:PORT\n",
        others: &["dora@elsewhere.test"],
        kept: &["relay_transport", "smtpd_milters"],
        ..PLAIN
    },
];

/// A1, A2: relays.
#[test]
fn relays() {
    RELAYS.iter().for_each(lives_on);
}

#[test]
fn debians() {
    DEBIANS.iter().for_each(lives_on);
}

/// A1, A2: hosts with mailboxes.
#[test]
fn mailboxes() {
    BOXES.iter().for_each(lives_on);
}

/// A1, A2: Postfixes with other milters.
#[test]
fn milters() {
    MILTERS.iter().for_each(lives_on);
}

/// Standard output and standard error of a script that comes through a pipe.
#[track_caller]
pub(super) fn piped(script: &str) -> (String, String) {
    let mut shell = Command::new("sh")
        .arg("-eu")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = shell.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{script}\n{}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

#[track_caller]
pub(super) fn printed(world: &World, args: &[&str]) -> String {
    let (code, out, error) = world.postfix_command(&[&["print"], args].concat());
    // The way back says there what stays.
    let words = if args.contains(&"--remove") { "" } else { error.as_str() };
    assert_eq!((code, words), (Some(0), ""), "{out}{error}");
    out
}

/// What Postfix would say of itself: main.cf and the settings of services.
pub(super) fn said(world: &World) -> BTreeSet<String> {
    let settings = |args: &[&str]| world.postfix.tool("postconf", args);
    settings(&["-n"]).lines().chain(settings(&["-P"]).lines()).map(str::to_owned).collect()
}

/// The files as they are, byte for byte.
fn files(world: &World) -> [Vec<u8>; 2] {
    ["main.cf", "master.cf"].map(|name| fs::read(world.postfix.conf().join(name)).unwrap())
}

fn copies(world: &World) -> usize {
    fs::read_dir(world.postfix.conf().join("activity-milter.saved")).map_or(0, Iterator::count)
}

/// By which transport each recipient's mail goes.
#[track_caller]
fn ways(world: &World, recipients: &[&str], subject: &str) -> BTreeMap<String, String> {
    let message = format!(
        "From: {CARL}\nTo: x@x.test\nBcc: secret@x.test\nSubject: {subject}\nMessage-ID: <{subject}@x.test>\n\nx\n"
    );
    let before = world.postfix.log().len();
    let of = |to: &str| {
        let (_, answer) = world.mail(CARL, &[to], message.as_bytes());
        assert!(answer.starts_with("250"), "{to}: {answer}\n{}", world.postfix.log());
        let way = wait_for("a way", || {
            let log = world.postfix.log()[before..].to_owned();
            let line = log.lines().rfind(|line| line.contains(&format!("to=<{to}>")))?.to_owned();
            Some(line.split("relay=").nth(1)?.split(',').next()?.to_owned())
        });
        (to.to_owned(), way)
    };
    recipients.iter().map(|to| of(to)).collect()
}

fn lives_on(case: &Lived) {
    let name = case.name;
    let neighbour = Neighbour::start();
    let world = World::with(Options { bare: true, lmtp: true, chroot: case.chroot, ..Options::default() });
    let conf = world.postfix.conf();
    let maps = world.root.join("maps");
    fs::create_dir(&maps).unwrap();
    let service = format!("127.0.0.1:{}/inet", world.postfix.port);
    let filled = |text: &str| {
        text.replace("PORT", &neighbour.port.to_string())
            .replace("QUEUE", &world.root.join("postfix/queue").display().to_string())
            .replace("MAPS", &maps.display().to_string())
            .replace("SERVICE", service.trim_end_matches("/inet"))
    };
    for (file, text) in case.tables {
        fs::write(maps.join(file), text).unwrap();
        if file.starts_with("hash") {
            world.postfix.tool("postmap", &[&format!("hash:{}", maps.join(file).display())]);
        }
    }
    // The administrator's.
    let script = conf.join("keep.sh").display().to_string();
    world.postfix.overwrite(&("kept_destination_recipient_limit = 1\n".to_owned() + &filled(case.main)));
    let entry = format!("kept/unix=kept unix - n n - - pipe flags= user=nobody argv={script} ${{recipient}}");
    world.postfix.tool("postconf", &["-M", &entry]);
    for setting in case.service {
        world.postfix.tool("postconf", &["-P", &format!("{service}/{}", filled(setting))]);
    }
    world.postfix.reload();
    let original = said(&world);
    let before = ways(&world, case.others, "before");

    let deployment: Vec<String> = case.deployment.iter().map(|word| filled(word)).collect();
    let deployment: Vec<&str> = deployment.iter().map(String::as_str).collect();
    let script = printed(&world, &deployment);
    let untouched = files(&world);
    let (out, error) = piped(&script);
    assert_eq!(out, "", "{name}");
    // The copies are said and are what was there.
    for (file, bytes) in ["main.cf", "master.cf"].iter().zip(&untouched) {
        let saved = format!("activity-milter: {file} is saved as ");
        let path = error.lines().find_map(|line| line.strip_prefix(&saved)).expect("a copy");
        assert_eq!(&fs::read(path).unwrap(), bytes, "{name}");
    }
    // What was set stands there with what it was.
    let now = said(&world);
    for line in original.difference(&now) {
        assert!(script.contains(&format!("# was: {line}\n")), "{name}: no word of {line}\n{script}");
    }
    for setting in case.kept {
        let of = |all: &BTreeSet<String>| {
            all.iter().find(|line| line.starts_with(&format!("{setting} ="))).cloned()
        };
        assert_eq!(of(&now), of(&original), "{name}\n{script}");
    }
    assert!(!now.iter().any(|line| line.contains("old.sock")), "{name}: {now:#?}");
    world.postfix.reload();

    // Everybody's mail goes where it went, ours comes.
    let (code, findings) = world.findings();
    assert!(
        code == Some(0) && findings.iter().all(|finding| finding["severity"] != "must"),
        "{name}: {findings:#?}\n{script}"
    );
    let shown = neighbour.messages();
    assert_eq!(ways(&world, case.others, "after"), before, "{name}\n{script}");
    for (to, message) in world.postfix.delivered().into_iter().filter(|_| !case.dedicated) {
        assert!(!String::from_utf8_lossy(&message).contains("secret@x.test"), "{to} is shown the Bcc field");
    }
    assert_eq!(shown > 0, neighbour.messages() > shown, "{name}: the other milter is still asked");
    assert!(world.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"), "{name}");
    world.wait_for_activities(1);
    if deployment[0] != "lmtp-only" {
        let (_, answer) = world.mail(ANNA, &[MY], &eml("no_subject"));
        assert!(answer.ends_with("[no-subject]"), "{name}: {answer}");
    }
    wait_for("an empty queue", || world.postfix.queued().is_empty().then_some(()));

    // Twice is once: the same script, and a new one.
    let (applied, kept) = (files(&world), copies(&world));
    let (_, error) = piped(&script);
    assert!(error.contains("nothing is changed"), "{name}: {error}");
    let again = printed(&world, &deployment);
    assert!(again.contains("# Nothing to change."), "{name}: {again}");
    piped(&again);
    assert_eq!((files(&world), copies(&world)), (applied, kept), "{name}");

    // And out again; what somebody has added meanwhile stays.
    let removal = printed(&world, &["--remove"]);
    assert!(removal.contains("# Saved, as it was before"), "{removal}");
    let with_addition = files(&world);
    piped(&removal);
    // Dead entries of ours do not come back.
    let without_old = |line: &String| {
        let line =
            line.replace("unix:activity-milter/old.sock, ", "").replace("unix:activity-milter/old.sock,", "");
        let line = line.replace(", unix:activity-milter/lmtp.sock", "");
        let by_path = line.starts_with("smtpd_milters = { unix:/");
        if by_path { "smtpd_milters =".to_owned() } else { line }
    };
    let original: BTreeSet<String> = original.iter().map(without_old).collect();
    assert_eq!(said(&world), original, "{name}\n{removal}");
    assert!(printed(&world, &["--remove"]).contains("# Nothing to change."), "{name}");
    fs::write(conf.join("main.cf"), &with_addition[0]).unwrap();
    world.postfix.reload();
    assert_eq!(ways(&world, case.others, "end"), before, "{name}");
}

/// A2: what came after print.
#[test]
fn what_came_later_stays_when_ours_goes() {
    let world = World::with(Options {
        bare: true,
        lmtp: true,
        postfix: vec![
            "relay_domains = elsewhere.test".to_owned(),
            "relay_transport = keep:".to_owned(),
            // Somebody else's that is down just now is nobody's to take out.
            "smtpd_milters = { inet:127.0.0.1:9, default_action=accept }".to_owned(),
        ],
        ..Options::default()
    });
    piped(&printed(&world, &["shared-mx"]));
    assert!(printed(&world, &["shared-mx"]).contains("# Nothing to change."));
    let value = |name: &str| world.postfix.tool("postconf", &["-h", name]).trim().to_owned();
    for (name, more) in [
        ("relay_domains", ", later.test"),
        ("transport_maps", ", inline:{ { later.test = keep: } }"),
        ("smtpd_milters", ", { inet:127.0.0.1:10, default_action=accept }"),
    ] {
        world.postfix.set(name, &(value(name) + more));
    }
    world.postfix.set("in_flow_delay", "3s");
    let removal = printed(&world, &["--remove"]);
    assert!(removal.contains("it stays: in_flow_delay = 3s"), "{removal}");
    piped(&removal);
    for (name, expected) in [
        ("relay_domains", "elsewhere.test, later.test"),
        ("transport_maps", "inline:{ { later.test = keep: } }"),
        (
            "smtpd_milters",
            "{ inet:127.0.0.1:9, default_action=accept }, { inet:127.0.0.1:10, default_action=accept }",
        ),
        ("in_flow_delay", "3s"),
        ("relay_transport", "keep:"),
    ] {
        assert_eq!(value(name), expected);
    }
    // What somebody writes between two prints stays too, also where main.cf was put back by hand.
    let untouched = files(&world);
    piped(&printed(&world, &["shared-mx"]));
    fs::write(world.postfix.conf().join("main.cf"), &untouched[0]).unwrap();
    world.postfix.set("relay_domains", "elsewhere.test, later.test, last.test");
    piped(&printed(&world, &["shared-mx"]));
    let more = value("smtpd_milters") + ", { inet:127.0.0.1:11, default_action=accept }";
    world.postfix.set("smtpd_milters", &more);
    let config = fs::read_to_string(world.config_path()).unwrap();
    let changed = config.replace("milter.sock", "moved.sock").replace("\"severamail.test\"", "\"new.test\"");
    fs::write(world.config_path(), changed).unwrap();
    piped(&printed(&world, &["shared-mx"]));
    assert!(value("smtpd_milters").contains("moved.sock"), "{}", value("smtpd_milters"));
    piped(&printed(&world, &["--remove"]));
    assert_eq!(value("relay_domains"), "elsewhere.test, later.test, last.test");
    assert_eq!(
        value("smtpd_milters"),
        "{ inet:127.0.0.1:9, default_action=accept }, { inet:127.0.0.1:10, default_action=accept }, \
         { inet:127.0.0.1:11, default_action=accept }"
    );
    fs::write(world.config_path(), config).unwrap();
    // A script that somebody kept while the settings changed does nothing.
    let script = printed(&world, &["shared-mx"]);
    world.postfix.set("relay_domains", "other.test");
    let before = files(&world);
    let output = Command::new("sh").arg("-c").arg(&script).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("relay_domains has changed since"), "{error}");
    assert_eq!(files(&world), before);
}

/// Two activity-milters at one Postfix: each takes out its own.
#[test]
fn two_of_us() {
    let world = World::with(Options {
        bare: true,
        lmtp: true,
        postfix: vec!["relay_domains = elsewhere.test".to_owned(), "relay_transport = keep:".to_owned()],
        ..Options::default()
    });
    let first = fs::read_to_string(world.config_path()).unwrap();
    let second = first
        .replace("severamail.test", "second.test")
        .replace("milter.sock", "second-milter.sock")
        .replace("lmtp.sock", "second-lmtp.sock")
        .replace("queue.db", "second.db");
    assert!(second.contains("second.db"), "{second}");
    let value = |name: &str| world.postfix.tool("postconf", &["-h", name]).trim().to_owned();
    piped(&printed(&world, &["shared-mx"]));
    fs::write(world.config_path(), &second).unwrap();
    piped(&printed(&world, &["shared-mx"]));
    // Nobody answers at the second one's socket; it is not an old one of the first.
    fs::write(world.config_path(), &first).unwrap();
    piped(&printed(&world, &["shared-mx"]));
    piped(&printed(&world, &["--remove"]));
    for (name, ours) in [
        ("relay_domains", "second.test"),
        ("transport_maps", "second-lmtp"),
        ("smtpd_milters", "second-milter"),
    ] {
        let value = value(name);
        let without = value.replace(ours, "");
        assert!(
            value.contains(ours) && !without.contains("severamail") && !without.contains("/milter.sock"),
            "{value}"
        );
    }
    fs::write(world.config_path(), &second).unwrap();
    piped(&printed(&world, &["--remove"]));
    assert_eq!(value("relay_domains"), "elsewhere.test");
    assert_eq!((value("transport_maps"), value("smtpd_milters")), (String::new(), String::new()));
}

/// A Postfix of ours alone that gets other domains: what was changed for ours is given back by the next print.
#[test]
fn others_who_come_later() {
    for deployment in ["mx", "shared-mx"] {
        let world = World::with(Options { bare: true, lmtp: true, ..Options::default() });
        let value = |name: &str| world.postfix.tool("postconf", &["-h", name]).trim().to_owned();
        let bcc = value("message_drop_headers");
        piped(&printed(&world, &["mx"]));
        let domains = value("relay_domains") + ", elsewhere.test";
        world.postfix.set("relay_domains", &domains);
        let (code, findings) = world.findings();
        let of = |check: &str| findings.iter().find(|finding| finding["check"] == check).expect("a finding");
        assert_eq!(code, Some(1));
        assert!(of("others")["remedy"].as_str().unwrap().contains("print shared-mx"), "{findings:#?}");
        let script = printed(&world, &[deployment]);
        assert!(script.contains("As it was before us"), "{script}");
        piped(&script);
        assert_eq!((value("relay_transport"), value("message_drop_headers")), ("relay".to_owned(), bcc));
        assert_eq!(world.findings(), (Some(0), Vec::new()));
        assert!(printed(&world, &[deployment]).contains("# Nothing to change."));
        piped(&printed(&world, &["--remove"]));
        assert_eq!(
            (value("relay_domains"), value("transport_maps")),
            ("elsewhere.test".to_owned(), String::new())
        );
    }
}

/// The script says which Postfix it is for, also if only the environment said it to us.
#[test]
fn an_instance_by_the_environment() {
    let world = World::with(Options { bare: true, lmtp: true, ..Options::default() });
    let conf = world.postfix.conf();
    let mut command = Command::new(crate::support::world::program());
    command
        .env("MAIL_CONFIG", &conf)
        .arg("--config")
        .arg(world.config_path())
        .args(["postfix", "print", "mx"]);
    let output = command.output().unwrap();
    let script = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{script}");
    let commands: Vec<&str> = script.lines().filter(|line| line.starts_with("postconf")).collect();
    let named = format!("postconf -c {} ", conf.display());
    assert!(!commands.is_empty() && commands.iter().all(|line| line.starts_with(&named)), "{script}");
}

/// A4.
#[test]
fn bcc_is_shown_to_us_and_does_not_leave_the_machine() {
    let port = free_port();
    let mut world = World::with(Options {
        bare: true,
        lmtp: true,
        postfix: vec![format!("default_transport = smtp:[127.0.0.1]:{port}")],
        ..Options::default()
    });
    let sent = world.root.join("sent");
    fs::create_dir(&sent).unwrap();
    let mut sink = Command::new("smtp-sink");
    sink.args(["-u", "root", "-d"]).arg(sent.join("m")).args([&format!("127.0.0.1:{port}"), "10"]);
    let _sink = Process::start(&mut sink, &world.root.join("smtp-sink.log"));
    piped(&printed(&world, &["mx"]));
    world.postfix.reload();
    assert_eq!(world.findings(), (Some(0), Vec::new()));
    let message = |subject: &str| {
        format!(
            "From: {ANNA}\nTo: bo@acme.test\nBcc: esa@mycompany.test\nResent-Bcc: esa@mycompany.test\nSubject: {subject}\n\nx\n"
        )
    };
    assert!(world.mail(ANNA, &["frida@third.test"], message("out").as_bytes()).1.starts_with("250"));
    let out = wait_for("what left", || {
        let path = fs::read_dir(&sent).unwrap().flatten().next()?.path();
        Some(fs::read_to_string(path).unwrap()).filter(|text| text.contains("Subject: out"))
    });
    assert!(!out.contains("esa@"), "{out}");
    // By the milter, and by LMTP alone.
    assert!(world.mail(ANNA, &[MY], message("in").as_bytes()).1.starts_with("250"));
    world.stop_milter();
    world.postfix.set("smtpd_milters", "");
    world.postfix.reload();
    assert!(world.mail(ANNA, &[MY], message("later").as_bytes()).1.starts_with("250"));
    world.start_milter();
    world.postfix.flush();
    for (activity, intake) in world.wait_for_activities(2).iter().zip(["milter", "lmtp"]) {
        assert_eq!(activity["envelope"]["intake"], intake);
        assert_eq!(activity["participants"][1]["field"], "bcc", "{activity:#}");
    }
}

/// A3.
#[test]
fn a_refusal_prints_nothing() {
    let world = World::with(Options { bare: true, lmtp: true, chroot: true, ..Options::default() });
    let conf = world.postfix.conf();
    let main = fs::read_to_string(conf.join("main.cf")).unwrap();
    let patterns = world.root.join("patterns");
    fs::write(&patterns, "/./ smtp:[127.0.0.1]\n").unwrap();
    let table = format!("transport_maps = regexp:{}", patterns.display());
    let projects = world.root.join("projects");
    fs::write(&projects, "/^[0-9]+\\./ keep:\n").unwrap();
    let projects = format!("relay_domains = severamail.test\ntransport_maps = regexp:{}", projects.display());
    let config = fs::read_to_string(world.config_path()).unwrap();
    let shadow = format!("mode = \"shadow\"\n{config}");
    let socket = |name: &str| format!("{}/postfix/queue/activity-milter/{name}.sock", world.root.display());
    let (no_milter, no_lmtp) = (
        config.replace(&socket("milter"), "/run/am/milter.sock"),
        config.replace(&socket("lmtp"), "/run/am/lmtp.sock"),
    );
    let cases: &[(&[&str], &str, &str, &[&str])] = &[
        (
            &["mx"],
            "mydestination = severamail.test, mx.test",
            &config,
            &["is in mydestination", "Take it out"],
        ),
        (
            &["shared-mx"],
            "virtual_alias_domains = severamail.test",
            &config,
            &["is in virtual_alias_domains"],
        ),
        (&["shared-mx"], &table, &config, &["transport_maps has regexp:", "put this line first"]),
        (
            &["mx"],
            "transport_maps = inline:{ { mycompany@severamail.test = smtp:[127.0.0.1] } }",
            &config,
            &[
                "which says smtp:[127.0.0.1] for mycompany@severamail.test",
                "take the line of mycompany@severamail.test out",
            ],
        ),
        (&["submission"], "", &config, &["no service submission/inet", "--format master.cf", "--service"]),
        (&["mx"], "", &shadow, &["mode is \"shadow\"", "--shadow", "mode = \"live\""]),
        (&["lmtp-only", "--shadow"], "", &config, &["no milter", "shared-mx --shadow"]),
        (&["auto-bcc", "--shadow"], "", &config, &["no milter"]),
        (
            &["mx", "--shadow"],
            "relay_domains = severamail.test\nrelay_transport = lmtp:unix:activity-milter/lmtp.sock",
            &config,
            &["pile up", "print --remove | sh"],
        ),
        (&["mx"], "", &no_milter, &["/inet is chrooted", "/run/am/milter.sock", "set milter.listen"]),
        (&["lmtp-only"], "", &no_lmtp, &["lmtp/unix is chrooted", "/run/am/lmtp.sock", "set lmtp.listen"]),
        (
            &["mx"],
            "relay_domains = hash:/nonexistent/table",
            &config,
            &["relay_domains has hash:/nonexistent/table", "cannot be read", "take it out"],
        ),
        (
            &["mx"],
            "relay_domains = /nonexistent",
            &config,
            &["relay_domains has /nonexistent", "cannot be read"],
        ),
        (&["mx"], &projects, &config, &["which says keep:", "put this line first"]),
        (
            &["mx", "--shadow"],
            "relay_domains = severamail.test\ntransport_maps = inline:{ { mycompany@severamail.test = lmtp:unix:activity-milter/lmtp.sock } }",
            &config,
            &["brings mycompany@severamail.test to", "pile up", "out of that table"],
        ),
    ];
    for (args, lines, text, words) in cases {
        fs::write(conf.join("main.cf"), format!("{main}{lines}\n")).unwrap();
        fs::write(world.config_path(), text).unwrap();
        let (code, out, error) = world.postfix_command(&[&["print"], *args].concat());
        assert_eq!((code, out.as_str()), (Some(78), ""), "{args:?} {lines}: {error}");
        let error = error.split_whitespace().collect::<Vec<_>>().join(" ").replace("│ ", "");
        for word in *words {
            assert!(error.contains(word), "{args:?} {lines}: {word}: {error}");
        }
    }
}

#[test]
fn an_idn_in_both_forms() {
    let world = World::with(Options {
        bare: true,
        lmtp: true,
        config: vec![("", "integration_domains = [\"s\u{e4}vera.test\"]".to_owned())],
        postfix: vec!["relay_domains = elsewhere.test".to_owned(), "relay_transport = keep:".to_owned()],
        ..Options::default()
    });
    let forms = ["xn--svera-gra.test", "s\u{e4}vera.test"];
    // One form is not enough.
    let original = said(&world);
    for form in forms {
        world.postfix.set("relay_domains", &format!("elsewhere.test, {form}"));
        let (code, findings) = world.findings();
        let missing = forms.iter().find(|other| **other != form).unwrap();
        let found = findings.iter().find(|finding| finding["check"] == "domain").expect("a finding");
        assert!(code == Some(1) && found["setting"].as_str().unwrap().contains(missing), "{findings:#?}");
    }
    world.postfix.set("relay_domains", "elsewhere.test");
    piped(&printed(&world, &["shared-mx"]));
    world.postfix.reload();
    assert_eq!(world.findings(), (Some(0), Vec::new()));
    for (number, form) in forms.iter().enumerate() {
        let message = format!(
            "From: {ANNA}\nTo: bo@acme.test\nSubject: {number}\nMessage-ID: <{number}@x.test>\n\nx\n"
        );
        let (rcpt, answer) = world.mail(ANNA, &[&format!("mycompany@{form}")], message.as_bytes());
        assert!(answer.starts_with("250"), "{form}: {rcpt:?} {answer}");
        let found = world.wait_for_activities(number + 1);
        assert_eq!(found[number]["envelope"]["intake"], "milter");
    }
    piped(&printed(&world, &["--remove"]));
    assert_eq!(said(&world), original);
}
