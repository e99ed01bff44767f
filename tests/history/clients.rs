//! Who sends: SMTP clients that try again until they hear 250, as mail servers do.
//!
//! In: two mail servers, and how many messages a second. Out: what was heard, each word with its time ([`Clients::heard`]).
//! Promise: a message is the same bytes at each try, is tried at either server by turns, and is given up only when the test
//! is. No client has two messages at a time, so who hears nothing sends nothing.
//! Fails: a 5xx is noted, and nothing is made of it here.

use crate::cluster::lab::Node;
use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

/// Clients that begin at each server.
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
    /// The server: 0 or 1.
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
    format!("This is message {number} of the cluster.")
}

/// The number of a message, by its subject.
pub fn number_of(subject: &str) -> Option<usize> {
    subject.strip_prefix("Cluster ")?.parse().ok()
}

fn message(number: usize) -> Vec<u8> {
    let head = format!(
        "From: Anna Aalto <anna@mycompany.test>\r\nTo: Bo Berg <bo@acme.test>\r\nSubject: Cluster {number}\r\n\
         Date: Mon, 23 Nov 2026 20:00:00 +0200\r\nMessage-ID: <cluster-{number}@mycompany.test>\r\nMIME-Version: 1.0\r\n"
    );
    let text = body(number);
    if !number.is_multiple_of(LARGE_EVERY) {
        return format!("{head}\r\n{text}\r\n").into_bytes();
    }
    let mut whole = format!(
        "{head}Content-Type: multipart/mixed; boundary=cut\r\n\r\n--cut\r\n\r\n{text}\r\n--cut\r\n\
         Content-Type: application/octet-stream\r\nContent-Disposition: attachment; filename=large.bin\r\n\r\n"
    );
    for line in 0..20_000 {
        whole.push_str(&format!("{number} {line} {:060}\r\n", number * line));
    }
    whole.push_str("--cut--\r\n");
    whole.into_bytes()
}

/// A mail server.
#[derive(Clone)]
pub struct Door {
    pub node: Node,
    pub port: u16,
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
        let bytes = message(number);
        for attempt in 0.. {
            if shared.is_over.load(Ordering::SeqCst) {
                return;
            }
            let server = (home + attempt) % shared.doors.len();
            let began = Instant::now();
            let mut there = connection.take().filter(|(at, _)| *at == server).map(|(_, there)| there);
            let answer = say(&mut there, &shared.doors[server], number, &bytes);
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

/// One try; the last answer, or none if the connection is gone.
fn say(there: &mut Option<Connection>, door: &Door, number: usize, bytes: &[u8]) -> Option<String> {
    if there.is_none() {
        *there = Some(Connection::open(door)?);
    }
    let connection = there.as_mut()?;
    let mut to = vec![MINE];
    to.extend((activities_of(number) > 1).then_some(SECOND));
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
    connection.stream.get_mut().write_all(bytes).ok()?;
    connection.command(".")
}

struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    fn open(door: &Door) -> Option<Self> {
        let port = door.port;
        // It begins on the machine itself; what is cut off there is what we look at.
        let stream = door.node.inside(move || TcpStream::connect(("127.0.0.1", port)).ok())?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let mut connection = Self { stream: BufReader::new(stream) };
        if !connection.reply()?.starts_with("220") {
            return None;
        }
        connection.command("EHLO client.test")?.starts_with("250").then_some(connection)
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
