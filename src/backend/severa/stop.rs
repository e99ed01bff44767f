//! An attempt that does not go on: what the courier hears of it.

use super::super::{NotNoted, Outcome, Scope, Trouble};
use crate::severa::{Failed, Refusal};
use std::time::Duration;

/// An attempt that does not go on, and how it ends.
#[derive(Debug)]
pub(super) struct Stop(pub(super) Outcome);

impl Stop {
    /// The company's settings are wrong.
    pub(super) fn settings(reason: String) -> Self {
        Self(Outcome::Misconfigured { scope: Scope::Tenant, after: None, reason })
    }

    pub(super) fn again(after: Option<Duration>, trouble: Trouble, reason: String) -> Self {
        Self(Outcome::Again { after, trouble, reason })
    }

    pub(super) fn held(detail: String) -> Self {
        Self(Outcome::Refused { status: String::new(), detail, about: None })
    }

    /// What a call that creates something left open is looked for after a while.
    pub(super) fn lost(self, settle: Duration) -> Self {
        match self.0 {
            Outcome::Again { after, trouble, reason } => {
                Self::again(Some(after.unwrap_or_default().max(settle)), trouble, reason)
            }
            other => Self(other),
        }
    }
}

impl From<NotNoted> for Stop {
    fn from(error: NotNoted) -> Self {
        Self(error.into())
    }
}

impl From<Failed> for Stop {
    fn from(failed: Failed) -> Self {
        let reason = failed.to_string();
        match failed {
            Failed::NotSent(_) => Self::again(None, Trouble::Down, reason),
            Failed::NoToken(_) | Failed::Lost(_) => Self::again(None, Trouble::Lost, reason),
            // The company waits, and nobody else.
            Failed::Busy(left) => Self::again(Some(left), Trouble::Later, reason),
            Failed::Paused(left) => Self::again(Some(left), Trouble::Waits, reason),
            Failed::Account(_) | Failed::AccountOrLost(_) => Self::settings(reason),
            Failed::Ours(_) => Self::again(None, Trouble::Ours, reason),
            Failed::Refused(refusal) => Self(refused(&refusal, None)),
        }
    }
}

/// What becomes of an activity of which something was refused. `about`: what, if not all of it.
pub(super) fn refused(refusal: &Refusal, about: Option<String>) -> Outcome {
    let Refusal { status, kind, message } = refusal;
    let detail = match (kind.is_empty(), message.is_empty()) {
        (true, _) => message.clone(),
        (false, true) => kind.clone(),
        (false, false) => format!("{kind}: {message}"),
    };
    Outcome::Refused { status: status.to_string(), detail, about }
}
