//! `serve`: puts the rooms together, runs them, and takes them down in the right order.

use super::{Failure, descriptors, identity, other};
use crate::admin;
use crate::backend::Switch;
use crate::config::{Config, Delivery, Outside};
use crate::courier::{self, Controls, Desk, Direct};
use crate::intake::{self, Listener, Live, Places, Service, lmtp, milter};
use crate::mail::Budget;
use crate::notify;
use crate::observe::{self, events, metrics};
use crate::queue::{self, Queue, SystemClock};
use crate::trace;
use crate::verify;
use crate::web;
use clap::Args as ClapArgs;
use miette::Report;
use sd_notify::NotifyState;
use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::{JoinError, JoinHandle},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// How long messages in flight may take after the signal; below systemd's 90 s.
const DRAIN_TIME: Duration = Duration::from_secs(30);

/// How long what was delivered may take to be written down: a pool may have no place, a server may be restarted.
const OWED_TIME: Duration = Duration::from_secs(10);

/// Between two tries.
const OWED_PAUSE: Duration = Duration::from_millis(200);

/// How long attempts at the backend may take after that. What does not finish is attempted again after the start.
const COURIER_TIME: Duration = Duration::from_secs(10);

/// Time for the configuration to be read again: a file server, or a pipe in its place, must not stop reloads for ever.
const READ_TIME: Duration = Duration::from_secs(10);

/// Time for the trace to write its last records.
const TRACE_TIME: Duration = Duration::from_secs(2);

/// Time to hear which word to all services was the last; a queue that is away is asked later.
const WORD_TIME: Duration = Duration::from_secs(2);

/// How often systemd is told that the queue is still being opened.
const OPEN_TICK: Duration = Duration::from_secs(10);

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Take mail, and leave its delivery to other machines that share the queue
    #[arg(long, conflicts_with = "courier_only")]
    intake_only: bool,
    /// Deliver what other machines take
    #[arg(long)]
    courier_only: bool,
}

impl Args {
    pub(super) fn part(&self) -> Part {
        match (self.intake_only, self.courier_only) {
            (true, _) => Part::Intake,
            (_, true) => Part::Courier,
            _ => Part::Whole,
        }
    }
}

/// What of the service runs here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// The doors: others deliver.
    Intake,
    /// The courier: others take mail.
    Courier,
}

impl Part {
    /// Nobody else has a queue in a file.
    fn suits(self, config: &Config) -> Result<(), Failure> {
        if self == Self::Whole || config.queue.server.is_some() && config.delivery == Delivery::Queued {
            return Ok(());
        }
        let why = "a part of the service needs a queue that other machines share";
        Err(other(format!("{why}: set queue.type = \"postgres\" and backend.delivery = \"queued\"")))
    }

    /// Who takes no mail keeps none; what is left of before is given to the database all the same.
    fn without_spool(self, mut config: Config) -> Config {
        config.queue.spool_on_outage &= self.takes_mail();
        config
    }

    fn takes_mail(self) -> bool {
        self != Self::Courier
    }

    fn delivers(self) -> bool {
        self != Self::Intake
    }

    fn status(self) -> &'static str {
        if self.takes_mail() { "taking mail" } else { "delivering" }
    }
}

pub(super) async fn serve(config: Config, path: &Path, part: Part) -> Result<ExitCode, Failure> {
    part.suits(&config)?;
    let config = part.without_spool(config);
    observe::start(&config.log);
    config.warnings.iter().for_each(|warning| events::setting_doubtful(warning));
    if let Some(directory) = identity::roots() {
        events::works_as_root(directory);
    }
    metrics::start();
    observe::start_trace(&config.trace, true);
    descriptors::raise();
    let mut terminate = signal(SignalKind::terminate()).map_err(other)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(other)?;
    // From here on a reload that comes too early waits, and ends nobody.
    let hangup = signal(SignalKind::hangup()).map_err(other)?;
    let closing = CancellationToken::new();
    let milter = match part.takes_mail() {
        true => Some(Listener::bind(&config.milter, closing.clone()).await.map_err(other)?),
        false => None,
    };
    let lmtp = match config.lmtp.as_ref().filter(|_| part.takes_mail()) {
        Some(lmtp) => Some(Listener::bind(lmtp, closing.clone()).await.map_err(other)?),
        None => None,
    };
    // Open until everything else has ended: whoever looks sees how it ends.
    let admin = match &config.admin.socket {
        Some(admin) => Some(Listener::bind(admin, CancellationToken::new()).await.map_err(other)?),
        None => None,
    };
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::pin!(shutdown);
    let start = Running::start(config, path, part, Listeners { milter, lmtp, admin }, closing, hangup);
    let running = tokio::select! {
        running = start => running?,
        () = &mut shutdown => return Ok(ExitCode::SUCCESS),
    };
    running.until(shutdown).await?;
    Ok(ExitCode::SUCCESS)
}

/// The doors, open.
struct Listeners {
    milter: Option<Listener>,
    lmtp: Option<Listener>,
    admin: Option<Listener>,
}

/// What a reload changes.
struct Reloadable {
    path: PathBuf,
    running: Config,
    outside: Outside,
    live: Live,
    backend: Arc<Switch>,
    controls: Arc<Controls>,
}

impl Reloadable {
    /// Reads the configuration again: all of it is taken over, or nothing.
    async fn reload(&mut self) -> Result<(), Report> {
        let path = self.path.clone();
        let config =
            tokio::time::timeout(READ_TIME, tokio::task::spawn_blocking(move || Config::read(&path)));
        let config = config.await.map_err(|_| Report::msg("the file cannot be read in time"))?;
        let config = config.map_err(Report::msg)??;
        self.outside = config.outside.start(Some(&self.outside)).await?;
        let now = self.live.now();
        let verifier = verify::start(config.verify.as_ref()).map_err(Report::msg)?;
        let Config { addressing, policy, texts, .. } = config.clone();
        let new = now.with(addressing, policy, texts, self.outside.directory());
        self.live.replace(new.verifying(verifier));
        self.backend.replace(self.outside.backend());
        self.controls.change(config.courier.clone());
        observe::apply(&config.log);
        config.warnings.iter().for_each(|warning| events::setting_doubtful(warning));
        events::reloaded(&self.path, &self.running.needs_restart(&config).join(", "));
        Ok(())
    }

    /// Reloads at each SIGHUP.
    async fn watch(mut self, mut hangup: Signal) {
        while hangup.recv().await.is_some() {
            let mut state = vec![NotifyState::Reloading];
            state.extend(NotifyState::monotonic_usec_now().ok());
            let _ = sd_notify::notify(&state);
            let status = match self.reload().await {
                Ok(()) => "configuration read again".to_owned(),
                Err(error) => {
                    events::reload_refused(&self.path, &error);
                    format!("new configuration refused: {error}")
                }
            };
            let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
        }
    }
}

/// Tells systemd's watchdog that the runtime still turns, at twice the rate that is asked for.
async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let mut tick = tokio::time::interval(limit / 2);
    loop {
        tick.tick().await;
        let _ = sd_notify::notify(&[NotifyState::Watchdog]);
    }
}

/// Opens the queue. A backlog of millions that an older version left takes a while; systemd is told to wait.
async fn open_queue(settings: queue::Settings) -> Result<Arc<dyn Queue>, Failure> {
    let open = tokio::task::spawn_blocking(move || queue::open(&settings, Arc::new(SystemClock)));
    tokio::pin!(open);
    let mut tick = tokio::time::interval(OPEN_TICK);
    let opened = loop {
        tokio::select! {
            opened = &mut open => break opened,
            _ = tick.tick() => {
                let more = u32::try_from(OPEN_TICK.as_micros() * 3).unwrap_or(u32::MAX);
                let _ = sd_notify::notify(&[
                    NotifyState::ExtendTimeoutUsec(more),
                    NotifyState::Status("opening the queue"),
                ]);
            }
        }
    };
    Ok(opened.map_err(other)??)
}

/// Keeps the metrics small, also where nobody reads them, and looks after files with secrets, also where nobody needs them.
async fn upkeep() {
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    let mut looking: Option<JoinHandle<()>> = None;
    loop {
        tick.tick().await;
        metrics::upkeep();
        events::say_suppressed(false);
        // A file server may not answer: then one waits for it, and no more.
        if looking.as_ref().is_none_or(JoinHandle::is_finished) {
            looking = Some(tokio::task::spawn_blocking(web::look_at_all));
        }
    }
}

/// The service at work. The fields stand in the order in which they end.
struct Running {
    /// First nothing changes any more: aborted.
    reload: JoinHandle<()>,
    /// Then nobody new comes in, and the messages in flight are answered.
    doors: Doors,
    /// Then the attempts under way end; what they do not finish is attempted after the next start.
    carriers: Carriers,
    /// Until then somebody may look.
    admin: Option<(JoinHandle<Result<(), String>>, CancellationToken)>,
    /// As long as anything runs: aborted.
    pulse: Vec<JoinHandle<()>>,
}

/// Where mail comes in.
struct Doors {
    live: Live,
    /// Who is connected to the milter.
    places: Option<Places>,
    /// No new connections.
    closing: CancellationToken,
    /// No new commands either.
    hang_up: CancellationToken,
    milter: JoinHandle<io::Result<()>>,
    lmtp: Option<JoinHandle<()>>,
}

/// What works on the queue.
struct Carriers {
    stop: CancellationToken,
    queue: Option<Arc<dyn Queue>>,
    courier: Option<JoinHandle<()>>,
    notices: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts everything, from the inside out: mail comes in last.
    async fn start(
        config: Config,
        path: &Path,
        part: Part,
        listeners: Listeners,
        closing: CancellationToken,
        hangup: Signal,
    ) -> Result<Self, Failure> {
        let running = config.clone();
        let outside = config.outside.start(None).await?;
        let backend = Arc::new(Switch::new(outside.backend()));
        // Without a queue of ours there may still be one of before, and what is in it was promised.
        let queue = match config.delivery {
            Delivery::Direct if config.queue.server.is_none() && !config.queue.path.exists() => {
                queue::make_directory(&config.queue.spool).map_err(other)?;
                None
            }
            Delivery::Queued | Delivery::Direct => Some(open_queue(config.queue.clone()).await?),
        };
        let desk = match (config.delivery, &queue) {
            (Delivery::Queued, Some(queue)) => Desk::Queue(Arc::clone(queue)),
            _ => Desk::Direct(Arc::new(Direct::new(backend.clone(), config.courier.max_in_flight))),
        };
        let controls = Controls::new(config.courier);
        let stop = CancellationToken::new();
        let carriers = Carriers {
            courier: queue.clone().filter(|_| part.delivers()).map(|queue| {
                tokio::spawn(courier::run(queue, backend.clone(), Arc::clone(&controls), stop.clone()))
            }),
            notices: queue
                .clone()
                .zip(config.notify.filter(|_| part.delivers()))
                .map(|(queue, settings)| tokio::spawn(notify::run(queue, settings, stop.clone()))),
            queue: queue.clone(),
            stop,
        };
        let verifier = verify::start(config.verify.as_ref()).map_err(other)?;
        let service = Service::new(
            config.addressing,
            config.policy,
            config.texts,
            outside.directory(),
            Budget::new(config.memory_limit),
            config.queue.spool.clone(),
        );
        let live = Live::from(service.verifying(verifier));
        let Listeners { milter, lmtp, admin } = listeners;
        let places: Vec<_> = [milter.as_ref(), lmtp.as_ref(), admin.as_ref()]
            .into_iter()
            .flatten()
            .map(Listener::places)
            .collect();
        if let Some(doubt) = descriptors::share(&places) {
            events::setting_doubtful(&doubt);
        }
        let places = places.into_iter().cloned().collect();
        let doors = [("milter", milter.as_ref()), ("lmtp", lmtp.as_ref())];
        let doors: Vec<_> =
            doors.into_iter().filter_map(|(door, l)| Some((door, l?.local()?.to_string()))).collect();
        for (door, place) in &doors {
            events::listening(door, place);
        }
        let admin = admin.map(|listener| {
            if let Some(place) = listener.local() {
                events::listening("admin", &place);
            }
            let (live, closing) = (live.clone(), closing.clone());
            let views = admin::Views {
                live,
                queue: queue.clone(),
                controls: Arc::clone(&controls),
                doors,
                closing,
                delivers: part.delivers(),
            };
            let (settings, stop) = (config.admin.clone(), CancellationToken::new());
            let stopped = stop.clone();
            (tokio::spawn(async move { admin::run(listener, &settings, views, stopped).await }), stop)
        });
        let reloadable =
            Reloadable { path: path.to_owned(), running, outside, live: live.clone(), backend, controls };
        let reload = tokio::spawn(reloadable.watch(hangup));
        let mut pulse = vec![
            tokio::spawn(watchdog()),
            tokio::spawn(upkeep()),
            tokio::spawn(intake::keep(places, live.clone())),
        ];
        if let Some(queue) = queue {
            let said = tokio::time::timeout(WORD_TIME, queue.expired(None)).await;
            let said = said.ok().and_then(Result::ok).map(|said| said.newest);
            pulse.push(tokio::spawn(intake::hear_expired(queue, live.clone(), said)));
        }
        let hang_up = CancellationToken::new();
        let lmtp = lmtp
            .map(|listener| tokio::spawn(lmtp::run(listener, live.clone(), desk.clone(), hang_up.clone())));
        let hung_up = hang_up.clone().cancelled_owned();
        let at_the_milter = milter.as_ref().map(|milter| milter.places().clone());
        let milter = match milter {
            Some(milter) => tokio::spawn(milter::run(milter, live.clone(), desk, hung_up)),
            None => tokio::spawn(async move {
                hung_up.await;
                Ok(())
            }),
        };
        events::started();
        let _ = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(part.status())]);
        Ok(Self {
            reload,
            doors: Doors { live, places: at_the_milter, closing, hang_up, milter, lmtp },
            carriers,
            admin,
            pulse,
        })
    }

    /// Serves until `shutdown` completes, or the milter's door fails; then ends everything, in order.
    async fn until(mut self, shutdown: impl Future<Output = ()>) -> Result<(), Failure> {
        let ended = tokio::select! {
            () = shutdown => None,
            ended = &mut self.doors.milter => Some(ended),
        };
        let _ =
            sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status("answering messages in flight")]);
        self.reload.abort();
        let (served, cut_off) = self.doors.close(ended).await;
        let admin = self.admin;
        let finish = async {
            self.carriers.end().await;
            if let Some((admin, stop)) = admin {
                stop.cancel();
                let _ = admin.await;
            }
        };
        let _ = tokio::time::timeout(COURIER_TIME, finish).await;
        self.pulse.iter().for_each(JoinHandle::abort);
        let _ = tokio::task::spawn_blocking(|| trace::stop(TRACE_TIME)).await;
        events::say_suppressed(true);
        events::stopped(cut_off);
        served
    }
}

impl Doors {
    /// Accepts nobody, answers the messages in flight, closes the connections. How the milter's door ended, and how many
    /// messages were cut off. `ended`: it has ended by itself.
    async fn close(self, ended: Option<Result<io::Result<()>, JoinError>>) -> (Result<(), Failure>, usize) {
        events::stopping(self.live.now().in_flight());
        self.closing.cancel();
        if let Some(places) = &self.places {
            places.settle().await;
        }
        let cut_off = self.live.now().drain(DRAIN_TIME).await;
        self.hang_up.cancel();
        let served = match ended {
            Some(ended) => ended,
            None => self.milter.await,
        };
        if let Some(lmtp) = self.lmtp {
            let _ = lmtp.await;
        }
        (served.map_err(other).and_then(|served| served.map_err(other)), cut_off)
    }
}

impl Carriers {
    /// Begins no more attempts, and waits for those under way.
    async fn end(self) {
        self.stop.cancel();
        for task in [self.courier, self.notices].into_iter().flatten() {
            let _ = task.await;
        }
        if let Some(queue) = self.queue {
            let tried_until = Instant::now() + OWED_TIME;
            loop {
                match queue.owed().await {
                    0 => break,
                    activities if Instant::now() >= tried_until => {
                        events::ends_owed(activities);
                        break;
                    }
                    _ => tokio::time::sleep(OWED_PAUSE).await,
                }
            }
        }
    }
}
