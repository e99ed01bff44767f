//! How much is taken from a client, from a sender, and for a tenant.
//!
//! In: when the last message was due, and the time. Out: when the next one is.
//! Promise: never more than `count` at once, and in the long run not more than `count` in each span.
//! Fails: never.

use std::{fmt, time::Duration};

/// So many messages in each span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Messages, at least one; as many may come at once.
    pub count: u32,
    /// The span in which they are forgiven.
    pub per: Duration,
}

/// What `[limits]` says; nothing is limited by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of an SMTP client.
    pub client: Option<Rate>,
    /// Of an envelope sender.
    pub sender: Option<Rate>,
    /// For a tenant.
    pub tenant: Option<Rate>,
}

impl Rate {
    /// When everything that was taken is forgiven, with one message more; none if that is one too many (the generic cell rate
    /// algorithm, ITU-T I.371). `before`: the same of the message before, if it is remembered. Who is refused pays nothing.
    pub fn admit(self, before: Option<Duration>, now: Duration) -> Option<Duration> {
        let each = self.per / self.count;
        let after = before.map_or(now, |before| before.max(now)) + each;
        // Not `per`: the division leaves a rest.
        (after - now <= each * self.count).then_some(after)
    }

    /// True if this lets more through than the other, in the long run.
    pub fn exceeds(self, other: Self) -> bool {
        u128::from(self.count) * other.per.as_nanos() > u128::from(other.count) * self.per.as_nanos()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1, "s"), (60, "min"), (3600, "h"), (24 * 3600, "d")];
        match units.iter().find(|(seconds, _)| self.per == Duration::from_secs(*seconds)) {
            Some((_, unit)) => write!(f, "{}/{unit}", self.count),
            None => write!(f, "{}/{}s", self.count, self.per.as_secs()),
        }
    }
}

impl Limits {
    /// For people; none if nothing is limited.
    pub fn said(&self) -> Option<String> {
        let all = [("client", self.client), ("sender", self.sender), ("tenant", self.tenant)];
        let said = all.iter().filter_map(|(of, rate)| rate.map(|rate| format!("{rate} for each {of}")));
        let said: Vec<String> = said.collect();
        (!said.is_empty()).then(|| said.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn rate(count: u32, seconds: u64) -> Rate {
        Rate { count, per: Duration::from_secs(seconds) }
    }

    /// Plays messages at these milliseconds; says which are taken.
    fn play(rate: Rate, at: &[u64]) -> String {
        let mut before = None;
        let mut said = String::new();
        for millis in at {
            let after = rate.admit(before, Duration::from_millis(*millis));
            said.push(if after.is_some() { 'y' } else { 'n' });
            before = after.or(before);
        }
        said
    }

    /// D7.
    #[test]
    fn what_is_too_much() {
        for (name, rate, at, expected) in [
            ("as many at once, then none", rate(3, 60), &[0, 0, 0, 0, 19_999][..], "yyynn"),
            ("each is forgiven after its part of the span", rate(3, 60), &[0, 0, 0, 20_000, 20_000], "yyyyn"),
            (
                "all are forgiven after the span",
                rate(3, 60),
                &[0, 0, 0, 60_000, 60_000, 60_000, 60_000],
                "yyyyyyn",
            ),
            ("who is refused pays nothing", rate(1, 10), &[0, 1_000, 5_000, 9_999, 10_000, 10_001], "ynnnyn"),
            ("who keeps to it is never refused", rate(2, 2), &[0, 1_000, 2_000, 3_000, 4_000], "yyyyy"),
            ("a clock that stands", rate(1, 1), &[5, 5, 5], "ynn"),
        ] {
            assert_eq!(play(rate, at), expected, "{name}");
        }
    }

    /// D7.
    #[test]
    fn at_once_it_is_the_count_whatever_the_rest_of_the_division() {
        for count in [1, 3, 7, 999, 100_000] {
            for seconds in [1, 7, 3600] {
                let at = vec![0; count as usize + 5];
                let taken = play(rate(count, seconds), &at).matches('y').count();
                assert_eq!(taken, count as usize, "{count} in {seconds} s");
            }
        }
    }

    #[test]
    fn limits_are_said() {
        assert_eq!(Limits::default().said(), None);
        let limits = Limits { client: Some(rate(5, 60)), sender: None, tenant: Some(rate(2, 7)) };
        assert_eq!(limits.said().unwrap(), "5/min for each client, 2/7s for each tenant");
        assert!(rate(2, 1).exceeds(rate(60, 60)) && !rate(1, 1).exceeds(rate(60, 60)));
    }
}
