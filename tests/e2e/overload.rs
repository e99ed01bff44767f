//! More clients than there is room for, slow ones, large ones: the service stays within its bounds, answers honest mail, and
//! is well again by itself. `make torture-doors` does it with the numbers of a bad day, and prints what it sees.

use crate::support::{
    crowd::{
        Crowd, Heard, Pace, Script, Taken, Way, frame, honest, lmtp_head, milter_head, negotiation,
        taken_after,
    },
    http::http_get,
    smtp::matches,
    wait_for,
    world::{Options, World, eml, program},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Between the bytes of a slow client.
const TICK: Duration = Duration::from_millis(100);

const MIB: usize = 1024 * 1024;

/// Our own end needs as many descriptors.
fn many_descriptors() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

fn world(config: Vec<(&'static str, String)>, descriptors: Option<u32>) -> World {
    many_descriptors();
    let wrapper = descriptors.map(|most| vec!["prlimit".to_owned(), format!("--nofile={most}")]);
    let options =
        Options { tcp: true, lmtp: true, config, wrapper: wrapper.unwrap_or_default(), ..Options::default() };
    World::with(options)
}

/// A client that says nothing.
fn silent() -> Script {
    Script::default()
}

/// Base64, 25 MiB of it, in frames as Postfix's or in lines.
fn large_milter(mebibytes: usize) -> Script {
    let block = frame(
        b'B',
        "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5\r\n".repeat(900).as_bytes(),
    );
    let blocks = mebibytes * MIB / block.len();
    Script { start: [negotiation(), milter_head()].concat(), block, blocks, end: frame(b'E', b"") }
}

fn large_lmtp(mebibytes: usize) -> Script {
    let block =
        "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5\r\n".repeat(900).into_bytes();
    let blocks = mebibytes * MIB / block.len();
    Script { start: lmtp_head(), block, blocks, end: b".\r\n".to_vec() }
}

/// The service's own counter of connections it closed.
fn hung_up(world: &World, door: &str, why: &str) -> u64 {
    let metrics = String::from_utf8(http_get(world.admin_port, "/metrics").1).unwrap();
    let name = format!("activity_milter_hung_up_total{{door=\"{door}\",why=\"{why}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(name.as_str()));
    line.unwrap_or_else(|| panic!("{name}\n{metrics}")).parse().unwrap()
}

/// A client of the milter in the middle of an envelope.
fn envelope() -> Script {
    let start = [negotiation(), frame(b'M', b"<anna@mycompany.test>\0")].concat();
    Script { start, ..Script::default() }
}

fn come(crowd: &Crowd, count: usize) {
    wait_for("the crowd", || (crowd.present().0 == count).then_some(()));
}

// D4, D13.
#[test]
fn a_full_milter_door_defers_our_mail_and_lets_others_pass() {
    let world = world(vec![("milter", "max_sessions = 3".to_owned())], None);
    let crowd = Crowd::gather(&world.milter_listen(), 3, envelope(), Pace { most: 1000, pause: TICK });
    wait_for("three seats to be taken", || {
        let metrics = String::from_utf8(http_get(world.admin_port, "/metrics").1).unwrap();
        metrics.contains("activity_milter_sessions{door=\"milter\"} 3\n").then_some(())
    });
    let ours = honest(&world, Way::Postfix);
    assert!(matches(&ours, "451 4.3.2 <mycompany@severamail.test>: *[busy]"), "{ours}");
    assert!(honest(&world, Way::Other).starts_with("250"));
    assert_eq!(crowd.present(), (3, 3), "nobody was idle for long enough");
    drop(crowd);
    taken_after(&world, Way::Postfix);
}

// D4, D14.
#[test]
fn who_is_idle_makes_room_at_both_doors() {
    let lines = |most: usize| format!("max_sessions = {most}\nidle_when_full = \"1s\"");
    let world = world(vec![("milter", lines(3)), ("lmtp", lines(3))], None);
    for (door, listen, way, most) in
        [("milter", world.milter_listen(), Way::Postfix, 19), ("lmtp", world.lmtp_listen(), Way::Lmtp, 3)]
    {
        let crowd = Crowd::gather(&listen, 40, silent(), Pace { most: 1, pause: TICK });
        come(&crowd, 40);
        taken_after(&world, way);
        assert!(hung_up(&world, door, "idle") > 0, "{door}");
        wait_for("the others to be closed", || (crowd.present().1 <= most).then_some(()));
        if door == "lmtp" {
            for words in [
                "421 4.3.2 too many connections (lmtp.max_sessions)",
                "421 4.3.2 localhost: others need the connection [busy]",
            ] {
                wait_for(words, || {
                    let is_told = |heard: &Vec<u8>| String::from_utf8_lossy(heard).contains(words);
                    crowd.answers().iter().any(is_told).then_some(())
                });
            }
        }
        drop(crowd);
        taken_after(&world, way);
    }
    taken_after(&world, Way::Other);
}

// D12.
#[test]
fn a_message_that_comes_too_slowly_ends_its_connection() {
    let world = world(vec![("message", "patience = \"2s\"".to_owned())], None);
    let milter = Script { block: frame(b'B', b"a byte at a time"), blocks: 1_000, ..large_milter(0) };
    let lmtp = Script { block: b"a byte at a time\r\n".to_vec(), blocks: 1_000, ..large_lmtp(0) };
    for (door, listen, script) in
        [("milter", world.milter_listen(), milter), ("lmtp", world.lmtp_listen(), lmtp)]
    {
        let crowd = Crowd::gather(&listen, 20, script, Pace { most: 100, pause: TICK });
        come(&crowd, 20);
        wait_for("the slow ones to be closed", || (crowd.present().1 == 0).then_some(()));
        assert_eq!(hung_up(&world, door, "slow"), 20, "{door}");
        if door == "lmtp" {
            for heard in crowd.answers() {
                let heard = String::from_utf8_lossy(&heard);
                assert!(
                    heard.ends_with(
                        "421 4.4.2 localhost: the message comes too slowly (message.patience)\r\n"
                    ),
                    "{heard}"
                );
            }
        }
        assert_eq!(Heard::default().ask(&world, Way::Postfix).split(' ').next(), Some("250"));
    }
}

// D5.
#[test]
fn memory_has_bounds_whatever_clients_send() {
    let mut world = world(Vec::new(), None);
    let pid = world.milter().id();
    let before = Taken::now(pid);
    let mut most = before;
    // All but the last byte of the largest frames.
    let frame = frame(b'B', &[b'x'; 128 * 1024]);
    let script = Script { start: negotiation(), end: frame[..frame.len() - 1].to_vec(), ..Script::default() };
    let pace = Pace { most: 200_000, pause: TICK };
    let crowd = Crowd::gather(&world.milter_listen(), 500, script, pace);
    come(&crowd, 500);
    let mut heard = Heard::default();
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        for way in [Way::Postfix, Way::Other, Way::Lmtp] {
            heard.ask(&world, way);
        }
        most = most.or(Taken::now(pid));
    }
    assert_eq!(heard.answers.keys().collect::<Vec<_>>(), ["250"], "{heard:?}");
    let grown = most.mebibytes - before.mebibytes;
    assert!(grown < 48.0, "{grown} MiB for 500 frames of 128 KiB");
    drop(crowd);
    taken_after(&world, Way::Postfix);
}

// D5, D14.
#[test]
fn who_holds_memory_and_stands_still_gives_it_to_others() {
    let world = world(vec![("message", "memory_limit = \"2 MiB\"".to_owned())], None);
    let body = large_milter(1).block;
    let script = Script { blocks: 0, end: body[..body.len() - 1].to_vec(), ..large_milter(1) };
    let pair = [frame(b'B', &[b'x'; 60_000]), script.end.clone()].concat();
    let crowd = Crowd::gather(
        &world.milter_listen(),
        60,
        Script { end: pair, ..script },
        Pace { most: 200_000, pause: TICK },
    );
    come(&crowd, 60);
    let large = [eml("plain"), ("text ".repeat(14) + "\n").repeat(900).into_bytes()].concat();
    let send = || world.lmtp().mail("anna@mycompany.test", &["mycompany@severamail.test"], &large).1;
    let busy =
        wait_for("the memory to be used up", || Some(send()).filter(|answer| answer.ends_with("[busy]")));
    assert!(busy.starts_with("451 4.3.2 "), "{busy}");
    // They are still there, and honest mail is taken again.
    wait_for("honest mail to be taken", || Some(send()).filter(|answer| answer.starts_with("250")));
    taken_after(&world, Way::Postfix);
    assert!(hung_up(&world, "milter", "slow") > 0);
    drop(crowd);
}

// D5, D14.
#[test]
fn many_large_messages_are_taken_or_deferred() {
    let mut world = world(vec![("message", "memory_limit = \"2 MiB\"".to_owned())], None);
    let pid = world.milter().id();
    let before = Taken::now(pid);
    for (listen, script) in [(world.milter_listen(), large_milter(1)), (world.lmtp_listen(), large_lmtp(1))] {
        let lmtp = listen == world.lmtp_listen();
        let crowd = Crowd::gather(&listen, 60, script, Pace { most: 50_000, pause: Duration::ZERO });
        let mut most = Taken::default();
        let is_answered = |heard: &Vec<u8>| match lmtp {
            true => heard.windows(8).any(|w| w == b"recorded") || heard.ends_with(b"[busy]\r\n"),
            false => heard.ends_with(b"d") || heard.ends_with(b"[busy]\0"),
        };
        let answers = wait_for("an answer for everybody", || {
            most = most.or(Taken::now(pid));
            let answers = crowd.answers();
            (answers.len() == 60 && answers.iter().all(is_answered)).then_some(answers)
        });
        let busy = answers.iter().filter(|heard| heard.windows(6).any(|w| w == b"[busy]")).count();
        assert!(busy < 60, "none was taken");
        let grown = most.mebibytes - before.mebibytes;
        assert!(grown < 64.0, "{grown} MiB");
        drop(crowd);
    }
    taken_after(&world, Way::Postfix);
    taken_after(&world, Way::Lmtp);
}

// D4, D14.
#[test]
fn few_descriptors_are_kept_for_the_mail_that_was_taken() {
    let mut world = world(Vec::new(), Some(64));
    let pid = world.milter().id();
    assert!(world.milter().log().contains("64 open files are allowed"), "{}", world.milter().log());
    let admin = format!("inet:127.0.0.1:{}", world.admin_port);
    for (listen, script) in
        [(world.milter_listen(), envelope()), (world.lmtp_listen(), silent()), (admin, silent())]
    {
        let crowd = Crowd::gather(&listen, 100, script, Pace { most: 1000, pause: TICK });
        let mut heard = Heard::default();
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until || crowd.present().0 < 90 {
            for way in [Way::Postfix, Way::Lmtp] {
                heard.ask(&world, way);
            }
            let taken = Taken::now(pid).descriptors;
            assert!(taken <= 56, "{taken} descriptors leave nothing for the work");
        }
        let is_an_answer = |answer: &str| answer.starts_with('2') || answer.starts_with('4');
        assert!(heard.answers.keys().all(|answer| is_an_answer(answer)), "{heard:?}");
        drop(crowd);
        for way in [Way::Postfix, Way::Other, Way::Lmtp, Way::Admin] {
            taken_after(&world, way);
        }
    }
    let large = [eml("plain"), ("y".repeat(70) + "\n").repeat(6_000).into_bytes()].concat();
    let (_, answer) = world.mail("anna@mycompany.test", &["mycompany@severamail.test"], &large);
    assert!(answer.starts_with("250"), "{answer}");
    let log = world.milter().log();
    assert!(!log.contains("accept failed") && !log.contains("panicked"), "{log}");
}

// D4.
#[test]
fn the_admin_door_has_places_of_its_own() {
    let mut world = world(Vec::new(), None);
    let pid = world.milter().id();
    let before = Taken::now(pid).descriptors;
    let crowd = Crowd::gather(
        &format!("inet:127.0.0.1:{}", world.admin_port),
        200,
        silent(),
        Pace { most: 1, pause: TICK },
    );
    come(&crowd, 200);
    wait_for("the others to be turned away", || (crowd.present().1 <= 64).then_some(()));
    assert!(Taken::now(pid).descriptors <= before + 64 + 8);
    let refused = crowd.answers().iter().filter(|heard| heard.starts_with(b"HTTP/1.1 503 ")).count();
    assert!(refused > 100, "{refused} heard that there is no room");
    for way in [Way::Postfix, Way::Other, Way::Lmtp] {
        assert!(honest(&world, way).starts_with("250"), "{way:?}");
    }
    // Who waits for an answer gets one: a silent one makes room.
    taken_after(&world, Way::Admin);
}

#[test]
fn check_says_how_many_files_may_be_open() {
    let world = world(Vec::new(), None);
    let (_, out, _) = world.command(&["check"]);
    assert!(out.contains("open files"), "{out}");
    let output = std::process::Command::new("prlimit")
        .arg("--nofile=256")
        .arg(program())
        .arg("--config")
        .arg(world.config_path())
        .arg("check")
        .output()
        .unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    let line = out.lines().find(|line| line.contains("open files")).unwrap_or_default();
    assert!(line.starts_with("warn") && line.contains("256 open files are allowed"), "{out}");
}

/// One attack of the long form.
struct Attack {
    name: &'static str,
    door: &'static str,
    clients: usize,
    script: Script,
    pace: Pace,
    descriptors: Option<u32>,
    lasts: Duration,
}

impl Attack {
    fn ways(&self) -> &'static [Way] {
        &[Way::Postfix, Way::Other, Way::Lmtp, Way::Admin]
    }

    fn run(&self) {
        let mut world = world(vec![("message", "max_size = \"50 MiB\"".to_owned())], self.descriptors);
        let listen = match self.door {
            "milter" => world.milter_listen(),
            "lmtp" => world.lmtp_listen(),
            _ => format!("inet:127.0.0.1:{}", world.admin_port),
        };
        let pid = world.milter().id();
        let before = Taken::now(pid);
        let mut most = before;
        let crowd = Crowd::gather(&listen, self.clients, self.script.clone(), self.pace);
        let began = Instant::now();
        let mut heard: Vec<Heard> = vec![Heard::default(); self.ways().len()];
        let whole =
            self.script.start.len() + self.script.block.len() * self.script.blocks + self.script.end.len();
        let mut asked = Instant::now();
        let mut turn = 0;
        while began.elapsed() < self.lasts {
            most = most.or(Taken::now(pid));
            if self.script.blocks > 0 && crowd.present().0 == self.clients && crowd.has_sent(whole) {
                break;
            }
            if asked.elapsed() > Duration::from_millis(250) {
                let at = turn % self.ways().len();
                heard[at].ask(&world, self.ways()[at]);
                asked = Instant::now();
                turn += 1;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let lasted = began.elapsed();
        let (come, present) = crowd.present();
        let mut kinds = BTreeMap::new();
        for answer in crowd.answers() {
            let text = String::from_utf8_lossy(&answer).into_owned();
            let last = text
                .trim_end_matches(['\r', '\n', '\0'])
                .rsplit(['\n', '\0'])
                .next()
                .unwrap_or_default()
                .to_owned();
            let code: String = last.chars().filter(|c| c.is_ascii_graphic()).take(10).collect();
            let reason = last.rfind('[').map_or(String::new(), |at| last[at..].to_owned());
            *kinds.entry(format!("{code} {reason}")).or_insert(0) += 1;
        }
        drop(crowd);
        let well: Vec<_> = self.ways().iter().map(|way| taken_after(&world, *way)).collect();
        println!(
            "\n## {} x {} at {}, ulimit -n {:?}, for {:.0} s",
            self.clients,
            self.name,
            self.door,
            self.descriptors,
            lasted.as_secs_f64()
        );
        println!(
            "resident {:.0} -> {:.0} MiB, descriptors {} -> {}; {come} came, {present} were there at the end",
            before.mebibytes, most.mebibytes, before.descriptors, most.descriptors
        );
        println!("the crowd heard {kinds:?}");
        for ((way, heard), well) in self.ways().iter().zip(&heard).zip(&well) {
            println!(
                "{way:?}: {:?}, longest {:.1} s; taken {:.2} s after the end",
                heard.answers,
                heard.longest.as_secs_f64(),
                well.as_secs_f64()
            );
        }
        let log = world.milter().log();
        for event in ["accept failed", "panicked", "ERROR"] {
            println!("log lines with {event}: {}", log.lines().filter(|line| line.contains(event)).count());
        }
        let cpu = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let ticks: u64 = cpu
            .rsplit(") ")
            .next()
            .unwrap()
            .split(' ')
            .skip(11)
            .take(2)
            .map(|t| t.parse::<u64>().unwrap())
            .sum();
        println!("CPU {:.1} s", ticks as f64 / 100.0);
    }
}

#[test]
#[ignore = "minutes; make torture-doors"]
fn torture() {
    let only = std::env::var("ONLY").unwrap_or_default();
    let second = Duration::from_secs(1);
    let lasts = Duration::from_secs(std::env::var("LASTS").map_or(60, |s| s.parse().unwrap()));
    let (slow, fast) = (Pace { most: 1, pause: second }, Pace { most: 64 * 1024, pause: Duration::ZERO });
    let stalled = |script: Script| {
        let end = script.block[..60_000].to_vec();
        Script { blocks: 0, end, ..script }
    };
    let negotiated = || Script { start: negotiation(), ..Script::default() };
    let huge = || Script { end: frame(b'B', &[b'x'; 128 * 1024])[..128 * 1024].to_vec(), ..negotiated() };
    let request = Script {
        start: b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n".to_vec(),
        block: b"X: y\r\n".to_vec(),
        blocks: 1_000,
        end: Vec::new(),
    };
    let attack = |clients, name, door, script, pace| Attack {
        clients,
        name,
        door,
        script,
        pace,
        descriptors: None,
        lasts,
    };
    let few =
        |door, script| Attack { descriptors: Some(64), ..attack(500, "few-descriptors", door, script, slow) };
    let large = |door, script| Attack { lasts: lasts * 10, ..attack(1000, "25-MiB", door, script, fast) };
    let attacks = [
        attack(2000, "silent", "milter", silent(), slow),
        attack(2000, "silent", "lmtp", silent(), slow),
        attack(2000, "silent", "admin", silent(), slow),
        attack(2000, "negotiated", "milter", negotiated(), fast),
        attack(2000, "byte-a-second", "milter", large_milter(1), slow),
        attack(2000, "byte-a-second", "lmtp", large_lmtp(1), slow),
        attack(2000, "byte-a-second", "admin", request, slow),
        attack(2000, "stalled-body", "milter", stalled(large_milter(1)), fast),
        attack(2000, "stalled-body", "lmtp", stalled(large_lmtp(1)), fast),
        attack(2000, "stalled-frame-of-128-KiB", "milter", huge(), fast),
        few("milter", negotiated()),
        few("lmtp", silent()),
        few("admin", silent()),
        large("milter", large_milter(25)),
        large("lmtp", large_lmtp(25)),
    ];
    for attack in attacks.iter().filter(|attack| {
        only.is_empty()
            || only.split(',').any(|only| format!("{}:{}", attack.name, attack.door).starts_with(only))
    }) {
        attack.run();
    }
}
