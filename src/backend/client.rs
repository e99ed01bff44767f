//! The connection to the backend: one HTTP client for deliveries and look-ups, with our credentials.
//!
//! In: a request. Out: the answer, whatever its status.
//! Promise: TLS 1.2 or newer by rustls; no redirect is followed; no proxy but a configured one; a credential that was
//! renewed meanwhile is tried once after a 401.
//! Fails: [`CallError`].

use super::{
    oauth::{self, Tokens},
    secret::SecretFile,
};
use crate::activity::one_line;
use reqwest::{
    Certificate, Identity, RequestBuilder, Response, StatusCode, Url,
    header::{AUTHORIZATION, HeaderValue},
    redirect, tls,
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
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
#[derive(Clone, Debug)]
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

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// No connection, no answer in time: later again.
    #[error("{0}")]
    Unreachable(String),
    /// We have no credential to show: our settings.
    #[error("{0}")]
    Credentials(String),
}

/// The client.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    credentials: Held,
}

#[derive(Debug)]
enum Held {
    None,
    Token(SecretFile),
    OAuth(Box<Tokens>),
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
        let credentials = match &settings.credentials {
            Credentials::None => Held::None,
            Credentials::Token(path) => Held::Token(SecretFile::open(path).map_err(ClientError)?),
            Credentials::OAuth(oauth) => {
                Held::OAuth(Box::new(Tokens::new(oauth.clone()).map_err(ClientError)?))
            }
        };
        if settings.url.cannot_be_a_base() {
            return Err(ClientError(format!("{} cannot be a base URL", settings.url)));
        }
        Ok(Self { http, base: settings.url.clone(), credentials })
    }

    /// The URL of a path below the base, each segment percent-encoded.
    pub fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// Sends what `build` makes, with our credentials; `build` may be asked twice.
    /// # Errors
    /// [`CallError`]; an answer with an error status is none.
    pub async fn send(
        &self,
        build: impl Fn(&reqwest::Client) -> Result<RequestBuilder, CallError>,
    ) -> Result<Response, CallError> {
        let credential = self.credential(None).await?;
        let response = send_once(build(&self.http)?, credential.as_deref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let newer = self.credential(credential.as_deref()).await?;
        if newer == credential { Ok(response) } else { send_once(build(&self.http)?, newer.as_deref()).await }
    }

    /// The bearer token to show; `refused` is one that was not taken.
    async fn credential(&self, refused: Option<&str>) -> Result<Option<String>, CallError> {
        match &self.credentials {
            Held::None => Ok(None),
            Held::Token(file) if refused.is_some() => Ok(Some(file.first_now())),
            Held::Token(file) => Ok(Some(file.first())),
            Held::OAuth(tokens) => tokens.token(&self.http, refused).await.map(Some),
        }
    }
}

async fn send_once(request: RequestBuilder, credential: Option<&str>) -> Result<Response, CallError> {
    let unreachable = |error: reqwest::Error| CallError::Unreachable(chain(&error.without_url()));
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
    request.send().await.map_err(unreachable)
}

/// The first bytes of an answer; whatever goes wrong, what came so far.
pub async fn body_of(mut response: Response, most: usize) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < most
        && let Ok(Some(piece)) = response.chunk().await
    {
        body.extend_from_slice(&piece);
    }
    body.truncate(most);
    body
}

fn read(path: &Path) -> Result<Vec<u8>, ClientError> {
    fs::read(path).map_err(|error| ClientError(format!("{} cannot be read: {error}", path.display())))
}

fn in_file(path: &Path, error: &reqwest::Error) -> ClientError {
    ClientError(format!("{}: {}", path.display(), chain(error)))
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    one_line(&text)
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
