//! What a Postfix instance says of itself, asked of its own tools: `postconf(1)` and `postmap(1)`.
//!
//! In: a configuration directory, or none for the system's. Out: [`Settings`], with the words Postfix itself would use.
//! Promise: nothing is changed and nothing of Postfix need run; what a table says is looked up, not guessed.
//! Fails: [`SettingsError`] if the tools are missing or do not like the configuration.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::{Command, Output},
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
            Self::Record { .. } => false,
        }
    }
}

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
            return Err(SettingsError::Failed { program: "postconf", message });
        }
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }

    /// `name = value` of each line; names of `postconf -P` have their service before them.
    fn pairs(&self, args: &[&str]) -> Result<BTreeMap<String, String>, SettingsError> {
        let pair = |line: String| {
            let (name, value) = line.split_once('=')?;
            Some((name.trim().to_owned(), value.trim().to_owned()))
        };
        Ok(self.lines(args)?.into_iter().filter_map(pair).collect())
    }

    /// All entries of a table; none if its kind cannot list them.
    fn list(&self, table: &str) -> Result<Option<Vec<(String, String)>>, SettingsError> {
        let output = self.run("postmap", &["-s", table])?;
        let text = String::from_utf8_lossy(&output.stdout);
        let entry =
            |line: &str| line.split_once('\t').map(|(k, v)| (k.trim().to_owned(), v.trim().to_owned()));
        Ok(output.status.success().then(|| text.lines().filter_map(entry).collect()))
    }

    /// What a table has for a key.
    fn look_up(&self, key: &str, table: &str) -> Result<Option<String>, SettingsError> {
        let output = self.run("postmap", &["-q", key, table])?;
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
        Ok(Self { tools, main, raw, written, services, overrides, raw_overrides })
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

    /// The first of `keys` that one of the tables in a parameter has, tables in order as Postfix asks them.
    pub(super) fn look_up(&self, parameter: &str, keys: &[String]) -> Result<Option<String>, SettingsError> {
        let tables = split(self.main(parameter));
        for key in keys {
            for table in tables.iter().filter(|table| table.contains(':')) {
                if let Some(value) = self.tools.look_up(key, table)? {
                    return Ok(Some(value));
                }
            }
        }
        Ok(None)
    }

    /// What one table has for a key.
    pub(super) fn ask(&self, key: &str, table: &str) -> Result<Option<String>, SettingsError> {
        self.tools.look_up(key, table)
    }

    /// True if a domain list (`relay_domains`, say) has the domain: DOMAIN, .DOMAIN, /FILE, TYPE:TABLE, !PATTERN.
    pub(super) fn has_domain(&self, parameter: &str, domain: &str) -> Result<bool, SettingsError> {
        let parents = split(self.main("parent_domain_matches_subdomains")).contains(&parameter.to_owned());
        self.list_has(&split(self.main(parameter)), domain, parents)
    }

    fn list_has(&self, list: &[String], domain: &str, parents: bool) -> Result<bool, SettingsError> {
        for pattern in list {
            let (negated, pattern) = match pattern.strip_prefix('!') {
                Some(rest) => (true, rest),
                None => (false, pattern.as_str()),
            };
            let matched = if pattern.starts_with('/') {
                let text = std::fs::read_to_string(pattern).unwrap_or_default();
                let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
                self.list_has(&lines.flat_map(split).collect::<Vec<_>>(), domain, parents)?
            } else if pattern.contains(':') {
                self.tools.look_up(domain, pattern)?.is_some()
            } else {
                matches(pattern, domain, parents)
            };
            if matched {
                return Ok(!negated);
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
            if pattern.starts_with('/') {
                let text = std::fs::read_to_string(pattern).unwrap_or_default();
                let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
                self.gather(&lines.flat_map(split).collect::<Vec<_>>(), named, hidden)?;
            } else if pattern.contains(':') {
                match self.entries(pattern)? {
                    Some(entries) => named.extend(entries.into_iter().map(|(key, _)| key)),
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
            None => self.tools.list(table.strip_prefix("proxy:").unwrap_or(table)),
        }
    }
}

/// True if a pattern without table or file is that domain, or a parent of it. An IDN's two forms are two names: Postfix
/// knows no better.
fn matches(pattern: &str, domain: &str, parents: bool) -> bool {
    let (pattern, domain) = (pattern.to_lowercase(), domain.to_lowercase());
    let (bare, below) = match pattern.strip_prefix('.') {
        Some(bare) => (bare, true),
        None => (pattern.as_str(), false),
    };
    let is_parent = domain.strip_suffix(bare).is_some_and(|head| head.ends_with('.'));
    if below { is_parent } else { bare == domain || (parents && is_parent) }
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

/// A milter in `smtpd_milters`: where it is, and settings of its own (`{ endpoint, name=value, … }`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MilterEntry {
    /// `unix:path` or `inet:host:port`.
    pub(super) endpoint: String,
    own: BTreeMap<String, String>,
}

impl MilterEntry {
    /// The milters of a list.
    pub(super) fn list(value: &str) -> Vec<Self> {
        split(value).iter().filter_map(|element| Self::parse(element)).collect()
    }

    fn parse(element: &str) -> Option<Self> {
        let inner = element.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(element);
        let mut words = split(inner).into_iter();
        let endpoint = words.next()?;
        let own =
            words.filter_map(|w| w.split_once('=').map(|(n, v)| (n.trim().to_owned(), v.trim().to_owned())));
        Some(Self { endpoint, own: own.collect() })
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
    }

    #[test]
    fn domains_match_as_postfix_matches_them() {
        let domain = "mail.Severa.test";
        for (pattern, parents, expected) in [
            ("mail.severa.test", false, true),
            ("MAIL.severa.TEST", false, true),
            ("severa.test", false, false),
            ("severa.test", true, true),
            (".severa.test", false, true),
            (".mail.severa.test", false, false),
            ("evera.test", true, false),
            ("", false, false),
        ] {
            assert_eq!(matches(pattern, domain, parents), expected, "{pattern} {parents}");
        }
    }
}
