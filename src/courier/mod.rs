//! Takes activities from the queue, gives them to the backend, and knows when to try again.
//!
//! In: a queue and a backend. Out: every activity taken by the backend once, or held with the reason.
//! Promise: at most `max_in_flight` attempts at a time; a lease that is not finished comes back by itself.
//! Fails: never; trouble with the backend is a later attempt, trouble with the queue is a log line and a pause.
//!
//! When the backend says that our settings are wrong (401, 403, 404, 410, a redirect), or does not answer several
//! activities in a row, every other one would fail alike. So the courier pauses, raises the alarm, lets a single
//! activity through from time to time as a probe, and resumes with the first answer that is about the activity.
//!
//! Fair: tenants take turns, and no tenant fills all the attempts that may run at a time, so that a hundred thousand
//! activities of one company do not stand before another company's single one.

mod direct;

pub use direct::{Direct, Given};

use crate::backend::{Backend, Delivery, Outcome, Trouble};
use crate::observe::events;
use crate::queue::{Finish, Lease, Queue, StorageError, Turn};
use arc_swap::ArcSwap;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::{
    sync::Notify,
    task::{Id, JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;

/// How long a lease lasts: longer than the longest attempt, so that it ends early only if we are gone.
const LEASE: Duration = Duration::from_secs(3600);

/// A backend's `Retry-After` is honoured up to this long: a wrong clock there must not park mail for years.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Longest pause between two probes while paused: an admin who repaired the token waits no longer than this.
const LONGEST_PROBE: Duration = Duration::from_secs(60);

/// So many different activities without an answer, one after the other, mean that the backend is down. A single one
/// that it always fails at means nothing, and few that wait are no burden: each has its own growing delay.
const DOWN_AFTER: usize = 5;

/// Leases that may wait for an attempt, as a multiple of the attempts: what is kept in memory has a limit.
const MOST_READY: usize = 4;

/// Pause after trouble with the queue itself.
const QUEUE_TROUBLE: Duration = Duration::from_secs(1);

/// How often the queue is asked whether a person has changed something.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often keys are forgotten and free pages given back.
const TIDY_EVERY: Duration = Duration::from_secs(20);

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

/// What can change while the courier works, and what can be seen of it.
pub struct Controls {
    settings: ArcSwap<Settings>,
    changed: Notify,
    paused: Mutex<Option<String>>,
}

impl Controls {
    /// With these settings to begin with.
    pub fn new(settings: Settings) -> Arc<Self> {
        let settings = ArcSwap::from_pointee(settings);
        Arc::new(Self { settings, changed: Notify::new(), paused: Mutex::default() })
    }

    /// Other settings from here on. A pause ends: perhaps what was wrong is right now.
    pub fn change(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
        self.changed.notify_one();
    }

    /// Why deliveries are paused, if they are.
    pub fn paused(&self) -> Option<String> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_paused(&self, why: Option<String>) {
        *self.paused.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }
}

/// Where the activities of an accepted message go.
#[derive(Clone)]
pub enum Desk {
    /// Into the queue, from which the courier takes them.
    Queue(Arc<Queue>),
    /// To the backend at once.
    Direct(Arc<Direct>),
}

/// Carries activities until `stop`, then finishes the attempts under way.
pub async fn run(
    queue: Arc<Queue>,
    backend: Arc<dyn Backend>,
    controls: Arc<Controls>,
    stop: CancellationToken,
) {
    let mut courier = Courier {
        queue,
        backend,
        settings: controls.settings.load_full(),
        controls,
        attempts: JoinSet::new(),
        tenants: HashMap::new(),
        ready: VecDeque::new(),
        last: String::new(),
        unanswered: HashSet::new(),
        pause: None,
    };
    // Beside the loop: giving back a large file's pages takes seconds, and deliveries go on meanwhile.
    let tidy = tokio::spawn(tidy(Arc::clone(&courier.queue), Arc::clone(&courier.controls)));
    let mut look = tokio::time::interval(LOOK_EVERY);
    let controls = Arc::clone(&courier.controls);
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
            () = controls.changed.notified() => courier.change(),
            () = tokio::time::sleep(wait) => {}
            _ = look.tick() => {
                if let Err(error) = courier.queue.changed().await {
                    events::queue_trouble(&error);
                }
            }
            Some(done) = courier.attempts.join_next_with_id() => courier.all_ended(done).await,
        }
    }
    tidy.abort();
    courier.release().await;
    while courier.attempts.join_next().await.is_some() {}
}

/// What one attempt taught about the backend.
#[derive(Clone, Debug)]
enum Learned {
    /// It answered about the activity: our settings are right.
    Answers,
    /// Our settings are wrong.
    Misconfigured(String),
    /// No connection, overload.
    Unanswered(i64, String),
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
    settings: Arc<Settings>,
    controls: Arc<Controls>,
    attempts: JoinSet<Learned>,
    /// Whose activity each attempt carries.
    tenants: HashMap<Id, String>,
    /// Leased, and not begun: leases are taken many at a time, because each taking is a commit.
    ready: VecDeque<Lease>,
    /// The tenant whose turn was last.
    last: String,
    /// The activities that had no answer since the last answer.
    unanswered: HashSet<i64>,
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
        let room = room - self.start(room);
        if room == 0 {
            return Ok(LEASE); // until an attempt ends
        }
        if self.ready.len() >= MOST_READY * self.settings.max_in_flight {
            return Ok(LEASE); // nobody of those may have another attempt now; the end of one wakes us
        }
        let turn = self.turn();
        let has_share = turn.without.is_some();
        let wanted = if self.pause.is_some() { 1 } else { room + self.settings.max_in_flight };
        let (leases, damaged) = self.queue.take(wanted, turn, now, LEASE).await?;
        for item in damaged {
            events::held(item.key.as_str(), "", 0, &item.message);
        }
        if let Some(lease) = leases.last() {
            self.last.clone_from(&lease.tenant);
        }
        let more = leases.len() == wanted;
        self.ready.extend(leases);
        self.start(room);
        if more {
            return Ok(if self.pause.is_some() { LEASE } else { Duration::ZERO });
        }
        let due = self.queue.next_due().await?;
        // What is due and was not taken belongs to a tenant that has its share; the end of an attempt wakes us.
        let overdue = if has_share { LEASE } else { Duration::ZERO };
        Ok(due.map_or(LEASE, |due| due.duration_since(now).unwrap_or(overdue)))
    }

    /// Attempts that one tenant may have at a time: three quarters of all.
    fn share(&self) -> usize {
        let most = self.settings.max_in_flight;
        if most < 4 { most } else { most - most / 4 }
    }

    fn running(&self, tenant: &str) -> usize {
        self.tenants.values().filter(|running| *running == tenant).count()
    }

    /// Starts up to `room` attempts of those that are ready, and of tenants that do not have their share; how many.
    fn start(&mut self, room: usize) -> usize {
        let mut started = 0;
        while started < room {
            let may = |lease: &Lease| self.running(&lease.tenant) < self.share();
            let Some(lease) = self.ready.iter().position(may).and_then(|at| self.ready.remove(at)) else {
                break;
            };
            let (queue, backend) = (Arc::clone(&self.queue), Arc::clone(&self.backend));
            let (settings, tenant) = (Arc::clone(&self.settings), lease.tenant.clone());
            let attempt =
                self.attempts.spawn(async move { attempt(&queue, backend.as_ref(), &settings, lease).await });
            self.tenants.insert(attempt.id(), tenant);
            started += 1;
        }
        started
    }

    /// Whose turn it is.
    fn turn(&self) -> Turn {
        let ready = self.ready.iter().map(|lease| &lease.tenant);
        let mut counts: HashMap<&str, usize> = HashMap::new();
        self.tenants.values().chain(ready).for_each(|tenant| *counts.entry(tenant).or_default() += 1);
        let busiest = counts.into_iter().max_by_key(|(_, count)| *count);
        let without =
            busiest.filter(|(_, count)| *count >= self.share()).map(|(tenant, _)| tenant.to_owned());
        Turn { after: self.last.clone(), without }
    }

    /// Gives back what is leased and not begun, so that people see it waiting, and may hold or drop it.
    async fn release(&mut self) {
        let ids: Vec<i64> = self.ready.drain(..).map(|lease| lease.id).collect();
        if !ids.is_empty()
            && let Err(error) = self.queue.release(ids, SystemTime::now()).await
        {
            events::queue_trouble(&error); // the leases end by themselves
        }
    }

    /// Learns from an attempt that ended, and from all others that have ended meanwhile.
    async fn all_ended(&mut self, done: Result<(Id, Learned), JoinError>) {
        let was_paused = self.pause.is_some();
        self.ended(done);
        while let Some(done) = self.attempts.try_join_next_with_id() {
            self.ended(done);
        }
        if self.pause.is_some() && !was_paused {
            self.release().await;
        }
    }

    fn ended(&mut self, done: Result<(Id, Learned), JoinError>) {
        let (id, learned) = match done {
            Ok((id, learned)) => (id, Some(learned)),
            Err(error) => {
                events::queue_trouble(&error); // its lease ends by itself
                (error.id(), None)
            }
        };
        self.tenants.remove(&id);
        if let Some(learned) = learned {
            self.learn(learned);
        }
    }

    fn learn(&mut self, learned: Learned) {
        // Attempts that were under way when the pause began are no probes.
        let is_late = self.pause.as_ref().is_some_and(|p| p.next > SystemTime::now());
        match learned {
            Learned::Answers => {
                self.unanswered.clear();
                if self.pause.take().is_some() {
                    self.controls.set_paused(None);
                    events::courier_resumed();
                }
            }
            Learned::Misconfigured(_) | Learned::Unanswered(..) if is_late => {}
            Learned::Misconfigured(reason) => {
                let next = self.pause_on(&reason);
                events::courier_paused(&reason, next);
            }
            Learned::Unanswered(id, reason) => {
                self.unanswered.insert(id);
                if self.pause.is_some() || self.unanswered.len() >= DOWN_AFTER {
                    let next = self.pause_on(&reason);
                    events::backend_down(&reason, next);
                }
            }
        }
    }

    /// Takes over new settings, and tries at once what was wrong with the old ones.
    fn change(&mut self) {
        self.settings = self.controls.settings.load_full();
        if let Some(pause) = &mut self.pause {
            *pause = Pause { probes: 0, next: SystemTime::now() };
        }
    }

    /// Begins or goes on with a pause; the time to the next probe.
    fn pause_on(&mut self, reason: &str) -> Duration {
        self.controls.set_paused(Some(reason.to_owned()));
        let probes = self.pause.as_ref().map_or(0, |pause| pause.probes + 1);
        let longest = LONGEST_PROBE.min(self.settings.retry_max);
        let delay = backoff(self.settings.retry_first, longest, probes);
        self.pause = Some(Pause { probes, next: SystemTime::now() + delay });
        delay
    }
}

/// Holds what is too old, also while nothing is attempted, and lets the queue clean up, from time to time.
async fn tidy(queue: Arc<Queue>, controls: Arc<Controls>) {
    let mut tick = tokio::time::interval(TIDY_EVERY);
    loop {
        tick.tick().await;
        if let Err(error) = tidy_once(&queue, &controls.settings.load()).await {
            events::queue_trouble(&error);
        }
    }
}

async fn tidy_once(queue: &Queue, settings: &Settings) -> Result<(), StorageError> {
    let now = SystemTime::now();
    let reason = too_old(settings, "no attempt was answered");
    for (key, tenant) in queue.hold_older(now - settings.max_age, &reason).await? {
        events::held(key.as_str(), &tenant, 0, &reason);
    }
    queue.tidy(now).await
}

fn too_old(settings: &Settings, reason: &str) -> String {
    format!("not taken within {}: {reason}", humantime::format_duration(settings.max_age))
}

async fn attempt(queue: &Queue, backend: &dyn Backend, settings: &Settings, lease: Lease) -> Learned {
    let Lease { id, tenant, activity, json, cuts, raw, attempts, accepted_at } = lease;
    let key = activity.key.to_string();
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
        Outcome::Refused { status, detail } => {
            let reason = if detail.is_empty() { status } else { format!("{status}: {detail}") };
            (Finish::Held { reason: format!("backend answered {reason}") }, Learned::Answers)
        }
        Outcome::Misconfigured { reason } => {
            let learned = Learned::Misconfigured(reason.clone());
            let reason = format!("{reason}: see the backend's settings");
            (Finish::Again { due: now, counts: false, reason }, learned)
        }
        Outcome::Again { after, trouble, reason } => {
            let delay = backoff(settings.retry_first, settings.retry_max, attempts);
            let delay = delay.max(after.unwrap_or_default().min(LONGEST_RETRY_AFTER));
            events::deferred(&key, &tenant, attempt, delay, &reason);
            let learned = match trouble {
                Trouble::Down | Trouble::Busy => Learned::Unanswered(id, reason.clone()),
                Trouble::Later => Learned::Answers,
            };
            (Finish::Again { due: now + delay, counts: true, reason }, learned)
        }
    };
    let finish = match finish {
        Finish::Again { reason, .. } if age > settings.max_age => {
            Finish::Held { reason: too_old(settings, &reason) }
        }
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
