//! The lanes: everybody's, and one for each tenant whose own settings are wrong.
//!
//! In: what each attempt showed, and of whose activity. Out: whose activities may be sent, and whose probes.
//! Promise: what is wrong with one tenant's settings delays nobody else; what is wrong with the service's delays all.

use super::breaker::{Breaker, Cause, Change, Lesson, Sign, Timing};
use crate::backend::{Scope, Trouble};
use crate::queue::Probe;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// A lane that is paused, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paused {
    /// Whose it is; none: everybody's.
    pub tenant: Option<Arc<str>>,
    /// Somebody must mend our settings; otherwise it does not answer.
    pub misconfigured: bool,
    /// What is wrong.
    pub reason: String,
}

/// Which pauses an attempt has seen when it began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rounds {
    all: u64,
    tenant: u64,
}

/// What became of a lane, and whose it is: none is everybody's.
pub(super) type Changed = (Option<Arc<str>>, Change);

/// All lanes.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    all: Breaker,
    /// Those that are paused.
    tenants: HashMap<Arc<str>, Breaker>,
    /// The greatest round of tenants' lanes that are gone: rounds are not given twice.
    rounds: u64,
    /// The first probe of a tenant's lane, if one waits for its time.
    first_probe: Option<Instant>,
}

impl Lanes {
    /// What an attempt that begins now must remember.
    pub(super) fn rounds(&self, tenant: &str) -> Rounds {
        Rounds { all: self.all.round(), tenant: self.tenants.get(tenant).map_or(0, Breaker::round) }
    }

    /// Learns from an attempt for a tenant, and says what changed.
    pub(super) fn learn(
        &mut self,
        tenant: &Arc<str>,
        lesson: &Lesson,
        rounds: Rounds,
        timing: Timing,
        now: Instant,
    ) -> Vec<Changed> {
        let is_theirs = lesson.sign == Sign::Misconfigured(Scope::Tenant);
        let with = |sign| Lesson { sign, ..lesson.clone() };
        // A tenant's wrong settings show that the service's are right, but not that the business system answers.
        let for_all = match (is_theirs, self.all.cause()) {
            (true, Some(Cause::Misconfigured)) => with(Sign::Answered),
            (true, _) => with(Sign::Nothing),
            (false, _) => lesson.clone(),
        };
        let mut changed = vec![(None, self.all.learn(&for_all, rounds.all, timing, now))];
        if is_theirs && !self.tenants.contains_key(tenant) {
            self.tenants.insert(Arc::clone(tenant), Breaker::after(self.rounds));
        }
        if let Some(lane) = self.tenants.get_mut(tenant) {
            let sign = match lesson.sign {
                Sign::Misconfigured(Scope::Tenant) => lesson.sign,
                Sign::Answered | Sign::Failed(Trouble::Later) => Sign::Answered,
                Sign::Misconfigured(Scope::All) | Sign::Failed(_) | Sign::Nothing => Sign::Nothing,
            };
            changed.push((Some(Arc::clone(tenant)), lane.learn(&with(sign), rounds.tenant, timing, now)));
            if lane.reason().is_none() {
                self.open(tenant);
            }
            self.look_for_first_probe();
        }
        changed.retain(|(_, change)| *change != Change::None);
        changed
    }

    /// A tenant's lane is paused no more.
    fn open(&mut self, tenant: &str) {
        if let Some(lane) = self.tenants.remove(tenant) {
            self.rounds = self.rounds.max(lane.round());
        }
    }

    fn lane(&mut self, tenant: Option<&str>) -> Option<&mut Breaker> {
        match tenant {
            None => Some(&mut self.all),
            Some(tenant) => self.tenants.get_mut(tenant),
        }
    }

    fn look_for_first_probe(&mut self) {
        self.first_probe = self.tenants.values().filter_map(Breaker::probe_at).min();
    }

    /// What is wrong with everybody's lane, by its remedy.
    pub(super) fn cause(&self) -> Option<Cause> {
        self.all.cause()
    }

    /// Nothing but a probe may be sent, of anybody.
    pub(super) fn is_shut(&self) -> bool {
        self.all.reason().is_some()
    }

    /// Nothing but a probe may be sent of this tenant.
    pub(super) fn is_shut_for(&self, tenant: &str) -> bool {
        self.is_shut() || self.tenants.contains_key(tenant)
    }

    /// Tenants of which nothing but probes may be sent.
    pub(super) fn shut(&self) -> impl Iterator<Item = &Arc<str>> {
        self.tenants.keys()
    }

    /// In how long everybody's lane may be probed; none while a probe is under way.
    pub(super) fn probe_in(&self, now: Instant) -> Option<Duration> {
        self.all.probe_in(now)
    }

    /// In how long the first tenant's lane may be probed.
    pub(super) fn tenants_probe_in(&self, now: Instant) -> Option<Duration> {
        self.first_probe.map(|first| first.saturating_duration_since(now))
    }

    /// Tenants whose lanes may be probed now, those that wait longest first.
    pub(super) fn to_probe(&self, now: Instant) -> Vec<Arc<str>> {
        if self.first_probe.is_none_or(|first| first > now) {
            return Vec::new();
        }
        let due = self.tenants.iter().filter_map(|(tenant, lane)| Some((lane.probe_at()?, tenant)));
        let mut due: Vec<_> = due.filter(|(at, _)| *at <= now).collect();
        due.sort();
        due.into_iter().map(|(_, tenant)| Arc::clone(tenant)).collect()
    }

    /// Which activity a lane's next probe should be.
    pub(super) fn probe(&mut self, tenant: Option<&str>) -> Option<Probe> {
        let lane = self.lane(tenant)?;
        let tried = lane.last_tried();
        Some(if lane.wants_tried() { Probe::Tried(tried) } else { Probe::Fresh(tried) })
    }

    /// A lane's probe is sent.
    pub(super) fn probing(&mut self, tenant: Option<&str>) {
        if let Some(lane) = self.lane(tenant) {
            lane.probing();
        }
        self.look_for_first_probe();
    }

    /// There was nothing to send as a lane's probe.
    pub(super) fn nothing_to_probe(&mut self, tenant: Option<&str>, wait: Duration, now: Instant) {
        if let Some(lane) = self.lane(tenant) {
            lane.nothing_to_probe(wait, now);
        }
        self.look_for_first_probe();
    }

    /// Nothing of a lane waits any more.
    pub(super) fn lift(&mut self, tenant: Option<&str>) {
        match tenant {
            None => self.all.lift(),
            Some(tenant) => self.open(tenant),
        }
        self.look_for_first_probe();
    }

    /// Other settings: pauses are tried at once.
    pub(super) fn forget(&mut self, now: Instant) {
        self.all.forget(now);
        self.tenants.values_mut().for_each(|lane| lane.forget(now));
        self.look_for_first_probe();
    }

    /// The lanes that are paused, everybody's first.
    pub(super) fn paused(&self) -> Vec<Paused> {
        let paused = |tenant: Option<&Arc<str>>, lane: &Breaker| {
            let misconfigured = lane.cause()? == Cause::Misconfigured;
            Some(Paused { tenant: tenant.cloned(), misconfigured, reason: lane.reason()?.to_owned() })
        };
        let tenants = self.tenants.iter().filter_map(|(tenant, lane)| paused(Some(tenant), lane));
        let mut all: Vec<_> = paused(None, &self.all).into_iter().chain(tenants).collect();
        all.sort_by(|a, b| a.tenant.cmp(&b.tenant));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing { first: Duration::from_secs(1), longest: Duration::from_secs(600) };

    struct All {
        lanes: Lanes,
        now: Instant,
    }

    impl All {
        fn say(&mut self, tenant: &str, sign: Sign) -> Vec<(Option<String>, Change)> {
            let rounds = self.lanes.rounds(tenant);
            self.say_of(tenant, sign, rounds)
        }

        fn say_of(&mut self, tenant: &str, sign: Sign, rounds: Rounds) -> Vec<(Option<String>, Change)> {
            let lesson = Lesson { item: 1, sign, reason: "r".to_owned(), after: None };
            let changed = self.lanes.learn(&tenant.into(), &lesson, rounds, TIMING, self.now);
            changed.into_iter().map(|(tenant, change)| (tenant.map(|t| t.to_string()), change)).collect()
        }
    }

    #[test]
    fn a_tenants_wrong_settings_are_its_own() {
        let mut all = All { lanes: Lanes::default(), now: Instant::now() };
        let paused = |seconds| Change::Paused(Cause::Misconfigured, Duration::from_secs(seconds));
        let early = all.lanes.rounds("a");
        assert_eq!(all.say("a", Sign::Misconfigured(Scope::Tenant)), [(Some("a".to_owned()), paused(1))]);
        assert!(!all.lanes.is_shut() && all.lanes.is_shut_for("a") && !all.lanes.is_shut_for("b"));
        assert_eq!(all.lanes.paused().len(), 1);
        // What others see changes nothing for it; what was under way neither.
        assert_eq!(all.say("b", Sign::Answered), []);
        assert_eq!(all.say_of("a", Sign::Answered, early), []);
        assert_eq!(
            (all.lanes.to_probe(all.now).len(), all.lanes.tenants_probe_in(all.now)),
            (0, Some(TIMING.first))
        );
        // Its probe.
        all.now += TIMING.first;
        assert_eq!(all.lanes.to_probe(all.now), [Arc::from("a")]);
        all.lanes.probing(Some("a"));
        assert_eq!((all.lanes.to_probe(all.now).len(), all.lanes.tenants_probe_in(all.now)), (0, None));
        assert_eq!(all.say("a", Sign::Misconfigured(Scope::Tenant)), [(Some("a".to_owned()), paused(2))]);
        // A probe that meets the service's trouble says nothing of the tenant's.
        all.now += Duration::from_secs(2);
        all.lanes.probing(Some("a"));
        assert_eq!(all.say("a", Sign::Misconfigured(Scope::All)), [(None, paused(1))]);
        assert!(all.lanes.is_shut() && all.lanes.is_shut_for("b"));
        assert_eq!(all.lanes.paused().iter().map(|p| p.tenant.is_none()).collect::<Vec<_>>(), [true, false]);
        // Another tenant's revoked secret shows that the service's is right.
        let changed = all.say("b", Sign::Misconfigured(Scope::Tenant));
        assert_eq!(changed, [(None, Change::Resumed), (Some("b".to_owned()), paused(1))]);
        all.now += Duration::from_secs(2);
        all.lanes.probing(Some("a"));
        assert_eq!(all.say("a", Sign::Answered), [(Some("a".to_owned()), Change::Resumed)]);
        assert!(!all.lanes.is_shut_for("a") && all.lanes.is_shut_for("b"));
        // An attempt of the former pause is no probe of the next one.
        assert_eq!(all.say("a", Sign::Misconfigured(Scope::Tenant)), [(Some("a".to_owned()), paused(1))]);
        assert_eq!(all.say_of("a", Sign::Answered, Rounds { all: 0, tenant: 1 }), []);
    }
}
