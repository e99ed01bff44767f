//! Names of files, made safe.

/// The last path component, without control and direction characters, cut to `max` bytes with its extension kept.
pub(super) fn safe_name(name: &str, max: usize) -> String {
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let clean: String = name
        .chars()
        .filter(|c| !c.is_control())
        .filter(|c| !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
        .collect();
    let clean = clean.trim();
    if clean.chars().all(|c| c == '.') {
        return String::new();
    }
    if clean.len() <= max {
        return clean.to_owned();
    }
    let extension = clean.rfind('.').map(|dot| &clean[dot..]).filter(|e| e.len() <= 16).unwrap_or_default();
    let mut keep = max - extension.len();
    while !clean.is_char_boundary(keep) {
        keep -= 1;
    }
    format!("{}{extension}", &clean[..keep])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe() {
        for (given, expected) in [
            ("../../etc/passwd", "passwd"),
            ("C:\\x\\y.doc", "y.doc"),
            ("a\u{0}b\r\nc.txt", "abc.txt"),
            ("..", ""),
            ("exe\u{202e}fdp.exe", "exefdp.exe"),
            ("åäö.pdf", "åäö.pdf"),
        ] {
            assert_eq!(safe_name(given, 200), expected);
        }
        let long = safe_name(&format!("{}.pdf", "å".repeat(300)), 200);
        assert!(long.len() <= 200 && long.ends_with("å.pdf"));
    }
}
