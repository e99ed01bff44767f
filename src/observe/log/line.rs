//! The line of an event, for people: the text format shows it, and it is the journal's `MESSAGE`.
//!
//! In: an event. Out: `QUEUEID: words 550 5.7.1 [reason] from=<…> to=<…> key=value …`: the queue id first, as Postfix
//! writes it, then what happened, then the fields in the order in which the event names them.
//! Promise: one line of printable text, whatever the values hold. A value with more than plain characters stands in
//! quotes, and what could end it is escaped: nobody forges a second line, another field or another queue id.

use crate::source::{NUMBER, without_numbers};
use std::fmt::{self, Write};
use tracing::{
    Event,
    field::{Field, Visit},
};

/// A longer value is cut. With [`LONGEST_LINE`] it keeps an entry of the journal within one datagram (a socket takes
/// 208 KiB at once), so that nothing has to be passed as a file.
const LONGEST_VALUE: usize = 4 * 1024;

/// A longer line is cut.
const LONGEST_LINE: usize = 16 * 1024;

/// A queue id is no longer, or it is not Postfix's.
const LONGEST_QUEUE_ID: usize = 64;

/// A line while it is put together; used again and again, so that nothing is allocated.
#[derive(Default)]
pub(super) struct Line {
    queue_id: String,
    words: String,
    fields: String,
    /// A value that has to be written before it can be looked at.
    value: String,
    has_reply: bool,
}

impl Line {
    /// Takes an event; `each` gets its fields as they are, the words left out.
    pub(super) fn read(&mut self, event: &Event<'_>, each: &mut dyn FnMut(&str, &str)) {
        self.queue_id.clear();
        self.words.clear();
        self.fields.clear();
        self.has_reply = false;
        event.record(&mut Reader { line: self, each });
    }

    /// Appends the line, without its end.
    pub(super) fn append_to(&self, out: &mut Vec<u8>) {
        let start = out.len();
        if !self.queue_id.is_empty() {
            out.extend_from_slice(self.queue_id.as_bytes());
            out.extend_from_slice(b": ");
        }
        out.extend_from_slice(self.words.as_bytes());
        out.extend_from_slice(self.fields.as_bytes());
        if out.len() - start > LONGEST_LINE {
            let mut end = start + LONGEST_LINE;
            while out[end] & 0xC0 == 0x80 {
                end -= 1; // not within a character
            }
            out.truncate(end);
            out.extend_from_slice("…".as_bytes());
        }
    }

    fn take(&mut self, name: &str, value: &str) {
        let fields = &mut self.fields;
        match name {
            "message_id" => {} // for programs
            "queue_id" if value.is_empty() => {}
            "queue_id" if is_queue_id(value) => self.queue_id.push_str(value),
            "message" => escape(&mut self.words, value, ""),
            "reply" => {
                self.has_reply = true;
                fields.push(' ');
                fields.push_str(value);
            }
            "status" if self.has_reply => {
                fields.push(' ');
                escape(fields, value, "");
            }
            "reason" if self.has_reply => bracket(fields, " [", value, ']'),
            "sender" => bracket(fields, " from=<", value, '>'),
            "recipient" => bracket(fields, " to=<", value, '>'),
            name => {
                fields.push(' ');
                fields.push_str(name);
                fields.push('=');
                if is_plain(value) { fields.push_str(value) } else { bracket(fields, "\"", value, '"') }
            }
        }
    }
}

struct Reader<'a> {
    line: &'a mut Line,
    each: &'a mut dyn FnMut(&str, &str),
}

impl Reader<'_> {
    fn take(&mut self, name: &str, value: &str) {
        if matches!(name, "error" | "reason") && value.contains(NUMBER) {
            return self.take(name, &without_numbers(value));
        }
        if name != "message" {
            (self.each)(name, value);
        }
        self.line.take(name, value);
    }
}

impl Visit for Reader<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if value.len() <= LONGEST_VALUE {
            self.take(field.name(), value);
        } else {
            self.record_debug(field, &format_args!("{value}"));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = std::mem::take(&mut self.line.value);
        text.clear();
        let _ = write!(Cut(&mut text), "{value:?}"); // an error is the end of what is taken
        self.take(field.name(), &text);
        self.line.value = text;
    }
}

/// Takes as much as a value may have.
struct Cut<'a>(&'a mut String);

impl Write for Cut<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LONGEST_VALUE.saturating_sub(self.0.len());
        if text.len() <= room {
            self.0.push_str(text);
            return Ok(());
        }
        self.0.push_str(&text[..text.floor_char_boundary(room)]);
        self.0.push('…');
        Err(fmt::Error)
    }
}

/// Letters and digits, as Postfix's are. Over LMTP it comes from whoever connects.
fn is_queue_id(text: &str) -> bool {
    text.len() <= LONGEST_QUEUE_ID && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// True if a value needs no quotes.
fn is_plain(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic() && !b"\"'`\\=<>".contains(&b))
}

/// A value between two marks, of which it can have none.
fn bracket(out: &mut String, open: &str, value: &str, close: char) {
    out.push_str(open);
    let special = match close {
        '>' => "<>\\",
        ']' => "[]\\",
        _ => "\"\\",
    };
    escape(out, value, special);
    out.push(close);
}

/// Appends a text with everything escaped that is not printable, and what is `special`.
fn escape(out: &mut String, text: &str, special: &str) {
    if text.bytes().all(|b| (b' '..=b'~').contains(&b)) && !text.contains(|c| special.contains(c)) {
        return out.push_str(text);
    }
    for c in text.chars() {
        if special.contains(c) {
            out.push('\\');
            out.push(c);
        } else if c == ' ' || c.is_ascii_graphic() {
            out.push(c);
        } else {
            out.extend(c.escape_debug());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(fields: &[(&str, &str)]) -> String {
        let mut line = Line::default();
        for (name, value) in fields {
            line.take(name, value);
        }
        let mut out = Vec::new();
        line.append_to(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn one_line_and_nothing_forged() {
        for (fields, expected) in [
            (&[("message", "held"), ("queue_id", "4bXyZ12345z")][..], "4bXyZ12345z: held"),
            (&[("message", "held"), ("queue_id", "")], "held"),
            // Over LMTP anybody may say what the queue id is.
            (&[("message", "held"), ("queue_id", "A\nB: held")], r#"held queue_id="A\nB: held""#),
            (&[("message", "held"), ("queue_id", "A: held")], r#"held queue_id="A: held""#),
            (
                &[("message", "held"), ("queue_id", &"A".repeat(65))],
                &format!("held queue_id={}", "A".repeat(65)),
            ),
            (
                &[("message", "a\nb\r\x1b[2J\u{7f}\u{85}\u{2028}\u{202e}\0")],
                r"a\nb\r\u{1b}[2J\u{7f}\u{85}\u{2028}\u{202e}\0",
            ),
            (&[("reply", "550"), ("status", "5.7.1"), ("reason", "no-user")], " 550 5.7.1 [no-user]"),
            (&[("reason", "no answer")], r#" reason="no answer""#),
            (&[("sender", ""), ("recipient", "a@b.test")], " from=<> to=<a@b.test>"),
            (&[("sender", "\"a> to=<x\"@b.test")], r#" from=<"a\> to=\<x"@b.test>"#),
            (&[("sender", "ä@b.test\n4bXy: refused")], r" from=<ä@b.test\n4bXy: refused>"),
            (
                &[("key", "b3:5d1f"), ("known", "true"), ("elapsed_ms", "7")],
                " key=b3:5d1f known=true elapsed_ms=7",
            ),
            (&[("error", "")], r#" error="""#),
            (&[("error", "a=b")], r#" error="a=b""#),
            (&[("error", "say \"no\" \\ key=x\n")], r#" error="say \"no\" \\ key=x\n""#),
            (&[("error", "Käse 奶酪")], r#" error="Käse 奶酪""#),
            (&[("message_id", "d3722e")], ""),
        ] {
            assert_eq!(line(fields), expected);
        }
    }

    #[test]
    fn lines_and_values_have_an_end() {
        let mut value = String::new();
        assert!(write!(Cut(&mut value), "x{}", "ä".repeat(LONGEST_VALUE)).is_err());
        assert_eq!(value.len(), LONGEST_VALUE - 1 + "…".len(), "a character is whole");
        let fields = [("error", value.as_str()); 5];
        let line = line(&fields);
        assert!(line.len() <= LONGEST_LINE + "…".len() && line.ends_with("ä…"), "{}", line.len());
    }
}
