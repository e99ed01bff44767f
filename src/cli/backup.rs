//! `backup`: a copy of queue, spool and configuration while the service runs; `--verify`: whether one is whole.
//!
//! In: a new directory, or one of before. Out: the files, and `manifest.json` last: a directory without it is no back-up.
//! Promise: the queue is that of one moment (`queue::copy`). Secrets are not copied but named: files that `…_file` keys
//! name, and passwords within addresses. What was begun and cannot be completed is removed again. The manifest says of each
//! byte whether it is as it was written, its own too.

use super::{
    Failure, other,
    out::{say, tell},
};
use crate::config::{Config, DirectoryKind, without_passwords};
use crate::queue::{self, OpenError};
use crate::source::said;
use clap::Args as ClapArgs;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    ops::Range,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
    time::SystemTime,
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// Prints a line.
macro_rules! say {
    ($($text:tt)*) => { say(&(format!($($text)*) + "\n"))? };
}

const MANIFEST: &str = "manifest.json";

/// The folder of the configuration.
const CONFIG: &str = "config";

/// What the queue's copy consists of (`queue::copy`), and what is beside it while it is written.
const DATABASE: &str = "queue.db";
const SPOOL: &str = "spool";
const JOURNAL: &str = "queue.db-journal";

/// What stands in place of a password.
const REDACTED: &str = "REDACTED";

/// Things that are said of a kind.
const SAID: usize = 20;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The directory: a new one, or an empty one
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Look whether the back-up in the directory is whole, and change nothing
    #[arg(long)]
    verify: bool,
}

/// What a back-up is.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    made_at: String,
    version: String,
    files: Vec<Entry>,
    left_out: Vec<LeftOut>,
    /// The digest of this text without it.
    blake3: String,
}

/// A file of it.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    path: PathBuf,
    /// Where it belongs.
    from: PathBuf,
    size: u64,
    blake3: String,
}

/// A secret that is not in it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LeftOut {
    key: String,
    path: PathBuf,
}

pub(super) async fn backup(config: Option<&Config>, args: Args) -> Result<ExitCode, Failure> {
    match config.cloned() {
        None => tokio::task::spawn_blocking(move || verify(&args.directory)).await.map_err(other)?,
        Some(config) => {
            tokio::task::spawn_blocking(move || make(&config, &args.directory)).await.map_err(other)?
        }
    }
}

impl Args {
    /// What is only looked at needs no configuration.
    pub(super) fn is_verify(&self) -> bool {
        self.verify
    }
}

fn make(config: &Config, to: &Path) -> Result<ExitCode, Failure> {
    let is_new = !to.exists();
    has_room(config, to)?;
    make_empty(to)?;
    fill(config, to).inspect_err(|_| {
        // What is not whole helps nobody, and may be what has filled the disk.
        for place in [CONFIG, SPOOL] {
            let _ = fs::remove_dir_all(to.join(place));
        }
        for place in [DATABASE, JOURNAL, MANIFEST] {
            let _ = fs::remove_file(to.join(place));
        }
        if is_new {
            let _ = fs::remove_dir(to);
        }
    })
}

/// That the copy takes no room that is kept for mail.
fn has_room(config: &Config, to: &Path) -> Result<(), Failure> {
    let settings = &config.queue;
    let Some(disk) = to.ancestors().find(|place| place.is_dir()).filter(|_| settings.path.exists()) else {
        return Ok(());
    };
    let device = |path: &Path| fs::metadata(path).ok().map(|meta| meta.dev());
    let is_shared = [Some(settings.path.as_path()), Some(&settings.spool)]
        .into_iter()
        .flatten()
        .any(|place| device(place).is_some() && device(place) == device(disk));
    let size = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
    let mut large = Vec::new();
    below(&settings.spool, Path::new(""), &mut large);
    let needed =
        large.iter().map(|file| size(&settings.spool.join(file))).sum::<u64>() + size(&settings.path);
    let free = queue::free_bytes(disk).unwrap_or(u64::MAX);
    let kept = if is_shared { settings.min_free } else { 0 };
    if free >= needed.saturating_add(kept) {
        return Ok(());
    }
    let (needed, free) = (bytesize::ByteSize(needed), bytesize::ByteSize(free));
    let why = if is_shared {
        let kept = bytesize::ByteSize(kept);
        format!(", and it is the queue's own disk, of which queue.min_free keeps {kept} for mail")
    } else {
        String::new()
    };
    Err(other(format!(
        "{}: the copy takes up to {needed}, and {free} are free{why}: name a directory on another disk",
        to.display()
    )))
}

fn fill(config: &Config, to: &Path) -> Result<ExitCode, Failure> {
    let made_at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let at = |path: &Path, error: io::Error| other(format!("{}: {}", path.display(), said(&error)));
    let mut files = Vec::new();
    let mut texts = config.files.clone();
    if let DirectoryKind::File { path } = &config.outside.directory {
        texts.push(path.clone());
    }
    let mut left_out = Vec::new();
    for (from, name) in texts.iter().zip(names(&texts)) {
        // Wherever it is read later.
        let from = &std::path::absolute(from).map_err(|error| at(from, error))?;
        let text = fs::read_to_string(from).map_err(|error| at(from, error))?;
        let (text, secrets) = without_secrets(&text);
        left_out.extend(secrets.into_iter().map(|secret| match secret {
            Secret::File { key, path } => LeftOut { key, path },
            Secret::Password { line } => {
                LeftOut { key: format!("the password in line {line}"), path: from.clone() }
            }
        }));
        let place = to.join(CONFIG).join(&name);
        write(&place, text.as_bytes()).map_err(|error| at(&place, error))?;
        files.push((Path::new(CONFIG).join(name), from.clone()));
    }
    let queue = match queue::copy(&config.queue, to) {
        Ok(queue) => Some(queue),
        Err(OpenError::Missing(_) | OpenError::OfServer(_)) => None,
        Err(error) => return Err(error.into()),
    };
    for file in queue.iter().flat_map(|queue| &queue.files) {
        let place = match file.strip_prefix(SPOOL) {
            Ok(below) => config.queue.spool.join(below),
            Err(_) => config.queue.path.clone(),
        };
        files.push((file.clone(), place));
    }
    let entry = |(path, from): (PathBuf, PathBuf)| {
        let (size, blake3) = digest(&to.join(&path))?;
        Ok(Entry { path, from, size, blake3 })
    };
    let files =
        files.into_iter().map(entry).collect::<io::Result<Vec<_>>>().map_err(|error| at(to, error))?;
    let blake3 = String::new();
    let manifest =
        Manifest { made_at, version: env!("CARGO_PKG_VERSION").to_owned(), files, left_out, blake3 };
    let text = sealed(&manifest).map_err(other)?;
    write(&to.join(MANIFEST), text.as_bytes()).map_err(|error| at(&to.join(MANIFEST), error))?;
    File::open(to).and_then(|directory| directory.sync_all()).map_err(|error| at(to, error))?;
    let files = manifest.files.len();
    match &queue {
        Some(queue) if config.queue.server.is_some() => say!(
            "{files} files in {}: {} activities that wait on this machine for the database, configuration; {}",
            to.display(),
            queue.activities,
            OpenError::OfServer(config.queue.place())
        ),
        Some(queue) => say!(
            "{files} files in {}: {} activities, {} kept after their delivery, configuration",
            to.display(),
            queue.activities,
            queue.kept
        ),
        None if config.queue.server.is_some() => say!(
            "{files} files in {}: configuration; {}",
            to.display(),
            OpenError::OfServer(config.queue.place())
        ),
        None => say!(
            "{files} files in {}: configuration; there is no queue at {} (queue.path)",
            to.display(),
            config.queue.path.display()
        ),
    }
    for LeftOut { key, path } in &manifest.left_out {
        say!("left out, keep it elsewhere: {} ({key})", path.display());
    }
    let lost = queue.map(|queue| queue.lost).unwrap_or_default();
    for lost in lost.iter().take(SAID) {
        tell(&format!("{} is not there, although an activity needs it", lost.display()));
    }
    Ok(ExitCode::from(u8::from(!lost.is_empty())))
}

/// A directory for us alone, with nothing in it.
fn make_empty(to: &Path) -> Result<(), Failure> {
    let wrong = |error: io::Error| {
        other(format!("{}: {}: name a directory that can be made", to.display(), said(&error)))
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to).map_err(wrong)?;
    let mut there = fs::read_dir(to).map_err(wrong)?.flatten().map(|entry| entry.file_name());
    let is_ours = |name: &OsString| [CONFIG, SPOOL, DATABASE, JOURNAL].iter().any(|ours| name == ours);
    match there.next() {
        None => {}
        Some(first) if is_ours(&first) && there.all(|name| is_ours(&name)) => {
            return Err(other(format!(
                "{} has a back-up that was not completed: remove it, or name a new directory",
                to.display()
            )));
        }
        Some(_) => return Err(other(format!("{} is not empty: name a new directory", to.display()))),
    }
    fs::DirBuilder::new().mode(0o700).create(to.join(CONFIG)).map_err(wrong)
}

/// A name for each: its own, or with a number before it where that is taken.
fn names(paths: &[PathBuf]) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let name = |path: &PathBuf| {
        let own = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let numbered = (2..).map(|number| format!("{number}-{own}"));
        let mut names = std::iter::once(own.clone()).chain(numbered);
        names.find(|name| taken.insert(name.clone())).unwrap_or(own)
    };
    paths.iter().map(name).collect()
}

#[derive(Debug, PartialEq, Eq)]
enum Secret {
    /// A file that a key names.
    File { key: String, path: PathBuf },
    /// A password that stood in an address.
    Password { line: usize },
}

/// A configuration without the secrets that stand in it, and which these are, and which files have the others.
fn without_secrets(text: &str) -> (String, Vec<Secret>) {
    let mut secrets = Vec::new();
    let mut clean = String::with_capacity(text.len());
    // Line by line, comments too, so that the rest stays as it was written.
    for (at, line) in text.split_inclusive('\n').enumerate() {
        let redacted = without_passwords(line, REDACTED);
        if redacted != line {
            secrets.push(Secret::Password { line: at + 1 });
        }
        clean += &redacted;
    }
    // What a line does not show: text over several lines, or with escapes.
    let mut hidden = Vec::new();
    if let Ok(tree) = DeTable::parse(&clean) {
        tree.get_ref().values().for_each(|value| passwords(value, &mut hidden));
    }
    hidden.sort_by_key(|(span, _)| std::cmp::Reverse(span.start));
    for (span, redacted) in hidden {
        secrets.push(Secret::Password { line: clean[..span.start].matches('\n').count() + 1 });
        clean.replace_range(span, &toml::Value::String(redacted).to_string());
    }
    if let Ok(table) = text.parse::<toml::Table>() {
        files_of("", &toml::Value::Table(table), &mut secrets);
    }
    (clean, secrets)
}

/// Texts with a password, each with its place and what it is without.
fn passwords(value: &Spanned<DeValue<'_>>, found: &mut Vec<(Range<usize>, String)>) {
    match value.get_ref() {
        DeValue::String(text) => {
            let redacted = without_passwords(text, REDACTED);
            if redacted != *text {
                found.push((value.span(), redacted));
            }
        }
        DeValue::Array(list) => list.iter().for_each(|value| passwords(value, found)),
        DeValue::Table(table) => table.values().for_each(|value| passwords(value, found)),
        _ => {}
    }
}

/// Keys whose files hold secrets, with these files.
fn files_of(key: &str, value: &toml::Value, secrets: &mut Vec<Secret>) {
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                files_of(&below(name), value, secrets);
            }
        }
        toml::Value::Array(array) => array.iter().for_each(|value| files_of(key, value, secrets)),
        // Certificates of authorities are no secret, and belong to the machine.
        toml::Value::String(path) if key.ends_with("_file") && !key.ends_with("ca_file") => {
            secrets.push(Secret::File { key: key.to_owned(), path: path.into() });
        }
        _ => {}
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn digest(path: &Path) -> io::Result<(u64, String)> {
    let mut hasher = blake3::Hasher::new();
    let size = io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok((size, hasher.finalize().to_hex().to_string()))
}

/// The manifest's text, with its own digest at its end: that of the same text without it.
fn sealed(manifest: &Manifest) -> serde_json::Result<String> {
    let text = serde_json::to_string_pretty(manifest)?;
    let seal = blake3::hash(text.as_bytes()).to_hex();
    Ok(match text.rsplit_once("\"\"") {
        Some((before, after)) => format!("{before}\"{seal}\"{after}"),
        None => text,
    })
}

/// Reads a manifest, if it is as it was written.
fn unsealed(text: &str) -> Result<Manifest, String> {
    let wrong = |error: serde_json::Error| format!("the back-up is damaged in line {}", error.line());
    let manifest: Manifest = serde_json::from_str(text).map_err(wrong)?;
    let begun = text.rsplit_once(&manifest.blake3).map(|(before, after)| format!("{before}{after}"));
    match begun {
        Some(text) if blake3::hash(text.as_bytes()).to_hex().as_str() == manifest.blake3 => Ok(manifest),
        _ => Err("the back-up is damaged: it is not as it was written".to_owned()),
    }
}

fn verify(directory: &Path) -> Result<ExitCode, Failure> {
    let place = directory.join(MANIFEST);
    let text = fs::read(&place).map_err(|error| {
        let error = said(&error);
        other(format!("{}: {error}: this is no back-up, or one that was not completed", place.display()))
    })?;
    let text = String::from_utf8_lossy(&text);
    let manifest = unsealed(&text).map_err(|error| other(format!("{}: {error}", place.display())))?;
    let mut problems = differences(directory, &manifest);
    let database = Path::new(DATABASE);
    if manifest.files.iter().any(|file| file.path == database) && directory.join(database).exists() {
        match queue::verify(directory) {
            Ok(queue) => {
                problems.extend(queue.problems);
                say!("{} activities, {} kept after their delivery", queue.activities, queue.kept);
            }
            // What helps a queue in use does not help a copy.
            Err(OpenError::Damaged { message, .. }) => {
                problems.push(format!("{DATABASE}: the database is damaged: {message}"));
            }
            Err(OpenError::Older { found, known, .. } | OpenError::Newer { found, known, .. }) => {
                let version = &manifest.version;
                problems.push(format!(
                    "{DATABASE}: it has schema {found}, and this version knows {known}: look with version {version}, which made it"
                ));
            }
            Err(error) => problems.push(error.to_string()),
        }
    }
    for LeftOut { key, path } in &manifest.left_out {
        say!("not in it: {} ({key})", path.display());
    }
    for problem in problems.iter().take(SAID) {
        say!("WRONG: {problem}");
    }
    if problems.len() > SAID {
        say!("WRONG: and {} more", problems.len() - SAID);
    }
    if problems.is_empty() {
        say!("whole: {} files, made at {}", manifest.files.len(), manifest.made_at);
    }
    Ok(ExitCode::from(u8::from(!problems.is_empty())))
}

/// In what the files are not those of the manifest.
fn differences(directory: &Path, manifest: &Manifest) -> Vec<String> {
    let mut problems = Vec::new();
    for Entry { path, size, blake3, .. } in &manifest.files {
        match digest(&directory.join(path)) {
            Ok((found, _)) if found != *size => {
                problems.push(format!("{}: {found} bytes, and it had {size}", path.display()));
            }
            Ok((_, found)) if found != *blake3 => {
                problems.push(format!("{}: other bytes than were written", path.display()));
            }
            Ok(_) => {}
            Err(error) => problems.push(format!("{}: {}", path.display(), said(&error))),
        }
    }
    let expected: BTreeSet<&Path> = manifest.files.iter().map(|file| file.path.as_path()).collect();
    let mut found = Vec::new();
    below(directory, Path::new(""), &mut found);
    let strange = found
        .iter()
        .filter(|path| !expected.contains(path.as_path()) && path.as_path() != Path::new(MANIFEST));
    problems.extend(strange.map(|path| format!("{}: it does not belong to this back-up", path.display())));
    problems
}

fn below(directory: &Path, folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory.join(folder)).into_iter().flatten().flatten() {
        let path = folder.join(entry.file_name());
        if entry.path().is_dir() { below(directory, &path, found) } else { found.push(path) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_addresses_are_left_out() {
        for (line, expected) in [
            ("proxy = \"http://us:secret@x:3128/\"\n", "proxy = \"http://us:REDACTED@x:3128/\"\n"),
            ("proxy = 'http://us:p@ss@x'", "proxy = 'http://us:REDACTED@x'"),
            ("proxy = \"http://:secret@x\"", "proxy = \"http://:REDACTED@x\""),
            ("proxy = \"http://us@x/\"\n", "proxy = \"http://us@x/\"\n"),
            ("url = \"https://x.test:8443/a@b\"\n", "url = \"https://x.test:8443/a@b\"\n"),
            ("a = \"http://x/\" # http://a:b@c/\n", "a = \"http://x/\" # http://a:REDACTED@c/\n"),
            ("from = \"a@x.test\"\n", "from = \"a@x.test\"\n"),
            // What no line shows.
            ("a = \"\"\"http://us:\\\n  secret@x/\"\"\" # b\n", "a = \"http://us:REDACTED@x/\" # b\n"),
            ("a = [\"http\\u003a//us:secret@x/\"]\n", "a = [\"http://us:REDACTED@x/\"]\n"),
            ("a = 'http://us:se\"cret@x/'\n", "a = \"http://us:REDACTED@x/\"\n"),
        ] {
            let (clean, secrets) = without_secrets(line);
            assert_eq!(clean, expected);
            assert_eq!(secrets.contains(&Secret::Password { line: 1 }), clean != line);
        }
    }

    #[test]
    fn a_manifest_is_read_only_as_it_was_written() {
        let entry = Entry { path: "a".into(), from: "/a".into(), size: 1, blake3: "\"\"".to_owned() };
        let manifest = Manifest {
            made_at: "2026-11-29T18:00:00Z".to_owned(),
            version: "0".to_owned(),
            files: vec![entry],
            left_out: Vec::new(),
            blake3: String::new(),
        };
        let text = sealed(&manifest).unwrap();
        assert_eq!(unsealed(&text).unwrap().files.len(), 1);
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let error = unsealed(&String::from_utf8(bytes).unwrap()).err();
            assert!(error.is_some_and(|error| error.contains("damaged")), "byte {at} of {text}");
        }
    }

    #[test]
    fn files_with_secrets_are_named_by_their_keys() {
        let text = "[backend]\ntoken_file = \"/etc/t\"\nca_file = \"/etc/ca\"\n[[severa]]\nclient_secret_file = \"/etc/a\"\n\
                    [[severa]]\nclient_secret_file = \"/etc/b\"\n[queue]\npath = \"/q\"\n";
        let (clean, secrets) = without_secrets(text);
        let named = |key: &str, path: &str| Secret::File { key: key.to_owned(), path: path.into() };
        let expected = [
            named("backend.token_file", "/etc/t"),
            named("severa.client_secret_file", "/etc/a"),
            named("severa.client_secret_file", "/etc/b"),
        ];
        assert_eq!((clean.as_str(), secrets.as_slice()), (text, expected.as_slice()));
    }

    #[test]
    fn files_of_one_name_are_kept_apart() {
        let paths = ["/a/x.toml", "/b/x.toml", "/b/y.toml"].map(PathBuf::from);
        assert_eq!(names(&paths), ["x.toml", "2-x.toml", "y.toml"]);
    }
}
