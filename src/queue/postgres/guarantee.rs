//! What the database promises when it says "committed", as it is at this moment.
//!
//! In: what the server is set to. Out: whether a commit is on a standby too, or at least on its own disk.
//! Promise: it is a connection's own, for each session has settings of its own, and is read where it counts: on each new
//! connection, and on the one that commits, right behind the commit. Tools that watch over a cluster (Patroni and the like)
//! take `synchronous_standby_names` away at run time; whoever waits for a standby then is told "committed", without a warning.

use tokio_postgres::Row;

/// What is asked.
pub(super) const ASK: &str = "
    SELECT current_setting('synchronous_standby_names'), current_setting('synchronous_commit'),
           (SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')),
           (SELECT count(*) FROM pg_stat_replication WHERE sync_state IS NULL),
           current_setting('fsync'), current_setting('client_min_messages')";

/// The same behind a commit: it has returned, so whoever had to confirm it was there.
pub(super) const ASK_BEHIND: &str = "
    SELECT current_setting('synchronous_standby_names'), current_setting('synchronous_commit'), NULL::int8, NULL::int8,
           current_setting('fsync'), current_setting('client_min_messages')";

/// What is promised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Guarantee {
    /// Whose word a commit waits for; empty: nobody's.
    names: String,
    /// `synchronous_commit` of our sessions.
    commit: String,
    /// Standbys that are there and must confirm; none: this user may not see it.
    standbys: Option<i64>,
    fsync: String,
    /// What the server tells its clients; a wait that was cancelled is told as a warning.
    messages: String,
}

impl Guarantee {
    pub(super) fn of(row: &Row) -> Self {
        let (sure, unseen): (Option<i64>, Option<i64>) = (row.get(2), row.get(3));
        let standbys = sure.filter(|_| unseen == Some(0));
        Self { names: row.get(0), commit: row.get(1), standbys, fsync: row.get(4), messages: row.get(5) }
    }

    /// A commit is on a standby's disk too.
    pub(super) fn is_replicated(&self) -> bool {
        !self.names.is_empty() && matches!(self.commit.as_str(), "on" | "remote_apply")
    }

    /// Why nothing may be put now.
    pub(super) fn lacks(&self, require_replication: bool) -> Option<String> {
        if self.commit == "off" {
            let remedy = "set it to \"on\" for our user (ALTER ROLE … SET synchronous_commit = on)";
            return Some(format!("synchronous_commit is off, so a commit is on no disk: {remedy}"));
        }
        if !self.names.is_empty() && self.messages == "error" {
            let remedy =
                "set it to \"warning\" for our user (ALTER ROLE … SET client_min_messages = warning)";
            return Some(format!(
                "client_min_messages is \"error\", so nobody would hear that the wait for a standby was cancelled: {remedy}"
            ));
        }
        if self.is_replicated() && self.standbys == Some(0) {
            let remedy = "start one, or change synchronous_standby_names";
            return Some(format!(
                "none of the standbys of synchronous_standby_names ({}) is there, so no commit returns: {remedy}",
                self.names
            ));
        }
        if !require_replication || self.is_replicated() {
            return None;
        }
        Some(if self.names.is_empty() {
            "synchronous_standby_names is empty, so a commit is on one disk alone: set it, or queue.require_replication = false"
                .to_owned()
        } else {
            format!(
                "synchronous_commit is \"{}\", so a commit does not wait for a standby's disk: set it to \"on\" for our user",
                self.commit
            )
        })
    }

    /// Where a commit is, for people.
    pub(super) fn words(&self) -> String {
        let mut words = match self.is_replicated() {
            true => format!("a commit waits for a standby ({})", self.names),
            false => "a commit is on one disk".to_owned(),
        };
        if let Some(standbys) = self.standbys.filter(|_| self.is_replicated()) {
            words = format!("{words}, and {standbys} are there");
        }
        if self.fsync == "off" {
            words.push_str("; fsync is off, so a power cut loses what was accepted");
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guarantee(names: &str, commit: &str) -> Guarantee {
        Guarantee {
            names: names.to_owned(),
            commit: commit.to_owned(),
            standbys: Some(1),
            fsync: "on".to_owned(),
            messages: "notice".to_owned(),
        }
    }

    #[test]
    fn what_is_promised_is_what_the_server_is_set_to() {
        for (names, commit, alone, replicated) in [
            ("", "on", true, false),
            ("", "off", false, false),
            ("one", "on", true, true),
            ("one", "remote_apply", true, true),
            ("one", "remote_write", true, false),
            ("one", "local", true, false),
            ("one", "off", false, false),
        ] {
            let found = guarantee(names, commit);
            let takes = |required| found.lacks(required).is_none();
            assert_eq!((takes(false), takes(true)), (alone, replicated), "{names:?} {commit}");
            assert_eq!(found.is_replicated(), replicated);
            assert_eq!(found.words().contains("and 1 are there"), replicated, "{}", found.words());
            // Nobody confirms: it would be waited for in vain.
            for (standbys, confirms) in [(Some(0), false), (Some(1), true), (None, true)] {
                let found = Guarantee { standbys, ..found.clone() };
                let takes = |required| found.lacks(required).is_none();
                let confirms = confirms || !replicated;
                assert_eq!(
                    (takes(false), takes(true)),
                    (alone && confirms, replicated && confirms),
                    "{names:?} {commit}"
                );
            }
            // A warning that is not sent cannot be missed.
            for (messages, hears) in [("debug5", true), ("log", true), ("warning", true), ("error", false)] {
                let found = Guarantee { messages: messages.to_owned(), ..found.clone() };
                let takes = |required| found.lacks(required).is_none();
                let hears = hears || names.is_empty();
                assert_eq!(
                    (takes(false), takes(true)),
                    (alone && hears, replicated && hears),
                    "{names:?} {commit} {messages}"
                );
            }
        }
    }
}
