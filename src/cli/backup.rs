//! `backup`: a copy of queue, spool and configuration while the service runs; `--verify`: whether one is whole.
//!
//! In: a new directory, or one of before. Out: the files, and `manifest.json` last: a directory without it is no back-up.
//! Promise: the queue is that of one moment (`queue::copy`). Secrets are not copied but named: files that `…_file` keys
//! name, and passwords within addresses.

use super::{
    Failure, other,
    out::{say, tell},
};
use crate::config::{Config, DirectoryKind};
use crate::queue;
use clap::Args as ClapArgs;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
    time::SystemTime,
};

/// Prints a line.
macro_rules! say {
    ($($text:tt)*) => { say(&(format!($($text)*) + "\n"))? };
}

const MANIFEST: &str = "manifest.json";

/// The folder of the configuration.
const CONFIG: &str = "config";

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
    let made_at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let at = |path: &Path, error: io::Error| other(format!("{}: {error}", path.display()));
    make_empty(to)?;
    let mut files = Vec::new();
    let mut texts = config.files.clone();
    if let DirectoryKind::File { path } = &config.outside.directory {
        texts.push(path.clone());
    }
    let mut left_out = Vec::new();
    for (from, name) in texts.iter().zip(names(&texts)) {
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
    let queue = if config.queue.path.exists() {
        let queue = queue::copy(&config.queue, to).map_err(other)?;
        files.extend(queue.files.iter().map(|file| {
            let place = match file.strip_prefix("spool") {
                Ok(below) => config.queue.spool.join(below),
                Err(_) => config.queue.path.clone(),
            };
            (file.clone(), place)
        }));
        Some(queue)
    } else {
        None
    };
    let entry = |(path, from): (PathBuf, PathBuf)| {
        let (size, blake3) = digest(&to.join(&path))?;
        Ok(Entry { path, from, size, blake3 })
    };
    let files =
        files.into_iter().map(entry).collect::<io::Result<Vec<_>>>().map_err(|error| at(to, error))?;
    let manifest = Manifest { made_at, version: env!("CARGO_PKG_VERSION").to_owned(), files, left_out };
    let text = serde_json::to_vec_pretty(&manifest).map_err(other)?;
    write(&to.join(MANIFEST), &text).map_err(|error| at(&to.join(MANIFEST), error))?;
    File::open(to).and_then(|directory| directory.sync_all()).map_err(|error| at(to, error))?;
    let files = manifest.files.len();
    match &queue {
        Some(queue) => say!(
            "{files} files in {}: {} activities, {} kept after their delivery, configuration",
            to.display(),
            queue.activities,
            queue.kept
        ),
        None => say!("{files} files in {}: configuration; there is no queue", to.display()),
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
    let wrong = |error| other(format!("{}: {error}: name a directory that can be made", to.display()));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(to).map_err(wrong)?;
    if fs::read_dir(to).map_err(wrong)?.next().is_some() {
        return Err(other(format!("{} is not empty: name a new directory", to.display())));
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
    for (at, line) in text.split_inclusive('\n').enumerate() {
        let redacted = without_password(line);
        if redacted != line {
            secrets.push(Secret::Password { line: at + 1 });
        }
        clean += &redacted;
    }
    if let Ok(table) = text.parse::<toml::Table>() {
        files_of("", &toml::Value::Table(table), &mut secrets);
    }
    (clean, secrets)
}

/// A line whose addresses have no password (`scheme://user:password@host`; RFC 3986, section 3.2: the authority ends at the
/// first of `/`, `?` and `#`).
fn without_password(line: &str) -> String {
    let mut clean = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        clean += before;
        let end = after.find(['/', '?', '#', '"', '\'', ' ', '\n']).unwrap_or(after.len());
        let (authority, behind) = after.split_at(end);
        let named = authority.rsplit_once('@').and_then(|(who, host)| Some((who.split_once(':')?.0, host)));
        clean += &match named {
            Some((user, host)) => format!("{user}:{REDACTED}@{host}"),
            None => authority.to_owned(),
        };
        rest = behind;
    }
    clean + rest
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

fn verify(directory: &Path) -> Result<ExitCode, Failure> {
    let place = directory.join(MANIFEST);
    let text = fs::read(&place).map_err(|error| {
        other(format!("{}: {error}: this is no back-up, or one that was not completed", place.display()))
    })?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| other(format!("{}: {error}: the back-up is damaged", place.display())))?;
    let mut problems = differences(directory, &manifest);
    if manifest.files.iter().any(|file| file.path == Path::new("queue.db")) {
        match queue::verify(directory) {
            Ok(queue) => {
                problems.extend(queue.problems);
                say!("{} activities, {} kept after their delivery", queue.activities, queue.kept);
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
            Err(error) => problems.push(format!("{}: {error}", path.display())),
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
        ] {
            let (clean, secrets) = without_secrets(line);
            assert_eq!(clean, expected);
            assert_eq!(secrets.contains(&Secret::Password { line: 1 }), clean != line);
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
