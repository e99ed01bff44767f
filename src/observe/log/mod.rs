//! The log: one line for each event, to journald, as text or as JSON.
//!
//! In: what [`super::events`] says. Out: the line of [`line`], the same for people in the text and in the journal's
//! `MESSAGE`; JSON is for programs.
//! Promise: who logs formats a line and goes on; writing is another thread's ([`writer`]), and what is lost is said.
//! After [`flush`] all is written.

mod journal;
mod line;
mod proofs;
mod stream;
mod writer;

use super::events;
use journal::Journal;
use line::Line;
use std::{
    cell::RefCell,
    io::{self, IsTerminal, Write},
    os::unix::fs::MetadataExt,
    panic::{self, PanicHookInfo},
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::Duration,
};
use stream::Stream;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::{
        MakeWriter,
        format::Writer as Text,
        time::{FormatTime, SystemTime},
    },
    layer::{Context, SubscriberExt},
    reload,
    util::SubscriberInitExt,
};
use writer::Writer;

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// journald's protocol under systemd, else text.
    #[default]
    Auto,
    /// For people.
    Text,
    /// For collectors.
    Json,
}

/// How much of an address is logged, and shown on the status page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Addresses {
    /// All of it.
    #[default]
    Full,
    /// Only what stands behind the `@`.
    Domain,
    /// Nothing.
    None,
}

/// Settings of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Journald, text or JSON.
    pub format: Format,
    /// Least level shown.
    pub level: tracing::Level,
    /// How much of an address.
    pub addresses: Addresses,
}

impl Default for Settings {
    fn default() -> Self {
        Self { format: Format::Auto, level: Level::INFO, addresses: Addresses::Full }
    }
}

static ADDRESSES: AtomicU8 = AtomicU8::new(0);

static RUNNING: OnceLock<Running> = OnceLock::new();

/// The log, once it is started.
struct Running {
    filter: reload::Handle<EnvFilter, Registry>,
    writer: Arc<Writer>,
    is_json: bool,
}

/// Where the local syslog listens.
const SYSLOG: &str = "/dev/log";

/// Facility mail, severity informational.
const MAIL_INFO: u8 = 2 * 8 + 6;

/// How long the end waits for who reads the log: a pipe may be full for ever.
const LAST_TIME: Duration = Duration::from_secs(5);

/// How long a thread that panics waits, for it may be the process's end.
const PANIC_TIME: Duration = Duration::from_millis(200);

fn filter(level: Level) -> EnvFilter {
    // indymilter warns of every body chunk that is answered `Continue` although no answer is sent; see
    // `intake::milter` for why that is right.
    EnvFilter::new(format!("{level},indymilter=error"))
}

/// Starts logging for the whole process. A second call only applies the settings.
pub fn start(settings: &Settings) {
    if RUNNING.get().is_none() {
        begin(settings);
    }
    apply(settings);
}

/// Starts logging for a command that changes something: what a person does is to be found where the service logs. So it
/// goes to the journal, if there is one, else to syslog, else to standard error; and it is said at level info at least.
pub fn start_for_command(settings: &Settings) {
    let settings =
        Settings { level: settings.level.max(Level::INFO), format: Format::Auto, ..settings.clone() };
    if RUNNING.get().is_none() {
        let to = |form, path| Some((form, Writer::start(connect(path)?, events::log_lines_lost)));
        let way = to(Form::Journal, journal::SOCKET).or_else(|| to(Form::Syslog, SYSLOG)).or_else(to_stderr);
        begin_with(&settings, way);
    }
    apply(&settings);
}

fn begin(settings: &Settings) {
    let is_journal = settings.format == Format::Auto && is_journal();
    let journal = is_journal.then(|| connect(journal::SOCKET)).flatten();
    let journal = journal.map(|journal| (Form::Journal, Writer::start(journal, events::log_lines_lost)));
    begin_with(settings, journal.or_else(to_stderr));
}

fn connect(path: &str) -> Option<Journal> {
    Journal::connect(Path::new(path)).ok()
}

fn to_stderr() -> Option<(Form, Writer)> {
    let form = Form::Text { colours: io::stderr().is_terminal() };
    Some((form, Writer::start(Stream::stderr().ok()?, events::log_lines_lost)))
}

/// None: there is nowhere to write to.
fn begin_with(settings: &Settings, way: Option<(Form, Writer)>) {
    let Some((form, writer)) = way else { return };
    let (filter, handle) = reload::Layer::new(filter(settings.level));
    let registry = tracing_subscriber::registry().with(filter);
    let is_json = settings.format == Format::Json;
    let writer = Arc::new(writer);
    let started = if is_json {
        let json = tracing_subscriber::fmt::layer().json().flatten_event(true).with_target(false);
        registry.with(json.with_writer(Entries(Arc::clone(&writer)))).try_init()
    } else {
        registry.with(Lines { form, writer: Arc::clone(&writer) }).try_init()
    };
    if started.is_ok() && RUNNING.set(Running { filter: handle, writer, is_json }).is_ok() {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| tell_of_panic(panic, &before)));
    }
}

/// Waits until all that was said is written, but not for ever.
pub fn flush() {
    flush_within(LAST_TIME);
}

fn flush_within(time: Duration) {
    if let Some(running) = RUNNING.get() {
        running.writer.flush(time);
    }
}

/// True where what is said must be one line of the log: the journal makes an entry of each line, and JSON is for programs.
pub fn takes_lines_only() -> bool {
    is_journal() || RUNNING.get().is_some_and(|running| running.is_json)
}

/// One line for a panic, written before the thread, or the process, is gone.
fn tell_of_panic(panic: &PanicHookInfo<'_>, before: &dyn Fn(&PanicHookInfo<'_>)) {
    if io::stderr().is_terminal() || std::env::var_os("RUST_BACKTRACE").is_some() {
        before(panic);
    }
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    // A slice's panic shows the text it is about, which may be the message's.
    let words = panic.payload_as_str().unwrap_or_default();
    let words = words.split_once(" of `").map_or(words, |(words, _)| words);
    events::panicked(thread::current().name().unwrap_or_default(), &place, words);
    flush_within(PANIC_TIME);
}

/// Takes over what can change while we run: the level and the addresses.
pub fn apply(settings: &Settings) {
    ADDRESSES.store(settings.addresses as u8, Ordering::Relaxed);
    if let Some(running) = RUNNING.get() {
        let _ = running.filter.reload(filter(settings.level));
    }
}

/// True if our standard error is journald's (systemd.exec(5), `$JOURNAL_STREAM`).
fn is_journal() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else { return false };
    let Some((device, inode)) = stream.split_once(':') else { return false };
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else { return false };
    device.parse() == Ok(stderr.dev()) && inode.parse() == Ok(stderr.ino())
}

/// The form of what is written.
#[derive(Clone, Copy)]
enum Form {
    /// Time, level and line.
    Text { colours: bool },
    /// Fields; the line is one of them.
    Journal,
    /// The line alone, as the C library hands it to syslog (RFC 3164, section 4.1).
    Syslog,
}

/// Makes a line of each event.
struct Lines {
    form: Form,
    writer: Arc<Writer>,
}

/// What a thread puts lines together in.
#[derive(Default)]
struct Scratch {
    line: Line,
    time: String,
    out: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let said = SCRATCH.try_with(|scratch| {
            scratch.try_borrow_mut().is_ok_and(|mut scratch| {
                self.say(event, &mut scratch);
                true
            })
        });
        if said != Ok(true) {
            // A value that logs while it is written, or a thread that ends.
            self.say(event, &mut Scratch::default());
        }
    }
}

impl Lines {
    fn say(&self, event: &Event<'_>, Scratch { line, time, out }: &mut Scratch) {
        out.clear();
        match self.form {
            Form::Journal => {
                journal::begin(out, event.metadata());
                line.read(event, &mut |name, value| journal::field(out, name, value));
                journal::message(out, |out| line.append_to(out));
            }
            Form::Syslog => {
                line.read(event, &mut |_, _| {});
                // A vector takes everything.
                let _ = write!(out, "<{MAIL_INFO}>activity-milter[{}]: ", std::process::id());
                line.append_to(out);
            }
            Form::Text { colours } => {
                line.read(event, &mut |_, _| {});
                time.clear();
                let _ = SystemTime.format_time(&mut Text::new(time)); // a string takes everything
                before_text(out, time, *event.metadata().level(), colours);
                line.append_to(out);
                out.push(b'\n');
            }
        }
        self.writer.push(*event.metadata().level(), out);
    }
}

/// What stands before a line in the text: when, and how bad.
fn before_text(out: &mut Vec<u8>, time: &str, level: Level, colours: bool) {
    let colour = match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG => 34,
        Level::TRACE => 35,
    };
    // A vector takes everything.
    let _ = match colours {
        true => write!(out, "\x1b[2m{time}\x1b[0m \x1b[{colour}m{level:>5}\x1b[0m "),
        false => write!(out, "{time} {level:>5} "),
    };
}

/// Takes the lines that somebody else has made.
struct Entries(Arc<Writer>);

/// Takes one of them, whole.
struct Entry<'a>(&'a Writer, Level);

impl<'a> MakeWriter<'a> for Entries {
    type Writer = Entry<'a>;

    fn make_writer(&'a self) -> Entry<'a> {
        Entry(&self.0, Level::INFO)
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Entry<'a> {
        Entry(&self.0, *metadata.level())
    }
}

impl Write for Entry<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(self.1, line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How much of an address is shown.
pub fn addresses() -> Addresses {
    match ADDRESSES.load(Ordering::Relaxed) {
        0 => Addresses::Full,
        1 => Addresses::Domain,
        _ => Addresses::None,
    }
}

/// An address as it may be shown.
pub fn shown(address: &str) -> Option<String> {
    match ADDRESSES.load(Ordering::Relaxed) {
        0 => Some(address.to_owned()),
        1 if address.is_empty() => Some(String::new()), // the null sender
        1 => Some(format!("...@{}", address.rsplit('@').next().unwrap_or_default())),
        _ => None,
    }
}
