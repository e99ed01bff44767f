//! The torture: everything that can befall one machine, at once and by a seed, while mail comes through every door:
//! "every 250 once".
//!
//! In: a seed, how often the service is killed, how many messages. Clients send them by SMTP through a Postfix, by LMTP, and
//! by the milter's protocol, and try again until they hear 250 or 5xx, so that no other answer loses anything. A schedule
//! (`schedule`) kills, ends, freezes and reloads the service, stops, slows and breaks the backend, keeps the directory from
//! it, fills its disk, fails its syncs and writes, takes its descriptors, and steps its clock (`stage`). Out: a tally, one for
//! each engine.
//! Promise: what is judged is what came to the backend's socket, before anything there puts twice and twice together
//! (`tests/history`). The seed is printed first, and gives the same schedule again; what the machine makes of it in which
//! moment is another matter, so a fault may need a few runs of its seed.
//!
//! Short ones are part of `make test`; `make torture` kills 200 times over 20,000 messages of each engine, and prints the
//! table of docs/torture.md.

mod schedule;
mod stage;

use stage::{Engine, Stage};
use std::{
    fmt::Debug,
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

fn number<T: FromStr<Err: Debug>>(name: &str, usual: T) -> T {
    // `make` gives those that nobody set as nothing.
    let given = std::env::var(name).ok().filter(|given| !given.is_empty());
    given.map_or(usual, |given| given.parse().unwrap())
}

fn play(engine: Engine, kills: usize, messages: usize) {
    // In a thread of its own: what is mounted is seen by it and what it starts, and by nobody else.
    let played = std::thread::spawn(move || play_here(engine, kills, messages)).join();
    played.unwrap_or_else(|why| std::panic::resume_unwind(why));
}

fn play_here(engine: Engine, kills: usize, messages: usize) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("SEED", u64::from(now.subsec_nanos()));
    let (kills, messages) = (number("KILLS", kills), number("MESSAGES", messages));
    println!("{engine:?}: SEED={seed} KILLS={kills} MESSAGES={messages} make torture");
    let mut stage = Stage::start(engine);
    for step in schedule::schedule(seed, kills) {
        stage.suffer(step);
    }
    stage.end(messages);
}

/// Q52: some hundred messages, and a few kills.
#[test]
fn a_file_keeps_every_250_once() {
    play(Engine::Sqlite, 6, 300);
}

/// Q52: the same where the queue is in a database.
#[test]
fn a_database_keeps_every_250_once() {
    play(Engine::Postgres, 6, 300);
}

/// Q52: 200 kills and 20,000 messages.
#[test]
#[ignore = "a quarter of an hour; make torture"]
fn whole_file() {
    play(Engine::Sqlite, 200, 20_000);
}

/// Q52: the same where the queue is in a database.
#[test]
#[ignore = "a quarter of an hour; make torture"]
fn whole_database() {
    play(Engine::Postgres, 200, 20_000);
}
