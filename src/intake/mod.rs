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

pub use listener::{BindError, Listen, Listener, SocketSettings, default_socket};
pub use service::{LOOK_UP_TIME, Live, Policy, Service, Shadow};
pub use session::{End, Fault, Recall, Session, Step, Told};

use crate::activity::{Activity, Key, Parcel};
use crate::courier::{Desk, Given};
use crate::mail::{Address, Intake};
use crate::observe::{events, metrics};
use crate::queue::{Put, Queue, StorageError};
use crate::rules::{Addressing, Mixed, Reason, Reply};
use std::time::{Duration, Instant};

/// Time for all work at end of message (DESIGN section 4): below the 300 s of Postfix's `milter_content_timeout` and
/// the 600 s of its `lmtp_data_done_timeout`.
pub const END_TIME: Duration = Duration::from_secs(60);

/// How a message ended.
#[derive(Debug)]
pub struct Concluded {
    /// The answer where there is one for the whole message: the first reply that defers, or else the first that refuses.
    pub step: Step,
    /// The activities that were not recorded, for a protocol with an answer for each recipient.
    pub refused: Vec<(Key, Reply)>,
}

impl From<Step> for Concluded {
    fn from(step: Step) -> Self {
        Self { step, refused: Vec::new() }
    }
}

/// What the log says of an activity.
struct Summary {
    tenant: String,
    project: Option<String>,
    key: Key,
    address: Option<Address>,
}

impl Summary {
    /// The integration address is the recipient that reads as this tenant and project; those of other tenants are not
    /// in the activity.
    fn of(activity: &Activity, addressing: &Addressing) -> Self {
        let number = activity.project.as_ref().map(|project| project.number.to_lowercase());
        let is_exact = |address: &Address| {
            let mut readings = addressing.readings(address).into_iter();
            readings.any(|reading| reading.prefix == activity.tenant.prefix && reading.project == number)
        };
        let recipients = activity.envelope.recipients.iter().filter_map(|text| Address::parse(text).ok());
        let ours: Vec<Address> = recipients.filter(|address| addressing.covers(address)).collect();
        let address = ours.iter().find(|address| is_exact(address)).or(ours.first()).cloned();
        Self {
            tenant: activity.tenant.id.clone(),
            project: activity.project.as_ref().map(|project| project.number.clone()),
            key: activity.key.clone(),
            address,
        }
    }
}

/// Records what a message came to and says how the transaction ends.
pub async fn record(service: &Service, desk: &Desk, end: End) -> Concluded {
    let (parcel, queue_id, transaction, then, _in_flight, _reserved) = match end {
        End::Step(step) => return step.into(),
        End::Record { parcel, queue_id, transaction, then, in_flight, reserved } => {
            (parcel, queue_id, transaction, then, in_flight, reserved)
        }
    };
    let bytes = parcel.raw.len();
    let envelope = parcel.activities.first().map(|activity| activity.envelope.clone());
    let message_id = parcel.activities.first().and_then(|activity| activity.message_id.clone());
    let sender = envelope.as_ref().and_then(|envelope| envelope.sender.clone()).unwrap_or_default();
    let started = Instant::now();
    let summaries: Vec<Summary> =
        parcel.activities.iter().map(|activity| Summary::of(activity, &service.addressing)).collect();
    let outcomes = match desk {
        Desk::Queue(queue) => put(queue.as_ref(), parcel, summaries.len(), &queue_id).await,
        Desk::Direct(direct) => {
            direct.give(parcel).await.into_iter().map(|(_, given)| outcome(given)).collect()
        }
    };
    metrics::end_of_message(started.elapsed());
    let mut refused = Vec::new();
    for (Summary { tenant, project, key, address }, outcome) in summaries.into_iter().zip(outcomes) {
        let recipient = address.as_ref().map(Address::to_string);
        let who = events::Who {
            queue_id: &queue_id,
            tenant: Some(&tenant),
            sender: Some(&sender),
            recipient: recipient.as_deref(),
            transaction: Some(transaction),
            door: envelope.as_ref().map(|envelope| door(&envelope.intake)),
            client: envelope.as_ref().and_then(|envelope| envelope.client.as_deref()),
            message_id: message_id.as_deref(),
            key: Some(key.as_str()),
            recipients: envelope.as_ref().map_or(&[], |envelope| &envelope.recipients),
            detail: None,
        };
        match outcome {
            Ok(put) => {
                metrics::recorded_bytes(bytes);
                events::recorded(&who, project.as_deref(), key.as_str(), put == Put::Known);
            }
            Err((reason, detail)) => {
                let reply = service.texts.reply_with(reason, address.as_ref(), &detail);
                let detail = Some(detail.as_str());
                events::refused(&events::Who { detail, ..who }, "end-of-message", &reply);
                refused.push((key, reply));
            }
        }
    }
    let first = refused.iter().find(|(_, reply)| reply.is_deferral()).or(refused.first());
    let strips = service.policy.mixed == Mixed::Strip && matches!(then, Step::DeliverWithout(_));
    let step = match first {
        Some((_, reply)) if reply.is_deferral() || !strips => Step::Refuse(reply.clone()),
        _ => then,
    };
    Concluded { step, refused }
}

/// The name of a door, from an activity.
fn door(intake: &str) -> &'static str {
    let doors = [Intake::Milter, Intake::Lmtp, Intake::Explain];
    doors.map(Intake::as_str).into_iter().find(|door| *door == intake).unwrap_or_default()
}

/// Into the queue, all or none.
async fn put(
    queue: &dyn Queue,
    parcel: Parcel,
    count: usize,
    queue_id: &str,
) -> Vec<Result<Put, (Reason, String)>> {
    match queue.put(parcel).await {
        Ok(puts) => puts.into_iter().map(Ok).collect(),
        Err(error) => {
            events::fault(queue_id, "end-of-message", &error);
            let reason = match error {
                StorageError::Full(_) => Reason::QueueFull,
                _ => Reason::StorageFailing,
            };
            vec![Err((reason, String::new())); count]
        }
    }
}

/// The reply to an outcome of direct mode (DESIGN section 6).
fn outcome(given: Given) -> Result<Put, (Reason, String)> {
    let reason = match given {
        Given::Taken => return Ok(Put::New),
        Given::Refused(detail) => return Err((Reason::BackendRefused, detail)),
        Given::Unreachable => Reason::BackendUnreachable,
        Given::Busy => Reason::BackendBusy,
        Given::Misconfigured => Reason::BackendMisconfigured,
    };
    Err((reason, String::new()))
}
