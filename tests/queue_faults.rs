//! A queue whose disk, descriptors, neighbours or files fail: nothing is lost, nothing doubled, and it says what a person
//! can do. `tests/queue_crash.rs` kills it.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/store.rs"]
mod store;

use activity_milter::queue::{
    self, Ask, Change, End, Filter, Full, HandClock, OpenError, Put, Queue, Settings, State, StorageError,
    SystemClock,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::{
    fs,
    io::Write,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime},
};
use store::{
    DAYS, Letter, PATIENCE, Running, drain, examine, files, folder, lease_all, open, other, settings,
    wait_for, whole,
};

async fn put(queue: &dyn Queue, settings: &Settings, letter: Letter) -> Result<Vec<Put>, StorageError> {
    queue.put(letter.parcel(&settings.spool).await).await
}

fn run(test: &str, value: &str) {
    let mut child = Running::this(test, value);
    let status = wait_for(test, || child.0.try_wait().unwrap());
    assert!(status.success(), "{test}: {status}; see what it wrote");
}

// Damaged rows

#[tokio::test]
async fn a_damaged_row_hides_no_other_of_which_nobody_was_told() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let queue = open(&settings);
    let damages = [
        "reason = NULL",
        "activity = '{'",
        "activity = ''",
        "activity = x'ff'",
        "activity = x'7b7d'",
        "activity = CAST(x'7b22ff' AS TEXT)",
        "activity = 7, reason = 7",
        "activity = '[]', reason = CAST(x'ff' AS TEXT)",
    ];
    for id in 0..=damages.len() {
        put(&*queue, &settings, Letter::small(id)).await.unwrap();
    }
    let held = |ticket| (ticket, End::Held { reason: "422".to_owned() });
    queue.finish(lease_all(&*queue).await.into_iter().map(held).collect()).await.unwrap();
    let rows: Vec<i64> = queue.untold(None, 100).await.unwrap().iter().map(|one| one.id).collect();
    assert_eq!(rows.len(), damages.len() + 1);
    for (row, damage) in rows.iter().zip(damages) {
        other(&settings).execute(&format!("UPDATE item SET {damage} WHERE id = ?1"), [row]).unwrap();
    }
    let untold = queue.untold(None, 100).await.unwrap();
    assert_eq!(untold.iter().map(|one| one.id).collect::<Vec<_>>(), rows);
    assert!(untold.last().unwrap().activity.contains("\"subject\":\"s\""));
}

#[tokio::test]
async fn a_page_of_what_nobody_was_told_of_is_small() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let queue = open(&settings);
    for id in 0..5 {
        put(&*queue, &settings, Letter::small(id)).await.unwrap();
    }
    let held = |ticket| (ticket, End::Held { reason: "422".to_owned() });
    queue.finish(lease_all(&*queue).await.into_iter().map(held).collect()).await.unwrap();
    let sizes = async || {
        let (mut sizes, mut after) = (Vec::new(), None);
        loop {
            let page = queue.untold(after, 100).await.unwrap();
            let Some(last) = page.last() else { return sizes };
            after = Some(last.id);
            sizes.push(page.len());
        }
    };
    assert_eq!(sizes().await, [5]);
    let set = |member: &str| {
        let sql =
            format!("UPDATE item SET activity = json_set(activity, '{member}', hex(zeroblob(1048576)))");
        other(&settings).execute_batch(&sql).unwrap();
    };
    ["$.html", "$.text", "$.participants"].into_iter().for_each(set);
    assert_eq!(sizes().await, [5], "what no notice shows is not read");
    set("$.subject");
    assert_eq!(sizes().await, [2, 2, 1]);
}

// Lost files

#[tokio::test]
async fn a_message_whose_file_is_lost_takes_the_new_copy() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let queue = open(&settings);
    let (one, two) = (Letter::large(1), Letter { for_two: true, ..Letter::large(2) });
    let lose = || {
        let folder = folder(&settings);
        for number in files(&folder) {
            fs::remove_file(folder.join(format!("{number}.eml"))).unwrap();
        }
    };
    for letter in [one, two] {
        let count = letter.keys().len();
        assert_eq!(put(&*queue, &settings, letter).await.unwrap(), vec![Put::New; count]);
        assert_eq!(put(&*queue, &settings, letter).await.unwrap(), vec![Put::Known; count]);
        lose();
        let tickets = lease_all(&*queue).await;
        assert_eq!(tickets.len(), count);
        for ticket in &tickets {
            let gone = queue.open(ticket.item).await;
            assert!(matches!(&gone, Err(StorageError::Gone(text)) if text.contains(".eml")), "{gone:?}");
        }
        let held = tickets.into_iter().map(|ticket| (ticket, End::Held { reason: "lost".to_owned() }));
        queue.finish(held.collect()).await.unwrap();
        assert_eq!(queue.counts().await.unwrap().held, count as u64);
        assert_eq!(put(&*queue, &settings, letter).await.unwrap(), vec![Put::Mended; count]);
        assert_eq!(examine(&*queue, &settings).await.len(), count);
        assert_eq!(queue.counts().await.unwrap().held, 0);
        assert_eq!(put(&*queue, &settings, letter).await.unwrap(), vec![Put::Known; count]);
        lose(); // while it waits
        assert_eq!(put(&*queue, &settings, letter).await.unwrap(), vec![Put::Mended; count]);
        assert_eq!(drain(&*queue).await.into_values().collect::<Vec<_>>(), vec![1; count]);
        assert_eq!(put(&*queue, &settings, letter).await.unwrap(), vec![Put::Known; count], "delivered");
        assert!(examine(&*queue, &settings).await.is_empty());
    }
    // One of two was delivered: only the other takes the copy.
    let letter = Letter { id: 3, ..two };
    put(&*queue, &settings, letter).await.unwrap();
    let leased = queue.lease(Ask { room: 1, ..Ask::default() }).await.unwrap();
    queue.finish(vec![(leased.tickets[0].clone(), End::Taken)]).await.unwrap();
    lose();
    let puts = put(&*queue, &settings, letter).await.unwrap();
    assert!(puts == [Put::Known, Put::Mended] || puts == [Put::Mended, Put::Known], "{puts:?}");
    assert_eq!(drain(&*queue).await.len(), 1);
    assert!(examine(&*queue, &settings).await.is_empty());
}

// Disks

/// Runs a test of this program in a mount namespace of its own, with a file system of 24 MiB at `small` and one that
/// cannot be written at `fixed`, below the directory it finds in its variable.
fn run_with_disks(test: &str) {
    let directory = tempfile::tempdir().unwrap();
    let script = "mkdir \"$1/small\" \"$1/fixed\"; mount -t tmpfs -o size=24m none \"$1/small\"; \
                  mount -t tmpfs -o ro none \"$1/fixed\"; exec \"$2\" --exact \"$3\" --nocapture --test-threads=1";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", script, "sh"]).arg(directory.path());
    command.arg(std::env::current_exe().unwrap()).arg(test).env(test, directory.path());
    let mut child = Running::start(&mut command);
    let status = wait_for(test, || child.0.try_wait().unwrap());
    assert!(
        status.success(),
        "{test}: {status}; see what it wrote (mounting needs root, as the tests with Postfix do)"
    );
}

#[test]
fn a_disk_that_fills_up() {
    run_with_disks("full_disk");
}

#[tokio::test]
async fn full_disk() {
    let Ok(directory) = std::env::var("full_disk") else { return };
    let directory = Path::new(&directory);
    let settings = Settings { min_free: 6 << 20, ..settings(&directory.join("small")) };
    let queue = open(&settings);
    // We fill it ourselves: the reserve stays.
    let mut stored = 0;
    let error = loop {
        let letter = if stored % 2 == 0 { Letter::large(stored) } else { Letter::small(stored) };
        match put(&*queue, &settings, letter).await {
            Ok(puts) => stored += puts.len(),
            Err(error) => break error,
        }
    };
    let text = error.to_string();
    assert!(text.contains("bytes are free, and queue.min_free is 6291456"), "{text}");
    assert!(matches!(error, StorageError::Full(Full::Disk { least: 0x60_0000, .. })), "{error:?}");
    assert!(stored > 60, "{stored}");
    assert!(matches!(queue.check().await, Err(StorageError::Full(Full::Disk { .. }))));
    assert_eq!(examine(&*queue, &settings).await.len(), stored);
    assert!(drain(&*queue).await.into_values().eq(vec![1; stored]), "each once");
    queue.upkeep(DAYS).await.unwrap();
    wait_for_room(&*queue).await;
    assert_eq!(put(&*queue, &settings, Letter::large(stored)).await.unwrap(), [Put::New]);
    // Somebody else fills it.
    for id in 1..=30 {
        let puts = put(&*queue, &settings, Letter::small(1000 + id)).await.unwrap();
        assert_eq!(puts, [Put::New]);
    }
    let held = lease_all(&*queue).await;
    let ballast = directory.join("small/ballast");
    let mut filling = fs::File::create(&ballast).unwrap();
    for size in [1 << 16, 1 << 10, 1] {
        while filling.write_all(&vec![0; size]).is_ok() {}
    }
    let waited = async {
        while queue.check().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.unwrap();
    let full = put(&*queue, &settings, Letter::small(2000)).await;
    assert!(matches!(full, Err(StorageError::Full(_) | StorageError::Other(_))), "{full:?}");
    // Delivered, but perhaps it cannot be written: owed then.
    for (ticket, end) in held.into_iter().zip([End::Taken, End::Unused].into_iter().cycle()) {
        let _ = queue.finish(vec![(ticket, end)]).await;
    }
    let _ = queue.upkeep(DAYS).await;
    drop(filling);
    fs::remove_file(ballast).unwrap();
    wait_for_room(&*queue).await;
    lease_all(&*queue).await; // also pays what is owed
    drop(queue);
    let queue = open(&settings);
    queue.upkeep(DAYS).await.unwrap();
    assert_eq!(examine(&*queue, &settings).await.len(), 15);
    assert_eq!(put(&*queue, &settings, Letter::small(2000)).await.unwrap(), [Put::New]);
    assert_eq!(drain(&*queue).await.len(), 16);
    // One that cannot be written at all.
    let fixed = store::settings(&directory.join("fixed"));
    let error = queue::open(&fixed, Arc::new(SystemClock)).unwrap_err();
    assert!(matches!(error, OpenError::Directory { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("queue.path and queue.spool must be writable") && text.contains("/fixed"),
        "{text}"
    );
}

async fn wait_for_room(queue: &dyn Queue) {
    let waited = async {
        while queue.check().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited).await.unwrap();
}

// Descriptors

#[test]
fn no_descriptors_left() {
    run("descriptors", "1");
}

#[tokio::test]
async fn descriptors() {
    if std::env::var("descriptors").is_err() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let queue = open(&settings);
    for id in 0..5 {
        put(&*queue, &settings, Letter::large(id)).await.unwrap();
    }
    let next = Letter::large(5).parcel(&settings.spool).await;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap(); // those that are open stay open
    let leased = queue.lease(Ask { room: 5, ..Ask::default() }).await.unwrap();
    let mut opened = Vec::new();
    for ticket in &leased.tickets {
        opened.push(queue.open(ticket.item).await.map(|_| ()));
    }
    let refused = queue.put(next).await;
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    assert_eq!(leased.tickets.len(), 5);
    let later =
        |opened: &Result<(), _>| matches!(opened, Err(StorageError::Busy(_) | StorageError::Other(_)));
    assert!(opened.iter().all(later), "{opened:?}");
    assert!(matches!(refused, Err(StorageError::Busy(_) | StorageError::Other(_))), "{refused:?}");
    let unused = leased.tickets.into_iter().map(|ticket| (ticket, End::Unused)).collect();
    queue.finish(unused).await.unwrap();
    let counts = queue.counts().await.unwrap();
    assert_eq!((counts.waiting, counts.held), (5, 0));
    assert_eq!(put(&*queue, &settings, Letter::large(5)).await.unwrap(), [Put::New]);
    assert_eq!(examine(&*queue, &settings).await.len(), 6);
    assert_eq!(drain(&*queue).await.len(), 6);
}

// Neighbours

#[tokio::test]
async fn another_program_that_writes_for_a_while_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let queue = open(&settings);
    put(&*queue, &settings, Letter::small(0)).await.unwrap();
    let other = other(&settings);
    other.execute_batch("BEGIN IMMEDIATE; UPDATE item SET attempts = 0").unwrap();
    let holds = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(2));
        other.execute_batch("COMMIT").unwrap();
    });
    assert_eq!(put(&*queue, &settings, Letter::small(1)).await.unwrap(), [Put::New]);
    holds.join().unwrap();
    assert_eq!(drain(&*queue).await.len(), 2);
}

#[tokio::test]
async fn another_program_that_writes_for_too_long_is_busy_and_ends_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let clock = Arc::new(HandClock::at(SystemTime::now()));
    let queue = queue::open(&settings, clock.clone()).unwrap();
    for id in 0..3 {
        put(&*queue, &settings, Letter::large(id)).await.unwrap();
    }
    let tickets = lease_all(&*queue).await;
    let keys: Vec<_> = {
        let mut keys = Vec::new();
        for ticket in &tickets {
            keys.push(whole(&*queue, ticket.item).await.1.key);
        }
        keys
    };
    let after = Duration::from_secs(5 * 3600);
    let ends = [
        End::Taken,
        End::Again { after, counts: true, reason: "503".to_owned() },
        End::Held { reason: "400".to_owned() },
    ];
    let other = other(&settings);
    other.execute_batch("BEGIN IMMEDIATE; UPDATE item SET attempts = 0").unwrap();
    let (refused, ended) = tokio::join!(
        put(&*queue, &settings, Letter::large(3)),
        queue.finish(tickets.into_iter().zip(ends).collect())
    );
    assert!(
        matches!(&refused, Err(StorageError::Busy(text)) if text.contains("another program")),
        "{refused:?}"
    );
    assert!(matches!(ended, Err(StorageError::Busy(_))), "{ended:?}");
    assert!(queue.list(Filter::default()).await.unwrap().iter().all(|entry| entry.state == State::InFlight));
    // Longer than a lease lasts: they are nobody else's for all that.
    clock.pass(Duration::from_secs(2 * 3600));
    other.execute_batch("ROLLBACK").unwrap();
    assert!(lease_all(&*queue).await.is_empty());
    let entries = queue.list(Filter::default()).await.unwrap();
    let of = |at: usize| entries.iter().find(|entry| entry.key == keys[at]);
    assert!(of(0).is_none());
    assert_eq!((of(1).unwrap().state, of(1).unwrap().attempts), (State::Waiting, 1));
    assert_eq!((of(2).unwrap().state, of(2).unwrap().reason.as_deref()), (State::Held, Some("400")));
    assert_eq!(put(&*queue, &settings, Letter::large(3)).await.unwrap(), [Put::New]);
    clock.pass(Duration::from_secs(6 * 3600));
    assert_eq!(drain(&*queue).await.len(), 2);
    queue.upkeep(DAYS).await.unwrap();
    assert_eq!(examine(&*queue, &settings).await.len(), 1);
}

#[tokio::test]
async fn a_command_beside_a_service_that_starts_is_told_so_and_stops_no_start() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let beside = || queue::beside(&settings, Arc::new(SystemClock)).map(drop);
    // The service makes the file, takes the lock, and then makes the tables.
    fs::write(&settings.path, "").unwrap();
    let lock = fs::File::create(directory.path().join("queue.db.lock")).unwrap();
    lock.lock().unwrap();
    let error = beside().unwrap_err();
    assert!(matches!(error, OpenError::BeingOpened(_)), "{error}");
    lock.unlock().unwrap();
    let error = beside().unwrap_err();
    assert!(matches!(error, OpenError::Empty(_)), "{error}");
    // A command has the lock for a moment; the service waits so long.
    lock.lock().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            lock.unlock().unwrap();
        });
        drop(open(&settings));
    });
    assert!(beside().is_ok());
}

#[tokio::test]
async fn a_queue_that_is_locked_when_it_is_opened_is_not_called_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let queue = open(&settings);
    put(&*queue, &settings, Letter::small(0)).await.unwrap();
    let twice = queue::open(&settings, Arc::new(SystemClock)).unwrap_err();
    assert!(matches!(twice, OpenError::InUse(_)), "{twice}");
    drop(queue);
    let other = other(&settings);
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let error = queue::open(&settings, Arc::new(SystemClock)).unwrap_err();
    assert!(matches!(error, OpenError::Locked(_)), "{error}");
    assert!(error.to_string().contains("is locked by another program"), "{error}");
    other.execute_batch("COMMIT").unwrap();
    assert_eq!(drain(&*open(&settings)).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retrying_many_by_hand_refuses_no_message() {
    const HELD: usize = 20_000;
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    drop(open(&settings));
    other(&settings)
        .execute_batch(&format!(
            "INSERT INTO item (key, tenant, state, due, accepted_at, held_at, cuts, activity, body)
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {HELD})
             SELECT randomblob(32), 't' || (i % 50), 1, 1, 1, 1, '[]', '{{\"x\":\"' || hex(randomblob(350)) || '\"}}', x'00' FROM n"
        ))
        .unwrap();
    let queue = open(&settings);
    assert_eq!(queue.counts().await.unwrap().held, HELD as u64);
    let by_hand = queue::beside(&settings, Arc::new(SystemClock)).unwrap();
    let held = by_hand.list(Filter { state: Some(State::Held), ..Filter::default() }).await.unwrap();
    let held: Vec<i64> = held.into_iter().map(|entry| entry.id).collect();
    assert_eq!(held.len(), HELD);
    let retry = tokio::spawn(async move { by_hand.change(held, Change::Retry).await });
    let mut puts = 0;
    while !retry.is_finished() || puts < 10 {
        let one = put(&*queue, &settings, Letter::small(puts)).await;
        assert!(matches!(one.as_deref(), Ok([Put::New])), "after {puts}: {one:?}");
        puts += 1;
    }
    assert_eq!(retry.await.unwrap().unwrap(), HELD);
    put(&*queue, &settings, Letter::small(puts)).await.unwrap(); // notices
    let counts = queue.counts().await.unwrap();
    assert_eq!((counts.waiting, counts.held), ((HELD + puts + 1) as u64, 0));
}

#[tokio::test]
async fn a_long_log_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let queue = open(&settings);
    put(&*queue, &settings, Letter::small(0)).await.unwrap();
    assert_eq!(queue.upkeep(DAYS).await.unwrap().long_log, None);
    // As long as if somebody had read for hours; what is behind SQLite's frames does not count for SQLite.
    let log = fs::OpenOptions::new().append(true).open(directory.path().join("queue.db-wal")).unwrap();
    log.set_len(256 << 20).unwrap();
    assert_eq!(queue.upkeep(DAYS).await.unwrap().long_log, None);
    log.set_len((256 << 20) + 1).unwrap();
    assert_eq!(queue.upkeep(DAYS).await.unwrap().long_log, Some((256 << 20) + 1));
    assert_eq!(drain(&*queue).await.len(), 1);
}

// Files of others

#[tokio::test]
async fn databases_on_one_spool_leave_each_other_alone() {
    let directory = tempfile::tempdir().unwrap();
    let first = settings(directory.path());
    let second = Settings { path: directory.path().join("other.db"), ..first.clone() };
    let queue = open(&first);
    put(&*queue, &first, Letter::large(1)).await.unwrap();
    fs::write(first.spool.join("0123.eml"), "of an older version, or of nobody").unwrap();
    let another = open(&second);
    for some in [&queue, &another] {
        assert_eq!(some.upkeep(DAYS).await.unwrap().aside, 0);
    }
    put(&*another, &second, Letter::large(1)).await.unwrap();
    assert_eq!(examine(&*queue, &first).await.len(), 1);
    drop(another);
    let another = open(&second);
    assert_eq!(another.upkeep(DAYS).await.unwrap().aside, 0);
    assert_eq!(examine(&*another, &second).await.len(), 1);
    assert_eq!(put(&*queue, &first, Letter::large(1)).await.unwrap(), [Put::Known]);
    // A copy has the name of the first, and would sweep its folder.
    let copy = Settings { path: directory.path().join("copy.db"), ..first.clone() };
    other(&first).execute("VACUUM INTO ?1", [copy.path.to_str().unwrap()]).unwrap();
    let error = queue::open(&copy, Arc::new(SystemClock)).unwrap_err();
    assert!(matches!(&error, OpenError::InUse(folder) if folder.starts_with(&first.spool)), "{error}");
    assert_eq!((drain(&*queue).await.len(), drain(&*another).await.len()), (1, 1));
    drop(queue);
    let copy = open(&copy); // the first does not run any more
    assert!(first.spool.join("0123.eml").exists());
    let lost = copy.lease(Ask { room: 1, ..Ask::default() }).await.unwrap();
    assert!(matches!(copy.open(lost.tickets[0].item).await, Err(StorageError::Gone(_))));
}

#[tokio::test]
async fn a_file_without_a_row_is_kept_aside_for_a_week() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let clock = Arc::new(HandClock::at(SystemTime::now()));
    let queue = queue::open(&settings, clock.clone()).unwrap();
    put(&*queue, &settings, Letter::large(1)).await.unwrap();
    drop(queue);
    let folder = folder(&settings);
    fs::write(folder.join("7.eml"), "nobody's").unwrap();
    let queue = queue::open(&settings, clock.clone()).unwrap();
    let aside = folder.join("aside/7.eml");
    assert_eq!(queue.upkeep(DAYS).await.unwrap().aside, 1);
    assert!(aside.exists());
    assert_eq!(examine(&*queue, &settings).await.len(), 1);
    clock.pass(Duration::from_secs(6 * 24 * 3600));
    assert_eq!(queue.upkeep(DAYS * 2).await.unwrap().aside, 0);
    assert!(aside.exists());
    clock.pass(Duration::from_secs(2 * 24 * 3600));
    queue.upkeep(DAYS * 2).await.unwrap();
    assert!(!aside.exists());
    assert_eq!(drain(&*queue).await.len(), 1);
}

#[tokio::test]
async fn the_advice_for_a_damaged_file_loses_no_message() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let queue = open(&settings);
    put(&*queue, &settings, Letter::large(1)).await.unwrap();
    let copy = directory.path().join("copy.db");
    other(&settings).execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
    drop(queue);
    let first = folder(&settings);
    let whole = fs::read(&settings.path).unwrap();
    for damaged in
        [b"no database at all".repeat(1000), [&whole[..4096], &[0xa5; 8192][..], &whole[12288..]].concat()]
    {
        fs::write(&settings.path, damaged).unwrap();
        let error = queue::open(&settings, Arc::new(SystemClock)).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("Move it away together with its -wal and -shm files"), "{text}");
        assert!(text.contains("nothing there is deleted"), "{text}");
    }
    // Moved away, and started without.
    for ending in ["", "-wal", "-shm"] {
        let _ = fs::rename(
            directory.path().join(format!("queue.db{ending}")),
            directory.path().join(format!("damaged.db{ending}")),
        );
    }
    let queue = open(&settings);
    assert_eq!(queue.upkeep(DAYS).await.unwrap().aside, 0);
    put(&*queue, &settings, Letter::large(2)).await.unwrap();
    assert_eq!(files(&first).len(), 1);
    assert_eq!(drain(&*queue).await.len(), 1);
    drop(queue);
    // A copy is restored.
    fs::rename(copy, &settings.path).unwrap();
    for ending in ["-wal", "-shm"] {
        let _ = fs::remove_file(directory.path().join(format!("queue.db{ending}")));
    }
    let queue = open(&settings);
    assert_eq!(queue.upkeep(DAYS).await.unwrap().aside, 0);
    assert_eq!(examine(&*queue, &settings).await.len(), 1);
    assert_eq!(drain(&*queue).await.len(), 1);
}

/// Q21: what is being attempted is not touched by hand; what a killed service was attempting is, also before it starts again.
#[tokio::test]
async fn leases_of_a_killed_service_stop_no_command() {
    let directory = tempfile::tempdir().unwrap();
    let settings = settings(directory.path());
    let queue = open(&settings);
    put(&*queue, &settings, Letter::small(1)).await.unwrap();
    let leased = lease_all(&*queue).await;
    assert_eq!(leased.len(), 1);
    let id = queue.list(Filter::default()).await.unwrap()[0].id;
    let beside = queue::beside(&settings, Arc::new(SystemClock)).unwrap();
    assert_eq!(beside.change(vec![id], Change::Drop).await.unwrap(), 0);
    // The files as they are now are those of a service that was killed now.
    let killed = tempfile::tempdir().unwrap();
    let copy = store::settings(killed.path());
    fs::create_dir_all(copy.path.parent().unwrap()).unwrap();
    for end in ["", "-wal", ".lock"] {
        let with_end = |path: &Path| format!("{}{end}", path.display());
        fs::copy(with_end(&settings.path), with_end(&copy.path)).unwrap();
    }
    let beside = queue::beside(&copy, Arc::new(SystemClock)).unwrap();
    assert_eq!(beside.list(Filter::default()).await.unwrap()[0].state, State::Waiting);
    assert_eq!(beside.change(vec![id], Change::Drop).await.unwrap(), 1);
}
