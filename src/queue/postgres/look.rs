//! What there is, read on connections that nobody who puts or delivers waits for.
//!
//! In: filters. Out: rows and numbers, each answer of one moment.
//! Promise: a look holds no lock that anybody waits for, and a long one is made in pages by who asks ([`Filter::after`]).

use super::{
    Inner, LONG_TIME, LOOK_TIME,
    free::IS_FREE,
    line::Value,
    payload,
    routine::{Made, Routine},
};
use crate::activity::{Key, Raw};
use crate::queue::{
    Counts, Entry, Filter, HeldFor, Item, Overview, State, StorageError, TenantCounts, Ticket, Untold,
    watch::{millis, time},
    written,
};
use std::{collections::HashSet, sync::LazyLock};
use tokio_postgres::{Row, types::Type};

/// The columns of an entry; the activity's own words last.
const COLUMNS: &str =
    "rows.id, rows.key, rows.tenant, rows.state, rows.until, rows.attempts, rows.accepted_at, rows.due, rows.reason,
     rows.held_at, is_free, payload.brief";

/// The words of a row.
const WORDS: &str = "LEFT JOIN activity_milter.payload ON payload.day = rows.day AND payload.id = rows.id AND payload.part = 0";

fn entry(row: &Row) -> Entry {
    let (state, until, is_free): (i16, Option<i64>, bool) = (row.get(3), row.get(4), row.get(10));
    let (due, held_at): (i64, Option<i64>) = (row.get(7), row.get(9));
    let (state, due) = match (state, until.filter(|_| !is_free)) {
        (2, _) => (State::Delivered, due),
        (1, _) => (State::Held, held_at.unwrap_or(due)),
        (_, Some(until)) => (State::InFlight, until),
        (_, None) => (State::Waiting, due),
    };
    let brief: Option<&str> = row.get(11);
    let brief: serde_json::Value =
        brief.and_then(|brief| serde_json::from_str(brief).ok()).unwrap_or_default();
    let word = |place: &str| brief.pointer(place).and_then(|word| word.as_str()).map(str::to_owned);
    let recipients = brief.pointer("/envelope/recipients").and_then(|list| list.as_array());
    let attempts: i32 = row.get(5);
    Entry {
        id: row.get(0),
        key: key_of(row.get(1)),
        tenant: row.get(2),
        project: word("/project/number"),
        queue_id: word("/envelope/queue_id"),
        sender: word("/envelope/sender"),
        recipients: recipients
            .map(|list| list.iter().filter_map(|one| one.as_str()).map(str::to_owned).collect())
            .unwrap_or_default(),
        state,
        attempts: attempts.unsigned_abs(),
        accepted_at: time(row.get(6)),
        due: time(due),
        reason: row.get(8),
    }
}

/// The key of a row.
pub(super) fn key_of(bytes: &[u8]) -> Key {
    match bytes.try_into() {
        Ok(bytes) => Key::from_bytes(bytes),
        Err(_) => Key::from_stored(String::new()),
    }
}

/// The first and the last key that begin like this; none if no key does.
fn range(beginning: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let hex = beginning.strip_prefix("b3:").unwrap_or(beginning);
    let key = |filler: char| {
        let padded: String = hex.chars().chain(std::iter::repeat(filler)).take(64).collect();
        blake3::Hash::from_hex(padded).ok().map(|hash| hash.as_bytes().to_vec())
    };
    Some((key('0')?, key('f')?)).filter(|_| hex.len() <= 64)
}

/// The rows that a filter lets through.
pub(super) async fn list(inner: &Inner, filter: &Filter) -> Result<Vec<Entry>, StorageError> {
    let mut found = Vec::new();
    match filter.keys.as_slice() {
        [] => found = list_of(inner, filter, None).await?,
        keys => {
            let mut seen = HashSet::new();
            for range in keys.iter().filter_map(|key| range(key)) {
                let some = list_of(inner, filter, Some(range)).await?;
                found.extend(some.into_iter().filter(|entry| seen.insert(entry.id)));
            }
        }
    }
    found.truncate(filter.limit.unwrap_or(usize::MAX));
    Ok(found)
}

async fn list_of(
    inner: &Inner,
    filter: &Filter,
    range: Option<(Vec<u8>, Vec<u8>)>,
) -> Result<Vec<Entry>, StorageError> {
    let is_delivered = filter.state == Some(State::Delivered);
    let (given, after) = (inner.when.given(), filter.after.unwrap_or(i64::MIN));
    let limit = filter.limit.map(|limit| i64::try_from(limit).unwrap_or(i64::MAX));
    let before = filter.before.map(millis);
    let mut values: Vec<Value<'_>> = vec![(&given, Type::INT8), (&after, Type::INT8), (&limit, Type::INT8)];
    // Only the conditions that are asked for, so that each query has the index that suits it.
    let mut conditions = vec!["id > $2".to_owned()];
    let number = |values: &Vec<Value<'_>>| values.len();
    if let Some((first, last)) = &range {
        values.extend([(first as _, Type::BYTEA), (last as _, Type::BYTEA)]);
        let (first, last) = (number(&values) - 1, number(&values));
        conditions.push(match is_delivered {
            true => format!("key BETWEEN ${first} AND ${last}"),
            false => format!(
                "id IN (SELECT known.item FROM activity_milter.key AS known WHERE known.key BETWEEN ${first} AND ${last})"
            ),
        });
    }
    if !filter.items.is_empty() {
        values.push((&filter.items, Type::INT8_ARRAY));
        conditions.push(format!("id = ANY (${})", number(&values)));
    }
    if let Some(tenant) = &filter.tenant {
        values.push((tenant, Type::TEXT));
        let tenant = number(&values);
        conditions.push(format!(
            "(tenant = ${tenant} OR tenant IN (SELECT of.id FROM activity_milter.number_of AS of WHERE of.prefix = lower(${tenant})))"
        ));
    }
    if let Some(before) = &before {
        values.push((before, Type::INT8));
        conditions.push(format!("accepted_at < ${}", number(&values)));
    }
    if let Some(queue_id) = &filter.queue_id {
        values.push((queue_id, Type::TEXT));
        let queue_id = number(&values);
        // The words first, which cost less than understanding each text.
        conditions.push(format!(
            "EXISTS (SELECT FROM activity_milter.payload AS words WHERE words.day = rows.day AND words.id = rows.id
                 AND words.part = 0 AND strpos(words.brief, ${queue_id}) > 0
                 AND words.brief::json #>> '{{envelope,queue_id}}' = ${queue_id})"
        ));
    }
    conditions.extend(filter.state.and_then(|state| match state {
        State::Waiting => Some(format!("state = 0 AND {IS_FREE}")),
        State::InFlight => Some(format!("state = 0 AND NOT {IS_FREE}")),
        State::Held => Some("state = 1".to_owned()),
        State::Delivered => None,
    }));
    let table = match is_delivered {
        true => {
            "(SELECT id, key, tenant, 2::int2 AS state, NULL::int8 AS until, NULL::text AS node, attempts, accepted_at, delivered_at AS due,
                  NULL::text AS reason, NULL::int8 AS held_at, day FROM activity_milter.kept)"
        }
        false => "activity_milter.item",
    };
    let sql = format!(
        "WITH t AS MATERIALIZED (SELECT activity_milter.at($1) AS now)
         SELECT {COLUMNS} FROM (
             SELECT rows.*, {IS_FREE} AS is_free FROM {table} AS rows
             WHERE {} ORDER BY rows.id LIMIT $3) AS rows
         {WORDS} ORDER BY rows.id",
        conditions.join(" AND ")
    );
    let rows = inner.lookers.lend(LONG_TIME).await?.ask(&sql, &values).await?;
    Ok(rows.iter().map(entry).collect())
}

/// Rows that are read in one look.
const OPENED_AT_ONCE: usize = 32;

/// Rows of these numbers, and the first pieces of their messages.
pub(super) static OPEN: Routine = LazyLock::new(|| {
    let (number, text) = (Type::INT8, Type::TEXT);
    let gives = [
        number.clone(),
        Type::BYTEA,
        Type::INT4,
        number.clone(),
        text.clone(),
        Type::BOOL,
        Type::INT4,
        number.clone(),
        text.clone(),
        text.clone(),
        text,
        Type::BYTEA,
        number.clone(),
        number,
    ];
    Made::new("open", &[Type::INT8_ARRAY], &gives, READ)
});

const READ: &str = "
    SELECT rows.id, rows.key, rows.attempts, rows.accepted_at, rows.note, rows.replay, rows.day, rows.letter,
        own.activity, letter.cuts, letter.text, letter.bytes, rows.fence, rows.until
    FROM (SELECT id, key, attempts, accepted_at, note, replay, day, letter, fence, until FROM activity_milter.item WHERE id = ANY ($1)
          UNION ALL
          SELECT id, key, attempts, accepted_at, NULL, false, day, letter, NULL, NULL FROM activity_milter.kept WHERE id = ANY ($1)) AS rows
    LEFT JOIN LATERAL (
        SELECT activity FROM activity_milter.payload WHERE day = rows.day AND id = rows.id AND part = 0 LIMIT 1) AS own ON true
    LEFT JOIN LATERAL (
        SELECT cuts, text, bytes FROM activity_milter.payload
        WHERE day = rows.day AND id = rows.letter AND part = 0 LIMIT 1) AS letter ON true";

/// Reads rows, for each of which somebody waits; none where there is no row.
async fn stored(inner: &Inner, items: Vec<i64>) -> Vec<Result<Option<Stored>, StorageError>> {
    let rows = async {
        Ok::<_, StorageError>(
            inner.lines.lend(LONG_TIME).await?.call(&OPEN, &[(&items, Type::INT8_ARRAY)]).await?,
        )
    };
    let rows = match rows.await {
        Ok(rows) => rows,
        Err(error) => return items.iter().map(|_| Err(error.clone())).collect(),
    };
    let of = |item: &i64| {
        rows.iter().find(|row| row.get::<_, i64>(0) == *item).map(|row| Stored::of(row, inner)).transpose()
    };
    items.iter().map(of).collect()
}

/// Everything of a row.
pub(super) async fn open(inner: &Inner, item: i64) -> Result<Item, StorageError> {
    read(inner, item, None).await
}

/// The same for who begins an attempt. Who was away for long may have it on his list still, and another one has it meanwhile; and
/// while commits are less safe than is asked, a server that takes over would not know that it was sent.
pub(super) async fn begin(inner: &Inner, ticket: &Ticket) -> Result<Item, StorageError> {
    if let Some(lack) = inner.guarantee().lacks(inner.require_replication) {
        return Err(StorageError::Busy(lack));
    }
    if !inner.still_has(ticket) {
        return Err(written::no_more_ours());
    }
    read(inner, ticket.item, Some(ticket)).await
}

async fn read(inner: &Inner, item: i64, by: Option<&Ticket>) -> Result<Item, StorageError> {
    // What was accepted is moved to another day now and then: all of it is read of one day, or once more.
    for _ in 0..3 {
        let few = |items: &[i64], _: &i64| items.len() < OPENED_AT_ONCE;
        let stored = inner.opens.bring(item, few, |items| stored(inner, items)).await?;
        let is_leased = |ticket| stored.as_ref().is_some_and(|stored| stored.is_leased(ticket));
        if by.is_some_and(|ticket| !is_leased(ticket)) {
            return Err(written::no_more_ours());
        }
        let mut stored = stored.ok_or_else(written::no_more_there)?;
        let first = std::mem::take(&mut stored.first);
        let raw = if first.len() < payload::PART && first.len() <= payload::IN_MEMORY {
            Raw::from(first)
        } else {
            let mut line = inner.lines.lend(LONG_TIME).await?;
            match payload::read(&mut line, stored.place, first, &inner.settings.spool).await {
                Err(StorageError::Gone(_)) => continue,
                raw => raw?,
            }
        };
        if stored.json.len() as u64 + raw.len() <= READ_AT_ONCE {
            return stored.whole(raw);
        }
        let whole = tokio::task::spawn_blocking(move || stored.whole(raw));
        return whole.await.map_err(|error| StorageError::Other(error.to_string()))?;
    }
    Err(written::damaged("a piece of its message is missing"))
}

/// Largest activity, in bytes, that is read where it is asked for.
const READ_AT_ONCE: u64 = 64 * 1024;

/// A row, and the first piece of its message.
#[derive(Debug)]
pub(super) struct Stored {
    key: Key,
    attempts: i32,
    age: std::time::Duration,
    note: Option<String>,
    replay: bool,
    /// Number of its lease, if it has one.
    lease: Option<i64>,
    /// Day and letter.
    place: (i32, i64),
    json: String,
    cuts: Option<String>,
    text: Option<String>,
    first: Vec<u8>,
}

impl Stored {
    fn of(row: &Row, inner: &Inner) -> Result<Self, StorageError> {
        let (Some(json), Some(first)) = (row.get(8), row.get(11)) else {
            return Err(written::damaged("its message is not there"));
        };
        Ok(Self {
            key: key_of(row.get(1)),
            attempts: row.get(2),
            age: inner.when.watch.age(row.get(3)),
            note: row.get(4),
            replay: row.get(5),
            lease: row.get::<_, Option<i64>>(13).and(row.get(12)),
            place: (row.get(6), row.get(7)),
            json,
            cuts: row.get(9),
            text: row.get(10),
            first,
        })
    }

    /// Whether it is leased by this ticket still. No clock says that it is not: whoever gives it back writes that down.
    fn is_leased(&self, ticket: &Ticket) -> bool {
        self.lease == Some(ticket.fence) && self.key.bytes()[..] == ticket.token[..]
    }

    fn whole(self, raw: Raw) -> Result<Item, StorageError> {
        let Self { key, attempts, age, note, replay, json, cuts, text, .. } = self;
        let (activity, json) = written::whole(json, text.as_deref(), &raw)?;
        let cuts = serde_json::from_str(cuts.as_deref().unwrap_or("[]")).map_err(written::damaged)?;
        let (json, attempts) = (json.into(), attempts.unsigned_abs());
        Ok(Item { key, activity, json, cuts, raw, attempts, age, note, replay })
    }
}

/// How many there are, and since when the oldest waits.
pub(super) async fn counts(inner: &Inner) -> Result<Counts, StorageError> {
    let mut line = inner.lookers.lend(LOOK_TIME).await?;
    let rows = line
        .ask(
            "SELECT coalesce(sum(waiting), 0)::int8, coalesce(sum(held + aged), 0)::int8,
                 (SELECT accepted_at FROM activity_milter.item WHERE state + 0 = 0 ORDER BY accepted_at, id LIMIT 1)
             FROM activity_milter.number_of",
            &[],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(Counts::default()) };
    let (waiting, held, oldest): (i64, i64, Option<i64>) = (row.get(0), row.get(1), row.get(2));
    let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok(Counts { waiting: unsigned(waiting), held: unsigned(held), oldest: oldest.map(time) })
}

/// Numbers by tenant, those with most first.
pub(super) async fn by_tenant(inner: &Inner) -> Result<Vec<TenantCounts>, StorageError> {
    let mut line = inner.lookers.lend(LOOK_TIME).await?;
    let rows = line
        .ask(
            "SELECT id, waiting, held + aged FROM activity_milter.number_of WHERE waiting + held + aged > 0
             ORDER BY waiting + held + aged DESC, id",
            &[],
        )
        .await?;
    let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
    let counts = |row: &Row| TenantCounts {
        tenant: row.get(0),
        waiting: unsigned(row.get(1)),
        held: unsigned(row.get(2)),
    };
    Ok(rows.iter().map(counts).collect())
}

/// The newest that are held: told of and not, each by the index.
const HELD_FOR: &str = "
    SELECT coalesce(reason, '') COLLATE \"C\" AS why, count(*), min(coalesce(held_at, due)), count(DISTINCT tenant), min(tenant)
    FROM (
        SELECT * FROM (
            (SELECT * FROM activity_milter.item WHERE state = 1 AND told ORDER BY id DESC LIMIT $1)
            UNION ALL
            (SELECT * FROM activity_milter.item WHERE state = 1 AND NOT told ORDER BY id DESC LIMIT $1)
        ) AS halves ORDER BY id DESC LIMIT $1) AS newest
    GROUP BY why ORDER BY 2 DESC, why";

/// Why the newest are held, and which wait longest.
pub(super) async fn overview(inner: &Inner, most: usize, few: usize) -> Result<Overview, StorageError> {
    let [most, few] = [most, few].map(|number| i64::try_from(number).unwrap_or(i64::MAX));
    let mut line = inner.lookers.lend(LOOK_TIME).await?;
    let rows = line.ask(HELD_FOR, &[(&most, Type::INT8)]).await?;
    let held_for = rows.iter().map(|row| HeldFor {
        reason: row.get(0),
        count: row.get::<_, i64>(1).unsigned_abs(),
        since: time(row.get(2)),
        tenants: row.get::<_, i64>(3).unsigned_abs(),
        tenant: row.get(4),
    });
    let held_for = held_for.collect();
    // Held rows may lie between those that wait: no more than `most` are walked over.
    let sql = format!(
        "WITH t AS MATERIALIZED (SELECT activity_milter.at($1) AS now)
         SELECT {COLUMNS} FROM (
             SELECT few.*, {IS_FREE} AS is_free FROM (
                 SELECT * FROM activity_milter.item
                 WHERE id >= (SELECT id FROM activity_milter.item WHERE state + 0 = 0 ORDER BY accepted_at, id LIMIT 1)
                 ORDER BY id LIMIT $2) AS few
             WHERE state = 0 ORDER BY id LIMIT $3) AS rows
         {WORDS} ORDER BY rows.id"
    );
    let given = inner.when.given();
    let rows = line.ask(&sql, &[(&given, Type::INT8), (&most, Type::INT8), (&few, Type::INT8)]).await?;
    Ok(Overview { held_for, oldest: rows.iter().map(entry).collect() })
}

/// Held activities of which nobody was told, behind `after`.
pub(super) async fn untold(
    inner: &Inner,
    after: Option<i64>,
    limit: usize,
) -> Result<Vec<Untold>, StorageError> {
    let (after, limit) = (after.unwrap_or(i64::MIN), i64::try_from(limit).unwrap_or(i64::MAX));
    let sql = format!(
        "SELECT rows.id, coalesce(payload.brief, ''), coalesce(rows.reason, '') FROM (
             SELECT id, day, reason FROM activity_milter.item WHERE state = 1 AND NOT told AND id > $1
             ORDER BY id LIMIT $2) AS rows
         {WORDS} ORDER BY rows.id"
    );
    let mut line = inner.lookers.lend(LONG_TIME).await?;
    let rows = line.ask(&sql, &[(&after, Type::INT8), (&limit, Type::INT8)]).await?;
    Ok(rows.iter().map(|row| Untold { id: row.get(0), activity: row.get(1), reason: row.get(2) }).collect())
}

/// Bytes of our tables.
pub(super) async fn bytes(inner: &Inner) -> Result<u64, StorageError> {
    let mut line = inner.lookers.lend(LONG_TIME).await?;
    let rows = line
        .ask(
            "SELECT coalesce(sum(pg_total_relation_size(pg_class.oid)), 0)::int8 FROM pg_class
             JOIN pg_namespace ON pg_namespace.oid = relnamespace
             WHERE nspname = 'activity_milter' AND relkind = 'r'",
            &[],
        )
        .await?;
    Ok(rows.first().map_or(0, |row| row.get::<_, i64>(0).unsigned_abs()))
}
