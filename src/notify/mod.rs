//! Tells somebody that activities are held: the owner, or a postmaster, by mail through the local MTA.
//!
//! In: the queue's held activities. Out: one mail for each recipient that lists what is new, each activity once.
//! Promise: a notice never bounces (null sender), never answers itself, and never makes an activity of its own that is
//! told of again. If we stop between the mail and the note of it, it is sent once more rather than never.
//! Fails: never; a mail that cannot be sent now is tried again, one that is refused is a log line.

use crate::activity::{Key, Owner, one_line};
use crate::observe::events;
use crate::queue::{Queue, StorageError, Untold};
use lettre::{
    Address, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    address::Envelope,
    message::{
        Mailbox,
        header::{ContentType, HeaderName, HeaderValue},
    },
};
use serde::Deserialize;
use std::{collections::BTreeMap, fmt::Write as _, path::Path, process::Stdio, sync::Arc, time::Duration};
use tokio::{io::AsyncWriteExt, process::Command};
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

/// Why a mail was not sent.
#[derive(Debug, thiserror::Error)]
enum NotSent {
    /// It never will be.
    #[error("{0}")]
    Refused(String),
    /// Perhaps later.
    #[error("{0}")]
    Later(String),
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
    let mut by_recipient: BTreeMap<String, Vec<(Untold, Brief)>> = BTreeMap::new();
    let mut told = Vec::new();
    for item in untold {
        match serde_json::from_str::<Brief>(&item.activity) {
            Ok(activity) if !is_notice(&activity) => {
                let to = match &settings.to {
                    To::Owner => activity.owner.address.clone(),
                    To::Address(address) => address.to_string(),
                };
                by_recipient.entry(to).or_default().push((item, activity));
            }
            // A damaged row is in the log already.
            _ => told.push(item.id),
        }
    }
    let mut later = None;
    for (to, items) in by_recipient {
        let sent = tokio::time::timeout(RETRY_AFTER, send(settings, &to, &items)).await;
        let sent = sent.unwrap_or_else(|_| Err(NotSent::Later("the local MTA does not answer".to_owned())));
        match sent {
            Ok(()) => events::notice_sent(items.len()),
            Err(NotSent::Refused(reason)) => events::notice_not_sent(&reason),
            Err(NotSent::Later(reason)) => {
                later = Some(reason);
                continue;
            }
        }
        told.extend(items.iter().map(|(item, _)| item.id));
    }
    queue.told(told).await.map_err(storage)?;
    later.map_or(Ok(more), Err)
}

fn is_notice(activity: &Brief) -> bool {
    activity.message_id.as_ref().is_some_and(|id| id.starts_with(MESSAGE_ID))
}

async fn send(settings: &Settings, to: &str, items: &[(Untold, Brief)]) -> Result<(), NotSent> {
    let refused = |error: &dyn std::fmt::Display| NotSent::Refused(error.to_string());
    let to: Address = to.parse().map_err(|error: lettre::address::AddressError| refused(&error))?;
    let mail = mail(settings, &to, items).map_err(|error| refused(&error))?;
    // A bounce of a notice would come to nobody who needs it.
    let envelope = Envelope::new(None, vec![to]).map_err(|error| refused(&error))?;
    match &settings.by {
        By::Smtp(host, port) => {
            let transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(host).port(*port).build();
            let sent = transport.send_raw(&envelope, &mail).await;
            sent.map(drop).map_err(|error| match error.is_permanent() {
                true => refused(&error),
                false => NotSent::Later(error.to_string()),
            })
        }
        By::Sendmail(path) => sendmail(path, &envelope, &mail).await,
    }
}

/// Runs sendmail(1). lettre's own transport cannot give the null sender.
async fn sendmail(path: &Path, envelope: &Envelope, mail: &[u8]) -> Result<(), NotSent> {
    let later = |error: &dyn std::fmt::Display| NotSent::Later(format!("{}: {error}", path.display()));
    let mut child = Command::new(path)
        .args(["-i", "-f", "", "--"])
        .args(envelope.to().iter().map(Address::to_string))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| later(&error))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(mail).await.map_err(|error| later(&error))?;
    }
    let status = child.wait().await.map_err(|error| later(&error))?;
    if status.success() { Ok(()) } else { Err(later(&status)) }
}

fn mail(
    settings: &Settings,
    to: &Address,
    items: &[(Untold, Brief)],
) -> Result<Vec<u8>, lettre::error::Error> {
    let mut list = String::new();
    for (item, activity) in items {
        let (subject, reason) = (one_line(&activity.subject), one_line(&item.reason));
        let _ = write!(list, "* {subject}\n  sent {}, {}\n  {reason}\n", activity.sent_at, activity.key);
    }
    let key = items.first().map_or("", |(_, activity)| activity.key.as_str()).replace(':', "-");
    let header = |name, value: &str| HeaderValue::new(HeaderName::new_from_ascii_str(name), value.to_owned());
    let mail = Message::builder()
        .from(settings.from.clone())
        .to(Mailbox::new(None, to.clone()))
        .subject(settings.subject.clone())
        .message_id(Some(format!("<{MESSAGE_ID}{key}@{}>", settings.from.email.domain())))
        // RFC 3834, section 5: whoever answers mail by itself leaves this alone.
        .raw_header(header("Auto-Submitted", "auto-generated"))
        .header(ContentType::TEXT_PLAIN)
        .envelope(Envelope::new(None, vec![to.clone()])?)
        .body(settings.text.replace("{list}", &list))?;
    Ok(mail.formatted())
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
