//! What a service does every tenth of a second: tells the others that something arrived, and asks them the same.
//!
//! In: what was put here. Out: who waits for work is woken, wherever it came in.
//! Promise: nobody is told within a put: a `NOTIFY` there takes a lock that all of them wait for. So each node has a row
//! with a number that grows, at most ten times a second, after the commit; the others look at it as often. That needs no
//! session and so goes through PgBouncer. Every second what happened is added up, and every few seconds the guarantee is
//! read.
//! Fails: never; while the database is away it is asked with pauses, and what was owed to it is written when it is back.

use super::{
    Inner, LOOK_TIME,
    guarantee::{self, Guarantee},
    lease,
};
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

/// How often the guarantee is read.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// Pause after trouble, and as much again by chance.
const TROUBLE: Duration = Duration::from_millis(500);

/// The lock of who adds up.
const LOCK: i64 = 0x616d_2d63_6f75_6e74;

/// Until the queue is dropped.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut tick = interval(BEAT);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut others, mut counted, mut looked) = (None, None::<Instant>, None::<Instant>);
    let mut count_every = COUNT_EVERY;
    let (mut is_away, mut is_unsafe) = (false, false);
    loop {
        tick.tick().await;
        let is_over = |last: Option<Instant>, every| last.is_none_or(|last| last.elapsed() >= every);
        let beat = async {
            beat(&inner, &mut others).await?;
            lease::pay(&inner).await;
            if lease::disown(&inner).await? > 0 {
                inner.ring();
            }
            if is_over(counted, count_every) {
                let began = Instant::now();
                add_up(&inner).await?;
                inner.count().await?;
                count_every = COUNT_EVERY.max(began.elapsed() * COUNT_SHARE);
                counted = Some(Instant::now());
            }
            if is_over(looked, LOOK_EVERY) {
                look(&inner, &mut is_unsafe).await?;
                looked = Some(Instant::now());
            }
            Ok::<(), StorageError>(())
        };
        let beat = beat.await;
        metrics::queue_reachable(beat.is_ok());
        match beat {
            Ok(()) if is_away => {
                is_away = false;
                events::queue_back(&inner.name);
                // Others may have put something meanwhile, and who waits here has not heard of it.
                inner.arrived.notify_one();
            }
            Ok(()) => {}
            Err(error) => {
                if !is_away {
                    events::queue_away(&inner.name, &error);
                }
                is_away = true;
                sleep(TROUBLE.mul_f64(1.0 + fastrand::f64())).await;
            }
        }
    }
}

/// Tells the others, and asks them.
async fn beat(inner: &Inner, others: &mut Option<i64>) -> Result<(), StorageError> {
    if inner.rung.swap(false, Ordering::AcqRel)
        && let Err(error) = tell(inner).await
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

/// Something arrived: the number of our row grows. Commands share one.
pub(super) async fn tell(inner: &Inner) -> Result<(), StorageError> {
    let node = inner.node.as_ref().map_or("commands", |node| node.as_str());
    let mut line = inner.lookers.lend(LOOK_TIME).await?;
    line.ask(
        "INSERT INTO activity_milter.node AS known (id, arrivals, seen, program) VALUES ($1, 1, activity_milter.at(NULL), $2)
         ON CONFLICT (id) DO UPDATE SET arrivals = known.arrivals + 1, seen = excluded.seen, program = excluded.program",
        &[(&node, Type::TEXT), (&env!("CARGO_PKG_VERSION"), Type::TEXT)],
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
    let rows = inner.lookers.lend(LOOK_TIME).await?.ask(guarantee::ASK, &[]).await?;
    let row = rows.first().ok_or_else(|| StorageError::Other("the database says nothing".to_owned()))?;
    Ok(Guarantee::of(row))
}

/// Reads the guarantee, and says when it goes and comes.
async fn look(inner: &Inner, is_unsafe: &mut bool) -> Result<(), StorageError> {
    let found = guarantee(inner).await?;
    let lack = found.lacks(inner.require_replication);
    *inner.guarantee.lock().unwrap_or_else(PoisonError::into_inner) = found;
    metrics::queue_safe(lack.is_none());
    match &lack {
        Some(why) if !*is_unsafe => events::queue_unsafe(&inner.name, why),
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
