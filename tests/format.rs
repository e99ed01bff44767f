//! The queue's file as `docs/format.md` describes it: a reader that knows the page alone lists what the program lists, and the page
//! has every column.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/letter.rs"]
mod letter;

use activity_milter::queue::{self, Ask, End, Filter, Queue, Settings, State, SystemClock};
use letter::{LARGE, bytes_of, directory, letter, whole};
use rusqlite::Connection;
use serde_json::Value;
use std::{
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime},
};

fn read(settings: &Settings) -> Vec<Value> {
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/format/reader.py");
    let out = Command::new("python3").args([&reader, &settings.path, &settings.spool]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let lines = String::from_utf8(out.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A queue with all that there may be in one: waiting, held, being attempted and delivered ones, small and large, of several.
async fn full(settings: &Settings) -> Arc<dyn Queue> {
    let queue = queue::open(settings, Arc::new(SystemClock)).unwrap();
    let text = b"Content-Type: text/plain; charset=utf-8\r\n\r\nGr\xc3\xbc\xc3\x9fe\r\nzwei\r\r\ndrei\x07\rvier\t\x7f\r\n";
    for id in 0..4 {
        queue.put(letter(&settings.spool, id, 10, &["a"]).await).await.unwrap();
    }
    queue.put(letter(&settings.spool, 10, LARGE, &["a"]).await).await.unwrap();
    queue.put(letter(&settings.spool, 11, LARGE, &["b", "b/1001", "c"]).await).await.unwrap();
    queue.put(letter(&settings.spool, 12, 10, &["b", "c"]).await).await.unwrap();
    let head = "Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nMessage-ID: <20@x>\r\n";
    queue.put(whole(&settings.spool, head, text, &["a", "c"]).await).await.unwrap();
    let tickets = queue.lease(Ask { room: 4, ..Ask::default() }).await.unwrap().tickets;
    let ends = [
        End::Taken,
        End::Held { reason: "422".to_owned() },
        End::Again { after: Duration::from_secs(60), counts: true, reason: "503".to_owned() },
    ];
    queue.finish(tickets.into_iter().zip(ends).collect()).await.unwrap();
    queue
}

#[tokio::test]
async fn a_reader_of_the_page_alone_lists_the_queue() {
    let directory = directory();
    let (path, spool) = (directory.path().join("queue.db"), directory.path().join("spool"));
    let keep_delivered = Duration::from_secs(86_400);
    let settings = Settings { min_free: 0, keep_delivered, ..Settings::new(path, spool) };
    let queue = full(&settings).await;
    let mut entries = queue.list(Filter::default()).await.unwrap();
    entries.extend(queue.list(Filter { state: Some(State::Delivered), ..Filter::default() }).await.unwrap());
    let listed = read(&settings);
    assert_eq!(listed.len(), entries.len());
    assert_eq!(listed.len(), 12);
    for entry in &entries {
        let line = listed.iter().find(|line| line["id"] == entry.id).unwrap();
        let accepted_at = entry.accepted_at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
        assert_eq!(line["key"], entry.key.as_str());
        assert_eq!(
            (&line["tenant"], &line["state"]),
            (&entry.tenant.as_str().into(), &entry.state.as_str().into()),
            "{line}"
        );
        assert_eq!(line["attempts"], entry.attempts);
        assert_eq!(line["accepted_at"].as_u64().map(u128::from), Some(accepted_at));
        let item = queue.open(entry.id).await.unwrap();
        let raw = bytes_of(&item.raw);
        assert_eq!(line["bytes"], raw.len());
        assert_eq!(line["sha256"], sha256(&raw), "byte for byte");
        assert_eq!(line["text"], Value::from(item.activity.text.as_deref()));
        assert_eq!(line["files"], item.activity.files.len());
    }
    for state in ["waiting", "held", "in-flight", "delivered"] {
        assert!(listed.iter().any(|line| line["state"] == state), "{state}");
    }
    let texts: Vec<&Value> = listed.iter().map(|line| &line["text"]).collect();
    assert!(texts.contains(&&Value::from("Grüße\nzwei\ndrei\nvier\t\n")), "{texts:?}");
}

fn sha256(bytes: &[u8]) -> String {
    let mut sum = Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(sum.stdin.as_mut().unwrap(), bytes).unwrap();
    drop(sum.stdin.take());
    String::from_utf8(sum.wait_with_output().unwrap().stdout).unwrap()[..64].to_owned()
}

/// Each column of each table has its line, and no line is of a column that is not there.
#[tokio::test]
async fn the_page_names_what_is_there() {
    let directory = directory();
    let (path, spool) = (directory.path().join("queue.db"), directory.path().join("spool"));
    let settings = Settings { min_free: 0, ..Settings::new(path, spool) };
    drop(full(&settings).await);
    let database = Connection::open(&settings.path).unwrap();
    let mut columns = database
        .prepare("SELECT t.name || '.' || c.name FROM sqlite_schema AS t, pragma_table_info(t.name) AS c WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%'")
        .unwrap();
    let columns: Vec<String> = columns.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert!(columns.len() > 40, "{columns:?}");
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/format.md")).unwrap();
    for column in &columns {
        assert!(page.contains(&format!("`{column}`")), "docs/format.md lacks {column}");
    }
    let tables: Vec<&str> = columns.iter().filter_map(|column| column.split('.').next()).collect();
    for word in page.split('`').skip(1).step_by(2) {
        let is_column =
            word.split_once('.').is_some_and(|(table, rest)| tables.contains(&table) && !rest.contains(' '));
        assert!(!is_column || columns.iter().any(|column| column == word), "docs/format.md has {word}");
    }
    let version: i64 = database.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert!(page.contains(&format!("version {version} of the file")), "{version}");
}
