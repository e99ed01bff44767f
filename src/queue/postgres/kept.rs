//! Activities that are kept after their delivery, and how they go.
//!
//! In: items that were delivered. Out: the same items, waiting once more; or nothing, when their time or their room is over.
//! Promise: a row is an item or kept, never both and never neither: it is moved in one commit, with its number, and its
//! message stays where it is. Kept ones never cost a message its place: they count nowhere, and go, the oldest first,
//! where the queue would be full with them.
//! Fails: [`StorageError`]; slices before the one that failed are done.

use super::{Inner, LONG_TIME, line::Line, look::key_of};
use crate::observe::events;
use crate::queue::{
    Kept, Replay, Replayed, StorageError,
    watch::{millis, span, time},
};
use std::collections::{HashMap, HashSet};
use tokio_postgres::types::Type;

/// Rows of one slice.
const AT_ONCE: i64 = 500;

/// At the start: since when all that was delivered is kept. Who keeps from now on has nothing of before, and who keeps nothing
/// says so for himself alone while another node does.
pub(super) async fn begin(line: &mut Line, keeps: bool, given: Option<i64>) -> Result<(), StorageError> {
    line.ask(
        "UPDATE activity_milter.meta
         SET kept_since = CASE WHEN NOT $1 THEN 0 WHEN kept_since = 0 THEN activity_milter.at($2) ELSE kept_since END
         WHERE (kept_since > 0) <> $1 AND ($1 OR NOT EXISTS (SELECT FROM activity_milter.node WHERE keeps))",
        &[(&keeps, Type::BOOL), (&given, Type::INT8)],
    )
    .await?;
    Ok(())
}

/// How many there are, and since when.
pub(super) async fn look(inner: &Inner) -> Result<Kept, StorageError> {
    let mut line = inner.lookers.lend(LONG_TIME).await?;
    let sql = "SELECT (SELECT count(*) FROM activity_milter.kept), kept_since FROM activity_milter.meta";
    let rows = line.ask(sql, &[]).await?;
    let Some(row) = rows.first() else { return Ok(Kept::default()) };
    let (activities, since): (i64, i64) = (row.get(0), row.get(1));
    Ok(Kept { activities: activities.unsigned_abs(), since: (since > 0).then(|| time(since)) })
}

/// Drops a slice of the oldest: those delivered before `before`, if that is given; how many.
async fn drop_oldest(inner: &Inner, before: Option<i64>, most: i64) -> Result<u64, StorageError> {
    let rows = inner
        .lines
        .lend(LONG_TIME)
        .await?
        .ask(
            "WITH gone AS (
                 DELETE FROM activity_milter.kept WHERE id IN (
                     SELECT id FROM activity_milter.kept WHERE $1::int8 IS NULL OR delivered_at < $1
                     ORDER BY delivered_at, id LIMIT $2 FOR UPDATE SKIP LOCKED)
                 RETURNING delivered_at),
             newest AS (SELECT max(delivered_at) + 1 AS lacks FROM gone),
             noted AS (UPDATE activity_milter.meta SET kept_since = lacks FROM newest WHERE kept_since BETWEEN 1 AND lacks - 1)
             SELECT count(*) FROM gone",
            &[(&before, Type::INT8), (&most.min(AT_ONCE), Type::INT8)],
        )
        .await?;
    Ok(rows.first().map_or(0, |row| row.get::<_, i64>(0).unsigned_abs()))
}

/// Whether another node keeps what was delivered: it is the queue of all.
async fn others_keep(inner: &Inner) -> Result<bool, StorageError> {
    let mut line = inner.lookers.lend(LONG_TIME).await?;
    let rows = line.ask("SELECT EXISTS (SELECT FROM activity_milter.node WHERE keeps)", &[]).await?;
    Ok(rows.first().is_some_and(|row| row.get(0)))
}

/// Drops those whose time is over, and the oldest of those for which there is no room; how many went before their time.
pub(super) async fn tidy(inner: &Inner) -> Result<u64, StorageError> {
    let keep = inner.settings.keep_delivered;
    let keeps = !keep.is_zero();
    if if keeps { inner.when.watch.is_trusted() } else { !others_keep(inner).await? } {
        let over = inner.when.watch.now().saturating_sub(span(keep));
        let mut dropped = 0;
        while let some @ 1.. = drop_oldest(inner, keeps.then_some(over), AT_ONCE).await? {
            dropped += some;
        }
        if !keeps && dropped > 0 {
            events::kept_off(dropped);
        }
    }
    let mut early = 0;
    loop {
        inner.count().await?;
        let many = look(inner).await?.activities.saturating_sub(inner.tally.spare());
        let most = i64::try_from(many).unwrap_or(AT_ONCE);
        let dropped = if many > 0 { drop_oldest(inner, None, most).await? } else { 0 };
        early += dropped;
        if dropped == 0 {
            return Ok(early);
        }
    }
}

/// Mends times that lie ahead of now: the clock was wrong when they were delivered.
pub(super) async fn mend(line: &mut Line, given: Option<i64>) -> Result<(), StorageError> {
    let now = [(&given as _, Type::INT8)];
    line.ask(
        "UPDATE activity_milter.meta SET kept_since = activity_milter.at($1) WHERE kept_since > activity_milter.at($1)",
        &now,
    )
    .await?;
    line.ask(
        "UPDATE activity_milter.kept SET delivered_at = activity_milter.at($1) WHERE delivered_at > activity_milter.at($1)",
        &now,
    )
    .await?;
    Ok(())
}

/// Rows behind a place, in the order of their delivery; and whether the same e-mail is in the queue already.
const PAGE: &str = "
    SELECT kept.delivered_at, kept.id, kept.key, kept.tenant,
        EXISTS (SELECT FROM activity_milter.key JOIN activity_milter.item ON item.id = key.item
                WHERE key.key = kept.key AND key.item <> kept.id)
    FROM activity_milter.kept
    WHERE delivered_at >= $1 AND delivered_at < $2 AND (delivered_at, id) > ($3, $4)
        AND ($5::text IS NULL OR tenant = $5
             OR tenant IN (SELECT of.id FROM activity_milter.number_of AS of WHERE of.prefix = lower($5)))
    ORDER BY delivered_at, id LIMIT $6";

/// As if they had just been accepted. A key is its activity's from here on, whatever was remembered of it.
const BACK: &str = "
    WITH t AS MATERIALIZED (SELECT activity_milter.at($1) AS now),
    back AS (DELETE FROM activity_milter.kept WHERE id = ANY ($2::int8[]) RETURNING *),
    items AS (
        INSERT INTO activity_milter.item (id, key, tenant, letter, day, due, accepted_at, size, replay)
        SELECT id, key, tenant, letter, day, now, now, size, true FROM back, t),
    keys AS (
        INSERT INTO activity_milter.key AS known (key, item, at) SELECT key, id, now FROM back, t ORDER BY key
        ON CONFLICT (key) DO UPDATE SET item = excluded.item, at = excluded.at),
    counted AS (INSERT INTO activity_milter.delta (tenant, waiting) SELECT tenant, count(*) FROM back GROUP BY tenant)
    SELECT key, tenant FROM back";

/// Has delivered activities wait once more.
pub(super) async fn redeliver(inner: &Inner, replay: Replay) -> Result<Replayed, StorageError> {
    // What is delivered once more while we look is kept anew, behind this time.
    let now = inner.now().await?;
    let until = replay.until.map_or(now, |until| millis(until).min(now));
    let since = millis(replay.since);
    let (mut all, mut place) = (Replayed::default(), (i64::MIN, i64::MIN));
    loop {
        if !replay.dry {
            inner.has_disk()?;
            inner.count().await?;
        }
        let mut line = inner.lines.lend(LONG_TIME).await?;
        let page = line
            .ask(
                PAGE,
                &[
                    (&since, Type::INT8),
                    (&until, Type::INT8),
                    (&place.0, Type::INT8),
                    (&place.1, Type::INT8),
                    (&replay.tenant, Type::TEXT),
                    (&AT_ONCE, Type::INT8),
                ],
            )
            .await?;
        let Some(last) = page.last() else {
            if !replay.dry {
                // What waits already may do so here alone.
                line.confirm().await?;
            }
            return Ok(all);
        };
        place = (last.get(0), last.get(1));
        if replay.dry {
            all.again += page.len();
            continue;
        }
        let (mut of_tenants, mut those) = (HashMap::<String, u64>::new(), Vec::<i64>::new());
        let mut keys = HashSet::new();
        for row in &page {
            let (id, tenant, is_known): (i64, String, bool) = (row.get(1), row.get(3), row.get(4));
            let key: &[u8] = row.get(2);
            if is_known || keys.contains(key) {
                all.known += 1;
                continue;
            }
            let more = of_tenants.entry(tenant.clone()).or_default();
            if inner.tally.takes_back(&tenant, *more, those.len() as u64) {
                *more += 1;
                keys.insert(key.to_vec());
                those.push(id);
            } else {
                all.left += 1;
            }
        }
        let given = inner.when.given();
        let back = line.ask(BACK, &[(&given, Type::INT8), (&those, Type::INT8_ARRAY)]).await?;
        all.again += back.len();
        for row in &back {
            let (key, tenant): (&[u8], &str) = (row.get(0), row.get(1));
            events::by_hand("redelivered", key_of(key).as_str(), tenant, None);
        }
        if !back.is_empty() {
            inner.ring();
        }
    }
}
