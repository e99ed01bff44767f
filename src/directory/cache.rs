//! Answers of a directory that is far away, kept for a while.
//!
//! In: questions, and how to ask them. Out: answers, fresh or past their time.
//! Promise: a question that is being asked is not asked again, however many wait for it, and how the asking ends, by a
//! panic or with the program, does not concern the next one; memory is bounded; an answer past its time is used only while
//! the directory cannot be reached, and says that it is stale. Other settings keep the answers.
//! Fails: [`Unavailable`], if a question has no answer at all.

use super::{CacheSettings, Unavailable};
use crate::observe::{events, metrics};
use crate::rules::{Person, Project, Tenant};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, try_join_all},
};
use std::{
    any::Any,
    cmp::Reverse,
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// How long a directory that failed is not asked what has a stale answer: mail must not wait for a time-out each time.
const DOWN_FOR: Duration = Duration::from_secs(5);

/// How long a stale answer waits for a fresh one.
const STALE_PATIENCE: Duration = Duration::from_secs(1);

/// Longest life the directory may give an answer.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Longest time that anything is kept; moka takes no more than a thousand years.
const LONGEST_KEPT: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Bytes of an entry besides its texts, roughly.
const ENTRY_BYTES: usize = 256;

/// The number of the next flight.
static NEXT_FLIGHT: AtomicU64 = AtomicU64::new(0);

/// What can be asked; names are lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Question {
    /// By prefix.
    Tenant(String),
    /// By number.
    Project(Whose, String),
    /// By address.
    Person(Whose, String),
}

/// The tenant that a question is about: who gets its prefix later has other people and projects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Whose {
    pub(super) prefix: String,
    pub(super) id: String,
}

/// What was answered.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Tenant(Option<Tenant>),
    Project(Option<Project>),
    Person(Person),
}

impl Answer {
    /// True for "there is none".
    fn is_miss(&self) -> bool {
        match self {
            Self::Tenant(tenant) => tenant.is_none(),
            Self::Project(project) => project.is_none(),
            Self::Person(person) => person.user.is_none() && person.contacts.is_empty(),
        }
    }

    /// Memory, roughly.
    fn weight(&self) -> usize {
        let name = |name: &Option<String>| name.as_ref().map_or(0, String::len);
        match self {
            Self::Tenant(None) | Self::Project(None) => 0,
            Self::Tenant(Some(t)) => {
                let text = t.id.len() + t.prefix.len() + t.name.len() + t.activity_type.len();
                text + t.policy.weight()
            }
            Self::Project(Some(p)) => p.id.len() + p.number.len() + name(&p.customer),
            Self::Person(person) => {
                let user = person.user.as_ref().map_or(0, |user| user.id.len() + name(&user.name));
                let contact =
                    |c: &crate::rules::Contact| 64 + c.id.len() + name(&c.name) + c.customer_id.len();
                user + person.contacts.iter().map(contact).sum::<usize>()
            }
        }
    }
}

/// How long the directory itself wants answers kept (RFC 9111, section 5.2.2).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Life {
    /// `max-age`, or zero for `no-cache`.
    pub(super) fresh: Option<Duration>,
    /// `no-store`.
    pub(super) forbidden: bool,
}

impl Life {
    /// What is right for both.
    pub(super) fn and(self, other: Self) -> Self {
        let fresh = self.fresh.into_iter().chain(other.fresh).min();
        Self { fresh, forbidden: self.forbidden || other.forbidden }
    }
}

/// Why nothing came back.
#[derive(Clone, Debug)]
pub(super) enum Unanswered {
    /// The directory was asked, and cannot answer.
    Down(Unavailable),
    /// It was not asked, which says nothing of it.
    NotAsked(Unavailable),
    /// It has answered, that what is known is true no more, and not what is.
    Changed(Unavailable),
}

impl From<Unavailable> for Unanswered {
    fn from(error: Unavailable) -> Self {
        Self::Down(error)
    }
}

/// What came back: an answer to each question.
pub(super) type Answers = HashMap<Question, Answer>;

/// An answer, and whether it is past its time.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) answer: Answer,
    pub(super) stale: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    answer: Answer,
    at: Instant,
    /// How long the directory itself wants it kept.
    said: Option<Duration>,
    /// How long it was to be kept otherwise, when it came.
    usual: Duration,
}

type Entries = moka::sync::Cache<Question, Entry>;
type Flight = Shared<BoxFuture<'static, Result<Arc<Answers>, Unavailable>>>;
/// By question: the number of the flight, and the flight.
type Flights = Arc<Mutex<HashMap<Question, (u64, Flight)>>>;

/// The cache.
#[derive(Clone)]
pub(super) struct Cache {
    /// Renewed caches share it, so what is under way lands in it. Written only to put another one in its place.
    entries: Arc<RwLock<Entries>>,
    /// Questions that are being asked; a [`Place`] ends each.
    flights: Flights,
    down_until: Arc<Mutex<Option<Instant>>>,
    settings: CacheSettings,
}

/// Memory of an entry, roughly.
fn weight(question: &Question, entry: &Entry) -> u32 {
    let text = match question {
        Question::Tenant(prefix) => prefix.len(),
        Question::Project(whose, name) | Question::Person(whose, name) => {
            whose.prefix.len() + whose.id.len() + name.len()
        }
    };
    u32::try_from(ENTRY_BYTES + text + entry.answer.weight()).unwrap_or(u32::MAX)
}

/// How long an answer may be of use.
fn longest_use(settings: &CacheSettings) -> Duration {
    let fresh = LONGEST_LIFE.max(settings.hits).max(settings.misses);
    settings.stale.saturating_add(fresh).min(LONGEST_KEPT)
}

fn empty(settings: &CacheSettings) -> Entries {
    let builder = moka::sync::Cache::builder().max_capacity(settings.size).weigher(weight);
    builder.time_to_live(longest_use(settings)).build()
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cache {
    pub(super) fn new(settings: CacheSettings) -> Self {
        let entries = Arc::new(RwLock::new(empty(&settings)));
        Self { entries, flights: Arc::default(), down_until: Arc::default(), settings }
    }

    /// The same answers with other settings: they are as old as they were, and fresh for as long as the new settings
    /// say. If there is less room, the newest stay.
    pub(super) fn renewed(&self, settings: CacheSettings) -> Self {
        let renewed = Self { settings, down_until: Arc::default(), ..self.clone() };
        let settings = &renewed.settings;
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let policy = entries.policy();
        let wanted = (Some(settings.size), Some(longest_use(settings)));
        if (policy.max_capacity(), policy.time_to_live()) != wanted {
            let mut known: Vec<_> = entries.iter().filter(|(_, entry)| renewed.is_usable(entry)).collect();
            known.sort_by_key(|(_, entry)| Reverse(entry.at));
            let mut room = settings.size;
            known.retain(|(question, entry)| {
                let rest = room.checked_sub(weight(question, entry).into());
                room = rest.unwrap_or(room);
                rest.is_some()
            });
            *entries = empty(settings);
            // The newest at last: it is the last to go.
            for (question, entry) in known.into_iter().rev() {
                entries.insert(question.as_ref().clone(), entry);
            }
        }
        drop(entries);
        renewed
    }

    /// What is known of the tenants with these prefixes is past its time from here on, and so is what was asked before and
    /// comes later; with an empty one among them, that of all tenants. It stays for a time in which nobody can answer.
    pub(super) fn expire(&self, prefixes: &[String]) {
        let concerns = |question: &Question| {
            let (Question::Tenant(prefix)
            | Question::Project(Whose { prefix, .. }, _)
            | Question::Person(Whose { prefix, .. }, _)) = question;
            prefixes.iter().any(|one| one.is_empty() || one == prefix)
        };
        // Held to the end: nothing lands meanwhile.
        let mut flights = locked(&self.flights);
        let gone: Vec<_> = flights.extract_if(|question, _| concerns(question)).collect();
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let known: Vec<_> = entries.iter().filter(|(question, _)| concerns(question)).collect();
        for (question, mut entry) in known {
            let age = entry.at.elapsed();
            if age <= self.fresh(&entry) {
                entry.said = Some(age);
                entries.insert(question.as_ref().clone(), entry);
            }
        }
        drop(entries);
        drop(flights);
        drop(gone);
    }

    /// Answers to `questions`, in their order. What is not known fresh is asked with one call of `fetch`.
    pub(super) async fn ask<F, E>(
        &self,
        questions: Vec<Question>,
        fetch: F,
    ) -> Result<Vec<Known>, Unavailable>
    where
        F: FnOnce(Vec<Question>) -> BoxFuture<'static, Result<(Answers, Life), E>> + Send + 'static,
        E: Into<Unanswered> + 'static,
    {
        let mut known = HashMap::new();
        let mut wanted = Vec::new();
        for question in &questions {
            let kept = self.kept(question);
            if kept.as_ref().is_none_or(|kept| kept.stale) && !wanted.contains(question) {
                wanted.push(question.clone());
            }
            known.extend(kept.map(|kept| (question.clone(), kept)));
        }
        metrics::looked_up("cache", questions.len().saturating_sub(wanted.len()));
        if !wanted.is_empty() {
            let (count, all_stale) =
                (wanted.len(), wanted.iter().all(|question| known.contains_key(question)));
            match self.refresh(wanted, all_stale, fetch).await {
                Ok(answers) => {
                    metrics::looked_up("asked", count);
                    let fresh = |(question, answer)| (question, Known { answer, stale: false });
                    known.extend(answers.into_iter().map(fresh));
                }
                // They are gone if the directory has said that they are true no more.
                Err(error) if all_stale && questions.iter().all(|question| self.kept(question).is_some()) => {
                    metrics::looked_up("stale", count);
                    events::directory_stale(&error);
                }
                Err(error) => {
                    metrics::looked_up("failed", count);
                    return Err(error);
                }
            }
        }
        let missing = || Unavailable("the backend left a question without answer".to_owned());
        questions.iter().map(|question| known.get(question).cloned().ok_or_else(missing)).collect()
    }

    /// An answer that may still be used.
    fn kept(&self, question: &Question) -> Option<Known> {
        let entry = self.entries.read().unwrap_or_else(PoisonError::into_inner).get(question)?;
        let stale = entry.at.elapsed() > self.fresh(&entry);
        self.is_usable(&entry).then_some(Known { answer: entry.answer, stale })
    }

    /// What is known and may be used, but is past its time by more than `by`: nobody could answer since.
    pub(super) fn past(&self, question: &Question, by: Duration) -> Option<Answer> {
        let entry = self.entries.read().unwrap_or_else(PoisonError::into_inner).get(question)?;
        let is_past = entry.at.elapsed() > self.fresh(&entry).saturating_add(by);
        (is_past && self.is_usable(&entry)).then_some(entry.answer)
    }

    /// The tenants that are known, fresh or not.
    pub(super) fn tenants(&self) -> Vec<Tenant> {
        // Nobody waits while they are walked through.
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner).clone();
        let tenant = |entry: Entry| match entry.answer {
            Answer::Tenant(tenant) => tenant,
            Answer::Project(_) | Answer::Person(_) => None,
        };
        entries.iter().filter_map(|(_, entry)| tenant(entry)).collect()
    }

    fn fresh(&self, entry: &Entry) -> Duration {
        // Other settings make no "there is none" fresh again that was past its time: it would refuse somebody.
        let most = if entry.answer.is_miss() { entry.usual } else { Duration::MAX };
        let usual = self.usual(&entry.answer).min(most);
        entry.said.map_or(usual, |said| said.min(LONGEST_LIFE))
    }

    fn usual(&self, answer: &Answer) -> Duration {
        if answer.is_miss() { self.settings.misses } else { self.settings.hits }
    }

    fn is_usable(&self, entry: &Entry) -> bool {
        entry.at.elapsed() <= self.fresh(entry).saturating_add(self.settings.stale)
    }

    async fn refresh<F, E>(
        &self,
        wanted: Vec<Question>,
        all_stale: bool,
        fetch: F,
    ) -> Result<Answers, Unavailable>
    where
        F: FnOnce(Vec<Question>) -> BoxFuture<'static, Result<(Answers, Life), E>> + Send + 'static,
        E: Into<Unanswered> + 'static,
    {
        let down_until = *locked(&self.down_until);
        if all_stale && down_until.is_some_and(|until| until > Instant::now()) {
            return Err(Unavailable("it did not answer a moment ago".to_owned()));
        }
        let flights = try_join_all(self.flights_for(wanted, fetch));
        let maps = if all_stale {
            let slow = |_| Unavailable(format!("no answer within {} s", STALE_PATIENCE.as_secs()));
            tokio::time::timeout(STALE_PATIENCE, flights).await.map_err(slow)??
        } else {
            flights.await?
        };
        Ok(maps.iter().flat_map(|map| map.iter().map(|(q, a)| (q.clone(), a.clone()))).collect())
    }

    /// The flights that bring the answers: those under way, and one more for the rest. A flight is a task of its own:
    /// whoever asked first may stop waiting, and the others still get their answer.
    fn flights_for<F, E>(&self, wanted: Vec<Question>, fetch: F) -> Vec<Flight>
    where
        F: FnOnce(Vec<Question>) -> BoxFuture<'static, Result<(Answers, Life), E>> + Send + 'static,
        E: Into<Unanswered> + 'static,
    {
        let (mut joined, mut ours) = (Vec::new(), Vec::new());
        let mut flights = locked(&self.flights);
        for question in wanted {
            match flights.get(&question) {
                Some((_, flight)) => joined.push(flight.clone()),
                None => ours.push(question),
            }
        }
        if ours.is_empty() {
            return joined;
        }
        let (tell, told) = oneshot::channel();
        let given_up = |_| Err(Unavailable("the look-up was given up".to_owned()));
        let flight = told.map(move |told| told.unwrap_or_else(given_up)).boxed().shared();
        let number = NEXT_FLIGHT.fetch_add(1, Ordering::Relaxed);
        flights.extend(ours.iter().map(|question| (question.clone(), (number, flight.clone()))));
        // Whoever drops the task drops its place too, perhaps at once, and that takes the lock.
        drop(flights);
        joined.push(flight);
        let place = Place { flights: Arc::clone(&self.flights), number, questions: ours };
        let cache = self.clone();
        tokio::spawn(async move {
            let questions = place.questions.clone();
            let asked = AssertUnwindSafe(async move { fetch(questions).await }).catch_unwind().await;
            let asked = asked.map(|asked| asked.map_err(Into::into));
            let asked = asked.unwrap_or_else(|panic| Err(panicked(panic.as_ref()).into()));
            let answers = cache.land(&place, asked);
            drop(place);
            let _ = tell.send(answers); // nobody may be waiting any more
        });
        joined
    }

    /// Keeps what a flight brought.
    fn land(
        &self,
        place: &Place,
        answer: Result<(Answers, Life), Unanswered>,
    ) -> Result<Arc<Answers>, Unavailable> {
        let (answers, life) = match answer {
            Ok(answer) => {
                *locked(&self.down_until) = None;
                answer
            }
            Err(Unanswered::Down(error)) => {
                *locked(&self.down_until) = Some(Instant::now() + DOWN_FOR);
                return Err(error);
            }
            Err(Unanswered::NotAsked(error)) => return Err(error),
            Err(Unanswered::Changed(error)) => {
                let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
                place.questions.iter().for_each(|question| entries.invalidate(question));
                return Err(error);
            }
        };
        let flights = locked(&self.flights);
        // Or what was known when it was asked is past its time meanwhile.
        let is_ours =
            |question: &Question| flights.get(question).is_some_and(|(number, _)| *number == place.number);
        let (at, entries) = (Instant::now(), self.entries.read().unwrap_or_else(PoisonError::into_inner));
        for (question, answer) in answers.iter().filter(|(question, _)| is_ours(question)) {
            if life.forbidden {
                entries.invalidate(question); // what was known before is not true any more
                continue;
            }
            let usual = self.usual(answer);
            entries.insert(question.clone(), Entry { answer: answer.clone(), at, said: life.fresh, usual });
        }
        drop(entries);
        drop(flights);
        Ok(Arc::new(answers))
    }
}

/// A flight's place among the flights: it is given up however the flight ends.
struct Place {
    flights: Flights,
    number: u64,
    questions: Vec<Question>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut flights = locked(&self.flights);
        let ours =
            |question: &&Question| flights.get(question).is_some_and(|(number, _)| *number == self.number);
        let ours: Vec<_> = self.questions.iter().filter(ours).collect();
        let landed: Vec<_> = ours.into_iter().map(|question| flights.remove(question)).collect();
        drop(flights);
        drop(landed);
    }
}

/// For the log of who waits for the answer.
fn panicked(panic: &(dyn Any + Send)) -> Unavailable {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
    let line = text.lines().next().unwrap_or_default();
    Unavailable(format!("a fault of activity-milter: the look-up panicked: {line}: please report it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn cache(hits: u64, misses: u64, stale: u64) -> Cache {
        let time = Duration::from_millis;
        Cache::new(CacheSettings {
            hits: time(hits),
            misses: time(misses),
            stale: time(stale),
            size: 1 << 20,
        })
    }

    fn project(number: &str) -> Question {
        let whose = Whose { prefix: "t".to_owned(), id: "t-1".to_owned() };
        Question::Project(whose, number.to_owned())
    }

    /// A directory that knows every project whose number is not `0`.
    fn answer(questions: Vec<Question>) -> Answers {
        let of = |question: &Question| match question {
            Question::Project(_, number) if number != "0" => Answer::Project(Some(Project {
                id: format!("p-{number}"),
                number: number.clone(),
                customer: None,
            })),
            _ => Answer::Project(None),
        };
        questions.into_iter().map(|question| (question.clone(), of(&question))).collect()
    }

    async fn ask(
        cache: &Cache,
        calls: &Arc<AtomicUsize>,
        numbers: &[&str],
        up: bool,
    ) -> Result<Vec<Known>, Unavailable> {
        let calls = Arc::clone(calls);
        let fetch = move |questions: Vec<Question>| {
            async move {
                calls.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
                if up {
                    Ok((answer(questions), Life::default()))
                } else {
                    Err(Unavailable("down".to_owned()))
                }
            }
            .boxed()
        };
        cache.ask(numbers.iter().map(|n| project(n)).collect(), fetch).await
    }

    #[tokio::test]
    async fn a_question_that_is_being_asked_is_not_asked_again() {
        let (cache, calls) = (cache(60_000, 60_000, 0), Arc::default());
        let many = (0..100).map(|_| ask(&cache, &calls, &["1", "2", "1"], true));
        for known in futures_util::future::join_all(many).await {
            let known = known.unwrap();
            assert_eq!(known.len(), 3);
            assert!(matches!(&known[2].answer, Answer::Project(Some(p)) if p.id == "p-1"));
        }
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        // One of two is known, and only the other is asked; one who leaves harms nobody.
        let hasty =
            tokio::time::timeout(Duration::from_millis(1), ask(&cache, &calls, &["2", "3"], true)).await;
        assert!(hasty.is_err());
        ask(&cache, &calls, &["3"], true).await.unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn answers_past_their_time_are_used_while_it_is_down_and_say_so() {
        let (cache, calls) = (cache(50, 10, 60_000), Arc::default());
        let known = ask(&cache, &calls, &["1", "0"], true).await.unwrap();
        assert!(known.iter().all(|known| !known.stale));
        tokio::time::sleep(Duration::from_millis(60)).await;
        for _ in 0..10 {
            let known = ask(&cache, &calls, &["1", "0"], false).await.unwrap();
            assert!(known.iter().all(|known| known.stale));
        }
        assert_eq!(calls.load(Ordering::SeqCst), 2, "it failed a moment ago, and is left alone");
        assert!(ask(&cache, &calls, &["1", "new"], false).await.is_err());
        let known = ask(&cache, &calls, &["1", "new"], true).await.unwrap();
        assert!(known.iter().all(|known| !known.stale));
    }

    #[tokio::test]
    async fn answers_too_old_are_none() {
        let (cache, calls) = (cache(10, 10, 10), Arc::default());
        ask(&cache, &calls, &["1"], true).await.unwrap();
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert!(ask(&cache, &calls, &["1"], false).await.is_err());
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let settings = CacheSettings {
            hits: Duration::from_secs(60),
            misses: Duration::from_secs(60),
            stale: Duration::ZERO,
            size: 100 * ENTRY_BYTES as u64,
        };
        let (cache, calls) = (Cache::new(settings), Arc::default());
        let numbers: Vec<String> = (0..500).map(|n| n.to_string()).collect();
        ask(&cache, &calls, &numbers.iter().map(String::as_str).collect::<Vec<_>>(), true).await.unwrap();
        assert!((1..=100).contains(&count(&cache)), "{}", count(&cache));
    }

    fn count(cache: &Cache) -> u64 {
        let entries = cache.entries.read().unwrap();
        entries.run_pending_tasks();
        entries.entry_count()
    }

    #[tokio::test]
    async fn a_flight_that_panics_lands() {
        type Asked = Result<(Answers, Life), Unavailable>;
        let panics: [fn(Vec<Question>) -> BoxFuture<'static, Asked>; 3] = [
            |_| panic!("a fault\nof ours"),
            |_| async { panic!("a fault") }.boxed(),
            |questions| async move { panic!("a fault of {} questions", questions.len()) }.boxed(),
        ];
        for fault in panics {
            let (cache, calls) = (cache(60_000, 60_000, 0), Arc::default());
            let (first, joined) = tokio::join!(
                cache.ask(vec![project("1"), project("2")], fault),
                ask(&cache, &calls, &["2"], true)
            );
            for failed in [first, joined] {
                let Unavailable(error) = failed.unwrap_err();
                assert!(error.contains("panicked: a fault") && !error.contains('\n'), "{error}");
            }
            assert!(locked(&cache.flights).is_empty());
            assert_eq!(ask(&cache, &calls, &["1", "2"], true).await.unwrap().len(), 2);
        }
    }

    #[test]
    fn a_flight_that_the_runtime_drops_lands() {
        let (cache, calls) = (cache(60_000, 60_000, 0), Arc::default());
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ended = runtime();
        let never = |_| futures_util::future::pending::<Result<_, Unavailable>>().boxed();
        ended.block_on(async {
            let waits = cache.ask(vec![project("1")], never);
            assert!(tokio::time::timeout(Duration::from_millis(20), waits).await.is_err());
        });
        let flight = locked(&cache.flights)[&project("1")].1.clone();
        drop(ended);
        assert_eq!(runtime().block_on(flight).unwrap_err().0, "the look-up was given up");
        // A runtime that has ended drops what is started there at once.
        let handle = {
            let ended = runtime();
            ended.handle().clone()
        };
        let flights = {
            let _in = handle.enter();
            cache.flights_for(vec![project("1")], never)
        };
        assert!(runtime().block_on(flights[0].clone()).is_err());
        assert!(locked(&cache.flights).is_empty());
        assert_eq!(runtime().block_on(ask(&cache, &calls, &["1"], true)).unwrap().len(), 1);
    }

    #[tokio::test]
    async fn any_time_will_do() {
        let second = Duration::from_secs(1);
        for time in [Duration::ZERO, Duration::from_nanos(1), second * 31_557_600 * 5000, Duration::MAX] {
            for (hits, misses, stale) in
                [(time, time, time), (time, second, second), (second, time, second), (second, second, time)]
            {
                for size in [0, 1 << 20, u64::MAX] {
                    let settings = CacheSettings { hits, misses, stale, size };
                    let (cache, calls) = (Cache::new(settings.clone()), Arc::default());
                    for cache in [cache.clone(), cache.renewed(settings)] {
                        let known = ask(&cache, &calls, &["1", "0"], true);
                        assert_eq!(known.await.unwrap().len(), 2, "{hits:?} {misses:?} {stale:?} {size}");
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn other_settings_keep_the_answers_and_their_age() {
        let (first, calls) = (cache(50, 50, 60_000), Arc::default());
        ask(&first, &calls, &["1", "0"], true).await.unwrap();
        let settings = |hits, stale, size| CacheSettings {
            hits: Duration::from_millis(hits),
            stale: Duration::from_millis(stale),
            size,
            ..first.settings.clone()
        };
        tokio::time::sleep(Duration::from_millis(60)).await;
        // The backend is down all the time, and there are many reloads.
        let mut now = first.clone();
        for reload in 0..50 {
            now = now.renewed(settings(50, 60_000 + reload % 3, (1 << 20) + reload % 5));
            let known = ask(&now, &calls, &["1", "0"], false).await.unwrap();
            assert!(known.iter().all(|known| known.stale), "{reload}");
            assert!(matches!(&known[0].answer, Answer::Project(Some(p)) if p.id == "p-1"), "{reload}");
        }
        assert_eq!(calls.load(Ordering::SeqCst), 51, "each reload asks once whether it is back");
        // Fresh again, by longer times; then too old, by shorter ones.
        let longer = now.renewed(settings(60_000, 60_000, 1 << 20));
        assert!(!ask(&longer, &calls, &["1"], false).await.unwrap()[0].stale);
        let shorter = longer.renewed(settings(10, 10, 1 << 20));
        assert!(ask(&shorter, &calls, &["1"], false).await.is_err());
        assert!(
            ask(&shorter.renewed(settings(60_000, 60_000, 1 << 20)), &calls, &["1"], false).await.is_err()
        );
    }

    #[tokio::test]
    async fn with_less_room_the_newest_answers_stay() {
        let (large, calls) = (cache(60_000, 60_000, 0), Arc::default());
        let numbers: Vec<String> = (100..200).map(|n| n.to_string()).collect();
        for some in numbers.chunks(10) {
            let some: Vec<&str> = some.iter().map(String::as_str).collect();
            ask(&large, &calls, &some, true).await.unwrap();
        }
        let each = u64::from(weight(
            &project("100"),
            &Entry {
                answer: answer(vec![project("100")])[&project("100")].clone(),
                at: Instant::now(),
                said: None,
                usual: Duration::MAX,
            },
        ));
        let small = large.renewed(CacheSettings { size: 20 * each + each / 2, ..large.settings.clone() });
        assert_eq!(count(&small), 20);
        let newest: Vec<&str> = numbers[80..].iter().map(String::as_str).collect();
        assert!(ask(&small, &calls, &newest, false).await.is_ok());
        assert_eq!(calls.load(Ordering::SeqCst), 10);
        assert!(ask(&small, &calls, &["179"], false).await.is_err());
    }

    #[tokio::test]
    async fn what_is_under_way_lands_in_the_renewed_cache() {
        for size in [1 << 20, 1 << 19] {
            let (old, calls) = (cache(60_000, 60_000, 0), Arc::default());
            let renew = async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let new = old.renewed(CacheSettings { size, ..old.settings.clone() });
                // Who asks it now waits for the same flight.
                ask(&new, &calls, &["1"], false).await.unwrap();
                new
            };
            let (known, new) = tokio::join!(ask(&old, &calls, &["1"], true), renew);
            known.unwrap();
            assert!(ask(&new, &calls, &["1"], false).await.is_ok());
            assert_eq!(calls.load(Ordering::SeqCst), 1);
        }
    }

    #[tokio::test]
    async fn other_settings_make_no_refusal_fresh_again() {
        let (first, calls) = (cache(60_000, 20, 60_000), Arc::default());
        ask(&first, &calls, &["0"], true).await.unwrap();
        tokio::time::sleep(Duration::from_millis(60)).await;
        let longer = Duration::from_secs(60);
        let settings = CacheSettings { misses: longer, ..first.settings.clone() };
        let known = ask(&first.renewed(settings), &calls, &["0"], true).await.unwrap();
        assert!(!known[0].stale);
        assert_eq!(calls.load(Ordering::SeqCst), 2, "it is asked again, not believed");
    }

    #[tokio::test]
    async fn what_was_not_asked_says_nothing_of_the_directory() {
        let (cache, calls) = (cache(10, 10, 10_000), Arc::new(AtomicUsize::new(0)));
        assert!(ask(&cache, &calls, &["1"], true).await.is_ok());
        tokio::time::sleep(Duration::from_millis(30)).await;
        let busy = || Unanswered::NotAsked(Unavailable("too many".to_owned()));
        let not_asked = move |_| async move { Err::<(Answers, Life), _>(busy()) }.boxed();
        let error = cache.ask(vec![project("2")], not_asked).await.unwrap_err().0;
        assert_eq!(error, "too many");
        let known = cache.ask(vec![project("1")], not_asked).await.unwrap();
        assert!(known[0].stale, "what is past its time is better than nothing");
        let known = ask(&cache, &calls, &["1"], true).await.unwrap();
        assert!(!known[0].stale, "it is asked again at once");
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }

    /// Q51
    #[tokio::test]
    async fn what_is_past_its_time_by_a_word_is_asked_again() {
        let whose = |prefix: &str| Whose { prefix: prefix.to_owned(), id: "1".to_owned() };
        let of = |prefix: &str| {
            let (whose, text) = (whose(prefix), prefix.to_owned());
            vec![
                Question::Tenant(text),
                Question::Project(whose.clone(), "7".into()),
                Question::Person(whose, "a@b.test".into()),
            ]
        };
        let answered = |questions: Vec<Question>| {
            let answer = |question: Question| {
                let answer = match &question {
                    Question::Tenant(_) => Answer::Tenant(None),
                    Question::Project(..) => Answer::Project(None),
                    Question::Person(..) => Answer::Person(Person::default()),
                };
                (question, answer)
            };
            async move {
                Ok::<_, Unavailable>((
                    questions.into_iter().map(answer).collect::<Answers>(),
                    Life::default(),
                ))
            }
            .boxed()
        };
        let down =
            |_: Vec<Question>| async { Err::<(Answers, Life), _>(Unavailable("down".to_owned())) }.boxed();
        for (words, past, rest) in [
            (&["a"][..], &["a"][..], &["b", "a.b"][..]),
            (&["b", "a.b"], &["b", "a.b"], &["a"]),
            (&[""], &["a", "b", "a.b"], &[]),
        ] {
            let cache = cache(60_000, 60_000, 60_000);
            for prefix in ["a", "b", "a.b"] {
                cache.ask(of(prefix), answered).await.unwrap();
            }
            cache.expire(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
            tokio::time::sleep(Duration::from_millis(2)).await;
            for prefix in past {
                let known = cache.ask(of(prefix), down).await.unwrap();
                assert!(
                    known.iter().all(|known| known.stale),
                    "{prefix} after {words:?}: it stays for a time of need"
                );
                *locked(&cache.down_until) = None;
                let known = cache.ask(of(prefix), answered).await.unwrap();
                assert!(known.iter().all(|known| !known.stale), "{prefix} after {words:?}");
            }
            for prefix in rest {
                let known = cache.ask(of(prefix), down).await.unwrap();
                assert!(known.iter().all(|known| !known.stale), "{prefix} after {words:?}: nobody asked");
            }
        }
        // What was asked before the word, and answered after it, is for who asked, and nobody else.
        let cache = cache(60_000, 60_000, 60_000);
        let (tell, told) = oneshot::channel::<()>();
        let late = move |questions: Vec<Question>| {
            async move {
                let _ = told.await;
                answered(questions).await
            }
            .boxed()
        };
        let asking = tokio::spawn({
            let (cache, questions) = (cache.clone(), of("a"));
            async move { cache.ask(questions, late).await }
        });
        while locked(&cache.flights).is_empty() {
            tokio::task::yield_now().await;
        }
        cache.expire(&["a".to_owned()]);
        let first = cache
            .flights_for(of("a"), |_| std::future::pending::<Result<(Answers, Life), Unavailable>>().boxed());
        tell.send(()).unwrap();
        assert_eq!(asking.await.unwrap().unwrap().len(), 3);
        assert_eq!(count(&cache), 0, "nothing of it is kept");
        assert_eq!(
            (first.len(), locked(&cache.flights).len()),
            (1, 3),
            "who asked after the word still waits for his answer"
        );
    }
}
