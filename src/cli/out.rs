//! What commands print. Nothing else writes to standard output or standard error (`tests/house.rs`).
//!
//! Promise: a reader that has seen enough (`| head`) is no failure; a full disk is one, and nobody panics over either.
//! Fails: [`Failure::Output`], exit code 74.

use super::Failure;
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// Prints.
pub(super) fn say(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Output(error)),
        _ => Ok(()),
    }
}

/// Prints JSON, for programs.
pub(super) fn say_json(value: &impl Serialize) -> Result<(), Failure> {
    say(&(serde_json::to_string_pretty(value).map_err(super::other)? + "\n"))
}

/// Tells the person at the terminal, or whoever reads standard error; if nobody does, there is nobody to tell.
pub(super) fn tell(text: &str) {
    let _ = writeln!(io::stderr().lock(), "activity-milter: {text}");
}

/// Asks a person; where nobody sits, nobody is asked.
pub(super) fn agreed(question: &str) -> Result<bool, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(true);
    }
    let _ = write!(io::stderr().lock(), "{question} [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(super::other)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
