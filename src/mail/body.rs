//! What of a message is its text, what its HTML, and what its files (RFC 8621, section 4.1.4).
//!
//! In: the parts as they were read. Out: a [`Body`].
//! Promise: each leaf stands in the text, in the HTML or among the files; which of alternatives, footers, named texts and
//! roots of a `multipart/related` are shown is decided as RFC 8621 says, from the whole tree.
//! Fails: never.

use super::{
    charset::{decode_charset, decode_cut, says_nothing},
    file_name::{MAX_NAME_BYTES, safe_name},
    flowed, html,
    part::{Disposition, PartHead},
    raw::Cut,
    text::{is_blank, plain_lines},
    transfer_encoding::Encoding,
};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

/// What a message says and carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// Plain text; made from the HTML where the message has none.
    pub text: Option<String>,
    /// HTML as sent; plain parts before and behind it as HTML.
    pub html: Option<String>,
    /// Attachments and inline files, in order.
    pub files: Vec<FilePart>,
    /// Where the body starts in the raw message, in bytes.
    pub offset: u64,
    /// Where `text` stands in the raw message as it is, but for the line ends ([`super::Raw::verbatim`]); none if it was
    /// decoded.
    pub verbatim: Option<Cut>,
    /// BLAKE3 of the body without its white space.
    pub digest: [u8; 32],
    /// Where each leaf went, in order.
    pub parts: Vec<ReadPart>,
}

/// One file of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePart {
    /// Safe name: one path component, no control characters, never empty.
    pub name: String,
    /// Media type, lower case, without parameters.
    pub content_type: String,
    /// Decoded size in bytes.
    pub size: u64,
    /// SHA-256 of the decoded bytes, lower-case hex.
    pub sha256: String,
    /// Shown within the text (RFC 2183, section 2.1; RFC 2387).
    pub inline: bool,
    /// Content-ID without brackets.
    pub content_id: Option<String>,
    /// Where the bytes lie.
    pub cut: Cut,
}

/// What became of a leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadPart {
    /// Its place, as IMAP counts (RFC 9051, section 6.4.5.1): `2.1`.
    pub section: String,
    /// Media type.
    pub content_type: String,
    /// How it is encoded.
    pub encoding: Encoding,
    /// Decoded size in bytes.
    pub size: u64,
    /// Where it stands.
    pub place: Place,
}

/// Where a leaf stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// In the text, as it is or made from HTML.
    pub text: bool,
    /// In the HTML.
    pub html: bool,
    /// Index among the files.
    pub file: Option<usize>,
}

/// A part as it was read.
#[derive(Debug)]
pub(super) struct Node {
    /// The multipart that it lies in.
    pub(super) parent: Option<usize>,
    pub(super) head: PartHead,
    /// None for a multipart that was taken apart.
    pub(super) leaf: Option<Leaf>,
    /// The part behind whose encoded content this clear text stood.
    pub(super) behind: Option<usize>,
}

/// Content that is no multipart.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) cut: Cut,
    /// Decoded size in bytes.
    pub(super) size: u64,
    /// Of all decoded bytes; none where all are held.
    pub(super) hash: Option<Sha256>,
    /// Decoded bytes from the start.
    pub(super) held: Vec<u8>,
    /// The name that the encoded content gives itself.
    pub(super) own_name: Option<String>,
    /// The subject of a message within the message.
    pub(super) subject: Option<String>,
}

impl Leaf {
    pub(super) fn is_complete(&self) -> bool {
        self.hash.is_none()
    }

    /// SHA-256 of the decoded bytes, lower-case hex.
    fn sha256(&mut self) -> String {
        let hash = self.hash.take().unwrap_or_else(|| Sha256::new_with_prefix(&self.held));
        hash.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }
}

/// What stands within a multipart that is encoded as a whole.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) text: Option<String>,
    pub(super) html: Option<String>,
}

/// Decides what of the parts is shown.
pub(super) fn choose(nodes: Vec<Node>, inner: Vec<Inner>, offset: u64, digest: [u8; 32]) -> Body {
    let mut lists = Lists::of(&nodes);
    lists.walk(&[0], None, false, true, true);
    lists.add_clear_text();
    lists.add_unknown_text();
    let Lists { text, html, .. } = lists;
    Composer { nodes, inner, text, html }.compose(offset, digest)
}

/// The lists of RFC 8621, section 4.1.4: leaves that are shown as text, and as HTML.
struct Lists<'a> {
    nodes: &'a [Node],
    children: Vec<Vec<usize>>,
    text: Vec<usize>,
    html: Vec<usize>,
}

impl<'a> Lists<'a> {
    fn of(nodes: &'a [Node]) -> Self {
        let mut children = vec![Vec::new(); nodes.len()];
        for (index, node) in nodes.iter().enumerate() {
            if let (Some(parent), None) = (node.parent, node.behind) {
                children[parent].push(index);
            }
        }
        Self { nodes, children, text: Vec::new(), html: Vec::new() }
    }

    /// The RFC's own algorithm. `in_text` and `in_html` are false where its lists are null. The reader limits the depth.
    fn walk(
        &mut self,
        parts: &[usize],
        multipart: Option<&PartHead>,
        in_alternative: bool,
        mut in_text: bool,
        mut in_html: bool,
    ) {
        let is_alternative = multipart.is_some_and(|head| head.is("multipart/alternative"));
        let (text_before, html_before) = (self.text.len(), self.html.len());
        let root = self.root(parts, multipart);
        for (position, &part) in parts.iter().enumerate() {
            let node = &self.nodes[part];
            if node.leaf.is_none() {
                let children = std::mem::take(&mut self.children[part]);
                let inner = in_alternative || node.head.is("multipart/alternative");
                self.walk(&children, Some(&node.head), inner, in_text, in_html);
                continue;
            }
            if !is_shown(node, position == root, multipart) {
                continue;
            }
            let is_html = node.head.is("text/html");
            if is_alternative {
                match is_html {
                    true if in_html => self.html.push(part),
                    false if in_text => self.text.push(part),
                    _ => {}
                }
                continue;
            }
            if in_alternative {
                // An alternative that has this kind is not one of the other.
                if is_html { in_text = false } else { in_html = false }
            }
            if in_text {
                self.text.push(part);
            }
            if in_html {
                self.html.push(part);
            }
        }
        if is_alternative && in_text && in_html {
            // Where there is one kind only, it stands for both.
            if self.text.len() == text_before {
                self.text.extend_from_slice(&self.html[html_before..]);
            } else if self.html.len() == html_before {
                self.html.extend_from_slice(&self.text[text_before..]);
            }
        }
    }

    /// The index of the part that a `multipart/related` shows (RFC 2387, section 3.2); elsewhere the first.
    fn root(&self, parts: &[usize], multipart: Option<&PartHead>) -> usize {
        let start =
            multipart.filter(|head| head.is("multipart/related")).and_then(|head| head.start.as_ref());
        let named = |part: &usize| start.is_some() && self.nodes[*part].head.content_id.as_ref() == start;
        parts.iter().position(named).unwrap_or(0)
    }

    /// Clear text behind encoded content goes where that went; behind a file it is text for people all the same.
    fn add_clear_text(&mut self) {
        let mut behind = vec![None; self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            if let Some(before) = node.behind {
                behind[before] = Some(index);
            }
        }
        let mut shown = vec![false; self.nodes.len()];
        self.text.iter().chain(&self.html).for_each(|&part| shown[part] = true);
        for list in [&mut self.text, &mut self.html] {
            let with_behind = list.iter().flat_map(|&part| [Some(part), behind[part]]);
            let beside_files = behind.iter().enumerate().filter(|(before, _)| !shown[*before]);
            *list = with_behind.chain(beside_files.map(|(_, index)| *index)).flatten().collect();
        }
    }

    /// A message that says nothing but in a text of an unknown kind: it is text (RFC 2046, section 4.1.4).
    fn add_unknown_text(&mut self) {
        if !(self.text.is_empty() && self.html.is_empty()) {
            return;
        }
        let unknown = |node: &Node| {
            let head = &node.head;
            let says_file = head.disposition == Disposition::Attachment || head.name.is_some();
            node.leaf.is_some() && head.media_type.starts_with("text/") && !says_file
        };
        self.text.extend(self.nodes.iter().position(unknown));
    }
}

/// Whether a leaf is part of what a person reads. In an alternative each part is one way to show the whole, and a name
/// means nothing.
fn is_shown(node: &Node, is_root: bool, multipart: Option<&PartHead>) -> bool {
    let head = &node.head;
    let of = |media_type| multipart.is_some_and(|multipart| multipart.is(media_type));
    // A message that cannot be taken apart is shown as it is, beside being a file.
    let is_text =
        head.is("text/plain") || head.is("text/html") || (head.is_multipart() && node.parent.is_none());
    let placed = is_root || of("multipart/alternative") || (!of("multipart/related") && head.name.is_none());
    head.disposition != Disposition::Attachment && is_text && placed
}

/// Puts the lists together.
struct Composer {
    nodes: Vec<Node>,
    inner: Vec<Inner>,
    text: Vec<usize>,
    html: Vec<usize>,
}

impl Composer {
    fn compose(mut self, offset: u64, digest: [u8; 32]) -> Body {
        let inner = std::mem::take(&mut self.inner);
        let html = self.html_body();
        let mut verbatim = None;
        let text = self.text_body(&html, &mut verbatim);
        let (files, parts) = self.files();
        let mut body = Body { text, html, files, offset, verbatim, digest, parts };
        for Inner { text, html, .. } in inner {
            for (whole, more) in [(&mut body.text, text), (&mut body.html, html)] {
                let Some(more) = more else { continue };
                body.verbatim = None;
                *whole =
                    Some(whole.take().map_or_else(|| more.clone(), |before| format!("{before}\n{more}")));
            }
        }
        body
    }

    /// The parts of `html` joined; none if no HTML is among them.
    fn html_body(&self) -> Option<String> {
        let is_html = |&&part: &&usize| self.nodes[part].head.is("text/html");
        self.html.iter().find(is_html)?;
        let pieces: Vec<String> = self
            .html
            .iter()
            .map(|&part| (self.is_html(part), self.decoded(part).0))
            .filter(|(_, text)| !is_blank(text))
            .map(|(is_html, text)| if is_html { text } else { html::from_text(&text) })
            .collect();
        joined(pieces)
    }

    /// The parts of `text` joined, HTML as text; where they say nothing, what the HTML says. `verbatim`: where it stands
    /// as it is.
    fn text_body(&self, whole_html: &Option<String>, verbatim: &mut Option<Cut>) -> Option<String> {
        if let [only] = *self.text.as_slice()
            && !self.is_html(only)
        {
            let (text, as_it_is) = self.decoded(only);
            if !is_blank(&text) {
                let cut = |leaf: &Leaf| leaf.cut;
                *verbatim = self.nodes[only].leaf.as_ref().map(cut).filter(|_| as_it_is);
                return Some(text);
            }
        }
        let pieces: Vec<String> = self
            .text
            .iter()
            .map(|&part| (self.is_html(part), self.decoded(part).0))
            .map(|(is_html, text)| if is_html { html::to_text(&text) } else { text })
            .filter(|text| !is_blank(text))
            .collect();
        joined(pieces).or_else(|| whole_html.as_deref().map(html::to_text)).filter(|text| !is_blank(text))
    }

    fn is_html(&self, part: usize) -> bool {
        self.nodes[part].head.is("text/html")
    }

    /// The text of a leaf; true if it stands in the message like this, but for the line ends.
    fn decoded(&self, part: usize) -> (String, bool) {
        let Node { head, leaf: Some(leaf), .. } = &self.nodes[part] else { return (String::new(), false) };
        let meta;
        let charset = match &head.charset {
            charset if head.is("text/html") && says_nothing(charset.as_deref()) => {
                meta = html::meta_charset(&leaf.held);
                meta.as_deref().or(charset.as_deref())
            }
            charset => charset.as_deref(),
        };
        let text = if leaf.is_complete() {
            decode_charset(&leaf.held, charset)
        } else {
            decode_cut(&leaf.held, charset)
        };
        let as_it_is = leaf.is_complete()
            && leaf.cut.encoding == Encoding::Identity
            && head.flowed.is_none()
            && text.as_bytes() == leaf.held;
        let text = plain_lines(&text);
        match head.flowed {
            Some(delsp) if head.is("text/plain") => (flowed::unflow(&text, delsp), false),
            _ => (text, as_it_is),
        }
    }

    /// Which of the parts are in a list.
    fn listed(&self, list: &[usize]) -> Vec<bool> {
        let mut listed = vec![false; self.nodes.len()];
        list.iter().for_each(|&part| listed[part] = true);
        listed
    }

    /// What is not shown, or not all of it.
    fn files(&mut self) -> (Vec<FilePart>, Vec<ReadPart>) {
        let (mut files, mut parts): (Vec<FilePart>, Vec<ReadPart>) = (Vec::new(), Vec::new());
        let sections = sections(&self.nodes);
        let unknown = |head: &PartHead| !(head.is("text/plain") || head.is("text/html"));
        let (in_text, in_html) = (self.listed(&self.text), self.listed(&self.html));
        for (index, section) in sections.into_iter().enumerate() {
            let related =
                self.nodes[index].parent.is_some_and(|at| self.nodes[at].head.is("multipart/related"));
            let Node { head, leaf, .. } = &mut self.nodes[index];
            let Some(leaf) = leaf else { continue };
            let (text, html) = (in_text[index], in_html[index]);
            let mut place = Place { text, html, file: None };
            if !(text || html) || !leaf.is_complete() || unknown(head) {
                place.file = Some(files.len());
                // RFC 2045, section 6.4: what is encoded as nobody can undo has no type.
                let undone = head.encoding != Encoding::Uuencode || leaf.cut.encoding == Encoding::Uuencode;
                let content_type = if head.is_multipart() || head.media_type.is_empty() || !undone {
                    "application/octet-stream".to_owned()
                } else {
                    head.media_type.clone()
                };
                let inline = head.disposition == Disposition::Inline
                    || (related && head.disposition != Disposition::Attachment && head.content_id.is_some());
                files.push(FilePart {
                    name: file_name(head, leaf, files.len() + 1),
                    content_type,
                    size: leaf.size,
                    sha256: leaf.sha256(),
                    inline,
                    content_id: head.content_id.clone(),
                    cut: leaf.cut,
                });
            }
            parts.push(ReadPart {
                section,
                content_type: head.media_type.clone(),
                encoding: leaf.cut.encoding,
                size: leaf.size,
                place,
            });
        }
        (files, parts)
    }
}

/// The name a part has, or one made of its subject, its kind and its number.
fn file_name(head: &PartHead, leaf: &Leaf, number: usize) -> String {
    if let Some(name) = head.name.as_ref().or(leaf.own_name.as_ref()) {
        let bare = head.is_message() && !name.contains('.');
        return if bare { format!("{name}.eml") } else { name.clone() };
    }
    match head.media_type.as_str() {
        "message/rfc822" | "message/global" => {
            let subject = leaf.subject.as_deref().unwrap_or_default().replace(['/', '\\'], "-");
            let name = safe_name(&subject, MAX_NAME_BYTES);
            if is_blank(&name) { "message.eml".to_owned() } else { format!("{name}.eml") }
        }
        "text/plain" => format!("text-{number}.txt"),
        "text/html" => format!("text-{number}.html"),
        "text/calendar" => format!("invite-{number}.ics"),
        _ => format!("attachment-{number}"),
    }
}

fn joined(pieces: Vec<String>) -> Option<String> {
    match pieces.len() {
        0 => None,
        1 => pieces.into_iter().next(),
        _ => Some(pieces.join("\n")),
    }
}

/// The section numbers of all parts.
fn sections(nodes: &[Node]) -> Vec<String> {
    let mut children = vec![0_usize; nodes.len()];
    let mut sections: Vec<String> = Vec::with_capacity(nodes.len());
    for (index, node) in nodes.iter().enumerate() {
        let section = match node.parent {
            Some(parent) => {
                children[parent] += 1;
                let before = &sections[parent];
                let dot = if before.is_empty() { "" } else { "." };
                format!("{before}{dot}{}", children[parent])
            }
            // A message of one part has the section 1; a multipart itself has none.
            None if node.leaf.is_some() => format!("{}", index + 1),
            None => String::new(),
        };
        sections.push(section);
    }
    sections
}
