//! Drop-ins, and the configuration as it counts.

use activity_milter::{
    config::{BackendKind, Config},
    source::Source,
};
use proptest::prelude::*;
use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// A configuration with drop-ins, in a directory of its own.
struct Etc(TempDir);

impl Etc {
    fn new(main: &str) -> Self {
        let etc = Self(tempfile::tempdir().unwrap());
        fs::write(etc.main(), main).unwrap();
        fs::write(etc.0.path().join("secret"), "secret\n").unwrap();
        etc
    }

    fn main(&self) -> PathBuf {
        self.0.path().join("am.toml")
    }

    fn drop_in(&self, name: &str, text: &str) -> PathBuf {
        let directory = self.0.path().join("am.toml.d");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(name), text).unwrap();
        directory.join(name)
    }

    fn read(&self) -> Result<Config, String> {
        Config::read(&self.main()).map_err(|error| error.to_string())
    }

    fn show(&self) -> String {
        Config::show(&self.main()).unwrap()
    }
}

fn least() -> String {
    format!(
        "integration_domains = [\"a.test\", \"b.test\"]\n[directory]\npath = \"{}/tests/directory.toml\"\n\
         [backend]\nurl = \"http://127.0.0.1:1/\"\nmax_in_flight = 5\n",
        env!("CARGO_MANIFEST_DIR")
    )
}

fn severa(etc: &Etc, prefix: &str) -> String {
    let secret = etc.0.path().join("secret");
    format!(
        "[[severa]]\nprefix = \"{prefix}\"\nclient_id = \"id\"\nclient_secret_file = \"{}\"\nactivity_type = \"E\"\n",
        secret.display()
    )
}

#[test]
fn tables_merge_and_values_replace_in_the_order_of_names() {
    let etc = Etc::new(&least());
    etc.drop_in("20-late.toml", "integration_domains = [\"c.test\"]\n[queue]\nmax_items = 300\n");
    etc.drop_in(
        "10-early.toml",
        "[queue]\nmax_items = 200\nmax_age = \"2d\"\n[message]\nmax_recipients = 7\n",
    );
    for ignored in [".hidden.toml", "30.toml~", "30.toml.dpkg-old", "30.toml.bak", "30.conf", "README"] {
        etc.drop_in(ignored, "this is no TOML");
    }
    let config = etc.read().unwrap();
    let domains: Vec<&str> = config.addressing.domains.iter().map(|domain| domain.as_str()).collect();
    assert_eq!(domains, ["c.test"], "a list replaces");
    assert_eq!(config.queue.max_items, 300, "the later name counts");
    assert_eq!(config.courier.max_age.as_secs(), 2 * 24 * 3600, "tables merge");
    assert_eq!((config.policy.max_recipients, config.courier.max_in_flight), (7, 5));
    let names: Vec<_> = config.files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["am.toml", "10-early.toml", "20-late.toml"]);
}

#[test]
fn companies_add_up_and_none_is_there_twice() {
    let etc = Etc::new(
        "integration_domains = [\"a.test\"]\n[directory]\ntype = \"severa\"\n[backend]\ntype = \"severa\"\n",
    );
    assert!(etc.read().unwrap_err().contains("needs a table [[severa]]"));
    etc.drop_in("a.toml", &severa(&etc, "one"));
    etc.drop_in("b.toml", &severa(&etc, "two"));
    let config = etc.read().unwrap();
    let BackendKind::Severa(companies) = &config.outside.backend else { panic!() };
    assert_eq!(companies.iter().map(|company| company.prefix.as_str()).collect::<Vec<_>>(), ["one", "two"]);
    let path = etc.drop_in("c.toml", &format!("# again\n{}", severa(&etc, "One")));
    let error = etc.read().unwrap_err();
    assert!(error.starts_with(&format!("{}:3:10: prefix: ", path.display())), "{error}");
    assert!(error.contains("\"one\" is there twice"), "{error}");
}

#[test]
fn an_error_names_the_file_in_which_it_stands() {
    for (text, place, words) in [
        ("[queue]\n\nmax_items = 0\n", ":3:13: max_items: ", "at least 1"),
        ("\n[queu]\n", ":2:2: ", "did you mean `queue`?"),
        ("[queue]\nmax_age = \"10M\"\n", ":2:11: max_age: ", "would be months"),
        ("[backend]\nurl = \"crm\"\n", ":2:7: url: ", "is no URL"),
        ("x = \n", ":1:", "write text in quotes"),
        ("[backend.oauth]\nclient_id = \"x\"\n", ":1:1: ", "missing field `token_url` in [backend.oauth]"),
        ("[backend]\nretry_first = \"1h\"\n", ":2:15: retry_first: ", "longer than backend.retry_max"),
        ("queue = 1\n", ":1:9: queue: ", "write a table"),
    ] {
        let etc = Etc::new(&least());
        etc.drop_in("05-good.toml", "[log]\nlevel = \"debug\"\n");
        let path = etc.drop_in("10-bad.toml", text);
        let error = etc.read().unwrap_err();
        assert!(
            error.starts_with(&format!("{}{place}", path.display())) && error.contains(words),
            "{text}: {error}"
        );
    }
    // What the main file lacks may stand in a drop-in, and what is wrong in the main file is said of it.
    let etc = Etc::new("[queue]\nmax_items = 0\n");
    etc.drop_in("10.toml", &least());
    assert!(etc.read().unwrap_err().starts_with(&format!("{}:2:13: max_items", etc.main().display())));
    etc.drop_in("20.toml", "[queue]\nmax_items = 500\n");
    assert_eq!(etc.read().unwrap().queue.max_items, 500, "what is replaced does not count");
}

/// What lies among the drop-ins and is none: said, unless everybody knows that it counts no more.
#[test]
fn what_is_no_drop_in_is_said() {
    let etc = Etc::new(&least());
    for quiet in [
        ".10-local.toml",
        "10-local.toml~",
        "#10-local.toml#",
        "10-local.toml.bak",
        "10-local.toml.dpkg-old",
        "10-local.toml.dpkg-dist",
        "10-local.toml.rpmnew",
        "10-local.toml.rpmsave",
        "10-local.toml.ucf-dist",
        "10-local.toml.disabled",
        ".10-local.toml.swp",
        "README",
    ] {
        etc.drop_in(quiet, "queue.max_items = 1");
    }
    fs::create_dir(etc.0.path().join("am.toml.d/old")).unwrap();
    let config = etc.read().unwrap();
    assert!(config.warnings.is_empty() && config.queue.max_items == 1_000_000, "{:?}", config.warnings);
    let loud = ["10-local.conf", "10.TOML", "10.toml.txt", "10toml", "20.tml"];
    let mut expected: Vec<String> =
        loud.map(|name| etc.drop_in(name, "queue.max_items = 1").display().to_string()).to_vec();
    expected.sort();
    let config = etc.read().unwrap();
    let end = " is not read: the name of a drop-in ends in .toml";
    let said: Vec<&str> = config.warnings.iter().filter_map(|warning| warning.strip_suffix(end)).collect();
    assert_eq!((said, config.queue.max_items), (expected.iter().map(String::as_str).collect(), 1_000_000));
    // The directory itself, as a link to nothing.
    let bare = Etc::new(&least());
    std::os::unix::fs::symlink("/nonexistent/x", bare.0.path().join("am.toml.d")).unwrap();
    let warnings = bare.read().unwrap().warnings;
    assert!(
        matches!(warnings.as_slice(), [one] if one.contains("am.toml.d is a link to nothing")),
        "{warnings:?}"
    );
}

#[test]
fn a_drop_in_that_cannot_be_read_is_an_error() {
    let etc = Etc::new(&least());
    let path = etc.drop_in("a.toml", "");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let error = etc.read().unwrap_err();
    assert!(error.contains("a.toml: cannot be read: it is no regular file"), "{error}");
    fs::remove_dir(&path).unwrap();
    std::os::unix::fs::symlink("/nonexistent", &path).unwrap();
    assert!(etc.read().unwrap_err().contains("a.toml: cannot be read: No such file"));
    fs::remove_file(&path).unwrap();
    fs::write(&path, b"\xff").unwrap();
    assert!(etc.read().unwrap_err().contains("a.toml:1: cannot be read: line 1 is not UTF-8"));
    // A file in place of the directory.
    fs::remove_dir_all(etc.0.path().join("am.toml.d")).unwrap();
    fs::write(etc.0.path().join("am.toml.d"), "").unwrap();
    assert!(etc.read().unwrap_err().contains("am.toml.d: cannot be read"));
    fs::remove_file(etc.0.path().join("am.toml.d")).unwrap();
    fs::create_dir(etc.0.path().join("am.toml.d")).unwrap();
    etc.read().unwrap();
}

#[test]
fn relative_paths_are_those_of_the_file() {
    let etc = Etc::new(&least().replace("[backend]\n", "[backend]\ntoken_file = \"secret\"\n"));
    let config = etc.read().unwrap();
    assert!(config.warnings[0].contains("token_file: \"secret\" is relative"), "{:?}", config.warnings);
    assert!(etc.show().contains(&format!("token_file = \"{}/secret\"", etc.0.path().display())));
}

/// All of a configuration but where it came from.
fn settings(config: &Config) -> String {
    let mut config = Config { files: Vec::new(), warnings: Vec::new(), ..config.clone() };
    // A map without an order.
    let shares: std::collections::BTreeMap<_, _> =
        std::mem::take(&mut config.courier.shares).into_iter().collect();
    format!("{config:?} {shares:?}")
}

fn back(shown: &str) -> Config {
    Config::from_source(&Source::from_text(Path::new("shown.toml"), shown))
        .unwrap_or_else(|error| panic!("{error}\n{shown}"))
}

#[test]
fn what_counts_is_shown_with_its_source() {
    let etc = Etc::new(&least());
    let path = etc.drop_in("10.toml", "mode = \"shadow\"\n[queue]\nmax_items = 777\n[replies]\nno-subject = \"<{address}>: # \\\"quoted\\\"\"\n");
    let shown = etc.show();
    let main = etc.main().display().to_string();
    for line in [
        format!("integration_domains = [\"a.test\", \"b.test\"]  # {main}:1"),
        format!("mode = \"shadow\"  # {}:1", path.display()),
        format!("max_items = 777  # {}:3", path.display()),
        format!("url = \"http://127.0.0.1:1/\"  # {main}:5"),
        format!("max_in_flight = 5  # {main}:6"),
        "timeout = \"30s\"  # default".to_owned(),
        "max_size = \"50 MiB\"  # default".to_owned(),
        "retry_max = \"10min\"  # default".to_owned(),
        "listen = \"unix:/var/spool/postfix/activity-milter/milter.sock\"  # default".to_owned(),
        "[milter]".to_owned(),
        format!("#   {}", path.display()),
    ] {
        assert!(shown.lines().any(|l| l == line), "{line}\n{shown}");
    }
    assert!(!shown.contains("[lmtp]") && !shown.contains("[notify]"), "what is off stays off: {shown}");
    assert_eq!(settings(&back(&shown)), settings(&etc.read().unwrap()));
}

#[test]
fn companies_are_shown_each_with_its_own_lines() {
    let etc = Etc::new(
        "integration_domains = [\"a.test\"]\n[directory]\ntype = \"severa\"\n[backend]\ntype = \"severa\"\n",
    );
    let one = etc.drop_in(
        "a.toml",
        &(severa(&etc, "one") + "aliases = { \"x@a.test\" = [\"y@a.test\"] }\nsettle = \"90s\"\n"),
    );
    let two = etc.drop_in("b.toml", &severa(&etc, "two"));
    let shown = etc.show();
    for line in [
        format!("prefix = \"one\"  # {}:2", one.display()),
        format!("prefix = \"two\"  # {}:2", two.display()),
        format!("settle = \"90s\"  # {}:7", one.display()),
        "settle = \"1min\"  # default".to_owned(),
        "max_in_flight = 4  # default".to_owned(),
        "url = \"https://api.severa.visma.com/rest-api\"  # default".to_owned(),
    ] {
        assert!(shown.lines().any(|l| l == line), "{line}\n{shown}");
    }
    assert_eq!(settings(&back(&shown)), settings(&etc.read().unwrap()));
}

#[test]
fn secrets_are_not_shown() {
    let etc = Etc::new(&least().replace(
        "url =",
        "proxy = \"http://us:hunter2@proxy.test:3128/\"\ntoken_file = \"/nonexistent/token\"\nurl =",
    ));
    let shown = etc.show();
    assert!(
        !shown.contains("hunter2") && shown.contains("proxy = \"http://us:***@proxy.test:3128/\""),
        "{shown}"
    );
    assert!(shown.contains("token_file = \"/nonexistent/token\""), "the file need not be there: {shown}");
}

/// Settings that may stand beside each other, a line or more each.
const OPTIONAL: &[&str] = &[
    "[milter]\nlisten = \"inet:127.0.0.1:8893\"\nmax_sessions = 7",
    "[lmtp]\nsocket_mode = \"0666\"\nsocket_group = \"postfix\"",
    "[message]\nmax_size = \"1234567 B\"\nrecipient_delimiter = \"+\"\nmixed_recipients = \"strip\"",
    "[replies]\nhelp = \"https://x.test/\"\nno-user = \"a \\\\ b {\"",
    "[queue]\nheld_counts = \"1500ms\"\nmin_free = \"0\"\nmax_items_per_tenant = 3",
    "[notify]\nto = \"owner\"\nfrom = \"CRM <crm@x.test>\"\ntext = \"a\\n{list}\\n\"\ntransport = \"sendmail\"",
    "[admin]\nlisten = \"off\"",
    "[log]\nformat = \"json\"\nlevel = \"trace\"\naddresses = \"none\"",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is set, in the file or in drop-ins: what is shown is read back as the same.
    #[test]
    fn what_is_shown_is_read_back(places in proptest::collection::vec(0_usize..4, OPTIONAL.len())) {
        let mut texts = [least(), String::new(), String::new()];
        for (setting, place) in OPTIONAL.iter().zip(places) {
            if let Some(text) = texts.get_mut(place) {
                *text += &format!("{setting}\n");
            }
        }
        let [main, early, late] = texts;
        let source = Source::from_text(Path::new("/etc/am.toml"), main)
            .with(Path::new("/etc/am.toml.d/a.toml"), early)
            .with(Path::new("/etc/am.toml.d/b.toml"), late);
        let shown = Config::shown(&source).unwrap();
        prop_assert_eq!(settings(&back(&shown)), settings(&Config::from_source(&source).unwrap()), "{}", shown);
    }
}
