//! The door for administrators and their machines: metrics, health, and a page that shows what happens.
//!
//! In: HTTP on `[admin] listen`, a port or a unix socket. Out: `/metrics` (Prometheus), `/livez`, `/readyz`, and `/`, the status page, where held
//! activities can be retried and dropped by whoever has the admin token.
//! Promise: without the token nothing can be changed; a request from another site changes nothing (SameSite cookie, and
//! a token in each form); nothing of a message's content is shown; no script, nothing loaded from elsewhere.
//! Fails: each request for itself.

mod door;
mod page;
mod sessions;
mod trace;

use crate::courier::{Controls, Paused};
use crate::intake::{Listen, Listener, Live, SocketSettings};
use crate::observe::{events, metrics, versions};
use crate::queue::{Change as Changes, Counts, Entry, Filter, Queue, State, StorageError, TenantCounts};
use crate::web::SecretFile;
use axum::{
    Form, Json, Router,
    extract::{Request, State as Shared},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use door::{Door, Names};
use serde::{Deserialize, Serialize};
use sessions::Sessions;
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio_util::sync::CancellationToken;

/// Time for each check of `/readyz`.
const CHECK_TIME: Duration = Duration::from_secs(5);

/// A prefix that nobody has, for asking the directory whether it answers.
const NOBODY: &str = "activity-milter-readyz";

/// Held activities shown on the page.
const SHOWN: usize = 50;

/// Tenants named by a check.
const TENANTS_SHOWN: usize = 5;

/// Activities listed at once for a change of all.
const AT_ONCE: usize = 1000;

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
        match (&self.token, self.sessions.of(headers)) {
            (None, _) => page::May::Look,
            (Some(_), None) => page::May::LogIn,
            (Some(_), Some(session)) => page::May::Change(session.form_token.clone()),
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
        .route("/activities", post(change))
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

/// Nothing runs, nothing is loaded, nobody frames the page, nothing is kept.
async fn harden(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
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
        Some(queue) => queue.counts().await.unwrap_or_default(),
        None => Counts::default(),
    };
    let now = SystemTime::now();
    metrics::snapshot(&metrics::Snapshot {
        waiting: counts.waiting,
        held: counts.held,
        oldest: counts.oldest.and_then(|oldest| now.duration_since(oldest).ok()).unwrap_or_default(),
        in_flight: app.views.live.now().in_flight(),
    });
    // A company that has no copy yet waits for it since we began.
    let copies = app.views.live.now().directory.copies();
    if let Some(age) = copies.iter().map(|copy| copy.age.unwrap_or(copy.known_for)).max() {
        metrics::severa_copy_age(age);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render()).into_response()
}

/// One line of `/readyz`: `ok`, or what is wrong.
#[derive(Clone, Debug, Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    detail: String,
    /// It is the service's, not some tenant's alone: without it nobody is served.
    #[serde(skip)]
    is_everybodys: bool,
}

impl Check {
    fn new(name: &'static str, outcome: Result<String, String>) -> Self {
        let ok = outcome.is_ok();
        Self { name, ok, detail: outcome.unwrap_or_else(|error| error), is_everybodys: true }
    }

    /// Tenants whose deliveries are paused; an alarm, and no reason to take the service away from the others.
    fn of_tenants(paused: &[Paused]) -> Option<Self> {
        let of_tenants: Vec<_> =
            paused.iter().filter_map(|p| Some(format!("{}: {}", p.tenant.as_ref()?, p.reason))).collect();
        let (first, rest) = of_tenants.split_at(of_tenants.len().min(TENANTS_SHOWN));
        let more = if rest.is_empty() { String::new() } else { format!(", and {} more", rest.len()) };
        let detail = format!("deliveries paused: {}{more}", first.join(", "));
        (!first.is_empty()).then_some(Self { name: "tenants", ok: false, detail, is_everybodys: false })
    }

    /// Newer versions of files that were refused; the service goes on with the older ones.
    fn of_versions(refused: &[versions::Refused], now: SystemTime) -> Option<Self> {
        let said = refused.iter().map(|refused| {
            let since = now.duration_since(refused.since).unwrap_or_default().as_secs();
            let since = humantime::format_duration(Duration::from_secs(since));
            let what = refused.what.as_str();
            format!("new {what} refused {since} ago, the old one stays in use: {}", refused.error)
        });
        let detail = said.collect::<Vec<_>>().join("; ");
        (!refused.is_empty()).then_some(Self { name: "versions", ok: false, detail, is_everybodys: false })
    }

    /// Copies from which the directory answers, and that somebody should look at; none if there are no copies.
    fn of_copies(copies: usize, unwell: &[String]) -> Option<Self> {
        let (first, rest) = unwell.split_at(unwell.len().min(TENANTS_SHOWN));
        let more = if rest.is_empty() { String::new() } else { format!(", and {} more", rest.len()) };
        let ok = first.is_empty();
        let detail = if ok { format!("{copies} up to date") } else { first.join(", ") + &more };
        (copies > 0).then_some(Self { name: "copies", ok, detail, is_everybodys: false })
    }
}

async fn checks(app: &Admin) -> Vec<Check> {
    let views = &app.views;
    let doors: Vec<_> = views.doors.iter().map(|(door, place)| format!("{door} {place}")).collect();
    let listening = match views.closing.is_cancelled() {
        false => Ok(doors.join(", ")),
        true => Err("the service is stopping".to_owned()),
    };
    let in_time = |name: &str| format!("{name}: no answer within {} s", CHECK_TIME.as_secs());
    let queue = match &views.queue {
        None => Ok("direct mode: no queue".to_owned()),
        Some(queue) => match tokio::time::timeout(CHECK_TIME, queue.check()).await {
            Ok(Ok(())) => Ok("writable".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(in_time("queue")),
        },
    };
    let service = views.live.now();
    let directory = match tokio::time::timeout(CHECK_TIME, service.directory.tenant(NOBODY)).await {
        Ok(Ok(_)) => Ok(service.directory.source()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(in_time("directory")),
    };
    let paused = views.controls.paused();
    let deliveries = match paused.iter().find(|paused| paused.tenant.is_none()) {
        None => Ok("going on".to_owned()),
        Some(paused) => Err(format!("paused: {}", paused.reason)),
    };
    let everybodys = [
        Check::new("listeners", listening),
        Check::new("queue", queue),
        Check::new("directory", directory),
        Check::new("deliveries", deliveries),
    ];
    let refused = Check::of_versions(&versions::still_refused(), SystemTime::now());
    let copies = service.directory.copies();
    let unwell = copies.iter().filter(|copy| !copy.is_well());
    let unwell: Vec<_> = unwell.map(|copy| format!("{}: {}", copy.tenant, copy.standing())).collect();
    // An alarm, and no reason to take no mail.
    let trace = trace::check().map(|how| Check { is_everybodys: false, ..Check::new("trace", how) });
    let others = [refused, Check::of_tenants(&paused), Check::of_copies(copies.len(), &unwell), trace];
    everybodys.into_iter().chain(others.into_iter().flatten()).collect()
}

async fn ready(Shared(app): Shared<App>) -> Response {
    let checks = checks(&app).await;
    let ok = checks.iter().all(|check| check.ok || !check.is_everybodys);
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(serde_json::json!({ "ready": ok, "checks": checks }))).into_response()
}

/// What the page shows of the queue.
#[derive(Debug, Default)]
struct InQueue {
    tenants: Vec<TenantCounts>,
    held: Vec<Entry>,
    trouble: Option<String>,
}

/// What waits by tenant, and the first of what is held.
async fn in_queue(queue: &dyn Queue) -> Result<InQueue, StorageError> {
    let held = Filter { state: Some(State::Held), limit: Some(SHOWN), ..Filter::default() };
    Ok(InQueue { tenants: queue.by_tenant().await?, held: queue.list(held).await?, trouble: None })
}

async fn status(Shared(app): Shared<App>, headers: HeaderMap) -> Response {
    let queue = match &app.views.queue {
        None => InQueue::default(),
        Some(queue) => in_queue(queue.as_ref())
            .await
            .unwrap_or_else(|error| InQueue { trouble: Some(error.to_string()), ..InQueue::default() }),
    };
    let may = app.may(&headers);
    let copies = app.views.live.now().directory.copies().into_iter().map(|copy| page::Copied {
        counts: [copy.users, copy.contacts, copy.projects],
        standing: copy.standing(),
        tenant: copy.tenant,
    });
    let (checks, copies) = (checks(&app).await, copies.collect());
    Html(page::render(&page::View { checks, queue, copies, may, started: app.started })).into_response()
}

#[derive(Deserialize)]
struct LogIn {
    token: String,
}

async fn login(Shared(app): Shared<App>, Form(form): Form<LogIn>) -> Response {
    let Some(token) = &app.token else { return StatusCode::NOT_FOUND.into_response() };
    // Digests are compared, so that the time says nothing about the token.
    let digest = |text: &str| blake3::hash(text.as_bytes());
    if digest(form.token.trim()) != digest(&token.first()) {
        tokio::time::sleep(Duration::from_millis(500)).await; // guessing takes its time
        return (StatusCode::FORBIDDEN, Html(page::refused("That is not the admin token."))).into_response();
    }
    ([(header::SET_COOKIE, app.sessions.begin())], Redirect::to("/")).into_response()
}

#[derive(Deserialize)]
struct LogOut {
    form_token: String,
}

async fn logout(Shared(app): Shared<App>, headers: HeaderMap, Form(form): Form<LogOut>) -> Response {
    if app.sessions.of(&headers).is_some_and(|session| session.form_token == form.form_token) {
        app.sessions.end(&headers);
    }
    ([(header::SET_COOKIE, Sessions::forget())], Redirect::to("/")).into_response()
}

#[derive(Deserialize)]
struct Change {
    form_token: String,
    /// `retry` or `drop`.
    action: String,
    /// The row, or `all` that are held.
    id: String,
}

async fn change(Shared(app): Shared<App>, headers: HeaderMap, Form(form): Form<Change>) -> Response {
    let allowed = app.sessions.of(&headers).is_some_and(|session| session.form_token == form.form_token);
    if app.token.is_none() || !allowed {
        let text = "Log in with the admin token first, and use the buttons of the page.";
        return (StatusCode::FORBIDDEN, Html(page::refused(text))).into_response();
    }
    let (id, drops) = (form.id, form.action == "drop");
    if !matches!(form.action.as_str(), "retry" | "drop") || (id != "all" && id.parse::<i64>().is_err()) {
        return (StatusCode::BAD_REQUEST, Html(page::refused("The page has no such button.")))
            .into_response();
    }
    let Some(queue) = &app.views.queue else {
        return (StatusCode::SERVICE_UNAVAILABLE, Html(page::refused("direct mode: no queue")))
            .into_response();
    };
    let change = if drops { Changes::Drop } else { Changes::Retry };
    let changed = match id.parse() {
        Ok(id) => change_one(queue.as_ref(), id, change).await,
        Err(_) => change_held(queue.as_ref(), change).await,
    };
    match changed {
        Ok(changed) => {
            events::queue_changed(if drops { "dropped" } else { "retried" }, changed);
            Redirect::to("/#held").into_response()
        }
        Err(error) => {
            (StatusCode::SERVICE_UNAVAILABLE, Html(page::refused(&error.to_string()))).into_response()
        }
    }
}

/// Changes one.
async fn change_one(queue: &dyn Queue, id: i64, change: Changes) -> Result<usize, StorageError> {
    let filter = Filter { after: Some(id - 1), limit: Some(1), ..Filter::default() };
    let entries = queue.list(filter).await?;
    let changed = queue.change(vec![id], change.clone()).await?;
    if changed > 0 {
        by_hand(entries.iter().filter(|entry| entry.id == id), &change);
    }
    Ok(changed)
}

/// For the trace.
fn by_hand<'a>(entries: impl Iterator<Item = &'a Entry>, change: &Changes) {
    let what = if matches!(change, Changes::Drop) { "dropped" } else { "retried" };
    for entry in entries {
        events::by_hand(what, entry.key.as_str(), &entry.tenant, entry.queue_id.as_deref());
    }
}

/// Changes all that are held, a page at a time.
async fn change_held(queue: &dyn Queue, change: Changes) -> Result<usize, StorageError> {
    let (mut changed, mut after) = (0, None);
    loop {
        let filter = Filter { state: Some(State::Held), after, limit: Some(AT_ONCE), ..Filter::default() };
        let entries = queue.list(filter).await?;
        let Some(last) = entries.last() else { return Ok(changed) };
        after = Some(last.id);
        changed += queue.change(entries.iter().map(|entry| entry.id).collect(), change.clone()).await?;
        by_hand(entries.iter(), &change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_that_are_paused_are_named_and_take_nothing_from_the_others() {
        let paused = |tenant: Option<&str>| Paused {
            tenant: tenant.map(Into::into),
            misconfigured: true,
            reason: "invalid_client".to_owned(),
        };
        assert!(Check::of_tenants(&[]).is_none() && Check::of_tenants(&[paused(None)]).is_none());
        let check = Check::of_tenants(&[paused(None), paused(Some("t-1"))]).unwrap();
        assert!(!check.ok && !check.is_everybodys);
        assert_eq!(check.detail, "deliveries paused: t-1: invalid_client");
        let check = Check::of_tenants(&vec![paused(Some("t")); 105]).unwrap();
        assert!(check.detail.ends_with(", and 100 more") && check.detail.len() < 200, "{}", check.detail);
    }

    #[test]
    fn copies_that_are_unwell_are_named() {
        assert!(Check::of_copies(0, &[]).is_none());
        let check = Check::of_copies(2, &[]).unwrap();
        assert!(check.ok && check.detail == "2 up to date");
        let check = Check::of_copies(9, &vec!["t: there is no copy yet".to_owned(); 7]).unwrap();
        assert!(!check.ok && !check.is_everybodys && check.detail.ends_with("copy yet, and 2 more"));
    }
}
