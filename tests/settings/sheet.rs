//! The configuration: every key with every kind of wrong value, and what is wrong in ways of its own.

use super::{accept, judge};
use activity_milter::{config::Config, source::Source};
use std::{fs, path::Path};

/// How a key's value is written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Text,
    Count,
    Size,
    /// A size, or `"0"`.
    Free,
    Time,
    /// A time that may be for ever.
    Ever,
    Truth,
    OneOf,
    /// A file that must be there.
    File,
    /// A file that is made.
    Made,
    Mode,
    List,
    Keep,
    Rate,
}

use Kind::{Count, Ever, File, Free, Keep, List, Made, Mode, OneOf, Rate, Size, Text, Time, Truth};

/// Every key of `activity-milter.toml(5)` but the listening addresses, which have cases of their own.
const KEYS: &[(&str, &str, Kind)] = &[
    ("", "integration_domains", List),
    ("", "mode", OneOf),
    ("milter", "socket_mode", Mode),
    ("milter", "socket_group", Text),
    ("milter", "max_sessions", Count),
    ("milter", "idle_when_full", Time),
    ("lmtp", "socket_mode", Mode),
    ("lmtp", "max_sessions", Count),
    ("lmtp", "idle_when_full", Time),
    ("message", "max_size", Size),
    ("message", "memory_limit", Size),
    ("message", "patience", Time),
    ("message", "recipient_delimiter", Text),
    ("message", "mixed_recipients", OneOf),
    ("message", "after_accept", OneOf),
    ("message", "unknown_project", OneOf),
    ("message", "max_recipients", Count),
    ("message", "max_people", Count),
    ("directory", "type", OneOf),
    ("directory", "path", File),
    ("directory", "poll", Time),
    ("directory", "full_pass", Time),
    ("directory", "cache_hits", Time),
    ("directory", "cache_misses", Time),
    ("directory", "cache_stale", Ever),
    ("directory", "cache_size", Size),
    ("backend", "type", OneOf),
    ("backend", "url", Text),
    ("backend", "allow_plain_http", Truth),
    ("backend", "token_file", File),
    ("backend", "signing_secret_file", File),
    ("backend", "ca_file", File),
    ("backend", "client_certificate_file", File),
    ("backend", "client_key_file", File),
    ("backend", "proxy", Text),
    ("backend", "delivery", OneOf),
    ("backend", "timeout", Time),
    ("backend", "max_in_flight", Count),
    ("backend", "include_raw_message", Truth),
    ("backend", "retry_first", Time),
    ("backend", "retry_max", Time),
    ("backend.oauth", "token_url", Text),
    ("backend.oauth", "client_id", Text),
    ("backend.oauth", "client_secret_file", File),
    ("backend.oauth", "scopes", List),
    ("backend.oauth", "audience", Text),
    ("backend.oauth", "auth_method", OneOf),
    ("policy", "require", OneOf),
    ("policy", "never_log", List),
    ("policy", "internal", OneOf),
    ("policy", "answer", OneOf),
    ("policy.automatic", "bounce", OneOf),
    ("policy.automatic", "receipt", OneOf),
    ("policy.automatic", "auto-replied", OneOf),
    ("policy.automatic", "auto-generated", OneOf),
    ("policy.automatic", "list", OneOf),
    ("policy.automatic", "bulk", OneOf),
    ("sender", "trusted_networks", List),
    ("sender", "logins", OneOf),
    ("sender", "trusted_authserv_ids", List),
    ("sender", "received_by", Text),
    ("sender", "verify", Truth),
    ("sender", "name_server", Text),
    ("limits", "per_client", Rate),
    ("limits", "per_sender", Rate),
    ("limits", "per_tenant", Rate),
    ("emergency", "defer", Truth),
    ("emergency.block", "senders", List),
    ("emergency.block", "networks", List),
    ("emergency.block", "tenants", List),
    ("emergency.block", "answer", OneOf),
    ("queue", "type", OneOf),
    ("queue", "path", Made),
    ("queue", "spool", Made),
    ("queue", "max_items", Count),
    ("queue", "max_items_per_tenant", Count),
    ("queue", "held_counts", Ever),
    ("queue", "min_free", Free),
    ("queue", "max_age", Time),
    ("queue", "keep_delivered", Keep),
    ("queue", "url", Text),
    ("queue", "password_file", File),
    ("queue", "tls", OneOf),
    ("queue", "ca_file", File),
    ("queue", "require_replication", Truth),
    ("queue", "spool_on_outage", Truth),
    ("queue", "connections", Count),
    ("trace", "keep", Keep),
    ("trace", "path", Made),
    ("notify", "to", Text),
    ("notify", "from", Text),
    ("notify", "transport", Text),
    ("notify", "subject", Text),
    ("notify", "text", Text),
    ("admin", "listen", Text),
    ("admin", "socket_mode", Mode),
    ("admin", "hosts", List),
    ("admin", "token_file", File),
    ("log", "format", OneOf),
    ("log", "level", OneOf),
    ("log", "addresses", OneOf),
    ("severa", "prefix", Text),
    ("severa", "client_id", Text),
    ("severa", "client_secret_file", File),
    ("severa", "activity_type", Text),
    ("severa", "active", Truth),
    ("severa", "mode", OneOf),
    ("severa", "closed", Truth),
    ("severa", "inline_files", Truth),
    ("severa", "notes_limit", Count),
    ("severa", "settle", Time),
];

/// Wrong values of a kind, each with words of the remedy.
fn wrong(kind: Kind) -> &'static [(&'static str, &'static str)] {
    const TEXT: &[(&str, &str)] = &[("1", "text"), ("true", "text"), ("[]", "text"), ("{ a = 1 }", "text")];
    const TIME: &[(&str, &str)] = &[
        ("30", "\"30s\""),
        ("\"30\"", "write one like \"30s\""),
        ("\"10M\"", "\"10min\" for minutes"),
        ("\"soon\"", "write one like"),
        ("\"\"", "write one like"),
        ("\"0s\"", "write one like"),
        ("\"1ns\"", "at least"),
        ("true", "\"30s\""),
        ("[\"1s\"]", "\"30s\""),
    ];
    match kind {
        Text => TEXT,
        Count => &[
            ("\"50\"", "without quotes"),
            ("1.5", "a whole number"),
            ("true", "a whole number"),
            ("[]", "a whole number"),
            ("{ a = 1 }", "a whole number"),
            ("2020-01-01", "a whole number"),
            ("-1", "at least"),
            ("0", "at least"),
            ("99999999999", "at most"),
            ("99999999999999999999", "at most"),
            ("9999999999999999999999999999999999999999", "at most"),
        ],
        Size => &[
            ("50", "like \"50 MiB\""),
            ("\"50\"", "\"50 B\" for bytes"),
            ("\"big\"", "like \"50 MiB\""),
            ("\"\"", "like \"50 MiB\""),
            ("\"-1 MiB\"", "like \"50 MiB\""),
            ("\"0 B\"", "like \"50 MiB\""),
            ("\"1 B\"", "at least"),
            ("\"15 EiB\"", "at most"),
            ("true", "like \"50 MiB\""),
            ("[\"50 MiB\"]", "like \"50 MiB\""),
        ],
        Free => &[
            ("0", "\"0\""),
            ("\"50\"", "\"50 B\" for bytes"),
            ("\"much\"", "like \"50 MiB\""),
            ("\"\"", "like \"50 MiB\""),
        ],
        Keep => &[
            ("30", "\"2d\", or \"0\""),
            ("\"30\"", "write one like \"30s\""),
            ("\"10M\"", "\"10min\" for minutes"),
            ("\"soon\"", "write one like"),
            ("\"\"", "write one like"),
            ("true", "\"2d\", or \"0\""),
        ],
        Ever => TIME,
        Time => TIME,
        Truth => &[
            ("1", "true or false"),
            ("\"true\"", "true or false"),
            ("\"yes\"", "true or false"),
            ("[]", "true or false"),
            ("{ a = 1 }", "true or false"),
        ],
        OneOf => &[
            ("1", "write "),
            ("true", "write "),
            ("[]", "write "),
            ("\"nonsense\"", "nonsense"),
            ("\"\"", ""),
        ],
        File => &[
            ("1", "in quotes"),
            ("[]", "in quotes"),
            ("\"\"", "write the whole path"),
            ("\"/nonexistent/file\"", "write the file, or name another one"),
            ("\"/dev/null\"", "no regular file"),
            ("\"/\"", "no regular file"),
        ],
        Made => &[("1", "in quotes"), ("[]", "in quotes"), ("\"\"", "write the whole path")],
        Rate => &[
            ("100", "like \"100/h\""),
            ("\"100\"", "write one like"),
            ("\"0/h\"", "without the key there is none"),
            ("\"100/60\"", "write one like"),
            ("\"999999999/h\"", "from 1 to 100000"),
            ("\"1/1ms\"", "from \"1s\""),
            ("\"\"", "write one like"),
            ("true", "like \"100/h\""),
            ("[\"100/h\"]", "like \"100/h\""),
        ],
        Mode => &[
            ("660", "\"0660\""),
            ("\"0\"", "\"0660\""),
            ("\"0444\"", "\"0660\""),
            ("\"rw\"", "\"0660\""),
            ("\"1000\"", "\"0660\""),
            ("\"+660\"", "\"0660\""),
            ("\"0888\"", "\"0660\""),
            ("\"\"", "\"0660\""),
        ],
        List => {
            &[("1", "write a list"), ("true", "write a list"), ("\"a.test\"", "write a list"), ("[1]", "")]
        }
    }
}

fn root(path: &str) -> String {
    format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))
}

/// The least configuration, with what a table needs that is not in it.
fn base(table: &str) -> String {
    let directory = root("tests/directory.toml");
    match table {
        "severa" => format!(
            "integration_domains = [\"a.test\"]\n[directory]\ntype = \"severa\"\n[backend]\ntype = \"severa\"\n\
             [[severa]]\nprefix = \"mycompany\"\nclient_id = \"id\"\nclient_secret_file = \"{}\"\nactivity_type = \"E\"\n",
            secret_file().display()
        ),
        _ => {
            let needed = match table {
                "queue" => "[queue]\ntype = \"postgres\"\nurl = \"postgres://us@db.test/mail\"\n".to_owned(),
                "notify" => "[notify]\nto = \"owner\"\nfrom = \"a@x.test\"\n".to_owned(),
                "backend.oauth" => format!(
                    "[backend.oauth]\ntoken_url = \"https://id.test/\"\nclient_id = \"us\"\nclient_secret_file = \"{}\"\n",
                    secret_file().display()
                ),
                _ => String::new(),
            };
            format!(
                "integration_domains = [\"a.test\"]\n[directory]\npath = \"{directory}\"\n[backend]\n\
                 url = \"http://127.0.0.1:1/\"\n{needed}"
            )
        }
    }
}

/// A file with a secret.
fn secret_file() -> std::path::PathBuf {
    static FILE: std::sync::OnceLock<tempfile::NamedTempFile> = std::sync::OnceLock::new();
    let make = || {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "secret\n").unwrap();
        file
    };
    FILE.get_or_init(make).path().to_owned()
}

/// The base with a key set to a value, and the line where it stands.
fn with(table: &str, key: &str, value: &str) -> (String, usize) {
    let mut lines: Vec<String> = base(table).lines().map(str::to_owned).collect();
    let header = if table == "severa" { "[[severa]]".to_owned() } else { format!("[{table}]") };
    let start = match table {
        "" => 0,
        _ => match lines.iter().position(|line| *line == header) {
            Some(at) => at + 1,
            None => {
                lines.push(header);
                lines.len()
            }
        },
    };
    let end =
        lines[start..].iter().position(|line| line.starts_with('[')).map_or(lines.len(), |at| start + at);
    let new = format!("{key} = {value}");
    let at = match lines[start..end].iter().position(|line| line.starts_with(&format!("{key} = "))) {
        Some(at) => {
            lines[start + at] = new;
            start + at
        }
        None => {
            lines.insert(start, new);
            start
        }
    };
    (lines.join("\n") + "\n", at + 1)
}

fn read(text: &str) -> Result<Config, String> {
    Config::from_source(&Source::from_text(Path::new("am.toml"), text)).map_err(|error| error.to_string())
}

/// How many wrong inputs there are in this sheet, at least.
const LEAST_CASES: usize = 235;

#[test]
fn every_key_with_every_kind_of_wrong_value() {
    let (mut complaints, mut cases) = (Vec::new(), 0);
    for (table, key, kind) in KEYS {
        for (value, word) in wrong(*kind) {
            cases += 1;
            let (text, line) = with(table, key, value);
            let what = format!("[{table}] {key} = {value}");
            match read(&text) {
                Ok(_) => complaints.push(format!("{what}\n  is taken")),
                Err(error) => {
                    let place = format!("am.toml:{line}:");
                    complaints.extend(judge(&what, &error, &[&place, &format!(": {key}: "), word]));
                }
            }
        }
        // What is too long for a time that ends.
        if *kind == Time {
            cases += 1;
            let (text, line) = with(table, key, "\"5000y\"");
            let error = read(&text).err().unwrap_or_default();
            complaints.extend(judge(key, &error, &[&format!("am.toml:{line}:"), "at most"]));
        }
    }
    assert!(cases >= LEAST_CASES, "only {cases} wrong inputs");
    accept(complaints);
}

/// The keys of the sheet are those of the manual.
#[test]
fn no_key_is_left_out() {
    let page = fs::read_to_string(root("packaging/man/activity-milter.toml.5")).unwrap();
    let mut table = String::new();
    for (line, next) in page.lines().zip(page.lines().skip(1)) {
        if let Some(title) = line.strip_prefix(".SH ") {
            table = title.trim_matches('"').trim_matches(['[', ']']).to_owned();
            if table == "ABOVE ALL TABLES" {
                table.clear();
            }
        } else if let (".TP", Some(key)) = (line, next.strip_prefix(".B ")) {
            let key = key.replace("\\-", "-");
            let elsewhere = ["listen", "aliases", "policy", "socket_group"].contains(&key.as_str());
            let is_here = KEYS.iter().any(|(t, k, _)| *t == table && *k == key);
            let is_setting = table.chars().all(|c| c.is_lowercase() || c == '.') && table != "replies";
            assert!(is_here || elsewhere || !is_setting, "the sheet lacks {table}.{key}");
        }
    }
}

/// What is wrong in ways of its own: what is added to the least configuration, the line in the addition, and words.
const ADDED: &[(&str, usize, &[&str])] = &[
    // Names.
    ("[colors]", 1, &["unknown field `colors`", "there are"]),
    ("[mesage]", 1, &["did you mean `message`?"]),
    ("[milter]\nlisen = \"unix:/x\"", 2, &["unknown field `lisen`", "did you mean `listen`?"]),
    ("[milter]\nSocketMode = \"0660\"", 2, &["did you mean `socket_mode`?"]),
    ("[message]\nmax-size = \"1 MiB\"", 2, &["did you mean `max_size`?"]),
    ("[queue]\nretry_max = \"1h\"", 2, &["unknown field `retry_max`"]),
    ("[replies]\nno-sibject = \"x\"", 2, &["unknown reply `no-sibject`", "did you mean `no-subject`?"]),
    ("[message]\nmixed_recipients = \"rejct\"", 2, &["did you mean `reject`?"]),
    // What is missing, at its table.
    ("[backend.oauth]\nclient_id = \"x\"", 1, &["missing field `token_url` in [backend.oauth]"]),
    ("[notify]\nto = \"owner\"", 1, &["missing field `from` in [notify]"]),
    ("[[severa]]\nprefix = \"x\"", 1, &["missing field `client_id` in [[severa]]"]),
    ("[[policy]]", 1, &["a list", "[policy]"]),
    ("[policy]\nautomatic = [\"refuse\"]", 2, &["a list", "automatic"]),
    ("[policy]\nautomatic = \"refuse\"", 2, &["is text", "write a table"]),
    (
        "[policy]\nnever_log = [\"a@x.test\", \"no domain\"]",
        2,
        &["never_log", "\"no domain\" is no domain", "write an address"],
    ),
    ("[policy]\nnever_log = [\"@\"]", 2, &["never_log", "write an address"]),
    ("[policy]\nrequire = \"authentic\"", 2, &["did you mean `authenticated`?"]),
    ("[policy.automatic]\nauto_replied = \"refuse\"", 2, &["did you mean `auto-replied`?"]),
    ("[policy.automatic]\nreceipt = \"drop\"", 2, &["there are accept, refuse, discard"]),
    ("[policy]\nautomatic = { vacation = \"refuse\" }", 2, &["unknown field `vacation`"]),
    ("[severa]\nprefix = \"x\"", 1, &["severa: ", "write [[severa]]"]),
    // TOML.
    ("[queue]\nmax_items = 1\nmax_items = 2", 3, &["`max_items`", "second time"]),
    ("[queue]\n[queue]", 2, &["second time"]),
    ("[queue", 1, &["close it with ]"]),
    ("[queue]]", 1, &["a line of its own"]),
    ("[]", 1, &["no name"]),
    ("[queue]\n= 1", 2, &["no name"]),
    ("[queue]\nmax_items", 2, &["write key = value"]),
    ("[queue]\nmax items = 1", 2, &["write key = value"]),
    ("[queue]\nmax_items =", 2, &["max_items", "write text in quotes"]),
    ("[queue]\nmax_items = many", 2, &["max_items", "write text in quotes"]),
    ("[queue]\npath = /var/lib/x", 2, &["path", "write text in quotes"]),
    ("[queue]\npath = \"/var/lib/x", 2, &["path", "close it with \""]),
    ("[queue]\npath = '/var/lib/x", 2, &["path", "close it with '"]),
    ("[message]\nmax_size = \"5 \\q\"", 2, &["max_size", "backslash"]),
    ("[queue]\nmax_items = 01", 2, &["max_items", "does not begin with 0"]),
    ("[backend.oauth]\nscopes = [\"a\", \"b\"", 2, &["close it with ]"]),
    ("[lmtp]\nx = { a = 1", 2, &["close it with }"]),
    ("[backend.x]\nallow = yes", 2, &["write text in quotes"]),
    ("[lmtp]\nx = tru", 2, &["true or false"]),
    ("[queue] # \u{1}", 1, &["control character"]),
    // Sockets.
    ("[milter]\nlisten = \"tcp:1\"", 2, &["listen", "\"tcp:1\" is no socket: write"]),
    ("[milter]\nlisten = \"unix:milter.sock\"", 2, &["listen", "write \"unix:/path/to/socket\""]),
    ("[milter]\nlisten = \"inet:8893\"", 2, &["listen", "no IP address with port: write"]),
    ("[milter]\nlisten = \"inet:127.0.0.1:99999\"", 2, &["listen", "no IP address with port"]),
    ("[milter]\nlisten = 8893", 2, &["listen", "like \"unix:/path/to/socket\""]),
    (
        "[milter]\nlisten = \"unix:/x\"\n[lmtp]\nlisten = \"unix:/x\"",
        4,
        &["listen", "the same socket as milter.listen"],
    ),
    (
        "[milter]\nlisten = \"inet:127.0.0.1:8894\"\n[admin]\nlisten = \"127.0.0.1:8894\"",
        4,
        &["listen", "the same address as milter.listen"],
    ),
    (
        "[admin]\nlisten = \"8894\"",
        2,
        &["listen", "write \"127.0.0.1:8894\", \"unix:/path/to/socket\" or \"off\""],
    ),
    (
        "[admin]\nlisten = \"\"",
        2,
        &["listen", "write \"127.0.0.1:8894\", \"unix:/path/to/socket\" or \"off\""],
    ),
    ("[milter]\nsocket_group = \"\"", 2, &["socket_group", "write one, or remove the key"]),
    // What would lose or refuse mail.
    (
        "[message]\nrecipient_delimiter = \".\"",
        2,
        &["recipient_delimiter", "cuts project numbers", "write \"+\""],
    ),
    ("[message]\nrecipient_delimiter = \"+.\"", 2, &["recipient_delimiter", "cuts project numbers"]),
    ("[message]\nrecipient_delimiter = \"@\"", 2, &["recipient_delimiter", "write \"+\""]),
    ("[message]\nrecipient_delimiter = \"a\"", 2, &["recipient_delimiter", "write \"+\""]),
    ("[message]\nrecipient_delimiter = \" \"", 2, &["recipient_delimiter", "write \"+\""]),
    ("[message]\nrecipient_delimiter = \"å\"", 2, &["recipient_delimiter", "write \"+\""]),
    ("[message]\nmax_size = \"1023 B\"", 2, &["max_size", "at least \"1 KiB\""]),
    ("[message]\nmax_size = \"5 GiB\"", 2, &["max_size", "at most \"4 GiB\""]),
    ("[message]\nmemory_limit = \"1023 KiB\"", 2, &["memory_limit", "too small: at least"]),
    ("[queue]\nmax_items = 4294967296", 2, &["max_items", "at most 4294967295"]),
    ("[queue]\npath = \"/q\"\nspool = \"/q\"", 3, &["spool", "the first is a file"]),
    ("[queue]\ntype = \"postgres\"", 2, &["queue.url is missing", "write url = "]),
    ("[queue]\ntype = \"postgres\"\nurl = \"db1\"", 3, &["no URL of a PostgreSQL server", "write it as"]),
    (
        "[queue]\ntype = \"postgres\"\nurl = \"postgres://us:secret@db.test/mail\"",
        3,
        &["the password stands in the URL", "queue.password_file"],
    ),
    (
        "[queue]\ntype = \"postgres\"\nurl = \"postgres://us@db.test/mail?sslmode=disable\"",
        3,
        &["set queue.tls"],
    ),
    (
        "[queue]\ntype = \"postgres\"\nurl = \"postgres://us@%2Frun/mail\"\ntls = \"on\"",
        4,
        &["speaks no TLS", "write \"off\""],
    ),
    (
        "[replies]\nno-subject = \"<{adress}>: no\"",
        2,
        &["no-subject", "nothing stands for {adress}: there is {address}"],
    ),
    ("[replies]\nno-subject = \"{detail}\"", 2, &["no-subject", "nothing stands for {detail}"]),
    ("[replies]\nbackend-refused = \"{detial}\"", 2, &["backend-refused", "{address} and {detail}"]),
    (
        "[replies]\nno-subject = \"550 5.6.0 no {address\"",
        2,
        &["no-subject", "the brace before \"address\" is not closed: write {address}"],
    ),
    ("[replies]\nno-subject = \"{address {address}\"", 2, &["no-subject", "is not closed"]),
    ("[replies]\nhelp = \"see {address}\"", 2, &["help", "this text has none"]),
    ("[replies]\nno-subject = \"ä\"", 2, &["no-subject", "printable ASCII"]),
    ("[replies]\nno-subject = \"\"", 2, &["no-subject", "empty"]),
    ("[replies]\nno-subject = 1", 2, &["no-subject", "in quotes"]),
    ("[notify]\nto = \"me\"\nfrom = \"a@x.test\"", 2, &["to", "write \"owner\""]),
    ("[notify]\nto = \"owner\"\nfrom = \"me\"", 3, &["from", "write one like"]),
    (
        "[notify]\nto = \"owner\"\nfrom = \"a@x.test\"\ntransport = \"uucp\"",
        4,
        &["transport", "write \"sendmail\""],
    ),
    (
        "[notify]\nto = \"owner\"\nfrom = \"a@x.test\"\ntransport = \"smtp:host\"",
        4,
        &["transport", "write \"sendmail\""],
    ),
    (
        "[notify]\nto = \"owner\"\nfrom = \"a@x.test\"\ntransport = \"smtp://host:25\"",
        4,
        &["transport", "is no way for mail: write"],
    ),
    (
        "[notify]\nto = \"owner\"\nfrom = \"a@x.test\"\ntransport = \"smtp:host:0\"",
        4,
        &["transport", "nobody listens on port 0"],
    ),
    ("[notify]\nto = \"owner\"\nfrom = \"a@x.test\"\ntext = \"{list} {lis\"", 4, &["text", "is not closed"]),
    ("[notify]\nto = \"owner\"\nfrom = \"a@x.test\"\ntext = \"x\"", 4, &["text", "write {list}"]),
    (
        "[notify]\nto = \"owner\"\nfrom = \"a@x.test\"\ntext = \"{list} {name}\"",
        4,
        &["text", "nothing stands for {name}"],
    ),
    (
        "[notify]\nto = \"owner\"\nfrom = \"a@x.test\"\nsubject = \"{list}\"",
        4,
        &["subject", "nothing stands for {list}"],
    ),
    ("[notify]\nto = \"owner\"\nfrom = \"a@x.test\"\nsubject = \"\"", 4, &["subject", "write one"]),
    (
        "[notify]\nto = \"owner\"\nfrom = \"a@x.test\"\nsubject = \"a\\r\\nBcc: b@x.test\"",
        4,
        &["subject", "control character"],
    ),
    (
        "[[severa]]\nprefix = \"a\"\nclient_id = \"b\"\nclient_secret_file = \"/x\"\nactivity_type = \"E\"",
        1,
        &["backend.type = \"severa\""],
    ),
];

/// Both sides of the longest path that a socket may have.
#[test]
fn the_path_of_a_socket_has_its_length() {
    let path = |bytes: usize| format!("\"unix:/{}\"", "x".repeat(bytes - 1));
    for table in ["milter", "lmtp"] {
        read(&with(table, "listen", &path(107)).0).unwrap();
        let (text, line) = with(table, "listen", &path(108));
        let error = read(&text).err().unwrap_or_default();
        let words = [&format!("am.toml:{line}:"), "listen: ", "108 bytes", "at most 107"];
        accept(judge(table, &error, &words));
    }
}

#[test]
fn what_is_wrong_in_ways_of_its_own() {
    let mut complaints = Vec::new();
    let base = base("");
    let before = base.lines().count();
    for (added, line, words) in ADDED {
        match read(&format!("{base}{added}\n")) {
            Ok(_) => complaints.push(format!("{added}\n  is taken")),
            Err(error) => {
                let place = format!("am.toml:{}:", before + line);
                complaints.extend(judge(added, &error, &[&[place.as_str()], *words].concat()));
            }
        }
    }
    accept(complaints);
}

/// What is changed in the least configuration, the line, and words.
const CHANGED: &[(&str, &str, usize, &[&str])] = &[
    ("a.test", "a test", 1, &["integration_domains", "is no domain"]),
    ("a.test", "", 1, &["integration_domains", "is no domain"]),
    ("[\"a.test\"]", "[]", 1, &["integration_domains", "like [\"severamail.com\"]"]),
    ("integration_domains = [\"a.test\"]\n", "", 1, &["missing field `integration_domains`"]),
    ("url = \"http://127.0.0.1:1/\"\n", "", 4, &["backend.url is missing: write"]),
    ("http://127.0.0.1:1/", "crm", 5, &["url", "is no URL: write one like"]),
    ("http://127.0.0.1:1/", "", 5, &["url", "is no URL: write one like"]),
    ("http://127.0.0.1:1/", "ftp://crm.test/", 5, &["url", "is no URL: write one like"]),
    ("http://127.0.0.1:1/", "https://crm.test:0/", 5, &["url", "write the port"]),
    ("http://127.0.0.1:1/", "http://crm.test/", 5, &["url", "write https"]),
    ("http://127.0.0.1:1/", "https://us:secret@crm.test/", 5, &["url", "use backend.token_file"]),
    ("http://127.0.0.1:1/", "https://us@crm.test/", 5, &["url", "use backend.token_file"]),
    ("http://127.0.0.1:1/", "us:secret@crm.test", 5, &["url", "write one like"]),
    ("http://127.0.0.1:1/", "https://crm.test/?a=b", 5, &["url", "/v1/... is appended"]),
    ("http://127.0.0.1:1/", "https://crm.test/#a", 5, &["url", "/v1/... is appended"]),
    (
        "url =",
        "retry_first = \"1h\"\nurl =",
        5,
        &["retry_first (1h) is longer than backend.retry_max (10min)"],
    ),
    ("url =", "retry_max = \"500ms\"\nurl =", 5, &["retry_max: backend.retry_first (1s) is longer"]),
    (
        "url =",
        "retry_first = \"2h\"\nretry_max = \"1h\"\nurl =",
        5,
        &["retry_first", "write a shorter first"],
    ),
    ("url =", "timeout = \"99ms\"\nurl =", 5, &["timeout", "at least \"100ms\""]),
    ("url =", "delivery = \"direct\"\ntimeout = \"51s\"\nurl =", 6, &["timeout", "at most 50s"]),
    ("url =", "ca_file = \"LICENSE\"\nurl =", 5, &["ca_file", "holds no certificate in PEM form"]),
    ("url =", "client_key_file = \"LICENSE\"\nurl =", 5, &["client_key_file", "come together"]),
    (
        "url =",
        "client_certificate_file = \"LICENSE\"\nclient_key_file = \"LICENSE\"\nurl =",
        5,
        &["client_certificate_file", "LICENSE holds no certificate in PEM form"],
    ),
    ("url =", "signing_secret_file = \"LICENSE\"\nurl =", 5, &["signing_secret_file"]),
    ("url =", "proxy = \"squid\"\nurl =", 5, &["proxy", "is no URL"]),
    ("url =", "proxy = \"socks5://us:secret@x/\"\nurl =", 5, &["proxy", "this is no URL"]),
    ("path = ", "type = \"http\"\npath = ", 4, &["path", "reads no file"]),
    ("path = ", "#", 2, &["directory.path is missing: name the directory file"]),
    (
        "[directory]",
        "[directory]\ntype = \"severa\"",
        3,
        &["type", "Severa is backend and directory together"],
    ),
    ("[backend]", "[backend]\ntype = \"severa\"", 5, &["type", "Severa is backend and directory together"]),
];

#[test]
fn what_is_changed_for_the_worse() {
    let mut complaints = Vec::new();
    for (from, to, line, words) in CHANGED {
        let text = base("");
        assert!(text.contains(from), "{from}");
        match read(&text.replacen(from, to, 1)) {
            Ok(_) => complaints.push(format!("{to}\n  is taken")),
            Err(error) => {
                let place = format!("am.toml:{line}:");
                let what = format!("{from} -> {to}");
                complaints.extend(judge(&what, &error, &[&[place.as_str()], *words].concat()));
                assert!(!error.contains("secret@") && !error.contains(":secret"), "{error}");
            }
        }
    }
    accept(complaints);
}

/// What is taken, and said to be doubtful: table, key, value, words.
const DOUBTFUL: &[(&str, &str, &str, &[&str])] = &[
    ("message", "max_size", "\"99 KiB\"", &["nearly every message with a file", "at least \"100 KiB\""]),
    ("message", "patience", "\"9s\"", &["stands still for so long", "at least \"10s\""]),
    ("message", "recipient_delimiter", "\"-\"", &["cuts integration addresses", "write \"+\""]),
    ("message", "recipient_delimiter", "\"+_\"", &["cuts integration addresses"]),
    ("milter", "socket_mode", "\"0600\"", &["Postfix has its own", "write \"0660\""]),
    ("milter", "socket_mode", "\"0666\"", &["everybody on this machine"]),
    ("directory", "poll", "\"2h\"", &["mail of new people is refused", "at most \"1h\""]),
    ("directory", "cache_hits", "\"2d\"", &["counts as a user"]),
    ("directory", "cache_misses", "\"2h\"", &["mail of new people is refused"]),
    ("directory", "path", "\"tests/directory.toml\"", &["is relative, and taken as", "write the whole path"]),
    ("backend", "timeout", "\"999ms\"", &["the activity is sent again", "at least \"1s\""]),
    ("backend", "retry_max", "\"2d\"", &["activities wait so long", "at most \"1d\""]),
    ("backend", "retry_max", "\"5d\"", &["may be held before it is tried again"]),
    (
        "backend",
        "url",
        "\"https://crm.test/v1\"",
        &["requests go to https://crm.test/v1/v1/activities", "leave out /v1"],
    ),
    (
        "backend",
        "url",
        "\"https://crm.test/api/v1/\"",
        &["requests go to https://crm.test/api/v1/v1/activities"],
    ),
    ("backend", "url", "\"https://crm.test/v1/activities\"", &["leave out /v1/activities"]),
    ("backend", "proxy", "\"http://us:secret@proxy.test:3128\"", &["password"]),
    ("queue", "max_items", "99", &["answered 452", "at least 100"]),
    ("queue", "max_items_per_tenant", "1000001", &["never reached"]),
    ("queue", "max_age", "\"59min\"", &["a person must retry it"]),
    ("queue", "path", "\"queue.db\"", &["is relative"]),
    ("queue", "spool", "\"spool\"", &["is relative"]),
    ("queue", "tls", "\"off\"", &["read and changed on the way", "write \"on\""]),
    ("queue", "connections", "1", &["one message waits", "at least 2"]),
    ("", "integration_domains", "[\"a.test\", \"A.test\"]", &["is there twice: remove one"]),
];

#[test]
fn what_is_doubtful_is_said_at_its_place() {
    let mut complaints = Vec::new();
    for (table, key, value, words) in DOUBTFUL {
        let (text, line) = with(table, key, value);
        let what = format!("[{table}] {key} = {value}");
        let config = read(&text).unwrap_or_else(|error| panic!("{what}: {error}"));
        let place = format!("am.toml:{line}:");
        let said = config.warnings.iter().find(|warning| words.iter().all(|word| warning.contains(word)));
        match said {
            None => complaints.push(format!("{what}\n  no warning has {words:?}: {:?}", config.warnings)),
            Some(said) => complaints.extend(judge(&what, said, &[&place, key])),
        }
        assert!(!config.warnings.iter().any(|warning| warning.contains("secret@")), "{:?}", config.warnings);
    }
    accept(complaints);
}

/// What is said of a server counts where the queue is on one.
#[test]
fn a_server_without_its_type_is_doubtful() {
    let (text, line) = with("queue", "type", "\"sqlite\"");
    let config = read(&text).unwrap();
    assert!(config.queue.server.is_none());
    let place = format!("am.toml:{}:", line + 1);
    let words = [place.as_str(), "queue.url counts only with queue.type = \"postgres\""];
    accept(judge("queue.url", &config.warnings.join("\n"), &words));
}

/// The other side of each limit: taken, and nothing is said.
const GOOD: &[(&str, &str, &str)] = &[
    ("message", "max_size", "\"100 KiB\""),
    ("message", "max_size", "\"4 GiB\""),
    ("message", "recipient_delimiter", "\"+\""),
    ("message", "recipient_delimiter", "\"\""),
    ("message", "max_recipients", "1"),
    ("message", "max_people", "100000"),
    ("milter", "socket_mode", "\"0660\""),
    ("milter", "socket_mode", "\"770\""),
    ("milter", "max_sessions", "1000000"),
    ("milter", "idle_when_full", "\"1s\""),
    ("message", "patience", "\"10s\""),
    ("message", "patience", "\"1h\""),
    ("directory", "poll", "\"1h\""),
    ("directory", "full_pass", "\"1min\""),
    ("directory", "cache_hits", "\"1d\""),
    ("directory", "cache_misses", "\"1h\""),
    ("directory", "cache_stale", "\"5000y\""),
    ("directory", "cache_size", "\"64 KiB\""),
    ("backend", "timeout", "\"1s\""),
    ("backend", "timeout", "\"1h\""),
    ("backend", "max_in_flight", "10000"),
    ("backend", "retry_max", "\"1d\""),
    ("backend", "retry_max", "\"1s\""),
    ("backend", "url", "\"https://crm.test/v1api\""),
    ("backend", "url", "\"https://v1.crm.test/api\""),
    ("queue", "max_items", "100"),
    ("queue", "max_items", "4294967295"),
    ("queue", "max_items_per_tenant", "1000000"),
    ("queue", "max_age", "\"1h\""),
    ("queue", "url", "\"postgres://us@db1.test:5433,db2.test/mail\""),
    ("queue", "url", "\"postgres://us@%2Frun%2Fpostgresql/mail\""),
    ("queue", "tls", "\"on\""),
    ("queue", "require_replication", "true"),
    ("queue", "connections", "1000"),
    ("queue", "max_age", "\"365d\""),
    ("queue", "held_counts", "\"5000y\""),
    ("queue", "min_free", "\"0\""),
    ("queue", "keep_delivered", "\"0\""),
    ("trace", "keep", "\"0\""),
    ("trace", "keep", "\"365d\""),
    ("admin", "listen", "\"unix:/run/activity-milter/admin.sock\""),
    ("admin", "hosts", "[\"status.example.com\"]"),
    ("queue", "min_free", "\"1 EiB\""),
    ("replies", "no-subject", "\"{address}: 100% {\""),
    ("replies", "no-subject", "\"{ {address} }\""),
    ("notify", "transport", "\"smtp:[::1]:2525\""),
    ("notify", "transport", "\"sendmail:/bin/true\""),
    ("replies", "backend-refused", "\"{address}: {detail}\""),
    ("severa", "notes_limit", "500"),
    ("severa", "settle", "\"1h\""),
];

#[test]
fn the_other_side_of_each_limit_is_taken() {
    for (table, key, value) in GOOD {
        let config =
            read(&with(table, key, value).0).unwrap_or_else(|error| panic!("{key} = {value}: {error}"));
        assert!(config.warnings.is_empty(), "{key} = {value}: {:?}", config.warnings);
    }
}

/// Files that hold no secret, whichever key names them.
#[test]
fn files_with_secrets() {
    let directory = tempfile::tempdir().unwrap();
    let mut complaints = Vec::new();
    for (table, key) in [
        ("backend", "token_file"),
        ("backend", "signing_secret_file"),
        ("backend.oauth", "client_secret_file"),
        ("admin", "token_file"),
        ("queue", "password_file"),
        ("severa", "client_secret_file"),
    ] {
        for (at, content) in ["", "\n\n", "two words\n", "å\n", "tab\there\n"].iter().enumerate() {
            let path = directory.path().join(format!("secret-{at}"));
            fs::write(&path, content).unwrap();
            let (text, line) = with(table, key, &format!("\"{}\"", path.display()));
            let error = read(&text).err().unwrap_or_default();
            let words =
                [&format!("am.toml:{line}:"), key, "holds no secret in its first line: write it there"];
            complaints.extend(judge(&format!("{table}.{key} {content:?}"), &error, &words));
        }
    }
    let (text, line) = with("backend", "signing_secret_file", &format!("\"{}\"", secret_file().display()));
    let error = read(&text).err().unwrap_or_default();
    complaints.extend(judge(
        "no whsec_",
        &error,
        &[&format!("am.toml:{line}:"), "signing_secret_file", "whsec_"],
    ));
    accept(complaints);
}

/// Files that are no text.
#[test]
fn files_that_are_no_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let good = base("").into_bytes();
    let crlf = base("").replace('\n', "\r\n").into_bytes();
    let bom = [b"\xef\xbb\xbf".to_vec(), good.clone()].concat();
    for (name, bytes) in [("good", &good), ("crlf", &crlf), ("bom", &bom)] {
        Config::read(&file(name, bytes)).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let latin = [good.clone(), b"[replies]\nhelp = \"\xe4\"\n".to_vec()].concat();
    let cr = base("").replace('\n', "\r").into_bytes();
    let mut complaints = Vec::new();
    for (path, words) in [
        (file("latin", &latin), &["latin:7: ", "not UTF-8", "save the file as UTF-8"][..]),
        (file("mac", &cr), &["mac:1:", "Unix line ends"]),
        (file("empty", b""), &["empty:1:1: ", "integration_domains"]),
        (file("zeros", b"\0\0\0"), &["zeros:1:"]),
        (directory.path().to_owned(), &["cannot be read", "name a file"]),
        (directory.path().join("none"), &["none: cannot be read", "write the file, or name another one"]),
        (file("f", b"").join("x"), &["cannot be read", "a part of its path is a file"]),
    ] {
        let error = Config::read(&path).unwrap_err().to_string();
        complaints.extend(judge(&path.display().to_string(), &error, words));
    }
    accept(complaints);
}
