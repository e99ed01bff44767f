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
        if record.of(&name).is_some() && new == was && Some(&was) != record.of(&name).map(|c| &c.was) {
            plan.note(&format!("Somebody has changed it since, and it stays: {}", said(&name, &was)));
        }
        plan.change(name, was, new);
    }
    // A table that somebody keeps is his to write.
    for (table, key) in routed_to_us(settings, config)? {
        if inline(&table).is_none() {
            plan.note(&format!(
                "{table} in transport_maps still brings {key} to activity-milter's LMTP listener: take that line out."
            ));
        }
    }
    let listed = settings.written("relay_domains").map(split).unwrap_or_default();
    for domain in listed.iter().filter(|domain| is_integration(config, domain)) {
        if record.of(&Name::Main("relay_domains".to_owned())).is_none() {
            plan.note(&format!("Nothing says who put {domain} into relay_domains, and it stays."));
        }
    }
    for name in SILENT {
        let value = settings.written(name).map(str::to_owned);
        let name = Name::Main(name.to_owned());
        if value.is_some() && record.of(&name).is_none() {
            plan.note(&format!("Nothing says whose this is, and it stays: {}", said(&name, &value)));
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

/// The value without what is ours.
fn without_ours(settings: &Settings, config: &Config, name: &Name, is: &Value, record: &Record) -> Value {
    let changed = record.of(name);
    if let Some(changed) = changed.filter(|changed| changed.now == *is) {
        // A dead entry of ours that print had replaced does not come back.
        let lives = |element: &String| {
            !name.parameter().ends_with("smtpd_milters")
                || !is_our_element(settings, config, name.parameter(), element, "", record)
        };
        let restored = |was: String| {
            let elements = split(&was);
            let living: Vec<String> = elements.iter().filter(|element| lives(element)).cloned().collect();
            if living.len() == elements.len() { was } else { living.join(", ") }
        };
        return changed.was.clone().map(|was| for_place(name, restored(was)));
    }
    let Some(value) = is else { return None };
    let transports = TRANSPORTS.map(Class::transport);
    if transports.contains(&name.parameter()) {
        let ours = is_to_us(settings, config, settings.main(name.parameter()));
        return if ours { changed.and_then(|changed| changed.was.clone()) } else { is.clone() };
    }
    if !LISTS.contains(&name.parameter()) {
        return is.clone();
    }
    let before = split(changed.and_then(|changed| changed.was.as_deref()).unwrap_or_default());
    let recorded = record.added(name);
    let elements = split(value);
    let is_out =
        |element: &str| is_our_element(settings, config, name.parameter(), element, &recorded, record);
    let kept = |element: &String| match before.contains(element) {
        true => Some(element.clone()),
        false if is_out(element) => None,
        false => without_our_entries(settings, config, name, element, record),
    };
    let kept: Vec<String> = elements.iter().filter_map(kept).collect();
    match kept.len() {
        _ if kept == elements => is.clone(),
        0 => changed.and_then(|changed| changed.was.as_ref()).map(|_| String::new()),
        _ => Some(for_place(name, kept.join(", "))),
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
            ours || is_old(settings, config, &entry, recorded, record)
        }),
        // Also one of ours from before integration_domains changed.
        "relay_domains" => {
            is_integration(config, element) || split(recorded).iter().any(|ours| ours == element)
        }
        "smtp_header_checks" => element == NO_BCC,
        "header_checks" => split(recorded).contains(&dense(element)),
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
        // What leads elsewhere is somebody's choice.
        let to_us = list != "transport_maps" || is_to_us(settings, config, &entry.1);
        !(recorded.contains(entry) || ours && to_us)
    })
}
