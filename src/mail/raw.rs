//! The bytes of a complete message, and stretches of them.
//!
//! In: what a [`super::Spill`] has gathered. Out: any stretch, as often as needed, decoded piece by piece.
//! Promise: reading holds one buffer, whatever the size.
//! Fails: as the file fails.

use super::{text::plain_lines, transfer_encoding::Encoding};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    ops::Range,
    os::unix::fs::FileExt,
    sync::Arc,
};

/// A stretch of the raw message and how it is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// First byte.
    pub offset: u64,
    /// Length in bytes, encoded.
    pub length: u64,
    /// Transfer encoding.
    pub encoding: Encoding,
}

/// The bytes of a complete message.
#[derive(Clone, Debug)]
pub enum Raw {
    /// A small one.
    Memory(Bytes),
    /// A large one, in a file.
    File {
        /// Read by position only, so that clones do not disturb each other.
        file: Arc<File>,
        /// Size in bytes.
        length: u64,
    },
}

impl From<Vec<u8>> for Raw {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Memory(bytes.into())
    }
}

impl Raw {
    /// Size in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { length, .. } => *length,
        }
    }

    /// True for a message of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A stretch that is the whole message, as it is.
    pub fn whole(&self) -> Cut {
        Cut { offset: 0, length: self.len(), encoding: Encoding::Identity }
    }

    /// Reads the bytes of a range; what lies past the end is cut off.
    pub fn reader(&self, range: Range<u64>) -> Box<dyn BufRead + Send + '_> {
        let end = range.end.min(self.len());
        let start = range.start.min(end);
        match self {
            // A range within a buffer fits usize.
            Self::Memory(bytes) => Box::new(&bytes[start as usize..end as usize]),
            Self::File { file, .. } => {
                Box::new(BufReader::with_capacity(64 * 1024, FileRange { file, position: start, end }))
            }
        }
    }

    /// The text of a stretch that stands in the message as it is ([`super::Body::verbatim`]).
    /// # Errors
    /// Those of reading; `InvalidData` if it is no UTF-8.
    pub fn verbatim(&self, cut: Cut) -> io::Result<String> {
        let mut text = String::new();
        self.reader(cut.offset..cut.offset.saturating_add(cut.length)).read_to_string(&mut text)?;
        Ok(plain_lines(&text))
    }

    /// Decodes a cut into `sink`.
    /// # Errors
    /// Those of reading, and the sink's.
    pub fn decode(&self, cut: Cut, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        cut.encoding.decode(self.reader(cut.offset..cut.offset.saturating_add(cut.length)), sink)
    }
}

struct FileRange<'a> {
    file: &'a File,
    position: u64,
    end: u64,
}

impl Read for FileRange<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.end - self.position).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..room], self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}
