//! The queue against a model of it: random steps, and after each of them both have the same rows.
//!
//! The model is a map of keys and a list of tickets. It knows less than an engine: where an engine may do either (what it
//! still remembers of a key after its time, when a wrong time is mended), the model follows it. `make torture-queue` runs
//! ten thousand cases. A message that is known needs no room in a database. It names no promise of its own; it holds Q1, Q3, Q4, Q14 to Q21, Q24, Q27 to Q30 and Q34 to Q37
//! together.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/database.rs"]
mod database;
#[path = "support/letter.rs"]
mod letter;

use activity_milter::{
    activity::Key,
    queue::{
        self, Ask, Change, Clock, End, Entry, Filter, Full, HandClock, KEY_MEMORY, LEASE, Probe, Put, Queue,
        Replay, Replayed, Settings, State, StorageError, Ticket,
    },
};
use database::{Cluster, Database};
use letter::{LARGE, directory, letter, noon};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

const MINUTE: u64 = 60;
const HOUR: u64 = 3600;
const DAY: u64 = 86_400;
const TENANTS: [&str; 3] = ["a", "b", "c"];
const MAX_ITEMS: u64 = 12;
const MAX_OF_TENANT: u64 = 8;
/// What the engine takes for a clock that is right.
const SLACK: Duration = Duration::from_secs(MINUTE);

/// What is due later after the clock was set back, an engine takes for a time of the wrong clock.
const LATEST: Duration = Duration::from_secs(15 * MINUTE);

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// The e-mail of this number for some of the six targets.
    Put {
        id: usize,
        targets: Vec<usize>,
        large: bool,
    },
    /// `without`: a bit for each tenant.
    Lease {
        room: usize,
        after: usize,
        without: u8,
    },
    /// `only`: the tenant of this number, if there is one; `named`: tickets, counted from the last one given.
    Probe {
        only: usize,
        tried: bool,
        named: Vec<usize>,
    },
    /// Tickets, counted from the last one given.
    Finish {
        tickets: Vec<(usize, Ending)>,
    },
    Note {
        ticket: usize,
    },
    /// `rows`: a bit for each.
    Change {
        rows: u16,
        change: u8,
        beside: bool,
    },
    Upkeep {
        max_age_hours: u64,
    },
    /// Those delivered in the last hours; `only`: the tenant of this number, if there is one.
    Redeliver {
        hours: u64,
        only: usize,
        beside: bool,
    },
    /// A person drops some of those that are kept after their delivery: a bit for each.
    Forget {
        rows: u16,
    },
    Crash,
    Pass {
        seconds: u64,
    },
    SetClock {
        seconds: i64,
    },
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    Taken,
    Again { after: u64, counts: bool },
    Unused,
    Held,
}

impl Ending {
    fn end(self) -> End {
        match self {
            Self::Taken => End::Taken,
            Self::Unused => End::Unused,
            Self::Held => End::Held { reason: "422".to_owned() },
            Self::Again { after, counts } => {
                End::Again { after: Duration::from_secs(after), counts, reason: "503".to_owned() }
            }
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ending = prop_oneof![
        3 => Just(Ending::Taken),
        3 => (prop::sample::select(vec![0, MINUTE, HOUR, DAY]), any::<bool>())
            .prop_map(|(after, counts)| Ending::Again { after, counts }),
        1 => Just(Ending::Unused),
        2 => Just(Ending::Held),
    ];
    // Mostly the last ones; sometimes any.
    let ticket = || prop_oneof![4 => 0..5_usize, 1 => 0..60_usize];
    let pass = vec![1, MINUTE, HOUR / 2, HOUR, 6 * HOUR, DAY, 3 * DAY, 8 * DAY];
    let leaps = [2 * MINUTE, HOUR / 2, 2 * HOUR, DAY, 30 * DAY, 365 * DAY];
    let leaps = leaps.into_iter().map(|by| i64::try_from(by).unwrap()).flat_map(|by| [by, -by]);
    let step = prop_oneof![
        8 => (0..6_usize, prop::collection::vec(0..6_usize, 1..4), prop::bool::weighted(0.1))
            .prop_map(|(id, targets, large)| Step::Put { id, targets, large }),
        7 => (0..6_usize, 0..5_usize, prop_oneof![3 => Just(0), 1 => 0..8_u8])
            .prop_map(|(room, after, without)| Step::Lease { room, after, without }),
        2 => (0..6_usize, any::<bool>(), prop::collection::vec(ticket(), 0..4))
            .prop_map(|(only, tried, named)| Step::Probe { only, tried, named }),
        8 => prop::collection::vec((ticket(), ending), 1..4).prop_map(|tickets| Step::Finish { tickets }),
        2 => ticket().prop_map(|ticket| Step::Note { ticket }),
        3 => (any::<u16>(), 0..3_u8, any::<bool>())
            .prop_map(|(rows, change, beside)| Step::Change { rows, change, beside }),
        4 => prop::sample::select(vec![1, 24, 24 * 5, 24 * 1000])
            .prop_map(|max_age_hours| Step::Upkeep { max_age_hours }),
        2 => (prop::sample::select(vec![1, 24, 24 * 400]), 0..6_usize, any::<bool>())
            .prop_map(|(hours, only, beside)| Step::Redeliver { hours, only, beside }),
        1 => (any::<u16>(),).prop_map(|(rows,)| Step::Forget { rows }),
        2 => Just(Step::Crash),
        5 => prop::sample::select(pass).prop_map(|seconds| Step::Pass { seconds }),
        1 => prop::sample::select(leaps.collect::<Vec<_>>()).prop_map(|seconds| Step::SetClock { seconds }),
    ];
    prop::collection::vec(step, 30..50)
}

/// An activity as it should be.
#[derive(Clone, Debug)]
struct Row {
    tenant: &'static str,
    json: Vec<u8>,
    message: u64,
    held_at: Option<SystemTime>,
    due: SystemTime,
    accepted_at: SystemTime,
    attempts: u32,
    reason: Option<String>,
    note: Option<String>,
    replay: bool,
    lease: Option<Lease>,
    /// Due since it was accepted: nobody said "later".
    fresh: bool,
}

/// One that is kept after its delivery.
#[derive(Clone, Debug)]
struct Kept {
    key: Key,
    row: Row,
    delivered_at: SystemTime,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    fence: i64,
    until: Duration,
}

/// A key without an activity.
#[derive(Clone, Copy, Debug)]
struct Memory {
    since: SystemTime,
    /// Its time was over once, so that an engine may have forgotten it.
    over: bool,
}

struct World {
    settings: Settings,
    clock: Arc<HandClock>,
    queue: Option<Arc<dyn Queue>>,
    rows: BTreeMap<Key, Row>,
    memory: BTreeMap<Key, Memory>,
    /// By the engine's number.
    kept: BTreeMap<i64, Kept>,
    tickets: Vec<(Key, Ticket)>,
    /// The wall clock is not believed until then.
    distrust: Duration,
    /// The clock was set back, and nobody has tidied since.
    set_back: bool,
    /// The clock was never set, and there was no crash: the model knows exactly what is old.
    exact: bool,
    notes: u32,
}

impl World {
    /// The queue is a database that several machines may have.
    fn is_shared(&self) -> bool {
        self.settings.server.is_some()
    }

    fn new(settings: Settings) -> Self {
        let clock = Arc::new(HandClock::at(noon()));
        let queue = queue::open(&settings, Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
        Self {
            settings,
            clock,
            queue: Some(queue),
            rows: BTreeMap::new(),
            memory: BTreeMap::new(),
            kept: BTreeMap::new(),
            tickets: Vec::new(),
            distrust: Duration::ZERO,
            set_back: false,
            exact: true,
            notes: 0,
        }
    }

    fn queue(&self) -> Arc<dyn Queue> {
        Arc::clone(self.queue.as_ref().unwrap())
    }

    async fn step(&mut self, step: &Step) {
        match step {
            Step::Put { id, targets, large } => self.put(*id, targets, *large).await,
            Step::Lease { room, after, without } => self.lease(*room, *after, *without).await,
            Step::Probe { only, tried, named } => {
                self.probe(TENANTS.get(*only).copied(), *tried, named).await;
            }
            Step::Finish { tickets } => self.finish(tickets).await,
            Step::Note { ticket } => self.note(*ticket).await,
            Step::Change { rows, change, beside } => self.change(*rows, *change, *beside).await,
            Step::Upkeep { max_age_hours } => self.upkeep(Duration::from_secs(max_age_hours * HOUR)).await,
            Step::Redeliver { hours, only, beside } => {
                let ago = Duration::from_secs(hours * HOUR);
                self.redeliver(ago, TENANTS.get(*only).copied(), *beside).await;
            }
            Step::Forget { rows } => self.forget(*rows).await,
            Step::Crash => {
                self.queue = None;
                self.queue =
                    Some(queue::open(&self.settings, Arc::clone(&self.clock) as Arc<dyn Clock>).unwrap());
                self.rows.values_mut().for_each(|row| row.lease = None);
                self.exact = false;
                // Rows that still lie ahead hide a leap from whoever starts: it is measured from the newest of them.
                if self.set_back {
                    self.distrust = Duration::ZERO;
                }
            }
            Step::Pass { seconds } => self.clock.pass(Duration::from_secs(*seconds)),
            Step::SetClock { seconds } => self.set_clock(*seconds).await,
        }
        self.compare().await;
    }

    fn counted(&self, tenant: Option<&str>) -> u64 {
        self.rows.values().filter(|row| tenant.is_none_or(|tenant| row.tenant == tenant)).count() as u64
    }

    async fn put(&mut self, id: usize, targets: &[usize], large: bool) {
        let names: Vec<String> = targets
            .iter()
            .map(|target| match (TENANTS[target % 3], target / 3) {
                (tenant, 0) => tenant.to_owned(),
                (tenant, _) => format!("{tenant}/7"),
            })
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        // Large or small is the e-mail's own: bodies that differ are two e-mails.
        let size = if large { LARGE + id } else { id };
        let parcel = letter(&self.settings.spool, id, size, &names).await;
        let put = self.queue().put(parcel.clone()).await;
        let too_many = |count: u64, more: usize, most: u64| count + more as u64 > most;
        let may_be_known = |key: &Key| self.rows.contains_key(key) || self.memory.contains_key(key);
        if self.is_shared()
            && matches!(&put, Ok(puts) if puts.iter().all(|put| *put == Put::Known))
            && parcel.activities.iter().all(|activity| may_be_known(&activity.key))
        {
            let now = self.clock.wall();
            self.memory
                .extend(parcel.covered.into_iter().map(|key| (key, Memory { since: now, over: false })));
            return;
        }
        if too_many(self.counted(None), targets.len(), MAX_ITEMS) {
            assert!(matches!(put, Err(StorageError::Full(Full::Items(_)))), "{put:?}");
            return;
        }
        let share = TENANTS.iter().enumerate().find(|(at, tenant)| {
            let more = targets.iter().filter(|target| *target % 3 == *at).count();
            more > 0 && too_many(self.counted(Some(tenant)), more, MAX_OF_TENANT)
        });
        if share.is_some() {
            assert!(matches!(put, Err(StorageError::Full(Full::Tenant { .. }))), "{put:?}");
            return;
        }
        let (now, mut stored) = (self.clock.wall(), BTreeMap::new());
        for ((activity, target), put) in parcel.activities.iter().zip(targets).zip(put.unwrap()) {
            let is_there = self.rows.contains_key(&activity.key) || stored.contains_key(&activity.key);
            let is_known = is_there || self.memory.get(&activity.key).is_some_and(|memory| !memory.over);
            let may_be_known = is_known || self.memory.contains_key(&activity.key);
            match put {
                Put::New => {
                    assert!(!is_known, "twice: {}", activity.key);
                    self.memory.remove(&activity.key);
                    let row = Row {
                        tenant: TENANTS[target % 3],
                        json: serde_json::to_vec(activity).unwrap(),
                        message: parcel.raw.len(),
                        held_at: None,
                        due: now,
                        accepted_at: now,
                        attempts: 0,
                        reason: None,
                        note: None,
                        replay: false,
                        lease: None,
                        fresh: true,
                    };
                    stored.insert(activity.key.clone(), row);
                }
                Put::Known => assert!(may_be_known, "lost: {}", activity.key),
                Put::Mended => panic!("no file was lost"),
            }
        }
        self.rows.extend(stored);
        for key in parcel.covered {
            self.memory.insert(key, Memory { since: now, over: false });
        }
    }

    /// Ends the leases whose time is over.
    fn end_leases(&mut self) {
        let running = self.clock.running();
        for row in self.rows.values_mut() {
            row.lease = row.lease.filter(|lease| lease.until > running);
        }
    }

    async fn lease(&mut self, room: usize, after: usize, without: u8) {
        self.end_leases();
        let after = ["", "a", "b", "bb", "c"][after];
        let without: Vec<&str> = (0..3).filter(|at| without & 1 << at != 0).map(|at| TENANTS[at]).collect();
        let ask = Ask {
            room,
            after: after.to_owned(),
            without: without.iter().map(|&tenant| tenant.to_owned()).collect(),
            ..Ask::default()
        };
        let entries = self.queue().list(Filter::default()).await.unwrap();
        let leased = self.queue().lease(ask).await.unwrap();
        let now = self.clock.wall();
        // What each has that is due, in order, and then by turns.
        let mut tenants = TENANTS.to_vec();
        tenants.retain(|tenant| !without.contains(tenant));
        tenants.sort_by_key(|&tenant| (tenant <= after, tenant));
        let mut due: Vec<Vec<(SystemTime, i64, Key)>> = Vec::new();
        let mut later: Vec<SystemTime> = Vec::new();
        for tenant in tenants {
            let mut of_tenant = Vec::new();
            for entry in entries.iter().filter(|entry| entry.tenant == tenant) {
                let row = &self.rows[&entry.key];
                if row.held_at.is_none() && row.lease.is_none() {
                    if row.due <= now {
                        of_tenant.push((row.due, entry.id, entry.key.clone()));
                    } else {
                        later.push(row.due);
                    }
                }
            }
            of_tenant.sort();
            of_tenant.reverse();
            due.push(of_tenant);
        }
        let mut expected = Vec::new();
        while expected.len() < room && due.iter().any(|of_tenant| !of_tenant.is_empty()) {
            for of_tenant in &mut due {
                if expected.len() < room {
                    expected.extend(of_tenant.pop());
                }
            }
        }
        let given: Vec<i64> = leased.tickets.iter().map(|ticket| ticket.item).collect();
        assert_eq!(given, expected.iter().map(|(_, id, _)| *id).collect::<Vec<_>>());
        for ((_, _, key), ticket) in expected.into_iter().zip(leased.tickets) {
            self.leased(key, ticket);
        }
        // Never too late.
        let more = due.iter().any(|of_tenant| !of_tenant.is_empty()).then_some(Duration::ZERO);
        let next = later.iter().min().map(|due| due.duration_since(now).unwrap());
        if let Some(next) = more.or(next) {
            assert!(leased.next_due.is_some_and(|due| due <= next), "{:?} > {next:?}", leased.next_due);
        }
    }

    fn leased(&mut self, key: Key, ticket: Ticket) {
        let row = self.rows.get_mut(&key).unwrap();
        assert_eq!(&*ticket.tenant, row.tenant);
        assert!(self.tickets.iter().all(|(_, former)| former.fence < ticket.fence));
        row.lease = Some(Lease { fence: ticket.fence, until: self.clock.running() + LEASE });
        self.tickets.push((key, ticket));
    }

    /// `named`: tickets, counted from the newest; the tried ones, or those that are not fresh.
    async fn probe(&mut self, only: Option<&'static str>, tried: bool, named: &[usize]) {
        self.end_leases();
        let named: Vec<i64> = named.iter().filter_map(|back| Some(self.ticket(*back)?.1.item)).collect();
        let probe = if tried { Probe::Tried(named.clone()) } else { Probe::Fresh(named.clone()) };
        let ask = Ask { room: 1, only: only.map(str::to_owned), probe: Some(probe), ..Ask::default() };
        let entries = self.queue().list(Filter::default()).await.unwrap();
        let leased = self.queue().lease(ask).await.unwrap();
        let now = self.clock.wall();
        let mut may = Vec::new();
        for entry in entries.iter().filter(|entry| only.is_none_or(|only| entry.tenant == only)) {
            let row = &self.rows[&entry.key];
            if row.held_at.is_none() && row.lease.is_none() {
                may.push((row.tenant, row.due, entry));
            }
        }
        may.sort_by_key(|(tenant, due, entry)| (*tenant, *due, entry.id));
        let named_one = named.iter().find_map(|id| may.iter().find(|(.., entry)| entry.id == *id));
        let due = || may.iter().filter(|(_, due, _)| *due <= now);
        let is_fresh = |entry: &Entry| entry.attempts == 0 && (tried || !named.contains(&entry.id));
        // The newest of the first tenant that has one.
        let of = |tenant: &str| due().rfind(|(of, _, entry)| *of == tenant && is_fresh(entry));
        let fresh = TENANTS.iter().find_map(|tenant| of(tenant));
        let other = fresh.or(due().next());
        let expected = if tried { named_one.or(other) } else { other.or(named_one) };
        let expected = expected.map(|(.., entry)| entry.key.clone());
        assert_eq!(leased.tickets.len(), usize::from(expected.is_some()), "{expected:?}");
        for (key, ticket) in expected.into_iter().zip(leased.tickets) {
            assert!(entries.iter().any(|entry| entry.id == ticket.item && entry.key == key), "another one");
            self.leased(key, ticket);
        }
    }

    fn ticket(&self, back: usize) -> Option<(Key, Ticket)> {
        self.tickets.iter().rev().nth(back).cloned()
    }

    /// The row of a ticket, if it is still its lease.
    fn row_of(&mut self, key: &Key, ticket: &Ticket) -> Option<&mut Row> {
        self.rows.get_mut(key).filter(|row| row.lease.is_some_and(|lease| lease.fence == ticket.fence))
    }

    async fn finish(&mut self, tickets: &[(usize, Ending)]) {
        let ends: Vec<_> =
            tickets.iter().filter_map(|(back, ending)| Some((self.ticket(*back)?, *ending))).collect();
        let asked = ends.iter().map(|((_, ticket), ending)| (ticket.clone(), ending.end())).collect();
        let ours = self.queue().finish(asked).await.unwrap();
        let now = self.clock.wall();
        for (((key, ticket), ending), ours) in ends.into_iter().zip(ours) {
            let Some(row) = self.row_of(&key, &ticket) else {
                assert!(!ours, "{ticket:?} of {:?}", self.rows.get(&key));
                continue;
            };
            assert!(ours);
            row.lease = None;
            match ending {
                Ending::Unused => {}
                Ending::Taken => {
                    let row = self.rows[&key].clone();
                    self.gone(&key);
                    if !self.settings.keep_delivered.is_zero() {
                        self.kept.insert(ticket.item, Kept { key, row, delivered_at: now });
                    }
                }
                Ending::Again { after, counts } => {
                    row.due = now + Duration::from_secs(after);
                    row.attempts += u32::from(counts);
                    row.reason = Some("503".to_owned());
                    row.fresh = false;
                }
                Ending::Held => {
                    row.attempts += 1;
                    (row.held_at, row.reason) = (Some(now), Some("422".to_owned()));
                }
            }
        }
    }

    fn gone(&mut self, key: &Key) {
        self.rows.remove(key).unwrap();
        self.memory.insert(key.clone(), Memory { since: self.clock.wall(), over: false });
    }

    async fn note(&mut self, back: usize) {
        let Some((key, ticket)) = self.ticket(back) else { return };
        self.notes += 1;
        let note = format!("{{\"step\":{}}}", self.notes);
        let ours = self.queue().note(&ticket, note.clone()).await.unwrap();
        let until = self.clock.running() + LEASE;
        let row = self.row_of(&key, &ticket);
        assert_eq!(ours, row.is_some());
        if let Some(row) = row {
            row.note = Some(note);
            row.lease = Some(Lease { fence: ticket.fence, until });
        }
    }

    async fn change(&mut self, rows: u16, change: u8, beside: bool) {
        let entries = self.queue().list(Filter::default()).await.unwrap();
        let some = entries.iter().enumerate().filter(|(at, _)| rows & 1 << at != 0).map(|(_, entry)| entry);
        let some: Vec<_> = some.collect();
        let change = match change {
            0 => Change::Retry,
            1 => Change::Hold { reason: "wait".to_owned() },
            _ => Change::Drop,
        };
        let queue = match beside {
            true => queue::beside(&self.settings, Arc::clone(&self.clock) as Arc<dyn Clock>).unwrap(),
            false => self.queue(),
        };
        let changed =
            queue.change(some.iter().map(|entry| entry.id).collect(), change.clone()).await.unwrap();
        if beside {
            self.queue().check().await.unwrap(); // the service takes notice with its next transaction
        }
        let (now, mut expected) = (self.clock.wall(), 0);
        for entry in some {
            if self.rows[&entry.key].lease.is_some() {
                continue;
            }
            let row = self.rows.get_mut(&entry.key).unwrap();
            if !matches!(change, Change::Hold { .. }) || row.held_at.is_none() {
                row.lease = None;
            }
            match change {
                Change::Hold { .. } if row.held_at.is_some() => continue,
                Change::Hold { .. } => {
                    (row.held_at, row.reason) = (Some(now), Some("wait".to_owned()));
                }
                Change::Retry => {
                    (row.held_at, row.attempts, row.fresh) = (None, 0, true);
                    (row.due, row.accepted_at) = (now, now);
                }
                Change::Drop => self.gone(&entry.key),
            }
            expected += 1;
        }
        assert_eq!(changed, expected);
    }

    async fn delivered(&self) -> Vec<Entry> {
        self.queue().list(Filter { state: Some(State::Delivered), ..Filter::default() }).await.unwrap()
    }

    async fn redeliver(&mut self, ago: Duration, only: Option<&'static str>, beside: bool) {
        let now = self.clock.wall();
        let since = now - ago;
        let queue = match beside {
            true => queue::beside(&self.settings, Arc::clone(&self.clock) as Arc<dyn Clock>).unwrap(),
            false => self.queue(),
        };
        let replay = Replay { since, until: None, tenant: only.map(str::to_owned), dry: false };
        let counted = queue.redeliver(Replay { dry: true, ..replay.clone() }).await.unwrap();
        let done = queue.redeliver(replay).await.unwrap();
        if beside {
            self.queue().check().await.unwrap(); // the service takes notice with its next transaction
        }
        let mut asked: Vec<(SystemTime, i64)> = self
            .kept
            .iter()
            .filter(|(_, kept)| kept.delivered_at >= since && kept.delivered_at < now)
            .filter(|(_, kept)| only.is_none_or(|only| kept.row.tenant == only))
            .map(|(id, kept)| (kept.delivered_at, *id))
            .collect();
        asked.sort();
        assert_eq!(counted, Replayed { again: asked.len(), ..Replayed::default() });
        let mut expected = Replayed::default();
        for (_, id) in asked {
            let Kept { key, row, .. } = self.kept[&id].clone();
            // The last quarter is for mail that arrives.
            let fits = |count: u64, most: u64| count < most - most / 4;
            if self.rows.contains_key(&key) {
                expected.known += 1;
            } else if fits(self.counted(None), MAX_ITEMS)
                && fits(self.counted(Some(row.tenant)), MAX_OF_TENANT)
            {
                expected.again += 1;
                self.kept.remove(&id);
                self.memory.remove(&key);
                let (reason, note, attempts) = (None, None, 0);
                let (due, accepted_at, fresh, replay) = (now, now, true, true);
                let row = Row { due, accepted_at, attempts, reason, note, fresh, replay, ..row };
                self.rows.insert(key, row);
            } else {
                expected.left += 1;
            }
        }
        assert_eq!(done, expected);
    }

    async fn forget(&mut self, rows: u16) {
        let all: Vec<i64> = self.kept.keys().copied().collect();
        let some = all.iter().enumerate().filter(|(at, _)| rows & 1 << (at % 16) != 0).map(|(_, id)| *id);
        let some: Vec<i64> = some.collect();
        assert_eq!(self.queue().change(some.clone(), Change::Drop).await.unwrap(), some.len());
        some.iter().for_each(|id| drop(self.kept.remove(id)));
    }

    /// What went of what is kept, and why.
    async fn tidied_kept(&mut self, now: SystemTime, is_trusted: bool) {
        let left: BTreeMap<i64, SystemTime> =
            self.delivered().await.into_iter().map(|entry| (entry.id, entry.due)).collect();
        let room = usize::try_from(MAX_ITEMS).unwrap() - self.rows.len().min(MAX_ITEMS as usize);
        assert!(left.len() <= room, "{} are kept, and there is room for {room}", left.len());
        let keep = self.settings.keep_delivered;
        let is_over = |kept: &Kept| now.duration_since(kept.delivered_at).is_ok_and(|age| age > keep);
        let newest_that_went = self
            .kept
            .iter()
            .filter(|(id, kept)| !(left.contains_key(id) || is_trusted && is_over(kept)))
            .map(|(_, kept)| kept.delivered_at)
            .max();
        // Only where there are more than there is room for, and the oldest.
        if let Some(newest) = newest_that_went.filter(|_| self.exact) {
            assert!(left.len() == room && left.values().all(|delivered_at| *delivered_at >= newest));
            let since = self.queue().kept().await.unwrap().since.unwrap();
            assert!(since > newest, "what went is said");
        }
        for (id, delivered_at) in &left {
            let kept = self.kept.get_mut(id).unwrap();
            assert!(!self.exact || !is_over(kept), "its time is over");
            // Mended: at the latest now.
            assert!(*delivered_at == kept.delivered_at || kept.delivered_at > now && *delivered_at <= now);
            kept.delivered_at = *delivered_at;
        }
        self.kept.retain(|id, _| left.contains_key(id));
    }

    async fn upkeep(&mut self, max_age: Duration) {
        let (now, running) = (self.clock.wall(), self.clock.running());
        let is_trusted = self.distrust <= running;
        let done = self.queue().upkeep(max_age).await.unwrap();
        self.end_leases();
        let entries = self.queue().list(Filter::default()).await.unwrap();
        for entry in &entries {
            let row = self.rows.get_mut(&entry.key).unwrap();
            // Mended: at the latest now.
            let mended = (row.due.min(now), row.accepted_at.min(now), row.held_at.map(|held| held.min(now)));
            let has_the_mended = match row.lease {
                // Not seen while it is leased.
                Some(_) => self.set_back && (row.accepted_at > now + SLACK || row.due > now + LATEST),
                None => {
                    entry.accepted_at != row.accepted_at
                        || (row.held_at.is_none() && entry.due != row.due)
                        || row.held_at.is_some_and(|held| entry.due != held)
                }
            };
            if has_the_mended && (row.held_at.is_some() || entry.state != State::Held) {
                assert!(done.mended > 0);
                (row.due, row.accepted_at, row.held_at) = mended;
            } else if has_the_mended {
                row.accepted_at = entry.accepted_at; // and found too old, which is looked at below
            }
            assert!(row.accepted_at <= now + SLACK, "accepted in {:?}", row.accepted_at.duration_since(now));
            assert!(!row.fresh || row.due <= now + SLACK, "due in {:?}", row.due.duration_since(now));
        }
        let is_old = |row: &Row| now.duration_since(row.accepted_at).is_ok_and(|age| age > max_age);
        for (key, row) in &mut self.rows {
            let too_old = done.too_old.iter().any(|old| old.key == *key && old.tenant == row.tenant);
            let may = row.held_at.is_none() && row.lease.is_none() && is_trusted && is_old(row);
            assert!(!too_old || may, "not too old, or the clock not to be believed: {key}");
            assert!(too_old || !may || !self.exact, "too old: {key}");
            if too_old {
                row.held_at = Some(now);
                row.reason = entries.iter().find(|entry| entry.key == *key).unwrap().reason.clone();
            }
        }
        for memory in self.memory.values_mut() {
            memory.over |= is_trusted && now.duration_since(memory.since).is_ok_and(|age| age > KEY_MEMORY);
        }
        self.tidied_kept(now, is_trusted).await;
        self.set_back = false;
    }

    async fn set_clock(&mut self, seconds: i64) {
        let by = Duration::from_secs(seconds.unsigned_abs());
        let (wall, running) = (self.clock.wall(), self.clock.running());
        self.exact = false;
        if seconds > 0 {
            self.clock.set(wall + by);
            if by > Duration::from_secs(HOUR) {
                self.distrust = running + Duration::from_secs(DAY);
            }
        } else {
            let now = wall - by;
            self.clock.set(now);
            (self.distrust, self.set_back) = (Duration::ZERO, true);
            self.memory.values_mut().for_each(|memory| memory.since = memory.since.min(now));
            // Somebody looks, or a leap forward after it could hide it.
            self.queue().check().await.unwrap();
        }
    }

    /// Both have the same.
    async fn compare(&self) {
        let queue = self.queue();
        let entries = queue.list(Filter::default()).await.unwrap();
        assert_eq!(entries.len(), self.rows.len());
        for entry in &entries {
            let row = &self.rows[&entry.key];
            let (state, due) = match (row.held_at, row.lease.is_some()) {
                (Some(held_at), _) => (State::Held, held_at),
                (None, true) => (State::InFlight, entry.due),
                (None, false) => (State::Waiting, row.due),
            };
            let found = (&*entry.tenant, entry.state, entry.attempts, entry.due, entry.accepted_at);
            assert_eq!(found, (row.tenant, state, row.attempts, due, row.accepted_at));
            assert_eq!(entry.reason, row.reason);
        }
        if let Some(entry) = entries.get(self.notes as usize % entries.len().max(1)) {
            let (row, item) = (&self.rows[&entry.key], queue.open(entry.id).await.unwrap());
            assert!(item.json == row.json && item.raw.len() == row.message);
            assert_eq!((item.note, item.attempts, item.replay), (row.note.clone(), row.attempts, row.replay));
            assert!(self.distrust <= self.clock.running() || item.age == Duration::ZERO);
        }
        let delivered = self.delivered().await;
        assert!(delivered.iter().map(|entry| entry.id).eq(self.kept.keys().copied()));
        for entry in &delivered {
            let kept = &self.kept[&entry.id];
            assert_eq!(
                (&entry.key, &*entry.tenant, entry.due),
                (&kept.key, kept.row.tenant, kept.delivered_at)
            );
        }
        if let Some(entry) = delivered.get(self.notes as usize % delivered.len().max(1)) {
            let (row, item) = (&self.kept[&entry.id].row, queue.open(entry.id).await.unwrap());
            assert!(item.json == row.json && item.raw.len() == row.message);
        }
        assert_eq!(queue.kept().await.unwrap().activities, self.kept.len() as u64);
        let counts = queue.counts().await.unwrap();
        let held = self.rows.values().filter(|row| row.held_at.is_some()).count() as u64;
        assert_eq!((counts.waiting, counts.held), (self.rows.len() as u64 - held, held));
        let by_tenant = queue.by_tenant().await.unwrap();
        for tenant in TENANTS {
            let of_tenant = by_tenant.iter().find(|counts| counts.tenant == tenant);
            let found = of_tenant.map_or(0, |counts| counts.waiting + counts.held);
            assert_eq!(found, self.counted(Some(tenant)));
        }
        let sure = self.memory.iter().filter(|(_, memory)| !memory.over).map(|(key, _)| key);
        let keys: Vec<Key> = self.rows.keys().chain(sure).cloned().collect();
        for (key, known) in keys.iter().zip(queue.known(keys.clone()).await.unwrap()) {
            assert!(known, "forgotten: {key}");
        }
    }
}

/// One case, in a directory of its own.
fn run(
    runtime: &tokio::runtime::Runtime,
    place: &Path,
    database: Option<&Database>,
    keep_hours: u64,
    steps: &[Step],
) {
    let case = tempfile::tempdir_in(place).unwrap();
    let settings = Settings {
        server: database.map(|database| {
            let mut server = database.server();
            // A command asks whether the service is heard of.
            server.missed_after = Duration::from_secs(8);
            server
        }),
        max_items: MAX_ITEMS,
        max_items_per_tenant: Some(MAX_OF_TENANT),
        held_counts: Duration::from_secs(100_000 * DAY),
        min_free: 0,
        keep_delivered: Duration::from_secs(keep_hours * HOUR),
        ..Settings::new(case.path().join("queue.db"), case.path().join("spool"))
    };
    runtime.block_on(async {
        let mut world = World::new(settings);
        for step in steps {
            world.step(step).await;
        }
    });
}

#[test]
fn the_queue_does_what_its_model_does() {
    try_cases(200, || None);
}

#[test]
fn the_shared_queue_does_what_the_model_does() {
    try_cases(30, || Some(Cluster::shared().database()));
}

fn try_cases(cases: u32, database: impl Fn() -> Option<Database> + Sync) {
    let mut config = Config { source_file: Some(file!()), ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    // Each thread has its share of the cases, and seeds of its own.
    let threads = thread::available_parallelism().map_or(1, |count| count.get() as u32);
    config.cases = config.cases.div_ceil(threads);
    let place = directory();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let case = |(keep_hours, steps): (u64, Vec<Step>)| {
                    run(&runtime, place.path(), database().as_ref(), keep_hours, &steps);
                    Ok(())
                };
                let keep_hours = prop::sample::select(vec![0, 1, 24, 24 * 20]);
                if let Err(error) = TestRunner::new(config.clone()).run(&(keep_hours, steps()), case) {
                    panic!("{error}");
                }
            });
        }
    });
}
