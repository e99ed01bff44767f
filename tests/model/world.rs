//! The world of the model: two senders, two hosts with a door and a courier each, one queue, one business system.
//!
//! In: a [`World`], which says what the business system is like, what may happen, and what is left out (a [`Flaw`]). Out:
//! the states that are next.
//! Promise: a step is one that the product makes durably or visibly at once: a commit, a request, an answer. Whatever
//! happens between two of them is in no state. Nothing counts upwards but what may happen, so there is an end to it.
//! Fails: never.
//!
//! What stands for what. A lease's number is whether its attempt has lost it (`Attempt::is_late`): a fence tells no more.
//! Time is what must be over: a lease ends under somebody who lives only if he was frozen, and then nothing that he sent
//! is under way any more, because a request's time-out is shorter than a lease. `settle` is the same of lost answers. A
//! process that was killed is there again at once, without what it had in memory, and has given back what it had leased; that
//! it takes its time is that nobody does anything meanwhile. A host makes one attempt at a mail at a time.

use stateright::Representative;
use std::fmt;

pub const HOSTS: usize = 2;
pub const MOST_MAILS: usize = 2;

/// What the business system makes of a request that it had before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// It knows the key (`docs/backend-api.yaml`).
    KnowsKeys,
    /// It does it again; but it may be searched (`docs/severa.md`).
    IsSearched,
}

/// What is left out of the product, to see what it is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// 250 is said, and then the activity is stored.
    AnswersBeforeCommit,
    /// What was delivered is forgotten.
    ForgetsKeys,
    /// Whoever had the lease once may end it.
    HasNoFence,
    /// What is about to be created is not noted.
    NotesNoIntent,
    /// What another process began is looked for as soon as its lease is ours.
    LooksAtOnce,
}

#[derive(Clone, Copy, Debug)]
pub struct World {
    pub system: System,
    pub flaw: Option<Flaw>,
    /// Mails that are sent.
    pub mails: usize,
    /// Processes that are killed.
    pub crashes: u8,
    /// Answers that are lost, of SMTP and of the business system.
    pub losses: u8,
    /// Leases that run out under somebody who stands still.
    pub freezes: u8,
}

/// Who has the mail, and wants to be rid of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sender {
    Waits,
    Talks(usize),
    /// 250: he forgets it.
    IsRid,
}

/// A session, after the final dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Door {
    Idle,
    /// It has the mail in memory, whether its client waits or has gone.
    Holds,
    /// The queue has it, and somebody waits for the answer.
    HasStored,
    /// The answer was given, and it is not stored ([`Flaw::AnswersBeforeCommit`]).
    OwesCommit,
}

/// A mail in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Row {
    Unknown,
    Waits {
        leased_by: Option<usize>,
        /// A request is about to be made, or was.
        is_noted: bool,
    },
    /// Delivered: the key alone is there.
    IsRemembered,
}

/// How far an attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    Idle,
    /// It has the activity, and knows whether something was noted by one before.
    Opened {
        was_noted: bool,
    },
    /// Its intent is committed.
    Noted,
    /// The request is under way.
    Asks,
    /// It is done, which the answer says, or a search.
    IsDone,
    /// No answer came in time.
    GaveUp,
}

/// A host's attempt to deliver a mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt {
    pub stage: Stage,
    /// The lease has ended under it, while it was frozen.
    pub is_late: bool,
    /// It was frozen after it had noted its intent, and asks nobody any more.
    pub is_blind: bool,
}

const NO_ATTEMPT: Attempt = Attempt { stage: Stage::Idle, is_late: false, is_blind: false };

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mail {
    pub sender: Sender,
    pub row: Row,
    pub doors: [Door; HOSTS],
    pub attempts: [Attempt; HOSTS],
    /// Requests under way to whose answers nobody listens any more.
    pub strays: [u8; HOSTS],
    /// How often the business system has it.
    pub recorded: u8,
    /// The queue was told that it is delivered.
    pub is_ended: bool,
    /// It was sent again though an answer was known, or on its way to somebody who is well.
    pub is_needless: bool,
    /// It was sent by somebody who could not know that it was not his any more.
    pub is_blind: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    pub mails: [Mail; MOST_MAILS],
    pub crashes: u8,
    pub losses: u8,
    pub freezes: u8,
}

/// What happens, to a mail at a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Send,
    Store,
    Answer250,
    Lose250,
    Lease,
    Note,
    Search,
    Ask,
    Arrive,
    LoseAnswer,
    GiveUp,
    Finish,
    StrayArrives,
    StrayVanishes,
    Freeze,
    Crash,
}

const STEPS: [Step; 15] = [
    Step::Send,
    Step::Store,
    Step::Answer250,
    Step::Lose250,
    Step::Lease,
    Step::Note,
    Step::Search,
    Step::Ask,
    Step::Arrive,
    Step::LoseAnswer,
    Step::GiveUp,
    Step::Finish,
    Step::StrayArrives,
    Step::StrayVanishes,
    Step::Freeze,
];

/// A step of a mail at a host; a crash is of the host alone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Action {
    pub host: usize,
    pub mail: usize,
    pub step: Step,
}

impl Mail {
    const NEW: Self = Self {
        sender: Sender::Waits,
        row: Row::Unknown,
        doors: [Door::Idle; HOSTS],
        attempts: [NO_ATTEMPT; HOSTS],
        strays: [0; HOSTS],
        recorded: 0,
        is_ended: false,
        is_needless: false,
        is_blind: false,
    };

    /// Of before.
    const DELIVERED: Self =
        Self { sender: Sender::IsRid, row: Row::IsRemembered, recorded: 1, is_ended: true, ..Self::NEW };

    /// Somebody has it, or it is done already.
    pub fn is_somewhere(&self) -> bool {
        let in_memory = self.doors.iter().any(|door| matches!(door, Door::Holds | Door::OwesCommit));
        self.row != Row::Unknown || self.recorded > 0 || in_memory
    }

    pub fn is_at(&self, stage: Stage) -> bool {
        self.attempts.iter().any(|attempt| attempt.stage == stage)
    }

    /// All is as it should be in the end.
    pub fn is_settled(&self) -> bool {
        self.sender == Sender::IsRid
            && self.recorded > 0
            && self.is_ended
            && !matches!(self.row, Row::Waits { .. })
    }
}

impl World {
    pub fn start(&self) -> State {
        let &Self { crashes, losses, freezes, .. } = self;
        let mut mails = [Mail::DELIVERED; MOST_MAILS];
        mails[..self.mails].fill(Mail::NEW);
        State { mails, crashes, losses, freezes }
    }

    pub fn all_steps(&self, actions: &mut Vec<Action>) {
        for host in 0..HOSTS {
            for mail in 0..self.mails {
                actions.extend(STEPS.map(|step| Action { host, mail, step }));
            }
            actions.push(Action { host, mail: 0, step: Step::Crash });
        }
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// The state after a step; none if it cannot be done.
    pub fn after(&self, state: &State, action: Action) -> Option<State> {
        let mut next = *state;
        let mail = &mut next.mails[action.mail];
        let is_possible = match action.step {
            Step::Crash => {
                next.crash(action.host);
                spend(&mut next.crashes)
            }
            Step::Lose250 | Step::LoseAnswer | Step::GiveUp => {
                spend(&mut next.losses) && self.step(mail, action)
            }
            Step::Freeze => spend(&mut next.freezes) && self.step(mail, action),
            _ => self.step(mail, action),
        };
        is_possible.then_some(next)
    }

    fn step(&self, mail: &mut Mail, Action { host, step, .. }: Action) -> bool {
        match step {
            Step::Send | Step::Store | Step::Answer250 | Step::Lose250 => self.take_in(mail, host, step),
            Step::Lease | Step::Note | Step::Search | Step::Ask | Step::Finish => {
                self.deliver(mail, host, step)
            }
            Step::Freeze => freeze(mail, host),
            _ => self.carry(mail, host, step),
        }
    }

    /// A door and its client.
    fn take_in(&self, mail: &mut Mail, host: usize, step: Step) -> bool {
        let door = &mut mail.doors[host];
        let listens = mail.sender == Sender::Talks(host);
        match (step, *door) {
            (Step::Send, Door::Idle) if mail.sender == Sender::Waits => {
                mail.sender = Sender::Talks(host);
                *door = Door::Holds;
            }
            (Step::Answer250, Door::Holds) if self.has(Flaw::AnswersBeforeCommit) && listens => {
                mail.sender = Sender::IsRid;
                *door = Door::OwesCommit;
            }
            (Step::Store, Door::Holds | Door::OwesCommit) => {
                // A key that is known is a mail that was stored, or delivered.
                if mail.row == Row::Unknown {
                    mail.row = Row::Waits { leased_by: None, is_noted: false };
                }
                *door = if listens { Door::HasStored } else { Door::Idle };
            }
            (Step::Answer250, Door::HasStored) => (mail.sender, *door) = (Sender::IsRid, Door::Idle),
            // The client goes, whatever the door is doing; what it does it does to the end.
            (Step::Lose250, Door::Holds) if listens => mail.sender = Sender::Waits,
            (Step::Lose250, Door::HasStored) => (mail.sender, *door) = (Sender::Waits, Door::Idle),
            _ => return false,
        }
        true
    }

    /// A courier and the queue.
    fn deliver(&self, mail: &mut Mail, host: usize, step: Step) -> bool {
        let attempt = mail.attempts[host];
        let is_searched = self.system == System::IsSearched;
        let notes = is_searched && !self.has(Flaw::NotesNoIntent);
        match (step, attempt.stage) {
            (Step::Lease, Stage::Idle) => {
                let Row::Waits { leased_by: leased_by @ None, is_noted } = &mut mail.row else {
                    return false;
                };
                *leased_by = Some(host);
                mail.attempts[host].stage = Stage::Opened { was_noted: *is_noted };
            }
            (Step::Note, Stage::Opened { was_noted: false }) if notes => self.note(mail, host),
            (Step::Search, Stage::Opened { was_noted: true }) => {
                let mut waits_for = mail.strays;
                if self.has(Flaw::LooksAtOnce) {
                    waits_for[1 - host] = 0;
                }
                if waits_for != [0; HOSTS] {
                    return false;
                }
                match mail.recorded {
                    0 => self.note(mail, host),
                    _ => mail.attempts[host].stage = Stage::IsDone,
                }
            }
            (Step::Ask, Stage::Noted) => mail.ask(host),
            (Step::Ask, Stage::Opened { .. }) if !notes => mail.ask(host),
            (Step::Finish, Stage::IsDone) => {
                if self.may_write(mail, host) {
                    mail.row = if self.has(Flaw::ForgetsKeys) { Row::Unknown } else { Row::IsRemembered };
                    mail.is_ended = true;
                }
                mail.attempts[host] = NO_ATTEMPT;
            }
            // It is due again when nothing of it is under way any more.
            (Step::Finish, Stage::GaveUp) if !is_searched || mail.strays[host] == 0 => {
                if self.may_write(mail, host)
                    && let Row::Waits { leased_by, .. } = &mut mail.row
                {
                    *leased_by = None;
                }
                mail.attempts[host] = NO_ATTEMPT;
            }
            _ => return false,
        }
        true
    }

    /// Commits the intent; who is late creates nothing.
    fn note(&self, mail: &mut Mail, host: usize) {
        let may_write = self.may_write(mail, host);
        match &mut mail.row {
            Row::Waits { is_noted, .. } if may_write => {
                *is_noted = true;
                mail.attempts[host].stage = Stage::Noted;
            }
            _ => mail.attempts[host] = NO_ATTEMPT,
        }
    }

    /// The row is there, and the number of the lease is the attempt's.
    fn may_write(&self, mail: &Mail, host: usize) -> bool {
        let is_ours = mail.row.is_leased_by(host) && !mail.attempts[host].is_late;
        matches!(mail.row, Row::Waits { .. }) && (is_ours || self.has(Flaw::HasNoFence))
    }

    /// The network and the business system.
    fn carry(&self, mail: &mut Mail, host: usize, step: Step) -> bool {
        let (stage, strays) = (&mut mail.attempts[host].stage, &mut mail.strays[host]);
        let mut arrives = false;
        match (step, *stage) {
            (Step::Arrive, Stage::Asks) => (arrives, *stage) = (true, Stage::IsDone),
            (Step::LoseAnswer, Stage::IsDone) => *stage = Stage::GaveUp,
            (Step::GiveUp, Stage::Asks) => (*stage, *strays) = (Stage::GaveUp, *strays + 1),
            (Step::StrayArrives, _) if *strays > 0 => (arrives, *strays) = (true, *strays - 1),
            (Step::StrayVanishes, _) if *strays > 0 => *strays -= 1,
            _ => return false,
        }
        if arrives && (mail.recorded == 0 || self.system == System::IsSearched) {
            // More than twice is as bad as twice.
            mail.recorded = (mail.recorded + 1).min(2);
        }
        true
    }
}

impl Row {
    /// The lease is the host's, as the queue sees it.
    pub fn is_leased_by(&self, host: usize) -> bool {
        matches!(self, Self::Waits { leased_by: Some(by), .. } if *by == host)
    }

    /// The host's lease is over.
    fn free(&mut self, host: usize) {
        if let Self::Waits { leased_by, .. } = self
            && *leased_by == Some(host)
        {
            *leased_by = None;
        }
    }
}

impl Mail {
    /// The request leaves.
    fn ask(&mut self, host: usize) {
        let attempt = &mut self.attempts[host];
        attempt.stage = Stage::Asks;
        self.is_blind |= attempt.is_blind;
        let is_late = attempt.is_late;
        let is_well = |other: &Attempt| matches!(other.stage, Stage::Asks | Stage::IsDone) && !other.is_late;
        let other_is_well = self.attempts.iter().enumerate().any(|(at, other)| at != host && is_well(other));
        self.is_needless |= !is_late && (self.is_ended || other_is_well);
    }
}

impl State {
    /// A process is killed: what it had in memory is gone, and what it sent may still arrive.
    fn crash(&mut self, host: usize) {
        for mail in &mut self.mails {
            if mail.sender == Sender::Talks(host) {
                mail.sender = Sender::Waits;
            }
            mail.doors[host] = Door::Idle;
            if mail.attempts[host].stage == Stage::Asks {
                mail.strays[host] += 1;
            }
            mail.attempts[host] = NO_ATTEMPT;
            mail.row.free(host);
        }
    }
}

/// The process stands still until its lease is over. What it sent is not under way by then.
fn freeze(mail: &mut Mail, host: usize) -> bool {
    let attempt = &mut mail.attempts[host];
    if matches!(attempt.stage, Stage::Idle | Stage::Asks) || attempt.is_late || mail.strays[host] > 0 {
        return false;
    }
    attempt.is_late = true;
    attempt.is_blind = attempt.stage == Stage::Noted;
    mail.row.free(host);
    true
}

/// One less of what may happen; false if there is none left.
fn spend(left: &mut u8) -> bool {
    let after = left.checked_sub(1);
    *left = after.unwrap_or_default();
    after.is_some()
}

/// A line of a counterexample.
impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, mail, step } = self;
        match step {
            Step::Crash => write!(f, "Crash of host {host}"),
            _ => write!(f, "{step:?} (mail {mail}, host {host})"),
        }
    }
}

/// Which mail and which host is the first makes no difference: of the states that differ in that alone, one is visited.
impl Representative for State {
    fn representative(&self) -> Self {
        let mut other = *self;
        for mail in &mut other.mails {
            mail.doors.swap(0, 1);
            mail.attempts.swap(0, 1);
            mail.strays.swap(0, 1);
            if let Sender::Talks(host) = &mut mail.sender {
                *host = 1 - *host;
            }
            if let Row::Waits { leased_by: Some(host), .. } = &mut mail.row {
                *host = 1 - *host;
            }
        }
        let mut same = *self;
        same.mails.sort();
        other.mails.sort();
        same.min(other)
    }
}
