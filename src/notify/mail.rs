//! One notice: its words, and its way to the local MTA.
//!
//! Promise: a line has at most 998 octets and no control characters, whatever an e-mail or a backend says (RFC 5322,
//! section 2.1.1). Nobody is waited for longer than [`PATIENCE`].
//! Fails: by whose trouble it is, see [`NotSent`].

use super::{By, Settings};
use crate::activity::{Key, NOTICE_ID, one_line};
use lettre::{
    Address, Message,
    address::Envelope,
    message::{
        Mailbox,
        header::{ContentType, HeaderName, HeaderValue},
    },
    transport::smtp::{
        self,
        client::AsyncSmtpConnection,
        commands::{Data, Mail, Rcpt},
        extension::{ClientId, Extension, MailBodyParameter, MailParameter},
    },
};
use std::{fmt::Write as _, path::Path, process::Stdio, time::Duration};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// Longest time for one mail.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// The MTA may take so many times as long once it has all of a mail (RFC 5321, section 4.5.3.2.6: ten minutes).
const END_TIMES: u32 = 10;

/// For QUIT, which changes nothing any more.
const FAREWELL: Duration = Duration::from_secs(1);

/// Characters of a subject, and of a reason. Five hundred of each are a mail that any MTA takes.
const SHOWN: usize = 250;

/// A held activity as a notice lists it.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) id: i64,
    key: Key,
    subject: String,
    sent_at: String,
    reason: String,
}

/// Why a mail was not sent.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotSent {
    /// It never will be.
    #[error("{0}")]
    Refused(String),
    /// Perhaps later, and others perhaps now.
    #[error("{0}")]
    Later(String),
    /// The way broke off under this mail, which may be to blame: no answer in time, the connection lost.
    #[error("{0}")]
    Broke(String),
    /// There is no way for anybody now.
    #[error("{0}")]
    Down(String),
}

impl Item {
    /// Takes over as much as is shown.
    pub(super) fn new(id: i64, key: &Key, subject: &str, sent_at: &str, reason: &str) -> Self {
        let (subject, sent_at, reason) = (cut(subject), cut(sent_at), cut(reason));
        // Whatever was stored as a key, its digest is a key.
        Self { id, key: Key::from_bytes(key.bytes()), subject, sent_at, reason }
    }
}

/// The beginning of a text, on one line.
fn cut(text: &str) -> String {
    // What follows the cut need not be made one line.
    let end = text.char_indices().nth(SHOWN + 1).map_or(text.len(), |(end, _)| end);
    let line = one_line(&text[..end]);
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Sends one notice.
pub(super) async fn send(
    settings: &Settings,
    patience: Duration,
    to: &Address,
    items: &[Item],
) -> Result<(), NotSent> {
    let mail = worded(settings, to, items).map_err(|error| NotSent::Refused(error.to_string()))?;
    match &settings.by {
        By::Smtp(host, port) => smtp((host, *port), patience, to, &mail).await,
        By::Sendmail(path) => sendmail(path, patience, to, &mail).await,
    }
}

/// Why there is no connection, without the libraries' names for their own parts.
fn unconnected(place: (&str, u16), error: &dyn std::error::Error) -> String {
    let first = std::iter::successors(Some(error), |error| error.source()).last().map(ToString::to_string);
    let why = first.unwrap_or_default();
    let why = why.split(" (os error ").next().unwrap_or_default();
    format!("no connection to {}:{}: {}", place.0, place.1, one_line(why))
}

/// Sends over SMTP. lettre's own transport does not say whom a 4xx is about.
async fn smtp(place: (&str, u16), patience: Duration, to: &Address, mail: &[u8]) -> Result<(), NotSent> {
    let attempt = async {
        let connection =
            AsyncSmtpConnection::connect_tokio1(place, None, &ClientId::default(), None, None).await;
        let mut connection = connection.map_err(|error| NotSent::Down(unconnected(place, &error)))?;
        let sent = dialogue(&mut connection, to, mail).await;
        Ok((connection, sent))
    };
    let silent = |_| NotSent::Broke(format!("{}:{} does not answer", place.0, place.1));
    let (mut connection, ready) = timeout(patience, attempt).await.map_err(silent)??;
    let sent = match ready {
        // RFC 5321, section 4.5.3.2.6: who gives up while the server works on it sends it once more.
        Ok(()) => {
            let taken = timeout(patience * END_TIMES, connection.message(mail)).await.map_err(silent)?;
            taken.map(drop).map_err(of_recipient)
        }
        Err(error) => Err(error),
    };
    let _ = timeout(FAREWELL, connection.quit()).await;
    sent
}

async fn dialogue(connection: &mut AsyncSmtpConnection, to: &Address, mail: &[u8]) -> Result<(), NotSent> {
    let mut parameters = Vec::new();
    let is_ascii = <Address as AsRef<str>>::as_ref(to).is_ascii();
    for (needed, extension, parameter) in [
        (!is_ascii, Extension::SmtpUtfEight, MailParameter::SmtpUtfEight),
        (!mail.is_ascii(), Extension::EightBitMime, MailParameter::Body(MailBodyParameter::EightBitMime)),
    ] {
        if needed && !connection.server_info().supports_feature(extension) {
            return Err(NotSent::Refused(format!("the local MTA has no {extension}")));
        }
        parameters.extend(needed.then_some(parameter));
    }
    // A bounce of a notice would come to nobody who needs it. What is answered here is answered to everybody.
    let sender = connection.command(Mail::new(None, parameters)).await;
    sender.map_err(|error| NotSent::Down(error.to_string()))?;
    connection.command(Rcpt::new(to.clone(), Vec::new())).await.map_err(of_recipient)?;
    connection.command(Data).await.map_err(of_recipient)?;
    Ok(())
}

/// Whose trouble an error is once the MTA knows the recipient.
fn of_recipient(error: smtp::Error) -> NotSent {
    let text = error.to_string();
    match error.status().map(u16::from) {
        // RFC 5321, section 3.8: the server closes the connection.
        None | Some(421) => NotSent::Broke(text),
        Some(_) if error.is_permanent() => NotSent::Refused(text),
        Some(_) => NotSent::Later(text),
    }
}

/// Runs sendmail(1). lettre's own transport cannot give the null sender.
async fn sendmail(path: &Path, patience: Duration, to: &Address, mail: &[u8]) -> Result<(), NotSent> {
    let words = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut child = Command::new(path)
        .args(["-i", "-f", "", "--", to.as_ref()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| NotSent::Down(words(&error)))?;
    let endless = |_| NotSent::Broke(words(&"it does not end"));
    let written = match child.stdin.take() {
        Some(mut stdin) => timeout(patience, stdin.write_all(mail)).await.map_err(endless)?,
        None => Ok(()),
    };
    // A program that ends before it has read all says why by its status.
    let status = timeout(patience * END_TIMES, child.wait()).await.map_err(endless)?;
    let status = status.map_err(|error| NotSent::Later(words(&error)))?;
    match (status.success(), written) {
        (true, Ok(())) => Ok(()),
        (true, Err(error)) => Err(NotSent::Later(words(&error))),
        (false, _) => Err(NotSent::Later(words(&status))),
    }
}

fn worded(settings: &Settings, to: &Address, items: &[Item]) -> Result<Vec<u8>, lettre::error::Error> {
    let mut list = String::new();
    for Item { key, subject, sent_at, reason, .. } in items {
        let _ = write!(list, "* {subject}\n  sent {sent_at}, {key}\n  {reason}\n");
    }
    let key = items.first().map_or("", |item| item.key.as_str()).replace(':', "-");
    let header = |name, value: &str| HeaderValue::new(HeaderName::new_from_ascii_str(name), value.to_owned());
    // A line that is too long, or is not ASCII, makes the body quoted-printable or base64.
    let mail = Message::builder()
        .from(settings.from.clone())
        .to(Mailbox::new(None, to.clone()))
        .subject(settings.subject.clone())
        .message_id(Some(format!("<{NOTICE_ID}{key}@{}>", settings.from.email.domain())))
        // RFC 3834, section 5: whoever answers mail by itself leaves this alone.
        .raw_header(header("Auto-Submitted", "auto-generated"))
        .header(ContentType::TEXT_PLAIN)
        .envelope(Envelope::new(None, vec![to.clone()])?)
        .body(settings.text.replace("{list}", &list))?;
    Ok(mail.formatted())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // a panic is the answer of a test

    use super::{
        super::{SUBJECT, TEXT, To},
        *,
    };
    use tokio::{
        io::{AsyncBufReadExt, BufReader},
        net::TcpListener,
    };

    fn settings(by: By) -> Settings {
        let from = "CRM <crm@x.test>".parse().unwrap();
        Settings { to: To::Owner, from, by, subject: SUBJECT.to_owned(), text: TEXT.to_owned() }
    }

    fn item(subject: &str, reason: &str) -> Item {
        Item::new(
            1,
            &Key::from_stored("a\r\nkey: x".to_owned()),
            subject,
            "2026-11-23T18:00:00Z\r\n.\r\n",
            reason,
        )
    }

    #[test]
    fn a_line_has_its_limit_whatever_an_e_mail_says() {
        let long = "x".repeat(200_000);
        let hostile =
            ["a\r\n.\r\nb: c\n\u{7}\0\u{1b}[2J\u{2028}d", &long, &"\u{e4}".repeat(100_000), ".", ""];
        for subject in hostile {
            let items: Vec<Item> = (0..500).map(|_| item(subject, &long)).collect();
            let to = "a@x.test".parse().unwrap();
            let mut settings = settings(By::Smtp(String::new(), 25));
            settings.subject = "of many words ".repeat(200);
            let mail = worded(&settings, &to, &items).unwrap();
            assert!(mail.len() < 2_000_000, "{}", mail.len());
            for line in mail.split_inclusive(|&byte| byte == b'\n') {
                let line = line.strip_suffix(b"\r\n").unwrap_or(line);
                assert!(line.len() <= 998, "{}", line.len());
                assert!(line.iter().all(|byte| matches!(byte, b' '..=b'~')), "{line:?}");
            }
        }
    }

    #[test]
    fn a_notice_lists_what_is_held_each_on_its_lines() {
        let items = [item("Offer", "422"), item(" two\r\nlines\t", &"r".repeat(SHOWN + 1))];
        let mut settings = settings(By::Smtp(String::new(), 25));
        settings.text = "<{list}>".to_owned();
        let mail =
            String::from_utf8(worded(&settings, &"a@x.test".parse().unwrap(), &items).unwrap()).unwrap();
        let text = mail.split_once("\r\n\r\n").unwrap().1.replace("=\r\n", "").replace("=E2=80=A6", "…");
        let key = Key::from_bytes(Key::from_stored("a\r\nkey: x".to_owned()).bytes());
        let line = format!("  sent 2026-11-23T18:00:00Z  ., {key}\r\n");
        let expected =
            format!("<* Offer\r\n{line}  422\r\n* two  lines\r\n{line}  {}…\r\n>", "r".repeat(SHOWN));
        assert_eq!(text, expected);
        assert!(
            mail.contains(&format!("Message-ID: <{NOTICE_ID}{}@x.test>", key.as_str().replace(':', "-")))
        );
    }

    /// What a server says to each line in its turn, from the greeting on; `-`: it hangs up, `?`: it says nothing.
    async fn served(says: &'static [&'static str], to: &str) -> Result<(), NotSent> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            for answer in says {
                match *answer {
                    "-" => return,
                    "?" => std::future::pending().await,
                    answer => stream.write_all(format!("{answer} x\r\n").as_bytes()).await.unwrap(),
                }
                let end = if *answer == "354" { "." } else { "" };
                let mut line = String::new();
                while stream.read_line(&mut line).await.unwrap() > 0 && !line.trim_end().ends_with(end) {
                    line.clear();
                }
            }
        });
        let by = By::Smtp("127.0.0.1".to_owned(), port);
        let patience = Duration::from_millis(500);
        let sent = send(&settings(by), patience, &to.parse().unwrap(), &[item("s", "r")]).await;
        server.abort();
        sent
    }

    #[tokio::test]
    async fn whose_trouble_it_is() {
        type Kind = fn(String) -> NotSent;
        const OK: &str = "250";
        let cases: &[(&'static [&'static str], Option<Kind>)] = &[
            (&["220", OK, OK, OK, "354", OK, "221"], None),
            (&["220", OK, OK, OK, "354", OK, "?"], None),
            (&["220", OK, OK, OK, "354", OK, "-"], None),
            (&["421"], Some(NotSent::Down)),
            (&["554"], Some(NotSent::Down)),
            (&["-"], Some(NotSent::Down)),
            (&["220", "421"], Some(NotSent::Down)),
            (&["220", "502"], Some(NotSent::Down)),
            (&["220", OK, "452"], Some(NotSent::Down)),
            (&["220", OK, "550"], Some(NotSent::Down)),
            (&["220", OK, OK, "450"], Some(NotSent::Later)),
            (&["220", OK, OK, "550"], Some(NotSent::Refused)),
            (&["220", OK, OK, OK, "451"], Some(NotSent::Later)),
            (&["220", OK, OK, OK, "554"], Some(NotSent::Refused)),
            (&["220", OK, OK, OK, "354", "452"], Some(NotSent::Later)),
            (&["220", OK, OK, OK, "354", "552"], Some(NotSent::Refused)),
            (&["220", OK, OK, "421"], Some(NotSent::Broke)),
            (&["220", OK, OK, "-"], Some(NotSent::Broke)),
            (&["220", OK, OK, OK, "354", "-"], Some(NotSent::Broke)),
            (&["?"], Some(NotSent::Broke)),
            (&["220", OK, OK, "?"], Some(NotSent::Broke)),
        ];
        for (says, expected) in cases {
            let kind = |error: &NotSent| std::mem::discriminant(error);
            let found = served(says, "a@x.test").await.err();
            let expected = expected.map(|kind| kind(String::new()));
            assert_eq!(found.as_ref().map(kind), expected.as_ref().map(kind), "{says:?}: {found:?}");
        }
        let found = served(&["220", OK, OK], "\u{e4}@x.test").await;
        assert!(matches!(&found, Err(NotSent::Refused(text)) if text.contains("SMTPUTF8")), "{found:?}");
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let by = By::Smtp("127.0.0.1".to_owned(), closed);
        let found = send(&settings(by), PATIENCE, &"a@x.test".parse().unwrap(), &[item("s", "r")]).await;
        assert!(matches!(found, Err(NotSent::Down(_))), "{found:?}");
    }
}
