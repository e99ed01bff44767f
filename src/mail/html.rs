//! HTML of a mail: the text a person would read, the charset it names, and plain text as HTML.
//!
//! In: HTML as sent, also broken. Out: plain text, a line for each block, row and list item.
//! Promise: one pass without recursion, whatever is nested; the text is at most four times as long as the HTML; no
//! style, script or markup is shown, and nothing that is not closed (comment, style, title, tag) hides what follows.
//! Fails: never.
//!
//! html5gum takes the tags apart (states, quotes, all entities as HTML has them); which elements break lines stands
//! in `page`. Why not html2text: it builds a tree by html5ever, whose cost grows with the square of the depth (512 KB of
//! `<ul><li>` took 94 s in servo/html5ever issue 788), and lays tables out in columns, which hurts mail made of
//! them. Why not mail-parser's `html_to_text`: it glues words at `</div><div>` and `</td><td>`, shows style and loses
//! what follows a `<head>` without end. What a tree would add (implied end tags, misnesting) makes no difference to
//! where lines break.
//!
//! Left out on purpose: addresses of links (trackers of hundreds of characters between the words; they stand in the
//! HTML beside), CSS (what `display: none` hides is kept: a line too many is better than one too few).

use super::page::{Name, Page, Tag};
use html5gum::{Emitter, Error, State, Tokenizer};
use memchr::memmem;
use std::{borrow::Cow, convert::Infallible};

/// Bytes of an attribute that are looked at; no more of an `alt` is shown.
const MAX_ATTRIBUTE_BYTES: usize = 1024;
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
        if self.attribute.is_empty() {
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
            let length = if index % 20 == 0 { 1_000_000 } else { 60_000 };
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
