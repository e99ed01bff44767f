//! A secret in a file of its own, read again when the file changes.
//!
//! In: a path. Out: the file's first lines, one secret each (two while a secret is being rotated).
//! Promise: a new version counts within a second of being written; a broken new version changes nothing, and neither
//! does one that changes while it is read: the next look reads it again.
//! Fails: at start, if the file cannot be read or holds no secret.

use super::{call::CallError, tokens::Tokens};
use crate::observe::{
    events,
    versions::{self, Kind},
};
use crate::source::{Version, read_regular, unreadable};
use async_trait::async_trait;
use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

/// How often the file is looked at, at most. A look is one `stat`.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Secrets that count: the new one and the old one.
const MOST_SECRETS: usize = 2;

/// Where systemd shows a unit its credentials, and nobody else.
pub const CREDENTIALS: &str = "/run/credentials";

/// What counts for credentials that systemd does not show to us: for a process that is not the service, and looks whether the
/// service could start.
#[derive(Debug, Default)]
pub struct StandIns {
    /// What they will hold, by the path at which the service sees them.
    pub contents: HashMap<PathBuf, Vec<u8>>,
    /// Those of which nothing is known are not looked at.
    pub unseen: bool,
}

static STAND_INS: OnceLock<StandIns> = OnceLock::new();

impl StandIns {
    /// Uses them from now on, once for the process.
    pub fn use_them(self) {
        let _ = STAND_INS.set(self);
    }

    /// What stands for a path that cannot be read: nothing, if it is not to be looked at.
    fn of(&self, path: &Path) -> Option<Option<Vec<u8>>> {
        let is_credential = path.starts_with(CREDENTIALS);
        self.contents
            .get(path)
            .map(|content| Some(content.clone()))
            .or((self.unseen && is_credential).then_some(None))
    }
}

/// A file with secrets. Never shown in debug output.
pub struct SecretFile {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    /// The version that was read last, taken or refused.
    seen: Option<Version>,
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
        let secrets = match (read_regular(path), STAND_INS.get().and_then(|given| given.of(path))) {
            (Err(_), Some(None)) => Arc::default(),
            (Err(_), Some(Some(content))) => secrets(path, Ok(content))?,
            (read, _) => secrets(path, read)?,
        };
        let state = State { seen, looked: Instant::now(), secrets, told: None };
        Ok(Self { path: path.to_owned(), state: Mutex::new(state) })
    }

    /// All secrets of the file as it is now, the newest first; empty only where it is not to be looked at.
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
            if now == state.seen {
                // Kind could not be read is there again, as it was.
                if state.told.take().is_some() {
                    versions::in_order(Kind::Secret, &self.path);
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
        // Kind cannot be read now, for want of descriptors perhaps, may be read a second later.
        let again = read.is_err();
        if !again {
            self.seen = now;
        }
        match secrets(path, read) {
            Ok(secrets) => {
                events::secret_read(path);
                (self.secrets, self.told) = (secrets, None);
            }
            Err(error) if again && self.told.as_ref() == Some(&error) => {}
            Err(error) => {
                events::secret_refused(path, &error);
                self.told = again.then_some(error);
            }
        }
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        versions::in_order(Kind::Secret, &self.path);
    }
}

impl std::fmt::Debug for SecretFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SecretFile").field(&self.path).finish()
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
    use std::fs;

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
        let judge = |now, read| file.state.lock().unwrap().judge(&path, now, read);
        judge(before, Ok(b"who".to_vec()));
        assert_eq!(file.all().to_vec(), ["one"], "it was written to while it was read");
        judge(now, Err(io::Error::other("no descriptor")));
        assert_eq!(file.all().to_vec(), ["one"], "there was no descriptor for it");
        assert_eq!(file.first_now(), "whole");
    }

    #[test]
    fn what_stands_for_credentials() {
        let shown = |name: &str| Path::new(CREDENTIALS).join("activity-milter.service").join(name);
        let contents = HashMap::from([(shown("token"), b"one\n".to_vec())]);
        let known = StandIns { contents: contents.clone(), unseen: false };
        assert_eq!(known.of(&shown("token")), Some(Some(b"one\n".to_vec())));
        assert_eq!(known.of(&shown("other")), None, "it must be there");
        let offline = StandIns { contents, unseen: true };
        assert_eq!(offline.of(&shown("token")), Some(Some(b"one\n".to_vec())));
        assert_eq!(offline.of(&shown("other")), Some(None));
        assert_eq!(offline.of(Path::new("/etc/activity-milter/token")), None, "no credential");
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
