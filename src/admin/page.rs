//! The status page: server-rendered HTML, no script, nothing to load.

use super::{Check, InQueue};
use crate::observe::recent::{self, Refusal, STEP, Step};
use crate::queue::Entry;
use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

/// What the reader may do.
#[derive(Debug)]
pub(super) enum May {
    /// No admin token is configured.
    Look,
    /// There is a token, and it was not shown yet.
    LogIn,
    /// Everything; with the token for forms.
    Change(String),
}

/// What the page shows.
#[derive(Debug)]
pub(super) struct View {
    pub(super) checks: Vec<Check>,
    pub(super) queue: InQueue,
    pub(super) copies: Vec<Copied>,
    pub(super) may: May,
    pub(super) started: SystemTime,
}

/// What the page shows of a copy from which the directory answers.
#[derive(Debug)]
pub(super) struct Copied {
    pub(super) tenant: String,
    pub(super) counts: [usize; 3],
    pub(super) standing: String,
}

const STYLE: &str = "\
:root{color-scheme:light dark;--fg:#1c2024;--bg:#fff;--soft:#f3f4f6;--line:#d5d9de;--ok:#1a7f4b;--bad:#b3261e;\
--rec:#2f6fb3;--ref:#c0562b;--pass:#9aa3ad;--dim:#5b6570}\
@media(prefers-color-scheme:dark){:root{--fg:#e6e8ea;--bg:#14171a;--soft:#1e2327;--line:#343b42;--ok:#5cc990;--bad:#ff8a80;\
--rec:#6aa9e9;--ref:#e88f66;--pass:#66707a;--dim:#9aa5b1}}\
*{box-sizing:border-box}body{font:16px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:62rem;\
margin:0 auto;padding:1rem}h1{font-size:1.35rem;margin:.2rem 0}h2{font-size:1.1rem;margin:1.6rem 0 .5rem}\
p{margin:.4rem 0}.dim{color:var(--dim)}.checks{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:.6rem;\
padding:0;list-style:none}.checks li{border:1px solid var(--line);border-left:.35rem solid var(--ok);border-radius:.3rem;\
padding:.4rem .7rem;overflow-wrap:anywhere}.checks li.bad{border-left-color:var(--bad)}.checks b{display:block}\
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.3rem .6rem;\
border-bottom:1px solid var(--line);vertical-align:top}th{font-weight:600}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}\
td.do{white-space:nowrap}code{font:.85em ui-monospace,monospace;overflow-wrap:anywhere}form{display:inline}\
button,input{font:inherit;color:inherit;background:var(--soft);border:1px solid var(--line);border-radius:.3rem;padding:.25rem .7rem}\
button{cursor:pointer}button.bad{color:var(--bad)}:focus-visible{outline:3px solid var(--rec);outline-offset:2px}\
svg{width:100%;height:auto;display:block}.key span{display:inline-block;margin-right:1rem}.key i{display:inline-block;width:.8em;\
height:.8em;border-radius:.15em;margin-right:.35em}@media(max-width:36rem){body{padding:.6rem}th,td{padding:.25rem .35rem}}";

/// The whole page.
pub(super) fn render(view: &View) -> String {
    let mut html = begin("activity-milter");
    let age = age(view.started);
    let ok = view.checks.iter().all(|check| check.ok);
    let word = if ok { "ready" } else { "not ready" };
    let _ = write!(
        html,
        "<header><h1>activity-milter: {word}</h1><p class=dim>version {}, running for {age}</p></header><main>",
        env!("CARGO_PKG_VERSION")
    );
    html.push_str("<ul class=checks>");
    for check in &view.checks {
        let (class, word) = if check.ok { ("ok", "ok") } else { ("bad", "not ok") };
        let _ = write!(
            html,
            "<li class={class}><b>{}: {word}</b><span class=dim>{}</span></li>",
            check.name,
            escape(&check.detail)
        );
    }
    html.push_str("</ul>");
    chart(&mut html, &recent::steps());
    html.push_str(&super::trace::form(&view.may, "", ""));
    refusals(&mut html, &recent::refusals());
    queue(&mut html, &view.queue);
    held(&mut html, &view.queue.held, &view.may);
    copies(&mut html, &view.copies);
    log_in(&mut html, &view.may);
    html.push_str("</main></html>");
    html
}

/// A page that says why something was not done.
pub(super) fn refused(why: &str) -> String {
    let mut html = begin("activity-milter");
    let _ = write!(
        html,
        "<main><h1>Not done</h1><p>{}</p><p><a href=\"/\">Back</a></p></main></html>",
        escape(why)
    );
    html
}

pub(super) fn begin(title: &str) -> String {
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width,initial-scale=1\">\
         <title>{title}</title><style>{STYLE}</style>"
    )
}

/// Width and height of the chart's own coordinates.
const CHART: (usize, usize) = (720, 120);

fn chart(html: &mut String, steps: &[Step]) {
    let sum = |of: fn(&Step) -> u64| steps.iter().map(of).sum::<u64>();
    let (recorded, refused, passed) = (sum(|s| s.recorded), sum(|s| s.refused), sum(|s| s.passed));
    // Other people's mail may be a thousand times as much, and would flatten what matters: it is a number only.
    let most = steps.iter().map(|s| s.recorded + s.refused).max().unwrap_or_default().max(1);
    let (width, height) = CHART;
    let bar = width as f64 / steps.len().max(1) as f64;
    let _ = write!(
        html,
        "<h2>The last 24 hours</h2><p class=key><span><i style=\"background:var(--rec)\"></i>{recorded} recorded</span>\
         <span><i style=\"background:var(--ref)\"></i>{refused} refused or deferred</span>\
         <span><i style=\"background:var(--pass)\"></i>{passed} of other people passed</span></p>\
         <svg viewBox=\"0 0 {width} {}\" role=img aria-label=\"{recorded} recorded and {refused} refused in the last 24 hours, \
         in steps of ten minutes\">",
        height + 18
    );
    let _ = write!(html, "<line x1=0 y1={height} x2={width} y2={height} stroke=\"var(--line)\"/>");
    let tall = |count: u64| count as f64 / most as f64 * (height as f64 - 4.0);
    for (index, step) in steps.iter().enumerate() {
        let (x, mut y) = (index as f64 * bar, height as f64);
        for (count, color) in [(step.recorded, "var(--rec)"), (step.refused, "var(--ref)")] {
            if count > 0 {
                let tall = tall(count).max(1.5);
                y -= tall;
                let _ = write!(
                    html,
                    "<rect x={x:.1} y={y:.1} width={:.1} height={tall:.1} fill=\"{color}\"><title>{}: {} recorded, {} refused</title></rect>",
                    (bar - 1.0).max(1.0),
                    clock(step.number),
                    step.recorded,
                    step.refused
                );
            }
        }
        // A label each four hours.
        if step.number % 24 == 0 {
            let _ = write!(
                html,
                "<text x={x:.1} y={} font-size=11 fill=\"var(--dim)\">{}</text>",
                height + 14,
                clock(step.number)
            );
        }
    }
    let _ = write!(html, "</svg><p class=dim>Times are UTC; the tallest bar is {most} in ten minutes.</p>");
}

fn refusals(html: &mut String, refusals: &[Refusal]) {
    html.push_str("<h2>Newest refusals</h2>");
    if refusals.is_empty() {
        html.push_str("<p class=dim>None since the start.</p>");
        return;
    }
    html.push_str(
        "<div class=wide tabindex=0 role=region aria-label=Refusals><table><tr><th>When<th>Reply<th>Reason<th>Queue id<th>From<th>To</tr>",
    );
    let dash = |text: &Option<String>| text.as_deref().map_or("–".to_owned(), escape);
    for refusal in refusals {
        let queue_id = if refusal.queue_id.is_empty() { "–".to_owned() } else { escape(&refusal.queue_id) };
        let _ = write!(
            html,
            "<tr><td>{} ago<td>{}<td>{}<td><code>{queue_id}</code><td>{}<td>{}</tr>",
            age(refusal.at),
            refusal.code,
            refusal.reason,
            dash(&refusal.sender),
            dash(&refusal.recipient)
        );
    }
    html.push_str("</table></div>");
}

fn queue(html: &mut String, queue: &InQueue) {
    html.push_str("<h2>Queue</h2>");
    if let Some(trouble) = &queue.trouble {
        let _ = write!(html, "<p>It cannot be read: {}</p>", escape(trouble));
    } else if queue.tenants.is_empty() {
        html.push_str("<p class=dim>Nothing waits, nothing is held.</p>");
    } else {
        html.push_str("<div class=wide tabindex=0 role=region aria-label=Queue><table><tr><th>Tenant<th class=n>Waiting<th class=n>Held</tr>");
        for counts in &queue.tenants {
            let tenant = escape(&counts.tenant);
            let _ = write!(
                html,
                "<tr><td>{tenant}<td class=n>{}<td class=n>{}</tr>",
                counts.waiting, counts.held
            );
        }
        html.push_str("</table></div>");
    }
}

fn held(html: &mut String, held: &[Entry], may: &May) {
    html.push_str("<h2 id=held>Held for a person</h2>");
    if held.is_empty() {
        html.push_str("<p class=dim>None.</p>");
        return;
    }
    let button = |id: &str, action: &str, label: &str, what: &str| match may {
        May::Change(token) => format!(
            "<form method=post action=\"/activities\"><input type=hidden name=form_token value=\"{token}\">\
             <input type=hidden name=id value=\"{id}\"><button class={} name=action value={action} aria-label=\"{label} {what}\">{label}</button></form> ",
            if action == "drop" { "bad" } else { "good" }
        ),
        May::Look | May::LogIn => String::new(),
    };
    let _ = write!(html, "<p>{}</p>", button("all", "retry", "Retry all", "that are held"));
    html.push_str(
        "<div class=wide tabindex=0 role=region aria-label=Held><table><tr><th>Tenant<th>Queue id<th>Age<th class=n>Attempts<th>Why<th></tr>",
    );
    for entry in held {
        let id = entry.id.to_string();
        let short = escape(entry.key.as_str().get(..15).unwrap_or(entry.key.as_str()));
        let _ = write!(
            html,
            "<tr><td>{}<td><code>{}</code><br><code class=dim title=\"{}\">{short}…</code><td>{}<td class=n>{}<td>{}<td class=do>{}{}</tr>",
            escape(&entry.tenant),
            escape(entry.queue_id.as_deref().unwrap_or("–")),
            escape(entry.key.as_str()),
            age(entry.accepted_at),
            entry.attempts,
            escape(entry.reason.as_deref().unwrap_or_default()),
            button(&id, "retry", "Retry", &short),
            button(&id, "drop", "Drop", &short)
        );
    }
    html.push_str("</table></div>");
}

fn copies(html: &mut String, copies: &[Copied]) {
    if copies.is_empty() {
        return;
    }
    html.push_str(
        "<h2>Copies of Severa</h2><div class=wide tabindex=0 role=region aria-label=Copies><table><tr><th>Tenant<th class=n>Users\
         <th class=n>Contacts<th class=n>Projects<th>State</tr>",
    );
    for Copied { tenant, counts: [users, contacts, projects], standing } in copies {
        let (tenant, standing) = (escape(tenant), escape(standing));
        let _ = write!(
            html,
            "<tr><td>{tenant}<td class=n>{users}<td class=n>{contacts}<td class=n>{projects}<td>{standing}</tr>"
        );
    }
    html.push_str("</table></div>");
}

fn log_in(html: &mut String, may: &May) {
    match may {
        May::Look => html.push_str("<p class=dim>Set <code>admin.token_file</code> to retry and drop here.</p>"),
        May::LogIn => html.push_str(
            "<h2>Retry and drop</h2><form method=post action=\"/login\"><label>Admin token \
             <input type=password name=token autocomplete=current-password required></label> <button>Log in</button></form>",
        ),
        May::Change(token) => {
            let _ = write!(
                html,
                "<form method=post action=\"/logout\"><input type=hidden name=form_token value=\"{token}\"><button>Log out</button></form>"
            );
        }
    }
}

fn age(since: SystemTime) -> String {
    let age = SystemTime::now().duration_since(since).unwrap_or_default().as_secs();
    let whole = match age {
        0..=119 => age,
        120..=7199 => age / 60 * 60,
        7200..=172_799 => age / 3600 * 3600,
        _ => age / 86400 * 86400,
    };
    humantime::format_duration(Duration::from_secs(whole)).to_string()
}

/// The time of day at which a step begins, UTC.
fn clock(step: u64) -> String {
    let minutes = step * STEP.as_secs() / 60 % (24 * 60);
    format!("{:02}:{:02}", minutes / 60, minutes % 60)
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_words_are_text_and_buttons_are_for_those_who_may() {
        let entry = Entry {
            id: 7,
            key: crate::activity::Key::from_stored("b3:0123456789abcdef".to_owned()),
            tenant: "<b>t".to_owned(),
            project: None,
            queue_id: Some("<script>".to_owned()),
            sender: None,
            recipients: Vec::new(),
            state: crate::queue::State::Held,
            attempts: 1,
            accepted_at: SystemTime::now(),
            due: SystemTime::now(),
            reason: Some("<img src=x onerror=alert(1)>".to_owned()),
        };
        let view = |may| View {
            checks: Vec::new(),
            queue: InQueue { held: vec![entry.clone()], ..InQueue::default() },
            copies: vec![Copied {
                tenant: "mycompany".to_owned(),
                counts: [3, 10, 2],
                standing: "<script>last good poll 5s ago".to_owned(),
            }],
            may,
            started: SystemTime::now(),
        };
        for (may, buttons) in [(May::Look, false), (May::LogIn, false), (May::Change("f".to_owned()), true)] {
            let html = render(&view(may));
            assert!(!html.contains("<script") && !html.contains("<img") && !html.contains("<b>t"), "{html}");
            assert_eq!(html.contains("value=drop"), buttons);
            assert!(
                html.contains("<td>mycompany<td class=n>3<td class=n>10<td class=n>2<td>&lt;script&gt;last")
            );
        }
    }

    #[test]
    fn ages_are_short() {
        for (seconds, expected) in
            [(5, "5s"), (61, "1m 1s"), (3600, "1h"), (90_000, "1day 1h"), (1_000_000, "11days")]
        {
            assert_eq!(age(SystemTime::now() - Duration::from_secs(seconds)), expected);
        }
    }
}
