//! Comments and quoted strings of structured header fields (RFC 5322, sections 3.2.2 and 3.2.4).
//!
//! In: a field value and where a `(` or a quote stands in it. Out: where the comment or the string ends.
//! Promise: nested comments and quoted pairs without recursion; all questions about one value cost its length twice at
//! most, because the first comment that never closes is the last one looked for.
//! Fails: never; a bracket that nothing closes is no comment, and the caller decides what it is.

/// The comments of one field value.
#[derive(Debug)]
pub(super) struct Comments<'a> {
    value: &'a [u8],
    unclosed: bool,
}

impl<'a> Comments<'a> {
    pub(super) fn of(value: &'a [u8]) -> Self {
        Self { value, unclosed: false }
    }

    /// The offset behind the comment that opens at `at`; none if no comment opens there or it never closes.
    pub(super) fn end(&mut self, at: usize) -> Option<usize> {
        if self.unclosed || self.value.get(at) != Some(&b'(') {
            return None;
        }
        let (mut depth, mut i) = (0usize, at);
        while let Some(&b) = self.value.get(i) {
            i += 1;
            match b {
                b'\\' => i += 1,
                b'(' => depth += 1,
                b')' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Some(i);
            }
        }
        self.unclosed = true;
        None
    }
}

/// The next quote that no backslash escapes. Escapes count the same way wherever a walk begins, so that two walks never
/// look at the same stretch twice.
pub(super) fn closing_quote(value: &[u8], open: usize) -> Option<usize> {
    let mut i = open + 1;
    while let Some(&b) = value.get(i) {
        match b {
            b'"' => return Some(i),
            b'\\' => i += 2,
            _ => i += 1,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_end_where_they_close() {
        for (value, expected) in [
            (&b"(a)b"[..], Some(3)),
            (b"(a(b)c)d", Some(7)),
            (b"(a\\)b)c", Some(6)),
            (b"()", Some(2)),
            (b"(a\\", None),
            (b"((a)", None),
            (b"a", None),
            (b"", None),
        ] {
            assert_eq!(Comments::of(value).end(0), expected, "{}", value.escape_ascii());
        }
    }

    #[test]
    fn an_unclosed_comment_is_looked_for_once() {
        let value = b"(".repeat(1 << 20);
        let mut comments = Comments::of(&value);
        assert!((0..value.len()).all(|at| comments.end(at).is_none()));
    }
}
