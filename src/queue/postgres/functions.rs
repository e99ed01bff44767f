//! The functions of the database, made at a start.
//!
//! In: a connection. Out: whether they are there.
//! Promise: what is there is left as it is; several that start at once make them once.
//! Fails: never. Who may not make functions is told so once, and sends the statements themselves.

use super::{
    lease,
    line::Line,
    look, put,
    routine::{Made, Routine},
};
use crate::observe::events;
use crate::queue::StorageError;
use tokio_postgres::types::Type;

/// All of them.
static ALL: [&Routine; 5] = [&put::PUT, &lease::CHOOSE, &lease::TAKEN, &lease::OTHERS, &look::OPEN];

/// Who makes functions has this lock.
const LOCK: i64 = 0x616d_2d72_6f75_7469;

/// Makes those that are not there; whether all are.
pub(super) async fn prepare(line: &mut Line) -> bool {
    match make(line).await {
        Ok(()) => true,
        Err(error) => {
            events::queue_plain(&error);
            false
        }
    }
}

async fn make(line: &mut Line) -> Result<(), StorageError> {
    if lacking(line).await?.is_empty() {
        return Ok(());
    }
    line.begin().await?;
    line.ask("SELECT pg_advisory_xact_lock($1)", &[(&LOCK, Type::INT8)]).await?;
    for one in lacking(line).await? {
        line.batch(&one.create).await?;
    }
    line.commit().await
}

async fn lacking(line: &mut Line) -> Result<Vec<&'static Made>, StorageError> {
    let names: Vec<&str> = ALL.iter().map(|one| one.name.as_str()).collect();
    let rows = line
        .ask(
            "SELECT proname::text FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
             WHERE nspname = 'activity_milter' AND proname = ANY ($1::text[])",
            &[(&names, Type::TEXT_ARRAY)],
        )
        .await?;
    let there: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    Ok(ALL.iter().map(|one| &***one).filter(|one| !there.contains(&one.name.as_str())).collect())
}
