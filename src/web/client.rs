//! A connection with our credentials, for deliveries and look-ups.
//!
//! In: a request, and the time for all of it. Out: the answer, whatever its status.
//! Promise: a credential that was renewed meanwhile is tried once after a 401. One time covers all: the token, the request,
//! the second try, the answer.
//! Fails: [`CallError`].

use super::{
    call::CallError,
    connection::{self, ClientError, Connection, send_once},
    keeper::Keeper,
    oauth::{self, Endpoint},
    secret::SecretFile,
    tokens::Tokens,
};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

/// Settings of the client.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The connection.
    pub connection: connection::Settings,
    /// How we say who we are.
    pub credentials: Credentials,
}

impl Settings {
    /// A connection without credentials and with nothing special.
    pub fn new(url: Url, timeout: Duration) -> Self {
        Self { connection: connection::Settings::new(url, timeout), credentials: Credentials::None }
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

/// The client.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    credentials: Credentials,
    tokens: Option<Box<dyn Tokens>>,
}

impl Client {
    /// Prepares the client; connects to nobody yet.
    /// # Errors
    /// Files that cannot be read or are not what they should be; an URL that cannot be a base.
    pub fn new(settings: &Settings) -> Result<Self, ClientError> {
        let connection = Connection::new(&settings.connection)?;
        let tokens: Option<Box<dyn Tokens>> = match &settings.credentials {
            Credentials::None => None,
            Credentials::Token(path) => Some(Box::new(SecretFile::open(path).map_err(ClientError::new)?)),
            Credentials::OAuth(oauth) => {
                let endpoint =
                    Endpoint::new(oauth.clone(), connection.http().clone()).map_err(ClientError::new)?;
                Some(Box::new(Keeper::new(endpoint, settings.connection.timeout)))
            }
        };
        Ok(Self { connection, credentials: settings.credentials.clone(), tokens })
    }

    /// True if both ask the same system, as the same caller; what stands in files of secrets may differ.
    pub fn is_same_caller(&self, other: &Self) -> bool {
        self.connection.is_same(&other.connection) && self.credentials == other.credentials
    }

    /// The URL of a path below the base, each segment percent-encoded.
    pub fn url(&self, segments: &[&str]) -> Url {
        self.connection.url(segments)
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
        let response =
            send_once(build(self.connection.http())?.timeout(left()), credential.as_deref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let newer = self.credential(credential.as_deref(), left()).await?;
        if newer == credential {
            return Ok(response);
        }
        send_once(build(self.connection.http())?.timeout(left()), newer.as_deref()).await
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
