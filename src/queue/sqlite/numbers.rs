//! Numbers that are never given twice: of items, of messages' files, of leases.

use rusqlite::Connection;
use std::sync::atomic::{AtomicI64, Ordering};

/// Numbers of one start of the service.
const EPOCH: i64 = 1 << 32;

/// The next number: how often the service has started, and a counter.
#[derive(Debug)]
pub(super) struct Numbers {
    first: i64,
    next: AtomicI64,
}

impl Numbers {
    /// Those of a new start; `greatest`: of the files that are there. A restored copy of a database is older than they.
    pub(super) fn begin(database: &Connection, greatest: i64) -> rusqlite::Result<Self> {
        let epoch: i64 =
            database.query_row("UPDATE meta SET epoch = epoch + 1 RETURNING epoch", [], |row| row.get(0))?;
        // Somebody may have put rows with greater numbers there.
        let of_items: i64 = database.query_row(
            "SELECT max(coalesce((SELECT max(id) FROM item), 0), coalesce((SELECT max(id) FROM kept), 0))",
            [],
            |row| row.get(0),
        )?;
        let epoch = epoch.max(greatest.max(of_items) / EPOCH + 1);
        database.execute("UPDATE meta SET epoch = ?1", [epoch])?;
        let first = epoch * EPOCH;
        Ok(Self { first, next: AtomicI64::new(first) })
    }

    /// A command has taken the numbers of a start of its own, which lie behind ours: from here on ours lie behind those, in
    /// the half of them that no command comes to. Nothing is written, so nothing can be undone.
    pub(super) fn lie_behind(&self, database: &Connection) -> rusqlite::Result<()> {
        let epoch: i64 =
            database.prepare_cached("SELECT epoch FROM meta")?.query_row([], |row| row.get(0))?;
        if epoch > self.next.load(Ordering::Relaxed) / EPOCH {
            self.next.fetch_max(epoch * EPOCH + EPOCH / 2, Ordering::Relaxed);
        }
        Ok(())
    }

    /// None: for who gives no numbers.
    pub(super) fn none() -> Self {
        Self { first: 0, next: AtomicI64::new(0) }
    }

    /// The first one of this start.
    pub(super) fn first(&self) -> i64 {
        self.first
    }

    pub(super) fn next(&self) -> i64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}
