//! A shared queue whose server may be away, and what this machine does meanwhile.
//!
//! In and out: as [`Queue`] says. Over two queues, of which neither knows the other: the server's, from which alone
//! activities are leased, and a file of this machine, which takes mail while the server is away (`queue.spool_on_outage`).
//! Promise: what was put into the file is in the server's queue some time after that is back, once for each key, oldest
//! first, in pages; a row leaves the file only after the server has committed it with the guarantee that is asked of it.
//! Where there is no such file, or none for new mail, a server that is away is [`StorageError::Busy`], at a start too: the
//! service runs, and goes on by itself. What lies in a file of before, which was promised too, goes to the server likewise.
//! Fails: as the queue that was asked.
//!
//! The essay: a put of which nobody knows whether the server has it is put into the file too. That is no harm, for all is
//! decided by the key, in the server's own table, when the file gives it up: what is there already is known, and the row
//! only leaves. So nothing is asked before, nothing is remembered of puts in doubt, and the file need not know what came to
//! another machine. Keys that have no row (an e-mail to a project covers its tenant's bare address) go first: else the copy
//! to that address, come elsewhere, would be recorded beside the project. While it drains, what arrives goes to the server.

use super::{
    Ask, Change, Clock, Counts, End, Entry, Expired, Filter, HaulError, Identity, Item, Kept, Leased,
    OpenError, Overview, Page, Place, Put, Queue, Replay, Replayed, Rest, Settings, Spooled, StorageError,
    TenantCounts, Ticket, Transfer, Untold, Upkeep, haul,
    postgres::{Node, PostgresQueue, Server},
    sqlite::SqliteQueue,
};
use crate::activity::{Key, Parcel};
use crate::observe::{events, metrics};
use async_trait::async_trait;
use std::{
    ops::ControlFlow,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    runtime::Runtime,
    sync::Notify,
    time::{Instant, sleep, timeout},
};

/// How often the server is tried while it is away, and as much again by chance.
const TRY_EVERY: Duration = Duration::from_millis(500);

/// After so long what the server has no room for is offered again: all of the file is looked at.
const AGAIN_AFTER: Duration = Duration::from_secs(5);

/// How often is looked for what nobody told us of.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// How often the file is tidied.
const TIDY_EVERY: Duration = Duration::from_secs(60);

/// Who waits for work looks for himself after so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Nothing is held for its age while it waits for the server: the courier's settings decide that, where it is delivered.
const NEVER: Duration = Duration::from_secs(u32::MAX as u64);

/// The queue.
#[derive(Debug)]
struct OutageQueue {
    inner: Arc<Inner>,
    /// Ends with the queue; a page under way is put and did not leave then, as in a crash.
    runtime: Option<Runtime>,
}

impl Drop for OutageQueue {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Debug)]
struct Inner {
    settings: Settings,
    server: Server,
    clock: Arc<dyn Clock>,
    /// Ours for as long as we run, whether the server is there or not.
    node: Arc<Node>,
    /// Once it was there. It is never opened twice: what is away later comes back by itself.
    server_queue: OnceLock<Arc<PostgresQueue>>,
    opened: Notify,
    local: Option<Arc<SqliteQueue>>,
    /// Why the server takes nothing; none: it does, as far as we know.
    away: Mutex<Option<String>>,
    /// Why some of the file stays for now, though the server is there; empty: nothing does.
    full: Mutex<String>,
    /// The file may have something.
    has_some: AtomicBool,
    wake: Notify,
}

/// Opens the queue of a service. A server that is away, or will not have us now, is waited for beside.
pub(super) fn open(
    settings: &Settings,
    server: &Server,
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn Queue>, OpenError> {
    super::look(settings)?;
    let node = Arc::new(Node::take(&settings.spool)?);
    let local = local(settings, &clock)?;
    let (first, away) = match PostgresQueue::open(settings, server, Arc::clone(&clock), Arc::clone(&node)) {
        Ok(queue) if local.is_none() => return Ok(Arc::new(queue)),
        Ok(queue) => (OnceLock::from(Arc::new(queue)), None),
        Err(OpenError::Away(why)) => (OnceLock::new(), Some(why)),
        Err(error) => return Err(error),
    };
    let inner = Arc::new(Inner {
        settings: settings.clone(),
        server: server.clone(),
        clock,
        node,
        server_queue: first,
        opened: Notify::new(),
        local,
        away: Mutex::new(None),
        full: Mutex::default(),
        has_some: AtomicBool::new(true),
        wake: Notify::new(),
    });
    if let Some(why) = away {
        inner.went_away(&why);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("queue-outage")
        .enable_all()
        .build()
        .map_err(|error| OpenError::Unusable { path: server.name().into(), message: error.to_string() })?;
    runtime.spawn(run(Arc::clone(&inner)));
    Ok(Arc::new(OutageQueue { inner, runtime: Some(runtime) }))
}

/// The file, where there shall be one, or where one of before has something.
fn local(settings: &Settings, clock: &Arc<dyn Clock>) -> Result<Option<Arc<SqliteQueue>>, OpenError> {
    if settings.spool_on_outage {
        let local = SqliteQueue::open(&settings.local(), Arc::clone(clock))?;
        // A put of which nobody knows whether the server has it goes there too.
        local.spools().map_err(|error| OpenError::Unusable {
            path: settings.path.clone(),
            message: error.to_string(),
        })?;
        return Ok(Some(Arc::new(local)));
    }
    if !settings.path.exists() {
        return Ok(None);
    }
    match SqliteQueue::open(&settings.local(), Arc::clone(clock)) {
        Ok(local) => Ok(Some(Arc::new(local)).filter(|local| !local.is_empty())),
        // Nobody asked for it.
        Err(error) => {
            events::setting_doubtful(&format!(
                "what may be left in {} stays there: {error}",
                settings.path.display()
            ));
            Ok(None)
        }
    }
}

impl Inner {
    fn away(&self) -> Option<String> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where new mail goes while the server is away.
    fn spool(&self) -> Option<&Arc<SqliteQueue>> {
        self.local.as_ref().filter(|_| self.settings.spool_on_outage)
    }

    fn went_away(&self, why: &str) {
        let before = self.away.lock().unwrap_or_else(PoisonError::into_inner).replace(why.to_owned());
        if before.is_none() {
            if self.server_queue.get().is_none() {
                metrics::queue_reachable(false);
                events::queue_away(&self.server.name(), &why, self.spool().is_some());
            }
            if self.spool().is_some() {
                events::spooling(&self.settings.path, &why);
            }
        }
        self.wake.notify_one();
    }

    fn has_no_room(&self, why: &str) {
        why.clone_into(&mut self.full.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn full(&self) -> Option<String> {
        Some(self.full.lock().unwrap_or_else(PoisonError::into_inner).clone()).filter(|why| !why.is_empty())
    }

    fn is_back(&self) {
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.wake.notify_one();
    }

    /// The server's queue, once it was there.
    fn queue(&self) -> Result<&Arc<PostgresQueue>, StorageError> {
        self.server_queue.get().ok_or_else(|| {
            StorageError::Busy(self.away().unwrap_or_else(|| "its server was not there yet".to_owned()))
        })
    }

    async fn put(&self, parcel: Parcel) -> Result<Vec<Put>, StorageError> {
        let Some(spool) = self.spool() else { return self.queue()?.put(parcel).await };
        if self.away().is_none() {
            match self.queue()?.put(parcel.clone()).await {
                Err(StorageError::Busy(why)) => self.went_away(&why),
                done => return done,
            }
        }
        let puts = spool.put(parcel).await;
        // Perhaps the server came back meanwhile, and the file was found empty.
        self.has_some.store(true, Ordering::Release);
        self.wake.notify_one();
        puts
    }

    /// What waits in the file is known as well. While the server cannot be asked, only that is.
    async fn known(&self, keys: Vec<Key>) -> Result<Vec<bool>, StorageError> {
        let Some(local) = &self.local else { return self.queue()?.known(keys).await };
        let here = local.known(keys.clone()).await?;
        if here.iter().all(|known| *known) {
            return Ok(here);
        }
        let there = self.queue()?.known(keys).await?;
        Ok(here.into_iter().zip(there).map(|(here, there)| here || there).collect())
    }

    async fn check(&self) -> Result<(), StorageError> {
        let checked = match self.queue() {
            Ok(queue) => queue.check().await,
            Err(error) => Err(error),
        };
        match (checked, self.spool()) {
            (Err(StorageError::Busy(_)), Some(spool)) => spool.check().await,
            (checked, _) => checked,
        }
    }

    /// Tries to open the server's queue. Blocks for as long as a connection may take.
    async fn open(self: &Arc<Self>) -> Result<(), String> {
        let inner = Arc::clone(self);
        let open = move || {
            let Inner { settings, server, clock, node, .. } = &*inner;
            PostgresQueue::open(settings, server, Arc::clone(clock), Arc::clone(node))
        };
        let opened = tokio::task::spawn_blocking(open).await.map_err(|error| error.to_string())?;
        let queue = opened.map_err(|error| match error {
            OpenError::Away(why) => why,
            error => error.to_string(),
        })?;
        let _ = self.server_queue.set(Arc::new(queue));
        events::queue_back(&self.server.name());
        // All who wait for work have waited for this.
        self.opened.notify_waiters();
        self.opened.notify_one();
        Ok(())
    }
}

/// Until the queue is dropped.
async fn run(inner: Arc<Inner>) {
    let (mut looked, mut tidied) = (Instant::now(), Instant::now());
    loop {
        let is_waiting = inner.away().is_some() || inner.server_queue.get().is_none();
        let pause = if is_waiting { TRY_EVERY.mul_f64(1.0 + fastrand::f64()) } else { LOOK_EVERY };
        if is_waiting || !inner.has_some.load(Ordering::Acquire) {
            tokio::select! {
                () = inner.wake.notified(), if !is_waiting => {}
                () = sleep(pause) => {}
            }
        }
        if let Some(local) = inner.local.as_ref().filter(|_| tidied.elapsed() > TIDY_EVERY) {
            tidied = Instant::now();
            if let Err(error) = local.upkeep(NEVER).await {
                events::queue_trouble(&error);
            }
        }
        if inner.server_queue.get().is_none()
            && let Err(why) = inner.open().await
        {
            inner.went_away(&why);
            continue;
        }
        let Ok(queue) = inner.queue() else { continue };
        if inner.away().is_some() {
            match queue.can_write().await {
                Err(StorageError::Busy(why)) => {
                    inner.went_away(&why);
                    continue;
                }
                _ => inner.is_back(),
            }
        }
        let Some(local) = &inner.local else { return };
        if !inner.has_some.swap(false, Ordering::AcqRel) && looked.elapsed() < LOOK_EVERY {
            continue;
        }
        looked = Instant::now();
        let hauled = haul(&**local, &**queue, |_| ControlFlow::Continue(())).await;
        match hauled {
            Ok(hauled) => {
                if let Some((key, why)) = hauled.stuck.first() {
                    events::queue_trouble(&format!("{key} stays on this machine: {why}"));
                }
                if hauled.activities > 0 {
                    events::spool_drained(hauled.activities, &inner.server.name());
                }
                let full = hauled.full.iter().map(|(tenant, (count, why))| {
                    format!("{count} of tenant {tenant} stay on this machine for now: {why}")
                });
                let full = full.collect::<Vec<_>>().join("; ");
                inner.has_no_room(&full);
                if !full.is_empty() {
                    events::queue_trouble(&full);
                    inner.has_some.store(true, Ordering::Release);
                    sleep(AGAIN_AFTER).await;
                }
                continue;
            }
            Err(HaulError::To(StorageError::Busy(why))) if inner.spool().is_some() => inner.went_away(&why),
            Err(HaulError::To(error @ StorageError::Leaving)) => {
                events::queue_trouble(&format!("the queue's database: {error}"));
                sleep(AGAIN_AFTER).await;
            }
            Err(error) => events::queue_trouble(&error),
        }
        inner.has_some.store(true, Ordering::Release);
        sleep(TRY_EVERY).await;
    }
}

#[async_trait]
impl Queue for OutageQueue {
    async fn put(&self, parcel: Parcel) -> Result<Vec<Put>, StorageError> {
        self.inner.put(parcel).await
    }

    async fn known(&self, keys: Vec<Key>) -> Result<Vec<bool>, StorageError> {
        self.inner.known(keys).await
    }

    async fn lease(&self, ask: Ask) -> Result<Leased, StorageError> {
        self.inner.queue()?.lease(ask).await
    }

    async fn open(&self, item: i64) -> Result<Item, StorageError> {
        self.inner.queue()?.open(item).await
    }

    async fn begin(&self, ticket: &Ticket) -> Result<Item, StorageError> {
        self.inner.queue()?.begin(ticket).await
    }

    async fn owed(&self) -> usize {
        match self.inner.queue() {
            Ok(queue) => queue.owed().await,
            Err(_) => 0,
        }
    }

    async fn note(&self, ticket: &Ticket, note: String) -> Result<bool, StorageError> {
        self.inner.queue()?.note(ticket, note).await
    }

    async fn finish(&self, ends: Vec<(Ticket, End)>) -> Result<Vec<bool>, StorageError> {
        self.inner.queue()?.finish(ends).await
    }

    async fn upkeep(&self, max_age: Duration) -> Result<Upkeep, StorageError> {
        self.inner.queue()?.upkeep(max_age).await
    }

    async fn untold(&self, after: Option<i64>, limit: usize) -> Result<Vec<Untold>, StorageError> {
        self.inner.queue()?.untold(after, limit).await
    }

    async fn told(&self, items: Vec<i64>) -> Result<(), StorageError> {
        self.inner.queue()?.told(items).await
    }

    async fn counts(&self) -> Result<Counts, StorageError> {
        self.inner.queue()?.counts().await
    }

    async fn by_tenant(&self) -> Result<Vec<TenantCounts>, StorageError> {
        self.inner.queue()?.by_tenant().await
    }

    async fn overview(&self, most: usize, rows: usize) -> Result<Overview, StorageError> {
        self.inner.queue()?.overview(most, rows).await
    }

    async fn list(&self, filter: Filter) -> Result<Vec<Entry>, StorageError> {
        self.inner.queue()?.list(filter).await
    }

    async fn change_those(&self, items: Vec<i64>, change: Change) -> Result<Vec<i64>, StorageError> {
        self.inner.queue()?.change_those(items, change).await
    }

    async fn redeliver(&self, replay: Replay) -> Result<Replayed, StorageError> {
        self.inner.queue()?.redeliver(replay).await
    }

    async fn kept(&self) -> Result<Kept, StorageError> {
        self.inner.queue()?.kept().await
    }

    async fn expire(&self, prefixes: Vec<String>) -> Result<(), StorageError> {
        self.inner.queue()?.expire(prefixes).await
    }

    async fn expired(&self, after: Option<i64>) -> Result<Expired, StorageError> {
        self.inner.queue()?.expired(after).await
    }

    async fn bytes(&self) -> Result<u64, StorageError> {
        self.inner.queue()?.bytes().await
    }

    async fn check(&self) -> Result<(), StorageError> {
        self.inner.check().await
    }

    async fn safety(&self) -> Option<Result<String, String>> {
        match self.inner.queue() {
            Ok(queue) => queue.safety().await,
            Err(error) => Some(Err(error.to_string())),
        }
    }

    async fn identity(&self) -> Result<Identity, StorageError> {
        self.inner.queue()?.identity().await
    }

    async fn to_move(&self, delivered: bool, after: i64) -> Result<Page, StorageError> {
        self.inner.queue()?.to_move(delivered, after).await
    }

    async fn take_in(&self, transfers: Vec<Transfer>) -> Result<Vec<Put>, StorageError> {
        self.inner.queue()?.take_in(transfers).await
    }

    async fn let_go(&self, places: Vec<Place>) -> Result<usize, StorageError> {
        self.inner.queue()?.let_go(places).await
    }

    async fn keep(&self, places: Vec<Place>) -> Result<(), StorageError> {
        self.inner.queue()?.keep(places).await
    }

    async fn rest(&self, how: Rest) {
        if let Ok(queue) = self.inner.queue() {
            queue.rest(how).await;
        }
    }

    async fn memory(&self, after: Option<Key>, limit: usize) -> Result<Vec<Key>, StorageError> {
        self.inner.queue()?.memory(after, limit).await
    }

    async fn remember(&self, keys: Vec<Key>) -> Result<(), StorageError> {
        self.inner.queue()?.remember(keys).await
    }

    async fn forget(&self, keys: Vec<Key>) -> Result<(), StorageError> {
        self.inner.queue()?.forget(keys).await
    }

    async fn spooled(&self) -> Option<Spooled> {
        let local = self.inner.local.as_ref()?;
        let counts = local.counts().await.unwrap_or_default();
        Some(Spooled { counts, away: self.inner.away(), full: self.inner.full() })
    }

    async fn arrival(&self) {
        match self.inner.queue() {
            Ok(queue) => queue.arrival().await,
            Err(_) => drop(timeout(PATIENCE, self.inner.opened.notified()).await),
        }
    }

    async fn newly_held(&self) {
        loop {
            match self.inner.queue() {
                Ok(queue) => return queue.newly_held().await,
                Err(_) => drop(timeout(PATIENCE, self.inner.opened.notified()).await),
            }
        }
    }
}
