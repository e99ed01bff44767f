//! One attempt to give an activity to the business system, and what became of it.
//!
//! In: a [`Delivery`]. Out: an [`Outcome`], by what the courier does next.
//! Promise: every attempt carries the same idempotency key; files are streamed, never held whole.
//! Fails: never; a failure is an outcome.
//!
//! Two systems: any over our HTTP contract ([`HttpBackend`]), and Visma Severa ([`SeveraBackend`]). The client beneath it ([`crate::web`]), with our credentials, also serves the directory's look-ups.

mod http;
mod journal;
mod multipart;
mod severa;
mod signature;

pub use http::{HttpBackend, Settings as HttpSettings};
pub use journal::{Fleeting, Journal, NotNoted};
pub use severa::{CompanySettings, LEAST_NOTES, SeveraBackend, Unsure};
pub use signature::key_of as signing_key_of;

use crate::activity::{Activity, Cut, Raw};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use std::{sync::Arc, time::Duration};

/// What is given to the backend.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The activity.
    pub activity: Activity,
    /// Its JSON, sent unchanged.
    pub json: Bytes,
    /// Where its files lie in `raw`, in the order of `activity.files`.
    pub cuts: Vec<Cut>,
    /// The message.
    pub raw: Raw,
    /// It was delivered before, and is sent once more, because the business system may have lost it.
    pub replay: bool,
}

/// What became of one attempt.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx: the backend has it.
    Taken,
    /// Not now. `after`: the backend's `Retry-After` (RFC 9110, section 10.2.3).
    Again {
        /// Not before this long from now.
        after: Option<Duration>,
        /// What it says of the backend.
        trouble: Trouble,
        /// For people.
        reason: String,
    },
    /// Any other 4xx: a person looks at it.
    Refused {
        /// The status, with its phrase; empty where it is no single answer that says so.
        status: String,
        /// `detail` or `title` of the problem (RFC 9457), cut to one line of 200 characters; empty if there is none.
        detail: String,
        /// What of the message it is about, where that is not all of it: for people who may see it, not for the log.
        about: Option<String>,
    },
    /// 401, redirects, no token to be had: our settings are wrong, not the activity.
    Misconfigured {
        /// Whose.
        scope: Scope,
        /// Ask again after this long.
        after: Option<Duration>,
        /// For people: the status that said so, or why there is no token.
        reason: String,
    },
}

/// Whose settings are wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The service's: nobody's activities are taken.
    All,
    /// The tenant's: its secret was revoked, say.
    Tenant,
}

/// What a failed attempt says of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// No connection, no answer in time, 408, 5xx: others would fail alike.
    Down,
    /// No answer to this tenant, which has a way of its own: of others it says nothing. `after` is this activity's own.
    Lost,
    /// 429: it works, and has too much to do.
    Busy,
    /// 409, 425: it works; this activity's turn comes later.
    Later,
    /// 403, 404, 410: this activity, or our settings; it is the settings if many different ones in a row get it.
    Denied,
    /// The connection broke while a large activity was sent: it may be this activity's doing.
    Broken,
    /// Our own disk, our own fault: nothing of the backend.
    Ours,
    /// It was not asked: this activity's time has not come. It is no attempt.
    Waits,
}

/// What was looked at, and how it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What.
    pub name: String,
    /// How it is; or what is wrong, and what to look at.
    pub outcome: Result<String, String>,
}

/// A business system. A trait because it is the world outside.
#[async_trait]
pub trait Backend: Send + Sync {
    /// Makes one attempt. `journal`: what was done for this activity so far, for deliveries of several steps.
    async fn deliver(&self, delivery: &Delivery, journal: &dyn Journal) -> Outcome;

    /// Whether somebody is there who knows us, each look within `patience`, for people; nothing is delivered.
    async fn check(&self, patience: Duration) -> Vec<Check>;
}

/// A backend that can be exchanged: each attempt takes the one of its moment.
pub struct Switch(ArcSwap<Arc<dyn Backend>>);

impl Switch {
    /// With this one to begin with.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self(ArcSwap::from_pointee(backend))
    }

    /// Another one for attempts that begin from here on.
    pub fn replace(&self, backend: Arc<dyn Backend>) {
        self.0.store(Arc::new(backend));
    }
}

#[async_trait]
impl Backend for Switch {
    async fn deliver(&self, delivery: &Delivery, journal: &dyn Journal) -> Outcome {
        let backend = self.0.load_full();
        backend.deliver(delivery, journal).await
    }

    async fn check(&self, patience: Duration) -> Vec<Check> {
        let backend = self.0.load_full();
        backend.check(patience).await
    }
}
