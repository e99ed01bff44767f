//! The parts of the service alone, in time. `benches/counts.rs` counts instructions of the pure ones.

#![allow(clippy::unwrap_used, missing_docs)] // a panic is this program's way to fail

mod inputs;

use activity_milter::{
    activity::Parcel,
    backend::{Backend, Delivery, Journal, Outcome},
    courier::{self, Controls},
    directory::Directory,
    mail::{Address, Head},
    queue::{self, Queue, Settings, SystemClock},
};
use async_trait::async_trait;
use divan::{Bencher, black_box, counter::ItemsCount};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{runtime::Runtime, sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

fn main() {
    divan::main();
}

#[divan::bench]
fn head_parsing(bencher: Bencher<'_, '_>) {
    let head = inputs::head(1, "text/plain");
    bencher.bench(|| Head::parse(black_box(&head)));
}

/// From what RCPT says to tenant and project.
#[divan::bench]
fn address_resolution(bencher: Bencher<'_, '_>) {
    let (directory, addressing) = (inputs::directory(), inputs::addressing());
    let runtime = runtime();
    bencher.bench(|| {
        runtime.block_on(async {
            let address = Address::parse(black_box("1001.mycompany@severamail.test")).unwrap();
            let readings = addressing.readings(&address);
            let prefixes: Vec<String> = readings.iter().map(|reading| reading.prefix.clone()).collect();
            let (index, tenant) = directory.tenant_of(&prefixes).await.unwrap().unwrap();
            directory.project(&tenant, readings[index].project.as_ref().unwrap(), &[]).await.unwrap()
        })
    });
}

#[divan::bench]
fn rules(bencher: Bencher<'_, '_>) {
    let mail = inputs::Mail::new(inputs::small(1));
    bencher.bench(|| black_box(&mail).decide());
}

#[divan::bench]
fn activity_4_kb(bencher: Bencher<'_, '_>) {
    let mail = inputs::Mail::new(inputs::small(1));
    bencher.with_inputs(|| mail.parties()).bench_values(|parties| mail.build(parties));
}

#[divan::bench]
fn activity_1_mb(bencher: Bencher<'_, '_>) {
    let mail = inputs::Mail::new(inputs::large(1));
    bencher.with_inputs(|| mail.parties()).bench_values(|parties| mail.build(parties));
}

#[divan::bench]
fn activity_json(bencher: Bencher<'_, '_>) {
    let mail = inputs::Mail::new(inputs::small(1));
    let parcel = mail.build(mail.parties());
    bencher.bench(|| serde_json::to_string(black_box(&parcel.activities[0])));
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// E-mails that are all different, over the whole run.
fn parcels(count: u64) -> Vec<Parcel> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let first = NEXT.fetch_add(count, Ordering::Relaxed);
    (first..first + count)
        .map(|number| {
            let mail = inputs::Mail::new(inputs::small(number));
            mail.build(mail.parties())
        })
        .collect()
}

fn queue(directory: &std::path::Path) -> Arc<dyn Queue> {
    let settings = Settings::new(directory.join("queue.db"), directory.join("spool"));
    queue::open(&settings, Arc::new(SystemClock)).unwrap()
}

/// Durable: each put has returned after its sync.
#[divan::bench(args = [1, 16, 64], sample_count = 20, sample_size = 1)]
fn queue_insert(bencher: Bencher<'_, '_>, producers: usize) {
    const PUTS: u64 = 512;
    let (scratch, runtime) = (tempfile::tempdir().unwrap(), runtime());
    let queue = queue(scratch.path());
    bencher.counter(ItemsCount::new(PUTS)).with_inputs(|| parcels(PUTS)).bench_local_values(|parcels| {
        runtime.block_on(put_all(&queue, parcels, producers));
    });
}

async fn put_all(queue: &Arc<dyn Queue>, parcels: Vec<Parcel>, producers: usize) {
    let (sender, receiver) = tokio::sync::mpsc::channel(parcels.len());
    for parcel in parcels {
        sender.try_send(parcel).unwrap();
    }
    drop(sender);
    let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
    let mut tasks = JoinSet::new();
    for _ in 0..producers {
        let (queue, receiver) = (Arc::clone(queue), Arc::clone(&receiver));
        tasks.spawn(async move {
            loop {
                let Some(parcel) = receiver.lock().await.recv().await else { return };
                queue.put(parcel).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
}

/// Takes everything at once: what is measured is the queue and the courier.
struct Taker {
    left: AtomicU64,
    done: Arc<Notify>,
}

#[async_trait]
impl Backend for Taker {
    async fn deliver(&self, delivery: &Delivery, _: &dyn Journal) -> Outcome {
        black_box(&delivery.json);
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.done.notify_one();
        }
        Outcome::Taken
    }

    async fn check(&self, _: Duration) -> Vec<activity_milter::backend::Check> {
        Vec::new()
    }
}

#[divan::bench(sample_count = 10, sample_size = 1)]
fn courier_drain(bencher: Bencher<'_, '_>) {
    const ITEMS: u64 = 2_000;
    let runtime = runtime();
    bencher
        .counter(ItemsCount::new(ITEMS))
        .with_inputs(|| {
            let scratch = tempfile::tempdir().unwrap();
            let queue = queue(scratch.path());
            runtime.block_on(put_all(&queue, parcels(ITEMS), 64));
            (scratch, queue)
        })
        .bench_local_values(|(scratch, queue)| {
            runtime.block_on(async {
                let done = Arc::new(Notify::new());
                let backend = Arc::new(Taker { left: AtomicU64::new(ITEMS), done: Arc::clone(&done) });
                let controls = Controls::new(courier::Settings {
                    max_in_flight: 32,
                    shares: Default::default(),
                    retry_first: Duration::from_secs(30),
                    retry_max: Duration::from_secs(30),
                    max_age: Duration::from_secs(3600),
                });
                let stop = CancellationToken::new();
                let courier = tokio::spawn(courier::run(queue, backend, controls, stop.clone()));
                done.notified().await;
                stop.cancel();
                courier.await.unwrap();
            });
            scratch
        });
}
