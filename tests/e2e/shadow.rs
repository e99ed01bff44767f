//! Shadow mode beside a Postfix that works: from today's mail to a trial, from the trial to the real thing, and back.

use crate::support::{
    wait_for,
    world::{Options, World, eml},
};
use std::{fs, path::Path, process::Command};

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";

#[track_caller]
fn applied(world: &World, args: &[&str]) {
    let (code, script, error) = world.postfix_command(&[&["print"], args].concat());
    assert_eq!(code, Some(0), "{error}");
    let output = Command::new("sh").arg("-eu").arg("-c").arg(&script).output().unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    world.postfix.reload();
}

/// The findings of one check, and whether something must change.
fn found(world: &World, check: &str) -> Vec<String> {
    let (code, findings) = world.findings();
    assert_eq!(code, Some(i32::from(findings.iter().any(|f| f["severity"] == "must"))));
    let of_it = findings.iter().filter(|finding| finding["check"] == check);
    of_it.map(|f| format!("{} {} {}", f["severity"], f["setting"], f["remedy"])).collect()
}

fn set_mode(world: &mut World, mode: &str) {
    let path = world.config_path();
    let text = fs::read_to_string(&path).unwrap();
    let rest = text.strip_prefix("mode = ").map_or(text.as_str(), |text| text.split_once('\n').unwrap().1);
    fs::write(&path, format!("mode = \"{mode}\"\n{rest}")).unwrap();
    world.stop_milter();
    world.start_milter();
}

/// A6.
#[test]
fn there_and_back() {
    let mut world = World::with(Options {
        bare: true,
        lmtp: true,
        postfix: vec!["relay_domains = severamail.test".to_owned(), "relay_transport = keep:".to_owned()],
        ..Options::default()
    });
    set_mode(&mut world, "shadow");
    let today = world.postfix.tool("postconf", &["-n"]);
    // Nobody asks us yet.
    assert!(found(&world, "shadow")[0].contains("no smtpd asks our milter"), "{:?}", found(&world, "shadow"));
    applied(&world, &["mx", "--shadow"]);
    let added: Vec<String> = {
        let now = world.postfix.tool("postconf", &["-n"]);
        now.lines().filter(|line| !today.contains(line)).map(str::to_owned).collect()
    };
    assert_eq!(added, ["smtpd_milters = { unix:activity-milter/milter.sock, default_action=accept }"]);
    assert_eq!(world.findings(), (Some(0), Vec::new()));
    // Judged, and delivered where it always was; also while we are down.
    let mail = |world: &World, message: &str, delivered: usize| {
        assert!(world.mail(ANNA, &[MY], &eml(message)).1.starts_with("250"));
        wait_for("a delivery", || (world.postfix.delivered().len() == delivered).then_some(()));
    };
    mail(&world, "plain", 1);
    mail(&world, "no_subject", 2);
    let log = fs::read_to_string(world.root.join("milter.log")).unwrap();
    assert!(log.contains("would") && log.contains("no-subject"), "{log}");
    world.stop_milter();
    mail(&world, "html_only", 3);
    world.start_milter();
    world.wait_for_activities(0);

    // The real thing.
    set_mode(&mut world, "live");
    applied(&world, &["mx"]);
    assert_eq!(found(&world, "shadow"), Vec::<String>::new());
    assert_eq!(world.findings().0, Some(0), "{:#?}", world.findings());
    let action = world.postfix.tool("postconf", &["-h", "smtpd_milters"]);
    assert!(action.contains("tempfail"), "what we wrote for the trial follows the deployment: {action}");
    assert!(world.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"));
    world.wait_for_activities(1);

    // And back: said, as long as mail would pile up.
    set_mode(&mut world, "shadow");
    let said = found(&world, "shadow");
    assert!(said[0].starts_with("\"must\"") && said[0].contains("print --remove"), "{said:?}");
    applied(&world, &["--remove"]);
    assert_eq!(world.postfix.tool("postconf", &["-n"]), today);
    applied(&world, &["mx", "--shadow"]);
    assert_eq!(world.findings(), (Some(0), Vec::new()));
    mail(&world, "japanese_subject", 4);
    world.wait_for_activities(1);
    wait_for("an empty queue", || world.postfix.queued().is_empty().then_some(()));
}

/// A6: of one tenant.
#[test]
fn a_tenant_beside_live_ones() {
    let mut world = World::with(Options {
        bare: true,
        lmtp: true,
        postfix: vec![
            "relay_domains = severamail.test, x.test".to_owned(),
            "relay_transport = keep:".to_owned(),
        ],
        ..Options::default()
    });
    applied(&world, &["shared-mx"]);
    assert_eq!(world.findings(), (Some(0), Vec::new()));
    // With the tenant `trial` in shadow mode.
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/directory.toml");
    fs::copy(shipped, world.root.join("directory.toml")).unwrap();
    world.stop_milter();
    world.start_milter();
    let said = found(&world, "shadow");
    assert!(said.len() == 1 && said[0].starts_with("\"must\" \"tenant trial"), "{said:?}");
    // What the remedy says.
    let line =
        said[0].split('`').nth(1).unwrap().replace(r"\\", r"\").replace("smtp:[today's host]", "keep:");
    let table = world.root.join("trial");
    fs::write(&table, format!("{line}\n")).unwrap();
    let maps = world.postfix.tool("postconf", &["-h", "transport_maps"]);
    world.postfix.set("transport_maps", &format!("regexp:{}, {}", table.display(), maps.trim()));
    world.postfix.reload();
    assert_eq!(found(&world, "shadow"), Vec::<String>::new());
    for address in ["trial@severamail.test", "7.trial@severamail.test"] {
        assert!(world.mail(ANNA, &[address], &eml("plain")).1.starts_with("250"), "{address}");
    }
    wait_for("two deliveries", || (world.postfix.delivered().len() == 2).then_some(()));
    assert!(world.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"));
    world.wait_for_activities(1);
}
