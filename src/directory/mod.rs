//! Who is who: tenants, people, projects.
//!
//! In: a prefix, addresses, a number. Out: the words of the rules.
//! Promise: an answer is the directory's own; "there is none" and "cannot say now" are never mixed up.
//! Fails: [`Unavailable`]; the caller defers the message.

mod file;

pub use file::FileDirectory;

use crate::mail::Address;
use crate::rules::{Person, Project, Tenant};
use async_trait::async_trait;

/// The directory cannot answer now. The text is for the log.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

/// Answers questions about a tenant's people and projects. A trait because directories are the world outside: a file
/// here, the backend's look-ups later.
#[async_trait]
pub trait Directory: Send + Sync {
    /// The tenant whose prefix is exactly `prefix` (lower case).
    async fn tenant(&self, prefix: &str) -> Result<Option<Tenant>, Unavailable>;

    /// The person behind each address, in the order asked.
    async fn people(&self, tenant: &Tenant, addresses: &[Address]) -> Result<Vec<Person>, Unavailable>;

    /// The tenant's project of a number, compared without case.
    async fn project(&self, tenant: &Tenant, number: &str) -> Result<Option<Project>, Unavailable>;
}

/// Settings of the directory.
#[derive(Clone, Debug)]
pub enum Settings {
    /// A TOML file (DESIGN appendix B).
    File {
        /// Its path.
        path: std::path::PathBuf,
    },
}
