//! The milter protocol, versions 2 to 6, by indymilter: callbacks that translate and decide nothing.
//!
//! In: frames from Postfix. Out: a status for each, and the actions DELRCPT and PROGRESS.
//! Old versions (`milter_protocol = 2` or `3`, as recipes for OpenDKIM have it) know no DATA: there the first frame of
//! the header says that the recipients are complete. They name no macros either, so the client comes with CONNECT.
//! Promise: whatever the peer sends gets an answer or a closed connection, never a panic; each stage has a deadline
//! below Postfix's own (`milter_command_timeout` 30 s, `milter_content_timeout` 300 s).
//! Fails: [`run`] ends only when it is told to; faults are 451 and a log line.

use super::{Client, END_TIME, Fault, Interest, Listener, Live, Session, Then, record};
use crate::courier::Desk;
use crate::mail::Intake;
use crate::observe::{events, metrics::OpenSession};
use crate::rules::Reply;
use bytes::Bytes;
use indymilter::{
    Actions, Callbacks, Config, Context, ContextActions, EomActions, EomContext, MacroStage, Macros,
    NegotiateContext, ProtoOpts, SetErrorReply, SmtpReply, SocketInfo, Status,
};
use std::{
    ffi::{CStr, CString},
    time::Duration,
};
use tokio::sync::Semaphore;

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
    /// What it calls itself, where filters before us are believed.
    helo: Option<String>,
    _open: OpenSession,
}

/// Serves connections until `shutdown` completes. Drain the service before that: the library drops what is between
/// two commands.
/// # Errors
/// None that our [`Listener`] lets through.
pub async fn run(listener: Listener, live: Live, desk: Desk, shutdown: impl Future) -> std::io::Result<()> {
    let places = listener.places().clone();
    let callbacks = Callbacks::new()
        .on_negotiate(move |cx, actions, options| {
            let session = Session::seated(live.clone(), places.seat());
            Box::pin(std::future::ready(negotiate(cx, actions, options, session)))
        })
        .on_connect(|cx, _, from| Box::pin(std::future::ready(connect(cx, &from))))
        .on_helo(|cx, name| Box::pin(std::future::ready(helo(cx, &name))))
        .on_mail(|cx, args| Box::pin(std::future::ready(mail(cx, &args))))
        .on_rcpt(|cx, args| Box::pin(rcpt(cx, args)))
        .on_data(|cx| Box::pin(std::future::ready(data(cx))))
        .on_header(|cx, name, value| Box::pin(std::future::ready(header(cx, &name, &value))))
        .on_eoh(|cx| Box::pin(end_of_header(cx)))
        .on_body(|cx, piece| Box::pin(body(cx, piece)))
        .on_eom(move |cx| Box::pin(end_of_message(cx, desk.clone())))
        .on_abort(|cx| Box::pin(std::future::ready(abort(cx))));
    // Our listener counts: the library would leave those waiting for whom there is no place.
    let max_connections = Semaphore::MAX_PERMITS;
    let config = Config { max_connections, connection_timeout: IDLE, ..Config::default() };
    indymilter::run(listener, callbacks, config, shutdown).await
}

/// Asks for no more than we use: every frame that is not sent, or not answered, is a round trip saved.
fn negotiate(
    cx: &mut NegotiateContext<Connection>,
    actions: Actions,
    offered: ProtoOpts,
    session: Session,
) -> Status {
    let named = actions.contains(Actions::REQUEST_MACROS);
    let told = if named { ProtoOpts::NO_CONNECT } else { ProtoOpts::empty() };
    // HELO is of interest where filters repeat it in fields that we believe.
    let believes = !session.service().policy.trust.authserv_ids.is_empty();
    let helo = if believes { ProtoOpts::NOREPLY_HELO } else { ProtoOpts::NO_HELO };
    let skipped = told | helo | ProtoOpts::NO_UNKNOWN;
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
    let has_data = offered.contains(ProtoOpts::NO_DATA);
    let _open = OpenSession::new("milter");
    cx.data = Some(Connection { session, options, has_data, client: None, helo: None, _open });
    Status::Continue
}

fn connect(cx: &mut Context<Connection>, from: &SocketInfo) -> Status {
    if let (Some(connection), SocketInfo::Inet(address)) = (cx.data.as_mut(), from) {
        connection.client = Some(address.ip().to_string());
    }
    Status::Continue
}

fn helo(cx: &mut Context<Connection>, name: &CStr) -> Status {
    let Some(connection) = cx.data.as_mut() else {
        return no_session("helo");
    };
    connection.helo = Some(name.to_string_lossy().into_owned());
    quietly(connection.options, ProtoOpts::NOREPLY_HELO)
}

fn mail(cx: &mut Context<Connection>, args: &[CString]) -> Status {
    let Some(connection) = cx.data.as_mut() else {
        return no_session("mail");
    };
    let path = args.first().map_or(&b""[..], |path| path.to_bytes()); // the peer may send none
    connection.session.mail(path, Intake::Milter);
    quietly(connection.options, ProtoOpts::NOREPLY_MAIL)
}

async fn rcpt(cx: &mut Context<Connection>, args: Vec<CString>) -> Status {
    let Some(connection) = cx.data.as_mut() else {
        return no_session("rcpt");
    };
    note_queue_id(&mut connection.session, &cx.macros);
    let (macros, address, helo) = (&cx.macros, &connection.client, &connection.helo);
    let client = || Client {
        address: text(macros, c"{client_addr}").or_else(|| address.clone()),
        is_local: false,
        helo: helo.clone(),
        login: text(macros, c"{auth_authen}"),
    };
    match connection.session.rcpt(args.first().map_or(c"", CString::as_c_str), client).await {
        Ok(()) => Status::Continue,
        Err(refusal) => refuse(connection.session.queue_id(), &refusal, &mut cx.reply),
    }
}

fn data(cx: &mut Context<Connection>) -> Status {
    let Some(connection) = cx.data.as_mut() else {
        return no_session("data");
    };
    let complete = recipients_complete(connection, &cx.macros);
    answer(connection.session.queue_id(), complete, &mut cx.reply)
}

/// What DATA means, whether the protocol has that command or not.
fn recipients_complete(connection: &mut Connection, macros: &Macros) -> Result<Interest, Reply> {
    note_queue_id(&mut connection.session, macros);
    connection.session.data()
}

/// The answer to DATA where the protocol lacks it, at the first frame of the header; none if all is well.
fn without_data(cx: &mut Context<Connection>) -> Option<Status> {
    let connection = cx.data.as_mut().filter(|c| !c.has_data && c.session.awaits_data())?;
    match recipients_complete(connection, &cx.macros) {
        Ok(Interest::Message) => None,
        other => Some(answer(connection.session.queue_id(), other, &mut cx.reply)),
    }
}

fn header(cx: &mut Context<Connection>, name: &CStr, value: &CStr) -> Status {
    if let Some(status) = without_data(cx) {
        return status;
    }
    let Some(connection) = cx.data.as_mut() else {
        return no_session("header");
    };
    match connection.session.header(name.to_bytes(), value.to_bytes()) {
        Err(refusal) if !connection.options.contains(ProtoOpts::NOREPLY_HEADER) => {
            refuse(connection.session.queue_id(), &refusal, &mut cx.reply)
        }
        _ => quietly(connection.options, ProtoOpts::NOREPLY_HEADER),
    }
}

async fn end_of_header(cx: &mut Context<Connection>) -> Status {
    if let Some(status) = without_data(cx) {
        return status;
    }
    let Some(connection) = cx.data.as_mut() else {
        return no_session("header");
    };
    note_queue_id(&mut connection.session, &cx.macros);
    let ended = connection.session.end_of_header().await;
    answer(connection.session.queue_id(), ended, &mut cx.reply)
}

/// Answers `Continue` even where no reply is wanted: indymilter turns that into silence for a body frame, but for an
/// end-of-message frame that carries the last piece it is what makes it go on to [`end_of_message`]. Postfix sends no
/// such frame; the protocol allows it.
async fn body(cx: &mut Context<Connection>, piece: Bytes) -> Status {
    let Some(connection) = cx.data.as_mut() else {
        return no_session("body");
    };
    connection.session.body(&piece).await;
    Status::Continue
}

async fn end_of_message(cx: &mut EomContext<Connection>, desk: Desk) -> Status {
    let EomContext { data, macros, reply, actions } = cx;
    let Some(connection) = data.as_mut() else {
        return no_session("end-of-message");
    };
    note_queue_id(&mut connection.session, macros);
    let concluded = within(actions, conclude(&mut connection.session, &desk)).await;
    let session = &connection.session;
    let then = match concluded {
        Some(Ok(Then::DeliverWithout(recipients))) => match take_out(actions, recipients).await {
            Ok(()) => Ok(Then::Pass),
            Err(fault) => Err(session.fault("end-of-message", &fault)),
        },
        Some(then) => then,
        None => Err(session.fault("end-of-message", &Fault::Late)),
    };
    match then {
        Ok(Then::Pass | Then::DeliverWithout(_)) => Status::Accept,
        Ok(Then::Discard) => Status::Discard,
        Err(refusal) => refuse(session.queue_id(), &refusal, reply),
    }
}

async fn conclude(session: &mut Session, desk: &Desk) -> Result<Then, Reply> {
    let end = session.end().await?;
    record(session.service(), desk, end).await.answer
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
    // A peer that reads nothing holds up this, and neither the work nor the deadline. If Postfix is gone, the work is
    // finished all the same: it may have the activity on disk already.
    let telling = async {
        loop {
            tokio::time::sleep(PROGRESS_EVERY).await;
            let _ = actions.progress().await;
        }
    };
    tokio::select! {
        done = work => Some(done),
        () = tokio::time::sleep(END_TIME) => None,
        never = telling => never,
    }
}

async fn take_out(actions: &EomActions, recipients: Vec<CString>) -> Result<(), Fault> {
    for recipient in recipients {
        // The activity is on disk. Should this fail, the client sends again, and the key keeps it from doubling.
        let gone = actions.delete_recipient(recipient).await;
        gone.map_err(|error| Fault::Internal(format!("DELRCPT: {error}")))?;
    }
    Ok(())
}

/// The place where an answer before the end becomes a status.
fn answer(queue_id: &str, interest: Result<Interest, Reply>, reply: &mut SmtpReply) -> Status {
    match interest {
        Ok(Interest::Message) => Status::Continue,
        Ok(Interest::Nothing) => Status::Accept,
        Err(refusal) => refuse(queue_id, &refusal, reply),
    }
}

fn refuse(queue_id: &str, refusal: &Reply, reply: &mut SmtpReply) -> Status {
    // Postfix expands `%` in a milter's reply and eats single ones.
    let lines = refusal.lines.iter().map(|line| line.replace('%', "%%"));
    // Should the library not like the reply, Postfix says its own; the status is right in any case.
    if let Err(error) = reply.set_error_reply(&refusal.code.to_string(), Some(refusal.status), lines) {
        events::fault(queue_id, "reply", &error);
    }
    if refusal.is_deferral() { Status::Tempfail } else { Status::Reject }
}

/// There is nobody to say more, and no queue id.
fn no_session(stage: &'static str) -> Status {
    events::fault("", stage, &Fault::NoSession);
    Status::Tempfail
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

/// A macro's value, for logs and the activity's envelope. Postfix sends ASCII there, but for SMTPUTF8 logins.
fn text(macros: &Macros, name: &CStr) -> Option<String> {
    let value = macros.get(name)?.to_str().ok()?.trim();
    (!value.is_empty()).then(|| value.to_owned())
}
