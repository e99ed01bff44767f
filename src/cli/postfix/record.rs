//! What `postfix print` changed in a Postfix, and what was there before: written by its script, read by the next print
//! and by `--remove`.
//!
//! In: `activity-milter.saved/changes` beside `main.cf`. Out: for each setting its oldest value and the one we gave it.
//! What somebody else wrote between two prints counts as what was there before, without what we had put in.
//! Promise: a line is never taken for another; what is not understood counts as not there. A print's lines stand between
//! `begin OWNER` and `end`, and without the `end` they count as not there: a full disk stopped that script before it changed
//! anything. `--remove` writes no changes: cut off, it finds at the next try what it found at the first.
//! The owner is the queue, which no two activity-milters share; whose queue has moved is known by his sockets.
//! What is ours is what our configuration named when that was printed (`ours`), never what stood beside it.

use super::{
    print::endpoint,
    probe::Endpoint,
    script::dense,
    settings::{MilterEntry, QUEUE_DIRECTORY, Settings, SettingsError, inline, split, with_entries},
    ways::{forms, is_ours, takes_utf8},
};
use crate::config::Config;
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
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

    /// True for lists of milters.
    fn is_of_milters(&self) -> bool {
        self.parameter().ends_with("smtpd_milters")
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
fn owner(config: &Config) -> String {
    // A line is a line.
    config.queue.path.display().to_string().replace(char::is_control, "?")
}

/// Says that what an owner put in is out again; the point, that the line is whole.
fn gone(owner: &str) -> String {
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

/// How the lines of a block begin.
const FIRST: &str = "ours milter: ";

/// What a configuration names: whatever has one of these in it is that activity-milter's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Named {
    /// Its milter, as Postfix is told.
    milters: Vec<String>,
    /// Its LMTP listener, as a transport.
    ways: Vec<String>,
    /// Its integration domains.
    domains: Vec<String>,
}

impl Named {
    /// What a configuration names for a Postfix.
    fn of(settings: Option<&Settings>, config: &Config) -> Self {
        let queue_directory = settings.map_or(Path::new(QUEUE_DIRECTORY), Settings::queue_directory);
        let utf8 = settings.is_none_or(takes_utf8);
        Self {
            milters: vec![endpoint(&config.milter, queue_directory)],
            ways: config
                .lmtp
                .iter()
                .map(|lmtp| format!("lmtp:{}", endpoint(lmtp, queue_directory)))
                .collect(),
            domains: config.addressing.domains.iter().flat_map(|domain| forms(domain, utf8)).collect(),
        }
    }

    /// The lines that say so.
    fn lines(&self) -> Vec<String> {
        let say = |kind: &'static str, names: &[String]| {
            names.iter().map(|name| format!("ours {kind}: {name}")).collect::<Vec<_>>()
        };
        [say("milter", &self.milters), say("way", &self.ways), say("domain", &self.domains)].concat()
    }

    /// What lines say; of a record without them, what its changes show.
    fn read(lines: &[&str]) -> Self {
        let mut named = Self::default();
        for (kind, name) in lines.iter().filter_map(|line| line.strip_prefix("ours ")?.split_once(": ")) {
            match kind {
                "milter" => named.milters.push(name.to_owned()),
                "way" => named.ways.push(name.to_owned()),
                "domain" => named.domains.push(name.to_owned()),
                _ => {}
            }
        }
        if named != Self::default() {
            return named;
        }
        let mut was = BTreeMap::<Name, Value>::new();
        for (word, name, value) in lines.iter().filter_map(|line| parse(line)) {
            if word == "was" {
                was.insert(name, value);
                continue;
            }
            let before = was.get(&name).cloned().flatten();
            let added = new_elements(&before, &value);
            match name.parameter() {
                // Ours comes last; before it stands what was taken over from main.cf.
                "smtpd_milters" => {
                    let entry = added.last().and_then(|element| MilterEntry::list(element).pop());
                    named.milters.extend(entry.map(|entry| entry.endpoint));
                }
                "transport_maps" => {
                    named.ways.extend(added.iter().filter_map(|e| inline(e)).flatten().map(|(_, way)| way));
                }
                "relay_domains" => named.domains.extend(added),
                "relay_transport" => named.ways.extend(value.filter(|way| way.starts_with("lmtp:"))),
                _ => {}
            }
        }
        named
    }

    fn add(&mut self, other: Self) {
        self.milters.extend(other.milters);
        self.ways.extend(other.ways);
        self.domains.extend(other.domains);
    }

    fn has_milter(&self, element: &str) -> bool {
        MilterEntry::list(element).iter().any(|entry| self.milters.contains(&entry.endpoint))
    }

    /// True if a configuration has one of these sockets: no two that live can share one.
    fn shares_socket(&self, settings: &Settings, config: &Config) -> bool {
        let milter = self.milters.iter().any(|milter| is_ours(settings, &config.milter, milter));
        let is_way = |way: &String| {
            let nexthop = way.split_once(':').map_or("", |(_, nexthop)| nexthop);
            config.lmtp.as_ref().is_some_and(|lmtp| is_ours(settings, lmtp, nexthop))
        };
        milter || self.ways.iter().any(is_way)
    }

    /// True if it is that of a configuration whose queue has moved and whose sockets are others now: the queue is away,
    /// nobody answers, and a domain is the same.
    fn is_left_behind(&self, owner: &str, settings: &Settings, named: &Self) -> bool {
        let queue_directory = settings.queue_directory();
        let is_dead = |milter: &String| Endpoint::parse(milter).is_none_or(|e| e.is_dead(queue_directory));
        let shared = self.domains.iter().any(|domain| named.domains.contains(domain));
        shared && matches!(Path::new(owner).try_exists(), Ok(false)) && self.milters.iter().all(is_dead)
    }
}

/// The block that a script adds to the record: whose it is, and lines for what it names.
pub(super) fn heading(settings: Option<&Settings>, config: &Config) -> (String, Vec<String>) {
    let mut lines = Named::of(settings, config).lines();
    // What stands there before us, also if it is not changed now: what is added by hand after `check` is ours.
    lines.extend(settings.map(|settings| {
        let name = Name::Main("relay_domains".to_owned());
        let value = settings.written("relay_domains").map(str::to_owned);
        line("seen", &name, &value)
    }));
    (owner(config), lines)
}

/// All changes.
#[derive(Debug, Default)]
pub(super) struct Record {
    changes: BTreeMap<Name, Changed>,
    /// Another activity-milter's.
    others: BTreeMap<Name, Changed>,
    /// What is ours by name, now or once.
    named: Named,
    /// What is another activity-milter's.
    of_others: Named,
    /// Under which names we stand here.
    owners: Vec<String>,
    /// Under which names others stand here.
    other_owners: Vec<String>,
    /// Copies of main.cf and master.cf, oldest first.
    pub(super) copies: Vec<PathBuf>,
}

impl Record {
    /// Reads what there is beside a Postfix's settings, and of a configuration.
    pub(super) fn read(settings: &Settings, config: &Config) -> Result<Self, SettingsError> {
        let directory = settings.directory().join(DIRECTORY);
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
        let (mut owners, mut named) = (vec![owner(config)], Named::of(Some(settings), config));
        let (now, mut of_others, mut other_owners) = (named.clone(), Named::default(), Vec::new());
        let all: BTreeSet<&str> = text.iter().map(|(of, _)| *of).collect();
        for of in all {
            let lines: Vec<&str> = text.iter().filter(|line| line.0 == of).map(|line| line.1).collect();
            let theirs = Named::read(&lines);
            let last = lines.iter().rposition(|line| line.starts_with(FIRST)).unwrap_or(0);
            let last = Named::read(&lines[last..]);
            let known = of.is_empty() || of == owners[0];
            if known || last.shares_socket(settings, config) || last.is_left_behind(of, settings, &now) {
                owners.extend((!known).then(|| of.to_owned()));
                named.add(theirs);
            } else {
                of_others.add(theirs);
                other_owners.push(of.to_owned());
            }
        }
        let is_ours = |of: &str| of.is_empty() || owners.iter().any(|owner| owner == of);
        let others = changes(&text, |of| !is_ours(of), &of_others);
        let changes = changes(&text, is_ours, &named);
        Ok(Self { changes, others, named, of_others, owners, other_owners, copies })
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

    /// Lines that say that we are gone, and to those who stay, what was there before us: they may need it as it is, and give
    /// it back when they go.
    pub(super) fn farewell(&self) -> Vec<String> {
        let shared = self.changes.iter().filter(|(name, _)| self.others.contains_key(*name));
        let before: Vec<String> = shared.map(|(name, changed)| line("was", name, &changed.was)).collect();
        let to = |owner: &String| {
            [vec![format!("begin {owner}")], before.clone(), vec!["end".to_owned()]].concat()
        };
        self.other_owners.iter().flat_map(to).chain(self.owners.iter().map(|owner| gone(owner))).collect()
    }

    /// True if another activity-milter put an entry into a list of milters.
    pub(super) fn is_of_others(&self, endpoint: &str) -> bool {
        let added = self.others.iter().filter(|(name, _)| name.parameter() == "smtpd_milters");
        let mut added = added
            .flat_map(|(name, changed)| MilterEntry::list(&changed.added(name, &self.of_others).join(", ")));
        added.any(|entry| entry.endpoint == endpoint)
    }

    /// True if a milter is ours, or was.
    pub(super) fn is_milter(&self, endpoint: &str) -> bool {
        self.named.milters.iter().any(|milter| milter == endpoint)
    }

    /// True if a transport leads to our LMTP listener, or to where it was.
    pub(super) fn is_way(&self, transport: &str) -> bool {
        let is = |named: &Named| named.ways.iter().any(|way| way == transport);
        is(&self.named) && !is(&self.of_others)
    }

    /// True if a domain in `relay_domains` is there for us: it did not stand there before us, and no other activity-milter
    /// has it.
    pub(super) fn is_domain(&self, domain: &str) -> bool {
        let before = self.of(&Name::Main("relay_domains".to_owned()));
        before.is_some_and(|changed| {
            self.named.domains.iter().any(|ours| ours == domain)
                && !self.is_domain_of_others(domain)
                && !split(changed.was.as_deref().unwrap_or_default()).iter().any(|there| there == domain)
        })
    }

    /// True if another activity-milter here takes the mail of a domain.
    pub(super) fn is_domain_of_others(&self, domain: &str) -> bool {
        self.of_others.domains.iter().any(|theirs| theirs == domain)
    }

    /// Whose settings stand here too: the queues of other activity-milters.
    pub(super) fn other_owners(&self) -> &[String] {
        &self.other_owners
    }

    /// The domains of other activity-milters here.
    pub(super) fn domains_of_others(&self) -> &[String] {
        &self.of_others.domains
    }

    /// True if another activity-milter here needs a setting to be as it is.
    pub(super) fn is_needed_by_others(&self, name: &Name, value: &Value) -> bool {
        value.is_some() && self.others.get(name).is_some_and(|changed| changed.now == *value)
    }

    /// The elements of a list that we put in, as a list.
    pub(super) fn added(&self, name: &Name) -> String {
        self.of(name).map_or(String::new(), |changed| changed.added(name, &self.named).join(", "))
    }

    /// What we put into inline tables, entry by entry: a table may be somebody's with an entry of ours in it.
    pub(super) fn entries(&self, name: &Name) -> Vec<(String, String)> {
        self.of(name).map(Changed::entries).unwrap_or_default()
    }

    /// True if we gave a setting this value.
    pub(super) fn is_from_us(&self, name: &Name, value: &str) -> bool {
        self.of(name).is_some_and(|changed| changed.now.as_deref() == Some(value))
    }
}

impl Changed {
    /// The elements that we put in. Of milters, only our own: a list that takes the place of another has its milters too.
    fn added(&self, name: &Name, named: &Named) -> Vec<String> {
        let new = new_elements(&self.was, &self.now).into_iter();
        let is_ours = |element: &String| !name.is_of_milters() || named.has_milter(element);
        new.filter(is_ours).collect()
    }

    /// The entries of inline tables that we put in.
    fn entries(&self) -> Vec<(String, String)> {
        let before = entries_of(&self.was);
        entries_of(&self.now).into_iter().filter(|entry| !before.contains(entry)).collect()
    }

    /// The next print found this: what it was before all of ours.
    fn found(&mut self, name: &Name, value: Value, named: &Named) {
        // Ours, or a script that was cut off and runs again.
        if value == self.now || value == self.was {
            return;
        }
        self.was = match value {
            Some(value) if LISTS.contains(&name.parameter()) => self.without_ours(name, value, named),
            value => value,
        };
    }

    fn without_ours(&self, name: &Name, value: String, named: &Named) -> Value {
        let ours = self.added(name, named);
        let before = split(self.was.as_deref().unwrap_or_default());
        // What `check` has told somebody to put in is ours as well.
        let is_ours = |element: &String| {
            ours.contains(&dense(element))
                || name.is_of_milters() && named.has_milter(element)
                || name.parameter() == "relay_domains"
                    && named.domains.contains(element)
                    && !before.contains(element)
        };
        let elements = split(&value);
        let (theirs, entries) = (elements.iter().filter(|element| !is_ours(element)), self.entries());
        let is_way = |way: &String| name.parameter() == "transport_maps" && named.ways.contains(way);
        let stays = |entry: &(String, String)| !entries.contains(entry) && !is_way(&entry.1);
        let kept: Vec<String> = theirs.filter_map(|element| with_entries(element, stays)).collect();
        match kept.len() {
            _ if kept == elements => Some(value),
            0 if self.was.is_none() => None,
            _ => Some(kept.join(", ")),
        }
    }
}

/// The elements of a list that another one lacks. A `$name` is not one: it comes from a default. Nor is a table with an entry
/// that was there before: it is that one's, written anew.
fn new_elements(was: &Value, now: &Value) -> Vec<String> {
    // A service's list is written without blanks.
    let elements = |value: &Value| split(&dense(value.as_deref().unwrap_or_default()));
    let (before, entries) = (elements(was), entries_of(was));
    let is_anew = |element: &str| {
        inline(element).is_some_and(|table| table.iter().any(|entry| entries.contains(entry)))
    };
    elements(now).into_iter().filter(|e| !e.starts_with('$') && !before.contains(e) && !is_anew(e)).collect()
}

/// What the inline tables of a list have.
fn entries_of(value: &Value) -> Vec<(String, String)> {
    let elements = split(value.as_deref().unwrap_or_default());
    elements.iter().filter_map(|element| inline(element)).flatten().collect()
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

fn changes(lines: &[(&str, &str)], of: impl Fn(&str) -> bool, named: &Named) -> BTreeMap<Name, Changed> {
    let mut changes = BTreeMap::<Name, Changed>::new();
    for (_, line) in lines.iter().filter(|(owner, _)| of(owner)) {
        let Some((word, name, value)) = parse(line) else { continue };
        match (word, changes.entry(name)) {
            ("seen", Entry::Vacant(entry)) => {
                entry.insert(Changed { was: value.clone(), now: value });
            }
            ("seen", Entry::Occupied(_)) => {}
            ("was", Entry::Vacant(entry)) => drop(entry.insert(Changed { was: value, now: None })),
            ("was", Entry::Occupied(mut entry)) => {
                let name = entry.key().clone();
                entry.get_mut().found(&name, value, named);
            }
            (_, entry) => entry.or_default().now = value,
        }
    }
    changes
}

fn parse(line: &str) -> Option<(&str, Name, Value)> {
    let (word, rest) = line.split_once(' ').filter(|(word, _)| ["was", "now", "seen"].contains(word))?;
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
        let found = changes(&closed(&text.join("\n")), str::is_empty, &Named::default());
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
        let named = Named { milters: vec!["unix:a".to_owned()], ..Named::default() };
        let record = Record { changes, named, ..Record::default() };
        assert_eq!((record.added(&list), record.added(&name)), ("{unix:a,x=y}".to_owned(), String::new()));
        assert_eq!(found[&of_service], Changed { was: None, now: some("{unix:a}") });
        assert_eq!(found.len(), 2);
    }

    /// A2: what somebody has in one table with an entry of ours stays his.
    #[test]
    fn a_table_with_entries_of_two_is_told_apart_by_entry() {
        let name = |list: &str| Name::Main(list.to_owned());
        let changed = |was: &str, now: &str| Changed { was: Some(was.to_owned()), now: Some(now.to_owned()) };
        let (theirs, ours) = ("inline:{ { e.test = keep: } }", "inline:{ { s.test = lmtp:x } }");
        let both = "inline:{ { e.test = keep: } { s.test = lmtp:x } }";
        let entry = [("s.test".to_owned(), "lmtp:x".to_owned())];
        for (was, now, entries, added) in [
            (both, theirs, &[][..], vec![]),
            (both, "inline:{ { e.test=keep: } }", &[], vec![]),
            (theirs, both, &entry, vec![]),
            ("hash:/x", &format!("{ours}, hash:/x"), &entry, vec![dense(ours)]),
            (
                "",
                &format!("{ours}, {theirs}"),
                &[entry[0].clone(), ("e.test".into(), "keep:".into())],
                vec![dense(ours), dense(theirs)],
            ),
        ] {
            let changed = changed(was, now);
            assert_eq!(changed.entries(), entries, "{was} -> {now}");
            assert_eq!(changed.added(&name("transport_maps"), &Named::default()), added, "{was} -> {now}");
        }
        // Somebody made one table of his and ours.
        for list in ["transport_maps", "relay_recipient_maps"] {
            let mut changed = changed(theirs, &format!("{ours}, {theirs}"));
            changed.found(&name(list), Some(both.to_owned()), &Named::default());
            assert_eq!(changed.was.as_deref(), Some(theirs), "{list}");
        }
    }

    #[test]
    fn what_is_not_whole_does_not_count_and_everybody_has_his_own() {
        let text = "was main.cf: a = 1\nnow main.cf: a = 2\n\nbegin /q\nwas main.cf: a = els\nbegin /q\nwas main.cf: a = 2\n\
            now main.cf: a = 3\nend\n\nbegin /b\nwas main.cf: a = 3\nnow main.cf: a = 4\nend\nbegin /q\nnow main.cf: a = 5";
        let value = |text: &str, owner: &str| {
            let found = changes(&closed(text), |of| of == owner || of.is_empty(), &Named::default());
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
            let named = Named { milters: vec!["unix:a".to_owned()], ..Named::default() };
            let found = changes(&closed(&text.join("\n")), str::is_empty, &named);
            assert_eq!(found[&name], Changed { was: value(expected), now: value(lines[3]) }, "{text:?}");
        }
    }
}
