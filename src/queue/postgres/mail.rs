//! A message as it is written: its activities as columns, and what they share.
//!
//! In: activities. Out: columns.
//! Promise: the words are those that every engine keeps (`written`).
//! Fails: an activity that cannot be written as JSON.

use super::payload;
use crate::activity::{Activity, Cut, Key, Raw};
use crate::queue::{StorageError, transfer::Past, written};

/// The activities as columns.
#[derive(Debug, Default)]
pub(super) struct Columns {
    pub(super) keys: Vec<Vec<u8>>,
    pub(super) tenants: Vec<String>,
    pub(super) prefixes: Vec<String>,
    pub(super) briefs: Vec<String>,
    pub(super) activities: Vec<String>,
    pub(super) sizes: Vec<i64>,
}

impl Columns {
    pub(super) fn of(activities: Vec<Activity>, text: Option<Cut>, held: u64) -> Result<Self, StorageError> {
        let mut columns = Self::default();
        for activity in activities {
            let (key, tenant) = (activity.key.clone(), activity.tenant.clone());
            let brief = payload::brief(&activity)?;
            let json = written::json(activity, text)?;
            columns.push(&key, tenant.id, tenant.prefix, brief, json, held);
        }
        Ok(columns)
    }

    /// One more; `held`: bytes of its message that are in memory when it is opened.
    pub(super) fn push(
        &mut self,
        key: &Key,
        tenant: String,
        prefix: String,
        brief: String,
        activity: String,
        held: u64,
    ) {
        self.keys.push(key.bytes().to_vec());
        self.tenants.push(tenant);
        self.prefixes.push(prefix);
        self.briefs.push(brief);
        self.sizes.push(i64::try_from(activity.len() as u64 + held).unwrap_or(i64::MAX));
        self.activities.push(activity);
    }
}

/// A message, to be stored.
#[derive(Debug)]
pub(super) struct Mail {
    pub(super) columns: Columns,
    pub(super) covered: Vec<Vec<u8>>,
    pub(super) cuts: String,
    pub(super) text: Option<String>,
    pub(super) raw: Raw,
    /// What became of its activities in another queue; empty: it arrives.
    pub(super) pasts: Vec<Past>,
}

impl Mail {
    /// It has more than one piece.
    pub(super) fn is_long(&self) -> bool {
        self.raw.len() > payload::PART as u64
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.columns.keys.iter().chain(&self.covered)
    }

    pub(super) fn bytes(&self) -> u64 {
        let columns = &self.columns;
        self.raw.len()
            + columns.activities.iter().chain(&columns.briefs).map(|text| text.len() as u64).sum::<u64>()
    }
}
