//! What every engine of the queue promises, through [`Queue`] alone: each test names its promise, `Q` and the number in
//! docs/promises.md. A new engine is one more line of [`ENGINES`].

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/database.rs"]
mod database;
#[path = "support/letter.rs"]
mod letter;

use activity_milter::{
    activity::{Key, Parcel, Raw},
    queue::{
        self, Ask, Change, Clock, Counts, End, Entry, Expired, Filter, Full, HandClock, Item, KEY_MEMORY,
        Kept, LEASE, NewlyHeld, OpenError, Put, Queue, Replay, Replayed, Settings, State, StorageError,
        TenantCounts, Ticket, Upkeep,
    },
};
use database::Cluster;
use futures_util::FutureExt;
use letter::{LARGE, bytes_of, directory, letter, noon, whole};
use std::{
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Who keeps the promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    /// A file, and files of large messages beside it.
    Sqlite,
    /// A database of a server of our own; the clock of a test is given to the statements.
    Postgres,
}

const ENGINES: &[Engine] = &[Engine::Sqlite, Engine::Postgres];

impl Engine {
    /// Large messages are files of its own, which may be lost, and of which a person may know.
    fn has_files(self) -> bool {
        self == Self::Sqlite
    }
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// What is older is held.
const MAX_AGE: Duration = Duration::from_secs(5 * 86_400);
/// For what comes at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// A queue with its clock and its directory.
struct Desk {
    engine: Engine,
    directory: tempfile::TempDir,
    settings: Settings,
    clock: Arc<HandClock>,
    queue: Option<Arc<dyn Queue>>,
    /// Dropped after the queue.
    database: Option<Arc<database::Database>>,
}

impl std::ops::Deref for Desk {
    type Target = dyn Queue;

    fn deref(&self) -> &Self::Target {
        &**self.queue.as_ref().unwrap()
    }
}

impl Desk {
    fn new(engine: Engine) -> Self {
        let directory = directory();
        let (path, spool) = (directory.path().join("db/queue.db"), directory.path().join("spool"));
        let database = (engine == Engine::Postgres).then(|| Arc::new(Cluster::shared().database()));
        let server = database.as_ref().map(|database| database.server());
        let settings = Settings { min_free: 0, server, ..Settings::new(path, spool) };
        let clock = Arc::new(HandClock::at(noon()));
        let mut desk = Self { engine, directory, settings, clock, queue: None, database };
        desk.queue = Some(desk.open_once_more().unwrap());
        desk
    }

    fn open_once_more(&self) -> Result<Arc<dyn Queue>, OpenError> {
        queue::open(&self.settings, Arc::clone(&self.clock) as Arc<dyn Clock>)
    }

    fn beside(&self) -> Arc<dyn Queue> {
        queue::beside(&self.settings, Arc::clone(&self.clock) as Arc<dyn Clock>).unwrap()
    }

    /// Somebody damages the queue: rows of `item` that this condition is true of cannot be deleted, or not be changed.
    fn damage(&self, when: &str, condition: &str) {
        match &self.database {
            None => rusqlite::Connection::open(&self.settings.path)
                .unwrap()
                .execute_batch(&format!(
                    "CREATE TRIGGER damaged BEFORE {when} ON item WHEN {condition} BEGIN SELECT raise(ABORT, 'damaged'); END"
                ))
                .unwrap(),
            Some(database) => drop(database.sql(&format!(
                "CREATE FUNCTION damaged() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'damaged'; END $$;
                 CREATE TRIGGER damaged BEFORE {when} ON activity_milter.item FOR EACH ROW WHEN ({condition})
                     EXECUTE FUNCTION damaged()"
            ))),
        }
    }

    /// What a crash leaves: nothing is finished or given back.
    fn crash(&mut self) {
        self.queue = None;
        self.queue = Some(self.open_once_more().unwrap());
    }

    /// With other settings from here on.
    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self.crash();
        self
    }

    async fn letter(&self, id: usize, targets: &[&str]) -> Parcel {
        letter(&self.settings.spool, id, 10, targets).await
    }

    /// Puts a small message; the same `id` is the same e-mail.
    async fn give(&self, id: usize, targets: &[&str]) -> Vec<Put> {
        self.put(self.letter(id, targets).await).await.unwrap()
    }

    /// Why a small message is not taken.
    async fn refusal(&self, id: usize, targets: &[&str]) -> Full {
        match self.put(self.letter(id, targets).await).await {
            Err(StorageError::Full(full)) => full,
            other => panic!("not refused: {other:?}"),
        }
    }

    async fn leases(&self, room: usize) -> Vec<Ticket> {
        self.lease(Ask { room, ..Ask::default() }).await.unwrap().tickets
    }

    /// The only one that is due.
    async fn the_lease(&self) -> Ticket {
        let mut tickets = self.leases(10).await;
        assert_eq!(tickets.len(), 1);
        tickets.remove(0)
    }

    async fn end(&self, ticket: &Ticket, end: End) -> bool {
        self.finish(vec![(ticket.clone(), end)]).await.unwrap()[0]
    }

    async fn all(&self) -> Vec<Entry> {
        self.list(Filter::default()).await.unwrap()
    }

    async fn the_entry(&self) -> Entry {
        let mut all = self.all().await;
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    async fn numbers(&self) -> (u64, u64) {
        let counts = self.counts().await.unwrap();
        (counts.waiting, counts.held)
    }

    async fn knows(&self, keys: &[Key]) -> Vec<bool> {
        self.known(keys.to_vec()).await.unwrap()
    }

    async fn tidy(&self) -> Upkeep {
        self.upkeep(MAX_AGE).await.unwrap()
    }

    /// Days go by, with upkeep now and then, as in a service that runs.
    async fn live(&self, days: u32) {
        for _ in 0..days * 4 {
            self.clock.pass(6 * HOUR);
            self.upkeep(1000 * DAY).await.unwrap();
        }
    }

    /// Sets the wall clock ahead, or back.
    fn leap(&self, ahead: i64) {
        let by = Duration::from_secs(ahead.unsigned_abs());
        let now = self.clock.wall();
        self.clock.set(if ahead < 0 { now - by } else { now + by });
    }

    /// Everything below the directory for messages.
    fn files(&self) -> Vec<PathBuf> {
        fn below(path: &Path, found: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { below(&path, found) } else { found.push(path) }
            }
        }
        let mut found = Vec::new();
        below(&self.settings.spool, &mut found);
        found.retain(|path| path.metadata().is_ok_and(|file| file.len() > 0)); // others may remove some meanwhile
        if !self.engine.has_files() {
            // Nothing but its name: messages are elsewhere.
            found.retain(|path| path.file_name().is_some_and(|name| name != "node"));
        }
        found
    }

    /// So many files, where large messages are files.
    fn files_of(&self, count: usize) -> usize {
        if self.engine.has_files() { count } else { 0 }
    }
}

/// Runs a test with each engine.
async fn each(test: impl AsyncFn(Desk)) {
    for engine in ENGINES {
        println!("with {engine:?}");
        test(Desk::new(*engine)).await;
    }
}

/// Runs a test of what only files do: SQLite's queue.
async fn with_files(test: impl AsyncFn(Desk)) {
    test(Desk::new(Engine::Sqlite)).await;
}

/// Runs a test with each engine and each of these; what was printed last names the one that failed.
async fn each_with<T: std::fmt::Debug + Clone>(some: impl AsRef<[T]>, test: impl AsyncFn(Desk, T)) {
    for engine in ENGINES {
        each_of(*engine, some.as_ref(), &test).await;
    }
}

/// Runs a test of what only files do with each of these.
async fn files_with<T: std::fmt::Debug + Clone>(some: impl AsRef<[T]>, test: impl AsyncFn(Desk, T)) {
    each_of(Engine::Sqlite, some.as_ref(), &test).await;
}

async fn each_of<T: std::fmt::Debug + Clone>(engine: Engine, some: &[T], test: &impl AsyncFn(Desk, T)) {
    for one in some {
        println!("with {engine:?} and {one:?}");
        test(Desk::new(engine), one.clone()).await;
    }
}

fn again(after: Duration, counts: bool) -> End {
    End::Again { after, counts, reason: "503".to_owned() }
}

fn held() -> End {
    End::Held { reason: "422".to_owned() }
}

/// Every way a lease ends.
fn ends() -> [End; 5] {
    [End::Taken, again(HOUR, true), again(Duration::ZERO, false), End::Unused, held()]
}

fn keys_of(parcel: &Parcel) -> Vec<Key> {
    parcel.activities.iter().map(|activity| activity.key.clone()).collect()
}

fn ids(entries: &[Entry]) -> Vec<i64> {
    entries.iter().map(|entry| entry.id).collect()
}

/// Q1: small and large, for one and for several.
#[tokio::test]
async fn what_was_put_is_there_after_a_crash() {
    each(async |mut desk| {
        let mut expected = HashSet::new();
        for (id, size, targets) in [
            (1, 10, &["a"] as &[_]),
            (2, 10, &["a", "b"]),
            (3, 3 * LARGE, &["a"]),
            (4, LARGE, &["a", "b/7", "c"]),
        ] {
            let parcel = letter(&desk.settings.spool, id, size, targets).await;
            expected.extend(keys_of(&parcel).into_iter().map(|key| (key, size as u64)));
            assert_eq!(desk.put(parcel).await.unwrap(), vec![Put::New; targets.len()]);
        }
        assert_eq!(desk.leases(100).await.len(), 7);
        desk.crash();
        assert_eq!(desk.numbers().await, (7, 0));
        let mut found = HashSet::new();
        for ticket in desk.leases(100).await {
            let item = desk.open(ticket.item).await.unwrap();
            let mut size = 0;
            let mut count = |piece: &[u8]| {
                size += piece.len() as u64;
                Ok(())
            };
            item.raw.decode(item.cuts[0], &mut count).unwrap();
            assert_eq!(size, item.activity.files[0].size);
            assert_eq!(item.activity.tenant.id, &*ticket.tenant);
            found.insert((item.key, size));
            assert!(desk.end(&ticket, End::Taken).await);
        }
        assert_eq!(found, expected);
        assert_eq!(desk.files(), Vec::<PathBuf>::new());
        desk.crash();
        assert_eq!(desk.counts().await.unwrap(), Counts::default());
    })
    .await;
}

/// Q2: a message of which one activity has no room leaves nothing.
#[tokio::test]
async fn all_of_a_message_or_none() {
    each_with([10, LARGE], async |desk, size| {
        let desk = desk.with(|settings| settings.max_items_per_tenant = Some(1));
        desk.give(1, &["b"]).await;
        let parcel = letter(&desk.settings.spool, 2, size, &["a", "b", "c"]).await;
        let keys = keys_of(&parcel);
        assert!(matches!(desk.put(parcel).await, Err(StorageError::Full(Full::Tenant { .. }))));
        assert_eq!((desk.numbers().await, desk.knows(&keys).await), ((1, 0), vec![false; 3]));
        assert_eq!(desk.files(), Vec::<PathBuf>::new());
        desk.give(2, &["a", "c"]).await;
    })
    .await;
}

/// Q3: the same e-mail again is known, and the first stays; what is new beside it is stored.
#[tokio::test]
async fn the_same_e_mail_is_stored_once() {
    each_with([10, LARGE], async |mut desk, size| {
        let put = async |desk: &Desk, targets| {
            desk.put(letter(&desk.settings.spool, 1, size, targets).await).await.unwrap()
        };
        assert_eq!(put(&desk, &["a"]).await, [Put::New]);
        assert_eq!(put(&desk, &["a"]).await, [Put::Known]);
        assert_eq!(put(&desk, &["a", "b"]).await, [Put::Known, Put::New]);
        assert_eq!(put(&desk, &["c", "c"]).await, [Put::New, Put::Known]);
        desk.crash();
        assert_eq!(put(&desk, &["b", "a"]).await, [Put::Known, Put::Known]);
        assert_eq!(desk.numbers().await, (3, 0));
        let leased = desk.leases(10).await;
        assert_eq!(put(&desk, &["a"]).await, [Put::Known]);
        for ticket in leased {
            assert!(desk.end(&ticket, held()).await);
        }
        assert_eq!(put(&desk, &["a"]).await, [Put::Known]);
        let files = desk.files_of(if size == LARGE { 3 } else { 0 });
        assert_eq!((desk.numbers().await, desk.files().len()), ((0, 3), files));
    })
    .await;
}

/// Q4: whenever it was put, and however long it waited, while it waits and for [`KEY_MEMORY`] after; then it is
/// forgotten, because what is remembered must not grow for ever.
#[tokio::test]
async fn a_key_is_known_while_it_is_there_and_seven_days_after() {
    each(async |desk| {
        struct Mail {
            key: Key,
            gone: Option<u32>,
        }
        let memory = u32::try_from(KEY_MEMORY.as_secs() / DAY.as_secs()).unwrap();
        let mut mails: BTreeMap<usize, Mail> = BTreeMap::new();
        for day in 0..75_u32 {
            let id = day as usize;
            if day < 40 {
                let parcel = desk.letter(id, &["a"]).await;
                let key = parcel.activities[0].key.clone();
                assert_eq!(desk.put(parcel).await.unwrap(), [Put::New]);
                mails.insert(id, Mail { key, gone: None });
            }
            for entry in desk.all().await {
                let (&id, mail) = mails.iter_mut().find(|(_, mail)| mail.key == entry.key).unwrap();
                if day < u32::try_from(id + id * 5 % 23).unwrap() {
                    continue;
                }
                if id % 2 == 0 {
                    desk.change(vec![entry.id], Change::Drop).await.unwrap();
                } else {
                    for ticket in desk.leases(100).await {
                        let end = if ticket.item == entry.id { End::Taken } else { End::Unused };
                        assert!(desk.end(&ticket, end).await);
                    }
                }
                mail.gone = Some(day);
            }
            for (id, mail) in &mails {
                let known = desk.knows(std::slice::from_ref(&mail.key)).await[0];
                match mail.gone {
                    Some(gone) if day > gone + 3 * memory => {
                        assert!(!known, "day {day}: {id} is never forgotten")
                    }
                    Some(gone) if day > gone + memory => {}
                    gone => {
                        assert!(known, "day {day}: {id}, gone on day {gone:?}, is forgotten");
                        assert_eq!(desk.give(*id, &["a"]).await, [Put::Known]);
                    }
                }
            }
            desk.live(1).await;
        }
        assert_eq!(desk.give(1, &["a"]).await, [Put::New]);
    })
    .await;
}

/// Q4: also when its message came once more on other ways, which cover its key.
#[tokio::test]
async fn a_key_stays_while_its_activity_is_held() {
    each(async |desk| {
        desk.give(1, &["a"]).await;
        assert!(desk.end(&desk.the_lease().await, held()).await);
        let Entry { id, key, .. } = desk.the_entry().await;
        for week in 0..8 {
            // The same e-mail to a project adds nothing for the bare address.
            assert_eq!(desk.give(1, &[&format!("a/{week}")]).await, [Put::New]);
            assert!(desk.end(&desk.the_lease().await, End::Taken).await);
            assert_eq!(desk.give(1, &["a"]).await, [Put::Known], "week {week}");
            let filter = Filter { keys: vec![key.to_string()], ..Filter::default() };
            assert_eq!(ids(&desk.list(filter).await.unwrap()), [id], "week {week}");
            desk.live(9).await;
        }
    })
    .await;
}

/// Q5: the bare address adds nothing beside a project of the same tenant, in one message or in several.
#[tokio::test]
async fn a_project_covers_the_bare_address() {
    each(async |desk| {
        let put = async |id, target: &str| desk.give(id, &[target]).await[0];
        assert_eq!(put(1, "a/7").await, Put::New);
        assert_eq!(put(1, "a").await, Put::Known);
        assert_eq!(put(1, "a/8").await, Put::New);
        assert_eq!((put(1, "b").await, put(2, "a").await), (Put::New, Put::New));
        // Recorded before the project came: nothing takes it back.
        assert_eq!((put(2, "a/7").await, put(2, "a").await), (Put::New, Put::Known));
        assert_eq!(desk.numbers().await, (5, 0));
        let covered = desk.letter(3, &["a/7"]).await.covered;
        desk.give(3, &["a/7"]).await;
        assert_eq!(desk.knows(&covered).await, [true]);
        for ticket in desk.leases(10).await {
            assert!(desk.end(&ticket, End::Taken).await);
        }
        desk.live(6).await;
        assert_eq!(put(3, "a").await, Put::Known);
        desk.live(21).await;
        assert_eq!((put(3, "a").await, put(2, "a").await), (Put::New, Put::New));
    })
    .await;
}

/// Q5: what a refused message would have covered is not covered.
#[tokio::test]
async fn a_refused_message_covers_nothing() {
    each(async |desk| {
        let desk = desk.with(|settings| settings.max_items = 1);
        desk.give(1, &["a"]).await;
        assert_eq!(desk.refusal(2, &["a/7"]).await, Full::Items(1));
        assert!(desk.end(&desk.the_lease().await, End::Taken).await);
        assert_eq!(desk.give(2, &["a"]).await, [Put::New]);
    })
    .await;
}

/// Q6: whoever stops waiting for his put; the next one of the same e-mail tells which it was.
#[tokio::test]
async fn who_stops_waiting_leaves_all_or_nothing() {
    each_with([10, LARGE], async |desk, size| {
        for id in 0..20 {
            let parcel = letter(&desk.settings.spool, id, size, &["a", "b"]).await;
            let mut put = desk.put(parcel.clone());
            for _ in 0..id % 4 {
                if (&mut put).now_or_never().is_some() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            drop(put);
            let puts = desk.put(parcel).await.unwrap();
            assert!(puts == [Put::New; 2] || puts == [Put::Known; 2], "{puts:?}");
            assert_eq!(desk.numbers().await.0, 2 * (id as u64 + 1));
        }
        for entry in desk.all().await {
            desk.open(entry.id).await.unwrap();
        }
    })
    .await;
}

/// Q7: a message whose file is gone is no reason to call its e-mail known.
#[tokio::test]
async fn a_lost_file_is_mended_by_the_same_e_mail() {
    files_with([&["a"] as &[&str], &["a", "b"]], async |mut desk, targets| {
        let parcel = letter(&desk.settings.spool, 1, LARGE, targets).await;
        let expected = bytes_of(&parcel.raw);
        desk.put(parcel.clone()).await.unwrap();
        for file in desk.files() {
            std::fs::remove_file(file).unwrap();
        }
        for entry in desk.all().await {
            assert!(matches!(desk.open(entry.id).await, Err(StorageError::Gone(_))));
        }
        for ticket in desk.leases(10).await {
            assert!(desk.end(&ticket, held()).await);
        }
        assert_eq!(desk.put(parcel.clone()).await.unwrap(), vec![Put::Mended; targets.len()]);
        assert_eq!(desk.put(parcel).await.unwrap(), vec![Put::Known; targets.len()]);
        assert_eq!(desk.numbers().await, (targets.len() as u64, 0));
        desk.crash();
        for ticket in desk.leases(10).await {
            assert_eq!(bytes_of(&desk.open(ticket.item).await.unwrap().raw), expected);
            assert!(desk.end(&ticket, End::Taken).await);
        }
        assert_eq!((desk.numbers().await, desk.files()), ((0, 0), Vec::new()));
    })
    .await;
}

/// Q8: byte for byte, however the text came.
#[tokio::test]
async fn what_is_sent_is_what_was_accepted() {
    let multipart = "multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--\r\n";
    let encoded = "text/plain\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\ncaf=C3=A9 text\r\n";
    let long = format!("text/plain\r\n\r\n{}", "line \"text\":null é\r\n".repeat(10_000));
    let rests = [
        "text/plain\r\n\r\nHi \"Bo\",\r\n\r\n\t\"text\":null é text\r\n",
        "text/plain; charset=UTF-8\r\n\r\ntext é\n",
        "text/html\r\n\r\n<p>text</p>\r\n",
        "text/plain\r\n\r\n",
        "text/plain\r\n\r\n\u{1}\u{2028}\\u0000 \\ / \"\r\n",
        encoded,
        multipart,
        &long,
    ];
    each_with(rests, async |mut desk, rest| {
        let head = "Subject: \"text\":null\r\nMessage-ID: <1@x>\r\n";
        let rest = format!("Content-Type: {rest}");
        let parcel = whole(&desk.settings.spool, head, rest.as_bytes(), &["a", "b/7"]).await;
        assert_eq!(matches!(parcel.raw, Raw::File { .. }), rest.len() > 100_000);
        let raw = bytes_of(&parcel.raw);
        let expected: HashSet<Vec<u8>> =
            parcel.activities.iter().map(|activity| serde_json::to_vec(activity).unwrap()).collect();
        let alone = whole(&desk.settings.spool, head, rest.as_bytes(), &["c"]).await;
        desk.put(parcel.clone()).await.unwrap();
        desk.put(alone.clone()).await.unwrap();
        for crashed in [false, true] {
            if crashed {
                desk.crash();
            }
            let mut found = HashSet::new();
            for entry in desk.all().await {
                let Item { key, activity, json, cuts, raw: kept, .. } = desk.open(entry.id).await.unwrap();
                assert_eq!((bytes_of(&kept), &cuts, &key), (raw.clone(), &parcel.cuts, &activity.key));
                assert_eq!(serde_json::to_vec(&activity).unwrap(), json);
                found.insert(json.to_vec());
            }
            assert!(found.remove(&serde_json::to_vec(&alone.activities[0]).unwrap()));
            assert_eq!(found, expected);
        }
    })
    .await;
}

/// Q9: on both sides of the limit.
#[tokio::test]
async fn full_of_items() {
    each(async |mut desk| {
        desk = desk.with(|settings| settings.max_items = 4);
        for id in 0..3 {
            desk.give(id, &["a"]).await;
        }
        assert_eq!(desk.refusal(8, &["a", "a/7"]).await, Full::Items(4));
        desk.give(3, &["a"]).await;
        assert_eq!(desk.refusal(9, &["a"]).await, Full::Items(4));
        desk.crash();
        assert_eq!(desk.refusal(9, &["a"]).await, Full::Items(4));
        let tickets = desk.leases(2).await;
        assert!(desk.end(&tickets[0], held()).await);
        assert_eq!(desk.refusal(9, &["a"]).await, Full::Items(4));
        assert!(desk.end(&tickets[1], End::Taken).await);
        desk.give(9, &["a"]).await;
        assert_eq!(desk.refusal(10, &["a"]).await, Full::Items(4));
        assert_eq!(desk.change(vec![tickets[0].item], Change::Drop).await.unwrap(), 1);
        desk.give(10, &["a"]).await;
        assert_eq!(desk.numbers().await, (4, 0));
    })
    .await;
}

/// Q9: a person who makes room is seen at once.
#[tokio::test]
async fn room_made_by_a_command_is_seen() {
    each(async |desk| {
        let desk = desk.with(|settings| settings.max_items = 1);
        desk.give(1, &["a"]).await;
        let entry = desk.the_entry().await;
        assert_eq!(desk.beside().change(vec![entry.id], Change::Drop).await.unwrap(), 1);
        assert_eq!(desk.give(2, &["a"]).await, [Put::New]);
    })
    .await;
}

/// Q10: half of it by default once there are several; all of it for the only one; or what is set.
#[tokio::test]
async fn full_of_one_tenant() {
    each(async |desk| {
        let mut desk = desk.with(|settings| settings.max_items = 6);
        for id in 0..5 {
            desk.give(id, &["a"]).await;
        }
        desk.give(5, &["b"]).await;
        for ticket in desk.leases(9).await.into_iter().filter(|ticket| &*ticket.tenant == "a").take(3) {
            assert!(desk.end(&ticket, End::Taken).await);
        }
        let full = |tenant: &str, most| Full::Tenant { tenant: tenant.to_owned(), most };
        desk.give(10, &["a"]).await;
        assert_eq!(desk.refusal(11, &["a"]).await, full("a", 3));
        desk.crash();
        assert_eq!(desk.refusal(11, &["a"]).await, full("a", 3));
        assert_eq!(desk.refusal(11, &["b", "a"]).await, full("a", 3));
        assert_eq!(desk.refusal(11, &["b/1", "b/2", "b/3"]).await, Full::Items(6));
        desk.give(11, &["b"]).await;
        let desk = desk.with(|settings| (settings.max_items, settings.max_items_per_tenant) = (100, Some(4)));
        assert_eq!(desk.refusal(12, &["b/1", "b/2", "b/3"]).await, full("b", 4));
        desk.give(12, &["b/1", "b/2"]).await;
        assert_eq!(desk.refusal(13, &["b"]).await, full("b", 4));
        desk.give(13, &["a"]).await;
        assert_eq!(desk.refusal(14, &["a"]).await, full("a", 4));
    })
    .await;
}

/// Q11: room that was reserved for what is known, failed or was given up comes back.
#[tokio::test]
async fn reserved_room_comes_back() {
    each(async |desk| {
        let mut desk = desk.with(|settings| {
            (settings.max_items, settings.max_items_per_tenant) = (4, Some(3));
        });
        desk.give(1, &["a"]).await;
        for _ in 0..5 {
            assert_eq!(desk.give(1, &["a"]).await, [Put::Known]);
            assert!(matches!(desk.refusal(2, &["a", "a/1", "a/2", "b"]).await, Full::Items(4)));
            assert!(matches!(desk.refusal(2, &["a", "a/1", "a/2"]).await, Full::Tenant { .. }));
            drop(desk.put(desk.letter(3, &["a", "b"]).await));
        }
        assert_eq!(desk.give(2, &["a", "a/1", "b"]).await, [Put::New; 3]);
        assert_eq!(desk.refusal(4, &["b"]).await, Full::Items(4));
        desk.crash();
        assert_eq!(desk.refusal(4, &["b"]).await, Full::Items(4));
    })
    .await;
}

/// Q12: what is held for very long counts no more, and is still there.
#[tokio::test]
async fn what_is_held_for_long_takes_no_room() {
    each_with([false, true], async |desk, told| {
        let mut desk = desk.with(|settings| settings.max_items = 1);
        desk.give(1, &["a"]).await;
        let ticket = desk.the_lease().await;
        assert!(desk.end(&ticket, held()).await);
        if told {
            desk.told(vec![ticket.item]).await.unwrap();
        }
        desk.live(29).await;
        assert_eq!(desk.refusal(2, &["a"]).await, Full::Items(1));
        desk.live(2).await;
        desk.give(2, &["a"]).await;
        assert_eq!(desk.numbers().await, (1, 1));
        desk.crash();
        assert_eq!(desk.refusal(3, &["a"]).await, Full::Items(1));
        assert_eq!((desk.numbers().await, desk.all().await.len()), ((1, 1), 2));
        desk.open(ticket.item).await.unwrap();
        let waits = desk.the_lease().await;
        assert!(desk.end(&waits, End::Taken).await);
        // Tried again, it counts again.
        assert_eq!(desk.change(vec![ticket.item], Change::Retry).await.unwrap(), 1);
        assert_eq!((desk.refusal(3, &["a"]).await, desk.numbers().await), (Full::Items(1), (1, 0)));
    })
    .await;
}

/// Q13: what is below the reserve is for delivering.
#[tokio::test]
async fn below_the_reserve_nothing_is_put_and_all_is_delivered() {
    each_with([10, LARGE], async |desk, size| {
        desk.put(letter(&desk.settings.spool, 1, size, &["a"]).await).await.unwrap();
        desk.check().await.unwrap();
        let desk = desk.with(|settings| settings.min_free = u64::MAX);
        let parcel = letter(&desk.settings.spool, 2, size, &["a"]).await;
        assert!(matches!(desk.put(parcel).await, Err(StorageError::Full(Full::Disk { .. }))));
        assert!(matches!(desk.check().await, Err(StorageError::Full(Full::Disk { .. }))));
        // Known is no reason for room.
        let parcel = letter(&desk.settings.spool, 1, size, &["a"]).await;
        assert_eq!(desk.put(parcel).await.unwrap(), [Put::Known]);
        let ticket = desk.the_lease().await;
        assert!(desk.note(&ticket, "1".to_owned()).await.unwrap());
        assert!(desk.end(&ticket, End::Taken).await);
        assert_eq!((desk.numbers().await, desk.files()), ((0, 0), Vec::new()));
        let desk = desk.with(|settings| settings.min_free = 0);
        assert_eq!(desk.give(2, &["a"]).await, [Put::New]);
    })
    .await;
}

/// Q14: nobody else gets it; after its time it is due again.
#[tokio::test]
async fn a_lease_is_one_s_own_for_its_time() {
    each(async |mut desk| {
        desk.give(1, &["a"]).await;
        let first = desk.the_lease().await;
        assert_eq!(desk.the_entry().await.state, State::InFlight);
        desk.clock.pass(LEASE - Duration::from_millis(1));
        desk.tidy().await;
        assert_eq!(desk.leases(10).await, []);
        desk.clock.pass(Duration::from_millis(1));
        let second = desk.the_lease().await;
        assert_eq!(first.item, second.item);
        assert!(second.fence > first.fence);
        desk.clock.pass(LEASE);
        desk.tidy().await;
        assert_eq!(desk.the_entry().await.state, State::Waiting);
        assert_eq!((desk.the_entry().await.attempts, desk.numbers().await), (0, (1, 0)));
        // The wall clock has no say in it; but the database's clock is the only one that several machines have.
        desk.the_lease().await;
        if desk.engine == Engine::Sqlite {
            desk.leap(30 * 86_400);
        }
        desk.tidy().await;
        assert_eq!(desk.leases(10).await, []);
        desk.crash();
        let third = desk.the_lease().await;
        assert!(third.item == first.item && third.fence > second.fence);
    })
    .await;
}

/// Q15: one of each before another gets its second; whom after, and whom without.
#[tokio::test]
async fn tenants_take_turns() {
    each(async |desk| {
        for (id, tenant) in ["b", "b", "b", "b", "a", "c"].into_iter().enumerate() {
            desk.give(id, &[tenant]).await;
        }
        let take = async |room, after: &str, without: &[&str]| {
            let without = without.iter().map(|&tenant| tenant.to_owned()).collect();
            let ask = Ask { room, after: after.to_owned(), without, ..Ask::default() };
            let mut tenants = String::new();
            for ticket in desk.lease(ask).await.unwrap().tickets {
                tenants.push_str(&ticket.tenant);
                assert!(desk.end(&ticket, End::Unused).await);
            }
            tenants
        };
        assert_eq!(take(3, "", &[]).await, "abc");
        assert_eq!(take(2, "a", &[]).await, "bc");
        assert_eq!(take(2, "b", &[]).await, "ca");
        assert_eq!(take(3, "c", &[]).await, "abc");
        assert_eq!(take(3, "bb", &[]).await, "cab");
        assert_eq!(take(5, "", &[]).await, "abcbb");
        assert_eq!(take(1, "", &["a"]).await, "b");
        assert_eq!(take(9, "", &["b"]).await, "ac");
        assert_eq!(take(9, "", &["b", "a"]).await, "c");
        assert_eq!(take(9, "c", &["b", "a", "c", "x"]).await, "");
        assert_eq!(take(9, "", &[]).await, "abcbbb");
        assert_eq!(take(0, "", &[]).await, "");
    })
    .await;
}

/// Q15: a tenant's own come in the order in which they are due, and who comes later does not stand before.
#[tokio::test]
async fn a_tenant_s_own_are_leased_as_they_are_due() {
    each(async |desk| {
        let mut order = Vec::new();
        for id in 0..6 {
            desk.give(id, &["a"]).await;
            desk.clock.pass(Duration::from_secs(1));
        }
        order.extend(desk.leases(2).await.iter().map(|ticket| ticket.item));
        let third = desk.leases(1).await.remove(0);
        order.extend(desk.leases(10).await.iter().map(|ticket| ticket.item));
        // Given back, it is due since then, also for whoever has seen those behind it.
        assert!(desk.end(&third, End::Unused).await);
        desk.give(6, &["a"]).await;
        assert_eq!(desk.leases(1).await[0].item, third.item);
        order.insert(2, third.item);
        assert_eq!(order, ids(&desk.all().await)[..6]);
    })
    .await;
}

/// Q16: only what is due, and when there will be more.
#[tokio::test]
async fn only_what_is_due_is_leased() {
    each(async |mut desk| {
        let ask = |without: &[&str]| Ask {
            room: 1,
            after: String::new(),
            without: without.iter().map(|&tenant| tenant.to_owned()).collect(),
            ..Ask::default()
        };
        assert_eq!(desk.lease(ask(&[])).await.unwrap().next_due, None);
        desk.give(1, &["a"]).await;
        desk.give(2, &["b"]).await;
        let leased = desk.lease(ask(&[])).await.unwrap();
        assert_eq!(leased.next_due, Some(Duration::ZERO));
        assert!(desk.end(&leased.tickets[0], again(10 * MINUTE, true)).await);
        let leased = desk.lease(ask(&[])).await.unwrap();
        assert!(desk.end(&leased.tickets[0], again(5 * MINUTE, true)).await);
        for crashed in [false, true] {
            if crashed {
                desk.crash();
            }
            // The first answer may be too early, never too late; whoever asks again knows better.
            let mut next = desk.lease(ask(&[])).await.unwrap();
            assert!(next.tickets.is_empty() && next.next_due.is_some_and(|wait| wait <= 5 * MINUTE));
            next = desk.lease(ask(&[])).await.unwrap();
            assert_eq!(next.next_due, Some(5 * MINUTE));
            assert_eq!(desk.lease(ask(&["b"])).await.unwrap().next_due, Some(10 * MINUTE));
            assert_eq!(desk.lease(ask(&["a", "b"])).await.unwrap().next_due, None);
        }
        desk.clock.pass(5 * MINUTE - Duration::from_millis(1));
        assert_eq!(desk.leases(10).await, []);
        desk.clock.pass(Duration::from_millis(1));
        let leased = desk.lease(Ask { room: 10, ..Ask::default() }).await.unwrap();
        assert_eq!(leased.tickets.iter().map(|ticket| &*ticket.tenant).collect::<String>(), "b");
        assert_eq!(leased.next_due, Some(5 * MINUTE));
        desk.clock.pass(5 * MINUTE);
        assert_eq!(&*desk.the_lease().await.tenant, "a");
    })
    .await;
}

/// Q17: whatever a former lease says changes nothing, and is told so; the numbers stay right.
#[tokio::test]
async fn a_late_end_changes_nothing() {
    each_with(ends(), async |desk, late| {
        let desk = desk.with(|settings| settings.max_items = 1);
        desk.give(1, &["a"]).await;
        let first = desk.the_lease().await;
        desk.clock.pass(LEASE);
        let second = desk.the_lease().await;
        let before = format!("{:?}", desk.the_entry().await);
        assert!(!desk.end(&first, late.clone()).await);
        assert!(!desk.note(&first, "late".to_owned()).await.unwrap());
        assert_eq!(format!("{:?}", desk.the_entry().await), before);
        assert_eq!(desk.open(first.item).await.unwrap().note, None);
        assert_eq!(desk.leases(10).await, []);
        assert!(desk.end(&second, End::Taken).await);
        assert!(!desk.end(&second, late.clone()).await);
        assert!(!desk.end(&first, late).await);
        assert_eq!(desk.counts().await.unwrap(), Counts::default());
        assert_eq!(desk.give(2, &["a"]).await, [Put::New]);
        assert_eq!(desk.refusal(3, &["a"]).await, Full::Items(1));
    })
    .await;
}

/// Q17: a ticket ends once, in one call or in two, and not after a crash.
#[tokio::test]
async fn a_ticket_ends_once() {
    each_with(ends(), async |mut desk, end| {
        desk.give(1, &["a"]).await;
        desk.give(2, &["b"]).await;
        let tickets = desk.leases(2).await;
        let twice = vec![(tickets[0].clone(), end.clone()), (tickets[0].clone(), End::Taken)];
        assert_eq!(desk.finish(twice).await.unwrap(), [true, false]);
        desk.crash();
        let twice = vec![(tickets[1].clone(), end), (tickets[0].clone(), End::Taken)];
        assert_eq!(desk.finish(twice).await.unwrap(), [false, false]);
        assert!(!desk.note(&tickets[1], "late".to_owned()).await.unwrap());
        assert_eq!(desk.finish(Vec::new()).await.unwrap(), Vec::<bool>::new());
        // A former lease of an item, and the one it has, in one call.
        desk.give(3, &["c"]).await;
        let mut of_one = Vec::new();
        for _ in 0..2 {
            let ask = Ask { room: 1, only: Some("c".to_owned()), ..Ask::default() };
            of_one.extend(desk.lease(ask).await.unwrap().tickets);
            desk.clock.pass(LEASE - Duration::from_millis(1 + of_one.len() as u64 * 1000));
            if of_one.len() == 1 {
                desk.clock.pass(MINUTE);
            }
        }
        let both = of_one.into_iter().map(|ticket| (ticket, End::Taken)).collect::<Vec<_>>();
        assert_eq!(desk.finish(both).await.unwrap(), [false, true]);
    })
    .await;
}

/// Q18: each end does what it says, also after a crash. Q19: attempts are counted where they say something.
#[tokio::test]
async fn each_end_does_what_it_says() {
    each_with(ends(), async |mut desk, end| {
        desk.give(1, &["a"]).await;
        let before = desk.the_entry().await;
        let ticket = desk.the_lease().await;
        assert!(desk.end(&ticket, end.clone()).await);
        for crashed in [false, true] {
            if crashed {
                desk.crash();
            }
            let now = desk.clock.wall();
            let (state, attempts, due, reason) = match &end {
                End::Taken => {
                    assert_eq!(desk.counts().await.unwrap(), Counts::default());
                    assert!(matches!(desk.open(ticket.item).await, Err(StorageError::Gone(_))));
                    assert_eq!(desk.knows(std::slice::from_ref(&before.key)).await, [true]);
                    assert!(desk.all().await.is_empty());
                    continue;
                }
                End::Unused => (State::Waiting, 0, before.due, None),
                End::Again { after, counts, reason } => {
                    (State::Waiting, u32::from(*counts), now + *after, Some(reason.clone()))
                }
                End::Held { reason } => (State::Held, 1, now, Some(reason.clone())),
            };
            let entry = desk.the_entry().await;
            assert_eq!((entry.state, entry.attempts, entry.due), (state, attempts, due));
            assert_eq!((entry.reason, entry.accepted_at), (reason, before.accepted_at));
            assert_eq!(desk.open(ticket.item).await.unwrap().attempts, attempts);
            assert_eq!(desk.numbers().await, if state == State::Held { (0, 1) } else { (1, 0) });
        }
        desk.clock.pass(10 * DAY);
        assert_eq!(desk.leases(10).await.len(), usize::from(!matches!(end, End::Taken | End::Held { .. })));
    })
    .await;
}

/// Q19: over many attempts.
#[tokio::test]
async fn attempts_are_counted() {
    each(async |desk| {
        desk.give(1, &["a"]).await;
        for (end, attempts) in [
            (again(Duration::ZERO, true), 1),
            (again(Duration::ZERO, false), 1),
            (End::Unused, 1),
            (again(Duration::ZERO, true), 2),
            (held(), 3),
        ] {
            assert!(desk.end(&desk.the_lease().await, end).await);
            assert_eq!(desk.the_entry().await.attempts, attempts);
        }
    })
    .await;
}

/// Q20: the backend's progress is on disk, stays with the activity, and gives its lease more time.
#[tokio::test]
async fn a_note_stays() {
    each(async |mut desk| {
        desk.give(1, &["a"]).await;
        let ticket = desk.the_lease().await;
        let item = ticket.item;
        assert_eq!(desk.open(item).await.unwrap().note, None);
        for note in ["{\"step\":1}", "{\"step\":\"\u{e9}\"}"] {
            desk.clock.pass(LEASE - MINUTE);
            assert!(desk.note(&ticket, note.to_owned()).await.unwrap());
            desk.clock.pass(LEASE - MINUTE);
            assert_eq!(desk.leases(10).await, []);
            assert_eq!(desk.open(item).await.unwrap().note.as_deref(), Some(note));
        }
        let note = async |desk: &Desk| desk.open(item).await.unwrap().note.unwrap();
        desk.crash();
        let ticket = desk.the_lease().await;
        assert_eq!(note(&desk).await, "{\"step\":\"\u{e9}\"}");
        assert!(desk.end(&ticket, held()).await);
        assert_eq!(desk.change(vec![item], Change::Retry).await.unwrap(), 1);
        assert_eq!(note(&desk).await, "{\"step\":\"\u{e9}\"}");
        let ticket = desk.the_lease().await;
        assert!(desk.note(&ticket, "3".to_owned()).await.unwrap());
        assert!(desk.end(&ticket, again(Duration::ZERO, true)).await);
        assert_eq!(note(&desk).await, "3");
        let ticket = desk.the_lease().await;
        assert!(desk.end(&ticket, End::Taken).await);
        assert!(!desk.note(&ticket, "4".to_owned()).await.unwrap());
    })
    .await;
}

/// Q21: what is leased is left alone, and the answer says how many were changed.
#[tokio::test]
async fn a_person_never_touches_what_is_leased() {
    let hold = Change::Hold { reason: "wait".to_owned() };
    each_with([Change::Retry, hold, Change::Drop], async |desk, change| {
        for id in 0..3 {
            desk.give(id, &["a"]).await;
        }
        let tickets = desk.leases(2).await;
        let leased = [tickets[0].item, tickets[1].item];
        let all = ids(&desk.all().await);
        let before =
            format!("{:?}", desk.all().await.iter().filter(|e| leased.contains(&e.id)).collect::<Vec<_>>());
        for queue in [&**desk.queue.as_ref().unwrap(), &*desk.beside()] {
            let changed = queue.change([&all[..], &[i64::MAX, -1]].concat(), change.clone()).await.unwrap();
            let left = desk.all().await;
            let after = format!("{:?}", left.iter().filter(|e| leased.contains(&e.id)).collect::<Vec<_>>());
            assert_eq!(after, before);
            // Held once, dropped once; retried as often as one likes.
            let once = left.len() == 3 && left.iter().all(|entry| entry.state != State::Held);
            assert!(changed == 1 || (changed == 0 && !once), "{changed}");
        }
        assert_eq!(
            desk.numbers().await,
            match change {
                Change::Retry => (3, 0),
                Change::Hold { .. } => (2, 1),
                Change::Drop => (2, 0),
            }
        );
        for ticket in tickets {
            assert!(desk.end(&ticket, End::Taken).await);
        }
    })
    .await;
}

/// Q22: retried as if just accepted, held with the reason, dropped and not recorded again.
#[tokio::test]
async fn a_person_retries_holds_and_drops() {
    each(async |mut desk| {
        desk.put(letter(&desk.settings.spool, 1, LARGE, &["a"]).await).await.unwrap();
        let item = desk.the_entry().await.id;
        let change = async |desk: &Desk, change: Change| desk.change(vec![item], change).await.unwrap();
        assert!(desk.end(&desk.the_lease().await, again(DAY, true)).await);
        assert_eq!(change(&desk, Change::Hold { reason: "wait".to_owned() }).await, 1);
        let entry = desk.the_entry().await;
        assert_eq!((entry.state, entry.attempts, entry.reason.as_deref()), (State::Held, 1, Some("wait")));
        assert_eq!((desk.leases(1).await, desk.numbers().await), (Vec::new(), (0, 1)));
        desk.clock.pass(3 * HOUR);
        assert_eq!(change(&desk, Change::Retry).await, 1);
        desk.crash();
        let entry = desk.the_entry().await;
        let now = desk.clock.wall();
        assert_eq!(
            (entry.state, entry.attempts, entry.accepted_at, entry.due),
            (State::Waiting, 0, now, now)
        );
        assert_eq!(desk.numbers().await, (1, 0));
        assert!(desk.end(&desk.the_lease().await, again(DAY, true)).await);
        assert_eq!(change(&desk, Change::Retry).await, 1);
        assert!(desk.end(&desk.the_lease().await, again(DAY, true)).await);
        assert_eq!(change(&desk, Change::Drop).await, 1);
        assert_eq!((desk.counts().await.unwrap(), desk.files()), (Counts::default(), Vec::new()));
        assert!(matches!(desk.open(item).await, Err(StorageError::Gone(_))));
        assert_eq!(change(&desk, Change::Retry).await, 0);
        desk.live(6).await;
        let parcel = letter(&desk.settings.spool, 1, LARGE, &["a"]).await;
        assert_eq!(desk.put(parcel).await.unwrap(), [Put::Known]);
    })
    .await;
}

/// Q22: thousands at once, while others put.
#[tokio::test]
async fn a_person_changes_many() {
    each(async |desk| {
        for id in 0..60 {
            let targets: Vec<String> = (0..20).map(|project| format!("t{}/{project}", id % 3)).collect();
            desk.give(id, &targets.iter().map(String::as_str).collect::<Vec<_>>()).await;
        }
        let all = ids(&desk.all().await);
        let hold = desk.change(all.clone(), Change::Hold { reason: "x".to_owned() });
        let (held, put) = tokio::join!(hold, desk.give(99, &["t0"]));
        assert_eq!((held.unwrap(), put), (1200, vec![Put::New]));
        assert_eq!(desk.numbers().await, (1, 1200));
        assert_eq!(desk.change(all[..700].to_vec(), Change::Retry).await.unwrap(), 700);
        assert_eq!(desk.change(all, Change::Drop).await.unwrap(), 1200);
        assert_eq!(desk.numbers().await, (1, 0));
    })
    .await;
}

/// Q23: each filter, alone and with others.
#[tokio::test]
async fn a_list_has_what_the_filter_lets_through() {
    each(async |desk| {
        // Ten, a minute apart: one in flight, three held, six waiting.
        for id in 0..10 {
            desk.give(id, &[["a", "b", "c"][id % 3]]).await;
            desk.clock.pass(MINUTE);
        }
        let all = desk.all().await;
        let (rows, keys): (Vec<i64>, Vec<String>) =
            all.iter().map(|entry| (entry.id, entry.key.to_string())).unzip();
        assert!(rows.is_sorted() && rows.len() == 10);
        let hold = Change::Hold { reason: "x".to_owned() };
        assert_eq!(desk.change(vec![rows[1], rows[4], rows[6]], hold).await.unwrap(), 3);
        desk.told(vec![rows[4]]).await.unwrap();
        assert_eq!(desk.leases(1).await[0].item, rows[0]);
        let list = async |filter: Filter| -> Vec<usize> {
            let found = desk.list(filter).await.unwrap();
            found.iter().map(|entry| rows.iter().position(|id| *id == entry.id).unwrap()).collect()
        };
        let none = Filter::default;
        let state = |state| Some(state);
        assert_eq!(list(Filter { state: state(State::Held), ..none() }).await, [1, 4, 6]);
        assert_eq!(list(Filter { state: state(State::InFlight), ..none() }).await, [0]);
        assert_eq!(list(Filter { state: state(State::Waiting), ..none() }).await, [2, 3, 5, 7, 8, 9]);
        for tenant in ["b", "b-inbox"] {
            let tenant = Some(tenant.to_owned());
            assert_eq!(list(Filter { tenant: tenant.clone(), ..none() }).await, [1, 4, 7]);
            let filter = Filter { tenant: tenant.clone(), state: state(State::Waiting), ..none() };
            assert_eq!(list(filter).await, [7]);
            let filter = Filter { tenant, keys: vec![keys[4].clone(), keys[5].clone()], ..none() };
            assert_eq!(list(filter).await, [4]);
        }
        assert_eq!(list(Filter { tenant: Some("x".to_owned()), ..none() }).await, Vec::<usize>::new());
        let before = Some(noon() + 3 * MINUTE);
        assert_eq!(list(Filter { before, ..none() }).await, [0, 1, 2]);
        assert_eq!(list(Filter { before, state: state(State::Held), ..none() }).await, [1]);
        // Pages.
        for state in [None, state(State::Held), state(State::Waiting), state(State::InFlight)] {
            let whole = list(Filter { state, ..none() }).await;
            for size in 1..4 {
                let (mut pages, mut after) = (Vec::new(), None);
                loop {
                    let filter = Filter { state, after, limit: Some(size), ..none() };
                    let page = list(filter).await;
                    assert!(page.len() <= size);
                    let Some(last) = page.last() else { break };
                    after = Some(rows[*last]);
                    pages.extend(page);
                }
                assert_eq!(pages, whole);
            }
        }
        assert_eq!(list(Filter { limit: Some(0), ..none() }).await, Vec::<usize>::new());
        // Keys, in the order asked for.
        let asked = vec![keys[7].clone(), keys[2].clone()];
        assert_eq!(list(Filter { keys: asked.clone(), ..none() }).await, [7, 2]);
        assert_eq!(list(Filter { keys: asked, limit: Some(1), ..none() }).await, [7]);
        let filter = Filter { keys: keys.clone(), state: state(State::Held), ..none() };
        assert_eq!(list(filter).await, [1, 4, 6]);
    })
    .await;
}

/// Q23: why the newest are held, and what waits longest, within bounds.
#[tokio::test]
async fn an_overview_has_the_reasons_and_what_waits_longest() {
    each(async |desk| {
        let empty = desk.overview(100, 10).await.unwrap();
        assert!(empty.held_for.is_empty() && empty.oldest.is_empty());
        // Ten, a minute apart; then five are held, two and three for one reason.
        for id in 0..10 {
            desk.give(id, &[["a", "b", "c"][id % 3]]).await;
            desk.clock.pass(MINUTE);
        }
        let rows = ids(&desk.all().await);
        let hold = async |which: &[usize], reason: &str| {
            let which = which.iter().map(|at| rows[*at]).collect();
            desk.change(which, Change::Hold { reason: reason.to_owned() }).await.unwrap();
            desk.clock.pass(MINUTE);
        };
        hold(&[0, 3], "two").await;
        hold(&[1, 6, 7], "<three>").await;
        // Told of or not makes no difference.
        desk.told(vec![rows[6], rows[3]]).await.unwrap();
        let leased = desk.leases(1).await[0].item;
        let seen = desk.overview(100, 3).await.unwrap();
        let reasons: Vec<_> =
            seen.held_for.iter().map(|of| (of.reason.as_str(), of.count, of.tenants)).collect();
        assert_eq!(reasons, [("<three>", 3, 2), ("two", 2, 1)]);
        assert_eq!((seen.held_for[1].tenant.as_str(), seen.held_for[1].since), ("a", noon() + 10 * MINUTE));
        // What waits or is being attempted, oldest first, and not more than was asked for.
        assert_eq!(ids(&seen.oldest), [rows[2], rows[4], rows[5]]);
        assert!(seen.oldest.iter().all(|one| (one.state == State::InFlight) == (one.id == leased)));
        // Of what is held only the newest are looked at.
        let seen = desk.overview(3, 10).await.unwrap();
        let reasons: Vec<_> = seen.held_for.iter().map(|of| (of.reason.as_str(), of.count)).collect();
        assert_eq!(reasons, [("<three>", 2), ("two", 1)]);
        assert_eq!(ids(&seen.oldest), [rows[2], rows[4]], "of three rows, one is held");
    })
    .await;
}

/// Q23: a key by any beginning.
#[tokio::test]
async fn a_key_is_found_by_its_beginning() {
    each(async |desk| {
        for id in 0..40 {
            desk.give(id, &["a"]).await;
        }
        let all = desk.all().await;
        let list = async |key: String| {
            ids(&desk.list(Filter { keys: vec![key], ..Filter::default() }).await.unwrap())
        };
        for entry in all.iter().take(5) {
            let hex = entry.key.as_str().strip_prefix("b3:").unwrap();
            for length in [1, 2, 3, 7, 12, 63, 64] {
                let beginning = &hex[..length];
                let same = all.iter().filter(|other| other.key.as_str()[3..].starts_with(beginning));
                let same: Vec<i64> = same.map(|entry| entry.id).collect();
                assert_eq!(list(beginning.to_owned()).await, same, "{beginning}");
                assert_eq!(list(format!("b3:{beginning}")).await, same, "{beginning}");
            }
            for wrong in [format!("{hex}0"), format!("{}g", &hex[..3]), "%".to_owned(), "é".to_owned()] {
                assert!(list(wrong).await.is_empty());
            }
        }
    })
    .await;
}

/// Q24: numbers of all and of each, always.
#[tokio::test]
async fn numbers_are_right() {
    each(async |mut desk| {
        assert_eq!(desk.counts().await.unwrap(), Counts::default());
        for id in 0..6 {
            desk.give(id, &["a"]).await;
            desk.clock.pass(MINUTE);
        }
        desk.give(6, &["c", "b", "b/1"]).await;
        let rows = ids(&desk.all().await);
        let oldest = |minute: u32| Some(noon() + minute * MINUTE);
        let counts = Counts { waiting: 9, held: 0, oldest: oldest(0) };
        assert_eq!(desk.counts().await.unwrap(), counts);
        for ticket in desk.leases(9).await {
            let end = match ticket.item {
                item if item == rows[0] => End::Taken,
                item if rows[1..3].contains(&item) => held(),
                _ => End::Unused,
            };
            assert!(desk.end(&ticket, end).await);
        }
        for crashed in [false, true] {
            if crashed {
                desk.crash();
            }
            let counts = Counts { waiting: 6, held: 2, oldest: oldest(3) };
            assert_eq!(desk.counts().await.unwrap(), counts);
            let of = |tenant: &str, waiting, held| TenantCounts { tenant: tenant.to_owned(), waiting, held };
            assert_eq!(desk.by_tenant().await.unwrap(), [of("a", 3, 2), of("b", 2, 0), of("c", 1, 0)]);
            assert_eq!(desk.beside().by_tenant().await.unwrap(), desk.by_tenant().await.unwrap());
            assert_eq!(desk.beside().counts().await.unwrap(), counts);
        }
        // What a person tries again waits since now, though it stands before others.
        assert_eq!(desk.change(vec![rows[1]], Change::Retry).await.unwrap(), 1);
        assert_eq!(desk.numbers().await, (7, 1));
        desk.change(rows, Change::Drop).await.unwrap();
        assert_eq!(desk.counts().await.unwrap(), Counts::default());
        assert_eq!(desk.by_tenant().await.unwrap(), []);
    })
    .await;
}

/// Q25: of each held one somebody is told once; who holds by hand knows already.
#[tokio::test]
async fn somebody_is_told_once() {
    each(async |mut desk| {
        for id in 0..4 {
            desk.give(id, &["a"]).await;
        }
        let rows = ids(&desk.all().await);
        desk.change(vec![rows[3]], Change::Hold { reason: "wait".to_owned() }).await.unwrap();
        for ticket in desk.leases(3).await {
            assert!(desk.end(&ticket, held()).await);
        }
        let page = async |desk: &Desk, after, limit| {
            let untold = desk.untold(after, limit).await.unwrap();
            for one in &untold {
                let activity: serde_json::Value = serde_json::from_str(&one.activity).unwrap();
                assert_eq!((activity["tenant"]["id"].as_str(), &*one.reason), (Some("a"), "422"));
            }
            untold.iter().map(|one| one.id).collect::<Vec<_>>()
        };
        let untold = async |desk: &Desk, limit| page(desk, None, limit).await;
        assert_eq!(untold(&desk, 10).await, rows[..3]);
        assert_eq!(untold(&desk, 2).await, rows[..2]);
        assert_eq!(page(&desk, Some(rows[0]), 1).await, [rows[1]]);
        assert_eq!(page(&desk, Some(rows[1]), 10).await, [rows[2]]);
        assert!(page(&desk, Some(rows[2]), 10).await.is_empty());
        desk.told(vec![rows[0], rows[2], i64::MAX]).await.unwrap();
        desk.crash();
        assert_eq!(untold(&desk, 10).await, [rows[1]]);
        desk.told(vec![rows[1]]).await.unwrap();
        assert!(untold(&desk, 10).await.is_empty());
    })
    .await;
}

/// Q26: who waits for work or for something held is woken.
#[tokio::test]
async fn who_waits_is_woken() {
    each(async |desk| {
        let woken = async |signal: std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>>| {
            tokio::time::timeout(PATIENCE, signal).await.unwrap();
        };
        assert!(desk.newly_held().now_or_never().is_none());
        desk.give(1, &["a"]).await;
        woken(desk.arrival()).await;
        for end in [again(Duration::ZERO, true), End::Unused] {
            assert!(desk.end(&desk.the_lease().await, end).await);
            woken(desk.arrival()).await;
        }
        assert!(desk.newly_held().now_or_never().is_none());
        assert!(desk.end(&desk.the_lease().await, held()).await);
        woken(desk.newly_held()).await;
        desk.change(vec![desk.the_entry().await.id], Change::Retry).await.unwrap();
        woken(desk.arrival()).await;
        desk.clock.pass(MAX_AGE + MINUTE);
        assert_eq!(desk.tidy().await.too_old.len(), 1);
        woken(desk.newly_held()).await;
    })
    .await;
}

/// Q26: also by what a command does.
#[tokio::test]
async fn a_command_s_change_arrives() {
    each(async |desk| {
        desk.give(1, &["a"]).await;
        assert!(desk.end(&desk.the_lease().await, held()).await);
        let item = desk.the_entry().await.id;
        assert_eq!(desk.beside().change(vec![item], Change::Retry).await.unwrap(), 1);
        let arrived = async {
            while desk.leases(1).await.is_empty() {
                desk.arrival().await;
            }
        };
        tokio::time::timeout(PATIENCE, arrived).await.unwrap();
        assert_eq!(desk.numbers().await, (1, 0));
    })
    .await;
}

/// Q27: what waits for too long is held, on both sides of the limit, unless somebody is at it.
#[tokio::test]
async fn what_waits_for_too_long_is_held() {
    each(async |desk| {
        desk.give(1, &["a"]).await;
        desk.give(2, &["a"]).await;
        let leased = desk.leases(1).await.remove(0);
        desk.clock.pass(HOUR / 2);
        assert_eq!(desk.open(leased.item).await.unwrap().age, HOUR / 2);
        let tidy = async |desk: &Desk, max_age| desk.upkeep(max_age).await.unwrap().too_old;
        assert!(tidy(&desk, HOUR / 2).await.is_empty());
        let too_old = tidy(&desk, HOUR / 2 - Duration::from_millis(1)).await;
        let all = desk.all().await;
        let queue_id = all[1].queue_id.clone();
        assert!(queue_id.is_some());
        assert_eq!(too_old, [NewlyHeld { key: all[1].key.clone(), tenant: "a".to_owned(), queue_id }]);
        assert_eq!((all[0].state, all[1].state), (State::InFlight, State::Held));
        assert!(all[1].reason.is_some() && all[1].attempts == 0);
        assert_eq!((desk.numbers().await, desk.untold(None, 10).await.unwrap().len()), ((1, 1), 1));
        assert!(desk.end(&leased, again(Duration::ZERO, true)).await);
        assert_eq!(tidy(&desk, MINUTE).await.len(), 1);
        // Retried, it is new.
        desk.change(vec![all[0].id], Change::Retry).await.unwrap();
        assert!(tidy(&desk, MINUTE).await.is_empty());
        desk.clock.pass(2 * MINUTE);
        assert_eq!(tidy(&desk, MINUTE).await.len(), 1);
    })
    .await;
}

/// Q27: also what a command tried again while the service was too busy to wait for it.
#[tokio::test]
async fn what_a_command_retried_is_held_in_its_time() {
    each(async |desk| {
        desk.tidy().await;
        desk.give(1, &["a"]).await;
        assert!(desk.end(&desk.the_lease().await, held()).await);
        desk.give(2, &["a"]).await;
        assert_eq!(desk.numbers().await, (1, 1));
        let first = ids(&desk.all().await)[0];
        assert_eq!(desk.beside().change(vec![first], Change::Retry).await.unwrap(), 1);
        desk.clock.pass(2 * MINUTE);
        assert_eq!(desk.upkeep(MINUTE).await.unwrap().too_old.len(), 2);
    })
    .await;
}

const TWO_HOURS: i64 = 2 * 3600;
const A_YEAR: i64 = 365 * 86_400;

/// Q28: mail that came while the clock was ahead is due once it is right, with and without a new start.
#[tokio::test]
async fn a_clock_that_was_ahead_parks_no_mail() {
    let cases = [TWO_HOURS, A_YEAR].into_iter().flat_map(|ahead| {
        [(false, false), (false, true), (true, false), (true, true)].map(|crashes| (ahead, crashes))
    });
    each_with(cases.collect::<Vec<_>>(), async |mut desk, (ahead, (before, after))| {
        desk.leap(ahead);
        for (id, target) in [(1, "a"), (2, "b"), (3, "b")] {
            desk.give(id, &[target]).await;
        }
        let tickets = desk.leases(3).await;
        assert!(desk.end(&tickets[0], again(MINUTE, true)).await);
        assert!(desk.end(&tickets[1], held()).await);
        if before {
            desk.crash();
        }
        desk.leap(-ahead);
        if after {
            desk.crash();
        }
        assert_eq!(desk.tidy().await.mended, 3);
        let now = desk.clock.wall();
        for entry in desk.all().await {
            assert!(
                entry.accepted_at <= now && (entry.state == State::InFlight || entry.due <= now),
                "{entry:?}"
            );
        }
        let crashed = before || after;
        assert_eq!(desk.leases(10).await.len(), if crashed { 2 } else { 1 });
        if !crashed {
            // Given back, it is due now, not when the wrong clock says.
            assert!(desk.end(&tickets[2], End::Unused).await);
            assert_eq!(desk.leases(10).await.len(), 1);
        }
        assert_eq!(desk.tidy().await.mended, 0);
        // What was true for a while is true again: old is old, and keys are forgotten.
        desk.live(6).await;
        let key = desk.all().await[0].key.clone();
        desk.clock.pass(LEASE);
        assert_eq!(desk.tidy().await.too_old.len(), 2);
        desk.change(ids(&desk.all().await), Change::Drop).await.unwrap();
        assert_eq!(desk.knows(std::slice::from_ref(&key)).await, [true]);
        desk.live(21).await;
        assert_eq!(desk.knows(&[key]).await, [false]);
    })
    .await;
}

/// When the queue learns that the clock was set.
#[derive(Clone, Copy, Debug)]
enum Notice {
    Running,
    /// It was set while the service was down.
    AtStart,
    /// Something came before anybody looked, and then there was a crash.
    AfterMailAndCrash,
    /// It was seen, and then there was a crash.
    SeenThenCrash,
    /// A person had retried the newest meanwhile, beside.
    AfterRetryAndCrash,
}

/// Q29: a clock that leaps forward makes nothing old for a day, and no key is forgotten; then it is believed.
#[tokio::test]
async fn a_leap_forward_is_not_believed_for_a_day() {
    let notices = [
        Notice::Running,
        Notice::AtStart,
        Notice::AfterMailAndCrash,
        Notice::SeenThenCrash,
        Notice::AfterRetryAndCrash,
    ];
    each_with(notices, async |mut desk, notice| {
        desk.give(1, &["a"]).await;
        desk.live(7).await; // nearly what a key is kept for
        desk.clock.pass(23 * HOUR);
        desk.give(2, &["a"]).await;
        let gone = desk.leases(10).await.remove(0);
        let key = desk.open(gone.item).await.unwrap().key;
        assert!(desk.end(&gone, End::Taken).await);
        desk.clock.pass(2 * HOUR);
        desk.upkeep(1000 * DAY).await.unwrap();
        if matches!(notice, Notice::AfterRetryAndCrash) {
            desk.give(4, &["b"]).await;
        }
        desk.leap(16 * 86_400);
        match notice {
            Notice::Running => {}
            Notice::AtStart => desk.crash(),
            Notice::AfterMailAndCrash => {
                desk.give(3, &["b"]).await;
                desk.crash();
            }
            Notice::AfterRetryAndCrash => {
                let newest = desk.all().await.last().unwrap().id;
                assert_eq!(desk.beside().change(vec![newest], Change::Retry).await.unwrap(), 1);
                desk.crash();
            }
            Notice::SeenThenCrash => {
                assert!(desk.tidy().await.jumped.is_some());
                desk.crash();
            }
        }
        let mut jumped = !matches!(notice, Notice::Running | Notice::AtStart);
        for _ in 0..24 {
            let done = desk.tidy().await;
            jumped |= done.jumped.is_some();
            assert!(done.too_old.is_empty());
            assert_eq!(desk.knows(std::slice::from_ref(&key)).await, [true]);
            for entry in desk.all().await {
                assert_eq!(desk.open(entry.id).await.unwrap().age, Duration::ZERO);
            }
            desk.clock.pass(HOUR - Duration::from_millis(1));
        }
        assert!(jumped);
        desk.clock.pass(MINUTE);
        assert_eq!(desk.tidy().await.too_old.len(), 1);
        desk.live(21).await;
        assert_eq!(desk.knows(&[key]).await, [false]);
    })
    .await;
}

/// Q29: who puts it right is believed at once, and an hour more or less is no leap.
#[tokio::test]
async fn a_clock_put_right_is_believed() {
    each(async |desk| {
        desk.give(1, &["a"]).await;
        desk.live(6).await;
        desk.leap(30 * 86_400);
        assert!(desk.tidy().await.too_old.is_empty());
        desk.leap(-30 * 86_400);
        assert_eq!(desk.tidy().await.too_old.len(), 1);
        desk.give(2, &["a"]).await;
        desk.live(4).await;
        desk.clock.pass(23 * HOUR);
        desk.leap(3600);
        let done = desk.tidy().await;
        assert_eq!((done.jumped, done.too_old.len()), (None, 0));
        desk.clock.pass(MINUTE);
        assert_eq!(desk.tidy().await.too_old.len(), 1);
    })
    .await;
}

/// Q30: a clock set back makes nothing old, forgets nothing and hides nothing.
#[tokio::test]
async fn a_leap_back_harms_nothing() {
    each_with([false, true], async |mut desk, crashes| {
        desk.give(1, &["a"]).await;
        let key = desk.all().await[0].key.clone();
        assert!(desk.end(&desk.the_lease().await, End::Taken).await);
        desk.give(2, &["a"]).await;
        desk.leap(-A_YEAR);
        if crashes {
            desk.crash();
        }
        desk.give(3, &["a"]).await;
        let done = desk.tidy().await;
        assert!(done.too_old.is_empty() && done.jumped.is_none());
        assert_eq!(desk.leases(10).await.len(), 2);
        desk.live(6).await;
        assert_eq!(desk.give(1, &["a"]).await, [Put::Known]);
        assert_eq!(desk.numbers().await, (2, 0));
        // And nothing is remembered for a year because of it: the time of a generation goes on from here.
        desk.live(21).await;
        assert_eq!(desk.knows(&[key]).await, [false]);
    })
    .await;
}

/// Q31: many at once: nothing lost, nothing twice, and the numbers are right.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_at_once() {
    const EACH: usize = 40;
    each(async |desk| {
        let desk = desk.with(|settings| settings.max_items = 2000);
        let queue = desk.queue.clone().unwrap();
        let mut putting = tokio::task::JoinSet::new();
        for task in 0..8 {
            let (queue, spool) = (Arc::clone(&queue), desk.settings.spool.clone());
            putting.spawn(async move {
                let mut new = 0;
                for n in 0..EACH {
                    // Every fourth is the same as a neighbour's, every tenth is large.
                    let id = if n % 4 == 0 { n } else { 1000 * task + n };
                    let size = if n % 10 == 0 { LARGE } else { 10 };
                    let tenant = format!("t{}", id % 5);
                    let puts = queue.put(letter(&spool, id, size, &[&tenant, "all"]).await).await.unwrap();
                    assert_eq!(puts[0], puts[1]);
                    new += usize::from(puts[0] == Put::New);
                }
                new
            });
        }
        let taking = {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move {
                let mut taken = HashSet::new();
                for round in 0.. {
                    let leased = queue.lease(Ask { room: 20, ..Ask::default() }).await.unwrap();
                    if leased.tickets.is_empty() && round > 400 {
                        break;
                    }
                    let ends = leased.tickets.iter().map(|ticket| {
                        let end = if round % 3 == 0 { again(Duration::ZERO, true) } else { End::Taken };
                        (ticket.clone(), end)
                    });
                    let ends: Vec<_> = ends.collect();
                    let ours = queue.finish(ends.clone()).await.unwrap();
                    assert_eq!(ours, vec![true; ends.len()]);
                    for (ticket, end) in ends {
                        if end == End::Taken {
                            assert!(taken.insert(ticket.item));
                        }
                    }
                }
                taken.len()
            })
        };
        let beside = desk.beside();
        for _ in 0..20 {
            let rows = ids(&beside.list(Filter { limit: Some(20), ..Filter::default() }).await.unwrap());
            beside.change(rows, Change::Retry).await.unwrap();
            desk.tidy().await;
        }
        let new: usize = putting.join_all().await.into_iter().sum();
        assert_eq!(new, EACH / 4 + 8 * EACH * 3 / 4);
        let taken = taking.await.unwrap();
        let left = desk.all().await;
        assert_eq!(taken + left.len(), 2 * new);
        assert_eq!(desk.numbers().await, (left.len() as u64, 0));
        desk.change(ids(&left), Change::Drop).await.unwrap();
        assert_eq!((desk.counts().await.unwrap(), desk.files()), (Counts::default(), Vec::new()));
        // The room is all there again.
        drop((queue, beside));
        let desk = desk.with(|settings| settings.max_items_per_tenant = Some(2000));
        let targets: Vec<String> = (0..2000).map(|project| format!("t/{project}")).collect();
        let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
        assert_eq!(desk.give(100_000, &targets).await.len(), 2000);
    })
    .await;
}

/// Q32: one service; commands beside it do not put or lease, and an absent queue is not made by them.
#[tokio::test]
async fn one_service_and_commands_beside_it() {
    each(async |desk| {
        assert!(matches!(desk.open_once_more(), Err(OpenError::InUse(_) | OpenError::SpoolInUse(_))));
        desk.give(1, &["a"]).await;
        let beside = desk.beside();
        let parcel = desk.letter(2, &["a"]).await;
        assert!(matches!(beside.put(parcel).await, Err(StorageError::Other(_))));
        assert!(matches!(beside.lease(Ask::default()).await, Err(StorageError::Other(_))));
        assert!(matches!(beside.upkeep(DAY).await, Err(StorageError::Other(_))));
        let item = desk.the_entry().await.id;
        assert_eq!(beside.open(item).await.unwrap().key, desk.open(item).await.unwrap().key);
        let nothing = (desk.engine == Engine::Postgres).then(|| Cluster::shared().database());
        let server = nothing.as_ref().map(|database| database.server());
        let path = desk.directory.path().join("none.db");
        let elsewhere = Settings { path, server, ..desk.settings.clone() };
        let absent = queue::beside(&elsewhere, Arc::clone(&desk.clock) as Arc<dyn Clock>);
        assert!(matches!(absent, Err(OpenError::Missing(_))) && !elsewhere.path.exists());
    })
    .await;
}

/// Q33: what the queue does not know it does not delete; another queue's files are not its own.
#[tokio::test]
async fn files_of_others_stay() {
    with_files(async |mut desk| {
        let parcel = letter(&desk.settings.spool, 1, LARGE, &["a"]).await;
        let expected = bytes_of(&parcel.raw);
        desk.put(parcel.clone()).await.unwrap();
        let ours = desk.files();
        let second = Settings { path: desk.directory.path().join("second.db"), ..desk.settings.clone() };
        let second = queue::open(&second, Arc::clone(&desk.clock) as Arc<dyn Clock>).unwrap();
        second.upkeep(DAY).await.unwrap();
        assert_eq!(second.put(parcel).await.unwrap(), [Put::New]);
        assert_eq!(desk.files().len(), 2 * ours.len());
        for file in &ours {
            std::fs::copy(file, file.with_file_name("77.eml")).unwrap();
            std::fs::copy(file, file.with_file_name("README")).unwrap();
        }
        desk.crash();
        assert_eq!(desk.tidy().await.aside, ours.len() as u64);
        assert_eq!(desk.files().len(), 4 * ours.len());
        assert_eq!(desk.tidy().await.aside, 0);
        assert_eq!(bytes_of(&desk.open(desk.the_entry().await.id).await.unwrap().raw), expected);
        second.open(second.list(Filter::default()).await.unwrap()[0].id).await.unwrap();
    })
    .await;
}

/// Whether who waits for something to lease is woken by what happened.
async fn is_woken(queue: &dyn Queue) -> bool {
    tokio::time::timeout(Duration::from_secs(5), queue.arrival()).await.is_ok()
}

/// Waits until all that happened before was told.
async fn quiet(queue: &dyn Queue) {
    while tokio::time::timeout(Duration::from_secs(2), queue.arrival()).await.is_ok() {}
}

/// Q26: who put it has stopped waiting, and its next try finds it known.
#[tokio::test]
async fn what_nobody_waited_for_arrives() {
    each(async |desk| {
        let mut left = None;
        // On a busy machine the disk may be faster than whoever goes away at once.
        for id in 1..50 {
            quiet(&*desk).await;
            let (before, parcel) = (desk.numbers().await.0, desk.letter(id, &["a"]).await);
            if desk.put(parcel).now_or_never().is_none_or(|put| put.is_err()) {
                left = Some((id, before));
                break;
            }
        }
        let (id, before) = left.expect("somebody who does not wait");
        while desk.numbers().await.0 == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(desk.give(id, &["a"]).await, [Put::Known]);
        assert!(is_woken(&*desk).await);
    })
    .await;
}

/// Q26: a person's page is closed while many are changed.
#[tokio::test]
async fn what_was_changed_before_somebody_left_arrives() {
    each(async |desk| {
        for id in 0..300 {
            desk.give(id, &["a"]).await;
        }
        let all = ids(&desk.all().await);
        let hold = Change::Hold { reason: "by hand".to_owned() };
        assert_eq!(desk.change(all.clone(), hold).await.unwrap(), 300);
        quiet(&*desk).await;
        let mut change = Box::pin(desk.change(all, Change::Retry));
        while desk.numbers().await.0 == 0 {
            if futures_util::poll!(&mut change).is_ready() {
                break; // it was quicker than our look
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(change);
        assert!(is_woken(&*desk).await);
    })
    .await;
}

/// Q26: a lease is over, for its attempt ended without a word.
#[tokio::test]
async fn a_lease_that_is_over_arrives() {
    each(async |desk| {
        desk.give(1, &["a"]).await;
        desk.the_lease().await;
        quiet(&*desk).await;
        desk.clock.pass(LEASE + MINUTE);
        desk.tidy().await;
        assert!(is_woken(&*desk).await);
    })
    .await;
}

/// Q28: what came before the clock was ahead, and was attempted while it was.
#[tokio::test]
async fn an_attempt_while_the_clock_was_ahead_parks_no_mail() {
    each_with([false, true], async |mut desk, restarted| {
        desk.give(1, &["a"]).await;
        desk.tidy().await;
        let ahead = if restarted { 300 * 86_400 } else { 20 * 3600 };
        desk.leap(ahead);
        let ticket = desk.the_lease().await;
        assert!(desk.end(&ticket, again(MINUTE, true)).await);
        desk.tidy().await;
        if restarted {
            desk.queue = None;
        }
        desk.leap(-ahead);
        if restarted {
            desk.crash();
        }
        desk.clock.pass(MINUTE);
        desk.tidy().await;
        desk.clock.pass(HOUR);
        desk.the_lease().await;
    })
    .await;
}

/// Q29: a clock that is years ahead is set back a little, and is still years ahead.
#[tokio::test]
async fn a_clock_put_a_little_righter_is_not_believed() {
    each_with([false, true], async |mut desk, restarted| {
        desk.give(1, &["a"]).await;
        desk.tidy().await;
        desk.leap(300 * 86_400);
        assert!(desk.tidy().await.too_old.is_empty());
        if restarted {
            desk.crash();
        }
        desk.clock.pass(MINUTE);
        desk.leap(-120);
        assert!(desk.tidy().await.too_old.is_empty());
    })
    .await;
}

/// Q29: an unknown file is kept aside for a week, though the clock leaps.
#[tokio::test]
async fn a_leap_forward_removes_no_file() {
    with_files(async |mut desk| {
        let parcel = letter(&desk.settings.spool, 1, 3 * LARGE, &["a"]).await;
        desk.put(parcel).await.unwrap();
        let known = desk.files().remove(0);
        std::fs::copy(&known, known.with_file_name("7.eml")).unwrap();
        desk.clock.set(std::time::SystemTime::now());
        desk.crash();
        assert_eq!(desk.tidy().await.aside, 1);
        desk.leap(300 * 86_400);
        desk.crash();
        desk.tidy().await;
        assert_eq!(desk.files().len(), 2);
    })
    .await;
}

/// Q18: what cannot be written for one activity does not keep the ends of others from the disk.
#[tokio::test]
async fn one_end_that_fails_harms_no_other() {
    each(async |desk| {
        for id in 0..3 {
            desk.give(id, &["a"]).await;
        }
        let tickets = desk.leases(3).await;
        desk.damage("DELETE", &format!("old.id = {}", tickets[1].item));
        let ends = tickets.iter().map(|ticket| (ticket.clone(), End::Taken)).collect();
        desk.finish(ends).await.unwrap_err();
        desk.tidy().await;
        assert_eq!(desk.numbers().await, (1, 0));
    })
    .await;
}

/// Q33: a row that cannot be changed does not stop the rest of the upkeep.
#[tokio::test]
async fn a_step_of_upkeep_that_fails_stops_no_other() {
    with_files(async |mut desk| {
        let parcel = letter(&desk.settings.spool, 1, 3 * LARGE, &["a"]).await;
        desk.put(parcel).await.unwrap();
        let known = desk.files().remove(0);
        std::fs::copy(&known, known.with_file_name("7.eml")).unwrap();
        desk.crash();
        desk.damage("UPDATE OF state", "true");
        desk.clock.pass(MINUTE);
        desk.upkeep(Duration::ZERO).await.unwrap_err();
        assert!(!known.with_file_name("7.eml").exists());
    })
    .await;
}

/// Q23: two beginnings of one key.
#[tokio::test]
async fn a_row_is_listed_once() {
    each(async |desk| {
        desk.give(1, &["a"]).await;
        let key = desk.the_entry().await.key.as_str().to_owned();
        let keys = vec![key[..8].to_owned(), key[..12].to_owned()];
        let found = desk.list(Filter { keys, ..Filter::default() }).await.unwrap();
        assert_eq!(found.len(), 1);
    })
    .await;
}

/// Q22: whoever does not wait for it.
#[tokio::test]
async fn who_leaves_leaves_no_file_of_what_was_dropped() {
    with_files(async |desk| {
        for id in 0..200 {
            let parcel = letter(&desk.settings.spool, id, 2 * LARGE, &["a"]).await;
            desk.put(parcel).await.unwrap();
        }
        let all = ids(&desk.all().await);
        let mut change = Box::pin(desk.change(all, Change::Drop));
        while desk.numbers().await.0 == 200 {
            assert!(futures_util::poll!(&mut change).is_pending());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(change);
        let began = std::time::Instant::now();
        while desk.files().len() as u64 != desk.numbers().await.0 {
            assert!(began.elapsed() < PATIENCE, "{} files", desk.files().len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Keeps what is delivered.
fn keeping(desk: Desk) -> Desk {
    desk.with(|settings| settings.keep_delivered = 2 * DAY)
}

impl Desk {
    /// Delivers all that is due; how many.
    async fn deliver(&self) -> usize {
        let tickets = self.leases(100).await;
        let count = tickets.len();
        for ticket in tickets {
            assert!(self.end(&ticket, End::Taken).await);
        }
        count
    }

    async fn delivered(&self) -> Vec<Entry> {
        self.list(Filter { state: Some(State::Delivered), ..Filter::default() }).await.unwrap()
    }

    /// All that was delivered since then, once more.
    async fn replay(&self, since: SystemTime) -> Replayed {
        self.redeliver(Replay { since, until: None, tenant: None, dry: false }).await.unwrap()
    }
}

fn since(time: SystemTime, activities: u64) -> Kept {
    Kept { activities, since: Some(time) }
}

/// Q34: no list or number has it that does not ask for it; with "0" nothing is kept, and what was kept before goes.
#[tokio::test]
async fn what_was_delivered_is_kept_for_its_time() {
    each_with([10, LARGE], async |desk, size| {
        desk.put(letter(&desk.settings.spool, 1, size, &["a"]).await).await.unwrap();
        assert_eq!(desk.deliver().await, 1);
        assert_eq!((desk.kept().await.unwrap(), desk.files()), (Kept::default(), Vec::new()));
        let mut desk = keeping(desk);
        let begin = desk.clock.wall();
        let parcel = letter(&desk.settings.spool, 2, size, &["a", "b"]).await;
        let (keys, bytes) = (keys_of(&parcel), bytes_of(&parcel.raw));
        desk.put(parcel).await.unwrap();
        desk.clock.pass(HOUR);
        assert_eq!(desk.deliver().await, 2);
        for crashed in [false, true] {
            assert_eq!((desk.all().await.len(), desk.numbers().await), (0, (0, 0)));
            assert_eq!(desk.by_tenant().await.unwrap(), []);
            assert_eq!(desk.kept().await.unwrap(), since(begin, 2), "crashed: {crashed}");
            let kept = desk.delivered().await;
            assert_eq!(
                kept.iter().map(|entry| &entry.key).collect::<Vec<_>>(),
                keys.iter().collect::<Vec<_>>()
            );
            assert!(kept.iter().all(|entry| entry.due == begin + HOUR && entry.state == State::Delivered));
            for entry in &kept {
                assert_eq!(bytes_of(&desk.open(entry.id).await.unwrap().raw), bytes);
            }
            assert_eq!((desk.tidy().await.kept_gone, desk.leases(10).await), (0, Vec::new()));
            desk.crash();
        }
        // Its time is over, of one of them by hand.
        assert_eq!(desk.change(vec![desk.delivered().await[0].id], Change::Drop).await.unwrap(), 1);
        desk.clock.pass(HOUR / 2);
        desk.clock.pass(2 * DAY - HOUR / 2);
        desk.tidy().await;
        let files = desk.files_of(usize::from(size == LARGE));
        assert_eq!((desk.delivered().await.len(), desk.files().len()), (1, files));
        desk.clock.pass(Duration::from_millis(1));
        desk.tidy().await;
        assert_eq!((desk.delivered().await.len(), desk.files()), (0, Vec::new()));
        assert_eq!(desk.kept().await.unwrap(), since(begin + HOUR + Duration::from_millis(1), 0));
        assert_eq!(desk.knows(&keys).await, [true, true]);
        // No longer wanted.
        desk.put(letter(&desk.settings.spool, 3, size, &["a"]).await).await.unwrap();
        desk.deliver().await;
        let desk = desk.with(|settings| settings.keep_delivered = Duration::ZERO);
        desk.tidy().await;
        assert_eq!((desk.kept().await.unwrap(), desk.files()), (Kept::default(), Vec::new()));
    })
    .await;
}

/// Q35: nobody's mail is refused because of it; what is not there any more is said.
#[tokio::test]
async fn what_is_kept_takes_no_room_from_anybody() {
    each(async |desk| {
        let desk =
            keeping(desk).with(|settings| (settings.max_items, settings.max_items_per_tenant) = (4, Some(2)));
        let begin = desk.clock.wall();
        for round in 0..4 {
            for id in 0..2 {
                assert_eq!(desk.give(2 * round + id, &["a"]).await, [Put::New]);
            }
            assert_eq!(desk.deliver().await, 2);
            desk.clock.pass(HOUR);
        }
        desk.give(100, &["b"]).await;
        assert_eq!(desk.kept().await.unwrap(), since(begin, 8));
        // No more than the queue would hold with what waits, the newest.
        assert_eq!(desk.tidy().await.kept_gone, 5);
        let kept = desk.delivered().await;
        assert_eq!(kept.iter().map(|entry| entry.due).min(), Some(begin + 2 * HOUR));
        assert_eq!(desk.kept().await.unwrap(), since(begin + 2 * HOUR + Duration::from_millis(1), 3));
        assert_eq!((desk.give(101, &["b"]).await, desk.numbers().await), (vec![Put::New], (2, 0)));
    })
    .await;
}

/// Q35: it goes before the reserve of the disk is felt.
#[tokio::test]
async fn what_is_kept_goes_before_the_disk_is_full() {
    files_with([10, LARGE], async |desk, size| {
        let desk = keeping(desk);
        let give =
            async |desk: &Desk, id| desk.put(letter(&desk.settings.spool, id, size, &["a"]).await).await;
        give(&desk, 1).await.unwrap();
        desk.deliver().await;
        assert_eq!(desk.delivered().await.len(), 1);
        // There is more than the reserve, and less than twice as much.
        let free = desk.settings.free().iter().map(|(_, free)| *free).min().unwrap();
        let desk = desk.with(|settings| settings.min_free = free / 5 * 3);
        assert_eq!(give(&desk, 2).await.unwrap(), [Put::New]);
        let later = desk.clock.wall() + MINUTE;
        desk.clock.pass(MINUTE);
        assert_eq!(desk.deliver().await, 1);
        assert_eq!((desk.delivered().await.len(), desk.files()), (0, Vec::new()));
        let kept = desk.kept().await.unwrap();
        assert!(kept.since.is_some_and(|since| since >= later), "what went is said: {kept:?}");
        assert_eq!(give(&desk, 3).await.unwrap(), [Put::New]);
    })
    .await;
}

/// Q36: once, with their own key, bytes and JSON, with no note of before, as if they had just been accepted.
#[tokio::test]
async fn what_was_delivered_is_delivered_once_more() {
    each_with([10, LARGE], async |desk, size| {
        let mut desk = keeping(desk);
        let parcel = letter(&desk.settings.spool, 1, size, &["a", "b"]).await;
        let (keys, bytes) = (keys_of(&parcel), bytes_of(&parcel.raw));
        let json: Vec<Vec<u8>> = parcel.activities.iter().map(|a| serde_json::to_vec(a).unwrap()).collect();
        desk.put(parcel).await.unwrap();
        for ticket in desk.leases(10).await {
            assert!(desk.note(&ticket, "1".to_owned()).await.unwrap());
            assert!(!desk.open(ticket.item).await.unwrap().replay);
            assert!(desk.end(&ticket, again(Duration::ZERO, true)).await);
        }
        desk.clock.pass(HOUR);
        assert_eq!(desk.deliver().await, 2);
        let delivered = desk.clock.wall();
        desk.clock.pass(HOUR);
        // Nothing but those asked for.
        let all = Replay { since: delivered, until: None, tenant: None, dry: false };
        for (none, tenant) in [
            (Replay { since: delivered + Duration::from_millis(1), ..all.clone() }, None),
            (Replay { until: Some(delivered), ..all.clone() }, None),
            (all.clone(), Some("c")),
        ] {
            let none = Replay { tenant: tenant.map(str::to_owned), ..none };
            assert_eq!(desk.redeliver(none).await.unwrap(), Replayed::default());
        }
        let counted = desk.redeliver(Replay { dry: true, ..all.clone() }).await.unwrap();
        assert_eq!((counted.again, desk.delivered().await.len()), (2, 2));
        let one = Replay { tenant: Some("b-inbox".to_owned()), until: Some(delivered + HOUR), ..all };
        assert_eq!(desk.redeliver(one).await.unwrap().again, 1);
        assert_eq!((desk.numbers().await, desk.delivered().await.len()), ((1, 0), 1));
        assert_eq!(desk.replay(delivered).await, Replayed { again: 1, ..Replayed::default() });
        assert_eq!(desk.replay(delivered).await, Replayed::default(), "they are waiting by now");
        desk.crash();
        assert_eq!((desk.numbers().await, desk.delivered().await.len()), ((2, 0), 0));
        for entry in desk.all().await {
            assert_eq!((entry.attempts, entry.accepted_at), (0, desk.clock.wall()));
            assert!(
                desk.list(Filter { keys: vec![entry.key.to_string()], ..Filter::default() })
                    .await
                    .unwrap()
                    .len()
                    == 1
            );
        }
        assert_eq!(desk.tidy().await.too_old, []);
        let tickets = desk.leases(10).await;
        assert_eq!(tickets.len(), 2);
        for ticket in &tickets {
            let item = desk.open(ticket.item).await.unwrap();
            let at = keys.iter().position(|key| *key == item.key).unwrap();
            assert!(
                item.replay && item.note.is_none() && item.json == json[at] && bytes_of(&item.raw) == bytes
            );
            assert!(desk.end(ticket, End::Taken).await);
        }
        // And once more, for a back-up that is older yet.
        desk.clock.pass(MINUTE);
        assert_eq!(desk.replay(delivered).await.again, 2);
        let parcel = letter(&desk.settings.spool, 1, size, &["a", "b"]).await;
        assert_eq!(desk.put(parcel).await.unwrap(), [Put::Known, Put::Known]);
    })
    .await;
}

/// Q36: a key is its activity's for as long as that is there, also when it was forgotten before.
#[tokio::test]
async fn a_key_is_known_while_its_activity_is_there_again() {
    each(async |desk| {
        let desk = desk.with(|settings| settings.keep_delivered = 100 * DAY);
        let keys = keys_of(&desk.letter(1, &["a"]).await);
        let begin = desk.clock.wall();
        desk.give(1, &["a"]).await;
        desk.deliver().await;
        for _ in 0..40 {
            desk.clock.pass(DAY);
            desk.tidy().await;
        }
        assert_eq!(desk.knows(&keys).await, [false]);
        // The same e-mail comes again, and waits: it is not there twice.
        assert_eq!(desk.give(1, &["a"]).await, [Put::New]);
        assert_eq!(desk.replay(begin).await, Replayed { known: 1, ..Replayed::default() });
        assert_eq!((desk.deliver().await, desk.delivered().await.len()), (1, 2));
        for _ in 0..40 {
            desk.clock.pass(DAY);
            desk.tidy().await;
        }
        desk.clock.pass(MINUTE);
        let done = desk.replay(begin).await;
        assert_eq!(done, Replayed { again: 1, known: 1, left: 0 });
        let item = desk.the_lease().await;
        for _ in 0..20 {
            assert!(desk.note(&item, "1".to_owned()).await.unwrap());
            for _ in 0..24 {
                desk.clock.pass(HOUR - MINUTE);
                assert!(desk.note(&item, "1".to_owned()).await.unwrap());
            }
            desk.tidy().await;
            assert_eq!(desk.give(1, &["a"]).await, [Put::Known]);
        }
        assert!(desk.end(&item, End::Taken).await);
        assert_eq!(desk.knows(&keys).await, [true]);
    })
    .await;
}

/// Q37: mail that arrives has the last quarter, of the queue and of a tenant's share.
#[tokio::test]
async fn what_is_sent_again_leaves_room_for_mail() {
    each(async |desk| {
        let desk = keeping(desk);
        let begin = desk.clock.wall();
        for id in 0..12 {
            desk.give(id, &[if id < 10 { "a" } else { "b" }]).await;
        }
        desk.deliver().await;
        desk.clock.pass(MINUTE);
        let desk = desk.with(|settings| (settings.max_items, settings.max_items_per_tenant) = (12, Some(8)));
        assert_eq!(desk.replay(begin).await, Replayed { again: 8, known: 0, left: 4 });
        assert_eq!(desk.give(100, &["a"]).await, [Put::New]);
        desk.clock.pass(MINUTE);
        assert_eq!(desk.deliver().await, 9);
        assert_eq!(desk.replay(begin).await.again, 4, "the rest");
        desk.clock.pass(MINUTE);
        let full = desk.with(|settings| settings.min_free = u64::MAX);
        let refused = full.redeliver(Replay { since: begin, until: None, tenant: None, dry: false }).await;
        assert!(matches!(refused, Err(StorageError::Full(Full::Disk { .. }))), "{refused:?}");
    })
    .await;
}

/// Q26, Q36: a command's redelivery wakes the service, which sees the numbers.
#[tokio::test]
async fn a_command_has_them_delivered_once_more() {
    each(async |desk| {
        let desk = keeping(desk);
        desk.give(1, &["a"]).await;
        let begin = desk.clock.wall();
        desk.deliver().await;
        desk.clock.pass(MINUTE);
        quiet(&*desk).await;
        let beside = desk.beside();
        assert_eq!(beside.kept().await.unwrap(), since(begin, 1));
        let replay = Replay { since: begin, until: None, tenant: None, dry: false };
        assert_eq!(beside.redeliver(replay).await.unwrap().again, 1);
        assert!(is_woken(&*desk).await);
        let item = desk.the_lease().await;
        assert_eq!(desk.numbers().await, (1, 0));
        assert!(desk.open(item.item).await.unwrap().replay);
    })
    .await;
}

/// Q28, Q34: times of a clock that was ahead are mended; nothing is over by a clock that leapt.
#[tokio::test]
async fn what_is_kept_outlives_a_wrong_clock() {
    each(async |desk| {
        let desk = keeping(desk);
        desk.give(1, &["a"]).await;
        desk.deliver().await;
        let right = desk.clock.wall();
        desk.clock.set(right + 30 * DAY);
        desk.tidy().await;
        assert_eq!(desk.delivered().await.len(), 1, "a leap is not believed");
        desk.give(2, &["a"]).await;
        desk.deliver().await;
        desk.clock.set(right);
        desk.clock.pass(MINUTE);
        desk.tidy().await;
        let now = desk.clock.wall();
        assert!(desk.delivered().await.iter().all(|entry| entry.due <= now), "{:?}", desk.delivered().await);
        desk.clock.pass(MINUTE);
        assert_eq!(desk.replay(right).await.again, 2);
    })
    .await;
}

impl Desk {
    /// A queue that goes on with a copy.
    fn gone_on_with(&self, copy: &Path) -> Self {
        let directory = directory();
        let (path, spool) = (directory.path().join("queue.db"), directory.path().join("spool"));
        let command =
            std::process::Command::new("cp").arg("-r").arg(copy.join(".")).arg(directory.path()).status();
        assert!(command.unwrap().success());
        let settings = Settings { path, spool, ..self.settings.clone() };
        let (engine, clock) = (self.engine, Arc::clone(&self.clock));
        let mut desk = Self { engine, directory, settings, clock, queue: None, database: None };
        desk.queue = Some(desk.open_once_more().unwrap());
        desk
    }
}

/// Q38: as it was, with what is leased, held, attempted and kept; the first goes on, and knows nothing of it.
#[tokio::test]
async fn a_copy_is_the_queue_of_one_moment() {
    files_with([10, LARGE], async |desk, size| {
        let desk = keeping(desk);
        for (id, targets) in [(1, &["a"][..]), (2, &["a", "b"]), (3, &["b"]), (4, &["a/7"])] {
            desk.put(letter(&desk.settings.spool, id, size, targets).await).await.unwrap();
        }
        let tickets = desk.leases(4).await;
        let [End::Taken, again, .., held] = ends() else { unreachable!() };
        for (ticket, end) in tickets.iter().zip([End::Taken, again, held]) {
            assert!(desk.end(ticket, end).await);
        }
        assert!(desk.note(&tickets[3], "1".to_owned()).await.unwrap());
        let place = directory();
        let copied = queue::copy(&desk.settings, place.path()).unwrap();
        assert_eq!((copied.activities, copied.kept, copied.lost.len()), (4, 1, 0));
        let looked = queue::verify(place.path()).unwrap();
        assert_eq!((looked.activities, looked.kept, looked.problems.as_slice()), (4, 1, [].as_slice()));
        let copy = desk.gone_on_with(place.path());
        let shown = |entries: Vec<Entry>| -> Vec<_> {
            let shown = |e: Entry| (e.id, e.key, e.state == State::Held, e.attempts, e.accepted_at, e.reason);
            entries.into_iter().map(shown).collect()
        };
        assert_eq!(shown(copy.all().await), shown(desk.all().await));
        assert_eq!(shown(copy.delivered().await), shown(desk.delivered().await));
        assert_eq!(
            (copy.numbers().await, copy.kept().await.unwrap()),
            (desk.numbers().await, desk.kept().await.unwrap())
        );
        for entry in copy.all().await {
            let (one, other) = (copy.open(entry.id).await.unwrap(), desk.open(entry.id).await.unwrap());
            assert_eq!(
                (bytes_of(&one.raw), one.json, one.note),
                (bytes_of(&other.raw), other.json, other.note)
            );
        }
        copy.tidy().await;
        assert_eq!(copy.files().len(), desk.files().len(), "no file without its row");
        assert_eq!(copy.give(9, &["a"]).await, [Put::New]);
        assert_eq!(desk.numbers().await, (3, 1));
    })
    .await;
}

/// Files of messages below a directory.
fn messages_below(directory: &Path) -> usize {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    entries
        .map(|path| {
            if path.is_dir() {
                messages_below(&path)
            } else {
                usize::from(path.extension().is_some_and(|e| e == "eml"))
            }
        })
        .sum()
}

/// Q38: while messages with files come and go, nothing that stays is missing, and no copy lacks a file.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_while_others_work_is_whole() {
    with_files(async |desk| {
        let stays = desk.put(letter(&desk.settings.spool, 1000, LARGE, &["c"]).await).await.unwrap();
        assert_eq!(stays, [Put::New]);
        for round in 0..6 {
            for id in round * 40..round * 40 + 40 {
                desk.put(letter(&desk.settings.spool, id, LARGE, &["a", "b"]).await).await.unwrap();
            }
            let ask = Ask { room: 100, without: vec!["c".to_owned()], ..Ask::default() };
            let tickets = desk.lease(ask).await.unwrap().tickets;
            let place = directory();
            let (settings, to) = (desk.settings.clone(), place.path().to_owned());
            let copy = tokio::task::spawn_blocking(move || queue::copy(&settings, &to));
            // As soon as the first message is copied, all but that of `c` go.
            while !copy.is_finished() && messages_below(place.path()) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            desk.finish(tickets.into_iter().map(|ticket| (ticket, End::Taken)).collect()).await.unwrap();
            let copied = copy.await.unwrap().unwrap();
            assert_eq!(copied.lost, [] as [PathBuf; 0]);
            assert_eq!(queue::verify(place.path()).unwrap().problems, [] as [String; 0]);
            let copy = desk.gone_on_with(place.path());
            assert!(copy.all().await.iter().any(|entry| entry.tenant == "c"));
            for entry in copy.all().await {
                copy.open(entry.id).await.unwrap();
            }
            assert_eq!(copy.all().await.len() as u64, copied.activities);
        }
    })
    .await;
}

/// Q38: what is wrong is named: a file that is not there, a row that is not what it says, a key that is not known.
#[tokio::test]
async fn what_is_wrong_with_a_copy_is_named() {
    with_files(async |desk| {
        desk.put(letter(&desk.settings.spool, 1, LARGE, &["a"]).await).await.unwrap();
        desk.give(2, &["a", "b"]).await;
        std::fs::remove_file(&desk.files()[0]).unwrap();
        let place = directory();
        let copied = queue::copy(&desk.settings, place.path()).unwrap();
        assert_eq!((copied.activities, copied.lost.len()), (3, 1));
        let problems = || queue::verify(place.path()).unwrap().problems.join("\n");
        assert!(problems().ends_with("the message of an activity is not there"), "{}", problems());
        for (change, expected) in [
            (
                "UPDATE item SET activity = replace(activity, '\"b3:', '\"b4:')",
                "what it says of itself is damaged",
            ),
            ("UPDATE item SET activity = substr(activity, 1, 9)", "what it says of itself is damaged"),
            ("DELETE FROM key_0", "its key is not known"),
            ("DELETE FROM message", "its message is not there"),
        ] {
            let database = rusqlite::Connection::open(place.path().join("queue.db")).unwrap();
            database.execute_batch(change).unwrap();
            drop(database);
            assert!(problems().contains(expected), "{change}: {}", problems());
            let _ = std::fs::remove_dir_all(place.path());
            std::fs::create_dir(place.path()).unwrap();
            queue::copy(&desk.settings, place.path()).unwrap();
        }
    })
    .await;
}

/// Q51: whoever asks now and then hears every word once; whoever missed some takes everything for past.
#[tokio::test]
async fn a_word_to_all_services() {
    each(async |mut desk| {
        let words =
            |prefixes: &[&str]| prefixes.iter().map(|prefix| (*prefix).to_owned()).collect::<Vec<_>>();
        let heard = async |desk: &Desk, after| {
            let mut heard = desk.expired(after).await.unwrap();
            heard.prefixes.sort();
            heard
        };
        assert_eq!(heard(&desk, None).await, Expired::default());
        desk.beside().expire(words(&["a"])).await.unwrap();
        desk.expire(words(&["b", "c", "b"])).await.unwrap();
        let said = |newest, prefixes| Expired { newest, prefixes: words(prefixes) };
        assert_eq!(heard(&desk, None).await, said(4, &[]), "who begins has nothing to forget");
        assert_eq!(heard(&desk, Some(0)).await, said(4, &["a", "b", "c"]));
        assert_eq!(heard(&desk, Some(1)).await, said(4, &["b", "c"]));
        assert_eq!(heard(&desk, Some(4)).await, said(4, &[]));
        // A queue that was restored: what was said is not known any more.
        assert_eq!(heard(&desk, Some(9)).await, said(4, &[""]));
        desk.crash();
        assert_eq!(heard(&desk, Some(3)).await, said(4, &["b"]));
        // Words do not become more and more; whoever was away for so long has missed some.
        desk.clock.pass(2 * DAY);
        desk.expire(words(&["d"])).await.unwrap();
        assert_eq!(heard(&desk, Some(4)).await, said(5, &["d"]));
        assert_eq!(heard(&desk, Some(3)).await, said(5, &["b", "d"]));
        assert_eq!(heard(&desk, Some(2)).await, said(5, &[""]));
        assert_eq!(heard(&desk, Some(0)).await, said(5, &[""]));
        // Many at a time: whoever hears one has heard all before it.
        let queues: Vec<_> = (0..4).map(|_| desk.beside()).collect();
        let saying = queues.iter().map(|queue| queue.expire(words(&["e", "f"])));
        for said in futures_util::future::join_all(saying).await {
            said.unwrap();
        }
        assert_eq!(heard(&desk, Some(5)).await, said(13, &["e", "f"]));
    })
    .await;
}
