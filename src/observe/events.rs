//! Every event we log, a function each: the vocabulary is this file.
//!
//! error: we serve nobody; warn: an admin should look; info: a verdict, an attempt, life cycle; debug: the rest.
//! Never subject, body, names of attachments, tokens.
//!
//! The line shows the fields in the order in which they stand here: reply, addresses, client, tenant, project, key,
//! attempt, the rest, and last the text of an error.

use super::{
    Promise, ids,
    limit::{Limiter, unsaid},
    log::shown,
    metrics, recent, traced, versions,
};
use crate::rules::{Discard, Reply};
use crate::trace::{Report, What};
use std::{
    fmt::Display,
    path::Path,
    time::{Duration, SystemTime},
};

/// A line with its id.
macro_rules! event {
    ($level:ident, $id:ident, $($rest:tt)*) => { tracing::$level!(message_id = ids::$id, $($rest)*) };
}

/// A line that may repeat with every message: ten a minute.
macro_rules! limited {
    ($level:ident, $id:ident, $($rest:tt)*) => {{
        static LIMIT: Limiter = Limiter::new(stringify!($id));
        // Unit tests of all rooms are one process.
        let admitted = if cfg!(test) { Some(0) } else { LIMIT.admit() };
        if let Some(suppressed) = admitted {
            let suppressed = (suppressed > 0).then_some(suppressed);
            event!($level, $id, suppressed, $($rest)*);
        }
    }};
}

/// What a line about a message or a recipient says of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Who<'a> {
    /// Postfix's queue id.
    pub queue_id: &'a str,
    /// The tenant's id.
    pub tenant: Option<&'a str>,
    /// The envelope sender.
    pub sender: Option<&'a str>,
    /// The integration address.
    pub recipient: Option<&'a str>,
    /// Which transaction, by a number given once.
    pub transaction: Option<i64>,
    /// `milter` or `lmtp`.
    pub door: Option<&'static str>,
    /// The SMTP client's IP address.
    pub client: Option<&'a str>,
    /// Message-ID without brackets.
    pub message_id: Option<&'a str>,
    /// The activity's key.
    pub key: Option<&'a str>,
    /// Recipients of the envelope.
    pub recipients: &'a [String],
    /// What the backend said (direct mode).
    pub detail: Option<&'a str>,
}

/// What a line about an activity on its way to the backend says of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Which<'a> {
    /// Postfix's queue id of the e-mail, if it is known.
    pub queue_id: &'a str,
    /// Its key.
    pub key: &'a str,
    /// The tenant's id.
    pub tenant: &'a str,
}

/// A socket is open. `door`: `milter` or `lmtp`.
pub fn listening(door: &'static str, listen: &dyn Display) {
    event!(info, LISTENING, door, %listen, "listening");
}

/// The service takes mail.
pub fn started() {
    event!(info, STARTED, version = env!("CARGO_PKG_VERSION"), "started");
}

/// A signal asks us to stop; messages in flight are finished first.
pub fn stopping(in_flight: usize) {
    event!(info, STOPPING, in_flight, "stopping");
}

/// Everything is stopped. `cut_off`: messages that did not finish in time; their clients keep them.
pub fn stopped(cut_off: usize) {
    event!(info, STOPPED, cut_off, "stopped");
}

/// New settings are in use; `restart` names those that count only after a restart.
pub fn reloaded(path: &Path, restart: &str) {
    versions::in_order(versions::Kind::Configuration, path);
    versions::wait_for_restart(restart);
    if restart.is_empty() {
        event!(info, RELOADED, "configuration read again");
    } else {
        event!(warn, RELOADED, restart, "configuration read again; some keys count only after a restart");
    }
}

/// New settings are wrong; the old ones stay.
pub fn reload_refused(path: &Path, error: &dyn Display) {
    versions::refused(versions::Kind::Configuration, path, error.to_string());
    event!(error, RELOAD_REFUSED, %error, "new configuration refused, the old one stays in use");
}

/// A setting works, and probably not as it was meant. `warning` names file, line and key.
pub fn setting_doubtful(warning: &str) {
    event!(warn, SETTING_DOUBTFUL, warning, "a setting is doubtful");
}

/// The service works as root, because the queue's directory is root's.
pub fn works_as_root(directory: &Path) {
    event!(
        warn,
        WORKS_AS_ROOT,
        directory = %directory.display(),
        "the service works as root, because the queue's directory is root's: give it to a user of its own"
    );
}

/// Somebody called the admin door by a name that is not this machine's.
pub fn admin_misdirected(host: &str) {
    limited!(
        warn,
        ADMIN_MISDIRECTED,
        host,
        "a request to the admin door names another host: see admin.hosts"
    );
}

/// A person did this with an activity; for the trace alone, where one line of the log says it of many.
pub fn by_hand(what: &str, key: &str, tenant: &str, queue_id: Option<&str>) {
    traced::by_hand(what, key, tenant, queue_id);
}

/// A person changed an activity on the status page. `what`: `retried` or `dropped`.
pub fn changed_on_page(what: &'static str, key: &str, tenant: &str, queue_id: Option<&str>) {
    traced::by_hand(what, key, tenant, queue_id);
    event!(info, QUEUE_CHANGED, queue_id, tenant, key, what, door = "admin", "queue changed by hand");
}

/// Something is to be said of the trace.
pub fn trace(report: &Report) {
    match report {
        Report::Aside { path, aside, why } => {
            let (path, aside) = (path.display(), aside.display());
            event!(warn, TRACE_ASIDE, %path, %aside, why, "the trace is damaged: moved aside, and begun anew");
        }
        Report::Trouble { path, message } => {
            limited!(
                warn,
                TRACE_UNKEPT,
                path = %path.display(),
                error = message,
                "the trace cannot be written: mail goes on, and what happens to it is not kept"
            );
        }
        Report::Replaced(path) => {
            let path = path.display();
            event!(warn, TRACE_REPLACED, %path, "the trace was moved away or replaced: what is there now is written");
        }
        Report::GoesOn => event!(info, TRACE_GOES_ON, "the trace is written again"),
        Report::Lost(records) => {
            limited!(warn, TRACE_LOST, records, "the trace has gaps: records were not kept")
        }
    }
}

/// A person changed an activity on the command line. `what`: `retried`, `held` or `dropped`; `uid`: who it was.
pub fn activity_changed(what: &'static str, uid: u32, key: &str, tenant: &str, queue_id: &str) {
    traced::by_hand(what, key, tenant, Some(queue_id).filter(|queue_id| !queue_id.is_empty()));
    event!(info, QUEUE_CHANGED, queue_id, tenant, key, what, uid, "queue changed by hand");
}

/// A person has activities sent again that were delivered since then; of one tenant, if it is named.
pub fn redelivered(uid: u32, activities: usize, since: String, tenant: &str) {
    let (what, tenant) = ("redelivered", Some(tenant).filter(|tenant| !tenant.is_empty()));
    event!(info, QUEUE_CHANGED, what, uid, activities, since, tenant, "queue changed by hand");
}

/// A person has moved activities from one queue to another.
pub fn queue_moved(uid: u32, activities: usize, from: &str, to: &str) {
    let what = "moved";
    event!(info, QUEUE_CHANGED, what, uid, activities, from, to, "queue changed by hand");
}

/// Delivered activities that were kept went before their time: their room on the disk, or in the queue, is wanted.
pub fn kept_gone(activities: u64) {
    limited!(warn, KEPT_GONE, activities, "delivered activities are kept no longer: their room is wanted");
}

/// `queue.keep_delivered` is off: so many that were kept are dropped.
pub fn kept_off(activities: u64) {
    event!(
        warn,
        KEPT_OFF,
        activities,
        "queue.keep_delivered is off: delivered activities that were kept are dropped"
    );
}

/// The directory file was read.
pub fn directory_read(path: &Path, tenants: usize, addresses: usize) {
    versions::in_order(versions::Kind::Directory, path);
    event!(info, DIRECTORY_READ, path = %path.display(), tenants, addresses, "directory read");
}

/// A new version of the directory file is broken, names nobody or cannot be read; the old one stays.
pub fn directory_refused(path: &Path, error: &dyn Display) {
    versions::refused(versions::Kind::Directory, path, error.to_string());
    event!(warn, DIRECTORY_REFUSED, %error, "new directory file refused, the old one stays in use");
}

/// The directory cannot answer; the message is deferred.
pub fn directory_unavailable(queue_id: &str, error: &dyn Display) {
    limited!(warn, DIRECTORY_UNAVAILABLE, queue_id, %error, "directory unavailable");
}

/// The directory cannot be reached, and answers past their time are used meanwhile.
pub fn directory_stale(error: &dyn Display) {
    limited!(warn, DIRECTORY_STALE, %error, "directory unavailable, stale answers are used");
}

/// What was learnt of tenants is past its time, as somebody said; an empty prefix: of all.
pub fn directory_expired(prefixes: &[String]) {
    let all = prefixes.iter().any(String::is_empty);
    let tenants = if all { "all".to_owned() } else { prefixes.join(", ") };
    event!(info, DIRECTORY_EXPIRED, tenants, "directory is asked anew");
}

/// The socket could not accept a connection; we pause and go on.
pub fn accept_failed(error: &dyn Display, pause: Duration) {
    limited!(warn, ACCEPT_FAILED, pause_ms = millis(pause), %error, "accept failed");
}

/// There is no place for another connection at this door, and nobody who could make room.
pub fn door_full(door: &'static str, most: usize) {
    limited!(warn, DOOR_FULL, door, most, "no room for more connections");
}

/// A connection was closed: `idle`, to make room for another; `slow`: it kept us waiting.
pub fn hung_up(door: &'static str, why: &'static str, idle: Duration) {
    limited!(warn, HUNG_UP, door, why, idle_s = idle.as_secs(), "hung up");
}

/// A message or a recipient was refused or deferred: one line for each reply we give.
pub fn refused(who: &Who<'_>, stage: &'static str, reply: &Reply) {
    traced::refused(who, stage, reply);
    let Who { queue_id, tenant, client, .. } = *who;
    let (sender, recipient) = (who.sender.and_then(shown), who.recipient.and_then(shown));
    let (code, reason) = (reply.code, reply.reason.as_str());
    event!(
        info,
        REFUSED,
        queue_id,
        reply = code,
        status = reply.status,
        reason,
        sender = sender.as_deref(),
        recipient = recipient.as_deref(),
        client,
        tenant,
        stage,
        verdict = verdict(reply),
        "refused"
    );
    if stage == "rcpt" {
        metrics::recipient_refused(verdict(reply), reason);
    } else {
        metrics::message(verdict(reply), reason);
    }
    let (queue_id, sender) = (queue_id.to_owned(), sender.filter(|sender| !sender.is_empty()));
    recent::refused(recent::Refusal { at: SystemTime::now(), queue_id, code, reason, sender, recipient });
}

/// A refusal that the sender does not hear of: the tenant's recipients were taken out of a mixed transaction.
pub fn stripped(who: &Who<'_>, reply: &Reply) {
    traced::answer(What::Stripped, who, "end-of-header", reply);
    let Who { queue_id, tenant, client, .. } = *who;
    let (sender, recipient) = (who.sender.and_then(shown), who.recipient.and_then(shown));
    metrics::message("strip", reply.reason.as_str());
    event!(
        warn,
        STRIPPED,
        queue_id,
        reply = reply.code,
        status = reply.status,
        reason = reply.reason.as_str(),
        sender = sender.as_deref(),
        recipient = recipient.as_deref(),
        client,
        tenant,
        verdict = "strip",
        "stripped"
    );
}

/// Nothing becomes of a message for a tenant, and nobody is told.
pub fn discarded(who: &Who<'_>, why: Discard) {
    traced::discarded(What::Discarded, who, why);
    let Who { queue_id, tenant, client, .. } = *who;
    let (sender, recipient) = (who.sender.and_then(shown), who.recipient.and_then(shown));
    metrics::message("discard", why.as_str());
    event!(
        info,
        DISCARDED,
        queue_id,
        reason = why.as_str(),
        sender = sender.as_deref(),
        recipient = recipient.as_deref(),
        client,
        tenant,
        automatic = why.automatic(),
        verdict = "discard",
        "discarded"
    );
}

/// Shadow mode: this would have been discarded.
pub fn would_discard(who: &Who<'_>, why: Discard) {
    traced::discarded(What::WouldDiscard, who, why);
    let Who { queue_id, tenant, client, .. } = *who;
    let (sender, recipient) = (who.sender.and_then(shown), who.recipient.and_then(shown));
    metrics::message("would_discard", why.as_str());
    event!(
        info,
        WOULD_DISCARD,
        queue_id,
        reason = why.as_str(),
        sender = sender.as_deref(),
        recipient = recipient.as_deref(),
        client,
        tenant,
        automatic = why.automatic(),
        verdict = "would_discard",
        "would be discarded"
    );
}

/// An activity is on disk; the client hears 250. `known`: the same e-mail was recorded before.
pub fn recorded(who: &Who<'_>, project: Option<&str>, key: &str, known: bool) {
    traced::recorded(
        if known { What::Known } else { What::Recorded },
        &Who { key: Some(key), ..*who },
        project,
    );
    let Who { queue_id, tenant, client, .. } = *who;
    let (sender, recipient) = (who.sender.and_then(shown), who.recipient.and_then(shown));
    metrics::recorded();
    recent::count(|step| step.recorded += 1);
    event!(
        info,
        RECORDED,
        queue_id,
        sender = sender.as_deref(),
        recipient = recipient.as_deref(),
        client,
        tenant,
        project,
        key,
        known,
        verdict = "record",
        "recorded"
    );
}

/// Some of whom the message names were not looked at: too many, no addresses, or cut off by Postfix. Nothing if all were.
pub fn people_left_out(queue_id: &str, omitted: usize, skipped: usize, cut_fields: usize) {
    if omitted + skipped + cut_fields > 0 {
        limited!(info, PEOPLE_LEFT_OUT, queue_id, omitted, skipped, cut_fields, "not everybody is listed");
    }
}

/// Shadow mode: this reply would have been given.
pub fn would_refuse(who: &Who<'_>, stage: &'static str, reply: &Reply) {
    traced::would_refuse(who, stage, reply);
    let verdict = if reply.is_deferral() { "would_defer" } else { "would_reject" };
    let Who { queue_id, tenant, client, .. } = *who;
    let (sender, recipient) = (who.sender.and_then(shown), who.recipient.and_then(shown));
    metrics::message(verdict, reply.reason.as_str());
    event!(
        info,
        WOULD_REFUSE,
        queue_id,
        reply = reply.code,
        status = reply.status,
        reason = reply.reason.as_str(),
        sender = sender.as_deref(),
        recipient = recipient.as_deref(),
        client,
        tenant,
        stage,
        verdict,
        "would be refused"
    );
}

/// Shadow mode: this activity would have been recorded.
pub fn would_record(who: &Who<'_>, project: Option<&str>) {
    traced::recorded(What::WouldRecord, who, project);
    let Who { queue_id, tenant, client, .. } = *who;
    let (sender, recipient) = (who.sender.and_then(shown), who.recipient.and_then(shown));
    metrics::message("would_record", "");
    event!(
        info,
        WOULD_RECORD,
        queue_id,
        sender = sender.as_deref(),
        recipient = recipient.as_deref(),
        client,
        tenant,
        project,
        verdict = "would_record",
        "would be recorded"
    );
}

/// A message without integration recipient; counted among debug lines, for a busy server has nothing else.
pub fn passed(queue_id: &str) {
    metrics::passed();
    recent::count(|step| step.passed += 1);
    event!(debug, PASSED, queue_id, verdict = "pass", "passed");
}

/// Something of ours failed; the client is told to try again.
pub fn fault(queue_id: &str, stage: &'static str, error: &dyn Display) {
    traced::fault(queue_id, stage, error);
    metrics::fault(stage);
    limited!(error, FAULT, queue_id, stage, %error, "fault");
}

/// The backend has the activity.
pub fn delivered(which: &Which<'_>, attempt: u32, elapsed: Duration) {
    let Which { queue_id, key, tenant } = *which;
    traced::attempt(What::Delivered, key, tenant, attempt, Some(elapsed), "");
    metrics::delivery("taken", Some(elapsed));
    event!(info, DELIVERED, queue_id, tenant, key, attempt, elapsed_ms = millis(elapsed), "delivered");
}

/// The times of an attempt that failed.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// How long it took.
    pub elapsed: Duration,
    /// In how long the next one begins.
    pub delay: Duration,
}

/// The attempt failed for now. `denied`: it, or our settings.
pub fn deferred(which: &Which<'_>, attempt: u32, times: Times, denied: bool, reason: &str) {
    let (Which { queue_id, key, tenant }, Times { elapsed, delay }) = (*which, times);
    traced::attempt(What::TriedInVain, key, tenant, attempt, Some(delay), reason);
    metrics::delivery(if denied { "misconfigured" } else { "again" }, Some(elapsed));
    let (elapsed_ms, next_in_ms) = (millis(elapsed), millis(delay));
    event!(
        info,
        DEFERRED,
        queue_id,
        tenant,
        key,
        attempt,
        elapsed_ms,
        next_in_ms,
        reason,
        "delivery deferred"
    );
}

/// Direct mode: the attempt failed, and the client is told to come again.
pub fn not_delivered(which: &Which<'_>, elapsed: Duration, reason: &str) {
    let Which { queue_id, key, tenant } = *which;
    traced::attempt(What::NotDelivered, key, tenant, 1, Some(elapsed), reason);
    metrics::delivery("again", Some(elapsed));
    event!(info, NOT_DELIVERED, queue_id, tenant, key, elapsed_ms = millis(elapsed), reason, "not delivered");
}

/// Direct mode: the backend refuses our settings; clients are told to come again.
pub fn backend_refuses_us(queue_id: &str, reason: &str) {
    metrics::delivery("misconfigured", None);
    limited!(
        error,
        BACKEND_REFUSES_US,
        queue_id,
        reason,
        "backend refuses our settings. Check backend.url and the credentials in [backend]"
    );
}

/// A person must look at this activity.
pub fn held(which: &Which<'_>, attempt: u32, reason: &str) {
    let Which { queue_id, key, tenant } = *which;
    traced::attempt(What::Held, key, tenant, attempt, None, reason);
    metrics::delivery("held", None);
    event!(warn, HELD, queue_id, tenant, key, attempt, reason, "held");
}

/// Our settings are wrong, and the activity waits for better ones.
pub fn misconfigured(which: &Which<'_>, attempt: u32, reason: &str) {
    let Which { queue_id, key, tenant } = *which;
    traced::attempt(What::TriedInVain, key, tenant, attempt, None, reason);
    metrics::delivery("misconfigured", None);
    limited!(
        info,
        DEFERRED,
        queue_id,
        tenant,
        key,
        attempt,
        reason,
        "delivery deferred until our settings are right"
    );
}

/// The backend denies an activity (403, 404, 410): it, or our settings. The first of a row; several in a row pause.
pub fn backend_denies(reason: &str) {
    limited!(
        warn,
        BACKEND_DENIES,
        reason,
        "backend denies an activity. If it denies all: check backend.url and the credentials in [backend]"
    );
}

/// An answer of Severa's was lost, and what it made was found: `activity` or `file`.
pub fn severa_found(which: &Which<'_>, what: &'static str) {
    let Which { queue_id, key, tenant } = *which;
    event!(info, SEVERA_FOUND, queue_id, tenant, key, what, "found what a lost answer had made");
}

/// A person deleted the activity in Severa while it was being delivered. It counts as delivered.
pub fn severa_activity_gone(which: &Which<'_>) {
    let Which { queue_id, key, tenant } = *which;
    traced::attempt(What::Gone, key, tenant, 0, None, "");
    event!(
        warn,
        SEVERA_ACTIVITY_GONE,
        queue_id,
        tenant,
        key,
        "somebody deleted the activity in Severa before all of it was there: it is left so"
    );
}

/// Severa's answer has the notes without our marker: it cut them, and an activity whose answer is lost would not be found.
pub fn severa_marker_lost(tenant: &str, notes_limit: usize) {
    limited!(
        warn,
        SEVERA_MARKER_LOST,
        tenant,
        notes_limit,
        "Severa gives the notes back without the marker in their last line: make notes_limit smaller"
    );
}

/// Severa does not take somebody as a participant; the rest goes on.
pub fn severa_participant_skipped(which: &Which<'_>, guid: &str, reason: &dyn Display) {
    let Which { queue_id, key, tenant } = *which;
    event!(
        warn,
        SEVERA_PARTICIPANT_SKIPPED,
        queue_id,
        tenant,
        key,
        guid,
        %reason,
        "Severa does not take this participant: left out"
    );
}

/// Our settings are refused; only probes are sent. `tenant`: of this one alone, whose settings they are.
pub fn courier_paused(tenant: Option<&str>, reason: &str, next_probe: Duration) {
    let next_probe_ms = millis(next_probe);
    match tenant {
        None => event!(
            error,
            COURIER_PAUSED,
            next_probe_ms,
            reason,
            "backend refuses our settings: deliveries are paused. Check backend.url and the credentials in [backend]"
        ),
        Some(tenant) => event!(
            error,
            COURIER_PAUSED,
            tenant,
            next_probe_ms,
            reason,
            "backend refuses this tenant's settings: its deliveries are paused. Check the tenant's credentials"
        ),
    }
}

/// Which lanes are paused: everybody's, by its cause, and how many tenants'.
pub fn lanes(misconfigured: bool, down: bool, tenants: usize) {
    metrics::paused("misconfigured", misconfigured);
    metrics::paused("down", down);
    metrics::tenants_paused(tenants);
}

/// A file with a secret has a new version, and it is in use.
pub fn secret_read(path: &Path) {
    versions::in_order(versions::Kind::Secret, path);
    event!(info, SECRET_READ, path = %path.display(), "secret read again");
}

/// A new version of a file with a secret is broken; the old secret stays.
pub fn secret_refused(path: &Path, error: &dyn Display) {
    versions::refused(versions::Kind::Secret, path, error.to_string());
    event!(warn, SECRET_REFUSED, %error, "new secret refused, the old one stays in use");
}

/// Several activities in a row had no answer; only probes are sent. Once at the beginning, then with each probe.
pub fn backend_down(reason: &str, next_probe: Duration) {
    event!(
        warn,
        BACKEND_DOWN,
        next_probe_ms = millis(next_probe),
        reason,
        "backend does not answer: deliveries are paused"
    );
}

/// Deliveries go on, all or this tenant's; why.
pub fn courier_resumed(tenant: Option<&str>, why: &'static str) {
    event!(info, COURIER_RESUMED, tenant, "{why}");
}

/// Somebody was told of held activities.
pub fn notice_sent(activities: usize) {
    event!(info, NOTICE_SENT, activities, "notice of held activities sent");
}

/// A notice could not be sent.
pub fn notice_not_sent(error: &dyn Display) {
    limited!(warn, NOTICE_NOT_SENT, %error, "notice of held activities not sent");
}

/// The queue's database or spool failed.
pub fn queue_trouble(error: &dyn Display) {
    limited!(error, QUEUE_TROUBLE, %error, "queue trouble");
}

/// We stop, and of so many activities is not written down, or not as safely as the settings ask, what became of them.
pub fn ends_owed(activities: usize) {
    event!(error, ENDS_OWED, activities, "stopped before the queue took all that was delivered");
}

/// A promise of `docs/promises.md` was seen broken. `key`: of the activity, if it is about one.
pub fn broken(promise: Promise, key: &str, seen: &dyn Display) {
    metrics::violated(promise);
    let (key, promise) = ((!key.is_empty()).then_some(key), promise.number());
    limited!(error, INVARIANT_VIOLATED, key, promise, %seen, "a promise is broken: please report it");
}

/// No functions can be made in the queue's database.
pub fn queue_plain(error: &dyn Display) {
    event!(warn, QUEUE_PLAIN, %error, "queue without functions: each statement is planned anew");
}

/// The queue's database does not answer, or not as it should: mail is deferred until it does, or kept on this machine
/// (`spools`).
pub fn queue_away(database: &str, error: &dyn Display, spools: bool) {
    match spools {
        true => event!(error, QUEUE_AWAY, database, %error, "queue away"),
        false => event!(error, QUEUE_AWAY, database, %error, "queue away: mail is deferred"),
    }
}

/// The queue's database answers again.
pub fn queue_back(database: &str) {
    event!(warn, QUEUE_BACK, database, "queue back");
}

/// What the queue's database commits is not as safe as the settings ask: mail is deferred, or kept on this machine
/// (`spools`).
pub fn queue_unsafe(database: &str, why: &str, spools: bool) {
    match spools {
        true => event!(error, QUEUE_UNSAFE, database, why, "queue unsafe"),
        false => event!(error, QUEUE_UNSAFE, database, why, "queue unsafe: mail is deferred"),
    }
}

/// Mail is kept in a file of this machine, until the database takes it.
pub fn spooling(path: &Path, error: &dyn Display) {
    let path = path.display();
    event!(error, SPOOLING, %path, %error, "mail is kept on this machine until the database takes it");
}

/// What was kept in a file of this machine is in the database.
pub fn spool_drained(activities: usize, database: &str) {
    event!(warn, SPOOL_DRAINED, activities, database, "what was kept on this machine is in the database");
}

/// It is as safe again.
pub fn queue_safe(database: &str) {
    event!(warn, QUEUE_SAFE, database, "queue safe");
}

/// What the queue's upkeep found. `jumped`: the clock leapt forward, or the service was down for so long; `mended`: rows
/// whose times lay ahead; `aside`: files that nothing needs; `long_log`: bytes of the database's log.
pub fn upkeep(jumped: Option<Duration>, mended: u64, aside: u64, long_log: Option<u64>) {
    if let Some(by) = jumped {
        let by_s = by.as_secs();
        event!(
            warn,
            CLOCK_LEAPT,
            by_s,
            "the clock is this much ahead of what was seen last: for a day nothing is held as too old and no key forgotten. Set it right if it is wrong"
        );
    }
    if mended > 0 {
        event!(warn, TIMES_MENDED, activities = mended, "the clock was ahead: times in the queue are mended");
    }
    if aside > 0 {
        event!(
            warn,
            FILES_ASIDE,
            files = aside,
            "files in the spool that no activity needs are moved aside for a week"
        );
    }
    if let Some(bytes) = long_log {
        limited!(
            warn,
            LOG_LONG,
            bytes,
            "the queue's log is long: another program reads the database and does not end (a backup, sqlite3)"
        );
    }
}

/// The spool has files of messages that belong to other queues than ours: moved away, damaged, or with another path.
pub fn files_of_others(files: u64, folder: &Path) {
    event!(
        warn,
        FILES_OF_OTHERS,
        files,
        folder = %folder.display(),
        "the spool has messages of another queue: if its database was moved away, restore it, or export them by hand"
    );
}

/// The first full pass over a company of Severa's begins; its mail is deferred until it ends.
pub fn severa_first_pass(tenant: &str) {
    event!(info, SEVERA_FIRST_PASS, tenant, "the first copy of Severa is begun");
}

/// How far it is: users, contacts, projects; and in how many calls.
pub fn severa_first_pass_goes_on(tenant: &str, [users, contacts, projects]: [usize; 3], calls: usize) {
    event!(
        info,
        SEVERA_FIRST_PASS_GOES_ON,
        tenant,
        users,
        contacts,
        projects,
        calls,
        "the first copy of Severa is being made"
    );
}

/// A full pass is completed. `skipped`: rows that could not be used; `gone`: rows that two passes lacked.
pub fn severa_passed(
    tenant: &str,
    first: bool,
    [users, contacts, projects]: [usize; 3],
    calls: usize,
    elapsed: Duration,
    skipped: usize,
    gone: usize,
) {
    let elapsed_ms = millis(elapsed);
    event!(
        info,
        SEVERA_PASSED,
        tenant,
        first,
        users,
        contacts,
        projects,
        calls,
        elapsed_ms,
        skipped,
        gone,
        "full pass over Severa completed"
    );
}

/// A company cannot be synchronised. `account`: by its settings. `doing`: `poll` or `full pass`.
pub fn severa_fails(tenant: &str, account: bool, doing: &'static str, error: &dyn Display) {
    if account {
        event!(error, SEVERA_FAILS, tenant, doing, %error, "Severa refuses this tenant's settings: its copy grows old");
    } else {
        event!(warn, SEVERA_FAILS, tenant, doing, %error, "Severa cannot be asked: this tenant's copy grows old");
    }
}

/// It can again.
pub fn severa_goes_on(tenant: &str, doing: &'static str) {
    event!(info, SEVERA_GOES_ON, tenant, doing, "Severa can be asked again");
}

/// The file of copies is of no use.
pub fn severa_copy_aside(path: &Path, aside: &Path, why: &str) {
    let (path, aside) = (path.display(), aside.display());
    event!(warn, SEVERA_COPY_ASIDE, %path, %aside, why, "the copy of Severa is put aside and made anew");
}

/// The file of copies cannot be written.
pub fn severa_unkept(path: &Path, error: &dyn Display) {
    limited!(
        warn,
        SEVERA_UNKEPT,
        path = %path.display(),
        %error,
        "the copy of Severa cannot be written: it is kept in memory and written later"
    );
}

/// An address belongs to several users; mail from it is this one's.
pub fn severa_shared_address(tenant: &str, address: &str, user: &str) {
    let address = shown(address);
    event!(
        warn,
        SEVERA_SHARED_ADDRESS,
        tenant,
        address = address.as_deref(),
        user,
        "an address belongs to several users"
    );
}

/// The command ends with an error. `error`: one line.
pub fn command_failed(exit_code: u8, error: &str) {
    event!(error, COMMAND_FAILED, exit_code, error, "failed");
}

/// A thread of ours panicked. `words`: nothing that the message said.
pub fn panicked(thread: &str, place: &str, words: &str) {
    event!(error, PANICKED, thread, place, error = words, "panicked");
}

/// Lines of the log could not be written, or had to wait for too long.
pub fn log_lines_lost(lines: u64) {
    event!(
        warn,
        LOG_LINES_LOST,
        lines,
        "lines of the log are lost: whoever reads it is too slow, or its disk is full. Mail goes on"
    );
}

/// Says how many lines were left out because there were many like them; `at_end`: also those of this minute.
pub fn say_suppressed(at_end: bool) {
    for (name, suppressed) in unsaid(at_end) {
        lines_suppressed(&name.to_ascii_lowercase(), suppressed);
    }
}

/// So many lines of an event were left out, and none has followed that says it.
pub(super) fn lines_suppressed(event: &str, suppressed: u64) {
    event!(warn, LINES_SUPPRESSED, event, suppressed, "lines like others were left out of the log");
}

fn verdict(reply: &Reply) -> &'static str {
    if reply.is_deferral() { "defer" } else { "reject" }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
