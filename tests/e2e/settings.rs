//! Settings of a running service: drop-ins are read again, and what is doubtful is said where an administrator looks.

use crate::support::{
    wait_for,
    world::{World, eml},
};
use std::fs;

/// The lines of the log that warn of a setting.
fn doubts(world: &mut World) -> Vec<String> {
    let log = world.milter().log();
    log.lines().filter(|line| line.contains("a setting is doubtful")).map(str::to_owned).collect()
}

#[test]
fn drop_ins_are_read_again_and_doubts_are_logged() {
    let mut world = World::start();
    assert!(doubts(&mut world).is_empty(), "{:?}", doubts(&mut world));
    let drop_ins = world.root.join("activity-milter.toml.d");
    fs::create_dir(&drop_ins).unwrap();
    fs::write(drop_ins.join("10.toml"), "mode = \"live\"\n[message]\nmax_size = \"50 KiB\"\n").unwrap();
    world.milter().signal("HUP");
    let line = wait_for("the warning", || doubts(&mut world).pop());
    assert!(line.contains("10.toml:3:12: max_size: ") && line.contains("nearly every message"), "{line}");
    wait_for("the new settings", || world.milter().log().contains("configuration read again").then_some(()));
    let (_, out, _) = world.command(&["check", "--offline"]);
    assert!(out.contains("10.toml:3:12: max_size: ") && out.contains("activity-milter.toml with "), "{out}");
    let large = [eml("plain"), b"x\r\n".repeat(30_000)].concat();
    let (_, answer) = world.mail("anna@mycompany.test", &["mycompany@severamail.test"], &large);
    assert!(answer.contains("[too-large]"), "the drop-in counts: {answer}");
    // A broken drop-in is refused by its own name, and all of it.
    fs::write(drop_ins.join("20.toml"), "[queue]\nmax_items = 0\n").unwrap();
    world.milter().signal("HUP");
    let refused = || world.milter().log().contains("20.toml:2:13: max_items: 0 would let").then_some(());
    wait_for("the refusal", refused);
    fs::remove_file(drop_ins.join("20.toml")).unwrap();
    world.stop_milter();
    world.start_milter();
    wait_for("the warning at the start", || doubts(&mut world).pop());
}
