//! The copy of one company: in memory for answers, in a file for the next start.
//!
//! In: pages of rows, and what became of polls and passes. Out: what is there, how old it is, and how far the first full
//! pass is.
//! Promise: what is answered from is memory, and who writes holds it up for a page at most; what cannot be written to the
//! file is in memory all the same, and the file gets all of it as soon as it takes it. Times are by clocks that nobody
//! sets; what the file says of times to come is not believed.
//! Fails: never; [`CopyState`] says what is wrong.

use super::{
    client::Client,
    clock::Past,
    copied::{Change, Copied},
    error::Failed,
    store::{CopyError, Key, Standing, Store, look},
};
use crate::observe::events;
use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// How often the first full pass is spoken of.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// How often, and from when on it is too old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// From one poll to the next.
    pub poll: Duration,
    /// From one full pass to the next.
    pub full_pass: Duration,
    /// Age of the last good poll from which on nobody is refused by it.
    pub stale: Duration,
}

/// One company's copy.
#[derive(Debug)]
pub struct CompanyCopy {
    key: Key,
    /// None for those who only read.
    store: Option<Arc<Store>>,
    copied: RwLock<Copied>,
    state: Mutex<State>,
    way: Mutex<Way>,
    /// The way is another one.
    pub(super) changed: Notify,
}

/// How to synchronise it, as the newest settings say.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) client: Arc<Client>,
    pub(super) times: Times,
}

/// What was going on when something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    Poll,
    Pass,
}

#[derive(Debug)]
struct State {
    standing: Standing,
    began: Past,
    under_way: Option<UnderWay>,
    /// The first full pass was spoken of.
    told: bool,
    troubles: [Option<Trouble>; 2],
    /// The file lacks something that is in memory.
    owed: bool,
}

#[derive(Debug)]
struct UnderWay {
    began: Instant,
    told: Instant,
    calls: usize,
    skipped: usize,
}

#[derive(Clone, Debug)]
struct Trouble {
    kind: &'static str,
    text: String,
}

/// How a company's copy is.
#[derive(Clone, Debug, Default)]
pub struct CopyState {
    /// The company's prefix.
    pub tenant: String,
    /// Users.
    pub users: usize,
    /// Contact persons.
    pub contacts: usize,
    /// Projects.
    pub projects: usize,
    /// A full pass was completed: it answers.
    pub is_complete: bool,
    /// Since the last good poll; none before the first, or if nobody knows.
    pub age: Option<Duration>,
    /// Since we began to make it, or found it.
    pub known_for: Duration,
    /// Nobody is refused by it: the last good poll is too long ago.
    pub is_stale: bool,
    /// Calls of the full pass that is under way.
    pub calls: Option<usize>,
    /// Why polls or full passes fail.
    pub trouble: Option<String>,
    /// Users of `aliases` whom it does not have.
    pub unknown_aliases: Vec<String>,
}

impl CopyState {
    /// False if somebody should look.
    pub fn is_well(&self) -> bool {
        self.is_complete && !self.is_stale && self.trouble.is_none() && self.unknown_aliases.is_empty()
    }

    /// What there is: `3 users, 10 contacts, 2 projects`.
    pub fn counts(&self) -> String {
        let Self { users, contacts, projects, .. } = self;
        format!("{users} users, {contacts} contacts, {projects} projects")
    }

    /// How it is, in words, without what there is.
    pub fn standing(&self) -> String {
        let mut words = match (self.is_complete, self.calls, self.age) {
            (false, Some(calls), _) => format!("the first copy is being made: {calls} calls so far"),
            (false, None, _) if self.users + self.contacts + self.projects > 0 => {
                "the first copy is being made, and is not complete".to_owned()
            }
            (false, None, _) => "there is no copy yet".to_owned(),
            (true, _, Some(age)) => {
                let age = humantime::format_duration(Duration::from_secs(age.as_secs()));
                format!("last good poll {age} ago")
            }
            (true, _, None) => "last good poll at an unknown time".to_owned(),
        };
        if self.is_complete && self.is_stale {
            words.push_str(", too long: nobody is refused by it");
        }
        if let Some(trouble) = &self.trouble {
            words.push_str("; ");
            words.push_str(trouble);
        }
        if !self.unknown_aliases.is_empty() {
            words.push_str("; aliases of nobody: ");
            words.push_str(&self.unknown_aliases.join(", "));
        }
        words
    }
}

impl fmt::Display for CopyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.tenant, self.counts(), self.standing())
    }
}

/// Makes copies of companies; they share a file.
#[derive(Clone, Debug)]
pub struct Copies(Arc<Store>);

impl Copies {
    /// Opens the file, or makes it.
    /// # Errors
    /// [`CopyError`]
    pub fn open(path: &Path) -> Result<Self, CopyError> {
        Store::open(path).map(Self)
    }

    /// Where.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The copy of a company, with what the file has of it.
    pub fn of(&self, prefix: &str, client: Arc<Client>, times: Times) -> Arc<CompanyCopy> {
        let key = key(prefix, &client);
        let loaded = self.0.load(&key);
        let is_unread = loaded.is_none();
        let store = Some(Arc::clone(&self.0));
        let copy = CompanyCopy::new(key, store, loaded.unwrap_or_default(), Way { client, times });
        // What the file has and we do not know of must not come back at the next start.
        copy.lock().owed = is_unread;
        Arc::new(copy)
    }

    /// Removes the companies that are none of these from the file.
    pub fn keep_only<'a>(&self, copies: impl IntoIterator<Item = &'a CompanyCopy>) {
        self.0.keep_only(&copies.into_iter().map(|copy| copy.key.clone()).collect::<Vec<_>>());
    }

    /// The copies of companies as the file has them, for those who only read. Nothing is made or changed.
    /// # Errors
    /// [`CopyError`]; a file that is not there, or useless, is none.
    pub fn look(
        path: &Path,
        companies: Vec<(String, Arc<Client>)>,
        times: Times,
    ) -> Result<Vec<Arc<CompanyCopy>>, CopyError> {
        let keys: Vec<Key> = companies.iter().map(|(prefix, client)| key(prefix, client)).collect();
        let found = look(path, &keys)?.into_iter().zip(keys).zip(companies);
        let copy = |((loaded, key), (_, client))| CompanyCopy::new(key, None, loaded, Way { client, times });
        Ok(found.map(copy).map(Arc::new).collect())
    }
}

fn key(prefix: &str, client: &Client) -> Key {
    Key {
        prefix: prefix.to_owned(),
        url: client.url().as_str().trim_end_matches('/').to_owned(),
        client_id: client.client_id().to_owned(),
    }
}

impl CompanyCopy {
    fn new(key: Key, store: Option<Arc<Store>>, (standing, copied): (Standing, Copied), way: Way) -> Self {
        let troubles = Default::default();
        let state =
            State { standing, began: Past::now(), under_way: None, told: false, troubles, owed: false };
        Self {
            key,
            store,
            copied: RwLock::new(copied),
            state: Mutex::new(state),
            way: Mutex::new(way),
            changed: Notify::new(),
        }
    }

    /// True if it is a copy of what this client would ask, under this prefix.
    pub fn is_of(&self, prefix: &str, client: &Client) -> bool {
        self.key == key(prefix, client)
    }

    /// Goes on with another client of the same company, and other times.
    pub fn go_on_with(&self, client: Arc<Client>, times: Times) {
        let mut way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
        let is_other = !Arc::ptr_eq(&way.client, &client) || way.times != times;
        *way = Way { client, times };
        drop(way);
        if is_other {
            self.changed.notify_one();
        }
    }

    /// Asks for what has changed now, if somebody synchronises.
    pub fn ask_now(&self) {
        self.changed.notify_one();
    }

    pub(super) fn way(&self) -> Way {
        self.way.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn tenant(&self) -> &str {
        &self.key.prefix
    }

    /// What there is, to look things up in; not for long, and not over an `await`.
    pub fn read(&self) -> RwLockReadGuard<'_, Copied> {
        self.copied.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, Copied> {
        self.copied.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True once a full pass was completed.
    pub fn is_complete(&self) -> bool {
        self.lock().standing.pass > 0
    }

    /// True if the last good poll is too long ago, or nobody knows.
    pub fn is_stale(&self) -> bool {
        let stale = self.way.lock().unwrap_or_else(PoisonError::into_inner).times.stale;
        self.lock().standing.good.is_none_or(|good| good.age() > stale)
    }

    /// How it is.
    pub fn state(&self) -> CopyState {
        let is_stale = self.is_stale();
        let copied = self.read();
        let (users, contacts, projects) = (copied.users.len(), copied.contacts.len(), copied.projects.len());
        drop(copied);
        let state = self.lock();
        CopyState {
            tenant: self.key.prefix.clone(),
            users,
            contacts,
            projects,
            is_complete: state.standing.pass > 0,
            age: state.standing.good.map(Past::age),
            known_for: state.began.age(),
            is_stale,
            calls: state.under_way.as_ref().map(|way| way.calls),
            trouble: state.troubles.iter().flatten().next().map(|trouble| trouble.text.clone()),
            unknown_aliases: Vec::new(),
        }
    }

    /// How long ago the last full pass was; none if there was none, or nobody knows.
    pub(super) fn passed(&self) -> Option<Duration> {
        self.lock().standing.passed.map(Past::age)
    }

    /// From when on changes are asked for, in milliseconds.
    pub(super) fn since(&self) -> Option<i64> {
        self.lock().standing.since
    }

    /// A full pass begins.
    pub(super) fn begin_pass(&self) {
        let now = Instant::now();
        let mut state = self.lock();
        if state.standing.pass == 0 && !std::mem::replace(&mut state.told, true) {
            events::severa_first_pass(self.tenant());
        }
        state.under_way = Some(UnderWay { began: now, told: now, calls: 0, skipped: 0 });
    }

    /// It fails, and begins anew some time.
    pub(super) fn leave_pass(&self) {
        self.lock().under_way = None;
    }

    /// Another call of the full pass is over.
    pub(super) fn count_call(&self) {
        let (now, state) = (Instant::now(), &mut *self.lock());
        let Some(under_way) = &mut state.under_way else { return };
        under_way.calls += 1;
        if state.standing.pass == 0 && now.duration_since(under_way.told) >= TELL_EVERY {
            under_way.told = now;
            let copied = self.read();
            let counts = [copied.users.len(), copied.contacts.len(), copied.projects.len()];
            events::severa_first_pass_goes_on(self.tenant(), counts, under_way.calls);
        }
    }

    /// Takes the rows of a page; `skipped` more could not be read.
    pub(super) async fn take(self: &Arc<Self>, changes: Vec<Change>, skipped: usize) {
        let seen = {
            let mut state = self.lock();
            if let Some(under_way) = &mut state.under_way {
                under_way.skipped += skipped;
            }
            state.standing.pass + i64::from(state.under_way.is_some())
        };
        let rows: Vec<Change> = {
            let mut copied = self.change();
            changes.into_iter().filter_map(|change| copied.change(change, seen)).collect()
        };
        if !rows.is_empty() {
            self.keep(move |copy, store| store.rows(&copy.key, &rows, seen)).await;
        }
    }

    /// A poll was good that began at `began`; the next one asks from `since` on.
    pub(super) async fn polled(self: &Arc<Self>, began: Past, since: i64) {
        let standing = {
            let mut state = self.lock();
            state.standing.good = Some(began);
            state.standing.since = Some(since);
            state.standing
        };
        self.keep(move |copy, store| store.standing(&copy.key, &standing, None)).await;
        self.pay().await;
    }

    /// A full pass that began at `began` was completed: what it and the one before lacked is gone.
    pub(super) async fn pass_done(self: &Arc<Self>, began: Past, since: i64) {
        let (standing, under_way, was_first) = {
            let mut state = self.lock();
            let was_first = state.standing.pass == 0;
            state.standing.pass += 1;
            state.standing.passed = Some(Past::now());
            if state.standing.good.is_none_or(|good| good.age() > began.age()) {
                state.standing.good = Some(began);
            }
            state.standing.since.get_or_insert(since);
            (state.standing, state.under_way.take(), was_first)
        };
        let forget = standing.pass - 2;
        let (gone, counts) = {
            let mut copied = self.change();
            let gone = copied.forget_until(forget);
            (gone, [copied.users.len(), copied.contacts.len(), copied.projects.len()])
        };
        if let Some(UnderWay { began, calls, skipped, .. }) = under_way {
            let seconds = began.elapsed();
            events::severa_passed(self.tenant(), was_first, counts, calls, seconds, skipped, gone);
        }
        self.keep(move |copy, store| store.standing(&copy.key, &standing, Some(forget))).await;
        self.pay().await;
    }

    /// Says once what is wrong.
    pub(super) fn fails(&self, doing: Doing, failed: &Failed) {
        let (kind, text) = (kind_of(failed), failed.to_string());
        let mut state = self.lock();
        let trouble = &mut state.troubles[doing as usize];
        let is_new = trouble.as_ref().is_none_or(|before| before.kind != kind);
        *trouble = Some(Trouble { kind, text });
        if is_new {
            events::severa_fails(
                self.tenant(),
                matches!(failed, Failed::Account(_) | Failed::AccountOrLost(_)),
                doing.as_str(),
                failed,
            );
        }
    }

    /// It is well again.
    pub(super) fn is_well(&self, doing: Doing) {
        if self.lock().troubles[doing as usize].take().is_some() {
            events::severa_goes_on(self.tenant(), doing.as_str());
        }
    }

    /// Writes to the file, unless that has to get all of it anyway.
    async fn keep<F>(self: &Arc<Self>, write: F)
    where
        F: FnOnce(&Self, &Store) -> rusqlite::Result<()> + Send + 'static,
    {
        if !self.lock().owed {
            self.write(write).await;
        }
    }

    /// Writes all to the file, if it lacks something.
    async fn pay(self: &Arc<Self>) {
        if self.lock().owed {
            self.write(|copy, store| {
                let standing = copy.lock().standing;
                store.whole(&copy.key, &standing, &copy.read())
            })
            .await;
        }
    }

    async fn write<F>(self: &Arc<Self>, write: F)
    where
        F: FnOnce(&Self, &Store) -> rusqlite::Result<()> + Send + 'static,
    {
        let copy = Arc::clone(self);
        let work = move || {
            let Some(store) = &copy.store else { return };
            let written = write(&copy, store);
            copy.lock().owed = written.is_err();
            if let Err(error) = written {
                events::severa_unkept(store.path(), &error);
            }
        };
        // Where it panics, the file is not what memory is.
        if tokio::task::spawn_blocking(work).await.is_err() {
            self.lock().owed = true;
        }
    }
}

impl Doing {
    fn as_str(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Pass => "full pass",
        }
    }
}

/// What makes one failure another than the one before: texts have times and ports in them.
fn kind_of(failed: &Failed) -> &'static str {
    match failed {
        Failed::NotSent(_) | Failed::NoToken(_) | Failed::Lost(_) => "silent",
        Failed::Busy(_) | Failed::Paused(_) => "busy",
        Failed::Account(_) | Failed::AccountOrLost(_) => "account",
        Failed::Refused(_) => "refused",
        Failed::Ours(_) => "ours",
    }
}
