//! A run of the service: mail comes by two doors, a backend takes it, and strace writes down what happens to the files.
//!
//! In: how many messages. Out: the [`Record`], and the [`Book`] of the backend: each activity, as it was sent there.
//! The service is the shipped program with a queue in one file. It is killed when a third of the messages was accepted, ended by
//! SIGTERM at two thirds, and started again each time, the last time to keep what is delivered; at the end it is killed. Of
//! twenty messages three have an attachment that goes to a file; a fifth is for two companies, an eighth is refused by the backend
//! and held, a ninth is denied at first.
//! Clients try again until they hear 250. Each try comes from an address of its own, by which strace's lines tell whose answer it is.

use super::record::{CALLS, Reading, Record};
use crate::support::{
    crowd::{frame, negotiation},
    free_port,
    world::{Process, program},
};
use axum::{
    Router,
    extract::{DefaultBodyLimit, Multipart, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};
use tokio::runtime::Runtime;

/// Clients at a time.
const CLIENTS: usize = 8;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the backend takes for an answer: so long an activity is in the queue at least.
const SLOW: Duration = Duration::from_millis(40);

/// How many activities come of a message.
pub fn activities_of(number: usize) -> usize {
    1 + usize::from(number.is_multiple_of(5))
}

/// The attachment: of each tenth one that goes to a file, of some others a small one.
fn file(number: usize) -> Option<String> {
    let lines = match number {
        _ if number % 10 == 3 || number % 20 == 10 => 2_500,
        _ if number % 4 == 1 => 20,
        _ => return None,
    };
    let lines = (0..lines).map(|line| format!("{number} {line} {:050}", number * line));
    Some(lines.collect::<Vec<_>>().join("\r\n"))
}

/// Its header fields.
fn head(number: usize) -> Vec<(&'static str, String)> {
    let mut head = vec![
        ("From", "Anna Aalto <anna@mycompany.test>".to_owned()),
        ("To", "Bo Berg <bo@acme.test>".to_owned()),
        ("Subject", format!("Message {number}")),
        ("Date", "Mon, 23 Nov 2026 20:00:00 +0200".to_owned()),
        ("Message-ID", format!("<synced-{number}@mycompany.test>")),
        ("MIME-Version", "1.0".to_owned()),
    ];
    head.extend(file(number).map(|_| ("Content-Type", "multipart/mixed; boundary=cut".to_owned())));
    head
}

/// What comes after them.
fn content(number: usize) -> String {
    let text = format!("This is message {number} of many.\r\n").repeat(number % 30 + 1);
    let Some(file) = file(number) else { return text };
    format!(
        "--cut\r\n\r\n{text}\r\n--cut\r\nContent-Type: application/octet-stream\r\n\
         Content-Disposition: attachment; filename=file.bin\r\n\r\n{file}\r\n--cut--\r\n"
    )
}

/// The message, as it is kept.
pub fn message(number: usize) -> Vec<u8> {
    let head: String = head(number).iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("{head}\r\n{}", content(number)).into_bytes()
}

pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An activity, as it came to the backend.
#[derive(Clone, Debug, Default)]
pub struct Activity {
    /// Of the message.
    pub number: usize,
    pub json: Vec<u8>,
    /// Hashes of its files.
    pub files: Vec<String>,
    /// When it was about to be answered 201 first, in microseconds since 1970.
    pub taken: Option<i64>,
    /// It was answered 422.
    pub refused: bool,
    attempts: usize,
}

/// All of them, by their keys.
pub type Book = BTreeMap<String, Activity>;

type Shared = Arc<Mutex<Book>>;

fn now() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_micros()).unwrap()
}

async fn receive(State(book): State<Shared>, mut parts: Multipart) -> Response {
    let mut json = Vec::new();
    let mut files = Vec::new();
    loop {
        match parts.next_field().await {
            Ok(Some(field)) => {
                let Ok(bytes) = field.bytes().await else { return StatusCode::BAD_REQUEST.into_response() };
                if json.is_empty() { json = bytes.to_vec() } else { files.push(hash(&bytes)) }
            }
            Ok(None) => break,
            Err(_) => return StatusCode::BAD_REQUEST.into_response(),
        }
    }
    tokio::time::sleep(SLOW).await;
    let activity: Value = serde_json::from_slice(&json).unwrap();
    let key = activity["key"].as_str().unwrap().to_owned();
    let number = activity["subject"].as_str().unwrap().trim_start_matches("Message ").parse().unwrap();
    let mut book = book.lock().unwrap();
    let entry = book.entry(key.clone()).or_insert_with(|| Activity {
        number,
        json: json.clone(),
        files: files.clone(),
        ..Activity::default()
    });
    assert!(entry.json == json && entry.files == files, "{key} came otherwise than before");
    entry.attempts += 1;
    if number % 9 == 4 && entry.attempts == 1 {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if number % 8 == 6 {
        entry.refused = true;
        return StatusCode::UNPROCESSABLE_ENTITY.into_response();
    }
    entry.taken.get_or_insert_with(now);
    let answer = serde_json::json!({ "key": key, "id": key });
    (StatusCode::CREATED, axum::Json(answer)).into_response()
}

/// Starts the backend at a port.
fn backend(port: u16) -> (Shared, Runtime) {
    let book = Shared::default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let router = Router::new()
        .route("/v1/activities", post(receive))
        .layer(DefaultBodyLimit::disable())
        .with_state(Arc::clone(&book));
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    listener.set_nonblocking(true).unwrap();
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        axum::serve(listener, router).await.unwrap();
    });
    (book, runtime)
}

/// The address from which a message comes.
fn address(number: usize, attempt: usize) -> Ipv4Addr {
    let byte = |number: usize| u8::try_from(number).unwrap();
    Ipv4Addr::new(127, byte(1 + attempt % 200), byte(number / 250), byte(number % 250 + 1))
}

/// The message that comes from an address.
pub fn number_of(address: &str) -> usize {
    let address: Ipv4Addr = address.parse().unwrap();
    let [_, _, high, low] = address.octets().map(usize::from);
    high * 250 + low - 1
}

fn connect(port: u16, number: usize, attempt: usize) -> Option<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().ok()?;
        socket.bind(SocketAddr::from((address(number, attempt), 0))).ok()?;
        let stream = socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await.ok()?;
        stream.into_std().ok()
    })?;
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    Some(stream)
}

/// To whom a message is.
fn recipients(number: usize) -> &'static [&'static str] {
    &["mycompany@severamail.test", "sub.mycompany@severamail.test"][..activities_of(number)]
}

/// One try by LMTP: whether it was accepted.
fn by_lmtp(stream: TcpStream, number: usize) -> Option<bool> {
    let mut stream = BufReader::new(stream);
    let reply = |stream: &mut BufReader<TcpStream>| -> Option<bool> {
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                return Some(line.starts_with('2') || line.starts_with('3'));
            }
        }
    };
    let mut is_well = reply(&mut stream)?;
    let mut lines = vec!["LHLO client.test".to_owned(), "MAIL FROM:<anna@mycompany.test>".to_owned()];
    lines.extend(recipients(number).iter().map(|to| format!("RCPT TO:<{to}>")));
    lines.push("DATA".to_owned());
    for line in lines {
        stream.get_mut().write_all(format!("{line}\r\n").as_bytes()).ok()?;
        is_well &= reply(&mut stream)?;
    }
    if !is_well {
        return Some(false);
    }
    stream.get_mut().write_all(&message(number)).ok()?;
    stream.get_mut().write_all(b".\r\n").ok()?;
    for _ in recipients(number) {
        is_well &= reply(&mut stream)?;
    }
    Some(is_well)
}

/// One try as Postfix asks a milter.
fn by_milter(mut stream: TcpStream, number: usize) -> Option<bool> {
    stream.write_all(&negotiation()).ok()?;
    answer(&mut stream)?;
    let mut asked = vec![frame(b'M', b"<anna@mycompany.test>\0")];
    asked.extend(recipients(number).iter().map(|to| frame(b'R', format!("<{to}>\0").as_bytes())));
    asked.push(frame(b'T', b""));
    let fields = head(number).into_iter();
    let fields = fields.map(|(name, value)| frame(b'L', format!("{name}\0 {value}\0").as_bytes()));
    asked.push(fields.chain([frame(b'N', b"")]).collect::<Vec<_>>().concat());
    stream.write_all(&asked.remove(0)).ok()?;
    for frames in asked {
        stream.write_all(&frames).ok()?;
        if answer(&mut stream)? != b'c' {
            return Some(false);
        }
    }
    for piece in content(number).as_bytes().chunks(65_535) {
        stream.write_all(&frame(b'B', piece)).ok()?;
    }
    stream.write_all(&frame(b'E', b"")).ok()?;
    Some(answer(&mut stream)? == b'd')
}

/// The next answer that decides something.
fn answer(stream: &mut TcpStream) -> Option<u8> {
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length).ok()?;
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut answer).ok()?;
        if !matches!(answer.first()?, b'p' | b's') {
            return Some(answer[0]);
        }
    }
}

/// Sends messages, one at a time, until there are so many.
fn client(ports: [u16; 2], messages: usize, next: &AtomicUsize, accepted: &AtomicUsize) {
    loop {
        let number = next.fetch_add(1, Ordering::SeqCst);
        if number >= messages {
            return;
        }
        for attempt in 0.. {
            assert!(attempt < 190, "{number} is not accepted");
            let by = (number + attempt) % 2;
            let stream = connect(ports[by], number, attempt);
            let said = stream
                .and_then(|stream| if by == 0 { by_lmtp(stream, number) } else { by_milter(stream, number) });
            if said == Some(true) {
                break;
            }
            thread::sleep(Duration::from_millis(400));
        }
        accepted.fetch_add(1, Ordering::SeqCst);
    }
}

/// A life of the service, under strace.
struct Life {
    strace: Process,
    trace: std::path::PathBuf,
}

impl Life {
    fn begin(place: &Path, at: usize) -> Self {
        let trace = place.join(format!("trace-{at}"));
        let mut command = Command::new("strace");
        command.args([
            "-f",
            "-y",
            "--seccomp-bpf",
            "-ttt",
            "-s",
            "10000000",
            "-e",
            &format!("trace={CALLS}"),
            "-o",
        ]);
        command.arg(&trace).arg(program()).arg("--config").arg(place.join("am.toml")).arg("serve");
        command.current_dir("/");
        let mut strace = Process::start(&mut command, &place.join(format!("service-{at}.log")));
        strace.wait_to_say("started");
        Self { strace, trace }
    }

    /// Ends it by a signal.
    fn end(mut self, signal: &str) -> std::path::PathBuf {
        let strace = self.strace.id();
        let children = fs::read_to_string(format!("/proc/{strace}/task/{strace}/children")).unwrap();
        let service = children.trim();
        assert!(Command::new("kill").args([&format!("-{signal}"), service]).status().unwrap().success());
        self.strace.wait();
        self.trace
    }
}

fn configure(place: &Path, ports: [u16; 2], backend: u16, keeps: bool) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/directory.toml");
    let (place, directory) = (place.display(), directory.display());
    let [lmtp, milter] = ports;
    let keep = if keeps { "1d" } else { "0" };
    let text = format!(
        "integration_domains = [\"severamail.test\"]
        [milter]\nlisten = \"inet:127.0.0.1:{milter}\"
        [lmtp]\nlisten = \"inet:127.0.0.1:{lmtp}\"
        [directory]\npath = \"{directory}\"
        [backend]\nurl = \"http://127.0.0.1:{backend}/\"\nretry_first = \"50ms\"\nretry_max = \"500ms\"
        [queue]\npath = \"{place}/disk/state/queue.db\"\nspool = \"{place}/disk/state/spool\"\nmin_free = \"0\"\nkeep_delivered = \"{keep}\"
        [trace]\npath = \"{place}/trace.db\"\n"
    );
    fs::write(format!("{place}/am.toml"), text).unwrap();
}

/// Everything, in a folder that is empty.
pub fn play(messages: usize, place: &Path) -> (Record, Book) {
    let ports = [free_port(), free_port()];
    let backend_port = free_port();
    configure(place, ports, backend_port, false);
    fs::create_dir(place.join("disk")).unwrap();
    let (book, _runtime) = backend(backend_port);
    let counters = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let mut reading = Reading::of(&place.join("disk"));
    let mut life = Life::begin(place, 0);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let counters = Arc::clone(&counters);
            thread::spawn(move || client(ports, messages, &counters[0], &counters[1]))
        })
        .collect();
    for (at, signal) in [(1, "KILL"), (2, "TERM")] {
        wait_until(&format!("{at} thirds"), || counters[1].load(Ordering::SeqCst) >= messages * at / 3);
        reading.read(&life.end(signal));
        configure(place, ports, backend_port, at == 2);
        life = Life::begin(place, at);
    }
    clients.into_iter().for_each(|client| client.join().unwrap());
    wait_until("the backend to have all", || {
        let book = book.lock().unwrap();
        let done = book.values().filter(|activity| activity.taken.is_some() || activity.refused);
        done.count() == (0..messages).map(activities_of).sum::<usize>()
    });
    // The last ends are written.
    thread::sleep(Duration::from_secs(1));
    reading.read(&life.end("KILL"));
    let book = std::mem::take(&mut *book.lock().unwrap());
    (reading.done(), book)
}

/// One start with what is in the folder `disk`, while no backend answers; it is killed a moment later.
pub fn begin(place: &Path) -> Record {
    configure(place, [free_port(), free_port()], free_port(), true);
    let mut reading = Reading::of(&place.join("disk"));
    let life = Life::begin(place, 0);
    // Its first upkeep.
    thread::sleep(Duration::from_millis(300));
    reading.read(&life.end("KILL"));
    reading.done()
}

/// With patience for a thousand messages under strace.
fn wait_until(what: &str, is: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !is() {
        assert!(began.elapsed() < PATIENCE * 10, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
