//! One SMTP session, whatever the protocol: envelope, head, body, end.
//!
//! In: the commands of a transaction, as bytes. Out: an answer to each, as its stage knows it; at the end, what to record.
//! Promise: memory is bounded by the service's budget; the rules decide, and nothing here does.
//! Fails: trouble of ours, and a command out of order, is a reply of 4xx and a log line with the queue id.

use super::{
    Fault,
    fate::Interest,
    head::{PARSED_INLINE, RawHead, ReadHead},
    places::Seat,
    record::{End, Pending, Recall},
    service::{Asked, Known, Live, Service, look_ups_end},
    transaction::{Client, Recalled, Told, Transaction},
};
use crate::activity::{Key, Parcel, Participant};
use crate::directory::Unavailable;
use crate::mail::{Automatic, Head, Intake, ReadPart, Reader, Spill, SpillError};
use crate::observe::events;
use crate::rules::{
    self, Correspondents, Discard, Evidence, Finding, Method, Mixed, Outcome, Reason, Record, Reply, Target,
    Verdict,
};
use crate::verify::Verification;
use nix::libc::{EMFILE, ENFILE};
use std::{collections::BTreeMap, ffi::CStr, sync::Arc, time::SystemTime};
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Memory for somebody who may be listed.
const PERSON: usize = 200;

/// Bytes of body that are read before another session has its turn.
const PIECE: usize = 64 * 1024;

/// After a piece of so many bytes others have their turn, whatever is there already: a thousand large messages must not keep
/// a small one waiting for megabytes of each.
const LARGE_PIECE: usize = 8 * 1024;

/// Whom a head names without being listed.
#[derive(Clone, Copy, Debug)]
pub struct LeftOut {
    /// People beyond `message.max_people`.
    pub omitted: usize,
    /// Elements that are no address.
    pub skipped: usize,
    /// Fields that Postfix has cut.
    pub cut_fields: usize,
}

/// One connection's state.
pub struct Session {
    live: Live,
    /// The one the transaction began with.
    service: Arc<Service>,
    stage: Stage,
    /// Where each part of the last message went.
    parts: Vec<ReadPart>,
    /// Whom the head names without being listed.
    left_out: Option<LeftOut>,
    /// What kind of automatic mail the last message is.
    automatic: Option<Automatic>,
    /// What the log says of the last transaction, after its end too.
    last: Told,
    /// The right to have something recorded.
    seat: Seat,
    _counted: TaskTrackerToken,
}

/// Where one transaction stands. A callback that finds another stage than its own reports a fault, never panics.
enum Stage {
    Idle,
    Envelope(Transaction),
    Header(Transaction, RawHead),
    Body(Transaction, Box<Decided>),
}

impl Stage {
    fn transaction(&self) -> Option<&Transaction> {
        match self {
            Self::Idle => None,
            Self::Envelope(t) | Self::Header(t, _) | Self::Body(t, _) => Some(t),
        }
    }

    fn transaction_mut(&mut self) -> Option<&mut Transaction> {
        match self {
            Self::Idle => None,
            Self::Envelope(t) | Self::Header(t, _) | Self::Body(t, _) => Some(t),
        }
    }
}

/// What the rules said.
#[derive(Default)]
struct Ruling {
    records: Vec<Record>,
    refused: BTreeMap<String, Reply>,
    discarded: BTreeMap<String, Discard>,
}

/// What the rules said at end of header.
enum Ruled {
    Now(Verdict),
    /// It depends on who sent the message, and that on the body. For one of its tenants it may be private already.
    Later {
        waiting: Waiting,
        is_private: bool,
    },
}

impl Ruled {
    fn is_private(&self) -> bool {
        match self {
            Self::Now(verdict) => verdict.is_private(),
            Self::Later { is_private, .. } => *is_private,
        }
    }
}

/// What the rules are asked again with, once the body is here.
struct Waiting {
    verification: Box<dyn Verification>,
    known: Known,
}

/// The same, and what the head says.
struct Undecided {
    waiting: Waiting,
    correspondents: Correspondents,
    evidence: Evidence,
}

/// The same, waiting for the body.
struct Decided {
    head: Head,
    records: Vec<Record>,
    /// Bytes of people and ids, as each activity has them.
    words: usize,
    /// Reads the body as it arrives; none where nobody wants to know.
    reader: Option<Reader>,
    /// Replies by the ids of tenants for whom nothing is recorded although the message goes on: with the milter their
    /// recipients are taken out (`strip`), with LMTP they have these answers.
    refused: BTreeMap<String, Reply>,
    /// Tenants for whom nothing becomes of the message, and nobody is told.
    discarded: BTreeMap<String, Discard>,
    /// Until the end of the body nothing is recorded, refused or discarded; then this is none.
    undecided: Option<Box<Undecided>>,
    spill: Spill,
    failed: Option<SpillError>,
}

impl Session {
    /// A session without a transaction.
    pub fn new(live: Live) -> Self {
        Self::seated(live, Seat::Free)
    }

    /// One that has a seat, or wants one.
    pub(super) fn seated(live: Live, seat: Seat) -> Self {
        let service = live.now();
        Self {
            _counted: service.session(),
            service,
            live,
            stage: Stage::Idle,
            parts: Vec::new(),
            left_out: None,
            automatic: None,
            last: Told::default(),
            seat,
        }
    }

    /// The service the session belongs to.
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// The queue id, as far as it is known; of the transaction that ended last, where there is none now.
    pub fn queue_id(&self) -> &str {
        self.stage.transaction().map_or(&self.last.queue_id, Transaction::queue_id)
    }

    /// MAIL: a new transaction.
    pub fn mail(&mut self, path: &[u8], intake: Intake) {
        self.service = self.live.now();
        self.begin(Transaction::new(path, intake, &self.service.policy));
    }

    fn begin(&mut self, transaction: Transaction) {
        self.last = Told::default();
        self.stage = Stage::Envelope(transaction);
    }

    /// Postfix has a queue id from the second RCPT on.
    pub fn set_queue_id(&mut self, queue_id: Option<String>) {
        if let Some(transaction) = self.stage.transaction_mut() {
            transaction.set_queue_id(queue_id);
        }
    }

    /// RCPT: another recipient. Refusals touch this recipient alone. Who is connected is asked if it is of interest.
    /// # Errors
    /// The reply to it, if it is not taken.
    pub async fn rcpt(&mut self, path: &CStr, client: impl FnOnce() -> Client) -> Result<(), Reply> {
        match &mut self.stage {
            Stage::Envelope(transaction) => {
                transaction.rcpt(&self.service, path, client, &mut self.seat).await
            }
            _ => Err(self.fault("rcpt", &Fault::OutOfOrder("RCPT"))),
        }
    }

    /// True between MAIL and DATA.
    pub fn awaits_data(&self) -> bool {
        matches!(self.stage, Stage::Envelope(_))
    }

    /// DATA: the recipients are complete. Other people's mail ends here.
    /// # Errors
    /// The reply, if this is no time for DATA.
    pub fn data(&mut self) -> Result<Interest, Reply> {
        let mut transaction = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Envelope(transaction) => transaction,
            stage => {
                self.leave(stage);
                return Err(self.fault("data", &Fault::OutOfOrder("DATA")));
            }
        };
        let interest = transaction.recipients.interest();
        match interest {
            Interest::Nothing => {
                events::passed(transaction.queue_id());
                self.last = transaction.told();
            }
            Interest::Message => {
                transaction.presume_private(&self.service.policy);
                self.stage = Stage::Header(transaction, RawHead::new(self.service.budget.reserve()));
            }
        }
        Ok(interest)
    }

    /// A header field, in pieces that together are its exact bytes without the final line break.
    /// # Errors
    /// The reply, if this is no time for a field. Where none is wanted, the end of the header meets it again, as it meets
    /// a field for which there was no room.
    pub fn header(&mut self, name: &[u8], value: &[u8]) -> Result<(), Reply> {
        let Stage::Header(_, head) = &mut self.stage else {
            return Err(self.fault("header", &Fault::OutOfOrder("header")));
        };
        head.field(name, value);
        Ok(())
    }

    /// A piece of the header as it is, with its line breaks.
    pub fn raw_header(&mut self, piece: &[u8]) {
        if let Stage::Header(_, head) = &mut self.stage {
            head.piece(piece);
        }
    }

    /// End of header: the rules decide, before the body is sent.
    /// # Errors
    /// The reply to the message.
    pub async fn end_of_header(&mut self) -> Result<Interest, Reply> {
        const STAGE: &str = "end-of-header";
        let (mut transaction, raw) = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Header(transaction, raw) => (transaction, raw),
            stage => {
                self.leave(stage);
                return Err(self.fault(STAGE, &Fault::OutOfOrder("end of header")));
            }
        };
        self.last = transaction.told();
        let read = match raw.read(&self.service, &transaction).await {
            Ok(Ok(read)) => read,
            Ok(Err(reason)) => return self.refuse(&transaction, reason).map(|()| Interest::Nothing),
            Err(fault) => return Err(self.fault(STAGE, &fault)),
        };
        transaction.message_id.clone_from(&read.head.message_id);
        transaction.set_private(!read.private.is_empty());
        transaction.set_login(read.login.clone());
        self.last = transaction.told();
        self.note_left_out(&transaction, &read);
        self.automatic = transaction.automatic(&read.head);
        let judged = self.judge(&mut transaction, &read).await;
        // Only now is it known whether all people are users.
        self.last = transaction.told();
        let Some((ruling, waiting)) = judged? else { return Ok(Interest::Nothing) };
        let decided = Box::new(Decided::new(&self.service, read, ruling, waiting).await);
        self.stage = Stage::Body(transaction, decided);
        Ok(Interest::Message)
    }

    /// Whom the head names without being listed.
    fn note_left_out(&mut self, transaction: &Transaction, read: &ReadHead) {
        let left_out = LeftOut {
            omitted: read.correspondents.omitted,
            skipped: read.correspondents.skipped,
            cut_fields: read.head.cut_fields,
        };
        let LeftOut { omitted, skipped, cut_fields } = left_out;
        events::people_left_out(transaction.queue_id(), omitted, skipped, cut_fields);
        self.left_out = Some(left_out);
    }

    /// What the rules say for targets, and what has to wait; none where there are only such in shadow mode.
    async fn judge(
        &self,
        transaction: &mut Transaction,
        read: &ReadHead,
    ) -> Result<Option<(Ruling, Option<Waiting>)>, Reply> {
        let targets: Vec<Target> = transaction.recipients.targets().cloned().collect();
        let shadowed: Vec<Target> = transaction.recipients.shadowed().cloned().collect();
        // One deadline for all look-ups of the message.
        let deadline = look_ups_end();
        let (ruled, would_be) = tokio::join!(
            for_any(&targets, self.rule(transaction, read, &targets, deadline)),
            for_any(&shadowed, self.rule_in_shadow(transaction, read, &shadowed, deadline))
        );
        if matches!(&ruled, Some(Ok(ruled)) if ruled.is_private())
            || matches!(&would_be, Some(Ok(verdict)) if verdict.is_private())
        {
            transaction.keep_private();
        }
        // Where the proof has to wait, so has the word on mail among users.
        if !matches!(&ruled, Some(Ok(Ruled::Later { .. }))) {
            transaction.say_held();
        }
        tell_shadowed(transaction, &shadowed, would_be);
        match ruled {
            None => Ok(None),
            Some(Ok(Ruled::Later { waiting, .. })) => Ok(Some((Ruling::default(), Some(waiting)))),
            Some(Ok(Ruled::Now(verdict))) => {
                let ruling = self.ruling(transaction, Ok(verdict), "end-of-header")?;
                Ok(Some((ruling, None)))
            }
            Some(Err(error)) => Err(self.unavailable(transaction, &error)),
        }
    }

    /// What the rules say for targets.
    async fn rule(
        &self,
        transaction: &Transaction,
        read: &ReadHead,
        targets: &[Target],
        deadline: Instant,
    ) -> Result<Ruled, Unavailable> {
        let service = &self.service;
        let known = service.look_up_people(targets, read, self.automatic, deadline).await?;
        let asked = self.asked(transaction, &read.head, &read.correspondents, &read.evidence);
        let verdict = service.decide(&known, &asked)?;
        let Some(verifier) = service.verifier.as_ref().filter(|_| depends_on_proof(&verdict)) else {
            return Ok(Ruled::Now(verdict));
        };
        let verification = verifier.begin(transaction.question(read.bytes.clone()));
        if verification.wants_body() {
            let is_private = verdict.is_private();
            return Ok(Ruled::Later { waiting: Waiting { verification, known }, is_private });
        }
        let evidence = read.evidence.clone().with(found_out(verification, deadline).await);
        service.decide(&known, &Asked { evidence: &evidence, ..asked }).map(Ruled::Now)
    }

    fn asked<'a>(
        &self,
        transaction: &Transaction,
        head: &'a Head,
        correspondents: &'a Correspondents,
        evidence: &'a Evidence,
    ) -> Asked<'a> {
        Asked {
            head,
            correspondents,
            evidence,
            automatic: self.automatic,
            other_recipients: transaction.recipients.has_others(),
            mixed: transaction.mixed(&self.service.policy),
        }
    }

    /// The directory did not answer: the reply to the message.
    fn unavailable(&self, transaction: &Transaction, error: &Unavailable) -> Reply {
        events::directory_unavailable(transaction.queue_id(), error);
        let target = transaction.recipients.targets().next();
        let reply = self.service.texts.reply(Reason::DirectoryUnavailable, target.map(|t| &t.address));
        let tenant = target.map(|target| target.tenant.id.as_str());
        transaction.log_refusal(tenant, target.map(|target| &target.address), "message", &reply);
        reply
    }

    /// Says what a verdict comes to.
    fn ruling(
        &self,
        transaction: &Transaction,
        verdict: Result<Verdict, Unavailable>,
        stage: &'static str,
    ) -> Result<Ruling, Reply> {
        let targets: Vec<&Target> = transaction.recipients.targets().collect();
        let mixed = transaction.mixed(&self.service.policy);
        let (records, refused, discarded) = match verdict {
            Err(error) => return Err(self.unavailable(transaction, &error)),
            Ok(Verdict::Refuse { reply, .. }) => {
                let tenant = targets.first().map(|target| target.tenant.id.as_str());
                let recipient = targets.first().map(|target| &target.address);
                transaction.log_refusal(tenant, recipient, stage, &reply);
                return Err(reply);
            }
            Ok(Verdict::Record { records, refused, discarded }) => (records, refused, discarded),
        };
        for (tenant, reply) in &refused {
            match mixed {
                // Whether the e-mail is known shows at its end.
                Mixed::Each if reply.reason.may_be_known() => {}
                Mixed::Each => transaction.log_refusal(Some(tenant), None, stage, reply),
                Mixed::Strip | Mixed::Reject => {
                    transaction.tell(Some(tenant), None, true, |who| events::stripped(who, reply))
                }
            }
        }
        for (tenant, why) in &discarded {
            let target = targets.iter().find(|target| target.tenant.id == *tenant);
            let recipient = target.map(|target| target.address.to_string());
            transaction.tell(Some(tenant), recipient.as_deref(), true, |who| events::discarded(who, *why));
        }
        Ok(Ruling {
            records,
            refused: refused.into_iter().collect(),
            discarded: discarded.into_iter().collect(),
        })
    }

    /// What the rules would say for tenants in shadow mode. Nobody is asked who sent the message for the sake of a log.
    async fn rule_in_shadow(
        &self,
        transaction: &Transaction,
        read: &ReadHead,
        shadowed: &[Target],
        deadline: Instant,
    ) -> Result<Verdict, Unavailable> {
        let known = self.service.look_up_people(shadowed, read, self.automatic, deadline).await?;
        let evidence = read.evidence.clone().with(Vec::new());
        let asked = self.asked(transaction, &read.head, &read.correspondents, &evidence);
        self.service.decide(&known, &Asked { mixed: self.service.policy.mixed, ..asked })
    }

    /// A piece of the body. Nobody can be answered here: trouble, and a piece out of order, are met again at the end.
    pub async fn body(&mut self, piece: &[u8]) {
        let Stage::Body(_, decided) = &mut self.stage else { return };
        for piece in piece.chunks(PIECE) {
            decided.take(piece).await;
            if piece.len() >= LARGE_PIECE {
                tokio::task::yield_now().await;
            }
        }
    }

    /// End of the body: who sent the message is verified, if that had to wait, and the rules decide.
    /// # Errors
    /// The reply to the message.
    pub async fn end_of_body(&mut self) -> Result<(), Reply> {
        let (mut transaction, mut decided) = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Body(transaction, decided) if decided.undecided.is_some() => (transaction, decided),
            stage => {
                self.stage = stage;
                return Ok(());
            }
        };
        self.last = transaction.told();
        if let Some(error) = decided.failed.take() {
            return Err(self.unkept(&transaction, error));
        }
        if let Some(undecided) = decided.undecided.take() {
            let Undecided { waiting, correspondents, evidence } = *undecided;
            let evidence = evidence.with(found_out(waiting.verification, look_ups_end()).await);
            let asked = self.asked(&transaction, &decided.head, &correspondents, &evidence);
            let verdict = self.service.decide(&waiting.known, &asked);
            if matches!(&verdict, Ok(verdict) if verdict.is_private()) {
                transaction.keep_private();
                self.last = transaction.told();
            }
            let ruling = self.ruling(&transaction, verdict, "end-of-message")?;
            Ruling { records: decided.records, refused: decided.refused, discarded: decided.discarded } =
                ruling;
        }
        self.stage = Stage::Body(transaction, decided);
        Ok(())
    }

    /// End of message: builds the activities.
    /// # Errors
    /// The reply to the message.
    pub async fn end(&mut self) -> Result<End, Reply> {
        const STAGE: &str = "end-of-message";
        self.end_of_body().await?;
        let (mut transaction, decided) = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Body(transaction, decided) => (transaction, *decided),
            stage => {
                self.leave(stage);
                return Err(self.fault(STAGE, &Fault::OutOfOrder("end of message")));
            }
        };
        self.last = transaction.told();
        let Decided { head, records, reader, refused, discarded, spill, failed, .. } = decided;
        let is_without = |tenant: &str| refused.contains_key(tenant) || discarded.contains_key(tenant);
        let then = transaction.recipients.after_accept(&self.service.policy, is_without);
        let recalled = transaction.recalled(&refused);
        if records.is_empty() && recalled.is_empty() {
            return Ok(End { then, pending: None, recalls: Vec::new() });
        }
        let finished = match failed {
            None => spill.finish().await,
            Some(error) => Err(error),
        };
        let (raw, reserved) = match finished {
            Ok(finished) => finished,
            Err(error) => return Err(self.unkept(&transaction, error)),
        };
        let Some(reader) = reader else {
            return Err(self.fault(STAGE, &Fault::Internal("the body was not read".to_owned())));
        };
        let held = reader.held();
        let (queue_id, number) = (transaction.queue_id().to_owned(), transaction.id);
        let (in_flight, envelope) = (transaction.in_flight.take(), transaction.envelope());
        let parties: Vec<_> = records.into_iter().map(|record| record.parties).collect();
        let build = move || {
            let body = reader.finish();
            let recall = |(target, tenant, project): Recalled| Recall {
                target,
                key: Key::digest(&tenant, project.as_deref(), &head, &body.digest),
            };
            let recalls: Vec<Recall> = recalled.into_iter().map(recall).collect();
            let parts = body.parts.clone();
            let parcel = Parcel::build(parties, &envelope, &head, body, raw, SystemTime::now());
            (parcel, recalls, parts)
        };
        let built = if held > PARSED_INLINE { self.service.apart(build).await } else { Ok(build()) };
        let (parcel, recalls, parts) = built.map_err(|fault| self.fault(STAGE, &fault))?;
        if parcel.activities.is_empty() {
            return Ok(End { then, pending: None, recalls });
        }
        self.parts = parts;
        let is_private = transaction.is_private();
        let pending = Pending { parcel, queue_id, transaction: number, is_private, in_flight, reserved };
        Ok(End { then, pending: Some(pending), recalls })
    }

    /// Whom the last head names without being listed, for `explain`.
    pub fn left_out(&self) -> Option<LeftOut> {
        self.left_out
    }

    /// Where each part of the last message went, for `explain`.
    pub fn parts(&self) -> &[ReadPart] {
        &self.parts
    }

    /// The transaction is over, whatever it had come to.
    pub fn abort(&mut self) {
        let stage = std::mem::replace(&mut self.stage, Stage::Idle);
        self.leave(stage);
    }

    /// The log knows the transaction after its end too.
    fn leave(&mut self, stage: Stage) {
        if let Some(transaction) = stage.transaction() {
            self.last = transaction.told();
        }
    }

    /// What the log says of the transaction that ended last.
    pub fn last(&self) -> &Told {
        &self.last
    }

    /// What the integration recipients so far resolve to, in the order of RCPT.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.stage.transaction().into_iter().flat_map(|transaction| transaction.recipients.targets())
    }

    /// Why nothing is recorded for the recipient, for each of [`Session::targets`]; nothing before the end of the header.
    pub fn refusals(&self) -> Vec<Option<Reply>> {
        let Stage::Body(transaction, decided) = &self.stage else { return Vec::new() };
        let (texts, looked_up) = (&self.service.texts, self.service.policy.max_people);
        let omitted = self.left_out.map_or(0, |left_out| left_out.omitted);
        let refused = |target: &Target| {
            let reason = decided.refused.get(&target.tenant.id)?.reason;
            Some(rules::reply_to(texts, reason, &target.address, self.automatic, looked_up, omitted))
        };
        transaction.recipients.targets().map(refused).collect()
    }

    /// What kind of automatic mail the last message is, if no person wrote it.
    pub fn automatic(&self) -> Option<Automatic> {
        self.automatic
    }

    /// Why nothing becomes of the message for the recipient, and it is told nothing of it, for each of
    /// [`Session::targets`]; nothing before the end of the header.
    pub fn discards(&self) -> Vec<Option<Discard>> {
        let Stage::Body(transaction, decided) = &self.stage else { return Vec::new() };
        let discard = |target: &Target| decided.discarded.get(&target.tenant.id).copied();
        transaction.recipients.targets().map(discard).collect()
    }

    /// What the rules said of the records, for `explain`; empty before the end of the header.
    pub fn records(&self) -> &[Record] {
        match &self.stage {
            Stage::Body(_, decided) => &decided.records,
            _ => &[],
        }
    }

    /// Our own trouble, with the queue id in its line. The answer says no more than that.
    pub(super) fn fault(&self, stage: &'static str, fault: &Fault) -> Reply {
        let reason = match fault {
            Fault::Late => Reason::DeadlineExceeded,
            _ => Reason::InternalError,
        };
        events::fault(self.queue_id(), stage, fault);
        self.service.texts.reply(reason, None)
    }

    /// The reply to a message whose bytes could not be kept.
    fn unkept(&self, transaction: &Transaction, error: SpillError) -> Reply {
        let reason = match error {
            SpillError::Busy => Reason::Busy,
            SpillError::TooLarge => Reason::TooLarge,
            SpillError::Full { .. } => {
                events::fault(transaction.queue_id(), "body", &error);
                Reason::QueueFull
            }
            // Descriptors come back when sessions end; the disk is not to blame.
            SpillError::Io(error) if matches!(error.raw_os_error(), Some(EMFILE | ENFILE)) => {
                events::fault(transaction.queue_id(), "body", &error);
                Reason::Busy
            }
            SpillError::Io(error) => {
                events::fault(transaction.queue_id(), "body", &error);
                Reason::StorageFailing
            }
        };
        let target = transaction.recipients.targets().next();
        let address = target.map(|target| &target.address);
        let reply = self.service.texts.reply(reason, address);
        transaction.log_refusal(target.map(|target| target.tenant.id.as_str()), address, "message", &reply);
        reply
    }

    /// Refuses or defers the message; one of tenants in shadow mode only is let pass.
    fn refuse(&self, transaction: &Transaction, reason: Reason) -> Result<(), Reply> {
        let target = transaction.recipients.targets().next();
        let Some(target) = target else {
            let shadowed = transaction.recipients.shadowed().next();
            let reply = self.service.texts.reply(reason, shadowed.map(|t| &t.address));
            let tenant = shadowed.map(|t| t.tenant.id.as_str());
            transaction.would_refuse(shadowed, tenant.unwrap_or_default(), "message", &reply);
            return Ok(());
        };
        let reply = self.service.texts.reply(reason, Some(&target.address));
        transaction.log_refusal(Some(&target.tenant.id), Some(&target.address), "message", &reply);
        Err(reply)
    }
}

/// Logs what would become of the message for tenants in shadow mode.
fn tell_shadowed(
    transaction: &Transaction,
    shadowed: &[Target],
    would_be: Option<Result<Verdict, Unavailable>>,
) {
    let (Some(first), Some(would_be)) = (shadowed.first(), would_be) else { return };
    match would_be {
        Err(error) => events::directory_unavailable(transaction.queue_id(), &error),
        Ok(Verdict::Refuse { reply, .. }) => {
            transaction.would_refuse(Some(first), &first.tenant.id, "end-of-header", &reply)
        }
        Ok(Verdict::Record { records, refused, discarded }) => {
            for (tenant, reply) in &refused {
                let target = shadowed.iter().find(|target| target.tenant.id == *tenant);
                transaction.would_refuse(target, tenant, "end-of-header", reply);
            }
            for (tenant, why) in &discarded {
                let target = shadowed.iter().find(|target| target.tenant.id == *tenant);
                let recipient = target.map(|target| target.address.to_string());
                let tell = |who: &events::Who<'_>| events::would_discard(who, *why);
                transaction.tell(Some(tenant), recipient.as_deref(), true, tell);
            }
            for parties in records.iter().map(|record| &record.parties) {
                let project = parties.project.as_ref().map(|p| p.number.as_str());
                let (tenant, is_it) = (&parties.tenant.id, |target: &&Target| {
                    target.tenant.id == parties.tenant.id
                        && target.project.as_ref().map(|p| p.number.as_str()) == project
                });
                let target = shadowed.iter().find(is_it);
                let recipient = target.map(|target| target.address.to_string());
                let tell = |who: &events::Who<'_>| events::would_record(who, project);
                transaction.tell(Some(tenant), recipient.as_deref(), true, tell);
            }
        }
    }
}

impl Decided {
    /// Begins the buffer with the head, if anything is recorded.
    async fn new(service: &Service, read: ReadHead, ruling: Ruling, waiting: Option<Waiting>) -> Self {
        let Ruling { records, refused, discarded } = ruling;
        let ReadHead { bytes, head, reader, reserved, correspondents, evidence, .. } = read;
        drop(reserved); // the buffer has its own from here on
        let policy = &service.policy;
        let spill =
            Spill::new(&service.spool, policy.max_size, &service.budget).keeping_free(policy.min_free);
        // What is verified has a copy of the head; who will be listed is not known yet.
        let waits = |people: &Correspondents| bytes.len() + people.people.len() * PERSON;
        let words = words_of(&head, &records) + waiting.as_ref().map_or(0, |_| waits(&correspondents));
        // What LMTP refuses for want of a user, or of a proof, is known by its content, if it is.
        let is_asked = refused.values().any(|reply| reply.reason.may_be_known());
        let reader = Some(reader).filter(|_| is_asked || waiting.is_some() || !records.is_empty());
        let undecided = waiting.map(|waiting| Box::new(Undecided { waiting, correspondents, evidence }));
        let mut decided =
            Self { head, records, words, reader, refused, discarded, undecided, spill, failed: None };
        if decided.activities() > 0 {
            decided.failed = decided.keep_head(&bytes).await.err();
        }
        decided
    }

    async fn keep_head(&mut self, bytes: &[u8]) -> Result<(), SpillError> {
        self.spill.push(bytes).await?;
        self.spill.push(b"\r\n").await?;
        self.spill.also_hold(taken(self.words, self.activities()))
    }

    /// How many there will be, at most.
    fn activities(&self) -> usize {
        self.undecided.as_ref().map_or(self.records.len(), |undecided| undecided.waiting.known.targets())
    }

    /// Takes a piece of the body: to be kept if something is recorded, to be read in any case.
    async fn take(&mut self, piece: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        let activities = self.activities();
        if let Some(undecided) = &mut self.undecided {
            undecided.waiting.verification.body(piece);
        }
        let Some(reader) = &mut self.reader else { return };
        reader.push(piece);
        let kept = async {
            self.spill.also_hold(taken(reader.held() + self.words, activities))?;
            if activities == 0 { Ok(()) } else { self.spill.push(piece).await }
        };
        self.failed = kept.await.err();
        if self.failed.is_some() {
            // Nobody reads on; what it had is for others.
            self.reader = None;
            self.spill.give_up();
        }
    }
}

/// Memory for what a message says, text, people, ids and files: as it is held and decoded, in the JSON of each activity,
/// and in the buffers that grew on the way (measured: 200 messages of 2.8 MB at once, `make bench`). It is taken as it arrives, so that who comes to the end has what the end needs.
fn taken(held: usize, activities: usize) -> usize {
    held * (5 + activities)
}

/// The answer, if there is anybody it is asked for.
async fn for_any<T>(targets: &[Target], answer: impl Future<Output = T>) -> Option<T> {
    match targets.is_empty() {
        true => None,
        false => Some(answer.await),
    }
}

/// True if somebody who is not proven to be the sender would be, or may be, if we asked.
fn depends_on_proof(verdict: &Verdict) -> bool {
    let is_unverified = |reply: &Reply| reply.reason == Reason::SenderUnverified;
    match verdict {
        Verdict::Refuse { reply, .. } => is_unverified(reply),
        Verdict::Record { records, refused, .. } => {
            let is_unproven = |record: &Record| record.parties.sender_authenticated == Some(false);
            refused.iter().any(|(_, reply)| is_unverified(reply)) || records.iter().any(is_unproven)
        }
    }
}

/// What is found out in time; the rest is not known now.
async fn found_out(verification: Box<dyn Verification>, deadline: Instant) -> Vec<Finding> {
    match tokio::time::timeout_at(deadline, verification.finish()).await {
        Ok(findings) => findings,
        Err(_elapsed) => {
            let unknown = |method| Finding::new(method, Outcome::Temporary, None);
            [Method::Dmarc, Method::Dkim, Method::Spf].map(unknown).into()
        }
    }
}

/// Bytes of people, ids and subject, as each activity has them.
fn words_of(head: &Head, records: &[Record]) -> usize {
    let participant = |p: &Participant| 100 + p.address.len() + p.name.as_ref().map_or(0, String::len);
    let people = |record: &Record| -> usize { record.parties.participants.iter().map(participant).sum() };
    let ids: usize = head.in_reply_to.iter().chain(&head.references).map(|id| id.len() + 4).sum();
    // All tenants have the same people.
    records.first().map_or(0, people) + ids + head.subject.as_ref().map_or(0, String::len)
}
