//! Operating it: check, queue, reload, metrics, health, the status page, systemd's sockets, what the log says and what not.

use crate::support::{
    has_system_log,
    http::{http, http_get},
    smtp::{Smtp, matches},
    wait_for,
    world::{Options, Process, World, eml, program},
};
use serde_json::Value;
use std::{
    fs,
    os::unix::{
        fs::PermissionsExt,
        net::{UnixDatagram, UnixListener},
    },
    process::Command,
};

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// A world whose backend takes nothing, with some activities in the queue.
fn with_backlog(status: &str, more: &[(&'static str, &str)]) -> World {
    let world = World::with(Options {
        sink: vec!["--status".to_owned(), status.to_owned()],
        config: more.iter().map(|(table, line)| (*table, (*line).to_owned())).collect(),
        ..Options::default()
    });
    let mut smtp = world.smtp();
    for (name, to) in [
        ("plain", MY),
        ("project_with_attachments", "1001.mycompany@severamail.test"),
        ("html_only", "sub.mycompany@severamail.test"),
    ] {
        assert!(smtp.mail(ANNA, &[to], &eml(name)).1.starts_with("250"));
    }
    world
}

fn list(world: &World, args: &[&str]) -> Vec<Value> {
    let (code, out, error) = world.command(&[&["queue", "list", "--json"], args].concat());
    // Tests are root's, and so are their queues.
    assert!(code == Some(0) && error.lines().all(|line| line.contains("works as root")), "{out}{error}");
    serde_json::from_str(&out).unwrap()
}

#[test]
fn the_queue_beside_a_running_service() {
    let mut world = with_backlog("422", &[]);
    wait_for("three held", || (list(&world, &["--state", "held"]).len() == 3).then_some(()));
    let all = list(&world, &[]);
    let key = |entry: &Value| entry["key"].as_str().unwrap().to_owned();
    assert_eq!(all[1]["project"], "1001");
    assert!(all.iter().all(|entry| entry["reason"].as_str().unwrap().starts_with("backend answered 422")));
    // Filters.
    assert_eq!(list(&world, &["--tenant", "t-4"]).len(), 1);
    assert_eq!(list(&world, &["--tenant", "mycompany"]).len(), 2);
    assert_eq!(list(&world, &["--older-than", "1h"]).len(), 0);
    assert_eq!(list(&world, &["--state", "waiting"]).len(), 0);
    assert_eq!(list(&world, &[&key(&all[0])[..12]]).len(), 1);
    let (_, out, error) = world.command(&["queue", "list", "--limit", "1"]);
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines.len() == 4 && error.contains("there are more"), "{out}{error}");
    assert!(lines[0].starts_with("KEY ") && lines[3].starts_with("0 waiting, 3 held; "), "{out}");
    assert!(lines[1].ends_with(&format!("{ANNA}  {MY}")), "{out}");
    let (_, out, _) = world.command(&["queue", "list", "--state", "waiting"]);
    assert!(out.starts_with("nothing is like that\n0 waiting, 3 held; "), "{out}");
    // Show and export.
    let (code, out, _) = world.command(&["queue", "show", &key(&all[1])[3..12]]);
    assert!(code == Some(0) && out.contains("state: held") && out.contains("\"number\": \"1001\""), "{out}");
    let to = world.root.join("exported");
    let (code, out, _) =
        world.command(&["queue", "export", "--to", to.to_str().unwrap(), "--tenant", "mycompany"]);
    assert!(code == Some(0) && out.starts_with("2 written"), "{out}");
    let directory = to.join(key(&all[1]).replace(':', "-"));
    let message = text(fs::read(directory.join("message.eml")).unwrap());
    assert!(message.contains("Subject: Offer for the roll-out"), "{message}");
    assert_eq!(fs::metadata(directory.join("file-1-offer.pdf")).unwrap().len(), 390);
    let activity: Value =
        serde_json::from_slice(&fs::read(directory.join("activity.json")).unwrap()).unwrap();
    assert_eq!(activity["key"], all[1]["key"]);
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&to), mode(&directory), mode(&directory.join("message.eml"))), (0o700, 0o700, 0o600));
    // By its number and by Postfix's queue id too; and a word that is none of them.
    for word in [all[1]["id"].to_string(), all[1]["queue_id"].as_str().unwrap().to_owned(), key(&all[1])] {
        let (code, out, _) = world.command(&["queue", "show", &word]);
        assert!(code == Some(0) && out.starts_with(&format!("key: {}\n", key(&all[1]))), "{word}: {out}");
        assert_eq!(list(&world, &[&word]).len(), 1, "{word}");
    }
    assert_eq!(list(&world, &["4bNoSuchQueueId"]).len(), 0);
    let (code, out, _) = world.command(&["queue", "drop", "--all", "--tenant", "mycompany", "--dry-run"]);
    assert!(code == Some(0) && out.ends_with("2 would be dropped; nothing was changed\n"), "{out}");
    assert_eq!(list(&world, &[]).len(), 3);
    // Nothing without being told what.
    let (code, _, error) = world.command(&["queue", "drop"]);
    assert!(code == Some(64) && error.contains("give keys, or --all"), "{error}");
    let (code, _, error) = world.command(&["queue", "retry", "b3:ffff"]);
    assert!(code == Some(69) && error.contains("no activity in the queue has a key"), "{error}");
    // Drop one: its key stays known, so the client's retry records nothing.
    let (code, out, error) = world.command(&["queue", "drop", &key(&all[2])]);
    assert_eq!((code, out.as_str()), (Some(0), "1 dropped\n"));
    let logged = format!(
        "{}: queue changed by hand tenant=t-4 key={} what=dropped uid={}",
        all[2]["queue_id"].as_str().unwrap(),
        key(&all[2]),
        nix::unistd::getuid(),
    );
    assert!(has_system_log() || error.contains(&logged), "{error}");
    assert!(world.mail(ANNA, &["sub.mycompany@severamail.test"], &eml("html_only")).1.starts_with("250"));
    assert_eq!(list(&world, &[]).len(), 2);
    // The backend is repaired, and a person retries: the service notices by itself.
    world.sink = None;
    world.start_sink_with(&[]);
    let (code, out, _) = world.command(&["queue", "retry", &key(&all[1])]);
    assert_eq!((code, out.as_str()), (Some(0), "1 retried\n"));
    world.wait_for_activities(1);
    let (_, out, _) = world.command(&["queue", "retry", "--all", "--state", "held"]);
    assert_eq!(out, "1 retried\n");
    world.wait_for_activities(2);
    wait_for("an empty queue", || list(&world, &[]).is_empty().then_some(()));
    // Hold what waits, while the backend is down, and it is not attempted.
    world.sink = None;
    assert!(world.mail(ANNA, &[MY], &eml("nested_message")).1.starts_with("250"));
    wait_for("it to be held", || {
        let (_, out, _) = world.command(&["queue", "hold", "--all"]);
        (out == "1 held\n").then_some(())
    });
    world.start_sink_with(&[]);
    assert_eq!(list(&world, &["--state", "held"])[0]["reason"], "held by hand");
    // Without the service the commands work as well, and the service starts with what they left.
    world.stop_milter();
    let (_, out, _) = world.command(&["queue", "retry", "--all"]);
    assert_eq!(out, "1 retried\n");
    world.start_milter();
    world.wait_for_activities(3);
}

/// How often a command reads from the queue's files.
fn pages_read(world: &World, args: &[&str]) -> usize {
    let trace = world.root.join("reads");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-y", "-e", "trace=pread64", "-o"]).arg(&trace).arg(program());
    command.arg("-c").arg(world.config_path()).args(args).output().unwrap();
    fs::read_to_string(&trace).unwrap().lines().filter(|line| line.contains("queue.db")).count()
}

/// One message for two tenants is two activities with one queue id. A person at a terminal is asked before both go, and a
/// script is not.
#[test]
fn a_queue_id_names_all_of_its_message_and_a_person_is_asked() {
    let world = with_backlog("422", &[]);
    let sent = world.mail(ANNA, &[MY, "sub.mycompany@severamail.test"], &eml("nested_message"));
    assert!(sent.1.starts_with("250"), "{sent:?}");
    wait_for("all to be held", || (list(&world, &["--state", "held"]).len() == 5).then_some(()));
    let all = list(&world, &[]);
    let queue_id = all[4]["queue_id"].as_str().unwrap();
    assert_eq!(list(&world, &[queue_id]).len(), 2);
    let (code, out, error) = world.command(&["queue", "drop", queue_id, "--dry-run"]);
    assert!(code == Some(0) && out.ends_with("2 would be dropped; nothing was changed\n"), "{out}");
    assert!(error.contains(&format!("queue id {queue_id} is that of 2 activities: all of them")), "{error}");
    // script(1) gives the command a terminal.
    let at_terminal = |answer: &str, more: &str| {
        let command = format!(
            "{} --config {} queue drop {queue_id} {more}",
            program().display(),
            world.config_path().display()
        );
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &command, "/dev/null"]);
        let mut child =
            script.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), answer.as_bytes()).unwrap();
        text(child.wait_with_output().unwrap().stdout)
    };
    let said = at_terminal("n\n", "");
    assert!(
        said.contains("Drop 2 activities of 2 tenants?") && said.contains("nothing was changed"),
        "{said}"
    );
    assert_eq!(list(&world, &[]).len(), 5);
    // Whoever sits there is asked, wherever the output goes.
    for (answer, elsewhere) in [("n\n", "2>/dev/null"), ("\n", ">/dev/null 2>&1"), ("", "2>&1 | cat")] {
        let said = at_terminal(answer, elsewhere);
        assert!(said.contains("Drop 2 activities of 2 tenants?"), "{elsewhere}: {said}");
        assert_eq!(list(&world, &[]).len(), 5, "{elsewhere}");
    }
    let said = at_terminal("y\n", "");
    assert!(said.contains("2 dropped"), "{said}");
    assert_eq!(list(&world, &[]).len(), 3);
    let (code, out, _) = world.command(&["queue", "drop", "--all", "--state", "held"]);
    assert_eq!((code, out.as_str()), (Some(0), "3 dropped\n"));
    let (_, out, _) = world.command(&["queue", "list"]);
    assert_eq!(out, "queue is empty\n");
}

#[test]
fn a_large_queue_answers_at_once() {
    let mut world = World::with(Options { without_sink: true, ..Options::default() });
    assert!(world.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"));
    world.stop_milter();
    let database = rusqlite::Connection::open(world.root.join("queue/queue.db")).unwrap();
    // A hundred thousand more of the same, as the service would have put them, held and waiting, of many tenants.
    database
        .execute_batch(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 100000)
             INSERT INTO item (id, key, tenant, activity, state, due, accepted_at, reason, notified, cuts, body)
             SELECT id + n, unhex(printf('%064x', n)), printf('t-%d', n % 500), activity, n % 100 = 0, due + 86400000,
                    accepted_at, 'x', 1, cuts, body
             FROM n, item;
             INSERT INTO key_0 (key, item) SELECT key, id FROM item WHERE true ON CONFLICT DO NOTHING;",
        )
        .unwrap();
    drop(database);
    world.start_milter();
    let (status, body) = http_get(world.admin_port, "/metrics");
    let metrics = text(body);
    assert_eq!(status, 200);
    assert!(metrics.contains("activity_milter_queue_items{state=\"held\"} 1000\n"), "{metrics}");
    assert!(metrics.contains("activity_milter_queue_items{state=\"waiting\"} 99001\n"), "{metrics}");
    let (status, body) = http_get(world.admin_port, "/");
    let page = text(body);
    assert_eq!(status, 200);
    for part in ["50 of 1,000, the oldest first", "10 of 99,001, the oldest first", "50 of 500 tenants"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let database = world.root.join("queue/queue.db");
    let page_size: u64 = rusqlite::Connection::open(&database)
        .unwrap()
        .query_row("PRAGMA page_size", [], |row| row.get::<_, i64>(0).map(i64::unsigned_abs))
        .unwrap();
    let pages = usize::try_from(fs::metadata(&database).unwrap().len() / page_size).unwrap();
    assert!(pages > 5000, "{pages} pages");
    // Each within the patience of a person; how long it takes is not a test's business, that it needs no scan is.
    for args in [
        &["queue", "list"][..],
        &["queue", "list", "--state", "held"],
        &["queue", "list", "--tenant", "t-7"],
        &["queue", "show", "b3:000000000000000000000000000000000000000000000000000000000001869f"],
        &["queue", "retry", "b3:000000000000000000000000000000000000000000000000000000000001869e"],
        &["queue", "drop", "b3:000000000000000000000000000000000000000000000000000000000001869d"],
    ] {
        let (code, out, error) = world.command(args);
        assert_eq!(code, Some(0), "{args:?} {out} {error}");
        // A scan would read every page; what is asked for lies on some.
        let read = pages_read(&world, args);
        assert!(read < pages / 10, "{args:?} reads {read} pages of {pages}");
    }
}

#[test]
fn check_says_what_is_there_and_what_is_not() {
    let mut world = World::with(Options { lmtp: true, ..Options::default() });
    let (code, out, error) = world.command(&["check"]);
    assert_eq!((code, error.as_str()), (Some(0), ""), "{out}");
    for line in ["configuration", "backend", "directory", "milter", "lmtp", "queue"] {
        assert!(out.lines().any(|l| l.starts_with(&format!("ok     {line}"))), "{line}: {out}");
    }
    world.sink = None;
    let (code, out, _) = world.command(&["check"]);
    assert!(code == Some(1) && out.contains("NOT OK backend"), "{out}");
    let (code, out, _) = world.command(&["check", "--offline", "--json"]);
    let lines: Vec<Value> = serde_json::from_str(&out).unwrap();
    assert!(code == Some(0) && lines.iter().all(|line| line["ok"] == true), "{out}");
    // Exit codes of sysexits(3).
    let (code, _, error) = world.command(&["frobnicate"]);
    assert!(code == Some(64) && error.contains("unrecognized subcommand"), "{error}");
    let config = fs::read_to_string(world.config_path()).unwrap();
    fs::write(world.config_path(), format!("{config}\n[colors]\n")).unwrap();
    let (code, _, error) = world.command(&["check"]);
    assert!(code == Some(78) && error.contains("`colors`"), "{error}");
    // A second instance on the same queue is told so.
    let second = world.root.join("second.toml");
    let own = config
        .replace("milter.sock", "second.sock")
        .replace("lmtp.sock", "second-lmtp.sock")
        .replace(&format!("127.0.0.1:{}", world.admin_port), "127.0.0.1:0");
    fs::write(&second, own).unwrap();
    let output = Command::new(program()).arg("-c").arg(&second).arg("serve").output().unwrap();
    let said = text(output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("is in use by another"), "{said}");
}

#[test]
fn reload_takes_all_or_nothing() {
    let mut world = World::with(Options { lmtp: true, ..Options::default() });
    let first = fs::read_to_string(world.config_path()).unwrap();
    // A transaction that has begun keeps what it began with.
    let mut begun: Smtp = world.lmtp();
    begun.command(&format!("MAIL FROM:<{ANNA}>"));
    assert!(begun.command(&format!("RCPT TO:<{MY}>")).starts_with("250"));
    let help = "[replies]\nno-subject = \"Kein Betreff\"\n";
    let changed = first
        .replace("[replies]\n", help)
        .replace("integration_domains = [\"severamail.test\"]", "integration_domains = [\"other.test\"]")
        .replace("[queue]\n", "[queue]\nmax_items = 7\n");
    fs::write(world.config_path(), &changed).unwrap();
    world.milter().signal("HUP");
    wait_for("the new settings", || world.milter().log().contains("configuration read again").then_some(()));
    world.milter().line_with(&["some keys count only after a restart restart=queue"]);
    // Who looks sees it, until it is put back.
    let port = world.admin_port;
    let seen = || {
        let [ready, metrics, page] = ["/readyz", "/metrics", "/"].map(|path| text(http_get(port, path).1));
        let said = "changed, and in use only after a restart: queue";
        let metric = metrics.contains("activity_milter_restart_needed 1\n");
        [
            ready.contains(said),
            metric,
            page.contains(said) && page.contains("systemctl restart activity-milter"),
        ]
    };
    assert_eq!(seen(), [true; 3]);
    begun.send(b"DATA\r\nFrom: anna@mycompany.test\r\nSubject:\r\n\r\nx\r\n.\r\n");
    assert!(begun.reply().starts_with("354"));
    let reply = begun.reply();
    assert!(matches(&reply, "550 5.6.0 *needs a subject*[no-subject]"), "{reply}");
    // The same connection's next one, and others, have the new ones.
    begun.command(&format!("MAIL FROM:<{ANNA}>"));
    let reply = begun.command(&format!("RCPT TO:<{MY}>"));
    assert!(matches(&reply, "451 4.3.5 *[not-an-integration-address]"), "{reply}");
    // A broken file changes nothing, and the log names the line.
    fs::write(world.config_path(), changed.replace("[replies]", "[replys]")).unwrap();
    world.milter().signal("HUP");
    wait_for("the refusal", || world.milter().log().contains("new configuration refused").then_some(()));
    let log = world.milter().log();
    let line = log.lines().find(|line| line.contains("new configuration refused")).unwrap();
    assert!(line.contains("activity-milter.toml:") && line.contains("unknown field `replys`"), "{line}");
    let reply = world.lmtp().command("NOOP");
    assert!(reply.starts_with("250"), "{reply}");
    // What `systemctl reload` runs first says so too.
    assert_eq!(world.command(&["check", "--offline"]).0, Some(78));
    // Back to the first.
    fs::write(world.config_path(), &first).unwrap();
    world.milter().signal("HUP");
    wait_for("the old settings", || {
        (world.milter().log().matches("configuration read again").count() == 2).then_some(())
    });
    assert_eq!(seen(), [false; 3]);
    assert!(world.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"));
    let (_, answer) = world.mail(ANNA, &[MY], &eml("no_subject"));
    assert!(answer.contains("needs a subject"), "{answer}");
    world.wait_for_activities(1);
}

/// The status line of an answer to a request as it stands there.
fn asked(port: u16, request: &str) -> String {
    raw(port, request).lines().next().unwrap_or_default().to_owned()
}

#[test]
fn the_admin_door_answers_to_names_of_this_machine() {
    let options = Options {
        config: vec![("admin", "hosts = [\"status.example.com\"]".to_owned())],
        ..Options::default()
    };
    let mut world = World::with(options);
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n".to_owned(), 200),
        (format!("GET / HTTP/1.1\r\nHost: {}:8894\r\n", host.trim()), 200),
        ("GET /metrics HTTP/1.1\r\nHost: status.example.com\r\n".to_owned(), 200),
        ("GET /metrics HTTP/1.1\r\nHost: evil.example\r\n".to_owned(), 421),
        ("GET / HTTP/1.1\r\nHost: evil.example:8894\r\n".to_owned(), 421),
        ("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n".to_owned(), 400),
        ("GET / HTTP/1.0\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost:\r\n".to_owned(), 400),
        ("GET / HTTP/1.0\r\nHost:\r\n".to_owned(), 400),
        ("GET / HTTP/1.0\r\nHost: evil.example\r\n".to_owned(), 421),
        ("GET http://evil.example/ HTTP/1.0\r\n".to_owned(), 421),
        ("GET /metrics HTTP/1.0\r\n".to_owned(), 200),
        ("HEAD /livez HTTP/1.0\r\n".to_owned(), 200),
        ("GET http://evil.example/ HTTP/1.1\r\nHost: 127.0.0.1\r\n".to_owned(), 421),
        ("GET / HTTP/1.0\r\n".to_owned(), 200),
        ("POST /login HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 0\r\n".to_owned(), 421),
        ("GET /livez HTTP/1.1\r\nHost: evil.example\r\n".to_owned(), 200),
        ("GET /readyz HTTP/1.0\r\n".to_owned(), 200),
    ] {
        let answer = asked(world.admin_port, &format!("{request}Connection: close\r\n\r\n"));
        assert!(answer.contains(&format!(" {status} ")), "{request}: {answer}");
    }
    // Ten lines a minute, and how many there were more: also where none follows.
    for _ in 6..30 {
        asked(world.admin_port, "GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    }
    world.milter().signal("TERM");
    assert_eq!(world.milter().wait(), Some(0));
    let log = world.milter().log();
    let left_out = "WARN lines like others were left out of the log event=admin_misdirected suppressed=20\n";
    assert!(log.matches("names another host").count() == 10 && log.contains(left_out), "{log}");
}

#[test]
fn the_admin_door_may_be_a_unix_socket() {
    let mut world = World::with(Options { without_milter: true, ..Options::default() });
    let path = world.root.join("admin.sock");
    let config = fs::read_to_string(world.config_path()).unwrap();
    let port = format!("listen = \"127.0.0.1:{}\"", world.admin_port);
    assert!(config.contains(&port), "{config}");
    fs::write(world.config_path(), config.replace(&port, &format!("listen = \"unix:{}\"", path.display())))
        .unwrap();
    world.start_milter();
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: whatever\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("activity_milter_build_info"), "{answer}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    world.stop_milter();
    assert!(!path.exists(), "the socket goes with us");
}

/// What `/readyz` says of refused versions, and the metric.
fn refused_versions(world: &World) -> (String, Vec<String>) {
    let (status, body) = http_get(world.admin_port, "/readyz");
    assert_eq!(status, 200, "the old version serves everybody");
    let body: Value = serde_json::from_slice(&body).unwrap();
    let of_versions = body["checks"].as_array().unwrap().iter().find(|check| check["name"] == "versions");
    let detail = of_versions.map(|check| check["detail"].as_str().unwrap().to_owned()).unwrap_or_default();
    let metrics = text(http_get(world.admin_port, "/metrics").1);
    let bad = metrics.lines().filter_map(|line| {
        let labels = line.strip_prefix("activity_milter_last_reload_successful{what=\"")?;
        labels.strip_suffix("\"} 0").map(str::to_owned)
    });
    (detail, bad.collect())
}

#[test]
fn a_refused_version_is_seen_until_it_is_repaired() {
    let token = tempfile::NamedTempFile::new().unwrap();
    fs::write(token.path(), "right\n").unwrap();
    let path = token.path().display().to_string();
    let options =
        Options { config: vec![("admin", format!("token_file = \"{path}\""))], ..Options::default() };
    let mut world = World::with(options);
    assert_eq!(refused_versions(&world), (String::new(), Vec::new()));
    let wait_until = |world: &World, what: &str, detail: &str, bad: &[&str]| {
        wait_for(what, || {
            let (said, kinds) = refused_versions(world);
            let is_so = if detail.is_empty() { said.is_empty() } else { said.contains(detail) };
            (is_so && kinds == bad).then_some(())
        });
    };
    let page = |world: &World| text(http_get(world.admin_port, "/").1);

    // The configuration: broken, still broken for others, repaired.
    let config = fs::read_to_string(world.config_path()).unwrap();
    fs::write(world.config_path(), config.replace("[queue]", "[quue]")).unwrap();
    world.milter().signal("HUP");
    wait_until(&world, "the refused configuration", "activity-milter.toml:", &["configuration"]);
    assert!(page(&world).contains("the old one stays in use"), "{}", page(&world));

    // The directory beside it, by its line.
    let directory = world.root.join("directory.toml");
    let people = fs::read_to_string(&directory).unwrap();
    fs::write(&directory, format!("{people}\n[[tenannt]]\n")).unwrap();
    wait_until(&world, "the refused directory", "directory.toml:", &["configuration", "directory"]);
    fs::write(&directory, &people).unwrap();
    wait_until(&world, "the repaired directory", "new configuration refused", &["configuration"]);

    fs::write(world.config_path(), &config).unwrap();
    world.milter().signal("HUP");
    wait_until(&world, "the repaired configuration", "", &[]);

    // A secret, though nobody uses it.
    fs::write(&path, "two words\n").unwrap();
    wait_until(&world, "the refused secret", &path, &["secret"]);
    fs::write(&path, "right\n").unwrap();
    wait_until(&world, "the repaired secret", "", &[]);
}

#[test]
fn a_repaired_token_is_used_at_once() {
    let token = tempfile::NamedTempFile::new().unwrap();
    fs::write(token.path(), "right\n").unwrap();
    let path = token.path().display().to_string();
    let mut world =
        World::with(Options { sink: vec!["--token-file".to_owned(), path.clone()], ..Options::default() });
    assert!(world.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"));
    wait_for("the pause", || world.milter().log().contains("deliveries are paused").then_some(()));
    let (status, body) = http_get(world.admin_port, "/readyz");
    let body = text(body);
    assert!(status == 503 && body.contains("paused: backend answered 401"), "{body}");
    let config = fs::read_to_string(world.config_path()).unwrap();
    fs::write(
        world.config_path(),
        config.replace("[backend]\n", &format!("[backend]\ntoken_file = \"{path}\"\n")),
    )
    .unwrap();
    world.milter().signal("HUP");
    // A probe that was under way at the reload may have been the delivery: then nothing waits any more.
    let over = ["deliveries resumed", "the pause is over"];
    wait_for("delivery", || over.iter().any(|words| world.milter().log().contains(words)).then_some(()));
    wait_for("readiness", || (http_get(world.admin_port, "/readyz").0 == 200).then_some(()));
}

#[test]
fn metrics_and_health() {
    let mut world = World::with(Options { lmtp: true, ..Options::default() });
    let mut smtp = world.smtp();
    assert!(smtp.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"));
    assert!(smtp.mail(ANNA, &[MY], &eml("no_subject")).1.starts_with("550"));
    assert!(smtp.mail("carl@else.test", &["dora@elsewhere.test"], &eml("someone_else")).1.starts_with("250"));
    smtp.mail(ANNA, &["nobody@severamail.test"], &eml("plain"));
    world.wait_for_activities(1);
    let lmtp = world.lmtp();
    let metrics = wait_for("the delivery", || {
        let metrics = text(http_get(world.admin_port, "/metrics").1);
        metrics.contains("activity_milter_deliveries_total{outcome=\"taken\"} 1\n").then_some(metrics)
    });
    for line in [
        "activity_milter_messages_total{verdict=\"record\",reason=\"\"} 1\n",
        "activity_milter_messages_total{verdict=\"reject\",reason=\"no-subject\"} 1\n",
        "activity_milter_messages_total{verdict=\"pass\",reason=\"\"} 1\n",
        "activity_milter_recipients_refused_total{verdict=\"reject\",reason=\"no-such-tenant\"} 1\n",
        "activity_milter_recipients_total{outcome=\"integration\"} 2\n",
        "activity_milter_recipients_total{outcome=\"other\"} 1\n",
        "activity_milter_queue_items{state=\"waiting\"} 0\n",
        "activity_milter_sessions{door=\"lmtp\"} 1\n",
        "activity_milter_delivery_seconds_count 1\n",
        "activity_milter_end_of_message_seconds_count 1\n",
        "activity_milter_deliveries_paused{cause=\"down\"} 0\n",
        concat!("activity_milter_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1\n"),
    ] {
        assert!(metrics.contains(line), "{line}{metrics}");
    }
    drop(lmtp);
    assert_eq!(http_get(world.admin_port, "/livez"), (200, b"ok\n".to_vec()));
    let (status, body) = http_get(world.admin_port, "/readyz");
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["ready"]), (200, &true.into()), "{body:#}");
    let names: Vec<_> =
        body["checks"].as_array().unwrap().iter().map(|check| check["name"].clone()).collect();
    assert_eq!(names, ["listeners", "queue", "directory", "deliveries", "trace"]);
    // Storage that fails is seen.
    let pid = world.milter().id().to_string();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-p", &pid, "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO"]);
    let strace = Process::start(&mut strace, &world.root.join("strace.log"));
    wait_for("strace to attach", || strace.log().contains("attached").then_some(()));
    let (status, body) = http_get(world.admin_port, "/readyz");
    assert!(status == 503 && text(body.clone()).contains("disk I/O error"), "{}", text(body));
}

/// Nothing that is wrong looks green: an alert on what is held does not end because the queue cannot be read.
#[test]
fn the_queues_numbers_stay_where_it_cannot_be_read() {
    let mut world = with_backlog("422", &[]);
    wait_for("three held", || (list(&world, &["--state", "held"]).len() == 3).then_some(()));
    let metrics = || text(http_get(world.admin_port, "/metrics").1);
    let held = "activity_milter_queue_items{state=\"held\"} 3\n";
    assert!(metrics().contains(held), "{}", metrics());
    let pid = world.milter.as_ref().unwrap().id().to_string();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-p", &pid, "-e", "trace=fcntl", "-e", "inject=fcntl:error=EIO"]);
    let strace = Process::start(&mut strace, &world.root.join("strace.log"));
    wait_for("strace to attach", || strace.log().contains("attached").then_some(()));
    assert!(metrics().contains(held), "{}", metrics());
    wait_for("its line", || world.milter().log().contains("queue trouble").then_some(()));
    drop(strace);
}

/// A form as a browser sends it; the answer's head and body.
fn post(world: &World, path: &str, cookie: &str, form: &str) -> (u16, String) {
    let request = format!(
        "POST {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nCookie: {cookie}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {}\r\n\r\n{form}",
        form.len()
    );
    let (status, body) = http(world.admin_port, request.as_bytes());
    (status, text(body))
}

#[test]
fn only_who_has_the_token_and_uses_the_page_changes_anything() {
    let token = tempfile::NamedTempFile::new().unwrap();
    fs::write(token.path(), "the-admin-token\n").unwrap();
    let line = format!("token_file = \"{}\"", token.path().display());
    let world = with_backlog("422", &[("admin", &line)]);
    wait_for("three held", || (list(&world, &["--state", "held"]).len() == 3).then_some(()));
    let page = text(http_get(world.admin_port, "/").1);
    assert!(
        page.contains("Admin token")
            && page.contains("backend answered 422")
            && page.contains("My Company Oy")
            && !page.contains("Retry all")
    );
    // Without a session, with a made-up one, with a wrong token: nothing.
    for cookie in ["", "activity-milter=made-up"] {
        let (status, _) = post(&world, "/activities", cookie, "form_token=x&action=drop&id=all");
        assert_eq!(status, 403);
    }
    assert_eq!(post(&world, "/login", "", "token=wrong").0, 403);
    // Logged in.
    let request = "POST /login HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 21\r\n\r\ntoken=the-admin-token";
    let head = raw(world.admin_port, request);
    let cookie = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    let page = text(
        http(
            world.admin_port,
            format!("GET / HTTP/1.0\r\nHost: 127.0.0.1\r\nCookie: {cookie}\r\n\r\n").as_bytes(),
        )
        .1,
    );
    let form_token = page.split("name=form_token value=\"").nth(1).unwrap().split('"').next().unwrap();
    assert!(page.contains("Retry all"));
    // Another site's form has the cookie at best, and not the token of our form.
    let (status, _) = post(&world, "/activities", cookie, "form_token=guessed&action=drop&id=all");
    assert_eq!(status, 403);
    assert_eq!(list(&world, &["--state", "held"]).len(), 3);
    let id = page.split("name=id value=\"").nth(2).unwrap().split('"').next().unwrap();
    let (status, _) =
        post(&world, "/activities", cookie, &format!("form_token={form_token}&action=drop&id={id}"));
    assert_eq!((status, list(&world, &["--state", "held"]).len()), (303, 2));
    for order in [
        "action=explode&id=all",
        "id=all",
        "action=drop&id=1&id=2",
        "action=drop",
        "action=drop&id=ALL",
        "action=drop&group=422",
        "action=drop&id=all&group=422",
        "action=drop&id=all&before=soon",
    ] {
        let (status, _) = post(&world, "/activities", cookie, &format!("form_token={form_token}&{order}"));
        assert_eq!(status, 400, "{order}");
    }
    // A question is a page, for those who may answer it; asking changes nothing.
    let get = |path: &str, cookie: &str| {
        let request = format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nCookie: {cookie}\r\n\r\n");
        let (status, body) = http(world.admin_port, request.as_bytes());
        (status, text(body))
    };
    for (path, cookie, expected, words) in [
        ("/drop?id=all", "", 403, "Log in with the admin token first"),
        ("/drop?id=all", "activity-milter=made-up", 403, "Log in with the admin token first"),
        ("/drop?id=all", cookie, 200, "Drop all that is held: 2 activities?"),
        ("/drop?id=987654", cookie, 404, "not held any more"),
        ("/drop?id=-9223372036854775808", cookie, 404, "not held any more"),
        ("/drop?id=9223372036854775807", cookie, 404, "not held any more"),
        ("/drop", cookie, 400, "no such button"),
        ("/drop?id=1&id=2", cookie, 400, "no such button"),
        ("/?refresh=soon&done=nothing&count=-1", cookie, 200, "activity-milter: ready"),
        ("/?held=-1&reasons=many", cookie, 200, "activity-milter: ready"),
        ("/drop?group=00", cookie, 400, "no such button"),
        (&format!("/drop?group={}", "0".repeat(64)), cookie, 404, "not held any more"),
    ] {
        let (status, page) = get(path, cookie);
        assert!(status == expected && page.contains(words), "{path}: {status} {page}");
    }
    assert_eq!(list(&world, &["--state", "held"]).len(), 2);
    // Dropping all takes nothing that was held after the question was asked.
    let before = "1000";
    let order = format!("form_token={form_token}&action=drop&id=all&before={before}");
    assert_eq!(post(&world, "/activities", cookie, &order).0, 303);
    assert_eq!(list(&world, &["--state", "held"]).len(), 2);
    // What to do is at hand.
    assert!(get("/docs/operations", "").1.contains("<h3 id=\"activitymilterheld\">ActivityMilterHeld</h3>"));
    assert_eq!(get("/docs/nothing", "").0, 404);
    // Nothing on the page comes from a message or from elsewhere.
    for secret in ["Offer for the roll-out", "offer.pdf", "the-admin-token", "http://", "https://", "<script"]
    {
        assert!(!page.contains(secret), "{secret}");
    }
    let head = raw(world.admin_port, "GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n");
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    // Logged out, the cookie is worth nothing.
    assert_eq!(post(&world, "/logout", cookie, &format!("form_token={form_token}")).0, 303);
    let (status, _) =
        post(&world, "/activities", cookie, &format!("form_token={form_token}&action=drop&id=all"));
    assert_eq!(status, 403);
    // So is one whose token is another by now.
    let head = raw(world.admin_port, request);
    let cookie = head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    let cookie = cookie.split(';').next().unwrap();
    let may_ask = || get("/drop?id=all", cookie).0 != 403;
    assert!(may_ask());
    fs::write(token.path(), "another-admin-token\n").unwrap();
    wait_for("the session to end", || (!may_ask()).then_some(()));
}

fn raw(port: u16, request: &str) -> String {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn sockets_of_systemds_refuse_nobody_while_we_restart() {
    let mut world = World::with(Options { lmtp: true, without_milter: true, ..Options::default() });
    // What systemd does: open the sockets, pass them as descriptors 3 and 4, say which is which.
    let place = |listen: String| listen.strip_prefix("unix:").unwrap().to_owned();
    let (milter, lmtp) = (place(world.milter_listen()), place(world.lmtp_listen()));
    let sockets = [UnixListener::bind(&milter).unwrap(), UnixListener::bind(&lmtp).unwrap()];
    for path in [&milter, &lmtp] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    }
    let config = fs::read_to_string(world.config_path()).unwrap();
    let config =
        config.replace(&format!("unix:{milter}"), "systemd").replace(&format!("unix:{lmtp}"), "systemd");
    fs::write(world.config_path(), config).unwrap();
    // And its notification socket.
    let notify = world.root.join("notify.sock");
    let states = UnixDatagram::bind(&notify).unwrap();
    states.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
    let log = world.root.join("milter.log");
    let next = |expected: &str| {
        wait_for(expected, || {
            let mut buffer = [0; 4096];
            let length = states.recv(&mut buffer).unwrap_or_else(|error| {
                panic!("no {expected}: {error}: {}", fs::read_to_string(&log).unwrap_or_default())
            });
            let state = String::from_utf8_lossy(&buffer[..length]).into_owned();
            state.contains(expected).then_some(state)
        })
    };
    // What Rust opens is closed on exec; these are to be handed over.
    let high = |socket: &UnixListener| nix::fcntl::fcntl(socket, nix::fcntl::FcntlArg::F_DUPFD(100)).unwrap();
    let [first, second] = [high(&sockets[0]), high(&sockets[1])];
    let script = format!(
        "exec 3<&{first} 4<&{second} {first}<&- {second}<&-; export LISTEN_PID=$$; exec {} -c {} serve",
        program().display(),
        world.config_path().display()
    );
    let start = || {
        let mut command = Command::new("bash");
        command.args(["-c", &script]).env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", "milter:lmtp");
        command.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "400000");
        Process::start(&mut command, &world.root.join("milter.log"))
    };
    let service = start();
    next("READY=1");
    next("WATCHDOG=1");
    assert!(world.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"));
    service.signal("HUP");
    assert!(next("RELOADING=1").contains("MONOTONIC_USEC="));
    next("READY=1");
    // Mail comes while the service restarts, again and again; nobody is refused, nothing is lost.
    let port = world.postfix.port;
    let sender = std::thread::spawn(move || {
        for number in 0..40 {
            let message =
                format!("From: anna@mycompany.test\nSubject: {number}\nMessage-ID: <{number}@x.test>\n\nx\n");
            // Who had a session when we stopped is told so, by us; nobody meets a milter that is not there.
            loop {
                let (answers, answer) = Smtp::connect(port).mail(ANNA, &[MY], message.as_bytes());
                if answer.starts_with("250") {
                    break;
                }
                assert!(answer.ends_with("[shutting-down]"), "{number}: {answers:?} {answer}");
            }
        }
    });
    let mut service = service;
    let mut restarts = 0;
    while !sender.is_finished() || restarts < 2 {
        service.signal("TERM");
        next("STOPPING=1");
        assert_eq!(service.wait(), Some(0), "{}", service.log());
        service = start();
        next("READY=1");
        restarts += 1;
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    sender.join().unwrap();
    world.wait_for_activities(41);
    assert!(fs::exists(&milter).unwrap(), "the socket's name is systemd's");
    world.milter = Some(service);
}

#[test]
fn the_log_says_who_and_never_what() {
    for (addresses, shown, hidden) in [
        ("full", "sender=\"anna@mycompany.test\"", "nothing"),
        ("domain", "sender=\"...@mycompany.test\"", "anna@"),
        ("none", "no-subject", "@mycompany.test"),
    ] {
        let token = tempfile::NamedTempFile::new().unwrap();
        fs::write(token.path(), "a-token-nobody-may-read\n").unwrap();
        let path = token.path().display().to_string();
        let mut world = World::with(Options {
            lmtp: true,
            config: vec![
                ("log", format!("addresses = \"{addresses}\"")),
                ("log", "level = \"trace\"".to_owned()),
                ("log", "format = \"json\"".to_owned()),
                ("backend", format!("token_file = \"{path}\"")),
            ],
            ..Options::default()
        });
        let mut smtp = world.smtp();
        for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/messages")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "eml") {
                smtp.mail(
                    ANNA,
                    &[MY, "1001.mycompany@severamail.test", "bo@acme.test"],
                    &fs::read(&path).unwrap(),
                );
            }
        }
        world.wait_for_activities(14);
        wait_for("deliveries", || {
            (world.milter().log().matches("\"delivered\"").count() >= 14).then_some(())
        });
        world.stop_milter();
        let log = fs::read_to_string(world.root.join("milter.log")).unwrap();
        // Ours, that is: what libraries say at level trace is not ours to promise, and not shown at the default level.
        let ours: Vec<Value> = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line.get("message_id").is_some())
            .collect();
        assert!(ours.len() > 25, "{} lines", ours.len());
        let ours = ours.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
        for secret in [
            "Offer for the roll-out",
            "Meeting on Friday",
            "Preisliste",
            "offer.pdf",
            "Best regards",
            "a-token-nobody-may-read",
            hidden,
        ] {
            assert!(!ours.contains(secret), "{addresses}: {secret}");
        }
        let shown = shown.replace("sender=", "\"sender\":");
        assert!(ours.contains(&shown), "{addresses}: {shown}");
    }
}
