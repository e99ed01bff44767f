//! Leases: whose turn it is, what they stand for, and how they end.
//!
//! In: what a courier asks for, and how his attempts ended. Out: tickets, one of each tenant by turns.
//! Promise: one statement takes them, and whoever else takes some at the same time steps over what is taken
//! (`SKIP LOCKED`). Each lease has a number greater than all before, and what a former one says changes nothing. Nothing
//! is locked, and no transaction open, while an attempt runs.
//! Fails: [`StorageError`]; nothing is leased then, or what is comes back soon ([`settle`]).
//!
//! The essay: while little is due, an index by time says all of it, and whose it is. Else the statement goes through the tenants
//! that have something by their numbers (`names`), with one look into the index by tenant for each, until it has found as many as are
//! asked for. From tenant to tenant in that index it would step over all that each of them was delivered. Of those whose turn it is
//! (`come`), rows are locked and leased. A lease changes no index, so taking and giving back costs the row alone; what is leased
//! still stands in the index and is stepped over, which is cheap, for only so much is leased as attempts are under way. Where
//! a lease's time is over, nothing need be given back: it is as if there were none.
//!
//! What is delivered stays in the indexes until vacuum takes it away, and vacuum may not while somebody reads for long, on a
//! standby too (`hot_standby_feedback`): after a quarter of an hour a walk from the beginning steps over all that was delivered
//! meanwhile. So a walk begins where the last one found the first that waits (`floor`), and walks from the
//! beginning take a share of the time at most. Whatever begins to wait is due at that moment, so it lies behind; what was
//! committed long after it was due is found by the next walk from the beginning. For the same reason rows are named (`id = ANY`)
//! wherever they are changed: the server believes a table of so few rows to be small, and would read all of its index.

use super::{
    Inner, LOOK_TIME,
    free::with_free,
    line::Line,
    routine::{Made, Routine},
};
use crate::queue::{Ask, End, LEASE, Leased, Probe, StorageError, Ticket, watch::span};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, LazyLock, MutexGuard, PoisonError},
    time::Duration,
};
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
/// those of `$3`, none that was due before `$8`; at most `HEADS`. While little is due (`few`) it says itself whose it is; else the
/// numbers of tenants say who may have something, and what is due first is looked at in any case.
const RING: &str = "
    t AS MATERIALIZED (SELECT activity_milter.at($1) AS now),
    few AS MATERIALIZED (
        SELECT tenant, due, until, node FROM activity_milter.item
        WHERE $4::text IS NULL AND state + 0 = 0 AND due + 0 >= $8 AND due + 0 <= (SELECT now FROM t)
        ORDER BY due + 0 LIMIT 1000),
    names AS MATERIALIZED (
        SELECT tenant FROM few WHERE (SELECT count(*) FROM few) = 1000
        UNION
        SELECT id FROM (SELECT id, waiting FROM activity_milter.tenant
                        UNION ALL SELECT tenant, waiting FROM activity_milter.delta) AS numbers
        WHERE (SELECT count(*) FROM few) = 1000 GROUP BY id HAVING sum(waiting) > 0),
    heads AS MATERIALIZED (
        SELECT tenant, row_number() OVER (ORDER BY tenant <= $2 COLLATE \"C\", tenant) AS turn FROM (
            SELECT DISTINCT tenant FROM few
            WHERE (SELECT count(*) FROM few) < 1000 AND IS_FREE AND tenant <> ALL ($3::text[])
            UNION ALL
            SELECT $4 COLLATE \"C\" WHERE $4 IS NOT NULL AND $4 <> ALL ($3)
            UNION ALL
            (SELECT ring.tenant
             FROM (SELECT tenant FROM names WHERE tenant <> ALL ($3) ORDER BY tenant <= $2 COLLATE \"C\", tenant) AS ring
             CROSS JOIN LATERAL (
                 SELECT FROM activity_milter.item
                 WHERE state = 0 AND tenant = ring.tenant AND due >= $8 AND due <= (SELECT now FROM t)
                     AND IS_FREE
                 ORDER BY due, id LIMIT 1) AS first
             LIMIT HEADS)) AS those)";

/// The statement that begins with the ring.
fn with_ring(rest: &str, heads: &str) -> String {
    with_free(&format!("WITH {}, {rest}", RING.replace("HEADS", heads)))
}

/// One tenant more than there is room for says that there is more.
const HEADS: &str = "$5 + 1";

/// Tenants that are looked at for one that was never attempted.
const FRESH_HEADS: &str = "500";

/// What is due, by turns: `$5` at most, leased by `$6` for `$7` milliseconds.
pub(super) static CHOOSE: Routine = LazyLock::new(|| {
    let number = Type::INT8;
    let takes = [
        number.clone(),
        Type::TEXT,
        Type::TEXT_ARRAY,
        Type::TEXT,
        number.clone(),
        Type::TEXT,
        number.clone(),
        number.clone(),
        number.clone(),
    ];
    let gives = [
        number.clone(),
        number.clone(),
        Type::TEXT,
        number.clone(),
        number.clone(),
        number.clone(),
        Type::BYTEA,
        number,
    ];
    Made::new("lease", &takes, &gives, with_ring(BY_TURNS, HEADS))
});

const BY_TURNS: &str = "
    come AS MATERIALIZED (SELECT tenant, turn FROM heads ORDER BY turn LIMIT $5),
    each AS MATERIALIZED (SELECT CASE WHEN count(*) >= $5 THEN 1 ELSE $5 END AS rows FROM come),
    taken AS MATERIALIZED (
        SELECT mine.id, come.turn, row_number() OVER (PARTITION BY come.turn ORDER BY mine.due, mine.id) AS round
        FROM come CROSS JOIN LATERAL (
            SELECT id, due FROM activity_milter.item
            WHERE state = 0 AND tenant = come.tenant AND due >= $8 AND due <= (SELECT now FROM t)
                AND IS_FREE
            ORDER BY due, id LIMIT (SELECT rows FROM each) FOR UPDATE SKIP LOCKED) AS mine),
    chosen AS MATERIALIZED (
        SELECT id, nextval('activity_milter.fence'::regclass) AS number
        FROM (SELECT id FROM taken ORDER BY round, turn LIMIT $5) AS in_order),
    leased AS (
        UPDATE activity_milter.item SET until = now + $7, fence = number, node = $6
        FROM chosen, t WHERE item.id = ANY (ARRAY(SELECT id FROM chosen)) AND item.id = chosen.id
        RETURNING item.id, fence, tenant, size, key),
    next AS (
        SELECT CASE
            WHEN EXISTS (SELECT FROM heads WHERE turn > $5) OR EXISTS (
                SELECT FROM come CROSS JOIN LATERAL (
                    SELECT FROM activity_milter.item
                    WHERE state = 0 AND tenant = come.tenant AND due >= $8 AND due <= (SELECT now FROM t)
                        AND IS_FREE AND id NOT IN (SELECT id FROM chosen)
                    ORDER BY due, id LIMIT 1) AS rest) THEN t.now
            WHEN $4 IS NOT NULL THEN (
                SELECT due FROM activity_milter.item
                WHERE state = 0 AND tenant = $4 AND due > (SELECT now FROM t)
                    AND IS_FREE ORDER BY due, id LIMIT 1)
            ELSE (
                SELECT coalesce(
                    min(due) FILTER (WHERE tenant <> ALL ($3) AND IS_FREE),
                    max(due) FILTER (WHERE place = 1000))
                FROM (SELECT tenant, due, until, node, row_number() OVER (ORDER BY due) AS place FROM (
                          SELECT tenant, due, until, node FROM activity_milter.item
                          WHERE state + 0 = 0 AND due + 0 > (SELECT now FROM t) ORDER BY due + 0 LIMIT 1000) AS next_ones) AS later)
            END AS due
        FROM t)
    SELECT id, fence, tenant, size, next.due, now, key, least((SELECT min(due) FROM few), now - $9)
    FROM next CROSS JOIN t LEFT JOIN leased ON true ORDER BY fence";

/// The first of `$5` that waits, due or not, and that nobody has.
static TRIED: LazyLock<String> = LazyLock::new(|| with_free(FIRST_TRIED));

const FIRST_TRIED: &str = "
    WITH t AS MATERIALIZED (SELECT activity_milter.at($1) AS now),
    chosen AS MATERIALIZED (
        SELECT item.id FROM unnest($5::int8[]) WITH ORDINALITY AS tried (id, ord)
        JOIN activity_milter.item ON item.id = tried.id CROSS JOIN t
        WHERE state = 0 AND IS_FREE AND ($4::text IS NULL OR tenant = $4) AND tenant <> ALL ($3::text[])
            AND $2::text IS NOT NULL AND $8::int8 IS NOT NULL
        ORDER BY ord LIMIT 1 FOR UPDATE OF item SKIP LOCKED)
    UPDATE activity_milter.item SET until = now + $7, fence = nextval('activity_milter.fence'::regclass), node = $6
    FROM chosen, t WHERE item.id = ANY (ARRAY(SELECT id FROM chosen)) AND item.id = chosen.id
    RETURNING item.id, fence, tenant, size, now, now, key";

/// The newest of the first tenant that was never attempted, is due, and is none of `$5`.
const FRESH: &str = "
    chosen AS MATERIALIZED (
        SELECT item.id
        FROM (SELECT newest.id FROM heads CROSS JOIN t CROSS JOIN LATERAL (
                  SELECT id, due, attempts, until, node FROM activity_milter.item
                  WHERE state = 0 AND tenant = heads.tenant AND due >= $8 AND due <= t.now
                  ORDER BY due DESC, id DESC LIMIT $9) AS newest
              WHERE newest.attempts = 0 AND IS_FREE AND newest.id <> ALL ($5::int8[])
              ORDER BY turn, newest.due DESC, newest.id DESC LIMIT 1) AS first
        JOIN activity_milter.item ON item.id = first.id FOR UPDATE OF item SKIP LOCKED)
    UPDATE activity_milter.item SET until = now + $7, fence = nextval('activity_milter.fence'::regclass), node = $6
    FROM chosen, t WHERE item.id = ANY (ARRAY(SELECT id FROM chosen)) AND item.id = chosen.id
    RETURNING item.id, fence, tenant, size, now, now, key";

/// Leases what is asked for.
pub(super) async fn lease(inner: &Inner, ask: Ask) -> Result<Leased, StorageError> {
    let _ = end_leases(inner).await; // mostly there is none; upkeep does it too, and says why not
    let _turn = inner.leasing.read().await;
    let leased = lease_now(inner, ask).await;
    if leased.is_err() {
        // The answer may be lost, and what was done not.
        inner.doubt_leases();
    }
    leased
}

async fn lease_now(inner: &Inner, ask: Ask) -> Result<Leased, StorageError> {
    let mut line = inner.lines.lend(LOOK_TIME).await?;
    // Who takes over would have it leased to nobody, and somebody would deliver it once more.
    inner.may_commit(&line)?;
    let leased = lease_on(inner, &mut line, ask).await;
    if leased.is_err() {
        inner.finds(&line);
    }
    leased
}

async fn lease_on(inner: &Inner, line: &mut Line, ask: Ask) -> Result<Leased, StorageError> {
    let node = inner.is_service()?;
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
            rows = line.tell_for_good(&TRIED, &shared.values(tried, Type::INT8_ARRAY)).await?;
        }
        if rows.is_empty() {
            let mut values = shared.values(besides, Type::INT8_ARRAY);
            values.push((&FRESH_LOOKS, Type::INT8));
            rows = line.tell_for_good(&with_ring(FRESH, FRESH_HEADS), &values).await?;
        }
    }
    if rows.is_empty() {
        let began = Instant::now();
        let mut values = shared.values(&room, Type::INT8);
        values.push((&COMMITTED, Type::INT8));
        rows = line.call_for_good(&CHOOSE, &values).await?;
        if ask.only.is_none()
            && let Some(row) = rows.first()
        {
            match floor == i64::MIN {
                true => inner.walked(row.get(5), row.get(7), began.elapsed()),
                false => inner.raise_floor(row.get(5), row.get(7)),
            }
        }
    }
    // Nothing is due: what was tried shows how the backend is as well.
    if let Some(Probe::Fresh(tried)) = &ask.probe
        && rows.iter().all(|row| row.get::<_, Option<i64>>(0).is_none())
    {
        let found = line.tell_for_good(&TRIED, &shared.values(tried, Type::INT8_ARRAY)).await?;
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

/// A lease of ours.
#[derive(Debug)]
pub(super) struct Given {
    fence: i64,
    /// When its time is over, by a clock that nobody sets.
    over: Duration,
    /// The key of its item.
    token: Arc<[u8]>,
}

impl Given {
    fn is(&self, ticket: &Ticket) -> bool {
        self.fence == ticket.fence && self.token == ticket.token
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
    /// Something may be leased in our name that we do not know.
    pub(super) fn doubt_leases(&self) {
        *self.doubted.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Since when that may be so.
    pub(super) fn doubted(&self) -> Option<Instant> {
        *self.doubted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn given(&self) -> MutexGuard<'_, HashMap<i64, Given>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When what is leased now is over.
    fn over(&self) -> Duration {
        self.when.watch.running() + LEASE
    }

    pub(super) fn owed(&self) -> MutexGuard<'_, HashMap<i64, (Ticket, End)>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Our own leases whose time is over, but for those of which we owe the queue the end.
    fn over_now(&self) -> Vec<(i64, i64)> {
        let (now, owed) = (self.when.watch.running(), self.owed());
        let given = self.given();
        let over = given.iter().filter(|(item, lease)| lease.over <= now && !owed.contains_key(*item));
        over.map(|(item, lease)| (*item, lease.fence)).collect()
    }

    /// Whether a lease is ours, as far as we know, and will not be given back at any moment.
    pub(super) fn still_has(&self, ticket: &Ticket) -> bool {
        let now = self.when.watch.running();
        self.given().get(&ticket.item).is_some_and(|lease| lease.is(ticket) && lease.over > now)
    }

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

    /// A walk from the floor found nothing before.
    fn raise_floor(&self, now: i64, due: i64) {
        if let Some(floor) = &mut *self.floor.lock().unwrap_or_else(PoisonError::into_inner) {
            (floor.due, floor.now) = (floor.due.max(due), floor.now.max(now));
        }
    }

    fn leased(&self, rows: &[Row]) -> Leased {
        let Some(first) = rows.first() else {
            return Leased { alone: self.tally.is_alone(), ..Leased::default() };
        };
        let (due, now): (Option<i64>, i64) = (first.get(4), first.get(5));
        let over = self.over();
        let mut given = self.given();
        let tickets = rows.iter().filter_map(|row| {
            let (item, size): (Option<i64>, Option<i64>) = (row.get(0), row.get(3));
            let (item, fence) = (item?, row.get(1));
            let token: Arc<[u8]> = row.get::<_, &[u8]>(6).into();
            given.insert(item, Given { fence, over, token: Arc::clone(&token) });
            let tenant: &str = row.get(2);
            let size = size.unwrap_or(0).unsigned_abs();
            Some(Ticket { item, fence, tenant: tenant.into(), size, token })
        });
        let tickets = tickets.collect();
        let wait = |due: i64| Duration::from_millis(u64::try_from(due.saturating_sub(now)).unwrap_or(0));
        Leased { tickets, next_due: due.map(wait), alone: self.tally.is_alone() }
    }
}

/// Stores the backend's progress, and prolongs the lease.
pub(super) async fn note(inner: &Inner, ticket: &Ticket, note: &str) -> Result<bool, StorageError> {
    let mut line = inner.lines.lend(LOOK_TIME).await?;
    inner.may_commit(&line)?;
    let rows = line
        .tell_for_good(
            "UPDATE activity_milter.item SET note = $4, until = activity_milter.at($1) + $5
             WHERE id = $2 AND fence = $3 AND key = $6 AND until IS NOT NULL RETURNING until",
            &[
                (&inner.when.given(), Type::INT8),
                (&ticket.item, Type::INT8),
                (&ticket.fence, Type::INT8),
                (&note, Type::TEXT),
                (&span(LEASE), Type::INT8),
                (&&ticket.token[..], Type::BYTEA),
            ],
        )
        .await?;
    if !rows.is_empty() {
        let (fence, over) = (ticket.fence, inner.over());
        inner.given().insert(ticket.item, Given { fence, over, token: Arc::clone(&ticket.token) });
    }
    Ok(!rows.is_empty())
}

/// The backend has them: the rows go, or are kept (`$4`). A key that was written long ago is written again (`$5` is how
/// long a key is remembered): its memory begins now. Rows are locked in their order, as by a person who changes some.
pub(super) static TAKEN: Routine = LazyLock::new(|| {
    let numbers = Type::INT8_ARRAY;
    let takes = [Type::INT8, numbers.clone(), numbers, Type::BOOL, Type::INT8, Type::BYTEA_ARRAY];
    Made::new("taken", &takes, &[Type::INT8, Type::INT8], END_TAKEN)
});

const END_TAKEN: &str = "
    WITH t AS MATERIALIZED (SELECT activity_milter.at($1) AS now),
    ended AS (SELECT * FROM unnest($2::int8[], $3::int8[], $6::bytea[]) AS ended (id, fence, key)),
    locked AS MATERIALIZED (SELECT id FROM activity_milter.item WHERE id = ANY ($2) ORDER BY id FOR UPDATE),
    gone AS (
        DELETE FROM activity_milter.item USING ended
        WHERE item.id = ANY (ARRAY(SELECT id FROM locked)) AND item.id = ended.id AND item.fence = ended.fence AND item.key = ended.key
            AND until IS NOT NULL
        RETURNING item.*),
    kept AS (
        INSERT INTO activity_milter.kept (id, accepted_at, delivered_at, letter, size, day, attempts, key, tenant)
        SELECT id, accepted_at, now, letter, size, day, attempts, key, tenant FROM gone, t WHERE $4),
    keys AS (
        UPDATE activity_milter.key SET at = now FROM gone, t WHERE key.key = gone.key AND key.at < now - $5),
    counted AS (
        INSERT INTO activity_milter.delta (tenant, waiting) SELECT tenant, -count(*) FROM gone GROUP BY tenant)
    SELECT id, fence FROM gone";

/// All other ends: `$4` is what is added to the attempts, `$5` when it is due again if that changes, `$7` whether it is held.
pub(super) static OTHERS: Routine = LazyLock::new(|| {
    let numbers = Type::INT8_ARRAY;
    let takes = [
        Type::INT8,
        numbers.clone(),
        numbers.clone(),
        Type::INT4_ARRAY,
        numbers,
        Type::TEXT_ARRAY,
        Type::BOOL_ARRAY,
        Type::BYTEA_ARRAY,
    ];
    Made::new("ended", &takes, &[Type::INT8, Type::INT8], END_OTHERS)
});

const END_OTHERS: &str = "
    WITH t AS MATERIALIZED (SELECT activity_milter.at($1) AS now),
    ended AS (
        SELECT * FROM unnest($2::int8[], $3::int8[], $4::int4[], $5::int8[], $6::text[], $7::bool[], $8::bytea[])
            AS ended (id, fence, more, after, why, holds, key)),
    locked AS MATERIALIZED (SELECT id FROM activity_milter.item WHERE id = ANY ($2) ORDER BY id FOR UPDATE),
    changed AS (
        UPDATE activity_milter.item
        SET until = NULL, attempts = attempts + more, due = coalesce(now + after, due), reason = coalesce(why, reason),
            state = CASE WHEN holds THEN 1 ELSE state END, held_at = CASE WHEN holds THEN now ELSE held_at END
        FROM ended, t
        WHERE item.id = ANY (ARRAY(SELECT id FROM locked)) AND item.id = ended.id AND item.fence = ended.fence AND item.key = ended.key
            AND until IS NOT NULL
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
        let mut owed = inner.owed();
        let mut given = inner.given();
        for (ticket, end) in &ends {
            match &done {
                // A later lease of the same item goes on.
                Ok(_) => {
                    if owed.get(&ticket.item).is_some_and(|(former, _)| former == ticket) {
                        owed.remove(&ticket.item);
                    }
                    if given.get(&ticket.item).is_some_and(|lease| lease.is(ticket)) {
                        given.remove(&ticket.item);
                    }
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
    if taken.is_empty() && others.is_empty() {
        return Ok(vec![false; ends.len()]);
    }
    let mut line = inner.lines.lend(LOOK_TIME).await?;
    let done = write_on(inner, &mut line, &taken, &others).await;
    if done.is_err() {
        inner.finds(&line);
    }
    let done = done?;
    Ok(ends
        .iter()
        .zip(first)
        .map(|((ticket, _), first)| first && done.contains(&(ticket.item, ticket.fence)))
        .collect())
}

/// The leases that were ended. By both: an earlier lease of the same item may be among them. Also while commits are less safe than
/// is asked: it is an error then, and owed, but who stops meanwhile finds it when he is back.
async fn write_on(
    inner: &Inner,
    line: &mut Line,
    taken: &[&(Ticket, End)],
    others: &[&(Ticket, End)],
) -> Result<HashSet<(i64, i64)>, StorageError> {
    let mut done = HashSet::new();
    let is_both = !taken.is_empty() && !others.is_empty();
    if is_both {
        line.begin().await?;
    }
    if !taken.is_empty() {
        done.extend(end_taken(inner, line, taken).await?);
    }
    if !others.is_empty() {
        done.extend(end_others(inner, line, others).await?);
    }
    if is_both {
        line.commit_for_good().await?;
    }
    if done.len() < taken.len() + others.len() {
        // Perhaps it was done before, by a statement that was not answered.
        line.confirm().await?;
    }
    Ok(done)
}

/// The columns that say which leases end. A number alone does not: a database that has lost its last moments, because a
/// standby took over or a copy was restored, gives the same numbers to other mail.
fn places<'a>(ends: &'a [&(Ticket, End)]) -> (Vec<i64>, Vec<i64>, Vec<&'a [u8]>) {
    let (items, fences) = ends.iter().map(|(ticket, _)| (ticket.item, ticket.fence)).unzip();
    (items, fences, ends.iter().map(|(ticket, _)| &ticket.token[..]).collect())
}

fn ended(rows: &[Row]) -> Vec<(i64, i64)> {
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

async fn end_taken(
    inner: &Inner,
    line: &mut Line,
    ends: &[&(Ticket, End)],
) -> Result<Vec<(i64, i64)>, StorageError> {
    let (items, fences, keys) = places(ends);
    let keeps = !inner.settings.keep_delivered.is_zero();
    let rows = line
        .call_durably(
            &TAKEN,
            &[
                (&inner.when.given(), Type::INT8),
                (&items, Type::INT8_ARRAY),
                (&fences, Type::INT8_ARRAY),
                (&keeps, Type::BOOL),
                (&span(crate::queue::KEY_MEMORY), Type::INT8),
                (&keys, Type::BYTEA_ARRAY),
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
    let (items, fences, keys) = places(ends);
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
        .call_durably(
            &OTHERS,
            &[
                (&inner.when.given(), Type::INT8),
                (&items, Type::INT8_ARRAY),
                (&fences, Type::INT8_ARRAY),
                (&more, Type::INT4_ARRAY),
                (&afters, Type::INT8_ARRAY),
                (&whys, Type::TEXT_ARRAY),
                (&holds, Type::BOOL_ARRAY),
                (&keys, Type::BYTEA_ARRAY),
            ],
        )
        .await?;
    Ok(ended(&rows))
}

/// Writes ends that could not be written, each for itself if need be: one of them may never be.
pub(super) async fn pay(inner: &Inner) {
    let owed: Vec<_> = inner.owed().values().cloned().collect();
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
    let over = inner.over_now();
    if over.is_empty() {
        return Ok(0);
    }
    let (items, fences): (Vec<i64>, Vec<i64>) = over.iter().copied().unzip();
    let mut line = inner.lines.lend(LOOK_TIME).await?;
    let rows = line
        .ask(
            "UPDATE activity_milter.item SET until = NULL FROM unnest($1::int8[], $2::int8[]) AS over (id, fence)
             WHERE item.id = over.id AND item.fence = over.fence AND until IS NOT NULL RETURNING item.id",
            &[(&items, Type::INT8_ARRAY), (&fences, Type::INT8_ARRAY)],
        )
        .await?;
    inner.given().retain(|item, lease| !over.contains(&(*item, lease.fence)));
    Ok(rows.len())
}

/// Gives back what was leased in our name and that we do not know: what a process of before had, and what a statement took
/// whose answer is lost. While such a statement may still run (a commit that waits for a standby is seen by nobody), that is
/// done again and again.
pub(super) async fn settle(inner: &Inner) -> Result<(), StorageError> {
    let node = inner.is_service()?;
    let since = inner.doubted().unwrap_or_else(Instant::now);
    // None of our statements is on its way, but those that were given up.
    let _alone = inner.leasing.write().await;
    let mut line = inner.lines.lend(LOOK_TIME).await?;
    let age = since.elapsed().as_secs_f64();
    let rows = line
        .ask(
            "SELECT EXISTS (
                 SELECT FROM pg_stat_activity
                 WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid() AND state <> 'idle'
                     AND xact_start < clock_timestamp() - $1 * interval '1 second')",
            &[(&age, Type::FLOAT8)],
        )
        .await?;
    let may_run = rows.first().is_none_or(|row| row.get(0));
    // By their numbers: of what we had, and gave back by a word whose answer is lost, we may have a lease that we do not know.
    let (known, fences): (Vec<i64>, Vec<i64>) = {
        let owed = inner.owed();
        let given = inner.given();
        let given = given.iter().map(|(item, lease)| (*item, lease.fence));
        given.chain(owed.values().map(|(ticket, _)| (ticket.item, ticket.fence))).unzip()
    };
    let names: Vec<&str> = std::iter::once(node).chain(inner.former.iter().map(String::as_str)).collect();
    let rows = line
        .ask(
            "UPDATE activity_milter.item SET until = NULL
             WHERE state = 0 AND until IS NOT NULL AND node = ANY ($1::text[])
                 AND (id, fence) NOT IN (SELECT * FROM unnest($2::int8[], $3::int8[])) RETURNING id",
            &[(&names, Type::TEXT_ARRAY), (&known, Type::INT8_ARRAY), (&fences, Type::INT8_ARRAY)],
        )
        .await?;
    if !rows.is_empty() {
        inner.ring();
    }
    if !may_run {
        let mut doubted = inner.doubted.lock().unwrap_or_else(PoisonError::into_inner);
        // Unless there is a new one meanwhile.
        *doubted = doubted.filter(|latest| *latest != since);
    }
    Ok(())
}

/// When the others wrote their rows last, and since when we have known that.
pub(super) type Seen = HashMap<String, (i64, Instant)>;

/// Gives back what nodes had of which nothing was heard for so long. By our own measure: the clock of a server that has taken
/// over may be minutes ahead. While the database is away nobody is heard, so what was known of others is forgotten then.
pub(super) async fn bury(inner: &Inner) -> Result<usize, StorageError> {
    let node = inner.is_service()?;
    let mut line = inner.lines.lend(super::LONG_TIME).await?;
    let rows =
        line.ask("SELECT id, seen FROM activity_milter.node WHERE id <> $1", &[(&node, Type::TEXT)]).await?;
    let (names, times): (Vec<String>, Vec<i64>) = {
        let mut known = inner.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = |row: &Row| {
            let (name, seen): (String, i64) = (row.get(0), row.get(1));
            let since = known.get(&name).filter(|(before, _)| *before == seen).map(|(_, since)| *since);
            (name, (seen, since.unwrap_or_else(Instant::now)))
        };
        *known = rows.iter().map(heard).collect();
        let silent = known.iter().filter(|(_, (_, since))| since.elapsed() > inner.missed_after);
        silent.map(|(name, (seen, _))| (name.clone(), *seen)).unzip()
    };
    if names.is_empty() {
        return Ok(0);
    }
    let rows = line
        .ask(
            "WITH gone AS MATERIALIZED (
                 DELETE FROM activity_milter.node USING unnest($1::text[], $2::int8[]) AS silent (id, seen)
                 WHERE node.id = silent.id AND node.seen = silent.seen RETURNING node.id),
             back AS (
                 UPDATE activity_milter.item SET until = NULL
                 WHERE state = 0 AND until IS NOT NULL AND node IN (SELECT id FROM gone) RETURNING item.id)
             SELECT count(*) FROM back",
            &[(&names, Type::TEXT_ARRAY), (&times, Type::INT8_ARRAY)],
        )
        .await?;
    let back: i64 = rows.first().map_or(0, |row| row.get(0));
    Ok(usize::try_from(back).unwrap_or(0))
}
