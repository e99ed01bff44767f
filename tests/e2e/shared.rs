//! A queue in a database server, with the service and a Postfix.

use crate::database::Cluster;
use crate::support::{
    free_port,
    http::http_get,
    smtp::matches,
    wait_for,
    world::{Options, Process, World, eml, program},
};
use std::{path::Path, process::Command};

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";

/// Q42: mail is deferred, not refused and not lost, and everything goes on by itself.
#[test]
fn mail_waits_while_the_database_is_away() {
    let cluster = Cluster::start(&[]).leaked();
    let database = cluster.database();
    let line = |line: String| ("queue", line);
    let config = vec![line("type = \"postgres\"".to_owned()), line(format!("url = \"{}\"", database.url()))];
    let mut world = World::with(Options { config, ..Options::default() });
    assert!(world.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"));
    world.wait_for_activities(1);
    assert!(!world.root.join("queue/queue.db").exists(), "there is no file");
    let (code, out, error) = world.command(&["check"]);
    assert_eq!(code, Some(0), "{out}{error}");
    let queue = out
        .lines()
        .find(|line| line.contains("queue         postgres://"))
        .unwrap_or_else(|| panic!("{out}"));
    assert!(queue.contains("0 waiting, 0 held; a commit is on one disk"), "{queue}");
    let (_, offline, _) = world.command(&["check", "--offline"]);
    assert!(offline.contains("(not asked)"), "{offline}");
    let port = world.admin_port;
    let is_ready = || http_get(port, "/readyz").0 == 200;
    assert!(is_ready());
    cluster.kill();
    let (_, answer) = world.mail(ANNA, &[MY], &eml("html_only"));
    assert!(matches(&answer, "451 4.3.0 *[queue-unavailable]"), "{answer}");
    world.milter.as_ref().unwrap().line_with(&["queue away: mail is deferred", "postgres://"]);
    assert!(!is_ready());
    let metrics = String::from_utf8(http_get(port, "/metrics").1).unwrap();
    assert!(metrics.contains("activity_milter_queue_reachable 0"), "{metrics}");
    let (code, out, _) = world.command(&["check"]);
    assert!(code == Some(1) && out.contains("cannot be reached"), "{out}");
    let (code, _, error) = world.command(&["queue", "list"]);
    assert!(code != Some(0) && error.contains("cannot be reached"), "{error}");
    cluster.run(&[]);
    wait_for("mail to be taken", || {
        world.mail(ANNA, &[MY], &eml("html_only")).1.starts_with("250").then_some(())
    });
    world.milter.as_ref().unwrap().line_with(&["queue back"]);
    world.wait_for_activities(2);
    assert!(is_ready());
    world.milter.as_mut().unwrap().assert_running();
}

/// Q41: one machine takes mail, another delivers it; each says what it does, and a file is shared by nobody.
#[test]
fn one_machine_takes_mail_and_another_delivers_it() {
    let cluster = Cluster::start(&[]).leaked();
    let database = cluster.database();
    let line = |line: String| ("queue", line);
    let config = vec![line("type = \"postgres\"".to_owned()), line(format!("url = \"{}\"", database.url()))];
    let mut world = World::with(Options { config, without_milter: true, ..Options::default() });
    let start = |config: &Path, part: &str| {
        let mut command = Command::new(program());
        command.arg("--config").arg(config).args(["serve", part]);
        let mut process = Process::start(&mut command, &config.with_extension("log"));
        process.wait_to_say("started");
        process
    };
    let ours = std::fs::read_to_string(world.config_path()).unwrap();
    let elsewhere = world.root.join("courier.toml");
    let port = free_port();
    let theirs = ours
        .replace("/queue/spool\"", "/courier/spool\"")
        .replace("/queue/queue.db\"", "/courier/queue.db\"")
        .replace(&format!(":{}\"", world.admin_port), &format!(":{port}\""));
    std::fs::write(&elsewhere, theirs).unwrap();
    world.milter = Some(start(&world.config_path(), "--intake-only"));
    assert!(world.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"));
    let ready = |port| {
        let (status, said) = http_get(port, "/readyz");
        (status, String::from_utf8(said).unwrap())
    };
    let (status, said) = ready(world.admin_port);
    assert!(status == 200 && said.contains("not here: other machines deliver"), "{said}");
    assert!(world.activities().is_empty(), "nobody delivers");
    let mut courier = start(&elsewhere, "--courier-only");
    world.wait_for_activities(1);
    let (status, said) = ready(port);
    assert!(status == 200 && said.contains("none here: other machines take mail"), "{said}");
    assert!(world.mail(ANNA, &[MY], &eml("html_only")).1.starts_with("250"));
    world.wait_for_activities(2);
    courier.signal("TERM");
    assert_eq!(courier.wait(), Some(0));
    world.stop_milter();
    // A file is one process's.
    let alone =
        ours.lines().filter(|line| !line.starts_with("type = \"postgres\"")).collect::<Vec<_>>().join("\n");
    std::fs::write(&elsewhere, alone).unwrap();
    let output =
        Command::new(program()).arg("--config").arg(&elsewhere).args(["serve", "--courier-only"]).output();
    let said = String::from_utf8_lossy(&output.unwrap().stderr).into_owned();
    assert!(said.contains("set queue.type = \"postgres\""), "{said}");
}
