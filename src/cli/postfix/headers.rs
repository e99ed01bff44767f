//! What [`super::check`] finds in header checks, which take a message from us that everything else lets pass.
//!
//! In: the tables of `header_checks` and `lmtp_header_checks`. Out: findings. Promise: a finding that must be mended is of a
//! header that every message to us has; a rule that takes some messages away is a note, for nobody knows here which.

use super::{
    check::{Checks, Severity},
    settings::{Service, split},
    ways::{is_to_us, sample},
};
use std::fs;

/// Why a message without a subject is none for us.
const NO_SUBJECT: &str =
    "the subject is gone before it comes to us, and a message without one is refused [no-subject]";

/// Actions of header_checks(5) by which a message does not come to us, and nobody is told.
const TAKING: [&str; 2] = ["DISCARD", "REDIRECT"];

impl Checks<'_> {
    /// What cleanup(8) does by the header, before the milter sees the message.
    pub(super) fn header_checks(&mut self, service: &Service, asks_milter: bool) {
        let name = "header_checks";
        let domains: Vec<String> =
            self.config.addressing.domains.iter().map(|d| d.as_str().to_owned()).collect();
        let mut headers: Vec<String> =
            domains.iter().map(|domain| format!("To: {}", sample(domain))).collect();
        headers.extend(PLAIN.map(str::to_owned));
        for header in &headers {
            let Some((table, action)) = self.action(service, name, header) else { continue };
            let reason = match word(&action).as_str() {
                "REJECT" => "every message to us is refused before the milter is asked".to_owned(),
                "DISCARD" => "every message to us is thrown away, and its sender is told that it was taken".to_owned(),
                "REDIRECT" => "every message to us goes to that address instead".to_owned(),
                // What the milter takes is out of the queue by then.
                "HOLD" if !asks_milter => "every message to us stays in the hold queue".to_owned(),
                "FILTER" if is_to_us(self.settings, self.config, rest(&action)) => {
                    "every message, whoever it is for, comes to our LMTP listener, which takes no other domain's".to_owned()
                }
                "IGNORE" | "STRIP" if header.starts_with("Subject:") => NO_SUBJECT.to_owned(),
                _ => continue,
            };
            let setting = format!("{}: {table} in {name} says {action} to \"{header}\"", service.name);
            let remedy = format!("take the pattern that matches it out of {table}");
            self.find(Severity::Must, "header-checks", setting, &reason, remedy);
            return;
        }
        for table in split(self.settings.of(service, name)) {
            let Some(action) = taken_by(&table) else { continue };
            let setting = format!("{}: {table} in {name} has {action}", service.name);
            let reason = "whether a message to us has such a header cannot be seen here: it would not be recorded, and \
                          nobody told";
            let remedy = "see that no pattern there matches what is sent to integration addresses".to_owned();
            self.find(Severity::Note, "header-checks", setting, reason, remedy);
        }
    }

    /// What lmtp(8) takes out on the way to us.
    pub(super) fn lmtp_header_checks(&mut self, service: &Service) {
        let name = "lmtp_header_checks";
        let Some((table, action)) = self.action(service, name, PLAIN[0]) else { return };
        if ["IGNORE", "STRIP"].contains(&word(&action).as_str()) {
            let setting = format!("{}: {table} in {name} says {action} to \"{}\"", service.name, PLAIN[0]);
            let remedy = format!("take the pattern that matches it out of {table}");
            self.find(Severity::Must, "header-checks", setting, NO_SUBJECT, remedy);
        }
    }

    /// What the first table that knows a header says: the table, and the action. One that cannot be read is named elsewhere.
    fn action(&self, service: &Service, name: &str, header: &str) -> Option<(String, String)> {
        let tables = split(self.settings.of(service, name)).into_iter().filter(|table| table.contains(':'));
        tables.into_iter().find_map(|table| {
            let action = self.settings.ask(header, &table).ok().flatten()?;
            Some((table, action))
        })
    }
}

/// Headers of every message, as nobody would write them who does not mean all.
const PLAIN: [&str; 4] = [
    "Subject: activity-milter-check",
    "From: activity-milter-check@example.invalid",
    "Date: Mon, 30 Nov 2026 08:00:00 +0200",
    "Message-ID: <activity-milter-check@example.invalid>",
];

/// What stands behind the action's word.
fn rest(action: &str) -> &str {
    action.trim().split_once(char::is_whitespace).map_or("", |(_, rest)| rest.trim())
}

fn word(action: &str) -> String {
    action.split_whitespace().next().unwrap_or_default().to_ascii_uppercase()
}

/// An action by which a table takes messages away; none if it has none, or is in no file.
fn taken_by(table: &str) -> Option<&'static str> {
    let place = table.trim_start_matches("proxy:").split_once(':').map(|(_, place)| place)?;
    let text = match place.starts_with('/') {
        true => fs::read_to_string(place).ok()?,
        false => place.to_owned(),
    };
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    let mut words = lines.flat_map(|line| line.split(|c: char| !c.is_ascii_alphabetic()));
    words.find_map(|word| TAKING.into_iter().find(|taking| word.eq_ignore_ascii_case(taking)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_take_messages_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("checks");
        fs::write(&path, "# no DISCARD here\n/^Subject: spam/ redirect x@y.test\n").unwrap();
        for (table, expected) in [
            (format!("regexp:{}", path.display()), Some("REDIRECT")),
            (format!("proxy:regexp:{}", path.display()), Some("REDIRECT")),
            ("regexp:{ { /^X-Spam: yes/ DISCARD no } }".to_owned(), Some("DISCARD")),
            ("regexp:{ { /^Received:/ IGNORE } { /^X-Discarded/ WARN } }".to_owned(), None),
            ("pcre:/nonexistent".to_owned(), None),
            ("none".to_owned(), None),
        ] {
            assert_eq!(taken_by(&table), expected, "{table}");
        }
    }
}
