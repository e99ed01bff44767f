//! How many activities there are, and whether there is room for more.
//!
//! In: what the writer committed; who wants room. Out: numbers, and rooms.
//! Promise: what is committed and what is reserved is never more than the limits; a room is given back when what it was
//! for is committed or failed, whoever waits for it.

use crate::observe::{Promise, events};
use crate::queue::{Full, Settings, StorageError, TenantCounts};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Numbers of one tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) waiting: i64,
    /// Held, and counted.
    pub(super) held: i64,
    /// Held for so long that they count no more.
    pub(super) aged: i64,
}

impl Numbers {
    pub(super) fn add(&mut self, other: Self) {
        self.waiting += other.waiting;
        self.held += other.held;
        self.aged += other.aged;
    }

    /// What counts against the limits.
    fn counted(self) -> u64 {
        u64::try_from(self.waiting + self.held).unwrap_or(0)
    }
}

#[derive(Debug, Default)]
struct Counted {
    tenants: HashMap<String, (Numbers, u64)>,
    all: Numbers,
    reserved: u64,
    /// What was committed since somebody began to count what others made.
    since: Option<HashMap<String, Numbers>>,
}

impl Counted {
    /// Nobody has fewer than none.
    fn look(&self, tenant: &str) {
        let Some((numbers, _)) = self.tenants.get(tenant) else { return };
        if numbers.waiting.min(numbers.held).min(numbers.aged) < 0 {
            events::broken(Promise::Numbers, "", &format_args!("tenant {tenant}: {numbers:?}"));
        }
    }

    /// There was another tenant than this one.
    fn has_others(&self, tenant: &str) -> bool {
        self.tenants.len() > usize::from(self.tenants.contains_key(tenant))
    }
}

/// All numbers.
#[derive(Debug)]
pub(super) struct Tally {
    counted: Mutex<Counted>,
    most: u64,
    most_of_tenant: Option<u64>,
}

impl Tally {
    pub(super) fn new(settings: &Settings) -> Arc<Self> {
        let (most, most_of_tenant) = (settings.max_items, settings.max_items_per_tenant);
        Arc::new(Self { counted: Mutex::default(), most, most_of_tenant })
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody begins to count all.
    pub(super) fn begin(&self) {
        self.counted().since = Some(HashMap::new());
    }

    /// So many were counted. What was committed meanwhile is counted in any case, perhaps twice until the next time: too
    /// many by a few, never too few.
    pub(super) fn end(&self, numbers: impl Iterator<Item = (String, Numbers)>) {
        let since = self.counted().since.take().unwrap_or_default();
        for (tenant, mut numbers) in numbers {
            numbers.add(since.get(&tenant).copied().unwrap_or_default());
            self.set(&tenant, numbers);
        }
    }

    /// The numbers of a tenant are these.
    pub(super) fn set(&self, tenant: &str, numbers: Numbers) {
        let mut counted = self.counted();
        let (of_tenant, _) = counted.tenants.entry(tenant.to_owned()).or_default();
        let before = std::mem::replace(of_tenant, numbers);
        let all = &mut counted.all;
        all.waiting += numbers.waiting - before.waiting;
        all.held += numbers.held - before.held;
        all.aged += numbers.aged - before.aged;
        counted.look(tenant);
    }

    /// These changes were committed.
    pub(super) fn commit(&self, changes: impl IntoIterator<Item = (String, Numbers)>) {
        let mut counted = self.counted();
        for (tenant, change) in changes {
            counted.all.add(change);
            if let Some(since) = &mut counted.since {
                since.entry(tenant.clone()).or_default().add(change);
            }
            counted.tenants.entry(tenant.clone()).or_default().0.add(change);
            counted.look(&tenant);
        }
    }

    /// Room for an activity of each of these tenants.
    pub(super) fn reserve(self: &Arc<Self>, tenants: Vec<String>) -> Result<Room, StorageError> {
        let mut counted = self.counted();
        let wanted = tenants.len() as u64;
        if counted.all.counted() + counted.reserved + wanted > self.most {
            return Err(Full::Items(self.most).into());
        }
        for tenant in &tenants {
            let alone = !counted.has_others(tenant) && tenants.iter().all(|other| other == tenant);
            let most = self.most_of(alone);
            let (numbers, reserved) = counted.tenants.get(tenant).copied().unwrap_or_default();
            let wanted = tenants.iter().filter(|other| *other == tenant).count() as u64;
            if numbers.counted() + reserved + wanted > most {
                return Err(Full::Tenant { tenant: tenant.clone(), most }.into());
            }
        }
        counted.reserved += wanted;
        for tenant in &tenants {
            counted.tenants.entry(tenant.clone()).or_default().1 += 1;
        }
        drop(counted);
        Ok(Room { tally: Arc::clone(self), tenants })
    }

    /// Most of one tenant's; `alone`: there was never another.
    fn most_of(&self, alone: bool) -> u64 {
        match self.most_of_tenant {
            Some(most) => most.min(self.most),
            None if alone => self.most,
            None => (self.most / 2).max(1),
        }
    }

    /// Whether a tenant's delivered activity may wait once more, besides `more` of the tenant and `all` others that were
    /// told so before and are not committed: the last quarter is for mail that arrives.
    pub(super) fn takes_back(&self, tenant: &str, more: u64, all: u64) -> bool {
        let counted = self.counted();
        let most = self.most_of(!counted.has_others(tenant));
        let (numbers, reserved) = counted.tenants.get(tenant).copied().unwrap_or_default();
        let fits = |there: u64, most: u64| there < most - most / 4;
        fits(counted.all.counted() + counted.reserved + all, self.most)
            && fits(numbers.counted() + reserved + more, most)
    }

    /// How many more may be kept after their delivery: no more than would fit with what waits.
    pub(super) fn spare(&self) -> u64 {
        self.most.saturating_sub(self.counted().all.counted())
    }

    pub(super) fn all(&self) -> Numbers {
        self.counted().all
    }

    /// There was never another tenant than one.
    pub(super) fn is_alone(&self) -> bool {
        self.counted().tenants.len() <= 1
    }

    pub(super) fn by_tenant(&self) -> Vec<TenantCounts> {
        let counted = self.counted();
        let tenants = counted.tenants.iter().map(|(tenant, (numbers, _))| counts(tenant.clone(), *numbers));
        let mut all: Vec<_> = tenants.filter(|counts| counts.waiting + counts.held > 0).collect();
        all.sort_by(|a, b| (b.waiting + b.held, &a.tenant).cmp(&(a.waiting + a.held, &b.tenant)));
        all
    }
}

fn counts(tenant: String, numbers: Numbers) -> TenantCounts {
    let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
    TenantCounts { tenant, waiting: unsigned(numbers.waiting), held: unsigned(numbers.held + numbers.aged) }
}

/// Room for activities; given back when it is dropped, which is after their commit.
#[derive(Debug)]
pub(super) struct Room {
    tally: Arc<Tally>,
    tenants: Vec<String>,
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut counted = self.tally.counted();
        let mut is_right = true;
        let mut give_back = |reserved: &mut u64, many: u64| {
            is_right &= *reserved >= many;
            *reserved = reserved.saturating_sub(many);
        };
        give_back(&mut counted.reserved, self.tenants.len() as u64);
        for tenant in &self.tenants {
            if let Some((_, reserved)) = counted.tenants.get_mut(tenant) {
                give_back(reserved, 1);
            }
        }
        if !is_right {
            events::broken(Promise::Room, "", &"more room was given back than was reserved");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics;

    fn seen(promise: &str) -> bool {
        metrics::render().contains(&format!("violated_total{{promise=\"{promise}\"}} 1"))
    }

    /// Q24, Q11: what cannot be is seen, and does no more harm.
    #[test]
    fn fewer_than_none_and_more_than_was_reserved_are_seen() {
        metrics::start();
        let tally = Tally::new(&Settings::new("queue.db".into(), "spool".into()));
        let one = |waiting| [("a".to_owned(), Numbers { waiting, ..Numbers::default() })];
        let room = tally.reserve(vec!["a".to_owned()]).unwrap();
        tally.commit(one(1));
        tally.commit(one(-1));
        assert!(!seen("Q24") && !seen("Q11"));
        tally.commit(one(-1));
        assert!(seen("Q24"));
        tally.counted().reserved = 0;
        drop(room);
        assert!(seen("Q11"));
        assert_eq!(tally.counted().reserved, 0);
    }
}
