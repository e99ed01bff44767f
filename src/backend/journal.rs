//! The progress of a delivery that takes several steps.

use super::{Outcome, Trouble};
use async_trait::async_trait;
use std::sync::{Mutex, PoisonError};

/// What a backend has done for an activity so far, kept with the activity. Before a call that creates something, the
/// intent is noted, and after it what was created: an attempt that follows a crash finds what it must ask for before it
/// creates anything.
#[async_trait]
pub trait Journal: Send + Sync {
    /// What was noted last (JSON, the backend's own), by this attempt or one before.
    fn last(&self) -> Option<String>;

    /// Notes a step; returns once it is committed.
    /// # Errors
    /// [`NotNoted`]: nothing more may be created for this activity by this attempt; it is an outcome.
    async fn note(&self, step: String) -> Result<(), NotNoted>;
}

/// Why a step was not noted.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotNoted {
    /// Somebody else has the activity by now.
    #[error("the attempt took longer than its lease, and another one may be under way")]
    Lost,
    /// The queue's disk or database.
    #[error("{0}")]
    Queue(String),
}

impl From<NotNoted> for Outcome {
    fn from(error: NotNoted) -> Self {
        Self::Again { after: None, trouble: Trouble::Ours, reason: error.to_string() }
    }
}

/// Remembers for the length of an attempt, where there is no queue. Whoever creates things in several steps cannot resume
/// with it.
#[derive(Debug, Default)]
pub struct Fleeting(Mutex<Option<String>>);

#[async_trait]
impl Journal for Fleeting {
    fn last(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn note(&self, step: String) -> Result<(), NotNoted> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(step);
        Ok(())
    }
}
