//! What the sink has received: one SQLite file, one directory of files for each activity.
//!
//! Promise: who looks holds in memory a page at most, however much there is, and has a connection of its own, so that no
//! request that is stored waits for it.

use rusqlite::{Connection, OptionalExtension, Rows, params};
use serde_json::{Value, json};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Activities of a page.
const PAGE: usize = 1000;

/// Bytes of JSON of a page; one activity may have more.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// The store; a connection is used by one request at a time.
pub(super) struct Store {
    database: Mutex<Connection>,
    /// For looks at many.
    looks: Mutex<Connection>,
    data: PathBuf,
}

/// Which activities, always oldest first.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which {
    /// Those after this number.
    After(i64),
    /// So many, the newest.
    Newest(u64),
}

/// As many as were asked for and as a page holds.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Their JSON as received.
    pub(super) texts: Vec<String>,
    /// The number of the last one, if there are more after it.
    pub(super) more_after: Option<i64>,
}

/// An activity whose files are arriving. Dropped without a commit, it leaves nothing.
pub(super) struct Incoming {
    key: String,
    directory: PathBuf,
    committed: bool,
}

impl Incoming {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// The JSON of an activity as received, with `verified: true` on each file: its SHA-256 was checked when it came.
pub(super) fn verified(text: &str) -> String {
    let mut activity: Value = serde_json::from_str(text).unwrap_or_default();
    for file in activity.get_mut("files").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(file) = file.as_object_mut() {
            file.insert("verified".to_owned(), json!(true));
        }
    }
    activity.to_string()
}

impl Page {
    /// Takes rows of a number and a text until the page is full; whether some were left.
    fn take(&mut self, mut rows: Rows<'_>, numbers: &mut Vec<i64>) -> rusqlite::Result<bool> {
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            let text = row.get_ref(1)?.as_str()?;
            bytes += text.len();
            if self.texts.len() == PAGE || (bytes > PAGE_BYTES && !self.texts.is_empty()) {
                return Ok(true);
            }
            self.texts.push(text.to_owned());
            numbers.push(row.get(0)?);
        }
        Ok(false)
    }
}

impl Store {
    pub(super) fn open(data: &Path) -> io::Result<Self> {
        fs::create_dir_all(data.join("files"))?;
        let database = Connection::open(data.join("sink.db")).map_err(io::Error::other)?;
        database
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
                 CREATE TABLE IF NOT EXISTS activity (
                     number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, text TEXT NOT NULL);",
            )
            .map_err(io::Error::other)?;
        let looks = Connection::open(data.join("sink.db")).map_err(io::Error::other)?;
        Ok(Self { database: Mutex::new(database), looks: Mutex::new(looks), data: data.to_owned() })
    }

    fn database(&self) -> MutexGuard<'_, Connection> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn looks(&self) -> MutexGuard<'_, Connection> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number an activity was given, if it is here.
    pub(super) fn number(&self, key: &str) -> io::Result<Option<i64>> {
        let find = |database: &Connection| {
            database
                .prepare_cached("SELECT number FROM activity WHERE key = ?1")?
                .query_row([key], |row| row.get(0))
                .optional()
        };
        find(&self.database()).map_err(io::Error::other)
    }

    /// Makes room for the files of a new activity; leftovers of an attempt that broke off are removed.
    pub(super) fn begin(&self, key: &str) -> io::Result<Incoming> {
        // A key is a stranger's text, so its digest is the directory's name.
        let directory = self.data.join("files").join(blake3::hash(key.as_bytes()).to_hex().as_str());
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir(&directory)?;
        Ok(Incoming { key: key.to_owned(), directory, committed: false })
    }

    /// Stores an activity whose files are complete; the answer is its number.
    pub(super) fn commit(&self, mut incoming: Incoming, text: &[u8]) -> io::Result<i64> {
        let text = std::str::from_utf8(text).map_err(io::Error::other)?;
        let database = self.database();
        database
            .execute("INSERT INTO activity (key, text) VALUES (?1, ?2)", params![incoming.key, text])
            .map_err(io::Error::other)?;
        incoming.committed = true;
        // Most activities have no files.
        let _ = fs::remove_dir(&incoming.directory);
        Ok(database.last_insert_rowid())
    }

    /// The JSON of an activity as received.
    pub(super) fn get(&self, key: &str) -> io::Result<Option<String>> {
        let find = |database: &Connection| {
            database.query_row("SELECT text FROM activity WHERE key = ?1", [key], |row| row.get(0)).optional()
        };
        find(&self.looks()).map_err(io::Error::other)
    }

    /// The same by its number.
    pub(super) fn text(&self, number: i64) -> io::Result<Option<String>> {
        let find = |database: &Connection| {
            database
                .query_row("SELECT text FROM activity WHERE number = ?1", [number], |row| row.get(0))
                .optional()
        };
        find(&self.looks()).map_err(io::Error::other)
    }

    /// The numbers of the newest activities, newest first.
    pub(super) fn newest(&self, limit: usize) -> io::Result<Vec<i64>> {
        let read = |database: &Connection| {
            database
                .prepare_cached("SELECT number FROM activity ORDER BY number DESC LIMIT ?1")?
                .query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| row.get(0))?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        read(&self.looks()).map_err(io::Error::other)
    }

    /// A page of activities.
    pub(super) fn page(&self, which: Which) -> io::Result<Page> {
        let read = |database: &Connection| {
            let (mut page, mut numbers) = (Page::default(), Vec::new());
            match which {
                Which::After(after) => {
                    let mut rows = database.prepare_cached(
                        "SELECT number, text FROM activity WHERE number > ?1 ORDER BY number",
                    )?;
                    let more = page.take(rows.query([after])?, &mut numbers)?;
                    page.more_after = numbers.last().copied().filter(|_| more);
                }
                Which::Newest(limit) => {
                    let mut rows = database
                        .prepare_cached("SELECT number, text FROM activity ORDER BY number DESC LIMIT ?1")?;
                    page.take(rows.query([i64::try_from(limit).unwrap_or(i64::MAX)])?, &mut numbers)?;
                    page.texts.reverse();
                }
            }
            Ok(page)
        };
        read(&self.looks()).map_err(|error: rusqlite::Error| io::Error::other(error))
    }
}
