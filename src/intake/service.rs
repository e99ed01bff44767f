//! What all sessions share: settings, the directory, memory, and what is under way.
//!
//! In: recipients and heads. Out: what they mean, by the directory and the rules.
//! Promise: the directory has five seconds for all questions of a stage; one that cannot answer defers.
//! Fails: [`Unavailable`], and reasons of the table of replies.

use super::{Fault, flow::Flow, head::ReadHead, meter::Meters};
use crate::directory::{Directory, Unavailable};
use crate::mail::{Address, Automatic, Budget, Head};
use crate::observe::events;
use crate::rules::{
    self, Addressing, Case, Correspondents, Emergency, Evidence, Limits, Mixed, Party, Person, Project,
    Reason, Reply, Target, Tenant, TenantPolicy, Texts, Trust, Verdict,
};
use crate::verify::Verifier;
use arc_swap::ArcSwap;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Time for all look-ups at RCPT, and for all at end of header; Postfix waits 30 s (`milter_command_timeout`).
pub const LOOK_UP_TIME: Duration = Duration::from_secs(5);

/// What the service does where the design leaves a choice.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Largest message, in bytes.
    pub max_size: u64,
    /// Bytes to be kept free on the spool's disk.
    pub min_free: u64,
    /// How long the content of a message may keep us waiting.
    pub patience: Duration,
    /// Most integration recipients of one message.
    pub max_recipients: usize,
    /// Most people of one message that are looked up and listed.
    pub max_people: usize,
    /// What a failed rule does to a mixed transaction.
    pub mixed: Mixed,
    /// Leave recorded messages to Postfix instead of discarding them.
    pub keep_after_accept: bool,
    /// Record without link where the project is unknown, instead of refusing.
    pub unlinked_projects: bool,
    /// For whom everything is only decided and logged.
    pub shadow: Shadow,
    /// What counts for tenants that say nothing.
    pub tenants: TenantPolicy,
    /// What is not taken for now.
    pub emergency: Emergency,
    /// How much is taken from whom.
    pub limits: Limits,
    /// Whom we believe about senders.
    pub trust: Trust,
}

/// `mode = "shadow"`: everything is decided and logged as `would …`; nothing is refused, recorded or deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shadow {
    /// For nobody: `explain` says what the rules say.
    Nobody,
    /// For tenants whose directory entry says so.
    #[default]
    Marked,
    /// For everybody.
    Everybody,
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
    /// Who finds out who sent a message, if we do so ourselves.
    pub verifier: Option<Arc<dyn Verifier>>,
    flow: Arc<Flow>,
    pub(super) meters: Arc<Meters>,
}

/// The service as it is now. A reload puts another one in its place; each transaction keeps the one it began with.
#[derive(Clone)]
pub struct Live(Arc<ArcSwap<Service>>);

impl Live {
    /// The service for the next transaction.
    pub fn now(&self) -> Arc<Service> {
        self.0.load_full()
    }

    /// Another one for transactions that begin from here on.
    pub fn replace(&self, service: Service) {
        self.0.store(Arc::new(service));
    }
}

impl From<Service> for Live {
    fn from(service: Service) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(service)))
    }
}

/// Why a recipient is refused, and whose it is as far as that is known.
pub(super) struct Refusal {
    pub(super) reason: Reason,
    pub(super) tenant: Option<Tenant>,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reason, tenant: None }
    }
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
        let (flow, meters) = (Arc::new(Flow::new()), Arc::new(Meters::new(&policy.limits)));
        Self { addressing, policy, texts, directory, budget, spool, verifier: None, flow, meters }
    }

    /// The same service, which finds out itself who sent a message.
    pub fn verifying(self, verifier: Option<Arc<dyn Verifier>>) -> Self {
        Self { verifier, ..self }
    }

    /// The same service with other settings: memory, spool, the messages in flight and what was counted are shared. Who
    /// verifies is told anew.
    pub fn with(
        &self,
        addressing: Addressing,
        policy: Policy,
        texts: Texts,
        directory: Arc<dyn Directory>,
    ) -> Self {
        let (budget, spool, flow) = (self.budget.clone(), self.spool.clone(), Arc::clone(&self.flow));
        let meters = Arc::new(self.meters.with(&policy.limits));
        Self { addressing, policy, texts, directory, budget, spool, verifier: None, flow, meters }
    }

    /// Takes no new messages and waits until those in flight are answered. The answer is how many were not.
    pub async fn drain(&self, patience: Duration) -> usize {
        self.flow.drain(patience).await
    }

    /// Messages with a target that are not answered yet.
    pub fn in_flight(&self) -> usize {
        self.flow.in_flight()
    }

    /// How many clients, senders and tenants a limit remembers.
    pub fn remembered(&self) -> [(&'static str, u64); 3] {
        self.meters.remembered()
    }

    /// Counts a session for as long as the token lives.
    pub(super) fn session(&self) -> TaskTrackerToken {
        self.flow.session()
    }

    /// Shows the drain that a message wants its answer, for as long as the token lives.
    pub(super) fn hold(&self) -> TaskTrackerToken {
        self.flow.hold()
    }

    /// Does work that takes longer than an async worker may be held, when its turn comes.
    /// # Errors
    /// The work panicked.
    pub(super) async fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Fault> {
        self.flow.apart(work).await
    }

    /// True if what concerns this tenant is only logged; no tenant: a recipient that names none.
    pub(super) fn shadows(&self, tenant: Option<&Tenant>) -> bool {
        match self.policy.shadow {
            Shadow::Nobody => false,
            Shadow::Marked => tenant.is_some_and(|tenant| tenant.shadow),
            Shadow::Everybody => true,
        }
    }

    /// What an integration address means, or why it is refused. `before` is how many targets the message has already,
    /// `also` whom it names so far.
    pub(super) async fn resolve(
        &self,
        address: &Address,
        before: usize,
        also: &[Address],
        queue_id: &str,
    ) -> Result<Target, Refusal> {
        if self.flow.is_draining() {
            return Err(Reason::ShuttingDown.into());
        }
        if before >= self.policy.max_recipients {
            return Err(Reason::TooManyRecipients.into());
        }
        match in_time(look_ups_end(), self.look_up(address, also)).await {
            Ok(resolved) => resolved,
            Err(error) => {
                events::directory_unavailable(queue_id, &error);
                Err(Reason::DirectoryUnavailable.into())
            }
        }
    }

    /// Whose recipient it is, if that tenant is in shadow mode, and others are not.
    pub(super) async fn in_shadow(&self, address: &Address) -> Option<Tenant> {
        // Nobody else pays for it: a lever may be pulled because the directory is in trouble.
        if self.policy.shadow != Shadow::Marked || !self.directory.has_shadow() {
            return None;
        }
        let readings = self.addressing.readings(address);
        let prefixes: Vec<String> = readings.into_iter().map(|reading| reading.prefix).collect();
        // Where the directory does not say, it is deferred, as it would be without the reason that there is.
        let found = in_time(look_ups_end(), self.directory.tenant_of(&prefixes)).await.ok().flatten();
        found.map(|(_, tenant)| tenant).filter(|tenant| tenant.shadow)
    }

    /// The longest prefix that exists decides; whether its project exists comes after.
    async fn look_up(
        &self,
        address: &Address,
        also: &[Address],
    ) -> Result<Result<Target, Refusal>, Unavailable> {
        let readings = self.addressing.readings(address);
        if readings.is_empty() {
            return Ok(Err(Reason::BadAddress.into()));
        }
        let prefixes: Vec<String> = readings.iter().map(|reading| reading.prefix.clone()).collect();
        let Some((index, tenant)) = self.directory.tenant_of(&prefixes).await? else {
            return Ok(Err(Reason::NoSuchTenant.into()));
        };
        if !tenant.active {
            return Ok(Err(Refusal { reason: Reason::TenantInactive, tenant: Some(tenant) }));
        }
        let project: Option<Project> = match &readings[index].project {
            None => None,
            Some(number) => {
                match self.directory.project(&tenant, number, &self.askable(&tenant, also)).await? {
                    None if !self.policy.unlinked_projects => {
                        return Ok(Err(Refusal { reason: Reason::UnknownProject, tenant: Some(tenant) }));
                    }
                    project => project,
                }
            }
        };
        Ok(Ok(Target { tenant, project, address: address.clone() }))
    }

    /// Those who may be asked about before it is known whether the message is private.
    fn askable(&self, tenant: &Tenant, people: &[Address]) -> Vec<Address> {
        let never_log = tenant.policy.never_log_over(&self.policy.tenants);
        match people.iter().any(|address| rules::Who::any(&never_log, address)) {
            true => Vec::new(),
            false => people.to_vec(),
        }
    }

    /// Looks up until the deadline who the people are, for each tenant of these targets.
    pub(super) async fn look_up_people(
        &self,
        targets: &[Target],
        read: &ReadHead,
        automatic: Option<Automatic>,
        deadline: Instant,
    ) -> Result<Known, Unavailable> {
        let ReadHead { head, correspondents, private, .. } = read;
        let groups = by_tenant(targets);
        let is_private = |group: &[Target]| private.contains(&group[0].tenant.id);
        let addresses: Vec<Address> = correspondents.people.iter().map(|c| c.address.clone()).collect();
        let mut stale = false;
        let ask = async {
            let mut people = Vec::new();
            for group in &groups {
                let policy = group[0].tenant.policy.over(&self.policy.tenants);
                // What is decided by policy and head alone needs no look-up.
                if rules::settled(&policy, head, automatic, is_private(group)).is_some() {
                    people.push(Vec::new());
                    continue;
                }
                let found = self.directory.people(&group[0].tenant, &addresses).await?;
                if found.stale && !found.persons.iter().any(|person| person.user.is_some()) {
                    let message = "it is down, and nobody is a user by answers past their time";
                    return Err(Unavailable(message.to_owned()));
                }
                stale |= found.stale;
                people.push(found.persons);
            }
            Ok(people)
        };
        let people = in_time(deadline, ask).await?;
        let groups = groups.into_iter().zip(people);
        let groups =
            groups.map(|(targets, people)| Group { is_private: is_private(&targets), targets, people });
        Ok(Known { groups: groups.collect(), stale })
    }

    /// Lets the rules decide.
    pub(super) fn decide(&self, known: &Known, asked: &Asked<'_>) -> Result<Verdict, Unavailable> {
        let parties: Vec<Party<'_>> = known.groups.iter().map(Group::party).collect();
        let verdict = rules::decide(&Case {
            head: asked.head,
            automatic: asked.automatic,
            correspondents: asked.correspondents,
            evidence: asked.evidence,
            parties: &parties,
            other_recipients: asked.other_recipients,
            mixed: asked.mixed,
            policy: &self.policy.tenants,
            texts: &self.texts,
        });
        // Who is logged in may be a user since then.
        if known.stale && refuses_unproven(&verdict) {
            let message = "it is down, and nothing proves who the sender is by answers past their time";
            return Err(Unavailable(message.to_owned()));
        }
        Ok(verdict)
    }
}

/// What the directory says of the people of a message, for each tenant.
pub(super) struct Known {
    groups: Vec<Group>,
    /// Some of it is past its time.
    stale: bool,
}

impl Known {
    /// How many activities there may be.
    pub(super) fn targets(&self) -> usize {
        self.groups.iter().map(|group| group.targets.len()).sum()
    }
}

/// One tenant's part of a message.
struct Group {
    targets: Vec<Target>,
    people: Vec<Person>,
    /// It names somebody of `never_log`.
    is_private: bool,
}

impl Group {
    fn party(&self) -> Party<'_> {
        let Self { targets, people, is_private } = self;
        Party { targets, people, is_private: *is_private }
    }
}

/// What is to be decided.
pub(super) struct Asked<'a> {
    pub(super) head: &'a Head,
    pub(super) correspondents: &'a Correspondents,
    pub(super) evidence: &'a Evidence,
    pub(super) automatic: Option<Automatic>,
    pub(super) other_recipients: bool,
    pub(super) mixed: Mixed,
}

/// True if somebody is refused because nothing proves that he is the sender.
fn refuses_unproven(verdict: &Verdict) -> bool {
    let is_unproven = |reply: &Reply| reply.reason == Reason::NotAuthenticated;
    match verdict {
        Verdict::Refuse { reply, .. } => is_unproven(reply),
        Verdict::Record { refused, .. } => refused.iter().any(|(_, reply)| is_unproven(reply)),
    }
}

/// The targets, tenant by tenant, in the order of their first recipient.
fn by_tenant(targets: &[Target]) -> Vec<Vec<Target>> {
    let mut tenants: Vec<Vec<Target>> = Vec::new();
    for target in targets {
        match tenants.iter_mut().find(|group| group[0].tenant.id == target.tenant.id) {
            Some(group) => group.push(target.clone()),
            None => tenants.push(vec![target.clone()]),
        }
    }
    tenants
}

/// When the look-ups of a stage that begins now have to be done.
pub(super) fn look_ups_end() -> Instant {
    Instant::now() + LOOK_UP_TIME
}

async fn in_time<T>(
    deadline: Instant,
    answer: impl Future<Output = Result<T, Unavailable>>,
) -> Result<T, Unavailable> {
    match tokio::time::timeout_at(deadline, answer).await {
        Ok(answer) => answer,
        Err(_elapsed) => Err(Unavailable("no answer in time".to_owned())),
    }
}
