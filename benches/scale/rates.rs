//! How many messages a queue takes in a second, and how many it gives, over one or several nodes.

use crate::inputs;
use activity_milter::{
    activity::{Key, Parcel},
    backend::{Backend, Check, Delivery, Journal, Outcome},
    courier::{self, Controls},
    queue::{self, Queue, Settings, SystemClock, postgres::Server},
};
use async_trait::async_trait;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{runtime::Runtime, sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Tenants whose mail it is.
const TENANTS: u64 = 100;

/// A machine with a queue: a directory of its own, and the threads of its own that the engine has.
pub struct Node {
    pub queue: Arc<dyn Queue>,
    _directory: tempfile::TempDir,
}

impl Node {
    /// With a file of its own, or with a database that others have too.
    pub fn new(server: Option<Server>) -> Self {
        // Beside the servers, so that all have the same disk.
        let directory = tempfile::tempdir_in("/tmp").unwrap();
        let (path, spool) = (directory.path().join("queue.db"), directory.path().join("spool"));
        let settings = Settings { server, ..Settings::new(path, spool) };
        let queue = queue::open(&settings, Arc::new(SystemClock)).unwrap();
        Self { queue, _directory: directory }
    }

    pub fn several(count: usize, server: &Server) -> Vec<Self> {
        (0..count).map(|_| Self::new(Some(server.clone()))).collect()
    }
}

/// What all sides run in: as many threads as there are cores.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap()
}

/// Messages of 4 KB by turns of all tenants, all different over the whole run. What a message costs besides the queue is
/// left out: one is built for each tenant, and has another key each time.
pub struct Mail(Vec<Parcel>);

impl Mail {
    pub fn new() -> Self {
        let mail = inputs::Mail::new(inputs::small(1));
        let of_tenant = |tenant| {
            let mut parties = mail.parties();
            parties.iter_mut().for_each(|parties| parties.tenant.id = format!("t-{tenant}"));
            mail.build(parties)
        };
        Self((0..TENANTS).map(of_tenant).collect())
    }

    fn next(&self) -> Parcel {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut parcel = self.0[usize::try_from(number % TENANTS).unwrap()].clone();
        let key = blake3::hash(format!("{} {number}", std::process::id()).as_bytes());
        parcel.activities[0].key = Key::from_bytes(*key.as_bytes());
        parcel
    }
}

/// What was seen of some work.
pub struct Seen {
    pub rate: f64,
    /// How long each took.
    pub times: Vec<Duration>,
}

/// Puts `count` messages, `at_once` at a time at each node.
pub async fn puts(nodes: &[Node], mail: &Arc<Mail>, count: u64, at_once: usize) -> Seen {
    let left = Arc::new(AtomicU64::new(count));
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    for node in nodes {
        for _ in 0..at_once {
            let (queue, mail, left) = (Arc::clone(&node.queue), Arc::clone(mail), Arc::clone(&left));
            tasks.spawn(async move {
                let mut times = Vec::new();
                while left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                    .is_ok()
                {
                    let parcel = mail.next();
                    let began = Instant::now();
                    queue.put(parcel).await.unwrap();
                    times.push(began.elapsed());
                }
                times
            });
        }
    }
    let times = tasks.join_all().await.concat();
    Seen { rate: count as f64 / began.elapsed().as_secs_f64(), times }
}

/// Takes everything at once: what is measured is the queue and the courier.
struct Taker {
    left: Arc<AtomicU64>,
    done: Arc<Notify>,
}

#[async_trait]
impl Backend for Taker {
    async fn deliver(&self, delivery: &Delivery, _: &dyn Journal) -> Outcome {
        std::hint::black_box(&delivery.json);
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.done.notify_one();
        }
        Outcome::Taken
    }

    async fn check(&self, _: Duration) -> Vec<Check> {
        Vec::new()
    }
}

/// Has `count` waiting messages delivered by a courier at each node, with `at_once` attempts at a time.
pub async fn deliveries(nodes: &[Node], count: u64, at_once: usize) -> f64 {
    let (left, done) = (Arc::new(AtomicU64::new(count)), Arc::new(Notify::new()));
    let stop = CancellationToken::new();
    let began = Instant::now();
    let mut couriers = JoinSet::new();
    for node in nodes {
        let settings = courier::Settings {
            max_in_flight: at_once,
            shares: Default::default(),
            retry_first: Duration::from_secs(30),
            retry_max: Duration::from_secs(30),
            max_age: Duration::from_secs(3600),
        };
        let backend = Arc::new(Taker { left: Arc::clone(&left), done: Arc::clone(&done) });
        couriers.spawn(courier::run(Arc::clone(&node.queue), backend, Controls::new(settings), stop.clone()));
    }
    done.notified().await;
    let rate = count as f64 / began.elapsed().as_secs_f64();
    stop.cancel();
    couriers.join_all().await;
    assert_eq!(nodes[0].queue.counts().await.unwrap().waiting, 0);
    rate
}

/// The value in the middle.
pub fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}
