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

#[derive(Debug, Default)]
pub(super) struct Clock(Mutex<Option<(SystemTime, Instant)>>);

impl Clock {
    /// Learns from an answer that came just now.
    pub(super) fn learn(&self, response: &Response) {
        let date = response.headers().get(DATE).and_then(|value| value.to_str().ok());
        if let Some(date) = date.and_then(|date| httpdate::parse_http_date(date).ok()) {
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

/// A time of the API (RFC 3339); one without a zone is taken as UTC.
pub(super) fn parse(text: &str) -> Option<SystemTime> {
    let parsed = OffsetDateTime::parse(text, &Rfc3339);
    let parsed = parsed.or_else(|_| OffsetDateTime::parse(&format!("{text}Z"), &Rfc3339));
    parsed.ok().map(SystemTime::from)
}

/// A time as the API takes it: RFC 3339 in UTC, whole seconds.
pub(super) fn written(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
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
}
