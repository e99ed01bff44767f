//! One SMTP session, whatever the protocol: envelope, head, body, end.
//!
//! In: the commands of a transaction, as bytes. Out: a [`Step`] for each; at the end, what to record.
//! Promise: memory is bounded by the service's budget; the rules decide, and nothing here does.
//! Fails: a [`Fault`] for a command out of order; trouble of ours becomes a reply of 4xx.

use super::service::{Live, Policy, Refusal, Service};
use crate::activity::Parcel;
use crate::mail::{
    Address, Envelope, Head, Intake, MAX_HEAD_BYTES, Raw, Recipient, Reservation, Spill, SpillError,
    domain_of, parse_path,
};
use crate::observe::{events, metrics};
use crate::rules::{self, Addressing, Correspondent, Mixed, Reason, Record, Reply, Target, Verdict};
use std::{
    collections::{BTreeMap, HashSet},
    ffi::{CStr, CString},
    io,
    sync::Arc,
    time::SystemTime,
};
use tokio_util::task::task_tracker::TaskTrackerToken;

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
        /// What to answer once they are on disk.
        then: Step,
        /// Shows the drain that this message still wants its answer.
        in_flight: Option<TaskTrackerToken>,
    },
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
    envelope: Envelope,
    /// Integration recipients and what they resolve to; the raw form is what DELRCPT must name.
    targets: Vec<(CString, Target)>,
    /// Targets of tenants in shadow mode: judged, logged, and otherwise other people's mail.
    shadowed: Vec<Target>,
    other_recipients: bool,
    /// Shows the drain that this message wants an answer.
    in_flight: Option<TaskTrackerToken>,
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
        Self { _counted: service.session(), service, live, stage: Stage::Idle }
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
        let Stage::Envelope(transaction) = &mut self.stage else { return Err(Fault::OutOfOrder("RCPT")) };
        let service = &self.service;
        let address = match parse_path(path.to_bytes()) {
            Ok(Some(address)) => address,
            Err(_) if domain_of(path.to_bytes()).is_some_and(|d| service.addressing.domains.contains(&d)) => {
                return Ok(transaction.refuse_recipient(service, Reason::BadAddress.into(), None));
            }
            Ok(None) | Err(_) => return Ok(transaction.take_other(service, None)),
        };
        let mut recipient = Recipient { raw: path.to_owned(), address, tenant: None };
        if !service.addressing.covers(&recipient.address) {
            return Ok(transaction.take_other(service, Some(recipient)));
        }
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
        let Stage::Header(transaction, raw) = std::mem::replace(&mut self.stage, Stage::Idle) else {
            return Err(Fault::OutOfOrder("end of header"));
        };
        let head = match (raw.failed, Head::parse(&raw.bytes)) {
            (None, Ok(head)) => head,
            (failed, _) => return Ok(self.refuse(&transaction, failed.unwrap_or(Reason::UnreadableHead))),
        };
        let correspondents = rules::correspondents(&head, &transaction.envelope, &self.service.addressing);
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
                let recipient = targets.first().map(|target| target.address.to_string());
                transaction.log_refusal(tenant, recipient.as_deref(), "end-of-header", &reply);
                return Ok(Step::Refuse(reply));
            }
            Ok(Verdict::Record { records, refused }) => {
                for (tenant, reply) in &refused {
                    match mixed {
                        Mixed::Each => transaction.log_refusal(Some(tenant), None, "end-of-header", reply),
                        Mixed::Strip | Mixed::Reject => {
                            events::stripped(transaction.queue_id(), tenant, reply)
                        }
                    }
                }
                (records, refused.into_iter().collect())
            }
        };
        let mut spill = Spill::new(&self.service.spool, self.service.policy.max_size, &self.service.budget);
        let mut failed = spill.push(&raw.bytes).await.err();
        if failed.is_none() {
            failed = spill.push(b"\r\n").await.err();
        }
        self.stage = Stage::Body(transaction, Box::new(Decided { head, records, refused, spill, failed }));
        Ok(Step::Continue)
    }

    /// Logs what would become of the message for tenants in shadow mode.
    async fn judge_shadowed(&self, transaction: &Transaction, head: &Head, correspondents: &[Correspondent]) {
        let Some(first) = transaction.shadowed.first() else { return };
        let (queue_id, others) = (transaction.queue_id(), transaction.other_recipients);
        let mixed = self.service.policy.mixed;
        match self.service.decide(&transaction.shadowed, head, correspondents, others, mixed).await {
            Err(error) => events::directory_unavailable(queue_id, &error),
            Ok(Verdict::Refuse(reply)) => {
                events::would_refuse(queue_id, Some(&first.tenant.id), "end-of-header", &reply)
            }
            Ok(Verdict::Record { records, refused }) => {
                for (tenant, reply) in &refused {
                    events::would_refuse(queue_id, Some(tenant), "end-of-header", reply);
                }
                for parties in records.iter().map(|record| &record.parties) {
                    let project = parties.project.as_ref().map(|p| p.number.as_str());
                    events::would_record(queue_id, &parties.tenant.id, project);
                }
            }
        }
    }

    /// A piece of the body. Nobody can be answered here, so trouble is remembered for the end.
    /// # Errors
    /// A fault for a command out of order.
    pub async fn body(&mut self, piece: &[u8]) -> Result<Step, Fault> {
        let Stage::Body(_, decided) = &mut self.stage else { return Err(Fault::OutOfOrder("body")) };
        if decided.failed.is_none() && !decided.records.is_empty() {
            decided.failed = decided.spill.push(piece).await.err();
        }
        Ok(Step::Continue)
    }

    /// End of message: builds the activities.
    /// # Errors
    /// A fault for a command out of order, or if the message cannot be read back.
    pub async fn end(&mut self) -> Result<End, Fault> {
        let (mut transaction, decided) = match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Body(transaction, decided) => (transaction, *decided),
            _ => return Err(Fault::OutOfOrder("end of message")),
        };
        let Decided { head, records, refused, spill, failed } = decided;
        let then = transaction.after_accept(&self.service.policy, &refused);
        if records.is_empty() {
            return Ok(End::Step(then));
        }
        let raw = match failed {
            None => spill.finish().await,
            Some(error) => Err(error),
        };
        let raw = match raw {
            Ok(raw) => raw,
            Err(error) => {
                let reason = match error {
                    SpillError::Busy => Reason::Busy,
                    SpillError::TooLarge => Reason::TooLarge,
                    SpillError::Io(error) => {
                        events::fault(transaction.queue_id(), "body", &error);
                        Reason::StorageFailing
                    }
                };
                return Ok(End::Step(self.refuse(&transaction, reason)));
            }
        };
        let queue_id = transaction.queue_id().to_owned();
        let in_flight = transaction.in_flight.take();
        let parcel = build(records, transaction, head, raw)
            .await
            .map_err(|error| Fault::Internal(error.to_string()))?;
        Ok(End::Record { parcel, queue_id, then, in_flight })
    }

    /// The transaction is over, whatever it had come to.
    pub fn abort(&mut self) {
        self.stage = Stage::Idle;
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
    pub fn refusals(&self) -> Vec<Option<Reason>> {
        let Stage::Body(transaction, decided) = &self.stage else { return Vec::new() };
        let refused = |target: &Target| decided.refused.get(&target.tenant.id).map(|reply| reply.reason);
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
            events::would_refuse(transaction.queue_id(), tenant, "message", &reply);
            return Step::Pass;
        };
        let reply = self.service.texts.reply(reason, Some(&target.address));
        let recipient = target.address.to_string();
        transaction.log_refusal(Some(&target.tenant.id), Some(&recipient), "message", &reply);
        Step::Refuse(reply)
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
    fn queue_id(&self) -> &str {
        self.envelope.queue_id.as_deref().unwrap_or_default()
    }

    /// Who is known to be in it before the header comes.
    fn named(&self, addressing: &Addressing) -> Vec<Address> {
        let recipients = self.envelope.recipients.iter().map(|recipient| &recipient.address);
        let all = self.envelope.sender.iter().chain(recipients);
        all.filter(|address| !addressing.covers(address)).cloned().collect()
    }

    fn log_refusal(&self, tenant: Option<&str>, recipient: Option<&str>, stage: &'static str, reply: &Reply) {
        let sender = self.envelope.sender.as_ref().map(Address::to_string);
        let who = events::Who { queue_id: self.queue_id(), tenant, sender: sender.as_deref(), recipient };
        events::refused(&who, stage, reply);
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
            events::would_refuse(self.queue_id(), id, "rcpt", &reply);
            if self.envelope.intake != Intake::Lmtp {
                self.other_recipients = true;
                return Step::Continue;
            }
            reply = service.texts.reply(Reason::ShadowMode, address);
        }
        self.log_refusal(id, address.map(Address::to_string).as_deref(), "rcpt", &reply);
        Step::Refuse(reply)
    }

    /// Shadow mode records nothing, and behind LMTP nobody else would: Postfix keeps the message and tries again.
    fn leave_with_postfix(&self, service: &Service, target: &Target) -> Step {
        let reply = service.texts.reply(Reason::ShadowMode, Some(&target.address));
        self.log_refusal(Some(&target.tenant.id), Some(&target.address.to_string()), "rcpt", &reply);
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

/// Builds the parcel; a spooled message is read on a thread that may block.
async fn build(records: Vec<Record>, transaction: Transaction, head: Head, raw: Raw) -> io::Result<Parcel> {
    let parties = records.into_iter().map(|record| record.parties).collect();
    let build = move |raw: Raw| Parcel::build(parties, &transaction.envelope, &head, raw, SystemTime::now());
    match raw {
        Raw::Memory(_) => build(raw),
        Raw::File { .. } => {
            tokio::task::spawn_blocking(move || build(raw)).await.map_err(io::Error::other)?
        }
    }
}
