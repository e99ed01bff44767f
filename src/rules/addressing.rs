//! What an integration recipient can mean (DESIGN section 4, RCPT).

use crate::mail::{Address, Domain};

/// Reads integration addresses: which domains they lie in, and how a local part is cut.
#[derive(Clone, Debug)]
pub struct Addressing {
    /// Domains whose addresses are integration addresses.
    pub domains: Vec<Domain>,
    /// Characters that start a tag, as Postfix's `recipient_delimiter`; empty for none.
    pub recipient_delimiter: String,
}

/// One reading of a local part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The tenant's prefix, lower case.
    pub prefix: String,
    /// What stands before it: the project's number.
    pub project: Option<String>,
}

impl Addressing {
    /// True if the address lies in an integration domain. Such an address never becomes a participant.
    pub fn covers(&self, address: &Address) -> bool {
        self.domains.contains(address.domain())
    }

    /// All readings of an integration address, longest prefix first; none if it cannot be one (an empty label).
    pub fn readings(&self, address: &Address) -> Vec<Reading> {
        let local = address.local().to_lowercase();
        // A tag needs a name before it: "+x@" is not the address "@".
        let tag = local.char_indices().skip(1).find(|(_, c)| self.recipient_delimiter.contains(*c));
        let local = tag.map_or(local.as_str(), |(at, _)| &local[..at]);
        if local.split('.').any(|label| label.trim().is_empty()) {
            return Vec::new();
        }
        let dots = local.match_indices('.').map(|(at, _)| at);
        let whole = Reading { prefix: local.to_owned(), project: None };
        let cut =
            |at: usize| Reading { prefix: local[at + 1..].to_owned(), project: Some(local[..at].to_owned()) };
        std::iter::once(whole).chain(dots.map(cut)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readings(address: &str, delimiter: &str) -> Vec<(String, String)> {
        let addressing = Addressing {
            domains: vec![Domain::parse("severamail.test").unwrap()],
            recipient_delimiter: delimiter.to_owned(),
        };
        let found = addressing.readings(&Address::parse(address).unwrap());
        found.into_iter().map(|r| (r.project.unwrap_or_default(), r.prefix)).collect()
    }

    #[test]
    fn longest_prefix_first() {
        let expected = [("", "a.b.c"), ("a", "b.c"), ("a.b", "c")].map(|(p, t)| (p.to_owned(), t.to_owned()));
        assert_eq!(readings("A.b.C@severamail.test", ""), expected);
        assert_eq!(readings("mycompany@x.test", ""), [(String::new(), "mycompany".to_owned())]);
    }

    #[test]
    fn empty_labels_cannot_be_integration_addresses() {
        for address in
            ["\".mycompany\"@x.test", "1001.@x.test", "a..b@x.test", "\" \"@x.test", "\".\"@x.test"]
        {
            assert_eq!(readings(address, ""), [], "{address}");
        }
    }

    #[test]
    fn tags_are_cut_only_if_configured() {
        assert_eq!(readings("my+x@x.test", "+-"), [(String::new(), "my".to_owned())]);
        assert_eq!(readings("my+x@x.test", ""), [(String::new(), "my+x".to_owned())]);
        assert_eq!(readings("+x@x.test", "+"), [(String::new(), "+x".to_owned())]);
    }
}
