//! What time it is, and how much of it has passed.
//!
//! In: nothing. Out: the wall clock, which people set and which may be wrong, and the time since the machine started,
//! which nobody sets.
//! Promise: [`Clock::running`] never goes back, and goes on while the machine sleeps (`CLOCK_BOOTTIME`).

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

/// A clock. A trait because tests set theirs by hand.
pub trait Clock: fmt::Debug + Send + Sync {
    /// What people call the time.
    fn wall(&self) -> SystemTime;

    /// Time since some moment of the past, sleep included.
    fn running(&self) -> Duration;

    /// What time it is where somebody sets it by hand, and an engine's own clock shall have no say; for tests.
    fn by_hand(&self) -> Option<SystemTime> {
        None
    }
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn running(&self) -> Duration {
        let clock = nix::time::ClockId::CLOCK_BOOTTIME;
        clock.now().map(Duration::from).unwrap_or_default()
    }
}

/// A clock that is set by hand, for tests.
#[derive(Debug)]
pub struct HandClock(Mutex<(SystemTime, Duration)>);

impl HandClock {
    /// That shows this time.
    pub fn at(wall: SystemTime) -> Self {
        Self(Mutex::new((wall, Duration::from_secs(1000))))
    }

    /// Time passes.
    pub fn pass(&self, time: Duration) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        now.0 += time;
        now.1 += time;
    }

    /// Somebody sets the wall clock.
    pub fn set(&self, wall: SystemTime) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = wall;
    }
}

impl Clock for HandClock {
    fn wall(&self) -> SystemTime {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    fn running(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    fn by_hand(&self) -> Option<SystemTime> {
        Some(self.wall())
    }
}
