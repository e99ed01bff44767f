//! A thread with a connection of its own, for looking: who looks neither waits for the writer nor lets it wait.
//!
//! In: closures over the connection. Out: their results.
//! Promise: files are opened here too, not where a session's task would block others. A look that fails harms no other.

use super::writer::start;
use crate::queue::StorageError;
use rusqlite::Connection;
use std::{
    panic::{self, AssertUnwindSafe},
    thread,
};
use tokio::sync::{mpsc, oneshot};

/// Looks that may wait; more wait in their callers.
const WAITING: usize = 256;

type Look = Box<dyn FnOnce(&mut Connection) + Send>;

/// The handle; the thread ends with it.
#[derive(Debug)]
pub(super) struct Reader {
    looks: Option<mpsc::Sender<Look>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Reader {
    pub(super) fn start(name: &'static str, mut database: Connection) -> Self {
        let (looks, mut inbox) = mpsc::channel::<Look>(WAITING);
        let thread = start(name, move || {
            while let Some(look) = inbox.blocking_recv() {
                // What one row does to us must not happen to the next: who asked gets no answer, which is an error.
                let _ = panic::catch_unwind(AssertUnwindSafe(|| look(&mut database)));
            }
        });
        Self { looks: Some(looks), thread: Some(thread) }
    }

    /// Runs `look` and gives its result.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Connection) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let gone = || StorageError::Other("it was not read to the end".to_owned());
        let (reply, answer) = oneshot::channel();
        let looks = self.looks.as_ref().ok_or_else(gone)?;
        let look: Look = Box::new(move |database| drop(reply.send(look(database))));
        looks.send(look).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.looks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
