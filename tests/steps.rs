//! A delivery of three steps that is killed between and around each of them: each step is done once.
//!
//! The business system is a file, to which each step adds a line. It cannot undo anything, and takes the same step twice,
//! but it can be asked what it has: as most of them.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/desk.rs"]
mod desk;
#[path = "support/store.rs"]
mod store;

use activity_milter::{
    backend::{Backend, Delivery, Journal, NotNoted, Outcome},
    courier,
    queue::{Ask, HandClock, LEASE, Queue},
};
use desk::DAYS;
use std::{
    fs,
    io::Write,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};
use store::{Letter, Running, open, settings, wait_for};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const STEPS: [&str; 3] = ["activity", "people", "files"];

/// Places where it may be killed: before and after each note and each call of a step, and before the last word.
const PLACES: usize = 4 * STEPS.len() + 1;

/// The three-step backend, which kills itself at a place.
struct InSteps {
    system: PathBuf,
    place: AtomicUsize,
    kill_at: usize,
}

impl InSteps {
    fn place(&self) {
        if self.place.fetch_add(1, Ordering::SeqCst) + 1 == self.kill_at {
            let me = std::process::id().to_string();
            std::process::Command::new("kill").args(["-9", &me]).status().unwrap();
            std::thread::sleep(store::PATIENCE);
        }
    }

    fn has(&self, step: &str) -> bool {
        fs::read_to_string(&self.system).unwrap_or_default().lines().any(|line| line == step)
    }

    fn call(&self, step: &str) {
        let mut system = fs::OpenOptions::new().create(true).append(true).open(&self.system).unwrap();
        writeln!(system, "{step}").unwrap();
    }

    async fn steps(&self, journal: &dyn Journal) -> Result<(), NotNoted> {
        let last = journal.last().unwrap_or_default();
        for (at, step) in STEPS.iter().enumerate() {
            let (intent, done) = (format!("\"{at} intent\""), format!("\"{at} done\""));
            if last > intent || last == done {
                continue; // "0 done" < "1 intent"
            }
            self.place();
            // Only what was meant to be done may have been done.
            let is_done = last == intent && self.has(step);
            if !is_done {
                journal.note(intent).await?;
                self.place();
                self.call(step);
            }
            self.place();
            journal.note(done).await?;
            self.place();
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl Backend for InSteps {
    async fn deliver(&self, _: &Delivery, journal: &dyn Journal) -> Outcome {
        match self.steps(journal).await {
            Ok(()) => {
                self.place();
                Outcome::Taken
            }
            Err(error) => error.into(),
        }
    }

    async fn check(&self, _: Duration) -> Vec<activity_milter::backend::Check> {
        Vec::new()
    }
}

/// The child: carries what is in the queue, or is killed.
#[test]
fn child() {
    let Ok(what) = std::env::var("child") else { return };
    let (kill_at, directory) = what.split_once(' ').unwrap();
    let directory = Path::new(directory);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let queue = open(&settings(directory));
        let backend = Arc::new(InSteps {
            system: directory.join("system"),
            place: AtomicUsize::new(0),
            kill_at: kill_at.parse().unwrap(),
        });
        carry(&queue, backend).await;
    });
}

/// Runs a courier until nothing waits.
async fn carry(queue: &Arc<dyn Queue>, backend: Arc<dyn Backend>) {
    let settings = courier::Settings {
        max_in_flight: 2,
        shares: Default::default(),
        retry_first: Duration::from_millis(10),
        retry_max: Duration::from_millis(10),
        max_age: DAYS,
    };
    let stop = CancellationToken::new();
    let controls = courier::Controls::new(settings);
    let courier = tokio::spawn(courier::run(Arc::clone(queue), backend, controls, stop.clone()));
    while queue.counts().await.unwrap().waiting > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    courier.await.unwrap();
}

/// Runs the child; false if it was killed.
fn run(directory: &Path, kill_at: usize) -> bool {
    let mut child = Running::this("child", &format!("{kill_at} {}", directory.display()));
    let status = wait_for("the child's end", || child.0.try_wait().unwrap());
    assert!(status.success() || status.signal() == Some(9), "{status}");
    status.success()
}

#[test]
fn each_step_is_done_once_wherever_it_is_killed() {
    let case = |kills: &[usize]| {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let settings = settings(directory.path());
        runtime.block_on(async {
            let queue = open(&settings);
            queue.put(Letter::small(1).parcel(&settings.spool).await).await.unwrap();
        });
        let mut killed = 0;
        for &place in kills {
            killed += usize::from(!run(directory.path(), place));
        }
        assert!(run(directory.path(), 0), "{kills:?}");
        let done = fs::read_to_string(directory.path().join("system")).unwrap();
        assert_eq!(done.lines().collect::<Vec<_>>(), STEPS, "{kills:?}");
        killed
    };
    // Once at each place; and again and again at an early one, so that it never comes far.
    let mut cases: Vec<Vec<usize>> = (1..=PLACES).map(|place| vec![place]).collect();
    cases.extend([vec![2; 4], vec![3; 8], vec![4; 6], vec![5; 5], vec![1, 2, 3, 4, 1, 2, 3, 4]]);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(kills) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let killed = case(kills);
                    assert!(killed > 0, "{kills:?}: it was not killed at all");
                    assert!(kills.len() > 1 || killed == 1, "{kills:?}");
                }
            });
        }
    });
}

/// Waits in the midst of an attempt, and then notes.
struct Slow {
    begun: Notify,
    go_on: Notify,
    noted: Mutex<Vec<bool>>,
}

#[async_trait::async_trait]
impl Backend for Slow {
    async fn deliver(&self, _: &Delivery, journal: &dyn Journal) -> Outcome {
        self.begun.notify_one();
        self.go_on.notified().await;
        let noted = journal.note("1".to_owned()).await;
        self.noted.lock().unwrap().push(noted.is_ok());
        noted.map_or_else(Outcome::from, |()| Outcome::Taken)
    }

    async fn check(&self, _: Duration) -> Vec<activity_milter::backend::Check> {
        Vec::new()
    }
}

#[tokio::test]
async fn who_lost_the_lease_can_note_nothing_and_goes_no_further() {
    let clock = Arc::new(HandClock::at(SystemTime::now()));
    let desk = desk::Desk::closed_with(1, clock.clone());
    desk.queue.put(desk::parcel(1)).await.unwrap();
    let slow = Arc::new(Slow { begun: Notify::new(), go_on: Notify::new(), noted: Mutex::default() });
    let desk = desk.begin_over(slow.clone(), DAYS);
    slow.begun.notified().await;
    // It takes so long that somebody else gets it.
    clock.pass(LEASE * 2);
    let other = desk.queue.lease(Ask { room: 1, ..Ask::default() }).await.unwrap().tickets.remove(0);
    slow.go_on.notify_one();
    while slow.noted.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(*slow.noted.lock().unwrap(), [false]);
    let item = desk.queue.open(other.item).await.unwrap();
    assert_eq!((item.note, item.attempts), (None, 0), "the other's attempt is not disturbed");
    desk.close().await;
}
