//! The fake of Severa's API keeps its word.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/mod.rs"]
mod support;
