//! The courier against a real HTTP server that answers what it is told: what becomes of each activity.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

use activity_milter::{
    activity::{Activity, Owner, Parcel, Parties, Raw, TenantRef},
    backend::{ClientSettings, Credentials, HttpBackend, Settings as BackendSettings},
    courier::{self, Settings},
    mail::{Envelope, Head, Intake},
    queue::{Counts, Queue, Settings as QueueSettings},
};
use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};
use tokio_util::sync::CancellationToken;

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

/// A queue, a courier at work, and the number of messages put so far.
struct Desk {
    queue: Arc<Queue>,
    stop: CancellationToken,
    courier: tokio::task::JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Desk {
    fn open(url: &str, max_in_flight: usize, max_age: Duration) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (path, spool) = (directory.path().join("queue.db"), directory.path().join("spool"));
        let queue = Arc::new(
            Queue::open(&QueueSettings { path, spool, max_items: 1000 }, SystemTime::now()).unwrap(),
        );
        let token = directory.path().join("token");
        std::fs::write(&token, "secret-token\n").unwrap();
        let backend = HttpBackend::new(BackendSettings {
            client: ClientSettings {
                credentials: Credentials::Token(token),
                ..ClientSettings::new(url.parse().unwrap(), Duration::from_secs(2))
            },
            signing_secret_file: None,
            include_raw_message: false,
        })
        .unwrap();
        let settings = Settings {
            max_in_flight,
            retry_first: Duration::from_millis(20),
            retry_max: Duration::from_millis(100),
            max_age,
        };
        let stop = CancellationToken::new();
        let courier =
            tokio::spawn(courier::run(Arc::clone(&queue), Arc::new(backend), settings, stop.clone()));
        Self { queue, stop, courier, _directory: directory }
    }

    async fn put(&self, id: usize) -> Activity {
        let parcel = parcel(id);
        let activity = parcel.activities[0].clone();
        self.queue.put(parcel, SystemTime::now()).await.unwrap();
        activity
    }

    async fn wait_for(&self, expected: Counts) {
        for _ in 0..1000 {
            if self.queue.counts().await.unwrap() == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("waited in vain for {expected:?}: {:?}", self.queue.counts().await);
    }

    async fn close(self) {
        self.stop.cancel();
        self.courier.await.unwrap();
    }
}

const EMPTY: Counts = Counts { waiting: 0, held: 0 };
const DAYS: Duration = Duration::from_secs(5 * 24 * 3600);

fn parcel(id: usize) -> Parcel {
    let text = format!(
        "Subject: s\r\nMessage-ID: <{id}@x>\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhello\r\n--b\r\n\
         Content-Type: image/x-odd;\r\n name=\"\u{e5}.png\"\r\nContent-Transfer-Encoding: base64\r\n\r\nAAEC\r\n--b--\r\n"
    );
    let head = Head::parse(text.split("\r\n\r\n").next().unwrap().as_bytes()).unwrap();
    let envelope = Envelope {
        sender: None,
        recipients: Vec::new(),
        queue_id: None,
        client: None,
        login: None,
        intake: Intake::Milter,
    };
    let parties = Parties {
        tenant: TenantRef { id: "t".to_owned(), prefix: "t".to_owned() },
        activity_type: "Email".to_owned(),
        owner: Owner { user_id: "u".to_owned(), address: "a@x.test".to_owned(), name: None },
        participants: Vec::new(),
        customer: None,
        project: None,
    };
    Parcel::build(vec![parties], &envelope, &head, Raw::from(text.into_bytes()), SystemTime::now()).unwrap()
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
        desk.wait_for(Counts { waiting: 0, held: 1 }).await;
        desk.put(2).await; // and the next one is not harmed
        desk.wait_for(Counts { waiting: 0, held: 1 }).await;
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
    for code in [301, 307, 401, 403, 404, 410] {
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
    desk.wait_for(Counts { waiting: 1, held: 0 }).await;
    desk.wait_for(Counts { waiting: 0, held: 1 }).await;
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
