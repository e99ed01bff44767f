//! The keys of e-mails, each remembered for as long as its activity is in the queue and seven days after.
//!
//! In: a key, when its activity is put, and again when it goes. Out: whether it is known.
//! Promise: a key stays for [`KEY_MEMORY`] after its activity went, and for as long as the activity is there.
//!
//! The essay: a key is a random number, so each key written, changed or forgotten is a page of its own. So a key is
//! written once, into the table of this *generation*, and neither changed nor searched when its time is over. A
//! generation lasts [`KEY_MEMORY`]; when it is over, the table of the one before is emptied from its first key to its last,
//! and serves the next. A key thus stays for one to two times [`KEY_MEMORY`] after it was written. That is too short for
//! an activity which goes later than in the generation it came in, so its key is then written once more; and a table
//! that is emptied hands the keys of activities still there on.

use super::{KEY_MEMORY, numbers::Numbers, watch::span};
use rusqlite::{Connection, OptionalExtension, params};

/// Keys looked at in one slice of emptying a table.
const AT_ONCE: i64 = 1000;

/// Which table takes new keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys {
    generation: i64,
    /// When this generation began, in milliseconds since 1970.
    began: i64,
    /// Items with lower numbers came before.
    first: i64,
}

/// SQL for each of the two tables.
macro_rules! of_table {
    ($generation:expr, $before:literal, $after:literal) => {
        if $generation % 2 == 0 {
            concat!($before, "key_0", $after)
        } else {
            concat!($before, "key_1", $after)
        }
    };
}

impl Keys {
    pub(super) fn read(database: &Connection) -> rusqlite::Result<Self> {
        database.query_row("SELECT generation, began, first FROM meta", [], |row| {
            Ok(Self { generation: row.get(0)?, began: row.get(1)?, first: row.get(2)? })
        })
    }

    /// The item of a key: none if the key is not known, 0 if it never had one.
    pub(super) fn find(database: &Connection, key: &[u8; 32]) -> rusqlite::Result<Option<i64>> {
        let of = |sql| database.prepare_cached(sql)?.query_row([key], |row| row.get::<_, i64>(0)).optional();
        // A key may be in both, and in one of them with its item.
        match of("SELECT item FROM key_0 WHERE key = ?1")? {
            Some(item) if item != 0 => Ok(Some(item)),
            first => Ok(of("SELECT item FROM key_1 WHERE key = ?1")?.or(first)),
        }
    }

    /// Remembers a key from now on; `item` is 0 where none belongs to it. A key that was covered before its item is handed
    /// on has the item from then on, or it would be forgotten with the next table.
    pub(super) fn write(&self, database: &Connection, key: &[u8; 32], item: i64) -> rusqlite::Result<()> {
        let sql = of_table!(
            self.generation,
            "INSERT INTO ",
            " VALUES (?1, ?2) ON CONFLICT DO UPDATE SET item = ?2 WHERE item < ?2"
        );
        database.prepare_cached(sql)?.execute(params![key, item])?;
        Ok(())
    }

    /// The activity of a key goes: [`KEY_MEMORY`] begins now.
    pub(super) fn went(&self, database: &Connection, key: &[u8; 32], item: i64) -> rusqlite::Result<()> {
        if item < self.first { self.write(database, key, 0) } else { Ok(()) }
    }

    /// An activity of before is there again: its key is this item's, whatever was remembered of it.
    pub(super) fn is_back(&self, database: &Connection, key: &[u8; 32], item: i64) -> rusqlite::Result<()> {
        for table in ["DELETE FROM key_0 WHERE key = ?1", "DELETE FROM key_1 WHERE key = ?1"] {
            database.prepare_cached(table)?.execute([key])?;
        }
        self.write(database, key, item)
    }

    /// Whether a new generation shall begin.
    pub(super) fn is_over(&self, now: i64) -> bool {
        now > self.began.saturating_add(span(KEY_MEMORY))
    }

    /// The clock was set back: the generation began now at the latest.
    pub(super) fn mend(&mut self, database: &Connection, now: i64) -> rusqlite::Result<()> {
        if self.began > now {
            self.began = now;
            database.execute("UPDATE meta SET began = ?1", [now])?;
        }
        Ok(())
    }

    /// Empties a little of the old table; begins the new generation once it is empty. True if there is more to do.
    pub(super) fn forget(
        &mut self,
        database: &Connection,
        now: i64,
        numbers: &Numbers,
    ) -> rusqlite::Result<bool> {
        let old = self.generation + 1; // the same table as of the one before
        let sql = of_table!(old, "SELECT key FROM ", " ORDER BY key LIMIT 1 OFFSET ?1");
        let end: Option<[u8; 32]> =
            database.prepare_cached(sql)?.query_row([AT_ONCE], |row| row.get(0)).optional()?;
        let end = end.unwrap_or([0xff; 32]);
        let sql =
            of_table!(old, "SELECT key, item FROM ", " WHERE key <= ?1 AND item IN (SELECT id FROM item)");
        let kept = database
            .prepare_cached(sql)?
            .query_map([end], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<Vec<([u8; 32], i64)>>>()?;
        for (key, item) in kept {
            self.write(database, &key, item)?;
        }
        let sql = of_table!(old, "DELETE FROM ", " WHERE key <= ?1");
        let gone = database.prepare_cached(sql)?.execute([end])?;
        if i64::try_from(gone).is_ok_and(|gone| gone > AT_ONCE) {
            return Ok(true);
        }
        *self = Self { generation: old, began: now, first: numbers.next() };
        database.execute(
            "UPDATE meta SET generation = ?1, began = ?2, first = ?3",
            params![self.generation, self.began, self.first],
        )?;
        Ok(false)
    }
}
