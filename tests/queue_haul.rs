//! What moves from one queue to another: by a command, and by a service whose database was away. Real servers, real files;
//! kills at the calls that write.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/database.rs"]
mod database;
#[path = "support/letter.rs"]
mod letter;

use activity_milter::{
    activity::{Key, Parcel},
    queue::{
        self, Ask, Change, End, Filter, Full, HaulError, Hauled, OpenError, Put, Queue, Replay, Rest,
        Settings, State, StorageError, SystemClock, Transfer, haul, postgres::Server,
    },
};
use database::{Cluster, Database};
use letter::{LARGE, bytes_of, letter};
use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

const DAY: Duration = Duration::from_secs(86_400);

/// For what comes at once.
const SOON: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    Sqlite,
    Postgres,
}

use Engine::{Postgres, Sqlite};

/// From where to where.
const WAYS: [(Engine, Engine); 4] =
    [(Sqlite, Postgres), (Postgres, Sqlite), (Sqlite, Sqlite), (Postgres, Postgres)];

/// On a disk: what waits in memory for a database is refused.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A queue's place. Fields are dropped in order.
struct Place {
    settings: Settings,
    _database: Option<Database>,
    directory: tempfile::TempDir,
}

impl Place {
    fn new(engine: Engine) -> Self {
        let database = (engine == Postgres).then(|| Cluster::shared().database());
        let server = database.as_ref().map(Database::server);
        Self { _database: database, ..Self::of(server) }
    }

    fn of(server: Option<Server>) -> Self {
        let directory = directory();
        let (path, spool) = (directory.path().join("queue.db"), directory.path().join("spool"));
        let settings = Settings { server, min_free: 0, keep_delivered: DAY, ..Settings::new(path, spool) };
        Self { settings, _database: None, directory }
    }

    /// Of a machine that keeps mail while that server is away.
    fn spooling(server: Server) -> Self {
        let mut place = Self::of(Some(server));
        place.settings.spool_on_outage = true;
        place
    }

    fn sql(&self, sql: &str) {
        match &self._database {
            Some(database) => drop(database.sql(sql)),
            None => rusqlite::Connection::open(&self.settings.path).unwrap().execute_batch(sql).unwrap(),
        }
    }

    /// As a service.
    fn open(&self) -> Arc<dyn Queue> {
        queue::open(&self.settings, Arc::new(SystemClock)).unwrap()
    }

    fn leave(&self) -> Arc<dyn Queue> {
        queue::open_to_leave(&self.settings, Arc::new(SystemClock)).unwrap()
    }

    fn take_in(&self) -> Arc<dyn Queue> {
        queue::open_to_take_in(&self.settings, Arc::new(SystemClock)).unwrap()
    }

    async fn letter(&self, id: usize, size: usize, targets: &[&str]) -> Parcel {
        letter(self.directory.path(), id, size, targets).await
    }

    /// Small and large messages.
    async fn kind(&self, id: usize) -> Parcel {
        self.letter(id, if id % 5 == 4 { LARGE } else { 10 }, &[["a", "b", "c"][id % 3]]).await
    }

    async fn give_kinds(&self, queue: &dyn Queue, ids: std::ops::Range<usize>) {
        for id in ids {
            assert_eq!(queue.put(self.kind(id).await).await.unwrap(), [Put::New], "{id}");
        }
    }
}

async fn all_of(from: &dyn Queue, to: &dyn Queue) -> Result<Hauled, HaulError> {
    haul(from, to, |_| ControlFlow::Continue(())).await
}

async fn waiting(queue: &dyn Queue) -> u64 {
    queue.counts().await.unwrap().waiting
}

/// Delivers all that is due; how often each.
async fn deliver(queue: &dyn Queue) -> BTreeMap<Key, usize> {
    let mut delivered = BTreeMap::new();
    loop {
        let leased = queue.lease(Ask { room: 50, ..Ask::default() }).await.unwrap();
        if leased.tickets.is_empty() {
            return delivered;
        }
        for ticket in leased.tickets {
            let item = queue.open(ticket.item).await.unwrap();
            assert!(bytes_of(&item.raw).starts_with(b"Subject: s\r\nMessage-ID: <"));
            *delivered.entry(item.key).or_default() += 1;
            assert_eq!(queue.finish(vec![(ticket, End::Taken)]).await.unwrap(), [true]);
        }
    }
}

async fn soon<T>(what: &str, mut works: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(done) = works().await {
            return done;
        }
        assert!(began.elapsed() < SOON, "{what} in vain");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// All that is known of an activity, but for its number.
type Whole =
    (State, u32, SystemTime, SystemTime, Option<String>, Vec<u8>, String, Vec<u8>, Option<String>, bool);

async fn snapshot(queue: &dyn Queue) -> BTreeMap<Key, Whole> {
    let mut all = BTreeMap::new();
    let delivered = Filter { state: Some(State::Delivered), ..Filter::default() };
    for filter in [Filter::default(), delivered] {
        for entry in queue.list(filter).await.unwrap() {
            let item = queue.open(entry.id).await.unwrap();
            let whole = (
                entry.state,
                entry.attempts,
                entry.accepted_at,
                entry.due,
                entry.reason,
                item.json.to_vec(),
                format!("{:?}", item.cuts),
                bytes_of(&item.raw),
                item.note,
                item.replay,
            );
            assert!(all.insert(entry.key, whole).is_none(), "twice");
        }
    }
    all
}

/// Everything that can have become of a message; the letters, and the covered one.
async fn lived(place: &Place, queue: &dyn Queue) -> (Vec<Parcel>, Parcel) {
    let give = async |id, size, targets: &[&str]| {
        let parcel = place.letter(id, size, targets).await;
        assert!(queue.put(parcel.clone()).await.unwrap().iter().all(|put| *put == Put::New));
        parcel
    };
    let lease = async || {
        let mut tickets = queue.lease(Ask { room: 1, ..Ask::default() }).await.unwrap().tickets;
        tickets.pop().unwrap()
    };
    let end = async |ticket, end| assert_eq!(queue.finish(vec![(ticket, end)]).await.unwrap(), [true]);
    let mut all = vec![give(11, 10, &["a"]).await];
    end(lease().await, End::Taken).await;
    tokio::time::sleep(Duration::from_millis(5)).await; // what is delivered in this millisecond is not sent again
    let replay = Replay { since: SystemTime::UNIX_EPOCH, until: None, tenant: None, dry: false };
    assert_eq!(queue.redeliver(replay).await.unwrap().again, 1);
    let hour = Duration::from_secs(3600);
    // What is sent again is not due while the others are at work.
    end(lease().await, End::Again { after: hour, counts: false, reason: "later".to_owned() }).await;
    for (id, size) in [(8, 10), (9, LARGE)] {
        all.push(give(id, size, &["a"]).await);
        end(lease().await, End::Taken).await;
    }
    all.push(give(10, 10, &["c"]).await);
    let ticket = lease().await;
    let dropped = ticket.item;
    end(ticket, End::Unused).await;
    assert_eq!(queue.change(vec![dropped], Change::Drop).await.unwrap(), 1);
    for id in [6, 7] {
        all.push(give(id, 10, &["b"]).await);
        end(lease().await, End::Held { reason: format!("422 of {id}") }).await;
    }
    let untold = queue.untold(None, 10).await.unwrap();
    queue.told(vec![untold[1].id]).await.unwrap();
    all.push(give(5, 10, &["a"]).await);
    let ticket = lease().await;
    assert!(queue.note(&ticket, "{\"step\":1}".to_owned()).await.unwrap());
    end(ticket, End::Again { after: hour, counts: true, reason: "503".to_owned() }).await;
    let project = give(3, LARGE, &["a", "b/7"]).await;
    let covered = place.letter(3, LARGE, &["b"]).await;
    all.push(project);
    for (id, size, targets) in
        [(0, 10, &["a"] as &[_]), (1, LARGE, &["a"]), (2, 10, &["a", "b"]), (4, 1_200_000, &["c"])]
    {
        all.push(give(id, size, targets).await);
    }
    (all, covered)
}

/// Q48: whatever became of it, between all engines, and twice; what was told, counted and remembered moves too.
#[tokio::test(flavor = "multi_thread")]
async fn all_of_a_queue_moves_with_its_past() {
    for (engine, other) in WAYS {
        println!("from {engine:?} to {other:?}");
        let (from, to) = (Place::new(engine), Place::new(other));
        let service = from.open();
        let (letters, covered) = lived(&from, service.as_ref()).await;
        let before = snapshot(service.as_ref()).await;
        let (tenants, overview) =
            (service.by_tenant().await.unwrap(), service.overview(10, 0).await.unwrap().held_for);
        assert_eq!(before.len(), 13);
        let is_shared = engine == Postgres;
        if !is_shared {
            assert!(matches!(
                queue::open_to_leave(&from.settings, Arc::new(SystemClock)),
                Err(OpenError::InUse(_))
            ));
            drop(service);
        }
        let (leaves, takes) = (from.leave(), to.take_in());
        let hauled = all_of(leaves.as_ref(), takes.as_ref()).await.unwrap();
        assert_eq!((hauled.activities, hauled.stuck.len()), (13, 0));
        assert!(snapshot(takes.as_ref()).await == before);
        assert!(snapshot(leaves.as_ref()).await.is_empty());
        assert!(leaves.memory(None, 10).await.unwrap().is_empty());
        assert!(leaves.by_tenant().await.unwrap().is_empty());
        assert_eq!(all_of(leaves.as_ref(), takes.as_ref()).await.unwrap().activities, 0);
        drop((leaves, takes));
        let service = to.open();
        let shown = |of: &queue::HeldFor| (of.reason.clone(), of.count, of.since, of.tenant.clone());
        let held_for = service.overview(10, 0).await.unwrap().held_for;
        assert!(held_for.iter().map(shown).eq(overview.iter().map(shown)));
        let (mut ours, mut theirs) = (service.by_tenant().await.unwrap(), tenants);
        ours.sort_by(|a, b| a.tenant.cmp(&b.tenant));
        theirs.sort_by(|a, b| a.tenant.cmp(&b.tenant));
        assert_eq!(ours, theirs);
        let untold = service.untold(None, 10).await.unwrap();
        assert!(untold.len() == 1 && untold[0].reason == "422 of 6", "{untold:?}");
        assert_eq!(service.kept().await.unwrap().activities, 2);
        for again in letters.into_iter().chain([covered]) {
            let puts = service.put(again).await.unwrap();
            assert!(puts.iter().all(|put| *put == Put::Known), "{puts:?}");
        }
        let delivered = deliver(service.as_ref()).await;
        assert!(delivered.len() == 7 && delivered.values().all(|times| *times == 1), "{delivered:?}");
    }
}

/// Q48: what was taken in and did not leave is known there, also when it was delivered meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_stopped_goes_on() {
    const ALL: usize = 80;
    for (engine, other) in WAYS {
        println!("from {engine:?} to {other:?}");
        let (from, to) = (Place::new(engine), Place::new(other));
        let service = from.open();
        from.give_kinds(service.as_ref(), 0..ALL).await;
        drop(service);
        let (leaves, takes) = (from.leave(), to.take_in());
        // Killed between the two.
        let page = leaves.to_move(false, i64::MIN).await.unwrap();
        let activities: usize = page.transfers.iter().map(queue::Transfer::activities).sum();
        assert!(activities > 10 && activities < ALL);
        assert_eq!(takes.take_in(page.transfers).await.unwrap(), vec![Put::New; activities]);
        if engine == Postgres {
            // No courier has it here when it is said again at the latest: it may be delivered there meanwhile.
            from.sql("UPDATE activity_milter.item SET until = until - 300000");
            let service = from.open();
            let tickets = service.lease(Ask { room: ALL, ..Ask::default() }).await.unwrap().tickets;
            assert_eq!(tickets.len(), ALL - activities);
            let unused = tickets.into_iter().map(|ticket| (ticket, End::Unused)).collect();
            service.finish(unused).await.unwrap();
        }
        // Said again, it takes that up; after each page somebody has enough.
        let hauled = haul(leaves.as_ref(), takes.as_ref(), |_| ControlFlow::Break(())).await.unwrap();
        assert!(hauled.is_stopped && hauled.activities < ALL && hauled.activities >= activities);
        drop(takes);
        let service = to.open();
        let mut delivered = deliver(service.as_ref()).await;
        drop(service);
        assert!(delivered.len() >= activities);
        let takes = to.take_in();
        assert!(all_of(leaves.as_ref(), takes.as_ref()).await.unwrap().activities > 0);
        assert_eq!(waiting(leaves.as_ref()).await, 0);
        drop(takes);
        for (key, times) in deliver(to.open().as_ref()).await {
            *delivered.entry(key).or_default() += times;
        }
        assert!(delivered.len() == ALL && delivered.values().all(|times| *times == 1), "{delivered:?}");
    }
}

/// Q48: one queue under two names is refused before anything is changed, and a copy of one too.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_not_moved_into_itself() {
    let file = Place::new(Sqlite);
    let other_name = file.directory.path().join("link");
    std::os::unix::fs::symlink(file.directory.path(), &other_name).unwrap();
    let link = file.directory.path().join("link.db");
    std::os::unix::fs::symlink(&file.settings.path, &link).unwrap();
    let named = |path| Settings { path, ..file.settings.clone() };
    let database = Place::new(Postgres);
    let cases = [
        (
            &file,
            named(
                file.directory
                    .path()
                    .join("..")
                    .join(file.directory.path().file_name().unwrap())
                    .join("queue.db"),
            ),
        ),
        (&file, named(other_name.join("queue.db"))),
        (&file, Settings { spool: file.directory.path().join("own"), ..named(link) }),
        (&database, database.settings.clone()),
    ];
    for (place, other) in cases {
        println!("{} as {}", place.settings.place(), other.place());
        let service = place.open();
        place.give_kinds(service.as_ref(), 0..3).await;
        let before = snapshot(service.as_ref()).await;
        drop(service);
        let leaves = place.leave();
        let takes = queue::open_to_take_in(&other, Arc::new(SystemClock)).unwrap();
        let refused = all_of(leaves.as_ref(), takes.as_ref()).await;
        assert!(matches!(refused, Err(HaulError::One | HaulError::Copy)), "{refused:?}");
        assert!(snapshot(leaves.as_ref()).await == before);
        drop((leaves, takes));
        assert_eq!(deliver(place.open().as_ref()).await.len(), 3);
        drop(fs::remove_file(&place.settings.path)); // the next one is another queue
    }
    let (from, to) = (Place::new(Sqlite), Place::new(Sqlite));
    from.give_kinds(from.open().as_ref(), 0..3).await;
    fs::copy(&from.settings.path, &to.settings.path).unwrap();
    let (leaves, takes) = (from.leave(), to.take_in());
    let refused = all_of(leaves.as_ref(), takes.as_ref()).await;
    assert!(matches!(refused, Err(HaulError::Copy)), "{refused:?}");
    assert_eq!((waiting(leaves.as_ref()).await, waiting(takes.as_ref()).await), (3, 3));
}

/// Q48: the command says which queue is meant where a slip would take all of another one.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_refuses_what_leads_nowhere() {
    let (place, other) = (Place::new(Sqlite), Place::new(Postgres));
    place.give_kinds(place.open().as_ref(), 0..3).await;
    drop(other.open());
    let url = other._database.as_ref().unwrap().url();
    let config = place.directory.path().join("c.toml");
    let (path, spool) = (place.settings.path.display(), place.settings.spool.display());
    let directory = format!("{}/tests/directory.toml", env!("CARGO_MANIFEST_DIR"));
    let head = format!(
        "integration_domains = [\"a.test\"]\n[directory]\npath = \"{directory}\"\n[backend]\nurl = \"http://127.0.0.1:1/\"\n"
    );
    let text = head
        + &format!("[queue]\ntype = \"postgres\"\nurl = \"{url}\"\npath = \"{path}\"\nspool = \"{spool}\"\n");
    fs::write(&config, text).unwrap();
    let (file, missing) =
        (path.to_string(), place.directory.path().join("no/queue.db").display().to_string());
    let dots = format!("{}/spool/../queue.db", place.directory.path().display());
    for (words, why) in [
        (vec!["--local", "--to", &missing], "--local is not for"),
        (vec!["--from", &file, "--to", &missing], "there is no directory"),
        (vec!["--from", &file, "--to", &dots], "one queue under two names"),
    ] {
        let ended = Command::new(env!("CARGO_BIN_EXE_activity-milter"))
            .args(["queue", "move", "--config"])
            .arg(&config)
            .args(words)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code() == Some(64) && said.contains(why), "{ended:?}");
        assert!(!place.directory.path().join("no").exists());
    }
    assert_eq!(waiting(place.open().as_ref()).await, 3);
}

/// All keys of two queues, each once.
async fn both(one: &dyn Queue, other: &dyn Queue) -> usize {
    let (mut all, more) = (snapshot(one).await, snapshot(other).await);
    let count = all.len() + more.len();
    all.extend(more);
    assert_eq!(all.len(), count, "in both");
    count
}

/// Q48: two moves the other way round, one of them frozen before it lets go, for a moment or for longer than it may: all is in
/// one of the two queues.
#[tokio::test(flavor = "multi_thread")]
async fn two_moves_the_other_way_round_lose_nothing() {
    for (engine, other) in WAYS {
        for is_late in [false, true] {
            println!("from {engine:?} to {other:?}, late: {is_late}");
            let (a, b) = (Place::new(engine), Place::new(other));
            let service = a.open();
            a.give_kinds(service.as_ref(), 0..20).await;
            let memory = a.letter(30, 10, &["c"]).await;
            service.put(memory.clone()).await.unwrap();
            let last = service.list(Filter::default()).await.unwrap().pop().unwrap();
            service.change(vec![last.id], Change::Drop).await.unwrap();
            drop(service);
            let (leaves, takes) = (a.leave(), b.take_in());
            let keys = leaves.memory(None, 10).await.unwrap();
            assert_eq!(keys.len(), 1);
            takes.remember(keys.clone()).await.unwrap();
            let page = leaves.to_move(false, i64::MIN).await.unwrap();
            let places = page.transfers.iter().flat_map(queue::Transfer::places).collect::<Vec<_>>();
            takes.take_in(page.transfers).await.unwrap();
            if other == Postgres {
                if is_late && engine == Postgres {
                    a.sql("UPDATE activity_milter.leaving SET until = 1; UPDATE activity_milter.item SET until = NULL");
                }
                let (back, home) = (b.leave(), a.take_in());
                let moved = all_of(back.as_ref(), home.as_ref()).await;
                match is_late && engine == Postgres {
                    false => assert!(matches!(moved, Err(HaulError::To(StorageError::Leaving))), "{moved:?}"),
                    true => assert!(moved.is_ok(), "{moved:?}"),
                }
            } else {
                let opened = queue::open_to_leave(&b.settings, Arc::new(SystemClock));
                assert!(matches!(opened, Err(OpenError::InUse(_))), "it is taken into");
            }
            let gone = leaves.let_go(places).await;
            let forgot = leaves.forget(keys).await;
            match is_late && engine == Postgres && other == Postgres {
                true => assert!(matches!(gone, Err(StorageError::Busy(_))) && forgot.is_err(), "{gone:?}"),
                false => assert!(gone.unwrap() > 0 && forgot.is_ok()),
            }
            leaves.rest(Rest::Done).await;
            takes.rest(Rest::Clear).await;
            // Killed here, it is not known where it was.
            assert_eq!(both(leaves.as_ref(), takes.as_ref()).await, 20);
            all_of(leaves.as_ref(), takes.as_ref()).await.unwrap();
            assert_eq!(both(leaves.as_ref(), takes.as_ref()).await, 20);
            drop((leaves, takes));
            let (back, home) = (b.leave(), a.take_in());
            assert_eq!(all_of(back.as_ref(), home.as_ref()).await.unwrap().activities, 20);
            drop((back, home));
            let service = a.open();
            assert_eq!(service.put(memory).await.unwrap(), [Put::Known]);
            let delivered = deliver(service.as_ref()).await;
            assert!(delivered.len() == 20 && delivered.values().all(|times| *times == 1), "{delivered:?}");
        }
    }
}

/// Q48: a move that is cut off, and not said again: the other queue may have what it was about to let go, and deliver it. So
/// nothing of that is delivered from here by itself, whoever is at work; the same move takes it up, and a person may say otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_move_that_was_cut_off_had_is_not_delivered_by_itself() {
    for (engine, says) in [(Sqlite, "again"), (Postgres, "again"), (Postgres, "retry")] {
        let (from, to) = (Place::new(engine), Place::new(Postgres));
        let service = from.open();
        from.give_kinds(service.as_ref(), 0..10).await;
        let held = service.lease(Ask { room: 1, ..Ask::default() }).await.unwrap().tickets.remove(0);
        service.finish(vec![(held, End::Held { reason: "422".to_owned() })]).await.unwrap();
        let service = Some(service).filter(|_| engine == Postgres);
        let (leaves, takes) = (from.leave(), to.take_in());
        let page = leaves.to_move(false, i64::MIN).await.unwrap();
        takes.take_in(page.transfers).await.unwrap();
        drop((leaves, takes)); // killed
        let target = to.open();
        assert_eq!(deliver(target.as_ref()).await.len(), 9);
        match &service {
            None => {
                let refused = queue::open(&from.settings, Arc::new(SystemClock));
                assert!(matches!(refused, Err(OpenError::CutOff { .. })), "{refused:?}");
                assert!(matches!(queue::look(&from.settings), Err(OpenError::CutOff { .. })));
            }
            Some(service) => {
                assert!(deliver(service.as_ref()).await.is_empty());
                from.sql("UPDATE activity_milter.item SET until = 1 WHERE until IS NOT NULL; UPDATE activity_milter.leaving SET until = 1");
                assert!(deliver(service.as_ref()).await.is_empty());
                assert_eq!(service.upkeep(DAY).await.unwrap().cut_off.len(), 9);
                assert!(deliver(service.as_ref()).await.is_empty());
                let entries = service.list(Filter::default()).await.unwrap();
                let why = entries.iter().filter(|entry| entry.reason.as_deref() == Some(queue::CUT_OFF));
                assert!(
                    entries.len() == 10 && why.count() == 9 && entries.iter().all(|e| e.state == State::Held)
                );
                assert_eq!(service.upkeep(DAY).await.unwrap().cut_off, []);
                from.sql("DO $$ BEGIN ASSERT (SELECT until FROM activity_milter.leaving) = 0; END $$");
                assert_eq!(
                    (service.counts().await.unwrap().waiting, service.counts().await.unwrap().held),
                    (0, 10)
                );
                if says == "retry" {
                    let all = entries.iter().map(|entry| entry.id).collect();
                    service.change(all, Change::Retry).await.unwrap();
                    assert_eq!(deliver(service.as_ref()).await.len(), 10);
                    continue;
                }
            }
        }
        // What came into the other queue waits there as it did here.
        let third = Place::new(Sqlite);
        if engine == Postgres {
            let (leaves, takes) = (from.leave(), third.take_in());
            all_of(leaves.as_ref(), takes.as_ref()).await.unwrap();
            drop((leaves, takes));
            let moved = third.open();
            let states: Vec<State> =
                moved.list(Filter::default()).await.unwrap().iter().map(|e| e.state).collect();
            assert_eq!(states.iter().filter(|state| **state == State::Waiting).count(), 9);
            continue;
        }
        let (leaves, takes) = (from.leave(), to.take_in());
        all_of(leaves.as_ref(), takes.as_ref()).await.unwrap();
        drop((leaves, takes));
        assert!(deliver(target.as_ref()).await.is_empty(), "each was there");
        let service = from.open();
        from.give_kinds(service.as_ref(), 20..21).await;
        drop(service);
        from.open();
    }
}

/// Q48: a move that gave the other queue nothing leaves all as it was: it was refused, or a message could not be read now.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_that_gave_nothing_leaves_all_as_it_was() {
    let (from, to) = (Place::new(Sqlite), Place::new(Postgres));
    from.give_kinds(from.open().as_ref(), 0..3).await;
    to.open();
    to.sql("UPDATE activity_milter.leaving SET until = 9000000000000, who = 'somebody'");
    let (leaves, takes) = (from.leave(), to.take_in());
    let refused = all_of(leaves.as_ref(), takes.as_ref()).await;
    assert!(matches!(refused, Err(HaulError::To(StorageError::Leaving))), "{refused:?}");
    drop((leaves, takes));
    assert_eq!(deliver(from.open().as_ref()).await.len(), 3);

    let (from, to) = (Place::new(Postgres), Place::new(Postgres));
    let service = from.open();
    from.give_kinds(service.as_ref(), 0..5).await;
    let (leaves, takes) = (from.leave(), to.take_in());
    from.sql("ALTER TABLE activity_milter.payload RENAME COLUMN cuts TO gone");
    let failed = all_of(leaves.as_ref(), takes.as_ref()).await;
    assert!(matches!(failed, Err(HaulError::From(_))), "{failed:?}");
    from.sql("ALTER TABLE activity_milter.payload RENAME COLUMN gone TO cuts");
    assert_eq!(deliver(service.as_ref()).await.len(), 5);
}

/// Q47: mail that was kept for a database is not delivered by whoever says that there is none any more: the database may have some
/// of it. Once it was moved there, or nothing is left, the file is a queue as any other.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_for_a_database_is_not_delivered_without_it() {
    let cluster = Cluster::start(&[]).leaked();
    let database = cluster.database();
    let mut machine = Place::spooling(database.server());
    let queue = machine.open();
    cluster.kill();
    machine.give_kinds(queue.as_ref(), 0..3).await;
    drop(queue);
    let server = machine.settings.server.take();
    machine.settings.spool_on_outage = false;
    for _ in 0..2 {
        let refused = queue::open(&machine.settings, Arc::new(SystemClock));
        let Err(error @ OpenError::CutOff { .. }) = refused else { panic!("{refused:?}") };
        assert!(error.to_string().contains("queue.db.moving"), "{error}");
        assert!(queue::look(&machine.settings).is_err());
    }
    cluster.run(&[]);
    let there = Place { settings: Settings { server, ..machine.settings.clone() }, ..Place::new(Sqlite) };
    let (leaves, takes) = (machine.leave(), there.take_in());
    assert_eq!(all_of(leaves.as_ref(), takes.as_ref()).await.unwrap().activities, 3);
    drop((leaves, takes));
    let queue = machine.open();
    machine.give_kinds(queue.as_ref(), 10..11).await;
    drop(queue);
    assert_eq!(deliver(machine.open().as_ref()).await.len(), 1);
    // All of it came back: the file was empty then.
    drop(there.open());
    let (leaves, takes) = (there.leave(), machine.take_in());
    assert_eq!(all_of(leaves.as_ref(), takes.as_ref()).await.unwrap().activities, 3);
    drop((leaves, takes));
    assert_eq!(deliver(machine.open().as_ref()).await.len(), 3);
}

/// Q48: who leaves a queue has it for himself: a second move of it waits, and so does what comes to it from others.
#[tokio::test(flavor = "multi_thread")]
async fn one_move_at_a_time_leaves_a_queue() {
    for engine in [Sqlite, Postgres] {
        let (from, to, third) = (Place::new(engine), Place::new(Postgres), Place::new(Sqlite));
        from.give_kinds(from.open().as_ref(), 0..40).await;
        third.give_kinds(third.open().as_ref(), 50..53).await;
        let (leaves, takes, more) = (from.leave(), to.take_in(), third.leave());
        let page = leaves.to_move(false, i64::MIN).await.unwrap();
        if engine == Postgres {
            let second = from.leave();
            let refused = second.to_move(false, i64::MIN).await;
            assert!(matches!(refused, Err(StorageError::Leaving)), "{refused:?}");
        }
        let into = from.take_in();
        let refused = all_of(more.as_ref(), into.as_ref()).await;
        assert!(matches!(refused, Err(HaulError::To(StorageError::Leaving))), "{refused:?}");
        // Many may take in at once.
        let second = to.take_in();
        let of_third = more.to_move(false, i64::MIN).await.unwrap();
        second.take_in(of_third.transfers).await.unwrap();
        takes.take_in(page.transfers).await.unwrap();
        leaves.rest(Rest::Done).await;
        all_of(more.as_ref(), into.as_ref()).await.unwrap();
        assert_eq!(waiting(more.as_ref()).await, 0);
    }
}

/// Q9, Q48: one tenant's full share keeps nobody else's back, and what stays is nobody's lease.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_its_share_stays_and_all_others_go() {
    for (engine, other) in WAYS {
        println!("from {engine:?} to {other:?}");
        let (from, mut to) = (Place::new(engine), Place::new(other));
        to.settings.max_items_per_tenant = Some(5);
        let service = to.open();
        for id in 0..5 {
            service.put(to.letter(id, 10, &["a"]).await).await.unwrap();
        }
        drop(service);
        let service = from.open();
        for id in 10..13 {
            service.put(from.letter(id, 10, &["a"]).await).await.unwrap();
            service.put(from.letter(id + 10, 10, &["b"]).await).await.unwrap();
        }
        service.put(from.letter(30, LARGE, &["a", "b"]).await).await.unwrap();
        drop(service);
        let (leaves, takes) = (from.leave(), to.take_in());
        let hauled = all_of(leaves.as_ref(), takes.as_ref()).await.unwrap();
        assert!(hauled.activities == 4 && hauled.full.len() == 1, "{hauled:?}");
        assert!(
            hauled.full["a"].0 == 4 && hauled.full["a"].1.contains("tenant a has its share"),
            "{hauled:?}"
        );
        assert_eq!(waiting(leaves.as_ref()).await, 4);
        drop(takes);
        to.settings.max_items_per_tenant = None;
        let takes = to.take_in();
        assert_eq!(all_of(leaves.as_ref(), takes.as_ref()).await.unwrap().activities, 4);
        drop(takes);
        assert_eq!(deliver(to.open().as_ref()).await.len(), 13);
    }
}

/// Q48: a tenant's share that is full in the midst of a page: each activity is in one of both queues, and the numbers say in which.
#[tokio::test(flavor = "multi_thread")]
async fn a_share_that_is_full_in_the_midst_of_a_page() {
    for (engine, other) in WAYS {
        println!("from {engine:?} to {other:?}");
        let (from, mut to) = (Place::new(engine), Place::new(other));
        to.settings.max_items_per_tenant = Some(4);
        drop(to.open());
        let service = from.open();
        for id in 0..10 {
            let size = if id % 2 == 0 { 10 } else { 5 * LARGE };
            service.put(from.letter(id, size, &["a"]).await).await.unwrap();
        }
        drop(service);
        let (leaves, takes) = (from.leave(), to.take_in());
        let hauled = all_of(leaves.as_ref(), takes.as_ref()).await.unwrap();
        let (gone, stay) = (hauled.activities, hauled.full["a"].0);
        assert!(gone == 4 && stay == 6, "{hauled:?}");
        assert_eq!(waiting(leaves.as_ref()).await, 6);
        drop((leaves, takes));
        assert_eq!(deliver(to.open().as_ref()).await.len(), gone);
        assert_eq!(deliver(from.open().as_ref()).await.len(), stay);
    }
}

/// Q48: what goes to a server takes nothing of this machine's disk, so a full one can be emptied.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_emptied_into_a_database() {
    let (from, mut to) = (Place::new(Engine::Sqlite), Place::new(Engine::Postgres));
    drop(to.open());
    let service = from.open();
    for id in 0..3 {
        service.put(from.letter(id, [10, LARGE][id % 2], &["a"]).await).await.unwrap();
    }
    drop(service);
    to.settings.min_free = u64::MAX;
    let (leaves, takes) = (from.leave(), to.take_in());
    assert_eq!(all_of(leaves.as_ref(), takes.as_ref()).await.unwrap().activities, 3);
}

/// Q48: a page that was cut off comes again, and needs room for the rest of it alone.
#[tokio::test(flavor = "multi_thread")]
async fn what_came_before_takes_no_room_again() {
    for (engine, other) in WAYS {
        println!("from {engine:?} to {other:?}");
        let (from, mut to) = (Place::new(engine), Place::new(other));
        to.settings.max_items_per_tenant = Some(4);
        drop(to.open());
        let service = from.open();
        for id in 0..3 {
            service.put(from.letter(id, 10, &["a"]).await).await.unwrap();
        }
        service.put(from.letter(3, LARGE, &["a"]).await).await.unwrap();
        drop(service);
        let (leaves, takes) = (from.leave(), to.take_in());
        let page = leaves.to_move(false, i64::MIN).await.unwrap().transfers;
        assert_eq!(page.len(), 4);
        takes.take_in(page[..3].to_vec()).await.unwrap();
        leaves.keep(page.iter().flat_map(Transfer::places).collect()).await.unwrap();
        let hauled = all_of(leaves.as_ref(), takes.as_ref()).await.unwrap();
        assert!(hauled.activities == 4 && hauled.full.is_empty(), "{hauled:?}");
        drop((leaves, takes));
        assert_eq!(deliver(to.open().as_ref()).await.len(), 4);
    }
}

/// Q9, Q47: the same for what was kept here while the database was away, and whoever looks learns whose it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_with_its_share_of_the_database_keeps_no_other_here() {
    let cluster = Cluster::start(&[]).leaked();
    let database = cluster.database();
    let mut place = Place::spooling(database.server());
    place.settings.max_items_per_tenant = Some(3);
    let queue = place.open();
    for id in 0..3 {
        queue.put(place.letter(id, 10, &["a"]).await).await.unwrap();
    }
    cluster.kill();
    for (id, tenant) in [(10, "a"), (11, "b"), (12, "b")] {
        queue.put(place.letter(id, 10, &[tenant]).await).await.unwrap();
    }
    cluster.run(&[]);
    let why = soon("given", async || {
        let here = queue.spooled().await?;
        (here.counts.waiting == 1).then_some(here.full).flatten()
    })
    .await;
    assert!(why.starts_with("1 of tenant a stay on this machine"), "{why}");
    assert_eq!(deliver(queue.as_ref()).await.len(), 5);
    soon("drained", async || {
        let here = queue.spooled().await?;
        (here.counts.waiting == 0 && here.full.is_none()).then_some(())
    })
    .await;
    assert_eq!(deliver(queue.as_ref()).await.len(), 1);
}

/// Q9, Q48: the rest stays where it is, and goes on when there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_takes_no_more_and_the_rest_stays() {
    for (engine, other) in WAYS {
        println!("from {engine:?} to {other:?}");
        let (from, mut to) = (Place::new(engine), Place::new(other));
        let service = from.open();
        from.give_kinds(service.as_ref(), 0..80).await;
        drop(service);
        to.settings.max_items = 50;
        let (leaves, takes) = (from.leave(), to.take_in());
        let full = all_of(leaves.as_ref(), takes.as_ref()).await;
        assert!(matches!(full, Err(HaulError::To(StorageError::Full(Full::Items(50))))), "{full:?}");
        let there = waiting(takes.as_ref()).await;
        assert!((1..=50).contains(&there), "{there}");
        drop(takes);
        to.settings.max_items = 1000;
        if engine == Postgres {
            from.sql("UPDATE activity_milter.item SET until = NULL");
        }
        let takes = to.take_in();
        all_of(leaves.as_ref(), takes.as_ref()).await.unwrap();
        assert_eq!((waiting(leaves.as_ref()).await, waiting(takes.as_ref()).await), (0, 80));
    }
}

/// Q48: a message that is lost, or words that nobody can read, stay where they are and hide no other.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_stays() {
    for (engine, other) in WAYS {
        println!("from {engine:?} to {other:?}");
        let (from, to) = (Place::new(engine), Place::new(other));
        let service = from.open();
        from.give_kinds(service.as_ref(), 0..40).await;
        let damaged = service.list(Filter::default()).await.unwrap();
        let lost = damaged.iter().find(|entry| entry.tenant == "b").unwrap();
        let id = lost.id;
        drop(service);
        from.sql(&match engine {
            Sqlite => format!("UPDATE item SET body = NULL, in_file = 0, message = 0 WHERE id = {id}"),
            Postgres => format!("DELETE FROM activity_milter.payload WHERE id = {id}"),
        });
        let (leaves, takes) = (from.leave(), to.take_in());
        let hauled = all_of(leaves.as_ref(), takes.as_ref()).await.unwrap();
        assert_eq!((hauled.activities, hauled.stuck.len()), (39, 1));
        assert!(hauled.stuck[0].0 == lost.key && hauled.stuck[0].1.contains("message"), "{hauled:?}");
        assert_eq!((waiting(leaves.as_ref()).await, waiting(takes.as_ref()).await), (1, 39));
    }
}

/// Q48: a service that has the file takes mail and delivers meanwhile; numbers and files are given once.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_at_work_on_the_other_queue_goes_on() {
    for other in [Sqlite, Postgres] {
        println!("to {other:?}");
        let (from, to) = (Place::new(Sqlite), Place::new(other));
        let service = from.open();
        from.give_kinds(service.as_ref(), 0..60).await;
        drop(service);
        let at_work = to.open();
        to.give_kinds(at_work.as_ref(), 55..70).await; // some of these are the same e-mails
        let (leaves, takes) = (from.leave(), to.take_in());
        let moving = all_of(leaves.as_ref(), takes.as_ref());
        let working = async {
            to.give_kinds(at_work.as_ref(), 70..100).await;
            deliver(at_work.as_ref()).await
        };
        let (hauled, mut delivered) = tokio::join!(moving, working);
        assert_eq!(hauled.unwrap().activities, 60);
        to.give_kinds(at_work.as_ref(), 100..105).await;
        // Woken, and not by a person.
        while delivered.len() < 105 {
            tokio::time::timeout(SOON, at_work.arrival()).await.unwrap();
            for (key, times) in deliver(at_work.as_ref()).await {
                *delivered.entry(key).or_default() += times;
            }
        }
        assert!(delivered.values().all(|times| *times == 1), "{delivered:?}");
        let counts = at_work.counts().await.unwrap();
        assert_eq!((counts.waiting, counts.oldest), (0, None));
        to.give_kinds(at_work.as_ref(), 105..106).await;
        assert!(at_work.counts().await.unwrap().oldest.is_some());
    }
}

/// Q48: what is oldest is found by number, so what a service takes after a command's rows has greater ones.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_after_a_move_lies_behind_it() {
    let (from, to) = (Place::new(Sqlite), Place::new(Sqlite));
    from.give_kinds(from.open().as_ref(), 0..3).await;
    let at_work = to.open();
    let (leaves, takes) = (from.leave(), to.take_in());
    all_of(leaves.as_ref(), takes.as_ref()).await.unwrap();
    at_work.check().await.unwrap(); // it has noticed
    assert!(at_work.counts().await.unwrap().oldest.is_some());
    to.give_kinds(at_work.as_ref(), 10..11).await;
    for ticket in at_work.lease(Ask { room: 10, ..Ask::default() }).await.unwrap().tickets {
        let item = at_work.open(ticket.item).await.unwrap();
        let is_new = item.key == to.kind(10).await.activities[0].key;
        let end = if is_new { End::Unused } else { End::Taken };
        at_work.finish(vec![(ticket, end)]).await.unwrap();
    }
    let counts = at_work.counts().await.unwrap();
    assert!(counts.waiting == 1 && counts.oldest.is_some(), "{counts:?}");
    assert_eq!(at_work.overview(10, 10).await.unwrap().oldest.len(), 1);
}

/// The child: nothing, unless it is asked for.
#[test]
fn child() {
    let Ok(what) = std::env::var("child") else { return };
    let (url, directory) = what.split_once(' ').unwrap();
    let directory = Path::new(directory);
    let file = Settings { min_free: 0, ..Settings::new(directory.join("queue.db"), directory.join("spool")) };
    let spool = directory.join("there");
    fs::create_dir_all(&spool).unwrap();
    let server = Settings {
        server: Some(Server::new(url).unwrap()),
        min_free: 0,
        ..Settings::new(directory.join("none.db"), spool)
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let from = queue::open_to_leave(&file, Arc::new(SystemClock)).unwrap();
    let to = queue::open_to_take_in(&server, Arc::new(SystemClock)).unwrap();
    runtime.block_on(all_of(from.as_ref(), to.as_ref())).unwrap();
}

/// Q48: killed at every call that writes, sends, syncs or removes something, in whichever thread; then once more.
#[test]
fn a_kill_at_any_point_loses_nothing_and_doubles_nothing() {
    const ALL: usize = 40; // more than a page
    let mut happened = 0;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for call in ["pwrite64", "write,writev,sendto,sendmsg", "fsync", "unlink"] {
        let mut at = 1;
        loop {
            let (from, to) = (Place::new(Sqlite), Place::new(Postgres));
            runtime.block_on(async { from.give_kinds(from.open().as_ref(), 0..ALL).await });
            let url = to._database.as_ref().unwrap().url();
            let inject = format!("inject={call}:signal=SIGKILL:when={at}");
            let mut command = Command::new("strace");
            command.args(["-f", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject]);
            command.arg(std::env::current_exe().unwrap());
            command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
            command.env("child", format!("{url} {}", from.directory.path().display()));
            let ended = command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
            let is_killed = ended.signal() == Some(9) || ended.code() == Some(137);
            assert!(is_killed || ended.success(), "{call} {at}: {ended}");
            println!("{call} {at}: killed {is_killed}");
            runtime.block_on(async {
                let (leaves, takes) = (from.leave(), to.take_in());
                let hauled = all_of(leaves.as_ref(), takes.as_ref()).await.unwrap();
                assert!(is_killed || hauled.activities == 0, "{call} {at}");
                assert_eq!(waiting(leaves.as_ref()).await, 0);
                drop((leaves, takes));
                let service = to.open();
                for id in 0..ALL {
                    assert_eq!(
                        service.put(to.kind(id).await).await.unwrap(),
                        [Put::Known],
                        "{call} {at}: {id}"
                    );
                }
                let delivered = deliver(service.as_ref()).await;
                assert!(
                    delivered.len() == ALL && delivered.values().all(|times| *times == 1),
                    "{call} {at}: {delivered:?}"
                );
            });
            if !is_killed {
                break;
            }
            happened += 1;
            at *= 2;
        }
    }
    assert!(happened > 10, "killed {happened} times");
}

/// Q47: taken here, known here; given to the database when it is back, once for each e-mail, whatever came to another
/// machine; never delivered from here.
#[tokio::test(flavor = "multi_thread")]
async fn mail_is_kept_here_while_the_database_is_away() {
    let cluster = Cluster::start(&[]).leaked();
    let database = cluster.database();
    let machines = [Place::spooling(database.server()), Place::spooling(database.server())];
    let [one, two] = [machines[0].open(), machines[1].open()];
    let spooled = async |queue: &Arc<dyn Queue>| queue.spooled().await.unwrap();
    assert_eq!(one.put(machines[0].kind(0).await).await.unwrap(), [Put::New]);
    assert_eq!(spooled(&one).await.counts.waiting, 0);
    cluster.kill();
    let began = Instant::now();
    machines[0].give_kinds(one.as_ref(), 0..20).await; // the first of them is there already
    machines[1].give_kinds(two.as_ref(), 15..30).await; // and some come twice
    let project = machines[0].letter(40, 10, &["b/7"]).await;
    assert_eq!(one.put(project).await.unwrap(), [Put::New]);
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!(one.put(machines[0].kind(7).await).await.unwrap(), [Put::Known]);
    let bare = machines[0].letter(40, 10, &["b"]).await;
    assert_eq!(one.put(bare.clone()).await.unwrap(), [Put::Known], "covered");
    assert!(one.check().await.is_ok(), "it takes mail");
    let there = spooled(&one).await;
    assert!(there.counts.waiting == 21 && there.counts.oldest.is_some() && there.away.is_some());
    let keys: Vec<Key> = bare.activities.iter().map(|activity| activity.key.clone()).collect();
    assert_eq!(one.known(keys.clone()).await.unwrap(), [true]);
    assert!(one.lease(Ask { room: 1, ..Ask::default() }).await.is_err(), "never from here");
    assert!(one.counts().await.is_err());
    cluster.run(&[]);
    soon("drained", async || {
        let (one, two) = (spooled(&one).await, spooled(&two).await);
        (one.counts.waiting + two.counts.waiting == 0).then_some(())
    })
    .await;
    soon("back", async || spooled(&one).await.away.is_none().then_some(())).await;
    assert_eq!(one.known(keys).await.unwrap(), [true]);
    assert_eq!(two.put(bare).await.unwrap(), [Put::Known], "covered, elsewhere too");
    machines[1].give_kinds(two.as_ref(), 30..31).await;
    assert_eq!(spooled(&two).await.counts.waiting, 0, "to the database, at once");
    let delivered = deliver(one.as_ref()).await;
    assert!(delivered.len() == 32 && delivered.values().all(|times| *times == 1), "{delivered:?}");
    // Nothing is left to be known here by mistake.
    let file = rusqlite::Connection::open(&machines[0].settings.path).unwrap();
    let keys = "SELECT (SELECT count(*) FROM key_0) + (SELECT count(*) FROM key_1)";
    assert_eq!(file.query_row(keys, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
}

/// Q42, Q47: whoever starts while the database is away serves as well as he can, and goes on by himself.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_does_not_wait_for_the_database() {
    let cluster = Cluster::start(&[]).leaked();
    let database = cluster.database();
    let (keeps, does_not) = (Place::spooling(database.server()), Place::of(Some(database.server())));
    cluster.kill();
    let began = Instant::now();
    let (one, two) = (keeps.open(), does_not.open());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(matches!(queue::beside(&does_not.settings, Arc::new(SystemClock)), Err(OpenError::Away(_))));
    keeps.give_kinds(one.as_ref(), 0..10).await;
    let refused = two.put(does_not.kind(1).await).await;
    assert!(
        matches!(&refused, Err(StorageError::Busy(why)) if why.contains("cannot be reached")),
        "{refused:?}"
    );
    assert!(two.check().await.is_err(), "/readyz");
    assert!(two.safety().await.unwrap().is_err());
    // Two services never share a directory, whether the database is there or not.
    assert!(matches!(queue::open(&does_not.settings, Arc::new(SystemClock)), Err(OpenError::SpoolInUse(_))));
    // Killed while it keeps mail, and started while the database is still away.
    drop(one);
    let one = keeps.open();
    assert_eq!(one.spooled().await.unwrap().counts.waiting, 10);
    assert_eq!(one.put(keeps.kind(1).await).await.unwrap(), [Put::Known]);
    let waiter = Arc::clone(&two);
    let woken = tokio::spawn(async move { waiter.arrival().await });
    cluster.run(&[]);
    soon("taken", async || two.put(does_not.kind(20).await).await.ok()).await;
    tokio::time::timeout(SOON, woken).await.unwrap().unwrap();
    soon("drained", async || (waiting(two.as_ref()).await == 11).then_some(())).await;
    assert_eq!(deliver(two.as_ref()).await.len(), 11);
}

/// Q40, Q47: what the database commits on one disk alone is not taken by it, and kept here until a standby has it too.
#[tokio::test(flavor = "multi_thread")]
async fn without_its_guarantee_mail_is_kept_here() {
    let primary = Cluster::start(&["wal_keep_size=64MB"]).leaked();
    let _standby = Cluster::standby_of(primary, "second").leaked();
    let database = std::mem::ManuallyDrop::new(primary.database());
    let set = |names: &str| {
        let sql = format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'");
        primary.psql("postgres", &sql).unwrap();
        primary.psql("postgres", "SELECT pg_reload_conf()").unwrap();
    };
    let mut server = database.server();
    (server.require_replication, server.patience) = (true, Duration::from_secs(2));
    let place = Place::spooling(server);
    let queue = place.open();
    place.give_kinds(queue.as_ref(), 0..10).await;
    assert_eq!(waiting(queue.as_ref()).await, 0);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(waiting(queue.as_ref()).await, 0, "it stays here");
    set("second");
    soon("drained", async || (waiting(queue.as_ref()).await == 10).then_some(())).await;
    // A standby that does not answer: nobody knows whether the database has it, and it is recorded once.
    set("nobody");
    soon("read by the server", async || {
        let states = database.sql("SELECT count(*) FROM pg_stat_replication WHERE sync_state <> 'async'");
        (states == "0").then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await; // and by those who are connected
    place.give_kinds(queue.as_ref(), 10..13).await;
    assert!(queue.spooled().await.unwrap().counts.waiting >= 2);
    set("second");
    soon("drained", async || (queue.spooled().await.unwrap().counts.waiting == 0).then_some(())).await;
    let delivered = deliver(queue.as_ref()).await;
    assert!(delivered.len() == 13 && delivered.values().all(|times| *times == 1), "{delivered:?}");
}

/// Q47: the server dies while the file is drained, and again.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_goes_while_it_is_given_mail() {
    let cluster = Cluster::start(&[]).leaked();
    let database = cluster.database();
    let place = Place::spooling(database.server());
    cluster.kill();
    let queue = place.open();
    place.give_kinds(queue.as_ref(), 0..300).await;
    for _ in 0..4 {
        cluster.run(&[]);
        soon("some", async || (queue.spooled().await?.counts.waiting < 300).then_some(())).await;
        cluster.kill();
    }
    cluster.run(&[]);
    soon("drained", async || (queue.spooled().await?.counts.waiting == 0).then_some(())).await;
    let delivered = deliver(queue.as_ref()).await;
    assert!(delivered.len() == 300 && delivered.values().all(|times| *times == 1), "{}", delivered.len());
}

/// Q47: a queue of before that was in a file, held and noted, is in the database after the first start with one.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_in_a_file_goes_to_the_database() {
    let mut place = Place::of(None);
    let service = place.open();
    lived(&place, service.as_ref()).await;
    let before = snapshot(service.as_ref()).await;
    drop(service);
    let database = Cluster::shared().database();
    place.settings.server = Some(database.server());
    let service = place.open();
    soon("moved", async || {
        let left = service.spooled().await.unwrap().counts;
        (left.waiting + left.held == 0 && service.kept().await.unwrap().activities == 2).then_some(())
    })
    .await;
    assert!(snapshot(service.as_ref()).await == before);
    // What comes is not kept there.
    assert_eq!(service.put(place.letter(50, 10, &["a"]).await).await.unwrap(), [Put::New]);
    assert_eq!(service.spooled().await.unwrap().counts.waiting, 0);
    drop(service);
    assert!(place.open().spooled().await.is_none(), "an empty file is left alone");
}

/// Q9, Q13, Q47: the limits are those of a queue.
#[tokio::test(flavor = "multi_thread")]
async fn the_limits_hold_for_what_is_kept_here() {
    let cluster = Cluster::start(&[]).leaked();
    let database = cluster.database();
    let mut place = Place::spooling(database.server());
    place.settings.max_items = 5;
    cluster.kill();
    let queue = place.open();
    for id in 0..5 {
        queue.put(place.letter(id, 10, &["a"]).await).await.unwrap();
    }
    let full = queue.put(place.letter(5, 10, &["a"]).await).await;
    assert!(matches!(full, Err(StorageError::Full(Full::Items(5)))), "{full:?}");
    drop(queue);
    place.settings.min_free = u64::MAX;
    let queue = place.open();
    let full = queue.put(place.letter(6, 10, &["a"]).await).await;
    assert!(matches!(full, Err(StorageError::Full(_))), "{full:?}");
    drop(queue);
    place.settings.spool = tempfile::tempdir_in("/dev/shm").unwrap().path().join("spool");
    let refused = queue::open(&place.settings, Arc::new(SystemClock)).unwrap_err();
    assert!(matches!(refused, OpenError::InMemory { key: "queue.spool", .. }), "{refused}");
    assert!(matches!(queue::look(&place.settings), Err(OpenError::InMemory { .. })));
}

/// Q7: whoever dropped a day's table, or restored a copy without it, has the e-mail again when it comes again.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_lost_in_the_database_is_mended() {
    for (size, targets) in [(10, &["a"] as &[_]), (LARGE, &["a", "b"]), (1_200_000, &["a", "b/7"])] {
        let place = Place::new(Postgres);
        let queue = place.open();
        let parcel = place.letter(1, size, targets).await;
        let expected = bytes_of(&parcel.raw);
        queue.put(parcel.clone()).await.unwrap();
        place.give_kinds(queue.as_ref(), 3..4).await;
        let others = snapshot(queue.as_ref()).await;
        let known = queue.put(parcel.clone()).await.unwrap();
        assert!(known.iter().all(|put| *put == Put::Known) && snapshot(queue.as_ref()).await == others);
        let tickets = queue.lease(Ask { room: 10, ..Ask::default() }).await.unwrap().tickets;
        for (at, ticket) in tickets.into_iter().enumerate() {
            let end = if at == 0 { End::Held { reason: "422".to_owned() } } else { End::Unused };
            queue.finish(vec![(ticket, end)]).await.unwrap();
        }
        let keep = place.kind(3).await.activities[0].key.clone();
        place.sql(
            "DELETE FROM activity_milter.payload WHERE id NOT IN (SELECT max(id) FROM activity_milter.item)",
        );
        assert!(matches!(snapshot_one(queue.as_ref()).await, Err(StorageError::Gone(_))));
        assert_eq!(queue.put(parcel.clone()).await.unwrap(), vec![Put::Mended; targets.len()]);
        assert_eq!(queue.put(parcel).await.unwrap(), vec![Put::Known; targets.len()]);
        let counts = queue.counts().await.unwrap();
        assert_eq!((counts.waiting, counts.held), (targets.len() as u64 + 1, 0));
        let all = snapshot(queue.as_ref()).await;
        for (key, whole) in all.iter().filter(|(key, _)| **key != keep) {
            assert!(whole.7 == expected && whole.0 == State::Waiting, "{key}");
        }
        assert_eq!(deliver(queue.as_ref()).await.len(), targets.len() + 1);
    }
}

/// Q7: any piece, the last one too; what is whole is left alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_of_which_a_piece_is_lost_is_mended() {
    for lost in ["1", "2"] {
        let place = Place::new(Postgres);
        let queue = place.open();
        let parcel = place.letter(1, 1_200_000, &["a"]).await;
        queue.put(parcel.clone()).await.unwrap();
        assert_eq!(queue.put(parcel.clone()).await.unwrap(), [Put::Known]);
        place.sql(&format!("DELETE FROM activity_milter.payload WHERE part = {lost}"));
        assert_eq!(queue.put(parcel.clone()).await.unwrap(), [Put::Mended], "{lost}");
        assert_eq!(queue.put(parcel.clone()).await.unwrap(), [Put::Known]);
        let all = snapshot(queue.as_ref()).await;
        assert!(all.values().all(|whole| whole.7 == bytes_of(&parcel.raw)), "{lost}");
    }
}

/// Q7, Q40: what is mended is as safe as what is new: a guarantee that goes while its commit waits is a failed put.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_mended_has_the_guarantee_that_is_asked() {
    let primary = Cluster::start(&["wal_keep_size=64MB"]).leaked();
    let _standby = Cluster::standby_of(primary, "second").leaked();
    let database: &Database = Box::leak(Box::new(primary.database()));
    let set = |names: &str| {
        let sql = format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'");
        primary.psql("postgres", &sql).unwrap();
        primary.psql("postgres", "SELECT pg_reload_conf()").unwrap();
    };
    set("second");
    let mut server = database.server();
    (server.require_replication, server.patience) = (true, Duration::from_secs(20));
    let place = Place::of(Some(server));
    let queue = soon("open", async || queue::open(&place.settings, Arc::new(SystemClock)).ok()).await;
    let parcel = place.letter(1, 10, &["a"]).await;
    soon("put", async || queue.put(parcel.clone()).await.ok()).await;
    database.sql("DELETE FROM activity_milter.payload");
    let held = tokio::task::spawn_blocking(|| {
        database.sql("BEGIN; SELECT 1 FROM activity_milter.item FOR UPDATE; SELECT pg_sleep(4); COMMIT")
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (waits, again) = (Arc::clone(&queue), parcel.clone());
    let put = tokio::spawn(async move { waits.put(again).await });
    soon("waiting for the row", async || {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        (database.sql(waiting).trim() != "0").then_some(())
    })
    .await;
    set("");
    let put = put.await.unwrap();
    assert!(matches!(put, Err(StorageError::Busy(_))), "{put:?}");
    held.await.unwrap();
    set("second");
    soon("safe again", async || queue.put(parcel.clone()).await.ok()).await;
}

/// The first row.
async fn snapshot_one(queue: &dyn Queue) -> Result<(), StorageError> {
    let first = queue.list(Filter { limit: Some(1), ..Filter::default() }).await?;
    queue.open(first[0].id).await.map(drop)
}
