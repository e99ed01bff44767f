//! Prism between the fake and its client: a second opinion on every request and answer that nobody here wrote.
//!
//! In: requests of the client, at the front. Out: the fake's answers, or Prism's where it finds a violation of
//! `tests/severa/openapi.yaml`; each of these is kept. What Prism can not do stands in `tests/severa/README.md`: uploads
//! go past it, for it damages them.

#![allow(dead_code, clippy::unwrap_used)] // each user needs another half; in tests a panic is the answer

use super::{Served, Severa, free_port, lose, wait_for};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    response::Response,
};
use std::{
    fs::File,
    io::{Read, Seek},
    net::TcpStream,
    ops::Deref,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

/// The fake behind Prism. Dropped: all of it ends.
pub struct Prism {
    // Fields end in this order: nobody asks who is gone.
    _front: Served,
    _process: Process,
    severa: Severa,
    port: u16,
    violations: Arc<Mutex<Vec<String>>>,
    forwarded: Arc<Mutex<usize>>,
}

/// Ended by its id.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Deref for Prism {
    type Target = Severa;

    fn deref(&self) -> &Severa {
        &self.severa
    }
}

impl Prism {
    pub(super) fn start(severa: Severa) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let script = root.join("tests/severa/prism");
        // By itself first: this may take as long as a download takes.
        assert!(Command::new(&script).status().unwrap().success(), "Prism can not be installed");
        let port = free_port();
        let mut log = tempfile::tempfile().unwrap();
        let schema = root.join("tests/severa/openapi.yaml");
        let mut command = Command::new(&script);
        command.args(["proxy", "--errors", "--host", "127.0.0.1", "--port", &port.to_string()]);
        command.arg(schema).arg(severa.url()).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log.try_clone().unwrap());
        let mut process = Process(command.spawn().unwrap());
        wait_for("Prism to listen", || {
            if let Some(status) = process.0.try_wait().unwrap() {
                panic!("Prism ended, {status}: {}", text_of(&mut log));
            }
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        let front = Arc::new(Front {
            client: reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap(),
            prism: format!("http://127.0.0.1:{port}"),
            fake: format!("http://127.0.0.1:{}", severa.port()),
            violations: Arc::default(),
            forwarded: Arc::default(),
        });
        let (violations, forwarded) = (Arc::clone(&front.violations), Arc::clone(&front.forwarded));
        let port = free_port();
        let router = Router::new().fallback(move |request| Arc::clone(&front).forward(request));
        let served = Served::start(port, router);
        Self { _front: served, _process: process, severa, port, violations, forwarded }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/rest-api", self.port)
    }

    /// Prism's own answers: what it says is wrong with a request or with an answer of the fake's.
    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    /// How many calls went through Prism.
    pub fn forwarded(&self) -> usize {
        *self.forwarded.lock().unwrap()
    }
}

fn text_of(log: &mut File) -> String {
    let mut text = String::new();
    log.rewind().unwrap();
    log.read_to_string(&mut text).unwrap();
    text
}

/// Sends everything to Prism, and uploads past it.
struct Front {
    client: reqwest::Client,
    prism: String,
    fake: String,
    violations: Arc<Mutex<Vec<String>>>,
    forwarded: Arc<Mutex<usize>>,
}

impl Front {
    async fn forward(self: Arc<Self>, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let kind =
            parts.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let target = parts.uri.path_and_query().unwrap().as_str();
        let upload = kind.starts_with("multipart/");
        let url = match target.strip_prefix("/rest-api") {
            // Prism's paths have no base; it adds that of the fake itself.
            Some(path) if !upload => format!("{}{path}", self.prism),
            _ => format!("{}{target}", self.fake),
        };
        if !upload {
            *self.forwarded.lock().unwrap() += 1;
        }
        let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else { lose() };
        let mut headers = parts.headers.clone();
        headers.remove("host");
        headers.remove("transfer-encoding");
        headers.remove("content-length"); // made anew
        let sent = self.client.request(parts.method.clone(), &url).headers(headers).body(body).send().await;
        let Ok(answer) = sent else { lose() };
        let (status, headers) = (answer.status(), answer.headers().clone());
        let Ok(body) = answer.bytes().await else { lose() };
        if let Some(violation) = violation(&headers, &body) {
            self.violations.lock().unwrap().push(format!("{} {target}: {status} {violation}", parts.method));
        }
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        for (name, value) in &headers {
            if !matches!(name.as_str(), "transfer-encoding" | "content-length" | "connection") {
                response.headers_mut().append(name, value.clone());
            }
        }
        response
    }
}

/// What Prism says, if it is Prism that speaks.
fn violation(headers: &reqwest::header::HeaderMap, body: &Bytes) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    match headers.get("sl-violations") {
        Some(found) => Some(format!("{} {text}", found.to_str().unwrap_or_default())),
        None => text.contains("\"type\":\"https://stoplight.io/prism/errors#").then(|| text.into_owned()),
    }
}
