//! Look-ups as they travel (`docs/backend-api.yaml`): what is asked, what is answered.
//!
//! Promise: as for activities: new fields may come, receivers ignore what they do not know.

use super::policy::Named;
use crate::mail::Automatic;
use crate::rules::{Answer, Contact, Internal, Person, Project, Require, Tenant, Treatment, User, Wish};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

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
    /// What the tenant expects of the service; what it does not say, the service's configuration says.
    #[serde(default)]
    pub policy: Option<PolicyAnswer>,
}

/// What a tenant expects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PolicyAnswer {
    /// What is asked of a user as sender; the service may ask for more.
    #[serde(default)]
    pub require: Option<Require>,
    /// Addresses, and domains without their subdomains: a message that names one of them anywhere is not recorded.
    #[serde(default)]
    pub never_log: Option<Vec<Named>>,
    /// Mail in which all people are users.
    #[serde(default)]
    pub internal: Option<Internal>,
    /// What is told of a message that is not recorded.
    #[serde(default)]
    pub answer: Option<Answer>,
    /// What becomes of machines' mail, by kind.
    #[serde(default)]
    pub automatic: Option<AutomaticAnswer>,
}

/// What becomes of machines' mail, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", default)]
pub struct AutomaticAnswer {
    /// Delivery reports, and anything else from the null sender.
    pub bounce: Option<Treatment>,
    /// Receipts that a message was read.
    pub receipt: Option<Treatment>,
    /// Answers that nobody wrote.
    pub auto_replied: Option<Treatment>,
    /// Programs' own mail.
    pub auto_generated: Option<Treatment>,
    /// Mail of mailing lists.
    pub list: Option<Treatment>,
    /// `Precedence: bulk` or `junk`.
    pub bulk: Option<Treatment>,
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
        let TenantAnswer { id, prefix, name, active, activity_type, mode, policy } = answer;
        let (prefix, shadow) = (prefix.to_lowercase(), mode == Mode::Shadow);
        let policy = Arc::new(policy.unwrap_or_default().into());
        Self { id, prefix, name, active, activity_type, shadow, policy }
    }
}

impl From<Tenant> for TenantAnswer {
    fn from(tenant: Tenant) -> Self {
        let Tenant { id, prefix, name, active, activity_type, shadow, policy } = tenant;
        let mode = if shadow { Mode::Shadow } else { Mode::Live };
        let policy = (*policy != Wish::default()).then(|| policy.as_ref().into());
        Self { id, prefix, name, active, activity_type, mode, policy }
    }
}

impl From<PolicyAnswer> for Wish {
    fn from(answer: PolicyAnswer) -> Self {
        Self {
            require: answer.require,
            automatic: answer.automatic.unwrap_or_default().kinds(),
            never_log: answer.never_log.map(Named::all),
            internal: answer.internal,
            answer: answer.answer,
        }
    }
}

impl From<&Wish> for PolicyAnswer {
    fn from(wish: &Wish) -> Self {
        let automatic = (!wish.automatic.is_empty()).then(|| AutomaticAnswer::of(&wish.automatic));
        let never_log = wish.never_log.as_ref().map(|never_log| Named::list(never_log));
        Self { require: wish.require, never_log, internal: wish.internal, answer: wish.answer, automatic }
    }
}

impl AutomaticAnswer {
    fn kinds(self) -> BTreeMap<Automatic, Treatment> {
        let said = [
            (Automatic::Bounce, self.bounce),
            (Automatic::Receipt, self.receipt),
            (Automatic::AutoReplied, self.auto_replied),
            (Automatic::AutoGenerated, self.auto_generated),
            (Automatic::List, self.list),
            (Automatic::Bulk, self.bulk),
        ];
        said.into_iter().filter_map(|(kind, treatment)| Some((kind, treatment?))).collect()
    }

    fn of(kinds: &BTreeMap<Automatic, Treatment>) -> Self {
        let of = |kind| kinds.get(&kind).copied();
        Self {
            bounce: of(Automatic::Bounce),
            receipt: of(Automatic::Receipt),
            auto_replied: of(Automatic::AutoReplied),
            auto_generated: of(Automatic::AutoGenerated),
            list: of(Automatic::List),
            bulk: of(Automatic::Bulk),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(policy: &str) -> Result<Wish, String> {
        let text = format!("{{\"id\": \"1\", \"prefix\": \"a\"{policy}}}");
        let answer = serde_json::from_str::<TenantAnswer>(&text).map_err(|error| error.to_string())?;
        let tenant = Tenant::from(answer);
        // What the sink answers is read as the same.
        assert_eq!(Tenant::from(TenantAnswer::from(tenant.clone())), tenant);
        Ok(tenant.policy.as_ref().clone())
    }

    /// D11.
    #[test]
    fn a_policy_is_read_as_far_as_it_is_known() {
        let strict = Wish { require: Some(Require::Authenticated), ..Wish::default() };
        let names = ["a@x.test".parse().unwrap(), "x.test".parse().unwrap()];
        let private = Wish {
            never_log: Some(Arc::new(names.into())),
            internal: Some(Internal::Skip),
            answer: Some(Answer::Discard),
            ..Wish::default()
        };
        let kinds = [(Automatic::AutoReplied, Treatment::Discard), (Automatic::Bulk, Treatment::Refuse)];
        let kinds = Wish { automatic: kinds.into(), ..Wish::default() };
        for (policy, expected) in [
            ("", Wish::default()),
            (", \"policy\": null", Wish::default()),
            (", \"policy\": {}", Wish::default()),
            (", \"policy\": {\"require\": null, \"automatic\": null}", Wish::default()),
            (", \"policy\": {\"require\": \"authenticated\", \"to_come\": 1}", strict),
            (
                ", \"policy\": {\"never_log\": [\"A@x.test\", \"x.test\"], \"internal\": \"skip\", \"answer\": \"discard\"}",
                private,
            ),
            (
                ", \"policy\": {\"automatic\": {\"auto-replied\": \"discard\", \"bulk\": \"refuse\", \"list\": null, \"to-come\": \"x\"}}",
                kinds,
            ),
        ] {
            assert_eq!(read(policy).unwrap(), expected, "{policy}");
        }
    }

    /// What we cannot read may be stricter than what we know: then the directory cannot say, and the message waits.
    #[test]
    fn a_word_that_is_not_known_is_no_answer() {
        for policy in [
            ", \"policy\": {\"require\": \"encrypted\"}",
            ", \"policy\": {\"automatic\": {\"bulk\": \"quarantine\"}}",
            ", \"policy\": \"authenticated\"",
            ", \"policy\": {\"never_log\": [\"no domain\"]}",
            ", \"policy\": {\"never_log\": \"x.test\"}",
            ", \"policy\": {\"internal\": \"hide\"}",
        ] {
            assert!(read(policy).is_err(), "{policy}");
        }
    }
}
