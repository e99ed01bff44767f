//! One attempt: opens the activity, gives it to the backend, says what became of it, and ends the lease.

use super::{
    Settings, backoff,
    breaker::{Lesson, Sign},
    too_old,
};
use crate::backend::{Backend, Delivery, Journal, NotNoted, Outcome, Trouble};
use crate::observe::{Promise, events};
use crate::queue::{End, Entry, Filter, Item, LEASE, Queue, StorageError, Ticket};
use async_trait::async_trait;
use futures_util::FutureExt;
use std::{
    collections::HashSet,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// A backend's `Retry-After` is honoured up to this long: a wrong clock there must not park mail for years.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// An attempt that notes no progress ends before its lease does: a second one must not begin beside it.
const LONGEST_ATTEMPT: Duration = LEASE.saturating_sub(Duration::from_secs(60));

/// Pause of an activity that we cannot read or note now.
const OURS: Duration = Duration::from_secs(10);

/// The backend's progress with an activity, in the queue.
struct InQueue {
    queue: Arc<dyn Queue>,
    ticket: Ticket,
    last: Mutex<Option<String>>,
    /// When the attempt must have ended.
    ends: Mutex<Instant>,
}

impl InQueue {
    fn new(queue: Arc<dyn Queue>, ticket: Ticket, last: Option<String>) -> Self {
        let ends = Mutex::new(Instant::now() + LONGEST_ATTEMPT);
        Self { queue, ticket, last: Mutex::new(last), ends }
    }

    /// Waits until the lease is nearly over, and nothing has prolonged it.
    async fn ended(&self) {
        loop {
            let ends = *self.ends.lock().unwrap_or_else(PoisonError::into_inner);
            if ends <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(ends).await;
        }
    }
}

#[async_trait]
impl Journal for InQueue {
    fn last(&self) -> Option<String> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn note(&self, step: String) -> Result<(), NotNoted> {
        match self.queue.note(&self.ticket, step.clone()).await {
            Ok(true) => {
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(step);
                *self.ends.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + LONGEST_ATTEMPT;
                Ok(())
            }
            Ok(false) => Err(NotNoted::Lost),
            Err(error) => Err(NotNoted::Queue(error.to_string())),
        }
    }
}

/// What attempts carry, so that two leases of one activity are seen.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Mutex<HashSet<i64>>);

/// An attempt that carries this activity.
struct Alone<'a>(&'a UnderWay, i64);

impl UnderWay {
    fn items(&self) -> MutexGuard<'_, HashSet<i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, item: i64, key: &str) -> Alone<'_> {
        if !self.items().insert(item) {
            events::broken(Promise::Lease, key, &"leased while another attempt carries it");
        }
        Alone(self, item)
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.items().remove(&self.1);
    }
}

/// Makes an attempt.
pub(super) async fn attempt(
    queue: Arc<dyn Queue>,
    backend: &dyn Backend,
    settings: &Settings,
    under_way: &UnderWay,
    ticket: Ticket,
) -> Lesson {
    let item_id = ticket.item;
    let item = match queue.begin(&ticket).await {
        Ok(item) => item,
        Err(error) => return unreadable(queue.as_ref(), ticket, &error).await,
    };
    let alone = under_way.enter(item_id, item.key.as_str());
    let (attempts, age, key) = (item.attempts, item.age, item.key.to_string());
    let tenant = Arc::clone(&ticket.tenant);
    let started = Instant::now();
    let journal = InQueue::new(Arc::clone(&queue), ticket.clone(), item.note.clone());
    let Item { activity, json, cuts, raw, replay, .. } = item;
    let delivery = Delivery { activity, json, cuts, raw, replay };
    let again = |trouble, reason: &str| Outcome::Again { after: None, trouble, reason: reason.to_owned() };
    let outcome = tokio::select! {
        outcome = AssertUnwindSafe(backend.deliver(&delivery, &journal)).catch_unwind() => {
            outcome.unwrap_or_else(|_| again(Trouble::Ours, "the attempt panicked, see the log"))
        }
        () = journal.ended() => again(Trouble::Broken, "the attempt took longer than its lease"),
    };
    let queue_id = delivery.activity.envelope.queue_id.clone().unwrap_or_default();
    drop(delivery);
    let which = events::Which { queue_id: &queue_id, key: &key, tenant: &tenant };
    let attempt = attempts + 1;
    let mut about = None;
    let (end, learned) = match outcome {
        Outcome::Taken => {
            events::delivered(&which, attempt, started.elapsed());
            (End::Taken, Lesson::of(item_id, Sign::Answered))
        }
        Outcome::Refused { status, detail, about: of } => {
            let reason = match (status.as_str(), detail.as_str()) {
                ("", detail) => detail.to_owned(),
                (status, "") => format!("backend answered {status}"),
                (status, detail) => format!("backend answered {status}: {detail}"),
            };
            about = of;
            (End::Held { reason }, Lesson::of(item_id, Sign::Answered))
        }
        Outcome::Misconfigured { scope, after, reason } => {
            events::misconfigured(&which, attempt, &reason);
            let learned =
                Lesson { item: item_id, sign: Sign::Misconfigured(scope), reason: reason.clone(), after };
            let reason = format!("{reason}: see the backend's settings");
            (End::Again { after: Duration::ZERO, counts: false, reason }, learned)
        }
        Outcome::Again { trouble: Trouble::Ours, reason, .. } => {
            events::queue_trouble(&reason);
            (End::Again { after: OURS, counts: false, reason }, Lesson::of(item_id, Sign::Nothing))
        }
        Outcome::Again { trouble: Trouble::Waits, after, reason } => {
            let after = after.unwrap_or(OURS).min(LONGEST_RETRY_AFTER);
            (End::Again { after, counts: false, reason }, Lesson::of(item_id, Sign::Nothing))
        }
        Outcome::Again { after, trouble, reason } => {
            let delay = backoff(settings.retry_first, settings.retry_max, attempts);
            let delay = delay.max(after.unwrap_or_default().min(LONGEST_RETRY_AFTER));
            let times = events::Times { elapsed: started.elapsed(), delay };
            events::deferred(&which, attempt, times, trouble == Trouble::Denied, &reason);
            let sign = if trouble == Trouble::Lost { Sign::Nothing } else { Sign::Failed(trouble) };
            let learned = Lesson { item: item_id, sign, reason: reason.clone(), after };
            (End::Again { after: delay, counts: true, reason }, learned)
        }
    };
    let end = match end {
        End::Again { reason, .. } if age > settings.max_age => {
            End::Held { reason: too_old(settings, &reason) }
        }
        end => end,
    };
    let end = match (end, about) {
        (End::Held { reason }, about) => {
            events::held(&which, attempt, &reason);
            let about = about.map(|about| format!(" ({about})")).unwrap_or_default();
            End::Held { reason: reason + &about }
        }
        (end, _) => end,
    };
    drop(alone); // from here on it may be leased anew
    if let Err(error) = queue.finish(vec![(ticket, end)]).await {
        events::queue_trouble(&error); // the queue tries again by itself
    }
    learned
}

/// What the queue says of a row, if it can.
async fn entry(queue: &dyn Queue, item: i64) -> Option<Entry> {
    let filter = Filter { after: item.checked_sub(1), limit: Some(1), ..Filter::default() };
    queue.list(filter).await.ok()?.into_iter().find(|entry| entry.id == item)
}

/// What cannot be read says nothing of the backend. Only what nobody will ever read is held for a person.
async fn unreadable(queue: &dyn Queue, ticket: Ticket, error: &StorageError) -> Lesson {
    let item_id = ticket.item;
    let reason = error.to_string();
    let end = match error {
        StorageError::Gone(_) => {
            let entry = entry(queue, item_id).await;
            let queue_id = entry.as_ref().and_then(|entry| entry.queue_id.as_deref()).unwrap_or_default();
            let key = entry.as_ref().map(|entry| entry.key.as_str()).unwrap_or_default();
            events::broken(Promise::Stored, key, &reason);
            events::held(&events::Which { queue_id, key, tenant: &ticket.tenant }, 0, &reason);
            End::Held { reason }
        }
        _ => {
            events::queue_trouble(error);
            End::Again { after: OURS, counts: false, reason }
        }
    };
    if let Err(error) = queue.finish(vec![(ticket, end)]).await {
        events::queue_trouble(&error);
    }
    Lesson::of(item_id, Sign::Nothing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics;

    fn seen() -> bool {
        metrics::render().contains("violated_total{promise=\"Q14\"} 1")
    }

    /// Q14: one after the other is as it should be; two at a time are seen.
    #[test]
    fn two_attempts_at_one_activity_are_seen() {
        metrics::start();
        let under_way = UnderWay::default();
        drop(under_way.enter(1, "key"));
        let (first, other) = (under_way.enter(1, "key"), under_way.enter(2, "key"));
        assert!(!seen());
        let second = under_way.enter(1, "key");
        assert!(seen());
        drop((first, other, second));
        assert!(under_way.items().is_empty());
    }
}
