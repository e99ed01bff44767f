//! A file that a person wrote, its versions, and errors that take that person to the place.
//!
//! In: a path. Out: typed values, or a [`SourceError`] that names file, line, column and key.
//! Fails: a file that cannot be read, is no TOML, or does not fit the type.

use miette::{Diagnostic, NamedSource, SourceSpan};
use nix::fcntl::OFlag;
use serde::de::DeserializeOwned;
use std::{
    fmt, fs,
    io::{self, Read},
    ops::Range,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The text of a file, with the path it came from.
#[derive(Clone, Debug)]
pub struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// Reads a file.
    /// # Errors
    /// A [`SourceError`] without a line, if the file cannot be read or is not UTF-8.
    pub fn read(path: &Path) -> Result<Self, SourceError> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Self { path: path.to_owned(), text }),
            Err(error) => Err(SourceError::about(path, format!("cannot be read: {error}"))),
        }
    }

    /// Wraps a text that is already in memory; `path` is what errors call it.
    pub fn from_text(path: &Path, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), text: text.into() }
    }

    /// Reads the text as TOML.
    /// # Errors
    /// What the text says and what would do, at its place.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, SourceError> {
        toml::from_str(&self.text).map_err(|error| match error.span() {
            Some(span) => self.error(span, error.message()),
            None => self.error(0..0, error.message()),
        })
    }

    /// An error about a stretch of the text, in bytes.
    pub fn error(&self, span: Range<usize>, message: impl fmt::Display) -> SourceError {
        let (line, column) = self.position(span.start);
        let line_start = self.text[..span.start.min(self.text.len())].rfind('\n').map_or(0, |at| at + 1);
        let key = match self.text.get(line_start..span.start).and_then(|before| before.split_once('=')) {
            Some((key, _)) if !key.contains('"') => format!("{}: ", key.trim()),
            _ => String::new(),
        };
        SourceError {
            message: format!("{}:{line}:{column}: {key}{message}", self.path.display()),
            text: Some(NamedSource::new(self.path.display().to_string(), self.text.clone()).into()),
            span: Some(span.into()),
            passing: false,
        }
    }

    /// The line number of a byte, from 1.
    pub fn line(&self, at: usize) -> usize {
        self.position(at).0
    }

    fn position(&self, at: usize) -> (usize, usize) {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|&&b| b != b'\n').count() + 1;
        (line, column)
    }
}

/// Opens a regular file. A pipe, a device or a directory in its place is an error, and nobody waits for it: for files that
/// are read again and again while the service runs.
/// # Errors
/// Those of the system, and what is no regular file.
pub fn open_regular(path: &Path) -> io::Result<fs::File> {
    // Opening a pipe would wait for somebody who writes to it.
    let file = fs::OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

/// Longest file of people that is read: a million addresses.
const LONGEST_FILE: u64 = 128 << 20;

/// The bytes of a regular file.
/// # Errors
/// As [`open_regular`], and what is too long.
pub fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(LONGEST_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST_FILE {
        return Err(io::Error::other(format!("it is longer than {} MiB", LONGEST_FILE >> 20)));
    }
    Ok(bytes)
}

/// What tells one version of a file from the next: editors write in place, or rename a new file over it; a link is
/// switched to another file; who copies may set the time of writing back, but nobody sets that of the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    /// The version that is there now, if one is.
    pub fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        let (device, inode) = (meta.dev(), meta.ino());
        if !meta.is_file() {
            // A directory or a pipe is not read, and what happens inside makes it no other.
            return Some(Self { device, inode, size: 0, modified: (0, 0), changed: (0, 0) });
        }
        let (modified, changed) = ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
        Some(Self { device, inode, size: meta.size(), modified, changed })
    }

    /// How long before `now` it was changed last, by the clock of its file system; none if that was not before.
    pub fn age(&self, now: SystemTime) -> Option<Duration> {
        let (seconds, nanoseconds) = self.changed;
        let changed = Duration::new(seconds.try_into().ok()?, nanoseconds.try_into().ok()?);
        now.duration_since(UNIX_EPOCH).ok()?.checked_sub(changed)
    }
}

/// Something is wrong with a file. Its text is one line, fit for a log; as a [`Diagnostic`] it shows the place.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
pub struct SourceError {
    message: String,
    #[source_code]
    text: Option<Arc<NamedSource<String>>>,
    #[label("here")]
    span: Option<SourceSpan>,
    passing: bool,
}

impl SourceError {
    /// The same, of a state of the file that passes by itself.
    #[must_use]
    pub fn passing(self) -> Self {
        Self { passing: true, ..self }
    }

    /// True if it is worth trying again.
    pub fn is_passing(&self) -> bool {
        self.passing
    }

    /// An error about the file as a whole.
    pub fn about(path: &Path, message: impl fmt::Display) -> Self {
        Self { message: format!("{}: {message}", path.display()), text: None, span: None, passing: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[expect(dead_code)]
        size: u8,
    }

    fn error(text: &str) -> String {
        Source::from_text(Path::new("x.toml"), text).parse::<File>().unwrap_err().to_string()
    }

    #[test]
    fn errors_name_file_line_and_key() {
        assert!(error("size = 1\nsise = 2\n").starts_with("x.toml:2:1: unknown field `sise`"));
        assert!(error("\nsize = \"a\"\n").starts_with("x.toml:2:8: size: invalid type: string \"a\""));
        assert!(error("size = \n").starts_with("x.toml:1:"));
        assert!(error("").contains("missing field `size`"));
        let missing = Source::read(Path::new("/nonexistent.toml")).unwrap_err().to_string();
        assert!(missing.starts_with("/nonexistent.toml: cannot be read"), "{missing}");
    }

    #[test]
    fn what_makes_another_version() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&path, "one").unwrap();
        let written = fs::metadata(&path).unwrap().modified().unwrap();
        let mut before = Version::of(&path);
        let mut changes = |what: &str, differs: bool| {
            let now = Version::of(&path);
            assert_eq!(now != before, differs, "{what}: {now:?}");
            before = now;
            std::thread::sleep(Duration::from_millis(20)); // more than a tick of the kernel's clock
        };
        changes("nothing", false);
        fs::write(&path, "two").unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(written).unwrap();
        changes("the same size and time of writing", true);
        fs::hard_link(&path, &other).unwrap();
        changes("a link more", true);
        fs::rename(&path, directory.path().join("c")).unwrap();
        changes("it is gone", true);
        fs::create_dir(&path).unwrap();
        changes("a directory", true);
        fs::write(path.join("x"), "").unwrap();
        changes("a file inside of the directory", false);
        assert_eq!(read_regular(&path).unwrap_err().to_string(), "it is no regular file");
        fs::remove_dir_all(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read_regular(&path).unwrap_err().to_string(), "it is no regular file");
        assert_eq!(read_regular(&other).unwrap(), b"two");
    }

    #[test]
    fn a_change_in_the_future_has_no_age() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let version = Version::of(file.path()).unwrap();
        let hour = Duration::from_secs(3600);
        assert!(version.age(SystemTime::now() + hour).is_some_and(|age| age >= hour));
        assert_eq!(version.age(SystemTime::now() - hour), None);
        assert_eq!(version.age(UNIX_EPOCH - hour), None);
    }
}
