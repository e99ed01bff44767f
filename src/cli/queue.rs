//! `queue`: what waits and what is held, and the few things that a person does with it. Works while the service runs.

use super::{
    Failure, other,
    out::{say, say_json, tell},
};
use crate::activity::Cut;
use crate::config::{Config, time_span};
use crate::mail::Raw;
use crate::observe::events;
use crate::queue::{self, Change as Changes, Entry, Filter, Item, OpenError, Queue, State, SystemClock};
use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Activities listed, or changed, at once.
const AT_ONCE: usize = 1000;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List activities, oldest first
    #[command(after_help = "Examples:\n  activity-milter queue list --state held\n  \
                            activity-milter queue list --tenant mycompany --older-than 1h --json")]
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
        /// The key, or its beginning
        key: String,
        /// Print the activity's JSON as the backend gets it
        #[arg(long)]
        json: bool,
    },
    /// Have activities attempted at once, held ones too
    #[command(after_help = "Examples:\n  activity-milter queue retry b3:5d1f\n  \
                            activity-milter queue retry --state held --all")]
    Retry(Change),
    /// Hold activities that wait, so that they are not attempted
    Hold(Change),
    /// Forget activities; the same e-mail is not recorded again within seven days
    #[command(
        after_help = "Example:\n  activity-milter queue export b3:5d1f --to /root/lost && activity-milter queue drop b3:5d1f"
    )]
    Drop(Change),
    /// Write messages (.eml), activities (.json) and files into a directory
    Export {
        #[command(flatten)]
        which: Which,
        /// The directory; a new one in it for each activity
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
}

fn count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "write a whole number".to_owned())
}

/// Which activities.
#[derive(Debug, ClapArgs)]
struct Which {
    /// Keys, or their beginnings
    #[arg(value_name = "KEY")]
    keys: Vec<String>,
    /// Only this tenant's: id or prefix
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Only those that wait, are in flight, or are held
    #[arg(long, value_enum, value_name = "STATE")]
    state: Option<StateName>,
    /// Only those accepted longer ago, like 90s, 1h, 2d
    #[arg(long, value_name = "TIME", value_parser = time_span)]
    older_than: Option<Duration>,
}

#[derive(Debug, ClapArgs)]
struct Change {
    #[command(flatten)]
    which: Which,
    /// All that the filters let through, where no key is given
    #[arg(long)]
    all: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StateName {
    Waiting,
    InFlight,
    Held,
}

impl From<StateName> for State {
    fn from(name: StateName) -> Self {
        match name {
            StateName::Waiting => Self::Waiting,
            StateName::InFlight => Self::InFlight,
            StateName::Held => Self::Held,
        }
    }
}

impl Which {
    fn filter(&self, limit: Option<usize>) -> Filter {
        Filter {
            keys: self.keys.clone(),
            tenant: self.tenant.clone(),
            state: self.state.map(State::from),
            before: self
                .older_than
                .map(|age| SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH)),
            after: None,
            limit,
        }
    }
}

pub(super) async fn queue(config: &Config, args: Args) -> Result<ExitCode, Failure> {
    let settings = config.queue.clone();
    let open = move || queue::beside(&settings, Arc::new(SystemClock));
    let queue: Result<_, OpenError> = tokio::task::spawn_blocking(open).await.map_err(other)?;
    let queue = queue.map_err(other)?;
    let queue = queue.as_ref();
    match args.command {
        Command::List { which, limit, json } => list(queue, &which, limit, json).await,
        Command::Show { key, json } => show(queue, &key, json).await,
        Command::Retry(which) => change(queue, &which, "retried", &Changes::Retry).await,
        Command::Hold(which) => {
            change(queue, &which, "held", &Changes::Hold { reason: "held by hand".to_owned() }).await
        }
        Command::Drop(which) => change(queue, &which, "dropped", &Changes::Drop).await,
        Command::Export { which, to } => export(queue, &which, &to).await,
    }
}

/// All that a filter lets through, listed page after page: a list of a million in one piece would keep the service's log
/// from ending.
async fn all(queue: &dyn Queue, filter: Filter) -> Result<Vec<Entry>, Failure> {
    let most = filter.limit.unwrap_or(usize::MAX);
    if !filter.keys.is_empty() {
        return queue.list(filter).await.map_err(other);
    }
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

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn as_json(entry: &Entry) -> Value {
    json!({
        "key": entry.key.as_str(), "tenant": entry.tenant, "project": entry.project, "queue_id": entry.queue_id,
        "state": entry.state, "attempts": entry.attempts, "accepted_at": rfc3339(entry.accepted_at),
        "due": rfc3339(entry.due), "reason": entry.reason,
    })
}

async fn list(queue: &dyn Queue, which: &Which, limit: usize, json: bool) -> Result<ExitCode, Failure> {
    // One more shows that there are more.
    let mut entries = all(queue, which.filter((limit > 0).then_some(limit + 1))).await?;
    let more = limit > 0 && entries.len() > limit;
    entries.truncate(if limit > 0 { limit } else { usize::MAX });
    if json {
        let all: Vec<_> = entries.iter().map(as_json).collect();
        say_json(&all)?;
    } else {
        let mut text = String::new();
        for entry in &entries {
            let project =
                entry.project.as_ref().map(|number| format!(" project {number}")).unwrap_or_default();
            let reason = entry.reason.as_ref().map(|reason| format!("\n    {reason}")).unwrap_or_default();
            text += &format!(
                "{} {:<9} {} {}{project} attempts {} queue id {}{reason}\n",
                entry.key.as_str().get(..19).unwrap_or(entry.key.as_str()),
                entry.state.as_str(),
                rfc3339(entry.accepted_at),
                entry.tenant,
                entry.attempts,
                entry.queue_id.as_deref().unwrap_or("-"),
            );
        }
        say(&text)?;
    }
    if more {
        tell("there are more: --limit 0 lists all");
    }
    Ok(ExitCode::SUCCESS)
}

/// The one activity whose key begins like that.
async fn the_one(queue: &dyn Queue, key: &str) -> Result<Entry, Failure> {
    let filter = Filter { keys: vec![key.to_owned()], limit: Some(2), ..Filter::default() };
    let mut found = queue.list(filter).await.map_err(other)?;
    match (found.pop(), found.pop()) {
        (None, _) => Err(other(format!("no activity in the queue has a key that begins with {key}"))),
        (Some(entry), None) => Ok(entry),
        _ => Err(other(format!("several activities have keys that begin with {key}: give more of it"))),
    }
}

async fn show(queue: &dyn Queue, key: &str, json: bool) -> Result<ExitCode, Failure> {
    let Entry { id, key, state, attempts, accepted_at, due, reason, .. } = the_one(queue, key).await?;
    let item = queue.open(id).await;
    if json {
        say(&(String::from_utf8_lossy(&item.map_err(other)?.json) + "\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let due_is = if state == State::Held { "held since" } else { "due" };
    let mut text = format!(
        "key: {key}\nstate: {}\nattempts: {attempts}\naccepted: {}\n{due_is}: {}\nreason: {}\n",
        state.as_str(),
        rfc3339(accepted_at),
        rfc3339(due),
        reason.as_deref().unwrap_or("-"),
    );
    match item {
        Ok(item) => {
            let activity = serde_json::to_string_pretty(&item.activity).map_err(other)?;
            let (note, bytes) = (item.note.as_deref().unwrap_or("-"), item.raw.len());
            text += &format!("progress: {note}\nmessage: {bytes} bytes\nactivity: {activity}\n");
        }
        // What is held because its message was lost is shown too.
        Err(error) => text += &format!("message: {error}\n"),
    }
    say(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The ids that are meant; a command without key or filter must say `--all`.
async fn meant(queue: &dyn Queue, change: &Change) -> Result<Vec<i64>, Failure> {
    let Change { which, all: everything } = change;
    if which.keys.is_empty() && !everything {
        let message = "give keys, or --all with or without filters (--state, --tenant, --older-than)";
        return Err(Failure::CommandLine(message.to_owned()));
    }
    for key in &which.keys {
        the_one(queue, key).await?;
    }
    Ok(all(queue, which.filter(None)).await?.iter().map(|entry| entry.id).collect())
}

async fn change(
    queue: &dyn Queue,
    change: &Change,
    what: &'static str,
    how: &Changes,
) -> Result<ExitCode, Failure> {
    let ids = meant(queue, change).await?;
    let bar = bar(ids.len());
    let mut changed = 0;
    for chunk in ids.chunks(AT_ONCE) {
        changed += queue.change(chunk.to_vec(), how.clone()).await.map_err(other)?;
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    events::queue_changed(what, changed);
    let left = ids.len() - changed;
    let why =
        if left > 0 { format!("; {left} not, for they are in flight or already so") } else { String::new() };
    say(&format!("{changed} {what}{why}\n"))?;
    Ok(ExitCode::from(u8::from(left > 0)))
}

/// A bar on a terminal, for work that takes long.
fn bar(length: usize) -> ProgressBar {
    if length <= AT_ONCE || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length as u64).with_style(style)
}

async fn export(queue: &dyn Queue, which: &Which, to: &Path) -> Result<ExitCode, Failure> {
    let entries = all(queue, which.filter(None)).await?;
    let bar = bar(entries.len());
    let mut failed = 0;
    for entry in &entries {
        let directory = to.join(entry.key.as_str().replace(':', "-"));
        let written = queue.open(entry.id).await.map_err(|error| error.to_string());
        if let Err(error) =
            written.and_then(|item| write(&item, &directory).map_err(|error| error.to_string()))
        {
            failed += 1;
            tell(&format!("{}: {error}", entry.key));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    say(&format!("{} written to {}\n", entries.len() - failed, to.display()))?;
    Ok(ExitCode::from(u8::from(failed > 0)))
}

fn write(item: &Item, directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    fs::write(directory.join("activity.json"), &item.json)?;
    decode(&item.raw, item.raw.whole(), &directory.join("message.eml"))?;
    for (file, cut) in item.activity.files.iter().zip(&item.cuts) {
        // Names are safe as file names; the part before them keeps two of the same name apart.
        decode(&item.raw, *cut, &directory.join(format!("{}-{}", file.part, file.name)))?;
    }
    Ok(())
}

fn decode(raw: &Raw, cut: Cut, path: &Path) -> io::Result<()> {
    let mut file = io::BufWriter::new(fs::File::create(path)?);
    raw.decode(cut, &mut |piece| file.write_all(piece))?;
    file.flush()
}
