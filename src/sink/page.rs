//! A plain page with the newest activities, for people who try things out.
//!
//! Promise: an activity has a small place on it, whatever it holds.

use crate::activity::{CustomerRef, FileRef, Key, Owner, Participant, ProjectRef, TenantRef};
use serde::Deserialize;
use std::fmt::Write as _;

/// Characters shown of each text.
const SHOWN: usize = 2000;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:64em;margin:1.5em auto;padding:0 1em;\
    color-scheme:light dark}article{border-top:1px solid #8888;padding:.6em 0}h2{font-size:1.05em;margin:0}\
    pre{white-space:pre-wrap;margin:.4em 0;max-height:9em;overflow:auto}p{margin:.2em 0}small{opacity:.75}";

/// What is shown of an activity. Its HTML is not read.
#[derive(Deserialize)]
struct Shown {
    key: Key,
    tenant: TenantRef,
    subject: String,
    received_at: String,
    owner: Owner,
    participants: Vec<Participant>,
    customer: Option<CustomerRef>,
    project: Option<ProjectRef>,
    text: Option<String>,
    files: Vec<FileRef>,
}

/// The page as far as it is made.
#[derive(Default)]
pub(super) struct Page {
    articles: String,
}

impl Page {
    /// Shows an activity, given by its JSON, below those before.
    pub(super) fn add(&mut self, json: &str) {
        if let Ok(shown) = serde_json::from_str(json) {
            article(&mut self.articles, &shown);
        }
    }

    /// The whole page.
    pub(super) fn finish(self) -> String {
        let articles = match self.articles.as_str() {
            "" => "<p>Nothing received yet.</p>",
            articles => articles,
        };
        format!(
            "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
             <title>Activities</title><style>{STYLE}</style><h1>Newest activities</h1>{articles}</html>"
        )
    }
}

fn article(html: &mut String, activity: &Shown) {
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

/// As much of a text as is shown, as text.
fn escape(text: &str) -> String {
    let (shown, more) = match text.char_indices().nth(SHOWN) {
        Some((end, _)) => (&text[..end], "…"),
        None => (text, ""),
    };
    let shown = shown.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    shown + more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_of_a_message_is_shown_not_run() {
        assert_eq!(escape("<script>\"&"), "&lt;script&gt;&quot;&amp;");
    }

    #[test]
    fn a_long_text_is_cut() {
        assert_eq!(escape(&"ä".repeat(SHOWN)), "ä".repeat(SHOWN));
        assert_eq!(escape(&"ä".repeat(SHOWN + 1)), "ä".repeat(SHOWN) + "…");
    }
}
