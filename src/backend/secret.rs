//! A secret in a file of its own, read again when the file changes.
//!
//! In: a path. Out: the file's first lines, one secret each (two while a secret is being rotated).
//! Promise: a new version counts within a second of being written; a broken new version changes nothing.
//! Fails: at start, if the file cannot be read or holds no secret.

use super::{call::CallError, tokens::Tokens};
use crate::observe::events;
use crate::source::Version;
use async_trait::async_trait;
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How often the file is looked at, at most. A look is one `stat`.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Secrets that count: the new one and the old one.
const MOST_SECRETS: usize = 2;

/// A file with secrets. Never shown in debug output.
pub struct SecretFile {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    seen: Option<Version>,
    looked: Instant,
    secrets: Arc<[String]>,
}

impl SecretFile {
    /// Reads the file for the first time.
    /// # Errors
    /// In words for an administrator, path included.
    pub fn open(path: &Path) -> Result<Self, String> {
        let seen = Version::of(path);
        let secrets = read(path)?;
        Ok(Self { path: path.to_owned(), state: Mutex::new(State { seen, looked: Instant::now(), secrets }) })
    }

    /// All secrets of the file as it is now, the newest first; never empty.
    pub fn all(&self) -> Arc<[String]> {
        self.look(LOOK_EVERY)
    }

    /// The first secret.
    pub fn first(&self) -> String {
        self.all().first().cloned().unwrap_or_default()
    }

    /// The first secret, after looking whatever the time: somebody has just said that the one we know is wrong.
    pub fn first_now(&self) -> String {
        self.look(Duration::ZERO).first().cloned().unwrap_or_default()
    }

    fn look(&self, every: Duration) -> Arc<[String]> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= every {
            state.looked = Instant::now();
            let now = Version::of(&self.path);
            if now != state.seen {
                state.seen = now;
                match read(&self.path) {
                    Ok(secrets) => {
                        events::secret_read(&self.path);
                        state.secrets = secrets;
                    }
                    Err(error) => events::secret_refused(&error),
                }
            }
        }
        Arc::clone(&state.secrets)
    }
}

#[async_trait]
impl Tokens for SecretFile {
    async fn token(&self, refused: Option<&str>) -> Result<String, CallError> {
        Ok(if refused.is_some() { self.first_now() } else { self.first() })
    }
}

impl std::fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SecretFile").field(&self.path).finish()
    }
}

fn read(path: &Path) -> Result<Arc<[String]>, String> {
    let text = fs::read_to_string(path)
        .map_err(|error: io::Error| format!("{} cannot be read: {error}", path.display()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let secrets: Arc<[String]> = lines.take(MOST_SECRETS).map(str::to_owned).collect();
    if secrets.is_empty() || !secrets.iter().all(|secret| secret.bytes().all(|b| b.is_ascii_graphic())) {
        return Err(format!("{} holds no secret in its first line", path.display()));
    }
    Ok(secrets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_version_counts_and_a_broken_one_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        assert!(SecretFile::open(&path).unwrap_err().contains("token cannot be read"));
        for empty in ["", "\n\n", "two words\n", "å\n"] {
            fs::write(&path, empty).unwrap();
            assert!(SecretFile::open(&path).unwrap_err().contains("holds no secret"), "{empty:?}");
        }
        fs::write(&path, "one\n").unwrap();
        let file = SecretFile::open(&path).unwrap();
        assert_eq!(file.first(), "one");
        fs::write(&path, "\n").unwrap();
        assert_eq!(file.first_now(), "one");
        fs::write(&path, "two\n\n one \nthree\n").unwrap();
        assert_eq!(file.first_now(), "two");
        assert_eq!(file.all().to_vec(), ["two", "one"]);
        fs::remove_file(&path).unwrap();
        assert_eq!(file.first_now(), "two");
        assert!(!format!("{file:?}").contains("two"));
    }
}
