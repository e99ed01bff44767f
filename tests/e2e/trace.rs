//! One mail is found again: by its queue id as Postfix's log writes it, by key, Message-ID and address, whatever became of it;
//! and a trace that is broken stops nobody.

use crate::support::{
    http::{http, http_get},
    smtp::{matches, stuffed},
    wait_for,
    world::{Options, World, eml, program},
};
use serde_json::Value;
use std::{fs, process::Command};

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";
const BO: &str = "bo@acme.test";

/// What `trace --json` says; nothing found is an empty list.
fn trace(world: &World, words: &[&str]) -> Vec<Value> {
    let (code, out, error) = world.command(&[&["trace", "--json"], words].concat());
    assert!(matches!(code, Some(0 | 1)), "{out}{error}");
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What happened, in its order.
fn fates(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["what"].as_str().unwrap()).collect()
}

/// Waits until exactly this is known of a mail.
#[track_caller]
fn wait_for_fates(world: &World, words: &str, expected: &[&str]) -> Vec<Value> {
    wait_for(&format!("{words} to be {expected:?}"), || {
        let events = trace(world, &[words]);
        (fates(&events) == expected).then_some(events)
    })
}

/// The queue id of a mail that Postfix took: its reply names it.
#[track_caller]
fn queued_as(reply: &str) -> String {
    assert!(reply.starts_with("250"), "{reply}");
    reply.rsplit(' ').next().unwrap().to_owned()
}

/// The newest line of Postfix's log with these words.
fn log_line(world: &World, words: &str) -> String {
    wait_for(words, || world.postfix.log().lines().rev().find(|line| line.contains(words)).map(str::to_owned))
}

/// T1: each fate, by each name.
#[test]
fn each_fate_is_found_by_whatever_names_the_mail() {
    let world = World::start();
    let mut smtp = world.smtp();
    // The first recipient is refused before there is a queue id, and still shows under it.
    let (answers, last) = smtp.mail(ANNA, &["nobody@severamail.test", MY, BO], &eml("plain"));
    assert!(answers[0].starts_with("550") && answers[2].starts_with("250"), "{answers:?}");
    let id = queued_as(&last);
    let events = wait_for_fates(&world, &id, &["refused", "recorded", "delivered"]);
    assert_eq!(
        (&events[0]["stage"], &events[0]["reply"], &events[0]["status"]),
        (&"rcpt".into(), &550.into(), &"5.1.1".into())
    );
    assert_eq!(
        (&events[0]["reason"], &events[0]["recipient"]),
        (&"no-such-tenant".into(), &"nobody@severamail.test".into())
    );
    assert_eq!((&events[0]["queue_id"], &events[1]["queue_id"]), (&Value::Null, &id.clone().into()));
    for (field, expected) in [
        ("sender", ANNA),
        ("recipient", MY),
        ("tenant", "t-1"),
        ("door", "milter"),
        ("client", "127.0.0.1"),
        ("message_id", "plain-1@mycompany.test"),
    ] {
        assert_eq!(events[1][field], expected, "{field}");
    }
    assert_eq!(events[1]["others"], Value::from(vec![BO]));
    assert_eq!((&events[2]["attempt"], &events[2]["tenant"]), (&1.into(), &"t-1".into()));
    // By everything that names it, in the forms in which people have it.
    let key = events[1]["key"].as_str().unwrap();
    for words in [
        key,
        &key[..11],
        "<plain-1@mycompany.test>",
        "plain-1@mycompany.test",
        "ANNA@MyCompany.test",
        "bo@acme.test",
        "nobody@severamail.test",
        &log_line(&world, &format!("{id}: client=")),
    ] {
        assert_eq!(trace(&world, &[words]), events, "{words}");
    }
    // A line that the shell has cut into words.
    let line = log_line(&world, &format!("{id}: client="));
    assert_eq!(trace(&world, &line.split(' ').collect::<Vec<_>>()), events);
    // Nobody else's recipient: refused at the end of the header, and all of it at RCPT.
    let (_, last) = smtp.mail(ANNA, &["1001.mycompany@severamail.test"], &eml("no_subject"));
    assert!(last.starts_with("550 5.6.0"), "{last}");
    let line = log_line(&world, "[no-subject]");
    let events = wait_for_fates(&world, &line, &["refused"]);
    assert_eq!((&events[0]["reason"], &events[0]["stage"]), (&"no-subject".into(), &"end-of-header".into()));
    assert_eq!(fates(&trace(&world, &["nosubject-1@mycompany.test"])), ["refused"]);
    let (_, last) = smtp.mail("kim@mycompany.test", &["nobody2@severamail.test"], &eml("plain"));
    assert!(last.starts_with("550 5.1.1"), "{last}");
    let noqueue = log_line(&world, "to=<nobody2@severamail.test>");
    for words in [noqueue.as_str(), "kim@mycompany.test", "nobody2@severamail.test"] {
        assert_eq!(fates(&wait_for_fates(&world, words, &["refused"])), ["refused"]);
    }
    // The same e-mail again: one mail with two queue ids.
    let again = queued_as(&smtp.mail(ANNA, &[MY], &eml("plain")).1);
    let events = wait_for_fates(&world, &again, &["refused", "recorded", "delivered", "known"]);
    assert!(events.iter().all(|event| event["mail"] == 1) && again != id, "{events:?}");
    // Other people's mail is not traced, and the answer says so.
    let others = queued_as(&smtp.mail("x@y.test", &[BO], &eml("plain")).1);
    let (code, out, error) = world.command(&["trace", &others]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    for part in
        ["nothing is known of the queue id ", "reaches back to 20", "Other people's mail is not traced"]
    {
        assert!(error.contains(part), "{error}");
    }
    let (code, _, error) = world.command(&["trace", "what is it"]);
    assert!(code == Some(64) && error.contains("there is no queue id"), "{code:?} {error}");
    let (code, _, error) = world.command(&["trace", &id, "--since", "noon"]);
    assert!(code == Some(64) && error.contains("write how long ago, like 2h"), "{code:?} {error}");
    // Only since when.
    assert_eq!(trace(&world, &[&id, "--since", "1h"]).len(), 4);
    assert_eq!(trace(&world, &[&id, "--since", "2126-01-01T00:00:00+02:00"]).len(), 0);
    // For people.
    let (_, out, _) = world.command(&["trace", &again]);
    for part in [
        &format!("queue id    {id}, {again}\n"),
        "came by     milter\n",
        "from        anna@mycompany.test\n",
        "to          nobody@severamail.test, mycompany@severamail.test, bo@acme.test\n",
        "  refused        550 5.1.1 [no-such-tenant] at rcpt to=<nobody@severamail.test>\n",
        "  delivered      tenant t-1 attempt 1 in ",
        "  known already  to=<mycompany@severamail.test> tenant t-1\n",
    ] {
        assert!(out.contains(part), "{part}\n{out}");
    }
    // Nothing of the content.
    let file = [
        fs::read(world.root.join("queue/trace.db")).unwrap(),
        fs::read(world.root.join("queue/trace.db-wal")).unwrap(),
    ]
    .concat();
    for words in ["Meeting on Friday", "see you on Friday", "Anna Aalto"] {
        assert!(!file.windows(words.len()).any(|window| window == words.as_bytes()), "{words}");
    }
}

/// T1: what a person does, and the page.
#[test]
fn what_waits_is_held_retried_and_dropped_and_the_page_finds_it_too() {
    let token = tempfile::NamedTempFile::new().unwrap();
    fs::write(token.path(), "secret-token\n").unwrap();
    let mut world = World::with(Options {
        without_sink: true,
        config: vec![("admin", format!("token_file = \"{}\"", token.path().display()))],
        ..Options::default()
    });
    let id = queued_as(&world.mail(ANNA, &["1001.mycompany@severamail.test"], &eml("plain")).1);
    let tried = wait_for("an attempt in vain", || {
        let events = trace(&world, &[&id]);
        events.into_iter().find(|event| event["what"] == "tried_in_vain")
    });
    assert!(
        tried["attempt"] == 1 && tried["span_ms"].is_u64() && !tried["detail"].as_str().unwrap().is_empty(),
        "{tried}"
    );
    world.start_sink();
    let events = wait_for("its delivery", || {
        let events = trace(&world, &[&id]);
        (*fates(&events).last().unwrap() == "delivered").then_some(events)
    });
    assert!(
        events[0]["project"] == "1001" && events.last().unwrap()["attempt"].as_u64().unwrap() > 1,
        "{events:?}"
    );
    // Held, retried on the page, and dropped by a command.
    world.sink = None;
    world.start_sink_with(&["--status".to_owned(), "422".to_owned()]);
    let id = queued_as(&world.mail(ANNA, &[MY], &eml("html_only")).1);
    let events = wait_for_fates(&world, &id, &["recorded", "held"]);
    assert!(events[1]["detail"].as_str().unwrap().starts_with("backend answered 422"), "{events:?}");
    let key = events[0]["key"].as_str().unwrap().to_owned();
    // The page: nothing for strangers, all of it for who has logged in.
    let get = |path: &str, cookie: &str| {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n"
        );
        let (status, body) = http(world.admin_port, request.as_bytes());
        (status, String::from_utf8(body).unwrap())
    };
    let (status, body) = get(&format!("/trace?q={id}"), "");
    assert!(status == 403 && !body.contains(&id), "{status} {body}");
    assert!(get("/", "").1.contains("to search, retry and drop"));
    let cookie = log_in(&world);
    assert!(get("/", &cookie).1.contains("action=\"/trace\""));
    for words in [id.as_str(), &key, "%20ANNA%40mycompany.test"] {
        let (status, body) = get(&format!("/trace?q={words}&since=1h"), &cookie);
        assert!(
            status == 200 && body.contains(&id) && body.contains("backend answered 422"),
            "{status} {body}"
        );
    }
    let (status, body) = get("/trace?q=7F3A91E0C2", &cookie);
    assert!(status == 200 && body.contains("Nothing is known of the queue id 7F3A91E0C2"), "{status} {body}");
    let (status, body) = get("/trace?q=%3Cscript%3E+nothing", &cookie);
    assert!(
        status == 400 && body.contains("there is no queue id") && !body.contains("<script"),
        "{status} {body}"
    );
    // Retry on the page.
    let body = get("/", &cookie).1;
    let form_token = body.split("name=form_token value=\"").nth(1).unwrap().split('"').next().unwrap();
    let form = format!("form_token={form_token}&action=retry&id=all");
    let request = format!(
        "POST /activities HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{form}",
        form.len()
    );
    assert_eq!(http(world.admin_port, request.as_bytes()).0, 303);
    wait_for_fates(&world, &id, &["recorded", "held", "retried_by_hand", "held"]);
    let line = format!("{id}: queue changed by hand tenant=t-1 key={key} what=retried door=admin");
    wait_for("its line of the log", || world.milter().log().contains(&line).then_some(()));
    let (_, out, _) = world.command(&["queue", "drop", &key]);
    assert_eq!(out, "1 dropped\n");
    wait_for_fates(&world, &id, &["recorded", "held", "retried_by_hand", "held", "dropped_by_hand"]);
    // Without the service it is found as well; and what a killed one had noted a second ago is there.
    let id = queued_as(&world.mail(ANNA, &[MY], &eml("nested_message")).1);
    wait_for_fates(&world, &id, &["recorded", "held"]);
    world.milter().kill();
    assert_eq!(fates(&trace(&world, &[&id])), ["recorded", "held"]);
    world.start_milter();
    world.stop_milter();
    assert_eq!(fates(&trace(&world, &[&id])), ["recorded", "held"]);
}

/// The cookie of a log-in.
fn log_in(world: &World) -> String {
    use std::io::{Read, Write};
    let form = "token=secret-token";
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", world.admin_port)).unwrap();
    write!(
        stream,
        "POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{form}",
        form.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (_, cookie) = answer.split_once("set-cookie: ").unwrap_or_else(|| panic!("{answer}"));
    cookie.split(';').next().unwrap().to_owned()
}

/// T1: the other door.
#[test]
fn by_lmtp_each_recipient_has_its_own() {
    let world = World::with(Options { lmtp: true, ..Options::default() });
    let mut lmtp = world.lmtp();
    let mut send = |id: &str, from: &str, to: &[&str], message: &str| -> Vec<String> {
        assert!(lmtp.command(&format!("XFORWARD IDENT={id} ADDR=192.0.2.7")).starts_with("250"));
        assert!(lmtp.command(&format!("MAIL FROM:<{from}>")).starts_with("250"));
        let answers: Vec<_> = to.iter().map(|to| lmtp.command(&format!("RCPT TO:<{to}>"))).collect();
        assert!(lmtp.command("DATA").starts_with("354"));
        lmtp.send(&stuffed(&eml(message)));
        answers
            .into_iter()
            .map(|answer| if answer.starts_with("250") { lmtp.reply() } else { answer })
            .collect()
    };
    let replies = send(
        "4bXyZ30w1Zz9vA",
        ANNA,
        &["nobody@severamail.test", MY, "7.sub.mycompany@severamail.test"],
        "plain",
    );
    assert!(
        matches(&replies[0], "550*") && matches(&replies[1], "250*") && matches(&replies[2], "250*"),
        "{replies:?}"
    );
    let events = wait_for("all of it", || {
        let events = trace(&world, &["4bXyZ30w1Zz9vA"]);
        (events.len() == 5).then_some(events)
    });
    assert_eq!(fates(&events)[..3], ["refused", "recorded", "recorded"]);
    assert!(
        events[..3].iter().all(|event| event["door"] == "lmtp" && event["client"] == "192.0.2.7"),
        "{events:?}"
    );
    // Nobody is a user: known only at the end, and told with the sender.
    let replies = send("4bXyZ30w1Zz9vB", "x@y.test", &[MY], "unknown_sender");
    assert!(matches(&replies[0], "550 5.7.1*[no-user]"), "{replies:?}");
    let events = wait_for_fates(&world, "4bXyZ30w1Zz9vB", &["refused"]);
    assert_eq!((&events[0]["sender"], &events[0]["reason"]), (&"x@y.test".into(), &"no-user".into()));
    assert_eq!(fates(&trace(&world, &["x@y.test"])), ["refused"]);
}

/// T1: where there is no queue.
#[test]
fn direct_mode_is_traced_without_a_queue() {
    let mut world = World::with(Options {
        config: vec![("backend", "delivery = \"direct\"".to_owned())],
        ..Options::default()
    });
    let id = queued_as(&world.mail(ANNA, &[MY], &eml("plain")).1);
    let events = wait_for_fates(&world, &id, &["delivered", "recorded"]);
    assert_eq!(trace(&world, &[events[0]["key"].as_str().unwrap()]), events);
    world.sink = None;
    world.start_sink_with(&["--status".to_owned(), "422".to_owned()]);
    let (_, last) = world.mail(ANNA, &[MY], &eml("html_only"));
    assert!(last.starts_with("550 5.6.0"), "{last}");
    let events = wait_for_fates(&world, &log_line(&world, "[backend-refused]"), &["refused"]);
    assert!(events[0]["key"].is_string() && events[0]["reason"] == "backend-refused", "{events:?}");
    world.sink = None;
    let (_, last) = world.mail(ANNA, &[MY], &eml("nested_message"));
    assert!(last.starts_with("451"), "{last}");
    let events =
        wait_for_fates(&world, &log_line(&world, "[backend-unreachable]"), &["not_delivered", "deferred"]);
    assert_eq!(events[0]["key"], events[1]["key"]);
}

#[test]
fn shadow_mode_says_what_would_be() {
    let world =
        World::with(Options { config: vec![("", "mode = \"shadow\"".to_owned())], ..Options::default() });
    let mut smtp = world.smtp();
    let (_, last) = smtp.mail(ANNA, &["nobody@severamail.test", MY], &eml("plain"));
    let events = wait_for_fates(&world, &queued_as(&last), &["would_refuse", "would_record"]);
    assert_eq!(
        (&events[0]["reply"], &events[0]["recipient"]),
        (&550.into(), &"nobody@severamail.test".into())
    );
    assert_eq!((&events[1]["tenant"], &events[1]["recipient"]), (&"t-1".into(), &MY.into()));
    let (_, last) = smtp.mail(ANNA, &[MY], &eml("no_subject"));
    let events = wait_for_fates(&world, &queued_as(&last), &["would_refuse"]);
    assert_eq!((&events[0]["reason"], &events[0]["sender"]), (&"no-subject".into(), &ANNA.into()));
}

/// T6: what is not to be shown is not kept.
#[test]
fn addresses_are_kept_as_the_log_shows_them() {
    for (setting, sender) in [("domain", Value::from("...@mycompany.test")), ("none", Value::Null)] {
        let world = World::with(Options {
            config: vec![("log", format!("addresses = \"{setting}\""))],
            ..Options::default()
        });
        let id = queued_as(&world.mail(ANNA, &[BO, MY], &eml("plain")).1);
        let events = wait_for_fates(&world, &id, &["recorded", "delivered"]);
        assert_eq!(events[0]["sender"], sender, "{setting}");
        let (code, _, error) = world.command(&["trace", ANNA]);
        assert!(code == Some(1) && error.contains("log.addresses is not \"full\""), "{error}");
        let file = [
            fs::read(world.root.join("queue/trace.db")).unwrap(),
            fs::read(world.root.join("queue/trace.db-wal")).unwrap(),
        ]
        .concat();
        for words in [ANNA, MY, BO] {
            assert!(!file.windows(words.len()).any(|window| window == words.as_bytes()), "{setting} {words}");
        }
    }
}

/// T6: nothing at all.
#[test]
fn keep_nothing_keeps_nothing() {
    let world =
        World::with(Options { config: vec![("trace", "keep = \"0\"".to_owned())], ..Options::default() });
    let id = queued_as(&world.mail(ANNA, &[MY], &eml("plain")).1);
    world.wait_for_activities(1);
    assert!(!world.root.join("queue/trace.db").exists());
    let (code, _, error) = world.command(&["trace", &id]);
    assert!(
        code == Some(69) && error.contains("nothing is traced, because trace.keep is \"0\""),
        "{code:?} {error}"
    );
    let (_, body) = http_get(world.admin_port, "/");
    assert!(!String::from_utf8(body).unwrap().contains("/trace"));
    assert!(world.command(&["check"]).1.contains("trace         trace.keep is \"0\""));
}

/// A file that is broken in each way there is: the service starts, mail is recorded and delivered, and it is said in the log,
/// by `check` and on the page.
/// T2.
#[test]
fn a_broken_trace_stops_nobody() {
    let newer = |path: &std::path::Path| {
        let database = rusqlite::Connection::open(path).unwrap();
        database
            .execute_batch("CREATE TABLE t (x); PRAGMA application_id = 1634554994; PRAGMA user_version = 9")
            .unwrap();
    };
    type Break<'a> = &'a dyn Fn(&std::path::Path);
    let ways: [(&str, Break<'_>, &str); 5] = [
        (
            "somebody's text",
            &|path| fs::write(path, "no database at all ".repeat(999)).unwrap(),
            "it is no trace",
        ),
        (
            "damaged",
            &|path| fs::write(path, [b"SQLite format 3\0".as_slice(), &[0xff; 9000]].concat()).unwrap(),
            "the trace is damaged: moved aside",
        ),
        ("newer", &newer, "the trace cannot be written: mail goes on"),
        (
            "foreign",
            &|path| rusqlite::Connection::open(path).unwrap().execute_batch("CREATE TABLE t (x)").unwrap(),
            "it is no trace",
        ),
        ("a directory", &|path| fs::create_dir(path).unwrap(), "the trace cannot be written: mail goes on"),
    ];
    for (way, make, said) in ways {
        let mut world = World::with(Options { without_milter: true, ..Options::default() });
        let path = world.root.join("queue/trace.db");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        make(&path);
        world.start_milter();
        let id = queued_as(&world.mail(ANNA, &[MY], &eml("plain")).1);
        world.wait_for_activities(1);
        world.milter().wait_to_say(said);
        let (code, out, error) = world.command(&["check"]);
        let (_, page) = http_get(world.admin_port, "/");
        let page = String::from_utf8(page).unwrap();
        if way == "damaged" {
            assert!(path.with_file_name("trace.db.aside").exists());
            wait_for_fates(&world, &id, &["recorded", "delivered"]);
            assert!(page.contains("trace: ok"), "{page}");
        } else {
            let line =
                out.lines().find(|line| line.contains(" trace ")).unwrap_or_else(|| panic!("{out}{error}"));
            assert!(
                code == Some(1) && line.starts_with("NOT OK") && line.contains("mail goes on without it"),
                "{line}"
            );
            assert!(
                page.contains("trace: not ok")
                    && page.contains("cannot be written, and mail goes on without"),
                "{page}"
            );
            assert_eq!(http_get(world.admin_port, "/readyz").0, 200);
            assert_eq!(world.command(&["trace", &id]).0, Some(69));
        }
        world.stop_milter();
    }
}

/// The disk of the trace alone is full, in a mount namespace of its own: what does not fit is counted, and mail goes on.
/// T2, T3.
#[test]
fn a_full_disk_stops_nobody() {
    let mut world = World::with(Options { without_milter: true, ..Options::default() });
    let small = world.root.join("small");
    fs::create_dir(&small).unwrap();
    let text = fs::read_to_string(world.config_path()).unwrap();
    fs::write(world.config_path(), format!("{text}\n[trace]\npath = \"{}/trace.db\"\n", small.display()))
        .unwrap();
    let text = fs::read_to_string(world.config_path()).unwrap();
    fs::write(world.config_path(), text.replace("[queue]\n", "[queue]\nmin_free = \"1 B\"\n")).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=256k none {0}; head -c 200k /dev/zero > {0}/fill; exec {1} --config {2} serve",
        small.display(),
        program().display(),
        world.config_path().display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", &script]);
    let mut milter = crate::support::world::Process::start(&mut command, &world.root.join("milter.log"));
    milter.wait_to_say("started");
    world.milter = Some(milter);
    let mut smtp = world.smtp();
    let messages = 40;
    for n in 0..messages {
        let message =
            format!("From: {ANNA}\nSubject: {n}\nMessage-ID: <{n}@{}.test>\n\nx\n", "x".repeat(900));
        assert!(smtp.mail(ANNA, &[MY], message.as_bytes()).1.starts_with("250"));
    }
    world.wait_for_activities(messages);
    world.milter().wait_to_say("the trace cannot be written: mail goes on");
}
