//! The LMTP listener in this process, with a directory that cannot answer.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/policy.rs"]
mod policy;

use activity_milter::{
    courier::Desk,
    directory::{Directory, People, Unavailable},
    intake::{Listener, Policy, Service, SocketSettings, lmtp},
    mail::{Address, Budget, Domain},
    queue::{self, SystemClock},
    rules::{Addressing, Project, Tenant, Texts},
};
use async_trait::async_trait;
use policy::policy;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;

/// Knows the tenant while it is up, and the people never.
struct Moody {
    up: AtomicBool,
}

#[async_trait]
impl Directory for Moody {
    async fn tenant(&self, prefix: &str) -> Result<Option<Tenant>, Unavailable> {
        if !self.up.load(Ordering::SeqCst) {
            return Err(Unavailable("down".to_owned()));
        }
        Ok((prefix == "mycompany").then(|| Tenant {
            id: "t-1".to_owned(),
            prefix: prefix.to_owned(),
            name: String::new(),
            active: true,
            activity_type: "Email".to_owned(),
            shadow: false,
            policy: Arc::default(),
        }))
    }

    async fn people(&self, _: &Tenant, _: &[Address]) -> Result<People, Unavailable> {
        Err(Unavailable("down".to_owned()))
    }

    async fn project(&self, _: &Tenant, _: &str, _: &[Address]) -> Result<Option<Project>, Unavailable> {
        Err(Unavailable("down".to_owned()))
    }
}

#[tokio::test]
async fn a_directory_that_cannot_answer_defers() {
    let directory = tempfile::tempdir().unwrap();
    let spool = directory.path().join("spool");
    let settings = queue::Settings {
        max_items: 10,
        ..queue::Settings::new(directory.path().join("queue.db"), spool.clone())
    };
    let queue = queue::open(&settings, Arc::new(SystemClock)).unwrap();
    let moody = Arc::new(Moody { up: AtomicBool::new(false) });
    let service = Service::new(
        Addressing {
            domains: vec![Domain::parse("severamail.test").unwrap()],
            recipient_delimiter: String::new(),
        },
        Policy { max_recipients: 10, ..policy() },
        Texts::default(),
        Arc::clone(&moody) as Arc<dyn Directory>,
        Budget::new(1 << 20),
        spool,
    );
    let stop = CancellationToken::new();
    let socket = SocketSettings {
        table: "lmtp",
        listen: "inet:127.0.0.1:0".parse().unwrap(),
        mode: 0o660,
        group: None,
        max_sessions: 10,
        idle_when_full: std::time::Duration::from_secs(30),
    };
    let listener = Listener::bind(&socket, stop.clone()).await.unwrap();
    let address = listener.local().unwrap().to_string().strip_prefix("inet:").unwrap().to_owned();
    let server = tokio::spawn(lmtp::run(listener, service.into(), Desk::Queue(queue), stop.clone()));

    let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
    let mut line = String::new();
    for (sent, expected) in [("", "220 "), ("LHLO x\r\n", "250-localhost")] {
        stream.write_all(sent.as_bytes()).await.unwrap();
        line.clear();
        stream.read_line(&mut line).await.unwrap();
        assert!(line.starts_with(expected), "{line}");
    }
    while line.starts_with("250-") {
        line.clear();
        stream.read_line(&mut line).await.unwrap();
    }
    let deferred = "451 4.4.3 <mycompany@severamail.test>: ";
    for (sent, up, expected) in [
        ("MAIL FROM:<a@b.test>\r\n", false, "250 "),
        ("RCPT TO:<mycompany@severamail.test>\r\n", false, deferred),
        ("RCPT TO:<mycompany@severamail.test>\r\n", true, "250 "),
        ("DATA\r\n", true, "354 "),
        ("From: a@b.test\r\nSubject: s\r\n\r\nt\r\n.\r\n", true, deferred),
        // And the connection is as good as before.
        ("NOOP\r\n", true, "250 "),
    ] {
        moody.up.store(up, Ordering::SeqCst);
        stream.write_all(sent.as_bytes()).await.unwrap();
        line.clear();
        stream.read_line(&mut line).await.unwrap();
        assert!(line.starts_with(expected), "{sent}: {line}");
        assert!(expected != deferred || line.ends_with("[directory-unavailable]\r\n"), "{line}");
    }
    stop.cancel();
    server.await.unwrap();
}
