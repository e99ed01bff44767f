//! What is done from time to time, in slices: who puts or delivers never waits for more than one of them.
//!
//! In: the queue. Out: what was found ([`Upkeep`]).
//! Promise: looking for work is done on a connection of its own; a slice of work takes about 8 ms of the writer, and then
//! the writer is left to others for as long. What was not done because of an error is done the next time.

use super::{
    Inner, Slice, kept, later, look,
    watch::{Watch, span},
};
use crate::queue::{NewlyHeld, StorageError, Upkeep};
use rusqlite::Connection;
use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

/// Rows looked at in one page.
const PAGE: i64 = 1000;

/// How often all rows are looked at, not only those where work is likely.
const WHOLE_EVERY: Duration = Duration::from_secs(6 * 3600);

/// The latest that something may be due: longer than any backoff and any `Retry-After` that we honour.
const LATEST: Duration = Duration::from_secs(25 * 3600);

/// The same where the clock is known to have been ahead: what was attempted then is due by that clock. An attempt that
/// comes too early harms less than one that comes a day late.
const LATEST_AFTER_LEAP: Duration = Duration::from_secs(15 * 60);

/// Clocks of machines that are kept right differ by less.
const SLACK: Duration = Duration::from_secs(60);

/// Free pages given back at once, at most: 4 MiB.
const VACUUM_PAGES: usize = 1024;

/// Slices of those in one upkeep: a file of gigabytes shrinks within minutes.
const VACUUM_SLICES: u32 = 256;

/// A log longer than that is said.
const LONG_LOG: u64 = 256 << 20;

/// Where the upkeep stands.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Files of before this start were looked at.
    swept: bool,
    /// When all rows were looked at ([`super::Clock::running`]).
    whole: Option<Duration>,
    /// There may be times that lie ahead, and what is due in so long or later is one.
    mend: Option<Duration>,
}

impl Places {
    /// After the start: whether the newest rows came, or one is due, at a time that is still to come.
    pub(super) fn after_open(
        database: &Connection,
        watch: &Watch,
        was_ahead: bool,
    ) -> rusqlite::Result<Self> {
        if was_ahead {
            return Ok(Self { mend: Some(LATEST_AFTER_LEAP), ..Self::default() });
        }
        let latest = watch.now() + span(LATEST);
        let ahead: bool = database.query_row(
            "SELECT EXISTS (SELECT 1 FROM (SELECT accepted_at FROM item ORDER BY id DESC LIMIT 100) WHERE accepted_at > ?1)
                 OR (SELECT began FROM meta) > ?1
                 OR EXISTS (SELECT 1 FROM item INDEXED BY item_turn WHERE state = 0 AND due > ?2)",
            [watch.now(), latest],
            |row| row.get(0),
        )?;
        Ok(Self { mend: ahead.then_some(LATEST), ..Self::default() })
    }
}

pub(super) async fn run(
    queue: &Inner,
    places: &mut Places,
    max_age: Duration,
) -> Result<Upkeep, StorageError> {
    let leaps = queue.watch.leaps();
    if leaps.back {
        places.mend = Some(LATEST_AFTER_LEAP);
    }
    let running = queue.watch.running();
    let whole = places.whole.is_none_or(|looked| running.saturating_sub(looked) >= WHOLE_EVERY);
    let mut done = Upkeep { jumped: leaps.forward, ..Upkeep::default() };
    let mut first = Ok(());
    // One row that cannot be read must not stop all else for ever.
    let mut tried = |step: Result<(), StorageError>| {
        if first.is_ok() {
            first = step;
        }
    };
    if let Some(latest) = places.mend {
        let step = mend(queue, latest).await.map(|mended| done.mended = mended);
        places.mend = places.mend.filter(|_| step.is_err());
        tried(step);
    }
    tried(end_leases(queue).await);
    if queue.watch.is_trusted() {
        tried(hold_old(queue, max_age, whole && places.whole.is_some(), &mut done.too_old).await);
        if whole {
            tried(age(queue).await);
        }
    }
    tried(forget_keys(queue).await);
    tried(kept::tidy(queue).await.map(|gone| done.kept_gone = gone));
    tried(vacuum(queue).await);
    if !places.swept {
        let step = sweep(queue).await.map(|aside| done.aside = aside);
        places.swept = step.is_ok();
        tried(step);
    }
    if whole && queue.watch.is_trusted() {
        let (spool, now) = (queue.spool.clone(), super::watch::time(queue.watch.now()));
        let clear = tokio::task::spawn_blocking(move || spool.clear_aside(now)).await;
        tried(clear.map_err(io::Error::from).flatten().map_err(later));
    }
    if whole {
        places.whole = Some(running);
    }
    first?;
    let length = tokio::fs::metadata(super::beside(&queue.path, "-wal")).await.map_or(0, |log| log.len());
    done.long_log = (length > LONG_LOG).then_some(length);
    Ok(done)
}

/// Gives back what nobody has finished in time, and notes what time it is.
async fn end_leases(queue: &Inner) -> Result<(), StorageError> {
    let ended = queue
        .writer
        .write(|ledger| ledger.end_leases().and_then(|ended| ledger.note_time().map(|()| ended)))
        .await?;
    if ended > 0 {
        queue.arrived.notify_one(); // nobody waits for the end of a lease
    }
    Ok(())
}

/// Forgets keys until there is none to be forgotten.
async fn forget_keys(queue: &Inner) -> Result<(), StorageError> {
    loop {
        let (more, took) = queue.writer.write_timed(super::Ledger::forget_keys).await?;
        if !more {
            return Ok(());
        }
        Slice::of(1).done(took).await;
    }
}

/// Mends times that lie ahead; how many rows had any.
async fn mend(queue: &Inner, latest: Duration) -> Result<u64, StorageError> {
    let (now, mut mended) = (queue.watch.now(), 0);
    let mut place = Some(i64::MIN);
    while let Some(after) = place {
        let look = move |database: &mut Connection| {
            look::ahead(database, after, now + span(SLACK), now + span(latest), PAGE)
        };
        let (rows, next) = queue.lister.look(look).await?;
        for some in rows.chunks(100) {
            let some = some.to_vec();
            mended += queue.writer.write(move |ledger| ledger.mend_times(&some)).await? as u64;
        }
        place = next;
    }
    queue.writer.write(|ledger| ledger.mend_times(&[])).await?;
    loop {
        let (mended, took) = queue.writer.write_timed(super::Ledger::mend_kept).await?;
        if mended == 0 {
            break;
        }
        Slice::of(1).done(took).await;
    }
    if mended > 0 {
        queue.arrived.notify_one();
    }
    Ok(mended)
}

/// Holds what waits for too long. Rows come in the order of their acceptance, but for those that a person retried: `whole`
/// looks behind these too.
async fn hold_old(
    queue: &Inner,
    max_age: Duration,
    whole: bool,
    held: &mut Vec<NewlyHeld>,
) -> Result<(), StorageError> {
    let age = i64::try_from(max_age.as_millis()).unwrap_or(i64::MAX);
    let oldest = queue.watch.now().saturating_sub(age);
    let reason = format!("not taken within {}: no attempt was answered", humantime::format_duration(max_age));
    let place = Arc::clone(&queue.oldest);
    queue.lister.look(move |database| look::oldest(database, &place)).await?;
    let first = if whole { 0 } else { queue.oldest.load(Ordering::Relaxed) };
    let mut place = Some(first - 1);
    while let Some(after) = place {
        let (rows, next) =
            queue.lister.look(move |database| look::old(database, after, oldest, PAGE)).await?;
        place = next.filter(|_| whole || !rows.is_empty());
        let mut slice = Slice::of(400);
        let mut rest = rows.as_slice();
        while !rest.is_empty() {
            let (some, reason) = (slice.next(&mut rest).to_vec(), reason.clone());
            let write = move |ledger: &mut super::Ledger| ledger.hold_old(&some, oldest, &reason);
            let (some, took) = queue.writer.write_timed(write).await?;
            if !some.is_empty() {
                queue.held.notify_one();
            }
            held.extend(some);
            slice.done(took).await;
        }
    }
    Ok(())
}

/// What is held for very long counts no more.
async fn age(queue: &Inner) -> Result<(), StorageError> {
    let age = i64::try_from(queue.held_counts.as_millis()).unwrap_or(i64::MAX);
    let since = queue.watch.now().saturating_sub(age);
    for told in [false, true] {
        let mut place = Some(i64::MIN);
        while let Some(after) = place {
            let look = move |database: &mut Connection| look::long_held(database, after, told, since, PAGE);
            let (rows, next) = queue.lister.look(look).await?;
            for some in rows.chunks(100) {
                let some = some.to_vec();
                queue.writer.write(move |ledger| ledger.age(&some)).await?;
            }
            place = next;
        }
    }
    Ok(())
}

/// Gives free pages back to the file system.
async fn vacuum(queue: &Inner) -> Result<(), StorageError> {
    let mut slice = Slice::of(VACUUM_PAGES);
    for _ in 0..VACUUM_SLICES {
        let (freed, took) = queue.writer.vacuum(slice.size()).await?;
        if freed == 0 {
            break;
        }
        slice.done(took).await;
    }
    Ok(())
}

/// Moves files aside that were named before this start and that nothing names; how many.
async fn sweep(queue: &Inner) -> Result<u64, StorageError> {
    let Some(numbers) = &queue.numbers else { return Ok(0) };
    let (spool, before) = (queue.spool.clone(), numbers.first());
    let all = tokio::task::spawn_blocking(move || spool.numbers(before)).await;
    let all = all.map_err(|error| later(error.into()))?.map_err(later)?;
    let mut moved = 0;
    for some in all.chunks(1000) {
        let some = some.to_vec();
        let unnamed = queue.lister.look(move |database| look::unnamed(database, some)).await?;
        moved += unnamed.len() as u64;
        let spool = queue.spool.clone();
        let aside = tokio::task::spawn_blocking(move || spool.set_aside(&unnamed)).await;
        aside.map_err(|error| later(error.into()))?.map_err(later)?;
    }
    Ok(moved)
}
