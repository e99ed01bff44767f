//! Secrets that systemd hands to the service alone, as `check` of root sees them.
//!
//! In: what the unit loads ([`super::unit`]). Out: a stand-in for each path below `/run/credentials/UNIT` that a configuration
//! may name: the bytes of the source, read as root as systemd reads them, in memory without a name.
//! Promise: who `check` becomes can read them, nobody else learns of them, and nothing is written to a disk.
//! Fails: a source that cannot be read; the text of [`explained`] says which.

use super::{
    identity::caller,
    unit::{Credential, UNIT, Unit},
};
use crate::source::{read_regular, said, unreadable};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

/// Where systemd puts them, a directory for each unit.
const PLACE: &str = "/run/credentials";

/// Where it looks for those without a whole path.
const STORES: [&str; 3] = ["/etc/credstore", "/run/credstore", "/usr/lib/credstore"];

/// What there is of one.
struct Known {
    /// Its source, for people.
    from: String,
    /// The bytes; open for as long as we run.
    bytes: Result<OwnedFd, String>,
}

/// By the path that a configuration names.
static KNOWN: OnceLock<BTreeMap<PathBuf, Known>> = OnceLock::new();

/// Reads what the unit loads, as root.
pub(super) fn take(unit: &Unit) {
    let known = unit.credentials.iter().map(|(name, credential)| {
        let (from, bytes) = match credential {
            Credential::File(path) => (whole(path).display().to_string(), of_file(&whole(path))),
            Credential::Encrypted(path) => (whole(path).display().to_string(), decrypted(name, &whole(path))),
            Credential::Text(text) => ("the unit".to_owned(), Ok(text.clone().into_bytes())),
        };
        let bytes = bytes.and_then(|bytes| in_memory(&bytes).map_err(|error| said(&error)));
        (Path::new(PLACE).join(UNIT).join(name), Known { from, bytes })
    });
    let _ = KNOWN.set(known.collect());
}

fn whole(path: &Path) -> PathBuf {
    let stored = || STORES.iter().map(|store| Path::new(store).join(path)).find(|path| path.exists());
    if path.is_absolute() { path.to_owned() } else { stored().unwrap_or_else(|| path.to_owned()) }
}

fn of_file(path: &Path) -> Result<Vec<u8>, String> {
    read_regular(path).map_err(|error| unreadable(&error))
}

fn decrypted(name: &str, path: &Path) -> Result<Vec<u8>, String> {
    let mut command = Command::new("systemd-creds");
    command.arg("decrypt").arg(format!("--name={name}")).arg(path).arg("-").stdin(Stdio::null());
    match command.output() {
        Ok(output) if output.status.success() => Ok(output.stdout),
        Ok(output) => {
            let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(format!("systemd-creds cannot decrypt it: {error}"))
        }
        Err(error) => Err(format!("systemd-creds cannot be started: {}", said(&error))),
    }
}

fn in_memory(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(c"credential", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    Ok(file.into())
}

/// Paths of a configuration, and what is read in their place.
pub(super) fn instead() -> BTreeMap<PathBuf, PathBuf> {
    let known = KNOWN.get().into_iter().flatten();
    // The one that the service still has, of a source that is gone, is none at its next start.
    let gone = |path: &Path| path.join("gone");
    known.map(|(path, known)| (path.clone(), stand_in(known).unwrap_or_else(|| gone(path)))).collect()
}

/// True for a text about one that this user cannot look at, be it there or not: not even the unit's own
/// `ExecReload=… check --offline`, which systemd 252 shows no credentials. The service looks when it reads it.
pub(super) fn is_out_of_sight(text: &str) -> bool {
    KNOWN.get().is_none() && caller() != 0 && text.contains(&format!("{PLACE}/{UNIT}/"))
}

fn stand_in(known: &Known) -> Option<PathBuf> {
    let bytes = known.bytes.as_ref().ok()?;
    Some(format!("/proc/self/fd/{}", bytes.as_raw_fd()).into())
}

/// A text about such a path, with its source; of one that is not there, why.
pub(super) fn explained(text: &str) -> String {
    let mut text = text.to_owned();
    for (path, known) in KNOWN.get().into_iter().flatten() {
        let shown = path.display().to_string();
        if let Some(stand_in) = stand_in(known) {
            text = in_place_of(
                &text,
                &stand_in.display().to_string(),
                &format!("{shown} (from {})", known.from),
            );
        } else if let (Err(error), Some((before, _))) = (&known.bytes, text.split_once(&shown)) {
            text = format!("{before}{shown} comes from {}, which {error}", known.from);
        }
    }
    let here = format!("{PLACE}/{UNIT}/");
    let Some((before, name)) = text.split_once(&here) else { return text };
    let name: String = name.split_whitespace().next().unwrap_or_default().to_owned();
    if KNOWN.get().is_some_and(|known| known.contains_key(Path::new(&format!("{here}{name}")))) {
        return text;
    }
    match KNOWN.get() {
        Some(_) => format!(
            "{before}{here}{name}: the unit has no credential {name}: write LoadCredential={name}:/path/of/the/secret below [Service] with `systemctl edit {UNIT}`"
        ),
        None if caller() == 0 => format!("{text}; there is no unit {UNIT} here that could have it"),
        None => format!(
            "{text}; systemd gives it to the service alone: start check as root, which knows its source"
        ),
    }
}

/// Replaces a path, and none that only begins like it.
fn in_place_of(text: &str, path: &str, with: &str) -> String {
    let mut replaced = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(path) {
        let is_longer = after.starts_with(|c: char| c.is_ascii_digit());
        replaced += before;
        replaced += if is_longer { path } else { with };
        rest = after;
    }
    replaced + rest
}
