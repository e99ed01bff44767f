//! Levers for the night (`[emergency]`) and limits of mail (`[limits]`): put in force and taken back by a reload, told to both
//! doors, shown to whoever looks.

use crate::support::{
    http::http_get,
    smtp::matches,
    wait_for,
    world::{Options, World, eml},
};
use std::fs;

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";
const DEFERRED: &str = "451 4.3.2 <mycompany@severamail.test>: *[emergency]";
const BLOCKED: &str = "550 5.7.1 <mycompany@severamail.test>: *[blocked]";

/// Puts the lines into a drop-in file, reloads, and waits until they count.
fn pull(world: &mut World, lines: &str) {
    let folder = world.config_path().with_file_name("activity-milter.toml.d");
    fs::create_dir_all(&folder).unwrap();
    let log = || world.milter.as_ref().unwrap().log().matches("configuration read again").count();
    let before = log();
    fs::write(folder.join("levers.toml"), lines).unwrap();
    world.milter.as_ref().unwrap().signal("HUP");
    wait_for("the reload", || (log() > before).then_some(()));
}

/// What a recipient is told at each door.
fn at_each_door(world: &World) -> [String; 2] {
    let (answers, _) = world.mail(ANNA, &[MY], &eml("plain"));
    let mut lmtp = world.lmtp();
    lmtp.command("XFORWARD ADDR=192.0.2.7");
    lmtp.command(&format!("MAIL FROM:<{ANNA}>"));
    [answers[0].clone(), lmtp.command(&format!("RCPT TO:<{MY}>"))]
}

/// D10.
#[test]
fn each_lever_is_pulled_and_put_back() {
    let mut world = World::with(Options { lmtp: true, ..Options::default() });
    let metric = |world: &World| {
        let text = String::from_utf8(http_get(world.admin_port, "/metrics").1).unwrap();
        text.lines()
            .find_map(|line| line.strip_prefix("activity_milter_emergency ").map(str::to_owned))
            .unwrap()
    };
    assert_eq!(metric(&world), "0");
    for (lines, milter, lmtp) in [
        ("[emergency]\ndefer = true\n", DEFERRED, DEFERRED),
        ("[emergency.block]\nsenders = [\"Anna@MyCompany.test\"]\n", DEFERRED, DEFERRED),
        ("[emergency.block]\nsenders = [\"mycompany.test\"]\nanswer = \"refuse\"\n", BLOCKED, BLOCKED),
        ("[emergency.block]\nnetworks = [\"192.0.2.0/24\"]\n", "250*", DEFERRED),
        ("[emergency.block]\nnetworks = [\"127.0.0.1\"]\nanswer = \"refuse\"\n", BLOCKED, "250*"),
        ("[emergency.block]\ntenants = [\"MyCompany\"]\nanswer = \"refuse\"\n", BLOCKED, BLOCKED),
        ("[emergency.block]\ntenants = [\"other\"]\nsenders = [\"else.test\"]\n", "250*", "250*"),
    ] {
        pull(&mut world, lines);
        let told = at_each_door(&world);
        assert!(matches(&told[0], milter) && matches(&told[1], lmtp), "{lines}{told:?}");
        // Whoever looks sees it.
        assert_eq!(metric(&world), "1", "{lines}");
        let page = String::from_utf8(http_get(world.admin_port, "/").1).unwrap();
        assert!(page.contains("A lever is pulled:</b> emergency."), "{lines}");
        let (code, said, _) = world.command(&["check"]);
        assert!(code == Some(0) && said.contains("warn") && said.contains("emergency."), "{said}");
    }
    // Other people's mail passes, beside a recipient that does not.
    pull(&mut world, "[emergency]\ndefer = true\n");
    let (answers, end) = world.mail(ANNA, &["bo@acme.test", MY], &eml("plain"));
    assert!(
        answers[0].starts_with("250") && matches(&answers[1], DEFERRED) && end.starts_with("250"),
        "{answers:?}"
    );
    wait_for("a delivery", || (world.postfix.delivered().len() == 1).then_some(()));
    // The log names the client, who is known at RCPT already.
    world.milter.as_ref().unwrap().line_with(&["refused 451 4.3.2 [emergency]", "client=127.0.0.1"]);
    pull(&mut world, "");
    assert_eq!(metric(&world), "0");
    let (answers, end) = world.mail(ANNA, &[MY], &eml("plain"));
    assert!(answers[0].starts_with("250") && end.starts_with("250"), "{answers:?} {end}");
    // The same e-mail each time.
    world.wait_for_activities(1);
}

/// D7.
#[test]
fn who_sends_too_much_comes_again() {
    let mut world = World::with(Options { lmtp: true, ..Options::default() });
    let metrics = |world: &World| String::from_utf8(http_get(world.admin_port, "/metrics").1).unwrap();
    let refused = |world: &World, reason: &str| {
        let name = "activity_milter_recipients_refused_total{";
        let text = metrics(world);
        let line =
            text.lines().find(|line| line.starts_with(name) && line.contains(&format!("\"{reason}\"")));
        line.and_then(|line| line.rsplit_once(' ')).unwrap().1.to_owned()
    };
    const CLIENT: &str = "451 4.7.1 <mycompany@severamail.test>: *[client-limit]";
    const SENDER: &str = "451 4.7.1 <mycompany@severamail.test>: *[sender-limit]";
    const TENANT: &str = "450 4.2.1 <mycompany@severamail.test>: *[tenant-limit]";
    for (lines, reason, milter, lmtp) in [
        ("per_client = \"1/h\"", "client-limit", CLIENT, "250*"),
        ("per_sender = \"2/h\"", "sender-limit", SENDER, SENDER),
        ("per_tenant = \"2/h\"", "tenant-limit", TENANT, TENANT),
    ] {
        pull(&mut world, &format!("[limits]\n{lines}\n"));
        let told = at_each_door(&world);
        assert!(told.iter().all(|told| told.starts_with("250")), "{lines}: {told:?}");
        let told = at_each_door(&world);
        assert!(matches(&told[0], milter) && matches(&told[1], lmtp), "{lines}: {told:?}");
        // What was counted outlives a reload with the same limit.
        pull(&mut world, &format!("[limits]\n{lines}\n[emergency.block]\ntenants = [\"nobody\"]\n"));
        let told = at_each_door(&world);
        assert!(matches(&told[0], milter) && matches(&told[1], lmtp), "{lines}: {told:?}");
        // Whoever looks sees it.
        let wanted = if lmtp == "250*" { "2" } else { "4" };
        assert_eq!(refused(&world, reason), wanted, "{lines}");
        let what = reason.split('-').next().unwrap();
        let one = format!("activity_milter_limits_remembered{{what=\"{what}\"}} 1");
        assert!(metrics(&world).contains(&one), "{lines}");
        let page = String::from_utf8(http_get(world.admin_port, "/").1).unwrap();
        assert!(page.contains(&format!("/h for each {what}; more is told to come again")), "{lines}");
        // Other people's mail passes, beside a recipient that does not.
        let (answers, end) = world.mail(ANNA, &["bo@acme.test", MY], &eml("plain"));
        assert!(
            answers[0].starts_with("250") && matches(&answers[1], milter) && end.starts_with("250"),
            "{answers:?}"
        );
        let line = format!("[{reason}]");
        world.milter.as_ref().unwrap().line_with(&["refused 45", &line, "client=127.0.0.1"]);
    }
    // Trusted networks count for none.
    pull(
        &mut world,
        "[limits]\nper_client = \"1/h\"\nper_sender = \"1/h\"\nper_tenant = \"1/h\"\n[sender]\ntrusted_networks = [\"127.0.0.1\"]\n",
    );
    for _ in 0..3 {
        let (answers, end) = world.mail(ANNA, &[MY], &eml("plain"));
        assert!(answers[0].starts_with("250") && end.starts_with("250"), "{answers:?} {end}");
    }
}

/// D10, D7.
#[test]
fn levers_and_limits_refuse_nobody_in_shadow_and_hold_whatever_the_directory_says() {
    let mut world = World::with(Options { lmtp: true, ..Options::default() });
    let path = world.root.join("directory.toml");
    let directory = fs::read_to_string(&path).unwrap();
    let shadow = "mode = \"shadow\"\nname = \"Other Oy\"";
    fs::write(&path, directory.replacen("name = \"Other Oy\"", shadow, 1)).unwrap();
    wait_for("the new directory", || {
        (world.milter.as_ref().unwrap().log().matches("directory read").count() >= 2).then_some(())
    });
    let other = "other@severamail.test";
    let told = |world: &World, to: &str| world.mail(ANNA, &[to], &eml("plain")).0[0].clone();
    for (lines, live) in [
        ("[emergency]\ndefer = true\n", DEFERRED),
        ("[emergency.block]\nsenders = [\"mycompany.test\"]\nanswer = \"refuse\"\n", BLOCKED),
        ("[emergency.block]\nnetworks = [\"::ffff:127.0.0.0/104\"]\nanswer = \"refuse\"\n", BLOCKED),
        ("[emergency.block]\ntenants = [\"mycompany\", \"other\"]\nanswer = \"refuse\"\n", BLOCKED),
    ] {
        pull(&mut world, lines);
        assert!(matches(&told(&world, MY), live), "{lines}");
        assert!(told(&world, other).starts_with("250"), "{lines}");
        world.milter.as_ref().unwrap().line_with(&["would", "to=<other@severamail.test>"]);
    }
    pull(&mut world, "[limits]\nper_client = \"1/h\"\n");
    assert!(told(&world, MY).starts_with("250"));
    assert!(matches(&told(&world, MY), "451 4.7.1 *[client-limit]"));
    assert!(told(&world, other).starts_with("250"));
    // A project that the directory lacks just now, and a tenant.
    pull(&mut world, "[emergency.block]\ntenants = [\"mycompany\", \"gone\"]\n");
    for to in ["9999.mycompany@severamail.test", "gone@severamail.test", "1.gone@severamail.test"] {
        assert!(matches(&told(&world, to), "451 4.3.2 *[emergency]"), "{to}");
    }
    assert!(told(&world, "nosuch@severamail.test").starts_with("550 5.1.1"));
}
