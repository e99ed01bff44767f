//! Protocol in, decision out: the doors through which messages come.
//!
//! In: what Postfix says over the milter protocol or LMTP. Out: an answer to each command, a parcel for the queue.
//! Promise: a message is answered only when its activities are on disk; one that fails is refused or deferred with a
//! text, never dropped; a fault in one message never reaches another.
//! Fails: every fault of ours is a 451 and a log line with the queue id.

mod expiry;
mod fate;
mod flow;
mod head;
mod listener;
pub mod lmtp;
mod meter;
pub mod milter;
mod places;
mod record;
mod service;
mod session;
mod stream;
mod transaction;

pub use expiry::hear_expired;
pub use fate::{Fate, Interest, Then};
pub use listener::{BindError, Listen, Listener, SocketSettings, default_socket};
pub use meter::REMEMBERED;
pub use places::{Places, keep};
pub use record::{Concluded, End, Pending, Recall, record};
pub use service::{LOOK_UP_TIME, Live, Policy, Service, Shadow};
pub use session::{LeftOut, Session};
pub use stream::Guarded;
pub use transaction::{Client, Told};

use std::time::Duration;

/// Time for all work at end of message (DESIGN section 4): below the 300 s of Postfix's `milter_content_timeout` and
/// the 600 s of its `lmtp_data_done_timeout`.
pub const END_TIME: Duration = Duration::from_secs(60);

/// Why an answer is our own trouble.
#[derive(Debug, thiserror::Error)]
enum Fault {
    /// The protocol has no session yet.
    #[error("command before negotiation")]
    NoSession,
    /// Not this command now.
    #[error("{0} out of order")]
    OutOfOrder(&'static str),
    /// Something of ours failed.
    #[error("{0}")]
    Internal(String),
    /// It took too long.
    #[error("not done in time")]
    Late,
}
