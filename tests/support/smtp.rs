//! An SMTP client that says exactly what it is told, and dialogue files that an admin can read and extend.
//!
//! ```text
//! # what is sent -> what must come back (`*`: any text)
//! RCPT TO:<mycompany@severamail.test>  -> 250*
//! @messages/no_subject.eml             -> 550 5.6.0 *[no-subject]
//! ```

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

/// A stream that can be both read and written.
trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

/// A connection after the greeting.
pub struct Smtp {
    stream: BufReader<Box<dyn Stream>>,
}

/// No test waits longer for a reply.
const PATIENCE: Duration = Duration::from_secs(120);

impl Smtp {
    /// Connects and says EHLO.
    pub fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self::greet(Box::new(stream), "EHLO")
    }

    /// Connects to `unix:path` or `inet:address:port` and says LHLO.
    pub fn lmtp(listen: &str) -> Self {
        Self::greet(Self::stream(listen), "LHLO")
    }

    /// Connects and reads nothing.
    pub fn silent(listen: &str) -> Self {
        Self { stream: BufReader::new(Self::stream(listen)) }
    }

    fn stream(listen: &str) -> Box<dyn Stream> {
        match listen.split_once(':').unwrap() {
            ("unix", path) => {
                let stream = UnixStream::connect(path).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                Box::new(stream)
            }
            (_, address) => {
                let stream = TcpStream::connect(address).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                Box::new(stream)
            }
        }
    }

    fn greet(stream: Box<dyn Stream>, hello: &str) -> Self {
        let mut smtp = Self { stream: BufReader::new(stream) };
        assert!(smtp.reply().starts_with("220"));
        let answer = smtp.command(&format!("{hello} client.test"));
        assert!(answer.starts_with("250"), "{answer}");
        smtp
    }

    /// True if the server has hung up.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.stream.fill_buf(), Ok([]) | Err(_))
    }

    /// Sends a line and reads the reply, all its lines joined by LF.
    pub fn command(&mut self, line: &str) -> String {
        self.send(format!("{line}\r\n").as_bytes());
        self.reply()
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    /// Sends DATA and a message; the answer is the reply after the final dot, or to DATA if that is refused.
    pub fn message(&mut self, message: &[u8]) -> String {
        let go = self.command("DATA");
        if !go.starts_with("354") {
            return go;
        }
        self.send(&stuffed(message));
        self.reply()
    }

    /// One whole mail from MAIL to the final dot. The answers: to each RCPT, and the last one.
    pub fn mail(&mut self, sender: &str, recipients: &[&str], message: &[u8]) -> (Vec<String>, String) {
        let utf8 =
            if sender.is_ascii() && recipients.iter().all(|r| r.is_ascii()) { "" } else { " SMTPUTF8" };
        let from = self.command(&format!("MAIL FROM:<{sender}>{utf8}"));
        if !from.starts_with("250") {
            return (Vec::new(), from);
        }
        let answers: Vec<String> =
            recipients.iter().map(|r| self.command(&format!("RCPT TO:<{r}>"))).collect();
        let last = match answers.iter().any(|answer| answer.starts_with("250")) {
            true => self.message(message),
            false => {
                let _ = self.command("RSET");
                answers.last().cloned().unwrap_or_default()
            }
        };
        (answers, last)
    }

    /// Reads the next reply, all its lines joined by LF.
    pub fn reply(&mut self) -> String {
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            let read = self.stream.by_ref().take(4096).read_until(b'\n', &mut line).unwrap();
            assert!(read > 0, "the server hung up after {lines:?}");
            let line = String::from_utf8(line).expect("replies are ASCII").trim_end().to_owned();
            let more = line.as_bytes().get(3) == Some(&b'-');
            lines.push(line);
            if !more {
                return lines.join("\n");
            }
        }
    }
}

/// CRLF line ends, dots doubled, the final dot (RFC 5321, section 4.5.2).
pub fn stuffed(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 64);
    let lines = message.strip_suffix(b"\n").unwrap_or(message).split(|&b| b == b'\n');
    for line in lines {
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}

/// Plays a dialogue file on a connection; panics at the first reply that does not match.
pub fn play(mut smtp: Smtp, dialogue: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for (number, line) in fs::read_to_string(dialogue).unwrap().lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let place = format!("{}:{}", dialogue.display(), number + 1);
        let (sent, expected) = line.split_once("->").unwrap_or_else(|| panic!("{place}: no `->`"));
        let (sent, expected) = (sent.trim(), expected.trim());
        let got = match sent.strip_prefix('@') {
            Some(file) => {
                let path: PathBuf = root.join(file);
                smtp.message(&fs::read(&path).unwrap_or_else(|e| panic!("{place}: {}: {e}", path.display())))
            }
            // A further reply to what was sent before: LMTP has one for each recipient.
            None if sent.is_empty() => smtp.reply(),
            None => smtp.command(sent),
        };
        assert!(matches(&got, expected), "{place}:\n sent     {sent}\n expected {expected}\n got      {got}");
    }
}

/// Compares with `*` for any text; lines of a reply are separated by `\n` in the pattern.
pub fn matches(got: &str, pattern: &str) -> bool {
    let pattern = pattern.replace("\\n", "\n");
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = got.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}
