//! OAuth 2 client credentials (RFC 6749, section 4.4): our name and secret for a token that lasts a while.
//!
//! In: a token endpoint. Out: an access token.
//! Fails: [`CallError`]: the endpoint cannot be reached (again later), or refuses us (our settings).

use super::{
    call::{CallError, chain},
    keeper::{Asks, Token},
    secret::SecretFile,
};
use async_trait::async_trait;
use oauth2::{
    AuthType, ClientId, ClientSecret, HttpRequest, HttpResponse, RequestTokenError, Scope,
    TokenResponse as _, TokenUrl, basic::BasicClient,
};
use std::time::Duration;

/// Life of a token whose endpoint does not say (RFC 6749, section 5.1 recommends that it does).
const UNSAID_LIFE: Duration = Duration::from_secs(300);

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthMethod {
    /// By HTTP Basic (RFC 6749, section 2.3.1).
    #[default]
    ClientSecretBasic,
    /// In the request's body.
    ClientSecretPost,
}

/// A token endpoint.
pub(super) struct Endpoint {
    url: TokenUrl,
    settings: Settings,
    secret: SecretFile,
    http: reqwest::Client,
}

impl Endpoint {
    /// An endpoint that is asked over `http`.
    pub(super) fn new(settings: Settings, http: reqwest::Client) -> Result<Self, String> {
        let secret = SecretFile::open(&settings.client_secret_file)?;
        let url = TokenUrl::from_url(settings.token_url.clone());
        Ok(Self { url, settings, secret, http })
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[async_trait]
impl Asks for Endpoint {
    async fn ask(&self) -> Result<Token, CallError> {
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
        let life = answer.expires_in().unwrap_or(UNSAID_LIFE);
        Ok(Token::new(answer.access_token().secret().clone(), life))
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
