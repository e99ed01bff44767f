//! What waits for its first or next attempt, whose it is, and what its last error was.

use super::{
    InQueue, View,
    remedy::OLD,
    tiles::{is_old, what_to_do},
    words::{activities, escape, id, listed, number, short, shown, table, tenant_of, when},
};
use crate::admin::SHOWN;
use crate::queue::{Entry, State};
use std::fmt::Write as _;

/// What waits longest.
pub(super) fn waiting(html: &mut String, view: &View, queue: &InQueue) {
    html.push_str("<h2 id=waiting>Waiting</h2>");
    let oldest = &queue.overview.oldest;
    if oldest.is_empty() {
        let text = match queue.counts.waiting {
            0 => "None.".to_owned(),
            // They lie behind so much that is held that nobody looked that far.
            waiting => format!("{}.", activities(waiting)),
        };
        let _ = write!(html, "<p class=dim>{text}</p>");
        return;
    }
    let all = queue.counts.waiting.max(oldest.len() as u64);
    let _ = write!(html, "<p class=dim>{}</p>", listed(oldest.len(), all));
    if is_old(view, queue) {
        let _ = write!(html, "<p>{}</p>", what_to_do(OLD));
    }
    let columns = [
        ("Tenant", "who"),
        ("Queue id", "id"),
        ("Key", "id"),
        ("Age", ""),
        ("Attempts", "n"),
        ("Next", ""),
        ("Last error", "why"),
    ];
    table(html, "Waiting", &columns, oldest.iter().map(|entry| row(view, entry)));
}

fn row(view: &View, entry: &Entry) -> Vec<String> {
    let key = entry.key.as_str();
    vec![
        tenant_of(&view.names, &entry.tenant),
        view.queue_id(entry.queue_id.as_deref()),
        id(view.may_search(), key, &short(key)),
        when(view.now, entry.accepted_at),
        number(u64::from(entry.attempts)),
        next(view, entry),
        entry.reason.as_deref().map_or_else(|| "<span class=dim>none yet</span>".to_owned(), escape),
    ]
}

fn next(view: &View, entry: &Entry) -> String {
    let mut pauses = view.paused.iter().map(|paused| paused.tenant.as_deref());
    if entry.state == State::InFlight {
        "now".to_owned()
    } else if pauses.any(|tenant| tenant.is_none_or(|tenant| tenant == entry.tenant)) {
        "after the pause".to_owned()
    } else if entry.due <= view.now {
        "as soon as possible".to_owned()
    } else {
        when(view.now, entry.due)
    }
}

/// How much there is of each tenant, and whose deliveries are paused.
pub(super) fn tenants(html: &mut String, view: &View, queue: &InQueue) {
    html.push_str("<h2>Queue by tenant</h2>");
    if queue.tenants.len() > SHOWN {
        let _ = write!(
            html,
            "<p class=dim>{} tenants, those with most first.</p>",
            shown(SHOWN, queue.tenants.len() as u64)
        );
    }
    let columns = [("Tenant", "who"), ("Waiting", "n"), ("Held", "n"), ("Deliveries", "why")];
    let rows = queue.tenants.iter().take(SHOWN).map(|of| {
        let mut pauses = view.paused.iter();
        let paused = pauses.find(|paused| paused.tenant.as_deref().is_none_or(|id| id == of.tenant));
        let deliveries = match paused {
            None => "<span class=dim>going on</span>".to_owned(),
            Some(paused) => format!("<b class=bad>paused:</b> {}", escape(&paused.reason)),
        };
        vec![tenant_of(&view.names, &of.tenant), number(of.waiting), number(of.held), deliveries]
    });
    table(html, "Queue by tenant", &columns, rows);
}
