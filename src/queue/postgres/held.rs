//! Upkeep holds what nobody delivers.
//!
//! In: which rows. Out: SQL that holds them and counts it, and what is said of each.

use super::look::key_of;
use crate::queue::NewlyHeld;
use tokio_postgres::Row;

/// A statement that holds the rows that `chosen` selects, which is free to use `$1` (the time by hand), `$2`, `$4` and `t.now`;
/// `$3` is the reason. It gives key, tenant and the activity's words of each, in their order ([`newly_held`]).
pub(super) fn holding(chosen: &str) -> String {
    format!(
        "WITH t AS MATERIALIZED (SELECT activity_milter.at($1) AS now),
         chosen AS MATERIALIZED ({chosen}),
         changed AS (
             UPDATE activity_milter.item SET state = 1, reason = $3, held_at = now, until = NULL
             FROM chosen, t WHERE item.id = chosen.id RETURNING item.id, item.key, item.tenant, item.day),
         counted AS (
             INSERT INTO activity_milter.delta (tenant, waiting, held)
             SELECT tenant, -count(*), count(*) FROM changed GROUP BY tenant)
         SELECT changed.key, changed.tenant, payload.brief FROM changed
         LEFT JOIN activity_milter.payload
             ON payload.day = changed.day AND payload.id = changed.id AND payload.part = 0
         ORDER BY changed.id"
    )
}

/// Of a row with key, tenant and the activity's words.
pub(super) fn newly_held(row: &Row) -> NewlyHeld {
    let brief: Option<&str> = row.get(2);
    let brief: Option<serde_json::Value> = brief.and_then(|brief| serde_json::from_str(brief).ok());
    let queue_id = brief.and_then(|b| b.pointer("/envelope/queue_id")?.as_str().map(str::to_owned));
    NewlyHeld { key: key_of(row.get(0)), tenant: row.get(1), queue_id }
}
