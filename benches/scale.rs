//! What a queue that several machines share does in a second, beside `sqlite`, and what follows from it: `docs/scale.md`.
//!
//! `cargo bench --bench scale` does all of it. `-- rates`: both engines by turns; `nodes`: one, two and four; `databases`: one and
//! two; `stages`: what a message takes at each; `simulate`: the model, by the figures of that page, which needs no server.
//! `ROUNDS=5` of `COUNT=10000` messages. The servers are private ones (packaging/install-deps). The log goes to a file.

#![allow(clippy::unwrap_used, missing_docs)] // a panic is this program's way to fail

#[path = "../tests/support/database.rs"]
mod database;
#[allow(dead_code)] // the other programs need the rest
mod inputs;
#[path = "scale/pair.rs"]
mod pair;
#[path = "scale/plan.rs"]
mod plan;
#[path = "scale/queueing.rs"]
mod queueing;
#[path = "scale/rates.rs"]
mod rates;
#[path = "scale/simulation.rs"]
mod simulation;
#[path = "scale/stages.rs"]
mod stages;

use activity_milter::observe;
use pair::Pair;
use rates::{Mail, Node, deliveries, median, puts, runtime};
use std::{process::Command, sync::Arc, time::Instant};

/// How much of what is asked for.
fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |number| number.parse().unwrap())
}

/// The log at level info, as it is run, and into a file: it goes to standard error, so that is another process's.
fn with_a_log() {
    let file = tempfile::NamedTempFile::new_in("/tmp").unwrap();
    let mut own = Command::new(std::env::current_exe().unwrap());
    own.args(std::env::args_os().skip(1)).env("SCALE_LOGS", "1").stderr(file.reopen().unwrap());
    if !own.status().unwrap().success() {
        let said = std::fs::read_to_string(file.path()).unwrap();
        let last: Vec<&str> = said.lines().rev().take(20).collect();
        last.iter().rev().for_each(|line| eprintln!("{line}"));
        std::process::exit(1);
    }
}

fn main() {
    if std::env::var_os("SCALE_LOGS").is_none() {
        return with_a_log();
    }
    observe::start(&observe::Settings { format: observe::Format::Text, ..Default::default() });
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let is_wanted = |part: &str| words.is_empty() || words.iter().any(|word| word == part);
    if is_wanted("rates") {
        beside_sqlite();
    }
    if is_wanted("nodes") {
        nodes();
    }
    if is_wanted("stages") {
        stages::stages();
    }
    if is_wanted("databases") {
        databases();
    }
    if is_wanted("simulate") {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/scale.md")).unwrap();
        print!("{}", plan::simulate(&page));
    }
}

/// Both engines by turns.
fn beside_sqlite() {
    let (rounds, count) = (number("ROUNDS", 5), number("COUNT", 10_000));
    let (runtime, pair, mail) = (runtime(), Pair::new(), Arc::new(Mail::new()));
    let engines = [vec![Node::new(None)], vec![Node::new(Some(pair.server()))]];
    println!(
        "| | at once | sqlite | postgres, a synchronous standby | ratio |\n| --- | --- | --- | --- | --- |"
    );
    for at_once in [16, 64] {
        let mut seen = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
        for _ in 0..rounds {
            for (nodes, [put, delivered]) in engines.iter().zip(&mut seen) {
                put.push(runtime.block_on(puts(nodes, &mail, count, at_once)).rate);
                delivered.push(runtime.block_on(deliveries(nodes, count, at_once)));
            }
        }
        let [sqlite, postgres] = seen.map(|seen| seen.map(median));
        for (at, what) in ["puts/s", "deliveries/s"].iter().enumerate() {
            let (one, other) = (sqlite[at], postgres[at]);
            println!("| {what} | {at_once} | {one:.0} | {other:.0} | {:.2} |", other / one);
        }
    }
}

/// Tenants over two databases, each with a node, beside two nodes of one.
fn databases() {
    let (rounds, count) = (number("ROUNDS", 5), number("COUNT", 10_000));
    let (runtime, mail) = (runtime(), Arc::new(Mail::new()));
    let pairs = [Pair::new(), Pair::new(), Pair::new()];
    let of_one = Node::several(2, &pairs[0].server());
    let of_two = [Node::several(1, &pairs[1].server()), Node::several(1, &pairs[2].server())];
    let mut seen = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
    for _ in 0..rounds {
        seen[0][0].push(runtime.block_on(puts(&of_one, &mail, count, 16)).rate);
        seen[0][1].push(runtime.block_on(deliveries(&of_one, count, 16)));
        let began = Instant::now();
        let halves = async {
            tokio::join!(puts(&of_two[0], &mail, count / 2, 16), puts(&of_two[1], &mail, count / 2, 16))
        };
        runtime.block_on(halves);
        seen[1][0].push(count as f64 / began.elapsed().as_secs_f64());
        let began = Instant::now();
        let halves = async {
            tokio::join!(deliveries(&of_two[0], count / 2, 16), deliveries(&of_two[1], count / 2, 16))
        };
        runtime.block_on(halves);
        seen[1][1].push(count as f64 / began.elapsed().as_secs_f64());
    }
    println!("| two nodes, 16 at once at each | puts/s | deliveries/s |\n| --- | --- | --- |");
    for (name, [put, delivered]) in ["one database", "two, tenants split"].iter().zip(seen) {
        println!("| {name} | {:.0} | {:.0} |", median(put), median(delivered));
    }
}

/// One, two and four nodes at one database, by turns.
fn nodes() {
    let (rounds, count) = (number("ROUNDS", 5), number("COUNT", 10_000));
    let (runtime, pair, mail) = (runtime(), Pair::new(), Arc::new(Mail::new()));
    let file = vec![Node::new(None)];
    let several: Vec<Vec<Node>> = [1, 2, 4].map(|count| Node::several(count, &pair.server())).into();
    let mut seen: Vec<[Vec<f64>; 2]> = vec![<[Vec<f64>; 2]>::default(); 4];
    for _ in 0..rounds {
        for (nodes, [put, delivered]) in [&file].into_iter().chain(&several).zip(&mut seen) {
            put.push(runtime.block_on(puts(nodes, &mail, count, 16)).rate);
            delivered.push(runtime.block_on(deliveries(nodes, count, 16)));
        }
    }
    println!("| 16 at once at each | puts/s | deliveries/s |\n| --- | --- | --- |");
    let names = ["sqlite", "postgres, 1 intake, 1 courier", "2 and 2", "4 and 4"];
    for (name, [put, delivered]) in names.iter().zip(seen) {
        println!("| {name} | {:.0} | {:.0} |", median(put), median(delivered));
    }
}
