//! Logs. Metrics and health come with operating it.

pub mod events;
mod log;

pub use log::{Format, Settings, start};
