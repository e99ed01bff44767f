//! The configuration as it counts, as TOML, with the source of each value.
//!
//! In: the files. Out: every key that has a value, a line each, with `# default` or `# FILE:LINE` behind it.
//! Promise: what is shown is read back as the same configuration; a password in a URL is not shown (then only the proxy
//! is another one), and of files with secrets only their paths.

use super::{
    Config, ConfigText,
    reading::{Look, Reading},
};
use crate::source::{Source, SourceError};
use std::{fmt::Write as _, path::Path};
use toml::{Table, Value};

impl Config {
    /// What the file and its drop-ins come to.
    /// # Errors
    /// As [`Config::read_alone`]: the files that it names need not be there.
    pub fn show(path: &Path) -> Result<String, SourceError> {
        Self::shown(&Source::read(path)?.with_drop_ins()?)
    }

    /// What a text comes to.
    /// # Errors
    /// What is wrong with it.
    pub fn shown(source: &Source) -> Result<String, SourceError> {
        let reading = Reading::new(source, Look::Away)?;
        let config = Self::alone(source)?;
        let text = ConfigText::read(source, &reading)?;
        let table = Table::try_from(&text)
            .map_err(|error| SourceError::about(source.path(), format!("cannot be shown: {error}")))?;
        let mut page = "# The configuration as it counts, read from:\n".to_owned();
        for path in source.paths() {
            let _ = writeln!(page, "#   {}", one_line(&path.display().to_string()));
        }
        for warning in &config.warnings {
            let _ = writeln!(page, "# Warning: {}", one_line(warning));
        }
        Shown { source, reading }.table(&mut page, "", &table);
        Ok(page)
    }
}

struct Shown<'a> {
    source: &'a Source,
    reading: Reading<'a>,
}

impl Shown<'_> {
    /// The keys of a table, then the tables in it, as TOML wants it.
    fn table(&self, page: &mut String, name: &str, table: &Table) {
        for (key, value) in table {
            if !is_table(name, value) {
                self.value(page, &dotted(name, key), key, value);
            }
        }
        for (key, value) in table {
            let name = dotted(name, key);
            match value {
                Value::Table(table) if is_table("", value) => {
                    let _ = writeln!(page, "\n[{name}]");
                    self.table(page, &name, table);
                }
                Value::Array(tables) if is_table("", value) => self.tables(page, &name, tables),
                _ => {}
            }
        }
    }

    /// `[[severa]]`: which of them a value belongs to, its place says.
    fn tables(&self, page: &mut String, name: &str, tables: &[Value]) {
        let written = self.reading.value(name).and_then(|value| value.get_ref().as_array());
        for (at, table) in tables.iter().enumerate() {
            let _ = writeln!(page, "\n[[{name}]]");
            let written =
                written.and_then(|written| written.get(at)).and_then(|one| one.get_ref().as_table());
            for (key, value) in table.as_table().into_iter().flatten() {
                let place = written.and_then(|table| table.get(key.as_str())).map(|value| value.span().start);
                line(page, key, value, &self.origin(place));
            }
        }
    }

    fn value(&self, page: &mut String, dotted: &str, key: &str, value: &Value) {
        let place = self.reading.value(dotted).map(|value| value.span().start);
        line(page, key, value, &self.origin(place));
    }

    fn origin(&self, place: Option<usize>) -> String {
        place.map_or("default".to_owned(), |at| one_line(&self.source.whereabouts(at)))
    }
}

/// True for what has a header of its own. A table in a company is its `aliases`, which stand in a line.
fn is_table(above: &str, value: &Value) -> bool {
    match value {
        Value::Table(_) => above != "severa",
        Value::Array(list) => !list.is_empty() && list.iter().all(Value::is_table),
        _ => false,
    }
}

fn dotted(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
}

fn line(page: &mut String, key: &str, value: &Value, origin: &str) {
    let (value, masked) = masked(value);
    let note = if masked { ", password not shown" } else { "" };
    let name = Value::String(key.to_owned()).to_string();
    let bare = key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') && !key.is_empty();
    let _ = writeln!(page, "{} = {value}  # {origin}{note}", if bare { key } else { &name });
}

/// A value without the passwords in it.
fn masked(value: &Value) -> (Value, bool) {
    match value.as_str().map(|text| (text, without_passwords(text, "***"))) {
        Some((text, masked)) if text != masked => (Value::String(masked), true),
        _ => (value.clone(), false),
    }
}

/// A text whose URLs have a mask for a password: the whole text, if it is one, and each that stands in it
/// (`scheme://user:password@host`; RFC 3986, section 3.2: the authority ends at the first of `/`, `?` and `#`).
pub fn without_passwords(text: &str, mask: &str) -> String {
    if let Ok(mut url) = reqwest::Url::parse(text)
        && url.password().is_some_and(|password| password != mask)
    {
        let is_masked = url.set_password(Some(mask)).is_ok();
        return if is_masked { url.to_string() } else { mask.to_owned() };
    }
    let mut clean = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        clean += before;
        let end = after.find(['/', '?', '#', '"', '\'', ' ', '\n']).unwrap_or(after.len());
        let (authority, behind) = after.split_at(end);
        let named = authority.rsplit_once('@').and_then(|(who, host)| Some((who.split_once(':')?.0, host)));
        clean += &match named {
            Some((user, host)) => format!("{user}:{mask}@{host}"),
            None => authority.to_owned(),
        };
        rest = behind;
    }
    clean + rest
}

/// A comment ends with its line.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
