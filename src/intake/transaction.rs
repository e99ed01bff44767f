//! One transaction: what MAIL and RCPT said, and what the log and the trace say of it.
//!
//! In: the sender, each recipient. Out: a [`Fate`] for each; lines of the log.
//! Promise: a refusal touches its recipient alone; who is in shadow mode is told nothing.
//! Fails: never; trouble of the directory is a reply of 4xx.

use super::{
    fate::{Fate, Interest, Recipients},
    head::NeverLog,
    places::Seat,
    service::{Policy, Refusal, Service},
};
use crate::mail::{
    Address, Automatic, Envelope, Head, Intake, Mention, domain_of, is_plain_path, mentions, parse_path,
};
use crate::observe::{self, events, metrics};
use crate::rules::{Mixed, Reason, Reply, Target, Tenant, Who};
use crate::verify::Question;
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CStr,
    sync::Arc,
};
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Recipients that the trace is told of.
const TOLD: usize = 50;

/// Refusals at RCPT that wait until it is known whether the message is private; more are told without an address.
const HELD: usize = 1000;

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
    /// Whatever filters repeat of it reads in one way only.
    sender_is_plain: bool,
    /// The envelope sender is null: nobody wants an answer.
    from_nobody: bool,
    /// It is not to be recorded: the log and the trace hold no address of it.
    is_private: bool,
    /// What paths mention that are no address.
    mentioned: Vec<Mention>,
    /// Refusals at RCPT that are not told yet.
    held: Vec<HeldRefusal>,
    queue_id: Option<String>,
    client: Option<Client>,
    door: Intake,
    /// Whether more is taken from the sender and the client; none before the first integration recipient.
    admitted: Option<Result<(), Reason>>,
    /// The same of tenants, by their ids.
    tenants: BTreeMap<String, bool>,
}

/// A refusal at RCPT that is told as soon as it is known whether the message is private.
struct HeldRefusal {
    tenant: Option<String>,
    recipient: Option<String>,
    reply: Reply,
    /// Only in shadow mode.
    would_be: bool,
}

/// Who is connected to Postfix, as far as the door knows.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// IP address.
    pub address: Option<String>,
    /// Postfix says that its own machine submitted the message.
    pub is_local: bool,
    /// What it called itself, where a filter may have repeated that.
    pub helo: Option<String>,
    /// SASL login name.
    pub login: Option<String>,
}

/// A recipient that the rules refuse, unless the e-mail is known: index among the targets, tenant and project.
pub(super) type Recalled = (usize, String, Option<String>);

impl Transaction {
    /// MAIL. An envelope sender that is no address counts as none; it is not ours to refuse.
    pub(super) fn new(path: &[u8], door: Intake, policy: &Policy) -> Self {
        let sender = parse_path(path);
        let mentioned = if sender.is_err() { mentioned_in(path) } else { Vec::new() };
        let named = sender.iter().flatten().map(|sender| Mention::Address(sender.clone()));
        let is_private = named.chain(mentioned.clone()).any(|who| names(&policy.tenants.never_log, &who));
        Self {
            sender_is_plain: is_plain_path(path),
            from_nobody: sender == Ok(None),
            is_private,
            mentioned,
            held: Vec::new(),
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

    /// Who is connected; asked once.
    fn meet(&mut self, client: impl FnOnce() -> Client) {
        self.client.get_or_insert_with(|| {
            let client = client();
            Client { address: client.address.map(bare_address), ..client }
        });
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
            is_plain: self.sender_is_plain,
            helo: self.client.as_ref().and_then(|client| client.helo.clone()),
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
        let parsed = parse_path(bytes);
        let newest = match &parsed {
            Ok(address) => address.clone().map(Mention::Address).into_iter().collect(),
            Err(_) => mentioned_in(bytes),
        };
        self.look_for_private(&service.policy, &newest);
        if parsed.is_err() && self.mentioned.len() < TOLD {
            self.mentioned.extend(newest);
        }
        let (address, fate) = match parsed {
            Ok(Some(address)) if service.addressing.covers(&address) => {
                self.meet(client);
                let fate = self.fate_of(service, &address, seat).await;
                // What shadow mode lets pass without a tenant is nobody's business in another tenant's activity.
                (Some(address).filter(|_| fate != Fate::Other), fate)
            }
            Err(_) if domain_of(bytes).is_some_and(|d| service.addressing.domains.contains(&d)) => {
                self.meet(client);
                (None, self.refused(service, Reason::BadAddress.into(), None))
            }
            parsed => {
                if self.door == Intake::Lmtp {
                    self.meet(client);
                }
                let address = parsed.ok().flatten();
                let fate = self.fate_of_other(service, address.as_ref());
                (address, fate)
            }
        };
        let added = self.recipients.add(path, address, fate);
        self.look_for_private(&service.policy, &[]);
        added
    }

    /// What becomes of an integration address.
    async fn fate_of(&mut self, service: &Service, address: &Address, seat: &mut Seat) -> Fate {
        if !seat.sit().await {
            return self.stopped(service, Reason::Busy, address).await;
        }
        let emergency = &service.policy.emergency;
        if let Some(reason) = emergency.stops(self.sender.as_ref(), self.client()) {
            return self.stopped(service, reason, address).await;
        }
        if let Err(reason) = self.admitted(service) {
            return self.stopped(service, reason, address).await;
        }
        let before = self.recipients.targets().count() + self.recipients.shadowed().count();
        let also = self.people_so_far(service);
        let resolved = service.resolve(address, before, &also, self.queue_id()).await;
        let tenant = match &resolved {
            Ok(target) => Some(&target.tenant),
            Err(refusal) => refusal.tenant.as_ref(),
        };
        // Whatever the directory says of its projects meanwhile.
        let names = tenant.map(|tenant| (tenant.id.as_str(), tenant.prefix.as_str()));
        if let Some(reason) = emergency.stops_tenant(names, &service.addressing.readings(address)) {
            let refusal = Refusal { reason, tenant: tenant.cloned() };
            return self.refused(service, refusal, Some(address));
        }
        let target = match resolved {
            Ok(target) => target,
            Err(refusal) => return self.refused(service, refusal, Some(address)),
        };
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

    /// Refused for a reason that is none of the tenant's; whose recipient it is counts where a tenant may be in shadow mode.
    async fn stopped(&mut self, service: &Service, reason: Reason, address: &Address) -> Fate {
        let tenant = service.in_shadow(address).await;
        self.refused(service, Refusal { reason, tenant }, Some(address))
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
    fn fate_of_other(&mut self, service: &Service, address: Option<&Address>) -> Fate {
        if self.door == Intake::Lmtp {
            return self.refused(service, Reason::NotIntegrationAddress.into(), address);
        }
        metrics::other_recipient();
        Fate::Other
    }

    /// Refused or deferred, or only said to be.
    fn refused(&mut self, service: &Service, refusal: Refusal, address: Option<&Address>) -> Fate {
        let mut reply = service.texts.reply(refusal.reason, address);
        let tenant = refusal.tenant.as_ref();
        if service.shadows(tenant) {
            self.hold_or_say(service, HeldRefusal::new(tenant, address, &reply, true));
            if self.door != Intake::Lmtp {
                return Fate::Other;
            }
            reply = service.texts.reply(Reason::ShadowMode, address);
        }
        self.hold_or_say(service, HeldRefusal::new(tenant, address, &reply, false));
        Fate::Refused(reply)
    }

    /// Where somebody is never recorded, what the head will say counts for the lines of RCPT too.
    fn hold_or_say(&mut self, service: &Service, refusal: HeldRefusal) {
        // Whose mail it is, and who is never recorded there, may come with the next recipient.
        let is_open = self.recipients.interest() == Interest::Nothing && service.directory.says_never_log();
        match (is_open || self.may_be_private(&service.policy)) && !self.is_private {
            true if self.held.len() < HELD => self.held.push(refusal),
            true => refusal.say(&self.told_private().who(self.door.as_str())),
            false => self.say_refusal(&refusal),
        }
    }

    fn say_refusal(&self, refusal: &HeldRefusal) {
        let HeldRefusal { tenant, recipient, .. } = refusal;
        self.tell(tenant.as_deref(), recipient.as_deref(), false, |who| refusal.say(who));
    }

    /// Shadow mode records nothing, and behind LMTP nobody else would: Postfix keeps the message and tries again.
    fn left_with_postfix(&mut self, service: &Service, target: &Target) -> Fate {
        let reply = service.texts.reply(Reason::ShadowMode, Some(&target.address));
        let refusal = HeldRefusal::new(Some(&target.tenant), Some(&target.address), &reply, false);
        self.hold_or_say(service, refusal);
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

    /// The head is read, and this is known.
    pub(super) fn set_private(&mut self, is_private: bool) {
        self.is_private = is_private;
    }

    /// The head is under way: until it is read, whole, it may name anybody.
    pub(super) fn presume_private(&mut self, policy: &Policy) {
        self.is_private |= self.may_be_private(policy);
    }

    /// Whether it is private is known now: refusals at RCPT are told.
    pub(super) fn say_held(&mut self) {
        for refusal in std::mem::take(&mut self.held) {
            self.say_refusal(&refusal);
        }
    }

    fn may_be_private(&self, policy: &Policy) -> bool {
        !policy.tenants.never_log.is_empty() || !self.never_log(policy).is_empty()
    }

    /// Looks whether the envelope so far names somebody who is never recorded; `newest`: who was not looked at yet.
    fn look_for_private(&mut self, policy: &Policy, newest: &[Mention]) {
        let (default, of_tenants) = (&policy.tenants.never_log, self.never_log(policy));
        if self.is_private || default.is_empty() && of_tenants.is_empty() {
            return;
        }
        let is_named =
            |who: &Mention| names(default, who) || of_tenants.values().any(|never_log| names(never_log, who));
        let sender = self.sender.clone().map(Mention::Address);
        self.is_private = sender.iter().chain(&self.mentioned).chain(newest).any(is_named);
    }

    /// What paths of the envelope mention that are no address.
    pub(super) fn mentioned(&self) -> &[Mention] {
        &self.mentioned
    }

    /// True if one of its tenants does not record it.
    pub(super) fn is_private(&self) -> bool {
        self.is_private
    }

    /// Who is never recorded, as far as tenants of this message say so.
    pub(super) fn never_log(&self, policy: &Policy) -> NeverLog {
        let tenants =
            self.recipients.targets().chain(self.recipients.shadowed()).map(|target| &target.tenant);
        let mut all = NeverLog::new();
        for tenant in tenants {
            let said = tenant.policy.never_log_over(&policy.tenants);
            if said.is_empty() {
                continue;
            }
            // One tenant may have several prefixes, and a policy for each.
            let known = all.entry(tenant.id.clone()).or_insert_with(|| Arc::clone(&said));
            if !Arc::ptr_eq(known, &said) && *known != said {
                Arc::make_mut(known).extend(said.iter().cloned());
            }
        }
        all
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
        self.tell(tenant, recipient.as_deref(), true, |who| events::refused(who, stage, reply));
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

    fn told_private(&self) -> Told {
        let queue_id = self.queue_id().to_owned();
        Told { transaction: Some(self.id), queue_id, is_private: true, ..Told::default() }
    }

    pub(super) fn told(&self) -> Told {
        if self.is_private {
            return self.told_private();
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

/// An address without the `IPv6:` that Postfix writes before it, in its macro and in XFORWARD (RFC 5321, section 4.1.3).
fn bare_address(address: String) -> String {
    match address.get(..5) {
        Some(tag) if tag.eq_ignore_ascii_case("IPv6:") => address[5..].to_owned(),
        _ => address,
    }
}

/// What a path mentions that is no address.
fn mentioned_in(path: &[u8]) -> Vec<Mention> {
    mentions(&String::from_utf8_lossy(path))
}

fn names(never_log: &BTreeSet<Who>, mention: &Mention) -> bool {
    !never_log.is_empty() && Who::meant_by(mention).iter().any(|who| never_log.contains(who))
}

impl HeldRefusal {
    fn new(tenant: Option<&Tenant>, recipient: Option<&Address>, reply: &Reply, would_be: bool) -> Self {
        let (tenant, recipient) = (tenant.map(|tenant| tenant.id.clone()), recipient.map(Address::to_string));
        Self { tenant, recipient, reply: reply.clone(), would_be }
    }

    fn say(&self, who: &events::Who<'_>) {
        match self.would_be {
            true => events::would_refuse(who, "rcpt", &self.reply),
            false => events::refused(who, "rcpt", &self.reply),
        }
    }
}

impl Drop for Transaction {
    /// What is known of it now is all that will be.
    fn drop(&mut self) {
        self.say_held();
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
