//! Severa's REST API, as far as we use it: stateful, strict, in the test's own process on a thread of its own.
//!
//! In: requests over HTTP; a test's hand through [`Company`]; faults. Out: answers; what was asked ([`Severa::calls`]),
//! what was made ([`Company::activities`], [`Company::files`]), and what was wrong with what was asked
//! ([`Severa::wrongs`]).
//! Promise: nothing passes that `tests/severa/openapi.yaml` lacks: path, query parameter, field, type. It is answered
//! with an error and it is a wrong; so is an answer of the fake's own that the file does not allow.
//! What the vendor's sources leave open is a setting of the company, or the stricter of two readings.

#![allow(dead_code, unused_imports, clippy::unwrap_used)] // each user needs another half; in tests a panic is the answer

mod answers;
mod company;
mod organisation;
mod prism;
mod related;
mod schema;

pub use company::Company;
pub use organisation::{LastPage, StoredFile};
pub use prism::Prism;

use super::{free_port, wait_for};
use answers::{Asked, Reply, Wrong};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Query, Request},
    http::{Uri, request::Parts},
    response::Response,
};
use organisation::Organisation;
use schema::SCHEMA;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    net::TcpListener,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// What the real one says to too many calls, word for word.
const QUOTA: &str = "API calls quota exceeded! maximum admitted 10 per 1s.";

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Call {
    pub at: Instant,
    pub method: String,
    /// Without the base path: `/v1/projects/5e7e…`.
    pub path: String,
    /// As the schema has it: `/v1/projects/{guid}`; the path itself if it has none.
    pub template: String,
    /// The query as it came.
    pub query: String,
    /// From the header; of a call for a token from the body.
    pub client_id: Option<String>,
    /// None as long as nothing was answered, and for ever if the answer was lost.
    pub status: Option<u16>,
}

/// What goes wrong with a call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection is closed without an answer, and nothing was done.
    LoseBefore,
    /// The same, but it was done.
    LoseAfter,
    /// It is done after this time, also when the client is gone by then, and answered.
    HoldBefore(Duration),
    /// It is done, and answered after this time.
    HoldAfter(Duration),
    /// Nothing more happens until [`Severa::release`]. What was not done before is done then, if the client still waits.
    Stop { acted: bool },
    /// This answer, and nothing was done.
    Answer { status: u16, content_type: &'static str, body: String, headers: Vec<(&'static str, String)> },
    /// The same, but it was done.
    AnswerAfter {
        status: u16,
        content_type: &'static str,
        body: String,
        headers: Vec<(&'static str, String)>,
    },
    /// 429 as the real one says it, and nothing was done.
    TooMany { retry_after: Option<u64> },
}

impl Fault {
    /// An error in Severa's form; nothing was done.
    pub fn error(status: u16, kind: &str) -> Self {
        let body = Reply::error(status, kind, "It is so.").body;
        Self::Answer {
            status,
            content_type: "application/json",
            body: String::from_utf8(body).unwrap(),
            headers: Vec::new(),
        }
    }

    /// A status and nothing else; nothing was done.
    pub fn status(status: u16) -> Self {
        Self::Answer { status, content_type: "", body: String::new(), headers: Vec::new() }
    }

    /// A status and nothing else, but it was done.
    pub fn status_after(status: u16) -> Self {
        Self::AnswerAfter { status, content_type: "", body: String::new(), headers: Vec::new() }
    }
}

struct DueFault {
    client_id: Option<String>,
    method: String,
    template: String,
    /// Calls until it is due.
    left: usize,
    fault: Fault,
}

#[derive(Default)]
struct State {
    organisations: BTreeMap<String, Organisation>,
    calls: Vec<Call>,
    wrongs: Vec<String>,
    faults: Vec<DueFault>,
    /// Calls that wait for a release, each by its index.
    stopped: Vec<(usize, oneshot::Sender<()>)>,
    rate_limit: Option<usize>,
    /// Start of each client's window, and the calls in it.
    windows: HashMap<String, (Instant, usize)>,
}

struct Shared(Mutex<State>);

/// The fake. Ends when it is dropped.
pub struct Severa {
    shared: Arc<Shared>,
    port: u16,
    /// None while it is down.
    served: Mutex<Option<Served>>,
}

impl Severa {
    pub fn start() -> Self {
        let shared = Arc::new(Shared(Mutex::new(State { rate_limit: Some(10), ..State::default() })));
        let severa = Self { shared, port: free_port(), served: Mutex::new(None) };
        severa.up();
        severa
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/rest-api", self.port)
    }

    /// Nobody listens any more, and every connection is closed. What there is stays.
    pub fn down(&self) {
        drop(self.served.lock().unwrap().take());
    }

    /// Listens again, on the same port.
    pub fn up(&self) {
        let mut served = self.served.lock().unwrap();
        if served.is_none() {
            let shared = Arc::clone(&self.shared);
            let router = Router::new().fallback(move |request: Request| serve(Arc::clone(&shared), request));
            *served = Some(Served::start(self.port, router));
        }
    }

    /// Another organisation, with the activity type "E-mail" and nothing else.
    pub fn company(&self, client_id: &str, secret: &str) -> Company {
        let known = self.shared.state().organisations.insert(client_id.to_owned(), Organisation::new(secret));
        assert!(known.is_none(), "{client_id} is there");
        Company { shared: Arc::clone(&self.shared), client_id: client_id.to_owned() }
    }

    /// All requests so far.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.state().calls.clone()
    }

    /// How many of them there are of one kind.
    pub fn count(&self, method: &str, template: &str) -> usize {
        assert!(SCHEMA.has(method, template), "the schema lacks {method} {template}");
        self.calls().iter().filter(|call| call.method == method && call.template == template).count()
    }

    /// The most calls of a client that ever came within one second.
    pub fn most_calls_in_a_second(&self, client_id: &str) -> usize {
        let calls = self.calls();
        let mut times: Vec<_> = calls
            .iter()
            .filter(|call| call.client_id.as_deref() == Some(client_id))
            .map(|call| call.at)
            .collect();
        times.sort();
        let within =
            |from: usize| times[from..].partition_point(|at| *at - times[from] < Duration::from_secs(1));
        (0..times.len()).map(within).max().unwrap_or(0)
    }

    /// Every request that the schema lacks or refuses, and every answer that it does not allow.
    pub fn wrongs(&self) -> Vec<String> {
        self.shared.state().wrongs.clone()
    }

    #[track_caller]
    pub fn assert_nothing_wrong(&self) {
        let wrongs = self.wrongs();
        assert!(wrongs.is_empty(), "{wrongs:#?}");
    }

    /// What goes wrong with the `nth` such call from now on (1: the next). Calls over the rate limit do not count.
    /// Of two faults of one call the second strikes at the next call.
    pub fn fault(&self, method: &str, template: &str, nth: usize, fault: Fault) {
        self.shared.fault(None, method, template, nth, fault);
    }

    /// Faults that have not struck yet.
    pub fn faults_left(&self) -> usize {
        self.shared.state().faults.len()
    }

    /// A call that is stopped ([`Fault::Stop`]), the oldest. One whose client is gone is none any more.
    pub fn stopped(&self) -> Option<Call> {
        let state = self.shared.state();
        state.stopped.first().map(|(call, _)| state.calls[*call].clone())
    }

    pub fn wait_until_stopped(&self) -> Call {
        wait_for("a call to be stopped", || self.stopped())
    }

    /// After the client was killed: what it asked for, and was not done, is not done any more.
    pub fn wait_until_gone(&self) {
        wait_for("the client of a stopped call to be gone", || self.stopped().is_none().then_some(()));
    }

    /// All that are stopped go on.
    pub fn release(&self) {
        for (_, go) in std::mem::take(&mut self.shared.state().stopped) {
            let _ = go.send(());
        }
    }

    /// Calls that a client may make in a window of one second, which begins with its first call; 10 at first.
    pub fn set_rate_limit(&self, per_second: Option<usize>) {
        self.shared.state().rate_limit = per_second;
    }

    /// The same with Prism between it and its client.
    pub fn behind_prism(self) -> Prism {
        Prism::start(self)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Whoever panicked while he held it was a test, and says so himself.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn fault(&self, client_id: Option<&str>, method: &str, template: &str, nth: usize, fault: Fault) {
        assert!(SCHEMA.has(method, template), "the schema lacks {method} {template}");
        assert!(nth > 0, "the next call is 1");
        let (method, template) = (method.to_owned(), template.to_owned());
        let client_id = client_id.map(str::to_owned);
        self.state().faults.push(DueFault { client_id, method, template, left: nth, fault });
    }
}

/// A request, read.
struct Incoming {
    /// Its index in the list of calls.
    call: usize,
    parts: Parts,
    path: String,
    query: Vec<(String, String)>,
    body: Bytes,
    json: Value,
}

async fn serve(shared: Arc<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let call = shared.state().arrived(&parts);
    let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else {
        lose() // the client is gone
    };
    let read = shared.state().read(call, parts, body);
    let (incoming, fault) = match read {
        Ok(read) => read,
        Err(reply) => return shared.state().send(call, reply),
    };
    let incoming = Arc::new(incoming);
    let act = {
        let (shared, incoming) = (Arc::clone(&shared), Arc::clone(&incoming));
        move || shared.state().act(&incoming)
    };
    let reply = match fault {
        None => act(),
        Some(Fault::LoseBefore) => lose(),
        Some(Fault::LoseAfter) => {
            act();
            lose()
        }
        Some(Fault::HoldBefore(time)) => {
            let late = async move {
                tokio::time::sleep(time).await;
                act()
            };
            tokio::spawn(late).await.unwrap() // a task: the client's end does not end it
        }
        Some(Fault::HoldAfter(time)) => {
            let reply = act();
            tokio::time::sleep(time).await;
            reply
        }
        Some(Fault::Stop { acted }) => {
            let done = acted.then(&act);
            let (go, released) = oneshot::channel();
            shared.state().stopped.push((call, go));
            let stop = Stop { shared: Arc::clone(&shared), call };
            let _ = released.await;
            drop(stop);
            done.unwrap_or_else(act)
        }
        Some(Fault::Answer { status, content_type, body, headers }) => {
            told(status, content_type, body, headers)
        }
        Some(Fault::AnswerAfter { status, content_type, body, headers }) => {
            act();
            told(status, content_type, body, headers)
        }
        Some(Fault::TooMany { retry_after }) => {
            let mut reply = Reply::text(429, QUOTA);
            reply.headers.extend(retry_after.map(|seconds| ("Retry-After".to_owned(), seconds.to_string())));
            reply
        }
    };
    shared.state().send(call, reply)
}

/// A call that is stopped. Dropped with its connection when the client is gone.
struct Stop {
    shared: Arc<Shared>,
    call: usize,
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.shared.state().stopped.retain(|(call, _)| *call != self.call);
    }
}

/// Closes the connection without an answer. A server of axum's has no other way than a panic of the connection's task;
/// this one says nothing.
fn lose() -> ! {
    std::panic::resume_unwind(Box::new("the answer is lost"))
}

fn told(status: u16, content_type: &str, body: String, headers: Vec<(&str, String)>) -> Reply {
    let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Reply { status, content_type: content_type.to_owned(), headers, body: body.into() }
}

impl State {
    fn arrived(&mut self, parts: &Parts) -> usize {
        let path = parts.uri.path().strip_prefix("/rest-api").unwrap_or(parts.uri.path()).to_owned();
        let found = SCHEMA.find(parts.method.as_str(), &path);
        let template = found.map_or_else(|| path.clone(), |(operation, _)| operation.template.clone());
        let header = parts.headers.get("client_id").and_then(|value| value.to_str().ok());
        self.calls.push(Call {
            at: Instant::now(),
            method: parts.method.to_string(),
            path,
            template,
            query: parts.uri.query().unwrap_or_default().to_owned(),
            client_id: header.map(str::to_owned),
            status: None,
        });
        self.calls.len() - 1
    }

    /// Whether the request goes on, and what goes wrong with it; or an answer at once.
    fn read(&mut self, call: usize, parts: Parts, body: Bytes) -> Result<(Incoming, Option<Fault>), Reply> {
        let path = self.calls[call].path.clone();
        let token = path == "/v1/token";
        if token {
            let json: Value = serde_json::from_slice(&body).unwrap_or_default();
            self.calls[call].client_id = json["client_id"].as_str().map(str::to_owned);
        }
        if self.is_over_limit(call) {
            return Err(Reply::text(429, QUOTA));
        }
        let fault = self.due_fault(call);
        let Some((operation, _)) = SCHEMA.find(parts.method.as_str(), &path) else {
            self.wrong(call, "no such method and path");
            return Err(Reply::empty(404));
        };
        if !parts.uri.path().starts_with("/rest-api/") {
            self.wrong(call, "not below /rest-api");
            return Err(Reply::empty(404));
        }
        let query = read_query(&parts.uri);
        let mut wrongs =
            query.as_ref().map_or_else(|wrong| vec![wrong.clone()], |q| operation.wrongs_of_query(q));
        let content_type = header(&parts, "content-type");
        let json = operation.read_body(content_type, &body).unwrap_or_else(|found| {
            wrongs.extend(found);
            Value::Null
        });
        if operation.scope.is_some() {
            let missing =
                ["client_id", "authorization"].into_iter().filter(|name| header(&parts, name).is_empty());
            wrongs.extend(missing.map(|name| format!("no header {name}")));
        }
        for wrong in &wrongs {
            self.wrong(call, wrong);
        }
        let incoming = Incoming { call, parts, path, query: query.unwrap_or_default(), body, json };
        // The credentials come first, as with the real one; of a fault's call they are looked at when it acts.
        if fault.is_none() || !wrongs.is_empty() {
            self.refusal(&incoming).map_or(Ok(()), Err)?;
        }
        match wrongs.first() {
            Some(wrong) => Err(Reply::error(400, "InvalidParameter", wrong)),
            None => Ok((incoming, fault)),
        }
    }

    fn wrong(&mut self, call: usize, wrong: &str) {
        let Call { method, path, .. } = &self.calls[call];
        self.wrongs.push(format!("{method} {path}: {wrong}"));
    }

    /// A window of one second begins with the first call after the last one ended; what is refused does not count.
    fn is_over_limit(&mut self, call: usize) -> bool {
        let Call { at, client_id, .. } = &self.calls[call];
        let (Some(limit), Some(client)) = (self.rate_limit, client_id) else { return false };
        let window = self.windows.entry(client.clone()).or_insert((*at, 0));
        if *at - window.0 >= Duration::from_secs(1) {
            *window = (*at, 0);
        }
        window.1 += 1;
        window.1 > limit
    }

    fn due_fault(&mut self, call: usize) -> Option<Fault> {
        let Call { method, template, client_id, .. } = &self.calls[call];
        let mut due = None;
        for (at, fault) in self.faults.iter_mut().enumerate() {
            let client = fault.client_id.is_none() || fault.client_id == *client_id;
            if client && fault.method == *method && fault.template == *template {
                fault.left = fault.left.saturating_sub(1);
                if fault.left == 0 && due.is_none() {
                    due = Some(at);
                }
            }
        }
        due.map(|at| self.faults.remove(at).fault)
    }

    /// 401 and 403.
    fn refusal(&self, incoming: &Incoming) -> Option<Reply> {
        let (operation, _) = SCHEMA.find(incoming.parts.method.as_str(), &incoming.path).unwrap();
        let scope = operation.scope.as_deref()?;
        let refused = || Some(Reply::error(401, "AuthenticationRequired", "Authentication is required."));
        let Some(organisation) = self.organisations.get(header(&incoming.parts, "client_id")) else {
            return refused();
        };
        let text = header(&incoming.parts, "authorization").strip_prefix("Bearer ").unwrap_or_default();
        let now = organisation.now();
        match organisation.tokens.iter().find(|token| token.text == text && token.expires > now) {
            None => refused(),
            Some(token) if token.scopes.contains(scope) => None,
            Some(_) => Some(Reply::error(403, "InsufficientApiScope", &format!("Scope {scope} is needed."))),
        }
    }

    /// Does what is asked. The credentials are looked at again: they may have changed while the call was held.
    fn act(&mut self, incoming: &Incoming) -> Reply {
        if let Some(refusal) = self.refusal(incoming) {
            return refusal;
        }
        let (operation, path) = SCHEMA.find(incoming.parts.method.as_str(), &incoming.path).unwrap();
        let client = self.calls[incoming.call].client_id.clone().unwrap_or_default();
        let Some(organisation) = self.organisations.get_mut(&client) else {
            return Reply::error(401, "AuthenticationRequired", "Invalid client credentials.");
        };
        let asked = Asked {
            operation,
            path,
            query: &incoming.query,
            content_type: header(&incoming.parts, "content-type"),
            bytes: &incoming.body,
            json: incoming.json.clone(),
        };
        let answer = match operation.scope {
            None => answers::token(organisation, &asked.json),
            Some(_) => answers::answer(organisation, &asked),
        };
        let unknown_fields = organisation.unknown_fields;
        let mut reply = answer.unwrap_or_else(|Wrong(wrong)| {
            self.wrong(incoming.call, &wrong);
            Reply::error(400, "InvalidParameter", &wrong)
        });
        for wrong in operation.wrongs_of_answer(reply.status, &reply.body) {
            self.wrong(incoming.call, &format!("answer {}: {wrong}", reply.status));
        }
        if unknown_fields && let Ok(mut value) = serde_json::from_slice::<Value>(&reply.body) {
            add_unknown_fields(&mut value);
            reply.body = value.to_string().into();
        }
        reply
    }

    /// The answer goes out.
    fn send(&mut self, call: usize, reply: Reply) -> Response {
        let call = &mut self.calls[call];
        call.status = Some(reply.status);
        let organisation = call.client_id.as_ref().and_then(|client| self.organisations.get(client));
        let now = organisation.map_or_else(SystemTime::now, Organisation::now);
        let mut response = Response::builder().status(reply.status);
        if !reply.content_type.is_empty() {
            response = response.header("Content-Type", reply.content_type);
        }
        let told_date = reply.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("date"));
        for (name, value) in reply.headers {
            response = response.header(name, value);
        }
        if !told_date {
            response = response.header("Date", httpdate::fmt_http_date(now));
        }
        response.body(Body::from(reply.body)).unwrap()
    }
}

fn read_query(uri: &Uri) -> Result<Vec<(String, String)>, String> {
    Query::try_from_uri(uri).map(|Query(query)| query).map_err(|error| error.to_string())
}

fn header<'p>(parts: &'p Parts, name: &str) -> &'p str {
    parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn add_unknown_fields(value: &mut Value) {
    match value {
        Value::Array(rows) => rows.iter_mut().for_each(add_unknown_fields),
        Value::Object(fields) => drop(fields.insert("comesLater".to_owned(), json!({"x": [1]}))),
        _ => {}
    }
}

/// A router that serves on a port, on a thread of its own. Dropped: ends, with every connection.
struct Served {
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Served {
    fn start(port: u16, router: Router) -> Self {
        let listener = wait_for("the port to be free", || TcpListener::bind(("127.0.0.1", port)).ok());
        listener.set_nonblocking(true).unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = stopped.cancelled() => {}
                    ended = axum::serve(listener, router) => ended.unwrap(),
                }
            });
            // With the runtime every connection's task ends, and with it the connection.
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = self.thread.take().unwrap().join();
    }
}
