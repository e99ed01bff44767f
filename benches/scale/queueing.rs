//! Waiting lines in formulas: where there is one, a simulation must agree with it (`tests/scale.rs`).
//!
//! In: how many come in a second, how long one of them takes, how many are served at a time. Out: how long they wait.
//! Times are in seconds. Variation is a variance divided by the square of its mean: 0 for what is always the same, 1 for what
//! an exponential law says.

/// The share of servers that are at work; from 1 on the line grows without end.
pub fn busy(rate: f64, time: f64, servers: u32) -> f64 {
    rate * time / f64::from(servers)
}

/// How probable it is to find all servers at work, where arrivals are independent and times exponential (Erlang's C).
pub fn finds_all_busy(rate: f64, time: f64, servers: u32) -> f64 {
    let (load, busy) = (rate * time, busy(rate, time, servers));
    if busy >= 1.0 {
        return 1.0;
    }
    // Erlang's B by its recursion, which needs no factorials.
    let lost = (1..=servers).fold(1.0, |lost, server| load * lost / (f64::from(server) + load * lost));
    lost / (1.0 - busy * (1.0 - lost))
}

/// The mean wait before service. Exact for independent arrivals and exponential times (M/M/c), and for one server with times of
/// any law (M/G/1, Pollaczek and Khinchine); else an approximation (G/G/c, Allen and Cunneen).
pub fn wait(rate: f64, time: f64, servers: u32, variation: (f64, f64)) -> f64 {
    let busy = busy(rate, time, servers);
    if busy >= 1.0 {
        return f64::INFINITY;
    }
    let (arrivals, times) = variation;
    let of_exponential = finds_all_busy(rate, time, servers) * time / (f64::from(servers) * (1.0 - busy));
    of_exponential * (arrivals + times) / 2.0
}

/// What is done together: a turn takes `base`, and `each` for every piece in it.
#[derive(Clone, Copy, Debug)]
pub struct Turns {
    pub turns: u32,
    pub most: u32,
    pub base: f64,
    pub each: f64,
}

impl Turns {
    /// Pieces a second at most, each turn full.
    pub fn capacity(&self) -> f64 {
        f64::from(self.turns) * f64::from(self.most) / self.turn(f64::from(self.most))
    }

    /// How long a turn with so many pieces takes.
    pub fn turn(&self, pieces: f64) -> f64 {
        self.base + self.each * pieces
    }

    /// How many a turn has where so many come in a second and none is full: what came while a turn was under way.
    pub fn pieces(&self, rate: f64) -> f64 {
        let share = rate / f64::from(self.turns);
        (share * self.base / (1.0 - share * self.each)).max(1.0)
    }

    /// How many are done in a second for `callers` of whom each brings the next piece when the last one is done.
    pub fn rate_of(&self, callers: u32) -> f64 {
        let pieces = (f64::from(callers) / f64::from(self.turns)).clamp(1.0, f64::from(self.most));
        f64::from(self.turns).min(f64::from(callers)) * pieces / self.turn(pieces)
    }
}

/// How long it takes, after a gap of so many seconds, until what gathered in it is done.
pub fn drain(rate: f64, capacity: f64, gap: f64) -> f64 {
    if capacity <= rate { f64::INFINITY } else { rate * gap / (capacity - rate) }
}
