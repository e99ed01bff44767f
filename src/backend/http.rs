//! `POST /v1/activities` (DESIGN section 8): one multipart request for each activity.

use super::{Backend, Delivery, Outcome};
use crate::activity::{Cut, Raw, one_line};
use async_trait::async_trait;
use bytes::Bytes;
use reqwest::{
    Client, Response, StatusCode,
    header::RETRY_AFTER,
    multipart::{Form, Part},
    redirect,
};
use serde::Deserialize;
use std::{
    io,
    time::{Duration, SystemTime},
};
use tokio::sync::mpsc;

/// Slowest upload that is waited for, in bytes a second, on top of `timeout`: thirty seconds are plenty for an answer
/// and too few for 50 MiB over a branch office's line.
const SLOWEST_UPLOAD: u64 = 256 * 1024;

/// Bytes of an answer that are read. A backend that sends more is talking to itself.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Characters of a refusal's detail that are kept.
const MAX_DETAIL_CHARS: usize = 200;

/// Size of the pieces in which a spooled file is sent.
const PIECE_BYTES: usize = 64 * 1024;

/// Settings of the HTTP backend.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Base URL; `v1/…` is appended.
    pub url: reqwest::Url,
    /// Bearer token.
    pub token: Option<String>,
    /// Time for connecting and for the answer; large requests get more, by their size.
    pub timeout: Duration,
    /// Send the raw message as a last part too.
    pub include_raw_message: bool,
}

/// Posts activities.
#[derive(Debug)]
pub struct HttpBackend {
    client: Client,
    url: reqwest::Url,
    settings: Settings,
}

/// Why the client cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("backend: {0}")]
pub struct ClientError(String);

impl HttpBackend {
    /// Prepares the client; connects to nobody yet.
    /// # Errors
    /// An URL that cannot be a base, or a TLS set-up that does not work.
    pub fn new(settings: Settings) -> Result<Self, ClientError> {
        // reqwest takes the process's provider; the first one installed stays, and it is the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("activity-milter/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(settings.timeout)
            // A redirected POST is a wrong URL of ours; it must not carry mail to whoever answered.
            .redirect(redirect::Policy::none())
            .build()
            .map_err(|error| ClientError(chain(&error)))?;
        let mut base = settings.url.clone();
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let url = base.join("v1/activities").map_err(|error| ClientError(error.to_string()))?;
        Ok(Self { client, url, settings })
    }

    async fn post(&self, delivery: &Delivery) -> reqwest::Result<Response> {
        let key = delivery.activity.key.as_str();
        let mut form =
            Form::new().part("activity", part(Part::bytes(delivery.json.to_vec()), "application/json"));
        for (file, cut) in delivery.activity.files.iter().zip(&delivery.cuts) {
            let body = Part::stream_with_length(stream(delivery.raw.clone(), *cut), file.size);
            form = form.part(file.part.clone(), part(body.file_name(file.name.clone()), &file.content_type));
        }
        if self.settings.include_raw_message {
            let raw = Part::stream_with_length(
                stream(delivery.raw.clone(), delivery.raw.whole()),
                delivery.raw.len(),
            );
            form = form.part("message", part(raw.file_name("message.eml"), "message/rfc822"));
        }
        let patience = self.settings.timeout + Duration::from_secs(delivery.raw.len() / SLOWEST_UPLOAD);
        let mut request = self
            .client
            .post(self.url.clone())
            .timeout(patience)
            // A structured string (RFC 8941, section 3.3.3): draft-ietf-httpapi-idempotency-key-header, section 2.1.
            .header("Idempotency-Key", format!("\"{key}\""))
            .multipart(form);
        if let Some(token) = &self.settings.token {
            request = request.bearer_auth(token);
        }
        request.send().await
    }
}

#[async_trait]
impl Backend for HttpBackend {
    async fn deliver(&self, delivery: &Delivery) -> Outcome {
        match self.post(delivery).await {
            Ok(response) => outcome(response).await,
            Err(error) => Outcome::Again { after: None, reason: chain(&error.without_url()) },
        }
    }
}

/// Gives a part its media type; one that is malformed, straight from somebody's mail, becomes "some bytes".
fn part(part: Part, media_type: &str) -> Part {
    let usable = media_type.parse::<mime::Mime>().is_ok();
    let media_type = if usable { media_type } else { "application/octet-stream" };
    part.mime_str(media_type).expect("a media type that was parsed before is one")
}

/// Decodes a cut on a thread that may block, piece by piece, as fast as the connection takes it.
fn stream(raw: Raw, cut: Cut) -> reqwest::Body {
    let (pieces, inbox) = mpsc::channel::<io::Result<Bytes>>(2);
    tokio::task::spawn_blocking(move || {
        let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let send = |piece: &mut Vec<u8>| {
            let bytes = Bytes::from(std::mem::take(piece));
            if bytes.is_empty() { Ok(()) } else { pieces.blocking_send(Ok(bytes)).map_err(|_| closed()) }
        };
        let decoded = raw.decode(cut, &mut |decoded| {
            piece.extend_from_slice(decoded);
            if piece.len() >= PIECE_BYTES { send(&mut piece) } else { Ok(()) }
        });
        if let Err(error) = decoded.and_then(|()| send(&mut piece)) {
            // If nobody listens any more, nobody needs to know.
            let _ = pieces.blocking_send(Err(error));
        }
    });
    let next = |mut inbox: mpsc::Receiver<_>| async move { inbox.recv().await.map(|piece| (piece, inbox)) };
    reqwest::Body::wrap_stream(futures_util::stream::unfold(inbox, next))
}

async fn outcome(response: Response) -> Outcome {
    let status = response.status();
    let reason = format!("backend answered {status}");
    match status.as_u16() {
        200..=299 => {
            // Read to its end, so that the connection can be used again.
            let _ = answer(response).await;
            Outcome::Taken
        }
        408 | 409 | 425 | 429 | 500..=599 => {
            let after =
                response.headers().get(RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?));
            Outcome::Again { after, reason }
        }
        300..=399 | 401 | 403 | 404 | 410 => Outcome::Misconfigured { status: status.as_u16() },
        400..=499 => Outcome::Refused { detail: detail(status, &answer(response).await) },
        _ => Outcome::Again { after: None, reason },
    }
}

/// `Retry-After` in both forms: seconds, or a date (RFC 9110, section 10.2.3).
fn retry_after(value: &str) -> Option<Duration> {
    match value.trim().parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let date = httpdate::parse_http_date(value.trim()).ok()?;
            Some(date.duration_since(SystemTime::now()).unwrap_or_default())
        }
    }
}

/// The first bytes of an answer; whatever goes wrong, what came so far.
async fn answer(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < MAX_ANSWER_BYTES
        && let Ok(Some(piece)) = response.chunk().await
    {
        body.extend_from_slice(&piece);
    }
    body.truncate(MAX_ANSWER_BYTES);
    body
}

/// Problem details (RFC 9457), as far as people read them.
#[derive(Deserialize)]
struct Problem {
    title: Option<String>,
    detail: Option<String>,
}

fn detail(status: StatusCode, body: &[u8]) -> String {
    let problem: Option<Problem> = serde_json::from_slice(body).ok();
    let text = problem.and_then(|p| p.detail.or(p.title)).unwrap_or_default();
    let text: String = one_line(&text).chars().take(MAX_DETAIL_CHARS).collect();
    if text.is_empty() { format!("backend answered {status}") } else { format!("{status}: {text}") }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    one_line(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_in_both_forms() {
        assert_eq!(retry_after("120"), Some(Duration::from_secs(120)));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3600));
        let after = retry_after(&date).unwrap();
        assert!(after > Duration::from_secs(3590) && after <= Duration::from_secs(3600));
        assert_eq!(retry_after("Mon, 01 Jan 2024 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(retry_after("soon"), None);
    }

    #[test]
    fn details_are_one_printable_line() {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        let body = br#"{"type": "about:blank", "title": "t", "detail": "no such\r\nactivity type"}"#;
        assert_eq!(detail(status, body), "422 Unprocessable Entity: no such  activity type");
        assert_eq!(detail(status, b"<html>"), "backend answered 422 Unprocessable Entity");
        assert!(detail(status, format!("{{\"title\": \"{}\"}}", "x".repeat(999)).as_bytes()).len() < 240);
    }
}
