//! Takes activities from the queue, gives them to the backend, and knows when to try again.
//!
//! In: a queue and a backend. Out: every activity taken by the backend once, or held with the reason.
//! Promise: at most `max_in_flight` attempts at a time, and at most [`OPEN_AT_A_TIME`] bytes of activities in memory,
//! whatever waits: a ticket is small, and what it stands for is read when its attempt begins. A lease that is not finished
//! comes back by itself.
//! Fails: never; trouble with the backend is a later attempt, trouble with the queue is a log line and a pause.
//!
//! When our settings are wrong, or several different activities in a row have no answer, every other one would fail alike.
//! So the lane pauses (everybody's, or one tenant's), raises the alarm, lets a single activity through from time
//! to time as a probe, and resumes with the first answer that is about the activity.
//!
//! Fair: tenants take turns, and where there are several, no tenant fills all the attempts that may run at a time, so that
//! a hundred thousand activities of one company do not stand before another company's single one.

mod attempt;
mod breaker;
mod direct;
mod lanes;

pub use direct::{Direct, Given};
pub use lanes::Paused;

use crate::backend::Backend;
use crate::observe::events;
use crate::queue::{Ask, CUT_OFF, End, Queue, StorageError, Ticket};
use arc_swap::ArcSwap;
use attempt::{UnderWay, attempt};
use breaker::{Cause, Change, Lesson, Sign, Timing};
use lanes::{Changed, Lanes, Rounds};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, Semaphore},
    task::{Id, JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Leases that may wait for an attempt, as a multiple of the attempts.
const MOST_READY: usize = 4;

/// Bytes of JSON and messages that attempts hold in memory, over all of them.
pub const OPEN_AT_A_TIME: u64 = 64 << 20;

/// An opened activity takes its bytes so many times: as it is stored, as JSON to be sent, and as what it says.
const TIMES_OPEN: u64 = 3;

/// So often may all attempts begin anew with what one lease gives: none begins while a lease is written, and where the queue is
/// another machine's that takes as long as an attempt. Once only for a tenant who is alone: whoever comes next has no room
/// kept for him yet, and would wait for all of that.
const ROUNDS_READY: usize = 3;

/// Pause after trouble with the queue itself.
const QUEUE_TROUBLE: Duration = Duration::from_secs(1);

/// How long a tenant's lane that has nothing to send is left alone at most.
const LONGEST_LOOK: Duration = Duration::from_secs(60);

/// Nothing is to be done until something happens.
const IDLE: Duration = Duration::from_secs(3600);

/// How often keys are forgotten and free pages given back.
const TIDY_EVERY: Duration = Duration::from_secs(20);

/// Settings of the courier.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Attempts at a time.
    pub max_in_flight: usize,
    /// Of those, the attempts of tenants that have a number of their own: nobody else takes them. Who is not named has
    /// one. Empty: all share.
    pub shares: HashMap<String, usize>,
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
    paused: Mutex<Vec<Paused>>,
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

    /// The lanes that are paused, everybody's first.
    pub fn paused(&self) -> Vec<Paused> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_paused(&self, paused: Vec<Paused>) {
        *self.paused.lock().unwrap_or_else(PoisonError::into_inner) = paused;
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
        under_way: Arc::default(),
        flights: HashMap::new(),
        running: HashMap::new(),
        ready: VecDeque::new(),
        last: String::new(),
        alone: false,
        lanes: Lanes::default(),
        probes: 0,
        probed_last: false,
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
    courier.release(true).await;
    while courier.attempts.join_next().await.is_some() {}
}

/// An attempt under way.
struct Flight {
    tenant: Arc<str>,
    item: i64,
    rounds: Rounds,
    /// A probe of the tenant's own lane.
    is_tenants_probe: bool,
}

struct Courier {
    queue: Arc<dyn Queue>,
    backend: Arc<dyn Backend>,
    settings: Arc<Settings>,
    controls: Arc<Controls>,
    attempts: JoinSet<Lesson>,
    /// KiB that attempts may still hold.
    open: Arc<Semaphore>,
    under_way: Arc<UnderWay>,
    flights: HashMap<Id, Flight>,
    /// How many attempts carry activities of each tenant.
    running: HashMap<Arc<str>, usize>,
    /// Leased, and not begun: leases are taken many at a time, because each taking is a commit.
    ready: VecDeque<Ticket>,
    /// The tenant whose turn was last.
    last: String,
    /// There was never an activity of another tenant.
    alone: bool,
    lanes: Lanes,
    /// Probes of tenants' lanes under way.
    probes: usize,
    /// What was begun last was such a probe.
    probed_last: bool,
}

impl Courier {
    /// Starts as many attempts as there is room for; the answer is how long to wait if nothing happens before.
    async fn send(&mut self) -> Result<Duration, StorageError> {
        if self.lanes.is_shut() {
            let now = Instant::now();
            return match self.lanes.probe_in(now) {
                Some(wait) if wait.is_zero() => self.probe(None).await,
                Some(wait) => Ok(wait),
                None => Ok(IDLE), // the end of the probe wakes us
            };
        }
        // By turns, so that neither takes all the room where there is little.
        let wait = if self.probed_last {
            let wait = self.send_usual().await?;
            self.probe_tenants().await?;
            wait
        } else {
            self.probe_tenants().await?;
            self.send_usual().await?
        };
        if self.room() == 0 {
            return Ok(IDLE); // until an attempt ends
        }
        let next = self.lanes.tenants_probe_in(Instant::now()).filter(|_| self.probes < self.most_probes());
        Ok(wait.min(next.unwrap_or(IDLE)))
    }

    /// Probes that tenants' lanes may have under way: what is wrong with many tenants takes little from the others.
    fn most_probes(&self) -> usize {
        (self.settings.max_in_flight / 8).max(1)
    }

    /// Sends the probes of tenants' lanes whose time has come.
    async fn probe_tenants(&mut self) -> Result<(), StorageError> {
        for tenant in self.lanes.to_probe(Instant::now()) {
            if self.room() == 0 || self.probes >= self.most_probes() {
                break;
            }
            self.probe(Some(&tenant)).await?;
        }
        Ok(())
    }

    /// Sends one activity that shows how a lane is.
    async fn probe(&mut self, tenant: Option<&str>) -> Result<Duration, StorageError> {
        if self.room() == 0 {
            return Ok(IDLE); // until an attempt ends
        }
        let mut ask = Ask {
            room: 1,
            after: self.last.clone(),
            without: if tenant.is_none() { self.shut() } else { Vec::new() },
            only: tenant.map(str::to_owned),
            probe: self.lanes.probe(tenant),
        };
        let mut leased = self.queue.lease(ask.clone()).await?;
        if leased.tickets.is_empty() && !ask.without.is_empty() {
            // Those whose own lanes are shut show how everybody's is, if nobody else does.
            ask.without.clear();
            leased = self.queue.lease(ask).await?;
        }
        let now = Instant::now();
        let Some(ticket) = leased.tickets.pop() else {
            let is_under_way = match tenant {
                None => !self.attempts.is_empty(),
                Some(tenant) => self.running.contains_key(tenant),
            };
            match leased.next_due {
                None if !is_under_way => {
                    self.lanes.lift(tenant);
                    self.tell_all(&[(tenant.map(Into::into), Change::Lifted)]);
                }
                // What waits is not asked for again at each turn; what arrives for all is.
                wait if tenant.is_some() => {
                    let wait = wait.unwrap_or(IDLE).clamp(QUEUE_TROUBLE, LONGEST_LOOK);
                    self.lanes.nothing_to_probe(tenant, wait, now);
                }
                _ => {}
            }
            return Ok(leased.next_due.unwrap_or(IDLE));
        };
        self.last = ticket.tenant.to_string();
        self.lanes.probing(tenant);
        if tenant.is_none() {
            self.lanes.probing(Some(&ticket.tenant));
        }
        self.begin(ticket, tenant.is_some());
        self.probed_last = true;
        Ok(IDLE)
    }

    fn room(&self) -> usize {
        self.settings.max_in_flight.saturating_sub(self.attempts.len())
    }

    fn shut(&self) -> Vec<String> {
        self.lanes.shut().map(|tenant| tenant.to_string()).collect()
    }

    async fn send_usual(&mut self) -> Result<Duration, StorageError> {
        let room = self.room();
        if room == 0 {
            return Ok(IDLE); // until an attempt ends
        }
        let wanted = room - self.start(room);
        if wanted == 0 {
            return Ok(IDLE); // until an attempt ends
        }
        // Where each has its own, what is ready of some must not stand before others'.
        let is_shared = self.settings.shares.is_empty();
        if is_shared && self.ready.len() >= MOST_READY * self.settings.max_in_flight {
            return Ok(IDLE); // nobody of those may have another attempt now; the end of one wakes us
        }
        let largest = self.settings.shares.values().max().copied().unwrap_or(self.settings.max_in_flight);
        let rounds = if self.alone { 1 } else { ROUNDS_READY };
        let room = if is_shared { wanted + rounds * largest } else { 2 * largest };
        let mut without = self.satisfied();
        without.extend(self.shut());
        let leased =
            self.queue.lease(Ask { room, after: self.last.clone(), without, ..Ask::default() }).await?;
        self.alone = leased.alone;
        if let Some(ticket) = leased.tickets.last() {
            self.last = ticket.tenant.to_string();
        }
        let more = leased.tickets.len() == room;
        self.ready.extend(leased.tickets);
        self.start(wanted);
        if more {
            return Ok(Duration::ZERO);
        }
        // What is due of tenants that have their share is not asked for: the end of an attempt wakes us.
        Ok(leased.next_due.unwrap_or(IDLE))
    }

    /// Attempts that a tenant may have at a time: its own number, or all but an eighth, so that there is room for
    /// another's; all, if there is no other.
    fn share(&self, tenant: &str) -> usize {
        if !self.settings.shares.is_empty() {
            return self.settings.shares.get(tenant).copied().unwrap_or(1);
        }
        let most = self.settings.max_in_flight;
        if most < 4 || self.alone { most } else { most - most.div_ceil(8) }
    }

    /// Starts up to `room` attempts of those that are ready, and of tenants that do not have their share; how many.
    fn start(&mut self, room: usize) -> usize {
        let mut started = 0;
        while started < room {
            let running = |tenant: &str| self.running.get(tenant).copied().unwrap_or(0);
            let may = |ticket: &Ticket| running(&ticket.tenant) < self.share(&ticket.tenant);
            let Some(ticket) = self.ready.iter().position(may).and_then(|at| self.ready.remove(at)) else {
                break;
            };
            self.begin(ticket, false);
            self.probed_last = false;
            started += 1;
        }
        started
    }

    /// Begins an attempt.
    fn begin(&mut self, ticket: Ticket, is_tenants_probe: bool) {
        self.probes += usize::from(is_tenants_probe);
        let flight = Flight {
            is_tenants_probe,
            rounds: self.lanes.rounds(&ticket.tenant),
            tenant: Arc::clone(&ticket.tenant),
            item: ticket.item,
        };
        let (queue, backend) = (Arc::clone(&self.queue), Arc::clone(&self.backend));
        let (settings, open) = (Arc::clone(&self.settings), Arc::clone(&self.open));
        let under_way = Arc::clone(&self.under_way);
        let begun = self.attempts.spawn(async move {
            let _open = open.acquire_many(permits(ticket.size.saturating_mul(TIMES_OPEN))).await;
            attempt(queue, backend.as_ref(), &settings, &under_way, ticket).await
        });
        *self.running.entry(Arc::clone(&flight.tenant)).or_default() += 1;
        self.flights.insert(begun.id(), flight);
    }

    /// Tenants that have their share, of attempts and of what is ready.
    fn satisfied(&self) -> Vec<String> {
        let mut counts: HashMap<&str, usize> =
            self.running.iter().map(|(tenant, running)| (&**tenant, *running)).collect();
        self.ready.iter().for_each(|ticket| *counts.entry(&ticket.tenant).or_default() += 1);
        // As many again may be ready as run, so that an attempt that ends has a successor at hand.
        counts
            .into_iter()
            .filter(|(tenant, count)| *count >= 2 * self.share(tenant))
            .map(|(tenant, _)| tenant.to_owned())
            .collect()
    }

    /// Gives back what is leased, not begun, and may not be sent, so that people see it waiting, and may hold or drop it.
    async fn release(&mut self, is_all: bool) {
        let (shut, ready): (VecDeque<_>, _) = std::mem::take(&mut self.ready)
            .into_iter()
            .partition(|ticket| is_all || self.lanes.is_shut_for(&ticket.tenant));
        self.ready = ready;
        let unused: Vec<(Ticket, End)> = shut.into_iter().map(|ticket| (ticket, End::Unused)).collect();
        if !unused.is_empty()
            && let Err(error) = self.queue.finish(unused).await
        {
            events::queue_trouble(&error); // the leases end by themselves
        }
    }

    /// Learns from an attempt that ended, and from all others that have ended meanwhile.
    async fn all_ended(&mut self, done: Result<(Id, Lesson), JoinError>) {
        let mut changed = self.ended(done);
        while let Some(done) = self.attempts.try_join_next_with_id() {
            changed.extend(self.ended(done));
        }
        if changed.is_empty() {
            return;
        }
        self.tell_all(&changed);
        self.release(false).await;
    }

    fn tell_all(&self, changed: &[Changed]) {
        self.controls.set_paused(self.lanes.paused());
        for (tenant, change) in changed {
            self.tell(tenant.as_deref(), change);
        }
        let is = |which| self.lanes.cause() == Some(which);
        events::lanes(is(Cause::Misconfigured), is(Cause::Down), self.lanes.shut().count());
    }

    fn ended(&mut self, done: Result<(Id, Lesson), JoinError>) -> Vec<Changed> {
        let (id, lesson) = match done {
            Ok((id, lesson)) => (id, Some(lesson)),
            Err(error) => {
                events::queue_trouble(&error); // its lease ends by itself
                (error.id(), None)
            }
        };
        let Some(flight) = self.flights.remove(&id) else { return Vec::new() };
        let Flight { tenant, item, rounds, is_tenants_probe } = flight;
        self.probes -= usize::from(is_tenants_probe);
        if let Some(running) = self.running.get_mut(&tenant) {
            *running -= 1;
            if *running == 0 {
                self.running.remove(&tenant);
            }
        }
        let timing = Timing { first: self.settings.retry_first, longest: self.settings.retry_max };
        let lesson = lesson.unwrap_or_else(|| Lesson::of(item, Sign::Nothing));
        self.lanes.learn(&tenant, &lesson, rounds, timing, Instant::now())
    }

    fn tell(&self, tenant: Option<&str>, change: &Change) {
        let reason = || {
            let paused = self.lanes.paused().into_iter().find(|paused| paused.tenant.as_deref() == tenant);
            paused.map(|paused| paused.reason).unwrap_or_default()
        };
        match change {
            Change::None => {}
            Change::Doubt(reason) => events::backend_denies(reason),
            Change::Paused(Cause::Misconfigured, next) => events::courier_paused(tenant, &reason(), *next),
            Change::Paused(Cause::Down, next) => events::backend_down(&reason(), *next),
            Change::Resumed => events::courier_resumed(tenant, "backend answers again: deliveries resumed"),
            Change::Lifted => events::courier_resumed(tenant, "nothing waits any more: the pause is over"),
        }
    }

    /// Takes over new settings, and tries at once what was wrong with the old ones.
    fn change(&mut self) {
        self.settings = self.controls.settings.load_full();
        self.lanes.forget(Instant::now());
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
    for (held, reason) in [(&found.too_old, reason.as_str()), (&found.cut_off, CUT_OFF)] {
        for one in held {
            let queue_id = one.queue_id.as_deref().unwrap_or_default();
            events::held(&events::Which { queue_id, key: one.key.as_str(), tenant: &one.tenant }, 0, reason);
        }
    }
    events::upkeep(found.jumped, found.mended, found.aside, found.long_log);
    if found.kept_gone > 0 {
        events::kept_gone(found.kept_gone);
    }
    Ok(())
}

fn too_old(settings: &Settings, reason: &str) -> String {
    format!("not taken within {}: {reason}", humantime::format_duration(settings.max_age))
}

/// Semaphore permits for so many bytes: KiB, and never more than there are.
fn permits(bytes: u64) -> u32 {
    u32::try_from(bytes.min(OPEN_AT_A_TIME) >> 10).unwrap_or(u32::MAX)
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
