//! One reading of the configuration: its text, the places of its values, and what is doubtful in it.
//!
//! In: a [`Source`]. Out: errors and warnings at the place of a key, and paths that are whole.
//! Promise: files are looked at only if that was asked for: who only needs the queue needs no secret. Who asks what is
//! wrong learns of all of them at once.

use crate::source::{Source, SourceError, open_regular, unreadable, value_at};
use crate::web::SecretFile;
use ipnet::{IpNet, Ipv4Net};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt::Display,
    net::IpAddr,
    ops::Range,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// Whether the files are looked at that a configuration names.
#[derive(Clone, Copy)]
pub(super) enum Look<'a> {
    /// They need not be there.
    Away,
    /// The first that is not as it should be is an error.
    Strictly,
    /// All of them; what is wrong is told beside the configuration. Some are read in place of others.
    Throughout(&'a BTreeMap<PathBuf, PathBuf>),
}

/// A configuration that is being read.
pub(super) struct Reading<'a> {
    source: &'a Source,
    tree: Spanned<DeTable<'a>>,
    look: Look<'a>,
    /// Files that are not as they should be, where that ends nothing.
    faults: RefCell<Vec<SourceError>>,
    warnings: RefCell<Vec<String>>,
}

impl<'a> Reading<'a> {
    /// Begins one.
    pub(super) fn new(source: &'a Source, look: Look<'a>) -> Result<Self, SourceError> {
        Ok(Self {
            source,
            tree: source.tree()?,
            look,
            faults: RefCell::default(),
            warnings: RefCell::default(),
        })
    }

    /// True if the files are looked at that the configuration names.
    pub(super) fn looks(&self) -> bool {
        !matches!(self.look, Look::Away)
    }

    /// True if no file was found amiss so far.
    pub(super) fn is_faultless(&self) -> bool {
        self.faults.borrow().is_empty()
    }

    /// A fault of a file: an error, or told beside the configuration.
    pub(super) fn told(&self, fault: SourceError) -> Result<(), SourceError> {
        match self.look {
            Look::Throughout(_) => {
                self.faults.borrow_mut().push(fault);
                Ok(())
            }
            Look::Away | Look::Strictly => Err(fault),
        }
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

    /// The same, of a file as a whole.
    pub(super) fn warn_of_file(&self, warning: &str) {
        self.warnings.borrow_mut().push(warning.to_owned());
    }

    /// All warnings, in their order, and all faults of files.
    pub(super) fn into_doubts(self) -> (Vec<String>, Vec<SourceError>) {
        (self.warnings.into_inner(), self.faults.into_inner())
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

    /// That these are tables, if they are there, and that each company is one.
    pub(super) fn tables(&self, names: &[&str]) -> Result<(), SourceError> {
        for name in names {
            if let Some(list) = self.value(name).filter(|value| value.get_ref().is_array()) {
                let message = format!(
                    "{name} is there as a list: write [{name}] once, in a line of its own, and its keys below"
                );
                return Err(self.error(list.span(), message));
            }
        }
        let companies = self.value("severa").and_then(|value| value.get_ref().as_array());
        match companies.into_iter().flatten().find(|company| !company.get_ref().is_table()) {
            Some(other) => {
                let message = "no company: write [[severa]] in a line of its own, and its keys below";
                Err(self.error(other.span(), message))
            }
            None => Ok(()),
        }
    }

    /// A path as it counts: what is relative is relative to the file, wherever we were started.
    pub(super) fn complete(&self, path: &mut Spanned<PathBuf>) -> Result<(), SourceError> {
        if path.get_ref().as_os_str().is_empty() {
            return Err(self.error(path.span(), "the path is empty: write the whole path of a file"));
        }
        self.whole(path.span(), path.get_ref())?;
        if path.get_ref().is_absolute() {
            if let Look::Throughout(instead) = self.look
                && let Some(other) = instead.get(path.get_ref())
            {
                other.clone_into(path.get_mut());
            }
            return Ok(());
        }
        let text = path.get_ref().to_string_lossy().into_owned();
        if text.starts_with(['$', '~', '%']) {
            let remedy =
                "write the whole path, of a credential /run/credentials/activity-milter.service/NAME";
            let message = format!("\"{text}\": nothing is put in the place of variables here: {remedy}");
            return Err(self.error(path.span(), message));
        }
        let whole = self.source.path().parent().unwrap_or(Path::new("")).join(path.get_ref());
        let whole = std::path::absolute(&whole).unwrap_or(whole);
        let message = format!(
            "\"{}\" is relative, and taken as {}: write the whole path",
            path.get_ref().display(),
            whole.display()
        );
        self.warnings.borrow_mut().push(self.error(path.span(), message).to_string());
        *path.get_mut() = whole;
        Ok(())
    }

    /// A path that the system can be asked for.
    pub(super) fn whole(&self, span: Range<usize>, path: &Path) -> Result<(), SourceError> {
        match path.as_os_str().as_bytes().contains(&0) {
            true => Err(self.error(span, "no path has a zero byte (\\u0000): leave it out")),
            false => Ok(()),
        }
    }

    /// A file that must be there.
    pub(super) fn readable(&self, path: &Spanned<PathBuf>) -> Result<(), SourceError> {
        if !self.looks() {
            return Ok(());
        }
        match open_regular(path.get_ref()) {
            Ok(_) => Ok(()),
            Err(error) => {
                let message = format!("{} {}", path.get_ref().display(), unreadable(&error));
                self.told(self.error(path.span(), message))
            }
        }
    }

    /// A file with a secret, which must be there and hold one.
    pub(super) fn secret(&self, path: &Spanned<PathBuf>) -> Result<Option<SecretFile>, SourceError> {
        if !self.looks() {
            return Ok(None);
        }
        match SecretFile::open(path.get_ref()) {
            Ok(file) => Ok(Some(file)),
            Err(error) => self.told(self.error(path.span(), error)).map(|()| None),
        }
    }

    /// A network, or one address.
    pub(super) fn network(&self, network: &Spanned<String>) -> Result<IpNet, SourceError> {
        let text = network.get_ref().trim();
        let alone = || text.parse::<IpAddr>().map(Into::into);
        text.parse().or_else(|_| alone()).map(unmapped).map_err(|_| {
            let expected = "write one like \"192.0.2.0/24\", \"192.0.2.1\" or \"2001:db8::/32\"";
            self.error(network.span(), format!("\"{text}\" is no network: {expected}"))
        })
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
            let begun: String = after.chars().take_while(|c| c.is_alphanumeric()).collect();
            let Some((name, after)) = after.split_once('}').filter(|(name, _)| !name.contains('{')) else {
                // A brace alone is a brace.
                if begun.is_empty() {
                    rest = after;
                    continue;
                }
                let message = format!("the brace before \"{begun}\" is not closed: write {{{begun}}}");
                return Err(self.error(span, message));
            };
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

/// IPv4 in IPv6's clothes is a network of IPv4: that is what clients are asked as.
fn unmapped(network: IpNet) -> IpNet {
    let mapped = match network {
        IpNet::V6(network) if network.prefix_len() >= 96 => network.addr().to_ipv4_mapped(),
        _ => None,
    };
    mapped
        .and_then(|address| Ipv4Net::new(address, network.prefix_len() - 96).ok())
        .map_or(network, IpNet::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_ipv4_are_so_however_they_are_written() {
        for (written, expected) in [
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
            ("::ffff:192.0.2.7/128", "192.0.2.7/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(unmapped(written.parse().unwrap()).to_string(), expected, "{written}");
        }
    }
}
