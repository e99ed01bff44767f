//! What is wrong with a text, in an administrator's words instead of those of the libraries that found it.
//!
//! In: a message of `toml` or `serde`, and what stands at the place. Out: what was found, and what would do.

use toml::de::DeValue;

/// Characters of a text that are repeated.
const SHOWN: usize = 40;

/// Words of `toml` for what is no TOML, and ours; `""`: what follows is the beginning.
const SYNTAX: &[(&str, &str)] = &[
    (
        "string values must be quoted",
        "this is no value: write text in quotes, and numbers, true and false without",
    ),
    ("invalid basic string", "the text has no end: close it with \" in the same line"),
    ("invalid multi-line basic string", "the text has no end: close it with \"\"\""),
    ("invalid literal string", "the text has no end: close it with ' in the same line"),
    ("invalid multi-line literal string", "the text has no end: close it with '''"),
    ("missing escaped value", "this is no escape: write \\\\ for a backslash"),
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

/// About a text that is no TOML.
pub(super) fn syntax(message: &str, said: &str) -> String {
    if message.starts_with("duplicate key") {
        return match said.trim() {
            "" => "this stands here for the second time: remove one".to_owned(),
            name => format!("`{}` stands here for the second time: remove one", cut(name)),
        };
    }
    match SYNTAX.iter().find(|(theirs, _)| message.starts_with(theirs)) {
        Some((_, ours)) => (*ours).to_owned(),
        None => format!("this is no TOML: {}", message.split(", expected").next().unwrap_or(message)),
    }
}

/// About a text that is TOML, and not what we expect. `table`: the table's header, if `found` is one.
pub(super) fn misfit(message: &str, found: Option<&DeValue<'_>>, table: &str) -> String {
    if let Some(rest) = message.strip_prefix("unknown field `") {
        return unknown("unknown field", rest);
    }
    if let Some(rest) = message.strip_prefix("unknown variant `") {
        return unknown("there is no", rest);
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
        let found = found.map_or("this is no value of this key".to_owned(), |found| {
            if message.starts_with("invalid value") && found.is_integer() {
                number(found)
            } else {
                kind(found)
            }
        });
        return format!("{found}: {}", remedy(expected, message));
    }
    match SYNTAX.iter().find(|(theirs, _)| message.starts_with(theirs)) {
        Some((_, ours)) => (*ours).to_owned(),
        None => message.to_owned(),
    }
}

/// ``x`, expected one of `a`, `b``: which of them was meant?
fn unknown(what: &str, rest: &str) -> String {
    let (name, known) = rest.split_once('`').unwrap_or((rest, ""));
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    let meant = meant(name, &known).map(|meant| format!("did you mean `{meant}`? ")).unwrap_or_default();
    match known.as_slice() {
        [] => format!("{what} `{}`: remove it", cut(name)),
        known => format!("{what} `{}`: {meant}there are {}", cut(name), known.join(", ")),
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
            "write a list, like [\"a\", \"b\"]; where tables are listed, a header like [[name]] for each"
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
