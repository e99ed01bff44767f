//! The machine of the torture: a service between a Postfix and a backend, on a small disk, with a clock that is not believed.
//!
//! In: [`Step`]s. Out: what each does ([`Stage::suffer`]); at the end all is undone, everything must be where it belongs, and
//! the tally is printed ([`Stage::end`]).
//! Promise: the service is what an administrator has: the shipped program, a file of settings, signals; when it ends it is
//! started again, as systemd does. That it ends though nobody ended it is a fault (`crashed`), unless it could not start on a
//! disk or with a database that are not there. What fails in the kernel fails for a process: the next one has it no more.
//!
//! With a database, "syncs fail" is its server that is killed and comes back, and "writes fail" are our connections that are
//! ended; its files are on the small disk too.

use super::schedule::{Fault, Part, Step, What};
use crate::database::Cluster;
use crate::history::{
    backend::{Backend, Mood},
    clients::{Clients, Door, Way},
    tally::{Tally, Window},
};
use crate::support::{
    free_port,
    http::http_get,
    wait_for,
    world::{Options, Process, World, faketime, program},
};
use nix::sched::{CloneFlags, unshare};
use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

/// Where the queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Sqlite,
    Postgres,
}

/// Messages a second.
const RATE: u32 = 60;

/// Longest wait for all to be well at the end: what a wrong clock parked waits for the next upkeep.
const LONGEST_END: Duration = Duration::from_secs(180);

/// From a look after the service to the next one.
const LOOK: Duration = Duration::from_millis(50);

/// What a slow backend takes for an answer. The courier waits for two seconds.
const SLOW: Duration = Duration::from_millis(400);

/// The small disk: a database keeps its log, and for a day what was large.
fn disk_options(engine: Engine) -> &'static str {
    match engine {
        Engine::Sqlite => "size=320m,mode=755",
        Engine::Postgres => "size=1200m,mode=755",
    }
}

/// Descriptors that are left, where there are none.
const FEW: usize = 4;

/// Of the database server.
const SETTINGS: &[&str] = &["max_connections=60", "max_wal_size=96MB", "min_wal_size=32MB"];

/// Of the service: a backend that says nothing is given up soon, and the directory is asked again and again.
fn config(token: &Path, database: Option<&Cluster>) -> Vec<(&'static str, String)> {
    let lines = |table: &'static str, lines: &[&str]| -> Vec<(&'static str, String)> {
        lines.iter().map(|line| (table, (*line).to_owned())).collect()
    };
    let mut config =
        lines("backend", &["timeout = \"2s\"", &format!("token_file = \"{}\"", token.display())]);
    config.extend(lines(
        "directory",
        &["cache_hits = \"1s\"", "cache_misses = \"1s\"", "cache_stale = \"2s\""],
    ));
    config.extend(lines("queue", &["min_free = \"16 MiB\""]));
    if let Some(database) = database {
        let url = format!("url = \"postgres://am@{}/am\"", database.host());
        config.extend(lines("queue", &["type = \"postgres\"", "connections = 8", &url]));
    }
    config
}

/// A fault that is there.
#[derive(Clone, Copy, Debug)]
struct Present {
    fault: Fault,
    began: Instant,
}

/// Fields are dropped in order.
pub struct Stage {
    engine: Engine,
    clients: Clients,
    service: Process,
    /// How often it was started, and when last.
    starts: usize,
    started: Instant,
    /// When the last fault of storage was over.
    stored: Instant,
    /// Makes calls of the service fail.
    strace: Option<Process>,
    backend: Backend,
    /// Who answers look-ups.
    _directory: Process,
    database: Option<Cluster>,
    world: World,
    present: Vec<Present>,
    windows: Vec<Window>,
    /// Its last words, where it ended though nobody ended it, or not as it should.
    crashed: Vec<String>,
    began: Instant,
}

impl Stage {
    /// Starts everything.
    pub fn start(engine: Engine) -> Self {
        unshare(CloneFlags::CLONE_NEWNS).expect("a disk of our own needs root, as the tests with Postfix do");
        run("mount", &["--make-rprivate", "/"]);
        let place = tempfile::Builder::new().prefix("am-torture-").tempdir().unwrap().keep();
        let disk = place.join("queue");
        fs::create_dir(&disk).unwrap();
        run("chmod", &["755", place.to_str().unwrap()]);
        run("mount", &["-t", "tmpfs", "-o", disk_options(engine), "tmpfs", disk.to_str().unwrap()]);
        let database = (engine == Engine::Postgres).then(|| database(&disk));
        let options = Options {
            config: config(&place.join("token"), database.as_ref()),
            tcp: true,
            lmtp: true,
            http_directory: true,
            without_milter: true,
            without_sink: true,
            ..Options::default()
        };
        let world = World::at(&place, options);
        let listener = TcpListener::bind(("127.0.0.1", world.sink_port)).unwrap();
        let backend = Backend::start(listener, &place.join("deliveries.log"));
        let port = free_port();
        let directory = directory(&world, port);
        backend.ask(format!("http://127.0.0.1:{port}"));
        set_clock(&place, 0);
        let mut service = serve(&world, 0);
        service.wait_to_say("started");
        let now = Instant::now();
        let at = |listen: String| listen.trim_start_matches("inet:").to_owned();
        let doors = vec![
            door(Way::Smtp, format!("127.0.0.1:{}", world.postfix.port)),
            door(Way::Lmtp, at(world.lmtp_listen())),
            door(Way::Milter, at(world.milter_listen())),
        ];
        Self {
            engine,
            clients: Clients::start(doors, RATE),
            service,
            starts: 1,
            started: now,
            stored: now - LOOK,
            strace: None,
            backend,
            _directory: directory,
            database,
            world,
            present: Vec::new(),
            windows: Vec::new(),
            crashed: Vec::new(),
            began: Instant::now(),
        }
    }

    /// Waits until the step's time, and takes it.
    pub fn suffer(&mut self, step: Step) {
        let until = Instant::now() + step.after;
        while Instant::now() < until {
            sleep(until.saturating_duration_since(Instant::now()).min(LOOK));
            self.attend();
        }
        match step.what {
            What::Begin(fault) => self.begin(fault),
            What::End(fault) => self.finish(fault),
        }
    }

    /// At least so many messages; then everything must be where it belongs.
    pub fn end(mut self, messages: usize) -> Tally {
        let name = "all of it";
        let (began, ended) = (self.began, Instant::now());
        self.windows.push(Window { name, holds: "", again: false, sender: None, began, ended });
        let until = Instant::now() + LONGEST_END;
        let well = |stage: &Self, what: &str| assert!(Instant::now() < until, "{what}: {}", stage.state());
        while !self.has_started() {
            self.attend();
            well(&self, "it does not start");
            sleep(LOOK);
        }
        self.clients.finish(messages);
        let until = Instant::now() + LONGEST_END;
        while self.items("waiting") != Some(0) {
            assert!(Instant::now() < until, "the queue does not become empty: {}", self.state());
            sleep(LOOK);
        }
        let held = self.items("held");
        sleep(Duration::from_secs(1));
        self.attend();
        let tally = Tally::of(&self.clients.heard(), &self.backend.deliveries(), &self.windows);
        println!(
            "{:?}, {:.0} s, {} starts\n\n{}",
            self.engine,
            self.began.elapsed().as_secs_f64(),
            self.starts,
            tally.by_name()
        );
        assert_eq!(tally.faults(), Vec::<String>::new());
        assert_eq!(self.backend.damaged(), Vec::<String>::new());
        assert_eq!(self.crashed, Vec::<String>::new(), "it ended, though nobody ended it");
        assert_eq!(held, Some(0), "held");
        assert_eq!(self.broken(), Vec::<String>::new(), "the service saw itself break a promise");
        assert!(tally.accepted >= messages);
        tally
    }

    /// What the logs of all its processes say of promises.
    fn broken(&self) -> Vec<String> {
        let logs = (0..=self.starts).map(|start| self.world.root.join(format!("service-{start}.log")));
        let logs: Vec<String> = logs.filter_map(|path| fs::read_to_string(path).ok()).collect();
        assert!(!logs.is_empty());
        let is_so = |line: &&str| line.contains("a promise is broken");
        logs.iter().flat_map(|log| log.lines().filter(is_so)).map(str::to_owned).collect()
    }

    /// For who looks why.
    fn state(&self) -> String {
        let log = self.service.log();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(20)..].join("\n  ");
        format!("{:?} waiting, {:?} held\n  {last}", self.items("waiting"), self.items("held"))
    }

    /// What the metrics say of the queue.
    fn items(&self, state: &str) -> Option<u64> {
        TcpStream::connect(("127.0.0.1", self.world.admin_port)).ok()?;
        let metrics = String::from_utf8(http_get(self.world.admin_port, "/metrics").1).ok()?;
        let name = format!("activity_milter_queue_items{{state=\"{state}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&name))?.parse().ok()
    }

    fn has_started(&self) -> bool {
        self.service.log().contains("started")
    }

    /// True if a disk, a database or descriptors were not to be had since it was started, without which it cannot start.
    fn is_without_storage(&self) -> bool {
        self.stored >= self.started || self.present.iter().any(|one| one.fault.part() == Part::Storage)
    }

    /// Starts it again if it has ended.
    fn attend(&mut self) {
        if !self.service.has_ended() {
            return;
        }
        if self.has_started() || !self.is_without_storage() {
            self.crashed.push(format!("{:?}: {}", self.present, self.state()));
        }
        self.restart();
    }

    fn restart(&mut self) {
        self.strace = None;
        self.service = serve(&self.world, self.starts);
        self.starts += 1;
        self.started = Instant::now();
    }

    fn begin(&mut self, fault: Fault) {
        let began = Instant::now();
        match fault {
            Fault::Killed => {
                self.service.kill();
                self.restart();
            }
            Fault::Ended => self.end_service(),
            Fault::Frozen => self.service.signal("STOP"),
            // Who does not listen yet would end.
            Fault::Reloaded if !self.has_started() => {}
            Fault::Reloaded => self.service.signal("HUP"),
            Fault::BackendStopped => self.backend.stop(),
            Fault::BackendSlow => self.backend.behave(Mood::Slow(SLOW)),
            Fault::BackendFails => self.backend.behave(Mood::Fails),
            Fault::BackendHangs => self.backend.behave(Mood::Hangs),
            Fault::AnswersLost => self.backend.behave(Mood::Forgets),
            Fault::AnswersDenied => self.backend.behave(Mood::Denies),
            Fault::DirectoryFails => self.backend.behave_asked(Mood::Fails),
            Fault::DirectoryHangs => self.backend.behave_asked(Mood::Hangs),
            Fault::DirectoryCut => self.backend.behave_asked(Mood::Forgets),
            Fault::DiskFull => fill(&self.filler()),
            Fault::SyncFails => self.fail_syncs(),
            Fault::WriteFails => self.fail_writes(),
            Fault::NoDescriptors => self.leave_descriptors(FEW),
            Fault::Clock(minutes) => set_clock(&self.world.root, minutes),
        }
        match fault {
            Fault::Killed | Fault::Ended | Fault::Reloaded => self.note(fault, began),
            _ => self.present.push(Present { fault, began }),
        }
    }

    fn finish(&mut self, fault: Fault) {
        match fault {
            Fault::Frozen => self.service.signal("CONT"),
            Fault::BackendStopped => {
                let address = ("127.0.0.1", self.world.sink_port);
                // The end of the old one takes a moment.
                self.backend.listen(wait_for("the backend's port", || TcpListener::bind(address).ok()));
            }
            Fault::BackendSlow
            | Fault::BackendFails
            | Fault::BackendHangs
            | Fault::AnswersLost
            | Fault::AnswersDenied => self.backend.behave(Mood::Well),
            Fault::DirectoryFails | Fault::DirectoryHangs | Fault::DirectoryCut => {
                self.backend.behave_asked(Mood::Well);
            }
            Fault::DiskFull => self.clear(),
            Fault::SyncFails if self.database.is_some() => self.run_database(),
            Fault::SyncFails | Fault::WriteFails => self.strace = None,
            Fault::NoDescriptors => self.leave_descriptors(4096),
            Fault::Clock(_) => set_clock(&self.world.root, 0),
            Fault::Killed | Fault::Ended | Fault::Reloaded => {}
        }
        let at = self.present.iter().position(|one| one.fault == fault).expect("what ends has begun");
        let began = self.present.remove(at).began;
        if fault.part() == Part::Storage {
            self.stored = Instant::now();
        }
        self.note(fault, began);
    }

    fn note(&mut self, fault: Fault, began: Instant) {
        let (name, ended) = (self.name(fault), Instant::now());
        // The one before it.
        let sender = (fault == Fault::Killed).then(|| self.starts - 2);
        self.windows.push(Window { name, holds: "", again: fault.again(), sender, began, ended });
    }

    fn name(&self, fault: Fault) -> &'static str {
        let is_file = self.engine == Engine::Sqlite;
        match fault {
            Fault::Killed => "service killed",
            Fault::Ended => "service ended by SIGTERM",
            Fault::Frozen => "service frozen",
            Fault::Reloaded => "service reloads",
            Fault::BackendStopped => "backend stopped",
            Fault::BackendSlow => "backend slow",
            Fault::BackendFails => "backend answers 500",
            Fault::BackendHangs => "backend answers nothing",
            Fault::AnswersLost => "backend records, and hangs up",
            Fault::AnswersDenied => "backend records, and answers 503",
            Fault::DirectoryFails => "directory answers 500",
            Fault::DirectoryHangs => "directory answers nothing",
            Fault::DirectoryCut => "directory hangs up",
            Fault::DiskFull => "disk full",
            Fault::SyncFails if is_file => "fsync, fdatasync fail",
            Fault::SyncFails => "database killed",
            Fault::WriteFails if is_file => "pwrite, linkat, ftruncate fail",
            Fault::WriteFails => "connections to the database ended",
            Fault::NoDescriptors => "no descriptors left",
            Fault::Clock(minutes) if minutes > 0 => "clock ahead",
            Fault::Clock(_) => "clock behind",
        }
    }

    /// By SIGTERM, and started again.
    fn end_service(&mut self) {
        let had_started = self.has_started();
        self.service.signal("TERM");
        let code = self.service.wait();
        // Without a disk it may say so; before it listens a signal ends it.
        if code != Some(0) && had_started && !self.is_without_storage() {
            self.crashed.push(format!("after SIGTERM it ended with {code:?}: {}", self.state()));
        }
        self.restart();
    }

    fn filler(&self) -> PathBuf {
        self.world.root.join("queue/filler")
    }

    fn clear(&mut self) {
        fs::remove_file(self.filler()).unwrap();
        self.run_database();
    }

    /// Starts the database's server if it has ended.
    fn run_database(&mut self) {
        let Some(database) = &self.database else { return };
        let began = Instant::now();
        // One that lost its disk may come back by itself.
        while database.psql("am", "SELECT 1").is_err() {
            if began.elapsed() > Duration::from_secs(3) || !is_running(&database.directory) {
                database.run(SETTINGS);
                return;
            }
            sleep(LOOK);
        }
    }

    fn fail_syncs(&mut self) {
        match &self.database {
            Some(database) => database.kill_hard(),
            None => self.inject("fsync,fdatasync"),
        }
    }

    fn fail_writes(&mut self) {
        let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'am'";
        match &self.database {
            Some(database) => drop(database.psql("postgres", ended)),
            None => self.inject("pwrite64,linkat,ftruncate"),
        }
    }

    /// Makes these calls of the service fail, as long as it lives.
    fn inject(&mut self, calls: &str) {
        let mut command = Command::new("strace");
        command.args(["-f", "-p", &self.service.id().to_string(), "-e", &format!("trace={calls}")]);
        command.args(["-e", &format!("inject={calls}:error=EIO")]);
        let mut strace = Process::start(&mut command, &self.world.root.join("strace.log"));
        // It may end under its hands.
        wait_for("strace to attach", || {
            (strace.log().contains("attached") || strace.has_ended()).then_some(())
        });
        self.strace = Some(strace);
    }

    /// So many more than there are.
    fn leave_descriptors(&self, more: usize) {
        let pid = self.service.id().to_string();
        let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return };
        let limit = format!("--nofile={}:", open.count() + more);
        let _ = Command::new("prlimit").args(["--pid", &pid, &limit]).status();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.service.kill();
        let queue = self.world.root.join("queue");
        let _ = Command::new("umount").arg("-l").arg(queue).status();
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.world.root);
        }
    }
}

#[track_caller]
fn run(program: &str, args: &[&str]) {
    assert!(Command::new(program).args(args).status().unwrap().success(), "{program} {args:?}");
}

fn door(way: Way, address: String) -> Door {
    Door { way, connect: Arc::new(move || TcpStream::connect(&address).ok()) }
}

/// A database server on the small disk.
fn database(disk: &Path) -> Cluster {
    let database = Cluster::start_in(disk, SETTINGS);
    for sql in ["CREATE ROLE am LOGIN", "CREATE DATABASE am OWNER am"] {
        database.psql("postgres", sql).unwrap();
    }
    database
}

/// True if the first process of the server is there.
fn is_running(directory: &Path) -> bool {
    let text = fs::read_to_string(directory.join("data/postmaster.pid")).unwrap_or_default();
    let pid = text.lines().next().unwrap_or_default();
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "postgres")
}

/// Answers look-ups at a port.
fn directory(world: &World, port: u16) -> Process {
    let mut command = Command::new(program());
    command.args(["sink", "--listen", &format!("127.0.0.1:{port}"), "--data"]);
    command.arg(world.root.join("directory")).arg("--directory").arg(world.root.join("directory.toml"));
    let mut directory = Process::start(&mut command, &world.root.join("directory.log"));
    directory.wait_to_say("listening on");
    directory
}

/// The service, with a log of its own for each time, and a token by which the backend knows which one sends.
fn serve(world: &World, start: usize) -> Process {
    fs::write(world.root.join("token"), start.to_string()).unwrap();
    run("chmod", &["600", world.root.join("token").to_str().unwrap()]);
    let mut command = Command::new(program());
    command.arg("--config").arg(world.config_path()).arg("serve");
    command.env("LD_PRELOAD", faketime()).env("FAKETIME_TIMESTAMP_FILE", world.root.join("clock"));
    command.env("DONT_FAKE_MONOTONIC", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    command.env("FAKETIME_CACHE_DURATION", "1");
    Process::start(&mut command, &world.root.join(format!("service-{start}.log")))
}

/// So many minutes from the right time, within a second.
fn set_clock(root: &Path, minutes: i64) {
    let new = root.join("clock.new");
    fs::write(&new, format!("{:+}\n", minutes * 60)).unwrap();
    fs::rename(new, root.join("clock")).unwrap();
}

/// Until nothing more fits.
fn fill(file: &Path) {
    let _ = std::io::copy(&mut std::io::repeat(0), &mut fs::File::create(file).unwrap());
}
