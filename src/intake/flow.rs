//! What goes through the service at this moment: sessions, messages that want an answer, and who may parse a large one.
//!
//! In: tokens that live as long as what they count. Out: counts, and a drain that waits for them.
//! Promise: a reload does not touch it; after the drain began no recipient is taken.
//! Fails: a panic of work that is done apart is a [`Fault`].

use super::Fault;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::Semaphore;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

/// How long sessions may stay after the last message in flight, at the end.
const LINGER: Duration = Duration::from_secs(2);

/// Large messages that are parsed at once, each on a thread that may block: as many as leave a core to everybody else.
fn parsers() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1).max(1))
}

/// Counts what is under way.
pub(super) struct Flow {
    /// Who may parse a large message.
    parsers: Arc<Semaphore>,
    draining: AtomicBool,
    /// Counts messages with a target; a token lives in each transaction and goes with it.
    in_flight: TaskTracker,
    /// Counts sessions, with a message or not.
    sessions: TaskTracker,
}

impl Flow {
    pub(super) fn new() -> Self {
        Self {
            parsers: Arc::new(Semaphore::new(parsers())),
            draining: AtomicBool::new(false),
            in_flight: TaskTracker::new(),
            sessions: TaskTracker::new(),
        }
    }

    /// Takes no new messages and waits until those in flight are answered. The answer is how many were not.
    pub(super) async fn drain(&self, patience: Duration) -> usize {
        self.draining.store(true, Ordering::SeqCst);
        self.in_flight.close();
        let _ = tokio::time::timeout(patience, self.in_flight.wait()).await;
        // A session that began a moment ago shall come as far as RCPT and hear our own text: were its connection closed
        // before, Postfix would say "service unavailable", to other people's mail too.
        self.sessions.close();
        let _ = tokio::time::timeout(LINGER, self.sessions.wait()).await;
        self.in_flight.len()
    }

    /// True once nothing new is taken.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Messages with a target that are not answered yet.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Counts a session for as long as the token lives.
    pub(super) fn session(&self) -> TaskTrackerToken {
        self.sessions.token()
    }

    /// Shows the drain that a message wants its answer, for as long as the token lives.
    pub(super) fn hold(&self) -> TaskTrackerToken {
        self.in_flight.token()
    }

    /// Does work that takes longer than an async worker may be held, when its turn comes.
    /// # Errors
    /// The work panicked.
    pub(super) async fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let turn = Arc::clone(&self.parsers).acquire_owned().await;
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        done.await.map_err(|error| Fault::Internal(error.to_string()))
    }
}
