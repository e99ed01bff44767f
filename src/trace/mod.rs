//! What became of each mail, for the administrator who is asked for one: a file of its own, kept for a week.
//!
//! In: a [`Record`] for each thing that happens to an integration mail ([`note`]). Out: all that is known of a mail, by its
//! queue id, key, Message-ID or an address of it ([`search()`]).
//! Promise: who notes never waits, for no lock that anybody holds while he writes, and for no disk; memory is bounded; what
//! could not be kept is counted. A file that is damaged, full, locked or somebody else's stops nobody: it is moved aside, or
//! the trace goes without until it can be written, and says so ([`standing`]). After `kill -9` all is there but the last
//! [`BATCH_TIME`]. Never subject, body, names of files, tokens.
//! Fails: [`SearchError`] where the file cannot be read.
//!
//! Not synced, because nothing depends on it: `synchronous=NORMAL` in WAL mode syncs at checkpoints only, so that a power
//! cut loses the last seconds; with `OFF` it could cost the file, on the day after which it is asked for.
//!
//! Other people's mail is not traced: it costs nothing, here too.

mod record;
mod search;
mod store;
mod term;
mod text;
mod writer;

pub use record::{Record, What};
pub use search::{Event, Found, Mail, Query, Reach, SearchError, look_at, search};
pub use term::{NoTerm, Term};
pub use text::{not_found, since};
pub use writer::{BATCH_TIME, Report, Standing, lost, note, settings, standing, start, stop};

use std::{path::PathBuf, time::Duration};

/// Most rows; the oldest go first.
pub const MOST_ROWS: u64 = 5_000_000;

/// How long a row is kept, unless the configuration says otherwise.
pub const KEEP: Duration = Duration::from_secs(7 * 24 * 3600);

/// Settings of the trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The file.
    pub path: PathBuf,
    /// How long a row is kept; none: nothing is traced.
    pub keep: Option<Duration>,
    /// Most rows.
    pub most_rows: u64,
    /// Bytes that must be free on its disk, so that the trace takes none that the queue needs; 0: as many as there are.
    pub min_free: u64,
}

impl Settings {
    /// With the limits that the configuration has by default.
    pub fn new(path: PathBuf) -> Self {
        Self { path, keep: Some(KEEP), most_rows: MOST_ROWS, min_free: 0 }
    }
}
