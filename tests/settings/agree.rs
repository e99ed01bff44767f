//! `check` and `serve` agree: what stops a start, and is there to be seen before, `check` says.

use activity_milter::queue::{self, Settings, SystemClock};
use rusqlite::Connection;
use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::symlink, net::UnixListener},
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_activity-milter");

type Make = fn(&Path);

/// What is tried: its name, what is there before, the settings, and words of both commands; no words: the service starts.
struct Case {
    name: &'static str,
    make: Make,
    settings: &'static [(&'static str, &'static str)],
    words: &'static str,
}

fn nothing(_: &Path) {}

/// A name of 108 bytes with its directory.
const LONG: &str = "unix:HOME/LONG";

/// A queue that is there: what it is, and what is left of its log.
fn queue(at: &Path) -> Settings {
    Settings { min_free: 0, ..Settings::new(at.join("queue.db"), at.join("spool")) }
}

fn made(at: &Path, with: impl FnOnce(&Settings)) {
    let settings = queue(at);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let open = queue::open(&settings, Arc::new(SystemClock)).unwrap();
        with(&settings);
        drop(open);
    });
}

/// A copy, laid over a queue that was killed.
fn restored(at: &Path) {
    let copy = at.join("copy");
    made(at, |settings| {
        fs::create_dir(&copy).unwrap();
        queue::copy(settings, &copy).unwrap();
        for end in ["-wal", "-shm"] {
            fs::copy(at.join(format!("queue.db{end}")), copy.join(format!("queue.db{end}"))).unwrap();
        }
    });
    for end in ["", "-wal", "-shm"] {
        fs::copy(copy.join(format!("queue.db{end}")), at.join(format!("queue.db{end}"))).unwrap();
    }
}

fn database(at: &Path, sql: &str) {
    Connection::open(at.join("queue.db")).unwrap().execute_batch(sql).unwrap();
}

/// What is there in place of a copy of Severa, and words; no words: the service starts.
const COPIES: &[(Make, &str)] = &[
    (|_| (), ""),
    (|copy| fs::write(copy, "").unwrap(), ""),
    (|copy| fs::create_dir(copy).unwrap(), "the copy of Severa cannot be opened"),
    (|copy| symlink("/dev/null", copy).unwrap(), "it is no regular file"),
    (
        |copy| fs::write(copy, "a letter\nabout it\n").unwrap(),
        "is no copy of Severa: give directory.path a file",
    ),
    (
        |copy| Connection::open(copy).unwrap().execute_batch("CREATE TABLE x (y)").unwrap(),
        "is no copy of Severa",
    ),
    (
        |copy| Connection::open(copy).unwrap().execute_batch("PRAGMA user_version = 7").unwrap(),
        "is no copy of Severa",
    ),
    (
        |copy| Connection::open(copy).unwrap().execute_batch("PRAGMA application_id = 7").unwrap(),
        "is no copy of Severa",
    ),
];

const CASES: &[Case] = &[
    Case { name: "all is well", make: nothing, settings: &[], words: "" },
    Case { name: "a queue is there", make: |at| made(at, |_| ()), settings: &[], words: "" },
    Case {
        name: "a copy is restored whole",
        make: |at| {
            restored(at);
            fs::remove_file(at.join("queue.db-wal")).unwrap();
        },
        settings: &[],
        words: "",
    },
    Case {
        name: "a copy beside another's log",
        make: restored,
        settings: &[],
        words: "queue.db-wal beside it is the log of the queue before",
    },
    Case {
        name: "a stale socket",
        make: |at| drop(UnixListener::bind(at.join("m.sock")).unwrap()),
        settings: &[],
        words: "",
    },
    Case {
        name: "an empty file for the queue",
        make: |at| fs::write(at.join("queue.db"), "").unwrap(),
        settings: &[],
        words: "",
    },
    Case {
        name: "a database without tables",
        make: |at| database(at, "PRAGMA page_size = 4096; VACUUM"),
        settings: &[],
        words: "",
    },
    Case {
        name: "another program's database",
        make: |at| database(at, "CREATE TABLE customer (x)"),
        settings: &[],
        words: "another program's database",
    },
    Case {
        name: "with a table of a name of ours",
        make: |at| database(at, "CREATE TABLE item (y)"),
        settings: &[],
        words: "another program's database",
    },
    Case {
        name: "with our one table's name",
        make: |at| database(at, "CREATE TABLE meta (a, b)"),
        settings: &[],
        words: "another program's database",
    },
    Case {
        name: "with a version",
        make: |at| database(at, "CREATE TABLE t (x); PRAGMA user_version = 4"),
        settings: &[],
        words: "another program's database",
    },
    Case {
        name: "with a great version",
        make: |at| database(at, "CREATE TABLE t (x); PRAGMA user_version = 99"),
        settings: &[],
        words: "another program's database",
    },
    Case {
        name: "with a version and nothing else",
        make: |at| database(at, "PRAGMA user_version = 3"),
        settings: &[],
        words: "another program's database",
    },
    Case {
        name: "text for the queue",
        make: |at| fs::write(at.join("queue.db"), "hello ".repeat(500)).unwrap(),
        settings: &[],
        words: "damaged",
    },
    Case {
        name: "a device for the queue",
        make: nothing,
        settings: &[("queue.path", "/dev/null"), ("trace.path", "HOME/t.db")],
        words: "/dev/null is no regular file",
    },
    Case {
        name: "a directory for the queue",
        make: |at| fs::create_dir(at.join("queue.db")).unwrap(),
        settings: &[],
        words: "is no regular file: set another queue.path",
    },
    Case {
        name: "a queue below a file",
        make: |at| fs::write(at.join("file"), "").unwrap(),
        settings: &[("queue.path", "HOME/file/queue.db")],
        words: "no directory: set another queue.path",
    },
    Case {
        name: "a spool below a file",
        make: |at| fs::write(at.join("file"), "").unwrap(),
        settings: &[("queue.spool", "HOME/file/a/b")],
        words: "no directory: set another queue.spool",
    },
    Case {
        name: "a file for the spool",
        make: |at| fs::write(at.join("spool"), "").unwrap(),
        settings: &[],
        words: "no directory: set another queue.spool",
    },
    Case {
        name: "a link to nothing for the spool",
        make: |at| symlink("/nonexistent/x", at.join("spool")).unwrap(),
        settings: &[],
        words: "no directory: set another queue.spool",
    },
    Case {
        name: "a spool below the queue",
        make: nothing,
        settings: &[("queue.spool", "HOME/queue.db/spool")],
        words: "lies below",
    },
    Case {
        name: "the trace is the spool",
        make: nothing,
        settings: &[("trace.path", "HOME/spool")],
        words: "trace.path is the queue's directory",
    },
    Case {
        name: "the trace is the queue",
        make: |at| fs::create_dir(at.join("d")).unwrap(),
        settings: &[("trace.path", "HOME/d/../queue.db")],
        words: "trace.path is the queue's file",
    },
    Case {
        name: "by a link",
        make: |at| symlink(at, at.join("link")).unwrap(),
        settings: &[("trace.path", "HOME/link/queue.db")],
        words: "trace.path is the queue's file",
    },
    Case {
        name: "by a second name",
        make: |at| {
            made(at, |_| ());
            fs::hard_link(at.join("queue.db"), at.join("trace.db")).unwrap();
        },
        settings: &[],
        words: "trace.path is the queue's file",
    },
    Case {
        name: "the trace is the queue's log",
        make: nothing,
        settings: &[("trace.path", "HOME/queue.db-wal")],
        words: "belongs to the database queue.path",
    },
    Case {
        name: "the queue is the trace's log",
        make: nothing,
        settings: &[("trace.path", "HOME/t"), ("queue.path", "HOME/t-wal")],
        words: "belongs to the database trace.path",
    },
    Case {
        name: "the socket is the queue",
        make: nothing,
        settings: &[("milter.listen", "unix:HOME/queue.db")],
        words: "milter.listen is the queue's file",
    },
    Case {
        name: "one socket for two",
        make: |at| fs::create_dir(at.join("d")).unwrap(),
        settings: &[("lmtp.listen", "unix:HOME/d/../m.sock")],
        words: "the same socket as milter.listen",
    },
    Case {
        name: "one port for two",
        make: nothing,
        settings: &[("milter.listen", "inet:127.0.0.1:PORT"), ("lmtp.listen", "inet:0.0.0.0:PORT")],
        words: "the same socket as milter.listen",
    },
    Case {
        name: "one port for the page",
        make: nothing,
        settings: &[("milter.listen", "inet:127.0.0.1:PORT"), ("admin.listen", "0.0.0.0:PORT")],
        words: "the same address as milter.listen",
    },
    Case {
        name: "any port for two",
        make: nothing,
        settings: &[("milter.listen", "inet:127.0.0.1:0"), ("lmtp.listen", "inet:127.0.0.1:0")],
        words: "",
    },
    Case {
        name: "a long milter socket",
        make: nothing,
        settings: &[("milter.listen", LONG)],
        words: "has at most 107",
    },
    Case {
        name: "a long LMTP socket",
        make: nothing,
        settings: &[("lmtp.listen", LONG)],
        words: "has at most 107",
    },
    Case {
        name: "a long socket of the page",
        make: nothing,
        settings: &[("admin.listen", LONG)],
        words: "has at most 107",
    },
    Case {
        name: "a file for a socket",
        make: |at| fs::write(at.join("m.sock"), "").unwrap(),
        settings: &[],
        words: "exists and is no socket",
    },
    Case {
        name: "a socket nowhere",
        make: nothing,
        settings: &[("admin.listen", "unix:HOME/none/a.sock")],
        words: "The directory must exist",
    },
    Case {
        name: "a socket below a file",
        make: |at| fs::write(at.join("file"), "").unwrap(),
        settings: &[("lmtp.listen", "unix:HOME/file/l.sock")],
        words: "The directory must exist",
    },
    Case {
        name: "a zero in the queue's path",
        make: nothing,
        settings: &[("queue.path", "HOME/q\\u0000.db")],
        words: "no path has a zero byte",
    },
    Case {
        name: "a zero in the spool's",
        make: nothing,
        settings: &[("queue.spool", "HOME/q\\u0000")],
        words: "no path has a zero byte",
    },
    Case {
        name: "a zero in the trace's",
        make: nothing,
        settings: &[("trace.path", "HOME/q\\u0000.db")],
        words: "no path has a zero byte",
    },
    Case {
        name: "a zero in a socket's",
        make: nothing,
        settings: &[("milter.listen", "unix:HOME/q\\u0000")],
        words: "no path has a zero byte",
    },
    Case {
        name: "a zero in the page's",
        make: nothing,
        settings: &[("admin.listen", "unix:HOME/q\\u0000")],
        words: "no path has a zero byte",
    },
    Case {
        name: "a zero in the directory's",
        make: nothing,
        settings: &[("directory.path", "HOME/q\\u0000")],
        words: "no path has a zero byte",
    },
];

/// The settings, one a line; those of a case in place of the usual ones.
fn configuration(home: &Path, settings: &[(&str, &str)]) -> String {
    let directory = format!("{}/tests/directory.toml", env!("CARGO_MANIFEST_DIR"));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let mut all = vec![
        ("directory.path", directory.as_str()),
        ("backend.url", "http://127.0.0.1:1/"),
        ("queue.path", "HOME/queue.db"),
        ("queue.spool", "HOME/spool"),
        ("queue.min_free", "0"),
        ("trace.path", "HOME/trace.db"),
        ("milter.listen", "unix:HOME/m.sock"),
        ("lmtp.listen", "unix:HOME/l.sock"),
        ("admin.listen", "off"),
    ];
    for (key, value) in settings {
        all.iter_mut().find(|(usual, _)| usual == key).unwrap().1 = value;
    }
    let shown = home.display().to_string();
    let lines = all.iter().map(|(key, value)| {
        let long = "x".repeat(108_usize.saturating_sub(shown.len() + 1));
        let value = value.replace("LONG", &long).replace("PORT", &port).replace("HOME", &shown);
        format!("{key} = \"{value}\"\n")
    });
    "integration_domains = [\"a.test\"]\n".to_owned() + &lines.collect::<String>()
}

/// What stops a start in the eyes of `check`; a backend that is away and a trace stop nobody.
fn checked(file: &Path) -> Option<String> {
    let output = Command::new(PROGRAM).arg("-c").arg(file).args(["check", "--json"]).output().unwrap();
    if output.status.code() == Some(78) {
        return Some(String::from_utf8(output.stderr).unwrap());
    }
    let lines: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let text = |line: &serde_json::Value, key: &str| line[key].as_str().unwrap().to_owned();
    let counts = |line: &&serde_json::Value| {
        let name = text(line, "name");
        name != "trace" && !name.starts_with("backend") && !name.starts_with("severa ")
    };
    let wrong = lines.iter().filter(counts).filter(|line| line["ok"] == false);
    let wrong: Vec<String> = wrong.map(|line| text(line, "detail")).collect();
    (!wrong.is_empty()).then(|| wrong.join("\n"))
}

/// What stops a start. A service that starts is ended.
fn served(file: &Path, home: &Path) -> Option<String> {
    let log = home.join("log");
    let output = fs::File::create(&log).unwrap();
    let mut command = Command::new(PROGRAM);
    command.arg("-c").arg(file).arg("serve").stdout(output.try_clone().unwrap()).stderr(output);
    let mut service = command.spawn().unwrap();
    let text = || fs::read_to_string(&log).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(status) = service.try_wait().unwrap() {
            assert!(matches!(status.code(), Some(69 | 78)), "{status}: {}", text());
            return Some(text());
        }
        if text().contains("started") {
            let id = service.id().to_string();
            assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
            assert!(service.wait().unwrap().success(), "{}", text());
            return None;
        }
        if Instant::now() > deadline {
            let _ = service.kill();
            panic!("neither starts nor ends: {}", text());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Q39: and what is refused stays as it was.
#[test]
fn check_says_what_stops_a_start() {
    let mut complaints = Vec::new();
    for Case { name, make, settings, words } in CASES {
        let scratch = tempfile::tempdir().unwrap();
        let home = scratch.path();
        make(home);
        let file = home.join("am.toml");
        fs::write(&file, configuration(home, settings)).unwrap();
        let before = fs::read(home.join("queue.db")).ok();
        let (checked, served) = (checked(&file), served(&file, home));
        let is_right = |said: &Option<String>| match (said, words.is_empty()) {
            (None, is_well) => is_well,
            (Some(said), is_well) => !is_well && said.contains(words),
        };
        if !is_right(&checked) || !is_right(&served) {
            complaints.push(format!("{name}:\n  check: {checked:?}\n  serve: {served:?}"));
        }
        if !words.is_empty() && fs::read(home.join("queue.db")).ok() != before {
            complaints.push(format!("{name}: the file was changed"));
        }
    }
    for (make, words) in COPIES {
        let scratch = tempfile::tempdir().unwrap();
        let home = scratch.path();
        make(&home.join("severa.db"));
        fs::write(home.join("secret"), "secret\n").unwrap();
        let text = configuration(home, &[("directory.path", "HOME/severa.db")]);
        let more = format!(
            "backend.type = \"severa\"\ndirectory.type = \"severa\"\n[[severa]]\nprefix = \"my\"\nclient_id = \"id\"\n\
             client_secret_file = \"{}\"\nactivity_type = \"E\"\n",
            home.join("secret").display()
        );
        let file = home.join("am.toml");
        fs::write(&file, text + &more).unwrap();
        for said in [checked(&file), served(&file, home)] {
            if said.as_ref().is_some_and(|said| words.is_empty() || !said.contains(words))
                || said.is_none() && !words.is_empty()
            {
                complaints.push(format!("a copy that shall be \"{words}\": {said:?}"));
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}
