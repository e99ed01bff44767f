//! Who is named by a message.

use super::{addressing::Addressing, words::Correspondent};
use crate::activity::Field;
use crate::mail::{self, Address, Envelope, Head};
use std::collections::HashSet;

/// Who is named by the message, each once: senders, To, Cc, Bcc, then the other envelope recipients.
///
/// The sender is the From field; the envelope sender stands in only if From names nobody, because bounce addresses
/// of lists and forwarders are not people. Integration addresses are left out.
pub fn correspondents(head: &Head, envelope: &Envelope, addressing: &Addressing) -> Vec<Correspondent> {
    let mailboxes = |field, list: &[mail::Mailbox]| {
        list.iter()
            .map(|m| Correspondent { address: m.address.clone(), name: m.name.clone(), field })
            .collect::<Vec<_>>()
    };
    let nameless = |field, address: &Address| Correspondent { address: address.clone(), name: None, field };
    let mut all = mailboxes(Field::From, &head.from);
    if all.is_empty() {
        all.extend(envelope.sender.iter().map(|sender| nameless(Field::From, sender)));
    }
    all.extend(mailboxes(Field::To, &head.to));
    all.extend(mailboxes(Field::Cc, &head.cc));
    all.extend(mailboxes(Field::Bcc, &head.bcc));
    all.extend(envelope.recipients.iter().map(|r| nameless(Field::Envelope, &r.address)));
    let mut seen = HashSet::new();
    all.retain(|c| !addressing.covers(&c.address) && seen.insert(c.address.folded().to_owned()));
    all
}
