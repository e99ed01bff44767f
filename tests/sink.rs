//! The reference backend keeps the contract: the same key once, files checked, problem details for what is wrong.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/http.rs"]
mod http;

use activity_milter::sink::{Settings, run};
use reqwest::{
    Client, Response,
    multipart::{Form, Part},
};
use rusqlite::{Connection, params};
use serde_json::{Value, json};
use std::time::Duration;

struct Sink {
    url: String,
    client: Client,
    directory: tempfile::TempDir,
}

impl Sink {
    async fn start(settings: Settings) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/activities", listener.local_addr().unwrap());
        let settings = Settings { data: directory.path().to_owned(), ..settings };
        tokio::spawn(async move { run(listener, settings, std::future::pending()).await.unwrap() });
        Self { url, client: Client::new(), directory }
    }

    async fn post(&self, key: &str, form: Form) -> Response {
        let request = self.client.post(&self.url).multipart(form);
        let request = if key.is_empty() { request } else { request.header("Idempotency-Key", key) };
        request.send().await.unwrap()
    }

    async fn get(&self, query: &str) -> Response {
        self.client.get(format!("{}{query}", self.url)).send().await.unwrap()
    }

    async fn all(&self) -> Vec<Value> {
        let url = self.url.clone();
        tokio::task::spawn_blocking(move || http::activities(&url)).await.unwrap()
    }

    /// As if this had been received: the JSON of activities, each a thousand times faster than by a request.
    async fn store(&self, activities: impl Iterator<Item = Value>) {
        self.get("?limit=0").await; // it is there
        let mut database = Connection::open(self.directory.path().join("sink.db")).unwrap();
        let store = database.transaction().unwrap();
        for activity in activities {
            let row = params![activity["key"].as_str().unwrap(), activity.to_string()];
            store.execute("INSERT INTO activity (key, text) VALUES (?1, ?2)", row).unwrap();
        }
        store.commit().unwrap();
    }

    /// The page with the newest.
    async fn page(&self) -> String {
        self.client.get(self.url.replace("v1/activities", "")).send().await.unwrap().text().await.unwrap()
    }
}

/// The numbers in the keys of a page, and the query of the next one.
async fn read(answer: Response) -> (Vec<usize>, Option<String>) {
    assert_eq!(answer.status().as_u16(), 200);
    let link = answer.headers().get("link").map(|link| format!("Link: {}", link.to_str().unwrap()));
    let page: Vec<Value> = answer.json().await.unwrap();
    let number = |activity: &Value| activity["key"].as_str().unwrap()[1..].parse().unwrap();
    (page.iter().map(number).collect(), link.and_then(|link| http::next_page(&link)))
}

fn activity(key: &str, files: Value) -> Value {
    json!({
        "key": key, "schema": 1, "tenant": {"id": "t", "prefix": "t"}, "activity_type": "Email", "subject": "s",
        "sent_at": "2026-11-23T18:00:00Z", "received_at": "2026-11-23T18:00:00Z",
        "owner": {"user_id": "u", "address": "a@x.test", "name": null}, "participants": [], "customer": null,
        "project": null, "text": "<script>", "html": null, "message_id": null, "in_reply_to": [], "references": [],
        "files": files, "added_later": {"unknown": true},
        "envelope": {"sender": null, "recipients": [], "queue_id": null, "client": null, "login": null, "intake": "milter"}
    })
}

fn file(size: u64, sha256: &str) -> Value {
    json!([{"part": "file-1", "name": "a.txt", "content_type": "text/plain", "size": size, "sha256": sha256,
        "inline": false, "content_id": null}])
}

const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

fn form(activity: &Value) -> Form {
    Form::new().part("activity", Part::text(activity.to_string()))
}

#[tokio::test]
async fn the_same_key_gets_the_first_answer() {
    let sink = Sink::start(Settings::default()).await;
    let first = activity("k1", file(5, HELLO));
    let with_file = || form(&first).part("file-1", Part::bytes(&b"hello"[..]).file_name("a.txt"));
    let answer = sink.post("\"k1\"", with_file()).await;
    assert_eq!((answer.status().as_u16(), answer.headers().get("idempotent-replayed")), (201, None));
    let body: Value = answer.json().await.unwrap();
    let mut other = first.clone();
    other["subject"] = json!("another");
    let again = sink.post("\"k1\"", form(&other)).await;
    assert_eq!(
        (again.status().as_u16(), again.headers()["idempotent-replayed"].as_bytes()),
        (201, &b"true"[..])
    );
    assert_eq!(again.json::<Value>().await.unwrap(), body);
    let all = sink.all().await;
    assert_eq!(all.len(), 1);
    let mut expected = first;
    expected["files"][0]["verified"] = json!(true);
    assert_eq!(all[0], expected, "as received, unknown fields too");
    let one: Value = sink.client.get(format!("{}/k1", sink.url)).send().await.unwrap().json().await.unwrap();
    assert_eq!(one, expected);
    let page = sink.page().await;
    assert!(page.contains("&lt;script&gt;") && !page.contains("<script>"));
}

#[tokio::test]
async fn what_is_wrong_is_refused_and_leaves_nothing() {
    let sink = Sink::start(Settings::default()).await;
    let hello = || Part::bytes(&b"hello"[..]);
    let good = activity("k", file(5, HELLO));
    for (what, key, form, status) in [
        ("no key", "", form(&good), 400),
        ("a key without quotes", "k", form(&good), 400),
        ("another key", "\"other\"", form(&good), 422),
        ("no activity first", "\"k\"", Form::new().part("file-1", hello()), 400),
        ("no JSON", "\"k\"", Form::new().part("activity", Part::text("{")), 422),
        ("a missing file", "\"k\"", form(&good), 422),
        ("an unannounced file", "\"k\"", form(&activity("k", json!([]))).part("file-1", hello()), 422),
        ("a file twice", "\"k\"", form(&good).part("file-1", hello()).part("file-1", hello()), 422),
        ("a wrong size", "\"k\"", form(&activity("k", file(4, HELLO))).part("file-1", hello()), 422),
        (
            "a wrong digest",
            "\"k\"",
            form(&activity("k", file(5, &"0".repeat(64)))).part("file-1", hello()),
            422,
        ),
    ] {
        let answer = sink.post(key, form).await;
        assert_eq!(answer.status().as_u16(), status, "{what}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{what}");
        let problem: Value = answer.json().await.unwrap();
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{what}");
    }
    assert_eq!(sink.all().await, Vec::<Value>::new());
    let plain =
        sink.client.post(&sink.url).header("Idempotency-Key", "\"k\"").body("x").send().await.unwrap();
    assert_eq!(plain.status().as_u16(), 415);
}

#[tokio::test]
async fn one_key_at_a_time() {
    let sink = Sink::start(Settings { delay: Duration::from_millis(1), ..Settings::default() }).await;
    // The first request stands still in the middle of its body.
    let (sender, body) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    let start = "--b\r\nContent-Disposition: form-data; name=\"activity\"\r\n\r\n";
    sender.send(Ok(start.as_bytes().to_vec())).await.unwrap();
    let pieces =
        futures_util::stream::unfold(body, |mut body| async move { body.recv().await.map(|p| (p, body)) });
    let request = sink
        .client
        .post(&sink.url)
        .header("Idempotency-Key", "\"k\"")
        .header("Content-Type", "multipart/form-data; boundary=b")
        .body(reqwest::Body::wrap_stream(pieces));
    let first = tokio::spawn(request.send());
    let good = activity("k", json!([]));
    let conflict = async {
        loop {
            // Until the first has arrived, an empty form is simply a bad one.
            let answer = sink.post("\"k\"", Form::new().text("x", "y")).await.status().as_u16();
            if answer == 409 {
                break;
            }
            assert_eq!(answer, 400);
        }
    };
    tokio::time::timeout(Duration::from_secs(20), conflict).await.unwrap();
    sender.send(Ok(format!("{good}\r\n--b--\r\n").into_bytes())).await.unwrap();
    drop(sender);
    assert_eq!(first.await.unwrap().unwrap().status().as_u16(), 201);
}

#[tokio::test]
async fn switches_and_token() {
    let sink = Sink::start(Settings { status: Some(503), ..Settings::default() }).await;
    assert_eq!(sink.post("\"k\"", form(&activity("k", json!([])))).await.status().as_u16(), 503);
    assert_eq!(sink.all().await.len(), 0);

    let sink = Sink::start(Settings { hang: true, ..Settings::default() }).await;
    let hangs =
        tokio::time::timeout(Duration::from_millis(300), sink.post("\"k\"", form(&activity("k", json!([])))));
    assert!(hangs.await.is_err());

    let sink = Sink::start(Settings { fail_rate: 0.5, ..Settings::default() }).await;
    let mut lost_answers = 0;
    for i in 0..60 {
        let good = activity(&format!("k{i}"), json!([]));
        loop {
            let answer = sink.post(&format!("\"k{i}\""), form(&good)).await;
            lost_answers += i32::from(answer.headers().contains_key("idempotent-replayed"));
            if answer.status().as_u16() == 201 {
                break;
            }
        }
    }
    assert_eq!(sink.all().await.len(), 60);
    assert!(lost_answers > 0, "some were stored and answered 503");
    assert_eq!(read(sink.get("?limit=2").await).await, (vec![58, 59], None), "newest last");

    let sink = Sink::start(Settings { token: Some("secret".to_owned()), ..Settings::default() }).await;
    assert_eq!(sink.post("\"k\"", form(&activity("k", json!([])))).await.status().as_u16(), 401);
    for (given, status) in [
        ("Bearer secret", 200),
        ("Bearer secreT", 401),
        ("Bearer Secret", 401),
        ("Bearer secre", 401),
        ("Bearer secrets", 401),
        ("Bearer ", 401),
        ("secret", 401),
        ("Basic secret", 401),
    ] {
        let answer = sink.client.get(&sink.url).header("Authorization", given).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{given:?}");
    }
}

#[tokio::test]
async fn a_page_has_a_thousand_activities() {
    let sink = Sink::start(Settings::default()).await;
    assert_eq!(read(sink.get("").await).await, (vec![], None));
    let keys = |numbers: std::ops::Range<usize>| numbers.map(|n| activity(&format!("k{n}"), json!([])));
    sink.store(keys(0..1000)).await;
    assert_eq!(read(sink.get("").await).await, ((0..1000).collect(), None), "no page follows that is empty");
    sink.store(keys(1000..2001)).await;
    let (first, next) = read(sink.get("").await).await;
    assert_eq!(first, (0..1000).collect::<Vec<_>>());
    let (second, next) = read(sink.get(&next.unwrap()).await).await;
    assert_eq!(second, (1000..2000).collect::<Vec<_>>());
    assert_eq!(read(sink.get(&next.unwrap()).await).await, (vec![2000], None));
    assert_eq!(sink.all().await.len(), 2001, "all pages");
    for (limit, from) in [(0, 2001), (1, 2000), (1000, 1001), (1001, 1001), (u64::MAX, 1001)] {
        let newest = read(sink.get(&format!("?limit={limit}")).await).await;
        assert_eq!(newest, ((from..2001).collect(), None), "the newest {limit}, but no more than a page");
    }
    for query in
        ["?after=x", "?after=-1", "?after=1.5", "?after=", "?limit=x", "?limit=-1", "?after=1&limit=1"]
    {
        let answer = sink.get(query).await;
        assert_eq!(answer.status().as_u16(), 400, "{query}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{query}");
        let problem: Value = answer.json().await.unwrap();
        assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{query}");
    }
    assert_eq!(read(sink.get(&format!("?after={}", u64::MAX)).await).await, (vec![], None));
}

#[tokio::test]
async fn a_page_has_four_mebibytes_or_one_activity() {
    const MIB: usize = 1024 * 1024;
    let sink = Sink::start(Settings::default()).await;
    let sized = |(number, bytes): (usize, usize)| {
        let mut activity = activity(&format!("k{number}"), file(5, HELLO));
        activity["html"] = json!("");
        activity["html"] = json!("h".repeat(bytes - activity.to_string().len()));
        activity
    };
    // Two fit, with a byte more they do not, and what is larger than a page has one of its own.
    let sizes = [2 * MIB, 2 * MIB, 2 * MIB, 2 * MIB + 1, 4 * MIB + 1, 1024];
    sink.store(sizes.into_iter().enumerate().map(sized)).await;
    let (mut pages, mut next) = (Vec::new(), Some(String::new()));
    while let Some(query) = next {
        let (page, more) = read(sink.get(&query).await).await;
        pages.push(page);
        next = more;
    }
    assert_eq!(pages, [vec![0, 1], vec![2], vec![3], vec![4], vec![5]]);
    assert_eq!(read(sink.get("?limit=6").await).await, (vec![5], None), "the newest that fit");
    let all = sink.all().await;
    assert!(all.len() == 6 && all.iter().all(|activity| activity["files"][0]["verified"] == true));
    assert!(all.iter().all(|activity| activity["added_later"]["unknown"] == true));
}

#[tokio::test]
async fn the_page_to_look_at_is_small_whatever_was_received() {
    let sink = Sink::start(Settings::default()).await;
    let long = |number| {
        let mut activity = activity(&format!("k{number}"), json!([]));
        activity["html"] = json!("HTML".repeat(10_000));
        activity["subject"] = json!("<".repeat(10_000));
        activity["text"] = json!("ä&".repeat(10_000));
        activity["participants"] = json!(vec![
            json!({"kind": "external", "id": null, "customer_id": null, "address": "x@x.test", "name": null, "field": "to"});
            1000
        ]);
        activity
    };
    sink.store((0..60).map(long)).await;
    let page = sink.page().await;
    assert_eq!(page.matches("<article>").count(), 50);
    let at = |key: &str| page.find(&format!("<small>{key}</small>"));
    assert!(at("k59").unwrap() < at("k10").unwrap() && at("k9").is_none(), "newest first");
    assert!(page.contains("x@x.test (external), x@x.test") && !page.contains("HTML"));
    assert!(page.len() < 50 * 50_000, "{} bytes", page.len());
}
