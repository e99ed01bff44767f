//! `queue redeliver`: delivered activities once more, for a business system restored from a back-up.

use super::{Failure, agreed, identity, other, say, tell, text::rfc3339};
use crate::config::{Config, time_span};
use crate::observe::{self, events};
use crate::queue::{Queue, Replay, Replayed};
use clap::Args as ClapArgs;
use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Those delivered since then: so long ago (90s, 2h, 1d), or a time like 2026-11-29T18:00:00Z
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: SystemTime,
    /// Those delivered before then; default: now
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<SystemTime>,
    /// Only this tenant's: id or prefix
    #[arg(long, value_name = "TENANT")]
    tenant: Option<String>,
    /// Say how many it would be, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask, at a terminal either
    #[arg(long)]
    yes: bool,
}

/// A time: so long ago, or as RFC 3339 has it.
fn moment(text: &str) -> Result<SystemTime, String> {
    let wrong =
        || format!("\"{text}\" is no time: write one like 2h, for two hours ago, or 2026-11-29T18:00:00Z");
    match time_span(text) {
        Ok(ago) => return Ok(SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH)),
        // What is a span to the library, and not to us: months or minutes?
        Err(error) if humantime::parse_duration(text).is_ok() => return Err(error),
        Err(_) => {}
    }
    let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| wrong())?;
    let since = time.unix_timestamp_nanos().try_into().map_err(|_| wrong())?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_nanos(since))
}

/// Times between which something can have been delivered.
fn is_order(since: SystemTime, until: Option<SystemTime>, now: SystemTime) -> Result<(), String> {
    if since > now {
        return Err(format!(
            "--since lies ahead: here it is {}. Write Z only behind a time of UTC, and +02:00, say, behind one of your clock",
            rfc3339(now)
        ));
    }
    if until
        .is_some_and(|until| rfc3339(until) <= rfc3339(since) && until <= since + Duration::from_millis(1))
    {
        return Err("--until is not after --since: nothing was delivered between them".to_owned());
    }
    Ok(())
}

pub(super) async fn redeliver(config: &Config, queue: &dyn Queue, args: &Args) -> Result<ExitCode, Failure> {
    let Args { since, until, tenant, dry_run, yes } = args;
    is_order(*since, *until, SystemTime::now()).map_err(Failure::CommandLine)?;
    let kept = queue.kept().await.map_err(other)?;
    match kept.since {
        None => {
            return Err(other(
                "nothing is kept after its delivery: queue.keep_delivered is \"0\", or the service has not started with it",
            ));
        }
        Some(kept) if kept > *since => tell(&format!(
            "kept since {}: what was delivered before that is not there any more",
            rfc3339(kept)
        )),
        Some(_) => {}
    }
    let replay = Replay { since: *since, until: *until, tenant: tenant.clone(), dry: true };
    let count = queue.redeliver(replay.clone()).await.map_err(other)?.again;
    if count == 0 {
        let of = tenant.as_deref().map(|tenant| format!(" of tenant {tenant}")).unwrap_or_default();
        say(&format!(
            "nothing that is kept{of} was delivered then: 0 would be sent again; nothing was changed\n"
        ))?;
        return Ok(ExitCode::from(u8::from(!dry_run)));
    }
    if *dry_run {
        say(&format!("{count} would be sent again; nothing was changed\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let question =
        format!("Send {count} activities once more that were delivered since {}?", rfc3339(*since));
    if count > 1 && !yes && !agreed(&question)? {
        say("nothing was changed\n")?;
        return Ok(ExitCode::FAILURE);
    }
    observe::start_for_command(&config.log);
    let began = until.unwrap_or_else(SystemTime::now);
    let done = queue.redeliver(Replay { dry: false, ..replay }).await.map_err(other)?;
    let uid = identity::caller();
    events::redelivered(uid, done.again, rfc3339(*since), tenant.as_deref().unwrap_or_default());
    say(&(outcome(done, began) + "\n"))?;
    Ok(ExitCode::from(u8::from(done.left > 0)))
}

/// `began`: what is delivered from then on was sent again already.
fn outcome(done: Replayed, began: SystemTime) -> String {
    let Replayed { again, known, left } = done;
    let mut text = format!("{again} wait to be sent again");
    if known > 0 {
        text += &format!("; {known} not, for they came again by themselves and are in the queue");
    }
    if left > 0 {
        text += &format!(
            "; for {left} there is no room now (queue.max_items): when these are delivered, say it again with --until {}",
            humantime::format_rfc3339_millis(began)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_so_long_ago_or_rfc_3339() {
        let at = |text: &str| moment(text).map(rfc3339);
        for (text, expected) in [
            ("2026-11-29T18:00:00Z", "2026-11-29T18:00:00Z"),
            ("2026-11-29T18:00:00+02:00", "2026-11-29T16:00:00Z"),
            ("2026-11-29T18:00:00.5Z", "2026-11-29T18:00:00Z"),
        ] {
            assert_eq!(at(text).as_deref(), Ok(expected));
        }
        let ago = SystemTime::now().duration_since(moment("1h 30min").unwrap()).unwrap();
        assert!((5399..5460).contains(&ago.as_secs()), "{ago:?}");
        for text in ["", "yesterday", "2026-11-29", "18:00", "1900-01-01T00:00:00Z", "-2h"] {
            let error = at(text).unwrap_err();
            assert!(error.contains(&format!("\"{text}\" is no time: write one like 2h")), "{error}");
        }
    }

    #[test]
    fn what_could_not_be_sent_again_is_said() {
        let said = |again, known, left| outcome(Replayed { again, known, left }, SystemTime::UNIX_EPOCH);
        assert_eq!(said(3, 0, 0), "3 wait to be sent again");
        assert!(said(3, 1, 0).ends_with("; 1 not, for they came again by themselves and are in the queue"));
        let left = said(3, 0, 2);
        assert!(left.contains("; for 2 there is no room now (queue.max_items)"), "{left}");
        assert!(left.ends_with("say it again with --until 1970-01-01T00:00:00.000Z"), "{left}");
    }
}
