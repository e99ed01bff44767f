//! What became of an activity in the queue from which it comes.
//!
//! In: rows that a transaction has just stored as if they had arrived. Out: the same rows with their past: attempts, notes,
//! whether they are held, or were delivered.
//! Promise: in the same transaction, so that no courier ever sees them without it.
//! Fails: with the transaction.

use super::{
    Inner,
    line::{Line, Trouble},
};
use crate::queue::transfer::Past;
use tokio_postgres::types::Type;

/// Their past, for rows that were just stored. `$11` is the state.
const GIVE_PAST: &str = "
    WITH past AS MATERIALIZED (
        SELECT * FROM unnest($1::int8[], $2::int8[], $3::int8[], $4::int4[], $5::int8[], $6::bool[], $7::bool[], $8::bool[],
            $9::text[], $10::text[], $11::int2[])
            AS past (id, accepted_at, due, attempts, held_at, told, aged, replay, reason, note, state)),
    changed AS (
        UPDATE activity_milter.item
        SET accepted_at = past.accepted_at, due = past.due, attempts = past.attempts, held_at = past.held_at,
            told = past.told, aged = past.aged, replay = past.replay, reason = past.reason, note = past.note,
            state = past.state
        FROM past WHERE item.id = past.id RETURNING item.tenant, item.state, item.aged)
    INSERT INTO activity_milter.delta (tenant, waiting, held, aged)
    SELECT tenant, -count(*), count(*) FILTER (WHERE NOT aged), count(*) FILTER (WHERE aged)
    FROM changed WHERE state = 1 GROUP BY tenant";

/// Those that were delivered: kept, if what is delivered is kept here (`$3`); else their keys stay.
const DELIVERED: &str = "
    WITH past AS (SELECT * FROM unnest($1::int8[], $2::int8[]) AS past (id, delivered_at)),
    gone AS (
        DELETE FROM activity_milter.item USING past WHERE item.id = past.id RETURNING item.*, past.delivered_at),
    kept AS (
        INSERT INTO activity_milter.kept (id, accepted_at, delivered_at, letter, size, day, attempts, key, tenant)
        SELECT id, accepted_at, delivered_at, letter, size, day, attempts, key, tenant FROM gone WHERE $3)
    INSERT INTO activity_milter.delta (tenant, waiting) SELECT tenant, -count(*) FROM gone GROUP BY tenant";

/// Gives rows of a transaction their past.
pub(super) async fn give_past(inner: &Inner, line: &mut Line, rows: &[(i64, &Past)]) -> Result<(), Trouble> {
    fn of<'a, T>(rows: &[(i64, &'a Past)], column: impl Fn(&'a Past) -> T) -> Vec<T> {
        rows.iter().map(|(_, past)| column(past)).collect()
    }
    let ids: Vec<i64> = rows.iter().map(|(id, _)| *id).collect();
    let word = |word: &Option<String>| word.as_deref().map(super::text);
    line.tell(
        GIVE_PAST,
        &[
            (&ids, Type::INT8_ARRAY),
            (&of(rows, |past| past.accepted_at), Type::INT8_ARRAY),
            (&of(rows, |past| past.due), Type::INT8_ARRAY),
            (&of(rows, |past| i32::try_from(past.attempts).unwrap_or(i32::MAX)), Type::INT4_ARRAY),
            (&of(rows, |past| past.held_at), Type::INT8_ARRAY),
            (&of(rows, |past| past.told), Type::BOOL_ARRAY),
            (&of(rows, |past| past.aged), Type::BOOL_ARRAY),
            (&of(rows, |past| past.replay), Type::BOOL_ARRAY),
            (&of(rows, |past| word(&past.reason)), Type::TEXT_ARRAY),
            (&of(rows, |past| word(&past.note)), Type::TEXT_ARRAY),
            (&of(rows, |past| i16::from(past.is_held)), Type::INT2_ARRAY),
        ],
    )
    .await?;
    let delivered: Vec<(i64, i64)> =
        rows.iter().filter_map(|(id, past)| Some((*id, past.delivered_at?))).collect();
    if !delivered.is_empty() {
        let (ids, times): (Vec<i64>, Vec<i64>) = delivered.into_iter().unzip();
        let keeps = !inner.settings.keep_delivered.is_zero();
        line.tell(DELIVERED, &[(&ids, Type::INT8_ARRAY), (&times, Type::INT8_ARRAY), (&keeps, Type::BOOL)])
            .await?;
    }
    Ok(())
}
