//! A plain page with the newest activities, for people who try things out.

use super::store::Stored;
use crate::activity::{Activity, Participant};
use std::fmt::Write as _;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:64em;margin:1.5em auto;padding:0 1em;\
    color-scheme:light dark}article{border-top:1px solid #8888;padding:.6em 0}h2{font-size:1.05em;margin:0}\
    pre{white-space:pre-wrap;margin:.4em 0;max-height:9em;overflow:auto}p{margin:.2em 0}small{opacity:.75}";

/// The whole page, newest first.
pub(super) fn render(stored: &[Stored]) -> String {
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Activities</title><style>{STYLE}</style><h1>Newest activities</h1>"
    );
    if stored.is_empty() {
        html.push_str("<p>Nothing received yet.</p>");
    }
    for stored in stored.iter().rev() {
        if let Ok(activity) = serde_json::from_str::<Activity>(&stored.text) {
            article(&mut html, &activity);
        }
    }
    html.push_str("</html>");
    html
}

fn article(html: &mut String, activity: &Activity) {
    let project = activity.project.as_ref().map(|p| format!(", project {}", p.number)).unwrap_or_default();
    let customer = activity.customer.as_ref().map(|c| format!(", customer {}", c.id)).unwrap_or_default();
    let people: Vec<_> = activity.participants.iter().map(participant).collect();
    let files: Vec<_> =
        activity.files.iter().map(|file| format!("{} ({} bytes)", file.name, file.size)).collect();
    let _ = write!(
        html,
        "<article><h2>{}</h2><p><small>{} · {}{}{}</small></p><p>Owner: {}</p>",
        escape(&activity.subject),
        escape(&activity.received_at),
        escape(&activity.tenant.prefix),
        escape(&project),
        escape(&customer),
        escape(&activity.owner.address),
    );
    for (label, list) in [("Participants", people), ("Files", files)] {
        if !list.is_empty() {
            let _ = write!(html, "<p>{label}: {}</p>", escape(&list.join(", ")));
        }
    }
    let _ = write!(
        html,
        "<pre>{}</pre><p><small>{}</small></p></article>",
        escape(activity.text.as_deref().unwrap_or_default()),
        escape(activity.key.as_str())
    );
}

fn participant(participant: &Participant) -> String {
    let kind = format!("{:?}", participant.kind).to_lowercase();
    format!("{} ({kind})", participant.address)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_of_a_message_is_shown_not_run() {
        assert_eq!(escape("<script>\"&"), "&lt;script&gt;&quot;&amp;");
    }
}
