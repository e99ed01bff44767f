//! One attempt to give an activity to the business system, and what became of it.
//!
//! In: a [`Delivery`]. Out: an [`Outcome`], by what the courier does next.
//! Promise: every attempt carries the same idempotency key; files are streamed, never held whole.
//! Fails: never; a failure is an outcome.

mod http;

pub use http::{HttpBackend, Settings};

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
        /// For people.
        reason: String,
    },
    /// Any other 4xx: a person looks at it. `detail` (RFC 9457), cut to one printable line.
    Refused {
        /// For people.
        detail: String,
    },
    /// 401, 403, 404, 410, redirects: our settings are wrong, not the activity.
    Misconfigured {
        /// The status that said so.
        status: u16,
    },
}

/// A business system. A trait because it is the world outside: any system over HTTP here, Severa's API later.
#[async_trait]
pub trait Backend: Send + Sync {
    /// Makes one attempt.
    async fn deliver(&self, delivery: &Delivery) -> Outcome;
}
