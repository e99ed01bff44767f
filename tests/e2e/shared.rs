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

/// Q47: mail is taken while the database is away, by a service that was killed and started meanwhile too, and is delivered
/// once when the database is back. Whoever looks sees what waits, and for what.
#[test]
fn mail_is_taken_while_the_database_is_away() {
    let cluster = Cluster::start(&[]).leaked();
    let database = cluster.database();
    let line = |line: &str| ("queue", line.to_owned());
    let url = format!("url = \"{}\"", database.url());
    let config = vec![line("type = \"postgres\""), line(&url), line("spool_on_outage = true")];
    let mut world = World::with(Options { config, ..Options::default() });
    let take = |world: &World, name: &str| {
        let (_, answer) = world.mail(ANNA, &[MY], &eml(name));
        assert!(answer.starts_with("250"), "{name}: {answer}");
    };
    take(&world, "plain");
    world.wait_for_activities(1);
    let (_, out, _) = world.command(&["check"]);
    assert!(out.contains("nothing waits there for the database"), "{out}");
    let port = world.admin_port;
    let body = |path: &str| {
        let (status, said) = http_get(port, path);
        (status, String::from_utf8(said).unwrap())
    };
    cluster.kill();
    take(&world, "html_only");
    world.milter.as_ref().unwrap().line_with(&["mail is kept on this machine until the database takes it"]);
    take(&world, "project_with_attachments");
    let (status, said) = body("/readyz");
    assert!(
        status == 200 && said.contains("2 on this machine wait for the database, the oldest for"),
        "{said}"
    );
    let metrics = body("/metrics").1;
    assert!(metrics.contains("activity_milter_queue_spooled 2"), "{metrics}");
    let (code, out, _) = world.command(&["check"]);
    assert!(code == Some(1) && out.contains("cannot be reached"), "{out}");
    assert!(out.contains("2 wait there for the database: the service gives them to it"), "{out}");
    let (code, _, error) = world.command(&["queue", "list"]);
    assert!(
        code != Some(0) && error.contains("2 on this machine wait for the database: see them with --local"),
        "{error}"
    );
    let (code, out, error) = world.command(&["queue", "list", "--local"]);
    assert!(code == Some(0) && out.lines().count() == 4, "{out}{error}");
    let copy = world.root.join("copy");
    let (code, out, error) = world.command(&["backup", copy.to_str().unwrap()]);
    assert!(code == Some(0) && out.contains("2 activities that wait on this machine"), "{out}{error}");
    assert!(out.contains("pg_dump"), "{out}");
    // Killed, and started while the database is still away.
    world.milter.as_mut().unwrap().signal("KILL");
    world.milter.as_mut().unwrap().wait();
    world.milter = None;
    world.start_milter();
    take(&world, "japanese_subject");
    take(&world, "html_only"); // the client did not hear our answer
    assert_eq!(world.activities().len(), 1, "nothing is delivered from here");
    cluster.run(&[]);
    world.milter.as_ref().unwrap().line_with(&["what was kept on this machine is in the database"]);
    world.wait_for_activities(4);
    take(&world, "swedish_subject");
    world.wait_for_activities(5);
    wait_for("nothing to be left", || {
        body("/metrics").1.contains("activity_milter_queue_spooled 0").then_some(())
    });
    assert!(!body("/readyz").1.contains("on this machine"));
    // What became of one is known here, however it went.
    let (code, out, _) = world.command(&["queue", "list"]);
    assert!(code == Some(0) && out.contains("queue is empty"), "{out}");
    // In memory it would be gone with the machine.
    let ours = std::fs::read_to_string(world.config_path()).unwrap();
    let spool = format!("{}/queue/spool", world.root.display());
    std::fs::write(world.config_path(), ours.replace(&spool, "/dev/shm/am-never-made/spool")).unwrap();
    let (code, out, _) = world.command(&["check", "--offline"]);
    assert!(
        code == Some(1) && out.contains("queue.spool /dev/shm/am-never-made/spool is in memory (tmpfs)"),
        "{out}"
    );
}

/// Q42: a service whose database is away starts, defers mail, and goes on by itself.
#[test]
fn a_service_starts_while_its_database_is_away() {
    let cluster = Cluster::start(&[]).leaked();
    let database = cluster.database();
    let line = |line: &str| ("queue", line.to_owned());
    let config = vec![line("type = \"postgres\""), line(&format!("url = \"{}\"", database.url()))];
    cluster.kill();
    let mut world = World::with(Options { config, ..Options::default() });
    let (_, answer) = world.mail(ANNA, &[MY], &eml("plain"));
    assert!(matches(&answer, "451 4.3.0 *[queue-unavailable]"), "{answer}");
    assert_eq!(http_get(world.admin_port, "/readyz").0, 503);
    cluster.run(&[]);
    wait_for("mail to be taken", || {
        world.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250").then_some(())
    });
    world.wait_for_activities(1);
    assert_eq!(http_get(world.admin_port, "/readyz").0, 200);
    world.milter.as_mut().unwrap().assert_running();
}

/// Q48: what a person does who goes over to a database: says it while the service runs, stops that, says it twice, and starts
/// with the new settings.
#[test]
fn a_queue_moves_to_a_database() {
    let cluster = Cluster::start(&[]).leaked();
    let database = cluster.database();
    let mut world = World::with(Options { without_sink: true, ..Options::default() });
    for name in ["plain", "project_with_attachments", "html_only"] {
        assert!(world.mail(ANNA, &[MY], &eml(name)).1.starts_with("250"));
    }
    let url = database.url();
    let (code, _, error) = world.command(&["queue", "move"]);
    assert!(code == Some(64) && error.contains("--to postgres://user@host/database"), "{error}");
    let (code, _, error) = world.command(&["queue", "move", "--to", &url]);
    assert!(
        code == Some(69) && error.contains("is in use by another activity-milter: stop that one"),
        "{error}"
    );
    world.stop_milter();
    let path = world.root.join("queue/queue.db");
    let (code, _, error) = world.command(&["queue", "move", "--to", path.to_str().unwrap()]);
    assert!(code == Some(64) && error.contains("is both"), "{error}");
    let (code, _, error) = world.command(&["queue", "move", "--to", &url.replace(&database.name, "nobody")]);
    assert!(code == Some(69) && error.contains("--to: queue cannot be reached now"), "{error}");
    let (code, out, error) = world.command(&["queue", "move", "--to", &url]);
    assert!(code == Some(0) && out.starts_with("3 activities moved from "), "{out}{error}");
    let (code, out, error) = world.command(&["queue", "move", "--to", &url]);
    assert!(code == Some(0) && out.starts_with("0 activities moved from "), "{out}{error}");
    // And to a file of another place, and back.
    let other = world.root.join("other.db");
    let (code, out, error) =
        world.command(&["queue", "move", "--from", &url, "--to", other.to_str().unwrap()]);
    assert!(code == Some(0) && out.starts_with("3 activities moved from postgres://"), "{out}{error}");
    let ours = std::fs::read_to_string(world.config_path()).unwrap();
    let ours = ours.replace("[queue]\n", &format!("[queue]\ntype = \"postgres\"\nurl = \"{url}\"\n"));
    std::fs::write(world.config_path(), ours).unwrap();
    let (code, out, error) = world.command(&["queue", "move", "--from", other.to_str().unwrap()]);
    assert!(code == Some(0) && out.starts_with("3 activities moved"), "{out}{error}");
    let (_, out, _) = world.command(&["queue", "list"]);
    assert!(out.contains("3 waiting"), "{out}");
    world.start_milter();
    world.start_sink();
    world.wait_for_activities(3);
    assert!(world.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"));
    assert_eq!(world.activities().len(), 3, "known");
}
