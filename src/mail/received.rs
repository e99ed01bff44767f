//! The Received field as Postfix writes it: who was logged in (`smtpd_sasl_authenticated_header = yes`).
//!
//! In: the field's value, and the host whose word counts. Out: the login's name.
//! Promise: what the client says (its HELO, a certificate's name) stands inside comments or as words, and is never taken
//! for the login: that is a comment of its own, between `from` and `by`.
//! Fails: another host's field, and one that says it twice, says nothing.

use super::comment::Comments;

/// What a client called itself, as the host that took its message says it.
pub fn helo_of(value: &[u8]) -> Option<&[u8]> {
    let mut words = value.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let is_from = words.next()?.eq_ignore_ascii_case(b"from");
    is_from.then(|| words.next()).flatten()
}

/// The host that wrote a field, in lower case.
pub(super) fn host_of(value: &[u8]) -> Option<String> {
    let mut words = value.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    words.find(|word| word.eq_ignore_ascii_case(b"by"))?;
    words.next().map(|host| String::from_utf8_lossy(host).to_ascii_lowercase())
}

/// The name in `(Authenticated sender: NAME)` of a field that `host` wrote. `queue_id`: the host's own, if it is known: a
/// field with another one was there before.
pub fn authenticated_sender(value: &[u8], host: &str, queue_id: Option<&str>) -> Option<String> {
    let mut comments = Comments::of(value);
    let (mut words, mut logins) = (Vec::new(), Vec::new());
    let mut at = 0;
    while let Some(&byte) = value.get(at) {
        at = match byte {
            b' ' | b'\t' | b'\r' | b'\n' => at + 1,
            b'(' => {
                let end = comments.end(at)?;
                logins.extend(login(&value[at + 1..end - 1]).filter(|_| words.len() == 2));
                end
            }
            // Behind the semicolon stands the date.
            b';' => break,
            _ => {
                let ends = |b: &u8| b" \t\r\n(;".contains(b);
                let end = value[at..].iter().position(ends).map_or(value.len(), |length| at + length);
                words.push(&value[at..end]);
                end
            }
        };
    }
    let is = |word: &[u8], wanted: &str| word.eq_ignore_ascii_case(wanted.as_bytes());
    match (words.as_slice(), logins.as_slice()) {
        ([from, _, by, name, rest @ ..], [login])
            if is(from, "from") && is(by, "by") && is(name, host) && is_its(rest, queue_id) =>
        {
            Some(login.clone())
        }
        _ => None,
    }
}

/// True if what stands behind the host's name has the queue id.
fn is_its(words: &[&[u8]], queue_id: Option<&str>) -> bool {
    let Some(queue_id) = queue_id else { return true };
    let mut pairs = words.windows(2);
    pairs.any(|pair| pair[0].eq_ignore_ascii_case(b"id") && pair[1] == queue_id.as_bytes())
}

/// What a comment says of the login.
fn login(comment: &[u8]) -> Option<String> {
    let name = comment.strip_prefix(b"Authenticated sender: ")?;
    let name = str::from_utf8(name).ok()?.trim();
    // Postfix makes brackets safe by changing them: such a name is not the login any more.
    let is_whole =
        !name.is_empty() && !name.contains(['(', ')', '\\']) && !name.chars().any(char::is_control);
    is_whole.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_login_is_what_our_own_host_says_between_from_and_by() {
        for (value, expected) in [
            (
                " from pc.test (unknown [192.0.2.7])\r\n\t(using TLSv1.3 with cipher X (256/256 bits))\r\n\t(No client \
                 certificate requested)\r\n\t(Authenticated sender: anna@mycompany.test)\r\n\tby MX.test (Postfix) with \
                 ESMTPSA id 4Xy\r\n\tfor <x@y.test>; Mon, 23 Nov 2026 18:00:00 +0000 (UTC)",
                Some("anna@mycompany.test"),
            ),
            ("from pc (pc [192.0.2.7]) (Authenticated sender: anna) by mx.test (Postfix)", Some("anna")),
            // Another host, or none.
            ("from pc (pc [192.0.2.7]) (Authenticated sender: anna) by other.test (Postfix)", None),
            ("from pc (pc [192.0.2.7]) (Authenticated sender: anna)", None),
            ("from pc (pc [192.0.2.7]) (Authenticated sender: anna) with x by mx.test", None),
            ("by mx.test (Postfix, from userid 0) (Authenticated sender: anna) id 4Xy", None),
            // Nobody was logged in.
            ("from pc (pc [192.0.2.7]) by mx.test (Postfix) with ESMTP id 4Xy", None),
            // In the wrong place: what the client says, or what comes later.
            ("from pc (pc (Authenticated sender: anna) [192.0.2.7]) by mx.test (Postfix)", None),
            ("from (Authenticated sender: anna) pc (pc [192.0.2.7]) by mx.test (Postfix)", None),
            ("from pc (pc [192.0.2.7]) by mx.test (Postfix) (Authenticated sender: anna) id 4Xy", None),
            ("from pc (pc [192.0.2.7]) by mx.test (Postfix); Mon (Authenticated sender: anna)", None),
            ("from pc (Authenticated sender: a) (Authenticated sender: b) by mx.test", None),
            ("from pc (Authenticated sender: ) by mx.test", None),
            ("from pc (Authenticated sender: a\\)b) by mx.test", None),
            ("from pc (Authenticated sender: a by mx.test", None),
        ] {
            assert_eq!(
                authenticated_sender(value.as_bytes(), "mx.test", None).as_deref(),
                expected,
                "{value}"
            );
        }
    }

    #[test]
    fn a_field_of_another_message_is_not_the_hosts_word() {
        let field = " from pc.test (unknown [192.0.2.7])\r\n\t(Authenticated sender: anna@x.test)\r\n\tby mx.test (Postfix) with \
                     ESMTPSA id 4bXyZ30w1Zz9vB\r\n\tfor <a@x.test>; Mon, 30 Nov 2026 11:00:00 +0000";
        for (queue_id, expected) in
            [(Some("4bXyZ30w1Zz9vB"), true), (None, true), (Some("4bXyZ30w1Zz9vC"), false)]
        {
            assert_eq!(
                authenticated_sender(field.as_bytes(), "mx.test", queue_id).is_some(),
                expected,
                "{queue_id:?}"
            );
        }
        assert_eq!(helo_of(field.as_bytes()), Some(&b"pc.test"[..]));
        assert_eq!(helo_of(b" by mx.test (Postfix, from userid 0)"), None);
        for (field, host, signs) in [
            ("from a?spf=pass?x (unknown [192.0.2.7]) by MX.test", "mx.test", true),
            ("from mycompany.test'.evil.test (x [192.0.2.7])\r\n\tby mx.test (Postfix)", "mx.test", true),
            ("from a,b by mx.test", "mx.test", true),
            ("from pc.test (pc.test [192.0.2.7]) (a;b?) by mx.test", "mx.test", false),
            ("by mx.test (Postfix, from userid 0) id a?b", "mx.test", false),
        ] {
            assert_eq!(host_of(field.as_bytes()).as_deref(), Some(host), "{field}");
            let is_plain = helo_of(field.as_bytes()).is_none_or(crate::mail::is_plain_host);
            assert_eq!(is_plain, !signs, "{field}");
        }
    }
}
