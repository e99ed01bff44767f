//! Moves all of a queue into another one.
//!
//! In: two queues. Out: how much moved, and what could not.
//! Promise: page after page, the oldest first, each taken in durably before it leaves; so whoever is stopped at any point,
//! or does it twice, loses nothing and doubles nothing. Keys that have no row go first: an e-mail to a project covers the
//! bare address of its tenant, and a copy to that, come to the other queue meanwhile, would be recorded beside it.
//! Fails: [`HaulError`], which says which of the two it was; all that moved before stays moved.

use super::{Full, Queue, Rest, StorageError, Transfer};
use crate::activity::Key;
use std::{
    collections::{BTreeMap, HashSet},
    ops::ControlFlow,
};

/// Keys of a page.
const KEYS: usize = 1000;

/// What moved.
#[derive(Clone, Debug, Default)]
pub struct Hauled {
    /// Activities that left.
    pub activities: usize,
    /// Keys that had no row.
    pub keys: usize,
    /// Activities that stay, and why: their message is lost or damaged.
    pub stuck: Vec<(Key, String)>,
    /// Activities that stay because the other queue has no room for more of their tenant: how many of each, and the other
    /// queue's word.
    pub full: BTreeMap<String, (usize, String)>,
    /// Somebody stopped it.
    pub is_stopped: bool,
}

/// Why no more moved.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HaulError {
    /// Both are the same: what was taken in would be known, and what left would be gone.
    #[error("both are one queue under two names: nothing was moved. Say which other queue is meant")]
    One,
    /// One is a copy: they may have messages in common, and what is known of one counts for the other.
    #[error(
        "one of them is a copy of the other, or both are one queue under two names: nothing was moved. To put a copy and its \
         original together, move the copy to a new queue, and that one to the original"
    )]
    Copy,
    /// The queue that is left.
    #[error("{0}")]
    From(StorageError),
    /// The other one.
    #[error("{0}")]
    To(StorageError),
}

/// Moves all; `more` is told of each page, and may stop it.
/// # Errors
/// [`HaulError`].
pub async fn haul(
    from: &dyn Queue,
    to: &dyn Queue,
    more: impl FnMut(&Hauled) -> ControlFlow<()> + Send,
) -> Result<Hauled, HaulError> {
    are_two(from, to).await?;
    let mut doubt = false;
    let hauled = haul_all(from, to, more, &mut doubt).await;
    from.rest(match hauled {
        _ if doubt => Rest::Doubt,
        Ok(_) => Rest::Done,
        Err(_) => Rest::Clear,
    })
    .await;
    to.rest(Rest::Clear).await;
    hauled
}

async fn haul_all(
    from: &dyn Queue,
    to: &dyn Queue,
    mut more: impl FnMut(&Hauled) -> ControlFlow<()> + Send,
    doubt: &mut bool,
) -> Result<Hauled, HaulError> {
    let mut hauled = Hauled::default();
    loop {
        let before = hauled.activities;
        hauled.stuck.clear();
        hauled.full.clear();
        haul_keys(from, to, &mut hauled, &mut more).await?;
        for delivered in [false, true] {
            let mut after = i64::MIN;
            while !hauled.is_stopped {
                let page = from.to_move(delivered, after).await.map_err(HaulError::From)?;
                hauled.stuck.extend(page.stuck);
                hauled.activities += hand_over(from, to, page.transfers, &mut hauled.full, doubt).await?;
                hauled.is_stopped = more(&hauled).is_break();
                match page.last {
                    Some(last) => after = last,
                    None => break,
                }
            }
        }
        // What came meanwhile goes too.
        if hauled.activities == before || hauled.is_stopped {
            return Ok(hauled);
        }
    }
}

/// Under other names, what is one queue would be taken in by itself, as known, and then leave.
async fn are_two(from: &dyn Queue, to: &dyn Queue) -> Result<(), HaulError> {
    let ours = from.identity().await.map_err(HaulError::From)?;
    let theirs = to.identity().await.map_err(HaulError::To)?;
    match ours.id == theirs.id {
        false => Ok(()),
        true if ours.file.is_some() && ours.file == theirs.file => Err(HaulError::One),
        true => Err(HaulError::Copy),
    }
}

async fn haul_keys(
    from: &dyn Queue,
    to: &dyn Queue,
    hauled: &mut Hauled,
    more: &mut impl FnMut(&Hauled) -> ControlFlow<()>,
) -> Result<(), HaulError> {
    let mut after = None;
    while !hauled.is_stopped {
        let keys = from.memory(after, KEYS).await.map_err(HaulError::From)?;
        if keys.is_empty() {
            break;
        }
        to.remember(keys.clone()).await.map_err(HaulError::To)?;
        hauled.keys += keys.len();
        after = keys.last().cloned();
        from.forget(keys).await.map_err(HaulError::From)?;
        hauled.is_stopped = more(hauled).is_break();
    }
    Ok(())
}

/// Why no more moved, where the other queue does not say what it has.
const UNSAID: &str = "the other queue does not say what it has";

/// The keys that are in the other queue already; none: it does not say.
async fn known_of(to: &dyn Queue, going: &[Transfer]) -> Option<HashSet<Key>> {
    let keys: Vec<Key> = going.iter().flat_map(Transfer::keys).collect();
    let known = to.known(keys.clone()).await.ok()?;
    Some(keys.into_iter().zip(known).filter(|(_, known)| *known).map(|(key, _)| key).collect())
}

/// In this order: what is cut off between is done once more. What the other queue refuses for its tenant hides nobody else's.
async fn hand_over(
    from: &dyn Queue,
    to: &dyn Queue,
    transfers: Vec<Transfer>,
    full: &mut BTreeMap<String, (usize, String)>,
    doubt: &mut bool,
) -> Result<usize, HaulError> {
    let mut going = transfers;
    loop {
        // What is there already goes, whoever has no room: a part of these may have been taken in before.
        let known = if full.is_empty() { Some(HashSet::new()) } else { known_of(to, &going).await };
        let Some(known) = known else { return Err(HaulError::To(StorageError::Busy(UNSAID.to_owned()))) };
        let mut staying = Vec::new();
        going = going.into_iter().filter_map(|one| one.without(full, &known, &mut staying)).collect();
        *doubt |= from.keep(staying).await.is_err();
        if going.is_empty() {
            return Ok(0);
        }
        match to.take_in(going.clone()).await {
            Ok(_) => break,
            Err(StorageError::Full(lack @ Full::Tenant { .. })) => {
                let why = lack.to_string();
                let Full::Tenant { tenant, .. } = lack else { continue };
                full.entry(tenant).or_insert((0, why));
            }
            Err(error) => {
                // A part may be there already, and then it must not be attempted here at once: the hold on that ends by itself.
                // Nor may it leave: nobody says that it stays there.
                let known = known_of(to, &going).await;
                *doubt |= known.as_ref().is_none_or(|known| !known.is_empty());
                if let Some(known) = known {
                    let rows = going.iter().flat_map(|one| one.keys().zip(one.places()));
                    let here = rows.filter(|(key, _)| !known.contains(key)).map(|(_, place)| place);
                    let _ = from.keep(here.collect()).await;
                }
                return Err(HaulError::To(error));
            }
        }
    }
    let gone = from.let_go(going.iter().flat_map(Transfer::places).collect()).await;
    *doubt |= gone.is_err();
    gone.map_err(HaulError::From)
}
