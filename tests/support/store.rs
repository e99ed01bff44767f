//! Messages for a queue in a directory, and what must hold of it whatever happened before.

#![allow(dead_code, clippy::unwrap_used)] // each user needs another half; in tests a panic is the answer

use activity_milter::{
    activity::{Key, Owner, Parcel, Parties, Raw, TenantRef},
    mail::{Budget, Envelope, Head, Intake, LIMITS, Reader, Spill},
    queue::{
        self, Ask, End, Entry, Filter, HandClock, Item, Put, Queue, Settings, State, SystemClock, Ticket,
    },
};
use rusqlite::{Connection, OpenFlags};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

pub const DAYS: Duration = Duration::from_secs(5 * 24 * 3600);

/// More than is kept in memory.
pub const LARGE: usize = 140_000;

/// Longest wait for anything that should happen at once.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for a condition, with a deadline.
#[track_caller]
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A process that is killed, by its id, when it is dropped.
pub struct Running(pub Child);

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let running = command.stdin(Stdio::null()).spawn();
        Self(running.unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// This test program once more, with only the test `name`, which finds `value` in the environment variable `name`.
    pub fn this(name: &str, value: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(name, value);
        command.stdout(Stdio::null());
        Self::start(&mut command)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Without a reserve, in this directory.
pub fn settings(directory: &Path) -> Settings {
    let settings = Settings::new(directory.join("queue.db"), directory.join("spool"));
    Settings { min_free: 0, ..settings }
}

pub fn open(settings: &Settings) -> Arc<dyn Queue> {
    queue::open(settings, Arc::new(SystemClock)).unwrap_or_else(|error| panic!("{error}"))
}

/// A connection of another program.
pub fn other(settings: &Settings) -> Connection {
    let other = Connection::open_with_flags(&settings.path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
    other.busy_timeout(PATIENCE).unwrap();
    other
}

/// A message, by which its text is known: its Message-ID says all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Letter {
    pub id: usize,
    pub size: usize,
    /// For t and u, not for t alone.
    pub for_two: bool,
}

impl Letter {
    pub fn small(id: usize) -> Self {
        Self { id, size: 300, for_two: false }
    }

    pub fn large(id: usize) -> Self {
        Self { id, size: LARGE, for_two: false }
    }

    /// Of ten, two are large and for one, one is large and for two, three are small and for two.
    pub fn of_all_kinds(id: usize) -> Self {
        Self { id, size: if id % 10 < 3 { LARGE } else { 300 }, for_two: matches!(id % 10, 1 | 3 | 6 | 9) }
    }

    fn head(&self) -> String {
        let Self { id, size, for_two } = self;
        let kind = if *size < LARGE { "text/plain" } else { "image/png" };
        format!("Subject: s\r\nMessage-ID: <{id}.{size}.{for_two}@x>\r\nContent-Type: {kind}\r\n")
    }

    pub fn text(&self) -> Vec<u8> {
        let mut text = format!("{}\r\n{}", self.head(), self.id).into_bytes();
        text.resize(text.len() + self.size, b'x');
        text
    }

    fn read(message_id: &str) -> Self {
        let words: Vec<&str> = message_id.trim_end_matches("@x").split('.').collect();
        let number = |at: usize| words[at].parse().unwrap();
        Self { id: number(0), size: number(1), for_two: words[2] == "true" }
    }

    fn build(&self, raw: Raw) -> Parcel {
        let tenants: &[&str] = if self.for_two { &["t", "u"] } else { &["t"] };
        let parties = |tenant: &&str| Parties {
            tenant: TenantRef { id: (*tenant).to_owned(), prefix: (*tenant).to_owned() },
            activity_type: "Email".to_owned(),
            owner: Owner { user_id: "u".to_owned(), address: "a@x.test".to_owned(), name: None },
            participants: Arc::default(),
            people_omitted: 0,
            automatic: None,
            sender_authenticated: None,
            customer: None,
            project: None,
        };
        let envelope = Envelope {
            sender: None,
            recipients: Vec::new(),
            queue_id: None,
            client: None,
            is_local: false,
            is_plain: true,
            helo: None,
            login: None,
            intake: Intake::Milter,
        };
        let head = Head::parse(self.head().as_bytes()).unwrap();
        let body = Reader::whole(&self.text(), LIMITS);
        Parcel::build(tenants.iter().map(parties).collect(), &envelope, &head, body, raw, SystemTime::now())
    }

    /// As it is when it has arrived: in the spool, if it is large.
    pub async fn parcel(&self, spool: &Path) -> Parcel {
        let mut spill = Spill::new(spool, u64::MAX, &Budget::new(u64::MAX));
        for piece in self.text().chunks(65536) {
            spill.push(piece).await.unwrap();
        }
        self.build(spill.finish().await.unwrap().0)
    }

    pub fn keys(&self) -> Vec<Key> {
        static MADE: Mutex<BTreeMap<Letter, Vec<Key>>> = Mutex::new(BTreeMap::new());
        if let Some(keys) = MADE.lock().unwrap().get(self) {
            return keys.clone();
        }
        let parcel = self.build(Raw::from(self.text()));
        let keys: Vec<Key> = parcel.activities.into_iter().map(|activity| activity.key).collect();
        MADE.lock().unwrap().insert(*self, keys.clone());
        keys
    }
}

pub fn bytes(raw: &Raw) -> Vec<u8> {
    let mut bytes = Vec::new();
    let add = &mut |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    raw.decode(raw.whole(), add).unwrap();
    bytes
}

/// Opens a row, whose message must be whole.
pub async fn whole(queue: &dyn Queue, item: i64) -> (Letter, Item) {
    let item = queue.open(item).await.unwrap();
    let letter = Letter::read(item.activity.message_id.as_deref().unwrap());
    assert!(bytes(&item.raw) == letter.text(), "{letter:?}: other bytes");
    assert!(letter.keys().contains(&item.key), "{letter:?}: another key");
    (letter, item)
}

/// All that can be leased.
pub async fn lease_all(queue: &dyn Queue) -> Vec<Ticket> {
    let mut all = Vec::new();
    loop {
        let leased = queue.lease(Ask { room: 64, ..Ask::default() }).await.unwrap();
        if leased.tickets.is_empty() {
            return all;
        }
        all.extend(leased.tickets);
    }
}

/// Delivers all that waits: how often each was.
pub async fn drain(queue: &dyn Queue) -> BTreeMap<Key, usize> {
    let mut delivered = BTreeMap::new();
    for ticket in lease_all(queue).await {
        *delivered.entry(whole(queue, ticket.item).await.1.key).or_default() += 1;
        assert_eq!(queue.finish(vec![(ticket, End::Taken)]).await.unwrap(), [true]);
    }
    delivered
}

/// The folder of this database's files.
pub fn folder(settings: &Settings) -> PathBuf {
    let name: String = other(settings).query_row("SELECT database FROM meta", [], |row| row.get(0)).unwrap();
    settings.spool.join(name)
}

/// Numbers of the files in the folder.
pub fn files(folder: &Path) -> BTreeSet<i64> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter_map(|name| name.strip_suffix(".eml").map(|number| number.parse().unwrap())).collect()
}

/// Numbers that rows name.
pub fn named(settings: &Settings) -> BTreeSet<i64> {
    let database = other(settings);
    let mut named = database
        .prepare(
            "SELECT id FROM item WHERE in_file UNION ALL SELECT id FROM kept WHERE in_file
             UNION ALL SELECT id FROM message WHERE in_file",
        )
        .unwrap();
    named.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// What must hold of a queue after [`Queue::upkeep`], whatever happened: each key once, numbers as the rows, every message
/// whole, no file without a row, no row without its file, what waits can be leased.
pub async fn examine(queue: &dyn Queue, settings: &Settings) -> BTreeMap<Key, Entry> {
    let entries = queue.list(Filter::default()).await.unwrap();
    let of = |state: State| entries.iter().filter(|entry| entry.state == state).count() as u64;
    let counts = queue.counts().await.unwrap();
    assert_eq!((counts.waiting, counts.held), (of(State::Waiting) + of(State::InFlight), of(State::Held)));
    let by_tenant = queue.by_tenant().await.unwrap();
    assert_eq!(by_tenant.iter().map(|of| of.waiting).sum::<u64>(), counts.waiting);
    assert_eq!(by_tenant.iter().map(|of| of.held).sum::<u64>(), counts.held);
    for entry in &entries {
        whole(queue, entry.id).await;
    }
    assert_eq!(files(&folder(settings)), named(settings), "files and rows");
    let (messages, needed): (i64, i64) = other(settings)
        .query_row(
            "SELECT (SELECT count(*) FROM message), (SELECT count(DISTINCT message) FROM
                 (SELECT message FROM item UNION ALL SELECT message FROM kept) WHERE message > 0)",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .unwrap();
    assert_eq!(messages, needed, "messages without an item");
    let tickets = lease_all(queue).await;
    assert_eq!(tickets.len() as u64, of(State::Waiting));
    let unused = tickets.into_iter().map(|ticket| (ticket, End::Unused)).collect();
    assert!(queue.finish(unused).await.unwrap().iter().all(|ours| *ours));
    let count = entries.len();
    let keys: BTreeMap<Key, Entry> = entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
    assert_eq!(keys.len(), count, "a key twice");
    keys
}

/// Copies files, and folders as private as the service makes them.
fn copy_files(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        if path.is_dir() {
            fs::DirBuilder::new().mode(0o700).create(&copy).unwrap();
            copy_files(&path, &copy);
        } else {
            fs::copy(&path, copy).unwrap();
        }
    }
}

/// What an older version left: `tests/queues/README.md`.
pub struct Left {
    pub id: usize,
    pub key: Key,
    /// How it stood.
    pub how: String,
}

impl Left {
    /// Copies the queue of a version to a directory: what is in it.
    pub fn copy(version: u32, to: &Path) -> Vec<Self> {
        let from =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/queues").join(format!("schema-{version}"));
        let Settings { path, spool, .. } = settings(to);
        fs::create_dir_all(&spool).unwrap();
        fs::copy(from.join("queue.db"), path).unwrap();
        copy_files(&from.join("spool"), &spool);
        let rows = fs::read_to_string(from.join("rows.txt")).unwrap();
        rows.lines().map(Self::read).collect()
    }

    fn read(line: &str) -> Self {
        let words: Vec<&str> = line.split(' ').collect();
        Self {
            id: words[0].parse().unwrap(),
            key: Key::from_stored(words[2].to_owned()),
            how: words[3].to_owned(),
        }
    }
}

/// The time at which an older version left its queue.
pub fn left_at(settings: &Settings) -> SystemTime {
    let newest: i64 =
        other(settings).query_row("SELECT max(accepted_at) FROM item", [], |row| row.get(0)).unwrap();
    SystemTime::UNIX_EPOCH + Duration::from_millis(newest.unsigned_abs() + 1000)
}

/// Opens what an older version left, by a clock that shows the time at which it was left, and delivers it.
pub async fn take_over(settings: &Settings, left: &[Left]) {
    let clock = Arc::new(HandClock::at(left_at(settings)));
    let queue = queue::open(settings, clock.clone()).unwrap();
    queue.upkeep(DAYS).await.unwrap();
    let entries = queue.list(Filter::default()).await.unwrap();
    let of = |left: &Left| entries.iter().find(|entry| entry.key == left.key);
    let is_there = |left: &&Left| !matches!(left.how.as_str(), "taken" | "covered");
    assert_eq!(entries.len(), left.iter().filter(is_there).count());
    for row in left.iter().filter(is_there) {
        let entry = of(row).unwrap();
        let (state, attempts, reason) = match row.how.as_str() {
            "waiting" | "leased" => (State::Waiting, 0, None),
            "attempted" => (State::Waiting, 1, Some("503")),
            _ => (State::Held, 1, Some("400")),
        };
        let found = (entry.state, entry.attempts, entry.reason.as_deref());
        assert_eq!(found, (state, attempts, reason), "{}", row.key);
        let (item, id) = (queue.open(entry.id).await.unwrap(), row.id);
        let text = String::from_utf8(bytes(&item.raw)).unwrap();
        assert!(text.contains(&format!("Message-ID: <{id}@x>")) && text.contains(&format!("hello {id}\r\n")));
        match text.len() > 128 * 1024 {
            true => assert!(text.ends_with("xxx\r\n") && item.activity.files.len() == 1),
            false => assert_eq!(item.activity.text.as_deref().map(str::trim), Some(&*format!("hello {id}"))),
        }
        assert_eq!(item.key, row.key);
    }
    let count = |how: &[&str]| left.iter().filter(|left| how.contains(&left.how.as_str())).count();
    let (waiting, held) = (count(&["waiting", "attempted", "leased"]), count(&["held", "told"]));
    let counts = queue.counts().await.unwrap();
    assert_eq!((counts.waiting, counts.held), (waiting as u64, held as u64));
    let by_tenant = queue.by_tenant().await.unwrap();
    assert_eq!(by_tenant.iter().map(|of| of.waiting).sum::<u64>(), waiting as u64);
    assert_eq!(by_tenant.iter().map(|of| of.held).sum::<u64>(), held as u64);
    let untold: Vec<i64> = queue.untold(None, 10).await.unwrap().iter().map(|untold| untold.id).collect();
    let expected = left.iter().filter(|left| left.how == "held").map(|left| of(left).unwrap().id);
    assert_eq!(untold, expected.collect::<Vec<_>>());
    // The client tries again: everything is known, what was delivered and what is covered too.
    for row in left {
        let mut parcel = Letter::small(0).parcel(&settings.spool).await;
        parcel.activities[0].key = row.key.clone();
        assert_eq!(queue.put(parcel).await.unwrap(), [Put::Known], "{} {}", row.how, row.key);
    }
    let folder = folder(settings);
    assert_eq!((files(&folder), files(&folder).len()), (named(settings), 2));
    let beside = fs::read_dir(&settings.spool).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(beside.collect::<Vec<_>>(), [folder.as_path()]);
    // At once what waits and what was leased; what was attempted when it is due.
    let mut keys = Vec::new();
    for (hours, hows) in [(0, &["waiting", "leased"][..]), (3, &["attempted"])] {
        clock.pass(Duration::from_secs(hours * 3600));
        let tickets = lease_all(&*queue).await;
        assert_eq!(tickets.len(), count(hows), "{hows:?}");
        for ticket in tickets {
            keys.push(queue.open(ticket.item).await.unwrap().key);
            assert_eq!(queue.finish(vec![(ticket, End::Taken)]).await.unwrap(), [true]);
        }
    }
    let mut expected: Vec<_> =
        left.iter().filter(is_there).filter(|left| of(left).unwrap().state == State::Waiting).collect();
    expected.sort_by_key(|left| left.key.clone());
    keys.sort();
    assert!(keys.iter().eq(expected.iter().map(|left| &left.key)), "{keys:?}");
    assert!(files(&folder).is_empty());
}
