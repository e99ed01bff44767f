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

use super::StorageError;
use rusqlite::Connection;
use std::thread;
use tokio::sync::{mpsc, oneshot};

/// Pieces of work that may wait; more waits in its caller.
const WAITING: usize = 1024;

/// Pieces committed at once: bounds how long the first of them waits.
const BATCH: usize = 256;

/// Pages given back to the file system at once: 4 MiB.
const VACUUM_PAGES: u32 = 1024;

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
    thread: Option<thread::JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(database: Connection) -> Self {
        let (requests, inbox) = mpsc::channel(WAITING);
        let thread = thread::Builder::new()
            .name("queue-writer".to_owned())
            .spawn(move || serve(database, inbox))
            .expect("a thread can be started while the process starts");
        Self { requests: Some(requests), thread: Some(thread) }
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
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(database: Connection, mut inbox: mpsc::Receiver<Request>) {
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
        commit_all(&database, &mut batch);
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
