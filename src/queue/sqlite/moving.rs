//! Rows on their way to another queue, and rows that come from one.
//!
//! In: pages asked for; transfers. Out: transfers; what became of each activity.
//! Promise: what comes is stored as a message is that arrives (`Ledger::put`), once for each key, and in the same commit it
//! gets the past it had. Who is no service takes numbers of a start of its own, behind all that were ever given; the service
//! notices, and goes on behind those (`Ledger::notice_others`).
//! Fails: [`StorageError`]; a row that nobody can read stays where it is, and hides no other.

use super::{
    Inner, Ledger, Numbers, later,
    ledger::{Letter, NewRow},
    look,
    spool::Spool,
};
use crate::activity::{Key, Raw};
use crate::queue::{
    Change, Put, StorageError, sync_name,
    transfer::{Identity, Moved, PAGE, PAGE_BYTES, Page, Past, Place, Rest, Transfer, in_memory},
};
use futures_util::future::join_all;
use rusqlite::{Connection, Row, params};
use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

/// Locks of a move; the kernel gives them back however we end. One who leaves has the file for himself: two moves the other way
/// round at once would each find the other's rows known, and both would let go of them. Many may take in at the same time.
#[derive(Debug, Default)]
pub(super) struct Holds {
    /// And whether we have marked it.
    leaves: Option<(File, bool)>,
    takes: Option<File>,
}

/// The file of the locks. What stands in it says that another queue may have some of what is here.
pub(super) fn lock_path(queue: &Path) -> io::Result<PathBuf> {
    // Under whatever name, the same one.
    Ok(super::beside(&fs::canonicalize(queue)?, ".moving"))
}

fn lock_file(queue: &Inner) -> Result<File, StorageError> {
    let open = |path| fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    lock_path(&queue.path).and_then(open).map_err(later)
}

/// A move has begun to leave.
const LEAVES: &[u8] = b"a move leaves\n";

/// What is here is kept for a database server.
const SPOOLS: &[u8] = b"kept for a database\n";

/// Notes it durably, before anybody else may have a row.
fn mark(queue: &Inner, file: &File, mark: &[u8]) -> io::Result<()> {
    let mut file = file;
    file.write_all(mark)?;
    file.sync_all()?;
    sync_name(&lock_path(&queue.path)?)
}

/// From here on what is put may be in a database server's queue too, until this file is empty.
pub(super) fn spools(queue: &Inner) -> Result<(), StorageError> {
    let file = lock_file(queue)?;
    let is_marked = fs::read(lock_path(&queue.path).map_err(later)?).map_err(later)?.starts_with(SPOOLS);
    if is_marked {
        return Ok(());
    }
    file.set_len(0).and_then(|()| mark(queue, &file, SPOOLS)).map_err(later)
}

/// Another queue may have some of what is here.
pub(super) fn is_marked(path: &Path) -> io::Result<bool> {
    match lock_path(path).and_then(fs::metadata) {
        Ok(file) => Ok(file.len() > 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// No other queue has anything of what is here: nothing is.
pub(super) fn unmark(queue: &Inner) -> Result<(), StorageError> {
    let file = lock_file(queue)?;
    file.set_len(0).map_err(later)
}

fn locked(lock: Result<(), TryLockError>) -> Result<(), StorageError> {
    lock.map_err(|error| match error {
        TryLockError::WouldBlock => StorageError::Leaving,
        TryLockError::Error(error) => later(error),
    })
}

/// From here on nobody else moves anything out of it, or into it.
pub(super) fn leave(queue: &Inner) -> Result<(), StorageError> {
    let mut holds = queue.moving.lock().unwrap_or_else(PoisonError::into_inner);
    if holds.leaves.is_none() {
        let file = lock_file(queue)?;
        locked(file.try_lock())?;
        let is_new = file.metadata().map_err(later)?.len() == 0;
        if is_new {
            mark(queue, &file, LEAVES).map_err(later)?;
        }
        holds.leaves = Some((file, is_new));
    }
    Ok(())
}

/// From here on nobody moves anything out of it.
fn stay(queue: &Inner) -> Result<(), StorageError> {
    let mut holds = queue.moving.lock().unwrap_or_else(PoisonError::into_inner);
    if holds.takes.is_none() {
        let file = lock_file(queue)?;
        locked(file.try_lock_shared())?;
        holds.takes = Some(file);
    }
    Ok(())
}

/// Nothing is moved any more.
pub(super) fn rest(queue: &Inner, how: Rest) {
    let mut holds = queue.moving.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((file, is_new)) = &holds.leaves
        && (how == Rest::Done || how == Rest::Clear && *is_new)
        && lock_path(&queue.path).and_then(fs::read).is_ok_and(|mark| mark == LEAVES)
    {
        let _ = file.set_len(0); // or the next start says so, and a move of nothing does it
    }
    *holds = Holds::default();
}

/// A row's past, and whose it is; kept rows below.
const PAST: &str = "
    SELECT tenant, accepted_at, due, attempts, state, held_at, notified, aged, replay, reason, note, NULL, key
    FROM item WHERE id = ?1";

const PAST_OF_KEPT: &str = "
    SELECT tenant, accepted_at, delivered_at, attempts, 0, NULL, 0, 0, 0, NULL, NULL, delivered_at, key
    FROM kept WHERE id = ?1";

/// The database's own name, and its file.
pub(super) fn identity(database: &Connection, path: &Path) -> Result<Identity, StorageError> {
    let file = std::fs::metadata(path).map_err(later)?;
    Ok(Identity { id: super::folder(database)?, file: Some((file.dev(), file.ino())) })
}

/// A page of rows behind `after`.
pub(super) fn page(
    database: &Connection,
    spool: &Spool,
    delivered: bool,
    after: i64,
) -> Result<Page, StorageError> {
    let ids = match delivered {
        true => "SELECT id FROM kept WHERE id > ?1 ORDER BY id LIMIT ?2",
        false => {
            "SELECT id FROM item NOT INDEXED WHERE id > ?1 AND id NOT IN (SELECT item FROM lease) ORDER BY id LIMIT ?2"
        }
    };
    let most = i64::try_from(PAGE).unwrap_or(i64::MAX);
    let ids: Vec<i64> = database
        .prepare_cached(ids)?
        .query_map(params![after, most], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let (mut page, mut found, mut bytes) = (Page::default(), Vec::new(), 0);
    for id in ids {
        if bytes > PAGE_BYTES {
            break;
        }
        page.last = Some(id);
        let (tenant, past, key) =
            database.prepare_cached(if delivered { PAST_OF_KEPT } else { PAST })?.query_row([id], past)?;
        match look::stored(database, spool, id) {
            Ok((stored, raw)) => {
                let (letter, mut one) = stored.transfer(id, raw);
                one.rows = vec![Moved { tenant, past, ..one.rows.remove(0) }];
                bytes += one.bytes();
                found.push((letter, one));
            }
            Err(error @ StorageError::Busy(_)) => return Err(error),
            Err(error) => page.stuck.push((key, error.to_string())),
        }
    }
    page.transfers = Transfer::grouped(found);
    Ok(page)
}

fn past(row: &Row<'_>) -> rusqlite::Result<(String, Past, Key)> {
    let past = Past {
        accepted_at: row.get(1)?,
        due: row.get(2)?,
        attempts: row.get(3)?,
        is_held: row.get(4)?,
        held_at: row.get(5)?,
        told: row.get(6)?,
        aged: row.get(7)?,
        replay: row.get(8)?,
        reason: row.get(9)?,
        note: row.get(10)?,
        delivered_at: row.get(11)?,
    };
    Ok((row.get(0)?, past, super::row::key_of(row.get_ref(12)?)))
}

impl look::Stored {
    /// As it is kept, without its past; first the number of its message.
    fn transfer(self, item: i64, raw: Raw) -> (i64, Transfer) {
        let (letter, key, activity, cuts, text) = self.into_parts();
        let place = Place { item, fence: 0 };
        let row = Moved { place, key, tenant: String::new(), activity, past: Past::default() };
        let letter = if letter == 0 { item } else { letter };
        (letter, Transfer { rows: vec![row], cuts: cuts.unwrap_or_else(|| "[]".to_owned()), text, raw })
    }
}

/// Keys that are remembered and have no row, behind `after`.
pub(super) fn memory(
    database: &Connection,
    after: Option<[u8; 32]>,
    limit: usize,
) -> Result<Vec<Key>, StorageError> {
    let mut rows = database.prepare_cached(
        "SELECT DISTINCT key FROM (
             SELECT * FROM (SELECT key FROM key_0 WHERE (?1 IS NULL OR key > ?1) AND item NOT IN (SELECT id FROM item)
                 AND item NOT IN (SELECT id FROM kept) ORDER BY key LIMIT ?2)
             UNION ALL
             SELECT * FROM (SELECT key FROM key_1 WHERE (?1 IS NULL OR key > ?1) AND item NOT IN (SELECT id FROM item)
                 AND item NOT IN (SELECT id FROM kept) ORDER BY key LIMIT ?2))
         ORDER BY key LIMIT ?2",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = rows.query_map(params![after, limit], |row| Ok(super::row::key_of(row.get_ref(0)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Takes transfers in: together, so that they share their commits.
pub(super) async fn take_in(queue: &Arc<Inner>, transfers: Vec<Transfer>) -> Result<Vec<Put>, StorageError> {
    stay(queue)?;
    let numbers = numbers(queue).await?;
    // What is known needs no room: a page of which a part is here already comes again.
    let keys: Vec<Key> = transfers.iter().flat_map(|one| &one.rows).map(|row| row.key.clone()).collect();
    let known = queue.opener.look(move |database| look::known(database, &keys)).await?;
    let mut known = known.into_iter();
    let puts = transfers.into_iter().map(|transfer| {
        let mut is_new = |row: &&Moved| known.next() != Some(true) && row.past.delivered_at.is_none();
        let new = transfer.rows.iter().filter(&mut is_new).map(|row| row.tenant.clone()).collect();
        take_in_one(queue, &numbers, transfer, new)
    });
    // All of them, also where one cannot be: nothing is on its way when this returns.
    join_all(puts.collect::<Vec<_>>()).await.into_iter().try_fold(Vec::new(), |mut all, puts| {
        all.extend(puts?);
        Ok(all)
    })
}

/// The service's; a command's are of a start of its own.
async fn numbers(queue: &Arc<Inner>) -> Result<Arc<Numbers>, StorageError> {
    if let Some(numbers) = queue.numbers.as_ref().or(queue.own_numbers.get()) {
        return Ok(Arc::clone(numbers));
    }
    let spool = queue.spool.clone();
    let begin = move |ledger: &mut Ledger| {
        let greatest = spool.numbers(i64::MAX).unwrap_or_default().into_iter().max().unwrap_or(0);
        Numbers::begin(ledger.database(), greatest)
    };
    // Only what is committed is ours.
    let numbers = Arc::new(queue.writer.write(begin).await?);
    Ok(Arc::clone(queue.own_numbers.get_or_init(|| numbers)))
}

/// `tenants`: whose rows of it take room; what is kept after its delivery takes none that anybody counts.
async fn take_in_one(
    queue: &Arc<Inner>,
    numbers: &Arc<Numbers>,
    transfer: Transfer,
    tenants: Vec<String>,
) -> Result<Vec<Put>, StorageError> {
    let Transfer { rows, cuts, text, raw } = transfer;
    let room = match queue.tally.reserve(tenants.clone()) {
        Ok(room) => room,
        Err(_) => {
            queue.writer.write_unsynced(|_| Ok(())).await?;
            queue.tally.reserve(tenants)?
        }
    };
    let number = numbers.next();
    let (body, mut kept) = match &raw {
        Raw::Memory(_) => (in_memory(&raw), None),
        Raw::File { file, .. } => {
            let (spool, file) = (queue.spool.clone(), Arc::clone(file));
            let keep = tokio::task::spawn_blocking(move || spool.keep(&file, number));
            (None, Some(keep.await.map_err(|error| later(error.into()))?.map_err(later)?))
        }
    };
    let text = text.filter(|_| body.is_some());
    let letter = Letter { number, body, cuts, text };
    let pasts: Vec<Past> = rows.iter().map(|row| row.past.clone()).collect();
    let rows: Vec<NewRow> = rows
        .into_iter()
        .map(|row| NewRow { key: row.key.bytes(), tenant: row.tenant, activity: row.activity })
        .collect();
    let bell = super::Bell { arrived: Arc::clone(&queue.arrived), oldest: Some(Arc::clone(&queue.oldest)) };
    let (keeps, numbers) = (!queue.keep_delivered.is_zero(), Arc::clone(numbers));
    let done = queue
        .writer
        .write(move |ledger| {
            let _ = (&room, &bell); // until it is committed
            let puts = match ledger.put(&rows, &letter, &[], &mut kept, &numbers)? {
                Ok(puts) => puts,
                Err(error) => return Ok(Err(error)),
            };
            let mut unused = Vec::new();
            for ((row, past), put) in rows.iter().zip(&pasts).zip(&puts) {
                if *put == Put::New {
                    ledger.give_past(&row.key, &row.tenant, past, keeps, &mut unused)?;
                }
            }
            Ok(Ok((puts, unused)))
        })
        .await?;
    let (puts, unused) = done?;
    queue.remove_files(unused).await;
    Ok(puts)
}

/// They are in another queue, with their keys.
pub(super) async fn let_go(queue: &Inner, places: Vec<Place>) -> Result<usize, StorageError> {
    leave(queue)?;
    let items: Vec<i64> = places.iter().map(|place| place.item).collect();
    let write = move |ledger: &mut Ledger| {
        let mut unused = Vec::new();
        let keys = keys_of(ledger.database(), &items)?;
        let gone = ledger.change(&items, &Change::Drop, &mut unused)?.len();
        forget_in(ledger.database(), &keys)?;
        Ok((gone, unused))
    };
    let (gone, unused) = queue.writer.write(write).await?;
    queue.remove_files(unused).await;
    Ok(gone)
}

fn keys_of(database: &Connection, items: &[i64]) -> rusqlite::Result<Vec<Key>> {
    let mut keys = database
        .prepare_cached("SELECT key FROM item WHERE id = ?1 UNION ALL SELECT key FROM kept WHERE id = ?1")?;
    let mut all = Vec::new();
    for item in items {
        let of_item = keys.query_map([item], |row| Ok(super::row::key_of(row.get_ref(0)?)))?;
        all.extend(of_item.collect::<rusqlite::Result<Vec<_>>>()?);
    }
    Ok(all)
}

/// Remembers keys.
pub(super) async fn remember(queue: &Inner, keys: Vec<Key>) -> Result<(), StorageError> {
    stay(queue)?;
    queue.writer.write(move |ledger| keys.iter().try_for_each(|key| ledger.remember(&key.bytes()))).await
}

/// Forgets keys that have no row.
pub(super) async fn forget(queue: &Inner, keys: Vec<Key>) -> Result<(), StorageError> {
    leave(queue)?;
    queue.writer.write(move |ledger| forget_in(ledger.database(), &keys)).await
}

fn forget_in(database: &Connection, keys: &[Key]) -> rusqlite::Result<()> {
    for table in ["key_0", "key_1"] {
        let sql = format!(
            "DELETE FROM {table} WHERE key = ?1 AND item NOT IN (SELECT id FROM item) AND item NOT IN (SELECT id FROM kept)"
        );
        let mut forget = database.prepare_cached(&sql)?;
        keys.iter().try_for_each(|key| forget.execute([key.bytes()]).map(drop))?;
    }
    Ok(())
}
