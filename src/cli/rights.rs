//! What the user may do who looks: the service's, if root has started `check` ([`super::identity`]).
//!
//! In: paths, groups, ports of the configuration. Out: what the service could not do with them, and the remedy.

use super::identity;
use crate::config::{Config, DirectoryKind};
use crate::directory::SeveraSettings;
use crate::intake::{BindError, Listen, SocketSettings};
use nix::unistd::{AccessFlags, Gid, Group, Uid, User, access, getegid, geteuid, getgroups};
use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// What a database has beside it; the lock is the queue's.
const BESIDE: [&str; 4] = ["", "-wal", "-shm", ".lock"];

/// Directories as near to the root as that are the system's: `/`, `/var`, `/var/lib`.
const MOST_OF_SYSTEM: usize = 3;

/// How the user is called.
fn user() -> String {
    name_of(geteuid())
}

fn name_of(uid: Uid) -> String {
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

/// All that the service writes, as far as it is there, and the directories in which it makes the rest.
pub(super) fn of_files(config: &Config, path: &Path) -> Result<String, String> {
    let mut databases = vec![config.queue.path.clone(), config.trace.path.clone()];
    if let DirectoryKind::Severa(SeveraSettings { path, .. }) = &config.outside.directory {
        databases.push(path.clone());
    }
    let unit = identity::unit();
    let sockets = [Some(&config.milter), config.lmtp.as_ref(), config.admin.socket.as_ref()];
    let sockets = sockets.into_iter().flatten().filter_map(|socket| match &socket.listen {
        Listen::Unix(path) => Some(path),
        Listen::Inet(_) | Listen::Systemd => None,
    });
    for written in databases.iter().chain([&config.queue.spool]).chain(sockets) {
        unit.and_then(|unit| unit.forbids_writing(path, written)).map_or(Ok(()), Err)?;
    }
    if let DirectoryKind::File { path: read } = &config.outside.directory {
        unit.and_then(|unit| unit.forbids_reading(path, read)).map_or(Ok(()), Err)?;
    }
    for database in databases {
        for beside in BESIDE {
            let mut path = database.clone().into_os_string();
            path.push(beside);
            to_write(Path::new(&path))?;
        }
        to_write(database.parent().unwrap_or(&database))?;
    }
    to_write(&config.queue.spool)?;
    // Each queue has a folder there; a restored one is whose who restored it.
    let folders = fs::read_dir(&config.queue.spool).into_iter().flatten().flatten().map(|entry| entry.path());
    for folder in folders.filter(|path| path.is_dir()) {
        to_write(&folder)?;
        to_write(&folder.join("lock"))?;
    }
    Ok(format!("writable for user {}", user()))
}

/// That something can be written; what is not there is made where its directory can be.
pub(super) fn to_write(path: &Path) -> Result<(), String> {
    let Ok(meta) = fs::metadata(path) else { return Ok(()) };
    let needed = if meta.is_dir() { AccessFlags::W_OK | AccessFlags::X_OK } else { AccessFlags::W_OK };
    if access(path, needed).is_ok() {
        return Ok(());
    }
    let (owner, user) = (name_of(Uid::from_raw(meta.uid())), user());
    // `/var/lib` or `/root` is more than ours.
    let is_everybodys = meta.is_dir() && path.components().count() <= MOST_OF_SYSTEM;
    let path = path.display();
    let remedy = if is_everybodys {
        format!("name a directory of its own: install -d -o {user} {path}/activity-milter")
    } else if Uid::from_raw(identity::caller()).is_root() {
        format!("chown {user}: {path}")
    } else {
        format!("chown {user}: {path}, if that is whom the service works as; else start check as root")
    };
    Err(format!("{path} is {owner}'s, and user {user} may not write it: {remedy}"))
}

/// That a socket can be given to its group: only root may give to a group that it is not in.
pub(super) fn of_group(socket: &SocketSettings) -> Result<(), String> {
    let (Listen::Unix(path), Some(name)) = (&socket.listen, &socket.group) else { return Ok(()) };
    let table = socket.table;
    let group = Group::from_name(name).ok().flatten();
    let gid = group.ok_or_else(|| BindError::NoGroup { group: name.clone(), table }.to_string())?.gid;
    let is_in = |gid: Gid| getegid() == gid || getgroups().is_ok_and(|groups| groups.contains(&gid));
    // A directory may hand its group down, as the package's does.
    let handed_down = path.parent().and_then(|directory| fs::metadata(directory).ok());
    let handed_down = handed_down.is_some_and(|meta| meta.mode() & 0o2000 != 0 && meta.gid() == gid.as_raw());
    if geteuid().is_root() || is_in(gid) || handed_down {
        return Ok(());
    }
    let user = user();
    Err(format!(
        "user {user} is not in group {name}, and cannot give the socket to it: usermod -aG {name} {user}, or leave {table}.socket_group out"
    ))
}

/// That a port is free, or ours already.
pub(super) fn of_port(table: &str, address: SocketAddr) -> Result<String, String> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(format!("inet:{address}, free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => match holder(address) {
            Some(holder) if holder != PROGRAM => {
                Err(format!("inet:{address} is {holder}'s already: stop that, or set another {table}.listen"))
            }
            _ => Ok(format!("inet:{address}, in use: the service runs")),
        },
        Err(error) => {
            let why = super::without_numbers(&error.to_string());
            Err(format!("user {} cannot listen on inet:{address}: {why}: set another {table}.listen", user()))
        }
    }
}

/// As the kernel shows the service's name.
const PROGRAM: &str = "activity-milter";

/// Who listens on a port (proc(5), `/proc/net/tcp`): the program, as far as we may see it; else the user, if it is another.
fn holder(address: SocketAddr) -> Option<String> {
    let port = format!(":{:04X}", address.port());
    let (uid, inode) = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|table| {
        let text = fs::read_to_string(table).ok()?;
        let line = text.lines().find(|line| {
            let mut words = line.split_whitespace().skip(1);
            words.next().is_some_and(|local| local.ends_with(&port)) && words.nth(1) == Some("0A")
        })?;
        let mut words = line.split_whitespace().skip(7);
        Some((words.next()?.parse().ok()?, words.nth(1)?.to_owned()))
    })?;
    let socket = PathBuf::from(format!("socket:[{inode}]"));
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let program = processes.filter(|process| process.join("fd").is_dir()).find_map(|process| {
        let mut open = fs::read_dir(process.join("fd")).ok()?.flatten();
        open.any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == socket))
            .then(|| fs::read_to_string(process.join("comm")).map(|name| name.trim().to_owned()).ok())?
    });
    program.or_else(|| {
        (Uid::from_raw(uid) != geteuid()).then(|| format!("user {}", name_of(Uid::from_raw(uid))))
    })
}
