//! Statements that are done all the time, as functions of the database.
//!
//! In: a statement, the types of what it takes and gives. Out: the call of a function that does it.
//! Promise: a function does what the statement says and nothing else. Its name has the hash of all that it is, so what is there is
//! never changed, and several versions of this program work beside each other.
//! Fails: never; who makes them is `functions`.
//!
//! The essay: parsing and planning one of these costs the server several times what doing it costs, and a plan that is kept in a
//! session, a prepared statement, is what PgBouncer in transaction mode knows nothing of. A function in PL/pgSQL keeps the
//! plans of its statements where they are of use, in the server's process, whoever is served by that and whatever stands
//! between. Such a plan is for all values, and made when there may be little or nothing in the tables, so it is told to read no
//! table from its beginning to its end: indexes are right at all sizes.

use std::{fmt::Write as _, sync::LazyLock};
use tokio_postgres::types::Type;

/// A statement of which there is a function.
pub(super) type Routine = LazyLock<Made>;

/// A statement, the function that does it, and how that is called.
pub(super) struct Made {
    pub(super) sql: String,
    pub(super) call: String,
    pub(super) name: String,
    pub(super) create: String,
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
             SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET jit = off SET search_path = pg_catalog
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
