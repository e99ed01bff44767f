//! Started by root: as whom the service and its commands work, and what `check` sees with the service's eyes.

use crate::support::{
    http::http_get,
    smtp::Smtp,
    wait_for,
    world::{Options, World, eml},
};
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::Path,
};

const ANNA: &str = "anna@mycompany.test";
const MY: &str = "mycompany@severamail.test";

/// Debian has this user everywhere, and nothing of this test is anybody else's.
const NOBODY: u32 = 65534;

/// A world whose queue belongs to another user than root.
fn of_nobody(more: &[(&'static str, &str)]) -> World {
    let config = more.iter().map(|(table, line)| (*table, (*line).to_owned())).collect();
    let options = Options { without_milter: true, tcp: true, lmtp: true, config, ..Options::default() };
    let world = World::with(options);
    fs::set_permissions(&world.root, fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["queue", "queue/spool", "sockets"] {
        fs::create_dir_all(world.root.join(name)).unwrap();
        chown(world.root.join(name), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let place = world.lmtp_listen();
    let config = fs::read_to_string(world.config_path()).unwrap();
    let config = config.replace(&place, &format!("unix:{}/sockets/lmtp.sock", world.root.display()));
    let config: String = config
        .lines()
        .filter(|line| !line.contains("socket_group"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(world.config_path(), config).unwrap();
    world
}

fn owner(path: &Path) -> u32 {
    fs::metadata(path).unwrap().uid()
}

#[test]
fn root_becomes_the_owner_of_the_queue() {
    let mut world = of_nobody(&[]);
    world.start_milter();
    let status = fs::read_to_string(format!("/proc/{}/status", world.milter().id())).unwrap();
    let uids = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
    assert_eq!(uids.split_whitespace().skip(1).collect::<Vec<_>>(), ["65534"; 4], "for good");
    let (_, answer) = Smtp::lmtp(&world.lmtp_listen()).mail(ANNA, &[MY], &eml("plain"));
    assert!(answer.starts_with("250"), "{answer}");
    world.wait_for_activities(1);
    // Commands of root leave nothing that the service could not write.
    world.sink.as_mut().unwrap().kill();
    let (_, answer) = Smtp::lmtp(&world.lmtp_listen()).mail(ANNA, &[MY], &eml("html_only"));
    assert!(answer.starts_with("250"), "{answer}");
    assert_eq!(world.command(&["queue", "hold", "--all"]).0, Some(0));
    world.stop_milter();
    assert_eq!(world.command(&["queue", "retry", "--all", "--state", "held"]).0, Some(0));
    for entry in fs::read_dir(world.root.join("queue")).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(owner(&path), NOBODY, "{}", path.display());
    }
    world.start_sink();
    world.start_milter();
    world.wait_for_activities_again(2);
}

#[test]
fn check_of_root_sees_what_the_service_can_do() {
    let mut world = of_nobody(&[]);
    let (code, out, error) = world.command(&["check"]);
    assert_eq!(code, Some(0), "{out}{error}");
    assert!(out.contains("writable for user nobody"), "{out}");
    world.start_milter();
    let (code, out, error) = world.command(&["check"]);
    assert_eq!(code, Some(0), "while it runs, its ports are its own: {out}{error}");
    world.stop_milter();

    // Files of root among the queue's.
    let database = world.root.join("queue/queue.db");
    chown(&database, Some(0), Some(0)).unwrap();
    let (code, out, _) = world.command(&["check"]);
    assert_eq!(code, Some(1), "{out}");
    assert!(
        out.contains(&format!("{} is root's", database.display())) && out.contains("chown nobody"),
        "{out}"
    );
    chown(&database, Some(NOBODY), Some(NOBODY)).unwrap();

    // A port that another program has.
    let config = fs::read_to_string(world.config_path()).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let milter = world.milter_listen();
    let other = format!("inet:{}", taken.local_addr().unwrap());
    fs::write(world.config_path(), config.replace(&milter, &other)).unwrap();
    let (code, out, _) = world.command(&["check"]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains(&other) && out.contains("another milter.listen"), "{out}");
    // Offline, as before a reload, no port is tried.
    assert_eq!(world.command(&["check", "--offline"]).0, Some(0));
    drop(taken);

    // A group that there is not, and one that the user is not in.
    let lmtp = "[lmtp]\n";
    for (group, words) in [("no-such-group", "there is no group"), ("adm", "is not in group adm")] {
        fs::write(world.config_path(), config.replace(lmtp, &format!("{lmtp}socket_group = \"{group}\"\n")))
            .unwrap();
        let (code, out, _) = world.command(&["check"]);
        assert!(code == Some(1) && out.contains(words), "{out}");
    }

    // A secret that only root may read.
    let token = world.root.join("token");
    fs::write(&token, "secret\n").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let line = format!("[backend]\ntoken_file = \"{}\"\n", token.display());
    fs::write(world.config_path(), config.replace("[backend]\n", &line)).unwrap();
    let (code, out, error) = world.command(&["check"]);
    assert!(code == Some(78) && error.contains(&token.display().to_string()), "{code:?} {out} {error}");
}

/// Where the queue is root's, all goes on, and it is said.
#[test]
fn root_stays_root_where_the_queue_is_its_own_and_says_so() {
    let mut world = World::with(Options::default());
    assert!(world.milter().log().contains("the service works as root"), "{}", world.milter().log());
    wait_for("an answer", || (http_get(world.admin_port, "/livez").0 == 200).then_some(()));
    let (code, _, error) = world.command(&["queue", "list"]);
    assert!(code == Some(0) && error.contains("this works as root"), "{error}");
}
