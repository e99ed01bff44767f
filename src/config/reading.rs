//! One reading of the configuration: its text, the places of its values, and what is doubtful in it.
//!
//! In: a [`Source`]. Out: errors and warnings at the place of a key, and paths that are whole.
//! Promise: files are looked at only if that was asked for: who only needs the queue needs no secret.

use crate::source::{Source, SourceError, open_regular, unreadable, value_at};
use crate::web::SecretFile;
use std::{
    cell::RefCell,
    fmt::Display,
    ops::Range,
    path::{Path, PathBuf},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// A configuration that is being read.
pub(super) struct Reading<'a> {
    source: &'a Source,
    tree: Spanned<DeTable<'a>>,
    /// Whether the files are looked at that it names.
    looks: bool,
    warnings: RefCell<Vec<String>>,
}

impl<'a> Reading<'a> {
    /// Begins one.
    pub(super) fn new(source: &'a Source, looks: bool) -> Result<Self, SourceError> {
        Ok(Self { source, tree: source.tree()?, looks, warnings: RefCell::default() })
    }

    /// True if the files are looked at that the configuration names.
    pub(super) fn looks(&self) -> bool {
        self.looks
    }

    pub(super) fn error(&self, span: Range<usize>, message: impl Display) -> SourceError {
        self.source.error(span, message)
    }

    /// An error at a dotted key.
    pub(super) fn error_at(&self, key: &str, message: impl Display) -> SourceError {
        self.source.error(self.place(key), message)
    }

    /// Something works, and probably not as it was meant.
    pub(super) fn warn(&self, key: &str, message: impl Display) {
        let warning = self.source.error(self.place(key), message).to_string();
        self.warnings.borrow_mut().push(warning);
    }

    /// All warnings, in their order.
    pub(super) fn into_warnings(self) -> Vec<String> {
        self.warnings.into_inner()
    }

    /// The value of a dotted key, if it is written.
    pub(super) fn value(&self, key: &str) -> Option<&Spanned<DeValue<'a>>> {
        value_at(self.tree.get_ref(), key)
    }

    /// Where a dotted key is written; else where its table is; else the beginning.
    pub(super) fn place(&self, key: &str) -> Range<usize> {
        match (self.value(key), key.rsplit_once('.')) {
            (Some(value), _) => value.span(),
            (None, Some((table, _))) => self.place(table),
            (None, None) => 0..0,
        }
    }

    /// A path as it counts: what is relative is relative to the file, wherever we were started.
    pub(super) fn complete(&self, path: &mut Spanned<PathBuf>) -> Result<(), SourceError> {
        if path.get_ref().as_os_str().is_empty() {
            return Err(self.error(path.span(), "the path is empty: write the whole path of a file"));
        }
        if path.get_ref().is_absolute() {
            return Ok(());
        }
        let whole = self.source.path().parent().unwrap_or(Path::new("")).join(path.get_ref());
        let message = format!(
            "\"{}\" is relative, and taken as {}: write the whole path",
            path.get_ref().display(),
            whole.display()
        );
        self.warnings.borrow_mut().push(self.error(path.span(), message).to_string());
        *path.get_mut() = whole;
        Ok(())
    }

    /// A file that must be there.
    pub(super) fn readable(&self, path: &Spanned<PathBuf>) -> Result<(), SourceError> {
        if !self.looks {
            return Ok(());
        }
        match open_regular(path.get_ref()) {
            Ok(_) => Ok(()),
            Err(error) => {
                let message = format!("{} {}", path.get_ref().display(), unreadable(&error));
                Err(self.error(path.span(), message))
            }
        }
    }

    /// A file with a secret, which must be there and hold one.
    pub(super) fn secret(&self, path: &Spanned<PathBuf>) -> Result<Option<SecretFile>, SourceError> {
        if !self.looks {
            return Ok(None);
        }
        SecretFile::open(path.get_ref()).map(Some).map_err(|error| self.error(path.span(), error))
    }

    /// A text that must say something, in one line.
    pub(super) fn said(&self, key: &str, text: &str) -> Result<(), SourceError> {
        if text.trim().is_empty() {
            return Err(self.error_at(key, "the text is empty: write one, or remove the key"));
        }
        if text.chars().any(char::is_control) {
            return Err(self.error_at(key, "the text has a control character: write one line without it"));
        }
        Ok(())
    }

    /// A text in which braces stand for something.
    pub(super) fn placeholders(
        &self,
        span: Range<usize>,
        text: &str,
        known: &[&str],
    ) -> Result<(), SourceError> {
        let mut rest = text;
        while let Some((_, after)) = rest.split_once('{') {
            let Some((name, after)) = after.split_once('}') else { return Ok(()) };
            if !known.contains(&name) {
                let there = match known {
                    [] => "this text has none".to_owned(),
                    known => {
                        format!(
                            "there is {}",
                            known.iter().map(|name| format!("{{{name}}}")).collect::<Vec<_>>().join(" and ")
                        )
                    }
                };
                return Err(self.error(span, format!("nothing stands for {{{name}}}: {there}")));
            }
            rest = after;
        }
        Ok(())
    }
}
