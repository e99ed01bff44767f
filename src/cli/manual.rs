//! The manual pages, made from what the program itself says: the command line's help, the configuration's doc comments,
//! the comments of the Postfix pieces. The pages in `packaging/man` are checked to be current (`tests/manual.rs`).

use super::{Cli, EXIT_STATUS};
use crate::rules::Reason;
use clap::CommandFactory;
use std::{fmt::Write as _, fs, io, path::Path, process::ExitCode};

/// The source of the configuration's keys: a doc comment each.
const CONFIG: &str = concat!(
    include_str!("../config/mod.rs"),
    include_str!("../config/emergency.rs"),
    include_str!("../config/limits.rs"),
    include_str!("../config/outside.rs"),
    include_str!("../config/queue_text.rs"),
    include_str!("../config/sender.rs"),
    include_str!("../config/severa.rs"),
    include_str!("../directory/policy.rs")
);

/// Tables of the configuration, with the types that read them.
const TABLES: &[(&str, &str)] = &[
    ("", "ConfigText"),
    ("milter", "SocketText"),
    ("lmtp", "SocketText"),
    ("message", "MessageText"),
    ("directory", "DirectoryText"),
    ("backend", "BackendText"),
    ("backend.oauth", "OAuthText"),
    ("[severa]", "SeveraText"),
    ("policy", "PolicyText"),
    ("policy.automatic", "AutomaticText"),
    ("sender", "SenderText"),
    ("limits", "LimitsText"),
    ("emergency", "EmergencyText"),
    ("emergency.block", "BlockText"),
    ("queue", "QueueText"),
    ("trace", "TraceText"),
    ("notify", "NotifyText"),
    ("admin", "AdminText"),
    ("log", "LogText"),
];

/// The Postfix pieces.
const PIECES: &[(&str, &str)] = &[
    ("mx", include_str!("../../postfix/mx/main.cf")),
    ("shared-mx", include_str!("../../postfix/shared-mx/main.cf")),
    ("submission", include_str!("../../postfix/submission/main.cf")),
    ("submission (master.cf)", include_str!("../../postfix/submission/master.cf")),
    ("auto-bcc", include_str!("../../postfix/auto-bcc/main.cf")),
    ("lmtp-only", include_str!("../../postfix/lmtp-only/main.cf")),
];

/// What the version changes; its newest heading with a date dates the pages.
const CHANGELOG: &str = include_str!("../../CHANGELOG.md");

/// The directory file, as it is installed.
const DIRECTORY: &str = include_str!("../../packaging/directory.toml");

/// Files that an administrator looks for.
const FILES: &[(&str, &str)] = &[
    ("/etc/activity-milter/activity-milter.toml", "the configuration, activity-milter.toml(5)"),
    (
        "/etc/activity-milter/directory.toml",
        "who is who, if directory.type is file: activity-milter-directory.toml(5)",
    ),
    ("/var/lib/activity-milter/queue.db", "the queue, with large messages in spool beside it"),
    ("/var/spool/postfix/activity-milter/", "the sockets, where Postfix's chrooted services find them"),
    (
        "/usr/share/doc/activity-milter/",
        "operations.md for the night, security.md, replies.md, severa.md, backend-api.yaml",
    ),
];

/// Writes all pages.
pub(super) fn write(to: &Path) -> io::Result<ExitCode> {
    fs::create_dir_all(to)?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    commands(&command, "activity-milter", to)?;
    fs::write(to.join("activity-milter.toml.5"), configuration())?;
    fs::write(to.join("activity-milter-directory.toml.5"), directory())?;
    fs::write(to.join("activity-milter-postfix.7"), postfix())?;
    Ok(ExitCode::SUCCESS)
}

/// A page for each command that does something, in section 8.
fn commands(command: &clap::Command, name: &str, to: &Path) -> io::Result<()> {
    let page = clap_mangen::Man::new(command.clone().name(name.to_owned()).display_name(name.to_owned()))
        .section("8")
        .manual("activity-milter")
        .date(date())
        .source(concat!("activity-milter ", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    page.render(&mut text)?;
    text.extend(ending(name).into_bytes());
    fs::write(to.join(format!("{name}.8")), text)?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        // `activity-milter-postfix` is a page of section 7 too; the commands are in section 8.
        commands(sub, &format!("{name}-{}", sub.get_name()), to)?;
    }
    Ok(())
}

/// What the program's end says, as every command has it.
fn exit_status() -> String {
    let mut page = ".SH \"EXIT STATUS\"\n".to_owned();
    for (code, meaning) in EXIT_STATUS {
        let _ = write!(page, ".TP\n.B {code}\n{}", roff(meaning));
    }
    page
}

/// A key of the configuration and what its doc comment says.
struct Key {
    name: String,
    text: String,
}

/// The keys of a type of `config`. A key that is a table of its own has a section of its own.
fn keys(of: &str) -> Vec<Key> {
    let start = format!("struct {of} {{\n");
    let body = CONFIG.split(&start).nth(1).and_then(|rest| rest.split("\n}").next()).unwrap_or_default();
    let (mut keys, mut text, mut renamed) = (Vec::new(), String::new(), None);
    for line in body.lines().map(str::trim) {
        if let Some(doc) = line.strip_prefix("///") {
            text = format!("{text} {}", doc.trim()).trim().to_owned();
        } else if let Some(attribute) = line.strip_prefix("#[serde(") {
            let name = attribute.split("rename = \"").nth(1).and_then(|rest| rest.split('"').next());
            renamed = renamed.or(name.map(str::to_owned));
        } else if let Some((name, kind)) = line.split_once(": ") {
            // A company is a table in a list: what is a table in it stands in a line.
            let is_table = of != "SeveraText" && TABLES.iter().any(|(_, of)| kind.contains(of));
            let name = renamed.take().unwrap_or_else(|| name.trim_start_matches("pub(super) ").to_owned());
            if !is_table && name != "replies" {
                keys.push(Key { name, text: std::mem::take(&mut text) });
            }
            text.clear();
        }
    }
    keys
}

/// The version's date.
fn date() -> &'static str {
    let heading = CHANGELOG.lines().find(|line| line.starts_with("## ") && line.ends_with(')'));
    heading.and_then(|line| line.split_once('(')).map_or("", |(_, date)| date.trim_end_matches(')'))
}

/// What every page of a command ends with.
fn ending(name: &str) -> String {
    let mut files = ".SH FILES\n".to_owned();
    for (file, text) in FILES {
        let _ = write!(files, ".TP\n.B {}{}", roff(file), roff(text));
    }
    let pages = [
        ("activity-milter", 8),
        ("activity-milter.toml", 5),
        ("activity-milter-directory.toml", 5),
        ("activity-milter-postfix", 7),
    ];
    let others = pages.iter().filter(|(page, section)| (*page, *section) != (name, 8));
    let others: Vec<_> = others.map(|(page, section)| format!(".BR {} ({section})", escaped(page))).collect();
    let foreign = [".BR postconf (5)", ".BR systemctl (1)", ".BR journalctl (1)"].map(str::to_owned);
    let all = [others, foreign.to_vec()].concat().join(",\n");
    format!("{}{files}.SH \"SEE ALSO\"\n{all}\n", exit_status())
}

fn begin(name: &str, section: u8, about: &str) -> String {
    let source = concat!("activity-milter ", env!("CARGO_PKG_VERSION"));
    let date = date();
    format!(
        ".TH {name} {section} \"{date}\" \"{source}\" \"activity-milter\"\n.SH NAME\n{name} \\- {about}\n"
    )
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('`', "")
}

/// A text as roff has it.
fn roff(text: &str) -> String {
    let escaped = escaped(text);
    let lines = escaped
        .lines()
        .map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}\n") } else { format!("{line}\n") });
    lines.collect()
}

fn configuration() -> String {
    let mut page = begin("activity\\-milter.toml", 5, "configuration of activity\\-milter");
    page += ".SH DESCRIPTION\n";
    page += &roff(
        "The file is TOML; the default is /etc/activity-milter/activity-milter.toml. Unknown keys are errors. Only\n\
         integration_domains, directory.path and backend.url have no default. SIGHUP has it read again; a wrong file is\n\
         refused as a whole, and the old settings stay. Times are written like \"30s\", \"10min\", \"5d\", sizes like\n\
         \"50 MiB\", both with their unit. Paths are whole; what is relative is relative to the file, and a warning says\n\
         so. Files with secrets hold one in their first line. What works, and is probably not meant, is a warning: check\n\
         prints it, and the service logs it at start and at reload.",
    );
    page += ".SH \"DROP\\-INS\"\n";
    page += &roff(
        "Files in the directory FILE.d (/etc/activity-milter/activity-milter.toml.d) whose names end in .toml are laid over\n\
         the file, in the order of their names: tables are merged, values and lists replace those before, and [[severa]]\n\
         adds companies (the same prefix twice is an error). Names that begin with a dot, and all other names, are ignored.\n\
         A drop-in that cannot be read is an error. activity-milter config show prints what counts, and where it stands.",
    );
    for (table, of) in TABLES {
        let title = if table.is_empty() { "ABOVE ALL TABLES".to_owned() } else { format!("[{table}]") };
        let _ = writeln!(page, ".SH \"{title}\"");
        for Key { name, text } in keys(of) {
            let _ =
                write!(page, ".TP\n.B {}\n{}", roff(&name).trim_end(), roff(&text)).map(|()| page.push('\n'));
        }
    }
    page += ".SH \"[replies]\"\n";
    page += &roff(
        "The texts of replies, by reason code, in printable ASCII; {address} becomes the integration address, and\n\
         {detail} what the backend says. help adds a second line to each reply.",
    );
    for reason in Reason::ALL {
        let _ = write!(page, ".TP\n.B {}\n", roff(reason.as_str()).trim_end());
        page += &roff(&format!("{} {}: {}", reason.code(), reason.status(), reason.default_text()));
    }
    page + ".SH FILES\n.TP\n.B /etc/activity\\-milter/activity\\-milter.toml\nThe default.\n.SH \"SEE ALSO\"\n.BR activity\\-milter (8),\n.BR activity\\-milter\\-directory.toml (5),\n.BR activity\\-milter\\-postfix (7)\n"
}

/// The directory file: its keys by the comments of the one that is installed.
fn directory() -> String {
    let mut page = begin("activity\\-milter\\-directory.toml", 5, "who is who, in a file");
    page += ".SH DESCRIPTION\n";
    page += &roff(
        "The file that directory.path names, if directory.type is \"file\". The service looks at it each second; a new\n\
         version counts as a whole or not at all: a broken one, or one that names nobody, is refused with its line, and the\n\
         old one stays. activity-milter check reads it, activity-milter directory lookup asks it.",
    );
    page += ".SH EXAMPLE\n.nf\n";
    page += &roff(DIRECTORY);
    page + ".fi\n.SH \"SEE ALSO\"\n.BR activity\\-milter (8),\n.BR activity\\-milter.toml (5),\n.BR activity\\-milter\\-directory\\-lookup (8)\n"
}

fn postfix() -> String {
    let mut page = begin("activity\\-milter\\-postfix", 7, "Postfix and activity\\-milter");
    page += ".SH DESCRIPTION\n";
    page += &roff(
        "The settings of Postfix for each deployment, as activity-milter postfix print writes them for the\n\
         configuration at hand. activity-milter postfix check finds what is wrong in a running Postfix.",
    );
    for (name, text) in PIECES {
        let _ = write!(page, ".SH \"{}\"\n.nf\n{}.fi\n", name.to_uppercase(), roff(text));
    }
    page + ".SH \"SEE ALSO\"\n.BR activity\\-milter (8),\n.BR activity\\-milter.toml (5),\n.BR postconf (5),\n.BR milter (7)\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_in_the_manual_with_a_text() {
        for (table, of) in TABLES {
            let keys = keys(of);
            assert!(!keys.is_empty(), "{table}");
            for key in keys {
                assert!(key.text.len() > 5, "[{table}] {}: no doc comment", key.name);
                assert!(!key.name.starts_with('_'), "[{table}] {}", key.name);
            }
        }
    }
}
