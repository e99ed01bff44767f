//! What is done from time to time, in slices: who puts or delivers never waits for more than one of them.
//!
//! In: the queue. Out: what was found ([`Upkeep`]).
//! Promise: every step is one that several nodes may do at the same time. What was not done because of an error is done the
//! next time, and one step that fails stops no other.

use super::{
    Inner, LONG_TIME,
    free::with_free,
    held::{holding, newly_held},
    kept, lease,
    line::Line,
    moving, payload,
};
use crate::queue::{KEY_MEMORY, LEASE, NewlyHeld, StorageError, Upkeep, watch::span};
use std::{sync::LazyLock, time::Duration};
use tokio_postgres::types::Type;

/// Rows of one slice.
const AT_ONCE: i64 = 1000;

/// How often what is seldom is looked for.
const WHOLE_EVERY: Duration = Duration::from_secs(6 * 3600);

/// How often tables of days that nothing needs are dropped.
const DAYS_EVERY: Duration = Duration::from_secs(3600);

/// The latest that something may be due: longer than any backoff and any `Retry-After` that we honour.
const LATEST: Duration = Duration::from_secs(25 * 3600);

/// The same where the clock is known to have been ahead: what was attempted then is due by that clock. An attempt that
/// comes too early harms less than one that comes a day late.
const LATEST_AFTER_LEAP: Duration = Duration::from_secs(15 * 60);

/// Clocks of servers that are kept right differ by less.
const SLACK: Duration = Duration::from_secs(60);

/// Where the upkeep stands.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// When what is seldom was looked for ([`crate::queue::Clock::running`]).
    whole: Option<Duration>,
    /// The same for tables of days that nothing needs.
    days: Option<Duration>,
    /// There may be times that lie ahead, and what is due in so long or later is one.
    mend: Option<Duration>,
}

impl Places {
    /// After the start: whether times lie ahead.
    pub(super) async fn after_open(
        line: &mut Line,
        given: Option<i64>,
        was_ahead: bool,
    ) -> Result<Self, StorageError> {
        if was_ahead {
            return Ok(Self { mend: Some(LATEST_AFTER_LEAP), ..Self::default() });
        }
        let rows = line
            .ask(
                "WITH t AS MATERIALIZED (SELECT activity_milter.at($1) AS now)
                 SELECT EXISTS (SELECT FROM (SELECT accepted_at FROM activity_milter.item ORDER BY id DESC LIMIT 100) AS newest, t
                                WHERE accepted_at > now)
                     OR EXISTS (SELECT FROM activity_milter.key, t WHERE at > now)
                     OR EXISTS (SELECT FROM activity_milter.item, t WHERE state + 0 = 0 AND due + 0 > now + $2)",
                &[(&given, Type::INT8), (&span(LATEST), Type::INT8)],
            )
            .await?;
        let ahead = rows.first().is_some_and(|row| row.get(0));
        Ok(Self { mend: ahead.then_some(LATEST), ..Self::default() })
    }
}

pub(super) async fn run(
    inner: &Inner,
    places: &mut Places,
    max_age: Duration,
) -> Result<Upkeep, StorageError> {
    inner.now().await?;
    let watch = &inner.when.watch;
    let leaps = watch.leaps();
    if leaps.back {
        places.mend = Some(LATEST_AFTER_LEAP);
    }
    let running = watch.running();
    let whole = places.whole.is_none_or(|looked| running.saturating_sub(looked) >= WHOLE_EVERY);
    let mut done = Upkeep { jumped: leaps.forward, ..Upkeep::default() };
    let mut first = Ok(());
    // One row that cannot be changed must not stop all else for ever.
    let mut tried = |step: Result<(), StorageError>| {
        if first.is_ok() {
            first = step;
        }
    };
    if let Some(latest) = places.mend {
        let step = mend(inner, latest).await.map(|mended| done.mended = mended);
        places.mend = places.mend.filter(|_| step.is_err());
        tried(step);
    }
    tried(note_time(inner).await);
    tried(lease::end_leases(inner).await.map(|ended| {
        if ended > 0 {
            inner.ring(); // nobody waits for the end of a lease
        }
    }));
    tried(lease::bury(inner).await.map(|ended| {
        if ended > 0 {
            inner.ring();
        }
    }));
    tried(moving::hold_cut_off(inner, whole, &mut done.cut_off).await);
    if inner.when.watch.is_trusted() {
        tried(hold_old(inner, max_age, &mut done.too_old).await);
        if whole {
            tried(age(inner).await);
        }
        tried(forget_keys(inner).await);
    }
    tried(kept::tidy(inner).await.map(|gone| done.kept_gone = gone));
    tried(payload::prepare(inner).await);
    if places.days.is_none_or(|looked| running.saturating_sub(looked) >= DAYS_EVERY) {
        let step = payload::tidy(inner).await.map(|is_in_use| {
            places.days = Some(running).filter(|_| !is_in_use);
        });
        tried(step);
    }
    if whole {
        places.whole = Some(running);
    }
    first?;
    Ok(done)
}

/// Notes the newest time, and until when the clock is not believed.
pub(super) async fn note_time(inner: &Inner) -> Result<(), StorageError> {
    let sets = inner.when.watch.sets();
    let distrust = inner.when.watch.distrust();
    let mut line = inner.lines.lend(LONG_TIME).await?;
    line.ask(
        "UPDATE activity_milter.meta SET newest = activity_milter.at($1), distrust = $2",
        &[(&inner.when.given(), Type::INT8), (&distrust, Type::INT8)],
    )
    .await?;
    inner.noted.store(sets, std::sync::atomic::Ordering::Release);
    Ok(())
}

/// Mends times that lie ahead; how many rows had any.
async fn mend(inner: &Inner, latest: Duration) -> Result<u64, StorageError> {
    let given = inner.when.given();
    let mut line = inner.lines.lend(LONG_TIME).await?;
    let rows = line
        .ask(
            "WITH t AS MATERIALIZED (SELECT activity_milter.at($1) AS now),
             mended AS (
                 UPDATE activity_milter.item
                 SET due = least(due, now), accepted_at = least(accepted_at, now),
                     held_at = CASE WHEN held_at > now THEN now ELSE held_at END,
                     until = CASE WHEN until > now + $4 THEN now + $4 ELSE until END
                 FROM t
                 WHERE accepted_at > now + $2 OR held_at > now + $2 OR (state = 0 AND due > now + $3) OR until > now + $4 + $2
                 RETURNING accepted_at)
             SELECT count(*) FROM mended",
            &[
                (&given, Type::INT8),
                (&span(SLACK), Type::INT8),
                (&span(latest), Type::INT8),
                (&span(LEASE), Type::INT8),
            ],
        )
        .await?;
    let mended: i64 = rows.first().map_or(0, |row| row.get(0));
    line.ask(
        "UPDATE activity_milter.key SET at = activity_milter.at($1) WHERE at > activity_milter.at($1) + $2",
        &[(&given, Type::INT8), (&span(SLACK), Type::INT8)],
    )
    .await?;
    kept::mend(&mut line, given).await?;
    drop(line);
    if mended > 0 {
        inner.ring();
    }
    Ok(mended.unsigned_abs())
}

/// A slice of what waits for too long.
static HOLD: LazyLock<String> = LazyLock::new(|| {
    holding(&with_free(
        "SELECT id FROM activity_milter.item
         WHERE state + 0 = 0 AND accepted_at < (SELECT now FROM t) - $2 AND IS_FREE
         ORDER BY accepted_at, id LIMIT $4 FOR UPDATE OF item SKIP LOCKED",
    ))
});

/// Holds what waits for too long, a slice at a time.
async fn hold_old(inner: &Inner, max_age: Duration, held: &mut Vec<NewlyHeld>) -> Result<(), StorageError> {
    let reason = format!("not taken within {}: no attempt was answered", humantime::format_duration(max_age));
    loop {
        let mut line = inner.lines.lend(LONG_TIME).await?;
        let rows = line
            .ask(
                &HOLD,
                &[
                    (&inner.when.given(), Type::INT8),
                    (&span(max_age), Type::INT8),
                    (&reason, Type::TEXT),
                    (&AT_ONCE, Type::INT8),
                ],
            )
            .await?;
        if rows.is_empty() {
            return Ok(());
        }
        inner.held.notify_one();
        held.extend(rows.iter().map(newly_held));
    }
}

/// What is held for very long counts no more.
async fn age(inner: &Inner) -> Result<(), StorageError> {
    let since = inner.when.watch.now().saturating_sub(span(inner.settings.held_counts));
    for told in [false, true] {
        let mut after = i64::MIN;
        loop {
            let mut line = inner.lines.lend(LONG_TIME).await?;
            let rows = line
                .ask(
                    "WITH page AS MATERIALIZED (
                         SELECT id, tenant, NOT aged AND coalesce(held_at, due) < $3 AS is_over FROM activity_milter.item
                         WHERE state = 1 AND told = $1 AND id > $2 ORDER BY id LIMIT $4),
                     changed AS (
                         UPDATE activity_milter.item SET aged = true FROM page
                         WHERE item.id = page.id AND is_over AND state = 1 AND NOT aged RETURNING item.tenant),
                     counted AS (
                         INSERT INTO activity_milter.delta (tenant, held, aged)
                         SELECT tenant, -count(*), count(*) FROM changed GROUP BY tenant)
                     SELECT max(id) FROM page",
                    &[
                        (&told, Type::BOOL),
                        (&after, Type::INT8),
                        (&since, Type::INT8),
                        (&AT_ONCE, Type::INT8),
                    ],
                )
                .await?;
            match rows.first().and_then(|row| row.get::<_, Option<i64>>(0)) {
                Some(last) => after = last,
                None => break,
            }
        }
    }
    Ok(())
}

/// Forgets keys that were written long ago. One whose activity is still there is written again: it is looked at once in
/// that time.
async fn forget_keys(inner: &Inner) -> Result<(), StorageError> {
    loop {
        let mut line = inner.lines.lend(LONG_TIME).await?;
        let rows = line
            .ask(
                "WITH t AS MATERIALIZED (SELECT activity_milter.at($1) AS now),
                 old AS MATERIALIZED (
                     SELECT key.key, EXISTS (SELECT FROM activity_milter.item WHERE item.id = key.item) AS stays
                     FROM activity_milter.key WHERE at < (SELECT now FROM t) - 2 * $2
                     ORDER BY at LIMIT $3 FOR UPDATE OF key SKIP LOCKED),
                 again AS (UPDATE activity_milter.key SET at = now FROM old, t WHERE key.key = old.key AND stays),
                 gone AS (DELETE FROM activity_milter.key USING old WHERE key.key = old.key AND NOT stays)
                 SELECT count(*) FROM old",
                &[
                    (&inner.when.given(), Type::INT8),
                    (&span(KEY_MEMORY), Type::INT8),
                    (&AT_ONCE, Type::INT8),
                ],
            )
            .await?;
        if rows.first().is_none_or(|row| row.get::<_, i64>(0) < AT_ONCE) {
            return Ok(());
        }
    }
}
