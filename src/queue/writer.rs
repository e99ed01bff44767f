//! One thread that owns the database connection and commits waiting work together.
//!
//! In: closures over the connection. Out: their results, once they are committed and synced.
//! Promise: a result is given back only after the commit; work that fails does not fail its neighbours.
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

use super::StorageError;
use rusqlite::Connection;
use std::{
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};
use tokio::sync::{mpsc, oneshot};

/// Pieces of work that may wait; more waits in its caller.
const WAITING: usize = 1024;

/// Pieces committed at once: bounds how long the first of them waits.
const BATCH: usize = 256;

/// Pages given back to the file system at once: 4 MiB.
const VACUUM_PAGES: u32 = 1024;

/// Pieces of work after which the log is copied.
const COPY_AFTER: usize = 128;

/// A piece of work that keeps its result until it may be told.
trait Work: Send {
    fn run(&mut self, database: &Connection) -> rusqlite::Result<()>;
    fn tell(self: Box<Self>, outcome: Result<(), StorageError>);
}

struct Task<T, F> {
    work: F,
    result: Option<T>,
    reply: oneshot::Sender<Result<T, StorageError>>,
}

impl<T: Send, F: FnMut(&Connection) -> rusqlite::Result<T> + Send> Work for Task<T, F> {
    fn run(&mut self, database: &Connection) -> rusqlite::Result<()> {
        self.result = Some((self.work)(database)?);
        Ok(())
    }

    fn tell(self: Box<Self>, outcome: Result<(), StorageError>) {
        let Self { result, reply, .. } = *self;
        let result = outcome.and_then(|()| result.ok_or_else(|| StorageError("no result".to_owned())));
        // A caller whose deadline is over does not listen any more; the work is done all the same.
        let _ = reply.send(result);
    }
}

enum Request {
    Work(Box<dyn Work>),
    Vacuum(oneshot::Sender<Result<u32, StorageError>>),
}

/// The handle to the thread. The thread ends when the last handle is dropped, after the work that waits.
#[derive(Debug)]
pub(super) struct Writer {
    requests: Option<mpsc::Sender<Request>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Writer {
    /// `second`: another connection to the same database.
    pub(super) fn start(database: Connection, second: Connection) -> Self {
        let (requests, inbox) = mpsc::channel(WAITING);
        let (copy, signals) = sync_channel(1);
        let threads = vec![
            start("queue-writer", move || serve(database, inbox, &copy)),
            start("queue-log", move || copy_log(&second, &signals)),
        ];
        Self { requests: Some(requests), threads }
    }

    /// Runs `work` inside a transaction and returns its result once that is durable. `work` may run twice.
    pub(super) async fn write<T, F>(&self, work: F) -> Result<T, StorageError>
    where
        T: Send + 'static,
        F: FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Work(Box::new(Task { work, result: None, reply })), answer).await
    }

    /// Gives a bounded number of free pages back; outside a transaction, as SQLite wants it. The answer is how many.
    pub(super) async fn vacuum(&self) -> Result<u32, StorageError> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Vacuum(reply), answer).await
    }

    async fn send<T>(
        &self,
        request: Request,
        answer: oneshot::Receiver<Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        let gone = || StorageError("the queue's writer has stopped".to_owned());
        let requests = self.requests.as_ref().ok_or_else(gone)?;
        requests.send(request).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.requests = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.expect("a thread can be started while the process starts")
}

/// Copies the log into the file at each signal. Whether it succeeds does not matter: the writer does what is left.
fn copy_log(database: &Connection, signals: &Receiver<()>) {
    while signals.recv().is_ok() {
        let _ = database.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
    }
}

fn serve(database: Connection, mut inbox: mpsc::Receiver<Request>, copy: &SyncSender<()>) {
    let mut uncopied = 0;
    let mut batch = Vec::with_capacity(BATCH);
    let mut waiting = Vec::with_capacity(BATCH);
    while inbox.blocking_recv_many(&mut waiting, BATCH) > 0 {
        for request in waiting.drain(..) {
            match request {
                Request::Work(work) => batch.push(work),
                Request::Vacuum(reply) => {
                    let _ = reply.send(vacuum(&database).map_err(StorageError::from));
                }
            }
        }
        uncopied += batch.len();
        commit_all(&database, &mut batch);
        if uncopied >= COPY_AFTER && copy.try_send(()).is_ok() {
            uncopied = 0;
        }
    }
}

fn commit_all(database: &Connection, batch: &mut Vec<Box<dyn Work>>) {
    if batch.is_empty() {
        return;
    }
    match commit(database, batch) {
        Ok(()) => batch.drain(..).for_each(|work| work.tell(Ok(()))),
        Err(error) if batch.len() == 1 => {
            batch.drain(..).for_each(|work| work.tell(Err(StorageError::from_ref(&error))));
        }
        Err(_) => {
            for work in batch.drain(..) {
                let mut alone = vec![work];
                let outcome = commit(database, &mut alone).map_err(StorageError::from);
                alone.drain(..).for_each(|work| work.tell(outcome.clone()));
            }
        }
    }
}

fn commit(database: &Connection, batch: &mut [Box<dyn Work>]) -> rusqlite::Result<()> {
    // Rolls back when it is dropped without a commit.
    let transaction = database.unchecked_transaction()?;
    for work in batch.iter_mut() {
        work.run(&transaction)?;
    }
    transaction.commit()
}

fn vacuum(database: &Connection) -> rusqlite::Result<u32> {
    // The pragma frees one page for each row it gives, so it must be stepped to its end.
    let mut statement = database.prepare(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
    let mut rows = statement.query([])?;
    let mut freed = 0;
    while rows.next()?.is_some() {
        freed += 1;
    }
    Ok(freed)
}

impl StorageError {
    fn from_ref(error: &rusqlite::Error) -> Self {
        Self(error.to_string())
    }
}
