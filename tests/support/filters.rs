//! Filters that stand before us in `smtpd_milters`: OpenDKIM, OpenDMARC and rspamd, of Debian's packages.
//!
//! They ask the resolver of the machine. So they live in a network of their own, where the only other one is the name
//! server of the tests ([`Names`]), and with a file system where `/etc/resolv.conf` names it. Postfix stays outside: it
//! meets them at unix sockets. `packaging/install-deps` unpacks the programs below `target/filters`.

use super::{names::Names, wait_for, world::Process};
use nix::sched::{CloneFlags, unshare};
use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    thread,
};

type Work = Box<dyn FnOnce() + Send>;

/// A network with a name server and nobody else; whoever is started in it sees no other.
pub struct Island {
    pub names: Names,
    directory: PathBuf,
    work: mpsc::Sender<Work>,
}

/// A filter that runs; dropped, it is killed.
pub struct Filter {
    process: Process,
    socket: PathBuf,
}

impl Island {
    /// Makes the network; `directory` is for settings, sockets and logs of the filters.
    pub fn new(directory: &Path, names: &Names) -> Self {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join("resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
        let (work, todo) = mpsc::channel::<Work>();
        let island = Self { names: names.clone(), directory: directory.to_owned(), work };
        // A network belongs to a thread, and to what the thread starts.
        thread::spawn(move || todo.into_iter().for_each(|work| work()));
        let resolver = directory.join("resolv.conf").display().to_string();
        let names = names.clone();
        island.inside(move || {
            let parts = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
            unshare(parts).expect("a network of its own needs root: see tests/support/filters.rs");
            run("mount", &["--make-rprivate", "/"]);
            run("mount", &["--bind", &resolver, "/etc/resolv.conf"]);
            run("ip", &["link", "set", "lo", "up"]);
            names.serve(([127, 0, 0, 1], 53).into());
        });
        island
    }

    /// Does something inside.
    fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, answer) = mpsc::channel();
        self.work.send(Box::new(move || drop(done.send(work())))).unwrap();
        answer.recv().expect("what was done inside did not fail")
    }

    fn start(&self, name: &str, mut command: Command) -> Filter {
        let (socket, log) = (self.socket(name), self.directory.join(format!("{name}.log")));
        let mut process = self.inside(move || Process::start(&mut command, &log));
        wait_for(name, || {
            process.assert_running();
            UnixStream::connect(&socket).ok()
        });
        Filter { process, socket: self.socket(name) }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.sock"))
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.join(name);
        fs::write(&path, text.replace("@DIR@", &self.directory.display().to_string())).unwrap();
        path
    }

    /// Verifies signatures, and says so as `mx.test`.
    pub fn opendkim(&self) -> Filter {
        // Its library has an opinion about the domain .test, which is for tests (RFC 6761).
        self.write("unbound.conf", "server:\n  local-zone: \"test.\" nodefault\n");
        // Whose mail it would sign and not verify: by default this machine's.
        self.write("opendkim.internal", "192.0.2.254\n");
        let settings = "Mode v\nAuthservID mx.test\nAlwaysAddARHeader yes\nInternalHosts @DIR@/opendkim.internal\n\
            Socket local:@DIR@/opendkim.sock\nUMask 0000\nPidFile @DIR@/opendkim.pid\n\
            Nameservers 127.0.0.1\nResolverConfiguration @DIR@/unbound.conf\nDNSTimeout 5\nSyslog no\n";
        let settings = self.write("opendkim.conf", settings);
        let mut command = filter("usr/sbin/opendkim");
        command.arg("-f").arg("-x").arg(settings);
        self.start("opendkim", command)
    }

    /// Verifies SPF and DMARC, by what OpenDKIM has found, and says so as `mx.test`.
    pub fn opendmarc(&self) -> Filter {
        // Whose mail it would not look at: by default this machine's.
        self.write("opendmarc.ignore", "192.0.2.254\n");
        let settings = "AuthservID mx.test\nTrustedAuthservIDs mx.test\nIgnoreHosts @DIR@/opendmarc.ignore\n\
            SPFSelfValidate true\nSPFIgnoreResults true\nRejectFailures false\n\
            Socket local:@DIR@/opendmarc.sock\nUMask 0000\nPidFile @DIR@/opendmarc.pid\nSyslog false\n";
        let settings = self.write("opendmarc.conf", settings);
        let mut command = filter("usr/sbin/opendmarc");
        command.arg("-f").arg("-c").arg(settings);
        self.start("opendmarc", command)
    }

    /// Verifies all three, and says so as `mx.test`.
    pub fn rspamd(&self) -> Filter {
        let unpacked = unpacked();
        fs::create_dir_all(self.directory.join("rspamd/local.d")).unwrap();
        // As an administrator writes them, beside the package's own settings.
        for (name, text) in [
            (
                "worker-proxy.inc",
                "bind_socket = \"@DIR@/rspamd.sock mode=0666\";\nmilter = yes;\ntimeout = 20s;\n\
                 upstream \"local\" {\n  default = yes;\n  self_scan = yes;\n}\n",
            ),
            ("milter_headers.conf", "use = [\"authentication-results\"];\n"),
            (
                "options.inc",
                // The public suffixes are compiled at each start, which takes half a minute: these will do here.
                "url_tld = \"@DIR@/rspamd/suffixes\";\ndns {\n  nameserver = [\"127.0.0.1\"];\n  timeout = 0.2s;\n  retransmits = 2;\n}\n",
            ),
        ] {
            self.write(&format!("rspamd/local.d/{name}"), text);
        }
        self.write("rspamd/suffixes", "test\n");
        let mut command = filter("usr/bin/rspamd");
        let (shared, state) = (unpacked.join("usr/share/rspamd"), self.directory.join("rspamd"));
        for (name, path) in [
            ("SHAREDIR", shared.clone()),
            ("PLUGINSDIR", shared.join("plugins")),
            ("RULESDIR", shared.join("rules")),
            ("LUALIBDIR", shared.join("lualib")),
            ("CONFDIR", unpacked.join("etc/rspamd")),
            ("LOCAL_CONFDIR", state.clone()),
            ("DBDIR", state.clone()),
            ("RUNDIR", state.clone()),
            ("LOGDIR", state),
        ] {
            command.arg(format!("--var={name}={}", path.display()));
        }
        command.args(["-f", "-i", "-c"]).arg(unpacked.join("etc/rspamd/rspamd.conf"));
        command.env("LD_LIBRARY_PATH", unpacked.join("usr/lib/rspamd"));
        self.start("rspamd", command)
    }
}

impl Filter {
    /// As Postfix names it: down, it lets the mail pass or not.
    pub fn milter(&self, when_down: &str) -> String {
        format!("{{ unix:{}, default_action={when_down} }}", self.socket.display())
    }

    /// What it has said.
    pub fn log(&self) -> String {
        self.process.log()
    }
}

fn unpacked() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/filters")
}

fn filter(program: &str) -> Command {
    let path = unpacked().join(program);
    let name = path.file_name().unwrap().display();
    assert!(
        path.exists(),
        "the Debian package {name} is unpacked by packaging/install-deps: see the Makefile"
    );
    Command::new(path)
}

#[track_caller]
fn run(program: &str, args: &[&str]) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let done = Command::new(program).args(args).env("PATH", path).status();
    let package = if program == "ip" { "iproute2" } else { "mount" };
    let done = done.unwrap_or_else(|error| panic!("{program}, of the Debian package {package}: {error}"));
    assert!(done.success(), "{program} {args:?}");
}
