//! LMTP (RFC 2033), for what never meets the milter: automatic BCC, aliases, local submission, mail accepted while
//! the milter was down.
//!
//! In: Postfix's `lmtp:` transport. Out: a reply for each recipient after the final dot.
//! Promise: the same rules, queue and keys as the milter's, so that both ways together record an e-mail once; a reply
//! of 250 means that the activity is on disk; whatever the peer sends gets a reply or a closed connection.
//! Fails: nothing here ends [`run`] but its token; faults are 451 and a log line.
//!
//! The commands are those of RFC 5321, with PIPELINING (RFC 2920), 8BITMIME (RFC 6152), SMTPUTF8 (RFC 6531),
//! ENHANCEDSTATUSCODES (RFC 2034), SIZE (RFC 1870), and Postfix's XFORWARD, which tells us client and queue id.

mod conversation;
mod wire;

use super::{Listener, Live};
use crate::courier::Desk;
use conversation::Conversation;
use indymilter::Listener as _;
use std::{sync::Arc, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long clients may take to hear that we stop.
const FAREWELL: Duration = Duration::from_secs(2);

/// Serves connections until `stop` is cancelled. Drain the service before that.
pub async fn run(mut listener: Listener, live: Live, desk: Desk, stop: CancellationToken) {
    let sessions = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(stream) => stream,
                Err(_) => continue, // our listener logs, pauses and goes on by itself
            },
            () = stop.cancelled() => break,
        };
        let place = Arc::clone(stream.place());
        let conversation = Conversation::new(stream, place, live.clone(), desk.clone(), stop.clone());
        sessions.spawn(conversation.run());
    }
    sessions.close();
    let _ = tokio::time::timeout(FAREWELL, sessions.wait()).await;
}
