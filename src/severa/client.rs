//! One company's way to the API: its calls, its pace, its token, and what answers mean.
//!
//! In: a [`Request`]. Out: what the API answers, as our types or as bytes.
//! Promise: each call has its turn ([`super::pace`]); a token that is refused is renewed once; an answer is read whole or
//! not at all. Other settings keep the pace, and the token if it would be the same one.
//! Fails: [`Failed`].

use super::{
    clock::{self, Clock},
    error::{Failed, failed, is_of_the_api},
    pace::{Budget, Pace},
    token::{Endpoint, Granted},
};
use crate::observe::metrics;
use crate::web::{
    CallError, ClientError, Connection, ConnectionSettings, Keeper, SecretFile, Tokens, misread, read_whole,
    retry_after, send_once,
};
use reqwest::{Method, RequestBuilder, Response, header::HeaderMap};
use serde::de::DeserializeOwned;
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// Bytes of an answer that are read: a hundred projects with everything the API tells of them, ten times over.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// Calls for unknown numbers in any second.
pub const LOOK_UP_CALLS: usize = 2;

/// Answers about what was asked for, if it is the API that gives them.
const MEANT_AS_DATA: [u16; 6] = [404, 405, 409, 410, 421, 425];

/// Settings of one company's access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The connection, the API's base URL with it.
    pub connection: ConnectionSettings,
    /// The company's client id.
    pub client_id: String,
    /// File with its secret; read anew for each token.
    pub client_secret_file: PathBuf,
}

/// A call: where, and with what in its query.
#[derive(Clone, Debug)]
pub struct Request {
    method: Method,
    path: Vec<String>,
    query: Vec<(&'static str, String)>,
}

impl Request {
    /// A GET of a path below the base URL.
    pub fn get(path: &[&str]) -> Self {
        Self::new(Method::GET, path)
    }

    /// A POST.
    pub fn post(path: &[&str]) -> Self {
        Self::new(Method::POST, path)
    }

    fn new(method: Method, path: &[&str]) -> Self {
        Self { method, path: path.iter().map(|&segment| segment.to_owned()).collect(), query: Vec::new() }
    }

    /// With a query parameter more.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    /// With a point of time.
    pub fn since(self, time: SystemTime) -> Self {
        self.with("changedSince", clock::written(time))
    }
}

/// Puts a body on a request; asked again for a second try.
pub type Body<'a> = &'a (dyn Fn(RequestBuilder) -> Result<RequestBuilder, CallError> + Send + Sync);

/// One company's client.
#[derive(Debug)]
pub struct Client {
    settings: Settings,
    connection: Arc<Connection>,
    pace: Arc<Pace>,
    clock: Arc<Clock>,
    look_ups: Arc<Budget>,
    granted: Arc<Granted>,
    tokens: Keeper<Endpoint>,
}

impl Client {
    /// Prepares the client; connects to nobody yet.
    /// # Errors
    /// Files that cannot be read or are not what they should be.
    pub fn new(settings: &Settings) -> Result<Self, ClientError> {
        Self::with(settings, Arc::default(), Arc::default(), Arc::new(Budget::new(LOOK_UP_CALLS)))
    }

    /// The same company with other settings. The pace stays, because the API counts on; the token too, if nothing changed.
    /// # Errors
    /// As [`Client::new`].
    pub fn renewed(self: &Arc<Self>, settings: &Settings) -> Result<Arc<Self>, ClientError> {
        if *settings == self.settings {
            return Ok(Arc::clone(self));
        }
        let look_ups = Arc::clone(&self.look_ups);
        Self::with(settings, Arc::clone(&self.pace), Arc::clone(&self.clock), look_ups).map(Arc::new)
    }

    fn with(
        settings: &Settings,
        pace: Arc<Pace>,
        clock: Arc<Clock>,
        look_ups: Arc<Budget>,
    ) -> Result<Self, ClientError> {
        let connection = Arc::new(Connection::new(&settings.connection)?);
        let granted = Arc::new(Granted::default());
        let endpoint = Endpoint {
            connection: Arc::clone(&connection),
            client_id: settings.client_id.clone(),
            secret: SecretFile::open(&settings.client_secret_file).map_err(ClientError::new)?,
            pace: Arc::clone(&pace),
            clock: Arc::clone(&clock),
            granted: Arc::clone(&granted),
        };
        let tokens = Keeper::new(endpoint, settings.connection.timeout);
        Ok(Self { settings: settings.clone(), connection, pace, clock, look_ups, granted, tokens })
    }

    /// Base URL of the API.
    pub fn url(&self) -> &reqwest::Url {
        &self.settings.connection.url
    }

    /// The company's client id.
    pub fn client_id(&self) -> &str {
        &self.settings.client_id
    }

    /// Calls that strangers can cause.
    pub fn look_ups(&self) -> &Budget {
        &self.look_ups
    }

    /// Time for an answer.
    pub fn timeout(&self) -> Duration {
        self.settings.connection.timeout
    }

    /// What time it is there, or earlier: by its newest answer's date or by our own clock, whichever is behind. What is
    /// asked for from then on is not missed, if only one of them is right: a single machine of theirs may be ahead.
    pub fn now(&self) -> SystemTime {
        self.clock.now().min(SystemTime::now())
    }

    /// The time so long before now, as the API takes it.
    pub fn written_before(&self, margin: Duration) -> String {
        clock::written(self.now().checked_sub(margin).unwrap_or(SystemTime::UNIX_EPOCH))
    }

    /// How far its clock is before ours (true) or behind, if an answer has shown it.
    pub fn difference(&self) -> Option<(bool, Duration)> {
        self.clock.difference()
    }

    /// Makes sure that there is a token, and names the scopes that it lacks, as far as the API tells.
    /// # Errors
    /// [`Failed`]
    pub async fn scopes_missing(&self) -> Result<Vec<&'static str>, Failed> {
        self.token(None).await?;
        Ok(self.granted.missing())
    }

    /// Asks for a JSON document.
    /// # Errors
    /// [`Failed`]; also an answer that is another document.
    pub async fn read<T: DeserializeOwned>(&self, request: &Request) -> Result<T, Failed> {
        self.create(request, &Ok, self.timeout()).await
    }

    /// Posts, and reads what was created.
    /// # Errors
    /// [`Failed`]; an answer of success that cannot be read is lost, because something was created.
    pub async fn create<T: DeserializeOwned>(
        &self,
        request: &Request,
        body: Body<'_>,
        patience: Duration,
    ) -> Result<T, Failed> {
        let patience = Patience { answer: patience, pause: SITS_OUT };
        let (_, body) = self.call(request, body, patience).await?;
        serde_json::from_slice(&body).map_err(|error| not_read(request, &misread(&error)))
    }

    /// A page of a list: what it holds, and the token of the next page if the answer has one.
    pub(super) async fn page<T: DeserializeOwned>(
        &self,
        request: &Request,
        patience: Patience,
    ) -> Result<(T, Option<String>), Failed> {
        let answer = self.call(request, &Ok, patience).await;
        let (head, body) = answer.map_err(|failed| match failed {
            // Lists are there, whatever is in them.
            Failed::Refused(refusal) if refusal.status == 404 => not_read(request, "it says 404"),
            failed => failed,
        })?;
        let rows = serde_json::from_slice(&body).map_err(|error| not_read(request, &misread(&error)))?;
        let Some(token) = head.get("NextPageToken") else { return Ok((rows, None)) };
        // A list that ends here only because we cannot read how it goes on has no end.
        let token = token.to_str().map_err(|_| not_read(request, "its NextPageToken is no text"))?;
        Ok((rows, Some(token.trim().to_owned()).filter(|token| !token.is_empty())))
    }

    /// The answer's head and body, if it is one of success.
    async fn call(
        &self,
        request: &Request,
        body: Body<'_>,
        patience: Patience,
    ) -> Result<(HeaderMap, Vec<u8>), Failed> {
        let answer = self.answer(request, body, patience).await;
        metrics::severa_call(match &answer {
            Ok(_) => "ok",
            Err(Failed::NotSent(_) | Failed::NoToken(_) | Failed::Paused(_) | Failed::Ours(_)) => "unsent",
            Err(Failed::Busy(_)) => "busy",
            Err(Failed::Lost(_)) => "lost",
            Err(Failed::Account(_) | Failed::AccountOrLost(_)) => "account",
            Err(Failed::Refused(_)) => "refused",
        });
        answer
    }

    /// Makes one call, or two if the token was refused.
    async fn answer(
        &self,
        request: &Request,
        body: Body<'_>,
        patience: Patience,
    ) -> Result<(HeaderMap, Vec<u8>), Failed> {
        let token = self.token(None).await?;
        let (mut response, mut begun) = self.send(request, body, &token, patience).await?;
        if response.status() == 401 {
            let newer = self.token(Some(&token)).await?;
            if newer != token {
                (response, begun) = self.send(request, body, &newer, patience).await?;
            }
        }
        let status = response.status();
        let (head, after) = (response.headers().clone(), retry_after(&response));
        if status == 429 {
            return Err(Failed::Busy(self.pace.hold_for(after, begun)));
        }
        self.pace.is_well(begun);
        let body = read_whole(response, MAX_ANSWER_BYTES).await;
        if status.is_success() {
            return body.map(|body| (head, body)).map_err(|error| not_read(request, &error));
        }
        let body = body.unwrap_or_default();
        if MEANT_AS_DATA.contains(&status.as_u16()) && !is_of_the_api(&body) {
            // A gateway's, or a wrong URL's: it says nothing of what was asked for.
            return Err(Failed::Lost(format!(
                "not Severa, but somebody before it says {status}: is backend.url right?"
            )));
        }
        Err(failed(status.as_u16(), &body))
    }

    async fn send(
        &self,
        request: &Request,
        body: Body<'_>,
        token: &str,
        patience: Patience,
    ) -> Result<(Response, Instant), Failed> {
        let begun = self.pace.turn(patience.pause).await.map_err(Failed::Paused)?;
        let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
        let mut url = self.connection.url(&path);
        if !request.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&request.query);
        }
        let http = self.connection.http().request(request.method.clone(), url);
        let http = http.header("Client_Id", &self.settings.client_id).timeout(patience.answer);
        let http = body(http).map_err(|error| Failed::Ours(error.to_string()))?;
        let response = send_once(http, Some(token)).await.map_err(|error| match error {
            CallError::Unreachable(reason) => Failed::NotSent(reason),
            CallError::Silent(reason) | CallError::Broken(reason) | CallError::Severed(reason) => {
                Failed::Lost(reason)
            }
            CallError::Busy(left) => Failed::Busy(left),
            CallError::Credentials(reason) => Failed::Account(reason),
            CallError::Ours(reason) => Failed::Ours(reason),
        })?;
        self.clock.learn(&response);
        Ok((response, begun))
    }

    async fn token(&self, refused: Option<&str>) -> Result<String, Failed> {
        self.tokens.token(refused).await.map_err(|error| match error {
            CallError::Busy(left) => Failed::Paused(left),
            CallError::Credentials(reason) => Failed::Account(reason),
            CallError::Ours(reason) => Failed::Ours(reason),
            CallError::Unreachable(reason) | CallError::Silent(reason) | CallError::Severed(reason) => {
                Failed::NotSent(reason)
            }
            CallError::Broken(reason) => Failed::NoToken(reason),
        })
    }
}

/// How long somebody waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For the answer.
    pub(super) answer: Duration,
    /// For the end of a pause after a 429.
    pub(super) pause: Duration,
}

/// Longest pause after a 429 that somebody sits out for whom an SMTP client waits.
const SHORT_PAUSE: Duration = Duration::from_secs(2);

/// The same for a delivery: it keeps one of its own company's attempts, and nobody else's, and what waits behind it stays
/// where it is.
pub const SITS_OUT: Duration = Duration::from_secs(60);

impl Patience {
    pub(super) fn usual(client: &Client) -> Self {
        Self { answer: client.timeout(), pause: SHORT_PAUSE }
    }
}

/// The answer to a request is none that can be used.
fn not_read(request: &Request, why: &str) -> Failed {
    let (method, path) = (&request.method, request.path.join("/"));
    Failed::Lost(format!("the answer to {method} /{path} cannot be read: {why}"))
}
