//! Takes records from whoever has one, and writes them, many at a time, on a thread of its own.
//!
//! In: [`note`], from any thread. Out: batches for the store; a [`Report`] where something is to be said.
//! Promise: noting is a push under a lock that nobody holds longer than for a push or a swap. At most [`MOST`] records and
//! [`MOST_BYTES`] wait; what comes then is counted as lost. A flood costs a commit each [`BATCH_TIME`], or a thousand rows.
//! Fails: never; [`standing`] says how the file is.

use super::{
    Settings,
    record::Record,
    store::{Moment, Store, Trouble, put_aside},
};
use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a record waits for others at most.
pub const BATCH_TIME: Duration = Duration::from_millis(200);

/// So many do not wait longer.
const BATCH: usize = 1000;

/// Records that may wait to be written.
const MOST: usize = 10_000;

/// Bytes of them.
const MOST_BYTES: usize = 16 << 20;

/// After trouble, the file is left alone for so long.
const PAUSE: Duration = Duration::from_secs(5);

/// How often old rows are looked for where nothing happens.
const IDLE: Duration = Duration::from_secs(60);

/// Where there are many of them, others have their turn between two slices.
const BREATH: Duration = Duration::from_millis(20);

/// Something to be said.
#[derive(Clone, Debug)]
pub enum Report {
    /// A damaged file was moved aside, and a new one is begun.
    Aside {
        /// The file.
        path: PathBuf,
        /// Where it is now.
        aside: PathBuf,
        /// Why.
        why: String,
    },
    /// The file cannot be written.
    Trouble {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        message: String,
    },
    /// The file was moved away or replaced: the one that is at its path now is written, a new one if there is none.
    Replaced(PathBuf),
    /// It can again.
    GoesOn,
    /// So many records were not kept.
    Lost(u64),
}

/// How the trace is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is traced.
    Off,
    /// It is written.
    Writing(PathBuf),
    /// It is not; why.
    Trouble(PathBuf, String),
}

/// What waits.
#[derive(Default)]
struct Pending {
    records: Vec<Record>,
    bytes: usize,
}

/// What notes and writer share.
struct Shared {
    pending: Mutex<Pending>,
    lost: AtomicU64,
    /// Transactions so far.
    commits: AtomicU64,
    /// Records that the writer has taken and not written.
    unwritten: AtomicU64,
    stops: AtomicBool,
    standing: Mutex<Standing>,
}

struct Recorder {
    settings: Settings,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
    report: fn(&Report),
}

static RECORDER: RwLock<Option<Recorder>> = RwLock::new(None);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts tracing for the whole process; a second call does nothing. `create`: the file is made if it is not there.
pub fn start(settings: &Settings, create: bool, report: fn(&Report)) {
    let mut recorder = RECORDER.write().unwrap_or_else(PoisonError::into_inner);
    if settings.keep.is_some() && recorder.is_none() {
        *recorder = Recorder::start(settings, create, report).ok();
    }
}

/// Writes what is noted so far, and ends; after `patience` without it. What is noted later is not kept.
pub fn stop(patience: Duration) {
    let recorder = RECORDER.write().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(recorder) = recorder {
        recorder.stop(patience);
    }
}

/// Notes what happened; `record` is made only if somebody keeps it.
pub fn note(record: impl FnOnce() -> Record) {
    if let Some(recorder) = RECORDER.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
        recorder.note(record());
    }
}

/// How the trace is.
pub fn standing() -> Standing {
    let recorder = RECORDER.read().unwrap_or_else(PoisonError::into_inner);
    let Some(recorder) = recorder.as_ref() else { return Standing::Off };
    if recorder.thread.is_finished() {
        let why = "its thread ended, see the log: restart the service, and please report it";
        return Standing::Trouble(recorder.settings.path.clone(), why.to_owned());
    }
    locked(&recorder.shared.standing).clone()
}

/// With what it was started; none if nothing is traced.
pub fn settings() -> Option<Settings> {
    let recorder = RECORDER.read().unwrap_or_else(PoisonError::into_inner);
    recorder.as_ref().map(|recorder| recorder.settings.clone())
}

/// Records that were not kept since the start.
pub fn lost() -> u64 {
    let recorder = RECORDER.read().unwrap_or_else(PoisonError::into_inner);
    recorder.as_ref().map_or(0, |recorder| recorder.shared.lost.load(Ordering::Relaxed))
}

impl Recorder {
    fn start(settings: &Settings, create: bool, report: fn(&Report)) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            pending: Mutex::default(),
            lost: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
            stops: AtomicBool::new(false),
            standing: Mutex::new(Standing::Writing(settings.path.clone())),
        });
        let mut writer = Writer {
            shared: Arc::clone(&shared),
            settings: settings.clone(),
            create,
            report,
            store: None,
            told: 0,
            unwritten: Vec::new(),
        };
        let thread = thread::Builder::new().name("trace".to_owned()).spawn(move || writer.run())?;
        Ok(Self { settings: settings.clone(), shared, thread, report })
    }

    fn note(&self, record: Record) {
        let record = record.tidy();
        let size = record.size();
        let mut pending = locked(&self.shared.pending);
        if pending.records.len() >= MOST || pending.bytes + size > MOST_BYTES {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        pending.records.push(record);
        pending.bytes += size;
        let count = pending.records.len();
        drop(pending);
        if count == 1 || count == BATCH {
            self.thread.thread().unpark();
        }
    }

    fn stop(self, patience: Duration) {
        self.shared.stops.store(true, Ordering::SeqCst);
        self.thread.thread().unpark();
        let began = Instant::now();
        while !self.thread.is_finished() && began.elapsed() < patience {
            thread::sleep(Duration::from_millis(5));
        }
        let left =
            self.shared.unwritten.load(Ordering::SeqCst) + locked(&self.shared.pending).records.len() as u64;
        if left > 0 {
            (self.report)(&Report::Lost(left));
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
    settings: Settings,
    create: bool,
    report: fn(&Report),
    store: Option<Store>,
    /// Losses that are written down.
    told: u64,
    /// A batch that could not be written.
    unwritten: Vec<Record>,
}

impl Writer {
    /// Until it is stopped.
    fn run(&mut self) {
        // Opens the file, so that trouble is known at once; not where it is only written beside the service.
        let mut more = if self.create { self.turn() } else { Some(false) };
        loop {
            let stops = self.shared.stops.load(Ordering::SeqCst);
            if !stops {
                self.wait(more);
            }
            more = self.turn();
            if stops && (more.is_none() || self.is_empty()) {
                return;
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.unwritten.is_empty() && locked(&self.shared.pending).records.is_empty()
    }

    /// Waits for a record, and then for others. `more`: there is work; none: the file is in trouble.
    fn wait(&self, more: Option<bool>) {
        let (pause, begins) = (more.is_none(), Instant::now());
        let longest = match more {
            None => PAUSE,
            Some(true) => BREATH,
            Some(false) => IDLE,
        };
        let (mut first, stops) = (None, || self.shared.stops.load(Ordering::SeqCst));
        while !stops() && begins.elapsed() < longest {
            let count = locked(&self.shared.pending).records.len();
            if !pause && count >= BATCH {
                return;
            }
            if count > 0 && first.is_none() {
                first = Some(Instant::now());
            }
            let left = match first {
                Some(first) if more == Some(false) => BATCH_TIME.saturating_sub(first.elapsed()),
                _ => longest.saturating_sub(begins.elapsed()),
            };
            if left.is_zero() {
                return;
            }
            thread::park_timeout(left);
        }
    }

    /// Writes what waits. True if there is more to do, none if the file is in trouble.
    fn turn(&mut self) -> Option<bool> {
        if self.unwritten.is_empty() {
            let mut pending = locked(&self.shared.pending);
            pending.bytes = 0;
            self.unwritten = std::mem::take(&mut pending.records);
            self.shared.unwritten.store(self.unwritten.len() as u64, Ordering::SeqCst);
        }
        if self.unwritten.is_empty() && !self.create {
            return Some(false);
        }
        let written = self.write().or_else(|trouble| match trouble {
            Trouble::Damaged(why) if self.create => self.begin_anew(why),
            Trouble::Replaced if self.create => {
                (self.report)(&Report::Replaced(self.settings.path.clone()));
                self.write()
            }
            trouble => Err(trouble),
        });
        match written {
            Ok(more) => {
                self.stand(Standing::Writing(self.settings.path.clone()));
                Some(more)
            }
            Err(trouble) => {
                self.store = None;
                let path = self.settings.path.clone();
                self.stand(Standing::Trouble(path, trouble.to_string()));
                None
            }
        }
    }

    /// In steps of a batch, each a transaction.
    fn write(&mut self) -> Result<bool, Trouble> {
        let mut store = match self.store.take() {
            Some(store) => store,
            None => Store::open(&self.settings, self.create)?,
        };
        loop {
            let lost = self.shared.lost.load(Ordering::Relaxed);
            let batch = self.unwritten.len().min(BATCH);
            let more = match store.write(&self.unwritten[..batch], lost - self.told, Moment::now()) {
                Err(Trouble::Replaced) => {
                    store.leave();
                    return Err(Trouble::Replaced);
                }
                written => written?,
            };
            self.shared.commits.fetch_add(1, Ordering::Relaxed);
            if lost > self.told {
                (self.report)(&Report::Lost(lost - self.told));
            }
            self.told = lost;
            self.unwritten.drain(..batch);
            self.shared.unwritten.store(self.unwritten.len() as u64, Ordering::SeqCst);
            if self.unwritten.is_empty() {
                self.store = Some(store);
                return Ok(more);
            }
        }
    }

    /// Moves a damaged file aside, and begins another.
    fn begin_anew(&mut self, why: String) -> Result<bool, Trouble> {
        let path = self.settings.path.clone();
        let aside = put_aside(&path)?;
        (self.report)(&Report::Aside { path, aside, why });
        self.write()
    }

    /// Says how the file is, if it is otherwise than before.
    fn stand(&self, now: Standing) {
        let before = std::mem::replace(&mut *locked(&self.shared.standing), now.clone());
        match (before, now) {
            (Standing::Trouble(..), Standing::Trouble(..)) => {} // said once
            (_, Standing::Trouble(path, message)) => (self.report)(&Report::Trouble { path, message }),
            (Standing::Trouble(..), Standing::Writing(_)) => (self.report)(&Report::GoesOn),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{search, term::Term},
        *,
    };
    use rusqlite::Connection;
    use std::{
        fs,
        path::Path,
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
    };

    /// A recorder of its own; what it reports is counted by the test's own function.
    fn start(path: &Path, report: fn(&Report)) -> Recorder {
        Recorder::start(&Settings::new(path.to_owned()), true, report).unwrap()
    }

    fn quiet(report: &Report) {
        panic!("nothing is to be said: {report:?}");
    }

    fn record(id: &str) -> Record {
        Record { queue_id: Some(id.to_owned()), ..Record::default() }
    }

    fn found(path: &Path, id: &str) -> bool {
        let query = search::Query { term: Term::read(id).unwrap(), since: None, until: None };
        search::search(path, &query).is_ok_and(|found| !found.mails.is_empty())
    }

    #[track_caller]
    fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
        let began = Instant::now();
        while !is() {
            assert!(began.elapsed() < Duration::from_secs(60), "no {what}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn stop(recorder: Recorder) {
        recorder.stop(Duration::from_secs(60));
    }

    #[test]
    fn what_is_noted_can_be_found_soon_and_at_the_end_all_of_it() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("trace.db");
        let recorder = start(&path, quiet);
        recorder.note(record("AAAAAA01"));
        wait_for("first record", || found(&path, "AAAAAA01"));
        for n in 0..2500 {
            recorder.note(record(&format!("BB{n:08}")));
        }
        stop(recorder);
        assert!(found(&path, "BB00000000") && found(&path, "BB00002499"));
    }

    /// A flood costs no commit for each.
    /// T2.
    #[test]
    fn many_share_a_commit() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("trace.db");
        let recorder = start(&path, quiet);
        let shared = Arc::clone(&recorder.shared);
        for n in 0..5000 {
            recorder.note(record(&format!("CC{n:08}")));
        }
        stop(recorder);
        assert!(found(&path, "CC00000000") && found(&path, "CC00004999"));
        let commits = shared.commits.load(SeqCst);
        assert!((1..500).contains(&commits), "{commits} commits for 5000 records");
    }

    /// The limit on both sides, with a writer that cannot write: what is over it is counted, written down and said.
    /// T3.
    #[test]
    fn losses_are_counted_and_memory_is_bounded() {
        static LOST: AtomicUsize = AtomicUsize::new(0);
        fn report(report: &Report) {
            if let Report::Lost(lost) = report {
                LOST.fetch_add(usize::try_from(*lost).unwrap(), SeqCst);
            }
        }
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("trace.db");
        let recorder = start(&path, report);
        wait_for("file", || search::look_at(&path).is_ok());
        let mut blocker = Connection::open(&path).unwrap();
        let block = blocker.transaction_with_behavior(rusqlite::TransactionBehavior::Exclusive).unwrap();
        recorder.note(record("DD00000000"));
        let taken = || locked(&recorder.shared.pending).records.is_empty();
        wait_for("the writer to take it", taken);
        for n in 1..=MOST {
            recorder.note(record(&format!("DD{n:08}")));
        }
        assert_eq!(recorder.shared.lost.load(SeqCst), 0, "at the limit nothing is lost");
        for n in 0..5 {
            recorder.note(record(&format!("EE{n:08}")));
        }
        assert_eq!(recorder.shared.lost.load(SeqCst), 5);
        drop(block);
        stop(recorder);
        assert_eq!(LOST.load(SeqCst), 5);
        assert_eq!(search::look_at(&path).unwrap().lost, 5);
        assert!(
            found(&path, "DD00000000")
                && found(&path, &format!("DD{MOST:08}"))
                && !found(&path, "EE00000000")
        );
        // Bytes have a limit too.
        let big = Record { others: vec!["x".repeat(1000); 50], ..record("FF000000") };
        assert!(big.clone().tidy().size() * MOST > MOST_BYTES);
    }

    #[test]
    fn a_damaged_file_is_moved_aside_at_the_start_and_while_it_is_written() {
        static ASIDE: AtomicUsize = AtomicUsize::new(0);
        fn report(report: &Report) {
            match report {
                Report::Aside { aside, why, .. } => {
                    assert!(aside.ends_with("trace.db.aside") && !why.is_empty());
                    ASIDE.fetch_add(1, SeqCst);
                }
                other => panic!("{other:?}"),
            }
        }
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("trace.db");
        // As a crash may leave it.
        fs::write(&path, vec![0; 40_000]).unwrap();
        let recorder = start(&path, report);
        recorder.note(record("AAAAAA01"));
        wait_for("record", || found(&path, "AAAAAA01"));
        assert_eq!(ASIDE.load(SeqCst), 1);
        assert_eq!(fs::read(scratch.path().join("trace.db.aside")).unwrap(), vec![0; 40_000]);
        stop(recorder);
        // Pages that are overwritten: the next write finds it.
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, [&bytes[..100], &vec![0xff; bytes.len() - 100]].concat()).unwrap();
        let recorder = start(&path, report);
        recorder.note(record("AAAAAA02"));
        wait_for("record", || found(&path, "AAAAAA02"));
        assert_eq!(ASIDE.load(SeqCst), 2);
        stop(recorder);
    }

    /// It goes without, says so, and goes on by itself; nobody who notes waits.
    /// T3.
    #[test]
    fn what_cannot_be_written_is_said_and_written_later() {
        static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());
        fn report(report: &Report) {
            let text = match report {
                Report::Trouble { message, .. } => message.clone(),
                other => format!("{other:?}"),
            };
            locked(&SAID).push(text);
        }
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("state/trace.db");
        fs::write(scratch.path().join("state"), "a file where a directory should be").unwrap();
        let recorder = start(&path, report);
        recorder.note(record("AAAAAA01"));
        let in_trouble = || matches!(&*locked(&recorder.shared.standing), Standing::Trouble(..));
        wait_for("trouble", in_trouble);
        fs::remove_file(scratch.path().join("state")).unwrap();
        wait_for("record", || found(&path, "AAAAAA01"));
        wait_for("end of trouble", || !in_trouble());
        stop(recorder);
        let said = locked(&SAID);
        assert!(said.len() == 2 && said[1] == "GoesOn", "{said:?}");
    }

    /// What is noted then goes where people look for it, and what was moved away is whole.
    #[test]
    fn a_file_that_is_taken_away_or_replaced_is_not_written_any_more() {
        static REPLACED: AtomicUsize = AtomicUsize::new(0);
        fn report(report: &Report) {
            match report {
                Report::Replaced(path) => assert!(path.ends_with("trace.db")),
                other => panic!("{other:?}"),
            }
            REPLACED.fetch_add(1, SeqCst);
        }
        let scratch = tempfile::tempdir().unwrap();
        let [path, other, moved] = ["trace.db", "other.db", "moved.db"].map(|name| scratch.path().join(name));
        let recorder = start(&other, quiet);
        recorder.note(record("BBBBBB01"));
        stop(recorder);
        let recorder = start(&path, report);
        recorder.note(record("AAAAAA01"));
        wait_for("first record", || found(&path, "AAAAAA01"));
        fs::remove_file(&path).unwrap();
        recorder.note(record("AAAAAA02"));
        wait_for("record in a new file", || found(&path, "AAAAAA02"));
        assert!(!found(&path, "AAAAAA01"));
        // Moved, with another trace in its place: neither gets what is the other's.
        fs::rename(&path, &moved).unwrap();
        fs::rename(&other, &path).unwrap();
        recorder.note(record("AAAAAA03"));
        wait_for("record in the other file", || found(&path, "AAAAAA03"));
        assert!(found(&path, "BBBBBB01") && !found(&path, "AAAAAA02"));
        assert!(found(&moved, "AAAAAA02") && !found(&moved, "AAAAAA03"));
        stop(recorder);
        assert_eq!(REPLACED.load(SeqCst), 2);
        let database = Connection::open(&path).unwrap();
        let check: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
    }

    #[test]
    fn what_is_left_at_the_end_is_said_to_be_lost() {
        static LOST: AtomicUsize = AtomicUsize::new(0);
        fn report(report: &Report) {
            if let Report::Lost(lost) = report {
                LOST.fetch_add(usize::try_from(*lost).unwrap(), SeqCst);
            }
        }
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("state/trace.db");
        fs::write(scratch.path().join("state"), "a file where a directory should be").unwrap();
        let recorder = start(&path, report);
        (0..3).for_each(|n| recorder.note(record(&format!("AAAAAA0{n}"))));
        wait_for("trouble", || matches!(&*locked(&recorder.shared.standing), Standing::Trouble(..)));
        stop(recorder);
        assert_eq!(LOST.load(SeqCst), 3);
    }

    /// T2: nor does a search.
    #[test]
    fn who_reads_does_not_wait_for_the_writer_nor_the_writer_for_him() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("trace.db");
        let recorder = start(&path, quiet);
        recorder.note(record("AAAAAA01"));
        wait_for("record", || found(&path, "AAAAAA01"));
        // A reader in the midst of it.
        let mut reader = Connection::open(&path).unwrap();
        let reading = reader.transaction().unwrap();
        let count =
            || reading.query_row("SELECT count(*) FROM event", [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(count(), 1);
        recorder.note(record("AAAAAA02"));
        wait_for("record beside a reader", || found(&path, "AAAAAA02"));
        assert_eq!(count(), 1);
        // A writer in the midst of it: readers go on.
        let mut writer = Connection::open(&path).unwrap();
        let writing = writer.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
        assert!(found(&path, "AAAAAA01"));
        drop(writing);
        drop(reading);
        stop(recorder);
    }
}
