//! `kill -9` at every call that writes, syncs, names or removes something of a queue, and errors of the disk there: nothing
//! lost, nothing doubled, no file without its row.
//!
//! A child (this program, with one test) works at a queue and says what returned, by the names of empty files, so that
//! saying it is none of the calls. strace kills it at the Kth call of one kind in one thread, for each K that there is, or
//! makes that call fail. Then the queue is opened here. `make torture-crash` does it with more messages, and leaves no K out.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/store.rs"]
mod store;

use activity_milter::{
    activity::Key,
    queue::{
        self, Ask, Change, Clock, End, Filter, HandClock, Put, Queue, Replay, Settings, State, SystemClock,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};
use store::{
    DAYS, Left, Letter, PATIENCE, Running, drain, examine, files, folder, left_at, named, open, settings,
    take_over, wait_for, whole,
};

/// Calls that change what is on the disk.
const CALLS: &str = "write,pwrite64,fsync,fdatasync,ftruncate,fallocate,linkat,unlink,rename,mkdir";

const KILLED: &str = "signal=SIGKILL:when=#";
const KILL: i32 = 9;
const ABORT: i32 = 6;

/// The thread that may block.
const BLOCKING: &str = "blocking";

/// How many messages, and about how many K are tried of each kind of call, spread over all.
fn form() -> (usize, usize) {
    let number = |name: &str| std::env::var(name).ok().map(|number| number.parse().unwrap());
    match number("TORTURE_MESSAGES") {
        Some(messages) => (messages, number("TORTURE_CALLS").unwrap_or(usize::MAX)),
        None => (10, 7),
    }
}

fn say(directory: &Path, what: &str) {
    fs::File::create(directory.join("said").join(what)).unwrap();
}

fn said(directory: &Path) -> BTreeSet<String> {
    let all = fs::read_dir(directory.join("said")).unwrap();
    all.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The child: nothing, unless it is asked for.
#[test]
fn child() {
    let Ok(what) = std::env::var("child") else { return };
    let words: Vec<&str> = what.split(' ').collect();
    let (directory, messages) = (Path::new(words[1]), words[2].parse().unwrap());
    // One thread that may block, which is there from the beginning and stays: strace counts the calls of each thread.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.thread_name(BLOCKING).max_blocking_threads(1).thread_keep_alive(PATIENCE * 60).enable_all();
    let runtime = runtime.build().unwrap();
    runtime.block_on(async { tokio::task::spawn_blocking(|| ()).await.unwrap() });
    let wait = || {
        let thread = fs::read_link("/proc/thread-self").unwrap(); // 12/task/34
        fs::write(directory.join("ready"), thread.file_name().unwrap().to_str().unwrap()).unwrap();
        wait_for("the word to go", || directory.join("go").exists().then_some(()));
    };
    if words[0] == "open" {
        // By the same clock as who opens it next: one that is set back in between is another test's business.
        let clock: Arc<dyn Clock> = match fs::read_to_string(directory.join("left at")) {
            Ok(millis) => {
                let since = Duration::from_millis(millis.parse().unwrap());
                Arc::new(HandClock::at(SystemTime::UNIX_EPOCH + since))
            }
            Err(_) => Arc::new(SystemClock),
        };
        wait();
        queue::open(&settings(directory), clock).unwrap();
        return;
    }
    let queue = open(&if words[0] == "keep" { keeping(directory) } else { settings(directory) });
    if words[0] == "doubt" {
        runtime.block_on(doubt(&*queue, directory, wait));
    }
    wait();
    match words[0] {
        "work" => runtime.block_on(work(&*queue, directory, messages)),
        "keep" => runtime.block_on(deliver_again(&*queue, directory, messages)),
        _ => runtime.block_on(go_on(&*queue, directory, messages)),
    }
}

/// The same on a disk that fails: who sends tries again, and the courier goes on. Ends as by a crash.
async fn go_on(queue: &dyn Queue, directory: &Path, messages: usize) {
    for id in 0..messages {
        for _ in 0..3 {
            let parcel = Letter::of_all_kinds(id).parcel(&settings(directory).spool).await;
            if queue.put(parcel).await.is_ok() {
                say(directory, &format!("put {id}"));
                break;
            }
        }
        if id % 3 == 2
            && let Ok(leased) = queue.lease(Ask { room: 3, ..Ask::default() }).await
        {
            for (at, ticket) in leased.tickets.into_iter().enumerate() {
                let (_, item) = whole(queue, ticket.item).await;
                let (end, name) = match at {
                    0 => (End::Taken, "taken"),
                    1 => (End::Held { reason: "400".to_owned() }, "held"),
                    _ => (End::Unused, "unused"),
                };
                say(directory, &format!("{name}? {}", item.key));
                if queue.finish(vec![(ticket, end)]).await.is_ok_and(|ours| ours == [true]) {
                    say(directory, &format!("{name} {}", item.key));
                }
            }
        }
    }
    std::process::abort();
}

/// One message is leased, and another put while the log cannot be synced once. Ends as by a crash.
async fn doubt(queue: &dyn Queue, directory: &Path, wait: impl Fn()) {
    let spool = settings(directory).spool;
    let log = log(directory);
    queue.put(Letter::of_all_kinds(0).parcel(&spool).await).await.unwrap();
    let before = fs::metadata(&log).unwrap().len();
    assert!(!queue.lease(Ask { room: 1, ..Ask::default() }).await.unwrap().tickets.is_empty());
    let leased = fs::read(&log).unwrap();
    fs::write(directory.join("lease"), &leased[usize::try_from(before).unwrap()..]).unwrap();
    fs::write(directory.join("before"), before.to_string()).unwrap();
    wait();
    for id in [5, 10] {
        while queue.put(Letter::of_all_kinds(id).parcel(&spool).await).await.is_err() {
            say(directory, "failed");
        }
        say(directory, &format!("put {id}"));
    }
    std::process::abort();
}

fn log(directory: &Path) -> PathBuf {
    let mut log = settings(directory).path.into_os_string();
    log.push("-wal");
    log.into()
}

/// Q1: a kernel that could not write forgets it after it has said so once. What was in the log before, and was not to be
/// synced, is not there after a power cut then; and what stands behind it in the log would not be read.
#[test]
fn a_sync_that_failed_takes_nothing_with_it_that_comes_later() {
    let temporary = directory();
    let directory = temporary.path();
    let arguments = ["-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1", "-o", "/dev/null"];
    run("doubt", directory, 2, Some("queue-writer"), &arguments);
    let before: usize = fs::read_to_string(directory.join("before")).unwrap().parse().unwrap();
    let lease = fs::read(directory.join("lease")).unwrap();
    let mut log_now = fs::read(log(directory)).unwrap();
    let place = &mut log_now[before..before + lease.len()];
    assert!(!lease.is_empty() && said(directory).contains("failed"));
    if place == lease {
        place.fill(0);
        fs::write(log(directory), log_now).unwrap();
    }
    let queue = open(&settings(directory));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for id in [5, 10] {
        assert!(said(directory).contains(&format!("put {id}")));
        let known = runtime.block_on(queue.known(Letter::of_all_kinds(id).keys())).unwrap();
        assert!(known.iter().all(|known| *known), "{id} is lost");
    }
}

/// Puts all kinds of messages, and ends some in all ways.
async fn work(queue: &dyn Queue, directory: &Path, messages: usize) {
    let mut ended = 0;
    for id in 0..messages {
        let parcel = Letter::of_all_kinds(id).parcel(&settings(directory).spool).await;
        assert!(queue.put(parcel).await.unwrap().iter().all(|put| *put == Put::New));
        say(directory, &format!("put {id}"));
        if id % 3 == 2 {
            let leased = queue.lease(Ask { room: 3, ..Ask::default() }).await.unwrap();
            for ticket in leased.tickets {
                let (_, item) = whole(queue, ticket.item).await;
                assert!(queue.note(&ticket, "{\"step\":1}".to_owned()).await.unwrap());
                say(directory, &format!("noted {}", item.key));
                ended += 1;
                let (end, name) = match ended % 4 {
                    0 | 1 => (End::Taken, "taken"),
                    2 => {
                        let reason = "503".to_owned();
                        (End::Again { after: std::time::Duration::ZERO, counts: true, reason }, "again")
                    }
                    _ => (End::Held { reason: "400".to_owned() }, "held"),
                };
                say(directory, &format!("{name}? {}", item.key));
                assert_eq!(queue.finish(vec![(ticket, end)]).await.unwrap(), [true]);
                say(directory, &format!("{name} {}", item.key));
            }
        }
        if id % 7 == 6 {
            let held = Filter { state: Some(State::Held), limit: Some(1), ..Filter::default() };
            for entry in queue.list(held).await.unwrap() {
                say(directory, &format!("taken? {}", entry.key));
                assert_eq!(queue.change(vec![entry.id], Change::Drop).await.unwrap(), 1);
                say(directory, &format!("taken {}", entry.key));
            }
        }
        if id % 5 == 4 {
            queue.upkeep(DAYS).await.unwrap();
        }
    }
}

/// What holds after the crash, before and after the client tries again what was not accepted, and after all is delivered.
async fn verify(directory: &Path, messages: usize) {
    let (said, settings) = (said(directory), settings(directory));
    let is_said = |what: &str, key: &Key| said.contains(&format!("{what} {key}"));
    let queue = open(&settings);
    queue.upkeep(DAYS).await.unwrap();
    let there = examine(&*queue, &settings).await;
    let all: Vec<(usize, Key)> = (0..messages)
        .flat_map(|id| Letter::of_all_kinds(id).keys().into_iter().map(move |key| (id, key)))
        .collect();
    for (id, key) in &all {
        let is_there = there.contains_key(key);
        assert!(!(is_there && is_said("taken", key)), "{key} came back");
        let accepted = said.contains(&format!("put {id}"));
        assert!(is_there || !accepted || is_said("taken?", key), "{key} is lost");
        assert!(queue.known(vec![key.clone()]).await.unwrap()[0] || !accepted, "{key} is forgotten");
        let Some(entry) = there.get(key) else { continue };
        assert!(entry.state == State::Held || !is_said("held", key), "{key} is not held any more");
        let note = queue.open(entry.id).await.unwrap().note;
        assert!(note.is_some() || !is_said("noted", key), "{key} has lost its note");
    }
    for id in 0..messages {
        let letter = Letter::of_all_kinds(id);
        let known = queue.known(letter.keys()).await.unwrap();
        assert!(known.iter().all(|other| *other == known[0]), "half a message");
        let puts = queue.put(letter.parcel(&settings.spool).await).await.unwrap();
        let expected = if known[0] { Put::Known } else { Put::New };
        assert!(puts.iter().all(|put| *put == expected), "{puts:?}");
    }
    let there = examine(&*queue, &settings).await;
    let (held, delivered) = (there.values().filter(|entry| entry.state == State::Held), drain(&*queue).await);
    let held: BTreeSet<Key> = held.map(|entry| entry.key.clone()).collect();
    for (_, key) in &all {
        let times = delivered.get(key).copied().unwrap_or(0);
        let before = usize::from(is_said("taken?", key) && !there.contains_key(key));
        assert_eq!(times + before + usize::from(held.contains(key)), 1, "{key}");
    }
    assert_eq!(files(&folder(&settings)), named(&settings));
    let left = examine(&*queue, &settings).await;
    assert_eq!(left.into_keys().collect::<BTreeSet<_>>(), held);
}

/// Keeps what is delivered.
fn keeping(directory: &Path) -> Settings {
    Settings { keep_delivered: DAYS, ..settings(directory) }
}

/// All that is kept, from the beginning of time.
async fn redeliver_all(queue: &dyn Queue) -> usize {
    let replay = Replay { since: SystemTime::UNIX_EPOCH, until: None, tenant: None, dry: false };
    queue.redeliver(replay).await.unwrap().again
}

/// Puts all kinds of messages, delivers some, and some of these once more.
async fn deliver_again(queue: &dyn Queue, directory: &Path, messages: usize) {
    for id in 0..messages {
        let parcel = Letter::of_all_kinds(id).parcel(&settings(directory).spool).await;
        queue.put(parcel).await.unwrap();
        say(directory, &format!("put {id}"));
        if id % 2 == 1 {
            for ticket in queue.lease(Ask { room: 3, ..Ask::default() }).await.unwrap().tickets {
                assert_eq!(queue.finish(vec![(ticket, End::Taken)]).await.unwrap(), [true]);
            }
        }
        if id % 5 == 4 {
            redeliver_all(queue).await;
        }
        if id % 7 == 6 {
            let kept = Filter { state: Some(State::Delivered), limit: Some(1), ..Filter::default() };
            for entry in queue.list(kept).await.unwrap() {
                say(directory, &format!("dropped? {}", entry.key));
                assert_eq!(queue.change(vec![entry.id], Change::Drop).await.unwrap(), 1);
            }
        }
    }
}

/// Each that was accepted is in the queue or kept, and is delivered once more, once.
async fn verify_kept(directory: &Path, messages: usize) {
    let (said, settings) = (said(directory), keeping(directory));
    let queue = open(&settings);
    queue.upkeep(DAYS).await.unwrap();
    let there = examine(&*queue, &settings).await;
    let kept = queue.list(Filter { state: Some(State::Delivered), ..Filter::default() }).await.unwrap();
    for entry in &kept {
        whole(&*queue, entry.id).await;
    }
    let kept: Vec<Key> = kept.into_iter().map(|entry| entry.key).collect();
    let mut all = BTreeSet::new();
    for (id, key) in
        (0..messages).flat_map(|id| Letter::of_all_kinds(id).keys().into_iter().map(move |key| (id, key)))
    {
        let places = usize::from(there.contains_key(&key)) + kept.iter().filter(|kept| **kept == key).count();
        let may_be_gone = said.contains(&format!("dropped? {key}")) || !said.contains(&format!("put {id}"));
        assert!(places == 1 || (places == 0 && may_be_gone), "{key} is in {places} places");
        all.extend((places == 1).then_some(key));
    }
    let mut again = 0;
    wait_for("the clock to go on", || {
        again += tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(redeliver_all(&*queue))
        });
        (again == kept.len()).then_some(())
    });
    examine(&*queue, &settings).await;
    let delivered = drain(&*queue).await;
    assert!(delivered.values().all(|times| *times == 1) && delivered.keys().eq(&all), "{delivered:?}");
    assert_eq!(files(&folder(&settings)), named(&settings));
    drop(queue);
    let queue = open(&Settings { keep_delivered: Duration::ZERO, ..settings.clone() });
    queue.upkeep(DAYS).await.unwrap();
    assert_eq!((queue.kept().await.unwrap().activities, files(&folder(&settings)).len()), (0, 0));
    assert!(examine(&*queue, &settings).await.is_empty());
}

/// Q34, Q36.
#[test]
fn a_kill_while_delivered_ones_are_kept() {
    let (messages, _) = form();
    let verify = |directory: &Path| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(verify_kept(directory, messages));
    };
    let wanted = |thread: &str, call: &str| {
        matches!((thread, call), ("queue-writer", "pwrite64") | (BLOCKING, "unlink"))
    };
    let sites = torture("keep", KILLED, messages, &|_| {}, &wanted, &verify);
    assert_eq!(sites.len(), 2, "{sites:?}");
}

/// In memory where that can be: what a kill leaves is what the kernel has, and syncs of a disk would only take time.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A kind of call in one thread.
type Site = (String, String);

/// Runs the child until it ends, beside an strace with these arguments; the signal that ended it, if one did.
fn run(what: &str, directory: &Path, messages: usize, thread: Option<&str>, strace: &[&str]) -> Option<i32> {
    fs::create_dir(directory.join("said")).unwrap();
    let mut child = Running::this("child", &format!("{what} {} {messages}", directory.display()));
    let process = child.0.id().to_string();
    let ready = directory.join("ready");
    let first = wait_for("the child", || {
        assert!(child.0.try_wait().unwrap().is_none(), "the child has ended");
        fs::read_to_string(&ready).ok().filter(|thread| !thread.is_empty())
    });
    let tasks = Path::new("/proc").join(&process).join("task");
    // A thread names itself when it first runs.
    let threads = wait_for("the thread", || {
        let all = fs::read_dir(&tasks).unwrap().map(|task| task.unwrap().file_name().into_string().unwrap());
        let wanted = |task: &String| match thread {
            None => true,
            Some("first") => *task == first,
            Some(name) => fs::read_to_string(tasks.join(task).join("comm")).unwrap().trim() == name,
        };
        Some(all.filter(wanted).collect::<Vec<_>>()).filter(|threads| !threads.is_empty())
    });
    let mut command = Command::new("strace");
    command.args(strace).stderr(Stdio::null());
    match thread {
        None => command.args(["-f", "-p", &process]),
        Some(_) => command.args(["-p", &threads[0]]),
    };
    let mut strace = Running::start(&mut command);
    wait_for("strace to attach", || {
        assert!(strace.0.try_wait().unwrap().is_none(), "strace has ended");
        let traced = |task: &String| {
            let status = fs::read_to_string(tasks.join(task).join("status")).unwrap();
            !status.contains("TracerPid:\t0\n")
        };
        threads.iter().all(traced).then_some(())
    });
    fs::write(directory.join("go"), "").unwrap();
    let status = wait_for("the child to end", || child.0.try_wait().unwrap());
    wait_for("strace to end", || strace.0.try_wait().unwrap());
    assert!(status.success() || matches!(status.signal(), Some(KILL | ABORT)), "the child: {status}");
    status.signal()
}

/// How many calls of which kind which thread makes, if it makes any of this kind to the queue's files.
fn sites(what: &str, messages: usize, prepare: &dyn Fn(&Path)) -> BTreeMap<Site, usize> {
    let temporary = directory();
    let directory = temporary.path();
    prepare(directory);
    let trace = directory.join("trace");
    let calls = format!("trace={CALLS}");
    let arguments = ["-y", "-Y", "-s", "0", "-e", &calls, "-o", trace.to_str().unwrap()];
    assert_ne!(run(what, directory, messages, None, &arguments), Some(KILL));
    let first = fs::read_to_string(directory.join("ready")).unwrap();
    let (mut sites, mut ours) = (BTreeMap::<Site, usize>::new(), BTreeSet::new());
    for line in fs::read_to_string(&trace).unwrap().lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let Some((name, arguments)) = call.trim_start().split_once('(') else { continue };
        if !name.chars().all(|c| c.is_ascii_alphanumeric()) {
            continue; // a signal, an exit, a call that is resumed
        }
        let (id, comm) = thread.split_once('<').unwrap();
        let thread = if id == first { "first" } else { comm.trim_end_matches('>') };
        let site = (thread.to_owned(), name.to_owned());
        if arguments.contains(directory.to_str().unwrap()) {
            ours.insert(site.clone());
        }
        *sites.entry(site).or_default() += 1;
    }
    sites.retain(|site, _| ours.contains(site));
    sites
}

/// Lets the fault happen to the child at each of the calls of the sites that are wanted; `#` there is the number of the call.
fn torture(
    what: &str,
    fault: &str,
    messages: usize,
    prepare: &dyn Fn(&Path),
    wanted: &dyn Fn(&str, &str) -> bool,
    verify: &dyn Fn(&Path),
) -> BTreeMap<Site, usize> {
    let (_, most) = form();
    let mut sites = sites(what, messages, prepare);
    sites.retain(|(thread, call), _| wanted(thread, call));
    let mut happened = 0;
    for ((thread, call), count) in &sites {
        let mut at = 1;
        loop {
            let temporary = directory();
            let directory = temporary.path();
            prepare(directory);
            let trace = format!("trace={call}");
            let inject = format!("inject={call}:{fault}").replace('#', &at.to_string());
            let arguments = ["-e", &trace, "-e", &inject, "-o", "/dev/null"];
            let ended = run(what, directory, messages, Some(thread), &arguments);
            eprintln!("{what}: {thread} {inject} of about {count}: {ended:?}");
            verify(directory);
            // The child makes about the same calls each time.
            let is_last = if fault == KILLED { ended.is_none() } else { at > *count };
            if is_last {
                break;
            }
            happened += 1;
            at += (count / most).max(1);
        }
    }
    assert!(happened >= sites.len() && happened > 0, "{what}: {fault}: happened {happened} times");
    sites
}

fn torture_work(what: &str, fault: &str, wanted: &dyn Fn(&str, &str) -> bool) -> BTreeMap<Site, usize> {
    let (messages, _) = form();
    let verify = |directory: &Path| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(verify(directory, messages));
    };
    torture(what, fault, messages, &|_| {}, wanted, &verify)
}

#[test]
fn a_kill_while_the_writer_writes() {
    let sites = torture_work("work", KILLED, &|thread, call| thread == "queue-writer" && call == "pwrite64");
    assert_eq!(sites.len(), 1, "{sites:?}");
}

#[test]
fn a_kill_while_anything_else_is_done() {
    let sites =
        torture_work("work", KILLED, &|thread, call| !(thread == "queue-writer" && call == "pwrite64"));
    for (thread, call) in
        [("queue-writer", "fsync"), (BLOCKING, "linkat"), (BLOCKING, "fsync"), (BLOCKING, "unlink")]
    {
        assert!(sites.contains_key(&(thread.to_owned(), call.to_owned())), "{thread} {call}: {sites:?}");
    }
}

#[test]
fn a_log_that_cannot_be_synced() {
    let log = |thread: &str, call: &str| thread == "queue-writer" && call == "fsync";
    // Once, and from then on.
    for fault in ["error=EIO:when=#", "error=EIO:when=#+"] {
        assert_eq!(torture_work("fail", fault, &log).len(), 1);
    }
}

#[test]
fn files_that_cannot_be_written_or_named() {
    let log = |thread: &str, call: &str| thread == "queue-writer" && call == "pwrite64";
    assert_eq!(torture_work("fail", "error=ENOSPC:when=#", &log).len(), 1);
    let file = |thread: &str, call: &str| thread == BLOCKING && matches!(call, "linkat" | "fsync");
    assert_eq!(torture_work("fail", "error=ENOSPC:when=#", &file).len(), 2);
}

#[test]
fn a_kill_while_a_queue_is_made() {
    let verify = |directory: &Path| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(verify(directory, 2));
    };
    let sites = torture("open", KILLED, 0, &|_| {}, &|thread, _| thread == "first", &verify);
    assert!(sites.keys().any(|(_, call)| call == "pwrite64"), "{sites:?}");
}

/// Q1: what is synced in a folder is nowhere after a power cut if the folder's name is not on the disk.
#[test]
fn folders_that_are_made_are_synced_where_their_names_are() {
    let temporary = directory();
    let directory = temporary.path();
    let trace = directory.join("trace");
    let arguments = ["-y", "-e", "trace=mkdir,fsync", "-o", trace.to_str().unwrap()];
    assert_eq!(run("open", directory, 0, None, &arguments), None);
    let text = fs::read_to_string(&trace).unwrap();
    let calls: Vec<&str> = text.lines().collect();
    let made = |call: &&str| call.contains("mkdir(") && call.ends_with(" = 0");
    let folders: Vec<(usize, &Path)> = calls
        .iter()
        .enumerate()
        .filter(|(_, call)| made(call))
        .map(|(at, call)| (at, Path::new(call.split('"').nth(1).unwrap())))
        .collect();
    assert_eq!(folders.len(), 2, "{text}");
    for (at, folder) in folders {
        let synced = format!("<{}>)", folder.parent().unwrap().display());
        let is_synced = calls[at..].iter().any(|call| call.contains("fsync(") && call.contains(&synced));
        assert!(is_synced, "{}: {text}", folder.display());
    }
}

#[test]
fn a_kill_while_an_older_queue_is_taken_over() {
    for version in [2, 3, 4] {
        let fixture = |directory: &Path| {
            Left::copy(version, directory);
            let since = left_at(&settings(directory)).duration_since(SystemTime::UNIX_EPOCH).unwrap();
            fs::write(directory.join("left at"), since.as_millis().to_string()).unwrap();
        };
        let verify = |directory: &Path| {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let elsewhere = tempfile::tempdir().unwrap();
            runtime.block_on(take_over(&settings(directory), &Left::copy(version, elsewhere.path())));
        };
        let sites = torture("open", KILLED, 0, &fixture, &|thread, _| thread == "first", &verify);
        // Since version 4 files lie where they belong.
        let calls = if version < 4 { &["pwrite64", "rename", "fsync"][..] } else { &["pwrite64"] };
        for call in calls {
            assert!(sites.contains_key(&("first".to_owned(), (*call).to_owned())), "{call}: {sites:?}");
        }
    }
}
