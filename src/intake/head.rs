//! The head of a message: as it arrives, and read.
//!
//! In: fields, exactly as Postfix shows them. Out: a [`Head`], and whom it names.
//! Promise: its memory is reserved before it is taken; a large one is read on a thread that may block.
//! Fails: a [`Reason`] of the table of replies.

use super::{Fault, service::Service, transaction::Transaction};
use crate::mail::{
    Address, Envelope, Head, Intake, LIMITS, Limits, MAX_HEAD_BYTES, Mention, Reader, Reservation,
    authenticated_sender, everybody,
};
use crate::rules::{self, Correspondents, Evidence, Reason, Who};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Largest head, and most text, that is parsed where it arrives; more goes to a thread that may block.
pub(super) const PARSED_INLINE: usize = 64 * 1024;

/// Bytes of text in all activities of a message together.
const TEXT_OF_ALL: usize = 8 * 1024 * 1024;

/// The header as it arrives.
pub(super) struct RawHead {
    bytes: Vec<u8>,
    reserved: Reservation,
    /// Why the rest of it is not kept.
    failed: Option<Reason>,
}

impl RawHead {
    pub(super) fn new(reserved: Reservation) -> Self {
        Self { bytes: Vec::with_capacity(4096), reserved, failed: None }
    }

    /// A field as the milter protocol shows it: name, value, folds as bare LF.
    pub(super) fn field(&mut self, name: &[u8], value: &[u8]) {
        if !self.admits(name.len() + value.len()) {
            return;
        }
        self.bytes.extend_from_slice(name);
        self.bytes.push(b':');
        for (i, line) in value.split(|&b| b == b'\n').enumerate() {
            if i > 0 {
                self.bytes.extend_from_slice(b"\r\n");
            }
            self.bytes.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
        }
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// A piece of the header as it is, with its line breaks.
    pub(super) fn piece(&mut self, piece: &[u8]) {
        if self.admits(piece.len()) {
            self.bytes.extend_from_slice(piece);
        }
    }

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

    /// Reads it; a large one on a thread that may block.
    /// # Errors
    /// A fault of ours; within, why the message is refused.
    pub(super) async fn read(
        self,
        service: &Arc<Service>,
        transaction: &Transaction,
    ) -> Result<Result<ReadHead, Reason>, Fault> {
        let Self { bytes, mut reserved, failed } = self;
        if let Some(reason) = failed {
            return Ok(Err(reason));
        }
        let large = bytes.len() > PARSED_INLINE;
        // Fields, digests and people, beside the bytes.
        if large && reserved.grow_to(4 * bytes.len() as u64).is_err() {
            return Ok(Err(Reason::Busy));
        }
        let limits = limits_for(transaction.recipients.targets().count());
        let envelope = transaction.envelope();
        let never_log = (transaction.never_log(&service.policy), transaction.mentioned().to_owned());
        if !large {
            return Ok(parse(service, envelope, &never_log, bytes, limits, reserved));
        }
        let of = Arc::clone(service);
        service.apart(move || parse(&of, envelope, &never_log, bytes, limits, reserved)).await
    }
}

/// A head, read.
pub(super) struct ReadHead {
    pub(super) bytes: Vec<u8>,
    pub(super) head: Head,
    pub(super) correspondents: Correspondents,
    /// What proves who sent it.
    pub(super) evidence: Evidence,
    /// The SASL login, as the door or the head says it.
    pub(super) login: Option<String>,
    /// Tenants whose policy says of somebody whom the message names that nothing is recorded.
    pub(super) private: BTreeSet<String>,
    /// Reads the body that follows.
    pub(super) reader: Reader,
    /// Memory for all this, until the buffer of the message has its own.
    pub(super) reserved: Reservation,
}

/// Who is never recorded, by the ids of tenants.
pub(super) type NeverLog = BTreeMap<String, Arc<BTreeSet<Who>>>;

/// The tenants for whom nothing is recorded, because the message names one of theirs: in whatever field, and however many
/// there are.
/// `also`: what stands in the envelope and is no address.
pub(super) fn private(
    never_log: &NeverLog,
    head: &[u8],
    envelope: &Envelope,
    also: &[Mention],
) -> BTreeSet<String> {
    if never_log.is_empty() {
        return BTreeSet::new();
    }
    let login = envelope.login.as_deref().and_then(|login| Address::parse(login).ok());
    let recipients = envelope.recipients.iter().map(|recipient| recipient.address.clone());
    let of_envelope =
        login.into_iter().chain(envelope.sender.clone()).chain(recipients).map(Mention::Address);
    let all = of_envelope.chain(also.iter().cloned()).chain(everybody(head));
    // Tenants that say the same are one question.
    let mut sets: Vec<(&BTreeSet<Who>, Vec<&String>)> = Vec::new();
    for (tenant, set) in never_log {
        match sets.iter_mut().find(|(known, _)| std::ptr::eq(*known, set.as_ref()) || *known == set.as_ref())
        {
            Some((_, tenants)) => tenants.push(tenant),
            None => sets.push((set, vec![tenant])),
        }
    }
    let mut found = BTreeSet::new();
    for mention in all {
        let who = Who::meant_by(&mention);
        sets.retain(|(set, tenants)| {
            let is_named = who.iter().any(|who| set.contains(who));
            found.extend(tenants.iter().filter(|_| is_named).map(|tenant| (*tenant).clone()));
            !is_named
        });
        if sets.is_empty() {
            break;
        }
    }
    found
}

fn parse(
    service: &Service,
    mut envelope: Envelope,
    (never_log, mentioned): &(NeverLog, Vec<Mention>),
    bytes: Vec<u8>,
    limits: Limits,
    reserved: Reservation,
) -> Result<ReadHead, Reason> {
    let mut head = Head::parse(&bytes).map_err(|_| Reason::UnreadableHead)?;
    let trust = &service.policy.trust;
    // LMTP says nothing of logins; the host that took the message by SMTP does, if it is believed.
    if let (Intake::Lmtp, Some(host), Some(received)) = (envelope.intake, &trust.received_by, &head.received)
    {
        envelope.login = authenticated_sender(received, host, envelope.queue_id.as_deref());
    }
    let correspondents =
        rules::correspondents(&head, &envelope, &service.addressing, service.policy.max_people);
    let evidence = Evidence::of(&head, &envelope, trust);
    let evidence = if service.verifier.is_some() { evidence.asked_later() } else { evidence };
    let private = private(never_log, &bytes, &envelope, mentioned);
    head.forget_what_is_read();
    // The empty line goes between.
    let reader = Reader::new(&bytes, bytes.len() as u64 + 2, limits);
    let login = envelope.login;
    Ok(ReadHead { bytes, head, correspondents, evidence, login, private, reader, reserved })
}

/// The text of all activities of a message together has a limit too; what is longer is a file all the same.
fn limits_for(targets: usize) -> Limits {
    let share = TEXT_OF_ALL / targets.max(1);
    Limits { text_bytes: LIMITS.text_bytes.min(share), ..LIMITS }
}
