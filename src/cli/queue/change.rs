//! `queue retry`, `hold` and `drop`: what a person does with activities.
//!
//! Promise: each activity that was changed is in the log, with its key, its queue id and who did it.

use super::{AT_ONCE, Failure, StateName, Which, agreed, all, identity, name, other, say, text};
use crate::config::Config;
use crate::observe::{self, events};
use crate::queue::{Change as Changes, Entry, Queue, State};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    collections::{BTreeSet, HashSet},
    io::{self, IsTerminal},
    process::ExitCode,
};

#[derive(Debug, Args)]
pub(super) struct Change {
    #[command(flatten)]
    which: Which,
    /// All that the filters let through, where no activity is named
    #[arg(long)]
    all: bool,
    /// Say which it would be, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask, at a terminal either
    #[arg(long)]
    yes: bool,
}

/// Those that are meant; a command without a name or filter must say `--all`.
async fn meant(queue: &dyn Queue, change: &Change) -> Result<Vec<Entry>, Failure> {
    let Change { which, all: everything, .. } = change;
    if which.words.is_empty() {
        return match everything {
            true => all(queue, which.filter(Vec::new(), None)).await,
            false => Err(Failure::CommandLine(
                "give keys, or --all with or without filters (--state, --tenant, --older-than)".to_owned(),
            )),
        };
    }
    let mut items = Vec::new();
    for word in &which.words {
        let those = name::find(queue, word, which.state.map(State::from)).await?.those()?;
        items.extend(those.iter().map(|entry| entry.id));
    }
    all(queue, which.filter(items, None)).await
}

/// What is asked before many are dropped.
fn question(entries: &[Entry]) -> String {
    let tenants: BTreeSet<&str> = entries.iter().map(|entry| entry.tenant.as_str()).collect();
    let of = match tenants.len() {
        1 => format!("of tenant {}", tenants.first().copied().unwrap_or_default()),
        many => format!("of {many} tenants"),
    };
    format!(
        "Drop {} activities {of}? They are gone for good, and the same e-mails are not recorded again within seven days.",
        entries.len()
    )
}

pub(super) async fn change(
    config: &Config,
    queue: &dyn Queue,
    change: &Change,
    what: &'static str,
    how: &Changes,
) -> Result<ExitCode, Failure> {
    if matches!(change.which.state, Some(StateName::Delivered)) && *how != Changes::Drop {
        let message = "what was delivered is sent again by `queue redeliver`, and else only dropped";
        return Err(Failure::CommandLine(message.to_owned()));
    }
    let entries = meant(queue, change).await?;
    if change.dry_run {
        say(&text::table(&entries, &config.addressing))?;
        say(&format!("{} would be {what}; nothing was changed\n", entries.len()))?;
        return Ok(ExitCode::SUCCESS);
    }
    if *how == Changes::Drop && entries.len() > 1 && !change.yes && !agreed(&question(&entries))? {
        say("nothing was changed\n")?;
        return Ok(ExitCode::FAILURE);
    }
    observe::start_for_command(&config.log);
    let uid = identity::caller();
    let bar = bar(entries.len());
    let mut changed = 0;
    for chunk in entries.chunks(AT_ONCE) {
        let ids = chunk.iter().map(|entry| entry.id).collect();
        let those: HashSet<i64> =
            queue.change_those(ids, how.clone()).await.map_err(other)?.into_iter().collect();
        for entry in chunk.iter().filter(|entry| those.contains(&entry.id)) {
            let queue_id = entry.queue_id.as_deref().unwrap_or_default();
            events::activity_changed(what, uid, entry.key.as_str(), &entry.tenant, queue_id);
        }
        changed += those.len();
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    let left = entries.len() - changed;
    let why =
        if left > 0 { format!("; {left} not, for they are in flight or already so") } else { String::new() };
    say(&format!("{changed} {what}{why}\n"))?;
    Ok(ExitCode::from(u8::from(left > 0)))
}

/// A bar on a terminal, for work that takes long.
pub(super) fn bar(length: usize) -> ProgressBar {
    if length <= AT_ONCE || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length as u64).with_style(style)
}
