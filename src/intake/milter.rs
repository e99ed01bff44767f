//! The milter protocol, versions 2 to 6, by indymilter: callbacks that translate and decide nothing.
//!
//! In: frames from Postfix. Out: a status for each, and the actions DELRCPT and PROGRESS.
//! Old versions (`milter_protocol = 2` or `3`, as recipes for OpenDKIM have it) know no DATA: there the first frame of
//! the header says that the recipients are complete. They name no macros either, so the client comes with CONNECT.
//! Promise: whatever the peer sends gets an answer or a closed connection, never a panic; each stage has a deadline
//! below Postfix's own (`milter_command_timeout` 30 s, `milter_content_timeout` 300 s).
//! Fails: [`run`] ends only when it is told to; faults are 451 and a log line.

use super::{END_TIME, Fault, Listener, Live, Session, Step, record};
use crate::courier::Desk;
use crate::mail::Intake;
use crate::observe::{events, metrics::OpenSession};
use crate::rules::{Reason, Reply};
use bytes::Bytes;
use indymilter::{
    Actions, Callbacks, Config, Context, ContextActions, EomActions, EomContext, MacroStage, Macros,
    NegotiateContext, ProtoOpts, SetErrorReply, SmtpReply, SocketInfo, Status,
};
use std::{
    ffi::{CStr, CString},
    time::Duration,
};

/// How often Postfix is told that we are still at it.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// How long an idle connection is kept: as libmilter and indymilter, above Postfix's own life time of a connection.
const IDLE: Duration = Duration::from_secs(7210);

/// A session as the milter protocol needs it.
struct Connection {
    session: Session,
    /// What was negotiated: where no reply is wanted, none must be given.
    options: ProtoOpts,
    /// Whether this version has DATA; where it has, a header without it is out of order.
    has_data: bool,
    /// The client as CONNECT says it, where no macro does.
    client: Option<String>,
    _open: OpenSession,
}

/// Serves connections until `shutdown` completes. Drain the service before that: the library drops what is between
/// two commands.
/// # Errors
/// None that our [`Listener`] lets through.
pub async fn run(
    listener: Listener,
    max_sessions: usize,
    live: Live,
    desk: Desk,
    shutdown: impl Future,
) -> std::io::Result<()> {
    let callbacks = Callbacks::new()
        .on_negotiate(move |cx, actions, options| {
            Box::pin(std::future::ready(negotiate(cx, actions, options, live.clone())))
        })
        .on_connect(|cx, _, from| Box::pin(std::future::ready(connect(cx, &from))))
        .on_mail(|cx, args| Box::pin(std::future::ready(mail(cx, &args))))
        .on_rcpt(|cx, args| Box::pin(rcpt(cx, args)))
        .on_data(|cx| Box::pin(std::future::ready(data(cx))))
        .on_header(|cx, name, value| Box::pin(std::future::ready(header(cx, &name, &value))))
        .on_eoh(|cx| Box::pin(end_of_header(cx)))
        .on_body(|cx, piece| Box::pin(body(cx, piece)))
        .on_eom(move |cx| Box::pin(end_of_message(cx, desk.clone())))
        .on_abort(|cx| Box::pin(std::future::ready(abort(cx))));
    let config = Config { max_connections: max_sessions, connection_timeout: IDLE, ..Config::default() };
    indymilter::run(listener, callbacks, config, shutdown).await
}

/// Asks for no more than we use: every frame that is not sent, or not answered, is a round trip saved.
fn negotiate(
    cx: &mut NegotiateContext<Connection>,
    actions: Actions,
    offered: ProtoOpts,
    live: Live,
) -> Status {
    let named = actions.contains(Actions::REQUEST_MACROS);
    let told = if named { ProtoOpts::NO_CONNECT } else { ProtoOpts::empty() };
    let skipped = told | ProtoOpts::NO_HELO | ProtoOpts::NO_UNKNOWN;
    let silent = ProtoOpts::NOREPLY_MAIL | ProtoOpts::NOREPLY_HEADER | ProtoOpts::NOREPLY_BODY;
    let options = (skipped | silent | ProtoOpts::SKIP | ProtoOpts::LEADING_SPACE) & offered;
    cx.requested_opts = options;
    cx.requested_actions = (Actions::DELETE_RCPT | Actions::REQUEST_MACROS) & actions;
    if named {
        // Without this list Postfix sends its own, which lacks the client's address at MAIL.
        for (stage, macros) in [
            (MacroStage::Mail, c"i {auth_authen} {client_addr}"),
            (MacroStage::Rcpt, c"i"),
            (MacroStage::Data, c"i"),
            (MacroStage::Eoh, c"i"),
            (MacroStage::Eom, c"i"),
        ] {
            cx.requested_macros.insert(stage, macros.to_owned());
        }
    }
    let session = Session::new(live);
    let has_data = offered.contains(ProtoOpts::NO_DATA);
    let _open = OpenSession::new("milter");
    cx.data = Some(Connection { session, options, has_data, client: None, _open });
    Status::Continue
}

fn connect(cx: &mut Context<Connection>, from: &SocketInfo) -> Status {
    if let (Some(connection), SocketInfo::Inet(address)) = (cx.data.as_mut(), from) {
        connection.client = Some(address.ip().to_string());
    }
    Status::Continue
}

fn mail(cx: &mut Context<Connection>, args: &[CString]) -> Status {
    let Some(connection) = cx.data.as_mut() else {
        return fault(None, "mail", &Fault::NoSession, &mut cx.reply);
    };
    let path = args.first().map_or(&b""[..], |path| path.to_bytes()); // the peer may send none
    connection.session.mail(path, Intake::Milter);
    quietly(connection.options, ProtoOpts::NOREPLY_MAIL)
}

async fn rcpt(cx: &mut Context<Connection>, args: Vec<CString>) -> Status {
    let Some(connection) = cx.data.as_mut() else {
        return fault(None, "rcpt", &Fault::NoSession, &mut cx.reply);
    };
    note_queue_id(&mut connection.session, &cx.macros);
    let (macros, client) = (&cx.macros, &connection.client);
    let who = || Some(who(macros, client.as_deref()));
    let step = connection.session.rcpt_from(args.first().map_or(c"", CString::as_c_str), who).await;
    answer(connection, "rcpt", step, &mut cx.reply)
}

fn data(cx: &mut Context<Connection>) -> Status {
    let Some(connection) = cx.data.as_mut() else {
        return fault(None, "data", &Fault::NoSession, &mut cx.reply);
    };
    let step = recipients_complete(connection, &cx.macros);
    answer(connection, "data", step, &mut cx.reply)
}

/// What DATA means, whether the protocol has that command or not.
fn recipients_complete(connection: &mut Connection, macros: &Macros) -> Result<Step, Fault> {
    note_queue_id(&mut connection.session, macros);
    let step = connection.session.data()?;
    if step == Step::Continue {
        // Not before: nobody asks who sent other people's mail.
        let (client, login) = who(macros, connection.client.as_deref());
        connection.session.set_client(client, login);
    }
    Ok(step)
}

/// The answer to DATA where the protocol lacks it, at the first frame of the header; none if all is well.
fn without_data(cx: &mut Context<Connection>, stage: &'static str) -> Option<Status> {
    let connection = cx.data.as_mut().filter(|c| !c.has_data && c.session.awaits_data())?;
    match recipients_complete(connection, &cx.macros) {
        Ok(Step::Continue) => None,
        step => Some(answer(connection, stage, step, &mut cx.reply)),
    }
}

fn header(cx: &mut Context<Connection>, name: &CStr, value: &CStr) -> Status {
    if let Some(status) = without_data(cx, "header") {
        return status;
    }
    let Some(connection) = cx.data.as_mut() else {
        return fault(None, "header", &Fault::NoSession, &mut cx.reply);
    };
    match connection.session.header(name.to_bytes(), value.to_bytes()) {
        // A fault cannot be answered where no reply is wanted; the end of the header will meet it again.
        Ok(_) | Err(_) if connection.options.contains(ProtoOpts::NOREPLY_HEADER) => Status::Noreply,
        step => answer(connection, "header", step, &mut cx.reply),
    }
}

async fn end_of_header(cx: &mut Context<Connection>) -> Status {
    if let Some(status) = without_data(cx, "end-of-header") {
        return status;
    }
    let Some(connection) = cx.data.as_mut() else {
        return fault(None, "header", &Fault::NoSession, &mut cx.reply);
    };
    note_queue_id(&mut connection.session, &cx.macros);
    let step = connection.session.end_of_header().await;
    answer(connection, "end-of-header", step, &mut cx.reply)
}

/// Answers `Continue` even where no reply is wanted: indymilter turns that into silence for a body frame, but for an
/// end-of-message frame that carries the last piece it is what makes it go on to [`end_of_message`]. Postfix sends no
/// such frame; the protocol allows it.
async fn body(cx: &mut Context<Connection>, piece: Bytes) -> Status {
    let Some(connection) = cx.data.as_mut() else {
        return fault(None, "body", &Fault::NoSession, &mut cx.reply);
    };
    let _ = connection.session.body(&piece).await; // a fault here is met again at the end
    Status::Continue
}

async fn end_of_message(cx: &mut EomContext<Connection>, desk: Desk) -> Status {
    let EomContext { data, macros, reply, actions } = cx;
    let Some(connection) = data.as_mut() else {
        return fault(None, "end-of-message", &Fault::NoSession, reply);
    };
    note_queue_id(&mut connection.session, macros);
    let queue_id = connection.session.queue_id().to_owned();
    let step = within(actions, conclude(&mut connection.session, &desk)).await;
    let step = match step {
        Some(Ok(Step::DeliverWithout(recipients))) => take_out(actions, recipients).await,
        Some(step) => step,
        None => {
            events::fault(&queue_id, "end-of-message", &"not done in time");
            Ok(Step::Refuse(connection.session.service().texts.reply(Reason::DeadlineExceeded, None)))
        }
    };
    match step {
        Ok(step) => translate(step, reply),
        Err(error) => fault(Some((&connection.session, &queue_id)), "end-of-message", &error, reply),
    }
}

async fn conclude(session: &mut Session, desk: &Desk) -> Result<Step, Fault> {
    let (end, _) = session.end().await?;
    Ok(record(session.service(), desk, end).await.step)
}

fn abort(cx: &mut Context<Connection>) -> Status {
    if let Some(connection) = cx.data.as_mut() {
        connection.session.abort();
    }
    Status::Continue
}

/// Waits for the work of an end of message and tells Postfix from time to time that we are at it; none if the
/// deadline came first.
async fn within<T>(actions: &EomActions, work: impl Future<Output = T>) -> Option<T> {
    let deadline = tokio::time::sleep(END_TIME);
    let mut progress = tokio::time::interval_at(tokio::time::Instant::now() + PROGRESS_EVERY, PROGRESS_EVERY);
    tokio::pin!(work, deadline);
    loop {
        tokio::select! {
            done = &mut work => return Some(done),
            () = &mut deadline => return None,
            // If Postfix is gone, the work is finished all the same: it may have the activity on disk already.
            _ = progress.tick() => drop(actions.progress().await),
        }
    }
}

async fn take_out(actions: &EomActions, recipients: Vec<CString>) -> Result<Step, Fault> {
    for recipient in recipients {
        // The activity is on disk. Should this fail, the client sends again, and the key keeps it from doubling.
        let gone = actions.delete_recipient(recipient).await;
        gone.map_err(|error| Fault::Internal(format!("DELRCPT: {error}")))?;
    }
    Ok(Step::Pass)
}

/// The place where a step or a fault becomes a status.
fn answer(
    connection: &Connection,
    stage: &'static str,
    step: Result<Step, Fault>,
    reply: &mut SmtpReply,
) -> Status {
    match step {
        Ok(step) => translate(step, reply),
        Err(error) => fault(Some((&connection.session, connection.session.queue_id())), stage, &error, reply),
    }
}

fn translate(step: Step, reply: &mut SmtpReply) -> Status {
    match step {
        Step::Continue => Status::Continue,
        Step::Pass | Step::DeliverWithout(_) => Status::Accept,
        Step::Discard => Status::Discard,
        Step::Refuse(refusal) => refuse(&refusal, reply),
    }
}

fn refuse(refusal: &Reply, reply: &mut SmtpReply) -> Status {
    // Postfix expands `%` in a milter's reply and eats single ones.
    let lines = refusal.lines.iter().map(|line| line.replace('%', "%%"));
    // Should the library not like the reply, Postfix says its own; the status is right in any case.
    if let Err(error) = reply.set_error_reply(&refusal.code.to_string(), Some(refusal.status), lines) {
        events::fault("", "reply", &error);
    }
    if refusal.is_deferral() { Status::Tempfail } else { Status::Reject }
}

fn fault(
    session: Option<(&Session, &str)>,
    stage: &'static str,
    error: &Fault,
    reply: &mut SmtpReply,
) -> Status {
    events::fault(session.map_or("", |(_, queue_id)| queue_id), stage, error);
    match session {
        Some((session, _)) => refuse(&session.service().texts.reply(Reason::InternalError, None), reply),
        None => Status::Tempfail,
    }
}

fn quietly(options: ProtoOpts, noreply: ProtoOpts) -> Status {
    if options.contains(noreply) { Status::Noreply } else { Status::Continue }
}

/// Remembers Postfix's queue id as soon as there is one.
fn note_queue_id(session: &mut Session, macros: &Macros) {
    if session.queue_id().is_empty() {
        session.set_queue_id(text(macros, c"i"));
    }
}

/// The SMTP client's address and login name. `client`: as CONNECT said it, where no macro does.
fn who(macros: &Macros, client: Option<&str>) -> (Option<String>, Option<String>) {
    let client = text(macros, c"{client_addr}").or_else(|| client.map(str::to_owned));
    (client, text(macros, c"{auth_authen}"))
}

/// A macro's value, for logs and the activity's envelope. Postfix sends ASCII there, but for SMTPUTF8 logins.
fn text(macros: &Macros, name: &CStr) -> Option<String> {
    let value = macros.get(name)?.to_str().ok()?.trim();
    (!value.is_empty()).then(|| value.to_owned())
}
