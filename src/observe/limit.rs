//! A limit for log lines that repeat: trouble that comes with every message must not fill the disk as well.
//!
//! Promise: what is not shown is counted, and the count is said: with the next line of its kind, or once the minute is over
//! ([`unsaid`]).

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Lines of one kind in a minute.
const BURST: u32 = 10;

/// After it, the next line is shown, with the number of those that were not.
const WINDOW: Duration = Duration::from_secs(60);

/// The limit of one kind of line.
pub(super) struct Limiter {
    /// The event.
    name: &'static str,
    state: Mutex<State>,
}

struct State {
    began: Option<Instant>,
    shown: u32,
    suppressed: u64,
    is_known: bool,
}

/// Those that have ever left out a line.
static KNOWN: Mutex<Vec<&'static Limiter>> = Mutex::new(Vec::new());

/// Lines that were left out and not counted by another line of their kind, by event; `at_end`: also those of this minute.
pub(super) fn unsaid(at_end: bool) -> Vec<(&'static str, u64)> {
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let now = Instant::now();
    let taken = known.into_iter().map(|limiter| (limiter.name, limiter.take_at(now, at_end)));
    taken.filter(|(_, suppressed)| *suppressed > 0).collect()
}

impl Limiter {
    pub(super) const fn new(name: &'static str) -> Self {
        let state = State { began: None, shown: 0, suppressed: 0, is_known: false };
        Self { name, state: Mutex::new(state) }
    }

    /// None if the line is not to be shown; otherwise how many were not shown before it.
    pub(super) fn admit(&'static self) -> Option<u64> {
        let admitted = self.admit_at(Instant::now());
        if admitted.is_none() && !std::mem::replace(&mut self.locked().is_known, true) {
            KNOWN.lock().unwrap_or_else(PoisonError::into_inner).push(self);
        }
        admitted
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many were not shown, if the minute is over.
    fn take_at(&self, now: Instant, at_end: bool) -> u64 {
        let mut state = self.locked();
        let is_over = state.began.is_none_or(|began| now.duration_since(began) >= WINDOW);
        if is_over || at_end { std::mem::take(&mut state.suppressed) } else { 0 }
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.locked();
        if state.began.is_none_or(|began| now.duration_since(began) >= WINDOW) {
            (state.began, state.shown) = (Some(now), 0);
        }
        if state.shown == BURST {
            state.suppressed += 1;
            return None;
        }
        state.shown += 1;
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_a_minute_and_then_the_number_of_the_others() {
        let (limiter, start) = (Limiter::new("TEST"), Instant::now());
        let admitted: Vec<_> = (0..13).map(|_| limiter.admit_at(start)).collect();
        assert_eq!(admitted, [vec![Some(0); 10], vec![None; 3]].concat());
        assert_eq!(limiter.admit_at(start + WINDOW), Some(3));
        assert_eq!(limiter.admit_at(start + WINDOW), Some(0));
    }

    #[test]
    fn what_was_left_out_is_said_though_nothing_follows() {
        static LIMITER: Limiter = Limiter::new("TEST_UNSAID");
        let of_ours =
            |at_end| unsaid(at_end).into_iter().filter(|(name, _)| *name == LIMITER.name).collect::<Vec<_>>();
        (0..10).for_each(|_| assert!(LIMITER.admit().is_some()));
        assert_eq!(of_ours(true), []);
        (0..7).for_each(|_| assert!(LIMITER.admit().is_none()));
        assert_eq!(of_ours(false), [], "a line may follow within the minute");
        let over = Instant::now() + WINDOW;
        assert_eq!((LIMITER.take_at(over, false), LIMITER.take_at(over, false)), (7, 0));
        assert!(LIMITER.admit().is_none());
        assert_eq!((of_ours(true), of_ours(true)), (vec![("TEST_UNSAID", 1)], vec![]));
    }
}
