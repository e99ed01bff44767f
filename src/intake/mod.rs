//! Protocol in, decision out: the doors through which messages come.
//!
//! In: what Postfix says over the milter protocol or LMTP. Out: a [`Step`] for each command, a parcel for the queue.
//! Promise: a message is answered only when its activities are on disk; one that fails is refused or deferred with a
//! text, never dropped; a fault in one message never reaches another.
//! Fails: every fault of ours is a 451 and a log line with the queue id.

mod listener;
pub mod lmtp;
pub mod milter;
mod service;
mod session;

pub use listener::{BindError, Listen, Listener, SocketSettings};
pub use service::{LOOK_UP_TIME, Policy, Service, Shadow};
pub use session::{End, Fault, Session, Step};

use crate::observe::events;
use crate::queue::{Put, PutError, Queue};
use crate::rules::Reason;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Time for all work at end of message (DESIGN section 4): below the 300 s of Postfix's `milter_content_timeout` and
/// the 600 s of its `lmtp_data_done_timeout`.
pub const END_TIME: Duration = Duration::from_secs(60);

/// Stores what a message came to and says how the transaction ends.
pub async fn record(service: &Service, queue: &Arc<Queue>, end: End) -> Step {
    let (parcel, queue_id, then, _in_flight) = match end {
        End::Step(step) => return step,
        End::Record { parcel, queue_id, then, in_flight } => (parcel, queue_id, then, in_flight),
    };
    let summary: Vec<_> = parcel
        .activities
        .iter()
        .map(|a| (a.tenant.id.clone(), a.project.as_ref().map(|p| p.number.clone()), a.key.clone()))
        .collect();
    let address = parcel.activities.first().and_then(|a| a.envelope.recipients.first()).cloned();
    match queue.put(parcel, SystemTime::now()).await {
        Ok(puts) => {
            for ((tenant, project, key), put) in summary.iter().zip(puts) {
                events::recorded(&queue_id, tenant, project.as_deref(), key.as_str(), put == Put::Known);
            }
            then
        }
        Err(error) => {
            events::fault(&queue_id, "end-of-message", &error);
            let reason = match error {
                PutError::Full(_) => Reason::QueueFull,
                PutError::Write(_) => Reason::StorageFailing,
            };
            let address = address.and_then(|a| crate::mail::Address::parse(&a).ok());
            let reply = service.texts.reply(reason, address.as_ref());
            let tenant = summary.first().map(|(tenant, ..)| tenant.as_str());
            events::refused(&queue_id, tenant, "end-of-message", &reply);
            Step::Refuse(reply)
        }
    }
}
