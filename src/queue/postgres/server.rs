//! Which database server has the queue, and how it is spoken to.
//!
//! In: what a person wrote. Out: settings that can be connected with.
//! Promise: a password never stands in them: it has a file of its own, which is read anew for each connection, so that a
//! new password counts without a restart. Only a server that can be written to is taken, whichever of the hosts it is.
//! Fails: in words for who wrote it; they never repeat what was written, for there may be a password in it.

use std::{fmt, path::PathBuf, time::Duration};
use tokio_postgres::{
    Config,
    config::{Host, SslMode, TargetSessionAttrs},
};

/// Time to connect to one host, unless the URL says otherwise.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// A host that answers nothing for so long is gone: below the deadline of a put.
const SILENCE: Duration = Duration::from_secs(15);

/// Connections for what waits for the disk, unless the file says otherwise. Each commits for itself, and the server
/// syncs those together that come together.
pub const CONNECTIONS: usize = 16;

/// Other nodes say every 20 s that they are there.
const MISSED_AFTER: Duration = Duration::from_secs(180);

/// Time for a message to be put.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether the connection is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// It is not: a socket of this machine, or a network that nobody else is on.
    Off,
    /// It is, and the server shows a certificate for its name.
    Verify {
        /// Who may have signed it; none: whom this machine trusts.
        ca_file: Option<PathBuf>,
    },
}

/// The server.
#[derive(Clone, PartialEq, Eq)]
pub struct Server {
    config: Config,
    /// A file with the password in its first line; none: the server asks for none.
    pub password_file: Option<PathBuf>,
    /// Encryption.
    pub tls: Tls,
    /// Nothing is put while no standby has to confirm it.
    pub require_replication: bool,
    /// Most connections at a time, besides a few for looking.
    pub connections: usize,
    /// Time for a message to be put: below the doors' own at its end. Then the connection is dropped, and nobody knows
    /// whether it was; the same message again finds out.
    pub patience: Duration,
    /// Another node of which nothing was heard for so long is gone, and its leases with it. It may have been cut off: then what it
    /// sent is sent once more, with the same key, and what it says of it counts no more.
    pub missed_after: Duration,
}

impl Server {
    /// That of an URL (`postgres://user@host:port,host:port/database`). TLS is off on sockets of this machine, and on
    /// elsewhere.
    /// # Errors
    /// In words for who wrote it.
    pub fn new(url: &str) -> Result<Self, String> {
        let example = "write it as \"postgres://user@db1.example.com,db2.example.com/database\"";
        if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
            return Err(format!("this is no URL of a PostgreSQL server: {example}"));
        }
        // The library's own words may show a part of it.
        let mut config: Config =
            url.parse().map_err(|_| format!("this is no URL of a PostgreSQL server: {example}"))?;
        if config.get_password().is_some() {
            let remedy = "write it to a file that only we may read, and name that with queue.password_file";
            return Err(format!("the password stands in the URL, where logs and back-ups have it: {remedy}"));
        }
        if config.get_hosts().is_empty() {
            return Err(format!("the URL names no host: {example}"));
        }
        if config.get_ssl_mode() != SslMode::Prefer {
            return Err("sslmode has no say here: set queue.tls".to_owned());
        }
        let is_local = |host: &Host| matches!(host, Host::Unix(_));
        let local = config.get_hosts().iter().filter(|host| is_local(host)).count();
        if local > 0 && local < config.get_hosts().len() {
            return Err("the hosts are sockets of this machine, or they are none: write one kind".to_owned());
        }
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        config.application_name(concat!("activity-milter/", env!("CARGO_PKG_VERSION")));
        config.tcp_user_timeout(SILENCE).keepalives_idle(SILENCE);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIME);
        }
        let tls = if local > 0 { Tls::Off } else { Tls::Verify { ca_file: None } };
        Ok(Self {
            config,
            password_file: None,
            tls,
            require_replication: false,
            connections: CONNECTIONS,
            patience: PATIENCE,
            missed_after: MISSED_AFTER,
        })
    }

    /// True if all hosts are sockets of this machine.
    pub fn is_local(&self) -> bool {
        self.config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)))
    }

    /// For people: hosts and database.
    pub fn name(&self) -> String {
        let ports = self.config.get_ports();
        let hosts = self.config.get_hosts().iter().enumerate().map(|(at, host)| {
            let host = match host {
                Host::Tcp(name) => name.clone(),
                Host::Unix(path) => path.display().to_string(),
            };
            match ports.get(at).or(ports.first()) {
                Some(port) if *port != 5432 => format!("{host}:{port}"),
                _ => host,
            }
        });
        let hosts: Vec<String> = hosts.collect();
        let database = self.config.get_dbname().or(self.config.get_user()).unwrap_or_default();
        format!("postgres://{}/{database}", hosts.join(","))
    }

    /// What to connect with, host by host: the library's own walk over hosts has no end at one that accepts and says nothing.
    pub(super) fn configs(&self) -> Result<Vec<Config>, String> {
        let all = self.config()?;
        let ports = all.get_ports();
        let hosts = all.get_hosts().iter().enumerate();
        let alone = |(at, host): (usize, &Host)| {
            let mut one = Config::new();
            match host {
                Host::Tcp(name) => one.host(name),
                Host::Unix(path) => one.host_path(path),
            };
            one.port(ports.get(at).or(ports.first()).copied().unwrap_or(5432));
            if let Some(address) = all.get_hostaddrs().get(at) {
                one.hostaddr(*address);
            }
            if let Some(user) = all.get_user() {
                one.user(user);
            }
            if let Some(database) = all.get_dbname() {
                one.dbname(database);
            }
            if let Some(options) = all.get_options() {
                one.options(options);
            }
            if let Some(name) = all.get_application_name() {
                one.application_name(name);
            }
            if let Some(password) = all.get_password() {
                one.password(password);
            }
            if let Some(time) = all.get_connect_timeout() {
                one.connect_timeout(*time);
            }
            if let Some(time) = all.get_tcp_user_timeout() {
                one.tcp_user_timeout(*time);
            }
            one.ssl_mode(all.get_ssl_mode())
                .ssl_negotiation(all.get_ssl_negotiation())
                .channel_binding(all.get_channel_binding())
                .keepalives(all.get_keepalives())
                .keepalives_idle(all.get_keepalives_idle())
                .target_session_attrs(all.get_target_session_attrs());
            one
        };
        Ok(hosts.map(alone).collect())
    }

    /// What to connect with, the password as the file has it now.
    fn config(&self) -> Result<Config, String> {
        let mut config = self.config.clone();
        config.ssl_mode(if self.tls == Tls::Off { SslMode::Disable } else { SslMode::Require });
        if let Some(path) = &self.password_file {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("queue.password_file {}: {error}", path.display()))?;
            match text.lines().next().filter(|line| !line.is_empty()) {
                Some(password) => config.password(password),
                None => {
                    let place = path.display();
                    return Err(format!("queue.password_file {place} has no password in its first line"));
                }
            };
        }
        Ok(config)
    }
}

/// The host of a configuration for one.
pub(super) fn host_of(config: &Config) -> String {
    match (config.get_hosts().first(), config.get_ports().first()) {
        (Some(Host::Tcp(name)), Some(5432) | None) => name.clone(),
        (Some(Host::Tcp(name)), Some(port)) => format!("{name}:{port}"),
        (Some(Host::Unix(path)), _) => path.display().to_string(),
        (None, _) => String::new(),
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The library leaves a password out, and there is none.
        f.debug_struct("Server")
            .field("config", &self.config)
            .field("password_file", &self.password_file)
            .field("tls", &self.tls)
            .field("require_replication", &self.require_replication)
            .field("connections", &self.connections)
            .field("patience", &self.patience)
            .field("missed_after", &self.missed_after)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_url_is_taken_or_what_would_do_is_said() {
        for (url, name) in [
            ("postgres://am@db1,db2:5433/mail", "postgres://db1,db2:5433/mail"),
            ("postgresql://am@10.0.0.1", "postgres://10.0.0.1/am"),
            ("postgres://am@%2Frun%2Fpostgresql/mail", "postgres:///run/postgresql/mail"),
        ] {
            let server = Server::new(url).unwrap();
            assert_eq!((server.name().as_str(), server.is_local()), (name, url.contains("%2F")));
            assert_eq!(server.tls == Tls::Off, server.is_local());
        }
        for (url, why) in [
            ("mysql://db", "no URL of a PostgreSQL"),
            ("host=db", "no URL of a PostgreSQL"),
            ("postgres://am:sesame@db/mail", "queue.password_file"),
            ("postgres://am@db/mail?password=sesame", "queue.password_file"),
            ("postgres://am@db:sesame/mail", "no URL of a PostgreSQL"),
            ("postgres://", "names no host"),
            ("postgres://am@db/mail?sslmode=disable", "queue.tls"),
            ("postgres://am@db,%2Frun/mail", "one kind"),
        ] {
            let error = Server::new(url).unwrap_err();
            assert!(error.contains(why) && !error.contains("sesame"), "{url}: {error}");
        }
    }

    #[test]
    fn the_password_is_the_file_s_as_it_is_now() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut server = Server::new("postgres://am@db/mail").unwrap();
        server.password_file = Some(file.path().to_owned());
        assert!(server.config().unwrap_err().contains("no password in its first line"));
        for password in ["sesame", "open"] {
            std::fs::write(file.path(), format!("{password}\nmore\n")).unwrap();
            assert_eq!(server.config().unwrap().get_password(), Some(password.as_bytes()));
            assert!(!format!("{server:?}{:?}", server.config()).contains(password));
        }
        server.password_file = Some("/nowhere/password".into());
        assert!(server.config().unwrap_err().starts_with("queue.password_file /nowhere/password: "));
    }
}
