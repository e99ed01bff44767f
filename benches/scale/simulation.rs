//! Waiting lines, event by event: for what no formula says, as turns that take what has gathered, and a gap.
//!
//! In: stations in a row, arrivals, a seed. Out: how long each station made messages wait. The same seed gives the same numbers.

use crate::queueing::Turns;
use fastrand::Rng;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

/// How long something takes.
#[derive(Clone, Copy, Debug)]
pub struct Law {
    pub mean: f64,
    /// 0: always the mean; up to 1: a constant part and an exponential one; 1: exponential; more: two exponential ones.
    pub variation: f64,
}

impl Law {
    pub fn draw(&self, random: &mut Rng) -> f64 {
        let mut exponential = |mean: f64| -mean * (1.0 - random.f64()).ln();
        if self.variation <= 1.0 {
            let spread = self.mean * self.variation.sqrt();
            return self.mean - spread + exponential(spread);
        }
        // Both halves have the same part in the mean.
        let first = (1.0 + ((self.variation - 1.0) / (self.variation + 1.0)).sqrt()) / 2.0;
        let part = if random.f64() < first { first } else { 1.0 - first };
        let mut exponential = |mean: f64| -mean * (1.0 - random.f64()).ln();
        exponential(self.mean / (2.0 * part))
    }
}

/// Where messages wait and are served.
#[derive(Clone, Copy, Debug)]
pub enum Station {
    /// One message each at a time.
    Servers { count: u32, time: Law },
    /// All that has gathered, by turns.
    Together(Turns),
}

impl Station {
    fn places(&self) -> u32 {
        match self {
            Self::Servers { count, .. } => *count,
            Self::Together(turns) => turns.turns,
        }
    }

    fn most(&self) -> usize {
        match self {
            Self::Servers { .. } => 1,
            Self::Together(turns) => turns.most as usize,
        }
    }

    fn time(&self, pieces: usize, random: &mut Rng) -> f64 {
        match self {
            Self::Servers { time, .. } => time.draw(random),
            Self::Together(turns) => turns.turn(pieces as f64),
        }
    }
}

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Case {
    pub seed: u64,
    /// Between two arrivals.
    pub arrivals: Law,
    pub messages: usize,
    pub stations: Vec<Station>,
    /// From when for how long the stations behind this number begin nothing: what is away is what they all need.
    pub gap: Option<(f64, f64)>,
    pub first_in_gap: usize,
}

impl Case {
    pub fn new(rate: f64, messages: usize, stations: Vec<Station>) -> Self {
        let arrivals = Law { mean: 1.0 / rate, variation: 1.0 };
        Self { seed: 1, arrivals, messages, stations, gap: None, first_in_gap: 0 }
    }
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct Run {
    /// At each station: the mean wait before service.
    pub waits: Vec<f64>,
    /// At each station: pieces of a turn, in the mean.
    pub pieces: Vec<f64>,
    /// From arrival to end, sorted.
    pub times: Vec<f64>,
    /// The most that waited before a station.
    pub longest: usize,
    /// From the gap's end until nobody is behind any more who came before it ended.
    pub drained: f64,
}

impl Run {
    pub fn part(&self, percent: usize) -> f64 {
        self.times.get(self.times.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default()
    }
}

/// A time that can be sorted.
#[derive(Clone, Copy, PartialEq)]
struct At(f64);

impl Eq for At {}

impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// What happens.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival,
    /// A turn at this station, with these messages, is over.
    Done(usize, Vec<usize>),
    GapEnds,
}

/// A station at work.
#[derive(Default)]
struct Line {
    waiting: VecDeque<(usize, f64)>,
    busy: u32,
    waited: f64,
    served: usize,
    turns: usize,
}

struct Simulation<'a> {
    case: &'a Case,
    random: Rng,
    events: BinaryHeap<Reverse<(At, usize, Event)>>,
    number: usize,
    lines: Vec<Line>,
    longest: usize,
}

impl Simulation<'_> {
    fn later(&mut self, at: f64, event: Event) {
        self.number += 1;
        self.events.push(Reverse((At(at), self.number, event)));
    }

    fn is_away(&self, station: usize, now: f64) -> bool {
        let in_gap = |(from, lasts): (f64, f64)| now >= from && now < from + lasts;
        station >= self.case.first_in_gap && self.case.gap.is_some_and(in_gap)
    }

    /// Begins what can be begun.
    fn begin(&mut self, at: usize, now: f64) {
        let station = self.case.stations[at];
        while self.lines[at].busy < station.places()
            && !self.lines[at].waiting.is_empty()
            && !self.is_away(at, now)
        {
            let line = &mut self.lines[at];
            let pieces = line.waiting.len().min(station.most());
            let taken: Vec<(usize, f64)> = line.waiting.drain(..pieces).collect();
            line.busy += 1;
            line.turns += 1;
            line.served += pieces;
            line.waited += taken.iter().map(|(_, since)| now - since).sum::<f64>();
            let ends = now + station.time(pieces, &mut self.random);
            self.later(ends, Event::Done(at, taken.into_iter().map(|(message, _)| message).collect()));
        }
    }

    fn come(&mut self, at: usize, message: usize, now: f64) {
        self.lines[at].waiting.push_back((message, now));
        self.longest = self.longest.max(self.lines[at].waiting.len());
        self.begin(at, now);
    }
}

/// From the first arrival until the last message is through.
pub fn run(case: &Case) -> Run {
    let mut lines = Vec::new();
    lines.resize_with(case.stations.len(), Line::default);
    let random = Rng::with_seed(case.seed);
    let mut all = Simulation { case, random, events: BinaryHeap::new(), number: 0, lines, longest: 0 };
    let (mut born, mut times) = (Vec::with_capacity(case.messages), Vec::with_capacity(case.messages));
    let gap_ends = case.gap.map_or(0.0, |(from, lasts)| from + lasts);
    let mut drained: f64 = 0.0;
    all.later(0.0, Event::Arrival);
    if case.gap.is_some() {
        all.later(gap_ends, Event::GapEnds);
    }
    while let Some(Reverse((At(now), _, event))) = all.events.pop() {
        match event {
            Event::Arrival => {
                let message = born.len();
                born.push(now);
                if born.len() < case.messages {
                    let next = now + case.arrivals.draw(&mut all.random);
                    all.later(next, Event::Arrival);
                }
                all.come(0, message, now);
            }
            Event::Done(at, messages) => {
                all.lines[at].busy -= 1;
                for message in messages {
                    if at + 1 < case.stations.len() {
                        all.come(at + 1, message, now);
                    } else {
                        times.push(now - born[message]);
                    }
                }
                all.begin(at, now);
                // The line is as short as it is without a gap: nobody waits who could be served.
                if now > gap_ends && drained == 0.0 && all.lines.iter().all(|line| line.waiting.is_empty()) {
                    drained = now - gap_ends;
                }
            }
            Event::GapEnds => (0..case.stations.len()).for_each(|at| all.begin(at, now)),
        }
    }
    times.sort_by(f64::total_cmp);
    let lines = &all.lines;
    Run {
        waits: lines.iter().map(|line| line.waited / line.served.max(1) as f64).collect(),
        pieces: lines.iter().map(|line| line.served as f64 / line.turns.max(1) as f64).collect(),
        times,
        longest: all.longest,
        drained,
    }
}
