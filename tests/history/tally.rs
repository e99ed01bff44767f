//! What became of every message: the judgement over a whole run.
//!
//! In: what clients heard, and what the backend wrote down. Out: a [`Tally`], and for each fault a row of it.
//! Promise: a message that was accepted and of which an activity is nowhere is lost, whatever else is there; an activity that
//! nobody sent, or one more than a message has, is a stranger; what came twice is counted, and it is said in which fault.
//!
//! Why some may come twice: who sent an activity and heard no answer cannot know whether it came, and who is killed before
//! the answer is on its own disk has not heard it. So an activity may come again if the time before was not answered 201, or
//! if a fault that says so was there between that request and its answer, or within [`WRITTEN`] of it. That a fault was there
//! at some later time is no excuse: what was written down as delivered stays so.

use super::{
    backend::Delivery,
    clients::{Heard, Word, activities_of},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

/// From an answer to the disk of who asked, at most.
pub const WRITTEN: Duration = Duration::from_secs(2);

/// A time in which a fault was there, until all was well again.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub name: &'static str,
    pub holds: &'static str,
    /// Activities may come twice: who sends them could not know that they had come.
    pub again: bool,
    /// Whom alone it befell, where those who send say who they are.
    pub sender: Option<usize>,
    pub began: Instant,
    pub ended: Instant,
}

impl Window {
    /// True if it was there between the request and the end of its answer's way. What a busy backend reads after its sender
    /// was killed was sent before.
    fn is_between(&self, first: &Delivery) -> bool {
        let ended = first.answered.unwrap_or(first.at) + WRITTEN;
        let is_theirs = self.sender.map_or(first.at <= self.ended, |sender| first.sender == Some(sender));
        is_theirs && ended >= self.began
    }
}

/// A row of the table.
#[derive(Clone, Debug)]
pub struct Row {
    pub window: Window,
    /// Messages that were accepted meanwhile.
    pub accepted: usize,
    /// The longest time in which none was.
    pub gap: Duration,
    pub later: usize,
    pub broken: usize,
    pub lost: usize,
    pub twice: usize,
}

/// The judgement.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub accepted: usize,
    pub activities: usize,
    /// Messages with an activity that is nowhere.
    pub lost: Vec<usize>,
    /// Messages with more activities than they have.
    pub more: Vec<usize>,
    /// Activities of messages that nobody was told 250 for.
    pub strangers: Vec<usize>,
    /// Messages that were refused for good.
    pub refused: Vec<String>,
    /// Activities that came again after a time that was not answered.
    pub unanswered: usize,
    /// Activities that came again after a fault in which that may be.
    pub again: usize,
    /// The others that came again.
    pub twice: Vec<String>,
    pub rows: Vec<Row>,
}

impl Tally {
    pub fn of(heard: &[Heard], deliveries: &[Delivery], windows: &[Window]) -> Self {
        let accepted: BTreeMap<usize, Instant> =
            heard.iter().filter(|one| one.word == Word::Accepted).map(|one| (one.number, one.at)).collect();
        let mut by_key = BTreeMap::<&str, Vec<&Delivery>>::new();
        let mut keys_of = BTreeMap::<usize, BTreeSet<&str>>::new();
        for delivery in deliveries {
            by_key.entry(&delivery.key).or_default().push(delivery);
            keys_of.entry(delivery.number).or_default().insert(&delivery.key);
        }
        let found = |number: &usize| keys_of.get(number).map_or(0, BTreeSet::len);
        let mut tally = Self {
            accepted: accepted.len(),
            activities: by_key.len(),
            lost: accepted.keys().copied().filter(|number| found(number) < activities_of(*number)).collect(),
            more: accepted.keys().copied().filter(|number| found(number) > activities_of(*number)).collect(),
            strangers: keys_of.keys().copied().filter(|number| !accepted.contains_key(number)).collect(),
            refused: heard.iter().filter_map(Self::refusal).collect(),
            ..Self::default()
        };
        // When each came again, and since when it had been there.
        let again: Vec<(&Delivery, Instant, &str)> = by_key
            .iter()
            .flat_map(|(key, all)| all.windows(2).map(|two| (two[0], two[1].at, *key)))
            .collect();
        let is_within = |at: Instant, window: &Window| at >= window.began && at <= window.ended;
        for (first, then, key) in &again {
            let of = windows.iter().find(|window| window.again && window.is_between(first));
            match of {
                _ if first.answered.is_none() => tally.unanswered += 1,
                Some(_) => tally.again += 1,
                None => {
                    let of = windows.iter().find(|window| is_within(*then, window)).map(|window| window.name);
                    tally.twice.push(format!("{key} after {:?}, in {of:?}", *then - first.at));
                }
            }
        }
        for window in windows {
            let mut times: Vec<Instant> =
                accepted.values().copied().filter(|at| is_within(*at, window)).collect();
            let accepted_within = times.len();
            times.extend([window.began, window.ended]);
            times.sort_unstable();
            let words = |is: fn(&Word) -> bool| {
                heard.iter().filter(|one| is(&one.word) && is_within(one.at, window)).count()
            };
            tally.rows.push(Row {
                window: *window,
                accepted: accepted_within,
                gap: times.windows(2).map(|two| two[1] - two[0]).max().unwrap_or_default(),
                later: words(|word| matches!(word, Word::Later(_))),
                broken: words(|word| *word == Word::Broken),
                lost: tally.lost.iter().filter(|number| is_within(accepted[number], window)).count(),
                twice: again
                    .iter()
                    .filter(|(first, then, _)| window.is_between(first) && *then >= window.began)
                    .count(),
            });
        }
        tally
    }

    fn refusal(heard: &Heard) -> Option<String> {
        match &heard.word {
            Word::Never(answer) => Some(format!("{}: {answer}", heard.number)),
            _ => None,
        }
    }

    /// The same with a row for each name, for what happened more than once.
    pub fn by_name(&self) -> String {
        let mut text =
            "| What happened | Times | Lasted | Accepted | 4xx | Broken off | Lost | Sent again |\n"
                .to_owned();
        text += "| --- | --: | --: | --: | --: | --: | --: | --: |\n";
        let names: BTreeSet<&str> = self.rows.iter().map(|row| row.window.name).collect();
        for name in names {
            let rows: Vec<&Row> = self.rows.iter().filter(|row| row.window.name == name).collect();
            let sum = |of: fn(&Row) -> usize| rows.iter().map(|row| of(row)).sum::<usize>();
            let lasted: Duration = rows.iter().map(|row| row.window.ended - row.window.began).sum();
            text += &format!(
                "| {name} | {} | {:.1} s | {} | {} | {} | {} | {}{} |\n",
                rows.len(),
                lasted.as_secs_f64(),
                sum(|row| row.accepted),
                sum(|row| row.later),
                sum(|row| row.broken),
                sum(|row| row.lost),
                sum(|row| row.twice),
                if rows[0].window.again { " (may be)" } else { "" },
            );
        }
        text + &self.sentence()
    }

    /// All of it in one.
    fn sentence(&self) -> String {
        format!(
            "\n{} messages were accepted, of which {} activities came; lost {}, sent again {} for no answer was heard, {} where that \
             may be and {} where it may not, too many {}, of nobody {}, refused for good {}.\n",
            self.accepted,
            self.activities,
            self.lost.len(),
            self.unanswered,
            self.again,
            self.twice.len(),
            self.more.len(),
            self.strangers.len(),
            self.refused.len(),
        )
    }

    /// What must never be.
    pub fn faults(&self) -> Vec<String> {
        [
            ("accepted and nowhere", format!("{:?}", self.lost), self.lost.len()),
            ("more activities than the message has", format!("{:?}", self.more), self.more.len()),
            ("of messages that nobody accepted", format!("{:?}", self.strangers), self.strangers.len()),
            ("refused for good", format!("{:?}", self.refused), self.refused.len()),
            ("came again, and who sent them could know", format!("{:#?}", self.twice), self.twice.len()),
        ]
        .into_iter()
        .filter(|(_, _, count)| *count > 0)
        .map(|(what, which, count)| format!("{count} {what}: {which}"))
        .collect()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| Fault | What must hold | Lasted | Accepted | Longest gap | 4xx | Broken off | Lost | Sent again |"
        )?;
        writeln!(f, "| --- | --- | --: | --: | --: | --: | --: | --: | --: |")?;
        for row in &self.rows {
            writeln!(
                f,
                "| {} | {} | {:.1} s | {} | {:.1} s | {} | {} | {} | {}{} |",
                row.window.name,
                row.window.holds,
                (row.window.ended - row.window.began).as_secs_f64(),
                row.accepted,
                row.gap.as_secs_f64(),
                row.later,
                row.broken,
                row.lost,
                row.twice,
                if row.window.again { " (may be)" } else { "" },
            )?;
        }
        f.write_str(&self.sentence())
    }
}

/// Each thing that must not be is seen.
#[test]
fn what_must_not_be_is_seen() {
    let began = Instant::now();
    let at = |seconds: u64| began + Duration::from_secs(seconds);
    let heard = |number: usize, seconds: u64, word: Word| Heard {
        number,
        server: 0,
        began: at(seconds),
        at: at(seconds),
        word,
    };
    let came = |key: &str, number: usize, seconds: u64| {
        let (at, key) = (at(seconds), key.to_owned());
        Delivery { key, number, sender: Some(1), at, answered: Some(at) }
    };
    let window = |name, again, from, to| Window {
        name,
        holds: "",
        again,
        sender: None,
        began: at(from),
        ended: at(to),
    };
    let windows = [window("one", false, 10, 20), window("two", true, 20, 30)];
    let said = [1, 2, 3, 5].map(|number| heard(number, 10 + number as u64, Word::Accepted));
    let well = [came("a", 1, 11), came("b", 2, 12), came("c", 3, 13), came("d", 5, 15), came("e", 5, 15)];
    let judge = |heard: &[Heard], deliveries: &[Delivery]| Tally::of(heard, deliveries, &windows).faults();
    assert_eq!(judge(&said, &well), Vec::<String>::new());
    for (case, deliveries, expected) in [
        ("lost", well[1..].to_vec(), "1 accepted and nowhere: [1]"),
        ("half lost", well[..4].to_vec(), "1 accepted and nowhere: [5]"),
        ("two keys", [&well[..], &[came("f", 1, 16)]].concat(), "1 more activities"),
        ("nobody's", [&well[..], &[came("f", 9, 16)]].concat(), "1 of messages that nobody accepted: [9]"),
        ("twice", [&well[..], &[came("a", 1, 16)]].concat(), "1 came again"),
    ] {
        let found = judge(&said, &deliveries);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{case}: {found:?}");
    }
    // Where it may be: not because there was a fault later.
    let again = [&well[..], &[came("a", 1, 25)]].concat();
    assert!(judge(&said, &again)[0].starts_with("1 came again"));
    let unanswered = [&[Delivery { answered: None, ..came("a", 1, 11) }], &again[1..]].concat();
    assert_eq!(judge(&said, &unanswered), Vec::<String>::new());
    assert_eq!(Tally::of(&said, &unanswered, &windows).unanswered, 1);
    let again = [&[came("a", 1, 19)], &again[1..]].concat();
    assert_eq!(judge(&said, &again), Vec::<String>::new());
    let tally = Tally::of(&said, &again, &windows);
    assert_eq!((tally.again, tally.rows[1].twice, tally.rows[0].accepted), (1, 1, 4));
    assert_eq!(tally.rows[0].gap, Duration::from_secs(5));
    // Where it befell one who sends: what was read later was his, and another's was not.
    let judge_killed = |sender: usize| {
        let killed = Window { sender: Some(sender), ..window("killed", true, 17, 17) };
        Tally::of(&said, &again, &[killed]).faults().len()
    };
    assert_eq!((judge_killed(1), judge_killed(2)), (0, 1));
    let never = [&said[..], &[heard(7, 11, Word::Never("550 no".to_owned()))]].concat();
    assert!(judge(&never, &well)[0].starts_with("1 refused for good"));
}
