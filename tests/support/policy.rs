//! What a service does that nobody has configured.

use activity_milter::{
    intake::{Policy, Shadow},
    rules::{Emergency, Limits, Mixed, TenantPolicy, Trust},
};
use std::time::Duration;

pub fn policy() -> Policy {
    Policy {
        max_size: 1 << 20,
        min_free: 0,
        patience: Duration::from_secs(60),
        max_recipients: 100,
        max_people: 1000,
        mixed: Mixed::Reject,
        keep_after_accept: false,
        unlinked_projects: false,
        tenants: TenantPolicy::default(),
        shadow: Shadow::Marked,
        emergency: Emergency::default(),
        trust: Trust::default(),
        limits: Limits::default(),
    }
}
