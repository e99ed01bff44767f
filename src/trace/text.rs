//! What is said to people, at the command line and on the status page.

use super::{
    KEEP, Settings,
    search::{Event, Found, Query},
    term::Term,
};
use std::time::{Duration, SystemTime};

impl Event {
    /// What happened, in the words of the log.
    pub fn word(&self) -> &str {
        match self.what.as_str() {
            "would_refuse" => "would refuse",
            "would_defer" => "would defer",
            "would_discard" => "would discard",
            "would_record" => "would record",
            "known" => "known already",
            "tried_in_vain" => "tried in vain",
            "not_delivered" => "not delivered",
            "gone" => "deleted there",
            "retried_by_hand" => "retried by hand",
            "held_by_hand" => "held by hand",
            "dropped_by_hand" => "dropped by hand",
            "redelivered_by_hand" => "redelivered by hand",
            what => what,
        }
    }

    /// The rest of it, in one line.
    pub fn sentence(&self) -> String {
        let mut words: Vec<String> = Vec::new();
        let mut say = |word: Option<String>| words.extend(word);
        say(self.code.map(|code| code.to_string()));
        say(self.status.clone());
        say(self.reason.as_ref().map(|reason| format!("[{reason}]")));
        say(self.stage.as_ref().map(|stage| format!("at {stage}")));
        say(self.recipient.as_ref().map(|to| format!("to=<{to}>")));
        say(self.tenant.as_ref().map(|tenant| format!("tenant {tenant}")));
        say(self.project.as_ref().map(|project| format!("project {project}")));
        say(self.attempt.map(|attempt| format!("attempt {attempt}")));
        say(self.span.map(|span| match self.what.as_str() {
            "tried_in_vain" => format!("next in {}", humantime::format_duration(rounded(span))),
            _ => format!("in {}", humantime::format_duration(rounded(span))),
        }));
        let detail = self.detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default();
        words.join(" ") + &detail
    }
}

/// Two units are enough.
fn rounded(span: Duration) -> Duration {
    if span < Duration::from_secs(10) { span } else { Duration::from_secs(span.as_secs()) }
}

/// What was searched, and how far, where nothing was found.
pub fn not_found(settings: &Settings, query: &Query, found: &Found, addresses_are_whole: bool) -> String {
    let mut text = format!("nothing is known of the {}", query.term);
    if let Some(since) = query.since {
        text += &format!(" since {}", humantime::format_rfc3339_seconds(since));
    }
    if let Some(until) = query.until {
        text += &format!(" until {}", humantime::format_rfc3339_seconds(until));
    }
    text += &match found.reach.oldest {
        Some(oldest) => format!(
            ". The trace {} reaches back to {} (trace.keep is {})",
            settings.path.display(),
            humantime::format_rfc3339_seconds(oldest),
            humantime::format_duration(settings.keep.unwrap_or(KEEP))
        ),
        None => format!(". The trace {} is empty so far", settings.path.display()),
    };
    if found.reach.lost > 0 {
        text += &format!(", and {} of its records were lost, so that it has gaps", found.reach.lost);
    }
    if matches!(query.term, Term::Address { .. }) && !addresses_are_whole {
        text += ". It holds no whole addresses, because log.addresses is not \"full\": search for the queue id, the key or the Message-ID";
    }
    text + ". Other people's mail is not traced: Postfix's own log has it"
}

/// Reads a time: how long ago (`2h`), or RFC 3339.
/// # Errors
/// What would do.
pub fn since(text: &str, now: SystemTime) -> Result<SystemTime, String> {
    let text = text.trim();
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(now.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH).max(SystemTime::UNIX_EPOCH));
    }
    let format = &time::format_description::well_known::Rfc3339;
    time::OffsetDateTime::parse(text, format).map(SystemTime::from).map_err(|_| {
        format!("\"{text}\" is no time: write how long ago, like 2h or 3days, or one like 2026-11-29T14:00:00+02:00")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_ago_or_rfc_3339() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let at = |seconds| Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        for (text, expected) in [
            ("2h", at(1_800_000_000 - 7200)),
            (" 1day 1s ", at(1_800_000_000 - 86401)),
            ("5000y", at(0)),
            ("2027-01-15T08:00:00Z", at(1_800_000_000)),
            ("2027-01-15T10:00:00+02:00", at(1_800_000_000)),
        ] {
            assert_eq!(since(text, now), expected, "{text}");
        }
        for text in ["", "2", "yesterday", "2027-01-15", "2027-01-15T08:00:00"] {
            assert!(since(text, now).unwrap_err().ends_with("2026-11-29T14:00:00+02:00"), "{text}");
        }
    }

    #[test]
    fn nothing_found_says_what_was_searched_how_far_and_with_which_gaps() {
        let settings = Settings::new("/x/trace.db".into());
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let query = |words, since| Query { term: Term::read(words).unwrap(), since, until: None };
        let mut found = Found::default();
        let text = not_found(&settings, &query("7F3A91E0C2", None), &found, true);
        assert!(
            text.starts_with(
                "nothing is known of the queue id 7F3A91E0C2. The trace /x/trace.db is empty so far."
            ),
            "{text}"
        );
        found.reach.oldest = Some(time);
        found.reach.lost = 7;
        let text = not_found(&settings, &query("a@x.test", Some(time)), &found, false);
        for part in [
            "of the address or Message-ID a@x.test since 2027-01-15T08:00:00Z. ",
            "reaches back to 2027-01-15T08:00:00Z (trace.keep is 7days), and 7 of its records were lost",
            "log.addresses is not \"full\": search for the queue id",
            "Postfix's own log has it",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        for (words, whole) in [("a@x.test", true), ("7F3A91E0C2", false)] {
            assert!(!not_found(&settings, &query(words, None), &found, whole).contains("log.addresses"));
        }
    }

    #[test]
    fn events_are_said_in_the_words_of_the_log() {
        let text = |text: &str| Some(text.to_owned());
        let refused = Event {
            what: "refused".to_owned(),
            stage: text("rcpt"),
            code: Some(550),
            status: text("5.1.1"),
            reason: text("no-such-tenant"),
            recipient: text("x@severamail.test"),
            ..Event::default()
        };
        let tried = Event {
            what: "tried_in_vain".to_owned(),
            tenant: text("t-1"),
            attempt: Some(2),
            span: Some(Duration::from_millis(61_500)),
            detail: text("backend answered 503"),
            ..Event::default()
        };
        for (event, expected) in [
            (refused, "refused 550 5.1.1 [no-such-tenant] at rcpt to=<x@severamail.test>"),
            (tried, "tried in vain tenant t-1 attempt 2 next in 1m 1s: backend answered 503"),
        ] {
            assert_eq!(format!("{} {}", event.word(), event.sentence()), expected);
        }
    }
}
