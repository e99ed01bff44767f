//! Tells somebody that activities are held: the owner, or a postmaster, by mail through the local MTA.
//!
//! In: the queue's held activities. Out: one mail for each recipient that lists what is new, each activity once.
//! Promise: a notice never bounces (null sender), never answers itself, and never makes an activity of its own that is
//! told of again. One recipient's trouble delays no other's notice. What was sent is not sent again, also while it cannot
//! be noted; if we are killed between the mail and the note of it, it is sent once more rather than never.
//! Fails: never; a mail that cannot be sent now is tried again, when `schedule.rs` says. One that is refused, an activity
//! that cannot be read and an address that is none are a log line.
//! Memory: a page of what is held, the recipients that wait, and the rows whose note could not be written.

mod mail;
#[cfg(test)]
mod proofs;
mod schedule;

use crate::activity::{Key, NOTICE_ID, Owner};
use crate::observe::events;
use crate::queue::{Queue, Untold};
use lettre::{Address, message::Mailbox};
use mail::{Item, NotSent};
use schedule::Schedule;
use serde::Deserialize;
use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Held activities read at once.
const AT_ONCE: usize = 500;

/// The subject, unless the configuration says otherwise.
pub const SUBJECT: &str = "E-mail not recorded as an activity";

/// The text, unless the configuration says otherwise; `{list}` becomes what is held.
pub const TEXT: &str = "The business system refuses to record these e-mails as activities:\n\n{list}\n\
    They are kept. Your administrator can have them tried again, or dropped.\n";

/// Settings of the notices.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who is told.
    pub to: To,
    /// The From field.
    pub from: Mailbox,
    /// The way of the mail.
    pub by: By,
    /// The subject.
    pub subject: String,
    /// The text, with `{list}`.
    pub text: String,
}

/// Who is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// The activity's owner, at the address by which the owner was recognised.
    Owner,
    /// Always the same.
    Address(Address),
}

/// How mail is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// SMTP to this host and port.
    Smtp(String, u16),
    /// The program `sendmail`.
    Sendmail(std::path::PathBuf),
}

impl std::str::FromStr for By {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no way for mail: write \"sendmail\" or \"smtp:127.0.0.1:25\"");
        let nul = || "no path has a zero byte (\\u0000): leave it out".to_owned();
        match text.split_once(':') {
            None if text == "sendmail" => Ok(Self::Sendmail("/usr/sbin/sendmail".into())),
            Some(("sendmail", path)) if path.contains('\0') => Err(nul()),
            Some(("sendmail", path)) if path.starts_with('/') => Ok(Self::Sendmail(path.into())),
            Some(("smtp", place)) => {
                let (host, port) = place.rsplit_once(':').ok_or_else(wrong)?;
                let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
                let is_host = is_name(host) || inner.parse::<IpAddr>().is_ok();
                match port.parse() {
                    Ok(0) => Err(format!(
                        "\"{text}\": nobody listens on port 0: write 25, or the port of your MTA"
                    )),
                    Ok(port) if is_host => Ok(Self::Smtp(inner.to_owned(), port)),
                    _ => Err(wrong()),
                }
            }
            _ => Err(wrong()),
        }
    }
}

/// A host's name, as far as letters go.
fn is_name(host: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    host.strip_suffix('.').unwrap_or(host).split('.').all(is_label)
}

impl std::fmt::Display for By {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Smtp(host, port) if host.contains(':') => write!(f, "smtp:[{host}]:{port}"),
            Self::Smtp(host, port) => write!(f, "smtp:{host}:{port}"),
            Self::Sendmail(path) => write!(f, "sendmail:{}", path.display()),
        }
    }
}

/// What a notice says of an activity, and to whom.
#[derive(Deserialize)]
struct Brief {
    key: Key,
    subject: String,
    sent_at: String,
    owner: Owner,
    message_id: Option<String>,
}

/// Tells of held activities until `stop`.
pub async fn run(queue: Arc<dyn Queue>, settings: Settings, stop: CancellationToken) {
    Notices::new(queue, settings).until(stop).await;
}

/// At work.
struct Notices {
    queue: Arc<dyn Queue>,
    settings: Settings,
    schedule: Schedule,
    /// For one mail.
    patience: Duration,
}

impl Notices {
    fn new(queue: Arc<dyn Queue>, settings: Settings) -> Self {
        let (schedule, patience) = (Schedule::new(Instant::now()), mail::PATIENCE);
        Self { queue, settings, schedule, patience }
    }

    async fn until(mut self, stop: CancellationToken) {
        self.work(&stop).await;
        // What could not be noted, once more: nobody will know of it after the start.
        let owed = self.schedule.owed();
        self.note(&owed).await;
    }

    /// Until `stop`; a mail that is under way then is finished, so that nobody is told twice.
    async fn work(&mut self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            self.tell(Instant::now(), stop).await;
            let next = self.schedule.next();
            let wait = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.queue.newly_held() => self.schedule.held(Instant::now()),
                () = wait => {}
            }
        }
    }

    /// Does what there is to do at a time: notes who was told, and tells who may be told.
    async fn tell(&mut self, now: Instant, stop: &CancellationToken) {
        let clock = Clock { shown: now, at: Instant::now() };
        self.note_in_time(&clock).await;
        if self.schedule.is_due(now) {
            let after = self.schedule.begin(now);
            if self.look(after, &clock, stop).await.is_none() {
                self.schedule.down(clock.now());
            }
            self.note_in_time(&clock).await;
        }
    }

    /// Goes over what is untold behind a row; none, if the way is down before the end, or we stop.
    async fn look(&mut self, mut after: Option<i64>, clock: &Clock, stop: &CancellationToken) -> Option<()> {
        let mut looked = Duration::ZERO;
        while !self.schedule.owes_too_much() {
            let began = Instant::now();
            let page = self.queue.untold(after, AT_ONCE).await;
            looked += began.elapsed();
            let page = page.inspect_err(|error| events::queue_trouble(error)).ok()?;
            let Some(last) = page.last() else {
                self.schedule.done(after, clock.now(), looked);
                return Some(());
            };
            after = Some(last.id);
            for (to, items) in self.by_recipient(page) {
                if stop.is_cancelled() {
                    return None;
                }
                self.tell_one(&to, &items, clock).await?;
                self.note_in_time(clock).await;
            }
            self.note_in_time(clock).await; // also what needed no mail
        }
        None
    }

    /// Those of a page of whom somebody may be told in this look.
    fn by_recipient(&mut self, page: Vec<Untold>) -> BTreeMap<Address, Vec<Item>> {
        let mut by_recipient: BTreeMap<Address, Vec<Item>> = BTreeMap::new();
        for one in page {
            if self.schedule.is_told(one.id) {
                continue;
            }
            match addressed(&self.settings, &one) {
                Ok(Some((to, item))) if self.schedule.may(to.as_ref()) => {
                    by_recipient.entry(to).or_default().push(item);
                }
                Ok(Some(_)) => {}
                Ok(None) => self.schedule.told([one.id]),
                Err(error) => {
                    events::notice_not_sent(&error);
                    self.schedule.told([one.id]);
                }
            }
        }
        by_recipient
    }

    /// Tells one recipient; none, if the way is down.
    async fn tell_one(&mut self, to: &Address, items: &[Item], clock: &Clock) -> Option<()> {
        let sent = mail::send(&self.settings, self.patience, to, items).await;
        match &sent {
            Ok(()) => events::notice_sent(items.len()),
            Err(error) => events::notice_not_sent(error),
        }
        match sent {
            Ok(()) | Err(NotSent::Refused(_)) => {
                self.schedule.settled(to.as_ref());
                self.schedule.told(items.iter().map(|item| item.id));
            }
            Err(NotSent::Later(_)) => self.schedule.later(to.as_ref(), clock.now()),
            Err(NotSent::Broke(_)) => {
                self.schedule.broke(to.as_ref(), clock.now());
                return None;
            }
            Err(NotSent::Down(_)) => return None,
        }
        Some(())
    }

    async fn note_in_time(&mut self, clock: &Clock) {
        let rows = self.schedule.to_note(clock.now());
        if !self.note(&rows).await {
            self.schedule.not_noted(clock.now());
        }
    }

    /// Notes who was told. Until it is written, the schedule knows.
    async fn note(&mut self, rows: &[i64]) -> bool {
        if rows.is_empty() {
            return true;
        }
        match self.queue.told(rows.to_vec()).await {
            Ok(()) => {
                self.schedule.noted(rows);
                true
            }
            Err(error) => {
                events::queue_trouble(&error);
                false
            }
        }
    }
}

/// The time, given out at a beginning.
struct Clock {
    shown: Instant,
    at: Instant,
}

impl Clock {
    fn now(&self) -> Instant {
        self.shown + self.at.elapsed()
    }
}

/// Whom to tell of an activity; nobody of a notice of ours.
fn addressed(settings: &Settings, untold: &Untold) -> Result<Option<(Address, Item)>, String> {
    let Untold { id, activity, reason } = untold;
    let brief: Brief = serde_json::from_str(activity)
        .map_err(|error| format!("the activity of row {id} cannot be read: {error}"))?;
    if brief.message_id.is_some_and(|id| id.starts_with(NOTICE_ID)) {
        return Ok(None);
    }
    let to = match &settings.to {
        To::Owner => {
            let address = brief.owner.address.parse();
            address.map_err(|error| format!("the owner's address in row {id}: {error}"))?
        }
        To::Address(address) => address.clone(),
    };
    Ok(Some((to, Item::new(*id, &brief.key, &brief.subject, &brief.sent_at, reason))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_of_mail() {
        assert_eq!("sendmail".parse(), Ok(By::Sendmail("/usr/sbin/sendmail".into())));
        assert_eq!("sendmail:/opt/sendmail".parse(), Ok(By::Sendmail("/opt/sendmail".into())));
        assert_eq!("smtp:127.0.0.1:25".parse(), Ok(By::Smtp("127.0.0.1".to_owned(), 25)));
        for (text, host) in [
            ("smtp:[::1]:25", "::1"),
            ("smtp:::1:25", "::1"),
            ("smtp:mx1.a.test:25", "mx1.a.test"),
            ("smtp:mx_1:2525", "mx_1"),
        ] {
            let by: By = text.parse().unwrap();
            assert!(matches!(&by, By::Smtp(found, _) if found == host), "{text}");
            assert_eq!(by.to_string().parse(), Ok(by), "{text}");
        }
        for bad in [
            "",
            "smtp",
            "smtp:host",
            "smtp::25",
            "smtp:host:x",
            "smtp:host:65536",
            "smtp://host:25",
            "smtp://host/:25",
            "smtp:us@host:25",
            "smtp: host:25",
            "smtp:a..b:25",
            "smtp:[host]:25",
            "smtp:[::1:25",
            "sendmail:opt",
            "uucp:x",
        ] {
            assert!(bad.parse::<By>().unwrap_err().contains("is no way for mail"), "{bad}");
        }
        assert!("smtp:host:0".parse::<By>().unwrap_err().contains("nobody listens on port 0"));
        assert!("sendmail:/a\0".parse::<By>().unwrap_err().contains("zero byte"));
    }
}
