//! Who is who: tenants, people, projects.
//!
//! In: a prefix, addresses, a number. Out: the words of the rules.
//! Promise: an answer is the directory's own; "there is none" and "cannot say now" are never mixed up.
//! Fails: [`Unavailable`]; the caller defers the message.

mod cache;
mod file;
mod http;
mod policy;
mod severa;
pub mod wire;

pub use file::FileDirectory;
pub use http::HttpDirectory;
pub use policy::{PolicyText, table};
pub use severa::{SeveraDirectory, SeveraSettings, SeveraTenant};

use crate::mail::Address;
use crate::rules::{Person, Project, Tenant};
use crate::severa::CopyState;
use async_trait::async_trait;
use std::collections::{HashMap, HashSet};

/// The directory cannot answer now. The text is for the log.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// Whether a tenant can have this prefix.
/// # Errors
/// Why not, in words for an administrator.
pub fn check_prefix(prefix: &str) -> Result<(), String> {
    if !is_local(prefix) || prefix.contains('*') {
        return Err(format!(
            "prefix \"{prefix}\" cannot be the local part of an address: write one like \"mycompany\""
        ));
    }
    Ok(())
}

/// Longest local part of an address that others send to (RFC 5321, section 4.5.3.1.1).
const LONGEST_LOCAL: usize = 64;

/// True for what can stand before the @ of an address as it is: without quotes, blanks and comments.
fn is_local(text: &str) -> bool {
    let plain = |c: char| !c.is_whitespace() && !c.is_control() && !"@\"()<>,;:\\[]".contains(c);
    let has_labels = text.split('.').all(|label| !label.is_empty());
    let is_whole = has_labels && text.len() <= LONGEST_LOCAL && text.chars().all(plain);
    is_whole && Address::parse(&format!("{text}@a.test")).is_ok_and(|address| address.local() == text)
}

/// The people behind addresses.
#[derive(Clone, Debug, Default)]
pub struct People {
    /// One for each address, in the order asked.
    pub persons: Vec<Person>,
    /// Some of it is past its time, and the directory cannot be asked: good enough to record, not to refuse.
    pub stale: bool,
}

/// Answers questions about a tenant's people and projects. A trait because directories are the world outside: a file
/// here, the backend's look-ups there.
#[async_trait]
pub trait Directory: Send + Sync {
    /// The tenant whose prefix is exactly `prefix` (lower case).
    async fn tenant(&self, prefix: &str) -> Result<Option<Tenant>, Unavailable>;

    /// The first of the prefixes (lower case) that is a tenant's, with its place.
    async fn tenant_of(&self, prefixes: &[String]) -> Result<Option<(usize, Tenant)>, Unavailable> {
        for (index, prefix) in prefixes.iter().enumerate() {
            if let Some(tenant) = self.tenant(prefix).await? {
                return Ok(Some((index, tenant)));
            }
        }
        Ok(None)
    }

    /// The person behind each address.
    async fn people(&self, tenant: &Tenant, addresses: &[Address]) -> Result<People, Unavailable>;

    /// The tenant's project of a number, compared without case. `also`: people who will probably be asked for next; a
    /// directory that is far away can fetch them with the same request.
    async fn project(
        &self,
        tenant: &Tenant,
        number: &str,
        also: &[Address],
    ) -> Result<Option<Project>, Unavailable>;

    /// True if some tenant is in shadow mode, as far as is known.
    fn has_shadow(&self) -> bool {
        true
    }

    /// True if some tenant has a word of its own on who is never recorded, or may have.
    fn says_never_log(&self) -> bool {
        true
    }

    /// Where the answers come from, for people.
    fn source(&self) -> String {
        "memory".to_owned()
    }

    /// Names of the tenants with these ids, as far as they are known here: nobody is asked for them.
    fn names(&self, ids: &HashSet<&str>) -> HashMap<String, String> {
        let _ = ids;
        HashMap::new()
    }

    /// What was learnt of the tenants with these prefixes (lower case; an empty one: of all) may not be so any more: it is
    /// asked for anew, and stays for as long as nobody can answer.
    fn expire(&self, prefixes: &[String]) {
        let _ = prefixes;
    }

    /// How the copies are from which it answers, one for each tenant, if it has such.
    fn copies(&self) -> Vec<CopyState> {
        Vec::new()
    }
}

/// How long answers count.
#[derive(Clone, Debug)]
pub struct CacheSettings {
    /// What there is, unless the backend's Cache-Control says otherwise.
    pub hits: std::time::Duration,
    /// The same for "there is none".
    pub misses: std::time::Duration,
    /// Past their time, while the backend is down.
    pub stale: std::time::Duration,
    /// Memory for answers, in bytes.
    pub size: u64,
}

/// The names of those tenants that have one and are asked for.
fn names_of<'a>(tenants: impl Iterator<Item = &'a Tenant>, ids: &HashSet<&str>) -> HashMap<String, String> {
    let named = tenants.filter(|tenant| ids.contains(tenant.id.as_str()) && !tenant.name.is_empty());
    named.map(|tenant| (tenant.id.clone(), tenant.name.clone())).collect()
}
