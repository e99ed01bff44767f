//! One SMTP session, whatever the protocol: envelope, head, body, end.
//!
//! In: the commands of a transaction, as bytes. Out: an answer to each, as its stage knows it; at the end, what to record.
//! Promise: memory is bounded by the service's budget; the rules decide, and nothing here does.
//! Fails: trouble of ours, and a command out of order, is a reply of 4xx and a log line with the queue id.

use super::{
    Fault,
    fate::Interest,
    head::{PARSED_INLINE, RawHead, ReadHead},
    record::{End, Pending, Recall},
    service::{Asked, Live, Service, look_ups_end},
    transaction::{Client, Recalled, Told, Transaction},
};
use crate::activity::{Key, Parcel, Participant};
use crate::directory::Unavailable;
use crate::mail::{Automatic, Head, Intake, ReadPart, Reader, Spill, SpillError};
use crate::observe::events;
use crate::rules::{self, Discard, Mixed, Reason, Record, Reply, Target, Verdict};
use std::{collections::BTreeMap, ffi::CStr, sync::Arc, time::SystemTime};
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Bytes of body that are read before another session has its turn.
const PIECE: usize = 64 * 1024;

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

/// What the rules said at end of header.
struct Outcome {
    records: Vec<Record>,
    refused: BTreeMap<String, Reply>,
    discarded: BTreeMap<String, Discard>,
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
    spill: Spill,
    failed: Option<SpillError>,
}

impl Session {
    /// A session without a transaction.
    pub fn new(live: Live) -> Self {
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
        self.begin(Transaction::new(path, intake));
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
            Stage::Envelope(transaction) => transaction.rcpt(&self.service, path, client).await,
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
        let transaction = match std::mem::replace(&mut self.stage, Stage::Idle) {
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
        transaction.look_for_private(&self.service.policy);
        self.last = transaction.told();
        let read = match raw.read(&self.service, &transaction).await {
            Ok(Ok(read)) => read,
            Ok(Err(reason)) => return self.refuse(&transaction, reason).map(|()| Interest::Nothing),
            Err(fault) => return Err(self.fault(STAGE, &fault)),
        };
        transaction.message_id.clone_from(&read.head.message_id);
        if !read.private.is_empty() {
            transaction.keep_private();
        }
        transaction.set_login(read.login.clone());
        self.last = transaction.told();
        self.note_left_out(&transaction, &read);
        self.automatic = transaction.automatic(&read.head);
        let judged = self.judge(&mut transaction, &read).await;
        // Only now is it known whether all people are users.
        self.last = transaction.told();
        let Some(outcome) = judged? else { return Ok(Interest::Nothing) };
        let decided = Box::new(Decided::new(&self.service, read, outcome).await);
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

    /// What the rules say for targets; none where there are only such in shadow mode.
    async fn judge(&self, transaction: &mut Transaction, read: &ReadHead) -> Result<Option<Outcome>, Reply> {
        const STAGE: &str = "end-of-header";
        let targets: Vec<Target> = transaction.recipients.targets().cloned().collect();
        let shadowed: Vec<Target> = transaction.recipients.shadowed().cloned().collect();
        let mixed = transaction.mixed(&self.service.policy);
        let asked = Asked {
            read,
            automatic: self.automatic,
            other_recipients: transaction.recipients.has_others(),
            mixed,
        };
        // One deadline for all look-ups of the message.
        let deadline = look_ups_end();
        let in_shadow = Asked { mixed: self.service.policy.mixed, ..asked };
        let (decided, would_be) = tokio::join!(
            self.decide_for(&targets, &asked, deadline),
            self.decide_for(&shadowed, &in_shadow, deadline)
        );
        if [&decided, &would_be].into_iter().flatten().flatten().any(Verdict::is_private) {
            transaction.keep_private();
        }
        tell_shadowed(transaction, &shadowed, would_be);
        let (records, refused, discarded) = match decided {
            None => return Ok(None),
            Some(Err(error)) => {
                events::directory_unavailable(transaction.queue_id(), &error);
                self.refuse(transaction, Reason::DirectoryUnavailable)?;
                return Ok(None);
            }
            Some(Ok(Verdict::Refuse(reply))) => {
                let tenant = targets.first().map(|target| target.tenant.id.as_str());
                let recipient = targets.first().map(|target| &target.address);
                transaction.log_refusal(tenant, recipient, STAGE, &reply);
                return Err(reply);
            }
            Some(Ok(Verdict::Record { records, refused, discarded })) => (records, refused, discarded),
        };
        for (tenant, reply) in &refused {
            match mixed {
                // Whether the e-mail is known shows at its end.
                Mixed::Each if reply.reason.may_be_known() => {}
                Mixed::Each => transaction.log_refusal(Some(tenant), None, STAGE, reply),
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
        let (refused, discarded) = (refused.into_iter().collect(), discarded.into_iter().collect());
        Ok(Some(Outcome { records, refused, discarded }))
    }

    /// What the rules say for targets, if there are any.
    async fn decide_for(
        &self,
        targets: &[Target],
        asked: &Asked<'_>,
        deadline: Instant,
    ) -> Option<Result<Verdict, Unavailable>> {
        match targets.is_empty() {
            true => None,
            false => Some(self.service.decide(targets, asked, deadline).await),
        }
    }

    /// A piece of the body. Nobody can be answered here: trouble, and a piece out of order, are met again at the end.
    pub async fn body(&mut self, piece: &[u8]) {
        let Stage::Body(_, decided) = &mut self.stage else { return };
        for (index, piece) in piece.chunks(PIECE).enumerate() {
            if index > 0 {
                tokio::task::yield_now().await;
            }
            decided.take(piece).await;
        }
    }

    /// End of message: builds the activities.
    /// # Errors
    /// The reply to the message.
    pub async fn end(&mut self) -> Result<End, Reply> {
        const STAGE: &str = "end-of-message";
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
        let pending = Pending { parcel, queue_id, transaction: number, in_flight, reserved };
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
        Ok(Verdict::Refuse(reply)) => {
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
    async fn new(service: &Service, read: ReadHead, outcome: Outcome) -> Self {
        let Outcome { records, refused, discarded } = outcome;
        let ReadHead { bytes, head, reader, reserved, .. } = read;
        drop(reserved); // the buffer has its own from here on
        let policy = &service.policy;
        let spill =
            Spill::new(&service.spool, policy.max_size, &service.budget).keeping_free(policy.min_free);
        let words = words_of(&head, &records);
        // What LMTP refuses for want of a user, or of a proof, is known by its content, if it is.
        let is_asked = refused.values().any(|reply| reply.reason.may_be_known());
        let reader = Some(reader).filter(|_| is_asked || !records.is_empty());
        let mut decided = Self { head, records, words, reader, refused, discarded, spill, failed: None };
        if !decided.records.is_empty() {
            decided.failed = decided.keep_head(&bytes).await.err();
        }
        decided
    }

    async fn keep_head(&mut self, bytes: &[u8]) -> Result<(), SpillError> {
        self.spill.push(bytes).await?;
        self.spill.push(b"\r\n").await?;
        self.spill.also_hold(taken(self.words, self.records.len()))
    }

    /// Takes a piece of the body: to be kept if something is recorded, to be read in any case.
    async fn take(&mut self, piece: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        let Some(reader) = &mut self.reader else { return };
        reader.push(piece);
        let kept = async {
            self.spill.also_hold(taken(reader.held() + self.words, self.records.len()))?;
            if self.records.is_empty() { Ok(()) } else { self.spill.push(piece).await }
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

/// Bytes of people, ids and subject, as each activity has them.
fn words_of(head: &Head, records: &[Record]) -> usize {
    let participant = |p: &Participant| 100 + p.address.len() + p.name.as_ref().map_or(0, String::len);
    let people = |record: &Record| -> usize { record.parties.participants.iter().map(participant).sum() };
    let ids: usize = head.in_reply_to.iter().chain(&head.references).map(|id| id.len() + 4).sum();
    // All tenants have the same people.
    records.first().map_or(0, people) + ids + head.subject.as_ref().map_or(0, String::len)
}
