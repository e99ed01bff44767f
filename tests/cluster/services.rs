//! Our services on their machines: two with a Postfix each that take mail, two that deliver it.
//!
//! In: a machine, the database's address, the backend's. Out: a process that is started again when it ends, as systemd does.
//! Promise: all are what an administrator has: the shipped program, a file of settings, signals.

use super::lab::Node;
use crate::support::{
    PATIENCE,
    postfix::Postfix,
    world::{Options, Process, World, faketime, program},
};
use std::{
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

/// What a service does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Intake,
    Courier,
}

/// A service.
pub struct Service {
    pub node: Node,
    pub config: PathBuf,
    part: Part,
    process: Option<Process>,
    /// Another clock than the machine's, as libfaketime is told.
    pub clock: Option<&'static str>,
}

impl Service {
    pub fn new(node: &Node, config: PathBuf, part: Part) -> Self {
        let mut service = Self { node: node.clone(), config, part, process: None, clock: None };
        service.begin();
        service.wait();
        service
    }

    /// Starts it.
    pub fn begin(&mut self) {
        let (config, part, clock) = (self.config.clone(), self.part, self.clock);
        self.process = Some(self.node.inside(move || {
            let mut command = Command::new(program());
            let part = if part == Part::Intake { "--intake-only" } else { "--courier-only" };
            command.arg("--config").arg(&config).args(["serve", part]);
            if let Some(clock) = clock {
                command.env("LD_PRELOAD", faketime()).env("FAKETIME", clock).env("DONT_FAKE_MONOTONIC", "1");
            }
            Process::start(&mut command, &config.with_extension("log"))
        }));
    }

    /// Until it serves; where it ends before, for there is no database yet, it is started again.
    #[track_caller]
    pub fn wait(&mut self) {
        let deadline = Instant::now() + PATIENCE * 2;
        loop {
            if self.log().contains("started") {
                return;
            }
            assert!(Instant::now() < deadline, "it does not start: {}", self.log());
            if !self.runs() {
                sleep(Duration::from_millis(200));
                self.begin();
            }
            sleep(Duration::from_millis(25));
        }
    }

    fn runs(&self) -> bool {
        let id = self.process.as_ref().unwrap().id();
        let status = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // What has ended and was not waited for is a zombie.
        status.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with('Z'))
    }

    /// What it has said since it was started last.
    pub fn log(&self) -> String {
        self.process.as_ref().unwrap().log()
    }

    /// The same words, whenever it said them.
    pub fn log_of_all(&self) -> String {
        std::fs::read_to_string(self.config.with_extension("log")).unwrap_or_default()
    }

    pub fn signal(&self, name: &str) {
        self.process.as_ref().unwrap().signal(name);
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.as_mut().unwrap().kill();
    }

    /// It ends as it should; the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal("TERM");
        self.process.as_mut().unwrap().wait()
    }

    /// It is started again, and serves.
    pub fn start(&mut self) {
        self.begin();
        self.wait();
    }
}

/// A machine that takes mail.
pub struct Exchanger {
    /// Dropped first: its Postfix and what it lies in.
    pub world: World,
    pub service: Service,
}

impl Exchanger {
    pub fn start(node: &Node, queue: &[String], backend: &str) -> Self {
        let mut config: Vec<_> = queue.iter().map(|line| ("queue", line.clone())).collect();
        config.push(("backend", format!("url = \"{backend}\"")));
        config.push(("backend", "allow_plain_http = true".to_owned()));
        let world = node.inside(move || {
            World::with(Options { config, without_milter: true, without_sink: true, ..Options::default() })
        });
        let service = Service::new(node, world.config_path(), Part::Intake);
        Self { world, service }
    }

    pub fn postfix(&self) -> &Postfix {
        &self.world.postfix
    }

    /// Its Postfix ends, and is started again.
    pub fn restart_postfix(&self) {
        self.world.postfix.tool("postfix", &["stop"]);
        self.start_postfix();
    }

    pub fn start_postfix(&self) {
        let conf = self.world.postfix.conf();
        self.service.node.inside(move || {
            let done = Command::new("postfix").arg("-c").arg(conf).arg("start").status().unwrap();
            assert!(done.success());
        });
    }
}

/// A machine that delivers, with the settings of one that takes mail and directories of its own below `root`.
pub fn courier(node: &Node, of: &World, root: &Path) -> Service {
    let config = root.join(format!("{}.toml", node.name));
    let text = std::fs::read_to_string(of.config_path()).unwrap();
    let (ours, theirs) = (of.root.join("queue"), root.join(node.name));
    std::fs::write(&config, text.replace(ours.to_str().unwrap(), theirs.to_str().unwrap())).unwrap();
    Service::new(node, config, Part::Courier)
}
