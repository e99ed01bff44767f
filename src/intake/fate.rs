//! What becomes of each recipient, and of the message because of it.
//!
//! In: recipients in the order of RCPT, each with its [`Fate`]. Out: whom the rules are asked about, whom Postfix is to deliver
//! to. Promise: this is the one place where a recipient is remembered; all else is derived from it.
//! Fails: never.

use super::service::Policy;
use crate::mail::{Address, Recipient};
use crate::rules::{Reply, Target};
use std::{
    collections::HashSet,
    ffi::{CStr, CString},
};

/// What becomes of a recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Other people's mail: no integration address, or one that shadow mode does not refuse.
    Other,
    /// An activity of this target, if the rules agree.
    Target(Target),
    /// Judged and logged as an activity of this target would be, and otherwise other people's mail (shadow mode).
    Shadowed(Target),
    /// Refused or deferred at RCPT; the message goes on without it.
    Refused(Reply),
}

/// Whether the rest of a message is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Nothing of ours in it: let it pass and ask no more.
    Nothing,
    /// Go on.
    Message,
}

/// What becomes of a message in Postfix that is neither refused nor deferred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Then {
    /// Delivered to all.
    Pass,
    /// Taken, and nobody else gets it.
    Discard,
    /// Taken; it is delivered without these recipients, written as DELRCPT wants them.
    DeliverWithout(Vec<CString>),
}

/// The recipients of a transaction, but for those who were refused.
#[derive(Debug, Default)]
pub(super) struct Recipients(Vec<Taken>);

#[derive(Debug)]
struct Taken {
    /// As it was sent, and read; none for what is no address, and for one that is not to be shown to anybody.
    recipient: Option<Recipient>,
    fate: Fate,
}

impl Recipients {
    /// One more recipient.
    /// # Errors
    /// The reply, to one that is refused.
    pub(super) fn add(&mut self, path: &CStr, address: Option<Address>, fate: Fate) -> Result<(), Reply> {
        let tenant = match &fate {
            Fate::Refused(reply) => return Err(reply.clone()),
            Fate::Target(target) | Fate::Shadowed(target) => Some(target.tenant.id.clone()),
            Fate::Other => None,
        };
        let recipient = address.map(|address| Recipient { raw: path.to_owned(), address, tenant });
        self.0.push(Taken { recipient, fate });
        Ok(())
    }

    /// Whom the rules decide about, in the order of RCPT.
    pub(super) fn targets(&self) -> impl Iterator<Item = &Target> {
        self.0.iter().filter_map(|taken| match &taken.fate {
            Fate::Target(target) => Some(target),
            _ => None,
        })
    }

    /// Whom the rules are asked about for the log alone.
    pub(super) fn shadowed(&self) -> impl Iterator<Item = &Target> {
        self.0.iter().filter_map(|taken| match &taken.fate {
            Fate::Shadowed(target) => Some(target),
            _ => None,
        })
    }

    /// True if the message concerns anybody beside the targets.
    pub(super) fn has_others(&self) -> bool {
        self.0.iter().any(|taken| matches!(taken.fate, Fate::Other | Fate::Shadowed(_)))
    }

    /// Whether anybody here is a target, in shadow mode or not.
    pub(super) fn interest(&self) -> Interest {
        let wanted = self.0.iter().any(|taken| matches!(taken.fate, Fate::Target(_) | Fate::Shadowed(_)));
        if wanted { Interest::Message } else { Interest::Nothing }
    }

    /// Those with an address, as the envelope of the message has them.
    pub(super) fn named(&self) -> impl Iterator<Item = &Recipient> {
        self.0.iter().filter_map(|taken| taken.recipient.as_ref())
    }

    /// What becomes of the message in Postfix once its activities are recorded; `is_without`: true of the tenants for whom
    /// nothing is.
    pub(super) fn after_accept(&self, policy: &Policy, is_without: impl Fn(&str) -> bool) -> Then {
        let leaves = |target: &Target| !policy.keep_after_accept || is_without(&target.tenant.id);
        let mut seen = HashSet::new();
        let taken_out: Vec<CString> = self
            .0
            .iter()
            .filter(|taken| matches!(&taken.fate, Fate::Target(target) if leaves(target)))
            .filter_map(|taken| taken.recipient.as_ref())
            .map(|recipient| crate::mail::without_route(&recipient.raw))
            .filter(|path| seen.insert(path.clone()))
            .collect();
        let anybody_left = self.has_others() || self.targets().any(|target| !leaves(target));
        match (taken_out.is_empty(), anybody_left) {
            (true, _) => Then::Pass,
            (false, true) => Then::DeliverWithout(taken_out),
            (false, false) => Then::Discard,
        }
    }
}
