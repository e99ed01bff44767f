//! Values that are written as text: sizes, times, permission bits, levels.
//!
//! Promise: what has no unit, or one that is easily mistaken, is refused with what would do.

use super::LONGEST_SPAN;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{
    fmt::{self, Display},
    marker::PhantomData,
    str::FromStr,
    time::Duration,
};

/// A value written as a string and read by its own parser, so that the error stands where the value stands.
#[derive(Clone, Debug)]
pub(super) struct Text<T>(pub(super) T);

/// How a value looks that is written as text.
pub(super) trait Written: FromStr<Err = String> {
    /// One, with quotes.
    const LIKE: &'static str;
}

struct Visitor<T>(PhantomData<T>);

impl<T: Written> de::Visitor<'_> for Visitor<T> {
    type Value = Text<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "text like {}", T::LIKE)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        T::from_str(text).map(Text).map_err(E::custom)
    }
}

impl<'de, T: Written> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Visitor(PhantomData))
    }
}

impl<T: Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// A size in bytes: `"50 MiB"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size(pub(super) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '.' || c == '_' || c == ' ') {
            return Err(format!(
                "\"{text}\" has no unit: write one like \"50 MiB\", or \"{text} B\" for bytes"
            ));
        }
        match text.parse::<bytesize::ByteSize>() {
            Ok(size) if size.as_u64() > 0 => Ok(Self(size.as_u64())),
            _ => Err(format!("\"{text}\" is no size: write one like \"50 MiB\"")),
        }
    }
}

impl Display for Size {
    /// In the largest unit in which it is a whole number, so that it is read back as it was.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match units.iter().find(|(unit, _)| self.0 >= *unit && self.0.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{} {name}", self.0 / unit),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// A size that may be none: `"0"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Free(pub(super) u64);

impl FromStr for Free {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "0" => Ok(Self(0)),
            _ => Size::from_str(text).map(|size| Self(size.0)),
        }
    }
}

impl Display for Free {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 { f.write_str("0") } else { Size(self.0).fmt(f) }
    }
}

/// A time span: `"30s"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span(pub(super) Duration);

/// Reads a time span, as the configuration and the command line have it; longer than for ever is for ever.
/// # Errors
/// What is none, what has no unit, and `M`: months to the library, minutes to many people.
pub fn time_span(text: &str) -> Result<Duration, String> {
    let is_some = text.contains(|c: char| c.is_ascii_digit() && c != '0');
    if is_some && text.chars().all(|c| c.is_ascii_digit() || c == '.' || c == ' ') {
        return Err(format!(
            "\"{text}\" has no unit: write one like \"{text}s\", \"{text}min\" or \"{text}d\""
        ));
    }
    let letters: Vec<&str> = text.split(|c: char| !c.is_ascii_alphabetic()).collect();
    if letters.contains(&"M") {
        let minutes = text.replace('M', "min");
        return Err(format!(
            "\"{text}\" would be months: write \"{minutes}\" for minutes, or spell out \"months\""
        ));
    }
    match humantime::parse_duration(text) {
        Ok(span) => Ok(span.min(LONGEST_SPAN)),
        Err(_) => Err(format!("\"{text}\" is no time span: write one like \"30s\", \"10min\" or \"5d\"")),
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match time_span(text)? {
            Duration::ZERO => {
                Err(format!("\"{text}\" is no time span: write one like \"30s\", \"10min\" or \"5d\""))
            }
            span => Ok(Self(span)),
        }
    }
}

impl Display for Span {
    /// In the largest unit in which it is a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        if self.0.subsec_nanos() != 0 {
            return humantime::format_duration(self.0).fmt(f);
        }
        let units = [(86_400, "d"), (3_600, "h"), (60, "min")];
        match units.iter().find(|(unit, _)| seconds >= *unit && seconds.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{}{name}", seconds / unit),
            None => write!(f, "{seconds}s"),
        }
    }
}

/// A time span that may be none: `"0"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keep(pub(super) Duration);

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "0" => Ok(Self(Duration::ZERO)),
            _ => time_span(text).map(Self).map_err(|error| format!("{error}, or \"0\" for not at all")),
        }
    }
}

impl Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() { f.write_str("0") } else { Span(self.0).fmt(f) }
    }
}

/// Permission bits: `"0660"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mode(pub(super) u32);

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 && !text.starts_with('+') => Ok(Self(mode)),
            _ => Err(format!("\"{text}\" is no file mode: write one like \"0660\"")),
        }
    }
}

impl Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// A log level.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level(pub(super) tracing::Level);

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |_| format!("\"{text}\" is no level: write error, warn, info, debug or trace");
        match text.parse::<u64>() {
            Ok(_) => Err(wrong(())),
            Err(_) => text.parse().map(Self).map_err(|_| wrong(())),
        }
    }
}

impl Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.as_str().to_lowercase())
    }
}

impl Written for Size {
    const LIKE: &'static str = "\"50 MiB\"";
}

impl Written for Free {
    const LIKE: &'static str = "\"256 MiB\", or \"0\"";
}

impl Written for Span {
    const LIKE: &'static str = "\"30s\", \"10min\" or \"5d\"";
}

impl Written for Keep {
    const LIKE: &'static str = "\"2d\", or \"0\"";
}

impl Written for Mode {
    const LIKE: &'static str = "\"0660\"";
}

impl Written for Level {
    const LIKE: &'static str = "\"info\"";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_back() {
        for bytes in [1, 1023, 1024, 1025, 50 << 20, (50 << 20) + 1, 3 << 40, u64::MAX] {
            assert_eq!(Size(bytes).to_string().parse::<Size>().unwrap().0, bytes);
        }
        for millis in [1, 999, 1000, 1500, 60_000, 61_000, 3_600_000, 86_400_000, 90_061_001] {
            let span = Duration::from_millis(millis);
            assert_eq!(Span(span).to_string().parse::<Span>().unwrap().0, span);
        }
        assert_eq!(Span(LONGEST_SPAN).to_string().parse::<Span>().unwrap().0, LONGEST_SPAN);
        assert_eq!(
            (Size(50 << 20).to_string(), Span(Duration::from_secs(600)).to_string()),
            ("50 MiB".into(), "10min".into())
        );
        assert_eq!("0".parse::<Free>().unwrap().to_string(), "0");
        assert_eq!("660".parse::<Mode>().unwrap().to_string(), "0660");
    }

    #[test]
    fn units_that_are_mistaken_are_refused() {
        for (text, expected) in [
            ("10M", "would be months: write \"10min\""),
            ("1h 10M", "would be months"),
            ("30", "has no unit: write one like \"30s\""),
            ("", "is no time span"),
            ("0s", "is no time span"),
        ] {
            assert!(text.parse::<Span>().unwrap_err().contains(expected), "{text}");
        }
        for (text, expected) in
            [("50", "write one like \"50 MiB\", or \"50 B\""), ("0 B", "no size"), ("-1 MiB", "no size")]
        {
            assert!(text.parse::<Size>().unwrap_err().contains(expected), "{text}");
        }
        assert!("10months".parse::<Span>().is_ok() && "10m".parse::<Span>().is_ok());
    }
}
