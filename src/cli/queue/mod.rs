//! `queue`: what waits and what is held, and the few things that a person does with it. Works while the service runs.
//!
//! In: words for activities ([`name`]) and filters. Out: text for people ([`text`]) or JSON; what was done.
//! Promise: who changes something learns which activities it was, and so does the log. A command that would change many
//! asks at a terminal first, and tells with `--dry-run`; a script is asked nothing.

mod change;
mod export;
mod moving;
mod name;
mod redeliver;
mod text;

use super::{
    Failure, identity, other,
    out::{agreed, say, say_json, tell},
};
use crate::config::{Config, time_span};
use crate::observe;
use crate::queue::{self, Change as Changes, Entry, Filter, OpenError, Queue, State, SystemClock};
use crate::trace;
use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use serde_json::{Value, json};
use std::{
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime},
};
use text::rfc3339;

/// Time for the trace to take what was done by hand.
const TRACE_TIME: Duration = Duration::from_secs(5);

/// Activities listed, or changed, at once.
const AT_ONCE: usize = 1000;

fn count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "write a whole number".to_owned())
}

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// With a database server: what waits on this machine until that takes it
    #[arg(long, global = true)]
    local: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List activities, oldest first
    #[command(after_help = "Examples:\n  activity-milter queue list --state held\n  \
                            activity-milter queue list --tenant mycompany --older-than 1h --json\n  \
                            activity-milter queue list 4bXy1zT3sKwz9q")]
    List {
        #[command(flatten)]
        which: Which,
        /// At most so many; 0: all
        #[arg(long, default_value_t = 100, value_parser = count)]
        limit: usize,
        /// Print JSON, an array
        #[arg(long)]
        json: bool,
    },
    /// Show everything of an activity but the message itself
    Show {
        /// The key or its beginning, the activity's number, or Postfix's queue id
        #[arg(value_name = "ACTIVITY")]
        word: String,
        /// Print the activity's JSON as the backend gets it
        #[arg(long)]
        json: bool,
    },
    /// Have activities attempted at once, held ones too
    #[command(after_help = "Examples:\n  activity-milter queue retry b3:5d1f\n  \
                            activity-milter queue retry --state held --all")]
    Retry(change::Change),
    /// Hold activities that wait, so that they are not attempted
    Hold(change::Change),
    /// Forget activities; the same e-mail is not recorded again within seven days
    #[command(
        after_help = "Examples:\n  activity-milter queue export b3:5d1f --to /root/lost && activity-milter queue drop b3:5d1f\n  \
                      activity-milter queue drop --all --state held --older-than 30d --dry-run\n\n\
                      At a terminal it asks before it drops more than one; a script is not asked."
    )]
    Drop(change::Change),
    /// Send delivered activities once more, to a business system that was restored from a back-up
    #[command(after_help = "Examples:\n  activity-milter queue redeliver --since 2h --dry-run\n  \
                      activity-milter queue redeliver --since 2026-11-29T18:00:00Z --tenant mycompany\n\n\
                      There are as many as queue.keep_delivered keeps. Each has its own key again, and the header\n\
                      `Replay: true`: a business system that still has it takes it once. Give a time a little before the\n\
                      back-up was made.")]
    Redeliver(redeliver::Args),
    /// Move all of a queue to another one: to a database, to a file, to another machine's
    #[command(
        after_help = "Examples:\n  activity-milter queue move --to postgres://activity-milter@db1.example.com/mail\n  \
                      activity-milter queue move --from /var/lib/activity-milter/queue.db\n  \
                      activity-milter queue move --from old.toml --to new.toml\n\n\
                      Stopped at any point it is said again, and goes on. Each e-mail is there once, whatever came to the\n\
                      other queue meanwhile. Services may be at work on the other queue, and on a database that is left;\n\
                      the service of a file that is left must be stopped."
    )]
    Move(moving::Args),
    /// Write messages (.eml), activities (.json) and files into a directory, for our user alone
    Export {
        #[command(flatten)]
        which: Which,
        /// The directory; a new one in it for each activity
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
}

/// Which activities.
#[derive(Debug, ClapArgs)]
struct Which {
    /// Keys or their beginnings, numbers of activities, or Postfix's queue ids
    #[arg(value_name = "ACTIVITY")]
    words: Vec<String>,
    /// Only this tenant's: id or prefix
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Only those that wait, are in flight, are held, or are kept after their delivery
    #[arg(long, value_enum, value_name = "STATE")]
    state: Option<StateName>,
    /// Only those accepted longer ago, like 90s, 1h, 2d
    #[arg(long, value_name = "TIME", value_parser = time_span)]
    older_than: Option<Duration>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StateName {
    Waiting,
    InFlight,
    Held,
    Delivered,
}

impl From<StateName> for State {
    fn from(name: StateName) -> Self {
        match name {
            StateName::Waiting => Self::Waiting,
            StateName::InFlight => Self::InFlight,
            StateName::Held => Self::Held,
            StateName::Delivered => Self::Delivered,
        }
    }
}

impl Which {
    /// Those of `items` that the filters let through, or of all.
    fn filter(&self, items: Vec<i64>, limit: Option<usize>) -> Filter {
        Filter {
            items,
            tenant: self.tenant.clone(),
            state: self.state.map(State::from),
            before: self
                .older_than
                .map(|age| SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH)),
            limit,
            ..Filter::default()
        }
    }
}

impl Args {
    /// False if files are written for who asks, not for the service.
    pub(super) fn writes(&self) -> bool {
        !matches!(self.command, Command::Export { .. })
    }
}

/// The queue of the configuration.
pub(super) async fn beside(config: &Config) -> Result<Arc<dyn Queue>, Failure> {
    open(config, false).await
}

/// The queue of the configuration, or what waits on this machine for it.
async fn open(config: &Config, local: bool) -> Result<Arc<dyn Queue>, Failure> {
    if local && config.queue.server.is_none() {
        let message = "--local is for queue.type = \"postgres\": this queue is on this machine already";
        return Err(Failure::CommandLine(message.to_owned()));
    }
    let settings = if local { config.queue.local() } else { config.queue.clone() };
    let open = move || queue::beside(&settings, Arc::new(SystemClock));
    let queue: Result<_, OpenError> = tokio::task::spawn_blocking(open).await.map_err(other)?;
    Ok(queue?)
}

/// Says what else there is on this machine.
async fn tell_of_local(config: &Config) {
    if config.queue.server.is_none() || !config.queue.path.exists() {
        return;
    }
    let Ok(local) = open(config, true).await else { return };
    if let Ok(counts) = local.counts().await
        && counts.waiting + counts.held > 0
    {
        let count = counts.waiting + counts.held;
        tell(&format!("{count} on this machine wait for the database: see them with --local"));
    }
}

pub(super) async fn queue(config: &Config, args: Args) -> Result<ExitCode, Failure> {
    if let Command::Move(moved) = &args.command {
        if args.local {
            let message = format!(
                "--local is not for `queue move`: what waits on this machine is --from {}",
                config.queue.path.display()
            );
            return Err(Failure::CommandLine(message));
        }
        return moving::moved(config, moved).await;
    }
    let is_list = matches!(args.command, Command::List { json: false, .. });
    if is_list && !args.local {
        tell_of_local(config).await;
    }
    let queue = open(config, args.local).await?;
    let queue = queue.as_ref();
    if let Some(directory) = identity::roots() {
        tell(&format!(
            "this works as root, because {} is root's: give it to a user of its own, as the package does",
            directory.display()
        ));
    }
    // The service makes the file, whose owner it must be.
    observe::start_trace(&config.trace, false);
    let done = run(config, queue, args.command).await;
    trace::stop(TRACE_TIME);
    done
}

async fn run(config: &Config, queue: &dyn Queue, command: Command) -> Result<ExitCode, Failure> {
    let held = || Changes::Hold { reason: "held by hand".to_owned() };
    match command {
        Command::List { which, limit, json } => list(config, queue, &which, limit, json).await,
        Command::Show { word, json } => show(queue, &word, json).await,
        Command::Retry(which) => change::change(config, queue, &which, "retried", &Changes::Retry).await,
        Command::Hold(which) => change::change(config, queue, &which, "held", &held()).await,
        Command::Drop(which) => change::change(config, queue, &which, "dropped", &Changes::Drop).await,
        Command::Redeliver(args) => redeliver::redeliver(config, queue, &args).await,
        Command::Move(args) => moving::moved(config, &args).await,
        Command::Export { which, to } => export::export(queue, &which, &to).await,
    }
}

/// All that a filter lets through, listed page after page: a list of a million in one piece would keep the service's log
/// from ending.
async fn all(queue: &dyn Queue, filter: Filter) -> Result<Vec<Entry>, Failure> {
    let most = filter.limit.unwrap_or(usize::MAX);
    let mut entries: Vec<Entry> = Vec::new();
    while entries.len() < most {
        let limit = AT_ONCE.min(most - entries.len());
        let after = entries.last().map(|entry| entry.id);
        let page = queue.list(Filter { after, limit: Some(limit), ..filter.clone() }).await.map_err(other)?;
        let is_last = page.len() < limit;
        entries.extend(page);
        if is_last {
            break;
        }
    }
    Ok(entries)
}

/// What is meant by words and filters; without words all that the filters let through.
async fn meant(queue: &dyn Queue, which: &Which, limit: Option<usize>) -> Result<Vec<Entry>, Failure> {
    if which.words.is_empty() {
        return all(queue, which.filter(Vec::new(), limit)).await;
    }
    let mut items = Vec::new();
    for word in &which.words {
        let found = name::find(queue, word, which.state.map(State::from)).await?;
        items.extend(found.entries.iter().map(|entry| entry.id));
    }
    if items.is_empty() {
        return Ok(Vec::new());
    }
    all(queue, which.filter(items, limit)).await
}

fn as_json(entry: &Entry) -> Value {
    json!({
        "key": entry.key.as_str(), "id": entry.id, "tenant": entry.tenant, "project": entry.project,
        "queue_id": entry.queue_id, "sender": entry.sender, "recipients": entry.recipients,
        "state": entry.state, "attempts": entry.attempts, "accepted_at": rfc3339(entry.accepted_at),
        "due": rfc3339(entry.due), "reason": entry.reason,
    })
}

async fn list(
    config: &Config,
    queue: &dyn Queue,
    which: &Which,
    limit: usize,
    json: bool,
) -> Result<ExitCode, Failure> {
    // One more shows that there are more.
    let mut entries = meant(queue, which, (limit > 0).then_some(limit + 1)).await?;
    let more = limit > 0 && entries.len() > limit;
    entries.truncate(if limit > 0 { limit } else { usize::MAX });
    if json {
        let all: Vec<_> = entries.iter().map(as_json).collect();
        say_json(&all)?;
    } else {
        let sum = text::Sum {
            counts: queue.counts().await.map_err(other)?,
            kept: queue.kept().await.map_err(other)?,
            bytes: queue.bytes().await.map_err(other)?,
        };
        let table = text::table(&entries, &config.addressing);
        let table =
            if entries.is_empty() && !sum.is_empty() { "nothing is like that\n".to_owned() } else { table };
        say(&(table + &sum.line(SystemTime::now())))?;
    }
    if more {
        tell("there are more: --limit 0 lists all");
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(queue: &dyn Queue, word: &str, json: bool) -> Result<ExitCode, Failure> {
    let found = match name::find(queue, word, None).await? {
        found if found.entries.is_empty() => name::find(queue, word, Some(State::Delivered)).await?,
        found => found,
    };
    let entries = found.those()?;
    let mut text = String::new();
    for entry in &entries {
        let item = queue.open(entry.id).await;
        if json {
            text += &(String::from_utf8_lossy(&item.map_err(other)?.json) + "\n");
            continue;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text += &text::shown(entry);
        match item {
            Ok(item) => {
                let activity = serde_json::to_string_pretty(&item.activity).map_err(other)?;
                let (note, bytes) = (item.note.as_deref().unwrap_or("-"), item.raw.len());
                let replay = if item.replay { "sent again: as a replay\n" } else { "" };
                text += &format!("{replay}progress: {note}\nmessage: {bytes} bytes\nactivity: {activity}\n");
            }
            // What is held because its message was lost is shown too.
            Err(error) => text += &format!("message: {error}\n"),
        }
    }
    say(&text)?;
    Ok(ExitCode::SUCCESS)
}
