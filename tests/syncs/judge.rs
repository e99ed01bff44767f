//! What must hold of a queue that is opened after a power cut.
//!
//! In: the folder as the cut left it, and what had been said and delivered by then. Out: the keys that are there, or what is wrong.
//! It opens; what was answered 250 is there, whole, and once, or the backend had it; its key is known; nothing of a message is there
//! without the rest; what was durably gone does not come back; the numbers are those of the rows. Further, where it is looked at
//! more closely ([`Care`]): SQLite finds the file in order, upkeep leaves each file with its row, and all that waits can be leased.

use super::{
    play::{Activity, Book, activities_of, hash, message},
    record::Place,
};
use crate::store;
use activity_milter::{
    activity::Key,
    queue::{self, Filter, Item, Queue, Settings, State, SystemClock},
};
use rusqlite::Connection;
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
};
use tokio::runtime::Runtime;

/// What had been said by then.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    pub place: Place,
    /// In microseconds since 1970.
    pub time: i64,
    pub said: &'a BTreeMap<usize, Place>,
    /// Where an activity was durably gone, at the latest.
    pub gone: &'a BTreeMap<String, Place>,
    /// From here on what is delivered is kept.
    pub keeps: Place,
}

/// How closely it is looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Care {
    Usual,
    /// Integrity, upkeep, leases.
    Close,
}

/// Who judges. Messages in files that were found to be whole are not read again.
pub struct Judge<'b> {
    book: &'b Book,
    messages: BTreeMap<usize, Vec<u8>>,
    whole: HashSet<(u64, String)>,
    runtime: Runtime,
}

impl<'b> Judge<'b> {
    pub fn of(book: &'b Book) -> Self {
        let messages = book.values().map(|activity| (activity.number, message(activity.number))).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { book, messages, whole: HashSet::new(), runtime }
    }

    /// The keys that are there.
    pub fn judge(
        &mut self,
        image: &Path,
        moment: Moment<'_>,
        care: Care,
    ) -> Result<BTreeSet<String>, String> {
        let settings = Settings { keep_delivered: store::DAYS, ..store::settings(&image.join("state")) };
        let queue = queue::open(&settings, Arc::new(SystemClock))
            .map_err(|error| format!("it does not open: {error}"))?;
        let (book, messages, whole) = (self.book, &self.messages, &mut self.whole);
        self.runtime.block_on(async {
            let there = present(&*queue, book, messages, whole).await?;
            let kept = delivered(&*queue, book, messages, whole, &there).await?;
            said(&*queue, book, &there, &kept, moment).await?;
            if care == Care::Close {
                closely(&*queue, &settings, &there).await?;
            }
            Ok(there)
        })
    }
}

/// What is listed: each once, and whole.
async fn present(
    queue: &dyn Queue,
    book: &Book,
    messages: &BTreeMap<usize, Vec<u8>>,
    whole: &mut HashSet<(u64, String)>,
) -> Result<BTreeSet<String>, String> {
    let entries = queue.list(Filter::default()).await.map_err(|error| format!("no list: {error}"))?;
    let mut there = BTreeSet::new();
    for entry in &entries {
        let key = entry.key.as_str().to_owned();
        let activity = book.get(&key).ok_or_else(|| format!("{key} is nobody's"))?;
        let item =
            queue.open(entry.id).await.map_err(|error| format!("{key} of {}: {error}", activity.number))?;
        is_whole(&item, activity, &messages[&activity.number], whole)
            .map_err(|what| format!("{key} of message {}: {what}", activity.number))?;
        if !there.insert(key.clone()) {
            return Err(format!("{key} is there twice"));
        }
    }
    let counts = queue.counts().await.map_err(|error| format!("no numbers: {error}"))?;
    let held = entries.iter().filter(|entry| entry.state == State::Held).count() as u64;
    if (counts.waiting, counts.held) != (entries.len() as u64 - held, held) {
        return Err(format!("{counts:?}, and {} are listed, {held} of them held", entries.len()));
    }
    Ok(there)
}

/// What is kept after its delivery: each once, whole, and not in the queue.
async fn delivered(
    queue: &dyn Queue,
    book: &Book,
    messages: &BTreeMap<usize, Vec<u8>>,
    whole: &mut HashSet<(u64, String)>,
    there: &BTreeSet<String>,
) -> Result<BTreeSet<String>, String> {
    let filter = Filter { state: Some(State::Delivered), ..Filter::default() };
    let entries = queue.list(filter).await.map_err(|error| format!("no list of what is kept: {error}"))?;
    let mut kept = BTreeSet::new();
    for entry in &entries {
        let key = entry.key.as_str().to_owned();
        let activity = book.get(&key).ok_or_else(|| format!("{key}, which is kept, is nobody's"))?;
        let item = queue.open(entry.id).await.map_err(|error| format!("{key}, which is kept: {error}"))?;
        is_whole(&item, activity, &messages[&activity.number], whole)
            .map_err(|what| format!("{key}, which is kept: {what}"))?;
        if there.contains(&key) || !kept.insert(key.clone()) {
            return Err(format!("{key} is kept, and there too"));
        }
    }
    Ok(kept)
}

fn is_whole(
    item: &Item,
    activity: &Activity,
    message: &[u8],
    whole: &mut HashSet<(u64, String)>,
) -> Result<(), String> {
    if item.json != activity.json {
        return Err("another activity than was sent".to_owned());
    }
    let place = match &item.raw {
        activity_milter::activity::Raw::Memory(_) => None,
        activity_milter::activity::Raw::File { file, .. } => {
            let inode = file.metadata().map_err(|error| error.to_string())?.ino();
            Some((inode, item.key.as_str().to_owned()))
                .filter(|_| file.metadata().is_ok_and(|of| of.nlink() > 1))
        }
    };
    if place.as_ref().is_some_and(|place| whole.contains(place)) {
        return Ok(());
    }
    if store::bytes(&item.raw) != message {
        return Err("another message than was sent".to_owned());
    }
    let mut files = Vec::new();
    for cut in &item.cuts {
        let mut bytes = Vec::new();
        let read = item.raw.decode(*cut, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        });
        read.map_err(|error| format!("a file: {error}"))?;
        files.push(hash(&bytes));
    }
    if files != activity.files {
        return Err("other files than were sent".to_owned());
    }
    whole.extend(place);
    Ok(())
}

/// What was said holds.
async fn said(
    queue: &dyn Queue,
    book: &Book,
    there: &BTreeSet<String>,
    kept: &BTreeSet<String>,
    moment: Moment<'_>,
) -> Result<(), String> {
    let is_said = |number: usize| moment.said.get(&number).is_some_and(|place| *place < moment.place);
    let is_taken = |activity: &Activity| activity.taken.is_some_and(|taken| taken <= moment.time);
    let mut accepted = Vec::new();
    let mut found = BTreeMap::<usize, usize>::new();
    for (key, activity) in book {
        let is_there = there.contains(key);
        if is_said(activity.number) {
            accepted.push(Key::from_stored(key.clone()));
            if !is_there && !is_taken(activity) {
                return Err(format!("{key} of message {} is lost", activity.number));
            }
        }
        let gone = moment.gone.get(key).filter(|place| **place < moment.place);
        if is_there && gone.is_some() {
            return Err(format!("{key} of message {} has come back", activity.number));
        }
        if kept.contains(key) && !is_taken(activity)
            || gone.is_some_and(|gone| *gone > moment.keeps) && !kept.contains(key)
        {
            return Err(format!(
                "{key} of message {} is kept and was not delivered, or the other way round",
                activity.number
            ));
        }
        *found.entry(activity.number).or_default() += usize::from(is_there || is_taken(activity));
    }
    for (number, found) in found {
        if found != 0 && found != activities_of(number) {
            return Err(format!("half of message {number}"));
        }
    }
    let known = queue.known(accepted.clone()).await.map_err(|error| format!("not asked: {error}"))?;
    match accepted.iter().zip(known).find(|(_, known)| !known) {
        Some((key, _)) => Err(format!("{key} is forgotten")),
        None => Ok(()),
    }
}

async fn closely(queue: &dyn Queue, settings: &Settings, there: &BTreeSet<String>) -> Result<(), String> {
    let sound: String = Connection::open(&settings.path)
        .and_then(|database| database.query_row("PRAGMA integrity_check", [], |row| row.get(0)))
        .map_err(|error| format!("no look at its pages: {error}"))?;
    if sound != "ok" {
        return Err(format!("its pages: {sound}"));
    }
    queue.upkeep(store::DAYS).await.map_err(|error| format!("no upkeep: {error}"))?;
    let (files, named) = (store::files(&store::folder(settings)), store::named(settings));
    if files != named {
        return Err(format!("files {files:?}, and rows name {named:?}"));
    }
    let entries = queue.list(Filter::default()).await.map_err(|error| format!("no list: {error}"))?;
    if entries.len() != there.len() {
        return Err(format!("{} are there after upkeep, of {}", entries.len(), there.len()));
    }
    let due = entries
        .iter()
        .filter(|entry| entry.state == State::Waiting && entry.due <= std::time::SystemTime::now());
    let (due, leased) = (due.count(), store::lease_all(queue).await.len());
    if due > leased {
        return Err(format!("{due} are due, and {leased} are leased"));
    }
    Ok(())
}
