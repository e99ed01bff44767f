//! Files of large messages, named once they are accepted.
//!
//! In: a file without a name, and a number. Out: the message of a number.
//! Promise: [`Spool::keep`] returns after file and folder are synced, so a committed row never names a file that a power
//! cut took. Files lie in a folder with the database's own name, which one process has locked: another database on the
//! same spool cannot see them. A file that no row names is moved aside, and removed a week later.
//! Fails: a file that is not there is [`StorageError::Gone`]; everything else may work later.

use crate::activity::Raw;
use crate::queue::{OpenError, StorageError, make_directory, sync_name};
use nix::fcntl::{AT_FDCWD, AtFlags};
use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// How long a file that no row names is kept aside.
const ASIDE: Duration = Duration::from_secs(7 * 24 * 3600);

/// How often a lock that is held is tried again, so that a command that looks at the queue does not stop a start.
const LOCK_TRIES: u32 = 20;

/// Between two tries.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// The folder of one database.
#[derive(Clone, Debug)]
pub(super) struct Spool {
    folder: PathBuf,
}

impl Spool {
    /// The folder of the database with this name.
    pub(super) fn new(spool: &Path, database: &str) -> Self {
        Self { folder: spool.join(database) }
    }

    /// Makes the folder and locks it for as long as the answer is kept: a copy of a database has the name of the first.
    pub(super) fn lock(&self) -> Result<File, OpenError> {
        make_directory(&self.folder)?;
        // Who made it may have been killed before he synced its name.
        sync_name(&self.folder).map_err(|error| OpenError::Directory { path: self.folder.clone(), error })?;
        lock(&self.folder.join("lock"), &self.folder)
    }

    pub(super) fn path(&self, number: i64) -> PathBuf {
        self.folder.join(format!("{number}.eml"))
    }

    /// Gives a nameless file a name, durably. Blocks.
    pub(super) fn keep(&self, file: &Arc<File>, number: i64) -> io::Result<Kept> {
        let kept = Kept { path: self.path(number), stays: false };
        // Named before it is synced: a journal takes both at once then, and the directory has nothing left to write.
        // A crash between the two leaves an orphan.
        name(file, &kept.path)?.sync_all()?;
        File::open(&self.folder)?.sync_all()?;
        Ok(kept)
    }

    /// Opens a kept message.
    pub(super) fn open(&self, number: i64) -> Result<Raw, StorageError> {
        let path = self.path(number);
        let open = || -> io::Result<Raw> {
            let file = File::open(&path)?;
            let length = file.metadata()?.len();
            Ok(Raw::File { file: Arc::new(file), length })
        };
        open().map_err(|error| {
            let text = format!("spool file {}: {error}", path.display());
            match error.kind() {
                io::ErrorKind::NotFound => StorageError::Gone(text),
                _ => StorageError::Busy(text),
            }
        })
    }

    /// Whether a message's file is gone for sure.
    pub(super) fn is_lost(&self, number: i64) -> bool {
        matches!(self.path(number).try_exists(), Ok(false))
    }

    /// Removes a file whose row is gone. What cannot be removed becomes an orphan.
    pub(super) fn remove(&self, number: i64) {
        let _ = fs::remove_file(self.path(number));
    }

    /// Takes over files of an older version, which lay beside each other in the spool; they are found there or here.
    pub(super) fn take_over(&self, spool: &Path, files: &[(i64, String)]) -> io::Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        for (number, name) in files {
            match fs::rename(spool.join(name), self.path(*number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        File::open(&self.folder)?.sync_all()?;
        File::open(spool)?.sync_all()
    }

    /// The numbers of the files that are here and smaller than `before`.
    pub(super) fn numbers(&self, before: i64) -> io::Result<Vec<i64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let number =
                name.to_str().and_then(|name| name.strip_suffix(".eml")).and_then(|name| name.parse().ok());
            numbers.extend(number.filter(|number: &i64| *number < before));
        }
        Ok(numbers)
    }

    /// Bytes of the files that are here.
    pub(super) fn bytes(&self) -> io::Result<u64> {
        let mut bytes = 0;
        for number in self.numbers(i64::MAX)? {
            bytes += fs::metadata(self.path(number)).map_or(0, |file| file.len()); // or it went since
        }
        Ok(bytes)
    }

    /// Moves files aside that no row names.
    pub(super) fn set_aside(&self, numbers: &[i64]) -> io::Result<()> {
        if numbers.is_empty() {
            return Ok(());
        }
        let aside = self.folder.join("aside");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&aside)?;
        for number in numbers {
            match fs::rename(self.path(*number), aside.join(format!("{number}.eml"))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {} // its row went since, and it with the row
            }
        }
        Ok(())
    }

    /// Removes what was set aside a week before `now`.
    pub(super) fn clear_aside(&self, now: SystemTime) -> io::Result<()> {
        let entries = match fs::read_dir(self.folder.join("aside")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            // The time of the last change of the file's entry: when it was moved.
            let moved =
                SystemTime::UNIX_EPOCH + Duration::from_secs(entry.metadata()?.ctime().unsigned_abs());
            if now.duration_since(moved).is_ok_and(|age| age > ASIDE) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Files of messages that belong to other databases: how many, and a folder that has some.
    pub(super) fn of_others(&self, spool: &Path) -> io::Result<(u64, Option<PathBuf>)> {
        let (mut files, mut folder) = (0, None);
        let is_message = |path: &Path| path.extension().is_some_and(|extension| extension == "eml");
        for entry in fs::read_dir(spool)? {
            let path = entry?.path();
            if path == self.folder {
                continue;
            }
            let found = match fs::read_dir(&path) {
                Ok(entries) => entries.flatten().filter(|entry| is_message(&entry.path())).count() as u64,
                Err(_) => u64::from(is_message(&path)),
            };
            if found > 0 {
                files += found;
                folder = Some(if path.is_dir() { path } else { spool.to_owned() });
            }
        }
        Ok((files, folder))
    }
}

/// One process a `what`. The lock is on a file of its own.
pub(super) fn lock(path: &Path, what: &Path) -> Result<File, OpenError> {
    let directory = |error| OpenError::Directory { path: path.to_owned(), error };
    let open = |path: &Path| fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    let lock = open(path).map_err(directory)?;
    let mut patience = LOCK_TRIES;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            // A command has it for a moment.
            Err(fs::TryLockError::WouldBlock) if patience > 0 => patience -= 1,
            Err(fs::TryLockError::WouldBlock) => return Err(OpenError::InUse(what.to_owned())),
            Err(fs::TryLockError::Error(error)) => return Err(directory(error)),
        }
        std::thread::sleep(LOCK_PAUSE);
    }
}

/// Whether somebody has a lock, and if nobody does, the lock; no file: nobody ever had it. To be given back at once: the
/// service may want to start.
pub(super) enum Holder {
    /// A process that runs.
    Somebody,
    /// We do now, unless there is no file.
    Nobody(Option<File>),
}

impl Holder {
    pub(super) fn of(path: &Path) -> Self {
        let Ok(lock) = File::open(path) else { return Self::Nobody(None) };
        if lock.try_lock().is_ok() { Self::Nobody(Some(lock)) } else { Self::Somebody }
    }
}

/// A named file that goes again unless its row was committed, or may have been.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    stays: bool,
}

impl Kept {
    /// Its row may have been committed from here on.
    pub(super) fn stay(&mut self) {
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
