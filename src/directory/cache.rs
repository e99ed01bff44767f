//! Answers of a directory that is far away, kept for a while.
//!
//! In: questions, and how to ask them. Out: answers, fresh or past their time.
//! Promise: a question that is being asked is not asked again, however many wait for it; memory is bounded; an answer
//! past its time is used only while the directory cannot be reached, and says that it is stale.
//! Fails: [`Unavailable`], if a question has no answer at all.

use super::{CacheSettings, Unavailable};
use crate::observe::{events, metrics};
use crate::rules::{Person, Project, Tenant};
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, try_join_all},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long a directory that failed is not asked what has a stale answer: mail must not wait for a time-out each time.
const DOWN_FOR: Duration = Duration::from_secs(5);

/// How long a stale answer waits for a fresh one.
const STALE_PATIENCE: Duration = Duration::from_secs(1);

/// Longest life the directory may give an answer.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Bytes of an entry besides its texts, roughly.
const ENTRY_BYTES: usize = 256;

/// What can be asked; names are lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Question {
    /// By prefix.
    Tenant(String),
    /// By the tenant's prefix and number.
    Project(String, String),
    /// By the tenant's prefix and address.
    Person(String, String),
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
            Self::Tenant(Some(t)) => t.id.len() + t.prefix.len() + t.name.len() + t.activity_type.len(),
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
    fresh: Duration,
}

type Flight = Shared<BoxFuture<'static, Result<Arc<Answers>, Unavailable>>>;

/// The cache.
#[derive(Clone)]
pub(super) struct Cache {
    entries: moka::sync::Cache<Question, Entry>,
    /// Questions that are being asked.
    flights: Arc<Mutex<HashMap<Question, Flight>>>,
    down_until: Arc<Mutex<Option<Instant>>>,
    settings: CacheSettings,
}

impl Cache {
    pub(super) fn new(settings: CacheSettings) -> Self {
        let weigh = |question: &Question, entry: &Entry| {
            let text = match question {
                Question::Tenant(prefix) => prefix.len(),
                Question::Project(tenant, name) | Question::Person(tenant, name) => tenant.len() + name.len(),
            };
            u32::try_from(ENTRY_BYTES + text + entry.answer.weight()).unwrap_or(u32::MAX)
        };
        let entries = moka::sync::Cache::builder()
            .max_capacity(settings.size)
            .weigher(weigh)
            .time_to_live(settings.stale.saturating_add(LONGEST_LIFE.max(settings.hits)))
            .build();
        Self { entries, flights: Arc::default(), down_until: Arc::default(), settings }
    }

    /// Answers to `questions`, in their order. What is not known fresh is asked with one call of `fetch`.
    pub(super) async fn ask<F>(&self, questions: Vec<Question>, fetch: F) -> Result<Vec<Known>, Unavailable>
    where
        F: FnOnce(Vec<Question>) -> BoxFuture<'static, Result<(Answers, Life), Unavailable>>,
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
                Err(error) if all_stale => {
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
        let entry = self.entries.get(question)?;
        let age = entry.at.elapsed();
        (age <= entry.fresh.saturating_add(self.settings.stale))
            .then(|| Known { answer: entry.answer, stale: age > entry.fresh })
    }

    async fn refresh<F>(
        &self,
        wanted: Vec<Question>,
        all_stale: bool,
        fetch: F,
    ) -> Result<Answers, Unavailable>
    where
        F: FnOnce(Vec<Question>) -> BoxFuture<'static, Result<(Answers, Life), Unavailable>>,
    {
        let lock = |down: &Mutex<Option<Instant>>| *down.lock().unwrap_or_else(PoisonError::into_inner);
        if all_stale && lock(&self.down_until).is_some_and(|until| until > Instant::now()) {
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
    fn flights_for<F>(&self, wanted: Vec<Question>, fetch: F) -> Vec<Flight>
    where
        F: FnOnce(Vec<Question>) -> BoxFuture<'static, Result<(Answers, Life), Unavailable>>,
    {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut joined, mut ours) = (Vec::new(), Vec::new());
        for question in wanted {
            match flights.get(&question) {
                Some(flight) => joined.push(flight.clone()),
                None => ours.push(question),
            }
        }
        if !ours.is_empty() {
            let (cache, answer, questions) = (self.clone(), fetch(ours.clone()), ours.clone());
            let task = tokio::spawn(async move {
                let answer = answer.await;
                cache.land(&questions, answer)
            });
            let lost = |error: tokio::task::JoinError| Err(Unavailable(error.to_string()));
            let flight = task.map(move |done| done.unwrap_or_else(lost)).boxed().shared();
            flights.extend(ours.into_iter().map(|question| (question, flight.clone())));
            joined.push(flight);
        }
        joined
    }

    /// Keeps what a flight brought, and ends the flight.
    fn land(
        &self,
        questions: &[Question],
        answer: Result<(Answers, Life), Unavailable>,
    ) -> Result<Arc<Answers>, Unavailable> {
        let down = answer.is_err().then(|| Instant::now() + DOWN_FOR);
        *self.down_until.lock().unwrap_or_else(PoisonError::into_inner) = down;
        if let Ok((answers, life)) = &answer {
            for (question, answer) in answers.iter().filter(|_| !life.forbidden) {
                let usual = if answer.is_miss() { self.settings.misses } else { self.settings.hits };
                let fresh = life.fresh.map_or(usual, |fresh| fresh.min(LONGEST_LIFE));
                let entry = Entry { answer: answer.clone(), at: Instant::now(), fresh };
                self.entries.insert(question.clone(), entry);
            }
        }
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        questions.iter().for_each(|question| drop(flights.remove(question)));
        answer.map(|(answers, _)| Arc::new(answers))
    }
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
        Question::Project("t".to_owned(), number.to_owned())
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
        cache.entries.run_pending_tasks();
        assert!((1..=100).contains(&cache.entries.entry_count()), "{}", cache.entries.entry_count());
    }
}
