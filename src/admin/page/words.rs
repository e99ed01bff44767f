//! Numbers, times, ids and tables, as people read them.

use std::{
    collections::HashMap,
    fmt::Write as _,
    time::{Duration, SystemTime},
};

/// Text as HTML, between tags and in quoted attributes.
pub(in crate::admin) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

/// With separators: `1,000,000`.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 activity`, `2 activities`.
pub(super) fn activities(count: u64) -> String {
    format!("{} {}", number(count), if count == 1 { "activity" } else { "activities" })
}

/// `50 of 99`, or `99` if that is all.
pub(super) fn shown(shown: usize, all: u64) -> String {
    let shown = shown as u64;
    if shown < all { format!("{} of {}", number(shown), number(all)) } else { number(shown) }
}

/// `2026-11-30 00:51:07 UTC`.
pub(super) fn utc(at: SystemTime) -> String {
    stamp(at).map_or_else(|| "at no time".to_owned(), |stamp| stamp.replace('T', " ").replace('Z', " UTC"))
}

/// What a list has: `50 of 99, the oldest first.`, or `1 activity.`
pub(super) fn listed(seen: usize, all: u64) -> String {
    match all {
        0 | 1 => format!("{}.", activities(all)),
        _ => format!("{}, the oldest first.", shown(seen, all)),
    }
}

/// As machines write it; none outside of the years that can be written.
fn stamp(at: SystemTime) -> Option<String> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    let whole = SystemTime::UNIX_EPOCH + Duration::from_secs(since);
    (since < 253_402_300_800).then(|| humantime::format_rfc3339_seconds(whole).to_string())
}

/// `7 s`, `3 min`, `5 h`, `12 days`.
pub(super) fn span(span: Duration) -> String {
    match span.as_secs() {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7199 => format!("{} min", seconds / 60),
        seconds @ 7200..=172_799 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", number(seconds / 86_400)),
    }
}

/// `7 s ago`, `in 7 s`; the time itself is the title.
pub(super) fn when(now: SystemTime, at: SystemTime) -> String {
    let text = match now.duration_since(at) {
        Ok(ago) => format!("{} ago", span(ago)),
        Err(ahead) => format!("in {}", span(ahead.duration())),
    };
    timed(at, &text)
}

/// A time as an element, with these words.
pub(super) fn timed(at: SystemTime, text: &str) -> String {
    let utc = utc(at);
    match stamp(at) {
        Some(stamp) => format!("<time datetime=\"{stamp}\" title=\"{utc}\">{text}</time>"),
        None => format!("<span title=\"{utc}\">{text}</span>"),
    }
}

/// An id: it never breaks. `searches`: it leads to what became of its mail.
pub(super) fn id(searches: bool, whole: &str, text: &str) -> String {
    let code = format!("<code title=\"{}\">{}</code>", escape(whole), escape(text));
    if searches { format!("<a href=\"/trace?q={}\">{code}</a>", encoded(whole)) } else { code }
}

/// A tenant: its name, if it is known, and its id.
pub(super) fn tenant_of(names: &HashMap<String, String>, tenant: &str) -> String {
    let code = id(false, tenant, tenant);
    match names.get(tenant) {
        Some(name) => format!("{} {code}", escape(name)),
        None => code,
    }
}

/// The beginning of a key, which is enough to find it.
pub(super) fn short(key: &str) -> String {
    key.get(..15).map_or_else(|| key.to_owned(), |short| format!("{short}…"))
}

/// As a value in a query (RFC 3986, section 2.1).
pub(in crate::admin) fn encoded(text: &str) -> String {
    let mut query = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            query.push(char::from(byte));
        } else {
            let _ = write!(query, "%{byte:02X}");
        }
    }
    query
}

/// A column: its title, and its class: `n` numbers, `do` buttons, `why` words that may be many, `id` what never breaks.
pub(in crate::admin) type Column = (&'static str, &'static str);

/// A table; on a phone each row is a card, in which each value has its column's title before it.
pub(in crate::admin) fn table(
    html: &mut String,
    label: &str,
    columns: &[Column],
    rows: impl IntoIterator<Item = Vec<String>>,
) {
    let _ = write!(
        html,
        "<div class=wide tabindex=0 role=region aria-label=\"{label}\"><table role=table><thead role=rowgroup><tr role=row>"
    );
    for (title, class) in columns {
        let title = if title.is_empty() { "<span class=unseen>Actions</span>" } else { title };
        let _ = write!(html, "<th role=columnheader class=\"{class}\">{title}</th>");
    }
    html.push_str("</tr></thead><tbody role=rowgroup>");
    for row in rows {
        html.push_str("<tr role=row>");
        for ((title, class), cell) in columns.iter().zip(row) {
            let _ = write!(html, "<td role=cell class=\"{class}\" data-l=\"{title}\"><div>{cell}</div></td>");
        }
        html.push_str("</tr>");
    }
    html.push_str("</tbody></table></div>");
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_790_000_000);

    #[test]
    fn numbers_have_separators_and_what_is_cut_says_so() {
        for (count, text, of_them, cut) in [
            (0, "0", "0 activities", "0"),
            (1, "1", "1 activity", "1"),
            (49, "49", "49 activities", "49"),
            (50, "50", "50 activities", "50"),
            (99, "99", "99 activities", "50 of 99"),
            (999, "999", "999 activities", "50 of 999"),
            (1000, "1,000", "1,000 activities", "50 of 1,000"),
            (1_000_000, "1,000,000", "1,000,000 activities", "50 of 1,000,000"),
        ] {
            assert_eq!(number(count), text);
            assert_eq!(activities(count), of_them);
            assert_eq!(shown(usize::try_from(count.min(50)).unwrap(), count), cut);
        }
        assert_eq!([listed(1, 1), listed(2, 2)], ["1 activity.", "2, the oldest first."]);
        assert_eq!(listed(50, 1_000_000), "50 of 1,000,000, the oldest first.");
        assert_eq!(number(u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn times_are_relative_and_say_which_they_are() {
        let now = SystemTime::UNIX_EPOCH + NOW;
        for (seconds, text) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (7199, "119 min"),
            (7200, "2 h"),
            (172_800, "2 days"),
        ] {
            let by = Duration::from_secs(seconds);
            assert_eq!(span(by), text);
            assert!(when(now, now - by).ends_with(&format!(">{text} ago</time>")));
        }
        assert_eq!(
            when(now, now + Duration::from_secs(30)),
            "<time datetime=\"2026-09-21T14:13:50Z\" title=\"2026-09-21 14:13:50 UTC\">in 30 s</time>"
        );
        // What a damaged row may say.
        for odd in [
            SystemTime::UNIX_EPOCH - Duration::from_secs(1),
            SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_800),
            SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 60),
        ] {
            assert!(when(now, odd).starts_with("<span title=\"at no time\">"), "{}", when(now, odd));
        }
    }

    #[test]
    fn ids_lead_to_their_mail_and_nowhere_else() {
        let hostile = "\"><script>&'é";
        assert_eq!(
            id(true, hostile, "x"),
            "<a href=\"/trace?q=%22%3E%3Cscript%3E%26%27%C3%A9\"><code title=\"&quot;&gt;&lt;script&gt;&amp;&#39;é\">x</code></a>"
        );
        assert_eq!(id(false, "4bX", "4bX"), "<code title=\"4bX\">4bX</code>");
        assert_eq!(short("b3:0123456789abcdef"), "b3:0123456789ab…");
        assert_eq!(short("äääääääääää"), "äääääääääää", "no letter is cut in two");
    }
}
