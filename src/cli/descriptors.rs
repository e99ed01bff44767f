//! How many connections the doors may have with the descriptors that the system gives us.
//!
//! In: what the doors want. Out: what each gets, so that descriptors are left for queue, spool, directory and backend.
//! Promise: no door takes what another needs, or what mail that was taken needs on its way.
//! Fails: with a text, if the doors get less than the settings say.

use crate::config::Config;
use crate::intake::Places;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs;

/// Descriptors for the work on messages: files and sockets of queue, directory and backend.
const FOR_WORK: usize = 64;

/// A connection, and the file of a large message that comes by it.
const FOR_A_CONNECTION: usize = 2;

/// Open before the first connection, where nobody can say: the queue, the trace, the sockets, the runtime.
const AT_THE_START: usize = 32;

/// Fewest connections of a door.
const LEAST: usize = 2;

/// Takes as many descriptors as the system grants: the usual soft limit of 1024 is there for programs that use select(2).
pub(super) fn raise() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard); // without it, the doors have fewer connections
    }
}

/// Gives each door what there is for it; the answer says what the administrator should know.
pub(super) fn share(doors: &[&Places]) -> Option<String> {
    let open = fs::read_dir("/proc/self/fd").map_or(AT_THE_START, Iterator::count);
    let (limit, wanted) = (limit(), doors.iter().map(|door| door.wanted()).collect::<Vec<_>>());
    let room = room(limit, open);
    for (door, share) in doors.iter().zip(shares(room, &wanted)) {
        door.limit(share);
    }
    doubt(limit, room, wanted.iter().sum())
}

/// What `check` says of it: the limit of who runs it, who may not be the service.
pub(super) fn look(config: &Config) -> (usize, Option<String>) {
    let sockets = [Some(&config.milter), config.lmtp.as_ref(), config.admin.socket.as_ref()];
    let wanted = sockets.into_iter().flatten().map(|socket| socket.connections()).sum();
    let limit = limit();
    (limit, doubt(limit, room(limit, AT_THE_START), wanted))
}

fn limit() -> usize {
    let hard = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard);
    usize::try_from(hard).unwrap_or(usize::MAX)
}

/// Connections for which there are descriptors.
fn room(limit: usize, open: usize) -> usize {
    let left = limit.saturating_sub(open);
    (left - FOR_WORK.min(left / 3)) / FOR_A_CONNECTION
}

/// What each door gets of so many connections: what it wants, or its share.
fn shares(room: usize, wanted: &[usize]) -> Vec<usize> {
    let all: usize = wanted.iter().sum();
    let share = |&wanted: &usize| match all <= room {
        true => wanted,
        false => (wanted.saturating_mul(room) / all).clamp(LEAST, wanted.max(LEAST)),
    };
    wanted.iter().map(share).collect()
}

fn doubt(limit: usize, room: usize, wanted: usize) -> Option<String> {
    (wanted > room).then(|| {
        format!(
            "{limit} open files are allowed, which is enough for {room} connections, and max_sessions of the doors come to {wanted}: raise the limit (LimitNOFILE= in the unit), or lower max_sessions"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doors_share_what_is_left_for_them() {
        for (limit, open, wanted, expected) in [
            (65_536, 30, &[1_100, 1_000, 64][..], &[1_100, 1_000, 64][..]),
            (4_096, 30, &[1_100, 1_000, 64], &[1_017, 924, 59]),
            (1_024, 30, &[1_100], &[465]),
            (64, 28, &[1_100, 1_000, 64], &[6, 5, 2]),
            (64, 64, &[1_100, 1_000, 64], &[2, 2, 2]),
            (16, 64, &[1], &[2]),
        ] {
            assert_eq!(shares(room(limit, open), wanted), expected, "{limit} {open}");
        }
    }

    #[test]
    fn what_is_shared_leaves_descriptors_for_the_work() {
        for limit in [64_usize, 100, 256, 1_024, 4_096, 65_536] {
            let (open, wanted) = (28, [1_100, 1_000, 64]);
            let all: usize = shares(room(limit, open), &wanted).iter().sum();
            let left = limit.saturating_sub(open + all);
            assert!(left >= 8 + all.saturating_sub(LEAST), "{limit}: {all} connections leave {left}");
        }
    }

    #[test]
    fn too_few_are_said_with_the_remedy() {
        assert_eq!(doubt(65_536, 32_000, 2_164), None);
        let text = doubt(1_024, 464, 2_164).unwrap();
        assert!(text.contains("464 connections") && text.contains("LimitNOFILE="), "{text}");
    }
}
