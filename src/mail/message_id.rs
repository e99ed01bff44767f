//! Message ids (RFC 5322, section 3.6.4).
//!
//! In: the raw value of Message-ID, In-Reply-To or References. Out: the ids in it, without brackets.
//! Promise: an id holds no white space (a gateway that folded one in the middle and the answer that did not name the
//! same), no control characters, at most [`MAX_ID`] bytes, and is never empty. One pass, and a second where every
//! bracket stands in quotes.
//! Fails: never; a value that names nothing gives no ids.

use super::comment::{Comments, closing_quote};
use std::collections::VecDeque;

/// Ids kept of References and In-Reply-To: the newest say where a thread belongs.
const MAX_REFERENCES: usize = 100;

/// Longest id kept, in bytes: an id stands on one line, and no line is longer (RFC 5322, section 2.1.1).
const MAX_ID: usize = 998;

/// Message ids of a field, the newest [`MAX_REFERENCES`].
///
/// Phrases and comments beside brackets are passed over (`Your message of "Monday" <a@b>`, RFC 5322, section 4.5.4).
/// Without any bracket words with an `@` are ids, or else the only word.
pub(super) fn parse(value: &[u8]) -> Vec<String> {
    let mut ids = in_brackets(value, true);
    if ids.is_empty() {
        ids = in_brackets(value, false);
    }
    if ids.is_empty() {
        ids = bare(value);
    }
    ids.into()
}

/// Ids in `<…>`. An id that is not closed ends at the next `<`, or with the field.
fn in_brackets(value: &[u8], quoted_phrases: bool) -> VecDeque<String> {
    let (mut comments, mut ids, mut i) = (Comments::of(value), VecDeque::new(), 0);
    let mut quotes = quoted_phrases;
    while let Some(&b) = value.get(i) {
        match b {
            b'(' => i = comments.end(i).unwrap_or(i + 1),
            b'"' if quotes => match closing_quote(value, i) {
                Some(end) => i = end + 1,
                None => (quotes, i) = (false, i + 1),
            },
            b'\\' => i += 2,
            b'<' => {
                let end = end_of_id(value, i + 1);
                keep(&mut ids, &value[i + 1..end]);
                i = if value.get(end) == Some(&b'>') { end + 1 } else { end };
            }
            _ => i += 1,
        }
    }
    ids
}

/// Where an id ends that starts at `from`: at `>`, before `<`, or with the field. Both are text in a quoted left side;
/// a quote that closes elsewhere than before `@` or `.` is a character like any other.
fn end_of_id(value: &[u8], from: usize) -> usize {
    let mut i = from;
    while let Some(&b) = value.get(i) {
        match b {
            b'<' | b'>' => return i,
            b'\\' => i += 2,
            b'"' => match closing_quote(value, i) {
                Some(end) if matches!(value.get(end + 1), Some(b'@' | b'.')) => i = end + 1,
                _ => i += 1,
            },
            _ => i += 1,
        }
    }
    value.len()
}

/// Ids without brackets, in a field that has none.
fn bare(value: &[u8]) -> VecDeque<String> {
    let (mut comments, mut text, mut i) = (Comments::of(value), Vec::with_capacity(value.len()), 0);
    while let Some(&b) = value.get(i) {
        match comments.end(i) {
            Some(end) => {
                text.push(b' ');
                i = end;
            }
            None => {
                text.push(b);
                i += 1;
            }
        }
    }
    let is_edge = |b: &u8| matches!(b, b'<' | b'>' | b',' | b';');
    let words = || text.split(u8::is_ascii_whitespace).filter(|word| !word.iter().all(is_edge));
    let only_one = words().nth(1).is_none();
    let mut ids = VecDeque::new();
    for word in words().filter(|word| only_one || word.contains(&b'@')) {
        let from = word.iter().position(|b| !is_edge(b)).unwrap_or_default();
        let to = word.iter().rposition(|b| !is_edge(b)).map_or(from, |last| last + 1);
        keep(&mut ids, &word[from..to]);
    }
    ids
}

fn keep(ids: &mut VecDeque<String>, raw: &[u8]) {
    let id = safe(raw);
    if id.is_empty() {
        return;
    }
    if ids.len() == MAX_REFERENCES {
        ids.pop_front();
    }
    ids.push_back(id);
}

/// Bytes that are no UTF-8 are read as Latin-1: whatever the sender meant, different ids stay different.
fn safe(raw: &[u8]) -> String {
    // White space and controls are few, or this is no id; what is cut here is cut again below.
    let raw = &raw[..raw.len().min(4 * MAX_ID)];
    let shown = |c: &char| !c.is_whitespace() && !c.is_control();
    let readable = match std::str::from_utf8(raw) {
        Ok(_) => raw.len(),
        Err(error) => error.valid_up_to(),
    };
    let mut id: String = match std::str::from_utf8(&raw[..readable]) {
        Ok(text) if readable == raw.len() || readable >= MAX_ID => text.chars().filter(shown).collect(),
        _ => raw.iter().map(|&b| char::from(b)).filter(shown).collect(),
    };
    id.truncate(id.floor_char_boundary(MAX_ID));
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_in_all_forms_seen() {
        for (value, expected) in [
            (" <abc@x.test>\r\n", &["abc@x.test"][..]),
            ("\r\n <a@x>\r\n\t<b@x><c@x>,<d@x>", &["a@x", "b@x", "c@x", "d@x"]),
            // Folded in the middle
            ("<abc\r\n def@x.test>", &["abcdef@x.test"]),
            ("<abc@\r\n\tx.test>", &["abc@x.test"]),
            ("< abc@x.test >", &["abc@x.test"]),
            ("<a b\tc@x>", &["abc@x"]),
            // Comments and phrases
            ("Your message of \"Mon, 23 Nov <x>\" <a@x> (was <b@x> (c))", &["a@x"]),
            ("Message from Anna <anna@x> of Monday", &["anna@x"]),
            ("(c) <a@x> (d) <b@x>", &["a@x", "b@x"]),
            ("5\" disk <a@x>", &["a@x"]),
            (":-( <a@x>", &["a@x"]),
            ("\"<a@x>\"", &["a@x"]),
            // Quoted left sides
            ("<\"a>b\"@x> <c@x>", &["\"a>b\"@x", "c@x"]),
            ("<\"a\\\"<b\"@x>", &["\"a\\\"<b\"@x"]),
            ("<\"a@x> <\"b@x>", &["\"a@x", "\"b@x"]),
            ("<[1]$\"@x> <b@x>", &["[1]$\"@x", "b@x"]),
            // No brackets at all
            ("abc@x.test", &["abc@x.test"]),
            ("a@x b@x,\r\n c@x", &["a@x", "b@x", "c@x"]),
            ("Your message of Monday, a@x", &["a@x"]),
            ("Your message of Monday", &[]),
            ("only (one)", &["only"]),
            // Brackets that are missing
            ("<a@x", &["a@x"]),
            ("<a@x <b@x>", &["a@x", "b@x"]),
            ("a@x>", &["a@x"]),
            ("<<a@x>>", &["a@x"]),
            // Nothing
            ("", &[]),
            ("<>", &[]),
            ("< \r\n >", &[]),
            ("(<a@x>)", &[]),
            ("<", &[]),
            (">", &[]),
            ("\\", &["\\"]),
            ("<\\", &["\\"]),
        ] {
            assert_eq!(parse(value.as_bytes()), expected, "{value:?}");
        }
    }

    #[test]
    fn ids_are_safe_and_bounded() {
        assert_eq!(parse(b"<a\0b\x1b@x\xe5>"), ["ab@xå"]);
        assert_eq!(parse("<ä\u{2028}\u{85}\u{a0}@x>".as_bytes()), ["ä@x"]);
        assert_ne!(parse(b"<\xe5@x>"), parse(b"<\xe4@x>"));
        let long = parse(format!("<{}@x>", "å".repeat(4000)).as_bytes());
        assert_eq!(long, ["å".repeat(MAX_ID / 2)]);
        assert_eq!(parse(format!("<x{}@x>", "å".repeat(4000)).as_bytes())[0].chars().nth(1), Some('å'));
    }

    #[test]
    fn the_newest_are_kept() {
        let all: Vec<String> = (0..250).map(|n| format!("{n}@x")).collect();
        let value = all.iter().map(|id| format!("<{id}> ")).collect::<String>();
        assert_eq!(parse(value.as_bytes()), all[150..]);
        assert_eq!(parse(all.join(" ").as_bytes()), all[150..]);
    }

    #[test]
    fn long_values_cost_their_length() {
        for pattern in [
            "<", ">", "<>", "<a@x>", "(", ")", "()", "\"", "\\\"", "\"\\\"", "<\"", "<\"a\\", "\" <\"",
            "a@x ", " ", "\r\n ", "<\"\"@", "\"\"(",
        ] {
            let value = pattern.repeat((1 << 20) / pattern.len());
            assert!(parse(value.as_bytes()).len() <= MAX_REFERENCES, "{pattern}");
            let value = pattern.repeat((1 << 17) / pattern.len());
            for value in [format!("<{value}"), format!("\"{value}"), format!("{value}\"")] {
                assert!(parse(value.as_bytes()).len() <= MAX_REFERENCES, "{pattern}");
            }
        }
    }

    #[test]
    fn no_input_breaks_the_promise() {
        let mut random = fastrand::Rng::with_seed(3);
        let alphabet = b"<><>\"\"\\()@ab. \r\n,\xff\xc3\xa5\0";
        for _ in 0..20_000 {
            let value: Vec<u8> =
                (0..random.usize(..30)).map(|_| alphabet[random.usize(..alphabet.len())]).collect();
            for id in parse(&value) {
                assert!(!id.is_empty() && id.len() <= MAX_ID, "{}", value.escape_ascii());
                assert!(
                    !id.contains(|c: char| c.is_whitespace() || c.is_control()),
                    "{}",
                    value.escape_ascii()
                );
            }
        }
    }
}
