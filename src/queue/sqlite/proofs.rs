//! What cannot be seen from outside: that the work of a call does not grow with what waits.
//!
//! Work is counted in the steps of SQLite's virtual machine, not in time, which a busy machine would falsify.

#![cfg(test)]
#![allow(clippy::unwrap_used)] // a panic is the answer of a test

use super::*;
use crate::activity::{Owner, Parties, TenantRef};
use crate::mail::{Envelope, Head, Intake, LIMITS, Reader as MailReader};
use crate::queue::SystemClock;
use rusqlite::params;
use std::sync::atomic::AtomicU64;

/// A queue in a directory of its own, and the connection of somebody else.
struct World {
    queue: SqliteQueue,
    other: Connection,
    _directory: tempfile::TempDir,
}

fn world() -> World {
    let directory = tempfile::tempdir().unwrap();
    let mut settings = Settings::new(directory.path().join("queue.db"), directory.path().join("spool"));
    (settings.max_items, settings.max_items_per_tenant) = (10_000_000, Some(10_000_000));
    let queue = SqliteQueue::open(&settings, Arc::new(SystemClock)).unwrap();
    let other = Connection::open(&settings.path).unwrap();
    other.busy_timeout(BUSY).unwrap();
    World { queue, other, _directory: directory }
}

impl World {
    /// Rows for tenants by number, as the service would have put them.
    fn fill(&self, rows: i64, tenant: &str, due: i64) {
        let first: i64 =
            self.other.query_row("SELECT coalesce(max(id), 0) FROM item", [], |row| row.get(0)).unwrap();
        let sql = format!(
            "PRAGMA synchronous = OFF; BEGIN;
             CREATE TEMP TABLE n AS WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {rows})
                 SELECT n, randomblob(32) AS key FROM n;
             INSERT INTO item (id, key, tenant, due, accepted_at, cuts, activity, body)
                 SELECT {first} + n, key, {tenant}, {due}, 1, '[]', hex(randomblob(200)), x'00' FROM n;
             INSERT INTO key_0 SELECT key, {first} + n FROM n ORDER BY key;
             DROP TABLE n;
             UPDATE tenant SET changes = changes + 1;"
        );
        self.other.execute_batch(&sql).unwrap();
        schema::count(&self.other).unwrap();
        self.other.execute_batch("COMMIT").unwrap();
    }

    /// Steps of SQLite's machine that some work of the writer takes.
    async fn steps<T: Send + 'static>(
        &self,
        work: impl Fn(&mut Ledger) -> rusqlite::Result<T> + Send + 'static,
    ) -> (T, u64) {
        let steps = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&steps);
        let count = move || {
            counter.fetch_add(1, Ordering::Relaxed);
            false
        };
        let done = self.queue.0.writer.write(move |ledger| {
            ledger.database_mut().progress_handler(1, Some(count.clone()))?;
            let done = work(ledger);
            ledger.database_mut().progress_handler(0, None::<fn() -> bool>)?;
            done
        });
        (done.await.unwrap(), steps.load(Ordering::Relaxed))
    }

    async fn lease(&self, room: usize, without: &[&str]) -> (Leased, u64) {
        let without = without.iter().map(|&tenant| tenant.to_owned()).collect();
        let ask = Ask { room, without, ..Ask::default() };
        self.steps(move |ledger| ledger.lease(&ask)).await
    }
}

fn parcel(tenant: &str, id: usize) -> Parcel {
    let text = format!("Subject: s\r\nMessage-ID: <{id}@x>\r\n\r\nhello\r\n");
    let head = Head::parse(text.split("\r\n\r\n").next().unwrap().as_bytes()).unwrap();
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
    let parties = Parties {
        tenant: TenantRef { id: tenant.to_owned(), prefix: tenant.to_owned() },
        activity_type: "Email".to_owned(),
        owner: Owner { user_id: "u".to_owned(), address: "a@x.test".to_owned(), name: None },
        participants: Arc::default(),
        people_omitted: 0,
        automatic: None,
        sender_authenticated: None,
        customer: None,
        project: None,
    };
    let body = MailReader::whole(text.as_bytes(), LIMITS);
    let raw = Raw::from(text.into_bytes());
    Parcel::build(vec![parties], &envelope, &head, body, raw, std::time::SystemTime::UNIX_EPOCH)
}

/// P7: tenants whose time has not come cost a lease nothing.
#[tokio::test]
async fn a_lease_does_not_look_at_tenants_that_are_not_due() {
    let mut seen = Vec::new();
    for tenants in [100, 5000] {
        let world = world();
        let later = millis_from_now(3600);
        world.fill(tenants, "printf('t%06d', n)", later);
        world.fill(1000, "'busy'", 1);
        world.queue.0.writer.write(|ledger| Ok(ledger.noticed())).await.unwrap();
        // Once for each tenant it must be learned when its time comes.
        while world.lease(0, &[]).await.1 > 10_000 {}
        for _ in 0..tenants / 100 {
            world.lease(64, &["busy"]).await;
        }
        let (leased, steps) = world.lease(64, &[]).await;
        assert_eq!(leased.tickets.len(), 64);
        seen.push(steps);
    }
    assert!(seen[1] < seen[0] * 2, "{seen:?}");
}

/// P8 and P26: what waits of one tenant costs neither others nor itself, also where all of it is due at the same moment.
#[tokio::test]
async fn a_backlog_of_one_tenant_costs_nothing() {
    let mut seen = Vec::new();
    for rows in [300, 30_000] {
        let world = world();
        world.fill(rows, "'busy'", 1);
        world.queue.put(parcel("other", 1)).await.unwrap();
        let (leased, alone) = world.lease(64, &["busy"]).await;
        assert_eq!(leased.tickets.len(), 1);
        let (_, first) = world.lease(64, &[]).await;
        let (leased, second) = world.lease(64, &[]).await;
        assert_eq!(leased.tickets.len(), 64);
        let (leased, without) = world.lease(64, &["busy"]).await;
        assert_eq!(leased.tickets.len(), 0);
        seen.push([alone, first, second, without]);
    }
    for at in 0..4 {
        assert!(seen[1][at] <= seen[0][at] * 2, "{seen:?}");
    }
}

/// P9: counting looks at nothing; the oldest is found once behind all that is held.
#[tokio::test]
async fn counts_do_not_walk_over_what_is_held() {
    let world = world();
    world.fill(20_000, "'t'", 1);
    world.other.execute("UPDATE item SET state = 1 WHERE id < 20000", []).unwrap();
    schema::count(&world.other).unwrap();
    world.other.execute("UPDATE tenant SET changes = changes + 1", []).unwrap();
    world.queue.0.writer.write(|_| Ok(())).await.unwrap();
    let place = Arc::clone(&world.queue.0.oldest);
    let counts = world.queue.counts().await.unwrap();
    assert_eq!((counts.waiting, counts.held), (1, 19_999));
    assert!(counts.oldest.is_some());
    assert_eq!(place.load(Ordering::Relaxed), 20_000, "and it is not walked there again");
}

/// P10: forgetting a key is no search for it, and goes in slices, until all are forgotten.
#[tokio::test]
async fn keys_are_forgotten_in_order_and_in_slices() {
    let world = world();
    world.fill(3000, "'t'", 1);
    let most: i64 = world.other.query_row("SELECT max(id) FROM item", [], |row| row.get(0)).unwrap();
    // All but the last two are delivered; the keys are of the generation before, and its time is over.
    world
        .other
        .execute_batch(&format!(
            "DELETE FROM item WHERE id < {most} - 1; INSERT INTO key_1 SELECT * FROM key_0; DELETE FROM key_0;"
        ))
        .unwrap();
    let keys: Vec<[u8; 32]> = world
        .other
        .prepare("SELECT key FROM item")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let end = move |ledger: &mut Ledger| {
        ledger.database().execute("UPDATE meta SET began = 0", [])?;
        ledger.read_keys_again()
    };
    world.queue.0.writer.write(end).await.unwrap();
    let mut slices = 0;
    loop {
        let (more, steps) = world.steps(Ledger::forget_keys).await;
        slices += 1;
        assert!(steps < 60_000, "{steps}");
        if !more {
            break;
        }
    }
    assert_eq!(slices, 3);
    let left: i64 = world.other.query_row("SELECT count(*) FROM key_1", [], |row| row.get(0)).unwrap();
    let kept: Vec<[u8; 32]> = world
        .other
        .prepare("SELECT key FROM key_0 ORDER BY (SELECT id FROM item WHERE item.key = key_0.key)")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!((left, kept), (0, keys), "those of activities that are still there stay");
}

/// P3: changes by commands while mail comes and goes: the numbers are those of the rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_are_right_while_others_change_rows() {
    let world = world();
    let path = world.queue.0.path.clone();
    let spool = path.with_file_name("spool");
    let settings = Settings { min_free: 0, ..Settings::new(path, spool) };
    let beside = Arc::new(SqliteQueue::beside(&settings, Arc::new(SystemClock)).unwrap());
    let queue = Arc::new(world.queue);
    let mut tasks = Vec::new();
    for task in 0..4 {
        let queue = Arc::clone(&queue);
        tasks.push(tokio::spawn(async move {
            for id in 0..60 {
                queue.put(parcel(&format!("t{}", id % 3), task * 1000 + id)).await.unwrap();
                if id % 4 == 0 {
                    let leased = queue.lease(Ask { room: 3, ..Ask::default() }).await.unwrap();
                    let ends = leased.tickets.into_iter().map(|ticket| (ticket, End::Taken)).collect();
                    queue.finish(ends).await.unwrap();
                }
            }
        }));
    }
    let by_hand = tokio::spawn(async move {
        for round in 0..30 {
            let some: Vec<i64> = beside
                .list(Filter { limit: Some(9), ..Filter::default() })
                .await
                .unwrap()
                .iter()
                .map(|e| e.id)
                .collect();
            let change = match round % 3 {
                0 => Change::Hold { reason: "x".to_owned() },
                1 => Change::Retry,
                _ => Change::Drop,
            };
            beside.change(some, change).await.unwrap();
        }
    });
    for task in tasks {
        task.await.unwrap();
    }
    by_hand.await.unwrap();
    queue.0.writer.write(|_| Ok(())).await.unwrap();
    let counts = queue.counts().await.unwrap();
    let real = |state: i64| -> u64 {
        let sql = "SELECT count(*) FROM item WHERE state = ?1";
        world.other.query_row(sql, params![state], |row| row.get::<_, i64>(0)).unwrap().unsigned_abs()
    };
    assert_eq!((counts.waiting, counts.held), (real(0), real(1)));
    assert!(schema::is_counted(&world.other).unwrap());
}

/// A start counts again if somebody has been at the tables with other tools.
#[tokio::test]
async fn a_start_counts_what_was_changed_with_other_tools() {
    let world = world();
    world.fill(10, "'t'", 1);
    world.other.execute("DELETE FROM item WHERE id > 3", []).unwrap();
    let (path, directory) = (world.queue.0.path.clone(), world._directory);
    drop((world.queue, world.other));
    let settings = Settings::new(path, directory.path().join("spool"));
    let queue = SqliteQueue::open(&settings, Arc::new(SystemClock)).unwrap();
    assert_eq!(queue.counts().await.unwrap().waiting, 3);
}

/// One piece of work that fails harms no other.
#[tokio::test]
async fn work_that_fails_harms_no_other() {
    let world = world();
    let bad =
        world.queue.0.writer.write(|ledger| ledger.database().execute("INSERT INTO nowhere VALUES (1)", []));
    let (bad, good) = tokio::join!(bad, world.queue.put(parcel("t", 1)));
    assert!(bad.is_err());
    assert_eq!(good.unwrap(), [Put::New]);
    // What the failed transaction had leased or counted in memory is undone.
    let undone = world.queue.0.writer.write(|ledger| {
        ledger.lease(&Ask { room: 5, ..Ask::default() })?;
        ledger.database().execute("INSERT INTO nowhere VALUES (1)", [])
    });
    assert!(undone.await.is_err());
    assert_eq!(world.queue.lease(Ask { room: 5, ..Ask::default() }).await.unwrap().tickets.len(), 1);
}

fn millis_from_now(seconds: i64) -> i64 {
    watch::millis(std::time::SystemTime::now()) + seconds * 1000
}

/// What is kept is found by its key without reading all of it; what is kept for longer than its key, by reading it.
#[tokio::test]
async fn what_is_kept_is_found_by_its_key() {
    let mut seen = Vec::new();
    for rows in [300, 30_000] {
        let world = world();
        let sql = format!(
            "PRAGMA synchronous = OFF; BEGIN;
             CREATE TEMP TABLE n AS WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {rows})
                 SELECT n, unhex(printf('%064x', n)) AS key FROM n;
             INSERT INTO kept (id, key, message, tenant, attempts, accepted_at, delivered_at, in_file, cuts, activity)
                 SELECT n, key, 0, 't', 1, 1, 1, 0, '[]', json_object('envelope', json_object('queue_id', 'Q' || n)) FROM n;
             INSERT INTO key_0 SELECT key, n FROM n WHERE n <> 2; COMMIT"
        );
        world.other.execute_batch(&sql).unwrap();
        let key = |n: usize| format!("b3:{n:064x}");
        let steps = async |filter: Filter| {
            let work =
                move |ledger: &mut Ledger| Ok(look::delivered(ledger.database_mut(), &filter).unwrap());
            world.steps(work).await
        };
        let (found, by_key) = steps(Filter { keys: vec![key(7), key(9)], ..Filter::default() }).await;
        assert_eq!(found.iter().map(|entry| entry.id).collect::<Vec<_>>(), [7, 9]);
        let filter = Filter { keys: vec![key(7)], queue_id: Some("Q7".to_owned()), ..Filter::default() };
        assert_eq!(steps(filter.clone()).await.0.len(), 1);
        assert!(steps(Filter { queue_id: Some("Q8".to_owned()), ..filter }).await.0.is_empty());
        let (found, by_all) = steps(Filter { keys: vec![key(2)], ..Filter::default() }).await;
        assert_eq!((found.len(), found[0].id), (1, 2), "its key is forgotten");
        assert!(by_all > by_key);
        // A few digits may be those of several.
        let few = Filter { keys: vec![key(7)[..18].to_owned()], limit: Some(400), ..Filter::default() };
        assert_eq!(steps(few).await.0.len(), usize::try_from(rows).unwrap().min(400));
        seen.push(by_key);
    }
    assert!(seen[1] <= seen[0] * 2, "{seen:?}");
}
