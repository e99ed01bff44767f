//! The backend of a history: a server that takes every activity as often as it comes, and writes down each time.
//!
//! In: `POST /v1/activities` as `docs/backend-api.yaml` says, and how it behaves ([`Mood`]). Out: [`Delivery`]s, in their order.
//! Promise: it leaves nothing out and puts nothing together: what is sent twice is there twice. What was answered 201 is
//! written down. That what came is what was sent is looked at here: text and files are those of the message of that number.
//! Look-ups go to another server ([`Backend::ask`]), and have a mood of their own.
//! Fails: what is not as it was sent is written down as such ([`Backend::damaged`]).

use super::clients;
use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Multipart, State},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::Write,
    net::TcpListener,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;

/// One activity that came once.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    pub key: String,
    /// Of the message.
    pub number: usize,
    /// Who sent it, if it says so: `Authorization: Bearer NUMBER`.
    pub sender: Option<usize>,
    pub at: Instant,
    /// When it was answered 201: never, if who sent it had gone, or was to hear nothing.
    pub answered: Option<Instant>,
}

/// How it behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Well,
    /// So long from what was written down to the answer.
    Slow(Duration),
    /// 500, and nothing is written down.
    Fails,
    /// No answer, and nothing is written down.
    Hangs,
    /// It is written down, and the connection ends without an answer.
    Forgets,
    /// It is written down, and the answer is 503.
    Denies,
}

#[derive(Debug)]
struct Taken {
    log: File,
    deliveries: Vec<Delivery>,
    damaged: Vec<String>,
    mood: Mood,
    /// Of look-ups.
    about: Mood,
    /// Who answers them.
    directory: Option<String>,
}

type Book = Arc<Mutex<Taken>>;

/// The backend; it ends when it is dropped.
pub struct Backend {
    taken: Book,
    runtime: Option<Runtime>,
}

impl Backend {
    /// Starts it, with its log at `log`.
    pub fn start(listener: TcpListener, log: &Path) -> Self {
        // Whoever asks for look-ups needs it, though it is plain HTTP.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let log = File::create(log).unwrap();
        let taken = Taken {
            log,
            deliveries: Vec::new(),
            damaged: Vec::new(),
            mood: Mood::Well,
            about: Mood::Well,
            directory: None,
        };
        let mut backend = Self { taken: Arc::new(Mutex::new(taken)), runtime: None };
        backend.listen(listener);
        backend
    }

    /// It goes on after [`Backend::stop`].
    pub fn listen(&mut self, listener: TcpListener) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        listener.set_nonblocking(true).unwrap();
        let router = Router::new()
            .route("/v1/activities", post(receive))
            .fallback(look_up)
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&self.taken));
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
        self.runtime = Some(runtime);
    }

    /// Nobody listens any more, and all connections end.
    pub fn stop(&mut self) {
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }

    /// Everything so far.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.taken.lock().unwrap().deliveries.clone()
    }

    /// How many so far.
    pub fn count(&self) -> usize {
        self.taken.lock().unwrap().deliveries.len()
    }

    pub fn behave(&self, mood: Mood) {
        self.taken.lock().unwrap().mood = mood;
    }

    /// The same for look-ups.
    pub fn behave_asked(&self, mood: Mood) {
        self.taken.lock().unwrap().about = mood;
    }

    /// Look-ups are answered by the server with this base URL.
    pub fn ask(&self, url: String) {
        self.taken.lock().unwrap().directory = Some(url);
    }

    /// What was not as it was sent.
    pub fn damaged(&self) -> Vec<String> {
        self.taken.lock().unwrap().damaged.clone()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop();
    }
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The connection ends here and now, without a word.
fn hang_up() -> ! {
    std::panic::resume_unwind(Box::new("the backend hangs up"))
}

fn says(status: StatusCode, title: &str) -> Response {
    (status, Json(json!({ "title": title }))).into_response()
}

/// What a bad mood says before anything is looked at.
async fn refusal(mood: Mood) -> Option<Response> {
    match mood {
        Mood::Fails => Some(says(StatusCode::INTERNAL_SERVER_ERROR, "it fails")),
        Mood::Hangs => std::future::pending().await,
        _ => None,
    }
}

async fn receive(State(book): State<Book>, headers: HeaderMap, mut parts: Multipart) -> Response {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let sender = given.and_then(|given| given.strip_prefix("Bearer ")?.parse().ok());
    let mut activity = Value::Null;
    let mut files = Vec::new();
    loop {
        match parts.next_field().await {
            Ok(Some(field)) => {
                let is_first = activity.is_null();
                let Ok(bytes) = field.bytes().await else { break };
                match is_first {
                    true => activity = serde_json::from_slice(&bytes).unwrap(),
                    false => files.push(hash(&bytes)),
                }
            }
            Ok(None) => return record(&book, sender, &activity, &files).await,
            Err(_) => break,
        }
    }
    says(StatusCode::BAD_REQUEST, "it broke off")
}

async fn record(book: &Book, sender: Option<usize>, activity: &Value, files: &[String]) -> Response {
    let mood = book.lock().unwrap().mood;
    if let Some(refusal) = refusal(mood).await {
        return refusal;
    }
    let key = activity["key"].as_str().unwrap_or_default().to_owned();
    let number = clients::number_of(activity["subject"].as_str().unwrap_or_default());
    let is_whole = number.is_some_and(|number| is_whole(number, activity, files));
    let place = {
        let mut taken = book.lock().unwrap();
        if !is_whole {
            taken.damaged.push(format!("{activity}"));
        }
        let number = number.unwrap_or(usize::MAX);
        writeln!(taken.log, "{key} {number}").unwrap();
        let at = Instant::now();
        taken.deliveries.push(Delivery { key: key.clone(), number, sender, at, answered: None });
        taken.deliveries.len() - 1
    };
    match mood {
        Mood::Slow(delay) => tokio::time::sleep(delay).await,
        Mood::Forgets => hang_up(),
        Mood::Denies => return says(StatusCode::SERVICE_UNAVAILABLE, "it is there all the same"),
        Mood::Well | Mood::Fails | Mood::Hangs => {}
    }
    book.lock().unwrap().deliveries[place].answered = Some(Instant::now());
    (StatusCode::CREATED, Json(json!({ "key": key, "id": key }))).into_response()
}

/// Text and file are those of the message, and each file that is spoken of came.
fn is_whole(number: usize, activity: &Value, files: &[String]) -> bool {
    let spoken_of = activity["files"].as_array().into_iter().flatten();
    let spoken_of: Vec<&str> = spoken_of.filter_map(|file| file["sha256"].as_str()).collect();
    let sent = clients::file(number).map(|file| hash(file.as_bytes()));
    let text = activity["text"].as_str().unwrap_or_default();
    text.contains(&clients::body(number))
        && spoken_of.iter().all(|file| files.iter().any(|found| found == file))
        && sent.is_none_or(|sent| files.contains(&sent))
}

async fn look_up(State(book): State<Book>, method: Method, uri: Uri, body: Bytes) -> Response {
    let (mood, url) = {
        let taken = book.lock().unwrap();
        (taken.about, taken.directory.clone())
    };
    if let Some(refusal) = refusal(mood).await {
        return refusal;
    }
    if mood == Mood::Forgets {
        hang_up();
    }
    let Some(url) = url else { return says(StatusCode::NOT_FOUND, "there is nothing here") };
    let asked = reqwest::Client::new()
        .request(method, format!("{url}{}", uri.path()))
        .header(header::CONTENT_TYPE, "application/json")
        .body(body);
    let answer = asked.send().await.unwrap();
    let (status, kind) = (answer.status(), answer.headers().get(header::CONTENT_TYPE).cloned());
    let mut response = (status, answer.bytes().await.unwrap()).into_response();
    kind.into_iter().for_each(|kind| drop(response.headers_mut().insert(header::CONTENT_TYPE, kind)));
    response
}
