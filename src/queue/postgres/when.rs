//! What time it is: the database's clock alone decides.
//!
//! In: the times that come with the database's answers. Out: about what time it is there, for what is compared between two
//! answers; and what statements are given as the time: nothing, so that the database looks at its own clock.
//! Promise: our machine's clock is never written and never compared with what is: nodes may differ by as much as they
//! like. How much time has passed since an answer is measured by the clock that nobody sets.
//!
//! A test that sets its clock by hand has it given to the statements.

use crate::queue::{
    Clock,
    watch::{Watch, millis, time},
};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

/// The database's clock, as far as we know it.
#[derive(Debug)]
struct Seen {
    ours: Arc<dyn Clock>,
    /// What it showed, and when that was ([`Clock::running`]).
    last: Mutex<(SystemTime, Duration)>,
}

impl Clock for Seen {
    fn wall(&self) -> SystemTime {
        if let Some(given) = self.ours.by_hand() {
            return given;
        }
        let (shown, then) = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        shown + self.ours.running().saturating_sub(then)
    }

    fn running(&self) -> Duration {
        self.ours.running()
    }
}

/// The time.
#[derive(Debug)]
pub(super) struct When {
    seen: Arc<Seen>,
    pub(super) watch: Watch,
}

impl When {
    /// `now`: what the database's clock shows.
    pub(super) fn new(ours: Arc<dyn Clock>, now: i64) -> Self {
        let last = Mutex::new((time(now), ours.running()));
        let seen = Arc::new(Seen { ours, last });
        Self { watch: Watch::new(Arc::clone(&seen) as Arc<dyn Clock>), seen }
    }

    /// What a statement is given as the time; none: the database has its own.
    pub(super) fn given(&self) -> Option<i64> {
        self.seen.ours.by_hand().map(millis)
    }

    /// An answer said what time it is there.
    pub(super) fn shown(&self, now: i64) {
        let mut last = self.seen.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = (time(now), self.seen.ours.running());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::HandClock;

    /// Ours is wrong by a year, and is asked for nothing but what has passed.
    #[derive(Debug)]
    struct Wrong(HandClock);

    impl Clock for Wrong {
        fn wall(&self) -> SystemTime {
            panic!("nobody asks our clock")
        }

        fn running(&self) -> Duration {
            self.0.running()
        }
    }

    /// Q43: whatever ours says.
    #[test]
    fn the_database_s_clock_decides() {
        let ours = Arc::new(Wrong(HandClock::at(SystemTime::UNIX_EPOCH)));
        let when = When::new(Arc::clone(&ours) as Arc<dyn Clock>, 1_000_000);
        assert_eq!((when.given(), when.watch.now()), (None, 1_000_000));
        ours.0.pass(Duration::from_secs(5));
        assert_eq!(when.watch.now(), 1_005_000);
        when.shown(1_006_000);
        assert_eq!(when.watch.now(), 1_006_000);
        assert!(when.watch.is_trusted());
        // It leaps: two days are not believed at once.
        ours.0.pass(Duration::from_secs(1));
        when.shown(1_007_000 + 2 * 86_400_000);
        assert!(!when.watch.is_trusted());
    }

    #[test]
    fn a_clock_set_by_hand_is_given_to_the_statements() {
        let ours = Arc::new(HandClock::at(SystemTime::UNIX_EPOCH + Duration::from_secs(7)));
        let when = When::new(Arc::clone(&ours) as Arc<dyn Clock>, 1_000_000);
        assert_eq!((when.given(), when.watch.now()), (Some(7000), 7000));
    }
}
