//! Takes activities from the queue, gives them to the backend, and knows when to try again.
//!
//! In: a queue and a backend. Out: every activity taken by the backend once, or held with the reason.
//! Promise: at most `max_in_flight` attempts at a time, and at most [`OPEN_AT_A_TIME`] bytes of activities in memory,
//! whatever waits: a ticket is small, and what it stands for is read when its attempt begins. A lease that is not finished
//! comes back by itself.
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
use crate::queue::{Ask, End, Queue, StorageError, Ticket};
use arc_swap::ArcSwap;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore},
    task::{Id, JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// A backend's `Retry-After` is honoured up to this long: a wrong clock there must not park mail for years.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Longest pause between two probes while paused: an admin who repaired the token waits no longer than this.
const LONGEST_PROBE: Duration = Duration::from_secs(60);

/// So many different activities without an answer, one after the other, mean that the backend is down. A single one
/// that it always fails at means nothing, and few that wait are no burden: each has its own growing delay.
const DOWN_AFTER: usize = 5;

/// Leases that may wait for an attempt, as a multiple of the attempts.
const MOST_READY: usize = 4;

/// Bytes of JSON and messages that attempts hold in memory, over all of them.
pub const OPEN_AT_A_TIME: u64 = 64 << 20;

/// An opened activity takes its bytes so many times: as it is stored, as JSON to be sent, and as what it says.
const TIMES_OPEN: u64 = 3;

/// Pause after trouble with the queue itself.
const QUEUE_TROUBLE: Duration = Duration::from_secs(1);

/// Nothing is to be done until something happens.
const IDLE: Duration = Duration::from_secs(3600);

/// Pause of an activity that cannot be read now, and of one whose turn comes again at once.
const UNREADABLE: Duration = Duration::from_secs(10);

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
    Queue(Arc<dyn Queue>),
    /// To the backend at once.
    Direct(Arc<Direct>),
}

/// Carries activities until `stop`, then finishes the attempts under way.
pub async fn run(
    queue: Arc<dyn Queue>,
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
        open: Arc::new(Semaphore::new(permits(OPEN_AT_A_TIME) as usize)),
        tenants: HashMap::new(),
        ready: VecDeque::new(),
        last: String::new(),
        unanswered: HashSet::new(),
        pause: None,
    };
    // Beside the loop: giving back a large file's pages takes seconds, and deliveries go on meanwhile.
    let tidy = tokio::spawn(tidy(Arc::clone(&courier.queue), Arc::clone(&courier.controls)));
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
    /// Nothing: it was not asked.
    Nothing,
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
    /// By a clock that nobody sets: one that was a year ahead would stop all deliveries for a year.
    next: Instant,
}

struct Courier {
    queue: Arc<dyn Queue>,
    backend: Arc<dyn Backend>,
    settings: Arc<Settings>,
    controls: Arc<Controls>,
    attempts: JoinSet<Learned>,
    /// KiB that attempts may still hold.
    open: Arc<Semaphore>,
    /// Whose activity each attempt carries.
    tenants: HashMap<Id, Arc<str>>,
    /// Leased, and not begun: leases are taken many at a time, because each taking is a commit.
    ready: VecDeque<Ticket>,
    /// The tenant whose turn was last.
    last: String,
    /// The activities that had no answer since the last answer.
    unanswered: HashSet<i64>,
    pause: Option<Pause>,
}

impl Courier {
    /// Starts as many attempts as there is room for; the answer is how long to wait if nothing happens before.
    async fn send(&mut self) -> Result<Duration, StorageError> {
        let now = Instant::now();
        let room = match &self.pause {
            None => self.settings.max_in_flight.saturating_sub(self.attempts.len()),
            Some(pause) if self.attempts.is_empty() && pause.next <= now => 1,
            // A probe is under way if its time has come.
            Some(pause) if pause.next <= now => return Ok(QUEUE_TROUBLE),
            Some(pause) => return Ok(pause.next - now),
        };
        if room == 0 {
            return Ok(IDLE); // until an attempt ends
        }
        let wanted = room - self.start(room);
        if wanted == 0 {
            return Ok(IDLE); // until an attempt ends
        }
        if self.ready.len() >= MOST_READY * self.settings.max_in_flight {
            return Ok(IDLE); // nobody of those may have another attempt now; the end of one wakes us
        }
        let room = if self.pause.is_some() { 1 } else { wanted + self.settings.max_in_flight };
        let ask = Ask { room, after: self.last.clone(), without: self.satisfied() };
        let leased = self.queue.lease(ask).await?;
        if let Some(ticket) = leased.tickets.last() {
            self.last = ticket.tenant.to_string();
        }
        let more = leased.tickets.len() == room;
        self.ready.extend(leased.tickets);
        self.start(wanted);
        if more {
            return Ok(if self.pause.is_some() { IDLE } else { Duration::ZERO });
        }
        // What is due of tenants that have their share is not asked for: the end of an attempt wakes us.
        Ok(leased.next_due.unwrap_or(IDLE))
    }

    /// Attempts that one tenant may have at a time: all but an eighth.
    fn share(&self) -> usize {
        let most = self.settings.max_in_flight;
        if most < 4 { most } else { most - most.div_ceil(8) }
    }

    fn running(&self, tenant: &str) -> usize {
        self.tenants.values().filter(|running| &***running == tenant).count()
    }

    /// Starts up to `room` attempts of those that are ready, and of tenants that do not have their share; how many.
    fn start(&mut self, room: usize) -> usize {
        let mut started = 0;
        while started < room {
            let may = |ticket: &Ticket| self.running(&ticket.tenant) < self.share();
            let Some(ticket) = self.ready.iter().position(may).and_then(|at| self.ready.remove(at)) else {
                break;
            };
            let (queue, backend) = (Arc::clone(&self.queue), Arc::clone(&self.backend));
            let (settings, tenant) = (Arc::clone(&self.settings), Arc::clone(&ticket.tenant));
            let open = Arc::clone(&self.open);
            let attempt = self.attempts.spawn(async move {
                let _open = open.acquire_many(permits(ticket.size.saturating_mul(TIMES_OPEN))).await;
                attempt(queue.as_ref(), backend.as_ref(), &settings, ticket).await
            });
            self.tenants.insert(attempt.id(), tenant);
            started += 1;
        }
        started
    }

    /// Tenants that have their share, of attempts and of what is ready.
    fn satisfied(&self) -> Vec<String> {
        let ready = self.ready.iter().map(|ticket| &ticket.tenant);
        let mut counts: HashMap<&str, usize> = HashMap::new();
        self.tenants.values().chain(ready).for_each(|tenant| *counts.entry(tenant).or_default() += 1);
        // As many again may be ready as run, so that an attempt that ends has a successor at hand.
        let enough = 2 * self.share();
        counts
            .into_iter()
            .filter(|(_, count)| *count >= enough)
            .map(|(tenant, _)| tenant.to_owned())
            .collect()
    }

    /// Gives back what is leased and not begun, so that people see it waiting, and may hold or drop it.
    async fn release(&mut self) {
        let unused: Vec<(Ticket, End)> = self.ready.drain(..).map(|ticket| (ticket, End::Unused)).collect();
        if !unused.is_empty()
            && let Err(error) = self.queue.finish(unused).await
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
        let is_late = self.pause.as_ref().is_some_and(|p| p.next > Instant::now());
        match learned {
            Learned::Answers => {
                self.unanswered.clear();
                if self.pause.take().is_some() {
                    self.controls.set_paused(None);
                    events::courier_resumed();
                }
            }
            Learned::Nothing => {}
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
            *pause = Pause { probes: 0, next: Instant::now() };
        }
    }

    /// Begins or goes on with a pause; the time to the next probe.
    fn pause_on(&mut self, reason: &str) -> Duration {
        self.controls.set_paused(Some(reason.to_owned()));
        let probes = self.pause.as_ref().map_or(0, |pause| pause.probes + 1);
        let longest = LONGEST_PROBE.min(self.settings.retry_max);
        let delay = backoff(self.settings.retry_first, longest, probes);
        self.pause = Some(Pause { probes, next: Instant::now() + delay });
        delay
    }
}

/// Holds what is too old, also while nothing is attempted, and lets the queue clean up, from time to time.
async fn tidy(queue: Arc<dyn Queue>, controls: Arc<Controls>) {
    let mut tick = tokio::time::interval(TIDY_EVERY);
    loop {
        tick.tick().await;
        if let Err(error) = tidy_once(queue.as_ref(), &controls.settings.load()).await {
            events::queue_trouble(&error);
        }
    }
}

async fn tidy_once(queue: &dyn Queue, settings: &Settings) -> Result<(), StorageError> {
    let found = queue.upkeep(settings.max_age).await?;
    let reason = too_old(settings, "no attempt was answered");
    for (key, tenant) in &found.too_old {
        events::held(key.as_str(), tenant, 0, &reason);
    }
    events::upkeep(found.jumped, found.mended, found.aside, found.long_log);
    Ok(())
}

fn too_old(settings: &Settings, reason: &str) -> String {
    format!("not taken within {}: {reason}", humantime::format_duration(settings.max_age))
}

/// Semaphore permits for so many bytes: KiB, and never more than there are.
fn permits(bytes: u64) -> u32 {
    u32::try_from(bytes.min(OPEN_AT_A_TIME) >> 10).unwrap_or(u32::MAX)
}

async fn attempt(queue: &dyn Queue, backend: &dyn Backend, settings: &Settings, ticket: Ticket) -> Learned {
    let tenant = Arc::clone(&ticket.tenant);
    let item = match queue.open(ticket.item).await {
        Ok(item) => item,
        Err(error) => return unreadable(queue, ticket, &error).await,
    };
    let (attempts, age, key) = (item.attempts, item.age, item.key.to_string());
    let started = tokio::time::Instant::now();
    let delivery = Delivery { activity: item.activity, json: item.json, cuts: item.cuts, raw: item.raw };
    let outcome = backend.deliver(&delivery).await;
    drop(delivery);
    let attempt = attempts + 1;
    let (end, learned) = match outcome {
        Outcome::Taken => {
            events::delivered(&key, &tenant, attempt, started.elapsed());
            (End::Taken, Learned::Answers)
        }
        Outcome::Refused { status, detail } => {
            let reason = if detail.is_empty() { status } else { format!("{status}: {detail}") };
            (End::Held { reason: format!("backend answered {reason}") }, Learned::Answers)
        }
        Outcome::Misconfigured { reason } => {
            let learned = Learned::Misconfigured(reason.clone());
            let reason = format!("{reason}: see the backend's settings");
            (End::Again { after: Duration::ZERO, counts: false, reason }, learned)
        }
        Outcome::Again { after, trouble, reason } => {
            let delay = backoff(settings.retry_first, settings.retry_max, attempts);
            let delay = delay.max(after.unwrap_or_default().min(LONGEST_RETRY_AFTER));
            events::deferred(&key, &tenant, attempt, delay, &reason);
            let learned = match trouble {
                Trouble::Down | Trouble::Busy => Learned::Unanswered(ticket.item, reason.clone()),
                Trouble::Later => Learned::Answers,
            };
            (End::Again { after: delay, counts: true, reason }, learned)
        }
    };
    let end = match end {
        End::Again { reason, .. } if age > settings.max_age => {
            End::Held { reason: too_old(settings, &reason) }
        }
        end => end,
    };
    if let End::Held { reason } = &end {
        events::held(&key, &tenant, attempt, reason);
    }
    if let Err(error) = queue.finish(vec![(ticket, end)]).await {
        events::queue_trouble(&error); // the queue tries again by itself
    }
    learned
}

/// What cannot be read says nothing of the backend. Only what nobody will ever read is held for a person.
async fn unreadable(queue: &dyn Queue, ticket: Ticket, error: &StorageError) -> Learned {
    let reason = error.to_string();
    let end = match error {
        StorageError::Gone(_) => {
            events::held("", &ticket.tenant, 0, &reason);
            End::Held { reason }
        }
        _ => {
            events::queue_trouble(error);
            End::Again { after: UNREADABLE, counts: false, reason }
        }
    };
    if let Err(error) = queue.finish(vec![(ticket, end)]).await {
        events::queue_trouble(&error);
    }
    Learned::Nothing
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
