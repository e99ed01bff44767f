//! The queue as people see it, from another process or another thread while the service runs: what is in it, and the
//! few things that a person does with it.
//!
//! In: a filter. Out: entries; changes that the service notices within a second.
//! Promise: what is being delivered is not touched; a key stays known for seven days after its activity was dropped.
//! Fails: [`LedgerError`].

use super::{KEY_MEMORY, Settings, StorageError, millis, row, schema, spool::Spool};
use crate::activity::{Activity, Cut, Raw};
use rusqlite::{Connection, OpenFlags, Row, ToSql, Transaction, TransactionBehavior, params};
use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

/// How long another process may hold the database before we give up.
const BUSY: Duration = Duration::from_secs(10);

/// Where an activity stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// For its first or next attempt.
    Waiting,
    /// Being attempted now.
    InFlight,
    /// For a person.
    Held,
}

impl State {
    /// The name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::InFlight => "in-flight",
            Self::Held => "held",
        }
    }
}

/// Which activities.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Keys, or their beginnings; none: all.
    pub keys: Vec<String>,
    /// The tenant's id or prefix.
    pub tenant: Option<String>,
    /// The state.
    pub state: Option<State>,
    /// Accepted before.
    pub before: Option<SystemTime>,
    /// At most so many, the oldest.
    pub limit: Option<usize>,
}

/// An activity in the queue.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The row.
    pub id: i64,
    /// The key.
    pub key: String,
    /// The tenant's id.
    pub tenant: String,
    /// The project's number.
    pub project: Option<String>,
    /// Postfix's queue id.
    pub queue_id: Option<String>,
    /// Where it stands.
    pub state: State,
    /// Attempts made.
    pub attempts: u32,
    /// When it was accepted, or last retried by a person.
    pub accepted_at: SystemTime,
    /// When it is attempted next, or when its lease ends.
    pub due: SystemTime,
    /// Why the last attempt failed, or why it is held.
    pub reason: Option<String>,
}

/// Everything of an activity.
#[derive(Debug)]
pub struct Item {
    /// The entry.
    pub entry: Entry,
    /// The activity's JSON.
    pub json: String,
    /// The activity.
    pub activity: Activity,
    /// Where its files lie.
    pub cuts: Vec<Cut>,
    /// The message.
    pub raw: Raw,
}

/// Numbers of one tenant.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TenantCounts {
    /// The tenant's id.
    pub tenant: String,
    /// Waiting or in flight.
    pub waiting: u64,
    /// Held.
    pub held: u64,
}

/// Why the ledger cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// No file.
    #[error("there is no queue at {0}: has the service run with this configuration?")]
    Missing(PathBuf),
    /// Another schema.
    #[error(
        "queue {path} has schema {found}, and this version knows {known}: start this version's service once"
    )]
    OtherSchema {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: i64,
        /// What we can read.
        known: i64,
    },
    /// SQLite or the disk failed.
    #[error("queue: {0}")]
    Storage(#[from] StorageError),
}

impl From<rusqlite::Error> for LedgerError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Storage(error.into())
    }
}

/// A second look at the queue.
#[derive(Debug)]
pub struct Ledger {
    database: Connection,
    spool: Spool,
}

const COLUMNS: &str = "item.id, key, tenant, json_extract(activity, '$.project.number'),
    json_extract(activity, '$.envelope.queue_id'), state, leased, attempts, accepted_at, due, reason";

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let time = |column| -> rusqlite::Result<SystemTime> {
        let millis: i64 = row.get(column)?;
        Ok(SystemTime::UNIX_EPOCH + Duration::from_millis(millis.unsigned_abs()))
    };
    let state = match (row.get(5)?, row.get(6)?) {
        (1, _) => State::Held,
        (_, true) => State::InFlight,
        (_, false) => State::Waiting,
    };
    Ok(Entry {
        id: row.get(0)?,
        key: row.get(1)?,
        tenant: row.get(2)?,
        project: row.get(3)?,
        queue_id: row.get(4)?,
        state,
        attempts: row.get(7)?,
        accepted_at: time(8)?,
        due: time(9)?,
        reason: row.get(10)?,
    })
}

impl Ledger {
    /// Opens the queue of these settings, whether the service runs or not.
    /// # Errors
    /// [`LedgerError`].
    pub fn open(settings: &Settings) -> Result<Self, LedgerError> {
        if !settings.path.exists() {
            return Err(LedgerError::Missing(settings.path.clone()));
        }
        let database = Connection::open_with_flags(&settings.path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        database.busy_timeout(BUSY)?;
        let found: i64 = database.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if found != schema::VERSION {
            let path = settings.path.clone();
            return Err(LedgerError::OtherSchema { path, found, known: schema::VERSION });
        }
        Ok(Self { database, spool: Spool::new(&settings.spool) })
    }

    /// The activities that a filter lets through, oldest first.
    /// # Errors
    /// [`LedgerError`].
    pub fn list(&self, filter: &Filter) -> Result<Vec<Entry>, LedgerError> {
        let mut found = Vec::new();
        let keys: Vec<Option<&str>> = match filter.keys.as_slice() {
            [] => vec![None],
            keys => keys.iter().map(|key| Some(key.as_str())).collect(),
        };
        for key in keys {
            found.extend(self.list_of(filter, key)?);
        }
        if let Some(limit) = filter.limit {
            found.truncate(limit);
        }
        Ok(found)
    }

    fn list_of(&self, filter: &Filter, key: Option<&str>) -> Result<Vec<Entry>, LedgerError> {
        // Only the conditions that are asked for, so that each query has the index that suits it.
        let mut conditions = vec!["1"];
        let key = key.map(full_key);
        let end = key.as_ref().map(|key| format!("{key}~"));
        if key.is_some() {
            conditions.push("item.id IN (SELECT item FROM seen WHERE key >= :key AND key < :end)");
        }
        if filter.tenant.is_some() {
            conditions.push("(tenant = :tenant OR json_extract(activity, '$.tenant.prefix') = :tenant)");
        }
        conditions.extend(filter.state.map(|state| match state {
            State::Waiting => "state = 0 AND leased = 0",
            State::InFlight => "state = 0 AND leased = 1",
            State::Held => "state = 1",
        }));
        if filter.before.is_some() {
            conditions.push("accepted_at < :before");
        }
        let sql = format!(
            "SELECT {COLUMNS} FROM item WHERE {} ORDER BY item.id LIMIT :limit",
            conditions.join(" AND ")
        );
        let limit = filter.limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(-1));
        let before = filter.before.map(millis);
        let mut values: Vec<(&str, &dyn ToSql)> = vec![(":limit", &limit)];
        if let (Some(key), Some(end)) = (&key, &end) {
            values.extend([(":key", key as &dyn ToSql), (":end", end)]);
        }
        values.extend(filter.tenant.as_ref().map(|tenant| (":tenant", tenant as &dyn ToSql)));
        values.extend(before.as_ref().map(|before| (":before", before as &dyn ToSql)));
        let mut statement = self.database.prepare(&sql)?;
        Ok(statement.query_map(values.as_slice(), entry)?.collect::<rusqlite::Result<Vec<_>>>()?)
    }

    /// Everything of one activity.
    /// # Errors
    /// [`LedgerError`], also if its spool file is gone.
    pub fn item(&self, id: i64) -> Result<Item, LedgerError> {
        type Message = (String, String, Option<Vec<u8>>, Option<String>, Option<String>);
        let sql = format!(
            "SELECT {COLUMNS}, activity, cuts, body, spool, text FROM item JOIN message ON message.id = item.message
             WHERE item.id = ?1"
        );
        let (entry, (json, cuts, body, spool, text)): (Entry, Message) =
            self.database.query_row(&sql, [id], |row| {
                Ok((entry(row)?, (row.get(11)?, row.get(12)?, row.get(13)?, row.get(14)?, row.get(15)?)))
            })?;
        let raw = self.spool.message(body, spool)?;
        let (activity, json) = row::whole(json, text.as_deref(), &raw)?;
        let cuts = serde_json::from_str(&cuts).map_err(row::damaged)?;
        Ok(Item { activity, cuts, entry, json, raw })
    }

    /// Has activities attempted at once, as if they had just been accepted; how many. All of these or none.
    /// # Errors
    /// [`LedgerError`].
    pub fn retry(&self, ids: &[i64]) -> Result<usize, LedgerError> {
        let now = millis(SystemTime::now());
        let sql = "UPDATE item SET state = 0, due = ?2, attempts = 0, accepted_at = ?2 WHERE id = ?1 AND leased = 0";
        self.update(ids, |database, id| database.prepare_cached(sql)?.execute(params![id, now]))
    }

    /// Holds activities that wait; how many. All of these or none.
    /// # Errors
    /// [`LedgerError`].
    pub fn hold(&self, ids: &[i64], reason: &str) -> Result<usize, LedgerError> {
        // Whoever holds it knows.
        let sql =
            "UPDATE item SET state = 1, reason = ?2, notified = 1 WHERE id = ?1 AND state = 0 AND leased = 0";
        self.update(ids, |database, id| database.prepare_cached(sql)?.execute(params![id, reason]))
    }

    /// Forgets activities that are not being delivered; how many. All of these or none.
    /// # Errors
    /// [`LedgerError`].
    pub fn drop(&self, ids: &[i64]) -> Result<usize, LedgerError> {
        let forget_at = millis(SystemTime::now() + KEY_MEMORY);
        let mut unused = Vec::new();
        let dropped = self.update(ids, |database, id| {
            let sql = "SELECT EXISTS (SELECT 1 FROM item WHERE id = ?1 AND leased = 0)";
            let free: bool = database.prepare_cached(sql)?.query_row([id], |row| row.get(0))?;
            if free {
                unused.extend(super::remove(database, id, forget_at)?);
            }
            Ok(usize::from(free))
        })?;
        unused.iter().for_each(|name| self.spool.remove(name));
        Ok(dropped)
    }

    fn update(
        &self,
        ids: &[i64],
        mut work: impl FnMut(&Connection, i64) -> rusqlite::Result<usize>,
    ) -> Result<usize, LedgerError> {
        // Immediate: a transaction that begins as a reader and writes later may be told "busy" at once.
        let transaction = Transaction::new_unchecked(&self.database, TransactionBehavior::Immediate)?;
        let mut changed = 0;
        for &id in ids {
            changed += work(&transaction, id)?;
        }
        transaction.commit()?;
        Ok(changed)
    }

    /// Numbers by tenant.
    /// # Errors
    /// [`LedgerError`].
    pub fn by_tenant(&self) -> Result<Vec<TenantCounts>, LedgerError> {
        let counts = self
            .database
            .prepare(
                "SELECT tenant, sum(waiting), sum(held) FROM (
                     SELECT tenant, count(*) AS waiting, 0 AS held FROM item WHERE state = 0 GROUP BY tenant
                     UNION ALL
                     SELECT tenant, 0, count(*) FROM item WHERE state = 1 GROUP BY tenant
                 ) GROUP BY tenant ORDER BY 2 + 3 DESC, tenant",
            )?
            .query_map([], |row| {
                let count = |column| row.get::<_, i64>(column).map(i64::unsigned_abs);
                Ok(TenantCounts { tenant: row.get(0)?, waiting: count(1)?, held: count(2)? })
            })?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        Ok(counts)
    }
}

/// People copy keys with and without `b3:`.
fn full_key(key: &str) -> String {
    if key.starts_with("b3:") { key.to_owned() } else { format!("b3:{key}") }
}
