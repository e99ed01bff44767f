//! Finds what is known of a mail.
//!
//! In: the file, and a [`Query`]. Out: [`Found`]: mails, each with its events in their order, and how far the trace reaches.
//! Promise: indexes answer, whatever the number of rows (a test reads SQLite's plans); the writer does not wait for who
//! searches; nothing is changed.
//! Fails: [`SearchError`].

use super::{
    record::{key, millis},
    store::{APPLICATION, VERSION, may_be_a_database},
    term::Term,
};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, params_from_iter, types::Value};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

/// How long a search waits for a lock of another program.
const BUSY: Duration = Duration::from_secs(2);

/// Rows that a term may find, the newest.
const MOST_HITS: usize = 50;

/// Rows that are read of what belongs to them.
const MOST_EVENTS: usize = 5000;

/// What is looked for.
#[derive(Clone, Debug)]
pub struct Query {
    /// The words.
    pub term: Term,
    /// Only mails of which something happened since then.
    pub since: Option<SystemTime>,
    /// Only what is found until then: the newest are shown, and this leads to those before.
    pub until: Option<SystemTime>,
}

/// Something that happened, as it was noted. See [`super::Record`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields of Record")]
pub struct Event {
    pub id: i64,
    pub at: SystemTimeMs,
    pub what: String,
    pub transaction: Option<i64>,
    pub queue_id: Option<String>,
    pub key: Option<String>,
    pub message_id: Option<String>,
    pub sender: Option<String>,
    pub recipient: Option<String>,
    pub others: Vec<String>,
    pub tenant: Option<String>,
    pub project: Option<String>,
    pub door: Option<String>,
    pub client: Option<String>,
    pub stage: Option<String>,
    pub code: Option<u16>,
    pub status: Option<String>,
    pub reason: Option<String>,
    pub attempt: Option<u32>,
    pub span: Option<Duration>,
    pub detail: Option<String>,
}

/// Milliseconds since 1970, as the file has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SystemTimeMs(pub i64);

impl SystemTimeMs {
    /// The time.
    pub fn time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(self.0).unwrap_or_default())
    }
}

/// All that is known of one mail, the oldest first: what has a transaction, queue id or key in common.
#[derive(Clone, Debug, Default)]
pub struct Mail {
    /// What happened.
    pub events: Vec<Event>,
}

impl Mail {
    /// The values that its events have, each once, in their order.
    pub fn all<'a>(&'a self, of: impl Fn(&'a Event) -> Option<&'a str>) -> Vec<&'a str> {
        let mut seen = BTreeSet::new();
        self.events.iter().filter_map(of).filter(|value| seen.insert(*value)).collect()
    }

    /// Whom it went to: integration addresses, then others.
    pub fn recipients(&self) -> Vec<&str> {
        let others = self.events.iter().flat_map(|event| event.others.iter().map(String::as_str));
        let mut seen = BTreeSet::new();
        self.all(|event| event.recipient.as_deref())
            .into_iter()
            .chain(others)
            .filter(|value| seen.insert(*value))
            .collect()
    }
}

/// How far the trace reaches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Its oldest row; none if it is empty.
    pub oldest: Option<SystemTime>,
    /// Records that were not kept, of the time it reaches back.
    pub lost: u64,
}

/// The answer.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The newest first.
    pub mails: Vec<Mail>,
    /// There is more than is shown.
    pub more: bool,
    /// Until when that is, if it is older.
    pub older: Option<SystemTime>,
    /// How far the trace reaches.
    pub reach: Reach,
}

/// Why the trace cannot be searched.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// No file.
    #[error("there is no trace at {0}: the service makes it when it starts with this configuration")]
    Missing(PathBuf),
    /// Another program's.
    #[error("{0} is no trace: set another trace.path")]
    Foreign(PathBuf),
    /// Written by a newer version.
    #[error("trace {path} has schema {found}, and this version knows {VERSION}: use the newer activity-milter", path = path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: i64,
    },
    /// A damaged file.
    #[error("trace {path} is damaged: {message}. The service moves it aside when it writes next", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// SQLite's words.
        message: String,
    },
    /// Permissions, locks, the disk.
    #[error("trace {path} cannot be read: {message}. Only root and the service's user may read it", path = path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
}

impl SearchError {
    fn new(path: &Path, error: &rusqlite::Error) -> Self {
        let (path, message) = (path.to_owned(), error.to_string());
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged { path, message },
            _ => Self::Unusable { path, message },
        }
    }
}

/// Searches the file, beside whoever writes it.
/// # Errors
/// It cannot be read.
pub fn search(path: &Path, query: &Query) -> Result<Found, SearchError> {
    let database = open(path)?;
    let find = |query: &Query| find(&database, query).map_err(|error| SearchError::new(path, &error));
    let found = find(query)?;
    match query.term.as_key().filter(|_| found.mails.is_empty()) {
        // No queue id is that, but a key may begin so.
        Some(term) => find(&Query { term, ..query.clone() }),
        None => Ok(found),
    }
}

/// How far the trace reaches.
/// # Errors
/// It cannot be read.
pub fn look_at(path: &Path) -> Result<Reach, SearchError> {
    let database = open(path)?;
    reach(&database).map_err(|error| SearchError::new(path, &error))
}

fn open(path: &Path) -> Result<Connection, SearchError> {
    match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(SearchError::Unusable {
                path: path.to_owned(),
                message: "permission denied".to_owned(),
            });
        }
        Err(_) => return Err(SearchError::Missing(path.to_owned())),
        Ok(_) if !may_be_a_database(path).unwrap_or(true) => {
            return Err(SearchError::Foreign(path.to_owned()));
        }
        Ok(_) => {}
    }
    let wrong = |error: rusqlite::Error| SearchError::new(path, &error);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(path, flags).map_err(wrong)?;
    database.busy_timeout(BUSY).map_err(wrong)?;
    let number = |name: &str| database.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    match (number("application_id").map_err(wrong)?, number("user_version").map_err(wrong)?) {
        (APPLICATION, VERSION) => Ok(database),
        (APPLICATION, found) => Err(SearchError::Newer { path: path.to_owned(), found }),
        // The service is making it.
        (0, 0) if path.metadata().is_ok_and(|meta| meta.len() == 0) => {
            Err(SearchError::Missing(path.to_owned()))
        }
        _ => Err(SearchError::Foreign(path.to_owned())),
    }
}

fn reach(database: &Connection) -> rusqlite::Result<Reach> {
    let oldest =
        database.query_row("SELECT at FROM event ORDER BY id LIMIT 1", [], |row| row.get(0)).optional()?;
    let lost: i64 = database.query_row("SELECT coalesce(sum(records), 0) FROM loss", [], |row| row.get(0))?;
    Ok(Reach {
        oldest: oldest.map(|at| SystemTimeMs(at).time()),
        lost: u64::try_from(lost).unwrap_or_default(),
    })
}

const COLUMNS: &str = "e.id, e.at, e.what, e.mail, e.queue_id, e.key, e.message_id, e.sender, e.recipient, e.others, e.tenant, \
    e.project, e.door, e.client, e.stage, e.code, e.status, e.reason, e.attempt, e.span, e.detail";

/// A condition that an index answers, with its values.
type Condition = (&'static str, Vec<Value>);

/// By queue id, and by Message-ID, whatever has one word. The last parameter is the last row that counts; with the sign no
/// plan begins with it.
const BY_QUEUE_ID: &str = "event e WHERE e.queue_id = ?1 AND +e.id <= ?3";
const BY_MESSAGE_ID: &str = "event e WHERE e.message_id = ?1 AND +e.id <= ?3";
const BY_KEY: &str = "event e WHERE e.key BETWEEN ?1 AND ?2 AND +e.id <= ?4";
/// By what several have in common: lists, so that many mails are a few questions.
const BY_MAILS: &str = "event e WHERE e.mail IN (SELECT value FROM json_each(?1))";
const BY_QUEUE_IDS: &str = "event e WHERE e.queue_id IN (SELECT value FROM json_each(?1))";
const BY_KEYS: &str = "event e WHERE e.key IN (SELECT unhex(value) FROM json_each(?1))";
const BY_ADDRESS: &str =
    "address a CROSS JOIN event e ON e.id = a.event WHERE a.address = ?1 AND a.event <= ?3";

fn conditions(term: &Term) -> Vec<Condition> {
    let text = |text: &str| vec![Value::Text(text.to_owned())];
    match term {
        Term::Key(hex) => vec![(BY_KEY, between(hex))],
        Term::QueueId(id) => {
            let mut all = vec![(BY_QUEUE_ID, text(id)), (BY_MESSAGE_ID, text(id))];
            // Short ids are upper case, whatever somebody makes of them.
            let upper = id.to_ascii_uppercase();
            if upper != *id && id.bytes().all(|b| b.is_ascii_hexdigit()) {
                all.push((BY_QUEUE_ID, text(&upper)));
            }
            all
        }
        Term::Address { as_given, folded } => {
            vec![(BY_ADDRESS, text(folded)), (BY_MESSAGE_ID, text(as_given))]
        }
    }
}

/// The first and the last digest that begins with these digits.
fn between(hex: &str) -> Vec<Value> {
    let filled = |with: char| -> Vec<u8> {
        let digits: Vec<u8> = hex
            .chars()
            .chain(std::iter::repeat(with))
            .take(64)
            .filter_map(|digit| u8::try_from(digit.to_digit(16)?).ok())
            .collect();
        digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect()
    };
    vec![Value::Blob(filled('0')), Value::Blob(filled('f'))]
}

fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        id: row.get(0)?,
        at: SystemTimeMs(row.get(1)?),
        what: row.get(2)?,
        transaction: row.get(3)?,
        queue_id: row.get(4)?,
        key: row.get::<_, Option<Vec<u8>>>(5)?.map(|digest| key(&digest)),
        message_id: row.get(6)?,
        sender: row.get(7)?,
        recipient: row.get(8)?,
        others: row
            .get::<_, Option<String>>(9)?
            .map(|t| t.lines().map(str::to_owned).collect())
            .unwrap_or_default(),
        tenant: row.get(10)?,
        project: row.get(11)?,
        door: row.get(12)?,
        client: row.get(13)?,
        stage: row.get(14)?,
        code: row.get(15)?,
        status: row.get(16)?,
        reason: row.get(17)?,
        attempt: row.get(18)?,
        span: row
            .get::<_, Option<i64>>(19)?
            .map(|ms| Duration::from_millis(u64::try_from(ms).unwrap_or_default())),
        detail: row.get(20)?,
    })
}

/// The newest rows of a condition, at most `most`; of a term none behind `last`.
fn rows(
    database: &Connection,
    (from, values): &Condition,
    most: usize,
    last: Option<i64>,
) -> rusqlite::Result<Vec<Event>> {
    let sql = newest(from);
    let mut statement = database.prepare_cached(&sql)?;
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let limits = [Some(most), last].into_iter().flatten().map(Value::Integer);
    let found = statement.query_map(params_from_iter(values.iter().cloned().chain(limits)), event)?;
    found.collect()
}

/// The last row that was written by a time. Rows are numbered as they come, and a clock that was set back misleads by as much.
fn last_until(database: &Connection, until: i64) -> rusqlite::Result<i64> {
    let ends = "SELECT coalesce(min(id), 0), coalesce(max(id), 0) FROM event";
    let (mut first, mut last): (i64, i64) =
        database.query_row(ends, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut at = database.prepare_cached("SELECT at FROM event WHERE id >= ?1 ORDER BY id LIMIT 1")?;
    while first <= last {
        let middle = first + (last - first) / 2;
        let is_later =
            at.query_row([middle], |row| row.get::<_, i64>(0)).optional()?.is_none_or(|at| at > until);
        if is_later { last = middle - 1 } else { first = middle + 1 }
    }
    Ok(last)
}

fn newest(from: &str) -> String {
    // The table's own order is that of its index, so that nothing is sorted; keys alone are a range.
    let order = if from == BY_ADDRESS { "a.event" } else { "e.id" };
    let limit = if from == BY_KEY { "?3" } else { "?2" };
    format!("SELECT {COLUMNS} FROM {from} ORDER BY {order} DESC LIMIT {limit}")
}

fn find(database: &Connection, query: &Query) -> rusqlite::Result<Found> {
    // One moment for all of it.
    database.execute_batch("BEGIN")?;
    let reach = reach(database)?;
    let since = query.since.map(millis);
    let last = match query.until {
        Some(until) => last_until(database, millis(until))?,
        None => i64::MAX,
    };
    let mut all: BTreeMap<i64, Event> = BTreeMap::new();
    let mut older = None;
    for condition in conditions(&query.term) {
        let mut hits = rows(database, &condition, MOST_HITS + 1, Some(last))?;
        if hits.len() > MOST_HITS && hits.last().is_some_and(|hit| since.is_none_or(|s| hit.at.0 >= s)) {
            older = older.max(hits.last().map(|hit| hit.at));
        }
        hits.truncate(MOST_HITS);
        all.extend(hits.into_iter().map(|hit| (hit.id, hit)));
    }
    let is_cut = gather(database, &mut all)?;
    database.execute_batch("COMMIT")?;
    let mut mails = mails(all);
    mails.retain(|mail| since.is_none_or(|since| mail.events.iter().any(|event| event.at.0 >= since)));
    Ok(Found { mails, more: is_cut || older.is_some(), older: older.map(SystemTimeMs::time), reach })
}

/// What an event has in common with others of its mail.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Link {
    Mail(i64),
    QueueId(String),
    Key(String),
}

fn links(event: &Event) -> impl Iterator<Item = Link> {
    let mail = event.transaction.map(Link::Mail);
    let queue_id = event.queue_id.clone().map(Link::QueueId);
    [mail, queue_id, event.key.clone().map(Link::Key)].into_iter().flatten()
}

/// Adds what belongs to the same mails. True if that is more than is read.
fn gather(database: &Connection, all: &mut BTreeMap<i64, Event>) -> rusqlite::Result<bool> {
    let mut followed = std::collections::HashSet::new();
    loop {
        let open: Vec<Link> =
            all.values().flat_map(links).filter(|link| followed.insert(link.clone())).collect();
        if open.is_empty() {
            return Ok(false);
        }
        for condition in lists(&open) {
            let room = MOST_EVENTS.saturating_sub(all.len());
            // What is there already comes again.
            let found = rows(database, &condition, all.len() + room + 1, None)?;
            let new: Vec<Event> = found.into_iter().filter(|event| !all.contains_key(&event.id)).collect();
            let is_more = new.len() > room;
            all.extend(new.into_iter().take(room).map(|event| (event.id, event)));
            if is_more {
                return Ok(true);
            }
        }
    }
}

/// The links by their kinds, those that there are.
fn lists(links: &[Link]) -> Vec<Condition> {
    let (mut mails, mut queue_ids, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    for link in links {
        match link {
            Link::Mail(mail) => mails.push(serde_json::Value::from(*mail)),
            Link::QueueId(id) => queue_ids.push(serde_json::Value::from(id.as_str())),
            Link::Key(key) => keys.push(serde_json::Value::from(key.trim_start_matches("b3:"))),
        }
    }
    let all = [(BY_MAILS, mails), (BY_QUEUE_IDS, queue_ids), (BY_KEYS, keys)];
    let text = |values| vec![Value::Text(serde_json::Value::Array(values).to_string())];
    all.into_iter()
        .filter(|(_, values)| !values.is_empty())
        .map(|(from, values)| (from, text(values)))
        .collect()
}

/// Puts the events together that belong to one mail; the newest mail first.
fn mails(all: BTreeMap<i64, Event>) -> Vec<Mail> {
    let mut mails: Vec<Mail> = Vec::new();
    let mut of: HashMap<Link, usize> = HashMap::new();
    for event in all.into_values() {
        let links: Vec<Link> = links(&event).collect();
        let mut known: Vec<usize> = links.iter().filter_map(|link| of.get(link).copied()).collect();
        known.sort_unstable();
        known.dedup();
        let at = known.first().copied().unwrap_or_else(|| {
            mails.push(Mail::default());
            mails.len() - 1
        });
        // It shows that what looked like several mails is one.
        for other in known.into_iter().skip(1) {
            let events = std::mem::take(&mut mails[other].events);
            mails[at].events.extend(events);
            of.values_mut().filter(|mail| **mail == other).for_each(|mail| *mail = at);
        }
        of.extend(links.into_iter().map(|link| (link, at)));
        mails[at].events.push(event);
    }
    mails.retain(|mail| !mail.events.is_empty());
    mails.iter_mut().for_each(|mail| mail.events.sort_by_key(|event| event.id));
    mails.sort_by_key(|mail| std::cmp::Reverse(mail.events.last().map(|event| event.id)));
    mails
}

#[cfg(test)]
pub(super) mod plans {
    use super::*;

    /// SQLite's plan for each way of asking.
    pub(in crate::trace) fn all(database: &Connection) -> Vec<(&'static str, String)> {
        let plan = |from: &'static str| {
            let sql = format!("EXPLAIN QUERY PLAN {}", newest(from));
            let mut statement = database.prepare(&sql).unwrap();
            let values = vec![Value::Null; statement.parameter_count()];
            let lines = statement.query_map(params_from_iter(values), |row| row.get::<_, String>(3)).unwrap();
            (from, lines.map(Result::unwrap).collect::<Vec<_>>().join("; "))
        };
        [BY_QUEUE_ID, BY_MESSAGE_ID, BY_KEY, BY_ADDRESS, BY_MAILS, BY_QUEUE_IDS, BY_KEYS].map(plan).to_vec()
    }
}
