//! What is wrong and how much there is, at a glance.

use super::{
    InQueue, View,
    remedy::{self, Remedy},
    words::{activities, escape, number, span, when},
};
use crate::admin::checks::Check;
use std::{fmt::Write as _, time::Duration};

/// What waits longer than that is worth a look: by then a few attempts have failed.
const OLD: Duration = Duration::from_secs(15 * 60);

/// How the service is, in a word or two.
pub(super) fn standing(checks: &[Check]) -> &'static str {
    match checks.iter().filter(|check| !check.ok).map(|check| check.is_everybodys).max() {
        None => "ready",
        Some(false) => "ready, but look",
        Some(true) => "not ready",
    }
}

/// What to do, and where the rest stands.
pub(super) fn what_to_do((text, link): Remedy) -> String {
    format!("{text} <a class=id href=\"{link}\">What to do</a>")
}

/// What is wrong, each for itself, the worst first.
pub(super) fn alarms(html: &mut String, view: &View) {
    let misconfigured = view.paused.iter().any(|paused| paused.tenant.is_none() && paused.misconfigured);
    let (worst, others): (Vec<_>, Vec<_>) =
        view.checks.iter().filter(|check| !check.ok).partition(|check| check.is_everybodys);
    for check in worst.into_iter().chain(others) {
        let class = if check.is_everybodys { "alarm down" } else { "alarm" };
        let _ = write!(
            html,
            "<section class=\"{class}\" aria-label=\"Alarm: {name}\"><h2>{name}: not ok</h2><p>{}</p><p>{}</p></section>",
            escape(&check.detail),
            what_to_do(remedy::of_check(check.name, misconfigured)),
            name = check.name,
        );
    }
}

/// What is well, in a line.
pub(super) fn checks(html: &mut String, checks: &[Check]) {
    html.push_str("<ul class=checks aria-label=Checks>");
    for check in checks.iter().filter(|check| check.ok) {
        let _ = write!(
            html,
            "<li><b>{}: ok</b> <span class=dim>{}</span></li>",
            check.name,
            escape(&check.detail)
        );
    }
    html.push_str("</ul>");
}

/// What else changes what the numbers mean.
pub(super) fn modes(html: &mut String, view: &View) {
    if let Some(pulled) = &view.emergency {
        let _ = write!(
            html,
            "<p class=note><b>A lever is pulled:</b> {}. <a href=\"/docs/operations#levers\">What it does</a></p>",
            escape(pulled)
        );
    }
    if let Some(limits) = &view.limits {
        let _ = write!(
            html,
            "<p class=note><b>Limits:</b> {}; more is told to come again. <a href=\"/docs/operations#limits-of-mail\">What they do</a></p>",
            escape(limits)
        );
    }
    if view.is_shadow {
        html.push_str(
            "<p class=note><b>Shadow mode:</b> everything is decided and logged; nothing is refused, recorded or deleted \
             (<code>mode = \"shadow\"</code>).</p>",
        );
    }
    if view.queue.is_none() {
        html.push_str(
            "<p class=note><b>Direct mode:</b> there is no queue; a mail is accepted once the business system has it, and \
             told to come again otherwise.</p>",
        );
    }
}

/// The numbers.
pub(super) fn tiles(html: &mut String, view: &View) {
    html.push_str("<ul class=tiles aria-label=Numbers>");
    if let Some(queue) = view.queue.as_ref().filter(|queue| queue.trouble.is_none()) {
        held(html, view, queue);
        waiting(html, view, queue);
    }
    let sum = |of: fn(&super::Step) -> u64| number(view.steps.iter().map(of).sum());
    let _ = write!(
        html,
        "<li><span>Recorded</span><b>{}</b><span class=dim>in the last 24 hours</span></li>\
         <li><span>Refused or deferred</span><b>{}</b><span class=dim>in the last 24 hours</span></li></ul>",
        sum(|step| step.recorded),
        sum(|step| step.refused)
    );
}

fn held(html: &mut String, view: &View, queue: &InQueue) {
    let held = queue.counts.held;
    let oldest = queue.overview.held_for.iter().map(|of| of.since).min();
    let (class, said) = match oldest.filter(|_| held > 0) {
        Some(since) => ("warn", format!("Look: the first {}", when(view.now, since))),
        None if held > 0 => ("warn", "Look at them".to_owned()),
        None => ("ok", "nothing for a person".to_owned()),
    };
    let _ = write!(
        html,
        "<li id=tile-held class={class}><span>Held</span><b>{}</b><span class=dim>{said}</span></li>",
        number(held)
    );
}

fn waiting(html: &mut String, view: &View, queue: &InQueue) {
    let age = queue.counts.oldest.map(|oldest| view.now.duration_since(oldest).unwrap_or_default());
    let is_old = age.is_some_and(|age| age >= OLD);
    let (class, look) = if is_old { ("warn", "Look: ") } else { ("ok", "") };
    let said = match queue.counts.waiting {
        0 => "nothing waits".to_owned(),
        1 => format!("{look}{} waits", activities(1)),
        waiting => format!("{look}{} wait", activities(waiting)),
    };
    let _ = write!(
        html,
        "<li id=tile-waiting class={class}><span>Oldest waiting</span><b>{}</b><span class=dim>{said}</span></li>",
        age.map_or_else(|| "–".to_owned(), span)
    );
}

/// True if what waits is worth a look.
pub(super) fn is_old(view: &View, queue: &InQueue) -> bool {
    queue.counts.oldest.and_then(|oldest| view.now.duration_since(oldest).ok()).is_some_and(|age| age >= OLD)
}
