//! Completions for shells, made from the command line's own description.
//!
//! `tests/settings/commands.rs` presses Tab in a real bash.

use super::Cli;
use clap::{Arg, Command, CommandFactory};
use clap_complete::{Shell, generate};
use std::fmt::Write as _;

/// The program.
const NAME: &str = "activity-milter";

/// The script for a shell.
pub(super) fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    generate(shell, &mut shown(), NAME, &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    match shell {
        // clap_complete takes the hyphen of the name for the gap before a command in one of two places, so that nothing
        // beyond the first word is found (4.6.11).
        Shell::Bash => script.replace("activity__subcmd__milter", "activity__milter"),
        Shell::Fish => fish(script),
        _ => script,
    }
}

/// The command line without what is hidden: clap_complete (4.6.11) would offer that.
fn shown() -> Command {
    let all = Cli::command();
    let shown = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let bare = Command::new(NAME).version(env!("CARGO_PKG_VERSION")).args(all.get_arguments().cloned());
    bare.subcommands(shown)
}

/// For fish clap_complete (4.6.11) knows no values of arguments without a name.
fn fish(mut script: String) -> String {
    for command in shown().get_subcommands() {
        let condition = format!("{USING} {}", command.get_name());
        values(&mut script, &condition, command);
        for below in command.get_subcommands() {
            let condition = format!("{condition}; and __fish_seen_subcommand_from {}", below.get_name());
            values(&mut script, &condition, below);
        }
    }
    script
}

/// How the script asks for the command.
const USING: &str = "__fish_activity_milter_using_subcommand";

fn values(script: &mut String, condition: &str, command: &Command) {
    for value in command.get_positionals().flat_map(Arg::get_possible_values) {
        if !value.is_hide_set() {
            let _ = writeln!(script, "complete -c {NAME} -n \"{condition}\" -f -a \"{}\"", value.get_name());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fish_knows_values_and_nothing_hidden() {
        let script = script(Shell::Fish);
        for (command, value) in [("completions", "bash"), ("completions", "fish")] {
            let line = format!("complete -c activity-milter -n \"{USING} {command}\" -f -a \"{value}\"");
            assert!(script.lines().any(|l| l == line), "{line}\n{script}");
        }
        let print =
            format!("-n \"{USING} postfix; and __fish_seen_subcommand_from print\" -f -a \"lmtp-only\"");
        assert!(script.contains(&print) && script.contains("-a \"serve\""), "{script}");
        // What the lines ask exists in the script itself.
        assert!(script.contains(&format!("function {USING}")), "{script}");
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            assert!(!super::script(shell).contains("manual"), "{shell}");
        }
    }
}
