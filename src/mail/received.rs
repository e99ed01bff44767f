//! The Received field as Postfix writes it: who was logged in (`smtpd_sasl_authenticated_header = yes`).
//!
//! In: the field's value, and the host whose word counts. Out: the login's name.
//! Promise: what the client says (its HELO, a certificate's name) stands inside comments or as words, and is never taken
//! for the login: that is a comment of its own, between `from` and `by`.
//! Fails: another host's field, and one that says it twice, says nothing.

use super::comment::Comments;

/// The name in `(Authenticated sender: NAME)` of a field that `host` wrote.
pub fn authenticated_sender(value: &[u8], host: &str) -> Option<String> {
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
        ([from, _, by, name, ..], [login]) if is(from, "from") && is(by, "by") && is(name, host) => {
            Some(login.clone())
        }
        _ => None,
    }
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
            assert_eq!(authenticated_sender(value.as_bytes(), "mx.test").as_deref(), expected, "{value}");
        }
    }
}
