//! Words to the service that what its directory learnt is past its time.
//!
//! In: prefixes of tenants. Out: what was said since a number.
//! Promise: as `queue::Queue::expire` says. The table is beside all versions: an older program leaves it alone.
//! Fails: SQLite's errors.

use crate::queue::{EXPIRED_KEPT, Expired, StorageError};
use rusqlite::{Connection, params};

/// Made at each start of the service.
pub(super) const TABLE: &str = "CREATE TABLE IF NOT EXISTS expired (
    number INTEGER PRIMARY KEY,
    at     INTEGER NOT NULL,
    prefix TEXT NOT NULL
)";

/// Says it, within a transaction; words that are old go, but never the newest. `now`: milliseconds.
pub(super) fn say(database: &Connection, prefixes: &[String], now: i64) -> rusqlite::Result<()> {
    let kept = i64::try_from(EXPIRED_KEPT.as_millis()).unwrap_or(i64::MAX);
    database.execute(
        "DELETE FROM expired WHERE at < ?1 AND number < (SELECT max(number) FROM expired)",
        [now.saturating_sub(kept)],
    )?;
    let mut word = database.prepare(
        "INSERT INTO expired (number, at, prefix) SELECT coalesce(max(number), 0) + 1, ?1, ?2 FROM expired",
    )?;
    prefixes.iter().try_for_each(|prefix| word.execute(params![now, prefix]).map(drop))
}

/// What was said.
pub(super) fn look(database: &Connection, after: Option<i64>) -> Result<Expired, StorageError> {
    // All of one moment.
    let moment = database.unchecked_transaction()?;
    let kept = "SELECT coalesce(min(number), 0), coalesce(max(number), 0) FROM expired";
    let (oldest, newest) =
        moment.prepare_cached(kept)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut words = moment.prepare_cached("SELECT DISTINCT prefix FROM expired WHERE number > ?1")?;
    let prefixes = words.query_map([after], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
    Ok(Expired::since(after, oldest, newest, prefixes))
}
