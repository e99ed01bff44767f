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
            false => without_ours(settings, config, &name, &was, record),
        };
        let sharable =
            !transport && !LISTS.contains(&name.parameter()) || name.parameter() == "smtp_header_checks";
        if sharable && new != was && record.is_needed_by_others(&name, &was) {
            plan.tell(&format!("Another activity-milter here needs it, and it stays: {}", said(&name, &was)));
            continue;
        }
        if name.parameter() == "relay_domains" {
            for domain in split(new.as_deref().unwrap_or_default()) {
                stays(&mut plan, config, record, &domain);
            }
        }
        if record.of(&name).is_some() && new == was && Some(&was) != record.of(&name).map(|c| &c.was) {
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

/// Says that one of our domains stays in `relay_domains`: without a way to us its mail may be accepted, and bounce.
fn stays(plan: &mut Plan, config: &Config, record: &Record, domain: &str) {
    if !is_integration(config, domain) {
        return;
    }
    let known = record.of(&Name::Main("relay_domains".to_owned())).is_some();
    let why = match (record.is_domain_of_others(domain), known) {
        (true, _) => format!("Another activity-milter here takes the mail of {domain}"),
        (false, true) => format!("{domain} stood in relay_domains before us"),
        (false, false) => format!("Nothing says who put {domain} into relay_domains"),
    };
    plan.tell(&format!("{why}, and it stays: take it out if its mail has no other way than to us."));
}

/// The value without what is ours.
fn without_ours(settings: &Settings, config: &Config, name: &Name, is: &Value, record: &Record) -> Value {
    let changed = record.of(name);
    if let Some(changed) = changed.filter(|changed| changed.now == *is) {
        // What of it is ours does not come back: a dead entry that print had replaced, a way that somebody put there.
        let before = changed.was.clone().filter(|was| !leads_to_us(settings, config, record, was));
        let was = before.clone().unwrap_or_default();
        let elements = split(&was);
        let kept: Vec<String> = elements
            .iter()
            .filter(|element| !is_our_milter(settings, config, name, element, record))
            .filter_map(|element| without_our_ways(settings, config, name, element, record))
            .collect();
        let needed = split(is.as_deref().unwrap_or_default()).into_iter().filter(|element| {
            let domain = name.parameter() == "relay_domains" && record.is_domain_of_others(element);
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
        let ours = leads_to_us(settings, config, record, settings.main(name.parameter()));
        let before = changed.and_then(|changed| changed.was.clone());
        return match ours {
            true => before.filter(|was| !leads_to_us(settings, config, record, was)),
            false => is.clone(),
        };
    }
    if !LISTS.contains(&name.parameter()) {
        return is.clone();
    }
    let before = split(changed.and_then(|changed| changed.was.as_deref()).unwrap_or_default());
    let recorded = record.added(name);
    let elements = split(value);
    let is_out =
        |element: &str| is_our_element(settings, config, name.parameter(), element, &recorded, record);
    let kept = |element: &String| {
        if is_our_milter(settings, config, name, element, record) {
            return None;
        }
        match before.contains(element) {
            true => without_our_ways(settings, config, name, element, record),
            false if is_out(element) => None,
            false => without_our_entries(settings, config, name, element, record),
        }
    };
    let kept: Vec<String> = elements.iter().filter_map(kept).collect();
    match kept.len() {
        _ if kept == elements => is.clone(),
        // Empty is what was empty before, and what had something of somebody's in it.
        0 => before_us(settings, config, name, changed?.was.as_ref()?, record),
        _ => Some(for_place(name, kept.join(", "))),
    }
}

/// Empty, or not set if all that was there is an activity-milter's.
fn before_us(settings: &Settings, config: &Config, name: &Name, was: &str, record: &Record) -> Value {
    let elements = split(was);
    let nobodys = |element: &String| {
        is_our_milter(settings, config, name, element, record)
            || name.parameter() == "relay_domains" && record.is_domain_of_others(element)
            || is_of_ours_by_name(name, element)
    };
    (elements.is_empty() || !elements.iter().all(nobodys)).then(String::new)
}

/// True if the name of a milter's socket is one of activity-milter's, of whichever.
fn is_of_ours_by_name(name: &Name, element: &str) -> bool {
    name.parameter() == "smtpd_milters" && element.contains("activity-milter/")
}

/// True if a transport comes to us, or to where we were.
fn leads_to_us(settings: &Settings, config: &Config, record: &Record, transport: &str) -> bool {
    is_to_us(settings, config, transport) || record.is_way(transport)
}

/// True if an element of a list of milters is ours, or was.
fn is_our_milter(settings: &Settings, config: &Config, name: &Name, element: &str, record: &Record) -> bool {
    name.parameter().ends_with("smtpd_milters")
        && is_our_element(settings, config, name.parameter(), element, "", record)
}

/// A table without what leads to us.
fn without_our_ways(
    settings: &Settings,
    config: &Config,
    name: &Name,
    element: &str,
    record: &Record,
) -> Option<String> {
    match name.parameter() {
        "transport_maps" => with_entries(element, |(_, way)| !leads_to_us(settings, config, record, way)),
        _ => Some(element.to_owned()),
    }
}

fn for_place(name: &Name, value: String) -> String {
    match name {
        Name::Main(_) => value,
        Name::Service(_) => dense(&value),
    }
}

/// True if an element of a list is there for us.
fn is_our_element(
    settings: &Settings,
    config: &Config,
    list: &str,
    element: &str,
    recorded: &str,
    record: &Record,
) -> bool {
    match list {
        "smtpd_milters" | "non_smtpd_milters" => MilterEntry::list(element).pop().is_some_and(|entry| {
            let ours = is_ours(settings, &config.milter, &entry.endpoint);
            ours || is_old(settings, config, &entry, record)
        }),
        // Also one of ours from before integration_domains changed.
        "relay_domains" => {
            let ours = is_integration(config, element) || record.is_domain(element);
            !record.is_domain_of_others(element)
                && (ours || split(recorded).iter().any(|ours| ours == element))
        }
        "smtp_header_checks" => element == NO_BCC,
        _ => false,
    }
}

/// A table in `main.cf` without what is there for us; none if nothing is left of it. What somebody has added stays.
fn without_our_entries(
    settings: &Settings,
    config: &Config,
    name: &Name,
    element: &str,
    record: &Record,
) -> Option<String> {
    let list = name.parameter();
    let recorded = record.entries(name);
    with_entries(element, |entry| {
        let ours = domain_of(list, entry).is_some_and(|domain| is_integration(config, &domain));
        if domain_of(list, entry).is_some_and(|domain| record.is_domain_of_others(&domain)) {
            return list != "transport_maps" || !leads_to_us(settings, config, record, &entry.1);
        }
        // What leads elsewhere is somebody's choice; what leads to us is ours, whatever its domain.
        match list {
            "transport_maps" => {
                !(recorded.contains(entry) || leads_to_us(settings, config, record, &entry.1))
            }
            _ => !(recorded.contains(entry) || ours),
        }
    })
}
