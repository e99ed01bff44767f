//! Takes the activities of a message.
//!
//! In: a [`Parcel`]. Out: what became of each activity.
//! Promise: all of a message or none, once for each key. When it returns, the database has committed, with the guarantee
//! that is asked of it.
//! Fails: [`StorageError`]; nothing is stored then, or nobody knows, and the same message again finds out.
//!
//! The essay: one statement does it all, so a small message costs one round trip and one commit. It always writes: an
//! `INSERT … ON CONFLICT DO NOTHING` that finds the key answers at once, also where the row it found is on no standby yet,
//! and the second try of a client would be told 250 for a row that dies with the primary. An update of the row that is
//! there waits for the standby as every other commit does. Keys are written in their order, so that two messages with the
//! same ones wait for each other and never both.

use super::{Inner, fault::lacks_partition, line::Trouble, payload};
use crate::activity::{Activity, Key, Parcel, Raw};
use crate::queue::{Put, StorageError, tally, written};
use std::{collections::HashSet, sync::Arc};
use tokio_postgres::types::Type;

/// Bytes of JSON and small messages that may be on their way, over all messages; more wait in their callers.
pub(super) const ON_THE_WAY: usize = 64 << 20;

/// Largest message, in bytes, whose activities become JSON where they are.
const WORDED_AT_ONCE: u64 = 64 * 1024;

const PUT: &str = "
    WITH t AS MATERIALIZED (SELECT activity_milter.at($1) AS now),
    given AS MATERIALIZED (
        SELECT ord, key, tenant, prefix, brief, activity, size, nextval('activity_milter.number') AS id
        FROM unnest($2::bytea[], $3::text[], $4::text[], $5::text[], $6::text[], $7::int8[])
            WITH ORDINALITY AS given (key, tenant, prefix, brief, activity, size, ord)),
    letter AS MATERIALIZED (
        SELECT CASE WHEN count(*) = 1 THEN min(id) ELSE nextval('activity_milter.number') END AS id FROM given),
    keys AS (
        INSERT INTO activity_milter.key AS known (key, item, at)
        SELECT key, item, now
        FROM (SELECT key, id AS item FROM given UNION ALL SELECT key, 0 FROM unnest($8::bytea[]) AS covered (key)) AS all_keys, t
        ORDER BY key
        ON CONFLICT (key) DO UPDATE SET at = excluded.at
        RETURNING key, item),
    fresh AS MATERIALIZED (SELECT given.* FROM given JOIN keys ON keys.key = given.key AND keys.item = given.id),
    items AS (
        INSERT INTO activity_milter.item (id, key, tenant, letter, day, due, accepted_at, size)
        SELECT fresh.id, key, tenant, letter.id, now / 86400000, now, now, size FROM fresh, letter, t),
    texts AS (
        INSERT INTO activity_milter.payload (day, id, part, brief, activity, cuts, text, bytes)
        SELECT now / 86400000, fresh.id, 0, brief, activity, CASE WHEN is_own THEN $9 END, CASE WHEN is_own THEN $10 END,
               CASE WHEN is_own THEN $11 END
        FROM t, letter, (SELECT fresh.*, fresh.id = letter.id AS is_own FROM fresh, letter) AS fresh
        UNION ALL
        SELECT now / 86400000, letter.id, 0, NULL, NULL, $9, $10, $11 FROM t, letter
        WHERE EXISTS (SELECT FROM fresh WHERE fresh.id <> letter.id)),
    counted AS (
        INSERT INTO activity_milter.delta (tenant, prefix, waiting)
        SELECT tenant, min(prefix), count(*) FROM fresh GROUP BY tenant)
    SELECT coalesce(keys.item = given.id, false), letter.id, now
    FROM t, letter, given LEFT JOIN keys ON keys.key = given.key ORDER BY ord";

/// The activities as columns.
#[derive(Default)]
struct Columns {
    keys: Vec<Vec<u8>>,
    tenants: Vec<String>,
    prefixes: Vec<String>,
    briefs: Vec<String>,
    activities: Vec<String>,
    sizes: Vec<i64>,
}

impl Columns {
    fn of(
        activities: Vec<Activity>,
        text: Option<crate::activity::Cut>,
        held: u64,
    ) -> Result<Self, StorageError> {
        let mut columns = Self::default();
        for activity in activities {
            let (key, tenant) = (activity.key.bytes().to_vec(), activity.tenant.clone());
            let brief = payload::brief(&activity)?;
            let json = written::json(activity, text)?;
            columns.keys.push(key);
            columns.tenants.push(tenant.id);
            columns.prefixes.push(tenant.prefix);
            columns.briefs.push(brief);
            columns.sizes.push(i64::try_from(json.len() as u64 + held).unwrap_or(i64::MAX));
            columns.activities.push(json);
        }
        Ok(columns)
    }
}

/// Takes a message.
pub(super) async fn put(inner: Arc<Inner>, parcel: Parcel) -> Result<Vec<Put>, StorageError> {
    inner.is_service()?;
    inner.note_leaps().await?;
    // A key twice in one message: the first of them counts.
    let mut seen = HashSet::new();
    let is_first: Vec<bool> = parcel.activities.iter().map(|one| seen.insert(one.key.bytes())).collect();
    let covered: Vec<Vec<u8>> = parcel
        .covered
        .iter()
        .map(Key::bytes)
        .filter(|key| seen.insert(*key))
        .map(|key| key.to_vec())
        .collect();
    let tenants: Vec<String> = parcel.activities.iter().map(|one| one.tenant.id.clone()).collect();
    let room = inner.room(&tenants, &parcel).await?;
    let cuts = serde_json::to_string(&parcel.cuts).map_err(written::damaged)?;
    let text = parcel.verbatim.filter(|_| matches!(parcel.raw, Raw::Memory(_)));
    let (raw, mut given) = (parcel.raw, is_first.iter());
    let mut activities = parcel.activities;
    activities.retain(|_| given.next().copied().unwrap_or(true));
    let held = if matches!(raw, Raw::Memory(_)) { raw.len() } else { 0 };
    let bytes = activities.iter().map(written::size_of).sum::<u64>() + held;
    let permits = u32::try_from(bytes.min(ON_THE_WAY as u64) >> 10).unwrap_or(u32::MAX);
    let _words =
        inner.words.acquire_many(permits).await.map_err(|error| StorageError::Other(error.to_string()))?;
    let columns = if raw.len() <= WORDED_AT_ONCE {
        Columns::of(activities, text, held)?
    } else {
        let word = tokio::task::spawn_blocking(move || Columns::of(activities, text, held));
        word.await.map_err(|error| StorageError::Other(error.to_string()))??
    };
    let text = text.map(|cut| serde_json::to_string(&cut)).transpose().map_err(written::damaged)?;
    let letter = Letter { cuts, text, raw };
    let stored = match store(&inner, &columns, &covered, &letter).await {
        Err(Trouble::Said(error)) if lacks_partition(&error) => {
            payload::prepare(&inner).await?;
            store(&inner, &columns, &covered, &letter).await?
        }
        stored => stored?,
    };
    let mut stored = stored.into_iter();
    let mut puts = Vec::with_capacity(tenants.len());
    for is_first in is_first {
        let is_new = is_first && stored.next().unwrap_or(false);
        puts.push(if is_new { Put::New } else { Put::Known });
    }
    let waiting = tally::Numbers { waiting: 1, ..tally::Numbers::default() };
    let new = tenants.into_iter().zip(&puts).filter(|(_, put)| **put == Put::New);
    inner.tally.commit(new.map(|(tenant, _)| (tenant, waiting)));
    drop(room); // counted, from here on
    if puts.contains(&Put::New) {
        inner.ring();
    }
    Ok(puts)
}

/// A message, to be stored.
struct Letter {
    cuts: String,
    text: Option<String>,
    raw: Raw,
}

/// Stores it; which keys were new.
async fn store(
    inner: &Inner,
    columns: &Columns,
    covered: &[Vec<u8>],
    letter: &Letter,
) -> Result<Vec<bool>, Trouble> {
    let mut line = inner.lines.lend(inner.patience).await.map_err(Trouble::Unsure)?;
    // Now, and not before: the connection may be a new one, to another server.
    if let Some(lack) = inner.guarantee().lacks(inner.require_replication) {
        return Err(Trouble::Unsure(StorageError::Busy(lack)));
    }
    let is_long = letter.raw.len() > payload::PART as u64;
    let first = payload::part(&letter.raw, 0).await.map_err(Trouble::Unsure)?;
    if is_long {
        line.begin().await.map_err(Trouble::Unsure)?;
    }
    let rows = line
        .tell(
            PUT,
            &[
                (&inner.when.given(), Type::INT8),
                (&columns.keys, Type::BYTEA_ARRAY),
                (&columns.tenants, Type::TEXT_ARRAY),
                (&columns.prefixes, Type::TEXT_ARRAY),
                (&columns.briefs, Type::TEXT_ARRAY),
                (&columns.activities, Type::TEXT_ARRAY),
                (&columns.sizes, Type::INT8_ARRAY),
                (&covered, Type::BYTEA_ARRAY),
                (&letter.cuts, Type::TEXT),
                (&letter.text, Type::TEXT),
                (&&first[..], Type::BYTEA),
            ],
        )
        .await?;
    let fresh: Vec<bool> = rows.iter().map(|row| row.get(0)).collect();
    if is_long {
        if fresh.contains(&true)
            && let Some(row) = rows.first()
        {
            let (number, now): (i64, i64) = (row.get(1), row.get(2));
            payload::write_rest(&mut line, number, now, &letter.raw).await?;
        }
        line.commit().await.map_err(Trouble::Unsure)?;
    }
    Ok(fresh)
}

/// Whether each of these keys was recorded or covered.
pub(super) async fn known(inner: &Inner, keys: &[Key]) -> Result<Vec<bool>, StorageError> {
    let keys: Vec<Vec<u8>> = keys.iter().map(|key| key.bytes().to_vec()).collect();
    let mut line = inner.lookers.lend(super::LOOK_TIME).await?;
    let rows = line
        .ask(
            "SELECT EXISTS (SELECT FROM activity_milter.key WHERE key.key = asked.key)
             FROM unnest($1::bytea[]) WITH ORDINALITY AS asked (key, ord) ORDER BY ord",
            &[(&keys, Type::BYTEA_ARRAY)],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
