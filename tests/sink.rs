//! The reference backend keeps the contract: the same key once, files checked, problem details for what is wrong.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

use activity_milter::sink::{Settings, run};
use reqwest::{
    Client, Response,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use std::time::Duration;

struct Sink {
    url: String,
    client: Client,
    _directory: tempfile::TempDir,
}

impl Sink {
    async fn start(settings: Settings) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/activities", listener.local_addr().unwrap());
        let settings = Settings { data: directory.path().to_owned(), ..settings };
        tokio::spawn(async move { run(listener, settings, std::future::pending()).await.unwrap() });
        Self { url, client: Client::new(), _directory: directory }
    }

    async fn post(&self, key: &str, form: Form) -> Response {
        let request = self.client.post(&self.url).multipart(form);
        let request = if key.is_empty() { request } else { request.header("Idempotency-Key", key) };
        request.send().await.unwrap()
    }

    async fn all(&self) -> Vec<Value> {
        self.client.get(&self.url).send().await.unwrap().json().await.unwrap()
    }
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
    let page =
        sink.client.get(sink.url.replace("v1/activities", "")).send().await.unwrap().text().await.unwrap();
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
    let newest: Vec<Value> =
        sink.client.get(format!("{}?limit=2", sink.url)).send().await.unwrap().json().await.unwrap();
    assert_eq!(newest.iter().map(|a| a["key"].clone()).collect::<Vec<_>>(), ["k58", "k59"], "newest last");

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
