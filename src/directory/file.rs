//! The directory as a TOML file (DESIGN appendix B), read again when it changes.
//!
//! In: a path. Out: answers from indexes in memory, each in constant time.
//! Promise: a broken new version is refused as a whole and the old one goes on answering.
//! Fails: at start, with the line of what is wrong; duplicates name both lines. Never [`Unavailable`] afterwards.

use super::{Directory, People, Unavailable};
use crate::mail::Address;
use crate::observe::events;
use crate::rules::{Contact, Person, Project, Tenant, User};
use crate::source::{Source, SourceError, Version};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use serde::Deserialize;
use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use toml::Spanned;

/// How often the file is looked at. A look is one `stat`; an admin who saves the file waits about this long.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
    #[serde(default = "email")]
    activity_type: String,
    #[serde(default)]
    mode: Mode,
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
    id: String,
    number: Spanned<String>,
    #[serde(default, rename = "name")]
    _name: String,
    customer: Option<Spanned<String>>,
}

fn yes() -> bool {
    true
}

fn email() -> String {
    "Email".to_owned()
}

/// One version of the file, indexed.
#[derive(Debug, Default)]
struct Index {
    tenants: HashMap<String, Entry>,
    addresses: usize,
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
            if prefix.split('.').any(|label| label.trim().is_empty()) || prefix.contains('@') {
                let message = format!(
                    "prefix \"{prefix}\" cannot be the local part of an address: write one like \"mycompany\""
                );
                return Err(source.error(tenant.prefix.span(), message));
            }
            prefixes.claim(&tenant.prefix, &prefix)?;
            ids.claim(&tenant.id, tenant.id.get_ref())?;
            let entry = Entry::read(source, tenant, &prefix)?;
            index.addresses += entry.people.len();
            index.tenants.insert(prefix, entry);
        }
        Ok(index)
    }

    fn entry(&self, tenant: &Tenant) -> Option<&Entry> {
        // A tenant that was renamed between two look-ups of one message is no longer there.
        self.tenants.get(&tenant.prefix).filter(|entry| entry.tenant.id == tenant.id)
    }
}

impl Entry {
    fn read(source: &Source, text: TenantText, prefix: &str) -> Result<Self, SourceError> {
        let tenant = Tenant {
            id: text.id.into_inner(),
            prefix: prefix.to_owned(),
            name: text.name,
            active: text.active,
            activity_type: text.activity_type,
            shadow: text.mode == Mode::Shadow,
        };
        let mut people: HashMap<String, Person> = HashMap::new();
        let (mut user_ids, mut user_addresses) =
            (Once::new(source, "user id"), Once::new(source, "user address"));
        for user in text.user {
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
            customer_ids.claim(&customer.id, customer.id.get_ref())?;
            for contact in customer.contact {
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
        for project in text.project {
            let number = project.number.get_ref().to_lowercase();
            if number.split('.').any(|label| label.trim().is_empty()) {
                return Err(
                    source.error(project.number.span(), format!("\"{number}\" cannot stand in an address"))
                );
            }
            numbers.claim(&project.number, &number)?;
            if let Some(customer) = &project.customer
                && !customer_ids.has(customer.get_ref())
            {
                let message = format!("this tenant has no customer \"{}\"", customer.get_ref());
                return Err(source.error(customer.span(), message));
            }
            let known = Project {
                id: project.id,
                number: project.number.into_inner(),
                customer: project.customer.map(Spanned::into_inner),
            };
            projects.insert(number, known);
        }
        Ok(Self { tenant, people, projects })
    }
}

fn address(source: &Source, spelled: &Spanned<String>) -> Result<String, SourceError> {
    match Address::parse(spelled.get_ref()) {
        Ok(address) => Ok(address.folded().to_owned()),
        Err(error) => {
            Err(source.error(spelled.span(), format!("\"{}\" is no address: {error}", spelled.get_ref())))
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
                let message =
                    format!("{} \"{value}\" is already taken in line {}", self.what, self.source.line(first));
                Err(self.source.error(spelled.span(), message))
            }
        }
    }

    fn has(&self, value: &str) -> bool {
        self.claimed.contains_key(value)
    }
}

/// A directory file, indexed.
#[derive(Debug)]
pub struct FileDirectory {
    path: PathBuf,
    index: ArcSwap<Index>,
}

impl FileDirectory {
    /// Reads the file.
    /// # Errors
    /// What is wrong with it.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let index = Index::read(&Source::read(path)?)?;
        events::directory_read(path, index.tenants.len(), index.addresses);
        Ok(Self { path: path.to_owned(), index: ArcSwap::from_pointee(index) })
    }

    /// Reads the file, for the service.
    /// # Errors
    /// What is wrong with it.
    pub async fn settled(path: &Path) -> Result<Self, SourceError> {
        Self::open(path)
    }

    /// Reads the file again.
    /// # Errors
    /// What is wrong with it; nothing has changed then.
    pub async fn reload(&self) -> Result<(), SourceError> {
        self.index.store(Arc::new(Index::read(&Source::read(&self.path)?)?));
        Ok(())
    }

    /// Looks at the file every second and reads a new version, for as long as somebody has the directory.
    pub fn watch(self: &Arc<Self>) -> impl Future<Output = ()> + Send + use<> {
        let (directory, path) = (Arc::downgrade(self), self.path.clone());
        async move {
            let mut seen = Version::of(&path);
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let Some(directory) = directory.upgrade() else { return };
                let now = Version::of(&path);
                if now == seen {
                    continue;
                }
                seen = now;
                // A file of a hundred thousand addresses takes a moment; other tasks need the thread.
                let _ = tokio::task::spawn_blocking(move || directory.reread()).await;
            }
        }
    }

    fn reread(&self) {
        match Source::read(&self.path).and_then(|source| Index::read(&source)) {
            Ok(index) => {
                events::directory_read(&self.path, index.tenants.len(), index.addresses);
                self.index.store(Arc::new(index));
            }
            Err(error) => events::directory_refused(&error),
        }
    }
}

#[async_trait]
impl Directory for FileDirectory {
    async fn tenant(&self, prefix: &str) -> Result<Option<Tenant>, Unavailable> {
        Ok(self.index.load().tenants.get(prefix).map(|entry| entry.tenant.clone()))
    }

    async fn people(&self, tenant: &Tenant, addresses: &[Address]) -> Result<People, Unavailable> {
        let index = self.index.load();
        let entry = index.entry(tenant);
        let person = |address: &Address| {
            entry.and_then(|e| e.people.get(address.folded())).cloned().unwrap_or_default()
        };
        Ok(People { persons: addresses.iter().map(person).collect(), stale: false })
    }

    async fn project(
        &self,
        tenant: &Tenant,
        number: &str,
        _also: &[Address],
    ) -> Result<Option<Project>, Unavailable> {
        let index = self.index.load();
        Ok(index.entry(tenant).and_then(|entry| entry.projects.get(&number.to_lowercase())).cloned())
    }

    fn source(&self) -> String {
        let written = std::fs::metadata(&self.path).and_then(|meta| meta.modified());
        let age = written.ok().and_then(|written| written.elapsed().ok()).unwrap_or_default();
        let age = humantime::format_duration(Duration::from_secs(age.as_secs()));
        format!("{}, written {age} ago", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const APPENDIX_B: &str = include_str!("../../tests/directory.toml");

    fn index(text: &str) -> Result<Index, String> {
        Index::read(&Source::from_text(Path::new("d.toml"), text)).map_err(|error| error.to_string())
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

    #[tokio::test]
    async fn a_new_version_is_taken_and_a_broken_one_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("directory.toml");
        std::fs::write(&path, "[[tenant]]\nprefix = \"old\"\nid = \"1\"\n").unwrap();
        let file = Arc::new(FileDirectory::open(&path).unwrap());
        let watch = tokio::spawn(file.watch());
        tokio::task::yield_now().await;

        let known = async |prefix: &str| file.tenant(prefix).await.unwrap().is_some();
        let wait_for = async |prefix: &str| {
            for _ in 0..200 {
                if known(prefix).await {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            false
        };
        std::fs::write(&path, "[[tenant]]\nprefix = \"broken").unwrap();
        tokio::time::sleep(LOOK_EVERY * 2).await;
        assert!(known("old").await);

        // As editors do: a new file renamed over the old one.
        std::fs::write(path.with_extension("new"), "[[tenant]]\nprefix = \"new\"\nid = \"1\"\n").unwrap();
        std::fs::rename(path.with_extension("new"), &path).unwrap();
        assert!(wait_for("new").await);
        assert!(!known("old").await);
        watch.abort();
    }
}
