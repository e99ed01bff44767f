//! Whether somebody has a row.
//!
//! In: the columns `until` and `node`, and `t.now`, the time by the server's clock. Out: SQL that says so, the same wherever it is asked.

/// Who has what is on its way to another queue; [`IS_FREE`] names it.
pub(super) const MOVER: &str = "queue move";

/// Nobody has a row: neither by a lease that runs, nor by one whose time is over and that a node has of which is not known that it
/// is gone, be it ourselves. That one may be delivering it, or owe us the word that it did; its leases end when it says so
/// (`end_leases`), or when nothing is heard of it (`bury`). A clock does not say it: the server was away for hours, or the time of one
/// that takes over leaps. What a move had that was cut off waits for the next one, or for a person (`upkeep::hold_cut_off`).
pub(super) const IS_FREE: &str = "(until IS NULL OR until <= (SELECT now FROM t)
    AND coalesce(node, '') NOT IN (SELECT living.id FROM activity_milter.node AS living UNION ALL SELECT 'queue move'))";

/// A statement in which `IS_FREE` says that nobody has a row.
pub(super) fn with_free(sql: &str) -> String {
    sql.replace("IS_FREE", IS_FREE)
}
