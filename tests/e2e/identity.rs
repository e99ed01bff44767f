//! Started by root: as whom the service and its commands work, and what `check` sees with the service's eyes.

use crate::support::{
    http::http_get,
    smtp::Smtp,
    wait_for,
    world::{Options, World, eml, program},
};
use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
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
    // As soon as it is not in flight.
    wait_for("it to be held", || (world.command(&["queue", "hold", "--all"]).0 == Some(0)).then_some(()));
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
    let place = format!("{}:", world.config_path().display());
    let line = out.lines().find(|line| line.starts_with("NOT OK named file")).unwrap();
    assert!(line.contains(&place) && line.contains(&token.display().to_string()), "{code:?} {out} {error}");
    assert!(line.contains("let the user read it that activity-milter runs as"), "{line}");
    // One line for it, and the rest is looked at.
    assert_eq!((code, out.matches(&token.display().to_string()).count()), (Some(1), 1), "{out}");
    assert!(out.contains("ok     directory") && out.contains("writable for user nobody"), "{out}");
    // Who needs no secret works without it.
    fs::remove_file(&token).unwrap();
    let lookup = ["directory", "lookup", "--tenant", "mycompany", ANNA];
    assert_eq!(world.command(&lookup).0, Some(0));
    let message = format!("{}/tests/messages/plain.eml", env!("CARGO_MANIFEST_DIR"));
    let explain = ["explain", &message, "--sender", ANNA, "--recipient", MY];
    assert_eq!(world.command(&explain).0, Some(0));
    assert_eq!(world.postfix_command(&["print", "mx"]).0, Some(0));
    let (code, out, error) = world.postfix_command(&["check"]);
    assert!(code != Some(78) && !error.contains("token"), "{code:?} {out} {error}");
}

/// A unit of systemd, as far as `check` asks for it.
fn unit(world: &World, shown: &str, files: &str) -> PathBuf {
    let bin = world.root.join("bin");
    fs::create_dir_all(&bin).unwrap();
    let script = format!("#!/bin/sh\ncase $1 in\nshow) echo '{shown}';;\ncat) echo '{files}';;\nesac\n");
    fs::write(bin.join("systemctl"), script).unwrap();
    fs::set_permissions(bin.join("systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
    bin
}

/// Secrets that systemd hands over, groups that the unit adds: `check` of root knows both, whether the service runs or not.
#[test]
fn check_of_root_knows_what_systemd_hands_over() {
    let world = of_nobody(&[]);
    let vault = world.root.join("vault");
    fs::create_dir(&vault).unwrap();
    fs::set_permissions(&vault, fs::Permissions::from_mode(0o700)).unwrap();
    let secret = vault.join("secret");
    fs::write(&secret, "s3cret\n").unwrap();
    let config = fs::read_to_string(world.config_path()).unwrap();
    let check = |name: &str, bin: &Path| {
        let key = format!("[backend]\ntoken_file = \"/run/credentials/activity-milter.service/{name}\"\n");
        fs::write(world.config_path(), config.replace("[backend]\n", &key)).unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let mut command = Command::new(program());
        command.arg("-c").arg(world.config_path()).arg("check").env("PATH", path);
        let output = command.output().unwrap();
        let out = String::from_utf8(output.stdout).unwrap();
        assert!(!out.contains("s3cret") && !out.contains("/proc/self/fd"), "{out}");
        (output.status.code(), out)
    };
    let shown = "LoadState=loaded\nUser=nobody\nLoadCredential=[unprintable]";
    let files = format!(
        "[Service]\nLoadCredential=token:{}\nLoadCredential=gone:{}/gone\nLoadCredential=blank:/dev/null",
        secret.display(),
        vault.display()
    );
    let bin = unit(&world, shown, &files);
    let (code, out) = check("token", &bin);
    assert_eq!(code, Some(0), "root reads it, as systemd does: {out}");
    assert!(out.contains("ok     backend") && out.contains("writable for user nobody"), "{out}");
    // Of a newer systemd.
    let newer = format!("LoadState=loaded\nUser=65534\nLoadCredential=token:{}", secret.display());
    assert_eq!(check("token", &unit(&world, &newer, "")).0, Some(0));
    let bin = unit(&world, shown, &files);
    for (name, words) in [
        ("gone", format!("gone comes from {}/gone, which cannot be read: No such file", vault.display())),
        ("other", "the unit has no credential other: write LoadCredential=other:/path/of".to_owned()),
        ("blank", "blank comes from /dev/null, which cannot be read: it is no regular file".to_owned()),
    ] {
        let (code, out) = check(name, &bin);
        assert!(code == Some(1) && out.contains(&words), "{name}: {out}");
        assert!(
            out.contains("ok     directory") && out.contains("ok     files"),
            "the rest is looked at: {out}"
        );
    }
    fs::write(&secret, "two words\n").unwrap();
    let (code, out) = check("token", &bin);
    let source = format!("(from {}) holds no secret in its first line", secret.display());
    assert!(code == Some(1) && out.contains(&source), "{out}");
    // The unit's own `ExecReload=… check --offline` is shown no credentials, and must not make each reload fail.
    let (aside, here) = (world.root.join("program"), world.root.display());
    fs::copy(program(), &aside).unwrap();
    fs::set_permissions(world.config_path(), fs::Permissions::from_mode(0o644)).unwrap();
    let offline = || {
        let mut command = Command::new(&aside);
        command.arg("-c").arg(world.config_path()).args(["check", "--offline"]).uid(NOBODY).gid(NOBODY);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, out) = offline();
    assert_eq!(code, Some(0), "{here}: {out}");
    assert!(out.contains("warn   named file") && out.contains("start check as root"), "{out}");
    let other = fs::read_to_string(world.config_path()).unwrap();
    fs::write(world.config_path(), other.replace("/run/credentials/", "/run/others/")).unwrap();
    assert_eq!(offline().0, Some(1), "any other file is looked at");
    // No systemd, or no such unit: nothing is said about one.
    for none in ["", "LoadState=not-found"] {
        let (code, out) = check("token", &unit(&world, none, ""));
        assert!(code == Some(1) && out.contains("there is no unit activity-milter.service here"), "{out}");
    }
    // What the unit forbids, no user may.
    fs::write(&secret, "s3cret\n").unwrap();
    let fence = format!(
        "{shown}\nProtectSystem=strict\nReadWritePaths={}\nExecStart=x -c {} serve",
        world.root.join("sockets").display(),
        world.config_path().display()
    );
    let (code, out) = check("token", &unit(&world, &fence, &files));
    let words = format!("write ReadWritePaths={}", world.root.join("queue").display());
    assert!(code == Some(1) && out.contains("NOT OK files") && out.contains(&words), "{out}");
    let open = fence.replace("/sockets", "");
    assert_eq!(check("token", &unit(&world, &open, &files)).0, Some(0));
    // A group of the unit is one of the service's.
    let config = config.replace("[lmtp]\n", "[lmtp]\nsocket_group = \"adm\"\n");
    let check = |shown: &str| {
        fs::write(world.config_path(), &config).unwrap();
        let path = format!("{}:{}", unit(&world, shown, "").display(), std::env::var("PATH").unwrap());
        let output = Command::new(program())
            .arg("-c")
            .arg(world.config_path())
            .arg("check")
            .env("PATH", path)
            .output();
        output.unwrap().status.code()
    };
    assert_eq!(check("User=nobody"), Some(1));
    assert_eq!(check("User=nobody\nSupplementaryGroups=postfix adm"), Some(0));
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
