//! The worst night: the business system is restored from a back-up, or our own machine is.

use crate::support::{
    free_port, has_system_log, wait_for,
    world::{Options, World, eml, program},
};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread,
};

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";

/// Stands between the service and the sink, and sees what the service sends.
struct Tap {
    port: u16,
    to: Arc<AtomicU16>,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Tap {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (to, seen) = (Arc::<AtomicU16>::default(), Arc::<Mutex<Vec<u8>>>::default());
        let (target, log) = (Arc::clone(&to), Arc::clone(&seen));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A sink that is not there is a connection that ends.
                let Ok(sink) = TcpStream::connect(("127.0.0.1", target.load(Ordering::SeqCst))) else {
                    continue;
                };
                let (from_client, to_sink, log) =
                    (client.try_clone().unwrap(), sink.try_clone().unwrap(), Arc::clone(&log));
                thread::spawn(move || pass(from_client, to_sink, Some(&log)));
                thread::spawn(move || pass(sink, client, None));
            }
        });
        Self { port, to, seen }
    }

    /// How often this was sent.
    fn count(&self, text: &str) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.windows(text.len()).filter(|window| window.eq_ignore_ascii_case(text.as_bytes())).count()
    }

    fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, log: Option<&Mutex<Vec<u8>>>) {
    let mut piece = [0; 65536];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        if let Some(log) = log {
            log.lock().unwrap().extend_from_slice(&piece[..length]);
        }
        if to.write_all(&piece[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_all(&path, &copy);
        } else {
            fs::copy(&path, copy).unwrap();
        }
    }
}

fn message(number: usize, bytes: usize) -> Vec<u8> {
    let line = "x".repeat(70) + "\r\n";
    let head = format!(
        "From: {ANNA}\r\nTo: bo@acme.test\r\nSubject: {number}\r\nMessage-ID: <{number}@load>\r\n\
         Date: Mon, 23 Nov 2026 20:00:00 +0200\r\nContent-Type: application/octet-stream\r\n\r\n"
    );
    (head + &line.repeat(bytes / line.len())).into_bytes()
}

fn text_of<'a>(activity: &'a Value, name: &str) -> &'a str {
    activity[name].as_str().unwrap()
}

fn keys(activities: &[Value]) -> BTreeSet<String> {
    activities.iter().map(|activity| text_of(activity, "key").to_owned()).collect()
}

fn listed(world: &World, args: &[&str]) -> Vec<Value> {
    let (code, out, error) = world.command(&[&["queue", "list", "--json", "--limit", "0"], args].concat());
    assert_eq!(code, Some(0), "{error}");
    serde_json::from_str(&out).unwrap()
}

/// Waits until nothing waits and all that was delivered is kept.
fn settled(world: &World, kept: usize) {
    wait_for("all to be delivered", || {
        let is_so = listed(world, &[]).is_empty() && listed(world, &["--state", "delivered"]).len() == kept;
        is_so.then_some(())
    });
}

/// Q34: with the header at the socket; the service is killed in the midst of it.
#[test]
fn a_business_system_restored_from_a_back_up_gets_what_it_lost() {
    let tap = Tap::start();
    let mut world = World::with(Options {
        config: vec![
            ("queue", "keep_delivered = \"2d\"".to_owned()),
            ("backend", format!("url = \"http://127.0.0.1:{}/\"", tap.port)),
        ],
        ..Options::default()
    });
    tap.to.store(world.sink_port, Ordering::SeqCst);
    assert!(world.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"));
    world.wait_for_activities(1);
    world.sink = None;
    let (sink, back_up) = (world.root.join("sink"), world.root.join("sink.back-up"));
    copy_all(&sink, &back_up);
    world.start_sink();
    for (number, bytes) in [(1, 10), (2, 300_000), (3, 10)] {
        let sent = world.mail(ANNA, &[MY, "1001.mycompany@severamail.test"], &message(number, bytes));
        assert!(sent.1.starts_with("250"), "{sent:?}");
    }
    let all = keys(&world.wait_for_activities(4));
    settled(&world, 4);
    assert_eq!((tap.count("\r\nreplay: true\r\n"), world.spooled()), (0, 1));
    // Found by its queue id, also after its delivery.
    let one = &listed(&world, &["--state", "delivered"])[0];
    let (code, out, error) = world.command(&["queue", "show", text_of(one, "queue_id")]);
    assert!(
        code == Some(0) && out.contains("state: delivered") && out.contains(text_of(one, "key")),
        "{out}{error}"
    );
    // It loses all but the first.
    world.sink = None;
    fs::remove_dir_all(&sink).unwrap();
    copy_all(&back_up, &sink);
    tap.forget();
    let (code, out, error) = world.command(&["queue", "redeliver", "--since", "1h", "--dry-run"]);
    assert_eq!((code, out.as_str()), (Some(0), "4 would be sent again; nothing was changed\n"), "{error}");
    assert!(error.contains("kept since"), "the service has not run for an hour: {error}");
    for (tenant, expected) in [
        ("mycompany", "4 would be sent again"),
        ("MyCompany", "4 would be sent again"),
        ("mycompani", "nothing that is kept of tenant mycompani was delivered then: 0 would be sent again"),
    ] {
        let args = ["queue", "redeliver", "--since", "1h", "--dry-run", "--tenant", tenant];
        let (code, out, _) = world.command(&args);
        assert!(code == Some(0) && out.starts_with(expected), "{tenant}: {out}");
    }
    let (code, out, error) = world.command(&["queue", "redeliver", "--since", "1h"]);
    assert_eq!((code, out.as_str()), (Some(0), "4 wait to be sent again\n"), "{error}");
    let is_logged = error.contains("what=redelivered") && error.contains("activities=4");
    assert!(is_logged || has_system_log(), "{error}");
    assert_eq!((listed(&world, &[]).len(), listed(&world, &["--state", "delivered"]).len()), (4, 0));
    // The trace has it of each; the command has written it before it ended.
    for key in &all {
        let (_, out, error) = world.command(&["trace", key]);
        assert_eq!(out.matches("  redelivered by hand  ").count(), 1, "{key}: {out}{error}");
    }
    world.milter().kill();
    world.start_milter();
    world.start_sink();
    assert_eq!(keys(&world.wait_for_activities(4)), all);
    settled(&world, 4);
    assert_eq!(keys(&world.wait_for_activities(4)), all, "each once");
    assert!(tap.count("\r\nreplay: true\r\n") >= 4, "{}", tap.count("\r\nreplay: true\r\n"));
    assert_eq!(tap.count("\r\nreplay: true\r\n"), tap.count("\r\nidempotency-key: "), "each of them says so");
    for key in &all {
        assert!(tap.count(&format!("\r\nidempotency-key: \"{key}\"\r\n")) >= 1, "{key}");
    }
    // The same e-mail once more is known, as ever.
    assert!(world.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"));
    settled(&world, 4);
}

/// Whoever switches it off, or starts once without the file that switches it on, finds a line about what is gone.
#[test]
fn what_was_kept_is_dropped_with_a_word() {
    let config = vec![("queue", "keep_delivered = \"2d\"".to_owned())];
    let mut world = World::with(Options { config, ..Options::default() });
    assert!(world.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"));
    world.wait_for_activities(1);
    wait_for("what is kept", || world.command(&["queue", "list"]).1.contains("kept").then_some(()));
    let text = fs::read_to_string(world.config_path()).unwrap();
    fs::write(world.config_path(), text.replace("keep_delivered = \"2d\"", "")).unwrap();
    world.stop_milter();
    world.start_milter();
    world.milter().line_with(&["queue.keep_delivered is off", "activities=1"]);
}

/// With nothing kept the command says why it has nothing to send, and what it was told wrong.
#[test]
fn nothing_is_kept_unasked() {
    let world = World::start();
    assert!(world.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"));
    world.wait_for_activities(1);
    for (args, expected) in [
        (&["--since", "1h"][..], "nothing is kept after its delivery: queue.keep_delivered is \"0\""),
        (&["--since", "1h", "--until", "2h"], "--until is not after --since"),
        (&["--since", "1M"], "would be months: write \"1min\""),
        (&["--since", "2h", "--until", "1 M"], "would be months"),
        (&["--since", "2099-01-01T00:00:00Z"], "--since lies ahead: here it is "),
        (
            &["--since", "yesterday"],
            "is no time: write one like 2h, for two hours ago, or 2026-11-29T18:00:00Z",
        ),
    ] {
        let (code, _, error) = world.command(&[&["queue", "redeliver"], args].concat());
        assert!(code != Some(0) && error.contains(expected), "{args:?}: {error}");
    }
    let (_, out, _) = world.command(&["queue", "list", "--state", "delivered"]);
    assert!(out.starts_with("queue is empty"), "{out}");
    let (code, _, error) = world.command(&["queue", "retry", "--all", "--state", "delivered"]);
    assert!(code == Some(64) && error.contains("is sent again by `queue redeliver`"), "{error}");
}

/// Q38: a back-up that is made while mail comes and goes is whole, and nothing is lost or doubled by whoever goes on with it.
#[test]
fn a_back_up_under_load_goes_on_elsewhere() {
    let mut world = World::with(Options {
        sink: vec!["--delay".to_owned(), "40ms".to_owned()],
        config: vec![("backend", "max_in_flight = 2".to_owned())],
        ..Options::default()
    });
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(0)));
    let (before, at_sink, back_up) = thread::scope(|scope| {
        let _end = End(&stop);
        scope.spawn(|| {
            let mut number = 0;
            while !stop.load(Ordering::SeqCst) && number < 400 {
                let bytes = if number % 3 == 0 { 200_000 } else { 100 };
                assert!(world.mail(ANNA, &[MY], &message(number, bytes)).1.starts_with("250"));
                number += 1;
                *sent.lock().unwrap() = number;
            }
        });
        wait_for("a backlog with files", || {
            (*sent.lock().unwrap() >= 12 && world.spooled() > 1).then_some(())
        });
        let before = *sent.lock().unwrap();
        let back_up = world.root.join("back-up");
        let (code, out, error) = world.command(&["backup", back_up.to_str().unwrap()]);
        assert_eq!(code, Some(0), "{out}{error}");
        assert!(out.contains(" activities, 0 kept after their delivery, configuration"), "{out}");
        // What is not in the copy was delivered before it was made, or while its file was copied.
        (before, world.activities(), back_up)
    });
    let verify = || world.command(&["backup", "--verify", back_up.to_str().unwrap()]);
    let (code, out, error) = verify();
    assert!(code == Some(0) && out.contains("whole: "), "{out}{error}");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&back_up), mode(&back_up.join("queue.db"))), (0o700, 0o600));
    let (code, _, error) = world.command(&["backup", back_up.to_str().unwrap()]);
    assert!(code == Some(69) && error.contains("is not empty: name a new directory"), "{error}");
    let sent = *sent.lock().unwrap();
    let all = keys(&world.wait_for_activities(sent));
    assert_eq!(all.len(), sent);
    // The machine is lost; another one goes on with the copy, and the business system with what it had before.
    world.stop_milter();
    world.sink = None;
    fs::remove_dir_all(world.root.join("sink")).unwrap();
    fs::rename(world.root.join("queue"), world.root.join("lost")).unwrap();
    fs::create_dir(world.root.join("queue")).unwrap();
    fs::copy(back_up.join("queue.db"), world.root.join("queue/queue.db")).unwrap();
    copy_all(&back_up.join("spool"), &world.root.join("queue/spool"));
    fs::copy(back_up.join("config/activity-milter.toml"), world.config_path()).unwrap();
    let left = listed(&world, &[]).len();
    world.start_sink_with(&[]);
    world.start_milter();
    wait_for("the copy to be delivered", || listed(&world, &[]).is_empty().then_some(()));
    let delivered = world.activities();
    assert_eq!(keys(&delivered).len(), delivered.len());
    assert!(left >= delivered.len() && !delivered.is_empty(), "{left}");
    let has = |activities: &[Value], number: usize| {
        activities.iter().any(|activity| text_of(activity, "message_id") == format!("{number}@load"))
    };
    for number in 0..before {
        assert!(has(&delivered, number) || has(&at_sink, number), "{number} is lost");
    }
    // What is known stays known.
    assert!(world.mail(ANNA, &[MY], &message(0, 200_000)).1.starts_with("250"));
    world.wait_for_activities_again(delivered.len());
    // A copy that is not what it was is told from one that is.
    let verify = || world.command(&["backup", "--verify", back_up.to_str().unwrap()]);
    let database = back_up.join("queue.db");
    let bytes = fs::read(&database).unwrap();
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    fs::write(&database, &flipped).unwrap();
    let (code, out, _) = verify();
    assert!(code == Some(1) && out.contains("WRONG: queue.db: other bytes than were written"), "{out}");
    fs::write(&database, &bytes).unwrap();
    assert_eq!(verify().0, Some(0));
    let folder = fs::read_dir(back_up.join("spool")).unwrap().next().unwrap().unwrap().path();
    let file = fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let aside = world.root.join("aside.eml");
    fs::rename(&file, &aside).unwrap();
    let (code, out, _) = verify();
    assert!(code == Some(1) && out.contains("the message of an activity is not there"), "{out}");
    fs::rename(&aside, &file).unwrap();
    fs::write(back_up.join("spool/strange"), "").unwrap();
    let (code, out, _) = verify();
    assert!(code == Some(1) && out.contains("spool/strange: it does not belong to this back-up"), "{out}");
    fs::remove_file(back_up.join("manifest.json")).unwrap();
    let (code, _, error) = verify();
    assert!(
        code == Some(69) && error.contains("this is no back-up, or one that was not completed"),
        "{error}"
    );
}

/// A user who may not look, a disk that is full, a byte that is another one: none of them looks like a back-up.
#[test]
fn what_is_not_whole_is_no_back_up() {
    let mut world = World::start();
    fs::set_permissions(&world.root, fs::Permissions::from_mode(0o755)).unwrap();
    world.sink.as_mut().unwrap().kill();
    assert!(world.mail(ANNA, &[MY], &eml("plain")).1.starts_with("250"));
    // Where the queue is as private as the package makes it, others are told so.
    let aside = world.root.join("program");
    fs::copy(program(), &aside).unwrap();
    fs::set_permissions(world.root.join("queue"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(world.config_path(), fs::Permissions::from_mode(0o644)).unwrap();
    let theirs = world.root.join("theirs");
    fs::create_dir(&theirs).unwrap();
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o777)).unwrap();
    let to = theirs.join("back-up");
    for args in [&["backup", to.to_str().unwrap()][..], &["queue", "list"], &["trace", ANNA]] {
        let mut command = Command::new(&aside);
        command.arg("-c").arg(world.config_path()).args(args).uid(65534).gid(65534);
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(69), "{args:?}: {error}");
        assert!(error.contains("ermission denied") && error.contains("root"), "{args:?}: {error}");
    }
    assert!(!to.exists(), "what was begun is removed");
    // No room: a limit on the length of files, as a full disk has it.
    let limited = |to: &Path| {
        let mut command = Command::new("sh");
        let script = "trap '' XFSZ; ulimit -f 16; exec \"$@\""; // in blocks of 512 bytes; the signal would end it
        command.args(["-c", script, "sh"]).arg(program()).arg("-c").arg(world.config_path());
        let output = command.arg("backup").arg(to).output().unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let to = world.root.join("back-up");
    let error = limited(&to);
    assert!(error.contains("back-up/queue.db") && !to.exists(), "{error}");
    // One that was interrupted.
    fs::create_dir_all(to.join("config")).unwrap();
    let (code, _, error) = world.command(&["backup", to.to_str().unwrap()]);
    assert!(code == Some(69) && error.contains("has a back-up that was not completed: remove it"), "{error}");
    fs::remove_dir_all(&to).unwrap();
    let (code, _, error) = world.command(&["backup", to.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{error}");
    // Every byte counts, those that say what there is as well.
    let verify = || world.command(&["backup", "--verify", to.to_str().unwrap()]);
    assert_eq!(verify().0, Some(0));
    let manifest = to.join("manifest.json");
    let good = fs::read(&manifest).unwrap();
    for at in (0..good.len()).step_by(good.len() / 40) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&manifest, bad).unwrap();
        let (code, out, error) = verify();
        assert!(code == Some(69) && error.contains("the back-up is damaged"), "byte {at}: {out}{error}");
    }
    fs::write(&manifest, &good).unwrap();
    for file in ["queue.db", "config/directory.toml", "config/activity-milter.toml"] {
        let (path, good) = (to.join(file), fs::read(to.join(file)).unwrap());
        fs::write(&path, &good[..good.len() / 2]).unwrap();
        let (code, out, _) = verify();
        assert!(code == Some(1) && out.contains(&format!("WRONG: {file}: ")), "{out}");
        fs::remove_file(&path).unwrap();
        let (code, out, _) = verify();
        let words = format!("WRONG: {file}: No such file or directory\n");
        assert!(code == Some(1) && out.contains(&words) && !out.contains("has the service run"), "{out}");
        fs::write(&path, &good).unwrap();
    }
    assert_eq!(verify().0, Some(0));
    // None is begun that would take the room which is kept for mail.
    let config = fs::read_to_string(world.config_path()).unwrap();
    assert!(config.contains("[queue]\n"), "{config}");
    let kept = "[queue]\nmin_free = \"1 EiB\"\n";
    fs::write(world.config_path(), config.replace("[queue]\n", kept)).unwrap();
    let full = world.root.join("full");
    let (code, _, error) = world.command(&["backup", full.to_str().unwrap()]);
    let words = "of which queue.min_free keeps 1.0 EiB for mail: name a directory on another disk";
    assert!(code == Some(69) && error.contains(words) && !full.exists(), "{error}");
}

/// Ends a thread's work when it is dropped, also by a panic.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Secrets stay where they are.
#[test]
fn a_back_up_names_the_secrets_that_it_leaves_out() {
    let token = tempfile::NamedTempFile::new().unwrap();
    fs::write(token.path(), "s3cret\n").unwrap();
    let world = World::with(Options {
        config: vec![
            ("backend", format!("token_file = \"{}\"", token.path().display())),
            ("backend", format!("proxy = \"http://us:pr0xy@127.0.0.1:{}/\"", free_port())),
        ],
        without_milter: true,
        without_sink: true,
        ..Options::default()
    });
    let back_up = world.root.join("back-up");
    let (code, out, error) = world.command(&["backup", back_up.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{error}");
    let named = format!("left out, keep it elsewhere: {} (backend.token_file)", token.path().display());
    assert!(out.contains(&named) && out.contains("(the password in line "), "{out}");
    assert!(out.contains("configuration; there is no queue"), "{out}");
    let (code, out, _) = world.command(&["backup", "--verify", back_up.to_str().unwrap()]);
    assert!(code == Some(0) && out.contains("(backend.token_file)"), "{out}");
    assert!(back_up.join("config/directory.toml").exists());
    for file in ["config/activity-milter.toml", "config/directory.toml", "manifest.json"] {
        let text = fs::read_to_string(back_up.join(file)).unwrap();
        assert!(!text.contains("s3cret") && !text.contains("pr0xy"), "{file}");
    }
}
