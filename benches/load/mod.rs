//! A milter client that makes load: as many connections as one likes, from one thread; frames are coalesced where no
//! reply is wanted.
//!
//! The protocol is version 6 of sendmail's `libmilter/mfdef.h`: a frame is a length (4 bytes, big endian), a command, data.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpStream, UnixStream},
    task::JoinSet,
};
use tokio_util::either::Either;

const NO_CONNECT: u32 = 0x1;
const NO_HELO: u32 = 0x2;
const NO_MAIL: u32 = 0x4;
const NO_RCPT: u32 = 0x8;
const NO_BODY: u32 = 0x10;
const NO_HEADERS: u32 = 0x20;
const NO_EOH: u32 = 0x40;
const NOREPLY_HEADER: u32 = 0x80;
const NO_DATA: u32 = 0x200;
const SKIP: u32 = 0x400;
const NOREPLY_CONNECT: u32 = 0x1000;
const NOREPLY_HELO: u32 = 0x2000;
const NOREPLY_MAIL: u32 = 0x4000;
const NOREPLY_RCPT: u32 = 0x8000;
const NOREPLY_DATA: u32 = 0x10000;
const NOREPLY_EOH: u32 = 0x40000;
const NOREPLY_BODY: u32 = 0x80000;

/// What Postfix sends of a body at once.
const PIECE: usize = 65_535;

/// What is written at once where no reply is wanted.
const AT_ONCE: usize = 256 * 1024;

/// What is sent.
#[derive(Clone, Debug)]
pub struct Load {
    /// `unix:/path` or `inet:address:port`.
    pub socket: String,
    /// Connections at a time.
    pub connections: usize,
    /// Messages in all.
    pub messages: u64,
    /// Messages of one session; then the connection is closed and another one opened.
    pub per_session: u64,
    /// Bytes of a body.
    pub size: usize,
    /// How much of the mail goes to `integration`, from 0 to 1; the rest to `other`.
    pub share: f64,
    /// An integration address.
    pub integration: String,
    /// Any other address.
    pub other: String,
}

impl Load {
    /// Spreads the share evenly over the messages.
    fn recipient(&self, number: u64) -> &str {
        let before = (number as f64 * self.share).floor();
        let after = ((number + 1) as f64 * self.share).floor();
        if after > before { &self.integration } else { &self.other }
    }
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Figures {
    pub per_second: f64,
    pub p50: Duration,
    pub p95: Duration,
    pub p99: Duration,
    /// Final replies, by their letter in the protocol.
    pub answers: std::collections::BTreeMap<char, u64>,
}

type Stream = BufReader<Either<UnixStream, TcpStream>>;

async fn connect(socket: &str) -> io::Result<Stream> {
    let stream = match socket.split_once(':') {
        Some(("unix", path)) => Either::Left(UnixStream::connect(path).await?),
        Some(("inet", address)) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Either::Right(stream)
        }
        _ => return Err(io::Error::other("unix: or inet:")),
    };
    Ok(BufReader::new(stream))
}

/// One connection.
struct Client {
    stream: Stream,
    out: Vec<u8>,
    answer: Vec<u8>,
    protocol: u32,
}

impl Client {
    async fn open(socket: &str) -> io::Result<Self> {
        let stream = connect(socket).await?;
        let mut client = Self { stream, out: Vec::new(), answer: Vec::new(), protocol: 0 };
        let mut offer = 6_u32.to_be_bytes().to_vec();
        offer.extend_from_slice(&0x1ff_u32.to_be_bytes());
        offer.extend_from_slice(&0x1f_ffff_u32.to_be_bytes());
        client.frame(b'O', &offer);
        client.reply().await?;
        client.protocol = u32::from_be_bytes(client.answer[8..12].try_into().unwrap());
        client.macros(b'C', b"j\0mx.test\0{daemon_name}\0smtpd\0v\0Postfix 3.7.11\0");
        client.command(b'C', b"localhost\x004\0\x30127.0.0.1\0", NO_CONNECT, NOREPLY_CONNECT).await?;
        client.command(b'H', b"client.test\0", NO_HELO, NOREPLY_HELO).await?;
        Ok(client)
    }

    async fn close(mut self) {
        self.frame(b'Q', b"");
        let _ = self.stream.write_all(&self.out).await;
    }

    fn frame(&mut self, command: u8, data: &[u8]) {
        self.out.extend_from_slice(&u32::try_from(data.len() + 1).unwrap().to_be_bytes());
        self.out.push(command);
        self.out.extend_from_slice(data);
    }

    fn macros(&mut self, stage: u8, pairs: &[u8]) {
        let mut data = vec![stage];
        data.extend_from_slice(pairs);
        self.frame(b'D', &data);
    }

    fn wants(&self, without: u32) -> bool {
        self.protocol & without == 0
    }

    /// Sends everything, and reads one reply; progress is not one.
    async fn reply(&mut self) -> io::Result<u8> {
        self.send().await?;
        loop {
            let length = self.stream.read_u32().await? as usize;
            let answer = self.stream.read_u8().await?;
            self.answer.resize(length - 1, 0);
            self.stream.read_exact(&mut self.answer).await?;
            if answer != b'p' {
                return Ok(answer);
            }
        }
    }

    async fn send(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    /// A command, if it is wanted; its reply, if there is one: `c` (continue) otherwise.
    async fn command(&mut self, command: u8, data: &[u8], without: u32, silent: u32) -> io::Result<u8> {
        if !self.wants(without) {
            return Ok(b'c');
        }
        self.frame(command, data);
        if self.protocol & silent == 0 {
            return self.reply().await;
        }
        if self.out.len() > AT_ONCE {
            self.send().await?;
        }
        Ok(b'c')
    }

    /// One message; the last reply.
    async fn message(&mut self, number: u64, load: &Load, body: &[u8]) -> io::Result<u8> {
        let recipient = load.recipient(number);
        self.macros(b'M', b"{mail_addr}\0anna@mycompany.test\0{client_addr}\x00127.0.0.1\0");
        self.command(b'M', b"<anna@mycompany.test>\0", NO_MAIL, NOREPLY_MAIL).await?;
        self.macros(b'R', format!("{{rcpt_addr}}\0{}\0", recipient).as_bytes());
        let answer =
            self.command(b'R', format!("<{}>\0", recipient).as_bytes(), NO_RCPT, NOREPLY_RCPT).await?;
        if answer != b'c' {
            return Ok(answer);
        }
        self.macros(b'T', format!("i\0QID{number:x}\0").as_bytes());
        let answer = self.command(b'T', b"", NO_DATA, NOREPLY_DATA).await?;
        if answer != b'c' {
            return Ok(answer);
        }
        for (name, value) in [
            ("Received", " from client.test (localhost [127.0.0.1])\n\tby mx.test (Postfix) with ESMTP id 4Xy\n\tfor <x>; Tue, 24 Nov 2026 12:00:00 +0000 (UTC)".to_owned()),
            ("From", " Anna Aalto <anna@mycompany.test>".to_owned()),
            ("To", " Bo Berg <bo@acme.test>".to_owned()),
            ("Cc", " carl@else.test".to_owned()),
            ("Subject", format!(" Offer number {number}")),
            ("Date", " Tue, 24 Nov 2026 12:00:00 +0000".to_owned()),
            ("Message-ID", format!(" <{number}.{}@mycompany.test>", std::process::id())),
            ("MIME-Version", " 1.0".to_owned()),
            ("Content-Type", content_type(load.size).to_owned()),
        ] {
            self.command(b'L', format!("{name}\0{value}\0").as_bytes(), NO_HEADERS, NOREPLY_HEADER).await?;
        }
        let answer = self.command(b'N', b"", NO_EOH, NOREPLY_EOH).await?;
        if answer != b'c' {
            return Ok(answer);
        }
        for piece in body.chunks(PIECE) {
            if self.command(b'B', piece, NO_BODY, NOREPLY_BODY).await? == b's' && self.protocol & SKIP != 0 {
                break;
            }
        }
        self.macros(b'E', format!("i\0QID{number:x}\0").as_bytes());
        self.frame(b'E', b"");
        // Actions come before the final reply.
        loop {
            let answer = self.reply().await?;
            if matches!(answer, b'a' | b'c' | b'd' | b'r' | b't' | b'y') {
                return Ok(answer);
            }
        }
    }
}

/// Up to this size a body is a text that somebody wrote; a larger one is a short text with a file.
const LARGE: usize = 64 * 1024;

fn content_type(size: usize) -> &'static str {
    if size < LARGE { " text/plain; charset=utf-8" } else { " multipart/mixed; boundary=\"--b\"" }
}

fn body(size: usize) -> Vec<u8> {
    let line = b"A line of text as people write them, some seventy characters long.\r\n";
    if size < LARGE {
        return line.iter().copied().cycle().take(size).collect();
    }
    let mut body = b"----b\r\nContent-Type: text/plain\r\n\r\nsee the file\r\n----b\r\nContent-Type: application/pdf; name=offer.pdf\r\n\
        Content-Disposition: attachment; filename=offer.pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        .to_vec();
    let mut number = 0_u32;
    while body.len() < size {
        for _ in 0..76 {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            body.push(
                b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[(number >> 26) as usize],
            );
        }
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"----b--\r\n");
    body
}

/// Runs it.
pub fn run(load: &Load) -> Figures {
    // A thread of its own whatever the caller is; one, because it shall cost the filter as little as it can.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let base = BASE.fetch_add(load.messages, Ordering::Relaxed);
    runtime.block_on(async {
        let body: Arc<[u8]> = body(load.size).into();
        let next = Arc::new(AtomicU64::new(0));
        let mut clients = Vec::new();
        for _ in 0..load.connections {
            clients.push(Client::open(&load.socket).await.unwrap());
        }
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        for client in clients {
            tasks.spawn(session(client, load.clone(), Arc::clone(&body), Arc::clone(&next), base));
        }
        let all = tasks.join_all().await;
        let elapsed = started.elapsed();
        let mut answers = std::collections::BTreeMap::new();
        let mut times = Vec::new();
        for (time, answer) in all.into_iter().flatten() {
            times.push(time);
            *answers.entry(char::from(answer)).or_default() += 1;
        }
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        Figures {
            per_second: times.len() as f64 / elapsed.as_secs_f64(),
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            answers,
        }
    })
}

/// One connection after the other, as long as there are messages: how long each took, and its answer.
async fn session(
    mut client: Client,
    load: Load,
    body: Arc<[u8]>,
    next: Arc<AtomicU64>,
    base: u64,
) -> Vec<(Duration, u8)> {
    let mut done = Vec::new();
    let mut of_session = 0;
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= load.messages {
            client.close().await;
            return done;
        }
        if of_session == load.per_session {
            client.close().await;
            client = Client::open(&load.socket).await.unwrap();
            of_session = 0;
        }
        of_session += 1;
        let started = Instant::now();
        let answer = client.message(base + number, &load, &body).await.unwrap();
        done.push((started.elapsed(), answer));
    }
}

/// Every run has Message-IDs of its own: the same e-mail again would be known.
static BASE: AtomicU64 = AtomicU64::new(0);
