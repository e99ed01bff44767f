//! Who may be connected to a door, and who has to go: to make room, or because he keeps us waiting.
//!
//! In: connections as they come, and how each gets on. Out: a place or none; who is to go, and why.
//! Promise: never more than `most` connections; whom we work for is never sent away; who has been idle for the longest
//! goes first, and nobody before [`Manners`] and the settings say so.
//! Fails: never.

use super::{LOOK_UP_TIME, Live};
use crate::observe::{events, metrics};
use futures_util::task::AtomicWaker;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::sync::{CancellationToken, PollSemaphore, WaitForCancellationFutureOwned};

/// How often somebody looks who keeps us waiting.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Bytes of content for which a client may take a second more than `message.patience`. Postfix has the whole message
/// before it begins, so this is the slowest network, not the slowest sender.
const SLOWEST: u64 = 16 * 1024;

/// Whoever is in the middle of a message may be idle so many times as long as others before he makes room: his own client
/// may be sending slowly, and Postfix waits for him.
const IN_A_MESSAGE: u32 = 4;

/// Bytes of content for which it may stay a second more, whoever needs the place: Postfix sends as fast as the network is.
const STEADY: u64 = 128 * 1024;

/// A client that has not even said hello makes room after this, and one whose content kept us waiting for so long: Postfix
/// does neither.
const SPEECHLESS: Duration = Duration::from_secs(5);

/// Time at the end for those who have come and not said hello.
const SETTLING: Duration = Duration::from_secs(1);

/// How long a client may not take our answer: it fits into the socket's buffer, unless many were left there.
const DEAF: Duration = Duration::from_secs(60);

/// How long a frame may be under way while others wait for its memory. Postfix writes each at once.
const FRAME_IN_THE_WAY: Duration = Duration::from_secs(5);

/// Memory for all large frames that are under way.
const FRAME_MEMORY: usize = 8 * 1024 * 1024;

/// What is expected of the clients of a door.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manners {
    /// Connections beyond the door's own number; they hear at RCPT that there is no room, and other people's mail passes.
    pub(super) standing: usize,
    /// How long a client waits in the system's queue for a place before it is turned away.
    pub(super) queues: Duration,
    /// What one hears who is turned away.
    pub(super) farewell: &'static [u8],
    /// Time to say hello.
    hello: Option<Duration>,
    /// Time for a command, once it has begun.
    command: Option<Duration>,
    /// Time from one answer to the next.
    silence: Option<Duration>,
}

impl Manners {
    /// Postfix negotiates as soon as it is connected, and writes each frame at once.
    pub(super) fn milter(max_sessions: usize) -> Self {
        Self {
            standing: (max_sessions / 10).max(16),
            queues: LOOK_UP_TIME,
            farewell: b"",
            hello: Some(Duration::from_secs(30)), // Postfix: `milter_connect_timeout`
            command: Some(Duration::from_secs(30)), // Postfix: `milter_command_timeout`
            silence: None,
        }
    }

    /// The conversation has its own times.
    pub(super) fn lmtp() -> Self {
        Self {
            standing: 0,
            queues: Duration::ZERO,
            farewell: b"421 4.3.2 too many connections (lmtp.max_sessions), try again later [busy]\r\n",
            hello: None,
            command: None,
            silence: None,
        }
    }

    /// A browser, or a machine that asks from time to time.
    pub(super) fn admin() -> Self {
        Self {
            standing: 0,
            queues: Duration::ZERO,
            farewell: b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            hello: None,
            command: None,
            silence: Some(Duration::from_secs(300)),
        }
    }
}

/// The connections of a door.
#[derive(Clone, Debug)]
pub struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    door: &'static str,
    manners: Manners,
    /// After this an idle client makes room.
    idle: Duration,
    /// Places where one may have a message recorded.
    seats: usize,
    /// Connections in all.
    most: AtomicUsize,
    guests: Mutex<Guests>,
    seat: Arc<Semaphore>,
    /// In KiB.
    frames: Arc<Semaphore>,
    /// Who waits for a place to be free: our listener.
    doorkeeper: AtomicWaker,
}

#[derive(Debug, Default)]
struct Guests {
    all: HashMap<u64, Arc<Guest>>,
    come: u64,
}

#[derive(Debug)]
struct Guest {
    state: Mutex<State>,
    away: CancellationToken,
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// Nothing was said yet.
    Door,
    /// Between messages.
    Rest,
    /// From MAIL to the content.
    Envelope,
    /// Header or body.
    Content,
}

/// Why somebody has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Others need the place.
    Idle,
    /// He keeps us waiting.
    Slow,
    /// He came when there was no place.
    Full,
}

impl Why {
    fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Slow => "slow",
            Self::Full => "full",
        }
    }
}

#[derive(Debug)]
struct State {
    at: At,
    /// When it came, or came to the end of something.
    since: Instant,
    /// When it began the message that is to come to an end next: who begins again and again gains nothing.
    begun: Option<Instant>,
    /// It is its turn: we wait for its bytes,
    waiting: Option<Instant>,
    /// or that it takes ours.
    writing: Option<Instant>,
    /// How long we have waited for the content that is under way, and how much has come.
    waited: Duration,
    bytes: u64,
    /// A command has begun, and is not complete.
    command: Option<Instant>,
    /// It has memory for it.
    holds: bool,
    /// It wants memory for it.
    wants: Option<Instant>,
    why: Option<Why>,
}

impl State {
    fn new(at: At) -> Self {
        Self {
            at,
            since: Instant::now(),
            begun: None,
            waiting: None,
            writing: None,
            waited: Duration::ZERO,
            bytes: 0,
            command: None,
            holds: false,
            wants: None,
            why: None,
        }
    }

    fn since(&self, then: Option<Instant>, now: Instant) -> Duration {
        then.map_or(Duration::ZERO, |then| now.saturating_duration_since(then))
    }

    /// True if it keeps us waiting for longer than it may. `patience`: for the content of a message.
    fn is_slow(&self, manners: &Manners, patience: Duration, now: Instant) -> bool {
        let over = |limit: Option<Duration>, taken: Duration| limit.is_some_and(|limit| taken > limit);
        let idle = now.saturating_duration_since(self.since);
        if self.since(self.writing, now) > DEAF {
            return true;
        }
        if self.waiting.is_none() {
            return false;
        }
        match self.at {
            At::Content => self.held_up(now) > patience,
            At::Door if over(manners.hello, idle) => true,
            _ => over(manners.command, self.since(self.command, now)) || over(manners.silence, idle),
        }
    }

    /// How long the content that is under way has kept us waiting, beyond what a slow network may take for what came.
    fn held_up(&self, now: Instant) -> Duration {
        let waited = self.waited + self.since(self.waiting, now);
        waited.saturating_sub(Duration::from_secs(self.bytes / SLOWEST))
    }

    /// For how long it has done nothing that would keep it its place, and whether it goes before others; none if it may stay.
    fn makes_room(&self, idle: Duration, now: Instant) -> Option<(bool, Duration)> {
        let in_envelope_or_content = matches!(self.at, At::Envelope | At::Content);
        let from = self.begun.filter(|_| in_envelope_or_content).unwrap_or(self.since);
        let since = now.saturating_duration_since(from);
        let holds_up = self.at == At::Content && self.held_up(now) >= idle.min(SPEECHLESS);
        let in_message = in_envelope_or_content && !holds_up;
        let most = match self.at {
            At::Door => idle.min(SPEECHLESS),
            At::Rest => idle,
            At::Content if holds_up => Duration::ZERO,
            At::Envelope => idle * IN_A_MESSAGE,
            At::Content => idle * IN_A_MESSAGE + Duration::from_secs(self.bytes / STEADY),
        };
        (self.waiting.is_some() && self.why.is_none() && since >= most).then_some((!in_message, since))
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Guest {
    fn send_away(&self, door: &'static str, why: Why) {
        let mut state = locked(&self.state);
        if state.why.is_none() {
            state.why = Some(why);
            let idle = state.since.elapsed();
            drop(state);
            metrics::hung_up(door, why.as_str());
            events::hung_up(door, why.as_str(), idle);
            self.away.cancel();
        }
    }
}

impl Places {
    /// Places for a door that may have `max_sessions` connections.
    pub(super) fn new(door: &'static str, max_sessions: usize, idle: Duration, manners: Manners) -> Self {
        Self(Arc::new(Shared {
            door,
            idle,
            seats: max_sessions,
            most: AtomicUsize::new(max_sessions.saturating_add(manners.standing)),
            manners,
            guests: Mutex::default(),
            seat: Arc::new(Semaphore::new(max_sessions.min(Semaphore::MAX_PERMITS))),
            frames: Arc::new(Semaphore::new(FRAME_MEMORY / 1024)),
            doorkeeper: AtomicWaker::new(),
        }))
    }

    /// Connections that the door would have at most.
    pub fn wanted(&self) -> usize {
        self.0.seats.saturating_add(self.0.manners.standing)
    }

    /// No more connections than this.
    pub fn limit(&self, most: usize) {
        self.0.most.store(most.min(self.wanted()), Ordering::Relaxed);
    }

    pub(super) fn manners(&self) -> &Manners {
        &self.0.manners
    }

    /// Connections now.
    pub(super) fn taken(&self) -> usize {
        locked(&self.0.guests).all.len()
    }

    /// True if there is a place for one more.
    pub(super) fn has_room(&self) -> bool {
        self.taken() < self.0.most.load(Ordering::Relaxed)
    }

    /// Is told when somebody has gone.
    pub(super) fn tell(&self, waker: &std::task::Waker) {
        self.0.doorkeeper.register(waker);
    }

    /// A place, whether there is room or not. As soon as all seats are taken, the longest idle one is asked to go.
    pub(super) fn take(&self, at: At) -> Arc<Place> {
        if self.taken() >= self.0.seats {
            self.make_room();
        }
        let guest = Arc::new(Guest { state: Mutex::new(State::new(at)), away: CancellationToken::new() });
        let mut guests = locked(&self.0.guests);
        guests.come += 1;
        let number = guests.come;
        guests.all.insert(number, Arc::clone(&guest));
        Arc::new(Place { guest, number, of: Arc::clone(&self.0) })
    }

    /// Somebody came in vain.
    pub(super) fn turned_away(&self) {
        let (door, most) = (self.0.door, self.0.most.load(Ordering::Relaxed));
        metrics::hung_up(door, Why::Full.as_str());
        events::door_full(door, most);
    }

    /// Asks the one who has been idle for the longest to go, unless somebody is going already. True if somebody is.
    pub(super) fn make_room(&self) -> bool {
        let now = Instant::now();
        let guests = locked(&self.0.guests);
        let mut first: Option<((bool, Duration), &Arc<Guest>)> = None;
        for guest in guests.all.values() {
            let state = locked(&guest.state);
            if state.why.is_some() {
                return true;
            }
            if let Some(rank) = state.makes_room(self.0.idle, now)
                && first.as_ref().is_none_or(|(of, _)| rank > *of)
            {
                first = Some((rank, guest));
            }
        }
        let Some((_, guest)) = first else { return false };
        let guest = Arc::clone(guest);
        drop(guests);
        guest.send_away(self.0.door, Why::Idle);
        true
    }

    /// Waits until those who have come have said hello, or a moment: who is hung up on before hears nothing of ours.
    pub async fn settle(&self) {
        let end = Instant::now() + SETTLING;
        let is_coming = || {
            let guests = locked(&self.0.guests);
            guests.all.values().any(|guest| locked(&guest.state).at == At::Door)
        };
        while is_coming() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends those away who keep us waiting. `patience`: how long content may.
    fn look(&self, patience: Duration) {
        let now = Instant::now();
        let guests: Vec<_> = locked(&self.0.guests).all.values().cloned().collect();
        let is_short = guests
            .iter()
            .any(|guest| locked(&guest.state).wants.is_some_and(|wants| now - wants >= LOOK_EVERY));
        for guest in guests {
            let state = locked(&guest.state);
            let in_the_way = is_short
                && state.holds
                && state.waiting.is_some()
                && state.since(state.command, now) >= FRAME_IN_THE_WAY;
            let goes = state.is_slow(&self.0.manners, patience, now) || in_the_way;
            drop(state);
            if goes {
                guest.send_away(self.0.door, Why::Slow);
            }
        }
    }

    /// A seat, as soon as it is wanted.
    pub(super) fn seat(&self) -> Seat {
        match Arc::clone(&self.0.seat).try_acquire_owned() {
            Ok(seat) => Seat::Taken { _seat: seat },
            Err(_) => Seat::Wanted(Arc::clone(&self.0.seat), false),
        }
    }
}

/// Looks after the connections of all doors, for ever.
pub async fn keep(doors: Vec<Places>, live: Live) {
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let service = live.now();
        let patience = service.policy.patience;
        // While there is no memory for others, nobody may keep his for nothing.
        let patience = if service.budget.was_short() { patience / 12 } else { patience };
        doors.iter().for_each(|door| door.look(patience));
    }
}

/// The right to have messages recorded.
#[derive(Debug)]
pub(super) enum Seat {
    /// Nobody counts.
    Free,
    /// One's own, until the connection ends.
    Taken { _seat: OwnedSemaphorePermit },
    /// There was none; whether it was waited for already.
    Wanted(Arc<Semaphore>, bool),
}

impl Seat {
    /// Waits for one, if there is none yet, once; false if there is none.
    pub(super) async fn sit(&mut self) -> bool {
        let Self::Wanted(seats, has_waited) = self else { return true };
        let patience = if std::mem::replace(has_waited, true) { Duration::ZERO } else { LOOK_UP_TIME };
        match tokio::time::timeout(patience, Arc::clone(seats).acquire_owned()).await {
            Ok(Ok(seat)) => {
                *self = Self::Taken { _seat: seat };
                true
            }
            _ => false,
        }
    }
}

/// The place of a connection, for as long as it lives.
#[derive(Debug)]
pub(super) struct Place {
    guest: Arc<Guest>,
    number: u64,
    of: Arc<Shared>,
}

impl Drop for Place {
    fn drop(&mut self) {
        locked(&self.of.guests).all.remove(&self.number);
        self.of.doorkeeper.wake();
    }
}

impl Place {
    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.guest.state)
    }

    /// It is somewhere else from now on.
    pub(super) fn goes_to(&self, at: At) {
        let mut state = self.state();
        if at == At::Content && state.at != At::Content {
            (state.waited, state.bytes) = (Duration::ZERO, 0);
        }
        if at == At::Envelope {
            state.begun.get_or_insert_with(Instant::now);
        }
        state.at = at;
    }

    /// It came to the end of something: a message, an answer.
    pub(super) fn has_done_something(&self) {
        let mut state = self.state();
        (state.since, state.begun) = (Instant::now(), None);
    }

    /// A command has begun, or is complete.
    pub(super) fn command(&self, has_begun: bool) {
        let mut state = self.state();
        state.command = has_begun.then(|| state.command.unwrap_or_else(Instant::now));
    }

    /// We wait for its bytes.
    pub(super) fn waits(&self) {
        self.state().waiting.get_or_insert_with(Instant::now);
    }

    /// So many bytes came.
    pub(super) fn came(&self, bytes: usize) {
        let mut state = self.state();
        if let Some(waiting) = state.waiting.take()
            && state.at == At::Content
        {
            state.waited += waiting.elapsed();
        }
        state.bytes += bytes as u64;
    }

    /// It does not take our bytes, or has taken them.
    pub(super) fn writes(&self, is_pending: bool) {
        let mut state = self.state();
        state.writing = is_pending.then(|| state.writing.unwrap_or_else(Instant::now));
    }

    /// It holds memory for a frame, or wants it.
    pub(super) fn memory(&self, holds: bool, wants: bool) {
        let mut state = self.state();
        state.holds = holds;
        state.wants = wants.then(|| state.wants.unwrap_or_else(Instant::now));
    }

    /// Memory for large frames.
    pub(super) fn frames(&self) -> PollSemaphore {
        PollSemaphore::new(Arc::clone(&self.of.frames))
    }

    /// Why it was sent away, if it was.
    pub(super) fn why(&self) -> Option<Why> {
        self.state().why
    }

    /// Completes when it is sent away.
    pub(super) fn away(&self) -> WaitForCancellationFutureOwned {
        self.guest.away.clone().cancelled_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(30);
    const PATIENCE: Duration = Duration::from_secs(60);

    fn door(max_sessions: usize) -> Places {
        Places::new("milter", max_sessions, IDLE, Manners::milter(max_sessions))
    }

    /// A client that waits for nothing but its own next command.
    fn guest(places: &Places, at: At) -> Arc<Place> {
        let place = places.take(at);
        place.waits();
        place
    }

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    // D4.
    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_makes_room_and_whom_we_work_for_never_does() {
        let places = door(4);
        let at_work = places.take(At::Rest);
        pass(100).await;
        let in_a_message = guest(&places, At::Envelope);
        pass(10).await;
        let first = guest(&places, At::Rest);
        pass(1).await;
        let second = guest(&places, At::Rest);
        pass(28).await;
        assert!(!places.make_room(), "nobody was idle for 30 s");
        pass(1).await;
        assert!(places.make_room());
        assert_eq!((first.why(), second.why()), (Some(Why::Idle), None));
        // One at a time: while somebody goes, nobody else is asked.
        pass(10).await;
        assert!(places.make_room());
        assert_eq!(second.why(), None);
        drop(first);
        assert!(places.make_room());
        assert_eq!(second.why(), Some(Why::Idle));
        drop(second);
        // Within a message one stays four times as long.
        pass(69).await;
        assert!(!places.make_room());
        pass(1).await;
        assert!(places.make_room());
        assert_eq!((in_a_message.why(), at_work.why()), (Some(Why::Idle), None));
        drop(in_a_message);
        pass(10_000).await;
        assert!(!places.make_room());
        assert_eq!(places.taken(), 1);
    }

    // D4.
    #[tokio::test(start_paused = true)]
    async fn a_message_has_its_time_however_long_its_client_rested_before() {
        let places = door(4);
        let (rested, again) = (guest(&places, At::Rest), guest(&places, At::Rest));
        again.goes_to(At::Envelope);
        pass(90).await;
        rested.goes_to(At::Envelope);
        // Who begins again without an end is as old as his first beginning.
        again.goes_to(At::Rest);
        again.goes_to(At::Envelope);
        pass(30).await;
        assert!(places.make_room());
        assert_eq!((rested.why(), again.why()), (None, Some(Why::Idle)));
        drop(again);
        // What comes steadily stays, what trickles does not.
        rested.came(10);
        rested.goes_to(At::Content);
        for _ in 0..600 {
            pass(1).await;
            rested.came(300 * 1024);
            rested.waits();
            assert!(!places.make_room());
        }
        for _ in 0..3_000 {
            pass(1).await;
            rested.came(100);
            rested.waits();
        }
        assert!(places.make_room());
        assert_eq!(rested.why(), Some(Why::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn who_did_something_is_not_idle_and_who_says_nothing_is_soon() {
        let places = door(4);
        let (polite, mute) = (guest(&places, At::Rest), guest(&places, At::Door));
        pass(29).await;
        polite.has_done_something();
        pass(1).await;
        assert!(places.make_room());
        assert_eq!((polite.why(), mute.why()), (None, Some(Why::Idle)));
    }

    // D4.
    #[tokio::test(start_paused = true)]
    async fn there_are_never_more_than_places() {
        let places = door(1);
        let all: Vec<_> = (0..17).map(|_| guest(&places, At::Rest)).collect();
        assert!(!places.has_room(), "one seat, and sixteen who stand");
        drop(all);
        places.limit(2);
        let one = guest(&places, At::Rest);
        assert!(places.has_room());
        let _two = guest(&places, At::Rest);
        assert!(!places.has_room());
        drop(one);
        assert!(places.has_room());
    }

    // D13.
    #[tokio::test(start_paused = true)]
    async fn who_stands_gets_a_seat_when_one_is_free() {
        let places = door(1);
        let first = places.seat();
        let mut second = places.seat();
        let began = Instant::now();
        assert!(!second.sit().await, "none became free");
        assert!(!second.sit().await);
        assert_eq!(began.elapsed(), LOOK_UP_TIME, "the second recipient does not wait as well");
        drop(first);
        assert!(second.sit().await);
        assert!(matches!(places.seat(), Seat::Wanted(..)));
        assert!(Seat::Free.sit().await);
    }

    // D12.
    /// Where somebody is, how he keeps us waiting, and for how many seconds he may.
    #[tokio::test(start_paused = true)]
    async fn who_keeps_us_waiting_goes() {
        type Does = fn(&Place);
        let cases: [(&str, At, Does, u64); 6] = [
            ("no hello", At::Door, |_| {}, 30),
            ("half a command", At::Rest, |place| place.command(true), 30),
            ("half a recipient", At::Envelope, |place| place.command(true), 30),
            ("content", At::Content, |place| place.command(true), 60),
            ("an answer that is not taken", At::Rest, |place| place.writes(true), 60),
            ("nothing to say", At::Rest, |_| {}, 100_000),
        ];
        for (what, at, does, seconds) in cases {
            let places = door(4);
            let place = guest(&places, at);
            does(&place);
            pass(seconds).await;
            places.look(PATIENCE);
            assert_eq!(place.why(), None, "{what}");
            if seconds < 100_000 {
                pass(1).await;
                places.look(PATIENCE);
                assert_eq!(place.why(), Some(Why::Slow), "{what}");
            }
        }
    }

    // D12.
    #[tokio::test(start_paused = true)]
    async fn content_is_waited_for_in_all_and_what_came_counts() {
        // A byte each second, and 100 KiB: the rate of the slowest network that is endured is 16 KiB/s.
        for (bytes, goes_after) in [(1, 61..=62), (100 * 1024, 601..=700), (8 * 1024, 100..=130)] {
            let places = door(4);
            let place = guest(&places, At::Content);
            let mut seconds = 0;
            while place.why().is_none() && seconds < 600 {
                pass(1).await;
                seconds += 1;
                places.look(PATIENCE);
                place.came(bytes);
                place.waits();
            }
            let seconds = if place.why().is_none() { 601 } else { seconds };
            assert!(goes_after.contains(&seconds), "{bytes} bytes a second: {seconds} s");
        }
        // While we work, nobody keeps us waiting.
        let places = door(4);
        let place = guest(&places, At::Content);
        place.came(10);
        pass(1_000).await;
        places.look(PATIENCE);
        assert_eq!(place.why(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_frame_that_stands_still_goes_when_others_need_its_memory() {
        let places = door(4);
        let (holder, other) = (guest(&places, At::Content), guest(&places, At::Content));
        holder.command(true);
        holder.memory(true, false);
        pass(10).await;
        places.look(PATIENCE);
        assert_eq!(holder.why(), None);
        other.memory(false, true);
        pass(1).await;
        places.look(PATIENCE);
        assert_eq!((holder.why(), other.why()), (Some(Why::Slow), None));
    }
}
