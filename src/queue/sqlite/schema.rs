//! The database's tables, the version they have, and the way from older ones.
//!
//! What one message costs is the number of pages it dirties: each goes to the log and later to the file. So the usual
//! message, small and for one tenant, is one row of `item`, with its body; beside it there are one index entry (whose
//! turn it is), one key and the tenant's numbers. A lease is a row of a small table, not a change of the item's.

use super::{OpenError, open_error};
use rusqlite::Connection;
use std::path::Path;

/// The version this program writes, in `user_version`.
pub(super) const VERSION: i64 = 5;

/// What version 2 added: the turns of tenants, whether somebody was told that an item is held, and finding one by key.
const VERSION_2: &str = "
    CREATE INDEX item_turn ON item (tenant, due) WHERE state = 0;
    ALTER TABLE item ADD COLUMN notified INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX item_held ON item (notified, id) WHERE state = 1;
    CREATE INDEX item_key ON item (key);
";

/// What version 3 changed: a text that stands in the message is kept once (`text` says where), an item is found by its
/// key through `seen`, and a message knows how many items it still has (none: one).
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

/// Tables that no older version had.
///
/// `lease`: what a courier holds. `tenant`: what there is of each, so that nothing need be counted; `changes` grows when
/// another process changes something. `key_0` and `key_1`: the keys of this generation and of the one before; a new
/// generation begins after [`super::KEY_MEMORY`] at the earliest, in the table of the last but one, which is emptied in
/// order: forgetting a key costs no search (`super::keys`). `meta`: one row; `epoch` is counted at each start, so that
/// numbers made of it and a counter (`super::Numbers`) are never given twice.
const NEW_TABLES: &str = "
    CREATE TABLE lease (item INTEGER PRIMARY KEY, fence INTEGER NOT NULL, until INTEGER NOT NULL);
    CREATE TABLE tenant (
        id      TEXT PRIMARY KEY,
        waiting INTEGER NOT NULL DEFAULT 0,
        held    INTEGER NOT NULL DEFAULT 0,
        aged    INTEGER NOT NULL DEFAULT 0,
        changes INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    CREATE TABLE key_0 (key BLOB PRIMARY KEY, item INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE key_1 (key BLOB PRIMARY KEY, item INTEGER NOT NULL) WITHOUT ROWID;
";

/// One row, made before everything else and for itself: the name of the folder for files must be the same after a crash
/// in the midst of what follows.
const META: &str = "
    CREATE TABLE IF NOT EXISTS meta (
        one         INTEGER PRIMARY KEY CHECK (one = 1),
        database    TEXT NOT NULL,
        epoch       INTEGER NOT NULL DEFAULT 0,
        generation  INTEGER NOT NULL DEFAULT 0,
        began       INTEGER NOT NULL DEFAULT 0,
        first       INTEGER NOT NULL DEFAULT 0,
        newest      INTEGER NOT NULL DEFAULT 0,
        distrust    INTEGER NOT NULL DEFAULT 0
    );
    INSERT INTO meta (one, database) VALUES (1, lower(hex(randomblob(8)))) ON CONFLICT DO NOTHING;
";

/// Version 4 as it is made anew. `item.state`: 0 waiting, 1 held. `message` is 0 where the item has its message itself:
/// `body`, or a file by the item's number (`in_file`), `cuts` and `text`; otherwise these stand in the row of `message`,
/// which several items share. `aged`: held for so long that it counts no more.
const VERSION_4: &str = "
    CREATE TABLE message (
        id      INTEGER PRIMARY KEY,
        items   INTEGER,
        in_file INTEGER NOT NULL DEFAULT 0,
        text    TEXT,
        cuts    TEXT NOT NULL,
        body    BLOB
    );
    CREATE TABLE item (
        id          INTEGER PRIMARY KEY,
        key         BLOB NOT NULL,
        message     INTEGER NOT NULL DEFAULT 0,
        tenant      TEXT NOT NULL,
        state       INTEGER NOT NULL DEFAULT 0,
        due         INTEGER NOT NULL,
        attempts    INTEGER NOT NULL DEFAULT 0,
        accepted_at INTEGER NOT NULL,
        notified    INTEGER NOT NULL DEFAULT 0,
        aged        INTEGER NOT NULL DEFAULT 0,
        held_at     INTEGER,
        in_file     INTEGER NOT NULL DEFAULT 0,
        reason      TEXT,
        note        TEXT,
        text        TEXT,
        cuts        TEXT,
        activity    TEXT NOT NULL,
        body        BLOB
    );
    CREATE INDEX item_turn ON item (tenant, due) WHERE state = 0;
    CREATE INDEX item_held ON item (notified, id) WHERE state = 1;
";

/// The rows of version 3 stay where they are: a backlog of a million is not written again. New ones look otherwise, and
/// both are read alike. Keys of items remain text there. What was leased was due at the end of its lease there, and is due
/// at once here: the process that had it is gone.
const FROM_VERSION_3: &str = "
    UPDATE item SET due = min(due, accepted_at) WHERE leased = 1;
    DROP INDEX item_due;
    DROP INDEX item_leased;
    ALTER TABLE item ADD COLUMN aged INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE item ADD COLUMN held_at INTEGER;
    ALTER TABLE item ADD COLUMN in_file INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE item ADD COLUMN text TEXT;
    ALTER TABLE item ADD COLUMN cuts TEXT;
    ALTER TABLE item ADD COLUMN body BLOB;
    ALTER TABLE message ADD COLUMN in_file INTEGER NOT NULL DEFAULT 0;
    INSERT OR IGNORE INTO key_0 SELECT unhex(substr(key, 4)), coalesce(item, 0) FROM seen
        WHERE length(key) = 67 AND unhex(substr(key, 4)) IS NOT NULL ORDER BY key;
    DROP TABLE seen;
    UPDATE message SET in_file = 1 WHERE spool IS NOT NULL;
    DROP INDEX message_spool;
";

/// What version 5 added: activities that are kept after their delivery. They have a table of their own, so that whoever
/// walks over the items meets none of them; a row is moved there and back in one transaction, with its number and so with
/// its file. `delivered_at` is the order in which they go. `meta.kept_since`: all that was delivered since then is kept;
/// 0: nothing is. `item.replay`: it comes from there.
const VERSION_5: &str = "
    CREATE TABLE kept (
        id           INTEGER PRIMARY KEY,
        key          BLOB NOT NULL,
        message      INTEGER NOT NULL,
        tenant       TEXT NOT NULL,
        attempts     INTEGER NOT NULL,
        accepted_at  INTEGER NOT NULL,
        delivered_at INTEGER NOT NULL,
        in_file      INTEGER NOT NULL,
        text         TEXT,
        cuts         TEXT,
        activity     TEXT NOT NULL,
        body         BLOB
    );
    CREATE INDEX kept_time ON kept (delivered_at);
    ALTER TABLE item ADD COLUMN replay INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE meta ADD COLUMN kept_since INTEGER NOT NULL DEFAULT 0;
";

/// Sets a connection up.
pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let database = Connection::open(path)?;
    database.busy_timeout(super::BUSY)?;
    // FULL: the log is synced at each commit, which is what 250 promises. auto_vacuum must come before the tables.
    database.execute_batch(
        "PRAGMA auto_vacuum = INCREMENTAL;
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA wal_autocheckpoint = 8192;
         PRAGMA journal_size_limit = 67108864;",
    )?;
    database.set_prepared_statement_cache_capacity(64);
    Ok(database)
}

/// The version that a database has.
pub(super) fn version(database: &Connection) -> rusqlite::Result<i64> {
    database.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Makes the tables, or brings them from the version found to ours, all or none. `rename`: gives a file of a message,
/// named first by its old name, the name of its number, and is called within the transaction, before the version is
/// raised: a file that has its new name already is right.
pub(super) fn prepare(
    database: &mut Connection,
    path: &Path,
    rename: impl FnOnce(&str, &[(i64, String)]) -> Result<(), OpenError>,
) -> Result<(), OpenError> {
    let wrong = |error: rusqlite::Error| open_error(path, &error);
    let found = version(database).map_err(wrong)?;
    let steps: &[&str] = match found {
        0 => &[NEW_TABLES, VERSION_4, VERSION_5],
        1 => &[VERSION_2, VERSION_3, NEW_TABLES],
        2 => &[VERSION_3, NEW_TABLES],
        3 => &[NEW_TABLES],
        4 => &[VERSION_5],
        VERSION => return Ok(()),
        found => return Err(OpenError::Newer { path: path.to_owned(), found, known: VERSION }),
    };
    database.execute_batch(META).map_err(wrong)?;
    let transaction =
        database.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(wrong)?;
    for step in steps {
        transaction.execute_batch(step).map_err(wrong)?;
    }
    if (1..=3).contains(&found) {
        let files = transaction
            .prepare("SELECT id, spool FROM message WHERE spool IS NOT NULL")
            .and_then(|mut files| {
                files
                    .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect::<rusqlite::Result<Vec<_>>>()
            })
            .map_err(wrong)?;
        let folder: String =
            transaction.query_row("SELECT database FROM meta", [], |row| row.get(0)).map_err(wrong)?;
        rename(&folder, &files)?;
        transaction.execute_batch(FROM_VERSION_3).map_err(wrong)?;
        transaction.execute_batch(VERSION_5).map_err(wrong)?;
        count(&transaction).map_err(wrong)?;
    }
    transaction.pragma_update(None, "user_version", VERSION).map_err(wrong)?;
    transaction.commit().map_err(wrong)
}

/// Counts what there is of each tenant anew, from the indexes.
pub(super) fn count(database: &Connection) -> rusqlite::Result<()> {
    database.execute_batch(
        "INSERT INTO tenant (id) SELECT DISTINCT tenant FROM (
             SELECT tenant FROM item WHERE state = 0 UNION SELECT tenant FROM item INDEXED BY item_held WHERE state = 1
         ) WHERE true ON CONFLICT DO NOTHING;
         UPDATE tenant SET waiting = 0, held = 0, aged = 0;
         UPDATE tenant SET waiting = found.items
             FROM (SELECT tenant, count(*) AS items FROM item INDEXED BY item_turn WHERE state = 0 GROUP BY tenant) AS found
             WHERE tenant.id = found.tenant;
         UPDATE tenant SET held = found.held, aged = found.aged
             FROM (SELECT tenant, sum(aged = 0) AS held, sum(aged) AS aged FROM item INDEXED BY item_held WHERE state = 1
                   GROUP BY tenant) AS found
             WHERE tenant.id = found.tenant;",
    )
}

/// Whether the numbers of the tenants are those of the rows; quick for what waits, by an index alone.
pub(super) fn is_counted(database: &Connection) -> rusqlite::Result<bool> {
    let held: bool = database.query_row(
        "SELECT (SELECT coalesce(sum(held + aged), 0) FROM tenant)
              = (SELECT count(*) FROM item INDEXED BY item_held WHERE state = 1)",
        [],
        |row| row.get(0),
    )?;
    let waiting: bool = database.query_row(
        "SELECT NOT EXISTS (
             SELECT 1 FROM (SELECT tenant, count(*) AS items FROM item INDEXED BY item_turn WHERE state = 0 GROUP BY tenant) AS found
             LEFT JOIN tenant ON tenant.id = found.tenant WHERE tenant.waiting IS NOT found.items)
         AND (SELECT coalesce(sum(waiting), 0) FROM tenant) = (SELECT count(*) FROM item INDEXED BY item_turn WHERE state = 0)",
        [],
        |row| row.get(0),
    )?;
    Ok(held && waiting)
}
