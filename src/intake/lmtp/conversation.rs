//! One LMTP connection: commands in, replies out. It translates and counts; the session decides.

use super::wire::{Content, Gone, IDLE, Line, Wire};
use crate::activity::{Activity, Key};
use crate::courier::Desk;
use crate::intake::{
    Client, Concluded, END_TIME, Fault, Live, Recall, Session,
    places::{At, Place, Why},
    record,
};
use crate::mail::{Address, Intake, parse_path};
use crate::observe::{Promise, events, metrics::OpenSession};
use crate::rules::{Discard, Reason, Reply, Target};
use smtp_proto::{Error, MAIL_BODY_7BIT, MAIL_BODY_8BITMIME, MAIL_SMTPUTF8, MailFrom, RcptTo, Request};
use std::{borrow::Cow, ffi::CString, sync::Arc};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// Our name in greetings. Postfix shows its own name for us in its log, and knows the socket.
const NAME: &str = "localhost";

/// Errors after which we hang up, as Postfix's `smtpd_hard_error_limit`.
const MAX_ERRORS: u32 = 20;

/// What of XFORWARD is worth being asked for.
const XFORWARD: &str = "XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE";

/// Where the conversation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connected,
    Greeted,
    /// After MAIL.
    Transaction,
}

/// What Postfix says about the message's way before it came to us.
#[derive(Clone, Debug, Default)]
struct Forwarded {
    client: Option<String>,
    /// `SOURCE=LOCAL`.
    is_local: bool,
    helo: Option<String>,
    queue_id: Option<String>,
}

pub(super) struct Conversation<S> {
    wire: Wire<S>,
    place: Arc<Place>,
    session: Session,
    desk: Desk,
    stage: Stage,
    forwarded: Forwarded,
    /// The envelope sender of the last MAIL, for log lines about what the session has done with; empty if there is none.
    sender: String,
    /// Recipients answered 250, in the order of RCPT: each gets a reply after the final dot (RFC 2033, section 4.2).
    recipients: usize,
    errors: u32,
    _open: OpenSession,
}

/// Whether the connection goes on.
#[derive(PartialEq, Eq)]
enum Next {
    Command,
    HangUp,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conversation<S> {
    pub(super) fn new(stream: S, place: Arc<Place>, live: Live, desk: Desk, stop: CancellationToken) -> Self {
        Self {
            wire: Wire::new(stream, stop, place.away()),
            place,
            session: Session::new(live),
            desk,
            stage: Stage::Connected,
            forwarded: Forwarded::default(),
            sender: String::new(),
            recipients: 0,
            errors: 0,
            _open: OpenSession::new("lmtp"),
        }
    }

    pub(super) async fn run(mut self) {
        self.wire.reply(&format!("220 {NAME} LMTP activity-milter"));
        let farewell = match self.converse().await {
            Ok(()) => None,
            Err(Gone::Closed) => return,
            Err(Gone::Idle) => Some(format!("421 4.4.2 {NAME}: nothing came for {} s", IDLE.as_secs())),
            Err(Gone::SentAway) if self.place.why() == Some(Why::Slow) => {
                Some(format!("421 4.4.2 {NAME}: the message comes too slowly (message.patience)"))
            }
            Err(Gone::SentAway) => Some(format!("421 4.3.2 {NAME}: others need the connection [busy]")),
            Err(Gone::Stopping) => {
                Some(format!("421 4.3.2 {NAME}: the service is restarting [shutting-down]"))
            }
        };
        if let Some(farewell) = farewell {
            self.wire.reply(&farewell);
        }
        let _ = self.wire.flush().await;
    }

    async fn converse(&mut self) -> Result<(), Gone> {
        loop {
            let next = match self.wire.line().await? {
                Line::Command(line) => self.command(line).await?,
                Line::Malformed => {
                    self.wrong("500 5.5.2 a command is one line that ends in CRLF, without NUL")
                }
                Line::TooLong => self.wrong("500 5.5.2 the line is too long"),
            };
            if next == Next::HangUp {
                return Ok(());
            }
            if self.errors >= MAX_ERRORS {
                self.wire.reply("421 4.7.0 too many errors");
                return Ok(());
            }
        }
    }

    async fn command(&mut self, mut line: Vec<u8>) -> Result<Next, Gone> {
        if line.get(..9).is_some_and(|verb| verb.eq_ignore_ascii_case(b"XFORWARD ")) {
            return Ok(self.xforward(&line[9..]));
        }
        line.push(b'\n');
        // An address that only the parser of commands dislikes still gets the reply of the table.
        match Request::parse(&mut line.iter()) {
            Ok(Request::Lhlo { .. }) => Ok(self.hello()),
            Ok(Request::Ehlo { .. } | Request::Helo { .. }) => {
                Ok(self.wrong("500 5.5.1 this is LMTP (RFC 2033): say LHLO"))
            }
            Ok(Request::Mail { from }) => Ok(self.mail(&line, &from)),
            Err(Error::InvalidSenderAddress) => Ok(self.mail(&line, &MailFrom::default())),
            Ok(Request::Rcpt { to }) => Ok(self.rcpt(&line, &to).await),
            Err(Error::InvalidRecipientAddress) => {
                Ok(self.rcpt(&line, &recipient_of(Cow::Borrowed(""))).await)
            }
            Ok(Request::Data) => self.data().await,
            Ok(Request::Rset) => {
                self.reset();
                Ok(self.say("250 2.0.0 reset"))
            }
            Ok(Request::Noop { .. }) => Ok(self.say("250 2.0.0 ok")),
            Ok(Request::Vrfy { .. }) => Ok(self.say("252 2.5.0 send mail to find out")),
            Ok(Request::Help { .. }) => {
                Ok(self.say("214 2.0.0 LMTP: LHLO MAIL RCPT DATA RSET NOOP VRFY QUIT XFORWARD"))
            }
            Ok(Request::Quit) => {
                self.wire.reply("221 2.0.0 bye");
                Ok(Next::HangUp)
            }
            Ok(Request::Bdat { .. } | Request::Burl { .. }) => {
                // What follows would be read as commands.
                self.wire.reply("502 5.5.1 CHUNKING is not offered");
                Ok(Next::HangUp)
            }
            Ok(_) => Ok(self.wrong("502 5.5.1 not offered")),
            Err(Error::SyntaxError { syntax }) => Ok(self.wrong(&format!("501 5.5.4 write {syntax}"))),
            Err(Error::InvalidParameter { param }) => {
                Ok(self.wrong(&format!("501 5.5.4 {param}: the value cannot be read")))
            }
            Err(Error::UnsupportedParameter { .. }) => Ok(self.wrong("555 5.5.4 a parameter is not offered")),
            Err(_) => Ok(self.wrong("500 5.5.2 unknown command")),
        }
    }

    fn say(&mut self, reply: &str) -> Next {
        self.wire.reply(reply);
        Next::Command
    }

    fn wrong(&mut self, reply: &str) -> Next {
        self.errors += 1;
        self.say(reply)
    }

    fn refuse(&mut self, reply: &Reply) -> Next {
        // A reply's lines are joined by LF.
        for line in reply.to_string().lines() {
            self.wire.reply(line);
        }
        Next::Command
    }

    fn hello(&mut self) -> Next {
        self.reset();
        self.stage = Stage::Greeted;
        let size = self.session.service().policy.max_size;
        for extension in [NAME, "PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", XFORWARD] {
            self.wire.reply(&format!("250-{extension}"));
        }
        self.say(&format!("250 SIZE {size}"))
    }

    fn reset(&mut self) {
        self.session.abort();
        self.place.goes_to(At::Rest);
        self.recipients = 0;
        if self.stage == Stage::Transaction {
            self.stage = Stage::Greeted;
            // Postfix says it anew for each message.
            self.forwarded = Forwarded::default();
        }
    }

    /// Postfix's XFORWARD: `name=value` with values in xtext (RFC 3461, section 4).
    fn xforward(&mut self, attributes: &[u8]) -> Next {
        if self.stage != Stage::Greeted {
            return self.wrong("503 5.5.1 XFORWARD comes between LHLO and MAIL");
        }
        for attribute in attributes.split(|&b| b == b' ').filter(|a| !a.is_empty()) {
            let Some(at) = attribute.iter().position(|&b| b == b'=') else {
                return self.wrong("501 5.5.4 write XFORWARD name=value");
            };
            let value = decode_xtext(&attribute[at + 1..]);
            let value = value.filter(|v| !v.eq_ignore_ascii_case("[UNAVAILABLE]") && !v.is_empty());
            match attribute[..at].to_ascii_uppercase().as_slice() {
                b"ADDR" => self.forwarded.client = value.map(|v| v.trim_start_matches("IPV6:").to_owned()),
                b"SOURCE" => {
                    self.forwarded.is_local = value.is_some_and(|v| v.eq_ignore_ascii_case("LOCAL"));
                }
                b"HELO" => self.forwarded.helo = value,
                b"IDENT" => self.forwarded.queue_id = value,
                _ => {}
            }
        }
        self.say("250 2.0.0 ok")
    }

    fn mail(&mut self, line: &[u8], from: &MailFrom<Cow<'_, str>>) -> Next {
        match self.stage {
            Stage::Connected => return self.wrong("503 5.5.1 say LHLO first"),
            Stage::Transaction => return self.wrong("503 5.5.1 nested MAIL"),
            Stage::Greeted => {}
        }
        let flags = from.flags & (MAIL_BODY_7BIT | MAIL_BODY_8BITMIME | MAIL_SMTPUTF8);
        let known = MailFrom { address: from.address.clone(), size: from.size, flags, ..MailFrom::default() };
        if known != *from {
            return self.wrong("555 5.5.4 a parameter is not offered");
        }
        let sender = parse_path(path_in(line)).ok().flatten();
        self.sender = sender.as_ref().map(Address::to_string).unwrap_or_default();
        let service = self.session.service();
        if from.size as u64 > service.policy.max_size {
            let reply = service.texts.reply(Reason::TooLarge, None);
            let queue_id = self.forwarded.queue_id.as_deref().unwrap_or_default();
            // Nothing more will be known of it: its head may name anybody.
            let sender = Some(self.sender.as_str()).filter(|_| service.policy.tenants.never_log.is_empty());
            let who = events::Who { queue_id, sender, door: Some("lmtp"), ..events::Who::default() };
            events::refused(&who, "mail", &reply);
            self.forwarded = Forwarded::default();
            return self.refuse(&reply);
        }
        self.session.mail(path_in(line), Intake::Lmtp);
        self.session.set_queue_id(self.forwarded.queue_id.clone());
        self.stage = Stage::Transaction;
        self.place.goes_to(At::Envelope);
        self.say("250 2.1.0 ok")
    }

    async fn rcpt(&mut self, line: &[u8], to: &RcptTo<Cow<'_, str>>) -> Next {
        if self.stage != Stage::Transaction {
            return self.wrong("503 5.5.1 say MAIL first");
        }
        if *to != recipient_of(to.address.clone()) {
            return self.wrong("555 5.5.4 a parameter is not offered");
        }
        // Lines with NUL do not come this far.
        let path = CString::new(path_in(line)).unwrap_or_default();
        let Forwarded { client, is_local, helo, .. } = &self.forwarded;
        let client =
            || Client { address: client.clone(), is_local: *is_local, helo: helo.clone(), login: None };
        match self.session.rcpt(&path, client).await {
            Ok(()) => {
                self.recipients += 1;
                self.say("250 2.1.5 ok")
            }
            Err(reply) => self.refuse(&reply),
        }
    }

    async fn data(&mut self) -> Result<Next, Gone> {
        if self.recipients == 0 {
            return Ok(self.wrong("503 5.5.1 no valid recipients"));
        }
        let targets: Vec<Target> = self.session.targets().cloned().collect();
        let started = self.session.data();
        self.wire.reply("354 end the message with a dot on a line of its own");
        let mut message = Message { failed: started.err(), ..Message::default() };
        self.place.goes_to(At::Content);
        self.receive(&mut message).await?;
        self.place.has_done_something();
        let bare = message.bare;
        let answers = self.conclude(message, &targets).await;
        if answers.len() != self.recipients {
            let seen = format_args!("{} answers for {} recipients", answers.len(), self.recipients);
            events::broken(Promise::Answers, "", &seen);
        }
        for answer in answers {
            match answer {
                Ok(Taken::Recorded(key)) => {
                    // Postfix logs this text beside its queue id; the key leads on to our own log.
                    self.wire.reply(&format!("250 2.0.0 recorded as {key}"));
                }
                Ok(Taken::Discarded(why)) => {
                    self.wire.reply(&format!("250 2.0.0 discarded [{}]", why.as_str()));
                }
                Err(reply) => {
                    self.refuse(&reply);
                }
            }
        }
        if bare {
            // Whoever sends such a line end may mean what follows for a message of its own.
            return Ok(Next::HangUp);
        }
        self.reset();
        Ok(Next::Command)
    }

    /// Reads the content into the session. Once it is refused, the rest is read and thrown away.
    async fn receive(&mut self, message: &mut Message) -> Result<(), Gone> {
        let mut content = Content::new();
        loop {
            let end = self.wire.content(&mut content).await?;
            let piece = content.take();
            if content.bare && !message.bare {
                message.bare = true;
                self.session.abort();
            }
            if message.failed.is_none() && !message.bare {
                self.take(message, &piece).await;
            }
            if end {
                break;
            }
        }
        if message.failed.is_none() && !message.bare && message.in_head {
            self.end_of_header(message).await;
        }
        if message.failed.is_none() && !message.bare {
            let ended = self.session.end_of_body().await;
            self.note(message, ended);
        }
        Ok(())
    }

    async fn take(&mut self, message: &mut Message, piece: &[u8]) {
        let mut rest = piece;
        while message.in_head && message.failed.is_none() && !rest.is_empty() {
            if message.at_line_start && rest.starts_with(b"\r\n") {
                rest = &rest[2..];
                self.end_of_header(message).await;
                break;
            }
            let end = rest.iter().position(|&b| b == b'\n').map_or(rest.len(), |at| at + 1);
            let (line, after) = rest.split_at(end);
            message.at_line_start = line.ends_with(b"\n");
            self.session.raw_header(line);
            rest = after;
        }
        if message.failed.is_none() && !rest.is_empty() {
            self.session.body(rest).await;
        }
    }

    async fn end_of_header(&mut self, message: &mut Message) {
        message.in_head = false;
        let ended = self.session.end_of_header().await.map(drop);
        self.note(message, ended);
    }

    /// What the rules have decided so far.
    fn note(&self, message: &mut Message, decided: Result<(), Reply>) {
        match decided {
            Ok(()) => {
                message.refusals = self.session.refusals();
                message.discards = self.session.discards();
            }
            Err(reply) => message.failed = Some(reply),
        }
    }

    /// What each recipient is told.
    async fn conclude(&mut self, message: Message, targets: &[Target]) -> Vec<Result<Taken, Reply>> {
        let service = Arc::clone(self.session.service());
        let texts = &service.texts;
        let about = |reason, target: &Target| texts.reply(reason, Some(&target.address));
        let outcome = match (message.bare, message.failed) {
            (true, _) => {
                let reply = texts.reply(Reason::BareLineEnd, targets.first().map(|t| &t.address));
                events::refused(&self.who(targets.first(), None), "body", &reply);
                Err(reply.reason)
            }
            (false, Some(reply)) => Err(reply.reason),
            (false, None) => match tokio::time::timeout(END_TIME, self.store()).await {
                Ok(stored) => stored,
                Err(_elapsed) => Err(self.session.fault("end-of-message", &Fault::Late).reason),
            },
        };
        let (outcome, known) = match outcome {
            Ok((activities, known)) => (Ok(activities), known),
            Err(reason) => (Err(reason), Vec::new()),
        };
        // Postfix has the recipients of one message in one order, and so have we.
        let known = |index: usize| known.iter().find(|recall| recall.target == index);
        // What was decided so far depends on how the bytes came in pieces: a bare line end is the answer to all.
        let refusal =
            |index: usize| message.refusals.get(index).and_then(Option::as_ref).filter(|_| !message.bare);
        let discard = |index: usize| message.discards.get(index).copied().flatten().filter(|_| !message.bare);
        targets
            .iter()
            .enumerate()
            .map(|(index, target)| match (refusal(index), &outcome) {
                // Whatever becomes of the others' activities.
                _ if let Some(why) = discard(index) => Ok(Taken::Discarded(why)),
                (Some(_), Ok(_)) if let Some(recall) = known(index) => {
                    Ok(Taken::Recorded(recall.key.clone()))
                }
                // Whether the milter has recorded it could not be found out, so Postfix asks again.
                (Some(reply), Err(reason)) if reply.reason.may_be_known() && reason.code() < 500 => {
                    Err(about(*reason, target))
                }
                (Some(reply), _) => {
                    if reply.reason.may_be_known() {
                        // Only now is it known that the milter has not recorded the e-mail.
                        self.log_refusal(target, reply);
                    }
                    Err(reply.clone())
                }
                (None, Err(reason)) => Err(about(*reason, target)),
                (None, Ok(activities)) => match activity_of(activities, target) {
                    None => Err(about(Reason::InternalError, target)),
                    Some((_, Some(reply))) => Err(reply.clone()),
                    Some((activity, None)) => Ok(Taken::Recorded(activity.key.clone())),
                },
            })
            .collect()
    }

    /// Records the message; its activities, each with its refusal if there is one, and which of the recipients without a
    /// user have got the e-mail already.
    async fn store(&mut self) -> Result<Stored, Reason> {
        let mut end = self.session.end().await.map_err(|reply| reply.reason)?;
        let activities = end.pending.as_ref().map_or_else(Vec::new, |p| p.parcel.activities.clone());
        let recalls = std::mem::take(&mut end.recalls);
        let known = recall(&self.desk, recalls).await;
        let known = known.map_err(|fault| self.session.fault("end-of-message", &fault).reason)?;
        let Concluded { answer, mut refused } = record(self.session.service(), &self.desk, end).await;
        if let Err(reply) = answer
            && refused.is_empty()
        {
            return Err(reply.reason);
        }
        let refusal = |key: &Key| {
            let at = refused.iter().position(|(refused, _)| refused == key)?;
            Some(refused.swap_remove(at).1)
        };
        let refusals: Vec<_> = activities.iter().map(|activity| &activity.key).map(refusal).collect();
        Ok((activities.into_iter().zip(refusals).collect(), known))
    }

    fn log_refusal(&self, target: &Target, reply: &Reply) {
        let recipient = target.address.to_string();
        events::refused(&self.who(Some(target), Some(&recipient)), "end-of-message", reply);
    }

    /// What the log says after the end of a message.
    fn who<'a>(&'a self, target: Option<&'a Target>, recipient: Option<&'a str>) -> events::Who<'a> {
        let last = self.session.last();
        if last.is_private {
            return last.who("lmtp");
        }
        events::Who {
            queue_id: self.forwarded.queue_id.as_deref().unwrap_or_default(),
            tenant: target.map(|target| target.tenant.id.as_str()),
            sender: Some(&self.sender),
            recipient,
            transaction: last.transaction,
            door: Some("lmtp"),
            client: self.forwarded.client.as_deref(),
            message_id: last.message_id.as_deref(),
            ..events::Who::default()
        }
    }
}

/// Activities with their refusals, and recipients whose e-mail is known.
type Stored = (Vec<(Activity, Option<Reply>)>, Vec<Recall>);

/// Those of the keys that the queue knows: the milter saw the same e-mail, and who had logged in there. Where there is no
/// queue, nothing is known.
async fn recall(desk: &Desk, recalls: Vec<Recall>) -> Result<Vec<Recall>, Fault> {
    let Desk::Queue(queue) = desk else { return Ok(Vec::new()) };
    if recalls.is_empty() {
        return Ok(recalls);
    }
    let keys = recalls.iter().map(|recall| recall.key.clone()).collect();
    let known = queue.known(keys).await.map_err(|error| Fault::Internal(error.to_string()))?;
    Ok(recalls.into_iter().zip(known).filter_map(|(recall, known)| known.then_some(recall)).collect())
}

/// What a recipient's 250 stands for.
enum Taken {
    Recorded(Key),
    Discarded(Discard),
}

/// A message being received.
struct Message {
    in_head: bool,
    at_line_start: bool,
    /// Bare line ends were seen.
    bare: bool,
    /// Refused as a whole.
    failed: Option<Reply>,
    /// Refused for one recipient, by the index of the recipient.
    refusals: Vec<Option<Reply>>,
    /// The same of those for whom nothing becomes of it.
    discards: Vec<Option<Discard>>,
}

impl Default for Message {
    fn default() -> Self {
        Self {
            in_head: true,
            at_line_start: true,
            bare: false,
            failed: None,
            refusals: Vec::new(),
            discards: Vec::new(),
        }
    }
}

/// The activity a recipient came to; the bare address shares its tenant's first one.
fn activity_of<'a>(
    activities: &'a [(Activity, Option<Reply>)],
    target: &Target,
) -> Option<&'a (Activity, Option<Reply>)> {
    let of_tenant = || activities.iter().filter(|(a, _)| a.tenant.id == target.tenant.id);
    let project = target.project.as_ref().map(|p| &p.id);
    let exact = of_tenant().find(|(a, _)| a.project.as_ref().map(|p| &p.id) == project);
    exact.or_else(|| of_tenant().next())
}

fn recipient_of(address: Cow<'_, str>) -> RcptTo<Cow<'_, str>> {
    RcptTo { address, orcpt: None, rrvs: 0, flags: 0 }
}

/// The path of MAIL or RCPT with its brackets, as it was sent: the command parser's own form has lost its quotes, and
/// there is one parser for addresses, in `mail`.
fn path_in(line: &[u8]) -> &[u8] {
    let Some(start) = line.iter().position(|&b| b == b'<') else { return b"" };
    let (mut quoted, mut escaped) = (false, false);
    for (index, &b) in line[start..].iter().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'>' if !quoted => return &line[start..=start + index],
            _ => {}
        }
    }
    line[start..].trim_ascii_end()
}

/// Undoes xtext; none for what is not UTF-8 or not printable.
fn decode_xtext(text: &[u8]) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        match (first, after) {
            (b'+', [high, low, tail @ ..]) => {
                let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
                decoded.push(digit(high)? * 16 + digit(low)?);
                rest = tail;
            }
            _ => {
                decoded.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(decoded).ok().filter(|text| !text.chars().any(char::is_control))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cut_out_as_they_were_sent() {
        for (line, path) in [
            ("RCPT TO:<a@x.test>\n", "<a@x.test>"),
            ("rcpt to: <\"a>b\\\"\"@x.test> NOTIFY=NEVER\n", "<\"a>b\\\"\"@x.test>"),
            ("MAIL FROM:<>\n", "<>"),
            ("MAIL FROM:<a@x.test\n", "<a@x.test"),
            ("MAIL FROM: a@x.test\n", ""),
        ] {
            assert_eq!(path_in(line.as_bytes()), path.as_bytes(), "{line}");
        }
    }

    #[test]
    fn xtext_is_undone() {
        assert_eq!(decode_xtext(b"a+2Bb+20c").as_deref(), Some("a+b c"));
        for bad in [&b"a+0D+0A"[..], b"+FF", b"+zz"] {
            assert_eq!(decode_xtext(bad), None, "{}", bad.escape_ascii());
        }
        assert_eq!(decode_xtext(b"a+2").as_deref(), Some("a+2"));
    }
}
