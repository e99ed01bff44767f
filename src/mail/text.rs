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

/// The same text with a bare LF at the end of each line and no control character but tab and line feed.
///
/// CR LF is one line end, however many CR stand before the LF (gateways double them); a CR alone is one too. U+0000
/// and the other C0 controls and DEL are left out: what stores text (PostgreSQL, XML) often refuses them.
pub(super) fn plain_lines(text: &str) -> String {
    let unwelcome = |byte: &u8| (*byte < b' ' && !matches!(byte, b'\t' | b'\n')) || *byte == 0x7f;
    let bytes = text.as_bytes();
    let Some(first) = bytes.iter().position(unwelcome) else { return text.to_owned() };
    let mut lines = String::with_capacity(text.len());
    let (mut from, mut at) = (0, first);
    while at < bytes.len() {
        lines.push_str(&text[from..at]);
        from = at + 1;
        if bytes[at] == b'\r' {
            let run = bytes[at..].iter().take_while(|byte| **byte == b'\r').count();
            from = at + run;
            if bytes.get(from) != Some(&b'\n') {
                lines.extend(std::iter::repeat_n('\n', run));
            }
        }
        at = bytes[from..].iter().position(unwelcome).map_or(bytes.len(), |next| from + next);
    }
    lines.push_str(&text[from..]);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_as_on_unix_and_hold_no_controls() {
        for (text, expected) in [
            ("", ""),
            ("a", "a"),
            ("\r\n", "\n"),
            ("a\r\n\r\nb\rc\n\r", "a\n\nb\nc\n\n"),
            ("a\r\r\nb", "a\nb"),
            ("a\r\rb", "a\n\nb"),
            ("é\r\nö", "é\nö"),
            ("Pris\0lista\u{1} \u{b}\u{c}\u{1b}[1m\u{7f}\tklar", "Prislista [1m\tklar"),
            ("\0\r\0\n", "\n\n"),
            ("\u{85}\u{a0}", "\u{85}\u{a0}"),
        ] {
            assert_eq!(plain_lines(text), expected, "{}", text.escape_debug());
        }
        assert_eq!(plain_lines(&"\r".repeat(1_000_000)).len(), 1_000_000);
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
