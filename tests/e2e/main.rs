//! End-to-end tests: a real private Postfix, our program as a process, the sink as backend.

#[path = "../support/mod.rs"]
mod support;
