//! The API's clock, as its newest answer showed it.
//!
//! In: the `Date` of each answer (RFC 9110, section 6.6.1). Out: what time it is there, carried on by a clock that nobody
//! sets. Before the first answer, and where none has a date: our own time.

use reqwest::{Response, header::DATE};
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Dates of before the year 2000 are those of clocks that nobody has set.
const UNSET: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

#[derive(Debug, Default)]
pub(super) struct Clock(Mutex<Option<(SystemTime, Instant)>>);

impl Clock {
    /// Learns from an answer that came just now.
    pub(super) fn learn(&self, response: &Response) {
        let date = response.headers().get(DATE).and_then(|value| value.to_str().ok());
        let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
        if let Some(date) = date.filter(|date| *date > SystemTime::UNIX_EPOCH + UNSET) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((date, Instant::now()));
        }
    }

    /// The time there.
    pub(super) fn now(&self) -> SystemTime {
        match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((date, at)) => date + at.elapsed(),
            None => SystemTime::now(),
        }
    }

    /// How far it is before ours (true) or behind, if it is known.
    pub(super) fn difference(&self) -> Option<(bool, Duration)> {
        let (date, at) = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        Some(match (date + at.elapsed()).duration_since(SystemTime::now()) {
            Ok(ahead) => (true, ahead),
            Err(behind) => (false, behind.duration()),
        })
    }
}

/// Time since the machine started, sleep included: nobody sets it.
fn running() -> Duration {
    nix::time::ClockId::CLOCK_BOOTTIME.now().map(Duration::from).unwrap_or_default()
}

/// How far ahead a time of ours may lie that is not yet a wrong clock's.
const AHEAD: Duration = Duration::from_secs(60);

/// Something that happened so long ago. Whoever sets the machine's clock makes it neither younger nor older.
#[derive(Clone, Copy, Debug)]
pub(super) struct Past {
    before: Duration,
    at: Duration,
}

impl Past {
    /// Now.
    pub(super) fn now() -> Self {
        Self { before: Duration::ZERO, at: running() }
    }

    /// At a time of our clock that was written down. None if it lies ahead: nobody knows how long ago that was.
    pub(super) fn written(milliseconds: i64) -> Option<Self> {
        let then = SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds.try_into().ok()?);
        let before = match SystemTime::now().duration_since(then) {
            Ok(before) => before,
            Err(ahead) if ahead.duration() <= AHEAD => Duration::ZERO,
            Err(_) => return None,
        };
        Some(Self { before, at: running() })
    }

    /// How long ago it was.
    pub(super) fn age(self) -> Duration {
        self.before + running().saturating_sub(self.at)
    }

    /// To be written down.
    pub(super) fn to_written(self) -> i64 {
        milliseconds(SystemTime::now().checked_sub(self.age()).unwrap_or(SystemTime::UNIX_EPOCH))
    }
}

/// A time as it is written down.
pub(super) fn milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A time of the API (RFC 3339); one without a zone is taken as UTC.
pub(super) fn parse(text: &str) -> Option<SystemTime> {
    let parsed = OffsetDateTime::parse(text, &Rfc3339);
    let parsed = parsed.or_else(|_| OffsetDateTime::parse(&format!("{text}Z"), &Rfc3339));
    parsed.ok().map(SystemTime::from)
}

/// A time as the API takes it: RFC 3339 in UTC, whole seconds.
pub(super) fn written(time: SystemTime) -> String {
    // The format knows no time before 1970.
    humantime::format_rfc3339_seconds(time.max(SystemTime::UNIX_EPOCH)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_with_and_without_a_zone() {
        for text in [
            "2026-11-29T20:00:00Z",
            "2026-11-29T20:00:00",
            "2026-11-29T20:00:00.0000000Z",
            "2026-11-29T22:00:00.5+02:00",
            "2026-11-29T18:00:00.123-02:00",
        ] {
            assert_eq!(parse(text).map(written).as_deref(), Some("2026-11-29T20:00:00Z"), "{text}");
        }
        assert_eq!(parse("tomorrow"), None);
    }

    #[test]
    fn what_is_written_down_keeps_its_age_unless_it_lies_ahead() {
        let hour = Duration::from_secs(3600);
        let written = milliseconds(SystemTime::now() - hour);
        let past = Past::written(written).unwrap();
        assert!(past.age() >= hour && past.age() < hour + AHEAD, "{past:?}");
        assert!((past.to_written() - written).abs() < 1000);
        assert!(Past::written(milliseconds(SystemTime::now() + AHEAD / 2)).unwrap().age() < AHEAD);
        assert!(Past::written(milliseconds(SystemTime::now() + hour)).is_none());
        assert!(Past::written(-1).is_none() && Past::now().age() < AHEAD);
    }
}
