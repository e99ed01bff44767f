//! Whether a stranger can write an Authentication-Results field that we believe (RFC 8601, section 5), and the table that takes
//! such fields away.
//!
//! In: `header_checks` as each `cleanup` has them, and `sender.trusted_authserv_ids`. Out: a finding, whose remedy removes
//! such fields; for `print` the same setting. `cleanup` looks at a message's header before it shows it to any milter, so what
//! a filter before us adds stays.
//! Promise: the tables are asked, and by each way to write the field that we would read. Tables that are there stay, after ours.

use super::{
    add::{Adding, takes_patterns},
    check::{Checks, Severity},
    record::Name,
    script::{Plan, dense},
    settings::{Service, Settings, SettingsError, split},
};
use crate::config::Config;

/// What takes the field, or the message, away.
const REMOVES: &[&str] = &["IGNORE", "STRIP", "REJECT", "DISCARD", "4", "5"];

/// Where it stands.
const CHECKS: &str = "header_checks";

/// An option of smtpd by which nobody looks at the header.
const UNCHECKED: &str = "no_header_body_checks";

/// What stands above it.
const WHY: &str = "Results of filters that we believe (sender.trusted_authserv_ids): what a filter of this Postfix adds stays, and a \
                   stranger's goes. So does the field of another host: where one adds it before this Postfix, it must go there.";

impl Checks<'_> {
    pub(super) fn forged(&mut self, service: &Service) -> Result<(), SettingsError> {
        let checks = self.settings.of(service, CHECKS).to_owned();
        for id in &self.config.policy.trust.authserv_ids {
            let Some(field) = passing(self.settings, &split(&checks), id)? else { continue };
            let table = format!("regexp:{{ {} }}", entry(id));
            let before = self.settings.base(CHECKS).filter(|_| !checks.is_empty());
            let value = before.map_or(table.clone(), |before| format!("{table}, {before}"));
            let reason =
                "a stranger can write the field himself, and counts as any user whose address he writes";
            let remedy = self.set_for(service, CHECKS, &value);
            let setting = format!("{CHECKS} = {checks} lets pass \"{}\"", field.replace('\n', " "));
            self.find(Severity::Must, "forged-results", setting, reason, remedy);
        }
        Ok(())
    }
}

impl Checks<'_> {
    /// Mail that no table is asked about. Beside the world's door, a filter's way back is meant so.
    pub(super) fn unchecked(&mut self) {
        if self.config.policy.trust.authserv_ids.is_empty() {
            return;
        }
        let name = "receive_override_options";
        for service in self.settings.services("smtpd").cloned().collect::<Vec<_>>() {
            let is_local =
                ["127.", "localhost:", "[::1]"].iter().any(|start| service.name.starts_with(start));
            // Behind a proxy nobody has asked them either.
            let is_behind_proxy = self.settings.services("smtpd").any(|front| {
                let proxy = self.settings.of(front, "smtpd_proxy_filter");
                !proxy.is_empty() && front.name != service.name
            });
            let is_way_back = is_local && self.settings.is_overridden(&service, name);
            if is_way_back && is_behind_proxy {
                let setting =
                    format!("{}: {name} has {UNCHECKED}, and smtpd_proxy_filter is set", service.name);
                let reason = "no header_checks are asked on the way through that filter: unless it takes strangers' fields away itself, \
                              anybody counts as any user";
                let remedy = "have that filter remove Authentication-Results with a name of sender.trusted_authserv_ids before it \
                              writes its own, or take the name out there"
                    .to_owned();
                self.find(Severity::Must, "forged-results", setting, reason, remedy);
                continue;
            }
            let options = split(self.settings.of(&service, name));
            if self.entry_of(&service).is_none() || is_way_back || !options.iter().any(|o| o == UNCHECKED) {
                continue;
            }
            let rest: Vec<String> = options.into_iter().filter(|option| option != UNCHECKED).collect();
            let reason = "no header_checks are asked there: a stranger can write the field himself, and counts as any user";
            let remedy = self.set_for(&service, name, &rest.join(", "));
            let setting = format!("{}: {name} has {UNCHECKED}", service.name);
            self.find(Severity::Must, "forged-results", setting, reason, remedy);
        }
    }
}

impl Adding<'_> {
    /// A stranger's results go, before a filter adds its own.
    pub(super) fn forged(&mut self) -> Result<(), SettingsError> {
        let place = Name::Main(CHECKS.to_owned());
        let base = self.settings.base(CHECKS).map(|base| split(&base)).unwrap_or_default();
        let added = split(&self.record.added(&place));
        let theirs: Vec<String> =
            base.iter().filter(|element| !added.contains(&dense(element))).cloned().collect();
        let ids = &self.config.policy.trust.authserv_ids;
        let mut is_open = false;
        // What is written may have variables; what is asked has none.
        let asked = split(self.settings.main(CHECKS));
        for id in ids {
            is_open |= passing(self.settings, &asked, id)?.is_some();
        }
        let new: Vec<String> = match (ids.is_empty(), is_open) {
            (true, _) => theirs,
            (false, false) => return Ok(()),
            (false, true) if !takes_patterns(self.settings) => {
                self.plan.note(&format!(
                    "{CHECKS} stays: this Postfix has no patterns in main.cf. Put a file of type regexp: first into it, with \
                     {} IGNORE as a line for each of sender.trusted_authserv_ids.",
                    ids.first().map_or(String::new(), |id| pattern(id))
                ));
                return Ok(());
            }
            (false, true) => table(self.config).into_iter().chain(theirs).collect(),
        };
        if new == base {
            return Ok(());
        }
        if !ids.is_empty() {
            self.plan.say(&format!("\n# {WHY}"));
        }
        // Not set, if it was not.
        let before =
            self.record.of(&place).map_or(self.settings.written(CHECKS).is_some(), |c| c.was.is_some());
        let value = (!new.is_empty() || before).then(|| new.join(", "));
        let was = self.settings.written(CHECKS).map(str::to_owned);
        self.plan.change(place, was, value);
        for (parameter, _) in self.settings.overrides_of(CHECKS) {
            self.plan
                .note(&format!("{parameter} is a setting of its own: `postfix check` says what it lacks."));
        }
        Ok(())
    }
}

/// The same where there is no Postfix yet.
pub(super) fn as_it_is(plan: &mut Plan, config: &Config) {
    if let Some(table) = table(config) {
        plan.say(&format!("\n# {WHY}"));
        plan.change(Name::Main(CHECKS.to_owned()), None, Some(table));
    }
}

/// The table that takes away what strangers write; none if nobody's results are believed.
fn table(config: &Config) -> Option<String> {
    let entries: Vec<String> = config.policy.trust.authserv_ids.iter().map(|id| entry(id)).collect();
    (!entries.is_empty()).then(|| format!("regexp:{{ {} }}", entries.join(" ")))
}

fn entry(id: &str) -> String {
    format!("{{ {} IGNORE }}", pattern(id))
}

/// A way to write the field that these tables let pass; none if they take it away however it is written.
fn passing(settings: &Settings, tables: &[String], id: &str) -> Result<Option<String>, SettingsError> {
    for field in forms(id) {
        if !removes(settings, tables, &field)? {
            return Ok(Some(field));
        }
    }
    Ok(None)
}

fn removes(settings: &Settings, tables: &[String], field: &str) -> Result<bool, SettingsError> {
    for table in tables {
        // What cannot be read takes nothing away, and is named elsewhere.
        if let Ok(Some(action)) = settings.ask(field, table) {
            let action = action.trim_start().to_uppercase();
            return Ok(REMOVES.iter().any(|removes| action.starts_with(removes)));
        }
    }
    Ok(false)
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
    let id: String = id.chars().map(literal).collect();
    format!("/^Authentication-Results[[:space:]]*:.*{id}/")
}

/// A character that stands for itself. A quote behind a backslash is an anchor for GNU.
fn literal(c: char) -> String {
    match c {
        _ if c.is_alphanumeric() || "-_@:".contains(c) => c.to_string(),
        '\'' | '`' | '<' | '>' => format!("[{c}]"),
        _ => format!("\\{c}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_the_id_itself() {
        assert_eq!(pattern("mx.test"), "/^Authentication-Results[[:space:]]*:.*mx\\.test/");
        assert_eq!(pattern("o'b`n"), "/^Authentication-Results[[:space:]]*:.*o[']b[`]n/");
        assert_eq!(pattern("a-b_c+1"), "/^Authentication-Results[[:space:]]*:.*a-b_c\\+1/");
    }
}
