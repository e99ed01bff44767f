//! As whom a command works that root has started.
//!
//! In: what the command does, and the configuration. Out: the process is somebody else, before any thread starts.
//! Promise: what `serve` and `queue` write belongs to the owner of `queue.path`'s directory, as all that lies there; `check`
//! sees what the unit's user sees, credentials too, which systemd shows to the running unit alone. Who started it is
//! remembered, for the log.
//! Fails: where root may not become somebody else, as in some containers.

use super::{Failure, other};
use crate::config::Config;
use crate::web::{CREDENTIALS, StandIns};
use nix::unistd::{Gid, Uid, User, geteuid, getuid, initgroups, setgid, setgroups, setuid};
use std::{
    ffi::CString,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
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

/// The unit whose user `check` looks as.
const UNIT: &str = "activity-milter.service";

static CALLER: OnceLock<u32> = OnceLock::new();

static ROOTS: OnceLock<PathBuf> = OnceLock::new();

/// The directory of `queue.path`, if this works as root because that is root's.
pub(super) fn roots() -> Option<&'static Path> {
    ROOTS.get().map(PathBuf::as_path)
}

/// Whoever started the command.
pub(super) fn caller() -> u32 {
    *CALLER.get_or_init(|| getuid().as_raw())
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
    let unit = if role == Role::Look { unit_user() } else { None };
    match unit.or(owner) {
        Some((uid, gid)) if !uid.is_root() => become_user(uid, gid).map_err(|error| {
            other(format!(
                "cannot become user {uid}, whose {} is: {error}: start this as that user",
                directory.display()
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

/// What the unit's credentials hold, which `check` cannot read where systemd shows them; `offline`: those of which that is not
/// known are not looked at (Debian 12's systemd shows them to no ExecReload=). While root can still read the files.
pub(super) fn stand_in_for_credentials(offline: bool) {
    let mut cat = Command::new("systemctl");
    cat.args(["cat", UNIT]).stdin(Stdio::null()).stderr(Stdio::null());
    let unit = if geteuid().is_root() { cat.output().map(|output| output.stdout) } else { Ok(Vec::new()) };
    let unit = String::from_utf8(unit.unwrap_or_default()).unwrap_or_default();
    let read = |(name, path): (&str, &Path)| {
        let shown = Path::new(CREDENTIALS).join(UNIT).join(name);
        Some((shown, fs::read(path).ok()?))
    };
    StandIns { contents: loaded(&unit).filter_map(read).collect(), unseen: offline }.use_them();
}

/// The credentials of a unit's text that are files: `LoadCredential=NAME:/PATH` (systemd.exec(5)).
fn loaded(unit: &str) -> impl Iterator<Item = (&str, &Path)> {
    unit.lines().filter_map(|line| {
        let (name, path) = line.trim().strip_prefix("LoadCredential=")?.split_once(':')?;
        path.starts_with('/').then(|| (name, Path::new(path)))
    })
}

/// The user of the unit, if systemd knows it.
fn unit_user() -> Option<(Uid, Gid)> {
    let mut show = Command::new("systemctl");
    show.args(["show", "--property=User", "--value", UNIT]).stdin(Stdio::null()).stderr(Stdio::null());
    let name = String::from_utf8(show.output().ok()?.stdout).ok()?;
    let user = User::from_name(name.trim()).ok()??;
    Some((user.uid, user.gid))
}

/// For good: nothing that root left open is open to it afterwards.
fn become_user(uid: Uid, gid: Gid) -> nix::Result<()> {
    match User::from_uid(uid)?.and_then(|user| Some((CString::new(user.name).ok()?, user.gid))) {
        Some((name, gid)) => {
            initgroups(&name, gid)?;
            setgid(gid)?;
        }
        // A number without a name, as in containers.
        None => {
            setgroups(&[])?;
            setgid(gid)?;
        }
    }
    setuid(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_the_units_files() {
        let unit = "# /etc/systemd/system/activity-milter.service.d/secrets.conf\n[Service]\nLoadCredential=token:/root/token\n\
                    LoadCredential=by-name\n LoadCredential=key:/a:b\nSetCredential=x:y\nLoadCredential=socket:relative\n";
        let found: Vec<_> = loaded(unit).collect();
        assert_eq!(found, [("token", Path::new("/root/token")), ("key", Path::new("/a:b"))]);
    }
}
