//! The whole of it: three database servers, two machines that take mail, two that deliver it, a backend, and clients.
//!
//! In: how many messages a second. Out: a scene in which faults happen one after the other ([`Scene::suffer`]), each until all
//! is well again.
//! Promise: all is well when mail is taken at both doors again and the queue is empty but for what is on its way. At the end
//! nothing waits, and what the database has agrees with what the backend wrote down.

use super::{
    faults::Fault,
    lab::{Lab, Node},
    servers::Servers,
    services::{Exchanger, Service, courier},
};
use crate::history::{
    backend::Backend,
    clients::{Clients, Door, Way},
    tally::{Tally, Window},
};
use std::{
    net::{TcpListener, TcpStream},
    path::PathBuf,
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

/// Longest wait for all to be well.
const PATIENCE: Duration = Duration::from_secs(120);

/// Activities that are on their way where all is well.
const ON_THE_WAY: u32 = 60;

/// The backend's port.
const PORT: u16 = 8080;

/// To a mail server. One begins on the machine itself; what is cut off there is what we look at.
fn door(node: Node, port: u16) -> Door {
    let connect = move || node.inside(move || TcpStream::connect(("127.0.0.1", port)).ok());
    Door { way: Way::Smtp, connect: Arc::new(connect) }
}

/// Fields are dropped in order.
pub struct Scene {
    pub clients: Clients,
    pub exchangers: Vec<Exchanger>,
    pub couriers: Vec<Service>,
    pub backend: Backend,
    /// The backend's machine.
    pub sink: Node,
    pub servers: Servers,
    pub lab: Lab,
    pub root: PathBuf,
    windows: Vec<Window>,
    _directory: tempfile::TempDir,
}

impl Scene {
    /// Starts everything.
    pub fn start(rate: u32) -> Self {
        let lab = Lab::new();
        let directory = tempfile::Builder::new().prefix("am-cluster-").tempdir_in("/tmp").unwrap();
        let root = directory.path().to_owned();
        super::lab::run("chmod", &["755", root.to_str().unwrap()]);
        let sink = lab.node("sink", 41);
        let address = (sink.address, PORT);
        let listener = sink.inside(move || TcpListener::bind(address).unwrap());
        let backend = Backend::start(listener, &root.join("deliveries.log"));
        let servers = Servers::start(&lab, &root);
        let hosts: Vec<String> = servers.nodes().iter().map(|node| node.address.to_string()).collect();
        let queue = [
            "type = \"postgres\"".to_owned(),
            format!("url = \"postgres://am@{}/am?connect_timeout=2\"", hosts.join(",")),
            "tls = \"off\"".to_owned(),
            "require_replication = true".to_owned(),
            "connections = 8".to_owned(),
        ];
        let url = format!("http://{}:{PORT}/", sink.address);
        let doors = [lab.node("mx1", 21), lab.node("mx2", 22)];
        let exchangers: Vec<Exchanger> =
            doors.iter().map(|node| Exchanger::start(node, &queue, &url)).collect();
        let couriers = [("co1", 31), ("co2", 32)];
        let couriers = couriers
            .map(|(name, number)| courier(&lab.node(name, number), &exchangers[0].world, &root))
            .into();
        let doors = exchangers.iter().zip(doors).map(|(one, node)| door(node, one.postfix().port)).collect();
        let clients = Clients::start(doors, rate);
        let mut scene = Self {
            clients,
            exchangers,
            couriers,
            backend,
            sink,
            servers,
            lab,
            root,
            windows: Vec::new(),
            _directory: directory,
        };
        scene.settle();
        scene
    }

    /// Until it is so.
    #[track_caller]
    pub fn until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        self.until_after(Duration::ZERO, what, is);
    }

    /// The same, where it takes so long by itself.
    #[track_caller]
    pub fn until_after(&self, takes: Duration, what: &str, is: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !is(self) {
            assert!(began.elapsed() < takes + PATIENCE, "in vain: {what}\n{}", self.state());
            sleep(Duration::from_millis(50));
        }
    }

    /// For who looks why.
    fn state(&self) -> String {
        let last = |text: String| {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(6)..].join("\n  ")
        };
        let mut text = String::new();
        for one in &self.exchangers {
            text += &format!("{}:\n  {}\n", one.service.node.name, last(one.service.log_of_all()));
            text += &format!("  {}\n", last(one.postfix().log()));
        }
        for one in &self.couriers {
            text += &format!("{}:\n  {}\n", one.node.name, last(one.log_of_all()));
        }
        let activity =
            "SELECT pid, state, wait_event, left(query, 60) FROM pg_stat_activity WHERE datname = 'am'";
        text += &format!("{:?}\n", self.servers.primary().ask(activity));
        text += &format!(
            "{:?}\n",
            self.servers.primary().ask("SELECT application_name, state, sync_state FROM pg_stat_replication")
        );
        let rows = "SELECT id, state, node, fence, attempts, until - activity_milter.at(NULL), due - activity_milter.at(NULL)
            FROM activity_milter.item ORDER BY id LIMIT 20";
        text + &self.servers.primary().cluster.psql("am", rows).unwrap_or_else(|error| error)
    }

    /// Waits until all is well.
    #[track_caller]
    fn settle(&mut self) {
        let since = Instant::now();
        for server in 0..self.exchangers.len() {
            self.until("mail is taken", |scene| scene.clients.accepted(since, Some(server)) >= 2);
        }
        self.until("mail is delivered", |scene| {
            scene.waiting().is_ok_and(|waiting| waiting.parse::<u32>().unwrap() <= ON_THE_WAY)
        });
    }

    /// Activities in the queue.
    fn waiting(&self) -> Result<String, String> {
        self.servers.primary().cluster.psql("am", "SELECT count(*) FROM activity_milter.item")
    }

    /// A fault, until all is well again.
    pub fn suffer(&mut self, fault: &Fault) {
        let began = Instant::now();
        println!("{}", fault.name);
        (fault.happens)(self);
        self.settle();
        let Fault { name, holds, again, .. } = *fault;
        self.windows.push(Window { name, holds, again, sender: None, began, ended: Instant::now() });
        sleep(Duration::from_millis(500));
    }

    /// At least so many messages; then everything must be where it belongs.
    pub fn end(&mut self, messages: usize) -> Tally {
        self.clients.finish(messages);
        self.until("an empty queue", |scene| scene.waiting().as_deref() == Ok("0"));
        sleep(Duration::from_secs(1));
        let tally = Tally::of(&self.clients.heard(), &self.backend.deliveries(), &self.windows);
        println!("{tally}");
        assert_eq!(tally.faults(), Vec::<String>::new());
        let keys = self.servers.sql("SELECT count(*) FROM activity_milter.key");
        assert_eq!(keys, tally.activities.to_string(), "keys of the database, and of the backend");
        assert_eq!(self.backend.damaged(), Vec::<String>::new());
        tally
    }
}
