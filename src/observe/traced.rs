//! Events as records of the trace.
//!
//! In: what an event says. Out: a record, if somebody keeps it.
//! Promise: addresses as `log.addresses` says; never subject, body, names of files, tokens.

use super::{
    events::{self, Who},
    log::shown,
};
use crate::rules::{Discard, Reply};
use crate::trace::{self, Record, Settings, What};
use std::{
    fmt::Display,
    sync::{
        LazyLock,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

/// Starts tracing. `create`: the file is made if it is not there.
pub fn start(settings: &Settings, create: bool) {
    trace::start(settings, create, events::trace);
}

/// A number for a transaction, given once: the microsecond of the first, and counted from there.
pub fn transaction() -> i64 {
    static NEXT: LazyLock<AtomicI64> = LazyLock::new(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        AtomicI64::new(i64::try_from(now.as_micros()).unwrap_or_default())
    });
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn of(what: What, who: &Who<'_>) -> Record {
    let owned = |text: Option<&str>| text.map(str::to_owned);
    Record {
        what,
        transaction: who.transaction,
        queue_id: Some(who.queue_id.to_owned()),
        key: owned(who.key),
        message_id: owned(who.message_id),
        sender: who.sender.filter(|sender| !sender.is_empty()).and_then(shown),
        recipient: who.recipient.and_then(shown),
        others: who.recipients.iter().filter_map(|address| shown(address)).collect(),
        tenant: owned(who.tenant),
        door: who.door,
        client: owned(who.client),
        detail: owned(who.detail),
        ..Record::default()
    }
}

/// A reply.
pub(super) fn answer(what: What, who: &Who<'_>, stage: &'static str, reply: &Reply) {
    trace::note(|| Record {
        stage: Some(stage),
        code: Some(reply.code),
        status: Some(reply.status),
        reason: Some(reply.reason.as_str()),
        ..of(what, who)
    });
}

pub(super) fn refused(who: &Who<'_>, stage: &'static str, reply: &Reply) {
    answer(if reply.is_deferral() { What::Deferred } else { What::Refused }, who, stage, reply);
}

pub(super) fn would_refuse(who: &Who<'_>, stage: &'static str, reply: &Reply) {
    answer(if reply.is_deferral() { What::WouldDefer } else { What::WouldRefuse }, who, stage, reply);
}

/// Nothing becomes of a message.
pub(super) fn discarded(what: What, who: &Who<'_>, why: Discard) {
    trace::note(|| Record {
        reason: Some(why.as_str()),
        detail: why.automatic().map(str::to_owned),
        ..of(what, who)
    });
}

/// An activity, or one that would be.
pub(super) fn recorded(what: What, who: &Who<'_>, project: Option<&str>) {
    trace::note(|| Record { project: project.map(str::to_owned), ..of(what, who) });
}

/// Only of a message that can be named: others cannot be found.
pub(super) fn fault(queue_id: &str, stage: &'static str, error: &dyn Display) {
    if !queue_id.is_empty() {
        trace::note(|| Record {
            what: What::Fault,
            queue_id: Some(queue_id.to_owned()),
            stage: Some(stage),
            detail: Some(error.to_string()),
            ..Record::default()
        });
    }
}

/// An attempt. `span`: how long it took, or until the next one.
pub(super) fn attempt(
    what: What,
    key: &str,
    tenant: &str,
    attempt: u32,
    span: Option<Duration>,
    detail: &str,
) {
    if !key.is_empty() {
        trace::note(|| Record {
            what,
            key: Some(key.to_owned()),
            tenant: Some(tenant.to_owned()),
            attempt: (attempt > 0).then_some(attempt),
            span,
            detail: Some(detail.to_owned()),
            ..Record::default()
        });
    }
}

pub(super) fn by_hand(word: &str, key: &str, tenant: &str, queue_id: Option<&str>) {
    if let Some(what) = What::by_hand(word) {
        trace::note(|| Record {
            what,
            key: Some(key.to_owned()),
            tenant: Some(tenant.to_owned()),
            queue_id: queue_id.map(str::to_owned),
            ..Record::default()
        });
    }
}
