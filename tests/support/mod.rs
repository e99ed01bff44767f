//! Real parts for tests and the demo: a private Postfix, our own program as a process, an SMTP client.
//!
//! Everything lives in a directory of its own and on loopback ports of its own, and is stopped by process id.

#![allow(dead_code, clippy::unwrap_used)] // each user needs another half; in tests a panic is the answer

pub mod crowd;
pub mod dkim;
pub mod filters;
pub mod http;
pub mod mailbox;
pub mod names;
pub mod neighbour;
pub mod policy;
pub mod postfix;
pub mod sendmail;
pub mod severa;
pub mod site;
pub mod smtp;
pub mod world;

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// Longest wait for anything that should happen at once.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A port that is free, given out once by this process. Below those the kernel gives to connections (Linux: from 32768
/// on), or one of those of another test would take it before it is used.
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const PORTS: u32 = 20_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Another process begins elsewhere.
    let start = std::process::id().wrapping_mul(7919);
    loop {
        let number = start.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % PORTS;
        let port = u16::try_from(FIRST + number).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Whether a command logs to this machine's journal or syslog, where no test looks, and not to standard error.
pub fn has_system_log() -> bool {
    ["/run/systemd/journal/socket", "/dev/log"].iter().any(|path| std::path::Path::new(path).exists())
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
