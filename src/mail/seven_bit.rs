//! Charsets of seven bits that mail still carries: UTF-7 (RFC 2152), ISO-2022-KR (RFC 1557), HZ (RFC 1843), which WHATWG
//! left out, and ISO-2022-JP (RFC 1468), of which it knows a part and forbids what joined words have: two escape
//! sequences with nothing between.
//!
//! In: bytes, all below 0x80. Out: text, or the same text in the charset of eight bits that encoding_rs knows.
//! Promise: each is one pass; what is torn at the end is dropped, what is no legal sequence stays as it came.
//! Fails: never.
//!
//! Why not mail-parser's UTF-7: it reads `+-` as two characters, eats what follows a run without `-`, and loses a run
//! that reaches the end.

use super::transfer_encoding::sextet;

/// Bytes of ISO-2022-KR as EUC-KR: between SO and SI each byte has its eighth bit set.
pub(super) fn iso_2022_kr_as_euc_kr(bytes: &[u8]) -> Vec<u8> {
    let (mut euc, mut korean) = (Vec::with_capacity(bytes.len()), false);
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'\x1b' if after.starts_with(b"$)C") => rest = &after[3..], // the announcer says nothing more
            b'\x1b' if b"$)C".starts_with(after) => rest = &[],
            b'\x0e' => korean = true,
            b'\x0f' => korean = false,
            b'\r' | b'\n' => {
                korean = false; // RFC 1557: a line begins in ASCII
                euc.push(byte);
            }
            0x21..=0x7e if korean => euc.push(byte | 0x80),
            _ => euc.push(byte),
        }
    }
    euc
}

/// Bytes of ISO-2022-JP as EUC-JP: the second table of kanji (JIS X 0212) and half-width kana included. Bytes of eight
/// bits, which it has not, become what no charset has.
pub(super) fn iso_2022_jp_as_euc_jp(bytes: &[u8]) -> Vec<u8> {
    #[derive(Clone, Copy, PartialEq)]
    enum Table {
        Ascii,
        Kanji,
        MoreKanji,
        Kana,
    }
    const ESCAPES: [(&[u8], Table); 8] = [
        (b"(B", Table::Ascii),
        (b"(J", Table::Ascii),
        (b"$@", Table::Kanji),
        (b"$B", Table::Kanji),
        (b"$(@", Table::Kanji),
        (b"$(B", Table::Kanji),
        (b"$(D", Table::MoreKanji),
        (b"(I", Table::Kana),
    ];
    let (mut euc, mut table, mut shifted) = (Vec::with_capacity(bytes.len() + 16), Table::Ascii, false);
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let now = if shifted { Table::Kana } else { table };
        match (byte, after.first()) {
            (b'\x1b', _) => match ESCAPES.iter().find(|(escape, _)| after.starts_with(escape)) {
                Some((escape, next)) => (table, rest) = (*next, &after[escape.len()..]),
                // Torn at the end, or of another standard.
                None if ESCAPES.iter().any(|(escape, _)| escape.starts_with(after)) => rest = &[],
                None => {}
            },
            (b'\x0e', _) => shifted = true,
            (b'\x0f', _) => shifted = false,
            (b'\r' | b'\n', _) => {
                (table, shifted) = (Table::Ascii, false); // RFC 1468: a line ends in ASCII
                euc.push(byte);
            }
            (0x21..=0x7e, Some(&second @ 0x21..=0x7e)) if matches!(now, Table::Kanji | Table::MoreKanji) => {
                if now == Table::MoreKanji {
                    euc.push(0x8f);
                }
                euc.extend([byte | 0x80, second | 0x80]);
                rest = &after[1..];
            }
            (0x21..=0x7e, None) if matches!(now, Table::Kanji | Table::MoreKanji) => {} // torn
            (0x21..=0x5f, _) if now == Table::Kana => euc.extend([0x8e, byte | 0x80]),
            (0x80.., _) => euc.push(0xff),
            _ => euc.push(byte),
        }
    }
    euc
}

/// Bytes of HZ as GBK: between `~{` and `~}` each byte has its eighth bit set.
pub(super) fn hz_as_gbk(bytes: &[u8]) -> Vec<u8> {
    let (mut gbk, mut chinese) = (Vec::with_capacity(bytes.len()), false);
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        let mut taken = 1;
        match (byte, after.first()) {
            (b'~', Some(b'}')) if chinese => (chinese, taken) = (false, 2),
            (b'\r' | b'\n', _) if chinese => {
                chinese = false; // RFC 1843: a line ends in ASCII; who forgot to leave has left
                gbk.push(byte);
            }
            (0x21..=0x7e, Some(0x21..=0x7e)) if chinese => {
                gbk.extend([byte | 0x80, after[0] | 0x80]);
                taken = 2;
            }
            (0x21..=0x7e, None) if chinese => {} // the first half of a character that was cut
            (b'~', Some(b'{')) => (chinese, taken) = (true, 2),
            (b'~', Some(b'~')) => {
                gbk.push(byte);
                taken = 2;
            }
            (b'~', Some(b'\n')) => taken = 2, // the line goes on
            (b'~', Some(b'\r')) if after.get(1) == Some(&b'\n') => taken = 3,
            _ => gbk.push(byte),
        }
        rest = &rest[taken..];
    }
    gbk
}

/// Decodes UTF-7.
pub(super) fn utf_7(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = memchr::memchr(b'+', rest) {
        text.extend(rest[..at].iter().copied().map(char::from));
        let after = &rest[at + 1..];
        let run = after.iter().take_while(|byte| sextet(**byte).is_some()).count();
        let units = utf_16_of(&after[..run]);
        let closed = after.get(run) == Some(&b'-');
        if run == 0 && closed {
            text.push('+'); // RFC 2152, rule 2
        } else if units.is_empty() {
            if !after.is_empty() {
                text.extend(rest[at..=at + run].iter().copied().map(char::from)); // `C++` is no run, whatever it says
            }
            rest = &after[run..];
            continue;
        }
        let whole = match units.last() {
            Some(0xd800..=0xdbff) if run == after.len() => &units[..units.len() - 1], // half of a pair that was cut
            _ => &units[..],
        };
        text.extend(
            char::decode_utf16(whole.iter().copied()).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)),
        );
        rest = &after[run + usize::from(closed)..];
    }
    text.extend(rest.iter().copied().map(char::from));
    text
}

/// The whole units of UTF-16 in a run of modified base64; the bits left over are padding.
fn utf_16_of(run: &[u8]) -> Vec<u16> {
    let mut units = Vec::with_capacity(run.len() * 6 / 16);
    let (mut bits, mut count) = (0_u32, 0);
    for value in run.iter().filter_map(|byte| sextet(*byte)) {
        bits = (bits << 6 | value) & 0x003f_ffff; // at most 15 bits wait, six come
        count += 6;
        if count >= 16 {
            count -= 16;
            units.push((bits >> count & 0xffff) as u16);
        }
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf_7_is_read_by_rfc_2152() {
        for (bytes, expected) in [
            ("Hi Mom -+Jjo--!", "Hi Mom -\u{263a}-!"),
            ("+ZeVnLIqe-", "日本語"),
            ("+ZeVnLIqe", "日本語"),
            ("1 +- 1 = 2", "1 + 1 = 2"),
            ("+APw.ber", "ü.ber"),
            ("A+ImIDkQ.", "A≢Α."),
            ("C++ code, 5+", "C++ code, 5"),
            ("+2D3eAA-", "😀"),
            ("cut +2D3", "cut "),
            ("", ""),
        ] {
            assert_eq!(utf_7(bytes.as_bytes()), expected, "{bytes}");
        }
    }

    #[test]
    fn shifts_become_the_eighth_bit() {
        for (bytes, expected) in [
            (&b"\x1b$)C\n\x0e>H3g\x0f!\n"[..], &b"\n\xbe\xc8\xb3\xe7!\n"[..]),
            (b"\x0e>H\n>H", b"\xbe\xc8\n>H"),
            (b"plain", b"plain"),
        ] {
            assert_eq!(iso_2022_kr_as_euc_kr(bytes), expected, "{}", bytes.escape_ascii());
        }
        for (bytes, expected) in [
            (&b"This ~{<:Ky2;~} ~~ ok"[..], &b"This \xbc\xba\xcb\xf9\xb2\xbb ~ ok"[..]),
            (b"a~\nb~\r\nc", b"abc"),
            (b"~{<:\nx", b"\xbc\xba\nx"),
            (b"~{<:K", b"\xbc\xba"),
            (b"~ ~x ~", b"~ ~x ~"),
        ] {
            assert_eq!(hz_as_gbk(bytes), expected, "{}", bytes.escape_ascii());
        }
    }
}
