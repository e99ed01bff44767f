//! Words to all nodes that what their directories learnt is past its time.
//!
//! In: prefixes of tenants. Out: what was said since a number.
//! Promise: the numbers have no gaps and are given in the order in which the words are seen: whoever has seen one has seen
//! all before it. Nobody listens for them (`LISTEN` needs a session, which PgBouncer does not give): each node asks now
//! and then, and one that was away hears what it missed.
//! Fails: [`StorageError`].

use super::{Inner, LOOK_TIME};
use crate::queue::{EXPIRED_KEPT, Expired, StorageError};
use tokio_postgres::types::Type;

/// The lock of who says something.
const LOCK: i64 = 0x616d_2d65_7870_6972;

/// Says it; words that are old go, but never the newest.
pub(super) async fn say(inner: &Inner, prefixes: &[String]) -> Result<(), StorageError> {
    let kept = i64::try_from(EXPIRED_KEPT.as_millis()).unwrap_or(i64::MAX);
    let prefixes: Vec<String> = prefixes.iter().map(|prefix| super::text(prefix)).collect();
    let mut line = inner.lookers.lend(LOOK_TIME).await?;
    line.begin().await?;
    line.ask("SELECT pg_advisory_xact_lock($1)", &[(&LOCK, Type::INT8)]).await?;
    line.ask(
        "WITH last AS MATERIALIZED (SELECT coalesce(max(number), 0) AS number FROM activity_milter.expired),
         gone AS (DELETE FROM activity_milter.expired AS old USING last
             WHERE old.at < activity_milter.at($1) - $2 AND old.number < last.number)
         INSERT INTO activity_milter.expired (number, at, prefix)
         SELECT last.number + ord, activity_milter.at($1), prefix
         FROM last, unnest($3::text[]) WITH ORDINALITY AS given (prefix, ord)",
        &[(&inner.when.given(), Type::INT8), (&kept, Type::INT8), (&prefixes, Type::TEXT_ARRAY)],
    )
    .await?;
    line.commit().await
}

/// What was said.
pub(super) async fn look(inner: &Inner, after: Option<i64>) -> Result<Expired, StorageError> {
    let mut line = inner.lookers.lend(LOOK_TIME).await?;
    let rows = line
        .ask(
            "SELECT coalesce(min(number), 0), coalesce(max(number), 0),
                 coalesce(array_agg(DISTINCT prefix) FILTER (WHERE number > $1), '{}')
             FROM activity_milter.expired",
            &[(&after, Type::INT8)],
        )
        .await?;
    Ok(rows.first().map(|row| Expired::since(after, row.get(0), row.get(1), row.get(2))).unwrap_or_default())
}
