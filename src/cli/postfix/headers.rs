//! What [`super::check`] finds in header checks, which take a message from us that everything else lets pass.
//!
//! In: the tables of `header_checks` and `lmtp_header_checks`. Out: findings. Promise: a finding that must be mended is of a
//! header that every message to us has; a rule that takes some messages away is a note, for nobody knows here which.

use super::{
    check::{Checks, Severity},
    settings::{Service, split},
    ways::{is_to_us, sample},
};
use std::{fs, time::SystemTime};

/// Why a message without a subject is none for us.
const NO_SUBJECT: &str =
    "the subject is gone before it comes to us, and a message without one is refused [no-subject]";

/// Actions of header_checks(5) by which a message does not come to us, and nobody is told.
const TAKING: [&str; 2] = ["DISCARD", "REDIRECT"];

impl Checks<'_> {
    /// What cleanup(8) does by the header, before the milter sees the message.
    pub(super) fn header_checks(&mut self, service: &Service, asks_milter: bool) {
        let name = "header_checks";
        let domains = &self.config.addressing.domains;
        for headers in domains.iter().map(|domain| to(domain.as_str())).chain(plain(SystemTime::now())) {
            let Some((table, action, header)) = self.action(service, name, &headers) else { continue };
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
        let subjects = SUBJECTS.map(str::to_owned);
        let Some((table, action, header)) = self.action(service, name, &subjects) else { return };
        if ["IGNORE", "STRIP"].contains(&word(&action).as_str()) {
            let setting = format!("{}: {table} in {name} says {action} to \"{header}\"", service.name);
            let remedy = format!("take the pattern that matches it out of {table}");
            self.find(Severity::Must, "header-checks", setting, NO_SUBJECT, remedy);
        }
    }

    /// What a service does with all of these headers: the table, its action, and one of them. None if it does not do the
    /// same with each, for then it does not mean every message. A table that cannot be read is named elsewhere.
    fn action(&self, service: &Service, name: &str, headers: &[String]) -> Option<(String, String, String)> {
        let tables = split(self.settings.of(service, name)).into_iter().filter(|table| table.contains(':'));
        let tables: Vec<String> = tables.collect();
        let of = |header: &String| {
            tables.iter().find_map(|table| {
                let action = self.settings.ask(header, table).ok().flatten()?;
                Some((table.clone(), action, header.clone()))
            })
        };
        let mut found = headers.iter().map(of);
        let first = found.next()??;
        found.all(|next| next.is_some_and(|next| word(&next.1) == word(&first.1))).then_some(first)
    }
}

const SUBJECTS: [&str; 2] = ["Subject: activity-milter-check", "Subject: Re: Offer 2417"];

/// The field that brings a message to a domain.
fn to(domain: &str) -> Vec<String> {
    vec![format!("To: {}", sample(domain)), format!("To: Anna Berg <anna.berg@{domain}>")]
}

/// The fields of every message, each as several people write it. A rule against one kind of sender, a name that does not
/// exist or an old date, does not match all of them.
fn plain(now: SystemTime) -> Vec<Vec<String>> {
    let date = |zone: &str| format!("Date: {}", httpdate::fmt_http_date(now).replace("GMT", zone));
    let of = |name: &str, values: [&str; 3]| values.iter().map(|value| format!("{name}: {value}")).collect();
    vec![
        SUBJECTS.map(str::to_owned).to_vec(),
        of(
            "From",
            ["anna.berg@example.com", "Anna Berg <anna@mail.example.fi>", "\"Berg, Anna\" <ab@example.org>"],
        ),
        vec![date("+0000"), date("+0000 (UTC)")],
        of(
            "Message-ID",
            [
                "<4bXyZ30w1Zz9vB@mail.example.com>",
                "<activity-milter-check.17@example.fi>",
                "<AF3C-2417@mx.example.org>",
            ],
        ),
    ]
}

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
    fn the_date_is_that_of_today() {
        let [_, _, dates, _] = plain(SystemTime::UNIX_EPOCH).try_into().unwrap();
        assert_eq!(
            dates,
            ["Date: Thu, 01 Jan 1970 00:00:00 +0000", "Date: Thu, 01 Jan 1970 00:00:00 +0000 (UTC)"]
        );
    }

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
