//! `config`: what the configuration and its drop-ins come to.

use super::{Failure, out::say};
use crate::config::Config;
use clap::{Args as ClapArgs, Subcommand};
use std::{path::Path, process::ExitCode};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the configuration as it counts, as TOML, with the source of each value: default, or file and line
    ///
    /// The files that it names need not be there. Secrets are not shown: of their files only the path, of a URL no
    /// password.
    #[command(after_help = "Examples:\n  activity-milter config show\n  \
                            activity-milter config show | grep -v '# default$'")]
    Show,
}

pub(super) fn config(path: &Path, args: &Args) -> Result<ExitCode, Failure> {
    let Command::Show = args.command;
    say(&Config::show(path)?)?;
    Ok(ExitCode::SUCCESS)
}
