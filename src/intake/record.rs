//! Recording: what a message came to goes into the queue, or to the backend at once, and the transaction gets its answer.
//!
//! In: the [`End`] of a message. Out: the answer, and which of its activities were not recorded.
//! Promise: an answer that takes the message comes after its activities are on disk (or the backend has them).
//! Fails: what cannot be stored is a reply of 4xx, and a log line with the queue id.

use super::{Service, fate::Then};
use crate::activity::{Activity, Key, Kind, Parcel};
use crate::courier::{Desk, Given};
use crate::mail::{Address, Intake, Reservation, is_blank};
use crate::observe::{Promise, events, metrics};
use crate::queue::{Put, Queue, StorageError};
use crate::rules::{Addressing, Mixed, Reason, Reply};
use std::{collections::HashSet, time::Instant};
use tokio_util::task::task_tracker::TaskTrackerToken;

/// What a message came to.
#[derive(Debug)]
pub struct End {
    /// What becomes of it in Postfix, if all that is pending is recorded.
    pub then: Then,
    /// What is to be recorded; none if nothing is.
    pub pending: Option<Pending>,
    /// Recipients that are refused unless the e-mail is known.
    pub recalls: Vec<Recall>,
}

/// Activities that wait to be recorded.
#[derive(Debug)]
pub struct Pending {
    /// The activities.
    pub parcel: Parcel,
    /// For the log.
    pub(super) queue_id: String,
    /// For the trace: which transaction it was.
    pub(super) transaction: i64,
    /// For one of its tenants it is private: the log has no address of it.
    pub(super) is_private: bool,
    /// Shows the drain that this message still wants its answer.
    pub(super) in_flight: Option<TaskTrackerToken>,
    /// Memory that the message has, until it is answered.
    pub(super) reserved: Reservation,
}

/// A recipient that the rules refuse, unless the e-mail is known: it may have come by the milter, whose sender had a login.
#[derive(Clone, Debug)]
pub struct Recall {
    /// Index among [`super::Session::targets`].
    pub target: usize,
    /// The e-mail's key for this target.
    pub key: Key,
}

/// How a message ended.
#[derive(Debug)]
pub struct Concluded {
    /// The answer where there is one for the whole message; an error is the first reply that defers, or else the first that
    /// refuses.
    pub answer: Result<Then, Reply>,
    /// The activities that were not recorded, for a protocol with an answer for each recipient.
    pub refused: Vec<(Key, Reply)>,
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
    let End { then, pending, .. } = end;
    let Some(pending) = pending else { return Concluded { answer: Ok(then), refused: Vec::new() } };
    let Pending { parcel, queue_id, transaction, is_private, in_flight: _in_flight, reserved: _reserved } =
        pending;
    let bytes = parcel.raw.len();
    let envelope = parcel.activities.first().map(|activity| activity.envelope.clone());
    let message_id = parcel.activities.first().and_then(|activity| activity.message_id.clone());
    let sender = envelope.as_ref().and_then(|envelope| envelope.sender.clone()).unwrap_or_default();
    let started = Instant::now();
    let summaries: Vec<Summary> =
        parcel.activities.iter().map(|activity| Summary::of(activity, &service.addressing)).collect();
    for activity in &parcel.activities {
        if let Some(seen) = contradiction(activity, &service.addressing) {
            events::broken(Promise::Parties, activity.key.as_str(), &seen);
        }
    }
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
        let who = if is_private { without_people(&who) } else { who };
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
    let strips = service.policy.mixed == Mixed::Strip && matches!(then, Then::DeliverWithout(_));
    let answer = match first {
        Some((_, reply)) if reply.is_deferral() || !strips => Err(reply.clone()),
        _ => Ok(then),
    };
    Concluded { answer, refused }
}

/// What the rules never let an activity be; no address is in it.
fn contradiction(activity: &Activity, addressing: &Addressing) -> Option<&'static str> {
    let Activity { owner, participants, .. } = activity;
    if is_blank(&activity.subject) || owner.user_id.is_empty() {
        return Some("no subject, or no owner");
    }
    let (mut ids, mut addresses) = (HashSet::from([(Kind::User, owner.user_id.as_str())]), HashSet::new());
    for person in participants.iter() {
        let address = Address::parse(&person.address).ok();
        if address.as_ref().is_some_and(|address| addressing.covers(address)) {
            return Some("an integration address is a participant");
        }
        let is_new = address.is_none_or(|address| addresses.insert(address));
        if !is_new || !person.id.as_deref().is_none_or(|id| ids.insert((person.kind, id))) {
            return Some("somebody is in it twice");
        }
    }
    None
}

/// What is told of a message that is private for another of its tenants.
fn without_people<'a>(who: &events::Who<'a>) -> events::Who<'a> {
    let &events::Who { queue_id, tenant, transaction, door, key, .. } = who;
    events::Who { queue_id, tenant, transaction, door, key, ..events::Who::default() }
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
        Ok(puts) => {
            if puts.len() != count {
                let seen = format_args!("{} of {count} activities were stored", puts.len());
                events::broken(Promise::AllOrNone, "", &seen);
            }
            puts.into_iter().map(Ok).collect()
        }
        Err(error) => {
            events::fault(queue_id, "end-of-message", &error);
            let reason = match error {
                StorageError::Full(_) => Reason::QueueFull,
                StorageError::Busy(_) | StorageError::Leaving => Reason::QueueUnavailable,
                StorageError::Gone(_) | StorageError::Other(_) => Reason::StorageFailing,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::{Field, Owner, Participant};
    use crate::mail::Domain;

    fn person(kind: Kind, id: Option<&str>, address: &str) -> Participant {
        let (id, address) = (id.map(str::to_owned), address.to_owned());
        Participant { kind, id, customer_id: None, address, name: None, field: Field::To }
    }

    // R1.
    #[test]
    fn a_contradiction_is_seen() {
        let explained: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/messages/plain.json")).unwrap();
        let good = explained["explanation"]["activities"][0]["activity"].clone();
        let good: Activity = serde_json::from_value(good).unwrap();
        let addressing = Addressing {
            domains: vec![Domain::parse("severamail.test").unwrap()],
            recipient_delimiter: String::new(),
        };
        let seen = |activity: &Activity| contradiction(activity, &addressing);
        let owner = Owner { user_id: "u-anna".into(), address: "anna@mycompany.test".into(), name: None };
        let good = Activity { owner, participants: [].into(), ..good };
        let with = |people: Vec<Participant>| Activity { participants: people.into(), ..good.clone() };
        let user = |id, address| person(Kind::User, Some(id), address);
        let other = |address| person(Kind::External, None, address);
        assert_eq!(seen(&good), None);
        assert_eq!(seen(&with(vec![user("u-esa", "e@y.test"), other("x@y.test"), other("z@y.test")])), None);
        assert_eq!(seen(&with(vec![person(Kind::Contact, Some("u-anna"), "c@y.test")])), None);
        for (what, wrong) in [
            ("no subject, or no owner", Activity { subject: " ".into(), ..good.clone() }),
            (
                "no subject, or no owner",
                Activity { owner: Owner { user_id: String::new(), ..good.owner.clone() }, ..good.clone() },
            ),
            ("an integration address is a participant", with(vec![other("a@SEVERAMAIL.test")])),
            ("somebody is in it twice", with(vec![user("u-anna", "anna@home.test")])),
            ("somebody is in it twice", with(vec![other("x@y.test"), other("X@Y.test")])),
        ] {
            assert_eq!(seen(&wrong), Some(what));
        }
    }
}
