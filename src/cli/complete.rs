//! Completions for shells, made from the command line's own description.
//!
//! `tests/settings/commands.rs` presses Tab in a real bash.

use super::Cli;
use clap::CommandFactory;
use clap_complete::{Shell, generate};

/// The program.
const NAME: &str = "activity-milter";

/// The script for a shell.
pub(super) fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), NAME, &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    match shell {
        // clap_complete takes the hyphen of the name for the gap before a command in one of two places, so that nothing
        // beyond the first word is found (4.6.11).
        Shell::Bash => script.replace("activity__subcmd__milter", "activity__milter"),
        _ => script,
    }
}
