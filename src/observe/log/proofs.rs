//! What each event looks like: a line of the text, and byte for byte the same as `MESSAGE` of an entry in journald's own
//! protocol, with its fields beside it.

#![cfg(test)]
#![allow(clippy::unwrap_used)] // a panic is the answer of a test

use super::{Addresses, Form, Journal, Lines, Settings, Stream, Writer, shown};
use crate::mail::{Address, Automatic};
use crate::observe::{
    Promise,
    events::{self, Times, Which, Who},
    ids,
};
use crate::rules::{Discard, Reason, Reply, Texts};
use crate::trace::Report;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    os::unix::net::UnixDatagram,
    path::Path,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};
use tracing_subscriber::layer::SubscriberExt;

/// Far more than a loaded machine needs.
const LONG: Duration = Duration::from_secs(60);

/// The setting is the process's; these tests have it by turns.
static ADDRESSES: Mutex<()> = Mutex::new(());

#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Both forms of the log, and who reads them.
struct Both {
    journald: UnixDatagram,
    page: Page,
    text: Arc<Writer>,
    _guard: tracing::subscriber::DefaultGuard,
    _directory: tempfile::TempDir,
}

impl Both {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        journald.set_read_timeout(Some(LONG)).unwrap();
        let page = Page::default();
        let text = Arc::new(Writer::start(Stream::new(page.clone()), |_| ()));
        let journal = Arc::new(Writer::start(Journal::connect(&path).unwrap(), |_| ()));
        let lines = |form, writer: &Arc<Writer>| Lines { form, writer: Arc::clone(writer) };
        let both = tracing_subscriber::registry()
            .with(lines(Form::Text { colours: false }, &text))
            .with(lines(Form::Journal, &journal));
        let guard = tracing::subscriber::set_default(both);
        Self { journald, page, text, _guard: guard, _directory: directory }
    }

    /// The line of the text without its time, and the entry of the journal.
    fn read(&self) -> (String, BTreeMap<String, String>) {
        assert!(self.text.flush(LONG));
        let text = String::from_utf8(std::mem::take(&mut *self.page.0.lock().unwrap())).unwrap();
        let line = text.strip_suffix('\n').unwrap_or_else(|| panic!("no line: {text:?}"));
        assert!(!line.contains('\n'), "one line: {text:?}");
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.len() == "2026-11-29T23:19:48.123456Z".len() && time.ends_with('Z'), "{time}");
        let mut datagram = vec![0; 256 << 10];
        let length = self.journald.recv(&mut datagram).unwrap();
        (rest.to_owned(), fields(&datagram[..length]))
    }
}

/// Takes an entry apart, as journald does.
fn fields(mut entry: &[u8]) -> BTreeMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut fields = BTreeMap::new();
    while !entry.is_empty() {
        let end = entry.iter().position(|&b| b == b'\n').unwrap();
        let (name, rest) = (&entry[..end], &entry[end + 1..]);
        let (name, value, rest) = match name.iter().position(|&b| b == b'=') {
            Some(at) => (&name[..at], &name[at + 1..], rest),
            None => {
                let length = usize::try_from(u64::from_le_bytes(rest[..8].try_into().unwrap())).unwrap();
                assert_eq!(rest[8 + length], b'\n');
                (name, &rest[8..8 + length], &rest[8 + length + 1..])
            }
        };
        assert!(fields.insert(text(name), text(value)).is_none(), "{} twice", text(name));
        entry = rest;
    }
    fields
}

fn reply(reason: Reason) -> Reply {
    Texts::default().reply(reason, Some(&Address::parse("mycompany@severamail.test").unwrap()))
}

const WHO: Who<'_> = Who {
    queue_id: "4bXyZ12345z",
    tenant: Some("t-1"),
    sender: Some("anna@mycompany.test"),
    recipient: Some("mycompany@severamail.test"),
    client: Some("192.0.2.7"),
    transaction: None,
    door: None,
    message_id: None,
    key: None,
    recipients: &[],
    detail: None,
};

const WHICH: Which<'_> = Which { queue_id: "4bXyZ12345z", key: "b3:5d1f", tenant: "t-1" };

const MS: Duration = Duration::from_millis(7);

const TIMES: Times = Times { elapsed: MS, delay: MS };

/// An event, and what is said.
type Case = (&'static str, fn(), &'static str);

/// Each event, at least once.
const CASES: &[Case] = &[
    (
        "LISTENING",
        || events::listening("milter", &"unix:/run/m.sock"),
        " INFO listening door=milter listen=unix:/run/m.sock",
    ),
    ("STOPPING", || events::stopping(2), " INFO stopping in_flight=2"),
    ("STOPPED", || events::stopped(0), " INFO stopped cut_off=0"),
    ("RELOADED", || events::reloaded(Path::new("/etc/am.toml"), ""), " INFO configuration read again"),
    (
        "RELOADED",
        || events::reloaded(Path::new("/etc/am.toml"), "queue, admin"),
        " WARN configuration read again; some keys count only after a restart restart=\"queue, admin\"",
    ),
    (
        "RELOAD_REFUSED",
        || {
            events::reload_refused(
                Path::new("/etc/am.toml"),
                &"/etc/am.toml:2:1: unknown field `x`\nexpected `y`",
            )
        },
        "ERROR new configuration refused, the old one stays in use error=\"/etc/am.toml:2:1: unknown field `x`\\nexpected `y`\"",
    ),
    (
        "ADMIN_MISDIRECTED",
        || events::admin_misdirected("evil.example"),
        " WARN a request to the admin door names another host: see admin.hosts host=evil.example",
    ),
    (
        "QUEUE_CHANGED",
        || events::changed_on_page("dropped", "b3:12", "t-1", Some("4bXyZ12345z")),
        " INFO 4bXyZ12345z: queue changed by hand tenant=t-1 key=b3:12 what=dropped door=admin",
    ),
    (
        "DIRECTORY_READ",
        || events::directory_read(Path::new("/etc/d.toml"), 1, 2),
        " INFO directory read path=/etc/d.toml tenants=1 addresses=2",
    ),
    (
        "DIRECTORY_REFUSED",
        || events::directory_refused(Path::new("/etc/am.toml"), &"d.toml:1:1: no"),
        " WARN new directory file refused, the old one stays in use error=\"d.toml:1:1: no\"",
    ),
    (
        "DIRECTORY_UNAVAILABLE",
        || events::directory_unavailable("4bXyZ12345z", &"no answer"),
        " WARN 4bXyZ12345z: directory unavailable error=\"no answer\"",
    ),
    (
        "DIRECTORY_EXPIRED",
        || events::directory_expired(&["a".to_owned(), "b".to_owned()]),
        " INFO directory is asked anew tenants=\"a, b\"",
    ),
    (
        "DIRECTORY_EXPIRED",
        || events::directory_expired(&["a".to_owned(), String::new()]),
        " INFO directory is asked anew tenants=all",
    ),
    (
        "DIRECTORY_STALE",
        || events::directory_stale(&"no answer"),
        " WARN directory unavailable, stale answers are used error=\"no answer\"",
    ),
    (
        "ACCEPT_FAILED",
        || events::accept_failed(&"Too many open files (os error 24)", MS),
        " WARN accept failed pause_ms=7 error=\"Too many open files\"",
    ),
    (
        "DOOR_FULL",
        || events::door_full("milter", 1100),
        " WARN no room for more connections door=milter most=1100",
    ),
    (
        "HUNG_UP",
        || events::hung_up("lmtp", "idle", std::time::Duration::from_secs(31)),
        " WARN hung up door=lmtp why=idle idle_s=31",
    ),
    (
        "REFUSED",
        || events::refused(&WHO, "end-of-header", &reply(Reason::NoUser)),
        " INFO 4bXyZ12345z: refused 550 5.7.1 [no-user] from=<anna@mycompany.test> to=<mycompany@severamail.test> \
         client=192.0.2.7 tenant=t-1 stage=end-of-header verdict=reject",
    ),
    (
        "REFUSED",
        || {
            let who = Who { sender: Some(""), queue_id: "", tenant: None, ..WHO };
            events::refused(&who, "rcpt", &reply(Reason::DirectoryUnavailable));
        },
        " INFO refused 451 4.4.3 [directory-unavailable] from=<> to=<mycompany@severamail.test> client=192.0.2.7 \
         stage=rcpt verdict=defer",
    ),
    (
        "REFUSED",
        || {
            let (queue_id, sender) = ("A\n4bZZ: delivered", "a\n4bZZ: held key=b3:0\u{1b}[2J> to=<x@y.test");
            events::refused(
                &Who { queue_id, sender: Some(sender), client: Some("1\n2"), ..Who::default() },
                "body",
                &reply(Reason::NoSubject),
            );
        },
        " INFO refused queue_id=\"A\\n4bZZ: delivered\" 550 5.6.0 [no-subject] \
         from=<a\\n4bZZ: held key=b3:0\\u{1b}[2J\\> to=\\<x@y.test> client=\"1\\n2\" stage=body verdict=reject",
    ),
    (
        "PEOPLE_LEFT_OUT",
        || events::people_left_out("4bXyZ12345z", 1, 2, 3),
        " INFO 4bXyZ12345z: not everybody is listed omitted=1 skipped=2 cut_fields=3",
    ),
    (
        "STRIPPED",
        || events::stripped(&Who { recipient: None, ..WHO }, &reply(Reason::NoUser)),
        " WARN 4bXyZ12345z: stripped 550 5.7.1 [no-user] from=<anna@mycompany.test> client=192.0.2.7 tenant=t-1 \
         verdict=strip",
    ),
    (
        "DISCARDED",
        || events::discarded(&WHO, Discard::Automatic(Automatic::List)),
        " INFO 4bXyZ12345z: discarded reason=automatic from=<anna@mycompany.test> to=<mycompany@severamail.test> \
         client=192.0.2.7 tenant=t-1 automatic=list verdict=discard",
    ),
    (
        "RECORDED",
        || events::recorded(&WHO, Some("1001"), "b3:5d1f", false),
        " INFO 4bXyZ12345z: recorded from=<anna@mycompany.test> to=<mycompany@severamail.test> client=192.0.2.7 \
         tenant=t-1 project=1001 key=b3:5d1f known=false verdict=record",
    ),
    (
        "WOULD_REFUSE",
        || events::would_refuse(&WHO, "rcpt", &reply(Reason::NoSuchTenant)),
        " INFO 4bXyZ12345z: would be refused 550 5.1.1 [no-such-tenant] from=<anna@mycompany.test> \
         to=<mycompany@severamail.test> client=192.0.2.7 tenant=t-1 stage=rcpt verdict=would_reject",
    ),
    (
        "WOULD_DISCARD",
        || events::would_discard(&WHO, Discard::OwnNotice),
        " INFO 4bXyZ12345z: would be discarded reason=own-notice from=<anna@mycompany.test> \
         to=<mycompany@severamail.test> client=192.0.2.7 tenant=t-1 verdict=would_discard",
    ),
    (
        "WOULD_RECORD",
        || events::would_record(&WHO, None),
        " INFO 4bXyZ12345z: would be recorded from=<anna@mycompany.test> to=<mycompany@severamail.test> \
         client=192.0.2.7 tenant=t-1 verdict=would_record",
    ),
    ("PASSED", || events::passed("4bXyZ12345z"), "DEBUG 4bXyZ12345z: passed verdict=pass"),
    (
        "FAULT",
        || events::fault("4bXyZ12345z", "body", &"disk \"full\""),
        "ERROR 4bXyZ12345z: fault stage=body error=\"disk \\\"full\\\"\"",
    ),
    (
        "DELIVERED",
        || events::delivered(&WHICH, 1, MS),
        " INFO 4bXyZ12345z: delivered tenant=t-1 key=b3:5d1f attempt=1 elapsed_ms=7",
    ),
    (
        "DEFERRED",
        || events::deferred(&WHICH, 2, TIMES, false, "backend answered 503"),
        " INFO 4bXyZ12345z: delivery deferred tenant=t-1 key=b3:5d1f attempt=2 elapsed_ms=7 next_in_ms=7 \
         reason=\"backend answered 503\"",
    ),
    (
        "DEFERRED",
        || events::misconfigured(&Which { queue_id: "", ..WHICH }, 1, "backend answered 401"),
        " INFO delivery deferred until our settings are right tenant=t-1 key=b3:5d1f attempt=1 \
         reason=\"backend answered 401\"",
    ),
    (
        "NOT_DELIVERED",
        || events::not_delivered(&WHICH, MS, "no answer"),
        " INFO 4bXyZ12345z: not delivered tenant=t-1 key=b3:5d1f elapsed_ms=7 reason=\"no answer\"",
    ),
    (
        "BACKEND_REFUSES_US",
        || events::backend_refuses_us("4bXyZ12345z", "backend answered 401"),
        "ERROR 4bXyZ12345z: backend refuses our settings. Check backend.url and the credentials in [backend] \
         reason=\"backend answered 401\"",
    ),
    (
        "HELD",
        || events::held(&WHICH, 1, "backend answered 422: too old"),
        " WARN 4bXyZ12345z: held tenant=t-1 key=b3:5d1f attempt=1 reason=\"backend answered 422: too old\"",
    ),
    (
        "COURIER_PAUSED",
        || events::courier_paused(None, "backend answered 401", MS),
        "ERROR backend refuses our settings: deliveries are paused. Check backend.url and the credentials in [backend] \
         next_probe_ms=7 reason=\"backend answered 401\"",
    ),
    (
        "COURIER_PAUSED",
        || events::courier_paused(Some("t-1"), "invalid_client", MS),
        "ERROR backend refuses this tenant's settings: its deliveries are paused. Check the tenant's credentials \
         tenant=t-1 next_probe_ms=7 reason=invalid_client",
    ),
    (
        "BACKEND_DOWN",
        || events::backend_down("no answer", MS),
        " WARN backend does not answer: deliveries are paused next_probe_ms=7 reason=\"no answer\"",
    ),
    (
        "BACKEND_DENIES",
        || events::backend_denies("backend answered 404"),
        " WARN backend denies an activity. If it denies all: check backend.url and the credentials in [backend] \
         reason=\"backend answered 404\"",
    ),
    (
        "COURIER_RESUMED",
        || events::courier_resumed(Some("t-1"), "backend answers again: deliveries resumed"),
        " INFO backend answers again: deliveries resumed tenant=t-1",
    ),
    (
        "SEVERA_FOUND",
        || events::severa_found(&WHICH, "activity"),
        " INFO 4bXyZ12345z: found what a lost answer had made tenant=t-1 key=b3:5d1f what=activity",
    ),
    (
        "SEVERA_ACTIVITY_GONE",
        || events::severa_activity_gone(&WHICH),
        " WARN 4bXyZ12345z: somebody deleted the activity in Severa before all of it was there: it is left so tenant=t-1 key=b3:5d1f",
    ),
    (
        "SEVERA_MARKER_LOST",
        || events::severa_marker_lost("t-1", 100),
        " WARN Severa gives the notes back without the marker in their last line: make notes_limit smaller tenant=t-1 \
         notes_limit=100",
    ),
    (
        "SEVERA_PARTICIPANT_SKIPPED",
        || events::severa_participant_skipped(&WHICH, "guid", &"gone"),
        " WARN 4bXyZ12345z: Severa does not take this participant: left out tenant=t-1 key=b3:5d1f guid=guid reason=gone",
    ),
    (
        "SECRET_READ",
        || events::secret_read(Path::new("/etc/a b")),
        " INFO secret read again path=\"/etc/a b\"",
    ),
    (
        "SECRET_REFUSED",
        || events::secret_refused(Path::new("/etc/am.toml"), &"empty"),
        " WARN new secret refused, the old one stays in use error=empty",
    ),
    ("NOTICE_SENT", || events::notice_sent(2), " INFO notice of held activities sent activities=2"),
    (
        "NOTICE_NOT_SENT",
        || events::notice_not_sent(&"no route"),
        " WARN notice of held activities not sent error=\"no route\"",
    ),
    (
        "QUEUE_TROUBLE",
        || events::queue_trouble(&"disk I/O error"),
        "ERROR queue trouble error=\"disk I/O error\"",
    ),
    (
        "ENDS_OWED",
        || events::ends_owed(6),
        "ERROR stopped before the queue took all that was delivered activities=6",
    ),
    (
        "INVARIANT_VIOLATED",
        || events::broken(Promise::Answers, "", &"1 answer"),
        "ERROR a promise is broken: please report it promise=D2 seen=\"1 answer\"",
    ),
    (
        "QUEUE_PLAIN",
        || events::queue_plain(&"permission denied for language plpgsql"),
        " WARN queue without functions: each statement is planned anew error=\"permission denied for language plpgsql\"",
    ),
    (
        "QUEUE_AWAY",
        || events::queue_away("postgres://db/mail", &"queue is busy: no route", false),
        "ERROR queue away: mail is deferred database=postgres://db/mail error=\"queue is busy: no route\"",
    ),
    (
        "QUEUE_BACK",
        || events::queue_back("postgres://db/mail"),
        " WARN queue back database=postgres://db/mail",
    ),
    (
        "QUEUE_UNSAFE",
        || events::queue_unsafe("postgres://db/mail", "no standby", false),
        "ERROR queue unsafe: mail is deferred database=postgres://db/mail why=\"no standby\"",
    ),
    (
        "QUEUE_SAFE",
        || events::queue_safe("postgres://db/mail"),
        " WARN queue safe database=postgres://db/mail",
    ),
    (
        "SPOOLING",
        || events::spooling(Path::new("/q/queue.db"), &"no route"),
        "ERROR mail is kept on this machine until the database takes it path=/q/queue.db error=\"no route\"",
    ),
    (
        "SPOOL_DRAINED",
        || events::spool_drained(3, "postgres://db/mail"),
        " WARN what was kept on this machine is in the database activities=3 database=postgres://db/mail",
    ),
    (
        "CLOCK_LEAPT",
        || events::upkeep(Some(Duration::from_secs(7200)), 0, 0, None),
        " WARN the clock is this much ahead of what was seen last: for a day nothing is held as too old and no key \
         forgotten. Set it right if it is wrong by_s=7200",
    ),
    (
        "TIMES_MENDED",
        || events::upkeep(None, 2, 0, None),
        " WARN the clock was ahead: times in the queue are mended activities=2",
    ),
    (
        "FILES_ASIDE",
        || events::upkeep(None, 0, 3, None),
        " WARN files in the spool that no activity needs are moved aside for a week files=3",
    ),
    (
        "LOG_LONG",
        || events::upkeep(None, 0, 0, Some(9)),
        " WARN the queue's log is long: another program reads the database and does not end (a backup, sqlite3) bytes=9",
    ),
    (
        "FILES_OF_OTHERS",
        || events::files_of_others(4, Path::new("/spool/x")),
        " WARN the spool has messages of another queue: if its database was moved away, restore it, or export them by \
         hand files=4 folder=/spool/x",
    ),
    (
        "SEVERA_FIRST_PASS",
        || events::severa_first_pass("t-1"),
        " INFO the first copy of Severa is begun tenant=t-1",
    ),
    (
        "SEVERA_FIRST_PASS_GOES_ON",
        || events::severa_first_pass_goes_on("t-1", [1, 2, 3], 4),
        " INFO the first copy of Severa is being made tenant=t-1 users=1 contacts=2 projects=3 calls=4",
    ),
    (
        "SEVERA_PASSED",
        || events::severa_passed("t-1", true, [1, 2, 3], 4, MS, 5, 6),
        " INFO full pass over Severa completed tenant=t-1 first=true users=1 contacts=2 projects=3 calls=4 elapsed_ms=7 \
         skipped=5 gone=6",
    ),
    (
        "SEVERA_FAILS",
        || events::severa_fails("t-1", true, "poll", &"401"),
        "ERROR Severa refuses this tenant's settings: its copy grows old tenant=t-1 doing=poll error=401",
    ),
    (
        "SEVERA_FAILS",
        || events::severa_fails("t-1", false, "full pass", &"no answer"),
        " WARN Severa cannot be asked: this tenant's copy grows old tenant=t-1 doing=\"full pass\" error=\"no answer\"",
    ),
    (
        "SEVERA_GOES_ON",
        || events::severa_goes_on("t-1", "poll"),
        " INFO Severa can be asked again tenant=t-1 doing=poll",
    ),
    (
        "SEVERA_COPY_ASIDE",
        || events::severa_copy_aside(Path::new("/a"), Path::new("/b"), "damaged"),
        " WARN the copy of Severa is put aside and made anew path=/a aside=/b why=damaged",
    ),
    (
        "SEVERA_UNKEPT",
        || events::severa_unkept(Path::new("/a"), &"disk full"),
        " WARN the copy of Severa cannot be written: it is kept in memory and written later path=/a error=\"disk full\"",
    ),
    (
        "SEVERA_SHARED_ADDRESS",
        || events::severa_shared_address("t-1", "a@b.test", "u-1"),
        " WARN an address belongs to several users tenant=t-1 address=a@b.test user=u-1",
    ),
    (
        "COMMAND_FAILED",
        || events::command_failed(78, "am.toml:2:1: unknown field `x`"),
        "ERROR failed exit_code=78 error=\"am.toml:2:1: unknown field `x`\"",
    ),
    (
        "PANICKED",
        || events::panicked("tokio-rt-worker", "src/a.rs:1:2", "index out of bounds"),
        "ERROR panicked thread=tokio-rt-worker place=src/a.rs:1:2 error=\"index out of bounds\"",
    ),
    (
        "QUEUE_CHANGED",
        || events::activity_changed("dropped", 1000, "b3:12", "t-1", "4bXyZ12345z"),
        " INFO 4bXyZ12345z: queue changed by hand tenant=t-1 key=b3:12 what=dropped uid=1000",
    ),
    (
        "QUEUE_CHANGED",
        || events::queue_moved(1000, 3, "/q/queue.db", "postgres://db/mail"),
        " INFO queue changed by hand what=moved uid=1000 activities=3 from=/q/queue.db to=postgres://db/mail",
    ),
    (
        "QUEUE_CHANGED",
        || events::redelivered(1000, 3, "2026-11-29T18:00:00Z".to_owned(), ""),
        " INFO queue changed by hand what=redelivered uid=1000 activities=3 since=2026-11-29T18:00:00Z",
    ),
    (
        "WORKS_AS_ROOT",
        || events::works_as_root(Path::new("/var/lib/x")),
        " WARN the service works as root, because the queue's directory is root's: give it to a user of its own \
         directory=/var/lib/x",
    ),
    (
        "SETTING_DOUBTFUL",
        || events::setting_doubtful("am.toml:2:1: url: /v1"),
        " WARN a setting is doubtful warning=\"am.toml:2:1: url: /v1\"",
    ),
    (
        "KEPT_GONE",
        || events::kept_gone(4),
        " WARN delivered activities are kept no longer: their room is wanted activities=4",
    ),
    (
        "KEPT_OFF",
        || events::kept_off(5),
        " WARN queue.keep_delivered is off: delivered activities that were kept are dropped activities=5",
    ),
    (
        "TRACE_ASIDE",
        || {
            let [path, aside] = ["/t.db", "/t.db.aside"].map(Into::into);
            events::trace(&Report::Aside { path, aside, why: "torn".to_owned() });
        },
        " WARN the trace is damaged: moved aside, and begun anew path=/t.db aside=/t.db.aside why=torn",
    ),
    (
        "TRACE_UNKEPT",
        || events::trace(&Report::Trouble { path: "/t.db".into(), message: "full".to_owned() }),
        " WARN the trace cannot be written: mail goes on, and what happens to it is not kept path=/t.db error=full",
    ),
    (
        "TRACE_REPLACED",
        || events::trace(&Report::Replaced("/t.db".into())),
        " WARN the trace was moved away or replaced: what is there now is written path=/t.db",
    ),
    ("TRACE_GOES_ON", || events::trace(&Report::GoesOn), " INFO the trace is written again"),
    (
        "TRACE_LOST",
        || events::trace(&Report::Lost(7)),
        " WARN the trace has gaps: records were not kept records=7",
    ),
    (
        "LINES_SUPPRESSED",
        || events::lines_suppressed("fault", 490),
        " WARN lines like others were left out of the log event=fault suppressed=490",
    ),
    (
        "LOG_LINES_LOST",
        || events::log_lines_lost(8),
        " WARN lines of the log are lost: whoever reads it is too slow, or its disk is full. Mail goes on lines=8",
    ),
];

#[test]
fn the_journals_message_is_the_line_of_the_text() {
    let _addresses = ADDRESSES.lock().unwrap_or_else(PoisonError::into_inner);
    let both = Both::start();
    let started = format!(" INFO started version={}", env!("CARGO_PKG_VERSION"));
    let mut seen = BTreeSet::new();
    let mut look = |name: &'static str, say: &dyn Fn(), expected: &str| {
        say();
        let (line, entry) = both.read();
        assert_eq!(line, expected, "{name}");
        let (level, message) = line.split_at("ERROR ".len());
        assert_eq!(entry["MESSAGE"], message, "{name}");
        let (_, id) = ids::ALL.iter().find(|(known, _)| *known == name).unwrap();
        assert_eq!(entry["MESSAGE_ID"], *id, "{name}");
        let priority = match level.trim() {
            "ERROR" => "3",
            "WARN" => "4",
            "INFO" => "6",
            _ => "7",
        };
        let fixed = (&*entry["PRIORITY"], &*entry["SYSLOG_IDENTIFIER"], &*entry["SYSLOG_FACILITY"]);
        assert_eq!(fixed, (priority, "activity-milter", "2"), "{name}");
        seen.insert(name);
    };
    look("STARTED", &events::started, &started);
    CASES.iter().for_each(|(name, say, expected)| look(name, say, expected));
    let all: BTreeSet<_> = ids::ALL.iter().map(|(name, _)| *name).collect();
    assert_eq!(seen, all, "each event has a case");
}

#[test]
fn the_fields_stay_fields_and_are_what_they_were() {
    let _addresses = ADDRESSES.lock().unwrap_or_else(PoisonError::into_inner);
    let both = Both::start();
    let sender = "a\nPRIORITY=0\n\"b\"@mycompany.test";
    events::refused(&Who { sender: Some(sender), ..WHO }, "end-of-header", &reply(Reason::NoUser));
    let mut entry = both.read().1;
    for name in ["CODE_FILE", "CODE_LINE", "TARGET", "MESSAGE"] {
        assert!(entry.remove(name).is_some(), "{name}");
    }
    let expected = [
        ("PRIORITY", "6"),
        ("SYSLOG_FACILITY", "2"),
        ("SYSLOG_IDENTIFIER", "activity-milter"),
        ("MESSAGE_ID", ids::REFUSED),
        ("QUEUE_ID", "4bXyZ12345z"),
        ("REPLY", "550"),
        ("STATUS", "5.7.1"),
        ("REASON", "no-user"),
        ("SENDER", sender),
        ("RECIPIENT", "mycompany@severamail.test"),
        ("CLIENT", "192.0.2.7"),
        ("TENANT", "t-1"),
        ("STAGE", "end-of-header"),
        ("VERDICT", "reject"),
    ];
    assert_eq!(entry, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
}

#[test]
fn a_long_value_is_cut_and_fits_into_a_datagram() {
    let both = Both::start();
    let long = "x".repeat(10 << 20);
    tracing::error!(a = long, b = long, c = long, d = long, e = %long, f = ?long, "long");
    let (line, entry) = both.read();
    assert!(line.len() < 20 << 10 && line.ends_with('…'), "{}", line.len());
    assert_eq!(line.split_once("ERROR ").unwrap().1, entry["MESSAGE"]);
    assert!(entry["A"].len() < 5 << 10 && entry["A"].ends_with('…'));
}

/// In a process of its own, which ends with it.
#[test]
fn panics() {
    if std::env::var_os("LOG_PANICS").is_none() {
        return;
    }
    super::start(&Settings::default());
    events::stopping(1);
    let thread = std::thread::Builder::new().name("worker".to_owned());
    let thread = thread.spawn(|| panic!("byte index 1\nis not of `the subject of a message`"));
    assert!(thread.unwrap().join().is_err());
    std::process::abort(); // without another word
}

#[test]
fn a_panic_is_one_line_and_what_was_said_before_is_written() {
    let program = std::env::current_exe().unwrap();
    let mut command = std::process::Command::new(program);
    command.args(["--exact", "observe::log::proofs::panics", "--nocapture"]);
    command.env("LOG_PANICS", "1").env_remove("RUST_BACKTRACE").env_remove("JOURNAL_STREAM");
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<_> = said.lines().filter_map(|line| line.split_once("Z ")).map(|(_, line)| line).collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert_eq!(lines[0], " INFO stopping in_flight=1");
    let panicked = lines[1];
    assert!(panicked.starts_with("ERROR panicked thread=worker place=src/observe/log/proofs.rs:"), "{said}");
    assert!(panicked.ends_with(r#" error="byte index 1\nis not""#), "{said}");
    assert!(!said.contains("subject"), "{said}");
}

#[test]
fn addresses_are_shown_as_the_setting_says() {
    let _addresses = ADDRESSES.lock().unwrap_or_else(PoisonError::into_inner);
    for (setting, address, null) in [
        (Addresses::Domain, Some("...@x.test"), Some("")),
        (Addresses::None, None, None),
        (Addresses::Full, Some("a@x.test"), Some("")),
    ] {
        super::ADDRESSES.store(setting as u8, Ordering::Relaxed);
        assert_eq!(shown("a@x.test").as_deref(), address);
        assert_eq!(shown("").as_deref(), null);
    }
}

/// Where there is no journal, a command tells syslog: one datagram a line.
#[test]
fn a_line_of_a_command_is_a_datagram_of_syslog() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    assert!(Journal::connect(&path).is_err());
    let socket = UnixDatagram::bind(&path).unwrap();
    let writer = Arc::new(Writer::start(Journal::connect(&path).unwrap(), |_| ()));
    let lines = Lines { form: Form::Syslog, writer: Arc::clone(&writer) };
    tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
        events::activity_changed("dropped", 1000, "b3:12", "t-1", "4bXy1zT3sKwz9q");
    });
    assert!(writer.flush(Duration::from_secs(10)));
    let mut line = [0; 500];
    let length = socket.recv(&mut line).unwrap();
    let line = std::str::from_utf8(&line[..length]).unwrap();
    let expected = "4bXy1zT3sKwz9q: queue changed by hand tenant=t-1 key=b3:12 what=dropped uid=1000";
    assert_eq!(line, format!("<22>activity-milter[{}]: {expected}", std::process::id()));
}
