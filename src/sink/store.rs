//! What the sink has received: one SQLite file, one directory of files for each activity.

use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Value, json};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The store; one connection, used by one request at a time.
pub(super) struct Store {
    database: Mutex<Connection>,
    data: PathBuf,
}

/// A stored activity.
#[derive(Debug)]
pub(super) struct Stored {
    /// The JSON as received.
    pub(super) text: String,
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

impl Stored {
    /// The activity as received, with `verified: true` on each file: its SHA-256 was checked when it came.
    pub(super) fn into_json(self) -> Value {
        let mut activity: Value = serde_json::from_str(&self.text).unwrap_or_default();
        for file in activity.get_mut("files").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(file) = file.as_object_mut() {
                file.insert("verified".to_owned(), json!(true));
            }
        }
        activity
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
        Ok(Self { database: Mutex::new(database), data: data.to_owned() })
    }

    fn database(&self) -> MutexGuard<'_, Connection> {
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
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

    pub(super) fn get(&self, key: &str) -> io::Result<Option<Stored>> {
        let find = |database: &Connection| {
            database
                .query_row("SELECT text FROM activity WHERE key = ?1", [key], |row| {
                    Ok(Stored { text: row.get(0)? })
                })
                .optional()
        };
        find(&self.database()).map_err(io::Error::other)
    }

    /// The newest activities, newest last.
    pub(super) fn newest(&self, limit: usize) -> io::Result<Vec<Stored>> {
        let read = |database: &Connection| {
            database
                .prepare(
                    "SELECT text FROM (SELECT number, text FROM activity ORDER BY number DESC LIMIT ?1) ORDER BY number",
                )?
                .query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| Ok(Stored { text: row.get(0)? }))?
                .collect::<rusqlite::Result<Vec<_>>>()
        };
        read(&self.database()).map_err(io::Error::other)
    }
}
