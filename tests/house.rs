//! The house: arrows between rooms point down, never back (the table of the style guide).
//!
//! Reads every `crate::` path of every room and fails on an arrow that the table lacks. A new arrow is a change of this
//! table, in a commit of its own, with the reason. Test modules are free: a room's tests may build what they need.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

use activity_milter::observe::metrics;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Room, and what it may use. `cli` may use everything; `sink` answers look-ups from a directory file;
/// `source` is used by the rooms that read files of people:
/// the style guide's table does not have it, and it exists so that neither copies the other's error texts.
const MAY_USE: &[(&str, &[&str])] = &[
    (
        "config",
        &[
            "admin",
            "backend",
            "courier",
            "directory",
            "intake",
            "mail",
            "notify",
            "observe",
            "queue",
            "rules",
            "severa",
            "source",
            "trace",
            "verify",
            "web",
        ],
    ),
    ("admin", &["courier", "intake", "observe", "queue", "trace", "web"]),
    ("intake", &["activity", "courier", "directory", "mail", "observe", "queue", "rules", "verify"]),
    ("courier", &["activity", "backend", "observe", "queue"]),
    ("directory", &["mail", "observe", "rules", "severa", "source", "web"]),
    ("backend", &["activity", "observe", "severa", "web"]),
    ("notify", &["activity", "observe", "queue"]),
    ("queue", &["activity", "observe"]),
    ("rules", &["activity", "mail"]),
    ("activity", &["mail"]),
    ("mail", &[]),
    ("observe", &["rules", "source", "trace"]),
    ("severa", &["mail", "observe", "source", "web"]),
    ("sink", &["activity", "directory", "mail", "observe"]),
    ("source", &[]),
    ("trace", &[]),
    ("verify", &["mail", "rules"]),
    ("web", &["mail", "observe", "source"]),
];

/// `(file, line, room)` of every room that a file of `room` uses.
fn uses(path: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(path).unwrap();
    let code = text.lines().enumerate().take_while(|(_, line)| !is_test(line));
    let mut found = Vec::new();
    for (number, line) in code.filter(|(_, line)| !line.trim_start().starts_with("//")) {
        for (at, _) in line.match_indices("crate::") {
            let rest = &line[at + "crate::".len()..];
            assert!(!rest.starts_with('{'), "{}:{}: one room a `use`", path.display(), number + 1);
            found.push((number + 1, rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()));
        }
    }
    found
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            all.push(path);
        }
    }
    all.sort();
    all
}

fn room(source: &Path, path: &Path) -> String {
    let first = path.strip_prefix(source).unwrap().components().next().unwrap();
    first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

#[test]
fn arrows_point_down() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let mut rooms = BTreeSet::new();
    for path in files(&source) {
        let room = room(&source, &path);
        rooms.insert(room.clone());
        if matches!(room.as_str(), "cli" | "main" | "lib") {
            continue;
        }
        let (_, allowed) = MAY_USE
            .iter()
            .find(|(name, _)| *name == room)
            .unwrap_or_else(|| panic!("the table has no room {room}"));
        for (line, used) in uses(&path) {
            if used != room && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{}:{line}: {room} must not use {used}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (name, _) in MAY_USE {
        assert!(rooms.contains(*name), "the table has a room {name} that is not there");
    }
}

#[test]
fn the_table_has_no_circle() {
    fn reach(room: &str, way: &mut Vec<String>) {
        assert!(!way.iter().any(|r| r == room), "circle: {way:?} {room}");
        way.push(room.to_owned());
        let (_, allowed) = MAY_USE.iter().find(|(name, _)| *name == room).unwrap();
        allowed.iter().for_each(|next| reach(next, way));
        way.pop();
    }
    MAY_USE.iter().for_each(|(room, _)| reach(room, &mut Vec::new()));
}

/// From this line on a file is for tests.
fn is_test(line: &str) -> bool {
    matches!(line.trim(), "#[cfg(test)]" | "#![cfg(test)]")
}

/// Rooms whose files use each other one way only; the others follow as they are rebuilt.
const NO_CIRCLE_WITHIN: &[&str] = &[
    "mail",
    "activity",
    "rules",
    "queue/sqlite",
    "queue/postgres",
    "courier",
    "backend",
    "directory",
    "web",
    "severa",
    "trace",
];

/// The files of the room that a file uses, by `super::NAME` paths, `use super::{…}` lists included.
fn siblings(text: &str, names: &BTreeSet<String>) -> BTreeSet<String> {
    let code: Vec<&str> = text.lines().take_while(|line| !is_test(line)).collect();
    let code: Vec<&str> = code.into_iter().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let mut used = BTreeSet::new();
    for (at, _) in code.match_indices("super::") {
        let rest = &code[at + "super::".len()..];
        let mut depth = 0_usize;
        // The names at the first level of the list, or the single name.
        let end =
            if rest.starts_with('{') { rest.find(';').unwrap_or(rest.len()) } else { rest.len().min(60) };
        let mut word = String::new();
        for c in rest[..end].chars() {
            match c {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                c if c.is_alphanumeric() || c == '_' => {
                    word.push(c);
                    continue;
                }
                _ => {}
            }
            if depth <= 1 && names.contains(&word) {
                used.insert(word.clone());
            }
            word.clear();
            if !rest.starts_with('{') {
                break;
            }
        }
    }
    used
}

#[test]
fn files_of_a_room_have_no_circle() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for room in NO_CIRCLE_WITHIN {
        let paths = files(&source.join(room));
        let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
        let names: BTreeSet<String> = paths.iter().map(|path| name(path)).filter(|n| n != "mod").collect();
        let mut left: Vec<(String, BTreeSet<String>)> = paths
            .iter()
            .filter(|path| name(path) != "mod")
            .map(|path| (name(path), siblings(&fs::read_to_string(path).unwrap(), &names)))
            .collect();
        assert!(left.iter().any(|(_, uses)| !uses.is_empty()), "{room}: the paths are not read");
        // What uses nothing that is left can go; a circle stays.
        while let Some(at) =
            left.iter().position(|(_, uses)| !left.iter().any(|(other, _)| uses.contains(other)))
        {
            left.remove(at);
        }
        assert!(left.is_empty(), "{room}: files in a circle: {left:?}");
    }
}

#[test]
fn pure_rooms_have_no_clock_no_io_and_no_async() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/rules");
    for path in files(&source) {
        let text = fs::read_to_string(&path).unwrap();
        for word in
            ["async fn", ".await", "SystemTime", "Instant", "std::fs", "std::net", "tracing::", "tokio::"]
        {
            assert!(!text.contains(word), "{}: rules are pure, and here is {word}", path.display());
        }
    }
}

/// A closed pipe or a full disk would be a panic: `println!` has no other way.
#[test]
fn only_one_place_prints() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in files(&source) {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().enumerate().take_while(|(_, line)| !is_test(line));
        for (number, line) in code.filter(|(_, line)| !line.trim_start().starts_with("//")) {
            for word in ["println!", "print!", "dbg!"] {
                let place = format!("{}:{}", path.display(), number + 1);
                assert!(!line.contains(word), "{place}: {word} panics where nobody reads: use cli::out");
            }
        }
    }
}

#[test]
fn the_manual_of_replies_has_a_heading_for_each_reason() {
    use activity_milter::rules::Reason;
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/replies.md")).unwrap();
    let sections: Vec<&str> = text.split("\n## ").skip(1).collect();
    let headings: BTreeSet<&str> = sections.iter().map(|s| s.lines().next().unwrap()).collect();
    assert_eq!(headings, Reason::ALL.iter().map(|reason| reason.as_str()).collect());
    for reason in Reason::ALL {
        let section = sections.iter().find(|s| s.lines().next() == Some(reason.as_str())).unwrap();
        let codes = format!("`{} {}`", reason.code(), reason.status());
        assert!(section.contains(&codes), "{reason}: the manual does not say {codes}");
    }
}

/// A promise: the letter of its kind, and its number.
type Promise = (char, u32);

/// Letters of promises: the queue's, what an activity is, who sent it, those of deliveries to Severa, of the trace, of attaching to a Postfix, and
/// the doors'.
const LETTERS: [char; 7] = ['Q', 'R', 'W', 'S', 'T', 'A', 'D'];

fn promise(word: &str) -> Option<Promise> {
    let letter = word.chars().next().filter(|letter| LETTERS.contains(letter))?;
    Some((letter, word[1..].parse().ok()?))
}

/// The promises that a comment names.
fn promises_in(comment: &str) -> Vec<Promise> {
    comment.split(|c: char| !c.is_alphanumeric()).filter_map(promise).collect()
}

/// `(promise, test)` of every test of a file whose comments, above it or in it, name a promise; the test is empty for
/// comments elsewhere.
fn promises_named(text: &str) -> Vec<(Promise, String)> {
    let (mut found, mut named, mut is_test) = (Vec::new(), Vec::new(), false);
    let mut test = String::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with("//") {
            // What is said of the whole file is about no test.
            named.extend(if line.starts_with("//!") { Vec::new() } else { promises_in(line) });
        } else if line.starts_with("#[") {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        } else {
            if let Some((_, rest)) = line.split_once("fn ") {
                if is_test {
                    test = rest.split(['(', '<']).next().unwrap().to_owned();
                } else if !named.is_empty() {
                    test.clear();
                }
            }
            found.extend(named.drain(..).map(|number| (number, test.clone())));
            is_test = false;
        }
    }
    found
}

/// What a running service can see broken stands on the page, and the other way round.
#[test]
fn what_is_seen_broken_is_on_the_page() {
    use activity_milter::observe::Promise;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/promises.md")).unwrap();
    let line = |number: &str| format!("Seen broken: `{}{{promise=\"{number}\"}}`", metrics::VIOLATED);
    let mut said = BTreeSet::new();
    for section in page.split("\n## ").skip(1) {
        let number = section.lines().next().unwrap();
        if section.contains("Seen broken: ") {
            assert!(section.contains(&line(number)), "{number} has another one's counter");
            said.insert(number);
        }
    }
    assert_eq!(said, Promise::ALL.iter().map(|promise| promise.number()).collect());
    // Each is looked at somewhere.
    let code: String = files(&root.join("src"))
        .iter()
        .filter(|path| !path.starts_with(root.join("src/observe")))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    for promise in Promise::ALL {
        assert!(code.contains(&format!("broken(Promise::{promise:?},")), "nobody looks at {promise:?}");
    }
}

/// The page of promises, and the tests that name them, say the same.
#[test]
fn each_promise_has_its_tests() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/promises.md")).unwrap();
    let mut promised: BTreeSet<(Promise, String)> = BTreeSet::new();
    let mut numbers = Vec::new();
    for section in page.split("\n## ").skip(1) {
        let (heading, rest) = section.split_once('\n').unwrap();
        let number = promise(heading).unwrap_or_else(|| panic!("{heading} is no promise"));
        numbers.push(number);
        let (_, tests) = rest.split_once("\nTests: ").unwrap_or_else(|| panic!("{heading} has no tests"));
        let tests = tests.split("\n\n").next().unwrap();
        let names = tests.split('`').skip(1).step_by(2).filter(|name| !name.ends_with(".rs"));
        promised.extend(names.map(|name| (number, name.to_owned())));
    }
    for letter in LETTERS {
        let of_it: Vec<u32> =
            numbers.iter().filter(|number| number.0 == letter).map(|number| number.1).collect();
        assert!(of_it.iter().copied().eq(1..=of_it.len() as u32), "numbers follow each other: {of_it:?}");
    }
    let mut named = BTreeSet::new();
    for path in files(&root.join("src")).into_iter().chain(files(&root.join("tests"))) {
        if path.ends_with("tests/house.rs") {
            continue;
        }
        for (number, test) in promises_named(&fs::read_to_string(&path).unwrap()) {
            assert!(numbers.contains(&number), "{}: docs/promises.md has no {number:?}", path.display());
            named.extend((!test.is_empty()).then_some((number, test)));
        }
    }
    for number in numbers {
        assert!(named.iter().any(|(named, _)| *named == number), "no test names {number:?}");
    }
    let missing: Vec<_> = named.symmetric_difference(&promised).collect();
    assert!(missing.is_empty(), "docs/promises.md and the tests do not name the same: {missing:?}");
}
