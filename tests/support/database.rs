//! A PostgreSQL server of our own, for tests: in a directory of its own, on a socket there, and gone with the process.
//!
//! One server for all tests of a process, and a database for each: they are as far apart as two customers. A shell holds it,
//! whose standard input is ours: however the process ends, the shell sees its end, stops the server by its process id and
//! removes the directory. The system's own server is never touched.

#![allow(dead_code, clippy::unwrap_used)] // each user needs another half; in tests a panic is the answer

use activity_milter::queue::postgres::Server;
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

/// Where Debian has the programs of a version.
fn programs() -> PathBuf {
    let mut all: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is not installed: packaging/install-deps does it")
        .map(|entry| entry.unwrap().path().join("bin"))
        .filter(|path| path.join("initdb").exists())
        .collect();
    all.sort();
    all.pop().expect("PostgreSQL has no initdb: packaging/install-deps installs it")
}

/// Who runs the server: it refuses to be root's.
fn user() -> Option<&'static str> {
    nix::unistd::geteuid().is_root().then_some("postgres")
}

/// A shell's words, as the server's user.
fn shell(script: &str, words: &[&Path]) -> Command {
    let mut command = match user() {
        Some(user) => {
            let mut command = Command::new("runuser");
            command.args(["-u", user, "--", "sh", "-c"]);
            command
        }
        None => {
            let mut command = Command::new("sh");
            command.arg("-c");
            command
        }
    };
    command.arg(script).arg("sh").args(words).current_dir("/");
    command
}

/// A server.
pub struct Cluster {
    /// Its directory; the socket lies there too.
    pub directory: PathBuf,
    programs: PathBuf,
    databases: AtomicU32,
    /// The number of its socket, and of its port if it has one.
    port: AtomicU32,
    /// The end of their standard input is the server's.
    holders: Mutex<Vec<Child>>,
}

impl Cluster {
    /// Starts one, with further settings of its own.
    pub fn start(settings: &[&str]) -> Self {
        Self::start_in(Path::new("/tmp"), settings)
    }

    /// The same in a directory below that one.
    pub fn start_in(parent: &Path, settings: &[&str]) -> Self {
        let cluster = Self::place(parent);
        cluster.shell(
            "\"$1/initdb\" -D \"$2/data\" -A trust -U postgres --no-sync --no-instructions -E UTF8 --locale=C",
        );
        cluster.run(settings);
        cluster
    }

    /// Starts a standby of one, under a name.
    pub fn standby_of(primary: &Self, name: &str) -> Self {
        Self::standby_with(primary, name, &[])
    }

    /// The same, with further settings of its own.
    pub fn standby_with(primary: &Self, name: &str, settings: &[&str]) -> Self {
        let cluster = Self::place(Path::new("/tmp"));
        let from = primary.directory.display();
        cluster.shell(&format!(
            "\"$1/pg_basebackup\" -h {from} -U postgres -D \"$2/data\" -R -X stream -c fast --no-sync"
        ));
        let name = format!("cluster_name={name}");
        cluster.run(&[&[&name, "hot_standby=on"], settings].concat());
        cluster
    }

    /// A directory below that one, and nothing in it yet.
    pub fn place(parent: &Path) -> Self {
        let directory = tempfile::Builder::new().prefix("am-pg-").tempdir_in(parent).unwrap().keep();
        if let Some(user) = user() {
            let made = Command::new("chown").arg(user).arg(&directory).status().unwrap();
            assert!(made.success());
        }
        Self {
            directory,
            programs: programs(),
            databases: AtomicU32::new(0),
            port: AtomicU32::new(5432),
            holders: Mutex::default(),
        }
    }

    /// A shell's words: `$1` has the programs, `$2` is the directory.
    #[track_caller]
    pub fn shell(&self, script: &str) {
        self.try_shell(script).unwrap_or_else(|error| panic!("{error}"));
    }

    /// The same where it may fail.
    pub fn try_shell(&self, script: &str) -> Result<(), String> {
        let done = shell(script, &[&self.programs, &self.directory]).output().unwrap();
        done.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&done.stderr).into_owned())
    }

    /// Runs it, for the first time or once more.
    pub fn run(&self, settings: &[&str]) {
        let mut words = vec![
            "listen_addresses=",
            "fsync=off",
            "full_page_writes=off",
            "shared_buffers=64MB",
            "max_connections=300",
            "log_min_messages=warning",
        ];
        words.extend(settings);
        if let Some(port) = settings.iter().find_map(|setting| setting.strip_prefix("port=")) {
            self.port.store(port.parse().unwrap(), Ordering::Relaxed);
        }
        let options = words.iter().map(|word| format!("-c '{word}'")).collect::<Vec<_>>().join(" ");
        // It may have ended before, and its number be another's.
        let script = format!(
            "\"$1/postgres\" -D \"$2/data\" -k \"$2\" {options} >>\"$2/log\" 2>&1 </dev/null &
             server=$!
             cat >/dev/null
             [ \"$(cat /proc/$server/comm 2>/dev/null)\" = postgres ] && kill -QUIT $server
             wait $server
             rm -rf \"$2\""
        );
        let mut holder = shell(&script, &[&self.programs, &self.directory]);
        holder.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        self.holders.lock().unwrap().push(holder.spawn().unwrap());
        let began = Instant::now();
        while self.psql("postgres", "SELECT 1").is_err() {
            let log = std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
            assert!(began.elapsed() < Duration::from_secs(60), "the server does not start: {log}");
            sleep(Duration::from_millis(20));
        }
    }

    /// `kill -9` of the process that started all others of it; they end by themselves.
    pub fn kill_hard(&self) {
        self.shell(
            "pid=$(head -1 \"$2/data/postmaster.pid\") && kill -STOP $pid && all=$(cat /proc/$pid/task/$pid/children)
             kill -KILL $pid
             for one in $pid $all; do
                 left=500
                 while kill -0 $one 2>/dev/null && [ $((left -= 1)) -gt 0 ]; do sleep 0.02; done
             done",
        );
    }

    /// Kills it, as a power cut does.
    pub fn kill(&self) {
        self.shell("pid=$(head -1 \"$2/data/postmaster.pid\") && kill -QUIT $pid && while kill -0 $pid 2>/dev/null; do sleep 0.05; done");
    }

    /// The one of this process.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&["wal_level=minimal", "max_wal_senders=0"]))
    }

    /// The same for ever.
    pub fn leaked(self) -> &'static Self {
        Box::leak(Box::new(self))
    }

    /// How its socket is written in a URL.
    pub fn host(&self) -> String {
        self.directory.to_str().unwrap().replace('/', "%2F")
    }

    /// What statements answer in a database, as the server's own user.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String, String> {
        let said = Command::new(self.programs.join("psql"))
            .args(["-qXAt", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database, "-c", sql, "-h"])
            .arg(&self.directory)
            .args(["-p", &self.port.load(Ordering::Relaxed).to_string()])
            .output()
            .unwrap();
        match said.status.success() {
            true => Ok(String::from_utf8(said.stdout).unwrap().trim_end().to_owned()),
            false => Err(String::from_utf8_lossy(&said.stderr).into_owned()),
        }
    }

    /// A new database, and a user to whom it belongs and who may nothing else.
    pub fn database(&'static self) -> Database {
        let number = self.databases.fetch_add(1, Ordering::Relaxed);
        let name = format!("q{number}");
        // Not both in one: a database is made outside of a transaction.
        self.psql("postgres", &format!("CREATE ROLE {name} LOGIN")).unwrap();
        self.psql("postgres", &format!("CREATE DATABASE {name} OWNER {name} TEMPLATE template0")).unwrap();
        Database { cluster: self, name }
    }
}

/// A database.
pub struct Database {
    cluster: &'static Cluster,
    pub name: String,
}

impl Database {
    /// How it is reached.
    pub fn url(&self) -> String {
        format!("postgres://{}@{}/{}", self.name, self.cluster.host(), self.name)
    }

    /// The same as settings, with few connections: many tests run at a time.
    pub fn server(&self) -> Server {
        let mut server = Server::new(&self.url()).unwrap();
        server.connections = 4;
        server
    }

    /// What statements answer.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        self.cluster.psql(&self.name, sql).unwrap()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let _ = self.cluster.psql("postgres", &format!("DROP DATABASE {} WITH (FORCE)", self.name));
    }
}
