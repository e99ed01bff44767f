//! `text/plain; format=flowed` (RFC 3676): paragraphs put together again.
//!
//! In: text with LF at the line ends. Out: the same, each paragraph on one line.
//! Promise: one pass; no word is lost, and paragraphs of different quote depth stay apart.
//! Fails: never; text that only says it is flowed has few lines that end in a space.
//!
//! A quoted line begins with its quote marks and one space (`>> text`), as section 4.5 writes it.

/// A line as section 4 takes it apart.
struct Line<'a> {
    depth: usize,
    text: &'a str,
    /// It goes on in the next line, if that has the same depth.
    flowed: bool,
}

/// Undoes `format=flowed`; `delsp`: the space that says "goes on" is not part of the text (section 4.2).
pub(super) fn unflow(text: &str, delsp: bool) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    // The quote depth of the paragraph that is not ended yet.
    let mut open: Option<usize> = None;
    for raw in text.split_inclusive('\n') {
        let line = take_apart(raw.strip_suffix('\n').unwrap_or(raw), delsp);
        let ended = raw.ends_with('\n');
        // Section 4.3 never joins a signature's mark. An empty line would end the paragraph and vanish in it; whoever
        // left a space before it did not mean that.
        let alone = line.text == "-- " || line.text.is_empty() && !line.flowed;
        if open.is_some_and(|depth| depth != line.depth || alone) {
            out.push('\n');
            open = None;
        }
        if open.is_none() && line.depth > 0 {
            out.extend(std::iter::repeat_n('>', line.depth));
            if !line.text.is_empty() {
                out.push(' ');
            }
        }
        out.push_str(line.text);
        open = line.flowed.then_some(line.depth);
        if ended && !line.flowed {
            out.push('\n');
        }
    }
    if open.is_some() && text.ends_with('\n') {
        out.push('\n');
    }
    out
}

fn take_apart(line: &str, delsp: bool) -> Line<'_> {
    let text = line.trim_start_matches('>');
    let depth = line.len() - text.len();
    let text = text.strip_prefix(' ').unwrap_or(text); // section 4.4: stuffed
    match text.strip_suffix(' ') {
        Some(short) if text != "-- " => Line { depth, text: if delsp { short } else { text }, flowed: true },
        _ => Line { depth, text, flowed: false },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_are_put_together() {
        for (text, delsp, expected) in [
            ("one \ntwo\nthree\n", false, "one two\nthree\n"),
            ("https://a.test/long/ \npath\n", true, "https://a.test/long/path\n"),
            ("one  \ntwo", true, "one two"),
            ("> quoted \n> on\nanswer\n", false, "> quoted on\nanswer\n"),
            (">> two \n> one \nnone\n", false, ">> two \n> one \nnone\n"),
            (">>two \n>>more\n", false, ">> two more\n"),
            ("> > stuffed\n", false, "> > stuffed\n"),
            (">\n>x\n", false, ">\n> x\n"),
            (" From here\n >not quoted\n", false, "From here\n>not quoted\n"),
            ("end \n-- \nAnna \nAalto\n", false, "end \n-- \nAnna Aalto\n"),
            ("> end \n> -- \n> Anna\n", true, "> end\n> -- \n> Anna\n"),
            ("a\n\n\nb\n", false, "a\n\n\nb\n"),
            ("open ", false, "open "),
            ("open \n", true, "open\n"),
            ("open \n\nb\n", false, "open \n\nb\n"),
            ("", false, ""),
            ("\n", false, "\n"),
            ("日本 \n語\n", true, "日本語\n"),
        ] {
            assert_eq!(unflow(text, delsp), expected, "{text:?} {delsp}");
        }
    }

    #[test]
    fn a_megabyte_of_anything_ends() {
        for pattern in [">", "> \n", " \n", ">>> a \n", "-- \n", " ", "\n", "a \n"] {
            let text = pattern.repeat(1_000_000 / pattern.len());
            assert!(unflow(&text, true).len() <= text.len() + 1);
        }
        let mut random = fastrand::Rng::with_seed(3676);
        for _ in 0..20_000 {
            let text: String =
                (0..random.usize(0..16)).map(|_| ['>', ' ', '\n', '-', 'é'][random.usize(0..5)]).collect();
            let flowed = unflow(&text, random.bool());
            assert_eq!(flowed.matches('é').count(), text.matches('é').count(), "{text:?}");
        }
    }
}
