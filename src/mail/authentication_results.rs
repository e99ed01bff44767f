//! The Authentication-Results field (RFC 8601): what a filter before us found out about a message.
//!
//! In: a field's value. Out: who says so, and the result of each method with its properties.
//! Promise: linear; comments, folds, quoted strings, versions and casing are read as the grammar has them; what does not fit
//! is no result, so that nothing passes by a reading of ours.
//! Fails: a field without a readable authserv-id, or of a version that is not ours, is none.

use super::{
    comment::Comments,
    quotable::{is_plain_address, is_plain_field},
    received::{helo_of, host_of},
};

/// The version that RFC 8601, section 2.2 defines, for the field and for its methods.
const VERSION: &str = "1";

/// Hosts on the way that are looked at: no mail has as many, but for one that goes round.
const MOST_HOSTS: usize = 50;

/// Fields as they were received, unread: whom they are from is known only to who trusts some.
#[derive(Clone, Debug, Default)]
pub struct AuthenticationFields {
    values: Vec<Vec<u8>>,
    /// Another field has what a filter may have repeated, so that it reads as a result.
    is_in_doubt: bool,
    /// Hosts on the way, the last first, and what their clients called themselves.
    hosts: Vec<(String, Vec<u8>)>,
}

impl AuthenticationFields {
    /// Sees every field of the head.
    pub(super) fn see(&mut self, name: &[u8], value: &[u8]) {
        if name.eq_ignore_ascii_case(b"Authentication-Results") {
            self.values.push(value.to_vec());
        }
        self.is_in_doubt |= !is_plain_field(name, value);
        if name.eq_ignore_ascii_case(b"Received") && self.hosts.len() < MOST_HOSTS {
            self.hosts.extend(host_of(value).zip(helo_of(value).map(<[u8]>::to_vec)));
        }
    }

    /// Hosts on the way, the last first, and what their clients called themselves, as their Received fields say it.
    pub fn hosts(&self) -> &[(String, Vec<u8>)] {
        &self.hosts
    }

    /// The values, in the order of the head; none if what they say may be what a stranger made filters say.
    pub fn values(&self) -> Option<impl Iterator<Item = &[u8]>> {
        (!self.is_in_doubt).then(|| self.values.iter().map(Vec::as_slice))
    }
}

/// One field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthenticationResults {
    /// The service that says so, in lower case.
    pub authserv_id: String,
    /// What each method found; nothing for `none`.
    pub results: Vec<MethodResult>,
    /// Names in HELO that stand before the end of the field: what follows may be what the client called itself.
    pub helo_within: Vec<String>,
}

/// What one method found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodResult {
    /// `dkim`, `spf`, `dmarc`, …, in lower case.
    pub method: String,
    /// `pass`, `fail`, `none`, …, in lower case.
    pub result: String,
    /// `header.from`, `smtp.mailfrom`, …, in lower case, and the value as it was written, without quotes.
    properties: Vec<(String, String)>,
}

impl MethodResult {
    /// The value of a property; none if it is said twice, and not the same.
    pub fn property(&self, name: &str) -> Option<&str> {
        let mut values =
            self.properties.iter().filter(|(property, _)| property == name).map(|(_, value)| value);
        let first = values.next()?;
        values.all(|value| value == first).then_some(first)
    }

    /// True if the property is there, whatever it says, and however often.
    pub fn has(&self, name: &str) -> bool {
        self.properties.iter().any(|(property, _)| property == name)
    }
}

impl AuthenticationResults {
    /// Reads a value.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut clauses = clauses(value, usize::MAX)?.into_iter();
        let mut who = clauses.next()?.into_iter();
        let authserv_id = authserv_id(who.next()?)?;
        match (who.next(), who.next()) {
            (None, _) => {}
            (Some(Token::Word(version)), None) if version == VERSION => {}
            _ => return None,
        }
        let clauses: Vec<Vec<Token>> = clauses.filter(|clause| !clause.is_empty()).collect();
        let helo_within = clauses.iter().enumerate().filter_map(|(index, clause)| {
            let at = clause.iter().position(|token| token.is("helo"))?;
            let is_last = index + 1 == clauses.len() && at + 3 == clause.len();
            match clause.get(at + 2) {
                Some(Token::Word(helo) | Token::Quoted(helo)) if !is_last => Some(helo.clone()),
                _ => None,
            }
        });
        let helo_within = helo_within.collect();
        // A word with a sign that none of a filter's has is a stranger's, whom a filter repeats.
        if clauses.iter().flatten().any(|token| !token.is_plain()) {
            return None;
        }
        let results = clauses.iter().filter_map(|clause| result(clause)).collect();
        Some(Self { authserv_id, results, helo_within })
    }
}

/// The service that a field is from, in lower case, also where the rest cannot be read.
///
/// Written so that Postfix's `header_checks` do not see it, by a quoted pair or behind a NUL, it is none: that line is
/// what keeps strangers from writing it.
pub fn authserv_id_of(value: &[u8]) -> Option<String> {
    authserv_id(clauses(value, 1)?.into_iter().next()?.into_iter().next()?)
}

/// The id without all that stands between its letters: filters read `mx . test` and `"mx".test` as `mx.test`, which
/// `header_checks` do not. None if nothing stands there.
pub fn disguised_authserv_id(value: &[u8]) -> Option<String> {
    let mut comments = Comments::of(value);
    let (mut id, mut at, mut is_disguised) = (Vec::new(), 0, false);
    while let Some(&b) = value.get(at).filter(|b| **b != b';') {
        let end = comments.end(at);
        let is_blank = b.is_ascii_whitespace();
        if end.is_none() && (b.is_ascii_alphanumeric() || b"-._".contains(&b) || !b.is_ascii()) {
            id.push(b.to_ascii_lowercase());
        } else {
            is_disguised |= !is_blank || !id.is_empty();
        }
        at = end.unwrap_or(at + 1);
    }
    is_disguised.then(|| String::from_utf8(id).ok()).flatten()
}

fn authserv_id(token: Token) -> Option<String> {
    match token {
        // No letter of another alphabet becomes one of this: `header_checks` would not see it.
        Token::Word(word) | Token::Quoted(word) if !word.is_empty() => Some(word.to_ascii_lowercase()),
        _ => None,
    }
}

/// A piece of a clause; white space and comments lie between them.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// Anything up to white space, a comment or a sign.
    Word(String),
    /// A quoted string, without its quotes.
    Quoted(String),
    /// `=`, or `/` of a method's version, or `.` of a property.
    Sign(u8),
}

impl Token {
    /// True if it is no word, or one of those that filters write: a name, a number, an address, `<>`.
    fn is_plain(&self) -> bool {
        match self {
            Self::Word(word) if word.contains('@') => is_plain_address(word.as_bytes()),
            Self::Word(word) => word == "<>" || !word.contains([')', ',', '\'', '<', '>']),
            Self::Quoted(_) | Self::Sign(_) => true,
        }
    }

    fn is(&self, wanted: &str) -> bool {
        matches!(self, Self::Word(word) if word.eq_ignore_ascii_case(wanted))
    }
}

/// The tokens between semicolons, of the first `most` clauses; none if a comment or a quoted string never ends, it is not
/// UTF-8, or somebody hides something.
fn clauses(value: &[u8], most: usize) -> Option<Vec<Vec<Token>>> {
    if value.contains(&0) {
        return None;
    }
    let mut comments = Comments::of(value);
    let mut all = vec![Vec::new()];
    let mut at = 0;
    while let Some(&b) = value.get(at) {
        // The authserv-id has dots; the names of methods and properties end at them, and a value at no sign at all.
        let count = all.len();
        let in_result = count > 1;
        let clause = all.last_mut()?;
        let in_value = match clause.last() {
            Some(Token::Sign(b'=')) => true,
            // An address whose local part is quoted goes on.
            Some(Token::Quoted(_)) => b == b'@',
            _ => false,
        };
        let begin = at;
        at = match b {
            b' ' | b'\t' | b'\r' | b'\n' => at + 1,
            b'(' => {
                let end = comments.end(at)?;
                // For some, brackets within quotes are none: what ends elsewhere for them is what a stranger wrote.
                if quoted_comment_end(value, at) != Some(end) {
                    return None;
                }
                end
            }
            b';' if count >= most => return Some(all),
            b';' => {
                all.push(Vec::new());
                at + 1
            }
            b'"' => {
                let (text, end) = quoted(value, at)?;
                clause.push(Token::Quoted(text));
                end
            }
            b'=' | b'/' | b'.' if in_result && !in_value => {
                clause.push(Token::Sign(b));
                at + 1
            }
            _ => {
                let end = word_end(value, at, in_result && !in_value);
                clause.push(Token::Word(str::from_utf8(&value[at..end]).ok()?.to_owned()));
                end
            }
        };
        // Nobody but a stranger whom a filter repeats writes a quoted pair.
        if value[begin..at].contains(&b'\\') {
            return None;
        }
    }
    Some(all)
}

/// The offset behind the comment that opens at `at`, where brackets within quotes are none.
fn quoted_comment_end(value: &[u8], at: usize) -> Option<usize> {
    let (mut depth, mut is_quoted) = (0usize, false);
    for (i, &b) in value.iter().enumerate().skip(at) {
        match b {
            b'"' => is_quoted = !is_quoted,
            b'(' if !is_quoted => depth += 1,
            b')' if !is_quoted => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(i + 1);
        }
    }
    None
}

/// Where the word ends that begins at `at`; a name ends at signs too.
fn word_end(value: &[u8], at: usize, is_name: bool) -> usize {
    let ends = |b: &u8| match b {
        b' ' | b'\t' | b'\r' | b'\n' | b';' | b'(' | b'"' => true,
        b'=' | b'/' | b'.' => is_name,
        _ => false,
    };
    // The first byte belongs to it, whatever it is: somebody has looked.
    value[at + 1..].iter().position(ends).map_or(value.len(), |length| at + 1 + length)
}

/// The text of a quoted string that opens at `at`, and the offset behind it.
fn quoted(value: &[u8], at: usize) -> Option<(String, usize)> {
    let (mut text, mut i) = (Vec::new(), at + 1);
    loop {
        match value.get(i)? {
            b'"' => return Some((String::from_utf8(text).ok()?, i + 1)),
            b'\\' => text.push(*value.get(i + 1)?),
            b => text.push(*b),
        }
        i += if value[i] == b'\\' { 2 } else { 1 };
    }
}

/// `method [/ version] = result [reason = …] [ptype . property = …]`; none for `none`, and for what does not fit.
fn result(clause: &[Token]) -> Option<MethodResult> {
    use Token::{Quoted, Sign, Word};
    let (method, result, mut rest) = match clause {
        [Word(method), Sign(b'='), Word(result), rest @ ..] => (method, result, rest),
        [Word(method), Sign(b'/'), Word(version), Sign(b'='), Word(result), rest @ ..]
            if version == VERSION =>
        {
            (method, result, rest)
        }
        _ => return None,
    };
    let mut properties = Vec::new();
    loop {
        rest = match rest {
            [] => break,
            // A reason; what else has no kind (`action=none`, `x-bits=2048`) is not of RFC 8601.
            [Word(_), Sign(b'='), Word(_) | Quoted(_), rest @ ..] => rest,
            // An address whose local part is quoted.
            [Word(kind), Sign(b'.'), Word(name), Sign(b'='), Quoted(local), Word(domain), rest @ ..]
                if domain.starts_with('@') =>
            {
                properties.push((property(kind, name), format!("{local}{domain}")));
                rest
            }
            [Word(kind), Sign(b'.'), Word(name), Sign(b'='), Word(value) | Quoted(value), rest @ ..] => {
                properties.push((property(kind, name), value.clone()));
                rest
            }
            _ => return None,
        };
    }
    let lower = |word: &str| word.to_ascii_lowercase();
    Some(MethodResult { method: lower(method), result: lower(result), properties })
}

fn property(kind: &str, name: &str) -> String {
    format!("{kind}.{name}").to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `id: method=result property=value …; …`, or nothing.
    fn read(value: &str) -> String {
        let Some(AuthenticationResults { authserv_id, results, .. }) =
            AuthenticationResults::parse(value.as_bytes())
        else {
            return String::new();
        };
        let word = |r: &MethodResult| {
            let properties: String =
                r.properties.iter().map(|(name, value)| format!(" {name}={value}")).collect();
            format!("{}={}{properties}", r.method, r.result)
        };
        format!("{authserv_id}: {}", results.iter().map(word).collect::<Vec<_>>().join("; "))
    }

    #[test]
    fn fields_are_read_as_the_grammar_has_them() {
        for (value, expected) in [
            // RFC 8601, appendix B.
            ("example.org 1; none", "example.org: "),
            (
                "example.com;\r\n spf=pass smtp.mailfrom=example.net",
                "example.com: spf=pass smtp.mailfrom=example.net",
            ),
            (
                "example.com; auth=pass (cram-md5) smtp.auth=sender@example.net; spf=pass smtp.mailfrom=example.net",
                "example.com: auth=pass smtp.auth=sender@example.net; spf=pass smtp.mailfrom=example.net",
            ),
            (
                "example.com; dkim=pass reason=\"good signature\"\r\n header.i=@mail-router.example.net",
                "example.com: dkim=pass header.i=@mail-router.example.net",
            ),
            (
                "foo.example.net (foobar) 1 (baz);\r\n dkim (Because I like it) / 1 (One yay) = (wait for it) fail\r\n policy \
                 (A dot can go here) . (like that) expired\r\n (this surprised me) = (as I wasn't expecting it) 1362471462",
                "foo.example.net: dkim=fail policy.expired=1362471462",
            ),
            // opendkim, opendmarc, rspamd.
            (
                "MX.Test; dkim=pass (2048-bit key; unprotected) header.d=x.test header.i=@x.test header.a=rsa-sha256 \
                 header.s=s header.b=\"a+b/c=\"",
                "mx.test: dkim=pass header.d=x.test header.i=@x.test header.a=rsa-sha256 header.s=s header.b=a+b/c=",
            ),
            (
                "mx.test;\r\n\tdkim=pass header.d=x.test header.s=s header.b=AbC=;\r\n\tdmarc=pass (policy=none) \
                 header.from=x.test;\r\n\tspf=pass (mx: domain of \"a@x\" is ok) smtp.mailfrom=anna@x.test",
                "mx.test: dkim=pass header.d=x.test header.s=s header.b=AbC=; dmarc=pass header.from=x.test; spf=pass \
                 smtp.mailfrom=anna@x.test",
            ),
            ("mx.test; SPF=Pass SMTP.MailFrom=X.test", "mx.test: spf=pass smtp.mailfrom=X.test"),
            ("\"mx.test\"; spf=none", "mx.test: spf=none"),
            ("mx.test; spf=pass smtp.mailfrom=\"a b\"@x.test", "mx.test: spf=pass smtp.mailfrom=a b@x.test"),
            ("mx.test", "mx.test: "),
            ("mx.test;", "mx.test: "),
            // Other versions are other languages.
            ("mx.test 2; spf=pass", ""),
            ("mx.test; dkim/2=pass header.d=x.test; spf=pass", "mx.test: spf=pass"),
            // What does not fit is no result.
            ("", ""),
            ("; spf=pass", ""),
            ("mx.test spf=pass", ""),
            ("mx.test; spf pass", "mx.test: "),
            ("mx.test; dmarc=pass header.from", "mx.test: "),
            ("mx.test; dmarc=pass header.from=", "mx.test: "),
            // What a stranger wrote as his envelope sender.
            ("mx.test; spf=pass smtp.mailfrom=foo;dkim=pass header.d=x.test;x=y)x@evil.test", ""),
            ("mx.test; spf=pass smtp.mailfrom=a;dkim=pass(x)header.d=x.test;x=y:x@evil.test", ""),
            ("mx.test; spf=pass smtp.mailfrom=x.test,@x.test:x@evil.test", ""),
            ("mx.test; spf=pass smtp.mailfrom=x.test x=y)x@evil.test", ""),
            ("mx.test; spf=pass smtp.mailfrom=x.test'.evil.test", ""),
            (
                "mx.test; spf=pass smtp.mailfrom=o'brien@x.test",
                "mx.test: spf=pass smtp.mailfrom=o'brien@x.test",
            ),
            ("mx.test; spf=none smtp.mailfrom=<>", "mx.test: spf=none smtp.mailfrom=<>"),
            (
                "mx.test; dkim=pass header.i=@x.test header.s=s header.b=AbC+/d; spf=pass smtp.mailfrom=b+1=y.test@x.test; iprev=pass policy.iprev=2001:db8::1",
                "mx.test: dkim=pass header.i=@x.test header.s=s header.b=AbC+/d; spf=pass smtp.mailfrom=b+1=y.test@x.test; iprev=pass policy.iprev=2001:db8::1",
            ),
            ("mx.test; dmarc=pass action=none header.from=x.test", "mx.test: dmarc=pass header.from=x.test"),
            (
                "mx.test; dkim=pass (1024 bit) x-bits=1024 header.d=x.test",
                "mx.test: dkim=pass header.d=x.test",
            ),
            ("mx.test; spf=temperror (of \"b\\\"a);dkim=pass(x)header.d=x.test;(\": e) smtp.helo=x", ""),
            ("mx.test; spf=temperror (of \"b\"a);dkim=pass(x)header.d=x.test;(\": e) smtp.helo=x", ""),
            (
                "mx.test; spf=none (of \"a\" (b)) smtp.mailfrom=x.test",
                "mx.test: spf=none smtp.mailfrom=x.test",
            ),
            ("mx.test; dmarc=pass and more", "mx.test: "),
            ("mx.test; dmarc=pass (never closed", ""),
            (
                "mx.test; spf=pass (of \"a@x.test\" (c)) smtp.mailfrom=x.test",
                "mx.test: spf=pass smtp.mailfrom=x.test",
            ),
            (
                "mx.test; spf=pass (of \"a) ; dkim=pass header.d=x.test; x=y (b\"@evil.test) smtp.mailfrom=evil.test",
                "",
            ),
            ("mx.test; dmarc=pass header.from=\"x.test", ""),
            ("(mx.test; spf=pass) other.test; spf=fail", "other.test: spf=fail"),
        ] {
            assert_eq!(read(value), expected, "{value}");
        }
    }

    #[test]
    fn whose_field_it_is_is_known_where_the_rest_cannot_be_read() {
        for (value, expected) in [
            ("mx.test; dmarc=pass (never closed", Some("mx.test")),
            ("(a; b) MX.Test 1 ; spf", Some("mx.test")),
            ("\"mx.test\"", Some("mx.test")),
            ("(never closed mx.test; spf=pass", None),
            ("\"mx.\\test\"; spf=pass", None),
            ("(\0) mx.test; spf=pass", None),
            ("mx.test\0", None),
            ("mx.test; dmarc=fail (a\\b) header.from=x.test", Some("mx.test")),
            ("mx.te\r\n st; spf=pass", Some("mx.te")),
            // The Kelvin sign is no k, and a capital \u{d6} no \u{f6}, for `header_checks`.
            ("m\u{212a}.test; spf=pass", Some("m\u{212a}.test")),
            ("\u{d6}.test; spf=pass", Some("\u{d6}.test")),
            ("; spf=pass", None),
            ("", None),
        ] {
            assert_eq!(authserv_id_of(value.as_bytes()).as_deref(), expected, "{value}");
        }
    }

    #[test]
    fn an_id_may_be_disguised() {
        for (value, expected) in [
            ("mx . test; dkim=pass", Some("mx.test")),
            ("mx .test 1; dkim=pass", Some("mx.test1")),
            ("\"mx\".test; dkim=pass", Some("mx.test")),
            ("mx(c).test; dkim=pass", Some("mx.test")),
            ("m\rx.test; dkim=pass", Some("mx.test")),
            ("mx\\.test; dkim=pass", Some("mx.test")),
            ("mx.test; dkim=pass", None),
            ("\r\n mx.test;dkim=pass", None),
        ] {
            assert_eq!(disguised_authserv_id(value.as_bytes()).as_deref(), expected, "{value}");
        }
    }

    #[test]
    fn what_follows_helo_may_be_of_it() {
        for (value, expected) in [
            ("m; spf=none smtp.helo=pc.test", false),
            ("m; spf=pass smtp.mailfrom=x.test smtp.helo=pc.test;", false),
            (
                "m; spf=pass smtp.mailfrom=x.test (client-ip=192.0.2.7; helo=pc.test; envelope-from=a@x.test)",
                false,
            ),
            ("m; dkim=none; spf=none smtp.helo=pc.test (c)", false),
            ("m; spf=none SMTP.HELO=a;spf=pass(x)smtp.mailfrom=x.test;x=y", true),
            ("m; spf=none smtp.helo=a smtp.mailfrom=x.test", true),
            ("m; spf=none smtp.helo=pc.test; dmarc=pass header.from=x.test", true),
        ] {
            let parsed = AuthenticationResults::parse(value.as_bytes()).unwrap();
            assert_eq!(!parsed.helo_within.is_empty(), expected, "{value}");
        }
    }

    #[test]
    fn a_property_said_twice_is_said_once_or_not_at_all() {
        let of = |value: &str| {
            let parsed = AuthenticationResults::parse(value.as_bytes()).unwrap();
            parsed.results[0].property("header.from").map(str::to_owned)
        };
        assert_eq!(of("m; dmarc=pass header.from=x.test header.from=x.test").as_deref(), Some("x.test"));
        assert_eq!(of("m; dmarc=pass header.from=x.test header.from=y.test"), None);
        assert_eq!(of("m; dmarc=pass"), None);
    }
}
