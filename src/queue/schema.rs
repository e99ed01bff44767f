//! The database's tables, and the version they have.

use super::OpenError;
use rusqlite::Connection;
use std::path::Path;

/// The version this program writes, in `user_version`.
pub(super) const VERSION: i64 = 3;

/// `seen` holds every key we ever took and outlives the item by seven days, so that a client's retry after delivery
/// records nothing twice. `item.state`: 0 waiting, 1 held. A lease pushes `due` to its end and sets `leased`, so that
/// one index answers "what is due" and a crashed process's leases are found at start. `item.note` is the backend's
/// own progress (JSON), for deliveries of several steps.
const TABLES: &str = "
    CREATE TABLE message (
        id      INTEGER PRIMARY KEY,
        body    BLOB,
        spool   TEXT,
        cuts    TEXT NOT NULL
    );
    CREATE INDEX message_spool ON message (spool) WHERE spool IS NOT NULL;
    CREATE TABLE item (
        id          INTEGER PRIMARY KEY,
        key         TEXT NOT NULL,
        message     INTEGER NOT NULL,
        tenant      TEXT NOT NULL,
        activity    TEXT NOT NULL,
        state       INTEGER NOT NULL DEFAULT 0,
        due         INTEGER NOT NULL,
        leased      INTEGER NOT NULL DEFAULT 0,
        attempts    INTEGER NOT NULL DEFAULT 0,
        accepted_at INTEGER NOT NULL,
        reason      TEXT,
        note        TEXT
    );
    CREATE INDEX item_due ON item (due) WHERE state = 0;
    CREATE INDEX item_leased ON item (leased) WHERE leased = 1;
    CREATE INDEX item_message ON item (message);
    CREATE TABLE seen (
        key       TEXT PRIMARY KEY,
        forget_at INTEGER
    ) WITHOUT ROWID;
    CREATE INDEX seen_forget ON seen (forget_at) WHERE forget_at IS NOT NULL;
";

/// What version 2 added: the turns of tenants, whether somebody was told that an item is held, and finding one by key.
const VERSION_2: &str = "
    CREATE INDEX item_turn ON item (tenant, due) WHERE state = 0;
    ALTER TABLE item ADD COLUMN notified INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX item_held ON item (notified, id) WHERE state = 1;
    CREATE INDEX item_key ON item (key);
";

/// What version 3 changed, to write less for each message: a text that stands in the message is kept once (`text` says
/// where), an item is found by its key through `seen`, not through a second index of random keys, and a message knows how
/// many items it still has (none: one), so that no index need say it.
const VERSION_3: &str = "
    ALTER TABLE message ADD COLUMN text TEXT;
    ALTER TABLE seen ADD COLUMN item INTEGER;
    UPDATE seen SET item = (SELECT id FROM item WHERE item.key = seen.key) WHERE forget_at IS NULL;
    DROP INDEX item_key;
    ALTER TABLE message ADD COLUMN items INTEGER;
    UPDATE message SET items = several.items
        FROM (SELECT message, count(*) AS items FROM item GROUP BY message HAVING count(*) > 1) AS several
        WHERE message.id = several.message;
    DROP INDEX item_message;
";

/// Sets the connection up and makes or checks the tables.
pub(super) fn prepare(database: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let damaged =
        |error: rusqlite::Error| OpenError::Damaged { path: path.to_owned(), message: error.to_string() };
    // FULL: the log is synced at each commit, which is what 250 promises. auto_vacuum must come before the tables.
    database
        .execute_batch(
            "PRAGMA auto_vacuum = INCREMENTAL;
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA wal_autocheckpoint = 8192;
             PRAGMA journal_size_limit = 67108864;
             PRAGMA busy_timeout = 5000;",
        )
        .map_err(damaged)?;
    database.set_prepared_statement_cache_capacity(64);
    let found: i64 = database.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(damaged)?;
    // Each step from the version found to ours, all or none.
    let steps: &[&str] = match found {
        0 => &[TABLES, VERSION_2, VERSION_3],
        1 => &[VERSION_2, VERSION_3],
        2 => &[VERSION_3],
        VERSION => &[],
        found => return Err(OpenError::Newer { path: path.to_owned(), found, known: VERSION }),
    };
    let transaction = database.transaction().map_err(damaged)?;
    for step in steps {
        transaction.execute_batch(step).map_err(damaged)?;
    }
    if !steps.is_empty() {
        transaction.pragma_update(None, "user_version", VERSION).map_err(damaged)?;
    }
    transaction.commit().map_err(damaged)
}
