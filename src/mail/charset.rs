//! Charsets: bytes of a header or a body part turned into Unicode.
//!
//! In: bytes, and the label under which they came, if any. Out: text.
//! Promise: any bytes under any label give text, at a cost linear in their length; a byte order mark is not part of it,
//! and a character that is torn at the end is dropped, so that a cut never shows.
//! Fails: never; bytes that are no text become U+FFFD.
//!
//! Labels are those of the WHATWG Encoding Standard (encoding_rs), besides them what mail uses: the names of Java,
//! Windows and IBM, and a label with ornaments. What a label promises is doubted in three cases only, where the bytes
//! prove it false: UTF-8 that is not, seven bits that are eight, and several bytes a character that are UTF-8. A
//! charset of one byte a character can be true of any bytes and is believed.
//!
//! Why not mail-parser's table: it has neither ISO-2022-KR nor HZ nor most of the other names, its UTF-7 is wrong (see
//! `seven_bit`), and `iso-8859-9` has C1 controls where WHATWG has letters. Why oem_cp for DOS code pages: encoding_rs
//! has only 866; oem_cp has nothing but tables.

use super::seven_bit::{hz_as_gbk, iso_2022_jp_as_euc_jp, iso_2022_kr_as_euc_kr, utf_7};
use encoding_rs::{CoderResult, Encoding};
use oem_cp::{code_table::DECODING_TABLE_CP_MAP, code_table_type::TableType};

/// Decodes `bytes` by the charset a part names; an unknown or absent one as [`decode_undeclared`] without a fallback.
pub(super) fn decode_charset(bytes: &[u8], charset: Option<&str>) -> String {
    if is_utf_8_label(charset) && plain_utf_8(bytes) {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    without_mark(decode(bytes, charset.and_then(charset_of)))
}

/// Decodes bytes that came without a charset: UTF-8 where that is likely, else `fallback`, else Windows-1252, which is
/// what old Western mailers mean when they say nothing. ISO-2022-JP announces itself by an escape sequence; that
/// counts only if all of the text is of seven bits.
pub(super) fn decode_undeclared(bytes: &[u8], fallback: Option<&str>) -> String {
    if plain_utf_8(bytes) {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let text = marked(bytes, None).unwrap_or_else(|| undeclared(bytes, fallback.and_then(charset_of)));
    without_mark(text)
}

/// True if the name says nothing about bytes of eight bits: none, one that nobody knows, US-ASCII.
pub(super) fn says_nothing(charset: Option<&str>) -> bool {
    matches!(charset.and_then(charset_of), None | Some(Charset::Ascii))
}

/// Decodes the beginning of a longer text. A character that the cut tore leaves nothing behind, nor does it make the
/// rest look like another charset.
pub(super) fn decode_cut(bytes: &[u8], charset: Option<&str>) -> String {
    let whole = match charset.and_then(charset_of) {
        None | Some(Charset::Utf8 | Charset::Ascii) => &bytes[..bytes.len() - torn(bytes)],
        // A run of UTF-7 that is too short for a character looks like text.
        Some(Charset::Utf7) => {
            let tail = bytes.len().saturating_sub(3);
            &bytes[..memchr::memchr(b'+', &bytes[tail..]).map_or(bytes.len(), |at| tail + at)]
        }
        Some(_) => bytes,
    };
    decode_charset(whole, charset)
}

#[derive(Clone, Copy, Debug)]
enum Charset {
    Utf8,
    Ascii,
    /// Which end comes first is what the bytes say.
    Utf16,
    /// Big end first?
    Utf32(bool),
    Utf7,
    Iso2022Kr,
    Hz,
    Listed(&'static Encoding),
    Oem(&'static TableType),
}

impl Charset {
    fn is_seven_bit(self) -> bool {
        match self {
            Self::Utf7 | Self::Iso2022Kr | Self::Hz => true,
            Self::Listed(encoding) => encoding == encoding_rs::ISO_2022_JP,
            _ => false,
        }
    }

    fn is_japanese(self) -> bool {
        matches!(self, Self::Listed(encoding) if encoding == encoding_rs::ISO_2022_JP)
    }

    fn is_wide(self) -> bool {
        match self {
            Self::Utf16 | Self::Utf32(_) => true,
            Self::Listed(encoding) => encoding == encoding_rs::UTF_16LE || encoding == encoding_rs::UTF_16BE,
            _ => false,
        }
    }
}

fn is_utf_8_label(charset: Option<&str>) -> bool {
    charset.is_none_or(|label| label.eq_ignore_ascii_case("utf-8"))
}

/// True of most text: UTF-8 that neither a mark nor an escape sequence makes anything else.
fn plain_utf_8(bytes: &[u8]) -> bool {
    !bytes.starts_with(b"\xef\xbb\xbf")
        && memchr::memchr(b'\x1b', bytes).is_none()
        && std::str::from_utf8(bytes).is_ok()
}

fn decode(bytes: &[u8], charset: Option<Charset>) -> String {
    if let Some(text) = marked(bytes, charset) {
        return text;
    }
    let Some(charset) = charset else { return undeclared(bytes, None) };
    if charset.is_seven_bit() && !bytes.is_ascii() {
        // A byte or two of eight bits in what has escape sequences are damage; else the name is wrong.
        let japanese =
            charset.is_japanese() && announces_japanese(bytes) && std::str::from_utf8(bytes).is_err();
        return if japanese { iso_2022_jp(bytes) } else { undeclared(bytes, None) };
    }
    // .NET writes `charset=utf-16` over text of seven bits.
    if charset.is_wide() && bytes.len() > 8 && bytes.iter().all(|b| matches!(b, b'\t'..=b'\r' | b' '..=b'~'))
    {
        return undeclared(bytes, None);
    }
    match charset {
        Charset::Utf8 => utf_8_or_windows(bytes),
        Charset::Ascii => undeclared(bytes, None),
        Charset::Utf16 => listed(bytes, guess_utf_16(bytes)).0,
        Charset::Utf32(big) => utf_32(bytes, big),
        Charset::Utf7 => utf_7(bytes),
        Charset::Iso2022Kr => listed(&iso_2022_kr_as_euc_kr(bytes), encoding_rs::EUC_KR).0,
        Charset::Hz => listed(&hz_as_gbk(bytes), encoding_rs::GBK).0,
        Charset::Oem(table) => oem(bytes, table),
        Charset::Listed(encoding) if encoding == encoding_rs::ISO_2022_JP => iso_2022_jp(bytes),
        Charset::Listed(encoding) => match listed(bytes, encoding) {
            (_, true) if !encoding.is_single_byte() && std::str::from_utf8(bytes).is_ok() => {
                utf_8_or_windows(bytes)
            }
            (text, _) => text,
        },
    }
}

/// Text that begins with a byte order mark says its charset itself (WHATWG Encoding, section 6.1). The marks of UTF-16
/// and UTF-32 are letters of many charsets, so they count only where no such charset is named.
fn marked(bytes: &[u8], charset: Option<Charset>) -> Option<String> {
    if let Some(rest) = bytes.strip_prefix(b"\xef\xbb\xbf") {
        return Some(utf_8_or_windows(rest));
    }
    let wide = charset.is_some_and(Charset::is_wide);
    if !wide && !charset.is_none_or(|charset| matches!(charset, Charset::Utf8 | Charset::Ascii)) {
        return None;
    }
    match bytes {
        [0xff, 0xfe, 0, 0, rest @ ..] => Some(utf_32(rest, false)),
        [0, 0, 0xfe, 0xff, rest @ ..] => Some(utf_32(rest, true)),
        // UTF-16 has an even number of bytes; where nobody spoke of it, an odd one is Western letters.
        [0xff, 0xfe, rest @ ..] if wide || rest.len().is_multiple_of(2) => {
            Some(listed(rest, encoding_rs::UTF_16LE).0)
        }
        [0xfe, 0xff, rest @ ..] if wide || rest.len().is_multiple_of(2) => {
            Some(listed(rest, encoding_rs::UTF_16BE).0)
        }
        _ => None,
    }
}

fn undeclared(bytes: &[u8], fallback: Option<Charset>) -> String {
    if bytes.is_ascii() && announces_japanese(bytes) {
        return iso_2022_jp(bytes);
    }
    match (utf_8(bytes), fallback) {
        (Some(text), _) => text,
        (None, Some(charset))
            if !charset.is_seven_bit()
                && !charset.is_wide()
                && !matches!(charset, Charset::Utf8 | Charset::Ascii) =>
        {
            decode(bytes, Some(charset))
        }
        (None, _) => windows_1252(bytes),
    }
}

/// RFC 1468: ESC, then `$@`, `$B`, `(J`; JIS X 0212 and half-width Katakana come in mail too.
fn announces_japanese(bytes: &[u8]) -> bool {
    memchr::memchr_iter(b'\x1b', bytes).any(|at| {
        let rest = &bytes[at + 1..];
        [&b"$@"[..], b"$B", b"$(D", b"(J", b"(I"].iter().any(|escape| rest.starts_with(escape))
    })
}

fn utf_8_or_windows(bytes: &[u8]) -> String {
    utf_8(bytes).unwrap_or_else(|| windows_1252(bytes))
}

/// The text if `bytes` are UTF-8, or mostly: more sequences of several bytes are right than wrong. Each maximal
/// ill-formed subpart (Unicode 3.9) becomes U+FFFD, a character cut off at the very end nothing.
fn utf_8(bytes: &[u8]) -> Option<String> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Some(text.to_owned());
    }
    let whole = &bytes[..bytes.len() - torn(bytes)];
    let (mut right, mut wrong) = (0, 0);
    for chunk in whole.utf8_chunks() {
        right += chunk.valid().bytes().filter(|byte| *byte >= 0xc0).count();
        wrong += usize::from(!chunk.invalid().is_empty());
    }
    // One byte at the end of what is else ASCII is rather a letter of Windows-1252 than the first of several.
    let cut_only = right == 0 && wrong == 0 && bytes.len() - whole.len() > 1;
    (right > wrong || cut_only).then(|| String::from_utf8_lossy(whole).into_owned())
}

/// How many bytes at the end are the beginning of a UTF-8 character and no more.
fn torn(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    let Some(lead) = tail.iter().rposition(|byte| *byte >= 0xc0) else { return 0 };
    match std::str::from_utf8(&tail[lead..]) {
        Err(error) if error.error_len().is_none() => tail.len() - lead,
        _ => 0,
    }
}

fn iso_2022_jp(bytes: &[u8]) -> String {
    listed(&iso_2022_jp_as_euc_jp(bytes), encoding_rs::EUC_JP).0
}

fn windows_1252(bytes: &[u8]) -> String {
    listed(bytes, encoding_rs::WINDOWS_1252).0
}

/// Decodes by a table of encoding_rs; true if some of it was malformed. The decoder is never told that the text ends:
/// so it keeps a torn character to itself.
fn listed(bytes: &[u8], encoding: &'static Encoding) -> (String, bool) {
    let mut decoder = encoding.new_decoder_without_bom_handling();
    let (mut text, mut rest, mut malformed) = (String::with_capacity(bytes.len() + 16), bytes, false);
    loop {
        let (result, read, errors) = decoder.decode_to_string(rest, &mut text, false);
        rest = &rest[read..];
        malformed |= errors;
        match result {
            CoderResult::InputEmpty => return (text, malformed),
            CoderResult::OutputFull => text.reserve(rest.len() + 16),
        }
    }
}

/// RFC 2781 says big-endian, Windows means little-endian: the zeros of Latin text and line ends tell.
fn guess_utf_16(bytes: &[u8]) -> &'static Encoding {
    let zeros = |odd: usize| bytes.iter().skip(odd).step_by(2).filter(|byte| **byte == 0).count();
    if zeros(0) > zeros(1) { encoding_rs::UTF_16BE } else { encoding_rs::UTF_16LE }
}

fn utf_32(bytes: &[u8], big: bool) -> String {
    let number = if big { u32::from_be_bytes } else { u32::from_le_bytes };
    let (units, _) = bytes.as_chunks::<4>();
    units.iter().map(|unit| char::from_u32(number(*unit)).unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

fn oem(bytes: &[u8], table: &TableType) -> String {
    let upper = |byte: u8| match table {
        TableType::Complete(chars) => chars[usize::from(byte & 0x7f)],
        TableType::Incomplete(chars) => {
            chars[usize::from(byte & 0x7f)].unwrap_or(char::REPLACEMENT_CHARACTER)
        }
    };
    bytes.iter().map(|byte| if byte.is_ascii() { char::from(*byte) } else { upper(*byte) }).collect()
}

fn without_mark(mut text: String) -> String {
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    text
}

/// The charset that a label means; none for one that is unknown or says that nothing is known.
fn charset_of(label: &str) -> Option<Charset> {
    // Longer than any name; the rest of a label that never ends is not looked at.
    let label = label.get(..label.floor_char_boundary(100))?.to_ascii_lowercase();
    let ornament = |c: char| c.is_whitespace() || c.is_control() || "\"'<>()[]=?;,:".contains(c);
    let label = label.trim_matches(ornament);
    let label = label.strip_prefix("charset").map_or(label, |rest| rest.trim_start_matches(ornament));
    // RFC 2231, section 5 puts a language behind, after `*` or `'`; the rest is junk.
    let end = label.find(|c: char| "\"'*;,:()<>?\\".contains(c) || c.is_control()).unwrap_or(label.len());
    let label = label[..end].trim();
    named(label).or_else(|| named(label.split_whitespace().next()?))
}

fn named(label: &str) -> Option<Charset> {
    let key: String = label.chars().filter(char::is_ascii_alphanumeric).collect();
    // `x-` before a name that is none of its own (`x-windows-949`, `x-utf-8`).
    let bare = key.strip_prefix('x').unwrap_or(&key);
    own_name(&key)
        .or_else(|| own_name(bare))
        .or_else(|| listed_name(label))
        .or_else(|| iso_8859(bare))
        .or_else(|| code_page(bare))
        .or_else(|| listed_name(bare))
}

/// Names that WHATWG has not or means otherwise, without hyphens and the like.
fn own_name(key: &str) -> Option<Charset> {
    let listed = |encoding| Some(Charset::Listed(encoding));
    match key {
        "usascii" | "ascii" | "ascii7" | "csascii" | "ansix341968" | "ansix341986" | "ansix34" | "646"
        | "iso646us" | "iso646" | "iso646irv" | "iso646irv1991" | "isoir6" | "us" | "ibm367" | "cp367" => {
            Some(Charset::Ascii)
        }
        "utf8" | "utf8n" | "utf8mb4" | "utf8mb3" | "unicode11utf8" | "unicode20utf8" | "csutf8" | "cesu8" => {
            Some(Charset::Utf8)
        }
        "utf7" | "unicode11utf7" | "unicode20utf7" | "csunicode11utf7" | "csutf7" => Some(Charset::Utf7),
        "utf16" | "csutf16" | "unicode" | "ucs2" | "iso10646ucs2" | "csunicode" => Some(Charset::Utf16),
        "utf16le" | "utf16lebom" | "unicodelittle" | "unicodelittleunmarked" => listed(encoding_rs::UTF_16LE),
        "utf16be" | "utf16bebom" | "unicodebig" | "unicodebigunmarked" => listed(encoding_rs::UTF_16BE),
        "utf32" | "ucs4" | "iso10646ucs4" | "utf32be" => Some(Charset::Utf32(true)), // Unicode 3.10, D101
        "utf32le" => Some(Charset::Utf32(false)),
        "iso2022kr" | "csiso2022kr" => Some(Charset::Iso2022Kr),
        "hz" | "hzgb2312" | "hzgb" => Some(Charset::Hz),
        "iso2022jp" | "iso2022jp1" | "iso2022jp2" | "iso2022jp3" | "iso2022jpms" | "iso2022jp2004"
        | "csiso2022jp" | "csiso2022jp2" | "jis" | "jis7" | "jisencoding" => listed(encoding_rs::ISO_2022_JP),
        "sjis" | "shiftjis" | "mskanji" | "windows31j" | "cswindows31j" | "pck" | "sjis0213"
        | "ms9320213" | "shiftjis2004" => listed(encoding_rs::SHIFT_JIS),
        "eucjp" | "ujis" | "eucjpwin" | "eucjpms" | "eucjplinux" | "eucjisx0213" => {
            listed(encoding_rs::EUC_JP)
        }
        "euckr" | "ksc5601" | "ksc56011987" | "ksc56011989" | "ksx1001" | "uhc" | "kr" => {
            listed(encoding_rs::EUC_KR)
        }
        "euccn" | "gb2312" | "gb231280" | "gb23121980" | "gbk" | "cngb" | "mswin936" => {
            listed(encoding_rs::GBK)
        }
        "gb18030" | "gb180302000" | "gb180302005" | "gb180302022" => listed(encoding_rs::GB18030),
        "big5" | "big5hkscs" | "big5eten" | "cnbig5" | "mswin950" | "big5solaris" => {
            listed(encoding_rs::BIG5)
        }
        "tis620" | "tis6202533" => listed(encoding_rs::WINDOWS_874),
        "koi8" | "koi8r" | "koi8rfc1489" => listed(encoding_rs::KOI8_R),
        "koi8u" | "koi8ru" => listed(encoding_rs::KOI8_U),
        "macroman" | "macintosh" | "mac" | "macosroman" => listed(encoding_rs::MACINTOSH),
        "maccyrillic" | "macukraine" | "macukrainian" => listed(encoding_rs::X_MAC_CYRILLIC),
        "latin9" | "latin0" => listed(encoding_rs::ISO_8859_15),
        "latin10" => listed(encoding_rs::ISO_8859_16),
        "ansi" => listed(encoding_rs::WINDOWS_1252),
        _ => None,
    }
}

/// What encoding_rs makes of a label; its two stand-ins for "not to be read" are no charset of mail.
fn listed_name(label: &str) -> Option<Charset> {
    let encoding = Encoding::for_label_no_replacement(label.as_bytes())?;
    match encoding {
        _ if encoding == encoding_rs::X_USER_DEFINED => None,
        _ if encoding == encoding_rs::UTF_8 => Some(Charset::Utf8),
        _ => Some(Charset::Listed(encoding)),
    }
}

/// `ISO8859_15`, `8859_1`, `iso 8859-2`, `iso8859-8-i`, `ISO8859_15_FDIS`.
fn iso_8859(key: &str) -> Option<Charset> {
    let number = key.strip_prefix("iso").unwrap_or(key).strip_prefix("8859")?;
    let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    // `iso-8859-1:1987` and `iso8859-11987` carry the year of the standard.
    let part = match &number[..digits] {
        long if long.len() > 4 => &long[..long.len() - 4],
        short => short,
    };
    let suffix = if part == "8" && &number[digits..] == "i" { "-i" } else { "" };
    listed_name(&format!("iso-8859-{part}{suffix}"))
}

/// A name of Windows, Java or IBM that ends in the number of a code page.
fn code_page(key: &str) -> Option<Charset> {
    let digits = key.find(|c: char| c.is_ascii_digit())?;
    let (vendor, number) = key.split_at(digits);
    let vendors = [
        "", "cp", "cs", "csibm", "cspc", "ms", "win", "windows", "mswin", "mscp", "ibm", "dos", "oem",
        "ccsid", "codepage",
    ];
    if !vendors.contains(&vendor) {
        return None;
    }
    let number = number.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let page: u16 = number.parse().ok()?;
    let listed = |encoding| Some(Charset::Listed(encoding));
    match page {
        367 | 20127 => Some(Charset::Ascii),
        65001 => Some(Charset::Utf8),
        65000 => Some(Charset::Utf7),
        1200 => listed(encoding_rs::UTF_16LE),
        1201 => listed(encoding_rs::UTF_16BE),
        12000 => Some(Charset::Utf32(false)),
        12001 => Some(Charset::Utf32(true)),
        819 => listed(encoding_rs::WINDOWS_1252),
        813 => listed(encoding_rs::ISO_8859_7),
        912 => listed(encoding_rs::ISO_8859_2),
        915 => listed(encoding_rs::ISO_8859_5),
        916 => listed(encoding_rs::ISO_8859_8),
        920 => listed(encoding_rs::WINDOWS_1254),
        923 => listed(encoding_rs::ISO_8859_15),
        874 => listed(encoding_rs::WINDOWS_874),
        932 | 942 | 943 => listed(encoding_rs::SHIFT_JIS),
        936 | 1381 | 1386 | 51936 => listed(encoding_rs::GBK),
        949 | 970 | 1363 | 51949 => listed(encoding_rs::EUC_KR),
        950 | 1370 => listed(encoding_rs::BIG5),
        954 | 33722 | 51932 | 20932 => listed(encoding_rs::EUC_JP),
        54936 => listed(encoding_rs::GB18030),
        52936 => Some(Charset::Hz),
        50220..=50222 => listed(encoding_rs::ISO_2022_JP),
        50225 => Some(Charset::Iso2022Kr),
        866 => listed(encoding_rs::IBM866),
        878 | 20866 => listed(encoding_rs::KOI8_R),
        1168 | 21866 => listed(encoding_rs::KOI8_U),
        10000 | 1275 => listed(encoding_rs::MACINTOSH),
        10007 | 1283 => listed(encoding_rs::X_MAC_CYRILLIC),
        1250..=1258 => listed_name(&format!("windows-{page}")),
        28591..=28606 => listed_name(&format!("iso-8859-{}", page - 28590)),
        _ => DECODING_TABLE_CP_MAP.get(&page).map(Charset::Oem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JAPANESE: &[u8] = b"\x1b$BF|K\\8l\x1b(B";

    /// Bytes, label, text.
    type Row = (&'static [u8], Option<&'static str>, &'static str);

    fn check(rows: &[Row]) {
        for (bytes, charset, expected) in rows {
            assert_eq!(decode_charset(bytes, *charset), *expected, "{} {charset:?}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_charset_that_cannot_be_true_is_none() {
        check(&[
            (b"na\xc3\xafve", Some("US-ASCII"), "na\u{ef}ve"),
            (b"na\xc3\xafve", Some("ascii"), "na\u{ef}ve"),
            (b"na\xc3\xafve", Some("ANSI_X3.4-1968"), "na\u{ef}ve"),
            (b"na\xc3\xafve", Some("ANSI_X3.4-1986"), "na\u{ef}ve"),
            (b"na\xc3\xafve", Some("646"), "na\u{ef}ve"),
            (b"na\xc3\xafve", Some("ISO646-US"), "na\u{ef}ve"),
            (b"na\xc3\xafve", Some("iso-ir-6"), "na\u{ef}ve"),
            (b"na\xefve", Some("us-ascii"), "na\u{ef}ve"),
            (b"na\xc3\xafve", Some("x-unheard-of"), "na\u{ef}ve"),
            (b"na\xc3\xafve", Some(""), "na\u{ef}ve"),
            (b"na\xc3\xafve", None, "na\u{ef}ve"),
            (b"\xe8\xa6\x8b\xe7\xa9\x8d", Some("ISO-2022-JP"), "見積"),
            (b"\xe8\xa6\x8b\xe7\xa9\x8d", Some("iso-2022-kr"), "見積"),
            (b"\xe8\xa6\x8b\xe7\xa9\x8d", Some("hz-gb-2312"), "見積"),
            (b"\xe8\xa6\x8b\xe7\xa9\x8d", Some("utf-7"), "見積"),
            (b"na\xefve", Some("iso-2022-jp"), "naïve"),
            (b"Dear Bo, hello", Some("utf-16"), "Dear Bo, hello"),
            ("見積 €".as_bytes(), Some("euc-jp"), "見積 €"),
            // A charset that says something is believed.
            (b"na\xc3\xafve", Some("iso-8859-1"), "na\u{c3}\u{af}ve"),
            (b"na\xc3\xafve", Some("iso-8859-15"), "na\u{c3}\u{af}ve"),
        ]);
    }

    #[test]
    fn utf_8_with_bad_bytes_is_what_most_of_it_says() {
        check(&[
            (b"M\xc3\xb6te \xc3\xa5\xc3\xa4, Bj\xf6rn", Some("utf-8"), "Möte åä, Bj\u{fffd}rn"),
            (b"M\xc3\xb6te \xc3\xa5\xc3\xa4, Bj\xf6rn", Some("us-ascii"), "Möte åä, Bj\u{fffd}rn"),
            (b"M\xc3\xb6te \xc3\xa5\xc3\xa4, Bj\xf6rn", None, "Möte åä, Bj\u{fffd}rn"),
            (b"M\xf6te Bj\xf6rn \xc3\xb6", Some("UTF-8"), "Möte Björn Ã¶"),
            (b"caf\xe9", Some("utf-8"), "café"),
            (b"\x93caf\xe9\x94", None, "\u{201c}café\u{201d}"),
            (b"\xe2\x82\xac \xc3\xa9 \xe2\x82x", Some("utf-8"), "€ é \u{fffd}x"), // one subpart of two bytes
            (b"\xc3\xa9 cut \xe2\x82", Some("utf-8"), "é cut "),
            (b"cut \xe2\x82", Some("utf-8"), "cut "),
            (b"\xc3\xa9 cut \xc3", Some("utf-8"), "é cut "),
        ]);
    }

    #[test]
    fn labels_of_mail_are_known() {
        let (euro, sjis, korean, chinese, taiwan) =
            (&b"\x80"[..], &b"\x89\xef\x8bc"[..], &b"\xb0\xa1\x81A"[..], &b"\xd6\xd0"[..], &b"\xa4\xa4"[..]);
        for (labels, bytes, expected) in [
            (
                "cp932 ms932 windows-31j x-sjis Shift_JIS sjis MS_Kanji x-ms-cp932 x-IBM943 Windows932",
                sjis,
                "会議",
            ),
            (
                "cp949 ms949 windows-949 ks_c_5601-1987 x-windows-949 euc-kr EUC_KR KSC5601 uhc",
                korean,
                "가갂",
            ),
            ("cp936 ms936 gb2312 GBK x-gbk gb18030 windows-936 EUC_CN gb_2312-80 x-mswin-936", chinese, "中"),
            ("cp950 ms950 big5 Big5-HKSCS cn-big5 x-x-big5 windows-950 Big5_HKSCS", taiwan, "中"),
            (
                "windows-1252 win-1252 cp1252 windows1252 WIN1252 x-cp1252 Cp1252 iso-8859-1 ISO8859_1 8859_1",
                euro,
                "€",
            ),
            (
                "latin1 iso8859-1 iso_8859-1:1987 ISO-8859-1 iso88591 csISOLatin1 ibm819 cp819 l1 ansi",
                euro,
                "€",
            ),
            ("win-1250 windows-1250 cp1250 windows1250 x-cp1250", b"\x9a\xf8", "šř"),
            ("win-1251 windows-1251 cp1251 windows1251 CP-1251 Windows_1251 mswin1251", b"\xc2\xf1", "Вс"),
            ("win-1253 cp1253 windows-1253", b"\xc1", "Α"),
            ("win-1254 cp1254 iso-8859-9 ISO8859_9 latin5", b"\x80\xfe", "€ş"),
            ("win-1255 cp1255 windows-1255", b"\xe0", "א"),
            ("win-1256 cp1256 windows-1256", b"\xc7", "ا"),
            ("win-1257 cp1257 windows-1257", b"\xe0", "ą"),
            ("win-1258 cp1258 windows-1258", b"\xd0", "Đ"),
            ("cp437 ibm437 IBM-437 437 Cp437", b"\x84\xe1", "äß"),
            ("cp850 ibm850 Cp850 850", b"\x84\xd5", "äı"),
            ("cp858 ibm00858 Cp00858 IBM858", b"\xd5", "€"),
            ("cp852 ibm852 Cp852", b"\x9f", "č"),
            ("cp866 ibm866 Cp866 dos-866", b"\x82\xe1", "Вс"),
            ("iso-8859-15 ISO8859-15 ISO8859_15 latin-9 8859_15 iso885915 iso_8859-15", b"\xa4", "€"),
            ("iso-8859-2 ISO8859_2 latin2 iso8859-2 28592", b"\xb9", "š"),
            ("iso-8859-8-i iso-8859-8 ISO8859_8 iso-8859-8-e", b"\xe0", "א"),
            ("iso-8859-5 ISO_8859-5:1988", b"\xb2", "В"),
            ("TIS-620 tis620 iso-8859-11 windows-874 MS874 x-windows-874 TIS620.2533", b"\xa1", "ก"),
            ("koi8-r KOI8_R koi8 cskoi8r", b"\xf7", "В"),
            ("koi8-u KOI8_U koi8-ru", b"\xa4", "є"),
            ("macintosh x-mac-roman x-MacRoman MacRoman mac", b"\x8a", "ä"),
            ("x-mac-cyrillic x-MacCyrillic", b"\x82", "В"),
            ("euc-jp x-euc-jp EUC_JP ujis eucJP", b"\xb2\xf1", "会"),
            (
                "iso-2022-jp ISO2022JP csISO2022JP iso-2022-jp-2 x-windows-50221 cp50220 JIS",
                JAPANESE,
                "日本語",
            ),
            ("iso-2022-kr ISO2022KR csISO2022KR", b"\x1b$)C\x0e>H3g\x0f!", "안녕!"),
            ("hz-gb-2312 hz HZ-GB-2312", b"~{VP~}!", "中!"),
            (
                "utf-7 UTF7 unicode-1-1-utf-7 x-unicode-1-1-utf-7 x-unicode-2-0-utf-7 cp65000",
                b"+ZeVnLIqe-",
                "日本語",
            ),
            (
                "utf-8 UTF8 utf_8 UTF-8; \"utf-8\" 'utf-8' x-utf-8 unicode-1-1-utf-8 utf-8'en utf-8*en cp65001",
                b"\xc3\xa9",
                "é",
            ),
            ("\"utf-8 =utf-8= utf-8\" charset=utf-8 <utf-8> utf-8, [utf-8]", b"\xc3\xa9", "é"),
            (
                "x-unknown unknown-8bit unknown default none x-user-defined 8bit iso-2022-cn replacement",
                b"\xe9",
                "é",
            ),
            ("iso-8859-12 iso-8859-99 cp99999 cp cp037x windows 8859", b"\xe9", "é"),
        ] {
            for label in labels.split(' ') {
                for label in [label.to_owned(), label.to_ascii_uppercase(), format!(" {label}\t")] {
                    assert_eq!(decode_charset(bytes, Some(&label)), expected, "{label}");
                }
            }
        }
        for label in
            ["utf 8", "Windows 1252", "iso 8859-1", "iso-8859-1 (Latin)", "windows-1252;format=flowed"]
        {
            assert!(charset_of(label).is_some(), "{label}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_text() {
        check(&[
            (b"\xef\xbb\xbfHej", Some("utf-8"), "Hej"),
            (b"\xef\xbb\xbfHej", None, "Hej"),
            (b"\xef\xbb\xbfHej \xc3\xa5", Some("iso-8859-1"), "Hej å"),
            (b"\xff\xfeH\0\xe5\0", Some("utf-16"), "Hå"),
            (b"\xfe\xff\0H\0\xe5", Some("utf-16"), "Hå"),
            (b"\xfe\xff\0H\0\xe5", Some("utf-16le"), "Hå"),
            (b"H\0\xe5\0", Some("utf-16"), "Hå"),
            (b"\0H\0\xe5", Some("utf-16"), "Hå"),
            (b"\0H\0\xe5", Some("utf-16be"), "Hå"),
            (b"H\0\xe5\0x", Some("UTF-16LE"), "Hå"),
            (b"\xff\xfe\0\0H\0\0\0", Some("utf-32"), "H"),
            (b"\0\0\0H\0\0\0\xe5", Some("utf-32be"), "Hå"),
            (b"H\0\0\0\0\0\x11\0", Some("utf-32le"), "H\u{fffd}"),
            (b"\x84\x31\x95\x33\xd6\xd0", Some("gb18030"), "中"),
            (b"\xff\xfe", Some("iso-8859-1"), "ÿþ"),
        ]);
    }

    #[test]
    fn who_says_nothing_means_what_is_likely() {
        for (bytes, fallback, expected) in [
            (JAPANESE, None, "日本語"),
            (b"\x1b(JFee\x1b(B", None, "Fee"),
            (b"\x1b[1mbold\x1b(B", None, "\u{1b}[1mbold\u{1b}(B"), // a terminal's
            (b"caf\xe9 \x1b$B", None, "café \u{1b}$B"),
            (b"\xc2\xf1", Some("windows-1251"), "Вс"),
            (b"\xd0\x92\xd1\x81", Some("windows-1251"), "Вс"),
            (b"\xc2\xf1", Some("utf-8"), "Âñ"),
            (b"\xc2\xf1", Some("iso-2022-jp"), "Âñ"),
            (b"\xc2\xf1", Some("utf-16"), "Âñ"),
            (b"\xc2\xf1", Some("x-unknown"), "Âñ"),
            (b"a~{b", Some("hz"), "a~{b"),
        ] {
            assert_eq!(decode_undeclared(bytes, fallback), expected, "{} {fallback:?}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_cut_falls_between_characters() {
        for (label, whole) in [
            (Some("utf-8"), "a€é😀日".as_bytes()),
            (None, "ordinary text, then é".as_bytes()),
            (Some("us-ascii"), "ordinary text, then é".as_bytes()),
            (Some("shift_jis"), b"\x89\xef\x8bc\x89\xef"),
            (Some("gb18030"), b"\xd6\xd0\x84\x31\x95\x34\xd6\xd0"),
            (Some("utf-16le"), b"a\0\x3d\xd8\0\xdeb\0"),
            (Some("utf-7"), b"a +2D3eAA- +ZeVnLIqe-"),
            (Some("iso-2022-jp"), JAPANESE),
            (Some("iso-2022-kr"), b"\x1b$)C\x0e>H3g\x0f!"),
            (Some("hz"), b"~{VPVP~}!"),
            (Some("euc-jp"), b"\xb2\xf1\x8f\xb0\xa1"),
        ] {
            let all = decode_cut(whole, label);
            for end in 0..=whole.len() {
                let text = decode_cut(&whole[..end], label);
                // Of the shift sequences of seven bits a part may be left, of a character never.
                let text = text.trim_end_matches(|c: char| label == Some("hz") && c == '~');
                assert!(all.starts_with(text), "{label:?} {end}: {text:?} of {all:?}");
            }
        }
    }

    #[test]
    fn any_bytes_under_any_label_are_text() {
        let mut random = fastrand::Rng::with_seed(15);
        let labels = [
            "utf-8",
            "utf-7",
            "utf-16",
            "utf-16be",
            "utf-32",
            "iso-2022-jp",
            "iso-2022-kr",
            "hz",
            "gb18030",
            "cp437",
            "cp857",
            "us-ascii",
            "big5",
            "x-user-defined",
            "",
            "é\u{0}",
            "charset",
            "8859",
            "iso",
            "cp",
        ];
        let alphabet = b"aZ+-/~{}\x1b$()BJ@\x0e\x0f\r\n\0\xff\xfe\xef\xbb\xbf\xc3\xa9\xe2\x82\xf0\x9f\x80";
        for round in 0..20_000 {
            let bytes: Vec<u8> =
                (0..random.usize(0..24)).map(|_| alphabet[random.usize(0..alphabet.len())]).collect();
            let label = labels[round % labels.len()];
            let _ = decode_charset(&bytes, Some(label));
            let _ = decode_undeclared(&bytes, Some(label));
            assert!(decode_cut(&bytes, Some(label)).len() <= 3 * bytes.len() + 3, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_megabyte_of_anything_ends() {
        for pattern in ["+", "+A", "+-", "~", "~{", "~{a", "\x1b", "\x1b$", "\x0e", "\u{e9}", "a"] {
            let bytes = pattern.repeat(1_000_000 / pattern.len());
            for label in
                [None, Some("utf-7"), Some("hz"), Some("iso-2022-kr"), Some("iso-2022-jp"), Some("utf-8")]
            {
                let _ = decode_charset(bytes.as_bytes(), label);
            }
        }
        let _ = decode_charset(b"x", Some(&"'".repeat(1_000_000)));
    }
}
