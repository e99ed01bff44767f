//! Files, directories and sockets that must not be each other's.
//!
//! In: what the configuration names, each with its key. Out: nothing, or the key whose place is another's already.
//! Promise: one place is one, however it is written: with `..`, through a link, as an address that covers the other.

use super::reading::Reading;
use crate::intake::Listen;
use crate::source::SourceError;
use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

/// What SQLite and we have beside a database.
const BESIDE: [&str; 5] = ["-wal", "-shm", "-journal", ".lock", ".aside"];

/// What is to be at a place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Database,
    Directory,
    File,
    Socket,
}

/// One of them.
struct Place {
    key: &'static str,
    /// Whose it is, in an error about another.
    whose: &'static str,
    kind: Kind,
    path: PathBuf,
    /// As the system sees it.
    real: PathBuf,
}

/// All that is used, in the order in which it has precedence.
pub(super) struct Places<'a> {
    source: &'a Reading<'a>,
    places: Vec<Place>,
    doors: Vec<(&'static str, SocketAddr)>,
}

impl<'a> Places<'a> {
    pub(super) fn new(source: &'a Reading<'a>) -> Self {
        Self { source, places: Vec::new(), doors: Vec::new() }
    }

    /// A listening socket.
    pub(super) fn socket(mut self, key: &'static str, listen: &Listen) -> Result<Self, SourceError> {
        let other = match listen {
            Listen::Systemd => return Ok(self),
            Listen::Unix(path) => {
                let same = |place: &&Place| place.kind == Kind::Socket && place.real == self.real(path);
                match self.places.iter().find(same).map(|place| place.key) {
                    None => return self.add(Kind::Socket, key, "a socket", path),
                    same => same,
                }
            }
            Listen::Inet(address) => {
                let other = self.doors.iter().find(|(_, other)| overlap(*address, *other)).map(|door| door.0);
                self.doors.push((key, *address));
                other
            }
        };
        match other {
            None => Ok(self),
            Some("milter.listen") if key == "lmtp.listen" => Err(self
                .source
                .error_at(key, "the same socket as milter.listen: each protocol needs its own")),
            Some(other) => {
                Err(self.source.error_at(key, format!("the same address as {other}: each needs its own")))
            }
        }
    }

    /// Anything else; `whose` says what it is.
    pub(super) fn add(
        mut self,
        kind: Kind,
        key: &'static str,
        whose: &'static str,
        path: &Path,
    ) -> Result<Self, SourceError> {
        let place = Place { key, whose, kind, path: path.to_owned(), real: self.real(path) };
        for other in &self.places {
            clash(self.source, other, &place)?;
        }
        self.places.push(place);
        Ok(self)
    }

    /// Where nothing may be looked at, as it is written.
    fn real(&self, path: &Path) -> PathBuf {
        if self.source.looks() { resolved(path) } else { path.to_owned() }
    }
}

/// Whether the second cannot be beside the first.
fn clash(source: &Reading, first: &Place, second: &Place) -> Result<(), SourceError> {
    let wrong = |message: String| Err(source.error_at(second.key, message));
    let (key, whose) = (second.key, first.whose);
    if first.real == second.real || source.looks() && is_one(&first.path, &second.path) {
        if second.kind == Kind::Directory {
            let file = first.key;
            return wrong(format!(
                "{file} and {key} are the same: the first is a file, the second a directory"
            ));
        }
        let own = key.split('.').next().unwrap_or(key);
        return wrong(format!("{key} is {whose}: give the {own} one of its own"));
    }
    for (database, other) in [(first, second), (second, first)] {
        let is_beside = |end: &&&str| {
            let mut name = database.real.clone().into_os_string();
            name.push(end);
            other.real == Path::new(&name)
        };
        if let Some(end) = BESIDE.iter().find(is_beside).filter(|_| database.kind == Kind::Database) {
            let (at, of) = (database.path.display(), database.key);
            return wrong(format!("{at}{end} belongs to the database {of}: set another {key}, elsewhere"));
        }
        if database.kind != Kind::Directory && other.real.starts_with(&database.real) {
            let (path, above, of) = (other.path.display(), database.path.display(), database.key);
            return wrong(format!("{path} lies below {above}, which is a file ({of}): set another {key}"));
        }
    }
    Ok(())
}

/// True if both are there, and one file with two names.
fn is_one(first: &Path, second: &Path) -> bool {
    let identity = |path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    identity(first).is_some_and(|first| identity(second) == Some(first))
}

/// Without links, `.` and `..`, as far as it is there; and the rest as it is written.
fn resolved(path: &Path) -> PathBuf {
    if let Ok(real) = fs::canonicalize(path) {
        return real;
    }
    match (path.parent(), path.components().next_back()) {
        (Some(above), Some(Component::Normal(name))) => resolved(above).join(name),
        (Some(above), Some(Component::ParentDir)) => {
            let mut above = resolved(above);
            above.pop();
            above
        }
        _ => path.to_owned(),
    }
}

/// True if the system lets only one of them listen. Port 0 is another one each time.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    let covers = |all: IpAddr, ip: IpAddr| {
        all.is_unspecified() && (all.is_ipv4() == ip.is_ipv4() || all.is_ipv6() && takes_both())
    };
    one.port() != 0 && one.port() == other.port() && (a == b || covers(a, b) || covers(b, a))
}

/// Whether `[::]` is every IPv4 address too (ipv6(7), `IPV6_V6ONLY`).
fn takes_both() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/bindv6only").map_or(true, |only| only.trim() != "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_is_one_however_it_is_written() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        fs::create_dir(at("real")).unwrap();
        std::os::unix::fs::symlink(at("real"), at("link")).unwrap();
        let expected = fs::canonicalize(at("real")).unwrap().join("a/b");
        for name in
            ["real/a/b", "link/a/b", "link/../real/a/b", "real/./a/b", "link/a/c/../b", "none/../real/a/b"]
        {
            assert_eq!(resolved(&at(name)), expected, "{name}");
        }
        assert_ne!(resolved(&at("real/a/c")), expected);
    }

    #[test]
    fn addresses_overlap_as_the_system_sees_it() {
        let both = takes_both();
        for (one, other, expected) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("127.0.0.1:1", "0.0.0.0:1", true),
            ("0.0.0.0:1", "0.0.0.0:1", true),
            ("[::]:1", "[::1]:1", true),
            ("[::]:1", "127.0.0.1:1", both),
            ("[::]:1", "0.0.0.0:1", both),
            ("[::1]:1", "0.0.0.0:1", false),
            ("[::1]:1", "127.0.0.1:1", false),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1", true),
            ("127.0.0.1:0", "127.0.0.1:0", false),
        ] {
            let (one, other): (SocketAddr, SocketAddr) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!((overlap(one, other), overlap(other, one)), (expected, expected), "{one} {other}");
        }
        // The system's word for it.
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        for all in ["0.0.0.0", "[::]"] {
            let address: SocketAddr = format!("{all}:{port}").parse().unwrap();
            match std::net::TcpListener::bind(address) {
                Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {} // no IPv6 here
                bound => assert_eq!(bound.is_err(), overlap(address, taken.local_addr().unwrap()), "{all}"),
            }
        }
    }
}
