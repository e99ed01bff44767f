//! What happens when: a schedule, drawn from a seed.
//!
//! In: a seed, and how often the service is killed. Out: [`Step`]s in their order, each with the time since the one before.
//! Promise: pure: the same seed and number give the same schedule. What began ends, one of a [`Part`] at a time, and what
//! happens to one part may happen while something happens to another: a service is killed while its disk is full and its
//! backend says nothing. The last kill ends it.

use std::time::Duration;

/// What a fault is done to. Each has at most one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Service,
    Backend,
    Directory,
    Storage,
    Clock,
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Killed,
    Ended,
    Frozen,
    Reloaded,
    BackendStopped,
    BackendSlow,
    BackendFails,
    BackendHangs,
    AnswersLost,
    AnswersDenied,
    DirectoryFails,
    DirectoryHangs,
    DirectoryCut,
    DiskFull,
    SyncFails,
    WriteFails,
    NoDescriptors,
    /// Minutes from the right time.
    Clock(i64),
}

/// Minutes of a day.
const DAY: i64 = 24 * 60;

/// How a fault is drawn.
struct Kind {
    part: Part,
    fault: Fault,
    /// How often it comes among the others of its part.
    share: usize,
    /// Between how many milliseconds it lasts; none: a moment.
    lasts: Option<(u64, u64)>,
}

const fn moment(part: Part, fault: Fault, share: usize) -> Kind {
    Kind { part, fault, share, lasts: None }
}

const fn span(part: Part, fault: Fault, share: usize, least: u64, most: u64) -> Kind {
    Kind { part, fault, share, lasts: Some((least, most)) }
}

const KINDS: &[Kind] = &[
    moment(Part::Service, Fault::Killed, 12),
    moment(Part::Service, Fault::Ended, 3),
    span(Part::Service, Fault::Frozen, 3, 200, 2500),
    moment(Part::Service, Fault::Reloaded, 2),
    span(Part::Backend, Fault::BackendStopped, 1, 300, 2000),
    span(Part::Backend, Fault::BackendSlow, 5, 1000, 4000),
    span(Part::Backend, Fault::BackendFails, 1, 300, 2000),
    span(Part::Backend, Fault::BackendHangs, 1, 300, 3000),
    span(Part::Backend, Fault::AnswersLost, 2, 300, 1500),
    span(Part::Backend, Fault::AnswersDenied, 1, 300, 1500),
    span(Part::Directory, Fault::DirectoryFails, 1, 500, 3000),
    span(Part::Directory, Fault::DirectoryHangs, 1, 500, 3000),
    span(Part::Directory, Fault::DirectoryCut, 1, 500, 3000),
    span(Part::Storage, Fault::DiskFull, 2, 500, 2500),
    span(Part::Storage, Fault::SyncFails, 2, 300, 1500),
    span(Part::Storage, Fault::WriteFails, 2, 300, 1500),
    span(Part::Storage, Fault::NoDescriptors, 1, 500, 2000),
    span(Part::Clock, Fault::Clock(5), 1, 1000, 4000),
    span(Part::Clock, Fault::Clock(-5), 1, 1000, 4000),
    span(Part::Clock, Fault::Clock(DAY), 1, 1000, 4000),
    span(Part::Clock, Fault::Clock(-DAY), 1, 1000, 4000),
    span(Part::Clock, Fault::Clock(9 * DAY), 1, 1000, 4000),
    span(Part::Clock, Fault::Clock(-9 * DAY), 1, 1000, 4000),
];

impl Fault {
    fn kind(self) -> &'static Kind {
        KINDS.iter().find(|kind| kind.fault == self).expect("all are there")
    }

    /// What it is done to.
    pub fn part(self) -> Part {
        self.kind().part
    }

    /// True if activities may come twice: who sent them was not there to hear that they had come, or could not write it down.
    pub fn again(self) -> bool {
        matches!(
            self,
            Self::Killed
                | Self::Frozen
                | Self::DiskFull
                | Self::SyncFails
                | Self::WriteFails
                | Self::NoDescriptors
        )
    }
}

impl Part {
    /// Milliseconds from one to the next.
    const fn pause(self) -> (u64, u64) {
        match self {
            Self::Service => (400, 1800),
            Self::Backend => (500, 3000),
            Self::Directory => (3000, 8000),
            Self::Storage => (1500, 5000),
            Self::Clock => (2000, 6000),
        }
    }
}

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Begin(Fault),
    End(Fault),
}

/// When, since the step before, and what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub after: Duration,
    pub what: What,
}

/// A schedule in which the service is killed so often.
pub fn schedule(seed: u64, kills: usize) -> Vec<Step> {
    let mut dice = fastrand::Rng::with_seed(seed);
    let (mut times, mut killed) = (Vec::new(), 0);
    let end = track(&mut dice, Part::Service, &mut times, |_, fault| {
        killed += usize::from(fault == Fault::Killed);
        killed < kills
    });
    for part in [Part::Backend, Part::Directory, Part::Storage, Part::Clock] {
        track(&mut dice, part, &mut times, |now, _| now < end);
    }
    // Stable: of one part, what began ends before the next begins.
    times.sort_by_key(|(at, _)| *at);
    let mut last = 0;
    let step =
        |(at, what)| Step { after: Duration::from_millis(at - std::mem::replace(&mut last, at)), what };
    times.into_iter().map(step).collect()
}

/// What happens to one part, as long as `more` says so; when the last of it is over.
fn track(
    dice: &mut fastrand::Rng,
    part: Part,
    times: &mut Vec<(u64, What)>,
    mut more: impl FnMut(u64, Fault) -> bool,
) -> u64 {
    let kinds = KINDS.iter().filter(|kind| kind.part == part);
    let bag: Vec<&Kind> = kinds.flat_map(|kind| std::iter::repeat_n(kind, kind.share)).collect();
    let mut now = 0;
    loop {
        let pause = part.pause();
        now += dice.u64(pause.0..=pause.1);
        let Kind { fault, lasts, .. } = *bag[dice.usize(0..bag.len())];
        times.push((now, What::Begin(fault)));
        if let Some((least, most)) = lasts {
            now += dice.u64(least..=most);
            times.push((now, What::End(fault)));
        }
        if !more(now, fault) {
            return now;
        }
    }
}

#[test]
fn the_same_seed_is_the_same_schedule() {
    assert_eq!(schedule(7, 20), schedule(7, 20));
    assert_ne!(schedule(7, 20), schedule(8, 20));
    // A longer one begins otherwise, for its parts are drawn one after the other; the kills are the same.
    let service = |steps: Vec<Step>| -> Vec<Fault> {
        let begun = steps.into_iter().filter_map(|step| match step.what {
            What::Begin(fault) => Some(fault),
            What::End(_) => None,
        });
        begun.filter(|fault| fault.part() == Part::Service).collect()
    };
    let (short, long) = (service(schedule(7, 5)), service(schedule(7, 50)));
    assert_eq!(short, long[..short.len()]);
}

#[test]
fn what_begins_ends_and_all_of_it_happens() {
    for seed in 0..50 {
        let steps = schedule(seed, 200);
        let (mut begun, mut seen) = (Vec::new(), std::collections::BTreeSet::new());
        for step in &steps {
            match step.what {
                What::Begin(fault) => {
                    let Kind { part, lasts, .. } = *fault.kind();
                    assert!(
                        !begun.iter().any(|other: &Fault| other.part() == part),
                        "{seed}: two of {part:?}"
                    );
                    begun.extend(lasts.map(|_| fault));
                    seen.insert(fault);
                }
                What::End(fault) => {
                    let at = begun.iter().position(|other| *other == fault);
                    begun.remove(at.expect("what ends has begun"));
                }
            }
        }
        assert!(begun.is_empty(), "{seed}: {begun:?} do not end");
        assert_eq!(seen.len(), KINDS.len(), "{seed}: {seen:?}");
        let kills = steps.iter().filter(|step| step.what == What::Begin(Fault::Killed)).count();
        assert_eq!(kills, 200);
    }
}
