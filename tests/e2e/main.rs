//! End-to-end tests: a real private Postfix, our program as a process, the sink as backend, or a fake of Severa. Each test
//! has a directory and ports of its own, so they run in parallel; a module for each scenario.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "../support/database.rs"]
mod database;
#[path = "../support/mod.rs"]
mod support;

mod backend;
#[path = "../cluster/mod.rs"]
mod cluster;
mod delivery;
mod deployments;
mod detach;
mod dialogues;
mod directory;
mod faults;
mod filters;
mod frames;
#[path = "../history/mod.rs"]
mod history;
mod identity;
mod journal;
mod levers;
mod life;
mod limits;
mod lived;
mod lmtp;
mod logins;
mod mixed;
mod notify;
mod operate;
mod others;
mod overload;
mod page;
mod policy;
mod postfix_check;
mod protocol;
mod restore;
mod senders;
mod sendmail;
mod settings;
mod severa;
mod shadow;
mod shared;
#[path = "../torture/mod.rs"]
mod torture;
mod trace;
mod ways;
