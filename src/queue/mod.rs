//! Keeps accepted activities until the backend has them.
//!
//! In: a [`Parcel`]: the activities of one message and its bytes. Out: [`Ticket`]s, by the time they are due and fairly
//! between tenants; what they stand for, when its attempt begins.
//! Promise: docs/promises.md, by numbers; above all: when [`Queue::put`] returns, a power cut loses nothing, and one
//! e-mail is one activity for seven days after its delivery.
//! Fails: [`StorageError`], by what the caller does next; [`OpenError`] where the queue cannot be used at all.
//!
//! The words are here, the engine beside it: [`sqlite`](self) for one machine. Nothing of an engine is in the words, no
//! connection and no clock, so that another engine can keep the same promises, and the same tests (`tests/queue.rs`) hold
//! it to them.

mod clock;
mod disk;
mod haul;
mod lasting;
mod outage;
pub mod postgres;
mod sqlite;
mod tally;
mod transfer;
mod watch;
mod written;

pub use clock::{Clock, HandClock, SystemClock};
pub use haul::{HaulError, Hauled, haul};
pub use transfer::{CUT_OFF, Identity, Page, Place, Rest, Transfer};

use crate::activity::{Activity, Cut, Key, Parcel, Raw};
use crate::observe::events;
use async_trait::async_trait;
use bytes::Bytes;
use std::{
    fmt, fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// How long a key is remembered after its activity was delivered or dropped, at least: longer than any client retries.
pub const KEY_MEMORY: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a lease lasts unless it is prolonged: longer than the longest attempt.
pub const LEASE: Duration = Duration::from_secs(3600);

/// Settings of the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The database server; none: the file of `path`.
    pub server: Option<postgres::Server>,
    /// The database file.
    pub path: PathBuf,
    /// Directory for large messages, also while they arrive. On the same disk as `path`, or at least as safe.
    pub spool: PathBuf,
    /// While the server is away, the file of `path` takes what comes, and gives it to the server afterwards.
    pub spool_on_outage: bool,
    /// Most activities kept.
    pub max_items: u64,
    /// Most activities kept of one tenant; none: half of `max_items`, and all of it while there is but one tenant.
    pub max_items_per_tenant: Option<u64>,
    /// Held longer than that, an activity no longer counts against the limits. It is not deleted.
    pub held_counts: Duration,
    /// Bytes kept free on the file systems of `path` and `spool`, so that delivering goes on; 0: none.
    pub min_free: u64,
    /// How long delivered activities are kept, to be delivered once more to a backend restored from a back-up; zero: not at
    /// all. They take room that nobody else wants, and no other.
    pub keep_delivered: Duration,
}

impl Settings {
    /// A queue with the limits that the configuration has by default.
    pub fn new(path: PathBuf, spool: PathBuf) -> Self {
        Self {
            server: None,
            path,
            spool,
            spool_on_outage: false,
            max_items: 1_000_000,
            max_items_per_tenant: None,
            held_counts: Duration::from_secs(30 * 24 * 3600),
            min_free: 256 << 20,
            keep_delivered: Duration::ZERO,
        }
    }

    /// Where it is, for people: the server's database, or the file.
    pub fn place(&self) -> String {
        self.server.as_ref().map_or_else(|| self.path.display().to_string(), postgres::Server::name)
    }

    /// The file of `path` is in use.
    pub fn has_file(&self) -> bool {
        self.server.is_none() || self.spool_on_outage
    }

    /// The queue in a file of this machine, beside that of the server.
    pub fn local(&self) -> Self {
        Self { server: None, spool_on_outage: false, ..self.clone() }
    }

    /// The file systems that the queue writes to, with their free bytes (`statvfs`, what an ordinary user may use); one that
    /// cannot be asked is left out.
    pub fn free(&self) -> Vec<(PathBuf, u64)> {
        let directory = self.path.parent().filter(|path| !path.as_os_str().is_empty());
        let directory = Some(directory.unwrap_or(Path::new("."))).filter(|_| self.has_file());
        directory
            .into_iter()
            .chain([self.spool.as_path()])
            .filter_map(|place| Some((place.to_owned(), free_bytes(place).ok()?)))
            .collect()
    }
}

/// Free bytes of the file system of `path`, as far as an ordinary user may use them.
/// # Errors
/// Those of `statvfs`.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// What became of one activity that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is stored.
    New,
    /// Its key was stored before; nothing was done.
    Known,
    /// Its key was stored before, but its message's file was lost: this message took its place.
    Mended,
}

/// What the queue is out of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// It holds as many activities as it may.
    #[error("queue is full ({0} items): raise queue.max_items, or see why the backend takes nothing")]
    Items(u64),
    /// It holds as many activities of this tenant as it may.
    #[error(
        "tenant {tenant} has its share of the queue ({most} items): raise queue.max_items_per_tenant, or see why the backend takes nothing of this tenant"
    )]
    Tenant {
        /// The tenant's id.
        tenant: String,
        /// The limit.
        most: u64,
    },
    /// The file system is as full as it may become, or full.
    #[error(
        "{path}: {free} bytes are free, and queue.min_free is {least}: free some space, or lower queue.min_free"
    )]
    Disk {
        /// A path on it.
        path: PathBuf,
        /// What is free.
        free: u64,
        /// What shall be.
        least: u64,
    },
}

/// Why the queue did not do what was asked, by what the caller does next.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StorageError {
    /// Not before something is delivered, dropped or freed.
    #[error(transparent)]
    Full(#[from] Full),
    /// Another process holds the database, or something that will be there again is short; later.
    #[error("queue is busy: {0}")]
    Busy(String),
    /// What was asked for is not there any more, or cannot be read by anybody: no later time will help.
    #[error("{0}")]
    Gone(String),
    /// It is being moved to another queue, and takes nothing in meanwhile; later.
    #[error(
        "all of it is being moved to another queue: let that end (one that was killed counts for five minutes)"
    )]
    Leaving,
    /// The disk or the database failed.
    #[error("queue cannot be used: {0}")]
    Other(String),
}

/// Why the queue cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("queue {0} is in use by another activity-milter: stop that one, or set another queue.path")]
    InUse(PathBuf),
    /// Another process has the directory for messages, by which machines that share a queue are told apart.
    #[error("queue.spool {0} is in use by another activity-milter: stop that one, or give each its own")]
    SpoolInUse(PathBuf),
    /// Another program holds a lock on it.
    #[error("queue {0} is locked by another program (a backup, sqlite3): let it end, or stop it")]
    Locked(PathBuf),
    /// No file, where one was expected.
    #[error("there is no queue at {0}: has the service run with this configuration?")]
    Missing(PathBuf),
    /// It is there, or may be, and this user may not look.
    #[error(
        "queue {path} may not be read by this user ({error}): say it as root, or as the user whose the queue's directory is"
    )]
    NotAllowed {
        /// The file.
        path: PathBuf,
        /// The system's word.
        error: String,
    },
    /// A file without tables, and nobody at work on it.
    #[error("queue {0} is empty so far: the service makes it when it starts")]
    Empty(PathBuf),
    /// The service that has it makes or migrates it at this moment.
    #[error("queue {0} is being made ready by the service that starts: ask again in a moment")]
    BeingOpened(PathBuf),
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
    /// Written by an older version, and not yet migrated by the service.
    #[error(
        "queue {path} has schema {found}, and this version knows {known}: start this version's service once"
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: i64,
        /// What we can read.
        known: i64,
    },
    /// A move from it was cut off, or it was kept for a database server.
    #[error(
        "queue {path}: a move to another queue was cut off, or what is here was kept for a database: that one may have some of it too, and \
         both would deliver it. Say `activity-milter queue move` to it first; if it is gone for good, or all of it came back, remove {mark} and start again"
    )]
    CutOff {
        /// The file.
        path: PathBuf,
        /// What says so.
        mark: PathBuf,
    },
    /// A damaged database.
    #[error(
        "queue {path} is damaged: {message}. Move it away together with its -wal and -shm files, and restore a copy or start without. \
         Large messages stay in their folder of queue.spool: nothing there is deleted; sqlite3's .recover may save the rest"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// SQLite's words.
        message: String,
    },
    /// The database can be neither read nor called damaged: permissions, the disk.
    #[error("queue {path} cannot be opened: {message}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// Its server does not answer, or does not let us in now; later.
    #[error("queue cannot be reached now: {0}")]
    Away(String),
    /// What waits there for a server would be gone with the machine.
    #[error(
        "{key} {path} is in memory ({kind}), and what waits there for the database would be gone with the machine: set another {key}, on a disk, or queue.spool_on_outage = false"
    )]
    InMemory {
        /// The key.
        key: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What kind of file system.
        kind: &'static str,
    },
    /// `queue.path` names a directory, a device, a pipe.
    #[error("queue {0} is no regular file: set another queue.path")]
    NoFile(PathBuf),
    /// A directory can never be made, for there is a file.
    #[error("{path} cannot be made: {there} is no directory: set another {key}")]
    InTheWay {
        /// The directory.
        path: PathBuf,
        /// What is in its way.
        there: PathBuf,
        /// The key that names it.
        key: &'static str,
    },
    /// Another program's database.
    #[error("{0} is another program's database, and no queue: set another queue.path")]
    Foreign(PathBuf),
    /// A copy was laid over a queue whose log was left.
    #[error(
        "queue {path} is a restored copy, and {log} beside it is the log of the queue before: nothing was changed. Move that file and \
         the -shm file away (they are of no use without the file they belong to), and start again"
    )]
    OthersLog {
        /// The file.
        path: PathBuf,
        /// The log.
        log: PathBuf,
    },
    /// A copy cannot be written.
    #[error("{path}: {error}: the copy is not complete; remove it, and try again")]
    Copy {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is not in a file of ours.
    #[error(
        "queue {0} is copied with its server's own tools (pg_basebackup, or pg_dump of the schema activity_milter)"
    )]
    OfServer(String),
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

impl OpenError {
    /// True if another setting is what helps, and no other attempt.
    pub fn is_of_settings(&self) -> bool {
        matches!(self, Self::NoFile(_) | Self::InTheWay { .. } | Self::Foreign(_) | Self::InMemory { .. })
    }
}

/// What a courier asks for.
#[derive(Clone, Debug, Default)]
pub struct Ask {
    /// Most tickets.
    pub room: usize,
    /// The tenant whose turn was last: the others come first, in the order of their ids.
    pub after: String,
    /// Tenants that have enough for now.
    pub without: Vec<String>,
    /// This tenant's, and nobody else's.
    pub only: Option<String>,
    /// One that shows how the backend is, in place of those whose turn it is; for one ticket.
    pub probe: Option<Probe>,
}

/// Which activity shows best how the backend is. If there is none of the kind asked for, another one that is due; if there
/// is none either, one of those that were tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// The first of these rows that waits, due or not.
    Tried(Vec<i64>),
    /// The newest of a tenant that was never attempted, as far as a short search finds one, and that is none of these.
    Fresh(Vec<i64>),
}

/// A lease: the right to attempt an activity, until it is finished or its time is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The row.
    pub item: i64,
    /// Which lease of it: a later one has a greater number, and what an earlier one says does not count any more.
    pub fence: i64,
    /// Whose turn it was.
    pub tenant: Arc<str>,
    /// Bytes that [`Queue::open`] will hold in memory.
    pub size: u64,
    /// What the engine itself must know of it.
    pub(crate) token: Arc<[u8]>,
}

/// The answer to an [`Ask`].
#[derive(Debug, Default)]
pub struct Leased {
    /// One of each tenant by turns.
    pub tickets: Vec<Ticket>,
    /// In how long there will be more, of tenants not left out; zero if there is more now, none if nothing waits.
    pub next_due: Option<Duration>,
    /// There was never an activity of more than one tenant.
    pub alone: bool,
}

/// How a lease ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The backend has it: the row goes, or is kept ([`Settings::keep_delivered`]); the key stays for [`KEY_MEMORY`].
    Taken,
    /// Try again.
    Again {
        /// After so long.
        after: Duration,
        /// Whether the attempt is counted: not if it says nothing about this activity.
        counts: bool,
        /// Why, for people.
        reason: String,
    },
    /// It was not attempted: due as before.
    Unused,
    /// A person must look at it.
    Held {
        /// Why.
        reason: String,
    },
}

/// Where an activity stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// For its first or next attempt.
    Waiting,
    /// Being attempted now.
    InFlight,
    /// For a person.
    Held,
    /// Kept after its delivery: no list or number has it that does not ask for this state.
    Delivered,
}

impl State {
    /// The name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::InFlight => "in-flight",
            Self::Held => "held",
            Self::Delivered => "delivered",
        }
    }
}

/// Which activities.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Keys, or their beginnings, with or without `b3:`; none: all.
    pub keys: Vec<String>,
    /// These rows; none: all.
    pub items: Vec<i64>,
    /// Those that came under this queue id of Postfix's: it names several where a message is for several targets.
    pub queue_id: Option<String>,
    /// The tenant's id or prefix.
    pub tenant: Option<String>,
    /// The state.
    pub state: Option<State>,
    /// Accepted before.
    pub before: Option<SystemTime>,
    /// Only rows after this one: the last of the page before.
    pub after: Option<i64>,
    /// At most so many, the oldest.
    pub limit: Option<usize>,
}

/// An activity in the queue.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The row.
    pub id: i64,
    /// The key.
    pub key: Key,
    /// The tenant's id.
    pub tenant: String,
    /// The project's number.
    pub project: Option<String>,
    /// Postfix's queue id.
    pub queue_id: Option<String>,
    /// The envelope sender.
    pub sender: Option<String>,
    /// The recipients of the envelope, as the activity has them.
    pub recipients: Vec<String>,
    /// Where it stands.
    pub state: State,
    /// Attempts made.
    pub attempts: u32,
    /// When it was accepted, or last retried by a person.
    pub accepted_at: SystemTime,
    /// When it is attempted next, or when its lease ends, or since when it is held, or when it was delivered.
    pub due: SystemTime,
    /// Why the last attempt failed, or why it is held.
    pub reason: Option<String>,
}

/// Everything of an activity, as an attempt needs it and as people see it.
#[derive(Debug)]
pub struct Item {
    /// The key.
    pub key: Key,
    /// The activity.
    pub activity: Activity,
    /// The activity's JSON as it was accepted, to be sent unchanged.
    pub json: Bytes,
    /// Where its files lie.
    pub cuts: Vec<Cut>,
    /// The message.
    pub raw: Raw,
    /// Attempts made before.
    pub attempts: u32,
    /// How long it has waited, as far as the clock can be trusted; zero where it cannot.
    pub age: Duration,
    /// The backend's own progress (JSON), if it noted any.
    pub note: Option<String>,
    /// It was delivered before, and is sent once more.
    pub replay: bool,
}

/// What a person does with activities. What is being attempted is not touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Attempt them at once, as if they had just been accepted. What the backend noted of its progress stays.
    Retry,
    /// Hold those that wait.
    Hold {
        /// Why.
        reason: String,
    },
    /// Forget them, those kept after their delivery too; the same e-mail is not recorded again for [`KEY_MEMORY`].
    Drop,
}

/// Which delivered activities are delivered once more.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Those delivered at this time or later.
    pub since: SystemTime,
    /// Those delivered before this time; what is delivered while they are looked for never is one.
    pub until: Option<SystemTime>,
    /// The tenant's id or prefix.
    pub tenant: Option<String>,
    /// Count them, and change nothing.
    pub dry: bool,
}

/// What became of a [`Replay`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// They wait again.
    pub again: usize,
    /// Their e-mails came again meanwhile, and are in the queue already.
    pub known: usize,
    /// There is no room for these now: the last quarter of the queue, and of a tenant's share, is for mail that arrives.
    pub left: usize,
}

/// What is kept after its delivery.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// How many.
    pub activities: u64,
    /// All that was delivered since then is kept, but for what a person dropped; none: nothing is kept any more.
    pub since: Option<SystemTime>,
}

/// A held activity of which nobody was told yet.
#[derive(Clone, Debug)]
pub struct Untold {
    /// The row.
    pub id: i64,
    /// The activity's JSON without texts, people and files; its beginning, if it is no JSON.
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

/// Numbers of one tenant.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TenantCounts {
    /// The tenant's id.
    pub tenant: String,
    /// Waiting or in flight.
    pub waiting: u64,
    /// Held.
    pub held: u64,
}

/// Held activities with the same reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldFor {
    /// Why they are held.
    pub reason: String,
    /// How many.
    pub count: u64,
    /// Since when the first of them is held.
    pub since: SystemTime,
    /// Of how many tenants.
    pub tenants: u64,
    /// The id of one of these.
    pub tenant: String,
}

/// What a person wants to see first.
#[derive(Clone, Debug, Default)]
pub struct Overview {
    /// The newest of what is held, by reason, the most frequent first.
    pub held_for: Vec<HeldFor>,
    /// Those that wait longest, or are being attempted.
    pub oldest: Vec<Entry>,
}

/// What was found while cleaning up.
#[derive(Debug, Default)]
pub struct Upkeep {
    /// Held now, because they waited too long.
    pub too_old: Vec<NewlyHeld>,
    /// Held now, because a move to another queue was cut off that had them ([`CUT_OFF`]).
    pub cut_off: Vec<NewlyHeld>,
    /// The clock was set forward by so much: for a day nothing is held as too old, and no key forgotten.
    pub jumped: Option<Duration>,
    /// Activities whose times lay ahead, mended: the clock was set back.
    pub mended: u64,
    /// Files that no activity needs, moved aside for a week.
    pub aside: u64,
    /// Bytes of the log, if they are more than they should be: another program reads the database and does not end.
    pub long_log: Option<u64>,
    /// Delivered activities that went before their time, because their room was wanted.
    pub kept_gone: u64,
}

/// An activity that was held by upkeep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewlyHeld {
    /// Its key.
    pub key: Key,
    /// The tenant's id.
    pub tenant: String,
    /// Postfix's queue id of its e-mail, if it is known.
    pub queue_id: Option<String>,
}

/// What was said to all services of a queue of their directories.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expired {
    /// The number of the newest word; a later one has a greater number.
    pub newest: i64,
    /// Prefixes of the tenants whose answers are past their time; an empty one: all tenants.
    pub prefixes: Vec<String>,
}

impl Expired {
    /// The words after `after`, of those from `oldest` to `newest` that are kept. Whoever missed some, or heard some that
    /// nobody knows any more, takes all for past.
    fn since(after: Option<i64>, oldest: i64, newest: i64, prefixes: Vec<String>) -> Self {
        let has_missed = after.is_some_and(|after| after > newest || newest > after && after + 1 < oldest);
        Self { newest, prefixes: if has_missed { vec![String::new()] } else { prefixes } }
    }
}

/// How long a word is kept for services that are away.
const EXPIRED_KEPT: Duration = Duration::from_secs(24 * 3600);

/// What waits on this machine for a database that is away.
#[derive(Clone, Debug, Default)]
pub struct Spooled {
    /// How many there are, and since when.
    pub counts: Counts,
    /// Why the database takes nothing now; none: it does.
    pub away: Option<String>,
    /// Why it does not take some of it, which stays for now: those tenants have their share of it.
    pub full: Option<String>,
}

/// A durable queue. Each promise has a number in docs/promises.md, and the tests that hold it name it.
#[async_trait]
pub trait Queue: fmt::Debug + Send + Sync {
    /// Stores the activities of a message, all or none; returns once they are on disk, so that the caller may answer
    /// 250 (RFC 5321, section 4.2.5). The answer has one entry for each activity, in order.
    ///
    /// The same key is no error: the first stays and [`Put::Known`] comes back. A key that an earlier message covers
    /// ([`Parcel::covered`]) is known too. Who stops waiting leaves nothing half stored.
    /// # Errors
    /// [`StorageError::Full`] and others; the message is not accepted then.
    async fn put(&self, parcel: Parcel) -> Result<Vec<Put>, StorageError>;

    /// Whether each of these keys was recorded or covered, in their order.
    /// # Errors
    /// [`StorageError`].
    async fn known(&self, keys: Vec<Key>) -> Result<Vec<bool>, StorageError>;

    /// Leases activities that are due, one of each tenant by turns. For [`LEASE`] nobody else gets them; after it, or
    /// after a crash, they are due again.
    /// # Errors
    /// [`StorageError`]; nothing is leased then.
    async fn lease(&self, ask: Ask) -> Result<Leased, StorageError>;

    /// Everything of a row, leased or not.
    /// # Errors
    /// [`StorageError::Gone`] if the row, or its message's file, is not there any more, or what is there is no activity;
    /// all others are "later".
    async fn open(&self, item: i64) -> Result<Item, StorageError>;

    /// The same for who begins an attempt by this lease.
    /// # Errors
    /// The same; "later" also if the lease is over, or not ours any more: another attempt may be under way.
    async fn begin(&self, ticket: &Ticket) -> Result<Item, StorageError>;

    /// Ends of leases that nobody but this process knows for sure, after one more try to write them.
    async fn owed(&self) -> usize {
        0
    }

    /// Stores the backend's progress with the activity, durably, and prolongs the lease to [`LEASE`] from now. False if
    /// the lease is not ours any more: the attempt must end.
    /// # Errors
    /// [`StorageError`]; nothing is noted then.
    async fn note(&self, ticket: &Ticket, note: String) -> Result<bool, StorageError>;

    /// Ends leases; for each, whether it was still ours. What comes too late changes nothing.
    /// # Errors
    /// [`StorageError`]; they are tried again from memory, and nobody gets those activities meanwhile.
    async fn finish(&self, ends: Vec<(Ticket, End)>) -> Result<Vec<bool>, StorageError>;

    /// Holds what has waited longer than `max_age` and that nobody has leased, forgets keys whose time is over, gives
    /// free space back, and mends what a wrong clock left; in slices that nobody waits for.
    /// # Errors
    /// [`StorageError`]; the rest is done the next time.
    async fn upkeep(&self, max_age: Duration) -> Result<Upkeep, StorageError>;

    /// Held activities of which nobody was told yet, oldest first: a page of those in rows after `after`. It has at most
    /// `limit`, and fewer where they are large; behind the last one the page is empty. A damaged row hides no other.
    /// # Errors
    /// [`StorageError`].
    async fn untold(&self, after: Option<i64>, limit: usize) -> Result<Vec<Untold>, StorageError>;

    /// Somebody was told of these, and is not told again.
    /// # Errors
    /// [`StorageError`].
    async fn told(&self, items: Vec<i64>) -> Result<(), StorageError>;

    /// How many activities there are, and since when the oldest waits; quick, however many there are.
    /// # Errors
    /// [`StorageError`].
    async fn counts(&self) -> Result<Counts, StorageError>;

    /// Numbers by tenant, those with most first.
    /// # Errors
    /// [`StorageError`].
    async fn by_tenant(&self) -> Result<Vec<TenantCounts>, StorageError>;

    /// Why the newest `most` held activities are held, and the first `rows` that wait among as many: quick, however many
    /// there are.
    /// # Errors
    /// [`StorageError`].
    async fn overview(&self, most: usize, rows: usize) -> Result<Overview, StorageError>;

    /// The activities that a filter lets through, oldest first; with keys, in the order of those.
    /// # Errors
    /// [`StorageError`].
    async fn list(&self, filter: Filter) -> Result<Vec<Entry>, StorageError>;

    /// Changes activities by hand, in slices, each all or none; how many were changed.
    /// # Errors
    /// [`StorageError`]; slices before the one that failed are done.
    async fn change(&self, items: Vec<i64>, change: Change) -> Result<usize, StorageError> {
        Ok(self.change_those(items, change).await?.len())
    }

    /// The same; which were changed.
    /// # Errors
    /// As [`Queue::change`].
    async fn change_those(&self, items: Vec<i64>, change: Change) -> Result<Vec<i64>, StorageError>;

    /// Has delivered activities that are kept delivered once more, as if they had just been accepted: with their own key, an
    /// empty note, and [`Item::replay`]; in slices, each all or none.
    /// # Errors
    /// [`StorageError`]; slices before the one that failed are done.
    async fn redeliver(&self, replay: Replay) -> Result<Replayed, StorageError>;

    /// What is kept after its delivery.
    /// # Errors
    /// [`StorageError`].
    async fn kept(&self) -> Result<Kept, StorageError>;

    /// Tells all services of this queue that what their directories learnt of the tenants with these prefixes (lower case;
    /// an empty one: of all) is past its time. Works beside the service.
    /// # Errors
    /// [`StorageError`]; perhaps they were told then.
    async fn expire(&self, prefixes: Vec<String>) -> Result<(), StorageError>;

    /// What [`Queue::expire`] has said since the word with the number `after`; none: only the number of the newest.
    /// # Errors
    /// [`StorageError`].
    async fn expired(&self, after: Option<i64>) -> Result<Expired, StorageError>;

    /// Bytes that the queue has on the disk, free pages of its file left out.
    /// # Errors
    /// [`StorageError`].
    async fn bytes(&self) -> Result<u64, StorageError>;

    /// Whether an activity could be stored now: writes to the disk for nothing, and looks at the reserve.
    /// # Errors
    /// [`StorageError`].
    async fn check(&self) -> Result<(), StorageError>;

    /// Where a commit of the queue's server is: in words, or why that is not as safe as the settings ask; none: the queue is on
    /// this machine.
    async fn safety(&self) -> Option<Result<String, String>> {
        None
    }

    /// Which queue this is, whatever it is called.
    /// # Errors
    /// [`StorageError`].
    async fn identity(&self) -> Result<Identity, StorageError>;

    /// A page of what is here and nobody has leased, to be moved to another queue: what waits and what is held, or what is
    /// kept after its delivery; in the order of their numbers, behind `after`. Where others may lease, the page is leased.
    /// From here until [`Queue::rest`] nobody else moves anything out of this queue, or into it.
    /// # Errors
    /// [`StorageError`].
    async fn to_move(&self, delivered: bool, after: i64) -> Result<Page, StorageError>;

    /// Takes in what comes from another queue, each transfer all or none; returns once it is as durable as after
    /// [`Queue::put`]. The answer has one entry for each activity, in order; a key that is known stays as it is.
    /// # Errors
    /// As [`Queue::put`]; those before the one that failed may be taken in.
    async fn take_in(&self, transfers: Vec<Transfer>) -> Result<Vec<Put>, StorageError>;

    /// These are in another queue, which remembers their keys: rows whose hold is still this one go, each with its key, in one
    /// commit; how many went. A key that stayed without its row would be known to whoever moves it back.
    /// # Errors
    /// [`StorageError`]; those before the one that failed are gone. Whoever was stopped for so long that others may have moved
    /// something meanwhile lets nothing go.
    async fn let_go(&self, places: Vec<Place>) -> Result<usize, StorageError>;

    /// These stay, and whoever wants may lease them.
    /// # Errors
    /// [`StorageError`]; then their leases end by themselves.
    async fn keep(&self, _places: Vec<Place>) -> Result<(), StorageError> {
        Ok(())
    }

    /// Nothing is moved from here or to here any more.
    async fn rest(&self, how: Rest);

    /// A page of the keys that are remembered and have no row any more, or never had one, in their order, behind `after`.
    /// # Errors
    /// [`StorageError`].
    async fn memory(&self, after: Option<Key>, limit: usize) -> Result<Vec<Key>, StorageError>;

    /// Remembers keys from now on; what is there of them stays as it is.
    /// # Errors
    /// [`StorageError`].
    async fn remember(&self, keys: Vec<Key>) -> Result<(), StorageError>;

    /// Forgets keys that have no row: another queue remembers them.
    /// # Errors
    /// [`StorageError`].
    async fn forget(&self, keys: Vec<Key>) -> Result<(), StorageError>;

    /// What waits on this machine for a database that is away; none: such a queue is not set.
    async fn spooled(&self) -> Option<Spooled> {
        None
    }

    /// Waits until there may be something to lease: something was put, given back, or changed by another process.
    async fn arrival(&self);

    /// Waits until something was held.
    async fn newly_held(&self);
}

/// Opens or makes the queue for the service: one process at a time. An older file is migrated, the leases of a crashed
/// process are given back. Blocks.
/// # Errors
/// [`OpenError`].
pub fn open(settings: &Settings, clock: Arc<dyn Clock>) -> Result<Arc<dyn Queue>, OpenError> {
    Ok(match &settings.server {
        Some(server) => outage::open(settings, server, clock)?,
        None => {
            sqlite::SqliteQueue::look_for_others(settings)?;
            alone_if_empty(sqlite::SqliteQueue::open(settings, clock)?)
        }
    })
}

/// Where nothing is, nothing is anywhere else too, whatever was moved away before.
fn alone_if_empty(queue: sqlite::SqliteQueue) -> Arc<dyn Queue> {
    if let Err(error) = queue.alone() {
        events::queue_trouble(&error); // the next start says so
    }
    Arc::new(queue)
}

/// Opens a queue from which all shall move to another: a file for us alone, or a server's beside the services that may be
/// at work there. Blocks.
/// # Errors
/// [`OpenError`]: one that is not there, too.
pub fn open_to_leave(settings: &Settings, clock: Arc<dyn Clock>) -> Result<Arc<dyn Queue>, OpenError> {
    match &settings.server {
        Some(_) => beside(settings, clock),
        None if settings.path.exists() => Ok(Arc::new(sqlite::SqliteQueue::open(settings, clock)?)),
        None => Err(OpenError::Missing(settings.path.clone())),
    }
}

/// Opens or makes a queue for what comes from another one; a service may be at work on it. Blocks.
/// # Errors
/// [`OpenError`].
pub fn open_to_take_in(settings: &Settings, clock: Arc<dyn Clock>) -> Result<Arc<dyn Queue>, OpenError> {
    match &settings.server {
        Some(server) => Ok(Arc::new(postgres::PostgresQueue::made_beside(settings, server, clock)?)),
        None => match sqlite::SqliteQueue::open(settings, Arc::clone(&clock)) {
            Err(OpenError::InUse(_)) => beside(settings, clock),
            opened => opened.map(alone_if_empty),
        },
    }
}

/// Whether what is seen at the queue's places would stop a start; changes nothing. [`open`] looks first too. Blocks.
/// # Errors
/// [`OpenError`].
pub fn look(settings: &Settings) -> Result<(), OpenError> {
    match &settings.server {
        Some(_) if settings.spool_on_outage => {
            sqlite::SqliteQueue::look(settings)?;
            lasting::look(settings)
        }
        Some(_) => Ok(()),
        None => {
            sqlite::SqliteQueue::look(settings)?;
            sqlite::SqliteQueue::look_for_others(settings)
        }
    }
}

/// The queue of a service that may be running, for commands: everything but put, lease and what belongs to a lease.
/// # Errors
/// [`OpenError`].
pub fn beside(settings: &Settings, clock: Arc<dyn Clock>) -> Result<Arc<dyn Queue>, OpenError> {
    Ok(match &settings.server {
        Some(server) => Arc::new(postgres::PostgresQueue::beside(settings, server, clock)?),
        None => Arc::new(sqlite::SqliteQueue::beside(settings, clock)?),
    })
}

/// What was copied of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backup {
    /// Waiting, in flight and held.
    pub activities: u64,
    /// Kept after their delivery.
    pub kept: u64,
    /// The files, in the directory of the copy.
    pub files: Vec<PathBuf>,
    /// Files that are not there, although activities need them.
    pub lost: Vec<PathBuf>,
}

/// What a look at such a copy found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Waiting, in flight and held.
    pub activities: u64,
    /// Kept after their delivery.
    pub kept: u64,
    /// What is wrong.
    pub problems: Vec<String>,
}

/// Copies the queue of a service that may be running into a directory, as it is at one moment; of a server's, what waits for
/// it on this machine. Blocks.
/// # Errors
/// [`OpenError`]; what was copied so far stays there.
pub fn copy(settings: &Settings, to: &Path) -> Result<Backup, OpenError> {
    match &settings.server {
        Some(server) if !settings.path.exists() => Err(OpenError::OfServer(server.name())),
        Some(_) => sqlite::SqliteQueue::copy(&settings.local(), to),
        None => sqlite::SqliteQueue::copy(settings, to),
    }
}

/// Looks whether such a copy is whole, and changes nothing. Blocks.
/// # Errors
/// [`OpenError`], where it cannot be looked at.
pub fn verify(copy: &Path) -> Result<Verified, OpenError> {
    sqlite::SqliteQueue::verify(copy)
}

/// Makes a directory for mail, which is private: only our user reads it. Its name outlives a power cut, and so do those of
/// the ones above it that were not there.
/// # Errors
/// [`OpenError::Directory`].
pub fn make_directory(path: &Path) -> Result<(), OpenError> {
    let make = || -> io::Result<()> {
        let is_missing = |above: &&Path| !above.as_os_str().is_empty() && !above.exists();
        let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        // A name is the folder's in which it stands (fsync(2)). ext4 takes it along with whatever is synced in there; POSIX does not.
        missing.into_iter().try_for_each(sync_name)
    };
    make().map_err(|error| OpenError::Directory { path: path.to_owned(), error })
}

/// Syncs the folder in which something has its name.
fn sync_name(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
