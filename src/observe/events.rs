//! Every event we log, a function each: the vocabulary is this file.
//!
//! error: we serve nobody; warn: an admin should look; info: a verdict, an attempt, life cycle; debug: the rest.
//! Never subject, body, names of attachments, tokens.

use crate::rules::Reply;
use std::{fmt::Display, path::Path, time::Duration};
use tracing::{debug, error, info, warn};

/// A socket is open. `door`: `milter` or `lmtp`.
pub fn listening(door: &'static str, listen: &dyn Display) {
    info!(door, %listen, "listening");
}

/// The service takes mail.
pub fn started() {
    info!(version = env!("CARGO_PKG_VERSION"), "started");
}

/// A signal asks us to stop; messages in flight are finished first.
pub fn stopping(in_flight: usize) {
    info!(in_flight, "stopping");
}

/// Everything is stopped. `cut_off`: messages that did not finish in time; their clients keep them.
pub fn stopped(cut_off: usize) {
    info!(cut_off, "stopped");
}

/// The directory file was read.
pub fn directory_read(path: &Path, tenants: usize, addresses: usize) {
    info!(path = %path.display(), tenants, addresses, "directory read");
}

/// A new version of the directory file is broken; the old one stays.
pub fn directory_refused(error: &dyn Display) {
    warn!(%error, "new directory file refused, the old one stays in use");
}

/// The directory cannot answer; the message is deferred.
pub fn directory_unavailable(queue_id: &str, error: &dyn Display) {
    warn!(queue_id, %error, "directory unavailable");
}

/// The directory cannot be reached, and answers past their time are used meanwhile.
pub fn directory_stale(error: &dyn Display) {
    warn!(%error, "directory unavailable, stale answers are used");
}

/// The socket could not accept a connection; we pause and go on.
pub fn accept_failed(error: &dyn Display, pause: Duration) {
    warn!(%error, pause_ms = millis(pause), "accept failed");
}

/// A message or a recipient was refused or deferred: one line for each reply we give.
pub fn refused(queue_id: &str, tenant: Option<&str>, stage: &'static str, reply: &Reply) {
    let (code, reason) = (reply.code, reply.reason.as_str());
    info!(
        queue_id,
        tenant,
        stage,
        verdict = verdict(reply),
        reply = code,
        status = reply.status,
        reason,
        "refused"
    );
}

/// A refusal that the sender does not hear of: the tenant's recipients were taken out of a mixed transaction.
pub fn stripped(queue_id: &str, tenant: &str, reply: &Reply) {
    warn!(
        queue_id,
        tenant,
        verdict = "strip",
        reply = reply.code,
        reason = reply.reason.as_str(),
        "stripped"
    );
}

/// An activity is on disk; the client hears 250. `known`: the same e-mail was recorded before.
pub fn recorded(queue_id: &str, tenant: &str, project: Option<&str>, key: &str, known: bool) {
    info!(queue_id, tenant, project, key, known, verdict = "record", "recorded");
}

/// Shadow mode: this reply would have been given.
pub fn would_refuse(queue_id: &str, tenant: Option<&str>, stage: &'static str, reply: &Reply) {
    let verdict = if reply.is_deferral() { "would_defer" } else { "would_reject" };
    info!(queue_id, tenant, stage, verdict, reply = reply.code, reason = reply.reason.as_str(), "shadow");
}

/// Shadow mode: this activity would have been recorded.
pub fn would_record(queue_id: &str, tenant: &str, project: Option<&str>) {
    info!(queue_id, tenant, project, verdict = "would_record", "shadow");
}

/// A message without integration recipient; counted among debug lines, for a busy server has nothing else.
pub fn passed(queue_id: &str) {
    debug!(queue_id, verdict = "pass", "passed");
}

/// Something of ours failed; the client is told to try again.
pub fn fault(queue_id: &str, stage: &'static str, error: &dyn Display) {
    error!(queue_id, stage, %error, "fault");
}

/// The backend has the activity.
pub fn delivered(key: &str, tenant: &str, attempt: u32, elapsed: Duration) {
    info!(key, tenant, attempt, elapsed_ms = millis(elapsed), "delivered");
}

/// The attempt failed for now.
pub fn deferred(key: &str, tenant: &str, attempt: u32, delay: Duration, reason: &str) {
    info!(key, tenant, attempt, next_in_ms = millis(delay), reason, "delivery deferred");
}

/// Direct mode: the attempt failed, and the client is told to come again.
pub fn not_delivered(key: &str, tenant: &str, elapsed: Duration, reason: &str) {
    info!(key, tenant, elapsed_ms = millis(elapsed), reason, "not delivered");
}

/// Direct mode: the backend refuses our settings; clients are told to come again.
pub fn backend_refuses_us(reason: &str) {
    error!(reason, "backend refuses our settings. Check backend.url and the credentials in [backend]");
}

/// A person must look at this activity.
pub fn held(key: &str, tenant: &str, attempt: u32, reason: &str) {
    warn!(key, tenant, attempt, reason, "held");
}

/// The backend refuses our settings; only probes are sent.
pub fn courier_paused(reason: &str, next_probe: Duration) {
    error!(
        reason,
        next_probe_ms = millis(next_probe),
        "backend refuses our settings: deliveries are paused. Check backend.url and the credentials in [backend]"
    );
}

/// A file with a secret has a new version, and it is in use.
pub fn secret_read(path: &Path) {
    info!(path = %path.display(), "secret read again");
}

/// A new version of a file with a secret is broken; the old secret stays.
pub fn secret_refused(error: &dyn Display) {
    warn!(%error, "new secret refused, the old one stays in use");
}

/// Several activities in a row had no answer; only probes are sent. Once at the beginning, then with each probe.
pub fn backend_down(reason: &str, next_probe: Duration) {
    warn!(reason, next_probe_ms = millis(next_probe), "backend does not answer: deliveries are paused");
}

/// The backend answers again.
pub fn courier_resumed() {
    info!("backend answers again: deliveries resumed");
}

/// Somebody was told of held activities.
pub fn notice_sent(activities: usize) {
    info!(activities, "notice of held activities sent");
}

/// A notice could not be sent.
pub fn notice_not_sent(error: &dyn Display) {
    warn!(%error, "notice of held activities not sent");
}

/// The queue's database or spool failed.
pub fn queue_trouble(error: &dyn Display) {
    error!(%error, "queue trouble");
}

fn verdict(reply: &Reply) -> &'static str {
    if reply.is_deferral() { "defer" } else { "reject" }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
