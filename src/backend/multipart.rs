//! Request bodies of several parts that can be read twice, byte for byte the same: `multipart/form-data` (RFC 7578) for
//! our own contract, `multipart/related` (RFC 2387) for Severa's files.
//!
//! In: a delivery. Out: its content type, its length, its bytes as often as needed.
//! Why not reqwest's own form: a signature covers the exact bytes and stands before them in a header, so the body is
//! read once to be signed and once to be sent; files of any size are never held whole.

use super::Delivery;
use crate::activity::{Cut, FileRef, Raw};
use bytes::Bytes;
use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::mpsc;

/// Size of the pieces in which a spooled file is sent.
const PIECE_BYTES: usize = 64 * 1024;

/// A body, described.
#[derive(Debug)]
pub(super) struct Multipart {
    /// What its content type says besides the boundary.
    kind: &'static str,
    boundary: String,
    segments: Vec<Segment>,
    raw: Raw,
    length: u64,
}

#[derive(Debug)]
enum Segment {
    Bytes(Bytes),
    Cut(Cut),
}

impl Multipart {
    /// The parts of a delivery: `activity`, each file, and the raw message if it is asked for.
    pub(super) fn of(delivery: &Delivery, include_raw_message: bool) -> Self {
        let mut body = Self::new("multipart/form-data", &delivery.raw);
        body.begin("activity", None, "application/json");
        body.push(delivery.json.clone());
        for (file, cut) in delivery.activity.files.iter().zip(&delivery.cuts) {
            body.begin(&file.part, Some(&file.name), &file.content_type);
            body.cut(*cut, file.size);
        }
        if include_raw_message {
            body.begin("message", Some("message.eml"), "message/rfc822");
            body.cut(delivery.raw.whole(), delivery.raw.len());
        }
        body.end()
    }

    /// A file of a delivery, and a JSON document before it that describes it.
    pub(super) fn described(delivery: &Delivery, file: &FileRef, cut: Cut, description: Bytes) -> Self {
        let mut body = Self::new("multipart/related; type=\"application/json\"", &delivery.raw);
        body.begin_part("", "application/json");
        body.push(description);
        body.begin_part("", &file.content_type);
        body.cut(cut, file.size);
        body.end()
    }

    fn new(kind: &'static str, raw: &Raw) -> Self {
        let boundary = format!("activity-milter-{:032x}", fastrand::u128(..));
        Self { kind, boundary, segments: Vec::new(), raw: raw.clone(), length: 0 }
    }

    fn end(mut self) -> Self {
        let end = format!("\r\n--{}--\r\n", self.boundary);
        self.push(end.into());
        self
    }

    fn push(&mut self, bytes: Bytes) {
        self.length += bytes.len() as u64;
        self.segments.push(Segment::Bytes(bytes));
    }

    fn cut(&mut self, cut: Cut, size: u64) {
        self.length += size;
        self.segments.push(Segment::Cut(cut));
    }

    /// A part of a form.
    fn begin(&mut self, name: &str, file_name: Option<&str>, media_type: &str) {
        let file_name = file_name.map(|name| format!("; filename=\"{}\"", escaped(name))).unwrap_or_default();
        let disposition = format!("Content-Disposition: form-data; name=\"{name}\"{file_name}\r\n");
        self.begin_part(&disposition, media_type);
    }

    /// A media type that is malformed, straight from somebody's mail, becomes "some bytes". `fields`: header fields before
    /// it, each with its line end.
    fn begin_part(&mut self, fields: &str, media_type: &str) {
        let media_type = media_type.parse::<mime::Mime>().map_or("application/octet-stream", |_| media_type);
        let line_end = if self.segments.is_empty() { "" } else { "\r\n" };
        let head = format!("{line_end}--{}\r\n{fields}Content-Type: {media_type}\r\n\r\n", self.boundary);
        self.push(head.into());
    }

    pub(super) fn content_type(&self) -> String {
        format!("{}; boundary={}", self.kind, self.boundary)
    }

    /// Length in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// True if reading it reads a file.
    pub(super) fn blocks(&self) -> bool {
        matches!(self.raw, Raw::File { .. })
    }

    /// Reads the whole body; may block.
    pub(super) fn read(&self, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.segments.iter().try_for_each(|segment| match segment {
            Segment::Bytes(bytes) => sink(bytes),
            Segment::Cut(cut) => self.raw.decode(*cut, sink),
        })
    }

    /// The body for one attempt: from memory at once, from a file piece by piece as fast as the connection takes it.
    pub(super) fn body(self: &Arc<Self>, upload: &Upload) -> io::Result<reqwest::Body> {
        upload.begin();
        if !self.blocks() {
            upload.sent();
            let mut whole = Vec::with_capacity(usize::try_from(self.length).unwrap_or_default());
            self.read(&mut |piece| {
                whole.extend_from_slice(piece);
                Ok(())
            })?;
            return Ok(whole.into());
        }
        let (pieces, inbox) = mpsc::channel::<io::Result<Bytes>>(2);
        let (this, upload, taken) = (Arc::clone(self), upload.clone(), upload.clone());
        tokio::task::spawn_blocking(move || {
            let mut piece = Vec::with_capacity(PIECE_BYTES);
            let mut total = 0;
            let read = this.read(&mut |bytes| {
                total += bytes.len() as u64;
                piece.extend_from_slice(bytes);
                if piece.len() >= PIECE_BYTES { send(&pieces, &mut piece) } else { Ok(()) }
            });
            let shorter = || Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than it was"));
            let whole = read.and_then(|()| if total == this.length { Ok(()) } else { shorter() });
            match whole.and_then(|()| send(&pieces, &mut piece)) {
                Ok(()) => upload.sent(),
                // Nobody listens any more.
                Err(_) if pieces.is_closed() => {}
                Err(error) => {
                    upload.failed(&error);
                    let _ = pieces.blocking_send(Err(error));
                }
            }
        });
        let next = |(mut inbox, upload): (mpsc::Receiver<_>, Upload)| async move {
            upload.take();
            inbox.recv().await.map(|piece| (piece, (inbox, upload)))
        };
        Ok(reqwest::Body::wrap_stream(futures_util::stream::unfold((inbox, taken), next)))
    }
}

/// How far a body came, and whether it was our own disk that stopped it.
#[derive(Clone, Debug, Default)]
pub(super) struct Upload(Arc<Mutex<Progress>>);

#[derive(Debug, Default)]
struct Progress {
    is_begun: bool,
    is_sent: bool,
    failure: Option<String>,
}

impl Upload {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) {
        *self.progress() = Progress::default();
    }

    /// The connection takes the first piece, or another one.
    fn take(&self) {
        self.progress().is_begun = true;
    }

    fn sent(&self) {
        self.progress().is_sent = true;
    }

    fn failed(&self, error: &io::Error) {
        self.progress().failure = Some(format!("the spooled message cannot be read: {error}"));
    }

    /// True while the connection takes it, but for the last pieces.
    pub(super) fn is_under_way(&self) -> bool {
        let progress = self.progress();
        progress.is_begun && !progress.is_sent
    }

    /// Why the message could not be read, if it could not.
    pub(super) fn failure(&self) -> Option<String> {
        self.progress().failure.clone()
    }
}

fn send(pieces: &mpsc::Sender<io::Result<Bytes>>, piece: &mut Vec<u8>) -> io::Result<()> {
    let bytes = Bytes::from(std::mem::replace(piece, Vec::with_capacity(PIECE_BYTES)));
    let closed = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    if bytes.is_empty() { Ok(()) } else { pieces.blocking_send(Ok(bytes)).map_err(closed) }
}

/// A file name as browsers write it (RFC 7578, section 4.2; WHATWG HTML, multipart form data): UTF-8, three characters
/// percent-encoded.
fn escaped(name: &str) -> String {
    name.replace('"', "%22").replace('\r', "%0D").replace('\n', "%0A")
}
