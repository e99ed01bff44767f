//! Newer versions of files that were refused: the older ones stay in use until somebody repairs them.
//!
//! In: what was refused, and what is in order again. Out: what is still refused, since when and why, for the status page,
//! `/readyz` and the metric `activity_milter_last_reload_successful`.
//! Promise: a refusal stays until that file is taken, or nobody has it any more.

use super::metrics;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

/// What is read again while the service runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The configuration, at SIGHUP.
    Configuration,
    /// The directory file, when it changes.
    Directory,
    /// A file with a secret, when it changes.
    Secret,
}

impl Kind {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Configuration, Self::Directory, Self::Secret];

    /// The metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Directory => "directory",
            Self::Secret => "secret",
        }
    }
}

/// A version that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Of what.
    pub what: Kind,
    /// Since when.
    pub since: SystemTime,
    /// Why; names the file, and the line if it is the content.
    pub error: String,
}

type All = BTreeMap<(Kind, PathBuf), Refused>;

static REFUSED: Mutex<All> = Mutex::new(BTreeMap::new());

fn locked() -> MutexGuard<'static, All> {
    REFUSED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A new version is refused.
pub(super) fn refused(what: Kind, path: &Path, error: String) {
    let mut all = locked();
    let entry = all.entry((what, path.to_owned()));
    let refused = entry.or_insert_with(|| Refused { what, since: SystemTime::now(), error: String::new() });
    refused.error = error;
    metrics::last_reload(what, false);
}

/// Kind the file says now is in use, or nobody has it any more.
pub fn in_order(what: Kind, path: &Path) {
    let mut all = locked();
    all.remove(&(what, path.to_owned()));
    metrics::last_reload(what, !all.keys().any(|(of, _)| *of == what));
}

/// Kind is refused still, the configuration first.
pub fn still_refused() -> Vec<Refused> {
    locked().values().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_stays_until_that_file_is_in_order() {
        let (one, other) = (Path::new("/versions-test/one"), Path::new("/versions-test/other"));
        let errors = || {
            let all = still_refused().into_iter().filter(|refused| refused.error.contains("versions-test"));
            all.map(|refused| refused.error).collect::<Vec<_>>()
        };
        refused(Kind::Secret, one, "/versions-test/one: empty".to_owned());
        refused(Kind::Secret, other, "/versions-test/other: empty".to_owned());
        let since = still_refused()[0].since;
        refused(Kind::Secret, one, "/versions-test/one: still empty".to_owned());
        assert_eq!(errors(), ["/versions-test/one: still empty", "/versions-test/other: empty"]);
        assert!(still_refused().iter().any(|refused| refused.since == since), "since the first refusal");
        in_order(Kind::Secret, one);
        assert_eq!(errors(), ["/versions-test/other: empty"]);
        in_order(Kind::Secret, other);
        assert!(errors().is_empty());
    }
}
