//! The status page in a real browser: headless Chromium, driven over WebDriver (W3C) as a person would: by eye, mouse and
//! keyboard, wide and narrow, light and dark.

use crate::support::{
    free_port, wait_for,
    world::{Options, Process, World, eml},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use std::{fs, path::PathBuf, process::Command};

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

    /// A picture of the page, in target/pages, for people to look at.
    fn picture(&self, name: &str) {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("pages");
        fs::create_dir_all(&directory).unwrap();
        let picture = self.call("GET", "/screenshot", &Value::Null);
        fs::write(directory.join(name), STANDARD.decode(picture.as_str().unwrap()).unwrap()).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.call("DELETE", "", &Value::Null);
    }
}

const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";

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
    let held = || {
        let (_, out, _) = world.command(&["queue", "list", "--state", "held", "--json"]);
        serde_json::from_str::<Vec<Value>>(&out).unwrap().len()
    };
    wait_for("five held", || (held() == 5).then_some(()));

    let browser = Browser::start();
    let url = format!("http://127.0.0.1:{}/", world.admin_port);
    browser.size(1000, 1300);
    browser.open(&url);
    let text = browser.text();
    for part in [
        "activity-milter: ready",
        "5 recorded",
        "4 refused or deferred",
        "1 of other people passed",
        "no-subject",
        "ambiguous-from",
        "no-such-tenant",
        "anna@mycompany.test",
        "backend answered 422",
        "Log in",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("Meeting on Friday"), "nothing of a message's content");
    assert_eq!(browser.all("button[value=drop]").len(), 0);
    // By keyboard alone: to the field, the token, Enter.
    for _ in 0..20 {
        browser.keys(TAB);
        if browser.run("return document.activeElement.name") == "token" {
            break;
        }
    }
    browser.keys("the-admin-token");
    browser.keys(ENTER);
    wait_for("the buttons", || (browser.all("button[value=drop]").len() == 5).then_some(()));
    // Each button says what it is for, also to a screen reader.
    let label = browser.run("return document.querySelector('button[value=drop]').getAttribute('aria-label')");
    assert!(label.as_str().unwrap().starts_with("Drop b3:"), "{label}");
    browser.picture("wide-light.png");
    browser.color_scheme("dark");
    browser.picture("wide-dark.png");
    let background = browser.run("return getComputedStyle(document.body).backgroundColor");
    assert_eq!(background, "rgb(20, 23, 26)");
    // In a narrow window nothing sticks out: wide tables scroll by themselves.
    browser.size(360, 800);
    browser.picture("narrow-dark.png");
    let wide =
        browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth");
    assert_eq!(wide, 0);
    browser.color_scheme("light");
    // By mouse: drop one.
    browser.click("button[value=drop]");
    wait_for("four held", || (held() == 4).then_some(()));
    wait_for("the page", || (browser.all("button[value=drop]").len() == 4).then_some(()));
    // The backend is repaired: retry all.
    world.sink = None;
    world.start_sink_with(&[]);
    browser.click("input[name=id][value=all] ~ button");
    world.wait_for_activities(4);
    browser.open(&url);
    assert!(browser.text().contains("Nothing waits, nothing is held."), "{}", browser.text());
    // No script is allowed, and none is there: the console has nothing to complain of.
    assert_eq!(browser.all("script").len(), 0);
    browser.open(&url);
    let complaints = browser.complaints();
    // Chromium asks for an icon by itself, and has advice for programmers.
    let is_ours = |said: &&Value| said["level"] != "DEBUG" && !said.to_string().contains("favicon");
    let complaints: Vec<_> = complaints.iter().filter(is_ours).collect();
    assert!(complaints.is_empty(), "{complaints:?}");
    browser.click("form[action='/logout'] button");
    wait_for("the login", || (browser.all("input[name=token]").len() == 1).then_some(()));
}
