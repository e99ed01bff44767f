//! A file that a person wrote, its versions, and errors that take that person to the place.
//!
//! In: a path. Out: typed values, or a [`SourceError`] that names file, line, column and key.
//! Fails: a file that cannot be read, is no TOML, or does not fit the type. The texts are for administrators: what was
//! found, and what would do (`words`); the place is looked up in a tree of values (`tree`).

mod tree;
mod words;

pub use tree::value_at;
pub use words::meant;

use miette::{Diagnostic, NamedSource, SourceSpan};
use nix::fcntl::OFlag;
use serde::de::DeserializeOwned;
use std::{
    fmt, fs,
    io::{self, Read},
    ops::Range,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use toml::{Spanned, de::DeTable};

/// The text of a file, with the path it came from; or several of them, the later ones laid over the first.
///
/// Why offsets over all texts: values carry the place they were read from, and with one count of bytes the place says the
/// file too.
#[derive(Clone, Debug)]
pub struct Source {
    layers: Vec<Layer>,
    /// Of what beside it nothing is read, and a person may think it is.
    left_out: Vec<String>,
}

/// One of the files.
#[derive(Clone, Debug)]
struct Layer {
    path: PathBuf,
    text: String,
    /// Where its text begins, in bytes over all.
    start: usize,
}

impl Source {
    /// Reads a file.
    /// # Errors
    /// A [`SourceError`] without a line, if the file cannot be read or is not UTF-8.
    pub fn read(path: &Path) -> Result<Self, SourceError> {
        Ok(Self::from_text(path, text_of(path, read_configuration(path))?))
    }

    /// Wraps a text that is already in memory; `path` is what errors call it.
    pub fn from_text(path: &Path, text: impl Into<String>) -> Self {
        let layers = vec![Layer { path: path.to_owned(), text: text.into(), start: 0 }];
        Self { layers, left_out: Vec::new() }
    }

    /// Lays another text over it: its tables are merged into those there, its values and lists replace those there, and
    /// its `[[tables]]` come after those there.
    #[must_use]
    pub fn with(mut self, path: &Path, text: impl Into<String>) -> Self {
        let start = self.layers.last().map_or(0, |last| last.start + last.text.len() + 1);
        self.layers.push(Layer { path: path.to_owned(), text: text.into(), start });
        self
    }

    /// Lays the file's drop-ins over it: `FILE.d/*.toml`, in the order of their names; those that begin with a dot, and
    /// whatever ends otherwise, are none, and [`Source::left_out`] says so of what is no leftover. A link to /dev/null is
    /// empty: systemd's way to switch one off.
    /// # Errors
    /// A [`SourceError`], if one of them, or their directory, cannot be read.
    pub fn with_drop_ins(mut self) -> Result<Self, SourceError> {
        let (drop_ins, left_out) = drop_ins(self.path())?;
        self.left_out.extend(left_out);
        for path in drop_ins {
            let text = match is_masked(&path) {
                true => String::new(),
                false => text_of(&path, bytes_of(&path, LONGEST_CONFIGURATION))?,
            };
            self = self.with(&path, text);
        }
        Ok(self)
    }

    /// Files and links beside it that are not read, a line each: neither drop-ins nor what editors and packages leave.
    pub fn left_out(&self) -> impl Iterator<Item = &str> {
        self.left_out.iter().map(String::as_str)
    }

    /// The file; the first of several.
    pub fn path(&self) -> &Path {
        self.layers.first().map_or(Path::new(""), |layer| &layer.path)
    }

    /// All files, in their order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.layers.iter().map(|layer| layer.path.as_path())
    }

    /// Reads the text as TOML.
    /// # Errors
    /// What the text says and what would do, at its place.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, SourceError> {
        T::deserialize(toml::Deserializer::from(self.tree()?)).map_err(|error| self.misfit(&error))
    }

    /// The text as a tree of values, each with its place.
    /// # Errors
    /// What is no TOML.
    pub fn tree(&self) -> Result<Spanned<DeTable<'_>>, SourceError> {
        self.merged().map_err(|(layer, error)| {
            let span = error.span().unwrap_or(0..0);
            let said = layer.text.get(span.clone()).unwrap_or_default();
            let message = words::syntax(error.message(), said, line_at(&layer.text, span.start));
            self.error(span.start + layer.start..span.end + layer.start, message)
        })
    }

    fn merged(&self) -> Result<Spanned<DeTable<'_>>, (&Layer, toml::de::Error)> {
        let mut whole: Option<Spanned<DeTable<'_>>> = None;
        for layer in &self.layers {
            let tree = DeTable::parse(&layer.text).map_err(|error| (layer, error))?;
            let (span, table) = (tree.span(), tree.into_inner());
            match &mut whole {
                None => whole = Some(Spanned::new(span, table)),
                Some(whole) => tree::merge(whole.get_mut(), tree::shifted(table, layer.start)),
            }
        }
        Ok(whole.unwrap_or_else(|| Spanned::new(0..0, DeTable::new())))
    }

    /// TOML, and not what we expect.
    fn misfit(&self, error: &toml::de::Error) -> SourceError {
        let span = error.span().unwrap_or(0..0);
        let tree = self.merged().ok();
        let place = tree.as_ref().and_then(|tree| tree::at(tree, span.start));
        let table = tree.as_ref().map(|tree| tree::table_at(tree, &span)).unwrap_or_default();
        let table = match (&tree, table.is_empty() || error.message().starts_with("unknown field")) {
            (Some(tree), true) => tree::table_of(tree, span.start),
            _ => table,
        };
        self.error(span, words::misfit(error.message(), place.as_ref(), &table))
    }

    /// An error about a stretch of the text, in bytes.
    pub fn error(&self, span: Range<usize>, message: impl fmt::Display) -> SourceError {
        let (layer, at) = self.layer(span.start);
        let (line, column) = position(&layer.text, at);
        let key = self.key(span.start).map(|key| format!("{key}: ")).unwrap_or_default();
        let shown = layer.path.display();
        SourceError {
            message: one_line(&format!("{shown}:{line}:{column}: {key}{message}")),
            text: Some(NamedSource::new(shown.to_string(), layer.text.clone()).into()),
            span: Some((at..at + span.len()).into()),
            passing: false,
        }
    }

    /// The key whose value stands at a place.
    fn key(&self, at: usize) -> Option<String> {
        let (layer, inside) = self.layer(at);
        match self.merged() {
            Ok(tree) => tree::at(&tree, at).and_then(|place| place.key),
            // What is no TOML has no tree, only lines.
            Err(_) => {
                let start = layer.text[..floor(&layer.text, inside)].rfind('\n').map_or(0, |at| at + 1);
                let (key, _) = layer.text.get(start..inside)?.split_once('=')?;
                (!key.contains(['"', '#'])).then(|| key.trim().to_owned())
            }
        }
    }

    /// File and line of a place, `path:3`.
    pub fn whereabouts(&self, at: usize) -> String {
        let (layer, at) = self.layer(at);
        format!("{}:{}", layer.path.display(), position(&layer.text, at).0)
    }

    /// The line number of a byte, from 1.
    pub fn line(&self, at: usize) -> usize {
        let (layer, at) = self.layer(at);
        position(&layer.text, at).0
    }

    /// The file of a byte, and the byte's number in it.
    fn layer(&self, at: usize) -> (&Layer, usize) {
        static NONE: Layer = Layer { path: PathBuf::new(), text: String::new(), start: 0 };
        let layer = self.layers.iter().rev().find(|layer| layer.start <= at).unwrap_or(&NONE);
        (layer, (at - layer.start).min(layer.text.len()))
    }
}

/// Line and column of a byte, from 1.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..at.min(text.len())];
    let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
    let column = before.iter().rev().take_while(|&&b| b != b'\n').count() + 1;
    (line, column)
}

/// The line of a byte.
fn line_at(text: &str, at: usize) -> &str {
    text.lines().nth(position(text, at).0 - 1).unwrap_or_default()
}

/// The last place up to `at` where a character begins.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

/// What a file or its name says may have anything in it, a line break too.
fn one_line(text: &str) -> String {
    let is_odd = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    text.chars().map(|c| if is_odd(c) { '?' } else { c }).collect()
}

/// True for a link to /dev/null.
fn is_masked(path: &Path) -> bool {
    path.is_symlink() && path.canonicalize().is_ok_and(|to| to == Path::new("/dev/null"))
}

/// What editors, packages and people leave of a file that counts no more.
fn is_leftover(name: &str) -> bool {
    let ends = ["~", ".bak", ".old", ".orig", ".off", ".disabled", ".save", ".swp", ".tmp", ".md"];
    let parts = [".dpkg-", ".rpmnew", ".rpmsave", ".rpmorig", ".ucf-"];
    name.starts_with(['.', '#'])
        || name.to_ascii_uppercase().starts_with("README")
        || ends.iter().any(|end| name.ends_with(end))
        || parts.iter().any(|part| name.contains(part))
}

/// The files that are laid over a file, and what is said of others there.
fn drop_ins(path: &Path) -> Result<(Vec<PathBuf>, Vec<String>), SourceError> {
    let mut directory = path.as_os_str().to_owned();
    directory.push(".d");
    let directory = PathBuf::from(directory);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let is_link = fs::symlink_metadata(&directory).is_ok();
            let shown = directory.display();
            let why = || format!("{shown} is a link to nothing, and no drop-in is read: mend or remove it");
            return Ok((Vec::new(), is_link.then(why).into_iter().collect()));
        }
        Err(error) => return Err(SourceError::about(&directory, unreadable(&error))),
    };
    let (mut names, mut left_out) = (Vec::new(), Vec::new());
    for entry in entries {
        let entry = entry.map_err(|error| SourceError::about(&directory, unreadable(&error)))?;
        let name = entry.file_name();
        let bytes = name.as_bytes();
        if bytes.ends_with(b".toml") && !bytes.starts_with(b".") {
            names.push(name);
        } else if !entry.path().is_dir() && !is_leftover(&name.to_string_lossy()) {
            let place = entry.path();
            left_out.push(format!("{} is not read: the name of a drop-in ends in .toml", place.display()));
        }
    }
    names.sort();
    left_out.sort();
    Ok((names.into_iter().map(|name| directory.join(name)).collect(), left_out))
}

/// The text of what was read.
/// # Errors
/// That it could not be read, or is not UTF-8: in which line.
pub fn text_of(path: &Path, read: io::Result<Vec<u8>>) -> Result<String, SourceError> {
    let bytes = read.map_err(|error| SourceError::about(path, unreadable(&error)))?;
    if is_utf16(&bytes) {
        return Err(SourceError::about(path, "cannot be read: it is UTF-16: save the file as UTF-8"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..good].iter().filter(|&&b| b == b'\n').count() + 1;
        let message = format!("cannot be read: line {line} is not UTF-8: save the file as UTF-8");
        SourceError {
            message: format!("{}:{line}: {message}", path.display()),
            ..SourceError::about(path, "")
        }
    })
}

/// What Windows saves as "Unicode": with a mark at its beginning, or text in which every second byte is zero.
fn is_utf16(bytes: &[u8]) -> bool {
    let is_letter = |pair: &[u8]| matches!(pair, [0, b' '..=b'~'] | [b' '..=b'~', 0]);
    let begin = bytes.get(..8).unwrap_or_default();
    bytes.starts_with(b"\xff\xfe")
        || bytes.starts_with(b"\xfe\xff")
        || !begin.is_empty() && begin.chunks(2).all(is_letter)
}

/// Why a file cannot be read, and what would do.
pub fn unreadable(error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => ": write the file, or name another one",
        io::ErrorKind::PermissionDenied => ": let the user read it that activity-milter runs as",
        io::ErrorKind::IsADirectory => ": name a file",
        io::ErrorKind::NotADirectory => ": a part of its path is a file",
        io::ErrorKind::Other => ": name a file",
        _ if error.raw_os_error() == Some(nix::libc::ELOOP) => {
            ": a link leads back to itself: put the file in its place"
        }
        _ => "",
    };
    format!("cannot be read: {}{remedy}", said(error))
}

/// What the system says, without its number.
pub fn said(error: &io::Error) -> String {
    without_numbers(&error.to_string())
}

/// How the library shows the number of what the system says; people know it by its words.
pub const NUMBER: &str = " (os error ";

/// A text without the numbers that the system's words have: ` (os error 2)`.
pub fn without_numbers(text: &str) -> String {
    let mut rest = text;
    let mut plain = String::new();
    while let Some((before, after)) = rest.split_once(NUMBER) {
        plain += before;
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    plain + rest
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

/// Longest configuration that is read: ten thousand companies.
const LONGEST_CONFIGURATION: u64 = 8 << 20;

/// Where a shell puts what it hands over: `-c <(…)`, `-c /dev/stdin`.
const HANDED: [&str; 3] = ["/dev/fd", "/dev/stdin", "/proc/self/fd"];

/// The bytes of a regular file.
/// # Errors
/// As [`open_regular`], and what is too long.
pub fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    bytes_of(path, LONGEST_FILE)
}

/// The bytes of a configuration: a regular file's, or what is handed over.
fn read_configuration(path: &Path) -> io::Result<Vec<u8>> {
    if path.is_dir() {
        return Err(io::Error::from_raw_os_error(nix::libc::EISDIR));
    }
    match HANDED.iter().any(|place| path.starts_with(place)) {
        true => bounded(fs::File::open(path)?, LONGEST_CONFIGURATION),
        false => bytes_of(path, LONGEST_CONFIGURATION),
    }
}

fn bytes_of(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    bounded(open_regular(path)?, most)
}

fn bounded(file: fs::File, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let message = format!("it is longer than {} MiB, and so none of ours", most >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
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
#[derive(Clone, Debug, thiserror::Error, Diagnostic)]
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
        let message = one_line(&format!("{}: {message}", path.display()));
        Self { message, text: None, span: None, passing: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        size: u8,
    }

    fn error(text: &str) -> String {
        Source::from_text(Path::new("x.toml"), text).parse::<File>().unwrap_err().to_string()
    }

    #[test]
    fn errors_name_file_line_and_key() {
        assert!(error("size = 1\nsise = 2\n").starts_with("x.toml:2:1: unknown field `sise`"));
        assert!(
            error("\nsize = \"a\"\n").starts_with("x.toml:2:8: size: \"a\" is text: write a whole number")
        );
        assert!(error("size = \n").starts_with("x.toml:1:"));
        assert!(error("").contains("missing field `size`"));
        let missing = Source::read(Path::new("/nonexistent.toml")).unwrap_err().to_string();
        assert!(missing.starts_with("/nonexistent.toml: cannot be read"), "{missing}");
    }

    #[test]
    fn errors_are_one_line_whatever_the_file_says() {
        for (text, expected) in [
            ("\"a\\nb\\u001b[2J\" = 1\n", "unknown field `a?b?[2J`"),
            ("size = \"a\\nx.toml: all is well\"\n", "\"a?x.toml: all is well\" is text"),
        ] {
            let error = error(text);
            assert!(error.contains(expected) && !error.contains(char::is_control), "{error:?}");
        }
        let path = Path::new("a\nb.toml");
        let error = Source::from_text(path, "size\0 = 1\n").error(8..9, "c\u{2028}d").to_string();
        assert_eq!(error, "a?b.toml:1:9: size?: c?d");
        assert_eq!(SourceError::about(path, "c\rd").to_string(), "a?b.toml: c?d");
    }

    #[test]
    fn what_the_system_says_has_a_remedy_and_no_number() {
        for (number, expected) in [
            (
                nix::libc::ENOENT,
                "cannot be read: No such file or directory: write the file, or name another one",
            ),
            (
                nix::libc::EACCES,
                "cannot be read: Permission denied: let the user read it that activity-milter runs as",
            ),
            (nix::libc::EISDIR, "cannot be read: Is a directory: name a file"),
            (nix::libc::EIO, "cannot be read: Input/output error"),
        ] {
            assert_eq!(unreadable(&io::Error::from_raw_os_error(number)), expected);
        }
    }

    #[test]
    fn a_drop_in_that_is_masked_says_nothing() {
        let home = tempfile::tempdir().unwrap();
        let (path, drop_ins) = (home.path().join("a.toml"), home.path().join("a.toml.d"));
        fs::create_dir(&drop_ins).unwrap();
        fs::write(&path, "size = 1\n").unwrap();
        std::os::unix::fs::symlink("/dev/null", drop_ins.join("1.toml")).unwrap();
        let source = Source::read(&path).unwrap().with_drop_ins().unwrap();
        assert_eq!(source.parse::<File>().unwrap().size, 1);
        // Any other device is none of ours.
        std::os::unix::fs::symlink("/dev/zero", drop_ins.join("2.toml")).unwrap();
        let error = Source::read(&path).unwrap().with_drop_ins().unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");
    }

    #[test]
    fn places_count_over_all_layers() {
        let source = Source::from_text(Path::new("a"), "size = 1\n").with(Path::new("b"), "\nsise = 2\n");
        let error = source.parse::<File>().unwrap_err().to_string();
        assert!(error.starts_with("b:2:1: unknown field `sise`: did you mean `size`?"), "{error}");
        let source = Source::from_text(Path::new("a"), "size = 1").with(Path::new("b"), "size = \"x\"");
        assert!(source.parse::<File>().unwrap_err().to_string().starts_with("b:1:8: size: "));
        let source = Source::from_text(Path::new("a"), "size = ").with(Path::new("b"), "size = 1");
        assert!(source.parse::<File>().unwrap_err().to_string().starts_with("a:1:"));
        assert_eq!(source.whereabouts(9), "b:1");
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
