//! `serve`: puts the rooms together, runs them, and takes them down in the right order.

use super::{Failure, other};
use crate::backend::HttpBackend;
use crate::config::{Config, Delivery};
use crate::courier::{self, Desk, Direct};
use crate::directory::{self, Directory, FileDirectory, HttpDirectory};
use crate::intake::{Listener, Service, lmtp, milter};
use crate::mail::Budget;
use crate::notify;
use crate::observe::{self, events};
use crate::queue::{self, Queue};
use miette::Report;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long messages in flight may take after the signal; below systemd's 90 s.
const DRAIN_TIME: Duration = Duration::from_secs(30);

/// How long attempts at the backend may take after that. What does not finish is attempted again after the start.
const COURIER_TIME: Duration = Duration::from_secs(10);

pub(super) async fn serve(config: Config) -> Result<ExitCode, Failure> {
    observe::start(&config.log);
    raise_open_files();
    let mut terminate = signal(SignalKind::terminate()).map_err(other)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(other)?;
    let closing = CancellationToken::new();
    let milter = Listener::bind(&config.milter, closing.clone()).await.map_err(other)?;
    let lmtp = match &config.lmtp {
        Some(lmtp) => Some((Listener::bind(lmtp, closing.clone()).await.map_err(other)?, lmtp.max_sessions)),
        None => None,
    };
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    run(config, Listeners { milter, lmtp }, closing, shutdown).await?;
    Ok(ExitCode::SUCCESS)
}

/// Takes as many descriptors as the system grants: each session needs one, and the usual soft limit of 1024 is there
/// for programs that use select(2).
fn raise_open_files() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard); // without it, `accept` pauses when they run out
    }
}

/// Opens the directory that the configuration names; a file is read again when it changes, as long as the runtime lives.
pub(super) fn open_directory(
    settings: &directory::Settings,
    backend: &HttpBackend,
) -> Result<Arc<dyn Directory>, Failure> {
    match settings {
        directory::Settings::File { path } => {
            let directory = FileDirectory::open(path).map_err(|error| Failure::Usage(Report::new(error)))?;
            let directory = Arc::new(directory);
            tokio::spawn(Arc::clone(&directory).watch());
            Ok(directory)
        }
        directory::Settings::Http(cache) => Ok(Arc::new(HttpDirectory::new(backend.client(), cache.clone()))),
    }
}

/// The doors, open.
struct Listeners {
    milter: Listener,
    /// With the most sessions it may have.
    lmtp: Option<(Listener, usize)>,
}

/// Serves until `shutdown` completes. The order of the end: accept nobody, answer the messages in flight, close the
/// connections, finish the attempts under way.
async fn run(
    config: Config,
    listeners: Listeners,
    closing: CancellationToken,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let backend = Arc::new(HttpBackend::new(config.backend).map_err(other)?);
    let directory = open_directory(&config.directory, &backend)?;
    // Without a queue of ours there may still be one of before, and what is in it was promised.
    let queue = match config.delivery {
        Delivery::Direct if !config.queue.path.exists() => {
            queue::make_directory(&config.queue.spool).map_err(other)?;
            None
        }
        Delivery::Queued | Delivery::Direct => {
            Some(Arc::new(Queue::open(&config.queue, SystemTime::now()).map_err(other)?))
        }
    };
    let desk = match (config.delivery, &queue) {
        (Delivery::Queued, Some(queue)) => Desk::Queue(Arc::clone(queue)),
        _ => Desk::Direct(Arc::new(Direct::new(backend.clone(), config.courier.max_in_flight))),
    };
    let courier_stop = CancellationToken::new();
    let notices = match (&queue, config.notify) {
        (Some(queue), Some(settings)) => {
            Some(tokio::spawn(notify::run(Arc::clone(queue), settings, courier_stop.clone())))
        }
        _ => None,
    };
    let courier =
        queue.map(|queue| tokio::spawn(courier::run(queue, backend, config.courier, courier_stop.clone())));
    let budget = Budget::new(config.memory_limit);
    let service = Arc::new(Service::new(
        config.addressing,
        config.policy,
        config.texts,
        directory,
        budget,
        config.queue.spool,
    ));
    let Listeners { milter, lmtp } = listeners;
    let doors = [("milter", Some(&milter)), ("lmtp", lmtp.as_ref().map(|(listener, _)| listener))];
    for (door, local) in doors.into_iter().filter_map(|(door, l)| Some((door, l?.local()?))) {
        events::listening(door, &local);
    }
    events::started();
    let hang_up = CancellationToken::new();
    let lmtp = async {
        if let Some((listener, max_sessions)) = lmtp {
            lmtp::run(listener, max_sessions, Arc::clone(&service), desk.clone(), hang_up.clone()).await;
        }
    };
    let milter = milter::run(
        milter,
        config.milter.max_sessions,
        Arc::clone(&service),
        desk.clone(),
        hang_up.clone().cancelled_owned(),
    );
    let stop = async {
        shutdown.await;
        events::stopping(service.in_flight());
        closing.cancel();
        let cut_off = service.drain(DRAIN_TIME).await;
        hang_up.cancel();
        cut_off
    };
    let (served, (), cut_off) = tokio::join!(milter, lmtp, stop);
    courier_stop.cancel();
    let finish = async {
        for task in [courier, notices].into_iter().flatten() {
            let _ = task.await;
        }
    };
    let _ = tokio::time::timeout(COURIER_TIME, finish).await;
    events::stopped(cut_off);
    served.map_err(other)
}
