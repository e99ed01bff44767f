//! The metrics: names, labels, help, in one place. Prometheus text (version 0.0.4) comes out.
//!
//! Promise: labels have few values (verdicts, reasons, outcomes, states): never a tenant, an address or a queue id.

use super::{Promise, versions};
use crate::rules::{Discard, Reason};
use metrics::{
    Counter, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::{
    sync::{LazyLock, OnceLock},
    time::Duration,
};

/// Seconds: from a local sync to a backend's patience.
const BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Which kind of number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// As it is now.
    Gauge,
    /// Seconds, in buckets.
    Histogram,
}

/// Name, kind, help.
pub const ALL: &[(&str, Kind, &str)] = &[
    (MESSAGES, Kind::Counter, "Messages by verdict, and reason where they are not recorded"),
    (
        ALL_RECIPIENTS,
        Kind::Counter,
        "Recipients by what they are: integration addresses, others, refused ones",
    ),
    (
        RECIPIENTS,
        Kind::Counter,
        "Recipients that were refused (reject) or deferred (defer) at RCPT, by reason",
    ),
    (BYTES, Kind::Counter, "Bytes of messages that were recorded"),
    (SESSIONS, Kind::Gauge, "Open connections by door"),
    (
        HUNG_UP,
        Kind::Counter,
        "Connections that we closed, by door and why: full (no place), idle (it made room), slow (it kept us waiting)",
    ),
    (EMERGENCY, Kind::Gauge, "1 while a lever of [emergency] is pulled"),
    (REMEMBERED, Kind::Gauge, "Clients, senders and tenants that a limit of [limits] remembers"),
    (IN_FLIGHT, Kind::Gauge, "Messages with an integration recipient that are not answered yet"),
    (LOOK_UPS, Kind::Counter, "Questions to the directory by where the answer came from"),
    (DELIVERIES, Kind::Counter, "Attempts at the backend by outcome"),
    (DELIVERY_SECONDS, Kind::Histogram, "Time of an attempt at the backend"),
    (END_SECONDS, Kind::Histogram, "Time from end of message to our answer"),
    (PAUSED, Kind::Gauge, "1 while deliveries are paused, by cause"),
    (
        TENANTS_PAUSED,
        Kind::Gauge,
        "Tenants whose deliveries are paused because their own settings are refused",
    ),
    (QUEUE_ITEMS, Kind::Gauge, "Activities in the queue by state"),
    (QUEUE_OLDEST, Kind::Gauge, "Age of the oldest waiting activity in seconds"),
    (QUEUE_REACHABLE, Kind::Gauge, "1 while the queue's database server answers"),
    (QUEUE_SAFE, Kind::Gauge, "1 while what its server commits is as safe as the settings ask"),
    (
        QUEUE_SPOOLED,
        Kind::Gauge,
        "Activities on this machine that the queue's database server has not taken yet",
    ),
    (
        QUEUE_SPOOLED_OLDEST,
        Kind::Gauge,
        "Age in seconds of the oldest activity that the queue's database server has not taken yet",
    ),
    (SEVERA_CALLS, Kind::Counter, "Calls of Severa's API by outcome"),
    (
        SEVERA_COPY_AGE,
        Kind::Gauge,
        "Seconds since the last good poll of the company whose copy of Severa is the oldest",
    ),
    (FAULTS, Kind::Counter, "Faults of our own by stage"),
    (
        VIOLATED,
        Kind::Counter,
        "Promises that were seen broken, by their number in docs/promises.md; anything but zero is a fault of ours",
    ),
    (RESTART_NEEDED, Kind::Gauge, "1 while settings that were read count only after a restart"),
    (
        LAST_RELOAD,
        Kind::Gauge,
        "1 if the newest version is in use, by what is read again; 0 if it was refused",
    ),
    (LOG_LINES_LOST, Kind::Counter, "Lines of the log that could not be written"),
    (TRACE_LOST, Kind::Counter, "Records of the trace that were not kept"),
    (BUILD, Kind::Gauge, "1, with the version"),
];

pub(super) const MESSAGES: &str = "activity_milter_messages_total";
const ALL_RECIPIENTS: &str = "activity_milter_recipients_total";
pub(super) const RECIPIENTS: &str = "activity_milter_recipients_refused_total";
const BYTES: &str = "activity_milter_recorded_bytes_total";
const SESSIONS: &str = "activity_milter_sessions";
const HUNG_UP: &str = "activity_milter_hung_up_total";
const REMEMBERED: &str = "activity_milter_limits_remembered";
const IN_FLIGHT: &str = "activity_milter_messages_in_flight";
const LOOK_UPS: &str = "activity_milter_directory_lookups_total";
const DELIVERIES: &str = "activity_milter_deliveries_total";
const DELIVERY_SECONDS: &str = "activity_milter_delivery_seconds";
const END_SECONDS: &str = "activity_milter_end_of_message_seconds";
const PAUSED: &str = "activity_milter_deliveries_paused";
const TENANTS_PAUSED: &str = "activity_milter_tenants_paused";
const QUEUE_ITEMS: &str = "activity_milter_queue_items";
const QUEUE_OLDEST: &str = "activity_milter_queue_oldest_seconds";
const QUEUE_REACHABLE: &str = "activity_milter_queue_reachable";
const QUEUE_SAFE: &str = "activity_milter_queue_safe";
const QUEUE_SPOOLED: &str = "activity_milter_queue_spooled";
const QUEUE_SPOOLED_OLDEST: &str = "activity_milter_queue_spooled_oldest_seconds";
const SEVERA_CALLS: &str = "activity_milter_severa_calls_total";
const SEVERA_COPY_AGE: &str = "activity_milter_severa_copy_age_seconds";
const FAULTS: &str = "activity_milter_faults_total";
/// Promises that were seen broken.
pub const VIOLATED: &str = "activity_milter_invariant_violated_total";
const RESTART_NEEDED: &str = "activity_milter_restart_needed";
const LAST_RELOAD: &str = "activity_milter_last_reload_successful";
const LOG_LINES_LOST: &str = "activity_milter_log_lines_lost_total";
const TRACE_LOST: &str = "activity_milter_trace_lost_total";
const EMERGENCY: &str = "activity_milter_emergency";
const BUILD: &str = "activity_milter_build_info";

/// Where something of ours can fail.
const STAGES: &[&str] =
    &["mail", "rcpt", "data", "header", "end-of-header", "body", "end-of-message", "reply", "severa"];

static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();

/// What nearly every message counts, looked up once: the registry takes longer than the counting.
struct Usual {
    passed: Counter,
    recorded: Counter,
    other_recipients: Counter,
    integration_recipients: Counter,
    bytes: Counter,
    end: Histogram,
}

/// First used after [`start`], if that is called at all.
static USUAL: LazyLock<Usual> = LazyLock::new(|| Usual {
    passed: counter!(MESSAGES, "verdict" => "pass", "reason" => ""),
    recorded: counter!(MESSAGES, "verdict" => "record", "reason" => ""),
    other_recipients: counter!(ALL_RECIPIENTS, "outcome" => "other"),
    integration_recipients: counter!(ALL_RECIPIENTS, "outcome" => "integration"),
    bytes: counter!(BYTES),
    end: histogram!(END_SECONDS),
});

/// Starts counting, once for the process; before it, and in commands that are no service, nothing is counted.
pub fn start() {
    let seconds = |name: &str| Matcher::Full(name.to_owned());
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(seconds(DELIVERY_SECONDS), BUCKETS)
        .and_then(|builder| builder.set_buckets_for_metric(seconds(END_SECONDS), BUCKETS));
    let Ok(Ok(handle)) = builder.map(PrometheusBuilder::install_recorder) else { return };
    for (name, kind, help) in ALL {
        match kind {
            Kind::Counter => describe_counter!(*name, *help),
            Kind::Gauge => describe_gauge!(*name, *help),
            Kind::Histogram => describe_histogram!(*name, Unit::Seconds, *help),
        }
    }
    gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    begin_at_zero();
    for cause in ["misconfigured", "down"] {
        paused(cause, false);
    }
    tenants_paused(0);
    counter!(LOG_LINES_LOST).absolute(0);
    let _ = HANDLE.set(handle);
}

/// Zero is a value too: what grows from "not there" to one has not increased, and an alert on it never fires.
fn begin_at_zero() {
    for verdict in ["record", "reject", "defer", "strip", "pass"] {
        counter!(MESSAGES, "verdict" => verdict, "reason" => "").absolute(0);
    }
    for reason in Discard::CODES {
        counter!(MESSAGES, "verdict" => "discard", "reason" => reason).absolute(0);
    }
    for reason in Reason::ALL {
        let (verdict, name) = (verdict_of(reason.code()), reason.as_str());
        counter!(MESSAGES, "verdict" => verdict, "reason" => name).absolute(0);
        counter!(RECIPIENTS, "verdict" => verdict, "reason" => name).absolute(0);
    }
    for outcome in ["integration", "other", "refused"] {
        counter!(ALL_RECIPIENTS, "outcome" => outcome).absolute(0);
    }
    for outcome in ["taken", "again", "held", "misconfigured"] {
        counter!(DELIVERIES, "outcome" => outcome).absolute(0);
    }
    for from in ["cache", "asked", "stale", "failed"] {
        counter!(LOOK_UPS, "from" => from).absolute(0);
    }
    for door in ["milter", "lmtp", "admin"] {
        for why in ["full", "idle", "slow"] {
            counter!(HUNG_UP, "door" => door, "why" => why).absolute(0);
        }
    }
    for stage in STAGES {
        counter!(FAULTS, "stage" => *stage).absolute(0);
    }
    for promise in Promise::ALL {
        counter!(VIOLATED, "promise" => promise.number()).absolute(0);
    }
    // A histogram is there once it is looked up.
    let _ = (histogram!(DELIVERY_SECONDS), histogram!(END_SECONDS));
    for what in versions::Kind::ALL {
        last_reload(what, true);
    }
    restart_needed(false);
}

/// What a reply of that code does to a message.
pub(super) fn verdict_of(code: u16) -> &'static str {
    if code < 500 { "defer" } else { "reject" }
}

/// Folds the newest times into their buckets. Without it they are kept one by one until somebody asks, and nobody may.
pub fn upkeep() {
    counter!(TRACE_LOST).absolute(crate::trace::lost());
    if let Some(handle) = HANDLE.get() {
        handle.run_upkeep();
    }
}

/// The text for Prometheus; empty if nothing counts.
pub fn render() -> String {
    upkeep();
    HANDLE.get().map(PrometheusHandle::render).unwrap_or_default()
}

/// A message was decided.
pub(super) fn message(verdict: &'static str, reason: &'static str) {
    counter!(MESSAGES, "verdict" => verdict, "reason" => reason).increment(1);
}

/// A message had no integration recipient.
pub(super) fn passed() {
    USUAL.passed.increment(1);
}

/// An activity was recorded.
pub(super) fn recorded() {
    USUAL.recorded.increment(1);
}

/// A recipient was taken that is an integration address.
pub fn integration_recipient() {
    USUAL.integration_recipients.increment(1);
}

/// A recipient was taken that is none.
pub fn other_recipient() {
    USUAL.other_recipients.increment(1);
}

/// A recipient was refused.
pub(super) fn recipient_refused(verdict: &'static str, reason: &'static str) {
    counter!(ALL_RECIPIENTS, "outcome" => "refused").increment(1);
    counter!(RECIPIENTS, "verdict" => verdict, "reason" => reason).increment(1);
}

/// A message of that many bytes was recorded.
pub fn recorded_bytes(bytes: u64) {
    USUAL.bytes.increment(bytes);
}

/// Time from end of message to our answer.
pub fn end_of_message(elapsed: Duration) {
    USUAL.end.record(elapsed);
}

/// Questions were answered: `cache`, `asked`, `stale` or `failed`.
pub fn looked_up(from: &'static str, questions: usize) {
    counter!(LOOK_UPS, "from" => from).increment(questions as u64);
}

/// An attempt ended.
pub(super) fn delivery(outcome: &'static str, elapsed: Option<Duration>) {
    counter!(DELIVERIES, "outcome" => outcome).increment(1);
    if let Some(elapsed) = elapsed {
        histogram!(DELIVERY_SECONDS).record(elapsed);
    }
}

/// Deliveries pause or go on.
pub(super) fn paused(cause: &'static str, is: bool) {
    gauge!(PAUSED, "cause" => cause).set(f64::from(u8::from(is)));
}

/// So many tenants' deliveries pause.
pub(super) fn tenants_paused(count: usize) {
    gauge!(TENANTS_PAUSED).set(count as f64);
}

/// A call of Severa's API ended: `ok`, `refused`, `busy`, `account`, `lost` or `unsent`.
pub fn severa_call(outcome: &'static str) {
    counter!(SEVERA_CALLS, "outcome" => outcome).increment(1);
}

/// The oldest copy of a company of Severa's is so old.
pub fn severa_copy_age(age: Duration) {
    gauge!(SEVERA_COPY_AGE).set(age.as_secs_f64());
}

/// The newest version of something is in use, or was refused.
pub(super) fn last_reload(what: versions::Kind, is_in_use: bool) {
    gauge!(LAST_RELOAD, "what" => what.as_str()).set(f64::from(u8::from(is_in_use)));
}

/// Settings that were read wait for a restart.
pub(super) fn restart_needed(is: bool) {
    gauge!(RESTART_NEEDED).set(f64::from(u8::from(is)));
}

/// Something of ours failed.
pub(super) fn fault(stage: &'static str) {
    debug_assert!(STAGES.contains(&stage), "{stage} begins at zero");
    counter!(FAULTS, "stage" => stage).increment(1);
}

/// A promise was seen broken.
pub(super) fn violated(promise: Promise) {
    counter!(VIOLATED, "promise" => promise.number()).increment(1);
}

/// Lines of the log are lost.
pub(super) fn log_lines_lost(lines: u64) {
    if lines > 0 {
        counter!(LOG_LINES_LOST).increment(lines);
    }
}

/// What is counted of the queue when somebody asks.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    /// Activities waiting.
    pub waiting: u64,
    /// Activities held.
    pub held: u64,
    /// Age of the oldest waiting one.
    pub oldest: Duration,
}

/// Sets what is counted of the queue when somebody asks.
pub fn snapshot(snapshot: &Snapshot) {
    let set = |state: &'static str, count: u64| gauge!(QUEUE_ITEMS, "state" => state).set(count as f64);
    set("waiting", snapshot.waiting);
    set("held", snapshot.held);
    gauge!(QUEUE_OLDEST).set(snapshot.oldest.as_secs_f64());
}

/// Whether the queue's server answers.
pub fn queue_reachable(is_reachable: bool) {
    gauge!(QUEUE_REACHABLE).set(f64::from(u8::from(is_reachable)));
}

/// Whether what it commits is as safe as the settings ask.
pub fn queue_safe(is_safe: bool) {
    gauge!(QUEUE_SAFE).set(f64::from(u8::from(is_safe)));
}

/// So many activities wait on this machine for the queue's server, the oldest for so long.
pub fn queue_spooled(activities: u64, oldest: Duration) {
    gauge!(QUEUE_SPOOLED).set(activities as f64);
    gauge!(QUEUE_SPOOLED_OLDEST).set(oldest.as_secs_f64());
}

/// So many messages are in flight.
pub fn in_flight(count: usize) {
    gauge!(IN_FLIGHT).set(count as f64);
}

/// So many clients, senders or tenants are remembered by a limit.
pub fn remembered(what: &'static str, count: u64) {
    gauge!(REMEMBERED, "what" => what).set(count as f64);
}

/// Whether a lever is pulled.
pub fn emergency(is_pulled: bool) {
    gauge!(EMERGENCY).set(f64::from(u8::from(is_pulled)));
}

/// We closed a connection.
pub fn hung_up(door: &'static str, why: &'static str) {
    counter!(HUNG_UP, "door" => door, "why" => why).increment(1);
}

/// An open connection, counted for as long as this lives.
#[derive(Debug)]
pub struct OpenSession(&'static str);

impl OpenSession {
    /// One more. `door`: `milter` or `lmtp`.
    pub fn new(door: &'static str) -> Self {
        gauge!(SESSIONS, "door" => door).increment(1.0);
        Self(door)
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        gauge!(SESSIONS, "door" => self.0).decrement(1.0);
    }
}
