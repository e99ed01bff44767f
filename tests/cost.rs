//! No message costs more than its length: twice the input, twice the instructions.
//!
//! The parsers run under Valgrind's callgrind, which counts the same instructions whatever else the machine does. Each
//! input is a pattern, repeated, in each place of a message; one of 2n bytes may cost 2.3 times one of n bytes.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

use activity_milter::{
    mail::{
        Address, Domain, Envelope, Head, Intake, LIMITS, Reader, domain_of, header_end, is_blank, one_line,
        parse_path,
    },
    rules::{Addressing, correspondents},
};
use std::{fs, hint::black_box, process::Command};

/// Bytes of the smaller input.
const SIZE: usize = 3_000;

/// What a stranger may repeat. The tables of parsers are made of these characters.
const PATTERNS: &[&str] = &[
    "=?aa?q?_",
    "=?utf-8?b?w6Q=?= ",
    "=?utf-8?q?=C3?==?utf-8?q?=A4?=",
    "(",
    "(\"[<,",
    "\"",
    "<",
    "a@b.test ",
    "Bo <bo@b.test> ",
    ";a*0=b",
    " . ",
    "\u{200b}\u{a0}",
    "=\r\n",
    "\r\n--b\r\n",
    "\r\n ",
    "<div>",
    "<td><table>",
    "<!--",
    "&",
    "\x1b$B",
    "+AOQ-",
    "~{<:Ky~}",
    "> ",
];

/// A place of a message that the repeated pattern fills: what stands before and behind it, in head or body.
type Place = (&'static str, &'static str, &'static str);

const PLACES: &[Place] = &[
    ("subject", "Subject: ", "\r\n\r\n"),
    ("from", "Subject: s\r\nFrom: ", "\r\n\r\n"),
    ("to", "Subject: s\r\nTo: ", "\r\n\r\n"),
    ("sender", "Subject: s\r\nSender: ", "\r\n\r\n"),
    ("date", "Date: ", "\r\n\r\n"),
    ("references", "References: ", "\r\n\r\n"),
    ("content type", "Content-Type: text/plain; ", "\r\n\r\nx"),
    ("disposition", "Content-Disposition: attachment; filename=", "\r\n\r\nx"),
    ("plain", "Content-Type: text/plain; charset=utf-8\r\n\r\n", "\r\n"),
    ("flowed", "Content-Type: text/plain; format=flowed; delsp=yes\r\n\r\n", " \r\n"),
    ("undeclared", "Content-Type: text/plain\r\n\r\n", "\r\n"),
    ("utf-7", "Content-Type: text/plain; charset=utf-7\r\n\r\n", "\r\n"),
    ("iso-2022-jp", "Content-Type: text/plain; charset=iso-2022-jp\r\n\r\n", "\r\n"),
    ("hz", "Content-Type: text/plain; charset=hz-gb-2312\r\n\r\n", "\r\n"),
    ("html", "Content-Type: text/html\r\n\r\n", "\r\n"),
    ("base64", "Content-Type: text/plain\r\nContent-Transfer-Encoding: base64\r\n\r\n", "\r\n"),
    (
        "quoted-printable",
        "Content-Type: text/plain\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n",
        "\r\n",
    ),
    ("uuencode", "Content-Type: a/b\r\nContent-Transfer-Encoding: x-uuencode\r\n\r\nbegin 644 x\r\n", "\r\n"),
    ("multipart", "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n", "\r\n"),
    (
        "nested",
        "Content-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n",
        "\r\n",
    ),
    (
        "header of a part",
        "Content-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\nContent-Type: text/plain;",
        "\r\n\r\nx",
    ),
];

fn message((_, before, behind): Place, pattern: &str, bytes: usize) -> Vec<u8> {
    [before, &pattern.repeat(bytes / pattern.len()), behind].concat().into_bytes()
}

/// What is counted.
#[inline(never)]
fn measured(input: &Input, addressing: &Addressing) {
    match input {
        Input::Message(message) => read(message, addressing),
        Input::Value(value) => values(value),
    }
}

enum Input {
    Message(Vec<u8>),
    Value(String),
}

/// All that happens to a message before the queue.
fn read(message: &[u8], addressing: &Addressing) {
    let (head, body) = header_end(message);
    let parsed = Head::parse(&message[..head]).unwrap_or_default();
    black_box(correspondents(&parsed, &envelope(), addressing, 1000));
    let mut reader = Reader::new(&message[..head], body as u64, LIMITS);
    message[body..].chunks(4096).for_each(|piece| reader.push(piece));
    black_box(reader.finish());
}

/// The parsers of single values.
fn values(value: &str) {
    black_box(Address::parse(value).is_ok());
    black_box(parse_path(value.as_bytes()).is_ok());
    black_box(domain_of(value.as_bytes()));
    black_box(Domain::parse(value).is_ok());
    black_box((is_blank(value), one_line(value)));
}

fn envelope() -> Envelope {
    Envelope {
        sender: None,
        recipients: Vec::new(),
        queue_id: None,
        client: None,
        is_local: false,
        is_plain: true,
        helo: None,
        login: None,
        intake: Intake::Explain,
    }
}

/// Runs under Valgrind, which writes one count for each call of [`measured`].
#[test]
#[ignore = "run by twice_the_input_is_twice_the_cost under Valgrind"]
fn measure() {
    let addressing = Addressing {
        domains: vec![Domain::parse("severamail.test").unwrap()],
        recipient_delimiter: String::new(),
    };
    for pattern in PATTERNS {
        for place in PLACES {
            for bytes in [SIZE, 2 * SIZE] {
                measured(&Input::Message(message(*place, pattern, bytes)), &addressing);
            }
        }
        for bytes in [SIZE, 2 * SIZE] {
            let value = format!("{}@x.test", pattern.repeat(bytes / pattern.len()));
            measured(&Input::Value(value), &addressing);
        }
    }
}

/// Pattern and place of each pair of calls.
fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    PATTERNS.iter().flat_map(|pattern| {
        PLACES.iter().map(|(name, ..)| *name).chain(["value"]).map(move |name| (*pattern, name))
    })
}

#[test]
fn twice_the_input_is_twice_the_cost() {
    let scratch = tempfile::tempdir().unwrap();
    let counts = scratch.path().join("counts");
    let output = Command::new("valgrind")
        .arg("--tool=callgrind")
        .args(["--toggle-collect=cost::measured", "--dump-before=cost::measured"])
        .arg(format!("--callgrind-out-file={}", counts.display()))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "measure", "--ignored", "--test-threads=1"])
        .output()
        .expect("valgrind is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let calls = 2 * names().count();
    // What a call costs is written before the next one begins, and at the end.
    let count = |call: usize| -> u64 {
        let name = if call + 1 == calls { "counts".to_owned() } else { format!("counts.{}", call + 2) };
        let text = fs::read_to_string(scratch.path().join(name)).unwrap();
        let totals = text.lines().find_map(|line| line.strip_prefix("totals: ")).unwrap();
        totals.split_whitespace().next().unwrap().parse().unwrap()
    };
    let mut wrong = Vec::new();
    let mut most = 0.0_f64;
    for (index, (pattern, place)) in names().enumerate() {
        let (once, twice) = (count(2 * index), count(2 * index + 1));
        assert!(once > 1000, "{pattern:?} in {place}: nothing was counted");
        // What is near nothing grows in steps of buffers.
        let ratio = twice as f64 / once as f64;
        let by_byte = twice / (2 * SIZE as u64);
        most = most.max(ratio);
        if ratio > 2.3 {
            wrong.push(format!(
                "{pattern:?} in {place}: {once} and {twice} instructions, {ratio:.2} x, {by_byte} a byte"
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {}\n{}", wrong.len(), names().count(), wrong.join("\n"));
    println!("at most {most:.2} x");
}
