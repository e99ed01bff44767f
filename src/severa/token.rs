//! `POST /v1/token`: a company's client id and secret for a token that lasts a while. The names of the answer are the
//! API's own, not those of RFC 6749.

use super::{
    clock::{self, Clock},
    error::said,
    pace::Pace,
};
use crate::web::{Asks, CallError, Connection, SecretFile, Token, body_of, misread, retry_after};
use async_trait::async_trait;
use serde::Deserialize;
use serde_json::json;
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// What we ask for; all of it is needed. `activities:read` and `files:read` find what a lost answer created.
pub const SCOPES: [&str; 8] = [
    "users:read",
    "customers:read",
    "projects:read",
    "settings:read",
    "activities:read",
    "activities:write",
    "files:read",
    "files:write",
];

/// Life of a token whose answer does not say.
const UNSAID_LIFE: Duration = Duration::from_secs(300);

/// Bytes of an answer that are read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Longest pause after a 429 that is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a company's tokens come from.
pub(super) struct Endpoint {
    pub(super) connection: Arc<Connection>,
    pub(super) client_id: String,
    pub(super) secret: SecretFile,
    pub(super) pace: Arc<Pace>,
    pub(super) clock: Arc<Clock>,
    pub(super) granted: Arc<Granted>,
}

/// The scopes that the newest token has, if its answer said so.
#[derive(Debug, Default)]
pub(super) struct Granted(Mutex<Option<Vec<String>>>);

impl Granted {
    fn set(&self, scope: Option<&str>) {
        let scopes = scope.map(|scope| {
            scope.split([',', ' ']).filter(|scope| !scope.is_empty()).map(str::to_owned).collect()
        });
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = scopes;
    }

    /// Those of ours that are missing.
    pub(super) fn missing(&self) -> Vec<&'static str> {
        let granted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(granted) = granted.as_ref() else { return Vec::new() };
        SCOPES.into_iter().filter(|scope| !granted.iter().any(|one| one == scope)).collect()
    }
}

#[derive(Deserialize)]
struct Answer {
    access_token: Option<String>,
    access_token_expires_utc: Option<String>,
    access_token_expires_in: Option<f64>,
    scope: Option<String>,
}

#[async_trait]
impl Asks for Endpoint {
    async fn ask(&self) -> Result<Token, CallError> {
        let begun: Instant = self.pace.turn(PATIENCE).await.map_err(CallError::Busy)?;
        let body = json!({
            "client_id": self.client_id,
            "client_secret": self.secret.first_now(),
            "scope": SCOPES.join(","),
        });
        let url = self.connection.url(&["v1", "token"]);
        let request = self.connection.http().post(url).json(&body);
        let response = crate::web::send_once(request, None).await.map_err(|error| match error {
            CallError::Ours(_) | CallError::Credentials(_) | CallError::Busy(_) => error,
            CallError::Unreachable(reason) => CallError::Unreachable(format!("token endpoint: {reason}")),
            // Whatever became of it: nothing of ours depends on a token that nobody has.
            error => CallError::Broken(format!("token endpoint: {error}")),
        })?;
        self.clock.learn(&response);
        let status = response.status();
        let after = retry_after(&response);
        let body = body_of(response, MAX_ANSWER_BYTES).await;
        match status.as_u16() {
            429 => {
                return Err(CallError::Busy(self.pace.hold_for(after, begun)));
            }
            200..=299 => {}
            408 | 425 | 500..=599 => {
                return Err(CallError::Broken(format!("token endpoint: it answers {status}")));
            }
            _ => {
                let said = said(&body);
                return Err(CallError::Credentials(format!(
                    "no token for {}: {status}{said}",
                    self.client_id
                )));
            }
        }
        self.pace.is_well(begun);
        let answer: Answer = serde_json::from_slice(&body).map_err(|error| {
            CallError::Broken(format!("token endpoint: its answer cannot be read: {}", misread(&error)))
        })?;
        self.granted.set(answer.scope.as_deref());
        let life = answer.life(self.clock.now());
        let token = answer.access_token.filter(|token| !token.is_empty());
        let token = token
            .ok_or_else(|| CallError::Broken("token endpoint: its answer has no access_token".to_owned()))?;
        Ok(Token::new(token, life))
    }
}

impl Answer {
    /// By the end of its life there; the unit of `access_token_expires_in` is not stated, clients read seconds.
    fn life(&self, now: SystemTime) -> Duration {
        let end = self.access_token_expires_utc.as_deref().and_then(clock::parse);
        let left = end.and_then(|end| end.duration_since(now).ok()).filter(|left| !left.is_zero());
        let said = || {
            let seconds = self.access_token_expires_in.filter(|seconds| *seconds > 0.0)?;
            Duration::try_from_secs_f64(seconds).ok()
        };
        left.or_else(said).unwrap_or(UNSAID_LIFE)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("client_id", &self.client_id).finish_non_exhaustive()
    }
}
