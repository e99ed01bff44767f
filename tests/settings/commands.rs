//! The command line: exit codes, closed pipes, full disks, completions, and commands that need no secret.

use super::{accept, judge, store};
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_activity-milter");

/// A configuration and what it names, in a directory of its own.
struct Home(TempDir);

impl Home {
    fn new(more: &str) -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        fs::create_dir(home.at("spool")).unwrap();
        let text = format!(
            "integration_domains = [\"a.test\"]\n[directory]\npath = \"{0}/tests/directory.toml\"\n\
             [queue]\npath = \"{1}\"\nspool = \"{2}\"\n[backend]\nurl = \"http://127.0.0.1:1/\"\n{more}\n",
            env!("CARGO_MANIFEST_DIR"),
            home.at("queue.db").display(),
            home.at("spool").display(),
        );
        fs::write(home.at("am.toml"), text).unwrap();
        home
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("-c").arg(self.at("am.toml")).args(arguments).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        said(&self.command(arguments).output().unwrap())
    }

    /// A queue as the service leaves it.
    fn with_queue(self) -> Self {
        use activity_milter::queue::{self, Settings, SystemClock};
        let settings = Settings::new(self.at("queue.db"), self.at("spool"));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async { drop(queue::open(&settings, std::sync::Arc::new(SystemClock)).unwrap()) });
        self
    }
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Arguments, exit code, and words.
const WRONG: &[(&[&str], i32, &[&str])] = &[
    (&["nonsense"], 64, &["nonsense"]),
    (&[], 64, &["Usage"]),
    (&["queue"], 64, &["Usage"]),
    (&["config"], 64, &["Usage"]),
    (&["config", "show", "more"], 64, &["more"]),
    (&["check", "--ofline"], 64, &["--offline"]),
    (&["queue", "list", "--state", "lost"], 64, &["lost", "waiting"]),
    (&["queue", "list", "--older-than", "10"], 64, &["has no unit", "10min"]),
    (&["queue", "list", "--older-than", "10M"], 64, &["would be months", "10min"]),
    (&["queue", "list", "--older-than", "soon"], 64, &["no time span"]),
    (&["queue", "list", "--limit", "-1"], 64, &["-1"]),
    (&["queue", "list", "--limit", "many"], 64, &["many", "write a whole number"]),
    (&["queue", "retry"], 64, &["give keys, or --all"]),
    (&["queue", "drop"], 64, &["give keys, or --all"]),
    (&["queue", "hold", "--state", "waiting"], 64, &["give keys, or --all"]),
    (&["queue", "export"], 64, &["--to"]),
    (&["queue", "show"], 64, &["ACTIVITY"]),
    (&["queue", "show", "b3:0000"], 69, &["no activity in the queue has a key"]),
    (&["queue", "retry", "b3:0000"], 69, &["no activity in the queue has a key"]),
    (&["queue", "drop", "b3:"], 64, &["b3: is too little of a key: give at least 4 digits"]),
    (&["queue", "retry", "b3:abc"], 64, &["b3:abc is too little of a key"]),
    (&["queue", "drop", "7"], 69, &["has the number or queue id \"7\"", "write b3:"]),
    (&["queue", "drop", ""], 69, &["has the number or queue id \"\""]),
    (&["trace", "a@b.test", "c@d.test"], 64, &["2 things are asked for: ask for one at a time"]),
    (&["trace", "7F3A91E0C2", "b3:0123abcd"], 64, &["ask for one at a time"]),
    (
        &["explain", "LICENSE", "--recipient", "x"],
        64,
        &["--recipient: \"x\" is no address: there is no domain"],
    ),
    (&["explain", "LICENSE", "--recipient", ""], 64, &["--recipient: \"\" is no address"]),
    (&["explain", "LICENSE", "--recipient", "<>"], 64, &["is no address"]),
    (&["explain", "LICENSE", "--recipient", "@a.test"], 64, &["there is no local part"]),
    (&["explain", "LICENSE", "--recipient", "x@"], 64, &["the domain is malformed"]),
    (&["explain", "LICENSE", "--recipient", "x@a b"], 64, &["the domain is malformed"]),
    (&["explain", "LICENSE", "--recipient", "Anna <x@a.test>"], 64, &["is no address", "write one like"]),
    (
        &["explain", "LICENSE", "--recipient", "x@a.test,y@a.test"],
        64,
        &["these are several: give --recipient for each"],
    ),
    (
        &["explain", "LICENSE", "--recipient", "x@a.test", "--sender", "not one"],
        64,
        &["--sender: \"not one\" is no"],
    ),
    (&["directory", "lookup"], 64, &["ADDRESS"]),
    (&["directory", "lookup", "nonsense"], 64, &["\"nonsense\" is no address", "write one like"]),
    (&["directory", "lookup", "@a.test"], 64, &["is no address", "write one like"]),
    (&["directory", "lookup", "x@b.test", "--tenant", "nobody"], 69, &["no tenant \"nobody\""]),
    (&["directory", "lookup", "x@b.test"], 64, &["no tenant is named", "--tenant PREFIX"]),
    (&["explain"], 64, &["MESSAGE"]),
    (
        &["explain", "/nonexistent", "--recipient", "x@a.test"],
        69,
        &["/nonexistent cannot be read: No such file or directory: write the file"],
    ),
    (&["explain", "/", "--recipient", "x@a.test"], 69, &["/ cannot be read: Is a directory: name a file"]),
    (&["postfix", "print"], 64, &["DEPLOYMENT"]),
    (&["postfix", "print", "relay"], 64, &["mx"]),
    (&["postfix", "print", "mx", "--format", "json"], 64, &["main.cf"]),
    (&["postfix", "print", "mx"], 78, &["[lmtp]"]),
    (&["postfix", "check", "--postfix-config"], 64, &["--postfix-config"]),
    (&["sink"], 64, &["--data"]),
    (&["sink", "--data", "/x", "--delay", "10M"], 64, &["would be months"]),
    (&["sink", "--data", "/x", "--fail-rate", "2"], 64, &["from 0 to 1"]),
    (
        &["sink", "--data", "/x", "--listen", "localhost"],
        64,
        &["write an IP address with a port, like 127.0.0.1:8080"],
    ),
    (&["sink", "--data", "/x", "--listen", "crm.test:80"], 64, &["write an IP address with a port"]),
    (&["sink", "--data", "/x", "--status", "ok"], 64, &["write a status from 200 to 599"]),
    (&["sink", "--data", "/x", "--status", "600"], 64, &["write a status from 200 to 599"]),
    (
        &["sink", "--data", "/x", "--signing-secret-file", "tests/severa/.npmrc"],
        69,
        &[".npmrc: a signing secret begins with whsec_"],
    ),
    (&["completions"], 64, &["SHELL"]),
    (&["completions", "tcsh"], 64, &["bash"]),
];

#[test]
fn what_is_wrong_on_the_command_line() {
    let home = Home::new("").with_queue();
    let mut complaints = Vec::new();
    for (arguments, expected, words) in WRONG {
        let (code, out, error) = home.run(arguments);
        let what = format!("{arguments:?}");
        if code != Some(*expected) || !out.is_empty() {
            complaints.push(format!("{what}\n  exit code {code:?}, not {expected}: {out}{error}"));
        }
        if error.contains("manual") {
            complaints.push(format!("{what}\n  names a hidden command: {error}"));
        }
        // clap's own table of options names no type.
        complaints.extend(judge(&what, &error, words));
    }
    for (config, code, words) in [
        (
            "/nonexistent.toml",
            78,
            "/nonexistent.toml: cannot be read: No such file or directory: write the file",
        ),
        ("/", 78, "cannot be read: Is a directory: name a file"),
    ] {
        for command in [&["check"][..], &["queue", "list"], &["config", "show"], &["serve"]] {
            let output = Command::new(PROGRAM).args(["-c", config]).args(command).output().unwrap();
            let (found, _, error) = said(&output);
            assert!(found == Some(code) && error.lines().count() == 1, "{command:?}: {found:?} {error}");
            complaints.extend(judge(config, &error, &[words]));
        }
    }
    accept(complaints);
}

/// A name is one activity's: none of them is another's by accident, however few there are.
#[test]
fn a_command_acts_on_what_is_named() {
    let home = Home::new("").with_queue();
    let settings = store::settings(home.0.path());
    // Whose key begins with a digit, and with a letter: the number, or the word, of another is not its beginning.
    let begins = |letter: &store::Letter, as_digit: bool| {
        letter.keys()[0].as_str()[3..9].bytes().all(|b| b.is_ascii_digit() == as_digit)
    };
    for as_digit in [true, false] {
        let letter = (1..).map(store::Letter::small).find(|letter| begins(letter, as_digit)).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let queue = store::open(&settings);
            queue.put(letter.parcel(&settings.spool).await).await.unwrap();
        });
        let key = letter.keys()[0].as_str().to_owned();
        let digits = &key[3..];
        let there = || {
            serde_json::from_str::<serde_json::Value>(&home.run(&["queue", "list", "--json"]).1).unwrap()[0]["id"].as_i64()
        };
        let id = there().unwrap();
        let mut words: Vec<String> = (0..7).map(|end| digits[..end].to_owned()).collect();
        words.extend((0..4).map(|end| key[..3 + end].to_owned()));
        words.extend([
            format!("{}", id + 1),
            format!("0{id}"),
            format!("+{id}"),
            "*".to_owned(),
            "%".to_owned(),
            "b3:%%%%".to_owned(),
            "b3:____".to_owned(),
        ]);
        // The key with another last digit.
        let last = if key.ends_with('0') { "1" } else { "0" };
        words.push(key[..key.len() - 1].to_owned() + last);
        for word in words.iter().filter(|word| **word != id.to_string()) {
            for command in ["drop", "hold", "retry"] {
                let (code, out, error) = home.run(&["queue", command, "--yes", "--", word]);
                assert!(
                    matches!(code, Some(64 | 69)),
                    "{command} {word:?} of {key} ({id}): {code:?} {out}{error}"
                );
            }
        }
        assert_eq!(there(), Some(id));
        for word in [digits[..8].to_owned(), key[..7].to_owned(), key.clone(), id.to_string()] {
            // Eight digits without a letter are a number.
            let is_number = word.bytes().all(|b| b.is_ascii_digit()) && word != id.to_string();
            let (code, out, error) = home.run(&["queue", "drop", "--dry-run", &word]);
            assert_eq!(code, Some(if is_number { 69 } else { 0 }), "{word}: {out}{error}");
        }
        assert_eq!(home.run(&["queue", "drop", &id.to_string()]).0, Some(0));
        assert_eq!(there(), None);
    }
}

/// Every command that prints, with a disk that is full: said, and exit code 74.
#[test]
fn a_full_disk_is_no_panic() {
    let home = Home::new("[lmtp]\n").with_queue();
    let message = home.at("m.eml");
    fs::write(&message, "From: anna@mycompany.test\nSubject: x\n\nx\n").unwrap();
    let message = message.display().to_string();
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["queue", "--help"],
        &["completions", "bash"],
        &["completions", "fish"],
        &["config", "show"],
        &["check", "--offline"],
        &["check", "--offline", "--json"],
        &["queue", "list", "--json"],
        &["queue", "retry", "--all"],
        &["directory", "lookup", "--tenant", "mycompany", "x@b.test"],
        &["directory", "lookup", "--tenant", "mycompany", "x@b.test", "--json"],
        &["explain", &message, "--recipient", "x@b.test"],
        &["explain", &message, "--recipient", "x@b.test", "--json"],
        &["postfix", "print", "mx", "--format", "main.cf"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = home.command(arguments).stdout(full).output().unwrap();
        let (code, _, error) = said(&output);
        assert_eq!(code, Some(74), "{arguments:?}: {error}");
        assert!(
            error.contains("the output could not be written: No space left on device"),
            "{arguments:?}: {error}"
        );
        assert!(!error.contains("panicked"), "{error}");
    }
    // Where standard error is full too there is nobody to tell.
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let status = home.command(&["queue", "retry"]).stdout(full()).stderr(full()).status().unwrap();
    assert_eq!(status.code(), Some(64));
}

/// A reader that has seen enough is no failure.
#[test]
fn a_closed_pipe_is_no_panic() {
    let home = Home::new("").with_queue();
    for (arguments, code) in [
        (&["--help"][..], 0),
        (&["completions", "bash"], 0),
        (&["completions", "zsh"], 0),
        (&["config", "show"], 0),
        (&["queue", "list", "--json"], 0),
        (&["directory", "lookup", "--tenant", "mycompany", "x@b.test"], 1),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = home.command(arguments).stdout(writer).output().unwrap();
        let (found, _, error) = said(&output);
        // Tests are root's, and so is the queue.
        let is_quiet = error.lines().all(|line| line.contains("works as root"));
        assert!(found == Some(code) && is_quiet, "{arguments:?}: {found:?} {error}");
    }
}

/// What only the queue is asked needs no secret, no directory, no certificate.
#[test]
fn queue_commands_need_no_secret() {
    let missing = "token_file = \"/nonexistent/token\"\nsigning_secret_file = \"/nonexistent/signing\"\n\
        ca_file = \"/nonexistent/ca\"\nclient_certificate_file = \"/nonexistent/c\"\nclient_key_file = \"/nonexistent/k\"\n\
        [admin]\ntoken_file = \"/nonexistent/admin\"\n";
    let home = Home::new(missing).with_queue();
    let text = fs::read_to_string(home.at("am.toml")).unwrap();
    let gone = text.replace("tests/directory.toml", "tests/nonexistent.toml");
    fs::write(home.at("am.toml"), gone).unwrap();
    let to = home.at("export").display().to_string();
    for arguments in [
        &["queue", "list"][..],
        &["queue", "list", "--json"],
        &["queue", "retry", "--all"],
        &["queue", "hold", "--all"],
        &["queue", "drop", "--all"],
        &["queue", "export", "--to", &to],
        &["config", "show"],
    ] {
        let (code, out, error) = home.run(arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {out}{error}");
    }
    // Who asks what is missing learns all of it, a line each, and how the rest is.
    let (code, out, error) = home.run(&["check", "--offline"]);
    assert_eq!(code, Some(1), "{error}");
    for file in ["token", "signing", "ca", "c", "k", "admin"] {
        let there = out.lines().filter(|line| line.contains(&format!("/nonexistent/{file} cannot be read")));
        let there: Vec<&str> = there.collect();
        assert!(matches!(there.as_slice(), [line] if line.starts_with("NOT OK named file")), "{file}: {out}");
    }
    assert!(out.contains("ok     files") && out.contains("ok     queue"), "{out}");
    assert!(out.contains("nonexistent.toml cannot be read"), "{out}");
    // What is wrong in the file itself ends it, as before.
    fs::write(home.at("am.toml"), text + "[qeueu]\n").unwrap();
    assert_eq!(home.run(&["check", "--offline"]).0, Some(78));
}

#[test]
fn check_lists_drop_ins_and_warnings() {
    let home = Home::new("");
    fs::create_dir(home.at("am.toml.d")).unwrap();
    fs::write(home.at("am.toml.d/10.toml"), "[queue]\nmax_items = 5\n").unwrap();
    let (_, out, _) = home.run(&["check", "--offline"]);
    let place = home.at("am.toml.d/10.toml").display().to_string();
    assert!(out.lines().next().unwrap().ends_with(&format!("am.toml with {place}")), "{out}");
    let warning = format!("warn   configuration {place}:2:13: max_items: 5 is unusual");
    assert!(out.lines().any(|line| line.starts_with(&warning)), "{out}");
    let (_, out, _) = home.run(&["check", "--offline", "--json"]);
    let lines: serde_json::Value = serde_json::from_str(&out).unwrap();
    let warned = lines.as_array().unwrap().iter().find(|line| line["warning"] == true).unwrap();
    assert!(warned["ok"] == true && warned["detail"].as_str().unwrap().contains(":2:13: max_items"), "{out}");
}

/// A connection that cannot be made is said with host and port.
#[test]
fn explain_says_whose_policy_counts() {
    let home = Home::new("[policy.automatic]\nbulk = \"discard\"\nlist = \"refuse\"");
    let directory =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/directory.toml")).unwrap();
    let wish = "policy = { require = \"authenticated\", automatic = { list = \"accept\" } }";
    fs::write(home.at("directory.toml"), directory.replacen("name =", &format!("{wish}\nname ="), 1))
        .unwrap();
    let text = fs::read_to_string(home.at("am.toml")).unwrap();
    let ours = format!("{}/tests/directory.toml", env!("CARGO_MANIFEST_DIR"));
    fs::write(home.at("am.toml"), text.replace(&ours, &home.at("directory.toml").display().to_string()))
        .unwrap();
    fs::write(home.at("m.eml"), "From: anna@mycompany.test\nSubject: s\n\nHi\n").unwrap();
    let message = home.at("m.eml").display().to_string();
    let asked = ["explain", &message, "--recipient", "mycompany@a.test"];
    let (code, out, _) = home.run(&asked);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("reply: 550 5.7.26") && out.contains("[not-authenticated]"), "{out}");
    let (code, out, err) = home.run(&[&asked[..], &["--login", "anna@mycompany.test"]].concat());
    assert_eq!(code, Some(0), "{err}");
    for line in [
        "user u-anna: the sender is a user; the sender is authenticated: logged in as anna@mycompany.test",
        "\"sender_authenticated\": true",
        "policy: require = authenticated (the tenant's policy)",
        "policy: automatic.list = accept (the tenant's policy)",
        "policy: automatic.bulk = discard (the service's [policy])",
    ] {
        assert!(out.contains(line), "{line}: {out}");
    }
    assert!(!out.contains("automatic.bounce"), "{out}");
    let (_, out, _) = home.run(&["directory", "lookup", "--json", "mycompany@a.test"]);
    assert!(out.contains("\"require\": \"authenticated\""), "{out}");
}

#[test]
fn an_unreachable_backend_is_named() {
    let home = Home::new("");
    let (code, out, _) = home.run(&["check"]);
    assert_eq!(code, Some(1));
    let line = out.lines().find(|line| line.starts_with("NOT OK backend")).unwrap();
    let words = ["no connection to 127.0.0.1:1: Connection refused", "Check backend.url"];
    accept(judge("check", line, &words));
}

/// Presses Tab in a bash: what stands on the line, and what is offered.
fn offered(script: &Path, line: &[&str]) -> Vec<String> {
    let words: Vec<String> = line.iter().map(|word| format!("'{word}'")).collect();
    let press = format!(
        "source '{}'; compopt() {{ :; }}\n\
         COMP_WORDS=({}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))\n\
         function=$(complete -p activity-milter | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n\
         $function activity-milter \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"\n\
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display(),
        words.join(" "),
    );
    let output = Command::new("bash").args(["--norc", "-c", &press]).output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn tab_finds_commands_options_and_values() {
    let home = Home::new("");
    let script = home.at("completions");
    let output = Command::new(PROGRAM).args(["completions", "bash"]).output().unwrap();
    File::create(&script).unwrap().write_all(&output.stdout).unwrap();
    let file = home.at("am.toml").display().to_string();
    for (line, expected) in [
        (&["activity-milter", ""][..], &["serve", "check", "queue", "config"][..]),
        (&["activity-milter", "qu"], &["queue"]),
        (&["activity-milter", "queue", ""], &["list", "show", "retry", "hold", "drop", "export"]),
        (&["activity-milter", "queue", "re"], &["retry"]),
        (
            &["activity-milter", "queue", "list", "--"],
            &["--state", "--tenant", "--older-than", "--limit", "--json"],
        ),
        (&["activity-milter", "queue", "list", "--st"], &["--state"]),
        (&["activity-milter", "queue", "list", "--state", ""], &["waiting", "in-flight", "held"]),
        (&["activity-milter", "queue", "list", "--state", "h"], &["held"]),
        (&["activity-milter", "-c", "/x", "queue", "r"], &["retry"]),
        (&["activity-milter", "queue", "-c", "/x", "list", "--st"], &["--state"]),
        (&["activity-milter", "-c", &file[..file.len() - 3]], &[&file]),
        (&["activity-milter", "queue", "--config", &file[..file.len() - 3]], &[&file]),
        (&["activity-milter", "postfix", ""], &["print", "check"]),
        (&["activity-milter", "postfix", "print", ""], &["mx", "submission", "lmtp-only"]),
        (
            &["activity-milter", "postfix", "print", "mx", "--format", ""],
            &["commands", "main.cf", "master.cf"],
        ),
        (&["activity-milter", "config", ""], &["show"]),
        (&["activity-milter", "directory", "lookup", "--"], &["--tenant", "--json"]),
        (&["activity-milter", "completions", ""], &["bash", "zsh", "fish"]),
        (&["activity-milter", "check", "--"], &["--json", "--offline"]),
    ] {
        let offered = offered(&script, line);
        for word in expected {
            assert!(offered.iter().any(|one| one == word), "{line:?}: {word} is not in {offered:?}");
        }
    }
    // Nothing of ours begins like that, so the shell offers files (`-o default`).
    assert!(offered(&script, &["activity-milter", "explain", "/tm"]).is_empty());
}
