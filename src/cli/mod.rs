//! The command line: arguments, exit codes, a file for each command.
//!
//! Exit codes: `EXIT_STATUS`, as sysexits(3) has them.

mod backup;
mod check;
mod complete;
mod config;
mod credentials;
mod descriptors;
mod directory;
mod explain;
mod identity;
mod manual;
mod out;
mod postfix;
mod queue;
mod rights;
mod serve;
mod sink;
mod trace;
mod unit;

use crate::config::{Config, DEFAULT_PATH, OutsideError};
use crate::observe::{self, events};
use crate::queue::OpenError;
use crate::source::{SourceError, said, without_numbers};
use clap::{
    CommandFactory, Parser, Subcommand, ValueHint,
    error::{ContextKind, ContextValue},
};
use miette::Report;
use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

/// A milter for Postfix that turns e-mail to integration addresses into activities of a business system.
#[derive(Debug, Parser)]
#[command(version = version(), about)]
pub struct Cli {
    /// The configuration file
    #[arg(short, long, global = true, value_name = "FILE", default_value = DEFAULT_PATH, value_hint = ValueHint::FilePath)]
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
    Serve(serve::Args),
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
    /// Show what the configuration comes to
    Config(config::Args),
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

/// The exit codes, with their meaning: the manual has them.
const EXIT_STATUS: &[(u8, &str)] = &[
    (0, "Done."),
    (
        1,
        "The command's own \"no\": the message is refused (explain), something is not as it should be (check, postfix check), an address is unknown (directory lookup), or not all could be changed (queue).",
    ),
    (
        EX_USAGE,
        "The command line is wrong: an unknown option, a value that is none, or arguments that do not go together.",
    ),
    (
        EX_UNAVAILABLE,
        "Something that is needed is not there: a file, a socket, a server, an activity with this key.",
    ),
    (
        EX_IOERR,
        "The output could not be written, because the disk is full, say. A reader that has seen enough is no error.",
    ),
    (EX_CONFIG, "The configuration, one of its drop-ins, or a file it names, is wrong."),
];

/// The configuration, or a file it names, is wrong.
const EX_CONFIG: u8 = 78;

/// The output could not be written.
const EX_IOERR: u8 = 74;

/// The command line is wrong.
const EX_USAGE: u8 = 64;

/// Something that is needed is not there: a file, a socket, a server.
const EX_UNAVAILABLE: u8 = 69;

/// Time for what blocks, when everything else has ended.
const LAST_TIME: Duration = Duration::from_secs(5);

/// Why a command failed.
enum Failure {
    /// The command line is wrong, in a way that its parser does not see: exit code 64.
    CommandLine(String),
    /// The configuration, or a file it names, is wrong: exit code 78.
    Configuration(Report),
    /// The output could not be written: exit code 74.
    Output(io::Error),
    /// Anything else: exit code 69.
    Other(Report),
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self::Configuration(error.into())
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

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match error.is_of_settings() {
            true => Self::Configuration(Report::msg(error.to_string())),
            false => other(error),
        }
    }
}

/// Runs the command the arguments ask for.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(mut error) if error.use_stderr() => {
            leave_out_hidden(&mut error);
            if observe::takes_lines_only() {
                return fail(&Report::msg(error.render().to_string()), EX_USAGE);
            }
            let _ = error.print();
            return ExitCode::from(EX_USAGE);
        }
        // Help and version.
        Err(help) => return done(out::say(&shown(&help)).map(|()| ExitCode::SUCCESS)),
    };
    let role = match &cli.command {
        Command::Serve(_) => identity::Role::Service,
        Command::Queue(args) if args.writes() => identity::Role::Service,
        Command::Directory(args) if args.writes() => identity::Role::Service,
        Command::Check(_) => identity::Role::Look,
        _ => identity::Role::Caller,
    };
    if let Err(failure) = identity::assume(role, &cli.config) {
        return done(Err(failure));
    }
    // One runtime for whatever the command is; explain needs no threads, but it runs the service's own code. Half of the
    // cores: the other half has the queue's writer, files, and Postfix, and a thread that must be woken costs more than it
    // does (on two cores one thread takes a third more mail than two).
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = match runtime.worker_threads(cores.div_ceil(2)).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return done(Err(other(format!("cannot start: {}", said(&error))))),
    };
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => serve::serve(load(&cli.config)?, &cli.config, args.part()).await,
            Command::Check(args) => check::check(&cli.config, &args).await,
            Command::Queue(args) => queue::queue(&Config::read_alone(&cli.config)?, args).await,
            Command::Trace(args) => trace::trace(&Config::read_alone(&cli.config)?, args).await,
            Command::Backup(args) if args.is_verify() => backup::backup(None, args).await,
            Command::Backup(args) => backup::backup(Some(&Config::read_alone(&cli.config)?), args).await,
            Command::Explain(args) => explain::explain(Config::read_alone(&cli.config)?, &args).await,
            Command::Config(args) => config::config(&cli.config, &args),
            Command::Directory(args) => directory::directory(&Config::read_alone(&cli.config)?, args).await,
            Command::Postfix(args) => postfix::postfix(&cli.config, args).await,
            Command::Sink(args) => sink::serve(args).await,
            Command::Completions { shell } => out::say(&complete::script(shell)).map(|()| ExitCode::SUCCESS),
            Command::Manual { to } => manual::write(&to).map_err(other),
        }
    });
    // What still waits for a file server or a pipe, nobody waits for.
    runtime.shutdown_timeout(LAST_TIME);
    done(outcome)
}

/// clap names commands that its help does not show.
fn leave_out_hidden(error: &mut clap::Error) {
    if let Some(ContextValue::Strings(names)) = error.remove(ContextKind::ValidSubcommand) {
        let hidden: Vec<String> = Cli::command()
            .get_subcommands()
            .filter(|command| command.is_hide_set())
            .map(|command| command.get_name().to_owned())
            .collect();
        let names = names.into_iter().filter(|name| !hidden.contains(name)).collect();
        error.insert(ContextKind::ValidSubcommand, ContextValue::Strings(names));
    }
}

/// Tells why a command failed, and how it ended.
fn done(outcome: Result<ExitCode, Failure>) -> ExitCode {
    let (report, code) = match outcome {
        Ok(code) => {
            observe::flush();
            return code;
        }
        Err(Failure::CommandLine(message)) => (Report::msg(message), EX_USAGE),
        Err(Failure::Configuration(report)) => (report, EX_CONFIG),
        Err(Failure::Output(error)) => {
            (Report::msg(format!("the output could not be written: {}", said(&error))), EX_IOERR)
        }
        Err(Failure::Other(report)) => (report, EX_UNAVAILABLE),
    };
    fail(&report, code)
}

/// Says why: at a terminal the place is drawn; where each line is an entry of a log it is one of its events; else one line.
fn fail(report: &Report, code: u8) -> ExitCode {
    if observe::takes_lines_only() {
        observe::start(&observe::Settings::default());
        events::command_failed(code, &one_line(report));
        observe::flush();
    } else {
        observe::flush();
        match io::stderr().is_terminal() {
            true => out::tell(&format!("{report:?}")),
            false => out::tell(&one_line(report)),
        }
    }
    ExitCode::from(code)
}

fn one_line(report: &Report) -> String {
    let help = report.help().map(|help| help.to_string());
    let texts: Vec<_> = report.chain().map(ToString::to_string).chain(help).collect();
    texts.join(": ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A help page, with colours where somebody sees them.
fn shown(help: &clap::Error) -> String {
    match io::stdout().is_terminal() {
        true => help.render().ansi().to_string(),
        false => help.render().to_string(),
    }
}

fn load(path: &Path) -> Result<Config, Failure> {
    Ok(Config::read(path)?)
}

/// Any failure that is not the configuration's.
fn other(error: impl std::fmt::Display) -> Failure {
    Failure::Other(Report::msg(without_numbers(&error.to_string())))
}
