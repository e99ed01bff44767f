//! Messages, and the activities' own words: written once, never changed, dropped by whole days.
//!
//! In: a message's bytes. Out: the same, in memory if they are few, and else in a file without a name.
//! Promise: a message of any size is one piece of 512 KiB in memory, on the way in and on the way out. A day's table goes
//! when nothing in the queue needs it; what is left of an old day is copied to this one's, so that a few that wait for
//! long do not keep the mail of a whole day.
//! Fails: a message that is not there any more is [`StorageError::Gone`].

use super::{
    Inner,
    line::{Line, Trouble},
    schema::has_table,
};
use crate::activity::{Activity, Raw};
use crate::queue::{StorageError, written};
use bytes::Bytes;
use std::{collections::HashMap, fs::File, io, io::Read, io::Write, path::Path, sync::Arc, time::Duration};
use tokio_postgres::types::Type;

/// Bytes of a piece.
pub(super) const PART: usize = 512 * 1024;

/// Longest message that is given in memory: the same as a message that arrives.
pub(super) const IN_MEMORY: usize = 128 * 1024;

/// Milliseconds of a day.
const DAY: i64 = 86_400_000;

/// What lists and notices show of an activity: all but texts, people and files.
pub(super) fn brief(activity: &Activity) -> Result<String, StorageError> {
    let short = Activity {
        text: None,
        html: None,
        participants: Arc::default(),
        files: Arc::default(),
        references: Vec::new(),
        in_reply_to: Vec::new(),
        ..activity.clone()
    };
    serde_json::to_string(&short).map_err(written::damaged)
}

fn later(error: io::Error) -> StorageError {
    StorageError::Busy(format!("a message's file: {error}"))
}

/// The piece of this number; empty behind the end.
pub(super) async fn part(raw: &Raw, number: u64) -> Result<Bytes, StorageError> {
    let begin = number * PART as u64;
    match raw {
        Raw::Memory(bytes) => {
            let at = |position: u64| usize::try_from(position).unwrap_or(usize::MAX).min(bytes.len());
            Ok(bytes.slice(at(begin)..at(begin + PART as u64)))
        }
        Raw::File { .. } => {
            let raw = raw.clone();
            let read = tokio::task::spawn_blocking(move || {
                let mut piece = Vec::with_capacity(PART);
                raw.reader(begin..begin + PART as u64).read_to_end(&mut piece).map(|_| piece)
            });
            Ok(read.await.map_err(|error| later(error.into()))?.map_err(later)?.into())
        }
    }
}

/// Writes all pieces behind the first.
pub(super) async fn write_rest(
    line: &mut Line,
    (letter, now): (i64, i64),
    raw: &Raw,
    time: Duration,
) -> Result<(), Trouble> {
    let day = i32::try_from(now / DAY).unwrap_or(i32::MAX);
    for number in 1..raw.len().div_ceil(PART as u64) {
        let piece = part(raw, number).await.map_err(Trouble::Unsure)?;
        let number = i32::try_from(number).unwrap_or(i32::MAX);
        // Each has its time: the way to the server may be slow.
        line.has_time(time);
        line.tell(
            "INSERT INTO activity_milter.payload (day, id, part, bytes) VALUES ($1, $2, $3, $4)",
            &[(&day, Type::INT4), (&letter, Type::INT8), (&number, Type::INT4), (&&piece[..], Type::BYTEA)],
        )
        .await?;
    }
    line.has_time(time);
    Ok(())
}

/// The bytes of a letter, piece by piece.
pub(super) async fn read(
    line: &mut Line,
    (day, letter): (i32, i64),
    first: Vec<u8>,
    spool: &Path,
) -> Result<Raw, StorageError> {
    let rest = "SELECT count(*), coalesce(sum(octet_length(bytes)), 0)::int8 FROM activity_milter.payload
                WHERE day = $1 AND id = $2 AND part > 0";
    let place = [(&day as _, Type::INT4), (&letter as _, Type::INT8)];
    let is_whole = first.len() < PART;
    let (parts, length): (i64, i64) = match is_whole {
        true => (0, 0),
        false => line.ask(rest, &place).await?.first().map_or((0, 0), |row| (row.get(0), row.get(1))),
    };
    let length = length + i64::try_from(first.len()).unwrap_or(i64::MAX);
    if parts == 0 && first.len() <= IN_MEMORY {
        return Ok(Raw::from(first));
    }
    let mut file = write(open(spool).await?, first).await?;
    for number in 1..=parts {
        let rows = line
            .ask(
                "SELECT bytes FROM activity_milter.payload WHERE day = $1 AND id = $2 AND part = $3",
                &[
                    (&day, Type::INT4),
                    (&letter, Type::INT8),
                    (&i32::try_from(number).unwrap_or(0), Type::INT4),
                ],
            )
            .await?;
        let piece: Option<Vec<u8>> = rows.first().and_then(|row| row.get(0));
        file =
            write(file, piece.ok_or_else(|| written::damaged("a piece of its message is missing"))?).await?;
    }
    Ok(Raw::File { file: Arc::new(file), length: length.unsigned_abs() })
}

/// A file without a name. A command may work where no service ever had its directory.
async fn open(spool: &Path) -> Result<File, StorageError> {
    let spool = spool.to_owned();
    let open = tokio::task::spawn_blocking(move || match tempfile::tempfile_in(spool) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => tempfile::tempfile(),
        opened => opened,
    });
    open.await.map_err(|error| later(error.into()))?.map_err(later)
}

async fn write(mut file: File, piece: Vec<u8>) -> Result<File, StorageError> {
    let write = tokio::task::spawn_blocking(move || file.write_all(&piece).map(|()| file));
    write.await.map_err(|error| later(error.into()))?.map_err(later)
}

/// Makes the tables of this day and the next.
pub(super) async fn prepare(inner: &Inner) -> Result<(), StorageError> {
    let mut line = inner.lines.lend(super::LOOK_TIME).await?;
    let today = today(&mut line, inner).await?;
    for day in [today, today + 1] {
        make(&mut line, day).await?;
    }
    Ok(())
}

async fn today(line: &mut Line, inner: &Inner) -> Result<i64, StorageError> {
    let rows =
        line.ask("SELECT activity_milter.at($1) / 86400000", &[(&inner.when.given(), Type::INT8)]).await?;
    Ok(rows.first().map_or(0, |row| row.get(0)))
}

/// Attached, not made as a part: that would lock the whole table against everybody.
async fn make(line: &mut Line, day: i64) -> Result<(), StorageError> {
    if days(line).await?.contains(&day) {
        return Ok(());
    }
    line.begin().await?;
    line.ask("SELECT pg_advisory_xact_lock($1)", &[(&super::LOCK, Type::INT8)]).await?;
    let table = format!("payload_{day}");
    // Another node may have made it meanwhile, or a person taken it out.
    if !has_table(line, &table).await? {
        line.batch(&format!(
            "CREATE TABLE activity_milter.{table} (LIKE activity_milter.payload INCLUDING ALL)
                 WITH (autovacuum_vacuum_insert_threshold = -1, toast.autovacuum_vacuum_insert_threshold = -1)"
        ))
        .await?;
    }
    if !days(line).await?.contains(&day) {
        line.batch(&format!(
            "ALTER TABLE activity_milter.payload ATTACH PARTITION activity_milter.{table} FOR VALUES FROM ({day}) TO ({})",
            day + 1
        ))
        .await?;
    }
    line.commit().await
}

/// Days that have a table.
async fn days(line: &mut Line) -> Result<Vec<i64>, StorageError> {
    let rows = line
        .ask(
            "SELECT substr(relname, 9)::int8 FROM pg_class JOIN pg_inherits ON inhrelid = pg_class.oid
             WHERE inhparent = 'activity_milter.payload'::regclass AND relname ~ '^payload_-?[0-9]+$' ORDER BY 1",
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// A day's table is kept for so many days more, whatever is in it: what was just accepted may be on its way.
const KEPT_DAYS: i64 = 1;

/// After so many days what is left is copied to this day's table, if it is little.
const MOVED_AFTER: i64 = 3;

/// Letters copied in one transaction.
const MOVED_AT_ONCE: i64 = 100;

/// Drops the tables of days that nothing needs; whether somebody was in the way. It walks over all that there
/// is, so it is done seldom. A table that cannot be dropped keeps no other.
pub(super) async fn tidy(inner: &Inner) -> Result<bool, StorageError> {
    let mut line = inner.lines.lend(super::LONG_TIME).await?;
    let today = today(&mut line, inner).await?;
    let old: Vec<i64> = days(&mut line).await?.into_iter().filter(|day| *day < today - KEPT_DAYS).collect();
    if old.is_empty() {
        return Ok(false);
    }
    let needed = needed(&mut line).await?;
    drop(line);
    let (mut is_in_use, mut first) = (false, Ok(()));
    for day in old {
        // Time for each.
        let mut line = inner.lines.lend(super::LONG_TIME).await?;
        let step = match needed.get(&day) {
            Some(letters) if day <= today - MOVED_AFTER => {
                move_on(&mut line, day, today, *letters).await.map(|()| true)
            }
            Some(_) => Ok(true),
            None => match drop_day(&mut line, day).await {
                Ok(()) => Ok(true),
                Err(StorageError::Busy(_)) => Ok(false),
                Err(error) => Err(error),
            },
        };
        match step {
            Ok(is_done) => is_in_use |= !is_done,
            Err(error) => first = first.and(Err(error)),
        }
    }
    first.map(|()| is_in_use)
}

/// Nothing comes to an old day but from another table of the same day, in one commit, so one look is enough. Whoever reads the
/// table for long makes this fail, and nobody waits for him: the next time.
async fn drop_day(line: &mut Line, day: i64) -> Result<(), StorageError> {
    line.begin().await?;
    line.batch("SET LOCAL lock_timeout = '200ms'").await?;
    let is_needed = line
        .ask(
            "SELECT EXISTS (SELECT FROM activity_milter.item WHERE day = $1)
                 OR EXISTS (SELECT FROM activity_milter.kept WHERE day = $1)",
            &[(&i32::try_from(day).unwrap_or(0), Type::INT4)],
        )
        .await?;
    if is_needed.first().is_some_and(|row| !row.get::<_, bool>(0)) {
        line.batch(&format!("DROP TABLE activity_milter.payload_{day}")).await?;
    }
    line.commit().await
}

/// How many letters of each day something needs.
async fn needed(line: &mut Line) -> Result<HashMap<i64, i64>, StorageError> {
    let rows = line
        .ask(
            "SELECT day::int8, count(*) FROM (SELECT day FROM activity_milter.item UNION ALL SELECT day FROM activity_milter.kept)
                 AS all_days GROUP BY day",
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Copies what is left of a day to today's table, if that is less than a tenth of it.
async fn move_on(line: &mut Line, day: i64, today: i64, needed: i64) -> Result<(), StorageError> {
    let all =
        format!("SELECT count(*) FROM activity_milter.payload_{day} WHERE part = 0 AND activity IS NOT NULL");
    let all: i64 = line.ask(&all, &[]).await?.first().map_or(0, |row| row.get(0));
    if needed * 10 > all {
        return Ok(());
    }
    loop {
        let rows = line
            .ask(
                "WITH few AS MATERIALIZED (
                     SELECT DISTINCT letter FROM (SELECT letter FROM activity_milter.item WHERE day = $1
                         UNION ALL SELECT letter FROM activity_milter.kept WHERE day = $1) AS left_over LIMIT $3),
                 items AS (UPDATE activity_milter.item SET day = $2 WHERE day = $1 AND letter IN (SELECT letter FROM few)
                     RETURNING id),
                 kept AS (UPDATE activity_milter.kept SET day = $2 WHERE day = $1 AND letter IN (SELECT letter FROM few)
                     RETURNING id),
                 copied AS (
                     INSERT INTO activity_milter.payload (day, id, part, brief, activity, cuts, text, bytes)
                     SELECT $2, id, part, brief, activity, cuts, text, bytes FROM activity_milter.payload
                     WHERE day = $1 AND id IN (SELECT letter FROM few UNION SELECT id FROM items UNION SELECT id FROM kept)
                     ON CONFLICT DO NOTHING)
                 SELECT count(*) FROM few",
                &[
                    (&i32::try_from(day).unwrap_or(0), Type::INT4),
                    (&i32::try_from(today).unwrap_or(0), Type::INT4),
                    (&MOVED_AT_ONCE, Type::INT8),
                ],
            )
            .await?;
        if rows.first().is_none_or(|row| row.get::<_, i64>(0) == 0) {
            return Ok(());
        }
    }
}
