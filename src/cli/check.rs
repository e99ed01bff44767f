//! `check`: is everything there that the service needs? One line each.

use super::{
    Failure, credentials, descriptors,
    out::{say, say_json},
    rights,
};
use crate::config::{Config, Delivery, DirectoryKind};
use crate::intake::{Listen, SocketSettings};
use crate::queue::{self, Filter, OpenError, SystemClock};
use crate::severa::CopyState;
use crate::trace::{self, SearchError};
use clap::Args as ClapArgs;
use serde::Serialize;
use std::{path::Path, process::ExitCode, sync::Arc, time::Duration};

/// Time for the backend and the directory to answer.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Only the configuration and the files it names: nothing is connected to
    #[arg(long)]
    offline: bool,
}

/// What was looked at, and how it is.
#[derive(Debug, Serialize)]
struct Line {
    name: String,
    ok: bool,
    /// It works, and probably not as it was meant.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    warning: bool,
    detail: String,
}

impl Line {
    fn said(name: &str, outcome: Result<String, String>) -> Self {
        let ok = outcome.is_ok();
        let detail = outcome.unwrap_or_else(|error| super::without_numbers(&error));
        Self { name: name.to_owned(), ok, warning: false, detail: credentials::explained(&detail) }
    }

    /// Of a file that the configuration names. What this user cannot see at all may well be in order.
    fn about(fault: &str) -> Self {
        let line = Self::said("named file", Err(fault.to_owned()));
        let is_unseen = credentials::is_out_of_sight(fault);
        Self { ok: is_unseen, warning: is_unseen, ..line }
    }

    fn text(&self) -> String {
        let word = match (self.ok, self.warning) {
            (true, false) => "ok",
            (true, true) => "warn",
            (false, _) => "NOT OK",
        };
        format!("{word:<6} {:<13} {}\n", self.name, self.detail)
    }
}

/// The file, and the drop-ins that are laid over it.
fn files(config: &Config, path: &Path) -> String {
    let drop_ins: Vec<_> = config.files.iter().skip(1).map(|path| path.display().to_string()).collect();
    match drop_ins.as_slice() {
        [] => path.display().to_string(),
        drop_ins => format!("{} with {}", path.display(), drop_ins.join(", ")),
    }
}

pub(super) async fn check(path: &Path, args: &Args) -> Result<ExitCode, Failure> {
    let (config, faults) = Config::look(path, &credentials::instead())?;
    let mut lines = vec![Line::said("configuration", Ok(files(&config, path)))];
    lines.extend(faults.iter().map(|fault| Line::about(&fault.to_string())));
    let mut add = |name: &str, outcome: Result<String, String>| {
        lines.push(Line::said(name, outcome));
    };
    let backend = config.outside.open_backend();
    match &backend {
        // That was said.
        Err(_) if !faults.is_empty() => {}
        Err(error) => add("backend", Err(error.to_string())),
        Ok(_) if args.offline => {
            add("backend", Ok(format!("{} (not asked)", config.outside.client.connection.url)))
        }
        Ok(backend) => backend.check(PATIENCE).await.into_iter().for_each(|c| add(&c.name, c.outcome)),
    }
    let is_file = matches!(config.outside.directory, DirectoryKind::File { .. });
    if backend.is_ok() || is_file {
        let (directory, copies) = look_up(&config, args.offline).await;
        add("directory", directory);
        for copy in copies {
            let name = format!("severa {}", copy.tenant);
            if is_before_the_first_start(&config) {
                add(&name, Ok("no copy yet: the service makes it".to_owned()));
                continue;
            }
            let text = format!("{}; {}", copy.counts(), copy.standing());
            add(&name, if copy.is_well() { Ok(text) } else { Err(text) });
        }
    }
    for socket in [Some(&config.milter), config.lmtp.as_ref()].into_iter().flatten() {
        add(socket.table, place(socket, args.offline));
    }
    if let Some(admin) = &config.admin.socket {
        add("admin", place(admin, args.offline));
    }
    add("files", rights::of_files(&config, path));
    add("queue", queue(&config, args.offline).await);
    let (limit, too_few) = descriptors::look(&config);
    if too_few.is_none() {
        add("open files", Ok(format!("{limit} are allowed to who runs this")));
    }
    if !args.offline {
        add("trace", traced(&config)); // not before a reload either: a broken trace stops nobody
        if let Some(line) = spool(&config).await {
            lines.push(line);
        }
        let mut add = |name: &str, outcome: Result<String, String>| lines.push(Line::said(name, outcome));
        add("queue disk", disk(&config)); // not before a reload: a full disk is no fault of the configuration
    }
    let doubtful = config.warnings.iter().map(|warning| Line {
        name: "configuration".to_owned(),
        ok: true,
        warning: true,
        detail: warning.clone(),
    });
    lines.splice(1..1, doubtful);
    // A warning: the service may have another limit.
    lines.extend(too_few.map(|detail| Line {
        name: "open files".to_owned(),
        ok: true,
        warning: true,
        detail: format!("{detail} (the service's own limit may be another one)"),
    }));
    match args.json {
        true => say_json(&lines)?,
        false => say(&lines.iter().map(Line::text).collect::<String>())?,
    }
    Ok(ExitCode::from(u8::from(lines.iter().any(|line| !line.ok))))
}

/// True if there is no copy of Severa, and a place for it.
fn is_before_the_first_start(config: &Config) -> bool {
    let DirectoryKind::Severa(copy) = &config.outside.directory else { return false };
    !copy.path.exists() && copy.path.parent().is_some_and(Path::is_dir)
}

/// Whether the directory answers, and how the copies are that it answers from, if it does.
async fn look_up(config: &Config, offline: bool) -> (Result<String, String>, Vec<CopyState>) {
    if offline && matches!(config.outside.directory, DirectoryKind::Http(_)) {
        return (Ok("the backend's look-ups (not asked)".to_owned()), Vec::new());
    }
    let directory = match config.outside.open_directory() {
        Ok(directory) => directory,
        Err(error) => return (Err(error.to_string()), Vec::new()),
    };
    let answer = tokio::time::timeout(PATIENCE, directory.tenant("activity-milter-check")).await;
    let answer = match answer {
        Err(_) => Err("no answer within 5 s".to_owned()),
        Ok(answer) => answer.map(|_| directory.source()).map_err(|error| error.to_string()),
    };
    (answer, if offline { Vec::new() } else { directory.copies() })
}

/// A socket that is there is the service's, or a stale one that it replaces; its directory must be there.
fn place(socket: &SocketSettings, offline: bool) -> Result<String, String> {
    rights::of_group(socket)?;
    match &socket.listen {
        Listen::Systemd => Ok("given by systemd".to_owned()),
        Listen::Inet(address) if offline => Ok(format!("inet:{address}")),
        Listen::Inet(address) => rights::of_port(socket.table, *address),
        Listen::Unix(path) => match socket.look() {
            Ok(true) => Ok(format!("unix:{}, there", path.display())),
            Ok(false) => {
                rights::to_write(path.parent().unwrap_or(path))?;
                Ok(format!("unix:{}, not there yet", path.display()))
            }
            Err(error) => Err(error.to_string()),
        },
    }
}

async fn queue(config: &Config, offline: bool) -> Result<String, String> {
    let path = &config.queue.path;
    let is_file = config.queue.server.is_none();
    queue::look(&config.queue).map_err(|error| error.to_string())?;
    if !is_file && offline {
        return Ok(format!("{} (not asked)", config.queue.place()));
    }
    if is_file && !path.exists() {
        return match config.delivery {
            Delivery::Direct => Ok("direct mode: none".to_owned()),
            Delivery::Queued => Ok(format!("{}, not there yet: the service makes it", path.display())),
        };
    }
    let settings = config.queue.clone();
    let open = tokio::task::spawn_blocking(move || queue::beside(&settings, Arc::new(SystemClock)));
    let queue = match open.await.map_err(|error| error.to_string())? {
        Ok(queue) => queue,
        Err(OpenError::Missing(_)) if !is_file => {
            return Ok(format!("{}, no queue there yet: the service makes it", config.queue.place()));
        }
        // A start takes its time: the sockets are there before the queue is.
        Err(soon @ (OpenError::Empty(_) | OpenError::BeingOpened(_))) => return Ok(soon.to_string()),
        Err(error) => return Err(error.to_string()),
    };
    queue.list(Filter { limit: Some(1), ..Filter::default() }).await.map_err(|error| error.to_string())?;
    let counts = queue.by_tenant().await.map_err(|error| error.to_string())?;
    let (waiting, held) = counts.iter().fold((0, 0), |(w, h), counts| (w + counts.waiting, h + counts.held));
    let safety = match queue.safety().await {
        None => String::new(),
        Some(safety) => format!("; {}", safety?),
    };
    Ok(format!("{}, {waiting} waiting, {held} held{safety}", config.queue.place()))
}

/// What waits on this machine for the queue's database; none: nothing ever does.
async fn spool(config: &Config) -> Option<Line> {
    let (settings, path) = (config.queue.local(), config.queue.path.display());
    config.queue.server.as_ref()?;
    if !config.queue.path.exists() {
        let soon = format!("{path}, not there yet: the service makes it");
        return config.queue.spool_on_outage.then(|| Line::said("spool", Ok(soon)));
    }
    let open = tokio::task::spawn_blocking(move || queue::beside(&settings, Arc::new(SystemClock)));
    let counts = match open.await {
        Ok(Ok(queue)) => queue.by_tenant().await.map_err(|error| error.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let counts = match counts {
        Ok(counts) => counts,
        Err(error) => return Some(Line::said("spool", Err(error))),
    };
    let count: u64 = counts.iter().map(|one| one.waiting + one.held).sum();
    let most = counts.iter().max_by_key(|one| one.waiting + one.held);
    let text = match most {
        Some(most) if count > 0 => format!(
            "{path}, {count} wait there for the database: the service gives them to it as it has room for them; most are of \
             tenant {} ({})",
            most.tenant,
            most.waiting + most.held
        ),
        _ => format!("{path}, nothing waits there for the database"),
    };
    Some(Line { warning: count > 0, ..Line::said("spool", Ok(text)) })
}

/// How far the trace reaches.
fn traced(config: &Config) -> Result<String, String> {
    let path = config.trace.path.display();
    if config.trace.keep.is_none() {
        let left = if config.trace.path.exists() {
            format!("; {path} of before is there: delete it")
        } else {
            String::new()
        };
        return Ok(format!("trace.keep is \"0\": nothing is traced{left}"));
    }
    match trace::look_at(&config.trace.path) {
        Ok(reach) => {
            let oldest = reach.oldest.map(|oldest| humantime::format_rfc3339_seconds(oldest).to_string());
            let lost = if reach.lost > 0 { format!(", {} records lost", reach.lost) } else { String::new() };
            Ok(format!(
                "{path}, {}{lost}",
                oldest.map_or("empty".to_owned(), |oldest| format!("since {oldest}"))
            ))
        }
        Err(SearchError::Missing(_)) => Ok(format!("{path}, not there yet: the service makes it")),
        Err(error) => Err(format!("{error}; mail goes on without it")),
    }
}

/// The reserve, on each file system that is there already.
fn disk(config: &Config) -> Result<String, String> {
    let settings = &config.queue;
    let mut lines = Vec::new();
    let file = settings.path.parent().filter(|_| settings.has_file());
    for (what, place) in [("queue.path", file), ("queue.spool", Some(settings.spool.as_path()))] {
        let Some(place) = place.and_then(|place| place.ancestors().find(|place| place.is_dir())) else {
            continue;
        };
        let free = queue::free_bytes(place).map_err(|error| format!("{}: {error}", place.display()))?;
        let (free, least) = (bytesize::ByteSize(free), bytesize::ByteSize(settings.min_free));
        if free < least {
            return Err(format!(
                "{}: {free} are free, and queue.min_free is {least}: mail is answered 452. Free some space, or lower queue.min_free",
                place.display()
            ));
        }
        lines.push(format!("{what}: {free} free"));
    }
    Ok(lines.join(", "))
}
