//! Logs, metrics, and what happened lately.
//!
//! In: one function call for each event ([`events`]). Out: a log line, counters, and the memory of the last day.
//! Promise: never subject, body, names of attachments, tokens; addresses as `log.addresses` says.

pub mod events;
pub mod ids;
mod limit;
mod log;
pub mod metrics;
pub mod recent;

pub use log::{Addresses, Format, Settings, apply, start, start_for_command};
