//! A file that a person wrote, its versions, and errors that take that person to the place.
//!
//! In: a path. Out: typed values, or a [`SourceError`] that names file, line, column and key.
//! Fails: a file that cannot be read, is no TOML, or does not fit the type.

use miette::{Diagnostic, NamedSource, SourceSpan};
use serde::de::DeserializeOwned;
use std::{
    fmt, fs,
    ops::Range,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The text of a file, with the path it came from.
#[derive(Clone, Debug)]
pub struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// Reads a file.
    /// # Errors
    /// A [`SourceError`] without a line, if the file cannot be read or is not UTF-8.
    pub fn read(path: &Path) -> Result<Self, SourceError> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(Self { path: path.to_owned(), text }),
            Err(error) => Err(SourceError::unreadable(path, format!("cannot be read: {error}"))),
        }
    }

    /// Wraps a text that is already in memory; `path` is what errors call it.
    pub fn from_text(path: &Path, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), text: text.into() }
    }

    /// Reads the text as TOML.
    /// # Errors
    /// What the text says and what would do, at its place.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, SourceError> {
        toml::from_str(&self.text).map_err(|error| match error.span() {
            Some(span) => self.error(span, error.message()),
            None => self.error(0..0, error.message()),
        })
    }

    /// An error about a stretch of the text, in bytes.
    pub fn error(&self, span: Range<usize>, message: impl fmt::Display) -> SourceError {
        let (line, column) = self.position(span.start);
        let line_start = self.text[..span.start.min(self.text.len())].rfind('\n').map_or(0, |at| at + 1);
        let key = match self.text.get(line_start..span.start).and_then(|before| before.split_once('=')) {
            Some((key, _)) if !key.contains('"') => format!("{}: ", key.trim()),
            _ => String::new(),
        };
        SourceError {
            message: format!("{}:{line}:{column}: {key}{message}", self.path.display()),
            text: Some(NamedSource::new(self.path.display().to_string(), self.text.clone())),
            span: Some(span.into()),
        }
    }

    /// The line number of a byte, from 1.
    pub fn line(&self, at: usize) -> usize {
        self.position(at).0
    }

    fn position(&self, at: usize) -> (usize, usize) {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        let line = before.iter().filter(|&&b| b == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|&&b| b != b'\n').count() + 1;
        (line, column)
    }
}

/// What tells one version of a file from the next: editors write in place, or rename a new file over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Version {
    /// The version that is there now, if one is.
    pub fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self { inode: meta.ino(), size: meta.size(), modified: (meta.mtime(), meta.mtime_nsec()) })
    }
}

/// Something is wrong with a file. Its text is one line, fit for a log; as a [`Diagnostic`] it shows the place.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
pub struct SourceError {
    message: String,
    #[source_code]
    text: Option<NamedSource<String>>,
    #[label("here")]
    span: Option<SourceSpan>,
}

impl SourceError {
    fn unreadable(path: &Path, message: String) -> Self {
        Self { message: format!("{}: {message}", path.display()), text: None, span: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[expect(dead_code)]
        size: u8,
    }

    fn error(text: &str) -> String {
        Source::from_text(Path::new("x.toml"), text).parse::<File>().unwrap_err().to_string()
    }

    #[test]
    fn errors_name_file_line_and_key() {
        assert!(error("size = 1\nsise = 2\n").starts_with("x.toml:2:1: unknown field `sise`"));
        assert!(error("\nsize = \"a\"\n").starts_with("x.toml:2:8: size: invalid type: string \"a\""));
        assert!(error("size = \n").starts_with("x.toml:1:"));
        assert!(error("").contains("missing field `size`"));
        let missing = Source::read(Path::new("/nonexistent.toml")).unwrap_err().to_string();
        assert!(missing.starts_with("/nonexistent.toml: cannot be read"), "{missing}");
    }
}
