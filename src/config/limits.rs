//! `[limits]`: how much is taken from whom, taken over at a reload.
//!
//! In: the table, as written. Out: [`Limits`], validated.
//! Fails: in words, at what is no rate.

use super::{
    reading::Reading,
    units::{Span, Text, Written},
};
use crate::rules::{Limits, Rate};
use serde::{Deserialize, Serialize};
use std::{str::FromStr, time::Duration};

/// Most messages of a limit: more is no limit.
const MOST: u32 = 100_000;

/// Longest span of a limit.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// `[limits]`
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsText {
    /// Messages to integration addresses that are taken from an SMTP client, like `100/h`, `10/min` or `500/2d`; as many may
    /// come at once. More is answered 451 4.7.1 [client-limit] at RCPT. Of IPv6, a /64 is one client. By LMTP, where the
    /// client is Postfix, nobody is counted; default none.
    per_client: Option<Text<Rate>>,
    /// The same from an envelope sender, through both doors: 451 4.7.1 [sender-limit]; default none. The null sender has
    /// no limit.
    per_sender: Option<Text<Rate>>,
    /// The same for a tenant, from all together: 450 4.2.1 [tenant-limit]; default none. Clients of
    /// `sender.trusted_networks` count for none of the three.
    per_tenant: Option<Text<Rate>>,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!("\"{text}\" is no limit{why}: write one like \"100/h\", \"10/min\" or \"500/2d\"")
        };
        let (count, per) = text.split_once('/').ok_or_else(|| wrong(""))?;
        let count = count.trim().parse::<u32>().map_err(|_| wrong(""))?;
        if !(1..=MOST).contains(&count) {
            return Err(format!(
                "\"{text}\" is no limit: from 1 to {MOST} messages; without the key there is none"
            ));
        }
        let per = per.trim();
        let is_alone = per.starts_with(|c: char| c.is_ascii_alphabetic());
        let Span(per) = if is_alone { format!("1{per}").parse() } else { per.parse() }
            .map_err(|_: String| wrong(", for want of a span"))?;
        match per.subsec_nanos() == 0 && (Duration::from_secs(1)..=LONGEST).contains(&per) {
            true => Ok(Self { count, per }),
            false => Err(format!("\"{text}\" is no limit: its span is whole seconds, from \"1s\" to \"7d\"")),
        }
    }
}

impl Written for Rate {
    const LIKE: &'static str = "\"100/h\"";
}

impl LimitsText {
    pub(super) fn validate(self, source: &Reading) -> Limits {
        let rate = |text: Option<Text<Rate>>| text.map(|Text(rate)| rate);
        let limits = Limits {
            client: rate(self.per_client),
            sender: rate(self.per_sender),
            tenant: rate(self.per_tenant),
        };
        if let Some(tenant) = limits.tenant {
            for (key, one) in [("limits.per_client", limits.client), ("limits.per_sender", limits.sender)] {
                if let Some(one) = one.filter(|one| one.exceeds(tenant)) {
                    let message = format!(
                        "{one} is more than limits.per_tenant ({tenant}): one alone uses up what a company gets"
                    );
                    source.warn(key, message);
                }
            }
        }
        limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, source::Source};
    use std::path::Path;

    #[test]
    fn one_who_may_use_up_what_all_have_is_doubtful() {
        for (limits, doubtful) in [
            ("per_client = \"100/h\"\nper_sender = \"60/h\"\nper_tenant = \"100/h\"", &[][..]),
            (
                "per_client = \"101/h\"\nper_sender = \"1/min\"\nper_tenant = \"100/h\"",
                &["per_client: 101/h"],
            ),
            (
                "per_client = \"2/min\"\nper_sender = \"1/s\"\nper_tenant = \"100/h\"",
                &["per_client", "per_sender"],
            ),
            ("per_client = \"100000/s\"", &[]),
        ] {
            let text = format!(
                "integration_domains = [\"a.test\"]\n[directory]\npath = \"tests/directory.toml\"\n[backend]\nurl = \"https://b.test\"\n\
                 [limits]\n{limits}\n"
            );
            let source = Source::from_text(Path::new("am.toml"), &text);
            let warnings = Config::from_source(&source).unwrap().warnings;
            let found: Vec<_> =
                warnings.iter().filter(|warning| warning.contains("one alone uses up")).collect();
            assert_eq!(found.len(), doubtful.len(), "{limits}: {found:?}");
            assert!(
                found.iter().zip(doubtful).all(|(found, key)| found.contains(key)),
                "{limits}: {found:?}"
            );
        }
    }

    #[test]
    fn limits_are_read_and_written() {
        for (text, count, seconds, written) in [
            ("100/h", 100, 3600, "100/h"),
            ("1/s", 1, 1, "1/s"),
            (" 10 / min ", 10, 60, "10/min"),
            ("10/minute", 10, 60, "10/min"),
            ("500/2d", 500, 172_800, "500/172800s"),
            ("7/1day", 7, 86_400, "7/d"),
            ("100000/7d", 100_000, 604_800, "100000/604800s"),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(rate, Rate { count, per: Duration::from_secs(seconds) }, "{text}");
            assert_eq!(rate.to_string(), written);
            assert_eq!(written.parse::<Rate>().unwrap(), rate);
        }
        for (text, part) in [
            ("100", "write one like"),
            ("/h", "write one like"),
            ("h/100", "write one like"),
            ("-1/h", "write one like"),
            ("1.5/h", "write one like"),
            ("0/h", "without the key there is none"),
            ("100001/h", "from 1 to 100000"),
            ("10/", "for want of a span"),
            ("10/60", "for want of a span"),
            ("10/M", "for want of a span"),
            ("10/h/2", "for want of a span"),
            ("10/8d", "\"7d\""),
            ("10/500ms", "\"1s\""),
        ] {
            let error = text.parse::<Rate>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
