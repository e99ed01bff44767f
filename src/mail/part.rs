//! The header of one part of a message, as far as it says what the part is (RFC 2045, RFC 2183, RFC 2392).
//!
//! In: the raw header. Out: a [`PartHead`] of bounded size.
//! Promise: the first of repeated fields counts; a part whose type cannot be read is text, unless a name or its encoding
//! says that it is a file.

use super::{
    content_type::Parameters,
    field::fields,
    file_name::{MAX_NAME_BYTES, safe_name},
    text::is_blank,
    text::one_line,
    transfer_encoding::Encoding,
};

/// Longest media type, charset or content id that is kept, in bytes (RFC 6838, section 4.2 allows 255 for a type).
const MAX_TOKEN_BYTES: usize = 255;

/// Longest boundary that is looked for, in bytes: RFC 2046, section 5.1.1 allows 70. A multipart with a longer one is kept
/// as a file.
const MAX_BOUNDARY_BYTES: usize = 998;

/// What RFC 2183 says of a part's place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Disposition {
    #[default]
    None,
    Inline,
    /// Also what nobody knows (RFC 2183, section 2.8).
    Attachment,
}

/// The fields of a part that matter here.
#[derive(Clone, Debug)]
pub(super) struct PartHead {
    /// Lower case, without parameters.
    pub(super) media_type: String,
    /// Whether a Content-Type field says it.
    pub(super) declared: bool,
    pub(super) charset: Option<String>,
    /// Of a multipart that can be taken apart.
    pub(super) boundary: Option<Vec<u8>>,
    /// The root of a `multipart/related` (RFC 2387, section 3.2), without brackets.
    pub(super) start: Option<String>,
    /// `format=flowed`; whether `delsp=yes` (RFC 3676, section 4).
    pub(super) flowed: Option<bool>,
    pub(super) disposition: Disposition,
    /// Safe to be a file's name.
    pub(super) name: Option<String>,
    pub(super) encoding: Encoding,
    /// Without brackets.
    pub(super) content_id: Option<String>,
}

impl Default for PartHead {
    fn default() -> Self {
        Self {
            media_type: "text/plain".to_owned(),
            declared: false,
            charset: None,
            boundary: None,
            start: None,
            flowed: None,
            disposition: Disposition::None,
            name: None,
            encoding: Encoding::Identity,
            content_id: None,
        }
    }
}

impl PartHead {
    /// Reads a raw header.
    pub(super) fn parse(header: &[u8]) -> Self {
        let mut head = Self::default();
        let (mut content_type, mut disposition, mut encoding) = (None, None, None);
        for (name, value) in fields(header) {
            let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
            if is("Content-Type") {
                content_type.get_or_insert_with(|| Parameters::parse(value));
            } else if is("Content-Disposition") {
                disposition.get_or_insert_with(|| Parameters::parse(value));
            } else if is("Content-Transfer-Encoding") {
                if !value.trim_ascii().is_empty() {
                    encoding.get_or_insert_with(|| Encoding::parse(value));
                }
            } else if is("Content-ID") && head.content_id.is_none() {
                head.content_id = id(&String::from_utf8_lossy(value));
            }
        }
        head.encoding = encoding.unwrap_or(Encoding::Identity);
        let name = |from: &Option<Parameters>, parameter| {
            let name = from.as_ref().and_then(|parameters| parameters.get(parameter))?;
            // Quotes of the wrong kind.
            let bare = name.strip_prefix('\'').and_then(|name| name.strip_suffix('\'')).map(str::to_owned);
            let name = bare.unwrap_or(name);
            let name = safe_name(&name, MAX_NAME_BYTES);
            (!is_blank(&name)).then_some(name)
        };
        head.name = name(&disposition, "filename")
            .or_else(|| name(&content_type, "name"))
            .or_else(|| name(&disposition, "name"))
            .or_else(|| name(&content_type, "filename"));
        if let Some(disposition) = &disposition {
            head.disposition = match disposition.value.as_str() {
                "" => Disposition::None,
                "inline" => Disposition::Inline,
                _ => Disposition::Attachment,
            };
        }
        if let Some(content_type) = &content_type {
            head.describe(content_type);
        }
        head
    }

    fn describe(&mut self, content_type: &Parameters) {
        let token = |name: &str| {
            content_type.get(name).map(|token| cut(one_line(&token))).filter(|token| !token.is_empty())
        };
        match content_type.media_type().filter(|name| name.len() <= MAX_TOKEN_BYTES) {
            Some(media_type) => {
                self.media_type = media_type.to_owned();
                self.declared = true;
            }
            // `multipart`, `mixed`, or nothing at all: what has a boundary has parts.
            None if content_type.bytes("boundary").is_some() => {
                let kind = content_type.value.trim_matches('/');
                let known = ["alternative", "related", "signed", "report", "digest"];
                let kind = if known.contains(&kind) { kind } else { "mixed" };
                self.media_type = format!("multipart/{kind}");
                self.declared = true;
            }
            None if self.name.is_some()
                || self.encoding != Encoding::Identity && self.disposition != Disposition::Inline =>
            {
                self.media_type = "application/octet-stream".to_owned();
                self.declared = true;
            }
            None => {}
        }
        self.charset = token("charset");
        if self.media_type.starts_with("multipart/") {
            let in_pieces = || content_type.get("boundary").map(|b| b.trim_end().as_bytes().to_vec());
            let boundary = content_type.bytes("boundary").map(<[u8]>::to_vec).or_else(in_pieces);
            self.boundary = boundary.filter(|b| (1..=MAX_BOUNDARY_BYTES).contains(&b.len()));
            self.start = content_type.get("start").and_then(|start| id(&start));
        }
        if token("format").is_some_and(|format| format.eq_ignore_ascii_case("flowed")) {
            self.flowed = Some(token("delsp").is_some_and(|delsp| delsp.eq_ignore_ascii_case("yes")));
        }
    }

    pub(super) fn is(&self, media_type: &str) -> bool {
        self.media_type == media_type
    }

    pub(super) fn is_multipart(&self) -> bool {
        self.media_type.starts_with("multipart/")
    }

    /// A message within the message (RFC 2046, section 5.2.1; RFC 6532).
    pub(super) fn is_message(&self) -> bool {
        self.is("message/rfc822") || self.is("message/global")
    }
}

/// An id without brackets (RFC 2392, section 2).
fn id(text: &str) -> Option<String> {
    let text = one_line(text);
    let id = cut(text.trim_matches(['<', '>', ' ', '"']).to_owned());
    (!id.is_empty()).then_some(id)
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TOKEN_BYTES));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_that_cannot_be_read_is_text_unless_something_says_file() {
        for (header, media_type, name) in [
            ("", "text/plain", None),
            ("Content-Type: pdf\r\n", "text/plain", None),
            ("Content-Type: pdf; name=a.pdf\r\n", "application/octet-stream", Some("a.pdf")),
            ("Content-Type: ; name=a.pdf\r\n", "application/octet-stream", Some("a.pdf")),
            ("Content-Type: file\r\nContent-Transfer-Encoding: base64\r\n", "application/octet-stream", None),
            ("Content-Type: text/html\r\nContent-Type: image/png\r\n", "text/html", None),
            (
                "Content-Type: image/png; name=b.png\r\nContent-Disposition: attachment; filename=\"\"\r\n",
                "image/png",
                Some("b.png"),
            ),
        ] {
            let head = PartHead::parse(header.as_bytes());
            assert_eq!((head.media_type.as_str(), head.name.as_deref()), (media_type, name), "{header}");
        }
    }

    #[test]
    fn dispositions() {
        for (value, expected) in [
            ("inline", Disposition::Inline),
            ("attachment; filename=x", Disposition::Attachment),
            ("something", Disposition::Attachment),
            ("", Disposition::None),
        ] {
            let head = PartHead::parse(format!("Content-Disposition: {value}\r\n").as_bytes());
            assert_eq!(head.disposition, expected, "{value}");
        }
    }
}
