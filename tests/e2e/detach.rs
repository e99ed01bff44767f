//! Taking ours out of a Postfix, or a domain of ours: whatever ends a script, whatever waits in the queue, and whatever
//! somebody has put beside ours.

use super::lived::{piped, printed, said};
use crate::support::{
    wait_for,
    world::{Options, World, eml},
};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
};

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";

fn world(postfix: &[&str]) -> World {
    let postfix = postfix.iter().map(|line| (*line).to_owned()).collect();
    World::with(Options { bare: true, lmtp: true, postfix, ..Options::default() })
}

/// Runs a script; Postfix's programs find its files old enough to read.
#[track_caller]
fn run(world: &World, script: &str) {
    piped(script);
    world.postfix.cool();
}

/// The words of a refusal, which prints nothing.
#[track_caller]
fn refused(world: &World, args: &[&str]) -> String {
    let (code, out, error) = world.postfix_command(&[&["print"], args].concat());
    assert_eq!((code, out.as_str()), (Some(78), ""), "{error}");
    error.split_whitespace().collect::<Vec<_>>().join(" ").replace("│ ", "")
}

fn value(world: &World, name: &str) -> String {
    world.postfix.tool("postconf", &["-h", name]).trim().to_owned()
}

/// Another text in the configuration.
fn configure(world: &World, from: &str, to: &str) {
    let config = fs::read_to_string(world.config_path()).unwrap();
    let changed = config.replace(from, to);
    assert_ne!(changed, config);
    fs::write(world.config_path(), changed).unwrap();
}

/// Puts mail into Postfix's queue that waits for our listener.
fn let_one_wait(world: &mut World, subject: &str) {
    if world.milter.is_some() {
        world.stop_milter();
    }
    let message = format!("From: {ANNA}\nSubject: {subject}\nMessage-ID: <{subject}@x.test>\n\nx\n");
    let before = world.postfix.queued().len();
    assert!(world.mail(ANNA, &[MY], message.as_bytes()).1.starts_with("250"));
    wait_for("mail that waits", || {
        let queued = world.postfix.queued();
        (queued.len() > before && queued.iter().all(|m| m["queue_name"] == "deferred")).then_some(())
    });
}

fn is_command(line: &str) -> bool {
    ["postconf", "mv ", "printf"].iter().any(|start| line.starts_with(start))
}

/// A2: whatever ends a script, the next `--remove` ends where one would have that nobody stopped.
#[test]
fn a_script_that_was_cut_off() {
    let postfixes: [(&str, &[&str]); 2] = [
        (
            "mx",
            &[
                "mynetworks = 127.0.0.0/8",
                "message_size_limit = 10240000",
                "non_smtpd_milters = $smtpd_milters",
            ],
        ),
        (
            "shared-mx",
            &[
                "relay_domains = elsewhere.test",
                "relay_transport = keep:",
                "transport_maps = inline:{ { two.test = keep: } }",
                "relay_recipient_maps = inline:{ { a@elsewhere.test = x } }",
                "smtpd_milters = { inet:127.0.0.1:9, default_action=accept }",
                "non_smtpd_milters = $smtpd_milters",
            ],
        ),
    ];
    for (deployment, own) in postfixes {
        let world = world(own);
        let original = said(&world);
        let record = world.postfix.conf().join("activity-milter.saved/changes");
        // What is cut off, and what somebody does before the next `--remove`.
        let ways = [(deployment, None), ("--remove", None), ("--remove", Some(deployment))];
        for (start, (cut_off, then)) in ways.into_iter().enumerate() {
            for cut in (start..).step_by(4) {
                if cut_off == "--remove" {
                    run(&world, &printed(&world, &[deployment]));
                }
                let script = printed(&world, &[cut_off]);
                let lines: Vec<&str> = script.lines().collect();
                let Some((at, _)) = lines.iter().enumerate().filter(|(_, line)| is_command(line)).nth(cut)
                else {
                    assert!(cut > 4, "{script}");
                    break;
                };
                run(&world, &lines[..at].join("\n"));
                if let Some(then) = then {
                    run(&world, &printed(&world, &[then]));
                }
                let again = printed(&world, &["--remove"]);
                assert!(!again.contains("it stays"), "{cut}: {again}");
                run(&world, &again);
                let what = format!("{cut_off} {then:?} cut before {}\n{again}", lines[at]);
                assert_eq!(said(&world), original, "{what}");
                assert!(!record.exists(), "the record is put away: {what}");
            }
            run(&world, &printed(&world, &["--remove"]));
            assert_eq!(said(&world), original);
        }
    }
}

/// A2: the disk is full while the record is written.
#[test]
fn a_record_that_is_half_written() {
    let world = world(&["relay_domains = elsewhere.test, two.test", "relay_transport = keep:"]);
    let original = said(&world);
    let saved = world.postfix.conf().join("activity-milter.saved");
    let script = printed(&world, &["shared-mx"]);
    let start = script.find("<<'END OF CHANGES'\n").unwrap() + "<<'END OF CHANGES'\n".len();
    let block = &script[start..start + script[start..].find("END OF CHANGES").unwrap()];
    fs::create_dir(&saved).unwrap();
    // In each word that counts, and in each end of a line.
    let places = ["begin ", "was main.cf: relay_domains = else", "now ", "\nend", "end\n"];
    let cuts = places.into_iter().filter_map(|place| Some(block.find(place)? + place.len()));
    let cuts = cuts.chain(block.match_indices('\n').map(|(at, _)| at).step_by(3));
    for cut in cuts {
        fs::write(saved.join("changes"), &block[..cut]).unwrap();
        let script = printed(&world, &["shared-mx"]);
        run(&world, &script);
        let removal = printed(&world, &["--remove"]);
        run(&world, &removal);
        assert_eq!(said(&world), original, "{:?}\n{removal}", &block[..cut]);
    }
}

/// A7: a domain that was renamed is refused from the next print on, and `check` says it before.
#[test]
fn a_domain_that_was_renamed() {
    let others: &[&str] = &[
        "relay_domains = elsewhere.test",
        "relay_transport = keep:",
        "relay_recipient_maps = inline:{ { dora@elsewhere.test = x } }",
    ];
    for (deployment, own) in
        [("mx", &[][..]), ("lmtp-only", &[][..]), ("shared-mx", others), ("mx", others), ("auto-bcc", others)]
    {
        let strangers = ["smtpd_relay_restrictions = reject_unauth_destination"];
        let world = world(&[own, &strangers].concat());
        let original = said(&world);
        run(&world, &printed(&world, &[deployment]));
        configure(&world, "\"severamail.test\"", "\"new.test\"");
        let (code, findings) = world.findings();
        let of = |check: &str| findings.iter().find(|finding| finding["check"] == check).expect("a finding");
        assert_eq!(code, Some(1));
        assert!(of("domain")["setting"].as_str().unwrap().starts_with("new.test "), "{findings:#?}");
        let remedy = of("former-domain")["remedy"].as_str().unwrap();
        let named = ["mx", "lmtp-only", "shared-mx"]
            .into_iter()
            .find(|name| remedy.contains(&format!("print {name} ")));
        let script =
            printed(&world, &[if deployment == "auto-bcc" { deployment } else { named.expect(remedy) }]);
        assert!(deployment == "auto-bcc" || !own.is_empty() || named == Some(deployment), "{remedy}");
        run(&world, &script);
        let now = said(&world);
        assert!(!now.iter().any(|line| line.contains("severamail")), "{deployment}: {now:#?}");
        let (code, findings) = world.findings();
        let must: Vec<&Value> = findings.iter().filter(|finding| finding["severity"] == "must").collect();
        // The milter that runs is still for the old name, and that is not seen from here.
        assert_eq!((code, must), (Some(0), Vec::new()), "{deployment}\n{script}");
        assert!(printed(&world, &[named.unwrap_or(deployment)]).contains("# Nothing to change."));
        world.postfix.reload();
        let mut smtp = world.smtp();
        smtp.command("HELO x.test");
        smtp.command("MAIL FROM:<x@x.test>");
        let answer = smtp.command(&format!("RCPT TO:<{MY}>"));
        assert!(
            answer.starts_with("554") && answer.contains("Relay access denied"),
            "{deployment}: {answer}"
        );
        let removal = printed(&world, &["--remove"]);
        run(&world, &removal);
        assert_eq!(said(&world), original, "{deployment}\n{removal}");
    }
}

/// A7: of two domains one goes; and one to which somebody has given a way of his own is his.
#[test]
fn one_domain_of_two() {
    let world = World::with(Options {
        bare: true,
        lmtp: true,
        config: vec![("", "integration_domains = [\"severamail.test\", \"old.test\"]".to_owned())],
        postfix: vec![
            "relay_domains = elsewhere.test".to_owned(),
            "relay_transport = keep:".to_owned(),
            "relay_recipient_maps = inline:{ { dora@elsewhere.test = x } }".to_owned(),
        ],
        ..Options::default()
    });
    let original = said(&world);
    run(&world, &printed(&world, &["shared-mx"]));
    configure(&world, ", \"old.test\"", "");
    let both = fs::read(world.postfix.conf().join("main.cf")).unwrap();
    run(&world, &printed(&world, &["shared-mx"]));
    assert_eq!(value(&world, "relay_domains"), "elsewhere.test, severamail.test");
    let ours = "inline:{ { severamail.test = lmtp:unix:activity-milter/lmtp.sock } }";
    assert_eq!(value(&world, "transport_maps"), ours);
    assert_eq!(
        value(&world, "relay_recipient_maps"),
        "inline:{ { dora@elsewhere.test = x } }, inline:{ { @severamail.test = OK } }"
    );
    assert_eq!(world.findings(), (Some(0), Vec::new()));
    run(&world, &printed(&world, &["--remove"]));
    assert_eq!(said(&world), original);

    run(&world, &printed(&world, &["shared-mx"]));
    fs::write(world.postfix.conf().join("main.cf"), both).unwrap();
    let maps = format!("inline:{{ {{ old.test = keep: }} }}, {ours}");
    world.postfix.set("transport_maps", &maps);
    assert_eq!(world.findings(), (Some(0), Vec::new()));
    let script = printed(&world, &["shared-mx"]);
    assert!(script.contains("# Nothing to change."), "{script}");
}

/// A8: mail that waits for our listener is not bounced by taking it out.
#[test]
fn mail_that_waits_for_us() {
    // The domain is in a list where we put it, or in one of somebody's.
    waits_for_us("mydestination =");
    waits_for_us("virtual_mailbox_domains = severamail.test");
}

fn waits_for_us(list: &str) {
    let mut world = world(&["relay_domains = elsewhere.test", "relay_transport = keep:", list]);
    run(&world, &printed(&world, &["shared-mx"]));
    world.postfix.reload();
    // A script that was printed while nothing waited looks again.
    let early = printed(&world, &["--remove"]);
    let_one_wait(&mut world, "first");
    let before = said(&world);
    let output = Command::new("sh").arg("-c").arg(&early).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), said(&world)), (Some(78), before.clone()), "{error}");
    assert!(error.contains("waits in the queue"), "{error}");
    let_one_wait(&mut world, "second");
    world.postfix.tool("postsuper", &["-h", world.postfix.queued()[0]["queue_id"].as_str().unwrap()]);
    let error = refused(&world, &["--remove"]);
    for words in [
        "2 messages wait",
        "for severamail.test (1 deferred, 1 hold)",
        "`postqueue -f`",
        "postsuper -H",
        "--ignore-queue",
    ] {
        assert!(error.contains(words), "{words}: {error}");
    }
    // Other people's mail is not looked at, and mail that waits for us does not wait for a print that leaves the way.
    assert!(printed(&world, &["shared-mx"]).contains("# Nothing to change."));
    assert!(printed(&world, &["--remove", "--ignore-queue"]).contains("postconf"));
    // It is not taken any more under the name that it was sent to.
    configure(&world, "\"severamail.test\"", "\"new.test\"");
    for args in [&["shared-mx"][..], &["--remove"]] {
        let error = refused(&world, args);
        assert!(error.contains("with severamail.test in integration_domains again"), "{error}");
    }
    assert!(
        printed(&world, &["shared-mx", "--ignore-queue"])
            .contains("relay_domains = elsewhere.test, new.test")
    );
    // Also where Postfix does not run.
    assert!(
        Command::new("postfix")
            .arg("-c")
            .arg(world.postfix.conf())
            .arg("stop")
            .output()
            .unwrap()
            .status
            .success()
    );
    refused(&world, &["--remove"]);
    assert!(
        Command::new("postfix")
            .arg("-c")
            .arg(world.postfix.conf())
            .arg("start")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    configure(&world, "\"new.test\"", "\"severamail.test\"");
    world.start_milter();
    world.postfix.tool("postsuper", &["-H", "ALL"]);
    world.postfix.flush();
    world.wait_for_activities(2);
    run(&world, &printed(&world, &["--remove"]));
}

/// A8: what waits for somebody else's transport waits for him.
#[test]
fn mail_that_waits_elsewhere() {
    let world =
        world(&["relay_domains = elsewhere.test", "relay_transport = keep:", "defer_transports = keep"]);
    run(&world, &printed(&world, &["shared-mx"]));
    let ours = value(&world, "transport_maps");
    world.postfix.set("transport_maps", &format!("inline:{{ {{ severamail.test = keep: }} }}, {ours}"));
    world.postfix.set("smtpd_milters", "");
    world.postfix.reload();
    assert!(world.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"));
    wait_for("mail that waits", || (!world.postfix.queued().is_empty()).then_some(()));
    assert!(printed(&world, &["--remove"]).contains("relay_domains = elsewhere.test"));
}

/// A2: main.cf and master.cf may be links, and stay so.
#[test]
fn links_stay_links() {
    let world = world(&["relay_domains = elsewhere.test", "relay_transport = keep:"]);
    let conf = world.postfix.conf();
    let service = format!("127.0.0.1:{}", world.postfix.port);
    let deployment = ["submission", "--service", &service];
    let original = said(&world);
    let repository = world.root.join("repository");
    fs::create_dir(&repository).unwrap();
    let link = |file: &str, to: &Path| {
        let path = conf.join(file);
        fs::rename(path.canonicalize().unwrap(), to).unwrap();
        if path.is_symlink() {
            fs::remove_file(&path).unwrap();
        }
        symlink(to, path).unwrap();
    };
    for file in ["main.cf", "master.cf"] {
        link(file, &repository.join(file));
    }
    run(&world, &printed(&world, &deployment));
    let texts = ["main.cf", "master.cf"].map(|file| fs::read_to_string(repository.join(file)).unwrap());
    assert!(texts[0].contains("severamail.test") && texts[1].contains("milter.sock"), "{texts:?}");
    // What check prints keeps them too.
    world.postfix.set("in_flow_delay", "0");
    let path = conf.join("main.cf");
    assert!(!path.is_symlink(), "postconf itself does not keep them");
    fs::rename(&path, repository.join("main.cf")).unwrap();
    symlink(repository.join("main.cf"), &path).unwrap();
    let (_, findings) = world.findings();
    let commands = findings.iter().map(|finding| finding["remedy"].as_str().unwrap());
    let here = format!("postconf -c {} -e", conf.display());
    assert!(commands.clone().all(|remedy| !remedy.contains(&here)), "{findings:#?}");
    run(&world, &printed(&world, &["--remove"]));
    assert_eq!(said(&world), original);
    assert!(conf.join("main.cf").is_symlink() && conf.join("master.cf").is_symlink());
    // By another name postconf finds none of them.
    link("master.cf", &repository.join("master.cf.mx1"));
    let error = refused(&world, &deployment);
    assert!(error.contains("master.cf is a link to") && error.contains("print again"), "{error}");
    printed(&world, &["shared-mx"]);
}

/// A2: what somebody has put into our table stays, and ours goes; of a table of his he is told.
#[test]
fn a_table_that_somebody_has_added_to() {
    let world = world(&["relay_domains = elsewhere.test", "relay_transport = keep:"]);
    run(&world, &printed(&world, &["shared-mx"]));
    let ours = "{ severamail.test = lmtp:unix:activity-milter/lmtp.sock }";
    world.postfix.set("transport_maps", &format!("inline:{{ {ours} {{ two.test = keep: }} }}"));
    run(&world, &printed(&world, &["--remove"]));
    assert_eq!(value(&world, "transport_maps"), "inline:{ { two.test = keep: } }");

    let file = world.root.join("transport");
    fs::write(&file, "severamail.test lmtp:unix:activity-milter/lmtp.sock\ntwo.test keep:\n").unwrap();
    world.postfix.tool("postmap", &[&format!("hash:{}", file.display())]);
    world.postfix.set("transport_maps", &format!("hash:{}", file.display()));
    world.postfix.set("relay_domains", "elsewhere.test, severamail.test");
    let removal = printed(&world, &["--remove"]);
    assert!(removal.contains("still brings severamail.test to"), "{removal}");
}

/// The script may run in another directory than the one it was printed in.
#[test]
fn a_directory_by_a_relative_name() {
    let world = world(&[]);
    let mut command = Command::new(crate::support::world::program());
    command.current_dir(world.root.join("postfix")).arg("--config").arg(world.config_path());
    let output = command.args(["postfix", "print", "mx", "--postfix-config", "conf"]).output().unwrap();
    let script = String::from_utf8(output.stdout).unwrap();
    let commands: Vec<&str> = script.lines().filter(|line| line.starts_with("postconf")).collect();
    let named = format!("postconf -c {} ", world.postfix.conf().display());
    assert!(!commands.is_empty() && commands.iter().all(|line| line.starts_with(&named)), "{script}");
}

/// A2: what stood in the list that a service's own took the place of is nobody's of ours, also while it is down.
#[test]
fn a_milter_of_somebody_that_restarts() {
    let port = crate::support::free_port();
    let theirs = format!("inet:127.0.0.1:{port}");
    let world = world(&["relay_domains = elsewhere.test", &format!("smtpd_milters = {theirs}")]);
    let original = said(&world);
    let service = format!("127.0.0.1:{}", world.postfix.port);
    run(&world, &printed(&world, &["submission", "--service", &service]));
    let (_, findings) = world.findings();
    assert!(findings.iter().any(|finding| finding["check"] == "milter"), "{findings:#?}");
    assert!(
        !findings.iter().any(|f| f["reason"].as_str().unwrap().contains("an old entry")),
        "{findings:#?}"
    );
    let again = printed(&world, &["submission", "--service", &service]);
    assert!(again.contains("# Nothing to change."), "{again}");
    run(&world, &printed(&world, &["shared-mx"]));
    let list = world.postfix.tool("postconf", &["-P", &format!("{service}/inet/smtpd_milters")]);
    assert!(list.contains(&theirs), "{list}");
    run(&world, &printed(&world, &["--remove"]));
    assert_eq!(said(&world), original);
}

/// Runs what `check` says must change, as it is printed, until nothing must.
#[track_caller]
fn obey(world: &World) {
    for _ in 0..4 {
        let (_, findings) = world.findings();
        for finding in findings.iter().filter(|finding| finding["severity"] == "must") {
            let remedy = finding["remedy"].as_str().unwrap();
            match remedy.split_once("activity-milter postfix print ") {
                Some((_, print)) => {
                    let words = print.split(" --postfix-config").next().unwrap();
                    run(world, &printed(world, &words.split(' ').collect::<Vec<_>>()));
                }
                None => run(world, remedy),
            }
        }
    }
    assert_eq!(world.findings().0, Some(0));
}

/// A2: what `check` has told somebody to put in goes too, between two prints and after a domain was renamed.
#[test]
fn what_check_has_told() {
    let others: &[&str] = &["relay_domains = elsewhere.test", "relay_transport = keep:"];
    for (deployment, own) in [("mx", &[][..]), ("shared-mx", others), ("lmtp-only", others)] {
        for (to, then) in [
            ("\"severamail.test\", \"b.test\"", Some("\"severamail.test\", \"b.test\", \"c.test\"")),
            ("\"new.test\"", None),
        ] {
            let world = world(own);
            let original = said(&world);
            run(&world, &printed(&world, &[deployment]));
            configure(&world, "\"severamail.test\"", to);
            obey(&world);
            if let Some(then) = then {
                configure(&world, to, then);
                run(&world, &printed(&world, &[deployment]));
            }
            let removal = printed(&world, &["--remove"]);
            run(&world, &removal);
            assert_eq!(said(&world), original, "{deployment} {to}\n{removal}");
        }
    }
}

/// A2: whoever pipes the script into a shell is told of what stays.
#[test]
fn what_stays_is_told() {
    let world = world(&["relay_domains = elsewhere.test, severamail.test", "in_flow_delay = 0"]);
    let (code, _, error) = world.postfix_command(&["print", "--remove"]);
    assert_eq!(code, Some(0));
    for words in ["Nothing says who put severamail.test into relay_domains", "Nothing says whose this is"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    run(&world, &printed(&world, &["shared-mx"]));
    let error = world.postfix_command(&["print", "--remove"]).2;
    assert!(error.contains("severamail.test stood in relay_domains before us"), "{error}");
}

/// A2: whose queue has moved is known by his sockets, also with another domain.
#[test]
fn a_queue_that_has_moved() {
    for renamed in [false, true] {
        let world = world(&[]);
        let original = said(&world);
        run(&world, &printed(&world, &["mx"]));
        configure(&world, "queue.db", "moved.db");
        if renamed {
            configure(&world, "\"severamail.test\"", "\"new.test\"");
            run(&world, &printed(&world, &["mx"]));
            assert_eq!(value(&world, "relay_domains"), "new.test");
        }
        run(&world, &printed(&world, &["--remove"]));
        assert_eq!(said(&world), original);
    }
}

/// A2: of two activity-milters each leaves what the other needs, and the last leaves nothing.
#[test]
fn two_that_leave_one_after_the_other() {
    for (domain, order) in [("other.test", [0, 1]), ("other.test", [1, 0]), ("severamail.test", [0, 1])] {
        let world = world(&[]);
        let original = said(&world);
        let first = fs::read_to_string(world.config_path()).unwrap();
        let second = ["milter.sock", "lmtp.sock", "queue.db"]
            .iter()
            .fold(first.clone(), |text, name| text.replace(name, &format!("b-{name}")))
            .replace("\"severamail.test\"", &format!("\"{domain}\""));
        let both = [first, second];
        fs::create_dir_all(world.root.join("queue")).unwrap();
        fs::write(world.root.join("queue/b-queue.db"), "").unwrap();
        for config in &both {
            fs::write(world.config_path(), config).unwrap();
            run(&world, &printed(&world, &["mx"]));
        }
        let musts = || {
            let findings = world.findings().1;
            let of = |check: &str| findings.iter().any(|finding| finding["check"] == check);
            ["bcc-shown", "in-flow-delay", "domain", "drop-headers"].map(of)
        };
        assert_eq!(musts(), [false; 4]);
        fs::write(world.config_path(), &both[order[0]]).unwrap();
        run(&world, &printed(&world, &["--remove"]));
        fs::write(world.config_path(), &both[order[1]]).unwrap();
        assert_eq!(musts(), [false; 4], "{domain} {order:?}");
        let removal = printed(&world, &["--remove"]);
        run(&world, &removal);
        assert_eq!(said(&world), original, "{domain} {order:?}\n{removal}");
    }
}

/// The example of auto-bcc is for those who have nothing yet.
#[test]
fn an_example_that_was_replaced() {
    let world = world(&["relay_domains = elsewhere.test"]);
    run(&world, &printed(&world, &["auto-bcc"]));
    let maps = format!("inline:{{ {{ {ANNA} = {MY} }} }}");
    world.postfix.set("sender_bcc_maps", &maps);
    let again = printed(&world, &["auto-bcc"]);
    assert!(again.contains("# Nothing to change."), "{again}");
}
