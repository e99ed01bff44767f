//! Doors, queue, courier and business system as a model, of which every state is visited.
//!
//! Two mails and two hosts that share a queue; each host takes mail and delivers it. A sender who was told nothing sends
//! again, to either host. Two processes are killed, two answers are lost (of SMTP or of the business system) and one lease
//! runs out under somebody who is frozen, at any moment. A debug build visits the states of one mail with all of that, and
//! of two mails with a crash and a loss; `make torture-model` those of two mails with all, nine million in a minute or two.
//!
//! The model has the order of the product's durable steps, not its code: it says that the order is right, and, with one
//! piece left out (`Flaw`), that the piece is needed. That an engine does what the model takes it for is what
//! `tests/queue_model.rs` says. What is left out is what other tests are about: disks that fail, limits, clocks, a database
//! that is away, what people hold and drop. There is no circle, because whatever goes back is counted; so `eventually` says
//! what it seems to.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "model/world.rs"]
mod world;

use stateright::{Checker, HasDiscoveries, Model, Property};
use std::{thread::available_parallelism, time::Instant};
use world::{Action, Door, Flaw, HOSTS, Mail, Sender, Stage, State, System, World};

const LOST: &str = "nothing answered 250 is lost";
const TWICE: &str = "nothing is recorded twice where its sender could know";
const NEEDLESS: &str = "only an unanswered request is sent again";
const LEASE: &str = "a lease is one's own until it is finished";
const IN_THE_END: &str = "in the end each mail was answered 250, is recorded, and waits no more";

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.start()]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        self.all_steps(actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        self.after(state, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(LOST, |_, state| {
                each(state, |mail| mail.sender != Sender::IsRid || mail.is_somewhere())
            }),
            Property::always(TWICE, |_, state| each(state, |mail| mail.recorded < 2 || mail.is_blind)),
            Property::always(NEEDLESS, |_, state| each(state, |mail| !mail.is_needless)),
            Property::always(LEASE, |_, state| each(state, has_the_lease)),
            Property::eventually(IN_THE_END, |_, state| each(state, Mail::is_settled)),
        ];
        // What these are about does happen.
        properties.extend([
            Property::sometimes("all that may happen has happened, and all is well", |_, state: &State| {
                let is_spent = state.crashes + state.losses + state.freezes == 0;
                is_spent && each(state, |mail| mail.is_settled() && mail.recorded == 1)
            }),
            Property::sometimes("a mail comes again after it was delivered", |_, state| {
                any(state, |mail| mail.doors.contains(&Door::Holds) && mail.is_ended)
            }),
            Property::sometimes("a mail is at both doors at once", |_, state| {
                any(state, |mail| mail.doors == [Door::Holds; HOSTS])
            }),
        ]);
        properties.extend(match self.system {
            System::KnowsKeys => vec![Property::sometimes("what is recorded is sent again", |_, state| {
                any(state, |mail| mail.recorded == 1 && mail.is_at(Stage::Asks))
            })],
            System::IsSearched => {
                vec![Property::sometimes("a search finds what a lost answer was about", |_, state| {
                    any(state, |mail| mail.recorded == 1 && mail.is_at(Stage::Opened { was_noted: true }))
                })]
            }
        });
        if self.freezes > 0 {
            properties.push(Property::sometimes(
                "who was frozen ends a lease that another has",
                |_, state| {
                    let is_late =
                        |mail: &Mail| mail.attempts[0].is_late && mail.attempts[0].stage == Stage::IsDone;
                    any(state, |mail| is_late(mail) && mail.row.is_leased_by(1))
                },
            ));
        }
        // What remains, in docs/severa.md.
        if self.freezes > 0 && self.system == System::IsSearched {
            properties
                .push(Property::sometimes("who was frozen before he asked makes it twice", |_, state| {
                    any(state, |mail| mail.recorded == 2)
                }));
        }
        properties
    }
}

fn each(state: &State, is_so: impl Fn(&Mail) -> bool) -> bool {
    state.mails.iter().all(is_so)
}

fn any(state: &State, is_so: impl Fn(&Mail) -> bool) -> bool {
    state.mails.iter().any(is_so)
}

/// Whoever is at work, and was not frozen, has the lease.
fn has_the_lease(mail: &Mail) -> bool {
    mail.attempts
        .iter()
        .enumerate()
        .all(|(host, attempt)| attempt.stage == Stage::Idle || attempt.is_late || mail.row.is_leased_by(host))
}

/// One mail, and all that may happen.
fn one_mail(system: System) -> World {
    World { system, flaw: None, mails: 1, crashes: 2, losses: 2, freezes: 1 }
}

/// Two mails; in a debug build less happens.
fn two_mails(system: System) -> World {
    let all = World { mails: 2, ..one_mail(system) };
    if cfg!(debug_assertions) { World { crashes: 1, losses: 1, freezes: 0, ..all } } else { all }
}

/// Visits every state.
fn all_is_well(world: World, at_least: usize) {
    let began = Instant::now();
    let threads = available_parallelism().unwrap().get();
    let checker = world.checker().threads(threads).symmetry().spawn_dfs().join();
    let (states, steps) = (checker.unique_state_count(), checker.state_count());
    eprintln!(
        "{world:?}: {states} states, {steps} steps, {} deep, {:?}",
        checker.max_depth(),
        began.elapsed()
    );
    checker.assert_properties();
    assert!(checker.is_done() && states > at_least, "{states}");
}

/// Looks for a state in which a property does not hold, and shows how it comes to be.
fn falls(flaw: Flaw, system: System, property: &'static str) {
    let world = World { flaw: Some(flaw), crashes: 1, losses: 1, ..one_mail(system) };
    let sought = HasDiscoveries::AnyOf([property].into());
    let checker = world.checker().finish_when(sought).spawn_bfs().join();
    let path = checker.discovery(property).unwrap_or_else(|| panic!("{world:?}: \"{property}\" holds"));
    eprintln!("{flaw:?}, {system:?}: not \"{property}\":\n{:?}", path.into_actions());
}

/// Q1, Q3, Q4, Q14, Q17, Q49.
#[test]
fn every_state_with_a_business_system_that_knows_keys() {
    all_is_well(one_mail(System::KnowsKeys), 15_000);
    all_is_well(two_mails(System::KnowsKeys), if cfg!(debug_assertions) { 50_000 } else { 6_000_000 });
}

/// S1, S2, S3, Q20.
#[test]
fn every_state_with_a_business_system_that_is_searched() {
    all_is_well(one_mail(System::IsSearched), 12_000);
    all_is_well(two_mails(System::IsSearched), if cfg!(debug_assertions) { 25_000 } else { 2_000_000 });
}

#[test]
fn what_is_answered_before_the_commit_is_lost() {
    falls(Flaw::AnswersBeforeCommit, System::KnowsKeys, LOST);
    falls(Flaw::AnswersBeforeCommit, System::IsSearched, LOST);
}

#[test]
fn without_memory_of_keys_what_was_answered_is_sent_again() {
    falls(Flaw::ForgetsKeys, System::KnowsKeys, NEEDLESS);
    falls(Flaw::ForgetsKeys, System::IsSearched, TWICE);
}

#[test]
fn without_a_fence_a_late_end_takes_somebody_s_lease() {
    falls(Flaw::HasNoFence, System::KnowsKeys, LEASE);
    falls(Flaw::HasNoFence, System::KnowsKeys, NEEDLESS);
    falls(Flaw::HasNoFence, System::IsSearched, TWICE);
}

#[test]
fn without_a_noted_intent_it_is_recorded_twice() {
    falls(Flaw::NotesNoIntent, System::IsSearched, TWICE);
}

/// S3: so it was once, where machines share a queue.
#[test]
fn who_looks_at_once_for_what_another_machine_began_finds_nothing() {
    falls(Flaw::LooksAtOnce, System::IsSearched, TWICE);
}
