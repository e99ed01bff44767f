//! Where the bytes of a message wait until the message is complete.
//!
//! In: pieces of one message. Out: a [`Raw`] that can be read from any place, as often as needed.
//! Promise: a message costs at most [`MEMORY_PER_MESSAGE`] bytes of memory and one piece; all messages together
//! stay within a [`Budget`]. The file has no name until the queue gives it one, so a crash leaves nothing behind.
//! Fails: [`SpillError`], by what the client is told.

use super::raw::Raw;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Bytes of one message kept in memory; more goes to a file (DESIGN section 4).
pub const MEMORY_PER_MESSAGE: usize = 128 * 1024;

/// A message that holds no more than this is small.
const SMALL: u64 = 64 * 1024;

/// The part of a [`Budget`] that only small messages get: large ones, however many, never keep them waiting.
const FOR_SMALL: u64 = 8;

/// Memory for message bytes, shared by all sessions.
#[derive(Clone, Debug)]
pub struct Budget {
    used: Arc<AtomicU64>,
    limit: u64,
    /// Somebody asked in vain.
    short: Arc<AtomicBool>,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self { used: Arc::default(), limit, short: Arc::default() }
    }

    /// Nothing yet, of this budget.
    pub fn reserve(&self) -> Reservation {
        Reservation { budget: self.clone(), taken: 0 }
    }

    /// True if somebody asked for more than there was, since this was asked last.
    pub fn was_short(&self) -> bool {
        self.short.swap(false, Ordering::Relaxed)
    }
}

/// Bytes taken from a budget; given back when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Budget,
    taken: u64,
}

impl Reservation {
    /// Makes sure that at least `bytes` are taken in all; more than 64 KiB only from what is not for small ones. Who is alone gets what he asks for: what one message needs is
    /// bounded by other limits, and a message that is always too large for an idle service would never come in.
    /// # Errors
    /// [`SpillError::Busy`] if others have the rest.
    pub fn grow_to(&mut self, bytes: u64) -> Result<(), SpillError> {
        let more = bytes.saturating_sub(self.taken);
        let (own, all) = (self.taken, self.budget.limit);
        let limit = if bytes > SMALL { all - all / FOR_SMALL } else { all };
        let fits = |used: u64| used.checked_add(more).filter(|&sum| more == 0 || sum <= limit || used == own);
        match self.budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => {
                self.taken += more;
                Ok(())
            }
            Err(_) => {
                self.budget.short.store(true, Ordering::Relaxed);
                Err(SpillError::Busy)
            }
        }
    }
}

impl Reservation {
    /// Bytes taken.
    pub fn taken(&self) -> u64 {
        self.taken
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.taken, Ordering::Relaxed);
    }
}

/// Why a piece was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SpillError {
    /// All sessions together hold as much as they may.
    #[error("message.memory_limit is used up")]
    Busy,
    /// The message is larger than allowed.
    #[error("the message is larger than message.max_size")]
    TooLarge,
    /// What is left on the spool's disk is to be kept free.
    #[error("the spool's disk is as full as it may become ({free} bytes are free)")]
    Full {
        /// What is free.
        free: u64,
    },
    /// The spool directory cannot be written.
    #[error("the spool cannot be written: {0}")]
    Io(#[from] io::Error),
}

/// A message being received. Dropping it gives its memory back and forgets its file.
#[derive(Debug)]
pub struct Spill {
    memory: Vec<u8>,
    file: Option<File>,
    written: u64,
    /// Bytes of memory that are kept beside the message.
    beside: usize,
    reserved: Reservation,
    max_size: u64,
    min_free: u64,
    directory: PathBuf,
}

impl Spill {
    /// An empty message that spills into `directory` and may grow to `max_size` bytes.
    pub fn new(directory: &Path, max_size: u64, budget: &Budget) -> Self {
        Self {
            memory: Vec::new(),
            file: None,
            written: 0,
            beside: 0,
            reserved: budget.reserve(),
            max_size,
            min_free: 0,
            directory: directory.to_owned(),
        }
    }

    /// Leaves so many bytes free on the spool's disk: a message that is still arriving must not take what delivering needs.
    #[must_use]
    pub fn keeping_free(self, min_free: u64) -> Self {
        Self { min_free, ..self }
    }

    /// Takes memory for what is kept beside the bytes: decoded text, say.
    /// # Errors
    /// [`SpillError::Busy`].
    pub fn also_hold(&mut self, bytes: usize) -> Result<(), SpillError> {
        self.beside = bytes;
        self.reserved.grow_to((self.memory.len() + self.beside) as u64)
    }

    /// Forgets everything and gives the memory back: the message will be refused, and others may have it.
    pub fn give_up(&mut self) {
        self.memory = Vec::new();
        self.file = None;
        self.beside = 0;
        self.reserved = self.reserved.budget.reserve();
    }

    /// Adds a piece.
    /// # Errors
    /// [`SpillError`]; the message is then incomplete and cannot be used.
    pub async fn push(&mut self, piece: &[u8]) -> Result<(), SpillError> {
        if self.written + (self.memory.len() + piece.len()) as u64 > self.max_size {
            return Err(SpillError::TooLarge);
        }
        if !self.memory.is_empty() && self.memory.len() + piece.len() > MEMORY_PER_MESSAGE {
            self.flush().await?;
        }
        self.reserved.grow_to((self.memory.len() + piece.len() + self.beside) as u64)?;
        self.memory.extend_from_slice(piece);
        if self.memory.len() > MEMORY_PER_MESSAGE {
            self.flush().await?;
        }
        Ok(())
    }

    /// The whole message, and the memory that it has, to be kept until the message is answered; bytes in a file are
    /// written, not yet synced.
    /// # Errors
    /// [`SpillError::Io`].
    pub async fn finish(mut self) -> Result<(Raw, Reservation), SpillError> {
        if self.file.is_some() {
            self.flush().await?;
        }
        let raw = match self.file.take() {
            Some(file) => Raw::File { file: Arc::new(file), length: self.written },
            None => Raw::from(std::mem::take(&mut self.memory)),
        };
        Ok((raw, self.reserved))
    }

    /// Writes the memory to the file, on a thread that may block: a slow disk must not stop other sessions.
    async fn flush(&mut self) -> Result<(), SpillError> {
        let mut buffer = std::mem::take(&mut self.memory);
        let (file, directory, min_free) = (self.file.take(), self.directory.clone(), self.min_free);
        self.written += buffer.len() as u64;
        let write = move || -> Result<(File, Vec<u8>), SpillError> {
            let mut file = file.map_or_else(|| nameless_file(&directory), Ok)?;
            if min_free > 0
                && let Ok(stat) = nix::sys::statvfs::fstatvfs(&file)
            {
                let free = stat.blocks_available().saturating_mul(stat.fragment_size());
                if free < min_free.saturating_add(buffer.len() as u64) {
                    return Err(SpillError::Full { free });
                }
            }
            file.write_all(&buffer)?;
            trim(&mut buffer);
            Ok((file, buffer))
        };
        let (file, buffer) = tokio::task::spawn_blocking(write).await.map_err(io::Error::other)??;
        (self.file, self.memory) = (Some(file), buffer);
        Ok(())
    }
}

/// Empties a buffer and keeps its room for the next pieces, unless one huge piece made it grow.
fn trim(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.shrink_to(MEMORY_PER_MESSAGE);
}

/// A file without a name (`O_TMPFILE`), which `linkat` can give one later; where the file system has none, a file
/// unlinked at once, which the queue then copies.
fn nameless_file(directory: &Path) -> io::Result<File> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    match open(directory, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(descriptor) => Ok(File::from(descriptor)),
        Err(nix::Error::EOPNOTSUPP | nix::Error::EISDIR) => tempfile::tempfile_in(directory),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn content(raw: &Raw) -> Vec<u8> {
        let mut all = Vec::new();
        raw.reader(0..raw.len()).read_to_end(&mut all).unwrap();
        all
    }

    #[tokio::test]
    async fn small_stays_in_memory_large_goes_to_a_file_without_a_name() {
        let directory = tempfile::tempdir().unwrap();
        let budget = Budget::new(1024 * 1024);
        for (pieces, in_file) in [(1, false), (2, false), (3, true), (9, true)] {
            let mut spill = Spill::new(directory.path(), u64::MAX, &budget);
            let piece: Vec<u8> = (0..MEMORY_PER_MESSAGE / 2).map(|i| i as u8).collect();
            for _ in 0..pieces {
                spill.push(&piece).await.unwrap();
            }
            let (raw, reserved) = spill.finish().await.unwrap();
            assert_eq!(matches!(raw, Raw::File { .. }), in_file);
            assert_eq!(content(&raw), piece.repeat(pieces));
            assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
            assert!(budget.used.load(Ordering::Relaxed) > 0, "taken until the answer");
            drop(reserved);
        }
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn size_and_budget_are_kept_on_both_sides_of_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let budget = Budget::new(100);
        let mut spill = Spill::new(directory.path(), 60, &budget);
        spill.push(&[0; 60]).await.unwrap();
        assert!(matches!(spill.push(&[0]).await, Err(SpillError::TooLarge)));
        let mut second = Spill::new(directory.path(), 60, &budget);
        second.push(&[0; 40]).await.unwrap();
        assert!(matches!(second.push(&[0]).await, Err(SpillError::Busy)));
        drop(spill);
        second.push(&[0]).await.unwrap();
        // Alone: more than all there is, and then nobody else gets any.
        second.also_hold(200).unwrap();
        let mut third = Spill::new(directory.path(), 60, &budget);
        assert!(matches!(third.push(&[0]).await, Err(SpillError::Busy)));
        drop(second);
        third.push(&[0]).await.unwrap();
    }

    // D5
    #[test]
    fn small_messages_have_a_part_that_large_ones_never_get() {
        let budget = Budget::new(16 * SMALL);
        let mut large: Vec<Reservation> = (0..7).map(|_| budget.reserve()).collect();
        assert!(large.iter_mut().all(|one| one.grow_to(2 * SMALL).is_ok()));
        let mut late = budget.reserve();
        late.grow_to(SMALL).unwrap();
        assert!(late.grow_to(SMALL + 1).is_err(), "is large from here on");
        let mut small: Vec<Reservation> = (0..5).map(|_| budget.reserve()).collect();
        let took = small.iter_mut().filter_map(|one| one.grow_to(SMALL / 4).ok()).count();
        assert_eq!(took, 4, "an eighth is for them");
        drop(large);
        late.grow_to(4 * SMALL).unwrap();
        // While there is room, small ones have no bounds of their own.
        let many: Vec<_> = (0..8).map(|_| budget.reserve().grow_to(SMALL)).collect();
        assert!(many.iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn what_is_to_be_kept_free_is_not_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let stat = nix::sys::statvfs::statvfs(directory.path()).unwrap();
        let free = stat.blocks_available() * stat.fragment_size();
        for (min_free, fits) in [(0, true), (free / 2, true), (free * 2, false)] {
            let spill = Spill::new(directory.path(), u64::MAX, &Budget::new(u64::MAX));
            let pushed = spill.keeping_free(min_free).push(&vec![0; MEMORY_PER_MESSAGE + 1]).await;
            assert_eq!(pushed.is_ok(), fits);
            assert!(matches!(pushed, Ok(()) | Err(SpillError::Full { .. })));
        }
    }

    #[tokio::test]
    async fn a_spool_that_cannot_be_written_is_an_error() {
        let mut spill = Spill::new(Path::new("/nonexistent"), u64::MAX, &Budget::new(u64::MAX));
        assert!(matches!(spill.push(&vec![0; MEMORY_PER_MESSAGE + 1]).await, Err(SpillError::Io(_))));
    }
}
