//! What a Postfix instance says of itself, asked of its own tools: `postconf(1)` and `postmap(1)`.
//!
//! In: a configuration directory, or none for the system's. Out: [`Settings`], with the words Postfix itself would use.
//! Promise: nothing is changed and nothing of Postfix need run; what a table says is looked up, not guessed.
//! Fails: [`SettingsError`] if the tools are missing or do not like the configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

/// Why the settings cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum SettingsError {
    /// No such program.
    #[error("{program} cannot be run: {error}. Is Postfix installed, and its sbin directory in PATH?")]
    Missing { program: &'static str, error: io::Error },
    /// The program said no.
    #[error("{program} fails: {message}")]
    Failed { program: &'static str, message: String },
    /// A table, or a file with a list.
    #[error("{0}")]
    Table(Broken),
    /// Our own record of what we changed.
    #[error("{} cannot be read: {error}", path.display())]
    Record { path: PathBuf, error: io::Error },
}

impl SettingsError {
    /// True if there is no Postfix, or none that was ever set up.
    pub(super) fn is_absence(&self) -> bool {
        match self {
            Self::Missing { .. } => true,
            Self::Failed { message, .. } => message.contains("main.cf: No such file"),
            Self::Record { .. } | Self::Table(_) => false,
        }
    }
}

/// A table, or a file with a list, that cannot be read: what is in it, nobody knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) parameter: String,
    pub(super) table: String,
    pub(super) why: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { parameter, table, why } = self;
        write!(f, "{parameter} has {table}, which cannot be read ({why}): {}, or take it out", self.remedy())
    }
}

impl Broken {
    /// What makes it readable.
    pub(super) fn remedy(&self) -> String {
        let made = self.table.trim_start_matches("proxy:");
        match self.why.split_once("unsupported dictionary type: ") {
            Some((_, kind)) => {
                let kind = kind.split_whitespace().next().unwrap_or_default();
                match PACKAGES.contains(&kind) {
                    true => format!("install the package postfix-{kind}"),
                    false => "mend the name of that type (`postconf -m` lists those there are)".to_owned(),
                }
            }
            None if !made.contains('{') && HAS_SOURCE.iter().any(|kind| made.starts_with(kind)) => {
                format!("repair it (`postmap {made}`)")
            }
            None => "repair it".to_owned(),
        }
    }
}

/// Where Postfix has its configuration unless it says otherwise.
pub(super) const CONFIG_DIRECTORY: &str = "/etc/postfix";

/// Where Postfix keeps its queue unless it says otherwise.
pub(super) const QUEUE_DIRECTORY: &str = "/var/spool/postfix";

/// Types of tables that are packages of their own.
const PACKAGES: [&str; 8] = ["cdb", "ldap", "lmdb", "mongodb", "mysql", "pcre", "pgsql", "sqlite"];

/// Types of tables that postmap(1) makes from a text.
const HAS_SOURCE: [&str; 6] = ["hash:", "btree:", "lmdb:", "cdb:", "dbm:", "sdbm:"];

/// Parameters whose tables say which way mail goes.
pub(super) const WAYS: [&str; 8] = [
    "mydestination",
    "virtual_alias_domains",
    "virtual_mailbox_domains",
    "relay_domains",
    "transport_maps",
    "relay_recipient_maps",
    "virtual_mailbox_maps",
    "smtp_header_checks",
];

/// Parameters whose tables make other addresses of ours, after the milter was asked.
pub(super) const ALIASES: [&str; 5] = [
    "canonical_maps",
    "recipient_canonical_maps",
    "virtual_alias_maps",
    "relocated_maps",
    "lmtp_generic_maps",
];

/// Parameters whose tables look at what a message says.
pub(super) const CONTENTS: [&str; 2] = ["header_checks", "lmtp_header_checks"];

/// Runs Postfix's tools for one instance.
#[derive(Clone, Debug, Default)]
pub(super) struct Tools {
    /// `--postfix-config`; none for the system's own.
    pub(super) directory: Option<PathBuf>,
}

impl Tools {
    /// Runs a tool; the output whatever its exit code.
    fn run(&self, program: &'static str, args: &[&str]) -> Result<Output, SettingsError> {
        // Administrators who are not root often have no sbin directory in PATH.
        let sbin = Path::new("/usr/sbin").join(program);
        let mut command = Command::new(if sbin.exists() { sbin } else { program.into() });
        if let Some(directory) = &self.directory {
            command.arg("-c").arg(directory);
        }
        command.args(args).output().map_err(|error| SettingsError::Missing { program, error })
    }

    fn lines(&self, args: &[&str]) -> Result<Vec<String>, SettingsError> {
        let output = self.run("postconf", args)?;
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        // Warnings about unused parameters are Postfix's own business.
        if !output.status.success() || message.contains("fatal:") {
            let hint = self.culprit(&message).map_or(String::new(), |name| {
                format!(
                    ". It is {name} in main.cf that Postfix cannot read: put the value into a file of its own \
                     (regexp:/FILE), or write each $ in it as $$"
                )
            });
            return Err(SettingsError::Failed { program: "postconf", message: message + &hint });
        }
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }

    /// The parameter of `main.cf` whose value a message of postconf's quotes, for it does not say the name.
    fn culprit(&self, message: &str) -> Option<String> {
        let (start, end) = (message.find('"')? + 1, message.lines().next()?.rfind('"')?);
        let quoted = message.get(start..end).filter(|quoted| !quoted.is_empty())?;
        let directory = self.directory.as_deref().unwrap_or(Path::new(CONFIG_DIRECTORY));
        let text = std::fs::read_to_string(directory.join("main.cf")).ok()?;
        let mut name = None;
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if !line.starts_with(char::is_whitespace) {
                name = line.split_once('=').map(|(name, _)| name.trim());
            }
            // A value over lines is quoted as one.
            let part = line.split_once('=').map_or(line, |(_, value)| value).trim();
            if line.contains('$') && (line.contains(quoted) || (!part.is_empty() && quoted.contains(part))) {
                return name.map(str::to_owned);
            }
        }
        None
    }

    /// `name = value` of each line; names of `postconf -P` have their service before them.
    fn pairs(&self, args: &[&str]) -> Result<BTreeMap<String, String>, SettingsError> {
        let pair = |line: String| {
            let (name, value) = line.split_once('=')?;
            Some((name.trim().to_owned(), value.trim().to_owned()))
        };
        Ok(self.lines(args)?.into_iter().filter_map(pair).collect())
    }

    /// What is in the queue, a line of JSON for each message. Root need not have Postfix running for it.
    fn queue(&self) -> Result<String, SettingsError> {
        let output = self.run("postqueue", &["-j"])?;
        let message = last_words(String::from_utf8_lossy(&output.stderr).trim());
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(SettingsError::Failed { program: "postqueue", message }),
        }
    }

    /// All entries of a table; none if its kind cannot list them.
    fn list(&self, table: &str) -> Result<Option<Vec<(String, String)>>, SettingsError> {
        let output = self.run("postmap", &["-s", bare_table(table)])?;
        let text = String::from_utf8_lossy(&output.stdout);
        let entry =
            |line: &str| line.split_once('\t').map(|(k, v)| (k.trim().to_owned(), v.trim().to_owned()));
        Ok(output.status.success().then(|| text.lines().filter_map(entry).collect()))
    }

    /// What a table has for a key.
    fn look_up(&self, key: &str, table: &str) -> Result<Option<String>, SettingsError> {
        let output = self.run("postmap", &["-q", key, bare_table(table)])?;
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        match output.status.code() {
            Some(0) => Ok(Some(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())),
            Some(1) if !message.contains("fatal:") => Ok(None), // not found is an exit code without a word
            _ => Err(SettingsError::Failed { program: "postmap", message }),
        }
    }
}

/// A line of `master.cf`.
#[derive(Clone, Debug)]
pub(super) struct Service {
    /// `smtp/inet`, as `postconf -P` names it.
    pub(super) name: String,
    /// True if it runs chrooted in the queue directory.
    pub(super) chroot: bool,
    /// The program.
    pub(super) command: String,
}

/// Everything the checks look at, and what adding to it needs.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) tools: Tools,
    /// `$names` expanded, defaults too.
    main: BTreeMap<String, String>,
    /// The same as it is written.
    raw: BTreeMap<String, String>,
    /// What `main.cf` itself says, as it is written.
    written: BTreeMap<String, String>,
    services: Vec<Service>,
    /// `smtp/inet/smtpd_milters` and its value: what `-o` in `master.cf` says.
    overrides: BTreeMap<String, String>,
    /// The same as it is written.
    raw_overrides: BTreeMap<String, String>,
    /// Tables and files that are not asked, because they cannot be read.
    ignored: BTreeSet<String>,
}

impl Settings {
    /// Reads all of them.
    pub(super) fn read(tools: Tools) -> Result<Self, SettingsError> {
        let main = tools.pairs(&["-x"])?;
        let (raw, written) = (tools.pairs(&[])?, tools.pairs(&["-n"])?);
        let (overrides, raw_overrides) = (tools.pairs(&["-x", "-P"])?, tools.pairs(&["-P"])?);
        // What `-` in the chroot column means changed with Postfix 3.0.
        let level = main.get("compatibility_level").map_or("0", String::as_str);
        let old = level.split('.').next().and_then(|major| major.parse::<u32>().ok()).unwrap_or(0) < 1;
        let service = |line: &String| {
            let mut words = line.split_whitespace();
            let (name, kind) = (words.next()?, words.next()?);
            let (chroot, command) = (words.nth(2)?, words.nth(2)?);
            let chroot = match chroot {
                "y" => true,
                "n" => false,
                _ => old,
            };
            Some(Service { name: format!("{name}/{kind}"), chroot, command: command.to_owned() })
        };
        let services = tools.lines(&["-M"])?.iter().filter_map(service).collect();
        let ignored = BTreeSet::new();
        Ok(Self { tools, main, raw, written, services, overrides, raw_overrides, ignored })
    }

    /// A parameter of `main.cf`, or its default; empty if this Postfix does not have it.
    pub(super) fn main(&self, name: &str) -> &str {
        self.main.get(name).map_or("", String::as_str)
    }

    /// What `main.cf` itself says of a parameter, `$names` not expanded; none if it says nothing.
    pub(super) fn written(&self, name: &str) -> Option<&str> {
        self.written.get(name).map(String::as_str)
    }

    /// What a list is before something is added: as written, or a default that has something in it.
    pub(super) fn base(&self, name: &str) -> Option<String> {
        let written = self.written(name).filter(|value| !value.is_empty()).map(str::to_owned);
        let default = || (!self.main(name).is_empty()).then(|| self.raw.get(name).cloned()).flatten();
        written.or_else(default)
    }

    /// What `-o` in `master.cf` says (`smtp/inet/smtpd_milters`), `$names` not expanded.
    pub(super) fn written_for(&self, parameter: &str) -> Option<&str> {
        self.raw_overrides.get(parameter).map(String::as_str)
    }

    /// Every `-o` of a parameter: service and parameter, and the value as it is written.
    pub(super) fn overrides_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let of_it = move |(parameter, value): (&'a String, &'a String)| {
            parameter
                .rsplit_once('/')
                .filter(|(_, n)| *n == name)
                .map(|_| (parameter.as_str(), value.as_str()))
        };
        self.raw_overrides.iter().filter_map(of_it)
    }

    /// The directory of `main.cf`.
    pub(super) fn directory(&self) -> &Path {
        Path::new(self.main("config_directory"))
    }

    /// A parameter as a service sees it.
    pub(super) fn of(&self, service: &Service, name: &str) -> &str {
        let own = self.overrides.get(&format!("{}/{name}", service.name));
        own.map_or_else(|| self.main(name), String::as_str)
    }

    /// True if `master.cf` says it for the service.
    pub(super) fn is_overridden(&self, service: &Service, name: &str) -> bool {
        self.overrides.contains_key(&format!("{}/{name}", service.name))
    }

    /// The services that run a program.
    pub(super) fn services<'a>(&'a self, command: &'a str) -> impl Iterator<Item = &'a Service> {
        self.services.iter().filter(move |service| service.command == command)
    }

    /// A delivery agent by the name that transports have.
    pub(super) fn transport(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == format!("{name}/unix"))
    }

    /// `queue_directory`: what relative socket paths start from, and the root of chrooted services.
    pub(super) fn queue_directory(&self) -> &Path {
        Path::new(self.main("queue_directory"))
    }

    /// What is in the queue, as `postqueue -j` says it; nothing where Postfix has never run.
    pub(super) fn queue(&self) -> Result<String, SettingsError> {
        let queues = ["maildrop", "incoming", "active", "deferred", "hold"];
        match queues.iter().any(|queue| self.queue_directory().join(queue).exists()) {
            true => self.tools.queue(),
            false => Ok(String::new()),
        }
    }

    /// What of these parameters cannot be read.
    pub(super) fn broken(&self, parameters: &[&str]) -> Vec<Broken> {
        let of = |parameter: &&str| {
            let why = |table: &String| self.unreadable(table.trim_start_matches('!'));
            let found =
                split(self.main(parameter)).into_iter().filter_map(|table| Some((why(&table)?, table)));
            let parameter = (*parameter).to_owned();
            let broken = move |(why, table)| Broken { parameter: parameter.clone(), table, why };
            found.map(broken).collect::<Vec<_>>()
        };
        parameters.iter().flat_map(of).collect()
    }

    /// Why an element of a list cannot be read; none if it can, or names itself.
    fn unreadable(&self, element: &str) -> Option<String> {
        if element.starts_with('/') {
            return std::fs::read_to_string(element).err().map(|error| error.to_string());
        }
        let asked =
            element.contains(':').then(|| self.tools.look_up("activity-milter-check@invalid", element));
        match asked?.err()? {
            SettingsError::Failed { message, .. } => Some(last_words(&message)),
            other => Some(other.to_string()),
        }
    }

    /// Goes on without them.
    pub(super) fn ignore(&mut self, broken: &[Broken]) {
        self.ignored.extend(broken.iter().map(|broken| broken.table.trim_start_matches('!').to_owned()));
    }

    /// The first of `keys` that one of the tables in a parameter has, tables in order as Postfix asks them. The first key is
    /// the whole address; what comes after it, patterns are not asked for.
    pub(super) fn look_up(&self, parameter: &str, keys: &[String]) -> Result<Option<String>, SettingsError> {
        let tables = split(self.main(parameter));
        let tables = || tables.iter().filter(|table| table.contains(':') && !self.ignored.contains(*table));
        for (at, key) in keys.iter().enumerate() {
            let whole = at == 0 || key == "*";
            for table in tables().filter(|table| whole || !is_pattern(table)) {
                if let Some(value) = self.tools.look_up(key, table)? {
                    return Ok(Some(value));
                }
            }
        }
        Ok(None)
    }

    /// The same for a name, of which patterns and tables that cannot be read say nothing.
    pub(super) fn ask_for_name(&self, name: &str, table: &str) -> Result<Option<String>, SettingsError> {
        match self.ignored.contains(table) || is_pattern(table) {
            true => Ok(None),
            false => self.tools.look_up(name, table),
        }
    }

    /// The tables of a parameter of `main.cf`, without names and files of names.
    pub(super) fn tables(&self, parameter: &str) -> Vec<String> {
        split(self.main(parameter)).into_iter().filter(|element| element.contains(':')).collect()
    }

    /// True for a table that is not asked, because it cannot be read.
    pub(super) fn is_ignored(&self, table: &str) -> bool {
        self.ignored.contains(table)
    }

    /// What one table has for a key.
    pub(super) fn ask(&self, key: &str, table: &str) -> Result<Option<String>, SettingsError> {
        self.tools.look_up(key, table)
    }

    /// True if a domain list (`relay_domains`, say) has the domain: DOMAIN, .DOMAIN, /FILE, TYPE:TABLE, !PATTERN.
    pub(super) fn has_domain(&self, parameter: &str, domain: &str) -> Result<bool, SettingsError> {
        let with_parents = split(self.main("parent_domain_matches_subdomains"));
        let style = Style::of(parameter, &with_parents);
        self.list_has(&split(self.main(parameter)), domain, style)
    }

    fn list_has(&self, list: &[String], domain: &str, style: Style) -> Result<bool, SettingsError> {
        for pattern in list {
            let (negated, pattern) = match pattern.strip_prefix('!') {
                Some(rest) => (true, rest),
                None => (false, pattern.as_str()),
            };
            let matched = if self.ignored.contains(pattern) {
                false
            } else if pattern.starts_with('/') {
                self.list_has(&in_file(pattern)?, domain, style)?
            } else if pattern.contains(':') {
                self.table_has(pattern, domain, style)?
            } else {
                style.matches(pattern, domain)
            };
            if matched {
                return Ok(!negated);
            }
        }
        Ok(false)
    }

    /// Postfix asks for the domain, and a table that is no pattern for what stands above it as well.
    fn table_has(&self, table: &str, domain: &str, style: Style) -> Result<bool, SettingsError> {
        let above = style.above(domain).into_iter().filter(|_| !is_pattern(table));
        for key in std::iter::once(domain).chain(above) {
            if self.tools.look_up(key, table)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The domains that a list names, those in files and tables too; true if some cannot be listed.
    pub(super) fn domains_in(&self, parameter: &str) -> Result<(Vec<String>, bool), SettingsError> {
        let (mut named, mut hidden) = (Vec::new(), false);
        self.gather(&split(self.main(parameter)), &mut named, &mut hidden)?;
        Ok((named, hidden))
    }

    fn gather(
        &self,
        list: &[String],
        named: &mut Vec<String>,
        hidden: &mut bool,
    ) -> Result<(), SettingsError> {
        for pattern in list.iter().filter(|pattern| !pattern.starts_with('!')) {
            if self.ignored.contains(pattern) {
                *hidden = true;
            } else if pattern.starts_with('/') {
                self.gather(&in_file(pattern)?, named, hidden)?;
            } else if pattern.contains(':') {
                match self.entries(pattern)? {
                    // An address is no domain: `virtual_alias_domains` is `$virtual_alias_maps`, unless it is set.
                    Some(entries) => {
                        named.extend(entries.into_iter().map(|(key, _)| key).filter(|key| !key.contains('@')))
                    }
                    None => *hidden = true,
                }
            } else {
                named.push(pattern.clone());
            }
        }
        Ok(())
    }

    /// Keys and values of a table; none if its kind cannot list them.
    pub(super) fn entries(&self, table: &str) -> Result<Option<Vec<(String, String)>>, SettingsError> {
        match inline(table) {
            Some(entries) => Ok(Some(entries)),
            None => self.tools.list(table),
        }
    }
}

/// What stands in a file that is part of a list.
fn in_file(path: &str) -> Result<Vec<String>, SettingsError> {
    let broken = |error: io::Error| {
        let (parameter, table) = ("a list".to_owned(), path.to_owned());
        SettingsError::Table(Broken { parameter, table, why: error.to_string() })
    };
    let text = std::fs::read_to_string(path).map_err(broken)?;
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    Ok(lines.flat_map(split).collect())
}

/// A table without the detour by proxymap(8), which answers only while Postfix runs, and to Postfix alone.
pub(super) fn bare_table(table: &str) -> &str {
    table.strip_prefix("proxy:").unwrap_or(table)
}

/// True for tables that Postfix asks for whole addresses alone, never for a part of one.
pub(super) fn is_pattern(table: &str) -> bool {
    let kind = bare_table(table).split(':').next().unwrap_or_default();
    ["regexp", "pcre", "cidr", "tcp", "randmap"].contains(&kind)
}

/// What a tool of Postfix's says at the end, after its own name: the reason.
fn last_words(message: &str) -> String {
    let last = message.lines().next_back().unwrap_or_default();
    let start = ["fatal: ", "warning: "].iter().find_map(|word| last.find(word).map(|at| at + word.len()));
    last[start.unwrap_or(0)..].to_owned()
}

/// How a list of domains is compared with one (postconf(5), parent_domain_matches_subdomains). An IDN's two forms are two
/// names: Postfix knows no better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// The name alone: lists of names that mail is delivered for here.
    Name,
    /// `.DOMAIN` is what lies below DOMAIN.
    Below,
    /// DOMAIN is what lies below it too, and `.DOMAIN` is nothing.
    Parents,
}

impl Style {
    /// That of a parameter. `with_parents`: what `parent_domain_matches_subdomains` names.
    pub(super) fn of(parameter: &str, with_parents: &[String]) -> Self {
        match parameter {
            "mydestination" | "virtual_alias_domains" | "virtual_mailbox_domains" => Self::Name,
            _ if with_parents.iter().any(|name| name == parameter) => Self::Parents,
            _ => Self::Below,
        }
    }

    /// What a table is asked for behind the domain itself.
    pub(super) fn above(self, domain: &str) -> Vec<&str> {
        let dots = domain.match_indices('.').map(|(at, _)| at);
        match self {
            Self::Name => Vec::new(),
            Self::Below => dots.map(|at| &domain[at..]).collect(),
            Self::Parents => dots.map(|at| &domain[at + 1..]).collect(),
        }
    }

    /// True if a pattern without table or file is that domain, or stands for it.
    fn matches(self, pattern: &str, domain: &str) -> bool {
        let (pattern, domain) = (pattern.to_lowercase(), domain.to_lowercase());
        pattern == domain || self.above(&domain).contains(&pattern.as_str())
    }
}

/// Keys and values of `inline:{ { key = value } key=value … }`; none for other tables.
pub(super) fn inline(table: &str) -> Option<Vec<(String, String)>> {
    let inner = table.strip_prefix("inline:")?.trim().strip_prefix('{')?.strip_suffix('}')?;
    let entry = |element: String| {
        let inner = element.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        let (key, value) = inner.unwrap_or(&element).split_once('=')?;
        Some((key.trim().to_owned(), value.trim().to_owned()))
    };
    split(inner).into_iter().map(entry).collect()
}

/// An inline table with the entries that are `kept` alone; none if there are none left. Anything else is as it is.
pub(super) fn with_entries(element: &str, kept: impl Fn(&(String, String)) -> bool) -> Option<String> {
    let Some(entries) = inline(element).filter(|entries| !entries.iter().all(&kept)) else {
        return Some(element.to_owned());
    };
    let entries: Vec<String> = entries
        .into_iter()
        .filter(kept)
        .map(|(key, value)| format!("{{ {} }}", format!("{key} = {value}").trim_end()))
        .collect();
    (!entries.is_empty()).then(|| format!("inline:{{ {} }}", entries.join(" ")))
}

/// The elements of a list: separated by commas or white space, braces kept together.
pub(super) fn split(list: &str) -> Vec<String> {
    let (mut elements, mut depth, mut element) = (Vec::new(), 0_u32, String::new());
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 && (c == ',' || c.is_whitespace()) {
            elements.extend((!element.is_empty()).then(|| std::mem::take(&mut element)));
        } else {
            element.push(c);
        }
    }
    elements.extend((!element.is_empty()).then_some(element));
    elements
}

/// A milter in `smtpd_milters`: where it is, and settings of its own (`{ endpoint, name=value, { name = value } … }`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MilterEntry {
    /// `unix:path` or `inet:host:port`.
    pub(super) endpoint: String,
    /// Why Postfix does not take the entry: whoever reads it ends at once, and with it all mail.
    pub(super) flaw: Option<String>,
    own: BTreeMap<String, String>,
}

impl MilterEntry {
    /// The milters of a list.
    pub(super) fn list(value: &str) -> Vec<Self> {
        split(value).iter().filter_map(|element| Self::parse(element)).collect()
    }

    fn parse(element: &str) -> Option<Self> {
        let open = element.strip_prefix('{');
        let inner = match open {
            Some(open) => open.strip_suffix('}').unwrap_or(open),
            None => element,
        };
        let mut words = split(inner).into_iter();
        let endpoint = words.next()?;
        let (mut own, mut flaw) = (BTreeMap::new(), None);
        for word in words {
            let bare = word.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(&word);
            match bare.split_once('=').map(|(name, value)| (name.trim(), value.trim())) {
                Some((name, value)) if !name.is_empty() => {
                    flaw = flaw.or(flaw_of(name, value));
                    own.insert(name.to_owned(), value.to_owned());
                }
                _ => flaw = flaw.or(Some(format!("\"{bare}\" is no name=value; no blanks around the \"=\""))),
            }
        }
        let unclosed = open.is_some() && !element.ends_with('}');
        let flaw = if unclosed { Some("the closing brace is missing".to_owned()) } else { flaw };
        Some(Self { endpoint, flaw, own })
    }

    /// True if it is written with settings of its own, and these only.
    pub(super) fn has_only(&self, name: &str) -> bool {
        self.own.len() == 1 && self.own.contains_key(name)
    }

    /// The element that says the same, but for one setting of its own.
    pub(super) fn with(&self, name: &str, value: &str) -> String {
        let mut own = self.own.clone();
        own.insert(name.to_owned(), value.to_owned());
        let own: Vec<String> = own.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("{{ {}, {} }}", self.endpoint, own.join(", "))
    }

    /// A setting of its own, or else the parameter `milter_…`.
    pub(super) fn setting<'a>(&'a self, name: &str, settings: &'a Settings, service: &Service) -> &'a str {
        match self.own.get(name) {
            Some(value) => value,
            None => settings.of(service, &format!("milter_{name}")),
        }
    }
}

/// Why Postfix does not take a setting of one milter.
fn flaw_of(name: &str, value: &str) -> Option<String> {
    let ok = match name {
        "connect_timeout" | "command_timeout" | "content_timeout" => {
            seconds(value).is_some_and(|time| !time.is_zero())
        }
        "protocol" | "default_action" => true, // looked at when they are used
        _ => return Some(format!("there is no setting {name} for one milter")),
    };
    (!ok).then(|| format!("{name} cannot be \"{value}\""))
}

/// What `milter_protocol` may be: a version, and words behind it.
pub(super) fn is_version(value: &str) -> bool {
    ["2", "3", "4", "6"].contains(&value.split([' ', ',']).next().unwrap_or_default())
}

/// What `milter_default_action` may be.
pub(super) fn is_action(value: &str) -> bool {
    ["accept", "reject", "tempfail", "quarantine", "shutdown"].contains(&value)
}

/// A time as Postfix writes it: a number, and a unit of s, m, h, d or w.
pub(super) fn seconds(value: &str) -> Option<Duration> {
    let number = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &value[number.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        "w" => 7 * 24 * 3600,
        _ => return None,
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_keep_braces_together() {
        assert_eq!(split(" a.test, b.test\tc.test "), ["a.test", "b.test", "c.test"]);
        assert_eq!(
            split("inline:{ { a = b, c } { d = e } }, hash:/x"),
            ["inline:{ { a = b, c } { d = e } }", "hash:/x"]
        );
        assert_eq!(split(""), Vec::<String>::new());
    }

    #[test]
    fn what_makes_a_table_readable() {
        for (table, why, remedy) in [
            ("hash:/x", "No such file or directory", "repair it (`postmap hash:/x`)"),
            ("proxy:lmdb:/x", "No such file or directory", "repair it (`postmap lmdb:/x`)"),
            ("/x", "No such file or directory", "repair it"),
            ("regexp:/x", "No such file or directory", "repair it"),
            ("mysql:/x", "unsupported dictionary type: mysql", "install the package postfix-mysql"),
            (
                "pcre:{ { /a/ b } }",
                "unsupported dictionary type: pcre (is it there?)",
                "install the package postfix-pcre",
            ),
            (
                "hsh:/x",
                "unsupported dictionary type: hsh",
                "mend the name of that type (`postconf -m` lists those there are)",
            ),
        ] {
            let broken = Broken { parameter: "p".to_owned(), table: table.to_owned(), why: why.to_owned() };
            assert_eq!(broken.remedy(), remedy, "{table}");
        }
    }

    #[test]
    fn inline_tables_are_read() {
        let entry = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            inline("inline:{ { a.test = lmtp:unix:x } b.test=smtp:[h] {c=} }"),
            Some(vec![entry("a.test", "lmtp:unix:x"), entry("b.test", "smtp:[h]"), entry("c", "")])
        );
        assert_eq!(inline("inline:{}"), Some(Vec::new()));
        for other in ["hash:/x", "inline:{ a }", "inline:"] {
            assert_eq!(inline(other), None, "{other}");
        }
    }

    #[test]
    fn entries_go_out_of_a_table() {
        let table = "inline:{ { a.test = lmtp:unix:x } b.test=smtp:[h] {c=} }";
        let without = |names: &[&str]| with_entries(table, |(key, _)| !names.contains(&key.as_str()));
        assert_eq!(without(&["d"]).as_deref(), Some(table));
        assert_eq!(without(&["a.test"]).as_deref(), Some("inline:{ { b.test = smtp:[h] } { c = } }"));
        assert_eq!(without(&["a.test", "b.test", "c"]), None);
        assert_eq!(with_entries("hash:/x", |_| false).as_deref(), Some("hash:/x"));
        assert_eq!(with_entries("inline:{}", |_| false).as_deref(), Some("inline:{}"));
    }

    #[test]
    fn milters_have_settings_of_their_own() {
        let all = MilterEntry::list("{ unix:a/b.sock, default_action=accept command_timeout=3s }, inet:h:1");
        assert_eq!(
            (all.len(), all[0].endpoint.as_str(), all[1].endpoint.as_str()),
            (2, "unix:a/b.sock", "inet:h:1")
        );
        assert_eq!(all[0].own["default_action"], "accept");
        assert_eq!(all[0].own["command_timeout"], "3s");
        assert!(all[1].own.is_empty());
        assert_eq!(MilterEntry::list("{}"), []);
        let braces = MilterEntry::list("{ unix:a, { default_action = accept } }").remove(0);
        assert_eq!((braces.own["default_action"].as_str(), braces.flaw), ("accept", None));
    }

    #[test]
    fn entries_that_postfix_does_not_take() {
        for (entry, flaw) in [
            ("{ unix:a, default_action = accept }", "is no name=value"),
            ("{ unix:a, default_acton=accept }", "no setting default_acton"),
            ("{ unix:a, content_timeout=0 }", "content_timeout cannot be \"0\""),
            ("{ unix:a, connect_timeout=1x }", "connect_timeout cannot be \"1x\""),
            ("{ unix:a, accept }", "is no name=value"),
            ("{ unix:a, default_action=accept", "brace is missing"),
        ] {
            let found = MilterEntry::list(entry).remove(0).flaw.expect(entry);
            assert!(found.contains(flaw), "{entry}: {found}");
        }
    }

    #[test]
    fn times_as_postfix_writes_them() {
        for (text, expected) in [
            ("0", Some(0)),
            ("5", Some(5)),
            ("30s", Some(30)),
            ("2m", Some(120)),
            ("1h", Some(3600)),
            ("x", None),
        ] {
            assert_eq!(seconds(text).map(|time| time.as_secs()), expected);
        }
    }

    #[test]
    fn a_tool_gives_its_reason_last() {
        for (message, expected) in [
            (
                "postmap: warning: connect: no\npostmap: fatal: open database /x.db: No such file",
                "open database /x.db: No such file",
            ),
            ("postmap: warning: table tcp:h:1 lookup error", "table tcp:h:1 lookup error"),
            ("odd", "odd"),
        ] {
            assert_eq!(last_words(message), expected);
        }
    }

    #[test]
    fn domains_match_as_postfix_matches_them() {
        let domain = "mail.crm.Severa.test";
        for (pattern, styles) in [
            ("mail.crm.severa.test", &[Style::Name, Style::Below, Style::Parents][..]),
            ("MAIL.crm.severa.TEST", &[Style::Name, Style::Below, Style::Parents]),
            ("crm.severa.test", &[Style::Parents]),
            ("SEVERA.test", &[Style::Parents]),
            ("test", &[Style::Parents]),
            // Only where no parent matches a subdomain anyway.
            (".crm.severa.test", &[Style::Below]),
            (".severa.TEST", &[Style::Below]),
            (".mail.crm.severa.test", &[]),
            ("a.mail.crm.severa.test", &[]),
            ("evera.test", &[]),
            (".evera.test", &[]),
            (".", &[]),
            ("", &[]),
        ] {
            for style in [Style::Name, Style::Below, Style::Parents] {
                assert_eq!(style.matches(pattern, domain), styles.contains(&style), "{pattern} {style:?}");
            }
        }
    }

    #[test]
    fn each_list_has_its_style() {
        let parents = ["relay_domains".to_owned(), "mydestination".to_owned()];
        for (parameter, expected) in [
            ("relay_domains", Style::Parents),
            ("smtpd_access_maps", Style::Below),
            // Lists of names, whatever is said of parents.
            ("mydestination", Style::Name),
            ("virtual_alias_domains", Style::Name),
            ("virtual_mailbox_domains", Style::Name),
        ] {
            assert_eq!(Style::of(parameter, &parents), expected, "{parameter}");
        }
    }
}
