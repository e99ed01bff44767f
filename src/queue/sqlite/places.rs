//! What is seen of the queue's places before anything is opened or made there.
//!
//! In: the settings. Out: whether a start would fail for what is there.
//! Promise: nothing is changed, and who only looks (`check`) learns what a start would say, in the same words.
//! Fails: [`OpenError`], with the file that is in the way.

use crate::queue::{OpenError, Settings};
use rusqlite::Connection;
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Read,
    path::Path,
};

/// How every SQLite file begins (the file format, section 1.3).
const MAGIC: &[u8] = b"SQLite format 3\0";

/// Where it says how it is written: 1 for a rollback journal, 2 for a log beside it. A file that has a log says 2.
const WRITTEN: usize = 18;

/// That the file and the directories can be there.
pub(super) fn look(settings: &Settings) -> Result<(), OpenError> {
    look_at_file(&settings.path)?;
    make_way(&settings.spool, "queue.spool")
}

/// That the file is one, or can be made, and that the log beside it is its own.
pub(super) fn look_at_file(path: &Path) -> Result<(), OpenError> {
    match fs::metadata(path) {
        Ok(meta) if !meta.is_file() => Err(OpenError::NoFile(path.to_owned())),
        Ok(_) => own_log(path),
        Err(_) => match path.parent() {
            Some(directory) => make_way(directory, "queue.path"),
            None => Err(OpenError::NoFile(path.to_owned())),
        },
    }
}

/// That a directory is there, or can be made: what is there above it is one.
fn make_way(directory: &Path, key: &'static str) -> Result<(), OpenError> {
    for above in directory.ancestors().filter(|above| !above.as_os_str().is_empty()) {
        // A link to nothing is something.
        let is_there = fs::symlink_metadata(above).is_ok();
        if is_there && !above.is_dir() {
            let (path, there) = (directory.to_owned(), above.to_owned());
            return Err(OpenError::InTheWay { path, there, key });
        }
        if is_there {
            break;
        }
    }
    Ok(())
}

/// A copy (`backup`) has no log; whoever lays it over a queue that was killed leaves that one's log beside it, and SQLite
/// would write its pages into the copy.
fn own_log(path: &Path) -> Result<(), OpenError> {
    let log = super::beside(path, "-wal");
    let has_log = fs::metadata(&log).is_ok_and(|meta| meta.len() > 0);
    let mut head = Vec::new();
    // What cannot be read, opening it says.
    let read = File::open(path).and_then(|file| file.take(100).read_to_end(&mut head));
    if !has_log || read.is_err() || !head.starts_with(MAGIC) || head.get(WRITTEN) != Some(&1) {
        return Ok(());
    }
    Err(OpenError::OthersLog { path: path.to_owned(), log })
}

/// True for another program's database: it has tables, and not ours; or it says a version, and has none.
pub(super) fn is_foreign(database: &Connection) -> rusqlite::Result<bool> {
    // One look: a service may be making or migrating it.
    let database = database.unchecked_transaction()?;
    let version = super::schema::version(&database)?;
    let mut tables = database.prepare(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
    )?;
    let tables: BTreeSet<String> =
        tables.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let has = |table: &str, columns: i64| -> rusqlite::Result<bool> {
        let ours = "SELECT count(*) FROM pragma_table_info(?1) WHERE name IN ('key', 'tenant', 'activity', 'database', 'epoch')";
        Ok(database.query_row(ours, [table], |row| row.get::<_, i64>(0))? == columns)
    };
    Ok(match version {
        // What a crash leaves of a first start: `meta` is made before the rest.
        0 => !(tables.is_empty() || tables.iter().eq(["meta"]) && has("meta", 2)?),
        _ => !(tables.contains("message") && has("item", 3)?),
    })
}
