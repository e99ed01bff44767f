//! What an administrator pulls at night: everything is put off, or what comes from some.
//!
//! In: who sends, from where, to which tenant. Out: why the recipient is not taken now, if so.
//! Promise: other people's mail is not asked about.
//! Fails: never.

use super::{addressing::Reading, reply::Reason};
use crate::mail::{Address, Domain, Mention};
use ipnet::IpNet;
use std::{collections::BTreeSet, net::IpAddr};

/// Levers, taken over at a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Emergency {
    /// Every integration recipient is deferred.
    pub defer: bool,
    /// Whose mail to integration recipients is stopped.
    pub block: Block,
}

/// Whose mail is stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Envelope senders.
    pub senders: BTreeSet<Who>,
    /// SMTP clients.
    pub networks: Vec<IpNet>,
    /// Tenants, by prefix or by the directory's id.
    pub tenants: BTreeSet<String>,
    /// Refuse for good (550) instead of deferring.
    pub refuse: bool,
}

/// An address, or all addresses of a domain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// The address, folded.
    Address(String),
    /// The domain, without its subdomains.
    Domain(Domain),
}

impl std::str::FromStr for Who {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let domain = text.strip_prefix('@').unwrap_or(text);
        if domain.contains('@') {
            let address =
                Address::parse(text).map_err(|error| format!("\"{text}\" is no address: {error}"))?;
            if address.local() == "*" {
                return Err(format!("\"{text}\" would be one address, which nobody has"));
            }
            return Ok(Self::Address(address.folded().to_owned()));
        }
        let domain = Domain::parse(domain).map_err(|error| format!("\"{text}\" is no domain: {error}"))?;
        Ok(Self::Domain(domain))
    }
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Address(address) => address,
            Self::Domain(domain) => domain.as_str(),
        })
    }
}

impl Who {
    /// Whoever would mean the address.
    pub fn meaning(address: &Address) -> [Self; 2] {
        [Self::Address(address.folded().to_owned()), Self::Domain(address.domain().clone())]
    }

    /// Whoever would mean what a text mentions.
    pub fn meant_by(mention: &Mention) -> Vec<Self> {
        match mention {
            Mention::Address(address) => Self::meaning(address).into(),
            Mention::Domain(domain) => vec![Self::Domain(domain.clone())],
        }
    }

    /// True if the set has the address or its domain.
    pub fn any(set: &BTreeSet<Self>, address: &Address) -> bool {
        !set.is_empty() && Self::meaning(address).iter().any(|who| set.contains(who))
    }
}

impl Emergency {
    /// Why an integration recipient is not taken, whosever it is.
    pub fn stops(&self, sender: Option<&Address>, client: Option<&str>) -> Option<Reason> {
        if self.defer {
            return Some(Reason::Emergency);
        }
        let client: Option<IpAddr> = client.and_then(|client| client.parse().ok());
        let blocked = sender.is_some_and(|sender| Who::any(&self.block.senders, sender))
            || client.is_some_and(|client| contains(&self.block.networks, client));
        blocked.then(|| self.block.reason())
    }

    /// Why nothing is taken for a tenant; where the directory names none, for whoever the address may mean.
    /// `tenant`: its id and its prefix.
    pub fn stops_tenant(&self, tenant: Option<(&str, &str)>, readings: &[Reading]) -> Option<Reason> {
        let tenants = &self.block.tenants;
        let blocked = match tenant {
            Some((id, prefix)) => tenants.contains(id) || tenants.contains(prefix),
            None => !tenants.is_empty() && readings.iter().any(|reading| tenants.contains(&reading.prefix)),
        };
        blocked.then(|| self.block.reason())
    }

    /// What is pulled, for people; none if nothing is.
    pub fn pulled(&self) -> Option<String> {
        let Block { senders, networks, tenants, refuse } = &self.block;
        if self.defer {
            return Some(
                "emergency.defer: mail to integration addresses is answered 451 [emergency]".to_owned(),
            );
        }
        let kinds = [("senders", senders.len()), ("networks", networks.len()), ("tenants", tenants.len())];
        let named: Vec<_> = kinds.iter().filter(|(_, count)| *count > 0).map(|(kind, _)| *kind).collect();
        let answer = if *refuse { "550 [blocked]" } else { "451 [emergency]" };
        let text = format!("emergency.block: mail of some {} is answered {answer}", named.join(", "));
        (!named.is_empty()).then_some(text)
    }
}

impl Block {
    fn reason(&self) -> Reason {
        if self.refuse { Reason::Blocked } else { Reason::Emergency }
    }
}

/// True if one of the networks has the address; an IPv4 address in IPv6's clothes is one of IPv4.
pub fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(senders: &[&str], networks: &[&str], refuse: bool) -> Emergency {
        let senders = senders.iter().map(|who| who.parse().unwrap()).collect();
        let networks = networks.iter().map(|network| network.parse().unwrap()).collect();
        let tenants = ["t-2".to_owned(), "other".to_owned()].into();
        Emergency { defer: false, block: Block { senders, networks, tenants, refuse } }
    }

    /// D10.
    #[test]
    fn who_is_stopped() {
        let levers =
            block(&["Mallory@x.test", "evil.test", "@bad.test"], &["192.0.2.0/24", "2001:db8::/32"], false);
        for (sender, client, stopped) in [
            ("mallory@X.test", "198.51.100.1", true),
            ("anna@x.test", "198.51.100.1", false),
            ("a@evil.test", "198.51.100.1", true),
            ("a@sub.evil.test", "198.51.100.1", false),
            ("a@bad.test", "", true),
            ("", "192.0.2.9", true),
            ("", "::ffff:192.0.2.9", true),
            ("a@x.test", "2001:db8::1", true),
            ("a@x.test", "no address", false),
            ("", "", false),
        ] {
            let address = Address::parse(sender).ok();
            let found = levers.stops(address.as_ref(), Some(client));
            assert_eq!(found, stopped.then_some(Reason::Emergency), "{sender} {client}");
        }
        let stopped = Some(Reason::Emergency);
        for (tenant, readings, expected) in [
            (Some(("t-2", "second")), &["second"][..], stopped),
            (Some(("t-3", "other")), &["1001.other", "other"], stopped),
            (Some(("t-1", "mycompany")), &["mycompany"], None),
            // The longest prefix that exists decides.
            (Some(("t-1", "a.other")), &["a.other", "other"], None),
            // The directory knows nobody, or says nothing.
            (None, &["1001.other", "other"], stopped),
            (None, &["mycompany"], None),
        ] {
            let reading = |prefix: &&str| Reading { prefix: (*prefix).to_owned(), project: None };
            let readings: Vec<Reading> = readings.iter().map(reading).collect();
            assert_eq!(levers.stops_tenant(tenant, &readings), expected, "{tenant:?} {readings:?}");
        }
        let said = levers.pulled().unwrap();
        assert_eq!(
            said,
            "emergency.block: mail of some senders, networks, tenants is answered 451 [emergency]"
        );
        let refusing = block(&["evil.test"], &[], true);
        assert_eq!(refusing.stops(Address::parse("a@evil.test").ok().as_ref(), None), Some(Reason::Blocked));
    }

    #[test]
    fn who_wants_nothing_is_stopped_by_one_lever_alone() {
        let levers = Emergency { defer: true, ..Emergency::default() };
        assert!(levers.pulled().is_some() && Emergency::default().pulled().is_none());
        assert_eq!(levers.stops(None, None), Some(Reason::Emergency));
        assert_eq!(Emergency::default().stops(None, None), None);
    }

    #[test]
    fn what_is_neither_address_nor_domain_is_an_error() {
        for text in ["", "a@", "@", "*@x.test", "a b@x.test@", "exa mple.test"] {
            assert!(text.parse::<Who>().is_err(), "{text}");
        }
    }
}
