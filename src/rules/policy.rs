//! What a tenant's people expect of the service: who counts as a sender, what becomes of machines' mail, and what is not
//! to be recorded.
//!
//! In: what the service's configuration says, and what the tenant's entry in the directory wishes. Out: the policy that
//! counts for the tenant, and who says so.
//! Promise: what a tenant says replaces the service's word, key by key; of two words on `require` the stricter wins.
//! Fails: never.

use super::emergency::Who;
use crate::mail::Automatic;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What counts for a tenant. The default: nothing is asked of anybody, and all mail is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantPolicy {
    /// What is asked of a user as sender.
    pub require: Require,
    /// What becomes of machines' mail; kinds that are not here are accepted.
    pub automatic: BTreeMap<Automatic, Treatment>,
    /// A message that names one of these is not recorded.
    pub never_log: Arc<BTreeSet<Who>>,
    /// What becomes of mail among users alone.
    pub internal: Internal,
    /// What who sends such a message is told.
    pub answer: Answer,
}

/// What a tenant says; what it does not say is the service's word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// What is asked of a user as sender, at least.
    pub require: Option<Require>,
    /// What becomes of machines' mail, by kind.
    pub automatic: BTreeMap<Automatic, Treatment>,
    /// A message that names one of these is not recorded.
    pub never_log: Option<Arc<BTreeSet<Who>>>,
    /// What becomes of mail among users alone.
    pub internal: Option<Internal>,
    /// What who sends such a message is told.
    pub answer: Option<Answer>,
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

/// What becomes of mail in which all people are users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Internal {
    /// It is recorded as any other.
    #[default]
    Record,
    /// It is not recorded.
    Skip,
}

/// What who sends a message is told that is not to be recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// 550.
    #[default]
    Refuse,
    /// 250, and nothing becomes of it.
    Discard,
}

/// Why nothing becomes of a message that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// It is our own notice of held activities.
    OwnNotice,
    /// The policy says so of this kind of automatic mail.
    Automatic(Automatic),
    /// It names somebody of `never_log`.
    NeverLog,
    /// All people are users, and the policy skips such mail.
    Internal,
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
    pub const CODES: [&str; 4] = ["own-notice", "automatic", "never-log", "internal"];

    /// The code, in the log and the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OwnNotice => Self::CODES[0],
            Self::Automatic(_) => Self::CODES[1],
            Self::NeverLog => Self::CODES[2],
            Self::Internal => Self::CODES[3],
        }
    }

    /// The kind of automatic mail, where that is the reason.
    pub fn automatic(self) -> Option<&'static str> {
        match self {
            Self::OwnNotice | Self::NeverLog | Self::Internal => None,
            Self::Automatic(kind) => Some(kind.as_str()),
        }
    }

    /// True for what log and trace hold no address of.
    pub fn is_private(self) -> bool {
        matches!(self, Self::NeverLog | Self::Internal)
    }
}

impl Internal {
    /// The name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Skip => "skip",
        }
    }
}

impl Answer {
    /// The name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Discard => "discard",
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
        TenantPolicy {
            require: self.require.unwrap_or_default().max(default.require),
            automatic,
            never_log: self.never_log_over(default),
            internal: self.internal.unwrap_or(default.internal),
            answer: self.answer.unwrap_or(default.answer),
        }
    }

    /// True if it names somebody who is never recorded.
    pub fn says_never_log(&self) -> bool {
        self.never_log.as_ref().is_some_and(|never_log| !never_log.is_empty())
    }

    /// Who is never recorded for the tenant.
    pub fn never_log_over(&self, default: &TenantPolicy) -> Arc<BTreeSet<Who>> {
        Arc::clone(self.never_log.as_ref().unwrap_or(&default.never_log))
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
            let defaults =
                [Require::default().as_str(), Treatment::default().as_str(), Internal::default().as_str()];
            said.by == Speaker::Service && defaults.contains(&said.value.as_str())
        };
        let by = |is_said: bool| if is_said { Speaker::Tenant } else { Speaker::Service };
        let said = |key: &str, value: String, is_said| Said { key: key.to_owned(), value, by: by(is_said) };
        let never_log = policy.never_log.len();
        let privacy = [
            said("never_log", format!("{never_log} addresses and domains"), self.never_log.is_some()),
            said("internal", policy.internal.as_str().to_owned(), self.internal.is_some()),
            said("answer", policy.answer.as_str().to_owned(), self.answer.is_some()),
        ];
        // An answer nobody gets, and a list of nobody, say nothing.
        let privacy = privacy.into_iter().filter(|said| match said.key.as_str() {
            "never_log" => never_log > 0 || said.by == Speaker::Tenant,
            "answer" => never_log > 0 || policy.internal == Internal::Skip,
            _ => true,
        });
        std::iter::once(require).chain(automatic).chain(privacy).filter(|said| !is_default(said)).collect()
    }

    /// Memory beyond its own size, roughly.
    pub fn weight(&self) -> usize {
        self.automatic.len() * 4 + self.never_log.as_ref().map_or(0, |never_log| never_log.len() * 80)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Require::Authenticated;

    /// D11.
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

    /// D11.
    #[test]
    fn what_a_tenant_says_of_privacy_replaces_our_word() {
        let names = |name: &str| Arc::new(BTreeSet::from([name.parse::<Who>().unwrap()]));
        let default = TenantPolicy {
            never_log: names("law.test"),
            internal: Internal::Skip,
            answer: Answer::Discard,
            ..TenantPolicy::default()
        };
        let policy = Wish::default().over(&default);
        assert_eq!(policy, default);
        let wish = Wish {
            never_log: Some(Arc::default()),
            internal: Some(Internal::Record),
            answer: Some(Answer::Refuse),
            ..Wish::default()
        };
        assert_eq!(wish.over(&default), TenantPolicy::default());
        let said: Vec<_> =
            wish.said(&default).into_iter().map(|said| (said.key, said.value, said.by)).collect();
        let tenant = |key: &str, value: &str| (key.to_owned(), value.to_owned(), Speaker::Tenant);
        assert_eq!(said, [tenant("never_log", "0 addresses and domains"), tenant("internal", "record")]);
        let wish = Wish { never_log: Some(names("a@x.test")), ..Wish::default() };
        assert_eq!(wish.over(&default).never_log, names("a@x.test"));
    }

    /// D11.
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
