//! Which way Postfix sends mail: what it takes a domain for, its transport, and who else's mail passes.
//!
//! In: Postfix's settings and ours. Out: answers to both [`super::check`] and [`super::print`], so that what one does the
//! other finds right. Tables are asked, as trivial-rewrite(8) asks them.

use super::{
    probe::Endpoint,
    settings::{Settings, SettingsError, bare_table, split},
};
use crate::config::{BackendKind, Config, DirectoryKind};
use crate::directory::FileDirectory;
use crate::intake::{Listen, Shadow, SocketSettings};
use crate::mail::Domain;
use std::{
    net::{IpAddr, ToSocketAddrs, UdpSocket},
    path::PathBuf,
};

/// What Postfix does with a domain, by the first of its lists that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Local,
    VirtualAlias,
    VirtualMailbox,
    Relay,
    Other,
}

/// (list, class) in the order in which trivial-rewrite(8) asks.
pub(super) const LISTS: [(&str, Class); 4] = [
    ("mydestination", Class::Local),
    ("virtual_alias_domains", Class::VirtualAlias),
    ("virtual_mailbox_domains", Class::VirtualMailbox),
    ("relay_domains", Class::Relay),
];

impl Class {
    /// What Postfix takes a domain for, in the form that is given.
    pub(super) fn of(settings: &Settings, domain: &str) -> Result<Self, SettingsError> {
        for (list, class) in LISTS {
            if settings.has_domain(list, domain)? {
                return Ok(class);
            }
        }
        Ok(Self::Other)
    }

    /// The list its domains stand in.
    pub(super) fn list(self) -> &'static str {
        LISTS.iter().find(|(_, class)| *class == self).map_or("no list of domains", |(list, _)| list)
    }

    /// The parameter with the transport of its domains.
    pub(super) fn transport(self) -> &'static str {
        match self {
            Self::Local => "local_transport",
            Self::VirtualAlias => "virtual_alias_domains", // has none: every address must be an alias
            Self::VirtualMailbox => "virtual_transport",
            Self::Relay => "relay_transport",
            Self::Other => "default_transport",
        }
    }

    /// The parameter with the list of its recipients, if it has one that counts for us.
    pub(super) fn recipients(self) -> Option<&'static str> {
        match self {
            Self::VirtualMailbox => Some("virtual_mailbox_maps"),
            Self::Relay => Some("relay_recipient_maps"),
            Self::Local | Self::VirtualAlias | Self::Other => None,
        }
    }
}

/// An address that nobody has, to ask tables with.
pub(super) fn sample(domain: &str) -> String {
    format!("activity-milter-check@{domain}")
}

/// The same with a project, for a pattern may tell them apart.
pub(super) fn sample_project(domain: &str) -> String {
    format!("1.{}", sample(domain))
}

/// The transport of an address whose domain is in that class.
pub(super) fn transport_of(
    settings: &Settings,
    address: &str,
    class: Class,
) -> Result<String, SettingsError> {
    let domain = address.rsplit('@').next().unwrap_or(address);
    let mut keys = vec![address.to_owned(), domain.to_owned()];
    let parents = domain.match_indices('.').map(|(at, _)| domain[at..].to_owned());
    keys.extend(parents.chain(["*".to_owned()]));
    let default = settings.main(class.transport()).to_owned();
    Ok(match settings.look_up("transport_maps", &keys)? {
        Some(entry) if entry.starts_with(':') => {
            format!("{}{entry}", default.split(':').next().unwrap_or_default())
        }
        Some(entry) => entry,
        None => default,
    })
}

/// Keys of `transport_maps` for integration addresses, whole or part, that come to us: `(table, key)`.
pub(super) fn routed_to_us(
    settings: &Settings,
    config: &Config,
) -> Result<Vec<(String, String)>, SettingsError> {
    let mut found = Vec::new();
    for table in settings.tables("transport_maps") {
        for (key, transport) in settings.entries(&table)?.unwrap_or_default() {
            let domain = key.rsplit('@').next().unwrap_or(&key);
            if is_integration(config, domain) && is_to_us(settings, config, &transport) {
                found.push((table.clone(), key));
            }
        }
    }
    Ok(found)
}

/// A table of `transport_maps` that says something of whole addresses of a domain: it is asked before anybody is asked for
/// the domain, so that no entry for the domain helps.
#[derive(Debug)]
pub(super) struct Obstacle {
    pub(super) table: String,
    /// What it says, and for what.
    pub(super) says: String,
    /// What a person does about it.
    pub(super) remedy: String,
}

impl Obstacle {
    /// The first of some tables that takes addresses of a domain away from `us`.
    pub(super) fn of(
        settings: &Settings,
        config: &Config,
        form: &str,
        us: &str,
        tables: &[String],
    ) -> Result<Option<Self>, SettingsError> {
        let elsewhere = |to: &str| !is_to_us(settings, config, to);
        for table in tables.iter().filter(|table| table.contains(':') && !settings.is_ignored(table)) {
            let entries = settings.entries(table)?.unwrap_or_default();
            let of_it = |key: &str| key.to_lowercase().ends_with(&format!("@{form}"));
            if let Some((key, to)) = entries.iter().find(|(key, to)| of_it(key) && elsewhere(to)) {
                let (table, says) = (table.clone(), format!("{to} for {key}"));
                let remedy = format!("take the line of {key} out of {table}");
                return Ok(Some(Self { table, says, remedy }));
            }
            for address in [sample(form), sample_project(form)] {
                let Some(to) = settings.ask(&address, table)?.filter(|to| elsewhere(to)) else { continue };
                let (table, remedy) = (table.clone(), instead_of(table, form, us, &to));
                let says = format!("{to} for addresses of {form}");
                return Ok(Some(Self { table, says, remedy }));
            }
        }
        Ok(None)
    }
}

/// How a table, by its kind, leaves the addresses of a domain to us.
fn instead_of(table: &str, form: &str, us: &str, to: &str) -> String {
    let bare = bare_table(table);
    let escaped = form.replace('.', r"\.");
    match bare.split(':').next() {
        // The same, but for what no other table has.
        Some("static") => {
            format!(
                "write inline:{{ {{ * = {to} }} }} in place of {table} in transport_maps, as its last table"
            )
        }
        // In main.cf a $ is the beginning of a name.
        Some("regexp" | "pcre") if bare.contains('{') => {
            format!("put this first inside of its outer braces: {{ /@{escaped}$$/ {us} }}")
        }
        Some("regexp" | "pcre") => format!("put this line first in it: /@{escaped}$/ {us}"),
        _ => format!("see that it answers {us}, or nothing, when it is asked for an address of {form}"),
    }
}

/// True if a transport is an LMTP client that comes to us.
pub(super) fn is_to_us(settings: &Settings, config: &Config, transport: &str) -> bool {
    let (name, nexthop) = transport.split_once(':').unwrap_or((transport, ""));
    let is_lmtp = settings.transport(name).map_or(name == "lmtp", |service| service.command == "lmtp");
    let ours = |lmtp: &SocketSettings| is_ours(settings, lmtp, nexthop);
    is_lmtp && config.lmtp.as_ref().is_some_and(ours)
}

/// True if an endpoint of Postfix's is meant to be a socket of ours, whether it can be reached that way or not.
pub(super) fn is_ours(settings: &Settings, socket: &SocketSettings, text: &str) -> bool {
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

/// The names a domain has in Postfix's tables: an IDN has two, and a client that speaks SMTPUTF8 uses the second.
pub(super) fn forms(domain: &Domain, utf8: bool) -> Vec<String> {
    let unicode = domain.unicode().filter(|_| utf8);
    std::iter::once(domain.as_str().to_owned()).chain(unicode).collect()
}

/// True if this Postfix takes addresses in UTF-8.
pub(super) fn takes_utf8(settings: &Settings) -> bool {
    settings.main("smtputf8_enable") == "yes"
}

/// True if a name, in either form, is a domain of ours.
pub(super) fn is_integration(config: &Config, domain: &str) -> bool {
    Domain::parse(domain).is_ok_and(|domain| config.addressing.domains.contains(&domain))
}

/// Domains that others have here, and whether there are some that no list shows.
pub(super) struct Others {
    /// Each with its class.
    pub(super) named: Vec<(String, Class)>,
    /// `relay_domains` and the like with a table that cannot be listed, or with a pattern.
    pub(super) hidden: Vec<&'static str>,
}

impl Others {
    /// All that the lists name; not the machine's own names, and not those that were `ours` once.
    pub(super) fn of(settings: &Settings, config: &Config, ours: &[String]) -> Result<Self, SettingsError> {
        let mut others = Self { named: Vec::new(), hidden: Vec::new() };
        let host = settings.main("myhostname");
        let short = host.split('.').next().unwrap_or(host);
        let own = [host.to_owned(), short.to_owned(), format!("{short}.localdomain")];
        for (list, class) in LISTS {
            let (named, hidden) = settings.domains_in(list)?;
            others.hidden.extend(hidden.then_some(list));
            let is_local = |name: &String| name.starts_with("localhost") || own.contains(name);
            let named = named
                .into_iter()
                .filter(|name| !is_local(name) && !is_integration(config, name) && !ours.contains(name));
            others.named.extend(named.map(|name| (name, class)));
        }
        Ok(others)
    }

    /// True if there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.named.is_empty() && self.hidden.is_empty()
    }
}

/// Whose other mail passes here, in words; none if nobody but us gets mail through this Postfix: no other domains, nobody
/// who may relay, no copies of other people's mail. Domains that were `ours` once are nobody's.
pub(super) fn passes_on(
    settings: &Settings,
    config: &Config,
    ours: &[String],
) -> Result<Option<String>, SettingsError> {
    let copies = ["always_bcc", "sender_bcc_maps", "recipient_bcc_maps"];
    if let Some(name) = copies.iter().find(|name| !settings.main(name).is_empty()) {
        return Ok(Some(format!("{name} makes copies of other people's mail")));
    }
    let others = Others::of(settings, config, ours)?;
    if let Some((domain, class)) = others.named.first() {
        return Ok(Some(format!("{domain} is in {}", class.list())));
    }
    if let Some(list) = others.hidden.first() {
        return Ok(Some(format!("{list} has a table")));
    }
    let logs_in = |name| settings.services("smtpd").find(|s| settings.of(s, name) == "yes");
    if let Some(service) = logs_in("smtpd_sasl_auth_enable") {
        return Ok(Some(format!("people log in at {}", service.name)));
    }
    let networks = split(settings.main("mynetworks"));
    let relays = networks.into_iter().find(|network| !is_this_machine(network));
    Ok(relays.map(|network| format!("{network} in mynetworks may relay")))
}

/// True if a network of `mynetworks` is this machine alone: loopback, as Debian writes it too, or one address of ours.
fn is_this_machine(network: &str) -> bool {
    let bare = network.trim_start_matches('[');
    let loopback = ["127.", "::1]", "::ffff:127."].iter().any(|start| bare.starts_with(start));
    let (address, length) = network.split_once('/').unwrap_or((network, ""));
    let address = address.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let whole = |address: IpAddr| length.is_empty() || length == if address.is_ipv4() { "32" } else { "128" };
    // Nobody can have a socket at the address of another machine.
    let is_here = |address: IpAddr| UdpSocket::bind((address, 0)).is_ok();
    loopback || address.is_ok_and(|address| whole(address) && is_here(address))
}

/// Who is only judged and logged.
pub(super) enum Shadowed {
    /// The whole service.
    All,
    /// Tenants with these prefixes; as far as we can know, for a directory that is asked by HTTP names none.
    Tenants(Vec<String>),
}

/// Who is in shadow mode, by the configuration and the directory it names. A directory file that is wrong is another
/// command's business.
pub(super) fn shadowed(config: &Config) -> Shadowed {
    if config.policy.shadow == Shadow::Everybody {
        return Shadowed::All;
    }
    let in_file = match &config.outside.directory {
        DirectoryKind::File { path } => FileDirectory::open(path).map(|d| d.shadowed()).unwrap_or_default(),
        _ => Vec::new(),
    };
    let companies = match &config.outside.backend {
        BackendKind::Severa(companies) => companies.as_slice(),
        BackendKind::Http(_) => &[],
    };
    let companies = companies.iter().filter(|c| c.shadow && c.active).map(|c| c.prefix.clone());
    Shadowed::Tenants(in_file.into_iter().chain(companies).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_nobody_who_relays() {
        // Debian's default is the first three.
        for network in ["127.0.0.0/8", "[::ffff:127.0.0.0]/104", "[::1]/128", "127.0.0.1", "127.0.0.1/32"] {
            assert!(is_this_machine(network), "{network}");
        }
        // One address is another machine's, unless we have it.
        for network in [
            "10.0.0.0/8",
            "192.0.2.0/24",
            "[2001:db8::]/64",
            "hash:/etc/postfix/networks",
            "192.0.2.7",
            "192.0.2.7/32",
            "[2001:db8::7]/128",
        ] {
            assert!(!is_this_machine(network), "{network}");
        }
    }

    #[test]
    fn each_kind_of_table_leaves_us_ours_in_its_own_way() {
        for (table, expected) in [
            ("static:relay:[s]", "inline:{ { * = relay:[s] } } in place of static:relay:[s]"),
            ("proxy:static:relay:[s]", "in place of proxy:static:relay:[s]"),
            ("regexp:/x", r"this line first in it: /@a\.test$/ lmtp:us"),
            ("proxy:pcre:/x", r"this line first in it: /@a\.test$/ lmtp:us"),
            ("regexp:{ { /./ relay:[s] } }", r"outer braces: { /@a\.test$$/ lmtp:us }"),
            ("tcp:localhost:1", "answers lmtp:us, or nothing"),
            ("mysql:/x", "answers lmtp:us, or nothing"),
        ] {
            let found = instead_of(table, "a.test", "lmtp:us", "relay:[s]");
            assert!(found.contains(expected), "{table}: {found}");
        }
    }

    #[test]
    fn an_idn_has_two_names() {
        let idn = Domain::parse("s\u{e4}vera.test").unwrap();
        assert_eq!(forms(&idn, true), ["xn--svera-gra.test", "s\u{e4}vera.test"]);
        assert_eq!(forms(&idn, false), ["xn--svera-gra.test"]);
        assert_eq!(forms(&Domain::parse("Severa.test").unwrap(), true), ["severa.test"]);
    }
}
