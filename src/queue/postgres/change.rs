//! What a person does with activities.
//!
//! In: rows, and what shall become of them. Out: those that were changed.
//! Promise: what is being attempted is not touched; a slice is changed whole or not at all, and each is a statement of its
//! own, so that nobody waits for more than one.
//! Fails: [`StorageError`]; slices before the one that failed are done.

use super::{Inner, LONG_TIME, line::Value};
use crate::queue::{
    Change, KEY_MEMORY, StorageError,
    watch::{DISTRUST, FORWARD, span},
};
use std::{collections::HashMap, time::Duration};
use tokio::time::{Instant, sleep};
use tokio_postgres::types::Type;

/// How often is looked whether somebody is heard.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Activities changed in one transaction.
const AT_ONCE: usize = 100;

/// Those of the rows that nobody has leased (`lease::IS_FREE`), but for what `$3` have and a move that was cut off.
macro_rules! free_rows {
    ($rest:literal) => {
        concat!(
            "WITH t AS MATERIALIZED (SELECT activity_milter.at($1) AS now),
            free AS MATERIALIZED (
                SELECT id, key, tenant, state, aged FROM activity_milter.item, t
                WHERE id = ANY ($2::int8[]) AND (until IS NULL OR until <= now AND coalesce(node, '') NOT IN (
                    SELECT living.id FROM activity_milter.node AS living WHERE living.id <> ALL ($3::text[]))) ORDER BY id FOR UPDATE), ",
            $rest
        )
    };
}

const RETRY: &str = free_rows!(
    "changed AS (
        UPDATE activity_milter.item
        SET state = 0, due = now, attempts = 0, accepted_at = now, aged = false, held_at = NULL, until = NULL
        FROM free, t WHERE item.id = free.id
        RETURNING item.id, item.tenant, free.state AS was, free.aged AS was_aged),
    counted AS (
        INSERT INTO activity_milter.delta (tenant, waiting, held, aged)
        SELECT tenant, count(*), -count(*) FILTER (WHERE NOT was_aged), -count(*) FILTER (WHERE was_aged)
        FROM changed WHERE was = 1 GROUP BY tenant)
    SELECT id FROM changed"
);

const HOLD: &str = free_rows!(
    "changed AS (
        UPDATE activity_milter.item SET state = 1, reason = $4, held_at = now, told = true, until = NULL
        FROM free, t WHERE item.id = free.id AND free.state = 0 RETURNING item.id, item.tenant),
    counted AS (
        INSERT INTO activity_milter.delta (tenant, waiting, held) SELECT tenant, -count(*), count(*) FROM changed GROUP BY tenant)
    SELECT id FROM changed"
);

/// What is kept after its delivery too.
const DROP: &str = free_rows!(
    "changed AS (
        DELETE FROM activity_milter.item USING free WHERE item.id = free.id
        RETURNING item.id, item.tenant, item.key, item.state, item.aged),
    kept AS (DELETE FROM activity_milter.kept WHERE id = ANY ($2) RETURNING id),
    keys AS (UPDATE activity_milter.key SET at = now FROM changed, t WHERE key.key = changed.key AND key.at < now - $4),
    counted AS (
        INSERT INTO activity_milter.delta (tenant, waiting, held, aged)
        SELECT tenant, -count(*) FILTER (WHERE state = 0), -count(*) FILTER (WHERE state = 1 AND NOT aged),
               -count(*) FILTER (WHERE state = 1 AND aged)
        FROM changed GROUP BY tenant)
    SELECT id FROM changed UNION ALL SELECT id FROM kept"
);

/// Nodes that have some of these by a lease whose time is over, and of which nothing is heard while we wait for it: nobody runs
/// who would miss them (`lease::bury`), and a person must not wait for that. A service runs itself.
async fn silent(inner: &Inner, items: &[i64]) -> Result<Vec<String>, StorageError> {
    let had = "SELECT DISTINCT node.id, node.seen FROM activity_milter.item JOIN activity_milter.node ON node.id = item.node
        WHERE item.id = ANY ($2::int8[]) AND until <= activity_milter.at($1)";
    let given = inner.when.given();
    let look = async || {
        let mut line = inner.lines.lend(LONG_TIME).await?;
        let rows = line.ask(had, &[(&given, Type::INT8), (&items, Type::INT8_ARRAY)]).await?;
        Ok::<_, StorageError>(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    };
    if inner.node.is_some() {
        return Ok(Vec::new());
    }
    let mut silent: HashMap<String, i64> = look().await?;
    let until = Instant::now() + inner.heard_within() + LOOK_AGAIN;
    while !silent.is_empty() && Instant::now() < until {
        sleep(LOOK_AGAIN.min(inner.heard_within())).await;
        let now = look().await?;
        silent.retain(|node, seen| now.get(node) == Some(seen));
    }
    Ok(silent.into_keys().collect())
}

/// A command changes times, and the clock may have leapt without a service having seen it: the next start could not tell.
async fn note_leap_of_others(inner: &Inner) -> Result<(), StorageError> {
    let leapt = "UPDATE activity_milter.meta SET distrust = greatest(distrust, activity_milter.at($1) + $2)
        WHERE newest < activity_milter.at($1) - $3";
    let values = [
        (&inner.when.given() as _, Type::INT8),
        (&span(DISTRUST) as _, Type::INT8),
        (&span(FORWARD) as _, Type::INT8),
    ];
    inner.lines.lend(LONG_TIME).await?.ask(leapt, &values).await?;
    Ok(())
}

/// Changes rows; which were.
pub(super) async fn change(inner: &Inner, items: &[i64], change: &Change) -> Result<Vec<i64>, StorageError> {
    let silent = silent(inner, items).await?;
    if inner.node.is_none() {
        note_leap_of_others(inner).await?;
    }
    let mut changed = Vec::new();
    for some in items.chunks(AT_ONCE) {
        let (given, memory) = (inner.when.given(), span(KEY_MEMORY));
        let mut values: Vec<Value<'_>> =
            vec![(&given, Type::INT8), (&some, Type::INT8_ARRAY), (&silent, Type::TEXT_ARRAY)];
        let reason;
        let sql = match change {
            Change::Retry => RETRY,
            Change::Hold { reason: why } => {
                reason = super::text(why);
                values.push((&reason, Type::TEXT));
                HOLD
            }
            Change::Drop => {
                values.push((&memory, Type::INT8));
                DROP
            }
        };
        let mut line = inner.lines.lend(LONG_TIME).await?;
        let rows = line.tell_for_good(sql, &values).await?;
        if rows.len() < some.len() {
            line.confirm().await?;
        }
        changed.extend(rows.iter().map(|row| row.get::<_, i64>(0)));
        if !rows.is_empty() {
            inner.ring();
        }
    }
    Ok(changed)
}

/// Somebody was told of these.
pub(super) async fn told(inner: &Inner, items: &[i64]) -> Result<(), StorageError> {
    for some in items.chunks(AT_ONCE) {
        let sql = "UPDATE activity_milter.item SET told = true WHERE id = ANY ($1::int8[]) AND NOT told";
        inner.lines.lend(LONG_TIME).await?.ask(sql, &[(&some, Type::INT8_ARRAY)]).await?;
    }
    Ok(())
}
