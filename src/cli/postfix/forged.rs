//! Whether a stranger can write an Authentication-Results field that we believe (RFC 8601, section 5).
//!
//! In: `header_checks` as each `cleanup` has them, and `sender.trusted_authserv_ids`. Out: a finding, whose remedy removes
//! such fields. `cleanup` looks at a message's header before it shows it to any milter, so what a filter before us adds
//! stays.
//! Promise: the tables are asked, and by each way to write the field that we would read.

use super::{
    check::{Checks, Severity},
    settings::{Service, SettingsError, split},
};

/// What takes the field, or the message, away.
const REMOVES: &[&str] = &["IGNORE", "STRIP", "REJECT", "DISCARD", "4", "5"];

impl Checks<'_> {
    pub(super) fn forged(&mut self, service: &Service) -> Result<(), SettingsError> {
        let checks = self.settings.of(service, "header_checks").to_owned();
        for id in &self.config.policy.trust.authserv_ids {
            let mut open = None;
            for field in forms(id) {
                if !self.removes(&checks, &field)? {
                    open.get_or_insert(field);
                }
            }
            let Some(field) = open else { continue };
            let table = format!("regexp:{{ {{ {} IGNORE }} }}", pattern(id));
            let before = self.settings.base("header_checks").filter(|_| !checks.is_empty());
            let value = before.map_or(table.clone(), |before| format!("{table}, {before}"));
            let reason =
                "a stranger can write the field himself, and counts as any user whose address he writes";
            let remedy = self.set_for(service, "header_checks", &value);
            let setting = format!("header_checks = {checks} lets pass \"{}\"", field.replace('\n', " "));
            self.find(Severity::Must, "forged-results", setting, reason, remedy);
        }
        Ok(())
    }

    fn removes(&self, checks: &str, field: &str) -> Result<bool, SettingsError> {
        for table in split(checks) {
            if let Some(action) = self.settings.ask(field, &table)? {
                let action = action.trim_start().to_uppercase();
                return Ok(REMOVES.iter().any(|removes| action.starts_with(removes)));
            }
        }
        Ok(false)
    }
}

/// How such a field may be written.
fn forms(id: &str) -> [String; 5] {
    [
        format!("Authentication-Results: {id}; dmarc=pass header.from=example.com"),
        format!("authentication-results:{} 1; spf=pass", id.to_uppercase()),
        format!("Authentication-Results : (comment) {id}; dkim=pass"),
        format!("Authentication-Results: \"{id}\"; dkim=pass"),
        format!("Authentication-Results:\n\t{id};\n\tdkim=pass"),
    ]
}

/// A field that names the id anywhere: what it costs is another service's field that speaks of ours.
fn pattern(id: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_@:".contains(c);
    let id: String = id.chars().flat_map(|c| [(!plain(c)).then_some('\\'), Some(c)]).flatten().collect();
    format!("/^Authentication-Results[[:space:]]*:.*{id}/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_the_id_itself() {
        assert_eq!(pattern("mx.test"), "/^Authentication-Results[[:space:]]*:.*mx\\.test/");
        assert_eq!(pattern("a-b_c+1"), "/^Authentication-Results[[:space:]]*:.*a-b_c\\+1/");
    }
}
