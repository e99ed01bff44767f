//! Who holds what, as the writer's thread remembers it; the table `lease` is the same for other processes.
//!
//! Promise: a lease ends by itself after its time, by the clock that nobody sets, but not while its end is owed to the
//! disk. What was changed since the last commit can be undone.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

/// A lease.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub(super) fence: i64,
    pub(super) tenant: Arc<str>,
    pub(super) due: i64,
    /// When it ends by itself ([`super::Clock::running`]).
    pub(super) until: Duration,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Leases {
    held: HashMap<i64, Lease>,
    ends: BTreeSet<(Duration, i64)>,
    /// What each changed one was before, in the order of the changes.
    undo: Vec<(i64, Option<Lease>)>,
}

impl Leases {
    pub(super) fn has(&self, item: i64) -> bool {
        self.held.contains_key(&item)
    }

    /// The lease with this number, if it is still that one's.
    pub(super) fn get(&self, item: i64, fence: i64) -> Option<&Lease> {
        self.held.get(&item).filter(|lease| lease.fence == fence)
    }

    pub(super) fn insert(&mut self, item: i64, lease: Lease) {
        let before = self.put(item, Some(lease));
        self.undo.push((item, before));
    }

    pub(super) fn remove(&mut self, item: i64) -> Option<Lease> {
        let before = self.put(item, None);
        self.undo.push((item, before.clone()));
        before
    }

    /// An item is due at this time at the latest: the clock was wrong when it came.
    pub(super) fn mend(&mut self, item: i64, latest: i64) {
        if let Some(lease) = self.held.get(&item).filter(|lease| lease.due > latest) {
            let lease = Lease { due: latest, ..lease.clone() };
            self.insert(item, lease);
        }
    }

    /// Those whose time is over.
    pub(super) fn over(&self, now: Duration) -> Vec<i64> {
        self.ends.iter().take_while(|(until, _)| *until <= now).map(|(_, item)| *item).collect()
    }

    /// What was changed is on disk.
    pub(super) fn committed(&mut self) {
        self.undo.clear();
    }

    /// What was changed did not come to the disk.
    pub(super) fn roll_back(&mut self) {
        while let Some((item, before)) = self.undo.pop() {
            self.put(item, before);
        }
    }

    fn put(&mut self, item: i64, lease: Option<Lease>) -> Option<Lease> {
        let until = lease.as_ref().map(|lease| lease.until);
        let before = match lease {
            Some(lease) => self.held.insert(item, lease),
            None => self.held.remove(&item),
        };
        if let Some(before) = &before {
            self.ends.remove(&(before.until, item));
        }
        self.ends.extend(until.map(|until| (until, item)));
        before
    }
}
