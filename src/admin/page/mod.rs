//! The status page: server-rendered HTML, no script, nothing to load, no cookie but that of the login.
//!
//! In: a [`View`]. Out: HTML. What is wrong stands first, each with what to do; then how much there is, what is held and
//! what waits; then the day.
//! Promise: nothing of a message's content; strangers' words are text. A page that comes again by itself has no field to
//! type into, so that nothing typed is lost.

mod day;
mod held;
mod remedy;
mod style;
mod tiles;
mod waiting;
mod words;

pub(super) use held::{Place, question};
pub(super) use words::{encoded, escape, table};

use super::{InQueue, change::Action, checks::Check, manual};
use crate::courier::Paused;
use crate::observe::recent::{Refusal, Step};
use std::{collections::HashMap, fmt::Write as _, time::SystemTime};
use words::{activities, id, number, timed, utc, when};

/// How often a page comes again that is asked to, in seconds.
const REFRESH: u32 = 30;

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
    pub(super) now: SystemTime,
    pub(super) started: SystemTime,
    pub(super) checks: Vec<Check>,
    /// None in direct mode.
    pub(super) queue: Option<InQueue>,
    pub(super) is_shadow: bool,
    /// The lever that is pulled.
    pub(super) emergency: Option<String>,
    /// How much is taken from whom, if that is limited.
    pub(super) limits: Option<String>,
    pub(super) paused: Vec<Paused>,
    pub(super) copies: Vec<Copied>,
    /// Names of tenants by their ids.
    pub(super) names: HashMap<String, String>,
    pub(super) steps: Vec<Step>,
    pub(super) refusals: Vec<Refusal>,
    /// There is a trace to search.
    pub(super) searches: bool,
    pub(super) may: May,
    /// It comes again by itself after so many seconds.
    pub(super) refresh: Option<u32>,
    /// What a button has done, and to how many.
    pub(super) done: Option<(Action, u64)>,
    /// Where the long lists begin.
    pub(super) place: Place,
}

impl View {
    fn may_search(&self) -> bool {
        self.searches && !matches!(self.may, May::LogIn)
    }

    fn queue_id(&self, queue_id: Option<&str>) -> String {
        queue_id.map_or_else(|| "–".to_owned(), |queue_id| id(self.may_search(), queue_id, queue_id))
    }
}

/// What the page shows of a copy from which the directory answers.
#[derive(Debug)]
pub(super) struct Copied {
    pub(super) tenant: String,
    pub(super) counts: [usize; 3],
    pub(super) standing: String,
}

/// The whole page.
pub(super) fn render(view: &View) -> String {
    let word = tiles::standing(&view.checks);
    let held = view.queue.as_ref().map_or(0, |queue| queue.counts.held);
    let title = match held {
        0 => format!("activity-milter: {word}"),
        held => format!("activity-milter: {word}, {} held", number(held)),
    };
    let color = match (word, held) {
        ("ready", 0) => "1a7f4b",
        ("not ready", _) => "b3261e",
        _ => "e08a00",
    };
    let mut html = begin_in(&title, color);
    if let Some(seconds) = view.refresh {
        let _ = write!(html, "<meta http-equiv=refresh content={seconds}>");
    }
    let _ = write!(html, "<header><h1>activity-milter: {word}</h1>");
    as_of(&mut html, view);
    fields(&mut html, view);
    html.push_str("</header><main>");
    // A link from elsewhere brings no session (SameSite), and says nothing here.
    if let (Some((action, count)), May::Change(_)) = (view.done, &view.may) {
        let past = action.past();
        let _ = write!(html, "<p class=\"note done\" role=status>{} {past}.</p>", activities(count));
    }
    tiles::alarms(&mut html, view);
    tiles::modes(&mut html, view);
    tiles::tiles(&mut html, view);
    tiles::checks(&mut html, &view.checks);
    if let Some(queue) = &view.queue {
        self::queue(&mut html, view, queue);
    }
    day::chart(&mut html, &view.steps);
    day::refusals(&mut html, view);
    copies(&mut html, &view.copies);
    let _ = write!(
        html,
        "</main><footer class=dim><p>Version {}, started {} ({}).</p><p>{}</p></footer></html>",
        env!("CARGO_PKG_VERSION"),
        when(view.now, view.started),
        utc(view.started),
        manual::links()
    );
    html
}

/// A page that says why something was not done.
pub(super) fn refused(why: &str) -> String {
    let mut html = begin("activity-milter: not done");
    let _ = write!(
        html,
        "<main><h1>Not done</h1><p>{}</p><p><a href=\"/\">Back</a></p></main></html>",
        escape(why)
    );
    html
}

/// The beginning of each page.
pub(super) fn begin(title: &str) -> String {
    begin_in(title, "2f6fb3")
}

/// With an icon in this colour, so that the tab shows it; without any a browser asks for one in vain.
fn begin_in(title: &str, color: &str) -> String {
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width,initial-scale=1\">\
         <link rel=icon href=\"data:image/svg+xml,%3Csvg xmlns='http:%2F%2Fwww.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Ccircle cx='8' cy='8' \
         r='7' fill='%23{color}'/%3E%3C/svg%3E\"><title>{}</title><style>{}</style>",
        escape(title),
        style::STYLE
    )
}

/// When this was true, and how to see it anew.
fn as_of(html: &mut String, view: &View) {
    let now = timed(view.now, &utc(view.now));
    let _ = match view.refresh {
        None => write!(
            html,
            "<p class=dim>As of {now} · <a href=\"/\">Refresh</a> · <a href=\"/?refresh={REFRESH}\">every {REFRESH} s</a></p>"
        ),
        Some(seconds) => write!(
            html,
            "<p class=dim>As of {now}, refreshed every {seconds} s · <a href=\"/\">Stop refreshing</a> to search or log in</p>"
        ),
    };
}

/// What can be typed: the search, and the login.
fn fields(html: &mut String, view: &View) {
    html.push_str("<div class=bar>");
    if view.refresh.is_none() {
        html.push_str(&super::trace::form(&view.may, "", ""));
    }
    match (&view.may, view.refresh) {
        (May::Look, _) => {
            html.push_str("<p class=dim>Set <code>admin.token_file</code> to retry and drop here.</p>");
        }
        (May::LogIn, Some(_)) => {}
        (May::LogIn, None) => html.push_str(
            "<form method=post action=\"/login\"><label>Admin token \
             <input type=password name=token autocomplete=current-password required></label> <button>Log in</button></form>\
             <span class=dim>to search, retry and drop</span>",
        ),
        (May::Change(token), _) => {
            let _ = write!(
                html,
                "<form method=post action=\"/logout\"><input type=hidden name=form_token value=\"{token}\"><button>Log out</button></form>"
            );
        }
    }
    html.push_str("</div>");
}

fn queue(html: &mut String, view: &View, queue: &InQueue) {
    if let Some(trouble) = &queue.trouble {
        let _ = write!(
            html,
            "<section class=\"alarm down\"><h2>The queue cannot be read</h2><p>{}</p><p>{}</p></section>",
            escape(trouble),
            tiles::what_to_do(remedy::of_check("queue", false))
        );
    } else if queue.tenants.is_empty() && queue.held.is_empty() && queue.overview.oldest.is_empty() {
        html.push_str("<h2 id=held>Queue</h2><p class=dim>Nothing waits, nothing is held.</p>");
    } else {
        held::held(html, view, queue);
        waiting::waiting(html, view, queue);
        waiting::tenants(html, view, queue);
    }
}

fn copies(html: &mut String, copies: &[Copied]) {
    if copies.is_empty() {
        return;
    }
    html.push_str("<h2>Copies of Severa</h2>");
    let columns = [("Tenant", "who"), ("Users", "n"), ("Contacts", "n"), ("Projects", "n"), ("State", "why")];
    let rows = copies.iter().map(|copy| {
        let counts = copy.counts.map(|count| number(count as u64));
        let state = std::iter::once(escape(&copy.standing));
        std::iter::once(escape(&copy.tenant)).chain(counts).chain(state).collect()
    });
    table(html, "Copies of Severa", &columns, rows);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::queue::{Counts, Entry, HeldFor, Overview, State, TenantCounts};
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
    }

    /// A held activity.
    pub(in crate::admin) fn entry(id: i64) -> Entry {
        Entry {
            sender: None,
            recipients: Vec::new(),
            id,
            key: crate::activity::Key::from_stored(format!("b3:{id:064}")),
            tenant: "t-1".to_owned(),
            project: None,
            queue_id: Some("4bXyZ30w1Zz9vB".to_owned()),
            state: State::Held,
            attempts: 1,
            accepted_at: now() - 60 * SECOND,
            due: now(),
            reason: Some("backend answered 422".to_owned()),
        }
    }

    fn held_for(reason: &str, count: u64) -> HeldFor {
        let (reason, tenant) = (reason.to_owned(), "t-1".to_owned());
        HeldFor { reason, count, since: now() - 3600 * SECOND, tenants: 1, tenant }
    }

    fn view(queue: InQueue, may: May) -> View {
        View {
            now: now(),
            started: now() - 7 * SECOND,
            checks: vec![Check::new("queue", Ok("writable".to_owned()))],
            queue: Some(queue),
            is_shadow: false,
            emergency: None,
            limits: None,
            paused: Vec::new(),
            copies: Vec::new(),
            names: HashMap::new(),
            steps: Vec::new(),
            refusals: Vec::new(),
            searches: true,
            may,
            refresh: None,
            done: None,
            place: Place::default(),
        }
    }

    fn with_held(held: u64, waiting: u64) -> InQueue {
        let reasons = (held > 0).then(|| held_for("backend answered 422", held.min(10_000)));
        let tenants = (held + waiting > 0).then(|| TenantCounts { tenant: "t-1".to_owned(), waiting, held });
        let oldest =
            (0..waiting.min(10) as i64).map(|id| Entry { state: State::Waiting, ..entry(1000 + id) });
        InQueue {
            counts: Counts { waiting, held, oldest: (waiting > 0).then(|| now() - 60 * SECOND) },
            tenants: tenants.into_iter().collect(),
            held: (0..held.min(50) as i64).map(entry).collect(),
            more_held: held > 50,
            overview: Overview { held_for: reasons.into_iter().collect(), oldest: oldest.collect() },
            trouble: None,
        }
    }

    fn change() -> May {
        May::Change("f".repeat(64))
    }

    #[test]
    fn strangers_words_are_text_wherever_they_stand() {
        let bad = "<img src=x onerror=alert(1)>\"'><script>";
        let text = || bad.to_owned();
        let one = Entry { tenant: text(), queue_id: Some(text()), reason: Some(text()), ..entry(7) };
        let queue = || InQueue {
            counts: Counts { waiting: 1, held: 1, oldest: Some(now()) },
            tenants: vec![TenantCounts { tenant: text(), waiting: 1, held: 1 }],
            held: vec![one.clone()],
            overview: Overview {
                held_for: vec![HeldFor { tenant: text(), ..held_for(bad, 1) }],
                oldest: vec![Entry { state: State::Waiting, ..one.clone() }],
            },
            more_held: true,
            trouble: None,
        };
        let paused = || Paused { tenant: Some(bad.into()), misconfigured: true, reason: text() };
        let refusal = || Refusal {
            at: now(),
            queue_id: text(),
            code: 550,
            reason: "no-user",
            sender: Some(text()),
            recipient: Some(text()),
        };
        let copy = || Copied { tenant: text(), counts: [3, 10, 2], standing: text() };
        let check = |ok| if ok { Ok(text()) } else { Err(text()) };
        for names in [HashMap::new(), HashMap::from([(text(), text())])] {
            for may in [May::Look, May::LogIn, change()] {
                let may_change = matches!(may, May::Change(_));
                let html = render(&View {
                    checks: vec![Check::new("queue", check(true)), Check::new("directory", check(false))],
                    paused: vec![paused()],
                    refusals: vec![refusal()],
                    copies: vec![copy()],
                    names: names.clone(),
                    ..view(queue(), may)
                });
                assert!(
                    !html.contains("<img") && !html.contains("<script") && !html.contains("\"'>"),
                    "{html}"
                );
                assert!(html.contains("&lt;img src=x"));
                assert_eq!(html.contains("value=retry"), may_change);
                assert_eq!(html.contains("href=\"/drop?id=7\""), may_change);
            }
        }
        let html = render(&view(InQueue { trouble: Some(text()), ..InQueue::default() }, May::Look));
        assert!(html.contains("The queue cannot be read") && !html.contains("<img"), "{html}");
        let asked = [
            super::super::change::Question::One(one),
            super::super::change::Question::Group { reason: text(), count: 1, looked_at: 1 },
        ];
        for asked in asked {
            let html = question(&asked, 1, &HashMap::from([(text(), text())]), now(), "f");
            assert!(
                !html.contains("<img") && html.contains("&lt;img") && !html.contains("<script"),
                "{html}"
            );
        }
        assert!(!refused(bad).contains("<img"));
    }

    #[test]
    fn what_is_cut_is_said_and_large_numbers_can_be_read() {
        for (held, waiting, expected) in [
            (0, 0, &["Nothing waits, nothing is held."][..]),
            (
                1,
                0,
                &["1 activity. Nothing", "<p class=dim>1 activity.</p>", "nothing waits", "1 held</title>"],
            ),
            (
                49,
                1,
                &[
                    "49 activities",
                    "49, the oldest first.",
                    "<p class=dim>1 activity.</p>",
                    "1 activity waits",
                ],
            ),
            (50, 10, &["50, the oldest first.", "10, the oldest first."]),
            (99, 11, &["50 of 99, the oldest first.", "10 of 11, the oldest first."]),
            (
                1_000_000,
                1_234_567,
                &[
                    "50 of 1,000,000, the oldest first.",
                    "10 of 1,234,567",
                    "<b>1,000,000</b>",
                    "Counted over the newest 10,000 of 1,000,000",
                    "1,234,567 activities wait",
                ],
            ),
        ] {
            let html = render(&view(with_held(held, waiting), change()));
            for part in expected {
                assert!(html.contains(part), "{held} {waiting} {part}: {html}");
            }
            assert_eq!(html.contains("Counted over"), held > 10_000);
            assert_eq!(html.contains("queue list --state held"), held > 50);
            assert!(html.len() < 200_000, "{}", html.len());
        }
    }

    /// Everything has its buttons on one of the pages.
    #[test]
    fn long_lists_have_pages() {
        let page = |reasons: u64, place: Place| {
            let mut queue = with_held(reasons, 0);
            queue.overview.held_for = (0..reasons).map(|n| held_for(&format!("reason {n}."), 1)).collect();
            render(&View { place, ..view(queue, change()) })
        };
        let [older, newer] = [">Previous<", ">Next<"];
        for (reasons, held, from, shown, expected, missing) in [
            (20, None, 0, 20, &["reason 19."][..], &[older, newer, "reasons."][..]),
            (
                45,
                None,
                0,
                20,
                &["1 to 20 of 45 reasons.", "href=\"/?reasons=20#reasons\">Next<", "reason 0."],
                &[older, "reason 20."],
            ),
            (
                45,
                Some(7),
                20,
                20,
                &[
                    "21 to 40 of 45 reasons.",
                    "href=\"/?held=7#reasons\">Previous<",
                    "href=\"/?held=7&amp;reasons=40#reasons\">Next<",
                    "45 more of 45, the oldest first.",
                    "href=\"/?reasons=20#one-by-one\">The first 50<",
                ],
                &["reason 19.", "reason 40."],
            ),
            (
                45,
                None,
                40,
                5,
                &["41 to 45 of 45 reasons.", "reason 44."],
                &["#reasons\">Next<", "reason 39."],
            ),
            // What was there has gone meanwhile.
            (45, None, 400, 0, &["href=\"/?reasons=380#reasons\">Previous<"], &["reason 44."]),
            (
                60,
                None,
                0,
                20,
                &["50 of 60, the oldest first.", "href=\"/?held=49#one-by-one\">Next 50<"],
                &[],
            ),
        ] {
            let html =
                page(reasons, Place { held: held.map(|id: i64| id.to_string()), reasons: from.to_string() });
            let all =
                expected.iter().map(|part| (part, true)).chain(missing.iter().map(|part| (part, false)));
            for (part, is_there) in all {
                assert_eq!(html.contains(part), is_there, "{reasons} {from} {part}: {html}");
            }
            assert_eq!(html.matches("href=\"/drop?group=").count(), shown);
        }
        for odd in ["", "-1", "x", "99999999999999999999", "'><script>"] {
            let html = page(45, Place { held: Some(odd.to_owned()), reasons: odd.to_owned() });
            assert!(html.contains("reason 0.") && !html.contains("<script"), "{odd}: {html}");
        }
    }

    #[test]
    fn tiles_turn_amber_when_a_person_should_look() {
        let minute = 60 * SECOND;
        for (held, oldest, held_class, waiting_class) in [
            (0, None, "ok", "ok"),
            (1, None, "warn", "ok"),
            (0, Some(Duration::ZERO), "ok", "ok"),
            (0, Some(14 * minute), "ok", "ok"),
            (0, Some(15 * minute), "ok", "warn"),
            (5, Some(100 * minute), "warn", "warn"),
        ] {
            let mut queue = with_held(held, u64::from(oldest.is_some()));
            queue.counts.oldest = oldest.map(|age| now() - age);
            let html = render(&view(queue, May::Look));
            assert!(html.contains(&format!("<li id=tile-held class={held_class}>")), "{held}");
            assert!(html.contains(&format!("<li id=tile-waiting class={waiting_class}>")), "{oldest:?}");
            assert_eq!(html.contains("#activitymilterqueueold"), waiting_class == "warn");
        }
    }

    #[test]
    fn what_is_wrong_stands_first_and_the_title_says_it() {
        let check = |name, ok: bool, is_everybodys| {
            let how = if ok { Ok("fine".to_owned()) } else { Err("broken".to_owned()) };
            Check { is_everybodys, ..Check::new(name, how) }
        };
        for (checks, word, alarms) in [
            (vec![check("queue", true, true)], "ready", &[][..]),
            (
                vec![check("versions", false, false), check("queue", true, true)],
                "ready, but look",
                &["versions"],
            ),
            (
                vec![check("versions", false, false), check("deliveries", false, true)],
                "not ready",
                &["deliveries", "versions"],
            ),
        ] {
            let html = render(&View { checks, ..view(with_held(0, 0), May::Look) });
            assert!(html.contains(&format!("<title>activity-milter: {word}</title>")), "{html}");
            assert!(html.contains(&format!("<h1>activity-milter: {word}</h1>")));
            let found: Vec<_> = html.match_indices("aria-label=\"Alarm: ").map(|(at, _)| at).collect();
            assert_eq!(found.len(), alarms.len());
            for (at, name) in found.iter().zip(alarms) {
                assert!(html[*at..].starts_with(&format!("aria-label=\"Alarm: {name}\"")), "{name}");
                assert!(*at < html.find("class=tiles").unwrap());
            }
        }
    }

    #[test]
    fn a_page_that_comes_again_has_nothing_to_type_into() {
        for may in [May::Look, May::LogIn, change()] {
            let mut view = view(with_held(3, 3), may);
            let once = render(&view);
            assert!(!once.contains("http-equiv") && once.contains("href=\"/?refresh=30\""));
            view.refresh = Some(30);
            let again = render(&view);
            assert!(
                again.contains("<meta http-equiv=refresh content=30>") && again.contains("href=\"/\">Stop")
            );
            let typed = again.matches("<input").count() - again.matches("<input type=hidden").count();
            assert_eq!(typed, 0, "{again}");
        }
    }

    #[test]
    fn what_was_done_is_said_to_who_has_done_it() {
        for (may, is_said) in [(May::Look, false), (May::LogIn, false), (change(), true)] {
            let html = render(&View { done: Some((Action::Drop, 1000)), ..view(with_held(0, 0), may) });
            assert_eq!(html.contains("1,000 activities dropped."), is_said);
        }
    }

    #[test]
    fn modes_and_pauses_are_said() {
        let mut shown = view(with_held(0, 0), May::Look);
        (shown.queue, shown.is_shadow) = (None, true);
        let html = render(&shown);
        assert!(
            html.contains("Direct mode:") && html.contains("Shadow mode:") && !html.contains("tile-held")
        );
        assert!(html.contains("None since the start <time") && html.contains(">7 s ago</time>"), "{html}");
        let paused = |tenant: Option<&str>| Paused {
            tenant: tenant.map(Into::into),
            misconfigured: true,
            reason: "invalid_client".to_owned(),
        };
        for (tenant, is_paused) in [(None, true), (Some("t-1"), true), (Some("t-2"), false)] {
            let html = render(&View { paused: vec![paused(tenant)], ..view(with_held(0, 2), May::Look) });
            assert_eq!(html.contains("paused:</b> invalid_client"), is_paused, "{tenant:?}");
            assert_eq!(html.contains("after the pause"), is_paused);
        }
    }

    #[test]
    fn the_question_names_what_would_go() {
        let names = HashMap::from([("t-1".to_owned(), "My Company Oy".to_owned())]);
        let asked = |asked: &super::super::change::Question, held| question(asked, held, &names, now(), "f");
        let html = asked(&super::super::change::Question::One(entry(7)), 99);
        for part in [
            "My Company Oy",
            "t-1",
            "4bXyZ30w1Zz9vB",
            &format!("b3:{:064}", 7),
            "60 s ago",
            "backend answered 422",
        ] {
            assert!(html.contains(part), "{part}");
        }
        assert!(html.contains("name=id value=\"7\"") && html.contains("href=\"/#held\">Cancel"));
        assert!(!html.contains("name=before"));
        let html = asked(&super::super::change::Question::All, 1_000_000);
        assert!(html.contains("Drop all that is held: 1,000,000 activities?"), "{html}");
        assert!(html.contains("name=before value=\"1790000000000\""));
        let group = |count, looked_at| super::super::change::Question::Group {
            reason: "413".to_owned(),
            count,
            looked_at,
        };
        assert!(asked(&group(40, 99), 99).contains("<h1>Drop 40 activities?</h1>"));
        let html = asked(&group(40, 10_000), 1_000_000);
        assert!(html.contains("<h1>Drop at least 40 activities of the newest held?</h1>"), "{html}");
        assert!(html.contains("among the newest 10,000 of 1,000,000 held"));
    }
}
