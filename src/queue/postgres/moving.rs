//! Rows on their way to another queue, and rows that come from one.
//!
//! In: pages asked for; transfers. Out: transfers; what became of each activity.
//! Promise: what is on its way is leased meanwhile, so that no courier delivers what another queue has too, and who ends in
//! the midst of it leaves it held: after twice [`HOLD`] a person must say what becomes of it, for the other queue may have it and
//! deliver it. After once that the same may be said again, which takes it up, held or not. What comes is stored
//! by the statement that stores what arrives, and gets its past in the same transaction.
//! Fails: [`StorageError`]; a row that nobody can read stays where it is, and hides no other.

use super::{
    Inner, LONG_TIME,
    free::{MOVER, with_free},
    held::{holding, newly_held},
    leaving::{self, HOLD},
    line::Line,
    look::key_of,
    mail::{Columns, Mail},
    mend, payload, put,
};
use crate::activity::{Activity, Key, Raw};
use crate::queue::{
    NewlyHeld, Put, StorageError, tally,
    transfer::{CUT_OFF, Identity, Moved, PAGE, Page, Past, Place, Transfer},
    watch::span,
    written,
};
use std::sync::LazyLock;
use tokio_postgres::{Row, types::Type};

/// The number that the database was given when its tables were made.
pub(super) async fn identity(inner: &Inner) -> Result<Identity, StorageError> {
    let mut line = inner.lookers.lend(LONG_TIME).await?;
    let rows = line.ask("SELECT id::text FROM activity_milter.meta", &[]).await?;
    let row = rows.first().ok_or_else(|| written::damaged("activity_milter.meta is empty"))?;
    Ok(Identity { id: row.get(0), file: None })
}

/// A page, leased; what is held too, and what a move had that ended in the midst of it: now we are the one who moves.
static HOLD_PAGE: LazyLock<String> = LazyLock::new(|| with_free(HOLD_ROWS));

const HOLD_ROWS: &str = "
    WITH t AS MATERIALIZED (SELECT activity_milter.at($1) AS now),
    few AS MATERIALIZED (
        SELECT id FROM activity_milter.item WHERE id > $2 AND (IS_FREE OR node = $5)
        ORDER BY id LIMIT $3 FOR UPDATE OF item SKIP LOCKED),
    mine AS (
        UPDATE activity_milter.item SET until = now + 2 * $4, fence = nextval('activity_milter.fence'), node = $5
        FROM few, t WHERE item.id = few.id
        RETURNING item.id, key, tenant, letter, day, fence, accepted_at, due, attempts, state = 1 AS is_held, held_at, told,
            aged, replay, reason, note, NULL::int8 AS delivered_at)
    SELECT * FROM mine ORDER BY id";

/// The same of what is kept after its delivery, which nobody leases.
const KEPT_PAGE: &str = "
    SELECT id, key, tenant, letter, day, 0::int8 AS fence, accepted_at, delivered_at AS due, attempts, false AS is_held,
        NULL::int8 AS held_at, false AS told, false AS aged, false AS replay, NULL::text AS reason, NULL::text AS note,
        delivered_at
    FROM activity_milter.kept WHERE id > $1 ORDER BY id LIMIT $2";

/// The words of a row, and the beginning of its message.
const WORDS: &str = "
    SELECT own.activity, letter.cuts, letter.text, letter.bytes
    FROM (VALUES (1)) AS one
    LEFT JOIN activity_milter.payload AS own ON own.day = $1 AND own.id = $2 AND own.part = 0
    LEFT JOIN activity_milter.payload AS letter ON letter.day = $1 AND letter.id = $3 AND letter.part = 0";

/// A page of rows behind `after`.
pub(super) async fn page(inner: &Inner, delivered: bool, after: i64) -> Result<Page, StorageError> {
    let most = i64::try_from(PAGE).unwrap_or(i64::MAX);
    let given = inner.when.given();
    let mut line = inner.lines.lend(LONG_TIME).await?;
    leaving::leave(inner, &mut line).await?;
    let rows = match delivered {
        true => line.ask(KEPT_PAGE, &[(&after, Type::INT8), (&most, Type::INT8)]).await?,
        false => {
            let values = [
                (&given as _, Type::INT8),
                (&after as _, Type::INT8),
                (&most as _, Type::INT8),
                (&span(HOLD) as _, Type::INT8),
                (&MOVER as _, Type::TEXT),
            ];
            line.ask(&HOLD_PAGE, &values).await?
        }
    };
    let mut page = Page { last: rows.last().map(|row| row.get("id")), ..Page::default() };
    let (mut found, mut left) = (Vec::new(), Vec::new());
    for row in &rows {
        match transfer(inner, &mut line, row).await {
            Ok(one) => found.push((row.get("letter"), one)),
            Err(StorageError::Gone(why)) => {
                page.stuck.push((key_of(row.get("key")), why));
                left.push(Place { item: row.get("id"), fence: row.get("fence") });
            }
            Err(error) => {
                // Nobody was given any of them.
                if !delivered {
                    let of = |row: &Row| Place { item: row.get("id"), fence: row.get("fence") };
                    let all: Vec<Place> = rows.iter().map(of).collect();
                    let _ = give_back(&mut line, &all).await; // what is not said is held in ten minutes
                }
                return Err(error);
            }
        }
    }
    if !delivered {
        give_back(&mut line, &left).await?;
    }
    page.transfers = Transfer::grouped(found);
    Ok(page)
}

async fn transfer(inner: &Inner, line: &mut Line, row: &Row) -> Result<Transfer, StorageError> {
    let (day, item, letter): (i32, i64, i64) = (row.get("day"), row.get("id"), row.get("letter"));
    let words = line.ask(WORDS, &[(&day, Type::INT4), (&item, Type::INT8), (&letter, Type::INT8)]).await?;
    let words = words.first().ok_or_else(|| written::damaged("it has no words"))?;
    let (Some(activity), Some(first)) = (words.get(0), words.get::<_, Option<Vec<u8>>>(3)) else {
        return Err(written::damaged("its message is not there"));
    };
    let (cuts, text): (Option<String>, Option<String>) = (words.get(1), words.get(2));
    let raw = payload::read(line, (day, letter), first, &inner.settings.spool).await?;
    let attempts: i32 = row.get("attempts");
    let mut past = Past {
        accepted_at: row.get("accepted_at"),
        due: row.get("due"),
        attempts: attempts.unsigned_abs(),
        is_held: row.get("is_held"),
        held_at: row.get("held_at"),
        told: row.get("told"),
        aged: row.get("aged"),
        replay: row.get("replay"),
        reason: row.get("reason"),
        note: row.get("note"),
        delivered_at: row.get("delivered_at"),
    };
    if past.reason.as_deref() == Some(CUT_OFF) {
        // It waited, until a move was cut off. If it was retried since, it waits again.
        past = Past { is_held: false, held_at: None, told: false, aged: false, reason: None, ..past };
    }
    let place = Place { item, fence: row.get("fence") };
    let moved = Moved { place, key: key_of(row.get("key")), tenant: row.get("tenant"), activity, past };
    Ok(Transfer { rows: vec![moved], cuts: cuts.unwrap_or_else(|| "[]".to_owned()), text, raw })
}

/// Those that a move has that was cut off; `$4` at most.
static CUT: LazyLock<String> = LazyLock::new(|| {
    holding(
        "SELECT id FROM activity_milter.item
         WHERE state = 0 AND node = $2 AND until <= (SELECT now FROM t) ORDER BY id LIMIT $4 FOR UPDATE SKIP LOCKED",
    )
});

/// Holds what a move had that was cut off, once its time is over: it may be in the other queue. `whole`: also where nothing says
/// that there was one.
pub(super) async fn hold_cut_off(
    inner: &Inner,
    whole: bool,
    held: &mut Vec<NewlyHeld>,
) -> Result<(), StorageError> {
    let mut line = inner.lines.lend(LONG_TIME).await?;
    let was_cut_off = leaving::was_cut_off(inner, &mut line).await?;
    if !was_cut_off && !whole {
        return Ok(());
    }
    let most = i64::try_from(PAGE).unwrap_or(i64::MAX);
    loop {
        let values = [
            (&inner.when.given() as _, Type::INT8),
            (&MOVER as _, Type::TEXT),
            (&CUT_OFF as _, Type::TEXT),
            (&most as _, Type::INT8),
        ];
        let rows = line.tell_for_good(&CUT, &values).await?;
        if rows.is_empty() {
            break;
        }
        inner.held.notify_one();
        held.extend(rows.iter().map(newly_held));
    }
    // A person has those already.
    let had = "UPDATE activity_milter.item SET until = NULL WHERE state = 1 AND node = $2 AND until <= activity_milter.at($1)";
    line.ask(had, &[(&inner.when.given(), Type::INT8), (&MOVER, Type::TEXT)]).await?;
    let left = "SELECT 1 FROM activity_milter.item WHERE node = $1 AND until IS NOT NULL LIMIT 1";
    if was_cut_off && line.ask(left, &[(&MOVER, Type::TEXT)]).await?.is_empty() {
        leaving::is_over(inner, &mut line).await?;
    }
    Ok(())
}

/// They stay.
pub(super) async fn keep(inner: &Inner, places: &[Place]) -> Result<(), StorageError> {
    give_back(&mut inner.lines.lend(LONG_TIME).await?, places).await
}

/// What cannot be moved is as it was.
async fn give_back(line: &mut Line, places: &[Place]) -> Result<(), StorageError> {
    if places.is_empty() {
        return Ok(());
    }
    let (items, fences) = columns(places);
    line.ask(
        "UPDATE activity_milter.item SET until = NULL FROM unnest($1::int8[], $2::int8[]) AS mine (id, fence)
         WHERE item.id = mine.id AND item.fence = mine.fence",
        &[(&items, Type::INT8_ARRAY), (&fences, Type::INT8_ARRAY)],
    )
    .await?;
    Ok(())
}

fn columns(places: &[Place]) -> (Vec<i64>, Vec<i64>) {
    places.iter().map(|place| (place.item, place.fence)).unzip()
}

/// They are in another queue, with their keys: whoever has them by a later lease keeps them.
const LET_GO: &str = "
    WITH gone AS (
        DELETE FROM activity_milter.item USING unnest($1::int8[], $2::int8[]) AS mine (id, fence)
        WHERE item.id = mine.id AND item.fence = mine.fence AND mine.fence > 0
        RETURNING item.id, item.tenant, item.state, item.aged, item.key),
    kept AS (
        DELETE FROM activity_milter.kept USING unnest($1::int8[], $2::int8[]) AS mine (id, fence)
        WHERE kept.id = mine.id AND mine.fence = 0 RETURNING kept.id, kept.key),
    keys AS (
        DELETE FROM activity_milter.key USING (SELECT id, key FROM gone UNION ALL SELECT id, key FROM kept) AS mine
        WHERE key.key = mine.key AND key.item = mine.id),
    counted AS (
        INSERT INTO activity_milter.delta (tenant, waiting, held, aged)
        SELECT tenant, -count(*) FILTER (WHERE state = 0), -count(*) FILTER (WHERE state = 1 AND NOT aged),
               -count(*) FILTER (WHERE state = 1 AND aged)
        FROM gone GROUP BY tenant)
    SELECT id FROM gone UNION ALL SELECT id FROM kept";

/// They are in another queue.
pub(super) async fn let_go(inner: &Inner, places: &[Place]) -> Result<usize, StorageError> {
    let (items, fences) = columns(places);
    let mut line = inner.lines.lend(LONG_TIME).await?;
    line.begin().await?;
    leaving::has_left(inner, &mut line).await?;
    let rows = line.ask(LET_GO, &[(&items, Type::INT8_ARRAY), (&fences, Type::INT8_ARRAY)]).await?;
    line.commit_for_good().await?;
    Ok(rows.len())
}

/// Takes transfers in, several in one statement.
pub(super) async fn take_in(inner: &Inner, transfers: Vec<Transfer>) -> Result<Vec<Put>, StorageError> {
    inner.note_leaps().await?;
    // A service counts by itself.
    if inner.node.is_none() {
        inner.count().await?;
    }
    let mut puts = Vec::new();
    let mut some: Vec<Mail> = Vec::new();
    for transfer in transfers {
        let mail = mail(transfer)?;
        if !some.is_empty() && (mail.is_long() || !put::fits(&some, &mail)) {
            puts.extend(store(inner, &mut some).await?);
        }
        let is_long = mail.is_long();
        some.push(mail);
        if is_long {
            puts.extend(store(inner, &mut some).await?);
        }
    }
    puts.extend(store(inner, &mut some).await?);
    Ok(puts)
}

/// What is stored of a transfer.
fn mail(transfer: Transfer) -> Result<Mail, StorageError> {
    let Transfer { rows, cuts, text, raw } = transfer;
    let held = if matches!(raw, Raw::Memory(_)) { raw.len() } else { 0 };
    let mut columns = Columns::default();
    let mut pasts = Vec::with_capacity(rows.len());
    for Moved { key, tenant, activity, past, .. } in rows {
        // For lists only: what is sent is the text as it is.
        let of_row: Activity = serde_json::from_str(&activity).map_err(written::damaged)?;
        let brief = payload::brief(&of_row)?;
        columns.push(&key, tenant, of_row.tenant.prefix, brief, activity, held);
        pasts.push(past);
    }
    Ok(Mail { columns, covered: Vec::new(), cuts, text, raw, pasts })
}

fn numbers_of(past: &Past) -> tally::Numbers {
    let one = |is: bool| i64::from(is);
    let Past { is_held, aged, .. } = *past;
    tally::Numbers { waiting: one(!is_held), held: one(is_held && !aged), aged: one(is_held && aged) }
}

async fn store(inner: &Inner, mails: &mut Vec<Mail>) -> Result<Vec<Put>, StorageError> {
    let mails = std::mem::take(mails);
    let all: Vec<&Mail> = mails.iter().collect();
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let _room = put::room_for(inner, &all).await?;
    let fresh = put::store_on_a_day(inner, &all).await?;
    let mut puts = Vec::new();
    for (mail, fresh) in all.iter().zip(fresh) {
        let rows = mail.pasts.iter().zip(&mail.columns.tenants).zip(&fresh);
        inner.tally.commit(rows.filter(|(_, fresh)| **fresh).filter_map(|((past, tenant), _)| {
            let numbers = past.delivered_at.is_none().then(|| numbers_of(past))?;
            Some((tenant.clone(), numbers))
        }));
        let mended = mend::mend(inner, mail, &fresh).await?;
        puts.extend(fresh.iter().zip(mended).map(|both| match both {
            (true, _) => Put::New,
            (_, true) => Put::Mended,
            _ => Put::Known,
        }));
    }
    inner.ring();
    inner.tell_of_command().await;
    Ok(puts)
}

/// Keys that are remembered and have no row, behind `after`.
pub(super) async fn memory(
    inner: &Inner,
    after: Option<Key>,
    limit: usize,
) -> Result<Vec<Key>, StorageError> {
    let after = after.map(|key| key.bytes().to_vec());
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut line = inner.lines.lend(LONG_TIME).await?;
    leaving::leave(inner, &mut line).await?;
    let rows = line
        .ask(
            "SELECT key FROM activity_milter.key AS known WHERE ($1::bytea IS NULL OR key > $1)
                 AND NOT EXISTS (SELECT FROM activity_milter.item WHERE item.id = known.item)
                 AND NOT EXISTS (SELECT FROM activity_milter.kept WHERE kept.id = known.item)
             ORDER BY key LIMIT $2",
            &[(&after, Type::BYTEA), (&limit, Type::INT8)],
        )
        .await?;
    Ok(rows.iter().map(|row| key_of(row.get(0))).collect())
}

fn bytes_of(keys: &[Key]) -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = keys.iter().map(|key| key.bytes().to_vec()).collect();
    keys.sort();
    keys.dedup();
    keys
}

/// Remembers keys.
pub(super) async fn remember(inner: &Inner, keys: &[Key]) -> Result<(), StorageError> {
    let mut line = inner.lines.lend(LONG_TIME).await?;
    line.begin().await?;
    leaving::may_take_in(inner, &mut line).await?;
    line.ask(
        "INSERT INTO activity_milter.key AS known (key, item, at)
             SELECT key, 0, activity_milter.at($1) FROM unnest($2::bytea[]) AS keys (key) ORDER BY key
             ON CONFLICT (key) DO UPDATE SET at = greatest(known.at, excluded.at)",
        &[(&inner.when.given(), Type::INT8), (&bytes_of(keys), Type::BYTEA_ARRAY)],
    )
    .await?;
    Ok(line.commit_for_good().await?)
}

/// Forgets keys that have no row.
pub(super) async fn forget(inner: &Inner, keys: &[Key]) -> Result<(), StorageError> {
    let mut line = inner.lines.lend(LONG_TIME).await?;
    line.begin().await?;
    leaving::has_left(inner, &mut line).await?;
    line.ask(
        "DELETE FROM activity_milter.key AS known WHERE key = ANY ($1::bytea[])
                 AND NOT EXISTS (SELECT FROM activity_milter.item WHERE item.id = known.item)
                 AND NOT EXISTS (SELECT FROM activity_milter.kept WHERE kept.id = known.item)",
        &[(&bytes_of(keys), Type::BYTEA_ARRAY)],
    )
    .await?;
    Ok(line.commit_for_good().await?)
}
