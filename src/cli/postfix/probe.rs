//! Tries a socket as Postfix would: as its user, from inside its chroot. A process of its own, because neither can be
//! taken back.

use super::super::{Failure, other, out::say};
use clap::{Args as ClapArgs, ValueEnum};
use nix::unistd::{Uid, User, chroot, setgid, setgroups, setuid};
use std::{
    fmt, io,
    net::ToSocketAddrs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

/// Longest wait for an answer: that of a look-up, at which Postfix would not have given up yet.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where LMTP listens if nothing is said (`lmtp_tcp_port`).
const LMTP_PORT: u16 = 24;

/// A server as Postfix names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// A path; relative to the queue directory, and absolute ones too if the service is chrooted.
    Unix(PathBuf),
    /// Host and port.
    Inet(String, u16),
}

impl Endpoint {
    /// A milter: `unix:path` or `inet:host:port`, and nothing else.
    pub(super) fn of_milter(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return (!path.is_empty()).then(|| Self::Unix(path.into()));
        }
        let (host, port) = text.strip_prefix("inet:")?.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port > 0).or_else(|| port_named(port))?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        (!host.is_empty()).then(|| Self::Inet(host.to_owned(), port))
    }

    /// True if nobody can be there: no such file, or nobody listens. Tried from here; a no of another kind proves nothing.
    pub(super) fn is_dead(&self, queue_directory: &Path) -> bool {
        let nobody = |error: io::Error| {
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
        };
        match self {
            Self::Unix(path) => {
                let below = queue_directory.join(path.strip_prefix("/").unwrap_or(path));
                let dead = |path: &Path| std::os::unix::net::UnixStream::connect(path).is_err_and(nobody);
                dead(&below) && (path.is_relative() || dead(path))
            }
            Self::Inet(host, port) => {
                let Ok(addresses) = (host.as_str(), *port).to_socket_addrs() else { return false };
                let dead = |a| std::net::TcpStream::connect_timeout(&a, PATIENCE).is_err_and(nobody);
                addresses.into_iter().all(dead)
            }
        }
    }

    /// `unix:path`, `inet:host:port`, and for LMTP also `host`, `host:port` and `[address]:port`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Some(Self::Unix(path.into()));
        }
        let text = text.strip_prefix("inet:").unwrap_or(text);
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
            _ => (text, LMTP_PORT),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        (!host.is_empty()).then(|| Self::Inet(host.to_owned(), port))
    }
}

/// A port by its name, as services(5) has it.
fn port_named(name: &str) -> Option<u16> {
    let services = std::fs::read_to_string("/etc/services").ok()?;
    let port = |line: &str| {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let (first, port) = (words.next()?, words.next()?.strip_suffix("/tcp")?);
        (first == name || words.any(|alias| alias == name)).then(|| port.parse().ok()).flatten()
    };
    services.lines().find_map(port)
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Inet(host, port) if host.contains(':') => write!(f, "inet:[{host}]:{port}"),
            Self::Inet(host, port) => write!(f, "inet:{host}:{port}"),
        }
    }
}

/// What should answer there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Protocol {
    Milter,
    Lmtp,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    protocol: Protocol,
    endpoint: String,
    /// Postfix's queue directory
    #[arg(long)]
    directory: PathBuf,
    /// Become this user first
    #[arg(long)]
    user: Option<String>,
    /// Make the directory the root first
    #[arg(long)]
    chroot: bool,
    /// Which version of the milter protocol Postfix offers
    #[arg(long, default_value_t = MILTER_VERSION)]
    milter_version: u8,
}

/// What Postfix offers unless `milter_protocol` says otherwise.
pub(super) const MILTER_VERSION: u8 = 6;

/// True if we may try as another user.
pub(super) fn is_possible() -> bool {
    Uid::effective().is_root()
}

/// Starts ourselves anew to try it; the error is for people.
pub(super) fn probe(
    protocol: Protocol,
    endpoint: &Endpoint,
    directory: &Path,
    user: &str,
    chroot: bool,
    milter_version: u8,
) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let word = match protocol {
        Protocol::Milter => "milter",
        Protocol::Lmtp => "lmtp",
    };
    let mut command = Command::new(program);
    command.args(["postfix", "probe", word, &endpoint.to_string(), "--directory"]).arg(directory);
    command.args(["--milter-version", &milter_version.to_string()]);
    if is_possible() {
        command.args(["--user", user]).args(chroot.then_some("--chroot"));
    }
    let output = command.output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
    }
}

/// The process that tries: prints why not.
pub(super) async fn run(args: &Args) -> Result<ExitCode, Failure> {
    let endpoint = Endpoint::parse(&args.endpoint)
        .ok_or_else(|| Failure::CommandLine(format!("\"{}\" is no socket", args.endpoint)))?;
    become_postfix(args).map_err(other)?;
    let answer = tokio::time::timeout(PATIENCE, ask(args, &endpoint)).await;
    let why = match answer {
        Ok(Ok(())) => return Ok(ExitCode::SUCCESS),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
    };
    say(&format!("{why}\n"))?;
    Ok(ExitCode::FAILURE)
}

/// As Postfix's processes do it: `chdir`, `chroot`, and the one group of their user.
fn become_postfix(args: &Args) -> io::Result<()> {
    std::env::set_current_dir(&args.directory)?;
    let user = match &args.user {
        Some(name) => {
            Some(User::from_name(name)?.ok_or_else(|| io::Error::other(format!("no user {name}")))?)
        }
        None => None,
    };
    if args.chroot {
        chroot(".")?;
    }
    if let Some(user) = user {
        setgroups(&[user.gid])?;
        setgid(user.gid)?;
        setuid(user.uid)?;
    }
    Ok(())
}

async fn ask(args: &Args, endpoint: &Endpoint) -> io::Result<()> {
    match endpoint {
        Endpoint::Unix(path) => talk(args, UnixStream::connect(path).await?).await,
        Endpoint::Inet(host, port) => talk(args, TcpStream::connect((host.as_str(), *port)).await?).await,
    }
}

async fn talk(args: &Args, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let stranger = |what| io::Error::other(format!("something answers there that is no {what} server"));
    match args.protocol {
        Protocol::Milter => {
            let version = args.milter_version;
            // SMFIC_OPTNEG: all actions and options that this version has; the answer has the same shape, and the
            // milter's version, which may be older. Masks as in Postfix's milter8.c.
            let (actions, options) = match version {
                ..=2 => (0x3f_u32, 0x7f_u32),
                3 => (0x3f, 0x17f),
                4 | 5 => (0x3f, 0x37f),
                6.. => (0x1ff, 0x1f_ffff),
            };
            let mut offer = vec![0, 0, 0, 13, b'O', 0, 0, 0, version];
            offer.extend_from_slice(&actions.to_be_bytes());
            offer.extend_from_slice(&options.to_be_bytes());
            stream.write_all(&offer).await?;
            let mut answer = [0; 9];
            stream.read_exact(&mut answer).await.map_err(|_| stranger("milter"))?;
            stream.write_all(&[0, 0, 0, 1, b'Q']).await?;
            match answer[4..] {
                [b'O', 0, 0, 0, theirs] if (2..=version).contains(&theirs) => Ok(()),
                _ => Err(stranger("milter")),
            }
        }
        Protocol::Lmtp => {
            let mut greeting = [0; 4];
            stream.read_exact(&mut greeting).await.map_err(|_| stranger("LMTP"))?;
            stream.write_all(b"QUIT\r\n").await?;
            if greeting.starts_with(b"220") { Ok(()) } else { Err(stranger("LMTP")) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_as_postfix_writes_them() {
        for (text, expected) in [
            ("unix:activity-milter/lmtp.sock", "unix:activity-milter/lmtp.sock"),
            ("inet:127.0.0.1:8893", "inet:127.0.0.1:8893"),
            ("inet:[::1]:8893", "inet:[::1]:8893"),
            ("[127.0.0.1]:2424", "inet:127.0.0.1:2424"),
            ("localhost", "inet:localhost:24"),
            ("[::1]", "inet:[::1]:24"),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), expected);
        }
        for text in ["", "inet:", "inet:host:port", "inet::1"] {
            assert_eq!(Endpoint::parse(text), None, "{text}");
        }
    }
}
