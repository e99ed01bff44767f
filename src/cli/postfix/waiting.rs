//! Mail that waits in Postfix's queue for our LMTP listener.
//!
//! In: the queue, as `postqueue -j` shows it; domains. Out: how many messages wait, and for whom, or nothing.
//! Why: Postfix looks for the way of a message anew at each try. What waits for a listener that is taken out bounces at the
//! next one, or goes elsewhere; it was answered 250.

use super::{
    record::{Name, Record},
    settings::{Settings, SettingsError},
    ways::{Class, is_to_us, sample, transport_of},
};
use crate::config::Config;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Messages that wait, by queue, and the domains of their recipients.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    by_queue: BTreeMap<String, usize>,
    domains: BTreeSet<String>,
}

/// Those of `domains` whose mail comes to our listener, or to one that we wrote.
pub(super) fn coming_to_us(
    settings: &Settings,
    config: &Config,
    record: &Record,
    domains: Vec<String>,
) -> Result<Vec<String>, SettingsError> {
    let tables = record.entries(&Name::Main("transport_maps".to_owned()));
    let mut coming = Vec::new();
    for domain in domains {
        let class = Class::of(settings, &domain)?;
        let transport = transport_of(settings, &sample(&domain), class)?;
        let default = Name::Main(class.transport().to_owned());
        let written = record.is_from_us(&default, &transport)
            || record.is_way(&transport)
            || tables.iter().any(|(_, to)| *to == transport);
        if written || is_to_us(settings, config, &transport) {
            coming.push(domain);
        }
    }
    Ok(coming)
}

impl Waiting {
    /// What waits for domains.
    pub(super) fn of(settings: &Settings, domains: &[String]) -> Result<Self, SettingsError> {
        Ok(Self::in_lines(&settings.queue()?, domains))
    }

    fn in_lines(lines: &str, domains: &[String]) -> Self {
        let mut waiting = Self::default();
        for message in lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let recipients = message["recipients"].as_array().map(Vec::as_slice).unwrap_or_default();
            let of_recipient = |recipient: &Value| {
                let domain = recipient["address"].as_str()?.rsplit_once('@')?.1.to_lowercase();
                domains.iter().find(|ours| ours.to_lowercase() == domain).cloned()
            };
            let found: Vec<String> = recipients.iter().filter_map(of_recipient).collect();
            if !found.is_empty() {
                let queue = message["queue_name"].as_str().unwrap_or("queue").to_owned();
                *waiting.by_queue.entry(queue).or_default() += 1;
                waiting.domains.extend(found);
            }
        }
        waiting
    }

    /// Why the way to us must not be taken out now, and what to do; none if nothing waits. `former`: domains whose mail we do
    /// not take any more.
    pub(super) fn why_not(&self, former: &[String]) -> Option<String> {
        let all: usize = self.by_queue.values().sum();
        if all == 0 {
            return None;
        }
        let queues: Vec<String> =
            self.by_queue.iter().map(|(queue, count)| format!("{count} {queue}")).collect();
        let domains: Vec<&str> = self.domains.iter().map(String::as_str).collect();
        let hold = match self.by_queue.contains_key("hold") {
            true => " (what is on hold: `postsuper -H` first)",
            false => "",
        };
        let gone = self.domains.iter().find(|domain| former.contains(domain));
        let back = gone.map_or(String::new(), |domain| {
            format!(
                ", with {domain} in integration_domains again, for activity-milter does not take its mail now"
            )
        });
        let (messages, wait) = if all == 1 { ("message", "waits") } else { ("messages", "wait") };
        Some(format!(
            "{all} {messages} {wait} in Postfix's queue for {} ({}) and would bounce, or go elsewhere, without the way to \
             activity-milter: start activity-milter{back}, let Postfix deliver (`postqueue -f`){hold}, and print again when \
             `postqueue -p` shows none of it; or print with --ignore-queue, if it may be lost to activity-milter",
            domains.join(", "),
            queues.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_and_for_whom() {
        let line = |queue: &str, recipients: &[&str]| {
            let recipients: Vec<Value> =
                recipients.iter().map(|address| serde_json::json!({ "address": address })).collect();
            serde_json::json!({ "queue_name": queue, "sender": "x@a.test", "recipients": recipients })
                .to_string()
        };
        let lines = [
            line("deferred", &["my@A.test", "other@x.test", "1.my@a.test"]),
            line("deferred", &["x@b.test"]),
            line("hold", &["my@b.test"]),
            line("active", &["a.test", "x@sub.a.test", "x@x.test"]),
            "no JSON".to_owned(),
        ];
        let domains = ["a.test".to_owned(), "b.test".to_owned()];
        let waiting = Waiting::in_lines(&lines.join("\n"), &domains);
        let why = waiting.why_not(&domains[1..]).unwrap();
        for words in [
            "3 messages wait in Postfix's queue for a.test, b.test (2 deferred, 1 hold)",
            "with b.test in integration_domains again",
            "`postsuper -H` first",
            "--ignore-queue",
        ] {
            assert!(why.contains(words), "{words}: {why}");
        }
        let one = Waiting::in_lines(&lines[0], &domains).why_not(&[]).unwrap();
        assert!(
            one.starts_with("1 message waits") && !one.contains("hold") && !one.contains("again,"),
            "{one}"
        );
        assert_eq!(Waiting::in_lines(&lines[3], &domains).why_not(&domains), None);
    }
}
