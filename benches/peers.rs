//! `make bench`: activity-milter beside what an administrator would take instead, all in one run, so that the ratios count
//! and the numbers do not. Prints a table, JSON (`target/bench.json`), and with `WRITE=1` also `docs/benchmarks.md`.
//!
//! A peer that cannot be built here is reported as missing. `RUNS` (3): runs of which the median counts. `ONLY=courier,…`:
//! only these parts (`BACKLOGS=10000,30000` for other sizes of the courier's): `protocol`, `large`, `memory`, `hostile`, `courier`, `enqueue`, `postfix`, `directory`, `log`,
//! `shared`.

#![allow(clippy::unwrap_used, missing_docs)] // a panic is this program's way to fail

#[path = "../tests/support/database.rs"]
mod database;
mod hostile;
mod load;
#[allow(dead_code)] // the other programs need the rest
#[path = "scale/pair.rs"]
mod pair;
#[path = "../tests/support/mod.rs"]
mod support;

use activity_milter::{
    directory::{Directory, FileDirectory},
    mail::Address,
};
use load::{Figures, Load, run};
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    fs::{self, File},
    hint::black_box,
    io::{Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use support::{
    free_port, wait_for,
    world::{Options, World},
};

const OTHER: &str = "dora@elsewhere.test";
const PIPE: &str = "pipe(8) to curl";
const MY: &str = "mycompany@severamail.test";

fn runs() -> usize {
    std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(3)
}

fn wanted(part: &str) -> bool {
    std::env::var("ONLY").map_or(true, |only| only.split(',').any(|wanted| wanted == part))
}

/// The median by a measure.
fn median<T: Clone>(mut all: Vec<T>, of: impl Fn(&T) -> f64) -> T {
    all.sort_by(|a, b| of(a).total_cmp(&of(b)));
    all[all.len() / 2].clone()
}

/// A filter that is measured.
struct Filter {
    name: &'static str,
    socket: String,
    pid: u32,
    _child: Option<Killed>,
    world: Option<World>,
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// User and system time of a process.
fn cpu(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|f| f.parse().unwrap())
        .collect();
    Duration::from_millis((fields[0] + fields[1]) * 10) // 100 ticks a second
}

/// A line of `/proc/PID/status`, in MiB.
fn memory(pid: u32, line: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = status.lines().find_map(|l| l.strip_prefix(line)).unwrap().trim_start_matches(':').trim();
    kib.split(' ').next().unwrap().parse::<f64>().unwrap() / 1024.0
}

/// Everything that comes out, for the table and the JSON.
#[derive(Default)]
struct Report {
    lines: String,
    json: Vec<Value>,
}

impl Report {
    fn line(&mut self, text: &str) {
        println!("{text}");
        let _ = writeln!(self.lines, "{text}");
    }

    /// A figure that is wanted: what was measured, what is to be reached, whether it is.
    fn reach(&mut self, what: &str, value: f64, unit: &str, least: Option<f64>, most: Option<f64>) {
        let ok = least.is_none_or(|least| value >= least) && most.is_none_or(|most| value <= most);
        let bound = match (least, most) {
            (Some(least), _) => format!(">= {least}"),
            (_, Some(most)) => format!("<= {most}"),
            _ => String::new(),
        };
        let mark = if ok { "reached" } else { "NOT REACHED" };
        self.line(&format!("{what:<66} {value:>9.2} {unit:<4} {bound:<8} {mark}"));
        self.json.push(
            json!({"what": what, "value": value, "unit": unit, "least": least, "most": most, "reached": ok}),
        );
    }
}

/// Peers in C; none if there is no compiler or no libmilter.
fn build_c(scratch: &Path) -> Option<PathBuf> {
    let program = scratch.join("filter");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/filter.c");
    let built = Command::new("cc")
        .arg("-O2")
        .arg("-o")
        .arg(&program)
        .arg(source)
        .args(["-lmilter", "-lpthread"])
        .status();
    built.is_ok_and(|status| status.success()).then_some(program)
}

fn start_peer(name: &'static str, mut command: Command, socket: &Path) -> Filter {
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    let child = Killed(child);
    wait_for("a peer's socket", || std::os::unix::net::UnixStream::connect(socket).ok());
    let _ = Command::new("chmod").arg("666").arg(socket).status();
    Filter { name, socket: format!("unix:{}", socket.display()), pid, _child: Some(child), world: None }
}

fn start_c(program: &Path, scratch: &Path, what: &'static str) -> Filter {
    let socket = scratch.join(format!("{what}.sock"));
    let mut command = Command::new(program);
    command.arg(format!("unix:{}", socket.display())).arg(what);
    let name = if what == "data" { "C, accepts at DATA" } else { "C, reads all, stores nothing" };
    start_peer(name, command, &socket)
}

/// pymilter, with a backend that takes everything.
fn start_python(scratch: &Path, url: &str) -> Option<Filter> {
    let works = Command::new("/usr/bin/python3").args(["-c", "import Milter"]).stderr(Stdio::null()).status();
    if !works.is_ok_and(|status| status.success()) {
        return None;
    }
    let socket = scratch.join("python.sock");
    let mut command = Command::new("/usr/bin/python3");
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/filter.py"));
    command.arg(format!("unix:{}", socket.display())).arg(url);
    Some(start_peer("pymilter, parses and POSTs", command, &socket))
}

/// Ours, without a backend that answers: the queue is measured, not the courier.
fn start_ours(more: &[(&'static str, &str)]) -> Filter {
    let mut config = vec![
        ("backend", "retry_first = \"1h\"".to_owned()),
        ("backend", "retry_max = \"1h\"".to_owned()),
        ("milter", "max_sessions = 2000".to_owned()),
        ("log", "level = \"info\"".to_owned()), // as it is run; into a file beside the queue
    ];
    config.extend(more.iter().map(|(table, line)| (*table, (*line).to_owned())));
    let mut world = World::with(Options {
        without_sink: true,
        without_milter: true,
        postfix: vec!["smtpd_milters =".to_owned()],
        config,
        ..Options::default()
    });
    world.start_quiet_milter();
    let (socket, pid) = (world.milter_listen(), world.milter().id());
    Filter { name: "activity-milter", socket, pid, _child: None, world: Some(world) }
}

/// A backend that takes everything and remembers nothing, in this process.
fn start_backend() -> (u16, Arc<AtomicU64>) {
    let taken = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&taken);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let count = Arc::clone(&count);
            thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                let (mut buffer, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
                loop {
                    let end = loop {
                        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                            break at + 4;
                        }
                        match stream.read(&mut chunk) {
                            Ok(length) if length > 0 => buffer.extend_from_slice(&chunk[..length]),
                            _ => return,
                        }
                    };
                    let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
                    let length =
                        head.split("content-length: ").nth(1).and_then(|rest| rest.split('\r').next());
                    let whole = end + length.map_or(0, |length| length.parse::<usize>().unwrap());
                    while buffer.len() < whole {
                        match stream.read(&mut chunk) {
                            Ok(length) if length > 0 => buffer.extend_from_slice(&chunk[..length]),
                            _ => return,
                        }
                    }
                    buffer.drain(..whole);
                    count.fetch_add(1, Ordering::Relaxed);
                    if stream.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").is_err() {
                        return;
                    }
                }
            });
        }
    });
    (port, taken)
}

/// A load for a filter: so many messages of so many bytes to one recipient, over so many connections.
fn load_for(filter: &Filter, recipient: &str, connections: usize, messages: u64, size: usize) -> Load {
    Load {
        socket: filter.socket.clone(),
        connections,
        messages,
        per_session: 100,
        size,
        share: f64::from(u8::from(recipient == MY)),
        integration: MY.to_owned(),
        other: OTHER.to_owned(),
    }
}

/// Runs it; every message must end in `expected`.
fn run_all(load: &Load, expected: char) -> Figures {
    let figures = run(load);
    assert_eq!(figures.answers, [(expected, load.messages)].into());
    figures
}

/// What is measured of a filter.
struct Case<'a> {
    filter: &'a Filter,
    recipient: &'static str,
    connections: usize,
    messages: u64,
    expected: char,
}

/// The figures of each run, and microseconds of CPU for a message.
type Measured = Vec<(Figures, f64)>;

/// Runs the cases by turns, so that a machine that has other things to do for a while does it to all of them.
fn by_turns<const N: usize>(cases: &[Case<'_>; N]) -> [Measured; N] {
    let mut measured = [const { Vec::new() }; N];
    for _ in 0..runs() {
        for (case, measured) in cases.iter().zip(&mut measured) {
            let load = load_for(case.filter, case.recipient, case.connections, case.messages, 4096);
            let before = cpu(case.filter.pid);
            let figures = run_all(&load, case.expected);
            let used = (cpu(case.filter.pid) - before).as_secs_f64() * 1e6 / case.messages as f64;
            measured.push((figures, used));
        }
    }
    measured
}

/// The median of messages a second.
fn rate(measured: &Measured) -> f64 {
    median(measured.iter().map(|(figures, _)| figures.per_second).collect(), |rate| *rate)
}

/// The median of the ratios of runs that followed each other.
fn ratio(ours: &Measured, theirs: &Measured) -> f64 {
    let ratios = ours.iter().zip(theirs).map(|((ours, _), (theirs, _))| ours.per_second / theirs.per_second);
    median(ratios.collect(), |ratio| *ratio)
}

fn protocol(report: &mut Report, c: Option<&Path>, scratch: &Path, backend: u16) {
    report.line("\n## Milter protocol alone (no Postfix)\n");
    report.line(&format!(
        "{:<34} {:<18} {:>5} {:>10} {:>9} {:>9} {:>9} {:>8}",
        "", "mail", "conn", "messages/s", "p50 ms", "p95 ms", "p99 ms", "CPU us"
    ));
    let row = |report: &mut Report, case: &Case<'_>, measured: &Measured| {
        let ms = |of: fn(&Figures) -> Duration| {
            median(measured.iter().map(|(figures, _)| of(figures).as_secs_f64() * 1e3).collect(), |ms| *ms)
        };
        let (p50, p95, p99) = (ms(|f| f.p50), ms(|f| f.p95), ms(|f| f.p99));
        let rate = rate(measured);
        let used = median(measured.iter().map(|(_, used)| *used).collect(), |used| *used);
        let what = if case.recipient == MY { "integration, 4 KB" } else { "other" };
        let (name, connections) = (case.filter.name, case.connections);
        report.line(&format!(
            "{name:<34} {what:<18} {connections:>5} {rate:>10.0} {p50:>9.2} {p95:>9.2} {p99:>9.2} {used:>8.0}"
        ));
        report
            .json
            .push(json!({"filter": name, "mail": what, "connections": connections, "per_second": rate,
            "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "cpu_us": used}));
        (p99, used)
    };
    let peers = c.map(|c| (start_c(c, scratch, "data"), start_c(c, scratch, "all")));
    let mut reached = Vec::new();
    for (connections, messages) in [(1, 5_000), (16, 40_000), (64, 40_000)] {
        let filter = start_ours(&[]);
        let other =
            |filter, messages| Case { filter, recipient: OTHER, connections, messages, expected: 'a' };
        let integration =
            |filter, messages| Case { filter, recipient: MY, connections, messages, expected: 'd' };
        let (ours_other, ours) = (other(&filter, messages * 2), integration(&filter, messages));
        let (p99, used) = match &peers {
            Some((data, all)) => {
                let cases = [ours_other, other(data, messages)];
                let figures = by_turns(&cases);
                for (case, figures) in cases.iter().zip(&figures) {
                    row(report, case, figures);
                }
                reached.push(("other mail", "accepts at DATA", connections, ratio(&figures[0], &figures[1])));
                let cases = [ours, integration(all, messages)];
                let figures = by_turns(&cases);
                let rows: Vec<_> = cases.iter().zip(&figures).map(|(case, f)| row(report, case, f)).collect();
                reached.push(("integration mail", "reads all", connections, ratio(&figures[0], &figures[1])));
                rows[0]
            }
            None => {
                let cases = [ours_other, ours];
                let figures = by_turns(&cases);
                row(report, &cases[0], &figures[0]);
                row(report, &cases[1], &figures[1])
            }
        };
        if connections == 16 {
            reached.push(("p99", "ms", connections, p99));
            reached.push(("CPU", "us", connections, used));
        }
    }
    if peers.is_none() {
        report.line("C peers: missing (no cc, or no libmilter)");
    }
    match start_python(scratch, &format!("http://127.0.0.1:{backend}/")) {
        Some(filter) => {
            let case =
                [Case { filter: &filter, recipient: MY, connections: 16, messages: 3000, expected: 'd' }];
            row(report, &case[0], &by_turns(&case)[0]);
        }
        None => report.line("pymilter: missing (python3-milter)"),
    }
    report.line("");
    for (what, against, connections, value) in reached {
        match (what, connections) {
            ("p99", _) => {
                report.reach("integration mail, 16 connections, p99", value, against, None, Some(10.0))
            }
            ("CPU", _) => report.reach(
                "integration mail, 16 connections, CPU of a message",
                value,
                against,
                None,
                Some(80.0),
            ),
            _ => {
                let least = match (what, connections) {
                    (_, 1) => 1.0,
                    ("other mail", _) => 2.5,
                    _ => 1.5,
                };
                let what = format!("{what}, {connections} connections / C that {against}");
                report.reach(&what, value, "x", Some(least), None);
            }
        }
    }
}

/// Files of that size, written and synced by as many threads: what a disk gives.
fn disk(directory: &Path, threads: usize, files: usize, size: usize) -> f64 {
    let started = Instant::now();
    thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let bytes = vec![b'x'; size];
                for file in 0..files / threads {
                    let mut file = File::create(directory.join(format!("{thread}-{file}"))).unwrap();
                    file.write_all(&bytes).unwrap();
                    file.sync_all().unwrap();
                }
            });
        }
    });
    files as f64 / started.elapsed().as_secs_f64()
}

fn large(report: &mut Report) {
    report.line("\n## Messages of 1 MB, durable\n");
    const THREADS: usize = 16;
    const FILES: usize = 800;
    let all = (0..runs())
        .map(|_| {
            let filter = start_ours(&[]);
            let scratch = tempfile::tempdir().unwrap();
            let loop_ = disk(scratch.path(), THREADS, FILES, 1_000_000);
            let load = load_for(&filter, MY, THREADS, FILES as u64, 1_000_000);
            (run_all(&load, 'd').per_second, loop_)
        })
        .collect();
    let (ours, loop_) = median(all, |(ours, loop_)| ours / loop_);
    report.line(&format!(
        "activity-milter {ours:.0}/s; {THREADS} threads that write and fsync files {loop_:.0}/s"
    ));
    report.reach("1 MB messages / threads that write and fsync", ours / loop_, "x", Some(0.35), None);
}

fn in_memory(report: &mut Report) {
    report.line("\n## Memory\n");
    let filter = start_ours(&[]);
    let path = filter.socket.strip_prefix("unix:").unwrap();
    // Negotiated and idle, each with a transaction that has begun.
    let mut all = Vec::new();
    for _ in 0..1000 {
        let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        stream.write_all(&[0, 0, 0, 13, b'O', 0, 0, 0, 6, 0, 0, 1, 0xff, 0, 0x1f, 0xff, 0xff]).unwrap();
        stream.read_exact(&mut [0; 17]).unwrap();
        let mail = b"<anna@mycompany.test>\0";
        stream
            .write_all(&[&u32::try_from(mail.len() + 1).unwrap().to_be_bytes()[..], b"M", mail].concat())
            .unwrap();
        all.push(stream);
    }
    thread::sleep(Duration::from_millis(500));
    report.reach("1,000 idle sessions, resident", memory(filter.pid, "VmRSS"), "MiB", None, Some(64.0));
    drop(all);
    drop(filter);
    let filter = start_ours(&[("message", "memory_limit = \"64 MiB\"")]);
    run_all(&load_for(&filter, MY, 100, 100, 25 * 1024 * 1024), 'd');
    report.reach(
        "100 messages of 25 MiB at once, peak",
        memory(filter.pid, "VmHWM"),
        "MiB",
        None,
        Some(96.0),
    );
}

/// A world whose queue holds that many activities of 4 KB of so many tenants, put there by one message and copied.
fn backlog(count: u64, tenants: u32, port: u16) -> World {
    let mut world = World::with(Options {
        without_sink: true,
        without_milter: true,
        postfix: vec!["smtpd_milters =".to_owned()],
        config: vec![
            ("log", "level = \"info\"".to_owned()), // as it is run; into a file beside the queue
            ("backend", format!("url = \"http://127.0.0.1:{}/\"", free_port())),
            ("queue", "max_items = 2000000\nmax_items_per_tenant = 2000000".to_owned()),
        ],
        ..Options::default()
    });
    world.start_quiet_milter();
    let (socket, pid) = (world.milter_listen(), world.milter().id());
    let filter = Filter { name: "activity-milter", socket, pid, _child: None, world: None };
    run_all(&load_for(&filter, MY, 1, 1, 4096), 'd');
    world.stop_milter();
    let database = rusqlite::Connection::open(world.root.join("queue/queue.db")).unwrap();
    // As the service would have put them: an item and a key each, due by and by.
    database
        .execute_batch(&format!(
            "PRAGMA synchronous = OFF;
             BEGIN;
             CREATE TEMP TABLE n AS WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {rows})
                 SELECT n, randomblob(32) AS key FROM n;
             INSERT INTO item (id, key, tenant, activity, due, accepted_at, text, cuts, body)
                 SELECT n + 10, n.key, printf('t-%d', n % {tenants}),
                        replace(activity, 'b3:' || lower(hex(first.key)), 'b3:' || lower(hex(n.key))),
                        due + n % 1000, accepted_at, text, cuts, body
                 FROM n, (SELECT * FROM item LIMIT 1) AS first;
             INSERT INTO key_0 (key, item) SELECT key, n + 10 FROM n ORDER BY key;
             UPDATE item SET due = accepted_at, attempts = 0;
             COMMIT;
             PRAGMA wal_checkpoint(TRUNCATE);",
            rows = count - 1
        ))
        .unwrap();
    drop(database);
    // What the kernel still has to write would be written while the courier is measured.
    File::open(world.root.join("queue/queue.db")).unwrap().sync_all().unwrap();
    let text = fs::read_to_string(world.config_path()).unwrap();
    let from = text.split("url = \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    fs::write(world.config_path(), text.replace(&from, &format!("http://127.0.0.1:{port}/"))).unwrap();
    world
}

fn courier(report: &mut Report) {
    report.line("\n## Courier, to a backend that takes everything\n");
    let mut rates = Vec::new();
    // The same numbers are drained of all, one after the other, so that only the backlog differs.
    let backlogs = std::env::var("BACKLOGS").unwrap_or_else(|_| format!("{},1000000", 60_000 * runs()));
    let backlogs: Vec<u64> = backlogs.split(',').map(|count| count.parse().unwrap()).collect();
    let cases = backlogs.iter().map(|count| (*count, 100)).chain([(backlogs[0], 1)]);
    for (count, tenants) in cases {
        let (port, taken) = start_backend();
        let mut world = backlog(count, tenants, port);
        let started = Instant::now();
        world.start_quiet_milter();
        let ready = started.elapsed().as_secs_f64();
        let each = (count / runs() as u64).min(60_000);
        let drained = (1..=runs() as u64).map(|run| {
            let (from, at) = (taken.load(Ordering::Relaxed), Instant::now());
            wait_for("the courier", || (taken.load(Ordering::Relaxed) >= each * run).then_some(()));
            (taken.load(Ordering::Relaxed) - from) as f64 / at.elapsed().as_secs_f64()
        });
        let rate = median(drained.collect(), |rate| *rate);
        let pid = world.milter().id();
        report.line(&format!(
            "{count:>9} waiting of {tenants}: ready after {ready:.2} s, {each} and {each} at {rate:.0}/s, resident {:.0} MiB",
            memory(pid, "VmRSS")
        ));
        if count == 1_000_000 {
            report.reach("start with 1,000,000 queued", ready, "s", None, Some(2.0));
        } else if std::env::var_os("BACKLOGS").is_none() && tenants > 1 {
            // The file shrinks once everything is taken.
            let path = world.root.join("queue/queue.db");
            let size = || fs::metadata(&path).unwrap().len() as f64 / 1e6;
            let full = size();
            wait_for("the queue file to shrink", || (size() < full / 4.0).then_some(()));
            report.line(&format!("          the queue file shrank from {full:.0} MB to {:.0} MB", size()));
        }
        rates.push(rate);
    }
    report.reach("courier, 4 KB activities to a local backend", rates[0], "/s", Some(3000.0), None);
    let of_one = rates.pop().unwrap();
    report.reach("a backlog of one tenant / of a hundred", of_one / rates[0], "x", Some(0.8), None);
    if let [small, large] = rates[..] {
        report.reach("a backlog of 1,000,000 / a small one", large / small, "x", Some(0.9), None);
    }
}

/// Integration mail into a queue that a million wait in, beside an empty one.
fn enqueue(report: &mut Report) {
    report.line("\n## Into a queue of 1,000,000, 16 connections, 4 KB\n");
    let mut world = backlog(1_000_000, 100, free_port());
    world.start_quiet_milter();
    let (socket, pid) = (world.milter_listen(), world.milter().id());
    let full = Filter { name: "1,000,000 queued", socket, pid, _child: None, world: Some(world) };
    let empty = Filter { name: "empty", ..start_ours(&[]) };
    let case = |filter| Case { filter, recipient: MY, connections: 16, messages: 20_000, expected: 'd' };
    let [into_full, into_empty] = by_turns(&[case(&full), case(&empty)]);
    for (name, measured) in [(full.name, &into_full), (empty.name, &into_empty)] {
        let rate = rate(measured);
        report.line(&format!("{name:<20} {rate:>10.0}/s"));
    }
    report.reach(
        "into a queue of 1,000,000 / into an empty one",
        ratio(&into_full, &into_empty),
        "x",
        Some(0.8),
        None,
    );
}

/// Integration mail with the log at level info, beside level error, and beside no trace: all into a file beside the queue,
/// while what was taken is delivered. Not a line is lost.
fn log(report: &mut Report) {
    report.line("\n## Log in a file beside the queue, deliveries going on, 16 connections, 4 KB\n");
    const MESSAGES: u64 = 20_000;
    let service = |name, level: &str, trace: &str| {
        let (port, taken) = start_backend();
        let url = format!("url = \"http://127.0.0.1:{port}/\"");
        let filter = Filter { name, ..start_ours(&[("backend", &url), ("log", level), ("trace", trace)]) };
        (filter, taken, Measured::new())
    };
    let mut all = [
        service("level info", "level = \"info\"", ""),
        service("level error", "level = \"error\"", ""),
        service("level info, no trace", "level = \"info\"", "keep = \"0\""),
    ];
    for run in 1..=runs() as u64 {
        for (filter, taken, measured) in &mut all {
            let before = cpu(filter.pid);
            let figures = run_all(&load_for(filter, MY, 16, MESSAGES, 4096), 'd');
            wait_for("the deliveries", || (taken.load(Ordering::Relaxed) == run * MESSAGES).then_some(()));
            let used = (cpu(filter.pid) - before).as_secs_f64() * 1e6 / MESSAGES as f64;
            measured.push((figures, used));
        }
    }
    for (filter, _, measured) in &all {
        let used = median(measured.iter().map(|(_, used)| *used).collect(), |used| *used);
        let rate = rate(measured);
        report.line(&format!("{:<20} {rate:>10.0}/s {used:>8.0} us CPU with delivery", filter.name));
    }
    let world = all[0].0.world.as_ref().unwrap();
    let said = |words: &str| {
        let log = fs::read_to_string(world.root.join("milter.log")).unwrap();
        log.lines().filter(|line| line.contains(words)).count() as u64
    };
    for words in [" recorded ", " delivered "] {
        wait_for(words, || (said(words) == MESSAGES * runs() as u64).then_some(()));
    }
    let rate_beside = |other: usize| ratio(&all[0].2, &all[other].2);
    report.reach("integration mail, log level info / error", rate_beside(1), "x", Some(0.9), None);
    report.reach("integration mail, with the trace / without", rate_beside(2), "x", None, None);
}

/// The service with a queue that several machines share, beside one with a file of its own: from its door to the backend, and the
/// same behind a Postfix.
fn shared(report: &mut Report) {
    const MESSAGES: u64 = 10_000;
    report.line(
        "\n## A queue in PostgreSQL with a synchronous standby, beside a file; deliveries going on, 4 KB\n",
    );
    let pair = pair::Pair::new();
    let lines = [("queue", "type = \"postgres\""), ("queue", "require_replication = true")];
    let url = format!("url = \"{}\"", pair.url());
    let of_pair: Vec<(&'static str, &str)> = lines.into_iter().chain([("queue", url.as_str())]).collect();
    let service = |name, more: &[(&'static str, &str)]| {
        let (port, taken) = start_backend();
        let backend = format!("url = \"http://127.0.0.1:{port}/\"");
        let filter = Filter { name, ..start_ours(&[&[("backend", backend.as_str())], more].concat()) };
        (filter, taken)
    };
    let all = [service("sqlite", &[]), service("postgres", &of_pair)];
    report.line(&format!("{:<28} {:>12} {:>16}", "", "accepted/s", "delivered/s"));
    for connections in [16, 64] {
        let mut seen = [const { (Vec::new(), Vec::new()) }; 2];
        for _ in 0..runs() {
            for ((filter, taken), (accepted, delivered)) in all.iter().zip(&mut seen) {
                let (before, began) = (taken.load(Ordering::Relaxed), Instant::now());
                accepted.push(run_all(&load_for(filter, MY, connections, MESSAGES, 4096), 'd').per_second);
                wait_for("the deliveries", || {
                    (taken.load(Ordering::Relaxed) == before + MESSAGES).then_some(())
                });
                delivered.push(MESSAGES as f64 / began.elapsed().as_secs_f64());
            }
        }
        for ((filter, _), (accepted, delivered)) in all.iter().zip(&seen) {
            let middle = |all: &Vec<f64>| median(all.clone(), |rate| *rate);
            let name = format!("{}, {connections} connections", filter.name);
            report.line(&format!("{name:<28} {:>12.0} {:>16.0}", middle(accepted), middle(delivered)));
        }
        let [sqlite, postgres] = seen;
        let ratio = |ours: Vec<f64>, theirs: Vec<f64>| {
            median(ours.into_iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect(), |ratio| *ratio)
        };
        let what = format!("postgres / sqlite, {connections} connections");
        report.reach(&format!("{what}, accepted"), ratio(postgres.0, sqlite.0), "x", Some(0.5), None);
        report.reach(&format!("{what}, delivered"), ratio(postgres.1, sqlite.1), "x", Some(0.5), None);
    }
    drop(all);
    let behind = |name, more: &[(&'static str, &str)]| {
        let (port, _) = start_backend();
        let mut config = vec![
            ("backend", format!("url = \"http://127.0.0.1:{port}/\"")),
            ("log", "level = \"info\"".to_owned()),
        ];
        config.extend(more.iter().map(|(table, line)| (*table, (*line).to_owned())));
        let postfix = ["default_transport = discard:", "relay_transport = discard:"];
        let postfix =
            postfix.into_iter().chain(["smtpd_client_connection_count_limit = 0"]).map(str::to_owned);
        let options =
            Options { without_sink: true, config, postfix: postfix.collect(), ..Options::default() };
        let mut world = World::with(options);
        let pid = Some(world.milter().id());
        Through { name, world, to: MY, messages: THROUGH, _peer: None, pid }
    };
    let all = [behind("behind Postfix, sqlite", &[]), behind("behind Postfix, postgres", &of_pair)];
    let mut seen = [const { Vec::new() }; 2];
    for _ in 0..runs() {
        for (case, seen) in all.iter().zip(&mut seen) {
            seen.push(case.measure(false).0);
        }
    }
    for (case, seen) in all.iter().zip(&seen) {
        report.line(&format!("{:<28} {:>12.0}", case.name, median(seen.clone(), |rate| *rate)));
    }
    let [sqlite, postgres] = seen;
    let ratios = postgres.into_iter().zip(sqlite).map(|(ours, theirs)| ours / theirs);
    let ratio = median(ratios.collect(), |ratio| *ratio);
    report.reach("behind Postfix: postgres / sqlite", ratio, "x", Some(0.5), None);
}

/// Messages of a run through Postfix.
const THROUGH: usize = 4000;

/// A Postfix with or without a filter, to be measured.
struct Through {
    name: &'static str,
    world: World,
    to: &'static str,
    messages: usize,
    _peer: Option<Filter>,
    /// The filter's process, if there is one.
    pid: Option<u32>,
}

impl Through {
    /// Messages a second, once: to the end of the queue where it is Postfix's pipe that delivers, else to the last reply.
    /// And microseconds of the filter's CPU for a message.
    fn measure(&self, to_the_end: bool) -> (f64, f64) {
        let before = self.pid.map(cpu);
        let started = Instant::now();
        let status = Command::new("/usr/sbin/smtp-source")
            .args(["-s", "20", "-l", "4096", "-f", "anna@mycompany.test", "-t", self.to, "-S", "rate"])
            .args(["-m", &self.messages.to_string(), &format!("inet:127.0.0.1:{}", self.world.postfix.port)])
            .status()
            .unwrap();
        assert!(status.success());
        let accepted = started.elapsed();
        wait_for("Postfix to empty its queue", || self.world.postfix.queued().is_empty().then_some(()));
        let elapsed = if to_the_end { started.elapsed() } else { accepted };
        let used = self.pid.zip(before).map_or(0.0, |(pid, before)| (cpu(pid) - before).as_secs_f64());
        (self.messages as f64 / elapsed.as_secs_f64(), used * 1e6 / self.messages as f64)
    }
}

fn through_postfix(report: &mut Report, c: Option<&Path>, backend: u16) {
    report.line("\n## Through Postfix: smtp-source -s 20 -l 4096, in_flow_delay = 0, transport discard\n");
    let discard = |milter: &str| -> Vec<String> {
        [
            "default_transport = discard:",
            "relay_transport = discard:",
            "smtpd_client_connection_count_limit = 0",
        ]
        .map(str::to_owned)
        .into_iter()
        .chain((milter != "ours").then(|| format!("smtpd_milters = {milter}")))
        .collect()
    };
    let plain = |milter: &str| {
        World::with(Options {
            postfix: discard(milter),
            without_milter: true,
            without_sink: true,
            ..Options::default()
        })
    };
    let ours = || {
        let config = vec![
            ("backend", "retry_first = \"1h\"".to_owned()),
            ("backend", "retry_max = \"1h\"".to_owned()),
        ];
        World::with(Options { postfix: discard("ours"), without_sink: true, config, ..Options::default() })
    };
    let through = |name, world: World, to, peer: Option<Filter>| {
        if let Some(peer) = &peer {
            world.postfix.set("smtpd_milters", &peer.socket);
            world.postfix.reload();
        }
        let pid = peer.as_ref().map(|peer| peer.pid);
        Through { name, world, to, messages: THROUGH, _peer: peer, pid }
    };
    let through_ours = |name, to| {
        let mut world = ours();
        let pid = Some(world.milter().id());
        Through { pid, ..through(name, world, to, None) }
    };
    let socket = |world: &World| world.root.join("postfix/queue/activity-milter");
    let mut all = vec![
        through("no milter", plain(""), OTHER, None),
        through_ours("activity-milter, other mail", OTHER),
    ];
    if let Some(c) = c {
        let world = plain("");
        let peer = start_c(c, &socket(&world), "data");
        all.push(through("C, accepts at DATA, other mail", world, OTHER, Some(peer)));
    }
    all.push(through_ours("activity-milter, integration mail, durable", MY));
    if let Some(c) = c {
        let world = plain("");
        let peer = start_c(c, &socket(&world), "all");
        all.push(through("C, reads all and discards, integration mail", world, MY, Some(peer)));
    }
    let url = format!("http://127.0.0.1:{backend}/");
    let world = plain("");
    match start_python(&socket(&world), &url) {
        Some(python) => all.push(through("pymilter, parses and POSTs", world, MY, Some(python))),
        None => report.line("pymilter: missing (python3-milter)"),
    }
    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_ok() {
        let world = plain("");
        let script = world.root.join("pipe.sh");
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/pipe.sh"), &script).unwrap();
        let entry = format!("curl unix - n n - 20 pipe user=nobody argv={} {url}", script.display());
        world.postfix.tool("postconf", &["-M", &format!("curl/unix={entry}")]);
        world.postfix.set("relay_transport", "curl:");
        world.postfix.set("curl_destination_recipient_limit", "1");
        world.postfix.reload();
        all.push(Through { messages: 600, ..through(PIPE, world, MY, None) });
    } else {
        report.line("pipe(8) to curl: missing (curl)");
    }
    let mut rates = std::collections::BTreeMap::<_, Vec<(f64, f64)>>::new();
    for _ in 0..runs() {
        for case in &all {
            rates.entry(case.name).or_default().push(case.measure(case.name == PIPE));
        }
    }
    report.line(&format!("{:<52} {:>10} {:>14}", "", "messages/s", "CPU us, filter"));
    for case in &all {
        let rate = median(rates[case.name].iter().map(|(rate, _)| *rate).collect(), |rate| *rate);
        let used = median(rates[case.name].iter().map(|(_, used)| *used).collect(), |used| *used);
        report.line(&format!("{:<52} {rate:>10.0} {used:>14.0}", case.name));
        report.json.push(json!({"through_postfix": case.name, "per_second": rate, "cpu_us": used}));
    }
    report.line("");
    let ratio = |ours: &str, theirs: &str| {
        let pairs = rates.get(ours)?.iter().zip(rates.get(theirs)?);
        Some(median(pairs.map(|((ours, _), (theirs, _))| ours / theirs).collect(), |ratio| *ratio))
    };
    for (what, ours, theirs, least) in [
        (
            "integration mail / C that reads all and discards",
            "activity-milter, integration mail, durable",
            "C, reads all and discards, integration mail",
            1.0,
        ),
        ("integration mail / pipe(8) to curl", "activity-milter, integration mail, durable", PIPE, 5.0),
        (
            "other mail / C that accepts at DATA",
            "activity-milter, other mail",
            "C, accepts at DATA, other mail",
            1.0,
        ),
    ] {
        match ratio(ours, theirs) {
            Some(ratio) => report.reach(&format!("through Postfix: {what}"), ratio, "x", Some(least), None),
            None => report.line(&format!("through Postfix: {what}: peer missing")),
        }
    }
}

/// Loads a directory file of that many addresses: seconds to load it, and nanoseconds to look one up.
fn directory(report: &mut Report) {
    report.line("\n## Directory file\n");
    const LOOKS: usize = 200_000;
    for addresses in [1_000, 100_000] {
        let mut text = "[[tenant]]\nprefix = \"mycompany\"\nid = \"t-1\"\n".to_owned();
        for n in 0..addresses / 2 {
            write!(text, "[[tenant.user]]\nid = \"u-{n}\"\naddresses = [\"u{n}@a.test\", \"u{n}@b.test\"]\n")
                .unwrap();
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let started = Instant::now();
        let directory = FileDirectory::open(file.path()).unwrap();
        let load = started.elapsed().as_secs_f64();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let look = runtime.block_on(async {
            let tenant = directory.tenant("mycompany").await.unwrap().unwrap();
            let asked: Vec<[Address; 1]> = (0..1000)
                .map(|n| [Address::parse(&format!("u{}@b.test", n * addresses / 2000)).unwrap()])
                .collect();
            let started = Instant::now();
            for n in 0..LOOKS {
                black_box(directory.people(&tenant, &asked[n % asked.len()]).await.unwrap().persons);
            }
            started.elapsed().as_nanos() as f64 / LOOKS as f64
        });
        report
            .line(&format!("{addresses:>7} addresses: loaded in {load:.3} s, a look-up takes {look:.0} ns"));
    }
}

/// The load generator alone, at any filter: `cargo bench --bench peers -- load --socket unix:/path --pid $(pidof …)`.
#[derive(clap::Parser)]
struct Arguments {
    /// `unix:/path` or `inet:address:port`
    #[arg(long)]
    socket: String,
    /// Connections at a time
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Messages of each connection
    #[arg(long, default_value_t = 1000)]
    messages: u64,
    /// Messages of one session; then the connection is opened anew
    #[arg(long, default_value_t = 100)]
    per_session: u64,
    /// Bytes of a body
    #[arg(long, default_value_t = 4096)]
    size: usize,
    /// How much of the mail is integration mail, from 0 to 1
    #[arg(long, default_value_t = 1.0)]
    share: f64,
    /// An integration address
    #[arg(long, default_value = MY)]
    integration: String,
    /// Any other address
    #[arg(long, default_value = OTHER)]
    other: String,
    /// The filter's process: its CPU time and peak memory are reported
    #[arg(long)]
    pid: Option<u32>,
    /// What `cargo bench` says
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    fn from_command_line() -> Option<Self> {
        let mut arguments = std::env::args().skip(1).peekable();
        let load = arguments.peek().is_some_and(|argument| argument == "load");
        load.then(|| clap::Parser::parse_from(arguments))
    }

    /// Prints the figures as JSON.
    fn run(self) {
        let before = self.pid.map(cpu);
        let load = Load {
            socket: self.socket,
            connections: self.connections,
            messages: self.messages * self.connections as u64,
            per_session: self.per_session,
            size: self.size,
            share: self.share,
            integration: self.integration,
            other: self.other,
        };
        let Figures { per_second, p50, p95, p99, answers } = run(&load);
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let used = self.pid.zip(before).map(|(pid, before)| (cpu(pid) - before).as_secs_f64());
        let report = json!({"messages": load.messages, "messages_per_second": per_second, "p50_ms": ms(p50),
            "p95_ms": ms(p95), "p99_ms": ms(p99), "answers": answers, "filter_cpu_seconds": used,
            "filter_peak_mib": self.pid.map(|pid| memory(pid, "VmHWM"))});
        println!("{report:#}");
    }
}

fn main() {
    if std::env::args().any(|arg| arg == "--test" || arg == "--list") {
        return; // `cargo test --benches`: measuring is for `make bench`
    }
    if let Some(arguments) = Arguments::from_command_line() {
        return arguments.run();
    }
    let scratch = tempfile::tempdir().unwrap();
    fs::set_permissions(scratch.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let c = build_c(scratch.path());
    let (backend, _) = start_backend();
    let mut report = Report::default();
    if wanted("protocol") {
        protocol(&mut report, c.as_deref(), scratch.path(), backend);
    }
    if wanted("large") {
        large(&mut report);
    }
    if wanted("memory") {
        in_memory(&mut report);
    }
    if wanted("hostile") {
        hostile::measure(&mut report);
    }
    if wanted("courier") {
        courier(&mut report);
    }
    if wanted("enqueue") {
        enqueue(&mut report);
    }
    if wanted("postfix") {
        through_postfix(&mut report, c.as_deref(), backend);
    }
    if wanted("log") {
        log(&mut report);
    }
    if wanted("shared") {
        shared(&mut report);
    }
    if wanted("directory") {
        directory(&mut report);
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    fs::write(target.join("bench.json"), serde_json::to_string_pretty(&report.json).unwrap()).unwrap();
    if std::env::var_os("WRITE").is_some() {
        write(&report.lines);
    }
}

/// What stands between these in the page is written by [`write`].
const MEASURED: &str = "<!-- measured -->";
const END_MEASURED: &str = "<!-- end of measured -->";

/// `docs/benchmarks.md`, with the machine, the date and the commit.
fn write(lines: &str) {
    let out = |program: &str, args: &[&str]| {
        let output =
            Command::new(program).args(args).output().map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).trim().to_owned()
    };
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let measured = format!(
        "{MEASURED}\n- Runs: {}, of which the medians are shown\n- Machine: {} cores, {}, Linux {}\n- Date: {}\n- Commit: {}\n\
         - {}\n\n```text{lines}```\n{END_MEASURED}",
        runs(),
        thread::available_parallelism().map_or(0, usize::from),
        model.trim_start_matches([' ', '\t', ':']),
        out("uname", &["-r"]),
        out("date", &["-u", "+%Y-%m-%d"]),
        out("git", &["rev-parse", "--short", "HEAD"]),
        out("postconf", &["-d", "mail_version"]).replace("mail_version =", "Postfix"),
    );
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/benchmarks.md");
    let text = fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(MEASURED).unwrap();
    let (_, after) = rest.split_once(END_MEASURED).unwrap();
    fs::write(path, [before, &measured, after].concat()).unwrap();
}
