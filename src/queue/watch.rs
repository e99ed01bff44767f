//! Watches the wall clock, which people set and which may be wrong.
//!
//! In: the clocks. Out: the time to be written, and what to do after the clock was set.
//! Promise: a wall clock that leaps forward makes nothing old: for a day nothing is held as too old and no key forgotten,
//! so that a person can put it right.

use crate::queue::Clock;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

/// A leap forward that is not believed at once.
pub(super) const FORWARD: Duration = Duration::from_secs(3600);

/// A leap back after which times that lie ahead are looked for.
const BACK: Duration = Duration::from_secs(60);

/// How long a leap forward is not believed.
pub(super) const DISTRUST: Duration = Duration::from_secs(24 * 3600);

/// What happened to the clock, and was not reported yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Leaps {
    pub(super) forward: Option<Duration>,
    pub(super) back: bool,
}

#[derive(Debug)]
struct Looked {
    wall: SystemTime,
    running: Duration,
    /// [`Clock::running`] until which the wall clock is not believed.
    distrust: Duration,
    /// How often the clock was set, as far as was seen.
    sets: u64,
    /// By how much it leapt ahead and was not put right, as far as we know.
    ahead: Duration,
    leaps: Leaps,
}

/// The watch.
#[derive(Debug)]
pub(super) struct Watch {
    clock: Arc<dyn Clock>,
    looked: Mutex<Looked>,
}

impl Watch {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let (wall, running) = (clock.wall(), clock.running());
        let (distrust, ahead) = (Duration::ZERO, Duration::ZERO);
        let looked = Looked { wall, running, distrust, ahead, sets: 0, leaps: Leaps::default() };
        Self { clock, looked: Mutex::new(looked) }
    }

    /// The wall clock's time, in the unit of the database. Nothing is written with a time that was not looked at: a clock
    /// that is ahead for a minute would not be noticed.
    pub(super) fn now(&self) -> i64 {
        millis(self.look().wall)
    }

    pub(super) fn running(&self) -> Duration {
        self.clock.running()
    }

    fn looked(&self) -> MutexGuard<'_, Looked> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares the clocks with each other.
    fn look(&self) -> MutexGuard<'_, Looked> {
        let mut looked = self.looked();
        let (wall, running) = (self.clock.wall(), self.clock.running());
        let expected = looked.wall + running.saturating_sub(looked.running);
        (looked.wall, looked.running) = (wall, running);
        match wall.duration_since(expected) {
            Ok(ahead) if ahead > FORWARD => {
                let before = if looked.distrust > running { looked.ahead } else { Duration::ZERO };
                looked.distrust = running + DISTRUST;
                looked.ahead = before.saturating_add(ahead);
                looked.leaps.forward = Some(ahead);
                looked.sets += 1;
            }
            // Put right, if it was put back by about as much: what it says is believed again.
            Err(behind) if behind.duration() > BACK => {
                looked.ahead = looked.ahead.saturating_sub(behind.duration());
                if looked.ahead <= FORWARD {
                    (looked.distrust, looked.ahead) = (Duration::ZERO, Duration::ZERO);
                }
                looked.leaps.back = true;
                looked.sets += 1;
            }
            _ => {}
        }
        looked
    }

    /// What happened since the last call.
    pub(super) fn leaps(&self) -> Leaps {
        std::mem::take(&mut self.look().leaps)
    }

    /// At the start: the newest time in the database, and until when (wall) the clock was not believed then. If it
    /// is much later now, either the service was down for that long, or the clock leapt.
    pub(super) fn begin(&self, newest: i64, distrust: i64) {
        let now = self.now();
        let left =
            Duration::from_millis(u64::try_from(distrust.saturating_sub(now)).unwrap_or(0)).min(DISTRUST);
        let ahead = Duration::from_millis(u64::try_from(now.saturating_sub(newest)).unwrap_or(0));
        let leaps = newest > 0 && ahead > FORWARD;
        let left = if leaps { DISTRUST } else { left };
        if left > Duration::ZERO {
            let running = self.clock.running();
            let mut looked = self.looked();
            looked.distrust = running + left;
            // By how much a process before saw it leap is not known: by more than what is no leap.
            looked.ahead = if leaps { ahead } else { FORWARD * 2 };
            looked.leaps.forward = leaps.then_some(ahead);
        }
    }

    /// Until when (wall) the clock is not believed; 0 if it is.
    pub(super) fn distrust(&self) -> i64 {
        let left = self.look().distrust.saturating_sub(self.clock.running());
        if left > Duration::ZERO { millis(self.clock.wall() + left) } else { 0 }
    }

    /// How often the clock was set, as far as was seen: another number is another [`Watch::distrust`] to be written.
    pub(super) fn sets(&self) -> u64 {
        self.looked().sets
    }

    /// Whether something may be called old.
    pub(super) fn is_trusted(&self) -> bool {
        self.look().distrust <= self.clock.running()
    }

    /// How long ago that was; zero where the clock cannot be trusted.
    pub(super) fn age(&self, since: i64) -> Duration {
        let age = Duration::from_millis(u64::try_from(self.now().saturating_sub(since)).unwrap_or(0));
        if self.is_trusted() { age } else { Duration::ZERO }
    }
}

/// Milliseconds since 1970, the unit of every time in the database.
pub(super) fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A length of time in milliseconds; one that is too long for any clock is half of what there is, so that it can be added.
pub(super) fn span(length: Duration) -> i64 {
    i64::try_from(length.as_millis()).unwrap_or(i64::MAX / 2)
}

/// The time of so many milliseconds since 1970.
pub(super) fn time(millis: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}
