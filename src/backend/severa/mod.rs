//! Deliveries to Visma Severa: an activity, its participants, its files, one call each, and every call noted before.
//!
//! In: a delivery, and how far an attempt before came. Out: an [`Outcome`].
//! Promise: nothing is created twice. Before each call that creates something its intent is committed; an answer that was
//! lost is looked for, a while later, before anything is created again. What one company's settings are wrong about pauses
//! that company alone.
//! Fails: never; a failure is an outcome.
//!
//! Why a search: the API knows no idempotency key, so the activity carries a marker in the last line of its notes, and each
//! file one in its description. What remains is a call that Severa ends after we searched: `docs/severa.md`.

mod company;
mod note;
mod settle;
mod steps;
mod stop;
mod text;

pub use company::CompanySettings;
pub use settle::Unsure;
pub use text::LEAST_NOTES;

use super::{Backend, Check, Delivery, Journal, Outcome, Scope};
use async_trait::async_trait;
use company::Company;
use std::{collections::HashMap, sync::Arc, time::Duration};
use steps::Steps;

/// The companies, and what is not known yet of calls whose answers were lost.
#[derive(Debug)]
pub struct SeveraBackend {
    companies: HashMap<String, Company>,
    unsure: Arc<Unsure>,
}

impl SeveraBackend {
    /// Delivers for these companies. `unsure` goes from one configuration to the next.
    pub fn new(companies: Vec<CompanySettings>, unsure: Arc<Unsure>) -> Self {
        let companies =
            companies.into_iter().map(|settings| (settings.prefix.clone(), Company::new(settings)));
        Self { companies: companies.collect(), unsure }
    }
}

#[async_trait]
impl Backend for SeveraBackend {
    async fn deliver(&self, delivery: &Delivery, journal: &dyn Journal) -> Outcome {
        let prefix = &delivery.activity.tenant.prefix;
        let Some(company) = self.companies.get(prefix) else {
            let reason = format!("there is no [[severa]] with prefix = \"{prefix}\" any more");
            return Outcome::Misconfigured { scope: Scope::Tenant, after: None, reason };
        };
        let steps = Steps { company, delivery, journal, unsure: &self.unsure };
        match steps.take().await {
            Ok(()) => Outcome::Taken,
            Err(stop) => stop.0,
        }
    }

    async fn check(&self, patience: Duration) -> Vec<Check> {
        let mut prefixes: Vec<&String> = self.companies.keys().collect();
        prefixes.sort();
        let mut lines = Vec::new();
        for prefix in prefixes {
            lines.extend(self.companies[prefix].check(patience).await);
        }
        lines
    }
}
