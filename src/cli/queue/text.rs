//! Activities as text for people: a table, what there is in all, and one of them.

use crate::activity::one_line;
use crate::mail::Address;
use crate::queue::{Counts, Entry, Kept, State};
use crate::rules::Addressing;
use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

/// Characters of a key that are shown: enough to be the only one, and short enough to be copied by eye.
const KEY_CHARS: usize = 19;

/// The head of the table.
const HEAD: [&str; 9] = ["KEY", "STATE", "ACCEPTED", "TRIED", "TENANT", "PROJECT", "QUEUE ID", "FROM", "TO"];

pub(super) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// A table with a head, and the reason of each under its line; nothing if there are none.
pub(super) fn table(entries: &[Entry], addressing: &Addressing) -> String {
    if entries.is_empty() {
        return String::new();
    }
    let rows: Vec<[String; 9]> = entries.iter().map(|entry| row(entry, addressing)).collect();
    let mut widths = HEAD.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    line(&mut text, &widths, &HEAD.map(str::to_owned));
    for (row, entry) in rows.iter().zip(entries) {
        line(&mut text, &widths, row);
        if let Some(reason) = &entry.reason {
            let _ = writeln!(text, "    {}", one_line(reason));
        }
    }
    text
}

fn line(text: &mut String, widths: &[usize; 9], cells: &[String; 9]) {
    let mut line = String::new();
    for (at, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let gap = if at == 0 { "" } else { "  " };
        // Numbers to the right.
        let _ =
            if at == 3 { write!(line, "{gap}{cell:>width$}") } else { write!(line, "{gap}{cell:<width$}") };
    }
    let _ = writeln!(text, "{}", line.trim_end());
}

fn row(entry: &Entry, addressing: &Addressing) -> [String; 9] {
    let or_dash = |text: Option<&String>| text.map_or_else(|| "-".to_owned(), |text| one_line(text));
    let key = entry.key.as_str();
    [
        key.get(..KEY_CHARS).unwrap_or(key).to_owned(),
        entry.state.as_str().to_owned(),
        rfc3339(entry.accepted_at),
        entry.attempts.to_string(),
        one_line(&entry.tenant),
        or_dash(entry.project.as_ref()),
        or_dash(entry.queue_id.as_ref()),
        sender(entry),
        recipient(entry, addressing),
    ]
}

/// The envelope's sender, as Postfix writes it.
fn sender(entry: &Entry) -> String {
    match entry.sender.as_deref() {
        None | Some("") => "<>".to_owned(),
        Some(sender) => one_line(sender),
    }
}

/// The integration address, if it is known; how many others there are.
fn recipient(entry: &Entry, addressing: &Addressing) -> String {
    let is_ours = |text: &&String| Address::parse(text).is_ok_and(|address| addressing.covers(&address));
    let recipients = &entry.recipients;
    match (recipients.iter().find(is_ours).or(recipients.first()), recipients.len()) {
        (None, _) => "-".to_owned(),
        (Some(one), 1) => one_line(one),
        (Some(one), count) => format!("{} +{}", one_line(one), count - 1),
    }
}

/// What there is in all.
pub(super) struct Sum {
    pub(super) counts: Counts,
    pub(super) kept: Kept,
    pub(super) bytes: u64,
}

impl Sum {
    /// Nothing waits and nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.counts.waiting + self.counts.held == 0
    }

    /// The last line of a list.
    pub(super) fn line(&self, now: SystemTime) -> String {
        let Self { counts, bytes, .. } = self;
        let mut line = if self.is_empty() {
            "queue is empty".to_owned()
        } else {
            let size = bytesize::ByteSize(*bytes);
            format!("{} waiting, {} held; {size} on the disk", counts.waiting, counts.held)
        };
        if let Some(oldest) = counts.oldest.filter(|_| counts.waiting > 0) {
            let age = now.duration_since(oldest).unwrap_or_default();
            let _ = write!(line, "; the oldest waits since {} ({})", rfc3339(oldest), short(age));
        }
        if self.kept.activities > 0 {
            let since = self.kept.since.map(|since| format!(" since {}", rfc3339(since))).unwrap_or_default();
            let _ = write!(line, "; {} delivered are kept{since}", self.kept.activities);
        }
        line + "\n"
    }
}

/// A time as a person says it: its two largest units.
fn short(time: Duration) -> String {
    let seconds = time.as_secs();
    let unit = match seconds {
        0..3600 => 1,
        3600..86_400 => 60,
        _ => 3600,
    };
    humantime::format_duration(Duration::from_secs(seconds - seconds % unit)).to_string()
}

/// The first lines of one activity.
pub(super) fn shown(entry: &Entry) -> String {
    let due = match entry.state {
        State::Held => "held since",
        State::Delivered => "delivered",
        State::Waiting | State::InFlight => "due",
    };
    format!(
        "key: {}\nnumber: {}\nqueue id: {}\nsender: {}\nstate: {}\nattempts: {}\naccepted: {}\n{due}: {}\nreason: {}\n",
        entry.key,
        entry.id,
        entry.queue_id.as_deref().map_or_else(|| "-".to_owned(), one_line),
        sender(entry),
        entry.state.as_str(),
        entry.attempts,
        rfc3339(entry.accepted_at),
        rfc3339(entry.due),
        entry.reason.as_deref().map_or_else(|| "-".to_owned(), one_line),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::Key;
    use crate::mail::Domain;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
    }

    fn entry(key: &str) -> Entry {
        Entry {
            id: 4_294_967_296,
            key: Key::from_stored(format!("b3:{key}{}", "0".repeat(64 - key.len()))),
            tenant: "t-1".to_owned(),
            project: None,
            queue_id: Some("4bXy1zT3sKwz9q".to_owned()),
            sender: Some("anna@mycompany.test".to_owned()),
            recipients: vec!["mycompany@severamail.test".to_owned()],
            state: State::Waiting,
            attempts: 0,
            accepted_at: at(0),
            due: at(60),
            reason: None,
        }
    }

    fn addressing() -> Addressing {
        let domains = vec![Domain::parse("severamail.test").unwrap()];
        Addressing { domains, recipient_delimiter: String::new() }
    }

    #[test]
    fn columns_are_aligned_and_strangers_words_stay_on_their_line() {
        let held = Entry {
            state: State::Held,
            attempts: 12,
            tenant: "a-longer-tenant".to_owned(),
            project: Some("1001".to_owned()),
            queue_id: None,
            sender: Some("x\u{1b}[2J\ny@x.test".to_owned()),
            recipients: vec!["bo@acme.test".to_owned(), "1001.mycompany@SEVERAMAIL.test".to_owned()],
            reason: Some("backend answered 422\nUnprocessable".to_owned()),
            ..entry("ab")
        };
        let bounce = Entry { sender: Some(String::new()), recipients: Vec::new(), ..entry("cd") };
        let expected = "\
KEY                  STATE    ACCEPTED              TRIED  TENANT           PROJECT  QUEUE ID        FROM                 TO
b3:1200000000000000  waiting  2023-11-14T22:13:20Z      0  t-1              -        4bXy1zT3sKwz9q  anna@mycompany.test  mycompany@severamail.test
b3:ab00000000000000  held     2023-11-14T22:13:20Z     12  a-longer-tenant  1001     -               x [2J y@x.test       1001.mycompany@SEVERAMAIL.test +1
    backend answered 422 Unprocessable
b3:cd00000000000000  waiting  2023-11-14T22:13:20Z      0  t-1              -        4bXy1zT3sKwz9q  <>                   -
";
        assert_eq!(table(&[entry("12"), held, bounce], &addressing()), expected);
        assert_eq!(table(&[], &addressing()), "");
    }

    #[test]
    fn what_there_is_in_all_is_one_line() {
        let none = Kept::default();
        let kept = Kept { activities: 7, since: Some(at(0)) };
        for (waiting, held, oldest, kept, expected) in [
            (0, 0, None, none, "queue is empty"),
            (0, 0, None, kept, "queue is empty; 7 delivered are kept since 2023-11-14T22:13:20Z"),
            (0, 3, None, none, "0 waiting, 3 held; 1.5 MiB on the disk"),
            (
                2,
                1,
                Some(at(0)),
                none,
                "2 waiting, 1 held; 1.5 MiB on the disk; the oldest waits since 2023-11-14T22:13:20Z (1day 2h)",
            ),
            (
                1,
                0,
                Some(at(93_000)),
                kept,
                "1 waiting, 0 held; 1.5 MiB on the disk; the oldest waits since 2023-11-16T00:03:20Z (10m 5s); 7 delivered \
                 are kept since 2023-11-14T22:13:20Z",
            ),
        ] {
            let sum = Sum { counts: Counts { waiting, held, oldest }, kept, bytes: 3 << 19 };
            assert_eq!(sum.line(at(93_605)), format!("{expected}\n"));
        }
    }

    #[test]
    fn one_activity_says_which_it_is() {
        let text = shown(&Entry { state: State::Delivered, reason: Some("a\nb".to_owned()), ..entry("12") });
        let expected = [
            "number: 4294967296",
            "queue id: 4bXy1zT3sKwz9q",
            "sender: anna@mycompany.test",
            "state: delivered",
            "attempts: 0",
            "accepted: 2023-11-14T22:13:20Z",
            "delivered: 2023-11-14T22:14:20Z",
            "reason: a b",
        ];
        assert_eq!(text.lines().skip(1).collect::<Vec<_>>(), expected);
    }
}
