//! The backend of the cluster: a server that takes every activity as often as it comes, and writes down each time.
//!
//! In: `POST /v1/activities` as `docs/backend-api.yaml` says. Out: [`Delivery`]s, in their order.
//! Promise: it leaves nothing out and puts nothing together: what is sent twice is there twice. What was answered 201 is
//! written down. That what came is what was sent is looked at here: text and files are those of the message of that number.
//! Fails: what is not as it was sent is written down as such ([`Backend::damaged`]).

use super::clients;
use crate::cluster::lab::Node;
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Multipart, State},
    http::StatusCode,
    routing::post,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::Write,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;

/// Its port.
pub const PORT: u16 = 8080;

/// One activity that came once.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    pub key: String,
    /// Of the message.
    pub number: usize,
    pub at: Instant,
}

#[derive(Debug)]
struct Taken {
    log: File,
    deliveries: Vec<Delivery>,
    damaged: Vec<String>,
    delay: Duration,
}

/// The backend; it ends when it is dropped.
pub struct Backend {
    pub node: Node,
    taken: Arc<Mutex<Taken>>,
    _runtime: Runtime,
}

impl Backend {
    /// Starts it on a machine, with its log at `log`.
    pub fn start(node: Node, log: &Path) -> Self {
        let log = File::create(log).unwrap();
        let taken = Taken { log, deliveries: Vec::new(), damaged: Vec::new(), delay: Duration::ZERO };
        let taken = Arc::new(Mutex::new(taken));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let address = (node.address, PORT);
        let listener = node.inside(move || std::net::TcpListener::bind(address).unwrap());
        listener.set_nonblocking(true).unwrap();
        let router = Router::new()
            .route("/v1/activities", post(take))
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::clone(&taken));
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
        Self { node, taken, _runtime: runtime }
    }

    /// Everything so far.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.taken.lock().unwrap().deliveries.clone()
    }

    /// How many so far.
    pub fn count(&self) -> usize {
        self.taken.lock().unwrap().deliveries.len()
    }

    /// From what was written down to the answer.
    pub fn delay(&self, delay: Duration) {
        self.taken.lock().unwrap().delay = delay;
    }

    /// What was not as it was sent.
    pub fn damaged(&self) -> Vec<String> {
        self.taken.lock().unwrap().damaged.clone()
    }
}

async fn take(State(taken): State<Arc<Mutex<Taken>>>, mut parts: Multipart) -> (StatusCode, Json<Value>) {
    let broken = || (StatusCode::BAD_REQUEST, Json(json!({ "title": "it broke off" })));
    let mut activity = Value::Null;
    let mut files = Vec::new();
    loop {
        match parts.next_field().await {
            Ok(Some(field)) => {
                let is_first = activity.is_null();
                let Ok(bytes) = field.bytes().await else { return broken() };
                match is_first {
                    true => activity = serde_json::from_slice(&bytes).unwrap(),
                    false => files.push(
                        Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
                    ),
                }
            }
            Ok(None) => break,
            Err(_) => return broken(),
        }
    }
    let key = activity["key"].as_str().unwrap_or_default().to_owned();
    let number = clients::number_of(activity["subject"].as_str().unwrap_or_default());
    let wanted: Vec<&str> = activity["files"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|file| file["sha256"].as_str())
        .collect();
    let text = activity["text"].as_str().unwrap_or_default();
    let is_whole = number.is_some_and(|number| text.contains(&clients::body(number)))
        && wanted.iter().all(|file| files.iter().any(|found| found == file));
    let number = number.unwrap_or(usize::MAX);
    let delay = {
        let mut taken = taken.lock().unwrap();
        if !is_whole {
            taken.damaged.push(format!("{activity}"));
        }
        writeln!(taken.log, "{key} {number}").unwrap();
        taken.deliveries.push(Delivery { key: key.clone(), number, at: Instant::now() });
        taken.delay
    };
    tokio::time::sleep(delay).await;
    (StatusCode::CREATED, Json(json!({ "key": key, "id": key })))
}
