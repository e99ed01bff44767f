//! The parts of a message: text, HTML and files (RFC 2045, RFC 2046, RFC 2183, RFC 2387).
//!
//! In: a [`Raw`] message. Out: a [`Body`]: the text a person reads, and for every file where its bytes lie.
//! Promise: a file is described by offsets into the raw message, hashed while it streams past, and never held in
//! memory; depth, number of parts and text are bounded by [`LIMITS`]. What exceeds a limit is kept as a file.
//! Fails: only as reading the raw message fails.
//!
//! Why not one call of mail-parser: it decodes the whole message into memory at once, 16 to 18 times its size for a
//! MIME bomb. Here the structure is walked by offsets; mail-parser decodes charsets and encodings.

use super::{
    charset::decode_charset,
    content_type::Parameters,
    encoded_word::decode_unstructured,
    file_name::safe_name,
    head::{MAX_HEAD_BYTES, fields},
    raw::{Cut, Raw},
    text::{is_blank, one_line, unix_lines},
    transfer_encoding::Encoding,
};
use mail_parser::decoders::html::html_to_text;
use sha2::{Digest, Sha256};
use std::{
    fmt::Write as _,
    io::{self, BufRead, Read},
    ops::Range,
};

/// What one message may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Nested multiparts; a deeper one is kept as a file.
    pub depth: usize,
    /// Parts in all; with more, the whole message is kept as one file.
    pub parts: usize,
    /// Bytes of each text part put into the activity; a longer one is cut there and kept whole as a file.
    pub text_bytes: u64,
    /// Bytes of one part's header that are looked at.
    pub part_head_bytes: usize,
    /// Bytes of a file name.
    pub name_bytes: usize,
}

/// The limits in force: far above what mail programs write, far below what would hurt.
pub const LIMITS: Limits =
    Limits { depth: 20, parts: 1000, text_bytes: 1024 * 1024, part_head_bytes: 64 * 1024, name_bytes: 200 };

/// What a message says and carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// Plain text; made from the HTML where the message has none.
    pub text: Option<String>,
    /// HTML as sent.
    pub html: Option<String>,
    /// Attachments and inline files, in order.
    pub files: Vec<FilePart>,
    /// Where the body starts in the raw message, in bytes.
    pub offset: u64,
    /// Where `text` stands in the raw message as it is, but for the line ends ([`Raw::verbatim`]); none if it was
    /// decoded.
    pub verbatim: Option<Cut>,
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

/// Reads the parts of a message.
/// # Errors
/// Those of reading `raw`.
pub fn read_body(raw: &Raw, limits: &Limits) -> io::Result<Body> {
    let mut walk = Walk { raw, limits, body: Body::default(), parts: 0, overflow: false };
    let whole = 0..raw.len();
    let (root, start) = read_part_head(raw, whole.clone(), MAX_HEAD_BYTES)?;
    walk.body.offset = start;
    walk.entity(&root, start..raw.len(), Place { parent: Parent::None, depth: 0, first: true })?;
    let Walk { mut body, overflow, .. } = walk;
    if overflow {
        let cut = Cut { offset: 0, length: raw.len(), encoding: Encoding::Identity };
        let described = describe(raw, cut)?;
        body.files = vec![FilePart {
            name: "message.eml".to_owned(),
            content_type: "message/rfc822".to_owned(),
            inline: false,
            content_id: None,
            size: described.0,
            sha256: described.1,
            cut,
        }];
    }
    if body.text.is_none() {
        body.text = body.html.as_deref().map(html_to_text).filter(|text| !is_blank(text));
    }
    Ok(body)
}

/// The fields of a part that matter here.
#[derive(Debug)]
struct PartHead {
    content_type: Parameters,
    declared: bool,
    disposition: Option<Parameters>,
    encoding: Encoding,
    content_id: Option<String>,
    subject: Option<String>,
}

impl PartHead {
    fn is(&self, media_type: &str) -> bool {
        self.content_type.value == media_type
    }

    fn is_attachment(&self) -> bool {
        self.disposition.as_ref().is_some_and(|d| d.value == "attachment")
    }

    fn file_name(&self) -> Option<String> {
        let named = self.disposition.as_ref().and_then(|d| d.get("filename"));
        named.or_else(|| self.content_type.get("name")).filter(|name| !is_blank(name))
    }
}

/// The multipart a part lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parent {
    None,
    Alternative,
    Related,
    Digest,
    Other,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    parent: Parent,
    depth: usize,
    first: bool,
}

struct Walk<'a> {
    raw: &'a Raw,
    limits: &'a Limits,
    body: Body,
    parts: usize,
    overflow: bool,
}

impl Walk<'_> {
    fn entity(&mut self, head: &PartHead, body: Range<u64>, place: Place) -> io::Result<()> {
        self.parts += 1;
        if self.parts > self.limits.parts {
            self.overflow = true;
            return Ok(());
        }
        if head.content_type.value.starts_with("multipart/")
            && let Some(boundary) = head.content_type.get("boundary").filter(|b| !b.is_empty())
            && place.depth < self.limits.depth
        {
            let children =
                children(self.raw, body.clone(), boundary.trim_end().as_bytes(), self.limits.parts)?;
            if !children.is_empty() {
                return self.multipart(head, children, place);
            }
        }
        self.leaf(head, body, place)
    }

    fn multipart(&mut self, head: &PartHead, children: Vec<Range<u64>>, place: Place) -> io::Result<()> {
        let parent = match head.content_type.value.as_str() {
            "multipart/alternative" => Parent::Alternative,
            "multipart/related" => Parent::Related,
            "multipart/digest" => Parent::Digest,
            _ => Parent::Other,
        };
        for (index, child) in children.into_iter().enumerate() {
            let (mut part, start) = read_part_head(self.raw, child.clone(), self.limits.part_head_bytes)?;
            if parent == Parent::Digest && !part.declared {
                part.content_type.value = "message/rfc822".to_owned(); // RFC 2046, section 5.1.5
            }
            self.entity(
                &part,
                start..child.end,
                Place { parent, depth: place.depth + 1, first: index == 0 },
            )?;
            if self.overflow {
                break;
            }
        }
        Ok(())
    }

    fn leaf(&mut self, head: &PartHead, body: Range<u64>, place: Place) -> io::Result<()> {
        let cut = Cut { offset: body.start, length: body.end - body.start, encoding: head.encoding };
        let broken_multipart = head.content_type.value.starts_with("multipart/");
        let readable =
            head.is("text/plain") || head.is("text/html") || (broken_multipart && place.depth == 0);
        let shown = readable
            && !head.is_attachment()
            && (head.file_name().is_none()
                || place.parent == Parent::Alternative
                || place.parent == Parent::None)
            && (place.parent != Parent::Related || place.first);
        if shown {
            let (text, verbatim, complete) = self.text(cut, head.content_type.get("charset").as_deref())?;
            let is_html = head.is("text/html");
            let slot = if is_html { &mut self.body.html } else { &mut self.body.text };
            match slot {
                Some(before) => {
                    before.push('\n');
                    before.push_str(&text);
                    if !is_html {
                        self.body.verbatim = None;
                    }
                }
                None if is_blank(&text) => {}
                None => {
                    *slot = Some(text);
                    if !is_html {
                        self.body.verbatim = verbatim.then_some(cut);
                    }
                }
            }
            if complete {
                return Ok(());
            }
        }
        self.file(head, cut, place)
    }

    /// Decodes a text part up to the limit; whether it stands in the message as it is; false if there is more of it.
    fn text(&self, cut: Cut, charset: Option<&str>) -> io::Result<(String, bool, bool)> {
        let limit = usize::try_from(self.limits.text_bytes).unwrap_or(usize::MAX);
        let already =
            [&self.body.text, &self.body.html].into_iter().flatten().map(String::len).sum::<usize>();
        let limit = limit.saturating_sub(already / 2);
        let mut bytes = Vec::new();
        let mut complete = true;
        let decoded = self.raw.decode(cut, &mut |piece| {
            let room = limit - bytes.len();
            bytes.extend_from_slice(&piece[..piece.len().min(room)]);
            complete = piece.len() <= room;
            if complete { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
        });
        if complete {
            decoded?;
        }
        let text = decode_charset(&bytes, charset);
        let verbatim = complete && cut.encoding == Encoding::Identity && text.as_bytes() == bytes;
        Ok((unix_lines(&text), verbatim, complete))
    }

    fn file(&mut self, head: &PartHead, cut: Cut, place: Place) -> io::Result<()> {
        let media_type = if head.content_type.value.contains('/') {
            one_line(&head.content_type.value)
        } else {
            "application/octet-stream".to_owned()
        };
        let number = self.body.files.len() + 1;
        let name =
            head.file_name().map(|name| safe_name(&name, self.limits.name_bytes)).filter(|n| !n.is_empty());
        let name = match name {
            Some(name) if media_type == "message/rfc822" && !name.contains('.') => format!("{name}.eml"),
            Some(name) => name,
            None => self.default_name(&media_type, cut, number)?,
        };
        let (size, sha256) = describe(self.raw, cut)?;
        let inline = !head.is_attachment()
            && (head.disposition.as_ref().is_some_and(|d| d.value == "inline")
                || (place.parent == Parent::Related && head.content_id.is_some()));
        let content_id = head.content_id.clone();
        self.body.files.push(FilePart {
            name,
            content_type: media_type,
            size,
            sha256,
            inline,
            content_id,
            cut,
        });
        Ok(())
    }

    /// A forwarded message is named by its subject, anything else by its number.
    fn default_name(&self, media_type: &str, cut: Cut, number: usize) -> io::Result<String> {
        Ok(match media_type {
            "message/rfc822" | "message/global" if cut.encoding == Encoding::Identity => {
                let range = cut.offset..cut.offset + cut.length;
                let (nested, _) = read_part_head(self.raw, range, self.limits.part_head_bytes)?;
                let subject =
                    nested.subject.map(|s| safe_name(&s.replace(['/', '\\'], "-"), self.limits.name_bytes));
                format!("{}.eml", subject.filter(|s| !s.is_empty()).unwrap_or_else(|| "message".to_owned()))
            }
            "message/rfc822" | "message/global" => "message.eml".to_owned(),
            "text/plain" => format!("text-{number}.txt"),
            "text/html" => format!("text-{number}.html"),
            "text/calendar" => format!("invite-{number}.ics"),
            _ => format!("attachment-{number}"),
        })
    }
}

/// Decoded size and SHA-256 of a cut.
fn describe(raw: &Raw, cut: Cut) -> io::Result<(u64, String)> {
    let (mut size, mut hash) = (0, Sha256::new());
    raw.decode(cut, &mut |piece| {
        size += piece.len() as u64;
        hash.update(piece);
        Ok(())
    })?;
    let hex = hash.finalize().iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    Ok((size, hex))
}

/// Reads the header of an entity; the offset is where its body starts.
fn read_part_head(raw: &Raw, range: Range<u64>, max: usize) -> io::Result<(PartHead, u64)> {
    let mut reader = raw.reader(range.clone());
    let (mut bytes, mut line, mut offset) = (Vec::new(), Vec::new(), range.start);
    loop {
        line.clear();
        let read = (&mut reader).take(max as u64).read_until(b'\n', &mut line)?;
        offset += read as u64;
        if read == 0 || line == b"\r\n" || line == b"\n" {
            break;
        }
        if bytes.len() + line.len() <= max {
            bytes.extend_from_slice(&line);
        }
    }
    Ok((part_head(&bytes), offset))
}

fn part_head(bytes: &[u8]) -> PartHead {
    let mut head = PartHead {
        content_type: Parameters::parse(b"text/plain"),
        declared: false,
        disposition: None,
        encoding: Encoding::Identity,
        content_id: None,
        subject: None,
    };
    for (name, value) in fields(bytes) {
        match name.to_ascii_lowercase().as_slice() {
            b"content-type" if !head.declared => {
                let parsed = Parameters::parse(value);
                if parsed.value.contains('/') {
                    (head.content_type, head.declared) = (parsed, true);
                }
            }
            b"content-disposition" => head.disposition = Some(Parameters::parse(value)),
            b"content-transfer-encoding" => head.encoding = Encoding::parse(&String::from_utf8_lossy(value)),
            b"content-id" => {
                let id = one_line(&String::from_utf8_lossy(value));
                let id = id.trim_matches(['<', '>', ' ']);
                head.content_id = Some(id.to_owned()).filter(|id| !id.is_empty());
            }
            b"subject" => head.subject = Some(decode_unstructured(value, None)),
            _ => {}
        }
    }
    head
}

/// The ranges between the delimiter lines of `boundary` (RFC 2046, section 5.1.1); a missing last delimiter is
/// forgiven. At most `max + 1` children are found: one more than is allowed shows that there are too many.
fn children(raw: &Raw, range: Range<u64>, boundary: &[u8], max: usize) -> io::Result<Vec<Range<u64>>> {
    let mut reader = raw.reader(range.clone());
    let mut found = Vec::new();
    let mut open: Option<u64> = None;
    let (mut offset, mut line_break, mut at_line_start) = (range.start, 0, true);
    let mut line = Vec::new();
    let piece_size = (boundary.len() as u64 + 256).max(4096);
    let start_of_delimiter = [b"--", boundary].concat();
    while found.len() <= max {
        if at_line_start {
            let chunk = reader.fill_buf()?;
            let passed = pass_over(chunk, &start_of_delimiter);
            if passed > 0 {
                line_break = if chunk[..passed].ends_with(b"\r\n") { 2 } else { 1 };
                offset += passed as u64;
                reader.consume(passed);
                continue;
            }
        }
        line.clear();
        let read = (&mut reader).take(piece_size).read_until(b'\n', &mut line)?;
        if read == 0 {
            break;
        }
        if let Some(last) = at_line_start.then(|| delimiter(&line, boundary)).flatten() {
            if let Some(start) = open {
                // The line break before the delimiter belongs to the delimiter.
                found.push(start..(offset - line_break).max(start));
            }
            open = Some(offset + read as u64);
            if last {
                return Ok(found);
            }
        }
        offset += read as u64;
        at_line_start = line.ends_with(b"\n");
        line_break = if line.ends_with(b"\r\n") { 2 } else { u64::from(at_line_start) };
    }
    found.extend(open.filter(|&start| start < range.end).map(|start| start..range.end));
    Ok(found)
}

/// Bytes of whole lines at the start of `chunk` that are no delimiters; the rest must be looked at closely.
fn pass_over(chunk: &[u8], start_of_delimiter: &[u8]) -> usize {
    let mut passed = 0;
    loop {
        let rest = &chunk[passed..];
        if rest.len() < start_of_delimiter.len() || rest.starts_with(start_of_delimiter) {
            return passed;
        }
        match memchr::memchr(b'\n', rest) {
            Some(at) => passed += at + 1,
            None => return passed,
        }
    }
}

/// `Some(true)` for the closing delimiter, `Some(false)` for one between parts.
fn delimiter(line: &[u8], boundary: &[u8]) -> Option<bool> {
    let rest = line.strip_prefix(b"--")?.strip_prefix(boundary)?;
    let (rest, last) = rest.strip_prefix(b"--").map_or((rest, false), |rest| (rest, true));
    rest.trim_ascii().is_empty().then_some(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(message: &str) -> Body {
        read_body(&Raw::from(message.replace('\n', "\r\n").into_bytes()), &LIMITS).unwrap()
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
        assert_eq!(names(&body), ["l.png", "o.pdf"]);
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
        assert_eq!(empty, Body { offset: 14, ..Body::default() });
        assert_eq!(body("Subject: x").files, []);
    }

    #[test]
    fn limits_keep_everything_as_a_file() {
        let part = "--m\nContent-Type: image/png\n\nx\n";
        let many = |n: usize| {
            body(&format!("Content-Type: multipart/mixed; boundary=m\n\n{}--m--\n", part.repeat(n)))
        };
        assert_eq!(many(LIMITS.parts - 1).files.len(), LIMITS.parts - 1);
        assert_eq!(names(&many(LIMITS.parts)), ["message.eml"]);

        let deep: String =
            (0..40).map(|i| format!("Content-Type: multipart/mixed; boundary=b{i}\n\n--b{i}\n")).collect();
        assert_eq!(names(&body(&deep)), ["attachment-1"]);

        let long = "x".repeat(usize::try_from(LIMITS.text_bytes).unwrap());
        assert_eq!(names(&body(&format!("Subject: x\n\n{long}"))), Vec::<&str>::new());
        let longer = body(&format!("Subject: x\n\n{long}y"));
        assert_eq!((longer.text.unwrap().len(), longer.files[0].size), (long.len(), long.len() as u64 + 1));
    }
}
