//! Tells somebody that activities are held: the owner, or a postmaster, by mail through the local MTA.
//!
//! In: the queue's held activities. Out: one mail for each recipient that lists what is new, each activity once.
//! Promise: a notice never bounces (null sender), never answers itself, and never makes an activity of its own that is
//! told of again. If we stop between the mail and the note of it, it is sent once more rather than never.
//! Fails: never; a mail that cannot be sent now is tried again, one that is refused is a log line.

mod mail;

use crate::activity::{Key, Owner};
use crate::observe::events;
use crate::queue::{Queue, StorageError, Untold};
use lettre::{Address, message::Mailbox};
use mail::{Item, NotSent};
use serde::Deserialize;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Held activities read at once.
const AT_ONCE: usize = 500;

/// Pause after a mail that could not be sent.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// How long new ones are gathered, so that a backend that refuses everything makes no storm of mail.
const GATHER: Duration = Duration::from_secs(2);

/// Begin of our Message-IDs, by which a notice that came back to us is known.
const MESSAGE_ID: &str = "activity-milter-held-";

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
        match text.split_once(':') {
            None if text == "sendmail" => Ok(Self::Sendmail("/usr/sbin/sendmail".into())),
            Some(("sendmail", path)) if path.starts_with('/') => Ok(Self::Sendmail(path.into())),
            Some(("smtp", place)) => {
                let (host, port) = place.rsplit_once(':').ok_or_else(wrong)?;
                match port.parse() {
                    Ok(port) if !host.is_empty() => Ok(Self::Smtp(host.to_owned(), port)),
                    _ => Err(wrong()),
                }
            }
            _ => Err(wrong()),
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
    let stopped = stop.clone();
    let work = async {
        loop {
            let pause = match tell(queue.as_ref(), &settings).await {
                Ok(true) => Duration::ZERO,
                Ok(false) => {
                    queue.newly_held().await;
                    GATHER
                }
                Err(error) => {
                    events::notice_not_sent(&error);
                    RETRY_AFTER
                }
            };
            tokio::time::sleep(pause).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = stopped.cancelled() => {}
    }
}

/// Tells of the next ones; true if there may be more.
async fn tell(queue: &dyn Queue, settings: &Settings) -> Result<bool, String> {
    let storage = |error: StorageError| error.to_string();
    let untold = queue.untold(None, AT_ONCE).await.map_err(storage)?;
    let more = !untold.is_empty();
    let mut by_recipient: BTreeMap<Address, Vec<Item>> = BTreeMap::new();
    let mut told = Vec::new();
    for one in untold {
        match addressed(settings, &one) {
            Ok(Some((to, item))) => by_recipient.entry(to).or_default().push(item),
            Ok(None) => told.push(one.id),
            Err(error) => {
                events::notice_not_sent(&error);
                told.push(one.id);
            }
        }
    }
    let mut later = None;
    for (to, items) in by_recipient {
        match mail::send(settings, mail::PATIENCE, &to, &items).await {
            Ok(()) => events::notice_sent(items.len()),
            Err(NotSent::Refused(reason)) => events::notice_not_sent(&reason),
            Err(NotSent::Later(reason) | NotSent::Broke(reason) | NotSent::Down(reason)) => {
                later = Some(reason);
                continue;
            }
        }
        told.extend(items.iter().map(|item| item.id));
    }
    queue.told(told).await.map_err(storage)?;
    later.map_or(Ok(more), Err)
}

/// Whom to tell of an activity; nobody of a notice of ours.
fn addressed(settings: &Settings, untold: &Untold) -> Result<Option<(Address, Item)>, String> {
    let Untold { id, activity, reason } = untold;
    let brief: Brief = serde_json::from_str(activity)
        .map_err(|error| format!("the activity of row {id} cannot be read: {error}"))?;
    if brief.message_id.is_some_and(|id| id.starts_with(MESSAGE_ID)) {
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
        for bad in ["", "smtp", "smtp:host", "smtp::25", "smtp:host:x", "sendmail:opt", "uucp:x"] {
            assert!(bad.parse::<By>().unwrap_err().contains("is no way for mail"), "{bad}");
        }
    }
}
