//! The queue in a PostgreSQL database, which several machines share.
//!
//! In and out: as [`Queue`] says. Who puts, leases and finishes does it with a statement of its own on a connection that is
//! lent for it (`line`); the server makes one sync of many commits. What a machine remembers is little, and nothing that
//! another one needs: leases it gave, ends it owes, about how many activities there are.
//! Promise: several services put and lease at the same time; the clock of the database alone decides what is due, and
//! ends no lease of who lives. Everything runs in a
//! runtime of its own: who stops waiting stops nothing half done, and a busy service delays no heartbeat.
//! Fails: as [`Queue`] says. While the database is away all is [`StorageError::Busy`], at once or after a deadline, and
//! goes on by itself when it is back.

mod change;
mod expired;
mod fault;
mod free;
mod functions;
mod guarantee;
mod held;
mod kept;
mod lease;
mod leaving;
mod line;
mod look;
mod mail;
mod mend;
mod moving;
mod node;
mod past;
mod payload;
mod pulse;
mod put;
mod routine;
mod schema;
mod server;
mod tls;
mod together;
mod upkeep;
mod when;

pub use server::{Server, Tls};

use super::{
    Ask, Change, Clock, Counts, End, Entry, Expired, Filter, Identity, Item, Kept, Leased, OpenError,
    Overview, Page, Place, Put, Queue, Replay, Replayed, Rest, Settings, StorageError, TenantCounts, Ticket,
    Transfer, Untold, Upkeep,
    disk::Disk,
    tally::{Room, Tally},
};
use crate::activity::{Key, Parcel};
use async_trait::async_trait;
use guarantee::Guarantee;
use line::{Learnt, Lines};
pub(super) use node::Node;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use together::Together;
use tokio::{
    runtime::Runtime,
    sync::{Notify, RwLock, Semaphore},
    time::{Instant, timeout},
};
use tokio_postgres::types::Type;
use when::When;

/// Time for what is quick, the wait for a standby included.
const LOOK_TIME: Duration = Duration::from_secs(15);

/// Who stops and asks what is owed waits no longer than this for it to be written.
const PAY_TIME: Duration = Duration::from_secs(3);

/// After so many that were not taken it is no matter of one message,
const REFUSED_IN_A_ROW: u32 = 3;

/// for so long: who sends mail elsewhere because of it hears when that may be over.
const REFUSED_LATELY: Duration = Duration::from_secs(30);

/// How often the others hear that we are there.
const SEEN_EVERY: Duration = Duration::from_secs(20);

/// Time for what may take long.
const LONG_TIME: Duration = Duration::from_secs(60);

/// Connections for who looks.
const LOOKERS: usize = 2;

/// Statements of one kind at a time: what waits meanwhile goes into the next ones.
const TURNS: usize = 2;

/// Threads that speak to the server.
const THREADS: usize = 2;

/// Who waits for an arrival looks for himself after so long: a node may have ended between its commit and its word.
const PATIENCE: Duration = Duration::from_secs(30);

/// The lock of who makes a day's table.
const LOCK: i64 = 0x616d_2d64_6179_0000;

/// The queue.
#[derive(Debug)]
pub(super) struct PostgresQueue {
    inner: Arc<Inner>,
    /// Ends with the queue; whatever it is at ends there, as in a crash.
    runtime: Option<Runtime>,
    /// Held for as long as the queue is open; none for a command.
    _node: Option<Arc<Node>>,
}

impl Drop for PostgresQueue {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Debug)]
struct Inner {
    /// The database, for people.
    name: String,
    settings: Settings,
    require_replication: bool,
    /// Time for a put.
    patience: Duration,
    missed_after: Duration,
    /// None for a command.
    node: Option<String>,
    /// Who moves something away, if we do.
    mover: String,
    /// Where we run ([`Node::boot`]).
    boot: String,
    /// The names of our directory's processes before, which are gone for sure.
    former: Vec<String>,
    lines: Lines,
    lookers: Lines,
    when: When,
    /// As it was found last.
    guarantee: Mutex<Guarantee>,
    tally: Arc<Tally>,
    counting: tokio::sync::Mutex<()>,
    disk: Mutex<Disk>,
    words: Semaphore,
    puts: Together<mail::Mail, put::Stored>,
    ends: Together<Vec<(Ticket, End)>, Vec<bool>>,
    opens: Together<i64, Option<look::Stored>>,
    /// Ends that the database did not take yet, by the items.
    owed: Mutex<HashMap<i64, (Ticket, End)>>,
    /// Our leases, by the items.
    given: Mutex<HashMap<i64, lease::Given>>,
    /// Held while a lease is asked for; whole, by who looks what we have.
    leasing: RwLock<()>,
    /// How many were not taken since one was, and why the last was not.
    refused: Mutex<(u32, Option<(Instant, String)>)>,
    /// When it was last that something may have been leased of which we do not know.
    doubted: Mutex<Option<Instant>>,
    floor: Mutex<Option<lease::Floor>>,
    /// The other nodes, as they were heard of since the database answers without a break.
    seen: Mutex<lease::Seen>,
    arrived: Notify,
    held: Notify,
    /// Something arrived of which the others were not told.
    rung: AtomicBool,
    /// How often the clock was set, as far as the database was told.
    noted: AtomicU64,
    upkeep: tokio::sync::Mutex<upkeep::Places>,
}

impl PostgresQueue {
    /// Whether the server can be written to, as far as that is seen by who only looks.
    /// # Errors
    /// [`StorageError::Busy`].
    pub(super) async fn can_write(&self) -> Result<(), StorageError> {
        self.run(|inner| async move { inner.can_write().await }).await
    }

    /// Opens or makes the queue, migrates an older one, and gives back the leases of the process before. At once, or not:
    /// who waits for a server that is away tries again ([`OpenError::Away`]).
    pub(super) fn open(
        settings: &Settings,
        server: &Server,
        clock: Arc<dyn Clock>,
        node: Arc<Node>,
    ) -> Result<Self, OpenError> {
        Self::start(settings, server, clock, Some(node), true)
    }

    /// The queue of services that may be running.
    pub(super) fn beside(
        settings: &Settings,
        server: &Server,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OpenError> {
        Self::start(settings, server, clock, None, false)
    }

    /// The same, and it is made where there is none, for what comes from another queue.
    pub(super) fn made_beside(
        settings: &Settings,
        server: &Server,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OpenError> {
        Self::start(settings, server, clock, None, true)
    }

    fn start(
        settings: &Settings,
        server: &Server,
        clock: Arc<dyn Clock>,
        node: Option<Arc<Node>>,
        makes: bool,
    ) -> Result<Self, OpenError> {
        let unusable = |message: String| OpenError::Unusable { path: server.name().into(), message };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("queue-postgres")
            .enable_all()
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        let (settings, server) = (settings.clone(), server.clone());
        let who = node.clone();
        // Not `block_on`: who opens may be within a runtime.
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        runtime.spawn(async move {
            let _ = reply.send(Inner::start(settings, server, clock, who, makes).await);
        });
        let inner = answer
            .recv()
            .map_err(|error| OpenError::Unusable { path: "postgres".into(), message: error.to_string() });
        let inner = match inner.flatten() {
            Ok(inner) => inner,
            Err(error) => {
                runtime.shutdown_background();
                return Err(error);
            }
        };
        if inner.node.is_some() {
            runtime.spawn(pulse::run(Arc::clone(&inner)));
        }
        Ok(Self { inner, runtime: Some(runtime), _node: node })
    }

    /// Does it in the runtime of the queue: who stops waiting stops nothing.
    async fn run<T: Send + 'static, F: Future<Output = Result<T, StorageError>> + Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Inner>) -> F,
    ) -> Result<T, StorageError> {
        let gone = || StorageError::Other("the queue is closed".to_owned());
        let runtime = self.runtime.as_ref().ok_or_else(gone)?;
        let done = runtime.spawn(work(Arc::clone(&self.inner)));
        done.await.map_err(|error| StorageError::Other(error.to_string()))?
    }
}

impl Inner {
    async fn start(
        settings: Settings,
        server: Server,
        clock: Arc<dyn Clock>,
        who: Option<Arc<Node>>,
        makes: bool,
    ) -> Result<Arc<Self>, OpenError> {
        let node = who.as_ref().map(|who| who.name.clone());
        let name = server.name();
        let wrong = |error: StorageError| schema::unusable(&name, &error);
        let text = |message: String| OpenError::Unusable { path: name.clone().into(), message };
        let most = if node.is_some() { server.connections } else { 1 };
        let learnt = Arc::<Learnt>::default();
        let lines = Lines::new(&server, most, &learnt).map_err(text)?;
        let lookers = Lines::new(&server, LOOKERS.min(most), &learnt).map_err(text)?;
        let mut line = lines.lend(LONG_TIME).await.map_err(wrong)?;
        if makes {
            schema::prepare(&mut line, &name).await?;
            line.discard();
            line = lines.lend(LONG_TIME).await.map_err(wrong)?;
            if functions::prepare(&mut line).await {
                learnt.has_routines();
            } else {
                line = lines.lend(LONG_TIME).await.map_err(wrong)?;
            }
        } else {
            schema::look(&mut line, &name).await?;
        }
        let given = clock.by_hand().map(super::watch::millis);
        let rows = line
            .ask(
                "SELECT activity_milter.at($1), newest, distrust,
                     greatest(newest, (SELECT accepted_at FROM activity_milter.item ORDER BY id DESC LIMIT 1))
                 FROM activity_milter.meta",
                &[(&given, Type::INT8)],
            )
            .await
            .map_err(wrong)?;
        let [now, newest, distrust, latest] = rows.first().map_or([0; 4], |row| {
            [row.get(0), row.get(1), row.get(2), row.get::<_, Option<i64>>(3).unwrap_or(0)]
        });
        let when = When::new(clock, now);
        let (mut places, mut former) = (upkeep::Places::default(), Vec::new());
        if node.is_some() {
            when.watch.begin(latest, distrust);
            former = node::former(&mut line, who.as_deref()).await.map_err(wrong)?;
            let keeps = !settings.keep_delivered.is_zero();
            kept::begin(&mut line, keeps, given).await.map_err(wrong)?;
            places = upkeep::Places::after_open(&mut line, given, newest > now).await.map_err(wrong)?;
        }
        let guarantee = line.guarantee();
        drop(line);
        let inner = Arc::new(Self {
            name: name.clone(),
            require_replication: server.require_replication,
            patience: server.patience,
            missed_after: server.missed_after,
            node,
            mover: format!("{:032x}", fastrand::u128(..)),
            boot: who.map(|who| who.boot.clone()).unwrap_or_default(),
            former,
            lines,
            lookers,
            when,
            guarantee: Mutex::new(guarantee),
            tally: Tally::new(&settings),
            counting: tokio::sync::Mutex::default(),
            disk: Mutex::new(Disk::new(&settings)),
            settings,
            puts: Together::new(TURNS.min(most)),
            ends: Together::new(TURNS.min(most)),
            opens: Together::new(TURNS.min(most)),
            words: Semaphore::new(put::ON_THE_WAY >> 10),
            owed: Mutex::default(),
            given: Mutex::default(),
            leasing: RwLock::new(()),
            refused: Mutex::default(),
            doubted: Mutex::new(Some(Instant::now())),
            floor: Mutex::default(),
            seen: Mutex::default(),
            arrived: Notify::new(),
            held: Notify::new(),
            rung: AtomicBool::new(false),
            noted: AtomicU64::new(u64::MAX),
            upkeep: tokio::sync::Mutex::new(places),
        });
        inner.count().await.map_err(wrong)?;
        if makes {
            payload::prepare(&inner).await.map_err(wrong)?;
        }
        if inner.node.is_some() {
            upkeep::note_time(&inner).await.map_err(wrong)?;
            pulse::tell(&inner, false).await.map_err(wrong)?;
            lease::settle(&inner).await.map_err(wrong)?;
        }
        Ok(inner)
    }

    /// How often whoever runs is heard, at least.
    fn heard_within(&self) -> Duration {
        SEEN_EVERY.min(self.missed_after / 4)
    }

    /// Our name; commands have none, and neither put nor lease.
    fn is_service(&self) -> Result<&str, StorageError> {
        let node = self.node.as_deref();
        node.ok_or_else(|| StorageError::Other("only the service itself may do that".to_owned()))
    }

    fn guarantee(&self) -> Guarantee {
        self.guarantee.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether what is committed on this connection will hold as is asked.
    fn may_commit(&self, line: &line::Line) -> Result<(), StorageError> {
        match line.lacks().or_else(|| self.guarantee().lacks(self.require_replication)) {
            Some(lack) => {
                self.finds(line);
                Err(StorageError::Busy(lack))
            }
            None => Ok(()),
        }
    }

    /// A connection lacks what is asked: whoever looks hears it now.
    fn finds(&self, line: &line::Line) {
        if line.lacks().is_some() {
            *self.guarantee.lock().unwrap_or_else(PoisonError::into_inner) = line.guarantee();
        }
    }

    /// There is something to lease: whoever waits here is woken now, the others a little later.
    fn ring(&self) {
        self.rung.store(true, Ordering::Release);
        self.arrived.notify_one();
    }

    /// Takes over the numbers of all tenants.
    async fn count(&self) -> Result<(), StorageError> {
        pulse::count(self).await
    }

    /// What time it is.
    async fn now(&self) -> Result<i64, StorageError> {
        let mut line = self.lookers.lend(LOOK_TIME).await?;
        let rows = line.ask("SELECT activity_milter.at($1)", &[(&self.when.given(), Type::INT8)]).await?;
        let now = rows.first().map_or(0, |row| row.get(0));
        self.when.shown(now);
        Ok(now)
    }

    /// Before anything is written by a clock that leapt, it is noted that it is not believed.
    async fn note_leaps(&self) -> Result<(), StorageError> {
        self.when.watch.now();
        if self.when.watch.sets() != self.noted.load(Ordering::Acquire) {
            upkeep::note_time(self).await?;
        }
        Ok(())
    }

    /// The same before something is changed by hand, which a service does by its clock too.
    async fn note_leaps_of_ours(&self) -> Result<(), StorageError> {
        if self.node.is_some() { self.note_leaps().await } else { Ok(()) }
    }

    /// What became of a put.
    fn note_refusal(&self, puts: &Result<Vec<Put>, StorageError>) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match puts {
            Ok(_) => *refused = (0, None),
            Err(StorageError::Full(_) | StorageError::Leaving) => {}
            Err(error) => *refused = (refused.0.saturating_add(1), Some((Instant::now(), error.to_string()))),
        }
    }

    /// What nobody sees who only looks: the server's disk is full, or a right is gone. Nothing was taken lately.
    fn takes(&self) -> Result<(), StorageError> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match &*refused {
            (in_a_row, Some((at, why))) if *in_a_row >= REFUSED_IN_A_ROW && at.elapsed() < REFUSED_LATELY => {
                Err(StorageError::Busy(format!("the last {in_a_row} were not taken: {why}")))
            }
            _ => Ok(()),
        }
    }

    /// Whether the server would be written to. Nothing is written: all nodes would wait for each other, and mail for them.
    async fn can_write(&self) -> Result<(), StorageError> {
        if let Some(lack) = self.guarantee().lacks(self.require_replication) {
            return Err(StorageError::Busy(lack));
        }
        let mut line = self.lookers.lend(LOOK_TIME).await?;
        let rows = line
            .ask(
                "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on',
                     has_table_privilege('activity_milter.item', 'INSERT')
                         AND has_table_privilege('activity_milter.key', 'INSERT')
                         AND has_table_privilege('activity_milter.payload', 'INSERT')",
                &[],
            )
            .await?;
        match rows.first().map(|row| (row.get(0), row.get(1))) {
            Some((false, true)) => Ok(()),
            Some((false, false)) => {
                Err(StorageError::Busy(format!("our user may not INSERT into the tables of {}", self.name)))
            }
            _ => Err(StorageError::Busy(format!("{} cannot be written to", self.name))),
        }
    }

    /// Whether the directory for messages that arrive has its reserve.
    fn has_disk(&self) -> Result<(), StorageError> {
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(disk.room(self.when.watch.running())?)
    }

    /// Room in the queue for an activity of each of these tenants.
    async fn share(&self, tenants: &[String]) -> Result<Room, StorageError> {
        match self.tally.reserve(tenants.to_vec()) {
            Ok(room) => Ok(room),
            // Perhaps something was delivered since, or a person made room.
            Err(_) => {
                self.count().await?;
                self.tally.reserve(tenants.to_vec())
            }
        }
    }

    /// Room for an activity of each of these tenants; none is needed where all of the message is known.
    async fn room(&self, tenants: &[String], keys: &[Key]) -> Result<Option<Room>, StorageError> {
        let room = self.share(tenants).await;
        let lack = match (room, self.has_disk()) {
            (Ok(room), Ok(())) => return Ok(Some(room)),
            (Err(lack), _) | (_, Err(lack)) => lack,
        };
        if put::known(self, keys).await?.iter().all(|known| *known) {
            return Ok(None);
        }
        Err(lack)
    }
}

/// A text that a database can hold.
fn text(text: &str) -> String {
    text.replace('\0', "")
}

#[async_trait]
impl Queue for PostgresQueue {
    async fn put(&self, parcel: Parcel) -> Result<Vec<Put>, StorageError> {
        self.run(|inner| async move {
            let puts = put::put(Arc::clone(&inner), parcel).await;
            inner.note_refusal(&puts);
            puts
        })
        .await
    }

    async fn known(&self, keys: Vec<Key>) -> Result<Vec<bool>, StorageError> {
        self.run(|inner| async move { put::known(&inner, &keys).await }).await
    }

    async fn lease(&self, ask: Ask) -> Result<Leased, StorageError> {
        self.run(|inner| async move {
            inner.is_service()?;
            lease::pay(&inner).await;
            lease::lease(&inner, ask).await
        })
        .await
    }

    async fn open(&self, item: i64) -> Result<Item, StorageError> {
        self.run(move |inner| async move { look::open(&inner, item).await }).await
    }

    async fn begin(&self, ticket: &Ticket) -> Result<Item, StorageError> {
        let ticket = ticket.clone();
        self.run(move |inner| async move { look::begin(&inner, &ticket).await }).await
    }

    async fn owed(&self) -> usize {
        self.run(|inner| async move {
            let _ = timeout(PAY_TIME, lease::pay(&inner)).await; // what is on its way is written or owed
            Ok(inner.owed().len())
        })
        .await
        .unwrap_or_default()
    }

    async fn note(&self, ticket: &Ticket, note: String) -> Result<bool, StorageError> {
        let ticket = ticket.clone();
        self.run(|inner| async move { lease::note(&inner, &ticket, &text(&note)).await }).await
    }

    async fn finish(&self, ends: Vec<(Ticket, End)>) -> Result<Vec<bool>, StorageError> {
        self.run(|inner| async move { lease::finish(&inner, ends).await }).await
    }

    async fn upkeep(&self, max_age: Duration) -> Result<Upkeep, StorageError> {
        self.run(move |inner| async move {
            inner.is_service()?;
            lease::pay(&inner).await;
            let mut places = inner.upkeep.lock().await;
            upkeep::run(&inner, &mut places, max_age).await
        })
        .await
    }

    async fn untold(&self, after: Option<i64>, limit: usize) -> Result<Vec<Untold>, StorageError> {
        self.run(move |inner| async move { look::untold(&inner, after, limit).await }).await
    }

    async fn told(&self, items: Vec<i64>) -> Result<(), StorageError> {
        self.run(|inner| async move { change::told(&inner, &items).await }).await
    }

    async fn counts(&self) -> Result<Counts, StorageError> {
        self.run(|inner| async move { look::counts(&inner).await }).await
    }

    async fn by_tenant(&self) -> Result<Vec<TenantCounts>, StorageError> {
        self.run(|inner| async move { look::by_tenant(&inner).await }).await
    }

    async fn overview(&self, most: usize, rows: usize) -> Result<Overview, StorageError> {
        self.run(move |inner| async move { look::overview(&inner, most, rows).await }).await
    }

    async fn list(&self, filter: Filter) -> Result<Vec<Entry>, StorageError> {
        self.run(|inner| async move { look::list(&inner, &filter).await }).await
    }

    async fn change_those(&self, items: Vec<i64>, change: Change) -> Result<Vec<i64>, StorageError> {
        self.run(|inner| async move {
            inner.note_leaps_of_ours().await?;
            let changed = change::change(&inner, &items, &change).await;
            inner.tell_of_change().await;
            changed
        })
        .await
    }

    async fn redeliver(&self, replay: Replay) -> Result<Replayed, StorageError> {
        self.run(|inner| async move {
            inner.note_leaps_of_ours().await?;
            let replayed = kept::redeliver(&inner, replay).await;
            inner.tell_of_change().await;
            replayed
        })
        .await
    }

    async fn kept(&self) -> Result<Kept, StorageError> {
        self.run(|inner| async move { kept::look(&inner).await }).await
    }

    async fn expire(&self, prefixes: Vec<String>) -> Result<(), StorageError> {
        self.run(|inner| async move { expired::say(&inner, &prefixes).await }).await
    }

    async fn expired(&self, after: Option<i64>) -> Result<Expired, StorageError> {
        self.run(move |inner| async move { expired::look(&inner, after).await }).await
    }

    async fn bytes(&self) -> Result<u64, StorageError> {
        self.run(|inner| async move { look::bytes(&inner).await }).await
    }

    async fn check(&self) -> Result<(), StorageError> {
        self.run(|inner| async move {
            inner.can_write().await?;
            inner.has_disk()?;
            inner.takes()
        })
        .await
    }

    async fn safety(&self) -> Option<Result<String, String>> {
        let looked = self.run(|inner| async move {
            let found = pulse::guarantee(&inner).await?;
            Ok(found.lacks(inner.require_replication).map_or_else(|| Ok(found.words()), Err))
        });
        Some(looked.await.unwrap_or_else(|error| Err(error.to_string())))
    }

    async fn identity(&self) -> Result<Identity, StorageError> {
        self.run(|inner| async move { moving::identity(&inner).await }).await
    }

    async fn to_move(&self, delivered: bool, after: i64) -> Result<Page, StorageError> {
        self.run(move |inner| async move { moving::page(&inner, delivered, after).await }).await
    }

    async fn take_in(&self, transfers: Vec<Transfer>) -> Result<Vec<Put>, StorageError> {
        self.run(|inner| async move { moving::take_in(&inner, transfers).await }).await
    }

    async fn let_go(&self, places: Vec<Place>) -> Result<usize, StorageError> {
        self.run(|inner| async move { moving::let_go(&inner, &places).await }).await
    }

    async fn keep(&self, places: Vec<Place>) -> Result<(), StorageError> {
        self.run(|inner| async move { moving::keep(&inner, &places).await }).await
    }

    async fn rest(&self, how: Rest) {
        // What fails ends by itself.
        let _ = self.run(move |inner| async move { leaving::rest(&inner, how == Rest::Done).await }).await;
    }

    async fn memory(&self, after: Option<Key>, limit: usize) -> Result<Vec<Key>, StorageError> {
        self.run(move |inner| async move { moving::memory(&inner, after, limit).await }).await
    }

    async fn remember(&self, keys: Vec<Key>) -> Result<(), StorageError> {
        self.run(|inner| async move { moving::remember(&inner, &keys).await }).await
    }

    async fn forget(&self, keys: Vec<Key>) -> Result<(), StorageError> {
        self.run(|inner| async move { moving::forget(&inner, &keys).await }).await
    }

    async fn arrival(&self) {
        let _ = timeout(PATIENCE, self.inner.arrived.notified()).await;
    }

    async fn newly_held(&self) {
        self.inner.held.notified().await;
    }
}

impl Inner {
    /// Somebody changed something by hand, and it may take room.
    async fn tell_of_change(&self) {
        self.tell_of_command().await;
        if self.node.is_some() {
            // Or it is counted within a second.
            let _ = self.count().await;
        }
    }

    /// A command has no pulse, and tells of what it did at once.
    async fn tell_of_command(&self) {
        if self.node.is_none() && self.rung.swap(false, Ordering::AcqRel) {
            // What is not told is found when somebody looks for himself.
            let _ = pulse::tell(self, true).await;
        }
    }
}
