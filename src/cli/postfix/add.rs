//! What a deployment needs beside what a Postfix has: each setting is added to, kept, or refused.
//!
//! In: the deployment's settings one by one, Postfix's settings, ours. Out: a [`Plan`], or a [`Refusal`].
//! Promise: other domains' mail goes where it went before. A value that somebody has set is kept, or shown as `# was:`;
//! lists keep their elements and their order.
//! Fails: [`Refusal`] names what cannot be added to, and what to do; nothing is printed then.

use super::{
    former::{Former, OF_DOMAINS, domain_of},
    print::{endpoint, with_existing},
    probe::Endpoint,
    record::{Name, Record},
    script::{Plan, dense, quoted, shown_editor},
    settings::{MilterEntry, Settings, SettingsError, WAYS, inline, split},
    ways::{
        Class, Obstacle, Others, Shadowed, forms, is_integration, is_ours, is_to_us, passes_on, routed_to_us,
        sample, sample_project, shadowed, takes_utf8, transport_of,
    },
};
use crate::config::Config;
use crate::intake::{Listen, SocketSettings};
use crate::mail::Domain;

/// A table that takes the Bcc field out of what smtp(8) sends: as an element of `smtp_header_checks`.
pub(super) const NO_BCC: &str = "regexp:{ { /^(Resent-)?Bcc:/ IGNORE } }";

/// Why nothing is printed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// Something that cannot be added to: what, and what to do.
    #[error("{0}")]
    No(String),
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

/// Adds to one Postfix.
pub(super) struct Adding<'a> {
    pub(super) settings: &'a Settings,
    pub(super) config: &'a Config,
    pub(super) record: &'a Record,
    former: Former<'a>,
    others: Others,
    /// Whose other mail passes, in words.
    passing: Option<String>,
    /// Nothing of ours may make mail wait.
    shadow: bool,
    /// `relay_transport` is for other domains again.
    gave_back: bool,
    pub(super) plan: Plan,
}

impl<'a> Adding<'a> {
    /// Looks at what is there, and refuses what can be refused at once.
    pub(super) fn new(
        settings: &'a Settings,
        config: &'a Config,
        record: &'a Record,
    ) -> Result<Self, Refusal> {
        let version = settings.main("mail_version");
        if version.split('.').next().and_then(|major| major.parse::<u32>().ok()).is_some_and(|m| m < 3) {
            return Err(Refusal::No(format!(
                "Postfix {version} has neither inline tables nor settings for one milter: set it up by hand, after what \
                 --format main.cf prints on another machine, or upgrade it to 3.0"
            )));
        }
        if let Some(broken) = settings.broken(&WAYS).first() {
            return Err(Refusal::No(format!("{broken}, then print again")));
        }
        let former = Former::of(settings, config, record)?;
        let others = Others::of(settings, config, &former.domains)?;
        let passing = passes_on(settings, config, &[&former.domains, record.domains_of_others()].concat())?;
        let (shadow, gave_back, plan) = (false, false, Plan::default());
        Ok(Self { settings, config, record, former, others, passing, shadow, gave_back, plan })
    }

    /// Says where mail goes in shadow mode; refuses what would pile up.
    pub(super) fn shadow(&mut self) -> Result<(), Refusal> {
        self.shadow = true;
        if let Some((table, key)) =
            routed_to_us(self.settings, self.config)?.into_iter().find(|(_, key)| key.contains('@'))
        {
            return Err(Refusal::No(format!(
                "transport_maps has {table}, which brings {key} to activity-milter's LMTP listener, and that keeps nothing in \
                 shadow mode: mail would pile up. Take {key} out of that table, then print again"
            )));
        }
        for (form, class) in self.forms()? {
            let transport = transport_of(self.settings, &sample(&form), class)?;
            if is_to_us(self.settings, self.config, &transport) {
                return Err(Refusal::No(format!(
                    "{form} is delivered to activity-milter's LMTP listener ({transport}), which keeps nothing in shadow mode: \
                     mail would pile up. First: activity-milter postfix print --remove | sh"
                )));
            }
            match class {
                Class::Other => self.plan.note(&format!(
                    "{form} is in no list of domains here: smtpd refuses its mail, and there is nothing to judge yet."
                )),
                _ => self.plan.note(&format!("{form} goes on to {transport}.")),
            }
        }
        Ok(())
    }

    /// Refuses to route mail to a listener that keeps nothing.
    pub(super) fn refuse_shadow(&self) -> Result<(), Refusal> {
        match shadowed(self.config) {
            Shadowed::All => Err(Refusal::No(
                "mode is \"shadow\": our LMTP listener keeps nothing, and mail that is routed to it would pile up in Postfix. \
                 Print with --shadow, which attaches the milter only, or set mode = \"live\" and restart first"
                    .to_owned(),
            )),
            Shadowed::Tenants(_) => Ok(()),
        }
    }

    /// What we changed while nobody else was here is given back when others have come.
    pub(super) fn give_back(&mut self) {
        let Some(why) = self.passing.clone() else { return };
        let mut names = vec!["message_drop_headers"];
        names.extend(self.has_other_relays().then_some("relay_transport"));
        for name in names {
            let place = Name::Main(name.to_owned());
            let Some(value) = self.settings.written(name).map(str::to_owned) else { continue };
            let Some(changed) = self.record.of(&place).filter(|_| self.record.is_from_us(&place, &value))
            else {
                continue;
            };
            self.gave_back |= name == "relay_transport";
            self.plan.note(&format!("As it was before us, for other mail passes here now ({why})."));
            self.plan.change(place, Some(value), changed.was.clone());
        }
    }

    /// True if `relay_domains` has, or may have, domains of others.
    fn has_other_relays(&self) -> bool {
        self.others.named.iter().any(|(_, class)| *class == Class::Relay)
            || self.others.hidden.contains(&"relay_domains")
    }

    /// One setting of the deployment.
    pub(super) fn setting(&mut self, name: &str, ours: &str) -> Result<(), Refusal> {
        match name {
            "relay_domains" => self.domains(),
            "relay_transport" | "transport_maps" => {
                self.route(name == "relay_transport")?;
                self.recipients()
            }
            "relay_recipient_maps" => Ok(()), // done with the route
            "smtpd_milters" => self.milters(ours),
            "message_drop_headers" => self.drop_headers(),
            "smtp_header_checks" => self.outgoing_bcc(),
            "message_size_limit" => self.size_limit(ours),
            // The example is for those who have none yet.
            "sender_bcc_maps" if self.copies_to_us()? => Ok(()),
            "sender_bcc_maps" => {
                let new = with_existing(name, ours, self.base(name));
                self.change(name, &new);
                Ok(())
            }
            _ => {
                self.scalar(name, ours);
                Ok(())
            }
        }
    }

    /// True if somebody's mail is copied to us already.
    fn copies_to_us(&self) -> Result<bool, SettingsError> {
        let name = "sender_bcc_maps";
        for table in self.settings.tables(name) {
            let entries = self.settings.entries(&table)?.unwrap_or_default();
            let to_us = |entry| domain_of(name, entry).is_some_and(|d| is_integration(self.config, &d));
            if entries.iter().any(to_us) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What a list is before something is added, without what we put there for domains that are ours no more.
    fn base(&self, name: &str) -> Option<String> {
        let base = self.settings.base(name)?;
        let kept = self.former.without(name, &base);
        match kept == split(&base) {
            true => Some(base),
            false => Some(kept.join(", ")).filter(|kept| !kept.is_empty()),
        }
    }

    /// What we put in for domains that are ours no more goes, also out of lists that stay as they are otherwise.
    pub(super) fn without_former(&mut self) {
        for name in OF_DOMAINS {
            let place = Name::Main(name.to_owned());
            let Some(value) = self.settings.written(name).filter(|value| !value.is_empty()) else { continue };
            let (value, base) = (value.to_owned(), self.base(name));
            if base.as_ref() == Some(&value) || self.plan.changes().any(|change| change.name == place) {
                continue;
            }
            let before = self.record.of(&place).and_then(|changed| changed.was.as_ref());
            self.plan.note("What was put in for domains that are not in integration_domains any more.");
            self.plan.change(place, Some(value), base.or(before.map(|_| String::new())));
        }
    }

    fn change(&mut self, name: &str, new: &str) {
        let was = self.settings.written(name).map(str::to_owned);
        self.plan.change(Name::Main(name.to_owned()), was, Some(new.to_owned()));
    }

    /// Each name of each domain, and what Postfix takes it for.
    fn forms(&self) -> Result<Vec<(String, Class)>, Refusal> {
        let utf8 = takes_utf8(self.settings);
        let all = self.config.addressing.domains.iter().flat_map(|domain: &Domain| forms(domain, utf8));
        all.map(|form| Ok((form.clone(), Class::of(self.settings, &form)?))).collect()
    }

    fn domains(&mut self) -> Result<(), Refusal> {
        let mut missing = Vec::new();
        for (form, class) in self.forms()? {
            match class {
                Class::Local | Class::VirtualAlias => {
                    let list = class.list();
                    return Err(Refusal::No(format!(
                        "{form} is in {list} ({}): mail to it is never given to another program. Take it out there, say \
                         `postfix reload`, then print again",
                        self.settings.main(list)
                    )));
                }
                Class::Other => missing.push(form),
                Class::Relay | Class::VirtualMailbox => {}
            }
        }
        if !missing.is_empty() {
            let new = with_existing("relay_domains", &missing.join(", "), self.base("relay_domains"));
            self.change("relay_domains", &new);
        }
        Ok(())
    }

    /// `lmtp:` and our listener.
    fn lmtp(&self) -> String {
        let lmtp = self.config.lmtp.as_ref();
        let queue_directory = self.settings.queue_directory();
        lmtp.map_or(String::new(), |lmtp| format!("lmtp:{}", endpoint(lmtp, queue_directory)))
    }

    /// The way to our LMTP listener: `relay_transport` where that is nobody else's, else a table of our own.
    fn route(&mut self, by_relay_transport: bool) -> Result<(), Refusal> {
        let agent = self.settings.transport("lmtp").map(|service| service.command.as_str());
        if agent != Some("lmtp") {
            return Err(Refusal::No(
                "master.cf has no service lmtp/unix that runs lmtp, and mail comes to us by it: put its line back \
                 (lmtp unix - - n - - lmtp), say `postfix reload`, then print again"
                    .to_owned(),
            ));
        }
        if let Some(lmtp) = &self.config.lmtp {
            self.refuse_out_of_sight(lmtp, "lmtp")?;
        }
        let mut astray = Vec::new();
        for (form, class) in self.forms()? {
            // What is in no list yet will be in relay_domains.
            let class = if class == Class::Other { Class::Relay } else { class };
            let mut comes = true;
            for address in [sample(&form), sample_project(&form)] {
                let transport = transport_of(self.settings, &address, class)?;
                let by_default = transport == self.settings.main(class.transport());
                let given_back = self.gave_back && class == Class::Relay && by_default;
                comes &= !given_back && is_to_us(self.settings, self.config, &transport);
            }
            if !comes {
                astray.push((form, class));
            }
        }
        if astray.is_empty() {
            return Ok(());
        }
        let lmtp = self.lmtp();
        let name = Name::Main("relay_transport".to_owned());
        let there = self.settings.written("relay_transport").unwrap_or_default();
        let nobodys = there.is_empty() || self.record.is_from_us(&name, there);
        let others = self.has_other_relays();
        let maps = self.base("transport_maps");
        if by_relay_transport
            && nobodys
            && !others
            && maps.is_none()
            && astray.iter().all(|(_, c)| *c == Class::Relay)
        {
            self.change("relay_transport", &lmtp);
            return Ok(());
        }
        if by_relay_transport {
            self.plan.note("By transport_maps: relay_transport, or a table, is for other domains here.");
        }
        let tables = maps.as_deref().map(split).unwrap_or_default();
        let kept: Vec<String> = tables.into_iter().filter(|table| !self.is_our_table(table)).collect();
        for (form, _) in &astray {
            self.refuse_patterns(form, &kept)?;
        }
        // All of ours in one table: an old one of ours is replaced by it.
        let entries: Vec<String> =
            self.forms()?.into_iter().map(|(form, _)| format!("{{ {form} = {lmtp} }}")).collect();
        let ours = format!("inline:{{ {} }}", entries.join(" "));
        // Before theirs: an entry of theirs for the domain would be found first.
        let all: Vec<String> = std::iter::once(ours).chain(kept).collect();
        self.change("transport_maps", &all.join(", "));
        Ok(())
    }

    /// A pattern that knows every address is asked with the whole address, before anybody is asked for the domain.
    fn refuse_patterns(&self, form: &str, tables: &[String]) -> Result<(), Refusal> {
        match Obstacle::of(self.settings, self.config, form, &self.lmtp(), tables)? {
            None => Ok(()),
            Some(Obstacle { table, says, remedy }) => Err(Refusal::No(format!(
                "transport_maps has {table}, which says {says}, before our own table is asked for the domain: {remedy}, then \
                 print again"
            ))),
        }
    }

    /// True if a table routes integration domains and nothing else.
    fn is_our_table(&self, table: &str) -> bool {
        let all_ours =
            |keys: Vec<(String, String)>| keys.iter().all(|(key, _)| is_integration(self.config, key));
        inline(table).filter(|entries| !entries.is_empty()).is_some_and(all_ours)
    }

    /// Where there is a list of recipients, all of ours are in it.
    fn recipients(&mut self) -> Result<(), Refusal> {
        for list in ["relay_recipient_maps", "virtual_mailbox_maps"] {
            if self.settings.main(list).is_empty() {
                continue; // everybody is a recipient
            }
            let mut missing = Vec::new();
            for (form, class) in self.forms()? {
                let class = if class == Class::Other { Class::Relay } else { class };
                if class.recipients() == Some(list) && !self.are_known(list, &form)? {
                    missing.push(format!("{{ @{form} = OK }}"));
                }
            }
            if !missing.is_empty() {
                self.plan.note("A list of recipients is there: ours are added, activity-milter says at RCPT which exist.");
                let ours = format!("inline:{{ {} }}", missing.join(" "));
                let new = self.base(list).map_or(ours.clone(), |base| format!("{base}, {ours}"));
                self.change(list, &new);
            }
        }
        Ok(())
    }

    /// True if a list of recipients has every address of a domain.
    fn are_known(&self, list: &str, form: &str) -> Result<bool, SettingsError> {
        for address in [sample(form), sample_project(form)] {
            if self.settings.look_up(list, &[address, format!("@{form}")])?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Our milter, for every smtpd that asks milters of its own too.
    fn milters(&mut self, ours: &str) -> Result<(), Refusal> {
        self.refuse_out_of_sight(&self.config.milter, "smtpd")?;
        if !self.settings.main("smtpd_milter_maps").is_empty() {
            self.plan.note("smtpd_milter_maps is set: clients in it ask the milters there, and not ours.");
        }
        let mut ours = ours.to_owned();
        if self.passing.is_some() && ours.contains("default_action=tempfail") {
            self.plan.note(
                "Other mail passes here and must not wait for activity-milter: accept, and ours comes by LMTP.",
            );
            ours = ours.replace("default_action=tempfail", "default_action=accept");
        }
        let name = Name::Main("smtpd_milters".to_owned());
        let here = self.settings.base("smtpd_milters").unwrap_or_default();
        let new = self.with_ours(&here, &ours, &name);
        if new != here {
            self.change("smtpd_milters", &new);
        }
        self.not_local(&here, &new);
        let services: Vec<_> = self.settings.overrides_of("smtpd_milters").collect();
        for (parameter, value) in services {
            let service = parameter.trim_end_matches("/smtpd_milters");
            let options = self.settings.written_for(&format!("{service}/receive_override_options"));
            // None at all is a filter's way back, or meant so.
            if value.is_empty() || options.is_some_and(|options| options.contains("no_milters")) {
                continue;
            }
            self.service_milters(parameter, value, &ours);
        }
        Ok(())
    }

    /// `non_smtpd_milters = $smtpd_milters`, as many recipes have it, must not get ours too: a milter that refuses a
    /// recipient there counts as a server error. Local mail comes by LMTP. Dead ones of ours go, for local mail waits for them.
    fn not_local(&mut self, before: &str, after: &str) {
        let name = "non_smtpd_milters";
        let Some(value) = self.settings.written(name).map(str::to_owned) else { return };
        let references = ["${smtpd_milters}", "$(smtpd_milters)", "$smtpd_milters"];
        let is_reference = |element: &String| references.contains(&element.as_str());
        let elements = split(&value);
        let brings_ours = split(after).iter().any(|element| self.is_of_ours(element));
        let meant = elements.iter().flat_map(|element| match is_reference(element) && brings_ours {
            true => split(before),
            false => vec![element.clone()],
        });
        let kept: Vec<String> = meant.filter(|element| !self.is_of_ours(element)).collect();
        if kept != elements {
            self.plan.note("Local mail keeps the milters it has, but ours: that is for smtpd.");
            self.change(name, &kept.join(", "));
        }
    }

    /// True if an element of a list of milters is our milter, or was.
    fn is_of_ours(&self, element: &str) -> bool {
        MilterEntry::list(element)
            .iter()
            .any(|entry| self.is_current(entry) || is_old(self.settings, self.config, entry, self.record))
    }

    /// Dead entries of ours, where a deployment does not set the list: all mail waits for them. `but`: a list that is set
    /// all the same.
    pub(super) fn without_dead(&mut self, but: &str) {
        let here = self.settings.base("smtpd_milters").unwrap_or_default();
        let main = ("smtpd_milters".to_owned(), here.clone());
        let of_services =
            self.settings.overrides_of("smtpd_milters").filter(|(parameter, _)| *parameter != but);
        let of_services = of_services.map(|(parameter, value)| (parameter.to_owned(), value.to_owned()));
        let mut after = here.clone();
        let (settings, config, record) = (self.settings, self.config, self.record);
        let is_dead = |entry: &MilterEntry| is_old(settings, config, entry, record);
        for (parameter, value) in std::iter::once(main).chain(of_services).collect::<Vec<_>>() {
            let is_alive = |element: &String| !MilterEntry::list(element).iter().any(is_dead);
            let elements = split(&value);
            let alive: Vec<String> = elements.iter().filter(|element| is_alive(element)).cloned().collect();
            if alive == elements {
                continue;
            }
            self.plan.note("Nobody answers there any more: an old entry of ours.");
            match parameter.contains('/') {
                false => {
                    after = alive.join(", ");
                    self.change(&parameter, &after);
                }
                true => {
                    let new = dense(&alive.join(", "));
                    self.plan.change(Name::Service(parameter), Some(value), Some(new));
                }
            }
        }
        self.not_local(&here, &after);
    }

    fn service_milters(&mut self, parameter: &str, value: &str, ours: &str) {
        let name = Name::Service(parameter.to_owned());
        let new = self.with_ours(value, ours, &name);
        // Written as postconf takes it; as it is, if nothing was missing.
        if new != value {
            self.plan.change(name, Some(value.to_owned()), Some(dense(&new)));
        }
    }

    /// The milter of one service alone.
    pub(super) fn service(&mut self, parameter: &str, ours: &str) -> Result<(), Refusal> {
        self.refuse_out_of_sight(&self.config.milter, "smtpd")?;
        let service = parameter.trim_end_matches("/smtpd_milters");
        let known: Vec<&str> = self.settings.services("smtpd").map(|s| s.name.as_str()).collect();
        if !known.contains(&service) {
            let known = known.join(", ");
            return Err(Refusal::No(format!(
                "master.cf has no service {service} that runs smtpd, only {known}: add what `activity-milter postfix print submission \
                 --format master.cf` prints, say `postfix reload`, then print again; or name another one with --service"
            )));
        }
        match self.settings.written_for(parameter).map(str::to_owned) {
            Some(value) if !value.is_empty() => self.service_milters(parameter, &value, ours),
            was => {
                // An `-o` of its own takes the place of the global list, which must not lose its milters.
                if was.is_none()
                    && MilterEntry::list(self.settings.main("smtpd_milters"))
                        .iter()
                        .any(|entry| self.is_current(entry))
                {
                    return Ok(());
                }
                // Written out: in that place `$smtpd_milters` would mean itself, which is fatal to smtpd.
                let global = self.settings.base("smtpd_milters").filter(|_| was.is_none());
                if global.is_some() {
                    self.plan.note(&format!("{service} keeps the milters that main.cf names for it now."));
                }
                let new =
                    self.with_ours(&global.unwrap_or_default(), ours, &Name::Service(parameter.to_owned()));
                let new = dense(&new);
                self.plan.change(Name::Service(parameter.to_owned()), was, Some(new));
            }
        }
        Ok(())
    }

    fn is_current(&self, entry: &MilterEntry) -> bool {
        Endpoint::of_milter(&entry.endpoint).is_some()
            && is_ours(self.settings, &self.config.milter, &entry.endpoint)
    }

    /// A list of milters with ours in it: after the others, so that what they refuse is not recorded; old ones of ours are
    /// taken out.
    fn with_ours(&self, list: &str, ours: &str, name: &Name) -> String {
        let now = self.record.added(name);
        let chrooted = self.settings.services("smtpd").any(|service| service.chroot);
        let mut elements = Vec::new();
        let (mut found, mut changed) = (false, false);
        for element in split(list) {
            let Some(entry) = MilterEntry::list(&element).pop() else {
                elements.push(element);
                continue;
            };
            if self.is_current(&entry) {
                let waits = self.shadow && self.action_of(&entry, name) != "accept";
                if waits || entry.flaw.is_some() {
                    changed = true;
                    elements.extend((!found).then(|| ours.to_owned()));
                    found = true;
                    continue;
                }
                // What we wrote follows the deployment; what somebody else wrote is his choice.
                let from_us = entry.has_only("default_action") && MilterEntry::list(&now).contains(&entry);
                // By a path that only those outside of the chroot see, it is nobody's choice.
                let from_us = from_us || chrooted && entry.endpoint.starts_with("unix:/");
                let same = MilterEntry::list(ours).contains(&entry);
                changed |= found || (from_us && !same);
                match (found, from_us && !same) {
                    (true, _) => {}
                    (false, true) => elements.push(ours.to_owned()),
                    (false, false) => elements.push(element),
                }
                found = true;
            } else if is_old(self.settings, self.config, &entry, self.record) {
                changed = true;
            } else {
                elements.push(element);
            }
        }
        // `$name` may stand for ours.
        let meant = |element: &String| element.contains('$') && self.expands_to_ours(element);
        if !found && !elements.iter().any(meant) {
            elements.push(ours.to_owned());
            changed = true;
        }
        if changed { elements.join(", ") } else { list.to_owned() }
    }

    /// What happens to mail while the milter is down.
    fn action_of(&self, entry: &MilterEntry, name: &Name) -> String {
        let services = || self.settings.services("smtpd");
        let service =
            services().find(|s| matches!(name, Name::Service(n) if n.starts_with(&format!("{}/", s.name))));
        let found = service.or_else(|| services().next());
        found.map_or(String::new(), |service| {
            entry.setting("default_action", self.settings, service).to_owned()
        })
    }

    fn expands_to_ours(&self, element: &str) -> bool {
        let name = element.trim_start_matches('$').trim_matches(['{', '}', '(', ')']);
        MilterEntry::list(self.settings.main(name)).iter().any(|entry| self.is_current(entry))
    }

    /// The Bcc field is for us alone, or for nobody.
    fn drop_headers(&mut self) -> Result<(), Refusal> {
        let name = "message_drop_headers";
        if let Some(why) = &self.passing {
            let why = format!("{name} stays: Bcc would be shown to everybody whose mail passes ({why}).");
            self.plan.note(&why);
            return Ok(());
        }
        if !takes_patterns(self.settings) && !hides_bcc(self.settings)? {
            self.plan.note(&format!(
                "{name} stays: this Postfix has no patterns in main.cf, and what leaves it would show Bcc. Give smtp_header_checks \
                 a file with the line /^(Resent-)?Bcc:/ IGNORE, then print again."
            ));
            return Ok(());
        }
        let base = self.settings.base(name).unwrap_or_default();
        let is_bcc = |header: &String| header.to_ascii_lowercase().ends_with("bcc");
        let (bcc, rest): (Vec<_>, Vec<_>) = split(&base).into_iter().partition(is_bcc);
        if !bcc.is_empty() {
            self.change(name, &rest.join(", "));
        }
        Ok(())
    }

    /// Where the Bcc field is shown to us, it still does not leave the machine.
    fn outgoing_bcc(&mut self) -> Result<(), Refusal> {
        let name = "smtp_header_checks";
        if self.passing.is_some() || !takes_patterns(self.settings) || hides_bcc(self.settings)? {
            return Ok(());
        }
        let new = match self.settings.base(name) {
            Some(base) => format!("{base}, {NO_BCC}"),
            None => NO_BCC.to_owned(),
        };
        self.change(name, &new);
        Ok(())
    }

    /// A chrooted service sees no socket outside of the queue directory: Postfix would have every message wait.
    fn refuse_out_of_sight(&self, socket: &SocketSettings, program: &str) -> Result<(), Refusal> {
        let Listen::Unix(path) = socket.place() else { return Ok(()) };
        let queue_directory = self.settings.queue_directory();
        let Some(service) = self.settings.services(program).find(|service| service.chroot) else {
            return Ok(());
        };
        if path.starts_with(queue_directory) {
            return Ok(());
        }
        Err(Refusal::No(format!(
            "{} is chrooted in {queue} and cannot see {}: set {table}.listen to a path below {queue}, or to \
             \"inet:127.0.0.1:PORT\", restart activity-milter, then print again",
            service.name,
            path.display(),
            queue = queue_directory.display(),
            table = socket.table,
        )))
    }

    /// Never lower than it is; higher only where that is nobody else's business, and never above what a mailbox takes, for
    /// local(8) and virtual(8) then deliver nothing any more.
    fn size_limit(&mut self, ours: &str) -> Result<(), Refusal> {
        let name = "message_size_limit";
        let number = |name| self.settings.main(name).parse::<u64>().unwrap_or_default();
        let (is, wanted) = (number(name), ours.parse::<u64>().unwrap_or_default());
        let possible = size_limit(self.settings, wanted);
        if is == 0 || is >= possible {
            if is != wanted {
                self.plan.note(&format!("{name} = {is} stays; message.max_size is {wanted}."));
            }
        } else if let Some(why) = &self.passing {
            let note = format!(
                "{name} = {is} stays, other mail relies on it ({why}): larger messages to us are refused."
            );
            self.plan.note(&note);
        } else {
            self.plan.note(&format!("Raised from {is}."));
            self.change(name, &possible.to_string());
        }
        Ok(())
    }

    /// A setting that is no list.
    fn scalar(&mut self, name: &str, ours: &str) {
        if self.settings.main(name) == ours {
            return;
        }
        match self.settings.written(name) {
            Some(value) if self.passing.is_some() => {
                let postconf = shown_editor(self.settings, "main.cf");
                let command = format!("{postconf} -e {}", quoted(name, ours));
                self.plan.note(&format!(
                    "{name} = {value} stays: somebody has set it, and other mail passes. Ours would be: {command}"
                ));
            }
            _ => self.change(name, ours),
        }
    }
}

/// True if Postfix takes patterns inline: since 3.7.
pub(super) fn takes_patterns(settings: &Settings) -> bool {
    let mut numbers =
        settings.main("mail_version").split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (3, 7)
}

/// True if what smtp(8) sends goes out without the Bcc field.
pub(super) fn hides_bcc(settings: &Settings) -> Result<bool, SettingsError> {
    let found = settings.look_up("smtp_header_checks", &["Bcc: nobody@example.invalid".to_owned()])?;
    Ok(found.is_some_and(|action| action.to_ascii_uppercase().starts_with("IGNORE")))
}

/// Our limit, or as much of it as the settings for mailboxes allow.
pub(super) fn size_limit(settings: &Settings, wanted: u64) -> u64 {
    let mailbox = ["mailbox_size_limit", "virtual_mailbox_limit"];
    let limits = mailbox.iter().filter_map(|name| settings.main(name).parse::<u64>().ok());
    limits.filter(|limit| *limit > 0).fold(wanted, u64::min)
}

/// True if an entry is one of ours that nobody answers any more: our LMTP listener, or one that our configuration named or
/// that has our name, and is dead. Another activity-milter that lives is none.
pub(super) fn is_old(settings: &Settings, config: &Config, entry: &MilterEntry, record: &Record) -> bool {
    let Some(endpoint) = Endpoint::of_milter(&entry.endpoint) else { return false };
    if config.lmtp.as_ref().is_some_and(|lmtp| is_ours(settings, lmtp, &entry.endpoint)) {
        return true;
    }
    if is_ours(settings, &config.milter, &entry.endpoint) {
        return false;
    }
    let named =
        matches!(&endpoint, Endpoint::Unix(path) if path.to_string_lossy().contains("activity-milter"));
    (record.is_milter(&entry.endpoint) || named && !record.is_of_others(&entry.endpoint))
        && endpoint.is_dead(settings.queue_directory())
}
