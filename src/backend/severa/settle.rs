//! When it may be asked what became of a call whose answer was lost.
//!
//! In: calls that create something. Out: how long to wait before looking for what they made.
//! Promise: a time of its own from the moment an answer was lost, whatever ended the attempt: an error, a panic, the end of
//! its lease. A call of another process, one before this or one on another machine, was lost when we were given what it is
//! about, at the latest: a lease that comes back at once says nothing of how long ago that was.

use crate::activity::Key;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// What is past is remembered for so long: who has waited, and is not asked for at once, does not wait once more.
const MEMORY: Duration = Duration::from_secs(3600);

/// Lost answers, by the activity they concern. Survives a reload.
#[derive(Debug, Default)]
pub struct Unsure {
    /// When it may be asked.
    until: Mutex<HashMap<Key, Instant>>,
}

impl Unsure {
    fn until(&self) -> MutexGuard<'_, HashMap<Key, Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call that creates something begins. Unless it is [`Call::answered`], its answer is lost when this is dropped.
    pub(super) fn call<'a>(&'a self, key: &'a Key, settle: Duration) -> Call<'a> {
        Call { unsure: self, key, settle, answered: false }
    }

    /// How long it is to be waited before it is asked, `settle` being the time from the lost answer, or from now where another
    /// process has lost it.
    pub(super) fn left(&self, key: &Key, settle: Duration) -> Option<Duration> {
        let now = Instant::now();
        let until = *self.until().entry(key.clone()).or_insert(now + settle);
        let left = until.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }
}

/// A call under way.
pub(super) struct Call<'a> {
    unsure: &'a Unsure,
    key: &'a Key,
    settle: Duration,
    answered: bool,
}

impl Call<'_> {
    /// It was answered, or nothing was done.
    pub(super) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let (now, mut until) = (Instant::now(), self.unsure.until());
        // So it stays small.
        until.retain(|_, until| *until + MEMORY > now);
        if !self.answered {
            until.insert(self.key.clone(), now + self.settle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::Head;

    fn key() -> Key {
        Key::digest("t", None, &Head::default(), &[0; 32])
    }

    /// S3.
    #[tokio::test(start_paused = true)]
    async fn a_lost_answer_settles_from_when_it_was_lost() {
        let settle = Duration::from_secs(60);
        let (unsure, key) = (Unsure::default(), key());
        let call = unsure.call(&key, settle);
        tokio::time::advance(settle).await;
        drop(call);
        assert_eq!(unsure.left(&key, settle), Some(settle));
        tokio::time::advance(settle / 2).await;
        assert_eq!(unsure.left(&key, settle), Some(settle / 2));
        tokio::time::advance(settle).await;
        assert_eq!(unsure.left(&key, settle), None);
        // Other calls come and go, and it was not asked for meanwhile.
        unsure.call(&key, settle).answered();
        assert_eq!(unsure.left(&key, settle), None);
        tokio::time::advance(MEMORY).await;
        unsure.call(&key, settle).answered();
        assert!(unsure.until().is_empty());
    }

    /// S3: another machine may have been killed a moment ago, and what it had is ours at once.
    #[tokio::test(start_paused = true)]
    async fn what_another_process_began_settles_from_when_we_are_given_it() {
        let settle = Duration::from_secs(60);
        let (unsure, key) = (Unsure::default(), key());
        tokio::time::advance(10 * settle).await;
        assert_eq!(unsure.left(&key, settle), Some(settle));
        tokio::time::advance(settle).await;
        assert_eq!(unsure.left(&key, settle), None);
    }
}
