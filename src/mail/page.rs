//! The text of an HTML page in the making: which elements break lines, and how white space is written.
//!
//! In: tags and stretches of text, in order. Out: plain text, a line for each block, row and list item.
//! Promise: each call costs its own length; never two empty lines in a row (but in `pre`), none at the ends.
//! Fails: never; an end tag without a beginning, or the other way round, is a line's end at most.
//!
//! A line's end is held back until text follows (`ended`), because the next cell of a row may still join the line;
//! likewise blanks and empty lines. So nothing has to be taken off again.

/// How deep quotes and lists are marked at the most, so that a nest of them does not multiply the text.
const MAX_QUOTE_MARKS: usize = 4;
const MAX_INDENTS: usize = 4;
/// Longer than any element or attribute that means something here.
const MAX_NAME_BYTES: usize = 15;

#[derive(Default)]
pub(super) struct Tag {
    pub(super) name: Name,
    pub(super) is_end: bool,
    pub(super) alt: String,
    pub(super) style: String,
    /// `start` of `ol`, `value` of `li`.
    pub(super) number: Option<u32>,
}

impl Tag {
    /// As new, with the memory it has: a mail may hold 300,000 tags.
    pub(super) fn begin(&mut self, is_end: bool) {
        (self.name, self.is_end, self.number) = (Name::default(), is_end, None);
        self.alt.clear();
        self.style.clear();
    }
}

/// The name of an element or attribute, in ASCII; a longer one is cut and so means nothing.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Name {
    bytes: [u8; MAX_NAME_BYTES],
    len: usize,
}

impl Name {
    pub(super) fn push(&mut self, name: &[u8]) {
        for (place, byte) in self.bytes[self.len..].iter_mut().zip(name) {
            *place = if byte.is_ascii() { *byte } else { b'?' };
            self.len += 1;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default()
    }
}

/// The text in the making: lines that are done, and the one that is being written.
#[derive(Default)]
pub(super) struct Page {
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
    pub(super) hidden: Option<(Name, usize)>,
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
    pub(super) fn open(&mut self, tag: &Tag) {
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

    pub(super) fn close(&mut self, tag_name: Name) {
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

    pub(super) fn text(&mut self, text: &str) {
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

    pub(super) fn finish(mut self) -> String {
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
