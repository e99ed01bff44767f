//! Unicode text made safe to show.

use icu_properties::{CodePointSetData, props::DefaultIgnorableCodePoint};

/// Replaces control characters and line breaks by spaces and trims the ends, so that a value stays one line.
pub fn one_line(text: &str) -> String {
    let line: String = text
        .chars()
        .map(|c| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { ' ' } else { c })
        .collect();
    line.trim().to_owned()
}

/// True if a reader would see nothing: white space, controls and invisible characters only.
///
/// Invisible is what Unicode calls default-ignorable (U+200B, U+00AD, U+FEFF, variation selectors, …), and in
/// addition the blank Braille pattern and the interlinear annotation marks.
pub fn is_blank(text: &str) -> bool {
    text.chars().all(|c| c.is_whitespace() || c.is_control() || is_invisible(c))
}

/// True if the character takes no ink and is neither white space nor a control character.
pub(super) fn is_invisible(c: char) -> bool {
    matches!(c, '\u{2800}' | '\u{FFF9}'..='\u{FFFB}')
        || CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
}

/// The same text with a bare LF at the end of each line.
pub(super) fn unix_lines(text: &str) -> String {
    let mut lines = String::with_capacity(text.len());
    let mut from = 0;
    for at in memchr::memchr_iter(b'\r', text.as_bytes()) {
        if text.as_bytes().get(at + 1) == Some(&b'\n') {
            lines.push_str(&text[from..at]);
            from = at + 1;
        }
    }
    lines.push_str(&text[from..]);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_as_on_unix() {
        for text in ["", "a", "\r\n", "a\r\n\r\nb\rc\n\r", "\r\r\n", "é\r\nö"] {
            assert_eq!(unix_lines(text), text.replace("\r\n", "\n"));
        }
    }

    #[test]
    fn invisible_text_is_blank() {
        for blank in
            ["", " ", "\u{200b}", "\u{ad}\u{feff}", "\u{3000}", "\u{2800}", "\u{e0020}", "\u{3164}", "\t\n"]
        {
            assert!(is_blank(blank), "{}", blank.escape_unicode());
        }
        for seen in ["a", "\u{200b}.", "0", "\u{fffd}", "日"] {
            assert!(!is_blank(seen), "{seen}");
        }
    }
}
