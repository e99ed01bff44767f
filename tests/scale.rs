//! The model of `docs/scale.md`: the simulation says what the formulas say, wherever there is one, and the page what both say.
//!
//! `UPDATE_PLAN=1 cargo test --test scale` writes the page's plan anew, by the figures that are measured there.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "../benches/scale/plan.rs"]
mod plan;
#[path = "../benches/scale/queueing.rs"]
mod queueing;
#[path = "../benches/scale/simulation.rs"]
mod simulation;

use queueing::{Turns, busy, drain, finds_all_busy, wait};
use simulation::{Case, Law, Station, run};

/// Within so many parts of a hundred.
#[track_caller]
fn near(found: f64, expected: f64, percent: f64, what: &str) {
    let off = (found - expected).abs() / expected * 100.0;
    assert!(off <= percent, "{what}: {found}, and not {expected} ({off:.1} % off)");
}

/// From tables of Erlang's C, and what can be worked out by hand.
#[test]
fn the_formulas_say_what_is_known() {
    near(finds_all_busy(0.5, 1.0, 1), 0.5, 0.01, "M/M/1");
    near(finds_all_busy(1.0, 1.0, 2), 1.0 / 3.0, 0.01, "M/M/2");
    near(finds_all_busy(8.0, 1.0, 10), 0.4092, 0.1, "M/M/10");
    // M/M/1: busy / (1 - busy) times the service; M/D/1: half of it.
    near(wait(0.8, 1.0, 1, (1.0, 1.0)), 4.0, 0.01, "M/M/1");
    near(wait(0.8, 1.0, 1, (1.0, 0.0)), 2.0, 0.01, "M/D/1");
    assert_eq!(wait(2.0, 1.0, 2, (1.0, 1.0)), f64::INFINITY);
    near(busy(30.0, 0.1, 4), 0.75, 0.01, "busy");
    near(drain(1000.0, 1500.0, 10.0), 20.0, 0.01, "drain");
    assert_eq!(drain(2.0, 2.0, 1.0), f64::INFINITY);
    let turns = Turns { turns: 2, most: 64, base: 0.004, each: 0.0001 };
    near(turns.capacity(), 2.0 * 64.0 / 0.0104, 0.01, "capacity");
    near(turns.rate_of(1), 1.0 / 0.0041, 0.01, "a lone caller");
    near(turns.rate_of(16), 16.0 / 0.0048, 0.01, "sixteen");
    near(turns.rate_of(1000), turns.capacity(), 0.01, "as many as you like");
}

/// Draws have the mean and the variation that they are asked for.
#[test]
fn laws_are_what_they_say() {
    for variation in [0.0, 0.25, 1.0, 4.0] {
        let (law, mut random) = (Law { mean: 3.0, variation }, fastrand::Rng::with_seed(7));
        let draws: Vec<f64> = (0..400_000).map(|_| law.draw(&mut random)).collect();
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        let variance = draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / draws.len() as f64;
        near(mean, 3.0, 1.0, "mean");
        assert!(
            (variance / 9.0 - variation).abs() <= 0.03 * variation + 1e-9,
            "{variation}: {}",
            variance / 9.0
        );
    }
}

#[test]
fn the_simulation_agrees_with_the_formulas() {
    // Servers, how busy, the variation of times: exact for M/M/c and M/G/1.
    for (servers, part, variation) in
        [(1, 0.5, 1.0), (1, 0.8, 1.0), (1, 0.8, 0.0), (1, 0.7, 4.0), (4, 0.75, 1.0), (32, 0.9, 1.0)]
    {
        let time = Law { mean: 0.01, variation };
        let rate = part * f64::from(servers) / time.mean;
        let done = run(&Case::new(rate, 800_000, vec![Station::Servers { count: servers, time }]));
        let expected = wait(rate, time.mean, servers, (1.0, variation));
        near(done.waits[0], expected, 5.0, &format!("{servers} servers, busy {part}, variation {variation}"));
        assert_eq!(done.times.len(), 800_000);
        near(done.times.iter().sum::<f64>() / 800_000.0, expected + time.mean, 5.0, "all in all");
    }
    // Two M/M/1 in a row: the second one's arrivals are as the first one's (Burke).
    let station = |mean| Station::Servers { count: 1, time: Law { mean, variation: 1.0 } };
    let done = run(&Case::new(60.0, 800_000, vec![station(0.01), station(0.012)]));
    near(done.waits[0], wait(60.0, 0.01, 1, (1.0, 1.0)), 5.0, "the first of two");
    near(done.waits[1], wait(60.0, 0.012, 1, (1.0, 1.0)), 5.0, "the second of two");
}

/// G/G/c is an approximation: near enough to plan with.
#[test]
fn the_approximation_is_near() {
    for (arrivals, times) in [(1.0, 0.25), (1.0, 4.0), (4.0, 1.0)] {
        let (time, servers) = (Law { mean: 0.01, variation: times }, 8);
        let mut case = Case::new(640.0, 800_000, vec![Station::Servers { count: servers, time }]);
        case.arrivals.variation = arrivals;
        let expected = wait(640.0, 0.01, servers, (arrivals, times));
        near(run(&case).waits[0], expected, 25.0, &format!("G/G/8, {arrivals} and {times}"));
    }
}

/// Turns gather what the formula says, and as many get through as it says.
#[test]
fn turns_gather() {
    let turns = Turns { turns: 1, most: 1_000_000, base: 0.004, each: 0.0001 };
    let done = run(&Case::new(5000.0, 400_000, vec![Station::Together(turns)]));
    near(done.pieces[0], turns.pieces(5000.0), 5.0, "pieces of a turn");
    // More than it can: all turns are full.
    let full = Turns { turns: 2, most: 64, ..turns };
    let done = run(&Case::new(2.0 * full.capacity(), 400_000, vec![Station::Together(full)]));
    near(done.pieces[0], 64.0, 1.0, "full turns");
    let took = 400_000.0 / full.capacity();
    near(*done.times.last().unwrap(), took / 2.0, 5.0, "the last one waits for half of it");
}

/// What gathered in a gap is gone when the formula says.
#[test]
fn a_gap_is_drained() {
    let station = Station::Servers { count: 10, time: Law { mean: 0.01, variation: 1.0 } };
    let mut case = Case::new(600.0, 200_000, vec![station]);
    case.gap = Some((100.0, 20.0));
    let done = run(&case);
    near(done.drained, drain(600.0, 1000.0, 20.0), 10.0, "drained after");
    near(done.longest as f64, 12_000.0, 5.0, "gathered");
    // Nobody has waited before it and long after it.
    assert!(done.part(50) < 0.1 && done.part(99) > 10.0, "{} {}", done.part(50), done.part(99));
}

/// The same seed, the same numbers; another one, others.
#[test]
fn a_seed_is_a_run() {
    let station = Station::Servers { count: 2, time: Law { mean: 0.01, variation: 1.0 } };
    let case = Case::new(150.0, 10_000, vec![station]);
    assert_eq!(run(&case).times, run(&case.clone()).times);
    assert_ne!(run(&case).times, run(&Case { seed: 2, ..case }).times);
}

/// The page's plan is what the model makes of the page's figures.
#[test]
fn the_plan_is_current() {
    const BOUNDS: [&str; 2] = ["<!-- plan -->\n\n", "\n<!-- end of plan -->"];
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/scale.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(BOUNDS[0]).unwrap();
    let (found, after) = rest.split_once(BOUNDS[1]).unwrap();
    let plan = plan::simulate(&page);
    if std::env::var_os("UPDATE_PLAN").is_some() {
        std::fs::write(path, format!("{before}{}{plan}{}{after}", BOUNDS[0], BOUNDS[1])).unwrap();
        return;
    }
    assert!(found == plan, "docs/scale.md is not current: UPDATE_PLAN=1 cargo test --test scale\n{plan}");
}
