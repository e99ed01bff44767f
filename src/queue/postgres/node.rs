//! Who we are among those who have the same queue.
//!
//! In: the directory for messages, which no two of us share. Out: a name that is ours for as long as the directory is.
//! Promise: one process has the directory, and the kernel gives it back however we end. So whoever starts there again knows
//! that the leases of that name are nobody's any more.
//! Fails: [`OpenError::InUse`] while another process has it.

use crate::queue::{OpenError, make_directory};
use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

/// How often a lock that is held is tried again: a process may be about to end.
const TRIES: u32 = 20;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// Our name, and the lock on it.
#[derive(Debug)]
pub(in crate::queue) struct Node {
    pub(in crate::queue) name: String,
    /// Held for as long as we run.
    _lock: File,
}

impl Node {
    /// Makes the directory and takes it.
    pub(in crate::queue) fn take(spool: &Path) -> Result<Self, OpenError> {
        make_directory(spool)?;
        let path = spool.join("node");
        let directory = |error: io::Error| OpenError::Directory { path: path.clone(), error };
        let open = fs::OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path);
        let mut file = open.map_err(directory)?;
        let mut tries = 0;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if tries < TRIES => tries += 1,
                Err(TryLockError::WouldBlock) => return Err(OpenError::SpoolInUse(spool.to_owned())),
                Err(TryLockError::Error(error)) => return Err(directory(error)),
            }
            std::thread::sleep(PAUSE);
        }
        let mut name = String::new();
        file.read_to_string(&mut name).map_err(directory)?;
        let name = name.trim();
        if !name.is_empty() {
            return Ok(Self { name: name.to_owned(), _lock: file });
        }
        // The machine's name is for people; the number is what no other has.
        let host =
            nix::sys::utsname::uname().ok().map(|names| names.nodename().to_string_lossy().into_owned());
        let name = format!("{}-{:016x}", host.unwrap_or_default(), fastrand::u64(..));
        file.write_all(name.as_bytes()).and_then(|()| file.sync_all()).map_err(directory)?;
        Ok(Self { name, _lock: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_one_node_s_and_keeps_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| directory.path().join(name));
        let first = Node::take(&one).unwrap();
        assert_ne!(first.name, Node::take(&other).unwrap().name);
        assert!(matches!(Node::take(&one), Err(OpenError::SpoolInUse(_))));
        let name = first.name.clone();
        drop(first);
        assert_eq!(Node::take(&one).unwrap().name, name);
    }
}
