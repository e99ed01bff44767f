//! `queue move`: all of a queue into another one.
//!
//! In: two queues: configurations, addresses of database servers, or files. Out: what moved, and what did not.
//! Promise: said again it goes on where it was stopped, whatever stopped it (`queue::haul`). What is wrong with one of the two
//! is said of that one.
//! Fails: where one of them cannot be opened, or takes no more; what moved before is there.

use super::{Failure, identity, other, say, tell};
use crate::config::Config;
use crate::observe::{self, events};
use crate::queue::{
    self, HaulError, Hauled, OpenError, Queue, Settings, SystemClock, haul, postgres::Server,
};
use clap::Args as ClapArgs;
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    fs::File,
    io::{self, IsTerminal, Read},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// How every SQLite file begins.
const SQLITE: &[u8] = b"SQLite format 3\0";

/// How often is said how far it is, where there is no terminal.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// Activities that stay, named one by one.
const NAMED: usize = 20;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The queue that is left: a configuration, postgres://user@host/database, or a file; default: this configuration's
    #[arg(long, value_name = "CONFIG|URL|FILE")]
    from: Option<String>,
    /// The queue that takes all; default: this configuration's
    #[arg(long, value_name = "CONFIG|URL|FILE")]
    to: Option<String>,
}

/// Which queue is meant.
fn settings(config: &Config, word: Option<&str>) -> Result<Settings, Failure> {
    let ours = &config.queue;
    let Some(word) = word else { return Ok(ours.clone()) };
    if word.contains("://") {
        let server = Server::new(word).map_err(Failure::CommandLine)?;
        // Its password and its certificates stand there.
        let known = ours.server.clone().filter(|known| known.name() == server.name());
        let spool = if ours.spool.is_dir() { ours.spool.clone() } else { std::env::temp_dir() };
        let server = Some(known.unwrap_or(server));
        return Ok(Settings { server, spool, spool_on_outage: false, ..ours.clone() });
    }
    let path = std::path::absolute(word).map_err(other)?;
    if is_configuration(&path) {
        return Ok(Config::read_alone(&path)?.queue);
    }
    let spool = match path == ours.path {
        true => ours.spool.clone(),
        false => path.with_file_name("spool"),
    };
    Ok(Settings { path, spool, ..ours.local() })
}

/// A word with a slip of the pen would take all to where no service looks: a file is made where its directory is.
fn leads_somewhere(config: &Config, word: &Path, takes: &Settings) -> Result<(), Failure> {
    let directory = takes.path.parent().unwrap_or(Path::new("/"));
    if takes.path == config.queue.path || is_configuration(word) || directory.is_dir() {
        return Ok(());
    }
    let directory = directory.display();
    Err(Failure::CommandLine(format!(
        "--to: there is no directory {directory}: make it, or say another file"
    )))
}

/// What is no database, and is there, or has the name of one.
fn is_configuration(path: &Path) -> bool {
    let mut head = [0; SQLITE.len()];
    match File::open(path).and_then(|mut file| file.read_exact(&mut head)) {
        Ok(()) => head != SQLITE,
        Err(_) => path.extension().is_some_and(|end| end == "toml"),
    }
}

/// How a queue is opened; it blocks.
type Open = fn(&Settings, Arc<dyn queue::Clock>) -> Result<Arc<dyn Queue>, OpenError>;

async fn open(settings: Settings, how: Open) -> Result<Arc<dyn Queue>, OpenError> {
    let opened = tokio::task::spawn_blocking(move || how(&settings, Arc::new(SystemClock))).await;
    opened.unwrap_or_else(|error| {
        Err(OpenError::Unusable { path: PathBuf::from("queue"), message: error.to_string() })
    })
}

pub(super) async fn moved(config: &Config, args: &Args) -> Result<ExitCode, Failure> {
    if args.from.is_none() && args.to.is_none() {
        let message = "say where to, or where from: --to postgres://user@host/database, --from FILE";
        return Err(Failure::CommandLine(message.to_owned()));
    }
    let (leaves, takes) = (settings(config, args.from.as_deref())?, settings(config, args.to.as_deref())?);
    let (from_name, to_name) = (leaves.place(), takes.place());
    if from_name == to_name {
        let message = format!("{from_name} is both: say another --from or --to");
        return Err(Failure::CommandLine(message));
    }
    if let Some(word) = args.to.as_deref().filter(|word| !word.contains("://")) {
        leads_somewhere(config, Path::new(word), &takes)?;
    }
    let of_from = |error: &dyn std::fmt::Display| other(format!("--from: {error}"));
    let of_to = |error: &dyn std::fmt::Display| other(format!("--to: {error}"));
    let from = open(leaves, queue::open_to_leave).await.map_err(|error| of_from(&error))?;
    let to = open(takes, queue::open_to_take_in).await.map_err(|error| of_to(&error))?;
    let counts = from.counts().await.map_err(|error| of_from(&error))?;
    let kept = from.kept().await.map_err(|error| of_from(&error))?.activities;
    let mut show = Show::new(counts.waiting + counts.held + kept);
    let stopped = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&stopped);
    let listen = tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            asked.store(true, Ordering::Relaxed);
        }
    });
    let hauled = haul(from.as_ref(), to.as_ref(), |hauled| {
        show.page(hauled);
        if stopped.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .await;
    listen.abort();
    show.end();
    let hauled = hauled.map_err(|error| match &error {
        HaulError::One | HaulError::Copy => {
            Failure::CommandLine(format!("--from {from_name}, --to {to_name}: {error}"))
        }
        HaulError::From(_) => of_from(&format!("{error}. What moved is there; say the same again to go on")),
        HaulError::To(_) => of_to(&format!("{error}. What moved is there; say the same again to go on")),
    })?;
    let left = from.counts().await.map_err(|error| of_from(&error))?;
    let full: usize = hauled.full.values().map(|(count, _)| count).sum();
    let left = (left.waiting + left.held).saturating_sub((hauled.stuck.len() + full) as u64);
    if hauled.activities > 0 {
        observe::start_for_command(&config.log);
        events::queue_moved(identity::caller(), hauled.activities, &from_name, &to_name);
    }
    tell_of(&hauled, left);
    say(&format!("{} activities moved from {from_name} to {to_name}\n", hauled.activities))?;
    Ok(ExitCode::from(u8::from(hauled.is_stopped || left > 0 || full > 0 || !hauled.stuck.is_empty())))
}

/// What did not move, and why.
fn tell_of(hauled: &Hauled, left: u64) {
    for (key, why) in hauled.stuck.iter().take(NAMED) {
        tell(&format!("{key} stays: {why}"));
    }
    if hauled.stuck.len() > NAMED {
        tell(&format!("{} more stay, for like reasons", hauled.stuck.len() - NAMED));
    }
    for (tenant, (count, why)) in &hauled.full {
        tell(&format!("{count} of tenant {tenant} stay: {why}; then say the same again"));
    }
    if hauled.is_stopped {
        tell(&format!("stopped: {left} are left; say the same again to go on"));
    } else if left > 0 {
        tell(&format!(
            "{left} are being attempted, or were on their way when this was killed: say the same again in five minutes"
        ));
    }
}

/// How far it is: a bar at a terminal, else a line now and then.
struct Show {
    bar: Option<ProgressBar>,
    all: u64,
    said: Instant,
}

impl Show {
    fn new(all: u64) -> Self {
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = io::stderr().is_terminal().then(|| ProgressBar::new(all).with_style(style));
        Self { bar, all, said: Instant::now() }
    }

    fn page(&mut self, hauled: &Hauled) {
        match &self.bar {
            Some(bar) => bar.set_position(hauled.activities as u64),
            None if self.said.elapsed() > SAID_EVERY => {
                self.said = Instant::now();
                tell(&format!("{} of {} moved", hauled.activities, self.all));
            }
            None => {}
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
