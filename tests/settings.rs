//! What an administrator writes wrong, and what is said of it: a sheet of wrong inputs, each with the place and the words
//! that help. And what is written right: drop-ins, and the configuration as it counts.

#![allow(clippy::unwrap_used)] // a panic is the answer of a test

#[path = "settings/agree.rs"]
mod agree;
#[path = "settings/commands.rs"]
mod commands;
#[path = "settings/directory.rs"]
mod directory;
#[path = "settings/layers.rs"]
mod layers;
#[path = "settings/odd.rs"]
mod odd;
#[path = "settings/sheet.rs"]
mod sheet;
#[path = "support/store.rs"]
mod store;

/// Words of the language and of libraries, which say nothing to who reads an error at night.
const FOREIGN: &[&str] = &[
    "sequence",
    "usize",
    "u8",
    "u16",
    "u32",
    "u64",
    "i64",
    "i128",
    "f64",
    "struct",
    "enum",
    "variant",
    "builder error",
    "SUN_LEN",
    "os error",
    "invalid type",
    "invalid value:",
    "invalid digit",
    "invalid length",
    "a map",
    "wanted",
    "literal",
    "serde",
    "panicked",
    "unwrap",
    "Err(",
    "Some(",
    "None",
    "Utf8Error",
    "stream did not",
    "expected nothing",
    "tcp connect",
    "client error",
    "deserialize",
    "expected one of",
    "expected `",
    "mantissa",
    "radix",
    "invalid float",
    "unquoted",
    "no TOML:",
];

/// A text for an administrator: nothing foreign, the words that help, and the table of what is missing.
fn judge(what: &str, text: &str, words: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut complain = |complaint: String| wrong.push(format!("{what}\n  {complaint}: {text}"));
    for foreign in FOREIGN {
        let is_word = |at: usize| {
            let (before, after) = (text[..at].chars().next_back(), text[at + foreign.len()..].chars().next());
            let is_letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            !(is_letter(before) || is_letter(after) && foreign.ends_with(char::is_alphanumeric))
        };
        if text.match_indices(foreign).any(|(at, _)| is_word(at)) {
            complain(format!("has the word {foreign}"));
        }
    }
    for word in words {
        if !text.contains(word) {
            complain(format!("lacks \"{word}\""));
        }
    }
    wrong
}

/// All complaints at once, so that a change is seen whole.
fn accept(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{} wrong texts:\n{}", wrong.len(), wrong.join("\n"));
}
