//! `make bench`: messages a second through one private Postfix, with and without the milter, by Postfix's own
//! smtp-source. All in one run, so the ratios count and the numbers do not. And how long a directory file takes.

#![allow(clippy::unwrap_used)] // a panic is this program's way to fail

#[path = "../tests/support/mod.rs"]
mod support;

use activity_milter::{
    directory::{Directory, FileDirectory},
    mail::Address,
};
use std::{fmt::Write as _, fs, hint::black_box, process::Command, time::Instant};
use support::{
    wait_for,
    world::{Options, World},
};

const MESSAGES: usize = 4000;
const SESSIONS: usize = 20;
const SIZE: usize = 4096;
const RUNS: usize = 3;

/// Messages a second, the median of three runs.
fn rate(world: &World, to: &str) -> f64 {
    let mut rates: Vec<f64> = (0..RUNS)
        .map(|_| {
            let started = Instant::now();
            let status = Command::new("/usr/sbin/smtp-source")
                .args(["-s", &SESSIONS.to_string(), "-m", &MESSAGES.to_string(), "-l", &SIZE.to_string()])
                .args(["-f", "anna@mycompany.test", "-t", to, "-S", "rate"])
                .arg(format!("inet:127.0.0.1:{}", world.postfix.port))
                .status()
                .unwrap();
            assert!(status.success());
            let elapsed = started.elapsed();
            // The next run starts with an empty queue.
            wait_for("Postfix to empty its queue", || world.postfix.queued().is_empty().then_some(()));
            MESSAGES as f64 / elapsed.as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[RUNS / 2]
}

/// Loads a directory file of that many addresses: seconds to load it, and nanoseconds to look one up.
fn directory(addresses: usize) -> (f64, f64) {
    const LOOKS: usize = 200_000;
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
    (load, look)
}

fn main() {
    println!("directory file   addresses   load (s)   look-up (ns)");
    for addresses in [1_000, 100_000] {
        let (load, look) = directory(addresses);
        println!("{addresses:>26} {load:>10.3} {look:>14.0}");
    }
    // Whatever is not taken by the milter is thrown away, so that delivery does not measure.
    let discard = [
        "default_transport = discard:",
        "relay_transport = discard:",
        "smtpd_client_connection_count_limit = 0",
    ];
    let postfix: Vec<String> = discard.map(str::to_owned).into();
    let bare = World::with(Options {
        postfix: postfix.iter().cloned().chain(["smtpd_milters =".to_owned()]).collect(),
        without_milter: true,
        without_sink: true,
        ..Options::default()
    });
    let without = rate(&bare, "dora@elsewhere.test");
    drop(bare);
    // Nobody listens where the backend should be, and the next attempt is far away: only the queue is measured.
    let patient =
        vec![("backend", "retry_first = \"1h\"".to_owned()), ("backend", "retry_max = \"1h\"".to_owned())];
    let options = Options { postfix, without_sink: true, ..Options::default() };
    let world = World::with(Options { config: patient, ..options.clone() });
    let other = rate(&world, "dora@elsewhere.test");
    let integration = rate(&world, "mycompany@severamail.test");
    drop(world);
    let world = World::with(Options { without_sink: false, ..options });
    let delivered = rate(&world, "mycompany@severamail.test");
    let drained = Instant::now();
    wait_for("the courier to empty the queue", || {
        (world.activities().len() == MESSAGES * RUNS).then_some(())
    });
    let drain = drained.elapsed().as_secs_f64();
    println!("smtp-source -s {SESSIONS} -m {MESSAGES} -l {SIZE}, median of {RUNS} runs, in_flow_delay = 0");
    println!("{:<44} {:>8} {:>8}", "", "mails/s", "ratio");
    for (what, rate) in [
        ("no milter, transport discard", without),
        ("milter, other people's mail", other),
        ("milter, integration mail, durable, DISCARD", integration),
        ("the same, with courier and sink at work", delivered),
    ] {
        println!("{what:<44} {rate:>8.0} {:>8.2}", rate / without);
    }
    println!("the queue was empty {drain:.1} s after the last message");
}
