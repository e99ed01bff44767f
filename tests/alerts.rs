//! The alerts in `packaging/prometheus`: each fires when it should, is quiet when it should, and what it looks at is there
//! from the service's first second.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

use activity_milter::observe::metrics;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/prometheus")
}

fn read(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap()
}

fn alerts() -> Vec<String> {
    let text = read("alerts.yml");
    text.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned).collect()
}

/// Prometheus's own tool: the system's, or the one that `packaging/install-deps` unpacked.
#[test]
fn alerts_fire_as_documented() {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/promtool/usr/bin/promtool");
    let tool = if unpacked.exists() { unpacked } else { "promtool".into() };
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]] {
        let output = Command::new(&tool).args(arguments).current_dir(folder()).output().unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{said}");
    }
}

#[test]
fn each_alert_is_seen_to_fire_and_to_be_quiet() {
    let text = read("alerts_test.yml");
    let cases: Vec<&str> = text.split("alertname: ").skip(1).collect();
    for alert in alerts() {
        let of: Vec<_> = cases.iter().filter(|case| case.lines().next() == Some(alert.as_str())).collect();
        assert!(of.iter().any(|case| case.contains("exp_labels")), "{alert} is not seen to fire");
        assert!(of.iter().any(|case| case.contains("exp_alerts: []")), "{alert} is not seen to be quiet");
    }
}

/// An alert on what grows from nothing to one never fires.
#[test]
fn what_alerts_look_at_is_there_from_the_start() {
    metrics::start();
    // Gauges of the queue are counted when somebody asks; Severa's are there where Severa is, a server's where one is.
    metrics::snapshot(&metrics::Snapshot { waiting: 0, held: 0, oldest: Default::default() });
    metrics::emergency(false);
    let page = metrics::render();
    let rules = read("alerts.yml");
    let mut looked_at = 0;
    for (at, _) in rules.match_indices("activity_milter_") {
        let rest = &rules[at..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap();
        let (name, rest) = rest.split_at(end);
        let selector = rest.strip_prefix('{').and_then(|rest| rest.split('}').next()).unwrap_or_default();
        let of_some = ["severa_copy_age_seconds", "queue_reachable", "queue_safe", "queue_spooled"];
        if of_some.iter().any(|some| name == format!("activity_milter_{some}")) {
            continue;
        }
        let has = |line: &str| {
            line.starts_with(name)
                && selector.split(',').filter(|label| !label.is_empty()).all(|label| {
                    assert!(!label.contains("=~"), "{label}: write what is compared");
                    line.contains(label.trim())
                })
        };
        assert!(page.lines().any(has), "{name}{{{selector}}} is not there at the start:\n{page}");
        looked_at += 1;
    }
    assert!(looked_at > 14, "{looked_at} selectors");
    // Each reason of a refusal and each stage of a fault, not only one.
    for reason in ["no-user", "no-such-tenant", "directory-unavailable", "queue-full"] {
        assert!(page.contains(&format!("reason=\"{reason}\"")), "{reason}");
    }
    for stage in ["mail", "rcpt", "end-of-message", "reply"] {
        assert!(page.contains(&format!("activity_milter_faults_total{{stage=\"{stage}\"}} 0")), "{stage}");
    }
}
