//! `postfix check`: what in Postfix's settings lets an integration message go wrong, why, and what to do.
//!
//! In: Postfix's settings and ours. Out: a [`Report`]. Sockets are tried, tables are asked; the rest is comparison.
//! Each check is a sentence of the POSTFIX page of the design.

use super::{
    print::{command, endpoint, quoted, quoted_for_service, with_existing},
    probe::{Endpoint, Protocol, is_possible, probe},
    settings::{MilterEntry, Service, Settings, SettingsError, Tools, split},
};
use crate::config::Config;
use crate::intake::{END_TIME, LOOK_UP_TIME, Listen, SocketSettings};
use crate::mail::Domain;
use serde::Serialize;
use std::{
    net::{IpAddr, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

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
    let settings = Settings::read(tools.clone())?;
    let report = Report {
        postfix: settings.main("mail_version").to_owned(),
        config_directory: settings.main("config_directory").to_owned(),
        ..Report::default()
    };
    let doors = doors(&settings, config);
    let mut checks = Checks { tools, settings: &settings, config, doors, report };
    let mut delivered = true;
    for domain in &config.addressing.domains {
        delivered &= checks.domain(domain)?;
    }
    checks.milters(delivered);
    checks.cleanup()?;
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
        let entry = entries.into_iter().find(|entry| is_ours(settings, &config.milter, &entry.endpoint))?;
        Some(Door { service, entry })
    };
    settings.services("smtpd").filter(asks).filter_map(door).collect()
}

/// True if an endpoint of Postfix's is meant to be a socket of ours, whether it can be reached that way or not.
fn is_ours(settings: &Settings, socket: &SocketSettings, text: &str) -> bool {
    match (Endpoint::parse(text), &socket.place()) {
        (Some(Endpoint::Unix(path)), Listen::Unix(ours)) => {
            let below = settings.queue_directory().join(path.strip_prefix("/").unwrap_or(&path));
            let real = |path: PathBuf| path.canonicalize().unwrap_or(path);
            let ours = real(ours.clone());
            real(path) == ours || real(below) == ours
        }
        (Some(Endpoint::Inet(host, port)), Listen::Inet(ours)) => {
            let same = |ip: IpAddr| ip == ours.ip() || (ours.ip().is_unspecified() && ip.is_loopback());
            let found = (host.as_str(), port).to_socket_addrs();
            port == ours.port() && found.is_ok_and(|mut addresses| addresses.any(|a| same(a.ip())))
        }
        _ => false,
    }
}

/// What Postfix does with a domain, by the first of its lists that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Local,
    VirtualAlias,
    VirtualMailbox,
    Relay,
    Other,
}

/// (list, class) in the order in which trivial-rewrite(8) asks.
const LISTS: [(&str, Class); 4] = [
    ("mydestination", Class::Local),
    ("virtual_alias_domains", Class::VirtualAlias),
    ("virtual_mailbox_domains", Class::VirtualMailbox),
    ("relay_domains", Class::Relay),
];

impl Class {
    /// The parameter with the transport of its domains.
    fn transport(self) -> &'static str {
        match self {
            Self::Local => "local_transport",
            Self::VirtualAlias => "virtual_alias_domains", // has none: every address must be an alias
            Self::VirtualMailbox => "virtual_transport",
            Self::Relay => "relay_transport",
            Self::Other => "default_transport",
        }
    }

    /// The parameter with the list of its recipients, if it has one that counts for us.
    fn recipients(self) -> Option<&'static str> {
        match self {
            Self::VirtualMailbox => Some("virtual_mailbox_maps"),
            Self::Relay => Some("relay_recipient_maps"),
            Self::Local | Self::VirtualAlias | Self::Other => None,
        }
    }
}

struct Checks<'a> {
    tools: Tools,
    settings: &'a Settings,
    config: &'a Config,
    doors: Vec<Door<'a>>,
    report: Report,
}

impl Checks<'_> {
    fn find(
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
    fn set(&self, name: &str, value: &str) -> String {
        format!("{} -e {}", command(Some(&self.tools)), quoted(name, value))
    }

    /// A command that sets a parameter where the service reads it.
    fn set_for(&self, service: &Service, name: &str, value: &str) -> String {
        if self.settings.is_overridden(service, name) {
            let name = format!("{}/{name}", service.name);
            return format!("{} -P {}", command(Some(&self.tools)), quoted_for_service(&name, value));
        }
        self.set(name, value)
    }

    /// A command that sets a parameter of our milter for one service.
    fn set_milter(&self, door: &Door, name: &str, value: &str) -> String {
        let here = self.settings.of(door.service, "smtpd_milters");
        let list = split(here).into_iter().map(|element| match MilterEntry::list(&element).pop() {
            Some(entry) if entry == door.entry => entry.with(name, value),
            _ => element,
        });
        self.set_for(door.service, "smtpd_milters", &list.collect::<Vec<_>>().join(", "))
    }

    /// The way of one domain's mail; true if its transport is our LMTP listener.
    fn domain(&mut self, domain: &Domain) -> Result<bool, SettingsError> {
        let mut class = Class::Other;
        for (list, of_list) in LISTS {
            if self.settings.has_domain(list, domain)? {
                class = of_list;
                break;
            }
        }
        if !matches!(class, Class::Relay | Class::VirtualMailbox) {
            let place =
                LISTS.iter().find(|(_, c)| *c == class).map_or("no list of domains", |(list, _)| list);
            let existing = self.tools.written("relay_domains")?;
            let mut remedy =
                self.set("relay_domains", &with_existing("relay_domains", domain.as_str(), existing));
            if class != Class::Other {
                remedy = format!("take {domain} out of {place}, then {remedy}");
            }
            let reason =
                "Postfix takes no mail for its integration addresses, and the milter is not asked about them";
            self.find(Severity::Must, "domain", format!("{domain} is in {place}"), reason, remedy);
        }
        let sample = format!("activity-milter-check@{domain}");
        if let Some(parameter) = class.recipients()
            && !self.settings.main(parameter).is_empty()
            && self.settings.look_up(parameter, &[sample.clone(), format!("@{domain}")])?.is_none()
        {
            let reason = "integration addresses that are not in that list are refused before the milter is asked; \
                          activity-milter knows which there are";
            let setting = format!("{parameter} = {}", self.settings.main(parameter));
            let remedy = format!("add an entry for @{domain}, or: {}", self.set(parameter, ""));
            self.find(Severity::Must, "recipients", setting, reason, remedy);
        }
        let mut keys = vec![sample, domain.to_string()];
        let labels = domain.as_str().match_indices('.').map(|(at, _)| domain.as_str()[at..].to_owned());
        keys.extend(labels.chain(["*".to_owned()]));
        let default = self.settings.main(class.transport()).to_owned();
        let transport = match self.settings.look_up("transport_maps", &keys)? {
            Some(entry) if entry.starts_with(':') => {
                format!("{}{entry}", default.split(':').next().unwrap_or_default())
            }
            Some(entry) => entry,
            None => default,
        };
        self.see(format!("{domain}: {class:?}, transport {transport}").to_lowercase());
        if class == Class::VirtualAlias {
            return Ok(false); // has no transport of its own
        }
        self.transport(domain, class, &transport)
    }

    /// The delivery agent behind the milter.
    fn transport(&mut self, domain: &Domain, class: Class, transport: &str) -> Result<bool, SettingsError> {
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
                self.try_socket(service, Protocol::Lmtp, nexthop);
                self.lmtp_times(service);
                self.lmtp_lines(service);
                self.lmtp_rewriting(service);
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
    fn deliver(&self, domain: &Domain, class: Class) -> Result<String, SettingsError> {
        let Some(lmtp) = &self.config.lmtp else {
            return Ok(
                "add the table [lmtp] to activity-milter's configuration and restart it; then ask here again"
                    .to_owned(),
            );
        };
        let endpoint = endpoint(lmtp, self.settings.queue_directory());
        let others = self.settings.named_domains().iter().any(|named| !self.is_integration(named));
        if class == Class::Relay && !others && self.settings.main("transport_maps").is_empty() {
            return Ok(self.set("relay_transport", &format!("lmtp:{endpoint}")));
        }
        let entry = format!("inline:{{ {{ {domain} = lmtp:{endpoint} }} }}");
        let existing = self.tools.written("transport_maps")?;
        Ok(self.set("transport_maps", &with_existing("transport_maps", &entry, existing)))
    }

    fn is_integration(&self, domain: &str) -> bool {
        Domain::parse(domain).is_ok_and(|domain| self.config.addressing.domains.contains(&domain))
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
        if self.doors.is_empty() {
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
                "accept" if !delivered => Some(
                    "while activity-milter is down, mail to integration addresses is accepted and never recorded",
                ),
                _ => None,
            };
            if let Some(reason) = reason {
                let better = if delivered { "accept" } else { "tempfail" };
                let remedy = self.set_milter(&door, "default_action", better);
                let setting = format!("{service}: milter default_action is {action}");
                self.find(Severity::Must, "default-action", setting, reason, remedy);
            }
            let protocol = setting("protocol");
            if protocol.parse::<u32>().is_ok_and(|version| version < 6) {
                let reason = "we speak version 6 only: Postfix cannot talk to us";
                let remedy = self.set_milter(&door, "protocol", "6");
                let setting = format!("{service}: milter protocol is {protocol}");
                self.find(Severity::Must, "protocol", setting, reason, remedy);
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
            self.try_socket(door.service, Protocol::Milter, milter);
            self.late_rewriting(door.service);
            self.doors.push(door);
        }
    }

    /// Connects as Postfix would.
    fn try_socket(&mut self, service: &Service, protocol: Protocol, text: &str) {
        let Some(endpoint) = Endpoint::parse(text) else { return };
        if !is_possible() {
            let reason = "only root can try as Postfix does; it was tried as you";
            let remedy = "run the check as root".to_owned();
            self.find(Severity::Note, "socket", format!("{text} as user postfix"), reason, remedy);
        }
        let user = self.settings.main("mail_owner").to_owned();
        let directory = self.settings.queue_directory().to_owned();
        let chroot = service.chroot && is_possible();
        let Err(why) = probe(protocol, &endpoint, &directory, &user, chroot) else { return };
        let (socket, table) = match protocol {
            Protocol::Milter => (Some(&self.config.milter), "milter"),
            Protocol::Lmtp => (self.config.lmtp.as_ref(), "lmtp"),
        };
        let where_from = if service.chroot { ", chrooted," } else { "" };
        let setting = format!("{}: {text}", service.name);
        let reason = format!("user {user}{where_from} cannot reach it: {why}");
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

    fn below_queue(&self, socket: &SocketSettings) -> bool {
        matches!(socket.place(), Listen::Unix(path) if path.starts_with(self.settings.queue_directory()))
    }

    /// What cleanup(8) does with every message.
    fn cleanup(&mut self) -> Result<(), SettingsError> {
        let services: Vec<Service> = self.settings.services("cleanup").cloned().collect();
        for service in &services {
            let delay = self.settings.of(service, "in_flow_delay").to_owned();
            let discards = !self.doors.is_empty() && !self.config.policy.keep_after_accept;
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
            let dropped = self.settings.of(service, "message_drop_headers").to_owned();
            let list = split(&dropped);
            if self.is_dedicated() && list.iter().any(|name| name.eq_ignore_ascii_case("bcc")) {
                let rest = list.into_iter().filter(|n| !n.to_ascii_lowercase().ends_with("bcc"));
                let rest = rest.collect::<Vec<_>>().join(", ");
                let reason =
                    "Postfix drops the Bcc field before we see it: users who stand there are not recognised";
                let remedy = self.set_for(service, "message_drop_headers", &rest);
                let setting = format!("message_drop_headers = {dropped}");
                self.find(Severity::Should, "drop-headers", setting, reason, remedy);
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
        let limit = self.settings.main("message_size_limit").to_owned();
        let ours = self.config.policy.max_size;
        if limit.parse::<u64>().is_ok_and(|limit| limit == 0 || limit > ours) {
            let reason =
                format!("message.max_size is {ours}: larger messages are sent to the end, then refused");
            let remedy =
                format!("{}, or raise message.max_size", self.set("message_size_limit", &ours.to_string()));
            let severity = if self.is_dedicated() { Severity::Should } else { Severity::Note };
            self.find(severity, "size-limit", format!("message_size_limit = {limit}"), &reason, remedy);
        }
        Ok(())
    }

    /// True if nobody but us gets mail through this Postfix: no other domains, nobody who may relay, no copies of
    /// other people's mail.
    fn is_dedicated(&self) -> bool {
        let copies = ["always_bcc", "sender_bcc_maps", "recipient_bcc_maps"];
        if copies.iter().any(|name| !self.settings.main(name).is_empty()) {
            return false;
        }
        let own = [self.settings.main("myhostname"), self.settings.main("mydomain")];
        let is_local = |name: &str| name.starts_with("localhost") || own.contains(&name);
        let only_ours =
            self.settings.named_domains().iter().all(|named| is_local(named) || self.is_integration(named));
        let relays =
            self.settings.services("smtpd").any(|s| self.settings.of(s, "smtpd_sasl_auth_enable") == "yes");
        let loopback = |network: &String| {
            let network = network.trim_start_matches('[');
            network.starts_with("127.") || network.starts_with("::1]")
        };
        let own_address = |network: &String| network.ends_with("/32") || network.ends_with("/128");
        let networks = split(self.settings.main("mynetworks"));
        only_ours && !relays && networks.iter().all(|network| loopback(network) || own_address(network))
    }
}

fn endpoint_is_absolute(endpoint: &Endpoint) -> bool {
    matches!(endpoint, Endpoint::Unix(path) if path.is_absolute())
}

fn print_endpoint(socket: &SocketSettings, settings: &Settings) -> String {
    endpoint(socket, settings.queue_directory())
}

/// A time as Postfix writes it: a number, and a unit of s, m, h, d or w.
fn seconds(value: &str) -> Option<Duration> {
    let number = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &value[number.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        "w" => 7 * 24 * 3600,
        _ => return None,
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_postfix_writes_them() {
        for (text, expected) in [
            ("0", Some(0)),
            ("5", Some(5)),
            ("30s", Some(30)),
            ("2m", Some(120)),
            ("1h", Some(3600)),
            ("x", None),
        ] {
            assert_eq!(seconds(text).map(|time| time.as_secs()), expected);
        }
    }
}
