//! `packaging/containers`: what the manifests mount is a configuration that the service takes, Postfix's is the one of
//! `postfix/mx`, and the database's scripts make a primary whose commits wait for the standby.
//!
//! `packaging/check-manifests` holds the manifests themselves against their schemas.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "support/database.rs"]
mod database;
#[path = "support/letter.rs"]
mod letter;

use activity_milter::queue::{self, Settings, SystemClock, postgres::Server, postgres::Tls};
use database::Cluster;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

/// Where secrets are, and where the configuration is, in each container.
const SECRETS: &str = "/run/secrets/activity-milter";
const CONFIGURATION: &str = "/etc/activity-milter";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join("packaging/containers").join(name))
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// All documents of a file.
fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n").map(|one| serde_saphyr::from_str(one).unwrap()).collect()
}

fn words<'a>(value: &'a Value, place: &str, key: &str) -> Vec<&'a str> {
    let list = value.pointer(place).and_then(Value::as_array).unwrap_or_else(|| panic!("no {place}"));
    list.iter().map(|one| one[key].as_str().unwrap()).collect()
}

/// A container's files as they are mounted, and its secrets.
struct Mounted {
    files: Vec<(String, String)>,
    secrets: Vec<String>,
}

impl Mounted {
    /// By the compose file.
    fn by_compose() -> Self {
        let compose = documents(&read("compose.yaml")).remove(0);
        let of = &compose["x-activity-milter"];
        let sources = words(of, "/configs", "source").into_iter();
        let targets = words(of, "/configs", "target");
        let files = sources.zip(targets).map(|(source, target)| {
            let file = compose.pointer(&format!("/configs/{source}/file")).unwrap().as_str().unwrap();
            (target.to_owned(), read(file))
        });
        let secrets = words(of, "/secrets", "target").into_iter().map(str::to_owned);
        Self { files: files.collect(), secrets: secrets.collect() }
    }

    /// By a manifest: the map of the kustomization, as the volume lays it out.
    fn by_kubernetes(name: &str) -> Self {
        let kustomization = read("kustomization.yaml");
        let maps = documents(&kustomization).remove(0)["configMapGenerator"].clone();
        let pod = documents(&read(name)).remove(0)["spec"]["template"]["spec"].clone();
        let volume = |name: &str| {
            let volumes = pod["volumes"].as_array().unwrap();
            volumes.iter().find(|volume| volume["name"] == name).unwrap_or_else(|| panic!("no volume {name}"))
        };
        let containers = pod["initContainers"].as_array().or(pod["containers"].as_array()).unwrap();
        let container = containers.iter().find(|one| one["name"] == "activity-milter").unwrap();
        let mounts = container["volumeMounts"].as_array().unwrap();
        let mounted = |path: &str| {
            let mount = mounts.iter().find(|mount| mount["mountPath"] == path).unwrap();
            volume(mount["name"].as_str().unwrap())
        };
        let configuration = &mounted(CONFIGURATION)["configMap"];
        let map = maps.as_array().unwrap().iter().find(|map| map["name"] == configuration["name"]).unwrap();
        let keys = words(configuration, "/items", "key").into_iter();
        let files = keys.zip(words(configuration, "/items", "path")).map(|(key, path)| {
            assert!(
                map["files"].as_array().unwrap().iter().any(|file| file == key),
                "{key} is not in the map"
            );
            (format!("{CONFIGURATION}/{path}"), read(key))
        });
        let files = files.collect();
        assert!(mounted(SECRETS)["secret"]["secretName"] == "activity-milter");
        // As its comment says that the secret is made.
        let secrets = kustomization.split("--from-file=").skip(1).map(|rest| {
            let name: String = rest.chars().take_while(|c| !c.is_whitespace()).collect();
            format!("{SECRETS}/{name}")
        });
        Self { files, secrets: secrets.collect() }
    }

    /// What `check --offline` says of it in a directory of its own.
    fn check(&self) -> Result<String, String> {
        let directory = tempfile::tempdir().unwrap();
        let here = |path: &str| directory.path().join(path.trim_start_matches('/'));
        let lay = |path: &str, text: &str| {
            fs::create_dir_all(here(path).parent().unwrap()).unwrap();
            fs::write(here(path), text).unwrap();
        };
        let authority = {
            let key = rcgen::KeyPair::generate().unwrap();
            rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap().pem()
        };
        for secret in &self.secrets {
            lay(secret, if secret.ends_with(".pem") { &authority } else { "a-secret\n" });
        }
        for (path, text) in &self.files {
            lay(path, &text.replace(SECRETS, here(SECRETS).to_str().unwrap()));
        }
        // Its volume.
        let state = here("/var/lib/activity-milter");
        fs::create_dir_all(&state).unwrap();
        let own = format!("[queue]\npath = \"{0}/queue.db\"\nspool = \"{0}/spool\"\n", state.display());
        lay(&format!("{CONFIGURATION}/activity-milter.toml.d/zz.toml"), &own);
        let said = Command::new(env!("CARGO_BIN_EXE_activity-milter"))
            .args(["check", "--offline", "--config"])
            .arg(here(&format!("{CONFIGURATION}/activity-milter.toml")))
            .output()
            .unwrap();
        let text =
            format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        if said.status.success() { Ok(text) } else { Err(text) }
    }
}

#[test]
fn what_is_mounted_is_a_configuration_that_is_taken() {
    // What compose does without: TLS, on a network of its own.
    let all = [
        ("compose", Mounted::by_compose(), vec!["tls: \"off\""]),
        ("intake", Mounted::by_kubernetes("kubernetes/intake.yaml"), Vec::new()),
        ("courier", Mounted::by_kubernetes("kubernetes/courier.yaml"), Vec::new()),
    ];
    for (name, mounted, doubts) in all {
        assert_eq!(mounted.files.len(), 2, "{name}");
        let said = mounted.check().unwrap_or_else(|said| panic!("{name}: {said}"));
        let doubtful: Vec<&str> = said.lines().filter(|line| line.starts_with("warn")).collect();
        assert_eq!(doubtful.len(), doubts.len(), "{name}: {said}");
        assert!(doubts.iter().zip(&doubtful).all(|(doubt, line)| line.contains(doubt)), "{name}: {said}");
        // Each of its parts is needed, so what the check sees is what is mounted.
        for secret in 0..mounted.secrets.len() {
            let mut secrets = mounted.secrets.clone();
            let gone = secrets.remove(secret);
            let said = Mounted { files: mounted.files.clone(), secrets }.check().unwrap_err();
            assert!(said.contains(gone.trim_start_matches('/')), "{name} without {gone}: {said}");
        }
    }
}

/// Each line of `postfix/mx/main.cf` is there, with the sockets of a container, and Postfix knows all of them.
#[test]
fn postfix_is_that_of_an_mx() {
    let ours = read("postfix/main.cf");
    let mx = fs::read_to_string(root().join("postfix/mx/main.cf")).unwrap();
    let mx = mx.replace("unix:activity-milter/milter.sock", "inet:127.0.0.1:8893");
    let mx = mx.replace("unix:activity-milter/lmtp.sock", "inet:127.0.0.1:2424");
    let settings: Vec<&str> = mx.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert!(settings.len() > 8);
    for line in settings {
        assert!(ours.lines().any(|own| own == line), "packaging/containers/postfix/main.cf lacks {line}");
    }
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("main.cf"), &ours).unwrap();
    fs::write(directory.path().join("master.cf"), "smtp inet n - n - - smtpd\n").unwrap();
    let said = Command::new("/usr/sbin/postconf").arg("-c").arg(directory.path()).arg("-n").output().unwrap();
    assert!(said.status.success() && said.stderr.is_empty(), "{}", String::from_utf8_lossy(&said.stderr));
}

/// Both scripts, as the images run them, with real servers: what is put waits for the standby, and a password is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_and_a_standby() {
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let settings = [format!("port={port}"), "listen_addresses=127.0.0.1".to_owned()];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let primary = Cluster::start(&settings).leaked();
    let place = primary.directory.display();
    // Nobody is believed without a password, but for the script itself.
    primary.shell("echo 'local all all trust' >\"$2/data/pg_hba.conf\"");
    primary.shell("echo 'host all all 127.0.0.1/32 scram-sha-256' >>\"$2/data/pg_hba.conf\"");
    primary.shell("printf 'open sesame' >\"$2/own\"; printf 'copy sesame' >\"$2/copying\"");
    let script = |name: &str| read(name).replace('\'', "'\\''");
    let secrets =
        format!("export DATABASE_PASSWORD_FILE={place}/own REPLICATION_PASSWORD_FILE={place}/copying");
    let run = script("postgres/primary.sh");
    primary.shell(&format!(
        "{secrets} PATH=\"$1:$PATH\" POSTGRES_USER=postgres PGDATA=\"$2/data\" PGHOST=\"$2\" PGPORT={port}; sh -c '{run}'"
    ));
    primary.kill();
    primary.run(&settings);
    let standby = Cluster::place(std::path::Path::new("/tmp")).leaked();
    let run = script("postgres/standby.sh");
    standby.shell(&format!(
        "{secrets} PATH=\"$1:$PATH\" PGDATA=\"$2/data\" PASSFILE=\"$2/passfile\" PRIMARY_HOST=127.0.0.1 PRIMARY_PORT={port}; \
         mkdir \"$2/data\"; sh -c '{run}' sh true"
    ));
    let own = format!("port={}", port - 1);
    standby.run(&[&own]);
    let began = Instant::now();
    let is_synchronous = || {
        let sql = "SELECT string_agg(application_name || ' ' || sync_state, ',') FROM pg_stat_replication";
        primary.psql("postgres", sql).unwrap() == "standby sync"
    };
    while !is_synchronous() {
        assert!(began.elapsed() < Duration::from_secs(20), "the standby does not come");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let directory = letter::directory();
    let password = directory.path().join("password");
    let open = |word: &str| {
        fs::write(&password, word).unwrap();
        let mut server =
            Server::new(&format!("postgres://activity-milter@127.0.0.1:{port}/activity-milter")).unwrap();
        (server.tls, server.require_replication) = (Tls::Off, true);
        server.password_file = Some(password.clone());
        let (path, spool) = (directory.path().join("queue.db"), directory.path().join("spool"));
        let settings = Settings { server: Some(server), min_free: 0, ..Settings::new(path, spool) };
        match word {
            "open sesame" => queue::open(&settings, Arc::new(SystemClock)),
            _ => queue::beside(&settings, Arc::new(SystemClock)),
        }
    };
    let refused = open("another").err().unwrap().to_string();
    assert!(refused.contains("password authentication failed"), "{refused}");
    let queue = open("open sesame").unwrap();
    queue.put(letter::letter(directory.path(), 1, 10, &["a"]).await).await.unwrap();
    assert_eq!(standby.psql("activity-milter", "SELECT count(*) FROM activity_milter.item").unwrap(), "1");
    // Without the standby it would wait for ever: the name is set.
    assert_eq!(primary.psql("postgres", "SHOW synchronous_standby_names").unwrap(), "standby");
}
