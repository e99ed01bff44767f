//! What only a queue in a database server can meet: a standby that is away, a primary that dies, a clock of a machine that is
//! wrong, a pooler between, several services at the same time. Real servers, each in a directory of its own.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/database.rs"]
mod database;
#[path = "support/letter.rs"]
mod letter;

use activity_milter::queue::{
    self, Ask, Change, Clock, End, Filter, OpenError, Put, Queue, Settings, State, StorageError, SystemClock,
    Ticket,
    postgres::{Server, Tls},
};
use database::{Cluster, Database};
use letter::{LARGE, bytes_of, directory, letter};
use std::{
    collections::BTreeMap,
    mem::ManuallyDrop,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// For what comes at once.
const SOON: Duration = Duration::from_secs(20);
const DAY: Duration = Duration::from_secs(86_400);

/// A machine: a directory of its own, and a queue that it may share.
struct Machine {
    directory: tempfile::TempDir,
    settings: Settings,
    queue: Option<Arc<dyn Queue>>,
}

impl std::ops::Deref for Machine {
    type Target = dyn Queue;

    fn deref(&self) -> &Self::Target {
        &**self.queue.as_ref().unwrap()
    }
}

impl Machine {
    fn settings(server: Server) -> (tempfile::TempDir, Settings) {
        let directory = directory();
        let (path, spool) = (directory.path().join("queue.db"), directory.path().join("spool"));
        let settings = Settings { server: Some(server), min_free: 0, ..Settings::new(path, spool) };
        (directory, settings)
    }

    fn try_new(server: Server) -> Result<Self, OpenError> {
        let (directory, settings) = Self::settings(server);
        let queue = Some(queue::open(&settings, Arc::new(SystemClock))?);
        Ok(Self { directory, settings, queue })
    }

    fn new(server: Server) -> Self {
        Self::try_new(server).unwrap()
    }

    /// It is killed, and started again.
    fn crash(&mut self) {
        self.queue = None;
        self.queue = Some(queue::open(&self.settings, Arc::new(SystemClock)).unwrap());
    }

    async fn give(&self, id: usize, targets: &[&str]) -> Result<Vec<Put>, StorageError> {
        self.put(letter(self.directory.path(), id, 10, targets).await).await
    }

    async fn leases(&self, room: usize) -> Vec<Ticket> {
        self.lease(Ask { room, ..Ask::default() }).await.unwrap().tickets
    }

    async fn waiting(&self) -> u64 {
        self.counts().await.unwrap().waiting
    }

    /// Until it works.
    async fn soon<T>(&self, what: &str, mut works: impl AsyncFnMut(&Self) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(done) = works(self).await {
                return done;
            }
            assert!(began.elapsed() < SOON, "{what} in vain");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn is_later<T>(done: &Result<T, StorageError>) -> bool {
    matches!(done, Err(StorageError::Busy(_)))
}

/// A primary whose commits wait for a standby, and that standby.
struct Pair {
    primary: &'static Cluster,
    standby: &'static Cluster,
    /// Never dropped: that would wait for the standby.
    database: ManuallyDrop<Database>,
}

impl Pair {
    fn new() -> Self {
        let primary = Cluster::start(&["wal_keep_size=64MB"]).leaked();
        let standby = Cluster::standby_of(primary, "second").leaked();
        let pair = Self { primary, standby, database: ManuallyDrop::new(primary.database()) };
        pair.set("synchronous_standby_names", "second");
        let began = Instant::now();
        while pair.database.sql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") != "1" {
            assert!(began.elapsed() < SOON, "the standby does not come");
            std::thread::sleep(Duration::from_millis(50));
        }
        pair
    }

    fn set(&self, name: &str, value: &str) {
        self.primary.psql("postgres", &format!("ALTER SYSTEM SET {name} = '{value}'")).unwrap();
        self.primary.psql("postgres", "SELECT pg_reload_conf()").unwrap();
    }

    /// Both, by one URL, with little patience.
    fn server(&self) -> Server {
        let Database { name, .. } = &*self.database;
        let hosts = format!("{},{}", self.standby.host(), self.primary.host());
        let mut server = Server::new(&format!("postgres://{name}@{hosts}/{name}")).unwrap();
        (server.connections, server.patience, server.require_replication) = (4, Duration::from_secs(2), true);
        server
    }

    /// The standby is there, and confirms nothing any more.
    fn freeze(&self) {
        let receiver = self.standby.psql("postgres", "SELECT pid FROM pg_stat_wal_receiver").unwrap();
        assert!(std::process::Command::new("kill").args(["-STOP", &receiver]).status().unwrap().success());
    }

    /// The primary is lost, and the standby takes over, with another one behind it.
    fn take_over(&self) {
        self.primary.kill();
        self.standby.kill();
        self.standby.run(&["cluster_name=second", "hot_standby=on"]);
        self.standby.psql("postgres", "SELECT pg_promote()").unwrap();
        Cluster::standby_of(self.standby, "third").leaked();
        self.standby.psql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'third'").unwrap();
        self.standby.psql("postgres", "SELECT pg_reload_conf()").unwrap();
    }

    /// So many commits wait for the standby.
    async fn until_waiting(&self, count: u32) {
        let began = Instant::now();
        // What a service does now and then waits for the standby as well.
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query NOT LIKE '%pg_try_advisory_xact_lock%'
            AND query NOT LIKE '%activity_milter.node AS known%' AND query NOT LIKE '%meta SET newest%'";
        while self.primary.psql("postgres", waiting).unwrap().parse::<u32>().unwrap() < count {
            assert!(began.elapsed() < SOON, "too few wait:\n{}", self.sessions());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What each session is at.
    fn sessions(&self) -> String {
        let all = "SELECT pid, state, wait_event, pg_blocking_pids(pid), now() - query_start, left(query, 100) FROM pg_stat_activity";
        self.primary.psql("postgres", all).unwrap()
    }

    /// Somebody cancels what waits for the standby.
    fn cancel_waits(&self) -> String {
        self.primary
            .psql(
                "postgres",
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'",
            )
            .unwrap()
    }
}

/// Q40: what was said 250 for is on the standby, and what was not may be anywhere; a row that only the primary has is known to
/// nobody.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_on_a_standby_is_not_taken_and_not_known() {
    let pair = Pair::new();
    let machine = Machine::new(pair.server());
    assert_eq!(machine.give(1, &["a"]).await.unwrap(), [Put::New]);
    pair.freeze();
    // Past our patience: nobody knows.
    assert!(is_later(&machine.give(2, &["a"]).await));
    // The primary has the row; whoever tries again is not told that it is known.
    assert!(is_later(&machine.give(2, &["a"]).await));
    // A wait that somebody cancels is reported as a success, with a warning.
    let cancelled = {
        let put = machine.give(3, &["a"]);
        tokio::pin!(put);
        loop {
            tokio::select! {
                done = &mut put => break done,
                () = tokio::time::sleep(Duration::from_millis(100)) => drop(pair.cancel_waits()),
            }
        }
    };
    assert!(
        matches!(&cancelled, Err(StorageError::Busy(why)) if why.contains("wait for a standby")),
        "{cancelled:?}"
    );
    let rows = "SELECT count(*) FROM activity_milter.item";
    assert!(pair.database.sql(rows).parse::<u32>().unwrap() >= 2, "the primary has what the standby has not");
    assert!(is_later(&machine.give(3, &["a"]).await));
    // The primary crashes and is back, still alone: known in its memory is not known.
    pair.primary.kill();
    pair.primary.run(&["wal_keep_size=64MB"]);
    assert!(is_later(&machine.give(3, &["a"]).await));
    // Nor to who only asks: by LMTP that would be a 250.
    let key = letter(machine.directory.path(), 3, 10, &["a"]).await.activities[0].key.clone();
    assert!(is_later(&machine.known(vec![key]).await));
    // Its disk is lost, and the standby takes over: what it never had comes again, and what it had is there once.
    pair.primary.kill();
    pair.standby.kill();
    pair.standby.run(&["cluster_name=second", "hot_standby=on"]);
    pair.standby.psql("postgres", "SELECT pg_promote()").unwrap();
    assert!(is_later(&machine.give(4, &["a"]).await), "nobody confirms what the new one commits");
    pair.standby.psql("postgres", "ALTER SYSTEM SET synchronous_standby_names = ''").unwrap();
    pair.standby.psql("postgres", "SELECT pg_reload_conf()").unwrap();
    let mut server = pair.server();
    server.require_replication = false;
    let machine = Machine::new(server);
    assert_eq!(machine.give(1, &["a"]).await.unwrap(), [Put::Known]);
    for id in 2..5 {
        assert_eq!(machine.give(id, &["a"]).await.unwrap(), [Put::New], "{id}");
    }
    assert_eq!(machine.leases(10).await.len(), 4);
}

/// Q40: tools that watch over a cluster take the standby's name away at run time, and no commit says so.
#[tokio::test(flavor = "multi_thread")]
async fn without_its_guarantee_nothing_is_taken() {
    let pair = Pair::new();
    let machine = Machine::new(pair.server());
    let safety = machine.safety().await.unwrap().unwrap();
    assert_eq!(
        safety,
        "a commit waits for a standby (second); fsync is off, so a power cut loses what was accepted"
    );
    // Who may see it is told whether the standby is there.
    pair.primary.psql("postgres", &format!("GRANT pg_read_all_stats TO {}", pair.database.name)).unwrap();
    let safety = machine.safety().await.unwrap().unwrap();
    assert!(safety.contains("(second), and 1 are there;"), "{safety}");
    for id in 400..402 {
        machine.give(id, &["a"]).await.unwrap();
    }
    let attempted = machine.leases(1).await.remove(0);
    pair.set("synchronous_standby_names", "");
    let mut id = 1;
    let refused = machine
        .soon("refused", async |machine| {
            id += 1;
            machine.give(id, &["a"]).await.err()
        })
        .await;
    assert!(refused.to_string().contains("synchronous_standby_names is empty"), "{refused}");
    assert!(is_later(&machine.check().await), "/readyz");
    assert!(machine.safety().await.unwrap().is_err());
    // Nothing is leased: who takes over would give it to somebody else. What was attempted meanwhile is owed.
    assert!(is_later(&machine.lease(Ask { room: 1, ..Ask::default() }).await));
    assert!(is_later(&machine.finish(vec![(attempted.clone(), End::Taken)]).await));
    assert!(is_later(&machine.note(&attempted, "{}".to_owned()).await));
    // A new connection sees it before it takes anything.
    let other = Machine::new(pair.server());
    assert!(is_later(&other.give(100, &["a"]).await));
    pair.set("synchronous_standby_names", "second");
    machine.soon("taken again", async |machine| machine.give(200, &["a"]).await.ok()).await;
    let gone = format!("SELECT count(*) FROM activity_milter.item WHERE id = {}", attempted.item);
    machine.soon("paid", async |_| (pair.database.sql(&gone) == "0").then_some(())).await;
    machine.soon("leased", async |machine| machine.lease(Ask { room: 1, ..Ask::default() }).await.ok()).await;
    // On no disk at all is worse, whatever is asked.
    pair.primary
        .psql("postgres", &format!("ALTER ROLE {} SET synchronous_commit = off", pair.database.name))
        .unwrap();
    let mut server = pair.server();
    server.require_replication = false;
    let careless = Machine::new(server);
    let refused = careless.give(300, &["a"]).await.unwrap_err().to_string();
    assert!(refused.contains("synchronous_commit is off"), "{refused}");
}

/// Q42: the server dies and is back: nothing that was taken is lost, what was delivered meanwhile is written down, nobody waits
/// for long, and nothing has to be started again.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_away_is_back_by_itself() {
    let cluster = Cluster::start(&[]).leaked();
    let database = cluster.database();
    let machine = Machine::new(database.server());
    for id in 0..10 {
        machine.give(id, &["a"]).await.unwrap();
    }
    let tickets = machine.leases(4).await;
    cluster.kill();
    let began = Instant::now();
    for id in 10..100 {
        assert!(is_later(&machine.give(id, &["a"]).await));
    }
    assert!(began.elapsed() < Duration::from_secs(10), "a hundred wait {:?}", began.elapsed());
    assert!(is_later(&machine.finish(vec![(tickets[0].clone(), End::Taken)]).await));
    assert!(machine.open(tickets[1].item).await.is_err());
    cluster.run(&[]);
    machine.soon("put", async |machine| machine.give(10, &["a"]).await.ok()).await;
    // The end that was owed.
    machine.soon("paid", async |machine| (machine.waiting().await == 10).then_some(())).await;
    assert_eq!(machine.give(0, &["a"]).await.unwrap(), [Put::Known]);
    for ticket in &tickets[1..] {
        assert_eq!(machine.finish(vec![(ticket.clone(), End::Taken)]).await.unwrap(), [true]);
    }
    assert_eq!(machine.waiting().await, 7);
    // Connections that the server ends.
    database.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()");
    machine.soon("put", async |machine| machine.give(11, &["a"]).await.ok()).await;
}

/// Q42: an answer that says what was leased is lost: what nobody heard of is leased again soon, and what is being attempted is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_nobody_heard_of_is_given_back() {
    let pair = Pair::new();
    let machine = Machine::new(pair.server());
    for id in 0..4 {
        machine.give(id, &["a"]).await.unwrap();
    }
    let mut tickets = machine.leases(2).await;
    let (given_back, attempted) = (tickets.remove(1), tickets.remove(0));
    // And one that was given back by a word whose answer was lost, and leased again without our knowledge.
    let again = "UPDATE activity_milter.item SET fence = nextval('activity_milter.fence') WHERE id =";
    pair.database.sql(&format!("{again} {}", given_back.item));
    pair.standby.kill();
    let lost = {
        let lease = machine.lease(Ask { room: 10, ..Ask::default() });
        tokio::pin!(lease);
        loop {
            tokio::select! {
                done = &mut lease => break done,
                () = tokio::time::sleep(Duration::from_millis(100)) => drop(pair.cancel_waits()),
            }
        }
    };
    assert!(is_later(&lost));
    let leased = "SELECT count(*) FROM activity_milter.item WHERE until IS NOT NULL";
    assert_eq!(pair.database.sql(leased), "4", "the database has given them");
    pair.standby.run(&["cluster_name=second", "hot_standby=on"]);
    let again = machine
        .soon("leased again", async |machine| {
            let tickets = machine.lease(Ask { room: 10, ..Ask::default() }).await.ok()?.tickets;
            (!tickets.is_empty()).then_some(tickets)
        })
        .await;
    assert_eq!(again.len(), 3);
    assert!(again.iter().all(|ticket| ticket.item != attempted.item));
    for ticket in again.into_iter().chain([attempted]) {
        assert_eq!(machine.finish(vec![(ticket, End::Taken)]).await.unwrap(), [true]);
    }
}

/// Q41: the end of a lease is written on the primary alone, which crashes and is back without its standby: that the row is gone
/// there is not what was asked, and whoever has delivered it says so again to the one that takes over.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_only_a_crashed_primary_has_is_none() {
    let pair = Pair::new();
    let machine = Machine::new(pair.server());
    for id in 0..4 {
        machine.give(id, &["a"]).await.unwrap();
    }
    let mut tickets = machine.leases(3).await.into_iter();
    let ends = [vec![End::Taken], vec![End::Taken, End::Held { reason: "422".to_owned() }]];
    let ends: Vec<Vec<(Ticket, End)>> =
        ends.into_iter().map(|some| tickets.by_ref().zip(some).collect()).collect();
    let by_hand = machine.list(Filter::default()).await.unwrap();
    let by_hand = vec![by_hand.last().unwrap().id];
    pair.freeze();
    // Not at once, or one statement would do for both.
    let second = async {
        pair.until_waiting(2).await;
        machine.finish(ends[1].clone()).await
    };
    let crash = async {
        pair.until_waiting(3).await;
        pair.primary.kill();
        pair.primary.run(&["wal_keep_size=64MB"]);
    };
    let dropped = machine.change_those(by_hand.clone(), Change::Drop);
    let (first, second, dropped, ()) = tokio::join!(machine.finish(ends[0].clone()), second, dropped, crash);
    assert!(is_later(&first) && is_later(&second), "{first:?} {second:?}");
    assert!(is_later(&dropped), "{dropped:?}");
    let rows = "SELECT count(*) FROM activity_milter.item WHERE state = 0";
    assert_eq!(pair.database.sql(rows), "0", "the primary has all of it");
    for some in &ends {
        let again = tokio::time::timeout(Duration::from_secs(2), machine.finish(some.clone())).await;
        assert!(again.as_ref().is_ok_and(is_later) || again.is_err(), "{again:?}");
    }
    let again = machine.change_those(by_hand, Change::Drop);
    let again = tokio::time::timeout(Duration::from_secs(2), again).await;
    assert!(again.as_ref().is_ok_and(is_later) || again.is_err(), "{again:?}");
    pair.take_over();
    machine
        .soon("paid", async |machine| {
            let tickets = machine.lease(Ask { room: 10, ..Ask::default() }).await.ok()?.tickets;
            assert!(
                tickets
                    .iter()
                    .all(|ticket| ends.iter().flatten().all(|(ended, _)| ended.item != ticket.item))
            );
            let list = machine.list(Filter::default()).await.ok()?;
            (list.iter().filter(|entry| entry.state == State::Held).count() == 1).then_some(())
        })
        .await;
}

/// Q41: two machines share it: what comes in at one is delivered by the other, soon; each lease is one's own; the end of one is not
/// the end of the other's leases.
#[tokio::test(flavor = "multi_thread")]
async fn two_machines_share_a_queue() {
    let database = Cluster::shared().database();
    let (mut one, two) = (Machine::new(database.server()), Machine::new(database.server()));
    let woken = async |machine: &Machine| {
        let began = Instant::now();
        machine.arrival().await;
        began.elapsed() < Duration::from_secs(5)
    };
    // What came before.
    while tokio::time::timeout(Duration::from_secs(1), two.arrival()).await.is_ok() {}
    one.give(0, &["a"]).await.unwrap();
    assert!(woken(&two).await, "what comes in here is known there");
    for id in 1..40 {
        one.give(id, &[["a", "b", "c"][id % 3]]).await.unwrap();
    }
    assert_eq!(two.give(1, &["b"]).await.unwrap(), [Put::Known]);
    let (mine, mut other) = tokio::join!(one.leases(20), two.leases(20));
    // What the one was looking at, the other has stepped over.
    other.extend(two.leases(5).await);
    let mut all: Vec<i64> = mine.iter().chain(&other).map(|ticket| ticket.item).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), mine.len() + other.len(), "each is one's own");
    assert!(mine.len() + other.len() >= 5);
    // A person's word at a third place.
    let third = queue::beside(&two.settings, Arc::new(SystemClock)).unwrap();
    let rows: Vec<i64> = third.list(Filter::default()).await.unwrap().iter().map(|entry| entry.id).collect();
    assert_eq!(third.change(rows, Change::Hold { reason: "x".to_owned() }).await.unwrap(), 40 - all.len());
    one.crash();
    assert_eq!(one.leases(100).await.len(), mine.len(), "its own leases, and no other's");
    for ticket in other {
        assert_eq!(two.finish(vec![(ticket, End::Taken)]).await.unwrap(), [true]);
    }
    for ticket in mine {
        assert_eq!(one.finish(vec![(ticket, End::Taken)]).await.unwrap(), [false], "of the process before");
    }
}

/// Q41: many put the same mails at two machines, and two deliver: each once.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_at_two_machines() {
    const MAILS: usize = 120;
    let database = Cluster::shared().database();
    let machines = [Arc::new(Machine::new(database.server())), Arc::new(Machine::new(database.server()))];
    let mut putting = tokio::task::JoinSet::new();
    for task in 0..6 {
        let machine = Arc::clone(&machines[task % 2]);
        putting.spawn(async move {
            let mut new = 0;
            for n in 0..MAILS {
                let id = (n * 7 + task * 13) % MAILS;
                let puts = machine.give(id, &["all", ["a", "b", "c"][id % 3]]).await.unwrap();
                new += puts.iter().filter(|put| **put == Put::New).count();
            }
            new
        });
    }
    let mut taking = tokio::task::JoinSet::new();
    for machine in &machines {
        let machine = Arc::clone(machine);
        taking.spawn(async move {
            let mut taken = BTreeMap::<_, usize>::new();
            let mut idle = 0;
            while idle < 40 {
                let tickets = machine.leases(7).await;
                if tickets.is_empty() {
                    idle += 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                idle = 0;
                for ticket in &tickets {
                    *taken.entry(machine.open(ticket.item).await.unwrap().key).or_default() += 1;
                }
                let ends = tickets.into_iter().map(|ticket| (ticket, End::Taken)).collect::<Vec<_>>();
                assert!(machine.finish(ends).await.unwrap().iter().all(|ours| *ours));
            }
            taken
        });
    }
    let new: usize = putting.join_all().await.into_iter().sum();
    assert_eq!(new, 2 * MAILS);
    let mut delivered = BTreeMap::<_, usize>::new();
    for taken in taking.join_all().await {
        taken.into_iter().for_each(|(key, times)| *delivered.entry(key).or_default() += times);
    }
    assert_eq!(delivered.len(), 2 * MAILS);
    assert!(delivered.values().all(|times| *times == 1));
    assert_eq!(machines[0].waiting().await, 0);
}

/// Q44: a message of many pieces comes back byte for byte, in a file; a day's table goes when nothing needs it, and what is left
/// of an old day is moved on, with its bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_day_of_messages_is_dropped_whole() {
    let database = Cluster::shared().database();
    let (directory, settings) = Machine::settings(database.server());
    let clock = Arc::new(queue::HandClock::at(letter::noon()));
    let queue = queue::open(&settings, Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
    let machine = Machine { directory, settings, queue: Some(queue) };
    let large = letter(machine.directory.path(), 1, 3 * 1024 * 1024 + 7, &["a", "b"]).await;
    let bytes = bytes_of(&large.raw);
    machine.put(large).await.unwrap();
    let medium = letter(machine.directory.path(), 2, LARGE, &["a"]).await;
    let medium_bytes = bytes_of(&medium.raw);
    machine.put(medium).await.unwrap();
    for id in 10..60 {
        machine.give(id, &["c"]).await.unwrap();
    }
    let days = || {
        let sql = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'activity_milter.payload'::regclass";
        database.sql(sql).parse::<usize>().unwrap()
    };
    assert_eq!(days(), 2, "today and tomorrow");
    for ticket in machine.leases(100).await {
        let end = if &*ticket.tenant == "c" { End::Taken } else { End::Held { reason: "x".to_owned() } };
        machine.finish(vec![(ticket, end)]).await.unwrap();
    }
    // What is left is less than a tenth, and it is three days old.
    for _ in 0..5 {
        clock.pass(DAY);
        machine.upkeep(1000 * DAY).await.unwrap();
    }
    assert!(days() <= 4, "{} tables", days());
    let held = machine.list(Filter::default()).await.unwrap();
    assert_eq!(held.len(), 3);
    for entry in &held {
        let item = machine.open(entry.id).await.unwrap();
        let expected = if item.raw.len() > 1_000_000 { &bytes } else { &medium_bytes };
        assert!(bytes_of(&item.raw) == *expected);
        assert_eq!(entry.queue_id.as_deref(), Some("4bQ"));
    }
    let rows = held.iter().map(|entry| entry.id).collect();
    assert_eq!(machine.change(rows, Change::Drop).await.unwrap(), 3);
    for _ in 0..3 {
        clock.pass(DAY);
        machine.upkeep(1000 * DAY).await.unwrap();
    }
    assert!(days() <= 3, "{} tables", days());
    assert_eq!(database.sql("SELECT count(*) FROM activity_milter.payload"), "0");
}

/// Q43: whose clock is wrong, of the machines, is no matter: the database's alone decides.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_s_clock_is_asked_for_nothing() {
    #[derive(Debug)]
    struct Wrong;
    impl Clock for Wrong {
        fn wall(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH + 1000 * DAY
        }
        fn running(&self) -> Duration {
            SystemClock.running()
        }
    }
    let database = Cluster::shared().database();
    let (directory, settings) = Machine::settings(database.server());
    let queue = Some(queue::open(&settings, Arc::new(Wrong)).unwrap());
    let (wrong, right) = (Machine { directory, settings, queue }, Machine::new(database.server()));
    wrong.give(1, &["a"]).await.unwrap();
    let tickets = right.leases(10).await;
    assert_eq!(tickets.len(), 1);
    assert_eq!(wrong.leases(10).await, []);
    let entry = right.list(Filter::default()).await.unwrap().remove(0);
    assert!(SystemTime::now().duration_since(entry.accepted_at).unwrap() < SOON);
    assert!(right.open(entry.id).await.unwrap().age < SOON);
    assert!(wrong.upkeep(DAY).await.unwrap().too_old.is_empty());
}

/// Q42: whoever asks whether mail is taken hears that it is not, though the server answers: a right is gone, or it refuses what is
/// written for a reason that nobody sees who only looks.
#[tokio::test(flavor = "multi_thread")]
async fn what_takes_nothing_is_not_ready() {
    let cluster = Cluster::start(&[]).leaked();
    let database = cluster.database();
    let machine = Machine::new(database.server());
    machine.give(0, &["a"]).await.unwrap();
    machine.check().await.unwrap();
    let table = "activity_milter.item";
    database.sql(&format!("REVOKE INSERT ON {table} FROM {}", database.name));
    assert!(is_later(&machine.check().await));
    database.sql(&format!("GRANT INSERT ON {table} TO {}", database.name));
    machine.check().await.unwrap();
    database.sql(&format!(
        "CREATE FUNCTION public.lack() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN RAISE EXCEPTION ''no space left on device'' USING ERRCODE = ''53100''; END';
         CREATE TRIGGER lack BEFORE INSERT ON {table} EXECUTE FUNCTION public.lack()"
    ));
    machine.give(1, &["a"]).await.unwrap_err();
    machine.check().await.expect("it may be that one message");
    for id in 2..4 {
        machine.give(id, &["a"]).await.unwrap_err();
    }
    let said = machine.check().await.unwrap_err().to_string();
    assert!(said.contains("no space left"), "{said}");
    database.sql(&format!("DROP TRIGGER lack ON {table}"));
    machine.give(4, &["a"]).await.unwrap();
    machine.check().await.unwrap();
}

/// Q45: newer tables are worked with as far as they say so, and the next version may be there before this one is gone.
#[tokio::test(flavor = "multi_thread")]
async fn versions_beside_each_other() {
    let database = Cluster::shared().database();
    let both = [(); 4].map(|()| {
        let server = database.server();
        std::thread::spawn(move || Machine::new(server))
    });
    let machines: Vec<Machine> = both.into_iter().map(|thread| thread.join().unwrap()).collect();
    for (id, machine) in machines.iter().enumerate() {
        machine.give(id, &["a"]).await.unwrap();
    }
    database.sql("UPDATE activity_milter.meta SET version = version + 1");
    let older = Machine::new(database.server());
    assert_eq!(older.waiting().await, 4);
    database.sql("UPDATE activity_milter.meta SET reads = version");
    let refused = Machine::try_new(database.server()).err().unwrap();
    assert!(matches!(refused, OpenError::Newer { .. }), "{refused}");
    assert!(matches!(queue::beside(&older.settings, Arc::new(SystemClock)), Err(OpenError::Newer { .. })));
}

/// Q45: a user who may nothing but use the schema that somebody made for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_given_is_enough() {
    let cluster = Cluster::shared();
    let database = cluster.database();
    let Database { name, .. } = &database;
    database.sql(&format!(
        "ALTER DATABASE {name} OWNER TO postgres; REVOKE ALL ON DATABASE {name} FROM {name}, PUBLIC"
    ));
    database
        .sql(&format!("GRANT CONNECT ON DATABASE {name} TO {name}; REVOKE ALL ON SCHEMA public FROM PUBLIC"));
    let machine = Machine::new(database.server());
    let refused = machine.give(1, &["a"]).await.unwrap_err();
    assert!(matches!(&refused, StorageError::Busy(why) if why.contains("permission denied")), "{refused}");
    database.sql(&format!("CREATE SCHEMA activity_milter AUTHORIZATION {name}"));
    machine.soon("taken", async |machine| machine.give(1, &["a"]).await.ok()).await;
    assert_eq!(machine.leases(1).await.len(), 1);
    machine.upkeep(DAY).await.unwrap();
}

/// Q42: more who put than there are connections: all of them wait for a moment, and none in vain.
#[tokio::test(flavor = "multi_thread")]
async fn more_who_put_than_connections() {
    let database = Cluster::shared().database();
    let mut server = database.server();
    server.connections = 2;
    let machine = Arc::new(Machine::new(server));
    let mut putting = tokio::task::JoinSet::new();
    for id in 0..100 {
        let machine = Arc::clone(&machine);
        putting.spawn(async move { machine.give(id, &["a"]).await.unwrap() });
    }
    assert!(putting.join_all().await.into_iter().all(|puts| puts == [Put::New]));
    assert_eq!(machine.waiting().await, 100);
}

/// A port that is free now.
fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// Q46: over TLS, with a password from a file: who shows another certificate is not spoken to, and no error has the password.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_over_tls_with_a_password() {
    let authority = || {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (certificate, rcgen::Issuer::new(params, key))
    };
    let (certificate, issuer) = authority();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let own = params.signed_by(&key, &issuer).unwrap();
    let directory = directory();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let port = free_port();
    let settings = [&*format!("port={port}"), "listen_addresses=127.0.0.1"];
    let cluster = Cluster::start(&settings).leaked();
    let place = cluster.directory.join("data");
    cluster.shell(&format!(
        "umask 077; cat > \"$2/data/server.key\" <<'E'\n{}E\ncat > \"$2/data/server.crt\" <<'E'\n{}E\n",
        key.serialize_pem(),
        own.pem()
    ));
    cluster.shell("echo 'hostssl all all 127.0.0.1/32 scram-sha-256' > \"$2/hba\" && cat \"$2/hba\" >> \"$2/data/pg_hba.conf\" && sed -i '/^host .*trust/d' \"$2/data/pg_hba.conf\"");
    cluster.psql("postgres", "ALTER SYSTEM SET ssl = on").unwrap();
    cluster.kill();
    cluster.run(&settings);
    assert!(place.join("server.crt").exists());
    let database = cluster.database();
    database.sql(&format!("ALTER ROLE {} PASSWORD 'open sesame'", database.name));
    let url = format!("postgres://{0}@localhost:{port}/{0}", database.name);
    let mut server = Server::new(&url).unwrap();
    let password = file("password", "open sesame\nmore\n");
    let refused = |server: &Server| {
        // No patience for what will not be.
        let queue = queue::beside(&Machine::settings(server.clone()).1, Arc::new(SystemClock));
        let error = queue.err().unwrap().to_string();
        assert!(!error.contains("sesame"), "{error}");
        error
    };
    server.password_file = Some(password.clone());
    let ca_file = Some(file("ca.pem", &certificate.pem()));
    server.tls = Tls::Verify { ca_file: Some(file("other.pem", &authority().0.pem())) };
    assert!(refused(&server).contains("invalid peer certificate"), "{}", refused(&server));
    server.tls = Tls::Verify { ca_file: Some(file("none.pem", "")) };
    assert!(refused(&server).contains("there is no certificate in it"));
    server.tls = Tls::Off;
    assert!(refused(&server).contains("no encryption"), "{}", refused(&server));
    server.tls = Tls::Verify { ca_file };
    let machine = Machine::new(server.clone());
    machine.give(1, &["a"]).await.unwrap();
    assert_eq!(database.sql("SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name LIKE 'activity-milter%'"), "t");
    // Renewed while it runs: the next connection has it.
    std::fs::write(&password, "wrong sesame\n").unwrap();
    assert!(refused(&server).contains("password authentication failed"), "{}", refused(&server));
    database.sql(&format!("ALTER ROLE {} PASSWORD 'wrong sesame'", database.name));
    database.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'activity-milter%'");
    machine.soon("put", async |machine| machine.give(2, &["a"]).await.ok()).await;
    let mut elsewhere = Server::new(&url.replace("localhost", "127.0.0.1")).unwrap();
    (elsewhere.tls, elsewhere.password_file) = (server.tls.clone(), Some(password));
    assert!(refused(&elsewhere).contains("not valid for name"), "{}", refused(&elsewhere));
}

/// Q45: what is done all the time is a function of the database; one that somebody dropped is not missed, and who may make none
/// works without.
#[tokio::test(flavor = "multi_thread")]
async fn functions_are_made_and_not_needed() {
    const COUNT: &str = "SELECT count(*) FROM pg_proc WHERE prolang = (SELECT oid FROM pg_language WHERE lanname = 'plpgsql') AND pronamespace = 'activity_milter'::regnamespace";
    let cluster = Cluster::start(&[]).leaked();
    let work = async |machine: &Machine, first: usize| {
        machine.give(first, &["a", "b"]).await.unwrap();
        let large = letter(machine.directory.path(), first + 1, 2 * LARGE, &["a"]).await;
        assert_eq!(machine.put(large).await.unwrap(), [Put::New]);
        let tickets = machine.leases(3).await;
        assert_eq!(tickets.len(), 3);
        for ticket in &tickets {
            machine.open(ticket.item).await.unwrap();
        }
        let mut ends: Vec<(Ticket, End)> = tickets.into_iter().map(|ticket| (ticket, End::Taken)).collect();
        ends[0].1 = End::Held { reason: "422".to_owned() };
        assert_eq!(machine.finish(ends).await.unwrap(), [true; 3]);
    };
    let database = cluster.database();
    let mut machine = Machine::new(database.server());
    let made = database.sql(COUNT);
    assert!(made.parse::<u32>().unwrap() >= 5, "{made}");
    // Where the tables came out of a back-up, the settings of our user did not.
    let quick =
        COUNT.replace("prolang =", "proconfig @> ARRAY['jit=off', 'search_path=pg_catalog'] AND prolang =");
    assert_eq!(database.sql(&quick), made);
    let used = "SELECT count(*) FROM pg_stat_user_functions WHERE calls > 0 AND funcname <> 'at'";
    cluster.psql("postgres", "ALTER SYSTEM SET track_functions = 'pl'").unwrap();
    cluster.psql("postgres", "SELECT pg_reload_conf()").unwrap();
    work(&machine, 10).await;
    machine.soon("used", async |_| (database.sql(used) == made).then_some(())).await;
    // In the midst of its work, before a message in parts too.
    let drop_all = "DO $$ DECLARE one record; BEGIN
        FOR one IN SELECT pg_proc.oid::regprocedure AS f FROM pg_proc JOIN pg_language ON pg_language.oid = prolang
            WHERE lanname = 'plpgsql' AND pronamespace = 'activity_milter'::regnamespace
        LOOP EXECUTE 'DROP FUNCTION ' || one.f; END LOOP; END $$";
    database.sql(drop_all);
    assert_eq!(database.sql(COUNT), "0");
    let large = letter(machine.directory.path(), 19, 2 * LARGE, &["a"]).await;
    assert_eq!(machine.put(large).await.unwrap(), [Put::New]);
    let ticket = machine.leases(1).await.remove(0);
    assert_eq!(machine.finish(vec![(ticket, End::Taken)]).await.unwrap(), [true]);
    work(&machine, 20).await;
    machine.crash();
    assert_eq!(database.sql(COUNT), made);
    let poor = cluster.database();
    cluster.psql(&poor.name, "REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC").unwrap();
    let machine = Machine::new(poor.server());
    assert_eq!(poor.sql(COUNT), "0");
    work(&machine, 10).await;
}

/// Q46: PgBouncer in transaction mode, with fewer connections than we have: nothing of ours needs a session.
#[tokio::test(flavor = "multi_thread")]
async fn through_a_pooler() {
    let cluster = Cluster::start(&[]).leaked();
    let database = cluster.database();
    let unpacked =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/pgbouncer/usr/sbin/pgbouncer");
    let program = if unpacked.exists() { unpacked } else { "/usr/sbin/pgbouncer".into() };
    let place = cluster.directory.display();
    let port = free_port();
    // It ends with the server's directory: the shell that holds it waits for that.
    cluster.shell(&format!(
        "printf '\"%s\" \"\"\\n' {name} > \"$2/users\"
         printf '[databases]\\n* = host={place}\\n[pgbouncer]\\nlisten_addr =\\nlisten_port = {port}\\nunix_socket_dir = {place}\\nauth_type = trust\\nauth_file = {place}/users\\npool_mode = transaction\\ndefault_pool_size = 3\\nlogfile = {place}/bouncer.log\\n' > \"$2/bouncer.ini\"
         {program} -q \"$2/bouncer.ini\" >/dev/null 2>&1 </dev/null &
         bouncer=$!
         (while [ -d \"$2/data\" ]; do sleep 0.2; done; kill $bouncer) >/dev/null 2>&1 </dev/null &",
        name = database.name,
        program = program.display()
    ));
    let url = format!("postgres://{0}@{1}:{port}/{0}", database.name, cluster.host());
    let mut machine = Machine::new(Server::new(&url).unwrap());
    machine.soon("there", async |machine| machine.check().await.ok()).await;
    let other = Machine::new(Server::new(&url).unwrap());
    let mut puts = Vec::new();
    for id in 0..60 {
        puts.push(machine.give(id, &["a", "b"]));
    }
    for puts in futures_util::future::join_all(puts).await {
        assert_eq!(puts.unwrap(), [Put::New; 2]);
    }
    let large = letter(machine.directory.path(), 100, 2 * 1024 * 1024, &["c"]).await;
    let bytes = bytes_of(&large.raw);
    assert_eq!(other.put(large.clone()).await.unwrap(), [Put::New]);
    assert_eq!(machine.put(large).await.unwrap(), [Put::Known]);
    machine.upkeep(DAY).await.unwrap();
    machine.crash();
    let (mine, mut others) = tokio::join!(machine.leases(60), other.leases(200));
    // At the same moment, each steps over what the other one looks at.
    others.extend(other.leases(200).await);
    assert_eq!(mine.len() + others.len(), 121);
    let large = mine.iter().chain(&others).find(|ticket| &*ticket.tenant == "c").unwrap();
    assert!(bytes_of(&machine.open(large.item).await.unwrap().raw) == bytes);
    for (queue, tickets) in [(&machine, mine), (&other, others)] {
        let ends: Vec<_> = tickets.into_iter().map(|ticket| (ticket, End::Taken)).collect();
        assert!(queue.finish(ends).await.unwrap().iter().all(|ours| *ours));
    }
    assert_eq!(database.sql("SELECT count(*) FROM pg_prepared_statements"), "0");
    let there = database.sql("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()");
    assert!(there.parse::<u32>().unwrap() <= 4, "{there} connections, and psql's is one");
}

/// Q50: what is committed long after it was due is behind nobody's back: a walk from the beginning finds it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_due_before_all_others_is_leased_too() {
    let database = Cluster::shared().database();
    let machine = Machine::new(database.server());
    for id in 0..3 {
        machine.give(id, &[["a", "b", "c"][id]]).await.unwrap();
        let ticket = machine.leases(1).await.remove(0);
        machine.finish(vec![(ticket, End::Taken)]).await.unwrap();
        machine.give(10 + id, &["b"]).await.unwrap();
        database.sql("UPDATE activity_milter.item SET due = due - 100000 - id");
        machine.soon("leased", async |machine| machine.leases(1).await.pop()).await;
    }
}

/// Activities that are put and delivered in a second, for so long.
async fn turnover(machine: &Arc<Machine>, round: &str, lasts: Duration) -> f64 {
    const PUTTING: usize = 16;
    let began = Instant::now();
    let mut putting = tokio::task::JoinSet::new();
    for at in 0..PUTTING {
        let (machine, round) = (Arc::clone(machine), round.to_owned());
        let parcel = letter(machine.directory.path(), at, 1000, &["a"]).await;
        putting.spawn(async move {
            for count in 0.. {
                if began.elapsed() >= lasts {
                    break;
                }
                let mut parcel = parcel.clone();
                let bytes = *blake3::hash(format!("{round} {at} {count}").as_bytes()).as_bytes();
                parcel.activities[0].key = activity_milter::activity::Key::from_bytes(bytes);
                machine.put(parcel).await.unwrap();
            }
        });
    }
    let mut taken = 0;
    while began.elapsed() < lasts {
        let tickets = machine.leases(32).await;
        taken += tickets.len();
        let ends = tickets.into_iter().map(|ticket| (ticket, End::Taken)).collect();
        machine.finish(ends).await.unwrap();
    }
    let rate = f64::from(u32::try_from(taken).unwrap()) / began.elapsed().as_secs_f64();
    putting.join_all().await;
    while let tickets @ [_, ..] = &*machine.leases(500).await {
        let ends = tickets.iter().cloned().map(|ticket| (ticket, End::Taken)).collect();
        machine.finish(ends).await.unwrap();
    }
    println!("{round}: {rate:.0}/s");
    rate
}

/// For a rate.
const LASTS: Duration = Duration::from_secs(8);

/// Q50: somebody reads for long on a standby, and nothing may be forgotten for him: what 15 minutes at 300/s leave behind costs less
/// than a fifth of the rate. By turns with a database in which nothing was left behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "a minute; make cluster"]
async fn a_report_that_stays_open() {
    const PARTS: u32 = 9;
    const LEFT: u32 = 270_000;
    let pair = Pair::new();
    let bare = ManuallyDrop::new(pair.primary.database());
    pair.standby.psql("postgres", "ALTER SYSTEM SET hot_standby_feedback = on").unwrap();
    pair.standby.psql("postgres", "SELECT pg_reload_conf()").unwrap();
    let databases = [&*bare, &*pair.database];
    let machines = databases.map(|database| Arc::new(Machine::new(database.server())));
    let standby = pair.standby;
    let report = std::thread::spawn(move || {
        standby.psql(
            "postgres",
            "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class; SELECT pg_sleep(3600)",
        )
    });
    let is_open = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'BEGIN ISO%'";
    machines[0]
        .soon("open", async |_| (standby.psql("postgres", is_open).unwrap() == "1").then_some(()))
        .await;
    for part in (1..=PARTS).rev() {
        pair.database.sql(&format!(
            "WITH many AS (SELECT nextval('activity_milter.number') AS id FROM generate_series(1, {}))
             INSERT INTO activity_milter.item (id, due, accepted_at, letter, size, day, key, tenant)
             SELECT id, now, now, id, 0, 1, decode(md5(id::text), 'hex'), 'a'
             FROM many, (SELECT activity_milter.at(NULL) - {} AS now) AS t",
            LEFT / PARTS,
            part * 100_000
        ));
        pair.database.sql("DELETE FROM activity_milter.item");
    }
    for database in databases {
        database.sql("VACUUM activity_milter.item");
    }
    assert!(
        pair.database.sql("SELECT pg_relation_size('activity_milter.item') > 20000000") == "t",
        "it is all there still"
    );
    let mut rates = [0.0; 2];
    for round in 0..4 {
        for (at, name) in ["nothing left behind", "a report is open"].into_iter().enumerate() {
            let rate = turnover(&machines[at], &format!("{name}, {round}"), LASTS / 2).await;
            rates[at] += if round > 0 { rate } else { 0.0 };
        }
    }
    assert_eq!(standby.psql("postgres", is_open).unwrap(), "1", "it is open still");
    standby.psql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'BEGIN ISO%' AND pid <> pg_backend_pid()").unwrap();
    report.join().unwrap().unwrap_err();
    assert!(rates[1] >= 0.8 * rates[0], "{rates:?}");
}

/// Q50: a million that are held cost nobody anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "a minute; make cluster"]
async fn a_million_held() {
    let cluster = Cluster::start(&[]).leaked();
    let [empty, full] = [cluster.database(), cluster.database()];
    let machines = [&empty, &full].map(|database| {
        let (directory, mut settings) = Machine::settings(database.server());
        settings.max_items = 2_000_000;
        let queue = Some(queue::open(&settings, Arc::new(SystemClock)).unwrap());
        Arc::new(Machine { directory, settings, queue })
    });
    full.sql(
        "INSERT INTO activity_milter.item (id, due, accepted_at, held_at, letter, size, day, key, tenant, state, reason)
         SELECT nextval('activity_milter.number'), now, now, now, 0, 0, now / 86400000, decode(md5(n::text), 'hex'), 'a', 1, 'x'
         FROM generate_series(1, 1000000) AS n, (SELECT activity_milter.at(NULL) AS now) AS t",
    );
    full.sql("INSERT INTO activity_milter.delta (tenant, held) VALUES ('a', 1000000)");
    full.sql("ANALYZE");
    let mut rates = [0.0; 2];
    for round in 0..3 {
        for (at, name) in ["none held", "a million held"].into_iter().enumerate() {
            let rate = turnover(&machines[at], &format!("{name}, {round}"), LASTS / 2).await;
            rates[at] += if round > 0 { rate } else { 0.0 };
        }
    }
    machines[1]
        .soon("counted", async |machine| (machine.counts().await.unwrap().held == 1_000_000).then_some(()))
        .await;
    assert!(rates[1] >= 0.8 * rates[0], "{rates:?}");
}

/// Q40: whoever waits for a standby is let go without a word when its name is taken away: that is no success.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_away_while_a_put_waits() {
    let pair = Pair::new();
    let machine = Machine::new(pair.server());
    machine.give(1, &["a"]).await.unwrap();
    pair.freeze();
    let long = letter(machine.directory.path(), 3, 2 * LARGE, &["a"]).await;
    let taken_away = async {
        pair.until_waiting(2).await;
        pair.set("synchronous_standby_names", "");
    };
    let (short, long, ()) = tokio::join!(machine.give(2, &["a"]), machine.put(long), taken_away);
    for put in [short, long] {
        assert!(matches!(&put, Err(StorageError::Busy(why)) if why.contains("names is empty")), "{put:?}");
    }
}

/// Q41: the same for the end of a lease: it is owed until another server, or this one with its standby, has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_away_while_an_end_waits() {
    let pair = Pair::new();
    let machine = Machine::new(pair.server());
    for id in 0..4 {
        machine.give(id, &["a"]).await.unwrap();
    }
    let tickets = machine.leases(4).await;
    pair.freeze();
    let held = End::Held { reason: "422".to_owned() };
    let both = vec![(tickets[0].clone(), End::Taken), (tickets[1].clone(), held.clone())];
    // Not at once, or one statement would do for both.
    let both = async {
        pair.until_waiting(1).await;
        machine.finish(both).await
    };
    let taken_away = async {
        pair.until_waiting(2).await;
        pair.set("synchronous_standby_names", "");
    };
    let (one, both, ()) =
        tokio::join!(machine.finish(vec![(tickets[2].clone(), End::Taken)]), both, taken_away);
    for done in [one, both] {
        assert!(matches!(&done, Err(StorageError::Busy(why)) if why.contains("names is empty")), "{done:?}");
    }
    // Somebody else takes over.
    pair.take_over();
    let rows = "SELECT count(*), count(*) FILTER (WHERE state = 1) FROM activity_milter.item";
    machine
        .soon("paid", async |_| {
            (pair.standby.psql(&pair.database.name, rows).unwrap() == "2|1").then_some(())
        })
        .await;
}

/// Q40: a session has settings of its own: one that hears no warnings takes nothing, and whoever puts that right need not start us
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_session_was_set_to_counts_for_it_alone() {
    let pair = Pair::new();
    let machine = Machine::new(pair.server());
    let set = |setting: &str| {
        let Database { name, .. } = &*pair.database;
        pair.primary
            .psql("postgres", &format!("ALTER ROLE {name} IN DATABASE {name} SET {setting}"))
            .unwrap();
    };
    let cut = || {
        pair.database.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
    };
    for (wrong, right, why) in [
        ("client_min_messages = error", "client_min_messages = warning", "client_min_messages"),
        ("synchronous_commit = off", "synchronous_commit = on", "synchronous_commit is off"),
        ("synchronous_commit = local", "synchronous_commit = on", "does not wait for a standby's disk"),
    ] {
        set(wrong);
        cut();
        let refused = machine.soon("refused", async |machine| machine.give(1, &["a"]).await.err()).await;
        machine
            .soon(why, async |machine| {
                let refused = machine.give(1, &["a"]).await.err()?;
                refused.to_string().contains(why).then_some(())
            })
            .await;
        drop(refused);
        set(right);
        machine.soon("taken again", async |machine| machine.give(2, &["a"]).await.ok()).await;
        machine.soon("ready", async |machine| machine.check().await.ok()).await;
    }
}

/// Q41: a database that lost its last moments gives the numbers of before to other mail, and an end of before is not for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_from_before_a_loss_is_for_nobody_else() {
    let database = Cluster::shared().database();
    let machine = Machine::new(database.server());
    machine.give(1, &["a"]).await.unwrap();
    let before = machine.leases(1).await.remove(0);
    let (item, fence) = (before.item, before.fence);
    // What a standby never had.
    database.sql("TRUNCATE activity_milter.item, activity_milter.key, activity_milter.payload, activity_milter.delta, activity_milter.tenant");
    database.sql(&format!("SELECT setval('activity_milter.number', {item}, false), setval('activity_milter.fence', {fence}, false)"));
    machine.give(2, &["a"]).await.unwrap();
    // By the same one, which knows the former lease still.
    let other = &machine;
    let after = other.leases(1).await.remove(0);
    assert_eq!((after.item, after.fence), (item, fence), "the same numbers");
    for end in [End::Held { reason: "x".to_owned() }, End::Taken] {
        assert_eq!(machine.finish(vec![(before.clone(), end)]).await.unwrap(), [false]);
    }
    assert!(!machine.note(&before, "{}".to_owned()).await.unwrap());
    assert_eq!(other.finish(vec![(after, End::Taken)]).await.unwrap(), [true]);
}

/// Q41: what a machine had that is heard of no more is attempted elsewhere; a copy of its directory is another machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_gone_is_missed() {
    let database = Cluster::shared().database();
    let mut server = database.server();
    server.missed_after = Duration::from_secs(3);
    let mut one = Machine::new(server.clone());
    one.give(1, &["a"]).await.unwrap();
    one.leases(1).await;
    let (copied, mut settings) = Machine::settings(server.clone());
    std::fs::create_dir_all(&settings.spool).unwrap();
    std::fs::copy(one.settings.spool.join("node"), settings.spool.join("node")).unwrap();
    settings.server = Some(server);
    let copy = Machine {
        queue: Some(queue::open(&settings, Arc::new(SystemClock)).unwrap()),
        directory: copied,
        settings,
    };
    assert!(copy.leases(1).await.is_empty(), "the one it was copied from lives");
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        copy.upkeep(DAY).await.unwrap();
        assert!(copy.leases(1).await.is_empty(), "it is heard of");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    one.queue = None;
    copy.soon("missed", async |copy| {
        copy.upkeep(DAY).await.unwrap();
        copy.leases(1).await.pop()
    })
    .await;
}

/// Q41: what a process had comes back with the next one that reaches the database, though one in between did not.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_had_comes_back_though_one_between_reached_nobody() {
    let cluster = Cluster::start(&[]).leaked();
    let database = cluster.database();
    let mut machine = Machine::new(database.server());
    machine.give(1, &["a"]).await.unwrap();
    assert_eq!(machine.leases(1).await.len(), 1);
    machine.queue = None;
    cluster.kill();
    // It starts, and is killed.
    machine.crash();
    machine.queue = None;
    cluster.run(&[]);
    machine.crash();
    machine.soon("the lease", async |machine| machine.leases(1).await.pop()).await;
}

/// Q41: a server that takes over may not know an end that we heard of; what it has in our name is given back then, though no lease
/// of ours has failed.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_server_that_takes_over_has_in_our_name_is_given_back() {
    let cluster = Cluster::start(&[]).leaked();
    let database = cluster.database();
    let machine = Machine::new(database.server());
    for id in 0..2 {
        machine.give(id, &["a"]).await.unwrap();
    }
    let mut tickets = machine.leases(2).await;
    let (forgotten, under_way) = (tickets.remove(1), tickets.remove(0));
    let after = Duration::ZERO;
    let again = End::Again { after, counts: true, reason: "503".to_owned() };
    assert_eq!(machine.finish(vec![(forgotten.clone(), again)]).await.unwrap(), [true]);
    // No doubt is left of the start.
    tokio::time::sleep(Duration::from_secs(8)).await;
    database.sql(&format!("UPDATE activity_milter.item SET until = 1 WHERE id = {}", forgotten.item));
    assert!(machine.leases(2).await.is_empty());
    cluster.kill();
    cluster.run(&[]);
    let back = machine.soon("given back", async |machine| {
        machine.lease(Ask { room: 2, ..Ask::default() }).await.ok()?.tickets.pop()
    });
    assert_eq!(back.await.item, forgotten.item);
    assert_eq!(machine.finish(vec![(under_way, End::Taken)]).await.unwrap(), [true]);
}

/// Q41: whoever was away for so long that what he had was given back begins none of it any more.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_back_is_not_opened() {
    let database = Cluster::shared().database();
    let machine = Machine::new(database.server());
    for id in 0..5 {
        machine.give(id, &["a"]).await.unwrap();
    }
    let tickets = machine.leases(5).await;
    database.sql(&format!("UPDATE activity_milter.item SET until = NULL WHERE id = {}", tickets[0].item));
    database.sql(&format!(
        "UPDATE activity_milter.item SET fence = fence + 100, node = 'other' WHERE id = {}",
        tickets[1].item
    ));
    database.sql(&format!("DELETE FROM activity_milter.item WHERE id = {}", tickets[2].item));
    for ticket in &tickets[..3] {
        let opened = machine.begin(ticket).await;
        assert!(is_later(&opened), "{opened:?}");
    }
    // A clock that leaps gives nothing back.
    database.sql(&format!("UPDATE activity_milter.item SET until = 1 WHERE id = {}", tickets[3].item));
    machine.begin(&tickets[3]).await.unwrap();
    machine.begin(&tickets[4]).await.unwrap();
    // Who only looks may.
    let other = Machine::new(database.server());
    other.open(tickets[1].item).await.unwrap();
}

/// Q41: the database was away for longer than a lease lasts, or its clock leapt: what a machine that lives has is its own, which
/// may have delivered it; it says so itself, or gives it back, in its own time. A person does not take it away, nor is he told that
/// it waits.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_machine_that_lives_has_is_no_other_s_whatever_the_clock_says() {
    let database = Cluster::shared().database();
    let (one, other) = (Machine::new(database.server()), Machine::new(database.server()));
    for id in 0..3 {
        one.give(id, &["a"]).await.unwrap();
    }
    let tickets = one.leases(3).await;
    database.sql("UPDATE activity_milter.item SET until = until - 2 * 3600000, accepted_at = 0");
    for machine in [&one, &other] {
        assert!(machine.leases(3).await.is_empty(), "it may be delivered");
        machine.upkeep(30 * DAY).await.unwrap();
        assert!(machine.leases(3).await.is_empty(), "and is not too old meanwhile");
        let all: Vec<i64> = tickets.iter().map(|ticket| ticket.item).collect();
        for change in [Change::Retry, Change::Hold { reason: "wait".to_owned() }, Change::Drop] {
            assert_eq!(machine.change_those(all.clone(), change).await.unwrap(), Vec::<i64>::new());
        }
        let states = machine.list(Filter::default()).await.unwrap().into_iter().map(|entry| entry.state);
        assert_eq!(states.collect::<Vec<_>>(), [State::InFlight; 3]);
        let some = |state| Filter { state: Some(state), ..Filter::default() };
        assert_eq!(machine.list(some(State::Waiting)).await.unwrap().len(), 0);
        assert_eq!(machine.list(some(State::InFlight)).await.unwrap().len(), 3);
    }
    for ticket in &tickets {
        one.begin(ticket).await.unwrap();
    }
    assert_eq!(one.finish(vec![(tickets[0].clone(), End::Taken)]).await.unwrap(), [true]);
    // Nobody runs any more: a person need not wait for somebody who would miss them.
    let mut settings = other.settings.clone();
    settings.server.as_mut().unwrap().missed_after = Duration::from_secs(4);
    drop((one, other));
    let by_hand = queue::beside(&settings, Arc::new(SystemClock)).unwrap();
    let rest = tickets[1..].iter().map(|ticket| ticket.item).collect();
    assert_eq!(by_hand.change(rest, Change::Drop).await.unwrap(), 2);
}

/// Q41: what was delivered while commits are less safe than is asked is written down nevertheless: who stops meanwhile in order
/// need not do it again. Who only does it by hand hears that it may not last.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_is_not_safe_is_written_and_owed() {
    let pair = Pair::new();
    let mut machine = Machine::new(pair.server());
    for id in 0..4 {
        machine.give(id, &["a"]).await.unwrap();
    }
    let tickets = machine.leases(2).await;
    let free = machine.list(Filter { state: Some(State::Waiting), ..Filter::default() }).await.unwrap();
    pair.set("synchronous_standby_names", "");
    machine
        .soon("unsafe", async |machine| is_later(&machine.lease(Ask::default()).await).then_some(()))
        .await;
    let begun = machine.begin(&tickets[1]).await;
    assert!(is_later(&begun), "nothing is begun: {begun:?}");
    let end = machine.finish(vec![(tickets[0].clone(), End::Taken)]).await;
    assert!(is_later(&end), "{end:?}");
    assert_eq!(machine.owed().await, 1);
    for (entry, change) in free.iter().zip([Change::Drop, Change::Hold { reason: "wait".to_owned() }]) {
        let changed = machine.change_those(vec![entry.id], change).await;
        assert!(is_later(&changed), "{changed:?}");
    }
    machine.crash();
    pair.set("synchronous_standby_names", "second");
    let again = machine
        .soon("leased again", async |machine| {
            machine.upkeep(DAY).await.ok()?;
            machine.lease(Ask { room: 4, ..Ask::default() }).await.ok()?.tickets.pop()
        })
        .await;
    assert_eq!(again.item, tickets[1].item, "what was delivered is not");
    assert_eq!(machine.owed().await, 0);
}

/// Q42: a host that accepts and says nothing does not stand before the one that can be written to.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_hangs_hides_no_other() {
    let database = Cluster::shared().database();
    let silent = directory();
    let _listener = std::os::unix::net::UnixListener::bind(silent.path().join(".s.PGSQL.5432")).unwrap();
    let url = database.url();
    let (begin, rest) = url.split_once('@').unwrap();
    let place = silent.path().to_str().unwrap().replace('/', "%2F");
    let server = Server::new(&format!("{begin}@{place},{rest}?connect_timeout=1")).unwrap();
    let began = Instant::now();
    let machine = Machine::new(server);
    machine.give(1, &["a"]).await.unwrap();
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    // It is asked first no more.
    let began = Instant::now();
    for id in 2..10 {
        machine.give(id, &["a"]).await.unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// Q42: what waits for the server keeps its place: however often it is tried, there are no more sessions than we may have.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_answered_takes_no_more_sessions() {
    let database = Cluster::shared().database();
    let mut server = database.server();
    (server.connections, server.patience) = (2, Duration::from_millis(300));
    let machine = Machine::new(server);
    machine.give(1, &["a"]).await.unwrap();
    let locked = std::thread::scope(|scope| {
        scope.spawn(|| {
            database.sql("BEGIN; LOCK TABLE activity_milter.key; SELECT pg_sleep(6); COMMIT");
        });
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                tokio::time::sleep(Duration::from_millis(500)).await;
                for id in 2..10 {
                    assert!(is_later(&machine.give(id, &["a"]).await));
                }
            })
        });
        let user = &database.name;
        database.sql(&format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{user}'"))
    });
    assert!(locked.parse::<u32>().unwrap() <= 5, "{locked} sessions");
    machine.soon("put", async |machine| machine.give(20, &["a"]).await.ok()).await;
}

/// Q46: a database that lacks characters is none for mail, and a function of somebody else is none of the server's.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_one_that_can_hold_mail() {
    let cluster = Cluster::start(&[]).leaked();
    let database = cluster.database();
    cluster
        .psql(
            "postgres",
            "CREATE DATABASE latin ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
        )
        .unwrap();
    let latin = Server::new(&format!("postgres://{}@{}/latin", database.name, cluster.host())).unwrap();
    let refused = Machine::try_new(latin).err().unwrap().to_string();
    assert!(refused.contains("LATIN1") && refused.contains("ENCODING 'UTF8'"), "{refused}");
    // The one that another user of the cluster has made.
    for (signature, result) in
        [("nextval(text)", "int8"), ("unnest(int8[])", "SETOF int8"), ("max(int8)", "int8")]
    {
        database.sql(&format!(
            "CREATE FUNCTION public.{signature} RETURNS {result} LANGUAGE plpgsql AS $$ BEGIN RAISE 'another one'; END $$"
        ));
    }
    let machine = Machine::new(database.server());
    assert_eq!(machine.give(1, &["a"]).await.unwrap(), [Put::New]);
    let ticket = machine.leases(1).await.remove(0);
    assert_eq!(machine.finish(vec![(ticket, End::Taken)]).await.unwrap(), [true]);
    machine.upkeep(DAY).await.unwrap();
}

/// Q44: a day's table that a person took out is put back; one that cannot be dropped keeps no other.
#[tokio::test(flavor = "multi_thread")]
async fn tables_of_days_that_somebody_was_at() {
    let database = Cluster::shared().database();
    let machine = Machine::new(database.server());
    machine.give(1, &["a"]).await.unwrap();
    let table =
        database.sql("SELECT relname FROM pg_class WHERE relname ~ '^payload_[0-9]+$' ORDER BY 1 LIMIT 1");
    database.sql(&format!("ALTER TABLE activity_milter.payload DETACH PARTITION activity_milter.{table}"));
    assert_eq!(machine.give(2, &["a"]).await.unwrap(), [Put::New]);
    let today: i64 = table.trim_start_matches("payload_").parse().unwrap();
    for day in [today - 30, today - 20] {
        database.sql(&format!(
            "CREATE TABLE activity_milter.payload_{day} PARTITION OF activity_milter.payload FOR VALUES FROM ({day}) TO ({})",
            day + 1
        ));
    }
    database
        .sql(&format!("CREATE VIEW public.report AS SELECT id FROM activity_milter.payload_{}", today - 30));
    let other = Machine::new(database.server());
    assert!(other.upkeep(DAY).await.is_err(), "it is said");
    let left = database.sql("SELECT count(*) FROM pg_class WHERE relname ~ '^payload_[0-9]+$'");
    assert_eq!(left, "3", "the one, today's and tomorrow's");
}

/// Q50: whoever has much does not stand before a lease, also when the server knows how much: its statistics are new.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_reads_little_whatever_the_server_believes() {
    let database = Cluster::shared().database();
    let machine = Machine::new(database.server());
    machine.give(1, &["t"]).await.unwrap();
    database.sql(
        "INSERT INTO activity_milter.item (id, key, tenant, letter, day, due, accepted_at, size)
         SELECT 1000000 + n, decode(md5(n::text), 'hex'), CASE WHEN n = 1 THEN 's' ELSE 't' END, 1000000 + n, 1, n, n, 1
         FROM generate_series(1, 60000) AS n",
    );
    database.sql("ANALYZE activity_milter.item");
    let tickets =
        machine.lease(Ask { room: 64, after: "t".to_owned(), ..Ask::default() }).await.unwrap().tickets;
    assert_eq!(tickets.len(), 64);
    let read = "SELECT coalesce(sum(idx_tup_read), 0) + coalesce((SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname = 'item'), 0)
                FROM pg_stat_user_indexes WHERE relname = 'item'";
    let mut before = String::new();
    let settled = machine
        .soon("counted", async |_| {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let now = database.sql(read);
            let same = now == before;
            before.clone_from(&now);
            same.then(|| now.parse::<u64>().unwrap())
        })
        .await;
    machine.lease(Ask { room: 64, after: "t".to_owned(), ..Ask::default() }).await.unwrap();
    let again = machine
        .soon("counted", async |_| {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let now = database.sql(read).parse::<u64>().unwrap();
            (now > settled).then_some(now)
        })
        .await;
    assert!(again - settled < 20_000, "{} rows were looked at for 64", again - settled);
}

/// Q34: what one machine keeps after its delivery, another one that keeps nothing does not drop.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_machine_keeps_no_other_drops() {
    let database = Cluster::shared().database();
    let (directory, mut settings) = Machine::settings(database.server());
    settings.keep_delivered = 7 * DAY;
    let mut keeps =
        Machine { queue: Some(queue::open(&settings, Arc::new(SystemClock)).unwrap()), directory, settings };
    keeps.give(1, &["a"]).await.unwrap();
    let ticket = keeps.leases(1).await.remove(0);
    assert_eq!(keeps.finish(vec![(ticket, End::Taken)]).await.unwrap(), [true]);
    let other = Machine::new(database.server());
    other.upkeep(DAY).await.unwrap();
    let kept = keeps.kept().await.unwrap();
    assert!(kept.activities == 1 && kept.since.is_some(), "{kept:?}");
    // Who kept says himself that it is over.
    keeps.settings.keep_delivered = Duration::ZERO;
    keeps.crash();
    keeps.upkeep(DAY).await.unwrap();
    assert_eq!(keeps.kept().await.unwrap().activities, 0);
}
