//! Who has sent how much lately (`[limits]`).
//!
//! In: clients, senders, tenants. Out: whether one more message is taken from them.
//! Promise: at most [`REMEMBERED`] of each kind are remembered, as numbers and no names: who was heard of least lately is
//! forgotten. A reload forgets nothing but what has another limit. Who is refused pays nothing.
//! Fails: never; who is forgotten begins anew.
//!
//! Why not governor: its keyed limiter keeps every key until somebody sweeps, and what has no limit is a stranger's to fill.

use crate::rules::{Limits, Rate};
use moka::{
    ops::compute::Op,
    policy::EvictionPolicy,
    sync::{Cache, CacheBuilder},
};
use std::{
    hash::{BuildHasher, Hash, RandomState},
    net::IpAddr,
    sync::LazyLock,
    time::{Duration, Instant},
};

/// Most senders that are remembered, and as many clients and tenants.
pub const REMEMBERED: u64 = 100_000;

/// The cache takes in a few before it looks what must go: a queue of some hundred, and one for each thread.
const UNSWEPT: u64 = 2_000;

/// All times are counted from here.
static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What is remembered.
pub(super) struct Meters {
    client: Option<Meter>,
    sender: Option<Meter>,
    tenant: Option<Meter>,
}

/// Who is remembered, as a number that a stranger cannot aim at, and when all is forgiven.
#[derive(Clone)]
struct Meter {
    rate: Rate,
    names: RandomState,
    due: Cache<u64, Duration>,
}

impl Meters {
    pub(super) fn new(limits: &Limits) -> Self {
        let Limits { client, sender, tenant } = limits.to_owned();
        let meter = |rate: Option<Rate>| rate.map(Meter::new);
        Self { client: meter(client), sender: meter(sender), tenant: meter(tenant) }
    }

    /// The same with other limits: what was counted for a limit that stays goes on counting.
    pub(super) fn with(&self, limits: &Limits) -> Self {
        let Limits { client, sender, tenant } = limits.to_owned();
        let meter = |old: &Option<Meter>, rate: Option<Rate>| {
            rate.map(|rate| old.clone().filter(|old| old.rate == rate).unwrap_or_else(|| Meter::new(rate)))
        };
        Self {
            client: meter(&self.client, client),
            sender: meter(&self.sender, sender),
            tenant: meter(&self.tenant, tenant),
        }
    }

    /// One message more of a client. Who has an IPv6 network has all addresses of it.
    pub(super) fn client(&self, client: IpAddr) -> bool {
        self.client.as_ref().is_none_or(|meter| meter.admits(network_of(client), BEGAN.elapsed()))
    }

    /// One message more of an envelope sender, folded.
    pub(super) fn sender(&self, sender: &str) -> bool {
        self.sender.as_ref().is_none_or(|meter| meter.admits(sender, BEGAN.elapsed()))
    }

    /// One message more for a tenant, by its id.
    pub(super) fn tenant(&self, tenant: &str) -> bool {
        self.tenant.as_ref().is_none_or(|meter| meter.admits(tenant, BEGAN.elapsed()))
    }

    /// How many are remembered, by what they are; only what is limited.
    pub(super) fn remembered(&self) -> [(&'static str, u64); 3] {
        let count = |meter: &Option<Meter>| meter.as_ref().map_or(0, Meter::count);
        [("client", count(&self.client)), ("sender", count(&self.sender)), ("tenant", count(&self.tenant))]
    }
}

impl Meter {
    fn new(rate: Rate) -> Self {
        // After that all is forgiven, and who is not remembered has sent nothing.
        let due = CacheBuilder::new(REMEMBERED - UNSWEPT).time_to_idle(rate.per);
        let due = due.eviction_policy(EvictionPolicy::lru()).build();
        Self { rate, names: RandomState::new(), due }
    }

    fn admits(&self, who: impl Hash, now: Duration) -> bool {
        let mut admitted = false;
        let entry = self.due.entry(self.names.hash_one(who));
        // Nobody else counts for the same one meanwhile.
        entry.and_compute_with(|before| match self.rate.admit(before.map(|due| due.into_value()), now) {
            Some(due) => {
                admitted = true;
                Op::Put(due)
            }
            None => Op::Nop,
        });
        admitted
    }

    fn count(&self) -> u64 {
        self.due.run_pending_tasks();
        self.due.entry_count()
    }
}

fn network_of(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const fn hourly(count: u32) -> Rate {
        Rate { count, per: Duration::from_secs(3600) }
    }

    fn limits(count: u32) -> Limits {
        Limits { client: Some(hourly(count)), sender: Some(hourly(count)), tenant: Some(hourly(count)) }
    }

    /// What a flood of senders that nobody has seen before takes, from several threads. D8.
    #[test]
    fn at_most_so_many_are_remembered() {
        let meter = Meter::new(hourly(1));
        thread::scope(|scope| {
            for thread in 0..4 {
                let meter = &meter;
                scope.spawn(move || {
                    for number in 0..40_000 {
                        assert!(meter.admits((thread, number), Duration::ZERO));
                        if number % 10_000 == 9_999 {
                            let all = meter.due.iter().count() as u64;
                            assert!(all <= REMEMBERED, "{all}");
                        }
                    }
                });
            }
        });
        let count = meter.count();
        assert!((REMEMBERED - UNSWEPT - 100..=REMEMBERED).contains(&count), "{count}");
        // Who came last is remembered, and who came first is not.
        assert!(!meter.admits((0, 39_999), Duration::ZERO) && meter.admits((0, 0), Duration::ZERO));
    }

    #[test]
    fn each_is_counted_for_himself() {
        let meters = Meters::new(&limits(2));
        assert_eq!([(); 3].map(|()| meters.sender("a@x.test")), [true, true, false]);
        assert!(meters.sender("b@x.test") && meters.tenant("a@x.test"));
        let client = |text: &str| meters.client(text.parse().unwrap());
        assert_eq!(["192.0.2.1", "::ffff:192.0.2.1", "192.0.2.1"].map(client), [true, true, false]);
        assert!(client("192.0.2.2"));
        assert_eq!(["2001:db8::1", "2001:db8::2", "2001:db8::3"].map(client), [true, true, false]);
        assert!(client("2001:db8:0:1::1"));
        assert_eq!(meters.remembered(), [("client", 4), ("sender", 2), ("tenant", 1)]);
    }

    /// D8.
    #[test]
    fn a_reload_forgets_only_what_has_another_limit() {
        let meters = Meters::new(&limits(1));
        assert!(meters.sender("a") && meters.tenant("t"));
        let next = meters.with(&Limits { sender: Some(hourly(2)), ..limits(1) });
        assert!(!next.tenant("t") && next.sender("a"));
        // What began under the old settings counts on.
        assert!(next.tenant("u") && !meters.tenant("u"));
        let without = next.with(&Limits::default());
        assert!(without.tenant("t") && without.remembered() == [("client", 0), ("sender", 0), ("tenant", 0)]);
    }

    /// D8.
    #[test]
    fn two_at_a_time_are_two() {
        let meter = Meter::new(hourly(100));
        let taken = |_| (0..100).filter(|_| meter.admits("a", Duration::ZERO)).count();
        let all: usize = thread::scope(|scope| {
            (0..4).map(|n| scope.spawn(move || taken(n))).map(|t| t.join().unwrap()).sum()
        });
        assert_eq!(all, 100);
    }
}
