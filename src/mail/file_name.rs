//! Names of files, made safe.
//!
//! In: a name as a sender wrote it, decoded. Out: a name that is one path component on every system.
//! Promise: what a reader knows the file by stays, its extension above all; no separator, control, direction or
//! invisible character does, and no name is `.` or `..`.
//! Fails: never; a name of which nothing is left is empty, and the caller gives one.

use icu_properties::{CodePointSetData, props::DefaultIgnorableCodePoint};

/// Longest extension that a cut keeps, with its dot, in bytes.
const MAX_EXTENSION: usize = 16;

/// Longest file name, in bytes: what file systems take, and some room.
pub(super) const MAX_NAME_BYTES: usize = 200;

/// `name` as one path component of at most `max` bytes. `/` becomes `_`, because names such as `2026/1001.pdf` say
/// something before it too; of a Windows path only the last component is kept, the rest is about the sender's disk.
pub(super) fn safe_name(name: &str, max: usize) -> String {
    let name = if is_windows_path(name) { name.rsplit('\\').next().unwrap_or_default() } else { name };
    let ignorable = CodePointSetData::new::<DefaultIgnorableCodePoint>();
    let clean: String = name
        .chars()
        .filter(|&c| !c.is_control() && !ignorable.contains(c) && !is_mark(c))
        .map(|c| if matches!(c, '/' | '\\') { '_' } else { c })
        .collect();
    let clean = trim(&clean);
    if clean.len() <= max {
        return clean.to_owned();
    }
    let extension = clean.rfind('.').map(|dot| &clean[dot..]);
    let extension = extension.filter(|e| e.len() <= MAX_EXTENSION && e.len() < max).unwrap_or_default();
    let stem = trim(&clean[..clean.floor_char_boundary(max - extension.len())]);
    format!("{stem}{extension}")
}

/// Marks that change how a line reads, or stand for nothing, and are not ignorable by Unicode's table.
fn is_mark(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2800}')
        || matches!(c, '\u{fff9}'..='\u{fffb}')
}

/// A drive, a server or a folder before it; a single backslash within a name (`AC\DC.mp3`) is none of these.
fn is_windows_path(name: &str) -> bool {
    let drive = matches!(name.as_bytes(), [letter, b':', b'\\', ..] if letter.is_ascii_alphabetic());
    drive || name.starts_with(['\\', '.']) && name.contains('\\') || name.matches('\\').nth(1).is_some()
}

/// Windows drops blanks and dots at the end, and then an extension may be another one.
fn trim(name: &str) -> &str {
    name.trim_start().trim_end_matches(|c: char| c == '.' || c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe() {
        for (given, expected) in [
            // Slashes
            ("../../etc/passwd", ".._.._etc_passwd"),
            ("2026/1001.pdf", "2026_1001.pdf"),
            ("a//b.pdf", "a__b.pdf"),
            ("/", "_"),
            // Backslashes
            ("C:\\x\\y.doc", "y.doc"),
            ("\\\\server\\share\\y.doc", "y.doc"),
            ("..\\y.doc", "y.doc"),
            ("My Documents\\Offers\\y.doc", "y.doc"),
            ("AC\\DC.mp3", "AC_DC.mp3"),
            ("C:\\x\\", ""),
            ("C:\\a/b.doc", "a_b.doc"),
            // Characters that are not seen
            ("a\u{0}b\r\nc.txt", "abc.txt"),
            ("exe\u{202e}fdp.exe", "exefdp.exe"),
            ("a\u{200b}\u{feff}\u{ad}.pdf", "a.pdf"),
            ("a\u{2028}\u{2066}b\u{85}.pdf", "ab.pdf"),
            ("\u{200b}.\u{200b}.", ""),
            // Dots and blanks
            ("..", ""),
            (". .", ""),
            ("  ", ""),
            ("", ""),
            ("a.pdf. . ", "a.pdf"),
            (" a.pdf\u{a0}", "a.pdf"),
            (".profile", ".profile"),
            // What stays
            ("åäö.pdf", "åäö.pdf"),
            ("* \u{1f601}.docx", "* \u{1f601}.docx"),
            ("Invoice (1).pdf", "Invoice (1).pdf"),
        ] {
            assert_eq!(safe_name(given, 200), expected, "{given:?}");
        }
    }

    #[test]
    fn a_cut_keeps_the_extension() {
        let long = safe_name(&format!("{}.pdf", "å".repeat(300)), 200);
        assert_eq!(long, format!("{}.pdf", "å".repeat(98)));
        assert_eq!(safe_name("abcdef.pdf", 8), "abcd.pdf");
        assert_eq!(safe_name("ab . cdef.pdf", 8), "ab.pdf");
        assert_eq!(safe_name("abcdef.an extension too long", 9), "abcdef.an");
        assert_eq!(safe_name("abcdef.pdf", 4), "abcd");
        assert_eq!(safe_name("abcdef.pdf", 0), "");
        assert_eq!(safe_name("ååå", 3), "å");
    }

    #[test]
    fn no_name_breaks_the_promise() {
        let mut random = fastrand::Rng::with_seed(17);
        let alphabet: Vec<char> = "ab..//\\\\: \u{200b}\u{202e}å\u{1f601}\0\n".chars().collect();
        for _ in 0..20_000 {
            let given: String =
                (0..random.usize(..20)).map(|_| alphabet[random.usize(..alphabet.len())]).collect();
            let max = random.usize(..12);
            let name = safe_name(&given, max);
            assert!(name.len() <= max, "{given:?}");
            assert!(!name.contains(['/', '\\', '\u{202e}', '\u{200b}', '\0', '\n']), "{given:?}");
            assert!(!name.ends_with(['.', ' ']), "{given:?} {name:?}");
        }
        assert_eq!(safe_name(&"/".repeat(1 << 20), 3), "___");
    }
}
