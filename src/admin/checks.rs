//! What `/readyz` and the status page say of the service, a line each.
//!
//! In: what the door looks at. Out: [`Check`]s.
//! Promise: an answer within a few seconds, whatever hangs.

use super::{Admin, trace};
use crate::courier::Paused;
use crate::observe::versions;
use crate::queue::Spooled;
use serde::Serialize;
use std::time::{Duration, SystemTime};

/// Time for each check of `/readyz`.
const CHECK_TIME: Duration = Duration::from_secs(5);

/// A prefix that nobody has, for asking the directory whether it answers.
const NOBODY: &str = "activity-milter-readyz";

/// Tenants named by a check.
const TENANTS_SHOWN: usize = 5;

/// One line of `/readyz`: `ok`, or what is wrong.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) ok: bool,
    pub(super) detail: String,
    /// It is the service's, not some tenant's alone: without it nobody is served.
    #[serde(skip)]
    pub(super) is_everybodys: bool,
}

impl Check {
    pub(super) fn new(name: &'static str, outcome: Result<String, String>) -> Self {
        let ok = outcome.is_ok();
        Self { name, ok, detail: outcome.unwrap_or_else(|error| error), is_everybodys: true }
    }

    /// What is wrong, and no reason to take the service away from anybody.
    fn alarm(name: &'static str, detail: String) -> Self {
        Self { name, ok: false, detail, is_everybodys: false }
    }

    /// What waits on this machine for a database that is away; an alarm: mail is taken.
    fn of_spool(spooled: &Spooled, now: SystemTime) -> Option<Self> {
        let Spooled { counts, away, full } = spooled;
        let count = counts.waiting + counts.held;
        if count == 0 && away.is_none() {
            return None;
        }
        let age = counts.oldest.and_then(|oldest| now.duration_since(oldest).ok()).unwrap_or_default();
        let age = humantime::format_duration(Duration::from_secs(age.as_secs()));
        let since = if counts.waiting > 0 { format!(", the oldest for {age}") } else { String::new() };
        let why = away.as_ref().or(full.as_ref()).map_or("it is being given to it".to_owned(), Clone::clone);
        Some(Self::alarm("spool", format!("{count} on this machine wait for the database{since}: {why}")))
    }

    /// Tenants whose deliveries are paused; an alarm, and no reason to take the service away from the others.
    fn of_tenants(paused: &[Paused]) -> Option<Self> {
        let of_tenants: Vec<_> =
            paused.iter().filter_map(|p| Some(format!("{}: {}", p.tenant.as_ref()?, p.reason))).collect();
        let (first, rest) = of_tenants.split_at(of_tenants.len().min(TENANTS_SHOWN));
        let more = if rest.is_empty() { String::new() } else { format!(", and {} more", rest.len()) };
        let detail = format!("deliveries paused: {}{more}", first.join(", "));
        (!first.is_empty()).then(|| Self::alarm("tenants", detail))
    }

    /// Newer versions of files that were refused; the service goes on with the older ones.
    fn of_versions(refused: &[versions::Refused], now: SystemTime) -> Option<Self> {
        let said = refused.iter().map(|refused| {
            let since = now.duration_since(refused.since).unwrap_or_default().as_secs();
            let since = humantime::format_duration(Duration::from_secs(since));
            let what = refused.what.as_str();
            // The other kinds are looked at by themselves; of this one nobody knows whether it is repaired.
            let again = match refused.what {
                versions::Kind::Configuration => " (repaired? It is read again at a reload)",
                _ => "",
            };
            format!("new {what} refused {since} ago, the old one stays in use: {}{again}", refused.error)
        });
        let detail = said.collect::<Vec<_>>().join("; ");
        (!refused.is_empty()).then(|| Self::alarm("versions", detail))
    }

    /// Settings that were read, and are not in use yet.
    fn of_restart(keys: Option<String>) -> Option<Self> {
        keys.map(|keys| Self::alarm("restart", format!("changed, and in use only after a restart: {keys}")))
    }

    /// Copies from which the directory answers, and that somebody should look at; none if there are no copies.
    fn of_copies(copies: usize, unwell: &[String]) -> Option<Self> {
        let (first, rest) = unwell.split_at(unwell.len().min(TENANTS_SHOWN));
        let more = if rest.is_empty() { String::new() } else { format!(", and {} more", rest.len()) };
        let ok = first.is_empty();
        let detail = if ok { format!("{copies} up to date") } else { first.join(", ") + &more };
        (copies > 0).then_some(Self { name: "copies", ok, detail, is_everybodys: false })
    }
}

/// All checks; `paused`: the pauses as the caller sees them, so that what else is said of them fits.
pub(super) async fn checks(app: &Admin, paused: &[Paused]) -> Vec<Check> {
    let views = &app.views;
    let doors: Vec<_> = views.doors.iter().map(|(door, place)| format!("{door} {place}")).collect();
    let listening = match views.closing.is_cancelled() {
        false if doors.is_empty() => Ok("none here: other machines take mail".to_owned()),
        false => Ok(doors.join(", ")),
        true => Err("the service is stopping".to_owned()),
    };
    let in_time = |name: &str| format!("{name}: no answer within {} s", CHECK_TIME.as_secs());
    let queue = match &views.queue {
        None => Ok("direct mode: no queue".to_owned()),
        Some(queue) => match tokio::time::timeout(CHECK_TIME, queue.check()).await {
            Ok(Ok(())) => Ok("writable".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(in_time("queue")),
        },
    };
    let spooled = match &views.queue {
        Some(queue) => tokio::time::timeout(CHECK_TIME, queue.spooled()).await.ok().flatten(),
        None => None,
    };
    let spool = spooled.and_then(|spooled| Check::of_spool(&spooled, SystemTime::now()));
    let service = views.live.now();
    let directory = match tokio::time::timeout(CHECK_TIME, service.directory.tenant(NOBODY)).await {
        Ok(Ok(_)) => Ok(service.directory.source()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(in_time("directory")),
    };
    let deliveries = match paused.iter().find(|paused| paused.tenant.is_none()) {
        None if !views.delivers => Ok("not here: other machines deliver".to_owned()),
        None => Ok("going on".to_owned()),
        Some(paused) => Err(format!("paused: {}", paused.reason)),
    };
    let everybodys = [
        Check::new("listeners", listening),
        Check::new("queue", queue),
        Check::new("directory", directory),
        Check::new("deliveries", deliveries),
    ];
    let refused = Check::of_versions(&versions::still_refused(), SystemTime::now());
    let copies = service.directory.copies();
    let unwell = copies.iter().filter(|copy| !copy.is_well());
    let unwell: Vec<_> = unwell.map(|copy| format!("{}: {}", copy.tenant, copy.standing())).collect();
    // An alarm, and no reason to take no mail.
    let trace = trace::check().map(|how| Check { is_everybodys: false, ..Check::new("trace", how) });
    let restart = Check::of_restart(versions::for_restart());
    let others =
        [spool, refused, restart, Check::of_tenants(paused), Check::of_copies(copies.len(), &unwell), trace];
    everybodys.into_iter().chain(others.into_iter().flatten()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Counts;

    #[test]
    fn tenants_that_are_paused_are_named_and_take_nothing_from_the_others() {
        let paused = |tenant: Option<&str>| Paused {
            tenant: tenant.map(Into::into),
            misconfigured: true,
            reason: "invalid_client".to_owned(),
        };
        assert!(Check::of_tenants(&[]).is_none() && Check::of_tenants(&[paused(None)]).is_none());
        let check = Check::of_tenants(&[paused(None), paused(Some("t-1"))]).unwrap();
        assert!(!check.ok && !check.is_everybodys);
        assert_eq!(check.detail, "deliveries paused: t-1: invalid_client");
        let check = Check::of_tenants(&vec![paused(Some("t")); 105]).unwrap();
        assert!(check.detail.ends_with(", and 100 more") && check.detail.len() < 200, "{}", check.detail);
    }

    #[test]
    fn what_waits_for_the_database_is_an_alarm() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let of = |waiting, away: Option<&str>| {
            let oldest = (waiting > 0).then_some(SystemTime::UNIX_EPOCH);
            let counts = Counts { waiting, held: 0, oldest };
            Check::of_spool(&Spooled { counts, away: away.map(str::to_owned), full: None }, now)
        };
        assert!(of(0, None).is_none());
        let check = of(2, Some("no route")).unwrap();
        assert!(!check.ok && !check.is_everybodys);
        assert_eq!(check.detail, "2 on this machine wait for the database, the oldest for 16m 40s: no route");
        assert!(of(1, None).unwrap().detail.ends_with(": it is being given to it"));
        assert_eq!(of(0, Some("x")).unwrap().detail, "0 on this machine wait for the database: x");
    }

    #[test]
    fn copies_that_are_unwell_are_named() {
        assert!(Check::of_copies(0, &[]).is_none());
        let check = Check::of_copies(2, &[]).unwrap();
        assert!(check.ok && check.detail == "2 up to date");
        let check = Check::of_copies(9, &vec!["t: there is no copy yet".to_owned(); 7]).unwrap();
        assert!(!check.ok && !check.is_everybodys && check.detail.ends_with("copy yet, and 2 more"));
    }
}
