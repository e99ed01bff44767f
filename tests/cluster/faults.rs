//! What befalls a cluster: a table. Each fault happens while mail flows, says what must hold, and looks whether it did; then
//! it is undone.
//!
//! That nothing is lost and nothing comes twice is judged over the whole run (`tally`). A fault in which an activity may come
//! twice is one in which who sent it could not know that it had come: killed, frozen, or cut off between the request and its
//! answer.

use super::{
    lab::{Node, run},
    scene::Scene,
    servers::{CONNECTIONS, STANDBYS},
};
use crate::history::{backend::Mood, clients::Word};
use crate::support::{http::http_get, wait_for, world::Process};
use std::{
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

/// A fault.
pub struct Fault {
    pub name: &'static str,
    pub holds: &'static str,
    /// Part of `make test`.
    pub is_short: bool,
    /// Activities may come twice.
    pub again: bool,
    pub happens: fn(&mut Scene),
}

const fn fault(name: &'static str, holds: &'static str, happens: fn(&mut Scene)) -> Fault {
    Fault { name, holds, is_short: false, again: false, happens }
}

impl Fault {
    const fn short(mut self) -> Self {
        self.is_short = true;
        self
    }

    const fn again(mut self) -> Self {
        self.again = true;
        self
    }
}

/// All of them, in the order in which they happen.
pub const FAULTS: &[Fault] = &[
    fault("primary killed, a standby promoted", "nothing is started again", primary_killed).short(),
    fault("wait for a standby cancelled, then failover", "a cancelled wait is no 250", wait_cancelled)
        .short(),
    fault(
        "primary crashed and back without standbys, then failover",
        "what only the primary has is not known",
        crashed_alone,
    )
    .short(),
    fault("mx1 cut off from the database", "the other takes mail", cut_from_database).short(),
    fault("intake and courier killed", "no lease is lost", services_killed).short().again(),
    fault("primary restarted", "all go on by themselves", primary_restarted),
    fault("our connections ended", "all go on by themselves", connections_ended),
    fault("no connection left", "451, and nothing is lost", no_connection),
    fault("one standby lost", "mail is taken all the time", one_standby_lost),
    fault("both standbys lost", "nothing is accepted", both_standbys_lost),
    fault("names of the standbys removed", "451 as long as that is so", names_removed),
    fault("disk of the primary full", "451, and nothing is lost", disk_full),
    fault("backend cut off from all", "mail is taken all the time", backend_cut).again(),
    fault("co1 cut off from the backend", "the other delivers", courier_cut_from_backend).again(),
    fault("mx1 and co1 cut off from all", "the others go on", machines_cut).again(),
    fault("intake killed", "the other takes mail", intake_killed),
    fault("courier killed", "the other delivers", courier_killed).again(),
    fault("courier frozen for longer than its lease", "what it says then changes nothing", courier_frozen)
        .again(),
    fault("Postfix restarted", "the other takes mail", postfix_restarted),
    fault("Postfix killed", "the other takes mail", postfix_killed),
    fault("machines' clocks five minutes apart", "the database's alone decides", clocks_apart),
    fault("tables of the next version", "who may work with them does, and who may not says so", next_version),
    fault("pooler restarted", "through PgBouncer too", pooler_restarted),
    fault("report open on a standby", "mail is taken all the time", report_open),
    fault("primary killed, once more", "with whoever is there", primary_killed),
    fault("everything killed at once", "all is there afterwards", everything_killed).again(),
];

/// From a change of the network to what it does.
const EFFECT: Duration = Duration::from_millis(700);

/// Waits so long, and is about how many messages were accepted then.
fn accepted_in(scene: &Scene, time: Duration) -> usize {
    let since = Instant::now();
    sleep(time);
    scene.clients.count(since, |word| *word == Word::Accepted)
}

#[track_caller]
fn nothing_is_accepted(scene: &Scene, time: Duration) {
    assert_eq!(accepted_in(scene, time), 0, "nobody may be told 250 now");
}

#[track_caller]
fn mail_is_taken(scene: &Scene, time: Duration) {
    assert!(accepted_in(scene, time) > 0, "mail must be taken now");
}

#[track_caller]
fn some_hear_4xx(scene: &Scene, since: Instant) {
    scene.until("a 4xx", |scene| scene.clients.count(since, |word| matches!(word, Word::Later(_))) > 0);
}

fn standby_nodes(scene: &Scene) -> Vec<Node> {
    scene.servers.standbys().iter().map(|standby| standby.node.clone()).collect()
}

fn unplug(scene: &Scene, nodes: &[Node]) {
    scene.lab.unplug(&nodes.iter().collect::<Vec<_>>());
}

fn plug(scene: &Scene, nodes: &[Node]) {
    scene.lab.plug(&nodes.iter().collect::<Vec<_>>());
}

/// The primary, which is killed already, is replaced, and comes back as a standby.
fn replace_primary(scene: &mut Scene) {
    let old = scene.servers.fail_over();
    scene.servers.rejoin(old);
}

fn primary_killed(scene: &mut Scene) {
    scene.servers.primary().cluster.kill_hard();
    replace_primary(scene);
}

/// Keys that only the primary has.
fn only_here(scene: &Scene) -> i64 {
    let count = "SELECT count(*) FROM activity_milter.key";
    let here: i64 = scene.servers.sql(count).parse().unwrap();
    let there = scene.servers.standbys();
    let there = there.iter().map(|standby| standby.sql(count).parse::<i64>().unwrap()).max();
    here - there.unwrap()
}

fn wait_cancelled(scene: &mut Scene) {
    let standbys = standby_nodes(scene);
    unplug(scene, &standbys);
    sleep(EFFECT);
    let since = Instant::now();
    let mut cancelled = 0;
    while since.elapsed() < Duration::from_secs(4) || cancelled < 3 {
        let done = scene.servers.sql(
            "SELECT count(*) FILTER (WHERE pg_cancel_backend(pid)) FROM pg_stat_activity
             WHERE wait_event = 'SyncRep' AND query LIKE '%activity_milter.put%'",
        );
        cancelled += done.parse::<u32>().unwrap();
        sleep(Duration::from_millis(100));
    }
    assert_eq!(
        scene.clients.count(since, |word| *word == Word::Accepted),
        0,
        "of {cancelled} that were cancelled"
    );
    assert!(only_here(scene) > 0, "the primary has what the standbys have not");
    some_hear_4xx(scene, since);
    scene.servers.primary().cluster.kill_hard();
    plug(scene, &standbys);
    replace_primary(scene);
}

fn crashed_alone(scene: &mut Scene) {
    let standbys = standby_nodes(scene);
    unplug(scene, &standbys);
    sleep(EFFECT);
    nothing_is_accepted(scene, Duration::from_secs(2));
    scene.servers.primary().cluster.kill_hard();
    scene.servers.primary().start();
    // Clients try again what is there since before.
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    scene.until("puts that wait again", |scene| scene.servers.sql(waits) != "0");
    nothing_is_accepted(scene, Duration::from_secs(4));
    assert!(only_here(scene) > 0, "the primary has what the standbys have not");
    scene.servers.primary().cluster.kill_hard();
    plug(scene, &standbys);
    replace_primary(scene);
}

fn cut_from_database(scene: &mut Scene) {
    let node = scene.exchangers[0].service.node.clone();
    node.lose(&scene.servers.nodes());
    sleep(EFFECT);
    let since = Instant::now();
    sleep(Duration::from_secs(6));
    assert!(scene.clients.accepted(since, Some(1)) > 0, "the other takes mail");
    assert_eq!(scene.clients.accepted(since, Some(0)), 0, "this one cannot");
    node.find(&scene.servers.nodes());
}

fn services_killed(scene: &mut Scene) {
    scene.backend.behave(Mood::Slow(Duration::from_millis(150)));
    sleep(Duration::from_secs(1));
    scene.exchangers[0].service.kill();
    scene.couriers[0].kill();
    scene.backend.behave(Mood::Well);
    sleep(Duration::from_secs(1));
    scene.exchangers[0].service.start();
    scene.couriers[0].start();
}

fn primary_restarted(scene: &mut Scene) {
    let primary = scene.servers.primary();
    primary.cluster.shell("\"$1/pg_ctl\" -D \"$2/data\" -m fast -w stop");
    sleep(Duration::from_millis(500));
    primary.start();
    scene.servers.wait_for_standbys(1);
}

const OURS: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'am'";

fn connections_ended(scene: &mut Scene) {
    let mut ended = 0;
    for _ in 0..25 {
        ended += scene.servers.primary().tell(OURS).parse::<u32>().unwrap();
        sleep(Duration::from_millis(200));
    }
    assert!(ended > 20, "{ended}");
}

fn no_connection(scene: &mut Scene) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let url = format!("host={} user=others dbname=postgres", scene.servers.primary().node.address);
    let since = Instant::now();
    let mut held = Vec::new();
    while since.elapsed() < Duration::from_secs(6) {
        scene.servers.primary().tell(OURS);
        while let Ok((client, connection)) =
            runtime.block_on(tokio_postgres::connect(&url, tokio_postgres::NoTls))
        {
            runtime.spawn(connection);
            held.push(client);
        }
        sleep(Duration::from_millis(100));
    }
    assert!(held.len() > CONNECTIONS / 2, "{} of others", held.len());
    // One of ours may be quicker than all the others, and goes on.
    some_hear_4xx(scene, since);
    drop(runtime);
}

fn one_standby_lost(scene: &mut Scene) {
    let standby = standby_nodes(scene).remove(0);
    unplug(scene, std::slice::from_ref(&standby));
    for _ in 0..6 {
        mail_is_taken(scene, Duration::from_secs(1));
    }
    plug(scene, &[standby]);
    scene.servers.wait_for_standbys(2);
}

fn both_standbys_lost(scene: &mut Scene) {
    let standbys = standby_nodes(scene);
    unplug(scene, &standbys);
    sleep(EFFECT);
    let since = Instant::now();
    // Longer than a put has patience.
    nothing_is_accepted(scene, Duration::from_secs(33));
    some_hear_4xx(scene, since);
    plug(scene, &standbys);
    scene.servers.wait_for_standbys(2);
}

fn names_removed(scene: &mut Scene) {
    let set = |names: &str| scene.servers.primary().set("synchronous_standby_names", names);
    set("");
    let since = Instant::now();
    // It is read every three seconds.
    sleep(Duration::from_secs(4));
    nothing_is_accepted(scene, Duration::from_secs(3));
    some_hear_4xx(scene, since);
    let port = scene.exchangers[0].world.admin_port;
    let metrics = scene.exchangers[0].service.node.inside(move || http_get(port, "/metrics").1);
    let metrics = String::from_utf8(metrics).unwrap();
    assert!(metrics.contains("activity_milter_queue_safe 0"), "{metrics}");
    set(STANDBYS);
}

fn disk_full(scene: &mut Scene) {
    let since = Instant::now();
    let primary = scene.servers.primary();
    primary.fill();
    some_hear_4xx(scene, since);
    sleep(Duration::from_secs(3));
    primary.clear();
    let is_up = || primary.ask("SELECT 1").is_ok();
    let began = Instant::now();
    while !is_up() && began.elapsed() < Duration::from_secs(8) {
        sleep(Duration::from_millis(200));
    }
    if !is_up() {
        primary.start();
    }
    scene.servers.wait_for_standbys(2);
}

fn backend_cut(scene: &mut Scene) {
    scene.lab.unplug(&[&scene.sink]);
    sleep(EFFECT);
    let before = scene.backend.count();
    for _ in 0..5 {
        mail_is_taken(scene, Duration::from_secs(1));
    }
    assert_eq!(scene.backend.count(), before);
    scene.lab.plug(&[&scene.sink]);
}

fn courier_cut_from_backend(scene: &mut Scene) {
    let node = scene.couriers[0].node.clone();
    node.lose(&[&scene.sink]);
    sleep(EFFECT);
    let before = scene.backend.count();
    sleep(Duration::from_secs(5));
    assert!(scene.backend.count() > before, "the other delivers");
    node.find(&[&scene.sink]);
}

fn machines_cut(scene: &mut Scene) {
    let nodes = [scene.exchangers[0].service.node.clone(), scene.couriers[0].node.clone()];
    unplug(scene, &nodes);
    sleep(EFFECT);
    let (before, since) = (scene.backend.count(), Instant::now());
    sleep(Duration::from_secs(6));
    assert!(scene.backend.count() > before, "the other delivers");
    assert!(scene.clients.accepted(since, Some(1)) > 0, "the other takes mail");
    plug(scene, &nodes);
}

fn intake_killed(scene: &mut Scene) {
    scene.exchangers[1].service.kill();
    let since = Instant::now();
    sleep(Duration::from_secs(2));
    assert!(scene.clients.accepted(since, Some(0)) > 0, "the other takes mail");
    scene.exchangers[1].service.start();
}

fn courier_killed(scene: &mut Scene) {
    scene.backend.behave(Mood::Slow(Duration::from_millis(200)));
    for _ in 0..3 {
        sleep(Duration::from_secs(1));
        scene.couriers[1].kill();
        let before = scene.backend.count();
        sleep(Duration::from_secs(1));
        assert!(scene.backend.count() > before, "the other delivers");
        scene.couriers[1].start();
    }
    scene.backend.behave(Mood::Well);
}

fn courier_frozen(scene: &mut Scene) {
    scene.backend.behave(Mood::Slow(Duration::from_millis(300)));
    sleep(Duration::from_secs(1));
    let frozen = &scene.couriers[0];
    frozen.signal("STOP");
    sleep(Duration::from_millis(300));
    let node = std::fs::read_to_string(scene.root.join(frozen.node.name).join("spool/node")).unwrap();
    let of = format!("FROM activity_milter.item WHERE node = '{}' AND until IS NOT NULL", node.trim());
    let leased: u32 = scene.servers.sql(&format!("SELECT count(*) {of}")).parse().unwrap();
    assert!(leased > 0, "it has nothing under way");
    // Whatever the time of their leases: it is missed after three minutes.
    scene.servers.sql(&format!(
        "UPDATE activity_milter.item SET until = activity_milter.at(NULL) - 1 WHERE id IN (SELECT id {of})"
    ));
    let is_over = |scene: &Scene| scene.servers.sql(&format!("SELECT count(*) {of}")) == "0";
    scene.until_after(Duration::from_secs(180), "the other to take over", is_over);
    scene.backend.behave(Mood::Well);
    scene.couriers[0].signal("CONT");
}

fn postfix_restarted(scene: &mut Scene) {
    for exchanger in &scene.exchangers {
        exchanger.restart_postfix();
        sleep(Duration::from_secs(1));
    }
}

fn postfix_killed(scene: &mut Scene) {
    let since = Instant::now();
    scene.exchangers[0].postfix().tool("postfix", &["abort"]);
    sleep(Duration::from_secs(2));
    assert!(scene.clients.accepted(since, Some(1)) > 0, "the other takes mail");
    scene.exchangers[0].start_postfix();
}

fn clocks_apart(scene: &mut Scene) {
    let set = |scene: &mut Scene, first, second| {
        scene.exchangers[0].service.clock = first;
        scene.couriers[0].clock = second;
        for service in [&mut scene.exchangers[0].service, &mut scene.couriers[0]] {
            assert_eq!(service.stop(), Some(0));
            service.start();
        }
    };
    set(scene, Some("+150s"), Some("-150s"));
    let since = Instant::now();
    // Both take part.
    scene.until("mail through the one", |scene| scene.clients.accepted(since, Some(0)) > 50);
    let waits = "SELECT count(*) FROM activity_milter.item WHERE abs(accepted_at - activity_milter.at(NULL)) > 60000
        OR abs(coalesce(until, activity_milter.at(NULL) + 3600000) - activity_milter.at(NULL) - 3600000) > 60000";
    for _ in 0..20 {
        assert_eq!(scene.servers.sql(waits), "0", "times by another clock");
        sleep(Duration::from_millis(100));
    }
    set(scene, None, None);
}

fn next_version(scene: &mut Scene) {
    scene.servers.sql("UPDATE activity_milter.meta SET version = version + 1");
    for service in [&mut scene.exchangers[0].service, &mut scene.couriers[0]] {
        assert_eq!(service.stop(), Some(0));
        service.start();
    }
    mail_is_taken(scene, Duration::from_secs(3));
    scene.servers.sql("UPDATE activity_milter.meta SET reads = version");
    let courier = &mut scene.couriers[0];
    assert_eq!(courier.stop(), Some(0));
    courier.begin();
    wait_for("it to say why it does not start", || {
        courier.log().contains("has schema 2, and this version knows 1").then_some(())
    });
    mail_is_taken(scene, Duration::from_secs(2));
    scene.servers.sql("UPDATE activity_milter.meta SET version = 1, reads = 1");
    scene.couriers[0].start();
}

fn pooler_restarted(scene: &mut Scene) {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/pgbouncer/usr/sbin/pgbouncer");
    let program = if unpacked.exists() { unpacked } else { PathBuf::from("/usr/sbin/pgbouncer") };
    let place = scene.root.join("pooler");
    std::fs::create_dir_all(&place).unwrap();
    run("chown", &["postgres", place.to_str().unwrap()]);
    let settings = place.join("pgbouncer.ini");
    let text = format!(
        "[databases]\nam = host={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = 6432\nunix_socket_dir =\n\
         auth_type = any\npool_mode = transaction\ndefault_pool_size = 3\nlogfile = {}/log\n",
        scene.servers.primary().node.address,
        place.display()
    );
    std::fs::write(&settings, text.replace("am = host", "am = user=am host")).unwrap();
    let node = scene.couriers[1].node.clone();
    let pool = || {
        let (program, settings, log) = (program.clone(), settings.clone(), place.join("said"));
        node.inside(move || {
            Process::start(Command::new(program).args(["-q", "-u", "postgres"]).arg(settings), &log)
        })
    };
    let mut pooler = pool();
    let config = scene.couriers[1].config.clone();
    let direct = std::fs::read_to_string(&config).unwrap();
    let hosts = direct.split("postgres://").nth(1).unwrap().split('"').next().unwrap();
    std::fs::write(&config, direct.replace(hosts, "am@127.0.0.1:6432/am")).unwrap();
    assert_eq!(scene.couriers[1].stop(), Some(0));
    scene.couriers[1].start();
    let pooled = "SELECT count(*) FROM activity_milter.item WHERE node = (SELECT id FROM activity_milter.node ORDER BY seen DESC LIMIT 1)";
    scene.servers.sql(pooled);
    for _ in 0..3 {
        sleep(Duration::from_secs(1));
        pooler.kill();
        sleep(Duration::from_millis(500));
        pooler = pool();
    }
    sleep(Duration::from_secs(1));
    std::fs::write(&config, direct).unwrap();
    assert_eq!(scene.couriers[1].stop(), Some(0));
    drop(pooler);
    scene.couriers[1].start();
}

fn report_open(scene: &mut Scene) {
    let standbys = scene.servers.standbys();
    let standby = standbys[0];
    standby.set("hot_standby_feedback", "on");
    let cluster = std::sync::Arc::clone(&standby.cluster);
    let report = std::thread::spawn(move || {
        cluster.psql(
            "am",
            "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM activity_milter.item; SELECT pg_sleep(15); COMMIT",
        )
    });
    for _ in 0..12 {
        mail_is_taken(scene, Duration::from_secs(1));
    }
    let said = report.join().unwrap();
    assert!(said.is_ok(), "{said:?}");
    standby.tell("ALTER SYSTEM RESET hot_standby_feedback");
    standby.tell("SELECT pg_reload_conf()");
}

fn everything_killed(scene: &mut Scene) {
    for exchanger in &mut scene.exchangers {
        exchanger.service.kill();
        exchanger.postfix().tool("postfix", &["abort"]);
    }
    scene.couriers.iter_mut().for_each(|courier| courier.kill());
    for member in &scene.servers.members {
        member.cluster.kill_hard();
    }
    for exchanger in &mut scene.exchangers {
        exchanger.start_postfix();
        exchanger.service.begin();
    }
    scene.couriers.iter_mut().for_each(|courier| courier.begin());
    for member in &scene.servers.members {
        member.start();
    }
    scene.exchangers.iter_mut().for_each(|exchanger| exchanger.service.wait());
    scene.couriers.iter_mut().for_each(|courier| courier.wait());
    scene.servers.wait_for_standbys(2);
}
