//! The copies of all companies in one SQLite file.
//!
//! In: rows that changed, a transaction for each page. Out: what there was at the end of the process before.
//! Promise: a company's rows are those of its prefix, its API and its client id, never another company's; a transaction
//! is whole or not there; the file is private. A file that is damaged, or of another version, is only a copy: it is put
//! aside and made anew. Who only reads makes and changes nothing.
//! Fails: [`CopyError`] for a file that cannot be opened, or is another program's; what cannot be written is the
//! caller's to write later.

use super::{
    clock::Past,
    copied::{Change, ContactRow, Copied, ProjectRow, UserRow},
};
use crate::observe::events;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, params};
use std::{
    fs,
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Tells a copy from other programs' databases ("amSv").
const APPLICATION: i64 = 0x616d_5376;

/// The version this program writes, in `user_version`.
const VERSION: i64 = 1;

/// How long a write waits for another program that has the file.
const BUSY: Duration = Duration::from_secs(2);

/// `seen`: the full pass that saw the row last. `addresses`: a JSON list. `since`: from when on changes are asked for, by
/// the API's clock; `good_at`, `pass_at`: the last good poll and the last full pass, by ours. All in milliseconds.
const TABLES: &str = "
    CREATE TABLE company (
        id        INTEGER PRIMARY KEY AUTOINCREMENT,
        prefix    TEXT NOT NULL,
        url       TEXT NOT NULL,
        client_id TEXT NOT NULL,
        pass      INTEGER NOT NULL DEFAULT 0,
        pass_at   INTEGER,
        good_at   INTEGER,
        since     INTEGER,
        UNIQUE (prefix, url, client_id)
    );
    CREATE TABLE user (
        company INTEGER NOT NULL, guid TEXT NOT NULL, address TEXT, name TEXT, seen INTEGER NOT NULL,
        PRIMARY KEY (company, guid)
    ) WITHOUT ROWID;
    CREATE TABLE contact (
        company INTEGER NOT NULL, guid TEXT NOT NULL, customer TEXT NOT NULL, name TEXT, addresses TEXT NOT NULL,
        seen INTEGER NOT NULL, PRIMARY KEY (company, guid)
    ) WITHOUT ROWID;
    CREATE TABLE project (
        company INTEGER NOT NULL, guid TEXT NOT NULL, number INTEGER NOT NULL, customer TEXT, seen INTEGER NOT NULL,
        PRIMARY KEY (company, guid)
    ) WITHOUT ROWID;
";

const ROWS: [&str; 3] = ["user", "contact", "project"];

/// Whose copy it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) prefix: String,
    pub(super) url: String,
    pub(super) client_id: String,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Standing {
    /// Full passes that were completed.
    pub(super) pass: i64,
    pub(super) passed: Option<Past>,
    pub(super) good: Option<Past>,
    pub(super) since: Option<i64>,
}

const NO_FILE: &str = "it is no regular file";

/// Why there is no place for copies.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The file cannot be opened.
    #[error("{path}: the copy of Severa cannot be opened: {message}", path = path.display())]
    Unusable {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        message: String,
    },
    /// Another program's database: it is not ours to put aside.
    #[error("{path} is no copy of Severa: give directory.path a file of its own", path = path.display())]
    Foreign {
        /// Its path.
        path: PathBuf,
    },
}

impl CopyError {
    fn new(path: &Path, error: &dyn std::fmt::Display) -> Self {
        Self::Unusable { path: path.to_owned(), message: error.to_string() }
    }
}

/// What is at the path.
enum Opened {
    Good(Connection),
    /// Nothing, or nothing yet.
    Empty(Connection),
    /// It is to be made anew; why.
    Useless(String),
}

/// The file.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    /// None while it cannot be opened.
    database: Mutex<Option<Connection>>,
    /// A company could not be read, and nothing was written since.
    is_busy: AtomicBool,
}

impl Store {
    /// Opens or makes the file.
    pub(super) fn open(path: &Path) -> Result<Arc<Self>, CopyError> {
        let database = match make(path) {
            Ok(database) => Some(database),
            // Copies are kept in memory meanwhile.
            Err(Trouble::Disk(error)) => {
                events::severa_unkept(path, &error);
                None
            }
            Err(Trouble::Copy(error)) => return Err(error),
        };
        let is_busy = AtomicBool::new(database.is_none());
        Ok(Arc::new(Self { path: path.to_owned(), database: Mutex::new(database), is_busy }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes companies that are not among these, with all their rows.
    pub(super) fn keep_only(&self, keys: &[Key]) {
        if self.is_busy.load(Ordering::Relaxed) {
            return;
        }
        let removed = self.write(|transaction| {
            let ids: Vec<i64> = companies(transaction)?
                .into_iter()
                .filter_map(|(id, key)| (!keys.contains(&key)).then_some(id))
                .collect();
            for id in ids {
                empty(transaction, id)?;
                transaction.execute("DELETE FROM company WHERE id = ?1", [id])?;
            }
            Ok(())
        });
        if let Err(error) = removed {
            events::severa_unkept(&self.path, &error);
        }
    }

    /// What is kept of a company, which has a place in the file from now on; none if that cannot be read.
    pub(super) fn load(&self, key: &Key) -> Option<(Standing, Copied)> {
        // Whoever has the file may have it for long: the next company does not wait again, and a start is no wait.
        if self.is_busy.load(Ordering::Relaxed) {
            return None;
        }
        let loaded = self.write(|transaction| {
            let id = place(transaction, key)?;
            load(transaction, id)
        });
        match loaded {
            Ok(loaded) => Some(loaded),
            Err(error) => {
                events::severa_unkept(&self.path, &error);
                self.is_busy.store(true, Ordering::Relaxed);
                None
            }
        }
    }

    /// Writes rows of a company.
    pub(super) fn rows(&self, key: &Key, rows: &[Change], seen: i64) -> rusqlite::Result<()> {
        self.write(|transaction| {
            let id = id_of(transaction, key)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            rows.iter().try_for_each(|row| put(transaction, id, row, seen))
        })
    }

    /// Writes how far a company's copy is, and forgets rows that no full pass has seen since `forget`.
    pub(super) fn standing(
        &self,
        key: &Key,
        standing: &Standing,
        forget: Option<i64>,
    ) -> rusqlite::Result<()> {
        self.write(|transaction| {
            let id = id_of(transaction, key)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            for table in ROWS.into_iter().filter(|_| forget.is_some()) {
                let delete = format!("DELETE FROM {table} WHERE company = ?1 AND seen <= ?2");
                transaction.execute(&delete, params![id, forget])?;
            }
            stand(transaction, id, standing)
        })
    }

    /// Writes all of a company.
    pub(super) fn whole(&self, key: &Key, standing: &Standing, copied: &Copied) -> rusqlite::Result<()> {
        self.write(|transaction| {
            let id = place(transaction, key)?;
            empty(transaction, id)?;
            for (guid, user) in &copied.users {
                put(transaction, id, &Change::User(Arc::clone(guid), user.row.clone()), user.pass)?;
            }
            for (guid, contact) in &copied.contacts {
                put(transaction, id, &Change::Contact(Arc::clone(guid), contact.row.clone()), contact.pass)?;
            }
            for (guid, project) in &copied.projects {
                put(transaction, id, &Change::Project(Arc::clone(guid), project.row.clone()), project.pass)?;
            }
            stand(transaction, id, standing)
        })
    }

    /// One transaction. A file that turns out to be damaged is put aside, and the next transaction makes another.
    fn write<T>(&self, act: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let mut slot = self.slot();
        let database = match slot.take() {
            Some(database) => slot.insert(database),
            None => slot.insert(make(&self.path).map_err(|trouble| match trouble {
                Trouble::Disk(error) => error,
                Trouble::Copy(error) => rusqlite::Error::ToSqlConversionFailure(Box::new(error)),
            })?),
        };
        let transaction = database.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate);
        let written = transaction.and_then(|transaction| {
            let done = act(&transaction)?;
            transaction.commit()?;
            self.is_busy.store(false, Ordering::Relaxed);
            Ok(done)
        });
        if let Err(error) = &written
            && is_damage(error)
        {
            *slot = None;
            let _ = put_aside(&self.path, &error.to_string()); // if it cannot be, the next write says so
        }
        written
    }

    fn slot(&self) -> MutexGuard<'_, Option<Connection>> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a reader finds of companies, each with its place among the keys; none of the file if there is no copy yet.
pub(super) fn look(path: &Path, keys: &[Key]) -> Result<Vec<(Standing, Copied)>, CopyError> {
    let nothing = || keys.iter().map(|_| Default::default()).collect();
    let beside = |end: &str| PathBuf::from(format!("{}{end}", path.display()));
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(nothing()),
        Err(error) => return Err(CopyError::new(path, &error)),
        Ok(meta) if !meta.is_file() => return Err(CopyError::new(path, &NO_FILE)),
        Ok(meta) if meta.len() == 0 && !beside("-wal").exists() => return Ok(nothing()),
        Ok(_) => {}
    }
    // Without a log nobody has it open, and SQLite would make one; a file that does not change needs none.
    let immutable = if beside("-wal").exists() { "" } else { "?immutable=1" };
    let uri = format!("file:{}{immutable}", escaped(path));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    // None: another program's.
    let read = || -> rusqlite::Result<Option<Vec<(Standing, Copied)>>> {
        let mut database = Connection::open_with_flags(&uri, flags)?;
        database.busy_timeout(BUSY)?;
        let transaction = database.transaction()?;
        match marks(&transaction)? {
            (APPLICATION, VERSION) => {}
            (APPLICATION, _) => return Ok(Some(nothing())), // the service makes it anew
            marks => return Ok((marks == (0, 0) && tables(&transaction)? == 0).then(nothing)),
        }
        let of = |key: &Key| match id_of(&transaction, key)? {
            None => Ok(Default::default()),
            Some(id) => load(&transaction, id),
        };
        keys.iter().map(of).collect::<rusqlite::Result<_>>().map(Some)
    };
    let foreign = || CopyError::Foreign { path: path.to_owned() };
    match read() {
        Err(error) if is_damage(&error) && is_text(path) => Err(foreign()),
        Err(error) if is_damage(&error) => Ok(nothing()), // as above
        read => read.map_err(|error| CopyError::new(path, &error))?.ok_or_else(foreign),
    }
}

/// A path in a `file:` URI.
fn escaped(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    let part = |byte: &u8| if plain(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") };
    path.as_os_str().as_bytes().iter().map(part).collect()
}

/// Why the file could not be made ready.
enum Trouble {
    /// The disk is full or fails, or another program has the file: that may pass.
    Disk(rusqlite::Error),
    Copy(CopyError),
}

fn make(path: &Path) -> Result<Connection, Trouble> {
    let io = |error: io::Error| Trouble::Copy(CopyError::new(path, &error));
    let sql = |error: rusqlite::Error| match error.sqlite_error_code() {
        Some(
            ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked,
        ) => Trouble::Disk(error),
        _ => Trouble::Copy(CopyError::new(path, &error)),
    };
    private(path).map_err(io)?;
    let database = match open(path).map_err(sql)? {
        Opened::Good(database) => return Ok(database),
        Opened::Empty(database) => database,
        Opened::Useless(why) if why.is_empty() => {
            return Err(Trouble::Copy(CopyError::Foreign { path: path.to_owned() }));
        }
        Opened::Useless(why) => {
            put_aside(path, &why).map_err(io)?;
            private(path).map_err(io)?;
            connect(path).map_err(sql)?
        }
    };
    let make = format!(
        "BEGIN IMMEDIATE; {TABLES} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; COMMIT;"
    );
    database.execute_batch(&make).map_err(sql)?;
    Ok(database)
}

/// What is at the path; useless without a reason is another program's.
fn open(path: &Path) -> rusqlite::Result<Opened> {
    let opened = || -> rusqlite::Result<Opened> {
        let database = connect(path)?;
        let (application, version) = marks(&database)?;
        if (application, version, tables(&database)?) == (0, 0, 0) {
            return Ok(Opened::Empty(database));
        }
        if application != APPLICATION {
            return Ok(Opened::Useless(String::new()));
        }
        if version != VERSION {
            return Ok(Opened::Useless(format!("it has version {version}, and this program has {VERSION}")));
        }
        let sound: String = database.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        let columns = "SELECT 1 FROM company, user, contact, project LIMIT 0";
        if sound != "ok" || database.prepare(columns).is_err() {
            return Ok(Opened::Useless(format!("it is damaged: {sound}")));
        }
        Ok(Opened::Good(database))
    };
    match opened() {
        // Somebody's text: a directory file whose path stayed when the type was changed.
        Err(error) if is_damage(&error) && is_text(path) => Ok(Opened::Useless(String::new())),
        Err(error) if is_damage(&error) => Ok(Opened::Useless(format!("it is damaged: {error}"))),
        opened => opened,
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    database.busy_timeout(BUSY)?;
    // NORMAL: a power cut may cost the newest pages, which the next poll brings again: it asks from the time written with
    // what is left.
    database.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = 8388608;",
    )?;
    Ok(database)
}

/// Whose database it is, and of which version.
fn tables(database: &Connection) -> rusqlite::Result<i64> {
    database.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
}

fn marks(database: &Connection) -> rusqlite::Result<(i64, i64)> {
    let pragma = |name: &str| database.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0));
    Ok((pragma("application_id")?, pragma("user_version")?))
}

/// True for a file that people read: letters, in lines.
fn is_text(path: &Path) -> bool {
    let mut start = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(4096).read_to_end(&mut start));
    let printable = |text: &str| text.chars().all(|c| !c.is_control() || c.is_whitespace());
    // Cut in the midst of a letter it is text all the same.
    let is = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => printable(text),
        Err(error) => error.error_len().is_none() && bytes.len() > 8,
    };
    read.is_ok() && start.contains(&b'\n') && is(&start)
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Makes the file, if it is not there, and makes it private: SQLite gives its others the same mode.
fn private(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let file = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other(NO_FILE));
    }
    if meta.permissions().mode() & 0o077 != 0 {
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

/// Renames the file, with what SQLite has beside it; the one that was put aside before is gone then.
fn put_aside(path: &Path, why: &str) -> io::Result<()> {
    let aside = PathBuf::from(format!("{}.aside", path.display()));
    fs::rename(path, &aside)?;
    for end in ["-wal", "-shm"] {
        let (from, to) = (format!("{}{end}", path.display()), format!("{}{end}", aside.display()));
        match fs::rename(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => drop(fs::remove_file(&to)),
            renamed => renamed?,
        }
    }
    events::severa_copy_aside(path, &aside, why);
    Ok(())
}

fn companies(database: &Connection) -> rusqlite::Result<Vec<(i64, Key)>> {
    let mut rows = database.prepare("SELECT id, prefix, url, client_id FROM company")?;
    let key = |row: &rusqlite::Row<'_>| {
        Ok((row.get(0)?, Key { prefix: row.get(1)?, url: row.get(2)?, client_id: row.get(3)? }))
    };
    rows.query_map([], key)?.collect()
}

fn id_of(database: &Connection, key: &Key) -> rusqlite::Result<Option<i64>> {
    let query = "SELECT id FROM company WHERE prefix = ?1 AND url = ?2 AND client_id = ?3";
    database
        .prepare_cached(query)?
        .query_row([&key.prefix, &key.url, &key.client_id], |row| row.get(0))
        .optional()
}

/// A company's id; it gets one if it has none.
fn place(database: &Connection, key: &Key) -> rusqlite::Result<i64> {
    if let Some(id) = id_of(database, key)? {
        return Ok(id);
    }
    let insert = "INSERT INTO company (prefix, url, client_id) VALUES (?1, ?2, ?3)";
    database.execute(insert, [&key.prefix, &key.url, &key.client_id])?;
    Ok(database.last_insert_rowid())
}

fn empty(database: &Connection, id: i64) -> rusqlite::Result<()> {
    for table in ROWS {
        database.execute(&format!("DELETE FROM {table} WHERE company = ?1"), [id])?;
    }
    Ok(())
}

fn stand(database: &Connection, id: i64, standing: &Standing) -> rusqlite::Result<()> {
    let Standing { pass, passed, good, since } = standing;
    let update = "UPDATE company SET pass = ?2, pass_at = ?3, good_at = ?4, since = ?5 WHERE id = ?1";
    let written = |past: &Option<Past>| past.map(Past::to_written);
    database.prepare_cached(update)?.execute(params![id, pass, written(passed), written(good), since])?;
    Ok(())
}

fn put(database: &Connection, id: i64, row: &Change, seen: i64) -> rusqlite::Result<()> {
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
        database.prepare_cached(sql).and_then(|mut sql| sql.execute(values)).map(drop)
    };
    match row {
        Change::User(guid, user) => run(
            "INSERT OR REPLACE INTO user (company, guid, address, name, seen) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![id, guid, user.address, user.name, seen],
        ),
        Change::Contact(guid, contact) => run(
            "INSERT OR REPLACE INTO contact (company, guid, customer, name, addresses, seen) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![id, guid, contact.customer, contact.name, list(&contact.addresses), seen],
        ),
        // The pass that saw the contact's own row stays.
        Change::Addresses(guid, addresses) => run(
            "UPDATE contact SET addresses = ?3 WHERE company = ?1 AND guid = ?2",
            params![id, guid, list(addresses)],
        ),
        Change::Project(guid, project) => run(
            "INSERT OR REPLACE INTO project (company, guid, number, customer, seen) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![id, guid, project.number, project.customer, seen],
        ),
        Change::NoUser(guid) => run("DELETE FROM user WHERE company = ?1 AND guid = ?2", params![id, guid]),
        Change::NoContact(guid) => {
            run("DELETE FROM contact WHERE company = ?1 AND guid = ?2", params![id, guid])
        }
        Change::NoProject(guid) => {
            run("DELETE FROM project WHERE company = ?1 AND guid = ?2", params![id, guid])
        }
    }
}

fn list(addresses: &std::collections::BTreeSet<String>) -> String {
    serde_json::to_string(addresses).unwrap_or_default()
}

/// All of a company.
fn load(database: &Connection, id: i64) -> rusqlite::Result<(Standing, Copied)> {
    let past = |time: Option<i64>| time.and_then(Past::written);
    let query = "SELECT pass, pass_at, good_at, since FROM company WHERE id = ?1";
    let standing = database.query_row(query, [id], |row| {
        let (passed, good) = (past(row.get(1)?), past(row.get(2)?));
        Ok(Standing { pass: row.get(0)?, passed, good, since: row.get(3)? })
    })?;
    let mut copied = Copied::default();
    let guid = |row: &rusqlite::Row<'_>| row.get::<_, Arc<str>>(0);
    let mut users = database.prepare("SELECT guid, address, name, seen FROM user WHERE company = ?1")?;
    let mut rows = users.query([id])?;
    while let Some(row) = rows.next()? {
        let user = UserRow { address: row.get(1)?, name: row.get(2)? };
        copied.change(Change::User(guid(row)?, user), row.get(3)?);
    }
    let mut contacts =
        database.prepare("SELECT guid, customer, name, addresses, seen FROM contact WHERE company = ?1")?;
    let mut rows = contacts.query([id])?;
    while let Some(row) = rows.next()? {
        let addresses = serde_json::from_str(&row.get::<_, String>(3)?).unwrap_or_default();
        let contact = ContactRow { customer: row.get(1)?, name: row.get(2)?, addresses };
        copied.change(Change::Contact(guid(row)?, contact), row.get(4)?);
    }
    let mut projects =
        database.prepare("SELECT guid, number, customer, seen FROM project WHERE company = ?1")?;
    let mut rows = projects.query([id])?;
    while let Some(row) = rows.next()? {
        let project = ProjectRow { number: row.get(1)?, customer: row.get(2)? };
        copied.change(Change::Project(guid(row)?, project), row.get(3)?);
    }
    Ok((standing, copied))
}
