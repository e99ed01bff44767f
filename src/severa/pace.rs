//! How fast one company's calls may follow each other.
//!
//! In: those who want to call. Out: their turn, in the order in which they came.
//! Promise: from one turn to the next it takes [`BETWEEN`] at least, whoever calls, and however late the one before was: no
//! burst, because the API counts in windows of a second and refuses the eleventh call. After a 429 everybody waits.
//! Fails: [`Pace::turn`], if everybody must wait longer than the caller has patience.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// From one call to the next: eight a second of the ten that are admitted.
const BETWEEN: Duration = Duration::from_millis(125);

/// First pause after a 429 that does not say how long; each further one is twice as long.
const FIRST_HOLD: Duration = Duration::from_secs(1);

/// Longest pause that doubling leads to.
const LONGEST_HOLD: Duration = Duration::from_secs(60);

/// Longest pause that an answer may ask for: a wrong clock there must not stop a company for years.
const LONGEST_ASKED: Duration = Duration::from_secs(24 * 3600);

/// The turns of one company.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When the newest turn was given. Fair: who waits for it first gets it first.
    last: tokio::sync::Mutex<Option<Instant>>,
    hold: Mutex<Hold>,
}

#[derive(Debug, Default)]
struct Hold {
    since: Option<Instant>,
    until: Option<Instant>,
    /// The pause that doubling came to.
    length: Duration,
}

impl Pace {
    /// Waits for a turn; its time.
    /// # Errors
    /// How long everybody must wait, if that is longer than `patience`.
    pub(super) async fn turn(&self, patience: Duration) -> Result<Instant, Duration> {
        loop {
            self.wait_for_hold(patience).await?;
            let mut last = self.last.lock().await;
            if let Some(last) = *last {
                tokio::time::sleep_until(last + BETWEEN).await;
            }
            if self.held_for().is_some() {
                continue; // it began while we waited
            }
            let now = Instant::now();
            *last = Some(now);
            return Ok(now);
        }
    }

    async fn wait_for_hold(&self, patience: Duration) -> Result<(), Duration> {
        while let Some(left) = self.held_for() {
            if left > patience {
                return Err(left);
            }
            tokio::time::sleep(left).await;
        }
        Ok(())
    }

    /// How long everybody must wait, if so.
    fn held_for(&self) -> Option<Duration> {
        let left = self.hold().until?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// A call that began at `begun` was one too many: everybody waits. How long.
    pub(super) fn hold_for(&self, asked: Option<Duration>, begun: Instant) -> Duration {
        let (mut hold, now) = (self.hold(), Instant::now());
        // Calls that were under way together say it together.
        let is_new = hold.since.is_none_or(|since| begun > since);
        if is_new {
            hold.length = (hold.length * 2).clamp(FIRST_HOLD, LONGEST_HOLD);
            hold.since = Some(now);
        }
        let asked = asked.filter(|asked| !asked.is_zero()).map(|asked| asked.min(LONGEST_ASKED));
        let until = match (asked, hold.until) {
            (Some(asked), until) => until.max(Some(now + asked)),
            (None, until) if is_new => until.max(Some(now + hold.length)),
            (None, until) => until,
        };
        hold.until = until;
        until.map_or(FIRST_HOLD, |until| until.saturating_duration_since(now))
    }

    /// A call that began at `begun` was none too many.
    pub(super) fn is_well(&self, begun: Instant) {
        let mut hold = self.hold();
        if hold.since.is_some_and(|since| begun > since) {
            *hold = Hold { until: hold.until, ..Hold::default() };
        }
    }

    fn hold(&self) -> MutexGuard<'_, Hold> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// So many calls in any second, and no more: a part of a company's calls that strangers can cause.
///
/// Who waits for one waits by [`Rank`], and within a rank in the order in which they came.
#[derive(Debug)]
pub struct Budget {
    most: usize,
    spent: Mutex<VecDeque<Instant>>,
    waiting: Mutex<Waiting>,
}

/// Who goes first for a call of a [`Budget`]. A mail server asks again for what it could not have, and strangers who try
/// numbers try others: so nobody can keep the former out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Has had a call of the several that it needs.
    Begun,
    /// Was turned away before.
    Again,
    /// Asks for the first time.
    New,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    places: BTreeSet<(Rank, u64)>,
}

impl Budget {
    /// Between two looks at whether it is one's turn, at least.
    const LOOK: Duration = Duration::from_millis(5);

    /// At most so many calls in any second.
    pub fn new(most: usize) -> Self {
        Self { most, spent: Mutex::default(), waiting: Mutex::default() }
    }

    /// Waits for a call; true if there was one in time.
    pub async fn turn(&self, rank: Rank, patience: Duration) -> bool {
        let place = Place::take(self, rank);
        let turn = async {
            loop {
                let turn = if place.is_first() { self.spend() } else { Err(self.next()) };
                match turn {
                    Ok(()) => return,
                    Err(left) => tokio::time::sleep(left.max(Self::LOOK)).await,
                }
            }
        };
        tokio::time::timeout(patience, turn).await.is_ok()
    }

    /// Takes a call from the budget.
    /// # Errors
    /// In how long there is one again.
    fn spend(&self) -> Result<(), Duration> {
        let mut spent = self.spent();
        match self.left(&mut spent) {
            Some(left) => Err(left),
            None => {
                spent.push_back(Instant::now());
                Ok(())
            }
        }
    }

    /// In how long there is a call again, if there is none.
    fn left(&self, spent: &mut VecDeque<Instant>) -> Option<Duration> {
        let now = Instant::now();
        while spent.front().is_some_and(|at| now.duration_since(*at) >= Duration::from_secs(1)) {
            spent.pop_front();
        }
        let first = spent.front().filter(|_| spent.len() >= self.most)?;
        Some(*first + Duration::from_secs(1) - now)
    }

    /// In how long somebody gets a call.
    fn next(&self) -> Duration {
        self.left(&mut self.spent()).unwrap_or_default()
    }

    fn spent(&self) -> MutexGuard<'_, VecDeque<Instant>> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among those who wait; given up when it is dropped, however the waiting ended.
struct Place<'a> {
    budget: &'a Budget,
    place: (Rank, u64),
}

impl<'a> Place<'a> {
    fn take(budget: &'a Budget, rank: Rank) -> Self {
        let mut waiting = budget.waiting();
        let place = (rank, waiting.next);
        waiting.next += 1;
        waiting.places.insert(place);
        drop(waiting);
        Self { budget, place }
    }

    fn is_first(&self) -> bool {
        self.budget.waiting().places.first() == Some(&self.place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.budget.waiting().places.remove(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const NONE: Duration = Duration::ZERO;

    /// S7.
    #[tokio::test(start_paused = true)]
    async fn eight_a_second_however_many_ask() {
        let pace = Arc::new(Pace::default());
        let start = Instant::now();
        let turns: Vec<_> = (0..33)
            .map(|_| {
                let pace = Arc::clone(&pace);
                tokio::spawn(async move { pace.turn(NONE).await.unwrap() })
            })
            .collect();
        let mut at = Vec::new();
        for turn in turns {
            at.push(turn.await.unwrap() - start);
        }
        assert!(at.is_sorted(), "in the order in which they came: {at:?}");
        assert_eq!(at[32], BETWEEN * 32);
        // Who comes late makes nobody hurry: no burst after a pause.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let (first, second) = (pace.turn(NONE).await.unwrap(), pace.turn(NONE).await.unwrap());
        assert!(second - first >= BETWEEN);
    }

    /// S7.
    #[tokio::test(start_paused = true)]
    async fn who_leaves_takes_no_turn_along() {
        let pace = Pace::default();
        let first = pace.turn(NONE).await.unwrap();
        for _ in 0..10 {
            assert!(tokio::time::timeout(Duration::from_millis(1), pace.turn(NONE)).await.is_err());
        }
        assert_eq!(pace.turn(NONE).await.unwrap() - first, BETWEEN);
    }

    /// S7.
    #[tokio::test(start_paused = true)]
    async fn after_one_too_many_everybody_waits() {
        let pace = Pace::default();
        let seconds = Duration::from_secs;
        let begun = pace.turn(NONE).await.unwrap();
        assert_eq!(pace.hold_for(None, begun), seconds(1));
        // Said by others that were under way: the same pause, not a longer one.
        assert_eq!(pace.hold_for(None, begun), seconds(1));
        assert_eq!(pace.turn(NONE).await, Err(seconds(1)));
        let again = pace.turn(seconds(5)).await.unwrap();
        assert_eq!(again - begun, seconds(1));
        assert_eq!(pace.hold_for(None, again), seconds(2));
        let third = pace.turn(seconds(5)).await.unwrap();
        // What was under way before says nothing.
        pace.is_well(begun);
        assert_eq!(pace.hold_for(None, third), seconds(4));
        let fourth = pace.turn(seconds(5)).await.unwrap();
        pace.is_well(fourth);
        assert_eq!(pace.hold_for(None, fourth), seconds(1));
        // What the answer asks for counts, within a day; nothing at all does not.
        let fifth = pace.turn(seconds(5)).await.unwrap();
        assert_eq!(pace.hold_for(Some(seconds(30)), fifth), seconds(30));
        assert_eq!(pace.turn(seconds(5)).await, Err(seconds(30)));
        assert_eq!(pace.hold_for(Some(Duration::MAX), fifth), LONGEST_ASKED);
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_counts_in_any_second() {
        let budget = Budget::new(2);
        let step = Duration::from_millis(400);
        assert_eq!(budget.spend(), Ok(()));
        tokio::time::advance(step).await;
        assert_eq!(budget.spend(), Ok(()));
        assert_eq!(budget.spend(), Err(Duration::from_millis(600)));
        tokio::time::advance(Duration::from_millis(600)).await;
        assert_eq!(budget.spend(), Ok(()));
        assert_eq!(budget.spend(), Err(step));
    }

    /// S12.
    #[tokio::test(start_paused = true)]
    async fn who_asks_again_goes_before_those_who_are_new() {
        let budget = Arc::new(Budget::new(2));
        let patience = Duration::from_secs(2);
        for _ in 0..1000 {
            let budget = Arc::clone(&budget);
            tokio::spawn(async move { budget.turn(Rank::New, patience).await });
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!budget.turn(Rank::New, patience).await, "a thousand came before");
        for _ in 0..1000 {
            let budget = Arc::clone(&budget);
            tokio::spawn(async move { budget.turn(Rank::New, patience).await });
        }
        let at = Instant::now();
        assert!(budget.turn(Rank::Again, patience).await);
        assert!(budget.turn(Rank::Begun, patience).await);
        assert!(at.elapsed() <= Duration::from_millis(1100), "{:?}", at.elapsed());
        tokio::time::sleep(patience * 2).await;
        assert!(budget.waiting().places.is_empty(), "who gives up keeps no place");
    }
}
