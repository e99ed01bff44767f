//! The file: opening, writing, trimming.
//!
//! In: batches of records. Out: nothing; who searches reads the file (`search`).
//! Promise: a file that is damaged is moved aside and made anew; one of a newer version, or of another program, is left
//! alone. Rows go as they grow old, a slice with each batch, so that nothing ever has much to do.
//! Fails: [`Trouble`].

use super::{
    Settings,
    record::{Record, digest, millis},
    term::fold,
};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, params};
use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

/// Tells a trace from other programs' databases ("amTr").
pub(super) const APPLICATION: i64 = 0x616d_5472;

/// The version this program writes, in `user_version`.
pub(super) const VERSION: i64 = 1;

/// How long a write waits for another program that writes.
pub(super) const BUSY: Duration = Duration::from_secs(2);

/// Rows that go at once, beside as many as come.
const SLICE: u64 = 1000;

/// Rows that go at once where the disk is low: nothing else is done then.
const FORGOTTEN: u64 = 10_000;

/// Pages that are given back to the disk at once.
const PAGES: u32 = 256;

/// Rows that a clock which was ahead has left are gone when they are the oldest: this far ahead they are not of today.
const AHEAD: Duration = Duration::from_secs(24 * 3600);

/// A clock that leaps by more is not believed, and nothing goes for its age,
const LEAP: Duration = Duration::from_secs(24 * 3600);

/// until it has said so for this long: a wrong clock is set right within a day, and costs no row.
const DOUBT: Duration = Duration::from_secs(24 * 3600);

/// Pages of the log after which it is copied into the file, and synced: 16 MiB.
const CHECKPOINT: u32 = 4096;

/// `others`: addresses, a line each. `address`: whom a row names, folded; the tables' rows go together. An index holds only
/// the rows that have the column.
const TABLES: &str = "
    CREATE TABLE event (
        id INTEGER PRIMARY KEY, at INTEGER NOT NULL, what TEXT NOT NULL, mail INTEGER, queue_id TEXT, key BLOB,
        message_id TEXT, sender TEXT, recipient TEXT, others TEXT, tenant TEXT, project TEXT, door TEXT, client TEXT,
        stage TEXT, code INTEGER, status TEXT, reason TEXT, attempt INTEGER, span INTEGER, detail TEXT
    );
    CREATE INDEX event_mail ON event (mail) WHERE mail IS NOT NULL;
    CREATE INDEX event_queue_id ON event (queue_id) WHERE queue_id IS NOT NULL;
    CREATE INDEX event_key ON event (key) WHERE key IS NOT NULL;
    CREATE INDEX event_message_id ON event (message_id) WHERE message_id IS NOT NULL;
    CREATE TABLE address (address TEXT NOT NULL, event INTEGER NOT NULL, PRIMARY KEY (address, event)) WITHOUT ROWID;
    CREATE TABLE loss (at INTEGER NOT NULL, records INTEGER NOT NULL);
";

/// Why nothing is written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// It is damaged: to be moved aside.
    #[error("damaged: {0}")]
    Damaged(String),
    /// A newer version's.
    #[error(
        "it has schema {0}, and this version knows {VERSION}: move it away, or install the newer activity-milter again"
    )]
    Newer(i64),
    /// Another program's database.
    #[error("it is no trace: set another trace.path")]
    Foreign,
    /// Somebody has taken it away, or put another one in its place.
    #[error("it was moved away or replaced")]
    Replaced,
    /// Little is free on its disk.
    #[error("{0} bytes are free on its disk, and the trace leaves {1} to the queue: free some space")]
    Low(u64, u64),
    /// Permissions, the disk, a lock of another program.
    #[error("{0}")]
    Other(String),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(error.to_string()),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Self::Other("another program has locked it (a backup, sqlite3): let it end".to_owned())
            }
            _ => Self::Other(error.to_string()),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

/// A time by the clock that may be set, and by the one that may not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) wall: SystemTime,
    pub(super) steady: Instant,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self { wall: SystemTime::now(), steady: Instant::now() }
    }
}

/// The clock as it went so far.
#[derive(Debug)]
struct Clock {
    last: Moment,
    doubted: Option<Instant>,
}

impl Clock {
    /// True if it goes on from where it was, or has stayed where it leapt to.
    fn is_believed(&mut self, now: Moment) -> bool {
        let expected = self.last.wall + now.steady.duration_since(self.last.steady);
        let off = now.wall.duration_since(expected).unwrap_or_else(|error| error.duration());
        let stays = self.doubted.is_some_and(|since| now.steady.duration_since(since) >= DOUBT);
        if off > LEAP && !stays {
            self.doubted.get_or_insert(now.steady);
            return false;
        }
        *self = Self { last: now, doubted: None };
        true
    }
}

/// Which file a path names.
type Identity = (u64, u64);

/// The open file.
pub(super) struct Store {
    database: Connection,
    identity: Identity,
    /// None: there is no row yet.
    clock: Option<Clock>,
    settings: Settings,
    keep: Duration,
}

impl Store {
    /// Opens the file; `create`: or makes it.
    pub(super) fn open(settings: &Settings, create: bool) -> Result<Self, Trouble> {
        let path = &settings.path;
        if create {
            make(path)?;
        }
        if !may_be_a_database(path)? {
            return Err(Trouble::Foreign);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let database = Connection::open_with_flags(path, flags)?;
        database.busy_timeout(BUSY)?;
        if !is_ours(&database)? {
            if !create {
                return Err(Trouble::Foreign);
            }
            // Before the first table, or it counts no more.
            database.execute_batch("PRAGMA auto_vacuum = INCREMENTAL")?;
        }
        database.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -8192;",
        )?;
        database.pragma_update(None, "wal_autocheckpoint", CHECKPOINT)?;
        database.pragma_update(None, "journal_size_limit", 64 << 20)?;
        database.set_prepared_statement_cache_capacity(16);
        let (keep, identity) =
            (settings.keep.unwrap_or(super::KEEP), identity(path)?.ok_or(Trouble::Replaced)?);
        let mut store = Self { database, identity, clock: None, settings: settings.clone(), keep };
        store.make_tables()?;
        store.clock = store.newest()?.map(|wall| {
            let last = Moment { wall, steady: Instant::now() };
            Clock { last, doubted: None }
        });
        Ok(store)
    }

    /// When the newest row was written.
    fn newest(&self) -> rusqlite::Result<Option<SystemTime>> {
        let newest = "SELECT at FROM event ORDER BY id DESC LIMIT 1";
        let at: Option<i64> = self.database.query_row(newest, [], |row| row.get(0)).optional()?;
        let since = |at| Duration::from_millis(u64::try_from(at).unwrap_or_default());
        Ok(at.map(|at| SystemTime::UNIX_EPOCH + since(at)))
    }

    /// Makes the tables, unless somebody else was first.
    fn make_tables(&self) -> Result<(), Trouble> {
        let behaviour = rusqlite::TransactionBehavior::Immediate;
        let transaction = Transaction::new_unchecked(&self.database, behaviour)?;
        if !is_ours(&transaction)? {
            transaction.execute_batch(TABLES)?;
            transaction.pragma_update(None, "application_id", APPLICATION)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
        }
        Ok(transaction.commit()?)
    }

    /// Writes a batch in one transaction, and takes away what is old, about as much. True if there is more of that.
    pub(super) fn write(&mut self, records: &[Record], lost: u64, now: Moment) -> Result<bool, Trouble> {
        if identity(&self.settings.path)? != Some(self.identity) {
            return Err(Trouble::Replaced);
        }
        let is_believed = self.clock.get_or_insert(Clock { last: now, doubted: None }).is_believed(now);
        let (now, ages) = (now.wall, is_believed.then_some(now.wall));
        if let Err(low) = self.leave_room() {
            self.forget(ages)?;
            return Err(low);
        }
        let behaviour = rusqlite::TransactionBehavior::Immediate;
        let transaction = Transaction::new_unchecked(&self.database, behaviour)?;
        for record in records {
            insert(&transaction, record)?;
        }
        if lost > 0 {
            let insert = "INSERT INTO loss (at, records) VALUES (?1, ?2)";
            transaction.execute(insert, params![millis(now), i64::try_from(lost).unwrap_or(i64::MAX)])?;
        }
        let slice = SLICE.max(2 * records.len() as u64);
        let gone = self.trim(&transaction, ages, slice)?;
        transaction.commit()?;
        if gone > 0 {
            self.give_back()?;
        }
        Ok(gone == slice)
    }

    /// Takes away what is old, where nothing can be written: it may not stay longer for that, and makes room.
    fn forget(&mut self, ages: Option<SystemTime>) -> Result<(), Trouble> {
        let behaviour = rusqlite::TransactionBehavior::Immediate;
        let transaction = Transaction::new_unchecked(&self.database, behaviour)?;
        self.trim(&transaction, ages, FORGOTTEN)?;
        transaction.commit()?;
        Ok(self.give_pages()?)
    }

    /// Ends with a file that is somewhere else now: what stands in the log goes into it, and no log is left for the file that
    /// took its place, which would be damaged by it.
    pub(super) fn leave(self) {
        let path = &self.settings.path;
        let beside = [beside(path, "-wal"), beside(path, "-shm")];
        let ours = beside.each_ref().map(|path| identity(path).ok().flatten());
        // Where it cannot be copied any more, it is lost: as the file is, for us.
        let _ = self.database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        drop(self.database);
        for (path, ours) in beside.iter().zip(ours) {
            if ours.is_some() && identity(path).ok().flatten() == ours {
                let _ = fs::remove_file(path); // else it is SQLite's to find out
            }
        }
    }

    /// Below what the queue needs, and as much again, nothing is written.
    fn leave_room(&self) -> Result<(), Trouble> {
        let least = self.settings.min_free.saturating_mul(2);
        if least == 0 {
            return Ok(());
        }
        let stat = nix::sys::statvfs::statvfs(&self.settings.path).map_err(io::Error::from)?;
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        if free < least { Err(Trouble::Low(free, least)) } else { Ok(()) }
    }

    /// Deletes the oldest rows that are too old, or too many, at most `slice`; how many. `now`: none if nobody knows.
    fn trim(
        &self,
        transaction: &Transaction<'_>,
        now: Option<SystemTime>,
        slice: u64,
    ) -> rusqlite::Result<u64> {
        let ends = transaction.query_row("SELECT min(id), max(id) FROM event", [], |row| {
            Ok(row.get::<_, Option<i64>>(0)?.zip(row.get::<_, Option<i64>>(1)?))
        })?;
        let Some((first, last)) = ends else { return Ok(0) };
        let (old, ahead) = now.map_or((i64::MIN, i64::MAX), |now| {
            (millis(now.checked_sub(self.keep).unwrap_or(SystemTime::UNIX_EPOCH)), millis(now + AHEAD))
        });
        transaction.execute("DELETE FROM loss WHERE at < ?1 OR at > ?2", [old, ahead])?;
        // Rows are numbered one after the other, and only the oldest go.
        let too_many = last.saturating_sub(i64::try_from(self.settings.most_rows).unwrap_or(i64::MAX));
        let end = first.saturating_add(i64::try_from(slice).unwrap_or(i64::MAX)).saturating_sub(1);
        let mut oldest = transaction.prepare_cached("SELECT id, at FROM event WHERE id <= ?1 ORDER BY id")?;
        let mut rows = oldest.query([end])?;
        let mut until = None;
        while let Some(row) = rows.next()? {
            let (id, at): (i64, i64) = (row.get(0)?, row.get(1)?);
            if id > too_many && at >= old && at <= ahead {
                break;
            }
            until = Some(id);
        }
        let Some(until) = until else { return Ok(0) };
        let mut named =
            transaction.prepare_cached("SELECT id, sender, recipient, others FROM event WHERE id <= ?1")?;
        let mut forget =
            transaction.prepare_cached("DELETE FROM address WHERE address = ?1 AND event = ?2")?;
        let mut rows = named.query([until])?;
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            let texts: [Option<String>; 3] = [row.get(1)?, row.get(2)?, row.get(3)?];
            for address in addresses(texts.iter().flatten().flat_map(|text| text.lines())) {
                forget.execute(params![address, id])?;
            }
        }
        let gone = transaction.prepare_cached("DELETE FROM event WHERE id <= ?1")?.execute([until])?;
        Ok(gone as u64)
    }

    /// Gives free pages back to the disk, where there are more than a week's rows will soon take.
    fn give_back(&self) -> rusqlite::Result<()> {
        let number = |name: &str| self.database.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        if number("freelist_count")? > number("page_count")? / 4 + i64::from(PAGES) {
            self.give_pages()?;
        }
        Ok(())
    }

    fn give_pages(&self) -> rusqlite::Result<()> {
        // Each row it answers with is a page.
        let mut vacuum = self.database.prepare(&format!("PRAGMA incremental_vacuum({PAGES})"))?;
        let mut rows = vacuum.query([])?;
        while rows.next()?.is_some() {}
        Ok(())
    }
}

fn insert(transaction: &Transaction<'_>, record: &Record) -> rusqlite::Result<()> {
    let mut insert = transaction.prepare_cached(
        "INSERT INTO event (at, what, mail, queue_id, key, message_id, sender, recipient, others, tenant, project, door,
         client, stage, code, status, reason, attempt, span, detail)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)",
    )?;
    let others = (!record.others.is_empty()).then(|| record.others.join("\n"));
    insert.execute(params![
        millis(record.at.unwrap_or(SystemTime::UNIX_EPOCH)),
        record.what.as_str(),
        record.transaction,
        record.queue_id,
        record.key.as_deref().and_then(digest).map(|digest| digest.to_vec()),
        record.message_id,
        record.sender,
        record.recipient,
        others,
        record.tenant,
        record.project,
        record.door,
        record.client,
        record.stage,
        record.code,
        record.status,
        record.reason,
        record.attempt,
        record.span.map(|span| i64::try_from(span.as_millis()).unwrap_or(i64::MAX)),
        record.detail,
    ])?;
    let id = transaction.last_insert_rowid();
    let mut name =
        transaction.prepare_cached("INSERT OR IGNORE INTO address (address, event) VALUES (?1, ?2)")?;
    let texts = record.sender.iter().chain(&record.recipient).chain(&record.others);
    for address in addresses(texts.map(String::as_str)) {
        name.execute(params![address, id])?;
    }
    Ok(())
}

/// What can be searched for: a whole address, folded. `...@x.test` is none.
fn addresses<'a>(texts: impl Iterator<Item = &'a str>) -> impl Iterator<Item = String> {
    let whole = texts.filter(|text| !text.starts_with("...@"));
    whole.filter_map(|text| text.rsplit_once('@')).map(|(local, domain)| fold(local, domain))
}

/// False for a file with other content than a database, which is somebody's: it is never moved away. One that is empty, or
/// begins with zeros, is what a crash leaves of a trace.
pub(super) fn may_be_a_database(path: &Path) -> io::Result<bool> {
    const MAGIC: &[u8; 16] = b"SQLite format 3\0";
    let mut head = Vec::new();
    File::open(path)?.take(MAGIC.len() as u64).read_to_end(&mut head)?;
    Ok(head == MAGIC || head.iter().all(|&b| b == 0))
}

/// True for a trace of this version; false for an empty file.
pub(super) fn is_ours(database: &Connection) -> Result<bool, Trouble> {
    let number = |name: &str| database.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    match (number("application_id")?, number("user_version")?) {
        (APPLICATION, VERSION) => Ok(true),
        (APPLICATION, version) => Err(Trouble::Newer(version)),
        _ => {
            let table = database.query_row("SELECT 1 FROM sqlite_schema LIMIT 1", [], |_| Ok(()));
            if table.optional()?.is_some() { Err(Trouble::Foreign) } else { Ok(false) }
        }
    }
}

/// Makes the directory and the file, for nobody else to read.
fn make(path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// None: there is none.
fn identity(path: &Path) -> io::Result<Option<Identity>> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some((meta.dev(), meta.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What SQLite has beside a file.
fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    PathBuf::from(name)
}

/// Renames the file, with what SQLite has beside it; the one that was put aside before is gone then.
pub(super) fn put_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = beside(path, ".aside");
    fs::rename(path, &aside)?;
    for end in ["-wal", "-shm"] {
        let (from, to) = (beside(path, end), beside(&aside, end));
        match fs::rename(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => drop(fs::remove_file(&to)),
            renamed => renamed?,
        }
    }
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::{super::search, super::term::Term, super::*, *};
    use std::sync::LazyLock;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn scratch() -> (tempfile::TempDir, Settings) {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings::new(directory.path().join("state/trace.db"));
        (directory, settings)
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    /// By the clock that may not be set, too.
    fn moment(wall: SystemTime) -> Moment {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        Moment { wall, steady: *START + wall.duration_since(now()).unwrap() }
    }

    fn record(number: u64, at: SystemTime) -> Record {
        Record {
            at: Some(at),
            transaction: Some(i64::try_from(number).unwrap()),
            queue_id: Some(format!("{number:010X}")),
            key: Some(format!(
                "b3:{:064x}",
                u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
            )),
            message_id: Some(format!("{number}@mycompany.test")),
            sender: Some(format!("Anna{number}@mycompany.test")),
            recipient: Some("m@severamail.test".to_owned()),
            others: vec![format!("kim{number}@customer.test")],
            ..Record::default()
        }
        .tidy()
    }

    fn count(settings: &Settings, table: &str) -> u64 {
        let database = Connection::open(&settings.path).unwrap();
        let count: i64 =
            database.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap();
        count.try_into().unwrap()
    }

    fn found(settings: &Settings, words: &str) -> usize {
        let query = search::Query { term: Term::read(words).unwrap(), since: None, until: None };
        search::search(&settings.path, &query).unwrap().mails.len()
    }

    /// T4: by number.
    #[test]
    fn rows_go_when_they_are_too_many_the_oldest_first_with_their_addresses() {
        let (_scratch, mut settings) = scratch();
        settings.most_rows = 3000;
        let mut store = Store::open(&settings, true).unwrap();
        let batch = |from: u64| (from..from + 1000).map(|n| record(n, now())).collect::<Vec<_>>();
        for from in [0, 1000, 2000] {
            assert!(!store.write(&batch(from), 0, moment(now())).unwrap());
        }
        assert_eq!(
            (count(&settings, "event"), found(&settings, "anna0@mycompany.test")),
            (3000, 1),
            "at the limit nothing goes"
        );
        store.write(&[record(3000, now())], 0, moment(now())).unwrap();
        assert_eq!((count(&settings, "event"), count(&settings, "address")), (3000, 9000));
        assert_eq!(
            (found(&settings, "anna0@mycompany.test"), found(&settings, "anna1@mycompany.test")),
            (0, 1)
        );
        // A limit that was made smaller is reached in slices.
        settings.most_rows = 10;
        let mut store = Store::open(&settings, true).unwrap();
        assert!(store.write(&[], 0, moment(now())).unwrap(), "there is more to do");
        assert_eq!(count(&settings, "event"), 2000);
        while store.write(&[], 0, moment(now())).unwrap() {}
        assert_eq!((count(&settings, "event"), count(&settings, "address")), (10, 30));
        assert_eq!(found(&settings, "anna3000@mycompany.test"), 1);
    }

    /// T4: by age.
    #[test]
    fn rows_go_when_they_are_old_or_of_a_clock_that_was_ahead() {
        let (_scratch, settings) = scratch();
        let mut store = Store::open(&settings, true).unwrap();
        let times = [now() + 400 * DAY, now() - 8 * DAY, now() - 7 * DAY, now() - 6 * DAY, now()];
        let records: Vec<_> = (0..).zip(times).map(|(n, at)| record(n, at)).collect();
        store.write(&records, 4, moment(now())).unwrap();
        // To the millisecond seven days old is not too old.
        let there = |store: &mut Store, at| {
            store.write(&[], 0, moment(at)).unwrap();
            (0..5).filter(|n| found(&settings, &format!("{n:010X}")) == 1).collect::<Vec<_>>()
        };
        assert_eq!(there(&mut store, now()), [2, 3, 4]);
        assert_eq!(there(&mut store, now() + Duration::from_millis(1)), [3, 4]);
        assert_eq!(search::look_at(&settings.path).unwrap().lost, 4);
        assert_eq!(there(&mut store, now() + 8 * DAY), [0; 0]);
        assert_eq!(
            (count(&settings, "event"), count(&settings, "address"), count(&settings, "loss")),
            (0, 0, 0)
        );
    }

    /// A clock that is wrong for an hour takes no week of rows with it, ahead or behind.
    #[test]
    fn a_clock_that_leaps_takes_no_row_with_it() {
        let (_scratch, settings) = scratch();
        let mut store = Store::open(&settings, true).unwrap();
        let minute = Duration::from_secs(60);
        let write = |store: &mut Store, wall, passed: Duration| {
            let steady = moment(now()).steady + passed;
            store.write(&[], 0, Moment { wall, steady }).unwrap();
            count(&settings, "event")
        };
        store.write(&[record(1, now() - 6 * DAY), record(2, now())], 0, moment(now())).unwrap();
        for wrong in [now() + 400 * DAY, now() - 400 * DAY, SystemTime::UNIX_EPOCH] {
            assert_eq!(write(&mut store, wrong, minute), 2, "{wrong:?}");
            assert_eq!(write(&mut store, wrong + DAY - minute, DAY), 2, "{wrong:?}");
            assert_eq!(write(&mut store, now() + DAY - minute, DAY - minute), 2, "it is set right");
            // So is one that is wrong at the start.
            store = Store::open(&settings, true).unwrap();
            assert_eq!(write(&mut store, wrong, minute), 2, "{wrong:?}");
            store = Store::open(&settings, true).unwrap();
        }
        // After a day it is the time; also after a week in which nobody ran.
        let later = now() + 8 * DAY;
        assert_eq!(write(&mut store, later, 2 * minute), 2);
        assert_eq!(write(&mut store, later + DAY, DAY + 2 * minute), 0);
    }

    #[test]
    fn the_disk_gets_back_what_a_shorter_time_no_longer_needs() {
        let (_scratch, mut settings) = scratch();
        let mut store = Store::open(&settings, true).unwrap();
        for from in 0..20 {
            let batch: Vec<_> = (from * 1000..from * 1000 + 1000).map(|n| record(n, now())).collect();
            store.write(&batch, 0, moment(now())).unwrap();
        }
        let pages = |store: &Store| {
            store.database.pragma_query_value(None, "page_count", |row| row.get::<_, i64>(0)).unwrap()
        };
        let before = pages(&store);
        settings.keep = Some(DAY);
        let mut store = Store::open(&settings, true).unwrap();
        while store.write(&[], 0, moment(now() + 2 * DAY)).unwrap() {}
        assert!(pages(&store) < before / 2, "{before} {}", pages(&store));
    }

    #[test]
    fn what_is_no_trace_or_newer_is_left_alone() {
        let (_scratch, settings) = scratch();
        let mut store = Store::open(&settings, true).unwrap();
        store.write(&[record(1, now())], 0, moment(now())).unwrap();
        store.database.pragma_update(None, "user_version", VERSION + 1).unwrap();
        drop(store);
        let refused = Store::open(&settings, true).err().unwrap();
        assert!(matches!(refused, Trouble::Newer(found) if found == VERSION + 1), "{refused}");
        assert!(refused.to_string().contains("install the newer"), "{refused}");
        let error = search::look_at(&settings.path).unwrap_err().to_string();
        assert!(error.contains("has schema 2, and this version knows 1: use the newer"), "{error}");
        assert_eq!(count(&settings, "event"), 1);
        let foreign = Connection::open(&settings.path).unwrap();
        foreign.execute_batch("PRAGMA user_version = 0; PRAGMA application_id = 0").unwrap();
        drop(foreign);
        assert!(matches!(Store::open(&settings, true), Err(Trouble::Foreign)));
        let error = search::look_at(&settings.path).unwrap_err().to_string();
        assert!(error.ends_with("is no trace: set another trace.path"), "{error}");
        assert_eq!(count(&settings, "event"), 1);
        // Nor is anybody's text.
        for text in ["backend.url = \"x\"", "s", "SQLite format 2, a letter about it"] {
            fs::write(&settings.path, text).unwrap();
            assert!(matches!(Store::open(&settings, true), Err(Trouble::Foreign)));
            let error = search::look_at(&settings.path).unwrap_err().to_string();
            assert!(error.ends_with("is no trace: set another trace.path"), "{error}");
            assert_eq!(fs::read_to_string(&settings.path).unwrap(), text);
        }
        // What is not there is made only by who may.
        let missing = Settings::new(settings.path.with_file_name("other.db"));
        assert!(Store::open(&missing, false).is_err() && !missing.path.exists());
        assert!(matches!(search::look_at(&missing.path), Err(search::SearchError::Missing(_))));
    }

    #[test]
    fn nothing_is_written_where_the_queue_needs_the_disk() {
        let (_scratch, mut settings) = scratch();
        settings.min_free = u64::MAX / 2;
        let mut store = Store::open(&settings, true).unwrap();
        let refused = store.write(&[record(1, now())], 0, moment(now())).unwrap_err().to_string();
        assert!(
            refused.contains("are free on its disk, and the trace leaves")
                && refused.contains("free some space"),
            "{refused}"
        );
        assert_eq!(count(&settings, "event"), 0);
    }

    /// What is old goes all the same: it may not stay for want of room, and makes some.
    #[test]
    fn what_is_old_goes_also_where_nothing_can_be_written() {
        let (_scratch, mut settings) = scratch();
        let mut store = Store::open(&settings, true).unwrap();
        for from in 0..5 {
            let batch: Vec<_> = (from * 1000..from * 1000 + 1000).map(|n| record(n, now())).collect();
            store.write(&batch, 0, moment(now())).unwrap();
        }
        let size = |store: &Store| -> i64 {
            store.database.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap()
        };
        let before = size(&store);
        settings.min_free = u64::MAX / 2;
        let mut store = Store::open(&settings, true).unwrap();
        let later = now() + 8 * DAY;
        assert!(matches!(store.write(&[record(9000, later)], 0, moment(later)), Err(Trouble::Low(..))));
        assert_eq!((count(&settings, "event"), count(&settings, "address")), (0, 0));
        assert!(size(&store) < before, "{} {before}", size(&store));
    }

    /// SQLite's word for a full disk, by its own limit: nothing of the batch is there, and the next one is written.
    #[test]
    fn a_full_disk_leaves_the_file_whole() {
        let (_scratch, settings) = scratch();
        let mut store = Store::open(&settings, true).unwrap();
        store.write(&[record(1, now())], 0, moment(now())).unwrap();
        let pages: i64 = store.database.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        store.database.pragma_update(None, "max_page_count", pages + 3).unwrap();
        let batch: Vec<_> = (2..500).map(|n| record(n, now())).collect();
        let error = store.write(&batch, 0, moment(now())).unwrap_err();
        assert!(matches!(error, Trouble::Other(_)) && error.to_string().contains("full"), "{error}");
        assert_eq!(count(&settings, "event"), 1);
        store.database.pragma_update(None, "max_page_count", 1 << 30).unwrap();
        store.write(&batch, 0, moment(now())).unwrap();
        assert_eq!(count(&settings, "event"), 499);
    }

    /// T6.
    #[test]
    fn the_file_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let (_scratch, settings) = scratch();
        drop(Store::open(&settings, true).unwrap());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&settings.path), mode(settings.path.parent().unwrap())), (0o600, 0o700));
    }

    #[test]
    fn an_address_is_found_in_each_of_its_spellings() {
        let (_scratch, settings) = scratch();
        let mut store = Store::open(&settings, true).unwrap();
        let of =
            |sender: &str| Record { at: Some(now()), sender: Some(sender.to_owned()), ..Record::default() };
        store
            .write(&[of("Åsa@xn--rksmrgs-5wao1o.test"), of("...@mycompany.test")], 0, moment(now()))
            .unwrap();
        for words in ["åsa@räksmörgås.test", "A\u{30a}sa@RÄKSMÖRGÅS.test", "<åsa@xn--rksmrgs-5wao1o.test>"]
        {
            assert_eq!(found(&settings, words), 1, "{words}");
        }
        assert_eq!(count(&settings, "address"), 1);
        store.write(&[], 0, moment(now() + 8 * DAY)).unwrap();
        assert_eq!(count(&settings, "address"), 0);
    }

    /// Many mails of one address: the newest, each with all that belongs to it, and that there are more.
    #[test]
    fn the_newest_mails_of_an_address_are_shown_whole() {
        let (_scratch, settings) = scratch();
        let mut store = Store::open(&settings, true).unwrap();
        let recorded: Vec<_> = (0..80).map(|n| record(n, now())).collect();
        let delivered = recorded.iter().map(|record| Record {
            key: record.key.clone(),
            at: record.at,
            ..Record::default()
        });
        let delivered: Vec<_> = delivered.collect();
        store.write(&[recorded, delivered].concat(), 0, moment(now())).unwrap();
        let search = |words: &str| {
            let query = search::Query { term: Term::read(words).unwrap(), since: None, until: None };
            search::search(&settings.path, &query).unwrap()
        };
        let all = search("m@severamail.test");
        assert!(all.mails.len() == 50 && all.more && all.mails.iter().all(|mail| mail.events.len() == 2));
        let newest = |at: usize| all.mails[at].all(|event| event.queue_id.as_deref())[0].to_owned();
        assert_eq!([newest(0), newest(49)], [format!("{:010X}", 79), format!("{:010X}", 30)]);
        let one = search("anna7@mycompany.test");
        assert!(one.mails.len() == 1 && !one.more && one.mails[0].events.len() == 2);
    }

    /// The newest of an address may be none of those that are asked for: what is older is found too, page by page.
    #[test]
    fn older_mails_of_an_address_are_found_by_when_they_came() {
        let (_scratch, settings) = scratch();
        let mut store = Store::open(&settings, true).unwrap();
        let second = Duration::from_secs(1);
        let at = |n: u64| now() + u32::try_from(n).unwrap() * second;
        let batch: Vec<_> = (0..120).map(|n| record(n, at(n))).collect();
        store.write(&batch, 0, moment(at(120))).unwrap();
        let (mut until, mut seen) = (None, Vec::new());
        loop {
            let term = Term::read("m@severamail.test").unwrap();
            let found = search::search(&settings.path, &search::Query { term, since: None, until }).unwrap();
            seen.extend(found.mails.iter().map(|mail| mail.events[0].queue_id.clone().unwrap()));
            assert_eq!(found.older.is_some(), found.more);
            let Some(older) = found.older else { break };
            until = Some(older);
        }
        assert_eq!(seen, (0..120).rev().map(|n| format!("{n:010X}")).collect::<Vec<_>>());
        for (until, newest) in
            [(now() - second, None), (at(0), Some(0)), (at(7) + second / 2, Some(7)), (at(500), Some(119))]
        {
            let query = search::Query {
                term: Term::read("m@severamail.test").unwrap(),
                since: None,
                until: Some(until),
            };
            let found = search::search(&settings.path, &query).unwrap();
            let id = found.mails.first().map(|mail| mail.events[0].queue_id.clone().unwrap());
            assert_eq!(id, newest.map(|n: u64| format!("{n:010X}")), "{until:?}");
        }
    }

    /// What happened to a mail since then may be a delivery, which has no queue id of its own.
    #[test]
    fn a_mail_is_found_by_what_happened_to_it_last() {
        let (_scratch, settings) = scratch();
        let mut store = Store::open(&settings, true).unwrap();
        let hour = Duration::from_secs(3600);
        let delivered = Record { key: record(1, now()).key, at: Some(now() + 5 * hour), ..Record::default() };
        store.write(&[record(1, now()), delivered], 0, moment(now() + 5 * hour)).unwrap();
        for (since, is_found) in [(now() + 4 * hour, true), (now() + 6 * hour, false)] {
            for words in ["0000000001", "anna1@mycompany.test"] {
                let query =
                    search::Query { term: Term::read(words).unwrap(), since: Some(since), until: None };
                assert_eq!(
                    search::search(&settings.path, &query).unwrap().mails.len() == 1,
                    is_found,
                    "{words}"
                );
            }
        }
    }

    /// Ten milliseconds among a million rows: no table is read through and nothing is sorted, but by a key's range.
    /// T5.
    #[test]
    fn indexes_answer_each_way_of_asking() {
        let (_scratch, settings) = scratch();
        let store = Store::open(&settings, true).unwrap();
        for (asked, plan) in search::plans::all(&store.database) {
            // The list of a question is read through, and no table.
            let scans = plan.replace("SCAN json_each VIRTUAL TABLE", "");
            assert!(plan.contains("SEARCH") && !scans.contains("SCAN"), "{asked}: {plan}");
            assert!(!plan.contains("rowid<"), "{asked}: all rows before one are read: {plan}");
            let may_sort = ["BETWEEN", " IN "].iter().any(|word| asked.contains(word));
            assert!(!plan.contains("TEMP B-TREE") || may_sort, "{asked}: {plan}");
        }
    }

    /// `cargo test --release --lib trace -- --ignored --nocapture million`
    #[test]
    #[ignore = "takes its time: it measures"]
    fn a_million_rows() {
        let (_scratch, settings) = scratch();
        let mut store = Store::open(&settings, true).unwrap();
        let (mut inserted, began) = (0, std::time::Instant::now());
        for from in 0..1000 {
            let batch: Vec<_> = (from * 1000..from * 1000 + 1000).map(|n| record(n, now())).collect();
            store.write(&batch, 0, moment(now())).unwrap();
            inserted += batch.len();
        }
        let took = began.elapsed();
        let size = fs::metadata(&settings.path).unwrap().len() >> 20;
        println!("{inserted} rows in {took:?}, {size} MiB");
        let key = record(500_000, now()).key.unwrap();
        for words in [
            "000007A120",
            &key,
            &key[..11],
            "500000@mycompany.test",
            "anna500000@mycompany.test",
            "m@severamail.test",
        ] {
            let began = std::time::Instant::now();
            let found = found(&settings, words);
            println!("{words}: {found} in {:?}", began.elapsed());
        }
        let began = std::time::Instant::now();
        store.write(&[], 0, moment(now() + 8 * DAY)).unwrap();
        println!("a slice of old rows in {:?}", began.elapsed());
    }
}
