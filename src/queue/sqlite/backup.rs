//! A copy of a queue while a service works with it, and what must hold of such a copy.
//!
//! In: the queue's settings, and a new directory. Out: a database and its files there, as they were at one moment.
//! Promise: all that was in the queue when the copy of its database began and still is when the copy ends is in the copy,
//! with its file. What was delivered or dropped meanwhile may be there too: its key is its own, so a second delivery is
//! none. The service waits for nothing.
//! Fails: a file that is not there although its row is, is named, and the rest is copied.
//!
//! The essay: a file is named before its row is committed, and removed after its row is gone. So the database is copied
//! first, in one look (`VACUUM INTO`, which leaves out what was deleted), and then the files that this copy names. One that
//! is gone by then belongs to a row that is gone from the queue too, and then it goes from the copy.

use super::{keys::Keys, open_error, row::key_of, schema, spool::Spool};
use crate::queue::{Backup, OpenError, Settings, Verified, make_directory};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The database's name in a copy.
const DATABASE: &str = "queue.db";

/// The folder for files in a copy.
const SPOOL: &str = "spool";

/// Problems of a kind that are named.
const NAMED: usize = 10;

/// Copies the queue of a service that may be running.
pub(super) fn copy(settings: &Settings, live: &Connection, to: &Path) -> Result<Backup, OpenError> {
    let place = to.join(DATABASE);
    let failed = |path: &Path, error: io::Error| OpenError::Copy { path: path.to_owned(), error };
    let wrong = |error: rusqlite::Error| failed(&place, io::Error::other(error.to_string()));
    make_directory(&to.join(SPOOL))?;
    create(&place).map_err(|error| failed(&place, error))?;
    let name = place.to_str().ok_or_else(|| failed(&place, io::Error::other("its name is no UTF-8")))?;
    live.execute("VACUUM INTO ?1", [name]).map_err(wrong)?;
    let mut database = Connection::open(&place).map_err(wrong)?;
    let folder = super::folder(&database).map_err(wrong)?;
    let (from, spool) = (Spool::new(&settings.spool, &folder), to.join(SPOOL).join(&folder));
    make_directory(&spool)?;
    let mut backup = Backup::default();
    let (mut gone, mut files) = (Vec::new(), vec![PathBuf::from(DATABASE)]);
    for number in named(&database).map_err(wrong)? {
        let name = format!("{number}.eml");
        match copy_file(&from.path(number), &spool.join(&name)) {
            Ok(()) => files.push(Path::new(SPOOL).join(&folder).join(name)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let is_there = is_there(live, number).map_err(|error| open_error(&settings.path, &error))?;
                if is_there { backup.lost.push(from.path(number)) } else { gone.push(number) }
            }
            Err(error) => return Err(failed(&spool.join(name), error)),
        }
    }
    forget(&mut database, &gone).map_err(wrong)?;
    (backup.activities, backup.kept) = counted(&database).map_err(wrong)?;
    database.close().map_err(|(_, error)| wrong(error))?;
    for path in [&place, &spool, &to.join(SPOOL), to] {
        File::open(path).and_then(|file| file.sync_all()).map_err(|error| failed(path, error))?;
    }
    Ok(Backup { files, ..backup })
}

fn create(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let mut from = File::open(from)?;
    let mut copy = create(to)?;
    io::copy(&mut from, &mut copy)?;
    copy.sync_all()
}

/// The numbers of files that rows name.
fn named(database: &Connection) -> rusqlite::Result<Vec<i64>> {
    let mut numbers = database.prepare(
        "SELECT id FROM item WHERE in_file UNION SELECT id FROM kept WHERE in_file
         UNION SELECT id FROM message WHERE in_file",
    )?;
    numbers.query_map([], |row| row.get(0))?.collect()
}

/// Whether the queue still has the row of a file.
fn is_there(live: &Connection, number: i64) -> rusqlite::Result<bool> {
    live.query_row(
        "SELECT EXISTS (SELECT 1 FROM item WHERE id = ?1) OR EXISTS (SELECT 1 FROM kept WHERE id = ?1)
             OR EXISTS (SELECT 1 FROM message WHERE id = ?1)",
        [number],
        |row| row.get(0),
    )
}

/// Takes rows out of the copy that went from the queue while their files were copied. Their keys are remembered.
fn forget(database: &mut Connection, gone: &[i64]) -> rusqlite::Result<()> {
    let transaction = database.transaction()?;
    transaction.execute("DELETE FROM lease", [])?;
    let keys = Keys::read(&transaction)?;
    for number in gone {
        let went = transaction
            .prepare_cached(
                "DELETE FROM item WHERE id = ?1 OR (message = ?1 AND message <> 0) RETURNING key, id",
            )?
            .query_map([number], |row| Ok((key_of(row.get_ref(0)?), row.get(1)?)))?
            .collect::<rusqlite::Result<Vec<(crate::activity::Key, i64)>>>()?;
        for (key, item) in went {
            keys.went(&transaction, &key.bytes(), item)?;
        }
        transaction.execute("DELETE FROM kept WHERE id = ?1 OR (message = ?1 AND message <> 0)", [number])?;
        transaction.execute("DELETE FROM message WHERE id = ?1", [number])?;
    }
    schema::count(&transaction)?;
    transaction.commit()
}

fn counted(database: &Connection) -> rusqlite::Result<(u64, u64)> {
    let count = |sql| database.query_row(sql, [], |row| row.get::<_, i64>(0));
    let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok((unsigned(count("SELECT count(*) FROM item")?), unsigned(count("SELECT count(*) FROM kept")?)))
}

/// Looks whether a copy is whole: the database's pages, each activity and its key, each file.
pub(super) fn verify(copy: &Path) -> Result<Verified, OpenError> {
    let path = copy.join(DATABASE);
    if !path.exists() {
        return Err(OpenError::Missing(path));
    }
    let wrong = |error: rusqlite::Error| open_error(&path, &error);
    // Nothing is written beside it, not even to look.
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let database = Connection::open_with_flags(immutable(&path), flags).map_err(wrong)?;
    let found = schema::version(&database).map_err(wrong)?;
    if found != schema::VERSION {
        return Err(if found > schema::VERSION {
            OpenError::Newer { path, found, known: schema::VERSION }
        } else {
            OpenError::Older { path, found, known: schema::VERSION }
        });
    }
    let mut problems = Vec::new();
    let pages: String =
        database.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(wrong)?;
    if pages != "ok" {
        return Ok(Verified {
            problems: vec![format!("{}: {pages}", path.display())],
            ..Verified::default()
        });
    }
    for table in ["item", "kept"] {
        keys(&database, table, &mut problems).map_err(wrong)?;
    }
    let folder = super::folder(&database).map_err(wrong)?;
    let spool = Spool::new(&copy.join(SPOOL), &folder);
    let lost: Vec<i64> = named(&database).map_err(wrong)?;
    problems.extend(
        lost.into_iter().filter(|number| spool.is_lost(*number)).take(NAMED).map(|number| {
            format!("{}: the message of an activity is not there", spool.path(number).display())
        }),
    );
    let (activities, kept) = counted(&database).map_err(wrong)?;
    Ok(Verified { activities, kept, problems })
}

/// A file's name as SQLite's URI, to be read as if nobody could write it.
fn immutable(path: &Path) -> String {
    use std::fmt::Write as _;
    use std::os::unix::ffi::OsStrExt;
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => {
                uri.push(char::from(*byte))
            }
            other => drop(write!(uri, "%{other:02X}")),
        }
    }
    uri + "?immutable=1"
}

/// Each activity says the key that its row has, and what waits is known by it.
fn keys(database: &Connection, table: &str, problems: &mut Vec<String>) -> rusqlite::Result<()> {
    let mut rows = database.prepare(&format!(
        "SELECT id, key, iif(json_valid(activity), json_extract(activity, '$.key'), NULL), message, cuts FROM {table}"
    ))?;
    let mut rows = rows.query([])?;
    let mut found = 0;
    while let Some(row) = rows.next()? {
        let (id, key, said): (i64, _, Option<String>) = (row.get(0)?, key_of(row.get_ref(1)?), row.get(2)?);
        let mut problem = (said.as_deref() != Some(key.as_str()))
            .then(|| format!("activity {id} ({key}): what it says of itself is damaged"));
        if table == "item" && Keys::find(database, &key.bytes())? != Some(id) {
            problem =
                problem.or(Some(format!("activity {id} ({key}): its key is not known: it could come twice")));
        }
        let message: i64 = row.get(3)?;
        if message != 0 && !has_message(database, message)? {
            problem = problem.or(Some(format!("activity {id} ({key}): its message is not there")));
        }
        if let Some(problem) = problem {
            found += 1;
            if found <= NAMED {
                problems.push(problem);
            }
        }
    }
    if found > NAMED {
        problems.push(format!("{} more activities like these", found - NAMED));
    }
    Ok(())
}

fn has_message(database: &Connection, message: i64) -> rusqlite::Result<bool> {
    let found = database.query_row("SELECT 1 FROM message WHERE id = ?1", params![message], |_| Ok(()));
    Ok(found.optional()?.is_some())
}
