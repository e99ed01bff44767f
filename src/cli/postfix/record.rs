//! What `postfix print` changed in a Postfix, and what was there before: written by its script, read by the next print
//! and by `--remove`.
//!
//! In: `activity-milter.saved/changes` beside `main.cf`. Out: for each setting its oldest value and the one we gave it.
//! What somebody else wrote between two prints counts as what was there before, without what we had put in.
//! Promise: a line is never taken for another; what is not understood counts as not there. A print's lines stand between
//! `begin OWNER` and `end`, and without the `end` they count as not there: a full disk stopped that script before it changed
//! anything. The owner is the queue, which no two activity-milters share. `--remove` writes no changes: cut off, it finds
//! at the next try what it found at the first.

use super::{
    script::dense,
    settings::{MilterEntry, SettingsError, inline, split},
};
use crate::config::Config;
use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt, fs, io,
    path::{Path, PathBuf},
};

/// Where copies and changes lie, below Postfix's configuration directory.
pub(super) const DIRECTORY: &str = "activity-milter.saved";

/// The file with the changes.
pub(super) const CHANGES: &str = "changes";

/// A setting by its place: `relay_domains` of main.cf, `smtp/inet/smtpd_milters` of master.cf.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Name {
    Main(String),
    Service(String),
}

impl Name {
    /// The parameter alone.
    pub(super) fn parameter(&self) -> &str {
        match self {
            Self::Main(name) => name,
            Self::Service(name) => name.rsplit('/').next().unwrap_or(name),
        }
    }

    fn parse(file: &str, name: &str) -> Option<Self> {
        match file {
            "main.cf" => Some(Self::Main(name.to_owned())),
            "master.cf" => Some(Self::Service(name.to_owned())),
            _ => None,
        }
    }

    /// `main.cf` or `master.cf`.
    pub(super) fn file(&self) -> &'static str {
        match self {
            Self::Main(_) => "main.cf",
            Self::Service(_) => "master.cf",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Main(name) | Self::Service(name)) = self;
        f.write_str(name)
    }
}

/// A value before or after: as it is written, or not set at all.
pub(super) type Value = Option<String>;

/// `name = value`, or that it is not set.
pub(super) fn said(name: &Name, value: &Value) -> String {
    match value {
        Some(value) => format!("{name} = {value}").trim_end().to_owned(),
        None => format!("{name} (not set)"),
    }
}

/// Whose a change is.
pub(super) fn owner(config: &Config) -> String {
    // A line is a line.
    config.queue.path.display().to_string().replace(char::is_control, "?")
}

/// Says that what an owner put in is out again; the point, that the line is whole.
pub(super) fn gone(owner: &str) -> String {
    format!("gone {owner}.")
}

/// A line of the file.
pub(super) fn line(word: &str, name: &Name, value: &Value) -> String {
    format!("{word} {}: {}", name.file(), said(name, value))
}

/// Settings that are lists, whose elements tell whether they are ours.
pub(super) const LISTS: [&str; 10] = [
    "smtpd_milters",
    "non_smtpd_milters",
    "transport_maps",
    "sender_bcc_maps",
    "recipient_bcc_maps",
    "relay_recipient_maps",
    "virtual_mailbox_maps",
    "relay_domains",
    "smtp_header_checks",
    "header_checks",
];

/// What the file says of one setting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// Before our first change, or as somebody else wrote it after that.
    pub(super) was: Value,
    /// After our last one.
    pub(super) now: Value,
}

/// All changes.
#[derive(Debug, Default)]
pub(super) struct Record {
    changes: BTreeMap<Name, Changed>,
    /// Another activity-milter's.
    others: BTreeMap<Name, Changed>,
    /// Whose it is.
    pub(super) owner: String,
    /// Copies of main.cf and master.cf, oldest first.
    pub(super) copies: Vec<PathBuf>,
}

impl Record {
    /// Reads what there is for a configuration directory, and of that owner.
    pub(super) fn read(config_directory: &Path, owner: String) -> Result<Self, SettingsError> {
        let directory = config_directory.join(DIRECTORY);
        let path = directory.join(CHANGES);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(SettingsError::Record { path, error }),
        };
        let names = fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_copy = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("main.cf.") || name.starts_with("master.cf.")
        };
        let mut copies: Vec<PathBuf> = names.filter(is_copy).collect();
        copies.sort();
        let text = closed(&text);
        let (ours, others) =
            (|of: &str| of.is_empty() || of == owner, |of: &str| !of.is_empty() && of != owner);
        Ok(Self { changes: changes(&text, ours), others: changes(&text, others), owner, copies })
    }

    /// What was changed of a setting.
    pub(super) fn of(&self, name: &Name) -> Option<&Changed> {
        self.changes.get(name)
    }

    /// Every setting that was changed.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Name, &Changed)> {
        self.changes.iter()
    }

    /// True if another activity-milter has changed this Postfix too.
    pub(super) fn is_shared(&self) -> bool {
        !self.others.is_empty()
    }

    /// True if another activity-milter put an entry into a list of milters.
    pub(super) fn is_of_others(&self, endpoint: &str) -> bool {
        let added = self.others.iter().filter(|(name, _)| name.parameter() == "smtpd_milters");
        let mut added = added.flat_map(|(_, changed)| MilterEntry::list(&changed.added().join(", ")));
        added.any(|entry| entry.endpoint == endpoint)
    }

    /// The elements of a list that we put in, as a list.
    pub(super) fn added(&self, name: &Name) -> String {
        self.of(name).map_or(String::new(), |changed| changed.added().join(", "))
    }

    /// True if an element of a list is one that we put in.
    pub(super) fn has_added(&self, name: &Name, element: &str) -> bool {
        self.of(name).is_some_and(|changed| changed.added().contains(&dense(element)))
    }

    /// What stands in the inline tables that we put in.
    pub(super) fn entries(&self, name: &Name) -> Vec<(String, String)> {
        let added = self.of(name).map(Changed::added).unwrap_or_default();
        added.iter().filter_map(|element| inline(element)).flatten().collect()
    }

    /// True if we gave a setting this value.
    pub(super) fn is_from_us(&self, name: &Name, value: &str) -> bool {
        self.of(name).is_some_and(|changed| changed.now.as_deref() == Some(value))
    }
}

impl Changed {
    /// The elements that we put in. A `$name` is never ours: it comes from a default.
    fn added(&self) -> Vec<String> {
        // A service's list is written without blanks.
        let elements = |value: &Value| split(&dense(value.as_deref().unwrap_or_default()));
        let before = elements(&self.was);
        let new = elements(&self.now).into_iter();
        new.filter(|element| !element.starts_with('$') && !before.contains(element)).collect()
    }

    /// The next print found this: what it was before all of ours.
    fn found(&mut self, name: &Name, value: Value) {
        // Ours, or a script that was cut off and runs again.
        if value == self.now || value == self.was {
            return;
        }
        self.was = match value {
            Some(value) if LISTS.contains(&name.parameter()) => self.without_ours(value),
            value => value,
        };
    }

    fn without_ours(&self, value: String) -> Value {
        let ours = self.added();
        let is_ours = |element: &String| ours.contains(&dense(element));
        let elements = split(&value);
        let kept: Vec<String> = elements.iter().filter(|element| !is_ours(element)).cloned().collect();
        match kept.len() {
            all if all == elements.len() => Some(value),
            0 if self.was.is_none() => None,
            _ => Some(kept.join(", ")),
        }
    }
}

/// Lines that count, and whose they are; of nobody are those of 0.2.0, which named none.
fn closed(text: &str) -> Vec<(&str, &str)> {
    let (mut lines, mut open) = (Vec::new(), None::<(&str, Vec<&str>)>);
    for line in text.lines() {
        if let Some(owner) = line.strip_prefix("begin ") {
            open = Some((owner, Vec::new()));
        } else if let Some(owner) = line.strip_prefix("gone ").and_then(|line| line.strip_suffix('.')) {
            lines.retain(|(of, _)| *of != owner);
        } else if line == "end" {
            let (owner, closed) = open.take().unwrap_or_default();
            lines.extend(closed.into_iter().map(|line| (owner, line)));
        } else {
            match &mut open {
                Some((_, lines)) => lines.push(line),
                None => lines.push(("", line)),
            }
        }
    }
    lines
}

fn changes(lines: &[(&str, &str)], of: impl Fn(&str) -> bool) -> BTreeMap<Name, Changed> {
    let mut changes = BTreeMap::<Name, Changed>::new();
    for (_, line) in lines.iter().filter(|(owner, _)| of(owner)) {
        let Some((word, name, value)) = parse(line) else { continue };
        match (word, changes.entry(name)) {
            ("was", Entry::Vacant(entry)) => drop(entry.insert(Changed { was: value, now: None })),
            ("was", Entry::Occupied(mut entry)) => {
                let name = entry.key().clone();
                entry.get_mut().found(&name, value);
            }
            (_, entry) => entry.or_default().now = value,
        }
    }
    changes
}

fn parse(line: &str) -> Option<(&str, Name, Value)> {
    let (word, rest) = line.split_once(' ').filter(|(word, _)| ["was", "now"].contains(word))?;
    let (file, said) = rest.split_once(": ")?;
    if let Some(name) = said.strip_suffix(" (not set)") {
        return Some((word, Name::parse(file, name)?, None));
    }
    let (name, value) = said.split_once(" =")?;
    Some((word, Name::parse(file, name)?, Some(value.trim().to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_value_stays_and_the_newest_is_ours() {
        let name = Name::Main("relay_domains".to_owned());
        let of_service = Name::Service("smtp/inet/smtpd_milters".to_owned());
        let text = [
            "# a comment".to_owned(),
            line("was", &name, &Some("a = b, (not set)x".to_owned())),
            line("now", &name, &Some("c".to_owned())),
            line("was", &name, &Some("c".to_owned())),
            line("now", &name, &Some(String::new())),
            line("was", &of_service, &None),
            line("now", &of_service, &Some("{unix:a}".to_owned())),
        ];
        let found = changes(&closed(&text.join("\n")), str::is_empty);
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(found[&name], Changed { was: some("a = b, (not set)x"), now: some("") });
        let list = Name::Service("x/inet/smtpd_milters".to_owned());
        let changes = BTreeMap::from([(
            list.clone(),
            Changed {
                was: some("{ inet:h:1, x=y }, inet:h:2"),
                now: some("{inet:h:1,x=y},inet:h:2,{unix:a,x=y}"),
            },
        )]);
        let record = Record { changes, ..Record::default() };
        assert_eq!((record.added(&list), record.added(&name)), ("{unix:a,x=y}".to_owned(), String::new()));
        assert_eq!(found[&of_service], Changed { was: None, now: some("{unix:a}") });
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn what_is_not_whole_does_not_count_and_everybody_has_his_own() {
        let text = "was main.cf: a = 1\nnow main.cf: a = 2\n\nbegin /q\nwas main.cf: a = els\nbegin /q\nwas main.cf: a = 2\n\
            now main.cf: a = 3\nend\n\nbegin /b\nwas main.cf: a = 3\nnow main.cf: a = 4\nend\nbegin /q\nnow main.cf: a = 5";
        let value = |text: &str, owner: &str| {
            let found = changes(&closed(text), |of| of == owner || of.is_empty());
            let changed = found.into_values().next().unwrap_or_default();
            (changed.was.unwrap_or_default(), changed.now.unwrap_or_default())
        };
        let of = |was: &str, now: &str| (was.to_owned(), now.to_owned());
        assert_eq!((value(text, "/q"), value(text, "/b")), (of("1", "3"), of("3", "4")));
        // Also the line that says that one of them is gone.
        let cut = format!("{}\ngone /", text.replace(" = 5", " = 5\nend"));
        assert_eq!(value(&cut, "/q"), of("1", "5"));
        let gone = format!("{cut}\n{}\n", gone("/q"));
        assert_eq!((value(&gone, "/q"), value(&gone, "/b")), (of("1", "2"), of("3", "4")));
    }

    #[test]
    fn what_somebody_wrote_between_two_prints_was_there_before() {
        let list = "{ inet:h:1, x=y }, { unix:a, x=y }";
        for (parameter, lines, expected) in [
            // Two lists that grew, one that was put back, one that was taken away, and a script that ran twice.
            (
                "relay_domains",
                [Some("a"), Some("a, ours"), Some("a, ours, b"), Some("a, ours, b, two")],
                Some("a, b"),
            ),
            ("relay_domains", [Some("a"), Some("a, ours"), Some("a, b"), Some("a, b, ours")], Some("a, b")),
            (
                "relay_domains",
                [None, Some("$mydestination, ours"), Some("$mydestination, ours, b"), Some("x")],
                Some("$mydestination, b"),
            ),
            (
                "transport_maps",
                [Some("hash:/t"), Some("inline:{ { o = x } }, hash:/t"), None, Some("inline:{ { o = x } }")],
                None,
            ),
            ("relay_domains", [Some("a"), Some("a, ours"), Some("a"), Some("a, ours")], Some("a")),
            ("relay_domains", [Some("a"), Some("a, ours"), Some("a, ours"), Some("a, ours, two")], Some("a")),
            (
                "smtpd_milters",
                [None, Some("{ unix:a, x=y }"), Some(list), Some("inet:h:2")],
                Some("{ inet:h:1, x=y }"),
            ),
            // What is no list is what it is.
            (
                "message_drop_headers",
                [None, Some("content-length"), Some("bcc, content-length"), Some("content-length")],
                Some("bcc, content-length"),
            ),
            ("in_flow_delay", [None, Some("0"), Some("3s"), Some("0")], Some("3s")),
        ] {
            let name = Name::Main(parameter.to_owned());
            let value = |text: Option<&str>| text.map(str::to_owned);
            let text: Vec<String> = lines
                .iter()
                .zip(["was", "now", "was", "now"])
                .map(|(v, word)| line(word, &name, &value(*v)))
                .collect();
            let found = changes(&closed(&text.join("\n")), str::is_empty);
            assert_eq!(found[&name], Changed { was: value(expected), now: value(lines[3]) }, "{text:?}");
        }
    }
}
