//! `POST /v1/activities`: one multipart request (RFC 7578), streamed to disk, checked, stored once.

use super::{Problem, Running, Sink, blocking, signature::Tap, store::Incoming};
use crate::activity::{Activity, FileRef};
use axum::{
    Json,
    extract::{FromRequest, Multipart, Request, State, multipart::Field},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{
    fmt::Write as _,
    path::Path,
    sync::{Arc, PoisonError},
};
use tokio::{fs::File, io::AsyncWriteExt};

/// Largest `activity` part: two texts of 1 MiB, escaped, and everything else.
const MAX_ACTIVITY_BYTES: usize = 16 * 1024 * 1024;

/// Says that an answer was given before: the same as the draft's examples use.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

pub(super) async fn receive(State(sink): State<Arc<Sink>>, request: Request) -> Response {
    let key = request.headers().get("idempotency-key").and_then(|key| key.to_str().ok());
    let key = key.unwrap_or("-").trim_matches('"').to_owned();
    let answer = answer(&sink, request).await.unwrap_or_else(Problem::into_response);
    let mut attempts = sink.attempts.lock().unwrap_or_else(PoisonError::into_inner);
    if attempts.len() == super::MOST_ATTEMPTS {
        attempts.pop_front();
    }
    attempts.push_back(format!("{key} {}", answer.status().as_u16()));
    answer
}

async fn answer(sink: &Arc<Sink>, request: Request) -> Result<Response, Problem> {
    if sink.settings.hang {
        return std::future::pending().await;
    }
    tokio::time::sleep(sink.settings.delay).await;
    let (head, body) = request.into_parts();
    let tap = Tap::new(&head.headers, body, &sink.keys)?;
    if let Some(status) = sink.settings.status {
        tap.finish().await?;
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return Err(Problem::new(status, "the sink was told to answer this (--status)"));
    }
    let fails = fastrand::f64() < sink.settings.fail_rate;
    let failure = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the sink was told to fail (--fail-rate)");
    if fails && fastrand::bool() {
        tap.finish().await?;
        return Err(failure());
    }
    let request = Request::from_parts(head, tap.body());
    let answer = match take(sink, request, &tap).await {
        Ok(answer) => answer,
        Err(problem) => {
            tap.finish().await?;
            return Err(problem);
        }
    };
    if fails { Err(failure()) } else { Ok(answer) }
}

async fn take(sink: &Arc<Sink>, request: Request, tap: &Tap) -> Result<Response, Problem> {
    let bad = |detail: &str| Problem::new(StatusCode::BAD_REQUEST, detail);
    let key = idempotency_key(request.headers())
        .ok_or_else(|| bad("Idempotency-Key is missing or no quoted string"))?
        .to_owned();
    let running = Running::start(sink, &key)
        .ok_or_else(|| Problem::new(StatusCode::CONFLICT, "a request with this key is still running"))?;
    let known = key.clone();
    if let Some(number) = blocking(sink, move |store| store.number(&known)).await? {
        tap.finish().await?;
        let mut response = created(&key, number);
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
        return Ok(response);
    }
    let mut parts = Multipart::from_request(request, &())
        .await
        .map_err(|error| Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error.body_text()))?;
    let first = parts.next_field().await.map_err(broken)?;
    let text = match first {
        Some(field) if field.name() == Some("activity") => small(field).await?,
        _ => return Err(bad("the first part must be `activity`")),
    };
    let activity: Activity = serde_json::from_slice(&text)
        .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, format!("activity: {error}")))?;
    if activity.key.as_str() != key {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "activity.key is not the Idempotency-Key",
        ));
    }
    let new = key.clone();
    let incoming = blocking(sink, move |store| store.begin(&new)).await?;
    receive_files(&mut parts, &activity, &incoming).await?;
    tap.finish().await?;
    let number = blocking(sink, move |store| store.commit(incoming, &text)).await?;
    drop(running);
    Ok(created(activity.key.as_str(), number))
}

fn created(key: &str, number: i64) -> Response {
    (StatusCode::CREATED, Json(json!({ "key": key, "id": number.to_string() }))).into_response()
}

/// The content of a quoted string without escapes (RFC 8941, section 3.3.3): our keys need none.
fn idempotency_key(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get("idempotency-key")?.to_str().ok()?.trim();
    let key = value.strip_prefix('"')?.strip_suffix('"')?;
    (!key.is_empty() && key.len() <= 256 && !key.contains(['"', '\\'])).then_some(key)
}

async fn small(mut field: Field<'_>) -> Result<Vec<u8>, Problem> {
    let mut text = Vec::new();
    while let Some(piece) = field.chunk().await.map_err(broken)? {
        if text.len() + piece.len() > MAX_ACTIVITY_BYTES {
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "the activity is larger than 16 MiB"));
        }
        text.extend_from_slice(&piece);
    }
    Ok(text)
}

async fn receive_files(
    parts: &mut Multipart,
    activity: &Activity,
    incoming: &Incoming,
) -> Result<(), Problem> {
    let unprocessable = |detail: String| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail);
    let mut missing: Vec<&FileRef> = activity.files.iter().collect();
    while let Some(field) = parts.next_field().await.map_err(broken)? {
        let name = field.name().unwrap_or_default().to_owned();
        if name == "message" {
            // The raw message, sent on request; nothing in the activity says what it must be.
            to_disk(field, &incoming.path("message.eml")).await?;
            continue;
        }
        let Some(at) = missing.iter().position(|file| file.part == name) else {
            return Err(unprocessable(format!(
                "part {name:?} is not announced in activity.files, or comes twice"
            )));
        };
        let file = missing.swap_remove(at);
        // The part's name was announced as `file-N` by us; a stranger's must not become a path.
        let number = activity.files.iter().position(|f| f.part == name).unwrap_or_default() + 1;
        let (size, sha256) = to_disk(field, &incoming.path(&format!("file-{number}"))).await?;
        if (size, sha256.as_str()) != (file.size, file.sha256.as_str()) {
            return Err(unprocessable(format!(
                "part {name:?} has {size} bytes, SHA-256 {sha256}: not as announced"
            )));
        }
    }
    match missing.first() {
        Some(file) => Err(unprocessable(format!("part {:?} is missing", file.part))),
        None => Ok(()),
    }
}

async fn to_disk(mut field: Field<'_>, path: &Path) -> Result<(u64, String), Problem> {
    let mut file = File::create(path).await?;
    let (mut size, mut hash) = (0, Sha256::new());
    while let Some(piece) = field.chunk().await.map_err(broken)? {
        size += piece.len() as u64;
        hash.update(&piece);
        file.write_all(&piece).await?;
    }
    file.sync_all().await?;
    let hex = hash.finalize().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    Ok((size, hex))
}

fn broken(error: axum::extract::multipart::MultipartError) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, error.body_text())
}
