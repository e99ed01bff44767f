//! All addresses that a head names, in whatever field: for who is never to be recorded.
//!
//! In: the raw head. Out: addresses, one at a time, the same as often as they are there.
//! Promise: no limit cuts them short, and no list of the whole is kept; names, comments and what is no list of addresses count
//! too, as they stand there. Fails: never.

use super::{
    address_list::{self, Element},
    encoded_word::decode_unstructured,
    field::{fields, unbroken},
    from,
    head::fallback,
    mention::{Mention, mentions},
};

/// Fields that name people (RFC 5322, section 3.6; RFC 8098; RFC 9057; what is in use), with and without `Resent-`.
const FIELDS: [&str; 33] = [
    "From",
    "Sender",
    "Reply-To",
    "To",
    "Cc",
    "Bcc",
    "Return-Path",
    "Disposition-Notification-To",
    "Return-Receipt-To",
    "Errors-To",
    "Delivered-To",
    "Envelope-To",
    "Apparently-To",
    "Mail-Followup-To",
    "Mail-Reply-To",
    "Original-Recipient",
    "Original-From",
    "Author",
    "X-Original-To",
    "X-Original-From",
    "X-Original-Sender",
    "X-Envelope-To",
    "X-Envelope-From",
    "X-Forwarded-To",
    "X-Forwarded-For",
    "X-Sender",
    "X-Google-Original-From",
    "X-Original-Recipient",
    "X-Rcpt-To",
    "X-Confirm-Reading-To",
    "X-Failed-Recipients",
    "Mail-Copies-To",
    "Original-Sender",
];

/// Every address in the raw head, up to but without the empty line.
pub fn everybody(head: &[u8]) -> impl Iterator<Item = Mention> {
    let charset = fallback(head);
    fields(head).flat_map(move |(name, value)| {
        // They lie in one line of `head`.
        let before = value.as_ptr() as usize - name.as_ptr() as usize;
        // Hosts on the way say from whom and for whom they had it (RFC 5321, section 4.4).
        let is_trace = name.eq_ignore_ascii_case(b"Received");
        if !is_trace && !names_people(name) {
            return Vec::new();
        }
        let value = unbroken(value, before);
        let text = decode_unstructured(&value, charset.as_deref());
        let mut found = mentions(&text);
        // A quoted pair, and a fold in the middle.
        if text.contains('\\') {
            found.extend(mentions(&text.replace('\\', "")));
        }
        if value.contains(&b'\n') {
            found.extend(mentions(&String::from_utf8_lossy(&without_folds(&value))));
        }
        if is_trace {
            return found;
        }
        // From is read in more ways than one.
        if name.eq_ignore_ascii_case(b"From") {
            let read = from::read_from(&value, charset.as_deref()).mailboxes;
            found.extend(read.into_iter().map(|mailbox| Mention::Address(mailbox.address)));
        }
        let listed = address_list::mailboxes(&value, charset.as_deref());
        found.extend(listed.filter_map(address_of));
        found
    })
}

/// A value whose line breaks, and the blanks behind them, are gone.
fn without_folds(value: &[u8]) -> Vec<u8> {
    let lines = value.split(|&b| b == b'\n').enumerate();
    lines
        .flat_map(|(index, line)| if index == 0 { line.trim_ascii_end() } else { line.trim_ascii() })
        .copied()
        .collect()
}

fn names_people(name: &[u8]) -> bool {
    let resent = name.len() > 7 && name[..7].eq_ignore_ascii_case(b"Resent-");
    let name = if resent { &name[7..] } else { name };
    FIELDS.iter().any(|field| name.eq_ignore_ascii_case(field.as_bytes()))
}

fn address_of(element: Element) -> Option<Mention> {
    match element {
        Element::Mailbox(mailbox) => Some(Mention::Address(mailbox.address)),
        Element::Skipped => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// D9.
    #[test]
    fn every_field_counts_however_often_it_is_there() {
        let head = b"Resent-From: a@x.test\r\nReceived: from r@x.test\r\nresent-to: b@x.test, B <c@x.test>\r\n\
            From: d@x.test\r\nFrom: e@x.test\r\nSender: f@x.test\r\nSender: g@x.test\r\nTo: Friends: h@x.test,\r\n i@x.test;\r\n\
            To: j@x.test\r\nCc: k@x.test\r\nBcc: l@x.test, nobody, m@x.test\r\nReply-To: n@x.test\r\nSubject: s@x.test\r\n\
            Return-Path: <o@x.test>\r\n";
        let found = named(head);
        let expected: Vec<String> = ('a'..='o').chain(['r']).map(|c| format!("{c}@x.test")).collect();
        assert_eq!(found, expected);
    }

    /// Everybody once, in order.
    fn named(head: &[u8]) -> Vec<String> {
        let text = |mention| match mention {
            Mention::Address(address) => address.to_string(),
            Mention::Domain(domain) => format!("@{domain}"),
        };
        let mut found: Vec<String> = everybody(head).map(text).collect();
        found.sort();
        found.dedup();
        found
    }

    /// D9.
    #[test]
    fn however_it_is_written_it_counts() {
        for field in [
            "To: a@x.test",
            "Cc: My Lawyer a@x.test",
            "Cc: \"a@x.test\" <z@z.test>",
            "Cc: 'a@x.test' via L <z@z.test>",
            "Cc: z@z.test (a@x.test)",
            "Cc: =?utf-8?q?a=40x.test?= <z@z.test>",
            "Cc: =?utf-8?b?YUB4LnRlc3Q=?= <z@z.test>",
            "Cc: [a@x.test]",
            "Cc: z@z.test (a@x.\r\n test)",
            "Cc: \"a\\@x.test\" <z@z.test>",
            "X-Forwarded-For: z@z.test a@x.test",
            "Received: from for by b (envelope-from <a@x.test>) id 1",
            "Received: from a by b for <z@z.test>, <a@x.test>; Mon, 30 Nov 2026 11:00:00 +0000",
            "Errors-To: a@x.test",
            "delivered-to: a@x.test",
            "X-Original-To: a@x.test",
            "Original-Recipient: rfc822;a@x.test",
            "Received: from a by b (Postfix) with ESMTP id 1\r\n\tfor <a@x.test>; Mon, 30 Nov 2026 11:00:00 +0000",
        ] {
            let found =
                named(format!("Subject: b@x.test\r\nMessage-ID: <c@x.test>\r\n{field}\r\n").as_bytes());
            assert!(found.iter().any(|found| found == "a@x.test"), "{field}: {found:?}");
            assert!(
                !found.iter().any(|found| ["b@x.test", "c@x.test"].contains(&found.as_str())),
                "{found:?}"
            );
        }
        for field in ["Cc: a@b@x.test", "Cc: @x.test"] {
            let found = named(format!("{field}\r\n").as_bytes());
            assert!(found.iter().any(|found| found.ends_with("@x.test")), "{field}: {found:?}");
        }
    }

    #[test]
    fn no_limit_cuts_them_short() {
        let list: Vec<String> = (0..5000).map(|n| format!("p{n}@x.test")).collect();
        let head = format!("From: a@x.test\r\nTo: {}\r\n", list.join(",\r\n "));
        assert!(named(head.as_bytes()).iter().any(|address| address == "p4999@x.test"));
    }
}
