//! What systemd knows of the service's unit: its user, and the secrets that it hands over (systemd.exec(5)).
//!
//! In: `systemctl show` and `systemctl cat`. Out: a [`Unit`]; none where there is no systemd, or no such unit.
//! Why both: `show` of systemd 252 says `[unprintable]` of `LoadCredential`.

use crate::config::DEFAULT_PATH;
use nix::unistd::{Gid, Group, Uid, User};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The unit.
pub(super) const UNIT: &str = "activity-milter.service";

/// What is asked of it.
const PROPERTIES: &str = "LoadState,User,Group,SupplementaryGroups,LoadCredential,LoadCredentialEncrypted,ProtectSystem,\
    ProtectHome,ReadWritePaths,StateDirectory,CacheDirectory,LogsDirectory,RuntimeDirectory,ExecStart";

/// As whom it works, and what it is given.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) user: Option<Uid>,
    pub(super) group: Option<Gid>,
    /// Groups that it has besides its user's.
    pub(super) groups: Vec<Gid>,
    pub(super) credentials: BTreeMap<String, Credential>,
    /// Whether all is read-only for it but what it names (`ProtectSystem=strict`), and what it names.
    is_strict: bool,
    writable: Vec<PathBuf>,
    /// Whether it sees no home (`ProtectHome=`).
    is_homeless: bool,
    /// The configuration that its command names, if it names one.
    config: Option<PathBuf>,
}

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Credential {
    /// A file; a relative path is looked for in the stores of credentials.
    File(PathBuf),
    /// A file that systemd-creds(1) has encrypted.
    Encrypted(PathBuf),
    /// The unit itself.
    Text(String),
}

impl Unit {
    /// Asks systemd.
    pub(super) fn ask() -> Option<Self> {
        let shown = systemctl(&["show", &format!("--property={PROPERTIES}"), UNIT])?;
        let files = systemctl(&["cat", UNIT]).unwrap_or_default();
        // Where systemd does not run, systemctl says so on standard error alone.
        let is_there = shown.contains('=') && !shown.lines().any(|line| line == "LoadState=not-found");
        is_there.then(|| Self::read(&shown, &files))
    }

    /// Reads what `show` and `cat` say.
    fn read(shown: &str, files: &str) -> Self {
        let mut unit = Self::default();
        for line in joined(files) {
            unit.take(&line);
        }
        for line in shown.lines() {
            let Some((key, value)) = line.split_once('=') else { continue };
            match key {
                "User" => unit.user = user(value),
                "Group" => unit.group = group(value),
                "ProtectSystem" => unit.is_strict = value == "strict",
                "ProtectHome" => unit.is_homeless = matches!(value, "yes" | "true" | "tmpfs"),
                "ReadWritePaths" => unit.writes(value, Path::new("/")),
                "StateDirectory" => unit.writes(value, Path::new("/var/lib")),
                "CacheDirectory" => unit.writes(value, Path::new("/var/cache")),
                "LogsDirectory" => unit.writes(value, Path::new("/var/log")),
                "RuntimeDirectory" => unit.writes(value, Path::new("/run")),
                "ExecStart" => {
                    let mut words = value.split_whitespace();
                    if words.any(|word| matches!(word, "-c" | "--config")) {
                        unit.config = words.next().map(PathBuf::from);
                    }
                }
                "SupplementaryGroups" => unit.groups = value.split_whitespace().filter_map(group).collect(),
                "LoadCredential" | "LoadCredentialEncrypted" if !value.starts_with('[') => {
                    for one in value.split_whitespace() {
                        unit.take(&format!("{key}={one}"));
                    }
                }
                _ => {}
            }
        }
        unit
    }

    fn writes(&mut self, paths: &str, below: &Path) {
        let whole = |path: &str| below.join(path.trim_start_matches(['-', '+']));
        self.writable.extend(paths.split_whitespace().map(whole));
    }

    /// True if this is the configuration that it works with.
    fn works_with(&self, config: &Path) -> bool {
        self.config.as_deref().unwrap_or(Path::new(DEFAULT_PATH)) == config
    }

    /// Why the unit, which works with this configuration, cannot write to a path whoever its user is; and what would do.
    pub(super) fn forbids_writing(&self, config: &Path, path: &Path) -> Option<String> {
        let is_fenced = self.is_strict && !self.writable.iter().any(|writable| path.starts_with(writable));
        (self.works_with(config) && (is_fenced || self.hides(path))).then(|| {
            format!(
                "{}: the unit keeps the service from writing there: `systemctl edit {UNIT}`, and below [Service] write ReadWritePaths={}",
                path.display(),
                path.parent().unwrap_or(path).display()
            )
        })
    }

    /// True for what `ProtectHome=` hides.
    fn hides(&self, path: &Path) -> bool {
        self.is_homeless && ["/home", "/root", "/run/user"].iter().any(|home| path.starts_with(home))
    }

    /// Why the unit, which works with this configuration, cannot read a file whoever its user is; and what would do.
    pub(super) fn forbids_reading(&self, config: &Path, path: &Path) -> Option<String> {
        (self.works_with(config) && self.hides(path)).then(|| {
            format!("{}: the unit hides homes from the service (ProtectHome=): put the file elsewhere, below /etc/activity-milter say", path.display())
        })
    }

    /// A line of the unit's files. An empty value forgets those before.
    fn take(&mut self, line: &str) {
        let Some((key, value)) = line.split_once('=') else { return };
        let make: fn(&str) -> Credential = match key.trim() {
            "LoadCredential" => |source| Credential::File(source.into()),
            "LoadCredentialEncrypted" => |source| Credential::Encrypted(source.into()),
            "SetCredential" => |text| Credential::Text(text.to_owned()),
            _ => return,
        };
        let value = value.trim().trim_matches(['"', '\'']);
        if value.is_empty() {
            let kind = std::mem::discriminant(&make(""));
            self.credentials.retain(|_, credential| std::mem::discriminant(credential) != kind);
            return;
        }
        // Without a source it is looked for in the stores, by its name.
        let (name, source) = value.split_once(':').unwrap_or((value, value));
        self.credentials.insert(name.to_owned(), make(source));
    }
}

/// Lines without comments; a backslash at the end goes on in the next.
fn joined(files: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for line in files.lines().filter(|line| !line.trim_start().starts_with(['#', ';'])) {
        let last = lines.last_mut();
        match (line.strip_suffix('\\'), last) {
            (Some(begun), Some(last)) => *last += begun,
            (None, Some(last)) => {
                *last += line;
                lines.push(String::new());
            }
            (_, None) => {}
        }
    }
    lines
}

fn systemctl(arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("systemctl");
    command.args(arguments).stdin(Stdio::null()).stderr(Stdio::null());
    String::from_utf8(command.output().ok()?.stdout).ok()
}

fn user(name: &str) -> Option<Uid> {
    let named = User::from_name(name.trim()).ok().flatten().map(|user| user.uid);
    named.or_else(|| name.trim().parse().ok().map(Uid::from_raw))
}

fn group(name: &str) -> Option<Gid> {
    let named = Group::from_name(name.trim()).ok().flatten().map(|group| group.gid);
    named.or_else(|| name.trim().parse().ok().map(Gid::from_raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_says_who_it_is_and_what_it_is_given() {
        let shown = "LoadState=loaded\nUser=nobody\nGroup=\nSupplementaryGroups=0 no-such-group\n\
                     LoadCredential=[unprintable]\n";
        let files = "# /lib/systemd/system/activity-milter.service\n[Service]\nLoadCredential=old:/old\n\
                     # a drop-in\n[Service]\nLoadCredential=\nLoadCredential=token:/etc/am/token\n\
                     #LoadCredential=none:/none\nLoadCredential = \"signing:\\\n/etc/am/signing\"\n\
                     LoadCredentialEncrypted=oauth:/etc/am/oauth.cred\nLoadCredential=stored\nSetCredential=text:s3cret\n";
        let unit = Unit::read(shown, files);
        assert_eq!((unit.user, unit.group), (Some(Uid::from_raw(65534)), None));
        assert_eq!(unit.groups, [Gid::from_raw(0)]);
        let expected = [
            ("oauth", Credential::Encrypted("/etc/am/oauth.cred".into())),
            ("signing", Credential::File("/etc/am/signing".into())),
            ("stored", Credential::File("stored".into())),
            ("text", Credential::Text("s3cret".to_owned())),
            ("token", Credential::File("/etc/am/token".into())),
        ];
        assert_eq!(unit.credentials, expected.map(|(name, from)| (name.to_owned(), from)).into());
        // The package's unit, and one with its own configuration.
        let shown = "ProtectSystem=strict\nProtectHome=yes\nReadWritePaths=-/var/spool/postfix/activity-milter\n\
                     StateDirectory=activity-milter\nRuntimeDirectory=\n";
        let (unit, etc) = (Unit::read(shown, ""), Path::new(DEFAULT_PATH));
        for (path, is_writable) in [
            ("/var/lib/activity-milter/queue.db", true),
            ("/var/spool/postfix/activity-milter", true),
            ("/var/lib/activity-milter2/queue.db", false),
            ("/srv/queue/queue.db", false),
        ] {
            assert_eq!(unit.forbids_writing(etc, Path::new(path)).is_none(), is_writable, "{path}");
        }
        assert!(unit.forbids_writing(Path::new("/x.toml"), Path::new("/srv/q")).is_none(), "none of its own");
        assert!(unit.forbids_reading(etc, Path::new("/home/anna/token")).is_some());
        assert!(unit.forbids_reading(etc, Path::new("/etc/token")).is_none());
        let own = format!("{shown}ExecStart={{ path=/a ; argv[]=/a -c /x.toml serve ; }}\n");
        let forbidden =
            Unit::read(&own, "").forbids_writing(Path::new("/x.toml"), Path::new("/srv/q/queue.db"));
        assert!(forbidden.is_some_and(|text| text.ends_with("write ReadWritePaths=/srv/q")));
        let newer = "User=0\nLoadCredential=token:/etc/am/token b:/b\n";
        let unit = Unit::read(newer, "");
        assert_eq!((unit.user, unit.credentials.len()), (Some(Uid::from_raw(0)), 2));
    }
}
