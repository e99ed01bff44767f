//! Sockets that Postfix can reach, and an `accept` that does not give up.
//!
//! In: where to listen. Out: connections that have a place, for indymilter, LMTP and the admin door.
//! Promise: a failed `accept` (no descriptors left, peer gone) is a log line and a pause, where indymilter's `run`
//! would end; who finds no place is told so where the protocol has words for it; a stale unix socket is replaced, one that
//! somebody answers on is not.
//! Fails: [`BindError`], with the remedy.

use super::{
    places::{At, Manners, Places},
    stream::{Guarded, Socket as Stream},
};
use crate::observe::events;
use listenfd::ListenFd;
use nix::{errno::Errno, unistd::Group};
use std::{
    fmt, fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{LazyLock, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpSocket, UnixListener, UnixSocket, UnixStream},
    time::{Instant, Sleep, sleep},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Pause after a failed `accept`. Descriptors come back when sessions end, and those last seconds.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// Connections that wait in the system's queue while others are looked after: at a unix socket the next one is an error for
/// Postfix.
const BACKLOG: u32 = 1024;

/// How often somebody is looked for who could make room.
const ROOM_PAUSE: Duration = Duration::from_millis(250);

/// How long one who was asked to make room may take for it before the next is turned away.
const LEAVING: Duration = Duration::from_secs(1);

/// Where to listen, as the configuration writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// `unix:/path`
    Unix(PathBuf),
    /// `inet:address:port`; port 0 lets the system choose.
    Inet(SocketAddr),
    /// `systemd`: a socket that systemd opened for us (sd_listen_fds(3)), by its `FileDescriptorName`.
    Systemd,
}

impl std::str::FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = "write \"unix:/path/to/socket\", \"inet:127.0.0.1:8893\" or \"systemd\"";
        match text.split_once(':') {
            None if text == "systemd" => Ok(Self::Systemd),
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("inet", address)) => match address.replace("localhost:", "127.0.0.1:").parse() {
                Ok(address) => Ok(Self::Inet(address)),
                Err(_) => Err(format!("\"{address}\" is no IP address with port: {expected}")),
            },
            _ => Err(format!("\"{text}\" is no socket: {expected}")),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Inet(address) => write!(f, "inet:{address}"),
            Self::Systemd => f.write_str("systemd"),
        }
    }
}

/// Where a table's socket is by default.
pub fn default_socket(table: &str) -> PathBuf {
    format!("/var/spool/postfix/activity-milter/{table}.sock").into()
}

/// Settings of a listening socket.
#[derive(Clone, Debug)]
pub struct SocketSettings {
    /// The table of the configuration that these come from, for error texts: `milter` or `lmtp`.
    pub table: &'static str,
    /// Where.
    pub listen: Listen,
    /// Permission bits of a unix socket.
    pub mode: u32,
    /// Group of a unix socket; none leaves what the directory gives.
    pub group: Option<String>,
    /// Most connections at a time.
    pub max_sessions: usize,
    /// Once there are so many, those may be closed that were idle for so long.
    pub idle_when_full: Duration,
}

/// Why we cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers there.
    #[error(
        "{listen} is in use: another activity-milter is listening there. Stop it, or set another {table}.listen"
    )]
    InUse {
        /// Where.
        listen: Listen,
        /// The table of the configuration.
        table: &'static str,
    },
    /// There is a file that is no socket; it is not ours to remove.
    #[error("{path} exists and is no socket: remove it, or set another {table}.listen")]
    NotASocket {
        /// The file.
        path: PathBuf,
        /// The table of the configuration.
        table: &'static str,
    },
    /// No such group.
    #[error("there is no group \"{group}\": create it, or change {table}.socket_group")]
    NoGroup {
        /// The name.
        group: String,
        /// The table of the configuration.
        table: &'static str,
    },
    /// systemd gave us no such socket.
    #[error(
        "{table}.listen is \"systemd\", and systemd gave no socket named {table}: enable the .socket unit with FileDescriptorName={table}"
    )]
    NotGiven {
        /// The table of the configuration.
        table: &'static str,
    },
    /// Anything else.
    #[error("cannot listen on {listen}: {error}. {remedy}")]
    Io {
        /// Where.
        listen: Listen,
        /// Why not.
        error: io::Error,
        /// What would do.
        remedy: String,
    },
}

/// A listening socket that stops accepting when it is told to.
#[derive(Debug)]
pub struct Listener {
    table: &'static str,
    socket: Socket,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    pause: Option<Pin<Box<Sleep>>>,
    places: Places,
    /// Who has come and waits for a place.
    come: Option<Stream>,
    /// Since when he waits.
    since: Option<Instant>,
    /// Since when there is no place.
    full: Option<Instant>,
    /// When it is looked again whether there is.
    look: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
    /// systemd's: its name is not ours to remove.
    Given(UnixListener),
    /// No more connections.
    Closed,
}

impl Listener {
    /// Binds; `stop` closes the socket later.
    /// # Errors
    /// [`BindError`].
    pub async fn bind(settings: &SocketSettings, stop: CancellationToken) -> Result<Self, BindError> {
        let socket = match &settings.listen {
            Listen::Inet(address) => Socket::Tcp(bind_tcp(*address).map_err(|error| {
                if error.kind() == io::ErrorKind::AddrInUse {
                    return settings.in_use();
                }
                let remedy = match error.kind() {
                    io::ErrorKind::PermissionDenied => "a port above 1023: those below are root's",
                    _ => "an address of this machine",
                };
                settings.failed(error, format!("Set {}.listen to {remedy}", settings.table))
            })?),
            Listen::Unix(path) => bind_unix(path, settings).await?,
            Listen::Systemd => {
                let remedy = "See the .socket unit: ListenStream= with a path or a TCP port".to_owned();
                Inherited::take(settings.table)
                    .ok_or(BindError::NotGiven { table: settings.table })?
                    .map_err(|error| settings.failed(error, remedy))?
            }
        };
        Ok(Self {
            table: settings.table,
            socket,
            stop: Box::pin(stop.cancelled_owned()),
            pause: None,
            places: settings.places(),
            come: None,
            since: None,
            full: None,
            look: None,
        })
    }

    /// Who is connected.
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// Where it listens; the port is the real one.
    pub fn local(&self) -> Option<Listen> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok().map(Listen::Inet),
            Socket::Unix(_, file) => Some(Listen::Unix(file.path.clone())),
            Socket::Given(_) => Some(Listen::Systemd),
            Socket::Closed => None,
        }
    }
}

impl Listener {
    /// Waits until there is a place for who has come; false if nobody can make room for him.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            // Before it is looked: who goes in between is not missed.
            self.places.tell(cx.waker());
            if self.places.has_room() {
                (self.full, self.look) = (None, None);
                return Poll::Ready(true);
            }
            let full = self.full.get_or_insert_with(Instant::now).elapsed();
            let waited = self.since.get_or_insert_with(Instant::now).elapsed();
            let is_full = full >= self.places.manners().queues;
            // For whom somebody makes room, he gets it.
            let is_hopeless = !self.places.make_room() || waited >= LEAVING;
            if is_full && is_hopeless {
                return Poll::Ready(false);
            }
            let look = self.look.get_or_insert_with(|| Box::pin(sleep(ROOM_PAUSE)));
            ready!(look.as_mut().poll(cx));
            self.look = None;
        }
    }

    /// The next connection of the socket.
    fn poll_socket(&self, cx: &mut Context<'_>) -> Poll<io::Result<Stream>> {
        match &self.socket {
            Socket::Tcp(listener) => listener.poll_accept(cx).map_ok(|(stream, _)| {
                // Replies are small frames that Postfix waits for.
                let _ = stream.set_nodelay(true);
                Stream::Tcp(stream)
            }),
            Socket::Unix(listener, _) | Socket::Given(listener) => {
                listener.poll_accept(cx).map_ok(|(stream, _)| Stream::Unix(stream))
            }
            Socket::Closed => Poll::Pending,
        }
    }

    /// There is no place for it: it is told so, as far as there are words for it.
    fn turn_away(&self, stream: &Stream) {
        let farewell = self.places.manners().farewell;
        let mut unread = [0; 4096];
        // The buffer of a new socket is empty. What was sent and not read would take our words away with a reset.
        let _ = match stream {
            Stream::Tcp(stream) => (stream.try_read(&mut unread), stream.try_write(farewell)),
            Stream::Unix(stream) => (stream.try_read(&mut unread), stream.try_write(farewell)),
        };
        self.places.turned_away();
    }
}

impl indymilter::Listener for Listener {
    type Io = Guarded;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Self::Io>> {
        loop {
            if !matches!(self.socket, Socket::Closed) && self.stop.as_mut().poll(cx).is_ready() {
                self.socket = Socket::Closed;
                self.come = None;
            }
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            if self.come.is_none() {
                match ready!(self.poll_socket(cx)) {
                    Ok(stream) => self.come = Some(stream),
                    Err(error) if is_the_peers(&error) => continue,
                    Err(error) => {
                        self.places.make_room();
                        events::accept_failed(&error, ACCEPT_PAUSE);
                        self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                        continue;
                    }
                }
            }
            let has_room = ready!(self.poll_room(cx));
            self.since = None;
            match self.come.take() {
                Some(stream) if has_room => {
                    let at = if self.table == "milter" { At::Door } else { At::Rest };
                    let place = self.places.take(at);
                    return Poll::Ready(Ok(Guarded::new(stream, place, self.table)));
                }
                Some(stream) => self.turn_away(&stream),
                None => {}
            }
        }
    }
}

/// True for an error of the connection that was to be accepted, not of ours: the peer is gone, or its network is
/// (accept(2), "Error handling"). The next one may be there already.
fn is_the_peers(error: &io::Error) -> bool {
    use Errno::*;
    let errno = Errno::from_raw(error.raw_os_error().unwrap_or_default());
    matches!(
        errno,
        ECONNABORTED
            | ECONNRESET
            | EHOSTDOWN
            | EHOSTUNREACH
            | EINTR
            | ENETDOWN
            | ENETUNREACH
            | ENONET
            | ENOPROTOOPT
            | EOPNOTSUPP
            | EPERM
            | EPROTO
            | ETIMEDOUT
    )
}

/// Sockets that systemd opened before it started us. They stay open while we restart, so that nobody is refused.
struct Inherited {
    descriptors: ListenFd,
    names: Vec<String>,
}

static INHERITED: LazyLock<Mutex<Inherited>> = LazyLock::new(|| {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(str::to_owned).collect();
    Mutex::new(Inherited { descriptors: ListenFd::from_env(), names })
});

impl Inherited {
    /// The socket of that name.
    fn take(name: &str) -> Option<io::Result<Socket>> {
        let mut inherited = INHERITED.lock().unwrap_or_else(PoisonError::into_inner);
        let index = inherited.names.iter().position(|given| given == name)?;
        if let Ok(Some(listener)) = inherited.descriptors.take_unix_listener(index) {
            let listener = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
            return Some(listener.map(Socket::Given));
        }
        match inherited.descriptors.take_tcp_listener(index) {
            Ok(listener) => {
                let listener = listener?;
                Some(
                    listener
                        .set_nonblocking(true)
                        .and_then(|()| TcpListener::from_std(listener))
                        .map(Socket::Tcp),
                )
            }
            Err(error) => Some(Err(error)),
        }
    }
}

/// The name of our socket in the file system; removed with us, unless somebody else has put another one there.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: Option<(u64, u64)>,
}

impl SocketFile {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), inode: inode(path) }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.inode.is_some() && inode(&self.path) == self.inode {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // What is left of the process before does not keep the port (tcp(7)).
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What a unix socket needs.
const NEEDS_DIRECTORY: &str = "The directory must exist and be writable for the user activity-milter runs as";

async fn bind_unix(path: &Path, settings: &SocketSettings) -> Result<Socket, BindError> {
    let table = settings.table;
    let failed = |remedy: String| move |error| settings.failed(error, remedy);
    if settings.look()? {
        let answers = tokio::time::timeout(Duration::from_secs(2), UnixStream::connect(path)).await;
        // Only a refused connection shows that nobody is there; a full backlog is somebody.
        if !matches!(answers, Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused) {
            return Err(settings.in_use());
        }
        fs::remove_file(path)
            .map_err(failed("The stale socket there cannot be removed: remove it by hand".to_owned()))?;
    }
    let bind = || {
        let socket = UnixSocket::new_stream()?;
        socket.bind(path)?;
        socket.listen(BACKLOG)
    };
    let listener = bind().map_err(failed(NEEDS_DIRECTORY.to_owned()))?;
    let file = SocketFile::new(path);
    if let Some(name) = &settings.group {
        let group = Group::from_name(name).ok().flatten();
        let group = group.ok_or_else(|| BindError::NoGroup { group: name.clone(), table })?;
        // A directory may have handed its group down; then nobody needs the right to give it.
        if fs::symlink_metadata(path).is_ok_and(|meta| meta.gid() != group.gid.as_raw()) {
            let remedy = format!("activity-milter must be a member of {table}.socket_group");
            chown(path, None, Some(group.gid.as_raw())).map_err(failed(remedy))?;
        }
    }
    let mode = fs::Permissions::from_mode(settings.mode);
    fs::set_permissions(path, mode)
        .map_err(failed(format!("The mode cannot be set: see {table}.socket_mode")))?;
    Ok(Socket::Unix(listener, file))
}

impl SocketSettings {
    /// Whether there is a unix socket already: the service's, or a stale one, which [`Listener::bind`] replaces. It looks so
    /// too; nothing is changed.
    /// # Errors
    /// What is there, or its directory, leaves no room for one.
    pub fn look(&self) -> Result<bool, BindError> {
        let Listen::Unix(path) = &self.listen else { return Ok(false) };
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.file_type().is_socket() => Ok(true),
            Ok(_) => Err(BindError::NotASocket { path: path.clone(), table: self.table }),
            Err(_) if path.parent().is_some_and(Path::is_dir) => Ok(false),
            Err(error) => Err(self.failed(error, NEEDS_DIRECTORY.to_owned())),
        }
    }

    /// Where the socket is; systemd's is where our own unit files put it.
    pub fn place(&self) -> Listen {
        match &self.listen {
            Listen::Systemd => Listen::Unix(default_socket(self.table)),
            listen => listen.clone(),
        }
    }

    /// Connections in all, those included that only hear that there is no place.
    pub fn connections(&self) -> usize {
        self.max_sessions.saturating_add(self.manners().standing)
    }

    fn manners(&self) -> Manners {
        match self.table {
            "milter" => Manners::milter(self.max_sessions),
            "lmtp" => Manners::lmtp(),
            _ => Manners::admin(),
        }
    }

    /// Room for the connections.
    fn places(&self) -> Places {
        Places::new(self.table, self.max_sessions, self.idle_when_full, self.manners())
    }

    fn in_use(&self) -> BindError {
        BindError::InUse { listen: self.listen.clone(), table: self.table }
    }

    fn failed(&self, error: io::Error, remedy: String) -> BindError {
        BindError::Io { listen: self.listen.clone(), error, remedy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use indymilter::Listener as _;
    use tokio::time::Instant;

    fn at(path: &Path) -> SocketSettings {
        SocketSettings {
            table: "milter",
            listen: Listen::Unix(path.to_owned()),
            mode: 0o660,
            group: None,
            max_sessions: 10,
            idle_when_full: Duration::from_secs(30),
        }
    }

    #[test]
    fn sockets_are_read_as_postfix_writes_them() {
        assert_eq!("unix:/run/x.sock".parse(), Ok(Listen::Unix("/run/x.sock".into())));
        assert_eq!("inet:127.0.0.1:8893".parse(), Ok(Listen::Inet(([127, 0, 0, 1], 8893).into())));
        assert_eq!("inet:[::1]:8893".parse::<Listen>().unwrap().to_string(), "inet:[::1]:8893");
        for bad in ["unix:relative", "inet:host.example.com:1", "/run/x.sock", "inet:127.0.0.1", ""] {
            assert!(bad.parse::<Listen>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("milter.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap()); // leaves its name behind, like a crash
        let live = Listener::bind(&at(&path), CancellationToken::new()).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(matches!(
            Listener::bind(&at(&path), CancellationToken::new()).await,
            Err(BindError::InUse { .. })
        ));
        drop(live);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            Listener::bind(&at(&path), CancellationToken::new()).await,
            Err(BindError::NotASocket { .. })
        ));
        let nowhere =
            Listener::bind(&at(Path::new("/nonexistent/milter.sock")), CancellationToken::new()).await;
        assert!(nowhere.unwrap_err().to_string().contains("The directory must exist"));
        let grouped =
            SocketSettings { group: Some("no-such-group".to_owned()), ..at(&dir.path().join("g.sock")) };
        assert!(matches!(
            Listener::bind(&grouped, CancellationToken::new()).await,
            Err(BindError::NoGroup { .. })
        ));
    }

    #[test]
    fn a_peer_that_is_gone_is_no_trouble_of_ours() {
        for errno in [Errno::ECONNABORTED, Errno::EPROTO, Errno::EHOSTUNREACH, Errno::EPERM] {
            assert!(is_the_peers(&errno.into()), "{errno}");
        }
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM, Errno::EINVAL] {
            assert!(!is_the_peers(&errno.into()), "{errno}");
        }
    }

    #[tokio::test]
    async fn a_stopped_listener_accepts_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("milter.sock");
        let stop = CancellationToken::new();
        let mut listener = Listener::bind(&at(&path), stop.clone()).await.unwrap();
        let _client = UnixStream::connect(&path).await.unwrap();
        listener.accept().await.unwrap();
        stop.cancel();
        let soon = Instant::now() + Duration::from_millis(100);
        assert!(tokio::time::timeout_at(soon, listener.accept()).await.is_err());
        assert!(UnixStream::connect(&path).await.is_err());
    }
}
