//! The last day: what was recorded and refused, and the newest refusals.

use super::{
    View,
    words::{escape, number, shown, table, when},
};
use crate::observe::recent::{Refusal, STEP, Step};
use std::fmt::Write as _;

/// Refusals shown.
const REFUSALS_SHOWN: usize = 20;

/// Width and height of the chart's own coordinates.
const CHART: (usize, usize) = (720, 120);

/// Steps between two labels: four hours.
const LABEL_EACH: u64 = 24;

pub(super) fn chart(html: &mut String, steps: &[Step]) {
    let sum = |of: fn(&Step) -> u64| number(steps.iter().map(of).sum());
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
        height + 28
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
                    number(step.recorded),
                    number(step.refused)
                );
            }
        }
        // Not at the ends, where half of it would stick out.
        if step.number % LABEL_EACH == 0 && (40.0..width as f64 - 40.0).contains(&x) {
            let _ = write!(
                html,
                "<text x={x:.1} y={} text-anchor=middle>{}</text>",
                height + 22,
                clock(step.number)
            );
        }
    }
    let most = number(most);
    let _ = write!(html, "</svg><p class=dim>Times are UTC; the tallest bar is {most} in ten minutes.</p>");
}

pub(super) fn refusals(html: &mut String, view: &View) {
    html.push_str("<h2>Newest refusals</h2>");
    if view.refusals.is_empty() {
        let _ = write!(html, "<p class=dim>None since the start {}.</p>", when(view.now, view.started));
        return;
    }
    let seen = view.refusals.len().min(REFUSALS_SHOWN);
    let all = view.steps.iter().map(|step| step.refused).sum::<u64>().max(view.refusals.len() as u64);
    let _ = write!(html, "<p class=dim>{} in the last 24 hours, the newest first.</p>", shown(seen, all));
    let columns =
        [("When", ""), ("Reply", "n"), ("Reason", ""), ("Queue id", "id"), ("From", "why"), ("To", "why")];
    table(html, "Refusals", &columns, view.refusals.iter().take(seen).map(|refusal| row(view, refusal)));
}

fn row(view: &View, refusal: &Refusal) -> Vec<String> {
    let dash = |text: &Option<String>| text.as_deref().map_or("–".to_owned(), escape);
    let reason = escape(refusal.reason);
    let queue_id = Some(refusal.queue_id.as_str()).filter(|queue_id| !queue_id.is_empty());
    vec![
        when(view.now, refusal.at),
        refusal.code.to_string(),
        format!("<a href=\"/docs/replies#{reason}\">{reason}</a>"),
        view.queue_id(queue_id),
        dash(&refusal.sender),
        dash(&refusal.recipient),
    ]
}

/// The time of day at which a step begins, UTC.
fn clock(step: u64) -> String {
    let minutes = step * STEP.as_secs() / 60 % (24 * 60);
    format!("{:02}:{:02}", minutes / 60, minutes % 60)
}
