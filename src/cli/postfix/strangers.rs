//! What [`super::check`] finds at milters that are not ours, and in other domains' mail.
//!
//! In: every entry of every list of milters; what leads to our LMTP listener. Out: findings.
//! Why here: a milter that nobody answers, whoever's it is, is everybody's mail at 451; and a relay that sends another
//! domain's mail to us loses it with 550.

use super::{
    add::is_old,
    check::{Checks, Severity, version},
    print::endpoint,
    probe::{Endpoint, Protocol, is_possible},
    record::{Changed, Name},
    settings::{MilterEntry, Service, SettingsError, is_action, is_version, split},
    ways::{Class, Others, is_integration, is_ours, is_to_us, sample, transport_of},
};

/// Why other domains' mail must not come to us.
const NOT_OURS: &str = "activity-milter takes no mail of other domains: it is answered 451, waits in Postfix, and bounces after days";

/// Settings with a transport that count beside those of the domain, for whoever's mail it is.
const DETOURS: [&str; 3] = ["content_filter", "mailbox_transport", "fallback_transport"];

/// The same as tables, by address.
const DETOUR_TABLES: [&str; 3] =
    ["mailbox_transport_maps", "fallback_transport_maps", "sender_dependent_default_transport_maps"];

/// An address of nobody's, to see where mail to the rest of the world goes.
const ELSEWHERE: &str = "activity-milter-check.invalid";

impl Checks<'_> {
    /// Every milter that is not ours, of smtpd and of cleanup.
    pub(super) fn strangers(&mut self) {
        let settings = self.settings;
        for (command, list) in [("smtpd", "smtpd_milters"), ("cleanup", "non_smtpd_milters")] {
            for service in settings.services(command) {
                let options = split(settings.of(service, "receive_override_options"));
                if options.contains(&"no_milters".to_owned()) {
                    continue;
                }
                for entry in MilterEntry::list(settings.of(service, list)) {
                    self.stranger(service, list, &entry);
                }
            }
        }
        let maps = settings.main("smtpd_milter_maps");
        if !maps.is_empty() {
            let reason =
                "clients that it has ask the milters it names, and no others; they are not looked at here";
            let remedy =
                "see that its milters answer, and that ours is among them where it should be".to_owned();
            self.find(Severity::Note, "milter-maps", format!("smtpd_milter_maps = {maps}"), reason, remedy);
        }
    }

    fn stranger(&mut self, service: &Service, list: &str, entry: &MilterEntry) {
        let (settings, config) = (self.settings, self.config);
        let action = entry.setting("default_action", settings, service).to_owned();
        let consequence = match (action.as_str(), list) {
            ("accept", _) => "mail goes on without it",
            ("reject", "smtpd_milters") => "all mail of this service is refused for good",
            ("quarantine", _) => "all mail goes to the hold queue, and stays there",
            ("shutdown", "smtpd_milters") => "every client of this service is disconnected with 421",
            (_, "smtpd_milters") => "all mail of this service is answered 451",
            _ => "local mail stays in the queue",
        };
        let severity = if action == "accept" { Severity::Should } else { Severity::Must };
        let setting = format!("{}: {list} has {}", service.name, entry.endpoint);
        if let Some(flaw) = &entry.flaw {
            let program = if list == "smtpd_milters" { "smtpd" } else { "cleanup" };
            let reason = format!(
                "Postfix does not take this entry ({flaw}): {program} ends at once, and no mail passes"
            );
            let ours = is_ours(settings, &config.milter, &entry.endpoint);
            let hint = if ours { "" } else { "write it right, or take it out: " };
            let remedy = self.without(service, list, entry, hint);
            return self.find(Severity::Must, "milter", setting, &reason, remedy);
        }
        self.unknown_values(service, list, entry);
        let Some(endpoint) = Endpoint::of_milter(&entry.endpoint) else {
            let reason =
                format!("Postfix does not understand it (unix:PATH or inet:HOST:PORT), and {consequence}");
            let remedy = self.without(service, list, entry, "write it right, or take it out: ");
            return self.find(severity, "milter", setting, &reason, remedy);
        };
        if is_ours(settings, &config.milter, &entry.endpoint) {
            return; // looked at with our own
        }
        if config.lmtp.as_ref().is_some_and(|lmtp| is_ours(settings, lmtp, &entry.endpoint)) {
            let reason =
                format!("that is activity-milter's LMTP listener, which is no milter: {consequence}");
            let remedy = self.without(service, list, entry, "");
            return self.find(severity, "milter", setting, &reason, remedy);
        }
        let protocol = version(entry.setting("protocol", settings, service));
        let Err(why) = self.reach(service, Protocol::Milter, &endpoint, protocol) else { return };
        let (what, hint) = match is_old(settings, config, entry, self.record) {
            true => ("an old entry of activity-milter's, whose milter listens elsewhere now: ", ""),
            false => ("", "start that milter, or take it out: "),
        };
        if !is_possible() && why.contains("Permission denied") {
            let remedy = "run the check as root, which tries as user postfix".to_owned();
            return self.find(Severity::Note, "milter", setting, "you may not connect to it", remedy);
        }
        let from = if service.chroot { ", chrooted," } else { "" };
        let user = settings.main("mail_owner");
        let reason = format!("{what}user {user}{from} cannot reach it ({why}), and {consequence}");
        let remedy = self.without(service, list, entry, hint);
        self.find(severity, "milter", setting, &reason, remedy);
    }

    /// Values that Postfix does not know, of the entry or for all milters.
    fn unknown_values(&mut self, service: &Service, list: &str, entry: &MilterEntry) {
        let value = |name| entry.setting(name, self.settings, service).to_owned();
        let (action, protocol) = (value("default_action"), value("protocol"));
        let mut unknown = Vec::new();
        if !is_action(&action) {
            let reason = "Postfix does not know that action: while the milter is down, mail is answered 451";
            unknown.push((Severity::Should, "default_action", action, reason, "tempfail"));
        }
        if !is_version(&protocol) {
            let reason = "Postfix does not know that version: all mail of this service is answered 451";
            unknown.push((Severity::Must, "protocol", protocol, reason, "6"));
        }
        for (severity, name, value, reason, better) in unknown {
            let setting =
                format!("{}: {list} has {}, and its {name} is {value}", service.name, entry.endpoint);
            let remedy = self.set_entry(service, list, entry, name, better);
            self.find(severity, "milter-setting", setting, reason, remedy);
        }
    }

    /// A command that takes an entry out; ours comes in its place if it was meant and is not there.
    fn without(&self, service: &Service, list: &str, entry: &MilterEntry, hint: &str) -> String {
        let (settings, config) = (self.settings, self.config);
        let is = |element: &String| MilterEntry::list(element).pop();
        let parameter = format!("{}/{list}", service.name);
        let written = match settings.written_for(&parameter) {
            Some(value) => value.to_owned(),
            None => settings.base(list).unwrap_or_default(),
        };
        let expanded = split(settings.of(service, list));
        // A `$name` that hides it is written out.
        let elements = split(&written);
        let elements =
            if elements.iter().any(|e| is(e).as_ref() == Some(entry)) { elements } else { expanded };
        let ours = |e: &String| is(e).is_some_and(|e| is_ours(settings, &config.milter, &e.endpoint));
        let mut kept: Vec<String> =
            elements.into_iter().filter(|element| is(element).as_ref() != Some(entry)).collect();
        if hint.is_empty() && list == "smtpd_milters" && !kept.iter().any(ours) {
            let endpoint = endpoint(&config.milter, settings.queue_directory());
            kept.push(format!("{{ {endpoint}, default_action=accept }}"));
        }
        format!("{hint}{}", self.set_for(service, list, &kept.join(", ")))
    }

    /// Domains that were ours, and that this Postfix still takes: nobody records their mail.
    pub(super) fn former(&mut self) -> Result<(), SettingsError> {
        let print = match self.all_shadowed() {
            true => format!("{} | sh, then {}", self.print("--remove"), self.print("shared-mx --shadow")),
            false => self.print(&self.deployment()),
        };
        for domain in self.former.domains.clone() {
            let transport = transport_of(self.settings, &sample(&domain), Class::Relay)?;
            let setting = format!("{domain} is in relay_domains, and its transport is {transport}");
            let reason = "`postfix print` put it there, and integration_domains has it no more: its mail is accepted, and nobody \
                          records it; it waits in Postfix, and bounces";
            self.find(Severity::Must, "former-domain", setting, reason, format!("{print} | sh"));
        }
        Ok(())
    }

    /// Nobody else's mail may come to our LMTP listener.
    pub(super) fn others(&mut self) -> Result<(), SettingsError> {
        let (settings, config) = (self.settings, self.config);
        let is_to_us = |transport: &str| is_to_us(settings, config, transport);
        let others = Others::of(settings, config, &self.former.domains)?;
        let reason = NOT_OURS;
        for (domain, class) in &others.named {
            let (domain, pattern) = match domain.strip_prefix('.') {
                Some(parent) => (format!("activity-milter-check.{parent}"), domain.as_str()),
                None => (domain.clone(), domain.as_str()),
            };
            let transport = transport_of(settings, &sample(&domain), *class)?;
            if is_to_us(&transport) {
                let setting = format!("{pattern} is in {}, and its transport is {transport}", class.list());
                self.find(Severity::Must, "others", setting, reason, self.elsewhere(pattern, *class));
            }
        }
        for list in &others.hidden {
            let class = super::ways::LISTS.iter().find(|(name, _)| name == list).map(|(_, class)| *class);
            let parameter = class.map_or("relay_transport", Class::transport);
            if is_to_us(settings.main(parameter)) {
                let setting = format!("{list} has a table, and {parameter} is {}", settings.main(parameter));
                let reason = "domains of the table that transport_maps does not have come to activity-milter, which takes none of their \
                              mail: it waits in Postfix, and bounces after days";
                let remedy = format!(
                    "set {parameter} to what it was, and route ours by transport_maps: {}",
                    self.print("shared-mx")
                );
                self.find(Severity::Must, "others", setting, reason, remedy);
            }
        }
        let transport = transport_of(settings, &sample(ELSEWHERE), Class::Other)?;
        if is_to_us(&transport) {
            let setting = format!("the transport of all other mail is {transport}");
            self.find(Severity::Must, "others", setting, reason, self.elsewhere("*", Class::Other));
        }
        for table in settings.tables("transport_maps") {
            for (key, transport) in settings.entries(&table)?.unwrap_or_default() {
                let domain = key.rsplit('@').next().unwrap_or(&key).trim_start_matches('.');
                let known = is_integration(config, domain) || self.former.domains.iter().any(|d| d == domain);
                if domain != "*" && is_to_us(&transport) && !known {
                    let setting = format!("{table} in transport_maps has {key}, which goes to {transport}");
                    let remedy =
                        format!("take {key} out of that table, or give it the transport it should have");
                    self.find(Severity::Must, "others", setting, reason, remedy);
                }
            }
        }
        Ok(())
    }

    /// Settings that bring whoever's mail to our LMTP listener, past its domain's transport.
    pub(super) fn detours(&mut self) -> Result<(), SettingsError> {
        let settings = self.settings;
        for name in DETOURS {
            let filters = settings.services("smtpd").chain(settings.services("pickup"));
            let own = filters.filter(|service| settings.is_overridden(service, name));
            let of_services =
                own.map(|service| (service.name.as_str(), settings.of(service, name), Some(service)));
            let all: Vec<_> =
                std::iter::once(("main.cf", settings.main(name), None)).chain(of_services).collect();
            for (place, transport, service) in all {
                if is_to_us(settings, self.config, transport) {
                    let remedy = match service {
                        Some(service) => self.set_for(service, name, ""),
                        None => self.set(name, ""),
                    };
                    let setting = format!("{place}: {name} = {transport}");
                    self.find(Severity::Must, "others", setting, NOT_OURS, remedy);
                }
            }
        }
        for name in DETOUR_TABLES {
            for table in settings.tables(name) {
                let entries = settings.entries(&table)?.unwrap_or_default();
                let to_us = entries.iter().find(|(_, transport)| is_to_us(settings, self.config, transport));
                if let Some((key, transport)) = to_us {
                    let setting = format!("{table} in {name} has {key}, which goes to {transport}");
                    let remedy = format!("take {key} out of that table");
                    self.find(Severity::Must, "others", setting, NOT_OURS, remedy);
                }
            }
        }
        Ok(())
    }

    /// How other domains get their way back.
    fn elsewhere(&self, what: &str, class: Class) -> String {
        let parameter = class.transport();
        let print = self.print("shared-mx");
        let name = Name::Main(parameter.to_owned());
        let is_from_us =
            self.settings.written(parameter).is_some_and(|value| self.record.is_from_us(&name, value));
        match self.record.of(&name).filter(|_| is_from_us) {
            // Print gives it back.
            Some(_) if class == Class::Relay => format!("{print} | sh"),
            Some(Changed { was: Some(was), .. }) => {
                format!("{}, then {print} | sh", self.set(parameter, was))
            }
            _ => format!(
                "set {parameter}, or the entry for {what} in transport_maps, to what it was (saved copies: \
                 activity-milter.saved beside main.cf), then route ours apart: {print} | sh"
            ),
        }
    }
}
