//! HTML of a mail: the text a person would read, the charset it names, and plain text as HTML.
//!
//! In: HTML as sent, also broken. Out: plain text, a line for each block, row and list item.
//! Promise: one pass without recursion, whatever is nested; the text is at most four times as long as the HTML; no
//! style, script or markup is shown, and nothing that is not closed (comment, style, title, tag) hides what follows.
//! Fails: never.
//!
//! html5gum takes the tags apart (states, quotes, all entities as HTML has them); which elements break lines stands
//! here. Why not html2text: it builds a tree by html5ever, whose cost grows with the square of the depth (128 KB of
//! nested `<div>` are minutes, servo/html5ever issue 788), and lays tables out in columns, which hurts mail made of
//! them. Why not mail-parser's `html_to_text`: it glues words at `</div><div>` and `</td><td>`, shows style and loses
//! what follows a `<head>` without end. What a tree would add (implied end tags, misnesting) makes no difference to
//! where lines break.
//!
//! Left out on purpose: addresses of links (trackers of hundreds of characters between the words; they stand in the
//! HTML beside), CSS (what `display: none` hides is kept: a line too many is better than one too few).

use html5gum::{Emitter, Error, State, Tokenizer};
use memchr::memmem;
use std::{borrow::Cow, convert::Infallible};

/// How deep quotes and lists are marked at the most, so that a nest of them does not multiply the text.
const MAX_QUOTE_MARKS: usize = 4;
const MAX_INDENTS: usize = 4;
/// Bytes of an attribute that are looked at; no more of an `alt` is shown.
const MAX_ATTRIBUTE_BYTES: usize = 1024;
/// Longer than any element or attribute that means something here.
const MAX_NAME_BYTES: usize = 15;
/// How often a tag whose quote is never closed is dropped; after that, quotes count for nothing.
const MAX_TORN_TAGS: usize = 4;
/// Where a document may name its charset. HTML says 1,024 bytes; mail programs write longer heads.
const PRESCAN_BYTES: usize = 4096;

/// The text of an HTML document or fragment, with LF at the line ends.
pub(super) fn to_text(html: &str) -> String {
    let html = without_open_comments(html);
    let mut page = Page::default();
    let mut rest = Cow::Borrowed(&*html);
    for round in 0_usize.. {
        let mut walker = Walker::new(&rest, &mut page);
        let Ok(()) = Tokenizer::new_with_emitter(&*rest, &mut walker).finish();
        let Some(torn) = walker.torn else { break };
        let tag = rest.get(torn..).unwrap_or_default();
        let Some(end) = memchr::memchr(b'>', tag.as_bytes()) else {
            // The text ends within a tag, or a person wrote `a <b and c`.
            if tag.contains(' ') && !tag.contains('=') {
                page.text(tag);
            }
            break;
        };
        let after = &tag[end + 1..];
        rest = if round < MAX_TORN_TAGS {
            Cow::Owned(after.to_owned())
        } else {
            Cow::Owned(after.replace(['"', '\''], ""))
        };
    }
    page.finish()
}

/// The charset that an HTML document names for itself: `<meta charset>`, `<meta http-equiv>` or the XML declaration.
#[allow(dead_code)] // the body's reader calls it
pub(super) fn meta_charset(bytes: &[u8]) -> Option<String> {
    let head = &bytes[..bytes.len().min(PRESCAN_BYTES)];
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let mut rest = head.as_str();
    while let Some(at) = rest.find('<') {
        rest = &rest[at..];
        if let Some(comment) = rest.strip_prefix("<!--") {
            rest = comment.find("-->").map_or("", |end| &comment[end..]);
            continue;
        }
        let tag = &rest[..rest.find('>').unwrap_or(rest.len())];
        let found = if tag.starts_with("<?xml") {
            value_of(tag, "encoding")
        } else if tag.starts_with("<meta") {
            value_of(tag, "charset")
        } else {
            None
        };
        match found {
            // These bytes were read as ASCII, so they are not UTF-16 (HTML, section 13.2.3.2).
            Some(name) if name.starts_with("utf-16") || name.starts_with("utf16") => {
                return Some("utf-8".into());
            }
            Some(name) => return Some(name),
            None => rest = &rest[1..],
        }
    }
    None
}

/// The value after `key` and `=` in a tag, in whatever quotes.
fn value_of(tag: &str, key: &str) -> Option<String> {
    tag.match_indices(key).find_map(|(at, _)| {
        let value = tag[at + key.len()..].trim_start().strip_prefix('=')?.trim_start();
        let value = value.trim_start_matches(['"', '\'', ' ']);
        let end = value.find(|c: char| c.is_whitespace() || "\"';>/?,".contains(c)).unwrap_or(value.len());
        Some(value[..end].to_owned()).filter(|name| !name.is_empty())
    })
}

/// Plain text as an HTML fragment that looks like it: lines and blanks stay. `pre` and not a `div` with CSS alone,
/// because who shows foreign HTML often takes its `style` off.
#[allow(dead_code)] // the body's reader calls it
pub(super) fn from_text(text: &str) -> String {
    let mut html = String::with_capacity(text.len() + text.len() / 16 + 64);
    html.push_str("<pre style=\"white-space: pre-wrap\">");
    if text.starts_with('\n') {
        html.push('\n'); // HTML drops the first line end in `pre`
    }
    let mut from = 0;
    for (at, mark) in text.match_indices(['&', '<', '>', '"']) {
        html.push_str(&text[from..at]);
        html.push_str(match mark {
            "&" => "&amp;",
            "<" => "&lt;",
            ">" => "&gt;",
            _ => "&quot;",
        });
        from = at + 1;
    }
    html.push_str(&text[from..]);
    html.push_str("</pre>\n");
    html
}

/// The document without the beginnings of comments that never end: browsers hide all that follows one, a person whose
/// mail was cut or filtered did not mean that. Nothing behind the last `-->` can be in a comment that ends.
fn without_open_comments(html: &str) -> Cow<'_, str> {
    let bytes = html.as_bytes();
    let last =
        memmem::rfind(bytes, b"-->").map(|at| at + 3).max(memmem::rfind(bytes, b"--!>").map(|at| at + 4));
    let (closed, open) = html.split_at(last.unwrap_or(0));
    if memmem::find(open.as_bytes(), b"<!--").is_none() {
        return html.into();
    }
    (closed.to_owned() + &open.replace("<!--", "")).into()
}

/// What the tokenizer calls; makes tags and text of it.
struct Walker<'a> {
    html: &'a str,
    page: &'a mut Page,
    /// Bytes taken so far, and where the last `<` stands.
    position: usize,
    tag_start: usize,
    text: Vec<u8>,
    tag: Tag,
    /// The tag that has begun and not ended.
    in_tag: bool,
    attribute: Name,
    value: Vec<u8>,
    last_start_tag: Name,
    /// The element whose text is not for people: until its end tag, or if it has none, until the next tag.
    unseen: Option<Unseen>,
    closers: Vec<(Name, usize)>,
    /// Where a tag begins that the document never ends.
    torn: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unseen {
    Closed,
    /// Text behind the last rule of a style sheet is text again.
    Open {
        style: bool,
    },
}

#[derive(Default)]
struct Tag {
    name: Name,
    is_end: bool,
    alt: String,
    style: String,
    /// `start` of `ol`, `value` of `li`.
    number: Option<u32>,
}

impl Tag {
    /// As new, with the memory it has: a mail may hold 300,000 tags.
    fn begin(&mut self, is_end: bool) {
        (self.name, self.is_end, self.number) = (Name::default(), is_end, None);
        self.alt.clear();
        self.style.clear();
    }
}

/// The name of an element or attribute, in ASCII; a longer one is cut and so means nothing.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Name {
    bytes: [u8; MAX_NAME_BYTES],
    len: usize,
}

impl Name {
    fn push(&mut self, name: &[u8]) {
        for (place, byte) in self.bytes[self.len..].iter_mut().zip(name) {
            *place = if byte.is_ascii() { *byte } else { b'?' };
            self.len += 1;
        }
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

impl<'a> Walker<'a> {
    fn new(html: &'a str, page: &'a mut Page) -> Self {
        Self {
            html,
            page,
            position: 0,
            tag_start: 0,
            text: Vec::new(),
            tag: Tag::default(),
            in_tag: false,
            attribute: Name::default(),
            value: Vec::new(),
            last_start_tag: Name::default(),
            unseen: None,
            closers: Vec::new(),
            torn: None,
        }
    }

    fn flush_text(&mut self) {
        if self.text.is_empty() {
            self.unseen = None;
            return;
        }
        let text = String::from_utf8_lossy(&self.text);
        match self.unseen.take() {
            None => self.page.text(&text),
            Some(Unseen::Open { style: true }) => {
                if let Some(at) = text.rfind('}') {
                    self.page.text(&text[at + 1..]);
                }
            }
            Some(_) => {}
        }
        self.text.clear();
    }

    fn flush_attribute(&mut self) {
        if self.attribute.len == 0 {
            self.value.clear();
            return;
        }
        let value = String::from_utf8_lossy(&self.value);
        let number = || value.trim().parse().ok();
        match self.attribute.as_str() {
            "alt" if self.tag.alt.is_empty() => self.tag.alt.push_str(&value),
            "style" if self.tag.style.is_empty() => self.tag.style.push_str(&value),
            "start" | "value" => self.tag.number = self.tag.number.or_else(number),
            _ => {}
        }
        self.attribute = Name::default();
        self.value.clear();
    }

    /// True if an end tag of `name` lies ahead. Each stretch is searched once for each name.
    fn is_closed(&mut self, name: Name) -> bool {
        let known = self.closers.iter().position(|(closer, _)| *closer == name);
        let index = known.unwrap_or_else(|| {
            self.closers.push((name, 0));
            self.closers.len() - 1
        });
        let (_, next) = &mut self.closers[index];
        if *next < self.position {
            let ahead = self.html.as_bytes().get(self.position..).unwrap_or_default();
            *next = memmem::find_iter(ahead, b"</")
                .find(|at| is_end_tag(&ahead[at + 2..], name.as_str()))
                .map_or(usize::MAX, |at| self.position + at);
        }
        *next != usize::MAX
    }

    fn open(&mut self) -> Option<State> {
        let tag_name = self.tag.name;
        let name = tag_name.as_str();
        self.last_start_tag = tag_name;
        if matches!(name, "template" | "xml") && self.page.hidden.is_none() && self.is_closed(tag_name) {
            self.page.hidden = Some((tag_name, 0));
            return None;
        }
        let state = match name {
            // `script` too: its own states can hide an end tag, and its text is not shown.
            "style" | "script" | "iframe" => Some(State::RawText),
            "title" | "textarea" => Some(State::RcData),
            _ => None,
        };
        let closed = state.is_some() && self.is_closed(tag_name);
        if state.is_some() && name != "textarea" {
            self.unseen = Some(if closed { Unseen::Closed } else { Unseen::Open { style: name == "style" } });
        }
        self.page.open(&self.tag);
        state.filter(|_| closed)
    }
}

fn is_end_tag(bytes: &[u8], name: &str) -> bool {
    bytes.get(..name.len()).is_some_and(|found| found.eq_ignore_ascii_case(name.as_bytes()))
        && bytes.get(name.len()).is_none_or(|byte| byte.is_ascii_whitespace() || matches!(byte, b'/' | b'>'))
}

impl Emitter for &mut Walker<'_> {
    type Token = Infallible;

    fn set_last_start_tag(&mut self, name: Option<&[u8]>) {
        self.last_start_tag = Name::default();
        self.last_start_tag.push(name.unwrap_or_default());
    }

    fn emit_eof(&mut self) {
        self.torn = self.in_tag.then_some(self.tag_start);
        self.flush_text();
    }

    fn emit_error(&mut self, _: Error) {}

    fn should_emit_errors(&mut self) -> bool {
        false
    }

    fn pop_token(&mut self) -> Option<Infallible> {
        None
    }

    fn emit_string(&mut self, text: &[u8]) {
        self.in_tag = false;
        self.text.extend_from_slice(text);
    }

    fn init_start_tag(&mut self) {
        self.tag.begin(false);
        self.in_tag = true;
    }

    fn init_end_tag(&mut self) {
        self.tag.begin(true);
        self.in_tag = true;
    }

    fn init_comment(&mut self) {
        self.in_tag = false;
    }

    fn emit_current_tag(&mut self) -> Option<State> {
        self.in_tag = false;
        self.flush_attribute();
        self.flush_text();
        if self.tag.is_end {
            self.page.close(self.tag.name);
            return None;
        }
        self.open()
    }

    fn emit_current_comment(&mut self) {}

    fn emit_current_doctype(&mut self) {}

    fn set_self_closing(&mut self) {}

    fn set_force_quirks(&mut self) {}

    fn push_tag_name(&mut self, name: &[u8]) {
        self.tag.name.push(name);
    }

    fn push_comment(&mut self, _: &[u8]) {}

    fn push_doctype_name(&mut self, _: &[u8]) {}

    fn init_doctype(&mut self) {
        self.in_tag = false;
    }

    fn init_attribute(&mut self) {
        self.flush_attribute();
    }

    fn push_attribute_name(&mut self, name: &[u8]) {
        self.attribute.push(name);
    }

    fn push_attribute_value(&mut self, value: &[u8]) {
        let room = MAX_ATTRIBUTE_BYTES.saturating_sub(self.value.len());
        self.value.extend_from_slice(&value[..value.len().min(room)]);
    }

    fn set_doctype_public_identifier(&mut self, _: &[u8]) {}

    fn set_doctype_system_identifier(&mut self, _: &[u8]) {}

    fn push_doctype_public_identifier(&mut self, _: &[u8]) {}

    fn push_doctype_system_identifier(&mut self, _: &[u8]) {}

    fn start_open_tag(&mut self) {
        self.tag_start = self.position.saturating_sub(1);
    }

    fn current_is_appropriate_end_tag_token(&mut self) -> bool {
        self.tag.is_end && self.tag.name == self.last_start_tag
    }

    fn move_position(&mut self, offset: isize) {
        self.position = self.position.saturating_add_signed(offset);
    }
}

/// The text in the making: lines that are done, and the one that is being written.
#[derive(Default)]
struct Page {
    done: String,
    /// Where the last line with text ends in it.
    text_end: usize,
    lines: usize,
    line: String,
    /// Quote marks of the line, and of the one before.
    line_quote: usize,
    last_quote: usize,
    /// An empty line comes before this line; after it.
    blank_before: bool,
    blank_after: bool,
    /// The line has ended, unless a cell of the same row comes next.
    ended: bool,
    /// White space, a cell's border, a joiner of letters: written only if something follows.
    space: bool,
    cell: bool,
    joiner: Option<char>,
    /// `- ` or a number before the next text.
    marker: Option<Marker>,
    quote: usize,
    pre: usize,
    /// `pre` has just begun: its first line end is none.
    pre_begins: bool,
    /// The element that has `white-space: pre` by its style, and how many of its name are open in it.
    styled_pre: Option<(Name, usize)>,
    /// The element that is not shown, likewise.
    hidden: Option<(Name, usize)>,
    /// The next number of each open list, if it counts.
    lists: Vec<Option<u32>>,
    /// Lines that were done when the row began, for each open table.
    rows: Vec<usize>,
}

#[derive(Clone, Copy)]
struct Marker {
    indent: usize,
    number: Option<u32>,
}

impl Page {
    fn open(&mut self, tag: &Tag) {
        let name = tag.name.as_str();
        if let Some((hidden, depth)) = &mut self.hidden {
            *depth += usize::from(*hidden == tag.name);
            return;
        }
        match &mut self.styled_pre {
            Some((styled, depth)) => *depth += usize::from(*styled == tag.name),
            None if keeps_blanks(&tag.style) && !is_void(name) => self.styled_pre = Some((tag.name, 1)),
            _ => {}
        }
        match name {
            "br" => self.line_break(),
            "img" => self.picture(&tag.alt),
            "td" | "th" => self.begin_cell(),
            "tr" => self.begin_row(),
            _ => self.boundary(name),
        }
        match name {
            "ul" | "menu" | "dir" => self.lists.push(None),
            "ol" => self.lists.push(Some(tag.number.unwrap_or(1))),
            "li" => self.begin_item(tag.number),
            "blockquote" => self.quote += 1,
            "table" => self.rows.push(self.lines),
            "pre" | "listing" | "xmp" | "plaintext" | "textarea" => {
                self.pre += 1;
                self.pre_begins = true;
            }
            _ => {}
        }
    }

    fn close(&mut self, tag_name: Name) {
        if let Some((hidden, depth)) = &mut self.hidden {
            match (*hidden == tag_name, *depth) {
                (true, 0) => self.hidden = None,
                (true, _) => *depth -= 1,
                _ => {}
            }
            return;
        }
        if let Some((styled, depth)) = &mut self.styled_pre
            && *styled == tag_name
        {
            *depth -= 1;
            if *depth == 0 {
                self.styled_pre = None;
            }
        }
        let name = tag_name.as_str();
        match name {
            "br" => return self.line_break(), // HTML reads `</br>` so
            "blockquote" => self.quote = self.quote.saturating_sub(1),
            "pre" | "listing" | "xmp" | "textarea" => self.pre = self.pre.saturating_sub(1),
            "ul" | "ol" | "menu" | "dir" => drop(self.lists.pop()),
            "table" => drop(self.rows.pop()),
            "li" => self.marker = None,
            _ => {}
        }
        self.boundary(name);
    }

    /// Where an element begins or ends: a line, a paragraph, or nothing.
    fn boundary(&mut self, name: &str) {
        match name {
            "p" | "h1" | "h2" | "h3" | "h4" | "h5" | "h6" | "hr" => self.end_line_with_blank(),
            "address" | "article" | "aside" | "blockquote" | "body" | "caption" | "center" | "dd"
            | "details" | "dialog" | "dir" | "div" | "dl" | "dt" | "fieldset" | "figcaption" | "figure"
            | "footer" | "form" | "frameset" | "head" | "header" | "hgroup" | "html" | "legend" | "li"
            | "listing" | "main" | "menu" | "nav" | "noframes" | "ol" | "optgroup" | "option"
            | "plaintext" | "pre" | "search" | "section" | "select" | "summary" | "table" | "tbody"
            | "textarea" | "tfoot" | "thead" | "title" | "tr" | "ul" | "xmp" => self.end_line(),
            _ => {}
        }
    }

    fn end_line(&mut self) {
        if !self.cell {
            self.ended = !self.line.is_empty();
            (self.space, self.joiner) = (false, None);
        }
    }

    fn end_line_with_blank(&mut self) {
        self.end_line();
        self.blank_after |= !self.cell && self.marker.is_none();
    }

    /// `br`: ends the line; if that has ended, it is an empty one.
    fn line_break(&mut self) {
        self.cell &= !self.line.is_empty();
        if self.ended || self.line.is_empty() {
            self.write_line();
            self.blank_after = true;
        }
        self.cell = false;
        self.end_line();
    }

    fn begin_row(&mut self) {
        self.end_line();
        if self.ended {
            self.write_line();
        }
        let lines = self.lines;
        if let Some(row) = self.rows.last_mut() {
            *row = lines;
        }
    }

    /// Cells stand in one line, a tab between, as long as none of them has two lines.
    fn begin_cell(&mut self) {
        if self.line.is_empty() {
            return;
        }
        if self.rows.last().copied().unwrap_or_default() == self.lines {
            (self.ended, self.blank_after, self.space, self.joiner) = (false, false, false, None);
            self.cell = true;
        } else {
            self.end_line();
        }
    }

    fn begin_item(&mut self, number: Option<u32>) {
        let indent = self.lists.len().saturating_sub(1).min(MAX_INDENTS);
        let number = match self.lists.last_mut() {
            Some(Some(next)) => {
                let number = number.unwrap_or(*next);
                *next = number.saturating_add(1);
                Some(number)
            }
            _ => None,
        };
        self.marker = Some(Marker { indent, number });
    }

    fn picture(&mut self, alt: &str) {
        let alt = alt.trim();
        if alt.chars().any(|c| !c.is_whitespace() && !is_invisible(c)) {
            self.visible('[');
            self.flowing(alt);
            self.visible(']');
        }
    }

    fn text(&mut self, text: &str) {
        if self.hidden.is_some() {
        } else if self.pre > 0 || self.styled_pre.is_some() {
            self.preformatted(text);
        } else {
            self.flowing(text);
        }
    }

    fn flowing(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                ' ' | '\n' | '\t' | '\r' | '\u{c}' => self.blank(),
                _ => self.other(c),
            }
        }
    }

    fn preformatted(&mut self, text: &str) {
        for c in text.chars() {
            let begins = std::mem::take(&mut self.pre_begins);
            match c {
                '\n' if begins => {}
                '\n' => self.pre_line(),
                ' ' | '\t' => {
                    self.begin_text();
                    self.line.push(c);
                }
                _ => self.other(c),
            }
        }
    }

    fn blank(&mut self) {
        self.joiner = None;
        self.space = !self.line.is_empty() && !self.ended;
    }

    fn other(&mut self, c: char) {
        match c {
            '\u{a0}' | '\u{2007}' => {
                self.begin_text();
                self.line.push(' ');
            }
            '\u{200c}' | '\u{200d}' => {
                let within = !self.ended && !self.space && !self.cell && !self.line.is_empty();
                self.joiner = Some(c).filter(|_| within && !self.line.ends_with(' '));
            }
            c if is_invisible(c) => {}
            c => {
                let joiner = self.joiner.take();
                self.visible(joiner.unwrap_or(c));
                if joiner.is_some() {
                    self.line.push(c);
                }
            }
        }
    }

    fn visible(&mut self, c: char) {
        self.begin_text();
        self.line.push(c);
    }

    /// Writes what was held back until something followed.
    fn begin_text(&mut self) {
        if self.ended {
            self.write_line();
        }
        if self.line.is_empty() {
            self.line_quote = self.quote.min(MAX_QUOTE_MARKS);
            self.blank_before = std::mem::take(&mut self.blank_after);
            if let Some(Marker { indent, number }) = self.marker.take() {
                self.line.extend(std::iter::repeat_n(' ', 2 * indent));
                self.line.push_str(&number.map_or("- ".to_owned(), |number| format!("{number}. ")));
            }
        } else if self.cell {
            self.line.truncate(self.line.trim_end_matches(' ').len());
            self.line.push('\t');
        } else if self.space {
            self.line.push(' ');
        }
        (self.space, self.cell, self.joiner) = (false, false, None);
    }

    /// A line end in `pre`; there empty lines are as many as were written.
    fn pre_line(&mut self) {
        if self.ended {
            self.write_line();
        }
        if !self.line.is_empty() {
            self.write_line();
        } else if !self.done.is_empty() {
            self.write_marks(self.quote.min(MAX_QUOTE_MARKS).min(self.last_quote));
            self.blank_after = false;
        }
    }

    fn write_line(&mut self) {
        let line = self.line.trim_end();
        if line.is_empty() {
            // It held blanks that do not collapse, as a mail program's empty paragraph does.
            self.blank_after |= !self.line.is_empty();
        } else {
            if self.blank_before && !self.done.is_empty() {
                let quote = self.line_quote.min(self.last_quote);
                self.done.push_str("> > > > "[..2 * quote].trim_end());
                self.done.push('\n');
            }
            self.done.push_str(&"> > > > "[..2 * self.line_quote]);
            self.done.push_str(line);
            self.done.push('\n');
            self.text_end = self.done.len();
            self.last_quote = self.line_quote;
            self.lines += 1;
        }
        self.line.clear();
        (self.ended, self.blank_before, self.space, self.cell, self.joiner) =
            (false, false, false, false, None);
    }

    fn write_marks(&mut self, quote: usize) {
        self.done.push_str("> > > > "[..2 * quote].trim_end());
        self.done.push('\n');
        self.lines += 1;
    }

    fn finish(mut self) -> String {
        self.write_line();
        self.done.truncate(self.text_end);
        self.done
    }
}

fn is_void(name: &str) -> bool {
    matches!(name, "area" | "base" | "br" | "col" | "hr" | "img" | "input" | "link" | "meta" | "wbr")
}

/// `white-space: pre`, `pre-wrap`, `pre-line`, `break-spaces`.
fn keeps_blanks(style: &str) -> bool {
    !style.is_empty()
        && style.to_ascii_lowercase().split(';').any(|rule| {
            rule.split_once(':').is_some_and(|(property, value)| {
                let value = value.trim();
                property.trim() == "white-space"
                    && (value.starts_with("pre") || value.starts_with("break-spaces"))
            })
        })
}

/// What fills the preview of a newsletter and has no shape: soft hyphen, zero width, byte order mark. Controls too.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{34f}' | '\u{180e}' | '\u{200b}'..='\u{200d}' | '\u{2060}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rows: &[(&str, &str)]) {
        for (html, expected) in rows {
            assert_eq!(to_text(html), *expected, "{html}");
        }
    }

    #[test]
    fn blocks_are_lines() {
        check(&[
            ("<div>Hej Bo,</div><div>Tack för mötet.</div>", "Hej Bo,\nTack för mötet.\n"),
            ("<p>Hello&nbsp;<b>Bo</b>,</p><p>bye</p>", "Hello Bo,\n\nbye\n"),
            ("a<br>b<br/>c<BR />d</br>e", "a\nb\nc\nd\ne\n"),
            ("a<br><br>b<br><br><br><br>c", "a\n\nb\n\nc\n"),
            ("<div>a</div><div><br></div><div>b</div>", "a\n\nb\n"),
            ("<div>a</div><div>&nbsp;</div><div>b<br></div><div>c</div>", "a\n\nb\nc\n"),
            ("<p>a</p><p>&nbsp;</p><p>&nbsp;</p><p>b</p>", "a\n\nb\n"),
            ("<br><br><p></p>a<p></p><br>", "a\n"),
            ("<h1>T</h1>x<hr>y", "T\n\nx\n\ny\n"),
            ("<dl><dt>a<dd>b<dt>c<dd>d</dl>", "a\nb\nc\nd\n"),
            (
                "x<section>a</section><article>b</article><header>c</header><footer>d</footer>",
                "x\na\nb\nc\nd\n",
            ),
            ("<form>a<fieldset><legend>b</legend>c</fieldset></form><center>d</center>", "a\nb\nc\nd\n"),
            ("<select><option>a<option>b</select>c", "a\nb\nc\n"),
            ("one <b>two</b> <i>th</i>ree\n  four", "one two three four\n"),
            ("<span>a</span><span>b</span> <a href=x> c </a> d", "ab c d\n"),
            ("a&nbsp;&nbsp; b", "a   b\n"),
            ("", ""),
            (" \n&nbsp;<p> </p>", ""),
        ]);
    }

    #[test]
    fn lists_and_quotes_are_marked() {
        check(&[
            ("<ul><li>a</li><li>b</li></ul>c", "- a\n- b\nc\n"),
            ("<ol><li>a<li>b</ol>", "1. a\n2. b\n"),
            ("<ol start=5><li>a<li value=9>b<li>c</ol>", "5. a\n9. b\n10. c\n"),
            ("<ul><li>a<ul><li>b</ul><li><p>c</p></ul>", "- a\n  - b\n- c\n"),
            ("<li>a</li><li></li><li>b", "- a\n- b\n"),
            ("x<blockquote><p>a</p><p>b</p></blockquote>y", "x\n\n> a\n>\n> b\n\ny\n"),
            ("<blockquote>a<blockquote>b</blockquote></blockquote>c", "> a\n> > b\nc\n"),
            ("x<blockquote></blockquote>", "x\n"),
            ("a &gt;", "a >\n"),
            ("a<br>&gt;", "a\n>\n"),
        ]);
    }

    #[test]
    fn cells_of_a_row_stay_on_its_line() {
        check(&[
            ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table>", "a\tb\nc\td\n"),
            ("<table><tr><th>a<th>b<tr><td>c<td>d</table>e", "a\tb\nc\td\ne\n"),
            ("<table><tr><td><p>a</p></td><td><div>b</div></td></tr></table>", "a\tb\n"),
            ("<table><tr><td>a<br>b</td><td>c</td></tr></table>", "a\nb\nc\n"),
            ("<table><tr><td></td><td> </td><td>a</td><td></td><td>b</td></tr></table>", "a\tb\n"),
            (
                "<table><tr><td><table><tr><td>a</td><td>b</td></tr></table></td><td>c</td></tr></table>",
                "a\tb\tc\n",
            ),
            ("<td>a</td><td>b</td>", "a\tb\n"),
            ("x<table><caption>t</caption><tbody><tr><td>a</td></tr></tbody></table>y", "x\nt\na\ny\n"),
        ]);
    }

    #[test]
    fn pre_keeps_its_blanks() {
        check(&[
            ("<pre>\na  b\n\n\n  c\n</pre>d", "a  b\n\n\n  c\nd\n"),
            ("<pre>a\tb</pre>", "a\tb\n"),
            ("x<textarea>a\n b</textarea>y", "x\na\n b\ny\n"),
            (
                "<div style='color:red; white-space: pre-wrap'>a\nb <div>c\nd</div>e\nf</div>g\nh",
                "a\nb\nc\nd\ne\nf\ng h\n",
            ),
            ("<span style=\"white-space:nowrap\">a\nb</span>", "a b\n"),
        ]);
        for text in ["a\nb\n", "Hej  Bo,\n\n\n<x> & \"y\"\n", "  in\n"] {
            assert_eq!(to_text(&from_text(text)), text);
        }
        assert_eq!(from_text("\n<&>"), "<pre style=\"white-space: pre-wrap\">\n\n&lt;&amp;&gt;</pre>\n");
    }

    #[test]
    fn only_what_a_person_sees_is_text() {
        check(&[
            (
                "<html><head><title>x</title><style>p{a>b}</style></head><body>a<script>if(a<b){}</script>b",
                "ab\n",
            ),
            ("<template><p>x</p></template>a<xml><o:p>96</o:p></xml>b", "ab\n"),
            ("Hel<!-- x -->lo<!---->!<!-->?", "Hello!?\n"),
            ("<!--[if mso]><p>x</p><![endif]-->a<![if !mso]>b<![endif]>c", "abc\n"),
            ("<!--[if !mso]><!-->a<!--<![endif]-->b", "ab\n"),
            ("<?xml version='1.0'?><!DOCTYPE html><p>a", "a\n"),
            ("&aring;&#229;&#xe5;&amp;&lt;b&gt;&copy&#150;&#x80;&euro;&bogus;", "ååå&<b>©–€€&bogus;\n"),
            ("Pre&zwnj;&nbsp;&zwnj;&nbsp;&shy;&#847;&#8203;<p>a", "Pre\n\na\n"),
            ("می\u{200c}خواهم 👩\u{200d}💻", "می\u{200c}خواهم 👩\u{200d}💻\n"),
            ("so&shy;ft a\u{0}b", "soft ab\n"),
            (
                "<a href='https://x.test/'>link</a><a href=y></a> <img src=z alt=' Logo '><img alt=''><img>",
                "link [Logo]\n",
            ),
            ("a < b, I <3 you", "a < b, I <3 you\n"),
        ]);
    }

    #[test]
    fn what_is_not_closed_hides_nothing() {
        check(&[
            ("<html><head><meta charset=utf-8><p>a", "a\n"),
            ("<head><title>x<body>a", "a\n"),
            ("<head><title/><p>a", "a\n"),
            ("<style>p{color:red}<body>a", "a\n"),
            ("<style>p{color:red} Hello <b>Bo</b>", "Hello Bo\n"),
            ("<script>var a;<p>a", "a\n"),
            ("a<!-- b <p>c", "a b\n\nc\n"),
            ("a<!-- x -->b<!-- <b>c</b>", "ab c\n"),
            ("a <a href=\"http://x.test/>click</a><p>b</p>", "a click\n\nb\n"),
            ("a <a href=\"x>b</a> <a href='y>c</a>", "a b c\n"),
            ("a <b and so on", "a <b and so on\n"),
            ("a<td style=\"font", "a\n"),
            ("<template>a", "a\n"),
            ("<textarea>a<p>b", "a\n\nb\n"),
            ("</td></table></ul></blockquote></pre>a</p></div>b", "a\n\nb\n"),
        ]);
    }

    #[test]
    fn a_document_names_its_charset() {
        for (html, expected) in [
            ("<meta charset=windows-1251>", Some("windows-1251")),
            ("<META CHARSET = \"KOI8-R\" />", Some("koi8-r")),
            (
                "<meta http-equiv=\"Content-Type\" content=\"text/html; charset=windows-1251\">",
                Some("windows-1251"),
            ),
            ("<meta content='text/html;charset=\"gb2312\"' http-equiv=content-type>", Some("gb2312")),
            ("<?xml version=\"1.0\" encoding='iso-8859-2'?><html>", Some("iso-8859-2")),
            ("<!-- <meta charset=x> --><meta charset='euc-kr'/>", Some("euc-kr")),
            ("<meta charset=utf-16>", Some("utf-8")),
            ("<meta name=charset content=x><meta charset=big5>", Some("big5")),
            ("<meta charset=>", None),
            ("<p>charset=x</p>", None),
            ("<!-- <meta charset=x>", None),
            ("", None),
        ] {
            assert_eq!(meta_charset(html.as_bytes()).as_deref(), expected, "{html}");
        }
        let far = " ".repeat(PRESCAN_BYTES) + "<meta charset=big5>";
        assert_eq!(meta_charset(far.as_bytes()), None);
    }

    /// Patterns that make other readers recurse, search again and again, or swallow the rest.
    const HOSTILE: &[&str] = &[
        "<div>",
        "<table><tr><td>",
        "<table><td>",
        "<ul><li>",
        "<ol><li>x",
        "<blockquote>",
        "<blockquote>a<br>",
        "<b>",
        "<p>",
        "<head>",
        "<!--",
        "<!-->",
        "<!-- -->",
        "--!>",
        "<style>",
        "<script>",
        "<title>",
        "<textarea>",
        "<template>",
        "<xml>",
        "<style>}",
        "</style",
        "<style></style>",
        "<style></stylex>",
        "<title></titl",
        "<a href=\"",
        "<a b='\">",
        "<a b=\"'>",
        "<a b='>",
        "<",
        "</",
        "<!",
        "<?",
        "&",
        "&#",
        "&#x1",
        "&amp",
        "&nbsp;",
        "&zwnj;",
        " ",
        "\n",
        "\u{a0}",
        "é",
        "<a a a a a a a",
        "<a a=1 b=2 ",
        "<pre>\n",
        "<br>",
        "<pre> \n<b>",
        "<img alt=\"x\">",
        "<span style=white-space:pre>",
        "<li>",
        "<td>",
        "<td>a",
        "<tr>",
        "a<br>",
        "<plaintext>",
        "<![CDATA[",
        "]]>",
        "<svg><title>",
        "<iframe>",
        "\0",
        "a ",
    ];

    #[test]
    fn a_megabyte_of_anything_ends() {
        // A reader that recurses or searches again and again overflows its stack or takes minutes here.
        for (index, pattern) in HOSTILE.iter().enumerate() {
            let length = if index % 10 == 0 { 1_000_000 } else { 100_000 };
            let html = pattern.repeat(length / pattern.len());
            let text = to_text(&html);
            assert!(text.len() <= 4 * html.len() + 8, "{pattern}: {}", text.len());
            let _ = meta_charset(html.as_bytes());
        }
    }

    #[test]
    fn words_outside_of_markup_stay() {
        let mut random = fastrand::Rng::with_seed(11);
        let tags = [
            "div",
            "p",
            "td",
            "tr",
            "table",
            "li",
            "ul",
            "br",
            "b",
            "pre",
            "blockquote",
            "h1",
            "span",
            "body",
            "head",
        ];
        for _ in 0..5_000 {
            let mut html = String::new();
            let mut words = Vec::new();
            for number in 0..random.usize(0..12) {
                let slash = if random.bool() { "/" } else { "" };
                html += &format!("<{slash}{}>", tags[random.usize(0..tags.len())]);
                words.push(format!("w{number}"));
                html += &format!("{} ", words[number]);
            }
            let text = to_text(&html);
            let found: Vec<_> = text.split_whitespace().filter(|w| w.starts_with('w')).collect();
            assert_eq!(found, words, "{html}");
            assert!(!text.contains("\n\n\n"), "{html}: {text:?}");
        }
        for _ in 0..20_000 {
            let html: String =
                (0..random.usize(0..8)).map(|_| HOSTILE[random.usize(0..HOSTILE.len())]).collect();
            let text = to_text(&html);
            assert!(text.is_empty() || text.ends_with('\n'), "{html}");
        }
    }
}
