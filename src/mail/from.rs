//! The From field, read so that nobody passes for somebody else (RFC 5322, section 3.6.2).
//!
//! In: the value of the one From field. Out: a [`FromField`].
//! Promise: where the field is not written as RFC 5322 and 2047 have it (see [`is_well_formed`]), and by any way of
//! looking at its raw bytes more than one address can be found in it, it is ambiguous; the cost is linear.
//! Fails: never; a field that names nobody is no fault, and Sender is asked next.
//!
//! Why not decide as in To: the sender owns the activity, and a DMARC filter before us may have looked at the other
//! address. Filters take the first bracket or the last one, know encoded words or not, end at a NUL or not. None of
//! that has to be known here: what has one address has no second reading, and what is well-formed has one for everybody
//! who keeps to the RFC. A tidy text of a name, `"eve@evil.test" <anna@…>`, is common and therefore none of our business.

use super::{
    address::{Address, parse_written},
    address_list::{Element, ListReader, Mailbox, Quotes, is_cut},
    encoded_word::Atoms,
    text::is_invisible,
};
use std::ops::ControlFlow;

/// Who a From field names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FromField {
    /// Its mailboxes, in order.
    pub mailboxes: Vec<Mailbox>,
    /// How many elements are no address.
    pub skipped: usize,
    /// True if another reader may find other people in it than `mailboxes` says.
    pub ambiguous: bool,
}

/// Reads the value of a From field; `fallback` is the charset of raw names.
pub fn read_from(value: &[u8], fallback: Option<&str>) -> FromField {
    let mut from = FromField::default();
    for element in ListReader::new(value, fallback, Quotes::Strict) {
        match element {
            Element::Mailbox(mailbox) => from.mailboxes.push(mailbox),
            Element::Skipped => from.skipped += 1,
        }
    }
    let odd = !is_well_formed(value) && has_two_addresses(value, &from.mailboxes);
    from.ambiguous = odd || has_masked_domain(value);
    from
}

/// What separates words in the eyes of some reader.
fn is_special(b: u8) -> bool {
    b"()<>[]:;,\\\"".contains(&b)
}

fn is_odd_control(b: u8) -> bool {
    b.is_ascii_control() && !b.is_ascii_whitespace()
}

/// True if everybody who keeps to the RFCs finds the same mailboxes, and finds those that [`ListReader`] does.
///
/// Taken: mailboxes and groups divided by commas, comments, quoted strings, encoded words without special characters,
/// and of what is not the RFC's: an address as the name of another in brackets, and a name before a bare address.
/// Not taken, though legal: source routes, comments and quoted special characters within an address.
fn is_well_formed(value: &[u8]) -> bool {
    if value.iter().any(|&b| is_odd_control(b)) || is_cut(value) {
        return false;
    }
    let atoms = Atoms::of(value);
    // Who does not know encoded words sees the special characters in them; and who ends a word elsewhere sees others.
    let plain = |word: &[u8]| {
        let marks = word.iter().filter(|&&b| b == b'?').count();
        marks == 4 && !word.iter().any(|&b| is_special(b) || b.is_ascii_whitespace())
    };
    atoms.places().iter().all(|place| plain(&value[place.clone()])) && Grammar::new(value, atoms).holds()
}

/// The words of one mailbox so far.
#[derive(Default)]
struct Phrase {
    /// Words that are neither quoted nor encoded, nor an address.
    bare: usize,
    addresses: usize,
    ends_in_address: bool,
    any: bool,
    bracket: bool,
}

impl Phrase {
    /// Nothing at all, an address in brackets, or a bare one with at most a name before it.
    fn is_mailbox(&self) -> bool {
        !self.any || self.bracket || self.ends_in_address && self.addresses == 1 && self.bare <= 1
    }
}

struct Grammar<'a> {
    value: &'a [u8],
    atoms: Atoms,
    at: usize,
    group: bool,
    phrase: Phrase,
}

impl<'a> Grammar<'a> {
    fn new(value: &'a [u8], atoms: Atoms) -> Self {
        Self { value, atoms, at: 0, group: false, phrase: Phrase::default() }
    }

    fn holds(&mut self) -> bool {
        while self.at < self.value.len() {
            if self.step().is_none() {
                return false;
            }
        }
        !self.group && self.phrase.is_mailbox()
    }

    fn peek(&self) -> Option<u8> {
        self.value.get(self.at).copied()
    }

    /// Goes over one token; none if the grammar has no place for it.
    fn step(&mut self) -> Option<()> {
        match self.peek()? {
            b' ' | b'\t' | b'\r' | b'\n' => self.at += 1,
            b'(' => self.comment()?,
            b',' => {
                self.end_of_mailbox()?;
                self.at += 1;
            }
            b':' if !self.group && self.phrase.any && !self.phrase.bracket && self.phrase.addresses == 0 => {
                (self.group, self.phrase) = (true, Phrase::default());
                self.at += 1;
            }
            b';' if self.group => {
                self.end_of_mailbox()?;
                self.group = false;
                // Only a comma may follow; a mailbox that does finds a bracket before it.
                (self.phrase.any, self.phrase.bracket) = (true, true);
                self.at += 1;
            }
            _ if self.phrase.bracket => return None,
            b'<' => self.bracket()?,
            _ => self.word()?,
        }
        Some(())
    }

    fn end_of_mailbox(&mut self) -> Option<()> {
        std::mem::take(&mut self.phrase).is_mailbox().then_some(())
    }

    fn comment(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            match self.peek()? {
                b'\\' => self.at += 1,
                b'(' => depth += 1,
                b')' => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Some(());
            }
        }
    }

    /// `<` addr-spec `>`.
    fn bracket(&mut self) -> Option<()> {
        let inner = &self.value[self.at + 1..];
        let end = memchr::memchr(b'>', inner)?;
        if !is_tidy_address(inner[..end].trim_ascii()) {
            return None;
        }
        self.at += end + 2;
        (self.phrase.any, self.phrase.bracket) = (true, true);
        Some(())
    }

    fn word(&mut self) -> Option<()> {
        let start = self.at;
        let atom = self.atoms.end(start);
        if let Some(end) = atom {
            self.at = end;
        } else if self.value[start] == b'"' {
            self.quoted()?;
            if matches!(self.peek(), Some(b'@' | b'.')) {
                self.bare();
            }
        } else {
            self.bare();
        }
        let word = &self.value[start..self.at];
        // A word ends at a blank, or where a comment, a bracket or the list goes on; anything else was glued to it.
        let ended = self.peek().is_none_or(|b| b.is_ascii_whitespace() || b"(<,;:".contains(&b));
        if word.is_empty() || !ended {
            return None;
        }
        let quoted = word[0] == b'"' && word.ends_with(b"\"");
        let address = atom.is_none() && !quoted && word.contains(&b'@');
        if address && !is_tidy_address(word) {
            return None;
        }
        self.phrase.any = true;
        self.phrase.ends_in_address = address;
        self.phrase.addresses += usize::from(address);
        // `A. anna@…` may be one local part (RFC 5322, section 4.4), so `A.` is no name here.
        let dotted = word.ends_with(b".");
        if atom.is_none() && !quoted && !address {
            self.phrase.bare += if dotted { 2 } else { 1 };
        }
        Some(())
    }

    fn quoted(&mut self) -> Option<()> {
        loop {
            self.at += 1;
            match self.peek()? {
                b'\\' => self.at += 1,
                b'"' => break,
                _ => {}
            }
        }
        self.at += 1;
        Some(())
    }

    /// An atom with its dots and `@`, and the literal behind that.
    fn bare(&mut self) {
        while let Some(b) = self.peek() {
            if b == b'[' && self.value[..self.at].ends_with(b"@") {
                let literal = &self.value[self.at + 1..];
                let Some(end) =
                    literal.iter().position(|&b| !b.is_ascii_graphic() || is_special(b) && b != b':')
                else {
                    return;
                };
                if literal[end] != b']' {
                    return;
                }
                self.at += end + 2;
                return;
            }
            if b.is_ascii_whitespace() || is_special(b) {
                return;
            }
            self.at += 1;
        }
    }
}

/// An addr-spec that every reader takes whole: one `@`, no white space, no special character but round a local part in
/// quotes and a literal.
fn is_tidy_address(spec: &[u8]) -> bool {
    let Some(at) = spec.iter().position(|&b| b == b'@') else { return false };
    let (local, domain) = (&spec[..at], &spec[at + 1..]);
    let local = match local {
        [b'"', inner @ .., b'"'] => inner,
        _ if local.starts_with(b".") || local.contains(&b' ') || local.contains(&b'"') => return false,
        _ => local,
    };
    let domain = match domain {
        [b'[', inner @ .., b']'] if !inner.iter().any(|&b| is_special(b) && b != b':') => &b""[..],
        [] => return false,
        _ => domain,
    };
    let plain = |b: &u8| !is_special(*b) && *b != b'@' && (*b == b' ' || !b.is_ascii_whitespace());
    !local.is_empty() && local.iter().all(plain) && domain.iter().all(|b| plain(b) && *b != b' ')
}

/// One end of what looks like an address, in the form in which equal ones are the same bytes.
#[derive(Default)]
struct Seen {
    local: Option<String>,
    domain: Option<String>,
}

impl Seen {
    /// Stops at somebody else than before.
    fn add(&mut self, local: Option<&str>, domain: Option<&str>) -> ControlFlow<()> {
        for (known, new) in [(&mut self.local, local), (&mut self.domain, domain)] {
            match (known.as_deref(), new) {
                (Some(known), Some(new)) if known != new => return ControlFlow::Break(()),
                (None, Some(new)) => *known = Some(new.to_owned()),
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }

    fn add_address(&mut self, address: &Address) -> ControlFlow<()> {
        match address.folded().rsplit_once('@') {
            Some((local, domain)) => self.add(Some(local), Some(domain)),
            None => ControlFlow::Continue(()),
        }
    }
}

/// True if a domain becomes another one by the mapping of UTS 46: letters of full width are ASCII then, and so are full
/// stops. Who asks DNS for the domain as it stands there finds nobody's policy.
fn has_masked_domain(value: &[u8]) -> bool {
    if value.is_ascii() {
        return false;
    }
    let stops = ['\u{3002}', '\u{ff0e}', '\u{ff61}'];
    let is_masked = |label: &str| {
        !label.is_ascii() && idna::domain_to_ascii(label).is_ok_and(|ascii| !ascii.starts_with("xn--"))
    };
    let tokens = value.split(|&b| b.is_ascii_whitespace() || is_special(b)).map(String::from_utf8_lossy);
    tokens
        .filter_map(|token| token.rsplit_once('@').map(|(_, domain)| domain.to_owned()))
        .any(|domain| domain.contains(stops) || domain.trim_matches(is_invisible).split('.').any(is_masked))
}

/// True if the raw bytes, whatever is quoted, encoded or a comment in them, hold two addresses, or pieces of two.
fn has_two_addresses(value: &[u8], mailboxes: &[Mailbox]) -> bool {
    let mut seen = Seen::default();
    let mut tokens = value
        .split(|&b| b.is_ascii_whitespace() || is_odd_control(b) || is_special(b) && b != b'[' && b != b']')
        .filter(|token| token.contains(&b'@'));
    mailboxes.iter().any(|mailbox| seen.add_address(&mailbox.address).is_break())
        || tokens.any(|token| piece(&mut seen, token).is_break())
}

/// Looks at a token with an `@`.
fn piece(seen: &mut Seen, token: &[u8]) -> ControlFlow<()> {
    if let Ok(address) = parse_written(token) {
        return seen.add_address(&address);
    }
    if memchr::memchr_iter(b'@', token).nth(1).is_some() {
        return ControlFlow::Break(()); // an `@` of two readings
    }
    let mut halves = token.split(|&b| b == b'@').map(|half| half.escape_ascii().to_string().to_lowercase());
    let (local, domain) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
    // A domain alone is the route or the rest of somebody; `Anna @work` is neither.
    if local.is_empty() && !domain.contains('.') {
        return ControlFlow::Continue(());
    }
    let some = |half: String| (!half.is_empty()).then_some(half);
    seen.add(some(local).as_deref(), some(domain).as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(value: &[u8]) -> (Vec<String>, bool) {
        let from = read_from(value, None);
        (from.mailboxes.iter().map(|m| m.address.to_string()).collect(), from.ambiguous)
    }

    #[test]
    fn a_domain_in_disguise_is_ambiguous() {
        for masked in
            ["anna@\u{ff4d}ycompany.test", "anna@mycompany\u{3002}test", "A <anna@MYCOMPANY\u{ff0e}test>"]
        {
            assert!(addresses(masked.as_bytes()).1, "{masked}");
        }
        for plain in [
            "anna@r\u{e4}ksm\u{f6}rg\u{e5}s.test",
            "\u{c5}sa <asa@R\u{c4}KA.test>",
            "\u{200b}anna@x.test\u{200b}",
        ] {
            assert!(!addresses(plain.as_bytes()).1, "{plain}");
        }
    }

    #[test]
    fn two_readings_are_ambiguous() {
        for value in [
            &b"Eve <eve@evil.test> Anna <anna@mycompany.test>"[..],
            b"<eve@evil.test>:<anna@mycompany.test>",
            b"\"S\" <eve@evil.test>:<anna@mycompany.test>",
            b"Eve <eve@<anna@mycompany.test>",
            b"Eve <eve@evil.test<anna@mycompany.test>>",
            b"<eve@evil.test>anna@mycompany.test",
            b"anna@mycompany.test<eve@evil.test>cy@x.test",
            b"eve@evil.test anna@mycompany.test",
            b"eve@evil.test; anna@mycompany.test",
            b"eve@evil.test: anna@mycompany.test;",
            b"Team: eve@evil.test; anna@mycompany.test",
            b"Team: eve@evil.test, anna@mycompany.test",
            b"\"Eve <eve@evil.test> <anna@mycompany.test>",
            b"\"Eve <eve@evil.test>, <anna@mycompany.test>",
            b"Eve 19\" <eve@evil.test>, Anna 19\" <anna@mycompany.test>",
            b"\"a\"b <eve@evil.test>\" <anna@mycompany.test>",
            b"Eve (<eve@evil.test> <anna@mycompany.test>",
            b"Eve (a) b) <eve@evil.test>, (<anna@mycompany.test>",
            b"<eve@evil.test (> <anna@mycompany.test>)>",
            b"<anna(eve@evil.test)@mycompany.test>",
            b"anna@(eve@evil.test)mycompany.test",
            b"<anna@mycompany.test (eve@evil.test)>",
            b"<@evil.test:anna@mycompany.test>",
            b"<@evil.test,@x.test:anna@mycompany.test>",
            b"eve@evil.test\0 <anna@mycompany.test>",
            b"Anna\0<eve@evil.test> <anna@mycompany.test>",
            b"anna@mycompany.test, eve@evil.test\0",
            b"<anna@mycompany.test\0@evil.test>",
            b"anna@mycompany.test\x0beve@evil.test",
            b"eve@evil.test@mycompany.test, anna@mycompany.test",
            b"Eve Evil eve@evil.test, anna@mycompany.test",
            b"\\<eve@evil.test> <anna@mycompany.test>",
            b"Anna \\\"<eve@evil.test>, \" <anna@mycompany.test>",
            b"<eve@evil.test, anna@mycompany.test>",
            b"<\"eve@evil.test> \"@mycompany.test>",
            b"A. anna@mycompany.test",
            b"anna .b@mycompany.test",
            b"<eve@evil.test >anna@mycompany.test",
            b"<anna@mycompany.test> <eve@evil.test",
            b"[<eve@evil.test>] <anna@mycompany.test>",
            b"anna@[x <eve@evil.test>, ] <anna@mycompany.test>",
            // Who does not know encoded words finds somebody else in these.
            b"=?utf-8?Q?<eve@evil.test>,?= <anna@mycompany.test>",
            b"=?utf-8?Q?\"?= <eve@evil.test>, =?utf-8?Q?\"?= <anna@mycompany.test>",
            b"\"=?utf-8?Q?\" <eve@evil.test> \"?=\" <anna@mycompany.test>",
            b"=?utf-8?Q?(?= <eve@evil.test>, =?utf-8?Q?)?= <anna@mycompany.test>",
            b"=?utf-8?Q?a?=AB,<eve@evil.test>?= <anna@mycompany.test>",
            b"\x1b$B<eve@evil.test>,\x1b(B <anna@mycompany.test>",
        ] {
            assert!(read_from(value, None).ambiguous, "{} {:?}", value.escape_ascii(), addresses(value));
        }
    }

    #[test]
    fn one_reading_is_clear() {
        type Case = (&'static [u8], &'static [&'static str]);
        let cases: &[Case] = &[
            (b"Anna Aalto <anna@mycompany.test>", &["anna@mycompany.test"]),
            (b" anna@mycompany.test\r\n", &["anna@mycompany.test"]),
            (b"\"Anna Aalto\" anna@mycompany.test", &["anna@mycompany.test"]),
            (b"\"eve@evil.test\" anna@mycompany.test", &["anna@mycompany.test"]),
            (b"=?utf-8?Q?Anna?= anna@mycompany.test", &["anna@mycompany.test"]),
            (b"<'anna@mycompany.test'>", &["anna@mycompany.test"]),
            (b"\"'anna@mycompany.test'\" <'anna@mycompany.test'>", &["anna@mycompany.test"]),
            (b"Anna <mailto:anna@mycompany.test>", &["anna@mycompany.test"]),
            (b"mailto:anna@mycompany.test", &["anna@mycompany.test"]),
            (b"anna@mycompany.test <eve@evil.test>", &["eve@evil.test"]),
            (b"Anna anna@mycompany.test home <eve@evil.test>", &["eve@evil.test"]),
            (b"\"<anna@mycompany.test>, Eve\" <eve@evil.test>", &["eve@evil.test"]),
            (b"\"a \\\" <anna@mycompany.test>\" <eve@evil.test>", &["eve@evil.test"]),
            (b"(<anna@mycompany.test>, (x)) <eve@evil.test>", &["eve@evil.test"]),
            (b"eve@evil.test (anna@mycompany.test)", &["eve@evil.test"]),
            (b"=?utf-8?Q?=3Canna@mycompany.test=3E=2C?= <eve@evil.test>", &["eve@evil.test"]),
            (b"=?utf-8?B?PGFubmFAbXljb21wYW55LnRlc3Q+LA==?= <eve@evil.test>", &["eve@evil.test"]),
            (b"=?UTF-8?Q?=C3=96st=2C_Olle?= <olle@mycompany.test>", &["olle@mycompany.test"]),
            (b"=?UTF-8?Q?=C3=96st,_Olle_(Corp)?= <olle@mycompany.test>", &["olle@mycompany.test"]),
            (
                b"Anna <anna@mycompany.test>, \"Bo, B\" <bo@acme.test>, cy@x.test",
                &["anna@mycompany.test", "bo@acme.test", "cy@x.test"],
            ),
            (b"Team: anna@mycompany.test, Bo <bo@acme.test>;", &["anna@mycompany.test", "bo@acme.test"]),
            (b"\"Team\":;, anna@mycompany.test, Bo <bo@acme.test>", &["anna@mycompany.test", "bo@acme.test"]),
            (
                b"\"a b\"@x.test, anna@[192.0.2.1], b@[IPv6:2001:db8::1]",
                &["\"a b\"@x.test", "anna@[192.0.2.1]", "b@[ipv6:2001:db8::1]"],
            ),
            (
                "Åsa <åsa@räksmörgås.test>, bo@acme.test".as_bytes(),
                &["åsa@xn--rksmrgs-5wao1o.test", "bo@acme.test"],
            ),
            // Odd, and yet there is only one address in it.
            (b"\"Anna <anna@mycompany.test>", &["anna@mycompany.test"]),
            (b"Anna 19\" rack <anna@mycompany.test>", &["anna@mycompany.test"]),
            (b"Aalto, Anna <anna@mycompany.test>", &["anna@mycompany.test"]),
            (b"[EXT] Anna <anna@mycompany.test>;", &["anna@mycompany.test"]),
            (b"Anna A @work, (x <anna@mycompany.test>", &["anna@mycompany.test"]),
            (b"<anna@mycompany.test><ANNA@mycompany.test>", &["anna@mycompany.test", "ANNA@mycompany.test"]),
            (b"anna . aalto @ x . test", &["anna.aalto@x.test"]),
            (b"\xe2\x80\x8banna@mycompany.test", &["anna@mycompany.test"]),
            // Nobody.
            (b"", &[]),
            (b"Anna Aalto", &[]),
            (b"undisclosed:;", &[]),
            (b"Anna Aalto anna@mycompany.test", &[]),
        ];
        for (value, expected) in cases {
            let expected = expected.iter().map(|a| (*a).to_owned()).collect();
            assert_eq!(addresses(value), (expected, false), "{}", value.escape_ascii());
        }
    }

    #[test]
    fn a_word_with_raw_brackets_is_a_name_and_a_reason_to_refuse() {
        let from = read_from(b"=?utf-8?Q?<anna@mycompany.test>,?= <eve@evil.test>", None);
        assert_eq!(from.mailboxes.len(), 1);
        assert_eq!(from.mailboxes[0].address.to_string(), "eve@evil.test");
        assert_eq!(from.mailboxes[0].name.as_deref(), Some("<anna@mycompany.test>,"));
        assert!(from.ambiguous);
    }

    #[test]
    fn who_is_well_formed_is_read_as_the_rfc_reads() {
        // An own, slower reader of what is well-formed: it knows quotes and comments, and takes what brackets hold.
        fn brackets(value: &[u8]) -> Vec<String> {
            let (mut found, mut start, mut i, mut quoted, mut depth) = (Vec::new(), None, 0, false, 0);
            while i < value.len() {
                match value[i] {
                    b'\\' if quoted || depth > 0 => i += 1,
                    b'"' if depth == 0 => quoted = !quoted,
                    b'(' if !quoted => depth += 1,
                    b')' if !quoted => depth -= 1,
                    b'<' if !quoted && depth == 0 => start = Some(i + 1),
                    b'>' if !quoted && depth == 0 => {
                        let text = std::str::from_utf8(&value[start.unwrap()..i]).unwrap().trim();
                        found.extend(parse_written(text.as_bytes()).map(|address| address.to_string()));
                    }
                    _ => {}
                }
                i += 1;
            }
            found
        }
        let mut random = fastrand::Rng::with_seed(16);
        let pieces = [
            "<eve@evil.test>",
            "<anna@mycompany.test>",
            "\"",
            "\"",
            "(",
            ")",
            ",",
            " ",
            " ",
            "\\",
            "Anna",
            ":",
            ";",
            "<",
            ">",
            "=?utf-8?Q?a?=",
            "=?utf-8?Q?",
            "?=",
            "=3C",
            "'",
        ];
        let (mut clear, mut two) = (0, 0);
        for _ in 0..300_000 {
            let value: String =
                (0..random.usize(1..14)).map(|_| pieces[random.usize(..pieces.len())]).collect();
            let from = read_from(value.as_bytes(), None);
            if is_well_formed(value.as_bytes()) {
                let found: Vec<_> = from.mailboxes.iter().map(|m| m.address.to_string()).collect();
                assert_eq!(found, brackets(value.as_bytes()), "{value:?}");
                clear += 1;
                two += usize::from(found.len() > 1);
            }
            let both = value.contains("<eve@evil.test>") && value.contains("<anna@mycompany.test>");
            assert!(!from.ambiguous || both || value.matches('@').count() > 1, "{value:?}");
        }
        assert!(clear > 1000 && two > 50, "{clear} {two}");
    }

    #[test]
    fn hostile_fields_cost_no_more_than_their_length() {
        let bytes = if cfg!(debug_assertions) { 200_000 } else { 1_000_000 };
        for pattern in [
            "(",
            "\"",
            "<",
            "a@",
            "@",
            "a@b,",
            "a@b ",
            "<a@b>",
            "a@[",
            ":;",
            "a:b;,",
            "=?a?q?_?= ",
            "\\",
            "a@b@",
            "'",
        ] {
            let _ = read_from(pattern.repeat(bytes / pattern.len()).as_bytes(), None);
        }
    }
}
