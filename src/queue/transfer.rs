//! What moves from one queue to another: activities of one message, with what became of them so far.
//!
//! In: rows of a queue, as they are kept. Out: the same rows of another queue, with numbers of its own.
//! Promise: both engines keep the same words (`written`), so nothing is read and written anew on the way: what is sent
//! afterwards is what was accepted, byte for byte.
//!
//! The order that loses nothing, wherever it is cut off: the other queue takes them in, durably and once for each key
//! ([`Queue::take_in`](super::Queue::take_in)); only then they leave ([`Queue::let_go`](super::Queue::let_go)). What was
//! taken in and did not leave is taken in once more, and is known there.

use crate::activity::{Key, Raw};
use bytes::Bytes;
use std::collections::{BTreeMap, HashSet};

/// Rows of a page.
pub(super) const PAGE: usize = 32;

/// Bytes of a page's texts and small messages, but for one row that has more by itself.
pub(super) const PAGE_BYTES: usize = 4 << 20;

/// Why that is held which a move had that was cut off, until the next one has it.
pub const CUT_OFF: &str = "a move to another queue was cut off, and that one may have it: say the same `queue move` again, or \
     `queue retry` it, if it is to be delivered from here";

/// How a move ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Whatever the other queue took in has left, what earlier moves had that were cut off included.
    Done,
    /// This move gave the other queue nothing that did not leave.
    Clear,
    /// The other queue may have something that did not leave.
    Doubt,
}

/// What tells a queue from every other one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Made with the queue; a copy of it has the same.
    pub(super) id: String,
    /// Its file, by device and number: the same under every name. None: a server's.
    pub(super) file: Option<(u64, u64)>,
}

/// Activities of one message that stand beside each other in a queue.
#[derive(Clone, Debug)]
pub struct Transfer {
    pub(super) rows: Vec<Moved>,
    /// Where files lie, JSON.
    pub(super) cuts: String,
    /// Where the text stands in the message (JSON), if it does.
    pub(super) text: Option<String>,
    pub(super) raw: Raw,
}

impl Transfer {
    /// How many activities.
    pub fn activities(&self) -> usize {
        self.rows.len()
    }

    /// Their rows, where they come from.
    pub fn places(&self) -> Vec<Place> {
        self.rows.iter().map(|row| row.place).collect()
    }

    /// Their keys.
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> {
        self.rows.iter().map(|row| row.key.clone())
    }

    /// Without the rows of tenants for whom there is no room, which are counted there; none: there is no other.
    pub(super) fn without(
        mut self,
        full: &mut BTreeMap<String, (usize, String)>,
        known: &HashSet<Key>,
        staying: &mut Vec<Place>,
    ) -> Option<Self> {
        self.rows.retain(|row| match full.get_mut(&row.tenant) {
            // What is kept after its delivery takes no room that anybody counts, and what is there already none at all.
            Some((count, _)) if row.past.delivered_at.is_none() && !known.contains(&row.key) => {
                *count += 1;
                staying.push(row.place);
                false
            }
            _ => true,
        });
        (!self.rows.is_empty()).then_some(self)
    }

    /// Bytes that it has in memory.
    pub(super) fn bytes(&self) -> usize {
        let raw = match &self.raw {
            Raw::Memory(bytes) => bytes.len(),
            Raw::File { .. } => 0,
        };
        raw + self.rows.iter().map(|row| row.activity.len()).sum::<usize>()
    }

    /// Puts rows of the same message together that follow each other. `letters`: the message of each.
    pub(super) fn grouped(all: Vec<(i64, Self)>) -> Vec<Self> {
        let mut groups: Vec<(i64, Self)> = Vec::new();
        for (letter, one) in all {
            match groups.last_mut() {
                Some((last, group)) if *last == letter => group.rows.extend(one.rows),
                _ => groups.push((letter, one)),
            }
        }
        groups.into_iter().map(|(_, group)| group).collect()
    }
}

/// A row where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number.
    pub item: i64,
    /// Which hold on it: a later one has a greater number, and who has an earlier one has nothing any more.
    pub fence: i64,
}

/// One activity.
#[derive(Clone, Debug)]
pub(super) struct Moved {
    pub(super) place: Place,
    pub(super) key: Key,
    pub(super) tenant: String,
    /// As it is kept.
    pub(super) activity: String,
    pub(super) past: Past,
}

/// What became of an activity so far. Times are milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Past {
    pub(super) accepted_at: i64,
    pub(super) due: i64,
    pub(super) attempts: u32,
    /// Held for a person.
    pub(super) is_held: bool,
    pub(super) held_at: Option<i64>,
    /// Somebody was told that it is held.
    pub(super) told: bool,
    /// Held for so long that it counts no more.
    pub(super) aged: bool,
    pub(super) replay: bool,
    pub(super) reason: Option<String>,
    pub(super) note: Option<String>,
    /// Kept after its delivery.
    pub(super) delivered_at: Option<i64>,
}

/// Some rows of a queue, on their way.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// What can be moved.
    pub transfers: Vec<Transfer>,
    /// Rows that cannot, and why: their message is lost, or is damaged.
    pub stuck: Vec<(Key, String)>,
    /// The last row that was looked at; none: there were no more.
    pub last: Option<i64>,
}

/// The bytes of a message that is in memory.
pub(super) fn in_memory(raw: &Raw) -> Option<Bytes> {
    match raw {
        Raw::Memory(bytes) => Some(bytes.clone()),
        Raw::File { .. } => None,
    }
}
