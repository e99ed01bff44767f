//! The bytes of an LMTP connection: command lines and message content in, replies out.
//!
//! In: a stream. Out: lines without their line end, content without transparency dots.
//! Promise: replies to pipelined commands go out together, before we wait for more (RFC 2920, section 3.2); what is
//! kept of a line or of content is bounded, whatever the peer sends.
//! Fails: [`Gone`], when there is nobody to answer.

use bytes::{Buf, BytesMut};
use std::{io, pin::Pin, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::Instant,
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

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
    /// It keeps others, or us, waiting.
    SentAway,
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
    away: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// A connection that ends when `stop` is cancelled, or `away` completes, while it waits for the peer.
    pub(super) fn new(stream: S, stop: CancellationToken, away: WaitForCancellationFutureOwned) -> Self {
        Self { stream, incoming: BytesMut::new(), outgoing: Vec::new(), stop, away: Box::pin(away) }
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
        let written = tokio::time::timeout(IDLE, write);
        // What fits into the socket's buffer goes out, a farewell too: who was sent away may not be reading.
        tokio::select! {
            biased;
            written = written => written.map_err(|_| Gone::Idle)??,
            () = self.away.as_mut() => return Err(Gone::SentAway),
        }
        self.outgoing.clear();
        Ok(())
    }

    /// Reads the next command line.
    /// # Errors
    /// [`Gone`].
    pub(super) async fn line(&mut self) -> Result<Line, Gone> {
        let mut searched = 0;
        let mut skipped = false;
        // For the whole line: a byte from time to time is no command.
        let deadline = Instant::now() + IDLE;
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
            self.fill(READ_BYTES, deadline).await?;
        }
    }

    /// Reads the next piece of content; true with the last one. A piece is never empty but for the last, and after a bare
    /// line end.
    /// # Errors
    /// [`Gone`].
    pub(super) async fn content(&mut self, content: &mut Content) -> Result<bool, Gone> {
        loop {
            if !self.incoming.is_empty() {
                let (taken, end) = content.read(&self.incoming);
                self.incoming.advance(taken);
                if end || content.bare || !content.decoded.is_empty() {
                    return Ok(end);
                }
            }
            self.fill(READ_CONTENT_BYTES, Instant::now() + IDLE).await?;
        }
    }

    async fn fill(&mut self, bytes: usize, deadline: Instant) -> Result<(), Gone> {
        if !self.outgoing.is_empty() {
            self.flush().await?;
        }
        self.incoming.reserve(bytes);
        let read = tokio::select! {
            read = tokio::time::timeout_at(deadline, self.stream.read_buf(&mut self.incoming)) => read,
            () = self.stop.cancelled() => return Err(Gone::Stopping),
            () = self.away.as_mut() => return Err(Gone::SentAway),
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

/// Message content on its way: undoes transparency dots (RFC 5321, section 4.5.2) and knows its end, which is `CRLF . CRLF`
/// and nothing else. What other readers might take for an end is a bare CR or LF (section 2.3.8): the forms that smuggle a
/// second message in. With the first of them the content is worth nothing any more, and is only read to its end.
pub(super) struct Content {
    place: Place,
    decoded: Vec<u8>,
    /// True once a CR or LF was seen that is not part of a CRLF.
    pub(super) bare: bool,
}

/// What was read last.
#[derive(Clone, Copy)]
enum Place {
    /// The end of a line, or nothing yet: the line of DATA itself ends in CRLF.
    Start,
    /// A dot at the start of a line: transparency, or the end.
    Dot,
    /// Anything else of a line.
    Text,
    /// A CR that waits for its LF. `ends`: only a dot stands before it.
    Cr { ends: bool },
}

impl Content {
    pub(super) fn new() -> Self {
        Self { place: Place::Start, decoded: Vec::new(), bare: false }
    }

    /// Reads on. The answer is how many bytes were of the content; some only if its end is among them.
    fn read(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            at += 1;
            self.place = match (self.place, byte) {
                (Place::Cr { ends: true }, b'\n') => return (at, true),
                (Place::Cr { ends: false }, b'\n') => {
                    self.decoded.extend_from_slice(b"\r\n");
                    Place::Start
                }
                (Place::Start, b'.') => Place::Dot,
                (place, b'\r') => {
                    self.bare |= matches!(place, Place::Cr { .. });
                    Place::Cr { ends: matches!(place, Place::Dot) }
                }
                (Place::Cr { .. }, _) | (_, b'\n') => {
                    self.bare = true;
                    Place::Text
                }
                (Place::Start | Place::Dot | Place::Text, _) => {
                    let line = &bytes[at - 1..];
                    let text = memchr::memchr2(b'\r', b'\n', line).unwrap_or(line.len());
                    self.decoded.extend_from_slice(&line[..text]);
                    at += text - 1;
                    Place::Text
                }
            };
        }
        (at, false)
    }

    /// Takes what has been decoded; it never cuts a CRLF in two, and is nothing once a line end was bare.
    pub(super) fn take(&mut self) -> Vec<u8> {
        let piece = std::mem::take(&mut self.decoded);
        if self.bare { Vec::new() } else { piece }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(sent: &[u8]) -> Wire<tokio::io::Join<&[u8], tokio::io::Sink>> {
        let never = CancellationToken::new().cancelled_owned();
        Wire::new(tokio::io::join(sent, tokio::io::sink()), CancellationToken::new(), never)
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
                all.extend(content.take());
            }
        }
        end.then_some((all, content.bare))
    }

    /// D1.
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

    /// D1.
    #[tokio::test]
    async fn smuggling_forms_do_not_end_the_content_and_are_noticed() {
        for size in [1, 2, 3, 5, 1000] {
            for form in [
                &b"a\n.\nb"[..],
                b"a\n.\r\nb",
                b"a\r\n.\nb",
                b"a\r.\rb",
                b"a\r\n.\rb",
                b"a\r\n.\r\r\nb",
                b"a\r\n.\r\r\n.\rb",
                b".\r\r\nb",
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

    proptest::proptest! {
        /// Beside the definition: the content ends at the first `CRLF . CRLF`, wherever the pieces are cut.
        #[test]
        fn content_is_what_stands_before_the_first_end(
            sent in proptest::collection::vec(proptest::sample::select(b"\r\n.a".to_vec()), 0..40),
            size in 1_usize..9,
        ) {
            let all = [b"\r\n", &sent[..], b"\r\n.\r\n"].concat();
            let end = all.windows(5).position(|five| five == b"\r\n.\r\n").unwrap() + 2;
            let text = std::str::from_utf8(&all[2..end.max(2)]).unwrap();
            let bare = text.replace("\r\n", "").contains(['\r', '\n']);
            let lines = text.split_inclusive("\r\n").map(|line| line.strip_prefix('.').unwrap_or(line));
            let mut content = Content::new();
            let (mut found, mut read, mut ended) = (Vec::new(), 0, false);
            for piece in all[2..].chunks(size) {
                let (taken, end) = content.read(piece);
                (read, ended) = (read + taken, end);
                found.extend(content.take());
                if ended {
                    break;
                }
            }
            proptest::prop_assert!(ended);
            proptest::prop_assert_eq!(read + 2, end + 3);
            proptest::prop_assert_eq!(content.bare, bare);
            if !bare {
                proptest::prop_assert_eq!(found, lines.collect::<String>().into_bytes());
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
        let never = CancellationToken::new().cancelled_owned();
        let mut wire = Wire::new(ours, CancellationToken::new(), never);
        let started = tokio::time::Instant::now();
        assert!(matches!(wire.line().await, Err(Gone::Idle)));
        assert_eq!(started.elapsed(), IDLE);
        wire.reply(&"x".repeat(1000));
        assert!(matches!(wire.flush().await, Err(Gone::Idle)));
    }
    // D12.
    #[tokio::test(start_paused = true)]
    async fn a_line_has_its_time_however_it_comes() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let never = CancellationToken::new().cancelled_owned();
        let mut wire = Wire::new(ours, CancellationToken::new(), never);
        let drip = tokio::spawn(async move {
            while theirs.write_all(b"N").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let started = Instant::now();
        assert!(matches!(wire.line().await, Err(Gone::Idle)));
        assert_eq!(started.elapsed(), IDLE);
        drip.abort();
    }
}
