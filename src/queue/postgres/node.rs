//! Who we are among those who have the same queue.
//!
//! In: the directory for messages, which no two of us share. Out: a name that no other process has or had, and those of the
//! processes that had the directory before.
//! Promise: one process has the directory, and the kernel gives it back however we end. A process is gone for sure
//! if it had this very file on this machine, since it was started; what it had leased is given back at once then. The database
//! says which those are, not the file: one that ended before it reached the database would be the only one that the file
//! tells of. What a copy of the directory, of a machine or an image had comes back when it is not seen any
//! more (`lease::bury`), and two that began with the same copy do not meet.
//! Fails: [`OpenError::SpoolInUse`] while another process has it.

use super::line::Line;
use crate::queue::{OpenError, StorageError, make_directory};
use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    time::Duration,
};
use tokio_postgres::types::Type;

/// How often a lock that is held is tried again: a process may be about to end.
const TRIES: u32 = 20;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// Our name, and the lock on it.
#[derive(Debug)]
pub(in crate::queue) struct Node {
    pub(in crate::queue) name: String,
    /// This machine since it was started, and this file: no other process has both. Nothing if that is not known.
    pub(super) boot: String,
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
        let place = file.metadata().map_err(directory)?;
        let started = fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let boot = started.map_or_else(
            |_| String::new(),
            |started| format!("{} {}:{}", started.trim(), place.dev(), place.ino()),
        );
        // The machine's name is for people, as is the file's content; the number is what no other has.
        let host =
            nix::sys::utsname::uname().ok().map(|names| names.nodename().to_string_lossy().into_owned());
        let name = format!("{}-{:016x}", host.unwrap_or_default(), fastrand::u64(..));
        let written = file.set_len(0).and_then(|()| file.write_all(name.as_bytes()));
        written.and_then(|()| file.sync_all()).map_err(directory)?;
        Ok(Self { name, boot, _lock: file })
    }
}

/// The processes that had our directory before and that the database knows: they are gone for sure.
pub(super) async fn former(line: &mut Line, node: Option<&Node>) -> Result<Vec<String>, StorageError> {
    let Some(node) = node.filter(|node| !node.boot.is_empty()) else { return Ok(Vec::new()) };
    // What they kept is for us to say.
    let asked = "UPDATE activity_milter.node SET keeps = false WHERE id <> $1 AND boot = $2 RETURNING id";
    let rows = line.ask(asked, &[(&node.name, Type::TEXT), (&node.boot, Type::TEXT)]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_one_process_s_and_a_copy_of_it_is_another_place() {
        let directory = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| directory.path().join(name));
        let first = Node::take(&one).unwrap();
        assert_ne!(first.name, Node::take(&other).unwrap().name);
        assert!(matches!(Node::take(&one), Err(OpenError::SpoolInUse(_))));
        let (name, boot) = (first.name.clone(), first.boot.clone());
        drop(first);
        std::fs::create_dir(directory.path().join("copy")).unwrap();
        std::fs::copy(one.join("node"), directory.path().join("copy/node")).unwrap();
        let copy = Node::take(&directory.path().join("copy")).unwrap();
        let next = Node::take(&one).unwrap();
        assert_eq!(next.boot, boot);
        assert_ne!(copy.boot, boot);
        assert!(next.name != name && copy.name != next.name);
        // A power cut may have left anything there.
        for left in [&b"\0\0\0"[..], b"\xff\xfe", b"", b"a\nb"] {
            let place = tempfile::tempdir().unwrap();
            std::fs::write(place.path().join("node"), left).unwrap();
            let node = Node::take(place.path()).unwrap();
            assert_eq!(std::fs::read_to_string(place.path().join("node")).unwrap(), node.name);
        }
    }
}
