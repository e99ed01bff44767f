//! Severa's absence, and one company's: whose mail waits, whose does not, and what is there afterwards.

use super::{ANNA, BO, MY, PROJECT, numbered};
use crate::support::{http::http_get, site::Site, smtp::matches, wait_for, world::eml};
use std::collections::BTreeSet;

fn text(port: u16, path: &str) -> String {
    String::from_utf8(http_get(port, path).1).unwrap()
}

#[track_caller]
fn accepted(site: &Site, to: &[&str], number: usize) {
    let (_, answer) = site.world.mail(ANNA, to, &numbered(number));
    assert!(answer.starts_with("250"), "{number}: {answer}");
}

#[track_caller]
fn deferred(site: &Site, sender: &str, to: &str) {
    let message = format!("From: {sender}\nTo: {BO}\nSubject: x\n\nx\n");
    let (answers, answer) = site.world.mail(sender, &[to], message.as_bytes());
    assert!(matches(&answer, "451 4.4.3 *"), "{sender}: {answers:?} {answer}");
}

/// The copy's last good poll was a day ago.
fn a_day_passes(site: &Site) {
    let copy = rusqlite::Connection::open(site.world.root.join("severa.db")).unwrap();
    let day = 24 * 3600 * 1000;
    let aged =
        copy.execute("UPDATE company SET good_at = good_at - ?1, pass_at = pass_at - ?1", [day]).unwrap();
    assert_eq!(aged, 1);
}

#[test]
fn severa_is_down_for_a_day() {
    let mut site = Site::start();
    site.severa().down();
    accepted(&site, &[MY], 0);
    accepted(&site, &[PROJECT], 1);
    wait_for("an attempt", || site.world.milter().log().contains("delivery deferred").then_some(()));
    deferred(&site, ANNA, "2001.mycompany@severamail.test"); // nobody can say whose number it is
    // A stranger is refused as long as the copy is of today.
    let (_, answer) = site.world.mail("mallory@nowhere.test", &[MY], &eml("unknown_sender"));
    assert!(matches(&answer, "550 5.7.1 *[no-user]"), "{answer}");
    // A start finds the copy in its file.
    site.world.stop_milter();
    site.world.start_milter();
    accepted(&site, &[PROJECT], 2);
    // A day later who is known still is; who is not may have come meanwhile.
    site.world.stop_milter();
    a_day_passes(&site);
    site.world.start_milter();
    accepted(&site, &[MY], 3);
    accepted(&site, &[PROJECT], 4);
    deferred(&site, "mallory@nowhere.test", MY);
    let ready = text(site.world.admin_port, "/readyz");
    assert!(
        ready.contains("mycompany: last good poll 1day") && ready.contains("nobody is refused by it"),
        "{ready}"
    );
    assert_eq!(site.mycompany().activities().len(), 0);
    // It comes back: everything arrives, once, and strangers are refused again.
    site.severa().up();
    site.wait_until_delivered();
    let held = site.held("mycompany");
    let subjects: BTreeSet<_> = held.iter().map(|held| held.subject.clone()).collect();
    assert_eq!(subjects, (0..5).map(|number| format!("number {number}")).collect());
    assert_eq!(held.len(), 5, "{held:#?}");
    wait_for("the copy to be of today", || {
        let (_, answer) = site.world.mail("mallory@nowhere.test", &[MY], &eml("unknown_sender"));
        answer.starts_with("550").then_some(())
    });
    site.severa().assert_nothing_wrong();
}

#[test]
fn one_company_without_access_delays_nobody_else() {
    const OTHER: &str = "other@severamail.test";
    let mut site = Site::of(&["mycompany", "other"]);
    site.mycompany().revoke_secret();
    // More than the company's share of attempts, and the other's in between.
    let other = |number: usize| {
        format!(
            "From: otto@other.test\nTo: x@y.test\nSubject: other {number}\nMessage-ID: <o{number}@x>\n\nx\n"
        )
    };
    for number in 0..8 {
        accepted(&site, &[MY], number);
        let (_, answer) = site.world.mail("otto@other.test", &[OTHER], other(number).as_bytes());
        assert!(answer.starts_with("250"), "{answer}");
    }
    wait_for("the other company's mail", || (site.held("other").len() == 8).then_some(()));
    let ready = wait_for("the alarm", || {
        Some(text(site.world.admin_port, "/readyz")).filter(|ready| ready.contains("deliveries paused"))
    });
    assert!(ready.contains("mycompany: ") && ready.contains("AuthenticationRequired"), "{ready}");
    assert!(!ready.contains("other: "), "{ready}");
    assert_eq!(http_get(site.world.admin_port, "/readyz").0, 200, "the others are served");
    let metrics = text(site.world.admin_port, "/metrics");
    assert!(metrics.contains("activity_milter_tenants_paused 1\n"), "{metrics}");
    let paused = site.world.milter().line_with(&["its deliveries are paused"]);
    assert!(paused.contains("mycompany") && paused.contains("AuthenticationRequired"), "{paused}");
    assert_eq!(site.mycompany().activities().len(), 0);
    assert_eq!(site.queued(), 8);
    // The file is repaired, and nobody restarts or reloads anything.
    site.mycompany().set_secret("another");
    site.write_secret("mycompany", "another\n");
    site.wait_until_delivered();
    let subjects: BTreeSet<_> = site.held("mycompany").into_iter().map(|held| held.subject).collect();
    assert_eq!((subjects.len(), site.held("mycompany").len(), site.held("other").len()), (8, 8, 8));
    wait_for("readiness", || {
        text(site.world.admin_port, "/metrics").contains("activity_milter_tenants_paused 0\n").then_some(())
    });
    site.severa().assert_nothing_wrong();
}
