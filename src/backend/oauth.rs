//! OAuth 2 client credentials (RFC 6749, section 4.4): our name and secret for a token that lasts a while.
//!
//! In: a token endpoint. Out: an access token, asked for once by however many need it, and anew before it expires.
//! Fails: [`CallError`]: the endpoint cannot be reached (again later), or refuses us (our settings).

use super::{
    client::{CallError, chain},
    secret::SecretFile,
};
use oauth2::{
    AuthType, ClientId, ClientSecret, HttpRequest, HttpResponse, RequestTokenError, Scope,
    TokenResponse as _, TokenUrl, basic::BasicClient,
};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// A token is renewed this long before it expires, or at half its life if that is shorter.
const RENEW_BEFORE: Duration = Duration::from_secs(60);

/// Life of a token whose endpoint does not say (RFC 6749, section 5.1 recommends that it does).
const UNSAID_LIFE: Duration = Duration::from_secs(300);

/// Bytes of an answer that are read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Settings of the token endpoint.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The token endpoint.
    pub token_url: reqwest::Url,
    /// Our name.
    pub client_id: String,
    /// File with our secret.
    pub client_secret_file: std::path::PathBuf,
    /// What we ask for.
    pub scopes: Vec<String>,
}

/// Gets tokens and keeps the newest.
#[derive(Debug)]
pub(super) struct Tokens {
    url: TokenUrl,
    settings: Settings,
    secret: SecretFile,
    kept: Mutex<Option<Kept>>,
}

#[derive(Debug)]
struct Kept {
    token: String,
    renew_at: Instant,
}

impl Tokens {
    pub(super) fn new(settings: Settings) -> Result<Self, String> {
        let secret = SecretFile::open(&settings.client_secret_file)?;
        Ok(Self {
            url: TokenUrl::from_url(settings.token_url.clone()),
            settings,
            secret,
            kept: Mutex::default(),
        })
    }

    /// The token; `refused` is one that the backend did not take, and which is therefore not given again.
    pub(super) async fn token(
        &self,
        http: &reqwest::Client,
        refused: Option<&str>,
    ) -> Result<String, CallError> {
        // Held while a new token is asked for: whoever comes meanwhile gets the same one.
        let mut kept = self.kept.lock().await;
        if let Some(kept) = kept.as_ref()
            && kept.renew_at > Instant::now()
            && refused != Some(kept.token.as_str())
        {
            return Ok(kept.token.clone());
        }
        let new = self.ask(http).await?;
        let token = new.token.clone();
        *kept = Some(new);
        Ok(token)
    }

    async fn ask(&self, http: &reqwest::Client) -> Result<Kept, CallError> {
        let client = BasicClient::new(ClientId::new(self.settings.client_id.clone()))
            .set_client_secret(ClientSecret::new(self.secret.first_now()))
            .set_token_uri(self.url.clone())
            .set_auth_type(AuthType::BasicAuth);
        let scopes = self.settings.scopes.iter().cloned().map(Scope::new);
        let call = |request: HttpRequest| call(http.clone(), request);
        let answer = client.exchange_client_credentials().add_scopes(scopes).request_async(&call).await;
        let answer = answer.map_err(|error| match error {
            RequestTokenError::Request(CallFailed(message)) => {
                CallError::Unreachable(format!("token endpoint: {message}"))
            }
            RequestTokenError::ServerResponse(said) => {
                CallError::Credentials(format!("the token endpoint refuses us: {said}"))
            }
            // A gateway's error page, say.
            error => CallError::Unreachable(format!("token endpoint: {}", chain(&error))),
        })?;
        let life = answer.expires_in().unwrap_or(UNSAID_LIFE);
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
