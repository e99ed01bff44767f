//! Whether a place outlives the machine's next start.
//!
//! In: where mail would wait for a server that is away. Out: nothing, or which of the places is in memory.
//! Promise: what is answered 250 there is on a disk. A file system that is laid over another one (a container's) is as good
//! as the one it writes to, as far as that can be seen from here.
//! Fails: [`OpenError::InMemory`]. A place that cannot be looked at is another one's business: opening it will tell.

use super::{OpenError, Settings};
use nix::sys::statfs::{FsType, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// As Linux has it (`magic.h`); nix has no name for it.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// Looks at the places of the queue in a file.
pub(super) fn look(settings: &Settings) -> Result<(), OpenError> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for (key, path) in [("queue.path", &settings.path), ("queue.spool", &settings.spool)] {
        // What is not there yet is made below what is.
        let Some(there) = path.ancestors().find(|above| above.exists()) else { continue };
        if let Some(kind) = memory(there, &mounts) {
            return Err(OpenError::InMemory { key, path: path.clone(), kind });
        }
    }
    Ok(())
}

/// What kind of memory it is; none: it is on a disk, or that cannot be seen.
fn memory(path: &Path, mounts: &str) -> Option<&'static str> {
    match kind(path)? {
        Kind::Memory(name) => Some(name),
        Kind::Overlay => match kind(&upper(&path.canonicalize().ok()?, mounts)?)? {
            Kind::Memory(_) => Some("an overlay that writes to memory"),
            _ => None,
        },
        Kind::Other => None,
    }
}

enum Kind {
    Memory(&'static str),
    Overlay,
    Other,
}

fn kind(path: &Path) -> Option<Kind> {
    Some(match statfs(path).ok()?.filesystem_type() {
        TMPFS_MAGIC => Kind::Memory("tmpfs"),
        RAMFS_MAGIC => Kind::Memory("ramfs"),
        OVERLAYFS_SUPER_MAGIC => Kind::Overlay,
        _ => Kind::Other,
    })
}

/// The directory that an overlay writes to: of the innermost mount that has the path (proc(5), `mountinfo`).
fn upper(path: &Path, mounts: &str) -> Option<PathBuf> {
    let mount = |line: &str| {
        let (front, back) = line.split_once(" - ")?;
        let place = PathBuf::from(plain(front.split(' ').nth(4)?));
        let options = back.split(' ').nth(2)?;
        let upper = options.split(',').find_map(|option| option.strip_prefix("upperdir=")).map(plain);
        path.starts_with(&place).then_some((place, upper))
    };
    let innermost = mounts.lines().filter_map(mount).max_by_key(|(place, _)| place.components().count())?;
    innermost.1.map(PathBuf::from)
}

/// Blanks and the like are written as numbers there.
fn plain(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\054", ",").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_memory_is_seen() {
        assert_eq!(memory(Path::new("/dev/shm"), ""), Some("tmpfs"));
        assert_eq!(memory(Path::new("/proc"), ""), None);
        let path = PathBuf::from("/dev/shm/am/queue.db");
        let on_disk = Settings::new("/proc/none/queue.db".into(), "/proc/none/spool".into());
        assert!(look(&on_disk).is_ok());
        for (key, settings) in [
            ("queue.path", Settings { path: path.clone(), ..on_disk.clone() }),
            ("queue.spool", Settings { spool: path, ..on_disk }),
        ] {
            let error = look(&settings).unwrap_err();
            assert!(error.is_of_settings() && error.to_string().starts_with(key), "{error}");
            assert!(error.to_string().contains("is in memory (tmpfs)"), "{error}");
        }
    }

    #[test]
    fn an_overlay_is_as_good_as_what_it_writes_to() {
        let mounts = "22 1 0:20 / / rw - overlay overlay rw,lowerdir=/l,upperdir=/disk/up,workdir=/w\n\
                      23 22 0:21 / /var/lib rw,relatime shared:1 - overlay none rw,lowerdir=/a:/b,upperdir=/dev/shm/a\\040b,workdir=/w\n\
                      24 22 0:22 / /var/lib/mail rw - ext4 /dev/vda rw\n";
        let upper = |path: &str| upper(Path::new(path), mounts);
        assert_eq!(upper("/etc"), Some("/disk/up".into()));
        assert_eq!(upper("/var/lib/am"), Some("/dev/shm/a b".into()));
        assert_eq!(upper("/var/lib/mail/q"), None);
    }
}
