//! How much is sane: each number, size and time that can be configured, with its least and most.
//!
//! In: the values as they are written. Out: an error for what refuses or loses mail, a warning for what is probably
//! another unit or a mistake. The defaults lie between.

use super::{
    LEAST_MEMORY, LONGEST_SPAN, Size, Span,
    reading::Reading,
    units::{Free, Keep},
};
use crate::backend::LEAST_NOTES;
use crate::source::SourceError;
use std::{ops::RangeInclusive, time::Duration};
use toml::de::DeValue;

/// A key that says how much. Amounts are counts, bytes or milliseconds.
struct Range {
    key: &'static str,
    kind: Kind,
    /// What is refused outside of it.
    sane: RangeInclusive<u64>,
    /// What is doubtful below or above, and why.
    unusual: &'static [Unusual],
}

enum Unusual {
    Below(u64, &'static str),
    Above(u64, &'static str),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Count,
    Size,
    Time,
}

use Kind::{Count, Size as Bytes, Time};
use Unusual::{Above, Below};

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const EVER: u64 = LONGEST_SPAN.as_secs() * SECOND;

const fn range(
    key: &'static str,
    kind: Kind,
    sane: RangeInclusive<u64>,
    unusual: &'static [Unusual],
) -> Range {
    Range { key, kind, sane, unusual }
}

/// `severa.` keys are those of each `[[severa]]`.
const ALL: &[Range] = &[
    range("milter.max_sessions", Count, 1..=1_000_000, &[]),
    range("lmtp.max_sessions", Count, 1..=1_000_000, &[]),
    range("milter.idle_when_full", Time, SECOND..=DAY, &[]),
    range("lmtp.idle_when_full", Time, SECOND..=DAY, &[]),
    range(
        "message.max_size",
        Bytes,
        KIB..=4 * GIB,
        &[Below(100 * KIB, "nearly every message with a file is larger, and is refused")],
    ),
    range("message.memory_limit", Bytes, LEAST_MEMORY..=TIB, &[]),
    range(
        "message.patience",
        Time,
        SECOND..=HOUR,
        &[Below(10 * SECOND, "a network that stands still for so long costs a message")],
    ),
    range("message.max_recipients", Count, 1..=10_000, &[]),
    range("message.max_people", Count, 1..=100_000, &[]),
    range("directory.poll", Time, SECOND..=DAY, &[Above(HOUR, "mail of new people is refused so long")]),
    range("directory.full_pass", Time, MINUTE..=30 * DAY, &[]),
    range(
        "directory.cache_hits",
        Time,
        1..=30 * DAY,
        &[Above(DAY, "who has left the company counts as a user so long")],
    ),
    range("directory.cache_misses", Time, 1..=DAY, &[Above(HOUR, "mail of new people is refused so long")]),
    range("directory.cache_stale", Time, 1..=EVER, &[]),
    range("directory.cache_size", Bytes, 64 * KIB..=64 * GIB, &[]),
    range(
        "backend.timeout",
        Time,
        100..=HOUR,
        &[Below(SECOND, "an answer that takes longer is lost, and the activity is sent again")],
    ),
    range("backend.max_in_flight", Count, 1..=10_000, &[]),
    range("backend.retry_first", Time, 1..=DAY, &[]),
    range(
        "backend.retry_max",
        Time,
        10..=7 * DAY,
        &[Above(DAY, "when the backend is back, activities wait so long")],
    ),
    range(
        "queue.max_items",
        Count,
        1..=u32::MAX as u64,
        &[Below(100, "while the backend is down, mail is answered 452 after so few")],
    ),
    range("queue.max_items_per_tenant", Count, 1..=u32::MAX as u64, &[]),
    range("queue.held_counts", Time, SECOND..=EVER, &[]),
    range("queue.min_free", Bytes, 0..=u64::MAX, &[]),
    range(
        "queue.max_age",
        Time,
        SECOND..=365 * DAY,
        &[Below(HOUR, "what the backend does not take in that time is held, and a person must retry it")],
    ),
    range(
        "queue.connections",
        Count,
        1..=1000,
        &[Below(2, "one message waits for the disk of the database after the other")],
    ),
    range("queue.keep_delivered", Time, 0..=EVER, &[]),
    range("trace.keep", Time, 0..=EVER, &[]),
    range("severa.notes_limit", Count, LEAST_NOTES as u64..=1_000_000, &[]),
    range("severa.settle", Time, 1..=HOUR, &[]),
];

/// Looks at all amounts that are written. What is no amount at all, the types say better.
pub(super) fn check(reading: &Reading) -> Result<(), SourceError> {
    for range in ALL {
        match range.key.strip_prefix("severa.") {
            Some(key) => {
                let companies = reading.value("severa").and_then(|value| value.get_ref().as_array());
                for company in companies.into_iter().flatten() {
                    let value = company.get_ref().as_table().and_then(|table| table.get(key));
                    value.map_or(Ok(()), |value| range.check(reading, value))?;
                }
            }
            None => reading.value(range.key).map_or(Ok(()), |value| range.check(reading, value))?,
        }
    }
    Ok(())
}

impl Range {
    fn check(&self, reading: &Reading, value: &toml::Spanned<DeValue<'_>>) -> Result<(), SourceError> {
        let Some((found, shown)) = self.found(value.get_ref()) else { return Ok(()) };
        let (least, most) = (i128::from(*self.sane.start()), i128::from(*self.sane.end()));
        if found < least {
            let message = match found {
                0 if self.kind == Count => "0 would let nothing through: at least 1".to_owned(),
                _ => format!("{shown} is too {}: at least {}", self.small(), self.shown(*self.sane.start())),
            };
            return Err(reading.error(value.span(), message));
        }
        if found > most {
            let message =
                format!("{shown} is too {}: at most {}", self.large(), self.shown(*self.sane.end()));
            return Err(reading.error(value.span(), message));
        }
        if self.kind == Time && least == 0 && (1..i128::from(SECOND)).contains(&found) {
            let message = format!("{shown} is too short: at least \"1s\", or \"0\" for not at all");
            return Err(reading.error(value.span(), message));
        }
        for unusual in self.unusual {
            let (is_unusual, edge, word, why) = match unusual {
                Below(edge, why) => (found < i128::from(*edge), edge, "at least", why),
                Above(edge, why) => (found > i128::from(*edge), edge, "at most", why),
            };
            if is_unusual {
                let usual = self.shown(*edge);
                reading.warn(self.key, format!("{shown} is unusual: {why}. Usual is {word} {usual}"));
            }
        }
        Ok(())
    }

    /// The amount, and how it is written.
    fn found(&self, value: &DeValue<'_>) -> Option<(i128, String)> {
        match (self.kind, value) {
            (Count, DeValue::Integer(number)) => {
                let amount = i128::from_str_radix(number.as_str(), number.radix()).unwrap_or(i128::MAX);
                Some((amount, number.as_str().chars().take(24).collect()))
            }
            (Bytes, DeValue::String(text)) => {
                let amount = if self.sane.contains(&0) {
                    text.parse::<Free>().ok().map(|free| free.0)
                } else {
                    text.parse::<Size>().ok().map(|size| size.0)
                };
                Some((i128::from(amount?), format!("\"{text}\"")))
            }
            (Time, DeValue::String(text)) => {
                let span = if self.sane.contains(&0) {
                    text.parse::<Keep>().ok()?.0
                } else {
                    text.parse::<Span>().ok()?.0
                };
                // Less than a millisecond is less than anything here, and more than nothing.
                let millis = i128::try_from(span.as_millis()).ok()?;
                let is_some = self.sane.contains(&0) && !span.is_zero();
                Some((if is_some { millis.max(1) } else { millis }, format!("\"{text}\"")))
            }
            _ => None,
        }
    }

    fn small(&self) -> &'static str {
        if self.kind == Time { "short" } else { "small" }
    }

    fn large(&self) -> &'static str {
        if self.kind == Time { "long" } else { "large" }
    }

    fn shown(&self, amount: u64) -> String {
        match self.kind {
            Count => amount.to_string(),
            Bytes => format!("\"{}\"", Size(amount)),
            Time => format!("\"{}\"", Span(Duration::from_millis(amount))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys of the manual that are written as a number, a size or a time.
    #[test]
    fn every_amount_has_its_range() {
        let example = include_str!("../../packaging/activity-milter.toml");
        let (mut table, mut amounts) = (String::new(), Vec::new());
        for line in example.lines() {
            let line = line.strip_prefix('#').unwrap_or(line);
            if line.starts_with('[') {
                table = line.trim_matches(['[', ']']).to_owned();
            } else if let Some((key, value)) = line.split_once(" = ")
                && !key.contains(' ')
            {
                let text = value.trim_start_matches('"').split('"').next().unwrap_or_default();
                let is_number = value.starts_with(|c: char| c.is_ascii_digit());
                if is_number || text.parse::<Size>().is_ok() || text.parse::<Span>().is_ok() {
                    amounts.push(format!("{table}.{key}"));
                }
            }
        }
        assert!(amounts.len() > 15, "{amounts:?}");
        for amount in amounts {
            assert!(ALL.iter().any(|range| range.key == amount), "no range for {amount}");
        }
    }
}
