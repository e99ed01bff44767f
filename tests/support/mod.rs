//! Real parts for tests and the demo: a private Postfix, our own program as a process, an SMTP client.
//!
//! Everything lives in a directory of its own and on loopback ports of its own, and is stopped by process id.

#![allow(dead_code, clippy::unwrap_used)] // each user needs another half; in tests a panic is the answer

pub mod mailbox;
pub mod postfix;
pub mod sendmail;
pub mod smtp;
pub mod world;

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

/// Longest wait for anything that should happen at once.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A port that is free now. Another process may take it in between; then the start fails loudly.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits for a condition, with a deadline.
#[track_caller]
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(25));
    }
}
