//! What commands print. Nothing else writes to standard output or standard error (`tests/house.rs`).
//!
//! Promise: a reader that has seen enough (`| head`) is no failure; a full disk is one, and nobody panics over either.
//! Fails: [`Failure::Output`], exit code 74.

use super::Failure;
use serde::Serialize;
use std::{
    fs,
    io::{self, IsTerminal, Write},
};

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
    if !io::stdin().is_terminal() {
        return Ok(true);
    }
    // The terminal itself: who sits there is asked although the output goes elsewhere.
    let question = format!("{question} [y/N] ");
    let terminal = fs::OpenOptions::new().write(true).open("/dev/tty");
    let asked = terminal.and_then(|mut terminal| terminal.write_all(question.as_bytes()));
    if asked.is_err() {
        let _ = io::stderr().lock().write_all(question.as_bytes());
    }
    let mut answer = String::new();
    // What is no text is no yes.
    let is_read = io::stdin().read_line(&mut answer).is_ok();
    Ok(is_read && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
