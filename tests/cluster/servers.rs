//! Three PostgreSQL servers: one takes writes, two follow it, and a commit waits for one of those.
//!
//! In: machines. Out: the same servers after any of them died, with whoever has most leading ([`Servers::fail_over`]).
//! Promise: what stands in place of Patroni and the like does what they do: the old primary is fenced first, of the
//! standbys the most advanced is promoted, and only if all are seen (with `ANY 1` of two, a commit may be on either one),
//! the other follows the new one, and the old one comes back as a standby, by `pg_rewind` or from a copy.
//! Each server's directory is a small file system of its own.

use super::lab::{Lab, Node, run};
use crate::{database::Cluster, support::wait_for};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    thread::sleep,
    time::Duration,
};

/// Their names, which are their `application_name` as standbys.
const NAMES: [&str; 3] = ["db1", "db2", "db3"];

/// Whose word a commit waits for. One's own name in it is nobody's.
pub const STANDBYS: &str = "ANY 1 (db1, db2, db3)";

/// Connections of each server.
pub const CONNECTIONS: usize = 60;

/// Bytes of each server's disk.
const DISK: &str = "size=700m";

const SETTINGS: &[&str] = &[
    "fsync=on",
    "full_page_writes=on",
    "wal_log_hints=on",
    "max_connections=60",
    "hot_standby=on",
    "wal_keep_size=96MB",
    "max_wal_size=160MB",
    "wal_sender_timeout=4s",
    "wal_receiver_timeout=4s",
    "wal_retrieve_retry_interval=200ms",
];

/// A server and its machine.
pub struct Member {
    pub node: Node,
    pub cluster: Arc<Cluster>,
    disk: PathBuf,
}

impl Member {
    /// Starts it, for the first time or once more.
    pub fn start(&self) {
        let cluster = Arc::clone(&self.cluster);
        let own =
            [format!("listen_addresses={}", self.node.address), format!("cluster_name={}", self.node.name)];
        self.node.inside(move || {
            let mut settings = SETTINGS.to_vec();
            settings.extend(own.iter().map(String::as_str));
            cluster.run(&settings);
        });
    }

    /// What its owner is told.
    pub fn ask(&self, sql: &str) -> Result<String, String> {
        self.cluster.psql("postgres", sql)
    }

    #[track_caller]
    pub fn tell(&self, sql: &str) -> String {
        self.ask(sql).unwrap_or_else(|error| panic!("{}: {sql}: {error}", self.node.name))
    }

    /// The same in the queue's database.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        let said = self.cluster.psql("am", sql);
        said.unwrap_or_else(|error| panic!("{}: {sql}: {error}", self.node.name))
    }

    /// A setting that stays.
    pub fn set(&self, name: &str, value: &str) {
        self.tell(&format!("ALTER SYSTEM SET {name} = '{value}'"));
        self.tell("SELECT pg_reload_conf()");
    }

    /// Whose changes it follows.
    fn follow(&self, primary: &Self) {
        self.set("primary_conninfo", &conninfo(&primary.node, self.node.name));
    }

    /// Nothing more fits on its disk.
    pub fn fill(&self) {
        let filler = self.disk.join("filler");
        let _ = std::io::copy(&mut std::io::repeat(0), &mut fs::File::create(filler).unwrap());
    }

    /// Something fits again.
    pub fn clear(&self) {
        fs::remove_file(self.disk.join("filler")).unwrap();
    }

    /// How far it has written the log.
    fn place(&self) -> u64 {
        self.tell(
            "SELECT coalesce(greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0', 0)::int8",
        )
        .parse()
        .unwrap()
    }
}

fn conninfo(primary: &Node, name: &str) -> String {
    format!("host={} user=postgres application_name={name} connect_timeout=2", primary.address)
}

/// All of them.
pub struct Servers {
    pub members: Vec<Member>,
    pub primary: usize,
}

impl Servers {
    /// Starts them on disks below `root`.
    pub fn start(lab: &Lab, root: &Path) -> Self {
        let mut members = Vec::new();
        for (number, name) in (11..).zip(NAMES) {
            let (node, disk) = (lab.node(name, number), root.join(name));
            fs::create_dir_all(&disk).unwrap();
            run("mount", &["-t", "tmpfs", "-o", DISK, "tmpfs", disk.to_str().unwrap()]);
            run("chmod", &["755", disk.to_str().unwrap()]);
            let cluster = Arc::new(match members.is_empty() {
                true => Cluster::start_in(&disk, &[]),
                false => Cluster::place(&disk),
            });
            members.push(Member { node, cluster, disk });
        }
        let servers = Self { members, primary: 0 };
        let first = servers.primary();
        first.cluster.shell(
            "for what in all replication; do echo \"host $what all 10.77.0.0/24 trust\"; done >> \"$2/data/pg_hba.conf\"",
        );
        first.cluster.kill();
        first.start();
        first.tell("CREATE ROLE others LOGIN");
        first.tell("CREATE ROLE am LOGIN");
        first.tell("CREATE DATABASE am OWNER am");
        first.tell("GRANT pg_read_all_stats TO am");
        for standby in &servers.members[1..] {
            servers.copy_to(standby);
            standby.start();
        }
        for member in &servers.members {
            member.set("synchronous_standby_names", STANDBYS);
        }
        servers.wait_for_standbys(2);
        servers
    }

    pub fn primary(&self) -> &Member {
        &self.members[self.primary]
    }

    pub fn standbys(&self) -> Vec<&Member> {
        self.members
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != self.primary)
            .map(|(_, member)| member)
            .collect()
    }

    pub fn nodes(&self) -> Vec<&Node> {
        self.members.iter().map(|member| &member.node).collect()
    }

    /// What the queue's database says at the primary.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        self.primary().sql(sql)
    }

    /// One that has nothing becomes a standby.
    fn copy_to(&self, member: &Member) {
        let (cluster, from) = (Arc::clone(&member.cluster), self.primary().node.address);
        let follows = conninfo(&self.primary().node, member.node.name);
        member.node.inside(move || {
            cluster.shell(&format!(
                "rm -rf \"$2/data\" && \"$1/pg_basebackup\" -h {from} -U postgres -D \"$2/data\" -X stream -c fast --no-sync
                 touch \"$2/data/standby.signal\" && echo \"primary_conninfo = '{follows}'\" >> \"$2/data/postgresql.auto.conf\""
            ));
        });
    }

    /// Waits until so many confirm what the primary writes.
    #[track_caller]
    pub fn wait_for_standbys(&self, count: usize) {
        let sql =
            "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'quorum'";
        let enough = || self.primary().ask(sql).is_ok_and(|found| found.parse::<usize>().unwrap() >= count);
        wait_for("standbys that confirm", || enough().then_some(()));
    }

    /// The primary is dead, and stays so until [`Servers::rejoin`]: another takes its place. Its number.
    pub fn fail_over(&mut self) -> usize {
        let old = self.primary;
        let pid = self.members[old].cluster.directory.join("data/postmaster.pid");
        let first_line = |text: String| text.lines().next().unwrap().to_owned();
        let pid = fs::read_to_string(pid).map(first_line).unwrap_or_default();
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        assert!(comm.trim() != "postgres", "the old primary is not fenced");
        // All of them, or what was confirmed may be on the one that is not seen.
        let standbys = self.standbys();
        assert_eq!(standbys.len(), 2);
        for standby in &standbys {
            let quiet =
                || standby.ask("SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'");
            wait_for("the end of what is received", || (quiet().as_deref() == Ok("0")).then_some(()));
            // What lies there and was not read yet counts too.
            let mut place = standby.place();
            loop {
                sleep(Duration::from_millis(150));
                let now = standby.place();
                if now == place {
                    break;
                }
                place = now;
            }
        }
        let most = (0..self.members.len()).filter(|at| *at != old).max_by_key(|at| self.members[*at].place());
        let new = most.unwrap();
        assert_eq!(self.members[new].tell("SELECT pg_promote(true, 60)"), "t");
        self.primary = new;
        for (_, other) in self.members.iter().enumerate().filter(|(at, _)| *at != new && *at != old) {
            other.follow(self.primary());
        }
        self.wait_for_standbys(1);
        old
    }

    /// One that was the primary comes back as a standby; whether what it had was of use.
    pub fn rejoin(&self, old: usize) -> bool {
        let member = &self.members[old];
        let (cluster, from) = (Arc::clone(&member.cluster), self.primary().node.address);
        let follows = conninfo(&self.primary().node, member.node.name);
        let rewound = member.node.inside(move || {
            cluster.try_shell(&format!(
                "\"$1/pg_rewind\" --no-sync -D \"$2/data\" --source-server='host={from} user=postgres dbname=postgres' &&
                 touch \"$2/data/standby.signal\" && echo \"primary_conninfo = '{follows}'\" >> \"$2/data/postgresql.auto.conf\""
            ))
        });
        if rewound.is_err() {
            self.copy_to(member);
        }
        member.start();
        self.wait_for_standbys(2);
        rewound.is_ok()
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for member in &self.members {
            let _ = std::process::Command::new("umount").arg("-l").arg(&member.disk).status();
        }
    }
}
