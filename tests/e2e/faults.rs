//! Disks and descriptors that fail: after it, nothing is lost and nothing is doubled.

use crate::support::{
    smtp::matches,
    wait_for,
    world::{Options, Process, World, eml},
};
use std::{fs, os::unix::net::UnixStream, process::Command};

const MY: &[&str] = &["mycompany@severamail.test"];

fn large(subject: &str) -> Vec<u8> {
    let line = "x".repeat(70) + "\n";
    format!("From: anna@mycompany.test\nSubject: {subject}\n\n{}", line.repeat(6000)).into_bytes()
}

/// strace beside a running service, injecting a fault; gone when it is dropped.
fn inject(world: &mut World, fault: &str) -> Process {
    let pid = world.milter().id().to_string();
    let mut command = Command::new("strace");
    command.args(["-f", "-p", &pid, "-e", "trace=fsync,fdatasync", "-e", &format!("inject={fault}")]);
    let strace = Process::start(&mut command, &world.root.join("strace.log"));
    wait_for("strace to attach", || strace.log().contains("attached").then_some(()));
    strace
}

// Q1.
#[test]
fn file_and_directory_are_synced_before_the_row_is_committed() {
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace");
    let calls = "trace=fsync,fdatasync,linkat,pwrite64";
    let wrapper =
        ["strace", "-f", "-y", "-s", "5000", "-e", calls, "-o", trace.to_str().unwrap()].map(str::to_owned);
    let world = World::with(Options { wrapper: wrapper.into(), ..Options::default() });
    let before = fs::read_to_string(&trace).unwrap().len();
    assert!(world.mail("anna@mycompany.test", MY, &large("synced")).1.starts_with("250"));
    world.wait_for_activities(1);
    let text = fs::read_to_string(&trace).unwrap();
    let calls: Vec<&str> = text[before..].lines().collect();
    let find = |what: &str, words: &[&str]| {
        calls
            .iter()
            .position(|line| words.iter().all(|word| line.contains(word)))
            .unwrap_or_else(|| panic!("no {what} in {calls:#?}"))
    };
    let file = find("sync of the spool file", &["fsync(", "/queue/spool/#"]);
    let name = find("name for the spool file", &["linkat(", "/queue/spool/", ".eml"]);
    let kept = calls[name].split("/queue/spool/").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
    let folder = format!("/queue/spool/{}>", kept.split('/').next().unwrap());
    let parent = find("sync of the folder", &["fsync(", &folder]);
    let row = find("row of the message", &["pwrite64(", "queue.db-wal>", "synced"]);
    assert!(file < row && name < parent && parent < row, "{file} {name} {parent} {row}: {calls:#?}");
    let synced = calls[row..].iter().any(|line| line.contains("sync(") && line.contains("queue.db-wal>"));
    assert!(synced, "{calls:#?}");
}

#[test]
fn a_disk_that_cannot_sync_is_a_452_and_the_retry_is_recorded_once() {
    let mut world = World::start();
    {
        let _broken = inject(&mut world, "fsync,fdatasync:error=EIO");
        for message in [eml("plain"), large("large")] {
            let (_, answer) = world.mail("anna@mycompany.test", MY, &message);
            assert!(matches(&answer, "452 4.3.1 *[storage-failing]"), "{answer}");
        }
    }
    assert_eq!(world.spooled(), 0);
    for message in [eml("plain"), large("large")] {
        let (_, answer) = world.mail("anna@mycompany.test", MY, &message);
        assert!(answer.starts_with("250"), "{answer}");
    }
    world.wait_for_activities(2);
}

#[test]
fn a_spool_that_is_gone_is_a_452_and_small_mail_goes_on() {
    let world = World::start();
    fs::remove_dir_all(world.root.join("queue/spool")).unwrap();
    let (_, answer) = world.mail("anna@mycompany.test", MY, &large("no spool"));
    assert!(matches(&answer, "452 4.3.1 *[storage-failing]"), "{answer}");
    assert!(world.mail("anna@mycompany.test", MY, &eml("plain")).1.starts_with("250"));
    world.wait_for_activities(1);
}

#[test]
fn no_descriptors_left_is_a_pause_not_the_end() {
    let mut world = World::start();
    let pid = world.milter().id().to_string();
    let limit = |most: usize| {
        let limit = format!("--nofile={most}:");
        assert!(Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap().success());
    };
    // Somebody else has them: the service counted on more when it started.
    limit(fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() + 4);
    let socket = world.root.join("postfix/queue/activity-milter/milter.sock");
    let crowd: Vec<_> = (0..60).map_while(|_| UnixStream::connect(&socket).ok()).collect();
    wait_for("the failure to be logged", || world.milter().log().contains("accept failed").then_some(()));
    drop(crowd);
    limit(4096);
    let taken = wait_for("mail to go through again", || {
        Some(world.mail("anna@mycompany.test", MY, &eml("plain")).1)
            .filter(|answer| answer.starts_with("250"))
    });
    assert!(taken.starts_with("250"));
    world.wait_for_activities(1);
}

#[test]
fn a_disk_that_takes_longer_than_the_deadline_is_a_451_and_the_retry_finds_it_recorded() {
    let mut world = World::start();
    {
        // Once: the sync that should have made the first message durable takes 66 seconds.
        let _slow = inject(&mut world, "fsync,fdatasync:delay_enter=66000000:when=1");
        let (_, answer) = world.mail("anna@mycompany.test", MY, &eml("plain"));
        assert!(matches(&answer, "451 4.3.0 *[deadline-exceeded]"), "{answer}");
        world.wait_for_activities(1);
    }
    let (_, answer) = world.mail("anna@mycompany.test", MY, &eml("plain"));
    assert!(answer.starts_with("250"), "{answer}");
    world.milter().line_with(&["known=true"]);
    world.wait_for_activities(1);
}
