//! Which activities are due, and whose turn it is.
//!
//! In: a limit and the tenant whose turn was last. Out: rows, leased.
//! Promise: while more is due than may be taken, each tenant gets one before another gets its second.

use super::{Key, Turn};
use rusqlite::{Connection, OptionalExtension, Row, named_params, params};

/// Rows looked at for their age at once.
const OLD_AT_ONCE: i64 = 1000;

/// A row that is due.
pub(super) struct DueRow {
    pub(super) id: i64,
    pub(super) key: String,
    pub(super) tenant: String,
    pub(super) activity: String,
    pub(super) cuts: String,
    pub(super) body: Option<Vec<u8>>,
    pub(super) spool: Option<String>,
    pub(super) text: Option<String>,
    pub(super) attempts: u32,
    pub(super) accepted_at: i64,
}

impl DueRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            key: row.get(1)?,
            activity: row.get(2)?,
            cuts: row.get(3)?,
            body: row.get(4)?,
            spool: row.get(5)?,
            attempts: row.get(6)?,
            accepted_at: row.get(7)?,
            tenant: row.get(8)?,
            text: row.get(9)?,
        })
    }
}

/// Leases up to `limit` rows until `until`.
pub(super) fn take(
    database: &Connection,
    limit: usize,
    turn: &Turn,
    now: i64,
    until: i64,
) -> rusqlite::Result<Vec<DueRow>> {
    let ids = match few(database, limit, turn, now)? {
        Some(ids) => ids,
        None => by_turns(database, limit, turn, now)?,
    };
    let mut select = database.prepare_cached(
        "SELECT item.id, key, activity, cuts, body, spool, attempts, accepted_at, tenant, text
         FROM item JOIN message ON message.id = item.message WHERE item.id = ?1",
    )?;
    let mut lease = database.prepare_cached("UPDATE item SET leased = 1, due = ?2 WHERE id = ?1")?;
    let mut rows = Vec::with_capacity(ids.len());
    for id in ids {
        rows.push(select.query_row([id], DueRow::read)?);
        lease.execute(params![id, until])?;
    }
    Ok(rows)
}

/// All that is due, if that is no more than may be taken: nobody stands before anybody.
fn few(database: &Connection, limit: usize, turn: &Turn, now: i64) -> rusqlite::Result<Option<Vec<i64>>> {
    let ids = database
        .prepare_cached(
            "SELECT id FROM item WHERE state = 0 AND due <= :now AND (:without IS NULL OR tenant <> :without)
             ORDER BY due LIMIT :limit",
        )?
        .query_map(
            named_params! {
                ":now": now, ":without": turn.without, ":limit": i64::try_from(limit + 1).unwrap_or(i64::MAX)
            },
            |row| row.get(0),
        )?
        .collect::<rusqlite::Result<Vec<i64>>>()?;
    Ok((ids.len() <= limit).then_some(ids))
}

/// One of each tenant, round after round, from the tenant after the last one on. The index on (tenant, due) makes each
/// step a seek, however much waits.
fn by_turns(database: &Connection, limit: usize, turn: &Turn, now: i64) -> rusqlite::Result<Vec<i64>> {
    let mut next_tenant = database
        .prepare_cached("SELECT tenant FROM item WHERE state = 0 AND tenant > ?1 ORDER BY tenant LIMIT 1")?;
    // `id` breaks ties, so that the rows of a tenant can be walked without leasing them yet.
    let mut next_item = database.prepare_cached(
        "SELECT due, id FROM item WHERE state = 0 AND tenant = ?1 AND due <= ?2 AND (due, id) > (?3, ?4)
         ORDER BY due, id LIMIT 1",
    )?;
    let mut places: std::collections::HashMap<String, (i64, i64)> = std::collections::HashMap::new();
    let (mut ids, mut tenant, mut found) = (Vec::with_capacity(limit), turn.after.clone(), true);
    while ids.len() < limit {
        let next: Option<String> = next_tenant.query_row([&tenant], |row| row.get(0)).optional()?;
        let Some(next) = next else {
            if !found {
                break; // a whole round without anything due
            }
            (tenant, found) = (String::new(), false);
            continue;
        };
        tenant = next;
        if turn.without.as_ref() == Some(&tenant) {
            continue;
        }
        let (due, id) = places.get(&tenant).copied().unwrap_or((i64::MIN, 0));
        let item: Option<(i64, i64)> = next_item
            .query_row(params![tenant, now, due, id], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        if let Some(place) = item {
            ids.push(place.1);
            places.insert(tenant.clone(), place);
            found = true;
        }
    }
    Ok(ids)
}

/// Holds what was accepted before `oldest`: rows come in the order of their acceptance, so only the first are looked at.
pub(super) fn hold_older(
    database: &Connection,
    oldest: i64,
    reason: &str,
) -> rusqlite::Result<Vec<(Key, String)>> {
    database
        .prepare_cached(
            "UPDATE item SET state = 1, reason = ?2 WHERE accepted_at < ?1 AND state = 0 AND leased = 0
             AND id IN (SELECT id FROM item WHERE state = 0 ORDER BY id LIMIT ?3) RETURNING key, tenant",
        )?
        .query_map(params![oldest, reason, OLD_AT_ONCE], |row| {
            Ok((Key::from_stored(row.get(0)?), row.get(1)?))
        })?
        .collect()
}
