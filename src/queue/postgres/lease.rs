//! Leases: whose turn it is, what they stand for, and how they end.
//!
//! In: what a courier asks for, and how his attempts ended. Out: tickets, one of each tenant by turns.
//! Promise: one statement takes them, and whoever else takes some at the same time steps over what is taken
//! (`SKIP LOCKED`). Each lease has a number greater than all before, and what a former one says changes nothing. Nothing
//! is locked, and no transaction open, while an attempt runs.
//! Fails: [`StorageError`]; nothing is leased then, or what is comes back soon ([`disown`]).
//!
//! The essay: while little is due, an index by time says all of it, and whose it is. Else the statement walks over tenants, one
//! step each in the index by tenant (`ring`), until it has found as many as are asked for. Of those whose turn it is
//! (`come`), rows are locked and leased. A lease changes no index, so taking and giving back costs the row alone; what is leased
//! still stands in the index and is stepped over, which is cheap, for only so much is leased as attempts are under way. Where
//! a lease's time is over, nothing need be given back: it is as if there were none.
//!
//! What is delivered stays in the indexes until vacuum takes it away, and vacuum may not while somebody reads for long, on a
//! standby too (`hot_standby_feedback`): after a quarter of an hour a walk from the beginning steps over all that was delivered
//! meanwhile. So a walk begins where the last one from the beginning found the first that waits (`floor`), and walks from the
//! beginning take a share of the time at most. Whatever begins to wait is due at that moment, so it lies behind; what was
//! committed long after it was due is found by the next walk from the beginning. For the same reason rows are named (`id = ANY`)
//! wherever they are changed: the server believes a table of so few rows to be small, and would read all of its index.

use super::{Inner, LOOK_TIME, line::Line};
use crate::queue::{Ask, End, LEASE, Leased, Probe, StorageError, Ticket, watch::span};
use std::{collections::HashSet, sync::PoisonError, time::Duration};
use tokio::time::Instant;
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

/// Rows that are looked at for one that was never attempted.
const FRESH_LOOKS: i64 = 1000;

/// At most so much of the time goes into walks from the beginning.
const WALK_SHARE: u32 = 20;

/// Between two of them at most.
const LONGEST_WALK_PAUSE: Duration = Duration::from_secs(60);

/// What was written so long ago is committed, as a rule.
const COMMITTED: i64 = 5000;

/// Tenants that have something due that nobody has, in their order, behind `$2` first: `$4` alone if it is given, without
/// those of `$3`, none that was due before `$8`; at most `HEADS`. While little is due (`few`) it says itself whose it is.
const RING: &str = "
    t AS MATERIALIZED (SELECT activity_milter.at($1) AS now),
    few AS MATERIALIZED (
        SELECT tenant, due, until FROM activity_milter.item
        WHERE $4::text IS NULL AND state = 0 AND due >= $8 AND due <= (SELECT now FROM t) ORDER BY due LIMIT 1000),
    ring AS (
        SELECT $2::text COLLATE \"C\" AS tenant, -1 AS lap WHERE $4 IS NULL AND (SELECT count(*) FROM few) = 1000
        UNION ALL
        SELECT coalesce(behind.tenant, front.tenant), CASE WHEN behind.tenant IS NULL THEN 1 ELSE greatest(lap, 0) END
        FROM ring
        LEFT JOIN LATERAL (
            SELECT next.tenant FROM activity_milter.item AS next
            WHERE next.state = 0 AND next.due >= $8 AND next.tenant > ring.tenant AND (lap < 1 OR next.tenant <= $2)
            ORDER BY next.tenant LIMIT 1) AS behind ON true
        LEFT JOIN LATERAL (
            SELECT next.tenant FROM activity_milter.item AS next
            WHERE next.state = 0 AND next.due >= $8 AND lap < 1 AND behind.tenant IS NULL AND next.tenant <= $2
            ORDER BY next.tenant LIMIT 1) AS front ON true
        WHERE coalesce(behind.tenant, front.tenant) IS NOT NULL),
    heads AS MATERIALIZED (
        SELECT tenant, row_number() OVER (ORDER BY tenant <= $2 COLLATE \"C\", tenant) AS turn FROM (
            SELECT DISTINCT tenant FROM few, t
            WHERE (SELECT count(*) FROM few) < 1000 AND (until IS NULL OR until <= now) AND tenant <> ALL ($3::text[])
            UNION ALL
            SELECT $4 COLLATE \"C\" WHERE $4 IS NOT NULL AND $4 <> ALL ($3)
            UNION ALL
            (SELECT ring.tenant FROM ring CROSS JOIN LATERAL (
                 SELECT FROM activity_milter.item
                 WHERE state = 0 AND tenant = ring.tenant AND due >= $8 AND due <= (SELECT now FROM t)
                     AND (until IS NULL OR until <= (SELECT now FROM t))
                 ORDER BY due, id LIMIT 1) AS first
             WHERE lap >= 0 AND ring.tenant <> ALL ($3) LIMIT HEADS)) AS those)";

/// The statement that begins with the ring.
fn with_ring(rest: &str, heads: &str) -> String {
    format!("WITH RECURSIVE {}, {rest}", RING.replace("HEADS", heads))
}

/// One tenant more than there is room for says that there is more.
const HEADS: &str = "$5 + 1";

/// Tenants that are looked at for one that was never attempted.
const FRESH_HEADS: &str = "500";

/// What is due, by turns: `$5` at most, leased by `$6` for `$7` milliseconds.
const CHOOSE: &str = "
    come AS MATERIALIZED (SELECT tenant, turn FROM heads ORDER BY turn LIMIT $5),
    each AS MATERIALIZED (SELECT CASE WHEN count(*) >= $5 THEN 1 ELSE $5 END AS rows FROM come),
    taken AS MATERIALIZED (
        SELECT mine.id, come.turn, row_number() OVER (PARTITION BY come.turn ORDER BY mine.due, mine.id) AS round
        FROM come CROSS JOIN LATERAL (
            SELECT id, due FROM activity_milter.item
            WHERE state = 0 AND tenant = come.tenant AND due >= $8 AND due <= (SELECT now FROM t)
                AND (until IS NULL OR until <= (SELECT now FROM t))
            ORDER BY due, id LIMIT (SELECT rows FROM each) FOR UPDATE SKIP LOCKED) AS mine),
    chosen AS MATERIALIZED (
        SELECT id, nextval('activity_milter.fence') AS number
        FROM (SELECT id FROM taken ORDER BY round, turn LIMIT $5) AS in_order),
    leased AS (
        UPDATE activity_milter.item SET until = now + $7, fence = number, node = $6
        FROM chosen, t WHERE item.id = ANY (ARRAY(SELECT id FROM chosen)) AND item.id = chosen.id
        RETURNING item.id, fence, tenant, size),
    next AS (
        SELECT CASE
            WHEN EXISTS (SELECT FROM heads WHERE turn > $5) OR EXISTS (
                SELECT FROM come CROSS JOIN LATERAL (
                    SELECT FROM activity_milter.item
                    WHERE state = 0 AND tenant = come.tenant AND due >= $8 AND due <= (SELECT now FROM t)
                        AND (until IS NULL OR until <= (SELECT now FROM t)) AND id NOT IN (SELECT id FROM chosen)
                    ORDER BY due, id LIMIT 1) AS rest) THEN t.now
            WHEN $4 IS NOT NULL THEN (
                SELECT due FROM activity_milter.item
                WHERE state = 0 AND tenant = $4 AND due > (SELECT now FROM t)
                    AND (until IS NULL OR until <= (SELECT now FROM t)) ORDER BY due, id LIMIT 1)
            ELSE (
                SELECT coalesce(
                    min(due) FILTER (WHERE tenant <> ALL ($3) AND (until IS NULL OR until <= t.now)),
                    max(due) FILTER (WHERE place = 1000))
                FROM (SELECT tenant, due, until, row_number() OVER (ORDER BY due) AS place FROM (
                          SELECT tenant, due, until FROM activity_milter.item
                          WHERE state = 0 AND due > (SELECT now FROM t) ORDER BY due LIMIT 1000) AS next_ones) AS later)
            END AS due
        FROM t)
    SELECT id, fence, tenant, size, next.due, now, least((SELECT min(due) FROM few), now - $9)
    FROM next CROSS JOIN t LEFT JOIN leased ON true ORDER BY fence";

/// The first of `$5` that waits, due or not, and that nobody has.
const TRIED: &str = "
    WITH t AS MATERIALIZED (SELECT activity_milter.at($1) AS now),
    chosen AS MATERIALIZED (
        SELECT item.id FROM unnest($5::int8[]) WITH ORDINALITY AS tried (id, ord)
        JOIN activity_milter.item ON item.id = tried.id CROSS JOIN t
        WHERE state = 0 AND (until IS NULL OR until <= now) AND ($4::text IS NULL OR tenant = $4) AND tenant <> ALL ($3::text[])
            AND $2::text IS NOT NULL AND $8::int8 IS NOT NULL
        ORDER BY ord LIMIT 1 FOR UPDATE OF item SKIP LOCKED)
    UPDATE activity_milter.item SET until = now + $7, fence = nextval('activity_milter.fence'), node = $6
    FROM chosen, t WHERE item.id = ANY (ARRAY(SELECT id FROM chosen)) AND item.id = chosen.id
    RETURNING item.id, fence, tenant, size, now, now";

/// The newest of the first tenant that was never attempted, is due, and is none of `$5`.
const FRESH: &str = "
    chosen AS MATERIALIZED (
        SELECT item.id
        FROM (SELECT newest.id FROM heads CROSS JOIN t CROSS JOIN LATERAL (
                  SELECT id, due, attempts, until FROM activity_milter.item
                  WHERE state = 0 AND tenant = heads.tenant AND due >= $8 AND due <= t.now
                  ORDER BY due DESC, id DESC LIMIT $9) AS newest
              WHERE newest.attempts = 0 AND (newest.until IS NULL OR newest.until <= t.now) AND newest.id <> ALL ($5::int8[])
              ORDER BY turn, newest.due DESC, newest.id DESC LIMIT 1) AS first
        JOIN activity_milter.item ON item.id = first.id FOR UPDATE OF item SKIP LOCKED)
    UPDATE activity_milter.item SET until = now + $7, fence = nextval('activity_milter.fence'), node = $6
    FROM chosen, t WHERE item.id = ANY (ARRAY(SELECT id FROM chosen)) AND item.id = chosen.id
    RETURNING item.id, fence, tenant, size, now, now";

/// Leases what is asked for.
pub(super) async fn lease(inner: &Inner, ask: Ask) -> Result<Leased, StorageError> {
    let node = inner.is_service()?;
    let mut line = inner.lines.lend(LOOK_TIME).await?;
    let _leasing = inner.leasing.read().await;
    let leased = take(inner, node, &mut line, ask).await;
    if leased.is_err() {
        inner.unheard.lock().unwrap_or_else(PoisonError::into_inner).begin();
    }
    leased
}

async fn take(inner: &Inner, node: &str, line: &mut Line, ask: Ask) -> Result<Leased, StorageError> {
    let (given, lasts) = (inner.when.given(), span(LEASE));
    let room = i64::try_from(ask.room).unwrap_or(i64::MAX);
    let floor = inner.floor();
    let shared =
        Shared { given, after: &ask.after, without: &ask.without, only: &ask.only, node, lasts, floor };
    let mut rows = Vec::new();
    if let Some(probe) = &ask.probe {
        let none = Vec::new();
        let (tried, besides) = match probe {
            Probe::Tried(tried) => (Some(tried), &none),
            Probe::Fresh(besides) => (None, besides),
        };
        if let Some(tried) = tried {
            rows = line.ask(TRIED, &shared.values(tried, Type::INT8_ARRAY)).await?;
        }
        if rows.is_empty() {
            let mut values = shared.values(besides, Type::INT8_ARRAY);
            values.push((&FRESH_LOOKS, Type::INT8));
            rows = line.ask(&with_ring(FRESH, FRESH_HEADS), &values).await?;
        }
    }
    if rows.is_empty() {
        let began = Instant::now();
        let mut values = shared.values(&room, Type::INT8);
        values.push((&COMMITTED, Type::INT8));
        rows = line.ask(&with_ring(CHOOSE, HEADS), &values).await?;
        if floor == i64::MIN
            && ask.only.is_none()
            && let Some(row) = rows.first()
        {
            inner.walked(row.get(5), row.get(6), began.elapsed());
        }
    }
    // Nothing is due: what was tried shows how the backend is as well.
    if let Some(Probe::Fresh(tried)) = &ask.probe
        && rows.iter().all(|row| row.get::<_, Option<i64>>(0).is_none())
    {
        let found = line.ask(TRIED, &shared.values(tried, Type::INT8_ARRAY)).await?;
        if !found.is_empty() {
            rows = found;
        }
    }
    Ok(inner.leased(&rows))
}

/// What the statements have in common.
struct Shared<'a> {
    given: Option<i64>,
    after: &'a String,
    without: &'a Vec<String>,
    only: &'a Option<String>,
    node: &'a str,
    lasts: i64,
    floor: i64,
}

impl Shared<'_> {
    fn values<'a>(&'a self, fifth: &'a (dyn ToSql + Sync), is: Type) -> Vec<super::line::Value<'a>> {
        vec![
            (&self.given, Type::INT8),
            (self.after, Type::TEXT),
            (self.without, Type::TEXT_ARRAY),
            (self.only, Type::TEXT),
            (fifth, is),
            (&self.node, Type::TEXT),
            (&self.lasts, Type::INT8),
            (&self.floor, Type::INT8),
        ]
    }
}

/// Nothing that waits was due before.
#[derive(Debug)]
pub(super) struct Floor {
    due: i64,
    /// What time it was there.
    now: i64,
    /// Until then.
    until: Instant,
}

impl Inner {
    /// Where a walk begins.
    fn floor(&self) -> i64 {
        let floor = self.floor.lock().unwrap_or_else(PoisonError::into_inner);
        let holds = |floor: &&Floor| Instant::now() < floor.until && self.when.watch.now() >= floor.now;
        floor.as_ref().filter(holds).map_or(i64::MIN, |floor| floor.due)
    }

    /// A walk from the beginning took so long.
    fn walked(&self, now: i64, due: i64, took: Duration) {
        let until = Instant::now() + (took * WALK_SHARE).min(LONGEST_WALK_PAUSE);
        *self.floor.lock().unwrap_or_else(PoisonError::into_inner) = Some(Floor { due, now, until });
    }

    fn leased(&self, rows: &[Row]) -> Leased {
        let Some(first) = rows.first() else {
            return Leased { alone: self.tally.is_alone(), ..Leased::default() };
        };
        let (due, now): (Option<i64>, i64) = (first.get(4), first.get(5));
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let tickets = rows.iter().filter_map(|row| {
            let (item, size): (Option<i64>, Option<i64>) = (row.get(0), row.get(3));
            let (item, fence) = (item?, row.get(1));
            given.insert(item, (fence, now.saturating_add(span(LEASE))));
            let tenant: &str = row.get(2);
            let size = size.unwrap_or(0).unsigned_abs();
            Some(Ticket { item, fence, tenant: tenant.into(), size })
        });
        let tickets = tickets.collect();
        let wait = |due: i64| Duration::from_millis(u64::try_from(due.saturating_sub(now)).unwrap_or(0));
        Leased { tickets, next_due: due.map(wait), alone: self.tally.is_alone() }
    }
}

/// Stores the backend's progress, and prolongs the lease.
pub(super) async fn note(inner: &Inner, ticket: &Ticket, note: &str) -> Result<bool, StorageError> {
    let mut line = inner.lines.lend(LOOK_TIME).await?;
    let rows = line
        .ask(
            "UPDATE activity_milter.item SET note = $4, until = activity_milter.at($1) + $5
             WHERE id = $2 AND fence = $3 AND until IS NOT NULL RETURNING until",
            &[
                (&inner.when.given(), Type::INT8),
                (&ticket.item, Type::INT8),
                (&ticket.fence, Type::INT8),
                (&note, Type::TEXT),
                (&span(LEASE), Type::INT8),
            ],
        )
        .await?;
    if let Some(row) = rows.first() {
        let mut given = inner.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.insert(ticket.item, (ticket.fence, row.get(0)));
    }
    Ok(!rows.is_empty())
}

/// The backend has them: the rows go, or are kept (`$4`). A key that was written long ago is written again (`$5` is how
/// long a key is remembered): its memory begins now.
const TAKEN: &str = "
    WITH t AS MATERIALIZED (SELECT activity_milter.at($1) AS now),
    ended AS (SELECT * FROM unnest($2::int8[], $3::int8[]) AS ended (id, fence)),
    gone AS (
        DELETE FROM activity_milter.item USING ended
        WHERE item.id = ANY ($2) AND item.id = ended.id AND item.fence = ended.fence AND until IS NOT NULL RETURNING item.*),
    kept AS (
        INSERT INTO activity_milter.kept (id, accepted_at, delivered_at, letter, size, day, attempts, key, tenant)
        SELECT id, accepted_at, now, letter, size, day, attempts, key, tenant FROM gone, t WHERE $4),
    keys AS (
        UPDATE activity_milter.key SET at = now FROM gone, t WHERE key.key = gone.key AND key.at < now - $5),
    counted AS (
        INSERT INTO activity_milter.delta (tenant, waiting) SELECT tenant, -count(*) FROM gone GROUP BY tenant)
    SELECT id, fence FROM gone";

/// All other ends: `$4` is what is added to the attempts, `$5` when it is due again if that changes, `$7` whether it is held.
const OTHERS: &str = "
    WITH t AS MATERIALIZED (SELECT activity_milter.at($1) AS now),
    ended AS (
        SELECT * FROM unnest($2::int8[], $3::int8[], $4::int4[], $5::int8[], $6::text[], $7::bool[])
            AS ended (id, fence, more, after, why, holds)),
    changed AS (
        UPDATE activity_milter.item
        SET until = NULL, attempts = attempts + more, due = coalesce(now + after, due), reason = coalesce(why, reason),
            state = CASE WHEN holds THEN 1 ELSE state END, held_at = CASE WHEN holds THEN now ELSE held_at END
        FROM ended, t
        WHERE item.id = ANY ($2) AND item.id = ended.id AND item.fence = ended.fence AND until IS NOT NULL
        RETURNING item.id, item.fence, tenant, holds),
    counted AS (
        INSERT INTO activity_milter.delta (tenant, waiting, held)
        SELECT tenant, -count(*), count(*) FROM changed WHERE holds GROUP BY tenant)
    SELECT id, fence FROM changed";

/// Ends leases; what fails is owed.
pub(super) async fn finish(inner: &Inner, ends: Vec<(Ticket, End)>) -> Result<Vec<bool>, StorageError> {
    inner.is_service()?;
    let all = ends.clone();
    let done = inner.ends.bring(all, |calls, one| fits(calls, one), |calls| all_or_each(inner, calls)).await;
    {
        let mut owed = inner.owed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut given = inner.given.lock().unwrap_or_else(PoisonError::into_inner);
        for (ticket, end) in &ends {
            match &done {
                Ok(_) => {
                    // A later lease of the same item stays.
                    owed.retain(|item, (owed, _)| *item != ticket.item || owed.fence != ticket.fence);
                    given.retain(|item, (fence, _)| *item != ticket.item || *fence != ticket.fence);
                }
                Err(_) => drop(owed.insert(ticket.item, (ticket.clone(), end.clone()))),
            }
        }
    }
    let ours = done?;
    if ends.iter().any(|(_, end)| matches!(end, End::Held { .. })) {
        inner.held.notify_one();
    }
    if ends.iter().any(|(_, end)| matches!(end, End::Again { .. } | End::Unused)) {
        inner.ring();
    }
    Ok(ours)
}

/// Ends of one statement.
const MOST_ENDS: usize = 500;

/// An item is ended once in a statement: what else is said of it waits for the next.
fn fits(calls: &[Vec<(Ticket, End)>], one: &[(Ticket, End)]) -> bool {
    let items = || calls.iter().flatten().map(|(ticket, _)| ticket.item);
    items().count() + one.len() <= MOST_ENDS
        && !one.iter().any(|(ticket, _)| items().any(|item| item == ticket.item))
}

/// Writes the ends of several calls in one, or of each for itself where one of them cannot be written.
async fn all_or_each(inner: &Inner, calls: Vec<Vec<(Ticket, End)>>) -> Vec<Result<Vec<bool>, StorageError>> {
    let all: Vec<(Ticket, End)> = calls.iter().flatten().cloned().collect();
    match write(inner, &all).await {
        Ok(ours) => {
            let mut ours = ours.into_iter();
            calls.iter().map(|call| Ok(ours.by_ref().take(call.len()).collect())).collect()
        }
        Err(StorageError::Other(_)) if calls.len() > 1 => {
            let mut each = Vec::with_capacity(calls.len());
            for call in &calls {
                each.push(write(inner, call).await);
            }
            each
        }
        Err(error) => calls.iter().map(|_| Err(error.clone())).collect(),
    }
}

async fn write(inner: &Inner, ends: &[(Ticket, End)]) -> Result<Vec<bool>, StorageError> {
    // A ticket ends once.
    let mut seen = HashSet::new();
    let first: Vec<bool> = ends.iter().map(|(ticket, _)| seen.insert((ticket.item, ticket.fence))).collect();
    let firsts = || ends.iter().zip(&first).filter(|(_, first)| **first).map(|(end, _)| end);
    let taken: Vec<_> = firsts().filter(|(_, end)| *end == End::Taken).collect();
    let others: Vec<_> = firsts().filter(|(_, end)| *end != End::Taken).collect();
    // By both: an earlier lease of the same item may be among them.
    let mut done: HashSet<(i64, i64)> = HashSet::new();
    if taken.is_empty() && others.is_empty() {
        return Ok(Vec::new());
    }
    let mut line = inner.lines.lend(LOOK_TIME).await?;
    let is_both = !taken.is_empty() && !others.is_empty();
    if is_both {
        line.begin().await?;
    }
    if !taken.is_empty() {
        done.extend(end_taken(inner, &mut line, &taken).await?);
    }
    if !others.is_empty() {
        done.extend(end_others(inner, &mut line, &others).await?);
    }
    if is_both {
        line.commit().await?;
    }
    Ok(ends
        .iter()
        .zip(first)
        .map(|((ticket, _), first)| first && done.contains(&(ticket.item, ticket.fence)))
        .collect())
}

fn places(ends: &[&(Ticket, End)]) -> (Vec<i64>, Vec<i64>) {
    ends.iter().map(|(ticket, _)| (ticket.item, ticket.fence)).unzip()
}

fn ended(rows: &[Row]) -> Vec<(i64, i64)> {
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn end_taken(
    inner: &Inner,
    line: &mut Line,
    ends: &[&(Ticket, End)],
) -> Result<Vec<(i64, i64)>, StorageError> {
    let (items, fences) = places(ends);
    let keeps = !inner.settings.keep_delivered.is_zero();
    let rows = line
        .ask(
            TAKEN,
            &[
                (&inner.when.given(), Type::INT8),
                (&items, Type::INT8_ARRAY),
                (&fences, Type::INT8_ARRAY),
                (&keeps, Type::BOOL),
                (&span(crate::queue::KEY_MEMORY), Type::INT8),
            ],
        )
        .await?;
    Ok(ended(&rows))
}

async fn end_others(
    inner: &Inner,
    line: &mut Line,
    ends: &[&(Ticket, End)],
) -> Result<Vec<(i64, i64)>, StorageError> {
    let (items, fences) = places(ends);
    let (mut more, mut afters, mut whys, mut holds) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (_, end) in ends {
        let (attempts, after, why, held) = match end {
            End::Again { after, counts, reason } => {
                (i32::from(*counts), Some(span(*after)), Some(reason), false)
            }
            End::Held { reason } => (1, None, Some(reason), true),
            End::Unused | End::Taken => (0, None, None, false),
        };
        more.push(attempts);
        afters.push(after);
        whys.push(why.map(|why| super::text(why)));
        holds.push(held);
    }
    let rows = line
        .ask(
            OTHERS,
            &[
                (&inner.when.given(), Type::INT8),
                (&items, Type::INT8_ARRAY),
                (&fences, Type::INT8_ARRAY),
                (&more, Type::INT4_ARRAY),
                (&afters, Type::INT8_ARRAY),
                (&whys, Type::TEXT_ARRAY),
                (&holds, Type::BOOL_ARRAY),
            ],
        )
        .await?;
    Ok(ended(&rows))
}

/// Writes ends that could not be written, each for itself if need be: one of them may never be.
pub(super) async fn pay(inner: &Inner) {
    let owed: Vec<_> = inner.owed.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
    if owed.is_empty() || !matches!(finish(inner, owed.clone()).await, Err(StorageError::Other(_))) {
        return;
    }
    for one in owed {
        if matches!(finish(inner, vec![one]).await, Err(StorageError::Busy(_))) {
            return; // all others would wait as long
        }
    }
}

/// Gives back those of our own leases whose time is over; how many. Whoever leases steps over them as it is, and nobody
/// would be woken.
pub(super) async fn end_leases(inner: &Inner) -> Result<usize, StorageError> {
    let now = inner.when.watch.now();
    let over: Vec<(i64, i64)> = {
        let owed = inner.owed.lock().unwrap_or_else(PoisonError::into_inner);
        let given = inner.given.lock().unwrap_or_else(PoisonError::into_inner);
        let over = given.iter().filter(|(item, (_, until))| *until <= now && !owed.contains_key(*item));
        over.map(|(item, (fence, _))| (*item, *fence)).collect()
    };
    if over.is_empty() {
        return Ok(0);
    }
    let (items, fences): (Vec<i64>, Vec<i64>) = over.iter().copied().unzip();
    let mut line = inner.lines.lend(LOOK_TIME).await?;
    let rows = line
        .ask(
            "UPDATE activity_milter.item SET until = NULL FROM unnest($2::int8[], $3::int8[]) AS over (id, fence)
             WHERE item.id = over.id AND item.fence = over.fence AND until <= activity_milter.at($1) RETURNING item.id",
            &[
                (&inner.when.given(), Type::INT8),
                (&items, Type::INT8_ARRAY),
                (&fences, Type::INT8_ARRAY),
            ],
        )
        .await?;
    let mut given = inner.given.lock().unwrap_or_else(PoisonError::into_inner);
    given.retain(|item, (fence, _)| !over.contains(&(*item, *fence)));
    Ok(rows.len())
}

/// The first pause between two looks for leases that nobody heard of; each further one is four times as long.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// When to look for leases that nobody heard of.
#[derive(Debug, Default)]
pub(super) struct Unheard {
    next: Option<Instant>,
    pause: Duration,
}

impl Unheard {
    /// An answer was lost.
    fn begin(&mut self) {
        *self = Self { next: Some(Instant::now() + FIRST_LOOK), pause: FIRST_LOOK };
    }

    /// Whether it is time; what is on its way at the server comes later, at the latest when a lease would be over.
    fn is_due(&mut self) -> bool {
        if self.next.is_none_or(|next| Instant::now() < next) {
            return false;
        }
        self.pause *= 4;
        self.next = (self.pause < LEASE).then(|| Instant::now() + self.pause);
        true
    }
}

/// Gives back what was leased for us by a statement whose answer we did not hear: the connection broke, or the wait for a
/// standby was cancelled. Nobody would attempt it before the lease is over. How many.
///
/// What we have heard of is among our leases, for meanwhile nobody leases here.
pub(super) async fn disown(inner: &Inner) -> Result<usize, StorageError> {
    if !inner.unheard.lock().unwrap_or_else(PoisonError::into_inner).is_due() {
        return Ok(0);
    }
    let node = inner.is_service()?;
    let disowned = async {
        let mut line = inner.lines.lend(LOOK_TIME).await?;
        let _alone = inner.leasing.write().await;
        let fences: Vec<i64> = {
            let given = inner.given.lock().unwrap_or_else(PoisonError::into_inner);
            given.values().map(|(fence, _)| *fence).collect()
        };
        line.ask(
            "UPDATE activity_milter.item SET until = NULL
             WHERE state = 0 AND until IS NOT NULL AND node = $1 AND fence <> ALL ($2::int8[]) RETURNING id",
            &[(&node, Type::TEXT), (&fences, Type::INT8_ARRAY)],
        )
        .await
    };
    let disowned = disowned.await;
    if disowned.is_err() {
        inner.unheard.lock().unwrap_or_else(PoisonError::into_inner).begin();
    }
    Ok(disowned?.len())
}

/// What a process of before left: its leases are over, for it is gone.
pub(super) async fn give_back(line: &mut Line, node: &str) -> Result<(), StorageError> {
    line.ask(
        "UPDATE activity_milter.item SET until = NULL WHERE state = 0 AND until IS NOT NULL AND node = $1",
        &[(&node, Type::TEXT)],
    )
    .await?;
    Ok(())
}
