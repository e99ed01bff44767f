//! A shell script that changes a Postfix, and the lines for its files that say the same.
//!
//! In: a [`Plan`]. Out: text. Promise: the script changes what it was printed for or nothing, saves `main.cf` and
//! `master.cf` first, and changes nothing when it runs again. It works under `sh -eu` and from a pipe.

use super::{
    record::{CHANGES, DIRECTORY, Name, Record, Value, line, said},
    settings::{Settings, Tools},
};
use std::{fmt::Write as _, path::Path};

/// A setting that gets another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) name: Name,
    /// As it is written now.
    pub(super) was: Value,
    /// As it shall be; none: not set.
    pub(super) new: Value,
}

/// A piece of what is printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Comment lines, or an empty line.
    Say(String),
    Change(Change),
}

/// What a script does with the record of changes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way<'a> {
    /// Adds to it, for that owner and with lines of his, before anything is changed.
    In(&'a (String, Vec<String>)),
    /// Puts it away, after everything is changed.
    Out(&'a Record),
}

impl Way<'_> {
    /// The command that puts the record away; none if there is nothing to put away.
    fn retire(self, config_directory: &Path) -> Option<String> {
        let Self::Out(record) = self else { return None };
        record.all().next()?;
        let path = word(&config_directory.join(DIRECTORY).join(CHANGES).display().to_string());
        Some(match record.is_shared() {
            // The record is another activity-milter's too.
            true => {
                let lines: Vec<String> = record.farewell().iter().map(|line| word(line)).collect();
                format!("printf '\\n%s\\n' {} >>{path}", lines.join(" "))
            }
            false => format!("mv {path} {path}.$(date +%Y%m%d-%H%M%S) 2>/dev/null || :"),
        })
    }
}

/// What to do, in order.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) steps: Vec<Step>,
    /// Domains whose mail loses its way to us: none of it may wait in the queue.
    pub(super) coming: Vec<String>,
    /// What a person has to know although the script goes to a shell: what stays, and why.
    pub(super) told: Vec<String>,
}

/// `postconf` for one instance, as it reads and as it writes each file.
#[derive(Debug)]
pub(super) struct Editors {
    reads: String,
    main: String,
    master: String,
}

impl Default for Editors {
    fn default() -> Self {
        let postconf = command(None);
        Self { reads: postconf.clone(), main: postconf.clone(), master: postconf }
    }
}

impl Editors {
    /// Those for a plan; an error is for people: a link that postconf would replace by a file.
    pub(super) fn of(tools: Option<&Tools>, config_directory: &Path, plan: &Plan) -> Result<Self, String> {
        let is_changed = |file| plan.changes().any(|change| change.name.file() == file);
        let writes = |file| match is_changed(file) {
            true => editor(tools, config_directory, file),
            false => Ok(command(tools)),
        };
        Ok(Self { reads: command(tools), main: writes("main.cf")?, master: writes("master.cf")? })
    }

    fn of_file(&self, name: &Name) -> &str {
        match name {
            Name::Main(_) => &self.main,
            Name::Service(_) => &self.master,
        }
    }
}

/// [`editor`] for a person to read, who is told of such a link by [`Editors::of`].
pub(super) fn shown_editor(settings: &Settings, file: &str) -> String {
    let tools = Some(&settings.tools);
    editor(tools, settings.directory(), file).unwrap_or_else(|_| command(tools))
}

/// `postconf` that edits a file. It writes beside and renames, which would put a file in the place of a link: so it is told
/// the directory of what the link is for.
pub(super) fn editor(tools: Option<&Tools>, config_directory: &Path, file: &str) -> Result<String, String> {
    let path = config_directory.join(file);
    if !path.is_symlink() {
        return Ok(command(tools));
    }
    let target = path.canonicalize().unwrap_or_default();
    match target.parent().filter(|_| target.ends_with(file)) {
        Some(directory) => Ok(format!("postconf -c {}", bare(&directory.display().to_string()))),
        None => Err(format!(
            "{path} is a link to {target}, in whose place postconf would put a file: name what it is for {file}, in a directory \
             of its own, or put a copy there instead of the link, then print again",
            path = path.display(),
            target = target.display()
        )),
    }
}

impl Plan {
    pub(super) fn say(&mut self, text: &str) {
        self.steps.push(Step::Say(text.to_owned()));
    }

    /// A remark of ours among the comments.
    pub(super) fn note(&mut self, text: &str) {
        self.steps.push(Step::Say(format!("# {text}")));
    }

    /// A remark that whoever pipes the script into a shell is told too.
    pub(super) fn tell(&mut self, text: &str) {
        self.note(text);
        self.told.push(text.to_owned());
    }

    /// Another value; nothing if it is that already.
    pub(super) fn change(&mut self, name: Name, was: Value, new: Value) {
        if was != new {
            self.steps.push(Step::Change(Change { name, was, new }));
        }
    }

    pub(super) fn changes(&self) -> impl Iterator<Item = &Change> {
        self.steps.iter().filter_map(|step| match step {
            Step::Change(change) => Some(change),
            Step::Say(_) => None,
        })
    }

    /// Lines for main.cf.
    pub(super) fn main_cf(&self) -> String {
        let mut out = String::new();
        for step in &self.steps {
            match step {
                Step::Say(text) => out += &format!("{text}\n"),
                Step::Change(Change { name: name @ Name::Main(_), was, new: Some(new) }) => {
                    if was.is_some() {
                        let _ = writeln!(out, "# was: {}", said(name, was));
                    }
                    let _ = writeln!(out, "{name} = {new}");
                }
                Step::Change(Change { name, was, .. }) => {
                    let _ = writeln!(out, "# by --format commands only: {}", said(name, was));
                }
            }
        }
        out
    }

    /// The script.
    pub(super) fn script(&self, editors: &Editors, config_directory: &Path, way: Way) -> String {
        let mut out = String::new();
        if self.changes().next().is_some() {
            out += &self.preamble(&editors.reads, config_directory, way);
        }
        for step in &self.steps {
            match step {
                Step::Say(text) => out += &format!("{text}\n"),
                Step::Change(change) => {
                    if let Some(was) = &change.was {
                        let _ = writeln!(out, "# was: {}", said(&change.name, &Some(was.clone())));
                    }
                    let _ = writeln!(out, "{}", change.command(editors.of_file(&change.name)));
                }
            }
        }
        if self.changes().next().is_none() {
            out += "\n# Nothing to change.\n";
        }
        // Last: a script that is cut off is printed again from the same record.
        if let Some(retire) = way.retire(config_directory) {
            out += &format!("\n{retire}\n");
        }
        out
    }

    /// Looks whether everything is as it was when this was printed, then makes copies.
    fn preamble(&self, postconf: &str, config_directory: &Path, way: Way) -> String {
        let mut out = format!(
            "set -eu\nPATH=$PATH:/usr/sbin:/sbin\nexport PATH\n\
             # All is looked at before anything is changed: am OPTION NAME IS WILL-BE\n\
             am_todo=\n\
             am() {{\n  \
               am_is=$({postconf} \"$1\" \"$2\" 2>/dev/null | sed 's/ *$//')\n  \
               case $am_is in\n    \
                 \"$4\") ;;\n    \
                 \"$3\") am_todo=yes ;;\n    \
                 *) echo \"activity-milter: $2 has changed since this was printed ($am_is): print it again\" >&2; exit 78 ;;\n  \
               esac\n}}\n"
        );
        let mut last: Vec<&Name> = Vec::new();
        for change in self.changes().filter(|change| {
            let first = !last.contains(&&change.name);
            last.push(&change.name);
            first
        }) {
            let option = if matches!(change.name, Name::Main(_)) { "-n" } else { "-P" };
            let shown = |value: &Value| value.as_ref().map_or(String::new(), |_| said(&change.name, value));
            let (was, new) = (shown(&change.was), shown(&change.new));
            let _ = writeln!(out, "am {option} '{}' {} {}", change.name, word(&was), word(&new));
        }
        let retire = way.retire(config_directory).map_or(String::new(), |retire| format!("  {retire}\n"));
        let directory = config_directory.display().to_string();
        let _ = write!(
            out,
            "if [ -z \"$am_todo\" ]; then\n  \
               echo 'activity-milter: Postfix has these settings already; nothing is changed' >&2\n{retire}  exit 0\nfi\n\
             {queue}am_conf={} am_now=$(date +%Y%m%d-%H%M%S)\n\
             am_saved=$am_conf/{DIRECTORY}\n\
             mkdir -p \"$am_saved\"\n\
             for am_file in main.cf master.cf; do\n  \
               am_copy=$am_saved/$am_file.$am_now\n  \
               while [ -e \"$am_copy\" ]; do am_copy=$am_copy.1; done\n  \
               cp -p \"$am_conf/$am_file\" \"$am_copy\"\n  \
               echo \"activity-milter: $am_file is saved as $am_copy\" >&2\ndone\n",
            word(&directory),
            queue = self.look_at_queue(postconf),
        );
        if let Way::In((owner, lines)) = way {
            let record = self.changes().flat_map(|change| {
                [line("was", &change.name, &change.was), line("now", &change.name, &change.new)]
            });
            // The empty line ends one that a full disk has cut.
            let _ = write!(
                out,
                "cat >>\"$am_saved/{CHANGES}\" <<'END OF CHANGES'\n\nbegin {owner}\n{}\n{}\nend\nEND OF CHANGES\n",
                lines.join("\n"),
                record.collect::<Vec<_>>().join("\n")
            );
        }
        out + "\n"
    }

    /// Looks once more whether mail waits for us.
    fn look_at_queue(&self, postconf: &str) -> String {
        if self.coming.is_empty() {
            return String::new();
        }
        let domains: Vec<String> = self.coming.iter().map(|domain| domain.replace('.', "[.]")).collect();
        let pattern = format!("\"address\": \"[^\"]*@({})\"", domains.join("|"));
        let postqueue = postconf.replacen("postconf", "postqueue", 1);
        format!(
            "if {postqueue} -j 2>/dev/null | grep -Eiq {}; then\n  \
               echo 'activity-milter: mail for it waits in the queue of Postfix by now: print it again' >&2\n  exit 78\nfi\n",
            word(&pattern)
        )
    }
}

impl Change {
    fn command(&self, postconf: &str) -> String {
        match (&self.name, &self.new) {
            (Name::Main(name), Some(new)) => format!("{postconf} -e {}", quoted(name, new)),
            (Name::Main(name), None) => format!("{postconf} -X {name}"),
            (Name::Service(name), Some(new)) => format!("{postconf} -P {}", quoted_for_service(name, new)),
            (Name::Service(name), None) => format!("{postconf} -PX {}", word(name)),
        }
    }
}

/// `postconf`, for the instance meant.
pub(super) fn command(tools: Option<&Tools>) -> String {
    match tools.and_then(|tools| tools.directory.as_ref()) {
        Some(directory) => format!("postconf -c {}", bare(&directory.display().to_string())),
        None => "postconf".to_owned(),
    }
}

/// One word for a shell.
pub(super) fn word(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// One word for a shell, without quotes where none are needed.
pub(super) fn bare(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { word(text) }
}

/// `'name = value'`, safe for a shell.
pub(super) fn quoted(name: &str, value: &str) -> String {
    word(&format!("{name} = {value}"))
}

/// The same for `postconf -P`, which takes no white space.
pub(super) fn quoted_for_service(parameter: &str, value: &str) -> String {
    word(&format!("{parameter}={}", dense(value)))
}

/// A list without the white space that `postconf -P` does not take.
pub(super) fn dense(value: &str) -> String {
    let mut out = String::new();
    for piece in value.split_whitespace() {
        // Blanks separate as commas do, but beside a brace or a comma they say nothing.
        let glued = out.is_empty() || out.ends_with([',', '{', '=']) || piece.starts_with([',', '}', '=']);
        if !glued {
            out.push(',');
        }
        out.push_str(piece);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_safe_for_a_shell_and_for_postconf() {
        assert_eq!(quoted("a", "b'c $d"), r"'a = b'\''c $d'");
        assert_eq!(bare("/etc/postfix-in"), "/etc/postfix-in");
        assert_eq!(bare("/etc/my postfix"), "'/etc/my postfix'");
        for (value, expected) in [
            ("inet:h:1, { unix:a, default_action=accept }", "inet:h:1,{unix:a,default_action=accept}"),
            ("inet:h:1 unix:b", "inet:h:1,unix:b"),
            ("{ unix:a, x = y z }", "{unix:a,x=y,z}"),
            ("", ""),
        ] {
            assert_eq!(dense(value), expected);
        }
    }
}
