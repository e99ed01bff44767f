//! The status page in a real browser: headless Chromium, driven over WebDriver (W3C) as a person would: by eye, mouse and
//! keyboard, wide and narrow, light and dark.

use crate::support::{
    free_port, wait_for,
    world::{Options, Process, World, eml},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A browser window.
struct Browser {
    _driver: Process,
    base: String,
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
    _profile: tempfile::TempDir,
}

impl Browser {
    fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={port}")).env("HOME", profile.path());
        let driver = Process::start(&mut command, &profile.path().join("driver.log"));
        wait_for("chromedriver", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut browser = Self {
            _driver: driver,
            base: format!("http://127.0.0.1:{port}"),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            _profile: profile,
        };
        // No sandbox, because tests run as root; nobody but us is on the page.
        let args = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-proxy-server",
            "--hide-scrollbars",
            "--disable-lcd-text",
        ];
        let options = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"args": args},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let session = browser.call("POST", "/session", &options);
        browser.base = format!("{}/session/{}", browser.base, session["sessionId"].as_str().unwrap());
        browser
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let request = self.http.request(method.parse().unwrap(), format!("{}{path}", self.base));
        let request = if method == "POST" { request.json(body) } else { request };
        let answer =
            self.runtime.block_on(async { request.send().await.unwrap().json::<Value>().await.unwrap() });
        assert!(answer["value"].get("error").is_none(), "{path}: {answer}");
        answer["value"].clone()
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        self.call("POST", path, body)
    }

    fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// The elements that a CSS selector finds.
    fn all(&self, selector: &str) -> Vec<String> {
        let found = self.post("/elements", &json!({"using": "css selector", "value": selector}));
        let id = |element: &Value| {
            element.as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned()
        };
        found.as_array().unwrap().iter().map(id).collect()
    }

    fn one(&self, selector: &str) -> String {
        self.all(selector).into_iter().next().unwrap_or_else(|| panic!("no {selector} in {}", self.text()))
    }

    fn click(&self, selector: &str) {
        self.post(&format!("/element/{}/click", self.one(selector)), &json!({}));
    }

    fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({"script": script, "args": []}))
    }

    /// What the browser's console complains of since the last time.
    fn complaints(&self) -> Vec<Value> {
        self.call("POST", "/se/log", &json!({"type": "browser"})).as_array().unwrap().clone()
    }

    fn text(&self) -> String {
        self.run("return document.body.innerText").as_str().unwrap_or_default().to_owned()
    }

    /// Types on whatever has the focus.
    fn keys(&self, keys: &str) {
        let actions: Vec<_> = keys
            .chars()
            .flat_map(|key| {
                [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})]
            })
            .collect();
        self.post("/actions", &json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}));
    }

    fn size(&self, width: u32, height: u32) {
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            &json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}),
        );
    }

    fn color_scheme(&self, value: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": value}]});
        self.cdp("Emulation.setEmulatedMedia", &features);
    }

    fn cdp(&self, command: &str, params: &Value) {
        self.post("/goog/cdp/execute", &json!({"cmd": command, "params": params}));
    }

    /// A picture of the page, in target/pages, for people to look at; with `UPDATE_SCREENSHOTS=1` also in docs/, if it
    /// is one of those.
    fn picture(&self, name: &str) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("pages");
        fs::create_dir_all(&directory).unwrap();
        let picture = self.call("GET", "/screenshot", &Value::Null);
        let picture = STANDARD.decode(picture.as_str().unwrap()).unwrap();
        fs::write(directory.join(name), &picture).unwrap();
        if std::env::var_os("UPDATE_SCREENSHOTS").is_some() && name.starts_with("status-page") {
            assert!(picture.len() < 150_000, "{name} has {} bytes", picture.len());
            fs::write(root.join("docs").join(name), picture).unwrap();
        }
    }

    /// What is wrong with how the page looks: it sticks out, an id is broken, a text can hardly be read.
    fn faults(&self) -> Vec<String> {
        let found = self.run(FAULTS);
        found.as_array().unwrap().iter().map(|fault| fault.as_str().unwrap().to_owned()).collect()
    }

    fn title(&self) -> String {
        self.run("return document.title").as_str().unwrap().to_owned()
    }
}

/// Contrast as WCAG 2.2 has it.
const FAULTS: &str = r#"
const faults = [], page = document.scrollingElement;
if (page.scrollWidth > innerWidth) faults.push(`sticks out by ${page.scrollWidth - innerWidth}`);
for (const code of document.querySelectorAll('main code'))
  if (!code.closest('.doc') && code.getClientRects().length > 1) faults.push(`broken: ${code.innerText}`);
const channels = color => color.match(/[\d.]+/g).map(Number);
const light = color => { const [r, g, b] = channels(color).map(c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const under = element => { for (; element; element = element.parentElement) {
  const color = getComputedStyle(element).backgroundColor; if (channels(color)[3] !== 0) return color; } return 'rgb(255, 255, 255)'; };
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const seen = new Set();
for (let node; (node = walker.nextNode());) {
  const element = node.parentElement;
  if (!node.data.trim() || element.closest('style,svg')) continue;
  const pair = [getComputedStyle(element).color, under(element)], [a, b] = pair.map(light);
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (contrast < 4.5 && !seen.has(pair.join())) { seen.add(pair.join()); faults.push(`contrast ${contrast.toFixed(2)}: ${node.data.trim()}`); }
}
for (const field of document.querySelectorAll('input:not([type=hidden])'))
  if (!field.closest('label')) faults.push(`no label: ${field.name}`);
for (const button of document.querySelectorAll('button,.button'))
  if (innerWidth < 500 && button.getBoundingClientRect().height < 44) faults.push(`small: ${button.innerText}`);
return faults;
"#;

impl Drop for Browser {
    fn drop(&mut self) {
        self.call("DELETE", "", &Value::Null);
    }
}

const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";

/// How many are held.
fn held(world: &World) -> usize {
    let (_, out, _) = world.command(&["queue", "list", "--state", "held", "--json"]);
    serde_json::from_str::<Vec<Value>>(&out).unwrap().len()
}

#[test]
fn an_administrator_reads_logs_in_retries_and_drops() {
    let token = tempfile::NamedTempFile::new().unwrap();
    fs::write(token.path(), "the-admin-token\n").unwrap();
    let mut world = World::with(Options {
        lmtp: true,
        tcp: true,
        http_directory: true,
        sink: vec!["--status".to_owned(), "422".to_owned()],
        config: vec![("admin", format!("token_file = \"{}\"", token.path().display()))],
        ..Options::default()
    });
    let mut smtp = world.smtp();
    let my = "mycompany@severamail.test";
    for name in ["plain", "html_only", "swedish_subject", "nested_message", "customer_reply"] {
        assert!(smtp.mail("anna@mycompany.test", &[my], &eml(name)).1.starts_with("250"));
    }
    for name in ["no_subject", "blank_subject", "two_from_fields"] {
        assert!(smtp.mail("anna@mycompany.test", &[my], &eml(name)).1.starts_with("550"));
    }
    smtp.mail("anna@mycompany.test", &["nobody@severamail.test"], &eml("plain"));
    smtp.mail("carl@else.test", &["dora@elsewhere.test"], &eml("someone_else"));
    wait_for("five held", || (held(&world) == 5).then_some(()));

    // Two of them for another reason.
    let database = rusqlite::Connection::open(world.root.join("queue/queue.db")).unwrap();
    let hold_two_for = |reason: &str| {
        let two = "UPDATE item SET reason = ?1 WHERE id IN (SELECT id FROM item WHERE state = 1 ORDER BY id DESC LIMIT 2)";
        assert_eq!(database.execute(two, [reason]), Ok(2));
    };
    hold_two_for("backend answered 413: offer.pdf is too large");
    // And one waits, because the backend has a bad time.
    world.sink = None;
    world.start_sink_with(&["--status".to_owned(), "503".to_owned()]);
    assert!(
        smtp.mail("anna@mycompany.test", &["1001.mycompany@severamail.test"], &eml("japanese_subject"))
            .1
            .starts_with("250")
    );
    wait_for("an attempt in vain", || {
        let (_, out, _) = world.command(&["queue", "list", "--state", "waiting", "--json"]);
        out.contains("backend answered 503").then_some(())
    });

    let browser = Browser::start();
    let url = format!("http://127.0.0.1:{}/", world.admin_port);
    browser.size(1000, 960);
    browser.open(&url);
    let text = browser.text();
    for part in [
        "activity-milter: ready",
        "6 recorded",
        "4 refused or deferred",
        "1 of other people passed",
        "no-subject",
        "ambiguous-from",
        "no-such-tenant",
        "anna@mycompany.test",
        "My Company Oy",
        "backend answered 422",
        "backend answered 503",
        "backend answered 413",
        "Repair what the reason names",
        "Log in",
        "As of 20",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("Meeting on Friday"), "nothing of a message's content");
    assert_eq!(browser.title(), "activity-milter: ready, 5 held");
    assert_eq!(browser.all("a[href^='/drop'], button[value=retry]").len(), 0);
    // By keyboard alone: to the field, the token, Enter.
    for _ in 0..20 {
        browser.keys(TAB);
        if browser.run("return document.activeElement.name") == "token" {
            break;
        }
    }
    browser.keys("the-admin-token");
    browser.keys(ENTER);
    let rows = || browser.all("a[href^='/drop?id=']:not([href$=all])").len();
    wait_for("the buttons", || (rows() == 5).then_some(()));
    // Each button says what it is for, also to a screen reader.
    let label =
        "return document.querySelector(\"a[href^='/drop?id=']:not([href$=all])\").getAttribute('aria-label')";
    let label = browser.run(label);
    assert!(label.as_str().unwrap().starts_with("Drop b3:"), "{label}");
    // What is held turns its tile amber; what waits is young.
    let edge = |tile: &str| {
        browser
            .run(&format!("return getComputedStyle(document.querySelector('#tile-{tile}')).borderTopColor"))
    };
    assert_eq!([edge("held"), edge("waiting")], ["rgb(224, 138, 0)", "rgb(213, 217, 222)"]);
    let none: [String; 0] = [];
    assert_eq!(browser.faults(), none);
    browser.picture("status-page.png");
    browser.color_scheme("dark");
    assert_eq!(browser.run("return getComputedStyle(document.body).backgroundColor"), "rgb(20, 23, 26)");
    assert_eq!(browser.faults(), none);
    browser.picture("status-page-dark.png");
    // On a phone nothing sticks out: rows are cards, and their buttons stand before their words.
    for scheme in ["dark", "light"] {
        browser.color_scheme(scheme);
        browser.size(360, 800);
        browser.open(&url);
        assert_eq!(browser.faults(), none);
        browser.picture(&format!("narrow-{scheme}.png"));
    }
    browser.size(360, 1300);
    browser.run("document.querySelector('#held').scrollIntoView()");
    browser.picture("status-page-phone.png");
    let order = browser.run(
        "return [...document.querySelectorAll('tr:has(button)')].map(row => {
             const top = element => element.getBoundingClientRect().top;
             const cells = [...row.querySelectorAll('td')], buttons = cells.filter(cell => cell.querySelector('button'));
             return buttons.length == 1 && cells.every(cell => cell == buttons[0] || top(cell) > top(buttons[0]));
         })",
    );
    assert_eq!(order, json!([true, true, true, true, true, true, true]), "two reasons, five rows");
    // Words that are hard to show, and an id that is.
    let hard = format!("backend answered 413: <b>\"{}\"</b> is too large", "x".repeat(120));
    hold_two_for(&hard);
    let long = "4bXyZ30w1Zz9vB".repeat(6);
    let set = "UPDATE item SET tenant = tenant, activity = json_set(activity, '$.envelope.queue_id', ?1) WHERE state = 1";
    assert_eq!(database.execute(set, [&long]), Ok(5));
    for width in [360, 700, 1000, 2000] {
        browser.size(width, 800);
        browser.open(&url);
        assert!(browser.text().contains("<b>\"xxx") && browser.text().contains(&long));
        assert_eq!(browser.faults(), none, "{width}");
    }
    browser.size(360, 1300);
    browser.picture("narrow-hard.png");
    // What waits for twenty minutes is amber too.
    let aged = database.execute("UPDATE item SET accepted_at = accepted_at - 1200000 WHERE state = 0", []);
    assert_eq!(aged, Ok(1));
    browser.open(&url);
    assert_eq!(edge("waiting"), "rgb(224, 138, 0)");
    assert!(browser.text().contains("20 min") && browser.text().contains("If deliveries are paused"));

    // Dropping asks first; cancel changes nothing.
    browser.click("a[href^='/drop?id=']:not([href$=all])");
    let asked = browser.text();
    for part in
        ["Drop this activity?", "My Company Oy", "t-1", "b3:", "ago", "backend answered 422", "Cancel"]
    {
        assert!(asked.contains(part), "{part}: {asked}");
    }
    assert_eq!(browser.faults(), none);
    browser.picture("narrow-drop.png");
    browser.click("a[href='/#held']");
    assert_eq!((rows(), held(&world)), (5, 5));
    browser.size(1000, 1500);
    browser.click("a[href^='/drop?id=']:not([href$=all])");
    assert_eq!(browser.faults(), none);
    browser.picture("wide-drop.png");
    browser.click("button[value=drop]");
    wait_for("four held", || (held(&world) == 4).then_some(()));
    wait_for("the page", || (rows() == 4).then_some(()));
    assert!(browser.text().contains("1 activity dropped."), "{}", browser.text());
    // A group goes together, and nothing else.
    let group = format!("a[href='/drop?group={}']", blake3::hash(hard.as_bytes()).to_hex());
    browser.click(&group);
    assert!(
        browser.text().contains("Drop 2 activities?") && browser.text().contains("413"),
        "{}",
        browser.text()
    );
    browser.click("button[value=drop]");
    wait_for("two held", || (held(&world) == 2).then_some(()));
    wait_for("the page", || (rows() == 2).then_some(()));
    assert!(browser.text().contains("2 activities dropped."));
    assert!(!browser.text().contains("413"), "{}", browser.text());
    // What became of a mail is a click away.
    browser.open(&url);
    browser.click("td.id a[href^='/trace?q=b3']");
    let text = browser.text();
    assert!(text.contains("recorded") && text.contains("backend answered 422"), "{text}");
    assert_eq!(browser.faults(), none);
    browser.size(360, 1000);
    assert_eq!(browser.faults(), none);
    browser.picture("narrow-trace.png");
    // And so is what to do.
    browser.open(&url);
    browser.click("a[href='/docs/operations#activitymilterheld']");
    assert_eq!(browser.run("return document.querySelector(':target').innerText"), "ActivityMilterHeld");
    assert_eq!(browser.faults(), none);
    browser.picture("narrow-docs.png");
    browser.size(1000, 1500);
    // A page that comes again by itself has nothing to type into, and does come again.
    browser.open(&format!("{url}?refresh=5"));
    let as_of = || browser.run("return document.querySelector('time').dateTime");
    let first = as_of();
    assert_eq!(browser.all("input:not([type=hidden])").len(), 0);
    wait_for("the page to come again", || (as_of() != first).then_some(()));

    // The backend is repaired: retry all.
    world.sink = None;
    world.start_sink_with(&[]);
    browser.open(&url);
    browser.click("input[name=id][value=all] ~ button");
    let (_, out, _) = world.command(&["queue", "retry", "--all"]);
    // Those that the page has sent again may be under way.
    assert!(out.contains(" retried"), "{out}");
    world.wait_for_activities(3);
    browser.open(&url);
    assert!(browser.text().contains("Nothing waits, nothing is held."), "{}", browser.text());
    assert_eq!(browser.faults(), none);
    // No script is allowed, and none is there: the console has nothing to complain of.
    assert_eq!(browser.all("script").len(), 0);
    let complaints = browser.complaints();
    // Chromium has advice for programmers.
    let complaints: Vec<_> = complaints.iter().filter(|said| said["level"] != "DEBUG").collect();
    assert!(complaints.is_empty(), "{complaints:?}");
    browser.click("form[action='/logout'] button");
    wait_for("the login", || (browser.all("input[name=token]").len() == 1).then_some(()));
}

#[test]
fn what_is_wrong_is_seen_first_and_leads_to_what_to_do() {
    let mut world =
        World::with(Options { sink: vec!["--status".to_owned(), "401".to_owned()], ..Options::default() });
    let browser = Browser::start();
    let url = format!("http://127.0.0.1:{}/", world.admin_port);
    browser.size(360, 900);
    browser.open(&url);
    assert_eq!(browser.title(), "activity-milter: ready");
    for part in ["Nothing waits, nothing is held.", "None since the start", "s ago", "admin.token_file"] {
        assert!(browser.text().contains(part), "{part}: {}", browser.text());
    }
    assert_eq!(browser.all(".alarm, .warn").len(), 0);
    // The backend takes no credentials, and a new configuration is wrong.
    let mail = world.mail("anna@mycompany.test", &["mycompany@severamail.test"], &eml("plain"));
    assert!(mail.1.starts_with("250"), "{mail:?}");
    let config = fs::read_to_string(world.config_path()).unwrap();
    fs::write(world.config_path(), config.replace("[queue]", "[quue]")).unwrap();
    world.milter().signal("HUP");
    let headings = || {
        let headings =
            browser.run("return [...document.querySelectorAll('.alarm h2')].map(of => of.innerText)");
        headings.as_array().unwrap().iter().map(|of| of.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    wait_for("two alarms", || {
        browser.open(&url);
        // The activity is under way again for a moment, when it is a probe.
        let is_seen = headings() == ["deliveries: not ok", "versions: not ok"];
        (is_seen && browser.text().contains("after the pause")).then_some(())
    });
    assert_eq!(browser.title(), "activity-milter: not ready");
    let text = browser.text();
    for part in ["Repair backend.url or the credential", "the old one stays in use", "paused:"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // Before everything else but the head of the page, and readable.
    let top = |what: &str| {
        let top = format!("return document.querySelector('{what}').getBoundingClientRect().top");
        browser.run(&top).as_f64().unwrap()
    };
    assert!(top(".alarm") < top(".tiles") && top(".tiles") < top("#waiting"));
    let none: [String; 0] = [];
    for (scheme, width) in [("light", 360), ("dark", 360), ("dark", 1000), ("light", 1000)] {
        browser.color_scheme(scheme);
        browser.size(width, 900);
        assert_eq!(browser.faults(), none, "{scheme} {width}");
        browser.picture(&format!("alarm-{scheme}-{width}.png"));
    }
    for (place, heading) in [
        ("#activitymilterbackendrefusesus", "ActivityMilterBackendRefusesUs"),
        ("#activitymilternewversionrefused", "ActivityMilterNewVersionRefused"),
    ] {
        browser.open(&url);
        browser.click(&format!(".alarm a[href='/docs/operations{place}']"));
        assert_eq!(browser.run("return document.querySelector(':target').innerText"), heading);
    }
    browser.open(&url);
    let complaints = browser.complaints();
    let complaints: Vec<_> = complaints.iter().filter(|said| said["level"] != "DEBUG").collect();
    assert!(complaints.is_empty(), "{complaints:?}");
}
