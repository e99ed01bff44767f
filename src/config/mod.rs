//! The configuration file: TOML, typed, every key but `integration_domains`, `directory` and `backend.url` with a
//! default (DESIGN appendix A).
//!
//! In: a path. Out: the [`Config`]: the settings of each room, validated.
//! Promise: unknown keys, wrong types and files that are missing are errors that name file, line, key and remedy.
//! Fails: [`SourceError`].
//!
//! `outside` makes what `[backend]` and `[directory]` name.
//!
//! What the file says (`…Text`, as written) and what was validated are two types, so that the second cannot be wrong.

mod outside;
mod severa;

pub use outside::{BackendKind, DirectoryKind, Outside, OutsideError, OutsideSettings};
pub use severa::Company;

use crate::admin;
use crate::courier;
use crate::intake::{Listen, Policy, Shadow, SocketSettings, default_socket};
use crate::mail::{Domain, MEMORY_PER_MESSAGE};
use crate::notify;
use crate::observe;
use crate::queue;
use crate::rules::{Addressing, Mixed, Reason, Texts, check_text};
use crate::source::{Source, SourceError, open_regular};
use crate::trace;
use crate::web::SecretFile;
use outside::{BackendText, DirectoryText};
use serde::{Deserialize, Deserializer, de::Error as _};
use severa::SeveraText;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};
use toml::Spanned;

/// Where the file is, unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/activity-milter/activity-milter.toml";

/// Smallest `message.memory_limit`: a few messages at a time.
const LEAST_MEMORY: u64 = 8 * MEMORY_PER_MESSAGE as u64;

/// Everything that can be configured, validated.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is an integration address.
    pub addressing: Addressing,
    /// Where Postfix reaches the milter.
    pub milter: SocketSettings,
    /// Where Postfix delivers by LMTP, if it does.
    pub lmtp: Option<SocketSettings>,
    /// What the service does where there is a choice.
    pub policy: Policy,
    /// Memory for message bytes over all sessions.
    pub memory_limit: u64,
    /// The texts of replies.
    pub texts: Texts,
    /// The business system, and who is who.
    pub outside: OutsideSettings,
    /// When it gets an activity.
    pub delivery: Delivery,
    /// When to try again.
    pub courier: courier::Settings,
    /// Where accepted activities wait.
    pub queue: queue::Settings,
    /// Where it is kept what became of each mail.
    pub trace: trace::Settings,
    /// Metrics, health, status page.
    pub admin: admin::Settings,
    /// Who is told of held activities, if anybody.
    pub notify: Option<notify::Settings>,
    /// How we log.
    pub log: observe::Settings,
}

impl Config {
    /// Reads and validates a file.
    /// # Errors
    /// What is wrong, where, and what would do.
    pub fn read(path: &Path) -> Result<Self, SourceError> {
        Self::from_source(&Source::read(path)?)
    }

    /// The keys in which a new configuration differs from the running one, and which count only after a restart.
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let text = |config: &Self| {
            [
                ("milter", format!("{:?}", config.milter)),
                ("lmtp", format!("{:?}", config.lmtp)),
                ("admin", format!("{:?}", config.admin)),
                ("queue", format!("{:?}", config.queue)),
                ("trace", format!("{:?}", config.trace)),
                ("notify", format!("{:?}", config.notify)),
                ("message.memory_limit", config.memory_limit.to_string()),
                ("backend.delivery", format!("{:?}", config.delivery)),
                ("log.format", format!("{:?}", config.log.format)),
            ]
        };
        let pairs = text(self).into_iter().zip(text(new));
        pairs.filter(|((_, old), (_, new))| old != new).map(|((name, _), _)| name).collect()
    }

    /// Validates a text.
    /// # Errors
    /// As [`Config::read`].
    pub fn from_source(source: &Source) -> Result<Self, SourceError> {
        source.parse::<ConfigText>()?.validate(source)
    }
}

/// `backend.delivery`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// By the courier, from the queue.
    #[default]
    Queued,
    /// At end of message; the outcome is the SMTP reply, and there is no queue.
    Direct,
}

/// The file, as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigText {
    /// Domains whose addresses are integration addresses.
    integration_domains: Spanned<Vec<Text<Domain>>>,
    /// `live` (default) or `shadow`: everything is decided and logged, nothing refused, recorded or deleted.
    #[serde(default)]
    mode: ModeText,
    #[serde(default)]
    milter: SocketText,
    /// Without this table there is no LMTP listener.
    lmtp: Option<SocketText>,
    #[serde(default)]
    message: MessageText,
    #[serde(default)]
    replies: BTreeMap<Spanned<String>, Spanned<String>>,
    directory: DirectoryText,
    backend: BackendText,
    /// The companies, for `backend.type = "severa"`.
    #[serde(default)]
    severa: Vec<SeveraText>,
    #[serde(default)]
    admin: AdminText,
    #[serde(default)]
    queue: QueueText,
    #[serde(default)]
    trace: TraceText,
    /// Without this table nobody is told of held activities.
    notify: Option<NotifyText>,
    #[serde(default)]
    log: LogText,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ModeText {
    #[default]
    Live,
    Shadow,
}

/// `[milter]` and `[lmtp]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SocketText {
    /// `unix:/path`, `inet:address:port`, or `systemd` for a socket that systemd opens; default: `milter.sock` or
    /// `lmtp.sock` in `/var/spool/postfix/activity-milter`.
    listen: Option<Spanned<Text<Listen>>>,
    /// Permission bits of a unix socket, octal.
    socket_mode: Text<Mode>,
    /// Group of a unix socket; default: what the directory gives.
    socket_group: Option<String>,
    /// Most connections at a time; default 1000.
    max_sessions: Spanned<usize>,
}

impl Default for SocketText {
    fn default() -> Self {
        Self {
            listen: None,
            socket_mode: Text(Mode(0o660)),
            socket_group: None,
            max_sessions: Spanned::new(0..0, 1000),
        }
    }
}

impl SocketText {
    fn validate(self, source: &Source, table: &'static str) -> Result<SocketSettings, SourceError> {
        let listen = match self.listen {
            Some(listen) => listen.into_inner().0,
            None => Listen::Unix(default_socket(table)),
        };
        let (mode, group) = (self.socket_mode.0.0, self.socket_group);
        let max_sessions = at_least_one(source, self.max_sessions)?;
        Ok(SocketSettings { table, listen, mode, group, max_sessions })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MessageText {
    /// Largest message; default 50 MiB.
    max_size: Text<Size>,
    /// Memory for message bytes over all sessions; default 64 MiB.
    memory_limit: Spanned<Text<Size>>,
    /// Characters that start a tag in a local part; default none.
    recipient_delimiter: String,
    /// `reject` (default) or `strip`.
    mixed_recipients: MixedText,
    /// `discard` (default) or `keep`.
    after_accept: AfterAcceptText,
    /// `reject` (default) or `unlinked`.
    unknown_project: UnknownProjectText,
    /// Most integration recipients of one message; default 100.
    max_recipients: Spanned<usize>,
    /// Most people of one message that are looked up and listed; default 1000.
    max_people: Spanned<usize>,
}

impl Default for MessageText {
    fn default() -> Self {
        Self {
            max_size: Text(Size(50 * 1024 * 1024)),
            memory_limit: Spanned::new(0..0, Text(Size(64 * 1024 * 1024))),
            recipient_delimiter: String::new(),
            mixed_recipients: MixedText::Reject,
            after_accept: AfterAcceptText::Discard,
            unknown_project: UnknownProjectText::Reject,
            max_recipients: Spanned::new(0..0, 100),
            max_people: Spanned::new(0..0, 1000),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MixedText {
    Reject,
    Strip,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AfterAcceptText {
    Discard,
    Keep,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum UnknownProjectText {
    Reject,
    Unlinked,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct QueueText {
    /// `sqlite`.
    #[serde(rename = "type")]
    _type: QueueType,
    /// The database file; default `/var/lib/activity-milter/queue.db`.
    path: PathBuf,
    /// Directory for large messages; default `/var/lib/activity-milter/spool`.
    spool: PathBuf,
    /// Most activities kept; default 1000000.
    max_items: u32,
    /// Most activities kept of one tenant; default: half of `max_items`, and all of it while there is but one tenant.
    max_items_per_tenant: Option<u32>,
    /// Held longer than that, an activity no longer counts against these limits (it is not deleted); default 30d.
    held_counts: Text<Span>,
    /// Kept free on the file systems of `path` and `spool`: below it mail is answered 452, so that delivering goes on;
    /// default 256 MiB, `0` is off.
    min_free: Text<Size>,
    /// Age at which an activity that still fails is held; default 5 d.
    max_age: Text<Span>,
    /// How long delivered activities are kept, for `queue redeliver` to a business system restored from a back-up; they
    /// go before `min_free` or `max_items` is reached; default `"0"`: not at all.
    keep_delivered: Text<Keep>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum QueueType {
    #[default]
    Sqlite,
}

impl Default for QueueText {
    fn default() -> Self {
        Self {
            _type: QueueType::Sqlite,
            path: "/var/lib/activity-milter/queue.db".into(),
            spool: "/var/lib/activity-milter/spool".into(),
            max_items: 1_000_000,
            max_items_per_tenant: None,
            held_counts: Text(Span(Duration::from_secs(30 * 24 * 3600))),
            min_free: Text(Size(256 << 20)),
            max_age: Text(Span(Duration::from_secs(5 * 24 * 3600))),
            keep_delivered: Text(Keep(Duration::ZERO)),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TraceText {
    /// How long it is kept what became of each mail, for `activity-milter trace`; default 7d, `0` is off.
    keep: Text<Keep>,
    /// The file; default `trace.db` beside `queue.path`.
    path: Option<Spanned<PathBuf>>,
}

impl Default for TraceText {
    fn default() -> Self {
        Self { keep: Text(Keep(trace::KEEP)), path: None }
    }
}

impl TraceText {
    fn validate(self, source: &Source, queue: &queue::Settings) -> Result<trace::Settings, SourceError> {
        let path = match self.path {
            None => queue.path.with_file_name("trace.db"),
            Some(path) if *path.get_ref() == queue.path => {
                let message = "trace.path is the queue's file: give the trace one of its own";
                return Err(source.error(path.span(), message));
            }
            Some(path) => path.into_inner(),
        };
        let Text(Keep(keep)) = self.keep;
        let keep = (!keep.is_zero()).then_some(keep);
        Ok(trace::Settings { keep, min_free: queue.min_free, ..trace::Settings::new(path) })
    }
}

/// `[admin]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AdminText {
    /// Address and port for metrics, health and the status page, `unix:/path`, or `off`; default `127.0.0.1:8894`.
    listen: Spanned<String>,
    /// Permission bits of a unix socket, octal; default `0600`.
    socket_mode: Text<Mode>,
    /// Group of a unix socket; default: what the directory gives.
    socket_group: Option<String>,
    /// Names under which the page answers, besides IP addresses, localhost and this machine's own; default none.
    hosts: Vec<Spanned<String>>,
    /// File with the token for retrying and dropping on the status page; default none: the page only shows.
    token_file: Option<Spanned<PathBuf>>,
}

impl Default for AdminText {
    fn default() -> Self {
        Self {
            listen: Spanned::new(0..0, "127.0.0.1:8894".to_owned()),
            socket_mode: Text(Mode(0o600)),
            socket_group: None,
            hosts: Vec::new(),
            token_file: None,
        }
    }
}

impl AdminText {
    fn validate(self, source: &Source) -> Result<admin::Settings, SourceError> {
        let listen = match self.listen.get_ref().as_str() {
            "off" => None,
            path if path.starts_with("unix:/") => path.parse().ok(),
            address => {
                Some(Listen::Inet(address.replace("localhost:", "127.0.0.1:").parse().map_err(|_| {
                    let expected = "write \"127.0.0.1:8894\", \"unix:/path/to/socket\" or \"off\"";
                    source.error(
                        self.listen.span(),
                        format!("\"{address}\" is no address with port: {expected}"),
                    )
                })?))
            }
        };
        if let Some(name) = self.hosts.iter().find(|name| !is_host(name.get_ref())) {
            let message = format!("\"{}\" is no host name: write it without scheme and port", name.get_ref());
            return Err(source.error(name.span(), message));
        }
        let (mode, group) = (self.socket_mode.0.0, self.socket_group);
        let socket = listen.map(|listen| SocketSettings {
            table: "admin",
            listen,
            mode,
            group,
            max_sessions: usize::MAX,
        });
        if let Some(file) = &self.token_file {
            secret(source, file)?;
        }
        let hosts = self.hosts.into_iter().map(Spanned::into_inner).collect();
        Ok(admin::Settings { socket, hosts, token_file: self.token_file.map(Spanned::into_inner) })
    }
}

/// True for a name that can stand in a Host field.
fn is_host(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

/// `[notify]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NotifyText {
    /// `owner`, or an address.
    to: Spanned<String>,
    /// The From field.
    from: Spanned<String>,
    /// `smtp:host:port` (default `smtp:127.0.0.1:25`), `sendmail` or `sendmail:/path`. The shipped systemd unit forbids
    /// what sendmail's postdrop needs.
    transport: Option<Text<notify::By>>,
    /// The subject.
    subject: Option<String>,
    /// The text; `{list}` becomes what is held.
    text: Option<Spanned<String>>,
}

impl NotifyText {
    fn validate(self, source: &Source) -> Result<notify::Settings, SourceError> {
        let wrong = |text: &Spanned<String>, expected: &str| {
            source.error(text.span(), format!("\"{}\" is no address: {expected}", text.get_ref()))
        };
        let to = match self.to.get_ref().as_str() {
            "owner" => notify::To::Owner,
            address => {
                let expected = "write \"owner\" or \"postmaster@example.com\"";
                notify::To::Address(address.parse().map_err(|_| wrong(&self.to, expected))?)
            }
        };
        let expected = "write one like \"activity-milter <postmaster@example.com>\"";
        let from = self.from.get_ref().parse().map_err(|_| wrong(&self.from, expected))?;
        if let Some(text) = &self.text
            && !text.get_ref().contains("{list}")
        {
            return Err(source
                .error(text.span(), "the text says not what is held: write {list} where it shall stand"));
        }
        Ok(notify::Settings {
            to,
            from,
            by: self.transport.map_or(notify::By::Smtp("127.0.0.1".to_owned(), 25), |by| by.0),
            subject: self.subject.unwrap_or_else(|| notify::SUBJECT.to_owned()),
            text: self.text.map_or_else(|| notify::TEXT.to_owned(), Spanned::into_inner),
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LogText {
    /// `auto` (default), `text` or `json`.
    format: observe::Format,
    /// `error`, `warn`, `info` (default), `debug` or `trace`.
    level: Text<Level>,
    /// `full` (default), `domain` or `none`: how much of an address is logged and shown.
    addresses: observe::Addresses,
}

impl Default for LogText {
    fn default() -> Self {
        Self {
            format: observe::Format::Auto,
            level: Text(Level(tracing::Level::INFO)),
            addresses: observe::Addresses::Full,
        }
    }
}

/// A value written as a string and read by its own parser, so that the error stands where the value stands.
#[derive(Clone, Debug)]
struct Text<T>(T);

impl<'de, T: FromStr<Err: std::fmt::Display>> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        T::from_str(&text).map(Self).map_err(D::Error::custom)
    }
}

/// A size in bytes: `"50 MiB"`.
#[derive(Clone, Copy, Debug)]
struct Size(u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<bytesize::ByteSize>() {
            Ok(size) if size.as_u64() > 0 => Ok(Self(size.as_u64())),
            _ => Err(format!("\"{text}\" is no size: write one like \"50 MiB\"")),
        }
    }
}

/// Longer is as long as this: clocks and libraries have an end.
const LONGEST_SPAN: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A time span: `"30s"`.
#[derive(Clone, Copy, Debug)]
struct Span(Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match humantime::parse_duration(text) {
            Ok(span) if !span.is_zero() => Ok(Self(span.min(LONGEST_SPAN))),
            _ => Err(format!("\"{text}\" is no time span: write one like \"30s\", \"10min\" or \"5d\"")),
        }
    }
}

/// A time span, or `"0"` for none.
#[derive(Clone, Copy, Debug)]
struct Keep(Duration);

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match humantime::parse_duration(text) {
            Ok(span) => Ok(Self(span.min(LONGEST_SPAN))),
            Err(_) if text.trim() == "0" => Ok(Self(Duration::ZERO)),
            Err(_) => Err(format!("\"{text}\" is no time span: write one like \"2d\", or \"0\" for none")),
        }
    }
}

/// Permission bits: `"0660"`.
#[derive(Clone, Copy, Debug)]
struct Mode(u32);

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 => Ok(Self(mode)),
            _ => Err(format!("\"{text}\" is no file mode: write one like \"0660\"")),
        }
    }
}

/// A log level.
#[derive(Clone, Copy, Debug)]
struct Level(tracing::Level);

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|_| format!("\"{text}\" is no level: write error, warn, info, debug or trace"))
    }
}

impl FromStr for Domain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|error| format!("\"{text}\" is no domain: {error}"))
    }
}

impl ConfigText {
    fn validate(self, source: &Source) -> Result<Config, SourceError> {
        let span = self.integration_domains.span();
        let domains: Vec<Domain> = self.integration_domains.into_inner().into_iter().map(|d| d.0).collect();
        if domains.is_empty() {
            return Err(source.error(span, "name at least one domain, like [\"severamail.com\"]"));
        }
        let memory_limit = self.message.memory_limit.get_ref().0.0;
        if memory_limit < LEAST_MEMORY {
            let message = format!("too small to receive mail: at least {}", bytesize::ByteSize(LEAST_MEMORY));
            return Err(source.error(self.message.memory_limit.span(), message));
        }
        let texts = texts(source, self.replies)?;
        let policy = Policy {
            max_size: self.message.max_size.0.0,
            min_free: self.queue.min_free.0.0,
            max_recipients: at_least_one(source, self.message.max_recipients)?,
            max_people: at_least_one(source, self.message.max_people)?,
            mixed: match self.message.mixed_recipients {
                MixedText::Reject => Mixed::Reject,
                MixedText::Strip => Mixed::Strip,
            },
            keep_after_accept: self.message.after_accept == AfterAcceptText::Keep,
            unlinked_projects: self.message.unknown_project == UnknownProjectText::Unlinked,
            shadow: if self.mode == ModeText::Shadow { Shadow::Everybody } else { Shadow::Marked },
        };
        let delivery = self.backend.delivery;
        let (retry_first, retry_max) = (self.backend.retry_first.0.0, self.backend.retry_max.0.0);
        let (outside, max_in_flight, shares) =
            outside::validate(source, self.backend, self.directory, self.severa)?;
        if let DirectoryKind::Severa(copy) = &outside.directory
            && copy.path == self.queue.path
        {
            let message = "directory.path is the queue's file: give the copy one of its own";
            return Err(source.error(0..0, message));
        }
        let max_age = self.queue.max_age.0.0;
        let courier = courier::Settings { max_in_flight, shares, retry_first, retry_max, max_age };
        let milter = self.milter.validate(source, "milter")?;
        let lmtp_listen = self.lmtp.as_ref().and_then(|lmtp| lmtp.listen.as_ref()).map(Spanned::span);
        let lmtp = self.lmtp.map(|lmtp| lmtp.validate(source, "lmtp")).transpose()?;
        if let (Some(span), Some(lmtp)) = (lmtp_listen, &lmtp)
            && lmtp.listen == milter.listen
            && lmtp.listen != Listen::Systemd
        {
            return Err(source.error(span, "the same socket as milter.listen: each protocol needs its own"));
        }
        let queue = queue::Settings {
            path: self.queue.path,
            spool: self.queue.spool,
            max_items: u64::from(self.queue.max_items),
            max_items_per_tenant: self.queue.max_items_per_tenant.map(u64::from),
            held_counts: self.queue.held_counts.0.0,
            min_free: self.queue.min_free.0.0,
            keep_delivered: self.queue.keep_delivered.0.0,
        };
        let trace = self.trace.validate(source, &queue)?;
        if let DirectoryKind::Severa(copy) = &outside.directory
            && copy.path == trace.path
        {
            let message = "directory.path is the trace's file: give the copy one of its own";
            return Err(source.error(0..0, message));
        }
        Ok(Config {
            addressing: Addressing { domains, recipient_delimiter: self.message.recipient_delimiter },
            milter,
            lmtp,
            policy,
            memory_limit,
            texts,
            delivery,
            outside,
            courier,
            queue,
            trace,
            admin: self.admin.validate(source)?,
            notify: self.notify.map(|notify| notify.validate(source)).transpose()?,
            log: observe::Settings {
                format: self.log.format,
                level: self.log.level.0.0,
                addresses: self.log.addresses,
            },
        })
    }
}

fn at_least_one(source: &Source, number: Spanned<usize>) -> Result<usize, SourceError> {
    match *number.get_ref() {
        0 => Err(source.error(number.span(), "0 would let nothing through: at least 1")),
        number => Ok(number),
    }
}

/// `[replies]`: reason codes with their texts, and `help`.
fn texts(source: &Source, replies: BTreeMap<Spanned<String>, Spanned<String>>) -> Result<Texts, SourceError> {
    let (mut replaced, mut help) = (BTreeMap::new(), None);
    for (key, text) in replies {
        check_text(text.get_ref()).map_err(|message| source.error(text.span(), message))?;
        if key.get_ref() == "help" {
            help = Some(text.into_inner());
            continue;
        }
        let reason = Reason::ALL.iter().find(|reason| reason.as_str() == key.get_ref());
        let Some(&reason) = reason else {
            let known: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
            let message = format!("unknown reply `{}`: there are help, {}", key.get_ref(), known.join(", "));
            return Err(source.error(key.span(), message));
        };
        replaced.insert(reason, text.into_inner());
    }
    Ok(Texts::new(replaced, help))
}

fn readable(source: &Source, path: &Spanned<PathBuf>) -> Result<(), SourceError> {
    match open_regular(path.get_ref()) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(source.error(path.span(), format!("{} cannot be read: {error}", path.get_ref().display())))
        }
    }
}

/// A file with a secret, which must be there and hold one.
fn secret(source: &Source, path: &Spanned<PathBuf>) -> Result<SecretFile, SourceError> {
    SecretFile::open(path.get_ref()).map_err(|error| source.error(path.span(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        Config::from_source(&Source::from_text(Path::new("am.toml"), text)).map_err(|error| error.to_string())
    }

    const LEAST: &str = "integration_domains = [\"severamail.test\"]\n\
        [directory]\npath = \"tests/directory.toml\"\n[backend]\nurl = \"http://127.0.0.1:1/\"\n";

    #[test]
    fn the_least_configuration_has_the_defaults_of_the_design() {
        let config = read(LEAST).unwrap();
        assert_eq!(config.milter.listen.to_string(), "unix:/var/spool/postfix/activity-milter/milter.sock");
        assert_eq!((config.milter.max_sessions, config.policy.max_size), (1000, 50 * 1024 * 1024));
        assert_eq!((config.memory_limit, config.courier.max_in_flight), (64 * 1024 * 1024, 32));
        assert_eq!(config.outside.client.connection.timeout, Duration::from_secs(30));
        assert_eq!(config.courier.max_age, Duration::from_secs(5 * 24 * 3600));
        assert_eq!((config.queue.max_items, config.queue.keep_delivered), (1_000_000, Duration::ZERO));
        for (text, kept) in [("0", 0), ("0s", 0), ("2d", 172_800)] {
            let config = read(&format!("{LEAST}[queue]\nkeep_delivered = \"{text}\"\n")).unwrap();
            assert_eq!(config.queue.keep_delivered, Duration::from_secs(kept), "{text}");
        }
        assert!(config.lmtp.is_none());
        let lmtp = read(&format!("{LEAST}[lmtp]\n")).unwrap().lmtp.unwrap();
        assert_eq!(lmtp.listen.to_string(), "unix:/var/spool/postfix/activity-milter/lmtp.sock");
    }

    #[test]
    fn every_mistake_names_file_line_and_key() {
        for (line, expected) in [
            ("[milter]\nlisten = \"tcp:1\"", "am.toml:7:10: listen: \"tcp:1\" is no socket"),
            ("[milter]\nlisen = \"unix:/x\"", "am.toml:7:1: unknown field `lisen`"),
            ("[milter]\nmax_sessions = \"many\"", "am.toml:7:16: max_sessions: invalid type: string"),
            ("[milter]\nmax_sessions = 0", "am.toml:7:16: max_sessions: 0 would let nothing through"),
            ("[milter]\nsocket_mode = \"rw\"", "am.toml:7:15: socket_mode: \"rw\" is no file mode"),
            (
                "[milter]\nlisten = \"unix:/x\"\n[lmtp]\nlisten = \"unix:/x\"",
                "am.toml:9:10: listen: the same socket as milter.listen",
            ),
            ("[lmtp]\nmax_sessions = 0", "am.toml:7:16: max_sessions: 0 would let nothing through"),
            ("[queue]\nkeep_delivered = \"x\"", "am.toml:7:18: keep_delivered: \"x\" is no time span"),
            ("[message]\nmax_size = \"big\"", "am.toml:7:12: max_size: \"big\" is no size"),
            ("[message]\nmemory_limit = \"1 KiB\"", "am.toml:7:16: memory_limit: too small"),
            (
                "[message]\nmixed_recipients = \"x\"",
                "am.toml:7:20: mixed_recipients: unknown variant `x`, expected `reject` or `strip`",
            ),
            (
                "[queue]\nmax_age = \"5 fortnights\"",
                "am.toml:7:11: max_age: \"5 fortnights\" is no time span",
            ),
            (
                "[trace]\nkeep = \"soon\"",
                "am.toml:7:8: keep: \"soon\" is no time span: write one like \"7d\", or \"0\"",
            ),
            (
                "[queue]\npath = \"/x/queue.db\"\n[trace]\npath = \"/x/queue.db\"",
                "am.toml:9:8: path: trace.path is the queue's file: give the trace one of its own",
            ),
            ("[log]\nlevel = \"loud\"", "am.toml:7:9: level: \"loud\" is no level"),
            ("[replies]\nno-subject = \"ä\"", "am.toml:7:14: no-subject: SMTP replies are printable ASCII"),
            ("[replies]\nno-sibject = \"x\"", "am.toml:7:1: unknown reply `no-sibject`"),
            (
                "[notify]\nto = \"me\"\nfrom = \"a@x.test\"",
                "am.toml:7:6: to: \"me\" is no address: write \"owner\" or",
            ),
            (
                "[notify]\nto = \"owner\"\nfrom = \"me\"",
                "am.toml:8:8: from: \"me\" is no address: write one like",
            ),
            (
                "[notify]\nto = \"owner\"\nfrom = \"a@x.test\"\ntransport = \"uucp\"",
                "am.toml:9:13: transport: \"uucp\" is no way for mail",
            ),
            (
                "[notify]\nto = \"owner\"\nfrom = \"a@x.test\"\ntext = \"x\"",
                "am.toml:9:8: text: the text says not what is held",
            ),
            ("[colors]", "am.toml:6:2: unknown field `colors`"),
        ] {
            let error = read(&format!("{LEAST}{line}\n")).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        for (from, to, expected) in [
            (
                "severamail.test",
                "severa mail",
                "am.toml:1:23: integration_domains: \"severa mail\" is no domain",
            ),
            ("[\"severamail.test\"]", "[]", "am.toml:1:23: integration_domains: name at least one domain"),
            (
                "tests/directory.toml",
                "/nonexistent",
                "am.toml:3:8: path: /nonexistent cannot be read: No such file",
            ),
            ("http://127.0.0.1:1/", "crm", "am.toml:5:7: url: \"crm\" is no URL"),
            (
                "url =",
                "token_file = \"/dev/null\"\nurl =",
                "am.toml:5:14: token_file: /dev/null cannot be read: it is no regular file",
            ),
            (
                "url =",
                "token_file = \"/nonexistent\"\nurl =",
                "am.toml:5:14: token_file: /nonexistent cannot be read",
            ),
            ("url = \"http://127.0.0.1:1/\"\n", "", "backend.url is missing"),
            (
                "http://127.0.0.1:1/",
                "http://crm.test/",
                "am.toml:5:7: url: mail and secrets would travel unencrypted: write https",
            ),
            (
                "http://127.0.0.1:1/",
                "https://us:secret@crm.test/",
                "am.toml:5:7: url: a name or password does not belong into a URL: use backend.token_file",
            ),
            ("http://127.0.0.1:1/", "us:secret@crm.test", "am.toml:5:7: url: this is no URL: write one"),
            (
                "http://127.0.0.1:1/",
                "https://us:secret@[::1]:99999/",
                "am.toml:5:7: url: this is no URL: write",
            ),
            (
                "url =",
                "proxy = \"socks5://us:secret@x/\"\nurl =",
                "am.toml:5:9: proxy: this is no URL: write",
            ),
            (
                "http://127.0.0.1:1/",
                "https://us@crm.test/",
                "a name or password does not belong into a URL: use backend.token_file",
            ),
            (
                "[backend]",
                "[backend.oauth]\ntoken_url = \"https://us:x@id.test/\"\nclient_id = \"us\"\nclient_secret_file = \"LICENSE\"\n[backend]",
                "am.toml:5:13: token_url: a name or password does not belong into a URL: use client_secret_file",
            ),
            (
                "url =",
                "delivery = \"direct\"\ntimeout = \"51s\"\nurl =",
                "am.toml:6:11: timeout: with delivery = \"direct\" the SMTP client waits: at most 50s",
            ),
            (
                "url =",
                "ca_file = \"tests/directory.toml\"\nurl =",
                "am.toml:5:11: ca_file: backend: tests/directory.toml holds no certificate",
            ),
            (
                "url =",
                "client_key_file = \"tests/directory.toml\"\nurl =",
                "am.toml:5:19: client_key_file: client_certificate_file and client_key_file come together",
            ),
            (
                "url =",
                "signing_secret_file = \"tests/directory.toml\"\nurl =",
                "am.toml:5:23: signing_secret_file: tests/directory.toml holds no secret",
            ),
            ("url =", "proxy = \"squid\"\nurl =", "am.toml:5:9: proxy: \"squid\" is no URL"),
            (
                "path = \"tests/directory.toml\"",
                "type = \"http\"\npath = \"tests/directory.toml\"",
                "am.toml:4:8: path: type = \"http\" asks the backend (backend.url) and reads no file",
            ),
            ("path = \"tests/directory.toml\"", "", "directory.path is missing"),
        ] {
            let error = read(&LEAST.replace(from, to)).unwrap_err();
            assert!(error.contains(expected) && !error.contains(":secret"), "{error}");
        }
    }

    #[test]
    fn spans_without_end_are_long_ones() {
        let text = LEAST.replace(
            "path = \"tests/directory.toml\"",
            "type = \"http\"\ncache_stale = \"5000y\"\ncache_hits = \"100000y\"",
        );
        let config = read(&format!("{text}timeout = \"5000y\"\nretry_first = \"5000y\"\nretry_max = \"5000y\"\n[queue]\nmax_age = \"5000y\"\nheld_counts = \"5000y\"\n")).unwrap();
        assert_eq!(config.outside.client.connection.timeout, LONGEST_SPAN);
        assert_eq!(config.queue.held_counts, LONGEST_SPAN);
        config.outside.open().unwrap();
    }

    #[test]
    fn the_trace_lies_beside_the_queue_for_a_week_or_not_at_all() {
        let trace = |lines: &str| read(&format!("{LEAST}{lines}\n")).unwrap().trace;
        let week = Some(Duration::from_secs(7 * 24 * 3600));
        for (lines, path, keep) in [
            ("", "/var/lib/activity-milter/trace.db", week),
            ("[queue]\npath = \"/x/q.db\"", "/x/trace.db", week),
            ("[trace]\npath = \"/y/t.db\"\nkeep = \"1h\"", "/y/t.db", Some(Duration::from_secs(3600))),
            ("[trace]\nkeep = \"0\"", "/var/lib/activity-milter/trace.db", None),
            ("[trace]\nkeep = \"0s\"", "/var/lib/activity-milter/trace.db", None),
        ] {
            let trace = trace(lines);
            assert_eq!((trace.path.as_path(), trace.keep), (Path::new(path), keep), "{lines}");
        }
    }

    #[test]
    fn replies_can_be_replaced() {
        let config =
            read(&format!("{LEAST}[replies]\nhelp = \"https://x.test\"\nno-subject = \"100% no\"\n"))
                .unwrap();
        let reply = config.texts.reply(Reason::NoSubject, None);
        assert_eq!(reply.to_string(), "550-5.6.0 100% no [no-subject]\n550 5.6.0 https://x.test");
    }
}
