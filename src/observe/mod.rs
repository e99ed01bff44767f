//! Logs, metrics, and what happened lately.
//!
//! In: one function call for each event ([`events`]). Out: a log line, counters, the memory of the last day, and a record
//! for the trace.
//! Promise: never subject, body, names of attachments, tokens; addresses as `log.addresses` says.

pub mod events;
pub mod ids;
mod limit;
mod log;
pub mod metrics;
mod promise;
pub mod recent;
mod traced;
pub mod versions;

pub use log::{
    Addresses, Format, Settings, addresses, apply, flush, start, start_for_command, takes_lines_only,
};
pub use promise::Promise;
pub use traced::{start as start_trace, transaction};
