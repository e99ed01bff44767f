//! A raw milter client: frames that Postfix never sends. Every one gets an answer or a closed connection, and the
//! service goes on.

use crate::support::world::{Options, World, eml};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

struct Milter(TcpStream);

impl Milter {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(stream)
    }

    fn send(&mut self, command: u8, payload: &[u8]) {
        let mut frame = u32::try_from(payload.len() + 1).unwrap().to_be_bytes().to_vec();
        frame.push(command);
        frame.extend_from_slice(payload);
        self.0.write_all(&frame).unwrap();
    }

    /// The next frame; none if the connection was closed.
    fn read(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).ok()?;
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut frame).ok()?;
        Some((frame[0], frame[1..].to_vec()))
    }

    fn ask(&mut self, command: u8, payload: &[u8]) -> Option<(u8, Vec<u8>)> {
        self.send(command, payload);
        self.read()
    }

    /// Version 6, all actions; the options are Postfix's.
    fn negotiate(&mut self, options: u32) -> (u32, u32) {
        let offer = [6_u32.to_be_bytes(), 0x1ff_u32.to_be_bytes(), options.to_be_bytes()].concat();
        let (command, answer) = self.ask(b'O', &offer).unwrap();
        assert_eq!(command, b'O');
        let word = |at: usize| u32::from_be_bytes(answer[at..at + 4].try_into().unwrap());
        (word(4), word(8))
    }

    fn envelope(&mut self, recipient: &[u8]) {
        assert_eq!(self.ask(b'M', b"<anna@mycompany.test>\0").unwrap().0, b'c');
        assert_eq!(self.ask(b'R', &[recipient, b"\0"].concat()).unwrap().0, b'c');
        assert_eq!(self.ask(b'T', b"").unwrap().0, b'c');
    }

    fn head(&mut self) {
        for field in [&b"From\0 anna@mycompany.test\0"[..], b"Subject\0 raw\n frames\0"] {
            assert_eq!(self.ask(b'L', field).unwrap().0, b'c');
        }
        assert_eq!(self.ask(b'N', b"").unwrap().0, b'c');
    }
}

const ALL: u32 = 0x1f_ffff;
/// Without NOREPLY, SKIP or LEADING_SPACE: an MTA of twenty years ago, except that it asks at DATA.
const OLD: u32 = 0x37f;
const INTEGRATION: &[u8] = b"<mycompany@severamail.test>";

fn world() -> (World, SocketAddr) {
    with(Vec::new())
}

fn with(config: Vec<(&'static str, String)>) -> (World, SocketAddr) {
    let world = World::with(Options { tcp: true, config, ..Options::default() });
    let config = std::fs::read_to_string(world.config_path()).unwrap();
    let at = config.find("inet:").unwrap() + "inet:".len();
    let address = config[at..].split('"').next().unwrap().parse().unwrap();
    (world, address)
}

#[test]
fn negotiation_asks_for_no_more_than_is_used() {
    let (_world, address) = world();
    let (actions, options) = Milter::connect(address).negotiate(ALL);
    assert_eq!(actions, 0x8 | 0x100, "DELETE_RCPT and the list of macros");
    let expected = 0x1 | 0x2 | 0x100 /* no CONNECT, HELO, UNKNOWN */ | 0x80 | 0x4000 | 0x8_0000 /* no reply to HEADER, MAIL, BODY */
        | 0x400 /* SKIP */ | 0x10_0000 /* LEADING_SPACE */;
    assert_eq!(options, expected, "{options:#x}");
    let (_, options) = Milter::connect(address).negotiate(OLD);
    assert_eq!(options, 0x103, "{options:#x}");
}

#[test]
fn odd_frames_get_an_answer_or_a_closed_connection() {
    let (world, address) = world();
    let old = || {
        let mut milter = Milter::connect(address);
        milter.negotiate(OLD);
        milter
    };
    // MAIL and RCPT with an empty frame, an empty argument, no terminator.
    for command in [b'M', b'R'] {
        for payload in [&b""[..], b"\0", b"\0\0", b"no terminator", b"<>\0"] {
            let mut milter = old();
            if command == b'R' {
                assert_eq!(milter.ask(b'M', b"<anna@mycompany.test>\0").unwrap().0, b'c');
            }
            let answer = milter.ask(command, payload).map(|(command, _)| command);
            assert!(matches!(answer, None | Some(b'c' | b't' | b'y')), "{payload:?}: {answer:?}");
        }
    }
    // 8-bit addresses: not ours, or cannot be an integration address.
    for (recipient, expected) in [
        (&b"<\xff\xfe@else.test>"[..], b'c'),
        (b"<\xff\xfe@severamail.test>", b'y'),
        (b"<mycompany@severamail.test\xff>", b'c'),
        (b"<\x01@severamail.test>", b'y'),
    ] {
        let mut milter = old();
        assert_eq!(milter.ask(b'M', b"<\xe4@\xff>\0").unwrap().0, b'c');
        assert_eq!(
            milter.ask(b'R', &[recipient, b"\0"].concat()).unwrap().0,
            expected,
            "{}",
            recipient.escape_ascii()
        );
    }
    // Out of order, unknown, too long: closed or ignored, and a message on the next connection goes through.
    for (command, payload) in
        [(b'N', &b""[..]), (b'E', b""), (b'B', b"body"), (b'L', b"a\0b\0"), (b'?', b""), (b'T', b"x")]
    {
        let mut milter = old();
        milter.send(command, payload);
        milter.send(b'Q', b"");
        while milter.read().is_some() {}
    }
    let mut milter = old();
    milter.0.write_all(&[0xff, 0xff, 0xff, 0xff, b'M']).unwrap();
    assert!(milter.read().is_none());
    let mut milter = old();
    milter.0.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    milter.0.shutdown(std::net::Shutdown::Write).unwrap();
    while milter.read().is_some() {}

    let (_, answer) = world.mail("anna@mycompany.test", &["mycompany@severamail.test"], &eml("plain"));
    assert!(answer.starts_with("250"), "{answer}");
    let log = world.milter.as_ref().unwrap().log();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn an_old_mta_that_wants_every_reply_and_a_last_piece_in_the_end_frame() {
    let (world, address) = world();
    let mut milter = Milter::connect(address);
    milter.negotiate(OLD);
    milter.envelope(INTEGRATION);
    milter.head();
    assert_eq!(milter.ask(b'B', b"first piece, ").unwrap().0, b'c');
    // Some peers send the last piece with the end of message; libmilter then answers both.
    milter.send(b'E', b"last piece\r\n");
    let mut answers = vec![milter.read().unwrap().0];
    while answers.last() != Some(&b'd') {
        answers.push(milter.read().expect("the message is discarded").0);
    }
    // A second message on the same connection.
    milter.envelope(INTEGRATION);
    milter.head();
    assert_eq!(milter.ask(b'E', b"").unwrap().0, b'd');
    let mut texts: Vec<_> = world.wait_for_activities(2).iter().map(|a| a["text"].to_string()).collect();
    texts.sort(); // the courier carries several at a time, in no promised order
    assert_eq!(texts, ["\"first piece, last piece\\n\"", "null"]);
    assert_eq!(world.activities()[0]["subject"], "raw frames");
}

#[test]
fn an_aborted_message_leaves_nothing_for_the_next() {
    let (world, address) = world();
    let mut milter = Milter::connect(address);
    milter.negotiate(OLD);
    milter.envelope(INTEGRATION);
    milter.head();
    assert_eq!(milter.ask(b'B', b"never finished").unwrap().0, b'c');
    milter.send(b'A', b"");
    // Somebody else's message on the same connection: passed at DATA.
    assert_eq!(milter.ask(b'M', b"<carl@else.test>\0").unwrap().0, b'c');
    assert_eq!(milter.ask(b'R', b"<dora@elsewhere.test>\0").unwrap().0, b'c');
    assert_eq!(milter.ask(b'T', b"").unwrap().0, b'a');
    // A peer that vanishes in the middle of a body.
    let mut gone = Milter::connect(address);
    gone.negotiate(ALL);
    gone.send(b'M', b"<anna@mycompany.test>\0");
    assert_eq!(gone.ask(b'R', &[INTEGRATION, b"\0"].concat()).unwrap().0, b'c');
    assert_eq!(gone.ask(b'T', b"").unwrap().0, b'c');
    gone.send(b'L', b"Subject\0 s\0");
    drop(gone);
    let (_, answer) = world.mail("anna@mycompany.test", &["mycompany@severamail.test"], &eml("plain"));
    assert!(answer.starts_with("250"), "{answer}");
    assert_eq!(world.wait_for_activities(1)[0]["subject"], "Meeting on Friday");
}

/// What a `y` frame (a reply with a text) says.
#[track_caller]
fn reply(answer: Option<(u8, Vec<u8>)>) -> String {
    let (command, payload) = answer.expect("an answer");
    assert_eq!(command, b'y', "{}", payload.escape_ascii());
    String::from_utf8(payload).unwrap().trim_end_matches('\0').to_owned()
}

#[test]
fn memory_over_all_sessions_has_a_limit() {
    // Postfix sends a body only when it is complete, so many bodies half way take many milter clients.
    let (world, address) = with(vec![("message", "memory_limit = \"7800 KiB\"".to_owned())]);
    let mut open: Vec<_> = (0..12)
        .map(|i| {
            let mut milter = Milter::connect(address);
            milter.negotiate(OLD);
            milter.envelope(INTEGRATION);
            assert_eq!(milter.ask(b'L', format!("Message-ID\0 <{i}@x.test>\0").as_bytes()).unwrap().0, b'c');
            milter.head();
            assert_eq!(milter.ask(b'B', &[b'x'; 60_000]).unwrap().0, b'c');
            assert_eq!(milter.ask(b'B', &[b'y'; 60_000]).unwrap().0, b'c');
            milter
        })
        .collect();
    // A head needs room too.
    let mut late = Milter::connect(address);
    late.negotiate(OLD);
    late.envelope(INTEGRATION);
    let field = [b"X-Long\0 ".to_vec(), vec![b'z'; 60_000], vec![0]].concat();
    (0..6).for_each(|_| assert_eq!(late.ask(b'L', &field).unwrap().0, b'c'));
    let text = reply(late.ask(b'N', b""));
    assert!(
        text.starts_with("451 4.3.2 <mycompany@severamail.test>: ") && text.ends_with("[busy]"),
        "{text}"
    );

    let answers: Vec<_> = open.iter_mut().map(|milter| milter.ask(b'E', b"").unwrap()).collect();
    let (taken, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(command, _)| *command == b'd');
    assert_eq!(
        (taken.len(), refused.len()),
        (8, 4),
        "eight times 120 KB, and what is made of their text, fit into seven eighths of 7.8 MB"
    );
    for answer in refused {
        assert!(reply(Some(answer)).ends_with("[busy]"));
    }
    world.wait_for_activities(8);
    // All of it was given back.
    let (_, answer) = world.mail("anna@mycompany.test", &["mycompany@severamail.test"], &eml("plain"));
    assert!(answer.starts_with("250"), "{answer}");
}

#[test]
fn commands_out_of_order_are_a_451_with_a_text_and_a_log_line() {
    let (world, address) = world();
    let mut milter = Milter::connect(address);
    milter.negotiate(OLD);
    assert_eq!(milter.ask(b'M', b"<anna@mycompany.test>\0").unwrap().0, b'c');
    milter.send(b'D', b"Ri\x004bXyOrder\0");
    assert_eq!(milter.ask(b'R', &[INTEGRATION, b"\0"].concat()).unwrap().0, b'c');
    // A header field without DATA before it.
    let text = reply(milter.ask(b'L', b"Subject\0 s\0"));
    assert!(text.starts_with("451 4.3.0 ") && text.ends_with("[internal-error]"), "{text}");
    world.milter.as_ref().unwrap().line_with(&["4bXyOrder", "fault", "header out of order"]);
}
