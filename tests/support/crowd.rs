//! Many raw clients at once, and what the service makes of them: its memory, its descriptors, and what an honest client
//! hears meanwhile.

use super::{
    PATIENCE,
    smtp::Smtp,
    world::{World, eml},
};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
};

/// What a client sends: a beginning, a block many times, and an end.
#[derive(Clone, Debug, Default)]
pub struct Script {
    pub start: Vec<u8>,
    pub block: Vec<u8>,
    pub blocks: usize,
    pub end: Vec<u8>,
}

impl Script {
    /// What comes after so many bytes, up to the end of its part.
    fn from(&self, sent: usize) -> &[u8] {
        let Some(sent) = sent.checked_sub(self.start.len()) else { return &self.start[sent..] };
        let all = self.block.len() * self.blocks;
        if sent < all {
            return &self.block[sent % self.block.len()..];
        }
        self.end.get(sent - all..).unwrap_or_default()
    }
}

/// A milter frame.
pub fn frame(command: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len() + 1).unwrap().to_be_bytes();
    [&length[..], &[command], payload].concat()
}

/// Postfix's negotiation: version 6, all actions, all options.
pub fn negotiation() -> Vec<u8> {
    let words = [6_u32, 0x1ff, 0x1f_ffff].map(u32::to_be_bytes);
    frame(b'O', &words.concat())
}

/// A message to the milter, up to its body.
pub fn milter_head() -> Vec<u8> {
    [
        frame(b'M', b"<anna@mycompany.test>\0"),
        frame(b'R', b"<mycompany@severamail.test>\0"),
        frame(b'T', b""),
        frame(b'L', b"From\0 anna@mycompany.test\0"),
        frame(b'L', b"Subject\0 one of many\0"),
        frame(b'L', b"Content-Type\0 application/octet-stream\0"),
        frame(b'N', b""),
    ]
    .concat()
}

/// A message by LMTP, up to its body.
pub fn lmtp_head() -> Vec<u8> {
    b"LHLO client.test\r\nMAIL FROM:<anna@mycompany.test>\r\nRCPT TO:<mycompany@severamail.test>\r\nDATA\r\nFrom: anna@mycompany.test\r\nSubject: one of many\r\nContent-Type: application/octet-stream\r\n\r\n".to_vec()
}

/// One client, as far as it has come.
#[derive(Debug, Default)]
struct Client {
    sent: usize,
    answers: Vec<u8>,
    is_closed: bool,
}

/// How a crowd sends.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Most bytes at a time,
    pub most: usize,
    /// and the time after it.
    pub pause: Duration,
}

/// Clients that all do the same, in a thread of their own, until this is dropped.
pub struct Crowd {
    clients: Arc<Mutex<Vec<Client>>>,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    /// So many clients at `inet:address:port`.
    pub fn gather(listen: &str, count: usize, script: Script, pace: Pace) -> Self {
        let address: SocketAddr = listen.trim_start_matches("inet:").parse().unwrap();
        let clients: Arc<Mutex<Vec<Client>>> = Arc::default();
        let stop = Arc::new(Notify::new());
        let (all, stopped) = (Arc::clone(&clients), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let script = Arc::new(script);
            runtime.block_on(async {
                for _ in 0..count {
                    tokio::spawn(client(address, Arc::clone(&all), Arc::clone(&script), pace));
                }
                stopped.notified().await;
            });
        });
        Self { clients, stop, thread: Some(thread) }
    }

    /// How many have come, and how many of them are still connected.
    pub fn present(&self) -> (usize, usize) {
        let clients = self.clients.lock().unwrap();
        (clients.len(), clients.iter().filter(|client| !client.is_closed).count())
    }

    /// True once everybody who is still connected has sent all of it, and heard something after it.
    pub fn has_sent(&self, bytes: usize) -> bool {
        self.clients.lock().unwrap().iter().all(|client| client.is_closed || client.sent >= bytes)
    }

    /// What everybody has heard.
    pub fn answers(&self) -> Vec<Vec<u8>> {
        self.clients.lock().unwrap().iter().map(|client| client.answers.clone()).collect()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.notify_one();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Comes, sends, and reads what it is told.
async fn client(address: SocketAddr, all: Arc<Mutex<Vec<Client>>>, script: Arc<Script>, pace: Pace) {
    let stream = loop {
        // The system's own queue may be full; one tries again.
        match tokio::net::TcpStream::connect(address).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    };
    let number = {
        let mut all = all.lock().unwrap();
        all.push(Client::default());
        all.len() - 1
    };
    let (mut reads, mut writes) = stream.into_split();
    let sending = async {
        let mut sent = 0;
        while !script.from(sent).is_empty() {
            let next = script.from(sent);
            let piece = &next[..next.len().min(pace.most)];
            if writes.write_all(piece).await.is_err() {
                break;
            }
            sent += piece.len();
            all.lock().unwrap()[number].sent = sent;
            if !pace.pause.is_zero() {
                tokio::time::sleep(pace.pause).await;
            }
        }
        std::future::pending::<()>().await;
    };
    let reading = async {
        let mut buffer = vec![0; 4096];
        while let Ok(read @ 1..) = reads.read(&mut buffer).await {
            all.lock().unwrap()[number].answers.extend_from_slice(&buffer[..read]);
        }
    };
    tokio::select! {
        () = sending => {}
        () = reading => {}
    }
    all.lock().unwrap()[number].is_closed = true;
}

/// What the service takes of the machine, at most.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    pub mebibytes: f64,
    pub descriptors: usize,
}

impl Taken {
    /// What it has now.
    pub fn now(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        Self { mebibytes: kibibytes / 1024.0, descriptors }
    }

    pub fn or(self, other: Self) -> Self {
        Self {
            mebibytes: self.mebibytes.max(other.mebibytes),
            descriptors: self.descriptors.max(other.descriptors),
        }
    }
}

/// How honest mail goes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By SMTP, Postfix and the milter.
    Postfix,
    /// Somebody else's mail, the same way.
    Other,
    /// By LMTP.
    Lmtp,
    /// No mail: the metrics.
    Admin,
}

/// One honest message, or question: the answer as the client hears it.
pub fn honest(world: &World, way: Way) -> String {
    let (sender, to) = ("anna@mycompany.test", ["mycompany@severamail.test"]);
    match way {
        Way::Postfix => world.mail(sender, &to, &eml("plain")).1,
        Way::Other => world.mail("carl@else.test", &["dora@elsewhere.test"], &eml("plain")).1,
        Way::Lmtp => {
            let mut lmtp = Smtp::silent(&world.lmtp_listen());
            if lmtp.is_closed() {
                return "hung up".to_owned();
            }
            let greeting = lmtp.reply();
            if !greeting.starts_with("220") {
                return greeting;
            }
            lmtp.command("LHLO client.test");
            lmtp.mail(sender, &to, &eml("plain")).1
        }
        Way::Admin => status(world.admin_port),
    }
}

/// The status of the metrics; who is turned away may see no more than an end.
fn status(port: u16) -> String {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap_or("none").to_owned())
    };
    ask().unwrap_or_else(|error| error.kind().to_string())
}

/// What honest clients heard, and how long they waited.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// How often, by the first words of the answer.
    pub answers: BTreeMap<String, usize>,
    pub longest: Duration,
}

impl Heard {
    pub fn ask(&mut self, world: &World, way: Way) -> String {
        let began = Instant::now();
        let answer = honest(world, way);
        self.longest = self.longest.max(began.elapsed());
        let code = answer.split(' ').next().unwrap_or_default();
        let reason = answer.rfind('[').map_or("", |at| &answer[at..]);
        *self.answers.entry(format!("{code} {reason}").trim().to_owned()).or_default() += 1;
        answer
    }
}

/// Waits until honest mail is taken; for how long.
#[track_caller]
pub fn taken_after(world: &World, way: Way) -> Duration {
    let began = Instant::now();
    let mut last = String::new();
    while !last.starts_with('2') {
        assert!(began.elapsed() < 5 * PATIENCE, "honest mail ({way:?}) is not taken again: {last}");
        last = honest(world, way);
        std::thread::sleep(Duration::from_millis(25));
    }
    began.elapsed()
}
