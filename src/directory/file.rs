//! The directory as a TOML file (DESIGN appendix B), read again when it changes.
//!
//! In: a path. Out: answers from indexes in memory, each in constant time.
//! Promise: a version counts once it has not changed for a second, so that nobody is refused by half a file; a broken new
//! version, and one that names no tenant any more, is refused as a whole and the old one goes on answering.
//! Fails: at start, with the line of what is wrong; duplicates name both lines. Never [`Unavailable`] afterwards.

use super::{Directory, People, PolicyText, Unavailable, check_prefix, is_local, names_of, table};
use crate::mail::Address;
use crate::observe::{
    events,
    versions::{self, Had, Kind},
};
use crate::rules::{Contact, Person, Project, Require, Tenant, User};
use crate::source::{Source, SourceError, Version, read_regular, text_of};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use serde::Deserialize;
use std::{
    collections::{HashMap, HashSet},
    panic,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::Mutex;
use toml::Spanned;

/// How often the file is looked at. A look is one `stat`; a version counts that is the same at two looks, so an admin who
/// saves the file waits about twice this long.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What was changed this long ago has settled, without a second look. Much more than the second that is needed, because
/// the clock may be a file server's.
const SETTLED_AFTER: Duration = Duration::from_secs(60);

/// How long somebody waits for a file that changes all the time.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often somebody who waits looks.
const WAITING_LOOK_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileText {
    #[serde(default)]
    tenant: Vec<TenantText>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TenantText {
    prefix: Spanned<String>,
    id: Spanned<String>,
    #[serde(default)]
    name: String,
    #[serde(default = "yes")]
    active: bool,
    activity_type: Option<Spanned<String>>,
    #[serde(default)]
    mode: Mode,
    #[serde(default, deserialize_with = "table")]
    policy: PolicyText,
    #[serde(default)]
    user: Vec<UserText>,
    #[serde(default)]
    customer: Vec<CustomerText>,
    #[serde(default)]
    project: Vec<ProjectText>,
}

/// `mode` of a tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Live,
    Shadow,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UserText {
    id: Spanned<String>,
    name: Option<String>,
    addresses: Vec<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CustomerText {
    id: Spanned<String>,
    #[serde(default, rename = "name")]
    _name: String,
    #[serde(default)]
    contact: Vec<ContactText>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContactText {
    id: Spanned<String>,
    name: Option<String>,
    addresses: Vec<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProjectText {
    id: Spanned<String>,
    number: Spanned<String>,
    #[serde(default, rename = "name")]
    _name: String,
    customer: Option<Spanned<String>>,
}

fn yes() -> bool {
    true
}

/// Unless the tenant says otherwise.
const ACTIVITY_TYPE: &str = "Email";

/// One version of the file, indexed.
#[derive(Debug, Default)]
struct Index {
    tenants: HashMap<String, Entry>,
    addresses: usize,
    /// A tenant has a word of its own on who is never recorded.
    says_never_log: bool,
    /// A tenant is in shadow mode.
    has_shadow: bool,
    /// Of what no mail can reach, with the line of each.
    doubts: Vec<String>,
}

#[derive(Debug)]
struct Entry {
    tenant: Tenant,
    people: HashMap<String, Person>,
    projects: HashMap<String, Project>,
}

impl Index {
    fn read(source: &Source) -> Result<Self, SourceError> {
        let text: FileText = source.parse()?;
        let mut index = Self::default();
        let mut prefixes = Once::new(source, "prefix");
        let mut ids = Once::new(source, "tenant id");
        for tenant in text.tenant {
            let prefix = tenant.prefix.get_ref().to_lowercase();
            check_prefix(&prefix).map_err(|message| source.error(tenant.prefix.span(), message))?;
            prefixes.claim(&tenant.prefix, &prefix)?;
            ids.claim(&tenant.id, tenant.id.get_ref())?;
            let entry = Entry::read(source, tenant, &prefix, &mut index.doubts)?;
            index.addresses += entry.people.len();
            index.says_never_log |= entry.tenant.policy.says_never_log();
            index.has_shadow |= entry.tenant.shadow;
            index.tenants.insert(prefix, entry);
        }
        Ok(index)
    }

    fn say(&self, path: &Path) {
        events::directory_read(path, self.tenants.len(), self.addresses);
        self.doubts.iter().for_each(|doubt| events::setting_doubtful(doubt));
    }

    fn entry(&self, tenant: &Tenant) -> Option<&Entry> {
        // A tenant that was renamed between two look-ups of one message is no longer there.
        self.tenants.get(&tenant.prefix).filter(|entry| entry.tenant.id == tenant.id)
    }
}

impl Entry {
    fn read(
        source: &Source,
        text: TenantText,
        prefix: &str,
        doubts: &mut Vec<String>,
    ) -> Result<Self, SourceError> {
        said(source, "tenant's id", &text.id)?;
        if let Some(activity_type) = &text.activity_type {
            said(source, "activity type", activity_type)?;
        }
        let tenant = Tenant {
            id: text.id.into_inner(),
            prefix: prefix.to_owned(),
            name: text.name,
            active: text.active,
            activity_type: text.activity_type.map_or(ACTIVITY_TYPE.to_owned(), Spanned::into_inner),
            shadow: text.mode == Mode::Shadow,
            policy: Arc::new(text.policy.into()),
        };
        let mut people: HashMap<String, Person> = HashMap::new();
        let (mut user_ids, mut user_addresses) =
            (Once::new(source, "user id"), Once::new(source, "user address"));
        for user in text.user {
            said(source, "user's id", &user.id)?;
            user_ids.claim(&user.id, user.id.get_ref())?;
            let mut own = HashSet::new();
            for spelled in &user.addresses {
                let address = address(source, spelled)?;
                if own.insert(address.clone()) {
                    user_addresses.claim(spelled, &address)?;
                    let known = User { id: user.id.get_ref().clone(), name: user.name.clone() };
                    people.entry(address).or_default().user = Some(known);
                }
            }
        }
        let (mut customer_ids, mut contact_ids) =
            (Once::new(source, "customer id"), Once::new(source, "contact id"));
        for customer in text.customer {
            said(source, "customer's id", &customer.id)?;
            customer_ids.claim(&customer.id, customer.id.get_ref())?;
            for contact in customer.contact {
                said(source, "contact's id", &contact.id)?;
                contact_ids.claim(&contact.id, contact.id.get_ref())?;
                let known = Contact {
                    id: contact.id.get_ref().clone(),
                    name: contact.name.clone(),
                    customer_id: customer.id.get_ref().clone(),
                };
                let mut own = HashSet::new();
                for spelled in &contact.addresses {
                    let address = address(source, spelled)?;
                    if own.insert(address.clone()) {
                        people.entry(address).or_default().contacts.push(known.clone());
                    }
                }
            }
        }
        let (mut projects, mut numbers) = (HashMap::new(), Once::new(source, "project number"));
        let mut project_ids = Once::new(source, "project id");
        for project in text.project {
            let number = project.number.get_ref().to_lowercase();
            if number.split('.').any(|label| label.trim().is_empty()) {
                let message = format!(
                    "\"{number}\" cannot stand in an address: write a number without empty parts, like 1001"
                );
                return Err(source.error(project.number.span(), message));
            }
            // Nobody is refused for it: what another program exports has such numbers, and mail goes on without them.
            let is_reachable = is_local(&number);
            if !is_reachable {
                let message = format!(
                    "\"{number}\" cannot stand in an address, and no mail reaches this project: write a number without blanks \
                     and signs, like 1001"
                );
                doubts.push(source.error(project.number.span(), message).to_string());
            }
            said(source, "project's id", &project.id)?;
            project_ids.claim(&project.id, project.id.get_ref())?;
            numbers.claim(&project.number, &number)?;
            if let Some(customer) = &project.customer
                && !customer_ids.has(customer.get_ref())
            {
                let message = format!(
                    "this tenant has no customer \"{}\": write one of its [[tenant.customer]], or remove it",
                    customer.get_ref()
                );
                return Err(source.error(customer.span(), message));
            }
            let known = Project {
                id: project.id.into_inner(),
                number: project.number.into_inner(),
                customer: project.customer.map(Spanned::into_inner),
            };
            if is_reachable {
                projects.insert(number, known);
            }
        }
        Ok(Self { tenant, people, projects })
    }
}

/// What the backend knows somebody by must not be empty.
fn said(source: &Source, what: &str, text: &Spanned<String>) -> Result<(), SourceError> {
    if text.get_ref().trim().is_empty() || text.get_ref().chars().any(char::is_control) {
        let message =
            format!("the {what} is empty, or has a control character: write the one the backend knows");
        return Err(source.error(text.span(), message));
    }
    Ok(())
}

fn address(source: &Source, spelled: &Spanned<String>) -> Result<String, SourceError> {
    match Address::parse(spelled.get_ref()) {
        Ok(address) if address.local() == "*" => {
            let message = format!(
                "\"{}\": * stands for nobody here: write one like \"anna@example.com\", each by itself",
                spelled.get_ref()
            );
            Err(source.error(spelled.span(), message))
        }
        Ok(address) => Ok(address.folded().to_owned()),
        Err(error) => {
            let message = format!(
                "\"{}\" is no address: {error}: write one like \"anna@example.com\"",
                spelled.get_ref()
            );
            Err(source.error(spelled.span(), message))
        }
    }
}

/// Values that may stand only once; a second claim is an error that names both lines.
struct Once<'a> {
    source: &'a Source,
    what: &'static str,
    claimed: HashMap<String, usize>,
}

impl<'a> Once<'a> {
    fn new(source: &'a Source, what: &'static str) -> Self {
        Self { source, what, claimed: HashMap::new() }
    }

    fn claim(&mut self, spelled: &Spanned<String>, value: &str) -> Result<(), SourceError> {
        match self.claimed.insert(value.to_owned(), spelled.span().start) {
            None => Ok(()),
            Some(first) => {
                let message = format!(
                    "{} \"{value}\" is already taken in line {}: remove one",
                    self.what,
                    self.source.line(first)
                );
                Err(self.source.error(spelled.span(), message))
            }
        }
    }

    fn has(&self, value: &str) -> bool {
        self.claimed.contains_key(value)
    }
}

/// How a text becomes an index.
type Parse = fn(&Source) -> Result<Index, SourceError>;

/// What is at the path, and since when the same has been seen there.
#[derive(Clone, Copy, Debug)]
struct Look {
    version: Option<Version>,
    since: Instant,
    /// Nothing was seen there before: it was not changed under our eyes.
    is_first: bool,
}

impl Look {
    /// Looks, after another look.
    fn after(before: Option<Self>, path: &Path) -> Self {
        let (version, now) = (Version::of(path), Instant::now());
        let is_first = before.is_none();
        before.filter(|before| before.version == version).unwrap_or(Self { version, since: now, is_first })
    }

    /// True if it was the same at two looks, or had not been changed for long when we came. A time of change that lies
    /// ahead proves nothing, and neither does an old one of what we saw changing: a file server's clock may be slow.
    fn has_settled(&self) -> bool {
        self.has_settled_by(SystemTime::now())
    }

    fn has_settled_by(&self, now: SystemTime) -> bool {
        let age = self.version.and_then(|version| version.age(now));
        self.since.elapsed() >= LOOK_EVERY || (self.is_first && age.is_some_and(|age| age >= SETTLED_AFTER))
    }
}

/// What a look came to.
#[derive(Debug)]
enum Found {
    /// The version that was read last.
    Known,
    /// It may be half written.
    Unsettled,
    Good(Index),
    /// The version is no directory, and will be none.
    Broken(SourceError),
    /// It cannot be read now, which says nothing of the version.
    Unreadable(SourceError),
}

/// Reads a version, unless it is another one after the reading.
fn read(path: &Path, version: Option<Version>, parse: Parse) -> Found {
    let bytes = read_regular(path);
    if Version::of(path) != version {
        return Found::Unsettled;
    }
    let is_read = bytes.is_ok();
    let text = match text_of(path, bytes) {
        Ok(text) => text,
        Err(error) if is_read => return Found::Broken(error),
        Err(error) => return Found::Unreadable(error),
    };
    let source = Source::from_text(path, text);
    match panic::catch_unwind(|| parse(&source)) {
        Ok(Ok(index)) => Found::Good(index),
        Ok(Err(error)) => Found::Broken(error),
        Err(_) => {
            let fault =
                "a fault of activity-milter: reading this text panicked: please report it with the file";
            Found::Broken(SourceError::about(path, fault))
        }
    }
}

/// Looks, and reads what has settled and is not `known`. On a thread that may block: a file of a hundred thousand
/// addresses takes a moment, and a file server may not answer.
async fn look(
    path: PathBuf,
    before: Option<Look>,
    known: Option<Version>,
    parse: Parse,
) -> Option<(Look, Found)> {
    let work = move || {
        let look = Look::after(before, &path);
        let found = match look.version {
            Some(_) if look.version == known => Found::Known,
            version if look.has_settled() => read(&path, version, parse),
            _ => Found::Unsettled,
        };
        (look, found)
    };
    tokio::task::spawn_blocking(work).await.ok() // else the program ends
}

/// What the looks have seen so far.
#[derive(Debug, Default)]
struct Seen {
    last: Option<Look>,
    /// The version that was read last, in use or refused: it is not read again.
    judged: Option<Version>,
    /// Why that one was refused; none: it is in use.
    refused: Option<String>,
    /// What was wrong at the last look; what stays wrong is said once.
    told: Option<String>,
}

/// A directory file, indexed.
#[derive(Debug)]
pub struct FileDirectory {
    path: PathBuf,
    index: ArcSwap<Index>,
    /// Locked as long as somebody looks and reads, so that nobody puts an older version in place of a newer one.
    seen: Mutex<Seen>,
    parse: Parse,
    _had: Had,
}

impl FileDirectory {
    /// Reads the file as it is now: for commands, which are started when it is written.
    /// # Errors
    /// What is wrong with it.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let look = Look::after(None, path);
        let index = Index::read(&Source::read(path)?)?;
        index.say(path);
        let mut directory = Self::new(path, Index::read);
        directory.index.store(Arc::new(index));
        // What has not settled is read again by who watches.
        let judged = look.version.filter(|_| look.has_settled() && Version::of(path) == look.version);
        directory.seen = Mutex::new(Seen { last: Some(look), judged, ..Seen::default() });
        Ok(directory)
    }

    /// Reads the file once it has settled: for the service, which may be started while somebody writes it.
    /// # Errors
    /// What is wrong with it; that it never settles.
    pub async fn settled(path: &Path) -> Result<Self, SourceError> {
        let directory = Self::new(path, Index::read);
        directory.reload().await?;
        // A file that names nobody yet has its comments.
        if std::fs::metadata(path).is_ok_and(|meta| meta.len() == 0) {
            let message = "is empty, as after a crash or on a full disk: write its tenants, or a comment";
            return Err(SourceError::about(path, message).passing());
        }
        Ok(directory)
    }

    /// The prefixes of tenants in shadow mode, sorted.
    pub fn shadowed(&self) -> Vec<String> {
        let index = self.index.load();
        let shadowed = index.tenants.values().filter(|entry| entry.tenant.shadow && entry.tenant.active);
        let mut prefixes: Vec<String> = shadowed.map(|entry| entry.tenant.prefix.clone()).collect();
        prefixes.sort();
        prefixes
    }

    /// True if a tenant asks for a proof of who sends.
    pub fn asks_for_proof(&self) -> bool {
        let index = self.index.load();
        index.tenants.values().any(|entry| entry.tenant.policy.require == Some(Require::Authenticated))
    }

    /// True if no tenant is in it.
    pub fn names_nobody(&self) -> bool {
        self.index.load().tenants.is_empty()
    }

    fn new(path: &Path, parse: Parse) -> Self {
        let (path, _had) = (path.to_owned(), Had::new(Kind::Directory, path));
        Self { path, index: ArcSwap::default(), seen: Mutex::default(), parse, _had }
    }

    /// Reads the file now, as soon as it has settled, whether it is another version or not.
    /// # Errors
    /// What is wrong with it; that it names no tenant any more; that it never settles. What is in use stays in use.
    pub async fn reload(&self) -> Result<(), SourceError> {
        // A look may hang, ours or the watcher's: the file server's business.
        let late =
            |_| SourceError::about(&self.path, "cannot be read in time: see its file system").passing();
        tokio::time::timeout(PATIENCE * 2, self.reload_soon()).await.map_err(late)?
    }

    async fn reload_soon(&self) -> Result<(), SourceError> {
        let mut seen = self.seen.lock().await;
        let began = Instant::now();
        loop {
            let ended = || SourceError::about(&self.path, "was not read: the program ends");
            let looked = look(self.path.clone(), seen.last, None, self.parse).await;
            let (last, found) = looked.ok_or_else(ended)?;
            seen.last = Some(last);
            if !matches!(found, Found::Unsettled) {
                let again = matches!(found, Found::Unreadable(_));
                let judged = self.judge(&mut seen, found);
                seen.told = judged.as_ref().err().filter(|_| again).map(SourceError::to_string);
                return judged;
            }
            if began.elapsed() >= PATIENCE {
                let message = format!(
                    "has not been the same for {} s in the last {} s: see who writes it, and try again when it is \
                     complete",
                    LOOK_EVERY.as_secs(),
                    PATIENCE.as_secs()
                );
                return Err(SourceError::about(&self.path, message).passing());
            }
            tokio::time::sleep(WAITING_LOOK_EVERY).await;
        }
    }

    /// Looks at the file every second and reads a new version, for as long as somebody has the directory.
    pub fn watch(self: &Arc<Self>) -> impl Future<Output = ()> + Send + use<> {
        let directory = Arc::downgrade(self);
        async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let Some(directory) = directory.upgrade() else { return };
                directory.look().await;
            }
        }
    }

    async fn look(&self) {
        let mut seen = self.seen.lock().await;
        let looked = look(self.path.clone(), seen.last, seen.judged, self.parse).await;
        let Some((last, found)) = looked else { return };
        seen.last = Some(last);
        let again = matches!(found, Found::Unreadable(_));
        if let Found::Unsettled = found {
            return;
        }
        let is_back = seen.told.is_some() && matches!(found, Found::Known);
        let wrong = self.judge(&mut seen, found).err();
        let told = wrong.as_ref().filter(|_| again).map(SourceError::to_string);
        if let Some(error) = wrong
            && (told.is_none() || seen.told != told)
        {
            events::directory_refused(&self.path, &error);
        }
        seen.told = told;
        // What could not be read is there again, as it was.
        match &seen.refused {
            Some(error) if is_back => events::directory_refused(&self.path, error),
            None if is_back => versions::in_order(Kind::Directory, &self.path),
            _ => {}
        }
    }

    /// Puts a good version in use.
    fn judge(&self, seen: &mut Seen, found: Found) -> Result<(), SourceError> {
        let is_read = matches!(found, Found::Good(_) | Found::Broken(_));
        let judged = self.put_in_use(found);
        if is_read {
            seen.judged = seen.last.and_then(|look| look.version);
            seen.refused = judged.as_ref().err().map(SourceError::to_string);
        }
        judged
    }

    fn put_in_use(&self, found: Found) -> Result<(), SourceError> {
        match found {
            Found::Known | Found::Unsettled => Ok(()),
            Found::Broken(error) | Found::Unreadable(error) => Err(error),
            Found::Good(index) if index.tenants.is_empty() && !self.index.load().tenants.is_empty() => {
                Err(SourceError::about(
                    &self.path,
                    "names no tenant any more, so that all mail would be refused: put the tenants back; to serve \
                     nobody, write active = false in each",
                ))
            }
            Found::Good(index) => {
                index.say(&self.path);
                self.index.store(Arc::new(index));
                Ok(())
            }
        }
    }
}

/// The tenant of the recipient is not the one of a moment ago.
fn changed() -> Unavailable {
    Unavailable("the tenant was changed meanwhile".to_owned())
}

#[async_trait]
impl Directory for FileDirectory {
    fn names(&self, ids: &HashSet<&str>) -> HashMap<String, String> {
        names_of(self.index.load().tenants.values().map(|entry| &entry.tenant), ids)
    }

    fn has_shadow(&self) -> bool {
        self.index.load().has_shadow
    }

    fn says_never_log(&self) -> bool {
        self.index.load().says_never_log
    }

    async fn tenant(&self, prefix: &str) -> Result<Option<Tenant>, Unavailable> {
        let index = self.index.load();
        // As after a first start, or with another file's name: to refuse everybody's mail for good would be too much.
        if index.tenants.is_empty() {
            let path = self.path.display();
            return Err(Unavailable(format!("{path} names no tenant: write a [[tenant]] for each")));
        }
        Ok(index.tenants.get(prefix).map(|entry| entry.tenant.clone()))
    }

    async fn people(&self, tenant: &Tenant, addresses: &[Address]) -> Result<People, Unavailable> {
        let index = self.index.load();
        let entry = index.entry(tenant).ok_or_else(changed)?;
        let person = |address: &Address| entry.people.get(address.folded()).cloned().unwrap_or_default();
        Ok(People { persons: addresses.iter().map(person).collect(), stale: false })
    }

    async fn project(
        &self,
        tenant: &Tenant,
        number: &str,
        _also: &[Address],
    ) -> Result<Option<Project>, Unavailable> {
        let index = self.index.load();
        Ok(index.entry(tenant).ok_or_else(changed)?.projects.get(&number.to_lowercase()).cloned())
    }

    fn source(&self) -> String {
        let written = std::fs::metadata(&self.path).and_then(|meta| meta.modified());
        let age = written.ok().and_then(|written| written.elapsed().ok()).unwrap_or_default();
        let age = humantime::format_duration(Duration::from_secs(age.as_secs()));
        let doubts = match self.index.load().doubts.as_slice() {
            [] => String::new(),
            [one] => format!("; {one}"),
            [first, rest @ ..] => format!("; {first}; and {} more like it", rest.len()),
        };
        format!("{}, written {age} ago{doubts}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mail::Automatic;
    use crate::rules::{Treatment, Who, Wish};
    use futures_util::future::join_all;
    use nix::{sys::stat::Mode, unistd::mkfifo};
    use std::{
        fs,
        io::Write,
        os::unix::fs::symlink,
        sync::atomic::{AtomicUsize, Ordering},
    };

    const APPENDIX_B: &str = include_str!("../../tests/directory.toml");

    fn index(text: &str) -> Result<Index, String> {
        Index::read(&Source::from_text(Path::new("d.toml"), text)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_project_that_no_mail_reaches_stops_nobody() {
        let tenant = "[[tenant]]\nprefix = \"a\"\nid = \"1\"\n";
        for number in ["10 01", "P1,2", "10(01)", "1001.my@a.test", &"x".repeat(65)] {
            let text = format!(
                "{tenant}[[tenant.project]]\nid = \"p\"\nnumber = \"{number}\"\n[[tenant.project]]\nid = \"q\"\nnumber = \"2\"\n"
            );
            let index = Index::read(&Source::from_text(Path::new("x.toml"), text)).unwrap();
            let projects: Vec<&String> = index.tenants["a"].projects.keys().collect();
            assert_eq!(projects, ["2"], "{number}");
            assert_eq!(index.doubts.len(), 1, "{number}");
            assert!(index.doubts[0].starts_with("x.toml:6:10: "), "{:?}", index.doubts);
        }
        // A tenant that no mail reaches is one that everybody believes to be there.
        let text = "[[tenant]]\nprefix = \"a b\"\nid = \"1\"\n";
        assert!(Index::read(&Source::from_text(Path::new("x.toml"), text)).is_err());
    }

    #[test]
    fn the_example_of_the_design_is_read() {
        let index = index(APPENDIX_B).unwrap();
        let entry = &index.tenants["mycompany"];
        assert_eq!(entry.tenant.activity_type, "Email");
        assert_eq!(entry.people["anna.aalto@mycompany.test"].user.as_ref().unwrap().id, "u-anna");
        assert_eq!(entry.people["bo@acme.test"].contacts[0].customer_id, "c-acme");
        assert_eq!(entry.projects["1001"].customer.as_deref(), Some("c-acme"));
    }

    #[test]
    fn a_tenant_says_what_it_expects() {
        let tenant = "[[tenant]]\nprefix = \"a\"\nid = \"1\"\n";
        let policy =
            |more: &str| index(&format!("{tenant}{more}")).map(|i| i.tenants["a"].tenant.policy.clone());
        assert_eq!(*policy("").unwrap(), Wish::default());
        assert_eq!(*policy("policy = {}").unwrap(), Wish::default());
        let expected = Wish {
            require: Some(Require::Authenticated),
            automatic: [(Automatic::AutoReplied, Treatment::Discard)].into(),
            ..Wish::default()
        };
        let private =
            policy("policy = { never_log = [\"Lawyer@x.test\", \"law.test\"], internal = \"skip\" }");
        let names = private.unwrap().never_log.clone().unwrap();
        let lawyer = |text: &str| Who::any(&names, &Address::parse(text).unwrap());
        assert!(lawyer("lawyer@X.test") && lawyer("a@law.test") && !lawyer("a@sub.law.test"));
        for written in [
            "policy = { require = \"authenticated\", automatic = { auto-replied = \"discard\" } }",
            "policy.require = \"authenticated\"\npolicy.automatic.auto-replied = \"discard\"",
            "[tenant.policy]\nrequire = \"authenticated\"\n[tenant.policy.automatic]\nauto-replied = \"discard\"",
        ] {
            assert_eq!(*policy(written).unwrap(), expected, "{written}");
        }
    }

    #[test]
    fn duplicates_name_both_lines() {
        let tenant = |prefix: &str, id: &str| format!("[[tenant]]\nprefix = \"{prefix}\"\nid = \"{id}\"\n");
        let user = |id: &str, address: &str| {
            format!("[[tenant.user]]\nid = \"{id}\"\naddresses = [\"{address}\"]\n")
        };
        for (text, expected) in [
            (
                tenant("a", "1") + &tenant("A", "2"),
                "d.toml:5:10: prefix: prefix \"a\" is already taken in line 2",
            ),
            (
                tenant("a", "1") + &tenant("b", "1"),
                "d.toml:6:6: id: tenant id \"1\" is already taken in line 3",
            ),
            (
                tenant("a", "1") + &user("u", "x@y.test") + &user("v", "X@Y.test"),
                "d.toml:9:14: addresses: user address \"x@y.test\" is already taken in line 6",
            ),
            (
                tenant("a", "1") + &user("u", "x@y.test") + &user("u", "z@y.test"),
                "user id \"u\" is already taken in line 5",
            ),
            (tenant("a..b", "1"), "d.toml:2:10: prefix: prefix \"a..b\" cannot be the local part"),
            (tenant("a", "1") + &user("u", "nobody"), "\"nobody\" is no address: there is no domain"),
            (
                tenant("a", "1") + "[[tenant.project]]\nid = \"p\"\nnumber = \"1\"\ncustomer = \"c\"\n",
                "no customer \"c\"",
            ),
            (tenant("a", "1") + "color = 1\n", "d.toml:4:1: unknown field `color`"),
        ] {
            let error = index(&text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        // The same address twice for one user harms nobody; a contact's address may be a user's or another contact's.
        assert!(
            index(
                &(tenant("a", "1")
                    + "[[tenant.user]]\nid = \"u\"\naddresses = [\"x@y.test\", \"X@y.test\"]\n")
            )
            .is_ok()
        );
    }

    /// A file with one tenant; all of them have the same length.
    fn with(prefix: &str) -> String {
        format!("[[tenant]]\nprefix = \"{prefix:_<8}\"\nid = \"1\"\n")
    }

    async fn knows(directory: &FileDirectory, prefix: &str) -> bool {
        directory.tenant(&format!("{prefix:_<8}")).await.is_ok_and(|tenant| tenant.is_some())
    }

    async fn becomes(directory: &FileDirectory, prefix: &str) -> bool {
        for _ in 0..200 {
            if knows(directory, prefix).await {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }

    /// What is logged until the guard is dropped, by this thread.
    fn log() -> (tempfile::NamedTempFile, tracing::subscriber::DefaultGuard) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(file.reopen().unwrap());
        let guard = tracing::subscriber::set_default(subscriber.finish());
        (file, guard)
    }

    fn parse_or_panic(source: &Source) -> Result<Index, SourceError> {
        let index = Index::read(source)?;
        assert!(!index.tenants.contains_key("panic___"), "a fault of ours");
        Ok(index)
    }

    fn replace(path: &Path, text: &str) {
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, path).unwrap();
    }

    /// A path beside it that nobody has had yet.
    fn another(path: &Path) -> PathBuf {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        path.with_extension(COUNT.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// As configuration management does: `directory.toml` is a link, and is switched to another file.
    fn switch(path: &Path, text: &str) {
        let (file, link) = (another(path), path.with_extension("link"));
        fs::write(&file, text).unwrap();
        symlink(&file, &link).unwrap();
        fs::rename(&link, path).unwrap();
    }

    /// As kubernetes does: `directory.toml` is a link through a link to a directory, and that one is switched.
    fn switch_above(path: &Path, text: &str) {
        let (data, link) = (path.with_extension("data"), path.with_extension("link"));
        let versions = another(path);
        fs::create_dir(&versions).unwrap();
        fs::write(versions.join("file"), text).unwrap();
        symlink(&versions, &link).unwrap();
        fs::rename(&link, &data).unwrap();
        if fs::read_link(path).is_err() {
            let _ = fs::remove_file(path);
            symlink(data.join("file"), path).unwrap();
        }
    }

    /// As `rsync -t` and `cp -p` do: the time of writing is the old one's.
    fn as_old(path: &Path, text: &str) {
        let written = fs::metadata(path).unwrap().modified().unwrap();
        fs::write(path, text).unwrap();
        fs::File::options().write(true).open(path).unwrap().set_modified(written).unwrap();
    }

    fn pipe(path: &Path) {
        fs::remove_file(path).unwrap();
        mkfifo(path, Mode::S_IRWXU).unwrap();
    }

    fn directory(path: &Path) {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    }

    fn circle(path: &Path) {
        fs::remove_file(path).unwrap();
        symlink(path, path).unwrap();
    }

    fn write(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
    }

    /// What can happen to the file: how it was put there, and what is wrong then.
    type Happening = (&'static str, fn(&Path, &str), fn(&Path), Option<&'static str>);

    const HAPPENINGS: &[Happening] = &[
        ("written in place", write, |path| write(path, &with("new")), None),
        ("replaced", write, |path| replace(path, &with("new")), None),
        ("of the same size and time", write, |path| as_old(path, &with("new")), None),
        ("a link is switched", switch, |path| switch(path, &with("new")), None),
        ("a link above is switched", switch_above, |path| switch_above(path, &with("new")), None),
        ("a link's file is written", switch_above, |path| write(path, &with("new")), None),
        (
            "broken",
            write,
            |path| write(path, "[[tenant]]\nprefix = \"new"),
            Some("toml:2:14: prefix: the text has no end"),
        ),
        ("no text", write, |path| fs::write(path, b"\xff").unwrap(), Some("is not UTF-8")),
        ("emptied", write, |path| write(path, ""), Some("names no tenant any more")),
        ("only comments", switch, |path| switch(path, "# later\n"), Some("names no tenant any more")),
        (
            "it makes us panic",
            write,
            |path| replace(path, &with("panic")),
            Some("reading this text panicked"),
        ),
        ("gone", write, |path| fs::remove_file(path).unwrap(), Some("No such file")),
        ("a directory", write, directory, Some("no regular file")),
        ("a pipe", write, pipe, Some("no regular file")),
        ("a link to a pipe", switch, |path| pipe(&fs::read_link(path).unwrap()), Some("no regular file")),
        ("a link to itself", write, circle, Some("symbolic links")),
    ];

    #[tokio::test]
    async fn whatever_happens_to_the_file_the_next_good_one_counts() {
        let (log, _guard) = log();
        let cases = HAPPENINGS.iter().map(async |(name, put, happens, wrong)| {
            let home = tempfile::tempdir().unwrap();
            let path = home.path().join("directory.toml");
            put(&path, &with("old"));
            let file = FileDirectory::new(&path, parse_or_panic);
            file.reload().await.unwrap();
            let file = Arc::new(file);
            let watch = tokio::spawn(file.watch());
            happens(&path);
            if let Some(wrong) = wrong {
                tokio::time::sleep(LOOK_EVERY * 4).await;
                assert!(knows(&file, "old").await, "{name}");
                let log = fs::read_to_string(log.path()).unwrap();
                let lines: Vec<_> =
                    log.lines().filter(|line| line.contains(path.to_str().unwrap())).collect();
                let refused = lines.iter().filter(|line| line.contains("refused"));
                assert!(
                    refused.clone().count() == 1 && refused.clone().all(|line| line.contains(wrong)),
                    "{name}: {lines:#?}"
                );
                let refused = file.reload().await.unwrap_err().to_string();
                assert!(refused.contains(wrong), "{name}: {refused}");
            } else {
                assert!(becomes(&file, "new").await, "{name}");
            }
            let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
            put(&path, &with("next"));
            assert!(becomes(&file, "next").await, "{name}");
            assert!(!knows(&file, "old").await, "{name}");
            watch.abort();
        });
        join_all(cases).await;
    }

    /// A version that cannot be read hides none that is broken: neither one that comes, nor one that comes back.
    #[tokio::test]
    async fn what_is_broken_is_refused_also_after_it_was_gone() {
        // Whether a line is wanted is remembered of the first thread that says it: the other test listens for these.
        let (_log, _guard) = log();
        let home = tempfile::tempdir().unwrap();
        let (path, away) = (home.path().join("directory.toml"), home.path().join("away"));
        fs::write(&path, with("old")).unwrap();
        let file = Arc::new(FileDirectory::open(&path).unwrap());
        let watch = tokio::spawn(file.watch());
        let is_said = async |words: &str| {
            for _ in 0..400 {
                let all = versions::still_refused();
                let ours = all.iter().find(|refused| refused.error.contains(path.to_str().unwrap()));
                let said = ours.map(|refused| refused.error.as_str()).unwrap_or_default();
                if if words.is_empty() { said.is_empty() } else { said.contains(words) } {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            false
        };
        fs::remove_file(&path).unwrap();
        assert!(is_said("No such file").await);
        fs::write(&path, "[[tenant]]\nprefix = 1\n").unwrap();
        assert!(is_said("prefix: 1 is a number").await);
        // As after a file server's outage: the very same file.
        let (kept, link) = (home.path().join("kept"), home.path().join("link"));
        fs::rename(&path, &kept).unwrap();
        symlink(&kept, &path).unwrap();
        tokio::time::sleep(LOOK_EVERY * 3).await;
        assert!(is_said("prefix: 1 is a number").await);
        symlink(home.path().join("nowhere"), &link).unwrap();
        fs::rename(&path, &away).unwrap();
        fs::rename(&link, &path).unwrap();
        assert!(is_said("No such file").await);
        fs::rename(&away, &path).unwrap();
        assert!(is_said("prefix: 1 is a number").await);
        fs::remove_file(&path).unwrap();
        fs::write(&path, with("new")).unwrap();
        assert!(is_said("").await && becomes(&file, "new").await);
        watch.abort();
    }

    #[tokio::test]
    async fn a_file_that_is_being_written_does_not_count() {
        let (home, whole) = (tempfile::tempdir().unwrap(), with("a") + &with("b").replace('1', "2"));
        let path = home.path().join("directory.toml");
        fs::write(&path, &whole).unwrap();
        let file = Arc::new(FileDirectory::open(&path).unwrap());
        let watch = tokio::spawn(file.watch());
        let mut writer = fs::File::create(&path).unwrap();
        for piece in whole.as_bytes().chunks(whole.len() / 6) {
            for _ in 0..10 {
                assert!(knows(&file, "a").await && knows(&file, "b").await);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            writer.write_all(piece).unwrap();
        }
        writer.write_all(with("c").replace('1', "3").as_bytes()).unwrap();
        assert!(becomes(&file, "c").await);
        watch.abort();
    }

    #[tokio::test]
    async fn a_change_after_the_first_reading_is_seen() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("directory.toml");
        fs::write(&path, with("old")).unwrap();
        let file = Arc::new(FileDirectory::open(&path).unwrap());
        fs::write(&path, with("new")).unwrap();
        let watch = tokio::spawn(file.watch());
        assert!(becomes(&file, "new").await);
        watch.abort();
    }

    #[tokio::test]
    async fn a_service_waits_for_a_file_that_is_being_written() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("directory.toml");
        assert!(FileDirectory::settled(&path).await.unwrap_err().to_string().contains("No such file"));
        fs::write(&path, "").unwrap();
        let write = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            fs::write(&path, with("a")).unwrap();
        };
        let (file, ()) = tokio::join!(FileDirectory::settled(&path), write);
        let file = file.unwrap();
        assert!(knows(&file, "a").await);
        // A reload: what is wrong is the answer, and what is right is in use at its end.
        fs::write(&path, "[[tenant]]\nprefix = 1\n").unwrap();
        let error = file.reload().await.unwrap_err().to_string();
        assert!(error.contains("directory.toml:2:10: prefix: 1 is a number"), "{error}");
        replace(&path, "");
        assert!(file.reload().await.unwrap_err().to_string().contains("names no tenant any more"));
        assert!(knows(&file, "a").await);
        replace(&path, &with("b"));
        file.reload().await.unwrap();
        assert!(knows(&file, "b").await && !knows(&file, "a").await);
        // The package's file names nobody yet.
        replace(&path, "# nobody yet\n");
        let nobody = FileDirectory::settled(&path).await.unwrap();
        nobody.reload().await.unwrap();
        // Then nobody's mail is refused for good.
        let error = nobody.tenant("a").await.unwrap_err().to_string();
        assert!(error.contains("directory.toml names no tenant: write a [[tenant]]"), "{error}");
        let began = Instant::now();
        fs::write(&path, with("c")).unwrap();
        let write = async {
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                fs::write(&path, with("c")).unwrap();
            }
        };
        let error = tokio::select! {
            () = write => unreachable!(),
            error = nobody.reload() => error.unwrap_err().to_string(),
        };
        assert!(error.contains("has not been the same for 1 s") && began.elapsed() < PATIENCE * 2, "{error}");
        assert!(!knows(&nobody, "c").await);
    }

    #[test]
    fn what_has_settled() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let look = Look::after(None, file.path());
        assert!(!look.has_settled(), "it was written a moment ago");
        let since = look.since.checked_sub(LOOK_EVERY).unwrap();
        let later = Look::after(Some(Look { since, ..look }), file.path());
        assert!(later.has_settled(), "the same at two looks");
        fs::write(file.path(), "x").unwrap();
        assert!(!Look::after(Some(later), file.path()).has_settled(), "another one");
        let found = read(file.path(), later.version, Index::read);
        assert!(matches!(found, Found::Unsettled), "it was written to while it was read: {found:?}");
        let old = Look::after(None, Path::new(env!("CARGO_MANIFEST_DIR")));
        assert!(old.has_settled(), "what is no file is not half written");
    }

    #[tokio::test]
    async fn an_empty_file_is_waited_for_and_one_of_comments_is_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = FileDirectory::settled(file.path()).await.unwrap_err();
        assert!(error.is_passing() && error.to_string().contains("is empty"), "{error}");
        fs::write(file.path(), "# nobody yet\n").unwrap();
        assert!(FileDirectory::settled(file.path()).await.unwrap().names_nobody());
    }

    #[tokio::test]
    async fn who_is_asked_for_a_tenant_that_was_changed_cannot_say() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "[[tenant]]\nprefix = \"a\"\nid = \"1\"\n[[tenant.user]]\nid = \"u\"\naddresses = [\"u@a.test\"]\n";
        fs::write(file.path(), text).unwrap();
        let directory = FileDirectory::open(file.path()).unwrap();
        let tenant = directory.tenant("a").await.unwrap().unwrap();
        let address = Address::parse("u@a.test").unwrap();
        assert!(directory.people(&tenant, std::slice::from_ref(&address)).await.is_ok());
        let other = Tenant { id: "2".to_owned(), ..tenant };
        assert!(directory.people(&other, &[address]).await.is_err());
        assert!(directory.project(&other, "1", &[]).await.is_err());
    }

    /// A file server's clock may be far behind ours: its times of change say nothing of a file that we saw changing.
    #[test]
    fn what_changes_under_our_eyes_has_not_settled_however_old_it_says_it_is() {
        let now = Instant::now();
        let file = tempfile::NamedTempFile::new().unwrap();
        let version = Version::of(file.path());
        let old = SystemTime::now() + SETTLED_AFTER * 2; // it is as old for whoever looks then
        let look = |is_first| Look { version, since: now, is_first };
        assert!(version.unwrap().age(old).unwrap() >= SETTLED_AFTER);
        assert!(look(true).has_settled_by(old) && !look(false).has_settled_by(old));
    }
}
