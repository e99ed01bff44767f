//! What to do: the documents for administrators, as pages of the door, so that they are at hand where nothing else is.
//!
//! In: `/docs/NAME`. Out: the document, each heading under the name that GitHub gives it.
//! Promise: the texts are those of `docs/`, built in; a document loads nothing and its HTML is only what Markdown makes.

use super::{page, refusal};
use axum::{
    extract::Path,
    http::StatusCode,
    response::{Html, IntoResponse, Response},
};
use pulldown_cmark::{CowStr, Event, Options, Parser, Tag, TagEnd, html};

/// Name, title and text.
const DOCUMENTS: [(&str, &str, &str); 4] = [
    ("operations", "Operating", include_str!("../../docs/operations.md")),
    ("replies", "Replies", include_str!("../../docs/replies.md")),
    ("security", "Security", include_str!("../../docs/security.md")),
    ("severa", "Visma Severa", include_str!("../../docs/severa.md")),
];

/// Links to all documents.
pub(super) fn links() -> String {
    let links = DOCUMENTS.iter().map(|(name, title, _)| format!("<a href=\"/docs/{name}\">{title}</a>"));
    links.collect::<Vec<_>>().join(" · ")
}

/// `/docs/NAME`
pub(super) async fn show(Path(name): Path<String>) -> Response {
    let Some((_, title, text)) = DOCUMENTS.iter().find(|(known, ..)| *known == name) else {
        return refusal(StatusCode::NOT_FOUND, "There is no such document.");
    };
    let mut page = page::begin(&format!("activity-milter: {title}"));
    page.push_str("<nav><a href=\"/\">Status</a> · ");
    page.push_str(&links());
    page.push_str("</nav><main class=doc>");
    html::push_html(&mut page, events(text).into_iter());
    page.push_str("</main></html>");
    Html(page).into_response()
}

/// What the document consists of: headings with names, links within the door or out of it, no pictures, no HTML.
fn events(text: &str) -> Vec<Event<'_>> {
    let mut events: Vec<Event<'_>> = Vec::new();
    let (mut heading, mut in_picture, mut dead) = (None, false, Vec::new());
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Image { .. }) => in_picture = true,
            Event::End(TagEnd::Image) => in_picture = false,
            _ if in_picture => {}
            Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
                let place = place(&dest_url);
                dead.push(place.is_none());
                if let Some(place) = place {
                    let dest_url = CowStr::from(place);
                    events.push(Event::Start(Tag::Link { link_type, dest_url, title, id }));
                }
            }
            Event::End(TagEnd::Link) => {
                if dead.pop() == Some(false) {
                    events.push(Event::End(TagEnd::Link));
                }
            }
            Event::Html(html) | Event::InlineHtml(html) => events.push(Event::Text(html)),
            Event::End(TagEnd::Heading(level)) => {
                if let Some(start) = heading.take() {
                    let name = name(&events[start + 1..]);
                    if let Event::Start(Tag::Heading { id, .. }) = &mut events[start] {
                        *id = Some(name.into());
                    }
                }
                events.push(Event::End(TagEnd::Heading(level)));
            }
            event => {
                if matches!(event, Event::Start(Tag::Heading { .. })) {
                    heading = Some(events.len());
                }
                events.push(event);
            }
        }
    }
    events
}

/// Where a link of a document leads from the door; none: to something that is not here.
fn place(url: &str) -> Option<String> {
    if url.starts_with('#') || url.starts_with("https://") || url.starts_with("http://") {
        return Some(url.to_owned());
    }
    let (file, heading) = url.split_once('#').map_or((url, None), |(file, heading)| (file, Some(heading)));
    let name = file.strip_suffix(".md")?;
    DOCUMENTS.iter().find(|(known, ..)| *known == name)?;
    Some(format!("/docs/{name}{}", heading.map(|heading| format!("#{heading}")).unwrap_or_default()))
}

/// The name that GitHub gives a heading.
fn name(heading: &[Event<'_>]) -> String {
    let text = heading.iter().filter_map(|event| match event {
        Event::Text(text) | Event::Code(text) => Some(text.as_ref()),
        _ => None,
    });
    let text = text.collect::<String>().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Whether a link of the page to a document leads to a heading that is there.
#[cfg(test)]
pub(super) fn has(link: &str) -> bool {
    let Some((name, heading)) = link.strip_prefix("/docs/").and_then(|link| link.split_once('#')) else {
        return false;
    };
    let document = DOCUMENTS.iter().find(|(known, ..)| *known == name);
    document.is_some_and(|(.., text)| {
        events(text).iter().any(|event| {
            matches!(event, Event::Start(Tag::Heading { id: Some(id), .. }) if id.as_ref() == heading)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn html(text: &str) -> String {
        let mut html = String::new();
        html::push_html(&mut html, events(text).into_iter());
        html
    }

    #[test]
    fn a_document_loads_nothing_and_its_links_lead_somewhere() {
        for (text, expected) in [
            (
                "## The `disk` is full, now!",
                "<h2 id=\"the-disk-is-full-now\">The <code>disk</code> is full, now!</h2>\n",
            ),
            ("[r](replies.md#no-user)", "<p><a href=\"/docs/replies#no-user\">r</a></p>\n"),
            ("[r](#here)", "<p><a href=\"#here\">r</a></p>\n"),
            ("[the *plan*](architecture.md)", "<p>the <em>plan</em></p>\n"),
            ("[x](javascript:alert)", "<p>x</p>\n"),
            ("a ![alt](x.png) b", "<p>a  b</p>\n"),
            ("<script>alert()</script>", "&lt;script&gt;alert()&lt;/script&gt;"),
            ("a <img src=x> b", "<p>a &lt;img src=x&gt; b</p>\n"),
        ] {
            assert_eq!(html(text), expected, "{text}");
        }
        for (name, _, text) in DOCUMENTS {
            let html = html(text);
            assert!(!html.contains("<img") && html.len() > 1000, "{name}");
            for link in html.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
                let link =
                    if link.starts_with('#') { format!("/docs/{name}{link}") } else { link.to_owned() };
                assert!(!link.contains('#') || link.starts_with("http") || has(&link), "{name}: {link}");
            }
        }
    }
}
