//! Keeps accepted activities until the backend has them.
//!
//! In: a [`Parcel`]: the activities of one message and its bytes. Out: leases, by the time they are due.
//! Promise: when [`Queue::put`] returns, a power cut loses nothing (row committed; spool file and directory synced
//! before). The same key within seven days after delivery is stored once.
//! Fails: a full queue or disk is the caller's 452; a damaged or newer file stops the start and says what to do.
//!
//! Why one writer: a sync for each message would cost the disk its throughput, so waiting writes share one commit
//! (`writer`). Why spool files: a body of megabytes in the database is written twice, to the log and to the file.

mod ledger;
mod row;
mod schema;
mod spool;
mod turns;
mod writer;

use crate::activity::{Activity, Cut, Key, Parcel, Raw};
pub use ledger::{Entry, Filter, Item, Ledger, LedgerError, State, TenantCounts};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};
use spool::Spool;
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::sync::Notify;
use turns::DueRow;
use writer::Writer;

/// How long a key is remembered after its activity was delivered or dropped: longer than any client retries.
pub const KEY_MEMORY: Duration = Duration::from_secs(7 * 24 * 3600);

/// Steps in which free pages are given back at once, of 4 MiB each: after an outage the file shrinks within minutes.
const VACUUM_STEPS: u32 = 256;

/// No version that SQLite gives.
const NEVER: i64 = -1;

/// Settings of the queue.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The database file.
    pub path: PathBuf,
    /// Directory for large messages, also while they arrive. On the same disk as `path`, or at least as safe.
    pub spool: PathBuf,
    /// Most activities kept.
    pub max_items: u64,
}

/// What became of one activity that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is stored.
    New,
    /// Its key was stored before; nothing was done.
    Known,
}

/// Why nothing was stored.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The queue holds as many activities as it may.
    #[error("queue is full ({0} items): raise queue.max_items, or see why the backend takes nothing")]
    Full(u64),
    /// The disk failed; nothing of the message is left behind.
    #[error("queue cannot be written: {0}")]
    Write(#[from] StorageError),
}

/// The database or the spool failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct StorageError(String);

impl From<rusqlite::Error> for StorageError {
    fn from(error: rusqlite::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<io::Error> for StorageError {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// Why the queue cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("queue {0} is in use by another activity-milter: stop that one, or set another queue.path")]
    InUse(PathBuf),
    /// Written by a newer version.
    #[error(
        "queue {path} has schema {found}, and this version knows {known}: install the newer activity-milter again"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: i64,
        /// What we can read.
        known: i64,
    },
    /// No database, or a damaged one.
    #[error(
        "queue {path} cannot be opened: {message}. If the file is damaged, move it away together with its -wal file and restore a copy"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// SQLite's words.
        message: String,
    },
    /// A directory cannot be made or written.
    #[error(
        "{path}: {error}: queue.path and queue.spool must be writable for the user activity-milter runs as"
    )]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// One activity, held by a courier until it is finished or the lease ends.
#[derive(Debug)]
pub struct Lease {
    /// The row.
    pub id: i64,
    /// Whose turn it was.
    pub tenant: String,
    /// The activity.
    pub activity: Activity,
    /// The activity's JSON as it was accepted, to be sent unchanged.
    pub json: Bytes,
    /// Where its files lie.
    pub cuts: Vec<Cut>,
    /// The message.
    pub raw: Raw,
    /// Attempts made before this one.
    pub attempts: u32,
    /// When it was accepted.
    pub accepted_at: SystemTime,
}

/// Whose turn it is when more is due than may be taken.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    /// The tenant whose turn was last: the others come first, in the order of their ids.
    pub after: String,
    /// A tenant that has enough for now.
    pub without: Option<String>,
}

/// An item that could not be leased because it is damaged; it was held instead.
#[derive(Debug)]
pub struct Damaged {
    /// Its key.
    pub key: Key,
    /// What is wrong.
    pub message: String,
}

/// How a lease ends.
#[derive(Clone, Debug)]
pub enum Finish {
    /// The backend has it: the row goes, the key stays for [`KEY_MEMORY`].
    Taken,
    /// Try again at that time. `counts` is false if the attempt says nothing about this activity.
    Again {
        /// When.
        due: SystemTime,
        /// Whether the attempt is counted.
        counts: bool,
        /// Why, for people.
        reason: String,
    },
    /// A person must look at it.
    Held {
        /// Why.
        reason: String,
    },
}

/// A held activity of which nobody was told yet.
#[derive(Clone, Debug)]
pub struct Untold {
    /// The row.
    pub id: i64,
    /// The activity's JSON, perhaps without its text.
    pub activity: String,
    /// Why it is held.
    pub reason: String,
}

/// How many activities there are, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Waiting for their first or next attempt, or being attempted.
    pub waiting: u64,
    /// Held for a person.
    pub held: u64,
    /// When the oldest waiting one was accepted.
    pub oldest: Option<SystemTime>,
}

/// The queue: one SQLite file, one spool directory, one process.
#[derive(Debug)]
pub struct Queue {
    writer: Writer,
    spool: Spool,
    items: AtomicU64,
    max_items: u64,
    /// SQLite's number for the changes of others.
    version: AtomicI64,
    arrived: Arc<Notify>,
    held: Arc<Notify>,
    /// Held for as long as the queue is open; the kernel gives it back however we end.
    _lock: fs::File,
}

impl Queue {
    /// Opens or makes the queue, gives back the leases of a crashed process and removes orphaned spool files.
    /// # Errors
    /// [`OpenError`].
    pub fn open(settings: &Settings, now: SystemTime) -> Result<Self, OpenError> {
        let parent = settings.path.parent().unwrap_or(Path::new("."));
        for directory in [parent, &settings.spool] {
            make_directory(directory)?;
        }
        let lock = lock(&settings.path)?;
        let damaged = |error: rusqlite::Error| OpenError::Damaged {
            path: settings.path.clone(),
            message: error.to_string(),
        };
        let mut database = Connection::open(&settings.path).map_err(damaged)?;
        schema::prepare(&mut database, &settings.path)?;
        database
            .execute("UPDATE item SET leased = 0, due = min(due, ?1) WHERE leased = 1", [millis(now)])
            .map_err(damaged)?;
        let second = Connection::open(&settings.path).map_err(damaged)?;
        let items: i64 =
            database.query_row("SELECT count(*) FROM item", [], |row| row.get(0)).map_err(damaged)?;
        let version: i64 =
            database.query_row("PRAGMA data_version", [], |row| row.get(0)).map_err(damaged)?;
        let spool = Spool::new(&settings.spool);
        let known =
            |name: &str| database.prepare_cached("SELECT 1 FROM message WHERE spool = ?1")?.exists([name]);
        spool.remove_orphans(|name| known(name).map_err(StorageError::from)).map_err(|error| {
            OpenError::Damaged { path: settings.path.clone(), message: error.to_string() }
        })?;
        Ok(Self {
            writer: Writer::start(database, second),
            spool,
            items: AtomicU64::new(items.unsigned_abs()),
            max_items: settings.max_items,
            version: AtomicI64::new(version),
            arrived: Arc::default(),
            held: Arc::default(),
            _lock: lock,
        })
    }

    /// Stores the activities of a message, all or none; returns once they are on disk, so that the caller may answer
    /// 250 (RFC 5321, section 4.2.5). The answer has one entry for each activity, in order.
    ///
    /// The same key is no error: the first stays and [`Put::Known`] comes back. A key that an earlier message covers
    /// ([`Parcel::covered`]) is known too.
    ///
    /// Who stops waiting leaves nothing half stored. A message with a file goes on in a task of its own: key without
    /// file would lose it when the client sends it again.
    /// # Errors
    /// [`PutError`]; nothing of the message is left behind.
    pub async fn put(self: &Arc<Self>, parcel: Parcel, now: SystemTime) -> Result<Vec<Put>, PutError> {
        if matches!(parcel.raw, Raw::Memory(_)) {
            return self.put_now(parcel, now).await;
        }
        let queue = Arc::clone(self);
        let stored = tokio::spawn(async move { queue.put_now(parcel, now).await });
        stored.await.map_err(|error| StorageError(error.to_string()))?
    }

    async fn put_now(&self, parcel: Parcel, now: SystemTime) -> Result<Vec<Put>, PutError> {
        let mut room = Room::take(self, parcel.activities.len() as u64)?;
        let stored = self.store(parcel, now).await;
        let new =
            stored.as_ref().map_or(0, |puts| puts.iter().filter(|&&put| put == Put::New).count() as u64);
        room.used = Some(new);
        if new > 0 {
            self.arrived.notify_one();
        }
        Ok(stored?)
    }

    async fn store(&self, parcel: Parcel, now: SystemTime) -> Result<Vec<Put>, StorageError> {
        let text = parcel.verbatim.filter(|_| matches!(parcel.raw, Raw::Memory(_)));
        let (activities, small) = (parcel.activities, parcel.raw.len() <= WORDED_AT_ONCE);
        let word = move || -> Result<Vec<(String, String, String)>, StorageError> {
            let row = |activity: Activity| {
                let (key, tenant) = (activity.key.to_string(), activity.tenant.id.clone());
                Ok((key, tenant, row::json(activity, text)?))
            };
            activities.into_iter().map(row).collect()
        };
        let rows = if small {
            word()?
        } else {
            tokio::task::spawn_blocking(word).await.map_err(io::Error::other)??
        };
        let cuts = serde_json::to_string(&parcel.cuts).map_err(row::damaged)?;
        let text = text.map(|cut| serde_json::to_string(&cut)).transpose().map_err(row::damaged)?;
        // File and directory are synced here, before the row that names the file can be committed.
        let (body, kept) = match &parcel.raw {
            Raw::Memory(bytes) => (Some(bytes.clone()), None),
            Raw::File { file, .. } => (None, Some(self.spool.keep(Arc::clone(file)).await?)),
        };
        let spool_name = kept.as_ref().map(|kept| kept.name().to_owned());
        let covered: Vec<String> = parcel.covered.iter().map(Key::to_string).collect();
        let (now, forget_at) = (millis(now), millis(now + KEY_MEMORY));
        let puts = self
            .writer
            .write(move |database| {
                let message = Message {
                    body: body.as_deref(),
                    spool: spool_name.as_deref(),
                    cuts: &cuts,
                    text: text.as_deref(),
                };
                let puts = insert(database, &rows, &message, now)?;
                cover(database, &covered, forget_at)?;
                Ok(puts)
            })
            .await?;
        if let Some(kept) = kept
            && puts.contains(&Put::New)
        {
            kept.stay();
        }
        Ok(puts)
    }

    /// Whether each of these keys was recorded or covered, in their order.
    /// # Errors
    /// [`StorageError`].
    pub async fn known(&self, keys: Vec<String>) -> Result<Vec<bool>, StorageError> {
        self.writer
            .write(move |database| {
                let mut known = database.prepare_cached("SELECT 1 FROM seen WHERE key = ?1")?;
                keys.iter().map(|key| known.exists([key])).collect()
            })
            .await
    }

    /// Leases up to `limit` activities that are due, one of each tenant by turns. Until `lease` is over nobody else
    /// gets them; after it, or after a restart, they are due again.
    /// # Errors
    /// [`StorageError`]; nothing is leased then.
    pub async fn take(
        &self,
        limit: usize,
        turn: Turn,
        now: SystemTime,
        lease: Duration,
    ) -> Result<(Vec<Lease>, Vec<Damaged>), StorageError> {
        let (due, until) = (millis(now), millis(now + lease));
        let rows = self.writer.write(move |database| turns::take(database, limit, &turn, due, until)).await?;
        let (mut leases, mut damaged) = (Vec::new(), Vec::new());
        for row in rows {
            let (id, key) = (row.id, Key::from_stored(row.key.clone()));
            match self.lease(row) {
                Ok(lease) => leases.push(lease),
                Err(StorageError(message)) => {
                    self.finish(id, Finish::Held { reason: message.clone() }, now).await?;
                    damaged.push(Damaged { key, message });
                }
            }
        }
        Ok((leases, damaged))
    }

    fn lease(&self, row: DueRow) -> Result<Lease, StorageError> {
        let raw = self.spool.message(row.body, row.spool)?;
        let (activity, json) = row::whole(row.activity, row.text.as_deref(), &raw)?;
        Ok(Lease {
            id: row.id,
            tenant: row.tenant,
            activity,
            json: json.into(),
            cuts: serde_json::from_str(&row.cuts).map_err(row::damaged)?,
            raw,
            attempts: row.attempts,
            accepted_at: SystemTime::UNIX_EPOCH + Duration::from_millis(row.accepted_at.unsigned_abs()),
        })
    }

    /// Ends a lease.
    /// # Errors
    /// [`StorageError`]; the lease then ends by itself, and the activity is attempted again with the same key.
    pub async fn finish(&self, id: i64, finish: Finish, now: SystemTime) -> Result<(), StorageError> {
        let now = millis(now);
        let (taken, held) = (matches!(finish, Finish::Taken), matches!(finish, Finish::Held { .. }));
        let unused = self.writer.write(move |database| end_lease(database, id, &finish, now)).await?;
        if taken {
            self.items.fetch_sub(1, Ordering::Relaxed);
        }
        if held {
            self.held.notify_one();
        }
        if let Some(name) = unused {
            self.spool.remove(&name);
        }
        Ok(())
    }

    /// Gives leases back that were not used: they are due at once.
    /// # Errors
    /// [`StorageError`]; the leases then end by themselves.
    pub async fn release(&self, ids: Vec<i64>, now: SystemTime) -> Result<(), StorageError> {
        let now = millis(now);
        self.writer
            .write(move |database| {
                let mut release = database
                    .prepare_cached("UPDATE item SET leased = 0, due = ?2 WHERE id = ?1 AND leased = 1")?;
                ids.iter().try_for_each(|id| release.execute(params![id, now]).map(drop))
            })
            .await
    }

    /// When the next activity is due; none if nothing waits.
    /// # Errors
    /// [`StorageError`].
    pub async fn next_due(&self) -> Result<Option<SystemTime>, StorageError> {
        let due: Option<i64> = self
            .writer
            .write(|database| {
                database
                    .prepare_cached("SELECT due FROM item WHERE state = 0 ORDER BY due LIMIT 1")?
                    .query_row([], |row| row.get(0))
                    .optional()
            })
            .await?;
        Ok(due.map(|due| SystemTime::UNIX_EPOCH + Duration::from_millis(due.unsigned_abs())))
    }

    /// Waits until something was put.
    pub async fn arrival(&self) {
        self.arrived.notified().await;
    }

    /// Forgets keys whose time is over and gives free pages back to the file system, a bounded amount of each.
    /// # Errors
    /// [`StorageError`].
    pub async fn tidy(&self, now: SystemTime) -> Result<(), StorageError> {
        let now = millis(now);
        self.writer
            .write(move |database| {
                database.execute(
                    "DELETE FROM seen WHERE key IN (SELECT key FROM seen WHERE forget_at < ?1 LIMIT 10000)",
                    [now],
                )
            })
            .await?;
        // A little at a time, so that a message that is to be stored never waits long.
        for _ in 0..VACUUM_STEPS {
            if self.writer.vacuum().await? == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Holds the activities that were accepted before `oldest` and that nobody has leased, a bounded number at a time;
    /// their keys and tenants.
    /// # Errors
    /// [`StorageError`].
    pub async fn hold_older(
        &self,
        oldest: SystemTime,
        reason: &str,
    ) -> Result<Vec<(Key, String)>, StorageError> {
        let (oldest, reason) = (millis(oldest), reason.to_owned());
        let held = self.writer.write(move |database| turns::hold_older(database, oldest, &reason)).await?;
        if !held.is_empty() {
            self.held.notify_one();
        }
        Ok(held)
    }

    /// Waits until something was held.
    pub async fn held(&self) {
        self.held.notified().await;
    }

    /// Held activities of which nobody was told yet, oldest first.
    /// # Errors
    /// [`StorageError`].
    pub async fn untold(&self, limit: usize) -> Result<Vec<Untold>, StorageError> {
        self.writer
            .write(move |database| {
                database
                    .prepare_cached(
                        "SELECT id, activity, reason FROM item WHERE state = 1 AND notified = 0 ORDER BY id LIMIT ?1",
                    )?
                    .query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
                        let reason: Option<String> = row.get(2)?;
                        Ok(Untold { id: row.get(0)?, activity: row.get(1)?, reason: reason.unwrap_or_default() })
                    })?
                    .collect()
            })
            .await
    }

    /// Somebody was told of these, and is not told again.
    /// # Errors
    /// [`StorageError`].
    pub async fn told(&self, ids: Vec<i64>) -> Result<(), StorageError> {
        self.writer
            .write(move |database| {
                let mut told = database.prepare_cached("UPDATE item SET notified = 1 WHERE id = ?1")?;
                ids.iter().try_for_each(|id| told.execute([id]).map(drop))
            })
            .await
    }

    /// How many activities there are, and since when the oldest waits; quick, however many there are.
    /// # Errors
    /// [`StorageError`].
    pub async fn counts(&self) -> Result<Counts, StorageError> {
        let (held, oldest): (i64, Option<i64>) = self
            .writer
            .write(|database| {
                let held = database
                    .prepare_cached("SELECT count(*) FROM item INDEXED BY item_held WHERE state = 1")?
                    .query_row([], |row| row.get(0))?;
                let oldest = database
                    .prepare_cached(
                        "SELECT accepted_at FROM item NOT INDEXED WHERE state = 0 ORDER BY id LIMIT 1",
                    )?
                    .query_row([], |row| row.get(0))
                    .optional()?;
                Ok((held, oldest))
            })
            .await?;
        let held = held.unsigned_abs();
        let waiting = self.items.load(Ordering::Relaxed).saturating_sub(held);
        let oldest =
            oldest.map(|millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis.unsigned_abs()));
        Ok(Counts { waiting, held, oldest })
    }

    /// Writes to the disk for nothing, to see that it can be done.
    /// # Errors
    /// [`StorageError`].
    pub async fn try_write(&self) -> Result<(), StorageError> {
        self.writer.write(|database| database.pragma_update(None, "user_version", schema::VERSION)).await
    }

    /// True if somebody else has changed the database since the last call: a person, with `queue` commands.
    /// # Errors
    /// [`StorageError`].
    pub async fn changed(&self) -> Result<bool, StorageError> {
        let version: i64 = self
            .writer
            .write(|database| database.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0)))
            .await?;
        if self.version.swap(version, Ordering::Relaxed) == version {
            return Ok(false);
        }
        let items: i64 = self
            .writer
            .write(|database| database.query_row("SELECT count(*) FROM item", [], |row| row.get(0)))
            .await?;
        self.items.store(items.unsigned_abs(), Ordering::Relaxed);
        Ok(true)
    }
}

/// Largest message, in bytes, whose activities become JSON where they are; others hold a thread that may block.
const WORDED_AT_ONCE: u64 = 64 * 1024;

/// Room for activities, taken before they are stored; what was not used is given back.
struct Room<'a> {
    queue: &'a Queue,
    taken: u64,
    /// None until it is known.
    used: Option<u64>,
}

impl<'a> Room<'a> {
    fn take(queue: &'a Queue, wanted: u64) -> Result<Self, PutError> {
        let fits = |items: u64| items.checked_add(wanted).filter(|&sum| sum <= queue.max_items);
        match queue.items.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(Self { queue, taken: wanted, used: None }),
            Err(_) => Err(PutError::Full(queue.max_items)),
        }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        match self.used {
            Some(used) => drop(self.queue.items.fetch_sub(self.taken - used, Ordering::Relaxed)),
            // Nobody waited for the writer's answer: [`Queue::changed`] counts anew.
            None => self.queue.version.store(NEVER, Ordering::Relaxed),
        }
    }
}

/// Remembers keys under which nothing is to be recorded any more. Postfix keeps a copy that waits for five days at
/// most (`maximal_queue_lifetime`), which is less than our memory.
fn cover(database: &Connection, keys: &[String], forget_at: i64) -> rusqlite::Result<()> {
    let mut seen = database
        .prepare_cached("INSERT INTO seen (key, forget_at) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?;
    keys.iter().try_for_each(|key| seen.execute(params![key, forget_at]).map(drop))
}

/// A row of `message`.
struct Message<'a> {
    body: Option<&'a [u8]>,
    spool: Option<&'a str>,
    cuts: &'a str,
    text: Option<&'a str>,
}

fn insert(
    database: &Connection,
    rows: &[(String, String, String)],
    message: &Message<'_>,
    now: i64,
) -> rusqlite::Result<Vec<Put>> {
    let mut known = database.prepare_cached("SELECT 1 FROM seen WHERE key = ?1")?;
    let puts = rows
        .iter()
        .map(|(key, ..)| Ok(if known.exists([key])? { Put::Known } else { Put::New }))
        .collect::<rusqlite::Result<Vec<Put>>>()?;
    if !puts.contains(&Put::New) {
        return Ok(puts);
    }
    let items = puts.iter().filter(|&&put| put == Put::New).map(|_| 1_u32).sum::<u32>();
    let Message { body, spool, cuts, text } = message;
    database
        .prepare_cached("INSERT INTO message (body, spool, cuts, text, items) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![body, spool, cuts, text, (items > 1).then_some(items)])?;
    let message = database.last_insert_rowid();
    let mut seen = database.prepare_cached("INSERT INTO seen (key, item) VALUES (?1, ?2)")?;
    let mut item = database.prepare_cached(
        "INSERT INTO item (key, message, tenant, activity, due, accepted_at) VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
    )?;
    for ((key, tenant, activity), _) in rows.iter().zip(&puts).filter(|(_, put)| **put == Put::New) {
        item.execute(params![key, message, tenant, activity, now])?;
        seen.execute(params![key, database.last_insert_rowid()])?;
    }
    Ok(puts)
}

/// Ends a lease; gives the name of a spool file that nothing needs any more.
fn end_lease(database: &Connection, id: i64, finish: &Finish, now: i64) -> rusqlite::Result<Option<String>> {
    match finish {
        Finish::Taken => {
            let forget_at = now + i64::try_from(KEY_MEMORY.as_millis()).unwrap_or(i64::MAX / 2);
            remove(database, id, forget_at)
        }
        Finish::Again { due, counts, reason } => {
            database
                .prepare_cached(
                    "UPDATE item SET leased = 0, due = ?2, attempts = attempts + ?3, reason = ?4 WHERE id = ?1",
                )?
                .execute(params![id, millis(*due), counts, reason])?;
            Ok(None)
        }
        Finish::Held { reason } => {
            database
                .prepare_cached(
                    "UPDATE item SET leased = 0, state = 1, attempts = attempts + 1, reason = ?2 WHERE id = ?1",
                )?
                .execute(params![id, reason])?;
            Ok(None)
        }
    }
}

/// Removes an item, and its message if no other item needs it; gives the name of a spool file that nothing needs.
fn remove(database: &Connection, id: i64, forget_at: i64) -> rusqlite::Result<Option<String>> {
    let gone = database
        .prepare_cached("DELETE FROM item WHERE id = ?1 RETURNING key, message")?
        .query_row([id], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))
        .optional()?;
    let Some((key, message)) = gone else { return Ok(None) };
    database
        .prepare_cached("UPDATE seen SET forget_at = ?2, item = NULL WHERE key = ?1")?
        .execute(params![key, forget_at])?;
    let others = database
        .prepare_cached("UPDATE message SET items = items - 1 WHERE id = ?1 AND items > 1")?
        .execute([message])?;
    if others > 0 {
        return Ok(None);
    }
    let spool: Option<Option<String>> = database
        .prepare_cached("DELETE FROM message WHERE id = ?1 RETURNING spool")?
        .query_row([message], |row| row.get(0))
        .optional()?;
    Ok(spool.flatten())
}

/// Milliseconds since 1970, the unit of every time in the database.
fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Makes a directory for mail, which is private: only our user reads it.
/// # Errors
/// [`OpenError::Directory`].
pub fn make_directory(path: &Path) -> Result<(), OpenError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| OpenError::Directory { path: path.to_owned(), error })
}

/// One process a queue. The lock is on a file of its own, because SQLite uses locks on the database file.
fn lock(path: &Path) -> Result<fs::File, OpenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let directory = |error| OpenError::Directory { path: PathBuf::from(&name), error };
    let open = |path: &Path| fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    let lock = open(Path::new(&name)).map_err(directory)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(OpenError::InUse(path.to_owned())),
        Err(fs::TryLockError::Error(error)) => return Err(directory(error)),
    }
    // SQLite makes its files with the mode of the database file, so that one is made here.
    open(path).map_err(directory)?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::{Owner, Parties, ProjectRef, TenantRef};
    use crate::mail::{Budget, Envelope, Head, Intake, LIMITS, MEMORY_PER_MESSAGE, Reader, Spill};

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;
    const LEASE: Duration = Duration::from_secs(60);

    fn settings(directory: &Path) -> Settings {
        Settings { path: directory.join("db/queue.db"), spool: directory.join("spool"), max_items: 10 }
    }

    fn open(directory: &Path) -> Arc<Queue> {
        Arc::new(Queue::open(&settings(directory), NOW).unwrap())
    }

    const ENVELOPE: Envelope = Envelope {
        sender: None,
        recipients: Vec::new(),
        queue_id: None,
        client: None,
        login: None,
        intake: Intake::Milter,
    };

    /// A message for tenants, each by name or as `name/project`.
    async fn parcel(directory: &Path, id: u32, body_bytes: usize, targets: &[&str]) -> Parcel {
        let head = format!("Subject: s\r\nMessage-ID: <{id}@x>\r\n");
        let budget = Budget::new(u64::MAX);
        let mut spill = Spill::new(&directory.join("spool"), u64::MAX, &budget);
        spill.push(head.as_bytes()).await.unwrap();
        spill.push(b"Content-Type: image/png\r\n\r\n").await.unwrap();
        spill.push(&vec![b'x'; body_bytes]).await.unwrap();
        let parties = targets.iter().map(|target| target.split_once('/').unwrap_or((target, "")));
        let parties = parties.map(|(tenant, project)| Parties {
            tenant: TenantRef { id: tenant.to_owned(), prefix: tenant.to_owned() },
            activity_type: "Email".to_owned(),
            owner: Owner { user_id: "u".to_owned(), address: "a@x.test".to_owned(), name: None },
            participants: Arc::default(),
            people_omitted: 0,
            customer: None,
            project: (!project.is_empty())
                .then(|| ProjectRef { id: project.to_owned(), number: project.to_owned() }),
        });
        let head = Head::parse(head.as_bytes()).unwrap();
        let (raw, _) = spill.finish().await.unwrap();
        let mut bytes = Vec::new();
        raw.reader(0..raw.len()).read_to_end(&mut bytes).unwrap();
        Parcel::build(parties.collect(), &ENVELOPE, &head, Reader::whole(&bytes, LIMITS), raw, NOW)
    }

    fn spooled(directory: &Path) -> usize {
        fs::read_dir(directory.join("spool")).unwrap().count()
    }

    async fn take(queue: &Queue, now: SystemTime) -> Vec<Lease> {
        let (leases, damaged) = queue.take(10, Turn::default(), now, LEASE).await.unwrap();
        assert!(damaged.is_empty(), "{damaged:?}");
        leases
    }

    #[tokio::test]
    async fn small_and_large_messages_survive_a_restart_and_leave_nothing_when_taken() {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(dir.path());
        for (id, size) in [(1, 10), (2, MEMORY_PER_MESSAGE * 3)] {
            let puts = queue.put(parcel(dir.path(), id, size, &["a", "b"]).await, NOW).await.unwrap();
            assert_eq!(puts, [Put::New, Put::New]);
        }
        assert_eq!((spooled(dir.path()), queue.counts().await.unwrap().waiting), (1, 4));
        assert_eq!(take(&queue, NOW).await.len(), 4);
        assert_eq!(take(&queue, NOW).await.len(), 0);
        drop(queue); // as a crash does: nothing is finished

        let queue = open(dir.path());
        let leases = take(&queue, NOW).await;
        assert_eq!(leases.len(), 4);
        for lease in &leases {
            let mut size = 0;
            lease
                .raw
                .decode(lease.cuts[0], &mut |piece| {
                    size += piece.len() as u64;
                    Ok(())
                })
                .unwrap();
            assert_eq!(size, lease.activity.files[0].size);
        }
        for (i, lease) in leases.iter().enumerate() {
            assert_eq!(
                spooled(dir.path()),
                usize::from(i < 4 && leases[i..].iter().any(|l| matches!(l.raw, Raw::File { .. })))
            );
            queue.finish(lease.id, Finish::Taken, NOW).await.unwrap();
        }
        assert_eq!((spooled(dir.path()), queue.counts().await.unwrap()), (0, Counts::default()));
    }

    #[tokio::test]
    async fn a_key_is_known_while_it_waits_and_seven_days_after() {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(dir.path());
        let put = async |tenants: &[&str]| {
            queue.put(parcel(dir.path(), 1, MEMORY_PER_MESSAGE * 2, tenants).await, NOW).await.unwrap()
        };
        assert_eq!(put(&["a"]).await, [Put::New]);
        assert_eq!(put(&["a"]).await, [Put::Known]);
        assert_eq!(spooled(dir.path()), 1);
        assert_eq!(put(&["a", "b"]).await, [Put::Known, Put::New]);
        for lease in take(&queue, NOW).await {
            queue.finish(lease.id, Finish::Taken, NOW).await.unwrap();
        }
        queue.tidy(NOW + KEY_MEMORY).await.unwrap();
        assert_eq!(put(&["a"]).await, [Put::Known]);
        queue.tidy(NOW + KEY_MEMORY + Duration::from_millis(1)).await.unwrap();
        assert_eq!(put(&["a"]).await, [Put::New]);
    }

    #[tokio::test]
    async fn the_bare_address_adds_nothing_after_a_project_of_the_same_tenant() {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(dir.path());
        let put =
            async |id, target| queue.put(parcel(dir.path(), id, 1, &[target]).await, NOW).await.unwrap();
        assert_eq!(put(1, "a/7").await, [Put::New]);
        assert_eq!(put(1, "a").await, [Put::Known]);
        assert_eq!(put(1, "a/8").await, [Put::New]);
        assert_eq!((put(1, "b").await, put(2, "a").await), (vec![Put::New], vec![Put::New]));
        // Recorded before the project came: nothing takes it back, and nothing forgets it too early.
        assert_eq!(put(2, "a/7").await, [Put::New]);
        queue.tidy(NOW + KEY_MEMORY + Duration::from_millis(1)).await.unwrap();
        assert_eq!((put(2, "a").await, put(1, "a").await), (vec![Put::Known], vec![Put::New]));
    }

    #[tokio::test]
    async fn a_lease_ends_by_itself_and_attempts_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(dir.path());
        queue.put(parcel(dir.path(), 1, 1, &["a"]).await, NOW).await.unwrap();
        assert_eq!(take(&queue, NOW).await.len(), 1);
        assert_eq!(queue.next_due().await.unwrap(), Some(NOW + LEASE));
        let lease = take(&queue, NOW + LEASE).await.pop().unwrap();
        let again = |counts| Finish::Again { due: NOW, counts, reason: "503".to_owned() };
        queue.finish(lease.id, again(true), NOW).await.unwrap();
        let lease = take(&queue, NOW).await.pop().unwrap();
        assert_eq!(lease.attempts, 1);
        queue.finish(lease.id, again(false), NOW).await.unwrap();
        let lease = take(&queue, NOW).await.pop().unwrap();
        assert_eq!(lease.attempts, 1);
        queue.finish(lease.id, Finish::Held { reason: "422".to_owned() }, NOW).await.unwrap();
        assert_eq!(take(&queue, NOW + LEASE * 100).await.len(), 0);
        assert_eq!(queue.counts().await.unwrap(), Counts { waiting: 0, held: 1, oldest: None });
    }

    #[tokio::test]
    async fn full_on_both_sides_of_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(dir.path());
        for id in 0..5 {
            queue.put(parcel(dir.path(), id, 1, &["a", "b"]).await, NOW).await.unwrap();
        }
        let one_more = queue.put(parcel(dir.path(), 9, MEMORY_PER_MESSAGE * 2, &["a"]).await, NOW).await;
        assert!(matches!(one_more, Err(PutError::Full(10))));
        assert_eq!(spooled(dir.path()), 0);
        let lease = take(&queue, NOW).await.pop().unwrap();
        queue.finish(lease.id, Finish::Taken, NOW).await.unwrap();
        queue.put(parcel(dir.path(), 9, 1, &["a"]).await, NOW).await.unwrap();
    }

    #[tokio::test]
    async fn a_second_process_a_newer_file_and_a_damaged_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(dir.path());
        assert!(matches!(Queue::open(&settings(dir.path()), NOW), Err(OpenError::InUse(_))));
        drop(queue);
        let path = settings(dir.path()).path;
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(Queue::open(&settings(dir.path()), NOW), Err(OpenError::Newer { found: 99, .. })));
        fs::write(&path, "this is no database, and long enough to be looked at as one".repeat(100)).unwrap();
        let error = Queue::open(&settings(dir.path()), NOW).unwrap_err().to_string();
        assert!(error.contains("queue.db") && error.contains("move it away"), "{error}");
    }

    #[tokio::test]
    async fn a_file_of_the_first_schema_is_migrated() {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(dir.path());
        queue.put(parcel(dir.path(), 1, 1, &["a"]).await, NOW).await.unwrap();
        let large = parcel(dir.path(), 2, MEMORY_PER_MESSAGE * 2, &["b", "c"]).await;
        queue.put(large, NOW + Duration::from_millis(1)).await.unwrap();
        drop(queue);
        let database = Connection::open(settings(dir.path()).path).unwrap();
        database
            .execute_batch(
                "ALTER TABLE message DROP COLUMN text; ALTER TABLE message DROP COLUMN items;
                 ALTER TABLE seen DROP COLUMN item; CREATE INDEX item_message ON item (message);
                 DROP INDEX item_turn; DROP INDEX item_held; ALTER TABLE item DROP COLUMN notified;
                 PRAGMA user_version = 1;",
            )
            .unwrap();
        drop(database);
        let queue = open(dir.path());
        let (leases, _) = queue.take(10, Turn::default(), NOW + LEASE, LEASE).await.unwrap();
        assert_eq!(leases.len(), 3);
        // A message of several items lasts as long as the last of them.
        for (lease, left) in leases[1..].iter().zip([1, 0]) {
            queue.finish(lease.id, Finish::Taken, NOW).await.unwrap();
            assert_eq!(spooled(dir.path()), left);
        }
        // Who comes back by its key: known, and found.
        let again = queue.put(parcel(dir.path(), 1, 1, &["a"]).await, NOW).await.unwrap();
        assert_eq!(again, [Put::Known]);
        let key = leases[0].activity.key.to_string();
        let ledger = Ledger::open(&settings(dir.path())).unwrap();
        let found = ledger.list(&Filter { keys: vec![key[..12].to_owned()], ..Filter::default() }).unwrap();
        assert_eq!(found.len(), 1);
        queue.finish(leases[0].id, Finish::Held { reason: "x".to_owned() }, NOW).await.unwrap();
        let untold = queue.untold(10).await.unwrap();
        assert_eq!(untold.len(), 1);
        queue.told(vec![untold[0].id]).await.unwrap();
        assert!(queue.untold(10).await.unwrap().is_empty());
    }

    /// However the text came, the JSON that is sent is the one that was accepted.
    #[tokio::test]
    async fn a_text_that_stands_in_the_message_is_kept_once() {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(dir.path());
        let multipart = "multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--\r\n";
        let encoded = "text/plain\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\ncaf=C3=A9 text\r\n";
        for (id, (rest, once)) in [
            ("text/plain\r\n\r\nHi \"Bo\",\r\n\r\n\t\"text\":null é text\r\n", true),
            ("text/plain; charset=UTF-8\r\n\r\ntext é\n", true),
            ("text/html\r\n\r\n<p>text</p>\r\n", false),
            (encoded, false),
            (multipart, false),
        ]
        .into_iter()
        .enumerate()
        {
            let head = format!("Subject: \"text\":null\r\nMessage-ID: <{id}@x>\r\n");
            let message = format!("{head}Content-Type: {rest}");
            let parties = parcel(dir.path(), 1, 1, &["a"]).await.activities.remove(0);
            let parties = Parties {
                tenant: parties.tenant,
                activity_type: parties.activity_type,
                owner: parties.owner,
                participants: parties.participants,
                people_omitted: 0,
                customer: None,
                project: None,
            };
            let head = Head::parse(head.as_bytes()).unwrap();
            let body = Reader::whole(message.as_bytes(), LIMITS);
            let raw = Raw::from(message.into_bytes());
            let parcel = Parcel::build(vec![parties], &ENVELOPE, &head, body, raw, NOW);
            let expected = serde_json::to_string(&parcel.activities[0]).unwrap();
            assert!(expected.contains("text"), "{expected}");
            assert_eq!(parcel.verbatim.is_some(), once, "{rest}");
            queue.put(parcel, NOW).await.unwrap();
            let (leases, damaged) = queue.take(1, Turn::default(), NOW, LEASE).await.unwrap();
            assert!(damaged.is_empty());
            assert_eq!(std::str::from_utf8(&leases[0].json).unwrap(), expected);
            let kept = queue.writer.write(|database| {
                database.query_row("SELECT activity FROM item", [], |row| row.get::<_, String>(0))
            });
            assert_eq!(kept.await.unwrap() == expected, !once, "{rest}");
            let ledger = Ledger::open(&settings(dir.path())).unwrap();
            assert_eq!(ledger.item(leases[0].id).unwrap().json, expected);
            queue.finish(leases[0].id, Finish::Taken, NOW).await.unwrap();
        }
    }

    #[tokio::test]
    async fn tenants_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(dir.path());
        for (id, tenant) in ["b", "b", "b", "b", "a", "c"].into_iter().enumerate() {
            queue.put(parcel(dir.path(), u32::try_from(id).unwrap(), 1, &[tenant]).await, NOW).await.unwrap();
        }
        let turn = |after: &str, without: Option<&str>| Turn {
            after: after.to_owned(),
            without: without.map(str::to_owned),
        };
        let take = async |limit, turn| {
            let (leases, _) = queue.take(limit, turn, NOW, LEASE).await.unwrap();
            let tenants: Vec<_> = leases.iter().map(|lease| lease.activity.tenant.id.clone()).collect();
            for lease in &leases {
                let again = Finish::Again { due: NOW, counts: false, reason: String::new() };
                queue.finish(lease.id, again, NOW).await.unwrap();
            }
            tenants.join("")
        };
        assert_eq!(take(3, turn("", None)).await, "abc");
        assert_eq!(take(2, turn("a", None)).await, "bc");
        assert_eq!(take(2, turn("b", None)).await, "ca");
        assert_eq!(take(5, turn("", None)).await, "abcbb");
        assert_eq!(take(1, turn("", Some("a"))).await, "b");
        assert_eq!(take(9, turn("", Some("b"))).await, "ac");
        assert_eq!(take(9, turn("", None)).await.len(), 6);
    }

    #[tokio::test]
    async fn orphans_go_and_a_lost_file_holds_its_item() {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(dir.path());
        queue.put(parcel(dir.path(), 1, MEMORY_PER_MESSAGE * 2, &["a"]).await, NOW).await.unwrap();
        drop(queue);
        let spool = dir.path().join("spool");
        fs::write(spool.join("0123.eml"), "orphan").unwrap();
        fs::write(spool.join("README"), "not ours").unwrap();
        let queue = open(dir.path());
        assert_eq!(spooled(dir.path()), 2);
        for entry in fs::read_dir(&spool).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let (leases, damaged) = queue.take(10, Turn::default(), NOW, LEASE).await.unwrap();
        assert_eq!((leases.len(), damaged.len()), (0, 1));
        assert_eq!(queue.counts().await.unwrap().held, 1);
    }

    #[tokio::test]
    async fn one_piece_of_work_that_fails_harms_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let queue = open(dir.path());
        let bad = queue.writer.write(|database| database.execute("INSERT INTO nowhere VALUES (1)", []));
        let parcel = parcel(dir.path(), 1, 1, &["a"]).await;
        let (bad, good) = tokio::join!(bad, queue.put(parcel, NOW));
        assert!(bad.is_err());
        assert_eq!(good.unwrap(), [Put::New]);
    }
}
