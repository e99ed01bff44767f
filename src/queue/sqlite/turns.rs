//! Whose turn it is, and which of theirs.
//!
//! In: which tenants have something, and since when at the earliest it may be due. Out: rows that are due.
//! Promise: while more is due than may be taken, each tenant gets one before another gets its second; what a call costs
//! depends on what it gives, not on what waits.
//!
//! The essay: one index holds what waits, by tenant and due time. Asking it tenant by tenant is a search for each, and
//! with ten thousand tenants that do not have anything due yet, most searches are for nothing. So for each tenant we
//! remember the earliest time at which there may be something, and only tenants whose time has come are looked at. The
//! remembered time may be too early (then one search corrects it), never too late: whatever makes a row available says so
//! here. Leased rows stand in the index like all others; to step over those of former calls, we remember for each tenant
//! the place up to which everything is leased.

use super::leases::Leases;
use crate::queue::{Ask, Probe};
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque, btree_map::Entry};
use std::ops::Bound;
use std::sync::Arc;

/// The place before all rows.
const BEGIN: (i64, i64) = (i64::MIN, i64::MIN);

/// The time of tenants that have nothing.
const NEVER: i64 = i64::MAX;

/// Tenants whose time turned out not to have come, in one call: the next call corrects the others.
const MOST_IN_VAIN: usize = 500;

/// Rows that are looked at for one that was never attempted.
const FRESH_LOOKS: i64 = 1000;

#[derive(Debug)]
struct Head {
    /// No row is available before.
    next: i64,
    /// (due, id) up to which all rows are leased.
    place: (i64, i64),
}

/// What there may be of each tenant. Each is in one of `later` and `come`.
#[derive(Debug, Default)]
pub(super) struct Turns {
    heads: BTreeMap<Arc<str>, Head>,
    /// Tenants whose time had not come at the last call, by their times.
    later: BTreeSet<(i64, Arc<str>)>,
    /// Tenants whose time has come.
    come: BTreeSet<Arc<str>>,
}

/// A row that was chosen.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    pub(super) id: i64,
    pub(super) tenant: Arc<str>,
    pub(super) due: i64,
    pub(super) size: i64,
}

/// The answer of [`Turns::choose`].
pub(super) struct Choice {
    pub(super) rows: Vec<Chosen>,
    /// When there may be more: at once if that is not after now.
    pub(super) next: Option<i64>,
}

impl Choice {
    /// This row, and perhaps more.
    pub(super) fn one(row: Chosen, now: i64) -> Self {
        Self { rows: vec![row], next: Some(now) }
    }
}

impl Turns {
    /// A row of this tenant waits from `due` on, at (due, id).
    pub(super) fn available(&mut self, tenant: &str, due: i64, id: i64) {
        let before = (due, id.saturating_sub(1));
        let tenant: Arc<str> = match self.heads.get_key_value(tenant) {
            Some((tenant, _)) => Arc::clone(tenant),
            None => Arc::from(tenant),
        };
        match self.heads.entry(Arc::clone(&tenant)) {
            Entry::Vacant(entry) => {
                entry.insert(Head { next: due, place: BEGIN });
                self.later.insert((due, tenant));
            }
            Entry::Occupied(mut entry) => {
                let head = entry.get_mut();
                head.place = head.place.min(before);
                if due < head.next {
                    if self.later.remove(&(head.next, Arc::clone(&tenant))) {
                        self.later.insert((due, tenant));
                    }
                    head.next = due;
                }
            }
        }
    }

    /// Nothing is known of this tenant any more but that it may have something.
    pub(super) fn ask_again(&mut self, tenant: &str) {
        self.available(tenant, i64::MIN, i64::MIN);
    }

    /// The same for all.
    pub(super) fn ask_all_again(&mut self) {
        let tenants: Vec<_> = self.heads.keys().cloned().collect();
        tenants.iter().for_each(|tenant| self.ask_again(tenant));
    }

    /// Notes whose time has come.
    fn advance(&mut self, now: i64) {
        while let Some((due, _)) = self.later.first()
            && *due <= now
        {
            let (_, tenant) = self.later.pop_first().expect("it has a first one");
            self.come.insert(tenant);
        }
    }

    /// Tenants whose time has come, beginning with the one after `ask.after`, but for those left out; up to `most`.
    fn round(&self, ask: &Ask, without: &HashSet<&str>, most: usize) -> Vec<Arc<str>> {
        if let Some(only) = &ask.only {
            return self.come.get(only.as_str()).into_iter().cloned().collect();
        }
        let behind = (Bound::Excluded(ask.after.as_str()), Bound::Unbounded);
        let before = (Bound::Unbounded, Bound::Included(ask.after.as_str()));
        let round = self.come.range::<str, _>(behind).chain(self.come.range::<str, _>(before));
        round.filter(|tenant| !without.contains(&***tenant)).take(most).cloned().collect()
    }

    /// The row that a probe wants, if there is one.
    pub(super) fn probe(
        &mut self,
        database: &Connection,
        leases: &Leases,
        now: i64,
        ask: &Ask,
    ) -> rusqlite::Result<Option<Chosen>> {
        let Some(probe) = &ask.probe else { return Ok(None) };
        self.advance(now);
        let without: HashSet<&str> = ask.without.iter().map(String::as_str).collect();
        let (tried, besides): (&[i64], &[i64]) = match probe {
            Probe::Tried(tried) => (tried, &[]),
            Probe::Fresh(besides) => (&[], besides),
        };
        let mut select = database
            .prepare_cached(&format!("SELECT tenant, {ROW} FROM item WHERE id = ?1 AND state = 0"))?;
        for id in tried.iter().filter(|id| !leases.has(**id)) {
            let found =
                select.query_row([id], |row| Ok((row.get::<_, String>(0)?, sized(row, 1)?))).optional()?;
            if let Some((tenant, (due, id, size))) = found
                && ask.only.as_ref().is_none_or(|only| *only == tenant)
                && !without.contains(tenant.as_str())
            {
                return Ok(Some(Chosen { id, tenant: tenant.into(), due, size }));
            }
        }
        let mut select = database.prepare_cached(&format!(
            "SELECT attempts, {ROW} FROM item INDEXED BY item_turn
             WHERE state = 0 AND tenant = ?1 AND due <= ?2 ORDER BY due DESC, id DESC LIMIT ?3",
        ))?;
        let mut looks = FRESH_LOOKS;
        for tenant in self.round(ask, &without, MOST_IN_VAIN) {
            let mut rows = select.query(params![&*tenant, now, looks])?;
            while let Some(row) = rows.next()? {
                looks -= 1;
                let (due, id, size) = sized(row, 1)?;
                if row.get::<_, i64>(0)? == 0 && !besides.contains(&id) && !leases.has(id) {
                    return Ok(Some(Chosen { id, tenant, due, size }));
                }
            }
            if looks == 0 {
                break;
            }
        }
        Ok(None)
    }

    /// Chooses up to `ask.room` rows that are due and not leased, one of each tenant by turns, beginning with the tenant
    /// after `ask.after`. They must be leased then.
    pub(super) fn choose(
        &mut self,
        database: &Connection,
        leases: &Leases,
        now: i64,
        ask: &Ask,
    ) -> rusqlite::Result<Choice> {
        self.advance(now);
        let room = ask.room;
        let without: HashSet<&str> = ask.without.iter().map(String::as_str).collect();
        let mut found: Vec<(Arc<str>, VecDeque<Chosen>)> = Vec::new();
        let (mut in_vain, mut more) = (0, false);
        let round = self.round(ask, &without, room + MOST_IN_VAIN);
        let many = ask.only.is_none() && round.len() + without.len() < self.come.len();
        let each = room.div_ceil(round.len().max(1)).max(1);
        for tenant in round {
            if found.len() == room || in_vain == MOST_IN_VAIN {
                more = true;
                break;
            }
            let rows = self.of_tenant(database, leases, &tenant, now, each)?;
            if rows.is_empty() {
                in_vain += 1;
            } else {
                found.push((tenant, rows));
            }
        }
        let mut rows = Vec::with_capacity(room);
        while rows.len() < room && !found.is_empty() {
            let mut exhausted = Vec::new();
            for (at, (tenant, of_tenant)) in found.iter_mut().enumerate() {
                if rows.len() == room {
                    break;
                }
                if of_tenant.is_empty() {
                    *of_tenant = self.of_tenant(database, leases, tenant, now, each)?;
                }
                match of_tenant.pop_front() {
                    Some(row) => {
                        if let Some(head) = self.heads.get_mut(tenant) {
                            head.place = (row.due, row.id);
                        }
                        rows.push(row);
                    }
                    None => exhausted.push(at),
                }
            }
            for at in exhausted.into_iter().rev() {
                found.remove(at);
            }
        }
        let left = |tenant: &Arc<str>| match &ask.only {
            Some(only) => **tenant == **only,
            None => !without.contains(&**tenant),
        };
        let come = more || many || (rows.len() == room && self.come.iter().any(left));
        let later = self
            .later
            .iter()
            .find(|(_, tenant)| left(tenant))
            .map(|(due, _)| *due)
            .filter(|due| *due != NEVER);
        Ok(Choice { rows, next: if come { Some(now) } else { later } })
    }

    /// The next rows of a tenant behind its place that are due and not leased, up to `limit`. Corrects the tenant's time if
    /// there are none.
    fn of_tenant(
        &mut self,
        database: &Connection,
        leases: &Leases,
        tenant: &Arc<str>,
        now: i64,
        limit: usize,
    ) -> rusqlite::Result<VecDeque<Chosen>> {
        let Some(head) = self.heads.get_mut(tenant) else { return Ok(VecDeque::new()) };
        let mut select = database.prepare_cached(&format!(
            "SELECT {ROW} FROM item INDEXED BY item_turn
             WHERE state = 0 AND tenant = ?1 AND (due, id) > (?2, ?3) ORDER BY due, id"
        ))?;
        let mut rows = select.query(params![tenant, head.place.0, head.place.1])?;
        let mut found = VecDeque::with_capacity(limit);
        let mut next = None;
        let mut all_leased = true;
        while let Some(row) = rows.next()? {
            let (due, id): (i64, i64) = (row.get(0)?, row.get(1)?);
            if leases.has(id) {
                if all_leased && due <= now {
                    head.place = (due, id);
                }
                continue;
            }
            all_leased = false;
            if due > now || found.len() == limit {
                next = Some(due);
                break;
            }
            let (due, id, size) = sized(row, 0)?;
            found.push_back(Chosen { id, tenant: Arc::clone(tenant), due, size });
        }
        if found.is_empty() {
            self.come.remove(tenant);
            head.next = next.unwrap_or(NEVER);
            self.later.insert((head.next, Arc::clone(tenant)));
        }
        Ok(found)
    }
}

/// What is read of a row.
const ROW: &str = "due, id, octet_length(activity), coalesce(octet_length(body), 0), message";

/// When it is due, its number, its size. The bytes of a message that several share are not known here; they are no more
/// than a small message's.
fn sized(row: &Row<'_>, at: usize) -> rusqlite::Result<(i64, i64, i64)> {
    let (activity, body, message): (i64, i64, i64) = (row.get(at + 2)?, row.get(at + 3)?, row.get(at + 4)?);
    let shared = if message == 0 { 0 } else { SHARED };
    Ok((row.get(at)?, row.get(at + 1)?, activity + body + shared))
}

/// Most bytes of a message in the database.
const SHARED: i64 = 128 * 1024;
