//! Hears when what the directory learnt is past its time, on whichever machine that was said.
//!
//! In: the queue's words. Out: the directory forgets, and asks anew.
//! Promise: docs/promises.md Q51.
//! Fails: never; while the queue is away nothing is heard, and what was missed is heard when it is back.

use super::Live;
use crate::observe::events;
use crate::queue::{Expired, Queue};
use std::{sync::Arc, time::Duration};
use tokio::time::{MissedTickBehavior, interval};

/// How often it is asked for.
const EVERY: Duration = Duration::from_secs(1);

/// Until it is dropped. `after`: the newest word before anything was learnt; none: the queue could not be asked then.
pub async fn hear_expired(queue: Arc<dyn Queue>, live: Live, mut after: Option<i64>) {
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        // Whether the queue answers is for others to say.
        let Ok(Expired { newest, prefixes }) = queue.expired(after).await else { continue };
        if after.replace(newest).is_none() {
            // What was said until now may be about what was learnt meanwhile.
            live.now().directory.expire(&[String::new()]);
        } else if !prefixes.is_empty() {
            live.now().directory.expire(&prefixes);
            events::directory_expired(&prefixes);
        }
    }
}
