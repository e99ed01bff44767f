//! A secret in a file of its own, read again when the file changes.
//!
//! In: a path. Out: the file's first lines, one secret each (two while a secret is being rotated).
//! Promise: a new version counts within a second of being written; a broken new version changes nothing, and neither
//! does one that changes while it is read: the next look reads it again. The service looks at all of them every few
//! seconds ([`look_at_all`]), so that a broken one is seen before somebody needs it, and a repaired one too.
//! Fails: at start, if the file cannot be read or holds no secret.

use super::{call::CallError, tokens::Tokens};
use crate::observe::{
    events,
    versions::{self, Had, Kind},
};
use crate::source::{Version, read_regular, unreadable};
use async_trait::async_trait;
use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

/// How often the file is looked at, at most. A look is one `stat`.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Secrets that count: the new one and the old one.
const MOST_SECRETS: usize = 2;

/// A file with secrets. Never shown in debug output.
pub struct SecretFile(Arc<Watched>);

struct Watched {
    path: PathBuf,
    state: Mutex<State>,
    _had: Had,
}

/// Those that somebody has.
static ALL: Mutex<Vec<Weak<Watched>>> = Mutex::new(Vec::new());

/// Looks at all files with secrets that somebody has. May block, as long as their file systems do.
pub fn look_at_all() {
    let all: Vec<Arc<Watched>> = {
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|file| file.strong_count() > 0);
        all.iter().filter_map(Weak::upgrade).collect()
    };
    all.iter().for_each(|file| drop(file.look(Duration::ZERO)));
}

struct State {
    /// The version that was read last, taken or refused.
    seen: Option<Version>,
    /// Why that one was refused; none: it is in use.
    refused: Option<String>,
    looked: Instant,
    secrets: Arc<[String]>,
    /// Why it cannot be read: said once, and tried again.
    told: Option<String>,
}

impl SecretFile {
    /// Reads the file for the first time.
    /// # Errors
    /// In words for an administrator, path included.
    pub fn open(path: &Path) -> Result<Self, String> {
        let seen = Version::of(path);
        let secrets = secrets(path, read_regular(path))?;
        let state = State { seen, refused: None, looked: Instant::now(), secrets, told: None };
        let (path, _had) = (path.to_owned(), Had::new(Kind::Secret, path));
        let file = Arc::new(Watched { path, state: Mutex::new(state), _had });
        ALL.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&file));
        Ok(Self(file))
    }

    /// All secrets of the file as it is now, the newest first; never empty.
    pub fn all(&self) -> Arc<[String]> {
        self.0.look(LOOK_EVERY)
    }

    /// The first secret.
    pub fn first(&self) -> String {
        self.all().first().cloned().unwrap_or_default()
    }

    /// The first secret, after looking whatever the time: somebody has just said that the one we know is wrong.
    pub fn first_now(&self) -> String {
        self.0.look(Duration::ZERO).first().cloned().unwrap_or_default()
    }
}

impl Watched {
    fn look(&self, every: Duration) -> Arc<[String]> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= every {
            state.looked = Instant::now();
            let now = Version::of(&self.path);
            if now == state.seen {
                // What could not be read is there again, as it was.
                match (state.told.take(), &state.refused) {
                    (None, _) => {}
                    (Some(_), None) => versions::in_order(Kind::Secret, &self.path),
                    (Some(_), Some(error)) => events::secret_refused(&self.path, error),
                }
            } else {
                let read = read_regular(&self.path);
                state.judge(&self.path, now, read);
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

impl State {
    /// Takes or refuses what was read of the version `now`.
    fn judge(&mut self, path: &Path, now: Option<Version>, read: io::Result<Vec<u8>>) {
        if Version::of(path) != now {
            return; // it was written to meanwhile
        }
        // What cannot be read now, for want of descriptors perhaps, may be read a second later.
        let again = read.is_err();
        if !again {
            self.seen = now;
        }
        match secrets(path, read) {
            Ok(secrets) => {
                events::secret_read(path);
                (self.secrets, self.told, self.refused) = (secrets, None, None);
            }
            Err(error) if again && self.told.as_ref() == Some(&error) => {}
            Err(error) => {
                events::secret_refused(path, &error);
                if again {
                    self.told = Some(error);
                } else {
                    (self.told, self.refused) = (None, Some(error));
                }
            }
        }
    }
}

impl std::fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SecretFile").field(&self.0.path).finish()
    }
}

fn secrets(path: &Path, read: io::Result<Vec<u8>>) -> Result<Arc<[String]>, String> {
    let bytes = read.map_err(|error| format!("{} {}", path.display(), unreadable(&error)))?;
    // What is not UTF-8 is no graphic ASCII either.
    let text = String::from_utf8_lossy(&bytes);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let secrets: Arc<[String]> = lines.take(MOST_SECRETS).map(str::to_owned).collect();
    if secrets.is_empty() || !secrets.iter().all(|secret| secret.bytes().all(|b| b.is_ascii_graphic())) {
        let remedy = "write it there, in printable ASCII without spaces";
        return Err(format!("{} holds no secret in its first line: {remedy}", path.display()));
    }
    Ok(secrets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

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

    #[test]
    fn what_could_not_be_read_whole_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, "one\n").unwrap();
        let file = SecretFile::open(&path).unwrap();
        let before = Version::of(&path);
        fs::write(&path, "whole\n").unwrap();
        let now = Version::of(&path);
        let judge = |now, read| file.0.state.lock().unwrap().judge(&path, now, read);
        judge(before, Ok(b"who".to_vec()));
        assert_eq!(file.all().to_vec(), ["one"], "it was written to while it was read");
        judge(now, Err(io::Error::other("no descriptor")));
        assert_eq!(file.all().to_vec(), ["one"], "there was no descriptor for it");
        assert_eq!(file.first_now(), "whole");
    }

    #[test]
    fn all_are_looked_at_also_where_nobody_uses_them() {
        let directory = tempfile::tempdir().unwrap();
        let [path, away, link] = ["token", "away", "link"].map(|name| directory.path().join(name));
        fs::write(&path, "one\n").unwrap();
        let file = SecretFile::open(&path).unwrap();
        let said = || {
            look_at_all();
            let all = versions::still_refused().into_iter().map(|refused| refused.error);
            all.filter(|error| error.contains(path.to_str().unwrap())).collect::<String>()
        };
        assert_eq!(said(), "");
        fs::write(&path, "\n").unwrap();
        assert!(said().contains("holds no secret"));
        // Gone and back, the very same file, as behind a file server's outage.
        fs::rename(&path, &away).unwrap();
        symlink(&away, &path).unwrap();
        assert!(said().contains("holds no secret"));
        fs::rename(&path, &link).unwrap();
        assert!(said().contains("No such file"));
        fs::rename(&link, &path).unwrap();
        assert!(said().contains("holds no secret"));
        fs::write(&path, "two\n").unwrap();
        assert_eq!(said(), "");
        assert_eq!(*file.0.state.lock().unwrap().secrets, ["two"]);
        fs::write(&path, "\n").unwrap();
        assert!(said().contains("holds no secret"));
        drop(file);
        assert_eq!(said(), "", "nobody has it any more");
    }

    #[test]
    fn nobody_waits_for_a_pipe() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, "one\n").unwrap();
        let file = SecretFile::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (answered, answer) = std::sync::mpsc::channel();
        std::thread::spawn(move || answered.send(file.first_now()));
        assert_eq!(answer.recv_timeout(Duration::from_secs(10)).as_deref(), Ok("one"));
    }
}
