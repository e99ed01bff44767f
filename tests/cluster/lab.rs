//! Machines in networks of their own, at one switch, so that a cable can be pulled.
//!
//! In: names. Out: [`Node`]s with an address each; whoever is started in one sees the others only as far as they are not cut
//! off. File systems are shared, so sockets and logs are reached from everywhere.
//! Promise: nothing of it is seen outside of the test's thread and what it starts, and all of it is gone with them.
//! Fails: without root (as `tests/support/filters.rs`).

use nix::{
    sched::{CloneFlags, unshare},
    unistd::gettid,
};
use std::{
    net::Ipv4Addr,
    process::Command,
    sync::{Arc, mpsc},
    thread,
};

type Work = Box<dyn FnOnce() + Send>;

/// Where frames go that nobody shall get.
const NOBODY: &str = "02:00:00:00:00:ff";

/// The switch. The thread that makes it is in its network from then on, and so is every thread it starts.
pub struct Lab;

impl Lab {
    pub fn new() -> Self {
        let parts = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
        unshare(parts).expect("networks of their own need root: see tests/cluster/lab.rs");
        run("mount", &["--make-rprivate", "/"]);
        run("ip", &["link", "set", "lo", "up"]);
        run("ip", &["link", "add", "switch", "type", "bridge"]);
        run("ip", &["addr", "add", "10.77.0.1/24", "dev", "switch"]);
        run("ip", &["link", "set", "switch", "up"]);
        Self
    }

    /// A machine with the address 10.77.0.`number`.
    pub fn node(&self, name: &'static str, number: u8) -> Node {
        let (work, todo) = mpsc::channel::<Work>();
        let (tell, told) = mpsc::channel();
        // A network belongs to a thread, and to what the thread starts.
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            tell.send(gettid()).unwrap();
            todo.into_iter().for_each(|work| work());
        });
        let place = told.recv().unwrap().to_string();
        let port = format!("to-{name}");
        run("ip", &["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &place]);
        run("ip", &["link", "set", &port, "master", "switch", "up"]);
        let node = Node { name, address: Ipv4Addr::new(10, 77, 0, number), port, work };
        let address = format!("{}/24", node.address);
        node.inside(move || {
            run("ip", &["link", "set", "lo", "up"]);
            run("ip", &["addr", "add", &address, "dev", "eth0"]);
            run("ip", &["link", "set", "eth0", "up"]);
        });
        node
    }

    /// Pulls the cables of these.
    pub fn unplug(&self, nodes: &[&Node]) {
        for node in nodes {
            run("ip", &["link", "set", &node.port, "down"]);
        }
    }

    /// Puts them back.
    pub fn plug(&self, nodes: &[&Node]) {
        for node in nodes {
            run("ip", &["link", "set", &node.port, "up"]);
        }
    }
}

/// A machine.
#[derive(Clone)]
pub struct Node {
    pub name: &'static str,
    pub address: Ipv4Addr,
    port: String,
    work: mpsc::Sender<Work>,
}

impl Node {
    /// Does something there.
    #[track_caller]
    pub fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, answer) = mpsc::channel();
        // What fails there fails here, and the next one can be asked.
        let guarded = move || std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        self.work.send(Box::new(move || drop(done.send(guarded())))).unwrap();
        answer.recv().unwrap().unwrap_or_else(|why| std::panic::resume_unwind(why))
    }

    /// What it sends to these is lost, without a word.
    pub fn lose(&self, others: &[&Self]) {
        self.neighbours("replace", others);
    }

    /// It reaches them again.
    pub fn find(&self, others: &[&Self]) {
        self.neighbours("del", others);
    }

    fn neighbours(&self, what: &'static str, others: &[&Self]) {
        let addresses: Arc<[String]> = others.iter().map(|other| other.address.to_string()).collect();
        self.inside(move || {
            for address in &*addresses {
                let mut words = vec!["neigh", what, address];
                if what == "replace" {
                    words.extend(["lladdr", NOBODY, "nud", "permanent"]);
                }
                words.extend(["dev", "eth0"]);
                run("ip", &words);
            }
        });
    }
}

/// A program of the system, which must not fail.
#[track_caller]
pub fn run(program: &str, args: &[&str]) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let done = Command::new(program).args(args).env("PATH", path).status();
    let done = done.unwrap_or_else(|error| panic!("{program}: {error}: see packaging/install-deps"));
    assert!(done.success(), "{program} {args:?}");
}
