//! One attempt to give an activity to the business system, and what became of it.
//!
//! In: a [`Delivery`]. Out: an [`Outcome`], by what the courier does next.
//! Promise: every attempt carries the same idempotency key; files are streamed, never held whole.
//! Fails: never; a failure is an outcome.
//!
//! The [`Client`] beneath it, with our credentials, also serves the directory's look-ups.

mod client;
mod http;
mod multipart;
mod oauth;
mod secret;
mod signature;

pub use client::{CallError, Client, ClientError, Credentials, Settings as ClientSettings, body_of};
pub use http::{HttpBackend, Settings};
pub use oauth::Settings as OAuthSettings;
pub use secret::SecretFile;
pub use signature::key_of as signing_key_of;

use crate::activity::{Activity, Cut, Raw};
use async_trait::async_trait;
use bytes::Bytes;
use std::time::Duration;

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
}

/// What became of one attempt.
#[must_use]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx: the backend has it.
    Taken,
    /// 408, 409, 425, 429, 5xx, no connection, time-out. `after`: the backend's `Retry-After` (RFC 9110, section 10.2.3).
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
        /// The status, with its phrase.
        status: String,
        /// `detail` or `title` of the problem (RFC 9457), cut to one line of 200 characters; empty if there is none.
        detail: String,
    },
    /// 401, 403, 404, 410, redirects: our settings are wrong, not the activity.
    Misconfigured {
        /// For people: the status that said so, or why there is no token.
        reason: String,
    },
}

/// What a failed attempt says of the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// No connection, no answer in time, 408, 5xx: others would fail alike.
    Down,
    /// 429: it works, and has too much to do.
    Busy,
    /// 409, 425: it works; this activity's turn comes later.
    Later,
}

/// A business system. A trait because it is the world outside: any system over HTTP here, Severa's API later.
#[async_trait]
pub trait Backend: Send + Sync {
    /// Makes one attempt.
    async fn deliver(&self, delivery: &Delivery) -> Outcome;
}

/// A backend whose settings can change: each attempt takes the one of its moment.
pub struct Switch(arc_swap::ArcSwap<HttpBackend>);

impl Switch {
    /// With this one to begin with.
    pub fn new(backend: HttpBackend) -> Self {
        Self(arc_swap::ArcSwap::from_pointee(backend))
    }

    /// Another one for attempts that begin from here on.
    pub fn replace(&self, backend: HttpBackend) {
        self.0.store(std::sync::Arc::new(backend));
    }
}

#[async_trait]
impl Backend for Switch {
    async fn deliver(&self, delivery: &Delivery) -> Outcome {
        self.0.load_full().deliver(delivery).await
    }
}
