//! Address lists of header fields (RFC 5322, section 3.4).
//!
//! In: the value of an address field. Out: [`Mailbox`] values.
//! Promise: what is no address is left out and the rest is read on; the cost is linear.

use super::{
    address::{Address, Closers, last_unquoted, parse_addr_spec, split_comments},
    encoded_word::decode_unstructured,
    text::is_blank,
};

/// One mailbox of a header: an address and the decoded name beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mailbox {
    /// Display name or trailing comment, decoded, one line; none if absent or blank.
    pub name: Option<String>,
    /// The address.
    pub address: Address,
}

/// An element of an address list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Element {
    /// A mailbox.
    Mailbox(Mailbox),
    /// Something that is no address.
    Skipped,
}

/// What a From field says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct From {
    /// Its mailboxes.
    pub mailboxes: Vec<Mailbox>,
    /// Elements that are no address.
    pub skipped: usize,
    /// Two readings name different mailboxes.
    pub ambiguous: bool,
}

pub fn mailboxes(value: &[u8], _fallback: Option<&str>) -> impl Iterator<Item = Element> {
    parse_list(value).into_iter().map(Element::Mailbox)
}

pub fn read_from(value: &[u8], _fallback: Option<&str>) -> From {
    From { mailboxes: parse_list(value), skipped: 0, ambiguous: false }
}

pub fn is_cut(_value: &[u8]) -> bool {
    false
}

/// Parses the value of an address header: mailboxes and groups (RFC 5322, section 3.4), obsolete forms included.
///
/// An element that is no address is left out; the others are not harmed by it.
pub fn parse_list(value: &[u8]) -> Vec<Mailbox> {
    split_elements(value).into_iter().filter_map(parse_mailbox).collect()
}

/// Cuts a list at `,` `;` and after the `:` of a group name, outside quotes, comments, brackets and literals.
fn split_elements(value: &[u8]) -> Vec<&[u8]> {
    let mut elements = Vec::new();
    let mut closers = Closers::default();
    let last_bracket = value.iter().rposition(|&b| b == b'>');
    let (mut start, mut i, mut in_angle) = (0, 0, false);
    while i < value.len() {
        match value[i] {
            b'"' | b'(' | b'[' => i = closers.closing(value, i).unwrap_or(i),
            b'\\' => i += 1,
            b'<' => in_angle = true,
            b'>' => in_angle = false,
            // A bracket that never closes must not swallow the rest of the list.
            b',' | b';' if !in_angle || last_bracket.is_none_or(|last| last < i) => {
                elements.push(&value[start..i]);
                (start, in_angle) = (i + 1, false);
            }
            b':' if !in_angle => start = i + 1,
            _ => {}
        }
        i += 1;
    }
    elements.push(value.get(start..).unwrap_or_default());
    elements
}

fn parse_mailbox(element: &[u8]) -> Option<Mailbox> {
    match last_unquoted(element, b'<') {
        Some(open) => {
            let rest = &element[open + 1..];
            let inner = rest.split(|&b| b == b'>').next().unwrap_or(rest);
            Some(Mailbox { address: parse_addr_spec(inner).ok()?, name: display_name(&element[..open]) })
        }
        None => {
            let (bare, comment) = split_comments(element);
            Some(Mailbox {
                address: parse_addr_spec(&bare).ok()?,
                name: comment.and_then(|c| display_name(&c)),
            })
        }
    }
}

/// A phrase (RFC 5322, section 3.2.5) with its quotes resolved and encoded words decoded; none if nothing is left.
fn display_name(phrase: &[u8]) -> Option<String> {
    let mut plain = Vec::with_capacity(phrase.len());
    let (without_comments, _) = split_comments(phrase);
    let mut i = 0;
    while i < without_comments.len() {
        match without_comments[i] {
            b'"' => {}
            b'\\' if i + 1 < without_comments.len() => {
                i += 1;
                plain.push(without_comments[i]);
            }
            other => plain.push(other),
        }
        i += 1;
    }
    let name = decode_unstructured(&plain, None).split_whitespace().collect::<Vec<_>>().join(" ");
    if is_blank(&name) { None } else { Some(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_a_header() {
        type Expected = &'static [(&'static str, &'static str)];
        let cases: &[(&[u8], Expected)] = &[
            (b"Anna Aalto <anna@mycompany.test>", &[("Anna Aalto", "anna@mycompany.test")]),
            (
                b"\"Aalto, Anna\" <anna@x.test>, bo@acme.test",
                &[("Aalto, Anna", "anna@x.test"), ("", "bo@acme.test")],
            ),
            (b"anna@x.test (Anna (of X) Aalto)", &[("Anna Aalto", "anna@x.test")]),
            (
                b"Team: anna@x.test, Bo <bo@acme.test>; carl@else.test",
                &[("", "anna@x.test"), ("Bo", "bo@acme.test"), ("", "carl@else.test")],
            ),
            (b"undisclosed-recipients:;", &[]),
            (b"=?utf-8?Q?=C3=85sa_=C3=96berg?= <asa@x.test>", &[("Åsa Öberg", "asa@x.test")]),
            (b"\"=?iso-2022-jp?B?GyRCRnxLXBsoQg==?=\" <n@x.test>", &[("日本", "n@x.test")]),
            (
                b"Anna\r\n\tAalto\r\n <anna@x.test>,\r\n bo@acme.test",
                &[("Anna Aalto", "anna@x.test"), ("", "bo@acme.test")],
            ),
            (b"not an address, bo@acme.test", &[("", "bo@acme.test")]),
            (b"\"unclosed <a@x.test>, bo@acme.test", &[("unclosed", "a@x.test"), ("", "bo@acme.test")]),
            (b"Bo <bo@acme.test, carl@else.test", &[("Bo", "bo@acme.test"), ("", "carl@else.test")]),
            (b"anna . aalto @ x . test", &[("", "anna.aalto@x.test")]),
            (b"=?utf-8?Q?a=0D=0Ab?= <a@x.test>", &[("a b", "a@x.test")]),
            (b"\"\" <a@x.test>", &[("", "a@x.test")]),
            (b"<@r.test:a@x.test>", &[("", "a@x.test")]),
            (b"a..b.@docomo.test", &[("", "\"a..b.\"@docomo.test")]),
        ];
        for (given, expected) in cases {
            let found: Vec<_> = parse_list(given)
                .into_iter()
                .map(|m| (m.name.unwrap_or_default(), m.address.to_string()))
                .collect();
            let expected: Vec<_> = expected.iter().map(|(n, a)| (n.to_string(), a.to_string())).collect();
            assert_eq!(found, expected, "{}", given.escape_ascii());
        }
    }

    #[test]
    fn hostile_lists_cost_no_more_than_their_length() {
        // Each of these took the square of its length once: minutes for a megabyte. Now it is milliseconds, so a test
        // that hangs is the failure.
        for pattern in ["(", "\"", "[", "<,", "(\"[<,", "\\(", "a<", " . ", "<@"] {
            let value = pattern.repeat(1_000_000 / pattern.len()) + ">,last@x.test";
            let _ = parse_list(value.as_bytes());
        }
    }
}
