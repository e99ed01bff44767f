//! What happened in the last day, for people who look: counts in steps of ten minutes, and the newest refusals.
//!
//! Promise: bounded memory; nothing but what the log has too, addresses as the log's setting says.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

/// Length of a step.
pub const STEP: Duration = Duration::from_secs(600);

/// Steps kept: a day.
pub const STEPS: usize = 144;

/// Refusals kept.
const REFUSALS: usize = 50;

/// What is counted in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Its number since 1970.
    pub number: u64,
    /// Activities recorded.
    pub recorded: u64,
    /// Recipients and messages refused or deferred.
    pub refused: u64,
    /// Messages that are nobody's business.
    pub passed: u64,
}

/// A refusal, as the log has it.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// When.
    pub at: SystemTime,
    /// Postfix's queue id.
    pub queue_id: String,
    /// SMTP reply code.
    pub code: u16,
    /// The reason code.
    pub reason: &'static str,
    /// Envelope sender and integration address, as far as they are known and shown.
    pub sender: Option<String>,
    /// See `sender`.
    pub recipient: Option<String>,
}

struct Recent {
    steps: VecDeque<Step>,
    refusals: VecDeque<Refusal>,
}

static RECENT: Mutex<Recent> = Mutex::new(Recent { steps: VecDeque::new(), refusals: VecDeque::new() });

fn number(now: SystemTime) -> u64 {
    now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() / STEP.as_secs()
}

/// Counts in the step of now.
pub(super) fn count(count: impl FnOnce(&mut Step)) {
    let number = number(SystemTime::now());
    let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    if recent.steps.back().is_none_or(|step| step.number < number) {
        recent.steps.push_back(Step { number, ..Step::default() });
        if recent.steps.len() > STEPS {
            recent.steps.pop_front();
        }
    }
    if let Some(step) = recent.steps.back_mut() {
        count(step);
    }
}

/// Remembers a refusal.
pub(super) fn refused(refusal: Refusal) {
    count(|step| step.refused += 1);
    let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    recent.refusals.push_front(refusal);
    recent.refusals.truncate(REFUSALS);
}

/// The last day, oldest first, a step for each ten minutes, also those in which nothing happened.
pub fn steps() -> Vec<Step> {
    let last = number(SystemTime::now());
    let recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    let first = last.saturating_sub(STEPS as u64 - 1);
    let find = |number| recent.steps.iter().find(|step| step.number == number).copied();
    (first..=last).map(|number| find(number).unwrap_or(Step { number, ..Step::default() })).collect()
}

/// The newest refusals, newest first.
pub fn refusals() -> Vec<Refusal> {
    RECENT.lock().unwrap_or_else(PoisonError::into_inner).refusals.iter().cloned().collect()
}
