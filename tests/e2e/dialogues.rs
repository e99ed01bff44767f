//! The dialogue files, each played against a Postfix with the milter attached, or against our LMTP listener.

use crate::support::{
    smtp::play,
    world::{Options, World},
};
use std::path::Path;

fn dialogue(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/dialogues").join(name)
}

#[test]
fn replies() {
    let world = World::start();
    play(world.smtp(), &dialogue("replies.smtp"));
    let recorded = world.wait_for_activities(1);
    assert_eq!(recorded[0]["subject"], "Meeting on Friday");
    assert_eq!(world.postfix.queued(), Vec::<serde_json::Value>::new());
}

#[test]
fn others() {
    let world = World::start();
    play(world.smtp(), &dialogue("others.smtp"));
    crate::support::wait_for("three deliveries", || (world.postfix.delivered().len() == 3).then_some(()));
    world.wait_for_activities(0);
}

#[test]
fn lmtp() {
    let world = World::with(Options { lmtp: true, ..Options::default() });
    play(world.lmtp(), &dialogue("lmtp.smtp"));
    let mut subjects: Vec<_> = world.wait_for_activities(2).iter().map(|a| a["subject"].clone()).collect();
    subjects.sort_by_key(ToString::to_string);
    assert_eq!(subjects, ["Meeting on Friday", "Newsletter  Bcc: x@y.test"]);
}
