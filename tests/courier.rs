//! The courier against a real HTTP server that answers what it is told: what becomes of each activity.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/desk.rs"]
mod desk;
#[path = "support/wire.rs"]
mod wire;

use activity_milter::{
    activity::Key,
    backend::{Backend, Delivery, Journal, Outcome, Scope, Trouble},
    courier,
    queue::{Change, Clock, Counts, Filter, HandClock, State},
};
use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use desk::{DAYS, Desk, EMPTY};
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use wire::{Act, Wire, problem, with};

/// How long anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something is so; fails if it never is.
macro_rules! until {
    ($what:literal, $condition:expr) => {{
        let deadline = Instant::now() + PATIENCE;
        while !$condition {
            assert!(Instant::now() < deadline, "waited in vain for {}", $what);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }};
}

/// One request as the server saw it.
#[derive(Clone, Debug)]
struct Seen {
    headers: HeaderMap,
    body: Vec<u8>,
    at: Instant,
}

/// A backend with a list of answers; when they are used up, 201.
struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    async fn start(answers: Vec<Response>) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let answers = Arc::new(Mutex::new(VecDeque::from(answers)));
        let log = Arc::clone(&seen);
        let answer = move |request: Request| async move {
            let (head, body) = request.into_parts();
            let body = axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec();
            log.lock().unwrap().push(Seen { headers: head.headers, body, at: Instant::now() });
            let next = answers.lock().unwrap().pop_front();
            next.unwrap_or_else(|| StatusCode::CREATED.into_response())
        };
        let router = Router::new().route("/base/v1/activities", post(answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/base", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, seen }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn status(code: u16) -> Response {
    StatusCode::from_u16(code).unwrap().into_response()
}

#[tokio::test]
async fn a_request_is_what_the_contract_says() {
    let server = Server::start(vec![status(503)]).await;
    let desk = Desk::open(&server.url, 4, DAYS);
    let activity = desk.put(1).await;
    desk.wait_for(EMPTY).await;
    let seen = server.seen();
    assert_eq!(seen.len(), 2);
    for request in &seen {
        let header = |name: &str| request.headers[name].to_str().unwrap().to_owned();
        assert_eq!(header("idempotency-key"), format!("\"{}\"", activity.key));
        assert_eq!(header("authorization"), "Bearer secret-token");
        assert_eq!(header("user-agent"), concat!("activity-milter/", env!("CARGO_PKG_VERSION")));
        assert_eq!(header("content-length"), request.body.len().to_string());
        let body = String::from_utf8_lossy(&request.body);
        let at = |what: &str| body.find(what).unwrap_or_else(|| panic!("no {what} in {body}"));
        let json = serde_json::to_string(&activity).unwrap();
        assert!(at("name=\"activity\"") < at(&json) && at(&json) < at("name=\"file-1\""));
        assert!(
            body.contains("Content-Type: application/json") && body.contains("Content-Type: image/x-odd")
        );
        assert!(request.body.windows(7).any(|w| w == b"\r\n\0\x01\x02\r\n"), "the file, decoded");
    }
    desk.close().await;
}

#[tokio::test]
async fn what_each_answer_means() {
    // Tried again until it is taken.
    for code in [408, 409, 425, 429, 500, 502, 503, 504] {
        let server = Server::start(vec![status(code), status(code)]).await;
        let desk = Desk::open(&server.url, 4, DAYS);
        desk.put(1).await;
        desk.wait_for(EMPTY).await;
        assert_eq!(server.seen().len(), 3, "{code}");
        desk.close().await;
    }
    // Refused: held for a person, not tried again.
    for code in [400, 402, 405, 413, 415, 422, 451] {
        let server = Server::start(vec![status(code)]).await;
        let desk = Desk::open(&server.url, 4, DAYS);
        desk.put(1).await;
        desk.wait_for(Counts { waiting: 0, held: 1, oldest: None }).await;
        desk.put(2).await; // and the next one is not harmed
        desk.wait_for(Counts { waiting: 0, held: 1, oldest: None }).await;
        assert_eq!(server.seen().len(), 2, "{code}");
        desk.close().await;
    }
    for code in [200, 201, 202, 204] {
        let server = Server::start(vec![status(code)]).await;
        let desk = Desk::open(&server.url, 4, DAYS);
        desk.put(1).await;
        desk.wait_for(EMPTY).await;
        assert_eq!(server.seen().len(), 1, "{code}");
        desk.close().await;
    }
}

#[tokio::test]
async fn wrong_settings_pause_everything_but_probes() {
    for code in [301, 307, 401, 403, 404, 407, 410] {
        let answers = (0..4)
            .map(|_| (StatusCode::from_u16(code).unwrap(), [("location", "/elsewhere")]).into_response());
        let server = Server::start(answers.collect()).await;
        let desk = Desk::open(&server.url, 1, DAYS);
        for id in 0..20 {
            desk.put(id).await;
        }
        desk.wait_for(EMPTY).await;
        // Four attempts met the wrong settings, one at a time; then twenty were taken.
        assert_eq!(server.seen().len(), 24, "{code}");
        desk.close().await;
    }
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let later = (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")]).into_response();
    let server = Server::start(vec![later]).await;
    let desk = Desk::open(&server.url, 4, DAYS);
    desk.put(1).await;
    desk.wait_for(EMPTY).await;
    let seen = server.seen();
    assert!(seen[1].at - seen[0].at >= Duration::from_secs(1), "the schedule alone would be 20 ms");
    desk.close().await;
}

#[tokio::test]
async fn what_fails_for_too_long_is_held() {
    let desk = Desk::open("http://127.0.0.1:1/", 4, Duration::from_millis(300));
    desk.put(1).await;
    desk.wait_for(Counts { waiting: 1, held: 0, oldest: None }).await;
    desk.wait_for(Counts { waiting: 0, held: 1, oldest: None }).await;
    desk.close().await;
}

#[tokio::test]
async fn no_more_than_max_in_flight_at_a_time() {
    let (running, most) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(0)));
    let (now, peak) = (Arc::clone(&running), Arc::clone(&most));
    let slow = move |request: Request| async move {
        {
            let mut now = now.lock().unwrap();
            *now += 1;
            let mut peak = peak.lock().unwrap();
            *peak = (*peak).max(*now);
        }
        let _ = axum::body::to_bytes(request.into_body(), usize::MAX).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        *running.lock().unwrap() -= 1;
        StatusCode::CREATED
    };
    let router = Router::new().route("/v1/activities", post(slow));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let desk = Desk::open(&url, 3, DAYS);
    for id in 0..30 {
        desk.put(id).await;
    }
    desk.wait_for(EMPTY).await;
    assert_eq!(*most.lock().unwrap(), 3);
    desk.close().await;
}

/// What a backend can do wrong, once; afterwards it works. The outcome is the activity's: taken at the first attempt,
/// taken later, or held. Whatever it is, another activity is not harmed, and nothing is lost or doubled.
#[tokio::test]
async fn matrix_of_everything_a_backend_can_do() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Becomes {
        Taken,
        TakenLater,
        Held,
    }
    use Becomes::{Held, Taken, TakenLater};
    let answer = |text: &str| Act::Answer(text.to_owned());
    let mut cases: Vec<(String, Act, Becomes)> = vec![
        ("reset".into(), Act::Reset, TakenLater),
        ("hangs before headers".into(), Act::Hang, TakenLater),
        ("stalls in the status line".into(), Act::Stall("HTTP/1.1 20".into()), TakenLater),
        (
            "stalls in the headers".into(),
            Act::Stall("HTTP/1.1 201 Created\r\nServer: x\r\n".into()),
            TakenLater,
        ),
        // The status says it, and the rest is not needed.
        (
            "hangs in the body".into(),
            Act::Stall("HTTP/1.1 201 Created\r\nContent-Length: 9\r\n\r\nx".into()),
            Taken,
        ),
        (
            "hangs in the body of a refusal".into(),
            Act::Stall("HTTP/1.1 422 No\r\nContent-Length: 9\r\n\r\nx".into()),
            Held,
        ),
        ("slow-loris headers".into(), Act::Drip("HTTP/1.1 201 Created\r\nX-Long: x".into()), TakenLater),
        ("garbage".into(), answer("220 mail.example.com ESMTP\r\n"), TakenLater),
        ("binary garbage".into(), answer("\0\u{1}\u{2}\u{3}\r\n\r\n"), TakenLater),
        ("nothing and closed".into(), answer(""), TakenLater),
        (
            "endless headers".into(),
            Act::Answer("HTTP/1.1 201 Created\r\n".to_owned() + &"X: y\r\n".repeat(5000)),
            TakenLater,
        ),
        ("429 with Retry-After".into(), with(429, "Retry-After: 1\r\n"), TakenLater),
        ("503 with Retry-After".into(), with(503, "Retry-After: 1\r\n"), TakenLater),
        ("an unknown 4xx".into(), with(499, ""), Held),
        ("an unknown 5xx".into(), with(599, ""), TakenLater),
        ("a refusal as long as a book".into(), problem(422, &"long ".repeat(100_000)), Held),
    ];
    let codes: [(&[u16], Becomes); 3] = [
        (&[200, 201, 202, 204], Taken),
        (&[301, 302, 307, 308, 401, 403, 404, 407, 410, 408, 409, 425, 429, 500, 502, 503, 504], TakenLater),
        (&[400, 402, 405, 406, 411, 413, 415, 418, 422, 431, 451], Held),
    ];
    for (codes, becomes) in codes {
        for &code in codes {
            cases.push((code.to_string(), with(code, "Location: /elsewhere\r\n"), becomes));
        }
    }
    let case = async |(name, act, becomes): (String, Act, Becomes)| {
        let wire = Wire::start(vec![act]).await;
        // One attempt at a time, so that the first activity meets the trouble.
        let desk = Desk::open(&wire.url(), 1, DAYS);
        let first = desk.put(1).await;
        let held = u64::from(becomes == Held);
        let found = || wire.seen().iter().any(|seen| seen.header("idempotency-key").is_some());
        until!("the request", name == "reset" || found());
        let second = desk.put(2).await;
        desk.wait_for(Counts { waiting: 0, held, oldest: None }).await;
        let attempts = |key: &str| {
            let key = format!("\"{key}\"");
            wire.seen().iter().filter(|seen| seen.header("idempotency-key") == Some(&key)).count()
        };
        // A reset comes before the request is read.
        let expected = if becomes == TakenLater && name != "reset" { 2 } else { 1 };
        assert_eq!(attempts(first.key.as_str()), expected, "{name}");
        assert_eq!(attempts(second.key.as_str()), 1, "{name}");
        for seen in wire.seen() {
            assert!(seen.head.starts_with("POST /v1/activities "), "no redirect is followed: {}", seen.head);
        }
        // What is held waits for a person, with the backend's words, cut.
        let untold = desk.queue.untold(None, 10).await.unwrap();
        assert_eq!(untold.len() as u64, held, "{name}");
        assert!(
            untold
                .iter()
                .all(|item| item.reason.starts_with("backend answered 4") && item.reason.len() < 300)
        );
        // The same e-mail again is not recorded again, whatever became of it.
        desk.put(1).await;
        desk.put(2).await;
        assert_eq!(desk.counts().await, Counts { waiting: 0, held, oldest: None }, "{name}");
        desk.close().await;
    };
    futures_util::future::join_all(cases.into_iter().map(case)).await;
}

#[tokio::test]
async fn connections_refused_are_tried_again() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let desk = Desk::open(&format!("http://127.0.0.1:{port}/"), 1, DAYS);
    desk.put(1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(desk.counts().await, Counts { waiting: 1, held: 0, oldest: None });
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let router = Router::new().route("/v1/activities", post(async || StatusCode::CREATED));
    tokio::spawn(async move { axum::serve(listener, router).await });
    desk.wait_for(EMPTY).await;
    desk.close().await;
}

#[tokio::test]
async fn while_the_backend_is_down_there_are_only_probes() {
    let wire = Wire::start(vec![with(503, ""); 20]).await;
    let desk = Desk::open(&wire.url(), 4, DAYS);
    for id in 0..200 {
        desk.put(id).await;
    }
    desk.wait_for(EMPTY).await;
    // Twenty attempts failed in all, and the two hundred were taken once each: without a breaker two hundred would have
    // failed before the first was tried again.
    assert_eq!(wire.seen().len(), 220);
    // The first ones came four at a time; the probes came one at a time, further and further apart.
    let at: Vec<_> = wire.seen().iter().map(|seen| seen.at).collect();
    assert!(at[19] - at[12] >= Duration::from_millis(7 * 10), "{:?}", at[19] - at[12]);
    desk.close().await;
}

#[tokio::test]
async fn one_poisoned_activity_does_not_stop_the_others() {
    // It makes the backend fail each time; the others do not.
    let poison = desk::parcel(0).activities[0].key.to_string();
    let failures = Arc::new(Mutex::new(0));
    let (counted, key) = (Arc::clone(&failures), format!("\"{poison}\""));
    let answer = move |request: Request| async move {
        if request.headers()["idempotency-key"] == key.as_str() {
            *counted.lock().unwrap() += 1;
            return StatusCode::INTERNAL_SERVER_ERROR;
        }
        StatusCode::CREATED
    };
    let router = Router::new().route("/v1/activities", post(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let desk = Desk::open(&url, 4, DAYS);
    desk.put(0).await;
    until!("ten failures", *failures.lock().unwrap() >= 10);
    for id in 1..50 {
        desk.put(id).await;
    }
    desk.wait_for(Counts { waiting: 1, held: 0, oldest: None }).await;
    desk.close().await;
}

#[tokio::test]
async fn a_single_activity_does_not_wait_behind_another_tenants_thousands() {
    let desk = Desk::closed(32);
    for id in 0..3000 {
        desk.queue.put(desk::parcel_for("large", id)).await.unwrap();
    }
    for id in 0..3 {
        desk.queue.put(desk::parcel_for("small", id)).await.unwrap();
    }
    let wire = Wire::start(Vec::new()).await;
    let desk = desk.begin(&wire.url());
    desk.wait_for(EMPTY).await;
    let seen = wire.seen();
    assert_eq!(seen.len(), 3003);
    let of_small = |seen: &wire::Seen| String::from_utf8_lossy(&seen.body).contains("\"prefix\":\"small\"");
    let places: Vec<_> =
        seen.iter().enumerate().filter(|(_, seen)| of_small(seen)).map(|(at, _)| at).collect();
    assert_eq!(places.len(), 3);
    // Not one round of attempts later than if the others were not there.
    assert!(places[2] < 100, "{places:?}");
    desk.close().await;
}

#[tokio::test]
async fn no_tenant_has_all_the_attempts() {
    // The first tenant's attempts hang; the other's must find a place all the same.
    let hang = Arc::new(Mutex::new(0));
    let hanging = Arc::clone(&hang);
    let answer = move |request: Request| async move {
        let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
        if String::from_utf8_lossy(&body).contains("\"prefix\":\"large\"") {
            *hanging.lock().unwrap() += 1;
            std::future::pending::<()>().await;
        }
        StatusCode::CREATED
    };
    let router = Router::new().route("/v1/activities", post(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    for (is_alone, most) in [(false, 7), (true, 8)] {
        *hang.lock().unwrap() = 0;
        let desk = Desk::closed(8);
        if !is_alone {
            desk.queue.put(desk::parcel_for("small", 0)).await.unwrap();
        }
        for id in 0..20 {
            desk.queue.put(desk::parcel_for("large", id)).await.unwrap();
        }
        let desk = desk.begin(&url);
        until!("as many attempts as there may be", *hang.lock().unwrap() >= most);
        if !is_alone {
            desk.queue.put(desk::parcel_for("small", 1)).await.unwrap();
            desk.wait_for(Counts { waiting: 20, held: 0, oldest: None }).await;
        }
        assert_eq!(*hang.lock().unwrap(), most, "all but an eighth, or all who is alone");
    }
}

/// S8: Where tenants have attempts of their own, nobody takes another's, and who has no number has one.
#[tokio::test]
async fn tenants_with_attempts_of_their_own_take_nobody_elses() {
    let closed = Desk::closed(5);
    for id in 0..60 {
        closed.queue.put(desk::parcel_for(["large", "small", "gone"][id % 3], id)).await.unwrap();
    }
    let backend = Arc::new(Hanging::default());
    let settings = courier::Settings {
        max_in_flight: 5,
        shares: [("large".to_owned(), 3), ("small".to_owned(), 1)].into(),
        retry_first: LONG,
        retry_max: LONG,
        max_age: DAYS,
    };
    let desk = closed.begin_so(backend.clone(), settings);
    for small in 1..=20 {
        until!("the small tenant", backend.running("small") > 0 || desk.counts().await.waiting <= 40);
        assert!(backend.most("large") <= 3 && backend.most("small") <= 1 && backend.most("gone") <= 1);
        backend.let_go("small");
        desk.wait_for(Counts { waiting: 60 - small, held: 0, oldest: None }).await;
    }
    assert_eq!([backend.running("large"), backend.running("gone")], [3, 1]);
}

/// A backend that takes nothing until it is told to.
#[derive(Default)]
struct Hanging {
    running: Mutex<HashMap<String, (usize, usize)>>,
    let_go: Mutex<HashMap<String, Arc<tokio::sync::Semaphore>>>,
}

impl Hanging {
    fn running(&self, tenant: &str) -> usize {
        self.running.lock().unwrap().get(tenant).map_or(0, |(now, _)| *now)
    }

    /// Most attempts at a time.
    fn most(&self, tenant: &str) -> usize {
        self.running.lock().unwrap().get(tenant).map_or(0, |(_, most)| *most)
    }

    /// One of this tenant's is taken.
    fn let_go(&self, tenant: &str) {
        self.gate(tenant).add_permits(1);
    }

    fn gate(&self, tenant: &str) -> Arc<tokio::sync::Semaphore> {
        let closed = || Arc::new(tokio::sync::Semaphore::new(0));
        Arc::clone(self.let_go.lock().unwrap().entry(tenant.to_owned()).or_insert_with(closed))
    }
}

#[async_trait::async_trait]
impl Backend for Hanging {
    async fn deliver(&self, delivery: &Delivery, _: &dyn Journal) -> Outcome {
        let tenant = delivery.activity.tenant.id.clone();
        {
            let mut running = self.running.lock().unwrap();
            let (now, most) = running.entry(tenant.clone()).or_default();
            *now += 1;
            *most = (*most).max(*now);
        }
        self.gate(&tenant).acquire().await.unwrap().forget();
        self.running.lock().unwrap().get_mut(&tenant).unwrap().0 -= 1;
        Outcome::Taken
    }

    async fn check(&self, _: Duration) -> Vec<activity_milter::backend::Check> {
        Vec::new()
    }
}

/// S8: An activity whose time has not come is no attempt, shows nothing of the backend, and comes when its time does.
#[tokio::test]
async fn an_activity_that_waits_is_no_attempt() {
    let closed = Desk::closed(4);
    for id in 0..8 {
        closed.queue.put(desk::parcel(id)).await.unwrap();
    }
    let backend = ByRule::new(|_, before| match before {
        0..40 => Outcome::Again {
            after: Some(Duration::from_millis(50)),
            trouble: Trouble::Waits,
            reason: "it waits".to_owned(),
        },
        _ => again(Trouble::Down, None),
    });
    let desk = closed.begin_slowly(backend.clone(), LONG, LONG, DAYS);
    backend.has_seen(40).await;
    assert!(desk.controls.paused().is_empty(), "nothing is wrong with the backend");
    let listed = desk.queue.list(Filter::default()).await.unwrap();
    assert!(listed.iter().all(|entry| entry.attempts == 0), "{listed:?}");
    backend.has_seen(45).await;
    until!("a pause", !desk.controls.paused().is_empty());
    desk.close().await;
}

#[tokio::test]
async fn what_is_too_old_is_held_also_while_nothing_is_attempted() {
    // Wrong settings: probes only, and they do not count.
    let wire = Wire::start(vec![with(401, ""); 1000]).await;
    let clock = Arc::new(HandClock::at(std::time::SystemTime::now()));
    let desk = Desk::closed_with(1, clock.clone());
    for id in 0..10 {
        desk.queue.put(desk::parcel(id)).await.unwrap();
    }
    clock.pass(DAYS * 2);
    desk.queue.put(desk::parcel(10)).await.unwrap();
    let desk = desk.begin(&wire.url());
    desk.wait_for(Counts { waiting: 1, held: 10, oldest: None }).await;
    desk.close().await;
}

type Answer = dyn Fn(&Delivery, usize) -> Outcome + Send + Sync;

/// A backend that answers by a rule, and notes whose activities it saw, in order.
struct ByRule {
    rule: Box<Answer>,
    seen: Mutex<Vec<String>>,
}

impl ByRule {
    /// `rule`: gets the delivery, and how many there were before.
    fn new(rule: impl Fn(&Delivery, usize) -> Outcome + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { rule: Box::new(rule), seen: Mutex::default() })
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    async fn has_seen(&self, count: usize) {
        until!("attempts", self.seen.lock().unwrap().len() >= count);
    }
}

#[async_trait::async_trait]
impl Backend for ByRule {
    async fn deliver(&self, delivery: &Delivery, _: &dyn Journal) -> Outcome {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let before = {
            let mut seen = self.seen.lock().unwrap();
            seen.push(name(delivery));
            seen.len() - 1
        };
        (self.rule)(delivery, before)
    }

    async fn check(&self, _: Duration) -> Vec<activity_milter::backend::Check> {
        Vec::new()
    }
}

/// `TENANT-NUMBER`.
fn name(delivery: &Delivery) -> String {
    let id = delivery.activity.message_id.as_deref().unwrap().split('@').next().unwrap();
    format!("{}-{id}", delivery.activity.tenant.id)
}

fn again(trouble: Trouble, after: Option<u64>) -> Outcome {
    Outcome::Again {
        after: after.map(Duration::from_secs),
        trouble,
        reason: "backend answered so".to_owned(),
    }
}

const LONG: Duration = Duration::from_secs(60);

/// P15: what is denied has its own delay, and stops nobody.
#[tokio::test]
async fn activities_that_are_denied_delay_no_others() {
    for bad in [1, 4] {
        let desk = Desk::closed(8);
        for id in 0..300 {
            desk.queue.put(desk::parcel_for(&format!("t{}", id % 10), id)).await.unwrap();
        }
        for id in 0..bad {
            desk.queue.put(desk::parcel_for("bad", 1000 + id)).await.unwrap();
        }
        let backend = ByRule::new(|delivery, _| match name(delivery).starts_with("bad") {
            true => again(Trouble::Denied, None),
            false => Outcome::Taken,
        });
        let desk = desk.begin_slowly(backend.clone(), LONG, LONG * 10, DAYS);
        desk.wait_for(Counts { waiting: bad as u64, held: 0, oldest: None }).await;
        assert_eq!((desk.controls.paused(), backend.seen().len()), (Vec::new(), 300 + bad), "each once");
        let list = desk.queue.list(Filter::default()).await.unwrap();
        assert!(list.iter().all(|entry| entry.attempts == 1 && entry.due > std::time::SystemTime::now()));
        desk.close().await;
    }
}

/// P15: fifty that are denied wait, and a good one comes: it waits for no more than two probes.
#[tokio::test]
async fn a_good_activity_waits_for_two_probes_behind_fifty_that_are_denied() {
    let desk = Desk::closed(4);
    for id in 0..50 {
        desk.queue.put(desk::parcel(id)).await.unwrap();
    }
    let backend = ByRule::new(|delivery, _| match name(delivery).starts_with("t-1000") {
        false => again(Trouble::Denied, None),
        true => Outcome::Taken,
    });
    let first = Duration::from_millis(5);
    let desk = desk.begin_slowly(backend.clone(), first, first * 40, DAYS);
    backend.has_seen(12).await;
    assert_eq!(desk.controls.paused().len(), 1);
    desk.put(1000).await;
    let before = backend.seen().len();
    desk.wait_for(Counts { waiting: 50, held: 0, oldest: None }).await;
    let at = backend.seen().iter().position(|name| name == "t-1000").unwrap();
    assert!(at <= before + 2, "{:?} before it", &backend.seen()[before..at]);
    desk.close().await;
}

#[tokio::test]
async fn while_paused_the_backend_says_when_the_next_probe_is() {
    let desk = Desk::closed(1);
    for id in 0..6 {
        desk.queue.put(desk::parcel(id)).await.unwrap();
    }
    let backend = ByRule::new(|_, before| match before {
        0..6 => again(Trouble::Down, Some(1)),
        _ => Outcome::Taken,
    });
    // By itself the next probe would come after a minute, and each activity again after one.
    let desk = desk.begin_slowly(backend.clone(), LONG, LONG * 10, DAYS);
    desk.wait_for(Counts { waiting: 5, held: 0, oldest: None }).await;
    assert_eq!(backend.seen()[..6], ["t-0", "t-1", "t-2", "t-3", "t-4", "t-5"]);
    assert_eq!(backend.seen()[6], "t-0", "one that was tried, although its own time has not come");
    desk.close().await;
}

/// P4: a pause is by the clock that nobody sets.
#[tokio::test]
async fn a_pause_ends_whatever_the_wall_clock_does() {
    for (by, back) in [(3600, true), (365 * 86_400, true), (365 * 86_400, false)] {
        let clock = Arc::new(HandClock::at(std::time::SystemTime::now()));
        let desk = Desk::closed_with(1, clock.clone());
        for id in 0..8 {
            desk.queue.put(desk::parcel(id)).await.unwrap();
        }
        let backend = ByRule::new(|_, before| match before {
            0..7 => again(Trouble::Down, None),
            _ => Outcome::Taken,
        });
        let desk = desk.begin_slowly(backend.clone(), Duration::from_millis(200), LONG, DAYS);
        backend.has_seen(5).await;
        let (now, by) = (clock.wall(), Duration::from_secs(by));
        clock.set(if back { now - by } else { now + by });
        backend.has_seen(8).await;
        until!("the end of the pause", desk.controls.paused().is_empty());
        desk.close().await;
    }
}

#[tokio::test]
async fn probes_alternate_between_tried_and_fresh() {
    let desk = Desk::closed(1);
    for id in 0..12 {
        desk.queue.put(desk::parcel(id)).await.unwrap();
    }
    let backend = ByRule::new(|_, before| match before {
        0..10 => again(Trouble::Down, Some(0)),
        _ => Outcome::Taken,
    });
    let desk = desk.begin_slowly(backend.clone(), LONG, LONG * 10, DAYS);
    backend.has_seen(11).await;
    let probes = &backend.seen()[5..10];
    assert_eq!(probes, ["t-11", "t-0", "t-10", "t-1", "t-9"], "the newest, and the one that was tried first");
    desk.close().await;
}

/// One tenant's secret was revoked: its lane pauses, and nobody else notices.
#[tokio::test]
async fn a_tenants_wrong_settings_pause_that_tenant_alone() {
    let desk = Desk::closed(8);
    for id in 0..200 {
        desk.queue.put(desk::parcel_for(if id % 2 == 0 { "bad" } else { "good" }, id)).await.unwrap();
    }
    let is_right = Arc::new(AtomicBool::new(false));
    let mended = Arc::clone(&is_right);
    let backend = ByRule::new(move |delivery, _| {
        if name(delivery).starts_with("good") || mended.load(Ordering::Relaxed) {
            return Outcome::Taken;
        }
        let reason = "invalid_client".to_owned();
        Outcome::Misconfigured { scope: Scope::Tenant, after: None, reason }
    });
    let desk = desk.begin_slowly(backend.clone(), LONG, LONG * 10, DAYS);
    desk.wait_for(Counts { waiting: 100, held: 0, oldest: None }).await;
    let of_bad = || backend.seen().iter().filter(|name| name.starts_with("bad")).count();
    assert!((1..=8).contains(&of_bad()), "those that ran when the first was refused: {}", of_bad());
    let paused = desk.controls.paused();
    assert_eq!(paused.len(), 1);
    assert_eq!((paused[0].tenant.as_deref(), paused[0].misconfigured), (Some("bad"), true));
    // New ones of others go on at once, its own wait.
    let before = of_bad();
    desk.queue.put(desk::parcel_for("good", 1000)).await.unwrap();
    desk.queue.put(desk::parcel_for("bad", 1001)).await.unwrap();
    desk.wait_for(Counts { waiting: 101, held: 0, oldest: None }).await;
    assert_eq!(of_bad(), before);
    // An admin who mended it and reloads does not wait for the next probe.
    is_right.store(true, Ordering::Relaxed);
    let settings = courier::Settings {
        max_in_flight: 8,
        shares: Default::default(),
        retry_first: LONG,
        retry_max: LONG,
        max_age: DAYS,
    };
    desk.controls.change(settings);
    desk.wait_for(EMPTY).await;
    assert_eq!((desk.controls.paused(), of_bad()), (Vec::new(), before + 101));
    desk.close().await;
}

/// Where a tenant's settings are wrong, and then everybody's, its activities are all there is to probe with.
#[tokio::test]
async fn a_tenant_that_is_paused_itself_shows_how_everybodys_lane_is() {
    let desk = Desk::closed(1);
    for id in 0..3 {
        desk.queue.put(desk::parcel_for("bad", id)).await.unwrap();
    }
    let backend = ByRule::new(|_, before| {
        let scope = if before % 2 == 0 { Scope::Tenant } else { Scope::All };
        let reason = "no".to_owned();
        if before < 8 { Outcome::Misconfigured { scope, after: None, reason } } else { Outcome::Taken }
    });
    let desk = desk.begin_over(backend.clone(), DAYS);
    desk.wait_for(EMPTY).await;
    until!("the end of the pause", desk.controls.paused().is_empty());
    desk.close().await;
}

#[tokio::test]
async fn an_attempt_that_panics_harms_nobody() {
    let desk = Desk::closed(4);
    for id in 0..20 {
        desk.queue.put(desk::parcel(id)).await.unwrap();
    }
    let backend = ByRule::new(|delivery, _| {
        assert!(name(delivery) != "t-3", "as if by a fault of ours");
        Outcome::Taken
    });
    let desk = desk.begin_over(backend.clone(), DAYS);
    desk.wait_for(Counts { waiting: 1, held: 0, oldest: None }).await;
    assert_eq!(desk.controls.paused(), []);
    let left = &desk.queue.list(Filter::default()).await.unwrap()[0];
    assert_eq!((left.state, left.attempts), (State::Waiting, 0), "it comes again");
    desk.close().await;
}

/// A probe that shows nothing, by a fault of ours or a disk's, is not the only probe.
#[tokio::test]
async fn a_probe_that_shows_nothing_does_not_keep_a_lane_shut() {
    for (what, begins) in
        [("panic", None), ("disk", None), ("disk, fresh", None), ("500", Some(Scope::Tenant))]
    {
        let desk = Desk::closed(1);
        for id in 0..20 {
            desk.queue.put(desk::parcel(id)).await.unwrap();
        }
        let faulty = if what == "disk, fresh" { "t-19" } else { "t-0" };
        let backend = ByRule::new(move |delivery, before| match (begins, before) {
            (None, 0..6) => again(Trouble::Down, None),
            (Some(scope), 0..2) => {
                Outcome::Misconfigured { scope, after: None, reason: "invalid_client".to_owned() }
            }
            _ if name(delivery) == faulty => {
                assert!(what != "panic", "as if by a fault of ours");
                again(if what == "500" { Trouble::Down } else { Trouble::Ours }, None)
            }
            _ => Outcome::Taken,
        });
        let desk = desk.begin_over(backend, DAYS);
        desk.wait_for(Counts { waiting: 1, held: 0, oldest: None }).await;
        assert_eq!(desk.controls.paused(), [], "{what}");
        desk.close().await;
    }
}

/// However many tenants' settings are refused, and however little room there is, others have theirs, and each lane its turn.
#[tokio::test]
async fn probes_of_tenants_leave_room_for_others_and_for_each_other() {
    for (max, tenants) in [(1, 1), (1, 3), (4, 40)] {
        let desk = Desk::closed(max);
        for id in 0..3 {
            for bad in 0..tenants {
                desk.queue.put(desk::parcel_for(&format!("bad{bad}"), id)).await.unwrap();
            }
        }
        let mended = Arc::new(AtomicBool::new(false));
        let is_mended = Arc::clone(&mended);
        let backend = ByRule::new(move |delivery, _| {
            let name = name(delivery);
            if name.starts_with("good") || (is_mended.load(Ordering::Relaxed) && name.starts_with("bad0-")) {
                return Outcome::Taken;
            }
            let reason = "invalid_client".to_owned();
            Outcome::Misconfigured { scope: Scope::Tenant, after: Some(Duration::ZERO), reason }
        });
        // Their probes are always due.
        let desk = desk.begin_over(backend.clone(), DAYS);
        until!("the pauses", desk.controls.paused().len() >= tenants);
        for id in 0..20 {
            desk.queue.put(desk::parcel_for("good", id)).await.unwrap();
        }
        let waiting = 3 * tenants as u64;
        desk.wait_for(Counts { waiting, held: 0, oldest: None }).await;
        mended.store(true, Ordering::Relaxed);
        desk.wait_for(Counts { waiting: waiting - 3, held: 0, oldest: None }).await;
        desk.close().await;
    }
}

/// Nothing waits: there is nothing that could end the alarm, and nothing to be alarmed of.
#[tokio::test]
async fn a_pause_is_over_when_nothing_waits_any_more() {
    for scope in [None, Some(Scope::All), Some(Scope::Tenant)] {
        let desk = Desk::closed(1);
        for id in 0..6 {
            desk.queue.put(desk::parcel(id)).await.unwrap();
        }
        let backend = ByRule::new(move |_, _| match scope {
            None => again(Trouble::Down, None),
            Some(scope) => Outcome::Misconfigured { scope, after: None, reason: "401".to_owned() },
        });
        let desk = desk.begin_over(backend, DAYS);
        until!("a pause", !desk.controls.paused().is_empty());
        until!("an empty queue", {
            let all = desk.queue.list(Filter::default()).await.unwrap();
            desk.queue.change(all.iter().map(|entry| entry.id).collect(), Change::Drop).await.unwrap();
            desk.counts().await == EMPTY
        });
        until!("the end of the pause", desk.controls.paused().is_empty());
        desk.close().await;
    }
}

/// Notes how much is open at a time.
#[derive(Default)]
struct Weighing {
    open: Mutex<(usize, usize)>,
    taken: std::sync::atomic::AtomicUsize,
}

#[async_trait::async_trait]
impl Backend for Weighing {
    async fn deliver(&self, delivery: &Delivery, _: &dyn Journal) -> Outcome {
        let bytes = delivery.json.len();
        {
            let mut open = self.open.lock().unwrap();
            open.0 += bytes;
            open.1 = open.1.max(open.0);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        self.open.lock().unwrap().0 -= bytes;
        self.taken.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Outcome::Taken
    }

    async fn check(&self, _: Duration) -> Vec<activity_milter::backend::Check> {
        Vec::new()
    }
}

/// P11: what is leased is not held; what is attempted is, up to a number of bytes.
#[tokio::test]
async fn attempts_hold_a_bounded_number_of_bytes() {
    let desk = Desk::closed(32);
    let mut parcel = desk::html_parcel(1, 1_500_000);
    for id in 0..40 {
        parcel.activities[0].key = Key::from_bytes([id; 32]);
        desk.queue.put(parcel.clone()).await.unwrap();
    }
    let backend = Arc::new(Weighing::default());
    let settings = courier::Settings {
        max_in_flight: 32,
        shares: Default::default(),
        retry_first: Duration::from_secs(1),
        retry_max: Duration::from_secs(1),
        max_age: DAYS,
    };
    let stop = tokio_util::sync::CancellationToken::new();
    let courier = tokio::spawn(courier::run(
        Arc::clone(&desk.queue),
        backend.clone(),
        courier::Controls::new(settings),
        stop.clone(),
    ));
    until!("forty deliveries", backend.taken.load(std::sync::atomic::Ordering::Relaxed) >= 40);
    stop.cancel();
    courier.await.unwrap();
    let most = u64::try_from(backend.open.lock().unwrap().1).unwrap();
    assert!(most <= courier::OPEN_AT_A_TIME / 3 && most > 3_000_000, "{most}");
}
