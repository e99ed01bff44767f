//! As whom a command works that root has started.
//!
//! In: what the command does, and the configuration. Out: the process is somebody else, before any thread starts.
//! Promise: what `serve` and `queue` write belongs to the owner of `queue.path`'s directory, as all that lies there; `check`
//! sees what the unit's user sees. Who started it is remembered, for the log.
//! Fails: where root may not become somebody else, as in some containers.

use super::{Failure, credentials, other, unit::Unit};
use crate::config::Config;
use nix::unistd::{Gid, Uid, User, geteuid, getgroups, getuid, initgroups, setgid, setgroups, setuid};
use std::{
    ffi::CString,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// What a command does with the files of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It writes them.
    Service,
    /// It says whether the service can use them.
    Look,
    /// It reads them, or has nothing to do with them.
    Caller,
}

static CALLER: OnceLock<u32> = OnceLock::new();

static ROOTS: OnceLock<PathBuf> = OnceLock::new();

static UNIT: OnceLock<Unit> = OnceLock::new();

/// The directory of `queue.path`, if this works as root because that is root's.
pub(super) fn roots() -> Option<&'static Path> {
    ROOTS.get().map(PathBuf::as_path)
}

/// Whoever started the command.
pub(super) fn caller() -> u32 {
    *CALLER.get_or_init(|| getuid().as_raw())
}

/// The unit with whose eyes this looks, if root has started it.
pub(super) fn unit() -> Option<&'static Unit> {
    UNIT.get()
}

/// Becomes the user that the role asks for, if root is who started us.
/// # Errors
/// Root that may not become somebody else.
pub(super) fn assume(role: Role, config: &Path) -> Result<(), Failure> {
    caller();
    if role == Role::Caller || !geteuid().is_root() {
        return Ok(());
    }
    // What is wrong with it the command itself says.
    let Ok(config) = Config::read_alone(config) else { return Ok(()) };
    let directory = config.queue.path.parent().unwrap_or(Path::new("/"));
    let owner =
        fs::metadata(directory).ok().map(|meta| (Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid())));
    let unit = if role == Role::Look { Unit::ask() } else { None };
    if let Some(unit) = &unit {
        credentials::take(unit);
    }
    let unit = unit.map(|unit| UNIT.get_or_init(|| unit));
    let user =
        unit.and_then(|unit| Some((unit.user?, unit.group.unwrap_or(Gid::from_raw(unit.user?.as_raw())))));
    match user.or(owner) {
        Some((uid, gid)) if !uid.is_root() => become_user(uid, gid, unit).map_err(|error| {
            other(format!(
                "cannot become user {uid}, as whom the service works: {error}: start this as that user"
            ))
        }),
        // What is not there yet would be root's.
        _ if role == Role::Service => {
            let _ = ROOTS.set(directory.to_owned());
            Ok(())
        }
        _ => Ok(()),
    }
}

/// For good: nothing that root left open is open to it afterwards.
fn become_user(uid: Uid, gid: Gid, unit: Option<&Unit>) -> nix::Result<()> {
    let also = unit.map(|unit| unit.groups.as_slice()).unwrap_or_default();
    match User::from_uid(uid)?.and_then(|user| Some((CString::new(user.name).ok()?, user.gid))) {
        Some((name, own)) => {
            let gid = unit.and_then(|unit| unit.group).unwrap_or(own);
            initgroups(&name, gid)?;
            if !also.is_empty() {
                setgroups(&[&getgroups()?, also].concat())?;
            }
            setgid(gid)?;
        }
        // A number without a name, as in containers.
        None => {
            setgroups(also)?;
            setgid(unit.and_then(|unit| unit.group).unwrap_or(gid))?;
        }
    }
    setuid(uid)
}
