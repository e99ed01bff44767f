//! The command line: arguments, exit codes, a file for each command.
//!
//! Exit codes: 0 done; 1 the command's own "no" (`explain`: the message is refused) or a failure; 2 the command line or
//! the configuration is wrong.

mod directory;
mod explain;
mod postfix;
mod serve;
mod sink;

use crate::config::{self, Config};
use clap::{Parser, Subcommand};
use miette::Report;
use std::{path::PathBuf, process::ExitCode};

/// A milter for Postfix that turns e-mail to integration addresses into activities of a business system.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    /// The configuration file
    #[arg(short, long, global = true, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take mail from Postfix and deliver activities; ends at SIGTERM or SIGINT, after the messages in flight
    Serve,
    /// Say what would happen to a message, and why, without Postfix and without recording anything
    Explain(explain::Args),
    /// Ask the directory
    Directory(directory::Args),
    /// Print the settings that Postfix needs, and check those it has
    Postfix(postfix::Args),
    /// Run the reference backend, for trying out and for tests
    Sink(sink::Args),
}

/// Why a command failed.
enum Failure {
    /// The configuration, or a file it names, is wrong: exit code 2.
    Usage(Report),
    /// Anything else: exit code 1.
    Other(Report),
}

/// Runs the command the arguments ask for.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    // One runtime for whatever the command is; explain needs no threads, but it runs the service's own code.
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Report::msg(format!("cannot start: {error}")), 1),
    };
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Serve => serve::serve(load(&cli.config)?, &cli.config).await,
            Command::Explain(args) => explain::explain(load(&cli.config)?, &args).await,
            Command::Directory(args) => directory::directory(load(&cli.config)?, args).await,
            Command::Postfix(args) => postfix::postfix(&cli.config, args).await,
            Command::Sink(args) => sink::serve(args).await,
        }
    });
    match outcome {
        Ok(code) => code,
        Err(Failure::Usage(report)) => fail(&report, 2),
        Err(Failure::Other(report)) => fail(&report, 1),
    }
}

fn fail(report: &Report, code: u8) -> ExitCode {
    eprintln!("activity-milter: {report:?}");
    ExitCode::from(code)
}

fn load(path: &std::path::Path) -> Result<Config, Failure> {
    Config::read(path).map_err(|error| Failure::Usage(error.into()))
}

/// Any failure that is not the configuration's.
fn other(error: impl std::fmt::Display) -> Failure {
    Failure::Other(Report::msg(error.to_string()))
}
