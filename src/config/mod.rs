//! The configuration file: TOML, typed, every key but `integration_domains`, `directory` and `backend.url` with a
//! default (DESIGN appendix A).
//!
//! In: a path, and the drop-ins beside it (`FILE.d/*.toml`). Out: the [`Config`]: the settings of each room, validated,
//! and what is doubtful in them; or the same as TOML, with the source of each value (`show`).
//! Promise: unknown keys, wrong types and files that are missing are errors that name file, line, key and remedy.
//! Fails: [`SourceError`].
//!
//! `outside` makes what `[backend]` and `[directory]` name.
//!
//! What the file says (`…Text`, as written) and what was validated are two types, so that the second cannot be wrong.

mod emergency;
mod limits;
mod outside;
mod places;
mod queue_text;
mod range;
mod reading;
mod sender;
mod severa;
mod show;
mod units;

pub use outside::{BackendKind, DirectoryKind, Outside, OutsideError, OutsideSettings};
pub use severa::Company;
pub use show::without_passwords;
pub use units::time_span;

use crate::admin;
use crate::courier;
use crate::directory::{PolicyText, SeveraSettings};
use crate::intake::{Listen, Policy, Shadow, SocketSettings, default_socket};
use crate::mail::{Domain, MEMORY_PER_MESSAGE};
use crate::notify;
use crate::observe;
use crate::queue;
use crate::rules::{Addressing, Mixed, Reason, TenantPolicy, Texts, Wish, check_text};
use crate::source::{Source, SourceError, meant};
use crate::trace;
use crate::verify;
use emergency::EmergencyText;
use limits::LimitsText;
use outside::{BackendText, DirectoryText};
use places::{Kind, Places};
use queue_text::QueueText;
use reading::{Look, Reading};
use sender::SenderText;
use serde::{Deserialize, Serialize};
use severa::SeveraText;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};
use toml::Spanned;
use units::{Keep, Level, Mode, Size, Span, Text, Written};

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
    /// How we find out ourselves who sent a message, if we do.
    pub verify: Option<verify::Settings>,
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
    /// The files it was read from, in their order.
    pub files: Vec<PathBuf>,
    /// What works, and probably not as it was meant: a line each, with its place.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads and validates a file with its drop-ins, and looks whether the files are there that it names.
    /// # Errors
    /// What is wrong, where, and what would do.
    pub fn read(path: &Path) -> Result<Self, SourceError> {
        Self::from_source(&Source::read(path)?.with_drop_ins()?)
    }

    /// The same, and no file is looked at that it names: for commands that need no secret.
    /// # Errors
    /// As [`Config::read`].
    pub fn read_alone(path: &Path) -> Result<Self, SourceError> {
        Self::alone(&Source::read(path)?.with_drop_ins()?)
    }

    /// The same of a text.
    fn alone(source: &Source) -> Result<Self, SourceError> {
        Self::validated(source, Look::Away).map(|(config, _)| config)
    }

    /// The same, and each file is looked at that it names; what is wrong with them is told beside it.
    /// `instead`: files that are read in place of others.
    /// # Errors
    /// As [`Config::read_alone`].
    pub fn look(
        path: &Path,
        instead: &BTreeMap<PathBuf, PathBuf>,
    ) -> Result<(Self, Vec<SourceError>), SourceError> {
        Self::validated(&Source::read(path)?.with_drop_ins()?, Look::Throughout(instead))
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
        Self::validated(source, Look::Strictly).map(|(config, _)| config)
    }

    fn validated(source: &Source, look: Look<'_>) -> Result<(Self, Vec<SourceError>), SourceError> {
        let reading = Reading::new(source, look)?;
        let config = ConfigText::read(source, &reading)?.validate(&reading)?;
        let files = source.paths().map(Path::to_owned).collect();
        source.left_out().for_each(|why| reading.warn_of_file(why));
        let (warnings, faults) = reading.into_doubts();
        Ok((Self { files, warnings, ..config }, faults))
    }
}

/// `backend.delivery`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// By the courier, from the queue.
    #[default]
    Queued,
    /// At end of message; the outcome is the SMTP reply, and there is no queue.
    Direct,
}

/// The file, as written.
#[derive(Debug, Deserialize, Serialize)]
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
    /// Levers for the night, taken over at a reload.
    #[serde(default)]
    emergency: EmergencyText,
    /// How much is taken from whom.
    #[serde(default)]
    limits: LimitsText,
    /// What is asked of mail, unless a tenant says otherwise.
    #[serde(default)]
    policy: PolicyText,
    /// Whom the service believes about who sent a message.
    #[serde(default)]
    sender: SenderText,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    replies: BTreeMap<Spanned<String>, Spanned<String>>,
    directory: DirectoryText,
    backend: BackendText,
    /// The companies, for `backend.type = "severa"`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
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

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum ModeText {
    #[default]
    Live,
    Shadow,
}

/// What must be tables: the library takes a list for one, value by value in the order of our keys.
const TABLES: &[&str] = &[
    "milter",
    "lmtp",
    "message",
    "policy",
    "policy.automatic",
    "sender",
    "limits",
    "emergency",
    "emergency.block",
    "replies",
    "directory",
    "backend",
    "backend.oauth",
    "admin",
    "queue",
    "trace",
    "notify",
    "log",
];

/// `[milter]` and `[lmtp]`.
#[derive(Debug, Deserialize, Serialize)]
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
    /// Once there are so many, the longest idle one is closed for the next, if it was idle for so long; default 10s.
    idle_when_full: Text<Span>,
}

impl Default for SocketText {
    fn default() -> Self {
        Self {
            listen: None,
            socket_mode: Text(Mode(0o660)),
            socket_group: None,
            max_sessions: Spanned::new(0..0, 1000),
            idle_when_full: Text(Span(Duration::from_secs(10))),
        }
    }
}

impl SocketText {
    fn complete(&mut self, table: &str) {
        let usual = || Spanned::new(0..0, Text(Listen::Unix(default_socket(table))));
        self.listen.get_or_insert_with(usual);
    }

    fn validate(self, source: &Reading, table: &'static str) -> Result<SocketSettings, SourceError> {
        let listen = match self.listen {
            Some(listen) => listen.into_inner().0,
            None => Listen::Unix(default_socket(table)),
        };
        check_listen(source, &format!("{table}.listen"), &listen)?;
        let (mode, group) = (self.socket_mode.0.0, self.socket_group);
        check_mode(source, &format!("{table}.socket_mode"), mode)?;
        if let Some(group) = &group {
            source.said(&format!("{table}.socket_group"), group)?;
        }
        let max_sessions = *self.max_sessions.get_ref();
        let idle_when_full = self.idle_when_full.0.0;
        Ok(SocketSettings { table, listen, mode, group, max_sessions, idle_when_full })
    }
}

/// Connections to the admin door: a few people and machines look.
const ADMIN_CONNECTIONS: usize = 64;

/// After this, one that was answered makes room for the next.
const ADMIN_IDLE: Duration = Duration::from_secs(5);

/// Longest path of a unix socket: 108 bytes with the zero at its end (unix(7)).
const LONGEST_SOCKET: usize = 107;

fn check_listen(source: &Reading, key: &str, listen: &Listen) -> Result<(), SourceError> {
    let Listen::Unix(path) = listen else { return Ok(()) };
    source.whole(source.place(key), path)?;
    let (there, most) = (path.as_os_str().len(), LONGEST_SOCKET);
    if there > most {
        let message = format!("the path has {there} bytes, and that of a socket has at most {most}");
        return Err(source.error_at(key, message));
    }
    Ok(())
}

fn lets_us_in(source: &Reading, key: &str, mode: u32) -> Result<(), SourceError> {
    if mode & 0o600 == 0o600 {
        return Ok(());
    }
    let message = format!("\"{}\" keeps out the service itself: write \"0660\"", Mode(mode));
    Err(source.error_at(key, message))
}

/// Whoever connects to a socket needs the right to write to it.
fn check_mode(source: &Reading, key: &str, mode: u32) -> Result<(), SourceError> {
    let shown = Mode(mode);
    lets_us_in(source, key, mode)?;
    if mode & 0o022 == 0 {
        let why = "keeps out every user but the service's own, and Postfix has its own";
        source.warn(key, format!("\"{shown}\" {why}: write \"0660\""));
    }
    if mode & 0o002 != 0 {
        let why = "lets everybody on this machine send mail as Postfix does";
        source.warn(key, format!("\"{shown}\" {why}: write \"0660\", and set socket_group"));
    }
    Ok(())
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
struct MessageText {
    /// Largest message; default 50 MiB.
    max_size: Text<Size>,
    /// Memory for message bytes over all sessions, an eighth of it for messages that hold 64 KiB or less; default 64 MiB.
    memory_limit: Text<Size>,
    /// How long the content of a message may keep us waiting for its bytes, and a second more for each 16 KiB; default 60s.
    patience: Text<Span>,
    /// Characters that start a tag in a local part, like `+`; default none.
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
            memory_limit: Text(Size(64 * 1024 * 1024)),
            patience: Text(Span(Duration::from_secs(60))),
            recipient_delimiter: String::new(),
            mixed_recipients: MixedText::Reject,
            after_accept: AfterAcceptText::Discard,
            unknown_project: UnknownProjectText::Reject,
            max_recipients: Spanned::new(0..0, 100),
            max_people: Spanned::new(0..0, 1000),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum MixedText {
    Reject,
    Strip,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum AfterAcceptText {
    Discard,
    Keep,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum UnknownProjectText {
    Reject,
    Unlinked,
}

#[derive(Debug, Deserialize, Serialize)]
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
    fn validate(self, queue: &queue::Settings) -> trace::Settings {
        let path = match self.path {
            None => queue.path.with_file_name("trace.db"),
            Some(path) => path.into_inner(),
        };
        let Text(Keep(keep)) = self.keep;
        let keep = (!keep.is_zero()).then_some(keep);
        trace::Settings { keep, min_free: queue.min_free, ..trace::Settings::new(path) }
    }
}

/// `[admin]`
#[derive(Debug, Deserialize, Serialize)]
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
    fn validate(self, source: &Reading) -> Result<admin::Settings, SourceError> {
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
        if let Some(listen) = &listen {
            check_listen(source, "admin.listen", listen)?;
        }
        if let Some(name) = self.hosts.iter().find(|name| !is_host(name.get_ref())) {
            let message = format!("\"{}\" is no host name: write it without scheme and port", name.get_ref());
            return Err(source.error(name.span(), message));
        }
        let (mode, group) = (self.socket_mode.0.0, self.socket_group);
        lets_us_in(source, "admin.socket_mode", mode)?;
        let socket = listen.map(|listen| SocketSettings {
            table: "admin",
            listen,
            mode,
            group,
            max_sessions: ADMIN_CONNECTIONS,
            idle_when_full: ADMIN_IDLE,
        });
        if let Some(file) = &self.token_file {
            source.secret(file)?;
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
#[derive(Debug, Deserialize, Serialize)]
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
    fn complete(&mut self) {
        self.transport.get_or_insert_with(|| Text(notify::By::Smtp("127.0.0.1".to_owned(), 25)));
        self.subject.get_or_insert_with(|| notify::SUBJECT.to_owned());
        self.text.get_or_insert_with(|| Spanned::new(0..0, notify::TEXT.to_owned()));
    }

    fn validate(self, source: &Reading) -> Result<notify::Settings, SourceError> {
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
        if let Some(Text(notify::By::Sendmail(program))) = &self.transport
            && source.looks()
            && !is_program(program)
        {
            let program = program.display();
            let message = format!(
                "{program} is no program that can be started, and nobody is told: install it, or write \"smtp:127.0.0.1:25\""
            );
            source.warn("notify.transport", message);
        }
        if let Some(text) = &self.text
            && !text.get_ref().contains("{list}")
        {
            return Err(source
                .error(text.span(), "the text says not what is held: write {list} where it shall stand"));
        }
        if let Some(text) = &self.text {
            source.placeholders(text.span(), text.get_ref(), &["list"])?;
        }
        if let Some(subject) = &self.subject {
            source.said("notify.subject", subject)?;
            source.placeholders(source.place("notify.subject"), subject, &[])?;
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

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[derive(Debug, Deserialize, Serialize)]
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

/// Longer is as long as this: clocks and libraries have an end.
const LONGEST_SPAN: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// RFC 1035, section 3.1: 255 with the lengths of the first label and of the root.
const LONGEST_DOMAIN: usize = 253;

impl FromStr for Domain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let domain = Self::parse(text).map_err(|error| format!("\"{text}\" is no domain: {error}"))?;
        let last = domain.as_str().rsplit('.').next().unwrap_or_default();
        // RFC 3696, section 2: no last label is all digits; or this would be a host of the network, and mail to it has no MX.
        if domain.as_str().starts_with('[') || last.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("\"{text}\" is an address of a network, and no domain: write one of yours"));
        }
        if domain.as_str().len() > LONGEST_DOMAIN {
            let there = domain.as_str().len();
            return Err(format!("the domain has {there} bytes, and one has at most {LONGEST_DOMAIN}"));
        }
        Ok(domain)
    }
}

impl Written for Domain {
    const LIKE: &'static str = "\"severamail.com\"";
}

impl Written for Listen {
    const LIKE: &'static str = "\"unix:/path/to/socket\"";
}

impl Written for notify::By {
    const LIKE: &'static str = "\"smtp:127.0.0.1:25\"";
}

impl ConfigText {
    fn validate(self, source: &Reading) -> Result<Config, SourceError> {
        let span = self.integration_domains.span();
        let domains: Vec<Domain> = self.integration_domains.into_inner().into_iter().map(|d| d.0).collect();
        if domains.is_empty() {
            return Err(source.error(span, "name at least one domain, like [\"severamail.com\"]"));
        }
        if let Some(twice) = domains.iter().enumerate().find(|(at, domain)| domains[..*at].contains(domain)) {
            source
                .warn("integration_domains", format!("\"{}\" is there twice: remove one", twice.1.as_str()));
        }
        delimiter(source, &self.message.recipient_delimiter)?;
        let memory_limit = self.message.memory_limit.0.0;
        let texts = texts(source, self.replies)?;
        let verify = self.sender.verify(source)?;
        let policy = Policy {
            max_size: self.message.max_size.0.0,
            min_free: self.queue.min_free.0.0,
            patience: self.message.patience.0.0,
            max_recipients: *self.message.max_recipients.get_ref(),
            max_people: *self.message.max_people.get_ref(),
            mixed: match self.message.mixed_recipients {
                MixedText::Reject => Mixed::Reject,
                MixedText::Strip => Mixed::Strip,
            },
            keep_after_accept: self.message.after_accept == AfterAcceptText::Keep,
            tenants: Wish::from(self.policy).over(&TenantPolicy::default()),
            unlinked_projects: self.message.unknown_project == UnknownProjectText::Unlinked,
            shadow: if self.mode == ModeText::Shadow { Shadow::Everybody } else { Shadow::Marked },
            emergency: self.emergency.validate(source)?,
            limits: self.limits.validate(source),
            trust: self.sender.validate(source)?,
        };
        let delivery = self.backend.delivery;
        let (retry_first, retry_max) = (self.backend.retry_first.0.0, self.backend.retry_max.0.0);
        let (outside, max_in_flight, shares) =
            outside::validate(source, self.backend, self.directory, self.severa)?;
        let (queue, max_age) = self.queue.validate(source)?;
        delays(source, retry_first, retry_max, max_age)?;
        let courier = courier::Settings { max_in_flight, shares, retry_first, retry_max, max_age };
        let milter = self.milter.validate(source, "milter")?;
        let lmtp = self.lmtp.map(|lmtp| lmtp.validate(source, "lmtp")).transpose()?;
        let trace = self.trace.validate(&queue);
        let admin = self.admin.validate(source)?;
        let mut places = Places::new(source)
            .add(Kind::Database, "queue.path", "the queue's file", &queue.path)?
            .add(Kind::Directory, "queue.spool", "the queue's directory for messages", &queue.spool)?
            .add(Kind::Database, "trace.path", "the trace's file", &trace.path)?;
        places = match &outside.directory {
            DirectoryKind::Severa(SeveraSettings { path, .. }) => {
                places.add(Kind::Database, "directory.path", "the copy's file", path)?
            }
            DirectoryKind::File { path } => {
                places.add(Kind::File, "directory.path", "the directory file", path)?
            }
            DirectoryKind::Http(_) => places,
        };
        let lmtp_socket = lmtp.as_ref().map(|lmtp| ("lmtp.listen", lmtp));
        let admin_socket = admin.socket.as_ref().map(|admin| ("admin.listen", admin));
        for (key, socket) in
            std::iter::once(("milter.listen", &milter)).chain(lmtp_socket).chain(admin_socket)
        {
            places = places.socket(key, &socket.listen)?;
        }
        Ok(Config {
            addressing: Addressing { domains, recipient_delimiter: self.message.recipient_delimiter },
            milter,
            lmtp,
            policy,
            verify,
            memory_limit,
            texts,
            delivery,
            outside,
            courier,
            queue,
            trace,
            admin,
            notify: self.notify.map(|notify| notify.validate(source)).transpose()?,
            log: observe::Settings {
                format: self.log.format,
                level: self.log.level.0.0,
                addresses: self.log.addresses,
            },
            files: Vec::new(),
            warnings: Vec::new(),
        })
    }

    /// Reads the text; what has a default that depends on other keys gets it, and paths become whole.
    fn read(source: &Source, reading: &Reading) -> Result<Self, SourceError> {
        reading.tables(TABLES)?;
        range::check(reading)?;
        let mut text: Self = source.parse()?;
        text.milter.complete("milter");
        if let Some(lmtp) = &mut text.lmtp {
            lmtp.complete("lmtp");
        }
        text.policy.complete();
        outside::complete(reading, &mut text.backend, &mut text.directory)?;
        for company in &mut text.severa {
            reading.complete(&mut company.client_secret_file)?;
        }
        text.queue.complete(reading)?;
        let beside = || Spanned::new(0..0, text.queue.path.get_ref().with_file_name("trace.db"));
        reading.complete(text.trace.path.get_or_insert_with(beside))?;
        if let Some(file) = &mut text.admin.token_file {
            reading.complete(file)?;
        }
        if let Some(notify) = &mut text.notify {
            notify.complete();
        }
        Ok(text)
    }
}

/// A text as it may be repeated in a line.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// What starts a tag must stand in no address otherwise.
fn delimiter(source: &Reading, text: &str) -> Result<(), SourceError> {
    let key = "message.recipient_delimiter";
    if let Some(bad) =
        text.chars().find(|c| !c.is_ascii_graphic() || c.is_alphanumeric() || "\"(),.:;<>@[\\]".contains(*c))
    {
        let why = match bad {
            '.' => "cuts project numbers from their company: mail to 1001.company@ would be that of a company 1001".to_owned(),
            '@' => "ends every address".to_owned(),
            bad => format!("stands in addresses that are no tags, or in none ('{}')", printable(&bad.to_string())),
        };
        return Err(
            source.error_at(key, format!("\"{}\" {why}: write \"+\", or \"\" for none", printable(text)))
        );
    }
    if let Some(doubtful) = text.chars().find(|c| "-_".contains(*c)) {
        let why = format!("cuts integration addresses in which a {doubtful} stands");
        source.warn(
            key,
            format!("\"{text}\" {why}: write \"+\", unless Postfix has the same recipient_delimiter"),
        );
    }
    Ok(())
}

/// Delays grow from the first to the longest, and all of it happens before an activity is too old.
fn delays(source: &Reading, first: Duration, most: Duration, max_age: Duration) -> Result<(), SourceError> {
    if first > most {
        let written = |key| source.value(key).is_some();
        let key = if written("backend.retry_first") { "backend.retry_first" } else { "backend.retry_max" };
        let (first, most) = (Span(first), Span(most));
        let message = format!(
            "backend.retry_first ({first}) is longer than backend.retry_max ({most}): write a shorter first or a longer max"
        );
        return Err(source.error_at(key, message));
    }
    if most >= max_age {
        let key =
            if source.value("backend.retry_max").is_some() { "backend.retry_max" } else { "queue.max_age" };
        let (most, max_age) = (Span(most), Span(max_age));
        source.warn(key, format!("backend.retry_max ({most}) is no shorter than queue.max_age ({max_age}): an activity may be held before it is tried again"));
    }
    Ok(())
}

/// `[replies]`: reason codes with their texts, and `help`.
fn texts(
    source: &Reading,
    replies: BTreeMap<Spanned<String>, Spanned<String>>,
) -> Result<Texts, SourceError> {
    let (mut replaced, mut help) = (BTreeMap::new(), None);
    for (key, text) in replies {
        check_text(text.get_ref()).map_err(|message| source.error(text.span(), message))?;
        // Only the text of a refusal by the backend has something to say besides the address.
        let known: &[&str] = match key.get_ref().as_str() {
            "help" => &[],
            "backend-refused" => &["address", "detail"],
            _ => &["address"],
        };
        source.placeholders(text.span(), text.get_ref(), known)?;
        if key.get_ref() == "help" {
            help = Some(text.into_inner());
            continue;
        }
        let reason = Reason::ALL.iter().find(|reason| reason.as_str() == key.get_ref());
        let Some(&reason) = reason else {
            let known: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
            let near = meant(key.get_ref(), &known).map(|near| format!("did you mean `{near}`? "));
            let near = near.unwrap_or_default();
            let message =
                format!("unknown reply `{}`: {near}there are help, {}", key.get_ref(), known.join(", "));
            return Err(source.error(key.span(), message));
        };
        replaced.insert(reason, text.into_inner());
    }
    Ok(Texts::new(replaced, help))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::Automatic;
    use crate::rules::{Require, Treatment};

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
            ("[milter]\nmax_sessions = \"many\"", "am.toml:7:16: max_sessions: \"many\" is text"),
            ("[milter]\nmax_sessions = 0", "am.toml:7:16: max_sessions: 0 would let nothing through"),
            ("[milter]\nsocket_mode = \"rw\"", "am.toml:7:15: socket_mode: \"rw\" is no file mode"),
            (
                "[milter]\nlisten = \"unix:/x\"\n[lmtp]\nlisten = \"unix:/x\"",
                "am.toml:9:10: listen: the same socket as milter.listen",
            ),
            ("[lmtp]\nmax_sessions = 0", "am.toml:7:16: max_sessions: 0 would let nothing through"),
            ("[queue]\nkeep_delivered = \"x\"", "am.toml:7:18: keep_delivered: \"x\" is no time span"),
            ("[message]\nmax_size = \"big\"", "am.toml:7:12: max_size: \"big\" is no size"),
            ("[message]\nmemory_limit = \"1 KiB\"", "am.toml:7:16: memory_limit: \"1 KiB\" is too small"),
            (
                "[message]\nmixed_recipients = \"x\"",
                "am.toml:7:20: mixed_recipients: there is no `x`: there are reject, strip",
            ),
            (
                "[queue]\nmax_age = \"5 fortnights\"",
                "am.toml:7:11: max_age: \"5 fortnights\" is no time span",
            ),
            (
                "[trace]\nkeep = \"soon\"",
                "am.toml:7:8: keep: \"soon\" is no time span: write one like \"30s\"",
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
                "am.toml:1:24: integration_domains: \"severa mail\" is no domain",
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
                "/tests/directory.toml holds no certificate",
            ),
            (
                "url =",
                "client_key_file = \"tests/directory.toml\"\nurl =",
                "am.toml:5:19: client_key_file: client_certificate_file and client_key_file come together",
            ),
            (
                "url =",
                "signing_secret_file = \"tests/directory.toml\"\nurl =",
                "/tests/directory.toml holds no secret",
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
        let text =
            LEAST.replace("path = \"tests/directory.toml\"", "type = \"http\"\ncache_stale = \"5000y\"");
        let config = read(&format!("{text}[queue]\nheld_counts = \"5000y\"\n")).unwrap();
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
    fn the_policy_is_what_counts_for_tenants_that_say_nothing() {
        let tenants = |lines: &str| read(&format!("{LEAST}{lines}\n")).unwrap().policy.tenants;
        let policy = tenants("");
        assert_eq!((policy.require, policy.treatment(Automatic::Bounce)), (Require::None, Treatment::Accept));
        let policy = tenants("[policy]\nrequire = \"authenticated\"\nautomatic.auto-generated = \"refuse\"");
        assert_eq!(policy.require, Require::Authenticated);
        assert_eq!(policy.treatment(Automatic::AutoGenerated), Treatment::Refuse);
        assert_eq!(policy.treatment(Automatic::List), Treatment::Accept);
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
