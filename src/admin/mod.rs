//! The door for administrators and their machines: metrics, health, and a page that shows what happens.
//!
//! In: HTTP on `[admin] listen`, a port or a unix socket. Out: `/metrics` (Prometheus), `/livez`, `/readyz`; `/`, the
//! status page, where held activities can be retried and dropped by whoever has the admin token; and `/docs/…`, what to do.
//! Promise: without the token nothing can be changed; a request from another site changes nothing (SameSite cookie, and
//! a token in each form); nothing of a message's content is shown; no script, nothing loaded from elsewhere.
//! Fails: each request for itself.

mod change;
mod checks;
mod door;
mod manual;
mod page;
mod sessions;
mod trace;

use crate::courier::{Controls, Paused};
use crate::intake::{Listen, Listener, Live, Shadow, SocketSettings};
use crate::observe::{events, metrics, recent};
use crate::queue::{Counts, Entry, Filter, Overview, Queue, State, StorageError, TenantCounts};
use crate::web::SecretFile;
use axum::{
    Form, Json, Router,
    extract::{Query as Wanted, Request, State as Shared, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use checks::checks;
use door::{Door, Names};
use serde::Deserialize;
use sessions::Sessions;
use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio_util::sync::CancellationToken;

/// Held activities shown on the page, and tenants.
const SHOWN: usize = 50;

/// Waiting activities shown, those that wait longest.
const WAITING_SHOWN: usize = 10;

/// Held activities whose reasons are counted, the newest, so that a million of them cost the page no more.
const LOOKED_AT: usize = 10_000;

/// The page comes again by itself no sooner, in seconds.
const LEAST_REFRESH: u32 = 5;

/// Settings of the door.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where; none: no such door.
    pub socket: Option<SocketSettings>,
    /// Names of this machine besides its own, under which the door answers.
    pub hosts: Vec<String>,
    /// File with the token for changing things; none: the page only shows.
    pub token_file: Option<PathBuf>,
}

/// What the door looks at.
pub struct Views {
    /// The service.
    pub live: Live,
    /// The queue; none in direct mode.
    pub queue: Option<Arc<dyn Queue>>,
    /// The courier.
    pub controls: Arc<Controls>,
    /// `milter` and `lmtp`, each with where it listens.
    pub doors: Vec<(&'static str, String)>,
    /// Cancelled when no new connections are taken.
    pub closing: CancellationToken,
    /// Activities are delivered here; else by other machines that share the queue.
    pub delivers: bool,
}

struct Admin {
    views: Views,
    token: Option<SecretFile>,
    sessions: Sessions,
    started: SystemTime,
}

type App = Arc<Admin>;

impl Admin {
    /// What who asks may do.
    fn may(&self, headers: &HeaderMap) -> page::May {
        let Some(token) = &self.token else { return page::May::Look };
        match self.sessions.of(headers, digest(&token.first())) {
            None => page::May::LogIn,
            Some(session) => page::May::Change(session.form_token),
        }
    }
}

/// Serves until `stop` is cancelled.
/// # Errors
/// A token file that cannot be read.
pub async fn run(
    listener: Listener,
    settings: &Settings,
    views: Views,
    stop: CancellationToken,
) -> Result<(), String> {
    let token = settings.token_file.as_deref().map(SecretFile::open).transpose()?;
    let app = Arc::new(Admin { views, token, sessions: Sessions::default(), started: SystemTime::now() });
    let is_unix = matches!(listener.local(), Some(Listen::Unix(_)));
    let names = Names::new(&settings.hosts, is_unix);
    let router = Router::new()
        .route("/", get(status))
        .route("/login", post(login))
        .route("/logout", post(logout))
        .route("/drop", get(change::ask))
        .route("/activities", post(change::change))
        .route("/docs/{name}", get(manual::show))
        .route("/trace", get(trace::search))
        .route("/metrics", get(metrics_text))
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .layer(middleware::from_fn_with_state(names, door::check_host))
        .layer(middleware::from_fn(harden))
        .with_state(app);
    let stopped = stop.cancelled_owned();
    axum::serve(Door(listener), router)
        .with_graceful_shutdown(stopped)
        .await
        .map_err(|error| error.to_string())
}

/// A page that says why something was not done.
fn refusal(status: StatusCode, why: &str) -> Response {
    (status, Html(page::refused(why))).into_response()
}

/// Nothing runs, nothing is loaded (the icon stands in the page), nobody frames the page, nothing is kept.
async fn harden(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn metrics_text(Shared(app): Shared<App>) -> Response {
    let counts = match &app.views.queue {
        Some(queue) => queue.counts().await,
        None => Ok(Counts::default()),
    };
    let now = SystemTime::now();
    let service = app.views.live.now();
    metrics::in_flight(service.in_flight());
    for (what, count) in service.remembered() {
        metrics::remembered(what, count);
    }
    metrics::emergency(service.policy.emergency.pulled().is_some());
    match counts {
        Ok(counts) => metrics::snapshot(&metrics::Snapshot {
            waiting: counts.waiting,
            held: counts.held,
            oldest: counts.oldest.and_then(|oldest| now.duration_since(oldest).ok()).unwrap_or_default(),
        }),
        // The numbers stay: none held would end an alert.
        Err(error) => events::queue_trouble(&error),
    }
    if let Some(queue) = &app.views.queue
        && let Some(spooled) = queue.spooled().await
    {
        let Counts { waiting, held, oldest } = spooled.counts;
        let oldest = oldest.and_then(|oldest| now.duration_since(oldest).ok()).unwrap_or_default();
        metrics::queue_spooled(waiting + held, oldest);
    }
    // A company that has no copy yet waits for it since we began.
    let copies = app.views.live.now().directory.copies();
    if let Some(age) = copies.iter().map(|copy| copy.age.unwrap_or(copy.known_for)).max() {
        metrics::severa_copy_age(age);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render()).into_response()
}

async fn ready(Shared(app): Shared<App>) -> Response {
    let checks = checks(&app, &app.views.controls.paused()).await;
    let ok = checks.iter().all(|check| check.ok || !check.is_everybodys);
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(serde_json::json!({ "ready": ok, "checks": checks }))).into_response()
}

/// What the page shows of the queue.
#[derive(Debug, Default)]
struct InQueue {
    counts: Counts,
    tenants: Vec<TenantCounts>,
    held: Vec<Entry>,
    /// There are more behind them.
    more_held: bool,
    overview: Overview,
    trouble: Option<String>,
}

/// How much there is, by tenant; why it is held, the first of what is held behind a row, and what waits longest.
async fn in_queue(queue: &dyn Queue, after: Option<i64>) -> Result<InQueue, StorageError> {
    let held = Filter { state: Some(State::Held), after, limit: Some(SHOWN + 1), ..Filter::default() };
    let mut held = queue.list(held).await?;
    let more_held = held.len() > SHOWN;
    held.truncate(SHOWN);
    Ok(InQueue {
        counts: queue.counts().await?,
        tenants: queue.by_tenant().await?,
        held,
        more_held,
        overview: queue.overview(LOOKED_AT, WAITING_SHOWN).await?,
        trouble: None,
    })
}

/// How the page is asked for.
#[derive(Debug, Default, Deserialize)]
struct Asked {
    /// It comes again by itself, after so many seconds.
    refresh: Option<u32>,
    /// What a button has done,
    done: Option<change::Action>,
    /// and to how many.
    count: Option<u64>,
    /// Where the list of held activities begins,
    held: Option<String>,
    /// and that of their reasons.
    #[serde(default)]
    reasons: String,
}

async fn status(
    Shared(app): Shared<App>,
    headers: HeaderMap,
    asked: Result<Wanted<Asked>, QueryRejection>,
) -> Response {
    // What the page does not ask for is answered by the page.
    let asked = asked.map_or_else(|_| Asked::default(), |Wanted(asked)| asked);
    let place = page::Place { held: asked.held, reasons: asked.reasons };
    let queue = match &app.views.queue {
        None => None,
        Some(queue) => Some(
            in_queue(queue.as_ref(), place.held())
                .await
                .unwrap_or_else(|error| InQueue { trouble: Some(error.to_string()), ..InQueue::default() }),
        ),
    };
    let service = app.views.live.now();
    let copies = service.directory.copies().into_iter().map(|copy| page::Copied {
        counts: [copy.users, copy.contacts, copy.projects],
        standing: copy.standing(),
        tenant: copy.tenant,
    });
    let paused = app.views.controls.paused();
    let checks = checks(&app, &paused).await;
    let names = names(&app, queue.as_ref(), &paused, &place);
    let view = page::View {
        now: SystemTime::now(),
        started: app.started,
        checks,
        queue,
        is_shadow: service.policy.shadow == Shadow::Everybody,
        emergency: service.policy.emergency.pulled(),
        limits: service.policy.limits.said(),
        paused,
        copies: copies.collect(),
        names,
        steps: recent::steps(),
        refusals: recent::refusals(),
        searches: trace::is_on(),
        may: app.may(&headers),
        refresh: asked.refresh.map(|seconds| seconds.clamp(LEAST_REFRESH, 3600)),
        done: asked.done.zip(asked.count),
        place,
    };
    Html(page::render(&view)).into_response()
}

/// The names of the tenants that the page may show.
fn names(
    app: &Admin,
    queue: Option<&InQueue>,
    paused: &[Paused],
    place: &page::Place,
) -> HashMap<String, String> {
    let mut ids: HashSet<&str> = paused.iter().filter_map(|paused| paused.tenant.as_deref()).collect();
    if let Some(queue) = queue {
        ids.extend(queue.tenants.iter().take(SHOWN).map(|of| of.tenant.as_str()));
        ids.extend(queue.held.iter().chain(&queue.overview.oldest).map(|entry| entry.tenant.as_str()));
        ids.extend(place.of(&queue.overview.held_for).iter().map(|of| of.tenant.as_str()));
    }
    if ids.is_empty() { HashMap::new() } else { app.views.live.now().directory.names(&ids) }
}

fn digest(text: &str) -> blake3::Hash {
    blake3::hash(text.as_bytes())
}

#[derive(Deserialize)]
struct LogIn {
    token: String,
}

async fn login(Shared(app): Shared<App>, Form(form): Form<LogIn>) -> Response {
    let Some(token) = &app.token else { return StatusCode::NOT_FOUND.into_response() };
    // Digests are compared, so that the time says nothing about the token.
    let token = digest(&token.first());
    if digest(form.token.trim()) != token {
        tokio::time::sleep(Duration::from_millis(500)).await; // guessing takes its time
        return refusal(StatusCode::FORBIDDEN, "That is not the admin token.");
    }
    ([(header::SET_COOKIE, app.sessions.begin(token))], Redirect::to("/")).into_response()
}

#[derive(Deserialize)]
struct LogOut {
    form_token: String,
}

async fn logout(Shared(app): Shared<App>, headers: HeaderMap, Form(form): Form<LogOut>) -> Response {
    if matches!(app.may(&headers), page::May::Change(ours) if ours == form.form_token) {
        app.sessions.end(&headers);
    }
    ([(header::SET_COOKIE, Sessions::forget())], Redirect::to("/")).into_response()
}
