//! When to stop sending, and when to try again: pure, with the time handed in.
//!
//! In: what each attempt showed. Out: whether a pause began, goes on, or is over, and when the next probe may be sent.
//! Promise: one activity alone stops nothing, whatever happens to it; a pause ends with the first answer about an activity.
//!
//! What stops it: our settings are wrong (at once); [`DOWN_AFTER`] different activities without an answer; as many in a
//! row, with nothing between, that are denied (403, 404, 410); [`BROKEN_AFTER`] large ones whose connections broke. An activity that
//! was denied while others were taken says nothing of our settings any more, and does not count again.

use crate::backend::{Scope, Trouble};
use std::{collections::HashSet, time::Duration};
use tokio::time::Instant;

/// So many different activities without an answer, or denied, mean that it is not theirs. A single one that the backend
/// always fails at means nothing, and few that wait are no burden: each has its own growing delay.
pub(super) const DOWN_AFTER: usize = 5;

/// So many different large activities whose connections broke while they were sent, with no answer between. More, because
/// a backend that refuses them early, and closes, looks like this.
pub(super) const BROKEN_AFTER: usize = 20;

/// Longest pause between two probes, unless the backend says otherwise: an admin who repaired the token waits no longer.
const LONGEST_PROBE: Duration = Duration::from_secs(60);

/// Shortest pause between two probes, whatever the backend says, unless the first is shorter.
const SHORTEST_PROBE: Duration = Duration::from_secs(1);

/// Activities whose denial does not count any more, at most; then it counts again.
const MOST_SPENT: usize = 10_000;

/// Activities that failed last, for probes.
const MOST_TRIED: usize = 8;

/// How long pauses are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// The first.
    pub(super) first: Duration,
    /// The longest that the backend may ask for.
    pub(super) longest: Duration,
}

/// What an attempt showed of the lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// It was answered, and the answer is about the activity.
    Answered,
    /// Settings are wrong, the service's or the tenant's.
    Misconfigured(Scope),
    /// It did not succeed.
    Failed(Trouble),
    /// Nothing: it was not asked.
    Nothing,
}

/// What an attempt taught.
#[derive(Clone, Debug)]
pub(super) struct Lesson {
    pub(super) item: i64,
    pub(super) sign: Sign,
    /// For people.
    pub(super) reason: String,
    /// The backend's `Retry-After`.
    pub(super) after: Option<Duration>,
}

impl Lesson {
    /// Of an attempt that is no failure of the backend's.
    pub(super) fn of(item: i64, sign: Sign) -> Self {
        Self { item, sign, reason: String::new(), after: None }
    }
}

/// What is wrong, by its remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Somebody must mend our settings.
    Misconfigured,
    /// It mends itself, or the backend's people do.
    Down,
}

/// What became of the lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing that anybody need know.
    None,
    /// The first activity that is denied, after others that were not; why.
    Doubt(String),
    /// It is paused, or still is; the next probe comes after so long.
    Paused(Cause, Duration),
    /// It goes on.
    Resumed,
    /// Nothing waits any more.
    Lifted,
}

#[derive(Debug)]
struct Pause {
    cause: Cause,
    reason: String,
    probes: u32,
    /// The next probe should be one that was tried.
    tried_next: bool,
    /// By a clock that nobody sets: one that was a year ahead would stop all deliveries for a year.
    next: Instant,
    /// A probe is under way.
    probing: bool,
}

/// The state of a lane.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// Which pause it is: attempts that began before it are no probes.
    round: u64,
    unanswered: HashSet<i64>,
    denied: HashSet<i64>,
    broken: HashSet<i64>,
    spent: HashSet<i64>,
    /// What failed last, the oldest first.
    tried: Vec<i64>,
    pause: Option<Pause>,
}

impl Breaker {
    /// A lane whose rounds begin after this one.
    pub(super) fn after(round: u64) -> Self {
        Self { round, ..Self::default() }
    }

    /// Learns from an attempt that began in `round`.
    pub(super) fn learn(&mut self, lesson: &Lesson, round: u64, timing: Timing, now: Instant) -> Change {
        let is_late = self.pause.is_some() && round != self.round;
        if let Some(pause) = self.pause.as_mut().filter(|_| !is_late) {
            pause.probing = false;
        }
        match lesson.sign {
            Sign::Nothing => self.put_off(lesson.item, timing, now, is_late),
            Sign::Answered | Sign::Failed(Trouble::Later) => self.answered(is_late),
            _ if is_late => Change::None,
            Sign::Misconfigured(_) => {
                self.denied.clear();
                self.tried(lesson.item);
                self.paused(Cause::Misconfigured, lesson, timing, now)
            }
            Sign::Failed(trouble) => self.failed(trouble, lesson, timing, now),
        }
    }

    /// An attempt that showed nothing, or that ended without a word. If it was a probe, another activity is the next one.
    fn put_off(&mut self, item: i64, timing: Timing, now: Instant, is_late: bool) -> Change {
        if let Some(pause) = self.pause.as_mut().filter(|_| !is_late) {
            pause.next = now + usual(timing, pause.probes);
            self.tried(item);
        }
        Change::None
    }

    fn answered(&mut self, is_late: bool) -> Change {
        // What was sent before the credential was refused says nothing of it.
        if is_late
            && self.pause.as_ref().is_some_and(|pause| pause.cause == Cause::Misconfigured)
            && self.denied.is_empty()
        {
            return Change::None;
        }
        if self.spent.len() > MOST_SPENT {
            self.spent.clear();
        }
        self.spent.extend(self.denied.drain());
        self.unanswered.clear();
        self.broken.clear();
        self.tried.clear();
        match self.pause.take() {
            Some(_) => Change::Resumed,
            None => Change::None,
        }
    }

    fn failed(&mut self, trouble: Trouble, lesson: &Lesson, timing: Timing, now: Instant) -> Change {
        let (item, mut doubt) = (lesson.item, false);
        self.tried(item);
        // In a row: a denial is an answer, and no answer is no denial.
        if trouble == Trouble::Denied {
            self.unanswered.clear();
            self.broken.clear();
        } else {
            self.denied.clear();
        }
        let (cause, is_enough) = match trouble {
            Trouble::Down | Trouble::Busy => {
                self.unanswered.insert(item);
                (Cause::Down, self.unanswered.len() >= DOWN_AFTER)
            }
            Trouble::Broken => {
                self.broken.insert(item);
                (Cause::Down, self.broken.len() >= BROKEN_AFTER)
            }
            Trouble::Denied if !self.spent.contains(&item) => {
                doubt = self.denied.is_empty();
                self.denied.insert(item);
                (Cause::Misconfigured, self.denied.len() >= DOWN_AFTER)
            }
            Trouble::Denied | Trouble::Later | Trouble::Lost | Trouble::Ours | Trouble::Waits => {
                (Cause::Misconfigured, false)
            }
        };
        match (&self.pause, is_enough) {
            (Some(pause), _) => self.paused(if is_enough { cause } else { pause.cause }, lesson, timing, now),
            (None, true) => self.paused(cause, lesson, timing, now),
            (None, false) if doubt => Change::Doubt(lesson.reason.clone()),
            (None, false) => Change::None,
        }
    }

    /// Begins a pause, or goes on with it.
    fn paused(&mut self, cause: Cause, lesson: &Lesson, timing: Timing, now: Instant) -> Change {
        let probes = match &self.pause {
            Some(pause) => pause.probes.saturating_add(1),
            None => {
                self.round += 1;
                0
            }
        };
        let shortest = SHORTEST_PROBE.min(timing.first);
        let asked = lesson.after.map(|after| after.max(shortest).min(timing.longest));
        let delay = asked.unwrap_or_else(|| usual(timing, probes));
        let reason = lesson.reason.clone();
        let tried_next = self.pause.as_ref().is_some_and(|pause| pause.tried_next);
        self.pause = Some(Pause { cause, reason, probes, tried_next, next: now + delay, probing: false });
        Change::Paused(cause, delay)
    }

    fn tried(&mut self, item: i64) {
        self.tried.retain(|other| *other != item);
        if self.tried.len() == MOST_TRIED {
            self.tried.remove(0);
        }
        self.tried.push(item);
    }

    /// Which pause it is; an attempt that begins remembers it.
    pub(super) fn round(&self) -> u64 {
        self.round
    }

    /// What is wrong, while it is paused.
    pub(super) fn reason(&self) -> Option<&str> {
        self.pause.as_ref().map(|pause| pause.reason.as_str())
    }

    /// What is wrong, by its remedy, while it is paused.
    pub(super) fn cause(&self) -> Option<Cause> {
        self.pause.as_ref().map(|pause| pause.cause)
    }

    /// When a probe may be sent; none while one is under way, or nothing is paused.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        self.pause.as_ref().filter(|pause| !pause.probing).map(|pause| pause.next)
    }

    /// In how long that is.
    pub(super) fn probe_in(&self, now: Instant) -> Option<Duration> {
        Some(self.probe_at()?.saturating_duration_since(now))
    }

    /// Which activity the next probe should be: tried and fresh ones by turns, for one that fails by itself would keep
    /// the lane shut, and so would new ones of the same kind. The newest of the fresh ones: a good one that comes behind
    /// many that fail by themselves waits for two probes.
    pub(super) fn wants_tried(&self) -> bool {
        self.pause.as_ref().is_some_and(|pause| pause.tried_next)
    }

    /// Those that failed last, the one to try next first.
    pub(super) fn last_tried(&self) -> Vec<i64> {
        self.tried.clone()
    }

    /// A probe is sent.
    pub(super) fn probing(&mut self) {
        if let Some(pause) = &mut self.pause {
            (pause.probing, pause.tried_next) = (true, !pause.tried_next);
        }
    }

    /// There was nothing to send as a probe.
    pub(super) fn nothing_to_probe(&mut self, wait: Duration, now: Instant) {
        if let Some(pause) = &mut self.pause {
            pause.next = pause.next.max(now + wait);
        }
    }

    /// Nothing waits any more: there is nothing to pause, and nothing that could show that the pause is over.
    pub(super) fn lift(&mut self) {
        self.pause = None;
        self.tried.clear();
    }

    /// Other settings: what was learnt of the old ones does not count, and a pause is tried at once.
    pub(super) fn forget(&mut self, now: Instant) {
        self.unanswered.clear();
        self.denied.clear();
        self.broken.clear();
        self.spent.clear();
        if let Some(pause) = &mut self.pause {
            (pause.probes, pause.next, pause.probing) = (0, now, false);
            self.round += 1; // a probe that is under way has the old ones
        }
    }
}

/// The pause before the next probe, unless the backend says otherwise.
fn usual(timing: Timing, probes: u32) -> Duration {
    let grown = timing.first.saturating_mul(2_u32.saturating_pow(probes.min(30)));
    grown.min(LONGEST_PROBE).min(timing.longest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Trouble::{Broken, Busy, Denied, Down, Later};

    const TIMING: Timing = Timing { first: Duration::from_secs(1), longest: Duration::from_secs(600) };

    /// A lane, and a clock that is moved by hand.
    struct Lane {
        breaker: Breaker,
        now: Instant,
    }

    impl Lane {
        fn new() -> Self {
            Self { breaker: Breaker::default(), now: Instant::now() }
        }

        fn say(&mut self, item: i64, sign: Sign, after: Option<u64>) -> Change {
            let lesson = Lesson { item, sign, reason: "r".to_owned(), after: after.map(Duration::from_secs) };
            self.breaker.learn(&lesson, self.breaker.round(), TIMING, self.now)
        }

        fn fail(&mut self, item: i64, trouble: Trouble) -> Change {
            self.say(item, Sign::Failed(trouble), None)
        }

        fn fail_all(&mut self, items: std::ops::RangeInclusive<i64>, trouble: Trouble) -> Change {
            items.map(|item| self.fail(item, trouble)).last().unwrap()
        }
    }

    fn paused(cause: Cause, seconds: u64) -> Change {
        Change::Paused(cause, Duration::from_secs(seconds))
    }

    #[test]
    fn what_pauses_a_lane() {
        use Cause::{Down as IsDown, Misconfigured};
        let doubt = || Change::Doubt("r".to_owned());
        for (what, signs, expected) in [
            ("wrong settings, at once", vec![(1, Sign::Misconfigured(Scope::All))], paused(Misconfigured, 1)),
            ("four without an answer", (1..=4).map(|i| (i, Sign::Failed(Down))).collect(), Change::None),
            ("five", (1..=5).map(|i| (i, Sign::Failed(Busy))).collect(), paused(IsDown, 1)),
            ("one, many times", vec![(1, Sign::Failed(Down)); 100], Change::None),
            (
                "an answer between",
                (1..=8).map(|i| (i, if i == 4 { Sign::Answered } else { Sign::Failed(Down) })).collect(),
                Change::None,
            ),
            (
                "\"later\" is an answer",
                (1..=8).map(|i| (i, Sign::Failed(if i == 4 { Later } else { Down }))).collect(),
                Change::None,
            ),
            ("the first denied", vec![(1, Sign::Failed(Denied))], doubt()),
            ("one denied, many times", vec![(1, Sign::Failed(Denied)); 100], Change::None),
            ("five denied", (1..=5).map(|i| (i, Sign::Failed(Denied))).collect(), paused(Misconfigured, 1)),
            (
                "something between",
                (1..=8).map(|i| (i, Sign::Failed(if i == 4 { Broken } else { Denied }))).collect(),
                Change::None,
            ),
            ("broken ones", (1..=19).map(|i| (i, Sign::Failed(Broken))).collect(), Change::None),
            ("many broken ones", (1..=20).map(|i| (i, Sign::Failed(Broken))).collect(), paused(IsDown, 1)),
            ("our own disk", (1..=99).map(|i| (i, Sign::Nothing)).collect(), Change::None),
        ] {
            let mut lane = Lane::new();
            let last = signs.into_iter().map(|(item, sign)| lane.say(item, sign, None)).last();
            assert_eq!(last, Some(expected), "{what}");
        }
    }

    #[test]
    fn what_was_denied_while_others_were_taken_counts_no_more() {
        let mut lane = Lane::new();
        assert_eq!(lane.fail_all(1..=5, Denied), paused(Cause::Misconfigured, 1));
        assert_eq!(lane.say(6, Sign::Answered, None), Change::Resumed);
        assert_eq!(lane.fail_all(1..=5, Denied), Change::None);
        assert_eq!(lane.fail(7, Denied), Change::Doubt("r".to_owned()));
        assert_eq!(lane.fail_all(8..=11, Denied), paused(Cause::Misconfigured, 1));
        // With other settings all counts anew.
        lane.say(6, Sign::Answered, None);
        lane.breaker.forget(lane.now);
        assert_eq!(lane.fail_all(1..=5, Denied), paused(Cause::Misconfigured, 1));
    }

    #[test]
    fn probes_come_further_apart_or_when_the_backend_says() {
        let mut lane = Lane::new();
        lane.fail_all(1..=5, Down);
        for seconds in [2, 4, 8, 16, 32, 60, 60, 60] {
            lane.now += lane.breaker.probe_in(lane.now).unwrap();
            lane.breaker.probing();
            assert_eq!(lane.breaker.probe_in(lane.now), None, "one at a time");
            assert_eq!(lane.fail(6, Down), paused(Cause::Down, seconds));
        }
        for (after, seconds) in [(1, 1), (0, 1), (90, 90), (600, 600), (u64::MAX, 600)] {
            lane.breaker.probing();
            assert_eq!(lane.say(7, Sign::Failed(Busy), Some(after)), paused(Cause::Down, seconds));
            assert_eq!(lane.breaker.probe_in(lane.now), Some(Duration::from_secs(seconds)));
        }
        // A probe that shows nothing comes again; other settings are tried at once.
        lane.breaker.probing();
        assert_eq!(lane.say(8, Sign::Nothing, None), Change::None);
        assert_eq!(lane.breaker.probe_in(lane.now), Some(Duration::from_secs(60)));
        lane.breaker.forget(lane.now);
        assert_eq!(lane.breaker.probe_in(lane.now), Some(Duration::ZERO));
    }

    #[test]
    fn probes_alternate() {
        let mut lane = Lane::new();
        lane.fail_all(1..=5, Down);
        let mut kinds = Vec::new();
        for item in [6, 1, 7, 2] {
            kinds.push(lane.breaker.wants_tried());
            if lane.breaker.wants_tried() {
                assert_eq!(lane.breaker.last_tried().first(), Some(&item), "by turns");
            }
            lane.breaker.probing();
            lane.fail(item, Down);
        }
        assert_eq!(kinds, [false, true, false, true]);
        // Also those that show nothing have their turn, and not again and again.
        for item in [8, 3, 9, 5] {
            if lane.breaker.wants_tried() {
                assert_eq!(lane.breaker.last_tried().first(), Some(&item), "by turns");
            }
            lane.breaker.probing();
            lane.say(item, Sign::Nothing, None);
            assert_eq!(lane.breaker.last_tried().last(), Some(&item));
        }
    }

    #[test]
    fn attempts_of_before_the_pause_are_no_probes() {
        for (sign, expected) in
            [(Sign::Misconfigured(Scope::All), Change::None), (Sign::Failed(Down), Change::Resumed)]
        {
            let mut lane = Lane::new();
            let before = lane.breaker.round();
            (1..=5).for_each(|item| drop(lane.say(item, sign, None)));
            let next = lane.breaker.probe_in(lane.now);
            let lesson = |sign| Lesson { item: 9, sign, reason: "late".to_owned(), after: None };
            let late = lane.breaker.learn(&lesson(Sign::Failed(Down)), before, TIMING, lane.now);
            assert_eq!((late, lane.breaker.probe_in(lane.now)), (Change::None, next));
            // An old credential that was still taken says nothing of the new one; an answer says that it answers.
            assert_eq!(lane.breaker.learn(&lesson(Sign::Answered), before, TIMING, lane.now), expected);
        }
    }
}
