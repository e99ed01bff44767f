//! A message's body, read once, as it arrives (RFC 2045, RFC 2046).
//!
//! In: the head of the message, then its body in pieces of any size. Out: a [`Body`].
//! Promise: each byte is looked at a bounded number of times and none is read again at the end; what is held is text up
//! to [`Limits::text_bytes`] and one line; each part that is no multipart stands in the text, in the HTML or among the
//! files; a multipart that cannot be taken apart is a file as a whole. Nothing is refused for its shape: what lies beyond
//! a limit is one file.
//! Fails: never.
//!
//! # How parts are found
//!
//! A delimiter is a line (RFC 2046, section 5.1.1), so within a part nothing is looked for but a line break with two
//! hyphens behind it; the line is then held against the boundaries of all open multiparts, the outermost first. The line
//! break before a delimiter belongs to it, so a piece that ends in what may become one is not passed on yet. A multipart is
//! a part like any other until its first delimiter comes.

use super::{
    body::{self, Body, Inner, Leaf, Node},
    digest::BodyDigest,
    encoded_word::decode_unstructured,
    field::{fields, header_end, is_continuation, is_empty, is_field},
    file_name::{MAX_NAME_BYTES, safe_name},
    part::{Disposition, PartHead},
    raw::Cut,
    transfer_encoding::{Decoder, Encoding},
};
use sha2::{Digest, Sha256};
use std::io;

/// What one message may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Nested multiparts; a deeper one is kept as a file.
    pub depth: usize,
    /// Parts in all; what comes after them is kept as one file.
    pub parts: usize,
    /// Bytes of each text part put into the activity, and half of what all of them may have; a longer one is cut there
    /// and kept whole as a file.
    pub text_bytes: usize,
    /// Bytes of one part's header that are looked at.
    pub part_head_bytes: usize,
}

/// The limits in force: far above what mail programs write, far below what would hurt.
pub const LIMITS: Limits =
    Limits { depth: 20, parts: 1000, text_bytes: 1024 * 1024, part_head_bytes: 64 * 1024 };

/// Bytes for what an activity says of a file beside its name and type, and for the part here.
const DESCRIBED: usize = 400;

/// Blanks behind a boundary that are still part of the delimiter line; relays add some.
const MAX_TRAIL: usize = 256;

/// Bytes of a part that tell whether it is encoded as it says.
const SNIFFED: usize = 1024;

/// Reads one message.
#[derive(Debug)]
pub struct Reader {
    limits: Limits,
    /// Where the body starts.
    start: u64,
    /// Where `carry` starts.
    offset: u64,
    /// What cannot be judged before more comes.
    carry: Vec<u8>,
    nodes: Vec<Node>,
    multiparts: Vec<Multipart>,
    state: State,
    /// What comes next begins a line.
    at_start: bool,
    part: Option<OpenPart>,
    /// Decoded text that is held.
    held: usize,
    /// Bytes that describe the parts, in memory and in each activity.
    described: usize,
    digest: BodyDigest,
}

/// A multipart whose end has not come.
#[derive(Debug)]
struct Multipart {
    node: usize,
    boundary: Vec<u8>,
}

#[derive(Debug)]
enum State {
    /// In the header of a part.
    Header(RawHeader),
    /// In the content of a part.
    Content,
    /// Between the parts, where nothing is for people.
    Between,
}

#[derive(Debug, Default)]
struct RawHeader {
    bytes: Vec<u8>,
    /// The start of the line went by already.
    within_line: bool,
    /// The last line with anything in it ends in a semicolon, so a parameter is to follow.
    wants_more: bool,
}

/// What a line turned out to be.
enum Delimiter {
    No,
    /// More of the line must come.
    Unclear,
    Of {
        /// Index of the multipart.
        index: usize,
        last: bool,
        /// Of the line.
        length: usize,
    },
}

impl Reader {
    /// A reader for the body behind `head`; `start` is where the body lies in the message.
    pub fn new(head: &[u8], start: u64, limits: Limits) -> Self {
        Self::of(PartHead::parse(head), start, limits)
    }

    /// Reads a whole message at once: header, empty line, body.
    pub fn whole(message: &[u8], limits: Limits) -> Body {
        let (head, body) = header_end(message);
        let mut reader = Self::new(&message[..head], body as u64, limits);
        reader.push(&message[body..]);
        reader.finish()
    }

    fn of(head: PartHead, start: u64, limits: Limits) -> Self {
        let mut reader = Self {
            limits,
            start,
            offset: start,
            carry: Vec::new(),
            nodes: Vec::new(),
            multiparts: Vec::new(),
            state: State::Between,
            at_start: true,
            part: None,
            held: 0,
            described: 0,
            digest: BodyDigest::default(),
        };
        reader.begin(head, None, start);
        reader
    }

    /// Bytes that the reader holds.
    pub fn held(&self) -> usize {
        self.held + self.carry.len() + self.described
    }

    /// Reads a piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.digest.update(piece);
        if self.carry.is_empty() {
            let used = self.take(piece, false);
            self.offset += used as u64;
            self.carry.extend_from_slice(&piece[used..]);
        } else {
            let mut joined = std::mem::take(&mut self.carry);
            joined.extend_from_slice(piece);
            let used = self.take(&joined, false);
            self.offset += used as u64;
            joined.drain(..used);
            self.carry = joined;
        }
    }

    /// The end of the message.
    pub fn finish(mut self) -> Body {
        self.take_rest();
        let inner = self.inner();
        body::choose(self.nodes, inner, self.start, self.digest.finish())
    }

    fn take_rest(&mut self) {
        let rest = std::mem::take(&mut self.carry);
        let used = self.take(&rest, true);
        self.offset += used as u64;
        self.end_part();
    }

    /// Text within multiparts that are encoded as a whole, which RFC 2045, section 6.4 forbids and SAP writes.
    fn inner(&self) -> Vec<Inner> {
        let encoded = |node: &Node| {
            let leaf = node.leaf.as_ref()?;
            let whole = leaf.is_complete() && leaf.cut.encoding != Encoding::Identity;
            if !whole || node.head.boundary.is_none() {
                return None;
            }
            let head = PartHead { encoding: Encoding::Identity, ..node.head.clone() };
            let mut reader = Self::of(head, 0, self.limits);
            reader.push(&leaf.held);
            reader.take_rest();
            // Not taken apart here either: it is what it is.
            if reader.nodes.len() < 2 {
                return None;
            }
            let body = body::choose(reader.nodes, Vec::new(), 0, [0; 32]);
            Some(Inner { text: body.text, html: body.html })
        };
        self.nodes.iter().filter_map(encoded).collect()
    }

    /// Reads `bytes`; the answer is how many are dealt with. `last`: no more will come, and all are.
    fn take(&mut self, bytes: &[u8], last: bool) -> usize {
        let mut at = 0;
        loop {
            let rest = &bytes[at..];
            let position = self.offset + at as u64;
            let used = match self.state {
                State::Header(_) => self.header_line(rest, position, last),
                State::Content | State::Between => self.content(rest, position, last),
            };
            match used {
                Some(used) => at += used,
                None => return at + self.pending(&bytes[at..], last),
            }
        }
    }

    /// Passes on what is surely content, at the end of what there is.
    fn pending(&mut self, rest: &[u8], last: bool) -> usize {
        if matches!(self.state, State::Header(_)) {
            return if last { rest.len() } else { 0 };
        }
        let used = if last { rest.len() } else { rest.len() - self.kept_back(rest) };
        self.pass(&rest[..used]);
        used
    }

    /// Bytes at the end that may belong to a delimiter.
    fn kept_back(&self, rest: &[u8]) -> usize {
        if self.multiparts.is_empty() {
            return 0;
        }
        if self.at_start && b"--".starts_with(rest) {
            return rest.len();
        }
        let unclear = |from: usize| {
            let line = &rest[from..];
            b"--".starts_with(line) || matches!(self.delimiter(line, false), Delimiter::Unclear)
        };
        if self.at_start && unclear(0) {
            return rest.len();
        }
        // Only the last line can be incomplete.
        match memchr::memrchr(b'\n', rest) {
            Some(at) if unclear(at + 1) => rest.len() - before_line_break(rest, at + 1),
            _ => usize::from(rest.ends_with(b"\r")),
        }
    }

    /// A line of a part's header; the answer is how much was used, none if more must come.
    fn header_line(&mut self, rest: &[u8], position: u64, last: bool) -> Option<usize> {
        let limit = self.limits.part_head_bytes;
        let is_delimiter = matches!(self.delimiter(rest, last), Delimiter::Of { .. });
        let State::Header(header) = &mut self.state else { return None };
        if last && rest.is_empty() && header.bytes.is_empty() && !header.within_line {
            self.state = State::Between; // a delimiter, and no part behind it
            return None;
        }
        let end = memchr::memchr(b'\n', rest).map(|at| at + 1);
        let line = match end {
            Some(end) => &rest[..end],
            None if last => rest,
            None if rest.len() > limit => rest,
            None => return None,
        };
        if std::mem::replace(&mut header.within_line, end.is_none()) {
            return if line.is_empty() { self.header_over(position) } else { Some(line.len()) };
        }
        if line.is_empty() || is_delimiter {
            return self.header_over(position);
        }
        if is_empty(line) {
            self.header_over(position + line.len() as u64)?;
            return Some(line.len());
        }
        // A parameter at the start of a line: its "name" would have an equals sign in it.
        let colon = memchr::memchr(b':', line);
        let is_parameter =
            header.wants_more && colon.is_none_or(|at| line[..at].iter().any(|b| matches!(b, b'=' | b'"')));
        let goes_on = !header.bytes.is_empty() && (is_continuation(line) || is_parameter);
        if !(goes_on || is_field(line)) {
            return self.header_over(position);
        }
        if let Some(last) = line.trim_ascii_end().last() {
            header.wants_more = *last == b';';
        }
        if header.bytes.len() + line.len() < limit {
            if is_parameter && !is_continuation(line) {
                header.bytes.push(b' ');
            }
            header.bytes.extend_from_slice(line);
        }
        Some(line.len())
    }

    /// The header of a part is complete, and its content begins at `position`. Uses nothing.
    fn header_over(&mut self, position: u64) -> Option<usize> {
        let State::Header(header) = std::mem::replace(&mut self.state, State::Between) else {
            return Some(0);
        };
        let parent = self.multiparts.last().map(|multipart| multipart.node);
        let mut head = PartHead::parse(&header.bytes);
        if !head.declared && parent.is_some_and(|node| self.nodes[node].head.is("multipart/digest")) {
            head.media_type = "message/rfc822".to_owned(); // RFC 2046, section 5.1.5
        }
        self.begin(head, parent, position);
        Some(0)
    }

    /// Begins a part whose content lies at `position`.
    fn begin(&mut self, head: PartHead, parent: Option<usize>, position: u64) {
        let node = self.nodes.len();
        let words = [&head.name, &head.content_id, &head.charset].into_iter().flatten();
        self.described += DESCRIBED + head.media_type.len() + words.map(String::len).sum::<usize>();
        let room = self.room();
        let is_shown = head.media_type.starts_with("text/") || (head.is_multipart() && parent.is_none());
        let is_encoded_whole = head.boundary.is_some() && head.encoding != Encoding::Identity;
        let may_be_text = head.disposition != Disposition::Attachment && (is_shown || is_encoded_whole);
        let hold = if may_be_text { room } else { 0 };
        let sniff_subject = head.is_message() && head.name.is_none();
        self.part = Some(OpenPart::new(node, position, head.encoding, hold, sniff_subject));
        if let Some(boundary) = head.boundary.clone()
            && self.multiparts.len() < self.limits.depth
        {
            self.multiparts.push(Multipart { node, boundary });
        }
        self.nodes.push(Node { parent, head, leaf: None, behind: None });
        self.state = State::Content;
        self.at_start = true;
    }

    /// Content up to the next delimiter, and that; none if there is none.
    fn content(&mut self, rest: &[u8], position: u64, last: bool) -> Option<usize> {
        if self.multiparts.is_empty() {
            return None;
        }
        let mut from = 0;
        if self.at_start && rest.starts_with(b"--") {
            if let Some(used) = self.part_at(rest, 0, position, last) {
                return Some(used);
            }
            from = 1;
        }
        while let Some(found) = memchr::memmem::find(&rest[from..], b"\n--") {
            let line = from + found + 1;
            if let Some(used) = self.part_at(rest, line, position, last) {
                return Some(used);
            }
            from = line;
        }
        None
    }

    /// Begins the next part, if there is a delimiter at `line`.
    fn part_at(&mut self, rest: &[u8], line: usize, position: u64, last: bool) -> Option<usize> {
        let Delimiter::Of { index, last: is_last, length } = self.delimiter(&rest[line..], last) else {
            return None;
        };
        let multipart = self.multiparts[index].node;
        let is_first = self.part.as_ref().is_some_and(|part| part.node == multipart);
        if is_first && is_last {
            return None; // nothing that could be taken apart
        }
        self.pass(&rest[..before_line_break(rest, line)]);
        match self.part.take_if(|part| part.node == multipart) {
            // What came before the first delimiter is for programs that know no multiparts.
            Some(preamble) => self.held -= preamble.held.len(),
            None => self.end_part(),
        }
        self.nodes[multipart].leaf = None;
        self.multiparts.truncate(index + 1);
        if self.nodes.len() >= self.limits.parts && !is_last {
            self.multiparts.clear();
            let head = PartHead {
                disposition: Disposition::Attachment,
                name: Some("rest-of-message.txt".to_owned()),
                ..PartHead::default()
            };
            self.begin(head, Some(0), position + line as u64);
            return Some(line);
        }
        self.state = if is_last { State::Between } else { State::Header(RawHeader::default()) };
        self.at_start = true;
        Some(line + length)
    }

    /// What the line at the start of `bytes` is; `last`: nothing follows.
    fn delimiter(&self, bytes: &[u8], last: bool) -> Delimiter {
        let Some(rest) = bytes.strip_prefix(b"--") else { return Delimiter::No };
        let mut unclear = false;
        for (index, Multipart { boundary, .. }) in self.multiparts.iter().enumerate() {
            let Some(behind) = rest.strip_prefix(boundary.as_slice()) else {
                unclear |= !last && boundary.starts_with(rest);
                continue;
            };
            let window = &behind[..behind.len().min(MAX_TRAIL)];
            let (line, length) = match memchr::memchr(b'\n', window) {
                Some(end) => (&behind[..end], bytes.len() - behind.len() + end + 1),
                None if behind.len() >= MAX_TRAIL => continue,
                None if last => (behind, bytes.len()),
                None => {
                    unclear = true;
                    continue;
                }
            };
            let (line, is_last) = line.strip_prefix(b"--").map_or((line, false), |line| (line, true));
            if line.trim_ascii().is_empty() {
                return Delimiter::Of { index, last: is_last, length };
            }
        }
        if unclear { Delimiter::Unclear } else { Delimiter::No }
    }

    /// Content of the open part.
    fn pass(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.at_start = false;
        let Some(part) = &mut self.part else { return };
        let before = part.held.len();
        part.push(bytes);
        let grown = part.held.len() - before;
        self.held += grown;
        // HTML becomes text too, and an activity has both.
        if self.nodes[part.node].head.is("text/html") {
            self.described += grown;
        }
        self.turn_to_clear_text();
    }

    /// Text in the clear behind encoded content is a part of its own.
    fn turn_to_clear_text(&mut self) {
        let Some((position, rest)) = self.part.as_mut().and_then(OpenPart::take_clear) else { return };
        let Some(encoded) = self.part.take() else { return };
        let (node, index) = (encoded.node, self.nodes.len());
        self.nodes[node].leaf = Some(encoded.into_leaf());
        let mut part = OpenPart::new(index, position, Encoding::Identity, self.room(), false);
        part.push(&rest);
        self.held += part.held.len();
        self.part = Some(part);
        let parent = self.nodes[node].parent;
        self.nodes.push(Node { parent, head: PartHead::default(), leaf: None, behind: Some(node) });
    }

    fn end_part(&mut self) {
        let Some(part) = &mut self.part else { return };
        let before = part.held.len();
        part.end();
        self.held += part.held.len() - before;
        self.turn_to_clear_text();
        if let Some(part) = self.part.take() {
            let node = part.node;
            self.nodes[node].leaf = Some(part.into_leaf());
        }
    }

    /// Text that the next part may have held.
    fn room(&self) -> usize {
        (2 * self.limits.text_bytes).saturating_sub(self.held).min(self.limits.text_bytes)
    }
}

/// Where the content before a delimiter line ends.
fn before_line_break(bytes: &[u8], line: usize) -> usize {
    let content = &bytes[..line];
    let content = content.strip_suffix(b"\n").unwrap_or(content);
    content.strip_suffix(b"\r").unwrap_or(content).len()
}

/// A part whose content is arriving.
#[derive(Debug)]
struct OpenPart {
    node: usize,
    /// Where the content starts.
    position: u64,
    /// Bytes of the content, encoded.
    length: u64,
    /// What the header says.
    declared: Encoding,
    /// What it is; none until that is clear.
    decoder: Option<(Encoding, Decoder)>,
    /// Content that came before it was clear.
    sniffed: Vec<u8>,
    /// Decoded bytes, up to `hold`.
    held: Vec<u8>,
    hold: usize,
    /// Decoded size in bytes.
    size: u64,
    /// Of all decoded bytes, once they are more than is held.
    hash: Option<Sha256>,
    /// The start of a message within the message, for its subject.
    head: Option<Vec<u8>>,
}

/// Bytes of a nested message that are looked at for its subject.
const NESTED_HEAD: usize = 64 * 1024;

impl OpenPart {
    fn new(node: usize, position: u64, declared: Encoding, hold: usize, is_message: bool) -> Self {
        let known = matches!(declared, Encoding::Identity | Encoding::QuotedPrintable);
        Self {
            node,
            position,
            length: 0,
            declared,
            decoder: known.then(|| (declared, Decoder::new(declared))),
            sniffed: Vec::new(),
            held: Vec::new(),
            hold,
            size: 0,
            hash: None,
            head: is_message.then(Vec::new),
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        if self.decoder.is_some() {
            self.decode(bytes);
            return;
        }
        self.sniffed.extend_from_slice(bytes);
        if self.sniffed.len() >= SNIFFED {
            self.judge(false);
        }
    }

    /// Decides how the content is really encoded.
    fn judge(&mut self, whole: bool) {
        let start = std::mem::take(&mut self.sniffed);
        let seen = &start[..start.len().min(SNIFFED)];
        let encoding = if self.declared.fits(seen, whole) { self.declared } else { Encoding::Identity };
        self.decoder = Some((encoding, Decoder::new(encoding)));
        self.decode(&start);
    }

    fn decode(&mut self, bytes: &[u8]) {
        let Self { decoder: Some((_, decoder)), held, hold, size, hash, head, .. } = self else { return };
        let _ = decoder.push(bytes, &mut |piece| keep(piece, held, *hold, size, hash, head)); // the sink never fails
    }

    /// The end of the content.
    fn end(&mut self) {
        if self.decoder.is_none() {
            self.judge(true);
        }
        let Self { decoder: Some((_, decoder)), held, hold, size, hash, head, .. } = self else { return };
        let _ = decoder.finish(&mut |piece| keep(piece, held, *hold, size, hash, head)); // the sink never fails
    }

    /// Content that is in the clear behind the encoded one, and where it lies; the part ends before it.
    fn take_clear(&mut self) -> Option<(u64, Vec<u8>)> {
        let (_, decoder) = self.decoder.as_mut()?;
        let (length, rest) = decoder.take_clear()?;
        self.length = length;
        Some((self.position + length, rest))
    }

    fn into_leaf(self) -> Leaf {
        let (encoding, own_name) = match &self.decoder {
            Some((encoding, decoder)) => {
                (*encoding, decoder.own_name().map(|name| safe_name(name, MAX_NAME_BYTES)))
            }
            None => (Encoding::Identity, None),
        };
        let subject = self.head.as_deref().map(|head| {
            let subject = fields(head).find(|(name, _)| name.eq_ignore_ascii_case(b"subject"));
            subject.map(|(_, value)| decode_unstructured(value, None)).unwrap_or_default()
        });
        Leaf {
            cut: Cut { offset: self.position, length: self.length, encoding },
            size: self.size,
            hash: self.hash,
            held: self.held,
            own_name: own_name.filter(|name| !name.is_empty()),
            subject,
        }
    }
}

/// Takes decoded bytes: what may be held is, and hashed only once it is too much.
fn keep(
    piece: &[u8],
    held: &mut Vec<u8>,
    hold: usize,
    size: &mut u64,
    hash: &mut Option<Sha256>,
    head: &mut Option<Vec<u8>>,
) -> io::Result<()> {
    *size += piece.len() as u64;
    if let Some(head) = head {
        head.extend_from_slice(&piece[..piece.len().min(NESTED_HEAD - head.len())]);
    }
    if let Some(hash) = hash {
        hash.update(piece);
        return Ok(());
    }
    let room = hold - held.len();
    held.extend_from_slice(&piece[..piece.len().min(room)]);
    if piece.len() > room {
        let mut all = Sha256::new();
        all.update(&held[..held.len() - room.min(piece.len())]);
        all.update(piece);
        *hash = Some(all);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(message: &str) -> Body {
        let message = message.replace('\n', "\r\n").into_bytes();
        let body = Reader::whole(&message, LIMITS);
        // Pieces of any size are read alike.
        let (head, start) = header_end(&message);
        for size in [1, 2, 3, 7, 64, 1000] {
            if message.len() < 100_000 {
                let mut reader = Reader::new(&message[..head], start as u64, LIMITS);
                message[start..].chunks(size).for_each(|piece| reader.push(piece));
                assert_eq!(reader.finish(), body, "by {size}");
            }
        }
        body
    }

    fn names(body: &Body) -> Vec<&str> {
        body.files.iter().map(|f| f.name.as_str()).collect()
    }

    #[test]
    fn alternative_with_inline_image_and_attachment() {
        let body = body(
            "Content-Type: multipart/mixed; boundary=m\n\n--m\nContent-Type: multipart/related; boundary=r\n\n--r\n\
             Content-Type: multipart/alternative; boundary=a\n\n--a\nContent-Type: text/plain\n\nplain\n--a\n\
             Content-Type: text/html\n\n<p>html</p>\n--a--\n--r\nContent-Type: image/png; name=\"l.png\"\n\
             Content-ID: <l@x>\nContent-Transfer-Encoding: base64\n\naGVsbG8=\n--r--\n--m\n\
             Content-Type: application/pdf\nContent-Disposition: attachment; filename=\"../../o.pdf\"\n\npdf\n--m--\n",
        );
        assert_eq!((body.text.as_deref(), body.html.as_deref()), (Some("plain"), Some("<p>html</p>")));
        assert_eq!(names(&body), ["l.png", ".._.._o.pdf"]);
        let image = &body.files[0];
        assert_eq!((image.size, image.inline, image.content_id.as_deref()), (5, true, Some("l@x")));
        assert_eq!(image.sha256, "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
        assert!(!body.files[1].inline);
    }

    #[test]
    fn a_nested_message_is_one_file() {
        let body = body(
            "Content-Type: multipart/mixed; boundary=m\n\n--m\n\nsee below\n--m\nContent-Type: message/rfc822\n\n\
             Subject: old/news\nContent-Type: multipart/mixed; boundary=i\n\n--i\n\ninner\n--i--\n--m--\n",
        );
        assert_eq!((body.text.as_deref(), names(&body)), (Some("see below"), vec!["old-news.eml"]));
    }

    #[test]
    fn html_only_gives_text_too_and_blank_text_counts_as_none() {
        let body = body(
            "Content-Type: text/html; charset=iso-8859-1\nContent-Transfer-Encoding: quoted-printable\n\n<p>=E5</p>\n",
        );
        assert_eq!(body.html.as_deref(), Some("<p>å</p>\n"));
        assert_eq!(body.text.as_deref().map(str::trim), Some("å"));
    }

    #[test]
    fn broken_multiparts_are_read_as_far_as_they_go() {
        let unclosed = body(
            "Content-Type: multipart/mixed; boundary=\n\tm\n\n--m\n\nfirst\n--m\nContent-Type: image/png\n\nrest",
        );
        assert_eq!((unclosed.text.as_deref(), names(&unclosed)), (Some("first"), vec!["attachment-1"]));
        let none = body("Content-Type: multipart/mixed; boundary=m\n\nno parts\n");
        assert_eq!(none.text.as_deref(), Some("no parts\n"));
        let empty = body("Subject: x\n\n");
        assert_eq!((empty.text, empty.html, empty.files.len(), empty.offset), (None, None, 0, 14));
        assert_eq!(body("Subject: x").files, []);
    }

    #[test]
    fn limits_keep_everything_as_a_file() {
        let part = "--m\nContent-Type: image/png\n\nx\n";
        let many = |n: usize| {
            body(&format!("Content-Type: multipart/mixed; boundary=m\n\n{}--m--\n", part.repeat(n)))
        };
        assert_eq!(many(LIMITS.parts - 1).files.len(), LIMITS.parts - 1);
        let beyond = many(LIMITS.parts + 1);
        assert_eq!(beyond.files.len(), LIMITS.parts);
        let rest = beyond.files.last().unwrap();
        assert_eq!((rest.name.as_str(), rest.size), ("rest-of-message.txt", 2 * 35 + 7));

        let deep: String =
            (0..40).map(|i| format!("Content-Type: multipart/mixed; boundary=b{i}\n\n--b{i}\n")).collect();
        assert_eq!(names(&body(&deep)), ["attachment-1"]);

        let long = "x".repeat(LIMITS.text_bytes);
        assert_eq!(names(&body(&format!("Subject: x\n\n{long}"))), Vec::<&str>::new());
        let longer = body(&format!("Subject: x\n\n{long}y"));
        assert_eq!((longer.text.unwrap().len(), longer.files[0].size), (long.len(), long.len() as u64 + 1));
    }

    /// A part in random dress; `leaves` gets what each leaf says.
    fn random_part(random: &mut fastrand::Rng, depth: usize, leaves: &mut Vec<String>) -> String {
        let number = leaves.len();
        if depth < 4 && random.u8(..10) < 4 {
            let boundary = format!("b{}", random.u32(..));
            let kind = ["mixed", "alternative", "related", "signed", "report", "digest"][random.usize(..6)];
            let mut part =
                format!("Content-Type: multipart/{kind}; boundary=\"{boundary}\"\r\n\r\npreamble\r\n");
            for _ in 0..random.usize(1..4) {
                part += &format!("--{boundary}\r\n{}\r\n", random_part(random, depth + 1, leaves));
            }
            return if random.u8(..10) < 9 { part + &format!("--{boundary}--\r\nepilogue") } else { part };
        }
        let says = format!("leaf number {number}, {}.", random.u32(..));
        let mut head = match random.u8(..9) {
            0 => String::new(),
            1 => "Content-Type: text/plain; charset=utf-8\r\n".to_owned(),
            2 => "Content-Type: text/html\r\n".to_owned(),
            3 => "Content-Type: text/x-amp-html\r\n".to_owned(),
            4 => format!("Content-Type: image/png; name=\"{number}.png\"\r\n"),
            5 => "Content-Type: pdf; name=x.pdf\r\n".to_owned(),
            6 => "Content-Type: multipart/mixed\r\n".to_owned(),
            7 => "Content-Type: text/plain; name=a.txt\r\n".to_owned(),
            _ => "Content-Type: message/rfc822\r\n".to_owned(),
        };
        head +=
            ["", "Content-Disposition: inline\r\n", "Content-Disposition: attachment\r\n"][random.usize(..3)];
        leaves.push(says.clone());
        let says = match random.u8(..4) {
            0 => {
                head += "Content-Transfer-Encoding: base64\r\n";
                base64::Engine::encode(&base64::prelude::BASE64_STANDARD, says)
            }
            1 => {
                head += "Content-Transfer-Encoding: quoted-printable\r\n";
                says.replace(',', "=2C")
            }
            2 => {
                head += "Content-Transfer-Encoding: base64\r\n";
                says // it says so, and is not
            }
            _ => says,
        };
        format!("{head}\r\n{says}")
    }

    /// Everything that a body shows or carries.
    fn content(body: &Body, message: &[u8]) -> String {
        let raw = crate::mail::Raw::from(message.to_vec());
        let mut all =
            [body.text.clone(), body.html.clone()].into_iter().flatten().collect::<Vec<_>>().join("\n");
        for file in &body.files {
            let (mut bytes, mut hash) = (Vec::new(), Sha256::new());
            raw.decode(file.cut, &mut |piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            })
            .unwrap();
            hash.update(&bytes);
            let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!((file.size, &file.sha256), (bytes.len() as u64, &hex), "{}", file.name);
            all.push('\n');
            all.push_str(&String::from_utf8_lossy(&bytes));
        }
        all
    }

    #[test]
    fn each_leaf_stands_in_text_html_or_files() {
        let mut random = fastrand::Rng::with_seed(15);
        for _ in 0..3000 {
            let mut leaves = Vec::new();
            let message = format!("Subject: s\r\n{}", random_part(&mut random, 0, &mut leaves)).into_bytes();
            let body = Reader::whole(&message, LIMITS);
            let all = content(&body, &message);
            for leaf in &leaves {
                assert!(
                    all.contains(leaf.as_str()),
                    "{leaf} is lost of\n{}\n{body:#?}",
                    String::from_utf8_lossy(&message)
                );
            }
            let size = random.usize(1..50);
            let (head, start) = header_end(&message);
            let mut reader = Reader::new(&message[..head], start as u64, LIMITS);
            message[start..].chunks(size).for_each(|piece| reader.push(piece));
            assert_eq!(reader.finish(), body);
        }
    }

    #[test]
    fn damaged_messages_are_read_alike_in_pieces_and_files_are_what_is_said_of_them() {
        let mut random = fastrand::Rng::with_seed(16);
        for _ in 0..3000 {
            let mut message =
                format!("Subject: s\r\n{}", random_part(&mut random, 0, &mut Vec::new())).into_bytes();
            for _ in 0..random.usize(1..6) {
                let at = random.usize(..message.len());
                match random.u8(..4) {
                    0 => message[at] = random.u8(..),
                    1 => drop(message.remove(at)),
                    2 => message.insert(at, *random.choice(b"\r\n-=\0 ;:b").unwrap()),
                    _ => message.truncate(at.max(20)),
                }
            }
            let body = Reader::whole(&message, LIMITS);
            content(&body, &message);
            let (head, start) = header_end(&message);
            let mut reader = Reader::new(&message[..head], start as u64, LIMITS);
            let size = random.usize(1..20);
            message[start..].chunks(size).for_each(|piece| reader.push(piece));
            assert_eq!(reader.finish(), body, "{} by {size}", message.escape_ascii());
            for part in &body.parts {
                let somewhere = part.place.text || part.place.html || part.place.file.is_some();
                assert!(somewhere, "{part:?} of {}", message.escape_ascii());
            }
        }
    }
}
