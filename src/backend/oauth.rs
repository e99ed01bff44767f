//! OAuth 2 client credentials (RFC 6749, section 4.4): our name and secret for a token that lasts a while.
//!
//! In: a token endpoint. Out: an access token, asked for once by however many need it, and anew before it expires.
//! Promise: whoever comes while it is asked for, or in the second after a failure, gets the same answer; the asking has a time of its own, and
//! goes on when the first who wanted it leaves.
//! Fails: [`CallError`]: the endpoint cannot be reached (again later), or refuses us (our settings).

use super::{
    call::{CallError, chain},
    secret::SecretFile,
    tokens::Tokens,
};
use async_trait::async_trait;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use oauth2::{
    AuthType, ClientId, ClientSecret, HttpRequest, HttpResponse, RequestTokenError, Scope,
    TokenResponse as _, TokenUrl, basic::BasicClient,
};
use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A token is renewed this long before it expires, or at half its life if that is shorter.
const RENEW_BEFORE: Duration = Duration::from_secs(60);

/// Life of a token whose endpoint does not say (RFC 6749, section 5.1 recommends that it does).
const UNSAID_LIFE: Duration = Duration::from_secs(300);

/// Longest life that is believed: also a token without end is asked for anew once a day.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

/// How long an endpoint is left alone that failed, or that gave a refused token again.
const REST: Duration = Duration::from_secs(1);

/// Bytes of an answer that are read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Settings of the token endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The token endpoint.
    pub token_url: reqwest::Url,
    /// Our name.
    pub client_id: String,
    /// File with our secret.
    pub client_secret_file: std::path::PathBuf,
    /// What we ask for.
    pub scopes: Vec<String>,
    /// For whom the token shall be, where the endpoint wants to know (`audience`).
    pub audience: Option<String>,
    /// How the endpoint is told our name and secret.
    pub auth_method: AuthMethod,
}

/// How a token endpoint is told who asks (RFC 7591, section 2, `token_endpoint_auth_method`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthMethod {
    /// By HTTP Basic (RFC 6749, section 2.3.1).
    #[default]
    ClientSecretBasic,
    /// In the request's body.
    ClientSecretPost,
}

/// Gets tokens and keeps the newest.
#[derive(Debug)]
pub(super) struct OAuth(Arc<Inner>);

struct Inner {
    url: TokenUrl,
    settings: Settings,
    secret: SecretFile,
    http: reqwest::Client,
    patience: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    kept: Option<Kept>,
    flight: Option<Flight>,
    /// The newest answer, for a moment: a token that is refused and given again, or a failure.
    rests: Option<(Instant, Result<String, CallError>)>,
}

/// A token that is being asked for.
type Flight = Shared<BoxFuture<'static, Result<String, CallError>>>;

struct Kept {
    token: String,
    renew_at: Instant,
}

impl OAuth {
    /// Tokens of an endpoint that is asked over `http`, and must answer within `patience`.
    pub(super) fn new(settings: Settings, http: reqwest::Client, patience: Duration) -> Result<Self, String> {
        let secret = SecretFile::open(&settings.client_secret_file)?;
        let url = TokenUrl::from_url(settings.token_url.clone());
        let state = Mutex::default();
        Ok(Self(Arc::new(Inner { url, settings, secret, http, patience, state })))
    }
}

#[async_trait]
impl Tokens for OAuth {
    async fn token(&self, refused: Option<&str>) -> Result<String, CallError> {
        let flight = {
            let mut state = self.0.state();
            if let Some(kept) = &state.kept
                && kept.renew_at > Instant::now()
                && refused != Some(kept.token.as_str())
            {
                return Ok(kept.token.clone());
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

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OAuth").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to ask. However that ends, the flight is over then.
    fn take_off(this: &Arc<Self>, refused: Option<String>) -> Flight {
        let inner = Arc::clone(this);
        let task = tokio::spawn(async move {
            let late = |_| CallError::Silent("token endpoint: no answer in time".to_owned());
            let asked = tokio::time::timeout(inner.patience, inner.ask());
            let asked = AssertUnwindSafe(asked).catch_unwind().await;
            let new = match asked {
                Ok(in_time) => in_time.map_err(late).flatten(),
                Err(_) => Err(CallError::Ours("asking for a token panicked".to_owned())),
            };
            let mut state = inner.state();
            state.flight = None;
            let token = new.as_ref().map(|new| new.token.clone()).map_err(CallError::clone);
            let is_in_vain = token.as_ref().map_or(true, |token| Some(token) == refused.as_ref());
            state.rests = is_in_vain.then(|| (Instant::now() + REST, token.clone()));
            state.kept = new.ok();
            token
        });
        let lost = |error: tokio::task::JoinError| Err(CallError::Ours(error.to_string()));
        task.map(move |done| done.unwrap_or_else(lost)).boxed().shared()
    }

    async fn ask(&self) -> Result<Kept, CallError> {
        let method = match self.settings.auth_method {
            AuthMethod::ClientSecretBasic => AuthType::BasicAuth,
            AuthMethod::ClientSecretPost => AuthType::RequestBody,
        };
        let client = BasicClient::new(ClientId::new(self.settings.client_id.clone()))
            .set_client_secret(ClientSecret::new(self.secret.first_now()))
            .set_token_uri(self.url.clone())
            .set_auth_type(method);
        let scopes = self.settings.scopes.iter().cloned().map(Scope::new);
        let call = |request: HttpRequest| call(self.http.clone(), request);
        let mut request = client.exchange_client_credentials().add_scopes(scopes);
        if let Some(audience) = &self.settings.audience {
            request = request.add_extra_param("audience", audience);
        }
        let answer = request.request_async(&call).await.map_err(|error| match error {
            RequestTokenError::Request(CallFailed(message)) => {
                CallError::Unreachable(format!("token endpoint: {message}"))
            }
            RequestTokenError::ServerResponse(said) => {
                CallError::Credentials(format!("the token endpoint refuses us: {said}"))
            }
            // A gateway's error page, say.
            error => CallError::Unreachable(format!("token endpoint: {}", chain(&error))),
        })?;
        let life = answer.expires_in().unwrap_or(UNSAID_LIFE).min(LONGEST_LIFE);
        let renew_at = Instant::now() + life.saturating_sub(RENEW_BEFORE).max(life / 2);
        Ok(Kept { token: answer.access_token().secret().clone(), renew_at })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct CallFailed(String);

/// One request of the library's, by our own HTTP client, answer bounded.
async fn call(http: reqwest::Client, request: HttpRequest) -> Result<HttpResponse, CallFailed> {
    let failed = |error: reqwest::Error| CallFailed(chain(&error.without_url()));
    let request = reqwest::Request::try_from(request).map_err(failed)?;
    let mut response = http.execute(request).await.map_err(failed)?;
    let status = response.status();
    if status.is_server_error() {
        return Err(CallFailed(format!("it answers {status}")));
    }
    let headers = std::mem::take(response.headers_mut());
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(failed)? {
        body.extend_from_slice(&piece);
        if body.len() > MAX_ANSWER_BYTES {
            return Err(CallFailed("the answer is too long".to_owned()));
        }
    }
    let mut answer = HttpResponse::new(body);
    (*answer.status_mut(), *answer.headers_mut()) = (status, headers);
    Ok(answer)
}
