//! Puts a message in the place of one that was lost.
//!
//! In: a message of which some activities are known. Out: which of these had lost theirs, and have this one now.
//! Promise: an activity that nobody could ever send again waits, as if it were accepted now, once the same e-mail came again.
//! What a courier has at this moment is left alone.
//! Fails: [`StorageError`]; then the message is not accepted, and comes again.
//!
//! A server loses no row by itself: this is for whoever dropped a day's table, or restored a copy without it.

use super::{Inner, free::with_free, mail::Mail, payload};
use crate::queue::StorageError;
use std::{collections::HashSet, sync::LazyLock};
use tokio_postgres::types::Type;

/// Those of these keys whose activity has no words, or no message, or not all of it: a piece is not there, or the last one is
/// as long as only a piece can be that others follow, and the message that came has another number of them ($2).
const LOST: &str = "
    SELECT key.key
    FROM unnest($1::bytea[]) AS asked (key) JOIN activity_milter.key ON key.key = asked.key
    JOIN activity_milter.item ON item.id = key.item
    WHERE NOT EXISTS (
            SELECT FROM activity_milter.payload
            WHERE payload.day = item.day AND payload.id = item.id AND part = 0 AND activity IS NOT NULL)
        OR NOT EXISTS (
            SELECT FROM activity_milter.payload
            WHERE payload.day = item.day AND payload.id = item.letter AND part = 0 AND bytes IS NOT NULL)
        OR EXISTS (
            SELECT FROM activity_milter.payload WHERE payload.day = item.day AND payload.id = item.letter
            HAVING count(bytes) <> max(part) + 1
                OR max(part) + 1 <> $2 AND (array_agg(octet_length(bytes) ORDER BY part DESC))[1] = 524288)";

/// One of them waits anew, with its message beside it from here on.
static MEND: LazyLock<String> = LazyLock::new(|| with_free(MEND_ONE));

const MEND_ONE: &str = "
    WITH t AS MATERIALIZED (SELECT activity_milter.at($1) AS now),
    lost AS MATERIALIZED (
        SELECT item.id, state, aged FROM activity_milter.key JOIN activity_milter.item ON item.id = key.item CROSS JOIN t
        WHERE key.key = $2 AND IS_FREE FOR UPDATE OF item),
    old AS (
        DELETE FROM activity_milter.payload USING lost, t
        WHERE payload.id = lost.id AND payload.day = now / 86400000 AND part > 0),
    words AS (
        INSERT INTO activity_milter.payload (day, id, part, brief, activity, cuts, text, bytes)
        SELECT now / 86400000, id, 0, $3, $4, $5, $6, $7 FROM lost, t
        ON CONFLICT (day, id, part) DO UPDATE
        SET brief = excluded.brief, activity = excluded.activity, cuts = excluded.cuts, text = excluded.text,
            bytes = excluded.bytes),
    mended AS (
        UPDATE activity_milter.item
        SET letter = lost.id, day = now / 86400000, size = $8, state = 0, due = now, accepted_at = now, attempts = 0,
            aged = false, held_at = NULL, reason = NULL, until = NULL
        FROM lost, t WHERE item.id = lost.id RETURNING item.id, tenant, lost.state AS was, lost.aged AS was_aged),
    counted AS (
        INSERT INTO activity_milter.delta (tenant, waiting, held, aged)
        SELECT tenant, 1, -CASE WHEN was_aged THEN 0 ELSE 1 END, -CASE WHEN was_aged THEN 1 ELSE 0 END
        FROM mended WHERE was = 1)
    SELECT id, now FROM mended, t";

/// For each activity of a message whether it was mended; those that are new were not.
pub(super) async fn mend(inner: &Inner, mail: &Mail, fresh: &[bool]) -> Result<Vec<bool>, StorageError> {
    let mut mended = vec![false; fresh.len()];
    let columns = &mail.columns;
    let known: Vec<&Vec<u8>> =
        columns.keys.iter().zip(fresh).filter(|(_, fresh)| !**fresh).map(|(key, _)| key).collect();
    if known.is_empty() {
        return Ok(mended);
    }
    let mut line = inner.lines.lend(inner.patience).await?;
    let pieces = i32::try_from(mail.raw.len().div_ceil(payload::PART as u64).max(1)).unwrap_or(i32::MAX);
    let rows = line.ask(LOST, &[(&known, Type::BYTEA_ARRAY), (&pieces, Type::INT4)]).await?;
    let lost: HashSet<Vec<u8>> = rows.iter().map(|row| row.get(0)).collect();
    for (at, key) in columns.keys.iter().enumerate().filter(|(_, key)| lost.contains(*key)) {
        line.begin().await?;
        let first = payload::part(&mail.raw, 0).await?;
        let rows = line
            .ask(
                &MEND,
                &[
                    (&inner.when.given(), Type::INT8),
                    (key, Type::BYTEA),
                    (&columns.briefs[at], Type::TEXT),
                    (&columns.activities[at], Type::TEXT),
                    (&mail.cuts, Type::TEXT),
                    (&mail.text, Type::TEXT),
                    (&&first[..], Type::BYTEA),
                    (&columns.sizes[at], Type::INT8),
                ],
            )
            .await?;
        if let Some(row) = rows.first() {
            payload::write_rest(&mut line, (row.get(0), row.get(1)), &mail.raw, inner.patience).await?;
            mended[at] = true;
        }
        line.commit_for_good().await?;
    }
    Ok(mended)
}
