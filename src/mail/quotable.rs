//! Whether what a stranger writes is safe in a filter's mouth.
//!
//! Filters repeat in Authentication-Results what the client said: the envelope sender and HELO, tags of signatures, the
//! domain in From. Not all of them quote it as RFC 8601, section 2.2 asks: OpenDKIM writes the decoded `i=` as it is, rspamd
//! an envelope sender into a comment. What has a `;` or a bracket in it may then read as a result that nobody found.
//!
//! In: what filters repeat. Out: whether it can be read in one way only.
//! Promise: linear; what real mail has there is plain. Fails: never; what is not clear is not plain.

use super::{
    comment::{Comments, closing_quote},
    transfer_encoding::unescape,
};

/// Signs that end a value, a comment or a quoted string.
const SIGNS: &[u8] = b";()\"\\<>,";

/// True if nothing in a word ends it: no sign of the grammar, no white space, no control character.
fn is_plain(word: &[u8]) -> bool {
    word.iter().all(|b| !SIGNS.contains(b) && !b.is_ascii_whitespace() && !b.is_ascii_control())
}

/// The same of an envelope sender: one `@`, and a domain without any sign. OpenDMARC 1.4 takes the domain behind the first
/// `@` up to an apostrophe, and SPF is asked for the one behind the last.
pub fn is_plain_path(path: &[u8]) -> bool {
    let inner = path.strip_prefix(b"<").and_then(|path| path.strip_suffix(b">"));
    is_plain_address(inner.unwrap_or(path))
}

/// A local part with an `@` and a domain, or a word alone.
pub(super) fn is_plain_address(address: &[u8]) -> bool {
    match memchr::memrchr(b'@', address) {
        Some(at) => {
            let local = &address[..at];
            is_plain(local) && !local.iter().any(|b| b"@:".contains(b)) && is_plain_host(&address[at + 1..])
        }
        None => is_plain(address) && !address.contains(&b':'),
    }
}

/// The same of a domain, and of HELO: letters of any alphabet, digits, and what host names have between them; or an address
/// literal.
pub fn is_plain_host(domain: &[u8]) -> bool {
    let literal = domain.strip_prefix(b"[").and_then(|domain| domain.strip_suffix(b"]"));
    let of =
        |signs: &'static [u8]| move |b: &u8| b.is_ascii_alphanumeric() || !b.is_ascii() || signs.contains(b);
    match literal {
        Some(literal) => literal.iter().all(of(b".:-")),
        None => domain.iter().all(of(b".-_")),
    }
}

/// The same of a field that filters repeat; any other field is plain.
pub(super) fn is_plain_field(name: &[u8], value: &[u8]) -> bool {
    let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
    match () {
        () if is("DKIM-Signature") || is("ARC-Seal") || is("ARC-Message-Signature") => {
            is_plain_signature(value)
        }
        () if is("From") => is_plain_list(value),
        () => true,
    }
}

/// A list of tags (RFC 6376, section 3.2): those that filters name, in whatever way they read names.
fn is_plain_signature(value: &[u8]) -> bool {
    value.split(|&b| b == b';').all(|tag| {
        let Some(at) = tag.iter().position(|&b| b == b'=') else { return true };
        let (name, value) = (tag[..at].trim_ascii(), tag[at + 1..].trim_ascii());
        match name {
            // Base64, folded anywhere.
            b"b" | b"bh" => value.iter().all(|b| !SIGNS.contains(b)),
            b"d" => is_plain_host(&decoded(value)),
            // What nobody repeats.
            b"c" | b"h" | b"l" | b"q" | b"t" | b"v" | b"x" | b"z" => true,
            // Whatever else there is, also a name with a sign that others take for a blank.
            _ => is_plain_address(&decoded(value)),
        }
    })
}

/// What `i=` may be written in (RFC 6376, section 2.11); others decode other tags too.
fn decoded(value: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(value.len());
    unescape(value, &mut decoded);
    decoded
}

/// Addresses with names: filters repeat the domain, which may be all that stands behind the `@`, without blanks.
fn is_plain_list(value: &[u8]) -> bool {
    let mut comments = Comments::of(value);
    let (mut at, mut domain, mut is_closed) = (0, None::<Vec<u8>>, true);
    while let Some(&b) = value.get(at) {
        // Names and comments are nobody's domain.
        let quoted = if b == b'"' && is_closed { closing_quote(value, at).map(|end| end + 1) } else { None };
        is_closed &= b != b'"' || quoted.is_some();
        if let Some(end) = comments.end(at).or(quoted) {
            at = end;
            continue;
        }
        match (b, &mut domain) {
            (b'@' | b'<' | b'>' | b',', before) => {
                // What stands before a bracket is a name, for most.
                let is_fine = |domain: &Vec<u8>| match b {
                    b'<' => !domain.iter().any(|b| SIGNS.contains(b)),
                    _ => is_plain_end(domain),
                };
                if before.take().is_some_and(|domain| !is_fine(&domain)) {
                    return false;
                }
                domain = (b == b'@').then(Vec::new);
            }
            (_, Some(domain)) => domain.push(b),
            (_, None) => {}
        }
        at += 1;
    }
    domain.is_none_or(|domain| is_plain_end(&domain))
}

/// A domain at the end of a list, without blanks and without the end of a group.
fn is_plain_end(domain: &[u8]) -> bool {
    let domain = domain.trim_ascii();
    is_plain_host(domain.strip_suffix(b";").unwrap_or(domain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_real_mail_are_plain() {
        for (path, expected) in [
            ("<anna@x.test>", true),
            ("<>", true),
            ("", true),
            ("pc.test", true),
            ("[192.0.2.1]", true),
            ("<bounce+anna=y.test@x.test>", true),
            ("<SRS0=HHH=TT=y.test=a@x.test>", true),
            ("<prvs=1234=a@x.test>", true),
            ("<räksmörgås@x.test>", true),
            ("<o'brien@x.test>", true),
            ("<a@[192.0.2.1]>", true),
            ("<a@[IPv6:2001:db8::1]>", true),
            ("<a@mycompany.test'@evil.test>", false),
            ("<a@mycompany.test'x@evil.test>", false),
            ("<@mycompany.test':x@evil.test>", false),
            ("<(x@foo;dkim=pass header.d=x.test;x=y)x@evil.test>", false),
            ("<a@mycompany.test'.evil.test>", false),
            ("<a@mycompany.test,.evil.test>", false),
            ("<\"a b\"@x.test>", false),
            ("<\"a) ; dkim=pass header.d=x.test; x=y (b\"@evil.test>", false),
            ("<a;b@x.test>", false),
            ("<@relay.test,@b.test:a@x.test>", false),
            ("a);dkim=pass(x)header.d=x.test;(", false),
            ("a;b", false),
            ("a\tb", false),
            ("<a@x.test", false),
        ] {
            assert_eq!(is_plain_path(path.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn fields_that_read_in_two_ways_are_not_plain() {
        for (name, value, expected) in [
            (
                "DKIM-Signature",
                " v=1; a=rsa-sha256; c=relaxed/simple; d=x.test;\r\n\ti=@x.test; s=2026; t=1; h=from : to;\r\n\tbh=AbC+/=;\r\n b=Ab\r\n\tcd==",
                true,
            ),
            ("dkim-signature", "d=x.test; i=a+b=3Dc=2E@x.test", true),
            ("DKIM-Signature", "d=x.test; i=a=3B=20dkim=3Dpass@x.test", false),
            ("DKIM-Signature", "d=x.test; i=\"a\"@x.test", false),
            ("DKIM-Signature", "d=x.test; i\u{b}=a=3B=20dkim=3Dpass@x.test", false),
            ("DKIM-Signature", "d=x.test; i=\u{b}a@x.test", false),
            ("DKIM-Signature", "d=x.test; I=a=3Bdkim=3Dpass@x.test", false),
            ("DKIM-Signature", "d=x.test; z=From:Anna|Subject:a=3Bb; dara=google.com; s=s", true),
            ("DKIM-Signature", "d=x.test; i=a header.d=y.test@x.test", false),
            ("DKIM-Signature", "d=x.test; i=a=20header.d=3Dy.test@x.test", false),
            ("DKIM-Signature", "d=x.test=3Bdkim=3Dpass; s=s", false),
            ("DKIM-Signature", "d=x.test; s=s(; b=\"AB", false),
            ("DKIM-Signature", "d=x.test; b=A\"(B", false),
            ("ARC-Seal", "i=1; a=rsa-sha256; d=x.test; s=s; cv=none; b=AB=", true),
            ("ARC-Seal", "i=1; d=x.test\")=3Bdkim=3Dpass; cv=none", false),
            ("ARC-Message-Signature", "i=1; s=(", false),
            ("From", " Anna <anna@x.test>", true),
            ("From", " \"Doe; John\" <a@x.test> (a; b)", true),
            ("From", " =?utf-8?q?a=3B?= <a@x.test>", true),
            ("From", " <x@evil.test;dkim=pass header.d=x.test>", false),
            ("From", " <x@evil.test ;dkim=pass(x)header.d=x.test>", false),
            ("From", " x@evil.test;dkim=pass(x)header.d=x.test", false),
            ("From", " x@evil.test(c);dkim=pass(x)header.d=x.test", false),
            ("From", " x@evil.test;dkim=pass(x)header.d=x.test;", false),
            ("From", " Anna :) <anna@x.test>", true),
            ("From", " Staff: anna@x.test, bo@x.test;", true),
            ("From", " \"anna@x.test\" <anna@x.test>", true),
            ("From", " 'anna@x.test' via L <l@x.test>", true),
            ("From", " anna@x.test (Anna; Ms)", true),
            ("From", " Anna (anna@x.test) <anna@x.test>", true),
            ("From", " \"Aalto, Anna (anna@old.test)\" <anna@x.test>", true),
            ("From", " \"Anna (Sales @ HQ)\" <anna@x.test>", true),
            ("From", " \"anna@x.test; Anna\" <anna@x.test>", true),
            ("From", " \"Anna \\\"@anna\\\" Aalto\" <anna@x.test>", true),
            ("From", " x@mycompany.test'.evil.test", false),
            ("From", " <x@mycompany.test'.evil.test>", false),
            ("From", " <anna@räksmörgås.test>", true),
            ("DKIM-Signature", "d=mycompany.test'.evil.test; s=s", false),
            ("DKIM-Signature", "d=x.test; i=@x.test; s=k1._domain; a=rsa-sha256; cv=none", true),
            ("To", " a;b", true),
        ] {
            assert_eq!(is_plain_field(name.as_bytes(), value.as_bytes()), expected, "{name}: {value}");
        }
    }
}
