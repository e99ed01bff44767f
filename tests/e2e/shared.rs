//! A queue in a database server, with the service and a Postfix.

use crate::database::Cluster;
use crate::support::{
    http::http_get,
    smtp::matches,
    wait_for,
    world::{Options, World, eml},
};

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
