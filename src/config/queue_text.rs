//! `[queue]`: where accepted activities wait, and how many.
//!
//! In: what the file says. Out: the queue's settings.
//! Promise: a password never stands in what is shown or logged: the URL has none, and the file with it only its path.
//! Fails: at the key that is wrong, with what would do.

use super::{
    reading::Reading,
    units::{Free, Keep, Span, Text},
};
use crate::queue::{
    self,
    postgres::{Server, Tls},
};
use crate::source::SourceError;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};
use toml::Spanned;

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct QueueText {
    /// `sqlite` (default): one machine, and a file of its own. `postgres`: a database that several machines share.
    #[serde(rename = "type")]
    kind: QueueType,
    /// The database file; with `postgres` its directory is for what this machine keeps for itself, and the file is there
    /// with `spool_on_outage`; default `/var/lib/activity-milter/queue.db`.
    pub(super) path: Spanned<PathBuf>,
    /// Directory for large messages, with `postgres` while they arrive; each machine has its own; default
    /// `/var/lib/activity-milter/spool`.
    pub(super) spool: Spanned<PathBuf>,
    /// `postgres`: the server, `postgres://user@db1.example.com,db2.example.com/database`. Of several hosts the one is
    /// taken that can be written to.
    url: Option<Spanned<String>>,
    /// `postgres`: file with the password in its first line, read anew for each connection; default none.
    password_file: Option<Spanned<PathBuf>>,
    /// `postgres`: `on`: encrypted, and the server's certificate is verified; or `off`; default `on`, and `off` for a socket
    /// of this machine.
    tls: Option<TlsText>,
    /// `postgres`: file with the certificates of whoever signs the server's; default: whom this machine trusts.
    ca_file: Option<Spanned<PathBuf>>,
    /// `postgres`: mail is taken only while a commit waits for a standby too (`synchronous_standby_names`), else 451;
    /// default `false`.
    require_replication: Option<bool>,
    /// `postgres`: while the database is away, mail is kept in `path` and `spool` of this machine, which must be on a disk
    /// then, and given to the database afterwards; default `false`: it is answered 451, and the client keeps it.
    spool_on_outage: Option<bool>,
    /// `postgres`: most connections at a time, besides two for looking; default 16.
    connections: Option<Spanned<usize>>,
    /// Most activities kept; default 1000000.
    pub(super) max_items: u32,
    /// Most activities kept of one tenant; default: half of `max_items`, and all of it while there is but one tenant.
    pub(super) max_items_per_tenant: Option<u32>,
    /// Held longer than that, an activity no longer counts against these limits (it is not deleted); default 30d.
    pub(super) held_counts: Text<Span>,
    /// Kept free on the file systems of `path` and `spool`: below it mail is answered 452, so that delivering goes on;
    /// default 256 MiB, `0` is off.
    pub(super) min_free: Text<Free>,
    /// Age at which an activity that still fails is held; default 5 d.
    pub(super) max_age: Text<Span>,
    /// How long delivered activities are kept, for `queue redeliver` to a business system restored from a back-up; they
    /// go before `min_free` or `max_items` is reached; default `"0"`: not at all.
    pub(super) keep_delivered: Text<Keep>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum QueueType {
    #[default]
    Sqlite,
    Postgres,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum TlsText {
    On,
    Off,
}

impl Default for QueueText {
    fn default() -> Self {
        Self {
            kind: QueueType::Sqlite,
            path: Spanned::new(0..0, "/var/lib/activity-milter/queue.db".into()),
            spool: Spanned::new(0..0, "/var/lib/activity-milter/spool".into()),
            url: None,
            password_file: None,
            tls: None,
            ca_file: None,
            require_replication: None,
            spool_on_outage: None,
            connections: None,
            max_items: 1_000_000,
            max_items_per_tenant: None,
            held_counts: Text(Span(Duration::from_secs(30 * 24 * 3600))),
            min_free: Text(Free(256 << 20)),
            max_age: Text(Span(Duration::from_secs(5 * 24 * 3600))),
            keep_delivered: Text(Keep(Duration::ZERO)),
        }
    }
}

/// Keys that say something of a server.
const OF_SERVER: [&str; 7] =
    ["url", "password_file", "tls", "ca_file", "require_replication", "spool_on_outage", "connections"];

impl QueueText {
    /// Paths become whole.
    pub(super) fn complete(&mut self, reading: &Reading) -> Result<(), SourceError> {
        reading.complete(&mut self.path)?;
        reading.complete(&mut self.spool)?;
        for file in [&mut self.password_file, &mut self.ca_file].into_iter().flatten() {
            reading.complete(file)?;
        }
        Ok(())
    }

    /// The settings, and the age at which an activity is held.
    pub(super) fn validate(self, source: &Reading) -> Result<(queue::Settings, Duration), SourceError> {
        let (items, per_tenant) = (self.max_items, self.max_items_per_tenant);
        if per_tenant.is_some_and(|per_tenant| per_tenant > items) {
            let message = format!("more than queue.max_items ({items}) is never reached: write less");
            source.warn("queue.max_items_per_tenant", message);
        }
        let server = self.server(source)?;
        let settings = queue::Settings {
            spool_on_outage: server.is_some() && self.spool_on_outage.unwrap_or(false),
            server,
            path: self.path.into_inner(),
            spool: self.spool.into_inner(),
            max_items: u64::from(items),
            max_items_per_tenant: per_tenant.map(u64::from),
            held_counts: self.held_counts.0.0,
            min_free: self.min_free.0.0,
            keep_delivered: self.keep_delivered.0.0,
        };
        Ok((settings, self.max_age.0.0))
    }

    fn server(&self, source: &Reading) -> Result<Option<Server>, SourceError> {
        if self.kind == QueueType::Sqlite {
            for key in OF_SERVER.iter().map(|key| format!("queue.{key}")) {
                if source.value(&key).is_some() {
                    source.warn(
                        &key,
                        format!("{key} counts only with queue.type = \"postgres\": write that, or remove it"),
                    );
                }
            }
            return Ok(None);
        }
        let Some(url) = &self.url else {
            let example = "url = \"postgres://user@db1.example.com,db2.example.com/database\"";
            return Err(
                source.error_at("queue.type", format!("queue.url is missing: write {example} in [queue]"))
            );
        };
        let mut server =
            Server::new(url.get_ref()).map_err(|message| source.error_at("queue.url", message))?;
        if let Some(file) = &self.password_file {
            source.secret(file)?;
            server.password_file = Some(file.get_ref().clone());
        }
        if let Some(file) = &self.ca_file {
            source.readable(file)?;
        }
        let ca_file = self.ca_file.as_ref().map(|file| file.get_ref().clone());
        server.tls = match (self.tls, server.is_local()) {
            (Some(TlsText::On), true) => {
                let message =
                    "\"on\" on a socket of this machine, which speaks no TLS: write \"off\", or remove it";
                return Err(source.error_at("queue.tls", message));
            }
            (Some(TlsText::Off), false) => {
                let why = "what is sent can be read and changed on the way";
                source.warn(
                    "queue.tls",
                    format!("\"off\": {why}: write \"on\", unless nobody else is on that network"),
                );
                Tls::Off
            }
            (Some(TlsText::Off) | None, true) => Tls::Off,
            (Some(TlsText::On) | None, false) => Tls::Verify { ca_file },
        };
        server.require_replication = self.require_replication.unwrap_or(false);
        if let Some(connections) = &self.connections {
            server.connections = *connections.get_ref();
        }
        Ok(Some(server))
    }
}
