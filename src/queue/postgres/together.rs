//! Work that waits is done together.
//!
//! In: pieces of work, one by one. Out: their results, each for who brought it.
//! Promise: a lone piece waits for nobody; while all turns are taken, what comes gathers, and whoever gets the next turn does
//! all of it: the busier we are, the more is done by one statement and one commit. A result is given when its piece is
//! committed; a piece that fails fails no other.
//!
//! Planning a statement costs the server more than doing it, and no plan can be kept where PgBouncer stands between.
//!
//! Who was told of several is back with the next piece a moment later, one after the other. The first of them would take the
//! turn with nothing but his own, and 64 who bring pieces would be done by nine: so after company a turn waits a moment for it.

use crate::queue::StorageError;
use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{Semaphore, oneshot},
    time::sleep,
};

/// A part of what a commit takes that waits for a standby.
const MOMENT: Duration = Duration::from_millis(1);

/// Somebody's piece, and how he is told.
type Waiting<J, R> = (J, oneshot::Sender<Result<R, StorageError>>);

/// Pieces of one kind.
pub(super) struct Together<J, R> {
    waiting: Mutex<VecDeque<Waiting<J, R>>>,
    turns: Semaphore,
    /// The last turn had more than one piece.
    has_company: AtomicBool,
}

impl<J, R> fmt::Debug for Together<J, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Together").finish_non_exhaustive()
    }
}

impl<J, R> Together<J, R> {
    /// So many turns at a time.
    pub(super) fn new(turns: usize) -> Self {
        let turns = Semaphore::new(turns.max(1));
        Self { waiting: Mutex::default(), turns, has_company: AtomicBool::new(false) }
    }

    /// Does a piece, with others that wait. `fits`: whether one more may be done with those; `work`: does some, and gives as
    /// many results. Whoever brings a piece must not be stopped: he may be at the work of others.
    pub(super) async fn bring<F: Future<Output = Vec<Result<R, StorageError>>>>(
        &self,
        piece: J,
        fits: impl Fn(&[J], &J) -> bool,
        work: impl Fn(Vec<J>) -> F,
    ) -> Result<R, StorageError> {
        let gone = || StorageError::Other("it was not done to the end".to_owned());
        let (tell, mut told) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back((piece, tell));
        loop {
            let turn = tokio::select! {
                biased;
                done = &mut told => return done.map_err(|_| gone())?,
                turn = self.turns.acquire() => turn.map_err(|_| gone())?,
            };
            if self.has_company.load(Ordering::Relaxed) {
                sleep(MOMENT).await;
            }
            let (pieces, tellers) = self.take(&fits);
            if !pieces.is_empty() {
                self.has_company.store(pieces.len() > 1, Ordering::Relaxed);
                for (tell, done) in tellers.into_iter().zip(work(pieces).await) {
                    // Who does not listen any more is none of ours.
                    let _ = tell.send(done);
                }
            }
            drop(turn);
        }
    }

    /// What is done with the next turn.
    fn take(
        &self,
        fits: &impl Fn(&[J], &J) -> bool,
    ) -> (Vec<J>, Vec<oneshot::Sender<Result<R, StorageError>>>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut pieces, mut tellers) = (Vec::new(), Vec::new());
        while let Some((piece, _)) = waiting.front()
            && (pieces.is_empty() || fits(&pieces, piece))
            && let Some((piece, tell)) = waiting.pop_front()
        {
            pieces.push(piece);
            tellers.push(tell);
        }
        (pieces, tellers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::sync::Notify;

    /// The first is done at once, alone; what comes meanwhile is done together, as far as it fits, and each gets his own.
    #[tokio::test]
    async fn what_gathers_is_done_by_one() {
        let (together, done) = (Arc::new(Together::new(1)), Arc::new(Mutex::new(Vec::new())));
        let begin = Arc::new(Notify::new());
        let bring = |piece: u32| {
            let (together, done, begin) = (Arc::clone(&together), Arc::clone(&done), Arc::clone(&begin));
            tokio::spawn(async move {
                let work = |pieces: Vec<u32>| {
                    let (done, begin) = (Arc::clone(&done), Arc::clone(&begin));
                    async move {
                        begin.notified().await;
                        let result = |piece: &u32| match piece {
                            13 => Err(StorageError::Busy("13".to_owned())),
                            piece => Ok(piece * 10),
                        };
                        let results = pieces.iter().map(result).collect();
                        done.lock().unwrap().push(pieces);
                        results
                    }
                };
                together.bring(piece, |some: &[u32], _| some.len() < 3, work).await
            })
        };
        let mut all = vec![bring(1)];
        tokio::task::yield_now().await;
        all.extend([2, 13, 4, 5].map(bring));
        tokio::task::yield_now().await;
        let mut results = Vec::new();
        for task in all {
            begin.notify_one();
            results.push(task.await.unwrap().ok());
        }
        assert_eq!(results, [Some(10), Some(20), None, Some(40), Some(50)]);
        assert_eq!(*done.lock().unwrap(), [vec![1], vec![2, 13, 4], vec![5]]);
    }
}
