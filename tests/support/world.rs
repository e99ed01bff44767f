//! A whole installation in a directory: sink, service, Postfix.

use super::{
    free_port,
    http::{activities, http_get},
    postfix::{Postfix, Setup},
    smtp::Smtp,
    wait_for,
};
use serde_json::Value;
use std::{
    fs,
    net::TcpStream,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A child process; dropped, it is killed by its own id.
pub struct Process {
    child: Child,
    log: PathBuf,
    /// Where its part of the log starts: a service that was started anew appends.
    from: usize,
}

impl Process {
    /// Starts a program that writes what it says to the file `log`.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let from = fs::metadata(log).map_or(0, |meta| usize::try_from(meta.len()).unwrap());
        let file = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        // A group of its own, so that what it starts (strace starts the service) can be ended with it.
        // Not to our own output: a process that is kept running would keep the reader of a pipe waiting.
        let output = file.try_clone().unwrap();
        command.stdin(Stdio::null()).stdout(output).stderr(file).process_group(0);
        let child = command.spawn().unwrap();
        Self { child, log: log.to_owned(), from }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()[self.from..]).into_owned()
    }

    /// Its log, as soon as one line of it has all these words: it writes a few milliseconds after it has answered.
    #[track_caller]
    pub fn line_with(&self, words: &[&str]) -> String {
        let has_all = |line: &&str| words.iter().all(|words| line.contains(words));
        wait_for(words[0], || self.log().lines().find(has_all).map(str::to_owned))
    }

    /// Sends a signal by name, like `TERM`.
    pub fn signal(&self, name: &str) {
        let status =
            Command::new("kill").arg(format!("-{name}")).arg(self.id().to_string()).status().unwrap();
        assert!(status.success());
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Panics with its log if it has ended.
    #[track_caller]
    pub fn assert_running(&mut self) {
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "it ended: {}", self.log());
    }

    /// Waits until these words are in its log; it must not end before.
    #[track_caller]
    pub fn wait_to_say(&mut self, words: &str) {
        wait_for(words, || {
            self.assert_running();
            self.log().contains(words).then_some(())
        });
    }

    /// Waits until it has ended; the exit code.
    pub fn wait(&mut self) -> Option<i32> {
        wait_for("a process to end", || self.child.try_wait().unwrap()).code()
    }

    /// `kill -9`, the whole group, and waits.
    pub fn kill(&mut self) {
        let group = format!("-{}", self.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a test wants otherwise than the default.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Extra arguments of the sink.
    pub sink: Vec<String>,
    /// Configuration lines, by table: `("message", "max_size = \"1 MiB\"")`; those above all tables by `""`.
    pub config: Vec<(&'static str, String)>,
    /// The milter listens on a TCP port instead of a unix socket.
    pub tcp: bool,
    /// The service takes LMTP too, and Postfix delivers the integration domain to it.
    pub lmtp: bool,
    /// The directory is the backend's look-ups, which the sink answers from the directory file.
    pub http_directory: bool,
    /// Backend and directory are Severa's; there is no sink.
    pub severa: Option<AtSevera>,
    /// A command that starts the service, like `strace …`.
    pub wrapper: Vec<String>,
    /// Postfix settings.
    pub postfix: Vec<String>,
    /// A Postfix that does not know us yet.
    pub bare: bool,
    /// smtpd and lmtp run chrooted.
    pub chroot: bool,
    /// Start neither of these.
    pub without_milter: bool,
    pub without_sink: bool,
}

/// An installation that uses Severa.
#[derive(Clone, Debug)]
pub struct AtSevera {
    /// Base URL of the API.
    pub url: String,
    /// The tables `[[severa]]`.
    pub companies: String,
}

/// The installation. Fields are dropped in order: Postfix first.
pub struct World {
    pub postfix: Postfix,
    pub milter: Option<Process>,
    pub sink: Option<Process>,
    pub sink_port: u16,
    pub admin_port: u16,
    pub root: PathBuf,
    options: Options,
    directory: Option<tempfile::TempDir>,
}

/// For so long nothing comes, where nobody can say that nothing will.
const QUIET: std::time::Duration = std::time::Duration::from_millis(500);

/// The program under test.
pub fn program() -> PathBuf {
    match option_env!("CARGO_BIN_EXE_activity-milter") {
        Some(path) => path.into(),
        // An example has no such variable; the program lies beside its directory.
        None => std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("activity-milter"),
    }
}

/// libfaketime: a clock for a program of its own.
pub fn faketime() -> PathBuf {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/faketime/usr/lib");
    // A directory for each kind of machine.
    let of_machines = std::fs::read_dir(unpacked).expect("libfaketime is unpacked by packaging/install-deps");
    let library = of_machines.map(|entry| entry.unwrap().path().join("faketime/libfaketimeMT.so.1"));
    library.into_iter().find(|path| path.exists()).expect("libfaketime is there")
}

impl World {
    /// Starts everything with the defaults.
    pub fn start() -> Self {
        Self::with(Options::default())
    }

    /// Starts everything in a temporary directory.
    pub fn with(options: Options) -> Self {
        let directory = tempfile::Builder::new().prefix("activity-milter-").tempdir().unwrap();
        let root = directory.path().to_owned();
        let mut world = Self::at(&root, options);
        world.directory = Some(directory);
        world
    }

    /// Starts everything in `root`.
    pub fn at(root: &Path, options: Options) -> Self {
        let sink_port = free_port();
        let listen = if options.tcp {
            format!("inet:127.0.0.1:{}", free_port())
        } else {
            format!("unix:{}/postfix/queue/activity-milter/milter.sock", root.display())
        };
        let milters = listen.clone();
        let lmtp = options.lmtp.then(|| match options.tcp {
            true => format!("inet:127.0.0.1:{}", free_port()),
            false => format!("unix:{}/postfix/queue/activity-milter/lmtp.sock", root.display()),
        });
        let socket_directory = root.join("postfix/queue/activity-milter");
        fs::create_dir_all(&socket_directory).unwrap();
        // smtpd walks through here as user postfix.
        fs::set_permissions(&socket_directory, fs::Permissions::from_mode(0o755)).unwrap();
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/directory.toml");
        let mut directory = fs::read_to_string(shipped).unwrap();
        if options.bare {
            // `postfix check` has a word to say about a tenant in shadow mode.
            directory = directory.replace("mode = \"shadow\"\n", "");
        }
        fs::write(root.join("directory.toml"), directory).unwrap();
        let mut world = Self {
            postfix: Postfix::start(
                &root.join("postfix"),
                &Setup {
                    milters,
                    lmtp: lmtp.clone(),
                    bare: options.bare,
                    chroot: options.chroot,
                    extra: options.postfix.clone(),
                },
            ),
            milter: None,
            sink: None,
            sink_port,
            admin_port: free_port(),
            root: root.to_owned(),
            options,
            directory: None,
        };
        fs::write(world.config_path(), world.config(&listen, lmtp.as_deref())).unwrap();
        if !world.options.without_sink && world.options.severa.is_none() {
            world.start_sink();
        }
        if !world.options.without_milter {
            world.start_milter();
        }
        world
    }

    pub fn config_path(&self) -> PathBuf {
        self.root.join("activity-milter.toml")
    }

    fn config(&self, listen: &str, lmtp: Option<&str>) -> String {
        let root = self.root.display();
        let socket = |listen: &str| {
            format!("listen = \"{listen}\"\nsocket_mode = \"0660\"\nsocket_group = \"postfix\"\n")
        };
        let mut tables = vec![
            ("", "integration_domains = [\"severamail.test\"]\n".to_owned()),
            ("milter", socket(listen)),
            ("message", String::new()),
            ("directory", self.directory_table()),
            ("backend", self.backend_table()),
            ("queue", format!("path = \"{root}/queue/queue.db\"\nspool = \"{root}/queue/spool\"\n")),
            ("replies", String::new()),
            ("log", String::new()),
            ("admin", format!("listen = \"127.0.0.1:{}\"\n", self.admin_port)),
        ];
        tables.extend(lmtp.map(|lmtp| ("lmtp", socket(lmtp))));
        let further: std::collections::BTreeSet<_> =
            self.options.config.iter().map(|(table, _)| *table).collect();
        let further: Vec<_> =
            further.into_iter().filter(|name| !tables.iter().any(|(table, _)| table == name)).collect();
        tables.extend(further.into_iter().map(|name| (name, String::new())));
        for (name, line) in &self.options.config {
            let table =
                tables.iter_mut().find(|(table, _)| table == name).expect("a table of the configuration");
            let key = line.split('=').next().unwrap().trim();
            table.1 = table
                .1
                .lines()
                .filter(|l| l.split('=').next().unwrap().trim() != key)
                .fold(String::new(), |t, l| t + l + "\n");
            table.1.push_str(line);
            table.1.push('\n');
        }
        let (_, top) = tables.remove(0);
        let text = tables.iter().fold(top, |text, (name, lines)| text + &format!("\n[{name}]\n{lines}"));
        text + self.options.severa.as_ref().map_or("", |severa| &severa.companies)
    }

    fn directory_table(&self) -> String {
        let root = self.root.display();
        match (&self.options.severa, self.options.http_directory) {
            (Some(_), _) => format!("type = \"severa\"\npath = \"{root}/severa.db\"\n"),
            (None, true) => "type = \"http\"\n".to_owned(),
            (None, false) => format!("path = \"{root}/directory.toml\"\n"),
        }
    }

    fn backend_table(&self) -> String {
        let to = match &self.options.severa {
            Some(severa) => format!("type = \"severa\"\nurl = \"{}\"\n", severa.url),
            None => format!("url = \"http://127.0.0.1:{}/\"\n", self.sink_port),
        };
        format!("{to}retry_first = \"50ms\"\nretry_max = \"500ms\"\n")
    }

    pub fn start_sink(&mut self) {
        self.start_sink_with(&self.options.sink.clone());
    }

    /// Starts the sink on its port, with other arguments than before.
    pub fn start_sink_with(&mut self, args: &[String]) {
        let mut command = Command::new(program());
        command.arg("sink").arg("--listen").arg(format!("127.0.0.1:{}", self.sink_port));
        command.arg("--data").arg(self.root.join("sink")).args(args);
        if self.options.http_directory {
            command.arg("--directory").arg(self.root.join("directory.toml"));
        }
        let mut sink = Process::start(&mut command, &self.root.join("sink.log"));
        // Not by connecting: whoever listens there would do.
        sink.wait_to_say("listening on");
        self.sink = Some(sink);
    }

    pub fn start_milter(&mut self) {
        let mut words = self.options.wrapper.clone();
        words.push(program().display().to_string());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg("--config").arg(self.config_path()).arg("serve");
        let mut milter = Process::start(&mut command, &self.root.join("milter.log"));
        milter.wait_to_say("started");
        self.milter = Some(milter);
    }

    /// Starts the service where its log does not say so: waits for the sockets and the metrics.
    pub fn start_quiet_milter(&mut self) {
        let mut command = Command::new(program());
        command.arg("--config").arg(self.config_path()).arg("serve");
        let mut milter = Process::start(&mut command, &self.root.join("milter.log"));
        let port = self.admin_port;
        wait_for("the milter to start", || {
            milter.assert_running();
            TcpStream::connect(("127.0.0.1", port)).ok().filter(|_| http_get(port, "/livez").0 == 200)
        });
        self.milter = Some(milter);
    }

    /// Where the service takes LMTP.
    pub fn lmtp_listen(&self) -> String {
        self.listen("lmtp")
    }

    /// Where the service speaks milter.
    pub fn milter_listen(&self) -> String {
        self.listen("milter")
    }

    fn listen(&self, table: &str) -> String {
        let text = fs::read_to_string(self.config_path()).unwrap();
        let table = text.split(&format!("[{table}]\n")).nth(1).expect("a table of the configuration");
        table.split('"').nth(1).unwrap().to_owned()
    }

    /// A connection to it.
    pub fn lmtp(&self) -> Smtp {
        Smtp::lmtp(&self.lmtp_listen())
    }

    /// `activity-milter postfix …` for this Postfix: exit code, standard output, standard error.
    pub fn postfix_command(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(program());
        command.arg("--config").arg(self.config_path()).arg("postfix").args(args);
        let output = command.arg("--postfix-config").arg(self.postfix.conf()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// Another command of ours with this configuration: exit code, standard output, standard error.
    pub fn command(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let output =
            Command::new(program()).arg("--config").arg(self.config_path()).args(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// How many look-ups the sink has answered.
    pub fn look_ups(&self) -> u64 {
        String::from_utf8(http_get(self.sink_port, "/look-ups").1).unwrap().parse().unwrap()
    }

    /// What `postfix check` finds: exit code and findings.
    pub fn findings(&self) -> (Option<i32>, Vec<Value>) {
        let (code, out, error) = self.postfix_command(&["check", "--json"]);
        let report: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{error}"));
        (code, report["findings"].as_array().unwrap().clone())
    }

    /// Messages that lie in files.
    pub fn spooled(&self) -> usize {
        let folders = fs::read_dir(self.root.join("queue/spool")).unwrap().flatten();
        let files = folders.filter_map(|folder| fs::read_dir(folder.path()).ok()).flatten().flatten();
        files.filter(|file| file.path().extension().is_some_and(|extension| extension == "eml")).count()
    }

    /// Ends the service and waits until it is gone.
    pub fn stop_milter(&mut self) {
        self.milter().signal("TERM");
        assert_eq!(self.milter().wait(), Some(0));
        self.milter = None;
    }

    /// The running milter.
    pub fn milter(&mut self) -> &mut Process {
        self.milter.as_mut().expect("the milter runs")
    }

    pub fn smtp(&self) -> Smtp {
        Smtp::connect(self.postfix.port)
    }

    /// Sends one mail over a connection of its own.
    pub fn mail(&self, sender: &str, recipients: &[&str], message: &[u8]) -> (Vec<String>, String) {
        self.smtp().mail(sender, recipients, message)
    }

    /// What the sink has, oldest first.
    pub fn activities(&self) -> Vec<Value> {
        activities(&format!("http://127.0.0.1:{}/v1/activities", self.sink_port))
    }

    /// Waits until the sink has that many (none, with 0), and shows that no more come, and that each was sent once: at the socket, not
    /// after the sink's own deduplication.
    #[track_caller]
    pub fn wait_for_activities(&self, count: usize) -> Vec<Value> {
        let found = self.wait_for_activities_again(count);
        let attempts = http_get(self.sink_port, "/attempts").1;
        let attempts = String::from_utf8(attempts).unwrap();
        let mut taken: Vec<_> =
            attempts.lines().filter_map(|line| line.split_once(" 2")).map(|(key, _)| key).collect();
        let all = taken.len();
        taken.sort_unstable();
        taken.dedup();
        assert_eq!(taken.len(), all, "sent again after it was taken:\n{attempts}");
        found
    }

    /// The same where answers are lost or the service is killed: what was taken may be sent again.
    #[track_caller]
    pub fn wait_for_activities_again(&self, count: usize) -> Vec<Value> {
        wait_for("activities in the sink", || Some(self.activities()).filter(|all| all.len() >= count));
        // The queue says that nothing waits any more, if somebody is there to say it.
        if self.milter.is_some() && TcpStream::connect(("127.0.0.1", self.admin_port)).is_ok() {
            wait_for("an empty queue", || {
                let metrics = String::from_utf8(http_get(self.admin_port, "/metrics").1).ok()?;
                metrics.contains("activity_milter_queue_items{state=\"waiting\"} 0\n").then_some(())
            });
        }
        // What Postfix is about to deliver to us, it has delivered; then nothing more comes for a while.
        let is_active =
            |message: &Value| message["queue_name"] == "active" || message["queue_name"] == "incoming";
        wait_for("an idle Postfix", || (!self.postfix.queued().iter().any(is_active)).then_some(()));
        std::thread::sleep(QUIET);
        let found = self.activities();
        assert_eq!(found.len(), count, "{found:#?}");
        found
    }

    /// Leaves everything running and in place when this is dropped.
    pub fn keep(mut self) {
        self.postfix.keep();
        std::mem::forget(self.milter.take());
        std::mem::forget(self.sink.take());
        if let Some(directory) = self.directory.take() {
            let _ = directory.keep();
        }
    }
}

/// A message of the test corpus.
pub fn eml(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/messages").join(format!("{name}.eml"));
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
