//! Who moves all of the queue away has it for himself.
//!
//! In: whoever moves something out of the queue, or into it. Out: whether he may.
//! Promise: at the moment when something is taken in from another queue, nobody moves anything away; and what was moved away
//! leaves only if nobody else has moved anything since its page was asked for. So no row is taken for known elsewhere because
//! of one that is about to leave, and nobody's two moves leave the same row.
//! Fails: [`StorageError::Leaving`]; whoever was stopped for longer than [`HOLD`] is [`StorageError::Busy`], and begins anew.
//!
//! The essay: two moves the other way round at once, A to B and B to A, would each find the other's rows known, and both would
//! let go of what they believe the other has. A row of one table says who leaves and until when, so that one who was killed
//! keeps nobody away for ever, and no session has to last (PgBouncer). Taking in holds that row shared until its commit, and
//! leaving changes it, so that one of the two waits for the other and then sees it. Letting go locks the row first and looks
//! at the clock afterwards: whoever waits for the lock may have outlived his time.

use super::{Inner, line::Line};
use crate::queue::{StorageError, watch::span};
use std::time::Duration;
use tokio_postgres::types::Type;

/// How long a page may take.
pub(super) const HOLD: Duration = Duration::from_secs(300);

/// From here on it is ours, unless somebody else has it.
pub(super) async fn leave(inner: &Inner, line: &mut Line) -> Result<(), StorageError> {
    let ours = line
        .ask(
            "UPDATE activity_milter.leaving SET until = activity_milter.at($1) + $2, who = $3
             WHERE who = $3 OR until <= activity_milter.at($1) RETURNING 1",
            &[(&inner.when.given(), Type::INT8), (&span(HOLD), Type::INT8), (&inner.mover, Type::TEXT)],
        )
        .await?;
    if ours.is_empty() { Err(StorageError::Leaving) } else { Ok(()) }
}

/// Within a transaction that lets something go: it was ours without a break, and nobody takes anything in until it ends.
pub(super) async fn has_left(inner: &Inner, line: &mut Line) -> Result<(), StorageError> {
    line.ask("SELECT 1 FROM activity_milter.leaving FOR UPDATE", &[]).await?;
    let ours = line
        .ask(
            "UPDATE activity_milter.leaving SET until = activity_milter.at($1) + $2
             WHERE who = $3 AND until > activity_milter.at($1) RETURNING 1",
            &[(&inner.when.given(), Type::INT8), (&span(HOLD), Type::INT8), (&inner.mover, Type::TEXT)],
        )
        .await?;
    let late = "this took too long, and others may have moved something meanwhile: say the same again";
    if ours.is_empty() { Err(StorageError::Busy(late.to_owned())) } else { Ok(()) }
}

/// Within a transaction that takes something in: nobody leaves until it ends.
pub(super) async fn may_take_in(inner: &Inner, line: &mut Line) -> Result<(), StorageError> {
    let free = line
        .ask(
            "SELECT 1 FROM activity_milter.leaving WHERE until <= activity_milter.at($1) FOR SHARE",
            &[(&inner.when.given(), Type::INT8)],
        )
        .await?;
    if free.is_empty() { Err(StorageError::Leaving) } else { Ok(()) }
}

/// It is nobody's any more, if it was ours. `is_done`: and nothing has the hold of a move, of one before neither.
pub(super) async fn rest(inner: &Inner, is_done: bool) -> Result<(), StorageError> {
    let rest = "UPDATE activity_milter.leaving SET until = CASE WHEN $2 THEN 0 ELSE 1 END WHERE who = $1 AND until > 0";
    let values = [(&inner.mover as _, Type::TEXT), (&is_done as _, Type::BOOL)];
    inner.lines.lend(super::LOOK_TIME).await?.ask(rest, &values).await?;
    Ok(())
}

/// Something may have the hold of a move that was cut off.
pub(super) async fn was_cut_off(inner: &Inner, line: &mut Line) -> Result<bool, StorageError> {
    let asked = "SELECT 1 FROM activity_milter.leaving WHERE until > 0 AND until <= activity_milter.at($1)";
    Ok(!line.ask(asked, &[(&inner.when.given(), Type::INT8)]).await?.is_empty())
}

/// Nothing has it any more, if nobody has begun to move meanwhile.
pub(super) async fn is_over(inner: &Inner, line: &mut Line) -> Result<(), StorageError> {
    let over =
        "UPDATE activity_milter.leaving SET until = 0 WHERE until > 0 AND until <= activity_milter.at($1)";
    line.ask(over, &[(&inner.when.given(), Type::INT8)]).await?;
    Ok(())
}
