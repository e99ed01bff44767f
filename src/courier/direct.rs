//! Gives activities to the backend while the SMTP client waits (`delivery = "direct"`): no queue, and the outcome is the
//! reply.
//!
//! In: a parcel. Out: what became of each of its activities, within a time.
//! Promise: the key is the same on the client's retry, so that a backend that took an activity, and whose answer was
//! lost, takes it once. Each activity is a delivery of its own.
//! Fails: never; what cannot be delivered now is deferred.

use crate::activity::{Key, Parcel};
use crate::backend::{Backend, Delivery, Fleeting, Outcome, Trouble};
use crate::observe::events;
use std::{sync::Arc, time::Duration};
use tokio::{sync::Semaphore, time::Instant};

/// Time for all activities of a message: below the 60 s of an end of message, so that the reply can say why.
const TIME: Duration = Duration::from_secs(52);

/// Delivers at once.
pub struct Direct {
    backend: Arc<dyn Backend>,
    /// One for each attempt that may run.
    slots: Semaphore,
}

/// What became of an activity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    /// The backend has it.
    Taken,
    /// It will not have it; what it says of it, if anything.
    Refused(String),
    /// It cannot be asked now, or does not answer.
    Unreachable,
    /// It has too much to do.
    Busy,
    /// Our settings are wrong.
    Misconfigured,
}

impl Direct {
    /// Delivers over `backend`, `max_in_flight` at a time.
    pub fn new(backend: Arc<dyn Backend>, max_in_flight: usize) -> Self {
        Self { backend, slots: Semaphore::new(max_in_flight) }
    }

    /// Makes one attempt for each activity, one after the other; stops at the first that must come again, because the
    /// client will come with all of them.
    pub async fn give(&self, parcel: Parcel) -> Vec<(Key, Given)> {
        let deadline = Instant::now() + TIME;
        let Parcel { activities, cuts, raw, .. } = parcel;
        let mut given = Vec::with_capacity(activities.len());
        let mut later = None;
        for activity in activities {
            let key = activity.key.clone();
            let became = match &later {
                Some(later) => Given::clone(later),
                None => {
                    let json = serde_json::to_vec(&activity).unwrap_or_default().into();
                    let delivery =
                        Delivery { activity, json, cuts: cuts.clone(), raw: raw.clone(), replay: false };
                    let attempt = tokio::time::timeout_at(deadline, self.attempt(&delivery));
                    attempt.await.unwrap_or(Given::Unreachable)
                }
            };
            if !matches!(became, Given::Taken | Given::Refused(_)) {
                later = Some(became.clone());
            }
            given.push((key, became));
        }
        given
    }

    async fn attempt(&self, delivery: &Delivery) -> Given {
        let activity = &delivery.activity;
        let which = events::Which {
            queue_id: activity.envelope.queue_id.as_deref().unwrap_or_default(),
            key: activity.key.as_str(),
            tenant: activity.tenant.id.as_str(),
        };
        let Ok(_slot) = self.slots.acquire().await else { return Given::Unreachable };
        let started = Instant::now();
        match self.backend.deliver(delivery, &Fleeting::default()).await {
            Outcome::Taken => {
                events::delivered(&which, 1, started.elapsed());
                Given::Taken
            }
            Outcome::Refused { detail, .. } => Given::Refused(detail),
            Outcome::Again { trouble, reason, .. } if trouble != Trouble::Denied => {
                events::not_delivered(&which, started.elapsed(), &reason);
                if trouble == Trouble::Busy { Given::Busy } else { Given::Unreachable }
            }
            Outcome::Again { reason, .. } | Outcome::Misconfigured { reason, .. } => {
                events::backend_refuses_us(which.queue_id, &reason);
                Given::Misconfigured
            }
        }
    }
}
