//! The command line: arguments, exit codes, a file for each command.
//!
//! Exit codes (sysexits(3)): 0 done; 1 the command's own "no" (`explain`: the message is refused; `check`: something is
//! not as it should be); 64 the command line is wrong; 69 something that is needed is not there; 78 the configuration is
//! wrong.

mod backup;
mod check;
mod directory;
mod explain;
mod manual;
mod postfix;
mod queue;
mod serve;
mod sink;
mod trace;

use crate::config::{self, Config, OutsideError};
use crate::observe::{self, events};
use crate::source::SourceError;
use clap::{CommandFactory, Parser, Subcommand};
use miette::Report;
use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

/// A milter for Postfix that turns e-mail to integration addresses into activities of a business system.
#[derive(Debug, Parser)]
#[command(version = version(), about)]
pub struct Cli {
    /// The configuration file
    #[arg(short, long, global = true, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

/// The version, with the commit if whoever built it said which (`packaging/build-package` does).
fn version() -> String {
    let commit = option_env!("ACTIVITY_MILTER_COMMIT").filter(|commit| !commit.is_empty());
    let commit = commit.map_or_else(String::new, |commit| format!(" ({commit})"));
    format!("{}{commit}", env!("CARGO_PKG_VERSION"))
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(
        after_help = "SIGHUP: read the configuration again. SIGTERM: answer the messages in flight, then end.\n\n\
                            Example:\n  activity-milter -c ./activity-milter.toml serve"
    )]
    /// Take mail from Postfix and deliver activities; ends at SIGTERM or SIGINT, after the messages in flight
    Serve,
    #[command(
        after_help = "Examples:\n  activity-milter check\n  activity-milter check --offline && systemctl reload activity-milter"
    )]
    /// Look whether everything is there that the service needs; exit code 1 if not
    Check(check::Args),
    #[command(
        after_help = "Example:\n  activity-milter explain message.eml --sender anna@mycompany.test \\\n      \
                            --recipient 1001.mycompany@severamail.com"
    )]
    /// Say what would happen to a message, and why, without Postfix and without recording anything
    Explain(explain::Args),
    /// List, show, retry, hold, drop and export activities that wait or are held
    Queue(queue::Args),
    #[command(after_help = "Examples:\n  activity-milter trace 4bXyZ30w1Zz9vB\n  \
                            activity-milter trace anna@mycompany.test --since 2h --json\n\n\
                            Other people's mail is not traced. Exit code 1: nothing is known of it.")]
    /// Say what became of a mail: when and how it came, the verdict, each attempt at the backend
    Trace(trace::Args),
    #[command(
        after_help = "Examples:\n  activity-milter backup /var/backups/activity-milter-$(date +%F)\n  \
                      activity-milter backup --verify /var/backups/activity-milter-2026-11-29\n\n\
                      Secrets are not copied: what was left out is said. docs/operations.md tells how to restore."
    )]
    /// Copy queue, spool and configuration while the service runs, or look whether such a copy is whole
    Backup(backup::Args),
    /// Ask the directory
    Directory(directory::Args),
    /// Print the settings that Postfix needs, and check those it has
    Postfix(postfix::Args),
    #[command(after_help = "Example:\n  activity-milter sink --data /tmp/sink --directory directory.toml")]
    /// Run the reference backend, for trying out and for tests
    Sink(sink::Args),
    #[command(
        after_help = "Example:\n  activity-milter completions bash > ~/.local/share/bash-completion/completions/activity-milter"
    )]
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory
    #[command(hide = true)]
    Manual {
        /// The directory
        to: PathBuf,
    },
}

/// The configuration, or a file it names, is wrong.
const EX_CONFIG: u8 = 78;

/// The command line is wrong.
const EX_USAGE: u8 = 64;

/// Something that is needed is not there: a file, a socket, a server.
const EX_UNAVAILABLE: u8 = 69;

/// Time for what blocks, when everything else has ended.
const LAST_TIME: Duration = Duration::from_secs(5);

/// Why a command failed.
enum Failure {
    /// The configuration, or a file it names, is wrong: exit code 78.
    Usage(Report),
    /// Anything else: exit code 69.
    Other(Report),
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::Usage(error.into())
    }
}

impl From<OutsideError> for Failure {
    fn from(error: OutsideError) -> Self {
        match error {
            // Whoever starts us again may find it in order.
            OutsideError::Directory(error) if error.is_passing() => other(error),
            OutsideError::Directory(error) => error.into(),
            OutsideError::Backend(error) => other(error),
            OutsideError::Copy(error) => other(error),
        }
    }
}

/// Runs the command the arguments ask for.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EX_USAGE } else { 0 });
        }
    };
    // One runtime for whatever the command is; explain needs no threads, but it runs the service's own code. Half of the
    // cores: the other half has the queue's writer, files, and Postfix, and a thread that must be woken costs more than it
    // does (on two cores one thread takes a third more mail than two).
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = match runtime.worker_threads(cores.div_ceil(2)).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let code = fail(&Report::msg(format!("cannot start: {error}")), EX_UNAVAILABLE);
            observe::flush();
            return code;
        }
    };
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Serve => serve::serve(load(&cli.config)?, &cli.config).await,
            Command::Check(args) => check::check(load(&cli.config)?, &cli.config, &args).await,
            Command::Queue(args) => queue::queue(&load(&cli.config)?, args).await,
            Command::Trace(args) => trace::trace(&load(&cli.config)?, args).await,
            Command::Backup(args) if args.is_verify() => backup::backup(None, &cli.config, args).await,
            Command::Backup(args) => backup::backup(Some(&load(&cli.config)?), &cli.config, args).await,
            Command::Explain(args) => explain::explain(load(&cli.config)?, &args).await,
            Command::Directory(args) => directory::directory(load(&cli.config)?, args).await,
            Command::Postfix(args) => postfix::postfix(&cli.config, args).await,
            Command::Sink(args) => sink::serve(args).await,
            Command::Completions { shell } => {
                clap_complete::generate(
                    shell,
                    &mut Cli::command(),
                    "activity-milter",
                    &mut std::io::stdout(),
                );
                Ok(ExitCode::SUCCESS)
            }
            Command::Manual { to } => manual::write(&to).map_err(other),
        }
    });
    // What still waits for a file server or a pipe, nobody waits for.
    runtime.shutdown_timeout(LAST_TIME);
    let code = match outcome {
        Ok(code) => code,
        Err(Failure::Usage(report)) => fail(&report, EX_CONFIG),
        Err(Failure::Other(report)) => fail(&report, EX_UNAVAILABLE),
    };
    observe::flush();
    code
}

/// Says why: with the place in the file for people, as one line of the log where each line is an entry.
fn fail(report: &Report, code: u8) -> ExitCode {
    if observe::takes_lines_only() {
        observe::start(&observe::Settings::default());
        events::command_failed(code, &one_line(report));
    } else {
        observe::flush();
        let _ = writeln!(io::stderr(), "activity-milter: {report:?}"); // nobody may be there to hear it
    }
    ExitCode::from(code)
}

/// What is wrong, what it comes from, and the remedy, on one line.
fn one_line(report: &Report) -> String {
    let help = report.help().map(|help| help.to_string());
    let texts: Vec<_> = report.chain().map(ToString::to_string).chain(help).collect();
    texts.join(": ").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn load(path: &std::path::Path) -> Result<Config, Failure> {
    Ok(Config::read(path)?)
}

/// Any failure that is not the configuration's.
fn other(error: impl std::fmt::Display) -> Failure {
    Failure::Other(Report::msg(error.to_string()))
}
