//! The reserve: space that is kept free on the queue's file systems, so that delivering, which frees space and needs a
//! little to do it, goes on when they are full.
//!
//! Promise: nothing is put below the reserve; what is looked at is at most [`LOOK_EVERY`] old.
//! Fails: a file system that cannot be asked is not the reason to refuse mail: writing to it will tell.

use crate::queue::{Full, Settings};
use std::time::Duration;

/// How long a look counts: a disk does not fill by [`Settings::min_free`] in that time.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Besides the reserve, at least so much is left to mail that arrives before anything delivered is kept.
const SPARE: u64 = 16 << 20;

/// The watch over the reserve.
#[derive(Debug)]
pub(super) struct Disk {
    settings: Settings,
    looked: Option<(Duration, Result<(), Full>)>,
    spare: Option<(Duration, bool)>,
}

impl Disk {
    pub(super) fn new(settings: &Settings) -> Self {
        Self { settings: settings.clone(), looked: None, spare: None }
    }

    /// Whether there is room for what was delivered: as much again as the reserve, so that it is gone before the reserve is
    /// felt.
    pub(super) fn is_spare(&mut self, now: Duration) -> bool {
        match self.spare {
            Some((looked, verdict)) if now.saturating_sub(looked) < LOOK_EVERY => verdict,
            _ => {
                let least = self.settings.min_free.saturating_add(self.settings.min_free.max(SPARE));
                let verdict = self.settings.free().iter().all(|(_, free)| *free >= least);
                self.spare = Some((now, verdict));
                verdict
            }
        }
    }

    /// Whether there is more than the reserve.
    pub(super) fn room(&mut self, now: Duration) -> Result<(), Full> {
        let least = self.settings.min_free;
        if least == 0 {
            return Ok(());
        }
        match &self.looked {
            Some((looked, verdict)) if now.saturating_sub(*looked) < LOOK_EVERY => verdict.clone(),
            _ => {
                let short = self.settings.free().into_iter().find(|(_, free)| *free < least);
                let verdict = match short {
                    Some((path, free)) => Err(Full::Disk { path, free, least }),
                    None => Ok(()),
                };
                self.looked = Some((now, verdict.clone()));
                verdict
            }
        }
    }
}
