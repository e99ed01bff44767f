//! The dialogue files, each played against a Postfix with the milter attached.

use crate::support::{smtp::play, world::World};
use std::path::Path;

fn dialogue(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/dialogues").join(name)
}

#[test]
fn replies() {
    let world = World::start();
    play(world.postfix.port, &dialogue("replies.smtp"));
    let recorded = world.wait_for_activities(1);
    assert_eq!(recorded[0]["subject"], "Meeting on Friday");
    assert_eq!(world.postfix.queued(), Vec::<serde_json::Value>::new());
}

#[test]
fn others() {
    let world = World::start();
    play(world.postfix.port, &dialogue("others.smtp"));
    crate::support::wait_for("three deliveries", || (world.postfix.delivered().len() == 3).then_some(()));
    assert_eq!(world.activities().len(), 0);
}
