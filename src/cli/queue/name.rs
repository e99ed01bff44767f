//! What a person calls an activity: its number, Postfix's queue id, our key or the beginning of it.
//!
//! In: a word. Out: the activities that it names.
//! Promise: a number or a queue id is meant as it is; only what is neither is the beginning of a key. A queue id names all
//! activities of its message. `b3:` before it says that it is a key.

use super::{Failure, other, tell};
use crate::queue::{Entry, Filter, Queue, State};
use crate::trace::{self, Query, Term};
use std::collections::BTreeSet;

/// What a word names.
#[derive(Debug)]
pub(super) struct Found {
    word: String,
    how: How,
    pub(super) entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Number,
    QueueId,
    Key,
}

/// Looks for what a word names, in this state or in all but [`State::Delivered`].
pub(super) async fn find(queue: &dyn Queue, word: &str, state: Option<State>) -> Result<Found, Failure> {
    let found = |how, entries| Found { word: word.to_owned(), how, entries };
    let filter = Filter { state, ..Filter::default() };
    let list = async |filter| queue.list(filter).await.map_err(other);
    if let Ok(number) = word.parse::<i64>() {
        let entries = list(Filter { items: vec![number], ..filter.clone() }).await?;
        if !entries.is_empty() {
            return Ok(found(How::Number, entries));
        }
    }
    let of_key = list(Filter { keys: vec![word.to_owned()], ..filter.clone() }).await?;
    // A whole key is nothing else.
    if !word.starts_with("b3:") && word.len() < 32 {
        let filter = Filter { queue_id: Some(word.to_owned()), ..filter };
        let keys = traced(word).await;
        if !keys.is_empty() {
            let entries = list(Filter { keys, ..filter.clone() }).await?;
            if !entries.is_empty() {
                return Ok(found(How::QueueId, entries));
            }
        }
        // This reads every row.
        let entries = list(filter).await?;
        if !entries.is_empty() {
            return Ok(found(How::QueueId, entries));
        }
    }
    Ok(found(How::Key, of_key))
}

/// The keys of what came under a queue id, as the trace has them by an index; none, if it may not have all of them.
async fn traced(word: &str) -> Vec<String> {
    let (Some(settings), Ok(term)) = (trace::settings(), Term::read(word)) else { return Vec::new() };
    let query = Query { term, since: None, until: None };
    let search = move || trace::search(&settings.path, &query);
    match tokio::task::spawn_blocking(search).await {
        Ok(Ok(found)) if !found.more && found.reach.lost == 0 => {
            let events = found.mails.iter().flat_map(|mail| &mail.events);
            events.filter_map(|event| event.key.clone()).collect::<BTreeSet<_>>().into_iter().collect()
        }
        _ => Vec::new(),
    }
}

impl Found {
    /// The activities; an error where there is none, or where the beginning of a key is that of several.
    pub(super) fn those(self) -> Result<Vec<Entry>, Failure> {
        let Self { word, how, entries } = self;
        match (how, entries.len()) {
            (_, 0) => Err(other(format!(
                "no activity in the queue has a key that begins with {word}, nor this number or queue id: \
                 `queue list` shows what there is, `queue list --state delivered` what is kept after its delivery"
            ))),
            (How::Key, 2..) => {
                Err(other(format!("several activities have keys that begin with {word}: give more of it")))
            }
            (How::QueueId, count @ 2..) => {
                tell(&format!("queue id {word} is that of {count} activities: all of them"));
                Ok(entries)
            }
            _ => Ok(entries),
        }
    }
}
