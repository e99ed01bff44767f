//! The configuration: odd forms of what is wrong. Lists for tables, URLs that a library would take, units, files that are no
//! files; each with the place and the remedy.

use super::{accept, judge};
use activity_milter::{config::Config, source::Source};
use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

const PROGRAM: &str = env!("CARGO_BIN_EXE_activity-milter");

/// The least configuration; what is tried stands in its fourth line, in `[backend]`, or behind it.
fn least(url: &str) -> String {
    let directory = format!("{}/tests/directory.toml", env!("CARGO_MANIFEST_DIR"));
    format!("integration_domains = [\"a.test\"]\ndirectory.path = \"{directory}\"\n[backend]\nurl = {url}\n")
}

fn read(text: &str) -> Result<Config, String> {
    Config::from_source(&Source::from_text(Path::new("am.toml"), text)).map_err(|error| error.to_string())
}

/// Each of them must be refused at a line, with words.
fn refused(cases: impl IntoIterator<Item = (String, usize, Vec<String>)>) {
    let mut complaints = Vec::new();
    for (text, line, words) in cases {
        match read(&text) {
            Ok(_) => complaints.push(format!("{text}\n  is taken")),
            Err(error) => {
                let place = format!("am.toml:{line}:");
                let words: Vec<&str> =
                    std::iter::once(place.as_str()).chain(words.iter().map(String::as_str)).collect();
                complaints.extend(judge(&text, &error, &words));
            }
        }
    }
    accept(complaints);
}

const TABLES: &[&str] =
    &["milter", "lmtp", "message", "replies", "backend.oauth", "admin", "queue", "trace", "notify", "log"];

#[test]
fn a_list_is_no_table() {
    let url = "\"https://crm.test/\"";
    let mut cases = Vec::new();
    for table in TABLES {
        let text = least(url);
        let words = |form: &str| vec![format!("{form} is there as a list: write [{form}] once")];
        let behind = text.lines().count() + 1;
        cases.push((format!("{text}[[{table}]]\n"), behind, words(table)));
        cases.push((format!("{text}[[{table}]]\nx = 1\n"), behind, words(table)));
        if !table.contains('.') {
            for list in ["[]", "[\"1 MiB\"]", "[1, 2]", "[{ keep = \"1d\" }]"] {
                cases.push((format!("{table} = {list}\n{text}"), 1, words(table)));
            }
        } else {
            cases.push((format!("{text}oauth = [\"https://id.test/\", \"us\"]\n"), behind, words(table)));
        }
    }
    let whole = |table: &str| vec![format!("write [{table}] once")];
    cases.push((
        "backend = [\"http\"]\nintegration_domains = [\"a.test\"]\n".to_owned(),
        1,
        whole("backend"),
    ));
    cases.push(("directory = [\"file\", \"/x\"]\n".to_owned(), 1, whole("directory")));
    cases.push((
        "severa = [[\"a\", \"id\", \"/x\", \"E\"]]\n".to_owned() + &least(url),
        1,
        vec!["write [[severa]]".to_owned()],
    ));
    assert!(cases.len() >= 60, "{}", cases.len());
    refused(cases);
}

/// What is no URL as people read it, with what must be said of it.
const URLS: &[(&str, &str)] = &[
    ("", "is no URL"),
    (" ", "is no URL"),
    ("crm.example.com", "\"crm.example.com\" is no URL: write one like \"https://"),
    ("crm.example.com:443/api", "is no URL"),
    ("//crm.test/", "is no URL"),
    ("/api", "is no URL"),
    ("https", "is no URL"),
    ("https:", "is no URL"),
    ("https://", "is no URL"),
    ("https:///crm.test/", "is no URL"),
    ("https:////crm.test/", "is no URL"),
    ("https:crm.test", "is no URL"),
    ("https:/crm.test", "is no URL"),
    ("https:\\\\\\\\crm.test", "is no URL"),
    (" https://crm.test/", "is no URL"),
    ("https://crm.test/ ", "is no URL"),
    ("https://crm .test/", "is no URL"),
    ("https://crm.test/a b", "is no URL"),
    ("https://crm.test/\\t", "is no URL"),
    ("https://crm.test/\\n", "is no URL"),
    ("https://crm.test\\\\api", "is no URL"),
    ("https://crm.test/{tenant}", "is no URL"),
    ("https://<crm.test>/", "is no URL"),
    ("<https://crm.test/>", "is no URL"),
    ("\\\"https://crm.test/\\\"", "is no URL"),
    ("https://crm.test:99999/", "is no URL"),
    ("https://crm.test:-1/", "is no URL"),
    ("https://crm.test:port/", "is no URL"),
    ("https://crm.test:0/", "nobody listens on port 0"),
    ("https://[::1/", "is no URL"),
    ("https://[fe80::1%25eth0]/", "is no URL"),
    ("https://256.256.256.256/", "is no URL"),
    ("https://xn--a.test:x/", "is no URL"),
    ("ftp://crm.test/", "is no URL"),
    ("file:///etc/passwd", "is no URL"),
    ("unix:/run/crm.sock", "is no URL"),
    ("mailto:crm@crm.test", "this is no URL"),
    ("ws://crm.test/", "is no URL"),
    ("http://crm.test/", "write https"),
    ("http://localhost.crm.test/", "write https"),
    ("http://0.0.0.0/", "write https"),
    ("http://10.0.0.1/", "write https"),
    ("http://[2001:db8::1]/", "write https"),
    ("https://us:hunter2@crm.test/", "use backend.token_file"),
    ("https://us@crm.test/", "use backend.token_file"),
    ("https://:hunter2@crm.test/", "use backend.token_file"),
    ("https://us%40x:hunter2@crm.test/", "use backend.token_file"),
    ("https:us:hunter2@crm.test/", "this is no URL"),
    ("https:\\\\\\\\us:hunter2@crm.test/", "this is no URL"),
    ("https://us:hunter2@crm.test:0x/", "this is no URL"),
    ("https://us:hunt er2@crm.test/", "this is no URL"),
    ("https://crm.test/?key=1", "no query and no fragment"),
    ("https://crm.test/?", "no query and no fragment"),
    ("https://crm.test/#top", "no query and no fragment"),
];

#[test]
fn what_only_a_library_takes_for_a_url() {
    let case = |(url, words): &(&str, &str)| {
        (least(&format!("\"{url}\"")), 4, vec!["url: ".to_owned(), (*words).to_owned()])
    };
    refused(URLS.iter().map(case));
    for (url, _) in URLS {
        let error = read(&least(&format!("\"{url}\""))).unwrap_err();
        assert!(!error.contains("hunter2") && !error.contains("hunt er2"), "{error}");
    }
    for good in [
        "https://crm.test",
        "https://crm.test:8443/api/",
        "https://[::1]:8443/",
        "http://localhost:8080/",
        "http://127.0.0.2/",
        "HTTPS://CRM.test/",
        "https://räksmörgås.test/",
        "https://crm.test/a%20b",
    ] {
        read(&least(&format!("\"{good}\""))).unwrap_or_else(|error| panic!("{good}: {error}"));
    }
    // A proxy and a token's URL are read in the same way.
    for (key, value) in [
        ("proxy", "http:us:hunter2@px.test:3128"),
        ("proxy", "http:\\\\\\\\us:hunter2@px.test"),
        ("proxy", "px.test:3128"),
        ("proxy", "socks5://px.test"),
        ("oauth.token_url", "https:/id.test/"),
        ("oauth.token_url", "id.test"),
    ] {
        let oauth = "oauth.client_id = \"us\"\noauth.client_secret_file = \"/etc/hostname\"\n";
        let oauth = if key.starts_with("oauth") { oauth } else { "" };
        let text = format!("{}{key} = \"{value}\"\n{oauth}", least("\"https://crm.test/\""));
        let error = read(&text).unwrap_err();
        let words = ["am.toml:5:", "is no URL: write one like"];
        accept(judge(&format!("{key} = {value}"), &error, &words));
        assert!(!error.contains("hunter2"), "{error}");
    }
}

/// What is no domain of anybody's, with words.
#[test]
fn integration_domains_that_are_none() {
    let long = |bytes: usize| {
        let domain = "a234567890.".repeat(30);
        domain[..bytes - 5].trim_end_matches('.').to_owned()
            + &"z".repeat(bytes - 5 - domain[..bytes - 5].trim_end_matches('.').len())
            + ".test"
    };
    let text = |domain: &str| {
        least("\"https://crm.test/\"").replace("\"a.test\"", &format!("\"a.test\", \"{domain}\""))
    };
    let (fits, too_long) = (long(253), long(254));
    assert_eq!((fits.len(), too_long.len()), (253, 254));
    refused(
        [
            ("1.2.3.4", "is an address of a network, and no domain"),
            ("[127.0.0.1]", "is an address of a network, and no domain"),
            ("[IPv6:::1]", "is an address of a network, and no domain"),
            ("a.test.7", "is an address of a network, and no domain"),
            ("0x7f.1", "is an address of a network, and no domain"),
            ("::1", "is no domain"),
            ("a b.test", "is no domain"),
            ("a..test", "is no domain"),
            ("@a.test", "is no domain"),
            ("", "is no domain"),
            (too_long.as_str(), "the domain has 254 bytes, and one has at most 253"),
        ]
        .map(|(domain, words)| (text(domain), 1, vec!["integration_domains: ".to_owned(), words.to_owned()])),
    );
    for good in ["b.test", "b.test.", "1.test", "4.3.2.1.in-addr.arpa", "räksmörgås.test", "localhost", &fits]
    {
        read(&text(good)).unwrap_or_else(|error| panic!("{good}: {error}"));
    }
}

/// Which of the two files of a client's certificate lacks what.
#[test]
fn certificates_and_keys_that_are_none() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name).display().to_string();
    let pem = |name: &str, label: &str| {
        fs::write(at(name), format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n")).unwrap();
    };
    pem("certificate", "CERTIFICATE");
    pem("key", "PRIVATE KEY");
    pem("encrypted", "ENCRYPTED PRIVATE KEY");
    let case = |(certificate, key, words): (&str, &str, String)| {
        let (certificate, key) = (at(certificate), at(key));
        let files = format!("client_certificate_file = \"{certificate}\"\nclient_key_file = \"{key}\"\n");
        (least("\"https://crm.test/\"") + &files, 5, vec!["client_certificate_file: ".to_owned(), words])
    };
    refused(
        [
            ("key", "key", format!("{} holds no certificate in PEM form", at("key"))),
            ("certificate", "certificate", format!("{} holds no private key in PEM form", at("certificate"))),
            ("certificate", "encrypted", format!("{} is encrypted", at("encrypted"))),
        ]
        .map(case),
    );
}

/// Notices that no program takes: said, and no reason not to start.
#[test]
fn a_sendmail_that_is_none_is_doubtful() {
    let scratch = tempfile::tempdir().unwrap();
    let plain = scratch.path().join("plain");
    fs::write(&plain, "").unwrap();
    for (program, is_doubtful) in
        [("/nonexistent", true), ("/tmp", true), (plain.to_str().unwrap(), true), ("/bin/sh", false)]
    {
        let notify =
            format!("[notify]\nto = \"owner\"\nfrom = \"a@x.test\"\ntransport = \"sendmail:{program}\"\n");
        let config = read(&(least("\"https://crm.test/\"") + &notify)).unwrap();
        let words = format!("am.toml:8:13: transport: {program} is no program that can be started");
        let said = config.warnings.iter().any(|warning| warning.starts_with(&words));
        assert_eq!(said, is_doubtful, "{program}: {:?}", config.warnings);
    }
}

/// Table, key, value, words: units in other writing, numbers in odd forms, texts.
const VALUES: &[(&str, &str, &str, &str)] = &[
    ("trace", "keep", "\"1us\"", "at least \"1s\", or \"0\" for not at all"),
    ("trace", "keep", "\"999ms\"", "at least \"1s\""),
    (
        "trace",
        "keep",
        "\"00\"",
        "is no time span: write one like \"30s\", \"10min\" or \"5d\", or \"0\" for not at all",
    ),
    ("queue", "keep_delivered", "\"off\"", "or \"0\" for not at all"),
    ("queue", "held_counts", "\"0\"", "is no time span: write one like \"30s\""),
    ("queue", "max_age", "\"0\"", "is no time span: write one like \"30s\""),
    ("trace", "keep", "\"7D\"", "write one like"),
    ("trace", "keep", "\"1W\"", "write one like"),
    ("trace", "keep", "\"-1d\"", "write one like"),
    ("trace", "keep", "\"P7D\"", "write one like"),
    ("trace", "keep", "\"nan\"", "write one like"),
    ("trace", "keep", "\"for ever\"", "write one like"),
    ("trace", "keep", "nan", "write text like"),
    ("trace", "keep", "07:00:00", "write text like"),
    ("queue", "keep_delivered", "\"1ms\"", "at least \"1s\""),
    ("queue", "keep_delivered", "\"2M\"", "would be months"),
    ("queue", "max_age", "\"5 D\"", "write one like"),
    ("queue", "max_age", "\"1,5d\"", "write one like"),
    ("queue", "max_age", "inf", "write text like"),
    (
        "queue",
        "path",
        "\"~/queue.db\"",
        "nothing is put in the place of variables here: write the whole path",
    ),
    ("queue", "spool", "\"$HOME/spool\"", "nothing is put in the place of variables"),
    ("admin", "token_file", "\"%d/token\"", "/run/credentials/activity-milter.service/NAME"),
    (
        "admin",
        "token_file",
        "\"${CREDENTIALS_DIRECTORY}/token\"",
        "/run/credentials/activity-milter.service/NAME",
    ),
    ("queue", "max_items", "nan", "a whole number"),
    ("queue", "max_items", "-inf", "a whole number"),
    ("queue", "max_items", "1e6", "a whole number"),
    ("queue", "max_items", "0b0", "at least 1"),
    ("queue", "max_items", "-0x1", "written with digits alone"),
    ("queue", "max_items", "1 000", "this is no value"),
    ("queue", "min_free", "\"10%\"", "write one like"),
    ("queue", "min_free", "\"-0\"", "write one like"),
    ("message", "max_size", "\"50 megabytes\"", "write one like"),
    ("message", "max_size", "\"50,5 MiB\"", "write one like"),
    ("message", "max_size", "\"nan MiB\"", "write one like"),
    ("message", "max_size", "\"inf MiB\"", "write one like"),
    ("message", "max_size", "\"1e3 MiB\"", "write one like"),
    ("message", "max_size", "\"MiB\"", "write one like"),
    ("message", "max_size", "\"50MiB50\"", "write one like"),
    ("message", "max_size", "\"٥٠ MiB\"", "write one like"),
    ("message", "max_people", "+inf", "a whole number"),
    ("message", "mixed_recipients", "\"Reject\"", "did you mean `reject`?"),
    ("message", "recipient_delimiter", "\"\\t\"", "write \"+\""),
    ("message", "recipient_delimiter", "\"é\"", "('é'): write \"+\""),
    ("milter", "socket_mode", "\"0o660\"", "\"0660\""),
    ("milter", "socket_mode", "\"u=rw\"", "\"0660\""),
    ("milter", "socket_mode", "0o660", "\"0660\""),
    ("milter", "socket_mode", "\"7777\"", "\"0660\""),
    ("milter", "listen", "\"UNIX:/x\"", "listen"),
    ("milter", "listen", "\"unix:\"", "listen"),
    ("milter", "listen", "\"inet:127.0.0.1\"", "no IP address with port"),
    ("milter", "listen", "\"inet:8893@127.0.0.1\"", "no IP address with port"),
    ("milter", "listen", "\"127.0.0.1:8893\"", "is no socket: write"),
    ("log", "level", "\"warning\"", "write error, warn, info"),
    ("log", "level", "\"verbose\"", "write error, warn, info"),
    ("log", "level", "3", "like \"info\""),
    ("log", "format", "\"JSON\"", "did you mean `json`?"),
    ("log", "format", "\"journald\"", "there are auto, text, json"),
    ("log", "addresses", "\"Full\"", "did you mean `full`?"),
    ("replies", "no-subject", "\"ä\"", "this text has 'ä': leave it out"),
    ("replies", "no-subject", "\"a\\u0007\"", "this text has 'U+0007': leave it out"),
    ("replies", "no-subject", "\"\"", "write one, or remove the key"),
    ("replies", "NO-SUBJECT", "\"x\"", "did you mean `no-subject`?"),
    ("replies", "no_subject", "\"x\"", "did you mean `no-subject`?"),
    ("admin", "listen", "\"0.0.0.0\"", "write \"127.0.0.1:8894\""),
    ("admin", "listen", "\"OFF\"", "write \"127.0.0.1:8894\""),
    ("admin", "listen", "false", "write"),
];

#[test]
fn odd_writings_of_values() {
    let case = |(table, key, value, words): &(&str, &str, &str, &str)| {
        let text = least("\"https://crm.test/\"");
        let line = text.lines().count() + 2;
        (format!("{text}[{table}]\n{key} = {value}\n"), line, vec![(*key).to_owned(), (*words).to_owned()])
    };
    refused(VALUES.iter().map(case));
    // The other side.
    for (table, key, value) in
        [("trace", "keep", "1s"), ("queue", "keep_delivered", "1s"), ("trace", "keep", "0d")]
    {
        let text = format!("{}[{table}]\n{key} = \"{value}\"\n", least("\"https://crm.test/\""));
        read(&text).unwrap_or_else(|error| panic!("{key} = {value}: {error}"));
    }
}

/// What stands in one line and is no TOML: the line, and words. The key is named wherever there is one.
const NO_TOML: &[(&str, &str)] = &[
    ("timeout = info", "timeout: this is no value: write text in quotes"),
    ("timeout = none", "timeout: this is no value: write text in quotes"),
    ("timeout = null", "timeout: this is no value: write text in quotes"),
    ("timeout = 1.2.3.4", "timeout: this is no value: write text in quotes"),
    ("timeout = 1__0", "timeout: this is no number: write its digits alone"),
    ("timeout = 0X10", "timeout: this is no number: write its digits alone"),
    ("timeout = 0d10", "timeout: this is no number: write its digits alone"),
    ("timeout = 0xfg", "timeout: this is no number: write its digits alone"),
    ("timeout = ++1", "timeout: this is no number: write its digits alone"),
    ("timeout = .5", "timeout: this is no number: write its digits alone"),
    ("timeout = 1.", "timeout: this is no number: write its digits alone"),
    ("timeout = 1e", "timeout: this is no number: write its digits alone"),
    ("timeout == 1", "there is one = too many: write key = value"),
    ("timeout = [= 1]", "there is one = too many: write key = value"),
    ("timeout = { a == 1 }", "there is one = too many"),
    ("timeout = [,]", "there is a comma without a value before it: remove it"),
    ("timeout = { a = 1,, b = 2 }", "there is a comma without a value before it: remove it"),
    ("timeout = \"\\x\"", "this is no escape: write \\\\ for a backslash"),
    ("timeout = \"\\uD800\"", "this is no escape: write \\\\ for a backslash"),
    ("timeout = “30s”", "this is no value: write text in quotes"),
    ("“timeout” = 1", "a name has only letters a to z, digits, _ and -"),
    ("levél = 1", "a name has only letters a to z, digits, _ and -"),
    ("\u{a0}timeout = 1", "a name has only letters a to z, digits, _ and -"),
    ("timeout =\u{a0}\"30s\"", "timeout: the text has no beginning: write the quote before it"),
    ("timeout = 30s\"", "timeout: the text has no beginning: write the quote before it"),
    ("timeout = 2020-13-01", "timeout: this is no date: write text in quotes"),
    ("{\"log\":{}}", "this is no key = value: write key = value"),
    ("timeout = {a}", "braces hold key = value: write { key = value }"),
    ("timeout = { a = }", "braces hold key = value: write { key = value }"),
    ("timeout = { a 1 }", "braces hold key = value: write { key = value }"),
    ("timeout = { a = 1 b = 2 }", "no comma before the name: write { key = value }"),
    ("timeout.a.b = ", "timeout.a.b: this is no value"),
];

#[test]
fn what_is_no_toml_is_said_in_our_words() {
    let case = |(line, words): &(&str, &str)| {
        (format!("{}{line}\n", least("\"https://crm.test/\"")), 5, vec![(*words).to_owned()])
    };
    let deep = (
        format!("{}x = {}\n", least("\"https://crm.test/\""), "[".repeat(200)),
        5,
        vec!["too many brackets".to_owned()],
    );
    refused(NO_TOML.iter().map(case).chain([deep]));
}

/// A key in the wrong table, and a table in the place of a value.
#[test]
fn the_table_is_named_in_which_it_stands() {
    let url = "\"https://crm.test/\"";
    let case = |(lines, line, words): &(&str, usize, &[&str])| {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        (least(url) + lines, 4 + line, words)
    };
    let above = "write keys of no table above all tables";
    let cases: &[(&str, usize, &[&str])] = &[
        ("mode = \"shadow\"\n", 1, &["unknown field `mode` in [backend]", above]),
        (
            "integration_domains = [\"b.test\"]\n",
            1,
            &["unknown field `integration_domains` in [backend]", above],
        ),
        ("log.level = \"info\"\n", 1, &["unknown field `log` in [backend]", above]),
        ("[queue]\nmode = \"shadow\"\n", 2, &["unknown field `mode` in [queue]", above]),
        (
            "oauth = { clientid = \"us\" }\n",
            1,
            &["unknown field `clientid` in [backend.oauth]", "did you mean `client_id`?"],
        ),
        ("[queue.path]\nx = 1\n", 1, &["queue.path: ", "a table stands here", "write one text in quotes"]),
        ("[queue]\npath.x = 1\n", 2, &["queue.path: ", "a table stands here", "write one text in quotes"]),
        ("[replies.no-subject]\nx = 1\n", 1, &["replies.no-subject: ", "a table stands here"]),
        ("[severa]\nprefix = \"a\"\n", 1, &["severa: ", "write [[severa]]"]),
    ];
    refused(cases.iter().map(case));
}

#[test]
fn domains_that_are_none() {
    let cases = [
        "@a.test",
        "*.a.test",
        "a test",
        "x@a.test",
        "https://a.test",
        "a..test",
        ".a.test",
        "a.test/",
        "a_b@",
        "",
    ];
    let case = |domain: &str| {
        let text = least("\"https://crm.test/\"").replace("\"a.test\"", &format!("\"b.test\", \"{domain}\""));
        (text, 1, vec!["integration_domains: ".to_owned(), "is no domain".to_owned()])
    };
    refused(cases.into_iter().map(case));
}

/// The program, which must end by itself; its exit code and what it says.
fn check(file: &Path) -> (Option<i32>, String) {
    let mut command = Command::new("timeout");
    command.args(["60", PROGRAM, "-c"]).arg(file).args(["config", "show"]);
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn what_is_no_file_of_ours_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let utf16 = |text: &str, big: bool| -> Vec<u8> {
        text.encode_utf16()
            .flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() })
            .collect()
    };
    let text = least("\"https://crm.test/\"");
    nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink(at("loop"), at("loop")).unwrap();
    fs::File::create(at("huge")).unwrap().set_len(1 << 30).unwrap();
    fs::write(at("le"), utf16(&text, false)).unwrap();
    fs::write(at("be"), utf16(&text, true)).unwrap();
    fs::write(at("mark"), utf16(&format!("\u{feff}{text}"), false)).unwrap();
    let mut complaints = Vec::new();
    for (name, words) in [
        ("pipe", &["it is no regular file: name a file"][..]),
        ("loop", &["a link leads back to itself"]),
        ("huge", &["it is longer than 8 MiB"]),
        ("le", &["it is UTF-16: save the file as UTF-8"]),
        ("be", &["it is UTF-16: save the file as UTF-8"]),
        ("mark", &["it is UTF-16: save the file as UTF-8"]),
    ] {
        let (code, error) = check(&at(name));
        assert_eq!(code, Some(78), "{name}: {error}");
        complaints.extend(judge(
            name,
            &error,
            &[&[&format!("{name}: cannot be read: ")[..]], words].concat(),
        ));
        // The same in place of a drop-in.
        let main = at(&format!("main-{name}"));
        fs::write(&main, &text).unwrap();
        let drop_ins = at(&format!("main-{name}.d"));
        fs::create_dir(&drop_ins).unwrap();
        symlink(at(name), drop_ins.join("10.toml")).unwrap();
        let (code, error) = check(&main);
        assert_eq!(code, Some(78), "{name}: {error}");
        complaints.extend(judge(name, &error, &[&["10.toml: cannot be read: "], words].concat()));
    }
    accept(complaints);
}

/// A shell may hand over a text, and a path that is relative is the same wherever it is read.
#[test]
fn what_is_shown_is_handed_over_and_shown_again() {
    let directory = tempfile::tempdir().unwrap();
    let text = least("\"https://crm.test/\"") + "[queue]\npath = \"here/queue.db\"\n";
    fs::create_dir(directory.path().join("etc")).unwrap();
    fs::write(directory.path().join("etc/am.toml"), text).unwrap();
    let script = "P=$1; values() { sed 's/  # .*//; /^#/d'; }\n\
                  \"$P\" -c etc/am.toml config show | values > once\n\
                  \"$P\" -c <(\"$P\" -c etc/am.toml config show) config show | values > twice\n\
                  cd / && \"$P\" -c /dev/stdin config show < \"$OLDPWD/once\" | values > \"$OLDPWD/thrice\"";
    let status = Command::new("timeout")
        .args(["60", "bash", "-c", script, "-", PROGRAM])
        .current_dir(directory.path())
        .status()
        .unwrap();
    assert!(status.success());
    let [once, twice, thrice] =
        ["once", "twice", "thrice"].map(|name| fs::read_to_string(directory.path().join(name)).unwrap());
    assert!(once.contains(&format!("path = \"{}/etc/here/queue.db\"", directory.path().display())), "{once}");
    assert_eq!(once, twice);
    assert_eq!(once, thrice);
}
