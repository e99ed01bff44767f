//! One SMTP session, whatever the protocol: envelope, head, body, end.
//!
//! In: the commands of a transaction, as bytes. Out: a [`Step`] for each; at the end, what to record.
//! Promise: memory is bounded by the service's budget; the rules decide, and nothing here does.
//! Fails: a [`Fault`] for a command out of order; trouble of ours becomes a reply of 4xx.

use crate::activity::Parcel;
use crate::directory::{Directory, Unavailable};
use crate::mail::{
    Address, Budget, Envelope, Head, Intake, MAX_HEAD_BYTES, Raw, Recipient, Reservation, Spill, SpillError, domain_of,
    parse_path,
};
use crate::observe::events;
use crate::rules::{
    self, Addressing, Case, Correspondent, Mixed, Party, Person, Project, Reason, Record, Reply, Target,
    Tenant, Texts, Verdict,
};
use std::{
    collections::HashSet,
    ffi::{CStr, CString},
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

/// Time for the directory at RCPT and at end of header; Postfix waits 30 s (`milter_command_timeout`).
const LOOK_UP_TIME: Duration = Duration::from_secs(5);

/// What the service does where the design leaves a choice.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Largest message, in bytes.
    pub max_size: u64,
    /// Most integration recipients of one message.
    pub max_recipients: usize,
    /// What a failed rule does to a mixed transaction.
    pub mixed: Mixed,
    /// Leave recorded messages to Postfix instead of discarding them.
    pub keep_after_accept: bool,
    /// Record without link where the project is unknown, instead of refusing.
    pub unlinked_projects: bool,
}

/// What all sessions share.
pub struct Service {
    /// Which addresses are integration addresses.
    pub addressing: Addressing,
    /// Choices.
    pub policy: Policy,
    /// The texts of replies.
    pub texts: Texts,
    /// Who is who.
    pub directory: Arc<dyn Directory>,
    /// Memory for message bytes.
    pub budget: Budget,
    /// Where large messages go while they arrive.
    pub spool: PathBuf,
    draining: AtomicBool,
    /// Counts messages with a target; a token lives in each [`Transaction`] and goes with it.
    in_flight: TaskTracker,
}

impl Service {
    /// A service that takes messages.
    pub fn new(
        addressing: Addressing,
        policy: Policy,
        texts: Texts,
        directory: Arc<dyn Directory>,
        budget: Budget,
        spool: PathBuf,
    ) -> Self {
        let draining = AtomicBool::new(false);
        Self { addressing, policy, texts, directory, budget, spool, draining, in_flight: TaskTracker::new() }
    }

    /// Takes no new messages and waits until those in flight are answered. The answer is how many were not.
    pub async fn drain(&self, patience: Duration) -> usize {
        self.draining.store(true, Ordering::SeqCst);
        self.in_flight.close();
        let _ = tokio::time::timeout(patience, self.in_flight.wait()).await;
        self.in_flight.len()
    }

    /// Messages with a target that are not answered yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }
}

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
    service: Arc<Service>,
    stage: Stage,
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
    /// Ids of tenants whose recipients are taken out although nothing is recorded for them.
    stripped: HashSet<String>,
    spill: Spill,
    failed: Option<SpillError>,
}

impl Session {
    /// A session without a transaction.
    pub fn new(service: Arc<Service>) -> Self {
        Self { service, stage: Stage::Idle }
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
    pub fn mail(&mut self, path: &[u8], client: Option<String>, login: Option<String>, intake: Intake) {
        self.stage = Stage::Envelope(Transaction {
            envelope: Envelope {
                sender: parse_path(path).ok().flatten(),
                recipients: Vec::new(),
                queue_id: None,
                client,
                login,
                intake,
            },
            targets: Vec::new(),
            other_recipients: false,
            in_flight: None,
        });
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
        let address = match parse_path(path.to_bytes()) {
            Ok(Some(address)) => address,
            Err(_)
                if domain_of(path.to_bytes())
                    .is_some_and(|d| self.service.addressing.domains.contains(&d)) =>
            {
                let reply = self.service.texts.reply(Reason::BadAddress, None);
                events::refused(transaction.queue_id(), None, "rcpt", &reply);
                return Ok(Step::Refuse(reply));
            }
            Ok(None) | Err(_) => {
                transaction.other_recipients = true;
                return Ok(Step::Continue);
            }
        };
        if !self.service.addressing.covers(&address) {
            transaction.other_recipients = true;
            transaction.envelope.recipients.push(Recipient { raw: path.to_owned(), address, tenant: None });
            return Ok(Step::Continue);
        }
        match self.service.resolve(transaction, &address).await {
            Ok(target) => {
                let tenant = Some(target.tenant.id.clone());
                transaction.in_flight.get_or_insert_with(|| self.service.in_flight.token());
                transaction.envelope.recipients.push(Recipient { raw: path.to_owned(), address, tenant });
                transaction.targets.push((path.to_owned(), target));
                Ok(Step::Continue)
            }
            Err(reason) => {
                let reply = self.service.texts.reply(reason, Some(&address));
                events::refused(transaction.queue_id(), None, "rcpt", &reply);
                Ok(Step::Refuse(reply))
            }
        }
    }

    /// DATA: the recipients are complete. Other people's mail ends here.
    /// # Errors
    /// A fault for a command out of order.
    pub fn data(&mut self) -> Result<Step, Fault> {
        let Stage::Envelope(transaction) = std::mem::replace(&mut self.stage, Stage::Idle) else {
            return Err(Fault::OutOfOrder("DATA"));
        };
        if transaction.targets.is_empty() {
            events::passed(transaction.queue_id());
            return Ok(Step::Pass);
        }
        let reserved = self.service.budget.reserve();
        self.stage = Stage::Header(transaction, RawHead { bytes: Vec::with_capacity(4096), reserved, failed: None });
        Ok(Step::Continue)
    }

    /// A header field, in pieces that together are its exact bytes without the final line break.
    /// # Errors
    /// A fault for a command out of order.
    pub fn header(&mut self, name: &[u8], value: &[u8]) -> Result<Step, Fault> {
        let Stage::Header(_, head) = &mut self.stage else { return Err(Fault::OutOfOrder("header")) };
        let length = head.bytes.len() + name.len() + value.len();
        if length > MAX_HEAD_BYTES {
            head.failed = Some(Reason::UnreadableHead);
        } else if head.reserved.grow_to(length as u64).is_err() {
            head.failed = Some(Reason::Busy);
        }
        if head.failed.is_some() {
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

    /// End of header: the rules decide, before the body is sent.
    /// # Errors
    /// A fault for a command out of order.
    pub async fn end_of_header(&mut self) -> Result<Step, Fault> {
        let Stage::Header(transaction, raw) = std::mem::replace(&mut self.stage, Stage::Idle) else {
            return Err(Fault::OutOfOrder("end of header"));
        };
        let head = match (raw.failed, Head::parse(&raw.bytes)) {
            (None, Ok(head)) => head,
            (Some(reason), _) => return Ok(self.refuse(&transaction, reason)),
            (None, Err(_)) => return Ok(self.refuse(&transaction, Reason::UnreadableHead)),
        };
        let correspondents = rules::correspondents(&head, &transaction.envelope, &self.service.addressing);
        // A message that fails by its head alone needs no look-up.
        let people = match rules::check_head(&head) {
            Some(_) => Ok(Vec::new()),
            None => self.service.people(&transaction, &correspondents).await,
        };
        let people = match people {
            Ok(people) => people,
            Err(error) => {
                events::directory_unavailable(transaction.queue_id(), &error);
                return Ok(self.refuse(&transaction, Reason::DirectoryUnavailable));
            }
        };
        let (records, stripped) = match self.service.decide(&transaction, &head, &correspondents, &people) {
            Verdict::Refuse(reply) => {
                let tenant = transaction.targets.first().map(|(_, target)| target.tenant.id.as_str());
                events::refused(transaction.queue_id(), tenant, "end-of-header", &reply);
                return Ok(Step::Refuse(reply));
            }
            Verdict::Record { records, stripped } => {
                for (tenant, reply) in &stripped {
                    events::stripped(transaction.queue_id(), tenant, reply);
                }
                (records, stripped.into_iter().map(|(tenant, _)| tenant).collect())
            }
        };
        let mut spill = Spill::new(&self.service.spool, self.service.policy.max_size, &self.service.budget);
        let mut failed = spill.push(&raw.bytes).await.err();
        if failed.is_none() {
            failed = spill.push(b"\r\n").await.err();
        }
        self.stage = Stage::Body(transaction, Box::new(Decided { head, records, stripped, spill, failed }));
        Ok(Step::Continue)
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
        let Decided { head, records, stripped, spill, failed } = decided;
        let then = self.service.after_accept(&transaction, &stripped);
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

    /// What the rules said of the records, for `explain`; empty before the end of the header.
    pub fn records(&self) -> &[Record] {
        match &self.stage {
            Stage::Body(_, decided) => &decided.records,
            _ => &[],
        }
    }

    fn refuse(&self, transaction: &Transaction, reason: Reason) -> Step {
        let target = transaction.targets.first().map(|(_, target)| target);
        let reply = self.service.texts.reply(reason, target.map(|t| &t.address));
        let tenant = target.map(|t| t.tenant.id.as_str());
        events::refused(transaction.queue_id(), tenant, "message", &reply);
        Step::Refuse(reply)
    }
}

impl Transaction {
    fn queue_id(&self) -> &str {
        self.envelope.queue_id.as_deref().unwrap_or_default()
    }

    /// The targets, tenant by tenant, in the order of their first recipient.
    fn by_tenant(&self) -> Vec<Vec<Target>> {
        let mut tenants: Vec<Vec<Target>> = Vec::new();
        for (_, target) in &self.targets {
            match tenants.iter_mut().find(|group| group[0].tenant.id == target.tenant.id) {
                Some(group) => group.push(target.clone()),
                None => tenants.push(vec![target.clone()]),
            }
        }
        tenants
    }
}

impl Service {
    /// What an integration address means, or why it is refused.
    async fn resolve(&self, transaction: &Transaction, address: &Address) -> Result<Target, Reason> {
        if self.draining.load(Ordering::SeqCst) {
            return Err(Reason::ShuttingDown);
        }
        if transaction.targets.len() >= self.policy.max_recipients {
            return Err(Reason::TooManyRecipients);
        }
        match tokio::time::timeout(LOOK_UP_TIME, self.look_up(address)).await {
            Ok(Ok(resolved)) => {
                let (tenant, project) = resolved?;
                Ok(Target { tenant, project, address: address.clone() })
            }
            Ok(Err(error)) => {
                events::directory_unavailable(transaction.queue_id(), &error);
                Err(Reason::DirectoryUnavailable)
            }
            Err(_elapsed) => {
                events::directory_unavailable(transaction.queue_id(), &"no answer in time");
                Err(Reason::DirectoryUnavailable)
            }
        }
    }

    /// The longest prefix that exists decides; whether its project exists comes after.
    async fn look_up(
        &self,
        address: &Address,
    ) -> Result<Result<(Tenant, Option<Project>), Reason>, Unavailable> {
        let readings = self.addressing.readings(address);
        if readings.is_empty() {
            return Ok(Err(Reason::BadAddress));
        }
        for reading in readings {
            let Some(tenant) = self.directory.tenant(&reading.prefix).await? else { continue };
            if !tenant.active {
                return Ok(Err(Reason::TenantInactive));
            }
            let Some(number) = &reading.project else { return Ok(Ok((tenant, None))) };
            return Ok(match self.directory.project(&tenant, number).await? {
                None if !self.policy.unlinked_projects => Err(Reason::UnknownProject),
                project => Ok((tenant, project)),
            });
        }
        Ok(Err(Reason::NoSuchTenant))
    }

    /// What each tenant's directory says of the correspondents.
    async fn people(
        &self,
        transaction: &Transaction,
        correspondents: &[Correspondent],
    ) -> Result<Vec<Vec<Person>>, Unavailable> {
        let addresses: Vec<Address> = correspondents.iter().map(|c| c.address.clone()).collect();
        let ask = async {
            let mut people = Vec::new();
            for group in transaction.by_tenant() {
                people.push(self.directory.people(&group[0].tenant, &addresses).await?);
            }
            Ok(people)
        };
        match tokio::time::timeout(LOOK_UP_TIME, ask).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(Unavailable("no answer in time".to_owned())),
        }
    }

    fn decide(
        &self,
        transaction: &Transaction,
        head: &Head,
        correspondents: &[Correspondent],
        people: &[Vec<Person>],
    ) -> Verdict {
        let groups = transaction.by_tenant();
        let nobody = Vec::new();
        let parties: Vec<Party<'_>> = groups
            .iter()
            .enumerate()
            .map(|(i, targets)| Party { targets, people: people.get(i).unwrap_or(&nobody) })
            .collect();
        rules::decide(&Case {
            head,
            correspondents,
            parties: &parties,
            other_recipients: transaction.other_recipients,
            mixed: self.policy.mixed,
            texts: &self.texts,
        })
    }

    /// What becomes of the message in Postfix once its activities are recorded.
    fn after_accept(&self, transaction: &Transaction, stripped: &HashSet<String>) -> Step {
        let leaves = |target: &Target| !self.policy.keep_after_accept || stripped.contains(&target.tenant.id);
        let mut seen = HashSet::new();
        let taken_out: Vec<CString> = transaction
            .targets
            .iter()
            .filter(|(raw, target)| leaves(target) && seen.insert(raw.clone()))
            .map(|(raw, _)| raw.clone())
            .collect();
        let anybody_left =
            transaction.other_recipients || transaction.targets.iter().any(|(_, t)| !leaves(t));
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
