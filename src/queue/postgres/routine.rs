//! Statements that are done all the time, as functions of the database.
//!
//! In: a statement, the types of what it takes and gives. Out: the call of a function that does it.
//! Promise: a function does what the statement says and nothing else. Its name has the hash of all that it is, so what is there is
//! never changed, and several versions of this program work beside each other.
//! Fails: never. Who may not make functions, or has none any more, is told so once, and sends the statements themselves.
//!
//! The essay: parsing and planning one of these costs the server several times what doing it costs, and a plan that is kept in a
//! session, a prepared statement, is what PgBouncer in transaction mode knows nothing of. A function in PL/pgSQL keeps the
//! plans of its statements where they are of use, in the server's process, whoever is served by that and whatever stands
//! between. Such a plan is for all values, and made when there may be little or nothing in the tables, so it is told to read no
//! table from its beginning to its end: indexes are right at all sizes.

use super::{lease, line::Line, look, put};
use crate::observe::events;
use crate::queue::StorageError;
use std::{fmt::Write as _, sync::LazyLock};
use tokio_postgres::types::Type;

/// A statement of which there is a function.
pub(super) type Routine = LazyLock<Made>;

/// All of them.
static ALL: [&Routine; 5] = [&put::PUT, &lease::CHOOSE, &lease::TAKEN, &lease::OTHERS, &look::OPEN];

/// Who makes functions has this lock.
const LOCK: i64 = 0x616d_2d72_6f75_7469;

/// A statement, the function that does it, and how that is called.
pub(super) struct Made {
    pub(super) sql: String,
    pub(super) call: String,
    name: String,
    create: String,
}

impl Made {
    /// `takes`: the types of `$1` and so on; `gives`: those of the columns.
    pub(super) fn new(name: &str, takes: &[Type], gives: &[Type], sql: impl Into<String>) -> Self {
        let sql = sql.into();
        let list = |types: &[Type], begin: &str| {
            let mut list = String::new();
            for (number, one) in (1..).zip(types) {
                let comma = if number == 1 { "" } else { ", " };
                let begin = if begin.is_empty() { String::new() } else { format!("{begin}{number} ") };
                // Writing into a string fails never.
                let _ = write!(list, "{comma}{begin}pg_catalog.{}", one.name());
            }
            list
        };
        let rest = format!(
            "({}) RETURNS TABLE ({}) LANGUAGE plpgsql VOLATILE
             SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
             AS $routine$
             #variable_conflict use_column
             BEGIN RETURN QUERY {sql}; END $routine$",
            list(takes, ""),
            list(gives, "_")
        );
        let hash = blake3::hash(rest.as_bytes()).to_hex();
        let name = format!("{name}_{}", hash.get(..12).unwrap_or_default());
        let values: Vec<String> = (1..=takes.len()).map(|number| format!("${number}")).collect();
        let call = format!("SELECT * FROM activity_milter.{name}({})", values.join(", "));
        let create = format!("CREATE FUNCTION activity_milter.{name}{rest}");
        Self { sql, call, name, create }
    }
}

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
