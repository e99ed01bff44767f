//! Keeps one company's copy as the API has it: a full pass, then polls for what has changed, a full pass now and then.
//!
//! In: a [`CompanyCopy`], with the client and the times that the newest settings say. Out: its rows.
//! Promise: what changed while we asked is asked for again: the next poll goes back to before this one, by the API's own
//! clock. A full pass that fails removes nothing and begins anew; polls go on between its pages. One company's trouble is
//! nobody else's.
//! Fails: into [`super::CopyState`] and the log, once for each change; then again after 1 s, doubling.

use super::{
    client::{Client, Request},
    clock::{Past, milliseconds},
    copied::Change,
    copy::{CompanyCopy, Doing, Times},
    error::Failed,
    pages::{Pages, Paging},
};
use crate::observe::events;
use futures_util::FutureExt;
use serde::de::DeserializeOwned;
use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How far the next poll goes back behind the beginning of this one: the API's machines may differ from each other, and a
/// row's time is older than the moment from which on others see it.
const MARGIN: Duration = Duration::from_secs(300);

/// First pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Longest pause between full passes that fail while there is a copy: there is no hurry, and a pass is a hundred calls.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// Pause after a 429 that is sat out at once.
const SIT_OUT: Duration = Duration::from_secs(60);

/// How often a page is asked for that gets no answer, before the pass begins anew.
const TRIES: u32 = 3;

/// Synchronises until `stop` is cancelled.
pub async fn synchronise(copy: Arc<CompanyCopy>, stop: CancellationToken) {
    let work = async {
        loop {
            let mut sync = Synchroniser::new(Arc::clone(&copy));
            // A row that makes us panic must not end the synchronisation for ever.
            let _ = AssertUnwindSafe(sync.run()).catch_unwind().await;
            events::fault("", "severa", &"synchronising a company panicked: please report it");
            copy.leave_pass();
            tokio::time::sleep(copy.way().times.poll.max(FIRST_PAUSE)).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
    copy.leave_pass();
}

struct Synchroniser {
    copy: Arc<CompanyCopy>,
    poll: Turn,
    pass: Turn,
}

/// When something comes next.
struct Turn {
    at: Instant,
    pause: Duration,
}

impl Turn {
    fn is_due(&self) -> bool {
        Instant::now() >= self.at
    }

    /// It was good; it comes again after this time.
    fn again_in(&mut self, time: Duration) {
        *self = Self { at: in_time(time), pause: Duration::ZERO };
    }

    /// It failed; it comes again after twice the time of before.
    fn backs_off(&mut self, longest: Duration) {
        self.pause = (self.pause * 2).max(FIRST_PAUSE).min(longest);
        self.at = in_time(self.pause);
    }
}

/// A moment ahead; one of centuries is a year ahead, which is never.
fn in_time(time: Duration) -> Instant {
    Instant::now() + time.min(Duration::from_secs(365 * 24 * 3600))
}

/// Before the first call there is nothing to say of the API's time: the token's answer has it.
async fn time_there(client: &Client) -> Result<SystemTime, Failed> {
    client.scopes_missing().await?;
    Ok(client.now())
}

impl Synchroniser {
    fn new(copy: Arc<CompanyCopy>) -> Self {
        let soon = || Turn { at: Instant::now(), pause: Duration::ZERO };
        let mut sync = Self { copy, poll: soon(), pass: soon() };
        sync.pass.at = sync.pass_due();
        sync
    }

    fn times(&self) -> Times {
        self.copy.way().times
    }

    /// When the next full pass is due. One whose time nobody knows was long ago.
    fn pass_due(&self) -> Instant {
        match self.copy.passed() {
            Some(age) => in_time(self.times().full_pass.saturating_sub(age)),
            None => Instant::now(),
        }
    }

    async fn run(&mut self) {
        loop {
            self.poll_if_due().await;
            if self.pass.is_due() {
                self.pass().await;
                continue;
            }
            let next = if self.copy.is_complete() { self.pass.at.min(self.poll.at) } else { self.pass.at };
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.copy.changed.notified() => {
                    // Whoever changed the settings wants to see what comes of it.
                    self.poll.again_in(Duration::ZERO);
                    self.pass.again_in(Duration::ZERO);
                    self.pass.at = self.pass_due();
                }
            }
        }
    }

    async fn poll_if_due(&mut self) {
        if !self.copy.is_complete() || !self.poll.is_due() {
            return;
        }
        let times = self.times();
        let started = Instant::now();
        match self.poll().await {
            Ok(()) => {
                self.copy.is_well(Doing::Poll);
                self.poll.again_in(times.poll.saturating_sub(started.elapsed()));
            }
            Err(failed) => {
                self.copy.fails(Doing::Poll, &failed);
                self.poll.backs_off(times.poll);
            }
        }
    }

    /// Asks for everything that has changed.
    async fn poll(&self) -> Result<(), Failed> {
        let (client, began) = (self.copy.way().client, Past::now());
        let next = milliseconds(time_there(&client).await? - MARGIN);
        // A copy that is complete has a time.
        let since = self.copy.since().unwrap_or(next);
        let since = SystemTime::UNIX_EPOCH + Duration::from_millis(since.try_into().unwrap_or(0));
        let list = |path| Request::get(&["v1", path]).since(since);
        self.changed(&client, list("users"), Paging::Token, |user| row(Change::of_user(user))).await?;
        self.changed(&client, list("contactpersons"), Paging::Rows, |contact| {
            row(Change::of_contact(contact))
        })
        .await?;
        let communications = list("contactcommunications");
        self.changed(&client, communications, Paging::Rows, Change::of_communication).await?;
        self.changed(&client, list("projects"), Paging::Token, |project| row(Change::of_project(project)))
            .await?;
        self.copy.polled(began, next).await;
        Ok(())
    }

    async fn changed<T: DeserializeOwned>(
        &self,
        client: &Client,
        request: Request,
        paging: Paging,
        of: fn(T) -> Row,
    ) -> Result<(), Failed> {
        let mut pages = Pages::of(client, request, paging).sit_out(SIT_OUT);
        while let Some(page) = self.page(&mut pages, Doing::Poll).await? {
            let (changes, skipped) = changes(page, of);
            self.copy.take(changes, skipped).await;
        }
        Ok(())
    }

    async fn pass(&mut self) {
        let started = Instant::now();
        let was_complete = self.copy.is_complete();
        match self.whole().await {
            Ok(()) => {
                self.copy.is_well(Doing::Pass);
                let times = self.times();
                self.pass.again_in(times.full_pass);
                if !was_complete {
                    // What the pass brought is as old as its beginning.
                    self.poll.again_in(times.poll.saturating_sub(started.elapsed()));
                }
            }
            Err(failed) => {
                self.copy.leave_pass();
                self.copy.fails(Doing::Pass, &failed);
                let poll = self.times().poll;
                self.pass.backs_off(if was_complete { poll.max(LONGEST_PAUSE) } else { poll });
            }
        }
    }

    /// Asks for everything.
    async fn whole(&mut self) -> Result<(), Failed> {
        let (client, began) = (self.copy.way().client, Past::now());
        let since = milliseconds(time_there(&client).await? - MARGIN);
        self.copy.begin_pass();
        let list = |path| Request::get(&["v1", path]);
        let users = list("users").with("isActive", "true");
        self.all(&client, users, Paging::Token, |user| row(Change::of_user(user))).await?;
        let contacts = list("contactpersons").with("active", "true");
        self.all(&client, contacts, Paging::Rows, |contact| row(Change::of_contact(contact))).await?;
        let projects = list("projects");
        self.all(&client, projects, Paging::Token, |project| row(Change::of_project(project))).await?;
        self.copy.pass_done(began, since).await;
        Ok(())
    }

    async fn all<T: DeserializeOwned>(
        &mut self,
        client: &Client,
        request: Request,
        paging: Paging,
        of: fn(T) -> Row,
    ) -> Result<(), Failed> {
        let mut pages = Pages::of(client, request, paging).sit_out(SIT_OUT);
        let (mut unreadable, mut useless, mut rows) = (0, 0, 0);
        while let Some(page) = self.page(&mut pages, Doing::Pass).await? {
            let new = pages.unreadable() - std::mem::replace(&mut unreadable, pages.unreadable());
            rows += page.len() + new;
            let (changes, skipped) = changes(page, of);
            useless += skipped + new;
            self.copy.take(changes, skipped + new).await;
            self.poll_if_due().await;
        }
        // A list that says little we understand is another one than we know: what it lacks is not gone.
        match useless * 2 > rows {
            true => Err(Failed::Lost(format!("{useless} of {rows} rows of a list cannot be read"))),
            false => Ok(()),
        }
    }

    /// A page, asked for again where an answer is missing.
    async fn page<T: DeserializeOwned>(
        &self,
        pages: &mut Pages<'_>,
        doing: Doing,
    ) -> Result<Option<Vec<T>>, Failed> {
        let (mut turn, mut tries) = (Turn { at: Instant::now(), pause: Duration::ZERO }, 0);
        loop {
            let failed = match pages.next().await {
                Ok(page) => {
                    if page.is_some() && doing == Doing::Pass {
                        self.copy.count_call();
                    }
                    return Ok(page);
                }
                Err(failed) => failed,
            };
            if doing == Doing::Pass {
                self.copy.count_call();
            }
            match &failed {
                Failed::Busy(_) | Failed::Paused(_) => {} // nothing is wrong with the page, and there is no other way than to wait
                Failed::NotSent(_) | Failed::NoToken(_) | Failed::Lost(_) if tries + 1 < TRIES => tries += 1,
                _ => return Err(failed),
            }
            self.copy.fails(doing, &failed);
            turn.backs_off(self.times().poll);
            tokio::time::sleep_until(turn.at).await;
        }
    }
}

/// What a row comes to: nothing usable; nothing that concerns us; a change.
type Row = Option<Option<Change>>;

fn row(change: Option<Change>) -> Row {
    change.map(Some)
}

/// The changes of a page, and how many rows are of no use.
fn changes<T>(page: Vec<T>, of: fn(T) -> Row) -> (Vec<Change>, usize) {
    let rows = page.len();
    let usable: Vec<Option<Change>> = page.into_iter().filter_map(of).collect();
    let skipped = rows - usable.len();
    (usable.into_iter().flatten().collect(), skipped)
}
