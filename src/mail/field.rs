//! Header fields as lines (RFC 5322, section 2.2), and where a header ends.
//!
//! In: raw bytes. Out: names and values as they stand there.
//! Promise: a line counts as a field exactly where Postfix's `is_header` says so: a name of printable ASCII, blanks, a
//! colon. What Postfix calls the body is the body here.

use std::borrow::Cow;

/// Cuts a head into (name, value) pairs; folds stay in the value. Lines that belong to no field are left out:
/// an mbox `From ` line, or what a broken client put before its first field.
pub fn fields(raw: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = raw;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let mut end = line_end(rest, 0);
            while end < rest.len() && is_continuation(&rest[end..]) {
                end = line_end(rest, end);
            }
            let (field, after) = rest.split_at(end);
            rest = after;
            if let Some(found) = name_and_value(field) {
                return Some(found);
            }
        }
        None
    })
}

/// Longest line that Postfix's SMTP and LMTP clients send (`smtp_line_length_limit`).
const MAX_SENT_LINE: usize = 998;

/// The value as it was before Postfix's LMTP client broke it: a line that is too long for SMTP gets a line break and a
/// blank after each 998 bytes, in the middle of whatever stands there. `before` is what stands before the value in its
/// line: the name and the colon.
pub(super) fn unbroken(value: &[u8], before: usize) -> Cow<'_, [u8]> {
    if value.len() + before <= MAX_SENT_LINE {
        return Cow::Borrowed(value);
    }
    let mut whole = Vec::with_capacity(value.len());
    let (mut from, mut length) = (0, before);
    for end in memchr::memmem::find_iter(value, b"\r\n ") {
        length += end - from;
        whole.extend_from_slice(&value[from..end]);
        // The blank that was put in does not count to the next line.
        if length == MAX_SENT_LINE {
            (from, length) = (end + 3, 0);
        } else {
            (from, length) = (end, 0);
            // The line break itself is no part of the line behind it.
            whole.extend_from_slice(b"\r\n");
            from += 2;
        }
    }
    whole.extend_from_slice(&value[from..]);
    Cow::Owned(whole)
}

/// Where the body of a message starts that nobody has cut yet, by the rules of Postfix's smtpd and cleanup: lines
/// `From ` before the first field belong to the header, and the first line that is no field ends it. The answer is the
/// length of the header and where the body starts: behind the empty line, or at once where there is none.
pub fn header_end(message: &[u8]) -> (usize, usize) {
    let mut at = 0;
    let mut any = false;
    while at < message.len() {
        let end = line_end(message, at);
        let line = &message[at..end];
        let mailbox_line = !any && is_mailbox_line(line);
        if is_empty(line) {
            return (at, end);
        }
        if !(mailbox_line || is_field(line) || (any && is_continuation(line))) {
            return (at, at);
        }
        any |= !mailbox_line;
        at = end;
    }
    (message.len(), message.len())
}

/// True for the first line of a field.
pub(super) fn is_field(line: &[u8]) -> bool {
    name_and_value(line).is_some()
}

/// True for a line that goes on with the field before it.
pub(super) fn is_continuation(line: &[u8]) -> bool {
    matches!(line.first(), Some(b' ' | b'\t'))
}

/// True for the line between header and body.
pub(super) fn is_empty(line: &[u8]) -> bool {
    matches!(line, b"\r\n" | b"\n")
}

fn name_and_value(field: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = field.iter().take_while(|&&b| b.is_ascii_graphic() && b != b':').count();
    let blanks = field[length..].iter().take_while(|&&b| matches!(b, b' ' | b'\t')).count();
    let value = field[length + blanks..].strip_prefix(b":")?;
    (length > 0).then(|| (&field[..length], value))
}

fn line_end(bytes: &[u8], from: usize) -> usize {
    memchr::memchr(b'\n', &bytes[from..]).map_or(bytes.len(), |n| from + n + 1)
}

/// `From `, or quoted `>From `: what mailbox files put before a message; smtpd makes an X-Mailbox-Line field of it.
fn is_mailbox_line(line: &[u8]) -> bool {
    line[line.iter().take_while(|&&b| b == b'>').count()..].starts_with(b"From ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_ends_where_postfix_ends_it() {
        for (message, header, body) in [
            ("A: b\r\n\r\nbody", "A: b\r\n", "body"),
            ("A: b\r\nno field\r\nC: d\r\n\r\nbody", "A: b\r\n", "no field\r\nC: d\r\n\r\nbody"),
            ("A: b\r\n\tfolded\r\nC : d\r\n", "A: b\r\n\tfolded\r\nC : d\r\n", ""),
            ("From x Mon\r\nA: b\r\n\r\n", "From x Mon\r\nA: b\r\n", ""),
            (">From x\r\n>>From y\r\nA: b\r\n", ">From x\r\n>>From y\r\nA: b\r\n", ""),
            ("A: b\r\nFrom x\r\n", "A: b\r\n", "From x\r\n"),
            ("\r\nA: b\r\n", "", "A: b\r\n"),
            (" A: b\r\n", "", " A: b\r\n"),
            (": b\r\n", "", ": b\r\n"),
            ("A\u{e5}: b\r\n", "", "A\u{e5}: b\r\n"),
            ("A b: c\r\n", "", "A b: c\r\n"),
            ("", "", ""),
        ] {
            let (end, start) = header_end(message.as_bytes());
            assert_eq!((&message[..end], &message[start..]), (header, body), "{message:?}");
        }
    }

    #[test]
    fn what_lmtp_broke_is_whole_again() {
        let list = (0..200).map(|n| format!("bo{n}@acme.test")).collect::<Vec<_>>().join(",");
        for name in ["To:", "Subject: "] {
            let line = format!("{name}{list}");
            let broken = line.as_bytes().chunks(998).collect::<Vec<_>>().join(&b"\r\n "[..]);
            assert_eq!(unbroken(&broken[name.len()..], name.len()).as_ref(), list.as_bytes());
        }
        // Folds of the sender stay.
        for folded in [list.replace(',', ",\r\n "), list.replace(',', ",\r\n\t"), "x".repeat(2000)] {
            assert_eq!(unbroken(folded.as_bytes(), 3).as_ref(), folded.as_bytes());
        }
        assert!(matches!(unbroken(b" a\r\n b", 3), Cow::Borrowed(_)));
    }

    #[test]
    fn names_and_values() {
        let found: Vec<_> = fields(b"junk\r\nA : b\r\n c\r\n: none\r\nD:\r\n").collect();
        assert_eq!(found, [(&b"A"[..], &b" b\r\n c\r\n"[..]), (b"D", b"\r\n")]);
    }
}
