//! Addresses in a text, wherever they stand and however it is written: for who is never to be recorded.
//!
//! In: a field's value, a path of SMTP. Out: each word around an `@`, as an address or as its domain alone.
//! Promise: linear; nothing that is written is too wrong to count. Fails: never.

use super::address::{Address, Domain};

/// What stands around an `@`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mention {
    /// An address.
    Address(Address),
    /// A domain, behind something that is no local part.
    Domain(Domain),
}

/// What ends a word of RFC 5322, and the quotes and dashes of typography.
fn is_sign(c: char) -> bool {
    c.is_whitespace()
        || c.is_control()
        || "()<>[]\",;:\\".contains(c)
        || !c.is_ascii() && !c.is_alphanumeric()
}

/// What no domain has.
fn is_end(c: char) -> bool {
    !c.is_alphanumeric() && !"-._".contains(c)
}

/// An `@`, as Asian keyboards write it too.
fn is_at(c: char) -> bool {
    matches!(c, '@' | '＠' | '﹫')
}

/// All of them, in order.
pub fn mentions(text: &str) -> Vec<Mention> {
    let (mut found, mut words) = (Vec::new(), text.split(is_at));
    let mut before = words.next().unwrap_or_default();
    for behind in words {
        let domain = behind.split(is_end).next().unwrap_or_default().trim_end_matches(['.', '-', '_']);
        if let Ok(domain) = Domain::parse(domain) {
            let written = before.rsplit(is_sign).next().unwrap_or_default();
            // A quote that opens before it is none of it.
            let bare = written.trim_start_matches(['\'', '`']);
            found.push(mention(written, &domain));
            if bare != written {
                found.push(mention(bare, &domain));
            }
        }
        before = behind;
    }
    found
}

fn mention(local: &str, domain: &Domain) -> Mention {
    match Address::parse(&format!("{local}@{}", domain.as_str())) {
        Ok(address) => Mention::Address(address),
        Err(_) => Mention::Domain(domain.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_wherever_they_stand() {
        let long = format!("{}@x.test", "a".repeat(300));
        for (text, expected) in [
            ("My Lawyer law@x.test", "law@x.test"),
            ("X <x y@x.test>", "y@x.test"),
            ("a@b.test@x.test", "b.test@x.test"),
            ("[law@x.test]", "law@x.test"),
            ("law@x.test/y", "law@x.test"),
            ("&lt;law@x.test&gt;", "law@x.test"),
            ("'law@x.test' via L <z@z.test>", "law@x.test"),
            ("z@z.test (law@x.test)", "law@x.test"),
            ("@x.test", "x.test"),
            ("law＠x.test", "law@x.test"),
            ("mailto:law@x.test?subject=x", "law@x.test"),
            ("law@x.test.", "law@x.test"),
            ("law@X.TEST,", "law@x.test"),
            ("rfc822;law@x.test", "law@x.test"),
            ("by mx.test for <law@x.test>; Mon, 30 Nov", "law@x.test"),
            ("o'brien@x.test", "o'brien@x.test"),
            ("a=b@x.test", "a=b@x.test"),
            ("“law@x.test”", "law@x.test"),
            ("‘law@x.test’ via L", "law@x.test"),
            ("law@x.test…", "law@x.test"),
            ("–law@x.test–", "law@x.test"),
            ("law@x.test~x", "law@x.test"),
            ("law@x.test_", "law@x.test"),
            ("law@x.test+y", "law@x.test"),
            (&long, "x.test"),
            ("law@räksmörgås.test", "law@xn--rksmrgs-5wao1o.test"),
        ] {
            let found: Vec<String> = mentions(text)
                .into_iter()
                .map(|mention| match mention {
                    Mention::Address(address) => address.to_string().to_lowercase(),
                    Mention::Domain(domain) => domain.to_string(),
                })
                .collect();
            assert!(found.iter().any(|found| found == expected), "{text}: {found:?}");
        }
        assert_eq!(mentions("nobody at all"), []);
        assert_eq!(mentions("a @ b"), []);
        // Somebody else's address is not what stands behind a sign in it.
        for text in [
            "_mary@x.test",
            "+team@x.test",
            "#team@x.test",
            "o'brien@x.test",
            "john&mary@x.test",
            "dev/team@x.test",
            "a=team@x.test",
        ] {
            assert_eq!(mentions(text).len(), 1, "{text}");
        }
    }
}
