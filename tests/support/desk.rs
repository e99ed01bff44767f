//! A queue and a courier at work, in this process.

#![allow(dead_code, clippy::unwrap_used)] // each user needs another half; in tests a panic is the answer

use activity_milter::{
    activity::{Activity, Owner, Parcel, Parties, Raw, TenantRef},
    backend::{Backend, Delivery, HttpBackend, HttpSettings},
    courier::{self, Controls, Settings},
    mail::{Envelope, Head, Intake, LIMITS, Reader},
    queue::{self, Clock, Counts, Queue, Settings as QueueSettings, SystemClock},
    web::{Client, ClientSettings, Credentials},
};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio_util::sync::CancellationToken;

pub const EMPTY: Counts = Counts { waiting: 0, held: 0, oldest: None };
pub const DAYS: Duration = Duration::from_secs(5 * 24 * 3600);

/// A queue whose courier has not begun.
pub struct Closed {
    pub queue: Arc<dyn Queue>,
    max_in_flight: usize,
    directory: tempfile::TempDir,
}

impl Closed {
    pub fn begin(self, url: &str) -> Desk {
        self.begin_with(url, DAYS)
    }

    pub fn begin_with(self, url: &str, max_age: Duration) -> Desk {
        let Self { queue, max_in_flight, directory } = self;
        let token = directory.path().join("token");
        std::fs::write(&token, "secret-token\n").unwrap();
        let client = ClientSettings {
            credentials: Credentials::Token(token),
            ..ClientSettings::new(url.parse().unwrap(), Duration::from_secs(2))
        };
        let backend = Arc::new(http_backend(&client, None));
        Self { queue, max_in_flight, directory }.begin_over(backend, max_age)
    }

    /// Over any backend.
    pub fn begin_over(self, backend: Arc<dyn Backend>, max_age: Duration) -> Desk {
        self.begin_slowly(backend, Duration::from_millis(20), Duration::from_millis(100), max_age)
    }

    /// With other delays.
    pub fn begin_slowly(
        self,
        backend: Arc<dyn Backend>,
        retry_first: Duration,
        retry_max: Duration,
        max_age: Duration,
    ) -> Desk {
        let max_in_flight = self.max_in_flight;
        let settings = Settings { max_in_flight, shares: HashMap::new(), retry_first, retry_max, max_age };
        self.begin_so(backend, settings)
    }

    /// With all settings.
    pub fn begin_so(self, backend: Arc<dyn Backend>, settings: Settings) -> Desk {
        let Self { queue, directory, .. } = self;
        let stop = CancellationToken::new();
        let controls = Controls::new(settings);
        let courier =
            tokio::spawn(courier::run(Arc::clone(&queue), backend, Arc::clone(&controls), stop.clone()));
        Desk { queue, controls, stop, courier, _directory: directory }
    }
}

/// A queue, a courier at work, and the number of messages put so far.
pub struct Desk {
    pub queue: Arc<dyn Queue>,
    pub controls: Arc<Controls>,
    stop: CancellationToken,
    courier: tokio::task::JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Desk {
    pub fn open(url: &str, max_in_flight: usize, max_age: Duration) -> Self {
        Self::closed(max_in_flight).begin_with(url, max_age)
    }

    /// A queue whose courier has not begun.
    pub fn closed(max_in_flight: usize) -> Closed {
        Self::closed_with(max_in_flight, Arc::new(SystemClock))
    }

    /// With another clock.
    pub fn closed_with(max_in_flight: usize, clock: Arc<dyn Clock>) -> Closed {
        let directory = tempfile::tempdir().unwrap();
        let (path, spool) = (directory.path().join("queue.db"), directory.path().join("spool"));
        let queue = queue::open(&QueueSettings::new(path, spool), clock).unwrap();
        Closed { queue, max_in_flight, directory }
    }

    pub async fn put(&self, id: usize) -> Activity {
        let parcel = parcel(id);
        let activity = parcel.activities[0].clone();
        self.queue.put(parcel).await.unwrap();
        activity
    }

    /// Numbers without times.
    pub async fn counts(&self) -> Counts {
        Counts { oldest: None, ..self.queue.counts().await.unwrap() }
    }

    pub async fn wait_for(&self, expected: Counts) {
        for _ in 0..1000 {
            if self.counts().await == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("waited in vain for {expected:?}: {:?}", self.queue.counts().await);
    }

    pub async fn close(self) {
        self.stop.cancel();
        self.courier.await.unwrap();
    }
}

/// The backend over HTTP.
pub fn http_backend(client: &ClientSettings, signing_secret_file: Option<std::path::PathBuf>) -> HttpBackend {
    let settings =
        HttpSettings { timeout: client.connection.timeout, signing_secret_file, include_raw_message: false };
    HttpBackend::new(Arc::new(Client::new(client).unwrap()), settings).unwrap()
}

/// A small message with one file, for the tenant `t`.
pub fn parcel(id: usize) -> Parcel {
    parcel_for("t", id)
}

/// A message of much HTML.
pub fn html_parcel(id: usize, bytes: usize) -> Parcel {
    let line = "<p class=x>words of a newsletter</p>\r\n";
    let html = line.repeat(bytes / line.len());
    let head = "Subject: s\r\nMessage-ID: <".to_owned();
    parcel_of("t", format!("{head}{id}@html>\r\nContent-Type: text/html\r\n\r\n{html}"))
}

/// The same for any tenant.
pub fn parcel_for(tenant: &str, id: usize) -> Parcel {
    parcel_of(
        tenant,
        format!(
            "Subject: s\r\nMessage-ID: <{id}@x>\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhello\r\n--b\r\n\
         Content-Type: image/x-odd;\r\n name=\"\u{e5}.png\"\r\nContent-Transfer-Encoding: base64\r\n\r\nAAEC\r\n--b--\r\n"
        ),
    )
}

/// A message for a tenant.
fn parcel_of(tenant: &str, text: String) -> Parcel {
    let parties = Parties {
        tenant: TenantRef { id: tenant.to_owned(), prefix: tenant.to_owned() },
        activity_type: "Email".to_owned(),
        owner: Owner { user_id: "u".to_owned(), address: "a@x.test".to_owned(), name: None },
        participants: Arc::default(),
        people_omitted: 0,
        automatic: None,
        sender_authenticated: None,
        customer: None,
        project: None,
    };
    parcel_with(parties, text)
}

/// A message for whom it concerns.
pub fn parcel_with(parties: Parties, text: String) -> Parcel {
    let head = Head::parse(text.split("\r\n\r\n").next().unwrap().as_bytes()).unwrap();
    let envelope = Envelope {
        sender: None,
        recipients: Vec::new(),
        queue_id: None,
        client: None,
        is_local: false,
        is_plain: true,
        helo: None,
        login: None,
        intake: Intake::Milter,
    };
    let body = Reader::whole(text.as_bytes(), LIMITS);
    let raw = Raw::from(text.into_bytes());
    Parcel::build(vec![parties], &envelope, &head, body, raw, SystemTime::now())
}

/// The same as one attempt sees it.
pub fn delivery(id: usize) -> Delivery {
    delivery_of(parcel(id))
}

/// The first activity of a message as one attempt sees it.
pub fn delivery_of(parcel: Parcel) -> Delivery {
    let Parcel { mut activities, cuts, raw, .. } = parcel;
    let activity = activities.remove(0);
    let json = serde_json::to_vec(&activity).unwrap().into();
    Delivery { activity, json, cuts, raw, replay: false }
}
