//! Look-ups as they travel (`docs/backend-api.yaml`): what is asked, what is answered.
//!
//! Promise: as for activities: new fields may come, receivers ignore what they do not know.

use crate::rules::{Contact, Person, Project, Tenant, User};
use serde::{Deserialize, Serialize};

/// Answer of `GET /v1/tenants/{prefix}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TenantAnswer {
    /// The tenant's id.
    pub id: String,
    /// The prefix, lower case.
    pub prefix: String,
    /// A name for people.
    #[serde(default)]
    pub name: String,
    /// Whether mail to it is taken.
    #[serde(default = "yes")]
    pub active: bool,
    /// Default activity type.
    #[serde(default = "email")]
    pub activity_type: String,
    /// `shadow`: its mail is only judged and logged.
    #[serde(default)]
    pub mode: Mode,
}

/// Whether a tenant's mail counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It does.
    #[default]
    Live,
    /// It is judged and logged only.
    Shadow,
}

/// Request of `POST /v1/tenants/{prefix}/resolve`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ResolveRequest {
    /// Addresses, at most 1000; compare them without case.
    pub addresses: Vec<String>,
    /// A project number, compared without case, or null.
    #[serde(default)]
    pub project: Option<String>,
}

/// Answer of `POST /v1/tenants/{prefix}/resolve`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ResolveAnswer {
    /// The people among the addresses; who is not listed is unknown.
    #[serde(default)]
    pub people: Vec<PersonAnswer>,
    /// The project; null if there is none of that number, or none was asked for.
    #[serde(default)]
    pub project: Option<ProjectAnswer>,
}

/// Somebody with an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PersonAnswer {
    /// The address, as it was asked for.
    pub address: String,
    /// The user with this address, or null.
    #[serde(default)]
    pub user: Option<UserAnswer>,
    /// Contact persons with this address.
    #[serde(default)]
    pub contacts: Vec<ContactAnswer>,
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct UserAnswer {
    /// The user's id.
    pub id: String,
    /// A name, or null.
    #[serde(default)]
    pub name: Option<String>,
}

/// A contact person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ContactAnswer {
    /// The contact's id.
    pub id: String,
    /// A name, or null.
    #[serde(default)]
    pub name: Option<String>,
    /// The customer's id.
    pub customer_id: String,
}

/// A project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProjectAnswer {
    /// The project's id.
    pub id: String,
    /// Its number, as people write it.
    pub number: String,
    /// The customer it is for, or null.
    #[serde(default)]
    pub customer_id: Option<String>,
}

fn yes() -> bool {
    true
}

fn email() -> String {
    "Email".to_owned()
}

impl From<TenantAnswer> for Tenant {
    fn from(answer: TenantAnswer) -> Self {
        let TenantAnswer { id, prefix, name, active, activity_type, mode } = answer;
        Self { id, prefix: prefix.to_lowercase(), name, active, activity_type, shadow: mode == Mode::Shadow }
    }
}

impl From<Tenant> for TenantAnswer {
    fn from(tenant: Tenant) -> Self {
        let Tenant { id, prefix, name, active, activity_type, shadow } = tenant;
        Self { id, prefix, name, active, activity_type, mode: if shadow { Mode::Shadow } else { Mode::Live } }
    }
}

impl From<PersonAnswer> for Person {
    fn from(answer: PersonAnswer) -> Self {
        let contact = |c: ContactAnswer| Contact { id: c.id, name: c.name, customer_id: c.customer_id };
        Self {
            user: answer.user.map(|user| User { id: user.id, name: user.name }),
            contacts: answer.contacts.into_iter().map(contact).collect(),
        }
    }
}

impl PersonAnswer {
    /// What the directory says of an address.
    pub fn new(address: String, person: Person) -> Self {
        let contact = |c: Contact| ContactAnswer { id: c.id, name: c.name, customer_id: c.customer_id };
        Self {
            address,
            user: person.user.map(|user| UserAnswer { id: user.id, name: user.name }),
            contacts: person.contacts.into_iter().map(contact).collect(),
        }
    }
}

impl From<ProjectAnswer> for Project {
    fn from(answer: ProjectAnswer) -> Self {
        Self { id: answer.id, number: answer.number, customer: answer.customer_id }
    }
}

impl From<Project> for ProjectAnswer {
    fn from(project: Project) -> Self {
        Self { id: project.id, number: project.number, customer_id: project.customer }
    }
}
