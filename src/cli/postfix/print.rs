//! `postfix print`: the settings of a deployment, with the domains, sockets and limits of our configuration.
//!
//! The pieces under `postfix/` are the source, comments included; end-to-end tests load what is printed here.

use super::{
    add::{Adding, Refusal},
    forged,
    former::Former,
    probe::Endpoint,
    record::{Name, Record, heading, line},
    remove,
    script::{Editors, Plan, Way, bare, dense},
    settings::{CONFIG_DIRECTORY, MilterEntry, QUEUE_DIRECTORY, Settings, SettingsError, Tools, split},
    waiting::{Waiting, coming_to_us},
    ways::forms,
};
use crate::config::Config;
use crate::intake::{Listen, SocketSettings, default_socket};
use clap::ValueEnum;
use std::{fmt::Write as _, path::Path};

/// A way to put Postfix and activity-milter together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Deployment {
    /// A dedicated MX of the integration domain
    Mx,
    /// An MX of other domains too
    SharedMx,
    /// A company's relay, where its people log in
    Submission,
    /// Everything that a team sends is copied to its integration address
    AutoBcc,
    /// No milter at all
    LmtpOnly,
}

/// How to write the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// `postconf` commands for a shell
    Commands,
    /// Lines for main.cf
    #[value(name = "main.cf")]
    Main,
    /// Entries for master.cf
    #[value(name = "master.cf")]
    Master,
}

/// The example values in the pieces.
const DOMAIN: &str = "severamail.com";
const MILTER: &str = "unix:activity-milter/milter.sock";
const LMTP: &str = "unix:activity-milter/lmtp.sock";
const MAX_SIZE: &str = "52428800";

impl Deployment {
    fn main_cf(self) -> &'static str {
        match self {
            Self::Mx => include_str!("../../../postfix/mx/main.cf"),
            Self::SharedMx => include_str!("../../../postfix/shared-mx/main.cf"),
            Self::Submission => include_str!("../../../postfix/submission/main.cf"),
            Self::AutoBcc => include_str!("../../../postfix/auto-bcc/main.cf"),
            Self::LmtpOnly => include_str!("../../../postfix/lmtp-only/main.cf"),
        }
    }

    fn has_no_milter(self) -> bool {
        matches!(self, Self::AutoBcc | Self::LmtpOnly)
    }

    /// Only where a service of `master.cf` differs from the others.
    fn master_cf(self) -> Option<&'static str> {
        match self {
            Self::Submission => Some(include_str!("../../../postfix/submission/master.cf")),
            Self::Mx | Self::SharedMx | Self::AutoBcc | Self::LmtpOnly => None,
        }
    }
}

/// Where a socket is, in Postfix's words: below the queue directory as a relative path, which is right for chrooted
/// services and for others.
pub(super) fn endpoint(socket: &SocketSettings, queue_directory: &Path) -> String {
    match socket.place() {
        Listen::Unix(path) => {
            let path = path.strip_prefix(queue_directory).unwrap_or(&path);
            Endpoint::Unix(path.to_owned()).to_string()
        }
        // Whoever listens everywhere is reached on this machine.
        Listen::Inet(address) if address.ip().is_unspecified() => {
            let host = if address.is_ipv4() { "127.0.0.1" } else { "::1" };
            Endpoint::Inet(host.to_owned(), address.port()).to_string()
        }
        Listen::Inet(address) => Endpoint::Inet(address.ip().to_string(), address.port()).to_string(),
        Listen::Systemd => Endpoint::Unix(default_socket(socket.table)).to_string(),
    }
}

/// A Postfix that is there already.
pub(super) struct Existing {
    settings: Settings,
    record: Record,
}

impl Existing {
    /// Asks the instance that `tools` names; none on a machine without Postfix, which has nothing to keep.
    pub(super) fn ask(tools: Tools, config: &Config) -> Result<Option<Self>, SettingsError> {
        let nowhere = tools.directory.is_none();
        match Settings::read(tools) {
            Ok(settings) => {
                let record = Record::read(&settings, config)?;
                Ok(Some(Self { settings, record }))
            }
            Err(error) if nowhere && error.is_absence() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish<'a> {
    pub(super) deployment: Deployment,
    pub(super) format: Format,
    /// Attach the milter and nothing else.
    pub(super) shadow: bool,
    /// The service that `submission` attaches the milter to.
    pub(super) service: &'a str,
    /// What waits in Postfix's queue for us does not matter.
    pub(super) ignore_queue: bool,
}

/// Text of the deployment's settings. All is decided before there is any.
pub(super) fn print(wish: Wish, config: &Config, existing: Option<&Existing>) -> Result<String, Refusal> {
    let Wish { deployment, format, shadow, service, ignore_queue } = wish;
    let queue_directory = existing.map_or(Path::new(QUEUE_DIRECTORY), |e| e.settings.queue_directory());
    let fill = |text| fill(text, config, queue_directory);
    let main = fill(deployment.main_cf());
    let master = deployment.master_cf().map(fill);
    let master = master.map(|text| text.replace("\nsubmission inet", &format!("\n{service} inet")));
    if shadow && deployment.has_no_milter() {
        return Err(Refusal::No(
            "this deployment has no milter, and shadow mode is nothing without: try it with shared-mx --shadow".to_owned(),
        ));
    }
    let main = if shadow { SHADOW.to_owned() + &only_milter(&main) } else { main };
    let mut plan = match existing {
        Some(existing) => added(wish, &main, config, existing)?,
        None => as_it_is(&main, config, shadow),
    };
    if let Some(master) = &master {
        if format == Format::Commands && existing.is_none() {
            plan.say(
                "\n# The service must be there already; if it is not, add what --format master.cf prints.",
            );
        }
        for (parameter, value) in service_settings(master) {
            match existing {
                // The entry of master.cf says it.
                _ if format != Format::Commands => {}
                Some(existing) => {
                    let mut adding = Adding::new(&existing.settings, config, &existing.record)?;
                    adding.service(&parameter, &value)?;
                    plan.steps.append(&mut adding.plan.steps);
                }
                None => plan.change(Name::Service(parameter), None, Some(value)),
            }
        }
    }
    match format {
        Format::Main => Ok(plan.main_cf()),
        Format::Master => {
            let nothing = "# Nothing: this deployment needs no entry of its own in master.cf.\n";
            // An `-o` takes the place of the global list, which must not lose its milters.
            let global = existing.and_then(|existing| existing.settings.base("smtpd_milters"));
            let list = global.map_or(String::new(), |global| dense(&global) + ",");
            let list = format!("smtpd_milters={list}{{");
            Ok(master.map_or(nothing.to_owned(), |text| text.replace("smtpd_milters={", &list)))
        }
        Format::Commands => {
            if let Some(existing) = existing.filter(|_| !ignore_queue) {
                // Ours have a way to us, before and after.
                let former = existing.former(config)?;
                existing.refuse_waiting(config, &mut plan, former.clone(), &former)?;
            }
            let mut heading = heading(existing.map(|existing| &existing.settings), config);
            heading.1.extend(existing.map_or(Vec::new(), |existing| needed(&main, existing)));
            script(&plan, existing, Way::In(&heading))
        }
    }
}

/// The way back: takes out what is ours. Beside the script, what a person has to know of what stays.
pub(super) fn removed(
    config: &Config,
    existing: &Existing,
    ignore_queue: bool,
) -> Result<(String, Vec<String>), Refusal> {
    let mut plan = remove::remove(&existing.settings, config, &existing.record)?;
    if !ignore_queue {
        let former = existing.former(config)?;
        let ours = config.addressing.domains.iter().flat_map(|domain| forms(domain, true));
        let domains = ours.chain(former.iter().cloned()).collect();
        existing.refuse_waiting(config, &mut plan, domains, &former)?;
    }
    let script = script(&plan, Some(existing), Way::Out(&existing.record))?;
    Ok((script, plan.told))
}

impl Existing {
    /// Domains that are ours no more, and have a way to us.
    fn former(&self, config: &Config) -> Result<Vec<String>, SettingsError> {
        Ok(Former::of(&self.settings, config, &self.record)?.losing_their_way())
    }

    /// Refuses to take the way to us from mail that waits in Postfix's queue for it; the script looks again.
    fn refuse_waiting(
        &self,
        config: &Config,
        plan: &mut Plan,
        domains: Vec<String>,
        former: &[String],
    ) -> Result<(), Refusal> {
        if !plan.changes().any(|change| is_way(&change.name)) {
            return Ok(());
        }
        let coming = coming_to_us(&self.settings, config, &self.record, domains)?;
        if coming.is_empty() {
            return Ok(());
        }
        let waiting = Waiting::of(&self.settings, &coming).map_err(|error| {
            Refusal::No(format!(
                "whether mail waits in Postfix's queue for activity-milter cannot be seen ({error}), and it would bounce: print as \
                 root, or while Postfix runs; --ignore-queue goes on all the same"
            ))
        })?;
        match waiting.why_not(former) {
            Some(why) => Err(Refusal::No(why)),
            None => {
                plan.coming = coming;
                Ok(())
            }
        }
    }
}

/// True if a setting may be the way to us.
fn is_way(name: &Name) -> bool {
    let parameter = name.parameter();
    parameter == "relay_domains" || parameter == "transport_maps" || parameter.ends_with("_transport")
}

fn script(plan: &Plan, existing: Option<&Existing>, way: Way) -> Result<String, Refusal> {
    let tools = existing.map(|existing| &existing.settings.tools);
    let mut out = match existing {
        Some(existing) => {
            let directory = existing.settings.directory();
            let editors = Editors::of(tools, directory, plan).map_err(Refusal::No)?;
            plan.script(&editors, directory, way)
        }
        None => plan.script(&Editors::default(), Path::new(CONFIG_DIRECTORY), way),
    };
    let (reload, option) = match tools.and_then(|tools| tools.directory.as_ref()) {
        Some(directory) => {
            let directory = bare(&directory.display().to_string());
            (format!("postfix -c {directory} reload"), format!(" --postfix-config {directory}"))
        }
        None => ("postfix reload".to_owned(), String::new()),
    };
    let _ = writeln!(out, "\n# Then:\n#   {reload}\n#   activity-milter postfix check{option}");
    Ok(out)
}

/// The settings beside what is there.
fn added(wish: Wish, main: &str, config: &Config, existing: &Existing) -> Result<Plan, Refusal> {
    let mut adding = Adding::new(&existing.settings, config, &existing.record)?;
    match wish.shadow {
        true => adding.shadow()?,
        false => {
            adding.refuse_shadow()?;
            adding.give_back();
        }
    }
    for line in main.lines() {
        match setting(line) {
            Some((name, value)) => adding.setting(name, value)?,
            None => adding.plan.say(line),
        }
    }
    if !wish.shadow {
        adding.without_former();
        adding.forged()?;
    }
    if !main.lines().filter_map(setting).any(|(name, _)| name == "smtpd_milters") {
        let set = wish.deployment.master_cf().map(|_| format!("{}/inet/smtpd_milters", wish.service));
        adding.without_dead(&set.unwrap_or_default());
    }
    Ok(adding.plan)
}

/// Settings that the deployment needs as another activity-milter has made them: lines for the record.
fn needed(main: &str, existing: &Existing) -> Vec<String> {
    let of = |(name, _): (&str, &str)| {
        let value = existing.settings.written(name).map(str::to_owned);
        let name = Name::Main(name.to_owned());
        existing.record.is_needed_by_others(&name, &value).then(|| line("seen", &name, &value))
    };
    main.lines().filter_map(setting).filter_map(of).collect()
}

/// The settings where nothing is.
fn as_it_is(main: &str, config: &Config, shadow: bool) -> Plan {
    let mut plan = Plan::default();
    for line in main.lines() {
        match setting(line) {
            Some((name, value)) => plan.change(Name::Main(name.to_owned()), None, Some(value.to_owned())),
            None => plan.say(line),
        }
    }
    if !shadow {
        forged::as_it_is(&mut plan, config);
    }
    plan
}

/// Name and value of a line of main.cf that is no comment.
fn setting(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once(" =").filter(|_| !line.starts_with('#'))?;
    Some((name, value.trim()))
}

/// What stands above a trial.
const SHADOW: &str = "# Shadow mode: the milter is asked, and mail goes where it goes today. Whatever happens to activity-milter,
# nothing waits for it.
";

/// The milter's line, and it only, with an action that changes nothing. `submission` has it in master.cf.
fn only_milter(main: &str) -> String {
    let of_piece = main.lines().filter_map(setting).find(|(name, _)| *name == "smtpd_milters");
    of_piece.map_or(String::new(), |(name, value)| {
        format!("{name} = {}\n", value.replace("=tempfail", "=accept"))
    })
}

/// Puts our configuration's values in the place of the examples.
fn fill(text: &str, config: &Config, queue_directory: &Path) -> String {
    // An IDN in both forms: Postfix knows no better, and a client may use either.
    let domains: Vec<String> = config.addressing.domains.iter().flat_map(|d| forms(d, true)).collect();
    let lmtp = config.lmtp.as_ref().map_or(LMTP.to_owned(), |lmtp| endpoint(lmtp, queue_directory));
    let entry = format!("{{ {DOMAIN} = lmtp:{LMTP} }}");
    let entries: Vec<String> = domains.iter().map(|domain| entry.replace(DOMAIN, domain)).collect();
    text.replace(&entry, &entries.join(" "))
        .replace(&format!("@{DOMAIN}"), &format!("@{}", domains.first().map_or(DOMAIN, String::as_str)))
        .replace(DOMAIN, &domains.join(", "))
        .replace(MILTER, &endpoint(&config.milter, queue_directory))
        .replace(LMTP, &lmtp)
        .replace(MAX_SIZE, &config.policy.max_size.to_string())
}

/// Our value of a parameter beside what is there.
pub(super) fn with_existing(name: &str, ours: &str, existing: Option<String>) -> String {
    let Some(existing) = existing else { return ours.to_owned() };
    let known = split(&existing);
    let missing = split(ours).into_iter().filter(|element| !known.contains(element)).collect::<Vec<_>>();
    let missing = missing.join(", ");
    match name {
        "relay_domains" | "sender_bcc_maps" | "transport_maps" if missing.is_empty() => existing,
        // The first pattern that matches decides, also `!domain`.
        "relay_domains" if existing.contains('!') => format!("{missing}, {existing}"),
        "relay_domains" | "sender_bcc_maps" => format!("{existing}, {missing}"),
        // Before theirs, because a wildcard or pattern of theirs would be found first.
        "transport_maps" => format!("{missing}, {existing}"),
        // After theirs, so that what they refuse is not recorded.
        "smtpd_milters" => {
            let here = MilterEntry::list(&existing);
            let new =
                MilterEntry::list(ours).iter().all(|our| here.iter().all(|m| m.endpoint != our.endpoint));
            if new { format!("{existing}, {ours}") } else { existing }
        }
        _ => ours.to_owned(),
    }
}

/// The milters that `master.cf` entries name with `-o`, as `postconf -P` takes them.
fn service_settings(master: &str) -> Vec<(String, String)> {
    let mut service = String::new();
    let mut found = Vec::new();
    for line in master.lines().filter(|line| !line.starts_with('#')) {
        if !line.starts_with(' ') {
            service = line.split_whitespace().take(2).collect::<Vec<_>>().join("/");
            continue;
        }
        let setting = line.trim().strip_prefix("-o ").and_then(|setting| setting.split_once('='));
        if let Some((name, value)) = setting.filter(|(name, _)| *name == "smtpd_milters") {
            found.push((format!("{service}/{name}"), value.to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;

    const CONFIG: &str = "integration_domains = [\"a.test\", \"b.test\"]\n\
        [milter]\nlisten = \"unix:/var/spool/postfix/am/m.sock\"\n[lmtp]\nlisten = \"inet:0.0.0.0:2424\"\n\
        [message]\nmax_size = \"1 MiB\"\n\
        [directory]\npath = \"tests/directory.toml\"\n[backend]\nurl = \"http://127.0.0.1:1/\"\n";

    fn printed(deployment: Deployment, format: Format) -> String {
        let config = Config::from_source(&Source::from_text(Path::new("am.toml"), CONFIG)).unwrap();
        let wish = Wish { deployment, format, shadow: false, service: "submission", ignore_queue: false };
        print(wish, &config, None).unwrap()
    }

    #[test]
    fn the_configurations_values_stand_where_the_examples_stood() {
        for &deployment in Deployment::value_variants() {
            for &format in Format::value_variants() {
                let text = printed(deployment, format);
                for example in [DOMAIN, MILTER, LMTP, MAX_SIZE] {
                    assert!(!text.contains(example), "{deployment:?}: {text}");
                }
            }
        }
        let mx = printed(Deployment::Mx, Format::Main);
        for line in [
            "relay_domains = a.test, b.test",
            "relay_transport = lmtp:inet:127.0.0.1:2424",
            "smtpd_milters = { unix:am/m.sock, default_action=tempfail }",
            "message_size_limit = 1048576",
        ] {
            assert!(mx.lines().any(|l| l == line), "{line}: {mx}");
        }
        let shared = printed(Deployment::SharedMx, Format::Commands);
        let line = "postconf -e 'transport_maps = inline:{ { a.test = lmtp:inet:127.0.0.1:2424 } { b.test = lmtp:inet:127.0.0.1:2424 } }'";
        assert!(shared.lines().any(|l| l == line), "{shared}");
        let submission = printed(Deployment::Submission, Format::Commands);
        let line = "postconf -P 'submission/inet/smtpd_milters={unix:am/m.sock,default_action=accept}'";
        assert!(submission.lines().any(|l| l == line), "{submission}");
        assert!(printed(Deployment::AutoBcc, Format::Main).contains("= mycompany@a.test } }"));
    }

    #[test]
    fn what_is_there_is_kept() {
        for (name, ours, existing, expected) in [
            ("relay_domains", "a.test, b.test", "$mydestination, b.test", "$mydestination, b.test, a.test"),
            ("transport_maps", "inline:{ { a = x } }", "hash:/t", "inline:{ { a = x } }, hash:/t"),
            ("transport_maps", "hash:/t", "hash:/t", "hash:/t"),
            ("smtpd_milters", "{ unix:a, x=y }", "inet:h:1", "inet:h:1, { unix:a, x=y }"),
            ("smtpd_milters", "{ unix:a, x=y }", "inet:h:1 unix:a", "inet:h:1 unix:a"),
            ("in_flow_delay", "0", "1s", "0"),
        ] {
            assert_eq!(with_existing(name, ours, Some(existing.to_owned())), expected);
        }
        assert_eq!(with_existing("relay_domains", "a.test", None), "a.test");
    }
}
