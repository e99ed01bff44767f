//! The buttons of the status page: retry and drop, one, those that are held for the same reason, or all that are held.
//!
//! In: `/drop?…`, which asks; `/activities`, which acts. Out: the question as a page; the status page with what was done.
//! Promise: nothing is changed without the token of our own form; dropping many takes none that was held after the
//! question was asked.
//! Fails: each request for itself; a change of many that fails has changed some.

use super::{Admin, App, LOOKED_AT, page, refusal};
use crate::observe::events;
use crate::queue::{Change, Entry, Filter, Queue, State, StorageError};
use axum::{
    Form,
    extract::{
        Query, State as Shared,
        rejection::{FormRejection, QueryRejection},
    },
    http::{HeaderMap, StatusCode},
    response::{Html, IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Activities listed at once for a change of many.
const AT_ONCE: usize = 1000;

/// What a button does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Action {
    Retry,
    Drop,
}

impl Action {
    /// What was done, for people and for the log.
    pub(super) fn past(self) -> &'static str {
        match self {
            Self::Retry => "retried",
            Self::Drop => "dropped",
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Drop => "drop",
        }
    }

    fn change(self) -> Change {
        match self {
            Self::Retry => Change::Retry,
            Self::Drop => Change::Drop,
        }
    }
}

/// To what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// This row.
    One(i64),
    /// Those held for the reason of this digest.
    Group(String),
    /// All that are held.
    All,
}

/// How forms and links name a target.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Which {
    /// A row, or `all`.
    #[serde(default)]
    id: String,
    /// The digest of a reason.
    #[serde(default)]
    group: String,
}

impl Which {
    fn target(&self) -> Option<Target> {
        let is_digest = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match (self.id.as_str(), self.group.as_str()) {
            ("all", "") => Some(Target::All),
            ("", group) if is_digest(group) => Some(Target::Group(group.to_owned())),
            (id, "") => id.parse().ok().map(Target::One),
            _ => None,
        }
    }
}

/// What names a reason in forms and links: it may be long, and nobody shall write one of his own.
pub(super) fn digest(reason: &str) -> String {
    blake3::hash(reason.as_bytes()).to_hex().to_string()
}

fn no_button() -> Response {
    refusal(StatusCode::BAD_REQUEST, "The page has no such button.")
}

/// What a page asks before it drops something.
#[derive(Debug)]
pub(super) enum Question {
    /// One.
    One(Entry),
    /// Those held for a reason; `count` of the newest, and of how many that were looked at.
    Group { reason: String, count: u64, looked_at: u64 },
    /// All.
    All,
}

/// `/drop`: asks.
pub(super) async fn ask(
    Shared(app): Shared<App>,
    headers: HeaderMap,
    which: Result<Query<Which>, QueryRejection>,
) -> Response {
    let Ok(Query(which)) = which else { return no_button() };
    let page::May::Change(form_token) = app.may(&headers) else {
        return refusal(StatusCode::FORBIDDEN, "Log in with the admin token first, on the status page.");
    };
    let Some(queue) = &app.views.queue else { return no_queue() };
    let Some(target) = which.target() else { return no_button() };
    let now = SystemTime::now();
    match question(queue.as_ref(), target).await {
        Ok(Some((question, held))) => {
            let names = match &question {
                Question::One(entry) => {
                    app.views.live.now().directory.names(&HashSet::from([entry.tenant.as_str()]))
                }
                Question::Group { .. } | Question::All => Default::default(),
            };
            Html(page::question(&question, held, &names, now, &form_token)).into_response()
        }
        Ok(None) => refusal(StatusCode::NOT_FOUND, "That is not held any more. Nothing was dropped."),
        Err(error) => refusal(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
    }
}

/// What to ask, and how many are held altogether; none if there is nothing to drop.
async fn question(queue: &dyn Queue, target: Target) -> Result<Option<(Question, u64)>, StorageError> {
    let held = queue.counts().await?.held;
    let question = match target {
        Target::One(id) => one(queue, id).await?.map(Question::One),
        Target::All => (held > 0).then_some(Question::All),
        Target::Group(group) => {
            let reasons = queue.overview(LOOKED_AT, 0).await?.held_for;
            let looked_at = reasons.iter().map(|of| of.count).sum();
            let of = reasons.into_iter().find(|of| digest(&of.reason) == group);
            of.map(|of| Question::Group { reason: of.reason, count: of.count, looked_at })
        }
    };
    Ok(question.map(|question| (question, held)))
}

async fn one(queue: &dyn Queue, id: i64) -> Result<Option<Entry>, StorageError> {
    let Some(before) = id.checked_sub(1) else { return Ok(None) };
    let filter = Filter { after: Some(before), limit: Some(1), ..Filter::default() };
    Ok(queue.list(filter).await?.into_iter().find(|entry| entry.id == id))
}

#[derive(Debug, Deserialize)]
pub(super) struct Order {
    form_token: String,
    action: String,
    #[serde(flatten)]
    which: Which,
    /// Only what was held before, in milliseconds since 1970: what the page has shown.
    before: Option<String>,
}

/// `/activities`: acts.
pub(super) async fn change(
    Shared(app): Shared<App>,
    headers: HeaderMap,
    order: Result<Form<Order>, FormRejection>,
) -> Response {
    let Ok(Form(order)) = order else { return no_button() };
    if !is_ours(&app, &headers, &order.form_token) {
        let text = "Log in with the admin token first, and use the buttons of the page.";
        return refusal(StatusCode::FORBIDDEN, text);
    }
    let action = [Action::Retry, Action::Drop].into_iter().find(|action| action.as_str() == order.action);
    let before = order.before.as_deref().map(|before| before.parse().map(Duration::from_millis));
    let (Some(action), Some(target), Ok(before)) = (action, order.which.target(), before.transpose()) else {
        return no_button();
    };
    let Some(queue) = &app.views.queue else { return no_queue() };
    let (queue, before) = (Arc::clone(queue), before.map(|before| SystemTime::UNIX_EPOCH + before));
    // In a task of its own: who closes the window does not stop it half way.
    let changed = tokio::spawn(async move {
        let changed = match target {
            Target::One(id) => change_one(queue.as_ref(), id, action).await,
            Target::Group(group) => change_held(queue.as_ref(), action, Some(&group), before).await,
            Target::All => change_held(queue.as_ref(), action, None, before).await,
        };
        changed.map_err(|error| error.to_string())
    });
    match changed.await.unwrap_or_else(|error| Err(error.to_string())) {
        Ok(changed) => {
            Redirect::to(&format!("/?done={}&count={changed}#held", action.as_str())).into_response()
        }
        Err(error) => refusal(StatusCode::SERVICE_UNAVAILABLE, &error),
    }
}

fn is_ours(app: &Admin, headers: &HeaderMap, form_token: &str) -> bool {
    matches!(app.may(headers), page::May::Change(ours) if ours == form_token)
}

fn no_queue() -> Response {
    refusal(StatusCode::SERVICE_UNAVAILABLE, "direct mode: no queue")
}

/// Changes one.
async fn change_one(queue: &dyn Queue, id: i64, action: Action) -> Result<usize, StorageError> {
    match one(queue, id).await? {
        Some(entry) => change_these(queue, &[entry], action).await,
        None => Ok(0),
    }
}

/// Changes these, as far as they can be; says which.
async fn change_these(queue: &dyn Queue, entries: &[Entry], action: Action) -> Result<usize, StorageError> {
    let items = entries.iter().map(|entry| entry.id).collect();
    let changed: HashSet<i64> = queue.change_those(items, action.change()).await?.into_iter().collect();
    for entry in entries.iter().filter(|entry| changed.contains(&entry.id)) {
        let queue_id = entry.queue_id.as_deref();
        events::changed_on_page(action.past(), entry.key.as_str(), &entry.tenant, queue_id);
    }
    Ok(changed.len())
}

/// Changes those that are held, for the reason of a digest, since before a time; a page at a time.
async fn change_held(
    queue: &dyn Queue,
    action: Action,
    group: Option<&str>,
    before: Option<SystemTime>,
) -> Result<usize, StorageError> {
    let (mut changed, mut after) = (0, None);
    loop {
        let filter = Filter { state: Some(State::Held), after, limit: Some(AT_ONCE), ..Filter::default() };
        let mut entries = queue.list(filter).await?;
        let Some(last) = entries.last() else { return Ok(changed) };
        after = Some(last.id);
        entries.retain(|entry| is_meant(entry, group, before));
        if !entries.is_empty() {
            changed += change_these(queue, &entries, action).await?;
        }
    }
}

/// Whether a held entry is of this group, and was held before.
fn is_meant(entry: &Entry, group: Option<&str>, before: Option<SystemTime>) -> bool {
    let reason = entry.reason.as_deref().unwrap_or_default();
    group.is_none_or(|group| digest(reason) == group) && before.is_none_or(|before| entry.due <= before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_named_in_one_way() {
        let group = digest("backend answered 422");
        for (id, of, expected) in [
            ("7", "", Some(Target::One(7))),
            ("all", "", Some(Target::All)),
            ("", group.as_str(), Some(Target::Group(group.clone()))),
            ("all", group.as_str(), None),
            ("7", group.as_str(), None),
            ("", "", None),
            ("", "backend answered 422", None),
            ("ALL", "", None),
            ("7 OR 1", "", None),
            ("99999999999999999999", "", None),
        ] {
            let which = Which { id: id.to_owned(), group: of.to_owned() };
            assert_eq!(which.target(), expected, "{id} {of}");
        }
    }

    #[test]
    fn what_was_held_later_or_for_something_else_is_not_meant() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let entry = Entry { due: at, reason: Some("422".to_owned()), ..page::tests::entry(1) };
        let second = Duration::from_secs(1);
        for (group, before, expected) in [
            (None, None, true),
            (Some("422"), None, true),
            (Some("413"), None, false),
            (Some(""), None, false),
            (None, Some(at), true),
            (Some("422"), Some(at + second), true),
            (None, Some(at - second), false),
        ] {
            assert_eq!(is_meant(&entry, group.map(digest).as_deref(), before), expected, "{group:?}");
        }
    }
}
