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
    config_with(directory, &root().join("directory.toml"))
}

fn config_with(directory: &Path, people: &Path) -> PathBuf {
    let path = directory.join("activity-milter.toml");
    let text = format!(
        "integration_domains = [\"severamail.test\"]\n[directory]\npath = \"{}\"\n[backend]\nurl = \"http://127.0.0.1:1/\"\n[log]\nlevel = \"error\"\n",
        people.display()
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

/// What of `expected` is not in `found`: objects are compared by the keys that are expected, arrays element by element.
fn missing(expected: &Value, found: &Value, at: &str, wrong: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(expected), Value::Object(_)) => {
            for (key, value) in expected {
                missing(value, &found[key], &format!("{at}.{key}"), wrong);
            }
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
                missing(expected, found, &format!("{at}[{index}]"), wrong);
            }
        }
        // Either is right.
        (Value::Object(either), found) if either.contains_key("either") => {
            let options = either["either"].as_array().unwrap();
            let fits = |option| {
                let mut wrong = Vec::new();
                missing(option, found, at, &mut wrong);
                wrong.is_empty()
            };
            if !options.iter().any(fits) {
                wrong.push(format!("{at}: expected one of {options:?}, found {found}"));
            }
        }
        (expected, found) if expected == found => {}
        (expected, found) => wrong.push(format!("{at}: expected {expected}, found {found}")),
    }
}

/// Kinds of odd mail, a folder each: a message `NAME.eml`, and in `NAME.json` the envelope and what must come out of it.
/// `different_keys.txt` names messages, a group a line, that are different e-mails.
#[test]
fn kinds_of_odd_mail() {
    let scratch = tempfile::tempdir().unwrap();
    let cases = root().join("messages/cases");
    let config = config_with(scratch.path(), &cases.join("directory.toml"));
    let (mut wrong, mut pairs) = (Vec::new(), 0);
    let mut folders: Vec<PathBuf> =
        fs::read_dir(&cases).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.is_dir());
    folders.sort();
    for folder in &folders {
        let mut keys = std::collections::BTreeMap::new();
        let mut names: Vec<PathBuf> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.retain(|path| path.extension().is_some_and(|extension| extension == "eml"));
        assert!(names.len() >= 5, "{}: a given message and four variants", folder.display());
        names.sort();
        for message in names {
            pairs += 1;
            let path = message.with_extension("json");
            let text =
                fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let pair: Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let recipients: Vec<_> =
                pair["recipients"].as_array().unwrap().iter().map(|r| r.as_str().unwrap()).collect();
            let found = explain(&config, &message, pair["sender"].as_str().unwrap(), &recipients);
            let name = message.file_name().unwrap().to_str().unwrap().to_owned();
            let at = format!("{}/{name}", folder.file_name().unwrap().to_str().unwrap());
            missing(&pair["expect"], &found, &at, &mut wrong);
            keys.insert(name, found["activities"][0]["activity"]["key"].clone());
        }
        for group in fs::read_to_string(folder.join("different_keys.txt")).unwrap_or_default().lines() {
            let group: Vec<&Value> = group.split_whitespace().map(|name| &keys[name]).collect();
            for (index, key) in group.iter().enumerate() {
                if group[..index].contains(key) {
                    wrong.push(format!("{}: two e-mails have one key {key}", folder.display()));
                }
            }
        }
    }
    assert!(pairs >= 200, "the corpus is there");
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
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
