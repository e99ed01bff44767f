//! What a tenant's people expect of the service: who counts as a sender, what becomes of machines' mail.
//!
//! In: what the service's configuration says, and what the tenant's entry in the directory wishes. Out: the policy that
//! counts for the tenant, and who says so.
//! Promise: what a tenant says replaces the service's word, key by key; of two words on `require` the stricter wins.
//! Fails: never.

use crate::mail::Automatic;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What counts for a tenant. The default: nothing is asked of anybody, and all mail is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantPolicy {
    /// What is asked of a user as sender.
    pub require: Require,
    /// What becomes of machines' mail; kinds that are not here are accepted.
    pub automatic: BTreeMap<Automatic, Treatment>,
}

/// What a tenant says; what it does not say is the service's word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// What is asked of a user as sender, at least.
    pub require: Option<Require>,
    /// What becomes of machines' mail, by kind.
    pub automatic: BTreeMap<Automatic, Treatment>,
}

/// What is asked of a user as sender; the stricter is the greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Require {
    /// Nothing.
    #[default]
    None,
    /// That it is them: the SMTP client or the domain says so.
    Authenticated,
}

/// What becomes of a kind of mail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Treatment {
    /// It is recorded as any other.
    #[default]
    Accept,
    /// It is refused (550).
    Refuse,
    /// It is taken, and nothing becomes of it.
    Discard,
}

/// Why nothing becomes of a message that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// It is our own notice of held activities.
    OwnNotice,
    /// The policy says so of this kind of automatic mail.
    Automatic(Automatic),
}

/// Whose word counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Speaker {
    /// The configuration's `[policy]`, or the default.
    Service,
    /// The tenant's entry in the directory.
    Tenant,
}

/// One line of a policy that counts, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Said {
    /// The key, as it is configured.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Whose word it is.
    pub by: Speaker,
}

impl Require {
    /// The name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Authenticated => "authenticated",
        }
    }
}

impl Treatment {
    /// The name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Refuse => "refuse",
            Self::Discard => "discard",
        }
    }
}

impl Discard {
    /// The codes, for the log and the metrics.
    pub const CODES: [&str; 2] = ["own-notice", "automatic"];

    /// The code, in the log and the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OwnNotice => Self::CODES[0],
            Self::Automatic(_) => Self::CODES[1],
        }
    }

    /// The kind of automatic mail, where that is the reason.
    pub fn automatic(self) -> Option<&'static str> {
        match self {
            Self::OwnNotice => None,
            Self::Automatic(kind) => Some(kind.as_str()),
        }
    }
}

impl Speaker {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "the service's [policy]",
            Self::Tenant => "the tenant's policy",
        }
    }
}

impl TenantPolicy {
    /// What becomes of machines' mail of this kind.
    pub fn treatment(&self, kind: Automatic) -> Treatment {
        self.automatic.get(&kind).copied().unwrap_or_default()
    }
}

impl Wish {
    /// What counts for the tenant.
    pub fn over(&self, default: &TenantPolicy) -> TenantPolicy {
        let mut automatic = default.automatic.clone();
        automatic.extend(&self.automatic);
        TenantPolicy { require: self.require.unwrap_or_default().max(default.require), automatic }
    }

    /// Whose word the treatment of a kind is.
    pub fn speaker_on(&self, kind: Automatic) -> Speaker {
        if self.automatic.contains_key(&kind) { Speaker::Tenant } else { Speaker::Service }
    }

    /// What counts for the tenant and is not the default, or is the tenant's own word; a line for each key.
    pub fn said(&self, default: &TenantPolicy) -> Vec<Said> {
        let policy = self.over(default);
        // Where both say the same, the service would have said it alone.
        let by = if policy.require > default.require { Speaker::Tenant } else { Speaker::Service };
        let require = Said { key: "require".to_owned(), value: policy.require.as_str().to_owned(), by };
        let automatic = policy.automatic.iter().map(|(&kind, treatment)| Said {
            key: format!("automatic.{}", kind.as_str()),
            value: treatment.as_str().to_owned(),
            by: self.speaker_on(kind),
        });
        let is_default = |said: &Said| {
            let defaults = [Require::default().as_str(), Treatment::default().as_str()];
            said.by == Speaker::Service && defaults.contains(&said.value.as_str())
        };
        std::iter::once(require).chain(automatic).filter(|said| !is_default(said)).collect()
    }

    /// Memory beyond its own size, roughly.
    pub fn weight(&self) -> usize {
        self.automatic.len() * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Require::Authenticated;

    #[test]
    fn of_two_words_on_require_the_stricter_wins() {
        for (service, tenant, expected, by) in [
            (Require::None, None, Require::None, Speaker::Service),
            (Require::None, Some(Require::None), Require::None, Speaker::Service),
            (Require::None, Some(Authenticated), Authenticated, Speaker::Tenant),
            (Authenticated, None, Authenticated, Speaker::Service),
            (Authenticated, Some(Require::None), Authenticated, Speaker::Service),
            (Authenticated, Some(Authenticated), Authenticated, Speaker::Service),
        ] {
            let default = TenantPolicy { require: service, ..TenantPolicy::default() };
            let wish = Wish { require: tenant, ..Wish::default() };
            assert_eq!(wish.over(&default).require, expected, "{service:?} {tenant:?}");
            let said = wish.said(&default).first().map(|said| said.by);
            assert_eq!(said.unwrap_or(Speaker::Service), by, "{service:?} {tenant:?}");
        }
    }

    #[test]
    fn the_tenant_replaces_the_service_kind_by_kind() {
        let kinds = |kinds: &[(Automatic, Treatment)]| kinds.iter().copied().collect::<BTreeMap<_, _>>();
        let service = [(Automatic::Bounce, Treatment::Refuse), (Automatic::List, Treatment::Discard)];
        let tenant = [(Automatic::List, Treatment::Accept), (Automatic::Bulk, Treatment::Discard)];
        let default = TenantPolicy { automatic: kinds(&service), ..TenantPolicy::default() };
        let wish = Wish { automatic: kinds(&tenant), ..Wish::default() };
        let policy = wish.over(&default);
        for (kind, treatment) in [
            (Automatic::Bounce, Treatment::Refuse),
            (Automatic::Receipt, Treatment::Accept),
            (Automatic::List, Treatment::Accept),
            (Automatic::Bulk, Treatment::Discard),
        ] {
            assert_eq!(policy.treatment(kind), treatment, "{kind:?}");
        }
        let said: Vec<_> = wish.said(&default).into_iter().map(|said| (said.key, said.by)).collect();
        assert_eq!(
            said,
            [
                ("automatic.bounce".to_owned(), Speaker::Service),
                ("automatic.list".to_owned(), Speaker::Tenant),
                ("automatic.bulk".to_owned(), Speaker::Tenant),
            ]
        );
    }
}
