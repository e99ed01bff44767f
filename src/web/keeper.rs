//! Keeps the newest token of a place that gives tokens.
//!
//! In: [`Asks`], a way to ask for one. Out: a token, asked for once by however many need it, and anew before it expires.
//! Promise: whoever comes while it is asked for, or in the second after a failure, gets the same answer; the asking has a
//! time of its own, and goes on when the first who wanted it leaves.
//! Fails: [`CallError`], as the asking does.

use super::{call::CallError, tokens::Tokens};
use async_trait::async_trait;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A token is renewed this long before it expires, or at half its life if that is shorter.
const RENEW_BEFORE: Duration = Duration::from_secs(60);

/// Longest life that is believed: also a token without end is asked for anew once a day.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

/// How long a place is left alone that failed, or that gave a refused token again.
const REST: Duration = Duration::from_secs(1);

/// A place that gives tokens.
#[async_trait]
pub trait Asks: fmt::Debug + Send + Sync + 'static {
    /// Asks for a new one.
    /// # Errors
    /// [`CallError`]: it cannot be reached (again later), or refuses us (our settings).
    async fn ask(&self) -> Result<Token, CallError>;
}

/// A token and the time for which it may be used.
pub struct Token {
    text: String,
    renew_at: Instant,
}

impl Token {
    /// A token that was given now, for so long.
    pub fn new(text: String, life: Duration) -> Self {
        let life = life.min(LONGEST_LIFE);
        let renew_at = Instant::now() + life.saturating_sub(RENEW_BEFORE).max(life / 2);
        Self { text, renew_at }
    }
}

/// Asks for tokens and keeps the newest.
#[derive(Debug)]
pub struct Keeper<A>(Arc<Inner<A>>);

struct Inner<A> {
    place: A,
    patience: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    kept: Option<Token>,
    flight: Option<Flight>,
    /// The newest answer, for a moment: a token that is refused and given again, or a failure.
    rests: Option<(Instant, Result<String, CallError>)>,
}

/// A token that is being asked for.
type Flight = Shared<BoxFuture<'static, Result<String, CallError>>>;

impl<A: Asks> Keeper<A> {
    /// Tokens of a place that must answer within `patience`.
    pub fn new(place: A, patience: Duration) -> Self {
        Self(Arc::new(Inner { place, patience, state: Mutex::default() }))
    }
}

#[async_trait]
impl<A: Asks> Tokens for Keeper<A> {
    async fn token(&self, refused: Option<&str>) -> Result<String, CallError> {
        let flight = {
            let mut state = self.0.state();
            if let Some(kept) = &state.kept
                && kept.renew_at > Instant::now()
                && refused != Some(kept.text.as_str())
            {
                return Ok(kept.text.clone());
            }
            if let Some((until, last)) = &state.rests
                && *until > Instant::now()
            {
                return last.clone();
            }
            let refused = refused.map(str::to_owned);
            state.flight.get_or_insert_with(|| Inner::take_off(&self.0, refused)).clone()
        };
        flight.await
    }
}

impl<A: fmt::Debug> fmt::Debug for Inner<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keeper").field(&self.place).finish()
    }
}

impl<A: Asks> Inner<A> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to ask. However that ends, the flight is over then.
    fn take_off(this: &Arc<Self>, refused: Option<String>) -> Flight {
        let inner = Arc::clone(this);
        let task = tokio::spawn(async move {
            let late = |_| CallError::Silent("token endpoint: no answer in time".to_owned());
            let asked = tokio::time::timeout(inner.patience, inner.place.ask());
            let asked = AssertUnwindSafe(asked).catch_unwind().await;
            let new = match asked {
                Ok(in_time) => in_time.map_err(late).flatten(),
                Err(_) => Err(CallError::Ours("asking for a token panicked".to_owned())),
            };
            let mut state = inner.state();
            state.flight = None;
            let token = new.as_ref().map(|new| new.text.clone()).map_err(CallError::clone);
            let is_in_vain = token.as_ref().map_or(true, |token| Some(token) == refused.as_ref());
            state.rests = is_in_vain.then(|| (Instant::now() + REST, token.clone()));
            state.kept = new.ok();
            token
        });
        let lost = |error: tokio::task::JoinError| Err(CallError::Ours(error.to_string()));
        task.map(move |done| done.unwrap_or_else(lost)).boxed().shared()
    }
}
