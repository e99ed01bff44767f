//! What is wrong with a text, in an administrator's words instead of those of the libraries that found it.
//!
//! In: a message of `toml` or `serde`, and what stands at the place. Out: what was found, and what would do.

use super::tree::Place;
use toml::de::DeValue;

/// Characters of a text that are repeated.
const SHOWN: usize = 40;

/// What is no value, written without quotes.
const BARE: &str = "this is no value: write text in quotes, and numbers, true and false without";
const NUMBER: &str = "this is no number: write its digits alone, like 100, and text in quotes";
const DATE: &str = "this is no date: write text in quotes";
const ESCAPE: &str = "this is no escape: write \\\\ for a backslash";
const EQUALS: &str = "there is one = too many: write key = value";
const COMMA: &str = "there is a comma without a value before it: remove it";
const NAME: &str = "a name has only letters a to z, digits, _ and -: remove what is none of them";
const PAIR: &str = "this is no key = value: write key = value, or the name of a table in brackets";
const BEGINNING: &str =
    "the text has no beginning: write the quote before it that ends it, and only plain blanks before that";
const DEPTH: &str = "too many brackets, one in the other: write fewer";
const BRACES: &str = "braces hold key = value: write { key = value }, with commas between several";
const TAKEN: &str = "this name has a value already, and so no names below it: remove one of both";

const UNSEEN: &str = "the text has a control character, which is not seen: remove it, or write it as \\u and four digits between \" and \"";

/// What of `toml` we do not know.
const ELSE: &str = "this cannot be read: write key = value in a line of its own, and text in quotes";

/// Words of `toml` for what is no TOML, and ours; `""`: what follows is the beginning.
const SYNTAX: &[(&str, &str)] = &[
    ("invalid float", BARE),
    ("invalid integer", NUMBER),
    ("invalid hexadecimal", NUMBER),
    ("invalid octal", NUMBER),
    ("invalid binary", NUMBER),
    ("invalid mantissa", NUMBER),
    ("invalid fraction", NUMBER),
    ("invalid exponent", NUMBER),
    ("`_` may only go", NUMBER),
    ("radix must", NUMBER),
    ("redundant", NUMBER),
    ("unexpected sign", NUMBER),
    ("invalid date", DATE),
    ("invalid time", DATE),
    ("invalid offset", DATE),
    ("too few unicode", ESCAPE),
    ("invalid value", ESCAPE),
    ("extra `=`", EQUALS),
    ("unexpected `=`", EQUALS),
    ("extra assignment", "there is one = too many, or no comma before the name: write { key = value }"),
    ("extra comma", COMMA),
    ("invalid unquoted key", NAME),
    ("invalid key-value pair", PAIR),
    ("invalid key", NAME),
    ("invalid table", NAME),
    ("keys cannot be", NAME),
    ("missing opening quote", BEGINNING),
    ("unexpected content", PAIR),
    ("cannot recurse", DEPTH),
    ("recursion limit", DEPTH),
    ("missing key for inline", BRACES),
    ("missing assignment", BRACES),
    ("invalid inline", BRACES),
    ("missing value for key", BRACES),
    ("missing comma between key-value", BRACES),
    ("cannot extend value", TAKEN),
    ("string values must be quoted", BARE),
    ("invalid basic string", "the text has no end: close it with \" in the same line"),
    ("invalid multi-line basic string", "the text has no end: close it with \"\"\""),
    ("invalid literal string", "the text has no end: close it with ' in the same line"),
    ("invalid multi-line literal string", "the text has no end: close it with '''"),
    ("missing escaped value", ESCAPE),
    ("key with no value", "a key without a value: write key = value, and a comment behind #"),
    ("unclosed table", "the name of the table has no end: close it with ]"),
    ("unclosed array of tables", "the name of the table has no end: close it with ]]"),
    (
        "missing comma between array elements",
        "the list has no end here, and no comma: close it with ], or write a comma between values",
    ),
    ("unclosed array", "the list has no end: close it with ]"),
    ("unclosed inline table", "the table has no end: close it with }"),
    ("unquoted keys cannot be empty", "there is no name: write one before the = or between the brackets"),
    ("unexpected key or value", "too much in one line: write each key in a line of its own"),
    ("invalid boolean", "this is no value: write true or false, and text in quotes"),
    ("unexpected leading zero", "a number does not begin with 0: leave it out, or write text in quotes"),
    (
        "carriage return must be followed",
        "a carriage return without a line feed: save the file with Unix line ends",
    ),
    ("invalid comment character", "a comment has a control character: remove it"),
    ("integers with a radix cannot be signed", "a number with a sign is written with digits alone, like -1"),
    ("integer number overflowed", "the number is too large"),
    ("floating-point number overflowed", "the number is too large"),
];

/// About a text that is no TOML. `said`: what stands at the place, `line`: its line.
pub(super) fn syntax(message: &str, said: &str, line: &str) -> String {
    if message.starts_with("duplicate key") {
        return match said.trim() {
            "" => "this stands here for the second time: remove one".to_owned(),
            name => format!("`{}` stands here for the second time: remove one", cut(name)),
        };
    }
    match SYNTAX.iter().find(|(theirs, _)| message.starts_with(theirs)) {
        // What ends a text for the library may also be what nobody sees.
        Some((_, ours)) if ours.starts_with("the text has no end") && line.chars().any(is_unseen) => {
            UNSEEN.to_owned()
        }
        // To the library a name alone in braces is a text without an end.
        Some((_, ours)) if ours.starts_with("the text has no end") && !line.contains(['"', '\'']) => {
            BRACES.to_owned()
        }
        Some((_, ours)) => (*ours).to_owned(),
        None => ELSE.to_owned(),
    }
}

/// A character that TOML takes in no text.
fn is_unseen(c: char) -> bool {
    c.is_ascii_control() && c != '\t'
}

/// About a text that is TOML, and not what we expect. `table`: the header of the table that is there; else of the one in
/// which it stands.
pub(super) fn misfit(message: &str, place: Option<&Place<'_, '_>>, table: &str) -> String {
    if let Some(rest) = message.strip_prefix("unknown field `") {
        return unknown("unknown field", rest, table);
    }
    if let Some(rest) = message.strip_prefix("unknown variant `") {
        return unknown("there is no", rest, "");
    }
    if let Some(name) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
        return match table {
            "" => format!("missing field `{name}`: it has no default, so write it"),
            table => format!("missing field `{name}` in {table}: it has no default, so write it there"),
        };
    }
    let theirs = ["invalid type: ", "invalid value: ", "invalid length ", "wanted ", "expected "];
    if theirs.iter().any(|theirs| message.starts_with(theirs)) {
        let expected = message.rsplit_once("expected ").map_or("", |(_, expected)| expected);
        let value = place.and_then(|place| place.value);
        let found = value.map_or("this is no value of this key".to_owned(), |found| {
            if message.starts_with("invalid value") && found.is_integer() {
                number(found)
            } else {
                kind(found)
            }
        });
        let name = table.trim_matches(['[', ']']);
        // What has a header has no key before it.
        let is_header =
            value.is_some_and(DeValue::is_table) && place.is_some_and(|place| place.key.is_none());
        return match is_header && !name.is_empty() {
            true if expected == "a sequence" => {
                format!("{name}: one table stands here: write [[{name}]] in a line of its own for each")
            }
            true => format!("{name}: {found}: {}", remedy(expected, message)),
            false => format!("{found}: {}", remedy(expected, message)),
        };
    }
    match SYNTAX.iter().find(|(theirs, _)| message.starts_with(theirs)) {
        Some((_, ours)) => (*ours).to_owned(),
        None => message.to_owned(),
    }
}

/// ``x`, expected one of `a`, `b``: which of them was meant?
/// `table`: the header of the table in which it stands; empty above all tables, and for what is no key.
fn unknown(what: &str, rest: &str, table: &str) -> String {
    let (name, known) = rest.split_once('`').unwrap_or((rest, ""));
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    let meant = meant(name, &known).map(|meant| format!("did you mean `{meant}`? ")).unwrap_or_default();
    let place = if table.is_empty() { String::new() } else { format!(" in {table}") };
    let elsewhere = match table.is_empty() || !meant.is_empty() {
        true => "",
        false => {
            ". A key belongs to the header above it: write it below its own, and write keys of no table above all tables"
        }
    };
    match known.as_slice() {
        [] => format!("{what} `{}`{place}: remove it", cut(name)),
        known => format!("{what} `{}`{place}: {meant}there are {}{elsewhere}", cut(name), known.join(", ")),
    }
}

/// The known name that is most like another one, if it is like it at all.
pub fn meant<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let name = name.to_lowercase().replace('-', "_");
    let likeness = |known: &&str| strsim::jaro_winkler(&name, &known.replace('-', "_"));
    let best = known.iter().copied().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(&best) > 0.8).then_some(best)
}

/// What was found.
fn kind(found: &DeValue<'_>) -> String {
    match found {
        DeValue::String(text) => format!("\"{}\" is text", cut(text)),
        DeValue::Integer(_) | DeValue::Float(_) => number(found) + " is a number",
        DeValue::Boolean(value) => format!("{value} stands here"),
        DeValue::Datetime(date) => format!("{date} is a date"),
        DeValue::Array(_) => "a list stands here".to_owned(),
        DeValue::Table(_) => "a table stands here".to_owned(),
    }
}

fn number(found: &DeValue<'_>) -> String {
    match found {
        DeValue::Integer(number) => cut(&number.to_string()),
        DeValue::Float(number) => cut(&number.to_string()),
        other => kind(other),
    }
}

/// What would do, by what the library says it expected.
fn remedy(expected: &str, message: &str) -> String {
    match expected {
        "a string" | "path string" | "a borrowed string" | "string or table" | "table" => {
            "write one text in quotes".to_owned()
        }
        "usize" | "u64" | "u32" | "u16" | "u8" => "write a whole number, without quotes, like 100".to_owned(),
        "a boolean" => "write true or false, without quotes".to_owned(),
        "a sequence" => {
            "write a list, like [\"a\", \"b\"]; where tables are listed, a header in double brackets for each"
                .to_owned()
        }
        "a map" => "write a table: its name in brackets in a line of its own, and its keys below".to_owned(),
        text if text.starts_with("struct ") || text.starts_with("internally tagged") => {
            "write a table: its name in brackets in a line of its own, and its keys below".to_owned()
        }
        text if text.starts_with("text like ") => format!("write {text}"),
        _ if message.starts_with("wanted string or table") => "write one text in quotes".to_owned(),
        _ if message.starts_with("wanted exactly 1 element") => {
            "write one value, no list and no table".to_owned()
        }
        _ => "see activity-milter.toml(5) for what it may be".to_owned(),
    }
}

/// The beginning of a text, on one line; nothing of what may hold a password.
fn cut(text: &str) -> String {
    if text.contains("://") && text.contains('@') {
        return "…".to_owned();
    }
    let line: String = text.chars().map(|c| if c.is_control() { '?' } else { c }).take(SHOWN).collect();
    if text.chars().count() > SHOWN { line + "…" } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_text_too_early() {
        for (message, line, expected) in [
            ("invalid basic string", "a = \"b", "the text has no end"),
            ("invalid basic string", "a = \"b\u{7}c\"", "the text has a control character"),
            ("invalid literal string", "a = 'b\u{1b}c'", "the text has a control character"),
            ("invalid multi-line basic string", "b\u{0}c", "the text has a control character"),
            ("invalid literal string", "a = '\tb", "the text has no end"),
        ] {
            assert!(syntax(message, "", line).starts_with(expected), "{line:?}");
        }
    }

    #[test]
    fn the_nearest_name_is_meant() {
        let known = ["listen", "socket_mode", "socket_group", "max_sessions"];
        for (name, expected) in [
            ("lisen", Some("listen")),
            ("socket-mode", Some("socket_mode")),
            ("SocketMode", Some("socket_mode")),
            ("colour", None),
        ] {
            assert_eq!(meant(name, &known), expected, "{name}");
        }
    }
}
