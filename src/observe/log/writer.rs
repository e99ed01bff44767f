//! Writes the log on a thread of its own, so that who logs never waits for a disk, a pipe or journald.
//!
//! In: lines, from any thread. Out: many of them at once, in their order, a few milliseconds later.
//! Promise: bounded memory: what comes while [`ROOM`] is full is lost, warnings and errors only when [`RESERVE`] is full
//! too; what is lost is counted, and said as soon as something can be said. After [`Writer::flush`] all is written.
//! Why no channel: lines are copied into one buffer that is written as it is, and nobody is woken while the writer works.

use crate::observe::metrics;
use std::{
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
    time::Duration,
};
use tracing::Level;

/// Bytes that may wait: some seconds of a busy server's lines.
const ROOM: usize = 4 << 20;

/// Bytes more for warnings and errors.
const RESERVE: usize = 1 << 20;

/// Room that is kept between two writes.
const KEPT: usize = 256 << 10;

/// How long the first line waits for company: waking a thread for each costs more than the line.
const GATHER: Duration = Duration::from_millis(5);

/// How often it is tried to say what was lost, when nothing else is to be said.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// Where lines go.
pub(super) trait Output: Send {
    /// Writes lines; how many of them are lost.
    fn write(&mut self, lines: &Batch) -> u64;
}

/// Lines in a row.
#[derive(Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Batch {
    pub(super) fn push(&mut self, line: &[u8]) {
        self.bytes.extend_from_slice(line);
        self.ends.push(self.bytes.len());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// All of them.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// One after the other.
    pub(super) fn lines(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[*start..*end])
    }

    /// How many lines so many bytes are, and whether these end with a line.
    pub(super) fn whole(&self, bytes: usize) -> (usize, bool) {
        let whole = self.ends.partition_point(|end| *end <= bytes);
        (whole, bytes == whole.checked_sub(1).map_or(0, |last| self.ends[last]))
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT);
        self.ends.clear();
        self.ends.shrink_to(KEPT / 64);
    }
}

/// The thread's other end.
pub(super) struct Writer(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Wakes the thread.
    wake: Condvar,
    /// Wakes who waits for a flush.
    flushed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Batch,
    /// Lines for which there was no room since the last were taken.
    lost: u64,
    /// The thread, and what it says itself: written at once.
    thread: Option<ThreadId>,
    own: Batch,
    asleep: bool,
    /// The room is half full: write now.
    pressed: bool,
    /// How often a flush was asked for, and which of them is done.
    asked: u64,
    done: u64,
}

impl State {
    fn hurries(&self) -> bool {
        self.pressed || self.asked > self.done
    }
}

impl Writer {
    /// Starts the thread. `say_lost` says, on that thread, how many lines were lost.
    pub(super) fn start(output: impl Output + 'static, say_lost: impl Fn(u64) + Send + 'static) -> Self {
        let (state, wake, flushed) = (Mutex::default(), Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { state, wake, flushed });
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new().name("log".to_owned());
        let thread = thread.spawn(move || of_thread.run(output, &say_lost));
        let thread = thread.expect("a thread can be started while the process starts");
        shared.lock().thread = Some(thread.thread().id());
        Self(shared)
    }

    /// Takes a line. Never waits but for others that do the same.
    pub(super) fn push(&self, level: Level, line: &[u8]) {
        let mut state = self.0.lock();
        if state.thread == Some(thread::current().id()) {
            return state.own.push(line);
        }
        let room = if level <= Level::WARN { ROOM + RESERVE } else { ROOM };
        if state.waiting.bytes.len() + line.len() > room {
            state.lost += 1;
            drop(state);
            return metrics::log_lines_lost(1);
        }
        state.waiting.push(line);
        let presses = !state.pressed && state.waiting.bytes.len() > ROOM / 2;
        state.pressed |= presses;
        if mem::take(&mut state.asleep) || presses {
            drop(state);
            self.0.wake.notify_one();
        }
    }

    /// Waits until all that was said before is written, for so long at most; true if it is.
    pub(super) fn flush(&self, within: Duration) -> bool {
        let mut state = self.0.lock();
        if state.thread == Some(thread::current().id()) {
            return false;
        }
        state.asked += 1;
        let this = state.asked;
        self.0.wake.notify_one();
        let waited = self.0.flushed.wait_timeout_while(state, within, |state| state.done < this);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut output: impl Output, say_lost: &dyn Fn(u64)) {
        let (mut batch, mut unsaid) = (Batch::default(), 0);
        loop {
            let (lost, asked) = self.take(&mut batch, unsaid > 0);
            let failed = output.write(&batch);
            metrics::log_lines_lost(failed);
            unsaid += lost + failed;
            if unsaid > 0 {
                say_lost(unsaid);
                let said = mem::take(&mut self.lock().own);
                if output.write(&said) == 0 {
                    unsaid = 0;
                }
            }
            batch.clear();
            self.lock().done = asked;
            self.flushed.notify_all();
        }
    }

    /// Waits for lines, or until it is time to say what was lost. How many were lost since, and which flush this is.
    fn take(&self, batch: &mut Batch, has_unsaid: bool) -> (u64, u64) {
        let mut state = self.lock();
        while state.waiting.is_empty() && !state.hurries() {
            state.asleep = true;
            let patience = if has_unsaid { SAY_AGAIN } else { Duration::MAX };
            let (woken, timeout) = self.wait(state, patience);
            state = woken;
            if timeout {
                break;
            }
        }
        state.asleep = false;
        if !state.hurries() {
            let waited = self.wake.wait_timeout_while(state, GATHER, |state| !state.hurries());
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.pressed = false;
        mem::swap(&mut state.waiting, batch);
        (mem::take(&mut state.lost), state.asked)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, patience: Duration) -> (MutexGuard<'a, State>, bool) {
        let (state, timeout) =
            self.wake.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner);
        (state, timeout.timed_out())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    };

    /// Far more than a loaded machine needs.
    const LONG: Duration = Duration::from_secs(60);

    /// Asks before each write whether it succeeds.
    struct Gated<G> {
        gate: G,
        written: Arc<Mutex<Vec<String>>>,
    }

    impl<G: FnMut() -> bool + Send> Output for Gated<G> {
        fn write(&mut self, lines: &Batch) -> u64 {
            if lines.is_empty() {
                return 0;
            }
            if !(self.gate)() {
                return lines.len() as u64;
            }
            let texts = lines.lines().map(|line| String::from_utf8_lossy(line).into_owned());
            self.written.lock().unwrap().extend(texts);
            0
        }
    }

    /// A writer that says what is lost in a line of its own, as the log does.
    fn writer(gate: impl FnMut() -> bool + Send + 'static) -> (Arc<Writer>, Arc<Mutex<Vec<String>>>) {
        let written = Arc::new(Mutex::default());
        let whom: Arc<OnceLock<Arc<Writer>>> = Arc::default();
        let (output, late) = (Gated { gate, written: Arc::clone(&written) }, Arc::clone(&whom));
        let writer = Arc::new(Writer::start(output, move |lost| {
            late.wait().push(Level::WARN, format!("{lost} lost").as_bytes());
        }));
        assert!(whom.set(Arc::clone(&writer)).is_ok());
        (writer, written)
    }

    #[test]
    fn lines_are_written_in_their_order_and_after_a_flush_all_are() {
        let (writer, written) = writer(|| true);
        let expected: Vec<String> = (0..1000).map(|n| format!("line {n}")).collect();
        for line in &expected {
            writer.push(Level::INFO, line.as_bytes());
        }
        assert!(writer.flush(LONG));
        assert_eq!(*written.lock().unwrap(), expected);
        assert!(writer.flush(LONG), "also when nothing waits");
    }

    #[test]
    fn whoever_logs_never_waits_and_what_is_lost_is_said() {
        let ((entered, is_in), (go, goes)) = (mpsc::channel(), mpsc::channel::<()>());
        let (writer, written) = writer(move || {
            let _ = entered.send(());
            goes.recv().is_err() // once the other end is dropped, at once
        });
        writer.push(Level::INFO, b"first");
        is_in.recv_timeout(LONG).unwrap();
        assert!(!writer.flush(Duration::from_millis(1)), "nobody reads");
        let (line, lost) = (vec![b'x'; 1024], |writer: &Writer| writer.0.lock().lost);
        for _ in 0..2 * ROOM / line.len() {
            writer.push(Level::INFO, &line);
        }
        let of_info = lost(&writer);
        assert_eq!(of_info as usize, ROOM / line.len());
        // An error has room all the same, until its own is full too.
        writer.push(Level::ERROR, b"an error");
        assert_eq!(lost(&writer), of_info);
        for _ in 0..2 * RESERVE / line.len() {
            writer.push(Level::WARN, &line);
        }
        let of_all = lost(&writer);
        assert_eq!((of_all - of_info) as usize, RESERVE / line.len() + 1);
        assert!(writer.0.lock().waiting.bytes.len() <= ROOM + RESERVE);
        drop(go);
        assert!(writer.flush(LONG));
        let written = written.lock().unwrap();
        assert!(written[0] == "first" && written.iter().any(|line| line == "an error"));
        assert_eq!(*written.last().unwrap(), format!("{of_all} lost"));
    }

    #[test]
    fn what_could_not_be_written_is_said_when_it_can_be() {
        let works = Arc::new(AtomicBool::new(false));
        let (writer, written) = {
            let works = Arc::clone(&works);
            writer(move || works.load(Ordering::SeqCst))
        };
        writer.push(Level::INFO, b"one");
        writer.push(Level::INFO, b"two");
        assert!(writer.flush(LONG));
        assert!(written.lock().unwrap().is_empty());
        works.store(true, Ordering::SeqCst);
        assert!(writer.flush(LONG), "and nothing else is to be said");
        assert_eq!(*written.lock().unwrap(), ["2 lost"]);
        writer.push(Level::INFO, b"three");
        assert!(writer.flush(LONG));
        assert_eq!(*written.lock().unwrap(), ["2 lost", "three"]);
    }
}
