//! A private Postfix instance: own queue, data, log and ports (see the POSTFIX page of the design).

use super::{free_port, mailbox, wait_for};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

/// How one instance differs from the next.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// `smtpd_milters`; empty for none.
    pub milters: String,
    /// Nexthop of the `lmtp:` transport of the integration domain; none: a port where nobody listens.
    pub lmtp: Option<String>,
    /// Leave out everything about the integration domain and milters: a deployment is put on top.
    pub bare: bool,
    /// smtpd and lmtp run in the queue directory as their root, as Debian ships them.
    pub chroot: bool,
    /// `main.cf` lines that come last.
    pub extra: Vec<String>,
}

/// A running instance; dropped, it is stopped.
pub struct Postfix {
    pub directory: PathBuf,
    pub port: u16,
    chroot: bool,
    keep: bool,
}

impl Postfix {
    /// Starts an instance below `directory`.
    ///
    /// Integration domain: `severamail.test`, relayed to an LMTP port where nobody listens, so that whatever the milter
    /// does not take stays in the queue. Everything else is delivered to `directory/mail`, a file each.
    pub fn start(directory: &Path, setup: &Setup) -> Self {
        let port = free_port();
        let lmtp = setup.lmtp.clone().unwrap_or_else(|| format!("inet:127.0.0.1:{}", free_port()));
        for part in ["conf", "queue", "data", "mail"] {
            fs::create_dir_all(directory.join(part)).unwrap();
        }
        // Postfix's own user must be able to walk here.
        for ancestor in directory.ancestors().take_while(|a| a.starts_with(std::env::temp_dir())) {
            let mut mode = fs::metadata(ancestor).unwrap().permissions();
            if ancestor != std::env::temp_dir() {
                mode.set_mode(mode.mode() | 0o755);
                fs::set_permissions(ancestor, mode).unwrap();
            }
        }
        fs::set_permissions(directory.join("mail"), fs::Permissions::from_mode(0o777)).unwrap();
        chown_postfix(&directory.join("data"));
        let path = directory.display();
        let mut main = format!(
            "compatibility_level = 3.6\n\
             queue_directory = {path}/queue\n\
             data_directory = {path}/data\n\
             maillog_file = {path}/mail.log\n\
             maillog_file_prefixes = {path}\n\
             inet_interfaces = 127.0.0.1\n\
             inet_protocols = ipv4\n\
             myhostname = mx.test\n\
             mydestination =\n\
             mynetworks = 127.0.0.0/8\n\
             alias_maps =\n\
             local_recipient_maps =\n\
             default_transport = keep:\n\
             milter_connect_timeout = 5s\n\
             smtputf8_enable = yes\n\
             keep_destination_recipient_limit = 1\n"
        );
        if !setup.bare {
            main += &format!(
                "relay_domains = severamail.test\n\
                 relay_transport = lmtp:{lmtp}\n\
                 smtpd_relay_restrictions = permit_mynetworks, reject\n\
                 smtpd_milters = {}\n\
                 message_drop_headers = content-length, return-path\n\
                 in_flow_delay = 0\n",
                setup.milters
            );
        }
        for line in &setup.extra {
            main.push_str(line);
            main.push('\n');
        }
        fs::write(directory.join("conf/main.cf"), said_once(&main)).unwrap();
        fs::write(directory.join("conf/master.cf"), master(directory, port, setup.chroot)).unwrap();
        let postfix = Self { directory: directory.to_owned(), port, chroot: setup.chroot, keep: false };
        postfix.cool();
        postfix.command(&["start"]);
        wait_for("Postfix to start", || postfix.log().contains("daemon started").then_some(()));
        postfix
    }

    /// Its configuration directory.
    pub fn conf(&self) -> PathBuf {
        self.directory.join("conf")
    }

    /// True if smtpd and lmtp run chrooted.
    pub fn is_chrooted(&self) -> bool {
        self.chroot
    }

    fn command(&self, args: &[&str]) {
        self.tool("postfix", args);
    }

    /// Runs one of Postfix's programs for this instance; its output.
    pub fn tool(&self, program: &str, args: &[&str]) -> String {
        let mut command = Command::new(program);
        command.env("MAIL_CONFIG", self.conf()).arg("-c").arg(self.conf()).args(args).stdin(Stdio::null());
        let output = command.output().expect("Postfix is installed: see the Makefile");
        assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Makes the settings look old. Each program of Postfix waits until a file that was just written has "cooled down".
    pub fn cool(&self) {
        for name in ["main.cf", "master.cf"] {
            let file = fs::File::options().write(true).open(self.conf().join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
        }
    }

    /// Puts lines of `main.cf` in the place of those there are; a reload makes them true.
    pub fn overwrite(&self, lines: &str) {
        let path = self.conf().join("main.cf");
        let text = fs::read_to_string(&path).unwrap() + lines;
        fs::write(path, said_once(&text)).unwrap();
    }

    /// Reads the configuration again; new sessions are under the new one.
    pub fn reload(&self) {
        let reloads = || self.log().matches("reload -- version").count();
        let before = reloads();
        self.cool();
        self.command(&["reload"]);
        wait_for("Postfix to reload", || (reloads() > before).then_some(()));
    }

    /// Sets a parameter of `main.cf`; a reload makes it true.
    pub fn set(&self, name: &str, value: &str) {
        self.tool("postconf", &["-e", &format!("{name} = {value}")]);
        self.cool();
    }

    /// Has each process of smtpd and lmtp serve once only: none of before a reload serves once more after it.
    pub fn serve_once(&self) {
        for service in [format!("127.0.0.1:{}/inet", self.port), "lmtp/unix".to_owned()] {
            self.tool("postconf", &["-P", &format!("{service}/max_use=1")]);
        }
        self.reload();
    }

    /// Tries everything in the queue again now.
    pub fn flush(&self) {
        self.tool("postqueue", &["-f"]);
    }

    /// The log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("mail.log")).unwrap_or_default()
    }

    /// Messages in Postfix's queue, as `postqueue -j` shows them.
    pub fn queued(&self) -> Vec<serde_json::Value> {
        self.tool("postqueue", &["-j"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Messages delivered to other people: envelope recipient, then the message.
    pub fn delivered(&self) -> Vec<(String, Vec<u8>)> {
        mailbox::delivered(&self.directory.join("mail"))
    }

    /// Leaves the instance running when this is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        let conf = self.directory.join("conf");
        // `stop` kills by the process id in the instance's own queue directory, and waits.
        let _ = Command::new("postfix").arg("-c").arg(conf).arg("stop").stderr(Stdio::null()).status();
    }
}

/// Services, chrooted or not; `keep` writes each delivered message to a file of its own, recipient first.
fn master(directory: &Path, port: u16, chroot: bool) -> String {
    let jail = if chroot { 'y' } else { 'n' };
    let script = directory.join("conf/keep.sh");
    mailbox::keep_script(&script, &directory.join("mail"));
    format!(
        "127.0.0.1:{port} inet n - {jail} - - smtpd\n\
         cleanup unix n - n - 0 cleanup\n\
         qmgr unix n - n 300 1 qmgr\n\
         tlsmgr unix - - n 1000? 1 tlsmgr\n\
         rewrite unix - - n - - trivial-rewrite\n\
         bounce unix - - n - 0 bounce\n\
         defer unix - - n - 0 bounce\n\
         trace unix - - n - 0 bounce\n\
         verify unix - - n - 1 verify\n\
         flush unix n - n 1000? 0 flush\n\
         proxymap unix - - n - - proxymap\n\
         smtp unix - - n - - smtp\n\
         relay unix - - n - - smtp\n\
         lmtp unix - - {jail} - - lmtp\n\
         showq unix n - n - - showq\n\
         error unix - - n - - error\n\
         retry unix - - n - - error\n\
         discard unix - - n - - discard\n\
         local unix - n n - - local\n\
         virtual unix - n n - - virtual\n\
         anvil unix - - n - 1 anvil\n\
         scache unix - - n - 1 scache\n\
         pickup unix n - n 60 1 pickup\n\
         postlog unix-dgram n - n - 1 postlogd\n\
         keep unix - n n - - pipe flags= user=nobody argv={} ${{recipient}}\n",
        script.display()
    )
}

/// Settings of which the last counts, each once. Each program of Postfix warns of one that stands there twice, by a datagram
/// to postlogd(8), which does so itself when it starts; where ten are waiting (`net.unix.max_dgram_qlen`) it waits for itself,
/// and `postfix reload` for it, for ever.
fn said_once(main: &str) -> String {
    let mut settings: Vec<(&str, String)> = Vec::new();
    for line in main.lines() {
        let goes_on = line.starts_with([' ', '\t', '#']);
        match settings.last_mut().filter(|_| goes_on) {
            Some((_, text)) => *text += &format!("{line}\n"),
            None => {
                let name = line.split('=').next().unwrap_or_default().trim();
                settings.retain(|(known, _)| *known != name);
                settings.push((name, format!("{line}\n")));
            }
        }
    }
    settings.into_iter().map(|(_, text)| text).collect()
}

fn chown_postfix(path: &Path) {
    let status = Command::new("chown").arg("postfix").arg(path).status().unwrap();
    assert!(status.success(), "the tests with a real Postfix need root and the user postfix");
}
