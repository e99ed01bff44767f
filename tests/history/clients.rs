//! Who sends: SMTP clients that try again until they hear 250, as mail servers do.
//!
//! In: doors, and how many messages a second. Out: what was heard, each word with its time ([`Clients::heard`]).
//! Promise: a message is the same bytes at each try, is tried at each door by turns, and is given up only when the test
//! is. No client has two messages at a time, so who hears nothing sends nothing. A message for several recipients is accepted
//! where each of them was; else all of it is tried again.
//! Fails: a 5xx is noted, and nothing is made of it here.

use crate::support::crowd::{frame, negotiation};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

/// Clients that begin at each door.
const AT_EACH: usize = 6;

/// Longer than our patience with a put. RFC 5321, section 4.5.3.2.6, has 10 minutes.
const PATIENCE: Duration = Duration::from_secs(60);

/// From a try that failed to the next one. Postfix waits for minutes (`minimal_backoff_time`).
const PAUSE: Duration = Duration::from_millis(400);

/// Each so manieth message has a file of several pieces.
const LARGE_EVERY: usize = 200;

/// Each so manieth message is for two companies.
const DOUBLE_EVERY: usize = 5;

const MINE: &str = "mycompany@severamail.test";
const SECOND: &str = "sub.mycompany@severamail.test";

/// What a client heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// 250 after the final dot.
    Accepted,
    /// 4xx, and what it says.
    Later(String),
    /// 5xx, and what it says.
    Never(String),
    /// The connection was refused or broke, or nothing came.
    Broken,
}

/// One word.
#[derive(Clone, Debug)]
pub struct Heard {
    pub number: usize,
    /// The door, by its number.
    pub server: usize,
    /// When the try began.
    pub began: Instant,
    pub at: Instant,
    pub word: Word,
}

/// How many activities come of a message.
pub fn activities_of(number: usize) -> usize {
    1 + usize::from(number.is_multiple_of(DOUBLE_EVERY))
}

/// The line by which a message is known.
pub fn body(number: usize) -> String {
    format!("This is message {number} of many.")
}

/// The number of a message, by its subject.
pub fn number_of(subject: &str) -> Option<usize> {
    subject.strip_prefix("Message ")?.parse().ok()
}

/// Its file, if it has one.
pub fn file(number: usize) -> Option<String> {
    let lines = || (0..20_000).map(|line| format!("{number} {line} {:060}", number * line));
    number.is_multiple_of(LARGE_EVERY).then(|| lines().collect::<Vec<_>>().join("\r\n"))
}

/// Its header fields.
fn head(number: usize) -> Vec<(&'static str, String)> {
    let mut head = vec![
        ("From", "Anna Aalto <anna@mycompany.test>".to_owned()),
        ("To", "Bo Berg <bo@acme.test>".to_owned()),
        ("Subject", format!("Message {number}")),
        ("Date", "Mon, 23 Nov 2026 20:00:00 +0200".to_owned()),
        ("Message-ID", format!("<many-{number}@mycompany.test>")),
        ("MIME-Version", "1.0".to_owned()),
    ];
    let cut = number.is_multiple_of(LARGE_EVERY);
    head.extend(cut.then(|| ("Content-Type", "multipart/mixed; boundary=cut".to_owned())));
    head
}

/// What comes after them.
fn content(number: usize) -> String {
    let text = body(number);
    let Some(file) = file(number) else { return format!("{text}\r\n") };
    format!(
        "--cut\r\n\r\n{text}\r\n--cut\r\nContent-Type: application/octet-stream\r\n\
         Content-Disposition: attachment; filename=large.bin\r\n\r\n{file}\r\n--cut--\r\n"
    )
}

/// How one speaks at a door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// With a mail server.
    Smtp,
    /// As a mail server that delivers.
    Lmtp,
    /// As a mail server that asks.
    Milter,
}

/// A door, and how one comes to it.
#[derive(Clone)]
pub struct Door {
    pub way: Way,
    pub connect: Arc<dyn Fn() -> Option<TcpStream> + Send + Sync>,
}

struct Shared {
    doors: Vec<Door>,
    next: AtomicUsize,
    /// Messages there may be; more, as long as nobody says that it is enough.
    most: AtomicUsize,
    /// When the next message may begin: what could not begin in its time is not made up for.
    turn: Mutex<Instant>,
    every: Duration,
    heard: Mutex<Vec<Heard>>,
    is_over: AtomicBool,
}

/// All of them.
pub struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// They begin, with so many messages a second together.
    pub fn start(doors: Vec<Door>, rate: u32) -> Self {
        let shared = Arc::new(Shared {
            doors: doors.clone(),
            next: AtomicUsize::new(1),
            most: AtomicUsize::new(usize::MAX),
            turn: Mutex::new(Instant::now()),
            every: Duration::from_secs(1) / rate,
            heard: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let mut threads = Vec::new();
        for at in 0..doors.len() * AT_EACH {
            let shared = Arc::clone(&shared);
            threads.push(thread::spawn(move || client(&shared, at % shared.doors.len())));
        }
        Self { shared, threads }
    }

    /// Everything so far, in no order.
    pub fn heard(&self) -> Vec<Heard> {
        self.shared.heard.lock().unwrap().clone()
    }

    /// Messages that were accepted since then, at a server or at any.
    pub fn accepted(&self, since: Instant, server: Option<usize>) -> usize {
        let heard = self.shared.heard.lock().unwrap();
        heard
            .iter()
            .filter(|one| one.word == Word::Accepted && one.began >= since)
            .filter(|one| server.is_none_or(|server| one.server == server))
            .count()
    }

    /// What was heard since then of a kind.
    pub fn count(&self, since: Instant, is: fn(&Word) -> bool) -> usize {
        let heard = self.shared.heard.lock().unwrap();
        heard.iter().filter(|one| one.at >= since && is(&one.word)).count()
    }

    /// At least so many messages, and then no more: waits until all that were begun are accepted.
    pub fn finish(&mut self, least: usize) {
        let begun = self.shared.next.load(Ordering::SeqCst) - 1;
        self.shared.most.store(least.max(begun), Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
    }
}

fn client(shared: &Shared, home: usize) {
    let mut connection: Option<(usize, Connection)> = None;
    loop {
        let number = shared.next.fetch_add(1, Ordering::SeqCst);
        if number > shared.most.load(Ordering::SeqCst) {
            return;
        }
        let turn = {
            let mut turn = shared.turn.lock().unwrap();
            *turn = (*turn + shared.every).max(Instant::now());
            *turn
        };
        while let Some(left) = turn.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            sleep(left.min(Duration::from_millis(50)));
            if number > shared.most.load(Ordering::SeqCst) || shared.is_over.load(Ordering::SeqCst) {
                return;
            }
        }
        for attempt in 0.. {
            if shared.is_over.load(Ordering::SeqCst) {
                return;
            }
            let server = (home + attempt) % shared.doors.len();
            let began = Instant::now();
            let mut there = connection.take().filter(|(at, _)| *at == server).map(|(_, there)| there);
            let door = &shared.doors[server];
            let answer = match door.way {
                Way::Smtp | Way::Lmtp => say(&mut there, door, number),
                Way::Milter => (door.connect)().and_then(|stream| ask(stream, number)),
            };
            let word = match answer {
                None => Word::Broken,
                Some(answer) if answer.starts_with("250") => Word::Accepted,
                Some(answer) if answer.starts_with('4') => Word::Later(answer),
                Some(answer) => Word::Never(answer),
            };
            // Whoever was not served comes anew.
            connection = there.filter(|_| word == Word::Accepted).map(|there| (server, there));
            let is_end = matches!(word, Word::Accepted | Word::Never(_));
            let heard = Heard { number, server, began, at: Instant::now(), word };
            shared.heard.lock().unwrap().push(heard);
            if is_end {
                break;
            }
            sleep(PAUSE.mul_f64(0.5 + fastrand::f64()));
        }
    }
}

/// To whom a message is.
fn recipients(number: usize) -> &'static [&'static str] {
    &[MINE, SECOND][..activities_of(number)]
}

/// One try; the first answer that is no 250, or the last one; none if the connection is gone.
fn say(there: &mut Option<Connection>, door: &Door, number: usize) -> Option<String> {
    if there.is_none() {
        *there = Some(Connection::open(door)?);
    }
    let connection = there.as_mut()?;
    let to = recipients(number);
    let mut lines = vec!["MAIL FROM:<anna@mycompany.test>".to_owned()];
    lines.extend(to.iter().map(|to| format!("RCPT TO:<{to}>")));
    for line in lines {
        let answer = connection.command(&line)?;
        if !answer.starts_with("250") {
            return Some(answer);
        }
    }
    let go = connection.command("DATA")?;
    if !go.starts_with("354") {
        return Some(go);
    }
    let head: String = head(number).iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let message = format!("{head}\r\n{}", content(number));
    connection.stream.get_mut().write_all(message.as_bytes()).ok()?;
    let mut answers = vec![connection.command(".")?];
    if door.way == Way::Lmtp {
        for _ in &to[1..] {
            answers.push(connection.reply()?);
        }
    }
    let refused = answers.iter().position(|answer| !answer.starts_with("250")).unwrap_or_default();
    Some(answers.swap_remove(refused))
}

/// One try as Postfix asks a milter; what Postfix would tell its client.
fn ask(mut stream: TcpStream, number: usize) -> Option<String> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(&negotiation()).ok()?;
    if answer_of(&mut stream)?.0 != b'O' {
        return None;
    }
    stream.write_all(&frame(b'M', b"<anna@mycompany.test>\0")).ok()?;
    let mut asked: Vec<Vec<u8>> =
        recipients(number).iter().map(|to| frame(b'R', format!("<{to}>\0").as_bytes())).collect();
    asked.push(frame(b'T', b""));
    let fields =
        head(number).into_iter().map(|(name, value)| frame(b'L', format!("{name}\0 {value}\0").as_bytes()));
    asked.push(fields.chain([frame(b'N', b"")]).collect::<Vec<_>>().concat());
    for frames in asked {
        stream.write_all(&frames).ok()?;
        let answer = answer_of(&mut stream)?;
        if answer.0 != b'c' {
            return Some(told(answer));
        }
    }
    for piece in content(number).as_bytes().chunks(65_535) {
        stream.write_all(&frame(b'B', piece)).ok()?;
    }
    stream.write_all(&frame(b'E', b"")).ok()?;
    Some(told(answer_of(&mut stream)?))
}

/// The next answer that decides something; none if the connection is gone.
fn answer_of(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length).ok()?;
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut answer).ok()?;
        // One that asks for patience, or that body may be left out.
        if !matches!(answer.first()?, b'p' | b's') {
            return Some((answer[0], answer[1..].to_vec()));
        }
    }
}

/// An answer of a milter as the client of Postfix hears it.
fn told((command, text): (u8, Vec<u8>)) -> String {
    match command {
        b'd' => "250 discarded".to_owned(),
        b'y' => String::from_utf8(text).unwrap().trim_end_matches('\0').to_owned(),
        b't' => "451 later".to_owned(),
        // All recipients are ours: whatever lets it pass loses it.
        other => format!("550 answered {:?}", char::from(other)),
    }
}

struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    fn open(door: &Door) -> Option<Self> {
        let stream = (door.connect)()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let mut connection = Self { stream: BufReader::new(stream) };
        if !connection.reply()?.starts_with("220") {
            return None;
        }
        let hello = if door.way == Way::Lmtp { "LHLO" } else { "EHLO" };
        connection.command(&format!("{hello} client.test"))?.starts_with("250").then_some(connection)
    }

    fn command(&mut self, line: &str) -> Option<String> {
        self.stream.get_mut().write_all(format!("{line}\r\n").as_bytes()).ok()?;
        self.reply()
    }

    /// The last line of the reply.
    fn reply(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line.as_bytes().get(3) != Some(&b'-') {
                return Some(line.trim_end().to_owned());
            }
        }
    }
}
