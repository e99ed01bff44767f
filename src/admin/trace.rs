//! The search on the status page: what became of a mail.
//!
//! In: `/trace?q=…&since=…&until=…`. Out: a page with the mails that were found.
//! Promise: where there is an admin token, only who has shown it may search; a few searches at a time, on threads that may
//! block.

use super::{
    App,
    page::{self, May, begin, escape, table},
};
use crate::observe::{self, Addresses};
use crate::trace::{self, Found, Mail, Query, Settings, Standing, Term};
use axum::{
    extract::{Query as Asked, State as Shared},
    http::{HeaderMap, StatusCode},
    response::{Html, IntoResponse, Response},
};
use serde::Deserialize;
use std::{fmt::Write as _, time::SystemTime};
use tokio::sync::Semaphore;

/// Searches at a time.
static SEARCHES: Semaphore = Semaphore::const_new(2);

#[derive(Debug, Deserialize)]
pub(super) struct Question {
    #[serde(default)]
    q: String,
    #[serde(default)]
    since: String,
    #[serde(default)]
    until: String,
}

/// How the trace is; none if nothing is traced.
pub(super) fn check() -> Option<Result<String, String>> {
    let lost = trace::lost();
    let lost = if lost > 0 { format!(", {lost} records lost since the start") } else { String::new() };
    match trace::standing() {
        Standing::Off => None,
        Standing::Writing(path) => Some(Ok(format!("{}{lost}", path.display()))),
        Standing::Trouble(path, why) => {
            Some(Err(format!("{} cannot be written, and mail goes on without: {why}{lost}", path.display())))
        }
    }
}

/// Whether anything is traced.
pub(super) fn is_on() -> bool {
    trace::standing() != Standing::Off
}

/// The form; empty where nothing is traced, and for who must log in first.
pub(super) fn form(may: &May, asked: &str, since: &str) -> String {
    if !is_on() || matches!(may, May::LogIn) {
        return String::new();
    }
    format!(
        "<form method=get action=\"/trace\" role=search aria-label=\"Find a mail\"><label><span><b>Find a mail</b> by queue id, key, Message-ID or address</span> \
         <input name=q value=\"{}\" size=36 required></label> <label>Since <input name=since value=\"{}\" size=8 \
         placeholder=2h></label> <button>Search</button></form>",
        escape(asked),
        escape(since)
    )
}

/// `/trace`
pub(super) async fn search(
    Shared(app): Shared<App>,
    headers: HeaderMap,
    Asked(question): Asked<Question>,
) -> Response {
    let may = app.may(&headers);
    if matches!(may, May::LogIn) {
        let text = "Log in with the admin token first, on the status page.";
        return (StatusCode::FORBIDDEN, Html(page::refused(text))).into_response();
    }
    let path = match trace::standing() {
        Standing::Off => {
            let text = "Nothing is traced: trace.keep is \"0\".";
            return (StatusCode::NOT_FOUND, Html(page::refused(text))).into_response();
        }
        Standing::Writing(path) | Standing::Trouble(path, _) => path,
    };
    let result = match read(&question) {
        Err(error) => Err((StatusCode::BAD_REQUEST, error)),
        Ok(query) => {
            let Ok(_turn) = SEARCHES.acquire().await else {
                return StatusCode::SERVICE_UNAVAILABLE.into_response();
            };
            let (asked, place) = (query.clone(), path.clone());
            let found = tokio::task::spawn_blocking(move || trace::search(&place, &asked)).await;
            match found.map_err(|error| error.to_string()).and_then(|f| f.map_err(|error| error.to_string()))
            {
                Ok(found) => Ok((query, found)),
                Err(error) => Err((StatusCode::SERVICE_UNAVAILABLE, error)),
            }
        }
    };
    let mut html = begin("activity-milter: find a mail");
    let form = form(&may, &question.q, &question.since);
    let _ =
        write!(html, "<main><p><a href=\"/\">Status</a></p><h1>Find a mail</h1><div class=bar>{form}</div>");
    let status = match result {
        Err((status, error)) => {
            let _ = write!(html, "<p>{}</p>", escape(&error));
            status
        }
        Ok((query, found)) => {
            results(
                &mut html,
                &question,
                &trace::settings().unwrap_or_else(|| Settings::new(path)),
                &query,
                &found,
            );
            StatusCode::OK
        }
    };
    html.push_str("</main></html>");
    (status, Html(html)).into_response()
}

fn read(question: &Question) -> Result<Query, String> {
    let term = Term::read(&question.q).map_err(|error| error.to_string())?;
    let time = |text: &str| {
        let text = Some(text.trim()).filter(|text| !text.is_empty());
        text.map(|text| trace::since(text, SystemTime::now())).transpose()
    };
    Ok(Query { term, since: time(&question.since)?, until: time(&question.until)? })
}

fn results(html: &mut String, question: &Question, settings: &Settings, query: &Query, found: &Found) {
    if found.mails.is_empty() {
        let is_whole = observe::addresses() == Addresses::Full;
        let _ = write!(
            html,
            "<p>{}.</p>",
            escape(&sentence(&trace::not_found(settings, query, found, is_whole)))
        );
        return;
    }
    let count = found.mails.len();
    let mails = if count == 1 { "1 mail".to_owned() } else { format!("{count} mails") };
    let cut = if found.more && found.older.is_none() { "; there is more of them than is shown" } else { "" };
    let _ = write!(html, "<p>{mails}, the newest first{cut}. Times are UTC.</p>");
    if found.reach.lost > 0 {
        let _ = write!(html, "<p>The trace has gaps: {} records were lost.</p>", found.reach.lost);
    }
    found.mails.iter().for_each(|mail| self::mail(html, mail));
    if let Some(older) = found.older {
        let until = humantime::format_rfc3339_millis(older).to_string();
        let [q, since, until] = [&question.q, &question.since, &until].map(|text| page::encoded(text));
        let _ = write!(
            html,
            "<p><a class=button href=\"/trace?q={q}&amp;since={since}&amp;until={until}\">Older</a></p>"
        );
    }
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_uppercase().collect::<String>() + letters.as_str())
        .unwrap_or_default()
}

fn mail(html: &mut String, mail: &Mail) {
    let ids = mail.all(|event| event.queue_id.as_deref());
    let heading = if ids.is_empty() { "Without a queue id".to_owned() } else { codes(&ids) };
    let _ = write!(html, "<section><h2 class=long>{heading}</h2><dl>");
    for (name, values) in [
        ("came by", mail.all(|event| event.door.as_deref())),
        ("client", mail.all(|event| event.client.as_deref())),
        ("from", mail.all(|event| event.sender.as_deref())),
        ("to", mail.recipients()),
        ("message-id", mail.all(|event| event.message_id.as_deref())),
        ("key", mail.all(|event| event.key.as_deref())),
    ] {
        if !values.is_empty() {
            let _ = write!(html, "<dt>{name}</dt><dd>{}</dd>", codes(&values));
        }
    }
    html.push_str("</dl>");
    let rows = mail.events.iter().map(|event| {
        let at = humantime::format_rfc3339_millis(event.at.time()).to_string();
        let said = at.replace('T', " ").replace('Z', "");
        vec![
            format!("<time datetime=\"{at}\">{said}</time>"),
            escape(event.word()),
            escape(&event.sentence()),
        ]
    });
    table(html, "Events", &[("When", ""), ("What", ""), ("Details", "why")], rows);
    html.push_str("</section>");
}

/// Values that do not break, one after the other.
fn codes(values: &[impl AsRef<str>]) -> String {
    let codes = values.iter().map(|value| format!("<code>{}</code>", escape(value.as_ref())));
    codes.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(q: &str, since: &str) -> Question {
        Question { q: q.to_owned(), since: since.to_owned(), until: String::new() }
    }

    #[test]
    fn strangers_words_are_text() {
        let bad = || Some("<script>\"&".to_owned());
        let event = crate::trace::Event {
            what: "held".to_owned(),
            queue_id: bad(),
            sender: bad(),
            recipient: bad(),
            others: vec!["<img>@x.test".to_owned()],
            message_id: bad(),
            tenant: bad(),
            client: bad(),
            detail: bad(),
            ..crate::trace::Event::default()
        };
        let mut html = String::new();
        mail(&mut html, &Mail { events: vec![event] });
        assert!(
            !html.contains("<script") && !html.contains("<img") && html.contains("&lt;script&gt;"),
            "{html}"
        );
        let question = question("<b>@x.test", "");
        let query = read(&question).unwrap();
        let settings = Settings::new("/x/trace.db".into());
        let mut html = String::new();
        results(&mut html, &question, &settings, &query, &Found::default());
        assert!(html.starts_with("<p>Nothing is known of the address") && !html.contains("<b>"), "{html}");
        let older = Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_800_000_000_123));
        let found = Found { mails: vec![Mail::default()], more: true, older, ..Found::default() };
        let mut html = String::new();
        results(&mut html, &question, &settings, &query, &found);
        let link =
            "href=\"/trace?q=%3Cb%3E%40x.test&amp;since=&amp;until=2027-01-15T08%3A00%3A00.123Z\">Older<";
        assert!(html.contains(link), "{html}");
    }

    #[test]
    fn wrong_questions_are_told_what_would_do() {
        for (q, since, expected) in [
            ("", "", "give a queue id, a key"),
            ("b3:12", "", "at least 8 digits"),
            ("7F3A91E0C2", "tomorrow", "\"tomorrow\" is no time: write how long ago, like 2h"),
        ] {
            let error = read(&question(q, since)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
