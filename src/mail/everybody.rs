//! All addresses that a head names, in whatever field: for who is never to be recorded.
//!
//! In: the raw head. Out: addresses, one at a time, the same as often as they are there.
//! Promise: no limit cuts them short, and no list is kept. Fails: never; what is no address is left out.

use super::{
    address::Address,
    address_list::{self, Element},
    field::{fields, unbroken},
    from,
    head::fallback,
};

/// Fields that name people (RFC 5322, section 3.6; RFC 8098), with and without `Resent-`.
const FIELDS: [&str; 8] =
    ["From", "Sender", "Reply-To", "To", "Cc", "Bcc", "Return-Path", "Disposition-Notification-To"];

/// Every address in the raw head, up to but without the empty line.
pub fn everybody(head: &[u8]) -> impl Iterator<Item = Address> {
    let charset = fallback(head);
    fields(head).filter(|(name, _)| names_people(name)).flat_map(move |(name, value)| {
        // They lie in one line of `head`.
        let before = value.as_ptr() as usize - name.as_ptr() as usize;
        let value = unbroken(value, before);
        // From is read in more ways than one.
        let also = from::read_from(&value, charset.as_deref()).mailboxes;
        let listed = address_list::mailboxes(&value, charset.as_deref());
        let listed: Vec<Address> = listed.filter_map(address_of).collect();
        also.into_iter().map(|mailbox| mailbox.address).chain(listed)
    })
}

fn names_people(name: &[u8]) -> bool {
    let resent = name.len() > 7 && name[..7].eq_ignore_ascii_case(b"Resent-");
    let name = if resent { &name[7..] } else { name };
    FIELDS.iter().any(|field| name.eq_ignore_ascii_case(field.as_bytes()))
}

fn address_of(element: Element) -> Option<Address> {
    match element {
        Element::Mailbox(mailbox) => Some(mailbox.address),
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
        let mut found: Vec<String> = everybody(head).map(|address| address.to_string()).collect();
        found.sort();
        found.dedup();
        let expected: Vec<String> = ('a'..='o').map(|c| format!("{c}@x.test")).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn no_limit_cuts_them_short() {
        let list: Vec<String> = (0..5000).map(|n| format!("p{n}@x.test")).collect();
        let head = format!("From: a@x.test\r\nTo: {}\r\n", list.join(",\r\n "));
        assert!(everybody(head.as_bytes()).any(|address| address.to_string() == "p4999@x.test"));
    }
}
