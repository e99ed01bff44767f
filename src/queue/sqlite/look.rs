//! What there is, read on a connection that writes nothing.
//!
//! Promise: a look at a million rows is made in pages by who asks ([`Filter::after`]), because SQLite's log cannot begin
//! anew while one look lasts.

use super::{
    row::key_of,
    spool::Spool,
    watch::{Watch, time},
};
use crate::activity::{Key, Raw};
use crate::queue::{Entry, Filter, HeldFor, Item, Overview, State, StorageError, Ticket, Untold};
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};
use std::{
    collections::HashSet,
    sync::atomic::{AtomicI64, Ordering},
    time::SystemTime,
};

const COLUMNS: &str = "item.id, key, tenant, json_extract(activity, '$.project.number'),
    json_extract(activity, '$.envelope.queue_id'), state, until, attempts, accepted_at, due, reason, held_at,
    json_extract(activity, '$.envelope.sender'), json_extract(activity, '$.envelope.recipients')";

const KEPT_COLUMNS: &str = "id, key, tenant, json_extract(activity, '$.project.number'),
    json_extract(activity, '$.envelope.queue_id'), 0, NULL, attempts, accepted_at, delivered_at, NULL, NULL,
    json_extract(activity, '$.envelope.sender'), json_extract(activity, '$.envelope.recipients')";

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let (held, until): (bool, Option<i64>) = (row.get(5)?, row.get(6)?);
    let (due, held_at): (i64, Option<i64>) = (row.get(9)?, row.get(11)?);
    let (state, due) = match (held, until) {
        (true, _) => (State::Held, held_at.unwrap_or(due)),
        (false, Some(until)) => (State::InFlight, until),
        (false, None) => (State::Waiting, due),
    };
    Ok(Entry {
        id: row.get(0)?,
        key: key_of(row.get_ref(1)?),
        tenant: row.get(2)?,
        project: row.get(3)?,
        queue_id: row.get(4)?,
        sender: row.get(12)?,
        recipients: row
            .get::<_, Option<String>>(13)?
            .and_then(|list| serde_json::from_str(&list).ok())
            .unwrap_or_default(),
        state,
        attempts: row.get(7)?,
        accepted_at: time(row.get(8)?),
        due: time(due),
        reason: row.get(10)?,
    })
}

/// The rows that a filter lets through.
pub(super) fn list(database: &Connection, filter: &Filter) -> Result<Vec<Entry>, StorageError> {
    let mut found = Vec::new();
    match filter.keys.as_slice() {
        [] => found = list_of(database, filter, None)?,
        keys => {
            let mut seen = HashSet::new();
            for range in keys.iter().filter_map(|key| range(key)) {
                let some = list_of(database, filter, Some(range))?;
                found.extend(some.into_iter().filter(|entry| seen.insert(entry.id)));
            }
        }
    }
    if let Some(limit) = filter.limit {
        found.truncate(limit);
    }
    Ok(found)
}

/// The first and the last key that begin like this; none if no key does.
fn range(beginning: &str) -> Option<([u8; 32], [u8; 32])> {
    let hex = beginning.strip_prefix("b3:").unwrap_or(beginning);
    let key = |filler: char| {
        let padded: String = hex.chars().chain(std::iter::repeat(filler)).take(64).collect();
        blake3::Hash::from_hex(padded).ok().map(|hash| *hash.as_bytes())
    };
    Some((key('0')?, key('f')?)).filter(|_| hex.len() <= 64)
}

fn list_of(
    database: &Connection,
    filter: &Filter,
    range: Option<([u8; 32], [u8; 32])>,
) -> Result<Vec<Entry>, StorageError> {
    // Only the conditions that are asked for, so that each query has the index that suits it.
    let mut conditions = vec!["item.id > :after"];
    if range.is_some() {
        conditions.push(
            "item.id IN (SELECT item FROM key_0 WHERE key BETWEEN :first AND :last
                         UNION ALL SELECT item FROM key_1 WHERE key BETWEEN :first AND :last)",
        );
    }
    let items = (!filter.items.is_empty()).then(|| items_of(filter));
    conditions.extend(items.as_ref().map(|_| "item.id IN (SELECT value FROM json_each(:items))"));
    // The words first, which cost less than understanding the text of every row.
    conditions.extend(
        filter.queue_id.as_ref().map(
            |_| "instr(activity, :queue_id) AND json_extract(activity, '$.envelope.queue_id') = :queue_id",
        ),
    );
    let tenants = filter.tenant.as_deref().map(|tenant| tenants_of(database, tenant)).transpose()?;
    if tenants.is_some() {
        // What waits has an index that begins with the tenant; what is held is little.
        conditions.push(
            "item.id IN (SELECT of_tenant.id FROM json_each(:tenants) AS meant
                             JOIN item AS of_tenant INDEXED BY item_turn
                             ON of_tenant.state = 0 AND of_tenant.tenant = meant.value
                         UNION ALL SELECT id FROM item INDEXED BY item_held WHERE state = 1)",
        );
        conditions.push("(tenant = :tenant OR json_extract(activity, '$.tenant.prefix') = lower(:tenant))");
    }
    let bare = range.is_none()
        && filter.tenant.is_none()
        && filter.before.is_none()
        && items.is_none()
        && filter.queue_id.is_none();
    conditions.extend(filter.state.map(|state| match state {
        State::Waiting => "state = 0 AND lease.item IS NULL",
        State::InFlight => "state = 0 AND item.id IN (SELECT item FROM lease)",
        // The first of each half of the index: told of, and not.
        State::Held if bare => {
            "item.id IN (
                 SELECT id FROM (SELECT id FROM item INDEXED BY item_held
                     WHERE state = 1 AND notified = 0 AND id > :after ORDER BY id LIMIT :limit)
                 UNION ALL
                 SELECT id FROM (SELECT id FROM item INDEXED BY item_held
                     WHERE state = 1 AND notified = 1 AND id > :after ORDER BY id LIMIT :limit))"
        }
        State::Held => "item.id IN (SELECT id FROM item INDEXED BY item_held WHERE state = 1)",
        State::Delivered => "false", // they are elsewhere
    }));
    if filter.before.is_some() {
        conditions.push("accepted_at < :before");
    }
    let sql = format!(
        "SELECT {COLUMNS} FROM item LEFT JOIN lease ON lease.item = item.id WHERE {} ORDER BY item.id LIMIT :limit",
        conditions.join(" AND ")
    );
    let limit = filter.limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(-1));
    let (after, before) = (filter.after.unwrap_or(i64::MIN), filter.before.map(super::watch::millis));
    let mut values: Vec<(&str, &dyn ToSql)> = vec![(":limit", &limit), (":after", &after)];
    if let Some((first, last)) = &range {
        values.extend([(":first", first as &dyn ToSql), (":last", last)]);
    }
    values.extend(items.as_ref().map(|items| (":items", items as &dyn ToSql)));
    values.extend(filter.queue_id.as_ref().map(|queue_id| (":queue_id", queue_id as &dyn ToSql)));
    values.extend(filter.tenant.as_ref().map(|tenant| (":tenant", tenant as &dyn ToSql)));
    values.extend(tenants.as_ref().map(|tenants| (":tenants", tenants as &dyn ToSql)));
    values.extend(before.as_ref().map(|before| (":before", before as &dyn ToSql)));
    let mut statement = database.prepare(&sql)?;
    Ok(statement.query_map(values.as_slice(), entry)?.collect::<rusqlite::Result<Vec<_>>>()?)
}

/// Ids of the tenants that a name may mean, as a parameter: the one with this id; else those whose first or last waiting
/// activity has this prefix.
fn tenants_of(database: &Connection, name: &str) -> rusqlite::Result<String> {
    let is_id = "SELECT json_group_array(id) FROM tenant WHERE id = :name";
    let by_prefix = "SELECT json_group_array(id) FROM tenant WHERE waiting > 0 AND lower(:name) IN (
        (SELECT json_extract(activity, '$.tenant.prefix') FROM item INDEXED BY item_turn
            WHERE item.state = 0 AND item.tenant = tenant.id ORDER BY due LIMIT 1),
        (SELECT json_extract(activity, '$.tenant.prefix') FROM item INDEXED BY item_turn
            WHERE item.state = 0 AND item.tenant = tenant.id ORDER BY due DESC LIMIT 1))";
    let ask = |sql: &str| database.query_row(sql, &[(":name", &name)], |row| row.get::<_, String>(0));
    match ask(is_id)?.as_str() {
        "[]" => ask(by_prefix),
        ids => Ok(ids.to_owned()),
    }
}

/// Rows as a parameter.
fn items_of(filter: &Filter) -> String {
    serde_json::to_string(&filter.items).unwrap_or_default()
}

/// Digits of a key that are no other key's.
const ENOUGH: usize = 16;

/// Those that are kept after their delivery and that a filter lets through.
pub(super) fn delivered(database: &Connection, filter: &Filter) -> Result<Vec<Entry>, StorageError> {
    let digits = |key: &String| key.strip_prefix("b3:").unwrap_or(key).len();
    let ranges: Vec<_> = filter.keys.iter().filter_map(|key| range(key)).collect();
    if !filter.keys.is_empty() && filter.keys.iter().all(|key| digits(key) >= ENOUGH) {
        // The keys of a week lead to their rows; only what is kept for longer is looked for in all of them.
        let found = kept_of(database, filter, &ranges, KEPT_BY_KEY)?;
        let has = |(first, last): &([u8; 32], [u8; 32])| {
            found.iter().any(|entry| (*first..=*last).contains(&entry.key.bytes()))
        };
        if ranges.iter().all(has) {
            return Ok(found);
        }
    }
    kept_of(database, filter, &ranges, "id > :after")
}

/// By the table of keys.
const KEPT_BY_KEY: &str = "id > :after AND id IN (SELECT named.item FROM json_each(:ranges) AS wanted, (
        SELECT key, item FROM key_0 UNION ALL SELECT key, item FROM key_1) AS named
    WHERE named.key BETWEEN unhex(wanted.value ->> 0) AND unhex(wanted.value ->> 1))";

fn kept_of(
    database: &Connection,
    filter: &Filter,
    ranges: &[([u8; 32], [u8; 32])],
    first: &str,
) -> Result<Vec<Entry>, StorageError> {
    let mut conditions = vec![first];
    let items = (!filter.items.is_empty()).then(|| items_of(filter));
    conditions.extend(items.as_ref().map(|_| "id IN (SELECT value FROM json_each(:items))"));
    conditions.extend(
        filter.queue_id.as_ref().map(
            |_| "instr(activity, :queue_id) AND json_extract(activity, '$.envelope.queue_id') = :queue_id",
        ),
    );
    conditions.extend(
        filter
            .tenant
            .as_ref()
            .map(|_| "(tenant = :tenant OR json_extract(activity, '$.tenant.prefix') = lower(:tenant))"),
    );
    conditions.extend(filter.before.map(|_| "accepted_at < :before"));
    let limit = filter.limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(-1));
    let (after, before) = (filter.after.unwrap_or(i64::MIN), filter.before.map(super::watch::millis));
    let mut values: Vec<(&str, &dyn ToSql)> = vec![(":after", &after)];
    // No index has their keys: each would be a page more for each delivery.
    if filter.keys.is_empty() {
        values.push((":limit", &limit));
    }
    let hex = |bytes: &[u8; 32]| blake3::Hash::from(*bytes).to_hex().to_string();
    let wanted: Vec<_> = ranges.iter().map(|(first, last)| [hex(first), hex(last)]).collect();
    let wanted = serde_json::to_string(&wanted).unwrap_or_default();
    if first == KEPT_BY_KEY {
        values.push((":ranges", &wanted));
    }
    values.extend(items.as_ref().map(|items| (":items", items as &dyn ToSql)));
    values.extend(filter.queue_id.as_ref().map(|queue_id| (":queue_id", queue_id as &dyn ToSql)));
    values.extend(filter.tenant.as_ref().map(|tenant| (":tenant", tenant as &dyn ToSql)));
    values.extend(before.as_ref().map(|before| (":before", before as &dyn ToSql)));
    let bound = if filter.keys.is_empty() { " LIMIT :limit" } else { "" };
    let sql =
        format!("SELECT {KEPT_COLUMNS} FROM kept WHERE {} ORDER BY id{bound}", conditions.join(" AND "));
    let mut statement = database.prepare(&sql)?;
    let mut rows = statement.query(values.as_slice())?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let key = key_of(row.get_ref(1)?);
        let is_named = ranges.iter().any(|(first, last)| (first..=last).contains(&&key.bytes()));
        if filter.keys.is_empty() || is_named {
            found.push(Entry { state: State::Delivered, ..entry(row)? });
        }
    }
    found.truncate(filter.limit.unwrap_or(usize::MAX));
    Ok(found)
}

/// Bytes of the database, without pages that are free.
pub(super) fn bytes(database: &Connection) -> Result<u64, StorageError> {
    let number = |pragma| database.query_row(pragma, [], |row| row.get::<_, i64>(0));
    let pages = number("PRAGMA page_count")? - number("PRAGMA freelist_count")?;
    Ok(u64::try_from(pages * number("PRAGMA page_size")?).unwrap_or(0))
}

/// A row as the database has it.
pub(super) struct Stored {
    key: Key,
    activity: String,
    attempts: u32,
    accepted_at: i64,
    note: Option<String>,
    message: i64,
    in_file: bool,
    body: Option<Vec<u8>>,
    cuts: Option<String>,
    text: Option<String>,
    replay: bool,
}

/// Whether a row is leased by this number, and for longer than until now.
pub(super) fn is_leased(database: &Connection, ticket: &Ticket, now: i64) -> Result<bool, StorageError> {
    let mut leased = database.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM lease WHERE item = ?1 AND fence = ?2 AND until > ?3)",
    )?;
    Ok(leased.query_row(params![ticket.item, ticket.fence, now], |row| row.get(0))?)
}

/// A row, and its message.
pub(super) fn stored(database: &Connection, spool: &Spool, item: i64) -> Result<(Stored, Raw), StorageError> {
    let read = |row: &Row<'_>| {
        Ok(Stored {
            key: key_of(row.get_ref(0)?),
            activity: row.get(1)?,
            attempts: row.get(2)?,
            accepted_at: row.get(3)?,
            note: row.get(4)?,
            message: row.get(5)?,
            in_file: row.get(6)?,
            body: row.get(7)?,
            cuts: row.get(8)?,
            text: row.get(9)?,
            replay: row.get(10)?,
        })
    };
    let mut stored = database
        .prepare_cached(
            "SELECT key, activity, attempts, accepted_at, note, message, in_file, body, cuts, text, replay FROM item WHERE id = ?1
             UNION ALL
             SELECT key, activity, attempts, accepted_at, NULL, message, in_file, body, cuts, text, 0 FROM kept WHERE id = ?1
             LIMIT 1",
        )?
        .query_row([item], read)
        .optional()?
        .ok_or_else(super::written::no_more_there)?;
    let mut number = item;
    if stored.message != 0 {
        number = stored.message;
        (stored.in_file, stored.body, stored.cuts, stored.text) = database
            .prepare_cached("SELECT in_file, body, cuts, text FROM message WHERE id = ?1")?
            .query_row([number], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
            .optional()?
            .ok_or_else(|| super::written::damaged("it has no message"))?;
    }
    let raw = match stored.body.take() {
        Some(body) => Raw::from(body),
        None if stored.in_file => spool.open(number)?,
        None => return Err(super::written::damaged("it has no message")),
    };
    Ok((stored, raw))
}

impl Stored {
    /// About as many bytes as must be read to understand it.
    pub(super) fn size(&self) -> usize {
        self.activity.len()
    }

    /// As it is kept: the number of its message (0: it has it itself), key, activity, where its files lie, and its text.
    pub(super) fn into_parts(self) -> (i64, Key, String, Option<String>, Option<String>) {
        (self.message, self.key, self.activity, self.cuts, self.text)
    }

    /// What the row says. For a large one it takes a while.
    pub(super) fn item(self, raw: Raw, watch: &Watch) -> Result<Item, StorageError> {
        let (activity, json) = super::written::whole(self.activity, self.text.as_deref(), &raw)?;
        let cuts =
            serde_json::from_str(self.cuts.as_deref().unwrap_or("[]")).map_err(super::written::damaged)?;
        Ok(Item {
            key: self.key,
            activity,
            json: json.into(),
            cuts,
            raw,
            attempts: self.attempts,
            age: watch.age(self.accepted_at),
            note: self.note,
            replay: self.replay,
        })
    }
}

/// Whether each of these is known.
pub(super) fn known(database: &Connection, keys: &[Key]) -> Result<Vec<bool>, StorageError> {
    keys.iter().map(|key| Ok(super::keys::Keys::find(database, &key.bytes())?.is_some())).collect()
}

/// Bytes of a page of held activities; the last one may have more.
const UNTOLD_BYTES: usize = 4 * 1024 * 1024;

/// Held activities of which nobody was told, behind `after`.
pub(super) fn untold(
    database: &Connection,
    after: Option<i64>,
    limit: usize,
) -> Result<Vec<Untold>, StorageError> {
    let mut rows = database.prepare_cached(
        "SELECT id, iif(typeof(activity) = 'text' AND json_valid(activity),
             json_remove(activity, '$.text', '$.html', '$.participants', '$.references', '$.in_reply_to', '$.files'),
             substr(activity, 1, 100)), reason
         FROM item INDEXED BY item_held WHERE state = 1 AND notified = 0 AND id > ?1 ORDER BY id LIMIT ?2",
    )?;
    let (limit, after) = (i64::try_from(limit).unwrap_or(i64::MAX), after.unwrap_or(i64::MIN));
    let mut rows = rows.query(params![after, limit])?;
    let (mut untold, mut bytes) = (Vec::new(), 0);
    while bytes < UNTOLD_BYTES
        && let Some(row) = rows.next()?
    {
        // What is no text would be an error, by which all others would be hidden.
        let text = |at| -> rusqlite::Result<String> {
            let bytes = row.get_ref(at)?.as_bytes_or_null().ok().flatten().unwrap_or_default();
            Ok(String::from_utf8_lossy(bytes).into_owned())
        };
        let one = Untold { id: row.get(0)?, activity: text(1)?, reason: text(2)? };
        bytes += one.activity.len() + one.reason.len();
        untold.push(one);
    }
    Ok(untold)
}

/// When the first row that waits was accepted. `place`: no row before it waits; moved on, so that held rows in front are
/// walked over once.
pub(super) fn oldest(
    database: &mut Connection,
    place: &AtomicI64,
) -> Result<Option<SystemTime>, StorageError> {
    let before = place.load(Ordering::Relaxed);
    let look = database.transaction()?; // both questions at the same state
    let first: Option<(i64, i64)> = look
        .prepare_cached(
            "SELECT id, accepted_at FROM item NOT INDEXED WHERE id >= ?1 AND state = 0 ORDER BY id LIMIT 1",
        )?
        .query_row([before], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let next = match first {
        Some((id, _)) => id,
        None => look.query_row("SELECT coalesce(max(id) + 1, 0) FROM item", [], |row| row.get(0))?,
    };
    // Unless somebody has set it back meanwhile.
    let _ = place.compare_exchange(before, next, Ordering::Relaxed, Ordering::Relaxed);
    Ok(first.map(|(_, accepted_at)| time(accepted_at)))
}

/// Why the newest are held, and which wait longest; `place` as in [`oldest`].
pub(super) fn overview(
    database: &mut Connection,
    place: &AtomicI64,
    most: usize,
    rows: usize,
) -> Result<Overview, StorageError> {
    oldest(database, place)?;
    let (most, rows) = (i64::try_from(most).unwrap_or(i64::MAX), i64::try_from(rows).unwrap_or(i64::MAX));
    let held_for = database
        .prepare_cached(
            "SELECT coalesce(reason, '') AS why, count(*) AS items, min(coalesce(held_at, due)), count(DISTINCT tenant),
                 min(tenant)
             FROM item NOT INDEXED WHERE id IN (SELECT id FROM (
                 SELECT id FROM (SELECT id FROM item INDEXED BY item_held
                     WHERE state = 1 AND notified = 0 ORDER BY id DESC LIMIT ?1)
                 UNION ALL
                 SELECT id FROM (SELECT id FROM item INDEXED BY item_held
                     WHERE state = 1 AND notified = 1 ORDER BY id DESC LIMIT ?1)
             ) ORDER BY id DESC LIMIT ?1)
             GROUP BY why ORDER BY items DESC, why",
        )?
        .query_map([most], |row| {
            Ok(HeldFor {
                reason: row.get(0)?,
                count: row.get::<_, i64>(1)?.unsigned_abs(),
                since: time(row.get(2)?),
                tenants: row.get::<_, i64>(3)?.unsigned_abs(),
                tenant: row.get(4)?,
            })
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    // Held rows may lie between those that wait: no more than `most` are walked over.
    let sql = format!(
        "SELECT {COLUMNS} FROM item LEFT JOIN lease ON lease.item = item.id WHERE item.id IN (
             SELECT id FROM (SELECT id, state FROM item NOT INDEXED WHERE id >= ?1 ORDER BY id LIMIT ?2)
             WHERE state = 0 ORDER BY id LIMIT ?3
         ) ORDER BY item.id"
    );
    let first = place.load(Ordering::Relaxed);
    let oldest = database
        .prepare_cached(&sql)?
        .query_map(params![first, most, rows], entry)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(Overview { held_for, oldest })
}

/// A page of rows behind `after` that wait and were accepted before `oldest`; and the last row looked at, if there may be
/// more.
pub(super) fn old(
    database: &Connection,
    after: i64,
    oldest: i64,
    page: i64,
) -> Result<(Vec<i64>, Option<i64>), StorageError> {
    let mut rows = database.prepare_cached(
        "SELECT id, accepted_at FROM item NOT INDEXED WHERE id > ?1 AND state = 0 ORDER BY id LIMIT ?2",
    )?;
    let rows = rows
        .query_map(params![after, page], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<Vec<(i64, i64)>>>()?;
    let more =
        rows.last().map(|(id, _)| *id).filter(|_| i64::try_from(rows.len()).is_ok_and(|count| count == page));
    let old = rows.into_iter().filter(|(_, accepted_at)| *accepted_at < oldest).map(|(id, _)| id).collect();
    Ok((old, more))
}

/// A page of rows behind `after` that are held since before `since` and still count.
pub(super) fn long_held(
    database: &Connection,
    after: i64,
    told: bool,
    since: i64,
    page: i64,
) -> Result<(Vec<i64>, Option<i64>), StorageError> {
    let mut rows = database.prepare_cached(
        "SELECT id, aged = 0 AND coalesce(held_at, due) < ?3 FROM item INDEXED BY item_held
         WHERE state = 1 AND notified = ?4 AND id > ?1 ORDER BY id LIMIT ?2",
    )?;
    let rows = rows
        .query_map(params![after, page, since, told], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<Vec<(i64, bool)>>>()?;
    let more =
        rows.last().map(|(id, _)| *id).filter(|_| i64::try_from(rows.len()).is_ok_and(|count| count == page));
    Ok((rows.into_iter().filter(|(_, long)| *long).map(|(id, _)| id).collect(), more))
}

/// A page of rows behind `after` whose times lie ahead: accepted after `now`, or due after `latest`.
pub(super) fn ahead(
    database: &Connection,
    after: i64,
    now: i64,
    latest: i64,
    page: i64,
) -> Result<(Vec<i64>, Option<i64>), StorageError> {
    let mut rows = database.prepare_cached(
        "SELECT id, accepted_at > ?3 OR held_at > ?3 OR (state = 0 AND due > ?4) FROM item NOT INDEXED
         WHERE id > ?1 ORDER BY id LIMIT ?2",
    )?;
    let rows = rows
        .query_map(params![after, page, now, latest], |row| {
            Ok((row.get(0)?, row.get::<_, Option<bool>>(1)?))
        })?
        .collect::<rusqlite::Result<Vec<(i64, Option<bool>)>>>()?;
    let more =
        rows.last().map(|(id, _)| *id).filter(|_| i64::try_from(rows.len()).is_ok_and(|count| count == page));
    Ok((rows.into_iter().filter(|(_, ahead)| *ahead == Some(true)).map(|(id, _)| id).collect(), more))
}

/// Which of these numbers neither a row nor a message with a file has.
pub(super) fn unnamed(database: &Connection, numbers: Vec<i64>) -> Result<Vec<i64>, StorageError> {
    let mut named = database.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM item WHERE id = ?1 AND in_file) OR EXISTS (SELECT 1 FROM message WHERE id = ?1 AND in_file)
             OR EXISTS (SELECT 1 FROM kept WHERE id = ?1 AND in_file)",
    )?;
    let mut unnamed = Vec::new();
    for number in numbers {
        if !named.query_row([number], |row| row.get::<_, bool>(0))? {
            unnamed.push(number);
        }
    }
    Ok(unnamed)
}
