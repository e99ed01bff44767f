//! Start, stop, and everything that happens in between at night.

use crate::support::{
    smtp::matches,
    wait_for,
    world::{Options, Process, World, eml, program},
};
use std::{collections::HashSet, os::unix::net::UnixStream, path::Path, process::Command};

const MY: &[&str] = &["mycompany@severamail.test"];

fn numbered(i: usize) -> Vec<u8> {
    format!("From: anna@mycompany.test\nSubject: number {i}\nMessage-ID: <{i}@mycompany.test>\n\ntext {i}\n")
        .into_bytes()
}

#[track_caller]
fn assert_each_once(world: &World, count: usize) {
    let activities = world.wait_for_activities(count);
    let subjects: HashSet<_> = activities.iter().map(|a| a["subject"].as_str().unwrap().to_owned()).collect();
    assert_eq!(subjects.len(), count);
}

#[test]
fn milter_not_running_defers_all_mail_of_that_postfix() {
    let world = World::with(Options { without_milter: true, ..Options::default() });
    let (_, answer) = world.mail("anna@mycompany.test", MY, &eml("plain"));
    assert!(matches(&answer, "451 4.7.1 Service unavailable - try again later"), "{answer}");
}

#[test]
fn backend_down_for_a_while_then_up_everything_arrives_once() {
    let mut world = World::with(Options { without_sink: true, ..Options::default() });
    let mut smtp = world.smtp();
    for i in 0..20 {
        let (_, answer) = smtp.mail("anna@mycompany.test", MY, &numbered(i));
        assert!(answer.starts_with("250"), "{answer}");
    }
    wait_for("an attempt that fails", || world.milter().log().contains("delivery deferred").then_some(()));
    world.start_sink();
    assert_each_once(&world, 20);
}

#[test]
fn a_backend_that_fails_every_second_time_gets_each_once() {
    let world = World::with(Options {
        sink: ["--fail-rate", "0.5", "--delay", "1ms"].map(str::to_owned).into(),
        ..Options::default()
    });
    let mut smtp = world.smtp();
    for i in 0..50 {
        assert!(smtp.mail("anna@mycompany.test", MY, &numbered(i)).1.starts_with("250"));
    }
    assert_each_once(&world, 50);
}

#[test]
fn killed_between_250_and_delivery_still_delivered_once() {
    // The sink hangs, so the killed service had the activity in its hands.
    let mut world = World::with(Options { sink: vec!["--hang".to_owned()], ..Options::default() });
    for i in 0..5 {
        assert!(world.mail("anna@mycompany.test", MY, &numbered(i)).1.starts_with("250"));
    }
    let big = [numbered(5), b"y".repeat(63), b"\n".to_vec()].concat();
    let big =
        [big.clone(), b"z".repeat(70).into_iter().chain(*b"\n").collect::<Vec<u8>>().repeat(10_000)].concat();
    assert!(world.mail("anna@mycompany.test", MY, &big).1.starts_with("250"));
    world.milter().kill();
    world.sink = None;
    world.start_milter();
    world.start_sink_with(&[]);
    assert_each_once(&world, 6);
    // The killed one left its socket behind, and that did not stop the new one.
    assert!(world.mail("anna@mycompany.test", MY, &numbered(6)).1.starts_with("250"));
    assert_each_once(&world, 7);
}

#[test]
fn sigterm_finishes_messages_in_flight_and_takes_no_new_ones() {
    let mut world = World::start();
    let socket = world.root.join("postfix/queue/activity-milter/milter.sock");
    let mut in_flight = world.smtp();
    assert!(in_flight.command("MAIL FROM:<anna@mycompany.test>").starts_with("250"));
    assert!(in_flight.command("RCPT TO:<mycompany@severamail.test>").starts_with("250"));
    let mut idle = world.smtp(); // connected to the milter, no message yet
    assert!(idle.command("MAIL FROM:<anna@mycompany.test>").starts_with("250"));
    assert!(in_flight.command("DATA").starts_with("354"));
    in_flight.send(b"From: anna@mycompany.test\r\nSubject: in flight\r\n\r\nhalf of");

    world.milter().signal("TERM");
    wait_for("the stop to begin", || world.milter().log().contains("stopping").then_some(()));
    let answer = idle.command("RCPT TO:<mycompany@severamail.test>");
    assert!(matches(&answer, "451 4.3.2 *[shutting-down]"), "{answer}");
    wait_for("the socket to close", || UnixStream::connect(&socket).is_err().then_some(()));
    in_flight.send(b" the body\r\n.\r\n");
    let answer = in_flight.command("NOOP"); // the reply to the message comes first
    assert!(answer.starts_with("250 2.0.0 Ok: queued"), "{answer}");
    assert_eq!(world.milter().wait(), Some(0));
    assert!(!Path::new(&socket).exists());
    let log = world.milter().log();
    assert!(log.contains("cut_off=0"), "{log}");
    // Recorded before we stopped; delivered then, or after the next start.
    world.milter = None;
    world.start_milter();
    assert_eq!(world.wait_for_activities(1)[0]["subject"], "in flight");
}

#[test]
fn a_second_service_is_refused_and_harms_nothing() {
    let world = World::start();
    let second = || {
        let mut command = Command::new(program());
        command.arg("--config").arg(world.config_path()).arg("serve");
        let mut process = Process::start(&mut command, &world.root.join("second.log"));
        let code = process.wait();
        wait_for("its last words", || Some(process.log()).filter(|log| log.contains("activity-milter:")));
        (code, process.log())
    };
    let (code, log) = second();
    assert!(code == Some(69) && log.contains("is in use"), "{code:?} {log}");
    assert!(world.mail("anna@mycompany.test", MY, &eml("plain")).1.starts_with("250"));
    world.wait_for_activities(1);
}

#[test]
fn a_wrong_configuration_ends_with_code_78_and_names_the_place() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("am.toml");
    let run = |text: &str, command: &str| {
        std::fs::write(&config, text).unwrap();
        let output = Command::new(program()).arg("-c").arg(&config).arg(command).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = run("integration_domains = [\"x.test\"]\nlisten = 1\n", "serve");
    assert_eq!(code, Some(78));
    assert!(text.contains("am.toml:2:1: unknown field `listen`"), "{text}");
    let broken = directory.path().join("directory.toml");
    std::fs::write(&broken, "[[tenant]]\nprefix = 7\n").unwrap();
    let text = format!(
        "integration_domains = [\"x.test\"]\n[directory]\npath = \"{}\"\n[backend]\nurl = \"http://127.0.0.1:1/\"\n\
         [milter]\nlisten = \"inet:127.0.0.1:0\"\n",
        broken.display()
    );
    let (code, text) = run(&text, "serve");
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("directory.toml:2:10: prefix: 7 is a number"), "{text}");
    let missing = Command::new(program()).args(["-c", "/nonexistent.toml", "serve"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(78));
}

#[test]
fn a_new_directory_file_is_taken_without_restart() {
    let world = World::start();
    let new = ["newcomer@severamail.test"];
    assert!(world.mail("anna@mycompany.test", &new, &eml("plain")).1.contains("[no-such-tenant]"));
    let path = world.root.join("directory.toml");
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str("[[tenant]]\nprefix = \"newcomer\"\nid = \"t-9\"\n[[tenant.user]]\nid = \"u-9\"\naddresses = [\"anna@mycompany.test\"]\n");
    std::fs::write(&path, text).unwrap();
    wait_for("the new tenant", || {
        world.mail("anna@mycompany.test", &new, &eml("plain")).1.starts_with("250").then_some(())
    });
    assert_eq!(world.wait_for_activities(1)[0]["tenant"]["id"], "t-9");
}
