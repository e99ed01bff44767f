//! The log under a real journald, which runs in a mount namespace of its own with this machine's binaries; and where nobody
//! can take it.

use super::delivery::queue_id;
use crate::support::{
    free_port,
    http::http_get,
    wait_for,
    world::{Options, Process, World, eml, program},
};
use serde_json::Value;
use std::{
    fs,
    process::{Command, Stdio},
};

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";

/// journald, with directories of its own in place of the machine's.
struct Journald {
    process: Process,
    scratch: tempfile::TempDir,
}

impl Journald {
    fn start() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let script = "mkdir -p /run/systemd /run/log && mount -t tmpfs tmpfs /run/systemd \
                      && mount -t tmpfs tmpfs /run/log && mkdir /run/systemd/journal && exec /lib/systemd/systemd-journald";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
        let process = Process::start(&mut command, &scratch.path().join("journald.log"));
        let journald = Self { process, scratch };
        wait_for("journald's socket", || {
            journald.inside("test", &["-S", "/run/systemd/journal/stdout"]).status.success().then_some(())
        });
        journald
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &self.process.id().to_string(), program]);
        command
    }

    fn inside(&self, program: &str, args: &[&str]) -> std::process::Output {
        self.command(program).args(args).output().unwrap()
    }

    /// Our `serve`, whose standard error is the journal's.
    fn serve(&self, config: &std::path::Path) -> Process {
        let mut command = self.command("systemd-cat");
        // systemd sets the variable, systemd-cat does not.
        let script = "JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec \"$@\"";
        command.args(["-t", "stray", "sh", "-c", script, "sh"]);
        command.arg(program()).arg("--config").arg(config).arg("serve");
        Process::start(&mut command, &self.scratch.path().join("service.log"))
    }

    /// The same for a world, once it answers.
    fn serve_world(&self, world: &World) -> Process {
        let mut service = self.serve(&world.config_path());
        wait_for("the service", || {
            service.assert_running();
            answers(world.admin_port).then_some(())
        });
        service
    }

    /// What `journalctl` finds.
    fn entries(&self, args: &[&str]) -> Vec<Value> {
        let output = self.inside("journalctl", &[&["--output=json", "--no-pager", "--all"], args].concat());
        let lines = String::from_utf8(output.stdout).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn ours(&self) -> Vec<Value> {
        self.entries(&["--identifier=activity-milter"])
    }

    /// What was said past our log, to the stream: nothing, if all is well.
    fn stray(&self) -> Vec<Value> {
        self.entries(&["--identifier=stray"])
    }
}

fn messages(entries: &[Value]) -> Vec<&str> {
    entries.iter().map(|entry| entry["MESSAGE"].as_str().unwrap()).collect()
}

fn answers(port: u16) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() && http_get(port, "/livez").0 == 200
}

#[test]
fn one_mail_is_found_by_its_queue_id_in_the_journal() {
    let journald = Journald::start();
    let mut world = World::with(Options { without_milter: true, ..Options::default() });
    let mut service = journald.serve_world(&world);
    let (_, answer) = world.mail(ANNA, &[MY], &eml("plain"));
    let recorded = queue_id(&answer).to_owned();
    world.wait_for_activities(1);
    let (_, answer) = world.mail("mallory@nowhere.test", &[MY], &eml("unknown_sender"));
    assert!(answer.contains("[no-user]"), "{answer}");
    let (answers, _) = world.mail(ANNA, &["nobody@severamail.test"], &eml("plain"));
    assert!(answers[0].starts_with("550"), "{answers:?}");
    wait_for("the delivery to be logged", || {
        messages(&journald.ours()).iter().any(|message| message.contains(": delivered ")).then_some(())
    });
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
    world.milter = None;
    let entries = wait_for("the last line", || {
        Some(journald.ours()).filter(|entries| messages(entries).last() == Some(&"stopped cut_off=0"))
    });
    // What became of one mail, by the id that Postfix gave it.
    let found = journald.entries(&["--identifier=activity-milter", "--grep", &recorded]);
    let words: Vec<_> = messages(&found)
        .iter()
        .map(|message| message.split(' ').take(2).collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(words, [format!("{recorded}: recorded"), format!("{recorded}: delivered")]);
    // A refusal: the line, and its fields.
    let refused = entries.iter().find(|entry| entry["REASON"] == "no-user").unwrap();
    let id = refused["QUEUE_ID"].as_str().unwrap();
    assert_eq!(
        refused["MESSAGE"],
        format!(
            "{id}: refused 550 5.7.1 [no-user] from=<mallory@nowhere.test> to=<{MY}> client=127.0.0.1 tenant=t-1 \
             stage=end-of-header verdict=reject"
        )
    );
    // At RCPT Postfix has given no queue id yet; who it was stands there all the same.
    let at_rcpt = entries.iter().find(|entry| entry["REASON"] == "no-such-tenant").unwrap();
    assert_eq!(
        at_rcpt["MESSAGE"],
        format!(
            "refused 550 5.1.1 [no-such-tenant] from=<{ANNA}> to=<nobody@severamail.test> client=127.0.0.1 stage=rcpt verdict=reject"
        )
    );
    let has = |name: &str, value: &str| assert_eq!(refused[name], value, "{refused}");
    has("REPLY", "550");
    has("PRIORITY", "6");
    has("SYSLOG_FACILITY", "2");
    has("MESSAGE_ID", "7853e6e6f08a696fd7da2d8d2d5d1913");
    has("_TRANSPORT", "journal");
    assert!(world.postfix.log().contains(&format!("{id}: milter-reject")), "{}", world.postfix.log());
    assert_eq!(messages(&journald.stray()), [""; 0]);
}

#[test]
fn an_error_at_the_start_is_one_line_of_the_journal() {
    let journald = Journald::start();
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("am.toml");
    let broken = directory.path().join("directory.toml");
    fs::write(&broken, "[[tenant]]\nprefix = 7\n").unwrap();
    let good = directory.path().join("good.toml");
    fs::write(&good, "[[tenant]]\nprefix = \"a\"\nid = \"t-1\"\n").unwrap();
    let port = free_port();
    let taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let with = |listen: u16, directory: &str| {
        format!(
            "integration_domains = [\"x.test\"]\n[directory]\npath = \"{directory}\"\n[backend]\nurl = \"http://127.0.0.1:1/\"\n\
             [milter]\nlisten = \"inet:127.0.0.1:{listen}\"\n[admin]\nlisten = \"off\"\n"
        )
    };
    for (code, text, expected) in [
        (78, "integration_domains = [\"x.test\"]\nlisten = 1\n".to_owned(), "am.toml:2:1: "),
        (78, with(0, &broken.display().to_string()), "directory.toml:2:10: prefix: 7 is a number"),
        (69, with(port, &good.display().to_string()), "127.0.0.1"),
    ] {
        fs::write(&config, text).unwrap();
        let before = journald.ours().len();
        assert_eq!(journald.serve(&config).wait(), Some(code), "{expected}");
        let entries = wait_for("the error", || {
            let failed = |entry: &Value| entry["MESSAGE"].as_str().unwrap().starts_with("failed");
            Some(journald.ours()).filter(|entries| entries[before..].iter().any(failed))
        });
        let as_root = |entry: &&Value| entry["MESSAGE"].as_str().unwrap().contains("works as root");
        let new: Vec<&Value> = entries[before..].iter().filter(|entry| !as_root(entry)).collect();
        let [entry] = new.as_slice() else { panic!("one line: {:?}", messages(&entries[before..])) };
        let message = entry["MESSAGE"].as_str().unwrap();
        assert!(message.starts_with(&format!("failed exit_code={code} error=\"")), "{message}");
        assert!(message.contains(expected), "{message}");
        assert_eq!(entry["PRIORITY"], "3", "{entry}");
        assert_eq!(messages(&journald.stray()), [""; 0]);
    }
    drop(taken);
}

/// A disk that is full, a pipe that nobody reads, and one that nobody will read any more.
#[test]
fn mail_goes_on_where_nobody_takes_the_log() {
    for kind in ["full", "stalled", "closed"] {
        let level = ("log", "level = \"trace\"".to_owned());
        let world = World::with(Options { without_milter: true, config: vec![level], ..Options::default() });
        let stderr = match kind {
            "full" => Stdio::from(fs::File::options().write(true).open("/dev/full").unwrap()),
            _ => Stdio::piped(),
        };
        let mut command = Command::new(program());
        command.arg("--config").arg(world.config_path()).arg("serve");
        let mut service = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        if kind == "closed" {
            drop(service.stderr.take());
        }
        let port = world.admin_port;
        wait_for("the service", || {
            assert!(service.try_wait().unwrap().is_none(), "{kind}: it ended");
            answers(port).then_some(())
        });
        let mut smtp = world.smtp();
        for n in 0..50 {
            let message = format!("From: {ANNA}\r\nSubject: {n}\r\n\r\nx\r\n");
            let (_, answer) = smtp.mail(ANNA, &[MY], message.as_bytes());
            assert!(answer.starts_with("250"), "{kind}: {answer}");
        }
        world.wait_for_activities(50);
        let metrics = String::from_utf8(http_get(port, "/metrics").1).unwrap();
        let lost =
            metrics.lines().find_map(|line| line.strip_prefix("activity_milter_log_lines_lost_total "));
        let lost: u64 = lost.unwrap().parse().unwrap();
        assert!(kind == "stalled" || lost >= 50, "{kind}: {lost}");
        let status = Command::new("kill").arg("-TERM").arg(service.id().to_string()).status().unwrap();
        assert!(status.success());
        let ended = wait_for("the end", || service.try_wait().unwrap());
        assert_eq!(ended.code(), Some(0), "{kind}");
    }
}

/// A journald that hangs, one that is gone, and one that is there again: mail goes on, and what is lost is said.
#[test]
fn mail_goes_on_where_journald_hangs_or_is_gone() {
    let mut journald = Journald::start();
    let level = ("log", "level = \"trace\"".to_owned());
    let mut world = World::with(Options { without_milter: true, config: vec![level], ..Options::default() });
    let mut service = journald.serve_world(&world);
    let (pid, port) = (service.id(), world.admin_port);
    let mut number = 0;
    let mut goes_on = |world: &mut World, with: &str| {
        let mut smtp = world.smtp();
        for _ in 0..30 {
            number += 1;
            let message = format!("From: {ANNA}\r\nSubject: {number}\r\n\r\nx\r\n");
            let (_, answer) = smtp.mail(ANNA, &[MY], message.as_bytes());
            assert!(answer.starts_with("250"), "{with}: {answer}");
        }
        world.wait_for_activities(number);
        number
    };
    journald.process.signal("STOP");
    goes_on(&mut world, "it hangs");
    journald.process.signal("CONT");
    wait_for("the lines of before", || {
        let entries = journald.entries(&["--identifier=activity-milter", "--grep", ": delivered "]);
        (entries.len() == 30).then_some(())
    });
    journald.process.kill();
    goes_on(&mut world, "it is gone");
    let lost = || {
        let metrics = String::from_utf8(http_get(port, "/metrics").1).unwrap();
        let of = |line: &str| line.strip_prefix("activity_milter_log_lines_lost_total ")?.parse::<u64>().ok();
        metrics.lines().find_map(of).unwrap()
    };
    wait_for("lines to be lost", || (lost() > 30).then_some(()));
    // Another one, in the namespace that the service has kept.
    let mut command = Command::new("nsenter");
    command.args(["--mount", "--target", &pid.to_string(), "/lib/systemd/systemd-journald"]);
    journald.process = Process::start(&mut command, &journald.scratch.path().join("journald-2.log"));
    let said = wait_for("what is lost to be said", || {
        let entries =
            journald.entries(&["--identifier=activity-milter", "--grep", "lines of the log are lost"]);
        entries.first().map(|entry| entry["LINES"].as_str().unwrap().parse::<u64>().unwrap())
    });
    assert!(said > 30, "{said}");
    let all = goes_on(&mut world, "it is there again");
    wait_for("the newest line", || {
        let entries = journald.entries(&["--identifier=activity-milter", "--grep", ": delivered "]);
        (entries.len() >= 60 && all == 90).then_some(())
    });
    service.signal("TERM");
    assert_eq!(service.wait(), Some(0));
}
