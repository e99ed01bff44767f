//! Address lists of header fields (RFC 5322, section 3.4), as thirty years of mail software write them.
//!
//! In: the value of an address field. Out: a [`ListReader`] of [`Element`]s.
//! Promise: what is no address is counted and hurts none of its neighbours; what stands in a quoted string, a comment or
//! an encoded word is text and never a mailbox; nothing is read before it is asked for, nothing recurses, and the cost
//! is linear.
//! Fails: never; see [`Element::Skipped`].
//! Why by hand: senders leave out commas, quotes and brackets, and each way to go on must leave the rest of the list
//! whole. Who sent a message is not to be guessed so: see `from`.

use super::{
    address::{Address, parse_plain, parse_written},
    encoded_word::{Atoms, decode_unstructured},
    text::is_blank,
};
use std::ops::Range;

/// Longest display name kept, in characters.
const MAX_NAME_CHARS: usize = 256;

/// One mailbox of a header: an address and the decoded name beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mailbox {
    /// Display name or trailing comment, decoded, one line, at most 256 characters; none if absent or blank.
    pub name: Option<String>,
    /// The address.
    pub address: Address,
}

/// What stands between two commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Element {
    /// A mailbox.
    Mailbox(Mailbox),
    /// Something is there, and it is no address.
    Skipped,
}

impl Element {
    /// The mailbox, if it is one.
    pub fn mailbox(self) -> Option<Mailbox> {
        match self {
            Self::Mailbox(mailbox) => Some(mailbox),
            Self::Skipped => None,
        }
    }
}

/// Reads the value of an address field: mailboxes and groups (RFC 5322, section 3.4), obsolete and odd forms included.
///
/// `fallback` is the charset of raw names (see `mail::encoded_word`). A field that Postfix cut loses its last element.
pub fn mailboxes<'a>(value: &'a [u8], fallback: Option<&'a str>) -> ListReader<'a> {
    ListReader::new(value, fallback, Quotes::Guessed)
}

/// The elements of one address field, one at a time.
pub struct ListReader<'a> {
    lexer: Lexer<'a>,
    fallback: Option<&'a str>,
    at: usize,
    ended: bool,
    cut: bool,
    /// What is left of the element at hand, and how far its reading has come.
    pending: Range<usize>,
    stage: Stage,
}

/// Where the reading of an element stands: one element may hold several mailboxes that no comma divides.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing of it is read.
    Whole,
    /// A mailbox in brackets came before; words may follow.
    Behind,
    /// Addresses and names without brackets, looked through and found good.
    Words,
}

/// What comes next among words without brackets.
enum Words {
    /// An address, where its name stands, and where it ends.
    Address { name: Range<usize>, address: Address, after: usize },
    /// Nothing but comments.
    End,
    /// Words that name nobody.
    Other,
}

impl<'a> ListReader<'a> {
    pub(super) fn new(value: &'a [u8], fallback: Option<&'a str>, quotes: Quotes) -> Self {
        Self {
            lexer: Lexer::new(value, quotes),
            fallback,
            at: 0,
            ended: false,
            cut: is_cut(value),
            pending: 0..0,
            stage: Stage::Whole,
        }
    }

    /// Cuts at `,` and `;`, and at the `:` behind a group's name, which is dropped.
    fn next_element(&mut self) -> Option<Range<usize>> {
        let value = self.lexer.value;
        let (mut start, mut i, mut address) = (self.at, self.at, false);
        while i < value.len() {
            match value[i] {
                b',' | b';' => {
                    self.at = i + 1;
                    return Some(start..i);
                }
                b':' if is_mailto(&value[start..i]) => i += 1,
                // No group has an address for its name: two mailboxes stand here.
                b':' if address => {
                    self.at = i + 1;
                    return Some(start..i);
                }
                b':' => {
                    i += 1;
                    start = i;
                }
                b'<' => {
                    address = true;
                    i = self.lexer.bracket(i).map_or(i + 1, |close| close + 1);
                }
                b => {
                    address |= b == b'@';
                    i = self.lexer.token(i).1;
                }
            }
        }
        (self.at, i) = (i, value.len());
        // The last element of a field that was cut is torn.
        if std::mem::replace(&mut self.ended, true) || self.cut { None } else { Some(start.min(i)..i) }
    }

    /// Reads on in the element at hand; none if there is nothing more in it.
    fn take(&mut self) -> Option<Element> {
        let value = self.lexer.value;
        let range = self.pending.clone();
        match self.stage {
            Stage::Whole => {
                let range = trim(value, range);
                if let Some(address) = parse_plain(&value[range.clone()]) {
                    self.pending = range.end..range.end;
                    return Some(Element::Mailbox(Mailbox { name: None, address }));
                }
                self.pending = range;
                self.take_bracket().or_else(|| self.take_whole())
            }
            Stage::Behind => self.take_bracket().or_else(|| {
                let more = memchr::memchr(b'@', &value[range.clone()]).is_some();
                if more { self.start_words(range) } else { self.drop_pending() }
            }),
            Stage::Words => self.take_word(),
        }
    }

    fn drop_pending(&mut self) -> Option<Element> {
        self.pending = self.pending.end..self.pending.end;
        None
    }

    fn skip_pending(&mut self) -> Option<Element> {
        self.drop_pending();
        Some(Element::Skipped)
    }

    /// The next `name <address>`. Brackets without an `@` are text of a name.
    fn take_bracket(&mut self) -> Option<Element> {
        let Range { start, end } = self.pending;
        let value = self.lexer.value;
        let mut i = start;
        while i < end {
            if value[i] != b'<' {
                i = self.lexer.token(i).1;
                continue;
            }
            let inner = i + 1;
            let (close, after) = match self.lexer.bracket(i).filter(|&close| close < end) {
                Some(close) => (close, close + 1),
                None => {
                    let torn = value[inner..end].iter().position(|b| matches!(b, b'<' | b'>'));
                    torn.map_or((end, end), |length| (inner + length, inner + length))
                }
            };
            if memchr::memchr(b'@', &value[inner..close]).is_some() {
                self.pending = after..end;
                self.stage = Stage::Behind;
                let Ok(address) = parse_written(&value[inner..close]) else { return Some(Element::Skipped) };
                // Doubled brackets are no part of the name.
                let doubled =
                    value[start..i].iter().rev().take_while(|b| **b == b'<' || b.is_ascii_whitespace());
                let open = i - doubled.count();
                return Some(Element::Mailbox(Mailbox { name: self.name(start..open), address }));
            }
            i = after;
        }
        None
    }

    /// An element without brackets: an address, perhaps with a comment that names its owner, or words.
    fn take_whole(&mut self) -> Option<Element> {
        let range = self.pending.clone();
        let (bare, comment) = self.lexer.without_comments(range.clone());
        if is_empty(&bare) {
            return self.drop_pending();
        }
        if memchr::memchr(b'@', &bare).is_none() {
            return self.skip_pending();
        }
        match parse_written(&bare) {
            Ok(address) => {
                self.drop_pending();
                let name = comment.and_then(|comment| self.name(comment));
                Some(Element::Mailbox(Mailbox { name, address }))
            }
            // One word that is no address will not become one.
            Err(_) if !bare.iter().any(|&b| b.is_ascii_whitespace() || b == b'"') => self.skip_pending(),
            Err(_) => self.start_words(range),
        }
    }

    /// Words that are addresses, each with or without a name before it: all of them must be, or none is.
    fn start_words(&mut self, range: Range<usize>) -> Option<Element> {
        let mut i = range.start;
        loop {
            match self.named_word(i, range.end) {
                Words::Address { after, .. } => i = after,
                Words::End if i == range.start && self.stage == Stage::Behind => return self.drop_pending(),
                Words::End if i > range.start => break,
                Words::End | Words::Other => return self.skip_pending(),
            }
        }
        self.pending = range;
        self.stage = Stage::Words;
        self.take_word()
    }

    fn take_word(&mut self) -> Option<Element> {
        let Range { start, end } = self.pending;
        match self.named_word(start, end) {
            Words::Address { name, address, after } => {
                self.pending = after..end;
                Some(Element::Mailbox(Mailbox { name: self.name(name), address }))
            }
            Words::End | Words::Other => self.drop_pending(),
        }
    }

    /// The next bare address and what may be its name: quoted, encoded, or one word. More than one is a sentence that
    /// happens to hold an address.
    fn named_word(&mut self, start: usize, end: usize) -> Words {
        let value = self.lexer.value;
        let (mut i, mut words, mut bare) = (start, 0, 0);
        while i < end {
            let (token, after) = self.lexer.token(i);
            if value[i].is_ascii_whitespace() || token == Token::Comment {
                i = after;
                continue;
            }
            let word = i..self.lexer.word_end(i, end);
            i = word.end;
            if self.lexer.has_at_sign(word.clone()) {
                return match parse_written(&value[word.clone()]) {
                    Ok(address) => Words::Address { name: start..word.start, address, after: i },
                    Err(_) => Words::Other,
                };
            }
            words += 1;
            bare += usize::from(!matches!(token, Token::Quoted | Token::Atom));
            if bare > 1 {
                return Words::Other;
            }
        }
        if words == 0 { Words::End } else { Words::Other }
    }

    /// A phrase (RFC 5322, section 3.2.5) with its quotes resolved and encoded words decoded; none if nothing is left.
    fn name(&mut self, phrase: Range<usize>) -> Option<String> {
        let plain = self.lexer.phrase(phrase);
        let decoded = decode_unstructured(&plain, self.fallback);
        let name = decoded.split_whitespace().collect::<Vec<_>>().join(" ");
        if is_blank(&name) {
            return None;
        }
        match name.char_indices().nth(MAX_NAME_CHARS) {
            Some((end, _)) => Some(name[..end].to_owned()),
            None => Some(name),
        }
    }
}

impl Iterator for ListReader<'_> {
    type Item = Element;

    fn next(&mut self) -> Option<Element> {
        loop {
            if self.pending.is_empty() {
                self.pending = self.next_element()?;
                self.stage = Stage::Whole;
            } else if let Some(element) = self.take() {
                return Some(element);
            }
        }
    }
}

fn is_mailto(before: &[u8]) -> bool {
    let Some((start, word)) = before.len().checked_sub(6).map(|at| before.split_at(at)) else { return false };
    word.eq_ignore_ascii_case(b"mailto") && start.last().is_none_or(|b| !b.is_ascii_alphanumeric())
}

fn trim(value: &[u8], range: Range<usize>) -> Range<usize> {
    let piece = &value[range.clone()];
    let front = piece.len() - piece.trim_ascii_start().len();
    let back = piece.len() - piece.trim_ascii_end().len();
    if front == piece.len() { range.end..range.end } else { range.start + front..range.end - back }
}

fn is_empty(bytes: &[u8]) -> bool {
    bytes.is_ascii() && bytes.iter().all(|b| b.is_ascii_whitespace() || b.is_ascii_control())
        || std::str::from_utf8(bytes).is_ok_and(is_blank)
}

/// The largest field Postfix shows to milters, and with milters stores; and what it stores without (its default
/// `header_size_limit`), in bytes, the name included, a line end for one.
const CUTS: [usize; 2] = [60_000, 102_400];

/// The most tokens that Postfix reads of a field whose addresses it rewrites (its `header_address_token_limit`).
const MAX_TOKENS: usize = 10_240;

/// How many of them may be gone: Postfix repairs the torn end, and in doing so takes a dot off or puts quotes round it.
const TOKENS_REPAIRED: usize = 4;

/// Longest name of an address field with its colon, `Resent-Sender:`, and the blank that libmilter takes off.
const MAX_FIELD_NAME_BYTES: usize = 15;

/// Longest line that Postfix sends by SMTP and LMTP; it puts a line end and a blank behind as many bytes.
const SENT_LINE_BYTES: usize = 998;

/// True if Postfix cut this field: what stands behind its last comma is torn, or is nothing.
///
/// Seen with Postfix 3.7: a field is cut at its limit, or, if a fold lies in the last tenth before it, at that fold.
/// Cleanup rewrites fields of local clients; it then reads so many tokens, and begins each line but the first by a tab
/// that does not count. LMTP breaks long lines, and what it puts in does not count either.
pub fn is_cut(value: &[u8]) -> bool {
    let value = value.strip_suffix(b"\n").unwrap_or(value);
    let value = value.strip_suffix(b"\r").unwrap_or(value);
    if value.len() < MAX_TOKENS - TOKENS_REPAIRED {
        return false;
    }
    let (mut length, mut tabs) = (0, 0);
    let mut lines = value.split(|&b| b == b'\n').peekable();
    while let Some(line) = lines.next() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        length += line.len();
        match lines.peek() {
            // A line that only the last hop broke: its end and its blank were not there when the field was cut.
            Some([b' ', ..]) if line.len() + MAX_FIELD_NAME_BYTES >= SENT_LINE_BYTES => length -= 1,
            Some(next) => {
                length += 1;
                tabs += usize::from(next.first() == Some(&b'\t'));
            }
            None => {}
        }
    }
    let at_a_fold = value.trim_ascii_end().ends_with(b",");
    let is_at = |length: usize, cut: usize| {
        let room = if at_a_fold { cut / 10 } else { 0 };
        (cut - room - MAX_FIELD_NAME_BYTES..=cut).contains(&length)
    };
    CUTS.iter().any(|&cut| is_at(length, cut) || is_at(length - tabs, cut))
        || tabs > 0 && (MAX_TOKENS - TOKENS_REPAIRED..=MAX_TOKENS).contains(&tokens(value))
}

/// How many tokens Postfix counts: special characters, and what stands between them (RFC 822, section 3.3).
fn tokens(value: &[u8]) -> usize {
    let mut lexer = Lexer { atoms: Atoms::default(), ..Lexer::new(value, Quotes::Strict) };
    let (mut count, mut i, mut in_atom) = (0, 0, false);
    while i < value.len() {
        let (token, end) = lexer.token(i);
        let b = value[i];
        let blank = b.is_ascii_whitespace();
        let atom = token == Token::Byte && !blank && !b"()<>@,;:.[]\"".contains(&b);
        let goes_on = atom && in_atom;
        count += usize::from(!blank && !goes_on);
        (in_atom, i) = (atom, end);
    }
    count
}

/// How a quote that may be an inch mark is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quotes {
    /// By where it stands, so that `Bo 19" rack <bo@…>` does not swallow its neighbours.
    Guessed,
    /// By RFC 5322 alone: it opens, wherever it stands.
    Strict,
}

/// What a [`Lexer`] finds at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    /// An encoded word, or what else is text whatever bytes stand in it.
    Atom,
    Quoted,
    Comment,
    /// A backslash and what follows it.
    Escaped,
    /// One byte, or a domain literal.
    Byte,
}

/// Cuts a value into tokens. What never closes is plain text.
struct Lexer<'a> {
    value: &'a [u8],
    atoms: Atoms,
    quotes: Quotes,
    /// From here on no quote, no comment, no literal closes: looking for the end of each anew would cost the square of
    /// the length, which a stranger chooses.
    open_quotes: usize,
    open_comments: usize,
    open_literals: usize,
}

impl<'a> Lexer<'a> {
    fn new(value: &'a [u8], quotes: Quotes) -> Self {
        let never = usize::MAX;
        let atoms = Atoms::of(value);
        Self { value, atoms, quotes, open_quotes: never, open_comments: never, open_literals: never }
    }

    /// The token that starts at `at`, and where it ends.
    fn token(&mut self, at: usize) -> (Token, usize) {
        let end = match self.value[at] {
            b'=' | b'\x1b' => self.atoms.end(at).map(|end| (Token::Atom, end)),
            b'"' => self.quote_end(at).map(|end| (Token::Quoted, end + 1)),
            b'(' => self.comment_end(at).map(|end| (Token::Comment, end + 1)),
            b'[' => self.literal_end(at).map(|end| (Token::Byte, end + 1)),
            b'\\' => Some((Token::Escaped, (at + 2).min(self.value.len()))),
            _ => None,
        };
        end.unwrap_or((Token::Byte, at + 1))
    }

    /// Where a word ends: at white space, at a comment, or behind a quoted string that no address goes on with.
    fn word_end(&mut self, start: usize, end: usize) -> usize {
        let mut i = start;
        while i < end && !self.value[i].is_ascii_whitespace() {
            let (token, after) = self.token(i);
            if token == Token::Comment {
                break;
            }
            i = after;
            if token == Token::Quoted && !matches!(self.value.get(i), Some(b'.' | b'@')) {
                break;
            }
        }
        i
    }

    fn has_at_sign(&mut self, range: Range<usize>) -> bool {
        let mut i = range.start;
        while i < range.end {
            let (token, after) = self.token(i);
            if token == Token::Byte && self.value[i] == b'@' {
                return true;
            }
            i = after;
        }
        false
    }

    /// Where `close` stands outside of atoms and escapes, for what opens at `open`. Comments may lie within each other
    /// (RFC 5322, section 3.2.2).
    fn close(&self, open: usize, close: u8) -> Option<usize> {
        let (mut depth, mut i) = (1_usize, open + 1);
        while i < self.value.len() {
            match self.value[i] {
                b'\\' => i += 1,
                b'=' | b'\x1b' => i = self.atoms.end(i).map_or(i, |end| end - 1),
                b if b == close => {
                    depth -= 1;
                    if depth == 0 {
                        return Some(i);
                    }
                }
                b'(' if close == b')' => depth += 1,
                _ => {}
            }
            i += 1;
        }
        None
    }

    fn quote_end(&mut self, open: usize) -> Option<usize> {
        let before = open.checked_sub(1).map(|at| self.value[at]);
        let opens = before.is_none_or(|b| b.is_ascii_whitespace() || b",;:<>()@.\xa0".contains(&b));
        if open >= self.open_quotes || !(opens || self.quotes == Quotes::Strict) {
            return None;
        }
        let Some(end) = self.close(open, b'"') else {
            self.open_quotes = open;
            return None;
        };
        if self.quotes == Quotes::Guessed && self.is_inch_mark(open, end) { None } else { Some(end) }
    }

    /// True if the quote at `open` stands alone, and what closes it is the opening one of somebody else.
    fn is_inch_mark(&self, open: usize, end: usize) -> bool {
        let blank = |at: usize| self.value.get(at).is_some_and(u8::is_ascii_whitespace);
        let opens_another = end > open + 1
            && (blank(end - 1) || b",;:<".contains(&self.value[end - 1]))
            && self
                .value
                .get(end + 1)
                .is_some_and(|b| !b.is_ascii_whitespace() && !b",;:<>()@.\"".contains(b));
        let two_marks = blank(open + 1) && blank(end - 1) && blank(end + 1);
        let addresses = || memchr::memchr(b'@', &self.value[open..end]).is_some();
        opens_another || two_marks && addresses()
    }

    fn comment_end(&mut self, open: usize) -> Option<usize> {
        if open >= self.open_comments {
            return None;
        }
        let end = self.close(open, b')');
        if end.is_none() {
            self.open_comments = open;
        }
        end
    }

    /// A literal is a domain (RFC 5322, section 3.4.1); other square brackets are text.
    fn literal_end(&mut self, open: usize) -> Option<usize> {
        if open >= self.open_literals || open == 0 || self.value[open - 1] != b'@' {
            return None;
        }
        let end = self.close(open, b']');
        if end.is_none() {
            self.open_literals = open;
        }
        end
    }

    /// The `>` that closes the `<` at `open`; none if another bracket or a comma comes before it, except the commas of
    /// a source route (RFC 5322, section 4.4): a bracket that never closes must not swallow the rest of the list.
    fn bracket(&mut self, open: usize) -> Option<usize> {
        let mut i = open + 1;
        while self.value.get(i).is_some_and(u8::is_ascii_whitespace) {
            i += 1;
        }
        let route = self.value.get(i) == Some(&b'@');
        while i < self.value.len() {
            match self.value[i] {
                b'>' => return Some(i),
                b'<' | b';' => return None,
                b',' if !route => return None,
                _ => i = self.token(i).1,
            }
        }
        None
    }

    /// A range without its comments, and the place of the last one's text, for `anna@x (Anna Aalto)`.
    fn without_comments(&mut self, range: Range<usize>) -> (Vec<u8>, Option<Range<usize>>) {
        let mut bare = Vec::with_capacity(range.len());
        let mut comment = None;
        let mut i = range.start;
        while i < range.end {
            let (token, end) = self.token(i);
            match token {
                Token::Comment => comment = Some(i + 1..end - 1),
                _ => bare.extend_from_slice(&self.value[i..end.min(range.end)]),
            }
            i = end;
        }
        (bare, comment)
    }

    /// The text of a phrase: comments out, quotes off, encoded words as they are.
    fn phrase(&mut self, range: Range<usize>) -> Vec<u8> {
        let range = trim(self.value, range);
        let mut plain = Vec::with_capacity(range.len());
        if self.is_quoted_with_marks(&range) {
            self.unescape(range.start + 1..range.end - 1, &mut plain);
            return plain;
        }
        let mut i = range.start;
        while i < range.end {
            let (token, end) = self.token(i);
            match token {
                Token::Comment => {}
                Token::Quoted => self.unescape(i + 1..end - 1, &mut plain),
                Token::Escaped => plain.extend(self.value.get(i + 1)),
                // A quote that nothing closes.
                Token::Byte if i == range.start && self.value[i] == b'"' => {}
                Token::Byte | Token::Atom => plain.extend_from_slice(&self.value[i..end.min(range.end)]),
            }
            i = end;
        }
        plain
    }

    /// `"Bo 19" rack"`: the quotes at both ends are a pair, and what lies between is an inch mark.
    fn is_quoted_with_marks(&mut self, range: &Range<usize>) -> bool {
        let ends = range.len() > 2 && self.value[range.start] == b'"' && self.value[range.end - 1] == b'"';
        if !ends {
            return false;
        }
        let (mut i, mut last) = (range.start, Token::Atom);
        while i < range.end {
            (last, i) = self.token(i);
        }
        last == Token::Byte
    }

    fn unescape(&self, range: Range<usize>, plain: &mut Vec<u8>) {
        let mut i = range.start;
        while i < range.end {
            let end = match self.value[i] {
                b'=' | b'\x1b' => self.atoms.end(i).unwrap_or(i + 1),
                b'\\' if i + 1 < range.end => {
                    i += 1;
                    i + 1
                }
                _ => i + 1,
            };
            plain.extend_from_slice(&self.value[i..end.min(range.end)]);
            i = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name and address of each mailbox, and how many elements were skipped.
    fn read(value: &[u8]) -> (Vec<(String, String)>, usize) {
        let (mut found, mut skipped) = (Vec::new(), 0);
        for element in mailboxes(value, None) {
            match element {
                Element::Mailbox(m) => found.push((m.name.unwrap_or_default(), m.address.to_string())),
                Element::Skipped => skipped += 1,
            }
        }
        (found, skipped)
    }

    /// Unoptimised code takes its time for a megabyte.
    const HOSTILE_BYTES: usize = if cfg!(debug_assertions) { 200_000 } else { 1_000_000 };

    type Case = (&'static [u8], &'static [(&'static str, &'static str)], usize);

    fn check(cases: &[Case]) {
        for (given, expected, skipped) in cases {
            let expected: Vec<_> = expected.iter().map(|(n, a)| (n.to_string(), a.to_string())).collect();
            assert_eq!(read(given), (expected, *skipped), "{}", given.escape_ascii());
        }
    }

    #[test]
    fn lists_of_a_header() {
        check(&[
            (b"Anna Aalto <anna@mycompany.test>", &[("Anna Aalto", "anna@mycompany.test")], 0),
            (
                b"\"Aalto, Anna\" <anna@x.test>, bo@acme.test",
                &[("Aalto, Anna", "anna@x.test"), ("", "bo@acme.test")],
                0,
            ),
            (b"anna@x.test (Anna (of X) Aalto)", &[("Anna Aalto", "anna@x.test")], 0),
            (
                b"Team: anna@x.test, Bo <bo@acme.test>; carl@else.test",
                &[("", "anna@x.test"), ("Bo", "bo@acme.test"), ("", "carl@else.test")],
                0,
            ),
            (b"undisclosed-recipients:;", &[], 0),
            (b"undisclosed-recipients:; ", &[], 0),
            (b"", &[], 0),
            (b" , ,\r\n ,", &[], 0),
            (b"(nobody)", &[], 0),
            (b"=?utf-8?Q?=C3=85sa_=C3=96berg?= <asa@x.test>", &[("Åsa Öberg", "asa@x.test")], 0),
            (b"\"=?iso-2022-jp?B?GyRCRnxLXBsoQg==?=\" <n@x.test>", &[("日本", "n@x.test")], 0),
            (
                b"Anna\r\n\tAalto\r\n <anna@x.test>,\r\n bo@acme.test",
                &[("Anna Aalto", "anna@x.test"), ("", "bo@acme.test")],
                0,
            ),
            (b"not an address, bo@acme.test", &[("", "bo@acme.test")], 1),
            (b"\"unclosed <a@x.test>, bo@acme.test", &[("unclosed", "a@x.test"), ("", "bo@acme.test")], 0),
            (b"Bo <bo@acme.test, carl@else.test", &[("Bo", "bo@acme.test"), ("", "carl@else.test")], 0),
            (b"Bo <bo@acme.test, Cy <cy@x.test>", &[("Bo", "bo@acme.test"), ("Cy", "cy@x.test")], 0),
            (b"anna . aalto @ x . test", &[("", "anna.aalto@x.test")], 0),
            (b"=?utf-8?Q?a=0D=0Ab?= <a@x.test>", &[("a b", "a@x.test")], 0),
            (b"\"\" <a@x.test>", &[("", "a@x.test")], 0),
            (b"<@r.test:a@x.test>", &[("", "a@x.test")], 0),
            (b"<@r.test,@s.test:a@x.test>, b@x.test", &[("", "a@x.test"), ("", "b@x.test")], 0),
            (b"a..b.@docomo.test", &[("", "\"a..b.\"@docomo.test")], 0),
            (b"\"a, b\"@x.test, <\"c>d\"@x.test>", &[("", "\"a, b\"@x.test"), ("", "\"c>d\"@x.test")], 0),
            (
                b"a@[192.0.2.1], b@[IPv6:2001:db8::1]",
                &[("", "a@[192.0.2.1]"), ("", "b@[ipv6:2001:db8::1]")],
                0,
            ),
            (b"[EXT, Bo <bo@acme.test>", &[("Bo", "bo@acme.test")], 1),
            (b"\x1b$BF|!\"K\\\x1b(B <a@x.test>, b@x.test", &[("日、本", "a@x.test"), ("", "b@x.test")], 0),
        ]);
    }

    #[test]
    fn quotes_and_mailto_round_an_address() {
        check(&[
            (b"\"'bo@acme.test'\" <'bo@acme.test'>", &[("'bo@acme.test'", "bo@acme.test")], 0),
            (b"'bo@acme.test'", &[("", "bo@acme.test")], 0),
            (b"<mailto:bo@acme.test>, MAILTO:cy@x.test", &[("", "bo@acme.test"), ("", "cy@x.test")], 0),
            (b"'mailto:bo@acme.test', <\"bo@acme.test\">", &[("", "bo@acme.test"), ("", "bo@acme.test")], 0),
            (b"\"Bo\" mailto:bo@acme.test", &[("Bo", "bo@acme.test")], 0),
            (b"Bo <mailto:'bo@acme.test'>", &[("Bo", "bo@acme.test")], 0),
            (b"<< bo@acme.test >>", &[("", "bo@acme.test")], 0),
            (b"mailto:bo%40acme.test, o'hara@x.test", &[("", "o'hara@x.test")], 1),
            (b"'Bo, Cy' <bo@acme.test>", &[("Cy'", "bo@acme.test")], 1),
        ]);
    }

    #[test]
    fn mailboxes_without_a_comma() {
        check(&[
            (b"Bo <bo@acme.test> Cy <cy@x.test>", &[("Bo", "bo@acme.test"), ("Cy", "cy@x.test")], 0),
            (b"<a@x.test><b@x.test>", &[("", "a@x.test"), ("", "b@x.test")], 0),
            (b"bo@x.test cy@y.test", &[("", "bo@x.test"), ("", "cy@y.test")], 0),
            (
                b"bo@x.test\r\n\tcy@y.test dan@z.test",
                &[("", "bo@x.test"), ("", "cy@y.test"), ("", "dan@z.test")],
                0,
            ),
            (b"Bo <bo@x.test> cy@y.test", &[("Bo", "bo@x.test"), ("", "cy@y.test")], 0),
            (b"<bo@x.test>cy@y.test", &[("", "bo@x.test"), ("", "cy@y.test")], 0),
            (b"\"Bo\" <bo@x.test>:<cy@y.test>", &[("Bo", "bo@x.test"), ("", "cy@y.test")], 0),
            (b"<bo@x.test, cy@y.test>", &[("", "bo@x.test"), ("", "cy@y.test")], 0),
            (b"<bo@x.test <cy@y.test>", &[("", "bo@x.test"), ("", "cy@y.test")], 0),
            (b"Bo <bo@<cy@y.test>", &[("", "cy@y.test")], 1),
            (b"\"Bo\" bo@x.test \"Cy\" cy@y.test", &[("Bo", "bo@x.test"), ("Cy", "cy@y.test")], 0),
        ]);
    }

    #[test]
    fn a_name_before_an_address() {
        check(&[
            (b"\"Bo Berg\" bo@acme.test", &[("Bo Berg", "bo@acme.test")], 0),
            (b"\"Bo Berg\"bo@acme.test", &[("Bo Berg", "bo@acme.test")], 0),
            (b"=?utf-8?Q?Bo_Berg?= bo@acme.test (x@y.test)", &[("Bo Berg", "bo@acme.test")], 0),
            (
                b"=?utf-8?Q?Bo?= =?utf-8?Q?_Berg?=\r\n bo@acme.test, cy@x.test",
                &[("Bo Berg", "bo@acme.test"), ("", "cy@x.test")],
                0,
            ),
            (b"Bo bo@acme.test", &[("Bo", "bo@acme.test")], 0),
            (b"Bo Berg bo@acme.test, cy@x.test", &[("", "cy@x.test")], 1),
            (b"bo@acme.test Bo Berg", &[], 1),
            (b"write to bo@acme.test now", &[], 1),
            (b"bo@old.test <bo@new.test>", &[("bo@old.test", "bo@new.test")], 0),
            (b"Bo bo@old.test home <bo@new.test> x", &[("Bo bo@old.test home", "bo@new.test")], 0),
            (b"Bo <Sales> <bo@acme.test>", &[("Bo <Sales>", "bo@acme.test")], 0),
            (b"Bo <3 <bo@acme.test>", &[("Bo <3", "bo@acme.test")], 0),
            (b"Bo <Sales>, <>, Cy <cy>", &[], 3),
        ]);
    }

    #[test]
    fn invisible_characters_round_an_address() {
        for trimmed in ["\u{200b}", "\u{feff}", "\u{a0}", "\u{ad}", "\u{2060}\u{200e}", "\u{3000}"] {
            for value in [
                format!("{trimmed}bo@acme.test"),
                format!("bo@acme.test{trimmed}"),
                format!("Bo <{trimmed}bo@acme.test{trimmed}>"),
                format!("\"Bo\" {trimmed}bo@acme.test"),
                format!("{trimmed}'bo@acme.test'{trimmed}, {trimmed}"),
            ] {
                let (found, skipped) = read(value.as_bytes());
                assert_eq!((found.len(), skipped), (1, 0), "{}", value.escape_unicode());
                assert_eq!(found[0].1, "bo@acme.test");
            }
            for value in [format!("b{trimmed}o@acme.test"), format!("<bo@ac{trimmed}me.test>")] {
                assert_eq!(read(value.as_bytes()), (vec![], 1), "{}", value.escape_unicode());
            }
        }
        check(&[(b"\xa0bo@acme.test, <cy@x.test\xa0>", &[("", "bo@acme.test"), ("", "cy@x.test")], 0)]);
    }

    #[test]
    fn what_is_encoded_or_quoted_is_text() {
        check(&[
            (
                b"=?utf-8?Q?Berg,_Cecilia_(Corp)?= <cy@corp.test>, =?utf-8?Q?Dan:_Sales?= <dan@corp.test>",
                &[("Berg, Cecilia (Corp)", "cy@corp.test"), ("Dan: Sales", "dan@corp.test")],
                0,
            ),
            (b"=?utf-8?Q?<anna@x.test>,?= <eve@evil.test>", &[("<anna@x.test>,", "eve@evil.test")], 0),
            (b"=?UTF-8?Q?=C3=96st=2C_Olle?= <olle@x.test>", &[("Öst, Olle", "olle@x.test")], 0),
            (b"=?utf-8?Q?a\"b;c>?= <a@x.test>, b@x.test", &[("a\"b;c>", "a@x.test"), ("", "b@x.test")], 0),
            (b"\"=?utf-8?Q?a\"b?=\" <a@x.test>, b@x.test", &[("a\"b", "a@x.test"), ("", "b@x.test")], 0),
            (b"\"=?utf-8?Q?=22Bo=22?= x\" <a@x.test>", &[("\"Bo\" x", "a@x.test")], 0),
            (b"=?utf-8?B?PGFubmFAeC50ZXN0Piw=?= <eve@evil.test>", &[("<anna@x.test>,", "eve@evil.test")], 0),
            (b"a@x.test (=?utf-8?Q?A)_<b@x.test>?=)", &[("A) <b@x.test>", "a@x.test")], 0),
            (b"\"<anna@x.test>, Eve\" <eve@evil.test>", &[("<anna@x.test>, Eve", "eve@evil.test")], 0),
            (b"Eve (anna@x.test, <anna@x.test>) <eve@evil.test>", &[("Eve", "eve@evil.test")], 0),
            (b"\"Bo \\\"B\\\" Berg\" <bo@acme.test>", &[("Bo \"B\" Berg", "bo@acme.test")], 0),
        ]);
    }

    #[test]
    fn inch_marks_and_what_never_closes() {
        check(&[
            (b"Bo 19\" rack <bo@x.test>, cy@y.test", &[("Bo 19\" rack", "bo@x.test"), ("", "cy@y.test")], 0),
            (
                b"\"Bo 19\" rack\" <bo@x.test>, \"Cy\" <cy@y.test>",
                &[("Bo 19\" rack", "bo@x.test"), ("Cy", "cy@y.test")],
                0,
            ),
            (
                b"Bo 19\" <bo@x.test>, Cy 17\" <cy@y.test>",
                &[("Bo 19\"", "bo@x.test"), ("Cy 17\"", "cy@y.test")],
                0,
            ),
            (
                b"Bo 19 \" rack <bo@x.test>, Cy 17 \" rack <cy@y.test>",
                &[("Bo 19 \" rack", "bo@x.test"), ("Cy 17 \" rack", "cy@y.test")],
                0,
            ),
            (
                b"Bo 19 \" <bo@x.test>, \"Cy, D\" <cy@y.test>",
                &[("Bo 19 \"", "bo@x.test"), ("Cy, D", "cy@y.test")],
                0,
            ),
            (b"Bo (x <bo@x.test>, cy@y.test", &[("Bo (x", "bo@x.test"), ("", "cy@y.test")], 0),
            (b"Bo [x <bo@x.test>, cy@[y.test", &[("Bo [x", "bo@x.test")], 1),
        ]);
    }

    #[test]
    fn long_names_are_cut_at_a_character() {
        for length in [MAX_NAME_CHARS, MAX_NAME_CHARS + 1] {
            let (found, _) = read(format!("{} <a@x.test>", "ö".repeat(length)).as_bytes());
            assert_eq!(found[0].0, "ö".repeat(MAX_NAME_CHARS));
        }
    }

    #[test]
    fn a_field_that_was_cut_loses_its_torn_element() {
        // As the milter sees it: one line of `To: ` and 60,000 bytes in all.
        let list = (0..4000).map(|n| format!("bo{n:06}@acme.test")).collect::<Vec<_>>().join(", ");
        let cut = &list.as_bytes()[..60_000 - 4];
        assert!(is_cut(cut) && is_cut(&[b" ", cut, b"\r\n"].concat()));
        let whole = cut.split(|&b| b == b',').count() - 1;
        assert_eq!(mailboxes(cut, None).filter_map(Element::mailbox).count(), whole);
        assert_eq!(mailboxes(cut, None).count(), whole);
        // As LMTP sees it: broken into lines of 998.
        let sent = [b"To: ", cut].concat();
        let sent = sent.chunks(998).collect::<Vec<_>>().join(&b"\r\n "[..]);
        assert!(is_cut(&sent[3..]));
        // Folded by the sender.
        let folded = list.replace(", ", ",\n ");
        assert!(is_cut(&folded.as_bytes()[..60_000 - 4]));
        let longer = (0..7000).map(|n| format!("bo{n:06}@acme.test")).collect::<Vec<_>>().join(", ");
        for length in [0, 1000, 53_000, 59_905, 60_001, 70_000, 102_305] {
            assert!(!is_cut(&longer.as_bytes()[..length]), "{length}");
        }
        assert!(is_cut(&longer.as_bytes()[..102_400 - 4]));
    }

    #[test]
    fn a_field_that_was_cut_elsewhere() {
        // At a fold, so that nothing is torn; with the tabs of rewritten lines.
        for fold in [",\n ", ",\r\n ", ",\n\t"] {
            let mut list = (0..2850).map(|n| format!("bo{n:06}@acme.test")).collect::<Vec<_>>().join(fold);
            assert!(!is_cut(list.as_bytes()), "{}", fold.escape_debug());
            list.push(',');
            assert!(is_cut(list.as_bytes()), "{}", fold.escape_debug());
            assert_eq!(mailboxes(list.as_bytes(), None).count(), 2850);
        }
        // Of 1,706 addresses of six tokens each the next has four left, and Postfix takes the dot off.
        let list = (0..1706).map(|n| format!("bo{n:06}@acme.test")).collect::<Vec<_>>().join(", ");
        for (list, cut) in [
            (list.clone(), false),
            (list.replace(", ", ",\n\t"), false),
            (format!("{list},\n\tbo001706@acme"), true),
            (format!("{list}, bo001706@acme"), false),
        ] {
            assert_eq!(is_cut(list.as_bytes()), cut);
            assert_eq!(
                mailboxes(list.as_bytes(), None).filter_map(Element::mailbox).count(),
                1706 + usize::from(list.ends_with("acme") && !cut)
            );
        }
        let quoted =
            (0..1137).map(|n| format!("\"Berg, Bo\" <bo{n:06}@acme.test>")).collect::<Vec<_>>().join(",\n\t");
        let quoted = format!("{quoted},\n\t\"Berg, Bo <bo001137\"@acme.test");
        assert_eq!(tokens(quoted.as_bytes()), 10_238);
        assert_eq!(mailboxes(quoted.as_bytes(), None).count(), 1137);
    }

    #[test]
    fn hostile_lists_cost_no_more_than_their_length() {
        // Each of these took the square of its length once, or might: minutes for a megabyte. Now it is milliseconds, so
        // a test that hangs is the failure.
        for pattern in [
            "(",
            "\"",
            "[",
            "<,",
            "(\"[<,",
            "\\(",
            "a<",
            " . ",
            "<@",
            "=?aa?q?_",
            "=?a?b?",
            "?=",
            "=?",
            "<",
            "a@",
            "@,",
            ":;",
            "'",
            "\u{a0}",
            "a@b ",
            "<a@b>",
            "<a@b> ",
            "a <b> ",
            "\"a\" ",
            "a\"",
            " \" ",
            "\" @ \" ",
            "a@[",
            "()",
            "(a) ",
            "\"a\" a@b ",
            ">",
            "a@b.cc,",
            "=?a?q?_?=",
            "=?a?q?_?= ",
            "\x1b$",
            "mailto:",
            "<a@b ",
            "@",
            "a@b (",
            "\u{200b}",
        ] {
            let value = pattern.repeat(HOSTILE_BYTES / pattern.len());
            let _ = mailboxes(value.as_bytes(), None).count();
            let _ = mailboxes(format!("{value}>,last@x.test\")").as_bytes(), None).count();
        }
    }

    #[test]
    fn whatever_comes_addresses_read_back_as_themselves() {
        let mut random = fastrand::Rng::with_seed(15);
        let pieces = [
            "bo",
            "@",
            "acme.test",
            "<",
            ">",
            ",",
            ";",
            ":",
            "\"",
            "'",
            "(",
            ")",
            "[",
            "]",
            "\\",
            " ",
            "\r\n ",
            "=?utf-8?Q?",
            "=?utf-8?B?",
            "?=",
            "=C3",
            "mailto:",
            "\u{200b}",
            "\u{e5}",
            "\u{a0}",
            ".",
            "\0",
            "\x1b$B",
            "\x1b(B",
            "bo@acme.test",
            "<cy@x.test>",
        ];
        let mut addresses = 0;
        for _ in 0..100_000 {
            let mut value: Vec<u8> =
                (0..random.usize(..12)).flat_map(|_| pieces[random.usize(..pieces.len())].bytes()).collect();
            if random.u8(..8) == 0 {
                value.push(random.u8(128..));
            }
            for mailbox in mailboxes(&value, None).filter_map(Element::mailbox) {
                let printed = mailbox.address.to_string();
                assert_eq!(
                    Address::parse(&printed).as_ref(),
                    Ok(&mailbox.address),
                    "{}",
                    value.escape_ascii()
                );
                let (found, skipped) = read(printed.as_bytes());
                assert_eq!((found, skipped), (vec![(String::new(), printed)], 0), "{}", value.escape_ascii());
                addresses += 1;
            }
        }
        assert!(addresses > 10_000, "{addresses}");
    }
}
