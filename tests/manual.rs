//! What is written down is what is so: the manual pages, the example configuration, the README's table of settings, the
//! metrics and events in `docs/operations.md`.
//!
//! `UPDATE_MANUAL=1 cargo test --test manual` writes `packaging/man` anew.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

use activity_milter::{
    config::Config,
    observe::{ids, metrics},
    source::Source,
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn pages(directory: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| {
            (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap())
        })
        .collect()
}

#[test]
fn the_manual_pages_are_current() {
    let kept = root().join("packaging/man");
    let scratch = tempfile::tempdir().unwrap();
    let to =
        if std::env::var_os("UPDATE_MANUAL").is_some() { kept.clone() } else { scratch.path().join("man") };
    let program = env!("CARGO_BIN_EXE_activity-milter");
    assert!(Command::new(program).arg("manual").arg(&to).status().unwrap().success());
    let (expected, found) = (pages(&to), pages(&kept));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, text) in &expected {
        assert!(
            found[name] == *text,
            "packaging/man/{name} is not current: UPDATE_MANUAL=1 cargo test --test manual"
        );
    }
}

#[test]
fn every_page_is_dated_and_says_where_to_look_further() {
    for (name, text) in pages(&root().join("packaging/man")) {
        let heading = text.lines().find(|line| line.starts_with(".TH ")).unwrap_or_default();
        let is_dated =
            heading.split([' ', '"']).any(|word| word.starts_with("20") && word.len() == "2026-11-29".len());
        assert!(is_dated, "{name} has no date: {heading}");
        let mut sections = vec![".SH NAME", ".SH \"SEE ALSO\""];
        if name.ends_with(".8") {
            sections.extend([".SH \"EXIT STATUS\"", ".SH FILES"]);
        }
        for section in sections {
            assert_eq!(text.matches(section).count(), 1, "{name}: {section}");
        }
        for other in text.lines().filter_map(|line| line.strip_prefix(".BR activity\\-milter")) {
            let (other, section) = other.split_once(" (").unwrap();
            let file = format!("activity-milter{}.{}", other.replace('\\', ""), &section[..1]);
            assert!(root().join("packaging/man").join(&file).exists(), "{name} names {file}");
        }
    }
}

/// The keys of the manual page, `table.key`.
fn keys() -> Vec<String> {
    let page = read("packaging/man/activity-milter.toml.5");
    let (mut table, mut found) = (String::new(), Vec::new());
    for (line, next) in page.lines().zip(page.lines().skip(1)) {
        if let Some(title) = line.strip_prefix(".SH ") {
            table = title.trim_matches('"').trim_matches(['[', ']']).to_owned();
        } else if let (".TP", Some(key)) = (line, next.strip_prefix(".B "))
            && table != "replies"
            && table != "FILES"
        {
            let key = key.replace("\\-", "-");
            found.push(if table == "ABOVE ALL TABLES" { key } else { format!("{table}.{key}") });
        }
    }
    found
}

#[test]
fn every_key_is_in_the_readme_and_in_the_example() {
    let (readme, example) = (read("README.md"), read("packaging/activity-milter.toml"));
    let settings = readme.split("## All settings").nth(1).unwrap().split("\n## ").next().unwrap();
    assert!(keys().len() > 40, "{:?}", keys());
    for key in keys() {
        let (table, name) = key.rsplit_once('.').unwrap_or(("", &key));
        // The README says once that `lmtp` has the same keys as `milter`, and leaves out types with one value.
        let in_readme = settings.contains(&format!("`{key}`")) || settings.contains(&format!("`{name}`"));
        assert!(in_readme || table == "lmtp" || name == "type", "the README has no {key}");
        let header = if table.is_empty() { "\n".to_owned() } else { format!("[{table}]") };
        let section = match table {
            "" => example.split("\n[").next().unwrap(),
            _ => example.split(&header).nth(1).unwrap_or_else(|| panic!("the example has no [{table}]")),
        };
        let section = section.split("\n[").next().unwrap().split("\n#[").next().unwrap();
        assert!(
            section.lines().any(|line| line.trim_start_matches(['#', ' ']).starts_with(&format!("{name} ="))),
            "the example has no {key}"
        );
    }
}

#[test]
fn the_example_is_read_and_says_the_defaults() {
    let scratch = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = scratch.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let directory = file("directory.toml", "");
    // As shipped, but for files that are not on this machine.
    let shipped =
        read("packaging/activity-milter.toml").replace("/etc/activity-milter/directory.toml", &directory);
    let parse = |text: String| {
        Config::from_source(&Source::from_text(Path::new("example"), text)).map_err(|error| error.to_string())
    };
    let config = parse(shipped.clone()).unwrap();
    // With every default spelled out it is the same configuration.
    let spelled: String = shipped
        .lines()
        .map(|line| match line.strip_prefix("#") {
            Some(rest) if is_setting(rest) && !rest.contains("_file") && !rest.contains("# none") => {
                format!("{rest}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    // Each key that has a default is among them, in the tables that are not commented out.
    let tree: toml::Table = spelled.parse().unwrap();
    let none: Vec<_> = shipped.lines().filter(|line| line.contains("# none")).collect();
    let mut compared = 0;
    for key in keys() {
        let (table, name) = key.rsplit_once('.').unwrap_or(("", &key));
        let table = match table {
            "" => Some(&tree),
            _ => tree.get(table).and_then(toml::Value::as_table),
        };
        let has_default =
            !name.ends_with("_file") && !none.iter().any(|line| line.contains(&format!("#{name} =")));
        if let Some(table) = table.filter(|_| has_default) {
            compared += 1;
            assert!(table.contains_key(name), "the example does not say the default of {key}");
        }
    }
    assert!(compared > 30, "{compared} keys");
    let all = parse(spelled).unwrap();
    assert_eq!(format!("{config:?}"), format!("{all:?}"), "a value in the example is not the default");
}

/// A commented setting stands right behind its `#`; prose has a space.
fn is_setting(rest: &str) -> bool {
    !rest.starts_with(' ') && rest.contains(" = ")
}

#[test]
fn metrics_and_events_are_documented() {
    let operations = read("docs/operations.md");
    for (name, _, _) in metrics::ALL {
        assert!(operations.contains(&format!("`{name}`")), "docs/operations.md has no {name}");
    }
    for (name, id) in ids::ALL {
        let name = name.to_lowercase();
        let said = operations.matches(&format!("| `{name}` | `{id}` |")).count();
        assert_eq!(said, 1, "docs/operations.md has the event {name} {id} so often");
    }
    let alerts = read("packaging/prometheus/alerts.yml");
    let dashboard = read("packaging/grafana/activity-milter.json");
    for text in [&alerts, &dashboard] {
        for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            if let Some(name) =
                word.strip_suffix("_bucket").or(Some(word)).filter(|w| w.starts_with("activity_milter_"))
            {
                assert!(metrics::ALL.iter().any(|(known, _, _)| *known == name), "there is no metric {name}");
            }
        }
    }
    // Each alert has a heading that says what to do.
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(operations.contains(&format!("### {alert}\n")), "docs/operations.md says nothing of {alert}");
    }
}

/// Documents of people, and where their links lead.
fn links() -> Vec<(String, String)> {
    let docs = fs::read_dir(root().join("docs")).unwrap();
    let docs = docs.map(|entry| format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()));
    let documents = docs.filter(|name| name.ends_with(".md")).chain(["README.md".to_owned()]);
    let mut found = Vec::new();
    for document in documents {
        let text = read(&document);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            let path = link.split('#').next().unwrap();
            if !link.contains("://") && !path.is_empty() {
                let folder = Path::new(&document).parent().unwrap();
                found.push((document.clone(), folder.join(path).to_str().unwrap().to_owned()));
            }
        }
    }
    found
}

/// What a document links to is there, and in both packages beside it, as in the sources.
#[test]
fn documents_find_each_other_in_the_packages() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let metadata = &manifest["package"]["metadata"];
    let deb = metadata["deb"]["assets"].as_array().unwrap().iter();
    let deb: Vec<_> =
        deb.map(|asset| (asset[0].as_str().unwrap(), format!("/{}", asset[1].as_str().unwrap()))).collect();
    let rpm = metadata["generate-rpm"]["assets"].as_array().unwrap().iter();
    let rpm: Vec<_> = rpm
        .map(|asset| (asset["source"].as_str().unwrap(), asset["dest"].as_str().unwrap().to_owned()))
        .collect();
    let links = links();
    assert!(links.len() > 25, "{links:?}");
    for (document, to) in links {
        assert!(root().join(&to).exists(), "{document} links to {to}");
        // What installs the tools of the tests is of use in the sources alone.
        if to == "packaging/install-deps" {
            continue;
        }
        for (package, assets) in [("deb", &deb), ("rpm", &rpm)] {
            let (folder, name) = to.rsplit_once('/').unwrap_or(("", &to));
            let there = format!("/usr/share/doc/activity-milter/{to}");
            let is_there = assets.iter().any(|(source, dest)| {
                let is_source = *source == to || (*source == format!("{folder}/*"));
                is_source && (*dest == there || format!("{dest}{name}") == there)
            });
            assert!(is_there, "{document} links to {to}, and the {package} has no {there}");
        }
    }
}

/// The profile is compiled, and not loaded: it may be of no use here.
#[test]
fn the_apparmor_profile_is_read() {
    let profile = root().join("packaging/apparmor/activity-milter");
    let parser = Command::new("/usr/sbin/apparmor_parser").arg("-QTK").arg(profile).output().unwrap();
    assert!(parser.status.success(), "{}", String::from_utf8_lossy(&parser.stderr));
}
