//! What systemd knows of the service's unit: its user, and the secrets that it hands over (systemd.exec(5)).
//!
//! In: `systemctl show` and `systemctl cat`. Out: a [`Unit`]; none where there is no systemd, or no such unit.
//! Why both: `show` of systemd 252 says `[unprintable]` of `LoadCredential`.

use nix::unistd::{Gid, Group, Uid, User};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::{Command, Stdio},
};

/// The unit.
pub(super) const UNIT: &str = "activity-milter.service";

/// As whom it works, and what it is given.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) user: Option<Uid>,
    pub(super) group: Option<Gid>,
    /// Groups that it has besides its user's.
    pub(super) groups: Vec<Gid>,
    pub(super) credentials: BTreeMap<String, Credential>,
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
        let properties =
            "--property=LoadState,User,Group,SupplementaryGroups,LoadCredential,LoadCredentialEncrypted";
        let shown = systemctl(&["show", properties, UNIT])?;
        let files = systemctl(&["cat", UNIT]).unwrap_or_default();
        (!shown.lines().any(|line| line == "LoadState=not-found")).then(|| Self::read(&shown, &files))
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
        let newer = "User=0\nLoadCredential=token:/etc/am/token b:/b\n";
        let unit = Unit::read(newer, "");
        assert_eq!((unit.user, unit.credentials.len()), (Some(Uid::from_raw(0)), 2));
    }
}
