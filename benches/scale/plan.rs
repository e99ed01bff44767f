//! What 1,000, 10,000 and 100,000 messages a second need, by the figures of `docs/scale.md`: in formulas, and simulated.
//!
//! In: the page's table of measured figures. Out: two tables for the same page. What is not measured here, and differs from place
//! to place, stands at the top.

use crate::{
    queueing::{Turns, busy, drain, wait},
    simulation::{Case, Law, Run, Station, run},
};
use std::collections::HashMap;

/// Cores of a machine, for Postfix, couriers and databases alike; of the kind that was measured.
const CORES: f64 = 16.0;

/// How busy a machine is on purpose: above it lines grow fast, and nothing is left for the hour after a gap.
const BUSY: f64 = 0.6;

/// How long an SMTP session lasts for a message: round trips over the Internet, most of it waiting.
const SESSION: Law = Law { mean: 0.5, variation: 1.0 };

/// What a business system takes for a POST.
const POST: Law = Law { mean: 0.1, variation: 1.0 };

/// Bytes a second that a database's disk writes and syncs, one after the other.
const DISK: f64 = 400e6;

/// From the primary's death until its successor takes writes.
const GAP: f64 = 10.0;

/// Attempts of a courier, and connections of a node: as shipped, two for looking included.
const IN_FLIGHT: f64 = 32.0;
const CONNECTIONS: f64 = 18.0;

/// Seconds of traffic that are simulated.
const SIMULATED: f64 = 60.0;

/// The figures of the page.
pub struct Measured(HashMap<String, f64>);

impl Measured {
    /// Rows `| what | number |`.
    pub fn read(page: &str) -> Self {
        let row = |line: &str| {
            let mut cells = line.trim().trim_matches('|').split('|').map(str::trim);
            let (what, value) = (cells.next()?, cells.next()?);
            Some((what.to_owned(), value.parse().ok()?)).filter(|_| cells.next().is_none())
        };
        Self(page.lines().filter_map(row).collect())
    }

    fn of(&self, what: &str) -> f64 {
        *self.0.get(what).unwrap_or_else(|| panic!("docs/scale.md has no row \"{what}\": run `stages`"))
    }

    /// Microseconds, as seconds.
    fn time(&self, what: &str) -> f64 {
        self.of(what) / 1e6
    }
}

/// What a rate needs.
struct Plan {
    rate: f64,
    hosts: f64,
    couriers: f64,
    databases: f64,
    /// Of one database.
    each: f64,
}

impl Plan {
    fn new(measured: &Measured, rate: f64) -> Self {
        let machines = |time: f64| (rate * time / (CORES * BUSY)).ceil();
        let put = measured.time("a put: processor of the node, us");
        let hosts = machines(
            measured.time("a session: processor of Postfix, us")
                + measured.time("a session: processor of the intake, us")
                + put,
        );
        // What its turns put, whatever its processor could.
        let hosts = hosts.max((rate / (turns(measured, 1.0).capacity() * BUSY)).ceil());
        let delivery =
            measured.time("a POST: processor of the node, the sink and the rest of the delivery, us");
        let couriers = machines(delivery).max((rate * POST.mean / (IN_FLIGHT * CORES)).ceil());
        let log = measured.of("a put: log, bytes") + measured.of("a delivery: log, bytes");
        let primary = measured.time("a put: processor of the primary, us")
            + measured.time("a delivery: processor of the primary, us");
        let databases = machines(primary).max((rate * log / (DISK * BUSY)).ceil());
        Self { rate, hosts, couriers, databases, each: rate / databases }
    }

    /// The way of a message through one database and its nodes.
    fn stations(&self, measured: &Measured) -> Vec<Station> {
        let several = |servers: f64| servers.max(1.0) as u32;
        let puts = turns(measured, (self.hosts / self.databases).ceil());
        let step = |what: &str| Law {
            mean: measured.time(&format!("{what}: mean, us")),
            variation: measured.of(&format!("{what}: variation")),
        };
        let servers =
            |time: Law| Station::Servers { count: several((self.each * time.mean / BUSY).ceil()), time };
        vec![
            servers(SESSION),
            Station::Together(puts),
            servers(step("an open alone")),
            servers(POST),
            servers(step("a finish alone")),
        ]
    }
}

/// The turns of puts of so many nodes: two of each.
fn turns(measured: &Measured, nodes: f64) -> Turns {
    Turns {
        turns: 2 * nodes as u32,
        most: 64,
        base: measured.time("a turn of puts: base, us"),
        each: measured.time("a turn of puts: each message, us"),
    }
}

fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let parts: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|part| std::str::from_utf8(part).ok()).collect();
    parts.join(",")
}

/// A row of a table: one value for each rate.
fn row(out: &mut String, what: &str, plans: &[Plan], value: impl Fn(&Plan) -> String) {
    let values: Vec<String> = plans.iter().map(value).collect();
    say(out, format!("| {what} | {} |", values.join(" | ")));
}

fn say(out: &mut String, line: impl AsRef<str>) {
    out.push_str(line.as_ref());
    out.push('\n');
}

/// All tables, by the figures of the page.
pub fn simulate(page: &str) -> String {
    let mut text = String::new();
    let out = &mut text;
    let measured = Measured::read(page);
    let plans: Vec<Plan> = [1e3, 1e4, 1e5].map(|rate| Plan::new(&measured, rate)).into();
    needs(out, &measured, &plans);
    out.push('\n');
    lines(out, &measured, &plans);
    out.push('\n');
    callers(out, &measured);
    text
}

/// The turns as the model has them, beside what was seen of one node: the straight line through them is near all of them.
fn callers(out: &mut String, measured: &Measured) {
    let turns = turns(measured, 1.0);
    say(out, "| puts/s of one node | the model | measured |\n| --- | --- | --- |");
    for callers in [1, 2, 4, 8, 16, 32, 64, 128] {
        let seen = measured.of(&format!("puts/s, {callers} at once"));
        say(out, format!("| {callers} at once | {:.0} | {seen:.0} |", turns.rate_of(callers)));
    }
}

fn needs(out: &mut String, measured: &Measured, plans: &[Plan]) {
    let log = measured.of("a put: log, bytes") + measured.of("a delivery: log, bytes");
    let day = measured.of("a day's table: bytes of a message");
    let keys = measured.of("its key, for seven days: bytes");
    say(out, "| messages a second | 1,000 | 10,000 | 100,000 |\n| --- | --- | --- | --- |");
    row(out, "MX hosts: Postfix and intake", plans, |plan| thousands(plan.hosts));
    row(out, "SMTP sessions at a time, of each host", plans, |plan| {
        thousands((plan.rate * SESSION.mean / plan.hosts).ceil())
    });
    row(out, "courier machines", plans, |plan| thousands(plan.couriers));
    row(out, "POSTs in flight", plans, |plan| thousands(plan.rate * POST.mean));
    row(out, "`max_in_flight` of each courier, at least", plans, |plan| {
        thousands((plan.rate * POST.mean / plan.couriers / BUSY).ceil())
    });
    row(out, "databases, each with a standby", plans, |plan| thousands(plan.databases));
    row(out, "of each: messages a second", plans, |plan| thousands(plan.each));
    row(out, "of each: log, MB/s", plans, |plan| format!("{:.0}", plan.each * log / 1e6));
    row(out, "of each: syncs of the log a second, as measured", plans, |plan| {
        thousands(
            plan.each
                * (measured.of("a put: syncs of the log") + measured.of("a delivery: syncs of the log")),
        )
    });
    row(out, "of each: a day's table, GB", plans, |plan| thousands(plan.each * 86_400.0 * day / 1e9));
    row(out, "of each: keys of fourteen days, GB", plans, |plan| {
        thousands(plan.each * 14.0 * 86_400.0 * keys / 1e9)
    });
    row(out, "of each: log of a day, GB", plans, |plan| thousands(plan.each * 86_400.0 * log / 1e9));
    row(out, "of each: connections of its nodes", plans, |plan| {
        thousands(((plan.hosts + plan.couriers) / plan.databases).ceil().max(2.0) * CONNECTIONS)
    });
    row(out, &format!("wait in a gap of {GAP} s, over all"), plans, |plan| thousands(plan.rate * GAP));
    row(out, "that is delivered after, s", plans, |plan| {
        format!("{:.0}", drain(plan.rate, plan.rate / BUSY, GAP))
    });
}

/// One database and its nodes: what the formulas say of each line, and what a simulation saw.
fn lines(out: &mut String, measured: &Measured, plans: &[Plan]) {
    let simulated: Vec<(Run, Run)> = plans
        .iter()
        .map(|plan| {
            let stations = plan.stations(measured);
            let usual = Case::new(plan.each, (plan.each * SIMULATED) as usize, stations.clone());
            let mut with_gap = usual.clone();
            (with_gap.gap, with_gap.first_in_gap) = (Some((SIMULATED / 4.0, GAP)), 1);
            (run(&usual), run(&with_gap))
        })
        .collect();
    let milliseconds = |time: f64| format!("{:.2}", 1e3 * time);
    say(
        out,
        "| one database of them, formula and simulation | 1,000 | 10,000 | 100,000 |\n| --- | --- | --- | --- |",
    );
    let mut cells = |what: &str, value: &dyn Fn(usize) -> String| {
        let values: Vec<String> = (0..plans.len()).map(value).collect();
        say(out, format!("| {what} | {} |", values.join(" | ")));
    };
    cells("messages of a turn of puts", &|at| {
        let Station::Together(turns) = plans[at].stations(measured)[1] else { return String::new() };
        format!("{:.1} and {:.1}", turns.pieces(plans[at].each), simulated[at].0.pieces[1])
    });
    for (station, what) in [
        (0, "wait for a session, ms"),
        (2, "wait for an open, ms"),
        (3, "wait for a POST, ms"),
        (4, "wait for a finish, ms"),
    ] {
        cells(what, &|at| {
            let Station::Servers { count, time } = plans[at].stations(measured)[station] else {
                return String::new();
            };
            assert!(busy(plans[at].each, time.mean, count) < 1.0);
            let expected = wait(plans[at].each, time.mean, count, (1.0, time.variation));
            format!("{} and {}", milliseconds(expected), milliseconds(simulated[at].0.waits[station]))
        });
    }
    cells("from connection to delivery, median and 99 %, ms (simulation)", &|at| {
        let run = &simulated[at].0;
        format!("{:.0} and {:.0}", 1e3 * run.part(50), 1e3 * run.part(99))
    });
    cells(&format!("gap of {GAP} s: the longest line (simulation)"), &|at| {
        thousands(simulated[at].1.longest as f64)
    });
    cells("gap: all are through after, s", &|at| {
        // What binds is the station with the least to spare.
        let stations = plans[at].stations(measured);
        let capacity = stations[1..].iter().map(|station| match station {
            Station::Servers { count, time } => f64::from(*count) / time.mean,
            Station::Together(turns) => turns.capacity(),
        });
        let capacity = capacity.fold(f64::INFINITY, f64::min);
        format!("{:.1} and {:.1}", drain(plans[at].each, capacity, GAP), simulated[at].1.drained)
    });
}
