//! Takes out of a Postfix what is ours.
//!
//! In: Postfix's settings, ours, the record of what was changed. Out: a [`Plan`].
//! Promise: what still has the value we gave it gets back the one it had; of a list that somebody has changed since, only
//! our elements go. Nothing else is touched.

use super::{
    add::{NO_BCC, is_old},
    former::domain_of,
    record::{LISTS, Name, Record, Value, said},
    script::{Plan, dense},
    settings::{MilterEntry, Settings, SettingsError, inline, split, with_entries},
    ways::{Class, is_integration, is_ours, is_to_us, routed_to_us},
};
use crate::config::Config;

/// Settings that may lead to our LMTP listener.
const TRANSPORTS: [Class; 4] = [Class::Relay, Class::VirtualMailbox, Class::Local, Class::Other];

/// Settings that deployments change and that do not tell whose they are.
const SILENT: [&str; 5] = [
    "in_flow_delay",
    "message_drop_headers",
    "message_size_limit",
    "lmtp_line_length_limit",
    "lmtp_send_xforward_command",
];

/// What to take out.
pub(super) fn remove(settings: &Settings, config: &Config, record: &Record) -> Result<Plan, SettingsError> {
    let removing = Removing { settings, config, record };
    let mut plan = Plan::default();
    plan.say("# Takes out what activity-milter's `postfix print` put in, and that only.\n");
    let mut names: Vec<Name> = record.all().map(|(name, _)| name.clone()).collect();
    let main = LISTS.into_iter().chain(TRANSPORTS.map(Class::transport));
    names.extend(main.map(|name| Name::Main(name.to_owned())));
    names.extend(settings.overrides_of("smtpd_milters").map(|(name, _)| Name::Service(name.to_owned())));
    names.sort();
    names.dedup();
    for name in names {
        let was: Value = match &name {
            Name::Main(name) => settings.written(name).map(str::to_owned),
            Name::Service(name) => settings.written_for(name).map(str::to_owned),
        };
        // What no print has changed is not ours, where the name alone does not say so.
        let transport = TRANSPORTS.iter().any(|class| class.transport() == name.parameter());
        let tells =
            transport || ["smtpd_milters", "non_smtpd_milters", "transport_maps"].contains(&name.parameter());
        let foreign = !tells && record.of(&name).is_none();
        let new = match foreign {
            true => was.clone(),
            false => removing.without_ours(&name, &was),
        };
        let sharable = !transport && !LISTS.contains(&name.parameter())
            || ["smtp_header_checks", "header_checks"].contains(&name.parameter());
        if sharable && new != was && record.is_needed_by_others(&name, &was) {
            plan.tell(&format!("Another activity-milter here needs it, and it stays: {}", said(&name, &was)));
            continue;
        }
        if name.parameter() == "relay_domains" {
            for domain in split(new.as_deref().unwrap_or_default()) {
                removing.stays(&mut plan, &domain);
            }
        }
        if record.of(&name).is_some_and(|changed| new == was && changed.was != was) {
            plan.tell(&format!("Somebody has changed it since, and it stays: {}", said(&name, &was)));
        }
        plan.change(name, was, new);
    }
    // A table that somebody keeps is his to write.
    for (table, key) in routed_to_us(settings, config)? {
        if inline(&table).is_none() {
            plan.tell(&format!(
                "{table} in transport_maps still brings {key} to activity-milter's LMTP listener: take that line out."
            ));
        }
    }
    for owner in record.other_owners() {
        plan.tell(&format!(
            "What the activity-milter with queue.path {owner} put in stays. If that was this one, before its queue and sockets \
             were changed, take it out with the configuration of then."
        ));
    }
    for name in SILENT {
        let value = settings.written(name).map(str::to_owned);
        let name = Name::Main(name.to_owned());
        if value.is_some() && record.of(&name).is_none() {
            plan.tell(&format!("Nothing says whose this is, and it stays: {}", said(&name, &value)));
        }
    }
    let saved: Vec<String> = record
        .all()
        .map(|(name, changed)| format!("#   {}", said(name, &changed.was)))
        .chain(record.copies.iter().map(|path| format!("#   {}", path.display())))
        .collect();
    if !saved.is_empty() {
        plan.say(&format!("\n# Saved, as it was before the first print:\n{}", saved.join("\n")));
    }
    Ok(plan)
}

/// What is needed to say whose something is.
struct Removing<'a> {
    settings: &'a Settings,
    config: &'a Config,
    record: &'a Record,
}

impl Removing<'_> {
    /// Says that one of our domains stays in `relay_domains`: without a way to us its mail may be accepted, and bounce.
    fn stays(&self, plan: &mut Plan, domain: &str) {
        if !is_integration(self.config, domain) {
            return;
        }
        let known = self.record.of(&Name::Main("relay_domains".to_owned())).is_some();
        let why = match (self.record.is_domain_of_others(domain), known) {
            (true, _) => format!("Another activity-milter here takes the mail of {domain}"),
            (false, true) => format!("{domain} stood in relay_domains before us"),
            (false, false) => format!("Nothing says who put {domain} into relay_domains"),
        };
        plan.tell(&format!("{why}, and it stays: take it out if its mail has no other way than to us."));
    }

    /// The value without what is ours.
    fn without_ours(&self, name: &Name, is: &Value) -> Value {
        let changed = self.record.of(name);
        if let Some(changed) = changed.filter(|changed| changed.now == *is) {
            // What of it is ours does not come back: a dead entry that print had replaced, a way that somebody put there.
            let before = changed.was.clone().filter(|was| !self.leads_to_us(was));
            let was = before.clone().unwrap_or_default();
            let elements = split(&was);
            let kept: Vec<String> = elements
                .iter()
                .filter(|element| !self.is_our_milter(name, element))
                .filter_map(|element| self.without_our_ways(name, element))
                .collect();
            let needed = split(is.as_deref().unwrap_or_default()).into_iter().filter(|element| {
                let domain = name.parameter() == "relay_domains" && self.record.is_domain_of_others(element);
                domain && !kept.contains(element)
            });
            let all: Vec<String> = kept.iter().cloned().chain(needed).collect();
            return match all.len() {
                _ if all == elements => before.map(|was| for_place(name, was)),
                0 => before.map(|_| String::new()),
                _ => Some(for_place(name, all.join(", "))),
            };
        }
        let Some(value) = is else { return None };
        let transports = TRANSPORTS.map(Class::transport);
        if transports.contains(&name.parameter()) {
            let ours = self.leads_to_us(self.settings.main(name.parameter()));
            let before = changed.and_then(|changed| changed.was.clone());
            return match ours {
                true => before.filter(|was| !self.leads_to_us(was)),
                false => is.clone(),
            };
        }
        if !LISTS.contains(&name.parameter()) {
            return is.clone();
        }
        let before = split(changed.and_then(|changed| changed.was.as_deref()).unwrap_or_default());
        let recorded = self.record.added(name);
        let elements = split(value);
        let is_out = |element: &str| self.is_our_element(name.parameter(), element, &recorded);
        let kept = |element: &String| {
            if self.is_our_milter(name, element) {
                return None;
            }
            match before.contains(element) {
                true => self.without_our_ways(name, element),
                false if is_out(element) => None,
                false => self.without_our_entries(name, element),
            }
        };
        let kept: Vec<String> = elements.iter().filter_map(kept).collect();
        match kept.len() {
            _ if kept == elements => is.clone(),
            // Empty is what was empty before, and what had something of somebody's in it.
            0 => self.before_us(name, changed?.was.as_ref()?),
            _ => Some(for_place(name, kept.join(", "))),
        }
    }

    /// Empty, or not set if all that was there is an activity-milter's.
    fn before_us(&self, name: &Name, was: &str) -> Value {
        let elements = split(was);
        let nobodys = |element: &String| {
            self.is_our_milter(name, element)
                || name.parameter() == "relay_domains" && self.record.is_domain_of_others(element)
                || is_of_ours_by_name(name, element)
        };
        (elements.is_empty() || !elements.iter().all(nobodys)).then(String::new)
    }

    /// True if a transport comes to us, or to where we were.
    fn leads_to_us(&self, transport: &str) -> bool {
        is_to_us(self.settings, self.config, transport) || self.record.is_way(transport)
    }

    /// True if an element of a list of milters is ours, or was.
    fn is_our_milter(&self, name: &Name, element: &str) -> bool {
        name.parameter().ends_with("smtpd_milters") && self.is_our_element(name.parameter(), element, "")
    }

    /// A table without what leads to us.
    fn without_our_ways(&self, name: &Name, element: &str) -> Option<String> {
        match name.parameter() {
            "transport_maps" => with_entries(element, |(_, way)| !self.leads_to_us(way)),
            _ => Some(element.to_owned()),
        }
    }

    /// True if an element of a list is there for us.
    fn is_our_element(&self, list: &str, element: &str, recorded: &str) -> bool {
        match list {
            "smtpd_milters" | "non_smtpd_milters" => MilterEntry::list(element).pop().is_some_and(|entry| {
                let ours = is_ours(self.settings, &self.config.milter, &entry.endpoint);
                ours || is_old(self.settings, self.config, &entry, self.record)
            }),
            // Also one of ours from before integration_domains changed.
            "relay_domains" => {
                let ours = is_integration(self.config, element) || self.record.is_domain(element);
                !self.record.is_domain_of_others(element)
                    && (ours || split(recorded).iter().any(|ours| ours == element))
            }
            "smtp_header_checks" => element == NO_BCC,
            "header_checks" => split(recorded).contains(&dense(element)),
            _ => false,
        }
    }

    /// A table in `main.cf` without what is there for us; none if nothing is left of it. What somebody has added stays.
    fn without_our_entries(&self, name: &Name, element: &str) -> Option<String> {
        let list = name.parameter();
        let recorded = self.record.entries(name);
        with_entries(element, |entry| {
            let domain = domain_of(list, entry);
            let of_others = domain.as_ref().is_some_and(|domain| self.record.is_domain_of_others(domain));
            // What leads elsewhere is somebody's choice; what leads to us is ours, whatever its domain.
            let ours = match list {
                "transport_maps" => self.leads_to_us(&entry.1),
                _ => !of_others && domain.is_some_and(|domain| is_integration(self.config, &domain)),
            };
            !(ours || !of_others && recorded.contains(entry))
        })
    }
}

/// True if the name of a milter's socket is one of activity-milter's, of whichever.
fn is_of_ours_by_name(name: &Name, element: &str) -> bool {
    name.parameter() == "smtpd_milters" && element.contains("activity-milter/")
}

fn for_place(name: &Name, value: String) -> String {
    match name {
        Name::Main(_) => value,
        Name::Service(_) => dense(&value),
    }
}
