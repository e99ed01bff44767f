//! Activities that are kept after their delivery, and how they go.
//!
//! In: items that were delivered. Out: the same items, waiting once more; or nothing, when their time or their room is over.
//! Promise: a row is an item or kept, never both and never neither: it is moved within one transaction, with its number,
//! its message and its file. Kept ones never cost a message its place: they count nowhere, and go, the oldest first, before
//! the reserve of the disk is reached or the queue would be full with them.

use super::{Inner, Slice, row::key_of, watch::time};
use crate::activity::Key;
use crate::observe::events;
use crate::queue::{Kept, Replay, StorageError};
use rusqlite::{Connection, OptionalExtension, params};
use std::time::{Duration, Instant};

/// Rows looked at in one page.
pub(super) const PAGE: i64 = 1000;

/// Rows dropped in one slice, at most.
const DROPPED_AT_ONCE: usize = 500;

/// Pages given back at once: 4 MiB.
const VACUUM_PAGES: usize = 1024;

/// How long who delivers waits at a time while room is made on the disk.
const SHED_TIME: Duration = Duration::from_millis(250);

/// A kept row's place in the order in which they were delivered.
pub(super) type Place = (i64, i64);

/// A kept row.
pub(super) struct Row {
    pub(super) key: Key,
    pub(super) tenant: String,
}

/// Keeps an item, as delivered at `now`. The item is to be removed then, and its message is not.
pub(super) fn put(database: &Connection, item: i64, now: i64) -> rusqlite::Result<bool> {
    let kept = database
        .prepare_cached(
            "INSERT OR REPLACE INTO kept (id, key, message, tenant, attempts, accepted_at, delivered_at, in_file, text, cuts,
                 activity, body)
             SELECT id, key, message, tenant, attempts, accepted_at, ?2, in_file, text, cuts, activity, body
             FROM item WHERE id = ?1",
        )?
        .execute([item, now])?;
    Ok(kept > 0)
}

/// The row of a place, if it is still there.
pub(super) fn at(database: &Connection, (delivered_at, id): Place) -> rusqlite::Result<Option<Row>> {
    database
        .prepare_cached("SELECT key, tenant FROM kept WHERE id = ?1 AND delivered_at = ?2")?
        .query_row([id, delivered_at], |row| Ok(Row { key: key_of(row.get_ref(0)?), tenant: row.get(1)? }))
        .optional()
}

/// Makes a kept row an item that waits, as if accepted at `now`, with no note of before.
pub(super) fn take_back(database: &Connection, id: i64, now: i64) -> rusqlite::Result<()> {
    database
        .prepare_cached(
            "INSERT INTO item (id, key, message, tenant, due, accepted_at, in_file, text, cuts, activity, body, replay)
             SELECT id, key, message, tenant, ?2, ?2, in_file, text, cuts, activity, body, 1 FROM kept WHERE id = ?1",
        )?
        .execute([id, now])?;
    database.prepare_cached("DELETE FROM kept WHERE id = ?1")?.execute([id])?;
    Ok(())
}

/// What a row that went had.
pub(super) struct Gone {
    pub(super) message: i64,
    pub(super) in_file: bool,
    pub(super) delivered_at: i64,
}

/// Removes a row; its message is the caller's.
pub(super) fn remove(database: &Connection, id: i64) -> rusqlite::Result<Option<Gone>> {
    database
        .prepare_cached("DELETE FROM kept WHERE id = ?1 RETURNING message, in_file, delivered_at")?
        .query_row([id], |row| {
            Ok(Gone { message: row.get(0)?, in_file: row.get(1)?, delivered_at: row.get(2)? })
        })
        .optional()
}

/// At the start: since when all that was delivered is kept. Who keeps from now on has nothing of before.
pub(super) fn begin(database: &Connection, keeps: bool, now: i64) -> rusqlite::Result<()> {
    database.execute(
        "UPDATE meta SET kept_since = CASE WHEN NOT ?1 THEN 0 WHEN kept_since = 0 THEN ?2 ELSE kept_since END",
        params![keeps, now],
    )?;
    Ok(())
}

/// What was delivered before `then` is not all there any more.
pub(super) fn lacks(database: &Connection, then: i64) -> rusqlite::Result<()> {
    database
        .prepare_cached("UPDATE meta SET kept_since = ?1 WHERE kept_since BETWEEN 1 AND ?1 - 1")?
        .execute([then])?;
    Ok(())
}

/// Mends times that lie ahead of now, of a slice: the clock was wrong when they were delivered. How many there were.
pub(super) fn mend(database: &Connection, now: i64) -> rusqlite::Result<usize> {
    database.execute("UPDATE meta SET kept_since = ?1 WHERE kept_since > ?1", [now])?;
    database.execute(
        "UPDATE kept SET delivered_at = ?1
         WHERE id IN (SELECT id FROM kept INDEXED BY kept_time WHERE delivered_at > ?1 LIMIT 200)",
        [now],
    )
}

/// How many there are, and since when.
pub(super) fn look(database: &Connection) -> Result<Kept, StorageError> {
    let (activities, since): (i64, i64) = database.query_row(
        "SELECT (SELECT count(*) FROM kept INDEXED BY kept_time), kept_since FROM meta",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let activities = u64::try_from(activities).unwrap_or(0);
    Ok(Kept { activities, since: (since > 0).then(|| time(since)) })
}

/// A page of those of a replay behind a place, in the order of their delivery.
pub(super) fn page(
    database: &Connection,
    replay: &Replay,
    until: i64,
    after: Place,
) -> Result<Vec<Place>, StorageError> {
    let since = super::watch::millis(replay.since);
    let mut rows = database.prepare_cached(
        "SELECT delivered_at, id FROM kept INDEXED BY kept_time
         WHERE delivered_at >= ?1 AND delivered_at < ?2 AND (delivered_at, id) > (?3, ?4)
             AND (?5 IS NULL OR tenant = ?5 OR json_extract(activity, '$.tenant.prefix') = lower(?5))
         ORDER BY delivered_at, id LIMIT ?6",
    )?;
    let rows = rows
        .query_map(params![since.max(after.0), until, after.0, after.1, replay.tenant, PAGE], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The oldest ones, at most `most`: those delivered before `before`, if that is given.
fn oldest(database: &Connection, before: Option<i64>, most: i64) -> Result<Vec<i64>, StorageError> {
    let mut rows = database.prepare_cached(
        "SELECT id FROM kept INDEXED BY kept_time WHERE delivered_at < ?1 ORDER BY delivered_at, id LIMIT ?2",
    )?;
    let rows = rows.query_map([before.unwrap_or(i64::MAX), most], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Drops a page of the oldest, in slices; how many.
async fn drop_oldest(queue: &Inner, before: Option<i64>, most: u64) -> Result<u64, StorageError> {
    let most = i64::try_from(most).unwrap_or(PAGE).min(PAGE);
    let rows = queue.lister.look(move |database| oldest(database, before, most)).await?;
    let mut slice = Slice::of(DROPPED_AT_ONCE);
    let (mut rest, mut dropped) = (rows.as_slice(), 0);
    while !rest.is_empty() {
        let some = slice.next(&mut rest).to_vec();
        let write = move |ledger: &mut super::Ledger| {
            let mut unused = Vec::new();
            Ok((ledger.drop_kept(&some, &mut unused)?, unused))
        };
        let ((count, unused), took) = queue.writer.write_timed(write).await?;
        dropped += count;
        queue.remove_files(unused).await;
        slice.done(took).await;
    }
    Ok(dropped)
}

/// Drops those whose time is over, and the oldest of those for which there is no room; how many went before their time.
pub(super) async fn tidy(queue: &Inner) -> Result<u64, StorageError> {
    let keeps = !queue.keep_delivered.is_zero();
    let over = queue.watch.now().saturating_sub(super::watch::span(queue.keep_delivered));
    if !keeps || queue.watch.is_trusted() {
        let mut dropped = 0;
        while let some @ 1.. = drop_oldest(queue, keeps.then_some(over), u64::MAX).await? {
            dropped += some;
        }
        if !keeps && dropped > 0 {
            events::kept_off(dropped);
        }
    }
    let mut early = 0;
    loop {
        let kept = queue.lister.look(|database| look(database)).await?.activities;
        let many = kept.saturating_sub(queue.tally.spare());
        let dropped = if many > 0 { drop_oldest(queue, None, many).await? } else { 0 };
        early += dropped;
        if dropped == 0 {
            return Ok(early);
        }
    }
}

/// Makes room on a disk that becomes full, for as long as a delivery may wait: pages that are free already are given back,
/// then the oldest go. How many went. Where nothing is kept there is nothing to be done.
pub(super) async fn shed(queue: &Inner) -> Result<u64, StorageError> {
    let began = Instant::now();
    let mut dropped = 0;
    while queue.is_short() && began.elapsed() < SHED_TIME {
        let (is_any, free) = queue.lister.look(|database| any(database)).await?;
        if !is_any {
            break;
        }
        if free == 0 {
            dropped += drop_oldest(queue, None, DROPPED_AT_ONCE as u64).await?;
            continue;
        }
        let (_, took) = queue.writer.vacuum(VACUUM_PAGES).await?;
        // The file becomes shorter when the log is copied into it.
        let copy = |database: &mut Connection| {
            Ok(database.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?)
        };
        queue.lister.look(copy).await?;
        Slice::of(1).done(took).await;
    }
    Ok(dropped)
}

/// Whether anything is kept, and how many pages of the file are free.
fn any(database: &Connection) -> Result<(bool, i64), StorageError> {
    let is_any = database.query_row("SELECT EXISTS (SELECT 1 FROM kept)", [], |row| row.get(0))?;
    Ok((is_any, database.query_row("PRAGMA freelist_count", [], |row| row.get(0))?))
}
