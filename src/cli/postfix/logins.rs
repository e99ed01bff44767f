//! Whether a login is seen where a policy asks for a proof of who sends.
//!
//! In: the smtpd services where people log in, and our `[policy]` and `[sender]`. Out: findings. LMTP knows no login: only the
//! milter hears it, or the topmost Received field says it.
//! Promise: what is found loses mail: it is refused with 550, at once or after our milter was down.

use super::{
    check::{Checks, Severity},
    script::bare,
    settings::Service,
};
use crate::config::{BackendKind, Config, DirectoryKind};
use crate::directory::FileDirectory;
use crate::rules::Require;

/// The setting by which Received says who logged in.
const SAYS: &str = "smtpd_sasl_authenticated_header";

impl Checks<'_> {
    /// Every service where people log in.
    pub(super) fn logins(&mut self) {
        if self.all_shadowed() || !asks_for_proof(self.config) {
            return;
        }
        let logs_in = |service: &&Service| self.settings.of(service, "smtpd_sasl_auth_enable") == "yes";
        let services: Vec<Service> = self.settings.services("smtpd").filter(logs_in).cloned().collect();
        for service in &services {
            self.login(service);
        }
    }

    fn login(&mut self, service: &Service) {
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
