//! Who has logged in with the admin token.
//!
//! Promise: a session is a random number that only its browser knows; it ends after twelve hours, with the process, and
//! when the token is another one: who should not have had the old one is out at once.

use axum::http::{HeaderMap, HeaderValue, header};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Name of the cookie.
const COOKIE: &str = "activity-milter";

/// How long a session lasts.
const LIFE: Duration = Duration::from_secs(12 * 3600);

/// Sessions at a time; the oldest goes.
const MOST: usize = 100;

/// A session.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// Stands in each form: another site does not know it.
    pub(super) form_token: String,
    /// Digest of the token it was begun with.
    token: blake3::Hash,
    began: Instant,
}

/// All sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<HashMap<String, Session>>);

/// 256 bits of the system's randomness.
fn random() -> String {
    let mut bytes = [0; 32];
    // ring's generator is the system's; it cannot fail on Linux once the system has booted.
    let filled = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes);
    filled.map(|()| blake3::Hash::from(bytes).to_hex().to_string()).expect("the system has randomness")
}

fn cookie_of(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies.flat_map(|value| value.split(';')).find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        (name == COOKIE).then_some(value)
    })
}

impl Sessions {
    /// The session of a request, if the token is still the one of its beginning.
    pub(super) fn of(&self, headers: &HeaderMap, token: blake3::Hash) -> Option<Session> {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| session.began.elapsed() < LIFE && session.token == token);
        sessions.get(cookie_of(headers)?).cloned()
    }

    /// A new session, begun with this token; its cookie.
    pub(super) fn begin(&self, token: blake3::Hash) -> HeaderValue {
        let id = random();
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= MOST
            && let Some(oldest) =
                sessions.iter().min_by_key(|(_, session)| session.began).map(|(id, _)| id.clone())
        {
            sessions.remove(&oldest);
        }
        let cookie = format!("{COOKIE}={id}; HttpOnly; SameSite=Strict; Path=/; Max-Age={}", LIFE.as_secs());
        sessions.insert(id, Session { form_token: random(), token, began: Instant::now() });
        HeaderValue::try_from(cookie).expect("hex digits can stand in a header")
    }

    /// Ends the session of a request.
    pub(super) fn end(&self, headers: &HeaderMap) {
        if let Some(id) = cookie_of(headers) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        }
    }

    /// The cookie that takes the cookie away.
    pub(super) fn forget() -> HeaderValue {
        HeaderValue::from_static("activity-milter=; HttpOnly; SameSite=Strict; Path=/; Max-Age=0")
    }
}
