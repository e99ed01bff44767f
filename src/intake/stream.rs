//! A connection that has a place, and shows how its client gets on.
//!
//! In: the bytes of a socket. Out: the same bytes, or an end where the client was sent away.
//! Promise: milter frames larger than [`SMALL`] come one after the other as there is memory for them, for all connections
//! together [`super::places`] has it; nothing of what the peer sends is changed.
//! Fails: as the socket does.

use super::places::{At, Place};
use bytes::{Buf, Bytes};
use indymilter::EitherStream;
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    sync::OwnedSemaphorePermit,
};
use tokio_util::sync::{PollSemaphore, WaitForCancellationFutureOwned};

/// A socket of either kind.
pub(super) type Socket = EitherStream<TcpStream, UnixStream>;

/// Largest frame that needs no memory of its own: a session has as much anyway.
const SMALL: usize = 8 * 1024;

/// Largest frame at all. Without negotiating more, an MTA sends 64 KiB (libmilter's `MILTER_MAX_DATA_SIZE`).
const LARGEST: usize = 128 * 1024;

/// What the doors speak, as far as it matters here.
#[derive(Debug)]
enum Speech {
    Milter(Frames),
    /// The conversation tells how it gets on, and says farewell.
    Lmtp,
    /// An answer is something done.
    Http,
}

/// A connection of a door.
#[derive(Debug)]
pub struct Guarded {
    socket: Socket,
    place: Arc<Place>,
    away: Pin<Box<WaitForCancellationFutureOwned>>,
    speech: Speech,
}

impl Guarded {
    pub(super) fn new(socket: Socket, place: Arc<Place>, table: &str) -> Self {
        let speech = match table {
            "milter" => Speech::Milter(Frames::new(place.frames())),
            "lmtp" => Speech::Lmtp,
            _ => Speech::Http,
        };
        Self { socket, away: Box::pin(place.away()), place, speech }
    }

    pub(super) fn place(&self) -> &Arc<Place> {
        &self.place
    }

    fn is_sent_away(&mut self, cx: &mut Context<'_>) -> bool {
        !matches!(self.speech, Speech::Lmtp) && self.away.as_mut().poll(cx).is_ready()
    }
}

impl AsyncRead for Guarded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_sent_away(cx) {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        if let Speech::Milter(frames) = &mut this.speech {
            ready!(frames.poll_memory(cx, &this.place));
            if frames.give_held(buf, &this.place) {
                return Poll::Ready(Ok(()));
            }
        }
        match Pin::new(&mut this.socket).poll_read(cx, buf) {
            Poll::Pending => {
                this.place.waits();
                Poll::Pending
            }
            Poll::Ready(done) => {
                this.place.came(buf.filled().len() - before);
                if let Speech::Milter(frames) = &mut this.speech {
                    frames.pass(buf, before, &this.place);
                    if frames.is_refused {
                        return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                    }
                }
                Poll::Ready(done)
            }
        }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.is_sent_away(cx) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let written = Pin::new(&mut this.socket).poll_write(cx, buf);
        this.place.writes(written.is_pending());
        if written.is_ready() && matches!(this.speech, Speech::Http) {
            this.place.has_done_something();
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

/// The frames of the milter protocol as they pass: a length of four bytes, a command, and data.
#[derive(Debug)]
struct Frames {
    memory: PollSemaphore,
    /// What the frame under way has of it, in KiB.
    has: Option<(OwnedSemaphorePermit, usize)>,
    /// What it wants before the rest of it is read.
    wants: Option<usize>,
    /// Read, and not given on while there is no memory.
    held: Bytes,
    header: [u8; 5],
    /// Bytes of the header, and then of the data that are to come.
    read: usize,
    left: usize,
    /// A frame came that is larger than any may be.
    is_refused: bool,
}

impl Frames {
    fn new(memory: PollSemaphore) -> Self {
        Self {
            memory,
            has: None,
            wants: None,
            held: Bytes::new(),
            header: [0; 5],
            read: 0,
            left: 0,
            is_refused: false,
        }
    }

    fn is_between(&self) -> bool {
        self.read == 0
    }

    /// Gets memory for the frame under way. That somebody reads on means that the frames before it are done with.
    fn poll_memory(&mut self, cx: &mut Context<'_>, place: &Place) -> Poll<()> {
        let Some(wanted) = self.wants else {
            if self.is_between() && self.has.take().is_some() {
                place.memory(false, false);
            }
            return Poll::Ready(());
        };
        self.has = None;
        place.memory(false, true);
        let kib = u32::try_from(wanted).unwrap_or(u32::MAX);
        // It is never closed; without memory the frame would be read all the same.
        let permit = ready!(self.memory.poll_acquire_many(cx, kib));
        self.has = permit.map(|permit| (permit, wanted));
        self.wants = None;
        place.memory(true, false);
        Poll::Ready(())
    }

    /// Gives on what was held back; false if there was nothing.
    fn give_held(&mut self, buf: &mut ReadBuf<'_>, place: &Place) -> bool {
        if self.held.is_empty() {
            return false;
        }
        let before = buf.filled().len();
        let length = self.held.len().min(buf.remaining());
        buf.put_slice(&self.held[..length]);
        self.held.advance(length);
        let rest = std::mem::take(&mut self.held);
        self.pass(buf, before, place);
        // What is held back anew stands before what was.
        self.held = if self.held.is_empty() { rest } else { [&self.held[..], &rest[..]].concat().into() };
        true
    }

    /// Looks at what has come since `before`; what follows the header of a frame for which there is no memory is held back.
    fn pass(&mut self, buf: &mut ReadBuf<'_>, before: usize, place: &Place) {
        let mut at = before;
        while at < buf.filled().len() {
            if self.read < self.header.len() {
                self.header[self.read] = buf.filled()[at];
                (self.read, at) = (self.read + 1, at + 1);
                if self.read == 1 {
                    place.command(true);
                }
                if self.read < self.header.len() {
                    continue;
                }
                let [a, b, c, d, command] = self.header;
                let length = u32::from_be_bytes([a, b, c, d]);
                self.left = usize::try_from(length).unwrap_or(usize::MAX).saturating_sub(1);
                begins(command, place);
                if !self.has_memory(place) {
                    let rest = Bytes::copy_from_slice(&buf.filled()[at..]);
                    buf.set_filled(at);
                    self.held = rest;
                    self.end_if_complete(place);
                    return;
                }
            } else {
                let piece = self.left.min(buf.filled().len() - at);
                (self.left, at) = (self.left - piece, at + piece);
            }
            self.end_if_complete(place);
        }
    }

    fn end_if_complete(&mut self, place: &Place) {
        if self.read == self.header.len() && self.left == 0 {
            ends(self.header[4], place);
            self.read = 0;
        }
    }

    /// True if the frame that begins is small, or there is memory for it at once.
    fn has_memory(&mut self, place: &Place) -> bool {
        let wanted = self.left.div_ceil(1024);
        self.is_refused |= self.left > LARGEST;
        let has = self.has.as_ref().map_or(0, |(_, has)| *has);
        if self.left <= SMALL || self.is_refused || wanted <= has {
            return true;
        }
        let kib = u32::try_from(wanted - has).unwrap_or(u32::MAX);
        let all = self.memory.clone_inner();
        match (all.try_acquire_many_owned(kib), self.has.take()) {
            (Ok(more), None) => self.has = Some((more, wanted)),
            (Ok(more), Some((mut permit, _))) => {
                permit.merge(more);
                self.has = Some((permit, wanted));
            }
            (Err(_), had) => {
                (self.has, self.wants) = (had, Some(wanted));
                return false;
            }
        }
        place.memory(true, false);
        true
    }
}

/// A frame with this command begins.
fn begins(command: u8, place: &Place) {
    if matches!(command, b'L' | b'N' | b'B' | b'E') {
        place.goes_to(At::Content);
    }
}

/// It is complete.
fn ends(command: u8, place: &Place) {
    place.command(false);
    match command {
        b'O' => place.goes_to(At::Rest),
        b'M' | b'R' => place.goes_to(At::Envelope),
        // Other people's mail comes no further.
        b'T' => {
            place.has_done_something();
            place.goes_to(At::Envelope);
        }
        b'E' => {
            place.has_done_something();
            place.goes_to(At::Rest);
        }
        b'A' => place.goes_to(At::Rest),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intake::places::{Manners, Places};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn places() -> Places {
        Places::new("milter", 10, Duration::from_secs(30), Manners::milter(10))
    }

    fn pair(places: &Places) -> (Guarded, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Guarded::new(Socket::Unix(ours), places.take(At::Door), "milter"), theirs)
    }

    fn frame(command: u8, length: usize) -> Vec<u8> {
        let data: Vec<u8> = (0..length).map(|at| at as u8).collect();
        [&u32::try_from(length + 1).unwrap().to_be_bytes()[..], &[command], &data].concat()
    }

    #[tokio::test]
    async fn nothing_of_what_comes_is_changed_whatever_the_pieces() {
        let lengths = [0, 1, 8_191, 8_192, 8_193, 65_535, 20_000, 0, 100_000, LARGEST, 9_000, 3];
        let sent: Vec<u8> = lengths.iter().flat_map(|length| frame(b'B', *length)).collect();
        for pieces in [[1_000, 1_000], [8_192, 8_192], [8_192, 100], [70_000, 3]] {
            let places = places();
            let (mut ours, mut theirs) = pair(&places);
            // Somebody else has all the memory again and again.
            let memory = ours.place().frames().clone_inner();
            let all_of_it = u32::try_from(memory.available_permits()).unwrap();
            let other = tokio::spawn(async move {
                loop {
                    let taken = memory.acquire_many(all_of_it).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    drop(taken);
                }
            });
            let all = sent.clone();
            let writer = tokio::spawn(async move { theirs.write_all(&all).await });
            let mut found = Vec::new();
            let mut buffer = vec![0; 70_000];
            for piece in pieces.into_iter().cycle() {
                match ours.read(&mut buffer[..piece]).await.unwrap() {
                    0 => break,
                    read => found.extend_from_slice(&buffer[..read]),
                }
            }
            writer.await.unwrap().unwrap();
            other.abort();
            assert!(found == sent, "{pieces:?}");
        }
    }

    /// Reads what there is without waiting for more.
    async fn read_on(ours: &mut Guarded) -> usize {
        let mut buffer = vec![0; 8_192];
        let mut all = 0;
        while let Ok(read) = tokio::time::timeout(Duration::from_millis(50), ours.read(&mut buffer)).await {
            all += read.unwrap();
        }
        all
    }

    // D5.
    #[tokio::test]
    async fn large_frames_wait_for_the_memory_of_others_and_small_ones_do_not() {
        let places = places();
        let mut holders = Vec::new();
        for _ in 0..64 {
            let (mut ours, mut theirs) = pair(&places);
            theirs.write_all(&frame(b'B', LARGEST)[..20_000]).await.unwrap();
            assert_eq!(read_on(&mut ours).await, 20_000);
            holders.push((ours, theirs));
        }
        let (mut late, mut sender) = pair(&places);
        sender.write_all(&[frame(b'B', 100), frame(b'B', 20_000)].concat()).await.unwrap();
        assert_eq!(read_on(&mut late).await, 110, "the small frame, and the header of the large one");
        holders.pop();
        assert_eq!(read_on(&mut late).await, 20_000);
    }

    #[tokio::test]
    async fn a_frame_larger_than_any_mta_sends_is_the_end() {
        for (length, is_taken) in [(LARGEST, true), (LARGEST + 1, false), (1 << 30, false)] {
            let (mut ours, mut theirs) = pair(&places());
            let header = [&u32::try_from(length + 1).unwrap().to_be_bytes()[..], b"B", &[b'x'; 100]].concat();
            theirs.write_all(&header).await.unwrap();
            assert_eq!(ours.read(&mut [0; 4_096]).await.is_ok(), is_taken, "{length}");
        }
    }

    #[tokio::test]
    async fn who_is_sent_away_reads_an_end() {
        let places = places();
        let (mut ours, _theirs) = pair(&places);
        let reads = tokio::spawn(async move { ours.read(&mut [0; 10]).await });
        tokio::time::sleep(Duration::from_millis(10)).await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(places.make_room());
        assert_eq!(reads.await.unwrap().unwrap(), 0);
        assert_eq!(places.taken(), 0);
    }
}
