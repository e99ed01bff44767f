//! The directory as the backend's look-ups: what is asked, what is remembered, and what happens while it is down.

use crate::database::Cluster;
use crate::support::{
    free_port,
    smtp::matches,
    wait_for,
    world::{Options, Process, World, eml, program},
};
use serde_json::Value;
use std::{fs, process::Command};

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";
const PROJECT: &str = "1001.mycompany@severamail.test";

/// A directory whose answers count for so long.
fn world(hits: &str, misses: &str, more: &[(&'static str, &str)]) -> World {
    let mut config = vec![
        ("directory", format!("cache_hits = \"{hits}\"")),
        ("directory", format!("cache_misses = \"{misses}\"")),
    ];
    config.extend(more.iter().map(|(table, line)| (*table, (*line).to_owned())));
    World::with(Options { http_directory: true, config, lmtp: true, ..Options::default() })
}

fn numbered(number: u32, to: &str) -> Vec<u8> {
    format!("From: {ANNA}\nTo: {to}\nSubject: {number}\nMessage-ID: <{number}@x.test>\n\nx\n").into_bytes()
}

#[test]
fn the_same_answers_as_from_the_file_and_few_questions() {
    let world = world("1h", "1h", &[]);
    let file = World::start();
    for world in [&world, &file] {
        assert!(world.mail(ANNA, &[PROJECT], &eml("project_with_attachments")).1.starts_with("250"));
    }
    let without_way = |mut activity: Value| {
        for field in ["received_at", "envelope"] {
            activity[field].take();
        }
        activity
    };
    let (http, from_file) = (world.wait_for_activities(1).remove(0), file.wait_for_activities(1).remove(0));
    assert_eq!(without_way(http), without_way(from_file));
    // Two prefixes, the project with the sender, and the others.
    assert_eq!(world.look_ups(), 4);
    // The same people again: nothing is asked. Bo alone would be known; Dora is new: one question.
    for number in 0..5 {
        assert!(
            world
                .mail(ANNA, &["bo@acme.test", PROJECT], &numbered(number, "bo@acme.test"))
                .1
                .starts_with("250")
        );
    }
    assert_eq!(world.look_ups(), 4);
    assert!(world.mail(ANNA, &[MY], &numbered(6, "dora@elsewhere.test")).1.starts_with("250"));
    assert_eq!(world.look_ups(), 5);
    // The project and everybody who is in the envelope: one question for the message.
    let to = ["carl@else.test", "1002.mycompany@severamail.test"];
    assert!(world.mail("esa@mycompany.test", &to, &numbered(7, "carl@else.test")).1.starts_with("250"));
    assert_eq!(world.look_ups(), 7, "the prefix 1002.mycompany, and the question");
    world.wait_for_activities(8);
    for (to, reply) in [
        ("nobody@severamail.test", "550 5.1.1 *[no-such-tenant]"),
        ("closed@severamail.test", "550 5.2.1 *[tenant-inactive]"),
        ("9999.mycompany@severamail.test", "550 5.1.1 *[unknown-project]"),
        ("a.b.c.d.e.f.g.nobody@severamail.test", "550 5.1.1 *[no-such-tenant]"),
    ] {
        let (answers, _) = world.mail(ANNA, &[to], &eml("plain"));
        assert!(matches(&answers[0], reply), "{to}: {}", answers[0]);
    }
    let (_, answer) = world.mail("carl@else.test", &[MY], &eml("unknown_sender"));
    assert!(matches(&answer, "550 5.7.1 *[no-user]"), "{answer}");
}

#[test]
fn while_the_backend_is_down_known_tenants_go_on_and_nobody_is_refused() {
    let mut world = world("100ms", "100ms", &[("directory", "cache_stale = \"1h\"")]);
    let (bo, message) = ("bo@acme.test", numbered);
    assert!(world.mail(ANNA, &[PROJECT], &message(1, bo)).1.starts_with("250"));
    assert!(world.mail(ANNA, &[MY], &message(2, "carl@else.test")).1.starts_with("250"));
    let (answers, _) = world.mail(ANNA, &["nobody@severamail.test"], &eml("plain"));
    assert!(matches(&answers[0], "550 5.1.1 *"), "{}", answers[0]);
    let (answers, _) = world.mail(ANNA, &["closed@severamail.test"], &eml("plain"));
    assert!(matches(&answers[0], "550 5.2.1 *"), "{}", answers[0]);
    let (answers, _) = world.mail(ANNA, &["9999.mycompany@severamail.test"], &eml("plain"));
    assert!(matches(&answers[0], "550 5.1.1 *[unknown-project]"), "{}", answers[0]);
    world.wait_for_activities(2);
    world.sink = None;
    std::thread::sleep(std::time::Duration::from_millis(200));
    // What is known goes on: the tenant, its project, its users, and people who were strangers a moment ago. Reloads, of
    // which an admin tries several at such a time, take nothing away.
    for reloads in 0..3 {
        if reloads > 0 {
            let times =
                format!("cache_hits = \"{}00ms\"\ncache_size = \"{} MiB\"", 1 + reloads, 16 + reloads / 2);
            let text = fs::read_to_string(world.config_path()).unwrap();
            let was = if reloads == 1 {
                "cache_hits = \"100ms\"".to_owned()
            } else {
                "cache_hits = \"200ms\"\ncache_size = \"16 MiB\"".to_owned()
            };
            assert!(text.contains(&was), "{text}");
            fs::write(world.config_path(), text.replace(&was, &times)).unwrap();
            world.milter().signal("HUP");
            let mut read = || world.milter().log().matches("configuration read again").count();
            wait_for("the reload", || (read() == reloads).then_some(()));
        }
        let three = [(3, bo, MY), (4, bo, PROJECT), (5, "carl@else.test", PROJECT)];
        for (number, to, recipient) in three {
            let number = number + 10 * u32::try_from(reloads).unwrap();
            let (answers, answer) = world.mail(ANNA, &[recipient], &message(number, to));
            assert!(answer.starts_with("250"), "{to} {recipient}: {answers:?} {answer}");
        }
    }
    world.milter().line_with(&["stale answers are used"]);
    // What is not known, or known to be no, is not refused: nobody can say now.
    for to in [
        "nobody@severamail.test",
        "closed@severamail.test",
        "9999.mycompany@severamail.test",
        "1002.mycompany@severamail.test",
        "new@severamail.test",
    ] {
        let (answers, _) = world.mail(ANNA, &[to], &eml("plain"));
        assert!(matches(&answers[0], "451 4.4.3 *[directory-unavailable]"), "{to}: {}", answers[0]);
    }
    for (sender, to) in [("carl@else.test", bo), (ANNA, "somebody@new.test")] {
        let message = format!("From: {sender}\nTo: {to}\nSubject: s\n\nx\n");
        let (_, answer) = world.mail(sender, &[MY], message.as_bytes());
        assert!(matches(&answer, "451 4.4.3 *[directory-unavailable]"), "{sender} {to}: {answer}");
    }
    // Back again: everything is answered, and what waited is delivered.
    world.start_sink();
    wait_for("the directory", || {
        let (answers, _) = world.mail(ANNA, &["nobody@severamail.test"], &eml("plain"));
        answers[0].starts_with("550 5.1.1").then_some(())
    });
    world.wait_for_activities(11);
    let key = |a: &Value| a["key"].as_str().unwrap().to_owned();
    let keys: std::collections::BTreeSet<_> = world.activities().iter().map(key).collect();
    assert_eq!(keys.len(), 11);
}

#[test]
fn cache_control_is_honoured() {
    for (value, asked_again) in
        [("no-store", true), ("no-cache", true), ("max-age=0", true), ("max-age=3600", false)]
    {
        let options = Options {
            http_directory: true,
            sink: vec!["--cache-control".to_owned(), value.to_owned()],
            config: vec![
                ("directory", "cache_hits = \"1ms\"".to_owned()),
                ("directory", "cache_misses = \"1ms\"".to_owned()),
            ],
            ..Options::default()
        };
        let world = World::with(options);
        for number in 0..2 {
            assert!(world.mail(ANNA, &[MY], &numbered(number, "bo@acme.test")).1.starts_with("250"));
        }
        let expected = if asked_again { 4 } else { 2 };
        assert_eq!(world.look_ups(), expected, "{value}");
    }
}

#[test]
fn a_wrong_url_defers_and_refuses_nobody() {
    // A web server that knows nothing of us says 404 to everything, without problem details.
    let world = World::with(Options {
        http_directory: true,
        without_sink: true,
        config: vec![("backend", format!("url = \"http://127.0.0.1:{}/\"", not_found()))],
        ..Options::default()
    });
    let (answers, _) = world.mail(ANNA, &[MY], &eml("plain"));
    assert!(matches(&answers[0], "451 4.4.3 *[directory-unavailable]"), "{}", answers[0]);
}

/// A server on a port of its own, for as long as the process lives.
fn not_found() -> u16 {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(
                b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 2\r\nConnection: close\r\n\r\n:(",
            );
        }
    });
    port
}

#[test]
fn lookup_shows_what_the_directory_says() {
    let http = world("1h", "1h", &[]);
    let file = World::with(Options { without_milter: true, without_sink: true, ..Options::default() });
    for world in [&http, &file] {
        let args = ["directory", "lookup", PROJECT, ANNA, "BO@acme.test", "carl@else.test"];
        let (code, out, error) = world.command(&args);
        assert_eq!((code, error.as_str()), (Some(1), ""), "one is unknown");
        for line in [
            "tenant mycompany: t-1 \"My Company Oy\", active, activity type Email\n",
            "1001.mycompany@severamail.test: integration address p-1001 of customer c-acme in tenant mycompany\n",
            "anna@mycompany.test: user u-anna \"Anna Aalto\" in tenant mycompany\n",
            ": contact k-bo \"Bo Berg\" of customer c-acme in tenant mycompany\n",
            "carl@else.test: unknown in tenant mycompany\n",
        ] {
            assert!(out.contains(line), "{line}{out}");
        }
        let (code, out, _) = world.command(&["directory", "lookup", "--json", "--tenant", "mycompany", ANNA]);
        let found: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, &found["addresses"][0]["id"]), (Some(0), &"u-anna".into()));
    }
    let (_, out, _) = http.command(&["directory", "lookup", MY]);
    assert!(out.contains(&format!("source: http://127.0.0.1:{}/v1 (asked now, ", http.sink_port)), "{out}");
    let (_, out, _) = file.command(&["directory", "lookup", MY]);
    assert!(out.contains("directory.toml, written ") && out.contains(" ago (asked now"), "{out}");
    for (args, said) in [
        (["directory", "lookup", "nobody@severamail.test"], "no such tenant"),
        (["directory", "lookup", "9999.mycompany@severamail.test"], "no such project"),
    ] {
        let (code, out, _) = http.command(&args);
        assert!(code == Some(1) && out.contains(said), "{out}");
    }
    // Whoever is asked of nobody is not called unknown.
    let (code, out, error) = http.command(&["directory", "lookup", ANNA]);
    assert!(code == Some(64) && out.is_empty() && error.contains("add --tenant PREFIX"), "{out}{error}");
    let (_, out, _) = http.command(&["directory", "lookup", "nobody@severamail.test", ANNA]);
    assert!(out.contains("anna@mycompany.test: not looked up\n"), "{out}");
    let (code, _, error) = http.command(&["directory", "lookup", "nonsense"]);
    assert!(code == Some(64) && error.contains("\"nonsense\" is no address"), "{error}");
    let config = fs::read_to_string(http.config_path()).unwrap();
    let port = http.sink_port.to_string();
    fs::write(http.config_path(), config.replace(&port, "1")).unwrap();
    let (code, _, error) = http.command(&["directory", "lookup", MY]);
    assert!(code == Some(69) && error.contains("cannot answer"), "{error}");
}

/// Q51: what a person changed counts at once, here and on the machine beside it.
#[test]
fn a_tenant_is_forgotten_everywhere() {
    let cluster = Cluster::start(&[]).leaked();
    let database = cluster.database();
    let shared =
        [("queue", "type = \"postgres\"".to_owned()), ("queue", format!("url = \"{}\"", database.url()))];
    for more in [&[][..], &shared] {
        let more: Vec<_> = more.iter().map(|(table, line)| (*table, line.as_str())).collect();
        let mut world = world("1h", "1h", &more);
        let mut other = (!more.is_empty()).then(|| {
            let text = fs::read_to_string(world.config_path()).unwrap();
            let elsewhere = world.root.join("courier.toml");
            let theirs = text
                .replace("/queue/spool\"", "/courier/spool\"")
                .replace(&format!(":{}\"", world.admin_port), &format!(":{}\"", free_port()));
            fs::write(&elsewhere, theirs).unwrap();
            let mut command = Command::new(program());
            command.arg("--config").arg(&elsewhere).args(["serve", "--courier-only"]);
            let mut process = Process::start(&mut command, &elsewhere.with_extension("log"));
            process.wait_to_say("started");
            process
        });
        let first = |world: &World, number: u32, recipient: &str| {
            let (answers, _) = world.mail(ANNA, &[recipient], &numbered(number, "bo@acme.test"));
            answers.into_iter().next().unwrap()
        };
        assert!(first(&world, 1, MY).starts_with("250"));
        assert!(first(&world, 2, "closed@severamail.test").starts_with("550 5.2.1"));
        let path = world.root.join("directory.toml");
        let text = fs::read_to_string(&path).unwrap();
        let (head, tenant) = text.split_once("prefix = \"mycompany\"").unwrap();
        let changed =
            format!("{head}prefix = \"mycompany\"{}", tenant.replacen("active = true", "active = false", 1));
        assert_ne!(changed, text);
        fs::write(&path, changed).unwrap();
        std::thread::sleep(std::time::Duration::from_secs(3)); // the sink reads it
        assert!(first(&world, 3, MY).starts_with("250"), "for an hour");
        let (code, _, error) = world.command(&["directory", "forget", "MyCompany"]);
        assert_eq!(code, Some(0), "{error}");
        world.milter().line_with(&["directory is asked anew", "tenants=mycompany"]);
        if let Some(other) = &mut other {
            other.line_with(&["directory is asked anew", "tenants=mycompany"]);
        }
        assert!(first(&world, 4, MY).starts_with("550 5.2.1"));
        let asked = world.look_ups();
        assert!(first(&world, 5, "closed@severamail.test").starts_with("550 5.2.1"));
        assert_eq!(world.look_ups(), asked, "of the others nothing is forgotten");
        assert_eq!(world.command(&["directory", "forget", "--all"]).0, Some(0));
        world.milter().line_with(&["directory is asked anew", "tenants=all"]);
        assert!(first(&world, 6, "closed@severamail.test").starts_with("550 5.2.1"));
        assert!(world.look_ups() > asked);
        for wrong in [&["forget"][..], &["forget", "--all", "a"], &["forget", "a@b.test"], &["forget", ""]] {
            let (code, _, _) = world.command(&[&["directory"], wrong].concat());
            assert_eq!(code, Some(64), "{wrong:?}");
        }
        if let Some(other) = &mut other {
            other.signal("TERM");
            assert_eq!(other.wait(), Some(0));
        }
    }
}
