//! A limit for log lines that repeat: trouble that comes with every message must not fill the disk as well.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Lines of one kind in a minute.
const BURST: u32 = 10;

/// After it, the next line is shown, with the number of those that were not.
const WINDOW: Duration = Duration::from_secs(60);

/// The limit of one kind of line.
pub(super) struct Limiter(Mutex<State>);

struct State {
    began: Option<Instant>,
    shown: u32,
    suppressed: u64,
}

impl Limiter {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(State { began: None, shown: 0, suppressed: 0 }))
    }

    /// None if the line is not to be shown; otherwise how many were not shown before it.
    pub(super) fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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
        let (limiter, start) = (Limiter::new(), Instant::now());
        let admitted: Vec<_> = (0..13).map(|_| limiter.admit_at(start)).collect();
        assert_eq!(admitted, [vec![Some(0); 10], vec![None; 3]].concat());
        assert_eq!(limiter.admit_at(start + WINDOW), Some(3));
        assert_eq!(limiter.admit_at(start + WINDOW), Some(0));
    }
}
