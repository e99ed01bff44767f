//! One transaction: what MAIL and RCPT said, and what the log and the trace say of it.
//!
//! In: the sender, each recipient. Out: a [`Fate`] for each; lines of the log.
//! Promise: a refusal touches its recipient alone; who is in shadow mode is told nothing.
//! Fails: never; trouble of the directory is a reply of 4xx.

use super::{
    fate::{Fate, Recipients},
    head::{NeverLog, private},
    places::Seat,
    service::{Policy, Refusal, Service},
};
use crate::mail::{Address, Automatic, Envelope, Head, Intake, domain_of, parse_path};
use crate::observe::{self, events, metrics};
use crate::rules::{Mixed, Reason, Reply, Target};
use crate::verify::Question;
use std::{collections::BTreeMap, ffi::CStr};
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Recipients that the trace is told of.
const TOLD: usize = 50;

/// What the log and the trace say of a transaction.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Its number.
    pub transaction: Option<i64>,
    /// Postfix's queue id, as far as it was known.
    pub queue_id: String,
    /// The envelope sender.
    pub sender: Option<String>,
    /// The SMTP client's address, as far as it was known.
    pub client: Option<String>,
    /// Message-ID without brackets.
    pub message_id: Option<String>,
    /// Nothing else is to be said of it.
    pub is_private: bool,
}

/// What MAIL and RCPT said.
pub(super) struct Transaction {
    /// For the trace: before the second RCPT it has no queue id.
    pub(super) id: i64,
    /// Once the head is read.
    pub(super) message_id: Option<String>,
    pub(super) recipients: Recipients,
    /// Shows the drain that this message wants an answer.
    pub(super) in_flight: Option<TaskTrackerToken>,
    sender: Option<Address>,
    /// The envelope sender is null: nobody wants an answer.
    from_nobody: bool,
    /// It is not to be recorded: the log and the trace hold no address of it.
    is_private: bool,
    queue_id: Option<String>,
    client: Option<Client>,
    door: Intake,
    /// Whether more is taken from the sender and the client; none before the first integration recipient.
    admitted: Option<Result<(), Reason>>,
    /// The same of tenants, by their ids.
    tenants: BTreeMap<String, bool>,
}

/// Who is connected to Postfix, as far as the door knows.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// IP address.
    pub address: Option<String>,
    /// Postfix says that its own machine submitted the message.
    pub is_local: bool,
    /// SASL login name.
    pub login: Option<String>,
}

/// A recipient that the rules refuse, unless the e-mail is known: index among the targets, tenant and project.
pub(super) type Recalled = (usize, String, Option<String>);

impl Transaction {
    /// MAIL. An envelope sender that is no address counts as none; it is not ours to refuse.
    pub(super) fn new(path: &[u8], door: Intake) -> Self {
        let sender = parse_path(path);
        Self {
            from_nobody: sender == Ok(None),
            is_private: false,
            id: observe::transaction(),
            message_id: None,
            recipients: Recipients::default(),
            in_flight: None,
            sender: sender.ok().flatten(),
            queue_id: None,
            client: None,
            door,
            admitted: None,
            tenants: BTreeMap::new(),
        }
    }

    pub(super) fn set_queue_id(&mut self, queue_id: Option<String>) {
        if queue_id.is_some() {
            self.queue_id = queue_id;
        }
    }

    pub(super) fn queue_id(&self) -> &str {
        self.queue_id.as_deref().unwrap_or_default()
    }

    /// The login, as the head says it.
    pub(super) fn set_login(&mut self, login: Option<String>) {
        if let Some(client) = &mut self.client {
            client.login = login;
        }
    }

    fn client(&self) -> Option<&str> {
        self.client.as_ref().and_then(|client| client.address.as_deref())
    }

    /// The envelope as it is so far.
    pub(super) fn envelope(&self) -> Envelope {
        Envelope {
            sender: self.sender.clone(),
            recipients: self.recipients.named().cloned().collect(),
            queue_id: self.queue_id.clone(),
            client: self.client().map(str::to_owned),
            is_local: self.client.as_ref().is_some_and(|client| client.is_local),
            login: self.client.as_ref().and_then(|client| client.login.clone()),
            intake: self.door,
        }
    }

    /// Who sent it?
    pub(super) fn question(&self, head: Vec<u8>) -> Question {
        let client = self.client().and_then(|client| client.parse().ok());
        Question { head, client, sender: self.sender.clone() }
    }

    /// RCPT: another recipient. Who is connected is asked only where it is of interest: other people's mail pays nothing.
    /// # Errors
    /// The reply to one that is refused.
    pub(super) async fn rcpt(
        &mut self,
        service: &Service,
        path: &CStr,
        client: impl FnOnce() -> Client,
        seat: &mut Seat,
    ) -> Result<(), Reply> {
        let bytes = path.to_bytes();
        let (address, fate) = match parse_path(bytes) {
            Ok(Some(address)) if service.addressing.covers(&address) => {
                self.client.get_or_insert_with(client);
                let fate = self.fate_of(service, &address, seat).await;
                // What shadow mode lets pass without a tenant is nobody's business in another tenant's activity.
                (Some(address).filter(|_| fate != Fate::Other), fate)
            }
            Err(_) if domain_of(bytes).is_some_and(|d| service.addressing.domains.contains(&d)) => {
                self.client.get_or_insert_with(client);
                (None, self.refused(service, Reason::BadAddress.into(), None))
            }
            parsed => {
                if self.door == Intake::Lmtp {
                    self.client.get_or_insert_with(client);
                }
                let address = parsed.ok().flatten();
                let fate = self.fate_of_other(service, address.as_ref());
                (address, fate)
            }
        };
        self.recipients.add(path, address, fate)
    }

    /// What becomes of an integration address.
    async fn fate_of(&mut self, service: &Service, address: &Address, seat: &mut Seat) -> Fate {
        if !seat.sit().await {
            return self.refused(service, Reason::Busy.into(), Some(address));
        }
        let emergency = &service.policy.emergency;
        if let Some(reason) = emergency.stops(self.sender.as_ref(), self.client()) {
            return self.refused(service, reason.into(), Some(address));
        }
        if let Err(reason) = self.admitted(service) {
            return self.refused(service, reason.into(), Some(address));
        }
        let before = self.recipients.targets().count() + self.recipients.shadowed().count();
        let also = self.people_so_far(service);
        let target = match service.resolve(address, before, &also, self.queue_id()).await {
            Ok(target) => target,
            Err(refusal) => return self.refused(service, refusal, Some(address)),
        };
        if let Some(reason) = emergency.stops_tenant(&target.tenant.id, &target.tenant.prefix) {
            let refusal = Refusal { reason, tenant: Some(target.tenant) };
            return self.refused(service, refusal, Some(address));
        }
        if !self.admits_tenant(service, &target.tenant.id) {
            let refusal = Refusal { reason: Reason::TenantLimit, tenant: Some(target.tenant) };
            return self.refused(service, refusal, Some(address));
        }
        match (service.shadows(Some(&target.tenant)), self.door) {
            (true, Intake::Lmtp) => self.left_with_postfix(service, &target),
            (true, Intake::Milter | Intake::Explain) => Fate::Shadowed(target),
            (false, _) => {
                metrics::integration_recipient();
                self.in_flight.get_or_insert_with(|| service.hold());
                Fate::Target(target)
            }
        }
    }

    /// Whether one message more is taken from the client and the sender: asked once, whatever the number of recipients.
    fn admitted(&mut self, service: &Service) -> Result<(), Reason> {
        if let Some(admitted) = self.admitted {
            return admitted;
        }
        let admitted = self.ask_limits(service);
        self.admitted = Some(admitted);
        admitted
    }

    fn ask_limits(&self, service: &Service) -> Result<(), Reason> {
        if self.is_trusted(service) {
            return Ok(());
        }
        // By LMTP it is Postfix who comes, with everybody's mail.
        let client =
            self.client().filter(|_| self.door != Intake::Lmtp).and_then(|client| client.parse().ok());
        if client.is_some_and(|client| !service.meters.client(client)) {
            return Err(Reason::ClientLimit);
        }
        let sender = self.sender.as_ref();
        match sender.is_none_or(|sender| service.meters.sender(sender.folded())) {
            true => Ok(()),
            false => Err(Reason::SenderLimit),
        }
    }

    /// The same for a tenant.
    fn admits_tenant(&mut self, service: &Service, id: &str) -> bool {
        let is_trusted = self.is_trusted(service);
        let ask = || is_trusted || service.meters.tenant(id);
        *self.tenants.entry(id.to_owned()).or_insert_with(ask)
    }

    fn is_trusted(&self, service: &Service) -> bool {
        let client = self.client.as_ref();
        client.is_some_and(|client| {
            service.policy.trust.origin(client.address.as_deref(), client.is_local).is_some()
        })
    }

    /// A recipient that is no integration address: the milter lets it pass, LMTP has nowhere to deliver it to.
    fn fate_of_other(&self, service: &Service, address: Option<&Address>) -> Fate {
        if self.door == Intake::Lmtp {
            return self.refused(service, Reason::NotIntegrationAddress.into(), address);
        }
        metrics::other_recipient();
        Fate::Other
    }

    /// Refused or deferred, or only said to be.
    fn refused(&self, service: &Service, refusal: Refusal, address: Option<&Address>) -> Fate {
        let mut reply = service.texts.reply(refusal.reason, address);
        let tenant = refusal.tenant.as_ref();
        let id = tenant.map(|tenant| tenant.id.as_str());
        if service.shadows(tenant) {
            let recipient = address.map(Address::to_string);
            self.tell(id, recipient.as_deref(), false, |who| events::would_refuse(who, "rcpt", &reply));
            if self.door != Intake::Lmtp {
                return Fate::Other;
            }
            reply = service.texts.reply(Reason::ShadowMode, address);
        }
        self.log_refusal(id, address, "rcpt", &reply);
        Fate::Refused(reply)
    }

    /// Shadow mode records nothing, and behind LMTP nobody else would: Postfix keeps the message and tries again.
    fn left_with_postfix(&self, service: &Service, target: &Target) -> Fate {
        let reply = service.texts.reply(Reason::ShadowMode, Some(&target.address));
        self.log_refusal(Some(&target.tenant.id), Some(&target.address), "rcpt", &reply);
        Fate::Refused(reply)
    }

    /// Who is known to be in it before the header comes.
    fn people_so_far(&self, service: &Service) -> Vec<Address> {
        let recipients = self.recipients.named().map(|recipient| &recipient.address);
        let all = self.sender.iter().chain(recipients);
        all.filter(|address| !service.addressing.covers(address)).cloned().collect()
    }

    /// From here on nothing is said of it but its queue id and why.
    pub(super) fn keep_private(&mut self) {
        self.is_private = true;
    }

    /// Looks whether the envelope alone names somebody who is never recorded: the head may be one that cannot be read.
    pub(super) fn look_for_private(&mut self, policy: &Policy) {
        let never_log = self.never_log(policy);
        self.is_private = !never_log.is_empty() && !private(&never_log, b"", &self.envelope()).is_empty();
    }

    /// Who is never recorded, as far as tenants of this message say so.
    pub(super) fn never_log(&self, policy: &Policy) -> NeverLog {
        let tenants =
            self.recipients.targets().chain(self.recipients.shadowed()).map(|target| &target.tenant);
        let said = tenants.map(|tenant| (tenant.id.clone(), tenant.policy.never_log_over(&policy.tenants)));
        said.filter(|(_, never_log)| !never_log.is_empty()).collect()
    }

    /// What kind of automatic mail it is, if no person wrote it.
    pub(super) fn automatic(&self, head: &Head) -> Option<Automatic> {
        head.automatic.kind(self.from_nobody)
    }

    /// Whom a failed rule touches.
    pub(super) fn mixed(&self, policy: &Policy) -> Mixed {
        if self.door == Intake::Lmtp { Mixed::Each } else { policy.mixed }
    }

    /// What LMTP's recipients are known by who have no user, or nobody who is proven to have sent it, if they are.
    pub(super) fn recalled(&self, refused: &BTreeMap<String, Reply>) -> Vec<Recalled> {
        if self.door != Intake::Lmtp {
            return Vec::new();
        }
        let may_be_known =
            |target: &Target| refused.get(&target.tenant.id).is_some_and(|reply| reply.reason.may_be_known());
        let targets = self.recipients.targets().enumerate().filter(|(_, target)| may_be_known(target));
        let word = |(index, target): (usize, &Target)| {
            (index, target.tenant.id.clone(), target.project.as_ref().map(|project| project.id.clone()))
        };
        targets.map(word).collect()
    }

    pub(super) fn log_refusal(
        &self,
        tenant: Option<&str>,
        to: Option<&Address>,
        stage: &'static str,
        reply: &Reply,
    ) {
        let recipient = to.map(Address::to_string);
        self.tell(tenant, recipient.as_deref(), stage != "rcpt", |who| events::refused(who, stage, reply));
    }

    /// Shadow mode: this reply would have been given.
    pub(super) fn would_refuse(
        &self,
        target: Option<&Target>,
        tenant: &str,
        stage: &'static str,
        reply: &Reply,
    ) {
        let recipient = target.map(|target| target.address.to_string());
        let tell = |who: &events::Who<'_>| events::would_refuse(who, stage, reply);
        self.tell(Some(tenant).filter(|tenant| !tenant.is_empty()), recipient.as_deref(), true, tell);
    }

    /// Says what became of the message, or of a recipient. `all`: with the other recipients, as far as they are told.
    pub(super) fn tell(
        &self,
        tenant: Option<&str>,
        recipient: Option<&str>,
        all: bool,
        tell: impl FnOnce(&events::Who<'_>),
    ) {
        if self.is_private {
            return tell(&self.told().who(self.door.as_str()));
        }
        let recipients: Vec<String> = if all {
            self.recipients.named().take(TOLD).map(|r| r.address.to_string()).collect()
        } else {
            Vec::new()
        };
        let told = self.told();
        tell(&events::Who { tenant, recipient, recipients: &recipients, ..told.who(self.door.as_str()) });
    }

    pub(super) fn told(&self) -> Told {
        if self.is_private {
            let queue_id = self.queue_id().to_owned();
            return Told { transaction: Some(self.id), queue_id, is_private: true, ..Told::default() };
        }
        Told {
            is_private: false,
            transaction: Some(self.id),
            queue_id: self.queue_id().to_owned(),
            // The null sender is shown as such.
            sender: Some(self.sender.as_ref().map(Address::to_string).unwrap_or_default()),
            client: self.client().map(str::to_owned),
            message_id: self.message_id.clone(),
        }
    }
}

impl Told {
    /// The same, in the words of the log.
    pub(super) fn who(&self, door: &'static str) -> events::Who<'_> {
        events::Who {
            queue_id: &self.queue_id,
            sender: self.sender.as_deref(),
            transaction: self.transaction,
            door: Some(door),
            client: self.client.as_deref(),
            message_id: self.message_id.as_deref(),
            ..events::Who::default()
        }
    }
}
