//! Files of large messages, named once they are accepted.
//!
//! Promise: [`Spool::keep`] returns after file and directory are synced, so a committed row never names a file that
//! a power cut took. A file that no row names is an orphan, removed at the next start.

use super::StorageError;
use crate::activity::Raw;
use nix::fcntl::{AT_FDCWD, AtFlags};
use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// The spool directory.
#[derive(Clone, Debug)]
pub(super) struct Spool {
    directory: PathBuf,
}

impl Spool {
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Gives a nameless file a name, durably.
    pub(super) async fn keep(&self, file: Arc<File>) -> Result<Kept, StorageError> {
        let path = self.directory.join(format!("{:032x}.eml", fastrand::u128(..)));
        let keep = move || -> io::Result<Kept> {
            let kept = Kept { path, stays: false };
            // Named before it is synced: a journal takes both at once then, and the directory has nothing left to write.
            // A crash between the two leaves an orphan.
            name(&file, &kept.path)?.sync_all()?;
            if let Some(directory) = kept.path.parent() {
                File::open(directory)?.sync_all()?;
            }
            Ok(kept)
        };
        Ok(tokio::task::spawn_blocking(keep).await.map_err(io::Error::other)??)
    }

    /// The message of a row: its bytes, or the file it names.
    pub(super) fn message(&self, body: Option<Vec<u8>>, name: Option<String>) -> Result<Raw, StorageError> {
        match (body, name) {
            (Some(body), _) => Ok(Raw::from(body)),
            (None, Some(name)) => self.open(&name),
            (None, None) => Err(StorageError("the queue's row has no message".to_owned())),
        }
    }

    /// Opens a kept message.
    fn open(&self, name: &str) -> Result<Raw, StorageError> {
        let path = self.directory.join(name);
        let open = || -> io::Result<Raw> {
            let file = File::open(&path)?;
            let length = file.metadata()?.len();
            Ok(Raw::File { file: Arc::new(file), length })
        };
        open().map_err(|error| StorageError(format!("spool file {}: {error}", path.display())))
    }

    /// Removes a file whose row is gone. What cannot be removed becomes an orphan and goes at the next start.
    pub(super) fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.directory.join(name));
    }

    /// Removes every message file for which `known` says no. Other files are not ours and stay.
    pub(super) fn remove_orphans(
        &self,
        known: impl Fn(&str) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str().filter(|name| name.ends_with(".eml")) else { continue };
            if !known(name)? {
                self.remove(name);
            }
        }
        Ok(())
    }
}

/// A named file that goes again unless its row was committed.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    stays: bool,
}

impl Kept {
    pub(super) fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    pub(super) fn stay(mut self) {
        self.stays = true;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.stays {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Links; where the file has no way to a name (it was unlinked, or the file system cannot), copies it. The answer is the
/// file with the name, not yet synced.
fn name(file: &Arc<File>, path: &Path) -> io::Result<Arc<File>> {
    let descriptor = format!("/proc/self/fd/{}", file.as_raw_fd());
    let follow = AtFlags::AT_SYMLINK_FOLLOW;
    match nix::unistd::linkat(AT_FDCWD, descriptor.as_str(), AT_FDCWD, path, follow) {
        Ok(()) => Ok(Arc::clone(file)),
        Err(nix::Error::ENOSPC) => Err(nix::Error::ENOSPC.into()),
        Err(_) => {
            let mut copy = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            let length = file.metadata()?.len();
            let raw = Raw::File { file: Arc::clone(file), length };
            io::copy(&mut raw.reader(0..length), &mut copy)?;
            Ok(Arc::new(copy))
        }
    }
}
