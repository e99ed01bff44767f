//! `postfix check`: what in Postfix's settings lets an integration message go wrong, why, and what to do.
//!
//! In: Postfix's settings and ours. Out: a [`Report`]. Sockets are tried, tables are asked; the rest is comparison.
//! Each check is a sentence of the POSTFIX page of the design.

use super::{
    add::{NO_BCC, hides_bcc, size_limit},
    former::Former,
    print::{endpoint, with_existing},
    probe::{Endpoint, MILTER_VERSION, Protocol, is_possible, probe},
    record::Record,
    script::{bare, quoted, quoted_for_service, shown_editor},
    settings::{
        ALIASES, Broken, CONTENTS, MilterEntry, Service, Settings, SettingsError, Tools, WAYS, is_version,
        seconds, split,
    },
    ways::{
        Class, Obstacle, Others, Shadowed, forms, is_integration, is_ours, is_to_us, passes_on, routed_to_us,
        sample, sample_project, shadowed, takes_utf8, transport_of,
    },
};
use crate::config::Config;
use crate::intake::{END_TIME, LOOK_UP_TIME, Listen, SocketSettings};
use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// Mail goes wrong, or will when a part is down.
    Must,
    /// Slow, or less than there could be.
    Should,
    /// Worth knowing.
    Note,
}

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    /// Which check, for programs.
    pub(super) check: &'static str,
    /// The setting, as it is.
    pub(super) setting: String,
    /// What goes wrong with it.
    pub(super) reason: String,
    /// What would do.
    pub(super) remedy: String,
}

/// What was looked at, and what was found.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// Postfix's version.
    pub(super) postfix: String,
    /// Its configuration directory.
    pub(super) config_directory: String,
    /// How the pieces are put together, a sentence each.
    pub(super) seen: Vec<String>,
    /// Worst first.
    pub(super) findings: Vec<Finding>,
}

impl Report {
    /// True if something must change.
    pub(super) fn is_bad(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Must)
    }
}

/// Looks at everything.
pub(super) fn check(tools: Tools, config: &Config) -> Result<Report, SettingsError> {
    let mut settings = Settings::read(tools.clone())?;
    // What cannot be read is said, and the rest is looked at without it.
    let broken = settings.broken(&[&WAYS[..], &ALIASES[..], &CONTENTS[..]].concat());
    settings.ignore(&broken);
    let report = Report {
        postfix: settings.main("mail_version").to_owned(),
        config_directory: settings.main("config_directory").to_owned(),
        ..Report::default()
    };
    let doors = doors(&settings, config);
    let record = Record::read(&settings, config)?;
    let former = Former::of(&settings, config, &record)?;
    let nobodys = [&former.domains, record.domains_of_others()].concat();
    let passing = passes_on(&settings, config, &nobodys)?;
    let shadowed = shadowed(config);
    let settings = &settings;
    let mut checks =
        Checks { tools, settings, config, doors, passing, record: &record, former, shadowed, report };
    checks.tables(&broken);
    checks.instances();
    checks.restart();
    let mut delivered = true;
    let utf8 = takes_utf8(settings);
    for domain in config.addressing.domains.iter().flat_map(|domain| forms(domain, utf8)) {
        delivered &= checks.domain(&domain)?;
    }
    checks.milters(delivered);
    checks.strangers();
    checks.hurdles();
    checks.logins();
    checks.unchecked();
    checks.cleanup()?;
    checks.size_limits();
    checks.soft_bounce();
    checks.former()?;
    checks.others()?;
    checks.detours()?;
    let Checks { mut report, .. } = checks;
    report.findings.sort_by_key(|finding| finding.severity);
    Ok(report)
}

/// An smtpd service that asks our milter.
struct Door<'a> {
    service: &'a Service,
    entry: MilterEntry,
}

/// The smtpd services whose milters include ours. One that switches milters off (a filter's way back) asks nobody.
fn doors<'a>(settings: &'a Settings, config: &Config) -> Vec<Door<'a>> {
    let asks = |service: &&Service| {
        !split(settings.of(service, "receive_override_options")).contains(&"no_milters".to_owned())
    };
    let door = |service: &'a Service| {
        let entries = MilterEntry::list(settings.of(service, "smtpd_milters"));
        let ours = |entry: &MilterEntry| {
            Endpoint::of_milter(&entry.endpoint).is_some()
                && is_ours(settings, &config.milter, &entry.endpoint)
        };
        let entry = entries.into_iter().find(ours)?;
        Some(Door { service, entry })
    };
    settings.services("smtpd").filter(asks).filter_map(door).collect()
}

pub(super) struct Checks<'a> {
    tools: Tools,
    pub(super) settings: &'a Settings,
    pub(super) config: &'a Config,
    doors: Vec<Door<'a>>,
    /// Whose other mail passes here, in words.
    passing: Option<String>,
    pub(super) record: &'a Record,
    pub(super) former: Former<'a>,
    shadowed: Shadowed,
    report: Report,
}

impl Checks<'_> {
    pub(super) fn find(
        &mut self,
        severity: Severity,
        check: &'static str,
        setting: String,
        reason: &str,
        remedy: String,
    ) {
        let finding = Finding { severity, check, setting, reason: reason.to_owned(), remedy };
        if !self.report.findings.contains(&finding) {
            self.report.findings.push(finding); // several services share most settings
        }
    }

    fn see(&mut self, sentence: String) {
        self.report.seen.push(sentence);
    }

    /// A command that sets a parameter of main.cf.
    pub(super) fn set(&self, name: &str, value: &str) -> String {
        format!("{} -e {}", self.editor("main.cf"), quoted(name, value))
    }

    /// A command that sets a parameter where the service reads it.
    pub(super) fn set_for(&self, service: &Service, name: &str, value: &str) -> String {
        if self.settings.is_overridden(service, name) {
            let name = format!("{}/{name}", service.name);
            return format!("{} -P {}", self.editor("master.cf"), quoted_for_service(&name, value));
        }
        self.set(name, value)
    }

    /// `postconf` that writes a file.
    fn editor(&self, file: &str) -> String {
        shown_editor(self.settings, file)
    }

    /// A command that sets a parameter of our milter for one service.
    fn set_milter(&self, door: &Door, name: &str, value: &str) -> String {
        self.set_entry(door.service, "smtpd_milters", &door.entry, name, value)
    }

    /// A command that sets a parameter of one milter, where the service reads the list of them.
    pub(super) fn set_entry(
        &self,
        service: &Service,
        list: &str,
        entry: &MilterEntry,
        name: &str,
        value: &str,
    ) -> String {
        let elements = split(self.settings.of(service, list)).into_iter().map(|element| {
            match MilterEntry::list(&element).pop() {
                Some(found) if found == *entry => entry.with(name, value),
                _ => element,
            }
        });
        self.set_for(service, list, &elements.collect::<Vec<_>>().join(", "))
    }

    /// Tables that Postfix cannot read either.
    fn tables(&mut self, broken: &[Broken]) {
        for table in broken {
            let (remedy, Broken { parameter, table, why }) = (table.remedy(), table);
            let setting = format!("{parameter} has {table}");
            if !is_possible() && why.contains("ermission denied") {
                let remedy = "run the check as root".to_owned();
                self.find(
                    Severity::Note,
                    "table",
                    setting,
                    "you may not read it, so it was not looked at",
                    remedy,
                );
                continue;
            }
            let reason =
                format!("it cannot be read ({why}): while that is so, Postfix answers 451 or lets mail wait");
            let remedy = format!("{remedy}, or take it out of {parameter}");
            self.find(Severity::Must, "table", setting, &reason, remedy);
        }
    }

    /// A machine may have more than one Postfix.
    fn instances(&mut self) {
        let others = split(self.settings.main("multi_instance_directories"));
        if !others.is_empty() {
            let others = others.join(", ");
            self.see(format!(
                "other instances of Postfix, not looked at here (--postfix-config DIR does): {others}"
            ));
        }
    }

    /// A socket of the configuration where nobody listens, and that Postfix does not name either: the service that runs has
    /// another one, and what `print` says of this one would be too early.
    fn restart(&mut self) {
        let text = print_endpoint(&self.config.milter, self.settings);
        let queue_directory = self.settings.queue_directory();
        let dead = Endpoint::parse(&text).is_some_and(|place| place.is_dead(queue_directory));
        if dead && self.doors.is_empty() {
            let reason = "nobody listens there: activity-milter does not run, or runs with the socket it was started with, \
                          for a changed one waits for a restart";
            let remedy =
                "restart activity-milter, before anything else that stands here, and before `postfix print`";
            let setting = format!("milter.listen is {text}");
            self.find(Severity::Must, "restart", setting, reason, remedy.to_owned());
        }
    }

    /// The deployment that looks most like what is there.
    pub(super) fn deployment(&self) -> String {
        let Some(Door { service, entry }) = self.doors.first() else { return "lmtp-only".to_owned() };
        let for_all = MilterEntry::list(self.settings.main("smtpd_milters"));
        let ours = |entry: &MilterEntry| is_ours(self.settings, &self.config.milter, &entry.endpoint);
        if !for_all.iter().any(ours) {
            return format!("submission --service {}", bare(service.name.trim_end_matches("/inet")));
        }
        match entry.setting("default_action", self.settings, service) {
            "accept" => "shared-mx".to_owned(),
            _ => "mx".to_owned(),
        }
    }

    /// The entry of our milter, where a service of smtpd asks it.
    pub(super) fn entry_of(&self, service: &Service) -> Option<&MilterEntry> {
        let door = self.doors.iter().find(|door| door.service.name == service.name);
        door.map(|door| &door.entry)
    }

    pub(super) fn all_shadowed(&self) -> bool {
        matches!(self.shadowed, Shadowed::All)
    }

    /// The way of one domain's mail; true if its transport is our LMTP listener.
    fn domain(&mut self, domain: &str) -> Result<bool, SettingsError> {
        let class = Class::of(self.settings, domain)?;
        if self.all_shadowed() {
            return self.domain_in_shadow(domain, class);
        }
        if !matches!(class, Class::Relay | Class::VirtualMailbox) {
            let place = class.list();
            let existing =
                self.settings.base("relay_domains").map(|base| self.former.without("relay_domains", &base));
            let existing = existing.filter(|list| !list.is_empty()).map(|list| list.join(", "));
            let mut remedy = self.set("relay_domains", &with_existing("relay_domains", domain, existing));
            if class != Class::Other {
                remedy = format!("take {domain} out of {place}, then {remedy}");
            }
            let reason =
                "Postfix takes no mail for its integration addresses, and the milter is not asked about them";
            self.find(Severity::Must, "domain", format!("{domain} is in {place}"), reason, remedy);
        }
        let (address, project) = (sample(domain), sample_project(domain));
        if let Some(parameter) = class.recipients()
            && !self.settings.main(parameter).is_empty()
            && !self.are_recipients(parameter, domain, [&address, &project])?
        {
            let reason = "integration addresses that are not in that list are refused before the milter is asked; \
                          activity-milter knows which there are";
            let setting = format!("{parameter} = {}", self.settings.main(parameter));
            let base = self.settings.base(parameter).unwrap_or_default();
            let remedy = self.set(parameter, &format!("{base}, inline:{{ {{ @{domain} = OK }} }}"));
            self.find(Severity::Must, "recipients", setting, reason, remedy);
        }
        let transport = transport_of(self.settings, &address, class)?;
        self.see(format!("{domain}: {class:?}, transport {transport}").to_lowercase());
        if class == Class::VirtualAlias {
            return Ok(false); // has no transport of its own
        }
        let delivered = self.transport(domain, class, &transport)?;
        if delivered {
            self.projects(domain, class, &project)?;
            self.aliases(domain)?;
            self.tenants_in_shadow(domain, class)?;
        }
        Ok(delivered)
    }

    fn are_recipients(
        &self,
        parameter: &str,
        domain: &str,
        addresses: [&String; 2],
    ) -> Result<bool, SettingsError> {
        for address in addresses {
            if self.settings.look_up(parameter, &[address.clone(), format!("@{domain}")])?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A pattern may send addresses with a project another way.
    fn projects(&mut self, domain: &str, class: Class, project: &str) -> Result<(), SettingsError> {
        let transport = transport_of(self.settings, project, class)?;
        if !is_to_us(self.settings, self.config, &transport) {
            let setting = format!("the transport of {project} is {transport}");
            let reason = "addresses with a project go another way than those without";
            let us = self.config.lmtp.as_ref().map(|lmtp| print_endpoint(lmtp, self.settings));
            let us = format!("lmtp:{}", us.unwrap_or_default());
            let remedy = self.obstacle(domain, &us)?.unwrap_or_else(|| format!("send them to {us}"));
            self.find(Severity::Must, "transport", setting, reason, remedy);
        }
        Ok(())
    }

    /// What rewrites integration addresses takes from us what misses the milter.
    fn aliases(&mut self, domain: &str) -> Result<(), SettingsError> {
        let reason = "what misses the milter (automatic BCC, aliases, sendmail, milter down) goes there, and not to us";
        for parameter in ALIASES {
            // What has moved comes to nobody.
            let moves = parameter == "relocated_maps";
            let is_ours = |to: &str| is_integration(self.config, to.rsplit('@').next().unwrap_or(to));
            let to_us = |to: &str| !moves && split(to).iter().all(|to| is_ours(to));
            let keys = [sample(domain), format!("@{domain}")];
            if let Some(to) = self.settings.look_up(parameter, &keys)?.filter(|to| !to_us(to)) {
                let setting = format!("{parameter} makes {to} of every address of {domain}");
                let remedy = format!("take @{domain}, or the pattern that matches it, out of {parameter}");
                self.find(Severity::Must, "alias", setting, reason, remedy);
                continue;
            }
            let mut single = None;
            for table in split(self.settings.main(parameter)) {
                if !table.contains(':') || self.settings.is_ignored(&table) {
                    continue;
                }
                let entries = self.settings.entries(&table)?.unwrap_or_default();
                let taken = |(key, to): &(String, String)| {
                    key.rsplit_once('@')
                        .is_some_and(|(local, of)| !local.is_empty() && of.eq_ignore_ascii_case(domain))
                        && !to_us(to)
                };
                single = single.or_else(|| entries.into_iter().find(taken));
            }
            if let Some((key, to)) = single {
                let setting = format!("{parameter} makes {to} of {key}");
                let remedy =
                    format!("take {key} out of {parameter}, if activity-milter is to record its mail");
                self.find(Severity::Note, "alias", setting, reason, remedy);
            }
        }
        self.masquerading(domain);
        Ok(())
    }

    /// A domain below another one that takes its place in envelopes.
    fn masquerading(&mut self, domain: &str) {
        let name = "masquerade_domains";
        let list = self.settings.main(name).to_owned();
        let classes = split(self.settings.main("masquerade_classes"));
        // The first that knows the domain decides.
        let bare = |name: &str| name.trim_start_matches('!').to_lowercase();
        let elements = split(&list);
        let mut known = elements.iter().map(|name| (name, bare(name)));
        let first = known.find(|(_, bare)| domain == bare || domain.ends_with(&format!(".{bare}")));
        let is_changed = first.is_some_and(|(name, bare)| !name.starts_with('!') && domain != bare);
        if is_changed && classes.iter().any(|class| class == "envelope_recipient") {
            let setting = format!("{name} = {list}, and envelope_recipient is in masquerade_classes");
            let reason = format!(
                "{domain} lies below it: what misses the milter goes to the domain above, and not to us"
            );
            let remedy = self.set(name, &format!("!{domain}, {list}"));
            self.find(Severity::Must, "alias", setting, &reason, remedy);
        }
    }

    /// In shadow mode nothing is recorded, and our LMTP listener keeps nothing: mail must go where it goes without us.
    fn domain_in_shadow(&mut self, domain: &str, class: Class) -> Result<bool, SettingsError> {
        let transport = transport_of(self.settings, &sample(domain), class)?;
        self.see(format!("shadow mode: {domain} goes on as {class:?} by {transport}").to_lowercase());
        if class == Class::Other {
            let reason = "smtpd refuses its mail, and the milter is not asked: there is nothing to judge";
            let remedy = "nothing, if no mail is expected yet; set mode = \"live\" to attach it".to_owned();
            self.find(Severity::Note, "shadow", format!("{domain} is in {}", class.list()), reason, remedy);
        }
        let one = routed_to_us(self.settings, self.config)?
            .into_iter()
            .find(|(_, key)| key.ends_with(&format!("@{domain}")));
        if let Some((table, key)) = one {
            let reason = "mode is \"shadow\": our LMTP listener keeps nothing and answers 451, so mail piles up in Postfix";
            let remedy = format!("take {key} out of that table, or set mode = \"live\" and restart");
            let setting = format!("{table} in transport_maps brings {key} to us");
            self.find(Severity::Must, "shadow", setting, reason, remedy);
        }
        if is_to_us(self.settings, self.config, &transport) {
            let reason = "mode is \"shadow\": our LMTP listener keeps nothing and answers 451, so mail piles up in Postfix";
            let (remove, attach) = (self.print("--remove"), self.print("shared-mx --shadow"));
            let remedy = format!("{remove} | sh, then {attach} | sh; or set mode = \"live\" and restart");
            let setting = format!("the transport of {domain} is {transport}");
            self.find(Severity::Must, "shadow", setting, reason, remedy);
        }
        Ok(false)
    }

    /// A tenant in shadow mode beside live ones: its mail must not come to us by LMTP.
    fn tenants_in_shadow(&mut self, domain: &str, class: Class) -> Result<(), SettingsError> {
        let Shadowed::Tenants(prefixes) = &self.shadowed else { return Ok(()) };
        for prefix in prefixes.clone() {
            let mut to_us = Vec::new();
            for address in [format!("{prefix}@{domain}"), format!("1.{prefix}@{domain}")] {
                if is_to_us(self.settings, self.config, &transport_of(self.settings, &address, class)?) {
                    to_us.push(address);
                }
            }
            let Some(address) = to_us.first() else { continue };
            let setting = format!("tenant {prefix} is in shadow mode, and {address} is delivered to us");
            let reason =
                "our LMTP listener keeps nothing of it and answers 451, so its mail piles up in Postfix";
            let (prefix, domain) = (prefix.replace('.', r"\."), domain.replace('.', r"\."));
            let remedy = format!(
                "give its addresses the transport they have today, by a table that stands first in transport_maps: \
                 regexp:/etc/postfix/activity-milter-shadow with the line `/^(.*\\.)?{prefix}@{domain}$/ smtp:[today's host]`; \
                 or set its mode to live"
            );
            self.find(Severity::Must, "shadow", setting, reason, remedy);
        }
        Ok(())
    }

    /// Our own `print` for this instance.
    pub(super) fn print(&self, what: &str) -> String {
        let directory = self.tools.directory.as_ref().map(|directory| directory.display().to_string());
        let instance = directory.map(|directory| format!(" --postfix-config {}", bare(&directory)));
        format!("activity-milter postfix print {what}{}", instance.unwrap_or_default())
    }

    /// The delivery agent behind the milter.
    fn transport(&mut self, domain: &str, class: Class, transport: &str) -> Result<bool, SettingsError> {
        let (name, nexthop) = transport.split_once(':').unwrap_or((transport, ""));
        let service = self.settings.transport(name).cloned();
        let agent = service.as_ref().map(|service| service.command.as_str());
        let remedy = self.deliver(domain, class)?;
        let setting = format!("the transport of {domain} is {transport}");
        match (agent, &service) {
            (None, _) | (_, None) => {
                let reason = "master.cf has no such service: mail that misses the milter is never delivered";
                self.find(Severity::Must, "transport", setting, reason, remedy);
                Ok(false)
            }
            (Some("error" | "discard"), _) => {
                let reason = match (agent, name) {
                    (Some("discard"), _) => "mail that misses the milter is thrown away",
                    (_, "retry") => "smtpd itself answers 450 at RCPT, and the milter is not asked",
                    _ => "smtpd itself answers 550 at RCPT, and the milter is not asked",
                };
                self.find(Severity::Must, "transport", setting, reason, remedy);
                Ok(false)
            }
            (Some("lmtp"), Some(service)) => {
                let ours = self.config.lmtp.as_ref().filter(|lmtp| is_ours(self.settings, lmtp, nexthop));
                if ours.is_none() {
                    let reason = "that is no LMTP listener of this activity-milter's";
                    self.find(self.without_lmtp(), "lmtp-transport", setting, reason, remedy);
                    return Ok(false);
                }
                self.try_socket(service, Protocol::Lmtp, nexthop, MILTER_VERSION);
                self.lmtp_stopped(service, name);
                self.lmtp_times(service);
                self.lmtp_lines(service);
                self.lmtp_rewriting(service);
                self.lmtp_header_checks(service);
                Ok(true)
            }
            (Some(_), Some(_)) => {
                let reason = "mail that misses the milter (automatic BCC, aliases, sendmail, milter down) goes elsewhere";
                self.find(self.without_lmtp(), "lmtp-transport", setting, reason, remedy);
                Ok(false)
            }
        }
    }

    /// A milter that always answers, or makes clients come back, can live without LMTP; nothing else can.
    fn without_lmtp(&self) -> Severity {
        let action =
            |door: &Door| door.entry.setting("default_action", self.settings, door.service).to_owned();
        let safe = self.doors.iter().all(|door| action(door) != "accept");
        if !self.doors.is_empty() && safe { Severity::Should } else { Severity::Must }
    }

    /// How to deliver a domain to our LMTP listener.
    fn deliver(&self, domain: &str, class: Class) -> Result<String, SettingsError> {
        let Some(lmtp) = &self.config.lmtp else {
            return Ok(
                "add the table [lmtp] to activity-milter's configuration and restart it; then ask here again"
                    .to_owned(),
            );
        };
        let endpoint = endpoint(lmtp, self.settings.queue_directory());
        let others = Others::of(self.settings, self.config, &self.former.domains)?;
        if class == Class::Relay && others.is_empty() && self.settings.main("transport_maps").is_empty() {
            return Ok(self.set("relay_transport", &format!("lmtp:{endpoint}")));
        }
        if let Some(remedy) = self.obstacle(domain, &format!("lmtp:{endpoint}"))? {
            return Ok(format!("{remedy}, then ask here again"));
        }
        let entry = format!("inline:{{ {{ {domain} = lmtp:{endpoint} }} }}");
        let existing = self.settings.base("transport_maps");
        Ok(self.set("transport_maps", &with_existing("transport_maps", &entry, existing)))
    }

    /// What to do about a table that no entry for the domain helps against.
    fn obstacle(&self, domain: &str, us: &str) -> Result<Option<String>, SettingsError> {
        let tables = split(self.settings.main("transport_maps"));
        let found = Obstacle::of(self.settings, self.config, domain, us, &tables)?;
        Ok(found.map(|Obstacle { table, says, remedy }| {
            format!("transport_maps has {table}, which says {says}, whatever stands there for the domain: {remedy}")
        }))
    }

    /// Settings by which nothing ever comes to our LMTP listener.
    fn lmtp_stopped(&mut self, service: &Service, name: &str) {
        let parameter = "lmtp_tls_security_level";
        let level = self.settings.of(service, parameter).to_owned();
        if !["", "none", "may", "dane"].contains(&level.as_str()) {
            let setting = format!("{}: {parameter} = {level}", service.name);
            let reason = "our LMTP listener has no TLS, so nothing is delivered to it: mail waits, and bounces after days";
            let remedy = format!(
                "{} -P '{}/{parameter}=may', or say what it is in lmtp_tls_policy_maps, for other servers alone",
                self.editor("master.cf"),
                service.name
            );
            self.find(Severity::Must, "lmtp-tls", setting, reason, remedy);
        }
        let enforced = self.settings.of(service, "lmtp_enforce_tls") == "yes";
        if level.is_empty() && enforced {
            let setting = format!("{}: lmtp_enforce_tls = yes", service.name);
            let reason = "our LMTP listener has no TLS, so nothing is delivered to it: mail waits, and bounces after days";
            let remedy = self.set_for(service, "lmtp_enforce_tls", "no");
            self.find(Severity::Must, "lmtp-tls", setting, reason, remedy);
        }
        let sasl = "lmtp_sasl_auth_enable";
        let without = self.settings.of(service, "lmtp_sasl_password_maps").is_empty();
        if without && self.settings.of(service, sasl) == "yes" {
            let setting = format!("{}: {sasl} = yes", service.name);
            let reason = "lmtp(8) ends at once without lmtp_sasl_password_maps: nothing is delivered to us";
            let remedy = self.set_for(service, sasl, "no");
            self.find(Severity::Must, "lmtp-sasl", setting, reason, remedy);
        }
        let policies = self.settings.of(service, "lmtp_tls_policy_maps").to_owned();
        if !policies.is_empty() {
            let setting = format!("{}: lmtp_tls_policy_maps = {policies}", service.name);
            let reason =
                "our LMTP listener has no TLS: a policy there that asks for it stops what is delivered to us";
            let remedy =
                "see that it says none or may for our listener, and for no other server less than today";
            self.find(Severity::Note, "lmtp-tls", setting, reason, remedy.to_owned());
        }
        let deferred = split(self.settings.main("defer_transports"));
        if deferred.iter().any(|transport| transport == name) {
            let rest: Vec<String> = deferred.iter().filter(|transport| *transport != name).cloned().collect();
            let setting = format!("defer_transports = {}", deferred.join(", "));
            let reason = "what comes to us by LMTP waits until somebody flushes the queue";
            self.find(
                Severity::Must,
                "deferred",
                setting,
                reason,
                self.set("defer_transports", &rest.join(", ")),
            );
        }
    }

    /// Refusals that nobody reads.
    fn soft_bounce(&mut self) {
        if self.settings.main("soft_bounce") == "yes" {
            let reason =
                "each refusal becomes \"come again\": who sends without a subject learns it after days";
            let remedy = self.set("soft_bounce", "no");
            self.find(Severity::Should, "soft-bounce", "soft_bounce = yes".to_owned(), reason, remedy);
        }
    }

    fn lmtp_times(&mut self, service: &Service) {
        for (name, ours) in [("lmtp_rcpt_timeout", LOOK_UP_TIME), ("lmtp_data_done_timeout", END_TIME)] {
            let value = self.settings.of(service, name).to_owned();
            if seconds(&value).is_some_and(|time| time <= ours) {
                let reason = format!(
                    "we may take {} s there: Postfix gives up first, and a message that is recorded is sent again",
                    ours.as_secs()
                );
                let remedy = self.set_for(service, name, self.default_time(name));
                self.find(Severity::Should, "timeout", format!("{name} = {value}"), &reason, remedy);
            }
        }
    }

    fn lmtp_lines(&mut self, service: &Service) {
        let name = "lmtp_line_length_limit";
        let value = self.settings.of(service, name).to_owned();
        if value != "0" {
            let reason = "Postfix breaks longer lines, in the middle of a word or a tag: the activity's text is not \
                          the e-mail's";
            let remedy = self.set_for(service, name, "0");
            self.find(Severity::Should, "long-lines", format!("{name} = {value}"), reason, remedy);
        }
    }

    /// What is rewritten only on the way to LMTP has another key there than at the milter.
    fn lmtp_rewriting(&mut self, service: &Service) {
        let name = "lmtp_generic_maps";
        let value = self.settings.of(service, name).to_owned();
        if !value.is_empty() && !self.doors.is_empty() {
            let reason = "addresses are rewritten behind the milter: an e-mail that comes by both ways is another one \
                          by LMTP, and is recorded twice";
            let remedy = self.set_for(service, name, "");
            self.find(Severity::Should, "rewriting", format!("{name} = {value}"), reason, remedy);
        }
    }

    /// An smtpd before a content filter that leaves rewriting to the one behind it shows the milter other addresses than
    /// LMTP sees.
    fn late_rewriting(&mut self, service: &Service) {
        let name = "receive_override_options";
        let options = split(self.settings.of(service, name));
        let maps =
            ["canonical_maps", "sender_canonical_maps", "recipient_canonical_maps", "masquerade_domains"];
        let Some(map) = maps.iter().find(|map| !self.settings.main(map).is_empty()) else { return };
        if !options.iter().any(|option| option == "no_address_mappings") {
            return;
        }
        let rest: Vec<String> = options.iter().filter(|o| *o != "no_address_mappings").cloned().collect();
        let reason = format!(
            "{map} rewrites addresses behind the milter: an e-mail that comes by both ways is another one by LMTP, and is \
             recorded twice"
        );
        let remedy = format!(
            "{}, or ask the milter in the smtpd behind the content filter instead",
            self.set_for(service, name, &rest.join(","))
        );
        let setting = format!("{}: {name} = {}", service.name, options.join(","));
        self.find(Severity::Should, "rewriting", setting, &reason, remedy);
    }

    /// Postfix's own defaults, all of them well above ours.
    fn default_time(&self, name: &str) -> &'static str {
        match name {
            "lmtp_data_done_timeout" => "600s",
            "command_timeout" => "30s",
            _ => "300s",
        }
    }

    /// Each service that asks our milter.
    fn milters(&mut self, delivered: bool) {
        if self.doors.is_empty() && self.all_shadowed() {
            let remedy = format!("{} | sh", self.print("shared-mx --shadow"));
            let setting = "no smtpd asks our milter".to_owned();
            let reason = "mode is \"shadow\", and nothing is judged";
            self.find(Severity::Should, "shadow", setting, reason, remedy);
        } else if self.doors.is_empty() {
            self.see("no smtpd asks our milter: what breaks a rule is bounced, not refused".to_owned());
        }
        for door in std::mem::take(&mut self.doors) {
            let setting = |name| door.entry.setting(name, self.settings, door.service).to_owned();
            let action = setting("default_action");
            let chroot = if door.service.chroot { " (chrooted)" } else { "" };
            let (service, milter) = (&door.service.name, &door.entry.endpoint);
            self.see(format!("{service}{chroot}: milter {milter}, default_action {action}"));
            let reason = match action.as_str() {
                "reject" => Some("while activity-milter is down, all mail is refused for good"),
                "quarantine" => {
                    Some("while activity-milter is down, all mail goes to the hold queue, and stays there")
                }
                "accept" if self.all_shadowed() => None,
                _ if self.all_shadowed() => {
                    Some("mode is \"shadow\", but while activity-milter is down, all mail waits for it")
                }
                // Where others' mail passes, a way to us is the remedy, and the only one: see the transport.
                "accept" if !delivered && self.passing.is_none() => Some(
                    "while activity-milter is down, mail to integration addresses is accepted and never recorded",
                ),
                "accept" => None,
                _ if self.passing.is_some() => Some(
                    "while activity-milter is down, other people's mail, which passes here too, waits for it",
                ),
                _ => None,
            };
            if let Some(reason) = reason {
                let harmless = delivered || self.all_shadowed() || self.passing.is_some();
                let better = if harmless { "accept" } else { "tempfail" };
                let why = self.passing.as_ref().filter(|_| !self.all_shadowed() && better == "accept");
                let reason = &why.map_or(reason.to_owned(), |why| format!("{reason} ({why})"));
                let remedy = self.set_milter(&door, "default_action", better);
                let setting = format!("{service}: milter default_action is {action}");
                self.find(Severity::Must, "default-action", setting, reason, remedy);
            }
            let protocol = setting("protocol");
            if is_version(&protocol) && version(&protocol) < MILTER_VERSION {
                let reason = "that works, but each header field waits for an answer of ours";
                let remedy = self.set_milter(&door, "protocol", "6");
                let setting = format!("{service}: milter protocol is {protocol}");
                self.find(Severity::Note, "protocol", setting, reason, remedy);
            }
            for (name, ours, stage) in [
                ("command_timeout", LOOK_UP_TIME, "at RCPT"),
                ("content_timeout", END_TIME, "at end of message"),
            ] {
                let value = setting(name);
                if seconds(&value).is_some_and(|time| time <= ours) {
                    let reason = format!("we may take {} s {stage}: Postfix gives up first", ours.as_secs());
                    let remedy = self.set_milter(&door, name, self.default_time(name));
                    let setting = format!("{service}: milter {name} is {value}");
                    self.find(Severity::Should, "timeout", setting, &reason, remedy);
                }
            }
            self.try_socket(door.service, Protocol::Milter, milter, version(&protocol));
            self.late_rewriting(door.service);
            self.doors.push(door);
        }
    }

    /// Connects as Postfix would.
    fn try_socket(&mut self, service: &Service, protocol: Protocol, text: &str, version: u8) {
        let Some(endpoint) = Endpoint::parse(text) else { return };
        if !is_possible() {
            let reason = "only root can try as Postfix does; it was tried as you";
            let remedy = "run the check as root".to_owned();
            self.find(Severity::Note, "socket", format!("{text} as user postfix"), reason, remedy);
        }
        let user = self.settings.main("mail_owner").to_owned();
        let directory = self.settings.queue_directory().to_owned();
        let Err(why) = self.reach(service, protocol, &endpoint, version) else { return };
        if !is_possible() && why.contains("Permission denied") {
            return; // what user postfix may, is not known
        }
        let (socket, table) = match protocol {
            Protocol::Milter => (Some(&self.config.milter), "milter"),
            Protocol::Lmtp => (self.config.lmtp.as_ref(), "lmtp"),
        };
        let where_from = if service.chroot { ", chrooted," } else { "" };
        let setting = format!("{}: {text}", service.name);
        let who = if is_possible() { format!("user {user}") } else { "you".to_owned() };
        let reason = format!("{who}{where_from} cannot reach it: {why}");
        let remedy = match socket.map(|socket| (socket.place(), self.below_queue(socket))) {
            Some((Listen::Unix(path), false)) if service.chroot => format!(
                "chrooted services see only what lies below {directory}: set {table}.listen to a path there instead of {path}, \
                 and name it to Postfix relative to that directory",
                directory = directory.display(),
                path = path.display()
            ),
            Some((Listen::Unix(_), true)) if service.chroot && endpoint_is_absolute(&endpoint) => format!(
                "name it to Postfix relative to {}: {}",
                directory.display(),
                socket.map(|socket| print_endpoint(socket, self.settings)).unwrap_or_default()
            ),
            Some((Listen::Unix(_), _)) => format!(
                "see that activity-milter runs, that {table}.socket_group is {user} with {table}.socket_mode 0660, \
                 and that user {user} may enter the directories above"
            ),
            _ => "see that activity-milter runs and listens there".to_owned(),
        };
        self.find(Severity::Must, "socket", setting, &reason, remedy);
    }

    /// Tries as Postfix would; the error is for people.
    pub(super) fn reach(
        &self,
        service: &Service,
        protocol: Protocol,
        endpoint: &Endpoint,
        version: u8,
    ) -> Result<(), String> {
        let user = self.settings.main("mail_owner");
        let chroot = service.chroot && is_possible();
        probe(protocol, endpoint, self.settings.queue_directory(), user, chroot, version)
    }

    fn below_queue(&self, socket: &SocketSettings) -> bool {
        matches!(socket.place(), Listen::Unix(path) if path.starts_with(self.settings.queue_directory()))
    }

    /// What cleanup(8) does with every message.
    fn cleanup(&mut self) -> Result<(), SettingsError> {
        let services: Vec<Service> = self.settings.services("cleanup").cloned().collect();
        for service in &services {
            let delay = self.settings.of(service, "in_flow_delay").to_owned();
            let discards =
                !self.doors.is_empty() && !self.config.policy.keep_after_accept && !self.all_shadowed();
            if discards && seconds(&delay).is_none_or(|delay| !delay.is_zero()) {
                let reason = "a message that the milter takes is discarded, and its flow-control token never comes \
                              back: after some hundred of them, every message waits that long";
                let remedy = self.set_for(service, "in_flow_delay", "0");
                self.find(
                    Severity::Should,
                    "in-flow-delay",
                    format!("in_flow_delay = {delay}"),
                    reason,
                    remedy,
                );
            }
            self.bcc(service)?;
            self.forged(service)?;
            // In shadow mode mail goes where it goes.
            if !self.all_shadowed() {
                self.header_checks(service, !self.doors.is_empty());
            }
            let milters = self.settings.of(service, "non_smtpd_milters").to_owned();
            let (ours, others): (Vec<_>, Vec<_>) = split(&milters).into_iter().partition(|element| {
                let entry = MilterEntry::list(element).pop();
                entry.is_some_and(|entry| is_ours(self.settings, &self.config.milter, &entry.endpoint))
            });
            if !ours.is_empty() {
                let reason = "a milter that refuses a recipient there counts as a server error, and local mail to it \
                              stays in the queue; local mail comes by LMTP";
                let remedy = self.set_for(service, "non_smtpd_milters", &others.join(", "));
                self.find(
                    Severity::Must,
                    "non-smtpd",
                    format!("non_smtpd_milters = {milters}"),
                    reason,
                    remedy,
                );
            }
        }
        Ok(())
    }

    /// The Bcc field is for us alone, or for nobody.
    fn bcc(&mut self, service: &Service) -> Result<(), SettingsError> {
        let dropped = self.settings.of(service, "message_drop_headers").to_owned();
        let list = split(&dropped);
        let drops = |name: &str| list.iter().any(|header| header.eq_ignore_ascii_case(name));
        let setting = format!("{}: message_drop_headers = {dropped}", service.name);
        match self.passing.clone() {
            Some(why) if !drops("bcc") || !drops("resent-bcc") => {
                let missing =
                    ["bcc", "resent-bcc"].into_iter().filter(|name| !drops(name)).map(str::to_owned);
                let all = missing.chain(list.iter().cloned()).collect::<Vec<_>>().join(", ");
                let reason = format!(
                    "other mail passes here ({why}), and whoever gets it sees who stands in its Bcc field"
                );
                let remedy = self.set_for(service, "message_drop_headers", &all);
                self.find(Severity::Must, "bcc-shown", setting, &reason, remedy);
            }
            None if drops("bcc") && !self.all_shadowed() => {
                let rest = list.iter().filter(|name| !name.to_ascii_lowercase().ends_with("bcc"));
                let rest = rest.cloned().collect::<Vec<_>>().join(", ");
                let reason =
                    "Postfix drops the Bcc field before we see it: users who stand there are not recognised";
                let remedy = self.set_for(service, "message_drop_headers", &rest);
                self.find(Severity::Should, "drop-headers", setting, reason, remedy);
            }
            None if !drops("bcc") && !hides_bcc(self.settings)? => {
                let reason =
                    "what programs on this machine send to the world shows who stands in its Bcc field";
                let base = self.settings.base("smtp_header_checks").map(|base| format!("{base}, "));
                let all = format!("{}{NO_BCC}", base.unwrap_or_default());
                let remedy = self.set("smtp_header_checks", &all);
                self.find(Severity::Should, "bcc-sent", setting, reason, remedy);
            }
            _ => {}
        }
        Ok(())
    }

    /// What is larger than we take is sent in vain; what is larger than a mailbox takes stops all local delivery.
    fn size_limits(&mut self) {
        let limit = self.settings.main("message_size_limit").to_owned();
        let ours = self.config.policy.max_size;
        let Ok(number) = limit.parse::<u64>() else { return };
        if number == 0 || number > ours {
            let reason =
                format!("message.max_size is {ours}: larger messages are sent to the end, then refused");
            let possible = size_limit(self.settings, ours).to_string();
            let remedy = format!("{}, or raise message.max_size", self.set("message_size_limit", &possible));
            let severity = if self.passing.is_none() { Severity::Should } else { Severity::Note };
            self.find(severity, "size-limit", format!("message_size_limit = {limit}"), &reason, remedy);
        }
        for (name, agent) in [("mailbox_size_limit", "local"), ("virtual_mailbox_limit", "virtual")] {
            let Ok(most) = self.settings.main(name).parse::<u64>() else { continue };
            if most > 0 && (number == 0 || number > most) {
                let setting = format!("message_size_limit = {limit}, {name} = {most}");
                let reason = format!(
                    "{agent}(8) delivers nothing at all while a mailbox takes less than a message: mail to root, say"
                );
                let remedy = self.set(name, "0");
                self.find(Severity::Must, "mailbox-limit", setting, &reason, remedy);
            }
        }
    }
}

fn endpoint_is_absolute(endpoint: &Endpoint) -> bool {
    matches!(endpoint, Endpoint::Unix(path) if path.is_absolute())
}

fn print_endpoint(socket: &SocketSettings, settings: &Settings) -> String {
    endpoint(socket, settings.queue_directory())
}

/// The version in `milter_protocol`, which may have words behind it.
pub(super) fn version(protocol: &str) -> u8 {
    protocol.split([' ', ',']).next().and_then(|version| version.parse().ok()).unwrap_or(MILTER_VERSION)
}
