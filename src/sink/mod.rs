//! The reference backend: for the demo, for tests, and for staging before the real system is there.
//!
//! In: the requests of `docs/backend-api.yaml`. Out: a SQLite file, the files of activities, a page to look at, and
//! answers to look-ups from a directory file.
//! Promise: the same key is answered with the first answer; an answer of 201 means that all is on disk; files are
//! streamed and their SHA-256 checked. However much is stored, a request needs memory for a page of it.
//!
//! What is stored is listed by `GET /v1/activities`, which is the sink's own and no part of the contract: oldest first, in
//! pages of 1,000 activities or 4 MiB of JSON, whichever comes first, and of one activity at least. While there are more,
//! the header `Link: <?after=NUMBER>; rel="next"` (RFC 8288) leads to the next page. `?limit=N` is the N newest, newest
//! last, or as many of them as a page holds; nothing follows them.
//! Fails: problem details (RFC 9457). Fault switches make it fail on purpose.

#[cfg(test)]
mod contract;
mod directory;
mod page;
mod receive;
mod signature;
mod store;

use crate::directory::FileDirectory;
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path as UrlPath, Query, Request, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use receive::receive;
use serde::{Deserialize, Serialize};
use std::{
    collections::{HashSet, VecDeque},
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use store::{Store, Which, verified};
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;

/// Activities shown on the page.
const NEWEST: usize = 50;

/// How the sink behaves.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Where it keeps what it receives.
    pub data: PathBuf,
    /// Bearer token it asks for.
    pub token: Option<String>,
    /// Share of requests answered 503: half of them before anything is stored, half after, as a lost answer.
    pub fail_rate: f64,
    /// Answer every POST with this status, and store nothing.
    pub status: Option<u16>,
    /// Wait before each answer.
    pub delay: Duration,
    /// Never answer.
    pub hang: bool,
    /// Signing secrets (`whsec_…`): what is not signed with one of them is answered 401.
    pub signing_secrets: Vec<String>,
    /// A directory file to answer look-ups from.
    pub directory: Option<PathBuf>,
    /// `Cache-Control` of look-ups.
    pub cache_control: Option<String>,
}

/// What all requests share.
struct Sink {
    settings: Settings,
    store: Store,
    /// Keys whose request is running: a second one is told 409.
    running: Mutex<HashSet<String>>,
    keys: Vec<ring::hmac::Key>,
    directory: Option<Arc<FileDirectory>>,
    /// How many look-ups there were.
    look_ups: AtomicU64,
    /// Each answered `POST /v1/activities`: key and status, the newest last.
    attempts: Mutex<VecDeque<String>>,
}

/// Attempts that are remembered.
const MOST_ATTEMPTS: usize = 100_000;

/// Serves until `shutdown` completes.
/// # Errors
/// A data directory that cannot be used.
pub async fn run(
    listener: TcpListener,
    settings: Settings,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let store = Store::open(&settings.data)?;
    let keys = signature::keys(&settings.signing_secrets).map_err(io::Error::other)?;
    let directory = match &settings.directory {
        Some(path) => {
            let directory = Arc::new(FileDirectory::open(path).map_err(io::Error::other)?);
            tokio::spawn(directory.watch());
            Some(directory)
        }
        None => None,
    };
    let look_ups = AtomicU64::new(0);
    let (running, attempts) = (Mutex::default(), Mutex::default());
    let sink = Arc::new(Sink { settings, store, running, keys, directory, look_ups, attempts });
    let router = Router::new()
        .route("/", get(index))
        .route("/v1/activities", get(list).post(receive))
        .route("/v1/activities/{key}", get(one))
        .route("/v1/tenants/{prefix}", get(directory::tenant))
        .route("/v1/tenants/{prefix}/resolve", post(directory::resolve))
        .route("/look-ups", get(look_ups_so_far))
        .route("/attempts", get(attempts_so_far))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is nothing here"))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "the contract has no such method here")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&sink), authorised))
        .layer(DefaultBodyLimit::disable())
        .with_state(sink);
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}

/// An error as clients read it (RFC 9457).
#[derive(Debug, Serialize)]
struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
}

impl Problem {
    fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self { kind: "about:blank", title, status: status.as_u16(), detail: detail.into() }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(self)).into_response()
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

async fn authorised(State(sink): State<Arc<Sink>>, request: Request, next: Next) -> Response {
    let Some(token) = &sink.settings.token else { return next.run(request).await };
    let given = request.headers().get(header::AUTHORIZATION).map(header::HeaderValue::as_bytes);
    // In a time that does not tell how much of it is right.
    let is_right = |given: &[u8]| bool::from(given.ct_eq(token.as_bytes()));
    if given.and_then(|value| value.strip_prefix(b"Bearer ")).is_some_and(is_right) {
        return next.run(request).await;
    }
    let mut response =
        Problem::new(StatusCode::UNAUTHORIZED, "the bearer token is missing or wrong").into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    response
}

#[derive(Deserialize)]
struct ListQuery {
    /// Those after this number.
    after: Option<u64>,
    /// Only the newest so many.
    limit: Option<u64>,
}

impl ListQuery {
    fn which(&self) -> Result<Which, Problem> {
        match (self.after, self.limit) {
            (after, None) => Ok(Which::After(i64::try_from(after.unwrap_or(0)).unwrap_or(i64::MAX))),
            (None, Some(limit)) => Ok(Which::Newest(limit)),
            (Some(_), Some(_)) => {
                Err(Problem::new(StatusCode::BAD_REQUEST, "`after` and `limit` do not go together"))
            }
        }
    }
}

async fn list(
    State(sink): State<Arc<Sink>>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let bad = |error: QueryRejection| Problem::new(StatusCode::BAD_REQUEST, error.body_text());
    let which = query.map_err(bad)?.which()?;
    let word = move |store: &Store| {
        let page = store.page(which)?;
        // Each text becomes its place in the answer before the next is looked at.
        let mut json = String::from("[");
        for text in page.texts {
            json.push_str(if json.len() > 1 { "," } else { "" });
            json.push_str(&verified(&text));
        }
        Ok((json + "]", page.more_after))
    };
    let (json, more_after) = blocking(&sink, word).await?;
    let next = more_after.map(|after| [(header::LINK, format!("<?after={after}>; rel=\"next\""))]);
    Ok((next, as_json(json)).into_response())
}

async fn one(State(sink): State<Arc<Sink>>, UrlPath(key): UrlPath<String>) -> Result<Response, Problem> {
    let word = move |store: &Store| Ok(store.get(&key)?.map(|text| verified(&text)));
    match blocking(&sink, word).await? {
        Some(json) => Ok(as_json(json).into_response()),
        None => Err(Problem::new(StatusCode::NOT_FOUND, "no activity has this key")),
    }
}

fn as_json(json: String) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], json)
}

/// How many look-ups there were, for tests of caches.
async fn look_ups_so_far(State(sink): State<Arc<Sink>>) -> String {
    sink.look_ups.load(Ordering::Relaxed).to_string()
}

/// Key and status of each attempt that was answered, a line each, for tests that nothing is sent twice.
async fn attempts_so_far(State(sink): State<Arc<Sink>>) -> String {
    let attempts = sink.attempts.lock().unwrap_or_else(PoisonError::into_inner);
    attempts.iter().fold(String::new(), |lines, attempt| lines + attempt + "\n")
}

async fn index(State(sink): State<Arc<Sink>>) -> Result<Response, Problem> {
    let render = |store: &Store| {
        let mut page = page::Page::default();
        for number in store.newest(NEWEST)? {
            page.add(store.text(number)?.as_deref().unwrap_or_default());
        }
        Ok(page.finish())
    };
    let page = blocking(&sink, render).await?;
    let mut headers = HeaderMap::new();
    // Mail is shown as text only; nothing of it may run or load.
    let policy = header::HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'");
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    Ok((headers, Html(page)).into_response())
}

/// Runs a look into the store on a thread that may block.
async fn blocking<T: Send + 'static>(
    sink: &Arc<Sink>,
    work: impl FnOnce(&Store) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let sink = Arc::clone(sink);
    tokio::task::spawn_blocking(move || work(&sink.store)).await.map_err(io::Error::other)?
}

/// A key whose request is running; free again when this is dropped.
struct Running {
    sink: Arc<Sink>,
    key: String,
}

impl Running {
    fn start(sink: &Arc<Sink>, key: &str) -> Option<Self> {
        let mut running = sink.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(key.to_owned()).then(|| Self { sink: Arc::clone(sink), key: key.to_owned() })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.sink.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
