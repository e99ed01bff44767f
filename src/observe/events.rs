//! Every event we log, a function each: the vocabulary is this file.
//!
//! error: we serve nobody; warn: an admin should look; info: a verdict, an attempt, life cycle; debug: the rest.
//! Never subject, body, names of attachments, tokens.

use super::{ids, limit::Limiter, log::shown, metrics, recent};
use crate::rules::Reply;
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
        static LIMIT: Limiter = Limiter::new();
        if let Some(suppressed) = LIMIT.admit() {
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
pub fn reloaded(restart: &str) {
    if restart.is_empty() {
        event!(info, RELOADED, "configuration read again");
    } else {
        event!(warn, RELOADED, restart, "configuration read again; some keys count only after a restart");
    }
}

/// New settings are wrong; the old ones stay.
pub fn reload_refused(error: &dyn Display) {
    event!(error, RELOAD_REFUSED, %error, "new configuration refused, the old one stays in use");
}

/// A setting works, and probably not as it was meant. `warning` names file, line and key.
pub fn setting_doubtful(warning: &str) {
    event!(warn, SETTING_DOUBTFUL, warning, "a setting is doubtful");
}

/// A person retried, held or dropped activities. `what`: `retried`, `held` or `dropped`.
pub fn queue_changed(what: &'static str, activities: usize) {
    event!(info, QUEUE_CHANGED, what, activities, "queue changed by hand");
}

/// The directory file was read.
pub fn directory_read(path: &Path, tenants: usize, addresses: usize) {
    event!(info, DIRECTORY_READ, path = %path.display(), tenants, addresses, "directory read");
}

/// A new version of the directory file is broken, names nobody or cannot be read; the old one stays.
pub fn directory_refused(error: &dyn Display) {
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

/// The socket could not accept a connection; we pause and go on.
pub fn accept_failed(error: &dyn Display, pause: Duration) {
    limited!(warn, ACCEPT_FAILED, %error, pause_ms = millis(pause), "accept failed");
}

/// A message or a recipient was refused or deferred: one line for each reply we give.
pub fn refused(who: &Who<'_>, stage: &'static str, reply: &Reply) {
    let Who { queue_id, tenant, .. } = *who;
    let (sender, recipient) = (who.sender.and_then(shown), who.recipient.and_then(shown));
    let (code, reason) = (reply.code, reply.reason.as_str());
    event!(
        info,
        REFUSED,
        queue_id,
        tenant,
        stage,
        verdict = verdict(reply),
        reply = code,
        status = reply.status,
        reason,
        sender = sender.as_deref(),
        recipient = recipient.as_deref(),
        "refused"
    );
    if stage == "rcpt" {
        metrics::recipient_refused(reason);
    } else {
        metrics::message(verdict(reply), reason);
    }
    let queue_id = queue_id.to_owned();
    recent::refused(recent::Refusal { at: SystemTime::now(), queue_id, code, reason, sender, recipient });
}

/// A refusal that the sender does not hear of: the tenant's recipients were taken out of a mixed transaction.
pub fn stripped(queue_id: &str, tenant: &str, reply: &Reply) {
    metrics::message("strip", reply.reason.as_str());
    event!(
        warn,
        STRIPPED,
        queue_id,
        tenant,
        verdict = "strip",
        reply = reply.code,
        reason = reply.reason.as_str(),
        "stripped"
    );
}

/// An activity is on disk; the client hears 250. `known`: the same e-mail was recorded before.
pub fn recorded(who: &Who<'_>, project: Option<&str>, key: &str, known: bool) {
    let Who { queue_id, tenant, .. } = *who;
    let (sender, recipient) = (who.sender.and_then(shown), who.recipient.and_then(shown));
    metrics::recorded();
    recent::count(|step| step.recorded += 1);
    event!(
        info,
        RECORDED,
        queue_id,
        tenant,
        project,
        key,
        known,
        verdict = "record",
        sender = sender.as_deref(),
        recipient = recipient.as_deref(),
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
pub fn would_refuse(queue_id: &str, tenant: Option<&str>, stage: &'static str, reply: &Reply) {
    metrics::message(if reply.is_deferral() { "would_defer" } else { "would_reject" }, reply.reason.as_str());
    let verdict = if reply.is_deferral() { "would_defer" } else { "would_reject" };
    event!(
        info,
        WOULD_REFUSE,
        queue_id,
        tenant,
        stage,
        verdict,
        reply = reply.code,
        reason = reply.reason.as_str(),
        "shadow"
    );
}

/// Shadow mode: this activity would have been recorded.
pub fn would_record(queue_id: &str, tenant: &str, project: Option<&str>) {
    metrics::message("would_record", "");
    event!(info, WOULD_RECORD, queue_id, tenant, project, verdict = "would_record", "shadow");
}

/// A message without integration recipient; counted among debug lines, for a busy server has nothing else.
pub fn passed(queue_id: &str) {
    metrics::passed();
    recent::count(|step| step.passed += 1);
    event!(debug, PASSED, queue_id, verdict = "pass", "passed");
}

/// Something of ours failed; the client is told to try again.
pub fn fault(queue_id: &str, stage: &'static str, error: &dyn Display) {
    metrics::fault(stage);
    limited!(error, FAULT, queue_id, stage, %error, "fault");
}

/// The backend has the activity.
pub fn delivered(key: &str, tenant: &str, attempt: u32, elapsed: Duration) {
    metrics::delivery("taken", Some(elapsed));
    event!(info, DELIVERED, key, tenant, attempt, elapsed_ms = millis(elapsed), "delivered");
}

/// The attempt failed for now. `denied`: it, or our settings.
pub fn deferred(key: &str, tenant: &str, attempt: u32, delay: Duration, denied: bool, reason: &str) {
    metrics::delivery(if denied { "misconfigured" } else { "again" }, None);
    event!(info, DEFERRED, key, tenant, attempt, next_in_ms = millis(delay), reason, "delivery deferred");
}

/// Direct mode: the attempt failed, and the client is told to come again.
pub fn not_delivered(key: &str, tenant: &str, elapsed: Duration, reason: &str) {
    metrics::delivery("again", Some(elapsed));
    event!(info, NOT_DELIVERED, key, tenant, elapsed_ms = millis(elapsed), reason, "not delivered");
}

/// Direct mode: the backend refuses our settings; clients are told to come again.
pub fn backend_refuses_us(reason: &str) {
    metrics::delivery("misconfigured", None);
    limited!(
        error,
        BACKEND_REFUSES_US,
        reason,
        "backend refuses our settings. Check backend.url and the credentials in [backend]"
    );
}

/// A person must look at this activity.
pub fn held(key: &str, tenant: &str, attempt: u32, reason: &str) {
    metrics::delivery("held", None);
    event!(warn, HELD, key, tenant, attempt, reason, "held");
}

/// Our settings are wrong, and the activity waits for better ones.
pub fn misconfigured(key: &str, tenant: &str, attempt: u32, reason: &str) {
    metrics::delivery("misconfigured", None);
    limited!(info, DEFERRED, key, tenant, attempt, reason, "delivery deferred until our settings are right");
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
pub fn severa_found(key: &str, tenant: &str, what: &'static str) {
    event!(info, SEVERA_FOUND, key, tenant, what, "found what a lost answer had made");
}

/// A person deleted the activity in Severa while it was being delivered. It counts as delivered.
pub fn severa_activity_gone(key: &str, tenant: &str) {
    event!(
        warn,
        SEVERA_ACTIVITY_GONE,
        key,
        tenant,
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
pub fn severa_participant_skipped(key: &str, tenant: &str, guid: &str, reason: &dyn Display) {
    event!(
        warn,
        SEVERA_PARTICIPANT_SKIPPED,
        key,
        tenant,
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
            reason,
            next_probe_ms,
            "backend refuses our settings: deliveries are paused. Check backend.url and the credentials in [backend]"
        ),
        Some(tenant) => event!(
            error,
            COURIER_PAUSED,
            tenant,
            reason,
            next_probe_ms,
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
    event!(info, SECRET_READ, path = %path.display(), "secret read again");
}

/// A new version of a file with a secret is broken; the old secret stays.
pub fn secret_refused(error: &dyn Display) {
    event!(warn, SECRET_REFUSED, %error, "new secret refused, the old one stays in use");
}

/// Several activities in a row had no answer; only probes are sent. Once at the beginning, then with each probe.
pub fn backend_down(reason: &str, next_probe: Duration) {
    event!(
        warn,
        BACKEND_DOWN,
        reason,
        next_probe_ms = millis(next_probe),
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

fn verdict(reply: &Reply) -> &'static str {
    if reply.is_deferral() { "defer" } else { "reject" }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
