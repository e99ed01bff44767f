//! `make demo`: eleven real messages over SMTP to a real Postfix with the milter attached, and what became of them.
//!
//! Everything runs in a directory of its own, on loopback ports of its own, and is stopped at the end; with `KEEP=1`
//! it stays, and the last lines say how to go on. `BACKEND=severa`: the same with Visma Severa, a fake of it, as directory
//! and backend (`demo/severa.rs`).

#![allow(clippy::unwrap_used)] // a panic is this program's way to fail

#[path = "../tests/support/mod.rs"]
mod support;

#[path = "demo/severa.rs"]
mod severa;

use serde_json::Value;
use std::{fs, process::ExitCode};
use support::world::{World, eml};

/// What must become of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Recorded,
    Refused(&'static str),
    Passed,
}

impl Fate {
    /// True if this is the answer that it should have.
    fn is_answered_by(self, answer: &str) -> bool {
        match self {
            Self::Recorded | Self::Passed => answer.starts_with("250"),
            Self::Refused(reason) => answer.starts_with("550") && answer.ends_with(&format!("[{reason}]")),
        }
    }
}

/// (what it shows, file, sender, recipients, fate)
type Message = (&'static str, &'static str, &'static str, &'static [&'static str], Fate);

const MESSAGES: &[Message] = &[
    (
        "project and attachments",
        "project_with_attachments",
        "anna@mycompany.test",
        &["1001.mycompany@severamail.test"],
        Fate::Recorded,
    ),
    (
        "Outlook, inline image",
        "outlook_inline_image",
        "anna.aalto@mycompany.test",
        &["mycompany@severamail.test"],
        Fate::Recorded,
    ),
    (
        "Japanese subject",
        "japanese_subject",
        "anna@mycompany.test",
        &["mycompany@severamail.test"],
        Fate::Recorded,
    ),
    (
        "Swedish subject",
        "swedish_subject",
        "asa@xn--rksmrgs-5wao1o.test",
        &["mycompany@severamail.test"],
        Fate::Recorded,
    ),
    (
        "reply from a customer",
        "customer_reply",
        "bo@acme.test",
        &["mycompany@severamail.test"],
        Fate::Recorded,
    ),
    (
        "mixed recipients",
        "mixed_recipients",
        "anna@mycompany.test",
        &["bo@acme.test", "1002.mycompany@severamail.test"],
        Fate::Recorded,
    ),
    (
        "no subject",
        "no_subject",
        "anna@mycompany.test",
        &["mycompany@severamail.test"],
        Fate::Refused("no-subject"),
    ),
    (
        "unknown sender",
        "unknown_sender",
        "mallory@nowhere.test",
        &["mycompany@severamail.test"],
        Fate::Refused("no-user"),
    ),
    (
        "disabled tenant",
        "plain",
        "anna@mycompany.test",
        &["closed@severamail.test"],
        Fate::Refused("tenant-inactive"),
    ),
    (
        "unknown project",
        "plain",
        "anna@mycompany.test",
        &["9999.mycompany@severamail.test"],
        Fate::Refused("unknown-project"),
    ),
    ("somebody else's mail", "someone_else", "carl@else.test", &["dora@elsewhere.test"], Fate::Passed),
];

fn main() -> ExitCode {
    let keep = std::env::var("KEEP").is_ok_and(|value| !value.is_empty() && value != "0");
    match std::env::var("BACKEND").unwrap_or_default().as_str() {
        "" | "sink" => with_the_sink(keep),
        "severa" => severa::demo(keep),
        other => {
            println!("demo: BACKEND={other} is nothing: write BACKEND=severa, or leave it out");
            ExitCode::FAILURE
        }
    }
}

fn with_the_sink(keep: bool) -> ExitCode {
    println!("demo: starting a private Postfix, the milter and the sink …");
    let world = World::start();
    println!();
    row("MESSAGE", "TO", "WHAT BECAME OF IT");
    let (mut recorded, mut refused, mut passed, mut wrong) = (0, 0, 0, 0);
    for (what, file, sender, recipients, fate) in MESSAGES {
        let before = world.activities().len();
        let (_, answer) = world.mail(sender, recipients, &eml(file));
        let expected = fate.is_answered_by(&answer);
        let activity = match fate {
            Fate::Recorded => Some(world.wait_for_activities(before + 1).remove(before)),
            Fate::Refused(_) | Fate::Passed => world.activities().get(before).cloned(),
        };
        let as_expected = expected && activity.is_some() == (*fate == Fate::Recorded);
        match fate {
            Fate::Recorded => recorded += 1,
            Fate::Refused(_) => refused += 1,
            Fate::Passed => passed += 1,
        }
        wrong += i32::from(!as_expected);
        let mark = if as_expected { "" } else { " <- NOT AS EXPECTED" };
        let became = match (&activity, fate) {
            (Some(activity), _) => format!("recorded: {}", summary(activity)),
            (None, Fate::Passed) => "passed untouched".to_owned(),
            (None, _) => answer,
        };
        row(what, &recipients.join(" "), &format!("{became}{mark}"));
    }
    wrong += deliveries_to_others(&world);
    println!("demo: {} sent, {recorded} recorded, {refused} refused, {passed} passed", MESSAGES.len());
    if wrong > 0 {
        println!(
            "demo: {wrong} things did not come out as expected; the milter's log:\n{}",
            world.milter.as_ref().unwrap().log()
        );
    }
    if keep {
        leave(world);
    }
    ExitCode::from(u8::from(wrong > 0))
}

/// The mixed message went on to Bo, and the last one to Dora; nothing is left behind in Postfix. How much is wrong with it.
fn deliveries_to_others(world: &World) -> i32 {
    let delivered = support::wait_for("the deliveries to others", || {
        Some(world.postfix.delivered())
            .filter(|d| d.len() >= 2)
            .map(|d| d.into_iter().map(|(to, _)| to).collect::<Vec<_>>())
    });
    let queued = world.postfix.queued().len();
    println!("\nPostfix delivered to others: {}; left in its queue: {queued}", delivered.join(", "));
    i32::from(delivered.len() != 2) + i32::from(queued != 0)
}

/// An activity in a few words.
fn summary(activity: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let project =
        activity["project"]["number"].as_str().map(|n| format!(", project {n}")).unwrap_or_default();
    let customer = activity["customer"]["id"].as_str().map(|c| format!(", customer {c}")).unwrap_or_default();
    let count = |list: &Value| list.as_array().map_or(0, Vec::len);
    format!(
        "\"{}\": {}{project}{customer}, {} participants, {} files",
        text(&activity["subject"]),
        text(&activity["owner"]["user_id"]),
        count(&activity["participants"]),
        count(&activity["files"]),
    )
}

/// A row of the table: 100 columns, each text in as many lines as it needs.
fn row(what: &str, to: &str, became: &str) {
    let columns = [lines(what, 24), lines(to, 32), lines(became, 42)];
    let height = columns.iter().map(Vec::len).max().unwrap_or_default();
    for number in 0..height {
        let [what, to, became] = columns.each_ref().map(|lines| lines.get(number).map_or("", String::as_str));
        println!("{}", format!("{what:<24} {to:<32} {became}").trim_end());
    }
}

/// A text in lines of at most so many characters, if its words let it.
fn lines(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last_mut().unwrap();
        if last.is_empty() {
            last.push_str(word);
        } else if last.chars().count() + 1 + word.chars().count() <= width {
            *last += " ";
            *last += word;
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// Leaves everything running and says how to use it.
fn leave(world: World) {
    let (root, port) = (world.root.display().to_string(), world.postfix.port);
    let ids = [world.milter.as_ref(), world.sink.as_ref()]
        .map(|process| process.unwrap().id().to_string())
        .join(" ");
    let stop = format!("#!/bin/sh\npostfix -c {root}/postfix/conf stop\nkill {ids}\n");
    fs::write(world.root.join("stop"), stop).unwrap();
    println!("\nEverything keeps running in {root}:");
    let ours = format!("{} -c {root}/activity-milter.toml", support::world::program().display());
    println!("  status page:  http://127.0.0.1:{}/", world.admin_port);
    println!("  recorded:     http://127.0.0.1:{}/", world.sink_port);
    println!("Try:");
    println!(
        "  swaks --server 127.0.0.1:{port} --from anna@mycompany.test --to mycompany@severamail.test \\"
    );
    println!("    --header 'From: anna@mycompany.test' --header 'Subject: Hello'");
    println!("  {ours} directory lookup mycompany@severamail.test anna@mycompany.test bo@acme.test");
    println!("  {ours} queue list");
    println!("More:");
    println!("  logs:         {root}/milter.log  {root}/sink.log  {root}/postfix/mail.log");
    println!(
        "  settings:     {root}/activity-milter.toml  {root}/directory.toml (edit it: it is read again)"
    );
    println!("  stop:         sh {root}/stop");
    world.keep();
}
