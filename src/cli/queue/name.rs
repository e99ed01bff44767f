//! What a person calls an activity: its number, Postfix's queue id, our key or the beginning of it.
//!
//! In: a word. Out: the activities that it names.
//! Promise: a number or a queue id is meant as it is; a number that nothing has is not the beginning of a key, nor is a word
//! so short that it is one of something by accident. A queue id names all activities of its message. `b3:` before it says
//! that it is a key.

use super::{Failure, other, tell};
use crate::queue::{Entry, Filter, Queue, State};
use crate::trace::{self, Query, Term};
use std::collections::BTreeSet;

/// Digits of a key that must be given at least: behind `b3:`, and without it, where the word may be anything.
const LEAST: usize = 4;
const LEAST_ALONE: usize = 8;

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
    let word = as_copied(word);
    let may_be_key = may_be_key(word)?;
    let found = |how, entries| Found { word: word.to_owned(), how, entries };
    let filter = Filter { state, ..Filter::default() };
    let list = async |filter| queue.list(filter).await.map_err(other);
    if let Some(number) = word.parse::<i64>().ok().filter(|number| number.to_string() == word) {
        let entries = list(Filter { items: vec![number], ..filter.clone() }).await?;
        if !entries.is_empty() {
            return Ok(found(How::Number, entries));
        }
    }
    let of_key = match may_be_key {
        true => list(Filter { keys: vec![word.to_owned()], ..filter.clone() }).await?,
        false => Vec::new(),
    };
    // A whole key is nothing else.
    if !word.starts_with("b3:") && !word.is_empty() && word.len() < 32 {
        let keys = traced(word).await;
        for id in spellings(word) {
            let filter = Filter { queue_id: Some(id), ..filter.clone() };
            if !keys.is_empty() {
                let entries = list(Filter { keys: keys.clone(), ..filter.clone() }).await?;
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
    }
    Ok(found(How::Key, of_key))
}

/// A word without what logs and mailq put behind an id.
fn as_copied(word: &str) -> &str {
    let plain = word.trim().trim_end_matches([':', ',', ';', '*', '!']);
    if plain.is_empty() || plain == "b3" { word } else { plain }
}

/// A queue id as it is given; and short ones are upper case, whatever somebody makes of them.
fn spellings(word: &str) -> Vec<String> {
    let upper = word.to_ascii_uppercase();
    let is_other = upper != word && word.bytes().all(|b| b.is_ascii_hexdigit());
    std::iter::once(word.to_owned()).chain(is_other.then_some(upper)).collect()
}

/// Whether a word can be the beginning of a key.
/// # Errors
/// It says that it is, and is too little of one.
fn may_be_key(word: &str) -> Result<bool, Failure> {
    match word.strip_prefix("b3:") {
        Some(digits) if digits.len() < LEAST => Err(Failure::CommandLine(format!(
            "{word} is too little of a key: give at least {LEAST} digits behind b3:"
        ))),
        Some(_) => Ok(true),
        // No key is so short as a number is long, unless it is written out.
        None => {
            Ok(word.len() >= LEAST_ALONE && (word.len() >= 32 || !word.bytes().all(|b| b.is_ascii_digit())))
        }
    }
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
            (_, 0) => {
                let what = match may_be_key(&word) {
                    Ok(true) => format!("has a key that begins with {word}, nor this number or queue id"),
                    _ => format!(
                        "has the number or queue id \"{word}\" (before the beginning of a key write b3:)"
                    ),
                };
                Err(other(format!(
                    "no activity in the queue {what}: `queue list` shows what there is, \
                     `queue list --state delivered` what is kept after its delivery"
                )))
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_as_people_copy_them() {
        for (word, plain, tried) in [
            ("32D6E99218A:", "32D6E99218A", &["32D6E99218A"][..]),
            ("32d6e99218a", "32d6e99218a", &["32d6e99218a", "32D6E99218A"]),
            ("32D6E99218A*", "32D6E99218A", &["32D6E99218A"]),
            ("32D6E99218A!", "32D6E99218A", &["32D6E99218A"]),
            // Long ones tell upper and lower case apart.
            ("4bXyZ30w1Zz9vB:", "4bXyZ30w1Zz9vB", &["4bXyZ30w1Zz9vB"]),
            ("b3:", "b3:", &["b3:"]),
            ("", "", &[""]),
        ] {
            assert_eq!(as_copied(word), plain, "{word}");
            assert_eq!(spellings(plain), tried, "{word}");
        }
    }
}
