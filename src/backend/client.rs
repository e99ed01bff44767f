//! The connection to the backend: one HTTP client for deliveries and look-ups, with our credentials.
//!
//! In: a request, and the time for all of it. Out: the answer, whatever its status.
//! Promise: TLS 1.2 or newer by rustls; no redirect is followed; no proxy but a configured one; a credential that was
//! renewed meanwhile is tried once after a 401. One time covers all: the token, the request, the second try, the answer.
//! Fails: [`CallError`].

use super::{
    call::{CallError, chain},
    oauth::{self, OAuth},
    secret::SecretFile,
    tokens::Tokens,
};
use reqwest::{
    Certificate, Identity, RequestBuilder, Response, StatusCode, Url,
    header::{AUTHORIZATION, HeaderValue},
    redirect, tls,
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Settings of the connection.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Base URL; `v1/…` is appended.
    pub url: Url,
    /// How we say who we are.
    pub credentials: Credentials,
    /// Time for connecting and for the answer; large requests get more, by their size.
    pub timeout: Duration,
    /// Authorities to trust besides the system's, a PEM file.
    pub ca_file: Option<PathBuf>,
    /// Certificate and key for mutual TLS, PEM files.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// A proxy; none: straight, whatever the environment says.
    pub proxy: Option<Url>,
}

impl Settings {
    /// A connection without credentials and with nothing special.
    pub fn new(url: Url, timeout: Duration) -> Self {
        Self { url, credentials: Credentials::None, timeout, ca_file: None, identity: None, proxy: None }
    }
}

/// How we say who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// Not at all, or by mutual TLS.
    None,
    /// A bearer token in a file (RFC 6750).
    Token(PathBuf),
    /// OAuth 2 client credentials.
    OAuth(oauth::Settings),
}

/// Why the client cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("backend: {0}")]
pub struct ClientError(pub(super) String);

/// The client.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    credentials: Credentials,
    identity: Option<(PathBuf, PathBuf)>,
    tokens: Option<Box<dyn Tokens>>,
}

impl Client {
    /// Prepares the client; connects to nobody yet.
    /// # Errors
    /// Files that cannot be read or are not what they should be; an URL that cannot be a base.
    pub fn new(settings: &Settings) -> Result<Self, ClientError> {
        // reqwest takes the process's provider; the first one installed stays, and it is the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("activity-milter/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(settings.timeout)
            .timeout(settings.timeout)
            .tls_version_min(tls::Version::TLS_1_2)
            // A redirected POST is a wrong URL of ours; it must not carry mail to whoever answered.
            .redirect(redirect::Policy::none())
            .no_proxy();
        if let Some(path) = &settings.ca_file {
            let pem = read(path)?;
            let authorities = Certificate::from_pem_bundle(&pem).map_err(|error| in_file(path, &error))?;
            if authorities.is_empty() {
                return Err(ClientError(format!("{} holds no certificate in PEM form", path.display())));
            }
            builder = builder.tls_certs_merge(authorities);
        }
        if let Some((certificate, key)) = &settings.identity {
            let pem = [read(key)?, b"\n".to_vec(), read(certificate)?].concat();
            builder =
                builder.identity(Identity::from_pem(&pem).map_err(|error| in_file(certificate, &error))?);
        }
        if let Some(proxy) = &settings.proxy {
            builder = builder
                .proxy(reqwest::Proxy::all(proxy.clone()).map_err(|error| ClientError(chain(&error)))?);
        }
        let http = builder.build().map_err(|error| ClientError(chain(&error)))?;
        let tokens: Option<Box<dyn Tokens>> = match &settings.credentials {
            Credentials::None => None,
            Credentials::Token(path) => Some(Box::new(SecretFile::open(path).map_err(ClientError)?)),
            Credentials::OAuth(oauth) => {
                let tokens = OAuth::new(oauth.clone(), http.clone(), settings.timeout);
                Some(Box::new(tokens.map_err(ClientError)?))
            }
        };
        if settings.url.cannot_be_a_base() {
            return Err(ClientError(format!("{} cannot be a base URL", settings.url)));
        }
        let (credentials, identity) = (settings.credentials.clone(), settings.identity.clone());
        Ok(Self { http, base: settings.url.clone(), credentials, identity, tokens })
    }

    /// True if both ask the same system, as the same caller; what stands in files of secrets may differ.
    pub fn is_same_caller(&self, other: &Self) -> bool {
        self.base == other.base && self.credentials == other.credentials && self.identity == other.identity
    }

    /// The URL of a path below the base, each segment percent-encoded.
    pub fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// Sends what `build` makes, with our credentials; `build` may be asked twice. The answer must have come, and been read
    /// to its end, within `patience`.
    /// # Errors
    /// [`CallError`]; an answer with an error status is none.
    pub async fn send(
        &self,
        patience: Duration,
        build: impl Fn(&reqwest::Client) -> Result<RequestBuilder, CallError>,
    ) -> Result<Response, CallError> {
        let began = Instant::now();
        let left = || patience.saturating_sub(began.elapsed());
        let credential = self.credential(None, left()).await?;
        let response = send_once(build(&self.http)?.timeout(left()), credential.as_deref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let newer = self.credential(credential.as_deref(), left()).await?;
        if newer == credential {
            return Ok(response);
        }
        send_once(build(&self.http)?.timeout(left()), newer.as_deref()).await
    }

    /// The bearer token to show; `refused` is one that was not taken.
    async fn credential(
        &self,
        refused: Option<&str>,
        patience: Duration,
    ) -> Result<Option<String>, CallError> {
        let Some(tokens) = &self.tokens else { return Ok(None) };
        let late = |_| CallError::Silent("no token in time".to_owned());
        Ok(Some(tokio::time::timeout(patience, tokens.token(refused)).await.map_err(late)??))
    }
}

async fn send_once(request: RequestBuilder, credential: Option<&str>) -> Result<Response, CallError> {
    let request = match credential {
        None => request,
        Some(token) => {
            let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| {
                CallError::Credentials("the bearer token cannot stand in a header".to_owned())
            })?;
            value.set_sensitive(true);
            request.header(AUTHORIZATION, value)
        }
    };
    request.send().await.map_err(CallError::of)
}

fn read(path: &Path) -> Result<Vec<u8>, ClientError> {
    fs::read(path).map_err(|error| ClientError(format!("{} cannot be read: {error}", path.display())))
}

fn in_file(path: &Path, error: &reqwest::Error) -> ClientError {
    ClientError(format!("{}: {}", path.display(), chain(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_appended_and_encoded() {
        for (base, expected) in [
            ("https://crm.test", "https://crm.test/v1/tenants/a%2Fb%20%C3%A5/resolve"),
            ("https://crm.test/base/", "https://crm.test/base/v1/tenants/a%2Fb%20%C3%A5/resolve"),
            ("https://crm.test/base", "https://crm.test/base/v1/tenants/a%2Fb%20%C3%A5/resolve"),
        ] {
            let client = Client::new(&Settings::new(base.parse().unwrap(), Duration::from_secs(1))).unwrap();
            assert_eq!(client.url(&["v1", "tenants", "a/b å", "resolve"]).as_str(), expected);
        }
    }
}
