//! Newer versions of files that were refused: the older ones stay in use until somebody repairs them.
//!
//! In: what was refused, and what is in order again. Out: what is still refused, since when and why, for the status page,
//! `/readyz` and the metric `activity_milter_last_reload_successful`.
//! What is taken, and counts only after a restart, is known too.
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

/// By file: what is refused, and how many have the file. A reload makes new ones while the old still end.
struct All {
    refused: BTreeMap<(Kind, PathBuf), Refused>,
    had: BTreeMap<(Kind, PathBuf), usize>,
}

static ALL: Mutex<All> = Mutex::new(All { refused: BTreeMap::new(), had: BTreeMap::new() });

fn locked() -> MutexGuard<'static, All> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file that somebody has. What is refused of it is forgotten with the last of them.
#[derive(Debug)]
pub struct Had(Kind, PathBuf);

impl Had {
    /// One more has it.
    pub fn new(what: Kind, path: &Path) -> Self {
        *locked().had.entry((what, path.to_owned())).or_default() += 1;
        Self(what, path.to_owned())
    }
}

impl Drop for Had {
    fn drop(&mut self) {
        let mut all = locked();
        let file = (self.0, self.1.clone());
        match all.had.get_mut(&file) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                all.had.remove(&file);
                all.forget(&file);
            }
        }
    }
}

impl All {
    fn forget(&mut self, file: &(Kind, PathBuf)) {
        self.refused.remove(file);
        metrics::last_reload(file.0, !self.refused.keys().any(|(of, _)| *of == file.0));
    }
}

/// A new version is refused.
pub(super) fn refused(what: Kind, path: &Path, error: String) {
    let mut all = locked();
    let entry = all.refused.entry((what, path.to_owned()));
    let refused = entry.or_insert_with(|| Refused { what, since: SystemTime::now(), error: String::new() });
    refused.error = error;
    metrics::last_reload(what, false);
}

/// What the file says now is in use.
pub fn in_order(what: Kind, path: &Path) {
    locked().forget(&(what, path.to_owned()));
}

/// Keys of the configuration that was taken last which count only after a restart, one after the other.
static FOR_RESTART: Mutex<String> = Mutex::new(String::new());

/// These keys wait for a restart, or none.
pub(super) fn wait_for_restart(keys: &str) {
    keys.clone_into(&mut FOR_RESTART.lock().unwrap_or_else(PoisonError::into_inner));
    metrics::restart_needed(!keys.is_empty());
}

/// The keys that wait for a restart; none if there are none.
pub fn for_restart() -> Option<String> {
    let keys = FOR_RESTART.lock().unwrap_or_else(PoisonError::into_inner).clone();
    (!keys.is_empty()).then_some(keys)
}

/// What is refused still, the configuration first.
pub fn still_refused() -> Vec<Refused> {
    locked().refused.values().cloned().collect()
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

    #[test]
    fn who_had_the_file_before_a_reload_takes_no_refusal_with_him() {
        let path = Path::new("/versions-test-had/one");
        let is_refused = || still_refused().iter().any(|refused| refused.error.contains("versions-test-had"));
        let before = Had::new(Kind::Secret, path);
        let after = Had::new(Kind::Secret, path);
        refused(Kind::Secret, path, "/versions-test-had/one: empty".to_owned());
        drop(before);
        assert!(is_refused());
        drop(after);
        assert!(!is_refused(), "nobody has it any more");
    }
}
