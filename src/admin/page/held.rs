//! What is held for a person: by reason, one by one, and the question before something is dropped.

use super::{
    InQueue, May, View, begin,
    remedy::of_held,
    tiles::what_to_do,
    words::{activities, escape, id, listed, number, short, table, tenant_of, timed, utc, when},
};
use crate::admin::{
    LOOKED_AT, SHOWN,
    change::{self, Question},
};
use crate::queue::{Entry, HeldFor};
use std::{
    collections::HashMap,
    fmt::Write as _,
    time::{Duration, SystemTime},
};

/// Reasons shown at once, the most frequent first.
const REASONS_SHOWN: usize = 20;

/// Where the long lists of the page begin. What is no number is the beginning.
#[derive(Debug, Default)]
pub(in crate::admin) struct Place {
    /// Held activities: behind this row.
    pub(in crate::admin) held: Option<String>,
    /// Reasons: behind so many.
    pub(in crate::admin) reasons: String,
}

impl Place {
    /// The row behind which held activities are shown.
    pub(in crate::admin) fn held(&self) -> Option<i64> {
        self.held.as_ref()?.parse().ok().filter(|id| *id >= 0)
    }

    fn reasons(&self) -> usize {
        self.reasons.parse().unwrap_or(0)
    }

    /// What is shown of the reasons.
    pub(in crate::admin) fn of<'a>(&self, reasons: &'a [HeldFor]) -> &'a [HeldFor] {
        let rest = reasons.get(self.reasons()..).unwrap_or_default();
        &rest[..rest.len().min(REASONS_SHOWN)]
    }
}

/// A link to another part of the long lists.
fn leads_to(held: Option<i64>, reasons: usize, list: &str, text: &str) -> String {
    let held = held.map(|id| format!("held={id}"));
    let reasons = (reasons > 0).then(|| format!("reasons={reasons}"));
    let asked: Vec<String> = held.into_iter().chain(reasons).collect();
    let asked = if asked.is_empty() { String::new() } else { format!("?{}", asked.join("&amp;")) };
    format!(" <a class=button href=\"/{asked}#{list}\">{text}</a>")
}

/// The whole section.
pub(super) fn held(html: &mut String, view: &View, queue: &InQueue) {
    html.push_str("<h2 id=held>Held for a person</h2>");
    if queue.held.is_empty() && queue.counts.held == 0 {
        html.push_str("<p class=dim>None.</p>");
        return;
    }
    let _ = write!(
        html,
        "<p>{}. Nothing happens to them until somebody retries or drops them.</p>",
        activities(queue.counts.held)
    );
    if let May::Change(token) = &view.may {
        let _ = write!(
            html,
            "<div>{} {}</div>",
            retry(token, "name=id value=\"all\"", "Retry all", "that are held"),
            drop_link("id=all", "Drop all…", "that are held")
        );
    }
    reasons(html, view, queue);
    one_by_one(html, view, queue);
}

fn retry(token: &str, target: &str, label: &str, what: &str) -> String {
    format!(
        "<form method=post action=\"/activities\"><input type=hidden name=form_token value=\"{token}\">\
         <input type=hidden {target}><button class=good name=action value=retry aria-label=\"{label} {what}\">{label}</button></form>"
    )
}

/// Dropping asks first, on a page of its own.
fn drop_link(target: &str, label: &str, what: &str) -> String {
    let action = label.trim_end_matches('…');
    format!("<a class=\"button bad\" href=\"/drop?{target}\" aria-label=\"{action} {what}\">{label}</a>")
}

fn reasons(html: &mut String, view: &View, queue: &InQueue) {
    let reasons = &queue.overview.held_for;
    if reasons.is_empty() {
        return;
    }
    html.push_str("<h3 id=reasons>By reason</h3>");
    let looked_at: u64 = reasons.iter().map(|of| of.count).sum();
    if looked_at < queue.counts.held {
        let _ = write!(
            html,
            "<p class=dim>Counted over the newest {} of {}; the buttons take all of a reason.</p>",
            number(looked_at),
            number(queue.counts.held)
        );
    }
    let mut columns =
        vec![("Reason", "why"), ("Held", "n"), ("Tenants", "who"), ("Since", ""), ("Remedy", "why")];
    if matches!(view.may, May::Change(_)) {
        columns.insert(0, ("", "do"));
    }
    let shown = view.place.of(reasons);
    table(html, "Held by reason", &columns, shown.iter().map(|of| reason(view, of)));
    let (from, held) = (view.place.reasons(), view.place.held());
    if from == 0 && shown.len() == reasons.len() {
        return;
    }
    if !shown.is_empty() {
        let all = number(reasons.len() as u64);
        let _ = write!(html, "<p class=dim>{} to {} of {all} reasons.</p>", from + 1, from + shown.len());
    }
    html.push_str("<p>");
    if from > 0 {
        html.push_str(&leads_to(held, from.saturating_sub(REASONS_SHOWN), "reasons", "Previous"));
    }
    if from + shown.len() < reasons.len() && !shown.is_empty() {
        html.push_str(&leads_to(held, from + REASONS_SHOWN, "reasons", "Next"));
    }
    html.push_str("</p>");
}

fn reason(view: &View, of: &HeldFor) -> Vec<String> {
    let mut row = Vec::new();
    if let May::Change(token) = &view.may {
        let digest = change::digest(&of.reason);
        let what = format!("the {} held for: {}", number(of.count), escape(&of.reason));
        row.push(format!(
            "{} {}",
            retry(token, &format!("name=group value=\"{digest}\""), "Retry", &what),
            drop_link(&format!("group={digest}"), "Drop…", &what)
        ));
    }
    let tenants = match of.tenants {
        0 | 1 => tenant_of(&view.names, &of.tenant),
        several => number(several),
    };
    row.extend([
        said(&of.reason),
        number(of.count),
        tenants,
        when(view.now, of.since),
        what_to_do(of_held(&of.reason)),
    ]);
    row
}

fn said(reason: &str) -> String {
    if reason.is_empty() { "<span class=dim>no reason was given</span>".to_owned() } else { escape(reason) }
}

fn one_by_one(html: &mut String, view: &View, queue: &InQueue) {
    let (count, after) = (queue.held.len(), view.place.held());
    let all = queue.counts.held.max(count as u64);
    let said = match after {
        None => listed(count, all),
        Some(_) => format!("{} more of {}, the oldest first.", number(count as u64), number(all)),
    };
    let rest = if (count as u64) < all {
        " <code>activity-milter queue list --state held</code> has them all."
    } else {
        ""
    };
    let _ = write!(html, "<h3 id=one-by-one>One by one</h3><p class=dim>{said}{rest}</p>");
    let mut columns = vec![
        ("Tenant", "who"),
        ("Queue id", "id"),
        ("Key", "id"),
        ("Age", ""),
        ("Attempts", "n"),
        ("Held because", "why"),
    ];
    if matches!(view.may, May::Change(_)) {
        columns.insert(0, ("", "do"));
    }
    table(html, "Held", &columns, queue.held.iter().map(|entry| row(view, entry)));
    let reasons = view.place.reasons();
    html.push_str("<p>");
    if after.is_some() {
        html.push_str(&leads_to(None, reasons, "one-by-one", &format!("The first {SHOWN}")));
    }
    if let Some(last) = queue.held.last().filter(|_| queue.more_held) {
        html.push_str(&leads_to(Some(last.id), reasons, "one-by-one", &format!("Next {SHOWN}")));
    }
    html.push_str("</p>");
}

fn row(view: &View, entry: &Entry) -> Vec<String> {
    let key = entry.key.as_str();
    let mut row = Vec::new();
    if let May::Change(token) = &view.may {
        let target = format!("name=id value=\"{}\"", entry.id);
        let what = format!("{} of {}", escape(&short(key)), escape(&entry.tenant));
        row.push(format!(
            "{} {}",
            retry(token, &target, "Retry", &what),
            drop_link(&format!("id={}", entry.id), "Drop…", &what)
        ));
    }
    row.extend([
        tenant_of(&view.names, &entry.tenant),
        view.queue_id(entry.queue_id.as_deref()),
        id(view.may_search(), key, &short(key)),
        when(view.now, entry.accepted_at),
        number(u64::from(entry.attempts)),
        said(entry.reason.as_deref().unwrap_or_default()),
    ]);
    row
}

/// The page that asks before something is dropped. `held`: how many there are altogether.
pub(in crate::admin) fn question(
    question: &Question,
    held: u64,
    names: &HashMap<String, String>,
    now: SystemTime,
    form_token: &str,
) -> String {
    let mut html = begin("activity-milter: drop?");
    html.push_str("<main>");
    let mut details: Vec<(&str, String)> = Vec::new();
    let (heading, target, button) = match question {
        Question::One(entry) => {
            let queue_id = entry.queue_id.as_deref().map(|queue_id| id(false, queue_id, queue_id));
            details.extend([
                ("Tenant", tenant_of(names, &entry.tenant)),
                ("Project", entry.project.as_deref().map_or_else(|| "none".to_owned(), escape)),
                ("Queue id", queue_id.unwrap_or_else(|| "–".to_owned())),
                ("Key", id(false, entry.key.as_str(), entry.key.as_str())),
                ("Age", age(now, entry.accepted_at)),
                ("State", entry.state.as_str().to_owned()),
                ("Attempts", number(u64::from(entry.attempts))),
            ]);
            let why = said(entry.reason.as_deref().unwrap_or_default());
            details.push(("Reason", why));
            (
                "Drop this activity?".to_owned(),
                format!("name=id value=\"{}\"", entry.id),
                "Drop it".to_owned(),
            )
        }
        Question::Group { reason, count, looked_at } => {
            let is_all = *looked_at >= held;
            let (least, counted) = if is_all { ("", "") } else { ("at least ", " of the newest held") };
            if !is_all {
                let newest = number((LOOKED_AT as u64).min(*looked_at));
                details.push(("Counted", format!("among the newest {newest} of {} held", number(held))));
            }
            details.extend([("Reason", said(reason)), ("Held now", age(now, now))]);
            (
                format!("Drop {least}{}{counted}?", activities(*count)),
                format!("name=group value=\"{}\"", change::digest(reason)),
                format!("Drop {least}{}", number(*count)),
            )
        }
        Question::All => {
            details.push(("Held now", age(now, now)));
            (
                format!("Drop all that is held: {}?", activities(held)),
                "name=id value=\"all\"".to_owned(),
                format!("Drop {}", number(held)),
            )
        }
    };
    let _ = write!(html, "<h1>{heading}</h1><dl>");
    for (name, value) in &details {
        let class = if *name == "Reason" { " class=why" } else { "" };
        let _ = write!(html, "<dt>{name}</dt><dd{class}>{value}</dd>");
    }
    let _ = write!(
        html,
        "</dl><p>The business system does not get what is dropped, and the same e-mail is not recorded again for seven days. \
         <code>activity-milter queue export</code> saves it first.</p>{}\
         <div class=bar><form method=post action=\"/activities\"><input type=hidden name=form_token value=\"{form_token}\">\
         <input type=hidden {target}>{}<button class=bad name=action value=drop>{button}</button></form> \
         <a class=button href=\"/#held\">Cancel</a></div></main></html>",
        match question {
            Question::One(_) => "",
            Question::Group { .. } | Question::All => "<p>What is held after this page was made stays.</p>",
        },
        before(question, now)
    );
    html
}

fn age(now: SystemTime, at: SystemTime) -> String {
    if now == at { timed(at, &utc(at)) } else { format!("{}, {}", when(now, at), utc(at)) }
}

/// Only what was held when the question was asked.
fn before(question: &Question, now: SystemTime) -> String {
    let at = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis();
    match question {
        Question::One(_) => String::new(),
        Question::Group { .. } | Question::All => {
            format!("<input type=hidden name=before value=\"{at}\">")
        }
    }
}
