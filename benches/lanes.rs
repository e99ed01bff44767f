//! How late a tenant's activities are while another tenant's secret is revoked, beside how late they are alone: from the
//! put's return to the backend. Both by turns in one run; the figure is the ratio.

#![allow(clippy::unwrap_used, missing_docs)] // a panic is this program's way to fail

#[allow(dead_code)] // the other programs need the rest
mod inputs;

use activity_milter::{
    activity::Parcel,
    backend::{Backend, Delivery, Journal, Outcome, Scope},
    courier::{self, Controls},
    queue::{self, Queue, Settings, SystemClock},
};
use async_trait::async_trait;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

const ROUNDS: u64 = 5;
/// Activities that are measured in a round, one each `PACE`.
const MEASURED: u64 = 400;
const PACE: Duration = Duration::from_millis(5);
/// Activities that the other tenant has waiting.
const WAITING: u64 = 2_000;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        for (with_bad, times) in [(false, &mut alone), (true, &mut beside)] {
            let first = (2 * round + u64::from(with_bad)) * 10_000;
            // As many puts in both, so that the database is as large.
            let tenant = if with_bad { "bad" } else { "good" };
            let waiting = (first..first + WAITING).map(|number| parcel(tenant, number)).collect();
            let measured =
                (first + WAITING..first + WAITING + MEASURED).map(|number| parcel("good", number)).collect();
            times.extend(runtime.block_on(measure(waiting, measured, if with_bad { WAITING } else { 0 })));
        }
    }
    println!("from put to backend, of {} activities each", alone.len());
    println!("| | median | 90 % | 99 % |\n| --- | --- | --- | --- |");
    let mut at = Vec::new();
    for (name, times) in [("alone", &mut alone), ("beside a tenant whose secret is revoked", &mut beside)] {
        times.sort();
        let part = |percent: usize| times[(times.len() - 1) * percent / 100];
        println!("| {name} | {:?} | {:?} | {:?} |", part(50), part(90), part(99));
        at.push(part(50));
    }
    println!("ratio of the medians: {:.2}", at[1].as_secs_f64() / at[0].as_secs_f64());
}

/// Notes when it gets what; refuses one tenant's secret.
#[derive(Default)]
struct Noting {
    at: Mutex<HashMap<String, Instant>>,
}

#[async_trait]
impl Backend for Noting {
    async fn deliver(&self, delivery: &Delivery, _: &dyn Journal) -> Outcome {
        if delivery.activity.tenant.id == "bad" {
            let reason = "invalid_client".to_owned();
            return Outcome::Misconfigured { scope: Scope::Tenant, after: None, reason };
        }
        self.at.lock().unwrap().insert(delivery.activity.key.to_string(), Instant::now());
        Outcome::Taken
    }

    async fn check(&self, _: Duration) -> Vec<activity_milter::backend::Check> {
        Vec::new()
    }
}

fn parcel(tenant: &str, number: u64) -> Parcel {
    let mail = inputs::Mail::new(inputs::small(number));
    let mut parties = mail.parties();
    parties.iter_mut().for_each(|parties| tenant.clone_into(&mut parties.tenant.id));
    mail.build(parties)
}

/// How late each of `measured` was. `left`: how many never go.
async fn measure(waiting: Vec<Parcel>, measured: Vec<Parcel>, left: u64) -> Vec<Duration> {
    let scratch = tempfile::tempdir().unwrap();
    let settings = Settings::new(scratch.path().join("queue.db"), scratch.path().join("spool"));
    let queue: Arc<dyn Queue> = queue::open(&settings, Arc::new(SystemClock)).unwrap();
    for parcel in waiting {
        queue.put(parcel).await.unwrap();
    }
    let backend = Arc::new(Noting::default());
    let settings = courier::Settings {
        max_in_flight: 32,
        shares: Default::default(),
        retry_first: Duration::from_secs(1),
        retry_max: Duration::from_secs(600),
        max_age: Duration::from_secs(86_400),
    };
    let stop = CancellationToken::new();
    let courier = tokio::spawn(courier::run(
        Arc::clone(&queue),
        backend.clone(),
        Controls::new(settings),
        stop.clone(),
    ));
    tokio::time::sleep(Duration::from_secs(1)).await;
    while queue.counts().await.unwrap().waiting != left {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut put = Vec::new();
    for parcel in measured {
        let key = parcel.activities[0].key.to_string();
        queue.put(parcel).await.unwrap();
        put.push((key, Instant::now()));
        tokio::time::sleep(PACE).await;
    }
    while queue.counts().await.unwrap().waiting != left {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    courier.await.unwrap();
    let at = backend.at.lock().unwrap();
    put.iter().map(|(key, put)| at[key].saturating_duration_since(*put)).collect()
}
