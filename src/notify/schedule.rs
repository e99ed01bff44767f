//! Who may be told now, who waits until when, and when to look again; a state without I/O, whose clock is handed in.
//!
//! In: what became of each mail, and that something is new. Out: when to look at what is untold, behind which row, and
//! whom to tell of it.
//! Promise: one recipient's trouble delays no other's notice, a way that is down is tried once a minute and not once for
//! each recipient, nobody is told twice of the same row, and no look follows another for nothing.
//!
//! The hard part is a mail under which the way hangs or breaks off: the way or this one recipient may be the cause. So the
//! way rests for a minute, and the recipient is a suspect: everybody else comes first. If the way has worked for others
//! since it broke off last, it is the recipient's own trouble, and the time it waits grows.
//!
//! A look goes over all that is untold, also over what waits. If that is much, a look takes long, and rests for a multiple
//! of its time; what is new is looked at meanwhile, behind the last row.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};
use tokio::time::Instant;

/// How long new ones are gathered, so that a backend that refuses everything makes no storm of mail.
const GATHER: Duration = Duration::from_secs(2);

/// Pause after the way was down, after a note that could not be written, and the first of a recipient.
const PAUSE: Duration = Duration::from_secs(60);

/// The longest pause of a recipient.
const LONGEST: Duration = Duration::from_secs(3600);

/// After a look at everything, the next begins after so many times what it took.
const REST: u32 = 20;

/// So many rows are told and not noted before no more are told: after a crash each is told again.
const MOST_OWED: usize = 10_000;

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Look {
    /// All that is untold.
    All,
    /// What came behind the last row.
    New,
    /// All, for one suspect.
    Suspect(String),
}

/// A recipient that could not be told.
#[derive(Clone, Debug)]
struct Wait {
    until: Instant,
    /// How long that is.
    pause: Duration,
    /// The way broke off under its mail.
    suspect: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Schedule {
    look: Look,
    began: Instant,
    /// When to look at all, if something is new or was not reached.
    all_at: Option<Instant>,
    /// When to look behind the last row.
    new_at: Option<Instant>,
    /// No look at all before.
    rested: Instant,
    /// No look whatever before: the way is down.
    up: Instant,
    /// The last row looked at.
    last: Option<i64>,
    waits: HashMap<String, Wait>,
    /// The way has answered since it broke off last.
    worked: bool,
    /// Rows told and not noted.
    owed: BTreeSet<i64>,
    note_at: Instant,
}

impl Schedule {
    /// Begins with a look at all.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            look: Look::All,
            began: now,
            all_at: Some(now),
            new_at: None,
            rested: now,
            up: now,
            last: None,
            waits: HashMap::new(),
            worked: false,
            owed: BTreeSet::new(),
            note_at: now,
        }
    }

    /// Something new is held.
    pub(super) fn held(&mut self, now: Instant) {
        for at in [&mut self.all_at, &mut self.new_at] {
            at.get_or_insert(now + GATHER);
        }
    }

    /// When there is something to look at or to note, if nothing new comes.
    pub(super) fn next(&self) -> Option<Instant> {
        let note = (!self.owed.is_empty()).then_some(self.note_at);
        self.next_look().into_iter().chain(note).min()
    }

    fn next_look(&self) -> Option<Instant> {
        let suspect = self.suspect().map(|(_, at)| at);
        let looks = [self.all(), self.new_at, suspect].into_iter().flatten();
        looks.min().map(|at| at.max(self.up))
    }

    /// When to look at all for those who are no suspects.
    fn all(&self) -> Option<Instant> {
        let due = self.waits.values().filter(|wait| !wait.suspect).map(|wait| wait.until);
        self.all_at.into_iter().chain(due).min().map(|at| at.max(self.rested))
    }

    /// The suspect that has waited longest, and when its turn is.
    fn suspect(&self) -> Option<(&String, Instant)> {
        let suspects = self.waits.iter().filter(|(_, wait)| wait.suspect);
        let first = suspects.min_by_key(|(to, wait)| (wait.until, *to))?;
        Some((first.0, first.1.until.max(self.rested)))
    }

    /// Whether it is time for a look.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next_look().is_some_and(|at| at <= now)
    }

    /// Begins the look whose time it is: behind which row. Suspects come last.
    pub(super) fn begin(&mut self, now: Instant) -> Option<i64> {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        self.began = now;
        if !is_due(self.all()) && is_due(self.new_at) {
            (self.look, self.new_at) = (Look::New, None);
            return self.last;
        }
        match self.suspect() {
            Some((one, _)) if !is_due(self.all()) => self.look = Look::Suspect(one.clone()),
            _ => (self.look, self.all_at, self.new_at) = (Look::All, None, None),
        }
        None
    }

    /// Whether somebody may be told in this look.
    pub(super) fn may(&self, to: &str) -> bool {
        let wait = self.waits.get(to);
        let is_due = wait.is_none_or(|wait| wait.until <= self.began);
        is_due
            && match &self.look {
                Look::Suspect(one) => one == to,
                Look::All | Look::New => !wait.is_some_and(|wait| wait.suspect),
            }
    }

    /// Somebody was told, or never will be: the way works.
    pub(super) fn settled(&mut self, to: &str) {
        self.waits.remove(to);
        self.worked = true;
    }

    /// Somebody cannot be told now.
    pub(super) fn later(&mut self, to: &str, now: Instant) {
        self.worked = true;
        self.wait(to, now, true, false);
    }

    /// The way broke off under a mail to somebody; it is down, too.
    pub(super) fn broke(&mut self, to: &str, now: Instant) {
        let grows = std::mem::take(&mut self.worked);
        self.wait(to, now, grows, true);
    }

    /// There is no way now: the look is over, and all that it has not reached is looked at again.
    pub(super) fn down(&mut self, now: Instant) {
        self.up = now + PAUSE;
        self.all_at = Some(self.up);
    }

    fn wait(&mut self, to: &str, now: Instant, grows: bool, suspect: bool) {
        let pause = match self.waits.get(to) {
            None => PAUSE,
            Some(wait) if grows => (wait.pause * 2).min(LONGEST),
            Some(wait) => wait.pause,
        };
        let wait = Wait { until: now + pause, pause, suspect };
        self.waits.insert(to.to_owned(), wait);
    }

    /// The look has come to its end at row `last`; `looked`: how long it took to read.
    pub(super) fn done(&mut self, last: Option<i64>, now: Instant, looked: Duration) {
        self.last = self.last.max(last);
        if self.look != Look::New {
            self.rested = now + looked * REST;
            // Of whom nothing was found, nothing is left to be told.
            let (look, began) = (&self.look, self.began);
            self.waits.retain(|to, wait| match look {
                Look::Suspect(one) => one != to || wait.until > began,
                Look::All | Look::New => wait.suspect || wait.until > began,
            });
        }
    }

    /// Rows told, or that nobody ever will be told of: never again by this process, and to be noted.
    pub(super) fn told(&mut self, rows: impl IntoIterator<Item = i64>) {
        self.owed.extend(rows);
    }

    /// Whether this row was told and could not be noted yet.
    pub(super) fn is_told(&self, row: i64) -> bool {
        self.owed.contains(&row)
    }

    /// Whether so many are not noted that no more may be told.
    pub(super) fn owes_too_much(&self) -> bool {
        self.owed.len() >= MOST_OWED
    }

    /// Rows to be noted, if it is time.
    pub(super) fn to_note(&self, now: Instant) -> Vec<i64> {
        if self.note_at <= now { self.owed() } else { Vec::new() }
    }

    /// All rows to be noted.
    pub(super) fn owed(&self) -> Vec<i64> {
        self.owed.iter().copied().collect()
    }

    /// These were noted.
    pub(super) fn noted(&mut self, rows: &[i64]) {
        for row in rows {
            self.owed.remove(row);
        }
    }

    /// The note could not be written.
    pub(super) fn not_noted(&mut self, now: Instant) {
        self.note_at = now + PAUSE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a mail.
    #[derive(Clone, Copy)]
    enum Fate {
        Told,
        Later,
        /// For a minute; then the way is taken for broken.
        Hangs,
        Down,
    }

    use Fate::{Down, Hangs, Later, Told};

    /// A recipient: when activities of theirs are held, in seconds, and what becomes of a mail at what time.
    type Person = (&'static str, &'static [u64], fn(u64) -> Fate);

    struct Row {
        number: i64,
        held: u64,
        person: Person,
        told: bool,
    }

    /// All attempts until `end`, each with its second. What is held first has the lowest row.
    fn attempts(people: &[Person], end: u64) -> String {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut rows: Vec<Row> = people
            .iter()
            .flat_map(|person| {
                person.1.iter().map(|&held| Row { number: 0, held, person: *person, told: false })
            })
            .collect();
        rows.sort_by_key(|row| row.held);
        rows.iter_mut().zip(1..).for_each(|(row, number)| row.number = number);
        let mut schedule = Schedule::new(start);
        let (mut now, mut heard, mut looks, mut said) = (0, 0, 0, Vec::new());
        loop {
            let next = schedule.next().map(|next| (next - start).as_secs());
            let held = rows.iter().map(|row| row.held).find(|held| *held > heard);
            match next.into_iter().chain(held).min() {
                Some(next) if next <= end => now = now.max(next),
                _ => return said.join(", "),
            }
            if let Some(held) = held.filter(|held| *held <= now) {
                heard = held;
                schedule.held(at(now));
            }
            if !schedule.is_due(at(now)) {
                continue;
            }
            looks += 1;
            assert!(looks < 300, "a look follows another for nothing: {}", said.join(", "));
            let after = schedule.begin(at(now)).unwrap_or(0);
            let (until, mut last) = (now, None);
            let untold = |row: &&mut Row| row.number > after && row.held <= until && !row.told;
            'look: {
                for row in rows.iter_mut().filter(untold) {
                    last = Some(row.number);
                    let name = row.person.0;
                    if !schedule.may(name) {
                        continue;
                    }
                    said.push(format!("{now} {name}"));
                    let fate = row.person.2(now);
                    match fate {
                        Told => {
                            schedule.settled(name);
                            row.told = true;
                        }
                        Later => schedule.later(name, at(now)),
                        Hangs => {
                            now += 60;
                            schedule.broke(name, at(now));
                        }
                        Down => {}
                    }
                    if matches!(fate, Hangs | Down) {
                        schedule.down(at(now));
                        break 'look;
                    }
                }
                schedule.done(last, at(now), Duration::ZERO);
            }
        }
    }

    #[test]
    fn whose_turn_it_is() {
        let cases: &[(&str, &[Person], u64, &str)] = &[
            ("nothing is held", &[], 10_000, ""),
            (
                "what is there is told at once, what is new is gathered",
                &[("a", &[0, 10, 11, 20], |_| Told)],
                10_000,
                "0 a, 12 a, 12 a, 22 a",
            ),
            (
                "who cannot be told waits longer each time, an hour at most",
                &[("a", &[0], |_| Later)],
                12_000,
                "0 a, 60 a, 180 a, 420 a, 900 a, 1860 a, 3780 a, 7380 a, 10980 a",
            ),
            (
                "new ones of somebody who waits change nothing",
                &[("a", &[0, 1, 10, 61, 100], |_| Later)],
                200,
                "0 a, 60 a, 180 a",
            ),
            (
                "one's trouble delays nobody",
                &[("a", &[0, 1, 10, 61, 100], |_| Later), ("b", &[0, 5, 70], |_| Told)],
                200,
                "0 a, 0 b, 7 b, 60 a, 72 b, 180 a",
            ),
            (
                "who was told waits no more, and begins anew",
                &[("a", &[0, 500], |now| if (400..=500).contains(&now) { Told } else { Later })],
                700,
                "0 a, 60 a, 180 a, 420 a, 502 a, 562 a, 682 a",
            ),
            (
                "a way that is down is tried once a minute, for one",
                &[("a", &[0, 10, 70], |now| if now < 150 { Down } else { Told }), ("b", &[0, 20], |_| Told)],
                10_000,
                "0 a, 60 a, 120 a, 180 a, 180 b, 180 a, 180 b, 180 a",
            ),
            (
                "it waits for no rest of a recipient's pause",
                &[
                    ("a", &[0], |now| if now < 100 { Later } else { Told }),
                    ("b", &[0], |now| if now < 50 { Down } else { Told }),
                ],
                10_000,
                "0 a, 0 b, 60 a, 60 b, 180 a",
            ),
            (
                "a way that hangs for the only one is tried a minute after each time",
                &[("a", &[0], |now| if now < 500 { Hangs } else { Told })],
                10_000,
                "0 a, 120 a, 240 a, 360 a, 480 a, 600 a",
            ),
            (
                "it costs one a minute, not each",
                &[
                    ("a", &[0], |now| if now < 200 { Hangs } else { Told }),
                    ("b", &[0], |now| if now < 200 { Hangs } else { Told }),
                    ("c", &[0], |_| Told),
                ],
                10_000,
                "0 a, 120 b, 240 c, 240 a, 240 b",
            ),
            (
                "one at whom it hangs comes last, and waits longer while others are told",
                &[("a", &[0], |_| Hangs), ("b", &[0, 130, 400, 800], |_| Told)],
                1200,
                "0 a, 120 b, 120 a, 240 b, 300 a, 420 b, 600 a, 802 b, 1140 a",
            ),
            (
                "a suspect is told of everything",
                &[("a", &[0, 0, 0], |now| if now < 100 { Hangs } else { Told })],
                10_000,
                "0 a, 120 a, 120 a, 120 a",
            ),
            (
                "of two at whom it hangs neither keeps the other from being told",
                &[("a", &[0], |_| Hangs), ("b", &[0], |now| if now < 200 { Hangs } else { Told })],
                700,
                "0 a, 120 b, 240 a, 360 b, 360 a, 540 a",
            ),
        ];
        for (name, people, end, expected) in cases {
            assert_eq!(attempts(people, *end), *expected, "{name}");
        }
    }

    #[test]
    fn a_long_look_rests_and_what_is_new_does_not_wait_for_it() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut schedule = Schedule::new(start);
        assert_eq!(schedule.begin(start), None);
        schedule.later("a", at(5));
        schedule.done(Some(1_000_000), at(5), Duration::from_secs(5));
        // Due after a minute, but the look rests for a hundred seconds.
        assert_eq!(schedule.next(), Some(at(105)));
        schedule.held(at(10));
        assert_eq!(schedule.next(), Some(at(12)));
        assert!(!schedule.is_due(at(11)) && schedule.is_due(at(12)));
        assert_eq!(schedule.begin(at(12)), Some(1_000_000));
        assert!(schedule.may("b") && !schedule.may("a"));
        schedule.done(Some(1_000_007), at(12), Duration::from_millis(1));
        // What was held late in a row before is found when all is looked at.
        assert_eq!(schedule.next(), Some(at(105)));
        schedule.held(at(104));
        assert_eq!(schedule.begin(at(106)), None);
        assert!(schedule.may("a"));
        // An empty page at the end says nothing of the last row.
        schedule.done(None, at(106), Duration::ZERO);
        schedule.held(at(110));
        schedule.done(None, at(110), Duration::from_secs(60));
        assert_eq!(schedule.begin(at(112)), Some(1_000_007));
    }

    #[test]
    fn what_was_told_is_known_until_it_is_noted() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut schedule = Schedule::new(start);
        schedule.begin(start);
        schedule.done(None, start, Duration::ZERO);
        assert_eq!((schedule.next(), schedule.to_note(start)), (None, vec![]));
        schedule.told([7, 5]);
        assert!(schedule.is_told(5) && !schedule.is_told(6));
        assert_eq!((schedule.next(), schedule.to_note(start)), (Some(start), vec![5, 7]));
        schedule.not_noted(at(10));
        assert_eq!((schedule.next(), schedule.to_note(at(69))), (Some(at(70)), vec![]));
        schedule.told([9]);
        assert_eq!((schedule.to_note(at(70)), schedule.owed()), (vec![5, 7, 9], vec![5, 7, 9]));
        schedule.noted(&[5, 7]);
        assert!(!schedule.is_told(5) && schedule.is_told(9));
        schedule.noted(&[9]);
        assert_eq!(schedule.next(), None);
        schedule.told(0..10_000 - 1);
        assert!(!schedule.owes_too_much());
        schedule.told([10_000]);
        assert!(schedule.owes_too_much());
    }
}
