//! `postfix`: the other side of the socket. Prints the settings that Postfix needs, and checks those it has.

mod add;
mod check;
mod forged;
mod former;
mod headers;
mod hurdles;
mod logins;
mod print;
mod probe;
mod record;
mod remove;
mod script;
mod settings;
mod strangers;
mod waiting;
mod ways;

use super::{
    Failure, other,
    out::{say, say_json, tell},
};
use crate::config::Config;
use add::Refusal;
use check::{Report, Severity};
use clap::{Args as ClapArgs, Subcommand};
use print::{Deployment, Existing, Format, Wish};
use settings::{SettingsError, Tools};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the settings of a deployment, for this configuration
    ///
    /// What the Postfix has already is kept: lists are added to, other domains keep their transports, and each value that
    /// changes is shown as `# was:`. The script saves main.cf and master.cf first, and changes nothing when it runs again.
    /// What cannot be added to is named, with exit code 78, and nothing is printed; so is mail that waits in Postfix's queue
    /// for our LMTP listener, where the way to it is taken out.
    #[command(
        after_help = "Examples:\n  activity-milter postfix print mx | sh && postfix reload\n  activity-milter postfix print shared-mx --shadow | sh\n  activity-milter postfix print --remove | sh && postfix reload"
    )]
    Print {
        #[arg(required_unless_present = "remove")]
        deployment: Option<Deployment>,
        /// Take out what is ours, and show what was saved
        #[arg(long, conflicts_with_all = ["deployment", "shadow", "format", "service"])]
        remove: bool,
        /// Attach the milter only, for mode = "shadow": mail goes where it goes today
        #[arg(long)]
        shadow: bool,
        /// Go on although mail waits in Postfix's queue for our LMTP listener: it bounces, or goes elsewhere
        #[arg(long)]
        ignore_queue: bool,
        /// The service that `submission` attaches the milter to, as master.cf names it
        #[arg(long, value_name = "NAME", default_value = "submission")]
        service: String,
        /// How to write them
        #[arg(long, value_enum, default_value_t = Format::Commands)]
        format: Format,
        #[command(flatten)]
        instance: Instance,
    },
    /// Look for settings of Postfix that make mail go wrong; exit code 1 if one must change
    ///
    /// As root, the sockets are tried as Postfix's own user, and from inside the chroot where there is one.
    #[command(after_help = "Example:\n  activity-milter postfix check --postfix-config /etc/postfix-in")]
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        instance: Instance,
    },
    /// Try one socket as Postfix would (`check` starts this)
    #[command(hide = true)]
    Probe(probe::Args),
}

#[derive(Debug, ClapArgs)]
struct Instance {
    /// The configuration directory of the Postfix meant; default: the system's
    #[arg(long, value_name = "DIR")]
    postfix_config: Option<PathBuf>,
}

impl Instance {
    /// What `MAIL_CONFIG` says is said to the script too: `sudo sh` does not know it.
    fn tools(self) -> Tools {
        let of_environment =
            || std::env::var_os("MAIL_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from);
        let directory = self.postfix_config.or_else(of_environment);
        // The script may run in another directory.
        Tools { directory: directory.map(|path| std::path::absolute(&path).unwrap_or(path)) }
    }
}

pub(super) async fn postfix(config: &Path, args: Args) -> Result<ExitCode, Failure> {
    match args.command {
        Command::Print { deployment: None, ignore_queue, instance, .. } => {
            let config = Config::read_alone(config)?;
            let nobody =
                || Failure::Configuration(miette::Report::msg("there is no Postfix to take anything out of"));
            let existing = Existing::ask(instance.tools(), &config).map_err(broken)?.ok_or_else(nobody)?;
            let (script, told) = print::removed(&config, &existing, ignore_queue).map_err(refused)?;
            told.iter().for_each(|sentence| tell(sentence));
            say(&script)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Print {
            deployment: Some(deployment),
            format,
            shadow,
            service,
            ignore_queue,
            instance,
            ..
        } => {
            let config = Config::read_alone(config)?;
            if config.lmtp.is_none() && !shadow {
                let remedy = "every deployment delivers to our LMTP listener, and the configuration has none: add the table [lmtp] to it";
                return Err(Failure::Configuration(miette::Report::msg(remedy)));
            }
            let existing = Existing::ask(instance.tools(), &config).map_err(broken)?;
            let wish = Wish { deployment, format, shadow, service: &service, ignore_queue };
            say(&print::print(wish, &config, existing.as_ref()).map_err(refused)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check { json, instance } => {
            let report =
                check::check(instance.tools(), &Config::read_alone(config)?).map_err(
                    |error| match error {
                        // What Postfix itself cannot read is a fault of settings, not a Postfix that is not there.
                        error if error.is_absence() => other(error),
                        error => broken(error),
                    },
                )?;
            match json {
                true => say_json(&report)?,
                false => say(&text(&report))?,
            }
            Ok(ExitCode::from(u8::from(report.is_bad())))
        }
        Command::Probe(args) => probe::run(&args).await,
    }
}

/// Postfix's tools cannot say what is there: so nothing is printed.
fn broken(error: SettingsError) -> Failure {
    match error {
        SettingsError::Missing { .. } => other(error),
        SettingsError::Failed { .. } | SettingsError::Record { .. } | SettingsError::Table(_) => {
            Failure::Configuration(miette::Report::msg(error.to_string()))
        }
    }
}

fn refused(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::No(text) => Failure::Configuration(miette::Report::msg(text)),
        Refusal::Settings(error) => broken(error),
    }
}

/// The report for people.
fn text(report: &Report) -> String {
    let mut out = format!("Postfix {} in {}\n", report.postfix, report.config_directory);
    for sentence in &report.seen {
        out += &format!("  {sentence}\n");
    }
    for finding in &report.findings {
        let word = match finding.severity {
            Severity::Must => "MUST CHANGE",
            Severity::Should => "should change",
            Severity::Note => "note",
        };
        out += &format!("\n{word} [{}] {}\n", finding.check, finding.setting);
        out += &format!("  why:    {}\n  remedy: {}\n", finding.reason, finding.remedy);
    }
    if report.findings.is_empty() {
        out += "\nNothing to change.\n";
    }
    out
}
