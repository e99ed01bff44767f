//! journald's own protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): one datagram for each entry.
//!
//! In: fields. Out: an entry with `MESSAGE`, `PRIORITY`, `MESSAGE_ID` and all others in capitals.
//! Promise: a value is what it is, with its length before it: nothing in it is a second field.
//! Fails: an entry that journald does not take is lost, and counted by the writer.

use super::writer::{Batch, Output};
use std::{
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
};
use tracing::{Level, Metadata};

/// Where journald listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// Longest name of a field that journald takes.
const LONGEST_NAME: usize = 64;

/// What every entry has: `mail`, so that it stands beside Postfix's wherever syslog sorts by facility.
const ALWAYS: &[u8] = b"SYSLOG_FACILITY=2\nSYSLOG_IDENTIFIER=activity-milter\n";

/// Begins an entry: what is known before the fields are.
pub(super) fn begin(entry: &mut Vec<u8>, metadata: &Metadata<'_>) {
    let priority = match *metadata.level() {
        Level::ERROR => "PRIORITY=3\n",
        Level::WARN => "PRIORITY=4\n",
        Level::INFO => "PRIORITY=6\n",
        _ => "PRIORITY=7\n",
    };
    entry.extend_from_slice(priority.as_bytes());
    entry.extend_from_slice(ALWAYS);
    field(entry, "TARGET", metadata.target());
    if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
        field(entry, "CODE_FILE", file);
        field(entry, "CODE_LINE", &line.to_string());
    }
}

/// Appends a field.
pub(super) fn field(entry: &mut Vec<u8>, name: &str, value: &str) {
    let capitals = |b: u8| if b.is_ascii_alphanumeric() { b.to_ascii_uppercase() } else { b'_' };
    let name = name.trim_start_matches(['_', '.']).bytes().take(LONGEST_NAME);
    entry.extend(name.map(capitals));
    entry.push(b'\n');
    entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

/// Appends `MESSAGE`, which `write` writes.
pub(super) fn message(entry: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    entry.extend_from_slice(b"MESSAGE\n\0\0\0\0\0\0\0\0");
    let start = entry.len();
    write(entry);
    let length = (entry.len() - start) as u64;
    entry[start - 8..start].copy_from_slice(&length.to_le_bytes());
    entry.push(b'\n');
}

/// The way to journald.
pub(super) struct Journal {
    path: PathBuf,
    socket: UnixDatagram,
}

impl Journal {
    /// Goes to the socket at `path`.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), socket: connect(path)? })
    }

    /// Sends an entry; if journald was started anew meanwhile, to the new one.
    fn send(&mut self, entry: &[u8]) -> io::Result<()> {
        loop {
            match self.socket.send(entry) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        self.socket = connect(&self.path)?;
        self.socket.send(entry).map(drop)
    }
}

impl Output for Journal {
    fn write(&mut self, entries: &Batch) -> u64 {
        entries.lines().filter(|entry| self.send(entry).is_err()).count() as u64
    }
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    Ok(socket)
}
