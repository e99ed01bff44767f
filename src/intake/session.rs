//! One SMTP session, whatever the protocol: envelope, head, body, end.
//!
//! In: the commands of a transaction, as bytes. Out: a [`Step`] for each; at the end, what to record.
//! Promise: memory is bounded by the service's budget; the rules decide, and nothing here does.
//! Fails: a [`Fault`] for a command out of order; trouble of ours becomes a reply of 4xx.

use super::service::{Live, Policy, Refusal, Service};
use crate::activity::{Key, Parcel, Participant};
use crate::mail::{
    Address, Envelope, Head, Intake, LIMITS, Limits, MAX_HEAD_BYTES, ReadPart, Reader, Recipient,
    Reservation, Spill, SpillError, domain_of, parse_path,
};
use crate::observe::{self, events, metrics};
use crate::rules::{self, Addressing, Correspondents, Mixed, Reason, Record, Reply, Target, Verdict};
use std::{
    collections::{BTreeMap, HashSet},
    ffi::{CStr, CString},
    sync::Arc,
    time::SystemTime,
};
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Largest head, and most text, that is parsed where it arrives; more goes to a thread that may block.
const PARSED_INLINE: usize = 64 * 1024;

/// Bytes of body that are read before another session has its turn.
const PIECE: usize = 64 * 1024;

/// Recipients that the trace is told of.
const TOLD: usize = 50;

/// Bytes of text in all activities of a message together.
const TEXT_OF_ALL: usize = 8 * 1024 * 1024;

/// What the protocol answers to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Go on.
    Continue,
    /// Nothing of ours in it: let it pass and ask no more.
    Pass,
    /// Refuse or defer the recipient or the message.
    Refuse(Reply),
    /// Taken, and nobody else gets it.
    Discard,
    /// Taken; the message goes on without these recipients, given back as the client wrote them.
    DeliverWithout(Vec<CString>),
}

/// How a message ends.
#[derive(Debug)]
pub enum End {
    /// Nothing to record.
    Step(Step),
    /// Record this, then answer `then`.
    Record {
        /// The activities.
        parcel: Parcel,
        /// For the log.
        queue_id: String,
        /// For the trace: which transaction it was.
        transaction: i64,
        /// What to answer once they are on disk.
        then: Step,
        /// Shows the drain that this message still wants its answer.
        in_flight: Option<TaskTrackerToken>,
        /// Memory that the message has, until it is answered.
        reserved: Reservation,
    },
}

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

/// A recipient that the rules refuse, unless the e-mail is known: it may have come by the milter, whose sender had a login.
#[derive(Clone, Debug)]
pub struct Recall {
    /// Index among [`Session::targets`].
    pub target: usize,
    /// The e-mail's key for this target.
    pub key: Key,
}

/// A command came where it cannot.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The protocol has no session yet.
    #[error("command before negotiation")]
    NoSession,
    /// Not this command now.
    #[error("{0} out of order")]
    OutOfOrder(&'static str),
    /// Our own trouble.
    #[error("{0}")]
    Internal(String),
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

/// What MAIL and RCPT said.
struct Transaction {
    /// For the trace: before the second RCPT it has no queue id.
    id: i64,
    /// Once the head is read.
    message_id: Option<String>,
    envelope: Envelope,
    /// Integration recipients and what they resolve to; the raw form is what DELRCPT must name.
    targets: Vec<(CString, Target)>,
    /// Targets of tenants in shadow mode: judged, logged, and otherwise other people's mail.
    shadowed: Vec<Target>,
    other_recipients: bool,
    /// Shows the drain that this message wants an answer.
    in_flight: Option<TaskTrackerToken>,
}

/// What the log and the trace say of a transaction.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Its number.
    pub transaction: Option<i64>,
    /// The envelope sender.
    pub sender: Option<String>,
    /// Message-ID without brackets.
    pub message_id: Option<String>,
}

/// The header as it arrives, exactly as Postfix shows it.
struct RawHead {
    bytes: Vec<u8>,
    reserved: Reservation,
    /// Why the rest of it is not kept.
    failed: Option<Reason>,
}

/// What the rules said at end of header, waiting for the body.
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
            last: Told::default(),
        }
    }

    /// The service the session belongs to.
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// The queue id, as far as it is known, for log lines about faults.
    pub fn queue_id(&self) -> &str {
        match &self.stage {
            Stage::Idle => "",
            Stage::Envelope(t) | Stage::Header(t, _) | Stage::Body(t, _) => t.queue_id(),
        }
    }

    /// MAIL: a new transaction. An envelope sender that is no address counts as none; it is not ours to refuse.
    pub fn mail(&mut self, path: &[u8], intake: Intake) {
        self.service = self.live.now();
        self.stage = Stage::Envelope(Transaction {
            id: observe::transaction(),
            message_id: None,
            envelope: Envelope {
                sender: parse_path(path).ok().flatten(),
                recipients: Vec::new(),
                queue_id: None,
                client: None,
                login: None,
                intake,
            },
            targets: Vec::new(),
            shadowed: Vec::new(),
            other_recipients: false,
            in_flight: None,
        });
    }

    /// The SMTP client's address and login name, of this transaction.
    pub fn set_client(&mut self, client: Option<String>, login: Option<String>) {
        if let Stage::Envelope(t) | Stage::Header(t, _) | Stage::Body(t, _) = &mut self.stage {
            (t.envelope.client, t.envelope.login) = (client, login);
        }
    }

    /// Postfix has a queue id from the second RCPT on.
    pub fn set_queue_id(&mut self, queue_id: Option<String>) {
        if let Stage::Envelope(t) | Stage::Header(t, _) | Stage::Body(t, _) = &mut self.stage
            && queue_id.is_some()
        {
            t.envelope.queue_id = queue_id;
        }
    }

    /// RCPT: another recipient. Refusals touch this recipient alone.
    /// # Errors
    /// A fault for a command out of order.
    pub async fn rcpt(&mut self, path: &CStr) -> Result<Step, Fault> {
        self.rcpt_from(path, || None).await
    }

    /// RCPT, where `who` knows the client's address and login name; it is asked only where a recipient is ours.
    /// # Errors
    /// A fault for a command out of order.
    pub async fn rcpt_from(
        &mut self,
        path: &CStr,
        who: impl FnOnce() -> Option<(Option<String>, Option<String>)>,
    ) -> Result<Step, Fault> {
        let Stage::Envelope(transaction) = &mut self.stage else { return Err(Fault::OutOfOrder("RCPT")) };
        let service = &self.service;
        let address = match parse_path(path.to_bytes()) {
            Ok(Some(address)) => address,
            Err(_) if domain_of(path.to_bytes()).is_some_and(|d| service.addressing.domains.contains(&d)) => {
                transaction.came_from(who());
                return Ok(transaction.refuse_recipient(service, Reason::BadAddress.into(), None));
            }
            Ok(None) | Err(_) => return Ok(transaction.take_other(service, None)),
        };
        let mut recipient = Recipient { raw: path.to_owned(), address, tenant: None };
        if !service.addressing.covers(&recipient.address) {
            return Ok(transaction.take_other(service, Some(recipient)));
        }
        transaction.came_from(who());
        let before = transaction.targets.len() + transaction.shadowed.len();
        let also = transaction.named(&service.addressing);
        match service.resolve(&recipient.address, before, &also, transaction.queue_id()).await {
            Ok(target) => {
                recipient.tenant = Some(target.tenant.id.clone());
                if service.shadows(Some(&target.tenant)) {
                    if transaction.envelope.intake == Intake::Lmtp {
                        return Ok(transaction.leave_with_postfix(service, &target));
                    }
                    transaction.other_recipients = true;
                    transaction.shadowed.push(target);
                } else {
                    metrics::integration_recipient();
                    transaction.in_flight.get_or_insert_with(|| service.hold());
                    transaction.targets.push((path.to_owned(), target));
                }
                transaction.envelope.recipients.push(recipient);
                Ok(Step::Continue)
            }
            Err(refusal) => Ok(transaction.refuse_recipient(service, refusal, Some(&recipient.address))),
        }
    }

    /// True between MAIL and DATA.
    pub fn awaits_data(&self) -> bool {
        matches!(self.stage, Stage::Envelope(_))
    }

    /// DATA: the recipients are complete. Other people's mail ends here.
    /// # Errors
    /// A fault for a command out of order.
    pub fn data(&mut self) -> Result<Step, Fault> {
        let Stage::Envelope(transaction) = std::mem::replace(&mut self.stage, Stage::Idle) else {
            return Err(Fault::OutOfOrder("DATA"));
        };
        if transaction.targets.is_empty() && transaction.shadowed.is_empty() {
            events::passed(transaction.queue_id());
            return Ok(Step::Pass);
        }
        let reserved = self.service.budget.reserve();
        self.stage =
            Stage::Header(transaction, RawHead { bytes: Vec::with_capacity(4096), reserved, failed: None });
        Ok(Step::Continue)
    }

    /// A header field, in pieces that together are its exact bytes without the final line break.
    /// # Errors
    /// A fault for a command out of order.
    pub fn header(&mut self, name: &[u8], value: &[u8]) -> Result<Step, Fault> {
        let Stage::Header(_, head) = &mut self.stage else { return Err(Fault::OutOfOrder("header")) };
        if !head.admits(name.len() + value.len()) {
            return Ok(Step::Continue);
        }
        head.bytes.extend_from_slice(name);
        head.bytes.push(b':');
        // The milter protocol shows folds as bare LF.
        for (i, line) in value.split(|&b| b == b'\n').enumerate() {
            if i > 0 {
                head.bytes.extend_from_slice(b"\r\n");
            }
            head.bytes.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
        }
        head.bytes.extend_from_slice(b"\r\n");
        Ok(Step::Continue)
    }

    /// A piece of the header as it is, with its line breaks.
    /// # Errors
    /// A fault for a command out of order.
    pub fn raw_header(&mut self, piece: &[u8]) -> Result<Step, Fault> {
        let Stage::Header(_, head) = &mut self.stage else { return Err(Fault::OutOfOrder("header")) };
        if head.admits(piece.len()) {
            head.bytes.extend_from_slice(piece);
        }
        Ok(Step::Continue)
    }

    /// End of header: the rules decide, before the body is sent.
    /// # Errors
    /// A fault for a command out of order.
    pub async fn end_of_header(&mut self) -> Result<Step, Fault> {
        let Stage::Header(mut transaction, raw) = std::mem::replace(&mut self.stage, Stage::Idle) else {
            return Err(Fault::OutOfOrder("end of header"));
        };
        let RawHead { bytes, mut reserved, failed } = raw;
        if let Some(reason) = failed {
            return Ok(self.refuse(&transaction, reason));
        }
        let read = match read_head(&self.service, &transaction, bytes, &mut reserved).await? {
            Ok(read) => read,
            Err(reason) => return Ok(self.refuse(&transaction, reason)),
        };
        let ReadHead { bytes, head, correspondents, reader } = read;
        transaction.message_id.clone_from(&head.message_id);
        let left_out = LeftOut {
            omitted: correspondents.omitted,
            skipped: correspondents.skipped,
            cut_fields: head.cut_fields,
        };
        events::people_left_out(
            transaction.queue_id(),
            left_out.omitted,
            left_out.skipped,
            left_out.cut_fields,
        );
        self.left_out = Some(left_out);
        self.judge_shadowed(&transaction, &head, &correspondents).await;
        if transaction.targets.is_empty() {
            return Ok(Step::Pass);
        }
        let targets: Vec<Target> = transaction.targets.iter().map(|(_, target)| target.clone()).collect();
        let others = transaction.other_recipients;
        let mixed = transaction.mixed(&self.service.policy);
        let decided = self.service.decide(&targets, &head, &correspondents, others, mixed).await;
        let (records, refused) = match decided {
            Err(error) => {
                events::directory_unavailable(transaction.queue_id(), &error);
                return Ok(self.refuse(&transaction, Reason::DirectoryUnavailable));
            }
            Ok(Verdict::Refuse(reply)) => {
                let tenant = targets.first().map(|target| target.tenant.id.as_str());
                let recipient = targets.first().map(|target| &target.address);
                transaction.log_refusal(tenant, recipient, "end-of-header", &reply);
                return Ok(Step::Refuse(reply));
            }
            Ok(Verdict::Record { records, refused }) => {
                for (tenant, reply) in &refused {
                    match mixed {
                        // Whether the e-mail is known shows at its end.
                        Mixed::Each if reply.reason == Reason::NoUser => {}
                        Mixed::Each => transaction.log_refusal(Some(tenant), None, "end-of-header", reply),
                        Mixed::Strip | Mixed::Reject => {
                            transaction.tell(Some(tenant), None, true, |who| events::stripped(who, reply))
                        }
                    }
                }
                (records, refused.into_iter().collect::<BTreeMap<_, _>>())
            }
        };
        drop(reserved); // the buffer has its own from here on
        let policy = &self.service.policy;
        let mut spill = Spill::new(&self.service.spool, policy.max_size, &self.service.budget)
            .keeping_free(policy.min_free);
        let mut failed = spill.push(&bytes).await.err();
        if failed.is_none() {
            failed = spill.push(b"\r\n").await.err();
        }
        let words = words_of(&head, &records);
        if failed.is_none() {
            failed = spill.also_hold(taken(words, records.len())).err();
        }
        let reader = Some(reader);
        self.stage = Stage::Body(
            transaction,
            Box::new(Decided { head, records, words, reader, refused, spill, failed }),
        );
        Ok(Step::Continue)
    }

    /// Logs what would become of the message for tenants in shadow mode.
    async fn judge_shadowed(&self, transaction: &Transaction, head: &Head, correspondents: &Correspondents) {
        let Some(first) = transaction.shadowed.first() else { return };
        let (queue_id, others) = (transaction.queue_id(), transaction.other_recipients);
        let mixed = self.service.policy.mixed;
        match self.service.decide(&transaction.shadowed, head, correspondents, others, mixed).await {
            Err(error) => events::directory_unavailable(queue_id, &error),
            Ok(Verdict::Refuse(reply)) => {
                transaction.would_refuse(Some(first), &first.tenant.id, "end-of-header", &reply)
            }
            Ok(Verdict::Record { records, refused }) => {
                for (tenant, reply) in &refused {
                    let target = transaction.shadowed.iter().find(|target| target.tenant.id == *tenant);
                    transaction.would_refuse(target, tenant, "end-of-header", reply);
                }
                for parties in records.iter().map(|record| &record.parties) {
                    let project = parties.project.as_ref().map(|p| p.number.as_str());
                    let (tenant, is_it) = (&parties.tenant.id, |target: &&Target| {
                        target.tenant.id == parties.tenant.id
                            && target.project.as_ref().map(|p| p.number.as_str()) == project
                    });
                    let target = transaction.shadowed.iter().find(is_it);
                    let recipient = target.map(|target| target.address.to_string());
                    let tell = |who: &events::Who<'_>| events::would_record(who, project);
                    transaction.tell(Some(tenant), recipient.as_deref(), true, tell);
                }
            }
        }
    }

    /// A piece of the body. Nobody can be answered here, so trouble is remembered for the end.
    /// # Errors
    /// A fault for a command out of order.
    pub async fn body(&mut self, piece: &[u8]) -> Result<Step, Fault> {
        let Stage::Body(_, decided) = &mut self.stage else { return Err(Fault::OutOfOrder("body")) };
        for (index, piece) in piece.chunks(PIECE).enumerate() {
            if index > 0 {
                tokio::task::yield_now().await;
            }
            decided.take(piece).await;
        }
        Ok(Step::Continue)
    }

    /// End of message: builds the activities.
    /// # Errors
    /// A fault for a command out of order, or of ours.
    pub async fn end(&mut self) -> Result<(End, Vec<Recall>), Fault> {
        let (mut transaction, decided) = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Body(transaction, decided) => (transaction, *decided),
            _ => return Err(Fault::OutOfOrder("end of message")),
        };
        self.last = transaction.told();
        let Decided { head, records, reader, refused, spill, failed, .. } = decided;
        let then = transaction.after_accept(&self.service.policy, &refused);
        let recalled = transaction.recalled(&refused);
        if records.is_empty() && recalled.is_empty() {
            return Ok((End::Step(then), Vec::new()));
        }
        let (raw, reserved) = match failed {
            None => match spill.finish().await {
                Ok(finished) => finished,
                Err(error) => return Ok((End::Step(self.fail(&transaction, error)), Vec::new())),
            },
            Some(error) => return Ok((End::Step(self.fail(&transaction, error)), Vec::new())),
        };
        let Some(reader) = reader else { return Err(Fault::Internal("the body was not read".to_owned())) };
        let held = reader.held();
        let (queue_id, number) = (transaction.queue_id().to_owned(), transaction.id);
        let in_flight = transaction.in_flight.take();
        let parties: Vec<_> = records.into_iter().map(|record| record.parties).collect();
        let build = move || {
            let body = reader.finish();
            let recall = |(target, tenant, project): (usize, String, Option<String>)| Recall {
                target,
                key: Key::digest(&tenant, project.as_deref(), &head, &body.digest),
            };
            let recalls: Vec<Recall> = recalled.into_iter().map(recall).collect();
            let parts = body.parts.clone();
            let parcel = Parcel::build(parties, &transaction.envelope, &head, body, raw, SystemTime::now());
            (parcel, recalls, parts)
        };
        let (parcel, recalls, parts) =
            if held > PARSED_INLINE { self.service.apart(build).await? } else { build() };
        if parcel.activities.is_empty() {
            return Ok((End::Step(then), recalls));
        }
        self.parts = parts;
        Ok((End::Record { parcel, queue_id, transaction: number, then, in_flight, reserved }, recalls))
    }

    /// Whom the last head names without being listed, for `explain`.
    pub fn left_out(&self) -> Option<LeftOut> {
        self.left_out
    }

    /// Where each part of the last message went, for `explain`.
    pub fn parts(&self) -> &[ReadPart] {
        &self.parts
    }

    /// Refuses or defers a message whose bytes could not be kept.
    fn fail(&self, transaction: &Transaction, error: SpillError) -> Step {
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
        self.refuse(transaction, reason)
    }

    /// The transaction is over, whatever it had come to.
    pub fn abort(&mut self) {
        if let Stage::Envelope(t) | Stage::Header(t, _) | Stage::Body(t, _) = &self.stage {
            self.last = t.told();
        }
        self.stage = Stage::Idle;
    }

    /// What the log says of the transaction that ended last.
    pub fn last(&self) -> &Told {
        &self.last
    }

    /// What the integration recipients so far resolve to, in the order of RCPT.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        let targets: &[(CString, Target)] = match &self.stage {
            Stage::Idle => &[],
            Stage::Envelope(t) | Stage::Header(t, _) | Stage::Body(t, _) => &t.targets,
        };
        targets.iter().map(|(_, target)| target)
    }

    /// Why nothing is recorded for the recipient, for each of [`Session::targets`]; nothing before the end of the header.
    pub fn refusals(&self) -> Vec<Option<Reply>> {
        let Stage::Body(transaction, decided) = &self.stage else { return Vec::new() };
        let texts = &self.service.texts;
        let omitted = self.left_out.map_or(0, |left_out| left_out.omitted);
        let refused = |target: &Target| {
            let reason = decided.refused.get(&target.tenant.id)?.reason;
            Some(match reason {
                Reason::NoUser => {
                    rules::no_user_reply(texts, &target.address, self.service.policy.max_people, omitted)
                }
                reason => texts.reply(reason, Some(&target.address)),
            })
        };
        transaction.targets.iter().map(|(_, target)| refused(target)).collect()
    }

    /// What the rules said of the records, for `explain`; empty before the end of the header.
    pub fn records(&self) -> &[Record] {
        match &self.stage {
            Stage::Body(_, decided) => &decided.records,
            _ => &[],
        }
    }

    /// Refuses or defers the message; a message of tenants in shadow mode only passes.
    fn refuse(&self, transaction: &Transaction, reason: Reason) -> Step {
        let target = transaction.targets.first().map(|(_, target)| target);
        let Some(target) = target else {
            let shadowed = transaction.shadowed.first();
            let reply = self.service.texts.reply(reason, shadowed.map(|t| &t.address));
            let tenant = shadowed.map(|t| t.tenant.id.as_str());
            transaction.would_refuse(shadowed, tenant.unwrap_or_default(), "message", &reply);
            return Step::Pass;
        };
        let reply = self.service.texts.reply(reason, Some(&target.address));
        transaction.log_refusal(Some(&target.tenant.id), Some(&target.address), "message", &reply);
        Step::Refuse(reply)
    }
}

impl Decided {
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

impl RawHead {
    /// Makes room for a piece, or remembers why there is none.
    fn admits(&mut self, piece: usize) -> bool {
        let length = self.bytes.len() + piece;
        if length > MAX_HEAD_BYTES {
            self.failed = Some(Reason::UnreadableHead);
        } else if self.reserved.grow_to(length as u64).is_err() {
            self.failed = Some(Reason::Busy);
        }
        self.failed.is_none()
    }
}

impl Transaction {
    /// The client and its login name, if somebody knows them.
    fn came_from(&mut self, who: Option<(Option<String>, Option<String>)>) {
        if let Some((client, login)) = who {
            (self.envelope.client, self.envelope.login) = (client, login);
        }
    }

    fn queue_id(&self) -> &str {
        self.envelope.queue_id.as_deref().unwrap_or_default()
    }

    /// Who is known to be in it before the header comes.
    fn named(&self, addressing: &Addressing) -> Vec<Address> {
        let recipients = self.envelope.recipients.iter().map(|recipient| &recipient.address);
        let all = self.envelope.sender.iter().chain(recipients);
        all.filter(|address| !addressing.covers(address)).cloned().collect()
    }

    fn log_refusal(&self, tenant: Option<&str>, to: Option<&Address>, stage: &'static str, reply: &Reply) {
        let recipient = to.map(Address::to_string);
        self.tell(tenant, recipient.as_deref(), stage != "rcpt", |who| events::refused(who, stage, reply));
    }

    /// Shadow mode: this reply would have been given.
    fn would_refuse(&self, target: Option<&Target>, tenant: &str, stage: &'static str, reply: &Reply) {
        let recipient = target.map(|target| target.address.to_string());
        let tell = |who: &events::Who<'_>| events::would_refuse(who, stage, reply);
        self.tell(Some(tenant).filter(|tenant| !tenant.is_empty()), recipient.as_deref(), true, tell);
    }

    /// Says what became of the message, or of a recipient. `all`: with the other recipients, as far as they are told.
    fn tell(
        &self,
        tenant: Option<&str>,
        recipient: Option<&str>,
        all: bool,
        tell: impl FnOnce(&events::Who<'_>),
    ) {
        let recipients: Vec<String> = if all {
            self.envelope.recipients.iter().take(TOLD).map(|r| r.address.to_string()).collect()
        } else {
            Vec::new()
        };
        let Told { transaction, sender, message_id } = self.told();
        tell(&events::Who {
            queue_id: self.queue_id(),
            tenant,
            sender: sender.as_deref(),
            recipient,
            transaction,
            door: Some(self.envelope.intake.as_str()),
            client: self.envelope.client.as_deref(),
            message_id: message_id.as_deref(),
            recipients: &recipients,
            ..events::Who::default()
        });
    }

    fn told(&self) -> Told {
        Told {
            transaction: Some(self.id),
            // The null sender is shown as such.
            sender: Some(self.envelope.sender.as_ref().map(Address::to_string).unwrap_or_default()),
            message_id: self.message_id.clone(),
        }
    }

    /// What LMTP's recipients without a user are known by, if they are: index among the targets, tenant and project.
    fn recalled(&self, refused: &BTreeMap<String, Reply>) -> Vec<(usize, String, Option<String>)> {
        if self.envelope.intake != Intake::Lmtp {
            return Vec::new();
        }
        let no_user = |target: &Target| {
            refused.get(&target.tenant.id).is_some_and(|reply| reply.reason == Reason::NoUser)
        };
        let targets = self.targets.iter().enumerate().filter(|(_, (_, target))| no_user(target));
        let word = |(index, (_, target)): (usize, &(CString, Target))| {
            (index, target.tenant.id.clone(), target.project.as_ref().map(|project| project.id.clone()))
        };
        targets.map(word).collect()
    }

    /// A recipient that is no integration address: the milter lets it pass, LMTP has nowhere to deliver it to.
    fn take_other(&mut self, service: &Service, recipient: Option<Recipient>) -> Step {
        if self.envelope.intake == Intake::Lmtp {
            let address = recipient.as_ref().map(|r| &r.address);
            return self.refuse_recipient(service, Reason::NotIntegrationAddress.into(), address);
        }
        metrics::other_recipient();
        self.other_recipients = true;
        self.envelope.recipients.extend(recipient);
        Step::Continue
    }

    /// Refuses or defers one recipient, or only says that it would be.
    fn refuse_recipient(&mut self, service: &Service, refusal: Refusal, address: Option<&Address>) -> Step {
        let mut reply = service.texts.reply(refusal.reason, address);
        let tenant = refusal.tenant.as_ref();
        let id = tenant.map(|tenant| tenant.id.as_str());
        if service.shadows(tenant) {
            let recipient = address.map(Address::to_string);
            self.tell(id, recipient.as_deref(), false, |who| events::would_refuse(who, "rcpt", &reply));
            if self.envelope.intake != Intake::Lmtp {
                self.other_recipients = true;
                return Step::Continue;
            }
            reply = service.texts.reply(Reason::ShadowMode, address);
        }
        self.log_refusal(id, address, "rcpt", &reply);
        Step::Refuse(reply)
    }

    /// Shadow mode records nothing, and behind LMTP nobody else would: Postfix keeps the message and tries again.
    fn leave_with_postfix(&self, service: &Service, target: &Target) -> Step {
        let reply = service.texts.reply(Reason::ShadowMode, Some(&target.address));
        self.log_refusal(Some(&target.tenant.id), Some(&target.address), "rcpt", &reply);
        Step::Refuse(reply)
    }

    /// Whom a failed rule touches.
    fn mixed(&self, policy: &Policy) -> Mixed {
        if self.envelope.intake == Intake::Lmtp { Mixed::Each } else { policy.mixed }
    }

    /// What becomes of the message in Postfix once its activities are recorded.
    fn after_accept(&self, policy: &Policy, refused: &BTreeMap<String, Reply>) -> Step {
        let leaves = |target: &Target| !policy.keep_after_accept || refused.contains_key(&target.tenant.id);
        let mut seen = HashSet::new();
        let taken_out: Vec<CString> = self
            .targets
            .iter()
            .filter(|(raw, target)| leaves(target) && seen.insert(raw.clone()))
            .map(|(raw, _)| raw.clone())
            .collect();
        let anybody_left = self.other_recipients || self.targets.iter().any(|(_, target)| !leaves(target));
        match (taken_out.is_empty(), anybody_left) {
            (true, _) => Step::Pass,
            (false, true) => Step::DeliverWithout(taken_out),
            (false, false) => Step::Discard,
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

/// A head, read.
struct ReadHead {
    bytes: Vec<u8>,
    head: Head,
    correspondents: Correspondents,
    reader: Reader,
}

/// Reads the head; a large one on a thread that may block.
async fn read_head(
    service: &Arc<Service>,
    transaction: &Transaction,
    bytes: Vec<u8>,
    reserved: &mut Reservation,
) -> Result<Result<ReadHead, Reason>, Fault> {
    let large = bytes.len() > PARSED_INLINE;
    // Fields, digests and people, beside the bytes.
    if large && reserved.grow_to(4 * bytes.len() as u64).is_err() {
        return Ok(Err(Reason::Busy));
    }
    let limits = limits_for(transaction.targets.len());
    if !large {
        return Ok(parse_head(service, &transaction.envelope, bytes, limits));
    }
    let (envelope, of) = (transaction.envelope.clone(), Arc::clone(service));
    service.apart(move || parse_head(&of, &envelope, bytes, limits)).await
}

fn parse_head(
    service: &Service,
    envelope: &Envelope,
    bytes: Vec<u8>,
    limits: Limits,
) -> Result<ReadHead, Reason> {
    let mut head = Head::parse(&bytes).map_err(|_| Reason::UnreadableHead)?;
    let correspondents =
        rules::correspondents(&head, envelope, &service.addressing, service.policy.max_people);
    head.forget_recipients();
    // The empty line goes between.
    let reader = Reader::new(&bytes, bytes.len() as u64 + 2, limits);
    Ok(ReadHead { bytes, head, correspondents, reader })
}

/// The text of all activities of a message together has a limit too; what is longer is a file all the same.
fn limits_for(targets: usize) -> Limits {
    let share = TEXT_OF_ALL / targets.max(1);
    Limits { text_bytes: LIMITS.text_bytes.min(share), ..LIMITS }
}
