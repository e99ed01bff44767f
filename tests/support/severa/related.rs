//! Reads an upload: `multipart/related`, for each file a JSON part and then the bytes (RFC 2387, RFC 2046).
//!
//! In: the content type and the body. Out: the files; or what is wrong. Nothing is forgiven that another server might
//! not forgive: bare line feeds, a missing last boundary, bytes after it.

#![allow(dead_code, clippy::unwrap_used)] // each user needs another half; in tests a panic is the answer

use super::schema::{SCHEMA, wrongs_of};
use serde_json::Value;

/// A file of an upload.
pub struct Upload {
    pub name: String,
    pub description: Option<String>,
    pub content_type: String,
    pub bytes: Vec<u8>,
}

/// The files of a body.
pub fn uploads(content_type: &str, body: &[u8]) -> Result<Vec<Upload>, String> {
    let media: mime::Mime = content_type.parse().map_err(|error| format!("{content_type:?}: {error}"))?;
    let boundary = media.get_param("boundary").ok_or("no boundary")?;
    let parts = parts(body, boundary.as_str().as_bytes())?;
    if parts.is_empty() || parts.len() % 2 != 0 {
        return Err(format!("{} parts: a JSON part and the bytes belong to each file", parts.len()));
    }
    parts.chunks(2).map(|pair| upload(&pair[0], &pair[1])).collect()
}

struct Part<'b> {
    content_type: Option<String>,
    bytes: &'b [u8],
}

fn upload(head: &Part, bytes: &Part) -> Result<Upload, String> {
    let kind = head.content_type.as_deref().unwrap_or_default();
    if !kind.split(';').next().unwrap().trim().eq_ignore_ascii_case("application/json") {
        return Err(format!("the first part is {kind:?}, not application/json"));
    }
    let json: Value = serde_json::from_slice(head.bytes).map_err(|error| format!("JSON part: {error}"))?;
    if let Some(wrong) = wrongs_of(&SCHEMA.file_part, &json).first() {
        return Err(format!("JSON part: {wrong}"));
    }
    let content_type = bytes.content_type.clone().ok_or("the bytes have no Content-Type")?;
    content_type.parse::<mime::Mime>().map_err(|error| format!("{content_type:?}: {error}"))?;
    Ok(Upload {
        name: json["Name"].as_str().unwrap().to_owned(),
        description: json["Description"].as_str().map(str::to_owned),
        content_type,
        bytes: bytes.bytes.to_vec(),
    })
}

fn parts<'b>(body: &'b [u8], boundary: &[u8]) -> Result<Vec<Part<'b>>, String> {
    let line = [b"--", boundary].concat();
    let between = [b"\r\n", line.as_slice()].concat();
    let mut rest = body.strip_prefix(line.as_slice()).ok_or("the body does not begin with the boundary")?;
    let mut parts = Vec::new();
    loop {
        if let Some(end) = rest.strip_prefix(b"--") {
            let ends = matches!(end, b"" | b"\r\n");
            return if ends { Ok(parts) } else { Err("bytes after the last boundary".to_owned()) };
        }
        rest = rest.strip_prefix(b"\r\n").ok_or("no line end after a boundary")?;
        let end = memchr::memmem::find(rest, &between).ok_or("no boundary after a part")?;
        parts.push(part(&rest[..end])?);
        rest = &rest[end + between.len()..];
    }
}

fn part(bytes: &[u8]) -> Result<Part<'_>, String> {
    let (head, bytes) = match bytes.strip_prefix(b"\r\n") {
        Some(bytes) => (&b""[..], bytes),
        None => {
            let end = memchr::memmem::find(bytes, b"\r\n\r\n").ok_or("a part without an empty line")?;
            (&bytes[..end], &bytes[end + 4..])
        }
    };
    let mut content_type = None;
    for line in
        std::str::from_utf8(head).map_err(|error| error.to_string())?.split("\r\n").filter(|l| !l.is_empty())
    {
        let (name, value) = line.split_once(':').ok_or_else(|| format!("no header: {line:?}"))?;
        if name.eq_ignore_ascii_case("content-type") {
            content_type = Some(value.trim().to_owned());
        } else if name.eq_ignore_ascii_case("content-transfer-encoding")
            && !value.trim().eq_ignore_ascii_case("binary")
        {
            return Err(format!("no transfer encoding belongs here: {line:?}"));
        }
    }
    Ok(Part { content_type, bytes })
}
