//! Whether a login is seen where a policy asks for a proof of who sends.
//!
//! In: the smtpd services where people log in, and our `[policy]` and `[sender]`. Out: findings. LMTP knows no login: only the
//! milter hears it, or the topmost Received field says it.
//! Promise: what is found loses mail: it is refused with 550, at once or after our milter was down.
//! Fails: where a table cannot be listed, nothing is known of its copies.

use super::{
    check::{Checks, Severity},
    script::bare,
    settings::{Service, Settings, split},
    ways::is_integration,
};
use crate::config::{BackendKind, Config, DirectoryKind};
use crate::directory::FileDirectory;
use crate::rules::Require;

/// What adds recipients that no milter sees: they come by LMTP whoever asks our milter.
const ADDS: [&str; 7] = [
    "always_bcc",
    "sender_bcc_maps",
    "recipient_bcc_maps",
    "virtual_alias_maps",
    "alias_maps",
    "canonical_maps",
    "recipient_canonical_maps",
];

/// The setting by which Received says who logged in.
const SAYS: &str = "smtpd_sasl_authenticated_header";

impl Checks<'_> {
    /// Every service where people log in.
    pub(super) fn logins(&mut self) {
        if self.all_shadowed() || !asks_for_proof(self.config) {
            return;
        }
        self.unforwarded();
        let adds = adds_us(self.settings, self.config);
        let logs_in = |service: &&Service| self.settings.of(service, "smtpd_sasl_auth_enable") == "yes";
        let services: Vec<Service> = self.settings.services("smtpd").filter(logs_in).cloned().collect();
        for service in &services {
            self.login(service, adds);
        }
    }

    /// Without XFORWARD we know neither client nor HELO by LMTP, nor for which message a Received field was written.
    fn unforwarded(&mut self) {
        let name = "lmtp_send_xforward_command";
        for service in self.settings.services("lmtp").cloned().collect::<Vec<_>>() {
            if self.settings.of(&service, name) == "yes" {
                continue;
            }
            let setting = format!("{}: {name} is {}", service.name, self.settings.of(&service, name));
            let reason = "by LMTP nothing is known of who sends: trusted networks do not count, and with sender.received_by a Received \
                          field that was there before may be taken for Postfix's own";
            let remedy = self.set_for(&service, name, "yes");
            self.find(Severity::Should, "xforward", setting, reason, remedy);
        }
    }

    fn login(&mut self, service: &Service, adds: Option<&str>) {
        let host = self.settings.of(service, "myhostname").to_lowercase();
        let (is_said, is_believed) = (
            self.settings.of(service, SAYS) == "yes",
            self.config.policy.trust.received_by.as_ref() == Some(&host),
        );
        if is_said && is_believed {
            return;
        }
        let action = self
            .entry_of(service)
            .map(|entry| entry.setting("default_action", self.settings, service).to_owned());
        let name = &service.name;
        let (setting, when) = match action.as_deref() {
            None => (format!("{name}: people log in, and our milter is not asked"), ""),
            Some(_) if let Some(adds) = adds => {
                (format!("{name}: people log in, and {adds} adds integration addresses"), "")
            }
            Some("accept") => (
                format!("{name}: people log in, and default_action is accept"),
                "after activity-milter was down, ",
            ),
            Some(_) => return,
        };
        let reason = format!(
            "{when}their mail comes to us by LMTP alone, which knows no login: where require = \"authenticated\" counts, a user is \
             refused [not-authenticated]"
        );
        let said = (!is_said).then(|| self.set_for(service, SAYS, "yes"));
        let believed =
            (!is_believed).then(|| format!("write received_by = \"{host}\" below [sender] and reload us"));
        let by_received = [believed, said].into_iter().flatten().collect::<Vec<_>>().join(", then ");
        let remedy = match action {
            None => {
                let attach =
                    self.print(&format!("submission --service {}", bare(name.trim_end_matches("/inet"))));
                format!(
                    "{by_received}; or ask our milter there: {attach} | sh, which tells logins while we are up"
                )
            }
            Some(_) => by_received,
        };
        self.find(Severity::Must, "login", setting, &reason, remedy);
    }
}

/// What adds integration addresses to the recipients behind the milter, if something does.
fn adds_us(settings: &Settings, config: &Config) -> Option<&'static str> {
    let is_ours = |to: &str| to.rsplit_once('@').is_some_and(|(_, domain)| is_integration(config, domain));
    for name in ADDS {
        for element in split(settings.main(name)) {
            let to = match (name, settings.is_ignored(&element)) {
                ("always_bcc", _) => vec![element],
                _ if element.starts_with("static:") => vec![element["static:".len()..].to_owned()],
                (_, true) => continue,
                _ => {
                    let entries = settings.entries(&element).ok().flatten().unwrap_or_default();
                    // Who already writes to us is seen by the milter.
                    let added =
                        entries.into_iter().filter(|(key, _)| name.ends_with("bcc_maps") || !is_ours(key));
                    added.flat_map(|(_, to)| split(&to)).collect()
                }
            };
            if to.iter().any(|to| is_ours(to)) {
                return Some(name);
            }
        }
    }
    None
}

/// True if some tenant's policy asks for it, as far as we can know: a directory that is asked by HTTP names none.
fn asks_for_proof(config: &Config) -> bool {
    let in_file = || match &config.outside.directory {
        DirectoryKind::File { path } => FileDirectory::open(path).is_ok_and(|d| d.asks_for_proof()),
        _ => false,
    };
    let of_company = || match &config.outside.backend {
        BackendKind::Severa(companies) => {
            companies.iter().any(|company| company.policy.require == Some(Require::Authenticated))
        }
        BackendKind::Http(_) => false,
    };
    config.policy.tenants.require == Require::Authenticated || in_file() || of_company()
}
