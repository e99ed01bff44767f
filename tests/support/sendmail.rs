//! A private sendmail, so that nothing depends on Postfix's habits alone. Debian's package cannot be installed beside
//! Postfix; `packaging/install-deps` unpacks it below `target/sendmail`.

use super::{
    free_port,
    mailbox::{delivered, keep_script},
    smtp::Smtp,
    wait_for,
    world::Process,
};
use std::{
    fs,
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// A running instance; dropped, it is killed.
pub struct Sendmail {
    process: Process,
    directory: PathBuf,
    port: u16,
}

impl Sendmail {
    /// Starts an instance below `directory` that asks the milter at `listen` (as our configuration writes it).
    pub fn start(directory: &Path, listen: &str) -> Self {
        let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/sendmail/usr");
        let program = unpacked.join("libexec/sendmail/sendmail");
        assert!(program.exists(), "sendmail is unpacked by packaging/install-deps: see the Makefile");
        for part in ["mqueue", "mail"] {
            fs::create_dir_all(directory.join(part)).unwrap();
        }
        fs::set_permissions(directory.join("mail"), fs::Permissions::from_mode(0o777)).unwrap();
        keep_script(&directory.join("keep.sh"), &directory.join("mail"));
        let port = free_port();
        let text = include_str!("sendmail.mc")
            .replace("@ROOT@", &directory.display().to_string())
            .replace("@PORT@", &port.to_string())
            .replace("@MILTER@", &in_sendmails_words(listen));
        let write = |name: &str, text: &str| fs::write(directory.join(name), text).unwrap();
        write("sendmail.mc", &text);
        write("service.switch", "hosts files\naliases files\npasswd files\n");
        // It insists on a host name with a dot and looks it up: both come from here, no name server is asked.
        write("hosts", "127.0.0.1 mx.test localhost\n");
        write("resolv.conf", "nameserver 127.0.0.1\n");
        let macros = unpacked.join("share/sendmail/cf");
        let output = Command::new("m4")
            .arg(format!("-D_CF_DIR_={}/", macros.display()))
            .arg(macros.join("m4/cf.m4"))
            .arg(directory.join("sendmail.mc"))
            .output()
            .expect("m4 is installed: see packaging/install-deps");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::write(directory.join("sendmail.cf"), output.stdout).unwrap();
        let script = "hostname mx.test; mount --bind \"$1/hosts\" /etc/hosts; \
                      mount --bind \"$1/resolv.conf\" /etc/resolv.conf; mount --bind \"$3\" /mnt; \
                      exec \"$2\" -bD -C \"$1/sendmail.cf\"";
        let mut command = Command::new("unshare");
        command.args(["--uts", "--mount", "sh", "-ec", script, "sh"]).arg(directory).arg(&program);
        command.arg(socket_directory(listen).unwrap_or(directory));
        let mut process = Process::start(&mut command, &directory.join("sendmail.log"));
        wait_for("sendmail to listen", || {
            process.assert_running();
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Self { process, directory: directory.to_owned(), port }
    }

    /// A connection after EHLO.
    pub fn smtp(&self) -> Smtp {
        Smtp::connect(self.port)
    }

    /// What it wrote to standard error.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Messages delivered: envelope recipient, then the message.
    pub fn delivered(&self) -> Vec<(String, Vec<u8>)> {
        delivered(&self.directory.join("mail"))
    }
}

fn socket_directory(listen: &str) -> Option<&Path> {
    listen.strip_prefix("unix:").and_then(|path| Path::new(path).parent())
}

/// `unix:/path` and `inet:host:port` as sendmail names milters. It takes no socket below a directory that everybody may
/// write, like that of temporary files, so the socket's directory is mounted elsewhere for it alone.
fn in_sendmails_words(listen: &str) -> String {
    match listen.strip_prefix("inet:").and_then(|address| address.rsplit_once(':')) {
        Some((host, port)) => format!("inet:{port}@{host}"),
        None => format!("unix:/mnt/{}", listen.rsplit('/').next().unwrap()),
    }
}
