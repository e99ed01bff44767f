//! The bytes of an LMTP connection: command lines and message content in, replies out.
//!
//! In: a stream. Out: lines without their line end, content without transparency dots.
//! Promise: replies to pipelined commands go out together, before we wait for more (RFC 2920, section 3.2); what is
//! kept of a line or of content is bounded, whatever the peer sends.
//! Fails: [`Gone`], when there is nobody to answer.

use bytes::{Buf, BytesMut};
use smtp_proto::request::receiver::DataReceiver;
use std::{io, time::Duration};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// Longest command line, line end included: RFC 5321, section 4.5.3.1.4 wants 512, and extensions add to it.
pub(super) const MAX_LINE_BYTES: usize = 4096;

/// Bytes read at a time: a session that waits for a command keeps no more than this.
const READ_BYTES: usize = 4096;

/// Bytes of content read at a time: hundreds of sessions have as much each, beside `message.memory_limit`.
const READ_CONTENT_BYTES: usize = 16 * 1024;

/// How long a client may be silent, or not read our reply (RFC 5321, section 4.5.3.2.7).
pub(super) const IDLE: Duration = Duration::from_secs(300);

/// Why a connection ends.
#[derive(Debug)]
pub(super) enum Gone {
    /// The peer closed it, or it broke.
    Closed,
    /// Nothing came for [`IDLE`].
    Idle,
    /// The service stops.
    Stopping,
}

impl From<io::Error> for Gone {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

/// A command line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// One that ended in CRLF, without it.
    Command(Vec<u8>),
    /// One with a bare CR or LF or a NUL.
    Malformed,
    /// One longer than [`MAX_LINE_BYTES`]; it was skipped.
    TooLong,
}

/// A connection.
pub(super) struct Wire<S> {
    stream: S,
    incoming: BytesMut,
    outgoing: Vec<u8>,
    stop: CancellationToken,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// A connection that ends when `stop` is cancelled while it waits for the peer.
    pub(super) fn new(stream: S, stop: CancellationToken) -> Self {
        Self { stream, incoming: BytesMut::new(), outgoing: Vec::new(), stop }
    }

    /// Adds a reply line. It is sent when we next wait, or with [`Wire::flush`].
    pub(super) fn reply(&mut self, line: &str) {
        self.outgoing.extend_from_slice(line.as_bytes());
        self.outgoing.extend_from_slice(b"\r\n");
    }

    /// Sends what is to be sent.
    /// # Errors
    /// [`Gone`].
    pub(super) async fn flush(&mut self) -> Result<(), Gone> {
        let write = async {
            self.stream.write_all(&self.outgoing).await?;
            self.stream.flush().await
        };
        tokio::time::timeout(IDLE, write).await.map_err(|_| Gone::Idle)??;
        self.outgoing.clear();
        Ok(())
    }

    /// Reads the next command line.
    /// # Errors
    /// [`Gone`].
    pub(super) async fn line(&mut self) -> Result<Line, Gone> {
        let mut searched = 0;
        let mut skipped = false;
        loop {
            if let Some(at) = self.incoming[searched..].iter().position(|&b| b == b'\n') {
                let line = self.incoming.split_to(searched + at + 1);
                return Ok(if skipped || line.len() > MAX_LINE_BYTES {
                    Line::TooLong
                } else {
                    read_line(&line)
                });
            }
            searched = self.incoming.len();
            if searched > MAX_LINE_BYTES {
                self.incoming.clear();
                (searched, skipped) = (0, true);
            }
            self.fill(READ_BYTES).await?;
        }
    }

    /// Reads the next piece of content; true with the last one. A piece is never empty but for the last.
    /// # Errors
    /// [`Gone`].
    pub(super) async fn content(&mut self, content: &mut Content) -> Result<bool, Gone> {
        loop {
            if !self.incoming.is_empty() {
                let mut bytes = self.incoming.iter();
                let end = content.dots.ingest(&mut bytes, &mut content.decoded);
                let taken = self.incoming.len() - bytes.len();
                self.incoming.advance(taken);
                if end || content.decoded.len() > 1 {
                    return Ok(end);
                }
            }
            self.fill(READ_CONTENT_BYTES).await?;
        }
    }

    async fn fill(&mut self, bytes: usize) -> Result<(), Gone> {
        if !self.outgoing.is_empty() {
            self.flush().await?;
        }
        self.incoming.reserve(bytes);
        let read = tokio::select! {
            read = tokio::time::timeout(IDLE, self.stream.read_buf(&mut self.incoming)) => read,
            () = self.stop.cancelled() => return Err(Gone::Stopping),
        };
        match read.map_err(|_| Gone::Idle)?? {
            0 => Err(Gone::Closed),
            _ => Ok(()),
        }
    }
}

fn read_line(line: &[u8]) -> Line {
    match line.strip_suffix(b"\r\n") {
        Some(line) if !line.iter().any(|b| matches!(b, b'\r' | b'\0')) => Line::Command(line.to_vec()),
        _ => Line::Malformed,
    }
}

/// Message content on its way: undoes transparency dots (RFC 5321, section 4.5.2) and looks for bare CR and LF.
pub(super) struct Content {
    dots: DataReceiver,
    decoded: Vec<u8>,
    /// True once a CR or LF was seen that is not part of a CRLF (RFC 5321, section 2.3.8): the forms that smuggle.
    pub(super) bare: bool,
}

impl Content {
    pub(super) fn new() -> Self {
        let mut dots = DataReceiver::new();
        // The line of DATA itself ends in CRLF, so that a dot may follow at once; the receiver starts without it.
        let _ = dots.ingest(&mut b"\r\n".iter(), &mut Vec::new());
        Self { dots, decoded: Vec::new(), bare: false }
    }

    /// Takes what has been decoded; it never cuts a CRLF in two. `end`: it is the last piece.
    pub(super) fn take(&mut self, end: bool) -> Vec<u8> {
        // A last CR waits for its LF; the receiver may also want it back, if it belongs to the final dot.
        let held = if end { None } else { self.decoded.pop_if(|last| *last == b'\r') };
        let piece = std::mem::replace(&mut self.decoded, held.into_iter().collect());
        self.bare |= has_bare_line_end(&piece);
        piece
    }
}

/// True for a CR without LF or a LF without CR; the piece must not begin or end within a CRLF.
fn has_bare_line_end(piece: &[u8]) -> bool {
    let at = |index: usize| piece.get(index).copied();
    piece.iter().enumerate().any(|(i, b)| match b {
        b'\r' => at(i + 1) != Some(b'\n'),
        b'\n' => i.checked_sub(1).and_then(at) != Some(b'\r'),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(sent: &[u8]) -> Wire<tokio::io::Join<&[u8], tokio::io::Sink>> {
        Wire::new(tokio::io::join(sent, tokio::io::sink()), CancellationToken::new())
    }

    /// The content of `sent`, fed in pieces of a size, and whether it is bare.
    async fn content_of(sent: &[u8], size: usize) -> Option<(Vec<u8>, bool)> {
        let mut content = Content::new();
        let mut all = Vec::new();
        let mut end = false;
        for piece in sent.chunks(size) {
            let mut wire = wire(piece);
            loop {
                match wire.content(&mut content).await {
                    Ok(done) => end = done,
                    Err(_) => break,
                }
                all.extend(content.take(end));
            }
        }
        end.then_some((all, content.bare))
    }

    #[tokio::test]
    async fn content_ends_at_the_dot_whatever_the_pieces() {
        for size in [1, 2, 3, 5, 1000] {
            for (sent, expected) in [
                (&b".\r\n"[..], &b""[..]),
                (b"a\r\n.\r\n", b"a\r\n"),
                (b"..\r\n...\r\n.\r\n", b".\r\n..\r\n"),
                (b".a\r\n\r\n\r\n.\r\n", b"a\r\n\r\n\r\n"),
            ] {
                let found = content_of(sent, size).await;
                assert_eq!(found, Some((expected.to_vec(), false)), "{} by {size}", sent.escape_ascii());
            }
        }
    }

    #[tokio::test]
    async fn smuggling_forms_do_not_end_the_content_and_are_noticed() {
        for size in [1, 2, 3, 5, 1000] {
            for form in [
                &b"a\n.\nb"[..],
                b"a\n.\r\nb",
                b"a\r\n.\nb",
                b"a\r.\rb",
                b"a\r\n.\rb",
                b"a\r.\r\nb",
                b"a\r\r\nb",
                b"a\r\n\nb",
                b"a\nb",
                b"a\rb",
                b"\nb",
                b"b\n",
                b"b\r",
            ] {
                let sent = [form, b"\r\n.\r\n"].concat();
                let found = content_of(&sent, size).await;
                assert!(found.is_some_and(|(_, bare)| bare), "{} by {size}", form.escape_ascii());
            }
        }
    }

    #[tokio::test]
    async fn lines_are_bounded_and_strict() {
        let long = [&[b'x'; MAX_LINE_BYTES * 3][..], b"\r\nNOOP\r\n"].concat();
        let mut wire = wire(&long);
        assert_eq!(wire.line().await.unwrap(), Line::TooLong);
        assert_eq!(wire.line().await.unwrap(), Line::Command(b"NOOP".to_vec()));
        assert!(matches!(wire.line().await, Err(Gone::Closed)));
        for (length, expected) in [(0, true), (1, false)] {
            let line = [&vec![b'x'; MAX_LINE_BYTES - 2 + length][..], b"\r\n"].concat();
            assert_eq!(self::wire(&line).line().await.unwrap() != Line::TooLong, expected);
        }
        for malformed in [&b"NOOP\n"[..], b"NO\rOP\r\n", b"NO\0OP\r\n", b"NOOP\r\r\n"] {
            assert_eq!(self::wire(malformed).line().await.unwrap(), Line::Malformed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_a_peer_that_does_not_read_end_after_the_idle_time() {
        let (ours, _theirs) = tokio::io::duplex(64);
        let mut wire = Wire::new(ours, CancellationToken::new());
        let started = tokio::time::Instant::now();
        assert!(matches!(wire.line().await, Err(Gone::Idle)));
        assert_eq!(started.elapsed(), IDLE);
        wire.reply(&"x".repeat(1000));
        assert!(matches!(wire.flush().await, Err(Gone::Idle)));
    }
}
