//! Messages that strangers make to hurt: what each costs, what others notice of it, and what memory many of them take.

use super::{MY, Report, cpu, memory, support};
use std::{
    fmt::Write as _,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};
use support::world::{Options, World};

/// The most CPU that a megabyte may cost, in milliseconds.
const MOST_CPU_MS: f64 = 100.0;

const FROM: &str = "From: Anna Aalto <anna@mycompany.test>\r\nSubject: s\r\n";

/// Names and messages, about a megabyte each.
fn messages() -> Vec<(&'static str, Vec<u8>)> {
    let repeat = |text: &str, bytes: usize| text.repeat(bytes / text.len());
    let fields = |name: &str, text: &str, count: usize| -> String {
        (0..count).map(|_| format!("{name}: {}\r\n", repeat(text, 55_000))).collect()
    };
    let people = |count: usize| (0..count).map(|n| format!("a{n}@b.test,")).collect::<String>();
    let to: String = people(88_000).as_bytes().chunks(55_000).fold(String::new(), |mut all, piece| {
        let _ = write!(all, "To: {}\r\n", String::from_utf8_lossy(piece));
        all
    });
    let parameters: String = (0..10_000).map(|n| format!(";\r\n a{n}*0=b")).collect();
    let mut deep = String::new();
    for depth in 0..10_000 {
        let _ = write!(deep, "Content-Type: multipart/mixed; boundary=b{depth}\r\n\r\n--b{depth}\r\n");
    }
    let base64 = "Content-Transfer-Encoding: base64\r\n\r\n";
    let html = |text: &str| format!("{FROM}Content-Type: text/html\r\n\r\n{}\r\n", repeat(text, 1_000_000));
    let plain = |kind: &str, text: &str| {
        format!("{FROM}Content-Type: text/plain{kind}\r\n\r\n{}\r\n", repeat(text, 1_000_000))
    };
    let all = [
        (
            "18 To fields of encoded words without end",
            format!("{FROM}{}\r\nx\r\n", fields("To", "=?aa?q?_", 18)),
        ),
        (
            "1 MB of encoded words",
            format!("{FROM}{}\r\nx\r\n", fields("Cc", "=?utf-8?q?=C3=A5?= <a@b.test>, ", 18)),
        ),
        (
            "1 MB of torn encoded words",
            format!("{FROM}{}\r\nx\r\n", fields("Cc", "=?utf-8?b?w?==?utf-8?b?6Q=?=", 18)),
        ),
        ("88,000 addresses", format!("{FROM}{to}\r\nx\r\n")),
        (
            "brackets, quotes and comments without end",
            format!("{FROM}{}\r\nx\r\n", fields("To", "(\"[<,", 18)),
        ),
        ("nested multiparts, 10,000", format!("{FROM}{deep}")),
        (
            "100,000 parts",
            format!(
                "{FROM}Content-Type: multipart/mixed; boundary=b\r\n\r\n{}",
                "--b\r\n\r\nx\r\n".repeat(100_000)
            ),
        ),
        ("10,000 parameters", format!("{FROM}Content-Type: text/plain{parameters}\r\n\r\nx\r\n")),
        (
            "lines that are nearly delimiters",
            format!(
                "{FROM}Content-Type: multipart/mixed; boundary=bbbb\r\n\r\n{}",
                repeat("--bbb\r\n", 1_000_000)
            ),
        ),
        ("base64 in lines of one character", format!("{FROM}{base64}{}", repeat("a\r\n", 1_000_000))),
        ("base64 with damage", format!("{FROM}{base64}{}", repeat("aGVsbG8=\r\n!!aGVs\r\n", 1_000_000))),
        (
            "quoted-printable, all escapes",
            format!(
                "{FROM}Content-Transfer-Encoding: quoted-printable\r\n\r\n{}\r\n",
                repeat("=C3=A5=\r\n", 1_000_000)
            ),
        ),
        ("HTML: nested div", html("<div>")),
        ("HTML: nested tables", html("<table><tr><td>")),
        ("HTML: entities", html("&lt")),
        ("HTML: lists", html("<ol><li>x")),
        ("HTML: comments without end", html("<!--")),
        ("UTF-7", plain("; charset=utf-7", "+AOQ-")),
        ("ISO-2022-JP", plain("; charset=iso-2022-jp", "\x1b$B0l\x1b(B")),
        ("HZ", plain("; charset=hz-gb-2312", "~{<:Ky~}")),
        ("UTF-8 with bad bytes", plain("; charset=utf-8", "\u{e5}\u{80}")),
        ("flowed quotes", plain("; format=flowed", ">>>> a \r\n")),
        ("short lines", plain("", "a\r\n")),
    ];
    all.into_iter().map(|(name, text)| (name, text.into_bytes())).collect()
}

/// A world whose tenant has twenty projects.
fn world() -> World {
    let mut world = World::with(Options { lmtp: true, without_milter: true, ..Options::default() });
    let path = world.root.join("directory.toml");
    let projects: String = (0..20)
        .map(|n| format!("[[tenant.project]]\nid = \"q-{n}\"\nnumber = \"7{n}\"\nname = \"P\"\n"))
        .collect();
    let text = fs::read_to_string(&path).unwrap();
    // Behind the first tenant.
    let second = text.match_indices("[[tenant]]").nth(1).map_or(text.len(), |(at, _)| at);
    fs::write(&path, [&text[..second], &projects, &text[second..]].concat()).unwrap();
    world.start_milter();
    world
}

pub fn measure(report: &mut Report) {
    report.line("\n## Hostile mail\n");
    let mut world = world();
    let pid = world.milter().id();
    let messages = messages();
    let mut worst = ("", 0.0_f64);
    for (name, message) in &messages {
        let mut lmtp = world.lmtp();
        lmtp.command("LHLO x");
        let before = cpu(pid);
        let answer = lmtp.mail("anna@mycompany.test", &[MY], message).1;
        let by_megabyte = (cpu(pid) - before).as_secs_f64() * 1e9 / message.len() as f64;
        let first = answer.split(' ').next().unwrap_or_default().to_owned();
        report.line(&format!("{name:<46} {by_megabyte:>7.1} ms a megabyte, answered {first}"));
        if by_megabyte > worst.1 {
            worst = (name, by_megabyte);
        }
    }
    report.reach(&format!("CPU a megabyte, the worst ({})", worst.0), worst.1, "ms", None, Some(MOST_CPU_MS));
    delay(report, &world, &messages);
    many(report);
}

/// What other people's mail through Postfix waits, with the attack and without it, by turns.
fn delay(report: &mut Report, world: &World, messages: &[(&'static str, Vec<u8>)]) {
    let honest = |seconds: u64| {
        let (mut all, end) = (Vec::new(), Instant::now() + Duration::from_secs(seconds));
        let mut number = 0;
        while Instant::now() < end {
            number += 1;
            let message = format!("{FROM}Message-ID: <{number}.{seconds}@x>\r\n\r\nhello\r\n");
            let started = Instant::now();
            let answer = world.mail("anna@mycompany.test", &[MY], message.as_bytes()).1;
            assert!(answer.starts_with("250"), "honest mail: {answer}");
            all.push(started.elapsed().as_secs_f64() * 1e3);
            thread::sleep(Duration::from_millis(20));
        }
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let quiet = honest(4);
    let stop = AtomicBool::new(false);
    let attacked = thread::scope(|scope| {
        for attacker in 0..4 {
            let stop = &stop;
            scope.spawn(move || {
                let mut at = attacker;
                while !stop.load(Ordering::Relaxed) {
                    let mut lmtp = world.lmtp();
                    lmtp.command("LHLO x");
                    let (_, message) = &messages[at % messages.len()];
                    lmtp.mail("stranger@else.test", &[MY], message);
                    at += 1;
                    // One message after the other, a megabyte ten times a second from each: more than a line brings.
                    thread::sleep(Duration::from_millis(300));
                }
            });
        }
        let attacked = honest(10);
        stop.store(true, Ordering::Relaxed);
        attacked
    });
    report.line(&format!(
        "other people's mail, median: {quiet:.1} ms without the attack, {attacked:.1} ms with it"
    ));
    report.reach("median delay of others by the attack", attacked - quiet, "ms", None, Some(20.0));
}

/// Resident memory over the idle service while many large messages come at once.
fn many(report: &mut Report) {
    let line = "A line of text as people write them, <b>some</b> seventy characters long.\r\n";
    let text = |kind: &str| {
        format!(
            "{FROM}Content-Type: text/{kind}; charset=utf-8\r\n\r\n{}",
            line.repeat(2_800_000 / line.len())
        )
        .into_bytes()
    };
    let people: String = (0..70_000).map(|n| format!("a{n}@b.test,")).collect();
    let to = people.as_bytes().chunks(55_000).fold(String::new(), |mut all, piece| {
        let _ = write!(all, "To: {}\r\n", String::from_utf8_lossy(piece));
        all
    });
    let addresses = format!("{FROM}{to}\r\nx\r\n").into_bytes();
    let names: String = (0..990).map(|n| format!("To: {} <b{n}@c.test>\r\n", "n".repeat(250))).collect();
    let parts: String = (0..990)
        .map(|n| {
            let name = format!("{n}{}", "x".repeat(180));
            format!(
                "--b\r\nContent-Type: a/b; name={name}\r\nContent-ID: <{n}{}>\r\n\r\nx\r\n",
                "i".repeat(240)
            )
        })
        .collect();
    let words = format!("{FROM}{names}Content-Type: multipart/mixed; boundary=b\r\n\r\n{parts}--b--\r\n")
        .into_bytes();
    let projects: Vec<String> = (0..20).map(|n| format!("7{n}.{MY}")).collect();
    let twenty: Vec<&str> = projects.iter().map(String::as_str).collect();
    for (name, message, recipients, count) in [
        ("200 x 2.8 MB of text at once", text("plain"), vec![MY], 200),
        ("200 x 2.8 MB of HTML at once", text("html"), vec![MY], 200),
        ("20 x 950 KB of addresses to 20 projects at once", addresses, twenty.clone(), 20),
        ("20 x 990 people and 990 files to 20 projects at once", words, twenty, 20),
    ] {
        let mut world = world();
        let pid = world.milter().id();
        let mut first = world.lmtp();
        first.command("LHLO x");
        first.mail("anna@mycompany.test", &[MY], format!("{FROM}\r\nwarm\r\n").as_bytes());
        let idle = memory(pid, "VmRSS");
        let (world, message, recipients) = (&world, &message, &recipients);
        let answers: Vec<String> = thread::scope(|scope| {
            let senders: Vec<_> = (0..count)
                .map(|n| {
                    scope.spawn(move || {
                        let mut lmtp = world.lmtp();
                        lmtp.command("LHLO x");
                        let message = [format!("Message-ID: <{n}@x>\r\n").as_bytes(), message].concat();
                        lmtp.mail("anna@mycompany.test", recipients, &message).1
                    })
                })
                .collect();
            senders.into_iter().map(|sender| sender.join().unwrap()).collect()
        });
        let taken = answers.iter().filter(|answer| answer.starts_with("250")).count();
        let odd = answers.iter().find(|answer| !answer.starts_with("250") && !answer.starts_with('4'));
        assert!(odd.is_none(), "{odd:?}");
        report.line(&format!("{name}: {taken} taken, {} deferred", count - taken));
        report.reach(
            &format!("{name}, peak over idle"),
            memory(pid, "VmHWM") - idle,
            "MiB",
            None,
            Some(96.0),
        );
    }
}
