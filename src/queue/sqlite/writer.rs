//! One thread that owns the database connection and commits waiting work together.
//!
//! In: closures over the [`Ledger`]. Out: their results, once they are committed and synced.
//! Promise: a result is given back only after the commit; work that fails does not fail its neighbours. A panic in this
//! thread ends the process: a service that takes mail and stores none would be worse than one that is started again.
//!
//! The essay: `synchronous=FULL` costs one sync for each commit, and a disk does some hundreds or thousands of those
//! a second, whatever is in them. So the thread takes the first piece of work, then all that waits behind it, and
//! commits them as one transaction. While it syncs, the next batch gathers by itself: the busier we are, the larger
//! the batches, and a lone message waits for nobody. If a batch fails as a whole, each piece is tried again alone, so
//! that only the one that cannot be done learns of it.
//!
//! What is in the log must go to the file some time, and whoever commits waits for it. So a second thread with a
//! connection of its own copies the log while the first goes on; when the log is long (`schema`), the writer copies
//! the little that is left, and begins the log anew.

use super::{ledger::Ledger, storage_error};
use crate::queue::StorageError;
use rusqlite::Connection;
use std::{
    io::Write as _,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot};

/// Pieces of work that may wait; more waits in its caller.
const WAITING: usize = 1024;

/// Pieces committed at once: bounds how long the first of them waits.
const BATCH: usize = 256;

/// Pieces of work after which the log is copied.
const COPY_AFTER: usize = 128;

/// A piece of work that keeps its result until it may be told.
trait Work: Send {
    fn run(&mut self, ledger: &mut Ledger) -> rusqlite::Result<()>;
    fn tell(self: Box<Self>, outcome: Result<(), StorageError>);
}

struct Task<T, F> {
    work: F,
    result: Option<T>,
    reply: oneshot::Sender<Result<T, StorageError>>,
}

impl<T: Send, F: FnMut(&mut Ledger) -> rusqlite::Result<T> + Send> Work for Task<T, F> {
    fn run(&mut self, ledger: &mut Ledger) -> rusqlite::Result<()> {
        self.result = Some((self.work)(ledger)?);
        Ok(())
    }

    fn tell(self: Box<Self>, outcome: Result<(), StorageError>) {
        let Self { result, reply, work } = *self;
        drop(work); // gives back what it held, before anybody asks for it
        let result = outcome.and_then(|()| result.ok_or_else(gone));
        // A caller whose deadline is over does not listen any more; the work is done all the same.
        let _ = reply.send(result);
    }
}

enum Request {
    /// `true`: its commit is to be synced.
    Work(Box<dyn Work>, bool),
    /// Gives up to so many free pages back; the answer is how many.
    Vacuum(usize, oneshot::Sender<Result<(usize, Duration), StorageError>>),
}

/// The handle to the thread. The thread ends when the last handle is dropped, after the work that waits.
#[derive(Debug)]
pub(super) struct Writer {
    requests: Option<mpsc::Sender<Request>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Writer {
    /// `second`: another connection to the same database.
    pub(super) fn start(ledger: Ledger, second: Connection) -> Self {
        let (requests, inbox) = mpsc::channel(WAITING);
        let (copy, signals) = sync_channel(1);
        let threads = vec![
            start("queue-writer", move || serve(ledger, inbox, &copy)),
            start("queue-log", move || copy_log(&second, &signals)),
        ];
        Self { requests: Some(requests), threads }
    }

    /// Runs `work` inside a transaction and returns its result once that is durable. `work` may run twice.
    pub(super) async fn write<T, F>(&self, work: F) -> Result<T, StorageError>
    where
        T: Send + 'static,
        F: FnMut(&mut Ledger) -> rusqlite::Result<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Work(Box::new(Task { work, result: None, reply }), true), answer).await
    }

    /// The same, with how long the work itself took.
    pub(super) async fn write_timed<T, F>(&self, mut work: F) -> Result<(T, Duration), StorageError>
    where
        T: Send + 'static,
        F: FnMut(&mut Ledger) -> rusqlite::Result<T> + Send + 'static,
    {
        self.write(move |ledger| {
            let began = Instant::now();
            Ok((work(ledger)?, began.elapsed()))
        })
        .await
    }

    /// The same without the wait for the disk, for what need not outlive a power cut: leases. It is written in order all
    /// the same, and the next commit that is synced syncs it too.
    pub(super) async fn write_unsynced<T, F>(&self, work: F) -> Result<T, StorageError>
    where
        T: Send + 'static,
        F: FnMut(&mut Ledger) -> rusqlite::Result<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Work(Box::new(Task { work, result: None, reply }), false), answer).await
    }

    /// Gives a bounded number of free pages back; outside a transaction, as SQLite wants it. The answer is how many, and
    /// how long it took.
    pub(super) async fn vacuum(&self, pages: usize) -> Result<(usize, Duration), StorageError> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Vacuum(pages, reply), answer).await
    }

    async fn send<T>(
        &self,
        request: Request,
        answer: oneshot::Receiver<Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        let requests = self.requests.as_ref().ok_or_else(gone)?;
        requests.send(request).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn gone() -> StorageError {
    StorageError::Other("its thread has stopped".to_owned())
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.requests = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Ends the process if the thread it lives in panics.
struct EndWithPanic(&'static str);

impl Drop for EndWithPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            // Where nobody reads it, a second panic would hide the first.
            let _ = writeln!(
                std::io::stderr(),
                "activity-milter: the thread {} has failed: the process ends, to be started again",
                self.0
            );
            std::process::abort();
        }
    }
}

pub(super) fn start(name: &'static str, work: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _end = EndWithPanic(name);
        work();
    });
    thread.expect("a thread can be started while the process starts")
}

/// Copies the log into the file at each signal. Whether it succeeds does not matter: the writer does what is left.
fn copy_log(database: &Connection, signals: &Receiver<()>) {
    while signals.recv().is_ok() {
        let _ = database.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
    }
}

fn serve(mut ledger: Ledger, mut inbox: mpsc::Receiver<Request>, copy: &SyncSender<()>) {
    let mut uncopied = 0;
    let mut batch = Vec::with_capacity(BATCH);
    let mut waiting = Vec::with_capacity(BATCH);
    while inbox.blocking_recv_many(&mut waiting, BATCH) > 0 {
        let mut synced = false;
        for request in waiting.drain(..) {
            match request {
                Request::Work(work, sync) => {
                    synced |= sync;
                    batch.push(work);
                }
                Request::Vacuum(pages, reply) => {
                    let began = Instant::now();
                    let freed = vacuum(ledger.database(), pages).map(|freed| (freed, began.elapsed()));
                    if let Err(error) = &freed {
                        ledger.doubt_after(error);
                    }
                    let _ = reply.send(freed.map_err(|error| storage_error(&error)));
                }
            }
        }
        uncopied += batch.len();
        ledger.sync_commits(synced);
        commit_all(&mut ledger, &mut batch);
        if uncopied >= COPY_AFTER && copy.try_send(()).is_ok() {
            uncopied = 0;
        }
    }
}

fn commit_all(ledger: &mut Ledger, batch: &mut Vec<Box<dyn Work>>) {
    if batch.is_empty() {
        return;
    }
    match commit(ledger, batch) {
        Ok(()) => batch.drain(..).for_each(|work| work.tell(Ok(()))),
        Err(error) if batch.len() == 1 || is_everybodys(&error) => {
            batch.drain(..).for_each(|work| work.tell(Err(storage_error(&error))));
        }
        Err(_) => {
            for work in batch.drain(..) {
                let mut alone = vec![work];
                let outcome = commit(ledger, &mut alone).map_err(|error| storage_error(&error));
                alone.drain(..).for_each(|work| work.tell(outcome.clone()));
            }
        }
    }
}

/// An error that each piece would meet again alone, after the same wait.
fn is_everybodys(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy))
}

fn commit(ledger: &mut Ledger, batch: &mut [Box<dyn Work>]) -> rusqlite::Result<()> {
    ledger.begin()?;
    let done = batch.iter_mut().try_for_each(|work| work.run(ledger)).and_then(|()| ledger.commit());
    if done.is_err() {
        ledger.roll_back();
    }
    done
}

fn vacuum(database: &Connection, pages: usize) -> rusqlite::Result<usize> {
    // The pragma frees one page for each row it gives, so it must be stepped to its end.
    let mut statement = database.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
    let mut rows = statement.query([])?;
    let mut freed = 0;
    while rows.next()?.is_some() {
        freed += 1;
    }
    Ok(freed)
}

/// So much work of one kind that a slice of it takes about [`SLICE_TIME`].
#[derive(Debug)]
pub(super) struct Slice {
    size: usize,
    most: usize,
}

/// What a slice of work may take: somebody's message waits behind it.
const SLICE_TIME: Duration = Duration::from_millis(8);

impl Slice {
    /// Slices of at most `most`.
    pub(super) fn of(most: usize) -> Self {
        Self { size: (most / 4).max(1), most }
    }

    /// The next slice of what is left.
    pub(super) fn next<'a, T>(&self, rest: &mut &'a [T]) -> &'a [T] {
        let (some, others) = rest.split_at(rest.len().min(self.size));
        *rest = others;
        some
    }

    /// How large the next one shall be.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// One is done, and took so long: the work itself, without the sync and the wait for others, which no smaller slice
    /// would make shorter. Waits for as long, so that others have half of the time.
    pub(super) async fn done(&mut self, took: Duration) {
        let size = if took > SLICE_TIME { self.size / 2 } else { self.size.saturating_mul(2) };
        self.size = size.clamp(1, self.most);
        tokio::time::sleep(took.min(SLICE_TIME * 4)).await;
    }
}

#[cfg(test)]
mod tests {
    use crate::queue::{Settings, SystemClock, sqlite::SqliteQueue};
    use std::{os::unix::process::ExitStatusExt, process::Command, sync::Arc};

    /// In a process of its own: it ends.
    #[tokio::test]
    async fn panics() {
        let Some(directory) = std::env::var_os("WRITER_PANICS") else { return };
        let directory = std::path::Path::new(&directory);
        let settings = Settings::new(directory.join("queue.db"), directory.join("spool"));
        let queue = SqliteQueue::open(&settings, Arc::new(SystemClock)).unwrap();
        let answer = queue.0.writer.write(|_| -> rusqlite::Result<()> { panic!("a fault of ours") }).await;
        eprintln!("it goes on: {answer:?}");
    }

    #[test]
    fn a_panic_of_the_writer_ends_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "queue::sqlite::writer::tests::panics", "--nocapture"]);
        let output = command.env("WRITER_PANICS", directory.path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(6), "{said}");
        assert!(said.contains("the thread queue-writer has failed: the process ends"), "{said}");
    }
}
