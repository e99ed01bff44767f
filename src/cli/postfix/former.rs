//! What `postfix print` put into this Postfix for domains that `integration_domains` has no more.
//!
//! In: Postfix's lists, our configuration, the record of what was changed. Out: those domains, and lists without what is theirs.
//! Promise: only what the record has is taken out, and a domain to which somebody has given a way of its own stays his.
//! Why: a domain that stays in `relay_domains` has its mail accepted, and bounced after days; refused at once is better.

use super::{
    record::{Name, Record},
    settings::{Settings, SettingsError, inline, split, with_entries},
    ways::{is_integration, is_to_us},
};
use crate::config::Config;
use crate::mail::parse_path;

/// Lists in which deployments name our domains.
pub(super) const OF_DOMAINS: [&str; 5] =
    ["relay_domains", "transport_maps", "relay_recipient_maps", "virtual_mailbox_maps", "sender_bcc_maps"];

/// Domains that were ours.
pub(super) struct Former<'a> {
    config: &'a Config,
    record: &'a Record,
    /// In `relay_domains`, where we put them, and nobody else has a use for them.
    pub(super) domains: Vec<String>,
    /// In `relay_domains`, where we put them; their mail goes where somebody has said.
    of_somebody: Vec<String>,
}

impl<'a> Former<'a> {
    /// Asks the tables what they have for each.
    pub(super) fn of(
        settings: &Settings,
        config: &'a Config,
        record: &'a Record,
    ) -> Result<Self, SettingsError> {
        let listed = split(settings.written("relay_domains").unwrap_or_default()).into_iter();
        let former = listed.filter(|domain| record.is_domain(domain) && !is_integration(config, domain));
        let (mut domains, mut of_somebody) = (Vec::new(), Vec::new());
        for domain in former {
            match has_own_way(settings, config, record, &domain)? {
                true => of_somebody.push(domain),
                false => domains.push(domain),
            }
        }
        Ok(Self { config, record, domains, of_somebody })
    }

    /// Those whose way to us the next print takes out, whatever list they are in.
    pub(super) fn losing_their_way(&self) -> Vec<String> {
        let recorded = self.record.entries(&Name::Main("transport_maps".to_owned()));
        let keys = recorded.into_iter().filter_map(|entry| domain_of("transport_maps", &entry));
        let mut all: Vec<String> = keys.filter(|domain| !is_integration(self.config, domain)).collect();
        all.extend(self.domains.iter().cloned());
        all.sort();
        all.dedup();
        all
    }

    /// A list without what we put there for such domains.
    pub(super) fn without(&self, list: &str, value: &str) -> Vec<String> {
        if list == "relay_domains" {
            return split(value).into_iter().filter(|domain| !self.domains.contains(domain)).collect();
        }
        let recorded = self.record.entries(&Name::Main(list.to_owned()));
        let of_recipients = ["relay_recipient_maps", "virtual_mailbox_maps"].contains(&list);
        let is_former = |entry: &(String, String)| {
            let domain = domain_of(list, entry);
            // Recipients belong to their domain; a way to us is of no use to anybody.
            let stays = |domain: &String| {
                is_integration(self.config, domain) || of_recipients && self.of_somebody.contains(domain)
            };
            // Also what `check` has told somebody to put in.
            let ours = recorded.contains(entry) || list == "transport_maps" && self.record.is_way(&entry.1);
            ours && domain.is_some_and(|domain| !stays(&domain))
        };
        split(value)
            .into_iter()
            .filter_map(|element| with_entries(&element, |entry| !is_former(entry)))
            .collect()
    }
}

/// Whose an entry of a table is: the domain of its key, or that to which it sends copies.
pub(super) fn domain_of(list: &str, (key, value): &(String, String)) -> Option<String> {
    match list {
        "sender_bcc_maps" | "recipient_bcc_maps" => {
            Some(parse_path(value.as_bytes()).ok()??.domain().as_str().to_owned())
        }
        _ => Some(key.rsplit('@').next().unwrap_or(key).to_owned()),
    }
}

/// True if somebody else has said where a domain's mail goes.
fn has_own_way(
    settings: &Settings,
    config: &Config,
    record: &Record,
    domain: &str,
) -> Result<bool, SettingsError> {
    let recorded = record.entries(&Name::Main("transport_maps".to_owned()));
    for table in settings.tables("transport_maps") {
        let found = match inline(&table) {
            Some(entries) => entries
                .into_iter()
                .find(|entry| entry.0 == domain && !recorded.contains(entry))
                .map(|(_, transport)| transport),
            None => settings.ask_for_name(domain, &table)?,
        };
        if found.is_some_and(|transport| !is_to_us(settings, config, &transport)) {
            return Ok(true);
        }
    }
    Ok(false)
}
