//! The queue in one SQLite file and one spool directory, for one machine.
//!
//! In and out: as [`Queue`] says. What is written goes through one thread (`writer`), which commits all that waits
//! together; it owns the [`ledger`](self), which knows leases, turns and numbers without asking the database. Who looks has
//! connections of its own (`reader`), so that no look waits for a sync and no message waits for a look.
//! Promise: one process has the queue; commands of others change it beside (`SqliteQueue::beside`), through the same
//! functions and transactions, and the service notices within a second.
//! Fails: as [`Queue`] says.

mod backup;
mod expired;
mod kept;
mod keys;
mod leases;
mod ledger;
mod look;
mod moving;
mod numbers;
mod places;
mod reader;
mod row;
mod schema;
mod spool;
mod turns;
mod upkeep;
mod writer;

#[cfg(test)]
mod proofs;

use super::{
    Ask, Backup, Change, Clock, Counts, End, Entry, Expired, Filter, Identity, Item, KEY_MEMORY, Kept,
    Leased, OpenError, Overview, Page, Place, Put, Queue, Replay, Replayed, Rest, Settings, State,
    StorageError, TenantCounts, Ticket, Transfer, Untold, Upkeep, Verified, disk, make_directory, tally,
    watch, written,
};
use crate::activity::{Activity, Key, Parcel, Raw};
use crate::observe::events;
use async_trait::async_trait;
use disk::Disk;
use ledger::{Ledger, Letter, NewRow, Owed, Shared};
use numbers::Numbers;
use reader::Reader;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use spool::{Holder, Spool};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};
use tally::Tally;
use tokio::sync::{Notify, Semaphore};
use watch::Watch;
use writer::{Slice, Writer};

/// How long another process may hold the database before we give up.
const BUSY: Duration = Duration::from_secs(10);

/// How often it is asked whether another process has changed something, and whether ends can be written that could not.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Largest message, in bytes, whose activities become JSON where they are; others hold a thread that may block.
const WORDED_AT_ONCE: u64 = 64 * 1024;

/// Largest activity, in bytes of JSON, that is read where it is asked for.
const READ_AT_ONCE: usize = 64 * 1024;

/// Bytes of JSON that may be made or wait to be written, over all messages.
const WORDED_AT_A_TIME: u64 = 64 << 20;

/// Activities changed by hand in one transaction, at most.
const CHANGED_AT_ONCE: usize = 500;

/// The queue.
#[derive(Debug)]
pub(super) struct SqliteQueue(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    writer: Writer,
    /// For what attempts need.
    opener: Reader,
    /// For lists, which may take long.
    lister: Reader,
    spool: Spool,
    path: PathBuf,
    /// None for a command.
    numbers: Option<Arc<Numbers>>,
    /// A command's, once it takes something in.
    own_numbers: OnceLock<Arc<Numbers>>,
    tally: Arc<Tally>,
    watch: Arc<Watch>,
    owed: Owed,
    words: Semaphore,
    /// No row before this one waits; 0 if that is not known.
    oldest: Arc<AtomicI64>,
    held_counts: Duration,
    /// Zero: nothing is kept after its delivery.
    keep_delivered: Duration,
    /// Looks at the disk for what is kept.
    disk: Mutex<Disk>,
    upkeep: tokio::sync::Mutex<upkeep::Places>,
    arrived: Arc<Notify>,
    held: Notify,
    /// While something is moved out of it, or into it.
    moving: Mutex<moving::Holds>,
    /// Held for as long as the queue is open; the kernel gives them back however we end.
    _locks: Vec<File>,
}

impl SqliteQueue {
    /// Opens or makes the queue, migrates an older one, and gives back the leases of a crashed process.
    pub(super) fn open(settings: &Settings, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        places::look(settings)?;
        let parent = settings.path.parent().filter(|path| !path.as_os_str().is_empty());
        for directory in [parent.unwrap_or(Path::new(".")), &settings.spool] {
            make_directory(directory)?;
        }
        let lock = spool::lock(&lock_path(&settings.path), &settings.path)?;
        // SQLite makes its files with the mode of the database file, so that one is made here, as private as the lock.
        private_file(&settings.path)?;
        let wrong = |error: rusqlite::Error| open_error(&settings.path, &error);
        // `connect` would write into anybody's. Kept until then, for the last to close a database moves its log.
        let looked = existing(&settings.path)?;
        let mut database = schema::connect(&settings.path).map_err(wrong)?;
        drop(looked);
        schema::prepare(&mut database, &settings.path, |folder, files| {
            let taken = Spool::new(&settings.spool, folder).take_over(&settings.spool, files);
            taken.map_err(|error| OpenError::Directory { path: settings.spool.clone(), error })
        })?;
        database.execute_batch(expired::TABLE).map_err(wrong)?;
        let spool = Spool::new(&settings.spool, &folder(&database).map_err(wrong)?);
        let locks = vec![lock, spool.lock()?];
        let watch = Arc::new(Watch::new(clock));
        let files = spool
            .numbers(i64::MAX)
            .map_err(|error| OpenError::Directory { path: settings.spool.clone(), error })?;
        let greatest = files.into_iter().max().unwrap_or(0);
        let (numbers, was_ahead) = recover(&database, &watch, greatest).map_err(wrong)?;
        kept::begin(&database, !settings.keep_delivered.is_zero(), watch.now()).map_err(wrong)?;
        let numbers = Arc::new(numbers);
        if let Ok((files, Some(folder))) = spool.of_others(&settings.spool) {
            events::files_of_others(files, &folder);
        }
        let places = upkeep::Places::after_open(&database, &watch, was_ahead).map_err(wrong)?;
        Self::start(settings, database, spool, Some(numbers), watch, places, locks).map_err(wrong)
    }

    /// The queue of a service that may be running.
    pub(super) fn beside(settings: &Settings, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let (database, holder) = connect_beside(&settings.path)?;
        let wrong = |error: rusqlite::Error| open_error(&settings.path, &error);
        // Of a service that was killed, leases are left; no longer than until it starts again, or somebody looks.
        if let Holder::Nobody(Some(_stopped)) = holder {
            database.execute("DELETE FROM lease", []).map_err(wrong)?;
        }
        let spool = Spool::new(&settings.spool, &folder(&database).map_err(wrong)?);
        let watch = Arc::new(Watch::new(clock));
        Self::start(settings, database, spool, None, watch, upkeep::Places::default(), Vec::new())
            .map_err(wrong)
    }

    /// Nothing is here: no row, and no key that is remembered. Blocks.
    pub(super) fn is_empty(&self) -> bool {
        let looked = existing(&self.0.path).map(|database| {
            let sql = "SELECT NOT EXISTS (SELECT 1 FROM item) AND NOT EXISTS (SELECT 1 FROM kept)
                 AND NOT EXISTS (SELECT 1 FROM key_0) AND NOT EXISTS (SELECT 1 FROM key_1)";
            database.query_row(sql, [], |row| row.get(0)).unwrap_or(false)
        });
        looked.unwrap_or(false)
    }

    /// What is put from here on may be in a database server's queue too. Blocks.
    pub(super) fn spools(&self) -> Result<(), StorageError> {
        moving::spools(&self.0)
    }

    /// Whatever comes is here alone, if nothing is here. Blocks.
    pub(super) fn alone(&self) -> Result<(), StorageError> {
        match moving::is_marked(&self.0.path).map_err(later)? && !has_some(&self.0.path)? {
            true => moving::unmark(&self.0),
            false => Ok(()),
        }
    }

    /// Whether another queue may have some of what is here, and both would deliver it. Blocks.
    pub(super) fn look_for_others(settings: &Settings) -> Result<(), OpenError> {
        let path = &settings.path;
        if !moving::is_marked(path).unwrap_or(false) {
            return Ok(());
        }
        // What cannot be read is said by the start itself.
        match has_some(path) {
            Ok(true) => Err(OpenError::CutOff {
                path: path.clone(),
                mark: moving::lock_path(path).unwrap_or_default(),
            }),
            _ => Ok(()),
        }
    }

    /// What a start would say of what is there.
    pub(super) fn look(settings: &Settings) -> Result<(), OpenError> {
        places::look(settings)
    }

    /// Copies the queue of a service that may be running into a directory.
    pub(super) fn copy(settings: &Settings, to: &Path) -> Result<Backup, OpenError> {
        let (database, _) = connect_beside(&settings.path)?;
        backup::copy(settings, &database, to)
    }

    /// Looks whether such a copy is whole.
    pub(super) fn verify(copy: &Path) -> Result<Verified, OpenError> {
        backup::verify(copy)
    }

    fn start(
        settings: &Settings,
        database: Connection,
        spool: Spool,
        numbers: Option<Arc<Numbers>>,
        watch: Arc<Watch>,
        places: upkeep::Places,
        locks: Vec<File>,
    ) -> rusqlite::Result<Self> {
        let (tally, owed, oldest) = (Tally::new(settings), Owed::default(), Arc::<AtomicI64>::default());
        let another = || -> rusqlite::Result<Connection> {
            let database = Connection::open_with_flags(&settings.path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            database.busy_timeout(BUSY)?;
            database.pragma_update(None, "query_only", true)?;
            database.set_prepared_statement_cache_capacity(64);
            Ok(database)
        };
        let (opener, lister) =
            (Reader::start("queue-opener", another()?), Reader::start("queue-lister", another()?));
        let is_owner = numbers.is_some();
        let shared = Shared {
            numbers: numbers.clone().unwrap_or_else(|| Arc::new(Numbers::none())),
            watch: Arc::clone(&watch),
            tally: Arc::clone(&tally),
            oldest: Arc::clone(&oldest),
            owed: Arc::clone(&owed),
            spool: spool.clone(),
        };
        let second = schema::connect(&settings.path)?;
        let keeps = is_owner && !settings.keep_delivered.is_zero();
        let ledger = Ledger::new(database, shared, Disk::new(settings), is_owner, keeps)?;
        let words = Semaphore::new(usize::try_from(WORDED_AT_A_TIME >> 10).unwrap_or(1));
        Ok(Self(Arc::new(Inner {
            writer: Writer::start(ledger, second),
            opener,
            lister,
            spool,
            path: settings.path.clone(),
            numbers,
            own_numbers: OnceLock::new(),
            tally,
            watch,
            owed,
            words,
            oldest,
            held_counts: settings.held_counts,
            keep_delivered: settings.keep_delivered,
            disk: Mutex::new(Disk::new(settings)),
            upkeep: tokio::sync::Mutex::new(places),
            arrived: Arc::default(),
            held: Notify::new(),
            moving: Mutex::default(),
            _locks: locks,
        })))
    }
}

/// A connection beside a service that may be running, and whether one is.
fn connect_beside(path: &Path) -> Result<(Connection, Holder), OpenError> {
    let place = path.to_owned();
    places::look_at_file(path)?;
    // SQLite says of what may not be read that it cannot be opened.
    match std::fs::OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(OpenError::Missing(place)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(OpenError::NotAllowed { path: place, error: "permission denied".to_owned() });
        }
        _ => {}
    }
    let wrong = |error: rusqlite::Error| open_error(path, &error);
    let database = existing(path)?;
    let holder = Holder::of(&lock_path(path));
    match schema::version(&database).map_err(wrong)? {
        schema::VERSION => Ok((database, holder)),
        found if found > schema::VERSION => {
            Err(OpenError::Newer { path: place, found, known: schema::VERSION })
        }
        _ if matches!(holder, Holder::Somebody) => Err(OpenError::BeingOpened(place)),
        0 => Err(OpenError::Empty(place)),
        found => Err(OpenError::Older { path: place, found, known: schema::VERSION }),
    }
}

/// A connection to a file that is there and nobody else's.
fn existing(path: &Path) -> Result<Connection, OpenError> {
    let wrong = |error: rusqlite::Error| open_error(path, &error);
    let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(wrong)?;
    database.busy_timeout(BUSY).map_err(wrong)?;
    match places::is_foreign(&database).map_err(wrong)? {
        true => Err(OpenError::Foreign(path.to_owned())),
        false => Ok(database),
    }
}

/// The file that the service has locked for as long as it runs.
fn lock_path(database: &Path) -> PathBuf {
    beside(database, ".lock")
}

/// A file beside another, with its name and an ending: SQLite's way.
fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// SQLite would make it with the process's mask.
fn private_file(path: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::OpenOptionsExt;
    let made = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    made.map(drop).map_err(|error| OpenError::Directory { path: path.to_owned(), error })
}

/// The database's own name.
fn folder(database: &Connection) -> rusqlite::Result<String> {
    database.query_row("SELECT database FROM meta", [], |row| row.get(0))
}

/// What a new start does first, in one transaction: leases of the process before are over, numbers begin anew, tenants
/// are counted again if somebody else has been at the tables. Also: whether the clock was ahead when the process before
/// looked at it last.
fn recover(database: &Connection, watch: &Watch, greatest: i64) -> rusqlite::Result<(Numbers, bool)> {
    let transaction = database.unchecked_transaction()?;
    transaction.execute("DELETE FROM lease", [])?;
    let numbers = Numbers::begin(&transaction, greatest)?;
    if !schema::is_counted(&transaction)? {
        schema::count(&transaction)?;
    }
    let (newest, distrust): (i64, i64) =
        transaction
            .query_row("SELECT newest, distrust FROM meta", [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let was_ahead = newest > watch.now();
    let accepted: i64 = transaction.query_row(
        "SELECT coalesce((SELECT accepted_at FROM item ORDER BY id DESC LIMIT 1), 0)",
        [],
        |row| row.get(0),
    )?;
    watch.begin(accepted.max(newest), distrust);
    transaction.execute(
        "UPDATE meta SET newest = ?1, distrust = ?2, began = iif(generation = 0 AND began = 0, ?1, began)",
        [watch.now(), watch.distrust()],
    )?;
    transaction.commit()?;
    Ok((numbers, was_ahead))
}

/// Why a database cannot be opened.
fn open_error(path: &Path, error: &rusqlite::Error) -> OpenError {
    let (path, message) = (path.to_owned(), error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::Locked(path),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => OpenError::Damaged { path, message },
        _ => OpenError::Unusable { path, message },
    }
}

/// Why the database did not do it, by what the caller does next.
fn storage_error(error: &rusqlite::Error) -> StorageError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            StorageError::Busy(format!("another program holds the database ({error})"))
        }
        _ => StorageError::Other(error.to_string()),
    }
}

impl From<rusqlite::Error> for StorageError {
    fn from(error: rusqlite::Error) -> Self {
        storage_error(&error)
    }
}

/// A file or a thread fails: it may work later.
fn later(error: io::Error) -> StorageError {
    StorageError::Other(error.to_string())
}

impl Inner {
    fn is_owner(&self) -> Result<&Arc<Numbers>, StorageError> {
        self.numbers
            .as_ref()
            .ok_or_else(|| StorageError::Other("only the service itself may do that".to_owned()))
    }

    async fn put(self: &Arc<Self>, parcel: Parcel) -> Result<Vec<Put>, StorageError> {
        let numbers = self.is_owner()?;
        let tenants: Vec<String> =
            parcel.activities.iter().map(|activity| activity.tenant.id.clone()).collect();
        let room = match self.tally.reserve(tenants.clone()) {
            Ok(room) => room,
            // Perhaps a person made room, and nobody has looked since.
            Err(_) => {
                self.writer.write_unsynced(|_| Ok(())).await?;
                self.tally.reserve(tenants)?
            }
        };
        let covered: Vec<[u8; 32]> = parcel.covered.iter().map(Key::bytes).collect();
        let cuts = serde_json::to_string(&parcel.cuts).map_err(written::damaged)?;
        let text = parcel.verbatim.filter(|_| matches!(parcel.raw, Raw::Memory(_)));
        let (raw, activities) = (parcel.raw, parcel.activities);
        let bytes = activities.iter().map(written::size_of).sum::<u64>()
            + if matches!(raw, Raw::Memory(_)) { raw.len() } else { 0 };
        let permits = u32::try_from(bytes.min(WORDED_AT_A_TIME) >> 10).unwrap_or(u32::MAX);
        let words =
            self.words.acquire_many(permits).await.map_err(|error| StorageError::Other(error.to_string()))?;
        let word = move || -> Result<Vec<NewRow>, StorageError> {
            let row = |activity: Activity| {
                let (key, tenant) = (activity.key.bytes(), activity.tenant.id.clone());
                Ok(NewRow { key, tenant, activity: written::json(activity, text)? })
            };
            activities.into_iter().map(row).collect()
        };
        let rows = if raw.len() <= WORDED_AT_ONCE {
            word()?
        } else {
            tokio::task::spawn_blocking(word).await.map_err(|error| later(error.into()))??
        };
        let text = text.map(|cut| serde_json::to_string(&cut)).transpose().map_err(written::damaged)?;
        let number = numbers.next();
        // File and folder are synced here, before the row that names the file can be committed.
        let (body, mut kept) = match raw {
            Raw::Memory(bytes) => (Some(bytes), None),
            Raw::File { file, .. } => {
                let spool = self.spool.clone();
                let keep = tokio::task::spawn_blocking(move || spool.keep(&file, number));
                (None, Some(keep.await.map_err(|error| later(error.into()))?.map_err(later)?))
            }
        };
        let letter = Letter { number, body, cuts, text };
        let numbers = Arc::clone(numbers);
        let bell = Bell { arrived: Arc::clone(&self.arrived), oldest: None };
        let puts = self
            .writer
            .write(move |ledger| {
                let _ = (&room, &bell); // until it is committed
                ledger.put(&rows, &letter, &covered, &mut kept, &numbers)
            })
            .await??;
        drop(words);
        if puts.contains(&Put::Mended) {
            self.oldest.store(0, Ordering::Relaxed);
        }
        Ok(puts)
    }

    /// Everything of a row; by a lease, if it is that one's still.
    async fn open(&self, item: i64, by: Option<Ticket>) -> Result<Item, StorageError> {
        let (spool, watch) = (self.spool.clone(), Arc::clone(&self.watch));
        let now = self.watch.now();
        let look = move |database: &mut Connection| match by {
            Some(ticket) if !look::is_leased(database, &ticket, now)? => Err(written::no_more_ours()),
            _ => look::stored(database, &spool, item),
        };
        let (stored, raw) = self.opener.look(look).await?;
        if stored.size() <= READ_AT_ONCE {
            return stored.item(raw, &watch);
        }
        tokio::task::spawn_blocking(move || stored.item(raw, &watch))
            .await
            .map_err(|error| later(error.into()))?
    }

    /// Ends leases; what fails is owed.
    async fn finish(&self, ends: Vec<(Ticket, End)>) -> Result<Vec<bool>, StorageError> {
        self.is_owner()?;
        let all: Arc<[(Ticket, End)]> = ends.into();
        let written = Arc::clone(&all);
        let done = self
            .writer
            .write(move |ledger| {
                let mut unused = Vec::new();
                let ours: rusqlite::Result<Vec<bool>> =
                    written.iter().map(|(ticket, end)| ledger.finish(ticket, end, &mut unused)).collect();
                Ok((ours?, unused))
            })
            .await;
        {
            let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
            for (ticket, end) in all.iter() {
                match &done {
                    Ok(_) => drop(owed.remove(&ticket.item)),
                    Err(_) => drop(owed.insert(ticket.item, (ticket.clone(), end.clone()))),
                }
            }
        }
        let (ours, unused) = done?;
        self.remove_files(unused).await;
        if all.iter().any(|(_, end)| matches!(end, End::Held { .. })) {
            self.held.notify_one();
        }
        if all.iter().any(|(_, end)| matches!(end, End::Again { .. } | End::Unused)) {
            self.arrived.notify_one();
        }
        Ok(ours)
    }

    /// Writes ends that could not be written, each for itself if need be: one of them may never be.
    async fn pay(&self) {
        let owed: Vec<_> =
            self.owed.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        if owed.is_empty() || !matches!(self.finish(owed.clone()).await, Err(StorageError::Other(_))) {
            return;
        }
        for one in owed {
            if matches!(self.finish(vec![one]).await, Err(StorageError::Busy(_))) {
                return; // all others would wait as long
            }
        }
    }

    async fn remove_files(&self, numbers: Vec<i64>) {
        if !numbers.is_empty() {
            let spool = self.spool.clone();
            let remove = move || numbers.iter().for_each(|number| spool.remove(*number));
            let _ = tokio::task::spawn_blocking(remove).await;
        }
    }

    /// Whether the disk has no room for what is kept after its delivery.
    fn is_short(&self) -> bool {
        !self.disk.lock().unwrap_or_else(PoisonError::into_inner).is_spare(self.watch.running())
    }

    /// Makes room on a disk that becomes full. What fails is tried again by the next who comes.
    async fn shed(&self) {
        if self.keep_delivered.is_zero() {
            return;
        }
        match kept::shed(self).await {
            Ok(0) => {}
            Ok(gone) => events::kept_gone(gone),
            Err(error) => events::queue_trouble(&error),
        }
    }

    async fn redeliver(&self, replay: Replay) -> Result<Replayed, StorageError> {
        // What is delivered once more while we look is kept anew, behind this time.
        let now = self.watch.now();
        let until = replay.until.map_or(now, |until| watch::millis(until).min(now));
        let (mut all, mut place) = (Replayed::default(), (i64::MIN, i64::MIN));
        loop {
            let asked = replay.clone();
            let page = self.lister.look(move |database| kept::page(database, &asked, until, place)).await?;
            let Some(last) = page.last() else { return Ok(all) };
            place = *last;
            let mut rest = page.as_slice();
            let mut slice = Slice::of(CHANGED_AT_ONCE);
            while !rest.is_empty() {
                let some = slice.next(&mut rest).to_vec();
                if replay.dry {
                    all.again += some.len();
                    continue;
                }
                let bell =
                    Bell { arrived: Arc::clone(&self.arrived), oldest: Some(Arc::clone(&self.oldest)) };
                let write = move |ledger: &mut Ledger| {
                    let _ = &bell; // until it is committed
                    ledger.redeliver(&some)
                };
                let (done, took) = self.writer.write_timed(write).await?;
                let (Replayed { again, known, left }, those) = done?;
                for (key, tenant) in &those {
                    events::by_hand("redelivered", key.as_str(), tenant, None);
                }
                (all.again, all.known, all.left) = (all.again + again, all.known + known, all.left + left);
                slice.done(took).await;
            }
        }
    }

    async fn change(&self, items: Vec<i64>, change: Change) -> Result<Vec<i64>, StorageError> {
        let (mut changed, mut rest) = (Vec::new(), items.as_slice());
        let mut slice = Slice::of(CHANGED_AT_ONCE);
        let is_beside = self.numbers.is_none();
        while !rest.is_empty() {
            let (some, change) = (slice.next(&mut rest).to_vec(), change.clone());
            let bell = Bell { arrived: Arc::clone(&self.arrived), oldest: Some(Arc::clone(&self.oldest)) };
            let write = move |ledger: &mut Ledger| {
                let _ = &bell; // until it is committed
                let mut unused = Vec::new();
                if is_beside {
                    ledger.note_leap_of_others()?;
                }
                Ok((ledger.change(&some, &change, &mut unused)?, unused))
            };
            let ((those, unused), took) = self.writer.write_timed(write).await?;
            changed.extend(those);
            self.remove_files(unused).await;
            if !rest.is_empty() {
                slice.done(took).await;
            }
        }
        Ok(changed)
    }
}

/// Whether there is any activity that is to be delivered. Blocks.
fn has_some(path: &Path) -> Result<bool, StorageError> {
    let database = existing(path).map_err(|error| StorageError::Other(error.to_string()))?;
    Ok(database.query_row("SELECT EXISTS (SELECT 1 FROM item)", [], |row| row.get(0))?)
}

/// Rings when it is dropped: a piece of work that holds it has been committed then, whether or not anybody has waited for
/// it. Who sends the same e-mail again learns that it is known, and would wake nobody.
struct Bell {
    arrived: Arc<Notify>,
    /// Rows before may wait again.
    oldest: Option<Arc<AtomicI64>>,
}

impl Drop for Bell {
    fn drop(&mut self) {
        if let Some(oldest) = &self.oldest {
            oldest.store(0, Ordering::Relaxed);
        }
        self.arrived.notify_one();
    }
}

#[async_trait]
impl Queue for SqliteQueue {
    async fn put(&self, parcel: Parcel) -> Result<Vec<Put>, StorageError> {
        if matches!(parcel.raw, Raw::Memory(_)) {
            return self.0.put(parcel).await;
        }
        // A message with a file goes on in a task of its own: who stops waiting leaves no file half named.
        let inner = Arc::clone(&self.0);
        let stored = tokio::spawn(async move { inner.put(parcel).await });
        stored.await.map_err(|error| later(error.into()))?
    }

    async fn known(&self, keys: Vec<Key>) -> Result<Vec<bool>, StorageError> {
        self.0.opener.look(move |database| look::known(database, &keys)).await
    }

    async fn lease(&self, ask: Ask) -> Result<Leased, StorageError> {
        self.0.is_owner()?;
        self.0.pay().await;
        self.0.shed().await;
        self.0.writer.write_unsynced(move |ledger| ledger.lease(&ask)).await
    }

    async fn open(&self, item: i64) -> Result<Item, StorageError> {
        self.0.open(item, None).await
    }

    async fn begin(&self, ticket: &Ticket) -> Result<Item, StorageError> {
        self.0.open(ticket.item, Some(ticket.clone())).await
    }

    async fn note(&self, ticket: &Ticket, note: String) -> Result<bool, StorageError> {
        let ticket = ticket.clone();
        self.0.writer.write(move |ledger| ledger.note(&ticket, &note)).await
    }

    async fn finish(&self, ends: Vec<(Ticket, End)>) -> Result<Vec<bool>, StorageError> {
        self.0.finish(ends).await
    }

    async fn upkeep(&self, max_age: Duration) -> Result<Upkeep, StorageError> {
        self.0.is_owner()?;
        self.0.pay().await;
        let mut places = self.0.upkeep.lock().await;
        upkeep::run(&self.0, &mut places, max_age).await
    }

    async fn untold(&self, after: Option<i64>, limit: usize) -> Result<Vec<Untold>, StorageError> {
        self.0.lister.look(move |database| look::untold(database, after, limit)).await
    }

    async fn told(&self, items: Vec<i64>) -> Result<(), StorageError> {
        self.0
            .writer
            .write(move |ledger| {
                let mut told =
                    ledger.database().prepare_cached("UPDATE item SET notified = 1 WHERE id = ?1")?;
                items.iter().try_for_each(|item| told.execute([item]).map(drop))
            })
            .await
    }

    async fn counts(&self) -> Result<Counts, StorageError> {
        let all = self.0.tally.all();
        let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
        let place = Arc::clone(&self.0.oldest);
        let oldest = self.0.lister.look(move |database| look::oldest(database, &place)).await?;
        Ok(Counts { waiting: unsigned(all.waiting), held: unsigned(all.held + all.aged), oldest })
    }

    async fn by_tenant(&self) -> Result<Vec<TenantCounts>, StorageError> {
        Ok(self.0.tally.by_tenant())
    }

    async fn overview(&self, most: usize, rows: usize) -> Result<Overview, StorageError> {
        let place = Arc::clone(&self.0.oldest);
        self.0.lister.look(move |database| look::overview(database, &place, most, rows)).await
    }

    async fn list(&self, filter: Filter) -> Result<Vec<Entry>, StorageError> {
        self.0
            .lister
            .look(move |database| match filter.state {
                Some(State::Delivered) => look::delivered(database, &filter),
                _ => look::list(database, &filter),
            })
            .await
    }

    async fn change_those(&self, items: Vec<i64>, change: Change) -> Result<Vec<i64>, StorageError> {
        // In a task of its own: who stops waiting leaves no file of what is gone.
        let inner = Arc::clone(&self.0);
        let changed = tokio::spawn(async move { inner.change(items, change).await });
        changed.await.map_err(|error| later(error.into()))?
    }

    async fn redeliver(&self, replay: Replay) -> Result<Replayed, StorageError> {
        self.0.redeliver(replay).await
    }

    async fn kept(&self) -> Result<Kept, StorageError> {
        self.0.lister.look(|database| kept::look(database)).await
    }

    async fn expire(&self, prefixes: Vec<String>) -> Result<(), StorageError> {
        let watch = Arc::clone(&self.0.watch);
        self.0.writer.write(move |ledger| expired::say(ledger.database(), &prefixes, watch.now())).await
    }

    async fn expired(&self, after: Option<i64>) -> Result<Expired, StorageError> {
        self.0.lister.look(move |database| expired::look(database, after)).await
    }

    async fn bytes(&self) -> Result<u64, StorageError> {
        let spool = self.0.spool.clone();
        let files = tokio::task::spawn_blocking(move || spool.bytes()).await;
        let files = files.map_err(|error| later(error.into()))?.map_err(later)?;
        Ok(self.0.lister.look(|database| look::bytes(database)).await? + files)
    }

    async fn check(&self) -> Result<(), StorageError> {
        self.0
            .writer
            .write(|ledger| {
                ledger.note_time()?;
                Ok(ledger.room())
            })
            .await?
    }

    async fn identity(&self) -> Result<Identity, StorageError> {
        let path = self.0.path.clone();
        self.0.lister.look(move |database| moving::identity(database, &path)).await
    }

    async fn to_move(&self, delivered: bool, after: i64) -> Result<Page, StorageError> {
        moving::leave(&self.0)?;
        let spool = self.0.spool.clone();
        self.0.lister.look(move |database| moving::page(database, &spool, delivered, after)).await
    }

    async fn take_in(&self, transfers: Vec<Transfer>) -> Result<Vec<Put>, StorageError> {
        // In a task of its own: who stops waiting leaves no file half named.
        let inner = Arc::clone(&self.0);
        let taken = tokio::spawn(async move { moving::take_in(&inner, transfers).await });
        taken.await.map_err(|error| later(error.into()))?
    }

    async fn let_go(&self, places: Vec<Place>) -> Result<usize, StorageError> {
        // In a task of its own: who stops waiting leaves no file of what is gone.
        let inner = Arc::clone(&self.0);
        let gone = tokio::spawn(async move { moving::let_go(&inner, places).await });
        gone.await.map_err(|error| later(error.into()))?
    }

    async fn rest(&self, how: Rest) {
        moving::rest(&self.0, how);
    }

    async fn memory(&self, after: Option<Key>, limit: usize) -> Result<Vec<Key>, StorageError> {
        moving::leave(&self.0)?;
        let after = after.map(|key| key.bytes());
        self.0.lister.look(move |database| moving::memory(database, after, limit)).await
    }

    async fn remember(&self, keys: Vec<Key>) -> Result<(), StorageError> {
        moving::remember(&self.0, keys).await
    }

    async fn forget(&self, keys: Vec<Key>) -> Result<(), StorageError> {
        moving::forget(&self.0, keys).await
    }

    async fn arrival(&self) {
        loop {
            match tokio::time::timeout(LOOK_EVERY, self.0.arrived.notified()).await {
                Ok(()) => return,
                Err(_) => {
                    self.0.pay().await;
                    self.0.shed().await;
                    // A transaction of nothing notices what others have changed.
                    let looked = self.0.writer.write_unsynced(|ledger| Ok(ledger.noticed())).await;
                    if looked.unwrap_or(false) {
                        return;
                    }
                }
            }
        }
    }

    async fn newly_held(&self) {
        self.0.held.notified().await;
    }
}
