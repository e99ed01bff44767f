//! `POST /v1/activities` (DESIGN section 8): one multipart request for each activity.

use super::{
    Backend, Check, Delivery, Journal, Outcome, Scope, Trouble,
    multipart::{Multipart, Upload},
    signature,
};
use crate::activity::one_line;
use crate::web::{CallError, Client, ClientError, SecretFile, body_of, retry_after};
use async_trait::async_trait;
use reqwest::{
    Method, Response,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use serde::Deserialize;
use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Slowest upload that is waited for, in bytes a second, on top of `timeout`: thirty seconds are plenty for an answer
/// and too few for 50 MiB over a branch office's line.
const SLOWEST_UPLOAD: u64 = 256 * 1024;

/// Bytes of an answer that are read. A backend that sends more is talking to itself.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Time for what nobody needs of an answer.
const REST_TIME: Duration = Duration::from_secs(1);

/// Characters of a refusal's detail that are kept.
const MAX_DETAIL_CHARS: usize = 200;

/// Settings of the HTTP backend.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Time for the answer; large requests get more, by their size.
    pub timeout: Duration,
    /// File with one or two signing secrets (`whsec_…`), the newest first.
    pub signing_secret_file: Option<PathBuf>,
    /// Send the raw message as a last part too.
    pub include_raw_message: bool,
}

/// Posts activities.
#[derive(Debug)]
pub struct HttpBackend {
    client: Arc<Client>,
    settings: Settings,
    signing: Option<SecretFile>,
}

impl HttpBackend {
    /// Delivers over this connection; connects to nobody yet.
    /// # Errors
    /// Settings that cannot work.
    pub fn new(client: Arc<Client>, settings: Settings) -> Result<Self, ClientError> {
        let signing = match &settings.signing_secret_file {
            Some(path) => {
                let secrets = SecretFile::open(path).map_err(ClientError::new)?;
                for secret in secrets.all().iter() {
                    signature::key_of(secret)
                        .map_err(|error| ClientError::new(format!("{}: {error}", path.display())))?;
                }
                Some(secrets)
            }
            None => None,
        };
        Ok(Self { client, settings, signing })
    }

    /// An answer shows that somebody is there; what it means for deliveries, only a real one can show. A 404 shows that
    /// there is nobody of ours: the URL is another's, or has too much or too little in its path.
    async fn is_there(&self, patience: Duration) -> Result<String, String> {
        let url = self.client.url(&["v1", "activities"]);
        let asked = self.client.send(patience, |http| Ok(http.request(Method::OPTIONS, url.clone()))).await;
        let status = asked
            .map_err(|error| format!("{url}: {error}. Check backend.url, and whether the backend runs"))?
            .status();
        match status.as_u16() {
            401 | 403 => Err(format!("{url} answers {status}: check the credentials in [backend]")),
            404 | 410 => Err(format!(
                "{url} answers {status}: nothing is there. Check backend.url, to which /v1/activities is appended; a backend that is there answers OPTIONS with 204 or 405"
            )),
            407 => Err(format!("{url}: the proxy answers {status}: check backend.proxy")),
            500.. => Err(format!("{url} answers {status}: it is there, and does not work now")),
            300..=399 => {
                Err(format!("{url} answers {status}: a redirect is not followed, check backend.url"))
            }
            _ => Ok(format!("{url} answers")),
        }
    }

    async fn post(&self, delivery: &Delivery) -> Result<Response, CallError> {
        let key = delivery.activity.key.as_str();
        let body = Arc::new(Multipart::of(delivery, self.settings.include_raw_message));
        let patience = self.settings.timeout + Duration::from_secs(body.length() / SLOWEST_UPLOAD);
        let signed = self.signed(key, &body).await.map_err(|error| unreadable(&error))?;
        let url = self.client.url(&["v1", "activities"]);
        let upload = Upload::default();
        let answer = self.client.send(patience, |http| {
            let mut request = http
                .post(url.clone())
                .header(CONTENT_TYPE, body.content_type())
                .header(CONTENT_LENGTH, body.length())
                // A structured string (RFC 8941, section 3.3.3): draft-ietf-httpapi-idempotency-key-header, section 2.1.
                .header("Idempotency-Key", format!("\"{key}\""))
                .header("webhook-id", key);
            if delivery.replay {
                request = request.header("Replay", "true");
            }
            if let Some((timestamp, signature)) = &signed {
                request =
                    request.header("webhook-timestamp", *timestamp).header("webhook-signature", signature);
            }
            Ok(request.body(body.body(&upload).map_err(|error| unreadable(&error))?))
        });
        answer.await.map_err(|error| match (upload.failure(), error) {
            (Some(ours), _) => CallError::Ours(ours),
            // It may have answered while we were sending, and no longer listened.
            (None, CallError::Silent(reason)) if upload.is_under_way() => CallError::Broken(reason),
            // What was sent at once was there to be answered: nobody did.
            (None, CallError::Broken(reason)) if !body.blocks() => CallError::Unreachable(reason),
            (None, error) => error,
        })
    }

    /// Timestamp and signature of this attempt; none without a secret.
    async fn signed(&self, key: &str, body: &Arc<Multipart>) -> io::Result<Option<(u64, String)>> {
        let Some(secrets) = &self.signing else { return Ok(None) };
        // A secret that a new version of the file spoiled was refused there, or is skipped here.
        let keys: Vec<_> = secrets.all().iter().filter_map(|secret| signature::key_of(secret).ok()).collect();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let (id, read) = (key.to_owned(), Arc::clone(body));
        let sign = move || signature::sign(&keys, &id, now, |sink| read.read(sink));
        let signature = if body.blocks() {
            tokio::task::spawn_blocking(sign).await.map_err(io::Error::other)??
        } else {
            sign()?
        };
        Ok(Some((now, signature)))
    }
}

/// Our own disk's trouble says nothing of the backend.
fn unreadable(error: &io::Error) -> CallError {
    CallError::Ours(format!("the spooled message cannot be read: {error}"))
}

#[async_trait]
impl Backend for HttpBackend {
    /// One request: there is no progress to note.
    async fn deliver(&self, delivery: &Delivery, _journal: &dyn Journal) -> Outcome {
        let again = |trouble, reason| Outcome::Again { after: None, trouble, reason };
        match self.post(delivery).await {
            Ok(response) => outcome(response).await,
            Err(CallError::Unreachable(reason) | CallError::Silent(reason) | CallError::Severed(reason)) => {
                again(Trouble::Down, reason)
            }
            Err(CallError::Broken(reason)) => again(Trouble::Broken, reason),
            Err(error @ CallError::Busy(_)) => again(Trouble::Busy, error.to_string()),
            Err(CallError::Ours(reason)) => again(Trouble::Ours, reason),
            Err(CallError::Credentials(reason)) => {
                Outcome::Misconfigured { scope: Scope::All, after: None, reason }
            }
        }
    }

    async fn check(&self, patience: Duration) -> Vec<Check> {
        vec![Check { name: "backend".to_owned(), outcome: self.is_there(patience).await }]
    }
}

async fn outcome(response: Response) -> Outcome {
    let status = response.status();
    let reason = format!("backend answered {status}");
    let after = retry_after(&response);
    match status.as_u16() {
        200..=299 => {
            // Read to its end, so that the connection can be used again; it is not worth waiting for.
            let rest = body_of(response, MAX_ANSWER_BYTES);
            let _ = tokio::time::timeout(REST_TIME, rest).await;
            Outcome::Taken
        }
        408 | 409 | 425 | 429 | 500..=599 => {
            let trouble = match status.as_u16() {
                429 => Trouble::Busy,
                409 | 425 => Trouble::Later,
                _ => Trouble::Down,
            };
            Outcome::Again { after, trouble, reason }
        }
        300..=399 | 407 => Outcome::Misconfigured { scope: Scope::All, after, reason },
        401 => Outcome::Misconfigured { scope: Scope::All, after, reason: said(reason, response).await },
        403 | 404 | 410 => {
            Outcome::Again { after, trouble: Trouble::Denied, reason: said(reason, response).await }
        }
        400..=499 => {
            let detail = detail(&body_of(response, MAX_ANSWER_BYTES).await);
            Outcome::Refused { status: status.to_string(), detail, about: None }
        }
        _ => Outcome::Again { after: None, trouble: Trouble::Down, reason },
    }
}

/// The status, with what the answer says of it.
async fn said(status: String, response: Response) -> String {
    match detail(&body_of(response, MAX_ANSWER_BYTES).await) {
        detail if detail.is_empty() => status,
        detail => format!("{status}: {detail}"),
    }
}

/// Problem details (RFC 9457), as far as people read them.
#[derive(Deserialize)]
struct Problem {
    title: Option<String>,
    detail: Option<String>,
}

fn detail(body: &[u8]) -> String {
    let problem: Option<Problem> = serde_json::from_slice(body).ok();
    let text = problem.and_then(|p| p.detail.or(p.title)).unwrap_or_default();
    one_line(&text).chars().take(MAX_DETAIL_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_one_line() {
        let body = br#"{"type": "about:blank", "title": "t", "detail": "no such\r\nactivity type"}"#;
        assert_eq!(detail(body), "no such  activity type");
        assert_eq!(detail(b"<html>"), "");
        assert_eq!(detail(format!("{{\"title\": \"{}\"}}", "x".repeat(999)).as_bytes()).len(), 200);
    }
}
