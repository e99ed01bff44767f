//! Dates of header fields (RFC 5322, sections 3.3 and 4.3).
//!
//! In: the raw value of a Date field. Out: the moment it names, or nothing.
//! Promise: never a wrong moment. Whatever leaves a doubt about day, hour or zone is unread: month names of other
//! languages, words between, a date without a zone, zones of other lengths than four digits, names of zones that RFC
//! 5322 does not define (CEST, IST), impossible days. One pass; nothing is allocated.
//! Fails: never; unread is `None`, and the activity then says when the e-mail was received.
//!
//! Why not mail-parser's: it takes any word for a month and zones of three digits for hours.

use super::comment::Comments;
use std::time::{Duration, SystemTime};

/// A Date value (RFC 5322, section 3.3, obsolete forms included). Moments before 1970 or after 9999 are unread.
pub(super) fn parse(value: &[u8]) -> Option<SystemTime> {
    let mut tokens = Tokens { value, at: 0, comments: Comments::of(value) };
    tokens.weekday()?;
    let day = tokens.number(1..=2)?;
    let month = month(tokens.word()?)?;
    let year = tokens.year()?;
    let (hour, minute, second) = tokens.time()?;
    let zone = tokens.zone()?;
    if tokens.peek().is_some() || day == 0 || day > days_of(month, year) {
        return None;
    }
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - zone;
    // The last second that RFC 3339 can write.
    let seconds = u64::try_from(seconds).ok().filter(|&s| s <= 253_402_300_799)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

const WEEKDAYS: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];

/// Zone names and their hours (RFC 5322, section 4.3).
const ZONES: [(&str, i64); 11] = [
    ("UT", 0),
    ("UTC", 0),
    ("GMT", 0),
    ("EST", -5),
    ("EDT", -4),
    ("CST", -6),
    ("CDT", -5),
    ("MST", -7),
    ("MDT", -6),
    ("PST", -8),
    ("PDT", -7),
];

/// No place on earth is farther from UTC, in minutes; what claims to be is damaged.
const MAX_ZONE: i64 = 14 * 60;

/// True if `word` is `name` in full or its first three letters.
fn is_name(word: &[u8], name: &str) -> bool {
    word.eq_ignore_ascii_case(name.as_bytes()) || word.eq_ignore_ascii_case(&name.as_bytes()[..3])
}

fn month(word: &[u8]) -> Option<i64> {
    (1..).zip(MONTHS).find(|(_, name)| is_name(word, name)).map(|(number, _)| number)
}

fn named_zone(word: &[u8]) -> Option<i64> {
    let known = ZONES.iter().find(|(name, _)| word.eq_ignore_ascii_case(name.as_bytes()));
    match (known, word) {
        (Some((_, hours)), _) => Some(hours * 3600),
        // Military letters were defined with the wrong sign once, so they all mean -0000; J is none.
        (None, [letter]) if letter.is_ascii_alphabetic() && !letter.eq_ignore_ascii_case(&b'j') => Some(0),
        _ => None,
    }
}

fn is_utc(word: &[u8]) -> bool {
    ["UT", "UTC", "GMT"].iter().any(|name| word.eq_ignore_ascii_case(name.as_bytes()))
}

fn days_of(month: i64, year: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days of the Gregorian calendar, counted in years that begin in March, so that the leap day is the last one.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468
}

/// A Date value from left to right; blanks, folds and comments lie between any two tokens.
struct Tokens<'a> {
    value: &'a [u8],
    at: usize,
    comments: Comments<'a>,
}

impl<'a> Tokens<'a> {
    fn peek(&mut self) -> Option<u8> {
        loop {
            match *self.value.get(self.at)? {
                b' ' | b'\t' | b'\r' | b'\n' => self.at += 1,
                // A comment that never closes was cut off: all before it counts.
                b'(' => self.at = self.comments.end(self.at).unwrap_or(self.value.len()),
                b => return Some(b),
            }
        }
    }

    fn take(&mut self, wanted: u8) -> bool {
        let found = self.peek() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    fn run(&mut self, belongs: fn(&u8) -> bool) -> &'a [u8] {
        self.peek();
        let rest = &self.value[self.at..];
        let run = &rest[..rest.iter().position(|b| !belongs(b)).unwrap_or(rest.len())];
        self.at += run.len();
        run
    }

    /// Letters; 8-bit bytes too, so that a weekday of another language is a word.
    fn word(&mut self) -> Option<&'a [u8]> {
        Some(self.run(|b| b.is_ascii_alphabetic() || *b >= 0x80)).filter(|word| !word.is_empty())
    }

    fn digits(&mut self) -> &'a [u8] {
        self.run(u8::is_ascii_digit)
    }

    fn number(&mut self, lengths: std::ops::RangeInclusive<usize>) -> Option<i64> {
        let digits = self.digits();
        lengths.contains(&digits.len()).then(|| value_of(digits))
    }

    /// The day of the week says nothing that the date does not: a wrong one, and before a comma one of any language, is
    /// passed over.
    fn weekday(&mut self) -> Option<()> {
        if let Some(word) = self.word() {
            self.take(b'.');
            let known = WEEKDAYS.iter().any(|name| is_name(word, name));
            if !self.take(b',') && !known {
                return None;
            }
        }
        Some(())
    }

    /// Two and three digits as RFC 5322, section 4.3 reads them.
    fn year(&mut self) -> Option<i64> {
        let digits = self.digits();
        let year = value_of(digits.get(..4).unwrap_or(digits));
        match digits.len() {
            2 if year < 50 => Some(2000 + year),
            2 | 3 => Some(1900 + year),
            4 => Some(year),
            _ => None,
        }
    }

    fn time(&mut self) -> Option<(i64, i64, i64)> {
        let hour = self.number(1..=2)?;
        let minute = if self.take(b':') { self.number(2..=2)? } else { return None };
        let second = if self.take(b':') { self.number(2..=2)? } else { 0 };
        // A leap second (:60) is the second after it, as everywhere in Unix.
        (hour < 24 && minute < 60 && second <= 60).then_some((hour, minute, second))
    }

    /// Seconds east of UTC. The sign of `GMT+0200` is the one of `+0200`; a name behind a number is a comment without
    /// brackets, unless it contradicts it for certain.
    fn zone(&mut self) -> Option<i64> {
        let before = self.word();
        let Some(sign @ (b'+' | b'-')) = self.peek() else {
            return before.and_then(named_zone);
        };
        if before.is_some_and(|word| !is_utc(word)) {
            return None;
        }
        self.at += 1;
        if !self.value.get(self.at).is_some_and(u8::is_ascii_digit) {
            return None;
        }
        let number = self.number(4..=4)?;
        let minutes = number / 100 * 60 + number % 100;
        if number % 100 > 59 || minutes > MAX_ZONE {
            return None;
        }
        let after = self.word().unwrap_or_default();
        let is = |name: &[u8]| after.eq_ignore_ascii_case(name);
        let doubtful = is(b"AM") || is(b"PM") || (is_utc(after) && minutes != 0) || !after.is_ascii();
        let seconds = if sign == b'-' { -minutes * 60 } else { minutes * 60 };
        (!doubtful).then_some(seconds)
    }
}

/// The number that at most four digits write.
fn value_of(digits: &[u8]) -> i64 {
    digits.iter().fold(0, |number, digit| number * 10 + i64::from(digit - b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &[u8]) -> Option<String> {
        parse(value).map(|date| humantime::format_rfc3339_seconds(date).to_string())
    }

    #[test]
    fn dates_as_they_are_written() {
        for (value, expected) in [
            // RFC 5322, section 3.3
            (" Mon, 23 Nov 2026 20:00:00 +0200", "2026-11-23T18:00:00Z"),
            (" 23 Nov 2026 20:00 -0530\r\n", "2026-11-24T01:30:00Z"),
            ("Sun, 29 Feb 2032 23:59:59 +0000", "2032-02-29T23:59:59Z"),
            ("1 Jan 1970 00:00:00 +0000", "1970-01-01T00:00:00Z"),
            ("31 Dec 9999 23:59:59 +0000", "9999-12-31T23:59:59Z"),
            ("1 Mar 2000 00:00:00 -0000", "2000-03-01T00:00:00Z"),
            // Month names: in full, three letters, any case
            ("23 NOVEMBER 2026 20:00:00 +0200", "2026-11-23T18:00:00Z"),
            ("Mon 1 May 2026 9:05:00 +0200", "2026-05-01T07:05:00Z"),
            ("Saturday, 5 september 2026 01:00:00 +0200", "2026-09-04T23:00:00Z"),
            // A weekday that is wrong, or of another language
            ("Tue, 23 Nov 2026 20:00:00 +0200", "2026-11-23T18:00:00Z"),
            ("m\u{e5}n, 23 Nov 2026 20:00:00 +0200", "2026-11-23T18:00:00Z"),
            ("lun., 23 Nov 2026 20:00:00 +0200", "2026-11-23T18:00:00Z"),
            // Numbers glued to a name, names beside a number
            ("Mon, 23 Nov 2026 20:00:00 GMT+0200", "2026-11-23T18:00:00Z"),
            ("Mon, 23 Nov 2026 20:00:00 UTC-0130", "2026-11-23T21:30:00Z"),
            ("Mon, 23 Nov 2026 20:00:00 utc+0000", "2026-11-23T20:00:00Z"),
            ("Mon, 23 Nov 2026 20:00:00 GMT +0200", "2026-11-23T18:00:00Z"),
            ("Mon, 23 Nov 2026 20:00:00+0200 (CEST)", "2026-11-23T18:00:00Z"),
            ("Mon, 23 Nov 2026 20:00:00 +0800 CST", "2026-11-23T12:00:00Z"),
            ("Mon, 23 Nov 2026 20:00:00 +0000 UTC", "2026-11-23T20:00:00Z"),
            // Obsolete zones, either case (RFC 5322, section 4.3)
            ("13 Feb 22 00:04 EST", "2022-02-13T05:04:00Z"),
            ("13 Feb 22 00:04 edt", "2022-02-13T04:04:00Z"),
            ("13 Feb 22 00:04 CST", "2022-02-13T06:04:00Z"),
            ("13 Feb 22 00:04 Mdt", "2022-02-13T06:04:00Z"),
            ("13 Feb 22 00:04 PST", "2022-02-13T08:04:00Z"),
            ("13 Feb 22 00:04 UT", "2022-02-13T00:04:00Z"),
            ("13 Feb 22 00:04 z", "2022-02-13T00:04:00Z"),
            ("13 Feb 22 00:04 A", "2022-02-13T00:04:00Z"),
            // Obsolete years
            ("13 Feb 49 00:04 GMT", "2049-02-13T00:04:00Z"),
            ("13 Feb 99 00:04 GMT", "1999-02-13T00:04:00Z"),
            ("13 Feb 126 00:04 GMT", "2026-02-13T00:04:00Z"),
            // Comments, folds and blanks anywhere
            (" Mon\r\n ,(a(b)) 23\r\n\tNov (c) 2026 20 : 00 (d) : 00\r\n +0200 (e", "2026-11-23T18:00:00Z"),
            ("(it is) Mon, 23 Nov 2026 20:00:00 +0200 (\\) EET)", "2026-11-23T18:00:00Z"),
            // Leap seconds
            ("31 Dec 2016 23:59:60 +0000", "2017-01-01T00:00:00Z"),
            // A moment after 1970 in a year before, and the other way round
            ("31 Dec 1969 23:00 -0200", "1970-01-01T01:00:00Z"),
        ] {
            assert_eq!(read(value.as_bytes()).as_deref(), Some(expected), "{value:?}");
        }
        assert_eq!(
            read(b"s\xf6n, 23 Nov 2026 20:00:00 +0200").as_deref(),
            Some("2026-11-23T18:00:00Z"),
            "a weekday in Latin-1"
        );
    }

    #[test]
    fn in_doubt_unread() {
        for value in [
            // Months of other languages, or of no language
            "lun, 23 août 2026 20:00:00 +0000",
            "ma, 23 marras 2026 20:00:00 +0200",
            "23 Okt 2026 20:00:00 +0200",
            "23 Mai 2026 20:00:00 +0200",
            "23 Dez 2026 20:00:00 +0200",
            "23 Novem 2026 20:00:00 +0200",
            "23 nov. 2026 20:00:00 +0200",
            "23 Sept 2026 20:00:00 +0200",
            "23 11 2026 20:00:00 +0200",
            "23 月 2026 20:00:00 +0200",
            // Zones of other lengths, or that nobody knows
            "23 Nov 2026 20:00:00 +2",
            "23 Nov 2026 20:00:00 -600",
            "23 Nov 2026 20:00:00 +02",
            "23 Nov 2026 20:00:00 +02:00",
            "23 Nov 2026 20:00:00 +02000",
            "23 Nov 2026 20:00:00 + 0200",
            "23 Nov 2026 20:00:00 0200",
            "23 Nov 2026 20:00:00 UTC+2",
            "23 Nov 2026 20:00:00 GMT+02:00",
            "23 Nov 2026 20:00:00 +0260",
            "23 Nov 2026 20:00:00 +1500",
            "23 Nov 2026 20:00:00 CEST",
            "23 Nov 2026 20:00:00 IST",
            "23 Nov 2026 20:00:00 J",
            "23 Nov 2026 20:00:00 EST-0500",
            "23 Nov 2026 20:00:00 +0200 GMT",
            "23 Nov 2026 20:00:00",
            // Half days
            "23 Nov 2026 08:00:00 PM +0200",
            "23 Nov 2026 08:00:00 +0200 PM",
            "23 Nov 2026 08:00:00 PM",
            // Words between, dots for colons
            "23 Nov 2026 at 20:30:32 GMT+1",
            "24 Nov 2026 at 15:09:57 +0200",
            "24 Nov 2026, 15:09:57 +0200",
            "24 Nov 2026 15.09.57 +0200",
            "24. Nov 2026 15:09:57 +0200",
            "den 24 Nov 2026 15:09:57 +0200",
            "24 of Nov 2026 15:09:57 +0200",
            // Impossible days and times
            "31 Apr 2026 20:00:00 +0200",
            "29 Feb 2025 20:00:00 +0200",
            "29 Feb 2100 20:00:00 +0200",
            "0 Nov 2026 20:00:00 +0200",
            "32 Dec 2026 20:00:00 +0200",
            "023 Nov 2026 20:00:00 +0200",
            "23 Nov 2026 24:00:00 +0200",
            "23 Nov 2026 20:60:00 +0200",
            "23 Nov 2026 20:00:61 +0200",
            "23 Nov 2026 20:0:0 +0200",
            "23 Nov 2026 2000 +0200",
            "23 Nov 2026 +0200",
            // Years
            "23 Nov 6 20:00:00 +0200",
            "23 Nov 02026 20:00:00 +0200",
            "23 Nov 12026 20:00:00 +0200",
            "23 Nov 1950 20:00:00 +0200",
            "23 Nov 70 20:00:00x +0200",
            "1 Jan 1970 00:00:00 +0200",
            "31 Dec 9999 23:00:00 -0200",
            "23 Nov 99999999999999999999999 20:00:00 +0200",
            // Other forms
            "Mon Nov 23 20:00:00 2026",
            "Mon Nov 23 20:00:00 EST 2026",
            "Nov 23, 2026 20:00:00 +0200",
            "2026-11-23T20:00:00Z",
            "2026-11-23 20:00:00 +0200",
            "11/23/2026 20:00:00 +0200",
            "23-Nov-2026 20:00:00 +0200",
            "1795456800",
            "=?utf-8?Q?Mon?=, 23 Nov 2026 20:00:00 +0200",
            // Junk behind
            "23 Nov 2026 20:00:00 +0200 x y",
            "23 Nov 2026 20:00:00 +0200;",
            "23 Nov 2026 20:00:00 +0200 \u{e5}",
            "23 Nov 2026 20:00:00.5 +0200",
            "23 Nov 2026 20:00:00 +0200\0",
            // Nothing at all
            "",
            " \r\n",
            "never",
            "Mon,",
            "(",
            "(Mon, 23 Nov 2026 20:00:00 +0200",
        ] {
            assert_eq!(read(value.as_bytes()), None, "{value:?}");
        }
        assert_eq!(read(b"\xff\xfe 23 Nov 2026 20:00:00 +0200"), None);
        assert_eq!(read(b"23 Nov\xa02026 20:00:00 +0200"), None);
    }

    #[test]
    fn days_are_counted_like_humantime_does() {
        let mut random = fastrand::Rng::with_seed(15);
        for _ in 0..2000 {
            let (year, month) = (random.i64(1970..=9999), random.i64(1..=12));
            let day = random.i64(1..=days_of(month, year));
            let name = &MONTHS[usize::try_from(month).unwrap() - 1][..3];
            let value = format!("{day} {name} {year:04} 12:34:56 +0000");
            assert_eq!(
                read(value.as_bytes()),
                Some(format!("{year:04}-{month:02}-{day:02}T12:34:56Z")),
                "{value}"
            );
        }
    }

    #[test]
    fn long_values_cost_their_length() {
        let size = 1 << 20;
        for pattern in ["(", "()", "(\\", "Mon", "1", " ", "\r\n ", ":", "Mon,", "+0200 "] {
            let value = pattern.repeat(size / pattern.len());
            assert_eq!(parse(value.as_bytes()), None);
            parse(format!("23 Nov 2026 20:00:00 +0200{value}").as_bytes());
        }
        let nested = format!("{}{} 23 Nov 2026 20:00:00 +0200", "(".repeat(size), ")".repeat(size));
        assert!(parse(nested.as_bytes()).is_some());
    }

    #[test]
    fn no_input_panics() {
        let mut random = fastrand::Rng::with_seed(5);
        let pieces: [&[u8]; 16] = [
            b"Mon", b",", b"23", b"Nov", b"2026", b":", b"59", b"60", b"+", b"0200", b"GMT", b"(", b")",
            b"\\", b" ", b"\xff",
        ];
        for _ in 0..20_000 {
            let value: Vec<u8> =
                (0..random.usize(..14)).flat_map(|_| pieces[random.usize(..16)].iter().copied()).collect();
            parse(&value);
        }
    }
}
