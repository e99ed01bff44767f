//! What [`super::check`] finds before the milter is asked: restrictions that refuse our domains, and filters that nobody
//! answers.
//!
//! In: the lists of restrictions of each smtpd. Out: findings. Promise: what stands behind something that lets some
//! clients through (`permit…`, a table of clients) is never more than a note, because who comes through is asked about.

use super::{
    check::{Checks, Severity},
    probe::Endpoint,
    settings::{Service, Style, is_pattern, split},
    ways::{Class, sample},
};

/// The lists that smtpd asks at RCPT, before it asks milters, and those by which it refuses what a milter let pass.
const RESTRICTIONS: [&str; 7] = [
    "smtpd_client_restrictions",
    "smtpd_helo_restrictions",
    "smtpd_sender_restrictions",
    "smtpd_relay_restrictions",
    "smtpd_recipient_restrictions",
    "smtpd_data_restrictions",
    "smtpd_end_of_data_restrictions",
];

/// Asks the DNS for the recipient's domain, unless its mail ends on this machine: for relay_domains too.
const KNOWN_TO_DNS: &str = "reject_unknown_recipient_domain";

impl Checks<'_> {
    /// Every smtpd.
    pub(super) fn hurdles(&mut self) {
        let (settings, config) = (self.settings, self.config);
        for service in settings.services("smtpd") {
            for list in RESTRICTIONS {
                for domain in &config.addressing.domains {
                    self.restrictions(service, list, domain.as_str());
                }
            }
            self.proxy_filter(service);
        }
    }

    fn restrictions(&mut self, service: &Service, list: &'static str, domain: &str) {
        let elements = split(self.settings.of(service, list));
        let (mut previous, mut some_pass) = ("", false);
        for (at, element) in elements.iter().enumerate() {
            let before = std::mem::replace(&mut previous, element);
            match element.as_str() {
                _ if before == "warn_if_reject" => {}
                "permit" | "permit_auth_destination" => return,
                "reject" | "defer" if some_pass => return,
                "reject" | "defer" => {
                    // The same further on would refuse then.
                    let instead = |i: usize, element: &String| match i >= at && is_flat(element) {
                        true if is_of_data(list) => None,
                        true => Some("reject_unauth_destination".to_owned()),
                        false => Some(element.clone()),
                    };
                    let rest = elements.iter().enumerate().filter_map(|(i, element)| instead(i, element));
                    let rest = rest.collect::<Vec<_>>().join(", ");
                    let remedy = self.set_for(service, list, &rest);
                    let setting = format!("{}: {list} has {element}", service.name);
                    let reason = match is_of_data(list) {
                        true => "smtpd refuses every message, whatever the milter says",
                        false => "smtpd refuses every recipient before the milter is asked",
                    };
                    return self.find(Severity::Must, "refused-before", setting, reason, remedy);
                }
                table if before == "check_recipient_access" => match self.access(table, domain) {
                    Some(action) if is_permission(&action) => return,
                    Some(action) if is_refusal(&action) => {
                        let setting = format!("{}: {list} has {table}", service.name);
                        let (severity, whom) = match some_pass {
                            true => (Severity::Note, " to whoever does not pass before it"),
                            false => (Severity::Must, ""),
                        };
                        let reason = format!(
                            "it says {action} for {domain}{whom}: smtpd acts on that before the milter is asked"
                        );
                        let remedy = match some_pass {
                            true => format!(
                                "nothing, if only those who pass before it may write to {domain}; else "
                            ),
                            false => String::new(),
                        };
                        let remedy =
                            format!("{remedy}take {domain}, or the pattern that matches it, out of {table}");
                        return self.find(severity, "refused-before", setting, &reason, remedy);
                    }
                    _ => {}
                },
                KNOWN_TO_DNS => self.unknown_to_dns(service, list, domain),
                "check_recipient_access" | "warn_if_reject" => {}
                // What belongs to the element before it: a list in the DNS, a table, a server.
                _ if takes_argument(before) => {}
                // Its answer depends on the client or the sender, whom nobody knows here.
                other => some_pass |= may_let_pass(other) && !self.only_refuses(other, elements.get(at + 1)),
            }
        }
    }

    /// Nobody asks the DNS here: what it says changes, and Postfix may ask another one.
    fn unknown_to_dns(&mut self, service: &Service, list: &str, domain: &str) {
        if !matches!(Class::of(self.settings, domain), Ok(Class::Relay | Class::Other)) {
            return;
        }
        let setting = format!("{}: {list} has {KNOWN_TO_DNS}", service.name);
        let reason = format!(
            "smtpd asks the DNS for {domain}: while it has neither an MX nor an address there, as names of a network of one's \
             own may not, mail to it is answered 450, and the milter is not asked"
        );
        let remedy =
            format!("see that the DNS that this machine asks has {domain}, or take it out of {list}");
        self.find(Severity::Note, "unknown-to-dns", setting, &reason, remedy);
    }

    /// True for a table of access(5) of which all is known, and that lets nobody pass.
    fn only_refuses(&self, element: &str, table: Option<&String>) -> bool {
        let Some(table) = table.filter(|_| element.starts_with("check_") && element.ends_with("_access"))
        else {
            return false;
        };
        let entries = self.settings.entries(table).ok().flatten();
        let passes = |action: &str| !is_refusal(action) && !action.trim().eq_ignore_ascii_case("dunno");
        entries.is_some_and(|entries| !entries.iter().any(|(_, action)| passes(action)))
    }

    /// What access(5) has for an address of a domain; none if the table cannot be read, which Postfix says itself.
    fn access(&self, table: &str, domain: &str) -> Option<String> {
        let style =
            Style::of("smtpd_access_maps", &split(self.settings.main("parent_domain_matches_subdomains")));
        let above = style.above(domain).into_iter().map(str::to_owned);
        let parts = std::iter::once(domain.to_owned()).chain(above).filter(|_| !is_pattern(table));
        std::iter::once(sample(domain))
            .chain(parts)
            .find_map(|key| self.settings.ask(&key, table).ok().flatten())
    }

    /// A filter that smtpd talks to while the client waits.
    fn proxy_filter(&mut self, service: &Service) {
        let name = "smtpd_proxy_filter";
        let value = self.settings.of(service, name).to_owned();
        let place = match value.bytes().all(|byte| byte.is_ascii_digit()) {
            true => format!("127.0.0.1:{value}"),
            false => value.clone(),
        };
        let Some(endpoint) = Endpoint::parse(&place).filter(|_| !value.is_empty()) else { return };
        if endpoint.is_dead(self.settings.queue_directory()) {
            let reason = "nobody answers there: all mail of this service is answered 451";
            let remedy = format!("start that filter, or do without it: {}", self.set_for(service, name, ""));
            let setting = format!("{}: {name} = {value}", service.name);
            self.find(Severity::Must, "proxy-filter", setting, reason, remedy);
        }
    }
}

/// Asked for the message, not for a recipient.
fn is_of_data(list: &str) -> bool {
    list.contains("data_restrictions")
}

/// Refuses whoever comes so far.
fn is_flat(element: &str) -> bool {
    ["reject", "defer"].contains(&element)
}

/// True for an element of a list of restrictions that has another one behind it.
fn takes_argument(element: &str) -> bool {
    let starts = ["check_", "reject_rbl_", "reject_rhsbl_", "permit_dnswl_", "permit_rhswl_"];
    element == "sleep" || starts.iter().any(|start| element.starts_with(start))
}

/// True for what may end a list in a client's favour: `permit…`, tables, services, classes of restrictions.
fn may_let_pass(element: &str) -> bool {
    let refuses = ["reject_", "defer_"].iter().any(|start| element.starts_with(start));
    !refuses && element != "sleep" && !element.bytes().all(|byte| byte.is_ascii_digit())
}

/// `OK`, a number, or a restriction that permits.
fn is_permission(action: &str) -> bool {
    let word = action.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
    word == "ok" || word == "permit" || word.bytes().all(|byte| byte.is_ascii_digit()) && !is_refusal(action)
}

/// What takes a recipient from us: a refusal, or another way.
fn is_refusal(action: &str) -> bool {
    let word = action.split_whitespace().next().unwrap_or_default().to_ascii_lowercase();
    let code = word.len() == 3 && ["4", "5"].iter().any(|first| word.starts_with(first));
    code && word.bytes().all(|byte| byte.is_ascii_digit())
        || ["4.", "5."].iter().any(|class| word.starts_with(class))
        || ["reject", "defer", "discard", "redirect", "filter", "hold"].contains(&word.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_let_some_clients_pass() {
        for (element, expected) in [
            ("permit_mynetworks", true),
            ("permit_sasl_authenticated", true),
            ("check_client_access", true),
            ("hash:/etc/postfix/clients", true),
            ("check_policy_service", true),
            ("a_class_of_ours", true),
            ("reject_unauth_destination", false),
            ("defer_unauth_destination", false),
            ("sleep", false),
            ("1", false),
        ] {
            assert_eq!(may_let_pass(element), expected, "{element}");
        }
    }

    #[test]
    fn what_has_something_behind_it() {
        for (element, expected) in [
            ("check_client_access", true),
            ("check_policy_service", true),
            ("reject_rbl_client", true),
            ("reject_rhsbl_sender", true),
            ("permit_dnswl_client", true),
            ("sleep", true),
            ("reject_unauth_destination", false),
            ("permit_mynetworks", false),
            ("zen.dnsbl.test", false),
        ] {
            assert_eq!(takes_argument(element), expected, "{element}");
        }
    }

    #[test]
    fn actions_as_access_5_has_them() {
        for (action, permission, refusal) in [
            ("OK", true, false),
            ("12345", true, false),
            ("REJECT no such domain", false, true),
            ("550 gone", false, true),
            ("5.7.1 gone", false, true),
            ("redirect x@y.test", false, true),
            ("DUNNO", false, false),
            ("reject_unknown_client_hostname", false, false),
        ] {
            assert_eq!((is_permission(action), is_refusal(action)), (permission, refusal), "{action}");
        }
    }
}
