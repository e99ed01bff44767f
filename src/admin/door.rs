//! The socket of the door, and by which names it may be called.
//!
//! In: connections; requests. Out: requests that name this machine.
//! Promise: a page elsewhere that lets a name of its own point here (DNS rebinding) reads nothing but `/livez` and `/readyz`.
//! Fails: 421 for another name (RFC 9110, section 15.5.20); 400 for a request that names none, or several (RFC 9112,
//! section 3.2). HTTP/1.0 names none, and checkers of load balancers speak it; every browser says where it means to be.

use crate::intake;
use crate::observe::events;
use axum::{
    extract::{Request, State},
    http::{StatusCode, Version, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use indymilter::Listener as _;
use std::{collections::HashSet, future::poll_fn, io, net::IpAddr, sync::Arc};

/// Our listener, as axum wants it.
pub(super) struct Door(pub(super) intake::Listener);

impl axum::serve::Listener for Door {
    type Io = intake::Guarded;
    type Addr = ();

    async fn accept(&mut self) -> (Self::Io, ()) {
        loop {
            // It pauses by itself after what failed.
            if let Ok(stream) = poll_fn(|cx| self.0.poll_accept(cx)).await {
                return (stream, ());
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The names under which the door answers.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// None: no browser gets here, as at a unix socket.
    known: Option<Arc<HashSet<String>>>,
}

impl Names {
    /// This machine's names, and those of `admin.hosts`.
    pub(super) fn new(more: &[String], is_unix: bool) -> Self {
        if is_unix {
            return Self { known: None };
        }
        let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        Self::of(own.trim(), &hosts, more)
    }

    fn of(own: &str, hosts: &str, more: &[String]) -> Self {
        let short = own.split('.').next().unwrap_or_default();
        let mut known: HashSet<String> = ["localhost", own, short]
            .iter()
            .copied()
            .chain(more.iter().map(String::as_str))
            .map(plain)
            .collect();
        // The name with its domain stands beside the short one (hosts(5)).
        for line in hosts.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let names: Vec<String> = line.split_whitespace().skip(1).map(plain).collect();
            if names.iter().any(|name| *name == plain(own) || *name == plain(short)) {
                known.extend(names);
            }
        }
        known.remove("");
        Self { known: Some(Arc::new(known)) }
    }

    /// True if a request to this authority (RFC 9110, section 7.2) is meant for us.
    fn has(&self, authority: &str) -> bool {
        let Some(known) = &self.known else { return true };
        let host = match authority.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
        };
        host.parse::<IpAddr>().is_ok() || known.contains(&plain(host))
    }
}

fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// Lets through what is meant for us; whether we live and are ready everybody may ask.
pub(super) async fn check_host(State(names): State<Names>, request: Request, next: Next) -> Response {
    if matches!(request.uri().path(), "/livez" | "/readyz") {
        return next.run(request).await;
    }
    // A request's own authority counts before its Host field (RFC 9112, section 3.2.2).
    let mut fields = request.headers().get_all(header::HOST).iter();
    let authority = match (request.uri().authority(), fields.next(), fields.next()) {
        (Some(authority), _, _) => Some(authority.as_str().to_owned()),
        (None, Some(field), None) => field.to_str().ok().map(str::to_owned),
        (None, None, None) if request.version() <= Version::HTTP_10 => return next.run(request).await,
        _ => None,
    };
    let Some(authority) = authority.filter(|authority| !authority.is_empty()) else {
        return (StatusCode::BAD_REQUEST, "Name this machine in one Host field.\n").into_response();
    };
    if names.has(&authority) {
        return next.run(request).await;
    }
    events::admin_misdirected(&authority);
    let text =
        "This machine is not known here by that name. Use its IP address, or add the name to admin.hosts.\n";
    (StatusCode::MISDIRECTED_REQUEST, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine_and_addresses_are_ours() {
        let hosts =
            "127.0.0.1 localhost\n127.0.1.1 mx1.example.com mx1 # us\n192.0.2.9 other.example.com other\n";
        let names = Names::of("mx1", hosts, &["Admin.example.com".to_owned()]);
        for (authority, is_ours) in [
            ("127.0.0.1:8894", true),
            ("127.0.0.1", true),
            ("192.0.2.7:8894", true),
            ("[::1]:8894", true),
            ("[fe80::1]", true),
            ("localhost:8894", true),
            ("LOCALHOST.", true),
            ("mx1:8894", true),
            ("mx1.example.com", true),
            ("admin.EXAMPLE.com:443", true),
            ("other.example.com", false),
            ("evil.example", false),
            ("evil.example:8894", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("", false),
            (":8894", false),
            ("[evil.example]", false),
        ] {
            assert_eq!(names.has(authority), is_ours, "{authority}");
        }
        assert!(Names::new(&[], true).has("whatever"), "a unix socket has no name");
    }
}
