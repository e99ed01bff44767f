//! `postfix`: the other side of the socket. Prints the settings that Postfix needs, and checks those it has.

mod check;
mod print;
mod probe;
mod settings;

use super::{
    Failure, load, other,
    out::{say, say_json},
};
use check::{Report, Severity};
use clap::{Args as ClapArgs, Subcommand};
use print::{Deployment, Existing, Format};
use settings::Tools;
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
    /// What the Postfix has already is kept in lists (relay_domains, transport_maps, smtpd_milters, sender_bcc_maps).
    #[command(after_help = "Example:\n  activity-milter postfix print mx | sh && postfix reload")]
    Print {
        deployment: Deployment,
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
    fn tools(self) -> Tools {
        Tools { directory: self.postfix_config }
    }
}

pub(super) async fn postfix(config: &Path, args: Args) -> Result<ExitCode, Failure> {
    match args.command {
        Command::Print { deployment, format, instance } => {
            let config = load(config)?;
            if config.lmtp.is_none() {
                let remedy = "every deployment delivers to our LMTP listener, and the configuration has none: add the table [lmtp] to it";
                return Err(Failure::Configuration(miette::Report::msg(remedy)));
            }
            let existing = Existing::ask(instance.tools()).map_err(other)?;
            say(&print::print(deployment, format, &config, &existing).map_err(other)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check { json, instance } => {
            let report = check::check(instance.tools(), &load(config)?).map_err(other)?;
            match json {
                true => say_json(&report)?,
                false => say(&text(&report))?,
            }
            Ok(ExitCode::from(u8::from(report.is_bad())))
        }
        Command::Probe(args) => probe::run(&args).await,
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
