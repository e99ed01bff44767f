//! Golden pairs: `tests/messages/NAME.eml` with `NAME.json`: the envelope, and what `explain --json` says of it.
//!
//! `UPDATE_GOLDEN=1 cargo test --test golden` writes them anew; a changed golden file is reviewed like code.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

/// The least configuration: explain needs no queue, no socket and no backend.
fn config(directory: &Path) -> PathBuf {
    let path = directory.join("activity-milter.toml");
    let text = format!(
        "integration_domains = [\"severamail.test\"]\n[directory]\npath = \"{}\"\n[backend]\nurl = \"http://127.0.0.1:1/\"\n[log]\nlevel = \"error\"\n",
        root().join("directory.toml").display()
    );
    fs::write(&path, text).unwrap();
    path
}

fn explain(config: &Path, message: &Path, sender: &str, recipients: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_activity-milter"));
    command.arg("-c").arg(config).arg("explain").arg(message).arg("--json").arg("--sender").arg(sender);
    for recipient in recipients {
        command.arg("--recipient").arg(recipient);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut value: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text} {}", String::from_utf8_lossy(&output.stderr)));
    let refused = matches!(value["verdict"].as_str(), Some("reject" | "defer"));
    assert_eq!(output.status.code(), Some(i32::from(refused)));
    for explained in value["activities"].as_array_mut().unwrap() {
        let activity = &mut explained["activity"];
        // The only thing that differs from run to run.
        let received = activity["received_at"].take();
        if activity["sent_at"] == received {
            activity["sent_at"] = json!("as received_at");
        }
        activity["received_at"] = json!("now");
    }
    value
}

#[test]
fn golden_pairs() {
    let scratch = tempfile::tempdir().unwrap();
    let config = config(scratch.path());
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    let mut pairs = 0;
    for entry in fs::read_dir(root().join("messages")).unwrap() {
        let message = entry.unwrap().path();
        if message.extension().is_none_or(|e| e != "eml") {
            continue;
        }
        pairs += 1;
        let golden_path = message.with_extension("json");
        let golden: Value = match fs::read_to_string(&golden_path) {
            Ok(text) => serde_json::from_str(&text).unwrap(),
            Err(_) if update => {
                json!({ "sender": "anna@mycompany.test", "recipients": ["mycompany@severamail.test"] })
            }
            Err(error) => panic!("{}: {error}", golden_path.display()),
        };
        let recipients: Vec<_> =
            golden["recipients"].as_array().unwrap().iter().map(|r| r.as_str().unwrap()).collect();
        let found = explain(&config, &message, golden["sender"].as_str().unwrap(), &recipients);
        if update {
            let pair = json!({ "sender": golden["sender"], "recipients": golden["recipients"], "explanation": found });
            fs::write(&golden_path, serde_json::to_string_pretty(&pair).unwrap() + "\n").unwrap();
        } else if golden["explanation"] != found {
            wrong.push(format!("{}: found {found:#}", golden_path.display()));
        }
    }
    assert!(pairs >= 15, "the corpus is there");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn line_ends_and_standard_input_make_no_difference() {
    let scratch = tempfile::tempdir().unwrap();
    let config = config(scratch.path());
    let original = root().join("messages/project_with_attachments.eml");
    let crlf = scratch.path().join("crlf.eml");
    fs::write(&crlf, fs::read_to_string(&original).unwrap().replace('\n', "\r\n")).unwrap();
    let key = |message: &Path| {
        let found = explain(&config, message, "anna@mycompany.test", &["1001.mycompany@severamail.test"]);
        found["activities"][0]["activity"]["key"].as_str().unwrap().to_owned()
    };
    assert_eq!(key(&original), key(&crlf));
}

#[test]
fn explain_says_why_in_words() {
    let scratch = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_activity-milter"))
        .arg("-c")
        .arg(config(scratch.path()))
        .args(["explain", "--recipient", "mycompany@severamail.test", "--recipient", "carl@else.test"])
        .arg(root().join("messages/several_customers.eml"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for words in [
        "recipient mycompany@severamail.test: tenant t-1",
        "recipient carl@else.test: no integration address",
        "verdict: record",
        "owner     anna@mycompany.test (from): user u-anna: the sender is a user",
        "external  bo@acme.test (to): contact k-bo, but the contacts belong to several customers (c-acme, c-globex)",
        "user      esa@mycompany.test (cc): user u-esa; also a contact, but a user counts as a user only",
        "external  carl@else.test (envelope): neither a user nor a contact",
        "Postfix is told to deliver the message to all recipients but mycompany@severamail.test",
    ] {
        assert!(text.contains(words), "{words}: not in\n{text}");
    }
}
