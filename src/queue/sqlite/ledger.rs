//! What the writer's thread owns: the connection, and what is remembered of the database beside it: leases, turns,
//! numbers. Every change of the queue is a function here, within a transaction.
//!
//! Promise: what is remembered is what was committed. A transaction that fails leaves it as it was; a change by another
//! process is noticed at the next transaction.

use super::{
    disk::Disk,
    kept,
    keys::Keys,
    leases::{Lease, Leases},
    numbers::Numbers,
    row::key_of,
    spool::{Kept, Spool},
    tally,
    tally::Tally,
    turns::{Choice, Turns},
    watch::{DISTRUST, FORWARD, Watch, span},
};
use crate::activity::Key;
use crate::queue::{
    Ask, Change, End, LEASE, Leased, NewlyHeld, Probe, Put, Replayed, StorageError, Ticket, transfer::Past,
};
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

/// Ends that the disk did not take yet, by the items: nobody else is given these.
pub(super) type Owed = Arc<Mutex<HashMap<i64, (Ticket, End)>>>;

/// What a row that was taken away had.
struct Gone {
    key: Key,
    tenant: String,
    was: tally::Numbers,
    message: i64,
    in_file: bool,
}

/// An activity to be put.
pub(super) struct NewRow {
    pub(super) key: [u8; 32],
    pub(super) tenant: String,
    pub(super) activity: String,
}

/// Its message.
pub(super) struct Letter {
    /// The number of the file, of the item if there is one, and else of the message's row.
    pub(super) number: i64,
    pub(super) body: Option<Bytes>,
    pub(super) cuts: String,
    pub(super) text: Option<String>,
}

/// What others of this room hand to the thread.
pub(super) struct Shared {
    pub(super) numbers: Arc<Numbers>,
    pub(super) watch: Arc<Watch>,
    pub(super) tally: Arc<Tally>,
    /// No row before this one waits; 0 if that is not known.
    pub(super) oldest: Arc<AtomicI64>,
    pub(super) owed: Owed,
    pub(super) spool: Spool,
}

/// Keys and tenants of what is sent again.
type Again = Vec<(Key, String)>;

/// The ledger.
pub(super) struct Ledger {
    database: Connection,
    shared: Shared,
    disk: Disk,
    /// The service's own; otherwise a command's.
    is_owner: bool,
    /// What is delivered is kept.
    keeps: bool,
    keys: Keys,
    keys_before: Keys,
    turns: Turns,
    leases: Leases,
    changes: HashMap<String, tally::Numbers>,
    /// SQLite's number for the changes of others.
    version: i64,
    /// Commits are synced.
    syncs: bool,
    noticed: bool,
    /// A sync has failed: what is in the log may never come to the disk.
    in_doubt: bool,
    /// `tenant.changes` as it was seen.
    seen: HashMap<String, i64>,
    /// [`Watch::sets`] when the distrust was written.
    sets: u64,
}

impl Ledger {
    pub(super) fn new(
        database: Connection,
        shared: Shared,
        disk: Disk,
        is_owner: bool,
        keeps: bool,
    ) -> rusqlite::Result<Self> {
        let keys = Keys::read(&database)?;
        let (turns, leases) = (Turns::default(), Leases::default());
        let (changes, seen) = (HashMap::new(), HashMap::new());
        let sets = shared.watch.sets();
        let mut ledger = Self {
            database,
            shared,
            disk,
            is_owner,
            keeps,
            keys,
            keys_before: keys,
            turns,
            leases,
            changes,
            version: -1,
            syncs: true,
            noticed: false,
            in_doubt: false,
            seen,
            sets,
        };
        ledger.notice_others()?;
        Ok(ledger)
    }

    pub(super) fn database(&self) -> &Connection {
        &self.database
    }

    /// Whether the commits that follow wait for the disk. Outside a transaction.
    pub(super) fn sync_commits(&mut self, sync: bool) {
        if sync != self.syncs {
            let level = if sync { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" };
            // It cannot fail but for a lack of memory; what was to be synced is then not begun.
            let set = self.database.execute_batch(level);
            set.expect("a setting of the connection can be changed between transactions");
            self.syncs = sync;
        }
    }

    /// Begins a transaction.
    pub(super) fn begin(&mut self) -> rusqlite::Result<()> {
        if self.in_doubt {
            self.begin_log_anew()?;
        }
        // Immediate: a transaction that begins as a reader and writes later may be told "locked" at once.
        self.database.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        self.keys_before = self.keys;
        let noticed = self.notice_others();
        if noticed.is_err() {
            self.roll_back(); // or no later one could begin
        }
        noticed
    }

    /// A sync that failed puts in doubt what is in the log.
    pub(super) fn doubt_after(&mut self, error: &rusqlite::Error) {
        let extended = error.sqlite_error().map(|error| error.extended_code);
        self.in_doubt |= extended == Some(rusqlite::ffi::SQLITE_IOERR_FSYNC);
    }

    /// A kernel that could not write says so once, and forgets what it should have written. Commits that were not to be
    /// synced may lie in the log so, and whatever came behind them would be lost with them in a power cut. So all goes to the
    /// file first, and the log begins anew; nothing is committed before.
    fn begin_log_anew(&mut self) -> rusqlite::Result<()> {
        let is_busy: bool =
            self.database.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get(0))?;
        if is_busy {
            let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
            return Err(rusqlite::Error::SqliteFailure(busy, None));
        }
        self.in_doubt = false;
        Ok(())
    }

    /// Whether others have changed something since this was asked last.
    pub(super) fn noticed(&mut self) -> bool {
        std::mem::take(&mut self.noticed)
    }

    /// Commits it: numbers of tenants first, once for all that happened.
    pub(super) fn commit(&mut self) -> rusqlite::Result<()> {
        self.changes.retain(|_, change| *change != tally::Numbers::default());
        {
            let mut update = self.database.prepare_cached(
                "INSERT INTO tenant (id, waiting, held, aged, changes) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET waiting = waiting + ?2, held = held + ?3, aged = aged + ?4,
                     changes = changes + ?5",
            )?;
            for (tenant, change) in &self.changes {
                update.execute(params![tenant, change.waiting, change.held, change.aged, !self.is_owner])?;
            }
        }
        // Rows of a clock that leapt are not on disk before the doubt about it is.
        let sets = self.shared.watch.sets();
        if self.is_owner && sets != self.sets {
            self.note_time()?;
        }
        let committed = self.database.prepare_cached("COMMIT")?.execute([]);
        if let Err(error) = committed {
            self.doubt_after(&error);
            return Err(error);
        }
        self.sets = sets;
        self.leases.committed();
        self.shared.tally.commit(self.changes.drain());
        Ok(())
    }

    /// Undoes it, in memory too.
    pub(super) fn roll_back(&mut self) {
        if !self.database.is_autocommit() {
            let _ = self.database.execute_batch("ROLLBACK");
        }
        self.changes.clear();
        self.keys = self.keys_before;
        self.leases.roll_back();
        self.turns.ask_all_again();
    }

    /// Takes over what another process has changed, if anything.
    fn notice_others(&mut self) -> rusqlite::Result<()> {
        let version: i64 =
            self.database.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        if version == self.version {
            return Ok(());
        }
        let mut tenants =
            self.database.prepare_cached("SELECT id, waiting, held, aged, changes FROM tenant")?;
        let mut rows = tenants.query([])?;
        while let Some(row) = rows.next()? {
            let (tenant, changes): (String, i64) = (row.get(0)?, row.get(4)?);
            let numbers = tally::Numbers { waiting: row.get(1)?, held: row.get(2)?, aged: row.get(3)? };
            self.shared.tally.set(&tenant, numbers);
            if self.seen.get(&tenant) != Some(&changes) {
                if numbers.waiting > 0 {
                    self.turns.ask_again(&tenant);
                }
                self.seen.insert(tenant, changes);
            }
        }
        // Others may have put rows, with numbers of their own: ours lie behind them, for what is oldest is found by number.
        if self.is_owner {
            self.shared.numbers.lie_behind(&self.database)?;
        }
        // Others may have tried a row again that stands before all that waited.
        self.shared.oldest.store(0, Ordering::Relaxed);
        (self.version, self.noticed) = (version, true);
        Ok(())
    }

    fn count(&mut self, tenant: &str, change: tally::Numbers) {
        match self.changes.get_mut(tenant) {
            Some(of_tenant) => of_tenant.add(change),
            None => drop(self.changes.insert(tenant.to_owned(), change)),
        }
    }

    /// Stores rows that are new, with their message; `kept` is its file. The inner error stores nothing, and fails nobody
    /// else.
    pub(super) fn put(
        &mut self,
        rows: &[NewRow],
        letter: &Letter,
        covered: &[[u8; 32]],
        kept: &mut Option<Kept>,
        numbers: &Numbers,
    ) -> rusqlite::Result<Result<Vec<Put>, StorageError>> {
        let now = self.shared.watch.now();
        let mut found: Vec<(Put, i64)> = Vec::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate() {
            let twice = rows[..at].iter().any(|before| before.key == row.key);
            found.push(match Keys::find(&self.database, &row.key)? {
                _ if twice => (Put::Known, 0),
                None => (Put::New, 0),
                Some(item) if self.is_lost(item)? => (Put::Mended, item),
                Some(item) => (Put::Known, item),
            });
        }
        let stored = found.iter().filter(|(put, _)| *put != Put::Known).count();
        if stored > 0 {
            if let Err(full) = self.disk.room(self.shared.watch.running()) {
                return Ok(Err(full.into()));
            }
            if let Some(kept) = kept {
                kept.stay();
            }
            let own = rows.len() == 1 && found[0].0 == Put::New;
            if !own {
                let items = (stored > 1).then_some(i64::try_from(stored).unwrap_or(i64::MAX));
                self.database
                    .prepare_cached(
                        "INSERT INTO message (id, body, in_file, cuts, text, items) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    )?
                    .execute(params![
                        letter.number,
                        letter.body.as_deref(),
                        letter.body.is_none(),
                        letter.cuts,
                        letter.text,
                        items
                    ])?;
            }
            for (row, (put, item)) in rows.iter().zip(&found) {
                match put {
                    Put::Known => {}
                    Put::New => {
                        let id = if own { letter.number } else { numbers.next() };
                        self.insert(id, row, letter, own, now)?;
                    }
                    Put::Mended => self.mend_item(*item, row, letter.number, now)?,
                }
            }
        }
        for key in covered {
            self.keys.write(&self.database, key, 0)?;
        }
        Ok(Ok(found.into_iter().map(|(put, _)| put).collect()))
    }

    /// A new row; `own`: with the message in it.
    fn insert(
        &mut self,
        id: i64,
        row: &NewRow,
        letter: &Letter,
        own: bool,
        now: i64,
    ) -> rusqlite::Result<()> {
        let message = if own { 0 } else { letter.number };
        self.keys.write(&self.database, &row.key, id)?;
        self.database
            .prepare_cached(
                "INSERT INTO item (id, key, message, tenant, due, accepted_at, in_file, text, cuts, activity, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?
            .execute(params![
                id,
                row.key,
                message,
                row.tenant,
                now,
                own && letter.body.is_none(),
                letter.text.as_ref().filter(|_| own),
                own.then_some(&letter.cuts),
                row.activity,
                letter.body.as_deref().filter(|_| own),
            ])?;
        self.count(&row.tenant, tally::Numbers { waiting: 1, ..tally::Numbers::default() });
        self.turns.available(&row.tenant, now, id);
        Ok(())
    }

    /// A row that was just stored comes from another queue, and this is what became of it there. `keeps`: what was delivered
    /// is kept here too; else only its key is remembered.
    pub(super) fn give_past(
        &mut self,
        key: &[u8; 32],
        tenant: &str,
        past: &Past,
        keeps: bool,
        unused: &mut Vec<i64>,
    ) -> rusqlite::Result<()> {
        let Some(item) = Keys::find(&self.database, key)? else { return Ok(()) };
        self.database
            .prepare_cached(
                "UPDATE item SET accepted_at = ?2, due = ?3, attempts = ?4, state = ?5, held_at = ?6, notified = ?7, aged = ?8,
                     replay = ?9, reason = ?10, note = ?11 WHERE id = ?1",
            )?
            .execute(params![
                item,
                past.accepted_at,
                past.due,
                past.attempts,
                past.is_held,
                past.held_at,
                past.told,
                past.aged,
                past.replay,
                past.reason,
                past.note
            ])?;
        if past.is_held {
            self.count(tenant, moved(WAITING, numbers_of(1, past.aged)));
        }
        match past.delivered_at {
            None => self.turns.available(tenant, past.due, item),
            Some(delivered_at) if keeps => {
                kept::put(&self.database, item, delivered_at)?;
                self.take(item)?;
            }
            Some(_) => drop(self.remove(item, unused)?),
        }
        Ok(())
    }

    /// Remembers a key from now on.
    pub(super) fn remember(&self, key: &[u8; 32]) -> rusqlite::Result<()> {
        self.keys.write(&self.database, key, 0)
    }

    /// Whether the message of a row is gone: its file is not there.
    fn is_lost(&self, item: i64) -> rusqlite::Result<bool> {
        let found: Option<(i64, bool)> = self
            .database
            .prepare_cached("SELECT message, in_file FROM item WHERE id = ?1")?
            .query_row([item], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        match found {
            None | Some((0, false)) => Ok(false),
            Some((0, true)) => Ok(self.shared.spool.is_lost(item)),
            Some((message, _)) => {
                let in_file: Option<bool> = self
                    .database
                    .prepare_cached("SELECT in_file FROM message WHERE id = ?1")?
                    .query_row([message], |row| row.get(0))
                    .optional()?;
                Ok(in_file.is_none_or(|in_file| in_file && self.shared.spool.is_lost(message)))
            }
        }
    }

    /// The same e-mail came once more, after the first one's file was lost: the row gets this message, as if accepted now.
    fn mend_item(&mut self, item: i64, row: &NewRow, message: i64, now: i64) -> rusqlite::Result<()> {
        let (old, before) = self
            .database
            .prepare_cached("SELECT message, state, aged FROM item WHERE id = ?1")?
            .query_row([item], |row| Ok((row.get::<_, i64>(0)?, numbers_of(row.get(1)?, row.get(2)?))))?;
        self.leave_message(old)?;
        self.database
            .prepare_cached(
                "UPDATE item SET message = ?2, activity = ?3, state = 0, due = ?4, accepted_at = ?4, attempts = 0,
                     aged = 0, held_at = NULL, in_file = 0, text = NULL, cuts = NULL, body = NULL, reason = NULL
                 WHERE id = ?1",
            )?
            .execute(params![item, message, row.activity, now])?;
        self.count(&row.tenant, moved(before, WAITING));
        self.turns.available(&row.tenant, now, item);
        Ok(())
    }

    /// Leases up to `ask.room` rows.
    pub(super) fn lease(&mut self, ask: &Ask) -> rusqlite::Result<Leased> {
        self.end_leases()?;
        let (now, running) = (self.shared.watch.now(), self.shared.watch.running());
        let (database, leases) = (&self.database, &self.leases);
        let mut choice = match self.turns.probe(database, leases, now, ask)? {
            Some(row) => Choice::one(row, now),
            None => self.turns.choose(database, leases, now, ask)?,
        };
        // Nothing is due: what was tried shows how the backend is as well.
        if let Some(Probe::Fresh(tried)) = &ask.probe
            && choice.rows.is_empty()
        {
            let again = Ask { probe: Some(Probe::Tried(tried.clone())), ..ask.clone() };
            if let Some(row) = self.turns.probe(database, leases, now, &again)? {
                choice = Choice::one(row, now);
            }
        }
        let ends = now + span(LEASE);
        let mut insert = self
            .database
            .prepare_cached("INSERT INTO lease (item, fence, until) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET fence = ?2, until = ?3")?;
        let mut tickets = Vec::with_capacity(choice.rows.len());
        for row in choice.rows {
            let fence = self.shared.numbers.next();
            insert.execute(params![row.id, fence, ends])?;
            let lease =
                Lease { fence, tenant: Arc::clone(&row.tenant), due: row.due, until: running + LEASE };
            self.leases.insert(row.id, lease);
            let size = u64::try_from(row.size).unwrap_or(0);
            tickets.push(Ticket { item: row.id, fence, tenant: row.tenant, size, token: Arc::default() });
        }
        let wait = |due: i64| Duration::from_millis(u64::try_from(due.saturating_sub(now)).unwrap_or(0));
        let alone = self.shared.tally.is_alone();
        Ok(Leased { tickets, next_due: choice.next.map(wait), alone })
    }

    /// Gives back what nobody has finished in time.
    pub(super) fn end_leases(&mut self) -> rusqlite::Result<usize> {
        let owed = self.shared.owed.lock().unwrap_or_else(PoisonError::into_inner);
        let over: Vec<i64> = self.leases.over(self.shared.watch.running());
        let over: Vec<i64> = over.into_iter().filter(|item| !owed.contains_key(item)).collect();
        drop(owed);
        for &item in &over {
            self.give_back(item)?;
        }
        Ok(over.len())
    }

    /// Ends the lease of an item, which is due as before.
    fn give_back(&mut self, item: i64) -> rusqlite::Result<()> {
        if let Some(lease) = self.unlease(item)? {
            self.turns.available(&lease.tenant, lease.due, item);
        }
        Ok(())
    }

    fn unlease(&mut self, item: i64) -> rusqlite::Result<Option<Lease>> {
        self.database.prepare_cached("DELETE FROM lease WHERE item = ?1")?.execute([item])?;
        Ok(self.leases.remove(item))
    }

    /// Ends a lease, if it is still this one; `unused` gets the numbers of files that nothing needs any more.
    pub(super) fn finish(
        &mut self,
        ticket: &Ticket,
        end: &End,
        unused: &mut Vec<i64>,
    ) -> rusqlite::Result<bool> {
        if self.leases.get(ticket.item, ticket.fence).is_none() {
            return Ok(false);
        }
        let (item, now) = (ticket.item, self.shared.watch.now());
        match end {
            End::Unused => {
                self.give_back(item)?;
                Ok(true)
            }
            End::Taken => {
                self.unlease(item)?;
                if self.keeps { self.keep(item, unused) } else { self.remove(item, unused) }
            }
            End::Again { after, counts, reason } => {
                let lease = self.unlease(item)?;
                let due = now.saturating_add(span(*after));
                let changed = self
                    .database
                    .prepare_cached(
                        "UPDATE item SET due = ?2, attempts = attempts + ?3, reason = ?4 WHERE id = ?1 AND state = 0",
                    )?
                    .execute(params![item, due, counts, reason])?;
                if let Some(lease) = lease {
                    self.turns.available(&lease.tenant, due, item);
                }
                Ok(changed > 0)
            }
            End::Held { reason } => {
                self.unlease(item)?;
                self.hold(item, reason, true, false)
            }
        }
    }

    /// Holds a row that waits.
    fn hold(&mut self, item: i64, reason: &str, attempted: bool, told: bool) -> rusqlite::Result<bool> {
        let tenant: Option<String> = self
            .database
            .prepare_cached(
                "UPDATE item SET state = 1, attempts = attempts + ?2, reason = ?3, held_at = ?4, notified = notified OR ?5
                 WHERE id = ?1 AND state = 0 RETURNING tenant",
            )?
            .query_row(params![item, attempted, reason, self.shared.watch.now(), told], |row| row.get(0))
            .optional()?;
        if let Some(tenant) = &tenant {
            self.count(tenant, moved(WAITING, HELD));
        }
        Ok(tenant.is_some())
    }

    /// Removes a row that was delivered, and keeps it elsewhere, if there is room.
    fn keep(&mut self, item: i64, unused: &mut Vec<i64>) -> rusqlite::Result<bool> {
        let now = self.shared.watch.now();
        if !self.disk.is_spare(self.shared.watch.running()) {
            kept::lacks(&self.database, now.saturating_add(1))?;
            return self.remove(item, unused);
        }
        Ok(kept::put(&self.database, item, now)? && self.take(item)?.is_some())
    }

    /// Removes rows that are kept after their delivery, to make room, or because their time is over; how many there were.
    pub(super) fn drop_kept(&mut self, items: &[i64], unused: &mut Vec<i64>) -> rusqlite::Result<u64> {
        let (mut dropped, mut newest) = (0, 0);
        for &item in items {
            if let Some(gone) = self.remove_kept(item, unused)? {
                dropped += 1;
                newest = newest.max(gone.delivered_at);
            }
        }
        if dropped > 0 {
            kept::lacks(&self.database, newest.saturating_add(1))?;
        }
        Ok(dropped)
    }

    fn remove_kept(&mut self, item: i64, unused: &mut Vec<i64>) -> rusqlite::Result<Option<kept::Gone>> {
        let Some(gone) = kept::remove(&self.database, item)? else { return Ok(None) };
        if gone.in_file {
            unused.push(item);
        }
        unused.extend(self.leave_message(gone.message)?);
        Ok(Some(gone))
    }

    /// Has kept rows wait once more, as if they had just been accepted; keys and tenants of those that do. What is in the
    /// queue already stays as it is.
    pub(super) fn redeliver(
        &mut self,
        places: &[kept::Place],
    ) -> rusqlite::Result<Result<(Replayed, Again), StorageError>> {
        if let Err(full) = self.disk.room(self.shared.watch.running()) {
            return Ok(Err(full.into()));
        }
        let now = self.shared.watch.now();
        let (mut done, mut more) = (Replayed::default(), HashMap::<String, u64>::new());
        let mut those = Vec::new();
        for &(delivered_at, item) in places {
            let Some(row) = kept::at(&self.database, (delivered_at, item))? else { continue };
            let key = row.key.bytes();
            if Keys::find(&self.database, &key)?.is_some_and(|other| other != item) && self.is_item(&key)? {
                done.known += 1;
                continue;
            }
            let of_tenant = more.entry(row.tenant.clone()).or_default();
            if !self.shared.tally.takes_back(&row.tenant, *of_tenant, done.again as u64) {
                done.left += 1;
                continue;
            }
            *of_tenant += 1;
            kept::take_back(&self.database, item, now)?;
            self.keys.is_back(&self.database, &key, item)?;
            self.count(&row.tenant, WAITING);
            self.turns.available(&row.tenant, now, item);
            done.again += 1;
            those.push((row.key, row.tenant));
        }
        if !self.is_owner {
            for tenant in more.keys() {
                self.count_as_changed(tenant)?;
            }
        }
        Ok(Ok((done, those)))
    }

    /// Whether a key's activity is in the queue.
    fn is_item(&self, key: &[u8; 32]) -> rusqlite::Result<bool> {
        let Some(item) = Keys::find(&self.database, key)? else { return Ok(false) };
        self.database
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM item WHERE id = ?1)")?
            .query_row([item], |row| row.get(0))
    }

    /// Removes a row, and its message if no other row needs it.
    fn remove(&mut self, item: i64, unused: &mut Vec<i64>) -> rusqlite::Result<bool> {
        let Some(gone) = self.take(item)? else { return Ok(false) };
        if gone.in_file {
            unused.push(item);
        }
        unused.extend(self.leave_message(gone.message)?);
        Ok(true)
    }

    /// Takes a row away; its message is the caller's.
    fn take(&mut self, item: i64) -> rusqlite::Result<Option<Gone>> {
        let gone = self
            .database
            .prepare_cached(
                "DELETE FROM item WHERE id = ?1 RETURNING key, tenant, state, aged, message, in_file",
            )?
            .query_row([item], |row| {
                let (key, tenant) = (key_of(row.get_ref(0)?), row.get(1)?);
                let was = numbers_of(row.get(2)?, row.get(3)?);
                Ok(Gone { key, tenant, was, message: row.get(4)?, in_file: row.get(5)? })
            })
            .optional()?;
        if let Some(gone) = &gone {
            self.keys.went(&self.database, &gone.key.bytes(), item)?;
            self.count(&gone.tenant, moved(gone.was, tally::Numbers::default()));
        }
        Ok(gone)
    }

    /// One row fewer needs this message; the number of its file, if none does.
    fn leave_message(&self, message: i64) -> rusqlite::Result<Option<i64>> {
        if message == 0 {
            return Ok(None);
        }
        let others = self
            .database
            .prepare_cached("UPDATE message SET items = items - 1 WHERE id = ?1 AND items > 1")?
            .execute([message])?;
        if others > 0 {
            return Ok(None);
        }
        let in_file: Option<bool> = self
            .database
            .prepare_cached("DELETE FROM message WHERE id = ?1 RETURNING in_file")?
            .query_row([message], |row| row.get(0))
            .optional()?;
        Ok(in_file.filter(|in_file| *in_file).map(|_| message))
    }

    /// Stores the backend's progress, if the lease is still this one, and prolongs it.
    pub(super) fn note(&mut self, ticket: &Ticket, note: &str) -> rusqlite::Result<bool> {
        let Some(mut lease) = self.leases.get(ticket.item, ticket.fence).cloned() else { return Ok(false) };
        let noted = self
            .database
            .prepare_cached("UPDATE item SET note = ?2 WHERE id = ?1")?
            .execute(params![ticket.item, note])?;
        let ends = self.shared.watch.now() + span(LEASE);
        self.database
            .prepare_cached("UPDATE lease SET until = ?2 WHERE item = ?1")?
            .execute(params![ticket.item, ends])?;
        lease.until = self.shared.watch.running() + LEASE;
        self.leases.insert(ticket.item, lease);
        Ok(noted > 0)
    }

    /// Changes rows by hand that nobody has leased; which.
    pub(super) fn change(
        &mut self,
        items: &[i64],
        change: &Change,
        unused: &mut Vec<i64>,
    ) -> rusqlite::Result<Vec<i64>> {
        let mut changed = Vec::new();
        for &item in items {
            let found: Option<(String, tally::Numbers)> = self
                .database
                .prepare_cached(
                    "SELECT tenant, state, aged FROM item WHERE id = ?1 AND id NOT IN (SELECT item FROM lease)",
                )?
                .query_row([item], |row| Ok((row.get(0)?, numbers_of(row.get(1)?, row.get(2)?))))
                .optional()?;
            let Some((tenant, was)) = found else {
                if *change == Change::Drop && self.remove_kept(item, unused)?.is_some() {
                    changed.push(item);
                }
                continue;
            };
            let is_changed = match change {
                Change::Drop => self.remove(item, unused)?,
                Change::Hold { reason } => self.hold(item, reason, false, true)?, // whoever holds it knows
                Change::Retry => {
                    let now = self.shared.watch.now();
                    self.database
                        .prepare_cached(
                            "UPDATE item SET state = 0, due = ?2, attempts = 0, accepted_at = ?2, aged = 0, held_at = NULL
                             WHERE id = ?1",
                        )?
                        .execute(params![item, now])?;
                    self.count(&tenant, moved(was, WAITING));
                    self.turns.available(&tenant, now, item);
                    true
                }
            };
            changed.extend(is_changed.then_some(item));
            if !self.is_owner {
                self.count_as_changed(&tenant)?;
            }
        }
        Ok(changed)
    }

    /// Makes the service look at a tenant again, whose numbers may be the same as before.
    fn count_as_changed(&self, tenant: &str) -> rusqlite::Result<()> {
        self.database
            .prepare_cached("UPDATE tenant SET changes = changes + 1 WHERE id = ?1")?
            .execute([tenant])?;
        Ok(())
    }

    /// Holds those of these rows that still wait, are older than `oldest`, and that nobody has leased.
    pub(super) fn hold_old(
        &mut self,
        items: &[i64],
        oldest: i64,
        reason: &str,
    ) -> rusqlite::Result<Vec<NewlyHeld>> {
        let mut held = Vec::new();
        for &item in items {
            // A row whose activity cannot be read has no queue id.
            let found: Option<NewlyHeld> = self
                .database
                .prepare_cached(
                    "SELECT key, tenant, CASE WHEN json_valid(activity) THEN json_extract(activity, '$.envelope.queue_id') END
                     FROM item WHERE id = ?1 AND state = 0 AND accepted_at < ?2",
                )?
                .query_row(params![item, oldest], |row| {
                    Ok(NewlyHeld { key: key_of(row.get_ref(0)?), tenant: row.get(1)?, queue_id: row.get(2)? })
                })
                .optional()?;
            if let Some(found) = found.filter(|_| !self.leases.has(item))
                && self.hold(item, reason, false, false)?
            {
                held.push(found);
            }
        }
        Ok(held)
    }

    /// Those of these rows that are held no longer count.
    pub(super) fn age(&mut self, items: &[i64]) -> rusqlite::Result<()> {
        for item in items {
            let tenant: Option<String> = self
                .database
                .prepare_cached(
                    "UPDATE item SET aged = 1 WHERE id = ?1 AND state = 1 AND aged = 0 RETURNING tenant",
                )?
                .query_row([item], |row| row.get(0))
                .optional()?;
            if let Some(tenant) = tenant {
                self.count(&tenant, moved(HELD, AGED));
            }
        }
        Ok(())
    }

    /// Mends the times of rows that lie ahead of now: the clock was wrong when they came.
    pub(super) fn mend_times(&mut self, items: &[i64]) -> rusqlite::Result<usize> {
        let now = self.shared.watch.now();
        let mut mended = 0;
        for item in items {
            let tenant: Option<String> = self
                .database
                .prepare_cached(
                    "UPDATE item SET due = min(due, ?2), accepted_at = min(accepted_at, ?2), held_at = min(held_at, ?2)
                     WHERE id = ?1 RETURNING tenant",
                )?
                .query_row(params![item, now], |row| row.get(0))
                .optional()?;
            if let Some(tenant) = tenant {
                mended += 1;
                self.leases.mend(*item, now);
                self.turns.available(&tenant, now, *item);
            }
        }
        self.keys.mend(&self.database, now)?;
        Ok(mended)
    }

    /// The same of a slice of those that are kept after their delivery; how many.
    pub(super) fn mend_kept(&mut self) -> rusqlite::Result<usize> {
        kept::mend(&self.database, self.shared.watch.now())
    }

    /// Notes the newest time, and until when the clock is not believed.
    pub(super) fn note_time(&mut self) -> rusqlite::Result<()> {
        self.database
            .prepare_cached("UPDATE meta SET newest = ?1, distrust = ?2")?
            .execute([self.shared.watch.now(), self.shared.watch.distrust()])?;
        Ok(())
    }

    /// A command changes times, and its clock may have leapt without the service having seen it: the next start could not tell.
    pub(super) fn note_leap_of_others(&mut self) -> rusqlite::Result<()> {
        let now = self.shared.watch.now();
        self.database
            .prepare_cached("UPDATE meta SET distrust = max(distrust, ?1 + ?2) WHERE newest < ?1 - ?3")?
            .execute([now, span(DISTRUST), span(FORWARD)])?;
        Ok(())
    }

    /// Forgets a slice of old keys; true if there is more to do. They are remembered for seven days at least (`keys`).
    pub(super) fn forget_keys(&mut self) -> rusqlite::Result<bool> {
        let now = self.shared.watch.now();
        if !self.keys.is_over(now) || !self.shared.watch.is_trusted() {
            return Ok(false);
        }
        self.keys.forget(&self.database, now, &self.shared.numbers)
    }

    /// For tests that count what SQLite does.
    #[cfg(test)]
    pub(super) fn database_mut(&mut self) -> &mut Connection {
        &mut self.database
    }

    /// A test has changed when the generation began.
    #[cfg(test)]
    pub(super) fn read_keys_again(&mut self) -> rusqlite::Result<()> {
        self.keys = Keys::read(&self.database)?;
        Ok(())
    }

    /// Whether there is room on the disk.
    pub(super) fn room(&mut self) -> Result<(), StorageError> {
        Ok(self.disk.room(self.shared.watch.running())?)
    }
}

const WAITING: tally::Numbers = tally::Numbers { waiting: 1, held: 0, aged: 0 };
const HELD: tally::Numbers = tally::Numbers { waiting: 0, held: 1, aged: 0 };
const AGED: tally::Numbers = tally::Numbers { waiting: 0, held: 0, aged: 1 };

fn numbers_of(state: i64, aged: bool) -> tally::Numbers {
    match (state, aged) {
        (0, _) => WAITING,
        (_, false) => HELD,
        (_, true) => AGED,
    }
}

/// The change of the numbers when a row was counted so and is counted so now.
fn moved(from: tally::Numbers, to: tally::Numbers) -> tally::Numbers {
    let tally::Numbers { waiting, held, aged } = to;
    tally::Numbers { waiting: waiting - from.waiting, held: held - from.held, aged: aged - from.aged }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{Queue, Settings, SystemClock, sqlite::SqliteQueue};

    /// Q14: a lease that did not come to the disk is nobody's, also when it was of all that a tenant has.
    #[tokio::test]
    async fn what_was_leased_in_vain_is_leased_again() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings::new(dir.path().join("queue.db"), dir.path().join("spool"));
        let open = || {
            SqliteQueue::open(&Settings { min_free: 0, ..settings.clone() }, Arc::new(SystemClock)).unwrap()
        };
        let queue = open();
        let put = |ledger: &mut Ledger| {
            let row = NewRow { key: [1; 32], tenant: "a".to_owned(), activity: "{}".to_owned() };
            let number = ledger.shared.numbers.next();
            let letter = Letter { number, body: Some(Bytes::new()), cuts: "[]".to_owned(), text: None };
            ledger.put(&[row], &letter, &[], &mut None, &Arc::clone(&ledger.shared.numbers))
        };
        assert_eq!(queue.0.writer.write(put).await.unwrap().unwrap(), [Put::New]);
        drop(queue);
        let queue = open(); // whose tenants were all looked at
        let ask = Ask { room: 10, ..Ask::default() };
        let asked = ask.clone();
        let in_vain = queue.0.writer.write(move |ledger| {
            assert_eq!(ledger.lease(&asked)?.tickets.len(), 1);
            ledger.database.execute("INSERT INTO nowhere VALUES (1)", [])
        });
        assert!(in_vain.await.is_err());
        assert_eq!(queue.lease(ask).await.unwrap().tickets.len(), 1);
    }
}
