//! Lines to a file, a pipe or a terminal.
//!
//! In: lines. Out: many of them with one write.
//! Fails: a full disk, a pipe that nobody reads any more: the rest of the lines is lost, and counted by the writer. A pipe
//! that is only slow is waited for; who logs does not wait.

use super::writer::{Batch, Output};
use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
    thread,
    time::Duration,
};

/// A pause where a pipe is full and does not wait by itself.
const FULL_PAUSE: Duration = Duration::from_millis(10);

/// Where the lines go.
pub(super) struct Stream<W> {
    to: W,
    /// The last line was written in part.
    torn: bool,
}

impl Stream<File> {
    /// Our standard error, by a descriptor of our own: through the library's, whoever says something there would wait for a
    /// slow reader too.
    pub(super) fn stderr() -> io::Result<Self> {
        Ok(Self::new(File::from(io::stderr().as_fd().try_clone_to_owned()?)))
    }
}

impl<W: Write> Stream<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to, torn: false }
    }

    /// Writes what can be written; how many bytes that were.
    fn push(&mut self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() {
            match self.to.write(&bytes[written..]) {
                Ok(0) => break,
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(FULL_PAUSE),
                Err(_) => break,
            }
        }
        written
    }
}

impl<W: Write + Send> Output for Stream<W> {
    fn write(&mut self, lines: &Batch) -> u64 {
        if lines.is_empty() {
            return 0;
        }
        if self.torn && self.push(b"\n") == 0 {
            return lines.len() as u64;
        }
        let written = self.push(lines.bytes());
        let (whole, at_end) = lines.whole(written);
        self.torn = !at_end;
        (lines.len() - whole) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with so much room, and a full pipe before each write that succeeds.
    struct Disk(Vec<u8>, usize, bool);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.2 = !self.2;
            if self.2 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let count = bytes.len().min(self.1);
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0.extend_from_slice(&bytes[..count]);
            self.1 -= count;
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_does_not_fit_is_counted_and_a_torn_line_is_ended() {
        let mut stream = Stream::new(Disk(Vec::new(), 10, false));
        let lines = |texts: &[&str]| {
            let mut batch = Batch::default();
            texts.iter().for_each(|text| batch.push(text.as_bytes()));
            batch
        };
        assert_eq!(stream.write(&lines(&["one\n", "two\n", "three\n", "four\n"])), 2);
        assert_eq!(stream.write(&lines(&["five\n"])), 1, "not even the end of the torn one");
        assert_eq!(stream.write(&Batch::default()), 0);
        stream.to.1 = 5;
        assert_eq!(stream.write(&lines(&["six\n", "seven\n"])), 1);
        stream.to.1 = 100;
        assert_eq!(stream.write(&lines(&["eight\n"])), 0);
        assert_eq!(String::from_utf8(stream.to.0).unwrap(), "one\ntwo\nth\nsix\neight\n");
    }
}
