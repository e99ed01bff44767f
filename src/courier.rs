//! Takes activities from the queue, gives them to the backend, and knows when to try again.
//!
//! In: a queue and a backend. Out: every activity taken by the backend once, or held with the reason.
//! Promise: at most `max_in_flight` attempts at a time; a lease that is not finished comes back by itself.
//! Fails: never; trouble with the backend is a later attempt, trouble with the queue is a log line and a pause.
//!
//! When the backend says that our settings are wrong (401, 403, 404, 410, a redirect), every activity would fail
//! alike. So the courier pauses, raises the alarm, lets a single activity through from time to time as a probe, and
//! resumes with the first answer that is about the activity and not about us.

use crate::backend::{Backend, Delivery, Outcome};
use crate::observe::events;
use crate::queue::{Finish, Lease, Queue, StorageError};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long a lease lasts: longer than the longest attempt, so that it ends early only if we are gone.
const LEASE: Duration = Duration::from_secs(3600);

/// A backend's `Retry-After` is honoured up to this long: a wrong clock there must not park mail for years.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Longest pause between two probes while paused: an admin who repaired the token waits no longer than this.
const LONGEST_PROBE: Duration = Duration::from_secs(60);

/// Pause after trouble with the queue itself.
const QUEUE_TROUBLE: Duration = Duration::from_secs(1);

/// How often keys are forgotten and free pages given back.
const TIDY_EVERY: Duration = Duration::from_secs(60);

/// Settings of the courier.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Attempts at a time.
    pub max_in_flight: usize,
    /// Delay before the second attempt; each further one waits twice as long.
    pub retry_first: Duration,
    /// Longest delay.
    pub retry_max: Duration,
    /// Age at which an activity that still fails is held for a person.
    pub max_age: Duration,
}

/// Carries activities until `stop`, then finishes the attempts under way.
pub async fn run(queue: Arc<Queue>, backend: Arc<dyn Backend>, settings: Settings, stop: CancellationToken) {
    let mut courier = Courier { queue, backend, settings, attempts: JoinSet::new(), pause: None };
    let mut tidy = tokio::time::interval(TIDY_EVERY);
    while !stop.is_cancelled() {
        let wait = match courier.send().await {
            Ok(wait) => wait,
            Err(error) => {
                events::queue_trouble(&error);
                QUEUE_TROUBLE
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = courier.queue.arrival() => {}
            () = tokio::time::sleep(wait) => {}
            Some(done) = courier.attempts.join_next() => courier.learn(done.unwrap_or(Learned::Nothing)),
            _ = tidy.tick() => {
                if let Err(error) = courier.queue.tidy(SystemTime::now()).await {
                    events::queue_trouble(&error);
                }
            }
        }
    }
    while courier.attempts.join_next().await.is_some() {}
}

/// What one attempt taught about the backend.
#[derive(Clone, Copy, Debug)]
enum Learned {
    /// It answered about the activity: our settings are right.
    Answers,
    /// Our settings are wrong.
    Misconfigured(u16),
    /// No connection, overload: says nothing about our settings.
    Nothing,
}

/// Why nothing but probes is sent.
#[derive(Debug)]
struct Pause {
    probes: u32,
    next: SystemTime,
}

struct Courier {
    queue: Arc<Queue>,
    backend: Arc<dyn Backend>,
    settings: Settings,
    attempts: JoinSet<Learned>,
    pause: Option<Pause>,
}

impl Courier {
    /// Starts as many attempts as there is room for; the answer is how long to wait if nothing happens before.
    async fn send(&mut self) -> Result<Duration, StorageError> {
        let now = SystemTime::now();
        let room = match &self.pause {
            None => self.settings.max_in_flight.saturating_sub(self.attempts.len()),
            Some(pause) if self.attempts.is_empty() && pause.next <= now => 1,
            Some(pause) => return Ok(pause.next.duration_since(now).unwrap_or(QUEUE_TROUBLE)),
        };
        if room == 0 {
            return Ok(LEASE); // until an attempt ends
        }
        let (leases, damaged) = self.queue.take(room, now, LEASE).await?;
        for item in damaged {
            events::held(item.key.as_str(), "", 0, &item.message);
        }
        let all_started = leases.len() < room;
        for lease in leases {
            let (queue, backend) = (Arc::clone(&self.queue), Arc::clone(&self.backend));
            let settings = self.settings.clone();
            self.attempts.spawn(async move { attempt(&queue, backend.as_ref(), &settings, lease).await });
        }
        if !all_started {
            return Ok(LEASE);
        }
        let due = self.queue.next_due().await?;
        Ok(due.map_or(LEASE, |due| due.duration_since(now).unwrap_or_default()))
    }

    fn learn(&mut self, learned: Learned) {
        match learned {
            Learned::Nothing => {}
            Learned::Answers => {
                if self.pause.take().is_some() {
                    events::courier_resumed();
                }
            }
            // Attempts that were under way when the pause began are no probes.
            Learned::Misconfigured(_) if self.pause.as_ref().is_some_and(|p| p.next > SystemTime::now()) => {}
            Learned::Misconfigured(status) => {
                let probes = self.pause.as_ref().map_or(0, |pause| pause.probes + 1);
                let delay =
                    backoff(self.settings.retry_first, LONGEST_PROBE.min(self.settings.retry_max), probes);
                events::courier_paused(status, delay);
                self.pause = Some(Pause { probes, next: SystemTime::now() + delay });
            }
        }
    }
}

async fn attempt(queue: &Queue, backend: &dyn Backend, settings: &Settings, lease: Lease) -> Learned {
    let Lease { id, activity, json, cuts, raw, attempts, accepted_at } = lease;
    let (key, tenant) = (activity.key.to_string(), activity.tenant.id.clone());
    let started = tokio::time::Instant::now();
    let outcome = backend.deliver(&Delivery { activity, json, cuts, raw }).await;
    let now = SystemTime::now();
    let age = now.duration_since(accepted_at).unwrap_or_default();
    let attempt = attempts + 1;
    let (finish, learned) = match outcome {
        Outcome::Taken => {
            events::delivered(&key, &tenant, attempt, started.elapsed());
            (Finish::Taken, Learned::Answers)
        }
        Outcome::Refused { detail } => (Finish::Held { reason: detail }, Learned::Answers),
        Outcome::Misconfigured { status } => {
            let reason = format!("backend answered {status}: see the backend's settings");
            (Finish::Again { due: now, counts: false, reason }, Learned::Misconfigured(status))
        }
        Outcome::Again { after, reason } => {
            let delay = backoff(settings.retry_first, settings.retry_max, attempts);
            let delay = delay.max(after.unwrap_or_default().min(LONGEST_RETRY_AFTER));
            events::deferred(&key, &tenant, attempt, delay, &reason);
            (Finish::Again { due: now + delay, counts: true, reason }, Learned::Nothing)
        }
    };
    let finish = match finish {
        Finish::Again { reason, .. } if age > settings.max_age => Finish::Held {
            reason: format!("not taken within {}: {reason}", humantime::format_duration(settings.max_age)),
        },
        finish => finish,
    };
    if let Finish::Held { reason } = &finish {
        events::held(&key, &tenant, attempt, reason);
    }
    if let Err(error) = queue.finish(id, finish, now).await {
        events::queue_trouble(&error);
    }
    learned
}

/// Exponential, with jitter over its upper half, so that what failed together does not come back together.
fn backoff(first: Duration, longest: Duration, attempts: u32) -> Duration {
    let delay = first.saturating_mul(2_u32.saturating_pow(attempts.min(30))).min(longest);
    delay.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_longest_and_spread() {
        let (first, longest) = (Duration::from_secs(1), Duration::from_secs(600));
        for attempts in 0..100 {
            let whole = Duration::from_secs(1 << attempts.min(20)).min(longest);
            let delay = backoff(first, longest, attempts);
            assert!(delay <= whole && delay >= whole / 2, "{attempts}: {delay:?}");
        }
        assert_ne!(backoff(first, longest, 5), backoff(first, longest, 5));
    }
}
