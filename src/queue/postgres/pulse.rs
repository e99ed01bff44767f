//! What a service does every tenth of a second: tells the others that something arrived, and asks them the same.
//!
//! In: what was put here. Out: who waits for work is woken, wherever it came in.
//! Promise: nobody is told within a put: a `NOTIFY` there takes a lock that all of them wait for. So each node has a row
//! with a number that grows, at most ten times a second, after the commit; the others look at it as often. That needs no
//! session and so goes through PgBouncer. Every second what happened is added up, and every few seconds the guarantee is
//! read.
//! Fails: never; while the database is away it is asked with pauses, and what was owed to it is written when it is back.

use super::{Inner, LOOK_TIME, guarantee::Guarantee, lease};
use crate::observe::{events, metrics};
use crate::queue::{StorageError, tally};
use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_postgres::types::Type;

/// How often others are told and asked.
const BEAT: Duration = Duration::from_millis(100);

/// How often what happened is added up.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// At most so much of the time goes into it: what was added up stays in the way while somebody reads for long.
const COUNT_SHARE: u32 = 20;

/// The first pause between two looks for what was leased without our knowledge, while there may be such; each is twice as long.
const SETTLE_EVERY: Duration = Duration::from_secs(2);

/// The longest: it looks at all that waits.
const LONGEST_SETTLE: Duration = Duration::from_secs(60);

/// How often it is looked for where nothing says that there is any.
const SETTLE_ANYWAY: Duration = Duration::from_secs(300);

/// How often the guarantee is read.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// Pause after trouble, and as much again by chance.
const TROUBLE: Duration = Duration::from_millis(500);

/// The lock of who adds up.
const LOCK: i64 = 0x616d_2d63_6f75_6e74;

/// What is done now and then besides.
#[derive(Debug, Default)]
struct Chores {
    counted: Option<Instant>,
    count_every: Duration,
    seen: Option<Instant>,
    settled: Option<Instant>,
    settle_pause: Duration,
    doubted: Option<Instant>,
}

fn is_over(last: Option<Instant>, every: Duration) -> bool {
    last.is_none_or(|last| last.elapsed() >= every)
}

impl Chores {
    /// Each for itself: one that fails stops no other.
    async fn run(&mut self, inner: &Inner) -> Result<(), StorageError> {
        let mut first = Ok(());
        let mut tried = |step: Result<(), StorageError>| {
            if first.is_ok() {
                first = step;
            }
        };
        lease::pay(inner).await;
        if is_over(self.counted, self.count_every.max(COUNT_EVERY)) {
            let began = Instant::now();
            tried(add_up(inner).await);
            tried(inner.count().await);
            self.count_every = began.elapsed() * COUNT_SHARE;
            self.counted = Some(Instant::now());
        }
        if is_over(self.seen, inner.heard_within()) {
            tried(tell(inner, false).await);
            self.seen = Some(Instant::now());
        }
        let doubted = inner.doubted();
        if doubted != self.doubted {
            (self.doubted, self.settle_pause) = (doubted, SETTLE_EVERY);
        }
        // Now and then without any doubt: a server that has taken over may have forgotten an end that was written, and a statement of
        // which we heard nothing may have come late.
        let pause = if doubted.is_some() { self.settle_pause } else { SETTLE_ANYWAY };
        if is_over(self.settled, pause) {
            tried(lease::settle(inner).await);
            self.settled = Some(Instant::now());
            self.settle_pause = (self.settle_pause * 2).min(LONGEST_SETTLE);
        }
        first
    }
}

/// Until the queue is dropped.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut tick = interval(BEAT);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut others, mut looked, mut chores) = (None, None::<Instant>, Chores::default());
    let (mut is_away, mut is_unsafe) = (false, false);
    loop {
        tick.tick().await;
        // The guarantee first, and whatever becomes of the rest. It is read on a new connection, and one that is refused says
        // nothing of those that are there: whoever delivers must be heard of.
        let mut refused = None;
        if is_over(looked, LOOK_EVERY) {
            refused = look(&inner, &mut is_unsafe).await.err();
            looked = Some(Instant::now());
        }
        let is_there = beat(&inner, &mut others).await;
        metrics::queue_reachable(is_there.is_ok());
        if let Err(error) = is_there {
            inner.seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
            if !is_away {
                events::queue_away(&inner.name, &error, inner.settings.spool_on_outage);
            }
            is_away = true;
            looked = None;
            sleep(TROUBLE.mul_f64(1.0 + fastrand::f64())).await;
            continue;
        }
        if is_away {
            is_away = false;
            events::queue_back(&inner.name);
            // It may be another one, which does not know all that we heard.
            inner.doubt_leases();
            // Others may have put something meanwhile, and who waits here has not heard of it.
            inner.arrived.notify_one();
        }
        if let Some(error) = refused {
            events::queue_trouble(&error);
        }
        if let Err(error) = chores.run(&inner).await {
            events::queue_trouble(&error);
            sleep(TROUBLE).await;
        }
    }
}

/// Tells the others, and asks them.
async fn beat(inner: &Inner, others: &mut Option<i64>) -> Result<(), StorageError> {
    if inner.rung.swap(false, Ordering::AcqRel)
        && let Err(error) = tell(inner, true).await
    {
        inner.rung.store(true, Ordering::Release);
        return Err(error);
    }
    let node = inner.is_service()?;
    let mut line = inner.lookers.lend(LOOK_TIME).await?;
    let rows = line
        .ask(
            "SELECT coalesce(sum(arrivals), 0)::int8, activity_milter.at(NULL) FROM activity_milter.node WHERE id <> $1",
            &[(&node, Type::TEXT)],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(()) };
    inner.when.shown(row.get(1));
    let told: i64 = row.get(0);
    if others.replace(told).is_some_and(|before| before != told) {
        inner.arrived.notify_one();
    }
    Ok(())
}

/// We are there; if something arrived, the number of our row grows. Commands share one.
pub(super) async fn tell(inner: &Inner, has_arrived: bool) -> Result<(), StorageError> {
    let keeps = inner.node.is_some() && !inner.settings.keep_delivered.is_zero();
    let node = inner.node.as_ref().map_or("commands", |node| node.as_str());
    let mut line = inner.lookers.lend(LOOK_TIME).await?;
    line.ask(
        "INSERT INTO activity_milter.node AS known (id, arrivals, seen, program, boot, keeps) VALUES ($1, $3, activity_milter.at(NULL), $2, $4, $5)
         ON CONFLICT (id) DO UPDATE SET arrivals = known.arrivals + $3, boot = excluded.boot, keeps = excluded.keeps, seen = excluded.seen, program = excluded.program",
        &[(&node, Type::TEXT), (&env!("CARGO_PKG_VERSION"), Type::TEXT), (&i64::from(has_arrived), Type::INT8), (&inner.boot, Type::TEXT), (&keeps, Type::BOOL)],
    )
    .await?;
    Ok(())
}

/// Adds up what happened; one of us at a time.
async fn add_up(inner: &Inner) -> Result<(), StorageError> {
    let mut line = inner.lookers.lend(LOOK_TIME).await?;
    line.ask(
        "WITH mine AS MATERIALIZED (SELECT pg_try_advisory_xact_lock($1) AS is_mine),
         gone AS (DELETE FROM activity_milter.delta WHERE (SELECT is_mine FROM mine) RETURNING *)
         INSERT INTO activity_milter.tenant AS known (id, prefix, waiting, held, aged)
         SELECT tenant, coalesce(max(prefix), ''), sum(waiting), sum(held), sum(aged) FROM gone GROUP BY tenant ORDER BY tenant
         ON CONFLICT (id) DO UPDATE SET
             prefix = CASE WHEN excluded.prefix = '' THEN known.prefix ELSE excluded.prefix END,
             waiting = known.waiting + excluded.waiting, held = known.held + excluded.held, aged = known.aged + excluded.aged",
        &[(&LOCK, Type::INT8)],
    )
    .await?;
    Ok(())
}

/// Reads the guarantee.
pub(super) async fn guarantee(inner: &Inner) -> Result<Guarantee, StorageError> {
    inner.lookers.guarantee(LOOK_TIME).await
}

/// Reads the guarantee, and says when it goes and comes.
async fn look(inner: &Inner, is_unsafe: &mut bool) -> Result<(), StorageError> {
    let found = guarantee(inner).await?;
    let lack = found.lacks(inner.require_replication);
    *inner.guarantee.lock().unwrap_or_else(PoisonError::into_inner) = found;
    metrics::queue_safe(lack.is_none());
    match &lack {
        Some(why) if !*is_unsafe => events::queue_unsafe(&inner.name, why, inner.settings.spool_on_outage),
        None if *is_unsafe => events::queue_safe(&inner.name),
        _ => {}
    }
    *is_unsafe = lack.is_some();
    Ok(())
}

/// Takes over the numbers of all tenants, as all nodes have made them.
pub(super) async fn count(inner: &Inner) -> Result<(), StorageError> {
    // One at a time: what is committed here meanwhile is noted once.
    let _alone = inner.counting.lock().await;
    inner.tally.begin();
    let mut line = inner.lookers.lend(LOOK_TIME).await?;
    let rows = line.ask("SELECT id, waiting, held, aged FROM activity_milter.number_of", &[]).await?;
    let numbers = rows
        .iter()
        .map(|row| (row.get(0), tally::Numbers { waiting: row.get(1), held: row.get(2), aged: row.get(3) }));
    inner.tally.end(numbers);
    Ok(())
}
